import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, changed, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.options import load_options


def images(folder: Path, *sizes: tuple[int, int]) -> str:
    folder.mkdir()
    for index, (height, width) in enumerate(sizes):
        cv2.imwrite(str(folder / f'{index}.png'), np.zeros((height, width, 3), np.uint8))
    return str(folder)


def data_refusal(train_opt: dict, tmp_path: Path, **values: object) -> str:
    """What is said of the validation set with these values."""
    train_opt['datasets']['val'] |= values
    with pytest.raises(UserError) as error:
        load_options(str(write_yml(train_opt, tmp_path / 'opt.yml')), [], is_train=True)
    assert 'datasets.val' in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ('location', 'page'),
    [
        ('datasets.train.dataroot_gt', 'datasets/README.md'),
        ('datasets.train.dataroot_lq', 'datasets/README.md'),
        ('datasets.val.dataroot_lq', 'datasets/README.md'),
        ('teacher.weights', 'docs/teachers.md'),
        ('path.resume_state', 'options/train/'),
        ('path.pretrain_network_g', 'options/train/'),
    ],
)
def test_a_missing_path_is_refused_with_its_key_and_the_page_that_helps(train_opt, tmp_path, location, page):
    missing = str(tmp_path / 'absent.lmdb')
    path = write_yml(changed(train_opt, location, missing), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=rf'opt.yml: {location}: no such (file|folder): {missing}; .*{page}'):
        load_options(str(path), [], is_train=True)


def test_pages_that_messages_name_exist():
    assert (REPOSITORY / 'datasets' / 'README.md').is_file()
    assert (REPOSITORY / 'docs' / 'teachers.md').is_file()


def test_an_unfinished_lmdb_is_refused(train_opt, tmp_path):
    (tmp_path / 'HR.lmdb').mkdir()
    path = write_yml(changed(train_opt, 'datasets.train.dataroot_gt', str(tmp_path / 'HR.lmdb')), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'dataroot_gt: .*HR.lmdb has no data.mdb, so it is not a finished LMDB'):
        load_options(str(path), [], is_train=True)


def test_lmdbs_of_another_scale_or_with_other_keys_are_refused(train_opt, tmp_path):
    gt = train_opt['datasets']['train']['dataroot_gt']
    same = write_yml(changed(train_opt, 'datasets.train.dataroot_lq', gt), tmp_path / 'same.yml')
    with pytest.raises(UserError, match=r'dataroot_lq: 0000_s001 is \(48, 48\) for a GT of \(48, 48\).*LQ for scale 2'):
        load_options(str(same), [], is_train=True)
    shutil.copytree(train_opt['datasets']['train']['dataroot_lq'], tmp_path / 'LR.lmdb')
    meta_info = tmp_path / 'LR.lmdb' / 'meta_info.txt'
    meta_info.write_text(meta_info.read_text().replace('0003_s001', '0009_s001'))
    other = write_yml(changed(train_opt, 'datasets.train.dataroot_lq', str(meta_info.parent)), tmp_path / 'other.yml')
    with pytest.raises(UserError, match=r'dataroot_lq: .*LR.lmdb and dataroot_gt differ in 0003_s001'):
        load_options(str(other), [], is_train=True)
    meta_info.write_text('not a list')
    with pytest.raises(UserError, match=r"meta_info.txt is not in BasicSR's format"):
        load_options(str(other), [], is_train=True)


def test_folders_of_another_scale_are_refused(train_opt, tmp_path):
    lq = images(tmp_path / 'LQ', (8, 12), (8, 12))  # GT is 32 x 48: this is x4
    assert '0.png is (8, 12) for a GT of (32, 48) (height, width); accepted: LQ for scale 2' in data_refusal(
        train_opt, tmp_path, dataroot_lq=lq
    )


def test_a_gt_that_is_no_multiple_of_the_scale_is_accepted_in_validation(train_opt, tmp_path):
    train_opt['datasets']['val']['dataroot_gt'] = images(tmp_path / 'GT', (33, 49), (32, 48))
    load_options(str(write_yml(train_opt, tmp_path / 'opt.yml')), [], is_train=True)


def test_folders_that_hold_no_pairs_of_images_are_refused(train_opt, tmp_path, data):
    (tmp_path / 'above' / 'GT').mkdir(parents=True)
    assert 'above holds no files' in data_refusal(train_opt, tmp_path, dataroot_gt=str(tmp_path / 'above'))
    gt = images(tmp_path / 'GT', (32, 48), (32, 48), (32, 48))
    assert '2.png' in data_refusal(train_opt, tmp_path, dataroot_gt=gt)
    (tmp_path / 'GT' / '2.png').write_bytes(b'no image')
    (tmp_path / 'GT' / 'readme.txt').touch()
    assert 'readme.txt is no image; accepted in this folder: images only' in data_refusal(train_opt, tmp_path)
    (tmp_path / 'GT' / 'readme.txt').unlink()
    assert '2.png is no readable image' in data_refusal(train_opt, tmp_path)
    assert 'accepted with io_backend disk' in data_refusal(train_opt, tmp_path, dataroot_gt=str(data / 'HR.lmdb'))


def test_a_meta_info_file_with_a_missing_image_is_refused(train_opt, tmp_path):
    (tmp_path / 'meta.txt').write_text('0.png (32,48,3)\nabsent.png (32,48,3)\n')
    assert 'absent.png' in data_refusal(train_opt, tmp_path, meta_info_file=str(tmp_path / 'meta.txt'))


def test_an_lmdb_without_its_suffix_is_refused(train_opt, tmp_path, data):
    message = data_refusal(train_opt, tmp_path, dataroot_gt=str(data / 'GT'), io_backend={'type': 'lmdb'})
    assert 'accepted with io_backend lmdb: a folder whose name ends in .lmdb' in message
