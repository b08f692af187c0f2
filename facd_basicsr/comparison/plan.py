"""From a comparison file to its runs: every method's option file, with every seed."""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from basicsr.utils.registry import LOSS_REGISTRY

from facd_basicsr.data.paths import check_paths
from facd_basicsr.distill.teacher import teacher_blocks
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.methods import BICUBIC, TEACHER
from facd_basicsr.evaluation.tables import other_metrics
from facd_basicsr.losses.base import loss_blocks
from facd_basicsr.options import load_yaml, schema
from facd_basicsr.options.option_check import check_block, check_options, check_type, weights_of, with_defaults
from facd_basicsr.options.option_files import BASE, merged, read_option_file
from facd_basicsr.options.signatures import Key

COMPARISON_KEYS = {
    'name': Key((str,), required=True),
    'seeds': Key((list,), required=True, items=(int,)),
    'baseline': Key((str, list), required=True, items=(str,)),
    'test': Key((dict,), required=True),
    'common': Key((dict,)),
    'methods': Key((dict,), required=True),
}
NAME = r'(?!.*debug)\w[\w.+=-]*'  # with "debug" in its name a run validates every 8 iterations
RESERVED = (BICUBIC, TEACHER)
TIMED, TIMED_EVERY = 210, 10  # iterations of a run that measures a step, and between its log lines
# What all methods share, unless the comparison is about it: then the report says so.
SHARED = (
    'network_g',
    'datasets.train',
    'path.pretrain_network_g',
    'train.total_iter',
    'train.stages',
    'train.optim_g',
    'train.scheduler',
    'train.warmup_iter',
    'train.ema_decay',
    'train.precision',
    'train.precision_r',
    'train.quantize',
    'train.clip_grad_norm',
    *schema.DEGRADATION,
)


@dataclass(frozen=True)
class Run:
    """One run: a method with a seed.

    Attributes:
        method: its name in the comparison.
        seed: its ``manual_seed``.
        opt: its option file, resolved, as train.py is to read it.
    """

    method: str
    seed: int
    opt: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its files: ``METHOD_seedSEED``."""
        return f'{self.method}_seed{self.seed}'


@dataclass(frozen=True)
class Comparison:
    """What a comparison file asks for.

    Attributes:
        name: of its folder in ``results/``, and the beginning of its experiments' names.
        seeds: each method is trained once with each of them.
        baselines: the methods with which those of the same ``network_g`` are compared, seed by seed; one for each.
        methods: every method's resolved options, without a seed, in the order of the report.
        test_opt: the test file whose sets and metrics are reported.
    """

    name: str
    seeds: tuple[int, ...]
    baselines: tuple[str, ...]
    methods: dict[str, dict[str, Any]]
    test_opt: dict[str, Any]

    @property
    def scale(self) -> int:
        return self.test_opt['scale']

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """What is reported beside PSNR and SSIM, from the test file's ``val.metrics``."""
        return other_metrics(self.test_opt)

    @property
    def baseline(self) -> str:
        """The first, whose settings the others should share."""
        return self.baselines[0]

    def baseline_of(self, method: str) -> str | None:
        """The baseline with the method's architecture: of another one a difference would not be the method's."""
        network = self.methods[method]['network_g']
        return next((name for name in self.baselines if self.methods[name]['network_g'] == network), None)

    def students(self) -> dict[str, str]:
        """{method: its student's class, and the arguments in which it differs from the others of that class}."""
        networks = {method: opt['network_g'] for method, opt in self.methods.items()}
        names = {}
        for method, network in networks.items():
            alike = [other for other in networks.values() if other['type'] == network['type']]
            differing = [key for key in network if any(other.get(key) != network[key] for other in alike)]
            names[method] = ' '.join([network['type'], *(f'{key} {network[key]}' for key in differing)])
        return names

    def runs(self) -> Iterator[Run]:
        """Seed by seed, so that an unfinished comparison is a complete one with fewer seeds."""
        for seed in self.seeds:
            for method, opt in self.methods.items():
                run_opt = copy.deepcopy(opt) | {'name': f'{self.name}_{method}_seed{seed}', 'manual_seed': seed}
                yield Run(method, seed, run_opt)

    def differing(self) -> dict[str, list[str]]:
        """{method: which of the keys that methods should share are not its baseline's}, of those that have any.

        A baseline should have the settings of the first one, but for its architecture.
        """
        found = {}
        methods = {method: with_defaults(opt, is_train=True) for method, opt in self.methods.items()}
        for method, opt in methods.items():
            own = self.baseline_of(method)
            base = methods[self.baseline if own in (None, method) else own]
            keys = [key for key in SHARED if _value(opt, key) != _value(base, key)]
            found[method] = [key for key in keys if not (own == method and key == 'network_g')]
        taught = {method: [own.get('precision') for own in _teachers(opt)] for method, opt in methods.items()}
        first = next(filter(None, taught.values()), [])
        for method, precisions in taught.items():
            found[method] += ['teacher.precision'] if precisions not in ([], first) else []
        for method, opt in methods.items():
            blocks = loss_blocks(opt['train'].get('distill_opt'))
            steps = [key for key, block in blocks.items() if block.get('two_steps')]
            found[method] += ['.'.join(filter(None, ['train.distill_opt', key, 'two_steps'])) for key in steps]
        return {method: keys for method, keys in found.items() if keys}


