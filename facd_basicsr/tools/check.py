"""``facd check``: checks everything a run needs before it starts."""

import gc
import math
import os
import resource
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from typing import Any

import click
import torch
import yaml
from basicsr.archs import build_network
from torch import Tensor, nn

from facd_basicsr.archs import DeepRegressor, input_channels, network_sizes
from facd_basicsr.cli import MultiValueCommand, overrides_option
from facd_basicsr.data.loaders import batches, reraise_killed_worker
from facd_basicsr.data.paths import check_whole_dataset
from facd_basicsr.distill.regressors import OTHER_UNITS, in_other_units, rms
from facd_basicsr.distill.taps import Tappable, paths_of_teachers, points, suggested, tappable
from facd_basicsr.distill.teacher import Teacher, build_teacher, teacher_blocks
from facd_basicsr.engine.logs import DeferredLog
from facd_basicsr.engine.loop import Training, end_of
from facd_basicsr.environment import versions
from facd_basicsr.errors import UserError, locating, one_line
from facd_basicsr.evaluation.complexity import as_trained_and_fused, flops, parameters, saved_activations
from facd_basicsr.evaluation.methods import teacher_names
from facd_basicsr.evaluation.tables import duration, text_table
from facd_basicsr.losses.base import tap_place
from facd_basicsr.losses.loss_sum import LossSum
from facd_basicsr.losses.schedule import is_scheduled, value_at
from facd_basicsr.models import FACDModel
from facd_basicsr.models.safe_model import PROBES, lq_patch_size
from facd_basicsr.options import check_inputs, complete_options, load_options, parser
from facd_basicsr.options.option_check import laid_over, weights_of
from facd_basicsr.options.parse import checked, read_options
from facd_basicsr.runtime.execution import check_upscaled, reraise_refused_input, tf32_of
from facd_basicsr.runtime.size_requirements import Padded
from facd_basicsr.train import set_up, stages_left

GIB = 2**30
SMALL, LARGE = 2, 4  # batch sizes of the memory estimate; contrastive losses need two samples


def check(option_file: str, overrides: Sequence[str]) -> Iterator[str]:
    """The lines of a report on doing what train.py does up to the first iterations, without creating a folder.

    Raises:
        UserError: the reason why training would not start.
    """
    yield from _environment()
    opt = load_options(option_file, overrides, is_train=True)
    if opt['num_gpu'] != 'auto' and 1 < opt['num_gpu'] <= torch.cuda.device_count():
        yield f'             checking one of the {opt["num_gpu"]} GPUs'
        opt['num_gpu'] = 'auto'
    opt = complete_options(opt, parser().parse_args(['-opt', option_file]), is_train=True)
    yield f'options      {option_file}: every key is valid; networks, loss and optimizer build'
    with DeferredLog(opt['rank'], console=False) as log:
        stages, state = stages_left(opt, log)
        seconds, checked_sets = 0.0, []
        for place, stage in stages:
            if place:
                yield f'stage        {place}: iterations {stage["stage_begin"] + 1} to {end_of(stage)}'
            with tf32_of(None), locating(option_file), locating(place):
                is_first = stage is stages[0][1]
                training = set_up(stage, log, state if is_first else None, gate=is_first)
                yield from _what_is_built(training, stage, is_first)
                yield from _unfinished_schedules(stage)
                for name, dataset_opt in stage['datasets'].items():  # late, since it takes longest
                    dataset_opt = {**dataset_opt, 'batch_size_per_gpu': 1}
                    if dataset_opt not in checked_sets:  # with a patch of this size
                        yield f'data         {name}: {check_whole_dataset(name, dataset_opt, opt["scale"])}'
                        checked_sets.append(dataset_opt)
                seconds += yield from _first_iterations(training, stage)
            del training
            gc.collect()
        if len(stages) > 1:
            yield f'all stages   {duration(seconds)}'


def _what_is_built(training: Training, opt: dict[str, Any], is_first: bool) -> Iterator[str]:
    model = training.model
    for line in model.partly_loaded:
        yield f'weights      {line}'
    if isinstance(model, FACDModel):
        for teacher, (place, own) in (
            zip(model.teachers, teacher_blocks(opt.get('teacher')).items()) if is_first else ()
        ):
            yield f'{place:<12} {type(teacher.net).__name__} from {own["weights"]}: all keys match'
            yield f'             {training.gates.get(place, f"quality not checked: no {place}.expect")}'
        if opt['taps']:
            yield from _block('taps', _taps(model, opt))
    if is_first:
        yield from _block('networks', _networks(model, opt))


