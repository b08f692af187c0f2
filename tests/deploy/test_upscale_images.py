from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from conftest import STUDENT, picture

from facd_basicsr.deploy import upscale_images as module
from facd_basicsr.deploy.description import describe
from facd_basicsr.deploy.image_tree import Pair
from facd_basicsr.deploy.student import Student
from facd_basicsr.deploy.upscale_images import upscale_images
from facd_basicsr.deploy.upscaler import Upscaler


@pytest.fixture
def upscaler() -> Upscaler:
    torch.manual_seed(0)
    return Upscaler(Student(build_network(STUDENT).eval().requires_grad_(False), describe(STUDENT, 2)), 16)


def written(folder: Path, count: int) -> list[Path]:
    """Pictures of several sizes."""
    paths = [folder / f'{index}.png' for index in range(count)]
    for index, path in enumerate(paths):
        cv2.imwrite(str(path), picture(index, 16 + 8 * index, 24))
    return paths


def pairs_to(out: Path, sources: list[Path], suffix: str = '.png') -> list[Pair]:
    return [Pair(source, out / f'{source.stem}{suffix}') for source in sources]


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
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return output(lq, is_alpha)

    monkeypatch.setattr(upscaler, '_output', short_of_memory)
    assert upscale_images(upscaler, pairs_to(tmp_path / 'out', sources), 1, None) == 1
    expected = '1.png: takes more memory than there is; accepted: --jobs 1, or a --tile smaller than 16'
    assert expected in capsys.readouterr().err
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['0.png']


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
