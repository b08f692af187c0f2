from pathlib import Path

import pytest
import torch
from conftest import write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.options.parse import force_yml, load_options, parse_options, parser


def parsed(opt: dict, tmp_path: Path, *flags: str) -> dict:
    args = parser().parse_args(['-opt', str(write_yml(opt, tmp_path / 'opt.yml')), *flags])
    return parse_options(args, is_train='train' in opt, root=tmp_path)


def test_yaml_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bad.yml').write_text('name: !!python/object/apply:os.system ["touch attacked"]\n')
    with pytest.raises(UserError, match=r'bad.yml, line 1: could not determine a constructor'):
        load_options('bad.yml', [], is_train=True)
    assert not (tmp_path / 'attacked').exists()


@pytest.mark.parametrize(
    ('entry', 'value'),
    [
        ('train:total_iter=20', 20),
        ('train:total_iter=2e-1', 0.2),
        ('train:total_iter=true', True),
        ('train:total_iter=[1, 2]', [1, 2]),
        ('train:total_iter=/data/a=b.pth', '/data/a=b.pth'),
        ('train:total_iter=None', None),
        ('train:total_iter=none', None),
        ('train:total_iter=~', None),
        ('train:total_iter=null', None),
        ('train:total_iter={}_x2', '{}_x2'),
        ('train:total_iter={}', {}),
        ('train:total_iter=__import__("os").getcwd()', '__import__("os").getcwd()'),
    ],
)
def test_force_yml_sets_plain_values(entry, value):
    opt = {'train': {'total_iter': 1}}
    force_yml(opt, [entry])
    assert opt['train']['total_iter'] == value


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ('train:total_iter', r"'train:total_iter'; accepted: key:key=value"),
        ('train:total_iter:deep=1', r"'total_iter' is not a block of keys; set it whole, as total_iter="),
        ('train:total_iter=!!python/name:os.system', 'could not determine a constructor'),
    ],
)
def test_bad_force_yml_is_refused(entry, message):
    with pytest.raises(UserError, match=message):
        force_yml({'train': {'total_iter': 1}}, [entry])


def test_a_block_that_the_file_lacks_is_made_by_the_command_line_and_a_misspelt_one_refused(train_opt, tmp_path):
    path = str(write_yml(train_opt, tmp_path / 'opt.yml'))
    opt = load_options(path, ['train:nonfinite:limit=3'], is_train=True)
    assert opt['train']['nonfinite'] == {'limit': 3, 'action': 'skip'}
    with pytest.raises(UserError, match=r"trian: unknown key; did you mean 'train'\?"):
        load_options(path, ['trian:total_iter=1'], is_train=True)


@pytest.mark.parametrize('nothing', ['~', 'null', 'none'])
@pytest.mark.parametrize('block', ['teacher:expect', 'datasets:val', 'val', 'path'])
def test_the_command_line_takes_a_block_out(block, nothing, train_opt, tmp_path):
    train_opt['teacher']['expect'] = {'dataset': 'val', 'psnr_y': 30, 'tolerance': 0.1}
    overrides = [f'{block}={nothing}', *(['teacher:expect=null'] if block == 'datasets:val' else [])]
    opt = load_options(str(write_yml(train_opt, tmp_path / 'opt.yml')), overrides, is_train=True)
    held = {'teacher': 'expect' in opt['teacher'], 'datasets': 'val' in opt['datasets']}
    assert not held.get(block.partition(':')[0], False)


def test_a_misspelt_leaf_on_the_command_line_is_refused_by_the_check(train_opt, tmp_path):
    path = write_yml(train_opt, tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r"train.totl_iter: unknown key; did you mean 'total_iter'"):
        load_options(str(path), ['train:totl_iter=3'], is_train=True)


@pytest.mark.parametrize('content', [None, '', '[1, 2]', '\x00'], ids=['absent', 'empty', 'list', 'control'])
def test_a_file_that_holds_no_options_is_refused(tmp_path, content):
    path = tmp_path / 'opt.yml'
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r'opt.yml'):
        load_options(str(path), [], is_train=True)


