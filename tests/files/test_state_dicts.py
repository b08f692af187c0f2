"""Checkpoints that BasicSR's models are going to load; tests/distill/test_teacher.py has the teacher's."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from conftest import STUDENT, TEACHER, build_teacher, changed, write_yml
from runs import assert_same
from safetensors.torch import save_file
from torch import nn
from wrappings import LOSS, WRAPPED, prefixed

from facd_basicsr.deploy.student import read_student
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.methods import build_student
from facd_basicsr.files.state_dicts import load_state_dict, partial_fit
from facd_basicsr.losses.vgg import load_vgg
from facd_basicsr.models.safe_model import build_model
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
    path_opt = {**defaults, 'pretrain_network_g': str(path), **path_opt}
    plain = {'model_type': 'SRModel', 'scale': 2, 'num_gpu': 0, 'dist': False, 'is_train': False, 'val': None}
    return {**plain, 'network_g': STUDENT, 'path': path_opt}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return build_network(STUDENT).state_dict()


def test_what_basicsr_loads_is_accepted(weights, tmp_path):
    build_model(opt_for({'params': weights}, tmp_path))
    build_model(opt_for({'params': weights, 'params_ema': weights}, tmp_path, param_key_g='params_ema'))
    build_model(opt_for({'params': weights}, tmp_path, param_key_g='params_ema'))  # BasicSR falls back
    build_model(opt_for(weights, tmp_path, param_key_g=None))
    build_model(opt_for(weights, tmp_path, pretrain_network_g=None))


def refused(content: object, folder: Path, **path_opt: object) -> str:
    with pytest.raises(UserError) as error:
        build_model(opt_for(content, folder, **path_opt))
    assert '\n' not in str(error.value)
    return str(error.value)


def test_without_strict_load_what_is_missing_is_left_out_and_named_by_module(weights):
    total = sum(value.numel() for value in weights.values())
    given = dict(weights)
    del given['conv_last.bias'], given['body.0.conv1.weight'], given['body.0.conv1.bias']  # 3 colors; 4 x 4 x 9 + 4
    given['unknown.0.weight'] = torch.zeros(2, 2)
    given['conv_first.bias'] = torch.zeros(5)  # for 4 features
    fitting, line = partial_fit(build_network(STUDENT), given, 'net_g.pth', 'strict_load_g')
    assert line == (
        f'net_g.pth: {total - 3 - 148 - 4:,} of the {total:,} parameters of EDSRStudent are loaded '
        '(strict_load_g: false); loaded: conv_first.weight, body.0.conv2, body.1 to body.2, conv_after_body, upsample, '
        'conv_last.weight; of another shape: conv_first.bias; not in the file: body.0.conv1, conv_last.bias; only in '
        'the file: unknown'
    )
    assert fitting.keys() == given.keys() - {'conv_first.bias', 'unknown.0.weight'}


def test_a_line_names_a_few_modules_and_counts_the_others():
    net = nn.Sequential(*(module for _ in range(12) for module in (nn.Linear(2, 2), nn.ReLU())))
    _, line = partial_fit(net, net.state_dict(), 'a.pth', 'strict_load_g')
    assert line.endswith(
        'a.pth: 72 of the 72 parameters of Sequential are loaded (strict_load_g: false); loaded: '
        '0, 2, 4, 6, 8, 10, 12, 14 and 4 more'
    )


def test_under_strict_load_what_is_missing_is_refused(weights, tmp_path):
    del weights['conv_last.bias']
    assert 'net_g.pth does not fit EDSRStudent: keys 1 missing' in refused({'params': weights}, tmp_path)


def test_without_strict_load_a_checkpoint_of_which_no_weight_fits_is_refused(weights, tmp_path):
    teacher = build_network(TEACHER).state_dict()  # 6 features for 4: only the bias of 3 colors fits
    assert [key for key in weights if teacher[key].shape == weights[key].shape] == ['conv_last.bias']
    for content in (teacher, {'other': torch.zeros(4, 4)}):
        message = refused({'params': content}, tmp_path, strict_load_g=False)
        assert message.startswith('path.pretrain_network_g: ')
        assert (
            'net_g.pth has no weight that fits EDSRStudent by name and shape; accepted with strict_load_g: false: '
            in message
        )


SWINIR = {'type': 'SwinIR', 'img_size': 16, 'window_size': 8, 'embed_dim': 6, 'depths': [2], 'num_heads': [2]}
OTHER_SCALE = {  # what a x4 network takes of a x2 one's checkpoint, and what not; then the same the other way round
    'EDSR': (
        {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 2},
        'loaded: conv_first, body, conv_after_body, upsample.0, conv_last; not in the file: upsample.2',
        'loaded: conv_first, body, conv_after_body, upsample, conv_last; only in the file: upsample.2',
    ),
    'RCAN': (
        {'type': 'RCANStudent', 'num_feat': 4, 'num_group': 2, 'num_block': 2, 'squeeze_factor': 2},
        'loaded: conv_first, body, conv_after_body, upsample.0, conv_last; not in the file: upsample.2',
        'loaded: conv_first, body, conv_after_body, upsample, conv_last; only in the file: upsample.2',
    ),
    'SwinIR': (
        {**SWINIR, 'upsampler': 'pixelshuffle'},
        'loaded: conv_first, patch_embed, layers, norm, conv_after_body, conv_before_upsample, upsample.0, conv_last; '
        'not in the file: upsample.2',
        'loaded: conv_first, patch_embed, layers, norm, conv_after_body, conv_before_upsample, upsample, conv_last; '
        'only in the file: upsample.2',
    ),
    'light SwinIR': (
        {**SWINIR, 'upsampler': 'pixelshuffledirect'},
        'loaded: conv_first, patch_embed, layers, norm, conv_after_body; of another shape: upsample',
        'loaded: conv_first, patch_embed, layers, norm, conv_after_body; of another shape: upsample',
    ),
    'SRVGGNetCompact': (
        {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_conv': 2},
        'loaded: body.0 to body.5; of another shape: body.6',
        'loaded: body.0 to body.5; of another shape: body.6',
    ),
    'RRDBNet': (  # which unshuffles the input of x2, not of x4
        {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 2, 'num_grow_ch': 4},
        'loaded: conv_first.bias, body, conv_body, conv_up1, conv_up2, conv_hr, conv_last; of another shape: '
        'conv_first.weight',
        'loaded: conv_first.bias, body, conv_body, conv_up1, conv_up2, conv_hr, conv_last; of another shape: '
        'conv_first.weight',
    ),
}


@pytest.mark.parametrize('kind', OTHER_SCALE)
def test_a_network_takes_all_but_the_upsampler_of_one_of_another_scale(kind, tmp_path):
    block, to_x4, to_x2 = OTHER_SCALE[kind]
    where = 'scale' if block['type'] == 'RRDBNet' else 'upscale'
    nets = {scale: build_network({**block, where: scale}) for scale in (2, 4)}
    for scale, named in ((4, to_x4), (2, to_x2)):
        other = nets[6 - scale].state_dict()
        fitting, line = partial_fit(nets[scale], other, 'net_g.pth', 'strict_load_g')
        assert line.split('; ', 1)[1] == named
        own = nets[scale].state_dict()
        assert fitting.keys() == {key for key in own if key in other and own[key].shape == other[key].shape}


@pytest.mark.parametrize('wrapped', WRAPPED.values(), ids=WRAPPED)
def test_a_part_is_read_from_whatever_a_trainer_has_written(wrapped, tmp_path):
    other = build_network({**STUDENT, 'upscale': 4}).state_dict()
    opt = train_options_of_part(wrapped(other), tmp_path)
    net = build_model(opt).net_g.state_dict()
    assert all(torch.equal(net[key], value) for key, value in other.items() if not key.startswith('upsample.2'))


def train_options_of_part(content: object, folder: Path) -> dict:
    """For ``build_model`` without training."""
    opt = opt_for(content, folder, strict_load_g=False, param_key_g=None)
    return {**opt, 'model_type': 'SRModel', 'scale': 2, 'num_gpu': 0, 'is_train': False, 'dist': False, 'val': None}


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
        build_model(opt_for(copy.deepcopy(content), tmp_path))
    assert '\n' not in str(error.value)


def as_teacher(path: Path, opt: dict, folder: Path) -> nn.Module:
    return build_teacher({'network': STUDENT, 'weights': str(path)}, 2).net


def in_test(path: Path, opt: dict, folder: Path) -> nn.Module:
    """As test.py and train.py load a network: by BasicSR's model."""
    args = parser(is_train=False).parse_args(['-opt', str(option_file(path, opt, folder))])
    return build_model(parse_options(args, is_train=False, root=folder)).net_g


