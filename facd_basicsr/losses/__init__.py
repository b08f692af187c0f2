"""Distillation losses, registered in BasicSR's ``LOSS_REGISTRY`` by being imported."""

from .build import build_loss
from .distill_loss import DistillLoss
from .distill_state import DistillState
from .facd_loss import FACDLoss

__all__ = ['DistillLoss', 'DistillState', 'FACDLoss', 'build_loss']
