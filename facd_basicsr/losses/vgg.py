"""The VGG of perceptual distances, torchvision's layers, frozen; and contrasts between images as it sees them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from basicsr.archs import vgg_arch
from basicsr.losses.basic_loss import PerceptualLoss
from torch import Tensor, nn
from torchvision.models import get_model_builder, vgg19

from facd_basicsr.errors import UserError
from facd_basicsr.files.state_dicts import load_features
from facd_basicsr.losses.base import DistillLoss, option, sum_of
from facd_basicsr.losses.pairwise import at_least_float32, sample_l1
from facd_basicsr.runtime.processes import ranks, total

VGG19_WEIGHTS = 'https://download.pytorch.org/models/vgg19-dcbb9e9d.pth'  # torchvision's VGG19_Weights.IMAGENET1K_V1
WHERE = 'train.distill_opt.vgg_weights'
ENDS = (2, 7, 12, 21, 30)  # the slices end after relu1_1, relu2_1, relu3_1, relu4_1, relu5_1


class ImageFeatures(nn.Module):
    """Features of images at several depths of a frozen network, in eval, in the weights' own type.

    Input (N, 3, H, W) in the range that the caller holds to be right; output (N, C_1, H, W), (N, C_2, H / 2, W / 2),
    ..., with gradient to the input and none to the weights.

    Args:
        slices: what leads from each feature to the next.
    """

    def __init__(self, slices: Sequence[nn.Module]) -> None:
        super().__init__()
        self.slices = nn.ModuleList(slices).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> 'ImageFeatures':
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        feat = images.to(next(self.parameters()).dtype)
        feats = []
        for layers in self.slices:
            feat = layers(feat)
            feats.append(feat)
        return tuple(feats)


def load_vgg(weights: str, depth: int = len(ENDS)) -> ImageFeatures:
    """The features of torchvision's VGG-19 after relu1_1, relu2_1, ..., of 64, 128, 256, 512, 512 channels, on the CPU.

    Args:
        weights: path or address of torchvision's ``vgg19`` checkpoint.
        depth: the number of slices, 1 to 5.

    Raises:
        UserError: the file cannot be downloaded or read, or is not of a VGG-19.
    """
    layers = load_features(vgg19, weights, WHERE, ENDS[depth - 1])
    return ImageFeatures([layers[start:end] for start, end in zip((0, *ENDS), ENDS[:depth])])


PERCEPTUAL = 'train.perceptual_opt'


def load_perceptual_loss(perceptual_opt: Mapping[str, Any]) -> PerceptualLoss:
    """BasicSR's ``PerceptualLoss`` of an option block, on the CPU.

    Args:
        perceptual_opt: ``train.perceptual_opt``, its arguments and ``vgg_weights``, a path or an address; without it
            BasicSR's path for ``vgg19``, if the file is there, or torchvision's address.

    Raises:
        UserError: the file cannot be downloaded or read, or is not of this VGG.
    """
    options = {key: value for key, value in perceptual_opt.items() if key not in ('type', 'vgg_weights')}
    vgg_type, weights = options.get('vgg_type', 'vgg19'), perceptual_opt.get('vgg_weights')
    if weights is None and vgg_type == 'vgg19' and Path(vgg_arch.VGG_PRETRAIN_PATH).is_file():
        weights = vgg_arch.VGG_PRETRAIN_PATH
    end = 1 + max(map(vgg_layer_names(vgg_type).index, options['layer_weights']))
    layers = load_features(get_model_builder(vgg_type), weights, f'{PERCEPTUAL}.vgg_weights', end)
    # BasicSR's extractor takes no weights: it asks torchvision for a network with them, by `vgg.vgg19(pretrained=True)`
    loaded = SimpleNamespace(**{vgg_type: lambda pretrained: SimpleNamespace(features=layers)})
    with patch.object(vgg_arch, 'vgg', loaded), patch.object(vgg_arch, 'VGG_PRETRAIN_PATH', ''):
        return PerceptualLoss(**options)


def vgg_layer_names(vgg_type: str) -> list[str]:
    """BasicSR's names of the layers of a VGG's ``features``, in their order."""
    names = vgg_arch.NAMES[vgg_type.removesuffix('_bn')]
    return vgg_arch.insert_bn(names) if vgg_type.endswith('_bn') else names


def least_size(vgg_type: str, layers: Sequence[str]) -> int:
    """The smallest height and width of images that reach the deepest of these layers: each pool before it halves."""
    names = vgg_layer_names(vgg_type)
    return 2 ** sum('pool' in name for name in names[: 1 + max(map(names.index, layers))])


def check_images(images: Tensor, least: int, reader: str) -> None:
    """Refuses images, (N, C, H, W), that are none for a VGG, or smaller than ``least``; ``reader`` is what reads them.

    Raises:
        UserError: as said.
    """
    channels, *size = images.shape[1:]
    if channels != 3:
        raise UserError(f'network_g: gives {channels} channels; accepted: 3, for {reader}')
    if min(size) < least:
        raise UserError(f'datasets.train.gt_size: {min(size)}; accepted: {least} or more, for {reader}')


def perceptual_contrast(d_pos: Tensor, d_neg: Tensor, eps: float = 1e-7) -> tuple[Tensor, Tensor]:
    """mean_i d(S_i, T_i) / (mean_i sum_k d(S_i, Neg_ik) + eps) of one layer, over the samples of all ranks.

    Args:
        d_pos: mean absolute differences to the teacher, (N,).
        d_neg: to each negative, (N, K).
        eps: guards the division.

    Returns:
        The ratio, a scalar, and r = mean positive distance / mean negative distance, without gradient.
    """
    pos, neg = total(torch.stack([d_pos.sum(), d_neg.sum()])) / (len(d_pos) * ranks())
    return pos / (neg + eps), (pos / (neg / d_neg.shape[1] + eps)).detach()


Loss = TypeVar('Loss', bound='VGGContrastLoss')


@dataclass(eq=False)
class VGGContrastLoss(DistillLoss):
    """What CSDLoss and DCKDLoss have in common: student to teacher, away from negatives, in features of images."""

    reads_features = False

    lambda_: float = option(1.0, 'weight of the contrast', least=0)
    layer_weights: Sequence[float] = option(
        (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0),
        'of relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1; fewer leave the deeper ones out',
        least=0,
    )
    img_range: float = option(1.0, 'factor on the images, those that the VGG sees too', above=0)
    vgg_weights: str = option(VGG19_WEIGHTS, "path or address of torchvision's `vgg19` checkpoint (548 MB)")
    eps: float = option(1e-7, 'guards the division where all images are equal', least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.layer_weights) <= len(ENDS):
            raise UserError(
                f'train.distill_opt.layer_weights: {len(self.layer_weights)} weights; accepted: 1 to {len(ENDS)}, one '
                'per layer of the VGG'
            )
        self.features: ImageFeatures | None = None  # from prepare()

    def prepare(self: Loss) -> Loss:
        """Loads the VGG, and downloads it when it is asked for first.

        Raises:
            UserError: it cannot be downloaded, or its file is another network's.
        """
        self.features = load_vgg(self.vgg_weights, len(self.layer_weights))
        return self

    def contrast(
        self, student: Tensor, teacher: Tensor, negatives: Tensor, distances: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """lambda times the weighted contrasts of all layers.

        Args:
            student, teacher: (N, 3, H, W).
            negatives: (K, 3, H, W), without gradient.
            distances: of the student's features, (N, C, h, w), to the negatives', (K, C, h, w): (N, ...).

        Returns:
            Scalar, and ``r_1``, ``r_2``, ..., d+ / d- at each layer, without gradient.

        Raises:
            UserError: the images are none for the features' network.
        """
        name = type(self).__name__
        if self.features is None:
            raise RuntimeError(f'{name}: prepare() loads its network of features, and comes before the first forward')
        least = 2 ** (len(self.layer_weights) - 1)  # each layer but the first has half the height and width
        check_images(student, least, f'the features of {name}')
        with torch.no_grad():
            teacher_feats, negative_feats = (
                self.features(self.img_range * at_least_float32(images)) for images in (teacher, negatives)
            )
        student_feats = self.features(self.img_range * at_least_float32(student))
        terms: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        layers = zip(self.layer_weights, student_feats, teacher_feats, negative_feats)
        for j, (w_j, student_feat, teacher_feat, negative_feat) in enumerate(layers, start=1):
            d_pos, d_neg = sample_l1(student_feat, teacher_feat), distances(student_feat, negative_feat)
            l_j, logs[f'r_{j}'] = perceptual_contrast(d_pos, d_neg, self.eps)
            terms.append(w_j * l_j)
        return self.lambda_ * sum_of(terms), logs
