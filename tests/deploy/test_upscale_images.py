from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from conftest import STUDENT, picture
from PIL import Image
from torch import nn

from facd_basicsr.deploy import upscale_images as module
from facd_basicsr.deploy.student import Description, Student, describe_network
from facd_basicsr.deploy.upscale_images import UpscaleJob, upscale_images
from facd_basicsr.deploy.upscaler import Upscaler


@pytest.fixture
def upscaler() -> Upscaler:
    torch.manual_seed(0)
    return Upscaler(Student(build_network(STUDENT).eval().requires_grad_(False), describe_network(STUDENT, 2)), 16)


def written(folder: Path, count: int) -> list[Path]:
    """Pictures of several sizes."""
    paths = [folder / f'{index}.png' for index in range(count)]
    for index, path in enumerate(paths):
        cv2.imwrite(str(path), picture(index, 16 + 8 * index, 24))
    return paths


def pairs_to(out: Path, sources: list[Path], suffix: str = '.png') -> list[UpscaleJob]:
    return [UpscaleJob(source, out / f'{source.stem}{suffix}') for source in sources]


def test_files_do_not_depend_on_how_many_are_made_at_a_time(upscaler, tmp_path):
    sources = written(tmp_path, 5)
    threads = torch.get_num_threads()
    for jobs in (1, 3):
        assert upscale_images(upscaler, pairs_to(tmp_path / str(jobs), sources), jobs, None) == 0
    assert torch.get_num_threads() == threads
    for source in sources:
        one, three = (cv2.imread(str(tmp_path / jobs / source.name)) for jobs in ('1', '3'))
        assert np.array_equal(one, three) and one.shape[1] == 48


def test_what_is_left_out_or_lost_is_said_in_a_line_each(upscaler, tmp_path, capsys):
    (tmp_path / 'text.png').write_text('no image')
    cv2.imwrite(str(tmp_path / 'deep.png'), np.full((8, 8), 30000, np.uint16))
    cv2.imwrite(str(tmp_path / 'long.png'), np.zeros((2, 33000), np.uint8))
    names = ('text.png', 'absent.png', 'deep.png', 'long.png')
    sources = [tmp_path / name for name in names]
    assert upscale_images(upscaler, pairs_to(tmp_path / 'out', sources, '.jpg'), 2, None) == 3
    lines = sorted(capsys.readouterr().err.replace(f'{tmp_path}/', '').splitlines())
    assert lines == [
        'deep.png: JPEG has 8 bits a channel: rounded from 16',
        'skipped: absent.png: no such file',
        'skipped: long.png: x2: 66000x4 pixels; accepted by JPEG: 65500 a side; PNG takes more',
        f'skipped: text.png: not a readable image (cannot identify image file {str(sources[0])!r})'.replace(
            f'{tmp_path}/', ''
        ),
    ]
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['deep.jpg']


def test_an_image_that_takes_too_much_memory_is_left_out_with_what_helps(upscaler, tmp_path, capsys, monkeypatch):
    sources = written(tmp_path, 2)
    output = upscaler._output

    def short_of_memory(lq: torch.Tensor, is_alpha: bool) -> torch.Tensor:
        if lq.shape[2] > 20:
            raise RuntimeError('DefaultCPUAllocator: cannot allocate memory')
        return output(lq, is_alpha)

    monkeypatch.setattr(upscaler, '_output', short_of_memory)
    assert upscale_images(upscaler, pairs_to(tmp_path / 'out', sources), 1, None) == 1
    expected = (
        '1.png: needs more memory than is available; accepted: --jobs 1, a --tile smaller than 16, or a smaller image'
    )
    assert expected in capsys.readouterr().err
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['0.png']


def test_an_image_may_have_more_pixels_than_pillow_takes_of_strangers(upscaler, tmp_path, monkeypatch):
    sources = written(tmp_path, 2)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert upscale_images(upscaler, pairs_to(tmp_path / 'out', sources), 1, None) == 0
    assert Image.MAX_IMAGE_PIXELS == 100  # again: training reads no such images


