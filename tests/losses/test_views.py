"""Random numbers of samples, and augmentations with their inverses."""

import pytest
import torch
from basicsr.utils.matlab_functions import imresize
from states import random_state

from facd_basicsr.losses.base import DistillState
from facd_basicsr.losses.views import augmented, downscaled, drawn_augmentations, generators, undone


def seeded(*seeds: int, size: tuple[int, int] = (4, 4)) -> DistillState:
    lq = torch.zeros(len(seeds), 3, *size)
    none = torch.empty(0)
    return DistillState(none, none, none, lq, (), (), seeds=seeds)


def test_numbers_depend_on_the_seed_of_the_sample_and_on_their_purpose_alone():
    def drawn(purpose: str, *seeds: int) -> list[float]:
        return [torch.rand((), generator=own).item() for own in generators(seeded(*seeds), purpose)]

    whole = drawn('a', 7, 8, 9)
    assert whole == [*drawn('a', 7), *drawn('a', 8, 9)]
    assert len({*whole, *drawn('b', 7, 8, 9)}) == 6
    before = torch.get_rng_state()
    drawn('a', 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_operation_is_drawn_with_its_probability():
    drawn = drawn_augmentations(seeded(*range(4000)), 'a', 0.3).float().mean(0)
    torch.testing.assert_close(drawn, torch.full((4,), 0.3), atol=0.03, rtol=0)  # 4 standard errors


def test_several_images_of_a_sample_have_draws_of_their_own_wherever_the_sample_is():
    whole = drawn_augmentations(seeded(7, 8, 9), 'a', 0.5, count=3)
    parts = [drawn_augmentations(seeded(*seeds), 'a', 0.5, count=3) for seeds in ((7,), (8, 9))]
    assert whole.shape == (9, 4) and torch.equal(whole, torch.cat(parts))
    drawn = drawn_augmentations(seeded(*range(50)), 'a', 0.5, count=3).unflatten(0, (50, 3))
    assert (drawn[:, 0] != drawn[:, 1]).any(1).sum() > 40  # of 16 combinations


def test_patches_that_are_not_square_are_not_transposed():
    assert not drawn_augmentations(seeded(*range(50), size=(4, 6)), 'a', 1.0)[:, -1].any()


def test_an_image_is_inverted_flipped_and_transposed_in_this_order():
    image = torch.tensor([[0.0, 0.1], [0.2, 0.3]])[None, None]

    def of(*operations: bool) -> torch.Tensor:
        return augmented(image, torch.tensor([operations]))[0, 0]

    torch.testing.assert_close(of(True, False, False, False), torch.tensor([[1.0, 0.9], [0.8, 0.7]]))
    assert torch.equal(of(False, True, False, False), torch.tensor([[0.1, 0.0], [0.3, 0.2]]))
    assert torch.equal(of(False, False, True, False), torch.tensor([[0.2, 0.3], [0.0, 0.1]]))
    assert torch.equal(of(False, False, False, True), torch.tensor([[0.0, 0.2], [0.1, 0.3]]))
    assert torch.equal(of(False, True, False, True), torch.tensor([[0.1, 0.3], [0.0, 0.2]]))  # flipped first


def test_every_combination_is_undone_on_the_upscaled_image_too():
    combinations = torch.cartesian_prod(*[torch.tensor([False, True])] * 4)
    images = torch.rand(16, 3, 4, 4, dtype=torch.float64)
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(undone(augmented(images, combinations), combinations), images)
    upscaled = augmented(images, combinations).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(undone(upscaled, combinations), larger)


def test_a_flat_image_stays_flat_when_downscaled_and_what_is_over_is_cut_off():
    small = downscaled(torch.full((2, 3, 7, 9), 0.4), 2)
    torch.testing.assert_close(small, torch.full((2, 3, 3, 4), 0.4))


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_downscaling_is_the_one_that_made_lq_but_for_the_border(scale):
    image = torch.rand(3, 48, 48)
    expected = imresize(image, 1 / scale)[None, :, 3:-3, 3:-3]
    torch.testing.assert_close(downscaled(image[None], scale)[..., 3:-3, 3:-3], expected, atol=1e-6, rtol=0)


def test_downscaling_of_a_ramp_is_the_ramp_at_the_centers_of_the_new_pixels():
    ramp = torch.arange(32.0).expand(1, 1, 32, 32) / 32
    inner = downscaled(ramp, 4)[0, 0, 4, 2:-2]
    torch.testing.assert_close(inner, (torch.arange(2.0, 6.0) * 4 + 1.5) / 32)


def test_a_state_without_seeds_has_numbers_too():
    assert len(generators(random_state(n=3), 'a')) == 3
