"""The results of a finished run, as plain data: scores, costs, curves."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facd_basicsr.archs.reparameterization import reparameterized
from facd_basicsr.comparison.plan import TIMED, Comparison, Run
from facd_basicsr.evaluation.complexity import OUTPUT_SIZE, flops, latencies_ms
from facd_basicsr.evaluation.feature_psnr import tap_features
from facd_basicsr.evaluation.methods import BICUBIC, Method, build_student, build_teacher_methods, device_of
from facd_basicsr.evaluation.tables import evaluate, means
from facd_basicsr.evaluation.test_sets import build_sets, pairs
from facd_basicsr.options.option_check import stages_of, with_defaults
from facd_basicsr.options.parse import root_path
from facd_basicsr.runs.run_folder import Curve, Metrics, RunFolder, param_key_of, read_run_folder

DIGITS = 4
TURNS = 5  # in which latencies are measured
KEPT_POINTS = 100  # of a curve that are kept; more are averaged


def checkpoint_of(run: Run) -> Path:
    """The trained student's checkpoint."""
    return root_path() / 'experiments' / run.opt['name'] / 'models' / 'net_g_latest.pth'


def student_of(run: Run) -> Method:
    """The trained student, its average over iterations (EMA) where there is one, as a method of the run's name.

    Raises:
        UserError: its checkpoint is not there or does not fit.
    """
    path = {'pretrain_network_g': str(checkpoint_of(run)), 'param_key_g': param_key_of(run.opt)}
    opt = {**run.opt, 'name': run.method, 'path': path}
    return build_student(f'methods.{run.method}', opt, device_of([opt]))


def teachers_of(comparison: Comparison) -> list[Method]:
    """The comparison's teachers; none where no method has one."""
    for method, opt in comparison.methods.items():
        if 'teacher' in opt:
            complete = with_defaults(opt, is_train=True)
            return build_teacher_methods(f'methods.{method}', complete, device_of([opt]))
    return []


def run_record(run: Run, comparison: Comparison, trained: dict[str, Any]) -> dict[str, Any]:
    """The record of a trained run: what the report is made of.

    Args:
        trained: under which conditions: ``jobs`` at a time with ``threads`` each.
    """
    student, teachers = student_of(run), teachers_of(comparison)
    notes = []
    alike = (opt for opt in comparison.methods.values() if opt['network_g'] == run.opt['network_g'])
    ends = (list(stages_of(opt).values())[-1] for opt in (run.opt, *alike))
    tapped = next((opt for opt in ends if opt.get('taps')), None)
    if teachers and tapped is not None:
        notes = [note.replace(f'{root_path()}/', '') for note in tap_features(tapped, teachers, [student])]
    # features are compared with the teachers'
    methods = [student] if student.taps is None else [student, *teachers]
    experiment = _experiment(run)
    stages = _iterations(run.opt)
    seconds_per_iter = step_seconds(experiment.metrics.steps, stages, stages)
    return {
        'method': run.method,
        'seed': run.seed,
        'iterations': sum(stages),
        'seconds_per_iter': seconds_per_iter,
        'train_seconds': None if seconds_per_iter is None else seconds_per_iter * sum(stages),
        **trained,
        **_conditions(experiment, 'machine', 'versions'),
        **_size(student),
        'through_regressors': student.regressors is not None,
        'test': comparison.test_opt['datasets'],
        'metrics': comparison.metrics,
        **_scores(comparison, methods, student.name),
        'notes': notes,
        'curves': curves(experiment.metrics),
    }


