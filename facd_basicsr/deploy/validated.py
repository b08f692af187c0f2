"""What the log of a training says of the quality of its checkpoints."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facd_basicsr.errors import UserError
from facd_basicsr.experiment.run_folder import run_of


def psnr_of(checkpoint: Path) -> dict[str, float]:
    """{set: PSNR-Y in dB} of ``experiments/NAME/models/net_g_*.pth``, as far as the run's log says it for certain.

    Of ``net_g_latest`` and ``net_g_best`` it has their validation. Of a numbered checkpoint it has the iteration if it
    is a set's best so far. Empty for other files, where no metric of the run is ``calculate_psnr`` with
    ``test_y_channel``, and where the run can't be read. Figures that are not finite are left out.
    """
    try:
        run = run_of(checkpoint, 'CHECKPOINT')
    except UserError:
        return {}
    metric = None if run is None else _psnr_y(run.opt)
    if run is None or metric is None:
        return {}
    name = checkpoint.stem.removeprefix('net_g_')
    if name.isdecimal():
        bests = {set_name: figures.get(metric, (math.nan, None)) for set_name, figures in run.log.best.items()}
        found = {set_name: value for set_name, (value, iteration) in bests.items() if iteration == int(name)}
    else:
        saved = run.log.saved.get(name, {})
        found = {set_name: figures[metric] for set_name, figures in saved.items() if metric in figures}
    return {set_name: value for set_name, value in found.items() if math.isfinite(value)}


def _psnr_y(opt: Mapping[str, Any]) -> str | None:
    """The name of the metric that is PSNR-Y; the first if there are several."""
    metrics = (opt.get('val') or {}).get('metrics') or {}
    found = (name for name, opt in metrics.items() if opt.get('type') == 'calculate_psnr' and opt.get('test_y_channel'))
    return next(found, None)
