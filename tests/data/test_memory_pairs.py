import errno
import io
import os
import pickle
import random
import re
import shutil
import signal
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace

import cv2
import lmdb
import numpy as np
import pytest
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils import imfrombytes
from conftest import tiny_train_opt
from damages import make_empty, replace_by_text, truncate_to_half
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from processes import FORKED, TIMEOUT
from runs import TOTAL, assert_same, log_text, result, run
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from facd_basicsr.data import decoded_cache, memory_pairs
from facd_basicsr.data.decoded_cache import DecodedImages
from facd_basicsr.data.loaders import build_ordered_dataset
from facd_basicsr.data.memory_pairs import MemoryPairs
from facd_basicsr.data.paths import check_whole_dataset
from facd_basicsr.data.seeded_dataset import NamingDataset, SeededDataset
from facd_basicsr.errors import UserError
from facd_basicsr.files.atomic import PARTIAL

MEMORY = {'type': 'memory'}
MEAN_STD = {'mean': [0.45, 0.44, 0.4], 'std': [0.5, 1.0, 0.3]}
SAMPLE_OPTIONS = st.fixed_dictionaries(
    {
        'gt_size': st.sampled_from([2, 14, 24]),
        'use_hflip': st.booleans(),
        'use_rot': st.booleans(),
        'phase': st.sampled_from(['train', 'train', 'val']),
    },
    optional={'color': st.sampled_from(['y', None])},
)
SEEDS = st.integers(0, 2**62)


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng().integers(0, 256, (height, width, *channels), np.uint8)