def _unfinished_schedules(opt: dict[str, Any]) -> Iterator[str]:
    """Schedules of the losses that do not reach their end."""
    last = opt['train']['total_iter']
    for place, value in weights_of(opt['train']):
        if is_scheduled(value) and last < value['over']:
            yield (
                f'schedule     warning: train.{place} goes from {value["start"]} to {value["end"]} over '
                f'{value["over"]} iterations, and there are {last}, after which it is {value_at(value, last):.3g}'
            )


def list_modules(option_file: str, overrides: Sequence[str], of: str) -> Iterator[str]:
    """The module paths of a file's student or teacher, with the shape of each feature of a training patch.

    What it helps to write, taps, regressors and loss, may be wrong or missing, and so may data and weights.

    Raises:
        UserError: the rest of the file is not accepted, or it has no teacher.
    """
    opt = _networks_alone(option_file, overrides)
    if of == 'teacher' and 'teacher' not in opt:
        raise UserError(f'--modules teacher: {option_file} has no teacher; accepted: student')
    lq = _training_patches(opt)
    for place in teacher_blocks(opt.get('teacher')) if of == 'teacher' else [of]:
        network, found = _tappable(opt, place, lq)
        yield f'{place:<12} {network}, features of LQ of {lq.shape[2]} x {lq.shape[3]}'
        yield from _block('', text_table(['path', 'module', 'C x H x W'], [[o.path, o.module, o.found] for o in found]))
        paths = suggested(found)
        if paths:
            yield f'{"":<13}after a third and two thirds, and last before the upsampler: {", ".join(paths)}'


def suggest_taps(option_file: str, overrides: Sequence[str], count: int) -> Iterator[str]:
    """The lines of the ``taps`` block of a file's networks, ready to paste: ``count`` pairs at equal depths whose
    height and width agree.

    As of :func:`list_modules`, taps, regressors, loss, data and weights may be wrong or missing.

    Raises:
        UserError: the rest of the file is not accepted, it has no teacher, no features of the two are of equal size,
            or one has not as many.
    """
    opt = _networks_alone(option_file, overrides)
    if 'teacher' not in opt:
        raise UserError(f'--suggest-taps: {option_file} has no teacher; accepted: a file with a teacher block')
    lq = _training_patches(opt)
    places = ['student', *teacher_blocks(opt.get('teacher'))]
    networks, found = zip(*(_tappable(opt, place, lq) for place in places))
    student, *teachers = (points(paths) for paths in found)
    common = [size for size in student if all(size in teacher for teacher in teachers)]
    if not common:
        sizes = [' and '.join(f'{h} x {w}' for h, w in own) or 'nowhere' for own in (student, *teachers)]
        of_teachers = ', '.join(f"the {p}'s ({net}) {own}" for p, net, own in zip(places[1:], networks[1:], sizes[1:]))
        raise UserError(
            f"--suggest-taps: for LQ of {lq.shape[2]} x {lq.shape[3]} the student's blocks ({networks[0]}) are "
            f'{sizes[0]}, {of_teachers}; accepted: networks with features of equal size (and a datasets.train.gt_size '
            'that neither pads)'
        )
    all_points = [own[common[0]] for own in (student, *teachers)]
    fewest = min(len(own.at_equal_depths(count)) for own in all_points)
    if fewest < count:
        depths = ' and '.join(f'{network} has {len(own.blocks)} blocks' for network, own in zip(networks, all_points))
        raise UserError(f'--suggest-taps: {count}; accepted: 1 to {fewest}, since {depths}')
    yield f'taps:  # {networks[0]} <- {", ".join(networks[1:])}, LQ of {lq.shape[2]} x {lq.shape[3]}'
    for first, *others in zip(*(own.at_equal_depths(count) for own in all_points)):
        paths = [feature.path for feature in others]
        tap = {'student': first.path, 'teacher': paths if len(paths) > 1 else paths[0]}
        line = yaml.safe_dump(tap, default_flow_style=True, sort_keys=False, width=math.inf).strip()
        yield f'  - {line}  # {first.found} <- {", ".join(feature.found for feature in others)}'


