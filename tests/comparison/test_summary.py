import csv
import io
import logging

import pytest

import facd_basicsr.cli  # noqa: F401  quiets matplotlib's log
from facd_basicsr.comparison.summary import (
    caption,
    compared_features,
    compared_quality,
    cost_table,
    draw_curves,
    filled,
    records_csv,
    relative_step_times,
    save_figure,
)
from facd_basicsr.errors import UserError


def record(method: str, seed: int, psnr: float, **more: object) -> dict:
    scores = {'psnr_y': psnr, 'ssim_y': 0.9, 'psnr_rgb': psnr - 2}
    return {
        'method': method,
        'seed': seed,
        'iterations': 1000,
        'seconds_per_iter': 0.06,
        'train_seconds': 60.0,
        'jobs': 1,
        'threads': 2,
        'machine': 'a machine',
        'parameters': 12345,
        'flops': 2_000_000_000,
        'through_regressors': True,
        'notes': [],
        'means': {'Set5': scores},
        'curves': {},
    } | more


@pytest.fixture
def results() -> dict:
    """Student 36.0, 36.2, 36.4; FACD 0.1, 0.2, 0.3 above; TS the same as the student; Half has one seed."""
    base = [36.0, 36.2, 36.4]
    runs = [record('Student', seed, value) for seed, value in enumerate(base)]
    runs += [record('FACD', seed, value + 0.1 * (seed + 1), train_seconds=150.0) for seed, value in enumerate(base)]
    runs += [record('TS', seed, value + 0.2 + 0.001 * seed) for seed, value in enumerate(base)]
    runs += [record('Half', 1, 36.1)]
    scores = {'Set5': {'psnr_y': 33.7, 'ssim_y': 0.8, 'psnr_rgb': 31.0}}
    return {
        'name': 'tiny',
        'scale': 2,
        'baseline': 'Student',
        'differing': {'Half': ['train.total_iter']},
        'latency_ms': {'FACD': 5.0},
        'methods': ['Student', 'FACD', 'TS', 'Half', 'Waiting'],
        'references': [{'method': 'bicubic', 'means': scores}],
        'runs': runs,
    }


def test_the_table_has_means_deviations_and_marked_paired_differences(results):
    header, rows, groups, bold = compared_quality(results)
    assert header == ['method', 'seeds', 'mean ± sd', 'Δ vs Student'] and groups == ['', '', 'Set5', 'Set5']
    assert rows == [
        ['bicubic', '-', '33.700', '-'],
        ['Student', '3', '36.200 ± 0.200', '-'],
        # t = 0.2 / (0.1 / sqrt 3) = 3.46, p = 0.074
        ['FACD', '3', '36.400 ± 0.300', '+0.200'],
        # differences 0.2, 0.201, 0.202: p = 8e-6, twice that by Holm
        ['TS', '3', '36.401 ± 0.201', '+0.201**'],
        ['Half', '1', '36.100', '-0.100'],
    ]
    assert bold == {(3, 2)}


@pytest.fixture
def with_lpips(results) -> dict:
    """Student 0.300, 0.302, 0.304; FACD about 0.01 lower; TS the highest; one run of Half."""
    results['metrics'] = {'lpips': {'type': 'calculate_lpips', 'crop_border': 2, 'better': 'lower'}}
    lowered = {'Student': [0, 0, 0], 'FACD': [0.01, 0.0101, 0.0102], 'TS': [-0.01, -0.02, -0.03], 'Half': [0, 0.001]}
    for run in results['runs']:
        base = 0.3 + 0.002 * run['seed']
        run['means']['Set5']['lpips'] = base - lowered[run['method']][run['seed']]
    results['references'][0]['means']['Set5']['lpips'] = 0.41234
    return results


def test_of_a_metric_whose_lower_value_is_the_better_the_lowest_is_bold(with_lpips):
    _, rows, _, bold = compared_quality(with_lpips, 'lpips')
    assert rows == [
        ['bicubic', '-', '0.4123', '-'],
        ['Student', '3', '0.3020 ± 0.0020', '-'],
        # t = 0.0101 / (0.0001 / sqrt 3) = 175, p = 3e-5
        ['FACD', '3', '0.2919 ± 0.0019', '-0.0101**'],
        # t = 0.02 / (0.01 / sqrt 3) = 3.46, p = 0.074
        ['TS', '3', '0.3220 ± 0.0120', '+0.0200'],
        ['Half', '1', '0.3010', '-0.0010'],
    ]
    assert bold == {(2, 2)}
    assert compared_quality(with_lpips).bold == {(3, 2)}  # of PSNR the highest


def test_caption_csv_and_pages_have_a_metric_beside_psnr(with_lpips):
    assert 'Beside PSNR and SSIM: lpips (lower is better).' in caption(with_lpips)
    rows = list(csv.DictReader(io.StringIO(records_csv(with_lpips))))
    assert [row['lpips'] for row in rows][:2] == ['0.41234', '0.3']
    page = filled('<!-- facd compare: tiny lpips -->\n<!-- end -->', with_lpips)
    assert '| FACD | 3 | **0.2919 ± 0.0019** | -0.0101** |' in page


