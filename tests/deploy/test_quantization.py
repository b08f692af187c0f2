"""Post-training quantization: the demo's teacher, whose weights the repository has, and networks of random weights."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from basicsr.archs import build_network
from conftest import REPOSITORY, STUDENT
from hypothesis import given
from hypothesis import strategies as st

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.deploy import quantization
from facd_basicsr.deploy.export_formats import GraphOptions, int8_format, int8_graph
from facd_basicsr.deploy.quantization import QUANTIZED, Quantized, calibration_images, quantize
from facd_basicsr.deploy.runtimes import OnnxNetwork
from facd_basicsr.deploy.student import Student, describe_network, read_student
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.test_sets import ImagePair
from facd_basicsr.files.images import photograph, write_png
from facd_basicsr.runtime.metrics import score, upscale

DEMO = {
    'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 32, 'num_block': 8, 'upscale': 2, 'res_scale': 1,
}  # fmt: skip
RCAN = {'type': 'RCANStudent', 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': 2}
COMPACT = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 1, 'upscale': 2, 'act_type': 'prelu'}


def student_of(network: dict, weights: Path | None = None) -> Student:
    torch.manual_seed(0)
    net = build_network(network).eval().requires_grad_(False)
    if weights is not None:
        net.load_state_dict(torch.load(weights, weights_only=True)['params'])
    return Student(net, dataclasses.replace(describe_network(network, network['upscale']), psnr={'val': 99.0}))


def pair(name: str) -> ImagePair:
    gt = photograph(name)[100:196, 100:196]
    return ImagePair('photographs', name, bicubic_lr(gt, 2), gt)


PAIRS = [pair('astronaut.png'), pair('chelsea.png')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LQ images of two sizes."""
    folder = tmp_path_factory.mktemp('lq')
    write_png(folder / 'coffee.png', bicubic_lr(photograph('coffee.png')[:120, :160], 2))
    write_png(folder / 'rocket.png', bicubic_lr(photograph('rocket.jpg')[:300, :340], 2))
    return folder


@pytest.fixture(scope='module')
def demo(folder: Path) -> tuple[Student, bytes, list[torch.Tensor], Quantized]:
    student = student_of(DEMO, REPOSITORY / 'demo' / 'EDSR_f32b8_x2.pth')
    graph, images = int8_graph(student), [image[..., :40, :40] for image in calibration_images(folder, student)]
    return student, graph, images, quantize(graph, student, images, PAIRS)


def arrays(content: bytes) -> dict[str, np.ndarray]:
    return {value.name: onnx.numpy_helper.to_array(value) for value in onnx.load_from_string(content).graph.initializer}


def test_calibration_takes_the_middle_of_the_images_of_a_folder(folder):
    small, large = calibration_images(folder, student_of(STUDENT))
    assert (small.shape, large.shape) == ((1, 3, 60, 80), (1, 3, 128, 128))
    whole = torch.from_numpy(photograph('rocket.jpg')[:300, :340].copy())
    middle = bicubic_lr(whole.numpy(), 2)[11:139, 21:149, ::-1] / np.float32(255)
    np.testing.assert_allclose(large[0].permute(1, 2, 0), middle, atol=1e-6)


def test_weights_are_int8_with_one_scale_for_each_output_channel(demo):
    student, _, _, quantized = demo
    onnx.checker.check_model(onnx.load_from_string(quantized.content), full_check=True)
    found = arrays(quantized.content)
    weight = student.net.state_dict()['body.0.conv1.weight'].numpy()
    scale = np.abs(weight).max((1, 2, 3)) / 127
    np.testing.assert_allclose(found['body.0.conv1.weight_scale'], scale, rtol=1e-5)
    expected = np.rint(weight / scale[:, None, None, None])
    assert found['body.0.conv1.weight_quantized'].dtype == np.int8
    assert np.abs(found['body.0.conv1.weight_quantized'] - expected).max() <= 1  # of halves
    assert 'body.0.conv1.weight' not in found
    assert len(quantized.content) < 0.4 * len(demo[1])


@pytest.mark.parametrize(
    'network', [STUDENT, pytest.param(RCAN, marks=pytest.mark.slow), COMPACT], ids=lambda network: network['type']
)
def test_convolutions_and_sums_of_features_are_int8_and_the_mean_shift_is_not(network, folder):
    student = student_of(network)
    quantized = quantize(int8_graph(student), student, calibration_images(folder, student))
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in student.net.modules())
    operators = [node.rsplit('/')[-1].split('_')[0] for node in quantized.sensitivity]
    assert operators.count('Conv') == convolutions and set(operators) <= {*QUANTIZED}
    if network is not COMPACT:  # which has no mean
        nodes = onnx.load_from_string(quantized.content).graph.node
        assert [node.op_type for node in nodes if 'lq' in node.input] == ['Sub']
        assert [node.op_type for node in nodes if 'sr' in node.output] == ['Add']


