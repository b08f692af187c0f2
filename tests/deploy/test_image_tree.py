from pathlib import Path

import pytest

from facd_basicsr.deploy.upscale_images import is_one_file, pairs_of
from facd_basicsr.errors import UserError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with images of no content."""
    monkeypatch.chdir(tmp_path)
    for name in ('in/a.jpg', 'in/sub/b.PNG', 'in/sub/up/c.webp', 'other/a.png', 'x.png', 'in/notes.txt'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def targets(*inputs: str, out: str, suffix: str | None = None) -> dict[str, str]:
    pairs = pairs_of([Path(path) for path in inputs], Path(out), suffix)
    return {pair.source.as_posix(): pair.target.as_posix() for pair in pairs}


def test_folders_are_walked_and_keep_their_structure(root):
    assert targets('in', 'x.png', out='out', suffix='.webp') == {
        'in/a.jpg': 'out/a.webp',
        'in/sub/b.PNG': 'out/sub/b.webp',
        'in/sub/up/c.webp': 'out/sub/up/c.webp',
        'x.png': 'out/x.webp',
    }


def test_one_image_becomes_a_file_or_lies_in_a_folder(root):
    assert targets('x.png', out='y.jpg') == {'x.png': 'y.jpg'}
    assert targets('x.png', out='y.jpeg', suffix='.jpg') == {'x.png': 'y.jpeg'}
    assert targets('x.png', out='other') == {'x.png': 'other/x.png'}
    assert not is_one_file([Path('in')], Path('y.png'))


def test_a_folder_that_is_there_may_have_any_name(root):
    Path('y.png').mkdir()
    assert targets('x.png', 'in/a.jpg', out='y.png') == {'x.png': 'y.png/x.png', 'in/a.jpg': 'y.png/a.png'}
    assert targets('x.png', out='y.png') == {'x.png': 'y.png/x.png'}
    assert targets('in/a.jpg', out='v1.5') == {'in/a.jpg': 'v1.5/a.png'}


def test_what_was_made_in_a_folder_inside_is_not_made_again(root):
    assert targets('in', out='in/sub/up') == {'in/a.jpg': 'in/sub/up/a.png', 'in/sub/b.PNG': 'in/sub/up/sub/b.png'}


def test_out_may_be_a_folder_around_the_images(root):
    expected = {'in/sub/b.PNG': 'b.png', 'in/sub/up/c.webp': 'up/c.png'}
    assert targets('in/sub', out='.') == expected
    assert targets('in/sub', out='in') == {source: f'in/{target}' for source, target in expected.items()}


@pytest.mark.parametrize(
    ('inputs', 'out', 'suffix', 'message'),
    [
        (['absent.png'], 'out', None, r'^IN: no such file or folder: absent.png$'),
        (['x.png'], 'y.png', '.jpg', r'^--format: jpg, but --out is y.png; accepted: one and the same'),
        (['in'], 'x.png', None, r'^--out: x.png is a file; accepted: a folder'),
        (['x.png', 'in/a.jpg'], 'y.png', None, r'^--out: y.png is the name of one file; accepted for several, or'),
        (['in'], 'y.WEBP', None, r'^--out: y.WEBP is the name of one file; accepted for several, or a folder of them:'),
        (['x.png'], 'y.tif', None, r'^--out: y.tif; accepted: a folder, or .* ends in \.png, \.jpg, \.jpeg, \.webp$'),
        (['x.png'], 'y.bmp', '.png', r'^--out: y.bmp; accepted: a folder, or for one image'),
        (['in'], 'in', None, r'^--out: in is IN; accepted: another folder'),
        (['x.png'], 'x.png', None, r'^--out: x.png would overwrite an image of IN'),
        (['x.png'], '.', None, r'^--out: x.png would overwrite an image of IN'),
        (['other', 'in/a.jpg'], 'in/../other', '.png', r'^--out: in/../other is IN'),
        (['in/a.jpg', 'other/a.png'], 'out', None, r'^IN: in/a.jpg and other/a.png would both become out/a.png; acc'),
        (['other', 'in'], 'out', None, r'^IN: other/a.png and in/a.jpg would both become out/a.png'),
    ],
)
def test_what_would_lose_an_image_is_refused(root, inputs, out, suffix, message):
    with pytest.raises(UserError, match=message):
        targets(*inputs, out=out, suffix=suffix)


def test_a_folder_without_images_is_refused(root):
    Path('empty').mkdir()
    with pytest.raises(UserError, match=r'^IN: empty: no images; accepted: \.bmp, \.jpeg'):
        targets('empty', out='out')
