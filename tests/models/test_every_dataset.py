"""Every dataset of the registry with every model: it trains, or is refused in a line before anything is created."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import cv2
import lmdb
import pytest
import torch
from basicsr.archs import build_network
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils import img_process_util
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
from conftest import picture, train_options
from runs import assert_same
from torch import nn
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.engine.logs import DeferredLog
from facd_basicsr.errors import UserError
from facd_basicsr.train import set_up

SCALE = 4
DISK = {'type': 'disk'}
FLIPS = {'use_hflip': True, 'use_rot': True}
PATCHES = {'gt_size': 64, **FLIPS}
IMAGE = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 1, 'upscale': SCALE}
WINDOWS = {'type': 'SwinIR', 'embed_dim': 4, 'depths': [2], 'num_heads': [2], 'upscale': SCALE, 'window_size': 8}
WINDOWS |= {'upsampler': 'pixelshuffledirect'}
EDVR = {'type': 'EDVR', 'num_feat': 8, 'num_extract_block': 1, 'num_reconstruct_block': 1}
FRAMES, RECURRENT = {'type': 'OfFrames'}, {'type': 'OfFrames', 'recurrent': True}
GAN = {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1}
PIXELS = {'pixel_opt': {'type': 'L1Loss'}}
ADVERSARIAL = PIXELS | {'gan_opt': GAN, 'optim_d': {'type': 'Adam', 'lr': 1e-4}}
DISCRIMINATOR = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
KERNELS = {
    'blur_kernel_size': 21, 'kernel_list': ['iso', 'aniso'], 'kernel_prob': [0.5, 0.5], 'blur_sigma': [0.2, 3],
    'betag_range': [0.5, 4], 'betap_range': [1, 2], 'sinc_prob': 0.1,
}  # fmt: skip
KERNELS |= {f'{key}2': value for key, value in KERNELS.items()} | {'final_sinc_prob': 0.8}
DEGRADATION = {
    'resize_prob': [0.2, 0.7, 0.1], 'resize_range': [0.15, 1.5], 'gaussian_noise_prob': 0.5, 'noise_range': [1, 30],
    'poisson_scale_range': [0.05, 3], 'gray_noise_prob': 0.4, 'jpeg_range': [30, 95],
}  # fmt: skip
DEGRADATION |= {f'{key}2': value for key, value in DEGRADATION.items()}
DEGRADATION |= {'second_blur_prob': 0.8, 'gt_size': 64, 'queue_size': 4}

# Of a file: what network_g, network_d, `train` and other keys of the file are
MODELS = {
    'SRModel': (IMAGE, None, PIXELS, {}),
    'FACDModel': (IMAGE, None, {'distill_opt': {'type': 'TeacherSupervisionLoss'}}, {}),
    'SwinIRModel': (WINDOWS, None, PIXELS, {}),
    'SRGANModel': (IMAGE, DISCRIMINATOR, ADVERSARIAL | {'ema_decay': 0.9}, {}),
    'ESRGANModel': (IMAGE, DISCRIMINATOR, ADVERSARIAL, {}),
    'HiFaceGANModel': (
        IMAGE,
        {'type': 'HiFaceGANDiscriminator', 'num_feat': 4},
        ADVERSARIAL | {'gan_opt': {**GAN, 'type': 'MultiScaleGANLoss', 'gan_type': 'hinge'}},
        {},
    ),
    'RealESRNetModel': (IMAGE, None, PIXELS, {**DEGRADATION, 'gt_usm': True}),
    'RealESRGANModel': (
        IMAGE,
        DISCRIMINATOR,
        ADVERSARIAL,
        {**DEGRADATION, 'l1_gt_usm': True, 'percep_gt_usm': True, 'gan_gt_usm': False},
    ),
    'VideoBaseModel': (FRAMES, None, PIXELS, {}),
    'EDVRModel': (EDVR, None, PIXELS, {}),
    'VideoGANModel': (FRAMES, DISCRIMINATOR, ADVERSARIAL, {}),
    'VideoRecurrentModel': (RECURRENT, None, PIXELS, {}),
    'VideoRecurrentGANModel': (RECURRENT, DISCRIMINATOR, ADVERSARIAL | {'fix_flow': 1, 'lr_flow': 1e-5}, {}),
    'StyleGAN2Model': (
        {'type': 'StyleGAN2Generator', 'out_size': 64, 'num_style_feat': 4, 'num_mlp': 1, 'narrow': 0.02},
        {'type': 'StyleGAN2Discriminator', 'out_size': 64, 'channel_multiplier': 1, 'narrow': 0.02},
        {
            'gan_opt': {**GAN, 'gan_type': 'wgan_softplus'}, 'optim_d': {'type': 'Adam', 'lr': 1e-4},
            'mixing_prob': 0.9, 'r1_reg_weight': 10, 'path_reg_weight': 2, 'net_g_reg_every': 4, 'net_d_reg_every': 16,
        },
        {},
    ),
}  # fmt: skip


@ARCH_REGISTRY.register()
class OfFrames(nn.Module):
    """(N, 5, 3, h, w) -> (N, 3, H, W), or of any number of frames that many."""

    def __init__(self, recurrent: bool = False) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.spynet = nn.Conv2d(3 if recurrent else 15, 4, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2d(4, 3 * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames, count, *image = x.shape
        x = x.reshape(frames * count, *image) if self.recurrent else x.reshape(frames, count * image[0], *image[1:])
        sr = self.upsample(self.spynet(x))
        return sr.view(frames, count, *sr.shape[1:]) if self.recurrent else sr


@ARCH_REGISTRY.register()
class Normalized(nn.Module):
    """With batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.upsample = nn.Sequential(nn.Conv2d(4, 3 * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.upsample(self.body(x))


def short(name: str) -> str:
    return name.removesuffix('_basicsr')


def of_basicsr(registry: object) -> list[str]:
    """Names of what BasicSR and this package have registered; tests register others."""
    found = [(name, inspect.getmodule(cls).__name__.partition('.')[0]) for name, cls in registry]
    return [short(name) for name, package in found if package in ('basicsr', 'facd_basicsr')]


@pytest.fixture(autouse=True)
def theirs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = of_basicsr(DATASET_REGISTRY)
    monkeypatch.setattr(
        DATASET_REGISTRY, '_obj_map', {name: c for name, c in DATASET_REGISTRY if short(name) in theirs}
    )


@pytest.fixture(scope='module')
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The ``datasets.train`` of every dataset, on folders of tiny images and clips."""
    root = tmp_path_factory.mktemp('sets')
    gt = picture(0, 64, 64)
    for side, image in (('GT', gt), ('LQ', bicubic_lr(gt, SCALE))):
        files = [f'images/{i}.png' for i in range(2)]
        files += [f'clips/{clip}/{i:08d}.png' for clip in ('A', 'B') for i in range(5)]
        files += [f'reds/001/{i:08d}.png' for i in range(100)]  # BasicSR's number of frames
        files += [f'vimeo/00001/000{clip}/im{i}.png' for clip in (1, 2) for i in range(1, 8)]
        cv2.imwrite(str(root / f'{side}.png'), image)
        for file in files:
            path = root / side / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(root / f'{side}.png')
    (root / 'faces.lmdb').mkdir()
    with lmdb.open(str(root / 'faces.lmdb')) as env, env.begin(write=True) as txn:
        for i in range(2):
            txn.put(f'{i}'.encode(), (root / 'GT.png').read_bytes())
    (root / 'faces.lmdb' / 'meta_info.txt').write_text('0.png (64,64,3) 1\n1.png (64,64,3) 1\n')
    lists = {
        'reds': '001 100 (64,64,3)\n',
        'vimeo': '00001/0001 7 (64,64,3)\n00001/0002 7 (64,64,3)\n',
        'gt': '0.png\n1.png\n',
    }
    for name, text in lists.items():
        (root / f'{name}.txt').write_text(text)

    def of(kind: str, **keys: object) -> dict:
        return {'dataroot_gt': str(root / 'GT' / kind), 'dataroot_lq': str(root / 'LQ' / kind), **keys}

    def listed(name: str) -> dict:
        return {'meta_info_file': str(root / f'{name}.txt'), 'random_reverse': False, **PATCHES}

    reds = of('reds', interval_list=[1], val_partition='REDS4', **listed('reds'))
    clips = of('clips', num_frame=5, cache_data=False, name='REDS4')
    gt_alone = {key: value for key, value in of('images').items() if key != 'dataroot_lq'}
    lq_alone = {key: value for key, value in of('images').items() if key != 'dataroot_gt'}
    blocks = {
        'PairedImageDataset': of('images', **PATCHES),
        'RealESRGANPairedDataset': of('images', **PATCHES),
        'SingleImageDataset': lq_alone | PATCHES,
        'RealESRGANDataset': gt_alone | {'meta_info': str(root / 'gt.txt'), **FLIPS, **KERNELS},
        'FFHQDataset': {
            'dataroot_gt': str(root / 'faces.lmdb'), 'io_backend': {'type': 'lmdb'}, 'use_hflip': True,
            'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5],
        },
        'REDSDataset': reds | {'dataroot_flow': None, 'num_frame': 5},
        'REDSRecurrentDataset': reds | {'num_frame': 3, 'test_mode': False},
        'Vimeo90KDataset': of('vimeo', num_frame=5, **listed('vimeo')),
        'Vimeo90KRecurrentDataset': of('vimeo', num_frame=7, flip_sequence=False, **listed('vimeo')),
        'VideoTestDataset': clips | {'padding': 'reflection'},
        'VideoTestDUFDataset': clips | {'padding': 'reflection', 'use_duf_downsampling': False},
        'VideoRecurrentTestDataset': clips | {'cache_data': True},
        'VideoTestVimeo90KDataset': of(
            'vimeo', num_frame=5, cache_data=False, meta_info_file=str(root / 'vimeo.txt')
        ),
    }  # fmt: skip
    loading = {'io_backend': DISK, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 2}
    return {kind: {'name': 'x', 'type': kind, **loading, **block} for kind, block in blocks.items()}


IMAGES = {'PairedImageDataset', 'RealESRGANPairedDataset'}
WINDOWS_OF_FRAMES = {'REDSDataset', 'Vimeo90KDataset', 'VideoTestDataset', 'VideoTestDUFDataset'}
WINDOWS_OF_FRAMES |= {'VideoTestVimeo90KDataset'}
SEQUENCES = {'REDSRecurrentDataset', 'Vimeo90KRecurrentDataset', 'VideoRecurrentTestDataset'}
TRAINING = {
    **{model: {*IMAGES, 'RealESRGANDataset'} for model in ('SRModel', 'FACDModel')},
    **dict.fromkeys(('SwinIRModel', 'SRGANModel', 'ESRGANModel', 'HiFaceGANModel'), IMAGES),
    **dict.fromkeys(('VideoBaseModel', 'EDVRModel', 'VideoGANModel'), WINDOWS_OF_FRAMES),
    **dict.fromkeys(('VideoRecurrentModel', 'VideoRecurrentGANModel'), SEQUENCES),
}


def test_every_model_and_every_dataset_is_here(datasets):
    assert sorted(of_basicsr(MODEL_REGISTRY)) == sorted(MODELS)
    assert sorted(of_basicsr(DATASET_REGISTRY)) == sorted(datasets)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save({'params': build_network(IMAGE).state_dict()}, path)
    return {'network': IMAGE, 'weights': str(path)}


def options(train_opt: dict, model: str, block: dict, teacher: dict) -> dict:
    network_g, network_d, train, others = MODELS[model]
    opt = {key: value for key, value in train_opt.items() if key not in ('taps', 'network_r', 'teacher')}
    if model == 'FACDModel':
        opt['teacher'] = teacher
    if model in ('SRModel', 'FACDModel') and block['type'] == 'RealESRGANDataset':
        others = {**DEGRADATION, 'gt_usm': False}
    if network_d is not None:
        opt['network_d'] = network_d
    schedule = {key: opt['train'][key] for key in ('total_iter', 'optim_g', 'scheduler')}
    return {
        **opt,
        **others,
        'scale': SCALE,
        'model_type': model,
        'datasets': {'train': block},
        'network_g': network_g,
        'train': schedule | train,
        'val': {'val_freq': 1, 'save_img': False},
    }


def outcome(opt: dict, folder: Path) -> str:
    """What is said of a run that does not start; empty of one that starts and takes a step."""
    try:
        complete = train_options(opt, folder)
        with DeferredLog(0, console=False) as log:
            training = set_up(complete, log)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and 'accepted: ' in str(error)
        assert [path.name for path in folder.iterdir()] == ['opt.yml']
        return str(error)
    batch = next(iter(training.loaders.train))
    training.model.feed_data(training.model.degraded(batch))
    training.model.optimize_parameters(1)
    assert training.model.get_current_log()
    return ''


# Their steps are those of SRModel, SRGANModel and VideoBaseModel with other networks.
VARIANTS = ('SwinIRModel', 'ESRGANModel', 'HiFaceGANModel', 'EDVRModel', 'VideoGANModel', 'VideoRecurrentGANModel')


@pytest.mark.parametrize(
    'model', [pytest.param(model, marks=[pytest.mark.slow] * (model in VARIANTS)) for model in MODELS]
)
def test_every_dataset_trains_or_is_refused_in_a_line(model, datasets, train_opt, teacher, tmp_path):
    said = {kind: outcome(options(train_opt, model, block, teacher), tmp_path) for kind, block in datasets.items()}
    assert {kind for kind, line in said.items() if not line} == TRAINING.get(model, set())


def test_without_ground_truth_the_student_trains_on_lq_alone_too(datasets, train_opt, teacher, tmp_path):
    said = {}
    for kind, block in datasets.items():
        opt = options(train_opt, 'FACDModel', block, teacher)
        opt['train']['ground_truth'] = False
        said[kind] = outcome(opt, tmp_path)
    assert {kind for kind, line in said.items() if not line} == {*TRAINING['FACDModel'], 'SingleImageDataset'}


@pytest.mark.slow
@pytest.mark.parametrize('model', ['RealESRNetModel', 'RealESRGANModel'])
def test_a_model_that_makes_lq_takes_the_dataset_with_its_kernels_alone(
    model, datasets, train_opt, teacher, tmp_path, monkeypatch
):
    """Where there is a GPU; here ``cuda()`` does nothing, and padding gives contiguous images, as on one."""
    for cls in (nn.Module, torch.Tensor):
        monkeypatch.setattr(cls, 'cuda', lambda self: self)
    contiguous = SimpleNamespace(pad=lambda *args, **keys: F.pad(*args, **keys).contiguous(), conv2d=F.conv2d)
    monkeypatch.setattr(img_process_util, 'F', contiguous)
    said = {kind: outcome(options(train_opt, model, block, teacher), tmp_path) for kind, block in datasets.items()}
    assert said.pop('RealESRGANDataset') == ''
    assert all(said.values())
    assert said['PairedImageDataset'] == (
        f'datasets.train.type: PairedImageDataset gives no kernel1, which {model} needs; accepted: RealESRGANDataset'
    )


@pytest.mark.parametrize(
    ('model', 'kind', 'line'),
    [
        (
            'SRModel',
            'SingleImageDataset',
            'SingleImageDataset gives no gt, which SRModel needs; accepted: PairedImageDataset, '
            'RealESRGANPairedDataset',
        ),
        (
            'SRGANModel',
            'RealESRGANDataset',
            'RealESRGANDataset gives no lq, which SRGANModel needs; accepted: PairedImageDataset, '
            'RealESRGANPairedDataset, SingleImageDataset',
        ),
        (
            'FACDModel',
            'REDSDataset',
            'REDSDataset: FACDModel with SRVGGNetCompact fails on its first batch (lq of 5 dimensions, not '
            '(N, C, H, W)); accepted: networks and options that fit it, or another dataset, as of images: '
            'PairedImageDataset, RealESRGANPairedDataset',
        ),
        (
            'EDVRModel',
            'PairedImageDataset',
            'PairedImageDataset: EDVRModel with EDVR fails on its first batch (not enough values to unpack (expected '
            '5, got 4)); accepted: networks and options that fit it, or another dataset, as of clips: REDSDataset, ',
        ),
    ],
)
def test_a_refusal_says_what_is_missing_and_which_datasets_have_it(
    model, kind, line, datasets, train_opt, teacher, tmp_path
):
    block = datasets[kind]
    assert outcome(options(train_opt, model, block, teacher), tmp_path).startswith(f'datasets.train.type: {line}')


def test_a_loss_does_not_compare_one_frame_with_all(datasets, train_opt, tmp_path):
    """As it does with a warning, where there is one sample."""
    block = datasets['VideoRecurrentTestDataset'] | {'batch_size_per_gpu': 1}
    said = outcome(options(train_opt, 'VideoBaseModel', block, {}), tmp_path)
    assert 'fails on its first batch (gt of (1, 5, 3, 64, 64) for an output of (1, 3, 64, 64)); ' in said


def test_images_of_several_sizes_are_no_batch(datasets, train_opt, tmp_path):
    for side, size in (('GT', 64), ('LQ', 16)):
        for clip, more in (('A', 1), ('B', 2)):
            (tmp_path / side / clip).mkdir(parents=True)
            for i in range(5):
                cv2.imwrite(str(tmp_path / side / clip / f'{i}.png'), picture(0, size, more * size))
    block = datasets['VideoRecurrentTestDataset'] | {'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 9}
    block |= {'dataroot_gt': str(tmp_path / 'GT'), 'dataroot_lq': str(tmp_path / 'LQ')}
    (tmp_path / 'run').mkdir()
    opt = options(train_opt, 'VideoRecurrentModel', block, {}) | {'manual_seed': 1}  # by which the first are A and B
    assert 'fails on its first batch (stack expects each tensor to be equal size' in outcome(opt, tmp_path / 'run')


def test_an_option_that_a_dataset_reads_with_each_sample_is_missed_by_name(datasets, train_opt, tmp_path):
    block = {key: value for key, value in datasets['REDSDataset'].items() if key != 'gt_size'}
    said = outcome(options(train_opt, 'EDVRModel', block, {}), tmp_path)
    assert said == 'datasets.train.gt_size: missing; accepted: what REDSDataset reads'


def test_a_batch_for_which_there_is_no_memory_is_refused(datasets, train_opt, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')

    monkeypatch.setattr(SRGANModel, 'optimize_parameters', fail)
    said = outcome(options(train_opt, 'SRGANModel', datasets['PairedImageDataset'], {}), tmp_path)
    assert said.startswith('datasets.train.batch_size_per_gpu: 2: no memory for a step (CUDA out of memory. Tried to ')


def test_the_step_of_a_check_changes_nothing(datasets, train_opt, tmp_path, monkeypatch):
    def state(complete: dict) -> tuple:
        with DeferredLog(0, console=False) as log:
            training = set_up(complete, log)
        model = training.model
        nets = {name: net for name, net in vars(model).items() if isinstance(net, nn.Module)}
        of_nets = {name: net.state_dict() for name, net in nets.items()}
        gradients = [(p.requires_grad, p.grad) for net in nets.values() for p in net.parameters()]
        set_before = {'output', 'lq', 'gt', 'log_dict'} & vars(model).keys()
        return of_nets, model.training_state(), gradients, set_before, torch.get_rng_state()

    for model in ('SRGANModel', 'VideoRecurrentGANModel'):
        kind = 'PairedImageDataset' if model == 'SRGANModel' else 'REDSRecurrentDataset'
        network = {'type': 'Normalized'} if model == 'SRGANModel' else RECURRENT
        opt = options(train_opt, model, datasets[kind], {}) | {'network_g': network}
        complete = train_options(opt, tmp_path)
        checked = state(complete)
        with monkeypatch.context() as patched:
            patched.setattr('facd_basicsr.train.check_training_sample', lambda *_: None)
            assert_same(checked, state(complete))
