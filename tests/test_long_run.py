"""5000 iterations with workers, validation and checkpoints leak no memory and no files."""

import os
import re
import statistics
from pathlib import Path

import pytest
from runs import log_text, run, scalars

ITERATIONS = 5000
WARM_UP = 1000  # iterations until allocators and caches are filled
TOLERANCE = 4 * 2**20  # bytes: fluctuation of resident memory without a trend


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.slow
def test_memory_and_open_files_do_not_grow_and_log_and_curves_are_complete(train_opt, tmp_path):
    train_opt['datasets']['train'] |= {'num_worker_per_gpu': 1, 'dataset_enlarge_ratio': 100}  # 200 iterations an epoch
    train_opt['train']['scheduler']['milestones'] = [4000]
    train_opt['val']['val_freq'] = 250
    train_opt['logger'] |= {'print_freq': 50, 'save_checkpoint_freq': 500, 'keep_last': 2, 'keep_best': True}
    memory: dict[int, int] = {}
    files: dict[int, int] = {}

    def record(iteration: int) -> None:
        if iteration % 100 == 50:  # in the middle of an epoch, between validations and saves
            memory[iteration] = resident()
            files[iteration] = len(list(Path('/proc/self/fd').iterdir()))

    run(train_opt, tmp_path, ITERATIONS, on_iteration=record)
    warm = [iteration for iteration in memory if iteration > WARM_UP]
    slope, _ = statistics.linear_regression(warm, [memory[iteration] for iteration in warm])
    print(f'{slope:.1f} bytes an iteration; {[value >> 10 for value in memory.values()]} KiB; {files}')
    assert slope * (ITERATIONS - WARM_UP) < TOLERANCE
    opened = [files[iteration] for iteration in warm]
    halves = opened[: len(opened) // 2], opened[len(opened) // 2 :]
    assert statistics.median(halves[0]) == statistics.median(halves[1]) == min(opened)
    assert max(opened) - min(opened) <= 2  # the two tensors of a batch in transit from a worker

    log = log_text(tmp_path)
    logged = [int(found.replace(',', '')) for found in re.findall(r'iter: *([\d,]+), lr', log)]
    assert logged == list(range(50, ITERATIONS + 1, 50))
    assert log.count('Validation val') == ITERATIONS // 250
    curves = scalars(tmp_path)
    assert list(curves['losses/l_facd']) == list(range(50, ITERATIONS + 1, 50))
    assert list(curves['metrics/val/psnr_y']) == list(range(250, ITERATIONS + 1, 250))
    names = {path.name for path in (tmp_path / 'experiments/tiny').rglob('*') if path.is_file()}
    assert len(names) == len({'opt.yml', 'latest', 'log'}) + 2 + 2 * (2 + 2)  # states; two networks: two, best, latest
