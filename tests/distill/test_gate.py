"""The sanity gate, on photographs with the teacher that the project ships."""

import random

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from conftest import REPOSITORY, build_teacher, changed, imported_script, write_yml

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.distill.gate import _is_better, check_teacher, teacher_psnr_y
from facd_basicsr.distill.teacher import Teacher
from facd_basicsr.errors import UserError
from facd_basicsr.options import parser
from facd_basicsr.runtime.execution import Execution, tf32_of
from facd_basicsr.runtime.metrics import as_input
from facd_basicsr.train import train

demo = imported_script(REPOSITORY / 'demo' / 'demo.py')

TEACHER = demo.options(demo.OPTIONS / 'FACD.yml')['teacher']['network']
CPU = torch.device('cpu')


def crops() -> dict[str, np.ndarray]:
    places = {'astronaut': [(100, 100), (0, 160), (300, 200)], 'chelsea': [(100, 100), (60, 200), (120, 260)]}
    return {
        f'{name}_{top}_{left}': demo.photograph(f'{name}.png')[top : top + 96, left : left + 96]
        for name, corners in places.items()
        for top, left in corners
    }


@pytest.fixture(scope='module')
def batches() -> list[dict]:
    return [{'gt': as_input(gt), 'lq': as_input(bicubic_lr(gt, demo.SCALE))} for gt in crops().values()]


@pytest.fixture(scope='module')
def psnr_y(batches) -> float:
    return teacher_psnr_y(shipped(), batches, demo.SCALE, CPU).mean()


def shipped(**network: object) -> Teacher:
    return build_teacher({'network': {**TEACHER, **network}, 'weights': str(demo.TEACHER_WEIGHTS)}, demo.SCALE)


def of_another_colour_order() -> Teacher:
    """The shipped teacher as it would be had it been trained on BGR images."""
    teacher = shipped()
    first, last = teacher.net.conv_first, teacher.net.conv_last
    first.weight.copy_(first.weight.flip(1))
    last.weight.copy_(last.weight.flip(0))
    last.bias.copy_(last.bias.flip(0))
    teacher.net.mean = teacher.net.mean.flip(1)
    return teacher


def expectation(psnr_y: float, tolerance: float = 0.1) -> dict:
    return {'dataset': 'val', 'psnr_y': psnr_y, 'tolerance': tolerance}


def test_psnr_is_that_of_eight_bit_images_without_a_border_of_scale_pixels():
    class AddsFour(torch.nn.Module):
        def forward(self, lq):
            return lq + 4 / 255

    gt = torch.full((1, 3, 12, 12), 100 / 255)
    gt[:, :, 0] = 1.0  # in the border
    # Y = 16 + (65.481 R + 128.553 G + 24.966 B) for RGB in [0, 1]: a gray that is 4 levels too bright has
    # 219 * 4 / 255 levels too much Y
    expected = 20 * np.log10(255 / (219 * 4 / 255))
    teacher = Teacher(AddsFour(), scale=1)
    (found,) = teacher_psnr_y(teacher, [{'lq': torch.full((1, 3, 12, 12), 100 / 255), 'gt': gt}], 1, CPU)
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_teacher_runs_by_its_own_setting_of_tf32():
    found = []

    class Tells(torch.nn.Module):
        def forward(self, lq):
            found.append(torch.backends.cuda.matmul.allow_tf32)
            return lq

    batch = {'lq': torch.rand(1, 3, 12, 12), 'gt': torch.rand(1, 3, 12, 12)}
    for precision in ('fp32', 'tf32'):
        with tf32_of('fp32' if precision == 'tf32' else 'tf32'):  # the student's
            teacher_psnr_y(Teacher(Tells(), scale=1, execution=Execution(precision)), [batch], 1, CPU)
    assert found == [False, True]


def test_the_right_teacher_passes_and_both_numbers_are_said(batches, psnr_y):
    line = check_teacher(shipped(), expectation(round(psnr_y, 2)), batches, demo.SCALE, CPU)
    assert line == f'Teacher: {psnr_y:.3f} dB PSNR-Y on datasets.val, expected {round(psnr_y, 2)} +- 0.1.'


@pytest.mark.parametrize(
    'teacher',
    [
        lambda: shipped(res_scale=0.1),
        lambda: shipped(img_range=1.0),
        lambda: shipped(rgb_mean=[0, 0, 0]),
        lambda: Teacher(torch.nn.Upsample(scale_factor=2, mode='nearest'), demo.SCALE),
    ],
    ids=['res_scale', 'img_range', 'rgb_mean', 'another network'],
)
def test_a_teacher_that_is_not_as_it_was_trained_is_stopped_with_both_numbers(teacher, batches, psnr_y):
    found = teacher_psnr_y(teacher(), batches, demo.SCALE, CPU).mean()
    assert found < psnr_y - 0.1
    with pytest.raises(
        UserError, match=rf'teacher.expect: the teacher has {found:.3f} dB .*expected 3\d\.\d\d \+- 0.1'
    ):
        check_teacher(teacher(), expectation(round(psnr_y, 2)), batches, demo.SCALE, CPU)


