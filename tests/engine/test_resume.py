import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from basicsr.utils.misc import check_resume

from facd_basicsr.data.loaders import ResumableSampler
from facd_basicsr.engine.checkpoint import Position
from facd_basicsr.engine.resume import load_resume_state, newest_first, resumed_position
from facd_basicsr.errors import UserError
from facd_basicsr.files.atomic import atomic_torch_save
from facd_basicsr.files.download import sha256_of
from facd_basicsr.runtime.processes import Ranks


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
    networks = {}
    for net in 'gr':
        name = f'net_{net}_{iteration}.pth'
        atomic_torch_save({'params': {'weight': torch.full((3,), float(iteration))}}, folder / name)
        networks[name] = sha256_of(folder / name)
    path = folder / f'{iteration}.state'
    schedulers = [{'milestones': Counter([3])}]  # as BasicSR's
    state = {'epoch': 1, 'iter': iteration, 'optimizers': [], 'schedulers': schedulers, 'networks': networks}
    atomic_torch_save(state, path)
    (folder / 'latest').write_text(f'{path.name}\n')
    return path


def load(opt: dict) -> tuple[int | None, list[str]]:
    """The iteration that is resumed from, and the warnings."""
    warnings: list[str] = []
    state = load_resume_state(opt, Ranks(), warnings.append)
    if state is not None:
        check_resume(opt, state['iter'])  # as train.py does
    return (None if state is None else state['iter']), warnings


def test_auto_resume_takes_the_newest_state_and_points_every_network_at_it(tmp_path):
    write_state(tmp_path, 5)
    write_state(tmp_path, 50)
    opt = opt_for(tmp_path)
    assert load(opt) == (50, [])
    assert opt['path']['pretrain_network_g'] == str(tmp_path / 'net_g_50.pth')
    assert opt['path']['pretrain_network_r'] == str(tmp_path / 'net_r_50.pth')


def test_a_named_state_is_taken_without_auto_resume(tmp_path):
    path = write_state(tmp_path, 5)
    write_state(tmp_path, 50)
    assert load(opt_for(tmp_path, auto_resume=False, resume_state=path))[0] == 5
    assert load(opt_for(tmp_path, auto_resume=False, resume_state=tmp_path / 'latest'))[0] == 50


def test_without_a_state_training_starts_afresh(tmp_path):
    assert load(opt_for(tmp_path)) == (None, [])
    assert load(opt_for(tmp_path, auto_resume=False)) == (None, [])


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def one_bit_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b'iter' if path.suffix == '.state' else b'weight')] ^= 1
    path.write_bytes(content)


def replaced(path: Path) -> None:
    path.write_bytes(b'half a file')


@pytest.mark.parametrize('damage', [cut_short, emptied, one_bit_flipped, replaced, Path.unlink])
@pytest.mark.parametrize('name', ['50.state', 'net_g_50.pth', 'net_r_50.pth'])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_taken(tmp_path, name, damage):
    write_state(tmp_path, 5)
    write_state(tmp_path, 50)
    damage(tmp_path / name)
    iteration, warnings = load(opt_for(tmp_path))
    assert iteration == 5
    if (tmp_path / '50.state').exists():
        (warning,) = warnings
        assert '50.state' in warning and name in warning and '\n' not in warning


def test_every_flipped_byte_of_a_state_that_matters_is_noticed(tmp_path):
    path = write_state(tmp_path, 5)
    whole = path.read_bytes()
    expected = torch.load(path, weights_only=True)
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        try:
            load(opt_for(tmp_path))
        except UserError:
            continue
        assert torch.load(path, weights_only=True) == expected, position  # padding, or a time in the archive's list


def test_nothing_is_begun_anew_when_every_state_is_damaged(tmp_path):
    for iteration in (5, 50):
        replaced(write_state(tmp_path, iteration))
    with pytest.raises(
        UserError, match=r'--auto_resume: none of the 2 states in .* is intact; accepted: .* starts over'
    ):
        load(opt_for(tmp_path))


@pytest.mark.parametrize('left', ['net_g_latest.pth', 'latest'])  # of a finished run, and of any other
def test_nothing_is_begun_anew_over_the_networks_of_a_run_whose_states_are_gone(tmp_path, left):
    (tmp_path / left).touch()
    with pytest.raises(UserError, match=r'--auto_resume: .* has the networks of an earlier run, but .* no state'):
        load(opt_for(tmp_path))


