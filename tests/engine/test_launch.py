import pytest
import torch

from facd_basicsr.engine import launch
from facd_basicsr.errors import PeerFailedError, UserError


@pytest.mark.parametrize(
    ('launcher', 'passed'), [('pytorch', {'backend': 'nccl'}), ('slurm', {'backend': 'nccl', 'port': 5})]
)
def test_the_port_of_dist_params_is_for_slurm_only(monkeypatch, launcher, passed):
    calls = []
    monkeypatch.setattr(launch, 'basicsr_init_dist', lambda name, **params: calls.append((name, params)))
    launch.init_dist(launcher, on_gpu=True, dist_params={'backend': 'nccl', 'port': 5})
    assert calls == [(launcher, passed)]


@pytest.mark.parametrize(('launcher', 'missing'), [('slurm', 'SLURM_PROCID'), ('pytorch', 'RANK')])
def test_a_launcher_without_its_environment_is_refused(launcher, missing):
    with pytest.raises(UserError, match=rf'--launcher: {launcher}, but .*{missing}.*; accepted: start it as'):
        launch.init_dist(launcher, on_gpu=False, dist_params={})


def test_slurm_without_scontrol_is_refused(monkeypatch, tmp_path):
    for name, value in {'PROCID': '0', 'NTASKS': '1', 'NODELIST': 'node1'}.items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match=r'--launcher: slurm, but .*scontrol'):
        launch.init_dist('slurm', on_gpu=False, dist_params={})


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(UserError, match=r'--launcher: pytorch, with 4 processes on a machine with 2 GPUs; accepted'):
        launch.init_dist('pytorch', on_gpu=True, dist_params={})


def test_an_error_of_another_rank_is_told_from_one_of_this():
    assert launch.is_peer_failure(RuntimeError('[/gloo/transport/tcp/pair.cc:553] Connection closed by peer'))
    assert launch.is_peer_failure(torch.distributed.DistBackendError('NCCL communicator was aborted'))
    assert not launch.is_peer_failure(torch.distributed.DistBackendError('ncclInvalidUsage: Duplicate GPU detected'))
    assert not launch.is_peer_failure(RuntimeError('mat1 and mat2 shapes cannot be multiplied'))


def test_a_lost_rank_is_named_in_one_line_and_other_errors_stay():
    message = r'^another rank has ended, or is out of reach \(\[gloo/transport/tcp/pair.cc:1\] Connection closed\)$'
    with pytest.raises(PeerFailedError, match=message), launch.reraise_peer_failure():
        raise RuntimeError('[gloo/transport/tcp/pair.cc:1]\nConnection closed')
    with pytest.raises(RuntimeError, match=r'^mine$'), launch.reraise_peer_failure():
        raise RuntimeError('mine')
