"""Upscaling of files and folders: jobs, a record of finished files, several images at a time."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image

from facd_basicsr.data.record import files_of
from facd_basicsr.deploy.memory_bound import MemoryBound
from facd_basicsr.deploy.student import Description
from facd_basicsr.deploy.upscaler import RefusedSizeError, Upscaler
from facd_basicsr.errors import UserError
from facd_basicsr.files.atomic import fsync_directory, named, partial_of, rename_into_place, write_partial
from facd_basicsr.files.download import sha256_of
from facd_basicsr.files.images import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    check_size,
    encoded,
    images_below,
    read_pixels,
    reraise_damaged,
)
from facd_basicsr.progress import ProgressBar
from facd_basicsr.runtime.execution import tf32_of


@dataclass(frozen=True)
class UpscaleJob:
    """An image and the file that it becomes, whose suffix is one of ``IMAGE_FORMATS``."""

    source: Path
    target: Path


def is_one_file(inputs: Sequence[Path], out: Path) -> bool:
    """Whether ``out`` is the name of a file, not of a folder."""
    return len(inputs) == 1 and inputs[0].is_file() and out.suffix.lower() in IMAGE_FORMATS and not out.is_dir()


def pairs_of(inputs: Sequence[Path], out: Path, suffix: str | None) -> list[UpscaleJob]:
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
        if suffix not in (None, out.suffix.lower()) and IMAGE_FORMATS[suffix] != IMAGE_FORMATS[out.suffix.lower()]:
            raise UserError(f'--format: {suffix[1:]}, but --out is {out}; accepted: one and the same')
        pairs = [UpscaleJob(inputs[0], out)]
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
    if out.suffix.lower() in IMAGE_FORMATS:
        raise UserError(f'--out: {out} is the name of one file; accepted for several, or a folder of them: a folder')
    if out.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(
            f'--out: {out}; accepted: a folder, or for one image a name that ends in {", ".join(IMAGE_FORMATS)}'
        )


def _pairs_of(path: Path, out: Path, suffix: str) -> list[UpscaleJob]:
    if not path.is_dir():
        return [UpscaleJob(path, out / f'{path.stem}{suffix}')]
    if path.resolve() == out.resolve():
        raise UserError(f'--out: {out} is IN; accepted: another folder, which may lie in it')
    made = out.resolve() if path.resolve() in out.resolve().parents else None  # which is not IN
    images = [image for image in images_below(path) if made not in image.resolve().parents]
    if not images:
        raise UserError(f'IN: {path}: no images; accepted: {", ".join(sorted(IMAGE_SUFFIXES))}')
    return [UpscaleJob(image, out / image.relative_to(path).with_suffix(suffix)) for image in images]


def _check_names(pairs: Sequence[UpscaleJob]) -> None:
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


UPSCALE_RECORD = 'upscale.jsonl'
LINE_KEYS = {'file', 'image', 'student', 'sha256'}  # of a line
OVERWRITE = 'accepted: another --out, or --overwrite, which makes all files of this command again'


def student_id(path: Path, description: Description) -> dict[str, str]:
    """A student's name and a digest of its weights and description."""
    run_as = json.dumps([sha256_of(path), description.network, description.scale], sort_keys=True)
    return {'student': path.name, 'sha256': hashlib.sha256(run_as.encode()).hexdigest()}


class UpscaleRecord:
    """A file in a folder of upscaled images with a line of JSON for each; a later one on the same image counts.

    Several threads may use it.

    Args:
        folder: may not exist yet.
        student: from :func:`student_id`.
    """

    def __init__(self, folder: Path, student: dict[str, str]) -> None:
        self._folder, self._student = folder, student
        self._path = folder / UPSCALE_RECORD
        self._lines = self._read()
        self._turn = Lock()

    def unfinished(self, pairs: Sequence[UpscaleJob]) -> list[UpscaleJob]:
        """The jobs whose files do not exist, or whose images have changed since.

        Raises:
            UserError: a file is by another student, or not by this command.
        """
        for pair in pairs:
            if not pair.target.exists():
                continue
            line = self._lines.get(self._name(pair))
            if line is None:
                raise UserError(f'--out: {pair.target} exists and was not written by this command; {OVERWRITE}')
            if line['sha256'] != self._student['sha256']:
                raise UserError(
                    f'--out: {pair.target} exists, written by another student or with another --opt '
                    f'({line["student"]}); {OVERWRITE}'
                )
        return [pair for pair in pairs if not (pair.target.exists() and self._is_of_the_image_as_it_is(pair))]

    def finish(self, pair: UpscaleJob, line: dict[str, Any], partial: Path) -> None:
        """Renames a file into place, after its line is written, so that no file lacks one.

        Between the two the last line is of the new file and the name may be an older one's. The new file
        under its temporary name shows this, also if the process is killed there.

        Args:
            line: from :meth:`line`, as it was when the image was read.
            partial: the file, all written, from :func:`facd_basicsr.files.atomic.write_partial`.

        Raises:
            OSError: the line cannot be written, and only the older file and its line are left; or the file cannot get
                its name, and keeps the temporary one.
        """
        try:
            with self._turn, self._path.open('a', encoding='utf-8') as file:
                file.write(json.dumps(line) + '\n')
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            partial.unlink()
            raise named(error, self._path) from error
        partial.replace(pair.target)
        fsync_directory(pair.target.parent)

    def line(self, pair: UpscaleJob) -> dict[str, Any]:
        """What is recorded of a pair."""
        return {'file': self._name(pair), 'image': files_of({pair.source.stem: pair.source})[0], **self._student}

    def _is_of_the_image_as_it_is(self, pair: UpscaleJob) -> bool:
        interrupted = partial_of(pair.target).exists()  # the last line may not be this file's
        return not interrupted and self._lines[self._name(pair)]['image'] == self.line(pair)['image']

    def _name(self, pair: UpscaleJob) -> str:
        return pair.target.relative_to(self._folder).as_posix()

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._path.exists():
            return {}
        content = self._path.read_bytes()
        if not content.endswith(b'\n'):  # a line that was cut short, which the next one must not join
            with self._path.open('a', encoding='utf-8') as file:
                file.write('\n')
        return {line['file']: line for line in map(_parsed, content.splitlines()) if line.keys() >= LINE_KEYS}


