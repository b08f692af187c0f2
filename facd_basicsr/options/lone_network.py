"""A network block that no checked option file surrounds, and that somebody else may have written."""

import math
import os
import re
from typing import Any

from basicsr.archs import build_network
from torch import nn

from facd_basicsr.errors import UserError
from facd_basicsr.options.check import check_network
from facd_basicsr.options.dry_run import construct

WORD = re.compile(r'[\w+-]{0,64}')  # an activation's name, an upsampler's


def check_lone_network(where: str, network_opt: dict[str, Any], scale: int) -> None:
    """Checks a network's ``type`` and arguments, and that it is built without any other file.

    BasicSR's SpyNet, for one, loads whatever file ``load_path`` names, and runs the code that is in it.

    Args:
        where: what names the block, for messages.
        network_opt: the block.
        scale: upscaling factor.

    Raises:
        UserError: the class or an argument is unknown, or an argument is not a number, true, false, a word that is no
            file's name, nothing, or a list of numbers.
    """
    check_network(where, network_opt, scale)
    for key, value in network_opt.items():
        if not (_is_number(value) or _is_word(value) or _is_list_of_numbers(value) or value is None):
            raise UserError(
                f'{where}.{key}: {str(value)[:80]!r}; accepted: a number, true or false, a list of numbers, or a word '
                'that is no file'
            )


def build_lone_network(where: str, network_opt: dict[str, Any], scale: int) -> nn.Module:
    """The network, checked.

    Raises:
        UserError: as of :func:`check_lone_network`, or its class refuses the values.
    """
    check_lone_network(where, network_opt, scale)
    return construct(where, network_opt, build_network)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < math.inf  # which NaN is not


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and WORD.fullmatch(value) is not None and not os.path.lexists(value)


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(item) or _is_list_of_numbers(item) for item in value)
