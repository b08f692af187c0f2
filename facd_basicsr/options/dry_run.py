"""Builds what an option file describes without memory or data, to find values that its classes refuse."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from basicsr.archs import build_network

from facd_basicsr.errors import UserError
from facd_basicsr.losses import build_loss
from facd_basicsr.options.keys import OPTIMIZERS, SCHEDULERS


def dry_run(opt: dict[str, Any], is_train: bool) -> None:
    """Constructs networks on the meta device, losses, optimizer and scheduler from a checked option dict.

    Raises:
        UserError: a class refuses its options, with the block's name and what the class said.
    """
    for key in [key for key in opt if key.startswith('network_') and key != 'network_r']:
        _build(key, opt[key])
    if not is_train:
        return
    if 'network' in opt.get('teacher', {}):
        _build('teacher.network', opt['teacher']['network'])
    # Not perceptual_opt: it downloads a VGG when it is built, a distillation loss only when it is prepared.
    for key in ('distill_opt', 'pixel_opt'):
        if opt['train'].get(key) is not None:
            with _refusals(f'train.{key}'):
                build_loss(opt['train'][key])
    parameters = [torch.zeros(1, requires_grad=True)]
    with _refusals('train.optim_g'):
        optim_opt = opt['train']['optim_g']
        optimizer = OPTIMIZERS[optim_opt['type']](parameters, **_arguments(optim_opt))
    with _refusals('train.scheduler'):
        scheduler_opt = opt['train']['scheduler']
        SCHEDULERS[scheduler_opt['type']](optimizer, **_arguments(scheduler_opt))


def _build(where: str, network_opt: dict[str, Any]) -> None:
    with _refusals(where), torch.device('meta'):
        build_network(network_opt)


def _arguments(block: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key != 'type'}


@contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Says in whose block a constructor failed. Its own words are all there is to say what it accepts."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'{where}: its class does not take these values ({type(error).__name__}: {reason})') from error
