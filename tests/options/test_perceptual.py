import re

import pytest

from facd_basicsr.errors import UserError
from facd_basicsr.options.option_check import check_options


def perceptual(train_opt: dict, **keys: object) -> dict:
    """A file of BasicSR's model, whose loss is PerceptualLoss."""
    opt = {k: v for k, v in train_opt.items() if k not in ('teacher', 'taps', 'network_r')} | {'model_type': 'SRModel'}
    opt['train'] = {k: v for k, v in opt['train'].items() if k != 'distill_opt'}
    opt['path'] = {k: v for k, v in opt['path'].items() if not k.endswith('_r')}
    opt['train']['perceptual_opt'] = {'type': 'PerceptualLoss', 'layer_weights': {'conv5_4': 1.0}, **keys}
    return opt


@pytest.mark.parametrize('keys', [{}, {'criterion': 'fro', 'vgg_type': 'vgg16_bn', 'layer_weights': {'bn5_3': 1}}])
def test_a_perceptual_loss_that_can_be_built_is_accepted(train_opt, keys):
    check_options(perceptual(train_opt, **keys), is_train=True)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('criterion', 'l2', "criterion: 'l2'; accepted: l1, fro"),
        ('vgg_type', 'vgg99', "vgg_type: 'vgg99'; accepted: vgg11, vgg11_bn, vgg13"),
        ('layer_weights', ['conv5_4'], "layer_weights: ['conv5_4']; accepted: a block of keys"),
        ('layer_weights', {}, 'layer_weights: {}; accepted: a weight for one layer or more, e.g. {conv5_4: 1.0}'),
        ('layer_weights', {'conv5_5': 1}, "layer_weights.conv5_5: no layer of vgg19; did you mean 'conv5_4'? Accepted"),
        ('layer_weights', {'conv5_4': '1'}, "layer_weights.conv5_4: '1'; accepted: a number"),
    ],
)
def test_a_perceptual_loss_that_fails_when_it_is_built_is_refused_before(train_opt, key, value, message):
    opt = perceptual(train_opt, **{key: value})
    with pytest.raises(UserError, match=f'^train.perceptual_opt.{re.escape(message)}'):
        check_options(opt, is_train=True)
