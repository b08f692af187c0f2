"""The arguments of one of spandrel's networks are read off the checkpoint that it begins from."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import changed, train_options, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.methods import load_methods
from facd_basicsr.options.parse import checked
from facd_basicsr.runtime.rng import rng_state

pytest.importorskip('spandrel')

SPAN = {'type': 'SPAN', 'num_in_ch': 3, 'num_out_ch': 3, 'feature_channels': 8, 'upscale': 2}
ALL = {**SPAN, 'bias': True, 'norm': True, 'img_range': 255.0, 'rgb_mean': [0.4488, 0.4371, 0.4040]}


def saved(network_opt: dict, path: Path) -> str:
    torch.save({'params': build_network(network_opt).state_dict()}, path)
    return str(path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return saved(SPAN, tmp_path / 'span.pth')


def network_of(opt: dict, network_opt: dict, checkpoint: str, **path_opt: object) -> dict:
    """``network_g`` of a test file, completed."""
    opt = {**opt, 'network_g': network_opt, 'path': {'pretrain_network_g': checkpoint, **path_opt}}
    return checked(opt, 'opt.yml', is_train=False)['network_g']


def test_arguments_that_are_left_out_are_those_of_the_checkpoint(test_opt, checkpoint):
    before = rng_state()
    assert network_of(test_opt, {'type': 'SPAN'}, checkpoint) == ALL
    assert rng_state() == before


def test_what_no_checkpoint_tells_is_as_given(test_opt, checkpoint):
    given = {'type': 'SPAN', 'img_range': 1.0, 'rgb_mean': [0.5, 0.5, 0.5]}
    assert network_of(test_opt, given, checkpoint) == {**ALL, **given}


@pytest.mark.parametrize('wrapped', [lambda own: own, lambda own: {f'module.{key}': own[key] for key in own}])
def test_any_trainers_checkpoint_tells(wrapped, test_opt, tmp_path):
    torch.save({'params_ema': wrapped(build_network(SPAN).state_dict())}, tmp_path / 'span.pth')
    assert network_of(test_opt, {'type': 'SPAN'}, str(tmp_path / 'span.pth')) == ALL


def test_a_lightning_checkpoint_tells(test_opt, tmp_path):
    own = {f'net.{key}': value for key, value in build_network(SPAN).state_dict().items()}
    torch.save({'state_dict': {**own, 'loss.weight': torch.ones(1)}}, tmp_path / 'span.ckpt')
    assert network_of(test_opt, {'type': 'SPAN'}, str(tmp_path / 'span.ckpt')) == ALL


@pytest.mark.parametrize(
    ('key', 'value', 'has'), [('feature_channels', 48, 8), ('norm', False, True), ('num_in_ch', 1, 3)]
)
def test_a_given_argument_that_contradicts_the_checkpoint_is_refused(key, value, has, test_opt, checkpoint):
    message = f'opt.yml: network_g.{key}: {value}, but {checkpoint} has {has}; accepted: {has}, or another checkpoint'
    with pytest.raises(UserError, match=f'^{re.escape(message)}$'):
        network_of(test_opt, {**ALL, key: value}, checkpoint)


def test_a_checkpoint_of_another_scale_is_refused(test_opt, tmp_path):
    x4 = saved({**SPAN, 'upscale': 4}, tmp_path / 'x4.pth')
    with pytest.raises(UserError, match=r'x4\.pth has upscale: 4; accepted: 2, the scale of this file'):
        network_of(test_opt, {'type': 'SPAN'}, x4)


@pytest.mark.parametrize(
    ('network_opt', 'what'),
    [
        ({'type': 'MoSR', 'dim': 8, 'n_block': 1, 'upscale': 2}, 'is of MoSR'),
        ({'type': 'RCAN_spandrel', 'n_feats': 16, 'n_resblocks': 1, 'scale': 2}, 'is of RCAN_spandrel'),
        ({'type': 'EDSRStudent', 'num_feat': 4, 'num_block': 1, 'upscale': 2}, 'is not recognized by spandrel'),
    ],
)
def test_a_checkpoint_of_another_class_is_refused(network_opt, what, test_opt, tmp_path):
    path = saved(network_opt, tmp_path / 'other.pth')
    accepted = 'accepted: a checkpoint of SPAN, the type of network_g, or network_g with num_in_ch, num_out_ch, '
    with pytest.raises(UserError, match=re.escape(f'path.pretrain_network_g: {path} {what}; {accepted}')):
        network_of(test_opt, {'type': 'SPAN'}, path)


def test_a_checkpoint_that_is_not_there_is_named_where_an_argument_is_missing(test_opt):
    with pytest.raises(
        UserError, match=r'no such file: absent\.pth; accepted: one that is there, or network_g with num_'
    ):
        network_of(test_opt, {'type': 'SPAN'}, 'absent.pth')
    assert network_of(test_opt, SPAN, 'absent.pth') == ALL


def test_nothing_is_taken_from_a_checkpoint_that_need_not_fit(test_opt, tmp_path):
    x4 = saved({**SPAN, 'upscale': 4}, tmp_path / 'x4.pth')
    assert network_of(test_opt, SPAN, x4, strict_load_g=False) == ALL


def test_training_has_every_argument_in_its_options(train_opt, checkpoint, tmp_path):
    opt = {**train_opt, 'network_g': {'type': 'SPAN'}, 'path': {'pretrain_network_g': checkpoint}}
    assert train_options(opt, tmp_path)['network_g'] == ALL


def test_benchmark_needs_the_type_alone(test_opt, checkpoint, tmp_path):
    opt = changed({**test_opt, 'network_g': {'type': 'SPAN'}}, 'path', {'pretrain_network_g': checkpoint})
    _, method = load_methods([str(write_yml(opt, tmp_path / 'opt.yml'))], None, [])[0]
    assert method.bare.hyperparameters['feature_channels'] == 8


def test_an_argument_that_spandrel_only_supposes_is_the_classs_default(test_opt, tmp_path):
    """Of MoESR's ``expansion_factor`` a checkpoint's shapes tell a range, of which spandrel takes another value."""
    arguments = {'type': 'MoESR', 'dim': 8, 'n_blocks': 1, 'n_block': 1, 'upsample_dim': 8, 'scale': 2}
    path = saved(arguments, tmp_path / 'moesr.pth')
    network_opt = network_of(test_opt, {'type': 'MoESR'}, path)
    class_default = inspect.signature(ARCH_REGISTRY.get('MoESR')).parameters['expansion_factor'].default
    assert network_opt['expansion_factor'] == class_default
