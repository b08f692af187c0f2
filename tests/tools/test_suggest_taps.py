"""``facd check --suggest-taps``: the block of any pair of networks can be pasted, and trains."""

import importlib
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs import build_network
from click.testing import CliRunner
from conftest import changed, with_two_teachers, write_yml
from runs import run as train
from torch import nn

from facd_basicsr.distill.taps import Points, Tappable, Taps, points, tappable
from facd_basicsr.errors import UserError
from facd_basicsr.tools.check import command, list_modules, suggest_taps

SWIN = {
    'img_size': 16, 'window_size': 8, 'embed_dim': 12, 'depths': [2, 2, 2], 'num_heads': [2, 2, 2], 'mlp_ratio': 2,
    'upscale': 2, 'resi_connection': '1conv',
}  # fmt: skip
BASICSR = {
    'EDSR': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 4, 'upscale': 2},
    'RCAN': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 3, 'num_block': 1, 'upscale': 2},
    'RRDBNet': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_grow_ch': 2, 'num_block': 3, 'scale': 2},
    'MSRResNet': {'num_feat': 4, 'num_block': 5, 'upscale': 2},
    'SRVGGNetCompact': {'num_feat': 12, 'num_conv': 4, 'upscale': 2},  # as many channels as a x2 image's pixels
    'SwinIR': {**SWIN, 'upsampler': 'pixelshuffledirect'},
    'ECBSR': {
        'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 3, 'num_channel': 4, 'with_idt': True, 'act_type': 'prelu',
        'scale': 2,
    },
}  # fmt: skip
DAT = {
    'img_size': 16, 'embed_dim': 16, 'split_size': (4, 4), 'depth': (3,), 'num_heads': (2,), 'expansion_factor': 2.0,
    'upscale': 2, 'upsampler': 'pixelshuffledirect', 'img_range': 1.0, 'resi_connection': '1conv',
}  # fmt: skip
SPANDREL = {
    'DAT': ('DAT', DAT),
    'HAT': ('HAT', {**SWIN, 'squeeze_factor': 4, 'compress_ratio': 3, 'upsampler': 'pixelshuffle'}),
    'SPAN': ('SPAN', {'num_in_ch': 3, 'num_out_ch': 3, 'feature_channels': 12, 'upscale': 2}),
    'RealPLKSR': ('PLKSR', {'dim': 16, 'n_blocks': 3, 'upscaling_factor': 2}),
    'SAFMN': ('SAFMN', {'dim': 16, 'n_blocks': 3, 'upscaling_factor': 2}),
}
HALF_SIZE = 'RRDBNet'  # whose features are half as high and wide as LQ at x2


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in BASICSR:
        return build_network({'type': name, **BASICSR[name]})
    pytest.importorskip('spandrel')
    package, arguments = SPANDREL[name]
    return getattr(importlib.import_module(f'spandrel.architectures.{package}'), name)(**arguments)


@cache
def points_of(name: str, is_student: bool) -> Points:
    """Those at the size of its blocks, in training as a student, else in evaluation."""
    net = network(name).train(is_student)
    found, *_ = points(tappable(net, torch.rand(2, 3, 16, 16), net)).values()
    return found


@pytest.mark.parametrize('is_student', [True, False], ids=['student', 'teacher'])
@pytest.mark.parametrize('name', [*BASICSR, *SPANDREL])
def test_what_is_listed_can_be_tapped_with_the_shape_that_is_listed(name, is_student):
    net, x = network(name).train(is_student), torch.rand(2, 3, 16, 16)
    listed = [found for found in tappable(net, x, net) if found.channels]
    _, feats = Taps(net, [found.path for found in listed], 'student').run(net, x)
    assert [' x '.join(map(str, feat.shape[1:])) for feat in feats] == [found.found for found in listed]


EXPECTED = {
    'EDSR': ['body.0', 'body.1', 'body.2', 'upsample:input'],
    'RCAN': ['body.0', 'body.1', 'body.2', 'upsample:input'],
    'RRDBNet': ['body.0', 'body.1', 'body.2', 'conv_body'],
    'MSRResNet': ['body.0', 'body.1', 'body.2', 'body'],
    'SRVGGNetCompact': ['body.0', 'body.2', 'body.4', 'body.9'],
    'SwinIR': ['layers.0:tokens', 'layers.1:tokens', 'layers.2:tokens', 'upsample:input'],
    'ECBSR': ['backbone.0', 'backbone.1', 'backbone.2', 'backbone.3'],
    'DAT': [f'layers.0.blocks.{block}:tokens' for block in range(3)] + ['upsample:input'],
    'HAT': ['layers.0:tokens', 'layers.1:tokens', 'layers.2:tokens', 'conv_before_upsample:input'],
    'SPAN': ['block_2:input', 'block_4:input', 'block_5:input', 'conv_cat'],  # its blocks return tuples
    'RealPLKSR': ['feats.1', 'feats.2', 'feats.3', 'feats.4'],
    'SAFMN': ['feats.0', 'feats.1', 'feats.2', 'to_img:input'],
}


