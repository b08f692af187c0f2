"""spandrel's architectures as students: the extra `spandrel` is part of `dev`."""

import re

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import changed, run
from networks import SIZES, UPSCALING
from torch import nn

from facd_basicsr.archs import CHANNELS, OUT_CHANNELS, channels_argument, input_channels
from facd_basicsr.archs.spandrel_arch import CLASSES, differs, registered_name
from facd_basicsr.deploy.student import describe_network
from facd_basicsr.errors import UserError
from facd_basicsr.options.build import build_lone_network, dry_run
from facd_basicsr.options.option_check import check_options

spandrel = pytest.importorskip('spandrel')

SPAN, SWINIR = UPSCALING['SPAN'], UPSCALING['Swin2SR']
WITHOUT_SCALE = {'UpCunet2x', 'UpCunet2x_fast', 'UpCunet3x', 'UpCunet4x'}  # their names say it
# What spandrel supposes instead of reading it off a checkpoint, where a default differs from that.
SUPPOSED = {
    'GRL': {'window_size', 'stripe_size', 'stripe_shift', 'anchor_window_down_factor'},
    'MoESR': {'expansion_factor'},
}
OWN = {  # BasicSR's, which spandrel reads as they are
    'SRVGGNetCompact': {'num_feat': 8, 'num_conv': 2, 'upscale': 2},
    'SwinIR': SWINIR,
    'RRDBNet': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'scale': 4},
}


def block(name: str) -> dict:
    return {'type': name, **{**UPSCALING, **OWN}[name]}


def built(network_opt: dict) -> nn.Module:
    torch.manual_seed(0)
    return build_network(network_opt).eval()


@pytest.mark.parametrize('name', [*UPSCALING, *OWN])
def test_what_is_built_here_opens_in_spandrel_as_the_same_network(name):
    net, size = built(block(name)), SIZES.get(name, 32)
    found = spandrel.ModelLoader('cpu').load_from_state_dict({'params': net.state_dict()})
    assert any(issubclass(cls, type(found.model)) for cls in CLASSES[found.architecture.id])
    lq = torch.rand(1, 3, size, size)
    with torch.no_grad():
        given = lq.clone()
        own, theirs = net(given), found.model.eval()(lq.clone())
    assert torch.equal(given, lq)  # spandrel's own RCAN works on its input in place
    assert own.shape == (1, 3, found.scale * size, found.scale * size)
    if name in UPSCALING:
        assert isinstance(net, type(found.model))
        arguments = net.hyperparameters, found.model.hyperparameters
        differing = {key for key, value in arguments[0].items() if differs(value, arguments[1][key])}
        assert differing == SUPPOSED.get(name, set())
    assert torch.equal(own, theirs) or name == 'GRL'


def test_every_class_of_every_architecture_is_registered():
    assert len(CLASSES) == len(spandrel.MAIN_REGISTRY)
    assert all(
        classes and all(ARCH_REGISTRY.get(registered_name(cls)) is cls for cls in classes)
        for classes in CLASSES.values()
    )


@pytest.mark.parametrize(
    ('name', 'package', 'full'),
    [
        ('SPAN', 'spandrel', 'SPAN'),
        ('SPAN_spandrel', 'spandrel', 'SPAN'),
        ('RCAN', 'basicsr', 'RCAN'),
        ('RCAN_spandrel', 'spandrel', 'RCAN_spandrel'),
        ('SwinIR', 'basicsr', 'SwinIR'),
        ('RRDBNet', 'basicsr', 'RRDBNet'),
        ('SRVGGNetCompact', 'basicsr', 'SRVGGNetCompact'),
        ('SRVGGNetCompact_basicsr', 'basicsr', 'SRVGGNetCompact'),
        ('SRVGGNetCompact_spandrel', 'spandrel', 'SRVGGNetCompact_spandrel'),
    ],
)
def test_a_name_is_basicsrs_before_it_is_spandrels(name, package, full, capsys):
    cls = ARCH_REGISTRY.get(name)
    assert cls.__mro__[name == 'RCAN_spandrel'].__module__.startswith(f'{package}.')
    assert registered_name(cls) == full
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('name', UPSCALING)
def test_a_description_builds_the_same_class_again(name):
    network_opt = block(name)
    description = describe_network(network_opt, 2)
    assert description.architecture == name
    assert type(build_lone_network('x', description.network, 2)) is ARCH_REGISTRY.get(name)