def _parsed(line: bytes) -> dict[str, Any]:
    """Empty of what :meth:`UpscaleRecord.finish` has not written, or not all of."""
    try:
        parsed = json.loads(line)
    except ValueError:  # no JSON, or no text
        return {}
    return parsed if isinstance(parsed, dict) and isinstance(parsed.get('file'), str) else {}


def upscale_images(
    upscaler: Upscaler,
    pairs: Sequence[UpscaleJob],
    jobs: int,
    record: UpscaleRecord | None,
    bound: MemoryBound | None = None,
) -> int:
    """Writes the file of each pair, atomically, under a progress bar.

    What a format cannot keep of an image, and why an image is left out, is reported in a line each on stderr.

    Args:
        upscaler: unusable afterwards if this raises.
        jobs: images at a time: so many are read, run and written in threads, which share the CPU's cores.
        record: the record of every file; None: none.
        bound: chooses tiles, and fewer images at a time; None: unbounded.

    Returns:
        How many images were left out: not readable, too large for the format or for the memory, or of a size that the
        network does not take.

    Raises:
        OSError: a file cannot be written. As with Ctrl-C, what was started ends at once and leaves nothing.
    """
    jobs = max(1, min(jobs, len(pairs)))
    if bound is not None:
        with without_pixel_limit():
            jobs = bound.jobs([(pair.source, pair.target.suffix.lower()) for pair in pairs], jobs)
    skipped = 0
    with (
        settings(upscaler, jobs, bound is not None),
        ProgressBar(total=len(pairs), unit='image', dynamic_ncols=True) as bar,
        ThreadPoolExecutor(jobs) as threads,
    ):
        try:
            futures = {threads.submit(_upscale, upscaler, pair, record, bound, bar): pair for pair in pairs}
            for future in as_completed(futures):
                try:
                    for sentence in future.result():
                        ProgressBar.write(f'{futures[future].source}: {sentence}', file=sys.stderr)
                except UserError as error:
                    skipped += 1
                    ProgressBar.write(f'skipped: {error}', file=sys.stderr)
                bar.update()
        except BaseException:
            upscaler.cancel()
            threads.shutdown(cancel_futures=True)
            raise
    return skipped


def _upscale(
    upscaler: Upscaler, pair: UpscaleJob, record: UpscaleRecord | None, bound: MemoryBound | None, bar: ProgressBar
) -> list[str]:
    """One image; returns what its format could not keep."""
    suffix = pair.target.suffix.lower()

    def show(tile: int, tiles: int) -> None:
        if tiles > 1:
            bar.set_postfix_str(f'{pair.source.name}: tile {tile} of {tiles}')

    with reraise_damaged(pair.source):
        # its line first, or it would not be of what is read
        line = None if record is None else record.line(pair)
    tile = None if bound is None else bound.tile_of(pair.source, suffix)[0]
    try:
        pixels, profile = read_pixels(pair.source)
        height, width = (upscaler.scale * side for side in pixels.shape[:2])
        check_size(height, width, suffix, f'{pair.source}: x{upscaler.scale}')
        parts, lost = encoded(upscaler.upscale(pixels, show, tile), profile, suffix)
        pair.target.parent.mkdir(parents=True, exist_ok=True)
        partial = write_partial(pair.target, parts)
    except MemoryError as error:
        raise UserError(
            f'{pair.source}: needs more memory than is available; accepted: --jobs 1, {upscaler.less_memory}, or a '
            'smaller image'
        ) from error
    except RefusedSizeError as error:
        raise UserError(
            f'{pair.source}: the network does not run on {width // upscaler.scale}x{height // upscaler.scale} pixels '
            f'({error}); accepted: an image of a size that it takes'
        ) from error
    if record is None or line is None:
        rename_into_place(partial, pair.target)
    else:
        record.finish(pair, line, partial)
    return lost


@contextmanager
def without_pixel_limit() -> Iterator[None]:
    """Without Pillow's limit of 179 megapixels, which is for untrusted images."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def settings(upscaler: Upscaler, jobs: int, frugal: bool = False) -> Iterator[None]:
    """Without TF32, which rounds more than a step of 16 bits, and without Pillow's limit. Threads that are started
    inside have a part of torch's or the runtime's threads each."""
    threads = torch.get_num_threads()
    upscaler.prepare(jobs, frugal)
    torch.set_num_threads(max(1, threads // jobs))
    try:
        with without_pixel_limit(), tf32_of('fp32'):
            yield
    finally:
        torch.set_num_threads(threads)
