"""``facd upscale`` as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import onnx
import pytest
import torch
from basicsr.archs import build_network
from click.testing import CliRunner, Result
from conftest import REPOSITORY, STUDENT, picture, run
from onnx import TensorProto, helper, numpy_helper
from PIL import ExifTags, Image
from safetensors.torch import save_file

from facd_basicsr.cli import facd
from facd_basicsr.deploy.runtimes import OnnxNetwork
from facd_basicsr.deploy.student import METADATA, Description, describe_network, read_student
from facd_basicsr.deploy.upscaler import Upscaler
from facd_basicsr.errors import UserError
from facd_basicsr.files.images import read_pixels


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A checkpoint with metadata about its network."""
    torch.manual_seed(0)
    path = tmp_path / 'student.pth'
    state_dict = build_network(STUDENT).state_dict()
    torch.save({'params': state_dict, METADATA: describe_network(STUDENT, 2).as_metadata()}, path)
    return path


# facd with standard input and output that are files of a folder, to which it writes its process's id
OF_FILES = """
import os, signal, sys
folder = sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs with &
open(f'{folder}/pid', 'w').write(str(os.getpid()))
os.dup2(os.open(f'{folder}/stdin', os.O_RDONLY), 0)
os.dup2(os.open(f'{folder}/stdout', os.O_WRONLY), 1)
from facd_cli import main
main()
"""


