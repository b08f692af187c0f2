from collections import Counter
from pathlib import Path

import pytest
import torch

from facd_basicsr.engine.resume import load_resume_state, newest_state
from facd_basicsr.errors import UserError


def opt_for(folder: Path, auto_resume: bool = True, resume_state: Path | None = None) -> dict:
    return {
        'auto_resume': auto_resume,
        'network_g': {},
        'network_r': {},
        'path': {
            'training_states': str(folder),
            'models': str(folder),
            'resume_state': None if resume_state is None else str(resume_state),
        },
    }


def write_state(folder: Path, iteration: int) -> Path:
    path = folder / f'{iteration}.state'
    torch.save({'epoch': 1, 'iter': iteration, 'optimizers': [], 'schedulers': [{'milestones': Counter([3])}]}, path)
    for net in 'gr':
        (folder / f'net_{net}_{iteration}.pth').touch()
    return path


def test_the_highest_iteration_is_the_newest(tmp_path):
    for name in ('9.state', '100.state', '20.state', 'latest.state', '3000.pth'):
        (tmp_path / name).touch()
    assert newest_state(tmp_path).name == '100.state'
    assert newest_state(tmp_path / 'absent') is None


def test_auto_resume_points_every_network_at_the_states_iteration(tmp_path):
    write_state(tmp_path, 5)
    write_state(tmp_path, 50)
    opt = opt_for(tmp_path)
    assert load_resume_state(opt)['iter'] == 50
    assert opt['path']['pretrain_network_g'] == str(tmp_path / 'net_g_50.pth')
    assert opt['path']['pretrain_network_r'] == str(tmp_path / 'net_r_50.pth')


def test_a_named_state_is_taken_without_auto_resume(tmp_path):
    path = write_state(tmp_path, 5)
    write_state(tmp_path, 50)
    assert load_resume_state(opt_for(tmp_path, auto_resume=False, resume_state=path))['iter'] == 5


def test_without_a_state_training_starts_afresh(tmp_path):
    assert load_resume_state(opt_for(tmp_path)) is None
    assert load_resume_state(opt_for(tmp_path, auto_resume=False)) is None


@pytest.mark.parametrize('content', [b'', b'half a file'])
def test_a_damaged_state_is_refused_in_one_line(tmp_path, content):
    (tmp_path / '7.state').write_bytes(content)
    with pytest.raises(UserError, match=r'--auto_resume: .*7.state is no readable training state; accepted: a whole'):
        load_resume_state(opt_for(tmp_path))


def test_a_state_whose_networks_are_gone_is_refused(tmp_path):
    write_state(tmp_path, 5)
    (tmp_path / 'net_r_5.pth').unlink()
    with pytest.raises(UserError, match=r'5.state needs .*net_r_5.pth, which is missing'):
        load_resume_state(opt_for(tmp_path))
