from dataclasses import replace

import pytest
import torch
from states import images, network, random_state, summed, with_views

from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillState, build_loss
from facd_basicsr.losses.dukd_loss import DUKDLoss, zoom_in
from facd_basicsr.losses.loss_sum import LossSum
from facd_basicsr.losses.views import augmented


def doubled(lq: torch.Tensor) -> torch.Tensor:
    """A network that commutes with every augmentation."""
    return lq.repeat_interleave(2, 2).repeat_interleave(2, 3)


def flat(value: float, size: int = 2) -> torch.Tensor:
    return torch.full((1, 1, size, size), value)


def views_of(loss: DUKDLoss, state: DistillState, **networks) -> DistillState:
    """The state with the loss's views by networks of the test."""
    views = {}
    for name, view in loss.views.items():
        lq = view.derive(state)
        views[name] = {'input': lq, **{own: networks[own](lq) for own in view.networks}}
    return replace(state, views=views)


def test_terms_equal_values_worked_by_hand():
    # one pixel of LQ, so each crop is a pixel of the ground truth, all 0.2; inverted: the student sees 0.8
    state = DistillState(flat(0.5), flat(0.4), flat(0.2), images(0.3), (), (), seeds=(0,))
    loss = DUKDLoss(probability=1, crops=2, img_range=10)
    state = views_of(loss, state, student=lambda x: doubled(x) / 2, teacher=lambda x: doubled(x) * 3)
    logs = loss(state)
    assert torch.equal(state.views['augmented']['input'], 1 - state.views['zoom_in']['input'])
    assert logs['l_sr'].item() == pytest.approx(10 * 0.3)
    assert logs['l_logits'].item() == pytest.approx(10 * 0.1)
    assert logs['l_zoom_in'].item() == pytest.approx(10 * (0.6 - 0.6), abs=1e-5)  # 1 - 0.8 / 2 and 0.2 * 3
    state = views_of(loss, state, student=lambda x: doubled(x) / 4, teacher=lambda x: doubled(x) * 3)
    assert loss(state)['l_zoom_in'].item() == pytest.approx(10 * (0.8 - 0.6))


def test_zooming_out_compares_with_lq_and_the_teacher():
    state = DistillState(flat(0.5, 4), flat(0.4, 4), flat(0.2, 4), flat(0.3), (), (), seeds=(0,))
    loss = DUKDLoss(zoom_out=True)
    logs = loss(views_of(loss, state, student=lambda x: doubled(x) + 0.1, teacher=lambda x: doubled(x) + 0.4))
    assert list(logs) == ['l_sr', 'l_logits', 'l_zoom_in', 'l_zoom_out_sr', 'l_zoom_out_logits']
    assert logs['l_zoom_out_sr'].item() == pytest.approx(0.1)
    assert logs['l_zoom_out_logits'].item() == pytest.approx(0.3)


def test_zooming_out_leaves_pixels_beyond_a_multiple_of_the_scale_out():
    loss = DUKDLoss(zoom_out=True)
    lq = torch.cat([flat(0.3, 2).expand(1, 1, 2, 2), torch.full((1, 1, 2, 1), 0.9)], dim=3)  # 2 x 3
    lq = torch.cat([lq, torch.full((1, 1, 1, 3), 0.9)], dim=2)
    state = DistillState(flat(0.5, 6), flat(0.4, 6), flat(0.2, 6), lq, (), (), seeds=(0,))
    assert loss(views_of(loss, state, student=doubled, teacher=doubled))['l_zoom_out_sr'].item() == pytest.approx(0)


def test_crops_are_aligned_parts_of_the_ground_truth_of_lqs_size_and_none_is_drawn_twice():
    gt = torch.arange(2 * 36.0).view(2, 1, 6, 6)
    state = DistillState(gt, gt, gt, torch.zeros(2, 1, 2, 2), (), (), seeds=(3, 4))
    parts = {sample: [gt[sample, :, i : i + 2, j : j + 2] for i in (0, 2, 4) for j in (0, 2, 4)] for sample in (0, 1)}
    crops = zoom_in(state, 9)
    assert crops.shape == (18, 1, 2, 2)
    for sample, own in enumerate(crops.split(9)):
        assert sorted(crop[0, 0, 0].item() for crop in own) == [part[0, 0, 0].item() for part in parts[sample]]
        assert all(any(torch.equal(crop, part) for part in parts[sample]) for crop in own)
    assert torch.equal(zoom_in(state, 2), torch.cat([own[:2] for own in crops.split(9)]))
    orders = {tuple(zoom_in(replace(state, seeds=(seed, seed)), 9)[:9, 0, 0, 0].tolist()) for seed in range(20)}
    assert len(orders) == 20


def test_more_crops_than_there_are_are_refused():
    state = random_state()
    with pytest.raises(UserError, match=r'^train.distill_opt.crops: 5; accepted: 4 or less, scale times scale$'):
        with_views(DUKDLoss(crops=5), state)