def test_frames_of_a_network_that_takes_no_tiles_run_whole_whatever_tile_says(tmp_path):
    network = {'type': 'RCANStudent', 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': 2}
    torch.manual_seed(0)
    metadata = describe_network(network, 2).as_metadata()
    torch.save({'params': build_network(network).state_dict(), METADATA: metadata}, tmp_path / 'rcan.pth')
    frame = picture(0, 40, 48)
    for name in ('stdin', 'stdout'):
        (tmp_path / name).write_bytes(frame.tobytes() * (name == 'stdin'))
    command = ('upscale', '-', '-s', tmp_path / 'rcan.pth', '--raw', '48x40', '--tile', '16')
    done = run('-c', OF_FILES, tmp_path, *command, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    whole = Upscaler(read_student(tmp_path / 'rcan.pth')).upscale(frame)
    assert np.array_equal(np.frombuffer((tmp_path / 'stdout').read_bytes(), np.uint8).reshape(80, 96, 3), whole)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder with an image of every kind, some in a subfolder."""
    root = tmp_path / 'photographs'
    (root / 'inner').mkdir(parents=True)
    rgb = Image.fromarray(picture(0, 16, 24))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    rgb.save(root / 'turned.jpg', exif=exif)
    rgb.save(root / 'inner' / 'colors.webp', lossless=True)
    rgb.convert('L').save(root / 'gray.png')
    rgb.convert('P').save(root / 'palette.png')
    rgb.convert('LA').save(root / 'inner' / 'gray_and_alpha.png')
    cv2.imwrite(str(root / 'deep.png'), np.linspace(0, 65535, 16 * 24 * 3).astype(np.uint16).reshape(16, 24, 3))
    return root


def invoke(*command: str | Path) -> Result:
    return CliRunner().invoke(facd, ['upscale', *map(str, command)], catch_exceptions=False)


def test_a_damaged_image_in_a_folder_is_skipped(student, photographs, tmp_path, checkout):
    (photographs / 'inner' / 'cut.png').write_bytes((photographs / 'gray.png').read_bytes()[:60])
    command = ('-m', 'facd_basicsr.cli', 'upscale', photographs, '-o', tmp_path / 'out', '-s', student)
    done = run(*command, cwd=checkout)
    assert done.returncode == 3, done.stderr
    assert done.stdout == f'{tmp_path / "out"}: 6 upscaled, 0 up to date, 1 skipped\n'
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'skipped: {photographs}/inner/cut.png: not a readable image (')
    kinds = {
        path.relative_to(tmp_path / 'out').as_posix(): (read_pixels(path)[0].shape, read_pixels(path)[0].dtype.name)
        for path in (tmp_path / 'out').rglob('*.png')
    }
    assert kinds == {
        'turned.png': ((48, 32, 3), 'uint8'),
        'inner/colors.png': ((32, 48, 3), 'uint8'),
        'gray.png': ((32, 48, 1), 'uint8'),
        'palette.png': ((32, 48, 3), 'uint8'),
        'inner/gray_and_alpha.png': ((32, 48, 2), 'uint8'),
        'deep.png': ((32, 48, 3), 'uint16'),
    }


def test_a_killed_command_is_completed_by_the_same_command(student, photographs, tmp_path):
    out = tmp_path / 'out'
    command = ['upscale', str(photographs), '-o', str(out), '-s', str(student), '--jobs', '1']
    code = """
import os, signal
from facd_basicsr.deploy import upscale_images
from facd_cli import main
write_partial = upscale_images.write_partial
def killed_at_the_third(path, parts):
    if len(list(path.parents[path.parent.name == 'inner'].rglob('*.png'))) == 2:
        path.with_name(f'.partial_{path.name}').write_bytes(b''.join(parts)[:50])
        os.kill(os.getpid(), signal.SIGKILL)
    return write_partial(path, parts)
upscale_images.write_partial = killed_at_the_third
main()
"""
    done = run('-c', code, *command, cwd=REPOSITORY)
    assert done.returncode == -9, done.stderr
    assert len([path for path in out.rglob('*.png') if path.name[0] != '.']) == 2
    assert ': 4 upscaled, 2 up to date, 0 skipped' in invoke(*command[1:]).output
    assert ': 0 upscaled, 6 up to date, 0 skipped' in invoke(*command[1:]).output
    assert len(list(out.rglob('*.png'))) == 6  # no unfinished file is left
    uninterrupted = tmp_path / 'uninterrupted'
    invoke(photographs, '-o', uninterrupted, '-s', student)
    for path in uninterrupted.rglob('*.png'):
        assert path.read_bytes() == (out / path.relative_to(uninterrupted)).read_bytes()


@pytest.mark.parametrize('step', ['write', 'fsync'])
def test_a_full_disk_keeps_the_files_that_were_to_be_overwritten(step, student, photographs, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    invoke(photographs / 'gray.png', '-o', out, '-s', student)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    fails = Mock(side_effect=OSError(28, 'No space left on device'))
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r'out/gray\.png: No space left .* again$'):
        patch.setattr('facd_basicsr.files.images._chunk' if step == 'write' else 'os.fsync', fails)
        invoke(photographs / 'gray.png', '-o', out, '-s', student, '--overwrite')
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert ': 0 upscaled, 1 up to date' in invoke(photographs / 'gray.png', '-o', out, '-s', student).output


def test_changed_images_are_upscaled_again_and_students_are_not_mixed(student, photographs, tmp_path):
    out = tmp_path / 'out'
    assert invoke(photographs, '-o', out, '-s', student).exit_code == 0
    Image.new('L', (5, 4), 99).save(photographs / 'gray.png')
    assert ': 1 upscaled, 5 up to date' in invoke(photographs, '-o', out, '-s', student).output
    assert Image.open(out / 'gray.png').size == (10, 8)
    content = torch.load(student, weights_only=True)
    content['params']['conv_last.bias'] += 0.1
    other = tmp_path / 'other.pth'
    torch.save(content, other)
    with pytest.raises(UserError, match=r'--out: .* exists, written by another student .*\(student\.pth\)'):
        invoke(photographs, '-o', out, '-s', other)
    assert ': 6 upscaled, 0 up to date' in invoke(photographs, '-o', out, '-s', other, '--overwrite').output
    assert {json.loads(line)['student'] for line in (out / 'upscale.jsonl').read_text().splitlines()[-6:]} == {
        'other.pth'
    }


def test_one_image_becomes_one_file_which_is_not_overwritten(student, photographs, tmp_path):
    command = (photographs / 'gray.png', '-o', tmp_path / 'one.webp', '-s', student)
    assert ': 1 upscaled' in invoke(*command).output
    assert Image.open(tmp_path / 'one.webp').size == (48, 32)
    with pytest.raises(UserError, match=r'^--out: .*one\.webp exists; accepted: a new file, or --overwrite'):
        invoke(*command)
    assert ': 1 upscaled' in invoke(*command, '--overwrite').output
    assert not list(tmp_path.glob('*.jsonl'))


def test_an_option_file_gives_the_network_of_a_bare_checkpoint(student, photographs, tmp_path, test_opt):
    bare, option_file = tmp_path / 'bare.safetensors', tmp_path / 'test.yml'
    save_file(torch.load(student, weights_only=True)['params'], bare)
    test_opt['path']['pretrain_network_g'] = str(student)
    option_file.write_text(json.dumps(test_opt))  # JSON is YAML
    invoke(photographs / 'gray.png', '-o', tmp_path / 'a.png', '-s', student)
    invoke(photographs / 'gray.png', '-o', tmp_path / 'b.png', '-s', bare, '--opt', option_file)
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


def test_every_file_of_an_export_upscales_to_the_same_image(student, photographs, tmp_path):
    exported = CliRunner().invoke(facd, ['export', str(student), '-o', str(tmp_path / 'exported')])
    assert exported.exit_code == 0, exported.output
    for suffix in ('.pth', '.safetensors', '.onnx'):
        weights = tmp_path / f'exported{suffix}'
        assert invoke(photographs, '-o', tmp_path / suffix, '-s', weights, '--tile', '12').exit_code == 0
    names = [path.relative_to(tmp_path / '.pth') for path in (tmp_path / '.pth').rglob('*.png')]
    assert len(names) == 6
    for name in names:
        pth, safetensors, onnx = (
            read_pixels(tmp_path / suffix / name)[0] for suffix in ('.pth', '.safetensors', '.onnx')
        )
        assert np.array_equal(pth, safetensors) and pth.std() > 2
        difference = np.abs(pth.astype(int) - onnx)
        # onnxruntime sums in another order, which rarely changes the rounding by one level
        assert difference.max() <= 1 and (difference > 0).mean() < (0.001 if pth.dtype == np.uint8 else 0.2), name


def onnx_student(path: Path, radius: int | None) -> torch.nn.Module:
    """Writes a network of one convolution and x2 pixel shuffle as ONNX; returns it."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2)).requires_grad_(False)
    nodes = [
        helper.make_node('Conv', ['lq', 'weight', 'bias'], ['features'], pads=[1] * 4),
        helper.make_node('DepthToSpace', ['features'], ['sr'], blocksize=2, mode='CRD'),
    ]
    weights = [numpy_helper.from_array(getattr(net[0], name).numpy(), name) for name in ('weight', 'bias')]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ['n', 3, f'{name}_h', f'{name}_w'])
        for name in ('lq', 'sr')
    ]
    graph = helper.make_graph(nodes, 'student', ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    helper.set_model_props(model, Description('Net', {}, 2, radius).as_metadata())
    onnx.save(model, path)
    return net


@pytest.mark.parametrize('radius', [1, None])
def test_an_onnx_student_runs_in_tiles_if_it_stores_its_receptive_field(tmp_path, photographs, radius):
    net = onnx_student(tmp_path / 'student.onnx', radius)
    command = (photographs / 'palette.png', '-o', tmp_path / 'a.png', '-s', tmp_path / 'student.onnx', '--tile', '7')
    assert invoke(*command).exit_code == 0
    lq = torch.tensor(read_pixels(photographs / 'palette.png')[0]).permute(2, 0, 1)[None] / 255
    expected = (net(lq)[0].permute(1, 2, 0).clamp(0, 1) * 255).numpy()
    assert np.abs(read_pixels(tmp_path / 'a.png')[0] - expected).max() < 0.51


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('IN -o OUT -s absent.pth', r'^--student: no such file: absent\.pth'),
        ('IN -o IN -s STUDENT', r'^--out: .* is IN; accepted: another folder'),
        ('IN -s STUDENT', r'^--out: missing; accepted: a folder, for one image also a new file, or --raw without it$'),
        ('- -o OUT -s STUDENT', r'^IN: -; accepted: images and folders, or with --raw WIDTHxHEIGHT a stream$'),
        ('IN -o OUT -s a.onnx --backend torch', r'^--backend: torch; accepted with a.onnx: onnxruntime, openvino$'),
        ('IN -o OUT -s STUDENT --memory 2GB', r'^--memory: 2GB; accepted: bytes, or a number with K, M or G, as 2G$'),
        ('IN -o OUT -s STUDENT --memory 9K', r'^--memory: 1 MB, of which Python, .* take \d+ MB; accepted: more$'),
        (
            'IN -o OUT -s STUDENT --memory 2G --tile 0',
            r'^--tile: 0, with --memory, which chooses it; accepted: one of th',
        ),
        ('- -s STUDENT --raw 640', r'^--raw: 640; accepted: WIDTHxHEIGHT in pixels, as 640x360$'),
        ('- -s STUDENT --raw 0x9', r'^--raw: 0x9; accepted: WIDTHxHEIGHT'),
        ('IN -s STUDENT --raw 8x8', r'^IN: \S+; accepted with --raw: -, for standard input$'),
        (
            '- -o OUT -s STUDENT --raw 8x8',
            r'^--out: given; accepted with --raw: none, for frames go to standard output$',
        ),
        ('- -s STUDENT --raw 8x8 --format png', r'^--format: given; accepted with --raw: none'),
        ('- -s STUDENT --raw 8x8 --overwrite', r'^--overwrite: given; accepted with --raw: none'),
        ('- -s STUDENT --raw 8x8 --memory 9K', r'^--memory: 1 MB, of which'),
    ],
)
def test_user_errors_are_reported_before_anything_is_written(student, photographs, tmp_path, options, message):
    words = {'STUDENT': student, 'IN': photographs, 'OUT': tmp_path / 'out'}
    with pytest.raises(UserError, match=message):
        invoke(*(words.get(word, word) for word in options.split()))
    assert not [*tmp_path.rglob('out/*.png')]


