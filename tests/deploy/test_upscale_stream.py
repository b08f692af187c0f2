import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from conftest import STUDENT
from PIL import Image
from torch import nn

from facd_basicsr.deploy.student import Description, Student, describe_network
from facd_basicsr.deploy.upscale_images import upscale_images
from facd_basicsr.deploy.upscale_stream import own_stdout, upscale_stream
from facd_basicsr.deploy.upscaler import Upscaler
from facd_basicsr.errors import UserError

WIDTH, HEIGHT = 13, 7
SIZE = 3 * WIDTH * HEIGHT


@pytest.fixture
def upscaler() -> Upscaler:
    torch.manual_seed(0)
    return Upscaler(Student(build_network(STUDENT).eval().requires_grad_(False), describe_network(STUDENT, 2)))


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


@contextmanager
def piped(content: bytes) -> Iterator[int]:
    """The end of a pipe from which a content can be read, written in pieces that are no frames."""
    source, sink = os.pipe()

    def write() -> None:
        for start in range(0, len(content), 100):
            os.write(sink, content[start : start + 100])
        os.close(sink)

    threading.Thread(target=write).start()
    yield source
    os.close(source)


@pytest.mark.parametrize('jobs', [1, 2, 5])
def test_frames_come_in_their_order_as_images_would(upscaler, tmp_path, jobs):
    given = frames(12)
    with piped(given.tobytes()) as source, (tmp_path / 'out').open('wb') as file:
        assert upscale_stream(upscaler, WIDTH, HEIGHT, jobs, source, file.fileno()) == 12
    found = np.fromfile(tmp_path / 'out', np.uint8).reshape(12, 2 * HEIGHT, 2 * WIDTH, 3)
    assert all(np.array_equal(frame, upscaler.upscale(pixels)) for frame, pixels in zip(found, given))


def test_an_empty_stream_has_no_frames(upscaler, tmp_path):
    with piped(b'') as source, (tmp_path / 'out').open('wb') as file:
        assert upscale_stream(upscaler, WIDTH, HEIGHT, 2, source, file.fileno()) == 0


def test_of_a_stream_that_ends_inside_a_frame_all_before_it_are_written(upscaler, tmp_path):
    message = (
        rf'^--raw: the stream ends inside a frame, after {SIZE - 1} of {SIZE} bytes; accepted: whole frames of 13x7'
    )
    with (
        piped(frames(4).tobytes()[:-1]) as source,
        (tmp_path / 'out').open('wb') as file,
        pytest.raises(UserError, match=message),
    ):
        upscale_stream(upscaler, WIDTH, HEIGHT, 2, source, file.fileno())
    assert (tmp_path / 'out').stat().st_size == 3 * 4 * SIZE


def test_a_reader_that_is_gone_ends_all(upscaler):
    source, sink = os.pipe()
    os.close(source)
    with piped(frames(12).tobytes()) as frames_from, pytest.raises(BrokenPipeError):
        upscale_stream(upscaler, WIDTH, HEIGHT, 2, frames_from, sink)
    os.close(sink)


@pytest.mark.parametrize('jobs', [1, 2])
def test_no_more_frames_are_held_than_said(upscaler, tmp_path, monkeypatch, jobs):
    read, held, written = [], [], []
    full = threading.Event()
    readv, write = os.readv, os.write

    def counted(source: int, parts: list) -> int:
        found = readv(source, parts)
        read.append(found)  # a file gives a frame at once
        if len(read) == jobs + 2:
            full.set()
        return found

    def slow(target: int, content: memoryview) -> int:
        assert full.wait(60)  # others are read meanwhile
        held.append(len(read) - len(written))
        written.append(len(content))
        return write(target, content)

    monkeypatch.setattr(os, 'readv', counted)
    monkeypatch.setattr(os, 'write', slow)
    (tmp_path / 'in').write_bytes(frames(30).tobytes())
    with (tmp_path / 'in').open('rb') as source, (tmp_path / 'out').open('wb') as file:
        assert upscale_stream(upscaler, WIDTH, HEIGHT, jobs, source.fileno(), file.fileno()) == 30
    assert held[0] == max(held) == jobs + 2


class Narrow(nn.Module):
    """Takes no images, for want of memory or for its own reason."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.conv, self.reason = nn.Conv2d(3, 3, 1), reason

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(self.reason)


@pytest.mark.parametrize(
    ('reason', 'message'),
    [
        ('too wide', r'^--raw: the network does not run on 13x7 pixels \(too wide\); accepted: a size that it takes$'),
        (
            'cannot allocate memory',
            r'^--raw: 13x7: needs more memory than is available; accepted: --jobs 1, no --tile 0, or smaller frames$',
        ),
    ],
)
def test_frames_that_the_network_does_not_run_are_refused_in_a_line(reason, message, tmp_path):
    student = Student(Narrow(reason).eval().requires_grad_(False), Description('Narrow', {}, 2))
    with (
        piped(frames(3).tobytes()) as source,
        (tmp_path / 'out').open('wb') as file,
        pytest.raises(UserError, match=message),
    ):
        upscale_stream(Upscaler(student, 0), WIDTH, HEIGHT, 2, source, file.fileno())


def test_what_is_printed_meanwhile_does_not_get_between_frames(capfd):
    with own_stdout() as target:
        os.write(1, b'a message')
        os.write(target, b'a frame')
    os.write(1, b', and on')
    out, err = capfd.readouterr()
    assert out == 'a frame, and on' and err == 'a message'


def test_images_are_counted_for_memory_without_pillows_limit(upscaler):
    seen = []
    bound = SimpleNamespace(jobs=lambda pairs, most: seen.append(Image.MAX_IMAGE_PIXELS) or most)
    assert upscale_images(upscaler, [], 1, None, bound) == 0
    assert seen == [None] and Image.MAX_IMAGE_PIXELS is not None
