import csv
import json
import math

import numpy as np
import pytest
import torch
from conftest import SHARED_DATA
from torch import Tensor, nn

from facd_basicsr.distill.taps import Taps
from facd_basicsr.evaluation.methods import Method
from facd_basicsr.evaluation.tables import duration, evaluate, feature_table, means, quality_table, to_csv, to_json
from facd_basicsr.evaluation.test_sets import ImagePair, build_sets, pairs


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(0.4, '0 s'), (119, '119 s'), (120, '2.0 min'), (7199, '120.0 min'), (7200, '2.0 h'), (86400, '24.0 h')],
)
def test_a_duration_is_said_in_seconds_minutes_or_hours(seconds, text):
    assert duration(seconds) == text


class Brighter(nn.Module):
    """Nearest-neighbor x2, ``levels`` of 255 brighter, with a tap on what it adds."""

    def __init__(self, levels: float) -> None:
        super().__init__()
        self.add = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.add.weight.copy_(torch.eye(3)[..., None, None])
            self.add.bias.fill_(levels / 255)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.add(x), scale_factor=2)


def pair(level: int, image: str = 'a', set_name: str = 'S') -> ImagePair:
    return ImagePair(set_name, image, np.full((8, 8, 3), level, np.uint8), np.full((16, 16, 3), level, np.uint8))


def brighter(name: str, levels: float, tapped: bool = False) -> Method:
    net = Brighter(levels).requires_grad_(False)
    return Method(name, 2, net, taps=Taps(net, ['add'], 'student') if tapped else None)


def test_records_equal_values_worked_by_hand():
    exact, five = evaluate([Method('bicubic', 2), brighter('five', 5)], [pair(100)])
    assert exact['psnr_y'] == exact['psnr_rgb'] == math.inf
    assert five['psnr_rgb'] == pytest.approx(20 * math.log10(255 / 5), abs=1e-3)
    assert (five['method'], five['set'], five['image']) == ('five', 'S', 'a')


def test_features_are_compared_with_the_teachers_and_the_teachers_are_not():
    methods = [brighter('plain', 1), brighter('near', 0, tapped=True), brighter('teacher', 51, tapped=True)]
    plain, near, teacher = evaluate(methods, [pair(100)])
    assert near['feature_psnr_1'] == near['feature_psnr'] == pytest.approx(20 * math.log10(255 / 0.2), abs=1e-3)
    assert 'feature_psnr' not in plain and 'feature_psnr' not in teacher


def test_means_are_over_the_images_of_a_set():
    records = [
        {'method': 'm', 'set': name, 'image': image, 'psnr_y': value}
        for name, image, value in (('S', 'a', 30.0), ('S', 'b', 34.0), ('T', 'a', 20.0))
    ]
    assert means(records) == {'m': {'S': {'psnr_y': 32.0}, 'T': {'psnr_y': 20.0}}}


MEAN = {
    name: {'S': {'psnr_y': psnr, 'ssim_y': 0.9, 'psnr_rgb': psnr - 2, 'feature_psnr_1': psnr, 'feature_psnr': psnr}}
    for name, psnr in (('bicubic', 41.0), ('x', 37.1234), ('y', 37.1229), ('teacher', 40.0))
}
METHODS = [Method('bicubic', 2), brighter('x', 0), brighter('y', 0), brighter('teacher', 0)]


def test_the_quality_table_has_sets_as_groups_and_the_best_student_in_bold():
    table = quality_table(METHODS, MEAN)
    assert table.header == ['method', 'parameters', 'PSNR-Y', 'SSIM-Y', 'PSNR-RGB']
    assert table.groups == ['', '', 'S', 'S', 'S']
    assert table.rows[:2] == [
        ['bicubic', '-', '41.000', '0.9000', '39.000'],
        ['x', '12', '37.123', '0.9000', '35.123'],
    ]
    both = {(row, column) for row in (1, 2) for column in (2, 3, 4)}
    assert table.bold == both  # equal as printed; neither bicubic nor the teacher competes


def test_a_single_student_is_not_bold():
    assert quality_table(METHODS[:2], MEAN).bold == set()


def test_the_feature_table_has_students_only_and_a_dash_where_nothing_was_compared():
    mean = {**MEAN, 'y': {'S': {'psnr_y': 1.0}}}
    table = feature_table(METHODS, mean, points=1)
    assert table.header == ['method', 'point 1', 'mean']
    assert table.rows == [['x', '37.123', '37.123'], ['y', '-', '-']]


def test_an_infinite_psnr_is_inf_in_csv_and_null_in_json():
    records = [
        {'method': 'm', 'set': 'S', 'image': 'a', 'psnr_y': math.inf, 'psnr_rgb': 1.5, 'ssim_y': 1.0},
        {'method': 'n', 'set': 'S', 'image': 'a', 'psnr_y': 2.0, 'psnr_rgb': 1.5, 'ssim_y': 1.0, 'feature_psnr': 3.0},
    ]
    first, second = csv.DictReader(to_csv(records).splitlines())
    assert list(first) == ['method', 'set', 'image', 'psnr_y', 'ssim_y', 'psnr_rgb', 'feature_psnr']
    assert (first['psnr_y'], first['feature_psnr'], second['feature_psnr']) == ('inf', '', '3.0')
    assert json.loads(to_json({'images': records}))['images'][0]['psnr_y'] is None


PUBLISHED = {2: (33.66, 30.24), 3: (30.39, 27.55), 4: (28.42, 26.00)}  # Set5, Set14


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason='needs shared/data')
@pytest.mark.parametrize('scale', [*(pytest.param(scale, marks=pytest.mark.slow) for scale in (2, 3)), 4])
def test_the_bicubic_row_agrees_with_what_is_published(scale):
    datasets = {
        f'test_{i}': {
            'name': name,
            'type': 'PairedImageDataset',
            'dataroot_gt': str(SHARED_DATA / 'benchmark' / name / f'GTx{scale}'),
            'dataroot_lq': str(SHARED_DATA / 'benchmark' / name / f'LRx{scale}'),
            'io_backend': {'type': 'disk'},
        }
        for i, name in enumerate(('Set5', 'Set14'))
    }
    sets = build_sets({'scale': scale, 'datasets': datasets})
    (found,) = means(list(evaluate([Method('bicubic', scale)], pairs(sets), gray=True))).values()
    assert [found[name]['psnr_y'] for name in ('Set5', 'Set14')] == pytest.approx(PUBLISHED[scale], abs=0.05)


def test_an_image_whose_size_keeps_a_tap_from_being_read_has_no_feature_psnr_but_its_place_in_the_table():
    class PadsByItself(nn.Module):
        """Has tokens of its input padded to multiples of 4, as SwinIR does, and enlarges the input."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.weight = nn.Identity(), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            padded = nn.functional.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
            self.tokens(padded.flatten(2).transpose(1, 2))
            return nn.functional.interpolate(x, scale_factor=2)

    net = PadsByItself()
    methods = [Method(name, 2, net, taps=Taps(net, ['tokens:tokens'], 'student')) for name in ('a', 'teacher')]
    images = [
        ImagePair('S', f'{n}', np.zeros((n, n, 3), np.uint8), np.ones((2 * n, 2 * n, 3), np.uint8)) for n in (8, 10)
    ]
    fits, padded = [record for record in evaluate(methods, images) if record['method'] == 'a']
    assert 'feature_psnr' in fits and 'feature_psnr' not in padded
    assert padded['psnr_y'] > 0
