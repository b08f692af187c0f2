import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, changed, write_yml
from PIL import Image

from facd_basicsr.data.paths import check_paths
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


def test_a_list_of_images_is_refused_with_an_lmdb_all_of_which_is_read(train_opt, tmp_path):
    opt = changed(train_opt, 'datasets.train.meta_info_file', str(tmp_path / 'some.txt'))
    path = write_yml(opt, tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'train.meta_info_file: .*/some.txt; accepted with an LMDB: null, for all'):
        load_options(str(path), [], is_train=True)


def test_an_unfinished_lmdb_is_refused(train_opt, tmp_path):
    (tmp_path / 'HR.lmdb').mkdir()
    path = write_yml(changed(train_opt, 'datasets.train.dataroot_gt', str(tmp_path / 'HR.lmdb')), tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'dataroot_gt: .*HR.lmdb has no data.mdb, so it is not a finished LMDB'):
        load_options(str(path), [], is_train=True)


def test_an_lmdb_that_was_cut_short_is_refused_before_reading_it_ends_the_process(train_opt, tmp_path):
    copy = Path(shutil.copytree(train_opt['datasets']['train']['dataroot_lq'], tmp_path / 'LR.lmdb'))
    path = write_yml(changed(train_opt, 'datasets.train.dataroot_lq', str(copy)), tmp_path / 'opt.yml')
    load_options(str(path), [], is_train=True)
    with (copy / 'data.mdb').open('r+b') as file:
        file.truncate(3 * 4096)
    with pytest.raises(UserError, match=r'train\.dataroot_lq: .*LR\.lmdb/data\.mdb is cut short; datasets/README\.md'):
        load_options(str(path), [], is_train=True)


@pytest.mark.parametrize('value', ['~nobody-of-this-name/x.pth', 'x' * 5000, 'a\0b'])
@pytest.mark.parametrize('location', ['teacher.weights', 'path.resume_state', 'datasets.val.dataroot_gt'])
def test_a_path_that_no_file_can_have_is_refused_with_its_key(train_opt, location, value):
    with pytest.raises(UserError, match=rf'^{location.rpartition(".")[0]}\.'):
        check_paths(changed(train_opt, location, value), is_train=True)


def test_lmdbs_of_another_scale_or_with_other_keys_are_refused(train_opt, tmp_path):
    gt = train_opt['datasets']['train']['dataroot_gt']
    same = write_yml(changed(train_opt, 'datasets.train.dataroot_lq', gt), tmp_path / 'same.yml')
    with pytest.raises(UserError, match=r'dataroot_lq: 0000_s001 is \(48, 48\) for a GT of \(48, 48\).*LQ for scale 2'):
        load_options(str(same), [], is_train=True)
    shutil.copytree(train_opt['datasets']['train']['dataroot_lq'], tmp_path / 'LR.lmdb')
    meta_info = tmp_path / 'LR.lmdb' / 'meta_info.txt'
    meta_info.write_text(meta_info.read_text().replace('0003_s001', '0009_s001'))
    other = write_yml(changed(train_opt, 'datasets.train.dataroot_lq', str(meta_info.parent)), tmp_path / 'other.yml')
    with pytest.raises(UserError, match=r'dataroot_lq: .*HR.lmdb and .*LR.lmdb differ in 0003_s001'):
        load_options(str(other), [], is_train=True)
    meta_info.write_text('not a list')
    with pytest.raises(UserError, match=r"meta_info.txt, line 1 is not in BasicSR's format \('not a list'\)"):
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
    assert 'readme.txt is not an image; accepted in this folder: images only' in data_refusal(train_opt, tmp_path)
    (tmp_path / 'GT' / 'readme.txt').unlink()
    (tmp_path / 'GT' / '2.png').rename(tmp_path / 'GT' / '1.png')
    assert '1.png: not a readable image (cannot identify' in data_refusal(train_opt, tmp_path)
    assert 'accepted with io_backend disk' in data_refusal(train_opt, tmp_path, dataroot_gt=str(data / 'HR.lmdb'))


@pytest.mark.parametrize(('length', 'reason'), [(0, 'the file is empty'), (20, '.+')])
@pytest.mark.parametrize(('key', 'size'), [('dataroot_gt', (32, 48)), ('dataroot_lq', (16, 24))])
def test_an_empty_file_and_one_without_a_whole_header_are_refused_by_name(
    train_opt, tmp_path, key, size, length, reason
):
    folder = images(tmp_path / 'folder', size, size)
    path = tmp_path / 'folder' / '1.png'
    path.write_bytes(path.read_bytes()[:length])
    assert re.search(
        rf'datasets\.val\.{key}: .*1\.png: not a readable image \({reason}\)$',
        data_refusal(train_opt, tmp_path, **{key: folder}),
    )


