"""Small states for the tests of losses, and options for each."""

from dataclasses import replace
from pathlib import Path

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from conftest import changed
from torchvision.models import vgg19

from facd_basicsr.losses import DistillLoss, DistillState
from facd_basicsr.losses.vgg import ENDS


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
    )


def with_student(state: DistillState, student: torch.Tensor, *feats: torch.Tensor) -> DistillState:
    """The state with another student's output and features, for gradcheck."""
    return replace(state, student=student, student_feats=feats)


def widened(state: DistillState) -> DistillState:
    """The state in float64; what required gradients still does."""

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    return DistillState(
        *(wide(getattr(state, name)) for name in ('student', 'teacher', 'gt', 'lq')),
        *(tuple(wide(feat) for feat in getattr(state, name)) for name in ('student_feats', 'teacher_feats')),
    )


def summed(logs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The total loss."""
    return sum(value for name, value in logs.items() if name.startswith('l_'))


def save_vgg(path: Path, depth: int) -> Path:
    """Writes a checkpoint of a random VGG-19 in torchvision's layout, with the layers that ``depth`` slices need."""
    with torch.device('meta'):
        layers = vgg19(weights=None).features[: ENDS[depth - 1]]
    generator = torch.Generator().manual_seed(0)
    deviations = {key: (2 / value[0].numel()) ** 0.5 for key, value in layers.state_dict().items()}
    weights = {
        f'features.{key}': torch.randn(value.shape, generator=generator) * deviations[key] * key.endswith('weight')
        for key, value in layers.state_dict().items()
    }
    torch.save({**weights, 'classifier.0.bias': torch.zeros(2)}, path)
    return path


LOSSES = {
    name: loss
    for name, loss in LOSS_REGISTRY
    if issubclass(loss, DistillLoss) and loss.__module__.startswith('facd_basicsr.losses.')
}


def method_opt(train_opt: dict, name: str, tmp_path: Path) -> dict:
    """The options of FACD's fixture with another loss, and the taps and regressors that this one takes."""
    loss = LOSSES[name]
    opt = changed(train_opt, 'train.distill_opt', {'type': name})
    if name == 'CSDLoss':
        opt['train']['distill_opt'] |= {
            'vgg_weights': str(save_vgg(tmp_path / 'vgg.pth', 2)),
            'layer_weights': [0.5, 1],
        }
    if not loss.reads_features:
        del opt['taps']
    if not (loss.reads_features and loss.compares_channels):
        del opt['network_r']
    return opt
