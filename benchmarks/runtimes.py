"""An exported student in other runtimes: the largest difference to torch, and the time of an image.

    chrt -r 1 python benchmarks/runtimes.py --out benchmarks/results/runtimes.json

docs/deploy.md has the table, measured with real-time priority (``chrt``) over what else the machine did. The runtimes
take turns of several images each, so that other load affects all of them, and threads of one that wait for work do not
last into the time of the next. Those that are not installed are left out.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import numpy as np
import torch

from facd_basicsr.deploy.export_formats import BASIC, STEP, GraphOptions, export, measured, onnx_formats
from facd_basicsr.deploy.runtimes import openvino_core
from facd_basicsr.deploy.student import read_student
from facd_basicsr.environment import machine, versions
from facd_basicsr.errors import run_command
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.runtime.metrics import photograph_input

Run = Callable[[np.ndarray], np.ndarray]  # (1, 3, h, w) -> (1, 3, h * scale, w * scale)
IMAGES, WARM_UP = 5, 2  # of a turn
DEMO = Path(__file__).resolve().parents[1] / 'demo'


def in_torch(file: Path, threads: int, lq: np.ndarray) -> Run:
    net = read_student(file).net
    return lambda lq: net(torch.from_numpy(lq)).numpy()


def in_onnxruntime(file: Path, threads: int, lq: np.ndarray) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    return lambda lq: session.run(['sr'], {'lq': lq})[0]


def in_openvino(file: Path, threads: int, lq: np.ndarray, **settings: str) -> Run:
    settings |= {'INFERENCE_NUM_THREADS': str(threads)}
    model = openvino_core().compile_model(str(file), 'CPU', settings)
    return lambda lq: model(lq)['sr']


def in_openvino_in_float32(file: Path, threads: int, lq: np.ndarray) -> Run:
    return in_openvino(file, threads, lq, INFERENCE_PRECISION_HINT='f32')


def in_ncnn(file: Path, threads: int, lq: np.ndarray) -> Run:
    import ncnn

    shape = ','.join(map(str, lq.shape))
    run = [sys.executable, '-c', 'import pnnx; pnnx.pnnx()', file.name, f'inputshape=[{shape}]']
    subprocess.run(run, cwd=file.parent, check=True, capture_output=True)
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.load_param(str(file.with_suffix('.ncnn.param')))
    net.load_model(str(file.with_suffix('.ncnn.bin')))

    def run_once(lq: np.ndarray) -> np.ndarray:
        with net.create_extractor() as extractor:
            extractor.input('in0', ncnn.Mat(lq[0]))
            return np.array(extractor.extract('out0')[1])[None]

    return run_once


def in_litert(file: Path, threads: int, lq: np.ndarray) -> Run:
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    path = str(file.with_suffix('.tflite'))
    litert_torch.convert(read_student(file).net, (torch.from_numpy(lq),)).export(path)
    interpreter = Interpreter(path, num_threads=threads)
    runner = interpreter.get_signature_runner()
    (given,), (result,) = runner.get_input_details(), runner.get_output_details()
    return lambda lq: runner(**{given: lq})[result]


# {runtime: (how it runs a file, the file, the packages that it needs, what makes of the file what runs)}
RUNTIMES: dict[str, tuple[Callable[[Path, int, np.ndarray], Run], str, list[str], str]] = {
    'torch': (in_torch, 'student.pth', [], ''),
    'onnxruntime': (in_onnxruntime, 'student.onnx', ['onnxruntime'], ''),
    'onnxruntime, float16': (in_onnxruntime, 'student_fp16.onnx', ['onnxruntime'], ''),
    'onnxruntime, --static': (in_onnxruntime, 'static.onnx', ['onnxruntime'], '`facd export --static WxH`'),
    'onnxruntime, --static --mobile': (
        in_onnxruntime,
        'mobile.onnx',
        ['onnxruntime'],
        '`facd export --static WxH --mobile`',
    ),
    'OpenVINO, f32': (in_openvino_in_float32, 'student.onnx', ['openvino'], ''),
    'OpenVINO, its default': (in_openvino, 'student.onnx', ['openvino'], ''),
    'OpenVINO, f32, --static': (in_openvino_in_float32, 'static.onnx', ['openvino'], '`facd export --static WxH`'),
    'ncnn': (in_ncnn, 'student.onnx', ['ncnn', 'pnnx'], '`pnnx student.onnx inputshape=[1,3,H,W]`'),
    'LiteRT': (in_litert, 'student.pth', ['litert_torch'], '`litert_torch.convert`'),
}


def milliseconds(runs: dict[str, Run], lq: np.ndarray, turns: int) -> dict[str, float]:
    """The median of an image."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            for image in range(WARM_UP + IMAGES):
                start = time.perf_counter()
                run(lq)
                if image >= WARM_UP:
                    times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(own), 2) for name, own in times.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('checkpoint', nargs='?', type=Path, default=DEMO / 'EDSR_f32b8_x2.pth')
    arguments.add_argument('--opt', default=str(DEMO / 'Teacher.yml'), help='its option file')
    arguments.add_argument('--size', type=int, nargs=2, default=[180, 320], metavar=('H', 'W'))
    arguments.add_argument('--threads', type=int, default=2)
    arguments.add_argument('--turns', type=int, default=5)
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    student = measured(read_student(args.checkpoint, args.opt, 'checkpoint'), {})
    lq = photograph_input('astronaut.png', 3, *args.size).contiguous().numpy()
    static = GraphOptions(static=tuple(args.size), batch=1)
    mobile = GraphOptions(static=tuple(args.size), batch=1, mobile=True)
    with TemporaryDirectory() as folder:
        export(student, Path(folder, 'student'), [BASIC[0], *onnx_formats(GraphOptions())])
        for name, options in {'static': static, 'mobile': mobile}.items():
            export(student, Path(folder, name), onnx_formats(options)[:1])
        runs, missing = {}, set()
        for name, (runtime, file, packages, _) in RUNTIMES.items():
            absent = [package for package in packages if importlib.util.find_spec(package) is None]
            missing.update(absent)
            if not absent:
                runs[name] = runtime(Path(folder, file), args.threads, lq)
        sr = runs['torch'](lq)
        steps = {name: float(abs(run(lq) - sr).max() / (sr.max() - sr.min()) / STEP) for name, run in runs.items()}
        times = milliseconds(runs, lq, args.turns)
    packages = sorted({package for name in runs for package in RUNTIMES[name][2]})
    own = ', '.join(f'{package} {importlib.metadata.version(package)}' for package in packages)
    results = {
        'student': f'{student.description.architecture} x{student.description.scale}, {args.checkpoint.name}',
        'size': args.size,
        'machine': machine(),
        'threads': args.threads,
        'versions': f'{versions()}, {own}',
        'turns': args.turns,
        'runtimes': {
            name: {'file': RUNTIMES[name][1], 'by': RUNTIMES[name][3], 'steps': steps[name], 'ms': times[name]}
            for name in runs
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    print(text_table(['runtime', 'steps', 'ms'], [[n, f'{steps[n]:.2g}', f'{times[n]:.1f}'] for n in runs]))
    if missing:
        print(f'not installed: {", ".join(sorted(missing))}')


if __name__ == '__main__':
    run_command(main)
