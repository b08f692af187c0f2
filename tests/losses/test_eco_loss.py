from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import changed, write_yml
from states import images, random_state, with_views

from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillState
from facd_basicsr.losses.eco_loss import ECOLoss
from facd_basicsr.losses.loss_sum import LossSum
from facd_basicsr.options import load_options
from facd_basicsr.options.option_check import weights_of


def flat(value: float, size: int) -> torch.Tensor:
    return torch.full((1, 1, size, size), value)


STATE = DistillState(flat(0.1, 4), flat(0.8, 4), flat(0.4, 4), flat(0.5, 2), (), ())


def mixed(loss: ECOLoss, state: DistillState) -> torch.Tensor:
    return loss.views['mixed'].derive(state)


def test_the_mixed_input_and_the_mixed_target_equal_values_worked_by_hand():
    loss = ECOLoss(alpha=0.25, img_range=10)
    torch.testing.assert_close(mixed(loss, STATE), flat(0.25 * 0.5 + 0.75 * 0.8, 2))
    student = flat(0.9, 4)
    logs = loss(replace(STATE, views={'mixed': {'student': student}}))
    assert list(logs) == ['l_sr']
    assert logs['l_sr'].item() == pytest.approx(10 * (0.9 - (0.25 * 0.4 + 0.75 * 0.8)))


def test_it_begins_with_the_teacher_alone():
    loss = ECOLoss(alpha=0)
    torch.testing.assert_close(mixed(loss, STATE), flat(0.8, 2))
    assert loss(replace(STATE, views={'mixed': {'student': flat(0, 4)}}))['l_sr'].item() == pytest.approx(0.8)


@pytest.mark.parametrize('keep_lq', [False, True])
def test_it_ends_with_ground_truth_and_lq_and_without_the_teacher(keep_lq):
    loss = ECOLoss(alpha=1, keep_lq=keep_lq)
    assert loss.reads == ('student',) and loss.views == {}
    state = replace(STATE, student=flat(0, 4), teacher=torch.empty(0))
    assert loss(state)['l_sr'].item() == pytest.approx(0.4)


def test_the_input_is_clamped_and_the_target_is_not():
    state = replace(STATE, teacher=flat(1.2, 4))
    loss = ECOLoss(alpha=0)
    assert torch.equal(mixed(loss, state), flat(1, 2))
    state = replace(state, views={'mixed': {'student': flat(1.2, 4)}})
    assert loss(state)['l_sr'].item() == pytest.approx(0)


def test_who_runs_on_what():
    loss = ECOLoss(alpha=0.5)
    assert loss.reads == ('teacher',) and loss.views['mixed'].networks == ('student',)
    plain = ECOLoss(alpha=0.5, keep_lq=True)
    assert plain.reads == ('student', 'teacher') and plain.views == {}
    assert plain(STATE)['l_sr'].item() == pytest.approx(0.6 - 0.1)


def test_a_batch_of_one_pixel_images_is_mixed_sample_by_sample():
    state = DistillState(
        *(images(*values).expand(2, 1, 2, 2) for values in [(0, 0), (0.2, 0.6), (0.4, 0.8)]), images(1, 0), (), ()
    )
    torch.testing.assert_close(mixed(ECOLoss(alpha=0.5), state), images(0.6, 0.3))


def test_a_schedule_moves_the_target_from_the_teacher_to_the_ground_truth():
    losses = LossSum({'type': 'ECOLoss', 'keep_lq': True, 'alpha': {'start': 0, 'end': 1, 'over': 4}})
    state = replace(STATE, student=flat(0, 4))
    found = [losses(replace(state, iteration=done))['l_sr'].item() for done in (0, 1, 4, 9)]
    assert found == pytest.approx([0.8, 0.25 * 0.4 + 0.75 * 0.8, 0.4, 0.4])


def test_gradients_reach_the_student_only():
    loss = ECOLoss(alpha=0.3)
    state = random_state()
    for tensor in (state.teacher, state.gt, state.lq):
        tensor.requires_grad_()
    state = with_views(loss, state)
    assert not state.views['mixed']['input'].requires_grad
    inputs = (state.views['mixed']['student'], state.teacher, state.lq)
    gradients = torch.autograd.grad(loss(state)['l_sr'], inputs, allow_unused=True)
    assert [gradient is not None for gradient in gradients] == [True, False, False]


@pytest.fixture
def eco_opt(train_opt: dict) -> dict:
    """A complete option dict for training by ECO."""
    distill_opt = {'type': 'ECOLoss', 'alpha': {'start': 0, 'end': 1, 'over': 3}}
    return changed(changed(changed(train_opt, 'taps', ...), 'network_r', ...), 'train.distill_opt', distill_opt)


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        (
            'alpha',
            ...,
            'train.distill_opt.alpha: missing; accepted: a number, or a schedule such as {start: 0, end: 1, ',
        ),
        ('alpha', 1.5, 'train.distill_opt.alpha: 1.5; accepted: 0 or more, 1 or less'),
        ('alpha.end', 100, 'train.distill_opt.alpha.end: 100; accepted: 0 or more, 1 or less'),
        ('alpha.over', 0, 'train.distill_opt.alpha.over: 0; accepted: 1 or more'),
        ('alpha', 'half', "train.distill_opt.alpha: 'half'; accepted: a number"),
    ],
)
def test_alpha_that_is_no_share_is_refused_in_a_line(eco_opt, tmp_path: Path, location, value, message):
    opt = changed(eco_opt, f'train.distill_opt.{location}', value)
    with pytest.raises(UserError) as caught:
        load_options(str(write_yml(opt, tmp_path / 'opt.yml')), [], is_train=True)
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_an_option_file_may_have_a_number_or_a_schedule_which_is_known_as_a_weight(eco_opt, tmp_path: Path):
    for alpha in (0.5, {'start': 0, 'end': 1, 'over': 3}):
        path = write_yml(changed(eco_opt, 'train.distill_opt.alpha', alpha), tmp_path / 'opt.yml')
        opt = load_options(str(path), [], is_train=True)
        ((place, weight),) = [own for own in weights_of(opt['train']) if own[0].endswith('alpha')]
        assert place == 'distill_opt.alpha' and (weight == alpha or weight == {**alpha, 'shape': 'linear'})


def test_alpha_beyond_its_bounds_is_refused_in_python_too():
    with pytest.raises(UserError, match=r'^train.distill_opt.alpha: 1.5; accepted: 1 or less$'):
        ECOLoss(alpha=1.5)
