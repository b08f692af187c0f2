"""The keys of an option file, where no signature or source says what they are."""

from dataclasses import replace

import torch
from basicsr.models import lr_scheduler

from facd_basicsr.distill.teacher import FORMATS
from facd_basicsr.engine.execution import PRECISIONS
from facd_basicsr.engine.nonfinite import ACTIONS
from facd_basicsr.options.signatures import Key

NUMBER = (int, float)
OPTIONAL_STR = (str, type(None))
COUNT = Key((int,), least=1)

# Filled in by facd_basicsr.options or by BasicSR, so not for the option file.
DERIVED = {'dist', 'rank', 'world_size', 'is_train', 'auto_resume', 'root_path', 'seed_drawn', 'phase', 'scale'}

TOP = {
    'name': Key((str,), required=True),
    'model_type': Key((str,), required=True),
    'scale': Key((int,), required=True, least=1),
    'num_gpu': Key((int, str), required=True),
    # none: drawn; below, for processes add to it and numpy's seeds have 32 bits
    'manual_seed': Key((int, type(None)), least=0, below=2**31),
    'datasets': Key((dict,), required=True),
    'network_g': Key((dict,), required=True),
    'path': Key((dict,), required=True),
    'find_unused_parameters': Key((bool,)),
}
TOP_TRAIN = {
    'train': Key((dict,), required=True),
    'val': Key((dict, type(None))),
    'logger': Key((dict,), required=True),
    'dist_params': Key((dict,)),
}
TOP_TEST = {'val': Key((dict,), required=True)}
DATASET = {
    'name': Key((str,), required=True),
    'type': Key((str,), required=True),
    'pin_memory': Key((bool,)),
    'persistent_workers': Key((bool,)),
    'prefetch_mode': Key(OPTIONAL_STR, choices=(None, 'cpu', 'cuda')),
    'num_prefetch_queue': COUNT,
}
DATASET_TRAIN = {
    'num_worker_per_gpu': Key((int,), required=True, least=0),
    'batch_size_per_gpu': Key((int,), required=True, least=1),
    'dataset_enlarge_ratio': COUNT,
    'use_shuffle': Key((bool,)),
    'skip_damaged': Key((bool,)),
}
# What datasets read from their block; a key of a registered dataset that is not here accepts any value.
DATASET_KEYS = {
    'dataroot_gt': Key((str,)),
    'dataroot_lq': Key((str,)),
    'meta_info_file': Key(OPTIONAL_STR),
    'filename_tmpl': Key((str,)),
    'io_backend': Key((dict,)),
    'gt_size': COUNT,
    'use_hflip': Key((bool,)),
    'use_rot': Key((bool,)),
    'color': Key(OPTIONAL_STR),
    'mean': Key((list, type(None)), items=NUMBER),
    'std': Key((list, type(None)), items=NUMBER),
}
DATASET_REQUIRED = {'PairedImageDataset': {'dataroot_gt', 'dataroot_lq', 'io_backend'}}
DATASET_REQUIRED_TRAIN = {'PairedImageDataset': {'gt_size', 'use_hflip', 'use_rot'}}
TRAIN = {
    'total_iter': Key((int,), required=True, least=1),
    'warmup_iter': Key((int,), least=-1),  # -1: none
    'optim_g': Key((dict,), required=True),
    'scheduler': Key((dict,), required=True),
    'nonfinite': Key((dict,)),
}
NONFINITE = {'action': Key((str,), choices=ACTIONS), 'limit': COUNT}
# How a network is run, of the teacher and in `train` of the student, or with _r of the regressors.
EXECUTION = {
    'precision': Key((str,), choices=tuple(PRECISIONS)),
    'channels_last': Key((bool,)),
    'compile': Key((dict, type(None))),
}
EXECUTION_TRAIN = {**EXECUTION, **{f'{key}_r': accepted for key, accepted in EXECUTION.items()}}
# Of torch.compile, whose signature differs from release to release.
COMPILE = {
    'mode': Key((str,), choices=('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs')),
    'dynamic': Key((bool, type(None))),
    'fullgraph': Key((bool,)),
}
TRAIN_KEYS = {
    'ema_decay': Key(NUMBER, least=0, below=1),
    'distill_opt': Key((dict,)),
    'pixel_opt': Key((dict,)),
    'perceptual_opt': Key((dict,)),
}
VAL = {
    'metrics': Key((dict, type(None))),
    'pbar': Key((bool,)),
    'save_img': Key((bool,), required=True),
    'tile': Key((int,), least=16),  # LQ pixels; what is smaller consists of overlap
}
VAL_TRAIN = {**VAL, 'val_freq': Key(NUMBER, required=True, least=1)}
VAL_TEST = {**VAL, 'suffix': Key(OPTIONAL_STR, required=True)}
LOGGER = {
    'print_freq': Key((int,), required=True, least=1),
    'save_checkpoint_freq': Key(NUMBER, required=True, least=1),
    'use_tb_logger': Key((bool,), required=True),
    'wandb': Key((dict, type(None))),
    'keep_last': COUNT,
    'keep_best': Key((bool,)),
}
WANDB = {'project': Key(OPTIONAL_STR), 'resume_id': Key(OPTIONAL_STR)}
TEACHER = {
    'network': Key((dict,)),
    'weights': Key((str,), required=True),
    'format': Key((str,), choices=FORMATS),
    'sha256': Key(),  # a number if it lacks its quotes
    **EXECUTION,
    'winograd': Key((bool,)),
    'expect': Key((dict,)),
}
EXPECT = {
    'dataset': Key((str,), required=True),
    'psnr_y': Key(NUMBER, required=True),
    'tolerance': Key(NUMBER, required=True, above=0),  # dB
}
TAP = {'student': Key((str,), required=True), 'teacher': Key((str,), required=True)}
METRIC = {'type': Key((str,), required=True), 'better': Key((str,), choices=('higher', 'lower'))}
DIST_PARAMS = {'backend': Key((str,), choices=('nccl', 'gloo')), 'port': Key((int,), least=1, below=2**16)}

