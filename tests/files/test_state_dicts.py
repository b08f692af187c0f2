"""Checkpoints that BasicSR's models are going to load; tests/distill/test_teacher.py has the teacher's."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models.base_model import BaseModel
from conftest import STUDENT, TEACHER, build_teacher, changed, write_yml
from runs import assert_same
from safetensors.torch import save_file
from torch import nn
from wrappings import LOSS, WRAPPED, prefixed

from facd_basicsr.deploy.student import read_student
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.methods import build_student
from facd_basicsr.files.state_dicts import load_state_dict
from facd_basicsr.losses.vgg import load_vgg
from facd_basicsr.models.safe_model import build_model, check_pretrained
from facd_basicsr.options import parse_options, parser
from facd_basicsr.options.option_check import with_defaults
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
        (
            {'generator': build_network(STUDENT).state_dict()},
            r"holds keys \['generator'\]; accepted: params, params_ema, ",
        ),
    ],
    ids=['page', 'other network', 'unknown entry'],
)
def test_what_no_network_can_be_loaded_from_is_refused_in_one_line(content, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        check_pretrained(opt_for(copy.deepcopy(content), tmp_path))
    assert '\n' not in str(error.value)


def as_teacher(path: Path, opt: dict, folder: Path) -> nn.Module:
    return build_teacher({'network': STUDENT, 'weights': str(path)}, 2).net


def in_test(path: Path, opt: dict, folder: Path) -> nn.Module:
    """As test.py and train.py load a network: after the check, by BasicSR's model."""
    args = parser(is_train=False).parse_args(['-opt', str(option_file(path, opt, folder))])
    complete = parse_options(args, is_train=False, root=folder)
    assert check_pretrained(complete) == []
    return build_model(complete).net_g


def in_benchmark(path: Path, opt: dict, folder: Path) -> nn.Module:
    complete = with_defaults(changed(opt, 'path.pretrain_network_g', str(path)), is_train=False)
    return build_student('a.yml', complete, torch.device('cpu')).network


def in_export(path: Path, opt: dict, folder: Path) -> nn.Module:
    return read_student(path, str(option_file(path, opt, folder))).net


def option_file(path: Path, opt: dict, folder: Path) -> Path:
    return write_yml(changed(opt, 'path.pretrain_network_g', str(path)), folder / 'test.yml')


READERS = [as_teacher, in_test, in_benchmark, in_export]


def saved(content: dict, path: Path) -> Path:
    if path.suffix == '.safetensors':
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize('read', READERS)
def test_a_checkpoint_that_one_command_reads_is_read_by_all(read, weights, test_opt, tmp_path):
    wraps = {name: wrap for name, wrap in WRAPPED.items() if name != 'neosr'}  # of two entries each reads its own
    files = [saved(wrap(weights), tmp_path / f'{name}.pth') for name, wrap in wraps.items()]
    files.append(saved(weights, tmp_path / 'a.safetensors'))
    files.append(saved(prefixed(weights, 'model.') | LOSS, tmp_path / 'b.safetensors'))
    for path in files:
        assert_same(read(path, test_opt, tmp_path).state_dict(), weights, path.name)


@pytest.mark.parametrize('read', READERS)
def test_values_that_are_not_finite_are_refused_by_key_wherever_a_checkpoint_is_read(read, weights, test_opt, tmp_path):
    weights['body.1.conv1.weight'][2, 1] = torch.nan
    weights['body.1.conv1.weight'][3, 1, 0, 0] = torch.inf
    for content in ({'params': weights}, {'params_ema': weights}):
        with pytest.raises(
            UserError,
            match=r'net_g.pth: body.1.conv1.weight has 10 of 144 values that are not finite \(nan\); accepted: ',
        ) as error:
            read(saved(content, tmp_path / 'net_g.pth'), test_opt, tmp_path)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize('read', READERS)
def test_a_network_below_two_prefixes_is_refused_with_both(read, weights, test_opt, tmp_path):
    both = prefixed(weights, 'model.') | prefixed(weights, 'ema.model.')
    with pytest.raises(
        UserError, match=r"net_g.pth has the network more than once, below 'model.' and 'ema.model.'; acc"
    ):
        read(saved({'state_dict': both}, tmp_path / 'net_g.pth'), test_opt, tmp_path)


def test_large_finite_values_whose_sum_is_not_are_accepted(tmp_path):
    state_dict = {
        'a': torch.full((4,), 3e38),
        'b': torch.full((4,), 6e4, dtype=torch.float16),
        'c': torch.ones(2).long(),
    }
    assert_same(load_state_dict(saved(state_dict, tmp_path / 'a.pth'), 'IN'), state_dict)


def test_a_prefix_is_of_whole_names(tmp_path):
    state_dict = {'supermodel.a': torch.zeros(1), 'supermodel.b': torch.zeros(1)}
    path = saved(state_dict, tmp_path / 'a.pth')
    assert list(load_state_dict(path, 'IN', [['model.a', 'model.b']])) == list(state_dict)
    assert list(load_state_dict(path, 'IN', [['a', 'c'], ['a', 'b']])) == ['a', 'b']


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
