import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import picture
from torch.utils.data import Dataset

import facd_basicsr  # noqa: F401

# isort: split
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.data.loaders import build_ordered_dataset
from facd_basicsr.data.paths import check_paths, check_whole_dataset
from facd_basicsr.errors import UserError

PAIRED, OFFICIAL = 'PairedImageDataset', 'RealESRGANPairedDataset'
DEGRADATION = dict.fromkeys(['blur_kernel_size', 'kernel_list', 'kernel_prob', 'blur_sigma', 'betag_range'], None)
DEGRADATION |= {'betap_range': None, 'sinc_prob': 0, 'final_sinc_prob': 0}
DEGRADATION |= {f'{key}2': value for key, value in DEGRADATION.items() if key != 'final_sinc_prob'}


def write_image(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """``GT/a.png`` and ``GT/b.png``, their x2 LQ of the same names, and a text file that is not an image."""
    for i, name in enumerate(('a', 'b')):
        gt = picture(i, 32, 48)
        for folder, image in (('GT', gt), ('LQ', bicubic_lr(gt, 2))):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f'{name}.png'), image)
    return tmp_path


def block_of(root: Path, kind: str, **options: Any) -> dict[str, Any]:
    roots = {'dataroot_gt': str(root / 'GT'), 'dataroot_lq': str(root / 'LQ')}
    return {'name': 'x', 'type': kind, 'phase': 'val', 'scale': 2, 'io_backend': {'type': 'disk'}} | roots | options


def built(block: dict[str, Any]) -> Any:
    """The dataset, after its check."""
    check_paths({'scale': 2, 'path': {}, 'datasets': {'val': block}}, is_train=False)
    return build_ordered_dataset(block)


