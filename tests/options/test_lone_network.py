import math

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import pytest
from conftest import STUDENT

from facd_basicsr.deploy.student import describe_network
from facd_basicsr.errors import UserError
from facd_basicsr.options.build import build_lone_network, check_lone_network


@pytest.mark.parametrize(
    'network',
    [
        STUDENT,
        {'type': 'SwinIR', 'upscale': 2, 'upsampler': 'pixelshuffledirect', 'window_size': 8},
        {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'scale': 2, 'num_block': 1},
        {'type': 'SRVGGNetCompact', 'upscale': 2, 'num_conv': 1},
    ],
)
def test_networks_with_every_argument_spelled_out_are_built(network):
    every = describe_network(network, 2).network
    assert type(build_lone_network('x', every, 2)).__name__ == every['type']


@pytest.mark.parametrize(
    'value',
    ['a.pth', 'a/b', '..', 'there', 'a' * 65, 'a\nb', {'a': 1}, ['a.pth'], [[1, 'there']], math.nan, [math.inf], [{}]],
)
def test_an_argument_that_could_name_a_file_is_refused(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there').symlink_to('nowhere')
    with pytest.raises(UserError, match=r'x.spynet_path: .*; accepted: ') as caught:
        check_lone_network('x', {'type': 'BasicVSR', 'spynet_path': value}, 4)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize('value', [None, True, 1, 0.5, '', 'leaky_relu', '1conv', [], [1, 2.5], [[1], [2]]])
def test_plain_arguments_are_accepted(value):
    check_lone_network('x', {'type': 'BasicVSR', 'spynet_path': value}, 4)
