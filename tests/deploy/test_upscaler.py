import re
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from conftest import STUDENT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from facd_basicsr.archs import tail_in_tiles
from facd_basicsr.archs.reparameterization import fused_blocks
from facd_basicsr.archs.tail_in_tiles import InTiles, with_tail_in_tiles
from facd_basicsr.deploy.student import Description, Student, describe_network
from facd_basicsr.deploy.upscaler import CancelledError, Upscaler
from facd_basicsr.errors import UserError
from facd_basicsr.runtime.metrics import upscale

RCAN = {'type': 'RCANStudent', 'num_feat': 4, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 2, 'upscale': 2}


def student(block: dict, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return Student(build_network(block).eval().requires_grad_(False), describe_network(block, block['upscale']))


def student_of(net: nn.Module, scale: int) -> Student:
    return Student(net.eval().requires_grad_(False), Description('Net', {}, scale))


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def unseen(*_: int) -> None:
    """Takes the progress."""


class Nearest(nn.Module):
    """Repeats pixels, times 1.5, less 0.2; no kernel's order of sums comes into it."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2) * self.factor - 0.2


def blur() -> nn.Module:
    """Three 3x3 means, so that it looks 3 pixels far and much at each; then x2."""
    convs = [nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(3)]
    for conv in convs:
        nn.init.constant_(conv.weight, 1 / 27)
    return nn.Sequential(*convs, nn.Upsample(scale_factor=2))


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    block=st.sampled_from([STUDENT, RCAN]),
    upscale=st.sampled_from([2, 3, 4]),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    tile=st.integers(8, 40),
    tail=st.integers(3, 20),
)
def test_tiles_of_edsr_and_rcan_join_to_the_whole_image_but_for_rounding(
    seed, block, upscale, height, width, tile, tail
):
    found = student({**block, 'upscale': upscale}, seed)
    pixels = noise(height, width, 3, seed=seed)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_in_tiles, 'TAIL_TILE', tail)
        lq = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        whole = found.net(lq)
        torch.testing.assert_close(with_tail_in_tiles(found.net, upscale)(lq), whole, rtol=0, atol=2e-6)
        image = Upscaler(found, tile).upscale(pixels, unseen)
        level = (whole[0].permute(1, 2, 0).clamp(0, 1) * 255).numpy()
    sure = np.abs(level % 1 - 0.5) > 1e-3  # where 2e-6 of the range do not decide between two levels
    assert np.count_nonzero(~sure) <= 5 + 0.02 * sure.size  # a few by chance, of small images too
    assert np.array_equal(image[sure], level.round()[sure])
    assert image.shape == level.shape and np.abs(image - level).max() < 0.51


@pytest.mark.parametrize('tile', [16, 17])
def test_a_reach_one_pixel_too_small_would_be_seen(tile):
    pixels = noise(40, 50, 3, dtype=np.uint16)
    whole = Upscaler(student_of(blur(), 2), 0).upscale(pixels, unseen).astype(int)
    upscaler = Upscaler(student_of(blur(), 2), tile)
    assert np.abs(upscaler.upscale(pixels, unseen) - whole).max() <= 1
    upscaler._reach -= 1
    assert np.abs(upscaler.upscale(pixels, unseen) - whole).max() > 20


def test_a_reach_of_the_tail_one_pixel_too_small_would_be_seen(monkeypatch):
    monkeypatch.setattr(tail_in_tiles, 'TAIL_TILE', 8)
    found = student(RCAN)
    net = with_tail_in_tiles(found.net, 2)
    lq = torch.rand(1, 3, 20, 30)
    torch.testing.assert_close(net(lq), found.net(lq), rtol=0, atol=2e-6)
    assert isinstance(net.upsample, InTiles)
    net.upsample._reach -= 1
    assert (net(lq) - found.net(lq)).abs().max() > 1e-4


def test_a_network_with_its_tail_in_tiles_has_the_same_parameters_and_the_student_is_left_as_it_was():
    found = student(RCAN)
    net = with_tail_in_tiles(found.net, 2)
    assert {id(parameter) for parameter in net.parameters()} == {id(p) for p in found.net.parameters()}
    assert not net.training and isinstance(found.net.conv_last, nn.Conv2d)


class Activated(EDSR):
    """EDSR with an activation between upsampler and last convolution, which moving the latter would pass over."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_first(x)
        features = self.conv_after_body(self.body(features)) + features
        return self.conv_last(nn.functional.leaky_relu(self.upsample(features), -1))


def test_a_network_derived_from_edsr_gives_what_its_own_forward_says():
    torch.manual_seed(0)
    net = Activated(3, 3, num_feat=4, num_block=1, upscale=2, img_range=1.0).eval()
    pixels = noise(20, 30, 3)
    with torch.inference_mode():
        own = net(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
    for tile in (0, 8, None):
        image = Upscaler(student_of(net, 2), tile).upscale(pixels, unseen)
        assert np.abs(image - (own.clamp(0, 1) * 255).numpy()).max() < 0.51
    assert own.std() > 0.05


def test_a_network_without_a_reach_runs_whole_images():
    net = nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 12, 1), nn.PixelShuffle(2))
    upscaler, numbers = Upscaler(student_of(net, 2), 8), []
    upscaler.upscale(noise(20, 20, 3), lambda *number: numbers.append(number))
    assert upscaler.tile == 0 and numbers == [(1, 1)]


