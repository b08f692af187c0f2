import pytest
import torch
from basicsr.archs import build_network
from conftest import STUDENT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from facd_basicsr.errors import UserError
from facd_basicsr.runtime.metrics import photograph_input
from facd_basicsr.runtime.size_requirements import SizeRequirements, size_requirements
from facd_basicsr.runtime.tiling import (
    overlap_without_seams,
    receptive_field_radius,
    tiled,
)

RCAN = {'type': 'RCANStudent', 'num_feat': 4, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 2, 'upscale': 2}


class Shuffled(nn.Sequential):
    """Convolutions, then x2."""

    def __init__(self, *convolutions: nn.Module) -> None:
        super().__init__(*convolutions, nn.Conv2d(2, 12, 1), nn.PixelShuffle(2))


def test_the_reach_is_that_of_the_convolutions():
    # 1 and 2, 5 x 3 and dilated by 3: 1 + 2 + 3 pixels along the height, 1 + 1 + 3 along the width
    net = Shuffled(
        nn.Conv2d(3, 2, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2, 2, (5, 3), padding=(2, 1)),
        nn.Conv2d(2, 2, 3, padding=3, dilation=3),
    )
    assert receptive_field_radius(net, 3, 2, 16) == 6
    assert receptive_field_radius(Shuffled(nn.Conv2d(3, 2, 1)), 3, 2, 16) == 0
    assert receptive_field_radius(Shuffled(nn.Conv2d(3, 2, (1, 101), padding=(0, 50))), 3, 2, 16) == 50


def test_the_reach_of_edsr_does_not_depend_on_its_weights():
    net = build_network({**STUDENT, 'upscale': 4})
    # conv_first, 3 blocks of 2, conv_after_body, the first of the upsampler: 9 pixels; then 1/2 and 1/4: in the next
    assert receptive_field_radius(net, 3, 4, 16) == 10
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert net.training and receptive_field_radius(net, 3, 4, 16) == 10


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(9, 60),
    width=st.integers(9, 60),
    tile=st.integers(8, 40),
    upscale=st.sampled_from([2, 3, 4]),
)
def test_tiles_join_to_the_whole_image(seed, height, width, tile, upscale):
    torch.manual_seed(seed)
    net = build_network({**STUDENT, 'upscale': upscale})
    lq = torch.rand(2, 3, height, width)
    with torch.no_grad():
        found = tiled(net, lq, upscale, tile, 10)
        assert found.shape == (2, 3, height * upscale, width * upscale)
        assert torch.allclose(found, net(lq), atol=2e-6)


def test_with_less_than_the_reach_there_are_seams():
    net = Shuffled(*(nn.Conv2d(channels, 2, 3, padding=1) for channels in (3, 2, 2)))
    reach = receptive_field_radius(net, 3, 2, 16)
    lq = torch.rand(1, 3, 24, 40)
    with torch.no_grad():
        assert torch.allclose(tiled(net, lq, 2, 16, reach), net(lq), atol=1e-6)
        assert not torch.allclose(tiled(net, lq, 2, 16, reach - 1), net(lq), atol=1e-6)


def test_a_network_that_looks_at_the_whole_image_is_refused_by_the_name_of_what_does():
    where = r'in body.0.residual_group.0.rcab.3.attention.0 \(AdaptiveAvgPool2d\)'
    message = rf'^val.tile: RCANStudent looks at the whole image, or farther than 512 pixels {where}; accepted for such'
    with pytest.raises(UserError, match=message):
        receptive_field_radius(build_network(RCAN), 3, 2, 32)


def test_a_network_that_looks_too_far_is_refused():
    far = Shuffled(nn.Conv2d(3, 2, (1, 1101), padding=(0, 550)))
    with pytest.raises(
        UserError, match=r'^val.tile: Shuffled looks at the whole image, or farther than 512 pixels in 0 '
    ):
        receptive_field_radius(far, 3, 2, 32)


class Checkered(nn.Module):
    """Has a pattern of its own, laid from the corner of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.arange(x.shape[3]).remainder(7)


def test_a_network_whose_output_depends_on_where_a_tile_begins_is_refused():
    with pytest.raises(UserError, match='has an output that depends on where a tile begins'):
        receptive_field_radius(Checkered(), 3, 1, 16)


class Windowed(nn.Module):
    """Sees 5 x 5 pixels at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] % 5 == 0
        return x * self.weight


