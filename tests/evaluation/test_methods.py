import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.archs.ecbsr_arch import ECBSR
from conftest import STUDENT, changed, with_two_teachers, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.methods import (
    Method,
    build_student,
    build_teacher_methods,
    load_methods,
    read_test_files,
    read_train_file,
)
from facd_basicsr.options.option_check import with_defaults

CPU = torch.device('cpu')


@pytest.fixture
def student_opt(test_opt, tmp_path) -> dict:
    """A test file's options whose checkpoint is there."""
    checkpoint = tmp_path / 'net_g_4.pth'
    torch.save({'params': build_network(STUDENT).state_dict()}, checkpoint)
    return with_defaults(changed(test_opt, 'path.pretrain_network_g', str(checkpoint)), is_train=False)


def test_an_image_that_a_network_does_not_take_and_an_output_of_another_scale_are_named_in_a_line():
    network = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'num_grow_ch': 2}
    odd = np.full((25, 27, 3), 200, np.uint8)
    with pytest.raises(UserError, match=r'^mine: RRDBNet does not take LQ of 25 x 27 with 3 channels \(assert hh % '):
        Method('mine', 2, build_network({**network, 'scale': 2})).upscale(odd)
    message = (
        r'^mine: RRDBNet gives \(1, 3, 100, 108\) for LQ of \(1, 3, 25, 27\); accepted: \(1, 3, 50, 54\), as of a netw'
    )
    with pytest.raises(UserError, match=message):
        Method('mine', 2, build_network({**network, 'scale': 4})).upscale(odd)


def test_a_students_output_is_its_networks_and_its_summary_names_the_checkpoint(student_opt):
    method = build_student('a.yml', student_opt, CPU)
    lq = np.full((4, 5, 3), 200, np.uint8)
    assert method.output(lq).shape == (1, 3, 8, 10)
    assert method.upscale(lq).shape == (8, 10, 3) and method.upscale(lq).dtype == np.uint8
    summary = method.summary()
    digest = hashlib.sha256(Path(summary['checkpoint']).read_bytes()).hexdigest()
    assert (summary['name'], summary['option_file'], summary['sha256']) == ('tiny_test', 'a.yml', digest)


def test_a_students_parameters_are_those_that_are_deployed():
    net = ECBSR(3, 3, num_block=1, num_channel=8, with_idt=False, act_type='relu', scale=2)
    method = Method('mine', 2, net)
    assert method.parameters == 9 * (3 * 8 + 8 * 8 + 8 * 12) + 8 + 8 + 12
    assert method.net is net and net.training  # as taps know it


def test_bicubic_keeps_a_flat_image():
    assert (Method('bicubic', 2).upscale(np.full((4, 5, 3), 200, np.uint8)) == np.full((8, 10, 3), 200)).all()


def test_param_key_g_chooses_the_average(student_opt):
    checkpoint = Path(student_opt['path']['pretrain_network_g'])
    params = torch.load(checkpoint, weights_only=True)['params']
    ema = {key: value + 1 for key, value in params.items()}
    torch.save({'params': params, 'params_ema': ema}, checkpoint)
    method = build_student('a.yml', changed(student_opt, 'path.param_key_g', 'params_ema'), CPU)
    assert torch.equal(method.bare.conv_first.weight, ema['conv_first.weight'])


def test_a_checkpoint_must_fit_whatever_strict_load_says(student_opt):
    opt = changed(changed(student_opt, 'network_g.num_feat', 8), 'path.strict_load_g', False)
    with pytest.raises(UserError, match=r'a.yml: path.pretrain_network_g: .*net_g_4.pth does not fit EDSRStudent'):
        build_student('a.yml', opt, CPU)


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        ('name', 'tiny_test', r"b.yml: name: 'tiny_test' is the name in .*a.yml too; accepted: a name for each method"),
        ('name', 'bicubic', r"b.yml: name: 'bicubic' is the row that is always there"),
        ('name', 'teacher', r"b.yml: name: 'teacher' is --teacher's"),
        ('datasets.test_1.name', 'others', r"b.yml: datasets: 'others' is .*GT and .*LQ; accepted: absent"),
        ('datasets.test_1.dataroot_lq', 'GT', r"b.yml: datasets: 'pictures' is .*GT and .*GT2; accepted: .*LQ, as in"),
        ('model_type', 'SwinIRModel', r'b.yml: model_type: SwinIRModel has its own test()'),
    ],
)
def test_files_that_cannot_stand_side_by_side_are_refused(student_opt, data, tmp_path, location, value, message):
    if value == 'GT':
        value = str(tmp_path / 'GT2')
        Path(value).symlink_to(data / 'LQ')
    other = changed(changed(student_opt, 'name', 'b'), location, value)
    paths = [write_yml(student_opt, tmp_path / 'a.yml'), write_yml(other, tmp_path / 'b.yml')]
    with pytest.raises(UserError, match=message):
        read_test_files(list(map(str, paths)), [])


