"""The rules by which BasicSR's datasets find their images: in folders, in LMDBs, or by the lines of a list."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.data.realesrgan_paired_dataset import RealESRGANPairedDataset
from basicsr.data.reds_dataset import REDSDataset, REDSRecurrentDataset
from basicsr.data.single_image_dataset import SingleImageDataset
from basicsr.data.video_test_dataset import VideoRecurrentTestDataset, VideoTestDataset, VideoTestVimeo90KDataset
from basicsr.data.vimeo90k_dataset import Vimeo90KDataset, Vimeo90KRecurrentDataset
from basicsr.utils.registry import DATASET_REGISTRY

from facd_basicsr.data import lq_patches  # noqa: F401  registration
from facd_basicsr.data.lmdb_pairs import DATA_PAGE, meta_info_shapes
from facd_basicsr.data.memory_pairs import file_backend
from facd_basicsr.errors import UserError, one_line
from facd_basicsr.files.images import IMAGE_SUFFIXES

FIRST_WORD = re.compile(r'(\S+).*')
TWO_NAMES = re.compile(r'(.+), (.+)')
CLIP_AND_COUNT = re.compile(r'(\S+) +\d+ +\S+')


@dataclass(frozen=True)
class Rules:
    """How a dataset finds what it reads.

    Attributes:
        sides: what it reads of each sample, the ``gt`` of ``dataroot_gt`` first.
        list_key: the option that names its list of images or clips.
        line: a line of that list; its groups are names on the first side, or on both.
        example: such a line, for messages.
        needs_list: on the disk it reads no folders without a list.
        clips: it reads folders of frames.
        listed_are_there: every clip of the list is read.
    """

    sides: tuple[str, ...] = ('gt', 'lq')
    list_key: str = 'meta_info_file'
    line: re.Pattern[str] = FIRST_WORD
    example: str = '0001.png (480,480,3)'
    needs_list: bool = False
    clips: bool = False
    listed_are_there: bool = True


CLIPS = Rules(example='000 100 (720,1280,3)', clips=True)
LISTED_CLIPS = Rules(example='00001/0001 7 (256,448,3)', needs_list=True, clips=True)
PART_OF_CLIPS = Rules(  # the list has the clips of validation, too
    line=CLIP_AND_COUNT, example='000 100 (720,1280,3)', needs_list=True, clips=True, listed_are_there=False
)
RULES: dict[type, Rules] = {
    PairedImageDataset: Rules(),
    RealESRGANPairedDataset: Rules(list_key='meta_info', line=TWO_NAMES, example='GT/0001.png, LQ/0001.png'),
    SingleImageDataset: Rules(('lq',)),
    RealESRGANDataset: Rules(('gt',), 'meta_info', needs_list=True),
    VideoTestDataset: CLIPS,
    VideoRecurrentTestDataset: CLIPS,
    VideoTestVimeo90KDataset: LISTED_CLIPS,
    Vimeo90KDataset: LISTED_CLIPS,
    Vimeo90KRecurrentDataset: LISTED_CLIPS,
    REDSDataset: PART_OF_CLIPS,
    REDSRecurrentDataset: PART_OF_CLIPS,
}


def rules_of(dataset_opt: dict[str, Any]) -> Rules | None:
    """Of a registered dataset, by its constructor, which a class may inherit. None: it has rules of its own."""
    dataset = DATASET_REGISTRY.get(dataset_opt['type'])
    return RULES.get(next(known for known in dataset.__mro__ if '__init__' in vars(known)))


def image_paths(where: str, dataset_opt: dict[str, Any], rules: Rules) -> list[dict[str, str]]:
    """The images of a set as BasicSR's datasets have them in ``paths``: ``gt_path`` and ``lq_path``, or one of them.

    Every one is in its folder, or a key of its LMDB's list. On the disk an LQ has the name of its GT by
    ``filename_tmpl`` and its suffix, or any other suffix of an image.

    Args:
        rules: of its dataset, not one of clips.

    Raises:
        UserError: naming the first image that is missing, without counterpart, or listed and not there.
        OSError: a folder cannot be read.
    """
    if file_backend(dataset_opt) == 'lmdb':
        if dataset_opt.get(rules.list_key) is not None:
            raise UserError(
                f'{where}.{rules.list_key}: {dataset_opt[rules.list_key]}; accepted with an LMDB: null, for all of its '
                'images are read'
            )
        return _lmdb_keys(where, dataset_opt, rules)
    folders = Folders()
    roots = [str(Path(dataset_opt[f'dataroot_{side}'])) for side in rules.sides]
    template = dataset_opt.get('filename_tmpl') or '{}'
    path = _list_of(where, dataset_opt, rules)
    named: list[tuple[str, Sequence[str]]]  # where a message says that the names stand, and a name for each root
    if path is None:
        named = [(f'{where}.dataroot_lq', (name,)) for name in folders.names(roots[0])]
    else:
        named = [(line, match.groups()) for line, match in list_lines(f'{where}.{rules.list_key}', path, rules)]
        if not named:
            raise UserError(f'{where}.{rules.list_key}: {path} is empty; accepted: lines such as {rules.example!r}')
    found = []
    gt_of: dict[str, str] = {}
    for name_is, names in named:
        images = [f'{root}/{name}' for root, name in zip(roots, names)]
        for image in images:
            if path is not None and not folders.has(image):
                raise UserError(f'{name_is}: no such file: {image}; accepted: {rules.example!r}, of files there')
        if len(images) < len(roots):
            gt, lq = images[0], _lq_of(name_is, images[0], roots[1], template, folders)
            if gt_of.setdefault(lq, gt) != gt:
                raise UserError(f'{name_is}: {lq} would be the LQ of {gt_of[lq]} and {gt}; accepted: one of each')
            images.append(lq)
        found.append({f'{side}_path': image for side, image in reversed([*zip(rules.sides, images)])})
    if path is None and len(roots) == 2:
        alone = [name for name in folders.names(roots[1]) if f'{roots[1]}/{name}' not in gt_of]
        if alone:
            more = f' (and {len(alone) - 1} more)' if alone[1:] else ''
            raise UserError(
                f'{where}.dataroot_lq: {roots[1]}/{alone[0]}{more} has no counterpart in {roots[0]}, where every image '
                f'has an LQ; accepted: as many LQ as GT; {DATA_PAGE}'
            )
    return found


def check_clips(where: str, dataset_opt: dict[str, Any], rules: Rules) -> None:
    """Checks the list of a set of clips, and that on the disk the roots have the clips that it reads.

    Raises:
        UserError: naming the list's line or the folder.
        OSError: a folder cannot be read.
    """
    roots, folders = [Path(dataset_opt[f'dataroot_{side}']) for side in rules.sides], Folders()
    on_disk = file_backend(dataset_opt) != 'lmdb'
    path = _list_of(where, dataset_opt, rules)
    if path is not None:
        for line_is, match in list_lines(f'{where}.{rules.list_key}', path, rules):
            for clip in [root / match[1] for root in roots if on_disk and rules.listed_are_there]:
                if not clip.is_dir():
                    raise UserError(f'{line_is}: no such folder: {clip}; accepted: {rules.example!r}, of folders there')
        return
    gt, lq = ({file.name for file in root.iterdir() if not file.name.startswith('.')} for root in roots)
    for name in sorted(gt ^ lq)[:1]:
        raise UserError(f'{where}: {name} is in one of {roots[0]}, {roots[1]} alone; accepted: a folder of it in both')
    for folder in [root / name for root in roots for name in sorted(gt)]:
        if not folder.is_dir() or not folders.names(str(folder)):
            raise UserError(f'{where}: {folder} is not a folder of frames; accepted in {folder.parent}: these only')


def list_lines(where: str, path: Path, rules: Rules) -> Iterator[tuple[str, re.Match[str]]]:
    """(where it stands, its match) for each line of a list but the blank ones. A byte order mark is no part of it.

    Raises:
        UserError: a line is none of these rules, or the list cannot be read.
    """
    try:
        lines = path.read_text(encoding='utf-8-sig').split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{where}: {path}: {one_line(error)}; accepted: a text file in UTF-8') from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            match = rules.line.fullmatch(line.strip())
            if match is None:
                raise UserError(f'{where}: {path}, line {number}: {line!r}; accepted: such as {rules.example!r}')
            yield f'{where}: {path}, line {number}', match


@contextmanager
def with_plain_list(where: str, dataset_opt: dict[str, Any], rules: Rules) -> Iterator[dict[str, Any]]:
    """A block whose list of clips is a copy that BasicSR reads right: it takes a blank line and a byte order mark for
    names, the line's end for a part of one, and a list that is None for a file.
    """
    plain = {key: value for key, value in dataset_opt.items() if key != rules.list_key or value is not None}
    if rules.list_key not in plain:
        yield plain
        return
    lines = list_lines(f'{where}.{rules.list_key}', Path(plain[rules.list_key]), rules)
    words = [match[0].split() for _, match in lines]
    with TemporaryDirectory() as folder:
        copy = Path(folder, 'list.txt')
        copy.write_text(''.join(' '.join(line if line[1:] else [*line, '']) + '\n' for line in words), 'utf-8')
        yield plain | {rules.list_key: str(copy)}


class Folders:
    """What is in folders, each read once: a look at every file of a large set would take minutes on a network disk.

    Paths are strings, which take half the time of ``Path``.
    """

    def __init__(self) -> None:
        self.names = cache(_names)
        self.stems = cache(_names_by_stem)

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        folder, _, name = path.rpartition('/')
        return name in self.stems(folder).get(_stem_and_suffix(name)[0], ()) or Path(path).is_file()

    def images(self, folder: str, stem: str) -> list[str]:
        """The names of a folder's images that have this stem."""
        names = self.stems(folder).get(stem, ())
        return [name for name in names if _stem_and_suffix(name)[1].lower() in IMAGE_SUFFIXES]


