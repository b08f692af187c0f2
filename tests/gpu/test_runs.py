"""Runs on a GPU: resumed, killed, validated, compared, and as one rank of NCCL."""

import copy
import json

import cv2
import pytest
import runs
import torch
from conftest import changed, picture, run, tiny_test_opt, write_yml
from realesrgan import degraded_opt
from runs import TOTAL, Child, assert_same, result

from facd_basicsr.data.bicubic import bicubic_lr

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu_opt(train_opt: dict) -> dict:
    train_opt['train']['precision'] = train_opt['teacher']['precision'] = 'fp32'
    return train_opt | {'num_gpu': 1}


@pytest.fixture(autouse=True)
def own_settings():
    """train.py sets these for all of the process."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)


def weights(root, iteration: int = TOTAL) -> dict[str, torch.Tensor]:
    path = root / 'experiments' / 'tiny' / 'models' / f'net_g_{iteration}.pth'
    return torch.load(path, weights_only=True)['params']


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
def test_a_resumed_run_is_the_same_to_the_last_bit_with_deterministic_algorithms(gpu_opt, tmp_path, precision):
    opt = gpu_opt | {'deterministic': True}
    opt['train']['precision'] = precision
    runs.run(opt, tmp_path / 'whole')
    runs.run(opt, tmp_path / 'parts', 4)
    runs.run(opt, tmp_path / 'parts', TOTAL, '--auto_resume')
    state = result(tmp_path / 'whole')
    assert 'cuda' in state['random'][0]
    assert_same(result(tmp_path / 'parts'), state)


def test_pairs_that_are_made_on_a_gpu_and_their_pool_are_resumed(gpu_opt, tmp_path):
    opt = degraded_opt(gpu_opt | {'deterministic': True}, tmp_path / 'photographs', gt_usm=True)
    runs.run(opt, tmp_path / 'whole')
    runs.run(opt, tmp_path / 'parts', 5)
    runs.run(opt, tmp_path / 'parts', TOTAL, '--auto_resume')
    state = result(tmp_path / 'whole')
    assert len(state['pools'][0]['gt_path']) == 8
    assert_same(result(tmp_path / 'parts'), state)


def test_a_resumed_run_is_close_without_them(gpu_opt, tmp_path):
    runs.run(gpu_opt, tmp_path / 'whole')
    runs.run(gpu_opt, tmp_path / 'parts', 4)
    runs.run(gpu_opt, tmp_path / 'parts', TOTAL, '--auto_resume')
    whole, parts = weights(tmp_path / 'whole'), weights(tmp_path / 'parts')
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-3, atol=1e-4)


def test_a_killed_run_goes_on_to_the_same_bits(gpu_opt, tmp_path):
    opt = gpu_opt | {'deterministic': True}
    runs.run(opt, tmp_path / 'whole')
    child = Child(opt, tmp_path / 'killed')
    child.wait_for(5)
    child.kill()
    child.end()
    runs.run(opt, tmp_path / 'killed', TOTAL, '--auto_resume')
    assert_same(result(tmp_path / 'killed'), result(tmp_path / 'whole'))


@pytest.fixture
def photographs(gpu_opt, tmp_path) -> dict:
    """The options with a validation set of several shapes, some of which images share."""
    for folder in ('GT', 'LQ'):
        (tmp_path / folder).mkdir()
    for i, (height, width) in enumerate([(64, 96), (96, 64), (64, 96), (128, 128), (64, 96)]):
        gt = picture(i, height, width)
        cv2.imwrite(str(tmp_path / 'GT' / f'{i}.png'), gt)
        cv2.imwrite(str(tmp_path / 'LQ' / f'{i}.png'), bicubic_lr(gt, 2))
    gpu_opt['datasets']['val'] |= {'dataroot_gt': str(tmp_path / 'GT'), 'dataroot_lq': str(tmp_path / 'LQ')}
    gpu_opt['val']['val_freq'] = 1
    gpu_opt['train']['optim_g']['lr'] = 1e-9
    return gpu_opt


@pytest.mark.parametrize('tile', [None, 32], ids=['batches of one shape', 'tiles'])
def test_validation_on_a_gpu_has_the_metrics_of_the_cpu(photographs, tmp_path, tile):
    opt = photographs if tile is None else changed(photographs, 'val.tile', tile)
    found = {}
    for gpus in (0, 1):
        runs.run(opt | {'num_gpu': gpus}, tmp_path / str(gpus), 1)
        found[gpus] = {tag: values for tag, values in runs.scalars(tmp_path / str(gpus)).items() if 'metrics' in tag}
    assert len(found[0]) == 3
    for tag, values in found[0].items():
        assert found[1][tag] == pytest.approx(values, abs=0.005), tag


def test_one_rank_of_nccl_trains_as_one_process_does(gpu_opt, checkout, tmp_path):
    opt = gpu_opt | {'deterministic': True, 'name': 'nccl'}
    runs.run(opt, tmp_path / 'alone')
    path = write_yml(changed(opt, 'train.total_iter', TOTAL), tmp_path / 'nccl.yml')
    done = runs.torchrun('facd_basicsr/train.py', '-opt', path, cwd=checkout, processes=1)
    assert done.returncode == 0, done.stderr[-2000:]
    folders = [root / 'experiments' / 'nccl' / 'models' for root in (tmp_path / 'alone', checkout)]
    alone, nccl = (torch.load(folder / f'net_g_{TOTAL}.pth', weights_only=True)['params'] for folder in folders)
    for key, value in alone.items():
        torch.testing.assert_close(nccl[key], value, rtol=1e-4, atol=1e-5)


def test_three_runs_of_a_comparison_share_one_gpu(gpu_opt, data, checkout):
    facd = copy.deepcopy(gpu_opt)
    facd['train']['total_iter'] = 4
    student = {key: value for key, value in facd.items() if key not in ('teacher', 'taps', 'network_r')}
    student['train'] = {key: value for key, value in facd['train'].items() if key != 'distill_opt'}
    student = copy.deepcopy(student) | {'model_type': 'SRModel'}
    student['train']['pixel_opt'] = {'type': 'L1Loss'}
    test_opt = tiny_test_opt(data) | {'num_gpu': 1}
    test_opt['path']['pretrain_network_g'] = 'none.pth'
    for name, opt in (('gpu_facd', facd), ('gpu_student', student), ('gpu_test', test_opt)):
        write_yml(opt, checkout / f'{name}.yml')
    comparison = {
        'name': 'gpu',
        'seeds': [0],
        'baseline': 'Student',
        'test': {'base': 'gpu_test.yml'},
        'methods': {
            'Student': {'base': 'gpu_student.yml'},
            'FACD': {'base': 'gpu_facd.yml'},
            'FCD': {'base': 'gpu_facd.yml', 'train': {'distill_opt': {'adaptive': False}}},
        },
    }
    path = write_yml(comparison, checkout / 'gpu.yml')
    done = run('-m', 'facd_basicsr.cli', 'compare', str(path), '--jobs', '3', cwd=checkout)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((checkout / 'results' / 'gpu' / 'results.json').read_text())
    assert torch.cuda.get_device_name() in json.dumps(results)
