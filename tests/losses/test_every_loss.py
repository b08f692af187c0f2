"""What holds for every loss of the registry, those still to be written included."""

import copy
import inspect
from dataclasses import fields

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from states import random_state, save_vgg, summed, widened, with_student

from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillLoss, DistillState, build_loss

LOSSES = sorted(
    name
    for name, loss in LOSS_REGISTRY
    if issubclass(loss, DistillLoss) and loss.__module__.startswith('facd_basicsr.losses.')
)
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
    vgg = save_vgg(tmp_path_factory.mktemp('vgg') / 'vgg.pth', depth=2)  # 4 x 4 are enough for relu2_1
    return {'CSDLoss': {'vgg_weights': str(vgg), 'layer_weights': (0.5, 1.0)}}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest, needed: dict[str, dict]) -> DistillLoss:
    """Each of them, with its defaults, in float64."""
    return build_loss({'type': request.param, **needed.get(request.param, {})}).prepare().double()


def seen(loss: DistillLoss, state: DistillState) -> tuple[torch.Tensor, ...]:
    """What of the student the loss sees."""
    return (state.student, *(state.student_feats if loss.reads_features else ()))


def test_all_are_found():
    assert {'FACDLoss', 'IACDLoss', 'TeacherSupervisionLoss'} < set(LOSSES)


def test_gradient_reaches_all_of_the_student_and_nothing_else(loss):
    state = random_state()
    others = (state.teacher, state.gt, state.lq, *state.teacher_feats)
    for tensor in others:
        tensor.requires_grad_()
    gradients = torch.autograd.grad(summed(loss(state)), (*seen(loss, state), *others), allow_unused=True)
    found = len(seen(loss, state))
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[:found])
    for tensor, gradient in zip(others, gradients[found:]):
        assert gradient is None or tensor is state.gt
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_gradcheck(loss):
    state = random_state(n=2)

    def total(*tensors: torch.Tensor) -> torch.Tensor:
        student, *feats = (state.student, *tensors) if weighs_by_output else tensors
        return summed(loss(with_student(state, student, *(feats or state.student_feats))))

    weighs_by_output = type(loss).__name__ in WEIGH_BY_OUTPUT
    assert torch.autograd.gradcheck(total, seen(loss, state)[weighs_by_output:])


def test_terms_carry_gradient_and_monitored_values_do_not(loss):
    logs = loss(random_state())
    assert {name for name, value in logs.items() if value.requires_grad} == {
        name for name in logs if name.startswith('l_')
    }
    assert all(value.shape == () for value in logs.values())
    assert next(iter(logs)) == 'l_sr'


def test_no_state_is_kept_between_calls(loss):
    state = random_state()
    first = loss(state)
    loss(random_state(seed=1))
    torch.testing.assert_close(loss(state), first, rtol=0, atol=0)


def test_a_state_is_left_as_it_was(loss):
    state, same = random_state(), random_state()
    summed(loss(state)).backward()
    torch.testing.assert_close(vars(widened(state)), vars(widened(same)), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_close(loss, dtype):
    state = random_state(dtype=dtype)
    expected = loss(widened(state))
    logs = loss.float()(state)
    assert all(value.dtype != dtype for value in logs.values())
    for name, value in logs.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-3, atol=1e-6)
    for gradient in torch.autograd.grad(summed(logs), seen(loss, state)):
        assert torch.isfinite(gradient).all()


def test_distances_are_float32_under_autocast(loss):
    state = random_state(dtype=torch.float32)
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
def test_negative_numbers_are_refused(name, key):
    with pytest.raises(UserError, match=rf'^train.distill_opt.{key.rstrip("_")}: -1; accepted: '):
        build_loss({'type': name, key: -1})


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
    state, calls = random_state(), []
    loss.register_forward_hook(lambda module, args, logs: calls.append((module, logs)))
    assert {loss: 1}[loss] == 1 and loss.training
    copied = copy.deepcopy(loss)
    torch.testing.assert_close(copied(state), loss(state), rtol=0, atol=0)
    assert [module for module, _ in calls] == [copied, loss]
    names = [own.name for own in fields(loss)]
    assert [f'{name}={getattr(loss, name)!r}' in repr(loss) for name in names] == [True] * len(names)
    assert repr(loss).startswith(f'{type(loss).__name__}(')


@pytest.mark.parametrize(('name', 'key'), CHOICES)
def test_unknown_choices_are_refused_with_the_accepted_ones(name, key):
    with pytest.raises(UserError, match=rf"^train.distill_opt.{key}: 'some'; accepted: \w+, \w+"):
        build_loss({'type': name, key: 'some'})
