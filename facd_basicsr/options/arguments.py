"""The arguments of networks, losses, metrics, optimizers and schedulers, as far as their signatures do not say it."""

from dataclasses import replace

import torch
from basicsr.archs.vgg_arch import NAMES as VGG_LAYERS
from basicsr.models import lr_scheduler

from facd_basicsr.options.keys import NUMBER
from facd_basicsr.options.signatures import Key

SIZE = Key((int,), least=1, below=10_000)  # with more a network is not built in any time
NETWORK_KEYS = {
    **dict.fromkeys(('num_in_ch', 'num_out_ch', 'num_feat', 'num_block', 'num_group'), SIZE),
    'squeeze_factor': SIZE,
    'upscale': replace(SIZE, meaning='Required: the `scale` of the file. EDSR and RCAN: 3 or a power of 2'),
    'img_range': Key(NUMBER, above=0),
}
REGRESSOR_KEYS = {'num_feat': replace(SIZE, least=0), 'num_layer': SIZE}
LOSS_KEYS = {
    # none would leave no scalar to minimise
    'reduction': Key((str,), choices=('mean', 'sum'), meaning='over all elements of the batch')
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
        (int,), required=True, least=0, meaning='pixels left out at each side; published figures: `scale`'
    ),
    # RGB is 1.7 to 2.2 dB lower: which is meant, is to be said
    'test_y_channel': Key((bool,), required=True, meaning='`true`: of Y of YCbCr, as published; `false`: of RGB'),
    'input_order': Key((str,), choices=('HWC',), meaning='as the images are: leave it out'),
}
OPTIM_KEYS = {
    'lr': Key(NUMBER, required=True, above=0, meaning='learning rate, before warm-up and scheduler'),
    'betas': Key(
        (list,), items=NUMBER, least=0, below=1, meaning='decay of the moving averages of gradient and its square'
    ),
    'eps': Key(NUMBER, least=0, meaning='added to the denominator'),
    'weight_decay': Key(NUMBER, least=0, meaning='factor of the weights that is added to their gradient'),
    'amsgrad': Key((bool,), meaning='divide by the largest second moment so far'),
    'foreach': Key(
        (bool, type(None)), meaning='one kernel for many parameters; `~`: as torch chooses, on GPUs `fused` instead'
    ),
    'maximize': Key((bool,), meaning='climb instead: no use here'),
    'capturable': Key((bool,), meaning='may be recorded in a CUDA graph: no use here'),
    'differentiable': Key((bool,), meaning='gradients through the step itself: no use here'),
    'fused': Key((bool, type(None)), meaning='the step as one kernel; `~`: `true` on GPUs unless `foreach` is given'),
    'decoupled_weight_decay': Key((bool,), meaning='weight decay as in AdamW, past the moments'),
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

OPTIMIZERS = {'Adam': torch.optim.Adam}  # all that BasicSR's get_optimizer knows
SCHEDULERS = {
    'MultiStepLR': lr_scheduler.MultiStepRestartLR,
    'MultiStepRestartLR': lr_scheduler.MultiStepRestartLR,
    'CosineAnnealingRestartLR': lr_scheduler.CosineAnnealingRestartLR,
}
