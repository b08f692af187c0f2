"""Seconds of upscaling a folder: ``facd upscale`` by each backend, a plain loop, spandrel and realesrgan.

    python benchmarks/upscale.py --images PHOTOGRAPHS --student STUDENT.pth --out benchmarks/results/upscale.json

Each way has a process, which imports, builds and upscales an image before it counts; their turns are
interleaved. Busy is the share of a turn in which the network runs on any image. The networks are a SRVGGNetCompact,
whose last convolution is scaled down so that its output is a photograph, as PNG compresses it, and a checkpoint by
``facd export``. spandrel and realesrgan are left out where they are not installed or do not know the network. The
latter is no requirement: ``pip install --no-deps --target FOLDER realesrgan``, and FOLDER in PYTHONPATH. The loops are
what their authors' examples do: ``cv2.imread``, one forward of the whole image, ``cv2.imwrite``.
"""

import argparse
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import cv2
import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.utils import img2tensor, tensor2img
from recorder import Recorder
from torch import Tensor, nn

from facd_basicsr.archs.spandrel_arch import opened_by_spandrel
from facd_basicsr.deploy.runtimes import BACKENDS
from facd_basicsr.deploy.student import METADATA, describe_network, read_student
from facd_basicsr.deploy.upscale_images import pairs_of, upscale_images
from facd_basicsr.deploy.upscaler import Upscaler
from facd_basicsr.environment import machine, versions
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.files.images import image_size, images_in
from facd_basicsr.files.state_dicts import load_state_dict

COMPACT = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_conv': 16, 'upscale': 4}
FACD = {f'facd upscale, {backend}': backend for backend in ('torch', *BACKENDS)}
LOOPS = {'plain loop': None, 'spandrel': 'spandrel', 'realesrgan': 'realesrgan'}  # and the package each needs
Turn = Callable[[list[Path], Path], None]  # upscales images into a folder


class Busy:
    """Measures when a function runs, on any thread."""

    def __init__(self) -> None:
        self.intervals: list[tuple[float, float]] = []

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.intervals.append((start, time.perf_counter()))

        return run

    def seconds(self) -> float:
        """In which it has run since this was last called, on however many threads."""
        total = end = 0.0
        for start, stop in sorted(self.intervals):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        self.intervals.clear()
        return total


def compact(path: Path) -> Path:
    """A checkpoint whose output is the image, nearly."""
    torch.manual_seed(0)
    net = build_network(dict(COMPACT))
    with torch.no_grad():
        net.body[-1].weight.mul_(0.1)
    torch.save({'params': net.state_dict(), METADATA: describe_network(COMPACT, 4).as_metadata()}, path)
    return path


def facd(weights: Path, backend: str, busy: Busy) -> Turn:
    upscaler = Upscaler(read_student(weights), None, backend)
    upscaler._net.forward = busy.timed(upscaler._net.forward)

    def turn(images: list[Path], out: Path) -> None:
        upscale_images(upscaler, pairs_of(images, out, None), 2, None)  # the default of --jobs

    return turn


def loop(weights: Path, way: str, busy: Busy) -> Turn:
    student = read_student(weights)
    enhance = busy.timed(ENHANCERS[way](weights, student.net, student.description.scale))

    def turn(images: list[Path], out: Path) -> None:
        out.mkdir(exist_ok=True)
        for path in images:
            cv2.imwrite(str(out / f'{path.stem}.png'), enhance(cv2.imread(str(path))))

    return turn


def plain(weights: Path, net: nn.Module, scale: int) -> Callable[[np.ndarray], np.ndarray]:
    return as_bgr(net)


def by_spandrel(weights: Path, net: nn.Module, scale: int) -> Callable[[np.ndarray], np.ndarray]:
    import spandrel

    return as_bgr(spandrel.ModelLoader().load_from_file(weights).eval())


def by_realesrgan(weights: Path, net: nn.Module, scale: int) -> Callable[[np.ndarray], np.ndarray]:
    from realesrgan import RealESRGANer

    enhancer = RealESRGANer(scale, str(weights), model=net)
    return lambda image: enhancer.enhance(image)[0]


