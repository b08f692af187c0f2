"""Distillation losses, registered in BasicSR's ``LOSS_REGISTRY`` by being imported.

Each is ``loss(state: DistillState) -> dict[str, Tensor]``. Entries named ``l_*`` are weighted terms, and their sum
is minimised; the others are monitored only and carry no gradient.
"""

from .distill_state import DistillState
from .facd_loss import FACDLoss

__all__ = ['DistillState', 'FACDLoss']
