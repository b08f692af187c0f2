import pickle

import pytest
import torch
from basicsr.archs import build_network
from conftest import TEACHER

from facd_basicsr.distill.checkpoints import load_state_dict
from facd_basicsr.distill.teacher import build_teacher
from facd_basicsr.errors import UserError


@pytest.fixture
def state_dict() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return build_network(TEACHER).state_dict()


def saved(content: object, tmp_path) -> dict:
    torch.save(content, tmp_path / 'teacher.pth')
    return {'network': TEACHER, 'weights': str(tmp_path / 'teacher.pth')}


@pytest.mark.parametrize(
    'layout',
    [
        lambda s: {'params': s},
        lambda s: {'params_ema': s},
        lambda s: s,
        lambda s: {'params': {f'module.{k}': v for k, v in s.items()}},
    ],
    ids=['params', 'params_ema', 'bare', 'module prefix'],
)
def test_layouts_load_to_the_same_weights(layout, state_dict, tmp_path):
    loaded = build_teacher(saved(layout(state_dict), tmp_path)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state_dict.items())


def test_the_average_is_preferred(state_dict, tmp_path):
    average = {key: value + 1 for key, value in state_dict.items()}
    loaded = build_teacher(saved({'params': state_dict, 'params_ema': average}, tmp_path)).state_dict()
    assert torch.equal(loaded['conv_first.weight'], average['conv_first.weight'])


def test_the_teacher_is_frozen_in_eval_and_not_clamped(state_dict, tmp_path):
    state_dict['conv_last.bias'] += 1000.0
    teacher = build_teacher(saved({'params': state_dict}, tmp_path))
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert teacher(torch.rand(1, 3, 4, 4)).min() > 1


def test_a_checkpoint_that_does_not_fit_is_refused_with_what_differs(state_dict, tmp_path):
    del state_dict['conv_first.bias']
    state_dict['extra'] = torch.zeros(1)
    state_dict['conv_last.bias'] = torch.zeros(5)
    with pytest.raises(UserError) as error:
        build_teacher(saved({'params': state_dict}, tmp_path))
    message = str(error.value)
    assert message.startswith('teacher.weights: ') and '\n' not in message
    assert '1 missing (first: conv_first.bias)' in message
    assert '1 unexpected (first: extra)' in message
    assert '1 of another shape (first: conv_last.bias (5,) for (3,))' in message


class Attack:
    def __reduce__(self):
        return (open, ('attacked', 'w'))


def test_a_checkpoint_that_carries_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'params': Attack()}, tmp_path / 'bad.pth')
    with pytest.raises(UserError, match=r"teacher.weights: .*bad.pth can't be read as a checkpoint"):
        load_state_dict(tmp_path / 'bad.pth', 'teacher.weights', ['params', None])
    assert not (tmp_path / 'attacked').exists()


@pytest.mark.parametrize(
    'content',
    [b'', b'no checkpoint', b'.', b'a', pickle.dumps([1, 2], protocol=2)],
    ids=['empty', 'text', 'stop', 'append', 'pickle of a list'],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(content, tmp_path):
    (tmp_path / 'bad.pth').write_bytes(content)
    with pytest.raises(UserError, match=r'teacher.weights: .*bad.pth.*accepted') as error:
        load_state_dict(tmp_path / 'bad.pth', 'teacher.weights', ['params', None])
    assert '\n' not in str(error.value)


def test_a_checkpoint_of_something_else_is_refused_with_its_keys(tmp_path):
    torch.save({1: torch.zeros(1)}, tmp_path / 'bad.pth')
    with pytest.raises(UserError, match=r'holds keys \[1\]'):
        load_state_dict(tmp_path / 'bad.pth', 'teacher.weights', ['params', None])
    torch.save({'epoch': 3, 'optimizer': {}}, tmp_path / 'bad.pth')
    with pytest.raises(UserError, match=r"holds keys \['epoch', 'optimizer'\]"):
        load_state_dict(tmp_path / 'bad.pth', 'teacher.weights', ['params', None])
