import re

import pytest
from conftest import changed, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.options import load_options


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        ('network_g.rgb_mean', [0.5], 'network_g.rgb_mean: [0.5]; not accepted by EDSRStudent (RuntimeError: '),
        ('train.optim_g.betas', [0.9], 'train.optim_g.betas: [0.9]; not accepted by Adam (IndexError: '),
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


def test_where_no_single_key_is_at_fault_the_block_is_named(train_opt, tmp_path):
    both = {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9], 'foreach': True, 'fused': True}
    path = write_yml(changed(train_opt, 'train.optim_g', both), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'train\.optim_g: its class does not take these values \('):
        load_options(str(path), [], is_train=True)


def test_a_losss_default_weights_must_be_one_per_tap(train_opt, tmp_path):
    train_opt['taps'].pop()
    path = write_yml(train_opt, tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'layer_weights: \[0.5, 0.3, 0.2\] for 2 taps; accepted: one weight per tap'):
        load_options(str(path), [], is_train=True)
