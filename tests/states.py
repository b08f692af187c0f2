"""Small states for the tests of losses, and options for each."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from conftest import changed, save_features
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import vgg19

from facd_basicsr.losses import DistillLoss, DistillState
from facd_basicsr.losses.base import NETWORKS
from facd_basicsr.losses.vgg import ENDS, VGGContrastLoss


def images(*values: float) -> torch.Tensor:
    """One-pixel gray images: (N, 1, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]


def random_state(
    n: int = 4, taps: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0, channels: tuple[int, int] = (2, 2)
) -> DistillState:
    """x2, 4 x 4 images, 3 x 3 features with ``channels`` of student and teacher; the student's require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    gt = rand(n, 3, 4, 4)
    return DistillState(
        student=(gt + 0.2 * rand(n, 3, 4, 4) - 0.1).requires_grad_(),
        teacher=gt + 0.2 * rand(n, 3, 4, 4) - 0.1,
        gt=gt,
        lq=rand(n, 3, 2, 2),
        student_feats=tuple(rand(n, channels[0], 3, 3).requires_grad_() for _ in range(taps)),
        teacher_feats=tuple(rand(n, channels[1], 3, 3) for _ in range(taps)),
        seeds=tuple(range(seed, seed + n)),
    )


def network(name: str, lq: torch.Tensor) -> torch.Tensor:
    """In the place of student, teacher or average: a curve of each pixel of its own, x2."""
    colors = lq + (0.1 + 0.1 * NETWORKS.index(name)) * lq * (1 - lq)
    return colors.repeat_interleave(2, 2).repeat_interleave(2, 3)


def with_views(loss: DistillLoss, state: DistillState) -> DistillState:
    """The state with what the views of a loss ask for; what is the student's requires gradients."""
    views = {}
    for name, view in loss.views.items():
        with torch.no_grad():
            lq = view.derive(state)
            views[name] = {'input': lq, **{own: network(own, lq) for own in view.networks}}
        if 'student' in view.networks:
            views[name]['student'].requires_grad_()
    return replace(state, views=views)


def seen(loss: DistillLoss, state: DistillState) -> tuple[torch.Tensor, ...]:
    """What of the student the loss sees: on LQ, on its views, and its features."""
    on_lq = (state.student,) if 'student' in loss.reads else ()
    on_views = tuple(state.views[name]['student'] for name, view in loss.views.items() if 'student' in view.networks)
    return (*on_lq, *on_views, *(state.student_feats if loss.reads_features else ()))


def with_seen(state: DistillState, old: tuple[torch.Tensor, ...], new: tuple[torch.Tensor, ...]) -> DistillState:
    """The state with other tensors in the place of some of :func:`seen`, for gradcheck."""
    found = dict(zip(map(id, old), new))
    return changed_tensors(state, lambda tensor: found.get(id(tensor), tensor))


def changed_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a state, or of what is in it, with every tensor changed."""
    if isinstance(value, DistillState):
        return DistillState(*(changed_tensors(getattr(value, own.name), change) for own in fields(value)))
    if isinstance(value, Mapping):
        return {key: changed_tensors(own, change) for key, own in value.items()}
    if isinstance(value, tuple):
        return tuple(changed_tensors(own, change) for own in value)
    return change(value) if isinstance(value, torch.Tensor) else value


def with_student(state: DistillState, student: torch.Tensor, *feats: torch.Tensor) -> DistillState:
    """The state with another student's output and features, for gradcheck."""
    return replace(state, student=student, student_feats=feats)


def widened(state: DistillState) -> DistillState:
    """The state in float64; what required gradients still does."""
    return changed_tensors(state, lambda tensor: tensor.detach().double().requires_grad_(tensor.requires_grad))


def summed(logs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The total loss."""
    return sum(value for name, value in logs.items() if name.startswith('l_'))


def save_vgg(path: Path, depth: int) -> Path:
    """Writes a checkpoint of a random VGG-19 in torchvision's layout, with the layers that ``depth`` slices need."""
    return save_features(path, vgg19, ENDS[depth - 1])


class LargestTensor(TorchDispatchMode):
    """``numel`` of the largest tensor that an operation gives in it."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


LOSSES = {
    name: loss
    for name, loss in LOSS_REGISTRY
    if issubclass(loss, DistillLoss) and loss.__module__.startswith('facd_basicsr.losses.')
}


def needed_options(name: str, folder: Path) -> dict[str, Any]:
    """The options of a loss without a default, or with one too large for a test; files are written to ``folder``."""
    if issubclass(LOSSES[name], VGGContrastLoss):  # 4 x 4 are enough for relu2_1
        return {'vgg_weights': str(save_vgg(folder / 'vgg.pth', 2)), 'layer_weights': [0.5, 1.0]}
    return {'alpha': 0.4} if name == 'ECOLoss' else {}


def method_opt(train_opt: dict, name: str, tmp_path: Path) -> dict:
    """The options of FACD's fixture with another loss, and the taps and regressors that this one takes."""
    loss = LOSSES[name]
    opt = changed(train_opt, 'train.distill_opt', {'type': name})
    opt['train']['distill_opt'] |= needed_options(name, tmp_path)
    if not loss.reads_features:
        del opt['taps']
    if not (loss.reads_features and loss.compares_channels):
        del opt['network_r']
    return opt
