import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from facd_basicsr.report.svg_curves import (
    DRAWN_POINTS,
    HEIGHT,
    WIDTH,
    Axis,
    Panel,
    described,
    moving_average,
    number,
    svg,
    thinned,
)


def points(element: ET.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split(','))) for point in element.get('points').split()]


def lines_of(panel: Panel) -> list[ET.Element]:
    return ET.fromstring(svg(panel)).findall('polyline')


def test_the_moving_average_is_of_the_values_that_are_there():
    assert moving_average(np.array([1, 2, 6, 4]), 3).tolist() == [1.5, 3, 4, 5]


def test_a_long_curve_keeps_its_least_and_largest_values():
    values = np.sin(np.arange(10_000.0))
    values[1234], values[8765] = 9, -9
    steps, kept = thinned(np.arange(10_000.0), values)
    assert len(steps) <= DRAWN_POINTS
    assert (kept.max(), kept.min()) == (9, -9)
    assert (np.diff(steps) > 0).all() and (values[steps.astype(int)] == kept).all()


@pytest.mark.parametrize(
    ('value', 'text'),
    [(0, '0'), (0.25, '0.25'), (2e-4, '2e-4'), (1.25e-5, '1.25e-5'), (5000, '5000'), (12_000, '12k'), (1.5e6, '1.5M')],
)
def test_ticks_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ('axis', 'ticks'),
    [
        (Axis(0, 10, 0, 1), [0, 2, 4, 6, 8, 10]),
        (Axis(3, 60, 0, 1, is_log=True), [5, 10, 20, 50]),
        (Axis(0.5, 5000, 0, 1, is_log=True), [1, 10, 100, 1000]),
    ],
)
def test_ticks_are_round_and_inside(axis, ticks):
    assert axis.ticks() == pytest.approx(ticks)


def test_a_curve_is_drawn_to_the_ends_of_its_axes():
    (line,) = lines_of(Panel('lr', '', 'lr', {'lr': {100: 1.0, 200: 3.0}}, limits=(1.0, 3.0)))
    (first, last) = points(line)
    assert first[1] > last[1] and last[0] > first[0]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in (first, last))


def test_single_batches_are_drawn_with_their_average():
    noisy = {step: 1 + (-1) ** step / 2 for step in range(100)}
    raw, mean = lines_of(Panel('l_sr', '', 'loss', {'l_sr': noisy}, noisy=True))
    heights = [np.ptp([y for _, y in points(line)[10:-10]]) for line in (raw, mean)]
    assert heights[1] < heights[0] / 4
    assert [line.get('class') for line in (raw, mean)] == ['c0 raw', 'c0 mean']


def test_a_positive_curve_over_more_than_a_decade_has_a_logarithmic_axis():
    wide, narrow = ({step: high ** (step / 9) for step in range(10)} for high in (100.0, 5.0))
    assert ' data-log' in svg(Panel('l', '', '', {'l': wide}, noisy=True))
    assert ' data-log' not in svg(Panel('l', '', '', {'l': narrow}, noisy=True))
    xs, ys = zip(*points(lines_of(Panel('l', '', '', {'l': wide}, noisy=True))[0]))
    assert np.polyfit(xs, ys, 1, full=True)[1][0] < 0.1  # an exponential is straight


@pytest.mark.parametrize('line', [{}, {1: math.nan}, {1: math.inf, 2: math.nan}, {5: 2.0}, {1: 0.0, 2: 0.0}, {0: 1.0}])
def test_curves_with_few_or_no_finite_values_are_drawn(line):
    text = svg(Panel('l', '', 'loss', {'l': line}, noisy=True))
    ET.fromstring(text)
    assert 'nan' not in text and 'inf' not in text.replace('finite', '')


def test_the_last_values_are_told():
    panel = Panel('r', '', '', {'r_1: body.0 → body.1': {10: 0.5, 1000: 0.25}, 'r_2': {1000: math.nan}})
    assert described(panel) == 'r_1 0.25, r_2 has no finite value at 1,000'


def test_labels_are_escaped():
    nasty = '<b a="1">&'
    assert ET.fromstring(svg(Panel(nasty, '', nasty, {nasty: {1: 1.0}}))).find('polyline').get('data-label') == nasty


def test_the_borders_of_stages_are_vertical_lines_where_the_curve_has_come_that_far():
    panel = Panel('l', '', '', {'l': {10: 1.0, 100: 2.0}}, borders=(50, 200))
    (border,) = [line for line in ET.fromstring(svg(panel)).findall('line') if line.get('class') == 'border']
    assert float(border.get('x1')) == float(border.get('x2')) == pytest.approx((62 + WIDTH - 12) / 2)
    assert border.find('title').text == 'a stage ends: 50'
