"""``facd figure``: the paper's Figure 4 (crops side by side) and Figure 2 (patches where the student is better)."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from facd_basicsr.cli import QuietCommand, methods_options
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.figures import (
    Crop,
    TeacherMap,
    absolute_error,
    chosen_crop,
    crop_psnr,
    enlarge,
    error_map,
    find_crops,
    grid,
    marked,
    teacher_map,
    tinted,
)
from facd_basicsr.evaluation.methods import Method, load_methods
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.evaluation.test_sets import ImagePair, build_sets, is_called, select
from facd_basicsr.files.atomic import atomic_path, atomic_write, make_folder_of
from facd_basicsr.progress import ProgressBar

CELL = 192  # approximate size of a crop in the figure, in pixels
BRIGHTEST = 0.99  # quantile of the errors of the worst method that is as bright as can be


def draw_crops(methods: Sequence[Method], crops: Sequence[Crop], errors: bool = False) -> Image.Image:
    """A row per crop: the image with the crop's outline, GT, and every method with the crop's PSNR-Y; with ``errors``
    a second row of each method's error."""
    rows = []
    for crop in crops:
        zoom = max(1, round(CELL / crop.size))
        side = crop.size * zoom
        row = [
            (f'{crop.pair.set}/{crop.pair.image}', marked(crop.pair.gt, crop.box, (2 * side, side))),
            ('HR\n(PSNR-Y of the crop)', enlarge(crop.of(crop.pair.gt), zoom)),
        ]
        srs = [method.upscale(crop.pair.lq) for method in methods]
        for method, sr in zip(methods, srs):
            row.append((f'{method.name}\n{crop_psnr(sr, crop):.2f} dB', enlarge(crop.of(sr), zoom)))
        rows.append(row)
        if errors:
            top = max(float(np.quantile(absolute_error(sr, crop), BRIGHTEST)) for sr in srs)
            nothing = Image.new('RGB', (1, 1), 'white')
            key = f'error in Y below:\nblack 0, brightest {top:.0f} or more'
            maps = [('', enlarge(error_map(sr, crop, top), zoom)) for sr in srs]
            rows.append([('', nothing), ('', nothing), *maps])
            row[1] = (f'{row[1][0]}\n{key}', row[1][1])
    return grid(rows)


def draw_teacher_maps(student: Method, teacher: Method, maps: Sequence[TeacherMap]) -> Image.Image:
    """A row per image: the patches where the teacher is worse, and the worst of them in GT and both outputs."""
    rows = []
    for found in maps:
        left, top, right, bottom = box = found.boxes[found.worst()]
        zoom = max(1, round(CELL / (right - left)))
        pair = found.pair
        overview = marked(tinted(pair.gt, found.lost()), box, (3 * CELL, 2 * CELL))
        row = [
            (f'{pair.set}/{pair.image}\nteacher worse in {found.share:.1%} of {len(found.boxes)} patches', overview),
            (
                f'HR\n(mean errors; {"the worst patch" if found.share else "none is worse; the closest"})',
                enlarge(pair.gt[top:bottom, left:right], zoom),
            ),
        ]
        for method, error in ((student, found.student_error), (teacher, found.teacher_error)):
            patch = method.upscale(pair.lq)[top:bottom, left:right]
            row.append((f'{method.name}\n{error[found.worst()]:.2f}', enlarge(patch, zoom)))
        rows.append(row)
    return grid(rows)


def save(picture: Image.Image, out: Path) -> None:
    with atomic_path(out) as path:
        picture.save(path)
    print(f'{out}: {picture.width}x{picture.height}')


def check_out(out: Path) -> None:
    if out.suffix != '.png' or out.is_dir():
        raise UserError(f'--out: {out}; accepted: a file name that ends in .png')
    make_folder_of(out, '--out')


set_option = click.option('--set', 'set_name', help='use this set only; default: all')


@click.group()
def command() -> None:
    """The paper's figures: crops side by side (Figure 4), and where the student beats the teacher (Figure 2)."""


@command.command(cls=QuietCommand)
@methods_options
@click.option(
    '--teacher', 'train_file', type=click.Path(), metavar='TRAIN_YML', help='train file; adds a column for its teacher'
)
@set_option
@click.option('--image', multiple=True, help='use this image only, NAME without suffix or SET/NAME; repeatable')
@click.option(
    '--crop',
    'windows',
    nargs=3,
    type=int,
    multiple=True,
    metavar='LEFT TOP SIZE',
    help='in HR pixels of --image; several for one image, or one for each',
)
@click.option('--count', type=click.IntRange(1), default=3, show_default=True, help='number of crops to find')
@click.option('--size', type=click.IntRange(1), default=48, show_default=True, help='side of found crops in HR pixels')
@click.option('--errors', is_flag=True, help="a second row of every method's error in Y, on one scale")
@click.option('--out', type=click.Path(path_type=Path), default='figure.png', show_default=True, help='PNG to write')
def crops(
    option_files: tuple[str, ...],
    runs: tuple[str, ...],
    sets: tuple[str, ...],
    train_file: str | None,
    set_name: str | None,
    image: tuple[str, ...],
    windows: tuple[tuple[int, int, int], ...],
    count: int,
    size: int,
    errors: bool,
    out: Path,
    force_yml: tuple[str, ...],
) -> None:
    """Figure 4: a row per crop, a column per method, each with the PSNR-Y of the crop.

    Without --crop, chooses the windows where the methods differ most, from different images if there are enough, and
    prints the command that draws them again.

    \b
    Example:
      facd figure crops --run experiments/Student_EDSR_x4 --run experiments/FACD_EDSR_x4
    """
    check_out(out)
    methods, opt, _ = load_methods(option_files, train_file, force_yml, runs, sets)
    images = select(build_sets(opt), set_name, image)
    if windows:
        found = _chosen_crops(images, image, windows)
    else:
        found = find_crops(methods, ProgressBar(images, unit='image', dynamic_ncols=True), size, count)
    save(draw_crops(methods, found, errors), out)
    if not windows:
        given = [('-opt', option_files), ('--run', runs), ('--sets', sets), ('--force_yml', force_yml)]
        words = [word for option, values in given for value in values for word in (option, value)]
        words += [] if train_file is None else ['--teacher', train_file]
        words += ['--errors'] if errors else []
        for crop in found:
            words += ['--image', f'{crop.pair.set}/{crop.pair.image}']
            words += ['--crop', *map(str, (crop.left, crop.top, crop.size))]
        print(f'The same crops again:\n{shlex.join(["facd", "figure", "crops", *words, "--out", str(out)])}')


