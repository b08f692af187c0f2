import json
import re
import shlex
from pathlib import Path

import onnx
import pytest
import torch
from basicsr.archs import build_network
from click.testing import CliRunner
from conftest import STUDENT, changed, run, tiny_train_opt, write_yml
from runs import run as train
from runs import write_options

from facd_basicsr.deploy.student import read_student
from facd_basicsr.errors import UserError
from facd_basicsr.files.images import read_bgr
from facd_basicsr.runtime.metrics import score
from facd_basicsr.tools.export import command


@pytest.fixture
def checkpoint(train_opt: dict, tmp_path: Path) -> Path:
    """``net_g_latest.pth`` of a finished run, with its options and metrics."""
    home = tmp_path / 'experiments' / 'tiny'
    (home / 'models').mkdir(parents=True)
    now = '2026-11-25T18:06:09.550+00:00'
    write_options(home, train_opt, {'start': now, 'iter': 0, 'option_file': 'options/tiny.yml', 'option_sha256': '0'})
    lines = [{'set': 'Set5', 'metric': 'psnr_y', 'value': 30.2512}, {'event': 'finished', 'message': ''}]
    lines = [json.dumps({'iter': 4, 'timestamp': now, **line}) + '\n' for line in lines]
    (home / 'metrics.jsonl').write_text(''.join(lines))
    torch.manual_seed(0)
    torch.save({'params': build_network(STUDENT).state_dict()}, home / 'models' / 'net_g_latest.pth')
    return home / 'models' / 'net_g_latest.pth'


def test_the_command_reports_what_each_file_was_compared_with(checkpoint, tmp_path):
    done = run('-m', 'facd_basicsr.cli', 'export', checkpoint, '-o', 'student', '--torch-export', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, '')
    title, *lines, use = done.stdout.splitlines()
    parameters = 112 + 3 * 2 * 148 + 148 + 592 + 111
    expected = 'receptive field: radius 10 pixels; PSNR-Y in validation: Set5 30.25 dB'
    assert title == f'EDSR x2: {parameters:,} parameters; {expected}'
    assert [line.partition(': ')[0] for line in lines] == [
        f'student{suffix}' for suffix in ('.pth', '.safetensors', '.onnx', '_fp16.onnx', '.pt2')
    ]
    assert all(re.search(r' MB; .*; largest difference: (none|[\d.e-]+ of an 8-bit step) \(', line) for line in lines)
    assert lines[3].endswith('of an 8-bit step (torch in float16)')
    assert use == 'facd upscale IN -o OUT --student student.safetensors'
    description = read_student(tmp_path / 'student.onnx').description
    assert (description.option_file, description.psnr) == ('tiny.yml', {'Set5': 30.2512})
    again = CliRunner().invoke(command, [str(tmp_path / 'student.safetensors'), '-o', str(tmp_path / 'b'), '--no-onnx'])
    assert again.exit_code == 0, again.output
    assert {path.name for path in tmp_path.glob('b*')} == {'b.pth', 'b.safetensors'}


