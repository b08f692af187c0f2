"""What BasicSR's PerceptualLoss, which is built with a VGG that it downloads, would refuse only then."""

from typing import Any

from basicsr.archs.vgg_arch import NAMES as VGG_LAYERS
from basicsr.archs.vgg_arch import insert_bn
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.utils.registry import LOSS_REGISTRY

from facd_basicsr.errors import UserError
from facd_basicsr.options.blocks import check_type, did_you_mean
from facd_basicsr.options.keys import NUMBER


def check_vgg_layers(where: str, block: dict[str, Any]) -> None:
    """Compares the layers of a block whose keys are checked with those that its VGG has. Other losses pass.

    Raises:
        UserError: there is none, it is of another VGG, or its weight is no number.
    """
    if LOSS_REGISTRY.get(block['type']) is not PerceptualLoss:
        return
    where, vgg, weights = f'{where}.layer_weights', block.get('vgg_type', 'vgg19'), block['layer_weights']
    layers = VGG_LAYERS[vgg.removesuffix('_bn')]
    if vgg.endswith('_bn'):
        layers = insert_bn(layers)
    if not weights:
        raise UserError(f'{where}: {{}}; accepted: a weight for one layer or more, e.g. {{conv5_4: 1.0}}')
    for layer, weight in weights.items():
        if layer not in layers:
            raise UserError(f'{where}.{layer}: no layer of {vgg}{did_you_mean(str(layer), layers)}')
        check_type(f'{where}.{layer}', weight, NUMBER)
