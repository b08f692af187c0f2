"""Checks that the data and files of an option file exist and fit, before anything is created."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from basicsr.utils.registry import METRIC_REGISTRY

from facd_basicsr.data.damaged_images import check_files, check_lmdb, opened_lmdb
from facd_basicsr.data.dataset_rules import Folders, Rules, check_clips, image_paths, rules_of
from facd_basicsr.data.lmdb_pairs import DATA_PAGE, meta_info_shapes
from facd_basicsr.data.memory_pairs import file_backend, is_in_memory
from facd_basicsr.distill.teacher import teacher_blocks
from facd_basicsr.errors import UserError, locating, reraise
from facd_basicsr.files.download import is_url, local_path
from facd_basicsr.files.images import IMAGE_SUFFIXES, image_size
from facd_basicsr.runtime.metrics import check_metric_size, needs_gt
from facd_basicsr.runtime.perceptual_metrics import prepare

TEACHER_PAGE = 'docs/teachers.md says where teachers come from'
CHECKPOINT_PAGE = 'train it first (the option files under options/train/ name their command)'
TRAIN_IMAGES_OPENED = 100  # opening every file of a large training folder would take minutes on a network disk


def check_paths(opt: dict[str, Any], is_train: bool, with_weights: bool = True) -> None:
    """Checks that data, teachers and checkpoints exist and that LQ and GT fit. Expands ``~`` in their paths.

    Args:
        with_weights: whether the checkpoint of a teacher with a ``network`` block, and what a perceptual metric needs,
            must be there.

    Raises:
        UserError: with the option key, the path, and what provides it.
    """
    for phase, dataset_opt in opt['datasets'].items():
        with _reraise(f'datasets.{phase}'):
            _check_dataset(f'datasets.{phase}', dataset_opt, opt['scale'], training=phase == 'train')
            if phase != 'train':
                _check_metric_sizes(f'datasets.{phase}', dataset_opt, opt['scale'], opt.get('val') or {})
    for name, block in ((opt.get('val') or {}).get('metrics') or {}).items() if with_weights else ():
        prepare(f'val.metrics.{name}', block)
    for place, own in teacher_blocks(opt.get('teacher')).items() if is_train else ():
        if (with_weights or 'network' not in own) and not is_url(own['weights']):
            own['weights'] = str(local_path(own['weights']))
            _check_file(f'{place}.weights', Path(own['weights']), TEACHER_PAGE)
    for key, value in opt['path'].items():
        if value is not None and (key.startswith('pretrain_network') or key == 'resume_state'):
            opt['path'][key] = str(local_path(value))
            _check_file(f'path.{key}', Path(opt['path'][key]), CHECKPOINT_PAGE)


def check_whole_dataset(phase: str, dataset_opt: dict[str, Any], scale: int) -> str:
    """Pairs every image of a set and reads each whole, where :func:`check_paths` looks at names, sizes and samples.

    Returns what there is, as text.

    Raises:
        UserError: naming the set and the first file that is missing, damaged, of a wrong size or too small.
    """
    where = f'datasets.{phase}'
    training = phase == 'train'
    rules = _check_dataset(where, dataset_opt, scale, training, every=True)
    if rules is None or rules.clips:
        return f'{dataset_opt["name"]} is a {dataset_opt["type"]}, whose files are not known here'
    keys = {side: f'{where}.dataroot_{side}' for side in rules.sides}
    if file_backend(dataset_opt) == 'lmdb':
        counts = [check_lmdb(Path(dataset_opt[f'dataroot_{side}']), key) for side, key in keys.items()]
    else:
        found = image_paths(where, dataset_opt, rules)
        counts = [check_files([Path(paths[f'{side}_path']) for paths in found], key) for side, key in keys.items()]
    kind = 'pairs' if len(counts) == 2 else 'images'
    return f'{counts[0]} {kind} of {dataset_opt["name"]}, every file read'


def _check_dataset(
    where: str, dataset_opt: dict[str, Any], scale: int, training: bool, every: bool = False
) -> Rules | None:
    """Checks a set by the rules of its dataset, which are returned. Of a dataset with rules of its own only its roots
    are known, and that they are there."""
    rules = rules_of(dataset_opt)
    for side in ('gt', 'lq') if rules is None else rules.sides:
        key = f'dataroot_{side}'
        if rules is not None and dataset_opt.get(key) is None:
            raise UserError(f'{where}.{key}: missing; accepted: a folder or LMDB, which {dataset_opt["type"]} reads')
        if dataset_opt.get(key) is not None:
            dataset_opt[key] = str(local_path(dataset_opt[key]))
            with _reraise(f'{where}.{key}'):
                _check_root(f'{where}.{key}', Path(dataset_opt[key]), dataset_opt, rules)
    if rules is None:
        return None
    if dataset_opt.get(rules.list_key) is not None:
        dataset_opt[rules.list_key] = str(local_path(dataset_opt[rules.list_key]))
    if rules.clips:
        check_clips(where, dataset_opt, rules)
        return rules
    found = image_paths(where, dataset_opt, rules)
    if training and not every and file_backend(dataset_opt) != 'lmdb':
        found = found[:: max(1, len(found) // TRAIN_IMAGES_OPENED)]
    first = rules.sides[0]
    names = [paths[f'{first}_path'].removeprefix(f'{Path(dataset_opt[f"dataroot_{first}"])}/') for paths in found]
    if len(rules.sides) == 2:
        gt, lq = (list(_sizes(where, dataset_opt, side, found)) for side in ('gt', 'lq'))
        _check_pairs(where, dataset_opt, zip(names, gt, lq), scale, training)
    elif training and first == 'lq':
        root = f'{dataset_opt["dataroot_lq"]}, LQ for scale {scale},'
        for name, size in zip(names, _sizes(where, dataset_opt, 'lq', found)):
            _check_patch(where, dataset_opt, f'{name} in {root}', size, scale)
    return rules


ROOT_OF_BACKEND = {  # by whether it reads LMDBs
    True: 'lmdb: a folder whose name ends in .lmdb; for images, type: disk',
    False: 'disk: a folder of images; for an LMDB, type: lmdb',
}


def _check_root(where: str, path: Path, dataset_opt: dict[str, Any], rules: Rules | None) -> None:
    if rules is None:
        if not path.exists():
            raise UserError(f'{where}: no such file or folder: {path}; {DATA_PAGE}')
        return
    is_lmdb = file_backend(dataset_opt) == 'lmdb'
    if not path.is_dir():
        raise UserError(f'{where}: no such folder: {path}; {DATA_PAGE}')
    if is_lmdb != (path.suffix == '.lmdb'):
        in_memory = is_in_memory(dataset_opt)
        accepted = 'memory: two LMDBs or two folders of images' if in_memory else ROOT_OF_BACKEND[is_lmdb]
        raise UserError(f'{where}: {path}; accepted with io_backend {accepted}')
    if is_lmdb:
        for name in ('data.mdb',) if rules.clips else ('data.mdb', 'meta_info.txt'):
            if not (path / name).is_file():
                raise UserError(f'{where}: {path} has no {name}, so it is not a finished LMDB; {DATA_PAGE}')
        with opened_lmdb(path, where):
            return
    if rules.clips or dataset_opt.get(rules.list_key) is not None or rules.needs_list:
        return
    files = Folders().names(str(path))
    if not files:
        raise UserError(f'{where}: {path} holds no files; {DATA_PAGE}')
    for name in files:  # BasicSR takes every file of the folder for an image
        if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f'{where}: {path / name} is not an image; accepted in this folder: images only')


Size = tuple[int, int]  # height, width


def _sizes(where: str, dataset_opt: dict[str, Any], side: str, found: Sequence[Mapping[str, str]]) -> Iterator[Size]:
    """Of one side of what :func:`image_paths` has found, by an LMDB's list or the headers of files."""
    key, root = f'{where}.dataroot_{side}', Path(dataset_opt[f'dataroot_{side}'])
    shapes = meta_info_shapes(root, key) if file_backend(dataset_opt) == 'lmdb' else None
    for path in (paths[f'{side}_path'] for paths in found):
        if shapes is not None:
            yield shapes[path][:2]
            continue
        _check_file(key, Path(path), DATA_PAGE)
        with locating(key):
            yield image_size(Path(path))