@pytest.mark.parametrize('name', ['stdin', 'stdout'])
def test_frames_are_neither_read_from_nor_written_to_a_terminal(name, student, monkeypatch):
    monkeypatch.setattr(sys, name, Mock(isatty=lambda: True))
    with pytest.raises(UserError, match=rf'^--raw: standard {name[3:]}put is a terminal; accepted: a pipe or a file'):
        facd.main(['upscale', '--raw', '8x8', '-', '-s', str(student)], standalone_mode=False)


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_a_checkpoint_gives_the_same_images_by_every_backend_with_any_number_of_jobs(
    backend, student, photographs, tmp_path
):
    options = (photographs, '-s', student, '--tile', '12')
    for number in (1, 3):
        folder = tmp_path / f'{backend}{number}'
        assert invoke(*options, '-o', folder, '--backend', backend, '--jobs', str(number)).exit_code == 0
    assert invoke(*options, '-o', tmp_path / 'torch').exit_code == 0
    for path in (tmp_path / 'torch').rglob('*.png'):
        name = path.relative_to(tmp_path / 'torch')
        one, three, by_torch = (read_pixels(tmp_path / f / name)[0] for f in (f'{backend}1', f'{backend}3', 'torch'))
        assert np.array_equal(one, three)
        difference = np.abs(by_torch.astype(int) - one)
        assert difference.max() <= 1 and (difference > 0).mean() < (0.001 if one.dtype == np.uint8 else 0.2), name