@pytest.mark.parametrize('name', UPSCALING)
def test_a_scale_must_be_the_files(name, test_opt):
    opt = changed(test_opt, 'network_g', block(name))
    opt['path']['pretrain_network_g'] = 'net_g.pth'
    dry_run(check_options(opt, is_train=False), is_train=False)
    if name in WITHOUT_SCALE:
        return
    ((key, value),) = ((key, value) for key, value in UPSCALING[name].items() if 'scal' in key)
    with pytest.raises(UserError, match=re.escape(f'network_g.{key}: {value}; accepted: 3, the scale of this file')):
        check_options({**opt, 'scale': 3}, is_train=False)
    with pytest.raises(UserError, match=f'network_g.{key}: missing'):
        check_options(changed(opt, f'network_g.{key}', ...), is_train=False)


@pytest.mark.parametrize(
    ('network_opt', 'channels', 'out'),
    [
        ({'type': 'SPAN', 'num_in_ch': 1, 'num_out_ch': 3}, 1, ('num_out_ch', 3)),
        ({'type': 'DITN_Real', 'inp_channels': 1}, 1, ('inp_channels', 1)),  # it gives as many as it takes
        ({'type': 'DCTLSA', 'in_nc': 1, 'out_nc': 4}, 1, ('out_nc', 4)),
        ({'type': 'MoSR', 'in_ch': 4, 'out_ch': 1}, 4, ('out_ch', 1)),
        ({'type': 'RCAN_spandrel', 'n_colors': 1}, 1, ('n_colors', 1)),
        ({'type': 'NAFNet', 'img_channel': 1}, 1, ('img_channel', 1)),
        ({'type': 'Uformer', 'in_chans': 1}, 1, ('in_chans', 1)),
        ({'type': 'SAFMN', 'dim': 8}, 3, ('num_out_ch', 3)),
    ],
)
def test_channels_are_found_under_every_name(network_opt, channels, out):
    assert input_channels(network_opt) == channels == channels_argument(network_opt, CHANNELS)[1]
    assert channels_argument(network_opt, OUT_CHANNELS) == out


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (
            'Compact',
            "it is spandrel's name of an architecture, not of a class; accepted: SRVGGNetCompact, SRVGGNetComp",
        ),
        ('ESRGAN', 'accepted: RRDBNet, RRDBNet_spandrel'),
        ('Swift-SRGAN', 'accepted: Generator'),
        ('plksr', 'accepted: PLKSR, RealPLKSR'),
        ('SRFormer', 'its license, non-commercial or copyleft, keeps it out of spandrel'),
        ('restormer', 'its license, non-commercial or copyleft, keeps it out of spandrel'),
        ('SPANN', "did you mean 'SPAN'? Accepted: "),
        ('Anything', 'RCANStudent, RCAN_spandrel, '),
    ],
)
def test_a_name_that_is_no_class_says_what_is(name, message, test_opt):
    opt = changed(test_opt, 'network_g', {'type': name})
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        check_options(opt, is_train=False)
    assert str(caught.value).startswith(f'network_g.type: {name!r} is not registered')


WITHOUT_SPANDREL = """
import sys
sys.modules['spandrel'] = None  # as if it were not installed
import facd_basicsr
from facd_basicsr.options.option_check import check_network
try:
    check_network('network_g', {'type': 'SPAN'}, 2)
except ValueError as error:
    print(error)
"""


def test_without_spandrel_a_line_says_what_to_install(tmp_path):
    done = run('-c', WITHOUT_SPANDREL, cwd=tmp_path)
    assert done.stderr == ''
    assert done.stdout.startswith(
        "network_g.type: 'SPAN' is not registered; spandrel's networks need `pip install 'facd_basicsr[spandrel]'`; "
    )


def test_building_draws_from_the_seed_alone():
    first, second = built(SPAN), built(SPAN)
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
