"""Key layouts of EDSR and RCAN checkpoints: BasicSR's, and those of the networks' authors.

    edsr-pytorch  https://github.com/sanghyun-son/EDSR-PyTorch, src/model/edsr.py
    rcan          https://github.com/yulunzhang/RCAN, RCAN_TestCode/code/model/rcan.py; EDSR-PyTorch's RCAN has it too

The networks compute the same. The authors' work on images in [0, 255], or [0, rgb_range], and keep the mean's
subtraction and addition in the checkpoint, as 1x1 convolutions ``sub_mean`` and ``add_mean``, which RCAN's own code
trains; BasicSR's work on [0, 1], with ``img_range`` and ``rgb_mean`` as arguments. ``res_scale`` is an argument of
both, and in no checkpoint.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from facd_basicsr.errors import UserError

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
IMG_RANGES = (1.0, 255.0, 65535.0)
DARKEST = 0.05  # a set of photographs has a mean above it
LARGEST_CONDITION = 1e3  # of sub_mean's matrix, so that float32 inverts it to four digits
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
COLOR_MAPS = ('sub_mean', 'add_mean')
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
    """Renames the keys of an official state dict, and folds ``sub_mean`` and ``add_mean`` into it if they were trained.

    Otherwise no value changes.

    Args:
        state_dict: in the layout ``layout``, one of ``edsr-pytorch`` and ``rcan``.

    Returns:
        The state dict without ``sub_mean`` and ``add_mean``, and what BasicSR's network subtracts and adds in their
        place, (3,), which is its ``img_range * rgb_mean``; None if they are not in it.

    Raises:
        UserError: a key is not of that layout, or ``sub_mean`` cannot be inverted.
    """
    own = {key: value for key, value in state_dict.items() if key.rpartition('.')[0] not in COLOR_MAPS}
    accepted = f'the layout {layout}; accepted: the network as published'
    converted, maps = _renamed(own, MODULES[layout], {}, where, accepted), _color_maps(state_dict, where)
    if not maps:
        return converted, None
    if not trained_color_maps(state_dict):
        return converted, maps['add_mean.bias']
    return _folded(converted, maps, where)


def trained_color_maps(state_dict: dict[str, Tensor]) -> bool:
    """Whether ``sub_mean`` or ``add_mean`` of an official state dict do more than to subtract and add one color."""
    maps = {name: [state_dict.get(f'{name}.{leaf}') for leaf in ('weight', 'bias')] for name in COLOR_MAPS}
    (sub_weight, sub_bias), (add_weight, add_bias) = maps.values()
    if sub_weight is None or sub_bias is None or add_weight is None or add_bias is None:
        return False
    identity = torch.eye(3).view(3, 3, 1, 1)
    plain = all(torch.equal(weight.float(), identity) for weight in (sub_weight, add_weight))
    return not (plain and torch.equal(sub_bias, -add_bias))


def image_range(shift: Tensor) -> float | None:
    """``img_range``, if what a network subtracts, (3,), tells it: the color mean of photographs is inside [0, 1]."""
    largest = shift.max().item()
    return next((img_range for img_range in IMG_RANGES if DARKEST * img_range < largest <= img_range), None)


def from_basicsr(state_dict: dict[str, Tensor], layout: str, shift: Tensor, where: str) -> dict[str, Tensor]:
    """The reverse of :func:`to_basicsr`.

    Args:
        state_dict: an EDSR's for ``edsr-pytorch`` or an RCAN's for ``rcan``, in BasicSR's layout.
        shift: what ``sub_mean`` subtracts and ``add_mean`` adds, (3,): the network's ``img_range * rgb_mean``.

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


def _color_maps(state_dict: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """``sub_mean`` and ``add_mean``, both or neither."""
    found = {key: value.float() for key, value in state_dict.items() if key.rpartition('.')[0] in COLOR_MAPS}
    missing = {f'{name}.{leaf}' for name in COLOR_MAPS for leaf in ('weight', 'bias')} - found.keys()
    if found and missing:
        raise UserError(f'{where}: {min(missing)} is missing; accepted: sub_mean and add_mean, both or neither')
    return found


def _folded(converted: dict[str, Tensor], maps: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], Tensor]:
    """The network with any affine color maps in its first and last convolution, and its ``img_range * rgb_mean``.

    sub_mean(x) = A x + b = A (x - m) with m = -A^-1 b. Subtracting this m, and no other, leaves no constant to be put
    into conv_first's bias, which would count at the borders, too, where conv_first's padding is zero after sub_mean.
    """
    weights = [maps[f'{name}.weight'].double().squeeze() for name in COLOR_MAPS]
    bias_in, bias_out = (maps[f'{name}.bias'].double() for name in COLOR_MAPS)
    if any(weight.shape != (3, 3) for weight in weights) or torch.linalg.cond(weights[0]) > LARGEST_CONDITION:
        raise UserError(f'{where}: sub_mean.weight maps colors to fewer; accepted: a matrix of 3 x 3 with an inverse')
    weight_in, weight_out = weights
    m = -torch.linalg.solve(weight_in, bias_in)
    first, last = converted['conv_first.weight'], converted['conv_last.weight']
    folded = {
        'conv_first.weight': torch.einsum('fchw,cd->fdhw', first.double(), weight_in),
        'conv_last.weight': torch.einsum('dc,cfhw->dfhw', weight_out, last.double()),
        'conv_last.bias': weight_out @ converted['conv_last.bias'].double() + bias_out - m,
    }
    return converted | {key: value.to(first.dtype) for key, value in folded.items()}, m.float()