def test_derived_keys_are_those_of_basicsr(train_opt, tmp_path):
    opt = parsed(train_opt, tmp_path)
    home = tmp_path / 'experiments' / 'tiny'
    assert (opt['dist'], opt['rank'], opt['world_size'], opt['is_train'], opt['auto_resume']) == (
        False,
        0,
        1,
        True,
        False,
    )
    assert opt['datasets']['train']['phase'] == 'train' and opt['datasets']['val']['phase'] == 'val'
    assert {dataset['scale'] for dataset in opt['datasets'].values()} == {2}
    assert opt['path']['experiments_root'] == opt['path']['log'] == str(home)
    assert opt['path']['models'] == str(home / 'models')
    assert opt['path']['training_states'] == str(home / 'training_states')
    assert not home.exists()


def test_test_results_go_to_results(test_opt, tmp_path, teacher_weights):
    test_opt['path']['pretrain_network_g'] = str(teacher_weights)  # any file: its content is read later
    assert parsed(test_opt, tmp_path)['path']['results_root'] == str(tmp_path / 'results' / 'tiny_test')


def test_debug_renames_the_run_and_logs_saves_and_validates_often(train_opt, tmp_path):
    opt = parsed(train_opt, tmp_path, '--debug')
    assert opt['name'] == 'debug_tiny'
    assert (opt['logger']['print_freq'], opt['logger']['save_checkpoint_freq'], opt['val']['val_freq']) == (1, 8, 8)


def test_the_seed_is_the_files_or_drawn(train_opt, tmp_path):
    assert parsed(train_opt, tmp_path)['manual_seed'] == train_opt['manual_seed']
    train_opt['manual_seed'] = None
    assert isinstance(parsed(train_opt, tmp_path)['manual_seed'], int)
    del train_opt['manual_seed']
    assert isinstance(parsed(train_opt, tmp_path)['manual_seed'], int)


def test_more_gpus_than_there_are_are_refused(train_opt, tmp_path):
    train_opt['num_gpu'] = 4096
    with pytest.raises(UserError, match=r'num_gpu: 4096; accepted: auto, or 0 to \d+, the GPUs here'):
        parsed(train_opt, tmp_path)


def test_several_gpus_without_a_launcher_are_refused_with_the_command(train_opt, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert parsed({**train_opt, 'num_gpu': 'auto'}, tmp_path)['num_gpu'] == 1
    with pytest.raises(UserError, match=r'num_gpu: 2 without --launcher; .*torchrun --nproc_per_node=2'):
        parsed({**train_opt, 'num_gpu': 2}, tmp_path)


def test_cuda_prefetch_without_a_gpu_is_refused(train_opt, tmp_path):
    train_opt['datasets']['train'] |= {'prefetch_mode': 'cuda', 'pin_memory': True}
    with pytest.raises(UserError, match='prefetch_mode: cuda; accepted without a GPU: null, cpu'):
        parsed(train_opt, tmp_path)


def test_force_yml_may_be_given_several_times():
    assert parser().parse_args(['-opt', 'a', '--force_yml', 'a=1', '--force_yml', 'b=2']).force_yml == ['a=1', 'b=2']


def test_parsing_neither_seeds_nor_joins_a_process_group(train_opt, tmp_path, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    before = torch.get_rng_state()
    opt = parsed(train_opt, tmp_path, '--launcher', 'pytorch')
    assert (opt['dist'], opt['rank'], opt['world_size']) == (True, 0, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_set_that_is_nothing_is_left_out(test_opt, tmp_path):
    torch.save({'params': {}}, tmp_path / 'net.pth')
    test_opt['path']['pretrain_network_g'] = str(tmp_path / 'net.pth')
    test_opt['datasets']['test_2'] = {**test_opt['datasets']['test_1'], 'name': 'absent', 'dataroot_gt': 'absent'}
    path = str(write_yml(test_opt, tmp_path / 'opt.yml'))
    with pytest.raises(UserError, match=r'datasets.test_2.dataroot_gt: no such folder: absent'):
        load_options(path, [], is_train=False)
    assert list(load_options(path, ['datasets:test_2=~'], is_train=False)['datasets']) == ['test_1']
