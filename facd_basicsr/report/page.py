"""The HTML page: one file with everything in it."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from facd_basicsr.distill.teacher import teacher_blocks
from facd_basicsr.environment import versions
from facd_basicsr.evaluation.methods import BICUBIC, is_teacher
from facd_basicsr.evaluation.tables import directions, duration, is_student
from facd_basicsr.files.download import sha256_of
from facd_basicsr.losses.base import loss_blocks
from facd_basicsr.losses.schedule import value_at
from facd_basicsr.options.option_check import laid_over, weights_of
from facd_basicsr.report.results import Results
from facd_basicsr.report.svg_curves import COLORS, TEMPLATES, Panel, described, svg
from facd_basicsr.runs.run_folder import Curve, Metrics, RunFolder

DRAWN = 100  # iterations of a stage, of a weight that changes
LOSSES, SHARES, ALPHA, RATIOS, RATES = 'l_', 'share_', r'(\w+_)?alpha$', r'(\w+_)?r_\d+$', r'lr(_\d+)?$'
MEANINGS = {
    'l_sr': 'image loss',
    'l_pix': 'image loss',
    'l_percep': 'perceptual loss',
    'l_style': 'style loss',
    'l_g_gan': 'GAN loss of the student',
    'l_d_real': 'GAN loss of the discriminator, of ground truth',
    'l_d_fake': "GAN loss of the discriminator, of the student's output",
}


def panels(metrics: Metrics, opt: Mapping[str, Any]) -> list[Panel]:
    """Validation first, then every loss term, ``alpha``, ``r_j`` of all taps in one, whatever else was logged, and the
    learning rate and the weights that change; all with the borders of stages."""
    curves = dict(metrics.curves)

    def take(pattern: str) -> dict[str, Curve]:
        return {name: curves.pop(name) for name in list(curves) if re.match(pattern, name)}

    losses, shares, alpha, ratios, rates = (take(pattern) for pattern in (LOSSES, SHARES, ALPHA, RATIOS, RATES))
    found = [
        Panel(f'{metric} on {name}', 'validation', _unit(metric, opt), {metric: curve})
        for name, validation in metrics.validation.items()
        for metric, curve in validation.items()
    ]
    found += [Panel(name, _meaning(name, opt), 'weighted loss', {name: line}, True) for name, line in losses.items()]
    found += [
        Panel(name, 'share of the batch that is distilled', 'share', {name: line}, True, (0.0, 1.04))
        for name, line in alpha.items()
    ]
    if shares:
        note = "of each loss term, on the student's last layer that all reach"
        lines = {name.removeprefix('share_'): line for name, line in shares.items()}
        found.append(Panel('gradient shares', note, 'share', lines, limits=(0.0, 1.04)))
    if ratios:
        note = 'distance to the own teacher feature over that to others'
        found.append(Panel('r per tap', note, 'ratio', {_tap(name, opt): line for name, line in ratios.items()}, True))
    found += [Panel(name, 'as it is logged', name, {name: line}, True) for name, line in curves.items()]
    if rates:
        found.append(Panel('learning rate', 'of the optimizer', 'learning rate', rates))
    if weights := changing_weights(opt):
        found.append(Panel('weights', 'of losses, those that change, to the end of the run', 'weight', weights))
    borders = [*accumulate(length for length, _ in _stages(opt))][:-1]
    return [replace(panel, borders=borders) for panel in found]


def _stages(opt: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Iterations and ``train`` of each stage; of a run without stages its own."""
    stages = opt['train'].get('stages') or [{'iterations': opt['train'].get('total_iter', 0)}]
    return [(stage['iterations'], laid_over(dict(opt), stage)['train']) for stage in stages]


def changing_weights(opt: Mapping[str, Any]) -> dict[str, Curve]:
    """The weights of losses that change in a run, by schedule or from stage to stage: by their place in the file, of
    each stage the values of a hundred iterations."""
    curves: dict[str, Curve] = {}
    begin = 0
    for length, train_opt in _stages(opt):
        iterations = sorted({max(1, round(part * length / DRAWN)) for part in range(DRAWN + 1)})
        for place, weight in weights_of(train_opt):
            curves.setdefault(place, {}).update({begin + done: value_at(weight, done) for done in iterations})
        begin += length
    return {place: curve for place, curve in curves.items() if len({*curve.values()}) > 1}


def _meaning(name: str, opt: Mapping[str, Any]) -> str:
    """What a loss term is and, where the options say it, the range of images that its scale is of."""
    meaning = MEANINGS.get(name, 'distillation loss' if 'teacher' in opt else 'loss')
    ranges = {loss_blocks(own.get('distill_opt')).get('', {}).get('img_range') for _, own in _stages(opt)}
    img_range = ranges.pop() if len(ranges) == 1 else None  # of a loss alone, the same in all stages
    return meaning if img_range is None else f'{meaning}, of images in [0, {img_range:g}]'


def _unit(metric: str, opt: Mapping[str, Any]) -> str:
    block = ((opt.get('val') or {}).get('metrics') or {}).get(metric) or {}
    return 'dB' if 'psnr' in str(block.get('type')) else metric


def _tap(name: str, opt: Mapping[str, Any]) -> str:
    """``r_1`` with the modules that the first tap reads."""
    taps, position = opt.get('taps') or [], name.rpartition('r_')[2]
    if not position.isdecimal() or not 1 <= int(position) <= len(taps):
        return name
    tap = taps[int(position) - 1]
    of_teachers = tap['teacher'] if isinstance(tap['teacher'], list) else [tap['teacher']]
    return f'{name}: {tap["student"]} → {" and ".join(of_teachers)}'


