"""``--memory``: what is counted, what is chosen by it, and that the process holds it."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from conftest import REPOSITORY, STUDENT, picture, run
from torch import nn

from facd_basicsr.deploy.export_formats import onnx_bytes
from facd_basicsr.deploy.memory_bound import RESERVE, MemoryBound
from facd_basicsr.deploy.runtimes import OnnxNetwork
from facd_basicsr.deploy.student import Description, Student, describe_network
from facd_basicsr.deploy.upscale_images import UpscaleJob, upscale_images
from facd_basicsr.deploy.upscaler import Upscaler
from facd_basicsr.environment import resident_memory
from facd_basicsr.errors import UserError

MB = 2**20
TAKEN = 500 * MB  # by Python and its libraries, in these tests


@pytest.fixture
def upscaler(monkeypatch) -> Upscaler:
    """An image takes 100 bytes a pixel of what runs at once, in tiles that look one pixel far."""
    torch.manual_seed(0)
    upscaler = Upscaler(Student(build_network(STUDENT).eval().requires_grad_(False), describe_network(STUDENT, 2)))
    monkeypatch.setattr(upscaler, 'footprint', lambda height, width, tile: 100 * min(height, tile) * min(width, tile))
    monkeypatch.setattr('facd_basicsr.deploy.memory_bound.resident_memory', lambda: TAKEN)
    return upscaler


def bound(upscaler: Upscaler, free: int) -> MemoryBound:
    return MemoryBound(upscaler, TAKEN + RESERVE + free)


@pytest.mark.parametrize(
    ('free', 'expected'),
    [
        (300_000 + 2 * 100 * 512**2, 512),
        (20_000 + 2 * 100 * 64**2, 64),
        (20_000 + 2 * 100 * 64**2 - 1, 48),
        (20_000 + 2 * 100 * 32**2, 32),
        (20_000 + 2 * 100 * 32**2 - 1, 32),  # alone: two would not fit
        (10_000 + 100 * 32**2, 32),
    ],
)
def test_the_tile_is_the_largest_with_which_two_images_fit_or_else_one(upscaler, free, expected):
    tile, taken = bound(upscaler, free).tile(2000, 3000, 10_000, 'a.png')
    assert (tile, taken) == (expected, 10_000 + 100 * expected**2)


def test_an_image_that_does_not_fit_by_itself_is_refused_with_what_would_do(upscaler):
    message = r'^a\.png: takes 1 MB, and --memory leaves 1 MB; accepted: --memory 565M, or a smaller image$'
    with pytest.raises(UserError, match=message):
        bound(upscaler, 10_000 + 100 * 32**2 - 1).tile(2000, 3000, 10_000, 'a.png')


def test_no_more_images_are_in_work_than_fit_whichever_they_are(upscaler, tmp_path):
    for name, side in (('small', 16), ('large', 512)):
        cv2.imwrite(str(tmp_path / f'{name}.png'), picture(0, side, side))
    (tmp_path / 'text.png').write_text('no image')
    small, large, text = ((tmp_path / f'{name}.png', '.png') for name in ('small', 'large', 'text'))
    bounded = bound(upscaler, 120 * MB)
    _, taken = bounded.tile_of(*large)
    pixels = 3 * 512**2
    assert taken == 2 * pixels + 4 * pixels + 24 * MB + 100 * 512**2  # 54 MB
    assert bounded.jobs([small, large, text], 8) == 120 * MB // taken == 2
    assert bounded.jobs([small], 4) == 4


def test_frames_of_a_stream_are_counted_before_and_after_they_run(upscaler):
    frame = 3 * 64 * 32
    tile, jobs = bound(upscaler, 3 * (frame + 3 * 5 * frame + 100 * 64 * 32)).for_frames(64, 32, 8)
    assert (tile, jobs) == (512, 3)


def test_less_than_the_process_has_already_is_refused(upscaler):
    message = r'^--memory: 564 MB, of which Python, its libraries and the network take 564 MB; accepted: more$'
    with pytest.raises(UserError, match=message):
        bound(upscaler, 0)


class Decides(nn.Module):
    """Decides by a value, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return nn.functional.interpolate(x if x.mean() > 0 else -x, scale_factor=2)


def test_a_network_that_cannot_be_counted_is_refused():
    upscaler = Upscaler(Student(Decides().eval().requires_grad_(False), Description('Decides', {}, 2)), 0)
    with pytest.raises(
        UserError, match=r'^--memory: the memory of Decides cannot be counted \(.*\); accepted: --tile and'
    ):
        MemoryBound(upscaler, 2**40)