IO_BACKENDS = ('disk', 'lmdb')  # not memcached, which imports a module from a folder that the file names
IO_BACKENDS_TRAIN = (*IO_BACKENDS, 'memory')  # in a test every image is read once

# What signatures do not say.
SIZE = Key((int,), least=1, below=10_000)  # with more a network is not built in any time
NETWORK_KEYS = {
    **dict.fromkeys(('num_in_ch', 'num_out_ch', 'num_feat', 'num_block', 'num_group'), SIZE),
    **dict.fromkeys(('squeeze_factor', 'upscale'), SIZE),
    'img_range': Key(NUMBER, above=0),
}
REGRESSOR_KEYS = {'num_feat': replace(SIZE, least=0), 'num_layer': SIZE}
LOSS_KEYS = {'reduction': Key((str,), choices=('mean', 'sum'))}  # none would leave no scalar to minimise
METRIC_KEYS = {
    'crop_border': Key((int,), required=True, least=0),
    'test_y_channel': Key((bool,), required=True),  # RGB is 1.7 to 2.2 dB lower: which is meant, is to be said
    'input_order': Key((str,), choices=('HWC',)),
}
OPTIM_KEYS = {
    'lr': Key(NUMBER, required=True, above=0),
    'betas': Key((list,), items=NUMBER, least=0, below=1),
    **dict.fromkeys(('eps', 'weight_decay'), Key(NUMBER, least=0)),
    **dict.fromkeys(('foreach', 'fused'), Key((bool, type(None)))),
}
ITERATIONS = Key((list,), required=True, items=(int,), least=1)
SCHEDULER_KEYS = {
    'milestones': ITERATIONS,
    'periods': ITERATIONS,
    'gamma': Key(NUMBER, above=0),
    'restarts': Key((list,), items=(int,), least=0),
    'restart_weights': Key((list,), items=NUMBER, least=0),
    'eta_min': Key(NUMBER, least=0),
}

OPTIMIZERS = {'Adam': torch.optim.Adam}  # all that BasicSR's get_optimizer knows
SCHEDULERS = {
    'MultiStepLR': lr_scheduler.MultiStepRestartLR,
    'MultiStepRestartLR': lr_scheduler.MultiStepRestartLR,
    'CosineAnnealingRestartLR': lr_scheduler.CosineAnnealingRestartLR,
}
