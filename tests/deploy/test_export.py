"""Every format of two students, written once; what other programs make of the files."""

import copy
import dataclasses
import re
from pathlib import Path

import onnx
import pytest
import safetensors
import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import REPOSITORY, STUDENT, build_teacher, changed, picture, write_yml
from torch.nn.functional import avg_pool2d, relu

from facd_basicsr.deploy.export_formats import (
    BASIC,
    EXPORT_FORMATS,
    ONNX,
    ONNX_FP16,
    STEP,
    TORCH_EXPORT,
    Format,
    GraphOptions,
    export,
    measured,
    onnx_bytes,
    onnx_formats,
    opened_in_spandrel,
    paths_of,
    read_program,
    require_onnx,
)
from facd_basicsr.deploy.student import METADATA, Description, Student, describe_network, read_student
from facd_basicsr.deploy.upscaler import RefusedSizeError, Upscaler
from facd_basicsr.distill.layouts import DIV2K_MEAN
from facd_basicsr.errors import UserError
from facd_basicsr.options import parser
from facd_basicsr.test import test as evaluate
from facd_basicsr.tools.convert import convert

RCAN_STUDENT = {'type': 'RCANStudent', 'num_feat': 16, 'num_group': 2, 'num_block': 1, 'upscale': 2}
NETWORKS = {'EDSR': (STUDENT, EDSR), 'RCAN': (RCAN_STUDENT, RCAN)}
SIZES = [(1, 3, 1, 1), (1, 3, 17, 33), (3, 3, 20, 9)]


