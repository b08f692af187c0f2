"""The teacher block: layouts, contract, refusals. tests/distill/test_spandrel_teacher.py has other architectures."""

import hashlib
import pickle
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from basicsr.archs import build_network
from conftest import TEACHER, build_teacher
from distill.official_networks import DIV2K, official_edsr, official_rcan, with_trained_color_maps
from safetensors.torch import save_file
from torch import Tensor
from wrappings import WRAPPED, prefixed

from facd_basicsr.distill.teacher import Teacher, local_weights
from facd_basicsr.errors import UserError
from facd_basicsr.files.state_dicts import load_state_dict

SCALE = TEACHER['upscale']


@pytest.fixture
def state_dict() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_network(TEACHER).state_dict()


def saved(content: object, tmp_path: Path, **teacher_opt: object) -> dict:
    torch.save(content, tmp_path / 'teacher.pth')
    return {'network': TEACHER, 'weights': str(tmp_path / 'teacher.pth'), **teacher_opt}


def without_network(teacher_opt: dict) -> dict:
    return {key: value for key, value in teacher_opt.items() if key != 'network'}


@pytest.mark.parametrize('wrap', WRAPPED.values(), ids=WRAPPED)
def test_however_a_trainer_wraps_it_the_weights_are_the_same(wrap, state_dict, tmp_path):
    loaded = build_teacher(saved(wrap(state_dict), tmp_path), SCALE).net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state_dict.items())


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_safetensors_load(prefix, state_dict, tmp_path):
    save_file(prefixed(state_dict, prefix), tmp_path / 'teacher.safetensors')
    loaded = build_teacher({'network': TEACHER, 'weights': str(tmp_path / 'teacher.safetensors')}, SCALE)
    assert all(torch.equal(value, state_dict[key]) for key, value in loaded.net.state_dict().items())
    (tmp_path / 'damaged.safetensors').write_bytes((tmp_path / 'teacher.safetensors').read_bytes()[:-7])
    with pytest.raises(UserError, match=r'damaged.safetensors cannot be read as a checkpoint of tensors'):
        build_teacher({'network': TEACHER, 'weights': str(tmp_path / 'damaged.safetensors')}, SCALE)


def test_the_average_is_preferred(state_dict, tmp_path):
    average = {key: value + 1 for key, value in state_dict.items()}
    loaded = build_teacher(saved({'params': state_dict, 'params_ema': average}, tmp_path), SCALE).net.state_dict()
    assert torch.equal(loaded['conv_first.weight'], average['conv_first.weight'])


@pytest.mark.parametrize('wrap', WRAPPED.values(), ids=WRAPPED)
def test_official_layouts_teach_what_the_original_computes(wrap, tmp_path):
    originals = {
        'edsr-pytorch': (
            official_edsr(8, 3, 2, 0.1),
            {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 3, 'res_scale': 0.1},
        ),
        'rcan': (
            official_rcan(8, 2, 2, 2),
            {'type': 'RCANStudent', 'num_feat': 8, 'num_group': 2, 'num_block': 2, 'squeeze_factor': 4},
        ),
    }
    lq = torch.rand(2, 3, 6, 5)
    for layout, (original, network) in originals.items():
        teacher_opt = saved(wrap(original.state_dict()), tmp_path, network={**network, 'upscale': 2})
        expected = original(lq * 255) / 255
        for layout_format in ('auto', layout):
            teacher = build_teacher({**teacher_opt, 'format': layout_format}, 2)
            torch.testing.assert_close(teacher(lq), expected, rtol=0, atol=2e-6)
        with pytest.raises(UserError, match=rf'teacher.format: basicsr, but .*teacher.pth has the keys of {layout}'):
            build_teacher({**teacher_opt, 'format': 'basicsr'}, 2)