def _networks_alone(option_file: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Checked options without what taps are written for, so that it may be wrong; data and weights may be missing."""
    opt = read_options(option_file, overrides)
    stages = opt['train'].get('stages') if isinstance(opt.get('train'), dict) else None
    if isinstance(stages, list) and isinstance(next(iter(stages), None), dict):
        opt = laid_over(opt, stages[0])
    for key in ('taps', 'network_r'):
        opt.pop(key, None)
    for key in ('train', 'path'):
        if isinstance(opt.get(key), dict):
            opt[key] = {name: value for name, value in opt[key].items() if not name.endswith('_r')}
    if isinstance(opt.get('train'), dict) and 'teacher' in opt:
        opt['train']['distill_opt'] = {'type': 'TeacherSupervisionLoss'}
    opt = checked(opt, option_file, is_train=True)
    check_inputs(opt, option_file, is_train=True, with_data=False, with_weights=False)
    return opt


def _training_patches(opt: dict[str, Any]) -> Tensor:
    return torch.full((PROBES, input_channels(opt['network_g']), *[lq_patch_size(opt)] * 2), 0.5)


def _tappable(opt: dict[str, Any], of: str, lq: Tensor) -> tuple[str, list[Tappable]]:
    """The class of the ``student``, or of a teacher by its block's place, and what can be tapped in training: a network
    may have branches that run in training only, or in evaluation only."""
    own = teacher_blocks(opt.get('teacher')).get(of, {})
    if of == 'student':
        net = run = build_network(opt['network_g']).train()
    elif 'network' in own:  # whose weights may be missing
        net = build_network(own['network'])
        run = Teacher(net, opt['scale'], sizes=network_sizes(net, own['network'], opt['scale']))
    else:
        run = build_teacher(own, opt['scale'], of)
        net = run.net
    where = 'network_g' if of == 'student' else of

    def forward(x: Tensor) -> None:
        check_upscaled(where, net, x, run(x), opt['scale'], channels=x.shape[1])

    with reraise_refused_input(where, net, lq):
        return type(net).__name__, tappable(net, lq, forward)


def _environment() -> Iterator[str]:
    yield f'environment  {versions()}'
    extras = []
    for package in ('spandrel', 'torchmetrics', 'lmdb', 'opencv-python', 'opencv-python-headless'):
        try:
            extras.append(f'{package} {version(package)}')
        except PackageNotFoundError:
            continue
    yield f'             {", ".join(extras)}'
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = ', '.join(f'{device.name} {device.total_memory / GIB:.0f} GiB' for device in devices) or 'no GPU'
    yield f'             {gpus}, {torch.get_num_threads()} CPU threads, {_ram() / GIB:.0f} GiB memory'


def _taps(model: FACDModel, opt: dict[str, Any]) -> str:
    student_feats, teacher_feats = model.probe_taps()
    regressors = [None] * len(student_feats) if model.net_r is None else model.get_bare_model(model.net_r)
    rows = [
        [
            path_s,
            ' x '.join(map(str, student.shape[1:])),
            path_t,
            ' x '.join(map(str, teacher.shape[1:])),
            _regressor(regressor, model.criterion),
        ]
        for (path_s, path_t), student, teacher, regressor in zip(
            _pairs(model, opt), student_feats, teacher_feats, regressors
        )
    ]
    return text_table(['student', 'C x H x W', 'teacher', 'C x H x W', 'regressor'], rows)


def _pairs(model: FACDModel, opt: dict[str, Any]) -> list[tuple[str, str]]:
    """The student's and the teacher's path of each pair, one teacher's after the other's."""
    by_teacher = zip(model.teachers, paths_of_teachers(opt['taps'], len(model.teachers)))
    return [
        (tap['student'], f'{path} of {teacher.place}' if len(model.teachers) > 1 else path)
        for teacher, paths in by_teacher
        for tap, path in zip(opt['taps'], paths)
    ]


def _regressor(regressor: nn.Module | None, loss: LossSum) -> str:
    if regressor is None or isinstance(regressor, nn.Identity):
        return 'none: equal widths' if loss.compares_channels else 'none: channels are not compared'
    return f'{type(regressor).__name__}, {parameters(regressor):,} parameters'


def _networks(model: Any, opt: dict[str, Any]) -> str:
    nets = {'student': Padded(model.get_bare_model(model.net_g), opt['scale'], model.sizes)}
    if isinstance(model, FACDModel):
        for name, own in zip(teacher_names(opt), model.teachers):
            nets[name] = Padded(own.net, opt['scale'], own.sizes)
    num_in_ch = input_channels(opt['network_g'])
    rows = [
        [form, type(net.net).__name__, f'{parameters(net):,}', _flops(net, num_in_ch)]
        for name, own in nets.items()
        for form, net in as_trained_and_fused(name, own).items()
    ]
    return text_table(['', 'network', 'parameters', 'FLOPs of a 1280x720 output'], rows)


def _flops(net: Padded, num_in_ch: int) -> str:
    try:
        return f'{flops(net, net.scale, num_in_ch=num_in_ch) / 1e9:,.1f} G'
    except Exception as error:  # what cannot be counted does not prevent training
        return f'not counted ({one_line(error, 60)})'


def _first_iterations(training: Training, opt: dict[str, Any]) -> Generator[str, None, float]:
    """Estimates the batch's memory from a few samples, then runs two iterations. Returns the seconds of them all."""
    model = training.model
    with reraise_killed_worker():
        loaded = next(batches(training.loaders.train, opt))
    batch = model.degraded(loaded)
    size = len(next(iter(batch.values())))
    capacity, name = _total_memory(model.device)
    parts = opt['train'].get('accum_iter', 1)
    in_parts = f' in {parts} parts' if parts > 1 else ''
    advice = 'accepted: a smaller datasets.train.batch_size_per_gpu or gt_size, or a larger train.accum_iter'
    try:
        if isinstance(model, FACDModel) and opt['taps']:
            yield from _units(model, batch, opt)
        estimate, breakdown = memory_estimate(model, batch)  # of a few samples, which may be all of a small batch
        yield f'memory       estimate for a batch of {size}{in_parts}: {breakdown}'
        yield f'             {name} has {_bytes(capacity)}'
        if estimate > capacity:
            raise UserError(f'memory: about {_bytes(estimate)} needed, {name} has {_bytes(capacity)}; {advice}')
        _step(model, batch)
        if model.device.type == 'cuda':  # without the peak of the gate and of cuDNN's benchmarks
            torch.cuda.reset_peak_memory_stats(model.device)
        seconds = _step(model, batch) + _seconds(model, lambda: model.degraded(loaded))
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f'memory: a batch of {size} does not fit into {name}; {advice}') from error
    yield f'             measured: {_peak(model.device)}'
    total = opt['train']['total_iter']
    yield (
        f'iteration    {seconds:.3f} s for a batch of {size} at the current load of this machine; {total} iterations: '
        f'{duration(seconds * total)} without data loading and validation'
    )
    return seconds * total