def _check_pairs(
    where: str, dataset_opt: dict[str, Any], pairs: Iterable[tuple[str, Size, Size]], scale: int, training: bool
) -> None:
    """Checks that LQ is ``scale`` times smaller than GT, and GT no smaller than a patch."""
    for key, size, lq_size in pairs:
        # In validation BasicSR crops a GT whose size is no multiple of the scale; in training it must match.
        rest = [gt_length - scale * lq_length for gt_length, lq_length in zip(size, lq_size)]
        if not all(0 <= length < (1 if training else scale) for length in rest):
            raise UserError(
                f'{where}.dataroot_lq: {key} is {lq_size} for a GT of {size} (height, width); accepted: LQ for scale '
                f'{scale}'
            )
        if training:
            _check_patch(where, dataset_opt, f'{key} in {dataset_opt["dataroot_gt"]}', size)


def _check_patch(where: str, dataset_opt: dict[str, Any], image: str, size: Size, scale: int = 1) -> None:
    """Checks that an image ``scale`` times smaller than GT holds a patch."""
    if scale * min(size) < dataset_opt.get('gt_size', 0):
        raise UserError(
            f'{where}.gt_size: {dataset_opt["gt_size"]}, but {image} is {size} (height, width); accepted: the smallest '
            'image or less (facd prepare folder: --min-size leaves out)'
        )


def _check_metric_sizes(where: str, dataset_opt: dict[str, Any], scale: int, val_opt: dict[str, Any]) -> None:
    """Refuses images whose upscaled size a metric has no value for."""
    metrics = [
        (name, block)
        for name, block in (val_opt.get('metrics') or {}).items()
        if dataset_opt.get('dataroot_gt') is not None or not needs_gt(METRIC_REGISTRY.get(block['type']))
    ]
    if not metrics:
        return
    for path, (height, width) in lq_sizes(where, dataset_opt):
        for name, block in metrics:
            check_metric_size(f'val.metrics.{name}: {where}: {Path(path).name}', block, height * scale, width * scale)


def lq_sizes(where: str, dataset_opt: dict[str, Any]) -> Iterator[tuple[str, Size]]:
    """(path as the dataset has it, (height, width)) of the LQ images of a set; none where they are not known."""
    rules = rules_of(dataset_opt)
    if rules is None or rules.clips or 'lq' not in rules.sides:
        return
    found = image_paths(where, dataset_opt, rules)
    yield from zip((paths['lq_path'] for paths in found), _sizes(where, dataset_opt, 'lq', found))


def _check_file(where: str, path: Path, page: str) -> None:
    with _reraise(where):
        if not path.is_file():
            raise UserError(f'{where}: no such file: {path}; {page}')


def _reraise(where: str) -> AbstractContextManager[None]:
    """Adds the option key to errors of the file system: an unreadable folder, a long name, a list that is not text."""
    return reraise(
        (OSError, UnicodeDecodeError), lambda error: UserError(f'{where}: cannot be read ({error}); {DATA_PAGE}')
    )