@pytest.fixture
def two_students(results) -> dict:
    """TS with a student of its own, of which it is the baseline, and Half without a baseline of its student."""
    results['students'] = {'Student': 'EDSR', 'FACD': 'EDSR', 'TS': 'SPAN', 'Half': 'RCAN', 'Waiting': 'SPAN'}
    results['baselines'] = {'Student': 'Student', 'FACD': 'Student', 'TS': 'TS', 'Half': None, 'Waiting': 'TS'}
    return results


def test_students_are_named_and_no_difference_is_between_them(two_students):
    header, rows, groups, bold = compared_quality(two_students)
    assert header == ['method', 'student', 'seeds', 'mean ± sd', 'Δ vs baseline']
    assert groups == ['', '', '', 'Set5', 'Set5']
    assert [row[:3] + row[4:] for row in rows] == [
        ['bicubic', '-', '-', '-'],
        ['Student', 'EDSR', '3', '-'],
        ['FACD', 'EDSR', '3', '+0.200'],
        ['TS', 'SPAN', '3', '-'],
        ['Half', 'RCAN', '1', '-'],
    ]
    assert bold == {(2, 3)}  # the best of the only student with several methods
    assert rows[2][3] == '36.400 ± 0.300'


def test_costs_are_relative_to_the_own_students_baseline(two_students):
    header, rows, *_ = cost_table(two_students)
    assert header[:3] == ['method', 'student', 'parameters']
    assert [(row[0], row[1], *row[-2:]) for row in rows] == [
        ('Student', 'EDSR', '1.00', '-'),
        ('FACD', 'EDSR', '2.50', '+4.8'),
        ('TS', 'SPAN', '1.00', '-'),
        ('Half', 'RCAN', '-', '-'),
    ]


def test_the_caption_and_the_csv_say_which_student(two_students):
    two_students['differing'] = {'FACD': ['train.total_iter'], 'TS': ['datasets.train']}
    text = caption(two_students)
    assert 'baseline of its own student (Student, TS): no difference or test is between students' in text
    assert 'FACD differs from Student in train.total_iter. TS differs from Student in datasets.train.' in text
    rows = list(csv.DictReader(io.StringIO(records_csv(two_students))))
    assert [row['student'] for row in rows if row['seed'] in ('', '0')] == ['', 'EDSR', 'EDSR', 'SPAN']


def test_costs_are_per_method_with_time_relative_to_the_baseline(results):
    header, rows, *_ = cost_table(results)
    assert header[-4:] == ['ms/iteration', 'minutes', 'x baseline', 'dB per hour']
    # 0.2 dB in 150 s: 0.2 * 3600 / 150
    assert rows[1] == ['FACD', '12,345', '2.0', '5', '1,000', '60', '2.5', '2.50', '+4.8']
    # 0.201 dB a minute; -0.1 dB a minute, of the seed that both have
    assert [row[-1] for row in rows] == ['-', '+4.8', '+12.1', '-6']


def test_features_are_shown_of_methods_that_have_them_only(results):
    assert compared_features(results) is None
    for run in results['runs']:
        if run['method'] == 'FACD':
            run['means']['Set5']['feature_psnr'] = 30.0 + run['seed']
    table = compared_features(results)
    assert table.header == ['method', 'seeds', 'features', 'Set5']
    assert table.rows == [['FACD', '3', 'regressors', '31.000 ± 1.000']]


def test_the_caption_names_seeds_and_machine(results):
    results['runs'][3]['jobs'] = 2
    text = caption(results)
    assert 'seeds 0, 1, 2' in text and 'a machine, 1 or 2 runs at a time, 2 CPU threads each' in text
    assert 'Half differs from it in train.total_iter.' in text


def test_times_are_compared_of_the_seeds_that_both_have(results):
    for seed, record in enumerate(results['runs'][:3]):
        record['train_seconds'] = 60.0 * (seed + 1)
    # Half, of seed 1 alone, takes as long as half of the student's run of that seed, not of the mean run
    assert [row[-2] for row in cost_table(results).rows] == ['1.00', f'{450 / 360:.2f}', '0.50', '0.50']


def test_gains_per_hour_are_of_the_first_set_and_not_of_a_run_without_a_time(results):
    for record in (*results['references'], *results['runs']):
        record['means']['Set14'] = {**record['means']['Set5'], 'psnr_y': 30.0}
        if record['method'] == 'TS':
            record['train_seconds'] = None
    assert [row[-1] for row in cost_table(results).rows] == ['-', '+4.8', '-', '-6']