def test_another_range_or_mean_than_the_official_checkpoints_is_refused_with_both(tmp_path):
    network = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2}
    opt = saved(official_edsr(4, 1, 2, 1.0, mean=(0.469, 0.449, 0.4036)).state_dict(), tmp_path, network=network)
    with pytest.raises(
        UserError,
        match=r'with img_range: 255.0 and rgb_mean: \[0.469, 0.449, 0.4036\], but teacher.network has 255.0 '
        r"and \[0.4488, 0.4371, 0.404\]; accepted: the checkpoint's",
    ):
        build_teacher(opt, 2)
    network['rgb_mean'] = [0.469, 0.449, 0.4036]
    build_teacher({**opt, 'network': network}, 2)
    with pytest.raises(UserError, match=r'img_range: 255.0 and .* but teacher.network has 1.0 and \[0.469, '):
        build_teacher({**opt, 'network': {**network, 'img_range': 1.0}}, 2)


SMALL_RCAN = {
    'type': 'RCAN',
    'num_in_ch': 3,
    'num_out_ch': 3,
    'num_feat': 8,
    'num_group': 2,
    'num_block': 2,
    'squeeze_factor': 4,
    'upscale': 2,
}


def test_a_checkpoint_for_images_in_0_to_1_needs_that_range_and_not_the_same_product(tmp_path):
    original = official_rcan(8, 2, 2, 2, img_range=1.0)
    opt = saved(original.state_dict(), tmp_path)
    same_product = {'img_range': 255.0, 'rgb_mean': [value / 255 for value in DIV2K]}
    for arguments in ({}, same_product):
        with pytest.raises(
            UserError,
            match=r'with img_range: 1.0 and rgb_mean: \[0.4488, 0.4371, 0.404\], but teacher.network has 255.0',
        ):
            build_teacher({**opt, 'network': {**SMALL_RCAN, **arguments}}, 2)
    teacher = build_teacher({**opt, 'network': {**SMALL_RCAN, 'img_range': 1.0, 'rgb_mean': list(DIV2K)}}, 2)
    lq = torch.rand(2, 3, 6, 5)
    torch.testing.assert_close(teacher(lq), original(lq), rtol=0, atol=2e-6)
    block = r'accepted: teacher.network: \{type: RCAN, .*img_range: 1.0, rgb_mean: \[0.4488, 0.4371, 0.404\]'
    with pytest.raises(UserError, match=r'with an rgb_range of 1.0, but spandrel takes 255.0; ' + block):
        build_teacher(without_network(opt), 2)


def test_a_checkpoint_by_rcans_own_code_which_trains_the_color_maps_teaches_what_it_computes(tmp_path):
    torch.manual_seed(5)
    original = with_trained_color_maps(official_rcan(8, 2, 2, 2))
    teacher = build_teacher(saved(original.state_dict(), tmp_path, network=SMALL_RCAN), 2)
    lq = torch.rand(2, 3, 6, 5)
    torch.testing.assert_close(teacher(lq), original(lq * 255) / 255, rtol=0, atol=2e-6)
    far = {**SMALL_RCAN, 'rgb_mean': [0.3, 0.3, 0.3]}
    with pytest.raises(UserError, match=r'was trained with img_range: 255.0 and .* has 255.0 and \[0.3, 0.3, 0.3\]'):
        build_teacher(saved(original.state_dict(), tmp_path, network=far), 2)
    original.sub_mean.weight.data[0] = original.sub_mean.weight.data[1]
    with pytest.raises(UserError, match=r'maps colors to fewer; .*; or leave teacher.network out: spandrel runs an RC'):
        build_teacher(saved(original.state_dict(), tmp_path, network=SMALL_RCAN), 2)


