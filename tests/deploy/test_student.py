import hashlib
from pathlib import Path

import onnx
import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from conftest import STUDENT, changed, write_yml
from onnx import TensorProto, helper
from runs import write_options
from safetensors.torch import save_file
from torch import nn

from facd_basicsr.deploy.student import METADATA, Student, describe_network, read_student
from facd_basicsr.errors import UserError
from facd_basicsr.tools.show import show

ARGUMENTS = '{"num_in_ch": 3, "num_out_ch": 3, "upscale": 2}'


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return build_network(STUDENT)


@pytest.fixture
def run(net, train_opt, tmp_path) -> Path:
    """``experiments/tiny`` as a run leaves it, as far as it matters here."""
    run = tmp_path / 'experiments' / 'tiny'
    (run / 'models').mkdir(parents=True)
    torch.save({'params': net.state_dict()}, run / 'models' / 'net_g_latest.pth')
    say(run, write_yml(train_opt, tmp_path / 'FACD.yml'), train_opt)
    return run


def say(run: Path, option_file: Path, opt: dict) -> None:
    """Writes the options of the run: of a file, with what the command line has changed in them."""
    facts = {'option_file': str(option_file), 'option_sha256': hash_of(show(str(option_file), []))}
    write_options(run, opt, {'start': '2026-01-02T03:04:05.678+01:00', 'iter': 0, **facts})


def assert_is(student: Student, net: nn.Module) -> None:
    assert type(student.net) is EDSR and not student.net.training
    assert not any(parameter.requires_grad for parameter in student.net.parameters())
    lq = torch.rand(1, 3, 6, 5)
    assert torch.equal(student.net(lq), net.eval()(lq))


def test_a_checkpoint_of_a_run_is_described_by_the_runs_options(run, net, tmp_path):
    student = read_student(run / 'models' / 'net_g_latest.pth')
    assert_is(student, net)
    description = student.description
    assert (description.name, description.option_file, description.scale) == ('tiny', 'FACD.yml', 2)
    assert description.option_sha256 == hash_of(show(str(tmp_path / 'FACD.yml'), []))
    assert (description.reach, description.psnr) == (None, {})


def test_a_checkpoint_elsewhere_needs_a_train_or_test_file(net, train_opt, test_opt, tmp_path):
    torch.save({'params': net.state_dict()}, tmp_path / 'a.pth')
    test_opt['path']['pretrain_network_g'] = 'absent.pth'
    train_opt['teacher']['weights'] = 'absent.pth'
    for opt in (train_opt, test_opt):
        option_file = write_yml({**opt, 'name': 'given'}, tmp_path / 'given.yml')
        student = read_student(tmp_path / 'a.pth', str(option_file))
        assert_is(student, net)
        assert student.description.name == 'given'
    with pytest.raises(UserError, match=r'IN: .*a.pth does not name its network; accepted: with --opt FILE'):
        read_student(tmp_path / 'a.pth')


def test_of_a_run_of_an_older_version_the_option_file_has_to_be_named(run, tmp_path):
    (run / 'options.yml').rename(run / 'FACD.yml')
    path = run / 'models' / 'net_g_latest.pth'
    with pytest.raises(
        UserError, match=r'IN: .*latest.pth does not name its network; accepted: with --opt FILE, the op'
    ):
        read_student(path)
    assert read_student(path, str(tmp_path / 'FACD.yml')).description.name == 'tiny'


def test_what_the_command_line_changed_is_in_the_description_but_not_in_the_hash_of_the_file(run, train_opt, tmp_path):
    path = run / 'models' / 'net_g_latest.pth'
    of_the_file = read_student(path).description
    opt = changed(changed(train_opt, 'network_g.res_scale', 0.1), 'name', 'forced')
    say(run, tmp_path / 'FACD.yml', opt)
    student = read_student(path)
    assert (student.description.arguments['res_scale'], student.description.name) == (0.1, 'forced')
    assert student.net.body[0].res_scale == 0.1
    assert student.description.option_sha256 == of_the_file.option_sha256