def refusal(block: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        check_paths({'scale': 2, 'path': {}, 'datasets': {'val': block}}, is_train=False)
    return str(error.value)


def listing(root: Path, text: str) -> str:
    (root / 'list.txt').write_text(text, encoding='utf-8')
    return str(root / 'list.txt')


@pytest.mark.parametrize('kind', [OFFICIAL, f'{OFFICIAL}_basicsr'])
def test_the_list_of_pairs_that_real_esrgan_makes_is_read_with_folders_below_one_root(root, kind):
    block = block_of(root, kind, dataroot_gt=str(root), dataroot_lq=str(root))
    dataset = built(block | {'meta_info': listing(root, 'GT/b.png, LQ/b.png\nGT/a.png, LQ/a.png\n')})
    assert [Path(path).name for paths in dataset.paths for path in paths.values()] == [
        'a.png',
        'a.png',
        'b.png',
        'b.png',
    ]
    assert dataset[1]['lq'].shape == (3, 16, 24) and dataset[1]['gt_path'] == str(root / 'GT' / 'b.png')
    assert (
        check_whole_dataset('val', block | {'meta_info': str(root / 'list.txt')}, 2) == '2 pairs of x, every file read'
    )
    stale = listing(root, 'GT/a.png, LQ/a.png\nGT/b.png, LQ/c.png\n')
    assert refusal(block | {'meta_info': stale}) == (
        f"datasets.val.meta_info: {stale}, line 2: no such file: {root}/LQ/c.png; accepted: 'GT/0001.png, LQ/"
        "0001.png', of files there"
    )
    assert "list.txt, line 1: 'GT/a.png'; accepted: such as 'GT/0001.png, LQ/0001.png'" in refusal(
        block | {'meta_info': listing(root, 'GT/a.png')}
    )


def test_a_real_esrgan_dataset_reads_the_images_of_its_list_below_its_root(root):
    block = block_of(root, 'RealESRGANDataset', dataroot_gt=str(root), use_hflip=False, use_rot=False, **DEGRADATION)
    del block['dataroot_lq']
    dataset = built(block | {'meta_info': listing(root, 'GT/b.png\n\nGT/a.png')})
    assert dataset.paths == [str(root / 'GT' / 'a.png'), str(root / 'GT' / 'b.png')]
    assert refusal(block).startswith('datasets.val.meta_info: missing; accepted for RealESRGANDataset: a list of lines')
    with pytest.raises(UserError, match=r'^datasets\.val\.sinc_prob: missing; accepted: what RealESRGANDataset reads$'):
        built(
            {key: value for key, value in block.items() if key != 'sinc_prob'} | {'meta_info': str(root / 'list.txt')}
        )


def clips(root: Path) -> dict[str, Any]:
    for clip in ('000', '011'):
        for frame in range(3):
            write_image(root / 'GT' / clip / f'{frame:08d}.png', 16, 16)
            write_image(root / 'LQ' / clip / f'{frame:08d}.png', 8, 8)
    return block_of(root, 'VideoTestDataset', name='REDS4', cache_data=False, num_frame=3, padding='reflection')


@pytest.mark.parametrize('lines', [None, '000 100 (720,1280,3)\n', '\ufeff000\n\n', '000'])
def test_a_video_set_of_folders_of_frames_is_read_with_and_without_a_list(tmp_path, lines):
    block = clips(tmp_path)
    dataset = built(block | {'meta_info_file': None if lines is None else listing(tmp_path, lines)})
    assert len(dataset) == (6 if lines is None else 3) and dataset[0]['lq'].shape == (3, 3, 8, 8)


def test_what_is_no_clip_is_refused_by_name(tmp_path):
    block = clips(tmp_path)
    stale = listing(tmp_path, '000\n020\n')
    assert f'meta_info_file: {stale}, line 2: no such folder: {tmp_path}/GT/020; ' in refusal(
        block | {'meta_info_file': stale}
    )
    (tmp_path / 'GT' / '020').mkdir()
    assert '020 is in one of ' in refusal(block)
    (tmp_path / 'LQ' / '020').mkdir()
    assert 'GT/020 is not a folder of frames' in refusal(block)


def test_the_list_of_a_video_training_set_may_name_clips_that_are_not_there_but_not_end_in_a_traceback(tmp_path):
    block = clips(tmp_path) | {'type': 'REDSDataset', 'dataroot_flow': None, 'val_partition': 'REDS4', 'gt_size': 8}
    block |= {'interval_list': [1], 'random_reverse': False, 'use_hflip': False, 'use_rot': False}
    dataset = built(block | {'meta_info_file': listing(tmp_path, '000 3 (16,16,3)\n\n001 3 (16,16,3)\n')})
    assert dataset.keys == ['001/00000000', '001/00000001', '001/00000002']
    assert "list.txt, line 2: '001'; accepted: such as '000 100 (720,1280,3)'" in refusal(
        block | {'meta_info_file': listing(tmp_path, '000 3 (16,16,3)\n001\n')}
    )


@pytest.mark.parametrize('kind', [PAIRED, OFFICIAL, 'VideoTestDataset', 'RealESRGANDataset'])
def test_a_root_that_a_dataset_reads_is_missed_by_name(root, kind):
    for block in (block_of(root, kind, dataroot_gt=None), {'type': kind}):
        assert refusal(block) == (f'datasets.val.dataroot_gt: missing; accepted: a folder or LMDB, which {kind} reads')


class OwnDataset(Dataset):
    """With rules of its own: one file for all images."""

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt


class PairsOfBasicSR(PairedImageDataset):
    """With BasicSR's constructor, and so its rules."""


def test_a_dataset_of_another_package_is_held_to_its_own_rules(root):
    (root / 'GT' / 'a.npz').touch()
    for dataset in (OwnDataset, PairsOfBasicSR):
        if dataset.__name__ not in DATASET_REGISTRY:
            DATASET_REGISTRY.register(dataset)
    assert type(built(block_of(root, 'OwnDataset', dataroot_gt=str(root / 'GT' / 'a.npz')))) is OwnDataset
    assert 'no such file or folder: absent' in refusal(block_of(root, 'OwnDataset', dataroot_lq='absent'))
    assert 'a.npz is not an image' in refusal(block_of(root, 'PairsOfBasicSR'))


def test_with_a_list_other_files_of_the_folder_do_not_matter(root):
    (root / 'GT' / 'readme.txt').touch()
    assert 'readme.txt is not an image' in refusal(block_of(root, PAIRED))
    block = block_of(root, PAIRED, meta_info_file=listing(root, 'a.png (32,48,3)\n'))
    assert len(built(block)) == 1 and check_whole_dataset('val', block, 2) == '1 pairs of x, every file read'


@pytest.mark.parametrize('kind', [PAIRED, 'SingleImageDataset'])
@pytest.mark.parametrize('text', ['\ufeffa.png (1,1,3)\nb.png\n', 'a.png\n\n  \nb.png (1,1,3)\n\n', 'a.png\r\nb.png'])
def test_a_byte_order_mark_and_blank_lines_are_no_part_of_a_list(root, kind, text):
    dataset = built(block_of(root, kind, meta_info_file=listing(root, text)))
    assert len(dataset) == 2 and dataset[0]['lq_path'] == str(root / 'LQ' / 'a.png')


def test_a_line_of_a_list_that_names_no_file_is_refused_with_its_number(root):
    stale = listing(root, '\na.png\ngone.png (1,1,3)\n')
    for kind, folder in ((PAIRED, 'GT'), ('SingleImageDataset', 'LQ')):
        assert refusal(block_of(root, kind, meta_info_file=stale)) == (
            f'datasets.val.meta_info_file: {stale}, line 3: no such file: {root}/{folder}/gone.png; accepted: '
            "'0001.png (480,480,3)', of files there"
        )
    write_image(root / 'GT' / 'gone.png', 32, 48)
    assert f'{stale}, line 3: {root}/GT/gone.png has no LQ: sought {root}/LQ/gone.png' in refusal(
        block_of(root, PAIRED, meta_info_file=stale)
    )
    empty = listing(root, '\n')
    assert f'meta_info_file: {empty} is empty; accepted: lines such as' in refusal(
        block_of(root, PAIRED, meta_info_file=empty)
    )


def test_a_blank_line_and_a_byte_order_mark_are_no_part_of_the_list_of_an_lmdb(data, tmp_path):
    for name in ('HR.lmdb', 'LR.lmdb'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'data.mdb').symlink_to(data / name / 'data.mdb')
        text = (data / name / 'meta_info.txt').read_text()
        (tmp_path / name / 'meta_info.txt').write_text(f'\ufeff{text}\n' if name == 'LR.lmdb' else text, 'utf-8')
    roots = {'dataroot_gt': str(tmp_path / 'HR.lmdb'), 'dataroot_lq': str(tmp_path / 'LR.lmdb')}
    dataset = built(block_of(tmp_path, PAIRED, io_backend={'type': 'lmdb'}, **roots))
    assert [paths['lq_path'] for paths in dataset.paths] == [f'{i:04d}_s001' for i in range(6)]
    assert dataset[0]['lq'].shape == (3, 24, 24)


def test_an_lq_of_another_format_is_paired_by_its_stem(root):
    for name, suffix in (('a', '.jpg'), ('b', '.bmp')):
        image = cv2.imread(str(root / 'LQ' / f'{name}.png'))
        (root / 'LQ' / f'{name}.png').unlink()
        cv2.imwrite(str(root / 'LQ' / f'{name}x2{suffix}'), image)
    block = block_of(root, PAIRED, filename_tmpl='{}x2')
    pairs = [(Path(paths['gt_path']).name, Path(paths['lq_path']).name) for paths in built(block).paths]
    assert pairs == [('a.png', 'ax2.jpg'), ('b.png', 'bx2.bmp')]
    assert built(block)[1]['lq'].shape == (3, 16, 24)
    assert check_whole_dataset('val', block, 2) == '2 pairs of x, every file read'
    cv2.imwrite(str(root / 'LQ' / 'ax2.bmp'), image)
    assert re.search(r'LQ has ax2\.bmp and ax2\.jpg for .*GT/a\.png; accepted: one of them', refusal(block))


def test_a_gt_without_lq_is_named_with_what_was_sought_and_the_template_that_fits(root):
    for name in ('a', 'b'):
        (root / 'LQ' / f'{name}.png').rename(root / 'LQ' / f'{name}x2.jpg')
    assert refusal(block_of(root, PAIRED)) == (
        f'datasets.val.dataroot_lq: {root}/GT/a.png has no LQ: sought {root}/LQ/a.png, or a with another suffix of an '
        "image; accepted: that file, or filename_tmpl: '{}x2', by which every GT has one (here '{}'); "
        'datasets/README.md says how to prepare it'
    )
    (root / 'LQ' / 'bx2.jpg').unlink()
    assert "or a filename_tmpl that fits (here '{}')" in refusal(block_of(root, PAIRED))
    assert f'{root}/GT/b.png has no LQ: sought {root}/LQ/bx2.png' in refusal(
        block_of(root, PAIRED, filename_tmpl='{}x2')
    )


def test_the_first_lq_without_gt_is_named_where_the_counts_differ(root):
    for name in ('c', 'd'):
        write_image(root / 'LQ' / f'{name}.png', 16, 24)
    assert f'{root}/LQ/c.png (and 1 more) has no counterpart in {root}/GT' in refusal(block_of(root, PAIRED))


def test_two_gt_do_not_share_an_lq(root):
    (root / 'LQ' / 'b.png').unlink()
    (root / 'GT' / 'b.png').rename(root / 'GT' / 'a.bmp')
    assert f'LQ/a.png would be the LQ of {root}/GT/a.bmp and {root}/GT/a.png; accepted: one of each' in refusal(
        block_of(root, PAIRED)
    )