def shortened(comparison: Comparison, iterations: int) -> Comparison:
    """The comparison with runs of another length, under a name of its own.

    Every run becomes longer or shorter in the same proportion, its learning rate's schedule and its validations
    with it, so that the baseline's has ``iterations``.
    """
    factor = Fraction(iterations, comparison.methods[comparison.baseline]['train']['total_iter'])
    opts = {method: _scaled(opt, factor) for method, opt in comparison.methods.items()}
    return replace(comparison, name=f'{comparison.name}_{iterations}', methods=opts)


def of_equal_time(comparison: Comparison, method: str, times: Mapping[str, float]) -> Comparison:
    """The comparison with runs that take the time of the method's, under a name of its own.

    Each becomes longer or shorter as by :func:`shortened`; the method keeps its iterations.

    Args:
        times: of an iteration of each method, in any unit.
    """
    time = Fraction(times[method]) * comparison.methods[method]['train']['total_iter']
    opts = {
        name: _scaled(opt, time / (Fraction(times[name]) * opt['train']['total_iter']))
        for name, opt in comparison.methods.items()
    }
    return replace(comparison, name=f'{comparison.name}_equal_time_{method}', methods=opts)


def timed(comparison: Comparison) -> Comparison:
    """The comparison with runs of ``TIMED`` iterations, of each stage as many, without validation: for step times.

    Three seeds: the methods take turns, in rounds, for a machine's speed changes from one to the next.
    """
    opts = copy.deepcopy(comparison.methods)
    for opt in opts.values():
        train_opt, stages = opt['train'], opt['train'].get('stages') or []
        for stage in stages:
            stage['iterations'] = TIMED
        train_opt['total_iter'] = TIMED * max(1, len(stages))
        for block in (train_opt, *stages):
            for key in ('log_gradient_share', 'net_d_init_iters'):
                block.pop(key, None)
            if 'scheduler' in block:  # which may be of fewer iterations, and costs no time
                block['scheduler'] = {'type': 'MultiStepLR', 'milestones': [TIMED]}
        opt['val'] = None
        opt['logger'] = {'print_freq': TIMED_EVERY, 'save_checkpoint_freq': TIMED, 'use_tb_logger': False}
    name, test_opt = f'{comparison.name}_step_times', {**comparison.test_opt, 'datasets': {}, 'val': None}
    return replace(comparison, name=name, seeds=(0, 1, 2), methods=opts, test_opt=test_opt)