WARNINGS = 20  # that are shown
TIME = '%Y-%m-%d %H:%M:%S'


def page(run: RunFolder, results: Results) -> str:
    """The page as text. Whatever comes from options and log is escaped; nothing is loaded from elsewhere."""
    warnings = run.metrics.warnings
    return TEMPLATES.get_template('page.html').render(
        colors=COLORS,
        run=run,
        title=run.opt['name'],
        summary=summary(run.opt),
        status=status(run),
        key_figures=key_figures(run, results),
        panels=panels(run.metrics, run.opt),
        svg=svg,
        described=described,
        table=results.table,
        validation=_validation_table(run) if run.metrics.validation else None,
        results=results,
        others=directions(results.others),
        checkpoint=_checkpoint(run),
        warnings=warnings[-WARNINGS:],
        warning_count=len(warnings),
        environment=_environment(run),
        written=f'{datetime.now():{TIME}}',
        versions=versions(),
    )


def summary(opt: Mapping[str, Any]) -> str:
    """What is trained, in a line."""
    student = f'{opt["network_g"]["type"]}, x{opt["scale"]}'
    blocks_of_teachers = teacher_blocks(opt.get('teacher')).values()
    taught_by = [(own.get('network') or {}).get('type') or Path(own['weights']).name for own in blocks_of_teachers]
    if taught_by:
        blocks = (own for _, train_opt in _stages(opt) for own in loss_blocks(train_opt.get('distill_opt')).values())
        losses = dict.fromkeys(str(own.get('type')) for own in blocks)
        return f'{student}, taught by {" and ".join(taught_by)} with {" and ".join(losses) or opt["model_type"]}'
    return f'{student}, {opt["model_type"]} without a teacher'


def status(run: RunFolder) -> str:
    """How far the run is and how it ended."""
    session, total = run.sessions[-1], run.opt['train']['total_iter']
    done = f'{run.iteration:,} of {total:,} iterations'
    if not session.end:
        return f'{done}; it continues, or was killed. The last line of its metrics is of {session.ended:{TIME}}.'
    return f'{done}; {session.end}' + ('' if session.end.endswith('.') else '.')


def key_figures(run: RunFolder, results: Results) -> list[tuple[str, str, str]]:
    """The first validation set's PSNR-Y, the networks' sizes, and what training took: title, value, what to compare it
    with."""
    sizes = {method.name: method.parameters for method in results.methods if method.net is not None}
    found = []
    for student in (method.name for method in results.methods if is_student(method)):
        for name, mean in list(results.mean.get(student, {}).items())[:1]:
            others = {
                key: own[name]['psnr_y'] for key, own in results.mean.items() if key == BICUBIC or is_teacher(key)
            }
            against = [f'{mean["psnr_y"] - value:+.2f} to {key}' for key, value in others.items()]
            found.append((f'PSNR-Y on {name}', f'{mean["psnr_y"]:.2f} dB', ', '.join(against)))
        of_teachers = {name: size for name, size in sizes.items() if is_teacher(name)}
        notes = [f'{sizes[student] / size:.1%} of the {size:,} of the {name}' for name, size in of_teachers.items()]
        found.append(('Parameters', f'{sizes[student]:,}', ', '.join(notes)))
    found.append(('Iterations', f'{run.iteration:,}', f'of {run.opt["train"]["total_iter"]:,}'))
    seconds = run.metrics.seconds_per_iter
    ms = '' if seconds is None else f'{1000 * seconds:.0f} ms an iteration'
    found.append(('Training time', duration(run.duration.total_seconds()), ms))
    return found


def _validation_table(run: RunFolder) -> tuple[list[str], list[list[str]]]:
    """What validation in training found: the best and the last value of every set and metric."""
    metrics = (run.opt['val'] or {}).get('metrics') or {}
    rows = []
    for name, curves in run.metrics.validation.items():
        for metric, curve in curves.items():
            sign = -1 if (metrics.get(metric) or {}).get('better', 'higher') == 'lower' else 1
            known = [iteration for iteration, value in curve.items() if not math.isnan(value)]
            best, last = max(known or curve, key=lambda iteration: sign * curve[iteration]), max(curve)
            rows.append([f'{metric} on {name}', f'{curve[best]:.4f}', f'{best:,}', f'{curve[last]:.4f}', f'{last:,}'])
    return ['', 'best', 'at iteration', 'last', 'at iteration'], rows


def _checkpoint(run: RunFolder) -> str:
    """Which weights were scored."""
    if run.checkpoint is None:
        return ''
    when = '' if run.checkpoint_iteration is None else f', of iteration {run.checkpoint_iteration:,}'
    return f'{run.checkpoint.name}{when}, SHA-256 {sha256_of(run.checkpoint)}'


FACTS = {'command': 'Command', 'commit': 'Commit', 'versions': 'Versions', 'machine': 'Machine', 'ranks': 'Ranks'}


def _environment(run: RunFolder) -> list[tuple[str, str]]:
    """Term and text of where and when it ran."""
    found = [('Folder', str(run.path.resolve()))]
    for number, session in enumerate(run.sessions, start=1):
        when = f'{session.began:{TIME}} to {session.ended:{TIME}}, iterations {session.first:,} to {session.last:,}'
        title = f'Session {number}' if len(run.sessions) > 1 else 'Time'
        found.append((title, f'{when}; {session.end or "without an end: it continues, or was killed"}'))
    for key, term in FACTS.items():
        values = [str(session.facts[key]) for session in run.sessions if key in session.facts]
        if values:
            found.append((term, '; '.join(dict.fromkeys(values))))
    return found