def test_images_that_do_not_fit_are_left_out_in_a_line(upscaler, tmp_path, capsys):
    for name, side in (('a', 16), ('b', 2048)):
        cv2.imwrite(str(tmp_path / f'{name}.png'), np.zeros((side, side, 3), np.uint8))
    pairs = [UpscaleJob(tmp_path / f'{name}.png', tmp_path / 'out' / f'{name}.png') for name in 'ab']
    assert upscale_images(upscaler, pairs, 2, None, bound(upscaler, 60 * MB)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r'skipped: \S+/b\.png: takes \d+ MB, and --memory leaves 60 MB; accepted: --memory \d+M, or .*', line
    )
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a.png']


def test_what_a_network_is_counted_to_take_is_what_its_layers_hold():
    net = nn.Sequential(nn.Conv2d(3, 40, 3, padding=1), nn.Conv2d(40, 12, 1), nn.PixelShuffle(2))
    upscaler = Upscaler(Student(net.eval().requires_grad_(False), Description('Net', {}, 2)), 16)
    # its input, and 40 channels and 12 at a time; in tiles one pixel around, 18 x 18
    assert upscaler.footprint(100, 100, 16) == 18 * 18 * 4 * (3 + 40 + 12)
    assert upscaler.footprint(10, 100, 0) == 10 * 100 * 4 * (3 + 40 + 12)
    thin = nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2))
    upscaler = Upscaler(Student(thin.eval().requires_grad_(False), Description('Net', {}, 2)), 16)
    assert upscaler.footprint(10, 100, 0) == 10 * 100 * 4 * (3 * 12)  # its output, clamped, and as integers


def test_float16_is_counted_as_the_float32_that_cpus_compute_it_in():
    student = Student(nn.Conv2d(3, 12, 1).eval().requires_grad_(False), Description('Net', {'type': 'EDSR'}, 2))
    graphs = (OnnxNetwork(onnx_bytes(student, half), 'IN') for half in (False, True))
    whole, half = (graph.footprint(16, 24) for graph in graphs)
    assert half >= whole == 4 * 16 * 24 * (3 + 12)


def test_resident_memory_follows_what_is_held():
    before = resident_memory()
    held = np.ones(64 * MB, np.uint8)
    assert 60 * MB < resident_memory() - before < 80 * MB
    del held


PEAK = """
import sys, pathlib, torch
from facd_basicsr.deploy.memory_bound import MemoryBound
from facd_basicsr.deploy.student import read_student
from facd_basicsr.deploy.upscale_images import pairs_of, upscale_images
from facd_basicsr.deploy.upscaler import Upscaler
from facd_basicsr.environment import resident_memory
folder, backend, free = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def peak():
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM:'))
pairs = pairs_of([folder / 'in'], folder / 'out', None)
upscaler = Upscaler(read_student(folder / 'student.pth'), None, backend)
limit = resident_memory() + free
assert upscale_images(upscaler, pairs, 2, None, MemoryBound(upscaler, limit)) == 0
bounded = peak()
upscaler = Upscaler(read_student(folder / 'student.pth'), None, backend)
assert upscale_images(upscaler, pairs, 2, None) == 0
print(limit, bounded, peak())
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='the peak is read from Linux')
@pytest.mark.slow
@pytest.mark.parametrize('backend', ['torch', 'onnxruntime'])
def test_the_process_never_holds_more_than_the_bound_and_without_it_would(backend, tmp_path):
    block = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 24, 'num_block': 1, 'num_grow_ch': 4}
    student = describe_network({**block, 'scale': 4}, 4)
    torch.save(
        {'params': build_network(student.network).state_dict(), 'metadata': student.as_metadata()},
        tmp_path / 'student.pth',
    )
    (tmp_path / 'in').mkdir()
    for index in range(2):
        cv2.imwrite(str(tmp_path / 'in' / f'{index}.png'), picture(index, 200, 320 + 8 * index))
    # whole, a feature at the output's size has 98 MB, and two images run
    done = run('-c', PEAK, tmp_path, backend, str(RESERVE + 140 * MB), cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    limit, bounded, unbounded = (int(number) / MB for number in done.stdout.split())
    assert bounded <= limit and unbounded > limit + 100, (limit, bounded, unbounded)