def test_a_teacher_trained_on_bgr_is_stopped_though_its_psnr_is_within_the_tolerance(batches, psnr_y):
    found = teacher_psnr_y(of_another_colour_order(), batches, demo.SCALE, CPU).mean()
    assert abs(found - psnr_y) < 0.2
    with pytest.raises(UserError, match=rf'{found:.3f} dB .*, but {psnr_y:.3f} dB with red and blue swapped'):
        check_teacher(of_another_colour_order(), expectation(psnr_y, tolerance=0.2), batches, demo.SCALE, CPU)


def test_a_few_images_do_not_tell_the_colour_order(batches):
    few = batches[:4]
    wrong = of_another_colour_order()
    found = teacher_psnr_y(wrong, few, demo.SCALE, CPU).mean()
    assert teacher_psnr_y(wrong, few, demo.SCALE, CPU, bgr=True).mean() > found
    check_teacher(wrong, expectation(found), few, demo.SCALE, CPU)


def test_being_better_on_bgr_by_chance_is_no_offence():
    gains = np.array([0.2, -0.15, 0.1, -0.1, 0.05, -0.02])  # mean 0.013, standard error 0.054
    assert not _is_better(30 + gains, np.full(6, 30.0))
    assert _is_better(30 + np.array([0.02, 0.03, 0.01, 0.02, 0.02]), np.full(5, 30.0))
    assert not _is_better(np.full(5, 30.004), np.full(5, 30.0))  # equal but for rounding, as of gray images


def test_a_teacher_that_is_better_than_expected_is_stopped_too(batches, psnr_y):
    with pytest.raises(UserError, match=r'teacher.expect'):
        check_teacher(shipped(), expectation(psnr_y - 0.2), batches, demo.SCALE, CPU)


def test_a_teacher_that_gives_nan_is_stopped(batches):
    teacher = shipped()
    teacher.net.conv_last.bias.fill_(float('nan'))
    with pytest.raises(UserError, match=r'teacher.expect'):
        check_teacher(teacher, expectation(30), batches, demo.SCALE, CPU)


def test_the_gate_draws_no_random_numbers(batches):
    teacher = shipped()
    torch.manual_seed(0)
    random.seed(0)
    states = torch.get_rng_state(), random.getstate()
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    check_teacher(teacher, expectation(30, tolerance=100), loader, demo.SCALE, CPU)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]


def test_training_starts_behind_the_gate_only(train_opt, tmp_path):
    for folder in ('GT', 'LQ'):
        (tmp_path / folder).mkdir()
    for name, gt in crops().items():
        cv2.imwrite(str(tmp_path / 'GT' / f'{name}.png'), gt)
        cv2.imwrite(str(tmp_path / 'LQ' / f'{name}.png'), bicubic_lr(gt, demo.SCALE))
    opt = changed(train_opt, 'teacher', {'network': TEACHER, 'weights': str(demo.TEACHER_WEIGHTS)})
    opt = changed(opt, 'name', 'gated')
    opt['datasets']['val'] |= {'dataroot_gt': str(tmp_path / 'GT'), 'dataroot_lq': str(tmp_path / 'LQ')}
    loader = [
        {'gt': as_input(gt), 'lq': as_input(cv2.imread(str(tmp_path / 'LQ' / f'{name}.png')))}
        for name, gt in crops().items()
    ]
    expect = expectation(round(float(teacher_psnr_y(shipped(), loader, demo.SCALE, CPU).mean()), 2))
    opt['teacher']['expect'] = expect
    wrong = changed(opt, 'teacher.network', {**TEACHER, 'res_scale': 0.1})

    def start(opt: dict) -> None:
        train(parser().parse_args(['-opt', str(write_yml(opt, tmp_path / 'gated.yml'))]), tmp_path, console=False)

    with pytest.raises(UserError, match=r'teacher.expect: the teacher has .* dB PSNR-Y on datasets.val'):
        start(wrong)
    assert not (tmp_path / 'experiments').exists()
    start(opt)
    (log,) = (tmp_path / 'experiments' / 'gated').glob('*.log')
    assert f'dB PSNR-Y on datasets.val, expected {expect["psnr_y"]} +- 0.1.' in log.read_text()
    assert (tmp_path / 'experiments' / 'gated' / 'models' / 'net_g_latest.pth').is_file()


def test_an_image_of_a_size_that_the_teacher_does_not_take_is_named_in_a_line():
    network = build_network(
        {
            'type': 'RRDBNet',
            'num_in_ch': 3,
            'num_out_ch': 3,
            'scale': 2,
            'num_feat': 4,
            'num_block': 1,
            'num_grow_ch': 2,
        }
    )
    odd = [{'gt': torch.rand(1, 3, 50, 54), 'lq': torch.rand(1, 3, 25, 27)}]
    message = r'^teacher: RRDBNet does not take LQ of 25 x 27 with 3 channels \(assert hh % scale == 0 and .*accepted: '
    with pytest.raises(UserError, match=message):
        teacher_psnr_y(Teacher(network, 2), odd, 2, CPU)
