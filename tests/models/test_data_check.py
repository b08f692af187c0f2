"""Data, networks and metrics that do not fit each other: refused in one line by train.py, facd check and test.py."""

import gc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.metrics import calculate_psnr
from basicsr.utils import tensor2img
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY
from conftest import METRICS, changed, picture, write_yml
from runs import result, run
from torch import nn
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.errors import UserError
from facd_basicsr.options import parser
from facd_basicsr.runtime.metrics import as_input
from facd_basicsr.test import test as evaluate

PLAIN = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 1, 'upscale': 2}
TWICE = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 2}


@DATASET_REGISTRY.register()
class BareDataset(PairedImageDataset):
    """A user's, whose keys have names of their own."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {'low': sample['lq'], 'high': sample['gt']}


@ARCH_REGISTRY.register()
class OfSeveral(nn.Module):
    """A network that gives more than the image."""

    def __init__(self, of: str = 'tuple'):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.of = of

    def forward(self, x):
        sr = F.pixel_shuffle(self.conv(x), 2)
        return {'tuple': (sr, x), 'dict': {'sr': sr}, 'Tensor': sr.flatten(1)}[self.of]


@pytest.fixture
def alone(train_opt: dict) -> dict:
    """A student without a teacher."""
    opt = {key: value for key, value in train_opt.items() if key not in ('teacher', 'taps', 'network_r')}
    train = {key: value for key, value in train_opt['train'].items() if key != 'distill_opt'}
    return {**opt, 'model_type': 'SRModel', 'network_g': PLAIN, 'train': {**train, 'pixel_opt': {'type': 'L1Loss'}}}


def refusal(opt: dict, tmp_path: Path) -> str:
    with pytest.raises(UserError) as error:
        run(opt, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['opt.yml']
    file, _, message = str(error.value).partition(': ')
    assert file == str(tmp_path / 'opt.yml')
    return message


def evaluated(test_opt: dict, network: dict, tmp_path: Path, **keys: object) -> dict:
    torch.save({'params': build_network(network).state_dict()}, tmp_path / 'net.pth')
    opt = changed(test_opt, 'network_g', network)
    opt['path']['pretrain_network_g'] = str(tmp_path / 'net.pth')
    opt['datasets']['test_1'] |= keys
    return evaluate(
        parser(is_train=False).parse_args(['-opt', str(write_yml(opt, tmp_path / 'test.yml'))]), tmp_path, False
    )


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        (PLAIN | {'num_in_ch': 1}, 'SRVGGNetCompact takes 1 channels (num_in_ch), but datasets.train gives LQ of 3; '),
        (
            TWICE | {'num_out_ch': 1, 'scale': 2},
            'network_g: RRDBNet gives 1 channels (num_out_ch), but datasets.train ',
        ),
        (
            {'type': 'RIDNet', 'in_channels': 3, 'mid_channels': 16, 'out_channels': 3},
            'network_g: RIDNet gives (1, 3, 12, 12) for LQ of (1, 3, 12, 12); accepted: (1, 3, 24, 24), as of a netw',
        ),
    ],
)
def test_a_network_for_other_images_is_refused_before_anything_is_created(network, message, alone, tmp_path):
    assert message in refusal(alone | {'network_g': network}, tmp_path)


@pytest.mark.parametrize(('of', 'found'), [('tuple', 'tuple'), ('dict', 'dict'), ('Tensor', '(1, 1728)')])
def test_a_network_that_gives_more_or_less_than_an_image_is_refused(of, found, alone, train_opt, test_opt, tmp_path):
    network = {'type': 'OfSeveral', 'of': of}
    message = f'network_g: OfSeveral gives {found} for LQ of (1, 3, 12, 12); accepted: (1, 3, 24, 24), as of a network'
    (tmp_path / 'alone').mkdir()
    assert message in refusal(alone | {'network_g': network}, tmp_path / 'alone')
    found = found.replace('1,', '2,')
    (tmp_path / 'distilled').mkdir()
    message = f'network_g: OfSeveral gives {found} for LQ of (2, 3, 12, 12); accepted: (2, 3, 24, 24), as of a network'
    assert message in refusal(train_opt | {'network_g': network}, tmp_path / 'distilled')
    with pytest.raises(UserError, match='network_g: OfSeveral gives '):
        evaluated(test_opt, network, tmp_path)


def test_a_student_of_other_channels_than_its_teacher_is_refused(train_opt, tmp_path):
    network = TWICE | {'scale': 2, 'num_out_ch': 1}
    message = (
        'network_g: RRDBNet gives (2, 1, 24, 24) for LQ of (2, 3, 12, 12); accepted: (2, 3, 24, 24), as of a netwo'
    )
    assert message in refusal(train_opt | {'network_g': network}, tmp_path)


def test_gray_data_need_a_network_of_one_channel_and_the_other_way_round(alone, test_opt, tmp_path):
    for dataset_opt in alone['datasets'].values():
        dataset_opt['color'] = 'y'
    message = 'SRVGGNetCompact takes 3 channels (num_in_ch), but datasets.train gives LQ of 1; accepted: equal numbers'
    assert message in refusal(alone, tmp_path)
    gray = PLAIN | {'num_in_ch': 1, 'num_out_ch': 1}
    alone['network_g'] = gray
    alone['val']['metrics'] = {'psnr': METRICS['psnr_rgb']}
    run(alone, tmp_path)
    test_opt['val']['metrics'] = {'psnr': METRICS['psnr_rgb']}
    assert evaluated(test_opt, gray, tmp_path, color='y')['pictures']['psnr'] > 0
    with pytest.raises(UserError, match=r'but datasets.test_1 gives LQ of 3; accepted: equal numbers'):
        evaluated(test_opt, gray, tmp_path)


@pytest.mark.parametrize('kind', ['SingleImageDataset', 'BareDataset'])
def test_a_training_set_whose_samples_lack_images_is_refused(kind, alone, data, tmp_path):
    dataset_opt = alone['datasets']['train']
    dataset_opt['type'] = kind
    missing = 'lq'
    if kind == 'SingleImageDataset':
        missing = 'gt'
        del dataset_opt['dataroot_gt']
    message = refusal(alone, tmp_path)
    assert message.startswith(f'datasets.train.type: {kind} gives no {missing}, which SRModel needs; accepted: ')
    assert 'PairedImageDataset, ' in message


def test_metrics_that_have_no_value_for_an_image_are_refused(alone, test_opt, tmp_path):
    small = changed(alone, 'val.metrics.ssim_y.crop_border', 12)  # of 32 x 48 that leaves 8 x 24, less than SSIM's 11
    assert 'val.metrics.ssim_y: datasets.val: 0.png: calculate_ssim with crop_border: 12 on 48x32' in refusal(
        small, tmp_path
    )
    test_opt['val']['metrics']['psnr_rgb']['crop_border'] = 16
    with pytest.raises(UserError, match=r'val.metrics.psnr_rgb: .*0.png: calculate_psnr with crop_border: 16 on 48x32'):
        evaluated(test_opt, PLAIN, tmp_path)
    assert not (tmp_path / 'results').exists()


@METRIC_REGISTRY.register()
def metric_of_large_images(img, img2):
    return float(img[100, 100].mean() - img2[100, 100].mean())


def test_a_metric_that_fails_is_named_before_anything_is_created(alone, tmp_path):
    message = 'val.metrics.own: metric_of_large_images fails for 0.png, the smallest image of datasets.val, 32 x 48 ('
    assert message in refusal(
        changed(alone, 'val.metrics.own', {'type': 'metric_of_large_images', 'better': 'lower'}), tmp_path
    )


def odd_images(root: Path) -> dict[str, str]:
    """Keys of a set of a 24 x 24 and a larger 25 x 27 LQ."""
    for folder in ('odd_GT', 'odd_LQ'):
        (root / folder).mkdir()
    for name, (height, width) in {'even': (48, 48), 'odd': (50, 54)}.items():
        gt = picture(3, 64, 64)[:height, :width]
        cv2.imwrite(str(root / 'odd_GT' / f'{name}.png'), gt)
        cv2.imwrite(str(root / 'odd_LQ' / f'{name}.png'), bicubic_lr(gt, 2))
    return {'dataroot_gt': str(root / 'odd_GT'), 'dataroot_lq': str(root / 'odd_LQ')}


WINDOWS = {'type': 'SwinIR', 'embed_dim': 4, 'depths': [2], 'num_heads': [2], 'upscale': 2, 'window_size': 8}


@pytest.mark.parametrize('network', [TWICE | {'scale': 2}, WINDOWS | {'upsampler': 'pixelshuffledirect'}])
def test_images_of_sizes_that_the_network_does_not_take_are_padded_in_validation_and_test(
    network, alone, test_opt, tmp_path
):
    images = odd_images(tmp_path)
    alone['network_g'] = network
    alone['datasets']['val'] |= images
    alone['datasets']['train']['gt_size'] = 16
    (tmp_path / 'test').mkdir()
    tested = evaluated(test_opt, network, tmp_path / 'test', **images)
    run(alone, tmp_path / 'train')
    (metrics,) = tmp_path.glob('train/experiments/*/metrics.jsonl')
    assert '"psnr_y"' in metrics.read_text()
    net = build_network(network).eval()
    net.load_state_dict(torch.load(tmp_path / 'test' / 'net.pth', weights_only=True)['params'])
    expected = []
    for name in ('even', 'odd'):
        lq, gt = (cv2.imread(str(tmp_path / folder / f'{name}.png')) for folder in ('odd_LQ', 'odd_GT'))
        height, width = lq.shape[:2]
        x = as_input(np.pad(lq, ((0, -height % 8), (0, -width % 8), (0, 0)), 'reflect'))
        with torch.no_grad():
            sr = tensor2img(net(x))[: 2 * height, : 2 * width]
        expected.append(calculate_psnr(sr, gt, crop_border=2, test_y_channel=True))
    assert next(iter(tested.values()))['psnr_y'] == pytest.approx(np.mean(expected), abs=1e-3)


@pytest.mark.parametrize('distilled', [True, False])
def test_training_patches_of_such_a_size_are_refused_with_those_that_are_taken(distilled, alone, train_opt, tmp_path):
    opt = train_opt if distilled else alone
    opt['network_g'] = WINDOWS | {'upsampler': 'pixelshuffledirect'}
    opt['datasets']['train']['gt_size'] = 24
    if distilled:
        opt |= {'taps': [], 'teacher': train_opt['teacher']}
        opt.pop('network_r', None)
        opt['train']['distill_opt'] = {'type': 'TeacherSupervisionLoss'}
    with pytest.raises(UserError) as error:
        run(opt, tmp_path)
    assert str(error.value).startswith(
        f'{tmp_path}/opt.yml: network_g: SwinIR does not take LQ of 12 x 12 with 3 channels ('
    )
    assert str(error.value).endswith('; accepted: a datasets.train.gt_size that is a multiple of 16, 16 or more')
    del error  # whose traceback holds the loader, which has the training set's LMDB open
    gc.collect()


def test_the_check_does_not_change_what_is_trained(train_opt, tmp_path, monkeypatch):
    run(train_opt, tmp_path / 'checked')
    monkeypatch.setattr('facd_basicsr.train.check_training_sample', lambda *args: None)
    monkeypatch.setattr('facd_basicsr.train.check_smallest_image', lambda *args: None)
    run(train_opt, tmp_path / 'unchecked')
    assert result(tmp_path / 'checked')['networks'] == result(tmp_path / 'unchecked')['networks']