def _scaled(opt: dict[str, Any], factor: Fraction) -> dict[str, Any]:
    """A method's options with ``factor`` times the iterations, and all that is counted in iterations scaled alike."""

    def scaled(value: int) -> int:
        return max(1, round(value * factor)) if value > 0 else value

    opt = copy.deepcopy(opt)
    train_opt, stages = opt['train'], opt['train'].get('stages') or []
    for block in (train_opt, *stages):
        scheduler_opt = block.get('scheduler') or {}
        for key in ('total_iter', 'iterations', 'warmup_iter', 'net_d_init_iters'):
            if key in block:
                block[key] = scaled(block[key])
        for key in ('milestones', 'periods', 'restarts'):
            if key in scheduler_opt:
                scheduler_opt[key] = [scaled(value) for value in scheduler_opt[key]]
        if 'periods' in scheduler_opt:  # rounding must not leave the last iterations without a learning rate
            missing = block.get('iterations', train_opt['total_iter']) - sum(scheduler_opt['periods'])
            scheduler_opt['periods'][-1] += max(0, missing)
        for _, weight in weights_of(block):
            if isinstance(weight, dict):
                weight['over'] = scaled(weight['over'])
        for own in loss_blocks(block.get('distill_opt')).values():
            every = own.get('every', getattr(LOSS_REGISTRY.get(own['type']), 'every', None))  # of an average, DCKD's
            if every is not None:
                own['every'] = scaled(every)
    if stages:
        train_opt['total_iter'] = sum(stage['iterations'] for stage in stages)
    if opt.get('val') is not None:
        opt['val']['val_freq'] = scaled(opt['val']['val_freq'])
    opt['logger']['save_checkpoint_freq'] = scaled(opt['logger']['save_checkpoint_freq'])
    opt['logger']['print_freq'] = every = min(opt['logger']['print_freq'], scaled(opt['logger']['print_freq']))
    for block in (train_opt, *stages):
        if block.get('log_gradient_share'):
            block['log_gradient_share'] = every * max(1, scaled(block['log_gradient_share']) // every)
    return opt


def read_comparison(path: Path) -> Comparison:
    """Reads and checks a comparison file. Whether its methods' data and teachers are there is checked later, in run.py.

    Args:
        path: YAML with ``name``, ``seeds``, ``baseline``, ``test`` (a test file's keys, whose sets are reported),
            ``methods`` ({name: a train file's keys}) and ``common`` (laid over every method). A ``base`` in them is
            relative to its folder.

    Raises:
        UserError: a key is unknown, missing or of the wrong type, a file is not there, or methods do not fit together.
    """
    try:
        content = load_yaml(path.read_text(encoding='utf-8'), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not text'
        raise UserError(f'{path}: {reason}; accepted: a comparison file such as those in options/compare/') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: holds {type(content).__name__}; accepted: keys as in options/compare/')
    try:
        return _comparison(content, path)
    except UserError as error:
        raise error if str(error).startswith(str(path)) else UserError(f'{path}: {error}') from error


def _comparison(content: dict[str, Any], path: Path) -> Comparison:
    check_block('', content, COMPARISON_KEYS)
    name, seeds, methods = content['name'], content['seeds'], content['methods']
    for key, value in [('name', name), *(('methods', method) for method in methods)]:
        if not (isinstance(value, str) and re.fullmatch(NAME, value)) or value in RESERVED:
            raise UserError(
                f'{key}: {value!r}; accepted: letters, digits and . _ + = -, a letter or digit first, not '
                f'{" or ".join(RESERVED)}, and nothing with debug'
            )
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f'seeds: {seeds}; accepted: one or more whole numbers from 0, each once')
    baselines = content['baseline'] if isinstance(content['baseline'], list) else [content['baseline']]
    for baseline in baselines or [None]:
        if baseline not in methods:
            raise UserError(f'baseline: {baseline!r}; accepted: one of the methods, {", ".join(methods)}')
    test_opt = _resolved('test', content['test'], path)
    _check('test', test_opt, is_train=False)
    opts = {}
    for method, block in methods.items():
        opts[method] = merged(_resolved(f'methods.{method}', block, path), content.get('common') or {})
        opts[method].setdefault('name', method)
        complete = _check(f'methods.{method}', opts[method], is_train=True)
        opts[method]['train']['total_iter'] = complete['train']['total_iter']  # of stages the sum
    for method, opt in opts.items():
        if opt['scale'] != test_opt['scale']:
            raise UserError(f'methods.{method}.scale: {opt["scale"]}; accepted: {test_opt["scale"]}, as in test')
    teachers = {
        method: [
            {key: own[key] for key in own if key not in ('expect', 'cache', *schema.EXECUTION)}
            for own in _teachers(opt)
        ]
        for method, opt in opts.items()
        if 'teacher' in opt
    }
    for method, teacher in teachers.items():
        first = next(iter(teachers))
        if teacher != teachers[first]:
            raise UserError(f"methods.{method}.teacher: another than methods.{first}'s; accepted: one teacher for all")
    comparison = Comparison(name, tuple(seeds), tuple(baselines), opts, test_opt)
    for baseline in baselines:
        if (first := comparison.baseline_of(baseline)) != baseline:
            raise UserError(f"baseline: {baseline} has {first}'s network_g; accepted: one method of each architecture")
    return comparison


def _check(where: str, opt: dict[str, Any], is_train: bool) -> dict[str, Any]:
    """The sets and metrics that are reported must be there; the test file's checkpoint is not checked."""
    try:
        complete = check_options(opt, is_train)
        if not is_train:
            check_paths({**opt, 'path': {}}, is_train)
            other_metrics(complete)
        return complete
    except UserError as error:
        raise UserError(f'{where}.{error}') from error


def _resolved(where: str, block: Any, path: Path) -> dict[str, Any]:
    """Options with all that their ``base``, relative to the comparison file, gives them."""
    check_type(where, block, (dict,))
    changes = {key: value for key, value in block.items() if key != BASE}
    if BASE not in block:
        if 'model_type' not in block:
            raise UserError(f'{where}.{BASE}: missing; accepted: an option file, relative to {path.parent}')
        return changes
    check_type(f'{where}.{BASE}', block[BASE], (str,))
    base = path.parent / block[BASE]
    if not base.is_file():
        raise UserError(f'{where}.{BASE}: no such file: {base}; accepted: an option file, relative to {path.parent}')
    return merged(read_option_file(str(base)), changes)


def _teachers(opt: dict[str, Any]) -> list[dict[str, Any]]:
    return [*teacher_blocks(opt.get('teacher')).values()]


def _value(opt: dict[str, Any], location: str) -> Any:
    value: Any = opt
    for key in location.split('.'):
        value = value.get(key) if isinstance(value, dict) else None
    return value
