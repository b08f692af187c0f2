"""Builds what an option file describes without memory or data, to find values that its classes refuse."""

import math
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from basicsr.archs import build_network
from torch import nn

from facd_basicsr.archs import build_without_weights
from facd_basicsr.distill.teacher import is_cached, teacher_blocks
from facd_basicsr.errors import UserError, one_line
from facd_basicsr.losses.loss_sum import LossSum
from facd_basicsr.options.option_check import check_network, named_losses
from facd_basicsr.options.schema import SCHEDULERS, optimizers

Block = dict[str, Any]
PROBE_CHANNELS = 64  # of network_r, whose real ones are read off the taps


def dry_run(opt: Block, is_train: bool) -> None:
    """Constructs networks without their weights, losses, optimizer and scheduler from a checked option dict.

    Raises:
        UserError: a class refuses its options, with the key or the block, and the class's error.
    """
    for key in [key for key in opt if key.startswith('network_')]:
        channels: Block = {'num_in_ch': PROBE_CHANNELS, 'num_out_ch': PROBE_CHANNELS} if key == 'network_r' else {}
        construct(key, opt[key], partial(_network, **channels))
    if not is_train:
        return
    for place, own in teacher_blocks(opt.get('teacher')).items():
        if 'network' in own:
            construct(f'{place}.network', own['network'], _network)
    # Not perceptual_opt: it downloads a VGG when it is built, a distillation loss only when it is prepared.
    for key in ('distill_opt', 'pixel_opt'):
        for where, block in named_losses(key, opt['train'][key]) if opt['train'].get(key) else ():
            loss = construct(where, block, LossSum)
            if is_cached(opt.get('teacher')):
                _check_cached(f'{where}.type: {block["type"]}', loss)
            if 'teacher' in loss.networks and 'teacher' not in opt and key == 'distill_opt':
                raise UserError(
                    f'teacher: missing, and {where}.type: {block["type"]} reads it; accepted: as in '
                    'options/train/FACD_EDSR_x2.yml'
                )
    # all together, for their names and averages
    LossSum(opt['train'].get('distill_opt'), opt['train'].get('pixel_opt'))
    for key in ('optim_d', 'optim_g'):
        if opt['train'].get(key):
            optimizer = construct(f'train.{key}', opt['train'][key], _optimizer)
    construct('train.scheduler', opt['train']['scheduler'], lambda block: _scheduler(block, optimizer))


def _check_cached(where: str, loss: LossSum) -> None:
    read = ['features'] * loss.reads_features
    read += [f'output on its view {name}' for name, view in loss.views.items() if 'teacher' in view.networks]
    if read:
        raise UserError(
            f"teacher.cache: true, but {where} reads the teacher's {read[0]}; accepted: false, or losses that read its "
            'output on LQ alone'
        )


def construct(where: str, block: Block, build: Callable[[Block], Any]) -> Any:
    """``build(block)``, with the block's name in errors. Only the class's own error says what it accepts.

    Raises:
        UserError: it fails, whatever its class raises.
    """
    try:
        return build(block)
    except UserError:
        raise
    except Exception as error:
        reason = f'{type(error).__name__}: {one_line(error)}'
        of_value = not isinstance(error, OSError)  # others are of a file, whatever the values
        for key in [key for key in block if of_value and key != 'type']:
            if _builds({k: v for k, v in block.items() if k != key}, build):
                raise UserError(f'{where}.{key}: {block[key]!r}; not accepted by {block["type"]} ({reason})') from error
        raise UserError(f'{where}: {block["type"]} does not take these values ({reason})') from error


def _builds(block: Block, build: Callable[[Block], Any]) -> bool:
    try:
        build(block)
    except Exception:
        return False
    return True


def _network(block: Block, **channels: Any) -> nn.Module:
    return build_without_weights({**block, **channels})


def _optimizer(block: Block) -> torch.optim.Optimizer:
    return optimizers()[block['type']]([torch.zeros(1, requires_grad=True)], **_arguments(block))


def _scheduler(block: Block, optimizer: torch.optim.Optimizer) -> Any:
    return SCHEDULERS[block['type']](optimizer, **_arguments(block))


def _arguments(block: Block) -> Block:
    return {key: value for key, value in block.items() if key != 'type'}


WORD = re.compile(r'[\w+-]{0,64}')  # an activation's name, an upsampler's


def check_lone_network(where: str, network_opt: dict[str, Any], scale: int) -> None:
    """Checks a network's ``type`` and arguments, and that it is built without any other file.

    BasicSR's SpyNet, for one, loads whatever file ``load_path`` names, and runs the code that is in it.

    Raises:
        UserError: the class or an argument is unknown, or an argument is not a number, true, false, a word that is no
            file's name, nothing, or a list of these.
    """
    check_network(where, network_opt, scale)
    for key, value in network_opt.items():
        if not (_is_number(value) or _is_word(value) or _is_list(value) or value is None):
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


def _is_list(value: Any) -> bool:
    """Of numbers; of nothing, as GRL's ``stripe_groups``; of words, as FDAT's ``group_block_pattern``."""
    return isinstance(value, list) and all(
        _is_number(item) or _is_word(item) or _is_list(item) or item is None for item in value
    )