def _chosen_crops(
    images: Sequence[ImagePair], names: Sequence[str], windows: Sequence[tuple[int, int, int]]
) -> list[Crop]:
    """The windows that a user names: of one image, or each of its own.

    Raises:
        UserError: a window is not inside its image, or which that is is not clear.
    """
    if len(images) == 1:
        return [chosen_crop(images[0], *window) for window in windows]
    of_window = [[pair for pair in images if is_called(pair, name)] for name in names]
    if len(names) != len(windows) or any(len(found) != 1 for found in of_window):
        raise UserError(
            f'--crop: {len(images)} images match for {len(windows)} crops; accepted: one image, chosen by --image '
            'SET/NAME, or one --image for each --crop'
        )
    return [chosen_crop(found[0], *window) for found, window in zip(of_window, windows)]


@command.command('teacher-map', cls=QuietCommand)
@methods_options
@click.option(
    '--teacher', 'train_file', type=click.Path(), required=True, metavar='TRAIN_YML', help='train file with the teacher'
)
@set_option
@click.option('--image', multiple=True, help='use this image only, named without suffix; repeatable')
@click.option(
    '--patch', type=click.IntRange(1), default=24, show_default=True, help='patch size in LQ pixels; the paper uses 48'
)
@click.option('--count', type=click.IntRange(1), default=3, show_default=True, help='images to draw, worst first')
@click.option('--out', type=click.Path(path_type=Path), default='teacher_map.png', show_default=True)
def teacher_map_command(
    option_files: tuple[str, ...],
    runs: tuple[str, ...],
    sets: tuple[str, ...],
    train_file: str,
    set_name: str | None,
    image: tuple[str, ...],
    patch: int,
    count: int,
    out: Path,
    force_yml: tuple[str, ...],
) -> None:
    """Figure 2: the patches where the teacher's error is larger than the student's (alpha = 0 in equation 1).

    Draws the images with the largest share of such patches. Prints the share of every image, and writes it as JSON next
    to the PNG.

    \b
    Example:
      facd figure teacher-map --run experiments/Student_EDSR_x4 --teacher options/train/FACD_EDSR_x4.yml
    """
    check_out(out)
    if len(option_files) + len(runs) != 1:
        raise UserError(f'-opt: {len(option_files)} and --run: {len(runs)}; accepted: one of both, the student')
    (_, student, teacher, *others), opt, _ = load_methods(option_files, train_file, force_yml, runs, sets)
    if others:
        raise UserError(f'--teacher: {train_file} has {1 + len(others)} teachers; accepted: a train file with one')
    images = ProgressBar(select(build_sets(opt), set_name, image), unit='image', dynamic_ncols=True)
    maps = [teacher_map(student, teacher, pair, patch) for pair in images]
    with_patches = [found for found in maps if found.boxes]
    if not with_patches:
        raise UserError(f'--patch: {patch}; accepted: a patch no larger than the LQ images')
    # if the teacher is never worse, draw the image where it comes closest
    drawn = sorted(with_patches, key=lambda found: -found.share)
    drawn = [found for found in drawn if found.share > 0][:count] or drawn[:1]

    shares: list[dict[str, Any]] = [
        {
            'set': found.pair.set,
            'image': found.pair.image,
            'patches': len(found.boxes),
            'teacher_loses': int(found.loses.sum()),
            'share': found.share if found.boxes else None,
        }
        for found in maps
    ]
    patches, lost = (sum(of[key] for of in shares) for key in ('patches', 'teacher_loses'))
    rows = [[f'{of["set"]}/{of["image"]}', of['patches'], of['teacher_loses'], of['share']] for of in shares]
    rows.append(['all', patches, lost, lost / patches])
    cells = [[*map(str, row[:3]), '-' if row[3] is None else f'{row[3]:.1%}'] for row in rows]
    print(text_table(['image', 'patches', 'teacher worse', 'share'], cells))
    save(draw_teacher_maps(student, teacher, drawn), out)
    results = {
        'student': student.summary(),
        'teacher': teacher.summary(),
        'patch': patch,
        'gt_patch': patch * student.scale,
        'patches': patches,
        'teacher_loses': lost,
        'share': lost / patches,
        'images': shares,
    }
    atomic_write(out.with_suffix('.json'), json.dumps(results, indent=1) + '\n')
    print(f'{out.with_suffix(".json")}: share per image')
