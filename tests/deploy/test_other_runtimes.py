"""Exported graphs in other runtimes, by the commands and lines of docs/deploy.md, beside the student on photographs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from conftest import REPOSITORY
from networks import NETWORKS
from torch import Tensor

from facd_basicsr.deploy.export_formats import BASIC, FUSED_WEIGHTS, STEP, GraphOptions, export, measured, onnx_formats
from facd_basicsr.deploy.student import Student, describe_network, read_student
from facd_basicsr.runtime.metrics import photograph_input

HEIGHT, WIDTH = 36, 64
STUDENTS = {
    row.name: row for row in NETWORKS if row.name in ('EDSRStudent', 'RCANStudent', 'SRVGGNetCompact', 'ECBSR', 'SPAN')
}
GRAPHS = {
    'plain': GraphOptions(),
    'static': GraphOptions(static=(HEIGHT, WIDTH), batch=1),
    'mobile': GraphOptions(static=(HEIGHT, WIDTH), batch=1, mobile=True),
}
PAGE = (REPOSITORY / 'docs' / 'deploy.md').read_text(encoding='utf-8')
LINES = dict(re.findall(r'<!-- (\w+) -->\n```\w*\n(.*?)```', PAGE, re.DOTALL))


@pytest.fixture(
    scope='module',
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in ('RCANStudent', 'SPAN'))) for name in STUDENTS],
)
def student(request: pytest.FixtureRequest) -> Student:
    row = STUDENTS[request.param]
    torch.manual_seed(0)
    return Student(build_network(row.block).eval().requires_grad_(False), describe_network(row.block, row.scale))


@pytest.fixture(scope='module')
def folders(student: Student, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{graph: folder with its ``student.*``}."""
    found = {}
    for name, options in GRAPHS.items():
        found[name] = tmp_path_factory.mktemp(name)
        export(student, found[name] / 'student', [BASIC[0], onnx_formats(options)[0]])
    return found


def photographs() -> Tensor:
    return torch.cat([photograph_input(name, 3, HEIGHT, WIDTH) for name in ('astronaut.png', 'chelsea.png')])


def run_page(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What the page's lines of Python give for each photograph."""
    monkeypatch.chdir(folder)
    found = []
    for lq in photographs().split(1):
        scope = {'lq': lq}
        exec(LINES[name], scope)
        found.append(np.array(scope['sr']).reshape(1, 3, *np.array(scope['sr']).shape[-2:]))
    return np.concatenate(found)


def difference(found: np.ndarray, student: Student) -> float:
    """The largest, in 8-bit steps of the range of the student's output."""
    expected = student.net(photographs())
    return float((torch.from_numpy(found) - expected).abs().max() / (expected.max() - expected.min()) / STEP)


@pytest.mark.parametrize('graph', GRAPHS)
@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_a_graph_gives_the_students_images(runtime, graph, folders, student, monkeypatch):
    pytest.importorskip(runtime, reason=f'{runtime} is not installed')
    assert difference(run_page(runtime, folders[graph], monkeypatch), student) < 0.02


PNNX = [(name, graph) for name in STUDENTS for graph in ('plain', 'static')]
QUICK = [('EDSRStudent', 'plain')]


@pytest.mark.parametrize(
    ('student', 'graph'),
    [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in PNNX],
    indirect=['student'],
)
def test_pnnx_makes_of_a_graph_what_gives_the_students_images_in_ncnn(graph, folders, student, tmp_path, monkeypatch):
    pytest.importorskip('ncnn', reason='ncnn is not installed')
    pytest.importorskip('pnnx', reason='pnnx is not installed')
    source = folders[graph]
    if student.description.architecture == 'ECBSR':  # by the file of the SRVGGNetCompact that it is
        export(measured(student, {}), tmp_path / 'student', FUSED_WEIGHTS)
        source = tmp_path / 'again'
        export(read_student(tmp_path / 'student_fused.pth'), source / 'student', onnx_formats(GRAPHS[graph])[:1])
    command = shlex.split(LINES['pnnx'].replace('640', str(WIDTH)).replace('360', str(HEIGHT)))
    assert command[:2] == ['pnnx', 'student.onnx']
    # The command that pip makes of pnnx, which need not be on the PATH of a test.
    run = [sys.executable, '-c', 'import pnnx; pnnx.pnnx()', *command[1:]]
    done = subprocess.run(run, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert difference(run_page('ncnn', source, monkeypatch), student) < 0.1


def test_litert_gives_the_students_images(student, folders, monkeypatch):
    pytest.importorskip('litert_torch', reason='litert-torch is not installed')
    assert difference(run_page('litert', folders['static'], monkeypatch), student) < 0.02
