"""What runs a network apart from training, on a GPU against the CPU."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from click.testing import CliRunner
from conftest import REPOSITORY, STUDENT, build_teacher, changed, imported_script, write_yml
from torch import nn

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.deploy.export_formats import BASIC, ONNX, ONNX_FP16, TORCH_EXPORT, export, measured
from facd_basicsr.deploy.runtimes import OnnxNetwork
from facd_basicsr.deploy.student import Description, Student, describe_network, read_student
from facd_basicsr.deploy.upscaler import Upscaler
from facd_basicsr.distill.gate import check_teacher, teacher_psnr_y
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.costs import costs
from facd_basicsr.options import parser
from facd_basicsr.runtime.execution import tf32_of
from facd_basicsr.runtime.metrics import as_input
from facd_basicsr.runtime.tiling import receptive_field_radius
from facd_basicsr.test import test as evaluate
from facd_basicsr.tools.benchmark import benchmark
from facd_basicsr.tools.check import check
from facd_basicsr.tools.export import command as export_command
from facd_basicsr.tools.profile import command as profile_command

demo = imported_script(REPOSITORY / 'demo' / 'demo.py')

pytestmark = pytest.mark.gpu

EDSR = {**STUDENT, 'num_feat': 32, 'num_block': 4}
RCAN = {'type': 'RCANStudent', 'num_feat': 16, 'num_group': 2, 'num_block': 2, 'squeeze_factor': 4, 'upscale': 2}
DB = 0.01


@pytest.fixture
def full_float32() -> Iterator[None]:
    with tf32_of('fp32'):
        yield


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As on a machine without one, until ``undo()``."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    return monkeypatch


def student(block: dict) -> Student:
    torch.manual_seed(0)
    return Student(build_network(block).eval().requires_grad_(False), describe_network(block, block['upscale']))


def unseen(*_: int) -> None:
    """Takes the progress."""


@pytest.mark.parametrize('block', [EDSR, RCAN], ids=['EDSR', 'RCAN'])
@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_an_image_in_tiles_is_the_whole_one_and_the_cpus(block, channels, dtype, full_float32, no_gpu):
    levels = np.iinfo(dtype).max
    pixels = (np.random.default_rng(0).random((150, 203, channels)) * levels).astype(dtype)
    of_cpu = Upscaler(student(block), 0).upscale(pixels, unseen).astype(int)
    no_gpu.undo()
    for tile in (0, 64, None):
        found = student(block)
        image = Upscaler(found, tile).upscale(pixels, unseen)
        assert next(found.net.parameters()).is_cuda and image.dtype == dtype
        assert np.abs(image - of_cpu).max() <= levels / 255


def test_the_reach_is_the_cpus_and_torchs_settings_are_left_as_they_were():
    flags = torch.backends.cudnn
    for precision in ('fp32', 'tf32'):
        with tf32_of(precision):
            before = flags.enabled, flags.benchmark, flags.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            for block in (EDSR, {**EDSR, 'upscale': 3}):
                net = student(block).net
                of_cpu = receptive_field_radius(net, 3, block['upscale'], 64)
                assert receptive_field_radius(net.cuda(), 3, block['upscale'], 64) == of_cpu == 12
            after = flags.enabled, flags.benchmark, flags.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            assert after == before


def test_an_image_too_large_for_the_gpu_is_a_lack_of_memory_and_the_next_one_runs():
    class Wide(nn.Module):
        """Asks for 4 TiB of large images alone."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.conv(x).repeat(1, 64, 1, 1)
            return features.new_empty(2**40).view(1, -1) if x.shape[3] > 64 else features[:, :3]

    upscaler = Upscaler(Student(Wide().eval().requires_grad_(False), Description('Wide', {}, 1)), 0)
    before = torch.cuda.memory_allocated()
    with pytest.raises(MemoryError) as kept:
        upscaler.upscale(np.zeros((512, 512, 3), np.uint8), unseen)
    assert kept.value.__cause__ is not None
    assert torch.cuda.memory_allocated() - before < 64 * 3 * 512 * 512  # of 4 bytes each were the features
    assert upscaler.upscale(np.zeros((32, 32, 3), np.uint8), unseen).shape == (32, 32, 3)