def test_files_of_different_scales_are_refused(student_opt, tmp_path):
    other = changed(changed(student_opt, 'scale', 1), 'network_g.upscale', 1)
    for key in ('dataroot_gt', 'dataroot_lq'):
        other['datasets']['test_1'][key] = student_opt['datasets']['test_1']['dataroot_lq']
    other['name'] = 'b'
    paths = [write_yml(student_opt, tmp_path / 'a.yml'), write_yml(other, tmp_path / 'b.yml')]
    with pytest.raises(UserError, match=r'b.yml: scale: 1; accepted: 2, as in .*a.yml, to stand in one table'):
        read_test_files(list(map(str, paths)), [])


def test_overrides_apply_to_every_file(student_opt, tmp_path):
    paths = [write_yml(changed(student_opt, 'name', name), tmp_path / f'{name}.yml') for name in 'ab']
    opts = read_test_files(list(map(str, paths)), ['manual_seed=3'])
    assert [(opt['name'], opt['manual_seed']) for opt in opts] == [('a', 3), ('b', 3)]


def test_several_teachers_are_numbered_and_their_names_are_taken(train_opt, student_opt, tmp_path):
    opt = with_two_teachers(train_opt)
    opt = read_train_file(str(write_yml(opt, tmp_path / 'train.yml')), [], scale=2)
    methods = build_teacher_methods('train.yml', opt, CPU)
    assert [(method.name, method.bare.conv_first.out_channels) for method in methods] == [
        ('teacher 1', 6), ('teacher 2', 8),
    ]  # fmt: skip
    (alone,) = build_teacher_methods('train.yml', {**opt, 'teacher': opt['teacher'][:1]}, CPU)
    assert alone.name == 'teacher'
    path = write_yml(changed(student_opt, 'name', 'teacher 2'), tmp_path / 'a.yml')
    with pytest.raises(UserError, match=r"name: 'teacher 2' is --teacher's; accepted: a name for each method"):
        read_test_files([str(path)], [])


def test_a_train_file_gives_its_teacher_without_its_training_data(train_opt, tmp_path):
    opt = changed(train_opt, 'datasets.train.dataroot_gt', 'absent.lmdb')
    opt = read_train_file(str(write_yml(opt, tmp_path / 'train.yml')), [], scale=2)
    (method,) = build_teacher_methods('train.yml', opt, CPU)
    assert method.name == 'teacher' and not method.net.training
    assert method.output(np.zeros((4, 4, 3), np.uint8)).shape == (1, 3, 8, 8)


def test_a_train_file_without_teacher_or_of_another_scale_is_refused(train_opt, tmp_path):
    path = str(write_yml(train_opt, tmp_path / 'train.yml'))
    with pytest.raises(UserError, match=r'--teacher: .*train.yml: scale: 2; accepted: 4, as in the test files'):
        read_train_file(path, [], scale=4)
    for key in ('teacher', 'taps', 'network_r', 'train.distill_opt'):
        train_opt = changed(train_opt, key, ...)
    train_opt |= {'model_type': 'SRModel'}
    train_opt['train']['pixel_opt'] = {'type': 'L1Loss'}
    with pytest.raises(UserError, match=r'--teacher: .*train.yml has no teacher block'):
        read_train_file(str(write_yml(train_opt, tmp_path / 'train.yml')), [], scale=2)


def test_overrides_of_the_teacher_are_for_the_train_file_and_others_for_the_test_files(
    student_opt, train_opt, teacher_weights, tmp_path
):
    test_file = str(write_yml(student_opt, tmp_path / 'test.yml'))
    train_file = str(write_yml(changed(train_opt, 'teacher.weights', 'absent.pth'), tmp_path / 'train.yml'))
    overrides = [f'teacher:weights={teacher_weights}', 'name=forced']
    methods, opt, opt_of_train = load_methods([test_file], train_file, overrides)
    assert [method.name for method in methods] == ['bicubic', 'forced', 'teacher']
    assert methods[2].checkpoint == str(teacher_weights)
    assert (opt['name'], opt_of_train['name']) == ('forced', 'tiny')


def test_a_table_needs_a_method_and_sets_need_a_run(student_opt, tmp_path):
    with pytest.raises(UserError, match=r'^-opt: missing; accepted: a test file, or --run experiments/NAME'):
        load_methods([], None, [])
    test_file = str(write_yml(student_opt, tmp_path / 'test.yml'))
    with pytest.raises(UserError, match=r'^--sets: accepted with --run; -opt names its sets itself'):
        load_methods([test_file], None, [], sets=['Set5'])


def test_an_override_of_a_teacher_needs_the_file_that_has_it(student_opt, tmp_path):
    path = write_yml(student_opt, tmp_path / 'a.yml')
    with pytest.raises(UserError, match=r'^--force_yml: teacher:weights=a.pth; accepted: with --teacher, the train'):
        load_methods([str(path)], None, ['teacher:weights=a.pth'])
