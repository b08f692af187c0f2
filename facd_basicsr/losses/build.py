"""From an option block to a loss."""

import keyword
from typing import Any

from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn


def build_loss(loss_opt: dict[str, Any]) -> nn.Module:
    """Builds a registered loss from its option block.

    As BasicSR's ``build_loss``, except that a key which is a Python keyword (``lambda``) is passed with an
    underscore (``lambda_``).
    """
    kwargs = {key + '_' * keyword.iskeyword(key): value for key, value in loss_opt.items() if key != 'type'}
    return LOSS_REGISTRY.get(loss_opt['type'])(**kwargs)
