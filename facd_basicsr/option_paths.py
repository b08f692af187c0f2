"""Whether what an option file names is there, checked before anything is created."""

import re
from pathlib import Path
from typing import Any

from facd_basicsr.errors import UserError

DATA_PAGE = 'datasets/README.md says how to prepare it'
TEACHER_PAGE = 'docs/teachers.md says where teachers come from'
CHECKPOINT_PAGE = 'train it first (the option files under options/train/ name their command)'


def check_paths(opt: dict[str, Any], is_train: bool) -> None:
    """Checks that data, teacher and checkpoints exist. Expands ``~`` in their paths.

    Raises:
        UserError: with the option key, the missing path, and what provides it.
    """
    for name, dataset_opt in opt['datasets'].items():
        lmdb = dataset_opt.get('io_backend', {}).get('type') == 'lmdb'
        for key in ('dataroot_gt', 'dataroot_lq'):
            if key in dataset_opt:
                dataset_opt[key] = str(Path(dataset_opt[key]).expanduser())
                _check_data(f'datasets.{name}.{key}', Path(dataset_opt[key]), lmdb)
        if lmdb:
            _check_sizes(f'datasets.{name}', dataset_opt, opt['scale'])
        if dataset_opt.get('meta_info_file') is not None:
            _check_there(f'datasets.{name}.meta_info_file', Path(dataset_opt['meta_info_file']), DATA_PAGE)
    if is_train and 'teacher' in opt:
        opt['teacher']['weights'] = str(Path(opt['teacher']['weights']).expanduser())
        _check_there('teacher.weights', Path(opt['teacher']['weights']), TEACHER_PAGE)
    for key, value in opt['path'].items():
        if value is not None and (key.startswith('pretrain_network') or key == 'resume_state'):
            opt['path'][key] = str(Path(value).expanduser())
            _check_there(f'path.{key}', Path(opt['path'][key]), CHECKPOINT_PAGE)


def _check_data(where: str, path: Path, lmdb: bool) -> None:
    if lmdb and path.suffix != '.lmdb':
        raise UserError(f'{where}: {path}; accepted with io_backend lmdb: a folder whose name ends in .lmdb')
    if not path.is_dir():
        raise UserError(f'{where}: no such folder: {path}; {DATA_PAGE}')
    for name in ('data.mdb', 'meta_info.txt') if lmdb else ():
        if not (path / name).is_file():
            raise UserError(f'{where}: {path} has no {name}, so it is not a finished LMDB; {DATA_PAGE}')
    if not lmdb and not any(path.iterdir()):
        raise UserError(f'{where}: {path} is empty; {DATA_PAGE}')


def _check_sizes(where: str, dataset_opt: dict[str, Any], scale: int) -> None:
    """Checks the pairs that two LMDBs list: the same keys, LQ ``scale`` times smaller, GT no smaller than a patch."""
    gt, lq = (_sizes(f'{where}.{key}', Path(dataset_opt[key])) for key in ('dataroot_gt', 'dataroot_lq'))
    if gt.keys() != lq.keys():
        only = sorted(gt.keys() ^ lq.keys())[0]
        raise UserError(
            f'{where}.dataroot_lq: {dataset_opt["dataroot_lq"]} and dataroot_gt differ in {only}; {DATA_PAGE}'
        )
    for key, size in gt.items():
        if size != tuple(scale * length for length in lq[key]):
            raise UserError(
                f'{where}.dataroot_lq: {key} is {lq[key]} for a GT of {size} (height, width); accepted: LQ for scale '
                f'{scale}'
            )
        if min(size) < dataset_opt.get('gt_size', 0):
            raise UserError(
                f'{where}.gt_size: {dataset_opt["gt_size"]}, but {key} in {dataset_opt["dataroot_gt"]} is {size} '
                '(height, width); accepted: the smallest image or less (tools.prepare --min-size leaves out smaller)'
            )


def _sizes(where: str, path: Path) -> dict[str, tuple[int, int]]:
    """{key: (height, width)} from an LMDB's meta_info.txt, whose lines are ``key.png (h,w,c) compression``."""
    lines = (path / 'meta_info.txt').read_text(encoding='utf-8').splitlines()
    matches = [re.match(r'(.+)\.png \((\d+),(\d+),\d+\) \d+$', line) for line in lines]
    if not matches or not all(matches):
        raise UserError(f"{where}: {path}/meta_info.txt is not in BasicSR's format; {DATA_PAGE}")
    return {match[1]: (int(match[2]), int(match[3])) for match in matches}


def _check_there(where: str, path: Path, page: str) -> None:
    if not path.is_file():
        raise UserError(f'{where}: no such file: {path}; {page}')