def _names(folder: str) -> list[str]:
    """What BasicSR takes for the images of a folder: all but hidden files."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith('.') and entry.is_file())


def _names_by_stem(folder: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in _names(folder) if Path(folder).is_dir() else []:
        found.setdefault(_stem_and_suffix(name)[0], []).append(name)
    return found


def _stem_and_suffix(name: str) -> tuple[str, str]:
    stem, dot, suffix = name.rpartition('.')
    return (stem, dot + suffix) if stem else (name, '')


def _list_of(where: str, dataset_opt: dict[str, Any], rules: Rules) -> Path | None:
    value = dataset_opt.get(rules.list_key)
    if value is None:
        if rules.needs_list:
            raise UserError(
                f'{where}.{rules.list_key}: missing; accepted for {dataset_opt["type"]}: a list of lines such as '
                f'{rules.example!r}'
            )
        return None
    if not Path(value).is_file():
        raise UserError(f'{where}.{rules.list_key}: no such file: {value}; {DATA_PAGE}')
    return Path(value)


def _lq_of(where: str, gt: str, root: str, template: str, folders: Folders) -> str:
    """The LQ of a GT by ``filename_tmpl``, of its suffix or of another."""
    gt_root, _, name = gt.rpartition('/')
    gt_stem, suffix = _stem_and_suffix(name)
    stem = template.format(gt_stem)
    found = folders.images(root, stem)
    if f'{stem}{suffix}' in found or len(found) == 1:
        return f'{root}/{stem}{suffix}' if f'{stem}{suffix}' in found else f'{root}/{found[0]}'
    if found:
        raise UserError(f'{where}: {root} has {" and ".join(found)} for {gt}; accepted: one of them')
    fitting = _fitting_template(gt_stem, list(folders.stems(gt_root)), set(folders.stems(root)))
    advice = f'filename_tmpl: {fitting!r}, by which every GT has one' if fitting else 'a filename_tmpl that fits'
    raise UserError(
        f'{where}: {gt} has no LQ: sought {root}/{stem}{suffix}, or {stem} with another suffix of an image; '
        f'accepted: that file, or {advice} (here {template!r}); {DATA_PAGE}'
    )


def _fitting_template(gt_stem: str, gt_stems: list[str], lq_stems: set[str]) -> str | None:
    """The ``filename_tmpl`` by which every GT has an LQ, found by one of them; None: there is none."""
    for stem in sorted(lq_stems):
        before, found, after = stem.partition(gt_stem)
        if (
            found
            and not set(before + after) & set('{}')
            and lq_stems.issuperset(before + gt + after for gt in gt_stems)
        ):
            return f'{before}{{}}{after}'
    return None


def _lmdb_keys(where: str, dataset_opt: dict[str, Any], rules: Rules) -> list[dict[str, str]]:
    roots = {f'dataroot_{side}': dataset_opt[f'dataroot_{side}'] for side in rules.sides}
    first, *others = [set(meta_info_shapes(Path(root), f'{where}.{key}')) for key, root in roots.items()]
    for key in sorted(first.symmetric_difference(*others) if others else ())[:1]:
        raise UserError(f'{where}.dataroot_lq: {" and ".join(roots.values())} differ in {key}; {DATA_PAGE}')
    return [{f'{side}_path': key for side in rules.sides} for key in sorted(first)]
