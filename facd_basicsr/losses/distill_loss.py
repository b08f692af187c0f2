"""The one contract of distillation losses."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from facd_basicsr.losses.distill_state import DistillState

REGRESSOR = ('always', 'auto', 'never')


class DistillLoss(nn.Module, ABC):
    """A function of a :class:`DistillState`, and what it needs the model to provide.

    Attributes:
        min_batch: the smallest batch, over all ranks, that it is defined for.
        reads_features: whether it needs taps; a loss of images takes none.
        compares_channels: whether student and teacher features must have the same width when it sees them.
        regressor: which taps' student features the model passes through a regressor before the loss sees them:
            ``always``, ``auto`` (only where student and teacher differ in width) or ``never``.
    """

    min_batch: int = 1
    reads_features: bool = True
    compares_channels: bool = True
    regressor: str = 'never'

    def prepare(self) -> 'DistillLoss':
        """Loads what it needs beyond its options; the model calls it once, before ``to()`` and the first forward.

        Not part of construction, which must stay cheap: it is how an option file is checked (options/dry_run.py).
        """
        return self

    @abstractmethod
    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """Named scalars. Those called ``l_*`` are weighted terms, and their sum is minimised; others are monitored."""
