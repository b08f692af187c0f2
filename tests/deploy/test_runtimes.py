"""The extras `onnx` and `openvino` are part of `dev`; the files are written by onnx itself."""

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import REPOSITORY, run
from onnx import TensorProto, helper

from facd_basicsr.deploy.runtimes import BACKENDS, OnnxNetwork, OpenVinoNetwork, RuntimeNetwork
from facd_basicsr.errors import UserError

every_runtime = pytest.mark.parametrize('runtime', BACKENDS.values(), ids=BACKENDS)


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


@every_runtime
@pytest.mark.parametrize('type', [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_any_float_goes_in_and_float32_comes_out(runtime, type, dtype, tmp_path):
    net = runtime(doubling(tmp_path / 'a.onnx', type), 'IN')
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


@every_runtime
def test_what_a_runtime_does_not_run_is_a_runtime_error_as_of_torch(runtime, tmp_path):
    net = runtime(doubling(tmp_path / 'a.onnx', TensorProto.FLOAT), 'IN')
    with pytest.raises(RuntimeError, match=r'Got invalid dimensions for input|are incompatible'):
        net(torch.rand(1, 1, 4, 4))


@every_runtime
def test_a_file_that_is_no_onnx_or_takes_more_than_an_image_is_refused_in_a_line(runtime, tmp_path):
    (tmp_path / 'a.onnx').write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    with pytest.raises(UserError, match=r'IN: .*a.onnx cannot be read as ONNX \(.*\); accepted: a file by facd export'):
        runtime(tmp_path / 'a.onnx', 'IN')
    with pytest.raises(UserError, match=r'IN: .*b.onnx has inputs x, y and outputs out; accepted: one of each'):
        runtime(doubling(tmp_path / 'b.onnx', TensorProto.FLOAT, inputs=2), 'IN')


@pytest.mark.parametrize(('backend', 'extra'), [('onnxruntime', 'onnx'), ('openvino', 'openvino')])
def test_without_the_package_the_message_says_how_to_get_it(backend, extra, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=rf"IN: a.onnx needs {backend}, .*`pip install 'facd_basicsr\[{extra}\]'`"):
        BACKENDS[backend](Path('a.onnx'), 'IN')


@every_runtime
def test_a_file_opened_again_for_other_threads_gives_the_same(runtime, tmp_path):
    net = runtime(doubling(tmp_path / 'a.onnx', TensorProto.FLOAT).read_bytes(), 'IN')
    for jobs, frugal in ((1, False), (3, True)):
        assert net.open(jobs, frugal) == (['x'], ['out'])
        assert torch.equal(net(torch.ones(1, 3, 2, 5)), torch.full((1, 3, 2, 5), 2.0))


def test_runtimes_share_the_threads_of_torch_among_the_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    path = doubling(tmp_path / 'a.onnx', TensorProto.FLOAT)
    of_onnxruntime, of_openvino = OnnxNetwork(path, 'IN'), OpenVinoNetwork(path, 'IN')
    for jobs, pool in ((1, 2), (2, 1), (3, 1)):
        of_onnxruntime.open(jobs)
        assert of_onnxruntime._session.get_session_options().intra_op_num_threads == pool  # the job's own among them
    cores = os.cpu_count() or 1
    for jobs, streams in ((1, 1), (2, min(2, cores))):
        of_openvino.open(jobs)
        found = of_openvino._compiled.get_property
        assert (found('NUM_STREAMS'), found('INFERENCE_NUM_THREADS')) == (streams, min(2, cores))
        assert found('INFERENCE_PRECISION_HINT').to_string() == 'f32'


def test_openvino_tells_nobody_that_it_is_imported(tmp_path):
    code = 'from facd_basicsr.deploy.runtimes import import_openvino as o; o().Core(); import sys; print(sys.modules)'
    done = run('-c', code, cwd=REPOSITORY, env={'HOME': str(tmp_path)})
    assert done.returncode == 0 and 'telemetry_stub' in done.stdout, done.stderr
    assert "'openvino_telemetry': None" in done.stdout and 'openvino_telemetry.' not in done.stdout
    assert not (tmp_path / 'intel').exists()  # where it would keep whom it tells about


SIGNALED = """
import pathlib, signal, subprocess, sys
from facd_basicsr.deploy.runtimes import OpenVinoNetwork
nets = [OpenVinoNetwork(pathlib.Path(sys.argv[1]), 'IN') for _ in range(2)]
while nets:
    del nets[0]  # OpenVINO's own stack for signals would be that of the first, which is gone
signal.signal(signal.SIGCHLD, lambda *_: print('signaled'))
subprocess.run(['true'])
"""


def test_a_signal_after_networks_of_openvino_is_handled(tmp_path):
    path = doubling(tmp_path / 'a.onnx', TensorProto.FLOAT)
    done = run('-c', SIGNALED, path, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (0, 'signaled\n'), done.stderr


def network(path: Path, *nodes: onnx.NodeProto, size: tuple[str | int, ...] = ('h', 'w')) -> RuntimeNetwork:
    """From ``x`` to ``out``, with a weight of 16 output channels, 3 x 3."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ['n', *shape])
        for name, shape in (('x', (3, *size)), ('out', (4, 'height', 'width')))
    ]
    weight = helper.make_tensor('weight', TensorProto.FLOAT, [16, 3, 3, 3], np.zeros(16 * 27))
    graph = helper.make_graph(nodes, 'net', ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8), path)
    return OnnxNetwork(path, 'IN')


def test_the_memory_of_a_run_is_that_of_all_live_tensors(tmp_path):
    nodes = [
        helper.make_node('Conv', ['x', 'weight'], ['a'], pads=[1] * 4),
        helper.make_node('Relu', ['a'], ['b']),
        helper.make_node('DepthToSpace', ['b'], ['out'], blocksize=2),
    ]
    # two features of 16 channels at the activation, x gone; at the end one and the output of as many numbers
    assert network(tmp_path / 'a.onnx', *nodes).footprint(5, 7) == 4 * 5 * 7 * (16 + 16)
    assert network(tmp_path / 'b.onnx', *nodes, size=(6, 9)).footprint(5, 7) == 4 * 6 * 9 * (16 + 16)  # it has one size


def test_counting_memory_without_onnx_is_refused_in_a_line(tmp_path, monkeypatch):
    own = network(tmp_path / 'a.onnx', helper.make_node('DepthToSpace', ['x'], ['out'], blocksize=1))
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(UserError, match=r'^--memory: needs onnx; accepted: pip install onnx, or --tile and --jobs$'):
        own.footprint(5, 7)


def test_a_graph_of_which_a_shape_is_not_known_is_not_counted(tmp_path):
    net = network(
        tmp_path / 'a.onnx',
        helper.make_node('NonZero', ['x'], ['where']),
        helper.make_node('Conv', ['x', 'weight'], ['out'], pads=[1] * 4),
    )
    with pytest.raises(
        UserError, match=r'^--memory: the graph does not tell the shape of where; accepted: --tile and --'
    ):
        net.footprint(5, 7)