def test_int8_is_near_float_and_its_psnr_is_that_of_the_file(demo, tmp_path):
    student, _, _, quantized = demo
    psnr = {name: of_int8 for name, (_, of_int8) in quantized.psnr.items()}
    file = int8_format(quantized.content, psnr, GraphOptions())
    (tmp_path / 'int8.onnx').write_bytes(file.content(file.form(student)))
    read = read_student(tmp_path / 'int8.onnx')
    before, after = (
        [score(upscale(net, pair.lq), pair.gt, 2)['psnr_y'] for pair in PAIRS] for net in (student.net, read.net)
    )
    assert quantized.psnr['photographs'] == pytest.approx((np.mean(before), np.mean(after)), abs=1e-3)
    assert read.description == dataclasses.replace(
        student.description, psnr={'photographs': pytest.approx(np.mean(after), abs=1e-3)}
    )
    assert 0 < quantized.loss < 2


def test_the_calibration_is_the_one_nearest_to_float(demo):
    _, _, _, quantized = demo
    assert [*quantized.errors] == ['MinMax', 'Percentile', 'Entropy']
    assert quantized.errors[quantized.method] == min(quantized.errors.values()) > 0


@pytest.fixture
def one_method(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantization._Quantizer.__init__
    monkeypatch.setattr(quantization._Quantizer, '__init__', lambda *args: whole(*args, methods=['MinMax']))


@pytest.mark.usefixtures('one_method')
def test_the_costliest_nodes_are_kept_in_float(demo):
    student, graph, images, _ = demo
    quantized = quantize(graph, student, images, keep=3)
    costs = [*quantized.sensitivity.values()]
    assert costs == sorted(costs, reverse=True) and min(costs) > 0
    assert quantized.kept == [*quantized.sensitivity][:3]
    model = onnx.load_from_string(quantized.content)
    by_name = {node.name: node for node in model.graph.node}
    weights = {name for name in arrays(quantized.content) if name.endswith('.weight')}
    assert weights == {by_name[node].input[1] for node in quantized.kept if by_name[node].op_type == 'Conv'}


@pytest.mark.usefixtures('one_method')
def test_nodes_are_kept_in_float_until_the_loss_is_small_enough(demo):
    student, graph, images, whole = demo
    limit = whole.loss / 2
    found = quantize(graph, student, images, PAIRS, max_loss=limit)
    assert found.loss <= limit and 0 < len(found.kept) < len(found.sensitivity)


@pytest.mark.usefixtures('one_method')
def test_a_loss_that_is_small_enough_keeps_none_in_float(demo):
    student, graph, images, whole = demo
    assert quantize(graph, student, images, PAIRS, max_loss=3 * whole.loss).kept == []


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=40).map(lambda losses: sorted(losses, reverse=True)), st.data()
)
def test_no_more_nodes_than_needed_are_kept_in_float(losses, data):
    limit = data.draw(st.floats(losses[-1], losses[0], exclude_max=losses[-1] < losses[0]))
    if limit >= losses[0]:
        return  # what quantize() has tried before

    def kept(count: int) -> Quantized:
        return Quantized(b'', '', {}, {}, [''] * count, {'set': (losses[count], 0.0)})

    found = quantization._fewest(kept, len(losses) - 1, limit)
    assert len(found.kept) == next(count for count, loss in enumerate(losses) if loss <= limit)


def test_a_loss_that_no_graph_reaches_is_refused(demo):
    def kept(count: int) -> Quantized:
        return dataclasses.replace(demo[3], psnr={'set': (30.0, 29.0)}, kept=[''] * count)

    with pytest.raises(
        UserError, match=r'--max-loss: 0.5 dB is not reached: with one node .* 1.000 dB; accepted: more'
    ):
        quantization._fewest(kept, 4, 0.5)


@pytest.mark.usefixtures('one_method')
def test_more_nodes_in_float_than_there_are_is_refused(demo):
    student, graph, images, quantized = demo
    nodes = len(quantized.sensitivity)
    with pytest.raises(UserError, match=f'--keep: {nodes}; accepted: less than the {nodes} nodes'):
        quantize(graph, student, images, keep=nodes)


def test_folders_that_cannot_calibrate_are_refused(tmp_path):
    student = student_of(STUDENT)
    with pytest.raises(UserError, match=r'--calibrate: no such folder: .*absent; accepted: a folder of LQ images'):
        calibration_images(tmp_path / 'absent', student)
    with pytest.raises(UserError, match=r'--calibrate: .*: no images; accepted'):
        calibration_images(tmp_path, student)
    (tmp_path / 'a.png').write_bytes(b'no image')
    with pytest.raises(UserError, match=r'a\.png'):
        calibration_images(tmp_path, student)
    gray = student_of({**COMPACT, 'num_in_ch': 1, 'num_out_ch': 1})
    with pytest.raises(UserError, match=r'--int8: network_g of 1 channels; accepted: a network of color images, 3'):
        calibration_images(tmp_path, gray)


def test_two_files_are_two_networks_to_a_measurement_of_time(demo, tmp_path):
    for name in ('a', 'b'):
        (tmp_path / f'{name}.onnx').write_bytes(demo[1])
    first, second = (OnnxNetwork(tmp_path / f'{name}.onnx', '') for name in 'ab')
    assert first.extra_repr() != second.extra_repr()