def test_the_teacher_is_frozen_in_eval_and_not_clamped(state_dict, tmp_path):
    state_dict['conv_last.bias'] += 1000.0
    teacher = build_teacher(saved({'params': state_dict}, tmp_path), SCALE)
    assert not any(module.training for module in teacher.train().modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    sr = teacher(torch.rand(1, 3, 4, 4))
    assert sr.min() > 1 and not sr.requires_grad


@pytest.mark.parametrize(('precision', 'dtype'), [('fp32', torch.float32), ('bf16', torch.bfloat16)])
def test_the_teacher_has_its_own_precision_whatever_the_students(precision, dtype, state_dict, tmp_path):
    teacher = build_teacher(saved({'params': state_dict}, tmp_path, precision=precision), SCALE)
    seen = []
    teacher.net.conv_last.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    lq = torch.rand(1, 3, 4, 4)
    alone = teacher(lq)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(teacher(lq), alone)
    assert seen == [dtype, dtype] and alone.dtype == torch.float32


def test_a_checkpoint_that_does_not_fit_is_refused_with_what_differs(state_dict, tmp_path):
    del state_dict['conv_first.bias']
    state_dict['extra'] = torch.zeros(1)
    state_dict['conv_last.bias'] = torch.zeros(5)
    with pytest.raises(UserError) as error:
        build_teacher(saved({'params': state_dict}, tmp_path), SCALE)
    message = str(error.value)
    assert message.startswith('teacher.weights: ') and '\n' not in message
    assert '1 missing (first: conv_first.bias)' in message
    assert '1 unexpected (first: extra)' in message
    assert '1 of another shape (first: conv_last.bias (5,) for (3,))' in message


def test_a_teacher_of_another_size_or_scale_is_refused(state_dict, tmp_path):
    for change in ({'num_block': 4}, {'num_feat': 8}, {'upscale': 3}):
        with pytest.raises(UserError, match=r'teacher.weights: .*teacher.pth does not fit EDSR: keys'):
            build_teacher(saved(state_dict, tmp_path, network={**TEACHER, **change}), SCALE)


def test_a_network_of_another_scale_is_refused_whatever_its_argument_is_called(tmp_path):
    network = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 4}
    torch.save(build_network(network).state_dict(), tmp_path / 'rrdb.pth')  # x4 if it is not told
    teacher = build_teacher({'network': network, 'weights': str(tmp_path / 'rrdb.pth')}, 2)
    with pytest.raises(
        UserError,
        match=r'teacher: RRDBNet gives \(1, 3, 16, 16\) for LQ of \(1, 3, 4, 4\); accepted: \(1, 3, 8, 8\), as of a '
        r'network for x2',
    ):
        teacher(torch.rand(1, 3, 4, 4))
    assert build_teacher({'network': network, 'weights': str(tmp_path / 'rrdb.pth')}, 4)(torch.rand(1, 3, 4, 4)).shape


def test_a_network_that_gives_no_image_is_refused():
    class Several(torch.nn.Module):
        def forward(self, lq):
            return lq, lq

    with pytest.raises(
        UserError, match=r'teacher: Several gives tuple for LQ of \(1, 3, 4, 4\); accepted: \(1, 3, 4, 4\)'
    ):
        Teacher(Several(), scale=1)(torch.rand(1, 3, 4, 4))


def test_a_misfit_says_what_the_checkpoint_is_of(state_dict, tmp_path):
    with pytest.raises(UserError, match=r'the checkpoint is of \{type: EDSR, .*num_feat: 6, num_block: 3, upscale: 2'):
        build_teacher(saved(state_dict, tmp_path, network={**TEACHER, 'num_block': 5}), SCALE)


def test_sparse_tensors_are_no_weights(state_dict, tmp_path):
    state_dict['conv_last.bias'] = state_dict['conv_last.bias'].to_sparse()
    with pytest.raises(UserError, match=r'teacher.pth holds keys'):
        build_teacher(saved(state_dict, tmp_path), SCALE)


def test_an_unreadable_download_says_where_it_is_from(tmp_path, server, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    (tmp_path / 'bad.pth').write_bytes(b'not a checkpoint')
    with pytest.raises(UserError, match=rf'it came from {server}/bad.pth: delete it to download it again'):
        build_teacher({'network': TEACHER, 'weights': f'{server}/bad.pth'}, SCALE)


def test_without_a_network_an_edsr_is_refused_with_the_block_to_write(state_dict, tmp_path):
    block = r'type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 6, num_block: 3, upscale: 2, res_scale: \?'
    with pytest.raises(UserError, match=r'teacher.network: missing, .*accepted: \{' + block):
        build_teacher(without_network(saved(state_dict, tmp_path)), SCALE)
    block = r'type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 4, num_block: 2, upscale: 3, img_range: 255.0, '
    block += r'rgb_mean: \[0.4488, 0.4371, 0.404\], res_scale: \?'
    with pytest.raises(UserError, match=block):
        build_teacher(without_network(saved(official_edsr(4, 2, 3, 0.1).state_dict(), tmp_path)), 3)


def test_sha256_of_a_local_file_is_checked(state_dict, tmp_path):
    opt = saved(state_dict, tmp_path)
    digest = hashlib.sha256((tmp_path / 'teacher.pth').read_bytes()).hexdigest()
    build_teacher({**opt, 'sha256': digest}, SCALE)
    build_teacher({**opt, 'sha256': digest[:8].upper()}, SCALE)
    with pytest.raises(UserError, match=rf'teacher.sha256: 0000.*teacher.pth has {digest}'):
        build_teacher({**opt, 'sha256': '0' * 64}, SCALE)


class Attack:
    def __reduce__(self):
        return (open, ('attacked', 'w'))


def test_a_checkpoint_that_carries_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'params': Attack()}, tmp_path / 'bad.pth')
    with pytest.raises(UserError, match=r'teacher.weights: .*bad.pth cannot be read as a checkpoint'):
        load_state_dict(tmp_path / 'bad.pth', 'teacher.weights')
    assert not (tmp_path / 'attacked').exists()


