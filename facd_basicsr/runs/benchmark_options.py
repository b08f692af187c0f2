"""What test.py needs of a run, to be tested on benchmark sets without a test file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from facd_basicsr.errors import UserError
from facd_basicsr.options.option_check import listed
from facd_basicsr.options.parse import checked, force_yml
from facd_basicsr.runs.run_folder import param_key_of, read_run_folder

DATASETS = Path('datasets')  # where `facd prepare benchmarks` makes the sets
CUSTOMARY = ('Set5', 'Set14', 'B100', 'Urban100', 'Manga109')  # in the order of published tables


def benchmark_options(folder: Path, sets: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """A test file's keys: network, scale, metrics and the newest checkpoint of a run, on benchmark sets.

    Args:
        sets: names of folders in ``datasets/``, or paths, each with ``GTmod12`` and ``LRbicxSCALE``; none: all that are
            in ``datasets/``.

    Raises:
        UserError: it is no run, has no checkpoint yet, a set is not there, or an entry is not accepted.
    """
    run = read_run_folder(folder, '--run')
    if run.checkpoint is None:
        raise UserError(f'--run: {folder / "models"} has no net_g_*.pth; accepted: a run with a checkpoint')
    scale, val = run.opt['scale'], run.opt['val'] or {}
    colors = {key: value for key, value in run.opt['datasets']['train'].items() if key in ('color', 'mean', 'std')}
    opt = {
        'name': run.opt['name'],
        'model_type': run.opt['model_type'],
        'scale': scale,
        'num_gpu': 'auto',
        'manual_seed': run.opt['manual_seed'],
        'datasets': {
            f'test_{number}': {**block, **colors} for number, block in enumerate(_set_blocks(sets, scale), start=1)
        },
        'network_g': run.opt['network_g'],
        'path': {'pretrain_network_g': str(run.checkpoint), 'param_key_g': param_key_of(run.opt)},
        'val': {
            'save_img': False,
            'suffix': None,
            'tile': val.get('tile'),
            'metrics': val.get('metrics') or _usual_metrics(scale),
        },
    }
    force_yml(opt, overrides)
    return checked(opt, str(folder), is_train=False)


def check_sets(sets: Sequence[str], runs: Sequence[str]) -> None:
    """Refuses ``--sets`` without a run.

    Raises:
        UserError: there are sets and no run.
    """
    if sets and not runs:
        raise UserError('--sets: accepted with --run; -opt names its sets itself')


def _set_blocks(sets: Sequence[str], scale: int) -> Iterator[dict[str, Any]]:
    names = sets or _prepared(scale)
    if not names:
        raise UserError(
            f'--sets: {DATASETS.absolute()} has no sets for x{scale}; accepted: folders with GTmod12 and LRbicx{scale} '
            '(facd prepare benchmarks makes them), here or by their paths'
        )
    for name in names:
        folder = DATASETS / name if '/' not in name else Path(name)
        gt, lq = folder / 'GTmod12', folder / f'LRbicx{scale}'
        for path in (gt, lq):
            if not path.is_dir():
                raise UserError(
                    f'--sets: {name}: no such folder: {path}; accepted: {listed(_prepared(scale)) or "none here"}, or '
                    f'a folder with GTmod12 and LRbicx{scale} (facd prepare benchmarks makes them)'
                )
        yield {
            'name': folder.resolve().name,
            'type': 'PairedImageDataset',
            'dataroot_gt': str(gt),
            'dataroot_lq': str(lq),
            'io_backend': {'type': 'disk'},
        }


def _prepared(scale: int) -> list[str]:
    found = {path.parent.name for path in DATASETS.glob(f'*/LRbicx{scale}')}
    return [*(name for name in CUSTOMARY if name in found), *sorted(found - set(CUSTOMARY))]


def _usual_metrics(scale: int) -> dict[str, dict[str, Any]]:
    return {
        f'{name}_{channels}': {
            'type': f'calculate_{name}',
            'crop_border': scale,
            'test_y_channel': channels == 'y',
        }
        for channels in ('y', 'rgb')
        for name in ('psnr', 'ssim')
    }