def save_noise(path: Path, height: int, width: int, i: int) -> None:
    """Of every kind that there is, by ``i``."""
    if i == 1:
        cv2.imwrite(str(path), noise(height, width))  # gray
    elif i == 2:
        cv2.imwrite(str(path), np.dstack([noise(height, width, 3), np.full((height, width), 255, np.uint8)]))
    elif i == 3:
        cv2.imwrite(str(path), noise(height, width, 3).astype(np.uint16) * 257)
    elif i == 4:
        exif = Image.Exif()
        exif[274] = 6  # lying
        Image.fromarray(noise(width, height, 3)).save(path, format='JPEG', exif=exif)
    else:
        cv2.imwrite(str(path), noise(height, width, 3))


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``GT`` and ``LQ`` of seven pairs of noise of several sizes and kinds, x2."""
    root = tmp_path_factory.mktemp('pairs')
    for name, scale in (('GT', 2), ('LQ', 1)):
        (root / name).mkdir()
        for i in range(7):
            save_noise(root / name / f'{i}.png', scale * (12 + i), scale * (20 - i), i)
    return root


def block_of(root: Path, names: tuple[str, str] = ('GT', 'LQ'), **values: object) -> dict:
    """The option block of a training set."""
    roots = {'dataroot_gt': str(root / names[0]), 'dataroot_lq': str(root / names[1])}
    block = tiny_train_opt(root, root)['datasets']['train']
    backend = {'type': 'lmdb' if names[0].endswith('.lmdb') else 'disk'}
    return {**block, **roots, 'io_backend': backend, 'phase': 'train', 'scale': 2, **values}


def built_both(block: dict) -> tuple[SeededDataset, SeededDataset]:
    """The set as its files are, and in memory."""
    files, memory = (build_ordered_dataset(block | backend) for backend in ({}, {'io_backend': MEMORY}))
    assert isinstance(memory, MemoryPairs) and not isinstance(files, MemoryPairs) and len(memory) == len(files)
    return SeededDataset(files), SeededDataset(memory)


@pytest.mark.parametrize('normalized', [{}, MEAN_STD])
@given(options=SAMPLE_OPTIONS, seed=SEEDS)
def test_a_sample_is_the_same_from_memory_and_from_a_folder(folders, normalized, options, seed):
    files, memory = built_both(block_of(folders, **options, **({} if options.get('color') == 'y' else normalized)))
    for index in range(len(files)):
        expected, found = files[index, seed], memory[index, seed]
        assert list(found) == list(expected)
        assert_same(found, expected)
        batch, expected = default_collate([found]), default_collate([expected])
        assert batch['gt'].stride() == expected['gt'].stride() and batch['lq'].stride() == expected['lq'].stride()


@pytest.mark.parametrize('phase', ['train', 'val'])
def test_a_sample_is_the_same_from_memory_and_from_an_lmdb(data, phase):
    files, memory = built_both(block_of(data, ('HR.lmdb', 'LR.lmdb'), phase=phase))
    for _ in range(50):
        sample = random.randrange(len(files)), random.getrandbits(62)
        assert_same(memory[sample], files[sample])


def test_as_many_numbers_are_drawn(folders):
    files, memory = (dataset.dataset for dataset in built_both(block_of(folders)))
    seed = random.getrandbits(32)
    drawn = []
    for dataset in (files, memory):
        random.seed(seed)
        dataset[0]
        drawn.append(random.random())
    assert drawn[0] == drawn[1]


def test_samples_do_not_change_the_images(folders):
    _, memory = built_both(block_of(folders))
    before = memory[0, 3]
    for seed in range(20):
        memory[0, seed]['gt'].zero_()
    assert_same(memory[0, 3], before)


def test_the_images_of_a_list_and_with_a_template_are_found(folders, tmp_path):
    (tmp_path / 'list.txt').write_text('5.png (34,30,3)\n0.png (24,40,3)\n')
    (tmp_path / 'LQ').mkdir()
    for i in (0, 5):
        shutil.copy(folders / 'LQ' / f'{i}.png', tmp_path / 'LQ' / f'{i}x2.png')
    block = block_of(folders, meta_info_file=str(tmp_path / 'list.txt'), filename_tmpl='{}x2')
    files, memory = built_both({**block, 'dataroot_lq': str(tmp_path / 'LQ'), 'phase': 'val'})
    for index in range(2):
        assert_same(memory[index, 0], files[index, 0])


def test_a_gt_that_is_no_multiple_of_the_scale_is_cropped_in_validation(tmp_path):
    for name, size in (('GT', (13, 17)), ('LQ', (6, 8))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / '0.png'), noise(*size, 3))
    files, memory = built_both(block_of(tmp_path, phase='val'))
    assert memory[0, 0]['gt'].shape == (3, 12, 16)
    assert_same(memory[0, 0], files[0, 0])


def too_small(path: Path) -> None:
    cv2.imwrite(str(path), noise(8, 8, 3))


@pytest.fixture
def own_folders(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders, tmp_path / 'own', ignore=shutil.ignore_patterns('*.decoded-*', '*.taught-*')))


@pytest.mark.parametrize('side', ['GT', 'LQ'])
@pytest.mark.parametrize('damage', [truncate_to_half, make_empty, replace_by_text, too_small])
def test_a_damaged_image_is_replaced_and_named_as_from_its_folder(own_folders, monkeypatch, damage, side):
    block = block_of(own_folders)
    damage(own_folders / side / '5.png')
    warnings = []
    monkeypatch.setattr('facd_basicsr.data.memory_pairs.get_root_logger', lambda: Log(warnings))
    files, memory = built_both(block)
    for seed in range(4):
        expected, found = files[5, seed], memory[5, seed]
        assert f'{side}/5.png' in found['damaged'] or damage is too_small
        assert_same(found, expected)
        assert_same(memory[2, seed], files[2, seed])
    if damage is not too_small:
        (warning,) = warnings
        assert warning.startswith('1 pairs of pictures are not: damaged')


class Log:
    def __init__(self, warnings: list[str]) -> None:
        self.warning = warnings.append

    def info(self, message: str) -> None:
        assert 'pictures' in message


def test_a_damaged_image_of_an_lmdb_is_replaced_and_named_as_from_there(data, tmp_path):
    for name in ('HR.lmdb', 'LR.lmdb'):
        shutil.copytree(data / name, tmp_path / name)
    with lmdb.open(str(tmp_path / 'LR.lmdb'), map_size=2**24) as env, env.begin(write=True) as txn:
        txn.put(b'0001_s001', txn.get(b'0001_s001')[:100])
        txn.put(b'0002_s001', cv2.imencode('.png', noise(30, 30, 3))[1].tobytes())  # not as meta_info.txt has it
        txn.delete(b'0003_s001')
    block = block_of(tmp_path, ('HR.lmdb', 'LR.lmdb'))
    samples = [(index, seed) for index in range(4) for seed in range(3)]
    found = {sample: SeededDataset(build_ordered_dataset(block | {'io_backend': MEMORY}))[sample] for sample in samples}
    files = SeededDataset(build_ordered_dataset(block))  # after the other: one LMDB cannot be opened twice
    for sample in samples:
        assert_same(found[sample], files[sample])
    assert [found[index, 0]['damaged'] != '' for index in range(4)] == [False, True, True, True]


def test_a_damaged_validation_image_is_named(own_folders):
    truncate_to_half(own_folders / 'LQ' / '2.png')
    dataset = NamingDataset(build_ordered_dataset(block_of(own_folders, phase='val', io_backend=MEMORY)))
    assert dataset[0]['gt'].shape == (3, 24, 40) and dataset.opt['name'] == 'pictures' and len(dataset) == 7
    with pytest.raises(UserError, match=r'datasets: .*LQ/2.png: not a readable image'):
        dataset[2]


def caches(root: Path) -> list[str]:
    """What lies in a folder beside its data, hidden files too."""
    return sorted(path.name for path in root.iterdir() if re.search(r'^\.|\.decoded-|\.taught-', path.name))


def refuse_to_decode(content: bytes) -> None:
    raise AssertionError('decoded again')


def test_a_second_run_maps_the_images_and_decodes_none(own_folders, monkeypatch):
    _, first = built_both(block_of(own_folders))
    assert [re.sub('[0-9a-f]{8}$', 'X', name) for name in caches(own_folders)] == ['GT.decoded-X', 'LQ.decoded-X']
    monkeypatch.setattr(decoded_cache, 'imfrombytes', refuse_to_decode)
    _, second = built_both(block_of(own_folders))
    assert_same(second[3, 4], first[3, 4])
    monkeypatch.chdir(own_folders.parent)  # by other names
    _, third = built_both(block_of(Path(own_folders.name)))
    assert_same(third[3, 4]['gt'], first[3, 4]['gt'])


def test_sets_of_one_gt_share_its_images(own_folders, monkeypatch):
    built_both(block_of(own_folders))
    shutil.copytree(own_folders / 'LQ', own_folders / 'other')
    decoded = []
    monkeypatch.setattr(decoded_cache, 'imfrombytes', lambda content: decoded.append(content) or imfrombytes(content))
    built_both(block_of(own_folders, ('GT', 'other')))
    assert len(decoded) == 7 and len(caches(own_folders)) == 3


def test_after_an_image_has_changed_the_old_ones_are_not_read(own_folders):
    built_both(block_of(own_folders))
    save_noise(own_folders / 'GT' / '5.png', 2 * 17, 2 * 15, 5)
    files, memory = built_both(block_of(own_folders))
    assert_same(memory[5, 0], files[5, 0])
    assert len(caches(own_folders)) == 3


def test_after_an_lmdb_has_changed_the_old_images_are_not_read(data, tmp_path):
    for name in ('HR.lmdb', 'LR.lmdb'):
        shutil.copytree(data / name, tmp_path / name)
    block = block_of(tmp_path, ('HR.lmdb', 'LR.lmdb'))
    built_both(block)
    with lmdb.open(str(tmp_path / 'HR.lmdb'), map_size=2**24) as env, env.begin(write=True) as txn:
        txn.put(b'0001_s001', cv2.imencode('.png', noise(48, 48, 3))[1].tobytes())
    files, memory = built_both(block)
    for sample in ((0, 0), (1, 0)):
        assert_same(memory[sample], files[sample])
    assert len(caches(tmp_path)) == 3


def test_a_cache_that_was_cut_short_is_made_again(own_folders):
    built_both(block_of(own_folders))
    for name in caches(own_folders):
        truncate_to_half(own_folders / name)
    files, memory = built_both(block_of(own_folders))
    assert_same(memory[5, 0], files[5, 0])
    assert len(caches(own_folders)) == 2


def test_the_images_of_a_folder_inside_the_other_are_not_taken_for_its_own(own_folders):
    (own_folders / 'LQ').rename(own_folders / 'GT' / 'LQ')
    for _ in range(2):
        files, memory = built_both(block_of(own_folders, ('GT', 'GT/LQ')))
        assert_same(memory[5, 0], files[5, 0])


def build_and_count(block: dict, waiting: Event, counts: Queue) -> None:
    """In a process of its own. Decodes nothing before another process waits for it."""
    decoded = []

    def decode(content: bytes) -> np.ndarray:
        assert waiting.wait(TIMEOUT)
        decoded.append(content)
        return imfrombytes(content)

    def info(message: str) -> None:
        if message.endswith('waiting for it.'):
            waiting.set()

    decoded_cache.imfrombytes = decode
    decoded_cache.get_root_logger = lambda: SimpleNamespace(info=info)
    sample = SeededDataset(build_ordered_dataset(block))[3, 4]
    counts.put((len(decoded), float(sample['gt'].sum())))


def of_two_processes(target: Callable[..., None], block: dict) -> list[tuple[int, float]]:
    """What each of two processes counts and sums that begin at the same time."""
    waiting, counts = FORKED.Event(), FORKED.Queue()
    processes = [FORKED.Process(target=target, args=(block, waiting, counts)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [counts.get(timeout=TIMEOUT) for _ in processes]
    for process in processes:
        process.join()
    return found


def test_of_two_processes_at_the_same_time_one_decodes_and_both_map(own_folders):
    (first, left), (second, right) = of_two_processes(build_and_count, block_of(own_folders, io_backend=MEMORY))
    assert first + second == 14 and left == right
    assert len(caches(own_folders)) == 2


def build_until_killed(block: dict) -> None:
    decoded_cache.imfrombytes = lambda content: os.kill(os.getpid(), signal.SIGKILL)
    build_ordered_dataset(block)


def test_what_a_killed_process_has_left_does_not_stop_the_next_and_is_removed(own_folders):
    process = FORKED.Process(target=build_until_killed, args=(block_of(own_folders, io_backend=MEMORY),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(caches(own_folders)) == 2  # the partial file and the lock
    save_noise(own_folders / 'GT' / '5.png', 2 * 17, 2 * 15, 5)  # so that the next writes another
    files, memory = built_both(block_of(own_folders))
    assert_same(memory[5, 0], files[5, 0])
    assert [name[:11] for name in caches(own_folders)] == ['GT.decoded-', 'LQ.decoded-']


def full_by_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
    monkeypatch.setattr(decoded_cache, 'imfrombytes', refuse_to_decode)


def full_when_written(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open

    def open_path(path: Path, mode: str = 'r', *args: object, **kwargs: object) -> io.IOBase:
        return Full(path, mode) if path.name.startswith(PARTIAL) else opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, 'open', open_path)


def full_when_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', fsync)


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def open_file(path: str, flags: int, *args: object, **kwargs: object) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, 'open', open_file)


@pytest.mark.parametrize('names', [('GT', 'LQ'), ('HR.lmdb', 'LR.lmdb')])
@pytest.mark.parametrize(
    ('obstacle', 'said'),
    [
        (full_by_its_count, 'No space left on device'),
        (full_when_written, 'No space left on device'),
        (full_when_flushed, 'No space left on device'),
        (read_only, 'Read-only file system'),
    ],
)
def test_where_no_cache_can_be_written_one_warning_says_so_and_the_files_are_read(
    data, tmp_path, monkeypatch, names, obstacle, said
):
    for name in names:
        shutil.copytree(data / name, tmp_path / name)
    block, warnings = block_of(tmp_path, names), []
    monkeypatch.setattr(memory_pairs, 'get_root_logger', lambda: Log(warnings))
    with monkeypatch.context() as patches:
        obstacle(patches)
        memory = build_ordered_dataset(block | {'io_backend': MEMORY})
    assert type(memory) is PairedImageDataset and caches(tmp_path) == []
    samples = [(index, 3) for index in range(len(memory))]
    found = [SeededDataset(memory)[sample] for sample in samples]
    if memory.file_client.backend == 'lmdb':  # one LMDB cannot be opened twice
        for client in memory.file_client.client._client.values():
            client.close()
    files = SeededDataset(build_ordered_dataset(block))
    for sample, one in zip(samples, found):
        assert_same(one, files[sample])
    (warning,) = warnings
    assert re.fullmatch(
        rf'datasets\.train\.io_backend: memory: {tmp_path}: {said}, 0\.0 GB needed for {names[0]}\.decoded-[0-9a-f]+, '
        r'[0-9.]+ GB free; accepted: that space in a writable folder\. pictures is read from its files, .*',
        warning,
    )


@pytest.mark.parametrize('missing', [0, 1])
def test_the_space_is_known_to_the_byte(own_folders, monkeypatch, missing):
    built_both(block_of(own_folders))
    largest = max(own_folders.glob('*.decoded-*'), key=lambda path: path.stat().st_size)
    size = largest.stat().st_size
    largest.unlink()
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=size - missing))
    dataset = build_ordered_dataset(block_of(own_folders, io_backend=MEMORY))
    assert isinstance(dataset, MemoryPairs) != bool(missing)


def test_beside_a_link_there_is_room_for_the_images_of_a_read_only_folder(own_folders, tmp_path):
    (tmp_path / 'links').mkdir()
    for name in ('GT', 'LQ'):
        (tmp_path / 'links' / name).symlink_to(own_folders / name)
    built_both(block_of(tmp_path / 'links'))
    assert len(caches(tmp_path / 'links')) == 2 and caches(own_folders) == []


def test_a_mapping_is_pickled_as_its_path_and_cannot_be_written(own_folders):
    built_both(block_of(own_folders))
    (path,) = own_folders.glob('GT.decoded-*')
    content = pickle.dumps(DecodedImages(path, 7))
    image = pickle.loads(content)[6]
    assert len(content) < 500 and image.shape == (36, 28, 3)
    with pytest.raises(ValueError, match='read-only'):
        image[0] = 1


def test_workers_that_are_not_forked_read_the_same_images(folders):
    files, memory = built_both(block_of(folders, phase='val'))
    found = list(DataLoader(memory.dataset, batch_size=None, num_workers=1, multiprocessing_context='forkserver'))
    for index, sample in enumerate(found):
        assert_same(sample, files.dataset[index])
    assert len(found) == 7


def nearest(lq: Tensor) -> Tensor:
    """A teacher that repeats each pixel."""
    return lq.repeat_interleave(2, 2).repeat_interleave(2, 3)


def not_again(lq: Tensor) -> Tensor:
    raise AssertionError('the teacher ran again')


def built_with_teacher(block: dict, teach: Callable[[Tensor], Tensor] = nearest, *made_by: object) -> SeededDataset:
    dataset = build_ordered_dataset(block | {'io_backend': MEMORY})
    dataset.read_taught(teach, list(made_by))
    return SeededDataset(dataset)


@given(options=SAMPLE_OPTIONS.filter(lambda own: own['phase'] == 'train' and not own.get('color')), seed=SEEDS)
def test_a_sample_has_the_teachers_image_where_its_gt_is_and_the_same_bits_else(folders, options, seed):
    block = block_of(folders, **options)
    _, without = built_both(block)
    dataset = built_with_teacher(block)
    for index in range(7):
        found, expected = dataset[index, seed], without[index, seed]
        assert torch.equal(found.pop('teacher'), nearest(found['lq'][None])[0])
        assert_same(found, expected)


def test_an_image_of_the_teacher_has_8_bits(folders):
    dataset = built_with_teacher(block_of(folders), lambda lq: 3 * nearest(lq) - 1, 'clamped')
    sample = dataset[0, 1]
    expected = (3 * nearest(sample['lq'][None])[0] - 1).clamp(0, 1)
    assert (expected == 0).any() and (expected == 1).any()
    assert (sample['teacher'] - expected).abs().max() < 0.51 / 255
    assert torch.equal((255 * sample['teacher']).round() / 255, sample['teacher'])


def test_the_teacher_runs_once_on_each_whole_image_and_a_second_run_maps_what_it_gave(own_folders):
    sizes = []
    block = block_of(own_folders)
    first = built_with_teacher(block, lambda lq: sizes.append(tuple(lq.shape)) or nearest(lq), 'weights', 'bf16')
    assert sizes == [(1, 3, 12 + i, 20 - i) for i in range(7)]
    assert [name.split('-')[0] for name in caches(own_folders)] == ['GT.decoded', 'LQ.decoded', 'LQ.taught']
    assert_same(built_with_teacher(block, not_again, 'weights', 'bf16')[3, 4], first[3, 4])
    other = built_with_teacher(block, lambda lq: 1 - nearest(lq), 'other', 'bf16')
    torch.testing.assert_close(other[3, 4]['teacher'], 1 - first[3, 4]['teacher'])
    save_noise(own_folders / 'LQ' / '5.png', 17, 15, 5)
    built_with_teacher(block, lambda lq: sizes.append(tuple(lq.shape)) or nearest(lq), 'weights', 'bf16')
    assert len(sizes) == 14


def kill_at_the_fourth(block: dict) -> None:
    images = iter(range(7))

    def teach(lq: Tensor) -> Tensor:
        if next(images) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return nearest(lq)

    built_with_teacher(block, teach)


def test_a_process_that_is_killed_leaves_no_image_of_the_teacher(own_folders):
    process = FORKED.Process(target=kill_at_the_fourth, args=(block_of(own_folders),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not [name for name in caches(own_folders) if name[:3] == 'LQ.t']
    built_with_teacher(block_of(own_folders))
    assert [name.split('-')[0] for name in caches(own_folders)] == ['GT.decoded', 'LQ.decoded', 'LQ.taught']


def teach_and_count(block: dict, waiting: Event, counts: Queue) -> None:
    """In a process of its own. Its teacher waits until another process waits for it."""
    ran = []

    def teach(lq: Tensor) -> Tensor:
        assert waiting.wait(TIMEOUT)
        ran.append(1)
        return nearest(lq)

    def info(message: str) -> None:
        if message.endswith('waiting for it.'):
            waiting.set()

    decoded_cache.get_root_logger = lambda: SimpleNamespace(info=info)
    sample = built_with_teacher(block, teach)[3, 4]
    counts.put((len(ran), float(sample['teacher'].sum())))


def test_of_two_processes_at_the_same_time_one_runs_the_teacher_and_both_map(own_folders):
    block = block_of(own_folders)
    built_both(block)
    (first, left), (second, right) = of_two_processes(teach_and_count, block)
    assert {first, second} == {0, 7} and left == right


@pytest.mark.parametrize(('index', 'said'), [(2, 'another size than listed'), (1, 'not a readable image')])
def test_a_pair_without_an_image_of_the_teacher_is_replaced_and_named(data, tmp_path, index, said):
    for name in ('HR.lmdb', 'LR.lmdb'):
        shutil.copytree(data / name, tmp_path / name)
    other = [cv2.imencode('.png', noise(size, size, 3))[1].tobytes() for size in (60, 30)]
    for name, png in zip(('HR.lmdb', 'LR.lmdb'), other):
        with lmdb.open(str(tmp_path / name), map_size=2**24) as env, env.begin(write=True) as txn:
            txn.put(b'0001_s001', txn.get(b'0001_s001')[:100])
            txn.put(b'0002_s001', png)  # not as meta_info.txt has it
    dataset = built_with_teacher(block_of(tmp_path, ('HR.lmdb', 'LR.lmdb')))
    sample = dataset[index, 3]
    assert f'000{index}_s001: ' in sample['damaged'] and said in sample['damaged']
    assert torch.equal(sample['teacher'], nearest(sample['lq'][None])[0])


def in_memory(opt: dict, workers: int) -> dict:
    for dataset in opt['datasets'].values():
        dataset['io_backend'] = MEMORY
    opt['datasets']['train']['num_worker_per_gpu'] = workers
    return opt


@pytest.fixture(scope='module')
def from_files(data, teacher_weights, tmp_path_factory) -> Path:
    """A training from an LMDB, validated on a folder."""
    root = tmp_path_factory.mktemp('files')
    run(tiny_train_opt(data, teacher_weights), root)
    return root


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_from_memory_ends_as_one_from_files(from_files, train_opt, tmp_path, workers):
    run(in_memory(train_opt, workers), tmp_path)
    assert_same(result(tmp_path), result(from_files))
    assert 'pictures is read from ' in log_text(tmp_path)


def test_a_training_goes_on_from_memory_as_it_would_have_from_files(from_files, train_opt, tmp_path):
    run(train_opt, tmp_path, TOTAL // 2)
    run(in_memory(train_opt, 1), tmp_path, TOTAL, '--auto_resume')
    assert_same(result(tmp_path), result(from_files))


@pytest.mark.parametrize(
    ('names', 'damage', 'said'),
    [
        (('HR.lmdb', 'LR.lmdb'), None, '6 pairs of pictures, every file read'),
        (('GT', 'LQ'), None, '2 pairs of pictures, every file read'),
        (('GT', 'LQ'), truncate_to_half, r'LQ/1\.png'),
        (
            ('GT', 'LR.lmdb'),
            None,
            r'dataroot_lq: .*LR\.lmdb; accepted with io_backend memory: two LMDBs or two folders',
        ),
        (('HR.lmdb', 'LQ'), None, r'dataroot_lq: .*LQ; accepted with io_backend memory: two LMDBs or two folders'),
    ],
)
def test_every_file_is_checked(
    data: Path, tmp_path: Path, names: tuple[str, str], damage: Callable | None, said: str
) -> None:
    for name in names:
        shutil.copytree(data / name, tmp_path / name)
    if damage is not None:
        damage(tmp_path / 'LQ' / '1.png')
    block = block_of(tmp_path, names, io_backend=MEMORY)
    if said.endswith('read'):
        assert check_whole_dataset('train', block, 2) == said
    else:
        with pytest.raises(UserError, match=said):
            check_whole_dataset('train', block, 2)
