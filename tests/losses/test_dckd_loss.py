from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from states import images, random_state, save_vgg, with_views

from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillState
from facd_basicsr.losses.base import Average
from facd_basicsr.losses.dckd_loss import DCKDLoss, l1_to_own, with_noised


def flat(*values: float) -> torch.Tensor:
    """Images of one color: (N, 3, 2, 2)."""
    return images(*values).expand(-1, 3, 2, 2)


def dckd(features: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], **options: Any) -> DCKDLoss:
    """The loss with ``features`` in the place of its VGG."""
    loss = DCKDLoss(**options)
    loss.features = features
    return loss


def literal(anchor: torch.Tensor, positive: torch.Tensor, negatives: list[torch.Tensor]) -> torch.Tensor:
    """One layer of the released code's ContrasLoss.L1_forward."""
    d_ap = torch.mean(torch.abs(anchor - positive))
    d_an = torch.mean(torch.abs(anchor - torch.stack(negatives)).sum(0))
    return d_ap / (d_an + 1e-7)


def test_terms_equal_values_worked_by_hand():
    views = {
        'augmented': {'teacher': flat(0.2, 0.6)},  # of inverted inputs: undone 0.8 and 0.4
        'noised': {'average': flat(0.5, 0.3, 0.8, 1.3)},  # two of each sample
    }
    state = DistillState(
        flat(0.6, 0.9), flat(0.8, 0.6), flat(0.5, 0.5), flat(0.5, 0.1), (), (), seeds=(0, 1), views=views
    )
    loss = dckd(lambda x: (x, 10 * x), lambda_=3, layer_weights=(1, 0.5), img_range=2, num_negatives=1, probability=1)
    logs = loss(state)
    assert list(logs) == ['l_sr', 'l_logits', 'l_consistency', 'l_contrast', 'r_1', 'r_2']
    assert logs['l_sr'].item() == pytest.approx(2 * (0.1 + 0.4) / 2)
    assert logs['l_logits'].item() == pytest.approx(2 * (0.2 + 0.3) / 2)
    assert logs['l_consistency'].item() == pytest.approx(2 * (0.2 + 0.5) / 2)
    # positives 0.2, 0.3; negatives 0.1 + 0.3 and 0.1 + 0.4: the same ratio in both layers
    assert logs['l_contrast'].item() == pytest.approx(3 * 1.5 * 0.25 / 0.45)
    assert logs['r_1'].item() == pytest.approx(0.25 / 0.225)
    assert logs['r_2'].item() == pytest.approx(0.25 / 0.225)


def test_the_contrast_equals_the_released_codes_in_value_and_gradient():
    loss = dckd(lambda x: (x, x.tanh()[:, :, ::2]), layer_weights=(0.3, 0.7), lambda_=1)
    state = with_views(loss, random_state(n=3))
    negatives = list(state.views['noised']['average'].unflatten(0, (3, 5)).unbind(1))
    ours = loss(state)['l_contrast']
    theirs = sum(
        w * literal(f(state.student), f(state.teacher), [f(x) for x in negatives])
        for w, f in ((0.3, lambda x: x), (0.7, lambda x: x.tanh()[:, :, ::2]))
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, state.student), torch.autograd.grad(theirs, state.student))


def test_distances_to_a_samples_own_negatives_are_worked_by_hand():
    found = l1_to_own(images(0.0, 1.0), images(0.1, 0.2, 0.5, 0.9))
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.2], [0.5, 0.1]]))


def test_the_average_sees_lq_and_noised_copies_of_it_in_range():
    state = replace(random_state(n=50), lq=torch.full((50, 3, 16, 16), 0.5))
    found = with_noised(state, 4)
    assert found.shape == (250, 3, 16, 16) and found.min() >= 0 and found.max() <= 1
    own = found.unflatten(0, (50, 5))
    assert torch.equal(own[:, 0], state.lq)
    noise = own[:, 1:] - 0.5
    sigma = noise.flatten(2).std(2)  # (50, 4), of 768 numbers each, or 256
    assert 1 / 255 * 0.9 < sigma.min() < 3 / 255 and 27 / 255 < sigma.max() < 30 / 255 * 1.1
    assert sigma.mean().item() == pytest.approx(15.5 / 255, rel=0.1)  # 200 of them: 0.6 / 255 is a deviation
    is_gray = (noise[:, :, 0] == noise[:, :, 1]).flatten(2).all(2)
    assert is_gray.float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert len({*sigma.flatten().tolist()}) > 190  # of each copy its own


def test_noise_is_clipped():
    state = replace(random_state(n=4), lq=torch.ones(4, 3, 16, 16))
    assert with_noised(state, 4).max() == 1


def test_without_noised_copies_the_only_negative_is_lqs():
    state = random_state(n=2)
    assert torch.equal(with_noised(state, 0), state.lq)


def test_views_of_a_batch_are_those_of_its_parts():
    loss, state = dckd(lambda x: (x,), layer_weights=(1.0,)), random_state(n=4)
    parts = [replace(state, lq=state.lq[i : i + 2], seeds=state.seeds[i : i + 2]) for i in (0, 2)]
    for view in loss.views.values():
        assert torch.equal(view.derive(state), torch.cat([view.derive(part) for part in parts]))


def test_a_teacher_that_commutes_with_every_augmentation_gives_consistent_targets():
    loss, state = dckd(lambda x: (x,), layer_weights=(1.0,)), random_state(n=8)
    lq = loss.views['augmented'].derive(state)
    assert sum(not torch.equal(a, b) for a, b in zip(lq, state.lq)) > 4
    teacher, of_view = (x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in (state.lq, lq))
    views = {**with_views(loss, state).views, 'augmented': {'teacher': of_view}}
    logs = loss(replace(state, teacher=teacher, views=views))
    torch.testing.assert_close(logs['l_consistency'], logs['l_logits'])


def test_it_asks_for_teacher_and_average_without_further_passes_of_the_student():
    loss = DCKDLoss(decay=0.3, every=50)
    assert loss.reads == ('student', 'teacher')
    assert {name: view.networks for name, view in loss.views.items()} == {
        'augmented': ('teacher',),
        'noised': ('average',),
    }
    assert loss.average == Average(0.3, 50)


def test_the_defaults_are_the_released_codes():
    loss = DCKDLoss()
    assert loss.layer_weights == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
    assert (loss.lambda_, loss.num_negatives, loss.probability, loss.eps) == (0.1, 4, 0.5, 1e-7)
    assert loss.average == Average(0.1, 1000)


def test_the_vgg_of_csd_is_loaded_and_images_that_are_none_for_it_are_refused(tmp_path: Path):
    loss = DCKDLoss(layer_weights=[1, 1], vgg_weights=str(save_vgg(tmp_path / 'vgg.pth', depth=2)))
    state = with_views(loss, random_state(n=1, dtype=torch.float32))  # one sample is enough
    with pytest.raises(RuntimeError, match=r'DCKDLoss: prepare\(\)'):
        loss(state)
    assert torch.isfinite(loss.prepare()(state)['l_contrast'])
    with pytest.raises(UserError, match=r'network_g: gives 1 channels; accepted: 3, for the features of DCKDLoss'):
        loss(with_views(loss, DistillState(*[torch.rand(1, 1, 4, 4)] * 3, torch.rand(1, 1, 2, 2), (), ())))
