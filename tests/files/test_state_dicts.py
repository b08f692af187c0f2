"""Checkpoints that BasicSR's models are going to load; tests/distill/test_teacher.py has the teacher's."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models.base_model import BaseModel
from conftest import STUDENT, TEACHER, build_teacher, changed, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.losses.vgg import load_vgg
from facd_basicsr.models.safe_model import check_pretrained
from facd_basicsr.options import parser
from facd_basicsr.test import test as run_test
from facd_basicsr.train import train


def opt_for(content: object, folder: Path, **path_opt: object) -> dict:
    path = folder / 'net_g.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    defaults = {'param_key_g': 'params', 'strict_load_g': True}
    return {'network_g': STUDENT, 'path': {**defaults, 'pretrain_network_g': str(path), **path_opt}}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return build_network(STUDENT).state_dict()


def test_what_basicsr_loads_is_accepted(weights, tmp_path):
    check_pretrained(opt_for({'params': weights}, tmp_path))
    check_pretrained(opt_for({'params': weights, 'params_ema': weights}, tmp_path, param_key_g='params_ema'))
    check_pretrained(opt_for({'params': weights}, tmp_path, param_key_g='params_ema'))  # BasicSR falls back
    check_pretrained(opt_for(weights, tmp_path, param_key_g=None))
    check_pretrained({'network_g': STUDENT, 'path': {'pretrain_network_g': None}})


def test_without_strict_load_what_is_missing_is_left_out_and_the_rest_is_counted(weights, tmp_path):
    total = sum(value.numel() for value in weights.values())
    del weights['conv_last.bias']  # of 3 colors
    weights['unknown'] = torch.zeros(2, 2)
    weights['conv_first.bias'] = torch.zeros(5)  # for 4 features
    (line,) = check_pretrained(opt_for({'params': weights}, tmp_path, strict_load_g=False))
    assert line.startswith('path.pretrain_network_g: ') and line.endswith(
        f'net_g.pth: {total - 7:,} of the {total:,} parameters of EDSRStudent are loaded (strict_load_g: false).'
    )
    with pytest.raises(
        UserError, match=r'path.pretrain_network_g: .*net_g.pth does not fit EDSRStudent: keys 1 missing'
    ):
        check_pretrained(opt_for({'params': weights}, tmp_path))


def test_a_network_that_is_loaded_whole_is_nothing_to_tell_of(weights, tmp_path):
    assert check_pretrained(opt_for({'params': weights}, tmp_path)) == []


def test_without_strict_load_a_checkpoint_of_which_no_weight_fits_is_refused(weights, tmp_path):
    teacher = build_network(TEACHER).state_dict()  # 6 features for 4: only the bias of 3 colors fits
    assert [key for key in weights if teacher[key].shape == weights[key].shape] == ['conv_last.bias']
    for content in (teacher, {'other': torch.zeros(4, 4)}):
        with pytest.raises(
            UserError,
            match=r'path.pretrain_network_g: .*net_g.pth has no weight that fits EDSRStudent by name and shape; '
            r'accepted with strict_load_g: false: ',
        ) as error:
            check_pretrained(opt_for({'params': content}, tmp_path, strict_load_g=False))
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('num_block', [2, 4])  # of 3
def test_what_is_counted_is_what_basicsr_loads(num_block, tmp_path):
    other = build_network({**STUDENT, 'num_block': num_block}).state_dict()
    opt = opt_for({'params': other}, tmp_path, strict_load_g=False)
    net = build_network(STUDENT)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(torch.nan)
    BaseModel({'num_gpu': 0, 'is_train': False}).load_network(net, opt['path']['pretrain_network_g'], strict=False)
    loaded = sum(int(parameter.isfinite().sum()) for parameter in net.parameters())
    (line,) = check_pretrained(opt)
    assert f'net_g.pth: {loaded:,} of the ' in line


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'<html>not found</html>', 'net_g.pth cannot be read as a checkpoint of tensors'),
        ({'params': build_network(TEACHER).state_dict()}, r'does not fit EDSRStudent: keys .* of another shape'),
        ({'params_ema': build_network(STUDENT).state_dict()}, r"holds keys \['params_ema'\]; accepted: params"),
        (build_network(STUDENT).state_dict(), r"holds keys \['conv_first.weight', .*\]; accepted: params"),
    ],
    ids=['page', 'other network', 'average only', 'bare'],
)
def test_what_basicsr_would_not_load_is_refused_in_one_line(content, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        check_pretrained(opt_for(copy.deepcopy(content), tmp_path))
    assert '\n' not in str(error.value)


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), 'w'))


@pytest.fixture(params=['as torch saves', 'as pickle saves', 'as torch saved once'])
def attack(request, weights, tmp_path) -> Path:
    """A checkpoint of the student that carries code."""
    content = {'params': weights, 'iter': 1, 'epoch': 0, 'note': Attack(tmp_path / 'marker')}
    path = tmp_path / 'attack.pth'
    if request.param == 'as pickle saves':
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=request.param == 'as torch saves')
    yield path
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize(
    'location', ['path.pretrain_network_g', 'path.pretrain_network_r', 'path.resume_state', 'teacher.weights']
)
def test_training_refuses_a_checkpoint_that_carries_code_and_does_not_run_it(location, attack, train_opt, tmp_path):
    opt = write_yml(changed(train_opt, location, str(attack)), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=rf'^{location}: .*attack\.pth .*; accepted: ') as error:
        train(parser().parse_args(['-opt', str(opt)]), root=tmp_path, console=False)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / 'experiments').exists()


def test_testing_refuses_a_checkpoint_that_carries_code_and_does_not_run_it(attack, test_opt, tmp_path):
    opt = write_yml(changed(test_opt, 'path.pretrain_network_g', str(attack)), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'^path\.pretrain_network_g: .*attack\.pth .*holds more than tensors'):
        run_test(parser(is_train=False).parse_args(['-opt', str(opt)]), root=tmp_path, console=False)


def test_neither_spandrel_nor_the_vgg_runs_what_a_checkpoint_carries(attack):
    with pytest.raises(UserError, match=r'teacher\.weights: .*attack\.pth .*holds more than tensors'):
        build_teacher({'weights': str(attack), 'format': 'spandrel'}, 2)
    with pytest.raises(UserError, match=r'vgg_weights: .*attack\.pth .*holds more than tensors'):
        load_vgg(str(attack))


def test_the_attack_would_work_if_it_were_let(weights, tmp_path):
    pickle.loads(pickle.dumps(Attack(tmp_path / 'marker')))
    assert (tmp_path / 'marker').exists()
