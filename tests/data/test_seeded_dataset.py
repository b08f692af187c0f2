import random
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
from conftest import picture, tiny_train_opt
from damages import make_empty, replace_by_text, truncate_to_half
from torch.utils.data import Dataset

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.data.loaders import build_ordered_dataset
from facd_basicsr.data.seeded_dataset import TRIES, NamingDataset, SeededDataset
from facd_basicsr.errors import UserError


class Drawing(Dataset):
    """Its samples are what the three generators give."""

    def __getitem__(self, index: int) -> dict:
        return {'drawn': (index, random.random(), np.random.rand(), torch.rand(1).item())}

    def __len__(self) -> int:
        return 5


def test_a_sample_depends_on_its_seed_and_not_on_what_was_drawn_before():
    dataset = SeededDataset(Drawing())
    first = dataset[3, 2**62]
    random.random(), np.random.rand(), torch.rand(1)
    assert dataset[3, 2**62] == first
    assert dataset[3, 2**62 + 1]['drawn'][1:] != first['drawn'][1:]
    assert first['seed'] == str(2**62)
    assert len(set(first['drawn'][1:])) == 3 and first['damaged'] == '' and len(dataset) == 5


def test_the_processs_generators_are_left_as_they_were():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = Drawing()[0]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    SeededDataset(Drawing())[0, 5]
    assert Drawing()[0] == expected


@pytest.fixture
def folders(tmp_path: Path) -> dict:
    """The option block of a folder set of three pairs, x2."""
    for name in ('GT', 'LQ'):
        (tmp_path / name).mkdir()
    for i in range(3):
        gt = picture(i, 48, 48)
        cv2.imwrite(str(tmp_path / 'GT' / f'{i}.png'), gt)
        cv2.imwrite(str(tmp_path / 'LQ' / f'{i}.png'), bicubic_lr(gt, 2))
    block = tiny_train_opt(tmp_path, tmp_path)['datasets']['train']
    roots = {'dataroot_gt': str(tmp_path / 'GT'), 'dataroot_lq': str(tmp_path / 'LQ')}
    return {**block, **roots, 'io_backend': {'type': 'disk'}, 'phase': 'train', 'scale': 2}


def too_small(path: Path) -> None:
    cv2.imwrite(str(path), picture(0, 8, 8))


@pytest.mark.parametrize(
    ('damage', 'reason'),
    [
        (truncate_to_half, 'not a readable image'),
        (make_empty, 'not a readable image'),
        (replace_by_text, 'not a readable image'),
        (Path.unlink, 'No such file'),
    ],
)
@pytest.mark.parametrize('side', ['GT', 'LQ'])
def test_another_image_takes_the_place_of_a_damaged_one_which_is_named(folders, tmp_path, side, damage, reason):
    dataset = SeededDataset(build_ordered_dataset(folders))
    whole = dataset[0, 3]
    damage(tmp_path / side / '1.png')
    sample = dataset[1, 3]
    assert sample['damaged'].startswith(f'{tmp_path / side / "1.png"}: ') and reason in sample['damaged']
    assert '\n' not in sample['damaged']  # though it may have been drawn again
    assert sample['gt'].shape == whole['gt'].shape and not sample['gt_path'].endswith('1.png')
    again = dataset[1, 3]
    assert torch.equal(again['gt'], sample['gt'])
    assert dataset[0, 3]['damaged'] == '' and torch.equal(dataset[0, 3]['gt'], whole['gt'])


def test_a_pair_that_does_not_fit_is_named_with_what_the_dataset_says(folders, tmp_path):
    too_small(tmp_path / 'GT' / '1.png')
    damaged = SeededDataset(build_ordered_dataset(folders))[1, 3]['damaged']
    assert damaged.startswith(f'{tmp_path / "GT" / "1.png"}: ') and 'Scale mismatches' in damaged


def test_a_set_of_damaged_images_ends_in_an_error(folders, tmp_path):
    for path in tmp_path.glob('GT/*.png'):
        truncate_to_half(path)
    with pytest.raises(
        UserError, match=rf'datasets.train: {TRIES} images in a row cannot be read: .*GT/1.png: not a readable image'
    ):
        SeededDataset(build_ordered_dataset(folders))[1, 3]


def test_a_damaged_image_of_an_lmdb_is_named_by_the_lmdb_and_its_key(data, tmp_path):
    block = tiny_train_opt(data, data)['datasets']['train'] | {'phase': 'train', 'scale': 2}
    for name in ('HR', 'LR'):
        with lmdb.open(str(data / f'{name}.lmdb'), readonly=True, lock=False) as source:
            source.copy(str((tmp_path / f'{name}.lmdb').mkdir() or tmp_path / f'{name}.lmdb'))
        (tmp_path / f'{name}.lmdb/meta_info.txt').write_text((data / f'{name}.lmdb/meta_info.txt').read_text())
    with lmdb.open(str(tmp_path / 'LR.lmdb'), map_size=2**24) as env, env.begin(write=True) as txn:
        txn.put(b'0001_s001', txn.get(b'0001_s001')[:100])
        txn.delete(b'0002_s001')
    block |= {'dataroot_gt': str(tmp_path / 'HR.lmdb'), 'dataroot_lq': str(tmp_path / 'LR.lmdb')}
    dataset = SeededDataset(build_ordered_dataset(block))
    assert dataset[1, 0]['damaged'].startswith(f'{tmp_path}/LR.lmdb: 0001_s001: not a readable image')
    assert dataset[2, 0]['damaged'] == f'{tmp_path}/LR.lmdb: 0002_s001: missing'
    assert dataset[3, 0]['damaged'] == ''


def test_a_validation_image_that_is_damaged_is_named(folders, tmp_path):
    dataset = NamingDataset(build_ordered_dataset({**folders, 'phase': 'val'}))
    truncate_to_half(tmp_path / 'LQ' / '2.png')
    assert dataset[0]['gt'].shape == (3, 48, 48) and dataset.opt['name'] == 'pictures' and len(dataset) == 3
    with pytest.raises(UserError, match=r'datasets: .*LQ/2.png: not a readable image'):
        dataset[2]


def test_images_of_a_dataset_without_paths_are_named_by_their_number():
    class Broken(Dataset):
        def __getitem__(self, index: int) -> dict:
            if index == 1:
                raise ValueError('a bad one')
            return {}

        def __len__(self) -> int:
            return 4

    assert SeededDataset(Broken())[1, 2]['damaged'] == 'image 1 of Broken: a bad one'
