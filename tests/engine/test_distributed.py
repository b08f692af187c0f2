import pytest

from facd_basicsr.engine import distributed
from facd_basicsr.errors import UserError


@pytest.mark.parametrize(
    ('launcher', 'passed'), [('pytorch', {'backend': 'nccl'}), ('slurm', {'backend': 'nccl', 'port': 5})]
)
def test_the_port_of_dist_params_is_for_slurm_only(monkeypatch, launcher, passed):
    calls = []
    monkeypatch.setattr(distributed, 'basicsr_init_dist', lambda name, **params: calls.append((name, params)))
    distributed.init_dist(launcher, on_gpu=True, dist_params={'backend': 'nccl', 'port': 5})
    assert calls == [(launcher, passed)]


def test_slurm_without_gpus_is_refused():
    with pytest.raises(UserError, match='--launcher: slurm without GPUs; accepted without GPUs: none, pytorch'):
        distributed.init_dist('slurm', on_gpu=False, dist_params={})
