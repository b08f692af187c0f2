import shutil

import cv2
import numpy as np
import pytest
from conftest import changed, picture

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.test_sets import build_sets, pairs, select, validation_pairs


def test_pairs_are_the_files_images_by_name_cropped_to_the_scale(test_opt, data):
    found = list(pairs(build_sets(test_opt)))
    assert [(pair.set, pair.image, pair.gray) for pair in found] == [('pictures', '0', False), ('pictures', '1', False)]
    for pair in found:
        assert np.array_equal(pair.gt, cv2.imread(str(data / 'GT' / f'{pair.image}.png')))
        assert np.array_equal(pair.lq, cv2.imread(str(data / 'LQ' / f'{pair.image}.png')))


def test_pairs_read_lmdbs(test_opt, data):
    opt = changed(test_opt, 'datasets.test_1.io_backend', {'type': 'lmdb'})
    for key, name in (('dataroot_gt', 'HR.lmdb'), ('dataroot_lq', 'LR.lmdb')):
        opt = changed(opt, f'datasets.test_1.{key}', str(data / name))
    found = list(pairs(build_sets(opt)))
    assert [pair.image for pair in found] == [f'{i:04d}_s001' for i in range(6)]
    assert np.array_equal(found[3].gt, picture(3, 48, 48))


def test_a_validation_set_in_memory_is_read_from_its_files(test_opt):
    expected, _ = validation_pairs(test_opt)
    found, problems = validation_pairs(changed(test_opt, 'datasets.test_1.io_backend', {'type': 'memory'}))
    assert problems == []
    for pair, same in zip(found, expected, strict=True):
        assert np.array_equal(pair.lq, same.lq) and np.array_equal(pair.gt, same.gt)


def test_pairs_are_those_of_test_py_with_another_suffix_and_by_a_list_of_real_esrgan(test_opt, data, tmp_path):
    (tmp_path / 'LQ').mkdir()
    for name in ('0', '1'):
        cv2.imwrite(str(tmp_path / 'LQ' / f'{name}.bmp'), cv2.imread(str(data / 'LQ' / f'{name}.png')))
    opt = changed(test_opt, 'datasets.test_1.dataroot_lq', str(tmp_path / 'LQ'))
    (tmp_path / 'list.txt').write_text('1.png, 1.bmp\n\n')
    listed = changed(opt, 'datasets.test_1.meta_info', str(tmp_path / 'list.txt'))
    for block, names in (
        (opt, ['0', '1']),
        (changed(listed, 'datasets.test_1.type', 'RealESRGANPairedDataset'), ['1']),
    ):
        found = list(pairs(build_sets(block)))
        assert [pair.image for pair in found] == names
        assert np.array_equal(found[-1].lq, cv2.imread(str(data / 'LQ' / '1.png')))


def test_a_one_channel_gt_is_known_as_such(test_opt, tmp_path):
    for folder, size in (('GT', 16), ('LQ', 8)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / 'a.png'), picture(0, size, size)[..., 0])
    opt = changed(test_opt, 'datasets.test_1.dataroot_gt', str(tmp_path / 'GT'))
    (pair,) = pairs(build_sets(changed(opt, 'datasets.test_1.dataroot_lq', str(tmp_path / 'LQ'))))
    assert pair.gray and pair.gt.shape == (16, 16, 3)


def test_select_takes_images_by_name(test_opt):
    sets = build_sets(test_opt)
    assert [pair.image for pair in select(sets, 'pictures', ['1'])] == ['1']
    assert len(select(sets, None)) == 2


@pytest.mark.parametrize(
    ('set_name', 'images', 'message'),
    [
        ('picture', [], r"--set: 'picture' is not in the option files; did you mean 'pictures'\?"),
        (None, ['7'], r"--image: '7' is not in pictures; .*Accepted: 0, 1"),
    ],
)
def test_select_names_what_there_is(test_opt, set_name, images, message):
    with pytest.raises(UserError, match=message):
        select(build_sets(test_opt), set_name, images)


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        ('datasets.test_1.color', 'y', r"datasets.test_1.color: 'y'; accepted here: none"),
        ('datasets.test_1.type', 'SingleImageDataset', r'type: SingleImageDataset; accepted here: PairedImageDataset'),
    ],
)
def test_sets_that_are_not_of_colour_pairs_are_refused(test_opt, location, value, message):
    with pytest.raises(UserError, match=message):
        build_sets(changed(test_opt, location, value))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\x89PNG\r\n\x1a\n', r'datasets: .*GT/1.png: not a readable image'),
        (
            cv2.imencode('.png', picture(101, 24, 48))[1].tobytes(),
            r'GT/1.png: 48 x 24 pixels; accepted: 2 times the 24 x',
        ),
    ],
)
def test_an_image_that_can_not_be_compared_is_named(content, message, test_opt, data, tmp_path):
    shutil.copytree(data / 'GT', tmp_path / 'GT')
    (tmp_path / 'GT' / '1.png').write_bytes(content)
    sets = build_sets(changed(test_opt, 'datasets.test_1.dataroot_gt', str(tmp_path / 'GT')))
    with pytest.raises(UserError, match=message):
        list(pairs(sets))
