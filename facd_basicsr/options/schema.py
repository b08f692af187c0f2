"""Every key of an option file, block by block: type, bounds, choices, default and meaning.

The tables have what no signature or source says; the functions below them add what a registered class accepts.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from basicsr.archs.vgg_arch import NAMES as VGG_LAYERS
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.data.realesrgan_paired_dataset import RealESRGANPairedDataset
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.losses.gan_loss import GANLoss
from basicsr.models import lr_scheduler
from basicsr.models.sr_model import SRModel
from basicsr.utils.file_client import FileClient

from facd_basicsr.archs import CHANNELS, OUT_CHANNELS
from facd_basicsr.distill.regressors import INITS
from facd_basicsr.distill.teacher import WEIGHTS_FORMATS
from facd_basicsr.errors import one_line
from facd_basicsr.losses import DistillLoss
from facd_basicsr.losses.image import TEACHER_TARGETS
from facd_basicsr.losses.loss_sum import TARGETS, is_pixel_loss
from facd_basicsr.losses.schedule import SHAPES
from facd_basicsr.models.nonfinite import ACTIONS
from facd_basicsr.options.signatures import Key, keys_read, signature_keys
from facd_basicsr.runtime.execution import PRECISIONS
from facd_basicsr.runtime.metrics import BETTER
from facd_basicsr.runtime.perceptual_metrics import BACKBONES, calculate_dists, calculate_lpips

NUMBER = (int, float)
OPTIONAL_STR = (str, type(None))
COUNT = Key((int,), least=1)

# Filled in by facd_basicsr.options or by BasicSR, so not for the option file.
DERIVED = {
    *('dist', 'rank', 'world_size', 'is_train', 'auto_resume', 'root_path', 'seed_drawn', 'phase', 'scale'),
    'stage_begin',
}

# Taken out when the file is read, before anything is checked.
FILE = {
    'base': Key(
        (str,),
        meaning='the option file that this one is based on, relative to the folder of this one. Left out: the file '
        'stands alone',
    ),
    'run': Key(
        (list,),
        meaning='in the `options.yml` of a run, what train.py says of each start (docs/training.md). Left out of other '
        'files; not an option',
    ),
}
TOP = {
    'name': Key(
        (str,),
        required=True,
        meaning='of the experiment, and of its folder below `experiments` (training) or `results` (testing). With '
        '`debug` in it nothing goes to TensorBoard, every iteration is logged, and every 8 saved and validated',
    ),
    'model_type': Key(
        (str,),
        required=True,
        meaning='a model registered with BasicSR: `FACDModel` distils; `SRModel` trains a network alone, and tests any',
    ),
    'scale': Key((int,), required=True, least=1, meaning='upscaling factor of data and networks'),
    'num_gpu': Key(
        (int, str),
        required=True,
        meaning='`auto`: one GPU if there is one, with `--launcher` all; `0`: CPU; several only with `--launcher`',
    ),
    'manual_seed': Key(
        (int, type(None)),
        least=0,
        below=2**31,  # for processes add to it and numpy's seeds have 32 bits
        default=None,
        meaning='seed of weights, order of the data, crops and flips; `null` draws one, which a resumed run keeps',
    ),
    'datasets': Key((dict,), required=True, meaning='the sets, by phase'),
    'network_g': Key((dict,), required=True, meaning='the network that is trained or tested: the student'),
    'path': Key((dict,), default={}, meaning='checkpoints to begin from'),
    'find_unused_parameters': Key(
        (bool,),
        default=False,
        meaning='of DistributedDataParallel, with a launcher: whether a network may have parameters that a step does '
        'not use',
    ),
    'dist_params': Key((dict,), default={}, meaning='of the process group, with a launcher'),
}
TOP_TRAIN = {
    'train': Key((dict,), required=True, meaning='iterations, optimizer and losses; its presence makes a train file'),
    'val': Key((dict, type(None)), default=None, meaning='metrics and images of validation; `null`: none'),
    'logger': Key((dict,), required=True, meaning='log and checkpoints'),
    'deterministic': Key(
        (bool,),
        default=False,
        meaning='deterministic, slower algorithms on a GPU, where torch has them; a CPU gives the same bits anyway',
    ),
}
TOP_TEST = {'val': Key((dict,), required=True, meaning='metrics and images of the test')}
# Of Real-ESRGAN's option files: what FACDModel and SRModel then do with a training set (models/degradation.py).
REALESRGAN_CROP = 400  # to which RealESRGANDataset crops or pads
SMALLEST_SHARPENED = 26  # which BasicSR's USM can mirror at the border
PROBABILITY = Key(NUMBER, required=True, least=0, most=1)
RANGE = Key((list,), required=True, items=NUMBER, length=2, least=0)
RESIZE = replace(RANGE, least=0.05)  # less would leave fewer pixels than a kernel has
JPEG_QUALITY = replace(RANGE, least=None, above=0, below=100)  # at 100 BasicSR divides by 0
CHANCES = Key((list,), required=True, items=NUMBER, length=3, least=0)
USM_KEYS = {
    'l1_gt_usm': Key(
        (bool,),
        meaning="whether pixel and distillation losses compare with the sharpened GT (USM), as RealESRGANModel's; then "
        'LQ are made of the sharpened GT. Left out, with the next two: as `gt_usm` says; of pairs: not',
    ),
    'percep_gt_usm': Key((bool,), meaning='the same of the perceptual loss. Left out with `l1_gt_usm`'),
    'gan_gt_usm': Key((bool,), meaning='the same of the discriminator. Left out with `l1_gt_usm`'),
}
HIGH_ORDER = Key(
    (bool,), default=True, meaning='whether LQ are made: `false` of RealESRGANPairedDataset, where it is the default'
)
DEGRADATION = {
    'gt_usm': Key(
        (bool,),
        meaning="whether GT is sharpened (USM) before LQ are made of it, as RealESRNetModel's. Left out: as "
        '`l1_gt_usm`, `percep_gt_usm` and `gan_gt_usm` say, which are required then',
    ),
    **USM_KEYS,
    'high_order_degradation': HIGH_ORDER,
    'resize_prob': replace(CHANCES, meaning='relative chances that a batch is first upscaled, downscaled, or kept'),
    'resize_range': replace(RESIZE, meaning='the smallest and the largest factor of that, 1 between them'),
    'gaussian_noise_prob': replace(PROBABILITY, meaning='of Gaussian noise; otherwise it is Poisson noise'),
    'noise_range': replace(RANGE, meaning='of the deviation of Gaussian noise, of 255'),
    'poisson_scale_range': replace(RANGE, meaning='of the factor on Poisson noise'),
    'gray_noise_prob': replace(PROBABILITY, meaning='of noise that is the same in all channels'),
    'jpeg_range': replace(JPEG_QUALITY, meaning='of the quality of JPEG'),
    'second_blur_prob': replace(PROBABILITY, meaning='of the blur by the second kernel'),
    'resize_prob2': replace(CHANCES, meaning='as `resize_prob`, the second time'),
    'resize_range2': replace(RESIZE, meaning='as `resize_range`, of the size of LQ'),
    'gaussian_noise_prob2': replace(PROBABILITY, meaning='as the first'),
    'noise_range2': replace(RANGE, meaning='as the first'),
    'poisson_scale_range2': replace(RANGE, meaning='as the first'),
    'gray_noise_prob2': replace(PROBABILITY, meaning='as the first'),
    'jpeg_range2': replace(JPEG_QUALITY, meaning='as the first'),
    'gt_size': replace(
        COUNT,
        required=True,
        most=REALESRGAN_CROP,
        meaning='side of training patches in GT pixels, a multiple of `scale`, cut out of crops of 400',
    ),
    'queue_size': replace(
        COUNT,
        default=180,
        meaning='pairs of the pool, of which a batch is drawn once it is full; a multiple of `batch_size_per_gpu`',
    ),
}
# What a model reads beyond these; another that it reads accepts any value, or if it is a network a block.
TOP_MODEL = {
    'teacher': Key(
        (dict, list),
        meaning='the frozen network that is learnt from, or a list of several. Required with `FACDModel` if a loss '
        'reads it',
    ),
    'taps': Key(
        (list,),
        default=[],
        meaning='pairs of features to compare. Required by a loss that reads features, refused by others',
    ),
    'network_r': Key(
        (dict,),
        meaning='the regressor of each tap. Required where the loss asks for one, refused where no tap needs it',
    ),
    'network_d': Key((dict,), meaning='the discriminator. Required with `train.gan_opt`, refused without'),
}
DATASET = {
    'name': Key((str,), required=True, meaning='what the log calls it, a folder name; another for each set'),
    'type': Key((str,), required=True, meaning='a dataset registered with BasicSR, which reads the other keys'),
    'pin_memory': Key(
        (bool, type(None)),
        default=None,
        meaning='page-locked memory for copies to a GPU; `null`: for training on GPUs',
    ),
    'persistent_workers': Key(
        (bool,), default=False, meaning='keep the worker processes from epoch to epoch; with `num_worker_per_gpu` only'
    ),
    'prefetch_mode': Key(
        OPTIONAL_STR,
        choices=(None, 'cpu', 'cuda'),
        default=None,
        meaning='of training batches. `cpu`: fetched by a thread, needs workers; `cuda`: copied to the GPU ahead, '
        'needs `pin_memory: true`',
    ),
    'num_prefetch_queue': replace(COUNT, default=1, meaning='batches that `prefetch_mode: cpu` keeps ready'),
}
DATASET_TRAIN = {
    'num_worker_per_gpu': Key(
        (int,),
        required=True,
        least=0,
        meaning='processes that read images, for each GPU or process; `0`: none',
    ),
    'batch_size_per_gpu': Key((int,), required=True, least=1, meaning='samples of a batch, for each GPU or process'),
    'dataset_enlarge_ratio': replace(COUNT, default=1, meaning='how often an epoch has each image'),
    'use_shuffle': Key((bool,), meaning='accepted as in files of BasicSR. Left out or not, the order is random'),
    'skip_damaged': Key(
        (bool,),
        default=False,
        meaning='take another image in the place of one that cannot be read, where otherwise training ends there',
    ),
}
BLUR_KERNELS = ('iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso')
_KERNEL_KEYS = {
    'blur_kernel_size': replace(COUNT, meaning='not read: kernels have 7 to 21 pixels'),
    'kernel_list': Key((list,), items=(str,), choices=BLUR_KERNELS, meaning='kinds of kernels of the first blur'),
    'kernel_prob': Key((list,), items=NUMBER, least=0, meaning='the relative chance of each'),
    'blur_sigma': replace(RANGE, least=None, above=0, meaning='of the deviation along each axis, in pixels'),
    'betag_range': replace(RANGE, least=None, above=0, meaning='of the exponent of `generalized_*`, with 1 in it'),
    'betap_range': replace(RANGE, least=None, above=0, meaning='of the exponent of `plateau_*`, with 1 in it'),
    'sinc_prob': replace(PROBABILITY, meaning='of a sinc filter instead of these'),
}
_KERNELS = {
    **_KERNEL_KEYS,
    **{f'{key}2': replace(own, meaning=f'as `{key}`, of the second blur') for key, own in _KERNEL_KEYS.items()},
}
# What datasets read from their block; a key of a registered dataset that is not here accepts any value.
DATASET_KEYS = {
    'dataroot_gt': Key((str,), meaning='ground truth: a folder of images, or an LMDB, whose name ends in `.lmdb`'),
    'dataroot_lq': Key((str,), meaning='low-quality images, `scale` times smaller: as `dataroot_gt`'),
    'meta_info_file': Key(
        OPTIONAL_STR,
        default=None,
        meaning='text file whose lines begin with the name of an image and a blank; `null`: every file. Not with LMDBs',
    ),
    'filename_tmpl': Key(
        (str,), default='{}', meaning='name of an LQ file without suffix; `{}` is that of its GT. Not with LMDBs'
    ),
    'meta_info': Key(
        OPTIONAL_STR,
        default=None,
        meaning='list of RealESRGANPairedDataset, a line for each pair, `GT/0001.png, LQ/0001.png`, or of '
        'RealESRGANDataset, a name in a line. Not with LMDBs',
    ),
    'io_backend': Key((dict,), meaning='how the images are stored'),
    'gt_size': replace(
        COUNT,
        meaning='side of training patches in GT pixels, a multiple of `scale`. Left out of other sets, of whole images',
    ),
    'use_hflip': Key((bool,), meaning='flip half of the training patches horizontally. Left out of other sets'),
    'use_rot': Key(
        (bool,), meaning='flip half of the training patches vertically, and transpose half. Left out of other sets'
    ),
    **_KERNELS,
    'final_sinc_prob': replace(PROBABILITY, meaning='of a last sinc filter, which leaves ringing'),
    'color': Key(OPTIONAL_STR, default=None, meaning='`y`: the Y channel alone; any other value: RGB'),
    'mean': Key(
        (list, type(None)),
        items=NUMBER,
        default=None,
        meaning='of each channel in [0, 1], subtracted from LQ and GT. Metrics are then of normalized images',
    ),
    'std': Key(
        (list, type(None)), items=NUMBER, above=0, default=None, meaning='of each channel: LQ and GT are divided by it'
    ),
}
DATASET_REQUIRED: dict[str, set[str]] = {
    'RealESRGANDataset': {'dataroot_gt', 'io_backend', 'use_hflip', 'use_rot', 'final_sinc_prob', *_KERNELS},
    'RealESRGANPairedDataset': {'dataroot_gt', 'dataroot_lq', 'io_backend'},
    'PairedImageDataset': {'dataroot_gt', 'dataroot_lq', 'io_backend'},
    'SingleImageDataset': {'dataroot_lq', 'io_backend'},
}
PATCHES = {'gt_size', 'use_hflip', 'use_rot'}
TYPE = {'type': Key((str,), required=True, meaning='what the other keys of the block are for')}
PATH = {
    'resume_state': Key(
        OPTIONAL_STR,
        default=None,
        meaning='the `.state` file of this experiment to resume from, or `latest`; `--auto_resume` goes before it',
    ),
    'ignore_resume_networks': Key(
        (list, str, type(None)),
        default=None,
        meaning='networks, such as `network_g`, that are not taken from the state that is resumed; `null`: all are',
    ),
}
# Of every `network_*` block: `_g`, and in training by FACDModel `_r` and `_d`.
PATH_NETWORK = {
    'pretrain_network': Key(OPTIONAL_STR, default=None, meaning='checkpoint to begin from; `null`: random weights'),
    'param_key': Key(
        OPTIONAL_STR,
        default='params',
        meaning='entry of that file: `params`, or `params_ema`, the moving average; `null`: the whole file; '
        'if it lacks that one, the one it has',
    ),
    'strict_load': Key(
        (bool,),
        default=True,
        meaning='whether it must fit exactly; if not, what fits by name and shape is loaded, as of another scale '
        '([training.md](training.md#from-another-scale)), and the log says so by module',
    ),
}
TRAIN = {
    'total_iter': Key(
        (int,),
        required=True,
        least=1,
        meaning='iterations after which training ends; with `stages` it may be left out, and is their sum',
    ),
    'stages': Key(
        (list,),
        meaning='stages of the run with options of their own, in their order. Left out: one, with those of the file',
    ),
    'warmup_iter': Key(
        (int,), least=-1, default=-1, meaning='iterations over which the learning rate rises linearly; `-1`: none'
    ),
    'optim_g': Key((dict,), required=True, meaning='optimizer of the student, and of the regressors with it'),
    'scheduler': Key((dict,), required=True, meaning='course of the learning rate'),
    'nonfinite': Key((dict,), default={}, meaning='what is done about a loss or gradient that is not finite'),
}
# Of an entry of `stages`, beside the keys of `train`; what is laid over other blocks, and where.
STAGE = {
    'iterations': replace(COUNT, required=True, meaning='its length'),
    'gt_size': replace(COUNT, meaning='of `datasets.train`. Left out: as in the file'),
    'batch_size_per_gpu': replace(COUNT, meaning='of `datasets.train`. Left out: as in the file'),
    'lr': Key(NUMBER, above=0, meaning='of `optim_g`. Left out: as in the file'),
    'taps': Key((list,), meaning='for its losses; `null`: none. Left out: those of the file'),
    'network_r': Key((dict,), meaning='for its taps; `null`: none. Left out: that of the file'),
    'network_d': Key((dict,), meaning='for its `gan_opt`. Left out: that of the file'),
}
STAGE_PLACES = {
    'iterations': 'train.total_iter',
    'gt_size': 'datasets.train.gt_size',
    'batch_size_per_gpu': 'datasets.train.batch_size_per_gpu',
    'lr': 'train.optim_g.lr',
    'taps': 'taps',
    'network_r': 'network_r',
    'network_d': 'network_d',
}
NONFINITE = {
    'action': Key((str,), choices=ACTIONS, default='skip', meaning='`skip` the step, or `fatal`: end the run'),
    'limit': replace(
        COUNT, default=10, meaning='so many such steps in a row end the run in any case; with `fp16` 2 or more'
    ),
}
# How a network is run, of the teacher and in `train` of the student, or with _r of the regressors.
EXECUTION = {
    'precision': Key(
        OPTIONAL_STR,
        choices=(None, *PRECISIONS),
        default=None,
        meaning="of convolutions and products; `null`: torch's own float32, which uses TF32 in a GPU's convolutions",
    ),
    'channels_last': Key(
        (bool,), default=False, meaning='memory format (N, H, W, C) of weights and activations; changes rounding only'
    ),
    'compile': Key((dict, type(None)), default=None, meaning='run by `torch.compile`, with these options; `null`: not'),
}
# Of a step, of FACDModel and SRModel.
OPTIMIZATION = {
    'clip_grad_norm': Key(
        (*NUMBER, type(None)),
        above=0,
        default=None,
        meaning="the largest 2-norm of a network's gradient, of the student's and of the regressors' each by itself; a "
        'larger one is multiplied down to it. `null`: not clipped',
    ),
    'accum_iter': replace(
        COUNT,
        default=1,
        meaning='parts of a batch, of which one has activations at a time; a divisor of `batch_size_per_gpu`. The '
        'gradient is that of the whole batch, of losses that compare samples too '
        '([training.md](training.md#a-batch-in-parts))',
    ),
    'log_gradient_share': Key(
        (int, type(None)),
        least=1,
        default=None,
        meaning="iterations between values `share_NAME`: each loss term's part of the gradient on the student's last "
        'layer that all terms reach; a multiple of `print_freq`. `null`: none',
    ),
    'quantize': Key(
        (dict,),
        meaning='train and validate the student with the values that it has in int8, `{}` with the defaults; its '
        'checkpoints have the ranges ([training.md](training.md#quantization-aware-distillation)). Not with `compile`. '
        'Left out: not',
    ),
}
QUANTIZE = {
    'keep': Key(
        (list,),
        items=(str,),
        default=[],
        meaning='module paths of convolutions that stay float, e.g. `[conv_first, conv_last]`',
    ),
    'decay': Key(
        NUMBER,
        least=0,
        below=1,
        default=0.99,
        meaning="of the moving average of each feature's smallest and largest value in a batch, which is its range",
    ),
}
EXECUTION_TRAIN = {
    **EXECUTION,
    **{
        f'{key}_r': replace(accepted, default=..., meaning=f'of the regressors. Left out: as `{key}`')
        for key, accepted in EXECUTION.items()
    },
    **{
        f'{key}_d': replace(EXECUTION[key], default=..., meaning=f'of the discriminator. Left out: as `{key}`')
        for key in ('precision', 'channels_last')  # it is not compiled
    },
}
# Of torch.compile, whose signature differs from release to release.
COMPILE = {
    'mode': Key(
        (str,),
        choices=('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'),
        default='default',
        meaning='what is weighed against the time to compile; `reduce-overhead` uses CUDA graphs',
    ),
    'dynamic': Key(
        (bool, type(None)),
        default=None,
        meaning='one kernel for all shapes; `null`: once a second shape was met; `false`: one for each shape',
    ),
    'fullgraph': Key((bool,), default=False, meaning='refuse a network that cannot be compiled as a whole'),
}
TRAIN_KEYS = {
    'ema_decay': Key(
        NUMBER,
        least=0,
        below=1,
        default=0,
        meaning='of a moving average of the weights, validated in their place and saved as `params_ema`; `0`: none',
    ),
    'init_r': Key(
        (str,),
        choices=INITS,
        default='random',
        meaning="how new regressors begin. `random`: as torch's layers do. `first_batch`: their first layer is then "
        "multiplied, so that features come in the teacher's units. `auto`: that, but only where the student's features "
        "are more than 30 times smaller than the teacher's ([teachers.md](teachers.md#features-in-other-units))",
    ),
    'teacher_target': Key(
        (str,),
        choices=TEACHER_TARGETS,
        default='mean',
        meaning="of several teachers, whose images losses see as the teacher's. `mean` of all; `nearest`: each patch's "
        'from the teacher that is nearest to ground truth there; the log has the share of patches that each taught',
    ),
    'ground_truth': Key(
        (bool,),
        default=True,
        meaning="whether losses see it; `false`: the teacher's output is in its place, as it must be where "
        '`datasets.train` has LQ alone',
    ),
    'distill_opt': Key(
        (dict,),
        meaning='the distillation loss, or several by names of your own, whose terms are added up '
        '([losses.md](losses.md#several-losses)). Required with `FACDModel`, unknown to others',
    ),
    'pixel_opt': Key(
        (dict,),
        meaning='a loss of images, to ground truth; with `FACDModel` and `SRModel` also several by names of your own. '
        '`FACDModel`: left out: none. `SRModel`: required unless there is `perceptual_opt`',
    ),
    'perceptual_opt': Key((dict,), meaning='a loss of VGG features to ground truth. Left out: none'),
    'gan_opt': Key(
        (dict,),
        meaning='a GAN loss: `network_d` and `optim_d` train a discriminator beside the student. Left out: none',
    ),
    'optim_d': Key((dict,), meaning='its optimizer, as `optim_g`. Required with `gan_opt`'),
    'net_d_iters': replace(COUNT, default=1, meaning='the student has a step in each iteration that is a multiple'),
    'net_d_init_iters': Key(
        (int,), least=0, default=0, meaning='iterations at the start in which only the discriminator has steps'
    ),
}
VAL = {
    'metrics': Key((dict, type(None)), default=None, meaning='metrics, each under a name that is yours to choose'),
    'pbar': Key((bool,), default=False, meaning='a progress bar over the images; in a log a line every 30 seconds'),
    'save_img': Key(
        (bool,), required=True, meaning="write the results as PNG to the experiment's folder `visualization`"
    ),
    'tile': Key(
        (int, type(None)),
        least=16,  # what is smaller consists of overlap
        default=None,
        meaning='LQ pixels; larger images are upscaled in parts of so many; `null`: whole',
    ),
}
VAL_TRAIN = {
    **VAL,
    'val_freq': Key(
        NUMBER,
        required=True,
        least=1,
        meaning='iterations between validations, a whole number; the end of training has one',
    ),
}
VAL_TEST = {
    **VAL,
    'suffix': Key(OPTIONAL_STR, required=True, meaning='of saved images, `IMAGE_SUFFIX.png`; `null`: the `name`'),
}
LOGGER = {
    'print_freq': Key((int,), required=True, least=1, meaning='iterations between lines of progress'),
    'save_checkpoint_freq': Key(
        NUMBER, required=True, least=1, meaning='iterations between checkpoints, networks and state; a whole number'
    ),
    'use_tb_logger': Key((bool,), required=True, meaning='write TensorBoard curves to `tb_logger/NAME`'),
    'wandb': Key((dict, type(None)), default=None, meaning='curves on Weights & Biases, which must be installed'),
    'keep_last': Key((int, type(None)), least=1, default=None, meaning='checkpoints that stay; `null`: all'),
    'keep_best': Key(
        (bool,),
        default=False,
        meaning='also keep `net_*_best.pth`, best by the first metric on the first validation set, which must be there',
    ),
}
WANDB = {
    'project': Key(OPTIONAL_STR, default=None, meaning='where the run appears, with `use_tb_logger`; `null`: nowhere'),
    'resume_id': Key(
        OPTIONAL_STR, default=None, meaning='the run of an earlier process to continue with; `null`: a new one'
    ),
}
TEACHER = {
    'network': Key(
        (dict,),
        meaning='its architecture, as `network_g`; not with `format: spandrel`. Left out: spandrel recognizes it',
    ),
    'weights': Key((str,), required=True, meaning='a `.pth`, `.pt` or `.safetensors` file, or the address of one'),
    'format': Key(
        (str,), choices=WEIGHTS_FORMATS, default='auto', meaning="the file's key layout; `auto` recognizes it"
    ),
    'sha256': Key(  # of any type: a number if it lacks its quotes
        default=None,
        meaning="the file's digest in quotes, or its first 8 hexadecimal digits or more; `null`: for an address the "
        'digits in its file name, if it carries some',
    ),
    **EXECUTION,
    'cache': Key(
        (bool,),
        default=False,
        meaning='read what it gives of LQ from a file, made once of the whole images of `datasets.train` in 8 bits, '
        'where losses read nothing else of it, with `io_backend: {type: memory}` '
        '([teachers.md](teachers.md#images-from-a-cache))',
    ),
    'expect': Key((dict,), meaning='what it must score before training starts. Left out: not looked at'),
}
EXPECT = {
    'dataset': Key((str,), required=True, meaning='a set of pairs in `datasets`, such as `val`'),
    'psnr_y': Key(NUMBER, required=True, meaning='dB of Y, 8 bits, `scale` pixels of border cropped'),
    'tolerance': Key(NUMBER, required=True, above=0, meaning='dB, to either side'),
}
TAP = {
    'student': Key((str,), required=True, meaning='module path in `network_g`'),
    'teacher': Key(
        (str, list),
        items=(str,),
        required=True,
        meaning='module path in the teacher; of several teachers a path for all, or a list with one for each',
    ),
}
METRIC = {
    'type': Key((str,), required=True, meaning='a metric registered with BasicSR'),
    'better': Key(
        (str,),
        choices=('higher', 'lower'),
        required=True,
        meaning='which value is the best; known of the metrics listed here',
    ),
}
DIST_PARAMS = {
    'backend': Key(
        (str,), choices=('nccl', 'gloo'), default='nccl', meaning='between GPUs; without them always `gloo`'
    ),
    'port': Key(
        (int, type(None)),
        least=1,
        below=2**16,
        default=None,
        meaning='of the first node, with `--launcher slurm`; `MASTER_PORT` goes before it; `null`: 29500',
    ),
}

IO_BACKENDS = ('disk', 'lmdb')  # not memcached, which imports a module from a folder that the file names
IO_BACKENDS_TRAIN = (*IO_BACKENDS, 'memory')  # in a test every image is read once


SIZE = Key((int,), least=1, below=10_000)  # with more a network is not built in any time
# A network's argument: BasicSR's two, then those of spandrel's
UPSCALE = ('upscale', 'scale', 'upscaling_factor', 'upscale_factor', 'up_scale')
_UPSCALE = replace(SIZE, meaning='Required: the `scale` of the file. EDSR and RCAN: 3 or a power of 2')
NETWORK_KEYS = {
    **dict.fromkeys((*CHANNELS, *OUT_CHANNELS, 'num_feat', 'num_block', 'num_group'), SIZE),
    'squeeze_factor': SIZE,
    **dict.fromkeys(UPSCALE, _UPSCALE),
    'img_range': Key(NUMBER, above=0, meaning='the network works on inputs times this'),
}
REGRESSOR_KEYS = {'num_feat': replace(SIZE, least=0), 'num_layer': SIZE}
LOSS_KEYS = {
    # none would leave no scalar to minimize
    'reduction': Key((str,), choices=('mean', 'sum'), meaning='over all elements of the batch')
}
LOSS_WEIGHT = Key(NUMBER, least=0, default=1, is_weight=True, meaning='factor on all terms of this loss')
# Of an entry of distill_opt, beside the keys of its class: of a distillation loss, and of a loss of images.
DISTILL_LOSS = {
    'loss_weight': LOSS_WEIGHT,
    'image_term': Key(
        (bool,), default=True, meaning='whether `l_sr` counts; `false`: not, beside image terms of your own'
    ),
}
PIXEL_LOSS = {
    'target': Key(
        (str,),
        choices=TARGETS,
        default='gt',
        meaning='what the output is compared with: ground truth, the `teacher`, or both, `gated` by equations (1) and '
        '(2), which needs `reduction: mean`',
    ),
}
WEIGHTS = ('loss_weight', 'lambda', 'layer_weights', 'alpha')
SCHEDULE = {
    'start': Key(NUMBER, required=True, meaning='value at the start of the stage or, without stages, of training'),
    'end': Key(NUMBER, required=True, meaning='value in iteration `over`, and from then on'),
    'over': replace(COUNT, required=True, meaning='iterations from `start` to `end`'),
    'shape': Key(
        (str,),
        choices=tuple(SHAPES),
        default='linear',
        meaning='`linear`; `cosine`: half a wave, flat at both ends; `step`: `start` until `over`',
    ),
}
GAN_TYPES = ('vanilla', 'lsgan', 'wgan', 'wgan_softplus', 'hinge')
GAN_KEYS = {
    'gan_type': Key((str,), choices=GAN_TYPES, required=True, meaning='`vanilla`: binary cross-entropy of logits'),
    'loss_weight': Key(NUMBER, least=0, meaning="factor on the student's term; the discriminator's is 1"),
}
# Of FACDModel and SRModel alone, beside the keys of the class.
PERCEPTUAL_OWN = {
    'vgg_weights': Key(
        OPTIONAL_STR,
        default=None,
        meaning="path or address of torchvision's checkpoint of `vgg_type`; `null`: "
        '`experiments/pretrained_models/vgg19-dcbb9e9d.pth`, if it is there, else its address',
    ),
}
GAN_OWN = {
    'relativistic': Key(
        (bool,), default=False, meaning="predictions against the mean of the other images', as ESRGANModel's"
    ),
}
PERCEPTUAL_KEYS = {
    'layer_weights': Key((dict,)),
    'vgg_type': Key((str,), choices=tuple(f'{name}{suffix}' for name in VGG_LAYERS for suffix in ('', '_bn'))),
    'criterion': Key(  # BasicSR's `l2` asks torch for a name that it does not have
        (str,), choices=('l1', 'fro'), meaning='distance of features; `fro`: the Frobenius norm of the difference'
    ),
}
OF_TENSORS = ('calculate_psnr_pt', 'calculate_ssim_pt')  # metrics of what validation does not have
METRIC_KEYS = {
    'crop_border': Key(
        (int,), required=True, least=0, meaning='pixels left out at each side; published values: `scale`'
    ),
    # RGB is 1.7 to 2.2 dB lower: so it must be given
    'test_y_channel': Key((bool,), required=True, meaning='`true`: of Y of YCbCr, as published; `false`: of RGB'),
    'input_order': Key((str,), choices=('HWC',), meaning='as the images are: leave it out'),
}
PERCEPTUAL_METRIC_KEYS = {'net': Key((str,), choices=tuple(BACKBONES)), 'weights': Key(OPTIONAL_STR)}
OPTIM_KEYS = {
    'lr': Key(NUMBER, required=True, above=0, meaning='learning rate, before warm-up and scheduler'),
    'betas': Key(
        (list,), items=NUMBER, least=0, below=1, meaning='decay of the moving averages of gradient and its square'
    ),
    'eps': Key(NUMBER, least=0, meaning='added to the denominator'),
    'weight_decay': Key(
        NUMBER,
        least=0,
        meaning='factor of the weights that is added to their gradient; of Adafactor, AdamW and with '
        '`decoupled_weight_decay` it shrinks them by itself, times `lr`',
    ),
    'amsgrad': Key((bool,), meaning='divide by the largest second moment so far'),
    'foreach': Key(
        (bool, type(None)), meaning='one kernel for many parameters; `null`: as torch chooses, on GPUs `fused` instead'
    ),
    'fused': Key(
        (bool, type(None)),
        meaning='the step as one kernel; `null`: `true` on GPUs, but of Adagrad, unless `foreach` is given',
    ),
    'decoupled_weight_decay': Key((bool,), meaning='weight decay as in AdamW, past the moments'),
    'centered': Key((bool,), meaning='divide by the deviation of the gradient, not by its square'),
}
ITERATIONS = Key((list,), required=True, items=(int,), least=1)
SCHEDULER_KEYS = {
    'milestones': replace(ITERATIONS, meaning='iterations at which the learning rate is multiplied by `gamma`'),
    'gamma': Key(NUMBER, above=0, meaning='that factor'),
    'restarts': Key(
        (list,), items=(int,), least=0, meaning='iterations at which it becomes `lr` times the weight of that restart'
    ),
    'periods': replace(ITERATIONS, meaning='iterations of each cosine; together `total_iter` or more'),
    'restart_weights': Key((list,), items=NUMBER, least=0, meaning='factor on `lr` of each restart or period'),
    'eta_min': Key(NUMBER, least=0, meaning='learning rate at the end of each cosine'),
    'last_epoch': Key((int,), meaning="torch's counter of steps: leave it out"),
}

SCHEDULERS = {
    'MultiStepLR': lr_scheduler.MultiStepRestartLR,
    'MultiStepRestartLR': lr_scheduler.MultiStepRestartLR,
    'CosineAnnealingRestartLR': lr_scheduler.CosineAnnealingRestartLR,
}


Keys = dict[str, Key]


def top_keys(model: type, is_train: bool) -> Keys:
    """Of the file itself, ``base`` aside, for a model."""
    accepted = {**TOP, **(TOP_TRAIN if is_train else TOP_TEST)}
    read = keys_read(model, 'opt')
    if is_train:
        accepted |= {key: _model_key(key) for key in sorted(read - accepted.keys() - DERIVED)}
    return accepted | {key: _model_key(key) for key in sorted(read - TOP.keys()) if key.startswith('network_')}


def _model_key(key: str) -> Key:
    return TOP_MODEL.get(key, Key((dict,) if key.startswith('network_') else ()))


def degradation_keys(dataset: type) -> Keys:
    """Of the file itself, for a training set whose LQ the model makes, or whose GT it may sharpen."""
    if issubclass(dataset, RealESRGANDataset):
        return DEGRADATION
    if issubclass(dataset, RealESRGANPairedDataset):
        return {**USM_KEYS, 'high_order_degradation': replace(HIGH_ORDER, default=False)}
    return {}


def dataset_keys(dataset: type, training: bool) -> Keys:
    """Of a set in ``datasets``; ``training``: of ``datasets.train``."""
    required = DATASET_REQUIRED.get(dataset.__name__, set())
    if training:
        required = required and required | PATCHES
    read = keys_read(dataset, 'opt') - DERIVED
    own = {key: replace(DATASET_KEYS.get(key, Key()), required=key in required) for key in sorted(read)}
    if issubclass(dataset, RealESRGANDataset):
        own['gt_size'] = replace(COUNT, meaning='not read. Left out, or equal to the `gt_size` at the top of the file')
    return {**own, **DATASET, **(DATASET_TRAIN if training else {})}


def io_backends(dataset: type, is_train: bool) -> tuple[str, ...]:
    """The types of ``io_backend`` that a dataset can have."""
    return IO_BACKENDS_TRAIN if is_train and dataset is PairedImageDataset else IO_BACKENDS


def io_backend_keys(backend: str) -> Keys:
    """Of an ``io_backend``, beside ``type``."""
    if backend == 'memory':
        return {}
    # a dataset fills in the LMDB's folders itself
    return signature_keys(FileClient._backends[backend], supplied=('db_paths', 'client_keys'))


def network_keys(network: type) -> Keys:
    """Of ``network_g`` or ``teacher.network``, beside ``type``; a default of its scale does not count."""
    own = signature_keys(network, known=NETWORK_KEYS)
    for name in own.keys() & {*UPSCALE}:
        of_list = signature_keys(network)[name].types == (list,)  # IPT's
        own[name] = replace(own[name], default=..., types=(list,) if of_list else own[name].types)
    return own


def regressor_keys(network: type) -> Keys:
    """Of ``network_r``, beside ``type``: channels are read off the taps."""
    return signature_keys(network, supplied=('num_in_ch', 'num_out_ch'), known=REGRESSOR_KEYS)


def path_keys(networks: Iterable[str], is_train: bool) -> Keys:
    """Of ``path``, for the ``network_*`` blocks of a file."""
    accepted = dict(PATH)
    for network in networks:
        suffix = network.removeprefix('network_')
        accepted |= {f'{prefix}_{suffix}': key for prefix, key in PATH_NETWORK.items()}
    if not is_train:
        pretrained = PATH_NETWORK['pretrain_network']
        accepted['pretrain_network_g'] = replace(pretrained, types=(str,), required=True)
    return accepted


def train_keys(model: type) -> Keys:
    """Of ``train``, for a model."""
    own = {key: TRAIN_KEYS.get(key, Key()) for key in sorted(keys_read(model, 'train_opt'))}
    if 'distill_opt' in own:
        own |= OPTIMIZATION | EXECUTION_TRAIN
    elif sums_losses(model):
        own |= OPTIMIZATION | EXECUTION
    return {**own, **TRAIN}


def stage_keys(model: type) -> Keys:
    """Of an entry of ``train.stages``, for a model. What is left out there is as in the file: it has no default."""
    own = {key: accepted for key, accepted in train_keys(model).items() if key not in ('total_iter', 'stages')}
    return {**STAGE, **{key: replace(accepted, required=False, default=...) for key, accepted in own.items()}}


def keys_beside_stages(where: str, keys: Keys) -> Keys:
    """Of a block of a file with stages, which may leave to them what they can give."""
    places = STAGE_PLACES.values()
    needed = [name for name, accepted in keys.items() if accepted.required]
    given = [name for name in needed if where == 'train' or f'{where}.{name}' in places]
    return {**keys, **{name: replace(keys[name], required=False, default=...) for name in given}}


def loss_keys(loss: type, key: str = '', model: type | None = None) -> Keys:
    """Of a loss, beside ``type``, in ``train.KEY`` of a model; None: one of BasicSR's."""
    is_gan = issubclass(loss, GANLoss)
    known = PERCEPTUAL_KEYS if loss is PerceptualLoss else GAN_KEYS if is_gan else {}
    own = signature_keys(loss, known={**LOSS_KEYS, **known})
    if model is not None and sums_losses(model):
        own |= PERCEPTUAL_OWN if loss is PerceptualLoss else GAN_OWN if is_gan else {}
    if key == 'distill_opt':
        own |= DISTILL_LOSS if issubclass(loss, DistillLoss) else PIXEL_LOSS
    is_scheduled = is_summed(loss) and (model is None or sums_losses(model))
    return {name: replace(own[name], is_weight=name in WEIGHTS and is_scheduled) for name in own}


