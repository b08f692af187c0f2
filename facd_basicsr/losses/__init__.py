"""Distillation losses, registered in BasicSR's ``LOSS_REGISTRY`` by being imported."""

import importlib
from pathlib import Path

from .base import DistillLoss, DistillState, build_loss
from .facd_loss import FACDLoss

for _file in sorted(Path(__file__).parent.glob('*_loss.py')):
    importlib.import_module(f'{__name__}.{_file.stem}')

__all__ = ['DistillLoss', 'DistillState', 'FACDLoss', 'build_loss']