@pytest.mark.parametrize(
    'content',
    [b'', b'no checkpoint', b'.', b'a', pickle.dumps([1, 2], protocol=2)],
    ids=['empty', 'text', 'stop', 'append', 'pickle of a list'],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(content, tmp_path):
    (tmp_path / 'bad.pth').write_bytes(content)
    with pytest.raises(UserError, match=r'teacher.weights: .*bad.pth.*accepted') as error:
        load_state_dict(tmp_path / 'bad.pth', 'teacher.weights')
    assert '\n' not in str(error.value)


def test_a_checkpoint_of_something_else_is_refused_with_its_keys(tmp_path):
    torch.save({1: torch.zeros(1)}, tmp_path / 'bad.pth')
    with pytest.raises(UserError, match=r'holds keys \[1\]'):
        load_state_dict(tmp_path / 'bad.pth', 'teacher.weights')
    torch.save({'epoch': 3, 'optimizer': {}}, tmp_path / 'bad.pth')
    with pytest.raises(UserError, match=r"holds keys \['epoch', 'optimizer'\]"):
        load_state_dict(tmp_path / 'bad.pth', 'teacher.weights')


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """The address of ``tmp_path``, served."""
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path))) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


def test_weights_may_be_an_address_and_are_downloaded_once(state_dict, tmp_path, server, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    saved({'params': state_dict}, tmp_path)
    content = (tmp_path / 'teacher.pth').read_bytes()
    (tmp_path / 'teacher.pth').rename(tmp_path / f'teacher-{hashlib.sha256(content).hexdigest()[:8]}.pth')
    (remote,) = tmp_path.glob('teacher-*.pth')
    opt = {'network': TEACHER, 'weights': f'{server}/{remote.name}'}
    for _ in range(2):
        loaded = build_teacher(opt, SCALE).net.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state_dict.items())
        remote.unlink(missing_ok=True)  # the second time it comes from the cache


def test_an_address_with_another_hash_than_its_name_is_refused(state_dict, tmp_path, server, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    saved({'params': state_dict}, tmp_path)
    (tmp_path / 'teacher.pth').rename(tmp_path / 'teacher-76ee1c8f.pth')
    digest = hashlib.sha256((tmp_path / 'teacher-76ee1c8f.pth').read_bytes()).hexdigest()
    opt = {'network': TEACHER, 'weights': f'{server}/teacher-76ee1c8f.pth'}
    with pytest.raises(UserError, match=rf'teacher.weights: .* has sha256 {digest}; accepted: 76ee1c8f'):
        build_teacher(opt, SCALE)
    assert not [path for path in (tmp_path / 'home').rglob('*') if path.is_file() and path.suffix == '.pth']
    build_teacher({**opt, 'sha256': digest}, SCALE)


def test_weights_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert local_weights({'weights': '~/teacher.pth', 'sha256': None}) == tmp_path / 'teacher.pth'


def test_a_home_folder_of_nobody_is_a_name():
    opt = {'weights': '~nobody_has_this_name/teacher.pth', 'sha256': None}
    assert str(local_weights(opt)) == '~nobody_has_this_name/teacher.pth'
