"""Students whose blocks fuse for inference: what files hold of them."""

import re
from pathlib import Path

import onnx
import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import ARCH_REGISTRY
from training_steps import trained

from facd_basicsr.archs.reparameterization import fused_blocks, reparameterized
from facd_basicsr.deploy.export_formats import (
    BASIC,
    FUSED_WEIGHTS,
    ONNX,
    ONNX_FP16,
    REPARAMETERIZED,
    TORCH_EXPORT,
    export,
    measured,
    read_program,
)
from facd_basicsr.deploy.student import Student, describe_network, read_student
from facd_basicsr.errors import UserError
from facd_basicsr.runtime.metrics import photograph_input

NETWORKS = {
    'ECBSR': {
        'type': 'ECBSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 2, 'num_channel': 8, 'with_idt': True,
        'act_type': 'prelu', 'scale': 2,
    },
    'SPAN': {'type': 'SPAN_spandrel', 'num_in_ch': 3, 'num_out_ch': 3, 'feature_channels': 8, 'upscale': 2},
}  # fmt: skip
CONVOLUTIONS = {'ECBSR': 2 + 2, 'SPAN': 1 + 6 * 3 + 1 + 1 + 1}  # SPAN: conv_1, blocks, conv_2, conv_cat, upsampler
LARGEST = 1e-5  # of the output's range


def student_of(name: str) -> Student:
    if name == 'SPAN':
        pytest.importorskip('spandrel')
        if 'SPAN_spandrel' not in ARCH_REGISTRY:
            pytest.skip("spandrel's networks are not registered")
    torch.manual_seed(0)
    net = trained(build_network(NETWORKS[name])).eval().requires_grad_(False)
    return Student(net, describe_network(NETWORKS[name], 2))


@pytest.fixture(
    scope='module',
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name == 'SPAN')) for name in NETWORKS],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict]:
    """A network's name, the folder with its ``student.*``, and what they were compared with."""
    folder = tmp_path_factory.mktemp(request.param)
    formats = [*BASIC, ONNX, ONNX_FP16, *((TORCH_EXPORT, *FUSED_WEIGHTS) if request.param == 'ECBSR' else ())]
    found = export(measured(student_of(request.param), {}), folder / 'student', formats)
    return request.param, folder, {path.name: result for path, result in found.items()}


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


def test_graphs_hold_the_fused_network_and_give_what_the_unfused_one_gives(exported):
    name, folder, found = exported
    graph = onnx.load(folder / 'student.onnx').graph
    assert sum(node.op_type == 'Conv' for node in graph.node) == CONVOLUTIONS[name]
    lq, net = photograph_input('chelsea.png', 3, 33, 47), student_of(name).net
    with torch.no_grad():
        assert difference(read_student(folder / 'student.onnx').net(lq), net(lq)) <= LARGEST
        if name == 'ECBSR':
            assert difference(read_program(folder / 'student.pt2')[0](lq), net(lq)) <= LARGEST
    for file, result in found.items():
        fused = file not in ('student.pth', 'student.safetensors')
        assert 0 < result[REPARAMETERIZED] <= LARGEST if fused else REPARAMETERIZED not in result


def test_weights_are_those_of_the_network_as_it_is_trained(exported):
    name, folder, _ = exported
    read = read_student(folder / 'student.safetensors')
    own = student_of(name)
    assert read.net.state_dict().keys() == own.net.state_dict().keys()
    lq = photograph_input('astronaut.png', 3, 20, 31)
    assert torch.equal(read.net(lq), own.net(lq)) and fused_blocks(read.net) == fused_blocks(own.net)


@pytest.mark.parametrize('exported', ['SPAN'], indirect=True)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_spans_weights_open_in_spandrel_with_its_fused_convolutions_up_to_date(exported, suffix):
    name, folder, _ = exported
    import spandrel

    opened = spandrel.ModelLoader('cpu').load_from_file(str(folder / f'student{suffix}'))
    assert (opened.architecture.id, opened.scale) == ('SPAN', 2)
    own = student_of(name).net
    fused, stale = reparameterized(own).conv_1.weight, own.conv_1.eval_conv.weight
    kept = read_student(folder / f'student{suffix}').net.conv_1.eval_conv.weight
    assert not torch.allclose(stale, fused, atol=1e-3)  # training steps do not touch it
    torch.testing.assert_close(kept, fused, rtol=0, atol=1e-6)
    lq = photograph_input('astronaut.png', 3, 20, 31)
    with torch.no_grad():
        assert difference(opened.model(lq), own(lq)) <= LARGEST


@pytest.mark.parametrize('exported', ['ECBSR'], indirect=True)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_fused_ecbsr_is_a_file_of_srvggnetcompact_for_facd_basicsr_and_spandrel(exported, suffix):
    name, folder, found = exported
    lq, own = photograph_input('astronaut.png', 3, 20, 31), student_of(name)
    expected = own.net(lq)
    path = folder / f'student_fused{suffix}'
    assert 0 < found[path.name][REPARAMETERIZED] <= LARGEST
    read = read_student(path)
    arguments = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_conv': 2, 'upscale': 2, 'act_type': 'prelu'}
    assert (read.description.architecture, read.description.arguments) == ('SRVGGNetCompact', arguments)
    assert read.description.reach == 4
    assert difference(read.net(lq), expected) <= LARGEST
    if suffix == '.pth':
        stock = SRVGGNetCompact(**arguments)
        BaseModel({'num_gpu': 0, 'is_train': False}).load_network(stock, path, True, 'params')
        assert torch.equal(stock(lq), read.net(lq))
    spandrel = pytest.importorskip('spandrel')
    opened = spandrel.ModelLoader('cpu').load_from_file(str(path))
    assert (opened.architecture.id, opened.scale) == ('Compact', 2)
    assert torch.equal(opened.model(lq), read.net(lq))


@ARCH_REGISTRY.register()
class DeploysToAnother(EDSR):
    """Forgets a bias where it fuses."""

    def switch_to_deploy(self) -> None:
        self.conv_last.bias.zero_()


def test_a_network_that_deploys_to_another_has_no_graph_but_its_weights(tmp_path):
    block = {'type': 'DeploysToAnother', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2}
    torch.manual_seed(0)
    student = Student(build_network(block).eval().requires_grad_(False), describe_network(block, 2))
    found = export(student, tmp_path / 'student', [BASIC[0], ONNX])
    assert {path.name for path in tmp_path.iterdir()} == {'student.pth'}
    message = (
        r'it would differ by [\d.e+]+ of an 8-bit step, more than rounding \(0.0026\), on photographs of 24 x 40: '
        r're-parameterized it is another network; accepted: --no-onnx'
    )
    assert re.fullmatch(message, str(found[tmp_path / 'student.onnx']))


def test_only_what_has_a_stock_class_is_written_as_one(tmp_path):
    block = {**NETWORKS['ECBSR'], 'act_type': 'softplus'}
    student = Student(build_network(block).eval().requires_grad_(False), describe_network(block, 2))
    (refusal,) = export(student, tmp_path / 'student', FUSED_WEIGHTS[:1]).values()
    assert isinstance(refusal, UserError) and str(refusal).startswith('network_g: ECBSR; accepted: ')