def student_of(network: dict) -> Student:
    torch.manual_seed(0)
    net = build_network(network).eval().requires_grad_(False)
    return Student(
        net, dataclasses.replace(describe_network(network, network['upscale']), name='tiny', option_sha256='ab12')
    )


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{architecture: folder with ``student.*`` of all formats}."""
    folders = {}
    for name, (network, _) in NETWORKS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        export(measured(student_of(network), {'Set5': 30.25}), folders[name] / 'student', EXPORT_FORMATS)
    return folders


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def expected(name: str, lq: torch.Tensor) -> torch.Tensor:
    return student_of(NETWORKS[name][0]).net(lq)


def test_the_files_are_there_and_nothing_else(folders, name):
    assert {path.name for path in folders[name].iterdir()} == {f'student{format.suffix}' for format in EXPORT_FORMATS}


def test_stock_basicsr_loads_the_checkpoint_strictly_by_its_own_loader(folders, name):
    network, stock = NETWORKS[name]
    net = stock(3, 3, **{key: value for key, value in network.items() if key != 'type'}).eval()
    BaseModel({'num_gpu': 0, 'is_train': False}).load_network(net, folders[name] / 'student.pth', True, 'params')
    lq = torch.rand(SIZES[1])
    assert torch.equal(net(lq), expected(name, lq))


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.onnx', '_fp16.onnx'])
def test_every_file_says_all_that_is_known_of_the_student(folders, name, suffix):
    description = read_student(folders[name] / f'student{suffix}').description
    reach = {'EDSR': 1 + 3 * 2 + 1 + 1 + 1, 'RCAN': None}[name]  # a pixel for each 3x3 convolution; RCAN's attention
    assert (description.architecture, description.scale, description.reach) == (name, 2, reach)
    assert (description.psnr, description.option_sha256) == ({'Set5': 30.25}, 'ab12')
    assert description.arguments['rgb_mean'] == list(DIV2K_MEAN)


@pytest.mark.parametrize('size', SIZES)
def test_onnx_has_no_size_baked_in_and_its_output_is_the_networks(folders, name, size):
    lq = torch.rand(size)
    found = read_student(folders[name] / 'student.onnx').net(lq)
    torch.testing.assert_close(found, expected(name, lq), rtol=0, atol=0.01 * STEP)
    halved = read_student(folders[name] / 'student_fp16.onnx').net(lq)
    torch.testing.assert_close(halved, expected(name, lq), rtol=0, atol=STEP)


def test_an_onnx_file_is_alone_and_tells_how_it_is_used(folders, name):
    model = onnx.load(folders[name] / 'student_fp16.onnx', load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    values = [model.graph.input[0], model.graph.output[0]]
    assert {value.type.tensor_type.elem_type for value in values} == {onnx.TensorProto.FLOAT}
    axes = [[axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values]
    assert axes == [['batch', 3, 'height', 'width'], ['batch', 3, 'height_x2', 'width_x2']]
    assert model.doc_string.startswith(f'{name} x2. lq: RGB in [0, 1], float32')
    assert [value.name for value in values] == ['lq', 'sr']


def test_torch_exports_program_takes_any_size_and_is_described(folders, name):
    net, description = read_program(folders[name] / 'student.pt2')
    for lq in map(torch.rand, SIZES):
        torch.testing.assert_close(net(lq), expected(name, lq), rtol=0, atol=0.01 * STEP)
    assert description == read_student(folders[name] / 'student.pth').description


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_an_exported_student_can_teach(folders, name, suffix):
    weights = {'weights': str(folders[name] / f'student{suffix}'), 'network': NETWORKS[name][0]}
    lq = torch.rand(2, 3, 8, 8)
    assert torch.equal(build_teacher(weights, 2)(lq), expected(name, lq))


def test_test_py_scores_an_exported_checkpoint_as_the_one_it_is_from(folders, name, test_opt, tmp_path):
    torch.save({'params': student_of(NETWORKS[name][0]).net.state_dict()}, tmp_path / 'net_g_latest.pth')
    figures = []
    for path in (tmp_path / 'net_g_latest.pth', folders[name] / 'student.pth'):
        opt = changed(changed(test_opt, 'network_g', NETWORKS[name][0]), 'path.pretrain_network_g', str(path))
        args = parser(is_train=False).parse_args(
            ['-opt', str(write_yml({**opt, 'name': path.stem}, tmp_path / 'test.yml'))]
        )
        figures.append(evaluate(args, tmp_path, console=False))
    assert figures[0] == figures[1]


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_an_rcan_opens_in_spandrel_after_facd_convert(folders, suffix, tmp_path):
    spandrel = pytest.importorskip('spandrel')
    convert(folders['RCAN'] / f'student{suffix}', tmp_path / 'official.pth', 'rcan', 255.0, DIV2K_MEAN)
    descriptor = spandrel.ModelLoader().load_from_file(tmp_path / 'official.pth')
    lq = torch.rand(1, 3, 12, 9)
    assert (descriptor.architecture.name, descriptor.scale) == ('RCAN', 2)
    torch.testing.assert_close(descriptor(lq.clone()), expected('RCAN', lq).clamp(0, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_student_of_scale_3_is_exported_as_the_others(name, tmp_path):
    student = student_of({**NETWORKS[name][0], 'upscale': 3})
    formats = [*BASIC, ONNX, ONNX_FP16]
    export(measured(student, {}), tmp_path / 'student', formats)
    lq = torch.rand(SIZES[1])
    for format in formats:
        read = read_student(tmp_path / f'student{format.suffix}')
        found = read.net(lq)
        assert (read.description.scale, found.shape) == (3, (1, 3, 51, 99))
        torch.testing.assert_close(found, student.net(lq), rtol=0, atol=STEP if format is ONNX_FP16 else 0.01 * STEP)


HEAD, *SNIPPETS = re.findall(
    r'```python\n(.*?)```',
    (REPOSITORY / 'docs' / 'deploy.md').read_text(encoding='utf-8').split('## Other runtimes')[0],
    re.DOTALL,
)


@pytest.mark.parametrize('snippet', SNIPPETS, ids=lambda snippet: re.search(r'student\w*\.\w+', snippet)[0])
def test_a_snippet_of_the_page_gives_the_students_output(folders, snippet, monkeypatch):
    monkeypatch.chdir(folders['EDSR'])
    lq = torch.rand(1, 3, 7, 10)
    sr = expected('EDSR', lq)
    if 'spandrel' in snippet:
        pytest.importorskip('spandrel')
        monkeypatch.chdir(folders['RCAN'])
        sr = expected('RCAN', lq).clamp(0, 1)
        convert(Path('student.pth'), Path('student_spandrel.pth'), 'rcan', 255.0, DIV2K_MEAN)
    scope: dict = {}
    with torch.enable_grad():  # as where the page's reader begins
        exec(HEAD, scope)
        scope['lq'] = lq
        exec(snippet, scope)
    Path('student_spandrel.pth').unlink(missing_ok=True)
    torch.testing.assert_close(torch.as_tensor(scope['sr']), sr, rtol=0, atol=STEP if 'fp16' in snippet else 2e-6)


def test_every_format_has_a_snippet():
    assert all(any(f'student{format.suffix}' in snippet for snippet in SNIPPETS) for format in EXPORT_FORMATS)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_an_exported_file_can_be_exported_again_with_all_it_says(folders, name, suffix, tmp_path):
    again = measured(read_student(folders[name] / f'student{suffix}'), {})
    export(again, tmp_path / 'again', BASIC)
    assert read_student(tmp_path / 'again.pth').description.psnr == {'Set5': 30.25}


def refused(student: Student, stem: Path, *formats: Format) -> str:
    """Why the last of the formats is not written; the others are."""
    found = list(export(student, stem, formats).values())
    assert not any(isinstance(result, UserError) for result in found[:-1])
    assert {path.name for path in stem.parent.iterdir()} == {f'{stem.name}{format.suffix}' for format in formats[:-1]}
    return str(found[-1])


def test_a_file_that_does_not_read_back_is_not_written(tmp_path):
    def with_a_flipped_sign(student: Student) -> bytes:
        state_dict = {key: -value for key, value in student.net.state_dict().items()}
        return safetensors.torch.save(state_dict, student.description.as_metadata())

    damaged = dataclasses.replace(BASIC[1], content=with_a_flipped_sign)
    reason = refused(student_of(STUDENT), tmp_path / 'student', BASIC[0], damaged)
    assert reason.startswith('it would not read back as it was written (conv_first.weight); accepted: ')


def test_a_description_that_does_not_come_back_is_refused(tmp_path):
    student = student_of(STUDENT)
    odd = Student(
        student.net,
        dataclasses.replace(
            student.description, arguments={**student.description.arguments, 'rgb_mean': (0.4, 0.4, 0.4)}
        ),
    )
    reason = refused(odd, tmp_path / 'student', BASIC[0])
    assert re.match(r'it would say .*: .0.4, 0.4, 0.4.}.* of itself instead of .*: .0.4, 0.4, 0.4.}', reason)


def test_arguments_that_the_weights_do_not_show_are_found_by_the_output(tmp_path):
    student = student_of(STUDENT)
    arguments = {**student.description.arguments, 'res_scale': 0.1}
    odd = Student(student.net, dataclasses.replace(student.description, arguments=arguments))
    assert re.match(r'it would differ by .* of an 8-bit step', refused(odd, tmp_path / 'student', BASIC[0]))


def test_float16_that_overflows_is_left_out_where_onnxruntime_would_not_notice_and_float32_is_written(tmp_path):
    student = student_of(STUDENT)
    student.net.conv_first.weight.mul_(3e3)  # features of 255 * 3e3, above 65504
    student.net.upsample[0].weight.mul_(1 / 3e3)
    reason = refused(student, tmp_path / 'student', *BASIC, ONNX, ONNX_FP16)
    assert re.match(r'it would make numbers that are not finite of photographs .*accepted: --no-fp16', reason)


@pytest.mark.parametrize('half', [False, True])
def test_a_graph_of_finite_garbage_is_refused(half, tmp_path):
    """Signs that are flipped from the input of the upsampler on: as finite as before."""

    def of_another(student: Student) -> bytes:
        net = copy.deepcopy(student.net)
        net.conv_after_body.weight.neg_()
        return onnx_bytes(Student(net, student.description), half)

    student = student_of(STUDENT)
    damaged = dataclasses.replace(ONNX_FP16 if half else ONNX, content=of_another)
    reason = refused(student, tmp_path / 'student', damaged)
    assert re.match(r'it would differ by [\d.e+]+ of an 8-bit step, more than rounding', reason)


def test_features_that_cancel_lose_more_in_float16_than_rounding(tmp_path):
    student = student_of(STUDENT)
    student.net.conv_first.bias.add_(3e4)  # where float16 has steps of 16
    student.net.conv_after_body.weight.zero_()
    student.net.upsample[0].weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0  # no border
    student.net.upsample[0].bias.sub_(3e4 * student.net.upsample[0].weight.sum((1, 2, 3)))
    message = (
        r'it would differ by .* of an 8-bit step, more than rounding \(4\), on photographs of 24 x 40: float16 has '
        r'three digits, too few for its features; accepted: --no-fp16'
    )
    assert re.match(message, refused(student, tmp_path / 'student', ONNX_FP16))


@ARCH_REGISTRY.register()
class DarkerWhenLarge(EDSR):
    """Decides by the image's size, as windows of attention do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.shape[2] > 30 else 0.5 * x)


