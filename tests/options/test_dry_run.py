import re

import pytest
from conftest import changed, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.options import load_options


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        ('network_g.rgb_mean', [0.5], 'network_g: its class does not take these values (RuntimeError: '),
        ('teacher.network.num_feat', 6.5, 'teacher.network: its class does not take these values ('),
        ('train.optim_g.lr', -1, 'train.optim_g: its class does not take these values (ValueError: Invalid learning'),
        ('train.optim_g.betas', [0.9], 'train.optim_g: its class does not take these values'),
        (
            'train.distill_opt.negatives',
            'some',
            "train.distill_opt.negatives: 'some'; accepted: upper, all, per_anchor",
        ),
    ],
)
def test_a_value_that_a_class_refuses_is_refused_with_its_block(train_opt, tmp_path, location, value, message):
    path = write_yml(changed(train_opt, location, value), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=re.escape(message)):
        load_options(str(path), [], is_train=True)
