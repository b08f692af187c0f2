"""Benchmark sets in the layout that the test options read: GTmod12 and LRbicx2, LRbicx3, LRbicx4."""

import glob
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from facd_basicsr.data.bicubic import METHOD, with_bicubic_lr
from facd_basicsr.data.record import are_finished, files_of, key_of, open_partial
from facd_basicsr.errors import UserError
from facd_basicsr.files.images import IMAGE_SUFFIXES, image_size, images_in, is_gray, read_bgr, write_png
from facd_basicsr.files.parallel import in_processes
from facd_basicsr.progress import ProgressBar

MULTIPLE = 12  # of 2, 3 and 4, so that every scale is tested on the same ground truth
HR_FOLDERS = ('hr', 'gt', 'original')


def prepare_benchmarks(root: Path, out: Path, scales: Sequence[int], workers: int) -> None:
    """Writes ``out/SET/GTmod12/*.png`` and ``out/SET/LRbicx{scale}/*.png`` of every set in ``root``, or of ``root``.

    Raises:
        UserError: no set is found, an image cannot be read or is smaller than 12 pixels, or another set exists under
            that name.
    """
    for name, images in _sets(root).items():
        write_set(images, out / name, scales, workers)


def write_set(images: Mapping[str, Path], path: Path, scales: Sequence[int], workers: int) -> None:
    """Writes one set of images by key, unless it exists, made of the same images; resumes an interrupted one.

    Raises:
        UserError: an image cannot be read, or another set exists under that name.
    """
    record = {'lr': METHOD, 'scales': ' '.join(map(str, scales)), 'images': files_of(images)}
    already = are_finished([path], record)
    if not already:
        unfinished = open_partial(path, record, _forget)
        folders = {1: 'GTmod12', **{scale: f'LRbicx{scale}' for scale in scales}}
        calls = {}
        for key, image in images.items():
            targets = {scale: unfinished / folder / f'{key}.png' for scale, folder in folders.items()}
            if not all(target.is_file() for target in targets.values()):
                calls[key] = partial(_write_image, image, targets)
        with in_processes(calls, workers) as results:
            for _ in ProgressBar(
                results, desc=path.name, total=len(images), initial=len(images) - len(calls), unit='image'
            ):
                pass
        unfinished.rename(path)
    print(f'{len(images)} images{" already there" * already}: {path}', flush=True)


def _sets(root: Path) -> dict[str, dict[str, Path]]:
    """The HR images of every set by their stems, all checked before the first is written."""
    if not root.is_dir():
        raise UserError(f'{root}: no such folder')
    sets = {root.resolve().name: _hr_images(root)}
    if not any(sets.values()):
        folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != '.')
        sets = {folder.name: _hr_images(folder) for folder in folders}
    without_images = [name for name, images in sets.items() if not images] if sets else ['any set']
    if without_images:
        raise UserError(
            f'{root}: no images of {without_images[0]}; accepted: a folder for each set, with HR images in it or in '
            f'its folder {", ".join(HR_FOLDERS)}'
        )
    keyed: dict[str, dict[str, Path]] = {}
    for name, images in sets.items():
        stems = keyed.setdefault(name, {})
        for path in images:
            if path.stem in stems:
                raise UserError(f'{path} and {stems[path.stem]} would both be {path.stem}.png; accepted: one of them')
            stems[path.stem] = path
            height, width = image_size(path)
            if min(height, width) < MULTIPLE:
                raise UserError(f'{path}: {width}x{height} pixels; accepted: {MULTIPLE} or more both ways')
    return keyed


def _hr_images(folder: Path) -> list[Path]:
    """The images in a set's folder, or in the only one of its folders that has HR's name; none: it is no set."""
    candidates = [path for path in folder.iterdir() if path.is_dir() and path.name.lower() in HR_FOLDERS]
    if any(path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() for path in folder.iterdir()):
        candidates.append(folder)
    if len(candidates) > 1:
        raise UserError(f'{folder}: HR images may be in {", ".join(map(str, sorted(candidates)))}; accepted: one place')
    return images_in(candidates[0]) if candidates else []


def _forget(folder: Path, images: Sequence[str]) -> None:
    """Removes what was made of images from an unfinished set."""
    for image in images:
        for target in folder.glob(f'*/{glob.escape(key_of(image))}.png'):
            target.unlink()


def _write_image(image: Path, targets: dict[int, Path]) -> None:
    gray = is_gray(image)  # stays so: published values score a gray image as it is (facd benchmark --gray)
    for scale, version in with_bicubic_lr(read_bgr(image), list(targets), MULTIPLE).items():
        targets[scale].parent.mkdir(exist_ok=True)
        write_png(targets[scale], version[:, :, :1] if gray else version)
