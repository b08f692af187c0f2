"""What holds for every loss of the registry, those still to be written included."""

import copy
import inspect
from dataclasses import fields
from typing import Any

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from states import LOSSES as CLASSES
from states import needed_options, random_state, seen, summed, widened, with_seen, with_views

from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillLoss, DistillState, build_loss

LOSSES = sorted(CLASSES)
NUMBERS = [
    (name, key)
    for name in LOSSES
    for key, parameter in inspect.signature(LOSS_REGISTRY.get(name)).parameters.items()
    if isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool)
]
CHOICES = [
    (name, key)
    for name in LOSSES
    for key, parameter in inspect.signature(LOSS_REGISTRY.get(name)).parameters.items()
    if isinstance(parameter.default, str) and key != 'vgg_weights'
]

OF_FEATURES = [name for name in LOSSES if LOSS_REGISTRY.get(name).reads_features]
OF_BATCHES = [name for name in LOSSES if LOSS_REGISTRY.get(name).min_batch > 1]
WEIGHTED = [name for name in LOSSES if 'layer_weights' in inspect.signature(LOSS_REGISTRY.get(name)).parameters]
OPTIONS = [(name, own) for name in LOSSES for own in fields(LOSS_REGISTRY.get(name))]
FOLLOWING = [(name, own) for name, own in OPTIONS if own.metadata['meaning'].startswith('as in ')]

# The student's output has a part without gradient in these losses, so only features can be checked numerically.
WEIGH_BY_OUTPUT = ('LSFDLoss',)


@pytest.fixture(scope='module')
def needed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The options of losses that the defaults do not make small enough for a test."""
    return {name: needed_options(name, tmp_path_factory.mktemp(name)) for name in LOSSES}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest, needed: dict[str, dict]) -> DistillLoss:
    """Each of them, with its defaults, in float64."""
    return build_loss({'type': request.param, **needed[request.param]}).prepare().double()


def state_for(loss: DistillLoss, **options: Any) -> DistillState:
    """A random state with the loss's views."""
    return with_views(loss, random_state(**options))


def test_all_are_found():
    assert {'FACDLoss', 'IACDLoss', 'TeacherSupervisionLoss'} < set(LOSSES)


def test_gradient_reaches_all_of_the_student_and_nothing_else(loss):
    state = state_for(loss)
    of_views = [own for view in state.views.values() for name, own in view.items() if name != 'student']
    others = (state.teacher, state.gt, state.lq, *state.teacher_feats, *of_views)
    for tensor in others:
        tensor.requires_grad_()
    gradients = torch.autograd.grad(summed(loss(state)), (*seen(loss, state), *others), allow_unused=True)
    found = len(seen(loss, state))
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[:found])
    for tensor, gradient in zip(others, gradients[found:]):
        assert gradient is None or tensor is state.gt
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_gradcheck(loss):
    state = state_for(loss, n=2)
    checked = seen(loss, state)[type(loss).__name__ in WEIGH_BY_OUTPUT :]

    def total(*tensors: torch.Tensor) -> torch.Tensor:
        return summed(loss(with_seen(state, checked, tensors)))

    assert torch.autograd.gradcheck(total, checked)


def test_terms_carry_gradient_and_monitored_values_do_not(loss):
    logs = loss(state_for(loss))
    assert {name for name, value in logs.items() if value.requires_grad} == {
        name for name in logs if name.startswith('l_')
    }
    assert all(value.shape == () for value in logs.values())
    assert 'l_sr' not in logs or next(iter(logs)) == 'l_sr'


def test_no_state_is_kept_between_calls(loss):
    state = state_for(loss)
    first = loss(state)
    loss(state_for(loss, seed=1))
    torch.testing.assert_close(loss(state), first, rtol=0, atol=0)


def test_a_state_is_left_as_it_was(loss):
    state, same = state_for(loss), state_for(loss)
    summed(loss(state)).backward()
    torch.testing.assert_close(vars(widened(state)), vars(widened(same)), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_close(loss, dtype):
    state = state_for(loss, dtype=dtype)
    expected = loss(widened(state))
    logs = loss.float()(state)
    assert all(value.dtype != dtype for value in logs.values())
    for name, value in logs.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-3, atol=1e-6)
    for gradient in torch.autograd.grad(summed(logs), seen(loss, state)):
        assert torch.isfinite(gradient).all()


