from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from facd_basicsr.comparison.summary import draw_curves
from facd_basicsr.runs.tensorboard import KEPT_POINTS, read_curves


def write(folder: Path, steps: range, seconds: float, value: float = 1.0) -> None:
    """Scalars every 10 iterations, ``seconds`` apart."""
    with SummaryWriter(str(folder)) as writer:
        for index, step in enumerate(steps):
            writer.add_scalar('losses/l_sr', value, step, walltime=1000 + seconds * index)
            writer.add_scalar('alpha', 0.9, step)


def test_curves_are_read_with_the_median_time_of_an_iteration(tmp_path):
    write(tmp_path, range(10, 60, 10), seconds=2.0, value=3.0)
    curves, seconds = read_curves(tmp_path)
    assert curves['losses/l_sr'] == [[10, 3.0], [20, 3.0], [30, 3.0], [40, 3.0], [50, 3.0]]
    assert seconds == pytest.approx(0.2)


def test_what_a_resumed_training_repeats_counts_once_as_it_was_last(tmp_path):
    write(tmp_path, range(10, 60, 10), seconds=2.0, value=3.0)
    write(tmp_path, range(40, 80, 10), seconds=2.0, value=4.0)
    curves, _ = read_curves(tmp_path)
    assert [point for point in curves['losses/l_sr'] if point[0] >= 30] == [
        [30, 3.0], [40, 4.0], [50, 4.0], [60, 4.0], [70, 4.0],
    ]  # fmt: skip


def test_long_curves_are_averaged_to_a_hundred_points(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1, 4 * KEPT_POINTS + 1):
            writer.add_scalar('alpha', step % 2, step)
    curve = read_curves(tmp_path)[0]['alpha']
    assert len(curve) == KEPT_POINTS and curve[0] == [4.0, 0.5] and curve[-1] == [400.0, 0.5]


def test_one_log_line_tells_no_time(tmp_path):
    write(tmp_path, range(10, 20, 10), seconds=2.0)
    assert read_curves(tmp_path)[1] is None


def test_the_picture_has_psnr_by_iterations_and_by_time_and_rejected_patches_of_adaptive_methods():
    def run(alpha: float, seconds: float) -> dict:
        curves = {'metrics/Set5/psnr_y': [[10, 30.0], [20, 31.0]], 'alpha': [[10, alpha], [20, alpha]]}
        return {'curves': curves, 'seconds_per_iter': seconds}

    figure = draw_curves({'FACD': [run(0.9, 3.0), run(0.8, 3.0)], 'FCD': [run(1.0, 6.0)]}, 'title')
    iterations, minutes, rejected = figure.axes
    assert [line.get_xdata().tolist() for line in iterations.lines] == [[10, 20], [10, 20]]
    assert [line.get_xdata().tolist() for line in minutes.lines] == [[0.5, 1.0], [1.0, 2.0]]
    (line,) = rejected.lines
    assert line.get_label() == 'FACD' and line.get_ydata().tolist() == pytest.approx([0.15, 0.15])


def test_a_point_that_a_killed_training_lost_is_left_out_for_all_seeds():
    def run(*points: list[float]) -> dict:
        return {'curves': {'metrics/Set5/psnr_y': list(points)}, 'seconds_per_iter': 6.0}

    figure = draw_curves({'FACD': [run([10, 30.0], [20, 31.0], [30, 33.0]), run([10, 32.0], [30, 34.0])]}, 'title')
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[10, 31.0], [30, 33.5]]