def step_record(run: Run, opt: Mapping[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that measures the step of a method with the options ``opt``."""
    experiment, stages = _experiment(run), _iterations(opt)
    # without the first third, where memory is allocated and code compiled
    seconds = step_seconds(experiment.metrics.steps, [TIMED] * len(stages), stages, skipped=TIMED // 3)
    found = {'method': run.method, 'seconds_per_iter': seconds, **_conditions(experiment, 'machine'), **trained}
    return {**found, 'test': {}, 'means': {}}


def _experiment(run: Run) -> RunFolder:
    return read_run_folder(root_path() / 'experiments' / run.opt['name'], f'methods.{run.method}')


def _iterations(opt: Mapping[str, Any]) -> list[int]:
    """Of each stage."""
    return [stage['iterations'] for stage in opt['train'].get('stages') or []] or [opt['train']['total_iter']]


def _conditions(experiment: RunFolder, *keys: str) -> dict[str, Any]:
    """Under which it was trained, as its last start has noted."""
    return {key: experiment.sessions[-1].facts[key] for key in keys}


def step_seconds(
    steps: Sequence[tuple[int, float]], measured: Sequence[int], stages: Sequence[int], skipped: int = 0
) -> float | None:
    """Seconds of an iteration in a run whose stages have ``stages`` iterations: the medians of the stages, weighted.

    Args:
        steps: of :class:`Metrics`, of a run whose stages have ``measured`` iterations.
        skipped: so many at the beginning of each stage are left out.

    Returns:
        None without steps. A stage without any has the median of all.
    """
    if not steps:
        return None
    medians = []
    for length, end in zip(measured, accumulate(measured)):
        own = [seconds for iteration, seconds in steps if end - length + skipped <= iteration < end]
        medians.append(statistics.median(own or [seconds for _, seconds in steps]))
    return sum(iterations * seconds for iterations, seconds in zip(stages, medians)) / sum(stages)


def curves(metrics: Metrics) -> dict[str, list[list[float | None]]]:
    """{tag: [[iteration, value], ...]} of every curve by TensorBoard's tag, of at most ``KEPT_POINTS`` points."""
    found = {f'losses/{name}' if name.startswith('l_') else name: curve for name, curve in metrics.curves.items()}
    for name, validation in metrics.validation.items():
        found |= {f'metrics/{name}/{metric}': curve for metric, curve in validation.items()}
    return {tag: _thinned(curve) for tag, curve in found.items() if not tag.startswith('lr')}


def _thinned(curve: Curve) -> list[list[float | None]]:
    """Neighbors are averaged where there are too many; None where the mean is not finite."""
    groups = np.array_split(np.array(sorted(curve.items())), min(KEPT_POINTS, len(curve)))
    means = [(float(group[-1, 0]), float(group[:, 1].mean())) for group in groups]
    return [[iteration, round(mean, 5) if math.isfinite(mean) else None] for iteration, mean in means]


def reference_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Bicubic and the teachers, which are not trained here."""
    records = [{'method': BICUBIC, **_scores(comparison, [Method(BICUBIC, comparison.scale)], BICUBIC)}]
    for teacher in teachers_of(comparison):
        records.append({'method': teacher.name, **_size(teacher), **_scores(comparison, [teacher], teacher.name)})
    return records


def latencies(comparison: Comparison, trained: Sequence[Run]) -> dict[str, float]:
    """{method: milliseconds of one 1280 x 720 output} of the teachers and of every method's first trained student,
    those of one architecture measured once.

    To be measured when nothing else is running.
    """
    methods = teachers_of(comparison)
    seen = set()
    for run in trained:
        if run.method not in seen:
            seen.add(run.method)
            methods.append(student_of(run))
    nets = {}
    for method in methods:
        lq = torch.zeros(1, 3, *(side // method.scale for side in OUTPUT_SIZE), device=method.device)
        nets[method.name] = (reparameterized(method.padded), lq)
    return {name: round(statistics.median(times), 2) for name, times in latencies_ms(nets, TURNS).items()}


def _size(method: Method) -> dict[str, Any]:
    """As it is deployed: re-parameterized."""
    return {'parameters': method.parameters, 'flops': flops(reparameterized(method.padded), method.scale)}


def _scores(comparison: Comparison, methods: Sequence[Method], name: str) -> dict[str, Any]:
    images = [
        {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in record.items()}
        for record in evaluate(methods, pairs(build_sets(comparison.test_opt)), others=comparison.metrics)
        if record['method'] == name
    ]
    return {'means': means(images)[name], 'images': images}
