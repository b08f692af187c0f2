"""The VGG-19 of perceptual distances: torchvision's layers, frozen."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import vgg19

from facd_basicsr.errors import advising
from facd_basicsr.files.download import cached, is_url
from facd_basicsr.files.state_dicts import check_fit, load_state_dict

VGG19_WEIGHTS = 'https://download.pytorch.org/models/vgg19-dcbb9e9d.pth'  # torchvision's VGG19_Weights.IMAGENET1K_V1
WHERE = 'train.distill_opt.vgg_weights'
ENDS = (2, 7, 12, 21, 30)  # the slices end after relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
ADVICE = (
    f"accepted: torchvision's vgg19 as an address or a path; without a network, bring {VGG19_WEIGHTS} here and name "
    'its path'
)


class VGGFeatures(nn.Module):
    """The features of VGG-19 after relu1_1, relu2_1, ...: frozen, in eval, in the weights' own type.

    Input (N, 3, H, W) in the range that the caller holds to be right; output (N, 64, H, W), (N, 128, H / 2, W / 2),
    ..., with gradient to the input and none to the weights.

    Args:
        slices: what leads from each feature to the next.
    """

    def __init__(self, slices: list[nn.Module]) -> None:
        super().__init__()
        self.slices = nn.ModuleList(slices).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> 'VGGFeatures':
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        feat = images.to(next(self.parameters()).dtype)
        feats = []
        for layers in self.slices:
            feat = layers(feat)
            feats.append(feat)
        return tuple(feats)


def load_vgg(weights: str, depth: int = len(ENDS)) -> VGGFeatures:
    """Torchvision's VGG-19 up to the last layer that is needed, on the CPU.

    Args:
        weights: path or address of torchvision's ``vgg19`` checkpoint.
        depth: the number of slices, 1 to 5.

    Raises:
        UserError: the file cannot be downloaded or read, or is not of a VGG-19.
    """
    with torch.device('meta'):  # its classifier would be half a gigabyte of random numbers
        layers = vgg19(weights=None).features[: ENDS[depth - 1]]
    with advising(ADVICE):
        path = cached(weights, WHERE, None) if is_url(weights) else Path(weights)
        keys = {key: f'features.{key}' for key in layers.state_dict()}
        checkpoint = load_state_dict(path, WHERE, [keys.values()])
        wanted = {key: checkpoint[name] for key, name in keys.items() if name in checkpoint}
        check_fit(layers, wanted, f'{WHERE}: {path}')
    layers.load_state_dict(wanted, assign=True)
    return VGGFeatures([layers.float()[start:end] for start, end in zip((0, *ENDS), ENDS[:depth])])
