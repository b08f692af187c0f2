"""Five thousand iterations with workers, validation and checkpoints: nothing grows."""

import os
import re
import statistics
from pathlib import Path

import pytest
from runs import log_text, run, scalars

ITERATIONS = 5000
WARM = 1000  # iterations until allocators and caches have what they keep
ROOM = 4 * 2**20  # bytes: what resident memory moves by from one look to the next, without a trend


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.slow
def test_memory_and_open_files_stay_as_they_were_and_log_and_curves_are_whole(train_opt, tmp_path):
    train_opt['datasets']['train'] |= {'num_worker_per_gpu': 1, 'dataset_enlarge_ratio': 100}  # 200 iterations an epoch
    train_opt['train']['scheduler']['milestones'] = [4000]
    train_opt['val']['val_freq'] = 250
    train_opt['logger'] |= {'print_freq': 50, 'save_checkpoint_freq': 500, 'keep_last': 2, 'keep_best': True}
    memory: dict[int, int] = {}
    files: dict[int, int] = {}

    def look(iteration: int) -> None:
        if iteration % 100 == 50:  # in the middle of an epoch, between validations and saves
            memory[iteration] = resident()
            files[iteration] = len(list(Path('/proc/self/fd').iterdir()))

    run(train_opt, tmp_path, ITERATIONS, on_iteration=look)
    warm = [iteration for iteration in memory if iteration > WARM]
    slope, _ = statistics.linear_regression(warm, [memory[iteration] for iteration in warm])
    print(f'{slope:.1f} bytes an iteration; {[value >> 10 for value in memory.values()]} KiB; {files}')
    assert slope * (ITERATIONS - WARM) < ROOM
    opened = [files[iteration] for iteration in warm]
    halves = opened[: len(opened) // 2], opened[len(opened) // 2 :]
    assert statistics.median(halves[0]) == statistics.median(halves[1]) == min(opened)
    assert max(opened) - min(opened) <= 2  # the two tensors of a batch on their way from a worker

    log = log_text(tmp_path)
    logged = [int(found.replace(',', '')) for found in re.findall(r'iter: *([\d,]+), lr', log)]
    assert logged == list(range(50, ITERATIONS + 1, 50))
    assert log.count('Validation val') == ITERATIONS // 250
    curves = scalars(tmp_path)
    assert list(curves['losses/l_facd']) == list(range(50, ITERATIONS + 1, 50))
    assert list(curves['metrics/val/psnr_y']) == list(range(250, ITERATIONS + 1, 250))
    names = {path.name for path in (tmp_path / 'experiments/tiny').rglob('*') if path.is_file()}
    assert len(names) == len({'opt.yml', 'latest', 'log'}) + 2 + 2 * (2 + 2)  # states; two networks: two, best, latest