def test_windows_run_in_tiles_of_any_image_with_less_than_a_step_of_difference():
    swinir = {'type': 'SwinIR', 'embed_dim': 8, 'depths': [2, 2], 'num_heads': [2, 2], 'window_size': 7, 'upscale': 2}
    found = student({**swinir, 'img_size': 28, 'upsampler': 'pixelshuffledirect'})
    pixels = noise(67, 101, 3)
    upscaler, numbers = Upscaler(found, 30), []
    image = upscaler.upscale(pixels, lambda *number: numbers.append(number))
    assert upscaler.tile == 35 and numbers[-1] == (6, 6)  # 2 x 3 tiles, of windows of 7
    assert re.fullmatch(
        r'SwinIR in tiles with 21 pixels around each, at 35 pixels 4.8 times the arithmetic; on photographs they '
        r'differ from the whole image by at most \S+ of an 8-bit step',
        upscaler.seams,
    )
    whole = Upscaler(found, 0)
    assert whole.seams is None
    assert np.abs(image.astype(int) - whole.upscale(pixels, unseen)).max() <= 1
    assert image.shape == (134, 202, 3)


def test_tiles_are_counted():
    numbers = []
    Upscaler(student_of(blur(), 2), 16).upscale(noise(20, 40, 3), lambda *number: numbers.append(number))
    assert numbers == [(number, 6) for number in range(1, 7)]


def test_an_eight_bit_image_is_rounded_as_evaluation_does():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    found = student_of(Nearest(), 2)
    image = Upscaler(found).upscale(pixels, unseen)
    assert np.array_equal(image[:, :, ::-1], upscale(found.net, pixels[:, :, ::-1]))
    assert image.min() == 0 and image.max() == 255 and len(np.unique(image)) > 100


def test_sixteen_bits_are_never_rounded_to_eight():
    ramp = np.linspace(10000, 50000, 40 * 40).astype(np.uint16).reshape(40, 40, 1)
    image = Upscaler(student_of(Nearest(), 2)).upscale(ramp, unseen)
    assert image.dtype == np.uint16 and len(np.unique(image)) > 1500
    assert np.abs(image[::2, ::2] - (ramp * 1.5 - 0.2 * 65535).clip(0, 65535)).max() < 1


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_gray_is_the_luma_of_what_three_equal_channels_give(dtype):
    found = student(STUDENT)
    gray = noise(9, 11, 1, dtype=dtype)
    colors = Upscaler(found).upscale(np.repeat(gray, 3, axis=2), unseen)
    luma = colors @ np.array([0.299, 0.587, 0.114])
    assert np.abs(Upscaler(found).upscale(gray, unseen)[:, :, 0] - luma).max() <= 1


