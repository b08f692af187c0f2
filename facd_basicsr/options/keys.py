"""The keys of an option file, where no signature or source says what they are."""

import torch
from basicsr.models import lr_scheduler

from facd_basicsr.options.signatures import Key

NUMBER = (int, float)
OPTIONAL_STR = (str, type(None))

# Filled in by facd_basicsr.options or by BasicSR, so not for the option file.
DERIVED = {'dist', 'rank', 'world_size', 'is_train', 'auto_resume', 'root_path', 'phase', 'scale'}

TOP = {
    'name': Key((str,), required=True),
    'model_type': Key((str,), required=True),
    'scale': Key((int,), required=True),
    'num_gpu': Key((int, str), required=True),
    'manual_seed': Key((int, type(None))),  # none: drawn
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
    'prefetch_mode': Key(OPTIONAL_STR),
    'num_prefetch_queue': Key((int,)),
}
DATASET_TRAIN = {
    'num_worker_per_gpu': Key((int,), required=True),
    'batch_size_per_gpu': Key((int,), required=True),
    'dataset_enlarge_ratio': Key((int,)),
    'use_shuffle': Key((bool,)),
}
# Types of what datasets read from their block; a key of a registered dataset that is not here accepts any value.
DATASET_TYPES = {
    'dataroot_gt': (str,),
    'dataroot_lq': (str,),
    'meta_info_file': OPTIONAL_STR,
    'filename_tmpl': (str,),
    'io_backend': (dict,),
    'gt_size': (int,),
    'use_hflip': (bool,),
    'use_rot': (bool,),
}
DATASET_REQUIRED = {'PairedImageDataset': {'dataroot_gt', 'dataroot_lq', 'io_backend'}}
DATASET_REQUIRED_TRAIN = {'PairedImageDataset': {'gt_size', 'use_hflip', 'use_rot'}}
TRAIN = {
    'total_iter': Key((int,), required=True),
    'warmup_iter': Key((int,)),
    'optim_g': Key((dict,), required=True),
    'scheduler': Key((dict,), required=True),
    'nonfinite': Key((dict,)),
}
NONFINITE = {'action': Key((str,)), 'limit': Key((int,))}
TRAIN_TYPES = {
    'ema_decay': NUMBER,
    'precision': (str,),
    'distill_opt': (dict,),
    'pixel_opt': (dict,),
    'perceptual_opt': (dict,),
}
VAL = {'metrics': Key((dict, type(None))), 'pbar': Key((bool,)), 'save_img': Key((bool,), required=True)}
VAL_TRAIN = {**VAL, 'val_freq': Key(NUMBER, required=True)}
VAL_TEST = {**VAL, 'suffix': Key(OPTIONAL_STR, required=True)}
LOGGER = {
    'print_freq': Key((int,), required=True),
    'save_checkpoint_freq': Key(NUMBER, required=True),
    'use_tb_logger': Key((bool,), required=True),
    'wandb': Key((dict, type(None))),
}
WANDB = {'project': Key(OPTIONAL_STR), 'resume_id': Key(OPTIONAL_STR)}
TEACHER = {
    'network': Key((dict,)),
    'weights': Key((str,), required=True),
    'format': Key((str,)),
    'sha256': Key(),  # a number if it lacks its quotes
    'precision': Key((str,)),
    'expect': Key((dict,)),
}
EXPECT = {
    'dataset': Key((str,), required=True),
    'psnr_y': Key(NUMBER, required=True),
    'tolerance': Key(NUMBER, required=True),
}
TAP = {'student': Key((str,), required=True), 'teacher': Key((str,), required=True)}
METRIC = {'type': Key((str,), required=True), 'better': Key((str,))}
DIST_PARAMS = {'backend': Key((str,)), 'port': Key((int,))}

PREFETCH_MODES = (None, 'cpu', 'cuda')

# What signatures do not say.
METRIC_KEYS = {'crop_border': Key((int,), required=True)}
OPTIM_KEYS = {'lr': Key(NUMBER, required=True)}
WHOLE_NUMBERS = Key((list,), required=True, items=(int,))
SCHEDULER_KEYS = {'milestones': WHOLE_NUMBERS, 'periods': WHOLE_NUMBERS}

OPTIMIZERS = {'Adam': torch.optim.Adam}  # all that BasicSR's get_optimizer knows
SCHEDULERS = {
    'MultiStepLR': lr_scheduler.MultiStepRestartLR,
    'MultiStepRestartLR': lr_scheduler.MultiStepRestartLR,
    'CosineAnnealingRestartLR': lr_scheduler.CosineAnnealingRestartLR,
}