@ARCH_REGISTRY.register()
class EvenSizes(EDSR):
    """Refuses odd sizes, as RRDBNet does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] % 2 == x.shape[3] % 2 == 0, 'odd'
        return super().forward(x)


@ARCH_REGISTRY.register()
class ExplodesOnNoise(EDSR):
    """As networks with multiplied attention do on what no photograph has: a gain of 1 there, and of 1e30 on noise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        roughness = (x - avg_pool2d(x, 3, 1, 1)).abs().mean((1, 2, 3), keepdim=True)
        return super().forward(x) * (1000 * relu(roughness - 0.15)).exp()


@ARCH_REGISTRY.register()
class Within512(EDSR):
    """With another unit of its output, a power of two for the same rounding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 512 * super().forward(x)


@ARCH_REGISTRY.register()
class WithoutOnnxOperator(EDSR):
    """Has an operator that ONNX lacks, at which torch prints its whole graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.special.bessel_j0(x))


ARGUMENTS = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2}


def test_a_network_that_decides_by_the_images_size_has_its_weights_exported_but_no_graph(tmp_path):
    student = student_of({'type': 'DarkerWhenLarge', **ARGUMENTS})
    reason = refused(student, tmp_path / 'student', ONNX)
    assert re.match(r'it would differ by .* on photographs of 24 x 40: .*accepted: --no-onnx', reason)