def test_distances_are_float32_under_autocast(loss):
    state = state_for(loss, dtype=torch.float32)
    expected = loss.float()(state)
    with torch.autocast('cpu', torch.bfloat16):
        logs = loss(state)
    assert {value.dtype for value in logs.values()} == {torch.float32}
    torch.testing.assert_close(logs, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize('level', [0.0, 1.0])
def test_flat_batch_gives_a_finite_loss_and_gradient(loss, level):
    def flat(*shape: int) -> torch.Tensor:
        return torch.full(shape, level, dtype=torch.float64)

    feats = tuple(flat(3, 2, 3, 3) for _ in range(3))
    state = DistillState(
        flat(3, 3, 4, 4).requires_grad_(),
        flat(3, 3, 4, 4),
        flat(3, 3, 4, 4),
        flat(3, 3, 2, 2),
        tuple(feat.clone().requires_grad_() for feat in feats),
        feats,
    )
    state = with_views(loss, state)
    logs = loss(state)
    assert all(torch.isfinite(value) for value in logs.values())
    for gradient in torch.autograd.grad(summed(logs), seen(loss, state)):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize('loss', OF_FEATURES, indirect=True)
def test_weights_must_match_the_taps(loss):
    with pytest.raises(UserError, match=r'train.distill_opt.layer_weights: 3 weights for 2 taps'):
        loss(random_state(taps=2))


@pytest.mark.parametrize('loss', OF_BATCHES, indirect=True)
def test_a_batch_smaller_than_the_least_is_refused(loss):
    with pytest.raises(UserError, match=r'batch_size_per_gpu.*batch of 1.*2 or more'):
        loss(random_state(n=1))


@pytest.mark.parametrize(('name', 'key'), NUMBERS)
def test_negative_numbers_are_refused(name, key, needed):
    with pytest.raises(UserError, match=rf'^train.distill_opt.{key.rstrip("_")}: -1; accepted: '):
        build_loss({'type': name, **needed[name], key: -1})


@pytest.mark.parametrize('name', WEIGHTED)
def test_negative_weights_are_refused(name):
    with pytest.raises(UserError, match=r'^train.distill_opt.layer_weights: -1; accepted: 0 or more$'):
        build_loss({'type': name, 'layer_weights': [1, -1, 1]})


@pytest.mark.parametrize('name', WEIGHTED)
def test_a_list_of_an_option_file_becomes_a_tuple(name):
    assert build_loss({'type': name, 'layer_weights': [1, 2, 3]}).layer_weights == (1, 2, 3)


@pytest.mark.parametrize(('name', 'own'), FOLLOWING, ids=lambda value: getattr(value, 'name', value))
def test_an_option_as_in_another_loss_accepts_what_it_accepts_there(name, own):
    other = LOSS_REGISTRY.get(own.metadata['meaning'].removeprefix('as in '))
    same = {field.name: field for field in fields(other)}[own.name]
    assert own.type == same.type and {**own.metadata, 'meaning': same.metadata['meaning']} == same.metadata


def test_a_loss_is_a_module_like_any_other(loss):
    state, calls = state_for(loss), []
    loss.register_forward_hook(lambda module, args, logs: calls.append((module, logs)))
    assert {loss: 1}[loss] == 1 and loss.training
    copied = copy.deepcopy(loss)
    torch.testing.assert_close(copied(state), loss(state), rtol=0, atol=0)
    assert [module for module, _ in calls] == [copied, loss]
    names = [own.name for own in fields(loss)]
    assert [f'{name}={getattr(loss, name)!r}' in repr(loss) for name in names] == [True] * len(names)
    assert repr(loss).startswith(f'{type(loss).__name__}(')


@pytest.mark.parametrize(('name', 'key'), CHOICES)
def test_unknown_choices_are_refused_with_the_accepted_ones(name, key, needed):
    with pytest.raises(UserError, match=rf"^train.distill_opt.{key}: 'some'; accepted: \w+, \w+"):
        build_loss({'type': name, **needed[name], key: 'some'})
