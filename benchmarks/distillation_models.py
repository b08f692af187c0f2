"""The models that distillation_step.py compares, of one option file, with a random teacher and random data."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.models.base_model import BaseModel
from basicsr.utils import set_random_seed
from basicsr.utils.registry import MODEL_REGISTRY

from facd_basicsr.models import FACDModel
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options.parse import checked_options
from facd_basicsr.options.schema import EXECUTION

# Precision, layout and compilation: keys of `train`, applied to the teacher too. The ones that take minutes to
# compile are last.
EXECUTIONS: dict[str, dict[str, Any]] = {
    'fp32': {'precision': 'fp32'},
    'fp32, channels_last': {'precision': 'fp32', 'channels_last': True},
    'bf16': {'precision': 'bf16'},
    'bf16, channels_last': {'precision': 'bf16', 'channels_last': True},
    'fp32, channels_last, compiled': {'precision': 'fp32', 'channels_last': True, 'compile': {}},
    'bf16, channels_last, compiled': {'precision': 'bf16', 'channels_last': True, 'compile': {}},
}
EAGER = {name: execution for name, execution in EXECUTIONS.items() if 'compile' not in execution}
EXECUTIONS_CUDA = {
    'tf32': {'precision': 'tf32'},
    'tf32, channels_last': {'precision': 'tf32', 'channels_last': True},
    **EAGER,
    'bf16, channels_last, CUDA graphs': {
        'precision': 'bf16',
        'channels_last': True,
        'compile': {'mode': 'reduce-overhead'},
    },
    'bf16, channels_last, compiled': EXECUTIONS['bf16, channels_last, compiled'],
}


def executions() -> dict[str, dict[str, Any]]:
    """The executions for this machine's device."""
    return EXECUTIONS_CUDA if torch.cuda.is_available() else EXECUTIONS


def random_teacher(network: dict[str, Any], folder: Path) -> Path:
    """A checkpoint of a ``teacher.network`` block with seeded random weights."""
    set_random_seed(1)
    path = folder / 'teacher.pth'
    torch.save({'params': build_network(network).state_dict()}, path)
    return path


def options(option_file: Path, folder: Path, batch: int, patch: int) -> dict[str, Any]:
    """A complete option dict for distillation from a teacher with random weights.

    Args:
        folder: for the teacher's checkpoint, and the batches of steps that are not finite.
        batch: samples in a step.
        patch: height and width of LQ.
    """
    opt = checked_options(str(option_file), [], is_train=True)
    opt['teacher'] |= {'weights': str(random_teacher(opt['teacher']['network'], folder)), 'sha256': None}
    opt['teacher'] |= {key: accepted.default for key, accepted in EXECUTION.items()}
    opt['datasets'] = {'train': {'batch_size_per_gpu': batch, 'gt_size': patch * opt['scale']}}
    opt['path']['experiments_root'] = str(folder)
    gpus = min(1, torch.cuda.device_count())
    return opt | {'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'num_gpu': gpus, 'root_path': '.'}


def with_execution(opt: dict[str, Any], execution: Mapping[str, Any]) -> dict[str, Any]:
    """The option dict with this execution for all networks."""
    opt = copy.deepcopy(opt)
    opt['train'] |= execution
    opt['teacher'] |= execution
    return opt


def ours(opt: dict[str, Any]) -> FACDModel:
    """As train.py builds it."""
    set_random_seed(0)
    return build_model(opt)


def train_step(model: FACDModel, batch: dict[str, torch.Tensor], current_iter: int) -> None:
    """A step of train.py's loop."""
    model.feed_data(batch)
    model.optimize_parameters(current_iter)
    model.guard.after_step(batch, current_iter)


def naive(opt: dict[str, Any]) -> BaseModel:
    """The baseline in naive_distillation.py."""
    set_random_seed(0)
    return MODEL_REGISTRY.get('NaiveDistillationModel')(copy.deepcopy(opt))


def student_alone(opt: dict[str, Any]) -> BaseModel:
    """BasicSR's own SRModel with the student and an L1 loss."""
    opt = copy.deepcopy(opt)
    opt['train']['pixel_opt'] = {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}
    set_random_seed(0)
    return MODEL_REGISTRY.get('SRModel')(opt)


def random_batch(opt: dict[str, Any]) -> dict[str, torch.Tensor]:
    """{lq, gt}, (N, 3, h, w) and (N, 3, h * scale, w * scale), in pinned memory if there is a GPU."""
    train_opt = opt['datasets']['train']
    n, size = train_opt['batch_size_per_gpu'], train_opt['gt_size']
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(n, 3, size, size, generator=generator)
    lq = torch.nn.functional.avg_pool2d(gt, opt['scale'])
    batch = {'lq': lq, 'gt': gt}
    return {key: value.pin_memory() for key, value in batch.items()} if torch.cuda.is_available() else batch
