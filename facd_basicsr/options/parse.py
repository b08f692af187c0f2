"""Option file -> checked option dict, with the keys that BasicSR's parts expect filled in."""

import argparse
import copy
import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from facd_basicsr.data.paths import check_paths
from facd_basicsr.errors import UserError, locating
from facd_basicsr.options.build import dry_run
from facd_basicsr.options.option_check import check_options, stages_of
from facd_basicsr.options.option_files import load_yaml, option_text, read_option_file
from facd_basicsr.options.pretrained import check_given_arguments, pretrained_arguments

PACKAGE_PARENT = Path(__file__).resolve().parents[2]
OPTIONS_FILE = 'options.yml'  # in the folder of a run


def force_yml(opt: dict[str, Any], entries: Sequence[str]) -> None:
    """Applies ``--force_yml`` entries, each ``key:key:...=value`` with the value in YAML, to ``opt``.

    Raises:
        UserError: an entry has no ``=``, or leads through a key that is not a block.
    """
    for entry in entries:
        keys, equals, value = entry.partition('=')
        if not equals:
            raise UserError(f'--force_yml: {entry!r}; accepted: key:key=value, e.g. train:total_iter=1000')
        *blocks, leaf = keys.strip().split(':')
        block = opt
        for name in blocks:
            block = block.setdefault(name, {})  # an unknown one is refused by the check of all keys
            if not isinstance(block, dict):
                raise UserError(
                    f'--force_yml: {entry!r}: {name!r} is not a block of keys; set it whole, as {name}=[...]'
                )
        block[leaf] = _value(value, f'--force_yml {keys}')


def _value(text: str, source: str) -> Any:
    """A value of the command line: YAML, but ``none``, BasicSR's spelling of null, and ``{}_x2``, which is text."""
    if text.strip().lower() == 'none':
        return None
    return text if re.match(r'{}.', text) else load_yaml(text, source)


def parser(is_train: bool = True) -> argparse.ArgumentParser:
    """BasicSR's command line; that of test.py takes a run in the place of an option file."""
    result = argparse.ArgumentParser()
    if is_train:
        result.add_argument('-opt', required=True, help='option file (YAML)')
    else:
        source = result.add_mutually_exclusive_group(required=True)
        source.add_argument('-opt', help='option file (YAML)')
        source.add_argument('--run', metavar='experiments/NAME', help='folder of a run, tested without an option file')
        result.add_argument(
            '--sets',
            nargs='+',
            metavar='SET',
            help='with --run: sets in datasets/, or their folders; default: all that are there',
        )
    result.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    result.add_argument('--auto_resume', action='store_true', help="continue from this experiment's newest state")
    result.add_argument('--debug', action='store_true', help='log every iteration, save and validate every 8')
    result.add_argument('--local_rank', type=int, default=0, help='set by older launchers; not used')
    result.add_argument(
        '--force_yml',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY:KEY=VALUE',
        help='override options: train:total_iter=1000',
    )
    return result


def root_path() -> Path:
    """Where experiments, results and logs go: the checkout as in BasicSR, or the working directory if installed."""
    return PACKAGE_PARENT if (PACKAGE_PARENT / 'setup.py').is_file() else Path.cwd()