@pytest.mark.parametrize('is_student', [True, False], ids=['student', 'teacher'])
@pytest.mark.parametrize('name', EXPECTED)
def test_points_are_at_equal_depths_of_the_blocks_and_the_last_before_the_upsampler(name, is_student):
    assert [found.path for found in points_of(name, is_student).at_equal_depths(4)] == EXPECTED[name]


@pytest.mark.parametrize(('student', 'teacher'), itertools.product(EXPECTED, EXPECTED))
def test_features_of_any_pair_are_of_equal_size_but_of_one_that_works_at_another(student, teacher):
    sizes = [
        {found.size for found in points_of(name, is_student).at_equal_depths(3)}
        for name, is_student in ((student, True), (teacher, False))
    ]
    assert (sizes[0] == sizes[1]) == ((student == HALF_SIZE) == (teacher == HALF_SIZE))


def test_depths_are_rounded_down_as_in_the_paper_and_never_fall_together():
    assert depths(16, 3) == [5, 10] and depths(32, 3) == [10, 21]  # FAKD's
    assert depths(5, 4) == [1, 2, 3] and depths(5, 6) == [1, 2, 3, 4, 5]
    assert depths(2, 3) == [1, 2] and depths(2, 9) == [1, 2] and depths(1, 1) == []


def depths(blocks: int, count: int) -> list[int]:
    """After how many blocks the points are, but the last."""
    body = tuple(Tappable(str(number), str(number), 'Block', '', order=number) for number in range(1, blocks + 1))
    *points, last = Points(body, Tappable('conv', 'conv', 'Conv2d', '')).at_equal_depths(count)
    assert last.path == 'conv'
    return [point.order for point in points]


@pytest.fixture
def pair(train_opt: dict, tmp_path: Path) -> Callable[[str, str], dict]:
    """Options of a student and a teacher, whose taps are another pair's."""

    def build(student: str, teacher: str) -> dict:
        weights = tmp_path / 'teacher.pth'
        torch.save({'params': network(teacher).state_dict()}, weights)
        block = {'network': {'type': teacher, **BASICSR[teacher]}} if teacher in BASICSR else {}
        opt = {
            **train_opt,
            'network_g': {'type': student, **BASICSR[student]},
            'teacher': {**block, 'weights': str(weights)},
        }
        opt['taps'] = [{'student': 'layers.0', 'teacher': 'nowhere:clone'}]
        return changed(opt, 'datasets.train.gt_size', 32)

    return build


def suggestion(opt: dict, count: int, tmp_path: Path) -> str:
    return '\n'.join(suggest_taps(str(write_yml(opt, tmp_path / 'suggest.yml')), [], count))


def test_the_block_of_two_teachers_has_a_path_of_each_and_so_has_the_list_of_modules(train_opt, tmp_path):
    opt = with_two_teachers(train_opt)
    opt['teacher'][1]['network']['num_block'] = 6
    first, *taps = suggestion(opt, 3, tmp_path).splitlines()
    assert first == 'taps:  # EDSRStudent <- EDSR, EDSR, LQ of 12 x 12'
    assert yaml.safe_load('\n'.join(taps)) == [
        {'student': 'body.0', 'teacher': ['body.0', 'body.1']},
        {'student': 'body.1', 'teacher': ['body.1', 'body.3']},
        {'student': 'upsample:input', 'teacher': ['upsample:input', 'upsample:input']},
    ]
    assert taps[0].endswith('  # 4 x 12 x 12 <- 6 x 12 x 12, 8 x 12 x 12')
    modules = list(list_modules(str(tmp_path / 'suggest.yml'), [], 'teacher'))
    assert [line for line in modules if line.startswith('teacher')] == [
        'teacher[0]   EDSR, features of LQ of 12 x 12', 'teacher[1]   EDSR, features of LQ of 12 x 12',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [
        pytest.param('EDSR', 'SwinIR', marks=pytest.mark.slow),
        ('SRVGGNetCompact', 'DAT'),
        pytest.param('SwinIR', 'HAT', marks=pytest.mark.slow),
        ('ECBSR', 'SPAN'),
        pytest.param('RRDBNet', 'RRDBNet', marks=pytest.mark.slow),
        pytest.param('MSRResNet', 'ECBSR', marks=pytest.mark.slow),
        ('RCAN', 'SAFMN'),
    ],
)
def test_the_block_of_a_pair_may_be_pasted_and_trains(student, teacher, pair, tmp_path):
    opt = pair(student, teacher)
    opt |= yaml.safe_load(suggestion(opt, 3, tmp_path))
    assert [tap['student'] for tap in opt['taps']] == [
        found.path for found in points_of(student, True).at_equal_depths(3)
    ]
    (tmp_path / 'run').mkdir()
    train(opt, tmp_path / 'run', 2)
    assert (tmp_path / 'run' / 'experiments' / 'tiny' / 'models' / 'net_g_latest.pth').is_file()


