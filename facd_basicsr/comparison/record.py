"""What a finished run came to, as plain data: scores, costs, curves."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from facd_basicsr.comparison.curves import read_curves
from facd_basicsr.comparison.plan import Comparison, Run
from facd_basicsr.engine.logs import versions
from facd_basicsr.evaluation.benchmark import evaluate, means
from facd_basicsr.evaluation.benchmark_sets import build_sets, pairs
from facd_basicsr.evaluation.complexity import OUTPUT_SIZE, flops, latency_ms, parameters
from facd_basicsr.evaluation.feature_psnr import tap_features
from facd_basicsr.evaluation.methods import BICUBIC, Method, build_student, build_teacher_method, device_of
from facd_basicsr.options.parse import root_path

DIGITS = 4


def student_of(run: Run) -> Method:
    """The trained student, its average over iterations (EMA) where there is one, as a method of the run's name.

    Raises:
        UserError: its checkpoint is not there or does not fit.
    """
    checkpoint = root_path() / 'experiments' / run.opt['name'] / 'models' / 'net_g_latest.pth'
    key = 'params_ema' if run.opt['train'].get('ema_decay', 0) > 0 else 'params'
    opt = {**run.opt, 'name': run.method, 'path': {'pretrain_network_g': str(checkpoint), 'param_key_g': key}}
    return build_student(f'methods.{run.method}', opt, device_of([opt]))


def teacher_of(comparison: Comparison) -> Method | None:
    """The teacher of the first method that has one."""
    for method, opt in comparison.methods.items():
        if 'teacher' in opt:
            return build_teacher_method(f'methods.{method}', opt, device_of([opt]))
    return None


def run_record(run: Run, comparison: Comparison, jobs: int) -> dict[str, Any]:
    """The record of a trained run: what the report is made of.

    Args:
        run: trained.
        comparison: that it belongs to.
        jobs: how many trained at a time, on which its times depend.
    """
    student, teacher = student_of(run), teacher_of(comparison)
    notes = []
    tapped = run.opt if 'taps' in run.opt else next((o for o in comparison.methods.values() if 'taps' in o), None)
    if teacher is not None and tapped is not None:
        notes = tap_features(tapped, teacher, [student])
    methods = [student] if teacher is None else [student, teacher]
    curves, seconds_per_iter, resumed = read_curves(root_path() / 'tb_logger' / run.opt['name'])
    iterations = run.opt['train']['total_iter']
    return {
        'method': run.method,
        'seed': run.seed,
        'iterations': iterations,
        'seconds_per_iter': seconds_per_iter,
        'train_seconds': None if seconds_per_iter is None else seconds_per_iter * iterations,
        'jobs': jobs,
        'resumed': resumed,
        'machine': machine(),
        'versions': versions(),
        **_costs(student),
        **_scores(comparison, methods, student.name),
        'notes': notes,
        'curves': curves,
    }


def reference_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Bicubic and the teacher, which are not trained here."""
    records = [{'method': BICUBIC, **_scores(comparison, [Method(BICUBIC, comparison.scale)], BICUBIC)}]
    teacher = teacher_of(comparison)
    if teacher is not None:
        records.append({'method': teacher.name, **_costs(teacher), **_scores(comparison, [teacher], teacher.name)})
    return records


def machine() -> str:
    """The GPU, or the processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text(encoding='utf-8').splitlines() if cpuinfo.is_file() else []
    models = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return f'{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads'


def _costs(method: Method) -> dict[str, Any]:
    height, width = (side // method.scale for side in OUTPUT_SIZE)
    lq = torch.zeros(1, 3, height, width, device=method.device)
    return {
        'parameters': parameters(method.net),
        'flops': flops(method.bare, method.scale),
        'latency_ms': latency_ms(method.net, lq, repeats=3),
    }


def _scores(comparison: Comparison, methods: Sequence[Method], name: str) -> dict[str, Any]:
    images = [
        {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in record.items()}
        for record in evaluate(methods, pairs(build_sets(comparison.test_opt)))
        if record['method'] == name
    ]
    return {
        'means': means(images)[name],
        'images': [{k: v for k, v in image.items() if k != 'method'} for image in images],
    }
