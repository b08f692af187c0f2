from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import picture

from facd_basicsr.data.benchmark_sets import prepare_benchmarks
from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.data.paths import check_paths
from facd_basicsr.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sets, one with its images in a folder HR."""
    root = tmp_path / 'root'
    for folder in ('Set5', 'Set14/hr'):
        (root / folder).mkdir(parents=True)
    cv2.imwrite(str(root / 'Set5' / 'baby.png'), picture(0, 40, 61))
    cv2.imwrite(str(root / 'Set5' / 'bird.bmp'), picture(1, 24, 24)[:, :, 0])
    cv2.imwrite(str(root / 'Set14' / 'hr' / 'zebra.png'), picture(2, 24, 36))
    return root


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_sets_have_the_layout_that_the_test_options_read(root, tmp_path, capsys):
    out = tmp_path / 'datasets'
    prepare_benchmarks(root, out, [2, 4], 1)
    images = [f'Set5/{folder}/{name}.png' for folder in ('GTmod12', 'LRbicx2', 'LRbicx4') for name in ('baby', 'bird')]
    images += [f'Set14/{folder}/zebra.png' for folder in ('GTmod12', 'LRbicx2', 'LRbicx4')]
    assert tree(out) == sorted([*images, 'Set5/prepare.json', 'Set14/prepare.json'])
    gt = cv2.imread(str(out / 'Set5' / 'GTmod12' / 'baby.png'))
    assert np.array_equal(gt, picture(0, 40, 61)[:36, :60])
    assert np.array_equal(cv2.imread(str(out / 'Set5' / 'LRbicx4' / 'baby.png')), bicubic_lr(gt, 4))
    assert cv2.imread(str(out / 'Set5' / 'GTmod12' / 'bird.png'), cv2.IMREAD_UNCHANGED).shape == (24, 24)  # stays gray
    for scale in (2, 4):
        roots = {'dataroot_gt': out / 'Set5' / 'GTmod12', 'dataroot_lq': out / 'Set5' / f'LRbicx{scale}'}
        dataset = {'type': 'PairedImageDataset', **roots}
        check_paths({'scale': scale, 'path': {}, 'datasets': {'test_1': dataset}}, is_train=False)

    capsys.readouterr()
    prepare_benchmarks(root, out, [2, 4], 1)
    assert '2 images already there: ' in capsys.readouterr().out
    with pytest.raises(UserError, match=r'Set14: already exists, made with other scales \(2 4, now 2\); delete it'):
        prepare_benchmarks(root, out, [2], 1)


def test_a_single_set_may_be_given_itself(root, tmp_path):
    prepare_benchmarks(root / 'Set14', tmp_path / 'out', [3], 1)
    assert tree(tmp_path / 'out') == ['Set14/GTmod12/zebra.png', 'Set14/LRbicx3/zebra.png', 'Set14/prepare.json']


def test_an_interrupted_set_is_not_there_and_is_continued(root, tmp_path, monkeypatch):
    out = tmp_path / 'out'

    def interrupted(path: Path, image: np.ndarray) -> None:
        if path.parts[-2:] == ('LRbicx2', 'bird.png'):
            raise KeyboardInterrupt
        write_png(path, image)

    from facd_basicsr.files.images import write_png

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr('facd_basicsr.data.benchmark_sets.write_png', interrupted)
        prepare_benchmarks(root / 'Set5', out, [2], 1)
    assert [path.name for path in out.iterdir()] == ['.partial_Set5']
    done = out / '.partial_Set5' / 'LRbicx2' / 'baby.png'
    before = done.stat().st_mtime_ns
    prepare_benchmarks(root / 'Set5', out, [2], 1)
    assert [path.name for path in out.iterdir()] == ['Set5'] and len(tree(out)) == 5
    assert (out / 'Set5' / 'LRbicx2' / 'baby.png').stat().st_mtime_ns == before


def test_what_is_no_benchmark_is_refused_by_name(root, tmp_path):
    def refusal() -> str:
        with pytest.raises(UserError) as error:
            prepare_benchmarks(root, tmp_path / 'out', [2], 1)
        assert not (tmp_path / 'out').exists()
        return str(error.value)

    cv2.imwrite(str(root / 'Set5' / 'bird.png'), picture(1, 24, 24))
    assert 'bird.png and ' in refusal() and 'would both be bird.png; accepted: one of them' in refusal()
    (root / 'Set5' / 'bird.png').unlink()
    cv2.imwrite(str(root / 'Set5' / 'small.png'), np.zeros((11, 20, 3), np.uint8))
    assert 'small.png: 20x11 pixels; accepted: 12 or more both ways' in refusal()
    (root / 'Set5' / 'small.png').write_bytes(b'')
    assert 'small.png: not a readable image (the file is empty)' in refusal()
    (root / 'Set5' / 'small.png').unlink()
    (root / 'Set5' / 'GT').mkdir()
    assert 'HR images may be in' in refusal()
    (root / 'B100').mkdir()
    (root / 'Set5' / 'GT').rmdir()
    assert 'root: no images of B100; accepted: a folder for each set, with HR images in it or in its' in refusal()
    with pytest.raises(UserError, match=r'absent: no such folder'):
        prepare_benchmarks(tmp_path / 'absent', tmp_path / 'out', [2], 1)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'empty: no images of any set'):
        prepare_benchmarks(tmp_path / 'empty', tmp_path / 'out', [2], 1)
