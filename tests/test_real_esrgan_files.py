"""Weights in the layouts of Real-ESRGAN's files, as teacher and as start of the student."""

from pathlib import Path

import cv2
import pytest
import torch
from basicsr.archs import build_network
from conftest import build_teacher, picture, train_options
from runs import assert_same

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.engine.logs import DeferredLog
from facd_basicsr.train import set_up

pytest.importorskip('spandrel')

RRDB = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_grow_ch': 32}
COMPACT = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'act_type': 'prelu'}
# https://github.com/xinntao/Real-ESRGAN, docs/model_zoo.md: the entry of each file, and its network; 23 blocks are 2
FILES = {
    'RealESRGAN_x4plus': ('params_ema', RRDB | {'num_block': 2, 'scale': 4}),
    'RealESRGAN_x2plus': ('params_ema', RRDB | {'num_block': 2, 'scale': 2}),
    'RealESRGAN_x4plus_anime_6B': ('params_ema', RRDB | {'num_block': 6, 'scale': 4}),
    'realesr-general-x4v3': ('params', COMPACT | {'num_conv': 32, 'upscale': 4}),
    'realesr-animevideov3': ('params', COMPACT | {'num_conv': 16, 'upscale': 4}),
}
SHAPES = {  # some of each layout's, as they are in the files
    'RRDBNet': {
        'body.1.rdb3.conv5.weight': (64, 192, 3, 3),
        **dict.fromkeys(('conv_body.weight', 'conv_up1.weight', 'conv_up2.weight', 'conv_hr.weight'), (64, 64, 3, 3)),
        'conv_last.weight': (3, 64, 3, 3),
    },
    'SRVGGNetCompact': {'body.0.weight': (64, 3, 3, 3), 'body.1.weight': (64,), 'body.32.weight': (64, 64, 3, 3)},
}


@pytest.fixture(params=FILES)
def released(request, tmp_path: Path) -> tuple[str, dict, int, torch.nn.Module]:
    """A file, its ``network_g`` block, its scale, and the network."""
    entry, network_opt = FILES[request.param]
    torch.manual_seed(0)
    net = build_network(network_opt).eval()
    path = tmp_path / f'{request.param}.pth'
    torch.save({entry: net.state_dict()}, path)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert SHAPES[network_opt['type']].items() <= shapes.items()
    return str(path), network_opt, network_opt.get('scale') or network_opt['upscale'], net


@pytest.mark.parametrize('named', [True, False])
def test_a_file_is_a_teacher_with_its_network_and_without(released, named):
    path, network_opt, scale, net = released
    teacher = build_teacher({'weights': path} | ({'network': network_opt} if named else {}), scale)
    assert type(teacher.net).__module__.startswith('basicsr.' if named else 'spandrel.')
    lq = torch.rand(2, 3, 12, 8)
    with torch.no_grad():
        torch.testing.assert_close(teacher(lq), net(lq))
    assert teacher(lq[..., :7, :5]).shape == (2, 3, 7 * scale, 5 * scale)


@pytest.mark.parametrize('named', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_file_teaches_and_starts_the_student_and_its_average(released, named, train_opt, tmp_path):
    path, network_opt, scale, net = released
    for name in ('GT', 'LQ'):
        (tmp_path / name).mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / 'GT' / f'{i}.png'), picture(i, 48, 48))
        cv2.imwrite(str(tmp_path / 'LQ' / f'{i}.png'), bicubic_lr(picture(i, 48, 48), scale))
    roots = {'dataroot_gt': str(tmp_path / 'GT'), 'dataroot_lq': str(tmp_path / 'LQ'), 'io_backend': {'type': 'disk'}}
    for block in train_opt['datasets'].values():
        block |= roots
    del train_opt['taps'], train_opt['network_r']
    train_opt |= {
        'scale': scale,
        'network_g': network_opt,
        'teacher': {'weights': path} | ({'network': network_opt} if named else {}),
        'path': {'pretrain_network_g': path},
    }
    train_opt['train'] |= {'distill_opt': {'type': 'TeacherSupervisionLoss'}, 'ema_decay': 0.9}
    opt = train_options(train_opt, tmp_path)
    with DeferredLog(0, console=False) as log:
        training = set_up(opt | {'stage_begin': 0}, log)
    model = training.model
    assert model.opt['path']['param_key_g'] == 'params' and model.opt['path']['strict_load_g'] is True
    assert_same(model.net_g.state_dict(), net.state_dict())
    assert_same(model.net_g_ema.state_dict(), net.state_dict())
    batch = next(iter(training.loaders.train))
    model.feed_data(batch)
    model.optimize_parameters(1)
    with torch.no_grad():
        expected = 255 * (net(batch['lq']) - batch['gt']).abs().mean() / 2  # the other half, to the teacher, is 0
    assert model.get_current_log()['l_sr'] == pytest.approx(float(expected), rel=1e-4)