def in_benchmark(path: Path, opt: dict, folder: Path) -> nn.Module:
    complete = with_defaults(changed(opt, 'path.pretrain_network_g', str(path)), is_train=False)
    return build_student('a.yml', complete, torch.device('cpu')).bare


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
    file = '' if location == 'path.resume_state' else f'{opt}: '
    with pytest.raises(UserError, match=rf'^{file}{location}: .*attack\.pth .*; accepted: ') as error:
        train(parser().parse_args(['-opt', str(opt)]), root=tmp_path, console=False)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / 'experiments').exists()


def test_testing_refuses_a_checkpoint_that_carries_code_and_does_not_run_it(attack, test_opt, tmp_path):
    opt = write_yml(changed(test_opt, 'path.pretrain_network_g', str(attack)), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=rf'^{opt}: path\.pretrain_network_g: .*attack\.pth .*holds more than tensors'):
        run_test(parser(is_train=False).parse_args(['-opt', str(opt)]), root=tmp_path, console=False)


def test_neither_spandrel_nor_the_vgg_runs_what_a_checkpoint_carries(attack):
    with pytest.raises(UserError, match=r'teacher\.weights: .*attack\.pth .*holds more than tensors'):
        build_teacher({'weights': str(attack), 'format': 'spandrel'}, 2)
    with pytest.raises(UserError, match=r'vgg_weights: .*attack\.pth .*holds more than tensors'):
        load_vgg(str(attack))


def test_the_attack_would_work_if_it_were_let(weights, tmp_path):
    pickle.loads(pickle.dumps(Attack(tmp_path / 'marker')))
    assert (tmp_path / 'marker').exists()
