"""The int8 ONNX file of a student that was trained with ``train.quantize``."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from conftest import STUDENT
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.deploy.quantized_graph import qat_onnx_bytes
from facd_basicsr.deploy.runtimes import OnnxNetwork
from facd_basicsr.deploy.student import Student, describe_network, read_student
from facd_basicsr.errors import UserError
from facd_basicsr.runtime.fake_quantization import QUANTIZATION, FakeQuantization
from facd_basicsr.runtime.metrics import photograph_input

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

EDSR = {**STUDENT, 'num_feat': 8, 'num_block': 2}
RCAN = {'type': 'RCANStudent', 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': 2}
COMPACT = {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': 2}
NETWORKS = [EDSR, {**EDSR, 'res_scale': 0.1}, RCAN, COMPACT]


def pair(name: str, size: int = 96) -> tuple[Tensor, Tensor]:
    """LQ, (1, 3, size, size), and GT of a photograph."""
    gt = photograph_input(name, 3, 2 * size, 2 * size)
    return F.interpolate(gt, scale_factor=0.5, mode='bicubic', antialias=True).clamp(0, 1), gt


def trained(network: dict, steps: int = 60) -> Student:
    """Briefly, in float and then fake-quantized, on parts of a photograph."""
    torch.manual_seed(0)
    net = build_network(network).train()
    quantization = FakeQuantization.of(net, 8, 3, decay=0.9)
    lq, gt = pair('astronaut.png')
    parts = [own.unfold(2, size, size).unfold(3, size, size) for own, size in ((lq, 24), (gt, 48))]
    lq, gt = (own[0].permute(1, 2, 0, 3, 4).flatten(0, 1) for own in parts)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for number in range(steps):
        if number == steps // 2:
            quantization.attach(net)
        optimizer.zero_grad()
        F.l1_loss(net(lq), gt).backward()
        optimizer.step()
        quantization.update()
    del net.forward
    net.eval().requires_grad_(False)
    return Student(net, describe_network(network, 2), quantization.entry())


def fake_quantized(student: Student) -> nn.Module:
    net = copy.deepcopy(student.net)
    FakeQuantization.of_entry(student.quantization, 'x').attach(net)
    return net


def psnr(net: nn.Module, name: str) -> float:
    lq, gt = pair(name)
    return -10 * float((net(lq).clamp(0, 1) - gt).square().mean().log10())


@pytest.fixture(
    scope='module',
    params=[pytest.param(own, marks=[] if own is COMPACT else pytest.mark.slow) for own in NETWORKS],
    ids=lambda block: f'{block["type"]} {block.get("res_scale", "")}',
)
def student(request: pytest.FixtureRequest) -> Student:
    return trained(request.param)


@pytest.fixture(scope='module')
def file(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('int8') / 'student_int8.onnx'
    path.write_bytes(qat_onnx_bytes(student))
    return path


def test_the_file_has_the_psnr_of_the_fake_quantized_student_to_two_hundredths_of_a_db(student, file):
    int8, trained = OnnxNetwork(file, 'x'), fake_quantized(student)
    for name in ('astronaut.png', 'chelsea.png'):
        expected = psnr(trained, name)
        assert expected > 20
        assert psnr(int8, name) == pytest.approx(expected, abs=0.02)
    lq, _ = pair('chelsea.png')
    assert not torch.equal(trained(lq), student.net(lq))
    assert read_student(file).description == student.description


def test_no_weight_is_stored_in_float(student, file):
    model = onnx.load(file)
    stored = {own.name: onnx.numpy_helper.to_array(own) for own in model.graph.initializer}
    tensors = [own for own in stored.values() if own.ndim > 1 and own.size > 8]
    floats = [own for own in tensors if own.dtype == np.float32]
    assert all(own.ndim < 4 or own.size == own.shape[1] for own in floats)  # slopes of a PReLU, the mean
    weights = sum(value.numel() for key, value in student.net.state_dict().items() if value.dim() == 4)
    assert sum(own.size for own in stored.values() if own.dtype == np.int8) >= weights


def test_the_convolutions_of_the_body_are_integer_in_onnxruntime(student, file, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'optimized.onnx')
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    kinds = [node.op_type for node in onnx.load(tmp_path / 'optimized.onnx').graph.node]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in student.net.modules())
    attention = 2 * (student.description.architecture == 'RCAN')  # after each pooling, of one pixel
    last = student.description.architecture != 'SRVGGNetCompact'  # whose output is a sum's, and quantized
    assert kinds.count('QLinearConv') >= convolutions - attention - last
    assert kinds.count('Conv') + kinds.count('FusedConv') <= attention + last
    if student.description.architecture == 'EDSR':
        assert kinds.count('QLinearAdd') == 2 + 1  # the blocks' and the global skip
        assert not {'Mul', 'Relu'} & {*kinds}


def test_a_channel_with_next_to_no_weights_keeps_its_bias():
    student = trained(EDSR, steps=4)
    convolution = student.net.conv_first
    for channel, weight, bias in ((0, 0.0, 50.0), (1, 1e-12, -30.0)):
        convolution.weight[channel], convolution.bias[channel] = weight, bias
    model = onnx.load_from_string(qat_onnx_bytes(student))
    stored = {own.name: onnx.numpy_helper.to_array(own).astype(np.float64) for own in model.graph.initializer}
    found = stored['conv_first.bias_quantized'] * stored['conv_first.bias_scale']
    np.testing.assert_allclose(found, convolution.bias.numpy(), atol=0.01)


def test_a_checkpoint_brings_its_ranges_and_one_without_is_one_line(student, tmp_path):
    content = {'params': student.net.state_dict(), 'metadata': student.description.as_metadata()}
    torch.save({**content, QUANTIZATION: student.quantization}, tmp_path / 'net_g.pth')
    torch.save(content, tmp_path / 'float.pth')
    assert qat_onnx_bytes(read_student(tmp_path / 'net_g.pth')) == qat_onnx_bytes(student)
    with pytest.raises(UserError, match=r'CHECKPOINT: \w+ has no ranges .* train.quantize$'):
        qat_onnx_bytes(read_student(tmp_path / 'float.pth'))


def test_convolutions_may_have_one_bias():
    """Of which ONNX has one, though torch has several: they are equal."""
    student = trained(EDSR, steps=4)
    for name, bias in student.net.named_parameters():
        if name.startswith('body') and name.endswith('bias'):
            bias.zero_()
    int8 = OnnxNetwork(qat_onnx_bytes(student), 'x')
    assert psnr(int8, 'chelsea.png') == pytest.approx(psnr(fake_quantized(student), 'chelsea.png'), abs=0.02)