def test_a_network_that_explodes_on_noise_and_is_sound_on_photographs_is_written_in_every_format(tmp_path):
    student = student_of({'type': 'ExplodesOnNoise', **ARGUMENTS})
    assert student.net(torch.rand(1, 3, 24, 40)).abs().max() > 1e20
    for result in export(student, tmp_path / 'student', [*BASIC, ONNX, ONNX_FP16]).values():
        assert not isinstance(result, UserError), result


def test_differences_are_of_the_range_of_the_output(tmp_path):
    plain, large = (student_of({'type': name, **ARGUMENTS}) for name in ('EDSR', 'Within512'))
    expected = export(plain, tmp_path / 'plain', [ONNX_FP16])[tmp_path / 'plain_fp16.onnx']
    assert export(large, tmp_path / 'large', [ONNX_FP16])[tmp_path / 'large_fp16.onnx'] == pytest.approx(expected)
    assert STEP / 1000 < expected['torch in float16'] < STEP


def test_a_student_whose_output_is_not_finite_is_refused_itself(tmp_path):
    student = student_of(STUDENT)
    student.net.conv_last.bias[1] = torch.nan
    with pytest.raises(UserError, match=r'CHECKPOINT: EDSR makes numbers that are not finite of photographs'):
        export(student, tmp_path / 'student', EXPORT_FORMATS)
    assert not list(tmp_path.iterdir())


def test_what_torch_prints_of_a_graph_is_held_back(tmp_path, capfd):
    student = student_of({'type': 'WithoutOnnxOperator', **ARGUMENTS})
    assert "operator 'aten::special_bessel_j0'" in refused(student, tmp_path / 'student', *BASIC, ONNX)
    assert capfd.readouterr() == ('', '')


