import re
import shutil
from pathlib import Path

import cv2
import lmdb
import pytest
import torch
from basicsr.archs import build_network
from click.testing import CliRunner
from conftest import REPOSITORY, changed, picture, run, train_options, with_two_teachers, write_yml
from states import LOSSES, method_opt, save_vgg

from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.complexity import parameters, saved_activations
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options import read_option_file
from facd_basicsr.tools import check as tool
from facd_basicsr.tools.check import check


@pytest.fixture
def own_data(data: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may damage."""
    shutil.copytree(data, tmp_path / 'data')
    return tmp_path / 'data'


@pytest.fixture
def opt(train_opt: dict, own_data: Path) -> dict:
    for name, dataset_opt in train_opt['datasets'].items():
        folders = ('HR.lmdb', 'LR.lmdb') if name == 'train' else ('GT', 'LQ')
        dataset_opt['dataroot_gt'], dataset_opt['dataroot_lq'] = (str(own_data / folder) for folder in folders)
    return train_opt


def checked(opt: dict, tmp_path: Path, *overrides: str) -> str:
    return '\n'.join(check(str(write_yml(opt, tmp_path / 'opt.yml')), overrides))


def refusal(opt: dict, tmp_path: Path) -> str:
    with pytest.raises(UserError) as error:
        checked(opt, tmp_path)
    file, _, message = str(error.value).partition(': ')
    assert file == str(tmp_path / 'opt.yml') and '\n' not in message
    return message


def test_the_memory_estimate_counts_an_average_and_a_losss_network(opt, tmp_path):
    opt = {key: value for key, value in opt.items() if key not in ('taps', 'network_r')}
    vgg = save_vgg(tmp_path / 'vgg.pth', 1)
    loss = {'type': 'CSDLoss', 'vgg_weights': str(vgg), 'layer_weights': [1]}
    sizes, models = [], []
    for changes in ({}, {'ema_decay': 0.9}):
        model = build_model(
            train_options(changed(opt, 'train', opt['train'] | {'distill_opt': loss} | changes), tmp_path)
        )
        batch = {'lq': torch.rand(3, 3, 12, 12), 'gt': torch.rand(3, 3, 24, 24)}
        sizes.append(tool.memory_estimate(model, batch)[0])
        models.append(model)
    assert sizes[1] - sizes[0] == 4 * parameters(models[0].net_g)
    models[0].criterion.register_parameter('more', torch.nn.Parameter(torch.zeros(1000)))
    assert tool.memory_estimate(models[0], batch)[0] == sizes[0] + 4000


def test_each_of_two_teachers_is_described_and_gated(opt, tmp_path):
    opt = with_two_teachers(opt)
    for own in opt['teacher']:
        own['expect'] = {'dataset': 'val', 'psnr_y': 15, 'tolerance': 20}
    out = checked(opt, tmp_path)
    for number, name in enumerate(('teacher', 'wide')):
        assert re.search(rf'^teacher\[{number}\]   EDSR from \S+{name}\.pth: all keys match$', out, re.MULTILINE)
        assert re.search(rf'Teacher\[{number}\]: \S+ dB PSNR-Y on datasets.val, expected 15 \+- 20', out)
        assert re.search(rf'^ +teacher {number + 1} +EDSR ', out, re.MULTILINE)
    assert re.search(r'body.1 +4 x 12 x 12 +body.1 of teacher\[0\] +6 x 12 x 12 +DeepRegressor, 202', out)
    assert re.search(r'body.1 +4 x 12 x 12 +body.2 of teacher\[1\] +8 x 12 x 12 +DeepRegressor, 332', out)
    opt['teacher'][1]['expect']['tolerance'] = 0.1
    assert re.search(r'teacher\[1\]\.expect: the teacher has .*; check teacher\[1\]\.weights', refusal(opt, tmp_path))
    opt['teacher'][1]['weights'] = '/absent.pth'
    assert 'teacher[1].weights: no such file: /absent.pth' in refusal(opt, tmp_path)


def test_a_file_without_a_teacher_whose_loss_reads_none_would_train(opt, tmp_path):
    for key in ('teacher', 'taps', 'network_r'):
        del opt[key]
    opt['train']['distill_opt'] = {'type': 'L1Loss', 'target': 'gt'}
    out = checked(opt, tmp_path)
    assert 'iteration    ' in out and not re.search(r'^ *teacher', out, re.MULTILINE)


def test_a_file_that_would_train_is_described(opt, tmp_path):
    out = checked(opt, tmp_path)
    assert 'data         train: 6 pairs of pictures, every file read' in out
    assert 'data         val: 2 pairs of val, every file read' in out
    assert f'teacher      EDSR from {opt["teacher"]["weights"]}: all keys match' in out
    # 4 channels to 6 in five 1x1 convolutions, six channels wide: 4*6 + 4*6*6 weights, 5*6 biases, 4 slopes
    assert re.search(r'body.1 +4 x 12 x 12 +body.1 +6 x 12 x 12 +DeepRegressor, 202 parameters', out)
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert lines['student'][1] == 'EDSRStudent' and lines['teacher'][1] == 'EDSR'
    assert 'memory       estimate for a batch of 3: ' in out
    assert re.search(
        r'iteration    \d+\.\d{3} s for a batch of 3 at the current load of this machine; 4 iterations: \d+ s without',
        out,
    )


def test_a_schedule_that_the_run_does_not_finish_is_pointed_out(opt, tmp_path):
    opt['train']['distill_opt'] |= {
        'lambda': {'start': 32, 'end': 0, 'over': 16},
        'loss_weight': {'start': 0, 'end': 1, 'over': 4},
    }
    lines = [line for line in checked(opt, tmp_path).splitlines() if line.startswith('schedule')]
    assert lines == [
        'schedule     warning: train.distill_opt.lambda goes from 32 to 0 over 16 iterations, and there are 4, after '
        'which it is 24'
    ]
    opt['train'] |= {'total_iter': 17, 'stages': [{'iterations': 1}, {'iterations': 16}]}
    out = checked(opt, tmp_path)
    assert out.count('schedule     warning: ') == 2 and 'and there are 1, after which it is 30\n' in out


def test_an_error_of_the_first_iterations_begins_with_the_file(opt, tmp_path):
    opt['train']['distill_opt'] = {'type': 'DUKDLoss', 'crops': 5}  # of the 4 that scale 2 has
    for key in ('taps', 'network_r'):
        del opt[key]
    assert re.match(r'train\.distill_opt\.crops: 5; accepted: ', refusal(opt, tmp_path))


def test_every_stage_is_checked_with_its_memory_and_time_and_then_the_time_of_all(opt, tmp_path):
    opt['train']['stages'] = [{'iterations': 3}, {'iterations': 1, 'gt_size': 32, 'batch_size_per_gpu': 2}]
    first, second = checked(opt, tmp_path).split('stage        train.stages[1]: iterations 4 to 4\n')
    assert 'stage        train.stages[0]: iterations 1 to 3\nteacher ' in first and '\nteacher ' not in second
    assert 'memory       estimate for a batch of 3: ' in first and 'memory       estimate for a batch of 2: ' in second
    assert 'load of this machine; 3 iterations: ' in first and 'load of this machine; 1 iterations: ' in second
    assert re.search(r'\nall stages   \d+ s$', second)
    assert 'data         train' in second and 'data         val' not in second  # read before, and its images are whole


def test_a_patch_of_a_later_stage_that_an_image_is_too_small_for_is_refused(opt, tmp_path):
    opt['train']['stages'] = [{'iterations': 3}, {'iterations': 1, 'gt_size': 64}]
    assert 'train.stages[1]: datasets.train' in refusal(opt, tmp_path)


def test_modules_are_listed_of_a_file_with_stages(opt, tmp_path):
    opt['train'] |= {'total_iter': None, 'stages': [{'iterations': 4, 'distill_opt': {'type': 'FACDLoss', 'x': 1}}]}
    assert 'body.0' in modules(opt, 'student', tmp_path)


def test_a_student_that_fuses_is_counted_as_it_is_trained_and_fused(opt, tmp_path):
    opt['network_g'] = {
        'type': 'ECBSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1, 'num_channel': 8, 'with_idt': False,
        'act_type': 'relu', 'scale': 2,
    }  # fmt: skip
    opt['taps'] = [{'student': 'backbone.1', 'teacher': 'body.1'}]
    opt['train']['distill_opt']['layer_weights'] = [1]
    out = checked(opt, tmp_path)
    weights, blocks = 9 * (3 * 8 + 8 * 8 + 8 * 12), [(3, 8), (8, 8), (8, 12)]
    branches = sum(i * 2 * o + 9 * 2 * o * o + 3 * (i * o + 9 * o) for i, o in blocks)
    gigas = [f'{2 * 360 * 640 * count / 1e9:.1f} G' for count in (weights + branches, weights)]
    assert re.search(rf'student +ECBSR +[\d,]+ +{gigas[0]}', out)
    assert re.search(rf'student, fused +ECBSR +{weights + 8 + 8 + 12:,} +{gigas[1]}', out)


def test_every_file_is_read_for_io_backend_memory_too(opt, own_data, tmp_path):
    for dataset_opt in opt['datasets'].values():
        dataset_opt['io_backend'] = {'type': 'memory'}
    out = checked(opt, tmp_path)
    assert 'train: 6 pairs of pictures, every file read' in out and 'val: 2 pairs of val, every file read' in out
    damage_lmdb(own_data / 'LR.lmdb')
    assert 'datasets.train.dataroot_lq: ' in refusal(opt, tmp_path)


def test_the_rms_of_both_sides_features_is_printed_and_no_warning_of_equal_units(opt, tmp_path):
    out = checked(opt, tmp_path)
    assert re.search(r'features     tap +RMS of student +RMS of teacher\n', out)
    assert re.search(r'body.1 <- body.1 +\d+[.\d]* +\d+[.\d]*\n', out)
    assert 'warning' not in out


@pytest.mark.parametrize(
    ('changes', 'advice'),
    [
        ({'train.init_r': 'auto'}, "the regressor starts in the teacher's units (train.init_r: auto)"),
        ({}, "by train.init_r: first_batch the regressor starts in the teacher's units, here "),
        (
            {
                'train.distill_opt': {'type': 'FACDLoss', 'regressor': 'never'},
                'network_r': ...,
                'network_g.num_feat': 6,
            },
            'without a regressor they are hardly learnt',
        ),
    ],
)  # fmt: skip
def test_features_of_other_units_are_warned_of(opt, tmp_path, changes, advice):
    for location, value in {'network_g.img_range': 1.0, **changes}.items():
        opt = changed(opt, location, value)
    out = checked(opt, tmp_path)
    for index in range(3):
        assert f'warning: taps[{index}]: the features differ by more than 30 times; {advice}' in out


def test_a_loss_of_relations_between_pixels_needs_neither_equal_widths_nor_equal_units(opt, tmp_path):
    out = checked(changed(method_opt(opt, 'FAKDLoss', tmp_path), 'network_g.img_range', 1.0), tmp_path)
    assert out.count('none: channels are not compared') == 3 and 'RMS of student' in out and 'warning' not in out


def test_a_student_alone_is_checked_too(opt, tmp_path):
    alone = {key: value for key, value in opt.items() if key not in ('teacher', 'taps', 'network_r')}
    del alone['train']['distill_opt']
    alone['train']['pixel_opt'] = {'type': 'L1Loss'}
    out = checked(alone | {'model_type': 'SRModel'}, tmp_path)
    assert 'iteration    ' in out and not re.search(r'^ *teacher', out, re.MULTILINE) and 'taps' not in out


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ('FACDLoss', 'FAKDLoss', 'TeacherSupervisionLoss')))
        for name in sorted(LOSSES)
    ],
)
def test_every_loss_is_checked_with_taps_and_regressors_only_if_it_has_them(name, opt, tmp_path):
    own = method_opt(opt, name, tmp_path)
    out = checked(own, tmp_path)
    assert ('taps  ' in out) == ('taps' in own) and 'iteration    ' in out


@pytest.mark.parametrize(
    'block', ['val', 'datasets.val', 'path', 'manual_seed', 'datasets.train.dataset_enlarge_ratio', 'teacher.network']
)
def test_what_may_be_left_out_is(block, opt, tmp_path):
    if block == 'teacher.network':
        pytest.importorskip('spandrel')
        message = 'teacher.network: missing, and .* does not determine all of it'
        with pytest.raises(UserError, match=message):
            checked(changed(opt, block, ...), tmp_path)
        return
    assert 'iteration    ' in checked(changed(opt, block, ...), tmp_path)
    assert 'iteration    ' in checked(changed(opt, block, None), tmp_path)


def test_overrides_work_as_in_train_py(opt, tmp_path):
    assert 'a batch of 2' in checked(opt, tmp_path, 'datasets:train:batch_size_per_gpu=2', 'name=other')


def test_nothing_is_written(opt, tmp_path, monkeypatch):
    monkeypatch.setattr('facd_basicsr.options.parse.root_path', lambda: tmp_path)
    before = sorted(tmp_path.rglob('*'))
    checked(opt, tmp_path)
    assert sorted(tmp_path.rglob('*')) == sorted([*before, tmp_path / 'opt.yml'])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def damage_lmdb(path: Path) -> None:
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        key, value = next(iter(txn.cursor()))
        txn.put(key, value[:-40] + bytes(40))


DAMAGES = {
    'truncated val LQ': (lambda d: truncate(d / 'LQ' / '1.png'), r'datasets.val.dataroot_lq: .*LQ/1.png'),
    'empty val GT': (lambda d: (d / 'GT' / '0.png').write_bytes(b''), r'datasets.val.dataroot_gt: .*GT/0.png'),
    'val LQ of another size': (
        lambda d: cv2.imwrite(str(d / 'LQ' / '1.png'), picture(1, 16, 16)),
        r'datasets.val.dataroot_lq: 1.png is \(16, 16\) for a GT of \(32, 48\)',
    ),
    'val LQ without GT': (
        lambda d: shutil.copy(d / 'LQ' / '1.png', d / 'LQ' / '7.png'),
        r'datasets.val.dataroot_lq: .*LQ/7.png has no counterpart in .*GT',
    ),
    'val GT without LQ': (
        lambda d: shutil.copy(d / 'GT' / '1.png', d / 'GT' / '7.png'),
        r'datasets.val.dataroot_lq: .*GT/7.png has no LQ: sought .*LQ/7.png',
    ),
    'damaged image in the LMDB': (lambda d: damage_lmdb(d / 'LR.lmdb'), r'train.dataroot_lq: .*LR.lmdb: 0000_s001'),
}


@pytest.mark.parametrize(('damage', 'message'), DAMAGES.values(), ids=DAMAGES)
def test_damaged_data_is_reported(damage, message, opt, own_data, tmp_path):
    damage(own_data)
    with pytest.raises(UserError, match=message):
        checked(opt, tmp_path)


def test_every_file_of_a_training_folder_is_checked(opt, own_data, tmp_path):
    for folder, size in (('many_GT', 48), ('many_LQ', 24)):
        (own_data / folder).mkdir()
        for i in range(210):  # train.py's own check opens every second one
            cv2.imwrite(str(own_data / folder / f'{i:03d}.png'), picture(0, size, size))
    cv2.imwrite(str(own_data / 'many_GT' / '101.png'), picture(0, 16, 16))
    cv2.imwrite(str(own_data / 'many_LQ' / '101.png'), picture(0, 8, 8))
    opt['datasets']['train'] |= {
        'dataroot_gt': str(own_data / 'many_GT'),
        'dataroot_lq': str(own_data / 'many_LQ'),
        'io_backend': {'type': 'disk'},
    }
    assert 'datasets.train.gt_size: 24, but 101.png' in refusal(opt, tmp_path)


def test_what_train_py_would_refuse_is_refused(opt, tmp_path):
    assert 'teacher.expect: the teacher has ' in refusal(
        changed(opt, 'teacher.expect', {'dataset': 'val', 'psnr_y': 60, 'tolerance': 0.1}), tmp_path
    )
    assert "taps[2].student: 'conv_after_body' is changed in place" in refusal(
        changed(opt, 'taps.2.student', 'conv_after_body'), tmp_path
    )
    assert 'batch_size_per_gpu: 7 for epochs of 6 samples' in refusal(
        changed(opt, 'datasets.train.batch_size_per_gpu', 7), tmp_path
    )


@pytest.mark.parametrize('name', ['experiments', 'tb_logger'])
def test_folders_that_cannot_be_created_are_reported_before_anything_is_loaded(name, opt, tmp_path, monkeypatch):
    monkeypatch.setattr('facd_basicsr.options.parse.root_path', lambda: tmp_path)
    (tmp_path / name).write_text('a file')
    assert re.search(rf'cannot create .*{name}/tiny: .*{name} is not a writable directory', refusal(opt, tmp_path))


def test_a_file_that_is_not_an_lmdb_is_reported(opt, own_data, tmp_path):
    (own_data / 'HR.lmdb' / 'data.mdb').write_bytes(b'garbage' * 2000)
    assert re.search(r'datasets.train.dataroot_gt: .*HR.lmdb', refusal(opt, tmp_path))


def test_a_network_whose_flops_cannot_be_counted_does_not_prevent_training(opt, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> int:
        raise RuntimeError('Tensor.item() cannot be called on meta tensors')

    monkeypatch.setattr(tool, 'flops', fail)
    assert 'not counted (Tensor.item() cannot be called on meta tensors)' in checked(opt, tmp_path)


def test_too_little_memory_is_refused_before_the_full_batch_runs(opt, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, '_total_memory', lambda device: (1000, 'this machine'))
    assert refusal(opt, tmp_path).startswith('memory: about ')


@pytest.mark.parametrize('part', ['memory_estimate', '_units', '_step'])
def test_a_gpu_that_is_too_small_is_said_with_advice_wherever_it_is_full(opt, tmp_path, monkeypatch, part):
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(tool, part, full)
    assert re.match(
        r'memory: a batch of \d+ does not fit into .*; accepted: a smaller datasets.train.batch_size_per_gpu',
        refusal(opt, tmp_path),
    )


def test_saved_activations_are_what_the_backward_pass_needs():
    x = torch.rand(10, 20, requires_grad=True)
    weight = torch.rand(20, 5, requires_grad=True)
    with saved_activations([weight]) as kept:
        (x @ weight).exp().sum()  # saves x, weight, and exp's result
    assert sum(kept.values()) == 4 * (10 * 20 + 10 * 5)


def test_activations_that_are_gone_before_others_are_saved_do_not_add_up():
    x = torch.rand(10, 20, requires_grad=True)
    with saved_activations([]) as kept:
        for factor in (1, 2, 1):
            (torch.cat([x] * factor).exp() * 1).sum().backward()  # saves exp's result
    assert sum(kept.values()) == 4 * 2 * 10 * 20


def test_the_memory_of_a_batch_in_parts_is_that_of_a_part(opt, tmp_path):
    opt['datasets']['train']['batch_size_per_gpu'] = 6
    opt['network_g']['num_feat'] = 32  # so that the student's activations are most of all
    whole, parts = (checked(opt, tmp_path, f'train:accum_iter={count}') for count in (1, 3))
    found = [re.search(r'a batch of 6(.*): ([\d.]+) MiB of activations', text) for text in (whole, parts)]
    assert [match[1] for match in found] == ['', ' in 3 parts']
    assert float(found[1][2]) < 0.6 * float(found[0][2])


def test_the_command_exits_with_0_only_if_training_would_start(opt, own_data, tmp_path):
    option_file = write_yml(opt, tmp_path / 'opt.yml')
    done = run('-m', 'facd_basicsr.cli', 'check', '-opt', option_file, '--force_yml', 'name=a', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('environment  Python ')
    assert done.stdout.endswith('Training would start.\n')
    truncate(own_data / 'LQ' / '1.png')
    done = run('-m', 'facd_basicsr.cli', 'check', '-opt', option_file, cwd=tmp_path)
    assert done.returncode == 2
    assert 'Training would start' not in done.stdout
    assert done.stderr.splitlines()[-1].startswith(f'error: {tmp_path}/opt.yml: datasets.val.dataroot_lq: ')


def modules(opt: dict, of: str, tmp_path: Path) -> str:
    return '\n'.join(tool.list_modules(str(write_yml(opt, tmp_path / 'opt.yml')), [], of))


def test_module_paths_are_listed_with_shapes_whatever_the_taps_and_without_data_or_weights(opt, tmp_path):
    for change in (('taps', ...), ('taps.0.student', 'layers.0'), ('network_r', ...), ('train.distill_opt', ...)):
        out = modules(changed(opt, *change), 'student', tmp_path)
        assert out.startswith('student      EDSRStudent, features of LQ of 12 x 12\n')
        assert re.search(r'body.1 +ResidualBlockNoBN +4 x 12 x 12', out)
        assert out.endswith('last before the upsampler: body.0, body.1, upsample:input')
    absent = changed(changed(opt, 'datasets.train.dataroot_gt', '/absent'), 'teacher.weights', '/absent/teacher.pth')
    assert re.search(
        r'teacher +EDSR, (.*\n)* +body.1 +ResidualBlockNoBN +6 x 12 x 12', modules(absent, 'teacher', tmp_path)
    )


def test_a_teacher_of_a_file_without_one_is_not_listed(opt, tmp_path):
    alone = {key: value for key, value in opt.items() if key not in ('teacher', 'taps', 'network_r')}
    del alone['train']['distill_opt']
    alone['train']['pixel_opt'] = {'type': 'L1Loss'}
    alone['model_type'] = 'SRModel'
    assert 'EDSRStudent' in modules(alone, 'student', tmp_path)
    with pytest.raises(UserError, match=r'--modules teacher: .*opt.yml has no teacher; accepted: student'):
        modules(alone, 'teacher', tmp_path)


def test_modules_and_suggested_taps_are_not_given_together():
    arguments = ['-opt', 'opt.yml', '--modules', 'student', '--suggest-taps', '3']
    with pytest.raises(UserError, match=r'^--suggest-taps: 3, with --modules student; accepted: one of both$'):
        CliRunner().invoke(tool.command, arguments, catch_exceptions=False)


def test_the_command_that_a_message_about_taps_names_lists_the_paths(opt, tmp_path):
    option_file = write_yml(changed(opt, 'taps.1.teacher', 'layers.0.blocks.5'), tmp_path / 'opt.yml')
    message = refusal(changed(opt, 'taps.1.teacher', 'layers.0.blocks.5'), tmp_path)
    assert message.startswith("taps[1].teacher: 'layers.0.blocks.5' is not in EDSR; accepted: conv_first, body, ")
    flags = message.partition('facd check ')[2].split()
    done = run('-m', 'facd_basicsr.cli', 'check', '-opt', option_file, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'teacher      EDSR' in done.stdout and 'Training would start' not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('name', ['FACD_SwinIR_x2', 'FACD_SwinIR_x4', 'FACD_SRVGGNetCompact_x4'])
def test_the_files_of_other_students_would_train(name, tmp_path):
    """With teachers of random weights in place of the official ones, and a few small pictures."""
    path = REPOSITORY / 'options' / 'train' / f'{name}.yml'
    opt = read_option_file(str(path))
    scale = opt['scale']
    torch.save({'params': build_network(opt['teacher']['network']).state_dict()}, tmp_path / 'teacher.pth')
    for folder in ('GT', 'LQ'):
        (tmp_path / folder).mkdir()
    for index in range(2):
        image = picture(index, 64, 96)
        cv2.imwrite(str(tmp_path / 'GT' / f'{index}.png'), image)
        cv2.imwrite(str(tmp_path / 'LQ' / f'{index}.png'), bicubic_lr(image, scale))
    roots = [
        f'datasets:{key}:dataroot_{kind}={tmp_path / folder}'
        for key in ('train', 'val')
        for kind, folder in (('gt', 'GT'), ('lq', 'LQ'))
    ]
    small = ['batch_size_per_gpu=2', f'gt_size={16 * scale}', 'num_worker_per_gpu=0', 'io_backend:type=disk']
    train = [f'datasets:train:{item}' for item in small]
    teacher = [f'teacher:weights={tmp_path / "teacher.pth"}', 'teacher:expect=null']
    lines = list(check(str(path), [*roots, *train, *teacher]))
    assert any(line.startswith('iteration ') for line in lines)
    assert sum('DeepRegressor' in line for line in lines) == 3
