"""Batches on their way to the device."""

from typing import Any

from basicsr.models.sr_model import SRModel


def feed_without_waiting(self: SRModel, data: dict[str, Any]) -> None:
    """As ``SRModel.feed_data``, but that copies from pinned memory are not waited for."""
    self.lq = data['lq'].to(self.device, non_blocking=True)
    if 'gt' in data:
        self.gt = data['gt'].to(self.device, non_blocking=True)
