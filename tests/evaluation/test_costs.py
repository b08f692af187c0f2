"""Costs of an option file's networks, beside what is worked out by hand."""

import re

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import TEACHER, changed, with_two_teachers, write_yml
from torch import nn

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation import costs as module
from facd_basicsr.evaluation.complexity import parameters
from facd_basicsr.evaluation.costs import cost_tables, costs
from facd_basicsr.evaluation.tables import text_table


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that a test can run, and not only count."""
    monkeypatch.setattr(module, 'LQ_SIZE', (8, 10))
    monkeypatch.setattr(module, 'OUTPUT_SIZE', (16, 20))


def test_a_test_file_has_the_student_alone_and_latencies_are_measured(test_opt, small, tmp_path):
    option_file = write_yml(changed(test_opt, 'path.pretrain_network_g', '/absent.pth'), tmp_path / 'test.yml')
    result = costs(str(option_file), [], repeats=2)
    assert [list(setting['networks']) for setting in result['settings']] == [['student'], ['student']]
    for setting in result['settings']:
        assert setting['networks']['student']['runs'] == 2
        assert setting['networks']['student']['latency_ms'] >= 0
    assert result['settings'][0]['output'] == [16, 20]


def test_several_teachers_have_a_row_each_and_one_of_ratios(train_opt, small, tmp_path):
    opt = with_two_teachers(train_opt)
    opt['teacher'][0]['weights'] = '/absent.pth'
    result = costs(str(write_yml(opt, tmp_path / 'opt.yml')), [], repeats=0)
    networks = result['settings'][0]['networks']
    assert list(networks) == ['teacher 1', 'teacher 2', 'student']
    assert networks['teacher 1']['parameters'] < networks['teacher 2']['parameters']
    table = cost_tables(result, text_table)
    assert 'teacher 1 / student' in table and 'teacher 2 / student' in table


ECBSR = {
    'type': 'ECBSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1, 'num_channel': 8, 'with_idt': False,
    'act_type': 'prelu', 'scale': 2,
}  # fmt: skip


def test_a_student_that_fuses_is_stated_as_it_is_trained_and_fused(train_opt, small, tmp_path):
    opt = changed(changed(train_opt, 'network_g', ECBSR), 'taps', [{'student': 'backbone.1', 'teacher': 'body.1'}])
    opt['train']['distill_opt']['layer_weights'] = [1]
    result = costs(str(write_yml(opt, tmp_path / 'opt.yml')), [], repeats=1)
    networks = result['settings'][0]['networks']
    assert list(networks) == ['teacher', 'student', 'student, fused']
    # three blocks, 3 -> 8 -> 8 -> 12, of a 3x3 convolution, and the first two with a PReLU
    weights = 9 * (3 * 8 + 8 * 8 + 8 * 12)
    assert networks['student, fused']['parameters'] == weights + (8 + 8 + 12) + (8 + 8)
    assert networks['student, fused']['multiply_adds'] == 80 * weights
    assert networks['student, fused']['activations'] == 80 * (8 + 8 + 12)
    # besides, as trained: 1x1 to twice the width, then 3x3; and three times 1x1, then 3x3 of each channel alone
    blocks = [(3, 8), (8, 8), (8, 12)]
    branches = sum(i * 2 * o + 9 * 2 * o * o + 3 * (i * o + 9 * o) for i, o in blocks)
    assert networks['student']['multiply_adds'] == 80 * (weights + branches)
    assert networks['student']['activations'] == 80 * sum(o + 2 * o + o + 3 * 2 * o for _, o in blocks)
    assert networks['student']['parameters'] == parameters(build_network(ECBSR))
    table = cost_tables(result, text_table)
    assert 'teacher / student, fused' in table and 'fused: re-parameterized, as facd export writes it' in table
    ratio = networks['teacher']['parameters'] / networks['student, fused']['parameters']
    assert re.search(rf'teacher / student, fused +{ratio:.2f} ', table)


def test_a_size_that_the_scale_does_not_divide_is_rounded_down(train_opt, tmp_path):
    opt = changed(changed(train_opt, 'scale', 3), 'network_g.upscale', 3)
    opt['teacher']['network'] = {**TEACHER, 'upscale': 3}
    result = costs(str(write_yml(opt, tmp_path / 'opt.yml')), [], repeats=0)
    assert result['settings'][1]['input'] == [240, 426] and result['settings'][1]['output'] == [720, 1278]


def test_a_student_of_gray_images_is_fed_them(test_opt, small, tmp_path):
    opt = changed(test_opt, 'path.pretrain_network_g', '/absent.pth')
    opt['network_g'] = {'type': 'MSRResNet', 'num_in_ch': 1, 'num_feat': 4, 'num_block': 1, 'upscale': 2}
    result = costs(str(write_yml(opt, tmp_path / 'opt.yml')), [], repeats=0)
    assert result['settings'][0]['networks']['student']['activations'] == 80 * (4 + 8 + 16) + 4 * 80 * (4 + 3)


@ARCH_REGISTRY.register()
class OneChannelByDefault(nn.Sequential):
    def __init__(self, num_in_ch: int = 1, upscale: int = 2) -> None:
        super().__init__(nn.Conv2d(num_in_ch, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))


def test_a_student_whose_class_takes_gray_images_by_default_is_fed_them(test_opt, small, tmp_path):
    opt = changed(test_opt, 'path.pretrain_network_g', '/absent.pth')
    opt['network_g'] = {'type': 'OneChannelByDefault', 'upscale': 2}
    result = costs(str(write_yml(opt, tmp_path / 'opt.yml')), [], repeats=0)
    assert result['settings'][0]['networks']['student']['multiply_adds'] == 80 * 9 * 1 * 12


def test_a_teacher_without_network_block_needs_its_checkpoint(no_data):
    with pytest.raises(UserError, match=r'train.yml: teacher.weights: no such file: /absent/teacher.pth'):
        costs(str(no_data), ['teacher:network=~', 'teacher={weights: /absent/teacher.pth}'], repeats=0)


def test_a_teacher_that_spandrel_recognises_gets_images_of_its_sizes(train_opt, small, tmp_path):
    pytest.importorskip('spandrel')
    from spandrel.architectures.SwinIR import SwinIR

    net = SwinIR(
        img_size=16, window_size=8, embed_dim=12, depths=[2], num_heads=[2], mlp_ratio=2, upscale=2,
        upsampler='pixelshuffledirect', resi_connection='1conv',
    )  # fmt: skip
    torch.save({'params': net.state_dict()}, tmp_path / 'swinir.pth')
    opt = changed(train_opt, 'teacher', {'weights': str(tmp_path / 'swinir.pth'), 'precision': 'bf16'})
    result = costs(str(write_yml(opt, tmp_path / 'opt.yml')), [], repeats=1)
    teacher = result['settings'][0]['networks']['teacher']
    assert (teacher['network'], teacher['parameters'], teacher['runs']) == ('SwinIR', parameters(net), 1)
    # 8 x 10 is run as 16 x 16: conv_first, one of the group, conv_after_body, upsample to 12
    assert teacher['activations'] == 16 * 16 * (3 * 12 + 12)


def test_a_network_that_does_not_take_such_an_image_is_refused_in_its_own_words(no_data, small, monkeypatch):
    monkeypatch.setattr(module, 'LQ_SIZE', (0, 8))
    with pytest.raises(UserError, match=r'^teacher: EDSR does not take an image of 8x0 \(RuntimeError: .*; accepted: '):
        costs(str(no_data), [], repeats=0)
