"""The sum of the terms of several losses."""

import pytest
import torch
from basicsr.losses import build_loss as basicsr_loss
from basicsr.utils.registry import LOSS_REGISTRY
from states import random_state, summed

from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillState, FACDLoss, loss_sum
from facd_basicsr.losses.base import check_option
from facd_basicsr.losses.image import image_loss, indicator
from facd_basicsr.losses.loss_sum import LossSum, is_pixel_loss
from facd_basicsr.losses.teacher_supervision_loss import TeacherSupervisionLoss

FACD = {'type': 'FACDLoss'}
L1 = {'type': 'L1Loss', 'reduction': 'mean'}
AS_TERMS = {'sr': {**L1, 'target': 'gated', 'loss_weight': 255.0}, 'facd': {**FACD, 'image_term': False}}


def gradients(loss: torch.nn.Module, state: DistillState) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(summed(loss(state)), (state.student, *state.student_feats))


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_facd_as_an_image_term_and_a_contrast_is_facd_to_the_last_bit(dtype, seed):
    state = random_state(n=4, dtype=dtype, seed=seed)
    whole, terms = FACDLoss(), LossSum(AS_TERMS)
    logs, by_terms = whole(state), terms(state)
    assert list(by_terms) == ['l_sr', 'l_facd', 'facd_alpha', 'facd_r_1', 'facd_r_2', 'facd_r_3']
    for (name, value), (_, other) in zip(logs.items(), by_terms.items()):
        assert torch.equal(value, other), name
    for ours, theirs in zip(gradients(terms, state), gradients(whole, state)):
        assert torch.equal(ours, theirs)


def test_one_loss_has_its_own_names_and_numbers():
    state = random_state()
    one, alone = LossSum(FACD)(state), FACDLoss()(state)
    assert list(one) == list(alone) and all(torch.equal(one[name], alone[name]) for name in alone)


def test_all_terms_are_summed_by_weight_under_unique_names():
    state = random_state()
    logs = LossSum(
        {'ts': {'type': 'TeacherSupervisionLoss', 'loss_weight': 0.5}, 'facd': {**FACD, 'loss_weight': 2}},
        {'charbonnier': {'type': 'CharbonnierLoss', 'loss_weight': 3}, 'l2': {'type': 'MSELoss'}},
    )(state)
    facd = FACDLoss()(state)
    charbonnier = ((state.student - state.gt) ** 2 + 1e-12).sqrt().mean()
    expected = {
        'l_ts': 0.5 * TeacherSupervisionLoss()(state)['l_sr'],
        'l_facd_sr': 2 * facd['l_sr'],
        'l_facd_facd': 2 * facd['l_facd'],
        **{f'facd_{name}': facd[name] for name in ('alpha', 'r_1', 'r_2', 'r_3')},
        'l_pix_charbonnier': 3 * charbonnier,
        'l_pix_l2': (state.student - state.gt).square().mean(),
    }
    assert list(logs) == list(expected)
    torch.testing.assert_close(logs, expected)


def test_one_pixel_loss_is_basicsrs_to_the_last_bit_and_called_l_pix():
    state, block = random_state(dtype=torch.float32), {'type': 'L1Loss', 'loss_weight': 0.3, 'reduction': 'mean'}
    logs = LossSum(None, block)(state)
    assert list(logs) == ['l_pix'] and torch.equal(logs['l_pix'], basicsr_loss(dict(block))(state.student, state.gt))