def is_summed(loss: type) -> bool:
    """Whether losses/loss_sum.py knows it: a distillation loss or a pixel loss."""
    return issubclass(loss, DistillLoss) or is_pixel_loss(loss)


def schedule_keys(weight: Key) -> Keys:
    """Of a schedule of a weight, whose bounds its ends keep."""
    end = replace(SCHEDULE['end'], least=weight.least, above=weight.above, most=weight.most)
    return {**SCHEDULE, 'start': replace(end, meaning=SCHEDULE['start'].meaning), 'end': end}


def sums_losses(model: type) -> bool:
    """Whether a model adds up several losses and knows schedules of their weights."""
    return model is SRModel or 'distill_opt' in keys_read(model, 'train_opt')


@functools.cache
def optimizers() -> dict[str, Any]:
    """torch's optimizers by name; of those that take no step on a convolution's weights, since they need a closure,
    sparse gradients or matrices, the error instead."""
    found: dict[str, Any] = dict(inspect.getmembers(torch.optim, inspect.isclass))
    for name, optimizer in found.items():
        weight = torch.zeros(1, 1, 1, 1, requires_grad=True)
        weight.grad = torch.zeros_like(weight)
        try:
            optimizer([weight], lr=1.0).step()
        except (TypeError, ValueError, RuntimeError) as error:
            found[name] = one_line(error)
    return found


