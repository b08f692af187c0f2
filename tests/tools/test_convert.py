from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from click.testing import CliRunner
from conftest import run
from distill.official_networks import official_edsr, official_rcan, with_trained_color_maps
from safetensors.torch import load_file
from torch import Tensor

from facd_basicsr.distill.layouts import DIV2K_MEAN
from facd_basicsr.errors import UserError
from facd_basicsr.tools.convert import command, convert

NETWORKS = {'edsr-pytorch': lambda: official_edsr(8, 3, 4, 0.1), 'rcan': lambda: official_rcan(8, 2, 3, 3)}


def saved(state_dict: dict[str, Tensor], path: Path) -> Path:
    torch.save(state_dict, path)
    return path


def loaded(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('layout', NETWORKS)
@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.safetensors'])
def test_official_to_basicsr_and_back_gives_the_same_file_content(layout, suffix, tmp_path):
    official = NETWORKS[layout]().state_dict()
    source = saved(official, tmp_path / 'source.pt')
    convert(source, tmp_path / f'there{suffix}', 'basicsr', 255.0, DIV2K_MEAN)
    convert(tmp_path / f'there{suffix}', tmp_path / 'back.pt', layout, 255.0, DIV2K_MEAN)
    assert_equal(loaded(tmp_path / 'back.pt'), official)


@pytest.mark.parametrize('layout', NETWORKS)
def test_basicsr_to_official_and_back_gives_the_same_weights(layout, tmp_path):
    net = {
        'edsr-pytorch': {'type': 'EDSRStudent', 'num_feat': 8, 'num_block': 3},
        'rcan': {'type': 'RCANStudent', 'num_feat': 16, 'num_group': 2, 'num_block': 2, 'upscale': 2},
    }[layout]
    state_dict = build_network(net).state_dict()
    source = saved({'params': state_dict}, tmp_path / 'net_g_latest.pth')
    convert(source, tmp_path / 'official.pt', layout, 1.0, (0.5, 0.4, 0.3))
    torch.testing.assert_close(loaded(tmp_path / 'official.pt')['sub_mean.bias'], torch.tensor([-0.5, -0.4, -0.3]))
    block = convert(tmp_path / 'official.pt', tmp_path / 'back.pth', 'basicsr', 255.0, DIV2K_MEAN)
    assert 'img_range: 1.0\n  rgb_mean: [0.5, 0.4, 0.3]\n' in block  # from the file, not the argument
    assert_equal(loaded(tmp_path / 'back.pth')['params'], state_dict)
    convert(source, tmp_path / 'bare.safetensors', 'basicsr', 255.0, DIV2K_MEAN)
    assert_equal(load_file(tmp_path / 'bare.safetensors'), state_dict)


def test_a_mean_other_than_div2ks_is_reported_and_kept(tmp_path):
    official = official_edsr(4, 1, 2, 1.0, mean=(0.469, 0.449, 0.4036)).state_dict()
    source = saved(official, tmp_path / 'source.pt')
    block = convert(source, tmp_path / 'a.pth', 'basicsr', 255.0, DIV2K_MEAN)
    assert 'img_range: 255.0\n  rgb_mean: [0.469, 0.449, 0.4036]\n  res_scale: ?' in block
    convert(source, tmp_path / 'b.pt', 'edsr-pytorch', 255.0, DIV2K_MEAN)
    assert_equal(loaded(tmp_path / 'b.pt'), official)


def test_trained_color_maps_are_folded_into_the_converted_file(tmp_path):
    original = with_trained_color_maps(official_rcan(8, 2, 3, 2))
    source = saved(original.state_dict(), tmp_path / 'source.pt')
    block = convert(source, tmp_path / 'a.pth', 'basicsr', 255.0, DIV2K_MEAN)
    assert '  # with conv_first and conv_last it does what the trained sub_mean and add_mean do\n' in block
    net = build_network(yaml.safe_load(block.replace('?', '1')))
    net.load_state_dict(loaded(tmp_path / 'a.pth')['params'])
    lq = torch.rand(1, 3, 6, 5)
    torch.testing.assert_close(net(lq), original(lq * 255) / 255, rtol=0, atol=4e-6)  # rgb_mean has six digits
    convert(source, tmp_path / 'b.pt', 'rcan', 255.0, DIV2K_MEAN)
    original.load_state_dict(loaded(tmp_path / 'b.pt'))
    torch.testing.assert_close(net(lq), original(lq * 255) / 255, rtol=0, atol=4e-6)
    assert torch.equal(original.sub_mean.weight, torch.eye(3).view(3, 3, 1, 1))


def test_what_cannot_be_converted_is_refused(tmp_path):
    edsr = saved(official_edsr(4, 1, 2, 1.0).state_dict(), tmp_path / 'edsr.pt')
    other = saved({'a.weight': torch.zeros(1)}, tmp_path / 'other.pt')

    def attempt(source: Path, target: str, layout: str = 'basicsr') -> None:
        convert(source, tmp_path / target, layout, 255.0, DIV2K_MEAN)

    with pytest.raises(UserError, match=r'IN: no such file: .*absent.pt'):
        attempt(tmp_path / 'absent.pt', 'out.pth')
    with pytest.raises(UserError, match=r'OUT: .*other.pt exists; accepted: a new file'):
        attempt(edsr, 'other.pt')
    with pytest.raises(UserError, match=r'OUT: .*out.onnx; accepted: a name that ends in .pth, .pt, .safetensors'):
        attempt(edsr, 'out.onnx')
    with pytest.raises(UserError, match=r'other.pt is neither an EDSR nor an RCAN \(first key: a.weight\)'):
        attempt(other, 'out.pth')
    with pytest.raises(UserError, match=r'--to: rcan, but .*edsr.pt is an EDSR; accepted: basicsr, edsr-pytorch'):
        attempt(edsr, 'out.pth', 'rcan')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['edsr.pt', 'other.pt']
    attempt(edsr, 'new/folder/out.pth')
    assert (tmp_path / 'new' / 'folder' / 'out.pth').is_file()


@pytest.mark.parametrize('name', ['out.pth', 'out.safetensors'])
def test_a_full_disk_leaves_no_files(name, tmp_path, monkeypatch):
    source = saved(official_edsr(4, 1, 2, 1.0).state_dict(), tmp_path / 'edsr.pt')

    def full(*_: object) -> None:
        (tmp_path / f'.partial_{name}').write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('torch.save', full)
    monkeypatch.setattr('facd_basicsr.tools.convert.save_file', full)
    with pytest.raises(UserError, match=rf'OUT: .*{name} cannot be written \(.*No space left on device\)'):
        convert(source, tmp_path / name, 'basicsr', 255.0, DIV2K_MEAN)
    assert [path.name for path in tmp_path.iterdir()] == ['edsr.pt']


def test_the_command_prints_the_network_block_of_the_option_file(tmp_path):
    source = saved(official_rcan(8, 2, 3, 4).state_dict(), tmp_path / 'RCAN_BIX4.pt')
    done = run('-m', 'facd_basicsr.cli', 'convert', source, tmp_path / 'out.pth', '--to', 'basicsr', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f'{tmp_path}/out.pth: layout basicsr. In an option file:\n'
        'network:\n'
        '  type: RCAN\n'
        '  num_in_ch: 3\n'
        '  num_out_ch: 3\n'
        '  num_feat: 8\n'
        '  num_block: 3\n'
        '  num_group: 2\n'
        '  squeeze_factor: 4\n'
        '  upscale: 4\n'
        '  img_range: 255.0\n'
        '  rgb_mean: [0.4488, 0.4371, 0.404]\n'
        '  res_scale: ?  # as in training; not stored in a checkpoint\n'
    )
    done = run('-m', 'facd_basicsr.cli', 'convert', source, tmp_path / 'out.pth', '--to', 'rcan', cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f'error: OUT: {tmp_path}/out.pth exists; accepted: a new file\n'


def test_an_unknown_layout_is_refused_with_the_valid_ones(tmp_path):
    result = CliRunner().invoke(command, ['a.pth', 'b.pth', '--to', 'keras'])
    assert result.exit_code == 2
    assert "'keras' is not one of 'basicsr', 'edsr-pytorch', 'rcan'" in result.output