def test_a_network_of_even_sizes_is_compared_at_even_sizes(tmp_path):
    student = measured(student_of({'type': 'EvenSizes', **ARGUMENTS}), {})
    written = export(student, tmp_path / 'student', [ONNX])[tmp_path / 'student.onnx']
    assert 0 <= written['onnxruntime'] < 0.01 * STEP


@pytest.mark.parametrize(
    ('options', 'shape', 'holds'),
    [
        (GraphOptions(static=(30, 44), batch=1), [1, 3, 30, 44], 'ONNX, opset 17, 44x30 only, batches of 1 only'),
        (GraphOptions(static=(30, 44)), ['batch', 3, 30, 44], 'ONNX, opset 17, 44x30 only'),
        (
            GraphOptions(18, batch=3, mobile=True),
            [3, 3, 'height', 'width'],
            'ONNX, opset 18, mobile, batches of 3 only',
        ),
    ],
)
def test_options_fix_what_they_say_and_the_file_says_it(options, shape, holds, tmp_path):
    formats = onnx_formats(options)
    found = export(student_of(STUDENT), tmp_path / 'student', formats)
    assert all(isinstance(result, dict) for result in found.values())
    assert [format.holds for format in formats] == [holds, f'{holds}, float16 between float32 images']
    model = onnx.load(tmp_path / 'student.onnx')
    assert [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim] == shape
    assert f'float32, ({", ".join(map(str, shape))}). sr: the same, 2 times' in model.doc_string
    net = read_student(tmp_path / 'student.onnx').net
    assert net.fixed == {axis: size for axis, size in enumerate(shape) if isinstance(size, int)}


def test_a_graph_of_one_size_upscales_images_of_that_size_as_the_student_does_and_refuses_others(tmp_path):
    student = student_of(STUDENT)
    export(student, tmp_path / 'student', onnx_formats(GraphOptions(static=(300, 280), batch=1))[:1])
    upscaler = Upscaler(read_student(tmp_path / 'student.onnx'), tile=64)
    image, smaller = picture(0, 304, 280)[:300], picture(0, 304, 272)
    expected = Upscaler(student, tile=0).upscale(image, lambda *_: None)
    assert abs(upscaler.upscale(image, lambda *_: None).astype(int) - expected).max() <= 1
    with pytest.raises(RefusedSizeError, match=r'^it was exported with --static 280x300$'):
        upscaler.upscale(smaller, lambda *_: None)
    assert upscaler.less_memory == 'another student (--tile does not help, EDSR needs whole images)'


def test_a_graph_of_several_images_at_a_time_is_refused_by_facd_upscale(tmp_path):
    export(student_of(STUDENT), tmp_path / 'student', onnx_formats(GraphOptions(batch=4))[:1])
    message = r'--student: takes 4 images at a time; accepted: exported with --batch 1 or dynamic'
    with pytest.raises(UserError, match=message):
        Upscaler(read_student(tmp_path / 'student.onnx'))


def test_a_network_that_decides_by_the_images_size_has_a_graph_of_one_size(tmp_path):
    student = student_of({'type': 'DarkerWhenLarge', **ARGUMENTS})
    for height in (24, 40):
        stem = tmp_path / str(height)
        found = export(student, stem, onnx_formats(GraphOptions(static=(height, 32)))[:1])
        assert found[stem.with_suffix('.onnx')]['onnxruntime'] < 0.01 * STEP


def test_a_size_that_the_network_does_not_take_is_refused_in_a_line(tmp_path):
    message = r'network_g: EvenSizes does not run on images of 25 x 32 \(odd.*\); accepted: another --static'
    with pytest.raises(UserError, match=message):
        export(
            student_of({'type': 'EvenSizes', **ARGUMENTS}), tmp_path / 'a', onnx_formats(GraphOptions(static=(25, 32)))
        )
    assert not list(tmp_path.iterdir())


