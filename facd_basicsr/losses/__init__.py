"""Distillation losses, registered in BasicSR's ``LOSS_REGISTRY`` by being imported."""

from .distill_loss import DistillLoss
from .distill_state import DistillState
from .facd_loss import FACDLoss

__all__ = ['DistillLoss', 'DistillState', 'FACDLoss']