def test_what_does_not_hold_is_said_in_a_line_with_exit_code_3_and_the_rest_is_written_in_a_new_folder(
    checkpoint, tmp_path
):
    state_dict = torch.load(checkpoint, weights_only=True)['params']
    state_dict['conv_first.weight'] *= 3e4  # features beyond float16's largest number, 65504
    torch.save({'params': state_dict}, checkpoint)
    done = run('-m', 'facd_basicsr.cli', 'export', checkpoint, '-o', 'new/folder/student', cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    line = (
        r'error: new/folder/student_fp16.onnx: not written: it would make numbers that are not finite of .*--no-fp16\n'
    )
    assert re.fullmatch(line, done.stderr)
    written = {f'student{suffix}' for suffix in ('.pth', '.safetensors', '.onnx')}
    assert {path.name for path in (tmp_path / 'new' / 'folder').iterdir()} == written
    assert done.stdout.splitlines()[-1] == 'facd upscale IN -o OUT --student new/folder/student.safetensors'


def test_the_suggested_upscale_command_can_be_pasted_into_a_shell(checkpoint, tmp_path):
    done = CliRunner().invoke(command, [str(checkpoint), '-o', str(tmp_path / "my student's"), '--no-onnx'])
    assert done.exit_code == 0, done.output
    *_, student = shlex.split(done.output.splitlines()[-1])
    assert Path(student).is_file()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['student.onnx'], r'CHECKPOINT: student.onnx; accepted: a name that ends in .pth, .pt, .ckpt, .safetensors'),
        (['absent.pth'], r'CHECKPOINT: no such file: absent.pth'),
    ],
)
def test_invalid_checkpoints_are_refused_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(command, [*arguments, '-o', str(tmp_path / 'a')], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--opset', '9'], '--opset: 9; accepted: 11 to 20'),
        (['--static', '640'], '--static: 640; accepted: width x height in pixels of LQ, as 640x360'),
        (['--static', '0x9'], '--static: 0x9; accepted: width x height in pixels of LQ, as 640x360'),
        (['--batch', 'any'], '--batch: any; accepted: a number of images, or dynamic'),
        (['--no-onnx', '--mobile'], '--no-onnx: with --opset, --static, --batch or --mobile; accepted: --onnx, .*'),
    ],
)
def test_options_of_the_graph_are_refused_in_a_line_before_anything_is_read(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(command, ['absent.pth', '-o', str(tmp_path / 'a'), *arguments], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_the_graphs_options_reach_the_files_and_the_lines_about_them(checkpoint, tmp_path):
    arguments = [
        str(checkpoint),
        '-o',
        str(tmp_path / 's'),
        '--mobile',
        '--static',
        '40x24',
        '--opset',
        '16',
        '--no-fp16',
    ]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (
        f'{tmp_path}/s.onnx: ' in done.output
        and '; ONNX, opset 16, mobile, 40x24 only, batches of 1 only;' in done.output
    )
    assert read_student(tmp_path / 's.onnx').net.fixed == {0: 1, 1: 3, 2: 24, 3: 40}
    dynamic = [*arguments[:2], str(tmp_path / 'd'), '--static', '40x24', '--batch', 'dynamic', '--no-fp16']
    assert CliRunner().invoke(command, dynamic, catch_exceptions=False).exit_code == 0
    assert read_student(tmp_path / 'd.onnx').net.fixed == {1: 3, 2: 24, 3: 40}


def test_a_student_that_fuses_is_written_re_parameterized_beside_its_weights(train_opt, tmp_path):
    block = {
        'type': 'ECBSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1, 'num_channel': 8, 'with_idt': False,
        'act_type': 'prelu', 'scale': 2,
    }  # fmt: skip
    torch.manual_seed(0)
    torch.save({'params': build_network(block).state_dict()}, tmp_path / 'net_g.pth')
    opt = {**train_opt, 'network_g': block, 'taps': [{'student': 'backbone.1', 'teacher': 'body.1'}]}
    opt['train']['distill_opt']['layer_weights'] = [1]
    arguments = [
        tmp_path / 'net_g.pth',
        '-opt',
        write_yml(opt, tmp_path / 'opt.yml'),
        '-o',
        tmp_path / 'e',
        '--no-fp16',
    ]
    done = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    parameters = 9 * (3 * 8 + 8 * 8 + 8 * 12) + (8 + 8 + 12) + (8 + 8)
    title, fused, *files, use = done.output.splitlines()
    line = (
        rf're-parameterized: 3 ECB, one convolution each; {parameters:,} parameters; largest difference: [\de.-]+ of an'
    )
    assert title.startswith('ECBSR x2: ') and re.match(line, fused)
    holds = {Path(name).name: text.split('; ')[1] for name, text in (file.split(': ', 1) for file in files)}
    assert holds == {
        'e.pth': "BasicSR's checkpoint, loaded strictly, weights equal",
        'e.safetensors': 'loaded strictly, weights equal',
        'e.onnx': 're-parameterized, ONNX, opset 17',
        'e_fused.pth': "re-parameterized, a SRVGGNetCompact's weights, loaded strictly",
        'e_fused.safetensors': "re-parameterized, a SRVGGNetCompact's weights, loaded strictly",
    }
    assert use.endswith('e.safetensors')


def test_without_onnx_nothing_is_written_and_the_extra_is_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name, *_: None)
    arguments = [str(checkpoint), '-o', str(tmp_path / 'student')]
    with pytest.raises(UserError, match=r"--onnx: needs onnx and onnxruntime.*facd_basicsr\[onnx\]'`, or --no-onnx"):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert not list(tmp_path.glob('*student*'))


def test_a_full_disk_is_a_one_line_error_and_leaves_no_files(checkpoint, tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(28, 'No space left on device', str(path))

    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(UserError, match=r'student.pth: No space left on device; once that is fixed'):
        CliRunner().invoke(command, [str(checkpoint), '-o', str(tmp_path / 'student')], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ['experiments']


def test_int8_is_written_with_its_loss_size_and_latency(checkpoint, data, tmp_path):
    arguments = ['--int8', '--calibrate', data / 'LQ', '--keep', '2', '--no-fp16']
    done = run('-m', 'facd_basicsr.cli', 'export', checkpoint, '-o', 'student', *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, *_, file, method, nodes, psnr, latency, _ = done.stdout.splitlines()
    assert re.match(
        r'student_int8.onnx: 0.\d\d MB; ONNX, opset 17, int8 in QDQ form; largest difference: [\d.]+ of', file
    )
    assert re.match(r'int8: calibrated by (MinMax|Percentile|Entropy); root mean square difference to float', method)
    assert re.match(
        r'int8: 2 of 15 nodes in float; the costliest, each alone in int8: .* \(in float\), .* \(in float\)', nodes
    )
    after = re.match(r'int8: val: PSNR-Y \d+\.\d\d -> (\d+\.\d\d) dB', psnr)[1]
    assert re.match(
        r'int8: 256x256 by onnxruntime on the CPU, median of 7: [\d.]+ ms, [\d.]+ MB -> [\d.]+ ms, [\d.]+ MB', latency
    )
    assert read_student(tmp_path / 'student_int8.onnx').description.psnr == {
        'val': pytest.approx(float(after), abs=0.01)
    }
    sr = tmp_path / 'sr'
    upscaled = ['upscale', data / 'LQ', '-o', sr, '-s', 'student_int8.onnx']
    assert run('-m', 'facd_basicsr.cli', *upscaled, cwd=tmp_path).returncode == 0
    scores = [score(read_bgr(sr / f'{i}.png'), read_bgr(data / 'GT' / f'{i}.png'), 2)['psnr_y'] for i in range(2)]
    assert sum(scores) / 2 == pytest.approx(float(after), abs=0.01)


def test_int8_of_one_size_for_phones_is_calibrated_on_images_of_any(checkpoint, data, tmp_path):
    options = ['--int8', '--calibrate', str(data / 'LQ'), '--no-fp16', '--static', '40x28', '--mobile']
    done = CliRunner().invoke(command, [str(checkpoint), '-o', str(tmp_path / 's'), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert '; ONNX, opset 17, mobile, 40x28 only, batches of 1 only, int8 in QDQ form;' in done.output
    assert 'int8: 40x28 by onnxruntime on the CPU, median of 7' in done.output
    model = onnx.load(tmp_path / 's_int8.onnx')
    onnx.checker.check_model(model, full_check=True)
    assert '(1, 3, 28, 40)' in model.doc_string
    depth_to_space = next(node for node in model.graph.node if node.op_type == 'DepthToSpace')
    assert onnx.helper.get_node_attr_value(depth_to_space, 'mode') == b'DCR'
    assert {node.op_type for node in model.graph.node} >= {'QuantizeLinear', 'DequantizeLinear'}
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored['conv_first.weight_quantized'] == onnx.TensorProto.INT8
    assert read_student(tmp_path / 's_int8.onnx').net.fixed == {0: 1, 1: 3, 2: 28, 3: 40}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--int8'], r'--calibrate: missing; accepted with --int8: a folder of LQ images'),
        (['--keep', '2'], r'--keep: 2; accepted: with --int8'),
        (['--max-loss', '0.1'], r'--max-loss: 0.1; accepted: with --int8'),
        (['--calibrate', '.'], r'--calibrate: .; accepted: with --int8'),
        (['--int8', '--calibrate', '.', '--no-onnx'], r'--no-onnx: with --int8, which is made of the ONNX file'),
        (
            ['--int8', '--calibrate', '.', '--keep', '1', '--max-loss', '0.1'],
            r'--keep: 1, and --max-loss: 0.1; accepted',
        ),
        (['--int8', '--calibrate', '.', '--opset', '12'], r'--opset: 12; accepted with --int8: 13 to 20'),
        (['--int8', '--calibrate', 'absent'], r'--calibrate: no such folder: absent; accepted: a folder of LQ images'),
    ],
)
def test_options_of_int8_that_do_not_go_together_are_refused_in_a_line(checkpoint, arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(command, [str(checkpoint), '-o', str(tmp_path / 'a'), *arguments], catch_exceptions=False)
    assert not list(tmp_path.glob('a*'))


def test_a_loss_needs_a_set_to_be_measured_on(checkpoint, data, tmp_path):
    copied = tmp_path / 'copy.safetensors'
    done = CliRunner().invoke(command, [str(checkpoint), '-o', str(copied.with_suffix('')), '--no-onnx'])
    assert done.exit_code == 0, done.output
    arguments = [str(copied), '-o', str(tmp_path / 'a'), '--int8', '--calibrate', str(data / 'LQ'), '--max-loss', '0.1']
    with pytest.raises(UserError, match=r'--max-loss: 0.1, but there is no set to measure it on; accepted: --keep N'):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


@pytest.fixture(scope='module')
def fake_quantized(data: Path, teacher_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net_g_latest.pth`` of a run with ``train.quantize``."""
    root = tmp_path_factory.mktemp('fake_quantized')
    train(changed(tiny_train_opt(data, teacher_weights), 'train.quantize', {}), root, 4)
    return root / 'experiments' / 'tiny' / 'models' / 'net_g_latest.pth'


def test_int8_of_quantization_aware_training_has_the_psnr_of_its_validation(fake_quantized, tmp_path):
    arguments = [str(fake_quantized), '-o', str(tmp_path / 'student'), '--int8', '--no-fp16']
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    validated = float(re.search(r'PSNR-Y in validation: val (\d+\.\d\d) dB', done.output)[1])
    after = float(re.search(r'int8: val: PSNR-Y [\d.]+ -> ([\d.]+) dB', done.output)[1])
    assert after == pytest.approx(validated, abs=0.02)
    description = read_student(tmp_path / 'student_int8.onnx').description
    assert description.psnr == {'val': pytest.approx(after, abs=0.01)}
    assert read_student(tmp_path / 'student.onnx').description.psnr == {}  # it was not validated in float
    assert 'calibrated' not in done.output
    again = [str(tmp_path / 'student.pth'), '-o', str(tmp_path / 'again'), '--int8', '--no-fp16']
    assert CliRunner().invoke(command, again, catch_exceptions=False).exit_code == 0
    weights = [
        {tensor.name: tensor.raw_data for tensor in onnx.load(tmp_path / f'{stem}_int8.onnx').graph.initializer}
        for stem in ('student', 'again')
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize('option', [['--calibrate', '.'], ['--keep', '1'], ['--max-loss', '0.1']])
def test_ranges_of_training_need_no_calibration(fake_quantized, option, tmp_path):
    arguments = [str(fake_quantized), '-o', str(tmp_path / 'student'), '--int8', *option]
    with pytest.raises(
        UserError, match=f'{option[0]}: {option[1]}; accepted with a CHECKPOINT of train.quantize: none'
    ):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