def image(*values: float) -> torch.Tensor:
    """One flat 1 x 2 x 2 image for each value."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


@pytest.mark.parametrize(
    ('target', 'expected'),
    # of sample 0 the teacher is nearer to GT, of sample 1 it is not, so that alpha is 1 and 0
    [('gt', (0.3**2 + 0.1**2) / 2), ('teacher', (0.2**2 + 0.4**2) / 2),
     ('gated', (0.3**2 + 0.2**2 + 2 * 0.1**2) / 4)],  # 1/2N sum_i (2 - alpha_i) |S - GT|^2 + alpha_i |S - T|^2
)  # fmt: skip
def test_a_pixel_loss_to_each_target_equals_a_value_worked_by_hand(target, expected):
    state = DistillState(image(0.3, 0.1), image(0.1, 0.5), image(0.0, 0.0), image(0.0, 0.0), (), ())
    logs = LossSum({'type': 'MSELoss', 'target': target})(state)
    assert list(logs) == ['l_sr'] and logs['l_sr'].item() == pytest.approx(expected)


@pytest.mark.parametrize('kind', [name for name, loss in LOSS_REGISTRY if is_pixel_loss(loss)])
@pytest.mark.parametrize('target', ['gt', 'teacher', 'gated'])
def test_gradcheck_of_every_pixel_loss_to_every_target(kind, target):
    state = random_state(n=2)
    loss = LossSum({'sr': {'type': kind, 'target': target}})

    def total(student: torch.Tensor) -> torch.Tensor:
        return loss(DistillState(student, state.teacher, state.gt, state.lq, (), ()))['l_sr']

    assert torch.autograd.gradcheck(total, state.student)


def test_a_gated_term_is_equation_2_with_another_distance():
    state = random_state()
    ones = torch.ones(len(state.gt), dtype=torch.float64)
    gated = LossSum({'type': 'MSELoss', 'target': 'gated'})(state)['l_sr']
    images = (state.student, state.teacher, state.gt)
    of_l2 = image_loss(*images, indicator(*images), distance=lambda a, b: (a - b).square().flatten(1).mean(1))
    torch.testing.assert_close(gated, of_l2)
    assert not torch.isclose(gated, image_loss(*images, ones))


def test_each_loss_sees_features_through_the_regressors_as_it_asks_for_them():
    """FACD asks for regressors at every tap, LFD where widths differ, FAKD nowhere."""
    generator = torch.Generator().manual_seed(0)

    def feats(*widths: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.rand(2, width, 4, 4, generator=generator) for width in widths)

    images = (torch.rand(2, 3, 8, 8, generator=generator) for _ in range(4))
    state = DistillState(*images, feats(4, 6), feats(6, 6), regressed_feats=feats(6, 6))
    losses = LossSum({name: {'type': f'{name}Loss', 'layer_weights': [1, 1]} for name in ('FACD', 'LFD', 'FAKD')})
    assert losses.regressor == 'always'
    seen = {}
    for name, loss in zip(losses.names, losses):
        loss.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].student_feats))
    losses(state)
    raw, regressed = state.student_feats, state.regressed_feats
    for name, expected in {'FACD': regressed, 'LFD': (regressed[0], raw[1]), 'FAKD': raw}.items():
        assert all(own is other for own, other in zip(seen[name], expected)), name


def test_widths_that_a_loss_compares_without_a_regressor_are_refused_by_the_losss_name():
    losses = LossSum({'facd': FACD, 'lfd': {'type': 'LFDLoss', 'regressor': 'never'}})
    with pytest.raises(UserError, match=r'^train.distill_opt.lfd.regressor: never, but taps\[0\] has 4 channels'):
        losses.check_widths([torch.empty(2, 4, 3, 3)], [torch.empty(2, 6, 3, 3)])
    losses.check_widths([torch.empty(2, 6, 3, 3)], [torch.empty(2, 6, 3, 3)])


def test_scheduled_weights_have_their_values_of_the_iteration():
    fading = {'start': 4.0, 'end': 0.0, 'over': 100}
    block = {
        **FACD, 'lambda': fading, 'loss_weight': {**fading, 'shape': 'step'},
        'layer_weights': [0.5, 0.3, {'start': 0.0, 'end': 1.0, 'over': 100}],
    }  # fmt: skip
    losses, state = LossSum(block), random_state()
    for iteration, factor, options in [(50, 4, (2.0, (0.5, 0.3, 0.5))), (0, 4, (4.0, (0.5, 0.3, 0.0))), (100, 0, None)]:
        logs = losses(at(state, iteration))
        expected = FACDLoss(*options)(state) if options else {'l_sr': torch.zeros(()), 'l_facd': torch.zeros(())}
        for term in ('l_sr', 'l_facd'):
            torch.testing.assert_close(logs[term], factor * expected[term], check_dtype=False)


def at(state: DistillState, iteration: int) -> DistillState:
    return DistillState(**{**vars(state), 'iteration': iteration})


def test_a_loss_without_another_term_keeps_its_image_term():
    with pytest.raises(UserError, match=r'^train.distill_opt.ts.image_term: false; accepted of a loss with l_sr and'):
        LossSum({'ts': {'type': 'TeacherSupervisionLoss', 'image_term': False}})(random_state())


@pytest.mark.parametrize(
    ('found', 'said'),
    [
        ({'gt': torch.tensor(1.0)}, 'FACDLoss: forward gives gt; accepted: a term l_* or more'),
        ({}, 'FACDLoss: forward gives nothing; accepted: a term l_* or more'),
        ({'l_sr': 0.5}, 'FACDLoss: l_sr is 0.5; accepted: a scalar tensor'),
        ({'l_sr': torch.ones(4)}, 'FACDLoss: l_sr is of shape (4,); accepted: a scalar tensor'),
    ],
)
def test_what_is_no_sum_of_scalar_terms_is_refused_by_the_losss_name(monkeypatch, found, said):
    monkeypatch.setattr(FACDLoss, 'forward', lambda *_: found)
    with pytest.raises(UserError) as caught:
        LossSum(FACD)(random_state())
    assert str(caught.value) == said


def test_two_values_of_one_name_are_refused():
    with pytest.raises(UserError, match=r'^train.distill_opt: two values are called l_facd_sr; accepted: other names'):
        LossSum({'facd': FACD, 'facd_sr': L1})(random_state())


@pytest.mark.parametrize(('name', 'pixel_opt'), [('pix', L1), ('pix_a', {'a': L1})])
def test_a_distillation_loss_with_the_name_of_a_pixel_loss_is_refused(name, pixel_opt):
    with pytest.raises(UserError, match=rf'^train.distill_opt.{name}: the name of a loss of train.pixel_opt; accepted'):
        LossSum({name: {'type': 'TeacherSupervisionLoss'}, 'facd': FACD}, pixel_opt)


@pytest.mark.parametrize('target', ['gt', 'teacher'])
def test_a_sum_over_the_batch_is_over_the_batches_of_all_ranks(target, monkeypatch):
    state = random_state()
    difference = (state.student - getattr(state, target)).abs()
    loss = LossSum({'l1': {'type': 'L1Loss', 'reduction': 'sum', 'target': target}})
    alone = loss(state)['l_l1']
    assert torch.equal(alone, difference.sum())
    monkeypatch.setattr(loss_sum, 'ranks', lambda: 3)  # of which DDP takes the mean
    assert torch.equal(loss(state)['l_l1'], 3 * alone)
    mean = LossSum({'l1': {**L1, 'target': target}})
    assert torch.equal(mean(state)['l_l1'], difference.mean())


def test_what_all_losses_need_is_the_most_that_one_needs():
    losses = LossSum({'ts': {'type': 'TeacherSupervisionLoss'}, 'fakd': {'type': 'FAKDLoss'}})
    assert (losses.min_batch, losses.reads_features, losses.compares_channels, losses.regressor) == (
        1,
        True,
        False,
        'never',
    )
    more = LossSum({'fakd': {'type': 'FAKDLoss'}, 'lfd': {'type': 'LFDLoss'}, 'iacd': {'type': 'IACDLoss'}})
    assert (more.min_batch, more.reads_features, more.compares_channels, more.regressor) == (2, True, True, 'auto')
    images = LossSum(L1)
    assert (images.min_batch, images.reads_features, images.regressor) == (1, False, 'never')


def test_a_list_is_refused_by_its_least_or_largest_item():
    check_option('weights', (0.0, 0.5, 1.0), {'least': 0, 'most': 1})
    with pytest.raises(UserError, match=r'^train\.distill_opt\.weights: 1\.5; accepted: 1 or less$'):
        check_option('weights', (0.5, 1.5), {'least': 0, 'most': 1})
    with pytest.raises(UserError, match=r'^train\.distill_opt\.weights: -1; accepted: 0 or more$'):
        check_option('weights', (0.5, -1), {'least': 0, 'most': 1})
