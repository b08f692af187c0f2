import errno
import multiprocessing
import os
import shutil
from unittest.mock import Mock

import pytest
from conftest import changed, train_options

from facd_basicsr.data.loaders import batches, build_loaders, build_set_loader, reraise_killed_worker
from facd_basicsr.errors import UserError


@pytest.mark.parametrize(
    ('num_gpu', 'given', 'pinned'), [(0, ..., False), (1, ..., True), (1, False, False), (0, True, True)]
)
def test_batches_for_a_gpu_are_in_pinned_memory_unless_the_option_file_says_otherwise(
    train_opt, tmp_path, num_gpu, given, pinned
):
    if given is not ...:
        train_opt = changed(train_opt, 'datasets.train.pin_memory', given)
    opt = train_options(train_opt, tmp_path)
    assert build_loaders({**opt, 'num_gpu': num_gpu}).train.pin_memory == pinned


@pytest.mark.parametrize(
    'reason',
    [
        'unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)',
        'unable to write to file </torch_1_2>',
        'unable to write to file </torch_1_2_3>: No space left on device (28)',
        'unable to mmap 12288 bytes from file </torch_1_2_3>: Cannot allocate memory (12)',
        'unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)',
        'error executing torch_shm_manager at "/x/bin/torch_shm_manager" at ../torch/lib/libshm/core.cpp:99',
        'received 0 items of ancdata',
    ],
)
@pytest.mark.parametrize(
    'begin', ['', 'Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\n  x\n']
)
def test_a_full_dev_shm_is_a_line_however_torch_words_it(reason, begin):
    with pytest.raises(UserError) as error, reraise_killed_worker():
        raise RuntimeError(f'{begin}{reason}\n')
    assert str(error.value).startswith(f'datasets.train: {reason}; perhaps memory or /dev/shm is full')


@pytest.mark.parametrize(
    'reason', ['', 'mat1 and mat2', 'out of resource: shared memory, Required: 9, Hardware limit: 8']
)
def test_other_errors_stay_as_they_are(reason):
    with pytest.raises(RuntimeError, match=f'^{reason}$'), reraise_killed_worker():
        raise RuntimeError(reason)


def test_a_dev_shm_without_room_for_the_locks_of_workers_is_a_line(train_opt, tmp_path, monkeypatch):
    opt = train_options(changed(train_opt, 'datasets.train.num_worker_per_gpu', 1), tmp_path)
    loaders = build_loaders(opt)
    monkeypatch.setattr(multiprocessing, 'Lock', Mock(side_effect=OSError(errno.ENOSPC, 'No space left on device')))
    with pytest.raises(
        UserError, match=r'^datasets\.train: no worker process can be started \(.*; perhaps memory or /d'
    ):
        batches(loaders.train, opt)


def test_validation_ends_with_a_line_at_a_damaged_image_though_batches_are_to_be_fetched_by_a_thread(
    train_opt, tmp_path
):
    opt = train_options(train_opt, tmp_path)
    val_opt = {**opt['datasets']['val'], 'prefetch_mode': 'cpu', 'dataroot_lq': str(tmp_path / 'LQ')}
    shutil.copytree(opt['datasets']['val']['dataroot_lq'], tmp_path / 'LQ')
    damaged = sorted((tmp_path / 'LQ').iterdir())[0]
    os.truncate(damaged, damaged.stat().st_size // 2)
    with pytest.raises(UserError, match=damaged.name):
        list(build_set_loader(val_opt))