SWINIR = {
    'type': 'SwinIR', 'img_size': 16, 'window_size': 4, 'embed_dim': 12, 'depths': [2], 'num_heads': [2],
    'mlp_ratio': 2, 'upscale': 2, 'upsampler': 'pixelshuffledirect', 'resi_connection': '1conv',
}  # fmt: skip
RRDBNET = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'scale': 2, 'num_feat': 4, 'num_block': 1}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ('network', 'format', 'refusal'),
    [
        pytest.param(SWINIR, ONNX, 'a graph does not decide by the size, .*accepted: --no-onnx', marks=SLOW),
        (SWINIR, ONNX_FP16, 'SwinIR cannot be written as ONNX .*accepted: --no-fp16'),
        pytest.param(SWINIR, TORCH_EXPORT, 'SwinIR cannot be written as torch.export', marks=SLOW),
        (RRDBNET, ONNX, None),
        pytest.param(RRDBNET, TORCH_EXPORT, 'RRDBNet cannot be written as .*accepted: no --torch-export', marks=SLOW),
    ],
    ids=['SwinIR-onnx', 'SwinIR-fp16', 'SwinIR-pt2', 'RRDBNet-onnx', 'RRDBNet-pt2'],
)
def test_other_networks_are_refused_where_the_page_says_so(network, format, refusal, tmp_path):
    torch.manual_seed(0)
    net = build_network(network).eval().requires_grad_(False)
    student = Student(net, describe_network(network, 2))
    if refusal is None:
        assert 'onnxruntime' in export(student, tmp_path / 'student', [format])[tmp_path / 'student.onnx']
    else:
        assert re.search(refusal, refused(student, tmp_path / 'student', format))


def test_a_graph_that_onnxruntime_does_not_read_is_refused_without_the_name_of_the_unfinished_file(tmp_path):
    unreadable = dataclasses.replace(ONNX, content=lambda student: b'no graph')
    message = refused(student_of(STUDENT), tmp_path / 'student', unreadable)
    assert re.fullmatch(r'it would not be read back \(\[ONNXRuntimeError\] .*\); accepted: --no-onnx', message)


def test_names_that_are_taken_or_mistaken_are_refused(tmp_path):
    (tmp_path / 'taken.safetensors').touch()
    for stem, message in {
        'student.pth': r'-o: .*student.pth; accepted: a name without suffix, as .*student, for several files',
        'taken': r'-o: .*taken.safetensors exists; accepted: the name of new files',
        '': r'-o: .* is a folder; accepted: the name of files in it, as .*/student',
    }.items():
        with pytest.raises(UserError, match=message):
            paths_of(tmp_path / stem, [format.suffix for format in EXPORT_FORMATS])
    assert paths_of(tmp_path / 'x2.v3', ['_fp16.onnx']) == [tmp_path / 'x2.v3_fp16.onnx']


def test_without_onnx_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None if name == 'onnx' else name)
    with pytest.raises(UserError, match=r"--onnx: needs onnx, .*`pip install 'facd_basicsr\[onnx\]'`, or --no-onnx"):
        require_onnx('--onnx')


def test_a_pth_without_facd_basicsr_is_plain(folders, name):
    content = torch.load(folders[name] / 'student.pth', weights_only=True)
    assert list(content) == ['params', METADATA]
    assert Description.of_metadata(content[METADATA]).name == 'tiny'


SWINIR = {
    'type': 'SwinIR', 'upscale': 2, 'img_size': 16, 'window_size': 8, 'embed_dim': 12, 'depths': [2, 2],
    'num_heads': [2, 2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffledirect', 'img_range': 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    'network', [SWINIR, {'type': 'RCAN_spandrel', 'scale': 2, 'n_feats': 16, 'n_resblocks': 1, 'n_resgroups': 1}]
)
def test_what_spandrel_opens_is_the_student_in_every_file(network, tmp_path):
    """SwinIR drops paths in training; spandrel's RCAN changes its input."""
    pytest.importorskip('spandrel')
    torch.manual_seed(0)
    student = Student(build_network(network).eval().requires_grad_(False), describe_network(network, 2))
    export(measured(student, {}), tmp_path / 'student', BASIC)
    opened = opened_in_spandrel(student, [tmp_path / f'student{format.suffix}' for format in BASIC])
    assert len(opened) == 2
    for words, warning in opened.values():
        assert words.startswith('opens in spandrel as ') and warning == ''
