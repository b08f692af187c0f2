"""Re-parameterization: blocks of linear branches in training, of one convolution each in inference.

    ECB      of BasicSR's ECBSR; Zhang et al., "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile
             Devices", ACM MM 2021
    Conv3XC  of spandrel's SPAN; Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution",
             CVPRW 2024

and each of another class that has ``switch_to_deploy()``, the convention of RepVGG
(https://github.com/DingXiaoH/RepVGG, repvgg.py). BasicSR and spandrel 0.4.2 have no others, but SparsePLKConv2d of an
ablation of PLKSR (``lk_type: SparsePLK``): its dilated kernels would be one dense kernel of 17x17, with a third more
parameters and, on a CPU, 1.4 times the time, so it stays as it is.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from basicsr.archs.ecbsr_arch import ECBSR
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from torch import Tensor, nn


@runtime_checkable
class Deployable(Protocol):
    """A block by RepVGG's convention."""

    def switch_to_deploy(self) -> object:
        """Fuses it in place."""


def fused_blocks(net: nn.Module) -> Counter[str]:
    """How many blocks of a network fuse, by the name of their class; empty where none does."""
    return Counter(type(m).__name__ for m in net.modules() if _fusion_of(m) or isinstance(m, Deployable))


def reparameterized(net: nn.Module) -> nn.Module:
    """A copy in eval mode whose blocks are one convolution each, and its activation; the same network where none fuses.

    The same output but for rounding, at the borders too. Paths of modules stay, but for those inside of a block.
    """
    return _fused(copy.deepcopy(net).eval(), {}) if fused_blocks(net) else net


def with_training_branches(net: nn.Module) -> nn.Module:
    """A copy in eval mode whose blocks run their branches, as in training; the network itself where none fuses.

    In eval mode ECB and Conv3XC fuse themselves anew in every forward, which nobody would count.
    """
    if not fused_blocks(net):
        return net
    net = copy.deepcopy(net).eval()
    for module in net.modules():
        if _fusion_of(module):
            module.training = True  # of the block alone: an activation may be random in training
    return net


def as_compact(net: nn.Module) -> SRVGGNetCompact | None:
    """An ECBSR as the SRVGGNetCompact that its re-parameterization is; None for another network, or activation.

    ReLU is a PReLU with slopes of 0, so that spandrel, which knows this network with PReLU alone, opens it.
    """
    if type(net) is not ECBSR:
        return None
    ecbsr: Any = net  # PyTorch's types of attributes are of no help
    *body, last = ecbsr.backbone
    slopes = [slope for slope in map(_negative_slopes, body) if slope is not None]
    if len(slopes) < len(body):
        return None
    with torch.device('meta'):  # which draws no random numbers
        compact = SRVGGNetCompact(
            num_in_ch=ecbsr.num_in_ch,
            num_out_ch=last.out_channels // ecbsr.scale**2,
            num_feat=last.in_channels,
            num_conv=len(body) - 1,
            upscale=ecbsr.scale,
        )
    state_dict: dict[str, Tensor] = {}
    for index, block in enumerate(ecbsr.backbone):
        weight, bias = _ecb_kernel(block)
        dtype = block.conv3x3.weight.dtype
        state_dict |= {f'body.{2 * index}.weight': weight.to(dtype), f'body.{2 * index}.bias': bias.to(dtype)}
    state_dict |= {f'body.{2 * index + 1}.weight': slope for index, slope in enumerate(slopes)}
    compact.load_state_dict(state_dict, assign=True)
    return compact.eval().requires_grad_(False)


def _negative_slopes(block: Any) -> Tensor | None:
    """An ECB's activation as the slopes of a PReLU, (out_channels,), where it is one in eval mode."""
    if block.act_type == 'prelu':
        return block.act.weight.detach()
    slope = {'relu': 0.0, 'rrelu': 0.0, 'linear': 1.0}.get(block.act_type)  # rrelu: the mean of -0.05 and 0.05
    return None if slope is None else block.conv3x3.weight.new_full((block.out_channels,), slope)


