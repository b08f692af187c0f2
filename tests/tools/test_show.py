from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, run, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.options import load_yaml, read_option_file
from facd_basicsr.options.option_check import check_options
from facd_basicsr.tools.show import show


@pytest.fixture
def child(train_opt: dict, tmp_path: Path) -> Path:
    """child.yml, based on parent.yml, based on base.yml. Its data does not exist."""
    train_opt['datasets']['train']['dataroot_gt'] = '/absent/HR.lmdb'
    train_opt['teacher']['weights'] = '~/absent.pth'
    write_yml(train_opt, tmp_path / 'base.yml')
    write_yml({'base': 'base.yml', 'train': {'total_iter': 9}}, tmp_path / 'parent.yml')
    return write_yml({'base': 'parent.yml', 'name': 'child', 'val': None}, tmp_path / 'child.yml')


def test_the_command_prints_a_standalone_option_file(child, train_opt, tmp_path):
    done = run(
        '-m', 'facd_basicsr.cli', 'show', '-opt', 'child.yml', '--force_yml', 'scale=2', 'manual_seed=3', cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        '# resolved from child.yml, which is based on parent.yml, which is based on base.yml\n'
        '# with --force_yml scale=2 manual_seed=3\n'
        '\nname: child\n'
    )
    expected = {**train_opt, 'name': 'child', 'manual_seed': 3}
    expected['train'] = {**expected['train'], 'total_iter': 9}
    del expected['val']
    assert load_yaml(done.stdout, '') == yaml.safe_load(done.stdout) == expected
    (tmp_path / 'alone.yml').write_text(done.stdout)
    assert read_option_file(str(tmp_path / 'alone.yml')) == expected


def test_nothing_is_expanded_or_filled_in(child):
    text = show(str(child), [])
    assert 'weights: ~/absent.pth' in text
    assert load_yaml(text, '') == read_option_file(str(child))


def test_all_options_are_shown_with_their_defaults_by_option(child, tmp_path):
    done = run('-m', 'facd_basicsr.cli', 'show', '-opt', 'child.yml', '--defaults', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = load_yaml(done.stdout, '')
    assert shown['train']['warmup_iter'] == -1 and shown['train']['nonfinite'] == {'action': 'skip', 'limit': 10}
    assert shown['train']['distill_opt']['negatives'] == 'upper' and shown['logger']['keep_last'] is None
    assert shown['train']['optim_g']['betas'] == [0.9, 0.999] and shown['network_g']['img_range'] == 255
    (tmp_path / 'all.yml').write_text(done.stdout)
    assert show(str(tmp_path / 'all.yml'), []).partition('\n\n')[2] == done.stdout.partition('\n\n')[2]


def test_a_test_file_is_shown_too_and_a_set_may_be_removed(test_opt, tmp_path):
    test_opt['datasets']['test_2'] = {**test_opt['datasets']['test_1'], 'name': 'other'}
    write_yml(test_opt, tmp_path / 'base.yml')
    child = write_yml({'base': 'base.yml', 'path': {'pretrain_network_g': 'net_g.pth'}}, tmp_path / 'child.yml')
    shown = load_yaml(show(str(child), ['datasets:test_2=~']), '')
    check_options(shown, is_train=False)
    assert list(shown['datasets']) == ['test_1']
    assert shown['path'] == {'pretrain_network_g': 'net_g.pth', 'strict_load_g': True}


def test_a_key_that_train_py_would_refuse_is_refused(child):
    child.write_text('base: base.yml\ntrain: {distill_opt: {type: FitNetLoss, adaptive: false}}\n')
    with pytest.raises(UserError, match=r'child.yml: train.distill_opt.adaptive: unknown key'):
        show(str(child), [])


@pytest.mark.parametrize('folder', ['train', 'test'])
def test_a_file_without_a_base_is_shown_unchanged(folder):
    path = REPOSITORY / 'options' / folder / 'FACD_RCAN_x3.yml'
    text = show(str(path), [])
    assert text.startswith(f'# resolved from {path}\n\nname: FACD_RCAN_x3\n')
    assert load_yaml(text, '') == read_option_file(str(path))
    first = [line.split(':')[0] for line in path.read_text().splitlines() if line[:1].isalpha()]
    assert [line.split(':')[0] for line in text.splitlines() if line[:1].isalpha()] == first  # the usual order