def read_options(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Reads an option file with what it inherits, and overrides it by ``--force_yml`` entries. Nothing is checked yet.

    Raises:
        UserError: it, a file it is based on, or an entry cannot be read.
    """
    opt = read_option_file(path)
    force_yml(opt, overrides)
    if isinstance(opt.get('datasets'), dict):  # a set that is null is left out
        opt['datasets'] = {name: block for name, block in opt['datasets'].items() if block is not None}
    return opt


def options_digest(path: str) -> str:
    """SHA-256 of the options of a file, merged with its base, as ``facd show`` prints them below its comment.

    Raises:
        UserError: it, or a file it is based on, cannot be read.
    """
    return hashlib.sha256(option_text(read_options(path, [])).encode()).hexdigest()


def load_options(
    path: str, overrides: Sequence[str], is_train: bool | None = None, with_data: bool = True, with_weights: bool = True
) -> dict[str, Any]:
    """:func:`checked_options` whose inputs are checked too. Nothing is created; of the data only lists and sizes are
    read.

    Raises:
        UserError: with the file's name, and the key, value and what is accepted.
    """
    opt = checked_options(path, overrides, is_train)
    check_inputs(opt, path, 'train' in opt, with_data, with_weights)
    return opt


def checked_options(path: str, overrides: Sequence[str], is_train: bool | None = None) -> dict[str, Any]:
    """Reads, overrides and checks an option file, for train.py or test.py, or for either if ``is_train`` is None, and
    fills in its defaults. What it names may be missing.

    Raises:
        UserError: with the file's name, and the key, value and what is accepted.
    """
    return checked(read_options(path, overrides), path, is_train)


def checked(opt: dict[str, Any], where: str, is_train: bool | None = None) -> dict[str, Any]:
    """Checks options as a file has them, and fills in their defaults; of a network of spandrel's also what its
    checkpoint tells.

    Raises:
        UserError: as :func:`checked_options`.
    """
    is_train = 'train' in opt if is_train is None else is_train
    with locating(where):
        detected = pretrained_arguments(opt)
        if not detected:
            return check_options(opt, is_train)
        complete = check_options({**opt, 'network_g': {'type': '', **detected, **opt['network_g']}}, is_train)
        check_given_arguments(complete, detected)
        return complete


def check_inputs(
    opt: dict[str, Any], path: str, is_train: bool, with_data: bool = True, with_weights: bool = True
) -> None:
    """Checks that data and checkpoints exist, and that networks, losses and optimizers can be built.

    Args:
        opt: options whose keys are checked; ``~`` in its paths is expanded.
        with_data: whether its datasets must be there.
        with_weights: whether its checkpoints must be there; that of a teacher without ``network`` block defines
            the teacher, and must exist in any case.

    Raises:
        UserError: with the file's name, and the key, value and what is accepted.
    """
    with locating(path):
        check_paths(_with_paths(opt, with_data, with_weights), is_train, with_weights)
        for place, stage in stages_of(opt).items():
            with locating(place):
                if stage is not opt:
                    needed = _with_paths(stage, with_data, with_weights)  # for crops of its own size
                    check_paths(needed, is_train, with_weights)
                dry_run(stage, is_train)


def _with_paths(opt: dict[str, Any], with_data: bool, with_weights: bool) -> dict[str, Any]:
    """The options whose paths must exist."""
    needed = dict(opt)
    if not with_data:
        needed['datasets'] = {}
    if not with_weights:
        needed['path'] = {}
    return needed


def parse_options(args: argparse.Namespace, is_train: bool, root: Path | None = None) -> dict[str, Any]:
    """The option dict that BasicSR's parts expect, from the command line: of one process until ``start_ranks``.

    Only keys and their values are checked; :func:`check_inputs` checks what they name. Results go below ``root``,
    :func:`root_path` if None.

    Raises:
        UserError: an option or the combination of some is not accepted.
    """
    return complete_options(options_of(args, is_train), args, is_train, root)


def options_of(args: argparse.Namespace, is_train: bool, opt: dict[str, Any] | None = None) -> dict[str, Any]:
    """The first half of :func:`parse_options`: the options of the command line, checked, complete with defaults, and
    valid as an option file on any machine; ``opt``, of :func:`checked`, where they are not from ``args.opt``.

    Raises:
        UserError: an option is not accepted.
    """
    opt = opt or checked_options(args.opt, args.force_yml, is_train)
    if args.debug and not opt['name'].startswith('debug'):
        opt['name'] = 'debug_' + opt['name']
    if is_train and 'debug' in opt['name']:
        opt['logger'] |= {'print_freq': 1, 'save_checkpoint_freq': 8}
        if opt['val'] is not None:
            opt['val']['val_freq'] = 8
    return opt


def complete_options(
    options: dict[str, Any], args: argparse.Namespace, is_train: bool, root: Path | None = None
) -> dict[str, Any]:
    """The second half of :func:`parse_options`: a copy with the keys that no option file has.

    Raises:
        UserError: this machine does not have the GPUs that are asked for, or several need ``--launcher``.
    """
    opt = copy.deepcopy(options)
    root = root or root_path()
    source = args.opt or args.run
    gpus = torch.cuda.device_count()
    if opt['num_gpu'] == 'auto':
        opt['num_gpu'] = gpus if args.launcher != 'none' else min(gpus, 1)
    if opt['num_gpu'] > gpus:
        raise UserError(f'{source}: num_gpu: {opt["num_gpu"]}; accepted: auto, or 0 to {gpus}, the GPUs here')
    for name, dataset_opt in opt['datasets'].items():
        if opt['num_gpu'] == 0 and dataset_opt['prefetch_mode'] == 'cuda':
            raise UserError(f'{source}: datasets.{name}.prefetch_mode: cuda; accepted without a GPU: null, cpu')
    if opt['num_gpu'] > 1 and args.launcher == 'none':
        raise UserError(
            f'{source}: num_gpu: {opt["num_gpu"]} without --launcher; accepted: 1, or several by '
            f'`torchrun --nproc_per_node={opt["num_gpu"]} facd_basicsr/train.py --launcher pytorch -opt {source}`'
        )
    opt |= {'dist': args.launcher != 'none', 'rank': 0, 'world_size': 1}
    opt['seed_drawn'] = opt['manual_seed'] is None
    if opt['seed_drawn']:
        opt['manual_seed'] = random.randint(1, 10000)

    opt |= {'auto_resume': args.auto_resume, 'is_train': is_train, 'root_path': str(root), 'stage_begin': 0}
    for name, dataset_opt in opt['datasets'].items():
        dataset_opt |= {'phase': name.split('_')[0], 'scale': opt['scale']}
    home = root / ('experiments' if is_train else 'results') / opt['name']
    folders = {'log': home, 'visualization': home / 'visualization'}
    if is_train:
        folders |= {'experiments_root': home, 'models': home / 'models', 'training_states': home / 'training_states'}
    else:
        folders['results_root'] = home
    opt['path'] |= {key: str(folder) for key, folder in folders.items()}
    return opt
