"""Which curves a training logged, and what they mean."""

import re
from collections.abc import Mapping
from typing import Any

from facd_basicsr.experiment.train_log import Curve, TrainLog
from facd_basicsr.report.curves import Panel

LOSSES, ALPHA, RATIOS, RATES = 'l_', 'alpha$', r'r_\d+$', r'lr(_\d+)?$'
MEANINGS = {'l_sr': 'image loss', 'l_pix': 'image loss', 'l_percep': 'perceptual loss', 'l_style': 'style loss'}


def panels(log: TrainLog, opt: Mapping[str, Any]) -> list[Panel]:
    """Validation first, then every loss term, ``alpha``, ``r_j`` of all taps in one, whatever else was logged, and the
    learning rate."""
    curves = dict(log.curves)

    def take(pattern: str) -> dict[str, Curve]:
        return {name: curves.pop(name) for name in list(curves) if re.match(pattern, name)}

    losses, alpha, ratios, rates = (take(pattern) for pattern in (LOSSES, ALPHA, RATIOS, RATES))
    found = [
        Panel(f'{metric} on {name}', 'validation', _unit(metric, opt), {metric: curve})
        for name, metrics in log.validation.items()
        for metric, curve in metrics.items()
    ]
    found += [Panel(name, _meaning(name, opt), 'weighted loss', {name: line}, True) for name, line in losses.items()]
    found += [
        Panel(name, 'share of the batch that is distilled', 'share', {name: line}, True, (0.0, 1.04))
        for name, line in alpha.items()
    ]
    if ratios:
        note = 'distance to the own teacher feature over that to others'
        found.append(Panel('r per tap', note, 'ratio', {_tap(name, opt): line for name, line in ratios.items()}, True))
    found += [Panel(name, 'as it is logged', name, {name: line}, True) for name, line in curves.items()]
    if rates:
        found.append(Panel('learning rate', 'of the optimizer', 'learning rate', rates))
    return found


def _meaning(name: str, opt: Mapping[str, Any]) -> str:
    """What a loss term is and, where the options say it, the range of images that its scale is of."""
    meaning = MEANINGS.get(name, 'distillation loss' if 'teacher' in opt else 'loss')
    img_range = (opt['train'].get('distill_opt') or {}).get('img_range')
    return meaning if img_range is None else f'{meaning}, of images in [0, {img_range:g}]'


def _unit(metric: str, opt: Mapping[str, Any]) -> str:
    block = ((opt.get('val') or {}).get('metrics') or {}).get(metric) or {}
    return 'dB' if 'psnr' in str(block.get('type')) else metric


def _tap(name: str, opt: Mapping[str, Any]) -> str:
    """``r_1`` with the modules that the first tap reads."""
    taps, position = opt.get('taps') or [], name.removeprefix('r_')
    if not position.isdecimal() or not 1 <= int(position) <= len(taps):
        return name
    tap = taps[int(position) - 1]
    return f'{name}: {tap["student"]} → {tap["teacher"]}'