def test_an_image_for_whose_output_memory_is_short_is_not_begun(upscaler, tmp_path, monkeypatch, capsys):
    sources = written(tmp_path, 2)  # of 16x24 and 24x24, three channels and x2
    monkeypatch.setattr('facd_basicsr.deploy.upscaler.available_memory', lambda: 16 * 24 * 12)
    assert upscale_images(upscaler, pairs_to(tmp_path / 'out', sources), 1, None) == 1
    assert '1.png: needs more memory than is available' in capsys.readouterr().err


class Narrow(nn.Module):
    """Takes images of 17 columns at most."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[3] > 17:
            raise RuntimeError('too wide')
        return nn.functional.interpolate(self.conv(x), scale_factor=2)


@pytest.mark.parametrize('tile', [0, 16])
def test_an_image_of_a_size_that_the_network_does_not_take_is_left_out_with_its_reason(tile, tmp_path, capsys):
    student = Student(Narrow().eval().requires_grad_(False), Description('Narrow', {}, 2))
    pairs = pairs_to(tmp_path / 'out', images_of_widths(tmp_path, 17, 18))
    assert upscale_images(Upscaler(student, tile), pairs, 1, None) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f'skipped: {tmp_path}/18.png: the network does not run on 18x12 pixels (too wide); accepted: an image of a '
        'size that it takes'
    )
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['17.png']


def images_of_widths(folder: Path, *widths: int) -> list[Path]:
    paths = [folder / f'{width}.png' for width in widths]
    for path, width in zip(paths, widths):
        cv2.imwrite(str(path), np.zeros((12, width), np.uint8))
    return paths


@pytest.mark.parametrize('tile', [0, 8])
def test_an_image_of_a_size_that_is_no_multiple_of_what_the_network_takes_is_padded(tile, tmp_path):
    block = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'scale': 2, 'num_feat': 4, 'num_block': 1}
    net = build_network({**block, 'num_grow_ch': 4}).eval().requires_grad_(False)
    pairs = pairs_to(tmp_path / 'out', images_of_widths(tmp_path, 17, 18))
    assert upscale_images(Upscaler(Student(net, describe_network(block, 2)), tile), pairs, 1, None) == 0
    assert [cv2.imread(str(pair.target)).shape for pair in pairs] == [(24, 34, 3), (24, 36, 3)]


def test_a_network_of_another_scale_than_its_file_says_is_told_of_every_image(tmp_path, capsys):
    net = build_network(STUDENT).eval().requires_grad_(False)
    upscaler = Upscaler(Student(net, describe_network({**STUDENT, 'upscale': 4}, 4)), 0)
    assert upscale_images(upscaler, pairs_to(tmp_path / 'out', written(tmp_path, 2)), 1, None) == 2
    assert '(gives (1, 3, 32, 48) instead of (1, 3, 64, 96))' in capsys.readouterr().err


def test_an_error_of_the_program_itself_is_not_passed_over(upscaler, tmp_path, monkeypatch):
    monkeypatch.setattr(upscaler, '_output', lambda *_: {}['absent'])
    with pytest.raises(KeyError, match='absent'):
        upscale_images(upscaler, pairs_to(tmp_path / 'out', written(tmp_path, 2)), 2, None)


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_what_is_begun_when_it_is_interrupted_leaves_nothing(upscaler, tmp_path, monkeypatch, error):
    sources = written(tmp_path, 6)
    pairs = pairs_to(tmp_path / 'out', sources)
    completed = module.as_completed

    def interrupted(futures):
        yield next(completed(futures))
        raise error

    monkeypatch.setattr(module, 'as_completed', interrupted)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        upscale_images(upscaler, pairs, 2, None)
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert len(names) >= 1 and names <= {source.name for source in sources}
    for name in names:
        assert cv2.imread(str(tmp_path / 'out' / name)) is not None