def test_a_training_folder_of_another_size_or_smaller_than_the_patch_is_refused(train_opt, tmp_path):
    gt, lq = images(tmp_path / 'GT', (48, 48), (48, 20)), images(tmp_path / 'LQ', (24, 24), (24, 10))
    train_opt['datasets']['train'] |= {'io_backend': {'type': 'disk'}, 'dataroot_gt': gt, 'dataroot_lq': lq}
    path = write_yml(train_opt, tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'train\.gt_size: 24, but 1\.png in .*GT is \(48, 20\) \(height, width\); '):
        load_options(str(path), [], is_train=True)
    cv2.imwrite(str(tmp_path / 'GT' / '1.png'), np.zeros((49, 48, 3), np.uint8))  # training does not crop to the scale
    cv2.imwrite(str(tmp_path / 'LQ' / '1.png'), np.zeros((24, 24, 3), np.uint8))
    with pytest.raises(UserError, match=r'train\.dataroot_lq: 1\.png is \(24, 24\) for a GT of \(49, 48\).*scale 2'):
        load_options(str(path), [], is_train=True)
    (tmp_path / 'LQ' / '1.png').write_bytes(b'')
    with pytest.raises(UserError, match=r'train\.dataroot_lq: .*LQ/1\.png: not a readable image \(the file is empty\)'):
        load_options(str(path), [], is_train=True)


def test_an_lmdb_of_images_smaller_than_the_patch_is_refused(train_opt, tmp_path):
    train_opt['datasets']['train']['gt_size'] = 50
    path = write_yml(train_opt, tmp_path / 'opt.yml')
    with pytest.raises(UserError, match=r'gt_size: 50, but 0000_s001 .* \(48, 48\) .*facd prepare folder: --min-size'):
        load_options(str(path), [], is_train=True)


def test_images_of_every_kind_are_accepted_where_basicsr_reads_them(train_opt, tmp_path):
    gt = tmp_path / 'GT'
    gt.mkdir()
    Image.new('L', (48, 32)).save(gt / '0.png')
    Image.new('P', (48, 32)).save(gt / '1.png')
    lq = images(tmp_path / 'LQ', (16, 24), (16, 24))
    train_opt['datasets']['val'] |= {'dataroot_gt': str(gt), 'dataroot_lq': lq}
    load_options(str(write_yml(train_opt, tmp_path / 'opt.yml')), [], is_train=True)


def test_a_meta_info_file_with_a_missing_image_is_refused(train_opt, tmp_path):
    (tmp_path / 'meta.txt').write_text('0.png (32,48,3)\nabsent.png (32,48,3)\n')
    assert 'absent.png' in data_refusal(train_opt, tmp_path, meta_info_file=str(tmp_path / 'meta.txt'))


def test_a_meta_info_file_that_is_no_text_is_refused(train_opt, tmp_path):
    (tmp_path / 'meta.txt').write_bytes(b'\xff')
    message = data_refusal(train_opt, tmp_path, meta_info_file=str(tmp_path / 'meta.txt'))
    assert f"datasets.val.meta_info_file: {tmp_path}/meta.txt: 'utf-8' codec can't decode" in message


def test_an_lmdb_without_its_suffix_is_refused(train_opt, tmp_path, data):
    message = data_refusal(train_opt, tmp_path, dataroot_gt=str(data / 'GT'), io_backend={'type': 'lmdb'})
    assert 'accepted with io_backend lmdb: a folder whose name ends in .lmdb' in message


@pytest.mark.parametrize('listed', [False, True])
def test_images_too_small_for_a_metric_are_refused_before_training(train_opt, tmp_path, listed):
    train_opt['val']['metrics'] = {'niqe': {'type': 'calculate_niqe', 'crop_border': 2}}
    block = {'name': 'val', 'type': 'SingleImageDataset', 'io_backend': {'type': 'disk'}}
    block['dataroot_lq'] = images(tmp_path / 'LQ', (50, 98), (64, 64))  # two blocks of 96 x 96 inside the border; one
    if listed:
        (tmp_path / 'list.txt').write_text('1.png (64,64,3)\n')
        block['meta_info_file'] = str(tmp_path / 'list.txt')
    train_opt['datasets']['val'] = block
    path = str(write_yml(train_opt, tmp_path / 'opt.yml'))
    with pytest.raises(
        UserError,
        match=r'val\.metrics\.niqe: datasets\.val: 1\.png: calculate_niqe with crop_border: 2 on 128x128 pixels; '
        r'accepted: 196x100 or more, 2 blocks',
    ):
        load_options(path, [], is_train=True)
    (tmp_path / 'list.txt').write_text('0.png (50,98,3)\n')
    (tmp_path / 'LQ' / '1.png').unlink()
    load_options(path, [], is_train=True)


def test_an_lmdb_of_images_too_small_for_a_metric_is_refused(train_opt, data, tmp_path):
    lmdb = {'dataroot_gt': str(data / 'HR.lmdb'), 'dataroot_lq': str(data / 'LR.lmdb'), 'io_backend': {'type': 'lmdb'}}
    train_opt['val']['metrics']['psnr_y']['crop_border'] = 24
    assert 'val.metrics.psnr_y: datasets.val: 0000_s001: calculate_psnr with crop_border: 24 on 48x48' in data_refusal(
        train_opt, tmp_path, **lmdb
    )
