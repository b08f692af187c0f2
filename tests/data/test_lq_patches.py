"""LQ without ground truth as training patches."""

import shutil
from pathlib import Path

import cv2
import pytest
import torch
from conftest import picture, tiny_train_opt, write_yml
from damages import truncate_to_half
from torch.utils.data import default_collate

from facd_basicsr.data.loaders import build_ordered_dataset
from facd_basicsr.data.paths import check_whole_dataset
from facd_basicsr.data.seeded_dataset import SeededDataset
from facd_basicsr.errors import UserError
from facd_basicsr.options import load_options


def alone(block: dict) -> dict:
    """The LQ of a set of pairs."""
    return {key: value for key, value in block.items() if key != 'dataroot_gt'} | {'type': 'SingleImageDataset'}


@pytest.fixture
def pairs(tmp_path: Path, data: Path) -> dict:
    """Folders of pairs, x2, each of another size."""
    for name, scale in (('GT', 2), ('LQ', 1)):
        (tmp_path / name).mkdir()
        for i in range(3):
            cv2.imwrite(str(tmp_path / name / f'{i}.png'), picture(i, 16 * scale * (i + 1), 24 * scale))
    block = tiny_train_opt(data, data)['datasets']['train'] | {'phase': 'train', 'scale': 2}
    roots = {'dataroot_gt': str(tmp_path / 'GT'), 'dataroot_lq': str(tmp_path / 'LQ')}
    return {**block, **roots, 'io_backend': {'type': 'disk'}}


@pytest.mark.parametrize('backend', ['disk', 'lmdb'])
@pytest.mark.parametrize('color', [{}, {'color': 'y'}, {'mean': [0.4, 0.5, 0.6], 'std': [0.5, 1.0, 0.3]}])
def test_a_patch_is_the_lq_of_the_pair_under_the_same_seed(pairs, data, tmp_path, backend, color):
    pairs |= color
    if backend == 'lmdb':
        pairs |= {'dataroot_gt': str(data / 'HR.lmdb'), 'dataroot_lq': str(data / 'LR.lmdb')}
        pairs['io_backend'] = {'type': 'lmdb'}
    copied = alone(pairs) | {'io_backend': dict(pairs['io_backend'])}
    if backend == 'lmdb':  # a process cannot open one twice
        copied['dataroot_lq'] = shutil.copytree(data / 'LR.lmdb', tmp_path / 'LR.lmdb').as_posix()
    single = SeededDataset(build_ordered_dataset(copied))
    paired = SeededDataset(build_ordered_dataset(pairs))
    samples = [single[seed % 3, seed] for seed in range(30)]
    for seed, sample in enumerate(samples):
        expected = paired[seed % 3, seed]
        assert sample.keys() == expected.keys() - {'gt', 'gt_path'} and sample['lq_path'] == expected['lq_path']
        torch.testing.assert_close(sample['lq'], expected['lq'], rtol=0, atol=1e-6)
    assert default_collate(samples)['lq'].shape == (30, 1 if 'color' in color else 3, 12, 12)


def test_without_flips_a_patch_lies_in_its_image_and_other_sets_are_whole(pairs):
    pairs |= {'use_hflip': False, 'use_rot': False}
    whole = build_ordered_dataset({**alone(pairs), 'phase': 'val'})
    patch = SeededDataset(build_ordered_dataset(alone(pairs)))[2, 5]['lq']
    image = whole[2]['lq']
    assert image.shape == (3, 48, 24)
    places = image.unfold(1, 12, 1).unfold(2, 12, 1)  # (3, 37, 13, 12, 12)
    assert (places == patch[:, None, None]).all(dim=4).all(dim=3).all(dim=0).sum() == 1


def test_the_keys_of_patches_belong_to_the_training_set(train_opt, tmp_path, data):
    train_opt['datasets']['train'] = alone(train_opt['datasets']['train'])
    train_opt['train']['ground_truth'] = False
    path = tmp_path / 'opt.yml'
    opt = load_options(str(write_yml(train_opt, path)), [], is_train=True)
    assert check_whole_dataset('train', opt['datasets']['train'], 2) == '6 images of pictures, every file read'
    for key in ('gt_size', 'use_hflip', 'use_rot'):
        block = {name: value for name, value in train_opt['datasets']['train'].items() if name != key}
        datasets = {**train_opt['datasets'], 'train': block}
        with pytest.raises(UserError, match=rf'datasets\.train\.{key}: missing; accepted: '):
            load_options(str(write_yml({**train_opt, 'datasets': datasets}, path)), [], is_train=True)


def test_an_image_smaller_than_a_patch_is_named(train_opt, pairs, tmp_path):
    block = {key: value for key, value in alone(pairs).items() if key not in ('phase', 'scale')}
    train_opt['datasets']['train'] = block | {'gt_size': 34}
    train_opt['train']['ground_truth'] = False
    with pytest.raises(UserError) as error:
        load_options(str(write_yml(train_opt, tmp_path / 'opt.yml')), [], is_train=True)
    assert str(error.value).endswith(
        f'datasets.train.gt_size: 34, but 0.png in {tmp_path}/LQ, LQ for scale 2, is (16, 24) (height, width); '
        'accepted: the smallest image or less (facd prepare folder: --min-size leaves out)'
    )
    train_opt['datasets']['train']['gt_size'] = 32
    load_options(str(write_yml(train_opt, tmp_path / 'opt.yml')), [], is_train=True)


def test_an_image_that_is_damaged_or_too_small_is_named_in_training(pairs, data, tmp_path):
    dataset = SeededDataset(build_ordered_dataset(alone(pairs)))
    dataset[0, 1]
    truncate_to_half(tmp_path / 'LQ' / '1.png')
    cv2.imwrite(str(tmp_path / 'LQ' / '2.png'), picture(2, 8, 8))
    assert dataset[1, 3]['damaged'].startswith(f'{tmp_path}/LQ/1.png: not a readable image')
    assert dataset[2, 3]['damaged'].startswith(f'{tmp_path}/LQ/2.png: LQ (8, 8) is smaller than patch size (12, 12)')
    root = shutil.copytree(data / 'LR.lmdb', tmp_path / 'LR.lmdb')
    block = alone(pairs) | {'dataroot_lq': str(root), 'io_backend': {'type': 'lmdb'}, 'gt_size': 50}
    with pytest.raises(UserError, match=r'LR\.lmdb: 000\d_s001: LQ \(24, 24\) is smaller than patch size \(25, 25\)'):
        SeededDataset(build_ordered_dataset(block))[0, 0]
