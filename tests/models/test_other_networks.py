"""BasicSR's networks that are none for super-resolution: refused in a line that names the class and what was found."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from basicsr.archs import build_network, vgg_arch
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import changed, write_yml
from torch import nn

from facd_basicsr.errors import UserError
from facd_basicsr.tools.check import check

FOR_SUPER_RESOLUTION = {'EDSR', 'RCAN', 'RRDBNet', 'MSRResNet', 'SRVGGNetCompact', 'SwinIR', 'ECBSR'}
OF_FRAMES = 'not enough values to unpack (expected 5, got 4)'
REFUSED: dict[str, tuple[dict, str]] = {
    'BasicVSR': ({'num_feat': 4, 'num_block': 1}, OF_FRAMES),
    'BasicVSRPlusPlus': ({'mid_channels': 4, 'num_blocks': 1}, OF_FRAMES),
    'IconVSR': ({'num_feat': 4, 'num_block': 1}, OF_FRAMES),
    'EDVR': ({'num_feat': 8, 'num_reconstruct_block': 1}, OF_FRAMES),
    'DUF': ({'scale': 2, 'num_layer': 16}, OF_FRAMES),
    'TOFlow': ({}, OF_FRAMES),
    'SpyNet': ({}, "missing 1 required positional argument: 'supp'"),
    'RIDNet': (
        {'in_channels': 3, 'mid_channels': 16, 'out_channels': 3, 'num_block': 1},
        'gives (2, 3, 12, 12) for LQ of (2, 3, 12, 12); accepted: (2, 3, 24, 24), as of a network for x2',
    ),
    'HiFaceGAN': ({'num_feat': 4}, 'does not take LQ of 12 x 12 with 3 channels ('),
    'HiFaceGANDiscriminator': ({'num_feat': 4}, 'to have 6 channels, but got 3 channels instead'),
    'StyleGAN2Generator': ({'out_size': 8, 'num_style_feat': 8, 'num_mlp': 1}, 'mat1 and mat2 shapes cannot be multip'),
    'StyleGAN2Discriminator': ({'out_size': 8, 'channel_multiplier': 1}, 'does not take LQ of 12 x 12 with 3 chan'),
    'UNetDiscriminatorSN': ({'num_in_ch': 3, 'num_feat': 4}, 'does not take LQ of 12 x 12 with 3 channels ('),
    'VGGStyleDiscriminator': ({'num_in_ch': 3, 'num_feat': 4}, 'Input size must be identical to input_size'),
    'VGGFeatureExtractor': ({'layer_name_list': ['conv1_1']}, 'gives dict for LQ of (2, 3, 12, 12); accepted: (2, 3, '),
    'DFDNet': ({'num_feat': 4, 'dict_path': 'absent.pth'}, "does not take these values (FileNotFoundError: "),
}  # fmt: skip


def test_every_class_of_basicsr_is_here():
    classes = {cls for _, cls in ARCH_REGISTRY if cls.__module__.startswith('basicsr.')}
    assert {cls.__name__ for cls in classes} == FOR_SUPER_RESOLUTION | REFUSED.keys()


@pytest.fixture(autouse=True)
def vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """BasicSR's feature extractor without the weights that it downloads."""
    features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    monkeypatch.setattr(vgg_arch.vgg, 'vgg19', lambda pretrained: SimpleNamespace(features=features))


@pytest.mark.parametrize('of', ['student', 'teacher', 'student alone'])
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[pytest.mark.slow] * (name == 'HiFaceGAN')) for name in REFUSED]
)
def test_a_network_that_is_none_for_super_resolution_is_refused_by_facd_check(name, of, train_opt, tmp_path):
    arguments, found = REFUSED[name]
    network, opt = {'type': name, **arguments}, train_opt
    if of == 'teacher':
        opt = changed(opt, 'teacher.network', network)
        if name != 'DFDNet':
            torch.save({'params': build_network(network).state_dict()}, tmp_path / 'teacher.pth')
            opt = changed(opt, 'teacher.weights', str(tmp_path / 'teacher.pth'))
    else:
        opt = changed(opt, 'network_g', network)
    if of == 'student alone':
        opt = {key: value for key, value in opt.items() if key not in ('teacher', 'taps', 'network_r')}
        opt |= {'model_type': 'SRModel', 'train': {**opt['train'], 'pixel_opt': {'type': 'L1Loss'}}}
        del opt['train']['distill_opt']
        found = found.replace('(2, ', '(1, ') if name != 'VGGFeatureExtractor' else 'has no weights to train'
    message = refusal(opt, tmp_path)
    key = 'teacher' if of == 'teacher' else 'network_g'
    assert key in message and f' {name} ' in message and found in message
    assert '\n' not in message


def refusal(opt: dict, tmp_path: Path) -> str:
    with pytest.raises(UserError) as error:
        list(check(str(write_yml(opt, tmp_path / 'opt.yml')), []))
    return str(error.value)