def test_a_network_that_onnx_does_not_have_is_refused_in_a_line(student, photographs, tmp_path, monkeypatch):
    def refuses(*_: object, **options: object) -> None:
        print('a whole graph')
        raise RuntimeError('Unsupported operator\naten::some')

    monkeypatch.setattr(torch.onnx, 'export', refuses)
    message = (
        r'^--backend: openvino: EDSR cannot be written as ONNX \(Unsupported operator aten::some\); accepted: torch$'
    )
    with pytest.raises(UserError, match=message):
        invoke(photographs, '-o', tmp_path / 'out', '-s', student, '--backend', 'openvino')


def test_a_graph_that_gives_other_images_is_refused_in_a_line(student, photographs, tmp_path, monkeypatch):
    run = OnnxNetwork.forward
    monkeypatch.setattr(OnnxNetwork, 'forward', lambda net, lq: run(net, lq) + 0.1)
    message = r'^--backend: onnxruntime: would differ by .* of an 8-bit step, more than rounding .*; accepted: torch$'
    with pytest.raises(UserError, match=message):
        invoke(photographs, '-o', tmp_path / 'out', '-s', student, '--backend', 'onnxruntime')


def test_memory_is_bounded_for_images_and_frames_by_every_backend(student, photographs, tmp_path):
    for backend in ('torch', 'onnxruntime', 'openvino'):
        done = invoke(photographs, '-o', tmp_path / backend, '-s', student, '--backend', backend, '--memory', '64g')
        assert ': 6 upscaled, 0 up to date, 0 skipped' in done.output


