import pytest
import torch

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


@pytest.mark.parametrize(('launcher', 'missing'), [('slurm', 'SLURM_PROCID'), ('pytorch', 'RANK')])
def test_a_launcher_without_its_environment_is_refused(launcher, missing):
    with pytest.raises(UserError, match=rf'--launcher: {launcher}, but .*{missing}.*; accepted: start it as'):
        distributed.init_dist(launcher, on_gpu=False, dist_params={})


def test_an_error_of_another_rank_is_told_from_one_of_this():
    assert distributed.lost_rank(RuntimeError('[/gloo/transport/tcp/pair.cc:553] Connection closed by peer'))
    assert distributed.lost_rank(torch.distributed.DistBackendError('NCCL communicator was aborted'))
    assert not distributed.lost_rank(RuntimeError('mat1 and mat2 shapes cannot be multiplied'))


def test_alone_ranks_ask_nobody():
    ranks = distributed.Ranks()
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.gather('x') == ['x'] and ranks.from_first('x') == 'x'
    flags = iter([True])
    assert ranks.begin_any(lambda: next(flags))() is True
