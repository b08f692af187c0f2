"""The sizes that a network takes are found, and images of all others are padded by reflection."""

import pytest
import torch
from basicsr.archs import build_network
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from facd_basicsr.runtime.size_requirements import Padded, SizeRequirements, size_requirements

RGB = {'num_in_ch': 3, 'num_out_ch': 3}
SWINIR = {'type': 'SwinIR', 'embed_dim': 4, 'depths': [2], 'num_heads': [2], 'upscale': 2}


class Windows(nn.Module):
    """Upscales images whose height and width are multiples of ``side``, no less than ``least``; a flip in each window
    of that side makes the output depend on all of it."""

    def __init__(self, side: int, least: int = 1, scale: int = 2) -> None:
        super().__init__()
        self.side, self.least, self.scale = side, least, scale
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.least or any(size % self.side for size in x.shape[2:]):
            raise RuntimeError('not of windows')
        windows = x.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side))  # (N, C, rows, side, columns, side)
        flipped = windows.flip(3, 5).flatten(4, 5).flatten(2, 3) * self.weight
        return flipped.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


def test_an_image_is_reflected_at_bottom_and_right():
    lq = torch.tensor([[[[1.0, 2, 3], [4, 5, 6]]]])
    padded = [[1, 2, 3, 2], [4, 5, 6, 5], [1, 2, 3, 2], [1, 2, 3, 2]]  # the last row by repetition: there are but two
    assert SizeRequirements(4, 4).pad(lq)[0, 0].tolist() == padded
    assert SizeRequirements(1, 4).pad(lq)[0, 0].tolist() == padded
    assert SizeRequirements(1, 2).pad(lq) is lq


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 3))
def test_the_output_of_a_padded_network_is_of_the_images_size(height, width, side, scale):
    lq = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(0))
    sizes = SizeRequirements(side, side)
    net = Windows(side, scale=scale)
    sr = Padded(net, scale, sizes)(lq)
    assert torch.equal(sr, net(sizes.pad(lq))[:, :, : height * scale, : width * scale])
    assert sr.shape == (1, 2, height * scale, width * scale)


@given(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64]), st.sampled_from([1, 3, 9, 40]))
def test_a_windows_side_and_the_least_size_are_found(side, least):
    found = size_requirements(Windows(side, least), 3, 2)
    assert found.multiple_of == side
    assert found.minimum == -(-least // side) * side


@pytest.mark.parametrize(
    ('network', 'scale', 'expected'),
    [
        ({'type': 'EDSR', **RGB, 'num_feat': 4, 'num_block': 1, 'upscale': 3}, 3, (1, 1)),
        ({'type': 'RRDBNet', **RGB, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 2, 'scale': 4}, 4, (1, 1)),
        ({'type': 'RRDBNet', **RGB, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 2, 'scale': 2}, 2, (2, 2)),
        ({'type': 'RRDBNet', **RGB, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 2, 'scale': 1}, 1, (4, 4)),
        ({**SWINIR, 'window_size': 8, 'upsampler': 'pixelshuffledirect'}, 2, (8, 8)),
        ({**SWINIR, 'window_size': 7, 'img_size': 28, 'upsampler': 'pixelshuffle'}, 2, (7, 7)),
        (  # its kernels are made on the CPU, so that it does not run on the meta device
            {
                'type': 'ECBSR',
                **RGB,
                'num_block': 1,
                'num_channel': 4,
                'with_idt': False,
                'act_type': 'prelu',
                'scale': 2,
            },
            2,
            (1, 1),
        ),
    ],
)
def test_sizes_of_basicsrs_networks(network, scale, expected):
    net = build_network(network)
    before, state = [p.clone() for p in net.parameters()], torch.get_rng_state()
    assert size_requirements(net, 3, scale) == SizeRequirements(*expected)
    assert net.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(before, net.parameters()))
    lq = torch.rand(1, 3, 13, 18)
    assert Padded(net.eval(), scale, SizeRequirements(*expected))(lq).shape == (1, 3, 13 * scale, 18 * scale)


@pytest.mark.parametrize('net', [Windows(1, scale=3), Windows(67), nn.Linear(2, 2)], ids=['other scale', 'large', 'no'])
def test_nothing_is_required_by_a_network_that_is_refused_anyway(net):
    assert size_requirements(net, 3, 2) == SizeRequirements()


def test_an_output_of_another_scale_is_not_cropped():
    assert Padded(Windows(4, scale=3), 2, SizeRequirements(4, 4))(torch.rand(1, 3, 5, 5)).shape == (1, 3, 24, 24)