class Even(nn.Module):
    """Halves the image and doubles it, with a reach of 3 that makes the sizes of tiles odd."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_shuffle(self.conv(nn.functional.pixel_unshuffle(x, 2)), 2)


@pytest.mark.parametrize('net', [Even(), Windowed()])
def test_a_network_that_does_not_take_tiles_of_every_size_is_refused(net):
    message = rf'val.tile: {type(net).__name__} does not run on tiles of every size \(.*\); accepted .* no val'
    with pytest.raises(UserError, match=message):
        receptive_field_radius(net, 3, 1, 16)


RRDBNET = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 2}
SWINIR = {'type': 'SwinIR', 'embed_dim': 4, 'depths': [2], 'num_heads': [2], 'window_size': 4, 'upscale': 2}


@pytest.mark.parametrize('network', [RRDBNET | {'scale': 2}, SWINIR | {'upsampler': 'pixelshuffledirect'}])
def test_tiles_aligned_with_windows_join_to_the_whole_image(network):
    torch.manual_seed(0)
    net = build_network(network).eval()
    sizes = size_requirements(net, 3, 2)
    reach = receptive_field_radius(net, 3, 2, 16, sizes)
    assert sizes.multiple_of > 1 and reach % sizes.multiple_of == 0
    lq = torch.rand(1, 3, 12 * sizes.multiple_of, 20 * sizes.multiple_of)
    with torch.no_grad():
        assert torch.allclose(tiled(net, lq, 2, 16, reach), net(lq), atol=2e-6)


def test_tiles_that_are_not_aligned_with_windows_are_refused():
    net = build_network(SWINIR | {'upsampler': 'pixelshuffledirect'})
    with pytest.raises(UserError, match=r'^val.tile: 18; accepted with SwinIR: a multiple of 4$'):
        receptive_field_radius(net, 3, 2, 18, size_requirements(net, 3, 2))


class Echo(nn.Module):
    """An image less ``strength`` of itself moved by ``distance`` pixels to the right, and again of it moved down."""

    def __init__(self, strength: float, distance: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))
        self.distance = distance

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        right = nn.functional.pad(x, (self.distance, 0))[:, :, :, :width]
        down = nn.functional.pad(x, (0, 0, self.distance, 0))[:, :, :height]
        return x - self.strength * (right + down)


@pytest.mark.parametrize(
    ('strength', 'distance', 'expected'),
    [(0.0, 20, 16), (0.001, 20, 16), (0.1, 20, 32), (0.1, 40, 64), (0.1, 70, None)],
)
def test_an_overlap_leaves_out_what_is_less_than_half_a_step_of_8_bits(strength, distance, expected):
    found = overlap_without_seams(Echo(strength, distance), 3, 1, SizeRequirements())
    assert (found and found[0]) == expected
    if strength == 0.001:
        assert 0 < found[1] <= 0.001  # the largest value of an image, times the strength
    elif found:
        assert found[1] < 1e-6


def test_no_overlap_is_enough_for_a_network_that_looks_at_the_whole_image():
    assert overlap_without_seams(build_network(RCAN).eval(), 3, 2, SizeRequirements()) is None


class OfHalfSize(nn.Conv2d):
    """Takes every size, and of an odd one makes halves of other pixels than of an even one, as SAFMN does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = nn.functional.adaptive_avg_pool2d(super().forward(x), (x.shape[2] // 2, x.shape[3] // 2))
        return nn.functional.interpolate(half, x.shape[2:])


def test_no_overlap_is_enough_for_a_network_that_does_otherwise_with_images_of_odd_size():
    net, lq = OfHalfSize(3, 3, 1), photograph_input('astronaut.png', 3, 48, 96)
    with torch.no_grad():
        assert torch.allclose(tiled(net, lq, 1, 48, 16), net(lq), atol=1e-6)
    assert overlap_without_seams(net, 3, 1, SizeRequirements()) is None


class ExplodesOnNoise(nn.Module):
    """A gain of 1 on photographs and of 1e30 on white noise, then sums that cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        roughness = nn.functional.avg_pool2d((x - nn.functional.avg_pool2d(x, 3, 1, 1)).abs(), 7, 1, 3)
        gain = (1 + nn.functional.relu(roughness.mean(1, keepdim=True) - 0.2)) ** 2000
        return nn.functional.pixel_shuffle(self.conv(gain * x), 2)


def test_a_network_that_explodes_on_noise_and_is_sound_on_photographs_runs_in_tiles():
    torch.manual_seed(0)
    assert receptive_field_radius(ExplodesOnNoise(), 3, 2, 16) == 1 + 3 + 2
