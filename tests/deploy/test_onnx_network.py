"""The extra `onnx` is part of `dev`; the files are written by onnx itself."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from facd_basicsr.deploy.runtimes import OnnxNetwork
from facd_basicsr.errors import UserError


def doubling(path: Path, type: int, inputs: int = 1) -> Path:
    """An ONNX file that adds its input to itself, or two inputs to each other."""
    shape = ['n', 3, 'h', 'w']
    names = ['x', 'y'][:inputs]
    graph = helper.make_graph(
        [helper.make_node('Add', [names[0], names[-1]], ['out'])],
        'doubling',
        [helper.make_tensor_value_info(name, type, shape) for name in names],
        [helper.make_tensor_value_info('out', type, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    helper.set_model_props(model, {'scale': '1'})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize('type', [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_any_float_goes_in_and_float32_comes_out(type, dtype, tmp_path):
    net = OnnxNetwork(doubling(tmp_path / 'a.onnx', type), 'IN')
    lq = torch.tensor([0.25, 0.5, 1.0], dtype=dtype).view(1, 3, 1, 1).expand(2, 3, 2, 5)  # not contiguous
    assert torch.equal(net(lq), 2 * lq.float()) and net(lq).dtype == torch.float32
    assert net.metadata == {'scale': '1'}


@pytest.mark.parametrize(
    ('available', 'chosen'),
    [
        (['CPUExecutionProvider'], ['CPUExecutionProvider']),
        (
            ['TensorrtExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider'],
            ['CUDAExecutionProvider', 'CPUExecutionProvider'],
        ),
        (['AzureExecutionProvider', 'CPUExecutionProvider'], ['CPUExecutionProvider']),
    ],
)
def test_a_gpu_is_taken_but_no_engine_is_built(available, chosen, monkeypatch, tmp_path):
    asked, session = [], onnxruntime.InferenceSession
    path = doubling(tmp_path / 'a.onnx', TensorProto.FLOAT)

    def recorded(path: str, providers: list[tuple[str, dict]], **_: object) -> onnxruntime.InferenceSession:
        asked.extend(name for name, _ in providers)
        assert dict(providers).get('CUDAExecutionProvider', {'use_tf32': '0'}) == {'use_tf32': '0'}
        return session(path, providers=['CPUExecutionProvider'])

    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: available)
    monkeypatch.setattr(onnxruntime, 'InferenceSession', recorded)
    OnnxNetwork(path, 'IN')
    assert asked == chosen


def test_what_onnxruntime_does_not_run_is_a_runtime_error_as_of_torch(tmp_path):
    net = OnnxNetwork(doubling(tmp_path / 'a.onnx', TensorProto.FLOAT), 'IN')
    with pytest.raises(RuntimeError, match='Got invalid dimensions for input'):
        net(torch.rand(1, 1, 4, 4))


def test_a_file_that_is_no_onnx_or_takes_more_than_an_image_is_refused_in_a_line(tmp_path):
    (tmp_path / 'a.onnx').write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    with pytest.raises(UserError, match=r'IN: .*a.onnx cannot be read as ONNX \(.*\); accepted: a file by facd export'):
        OnnxNetwork(tmp_path / 'a.onnx', 'IN')
    with pytest.raises(UserError, match=r'IN: .*b.onnx has inputs x, y and outputs out; accepted: one of each'):
        OnnxNetwork(doubling(tmp_path / 'b.onnx', TensorProto.FLOAT, inputs=2), 'IN')


def test_without_onnxruntime_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"IN: a.onnx needs onnxruntime, .*`pip install 'facd_basicsr\[onnx\]'`"):
        OnnxNetwork(Path('a.onnx'), 'IN')
