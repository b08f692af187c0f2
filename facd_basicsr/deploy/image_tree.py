"""Which image becomes which file, for files and folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from facd_basicsr.errors import UserError
from facd_basicsr.files.images import FORMATS, IMAGE_SUFFIXES, images_below


@dataclass(frozen=True)
class Pair:
    """An image and the file that it becomes, whose suffix is one of ``FORMATS``."""

    source: Path
    target: Path


def is_one_file(inputs: Sequence[Path], out: Path) -> bool:
    """Whether ``out`` is the name of a file, not of a folder."""
    return len(inputs) == 1 and inputs[0].is_file() and out.suffix.lower() in FORMATS and not out.is_dir()


def pairs_of(inputs: Sequence[Path], out: Path, suffix: str | None) -> list[Pair]:
    """The images of all inputs, in order.

    Args:
        inputs: files, and folders whose images are taken with those of their folders.
        out: a folder, in which the files lie as in the folders of the input; or see :func:`is_one_file`.
        suffix: of the files; None: PNG, or what ``out`` says.

    Raises:
        UserError: an input is missing or without images, or a file would be two images' or an image itself.
    """
    for path in inputs:
        if not path.exists():
            raise UserError(f'IN: no such file or folder: {path}')
    if is_one_file(inputs, out):
        if suffix not in (None, out.suffix.lower()) and FORMATS[suffix] != FORMATS[out.suffix.lower()]:
            raise UserError(f'--format: {suffix[1:]}, but --out is {out}; accepted: one and the same')
        pairs = [Pair(inputs[0], out)]
    else:
        _check_folder(out)
        pairs = [pair for path in inputs for pair in _pairs_of(path, out, suffix or '.png')]
    _check_names(pairs)
    return pairs


def _check_folder(out: Path) -> None:
    if out.is_dir():
        return
    if out.exists():
        raise UserError(f'--out: {out} is a file; accepted: a folder, or for one image a new file')
    if out.suffix.lower() in FORMATS:
        raise UserError(f'--out: {out} is the name of one file; accepted for several, or a folder of them: a folder')
    if out.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(f'--out: {out}; accepted: a folder, or for one image a name that ends in {", ".join(FORMATS)}')


def _pairs_of(path: Path, out: Path, suffix: str) -> list[Pair]:
    if not path.is_dir():
        return [Pair(path, out / f'{path.stem}{suffix}')]
    if path.resolve() == out.resolve():
        raise UserError(f'--out: {out} is IN; accepted: another folder, which may lie in it')
    own = out.resolve()
    images = [image for image in images_below(path) if own not in image.resolve().parents]  # what is made is not IN
    if not images:
        raise UserError(f'IN: {path}: no images; accepted: {", ".join(sorted(IMAGE_SUFFIXES))}')
    return [Pair(image, out / image.relative_to(path).with_suffix(suffix)) for image in images]


def _check_names(pairs: Sequence[Pair]) -> None:
    sources = {pair.source.resolve() for pair in pairs}
    found: dict[Path, Path] = {}
    for pair in pairs:
        if pair.target.resolve() in sources:
            raise UserError(f'--out: {pair.target} would overwrite an image of IN; accepted: another folder')
        if pair.target in found:
            raise UserError(
                f'IN: {found[pair.target]} and {pair.source} would both become {pair.target}; accepted: names that '
                'differ in more than their suffix, or two commands with two --out'
            )
        found[pair.target] = pair.source