def test_a_student_that_commutes_with_every_augmentation_and_is_the_teacher_has_no_loss_on_crops():
    loss, state = DUKDLoss(probability=0.5, crops=4), random_state(n=8)
    drawn = loss._drawn(state)
    assert len({tuple(own) for own in drawn.tolist()}) > 10  # of 16
    state = views_of(loss, state, student=doubled, teacher=doubled)
    assert loss(state)['l_zoom_in'].item() == pytest.approx(0, abs=1e-12)

    # the released code's way back, in the order in which it was applied
    same_order = augmented(state.views['augmented']['student'], drawn)
    wrong = (same_order - state.views['zoom_in']['teacher']).flatten(1).abs().amax(1) > 1e-9
    _, hflip, vflip, transpose = drawn.unbind(1)
    assert torch.equal(wrong, transpose & (hflip ^ vflip)) and wrong.any()


@pytest.mark.parametrize('targets', ['teacher', 'gt'])
def test_a_probability_of_zero_shows_the_student_the_plain_images(targets):
    loss, state = DUKDLoss(probability=0, targets=targets), random_state()
    plain = zoom_in(state, 1) if targets == 'teacher' else state.lq
    assert torch.equal(loss.views['augmented'].derive(state), plain)


@pytest.mark.parametrize('options', [{'crops': 2}, {'targets': 'gt'}])
def test_views_and_terms_of_a_batch_are_those_of_its_parts(options):
    loss, state = DUKDLoss(probability=0.5, zoom_out=False, **options), random_state(n=4)
    names = ('student', 'teacher', 'gt', 'lq', 'seeds')
    parts = [replace(state, **{name: getattr(state, name)[i : i + 2] for name in names}) for i in (0, 2)]
    whole, *parts = (with_views(loss, own) for own in (state, *parts))
    for name in loss.views:
        joined = torch.cat([part.views[name]['input'] for part in parts])
        assert torch.equal(whole.views[name]['input'], joined)
    for key, value in loss(whole).items():
        torch.testing.assert_close(value, sum(loss(part)[key] for part in parts) / 2)


def test_two_steps_are_the_terms_on_lq_and_those_on_views():
    loss, state = DUKDLoss(two_steps=True, zoom_out=True), random_state(n=2)
    first, second = loss.steps()
    assert (first.reads, list(first.views)) == (('student', 'teacher'), [])
    assert (second.reads, list(second.views)) == ((), ['augmented', 'zoom_in', 'zoom_out'])
    whole = with_views(loss, state)
    logs = loss(whole)
    assert list(first(state)) == ['l_sr', 'l_logits']
    unread = replace(whole, student=torch.tensor(torch.nan), teacher=torch.tensor(torch.nan))
    torch.testing.assert_close({**first(state), **second(unread)}, logs, rtol=0, atol=0)


def test_the_image_term_can_be_left_out_of_two_steps():
    losses = LossSum({'type': 'DUKDLoss', 'two_steps': True, 'image_term': False})
    state = with_views(next(iter(losses)), random_state(n=2))
    assert [list(step(state)) for step in losses.steps()] == [['l_logits'], ['l_zoom_in']]


def test_terms_of_two_steps_have_the_names_of_those_of_one():
    state, names = random_state(n=2), {}
    for two_steps in (False, True):
        losses = LossSum(
            {'ts': {'type': 'TeacherSupervisionLoss'}, 'dukd': {'type': 'DUKDLoss', 'two_steps': two_steps}}
        )
        views = with_views(list(losses)[1], state).views
        seen = replace(state, views={f'dukd.{name}': own for name, own in views.items()})
        names[two_steps] = [key for step in losses.steps() for key in step(seen)]
    assert names[True] == names[False] == ['l_ts', 'l_dukd_sr', 'l_dukd_logits', 'l_dukd_zoom_in']


def test_the_control_reads_no_teacher_and_compares_augmented_lq_with_the_ground_truth():
    loss = build_loss({'type': 'DUKDLoss', 'targets': 'gt', 'zoom_out': True, 'probability': 0.5})
    state = with_views(loss, random_state(n=4))
    assert loss.reads == ('student',)
    assert [view.networks for view in loss.views.values()] == [('student',)] * 2
    assert len(state.views['augmented']['input']) == 4  # LQ's, whatever `crops` says
    logs = loss(replace(state, teacher=torch.tensor(torch.nan)))
    assert list(logs) == ['l_sr', 'l_consistency', 'l_zoom_out_sr']
    assert torch.isfinite(summed(logs))
    perfect = views_of(loss, replace(state, gt=doubled(state.lq)), student=doubled)
    assert loss(perfect)['l_consistency'].item() == pytest.approx(0, abs=1e-12)
    assert loss(views_of(loss, perfect, student=lambda x: network('student', x)))['l_consistency'].item() > 0


def test_the_pixel_weight_is_of_the_terms_of_ground_truth():
    state = random_state(n=2)
    plain, weighted = (DUKDLoss(zoom_out=True, pixel_weight=weight) for weight in (1, 5))
    state = with_views(plain, state)
    of_ground_truth = {'l_sr', 'l_zoom_out_sr'}
    expected = {name: value * (5 if name in of_ground_truth else 1) for name, value in plain(state).items()}
    torch.testing.assert_close(weighted(state), expected)
    assert {*expected} > of_ground_truth


def test_by_default_terms_weigh_alike_and_an_iteration_has_one_step():
    loss = DUKDLoss()
    assert (loss.crops, loss.probability, loss.zoom_out, loss.img_range) == (1, 0.3, False, 1.0)
    assert (loss.targets, loss.two_steps, loss.pixel_weight) == ('teacher', False, 1.0)
    assert loss.steps() == (loss,)
