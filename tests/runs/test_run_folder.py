import os
from pathlib import Path

import pytest
from basicsr.utils.options import dict2str
from conftest import changed, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.runs.run_folder import read_run_folder, run_of

STAMP = '2026-01-02 03:04:05,678 INFO: '
FINISHED = f'{STAMP}End of training. Time consumed: 0:00:09\n'


@pytest.fixture
def folder(train_opt, tmp_path) -> Path:
    """A run's folder as its end leaves it, with two checkpoints."""
    (tmp_path / 'models').mkdir()
    for name in ('net_g_2.pth', 'net_g_10.pth', 'net_g_latest.pth', 'net_r_12.pth'):
        (tmp_path / 'models' / name).touch()
    text = write_yml(train_opt, tmp_path / 'opt.yml').read_text()
    (tmp_path / 'opt.yml').write_text(f'# a date\n# train.py -opt x.yml --force_yml train:total_iter=9\n\n{text}')
    run = dict2str(changed(train_opt, 'train.total_iter', 9))
    log = f'{STAMP}Python 3.12.1, torch 2.9.0\n{STAMP}{run}\n{FINISHED}'
    (tmp_path / 'train_tiny_20260102_030405.log').write_text(log)
    return tmp_path


def test_options_are_those_of_the_run(folder, train_opt):
    run = read_run_folder(folder)
    assert run.opt == changed(train_opt, 'train.total_iter', 9)
    assert run.changes == [('train.total_iter', 4, 9)]
    assert run.command == 'train.py -opt x.yml --force_yml train:total_iter=9'


def test_without_options_in_the_log_the_file_counts(folder, train_opt):
    (folder / 'train_tiny_20260102_030405.log').write_text('')
    write_yml(train_opt, folder / 'opt.yml')
    run = read_run_folder(folder)
    assert (run.opt, run.changes, run.log.sessions) == (train_opt, [], [])


def test_without_the_log_what_the_command_line_changed_is_not_known(folder):
    (folder / 'train_tiny_20260102_030405.log').unlink()
    with pytest.raises(UserError, match=r'RUN_DIR: .* no log with the options .* which --force_yml changed; accepted'):
        read_run_folder(folder)


def test_options_that_a_full_disk_cut_do_not_count(folder):
    whole = (folder / 'train_tiny_20260102_030405.log').read_text()
    cut = whole[: whole.index('num_feat')]
    (folder / 'train_tiny_20260102_040000.log').write_text(f'{cut}\n{STAMP}x\n')
    run = read_run_folder(folder)
    assert (len(run.log.sessions), run.opt['train']['total_iter']) == (2, 9)


@pytest.mark.parametrize('header', ['# {}\n# {}\n\n', '# GENERATE TIME: {}\n# CMD:\n# {}\n\n'])  # BasicSR's
def test_the_option_file_that_was_kept_last_counts_whatever_a_copy_did_to_the_times(header, folder, train_opt):
    for name, time in (('a.yaml', 'Fri Jan  2 03:04:05 2026'), ('opt.yml', 'Thu Dec 25 03:04:05 2025')):
        text = write_yml(changed(train_opt, 'name', name), folder / name).read_text()
        (folder / name).write_text(header.format(time, f'train.py -opt {name}') + text)
    write_yml({}, folder / 'notes.yml')
    os.utime(folder / 'a.yaml', (1, 1))
    run = read_run_folder(folder)
    assert (run.option_file.name, run.command, run.file['name']) == ('a.yaml', 'train.py -opt a.yaml', 'a.yaml')


def test_of_several_option_files_one_must_say_when_it_was_kept(folder, train_opt):
    write_yml(train_opt, folder / 'later.yml')
    with pytest.raises(UserError, match=r'RUN_DIR: .* has 2 option files, and none says in its first line when'):
        read_run_folder(folder)


def test_the_run_of_a_checkpoint_is_the_folder_around_its_models(folder, tmp_path):
    assert run_of(folder / 'models' / 'net_g_2.pth', 'IN').path == folder.resolve()
    assert run_of(folder / 'net_g_2.pth', 'IN') is None
    assert run_of(folder / 'models' / 'models' / 'net_g_2.pth', 'IN') is None


def test_a_finished_run_has_its_last_networks(folder):
    run = read_run_folder(folder)
    assert (run.checkpoint.name, run.iteration) == ('net_g_latest.pth', 9)


def test_a_run_that_goes_on_has_its_newest_numbered_networks(folder):
    log = folder / 'train_tiny_20260102_030405.log'
    log.write_text(log.read_text().replace(FINISHED, ''))
    run = read_run_folder(folder)
    assert (run.checkpoint.name, run.iteration) == ('net_g_10.pth', 10)
    for name in ('net_g_v2.pth', 'net_g_4_swa2.pth', 'net_g_old_999.pth'):  # a user's own
        (folder / 'models' / name).touch()
    assert read_run_folder(folder).iteration == 10
    for path in folder.glob('models/net_g_*.pth'):
        path.unlink()
    assert read_run_folder(folder).checkpoint is None


def test_later_logs_go_on_from_earlier_ones(folder):
    first = folder / 'train_tiny_20260102_030405.log'
    (folder / 'train_tiny_20260102_040000.log').write_text(first.read_text().replace('3.12.1', '3.13.0'))
    versions = [session.versions for session in read_run_folder(folder).log.sessions]
    assert versions == ['Python 3.12.1, torch 2.9.0', 'Python 3.13.0, torch 2.9.0']


@pytest.mark.parametrize(
    ('mistake', 'message'),
    [
        (lambda folder: folder / 'gone', r'RUN_DIR: no such folder: .*gone; accepted: .*experiments/NAME'),
        (lambda folder: folder / 'models', r'RUN_DIR: .*models has no option file; accepted: .*experiments/NAME'),
        (lambda folder: (folder / 'opt.yml').unlink() or folder, r'RUN_DIR: .* has no option file; accepted'),
        (
            lambda folder: (folder / 'opt.yml').write_text('[1]') and folder,
            r'opt\.yml: holds list; accepted: option keys',
        ),
        (lambda folder: (folder / 'opt.yml').write_text('a: [') and folder, r'opt\.yml, line 1: .*; accepted: plain'),
        (lambda folder: (folder / 'opt.yml').write_bytes(b'\xff') and folder, r'opt\.yml: not text; accepted'),
    ],
)
def test_what_is_no_run_is_refused_in_a_line(folder, mistake, message):
    with pytest.raises(UserError, match=message) as caught:
        read_run_folder(mistake(folder))
    assert '\n' not in str(caught.value)


def test_an_option_file_of_something_else_is_refused(folder):
    (folder / 'opt.yml').write_text('name: x\nscale: 2\n')
    (folder / 'train_tiny_20260102_030405.log').write_text('')
    with pytest.raises(UserError, match=r'opt\.yml: model_type: missing; accepted'):
        read_run_folder(folder)