def test_paths_that_yaml_would_take_for_numbers_are_quoted(train_opt, tmp_path, monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(5))))
    net.append(nn.Sequential(nn.Conv2d(4, 12, 1), nn.PixelShuffle(2)))
    monkeypatch.setattr('facd_basicsr.tools.check.build_network', lambda block: net)
    taps = yaml.safe_load(suggestion(train_opt, 3, tmp_path))['taps']
    assert taps == [{'student': path, 'teacher': path} for path in ('1.0', '1.2', '1')]


def test_more_points_than_there_are_are_refused_in_a_line(pair, tmp_path):
    with pytest.raises(UserError) as error:
        suggestion(pair('EDSR', 'SwinIR'), 5, tmp_path)
    message = '--suggest-taps: 5; accepted: 1 to 4, since EDSR has 4 blocks and SwinIR has 3 blocks'
    assert str(error.value) == message


def test_networks_without_features_of_equal_size_are_refused_with_both_sizes(pair, tmp_path):
    with pytest.raises(UserError) as error:
        suggestion(pair('RRDBNet', 'EDSR'), 3, tmp_path)
    assert str(error.value).startswith(
        "--suggest-taps: for LQ of 16 x 16 the student's blocks (RRDBNet) are 8 x 8, the teacher's (EDSR) 16 x 16; "
    )


@pytest.mark.parametrize('of', ['student', 'teacher'])
def test_a_network_that_is_none_for_super_resolution_is_refused_in_a_line(of, pair, tmp_path):
    key = {'student': 'network_g', 'teacher': 'teacher.network'}[of]
    opt = changed(pair('EDSR', 'EDSR'), key, {'type': 'SpyNet'})
    path = str(write_yml(opt, tmp_path / 'opt.yml'))
    for lines in (suggest_taps(path, [], 3), list_modules(path, [], of)):
        with pytest.raises(UserError, match=rf'^{key.split(".")[0]}: SpyNet does not take LQ of 16 x 16 '):
            list(lines)


def test_a_file_without_a_teacher_is_refused(train_opt, tmp_path):
    alone = {key: value for key, value in train_opt.items() if key not in ('teacher', 'taps', 'network_r')}
    del alone['train']['distill_opt']
    alone['train']['pixel_opt'] = {'type': 'L1Loss'}
    with pytest.raises(UserError, match=r'--suggest-taps: .*suggest.yml has no teacher; accepted: '):
        suggestion({**alone, 'model_type': 'SRModel'}, 3, tmp_path)


def test_options_of_regressors_may_be_there(train_opt, tmp_path):
    expected = suggestion(train_opt, 2, tmp_path)
    train_opt['train'] |= {'init_r': 'first_batch', 'precision_r': 'fp32'}
    train_opt['path']['pretrain_network_r'] = 'net_r.pth'
    assert suggestion(train_opt, 2, tmp_path) == expected


def test_the_command_prints_the_block_without_data_or_weights(no_data):
    done = CliRunner().invoke(command, ['-opt', str(no_data), '--suggest-taps', '2'])
    assert done.stdout == (
        'taps:  # EDSRStudent <- EDSR, LQ of 12 x 12\n'
        '  - {student: body.0, teacher: body.0}  # 4 x 12 x 12 <- 6 x 12 x 12\n'
        "  - {student: 'upsample:input', teacher: 'upsample:input'}  # 4 x 12 x 12 <- 6 x 12 x 12\n"
    )