def _fusion_of(module: nn.Module) -> Callable[[Any], nn.Module] | None:
    """By this very class: one derived from it may add anything."""
    return FUSIONS.get(f'{type(module).__module__}.{type(module).__qualname__}')


def _fused(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module with its blocks fused. ``done``: those that are, for a module may have several places."""
    if module not in done:
        fuse = _fusion_of(module)
        if fuse is not None:
            done[module] = fuse(module)
            return done[module]
        done[module] = module
        if isinstance(module, Deployable):
            module.switch_to_deploy()
        for name, child in [*module._modules.items()]:  # named_children() leaves out a module's second name
            if child is not None:
                setattr(module, name, _fused(child, done))
    return done[module]


def _fused_ecb(block: Any) -> nn.Module:
    conv = _conv(*_ecb_kernel(block), block.conv3x3)
    if block.act_type == 'linear':
        return conv
    return nn.Sequential(OrderedDict(conv3x3=conv, act=block.act)).eval()


def _ecb_kernel(block: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64.

    Between its two convolutions each branch is padded with the first one's bias, which is what the first makes of
    zeros: so the fused convolution is the same at the borders, too.
    """
    weight, bias = block.conv3x3.weight.detach().double(), block.conv3x3.bias.detach().double()
    expand = block.conv1x1_3x3
    k0, b0, k1, b1 = (value.detach().double() for value in (expand.k0, expand.b0, expand.k1, expand.b1))
    weight = weight + torch.einsum('omhw,mi->oihw', k1, k0[:, :, 0, 0])
    bias = bias + k1.sum((2, 3)) @ b0 + b1
    for edge in (block.conv1x1_sbx, block.conv1x1_sby, block.conv1x1_lpl):
        k0, b0, b1 = (value.detach().double() for value in (edge.k0, edge.b0, edge.bias))
        k1 = (edge.scale.detach().double() * edge.mask.double())[:, 0]  # (out_channels, 3, 3), of depthwise convolution
        weight = weight + torch.einsum('ohw,oi->oihw', k1, k0[:, :, 0, 0])
        bias = bias + k1.sum((1, 2)) * b0 + b1
    if block.with_idt:
        weight[:, :, 1, 1] += torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    return weight, bias


def _fused_conv3xc(block: Any) -> nn.Module:
    """Its input is padded before the first convolution, so that no bias is missing at the borders."""
    (w1, b1), (w2, b2), (w3, b3), (ws, bs) = (
        (conv.weight.detach().double(), conv.bias.detach().double()) for conv in (*block.conv, block.sk)
    )
    weight = torch.einsum('om,mnhw,ni->oihw', w3[:, :, 0, 0], w2, w1[:, :, 0, 0])
    weight[:, :, 1, 1] += ws[:, :, 0, 0]
    bias = w3[:, :, 0, 0] @ (w2.sum((2, 3)) @ b1 + b2) + b3 + bs
    conv = _conv(weight, bias, block.sk)
    if not block.has_relu:
        return conv
    return nn.Sequential(OrderedDict(eval_conv=conv, act=nn.LeakyReLU(0.05))).eval()


def _conv(weight: Tensor, bias: Tensor, like: nn.Conv2d) -> nn.Conv2d:
    """A convolution with these values in the type of ``like``, its stride, and the padding that keeps the size."""
    c_out, c_in, size, _ = weight.shape
    stride = like.stride[0]
    conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, device='meta')
    dtype = like.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype).contiguous(), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return conv.eval()


# By the class's name, for spandrel need not be installed
FUSIONS: dict[str, Callable[[Any], nn.Module]] = {
    'basicsr.archs.ecbsr_arch.ECB': _fused_ecb,
    'spandrel.architectures.SPAN.__arch.span.Conv3XC': _fused_conv3xc,
}