def as_bgr(net: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    def enhance(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return tensor2img(net(img2tensor(image.astype(np.float32) / 255)[None]))

    return enhance


ENHANCERS = {'plain loop': plain, 'spandrel': by_spandrel, 'realesrgan': by_realesrgan}


def serve(way: str, weights: Path, images: list[Path], out: Path) -> None:
    """Answers each line of stdin by the seconds of a turn, and those in which the network ran."""
    busy = Busy()
    turn = facd(weights, FACD[way], busy) if way in FACD else loop(weights, way, busy)
    turn(images[:1], out)  # starts threads, chooses algorithms
    print('took', 0, 0, flush=True)
    for _ in sys.stdin:
        busy.intervals.clear()
        start = time.perf_counter()
        turn(images, out)
        print('took', time.perf_counter() - start, busy.seconds(), flush=True)


@contextmanager
def process(way: str, weights: Path, images: list[Path], out: Path) -> Iterator[Callable[[], tuple[float, float]]]:
    command = [sys.executable, __file__, '--serve', way, str(weights), str(out), *map(str, images)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        stdin, stdout = running.stdin, running.stdout
        assert stdin is not None and stdout is not None

        def answer() -> tuple[float, float]:
            line = next(line for line in stdout if line.startswith('took '))  # BasicSR prints, too
            seconds, busy = map(float, line.split()[1:])
            return seconds, busy

        def turn() -> tuple[float, float]:
            stdin.write('\n')
            stdin.flush()
            return answer()

        answer()  # it is ready
        yield turn
        stdin.close()


def measured(weights: Path, images: list[Path], turns: int, folder: Path) -> dict[str, dict[str, float]]:
    """{way: median seconds of a turn, median share of them in which the network runs}."""
    ways = [*FACD, *(way for way, package in LOOPS.items() if package is None or importlib.util.find_spec(package))]
    if 'spandrel' in ways and opened_by_spandrel(load_state_dict(weights, '--student')) is None:
        ways.remove('spandrel')
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with ExitStack() as running:
        turn = {way: running.enter_context(process(way, weights, images, folder / 'out')) for way in ways}
        for number in range(turns):
            for way in ways[:: 1 if number % 2 else -1]:
                found[way].append(turn[way]())
            print({way: f'{results[-1][0]:.1f} s' for way, results in found.items()}, flush=True)
    return {
        way: {
            'seconds': round(statistics.median(seconds for seconds, _ in results), 2),
            'busy': round(statistics.median(busy / seconds for seconds, busy in results), 3),
        }
        for way, results in found.items()
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('--images', type=Path, required=True, help='folder of photographs')
    arguments.add_argument('--student', type=Path, nargs='*', default=[], help='checkpoints by facd export')
    arguments.add_argument('--count', type=int, default=4, help='of them')
    arguments.add_argument('--turns', type=int, default=3)
    arguments.add_argument('--out', type=Path, required=True)
    args = arguments.parse_args()
    images = images_in(args.images)[: args.count]
    with tempfile.TemporaryDirectory() as folder:
        networks = {}
        for path in (compact(Path(folder, 'compact.pth')), *args.student):
            description = read_student(path, where='--student').description
            networks[f'{description.architecture} x{description.scale}'] = path
        measure(networks, images, Path(folder), args)


def measure(networks: dict[str, Path], images: list[Path], folder: Path, args: argparse.Namespace) -> None:
    pixels = sum(math.prod(image_size(path)) for path in images)
    packages = [*BACKENDS, *(package for package in LOOPS.values() if package and importlib.util.find_spec(package))]
    used = ', '.join([versions(), *(f'{package} {version(package)}' for package in packages)])
    recorder, results = Recorder(args.out, networks), {}
    for name, weights in networks.items():
        results[name] = measured(weights, images, args.turns, folder)
        rows = [[way, f'{row["seconds"]:.1f}', f'{100 * row["busy"]:.0f} %'] for way, row in results[name].items()]
        print(text_table([name, 's', 'busy'], rows), flush=True)
        recorder.write(
            name,
            {
                'images': len(images),
                'megapixels': round(pixels / 1e6, 2),
                'turns': args.turns,
                'machine': machine(),
                'threads': torch.get_num_threads(),
                'versions': used,
                'load_average': round(os.getloadavg()[0], 1),
                'networks': results,
            },
        )


if __name__ == '__main__':
    if sys.argv[1:2] == ['--serve']:
        way, weights, out, *images = sys.argv[2:]
        serve(way, Path(weights), [Path(image) for image in images], Path(out))
    else:
        main()
