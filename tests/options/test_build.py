import re

import pytest
import torch
from basicsr.archs import build_network
from conftest import changed, write_yml

from facd_basicsr.archs import build_without_weights
from facd_basicsr.distill.teacher import build_teacher
from facd_basicsr.errors import UserError
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options import load_options


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        ('network_g.rgb_mean', [0.5], 'network_g.rgb_mean: [0.5]; not accepted by EDSRStudent (RuntimeError: '),
        ('train.optim_g.betas', [0.9], 'train.optim_g.betas: [0.9]; not accepted by Adam (IndexError: '),
        ('train.optim_g', {'type': 'SGD', 'lr': 1, 'momentum': -1}, 'optim_g.momentum: -1; not accepted by SGD (Value'),
        ('train.scheduler.restarts', [0, 2], 'train.scheduler.restarts: [0, 2]; not accepted by MultiStepLR (Asse'),
        ('network_r.num_layer', 0, 'network_r.num_layer: 0; accepted: 1 or more'),
        ('network_r', ..., 'network_r: missing; accepted: {type: DeepRegressor}, for the loss asks for regressors'),
        (
            'train.distill_opt.negatives',
            'some',
            "train.distill_opt.negatives: 'some'; accepted: upper, all, per_anchor",
        ),
    ],
)
def test_a_value_that_a_class_refuses_is_refused_with_its_key(train_opt, tmp_path, location, value, message):
    path = write_yml(changed(train_opt, location, value), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=re.escape(message)):
        load_options(str(path), [], is_train=True)


@pytest.mark.parametrize('key', ['optim_g', 'optim_d'])
def test_an_optimizer_that_refuses_its_options_is_refused_before_training(train_opt, tmp_path, key):
    train_opt['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
    train_opt['train'] |= {
        'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
        'optim_d': {'type': 'Adam', 'lr': 1e-4},
        key: {'type': 'SGD', 'lr': 1e-4, 'nesterov': True},
    }
    path = write_yml(train_opt, tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=rf'train\.{key}.*SGD.*Nesterov momentum requires'):
        load_options(str(path), [], is_train=True)


def test_two_losses_of_one_name_are_refused_before_training(train_opt, tmp_path):
    train_opt['train'] |= {'distill_opt': {'pix': {'type': 'FACDLoss'}}, 'pixel_opt': {'type': 'L1Loss'}}
    with pytest.raises(UserError, match=r'train\.distill_opt\.pix: the name of a loss of train\.pixel_opt'):
        load_options(str(write_yml(train_opt, tmp_path / 'opt.yml')), [], is_train=True)


def test_a_schedule_is_refused_for_a_model_that_knows_none(train_opt, tmp_path):
    for key in ('teacher', 'taps', 'network_r'):
        del train_opt[key]
    del train_opt['train']['distill_opt']
    train_opt['model_type'] = 'SwinIRModel'
    train_opt['train']['pixel_opt'] = {'type': 'L1Loss', 'loss_weight': {'start': 1, 'end': 0, 'over': 2}}
    with pytest.raises(UserError, match=r'train\.pixel_opt\.loss_weight: .*; accepted: a number$'):
        load_options(str(write_yml(train_opt, tmp_path / 'opt.yml')), [], is_train=True)


def test_where_no_single_key_is_at_fault_the_block_is_named(train_opt, tmp_path):
    both = {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9], 'foreach': True, 'fused': True}
    path = write_yml(changed(train_opt, 'train.optim_g', both), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'train\.optim_g: Adam does not take these values \('):
        load_options(str(path), [], is_train=True)


def test_a_losss_default_weights_must_be_one_per_tap(train_opt, tmp_path):
    train_opt['taps'].pop()
    path = write_yml(train_opt, tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'layer_weights: \[0.5, 0.3, 0.2\] for 2 taps; accepted: one weight per tap'):
        load_options(str(path), [], is_train=True)


SWINIR = {
    'type': 'SwinIR',
    'upscale': 2,
    'img_size': 16,
    'window_size': 8,
    'embed_dim': 12,
    'depths': [2],
    'num_heads': [2],
    'upsampler': 'pixelshuffledirect',
}
ECBSR = {
    'type': 'ECBSR',
    'num_in_ch': 3,
    'num_out_ch': 3,
    'num_block': 1,
    'num_channel': 4,
    'with_idt': False,
    'act_type': 'prelu',
    'scale': 2,
}
RIDNET = {'type': 'RIDNet', 'in_channels': 3, 'mid_channels': 16, 'out_channels': 3}


@pytest.mark.parametrize('network', [SWINIR, ECBSR, RIDNET], ids=lambda network: network['type'])
def test_a_network_that_the_meta_device_does_not_take_is_accepted_as_student_and_teacher(train_opt, tmp_path, network):
    with pytest.raises((RuntimeError, TypeError)), torch.device('meta'):
        build_network(network)
    torch.save({'params': build_network(network).state_dict()}, tmp_path / 'net.pth')
    opt = changed(changed(train_opt, 'network_g', network), 'teacher.network', network)
    for key in ('path.pretrain_network_g', 'teacher.weights'):
        opt = changed(opt, key, str(tmp_path / 'net.pth'))
    opt = load_options(str(write_yml(opt, tmp_path / 'opt.yml')), [], is_train=True)
    plain = {'model_type': 'SRModel', 'dist': False, 'is_train': False, 'val': None}
    for net in (build_model({**opt, **plain}).net_g, build_teacher(opt['teacher'], 2).net):
        assert type(net).__name__ == network['type']


def test_a_network_is_built_for_its_keys_without_touching_the_random_numbers():
    for network in (SWINIR, {'type': 'EDSRStudent'}):
        torch.manual_seed(3)
        keys = build_without_weights(network).state_dict().keys()
        after = torch.rand(4)
        torch.manual_seed(3)
        assert torch.equal(torch.rand(4), after)
        assert keys == build_network(network).state_dict().keys()
    assert build_without_weights({'type': 'EDSRStudent'}).conv_first.weight.is_meta


def test_what_the_class_refuses_on_the_cpu_is_what_is_blamed(train_opt, tmp_path):
    opt = changed(train_opt, 'network_g', {**SWINIR, 'num_heads': []})
    with pytest.raises(UserError, match=r'network_g\.num_heads: \[\]; not accepted by SwinIR \(IndexError: '):
        load_options(str(write_yml(opt, tmp_path / 'opt.yml')), [], is_train=True)
