"""Key layouts of EDSR and RCAN checkpoints: BasicSR's, and those of the networks' authors.

    edsr-pytorch  https://github.com/sanghyun-son/EDSR-PyTorch, src/model/edsr.py
    rcan          https://github.com/yulunzhang/RCAN, RCAN_TestCode/code/model/rcan.py; EDSR-PyTorch's RCAN has it too

The networks compute the same. The authors' work on images in [0, 255] and keep the mean's subtraction and addition in
the checkpoint, as 1x1 convolutions ``sub_mean`` and ``add_mean``; BasicSR's work on [0, 1], with ``img_range`` and
``rgb_mean`` as arguments. ``res_scale`` is an argument of both, and in no checkpoint.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from facd_basicsr.errors import UserError

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
LAYOUTS = ('basicsr', 'edsr-pytorch', 'rcan')

# (authors' module, BasicSR's module). The authors append the last convolution to the sequence of blocks or groups:
# its index, {n} or {m}, is their number.
TRUNK = (
    ('head.0', 'conv_first'),
    ('body.{n}', 'conv_after_body'),
    ('tail.0.{k}', 'upsample.{k}'),
    ('tail.1', 'conv_last'),
)
MODULES = {
    'edsr-pytorch': (
        *TRUNK,
        ('body.{i}.body.0', 'body.{i}.conv1'),
        ('body.{i}.body.2', 'body.{i}.conv2'),
    ),
    'rcan': (
        *TRUNK,
        ('body.{i}.body.{j}.body.0', 'body.{i}.residual_group.{j}.rcab.0'),
        ('body.{i}.body.{j}.body.2', 'body.{i}.residual_group.{j}.rcab.2'),
        ('body.{i}.body.{j}.body.3.conv_du.0', 'body.{i}.residual_group.{j}.rcab.3.attention.1'),
        ('body.{i}.body.{j}.body.3.conv_du.2', 'body.{i}.residual_group.{j}.rcab.3.attention.3'),
        ('body.{i}.body.{m}', 'body.{i}.conv'),
    ),
}
BASICSR_TRUNK = ('conv_first.weight', 'conv_after_body.weight', 'conv_last.weight')  # MSRResNet lacks the second
OFFICIAL_TRUNK = ('head.0.weight', 'tail.1.weight')
SIGNS = {
    ('basicsr', 'EDSR'): (*BASICSR_TRUNK, 'body.0.conv1.weight'),
    ('basicsr', 'RCAN'): (*BASICSR_TRUNK, 'body.0.residual_group.0.rcab.0.weight'),
    ('edsr-pytorch', 'EDSR'): (*OFFICIAL_TRUNK, 'body.0.body.0.weight'),
    ('rcan', 'RCAN'): (*OFFICIAL_TRUNK, 'body.0.body.0.body.3.conv_du.0.weight'),
}


def recognize(state_dict: dict[str, Tensor]) -> tuple[str, str] | None:
    """(layout, network) of an EDSR's or RCAN's state dict, such as ('rcan', 'RCAN'), or None for any other."""
    return next((found for found, keys in SIGNS.items() if state_dict.keys() >= set(keys)), None)


def to_basicsr(state_dict: dict[str, Tensor], layout: str, where: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """Renames the keys of an official state dict. No value changes.

    Args:
        state_dict: in the layout ``layout``, one of ``edsr-pytorch`` and ``rcan``.
        where: the option or file that it is from, for messages.

    Returns:
        The state dict without ``sub_mean`` and ``add_mean``, and what these subtract and add, (3,), which is the
        network's ``img_range * rgb_mean``; None if they are not in it.

    Raises:
        UserError: a key is not of that layout, or ``sub_mean`` and ``add_mean`` do what BasicSR's networks cannot.
    """
    own = {key: value for key, value in state_dict.items() if key.rpartition('.')[0] not in ('sub_mean', 'add_mean')}
    accepted = f'the layout {layout}; accepted: the network as published'
    return _renamed(own, MODULES[layout], {}, where, accepted), _mean_shift(state_dict, where)


def from_basicsr(state_dict: dict[str, Tensor], layout: str, shift: Tensor, where: str) -> dict[str, Tensor]:
    """The reverse of :func:`to_basicsr`.

    Args:
        state_dict: an EDSR's for ``edsr-pytorch`` or an RCAN's for ``rcan``, in BasicSR's layout.
        layout: ``edsr-pytorch`` or ``rcan``.
        shift: what ``sub_mean`` subtracts and ``add_mean`` adds, (3,): the network's ``img_range * rgb_mean``.
        where: the option or file that it is from, for messages.

    Raises:
        UserError: a key is not of BasicSR's network.
    """
    modules = [(basicsr, official) for official, basicsr in MODULES[layout]]
    counts = {'n': _count(state_dict, r'body\.(\d+)\.'), 'm': _count(state_dict, r'body\.0\.residual_group\.(\d+)\.')}
    converted = {}
    for mean, sign in (('sub_mean', -1), ('add_mean', 1)):
        converted[f'{mean}.weight'] = torch.eye(3).view(3, 3, 1, 1)
        converted[f'{mean}.bias'] = sign * shift
    accepted = "BasicSR's layout; accepted: BasicSR's network, unchanged"
    return converted | _renamed(state_dict, modules, counts, where, accepted)


def network_block(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of BasicSR's EDSR or RCAN that the shapes of a state dict in BasicSR's layout determine.

    ``res_scale``, ``img_range`` and ``rgb_mean`` cannot be read off it.

    Raises:
        ValueError: it is neither's.
    """
    recognized = recognize(state_dict)
    if recognized is None:
        raise ValueError('neither an EDSR nor an RCAN')
    first, last = state_dict['conv_first.weight'], state_dict['conv_last.weight']
    num_feat = first.shape[0]
    block: dict[str, Any] = {
        'type': recognized[1],
        'num_in_ch': first.shape[1],
        'num_out_ch': last.shape[0],
        'num_feat': num_feat,
        'num_block': _count(state_dict, r'body\.(\d+)\.'),
    }
    if block['type'] == 'RCAN':
        hidden = state_dict['body.0.residual_group.0.rcab.3.attention.1.weight'].shape[0]
        block['num_group'] = block['num_block']
        block['num_block'] = _count(state_dict, r'body\.0\.residual_group\.(\d+)\.')
        block['squeeze_factor'] = num_feat // hidden
    upsampling = [value.shape[0] // num_feat for key, value in state_dict.items() if key.startswith('upsample.')]
    steps = upsampling[: len(upsampling) // 2]  # a weight and a bias for each step
    block['upscale'] = 3 if 9 in steps else 2 ** len(steps)
    return block


def _renamed(
    state_dict: dict[str, Tensor], modules: Iterable[tuple[str, str]], counts: dict[str, int], where: str, accepted: str
) -> dict[str, Tensor]:
    """The state dict with every module, such as ``body.{i}.conv1``, under its new name; ``counts`` are {n} and {m}."""
    patterns = [(re.sub(r'\\{(\w)\\}', r'(?P<\1>\\d+)', re.escape(old)), new) for old, new in modules]
    renamed = {}
    for key, value in state_dict.items():
        module, _, leaf = key.rpartition('.')
        name = next(
            (new.format(**counts, **m.groupdict()) for p, new in patterns if (m := re.fullmatch(p, module))), None
        )
        if name is None:
            raise UserError(f'{where}: key {key!r} is not in {accepted}')
        renamed[f'{name}.{leaf}'] = value
    return renamed


def _count(state_dict: dict[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})


def _mean_shift(state_dict: dict[str, Tensor], where: str) -> Tensor | None:
    """What ``add_mean`` adds, (3,), after checking that it inverts ``sub_mean`` and does nothing else."""
    found = {key: value.float() for key, value in state_dict.items() if key.startswith(('sub_mean.', 'add_mean.'))}
    if not found:
        return None
    missing = {f'{name}.{leaf}' for name in ('sub_mean', 'add_mean') for leaf in ('weight', 'bias')} - found.keys()
    if missing:
        raise UserError(f'{where}: {min(missing)} is missing; accepted: sub_mean and add_mean, both or neither')
    identity = torch.eye(3).view(3, 3, 1, 1)
    plain = all(torch.equal(found[f'{name}.weight'], identity) for name in ('sub_mean', 'add_mean'))
    if not (plain and torch.equal(found['sub_mean.bias'], -found['add_mean.bias'])):
        raise UserError(
            f'{where}: sub_mean and add_mean scale the colors or do not undo each other; accepted: rgb_std of 1, as '
            "BasicSR's networks know no other"
        )
    return found['add_mean.bias']
