"""``facd prepare``: training pairs and benchmark sets in the layout that the option files expect."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from facd_basicsr.cli import QuietCommand
from facd_basicsr.data.benchmark_sets import prepare_benchmarks
from facd_basicsr.data.div2k import OFFICIAL_URL, prepare_div2k
from facd_basicsr.data.folder_pairs import prepare_folders
from facd_basicsr.environment import processors

Command = TypeVar('Command', bound=Callable[..., Any])


def scale_option(required: bool) -> Callable[[Command], Command]:
    return click.option(
        '--scale',
        'scales',
        type=click.IntRange(2, 4),
        multiple=True,
        required=required,
        default=None if required else (2, 3, 4),
        show_default=not required,
        metavar='2|3|4 ...',
        help='One or more scales of the LR images.',
        callback=lambda _ctx, _option, scales: sorted(set(scales)),
    )


workers_option = click.option(
    '--workers',
    type=click.IntRange(1),
    default=processors(),
    help='Worker processes.  [default: one per CPU]',
)


@click.group()
def command() -> None:
    """Prepare training pairs and benchmark sets in the layout that the option files expect (datasets/README.md).

    An interrupted command leaves no incomplete output under a final name. Run it again to continue.
    """


@command.command(cls=QuietCommand, short_help='DIV2K: download, unpack, sub-images, LMDBs.')
@scale_option(required=True)
@click.option('--out', type=click.Path(path_type=Path), default='datasets/DIV2K', show_default=True, help='Folder.')
@click.option('--url', default=OFFICIAL_URL, show_default=True, help='Mirror, or folder with the archives.')
@workers_option
def div2k(scales: list[int], out: Path, url: str, workers: int) -> None:
    """DIV2K training pairs: download, unpack, 480x480 sub-images in LMDBs.

    Archives that exist in --out are not downloaded again.

    \b
    Example:
      facd prepare div2k --scale 2 3 4
    """
    prepare_div2k(scales, out, url, workers)


@command.command(cls=QuietCommand, short_help='Folders of HR images: LR, sub-images, LMDBs.')
@click.argument('folders', metavar='HR_DIR...', nargs=-1, required=True, type=click.Path(path_type=Path))
@scale_option(required=True)
@click.option('--out', type=click.Path(path_type=Path), help='Output folder.  [default: parent of the first HR_DIR]')
@click.option('--name', help="Prefix of the LMDBs' names.  [default: name of the first HR_DIR without _HR]")
@click.option('--crop', type=int, default=480, show_default=True, help='Size of a sub-image in HR pixels.')
@click.option('--step', type=int, help='Stride between sub-images in HR pixels.  [default: half of --crop]')
@click.option('--min-size', type=click.IntRange(0), default=0, help='Skip images with a side smaller than this.')
@click.option(
    '--hold-out',
    type=click.IntRange(0),
    default=0,
    help='Number of images held out for validation, as the set NAME_val.',
)
@workers_option
def folder(
    folders: tuple[Path, ...],
    scales: list[int],
    out: Path | None,
    name: str | None,
    crop: int,
    step: int | None,
    min_size: int,
    hold_out: int,
    workers: int,
) -> None:
    """Training pairs from folders of HR images: MATLAB-bicubic LR, sub-images in LMDBs.

    Images in folders below count, too: 000/00000001.png gets the key 000_00000001.

    \b
    Example:
      facd prepare folder photos more_photos --scale 2 4 --out datasets/mine --name mine
    """
    out = folders[0].resolve().parent if out is None else out
    name = folders[0].resolve().name.removesuffix('_HR') if name is None else name
    unit = math.lcm(*scales)
    step = max(unit, crop // 2 // unit * unit) if step is None else step
    prepare_folders(folders, scales, out, name, crop, step, min_size, workers, hold_out)


@command.command(cls=QuietCommand, short_help='Benchmark sets: GTmod12 and LRbicx2, 3, 4.')
@click.argument('root', metavar='DIR', type=click.Path(path_type=Path))
@scale_option(required=False)
@click.option('--out', type=click.Path(path_type=Path), default='datasets', show_default=True, help='Folder of sets.')
@workers_option
def benchmarks(root: Path, scales: list[int], out: Path, workers: int) -> None:
    """Benchmark sets from their HR images: OUT/SET/GTmod12 and OUT/SET/LRbicx2, LRbicx3, LRbicx4.

    DIR is a set or holds one folder per set. A set's HR images are in its folder or in a subfolder HR, GT or original.

    \b
    Example:
      facd prepare benchmarks downloads/benchmark
    """
    prepare_benchmarks(root, out, scales, workers)