def test_costs_have_a_gpus_memory_and_latency(no_data, tmp_path):
    out = tmp_path / 'costs.json'
    arguments = ['-opt', str(no_data), '--repeats', '3', '--out', str(out), '--force_yml', 'num_gpu=auto']
    done = CliRunner().invoke(profile_command, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and 'GPU memory [MiB]' in done.output and torch.cuda.get_device_name() in done.output
    result = json.loads(out.read_text())
    assert (result['device'], result['machine']) == ('cuda', torch.cuda.get_device_name())
    for setting in result['settings']:
        for found in setting['networks'].values():
            # workspaces; the few bytes of a mean that is no buffer are the CPU's
            assert found['memory'] - 64 <= found['gpu_memory'] < found['memory'] + 2**30
            assert found['latency_ms'] > 0 and found['runs'] == 3


def test_num_gpu_0_is_profiled_on_the_cpu(no_data):
    result = costs(str(no_data), ['num_gpu=0'], 0)
    assert result['device'] == 'cpu' and 'gpu_memory' not in result['settings'][0]['networks']['student']


def test_what_is_exported_beside_a_gpu_is_read_back_equal(full_float32, tmp_path):
    found = measured(student(EDSR), {})
    differences = export(found, tmp_path / 'a', [*BASIC, ONNX, ONNX_FP16, TORCH_EXPORT])
    assert differences[:2] == [{'torch': 0.0}] * 2
    for path in (tmp_path / 'a.pth', tmp_path / 'a.safetensors'):
        read = read_student(path).net.state_dict()
        assert all(torch.equal(value, read[key]) for key, value in found.net.state_dict().items())


def test_a_checkpoint_saved_on_a_gpu_is_exported_to_files_of_a_cpu(test_opt, tmp_path):
    checkpoint, stem = tmp_path / 'net_g.pth', tmp_path / 'student'
    opt = changed(test_opt, 'path.pretrain_network_g', str(checkpoint))
    net = student(EDSR).net.cuda()
    torch.save({'params': net.state_dict()}, checkpoint)
    assert torch.load(checkpoint, weights_only=True)['params']['conv_first.weight'].is_cuda
    option_file = write_yml(changed(opt, 'network_g', EDSR), tmp_path / 'a.yml')
    arguments = [str(checkpoint), '--opt', str(option_file), '-o', str(stem)]
    done = CliRunner().invoke(export_command, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and 'receptive field: radius 12 pixels' in done.output
    weights = torch.load(stem.with_suffix('.pth'), weights_only=True)['params']  # no map_location
    assert all(
        value.device.type == 'cpu' and torch.equal(value, net.state_dict()[key].cpu()) for key, value in weights.items()
    )


def test_onnx_runs_on_the_gpu_as_exactly_as_torch_on_the_cpu(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
        pytest.skip('this onnxruntime is of the CPU alone')
    found = measured(student(EDSR), {})
    (file,) = export(found, tmp_path / 'a', [ONNX])
    net = OnnxNetwork(file.path, 'IN')
    assert net._session.get_providers()[0] == 'CUDAExecutionProvider'
    lq = torch.rand(1, 3, 40, 56)
    torch.testing.assert_close(net(lq), found.net(lq), rtol=0, atol=0.01 / 255)


@pytest.fixture
def student_file(test_opt: dict, tmp_path: Path) -> str:
    torch.manual_seed(0)
    torch.save({'params': build_network(STUDENT).state_dict()}, tmp_path / 'net_g.pth')
    opt = changed(changed(test_opt, 'num_gpu', 'auto'), 'path.pretrain_network_g', str(tmp_path / 'net_g.pth'))
    return str(write_yml(opt, tmp_path / 'student.yml'))


def test_figures_of_benchmark_and_test_py_are_the_cpus(student_file, train_opt, tmp_path):
    train_file = str(write_yml(changed(train_opt, 'num_gpu', 'auto'), tmp_path / 'train.yml'))
    results = {}
    for num_gpu in ('auto', '0'):
        out, override = tmp_path / num_gpu, f'num_gpu={num_gpu}'
        table = benchmark([student_file], [override], train_file, out)
        results[num_gpu] = json.loads((out / 'results.json').read_text())
        args = parser(is_train=False).parse_args(['-opt', student_file, '--force_yml', override])
        by_test_py = evaluate(args, tmp_path / f'test_{num_gpu}', console=False)['pictures']
        assert table['tiny_test']['pictures'] == pytest.approx(by_test_py, abs=DB)
    assert [results[num_gpu]['device'] for num_gpu in ('auto', '0')] == ['cuda', 'cpu']
    for method, sets in results['auto']['means'].items():
        assert sets['pictures'] == pytest.approx(results['0']['means'][method]['pictures'], abs=DB)


def test_check_names_the_gpu_and_its_peak(train_opt, tmp_path):
    option_file = write_yml(changed(train_opt, 'num_gpu', 'auto'), tmp_path / 'opt.yml')
    out = '\n'.join(check(str(option_file), []))
    properties = torch.cuda.get_device_properties(0)
    assert f'{properties.name} {properties.total_memory / 2**30:.0f} GiB' in out
    assert '             the GPU has ' in out and 'at the peak\n' in out and 'whole process' not in out


def test_the_gate_measures_on_a_gpu_what_it_measures_on_the_cpu():
    images = [demo.photograph('astronaut.png')[100:196, 100:196], demo.photograph('chelsea.png')[100:196, 100:196]]
    batches = [{'gt': as_input(gt), 'lq': as_input(bicubic_lr(gt, demo.SCALE))} for gt in images]
    block = {
        'network': demo.options(demo.OPTIONS / 'FACD.yml')['teacher']['network'],
        'weights': str(demo.TEACHER_WEIGHTS),
    }
    teacher = build_teacher(block, demo.SCALE)
    of_cpu = teacher_psnr_y(teacher, batches, demo.SCALE, torch.device('cpu'))
    before, device = torch.cuda.get_rng_state(), torch.device('cuda')
    of_gpu = teacher_psnr_y(teacher.to(device), batches, demo.SCALE, device)
    assert np.abs(of_gpu - of_cpu).max() < DB
    expect = {'dataset': 'val', 'psnr_y': round(float(of_cpu.mean()), 2), 'tolerance': 2 * DB}
    assert check_teacher(teacher, expect, batches, demo.SCALE, device).startswith('Teacher: ')
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with pytest.raises(UserError, match=r'teacher\.expect'):
        check_teacher(teacher, {**expect, 'psnr_y': 10.0}, batches, demo.SCALE, device)