def _units(model: FACDModel, batch: dict[str, Any], opt: dict[str, Any]) -> Iterator[str]:
    """The RMS of each tap's features on a few real patches, and a warning where student and teacher differ much."""
    found = rms(*model.tapped(batch['lq'][:LARGE].to(model.device))).tolist()
    taps = [f'{path_s} <- {path_t}' for path_s, path_t in _pairs(model, opt)]
    rows = [[tap, f'{student:.3g}', f'{teacher:.3g}'] for tap, (student, teacher) in zip(taps, found)]
    yield from _block('features', text_table(['tap', 'RMS of student', 'RMS of teacher'], rows))
    regressors = [nn.Identity()] * len(rows) if model.net_r is None else model.get_bare_model(model.net_r)
    for index, (regressor, (student, teacher)) in enumerate(zip(regressors, found)):
        if model.criterion.compares_channels and in_other_units(student, teacher):
            times = f'differ by more than {OTHER_UNITS} times'
            advice = _advice(regressor, opt['train']['init_r'], student < teacher)
            tap = tap_place(index, len(rows), len(model.teachers))
            yield f'{"":<13}warning: {tap}: the features {times}; {advice}'


def _advice(regressor: nn.Module, init: str, student_is_smaller: bool) -> str:
    if isinstance(regressor, nn.Identity):
        return 'without a regressor they are hardly learnt'
    if not isinstance(regressor, DeepRegressor):
        return "a DeepRegressor would start in the teacher's units (train.init_r)"
    if init == 'first_batch' or (init == 'auto' and student_is_smaller):
        return f"the regressor starts in the teacher's units (train.init_r: {init})"
    return f"by train.init_r: first_batch the regressor starts in the teacher's units, here {init}"