@pytest.mark.parametrize('damage', [cut_short, emptied, replaced, Path.unlink])
def test_a_damaged_state_that_is_named_is_refused_in_one_line(tmp_path, damage):
    path = write_state(tmp_path, 5)
    damage(path)
    with pytest.raises(UserError, match=r'path.resume_state: .*5.state is no readable training state .*; accepted: a'):
        load(opt_for(tmp_path, auto_resume=False, resume_state=path))


class Marker:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize('content', [[1, 2], {'iter': 5}])
def test_what_is_no_state_is_refused_in_one_line(tmp_path, content):
    torch.save(content, tmp_path / '5.state')
    with pytest.raises(UserError, match=r'none of the 1 states in .* is intact'):
        load(opt_for(tmp_path))


def test_a_damaged_pointer_does_no_harm(tmp_path):
    write_state(tmp_path, 5)
    (tmp_path / 'latest').write_bytes(b'\xff\xfe')
    assert load(opt_for(tmp_path)) == (5, [])


def test_auto_resume_without_states_of_its_own_begins_at_the_one_that_is_named(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    path = write_state(tmp_path / 'elsewhere', 7)
    opt = opt_for(tmp_path / 'elsewhere', resume_state=path)
    opt['path']['training_states'] = str(tmp_path / 'own')
    assert load(opt) == (7, [])


def test_code_in_a_state_is_not_run(tmp_path):
    path = tmp_path / '5.state'
    torch.save({'iter': 5, 'code': Marker(tmp_path / 'ran')}, path)
    with pytest.raises(UserError, match=r'5.state is no readable training state'):
        load(opt_for(tmp_path, auto_resume=False, resume_state=path))
    assert not (tmp_path / 'ran').exists()


def test_a_state_by_basicsr_is_taken_with_the_networks_of_its_iteration(tmp_path):
    torch.save({'epoch': 1, 'iter': 5, 'optimizers': [], 'schedulers': []}, tmp_path / '5.state')
    with pytest.raises(UserError, match=r'none of the 1 states'):
        load(opt_for(tmp_path))
    (tmp_path / 'net_g_5.pth').touch()
    assert load(opt_for(tmp_path)) == (5, [])


def names(folder: Path) -> list[str]:
    return [path.name for path in newest_first(folder)]


def touch(path: Path, seconds: int) -> None:
    path.touch()
    os.utime(path, (seconds, seconds))


def test_the_state_that_was_written_last_comes_first_though_another_continuation_got_further(tmp_path):
    for iteration in (9, 100, 2000):
        touch(tmp_path / f'{iteration}.state', iteration)
    touch(tmp_path / '3000.pth', 0)
    assert names(tmp_path) == ['2000.state', '100.state', '9.state']
    touch(tmp_path / '100.state', 3000)
    (tmp_path / 'latest').write_text('100.state\n')
    touch(tmp_path / 'latest', 3001)
    assert names(tmp_path) == ['100.state', '2000.state', '9.state']
    touch(tmp_path / '200.state', 3002)  # killed before `latest` was written
    assert names(tmp_path) == ['200.state', '100.state', '2000.state', '9.state']
    assert names(tmp_path / 'absent') == []


def sampler(batch_size: int = 2, world_size: int = 2, images: int = 24, seed: int = 0) -> ResumableSampler:
    return ResumableSampler(images, 1, batch_size, seed, 0, world_size)


def state_of(made_by: ResumableSampler, batches: int) -> dict:
    return {'iter': 10, 'epoch': 1, 'batches': batches, 'data': made_by.settings()}


def test_training_goes_on_after_the_batch_it_was_stopped_at():
    assert resumed_position(state_of(sampler(), 3), sampler()) == (Position(10, 1, 3), [])


def test_a_stage_begins_with_the_next_epoch_and_its_own_batches():
    state = state_of(sampler(), 3)
    assert resumed_position(state, sampler(batch_size=4), begins=True) == (Position(10, 2, 0), [])


def test_with_other_batches_it_goes_on_after_the_same_samples_and_says_what_differs():
    position, differences = resumed_position(state_of(sampler(), 3), sampler(batch_size=4, world_size=1))
    assert position == Position(10, 1, 3)  # 12 samples done, either way
    assert differences == ['batch_size was 2 and is 4', 'world_size was 2 and is 1']


def test_with_other_images_the_epoch_is_begun_again():
    position, differences = resumed_position(state_of(sampler(), 3), sampler(images=30))
    assert position == Position(10, 1, 0)
    assert differences == ['images was 24 and is 30', 'samples was 24 and is 30']


def test_a_state_without_a_position_begins_the_epoch_again_and_says_so():
    position, differences = resumed_position({'iter': 10, 'epoch': 1}, sampler())
    assert position == Position(10, 1, 0) and len(differences) == 1
