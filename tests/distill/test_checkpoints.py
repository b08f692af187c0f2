"""Checkpoints that BasicSR's models are going to load; tests/distill/test_teacher.py has the teacher's."""

import copy
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from conftest import STUDENT, TEACHER

from facd_basicsr.distill.checkpoints import check_pretrained
from facd_basicsr.errors import UserError


def opt_for(content: object, folder: Path, **path_opt: object) -> dict:
    path = folder / 'net_g.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return {'network_g': STUDENT, 'path': {'pretrain_network_g': str(path), **path_opt}}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return build_network(STUDENT).state_dict()


def test_what_basicsr_loads_is_accepted(weights, tmp_path):
    check_pretrained(opt_for({'params': weights}, tmp_path))
    check_pretrained(opt_for({'params': weights, 'params_ema': weights}, tmp_path, param_key_g='params_ema'))
    check_pretrained(opt_for({'params': weights}, tmp_path, param_key_g='params_ema'))  # BasicSR falls back
    check_pretrained(opt_for(weights, tmp_path, param_key_g=None))
    check_pretrained({'network_g': STUDENT, 'path': {'pretrain_network_g': None}})


def test_without_strict_load_only_reading_is_checked(weights, tmp_path):
    del weights['conv_last.bias']
    check_pretrained(opt_for({'params': weights}, tmp_path, strict_load_g=False))
    with pytest.raises(
        UserError, match=r'path.pretrain_network_g: .*net_g.pth does not fit EDSRStudent: keys 1 missing'
    ):
        check_pretrained(opt_for({'params': weights}, tmp_path))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'<html>not found</html>', "net_g.pth can't be read as a checkpoint of tensors"),
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