def memory_estimate(model: Any, batch: dict[str, Any]) -> tuple[float, str]:
    """Bytes that training with this batch needs, and their breakdown in words."""
    trained = [p for optimizer in model.optimizers for group in optimizer.param_groups for p in group['params']]
    size = len(next(iter(batch.values())))
    parts = model.opt['train'].get('accum_iter', 1)  # one has activations at a time
    few, more = min(SMALL * parts, size), min(LARGE * parts, size)
    kept = {samples: _activations(model, batch, samples, trained) for samples in {few, more}}
    total = {samples: sum(found) for samples, found in kept.items()}
    slope = (total[more] - total[few]) / (more - few) if more > few else total[few] / few
    activations = total[few] + slope * (size - few)
    # at the start of backward: gradients of a part's largest layer's output and input, and cuDNN's workspace
    activations += 3 * max(kept[more]) * size / more
    weights = sum(2 * p.numel() * p.element_size() for p in trained)  # and their gradients
    states = [values for optimizer in model.optimizers for values in optimizer.state.values()]
    weights += sum(x.numel() * x.element_size() for own in states for x in own.values() if isinstance(x, Tensor))
    held = [*vars(model).values(), *vars(model).get('teachers', [])]  # averages, teachers and a loss's VGG among them
    frozen = {p for own in held if isinstance(own, nn.Module) for p in own.parameters()} - {*trained}
    degradation = vars(model).get('degradation')  # of BasicSR's other models none
    pool = [] if degradation is None else degradation.queues.values()
    weights += sum(x.numel() * x.element_size() for x in (*frozen, *pool))
    return (
        activations + weights,
        f'{_bytes(activations)} of activations, {_bytes(weights)} of weights, gradients and optimizer',
    )


def _activations(model: Any, batch: dict[str, Any], samples: int, trained: Sequence[nn.Parameter]) -> list[int]:
    """Bytes of each activation that a step of ``samples`` samples saves for backward."""
    with saved_activations(trained) as kept:
        _step(model, {key: value[:samples] for key, value in batch.items()})
    return [*kept.values(), 0]


def _step(model: Any, batch: dict[str, Any]) -> float:
    """Seconds of one iteration. It changes the model, which is not saved."""
    model.feed_data(batch)
    return _seconds(model, lambda: model.optimize_parameters(model.opt['stage_begin'] + 1))


def _seconds(model: Any, call: Callable[[], object]) -> float:
    wait = torch.cuda.synchronize if model.device.type == 'cuda' else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def _total_memory(device: torch.device) -> tuple[int, str]:
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[1], 'the GPU'
    return _ram(), 'this machine'


def _ram() -> int:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _peak(device: torch.device) -> str:
    if device.type == 'cuda':
        return f'{_bytes(torch.cuda.max_memory_allocated(device))} at the peak'
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return f'{_bytes(peak)} at the peak of the process, including libraries'


def _bytes(count: float) -> str:
    return f'{count / GIB:.1f} GiB' if count >= GIB else f'{count / 2**20:.1f} MiB'


def _block(title: str, table: str) -> Iterator[str]:
    first, *rest = table.splitlines()
    yield f'{title:<13}{first}'
    yield from (f'{"":<13}{line}' for line in rest)


@click.command(cls=MultiValueCommand)
@click.option('-opt', '--opt', 'option_file', type=click.Path(), required=True, help='Train file.')
@overrides_option
@click.option(
    '--modules',
    type=click.Choice(['student', 'teacher']),
    help='List the module paths of this network with their shapes, for taps, and check nothing else.',
)
@click.option(
    '--suggest-taps',
    'taps',
    type=click.IntRange(min=1),
    metavar='N',
    help='Print a taps block of N pairs for these networks, ready to paste, and check nothing else.',
)
def command(option_file: str, overrides: tuple[str, ...], modules: str | None, taps: int | None) -> None:
    """Check everything a run needs before it starts.

    Checks environment, option file, every image of the data, teacher, taps and memory, and times one iteration. The
    exit code is 0 only if training would start. Nothing is written.

    \b
    Example:
      facd check -opt options/train/FACD_EDSR_x4.yml
      facd check -opt options/train/FACD_EDSR_x4.yml --modules teacher
      facd check -opt options/train/FACD_EDSR_x4.yml --suggest-taps 3
    """
    if modules is not None and taps is not None:
        raise UserError(f'--suggest-taps: {taps}, with --modules {modules}; accepted: one of both')
    if modules is not None:
        lines = list_modules(option_file, overrides, modules)
    elif taps is not None:
        lines = suggest_taps(option_file, overrides, taps)
    else:
        lines = chain(check(option_file, overrides), ['Training would start.'])
    for line in lines:
        click.echo(line)