def test_an_option_file_of_another_network_than_the_run_had_is_refused(run, net, train_opt, test_opt, tmp_path):
    path = run / 'models' / 'net_g_latest.pth'
    say(run, tmp_path / 'FACD.yml', changed(train_opt, 'network_g.res_scale', 0.1))
    with pytest.raises(UserError, match=r'--opt: .*FACD.yml: network_g.res_scale: 1.0, but the run of .* had 0.1; acc'):
        read_student(path, str(tmp_path / 'FACD.yml'))
    elsewhere = path.rename(tmp_path / 'a.pth')
    assert_is(read_student(elsewhere, str(tmp_path / 'FACD.yml')), net)
    elsewhere.rename(path)
    test_opt['network_g'] = {**STUDENT, 'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'res_scale': 0.1}  # the same
    test_opt['path']['pretrain_network_g'] = 'absent.pth'
    given = read_student(path, str(write_yml(test_opt, tmp_path / 'test.yml')))
    assert given.net.body[0].res_scale == 0.1


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        ({'architecture': 'EDSRX'}, r"network.type: 'EDSRX' is not registered; did you mean 'EDSR'\?"),
        ({'arguments': '{}'}, r'network.num_in_ch: missing'),
        ({'arguments': ARGUMENTS[:-1] + ', "num_block": "3"}'}, r"network.num_block: '3'; accepted: a whole number"),
        ({'arguments': ARGUMENTS[:-1] + ', "res": 1}'}, r'network.res: unknown key; did you mean'),
        ({'arguments': ARGUMENTS[:-1] + ', "num_feat": 100000}'}, r'network.num_feat: 100000; accepted: .*less than'),
        ({'arguments': ARGUMENTS[:-1] + ', "rgb_mean": [1]}'}, r'network.rgb_mean: \[1\]; not accepted by EDSR'),
        ({'scale': '3'}, r'network.upscale: 2; accepted: 3, the scale'),
        ({'architecture': 'SpyNet', 'arguments': '{"load_path": "evil.pth"}'}, r"network.load_path: 'evil.pth'; accep"),
        ({'architecture': 'SpyNet', 'arguments': '{"load_path": "evil"}'}, r"network.load_path: 'evil'; accepted: a n"),
        ({'psnr': '{"Set5": NaN}'}, r'metadata: psnr: \{"Set5": NaN\}; accepted: as facd export writes it'),
    ],
)
def test_what_a_file_says_of_itself_is_checked_before_anything_is_built(
    entries, message, suffix, net, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ('evil.pth', 'evil'):
        torch.save(Evil(), tmp_path / name)
    path, metadata = tmp_path / f'a{suffix}', {**describe_network(STUDENT, 2).as_metadata(), **entries}
    if suffix == '.safetensors':
        save_file(net.state_dict(), path, metadata)
    else:
        torch.save({'params': net.state_dict(), METADATA: metadata}, path)
    with pytest.raises(UserError, match=rf'IN: .*a{suffix}: {message}' if 'psnr' not in entries else message):
        read_student(path)
    assert not (tmp_path / 'ran').exists()


class Evil:
    """Runs code when plain ``torch.load`` reads it."""

    def __reduce__(self) -> tuple:
        return (open, ('ran', 'w'))


def test_a_run_of_somebody_else_can_not_have_its_network_read_a_file(run, train_opt):
    write_options(run, {**train_opt, 'network_g': {'type': 'SpyNet', 'load_path': 'FACD.yml'}})
    with pytest.raises(UserError, match=r"options.yml: network_g.load_path: 'FACD.yml'; accepted: a num.*--opt FILE"):
        read_student(run / 'models' / 'net_g_latest.pth')


def hash_of(shown: str) -> str:
    """As ``facd show -opt FILE | sed '1,/^$/d' | sha256sum`` does, which docs/deploy.md gives."""
    return hashlib.sha256(shown.partition('\n\n')[2].encode()).hexdigest()


def test_the_hash_is_of_all_options_however_the_file_is_written(net, train_opt, tmp_path):
    torch.save({'params': net.state_dict()}, tmp_path / 'a.pth')
    (tmp_path / 'child.yml').write_text(f'base: {write_yml(train_opt, tmp_path / "base.yml").name}\nmanual_seed: 8\n')
    child = read_student(tmp_path / 'a.pth', str(tmp_path / 'child.yml')).description
    assert child.option_sha256 == hash_of(show(str(tmp_path / 'child.yml'), []))
    (tmp_path / 'alone.yml').write_text(f'# words\n{show(str(tmp_path / "child.yml"), [])}')
    alone = read_student(tmp_path / 'a.pth', str(tmp_path / 'alone.yml')).description
    assert alone.option_sha256 == child.option_sha256
    assert read_student(tmp_path / 'a.pth', str(tmp_path / 'base.yml')).description.option_sha256 != child.option_sha256


@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.safetensors'])
def test_a_file_with_metadata_needs_no_option_file_and_an_option_file_overrules_it(suffix, net, train_opt, tmp_path):
    path, metadata = tmp_path / f'a{suffix}', describe_network(STUDENT, 2).as_metadata()
    if suffix == '.safetensors':
        save_file(net.state_dict(), path, metadata)
    else:
        torch.save({'params': net.state_dict(), METADATA: metadata}, path)
    student = read_student(path)
    assert_is(student, net)
    assert student.description == describe_network(STUDENT, 2)
    assert read_student(path, str(write_yml(train_opt, tmp_path / 'a.yml'))).description.option_file == 'a.yml'


def test_an_average_of_the_weights_is_preferred(net, run):
    average = build_network(STUDENT)
    path = run / 'models' / 'net_g_latest.pth'
    torch.save({'params': net.state_dict(), 'params_ema': average.state_dict()}, path)
    assert_is(read_student(path), average)


def test_what_can_not_be_a_student_is_refused_in_a_line(net, run, train_opt, tmp_path):
    (tmp_path / 'a.gguf').touch()
    (tmp_path / 'empty.pth').touch()
    torch.save(
        {'params': net.state_dict(), METADATA: {**describe_network(STUDENT, 2).as_metadata(), 'scale': 'two'}},
        tmp_path / 'b.pth',
    )
    graph = helper.make_graph(
        [helper.make_node('Identity', ['x'], ['y'])],
        'same',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8), tmp_path / 'a.onnx')
    with pytest.raises(UserError, match=r'--opt: .*FACD.yml; accepted with .*a.onnx: none, since an ONNX file'):
        read_student(tmp_path / 'a.onnx', str(tmp_path / 'FACD.yml'))
    for name, message in {
        'absent.pth': r'IN: no such file: .*absent.pth',
        'a.gguf': r'IN: .*a.gguf; accepted: a name that ends in .pth, .pt, .ckpt, .safetensors, .onnx',
        'b.pth': r'IN: .*b.pth: metadata: .*; accepted: as facd export writes it',
        'a.onnx': r'IN: .*a.onnx does not name its network; accepted: an ONNX file by facd export',
        'empty.pth': r'IN: .*empty.pth does not name its network',
    }.items():
        with pytest.raises(UserError, match=message):
            read_student(tmp_path / name)
    wide = write_yml(changed(train_opt, 'network_g.num_feat', 8), tmp_path / 'wide.yml')
    with pytest.raises(UserError, match=r'IN: .*c.pth does not fit EDSR: keys .* of another shape'):
        read_student((run / 'models' / 'net_g_latest.pth').rename(tmp_path / 'c.pth'), str(wide))
    wrong = write_yml(changed(train_opt, 'network_g.num_feats', 8), tmp_path / 'wrong.yml')
    with pytest.raises(UserError, match=r'wrong.yml: network_g.num_feats'):
        read_student(tmp_path / 'c.pth', str(wrong))