@pytest.mark.parametrize('channels', [2, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_alpha_stays_within_what_is_near_and_a_constant_one_as_it_is(channels, dtype):
    top = np.iinfo(dtype).max
    pixels = noise(12, 14, channels, dtype=dtype)
    pixels[:, :, -1] = top
    pixels[:, :5, -1] = 0
    upscaler = Upscaler(student(STUDENT), 8)
    image = upscaler.upscale(pixels, unseen)
    assert image.shape == (24, 28, channels) and image.dtype == dtype
    assert (image[:, :8, -1] == 0).all() and (image[:, 12:, -1] == top).all()  # all but the pixels at the edge
    assert np.array_equal(image[:, :, :-1], upscaler.upscale(pixels[:, :, :-1], unseen))
    for value in (0, 7, top):
        pixels[:, :, -1] = value
        assert (upscaler.upscale(pixels, unseen)[:, :, -1] == value).all()


@pytest.mark.parametrize('channels', [3, 4])
def test_an_image_takes_the_memory_of_its_own_size_once(channels):
    pixels = noise(100, 100, channels, dtype=np.uint16)
    upscaler = Upscaler(student_of(Nearest(), 2), 16)
    tracemalloc.start()  # of numpy's arrays; torch's are tiles
    image = upscaler.upscale(pixels, unseen)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < image.nbytes + 2 * pixels.nbytes


def test_what_other_threads_run_is_cancelled_inside_the_network():
    found = student(STUDENT)
    upscaler = Upscaler(found)
    upscaler._net.net.body[1].register_forward_hook(lambda *_: upscaler.cancel())
    upscaler._net.net.body[2].register_forward_hook(lambda *_: pytest.fail('continued'))
    with pytest.raises(CancelledError):
        upscaler.upscale(noise(8, 8, 3), unseen)


def test_a_lack_of_memory_is_told_from_other_errors(monkeypatch):
    upscaler = Upscaler(student(STUDENT))
    cases = {
        'DefaultCPUAllocator: cannot allocate memory': MemoryError,
        'cuDNN error: CUDNN_STATUS_ALLOC_FAILED': MemoryError,
        'a bug': RuntimeError,
    }
    for said, error in cases.items():
        monkeypatch.setattr(upscaler, '_output', lambda *_, said=said: (_ for _ in ()).throw(RuntimeError(said)))
        with pytest.raises(error):
            upscaler.upscale(noise(8, 8, 3), unseen)


def test_an_error_that_is_kept_keeps_no_features():
    features = []

    class TooLarge(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            held = x + 1
            features.append(weakref.ref(held))
            raise RuntimeError('cannot allocate memory')

    with pytest.raises(MemoryError) as kept:
        Upscaler(student_of(TooLarge(), 2), 0).upscale(noise(8, 8, 3), unseen)
    assert kept.value.__cause__ is not None and features and all(feature() is None for feature in features)


@pytest.mark.parametrize(
    ('block', 'tile', 'advice'),
    [
        (STUDENT, None, 'a --tile smaller than 512'),
        (STUDENT, 0, 'no --tile 0'),
        (RCAN, 8, r'another student \(--tile does not help, RCAN needs whole images\)'),
        (RCAN, 0, 'no --tile 0'),  # its tail would be in tiles
    ],
)
def test_what_takes_less_memory_is_true_of_the_network(block, tile, advice):
    assert re.fullmatch(advice, Upscaler(student(block), tile).less_memory)


def test_a_network_of_one_channel_is_refused():
    gray = student({'type': 'EDSR', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_block': 1, 'upscale': 2})
    with pytest.raises(UserError, match=r'--student: num_in_ch: 1; accepted: a network of color images, 3'):
        Upscaler(gray)


def test_a_student_that_fuses_runs_fused_and_stays_as_it_is():
    block = {
        'type': 'ECBSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1, 'num_channel': 8, 'with_idt': False,
        'act_type': 'prelu', 'scale': 2,
    }  # fmt: skip
    torch.manual_seed(0)
    found = Student(build_network(block).eval().requires_grad_(False), describe_network(block, 2))
    upscaler, pixels = Upscaler(found, 16), noise(20, 40, 3)
    assert fused_blocks(found.net) == {'ECB': 3} and not fused_blocks(upscaler._net)
    with torch.inference_mode():
        level = found.net(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).clamp(0, 1) * 255
    assert np.abs(upscaler.upscale(pixels, unseen) - level.numpy()).max() < 0.51