# Of torch's optimizers: the model gives them, or they have no use in a run.
NO_OPTIM_KEYS = ('params', 'maximize', 'capturable', 'differentiable')


def optimizer_keys(optimizer: type) -> Keys:
    """Of ``train.optim_g``, beside ``type``."""
    own = signature_keys(optimizer, supplied=NO_OPTIM_KEYS)
    known = {key: of for key, of in OPTIM_KEYS.items() if key in own and (list in own[key].types) == (list in of.types)}
    return signature_keys(optimizer, supplied=NO_OPTIM_KEYS, known=known)  # Adafactor's eps is a list


def scheduler_keys(scheduler: type) -> Keys:
    """Of ``train.scheduler``, beside ``type``."""
    return signature_keys(scheduler, supplied=('optimizer',), known=SCHEDULER_KEYS)


def metric_keys(metric: Callable[..., Any]) -> Keys:
    """Of an entry of ``val.metrics``. The direction of BasicSR's metrics is known, of others it must be said."""
    known_keys = METRIC_KEYS | (PERCEPTUAL_METRIC_KEYS if metric in (calculate_lpips, calculate_dists) else {})
    own = {**signature_keys(metric, supplied=('img', 'img2', 'better'), known=known_keys), **METRIC}
    if metric in BETTER:
        known = BETTER[metric]
        own['better'] = replace(own['better'], choices=(known,), required=False, default=known)
    return own
