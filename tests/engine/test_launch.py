import pytest
import torch
from conftest import write_yml
from runs import run

from facd_basicsr.engine import launch
from facd_basicsr.errors import PeerFailedError, UserError
from facd_basicsr.options import parser
from facd_basicsr.test import test as evaluate


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


@pytest.mark.parametrize(
    ('variable', 'launcher', 'starter'),
    [('WORLD_SIZE', 'pytorch', 'torchrun'), ('SLURM_STEP_NUM_TASKS', 'slurm', 'srun')],
)
def test_several_processes_without_a_launcher_are_refused_before_anything_is_created(
    variable, launcher, starter, monkeypatch, train_opt, test_opt, teacher_weights, tmp_path
):
    monkeypatch.setenv(variable, '2')
    message = rf'--launcher: none, but {starter} has started 2 processes .*; accepted: --launcher {launcher}'
    with pytest.raises(UserError, match=message):
        run(train_opt, tmp_path)
    test_opt['path']['pretrain_network_g'] = str(teacher_weights)
    path = str(write_yml(test_opt, tmp_path / 'test.yml'))
    with pytest.raises(UserError, match=message):
        evaluate(parser(is_train=False).parse_args(['-opt', path]), tmp_path, console=False)
    assert {path.name for path in tmp_path.iterdir()} == {'opt.yml', 'test.yml'}
    monkeypatch.setenv(variable, '1')
    launch.start_ranks({'dist': False}, 'none')


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