def test_the_caption_of_equal_time_has_the_step_times(results):
    def step(method: str, seconds: float) -> dict:
        return {'method': method, 'seconds_per_iter': seconds, 'machine': 'another', 'threads': 1}

    results['equal_time'] = 'FACD'
    rounds = ((0.02, 0.03), (0.03, 0.04), (0.04, 0.1))  # of Student and FACD
    results['methods'] = ['Student', 'FACD']
    results['step_times'] = [
        step(method, seconds) for both in rounds for method, seconds in zip(('Student', 'FACD'), both)
    ]
    assert relative_step_times(results['step_times'], 'FACD') == {'Student': pytest.approx(2 / 3), 'FACD': 1}
    text = caption(results)
    assert "every run takes the time of one of FACD, by the times of an iteration over FACD's in the same round" in text
    assert (
        ', medians and ranges of 3 rounds: Student 0.67 (0.40 to 0.75), FACD 1.00 (another, 1 CPU thread each).' in text
    )


def test_one_seed_has_no_deviation_and_says_so(results):
    results['runs'] = [run for run in results['runs'] if run['seed'] == 1]
    assert compared_quality(results).rows[2] == ['FACD', '1', '36.400', '+0.200']
    assert caption(results).startswith('One seed, 1, so no significance test.')


def test_what_json_has_no_number_for_is_a_dash_and_does_not_touch_other_methods(results):
    for run in results['runs']:
        if run['method'] == 'FACD':
            run['means']['Set5']['psnr_y'] = None
    rows = compared_quality(results).rows
    assert rows[2] == ['FACD', '3', '-', '-'] and rows[3][3] == '+0.201**'


def test_the_csv_has_a_line_for_every_method_seed_and_set(results):
    rows = list(csv.DictReader(io.StringIO(records_csv(results))))
    assert len(rows) == 1 + len(results['runs'])
    assert (rows[0]['method'], rows[0]['seed'], rows[0]['psnr_y']) == ('bicubic', '', '33.7')
    assert (rows[4]['method'], rows[4]['seed'], float(rows[4]['psnr_y'])) == ('FACD', '0', pytest.approx(36.1))


def test_a_page_gets_its_blocks_anew_and_keeps_the_rest(results):
    page = 'before\n<!-- facd compare: tiny caption -->\nold\n<!-- end -->\nafter\n'
    text = filled(page, results)
    assert text.startswith('before\n') and text.endswith('\nafter\n') and 'old' not in text
    assert caption(results) in text
    assert filled(text, results) == text


def test_a_page_without_a_place_or_with_an_unknown_part_is_refused(results):
    with pytest.raises(UserError, match=r'no block of the comparison tiny'):
        filled('<!-- facd compare: other quality -->\n<!-- end -->', results)
    with pytest.raises(UserError, match=r'tiny qualty -->: accepted: quality, cost, features, feature_notes, caption'):
        filled('<!-- facd compare: tiny qualty -->\n<!-- end -->', results)


def test_the_picture_has_psnr_by_iterations_and_by_time_and_rejected_patches_of_adaptive_methods():
    def run(alpha: float, seconds: float) -> dict:
        curves = {'metrics/Set5/psnr_y': [[10, 30.0], [20, 31.0]], 'alpha': [[10, alpha], [20, alpha]]}
        return {'curves': curves, 'seconds_per_iter': seconds}

    figure = draw_curves({'FACD': [run(0.9, 3.0), run(0.8, 3.0)], 'FCD': [run(1.0, 6.0)]}, 'title')
    iterations, minutes, rejected = figure.axes
    assert [line.get_xdata().tolist() for line in iterations.lines] == [[10, 20], [10, 20]]
    assert [line.get_xdata().tolist() for line in minutes.lines] == [[0.5, 1.0], [1.0, 2.0]]
    (line,) = rejected.lines
    assert line.get_color() == iterations.lines[0].get_color()
    assert line.get_label() == 'FACD' and line.get_ydata().tolist() == pytest.approx([0.15, 0.15])


@pytest.mark.filterwarnings('error')
def test_curves_are_drawn_without_warnings_on_the_console(tmp_path):
    def run(alpha: float) -> dict:
        return {'curves': {'metrics/Set5/psnr_y': [[10, 30.0]], 'alpha': [[10, alpha]]}, 'seconds_per_iter': 3.0}

    figure = draw_curves({'_FACD': [run(1.0)], '学生': [run(1.0)]}, 'a name that the font lacks: 比較')
    save_figure(figure, tmp_path / 'curves.png')
    quality, _, rejected = figure.axes
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['_FACD', '学生']
    assert len(quality.lines) == 2 and not rejected.lines  # no method rejected a patch
    assert not logging.getLogger('matplotlib.font_manager').isEnabledFor(logging.WARNING)


def test_each_of_many_methods_has_a_line_of_its_own():
    run = {'curves': {'metrics/Set5/psnr_y': [[10, 30.0]]}, 'seconds_per_iter': 3.0}
    quality = draw_curves({f'method {number}': [run] for number in range(15)}, 'many').axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in quality.get_lines()}) == 15


def test_a_point_that_a_killed_training_lost_is_left_out_for_all_seeds():
    def run(*points: list[float]) -> dict:
        return {'curves': {'metrics/Set5/psnr_y': list(points)}, 'seconds_per_iter': 6.0}

    figure = draw_curves({'FACD': [run([10, 30.0], [20, 31.0], [30, 33.0]), run([10, 32.0], [30, 34.0])]}, 'title')
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[10, 31.0], [30, 33.5]]