FRAMES = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), np.uint8)


class Stream:
    """A process of ``facd upscale --raw`` on frames of 24x16, which has upscaled one frame before the next is there."""

    def __init__(self, folder: Path, student: Path, *options: str) -> None:
        for name in ('stdin', 'stdout'):
            os.mkfifo(folder / name)
        command = ('upscale', '--raw', '24x16', '-', '-s', student, *options)
        self._pool = ThreadPoolExecutor(1)
        self._running = self._pool.submit(run, '-c', OF_FILES, folder, *command, cwd=REPOSITORY)
        self.stdin, self.stdout = (folder / 'stdin').open('wb', 0), (folder / 'stdout').open('rb')
        self.stdin.write(FRAMES[0].tobytes())
        self.first = self.stdout.read(4 * FRAMES[0].size)
        self.pid = int((folder / 'pid').read_text())

    def end(self) -> subprocess.CompletedProcess[str]:
        """With the rest of its output, in bytes."""
        rest = self.stdout.read()
        with self._pool:
            done = self._running.result()
        self.stdin.close()
        self.stdout.close()
        return subprocess.CompletedProcess(done.args, done.returncode, rest, done.stderr)


def test_frames_of_a_stream_are_the_images_of_files_and_one_that_is_cut_is_told(student, tmp_path):
    stream = Stream(tmp_path, student, '--backend', 'openvino', '--memory', '64g')
    stream.stdin.write(FRAMES[1:].tobytes()[:-1])
    stream.stdin.close()
    done = stream.end()
    assert done.returncode == 2
    assert done.stderr == (
        'error: --raw: the stream ends inside a frame, after 1151 of 1152 bytes; accepted: whole frames of 24x16 '
        'pixels in rgb24\n'
    )
    for index in range(3):
        Image.fromarray(FRAMES[index]).save(tmp_path / f'{index}.png')
    names = [f'{index}.png' for index in range(3)]
    images = [tmp_path / name for name in names]
    assert invoke(*images, '-o', tmp_path / 'out', '-s', student, '--backend', 'openvino').exit_code == 0
    of_files = [np.asarray(Image.open(tmp_path / 'out' / name)) for name in names]
    assert stream.first + done.stdout == b''.join(image.tobytes() for image in of_files)


def test_a_stream_is_interrupted_without_a_traceback(student, tmp_path):
    stream = Stream(tmp_path, student)
    os.kill(stream.pid, signal.SIGINT)
    done = stream.end()
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, b'', 'interrupted')


def test_a_stream_whose_reader_is_gone_ends_in_silence(student):
    """In a new interpreter, which flushes its output once more at its end."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'facd_basicsr.cli', 'upscale', '--raw', '24x16', '-', '-s', str(student)],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    process.stdin.write(FRAMES[0].tobytes())
    assert process.stdout.read(1)
    process.stdout.close()
    process.stdin.write(FRAMES[1].tobytes())
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert process.stderr.read() == b''
