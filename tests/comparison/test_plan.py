import copy
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import REPOSITORY, changed, tiny_test_opt, write_yml

from facd_basicsr.comparison.plan import of_equal_time, read_comparison, shortened, timed
from facd_basicsr.engine.logs import DeferredLog
from facd_basicsr.errors import UserError
from facd_basicsr.options import load_yaml, parse_options, parser
from facd_basicsr.options.build import dry_run
from facd_basicsr.options.option_check import check_options
from facd_basicsr.options.option_files import merged, read_option_file
from facd_basicsr.train import set_up


@pytest.fixture
def comparison(tmp_path: Path, train_opt: dict, data: Path) -> dict:
    """A comparison file's content; its base files are in ``tmp_path``."""
    student = copy.deepcopy(train_opt) | {'model_type': 'SRModel'}
    for key in ('teacher', 'taps', 'network_r'):
        del student[key]
    student['train']['pixel_opt'] = {'type': 'L1Loss'}
    del student['train']['distill_opt']
    write_yml(train_opt, tmp_path / 'facd.yml')
    write_yml(student, tmp_path / 'student.yml')
    test_opt = tiny_test_opt(data)
    test_opt['path']['pretrain_network_g'] = 'none.pth'
    write_yml(test_opt, tmp_path / 'test.yml')
    return {
        'name': 'tiny',
        'seeds': [3, 5],
        'baseline': 'Student',
        'test': {'base': 'test.yml'},
        'common': {'train': {'total_iter': 6}},
        'methods': {
            'Student': {'base': 'student.yml'},
            'FACD': {'base': 'facd.yml'},
            'TS': {
                'base': 'facd.yml',
                'taps': None,
                'network_r': None,
                'train': {'distill_opt': {'type': 'TeacherSupervisionLoss'}},
            },
        },
    }


def test_runs_are_methods_times_seeds_with_everything_inherited(comparison, tmp_path):
    found = read_comparison(write_yml(comparison, tmp_path / 'compare.yml'))
    runs = list(found.runs())
    assert [(run.method, run.seed) for run in runs] == [
        ('Student', 3), ('FACD', 3), ('TS', 3), ('Student', 5), ('FACD', 5), ('TS', 5),
    ]  # fmt: skip
    assert {run.opt['train']['total_iter'] for run in runs} == {6}
    assert [run.opt['manual_seed'] for run in runs] == [3, 3, 3, 5, 5, 5]
    assert runs[4].opt['name'] == 'tiny_FACD_seed5' and runs[4].name == 'FACD_seed5'
    assert runs[2].opt['train']['distill_opt'] == {'type': 'TeacherSupervisionLoss'}
    assert 'taps' not in runs[2].opt and 'taps' in runs[1].opt


X3 = {'base': 'student.yml', 'scale': 3, 'network_g': {'upscale': 3}}


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('name', 'a/b', r"name: 'a/b'; accepted: letters, digits"),
        ('name', '..', r"name: '..'; accepted: letters, digits"),
        ('name', 'debug_1', r"name: 'debug_1'; .*nothing with debug"),
        ('seeds', [-1], r'seeds: \[-1\]; accepted: one or more whole numbers from 0, each once'),
        ('methods.teacher', {'base': 'facd.yml'}, r"methods: 'teacher'; .*not bicubic or teacher"),
        ('methods.X', {'base': 'none.yml'}, r'methods.X.base: no such file: .*none.yml'),
        ('methods.FACD.train', None, r'methods.FACD.train.\w+: missing'),
        ('methods.TS.teacher', {'weights': 'b.pth'}, r"methods.TS.teacher: another than methods.FACD's"),
        ('common', {'logger': {'print_freq': 'x'}}, r"methods.Student.logger.print_freq: 'x'"),
        ('seeds', [], r'seeds: \[\]; accepted: one or more'),
        ('seeds', [1, 1], r'seeds: \[1, 1\]'),
        ('baseline', 'Teacher', r"baseline: 'Teacher'; accepted: one of the methods, Student, FACD, TS"),
        ('baseline', [], r'baseline: None; accepted: one of the methods'),
        ('baseline', ['Student', 'FACD'], r"baseline: FACD has Student's network_g; accepted: one method of each arch"),
        ('sedes', [1], r"'?sedes'?.*seeds"),
        ('test', {'base': 'none.yml'}, r'test.base: no such file: .*none.yml'),
        ('methods', ..., r'methods: missing'),
        ('methods', {'Student': X3}, r'methods.Student.scale: 3; accepted: 2'),
    ],
)
def test_what_can_not_be_compared_is_refused(comparison, tmp_path, key, value, message):
    path = write_yml(changed(comparison, key, value), tmp_path / 'compare.yml')
    with pytest.raises(UserError, match=message):
        read_comparison(path)


def test_settings_that_methods_do_not_share_are_named(comparison, tmp_path):
    comparison['methods']['TS']['train'] |= {'total_iter': 9}
    comparison['methods']['TS']['datasets'] = {'train': {'batch_size_per_gpu': 2}}
    comparison['common'] = {'train': {'warmup_iter': -1}}
    found = read_comparison(write_yml(comparison, tmp_path / 'compare.yml'))
    assert found.differing() == {'TS': ['datasets.train', 'train.total_iter']}


def test_defaults_that_are_written_out_differ_in_nothing_and_all_that_is_trained_with_counts(comparison, tmp_path):
    comparison['methods']['FACD']['datasets'] = {'train': {'skip_damaged': False}}
    comparison['methods']['FACD']['train'] = {'warmup_iter': -1}
    comparison['methods']['TS']['train'] |= {'clip_grad_norm': 0.01, 'quantize': {}}
    found = read_comparison(write_yml(comparison, tmp_path / 'compare.yml'))
    assert found.differing() == {'TS': ['train.quantize', 'train.clip_grad_norm']}


@pytest.fixture
def of_two_students(comparison) -> dict:
    """The same methods of a second student, of another width, each of which has its baseline."""
    wider = {'network_g': {'num_feat': 6}}
    for name in ('Student', 'FACD', 'TS'):
        comparison['methods'][f'{name}_wide'] = {**comparison['methods'][name], **wider}
    return comparison | {'baseline': ['Student', 'Student_wide']}


def test_a_method_is_compared_with_the_baseline_of_its_own_architecture(of_two_students, tmp_path):
    found = read_comparison(write_yml(of_two_students, tmp_path / 'compare.yml'))
    assert [found.baseline_of(method) for method in found.methods] == ['Student'] * 3 + ['Student_wide'] * 3
    assert found.students() == dict.fromkeys(('Student', 'FACD', 'TS'), 'EDSRStudent num_feat 4') | dict.fromkeys(
        ('Student_wide', 'FACD_wide', 'TS_wide'), 'EDSRStudent num_feat 6'
    )
    assert found.differing() == {}


def test_settings_are_compared_with_the_own_baselines_and_the_baselines_with_the_first_ones(of_two_students, tmp_path):
    methods = of_two_students['methods']
    methods['Student_wide'] |= {'train': {'optim_g': {'lr': 0.002}}}
    methods['TS_wide']['train'] = {**methods['TS']['train'], 'optim_g': {'lr': 0.002}}
    methods['Linear'] = {'base': 'student.yml', 'network_g': {'num_block': 2}}
    found = read_comparison(write_yml(of_two_students, tmp_path / 'compare.yml'))
    assert found.baseline_of('Linear') is None
    assert found.differing() == {
        'Student_wide': ['train.optim_g'],  # not TS_wide, which has its baseline's
        'FACD_wide': ['train.optim_g'],
        'Linear': ['network_g'],
    }


def test_students_of_other_architectures_see_the_same_batches_of_a_seed(of_two_students, tmp_path):
    of_two_students['methods']['Student_wide'] |= {
        'network_g': {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 2, 'upscale': 2}
    }
    found = read_comparison(write_yml(of_two_students | {'baseline': ['Student']}, tmp_path / 'compare.yml'))
    runs = {run.name: run.opt for run in found.runs()}
    batches, _ = first_batch_and_weights(runs['Student_seed3'], tmp_path / 'a.yml')
    others, _ = first_batch_and_weights(runs['Student_wide_seed3'], tmp_path / 'b.yml')
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(batches, others, strict=True))


def first_batch_and_weights(opt: dict, path: Path) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    args = parser().parse_args(['-opt', str(write_yml(opt, path))])
    with DeferredLog(0, console=False) as log:
        training = set_up(parse_options(args, is_train=True, root=path.parent), log)
    weights = {key: value.clone() for key, value in training.model.net_g.state_dict().items()}
    return [batch['lq'] for batch in training.loaders.train], weights


def test_a_teacher_that_is_run_otherwise_is_the_same_teacher_and_its_precision_is_named(comparison, tmp_path):
    comparison['methods']['TS']['teacher'] = {'precision': 'bf16', 'channels_last': True, 'compile': {}}
    found = read_comparison(write_yml(comparison, tmp_path / 'c.yml'))
    assert found.differing() == {'TS': ['teacher.precision']}


def test_methods_with_the_same_teachers_are_compared_and_others_are_refused(comparison, tmp_path):
    one = load_yaml((tmp_path / 'facd.yml').read_text(), '')['teacher']
    two = [one, {**one, 'precision': 'bf16'}]
    for method in ('FACD', 'TS'):
        comparison['methods'][method]['teacher'] = copy.deepcopy(two)
    comparison['methods']['TS']['teacher'][0]['precision'] = 'bf16'
    found = read_comparison(write_yml(comparison, tmp_path / 'c.yml'))
    assert found.differing() == {'TS': ['teacher.precision']}
    comparison['methods']['TS']['teacher'] = two[:1]
    with pytest.raises(UserError, match=r"methods\.TS\.teacher: another than methods\.FACD's"):
        read_comparison(write_yml(comparison, tmp_path / 'c.yml'))


@pytest.mark.parametrize('workers', [0, 1])
def test_methods_share_initial_weights_and_every_batch_of_a_seed_and_seeds_differ(comparison, tmp_path, workers):
    comparison['common']['datasets'] = {'train': {'num_worker_per_gpu': workers}}
    found = read_comparison(write_yml(comparison, tmp_path / 'compare.yml'))
    runs = {run.name: first_batch_and_weights(run.opt, tmp_path / f'{run.name}.yml') for run in found.runs()}
    batches, weights = runs['Student_seed3']
    for name in ('FACD_seed3', 'TS_seed3'):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(batches, runs[name][0], strict=True))
        assert all(torch.equal(weights[key], value) for key, value in runs[name][1].items())
    other_batches, other_weights = runs['FACD_seed5']
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(batches, other_batches))
    assert not torch.equal(weights['conv_first.weight'], other_weights['conv_first.weight'])


@pytest.mark.parametrize('path', sorted(REPOSITORY.glob('options/compare/*.yml')), ids=lambda path: path.name)
def test_the_header_of_a_comparison_file_gives_the_exact_command(path):
    header = path.read_text(encoding='utf-8').split('\n\n')[0]
    assert f'facd compare {path.relative_to(REPOSITORY)}' in header
    assert yaml.safe_load(path.read_text(encoding='utf-8'))['name'] == path.stem


def test_iterations_change_every_training_and_its_schedule_in_proportion(comparison, tmp_path):
    scheduler = {'type': 'CosineAnnealingRestartLR', 'periods': [50, 51]}
    comparison['methods']['FACD']['train'] = {'scheduler': scheduler}
    comparison['methods']['TS']['train'] |= {'scheduler': {'type': 'MultiStepLR', 'milestones': [100, 200]}}
    comparison['common'] = {'train': {}, 'val': {'val_freq': 50}, 'logger': {'save_checkpoint_freq': 50}}
    found = read_comparison(write_yml(comparison, tmp_path / 'compare.yml'))
    for method, iterations in (('Student', 100), ('FACD', 101), ('TS', 300)):
        found.methods[method]['train']['total_iter'] = iterations
    short = shortened(found, 10)
    assert short.name == 'tiny_10'
    assert [opt['train']['total_iter'] for opt in short.methods.values()] == [10, 10, 30]
    assert short.methods['FACD']['train']['scheduler']['periods'] == [5, 5]
    assert short.methods['TS']['train']['scheduler']['milestones'] == [10, 20]
    assert short.methods['TS']['val']['val_freq'] == short.methods['TS']['logger']['save_checkpoint_freq'] == 5
    assert found.methods['TS']['train']['total_iter'] == 300


def test_stages_are_shortened_each_with_its_schedule(comparison, tmp_path):
    stages = [{'iterations': 30}, {'iterations': 10, 'warmup_iter': 4, 'scheduler': {'milestones': [5]}}]
    comparison['methods']['FACD']['train'] = {'total_iter': None, 'stages': stages}
    comparison['common'] = {}
    found = read_comparison(write_yml(comparison, tmp_path / 'comparison.yml'))
    train_opt = shortened(found, 2).methods['FACD']['train']
    assert train_opt['total_iter'] == 20 and [stage['iterations'] for stage in train_opt['stages']] == [15, 5]
    assert train_opt['stages'][1]['scheduler'] == {'milestones': [2]} and train_opt['stages'][1]['warmup_iter'] == 2


def test_the_shares_of_a_stage_stay_multiples_of_lines(comparison, tmp_path):
    stages = [{'iterations': 300}, {'iterations': 300, 'log_gradient_share': 200}]
    comparison['methods']['FACD'] |= {'train': {'total_iter': None, 'stages': stages}, 'logger': {'print_freq': 100}}
    comparison['common'] = {}
    found = read_comparison(write_yml(comparison, tmp_path / 'comparison.yml'))
    total = found.methods[found.baseline]['train']['total_iter']
    opt = of_equal_time(found, 'Student', {'Student': 1.0, 'FACD': 37 * total / 600, 'TS': 1.0}).methods['FACD']
    assert opt['logger']['print_freq'] == 3 and opt['train']['stages'][1]['log_gradient_share'] == 3
    check_options(opt, is_train=True)


def test_schedules_of_weights_are_shortened_and_shares_stay_multiples_of_lines(comparison, tmp_path):
    fading = {'start': 4, 'end': 0, 'over': 60}
    comparison['methods']['FACD']['train'] = {
        'distill_opt': {'lambda': fading, 'layer_weights': [1, 1, {**fading, 'over': 30}]},
        'log_gradient_share': 60,
    }
    comparison['methods']['FACD']['logger'] = {'print_freq': 30}
    comparison['common'] = {}
    found = read_comparison(write_yml(comparison, tmp_path / 'comparison.yml'))
    total = found.methods[found.baseline]['train']['total_iter']
    opt = shortened(found, total // 2).methods['FACD']
    distill_opt = opt['train']['distill_opt']
    assert distill_opt['lambda']['over'] == 30 and distill_opt['layer_weights'][2]['over'] == 15
    assert opt['train']['log_gradient_share'] == 30 and opt['logger']['print_freq'] == 15


def test_ecos_alpha_is_shortened(comparison, tmp_path):
    alpha = {'start': 0, 'end': 1, 'over': 45}
    comparison['methods']['TS']['train'] = {'distill_opt': {'type': 'ECOLoss', 'alpha': alpha}}
    found = read_comparison(write_yml(comparison, tmp_path / 'comparison.yml'))
    opt = shortened(found, 2 * found.methods['Student']['train']['total_iter']).methods['TS']
    assert opt['train']['distill_opt']['alpha'] == {**alpha, 'over': 90}


@pytest.mark.parametrize('loss_opt', [{'type': 'DCKDLoss'}, {'type': 'DCKDLoss', 'every': 500}])
def test_what_else_is_counted_in_iterations_is_scaled(comparison, tmp_path, loss_opt):
    comparison['methods']['TS']['train'] = {'distill_opt': loss_opt, 'net_d_init_iters': 30}
    found = read_comparison(write_yml(comparison, tmp_path / 'comparison.yml'))
    opt = shortened(found, 2 * found.methods['Student']['train']['total_iter']).methods['TS']
    assert opt['train']['distill_opt']['every'] == 2 * loss_opt.get('every', 1000)
    assert opt['train']['net_d_init_iters'] == 60


SECONDS = {'Student': 0.02, 'FACD': 0.04, 'TS': 0.03}


@pytest.mark.parametrize(
    ('method', 'totals', 'milestones'),
    [
        ('Student', [600, 300, 400], [200, 300]),  # 600 x 20 ms
        ('FACD', [200, 100, 133], [67, 100]),  # 100 x 40 ms
        ('TS', [900, 450, 600], [300, 450]),  # 600 x 30 ms
    ],
)
def test_runs_of_equal_time_take_that_of_one_method(comparison, tmp_path, method, totals, milestones):
    comparison['methods']['TS']['train'] |= {'scheduler': {'type': 'MultiStepLR', 'milestones': [300, 450]}}
    fading = {'start': 4, 'end': 0, 'over': 50}
    comparison['methods']['FACD']['train'] = {'distill_opt': {'lambda': fading}}
    comparison['common'] = {'val': {'val_freq': 60}}
    found = read_comparison(write_yml(comparison, tmp_path / 'compare.yml'))
    for name, iterations in (('Student', 600), ('FACD', 100), ('TS', 600)):
        found.methods[name]['train']['total_iter'] = iterations
    equal = of_equal_time(found, method, SECONDS)
    assert equal.name == f'tiny_equal_time_{method}'
    assert [opt['train']['total_iter'] for opt in equal.methods.values()] == totals
    student, facd, ts = equal.methods.values()
    assert facd['train']['distill_opt']['lambda']['over'] == totals[1] // 2
    assert ts['train']['scheduler']['milestones'] == milestones
    assert student['val']['val_freq'] == totals[0] // 10
    assert equal.methods[method] == found.methods[method]


def test_equal_time_of_shorter_runs_has_both_in_its_name_and_scales_stages(comparison, tmp_path):
    stages = [{'iterations': 300}, {'iterations': 100, 'scheduler': {'milestones': [50]}}]
    comparison['methods']['FACD']['train'] = {'total_iter': None, 'stages': stages}
    comparison['common'] = {}
    found = read_comparison(write_yml(comparison, tmp_path / 'compare.yml'))
    found.methods['Student']['train']['total_iter'] = 800
    equal = of_equal_time(shortened(found, 400), 'Student', SECONDS)
    assert equal.name == 'tiny_400_equal_time_Student'
    train_opt = equal.methods['FACD']['train']
    assert train_opt['total_iter'] == 200 and [stage['iterations'] for stage in train_opt['stages']] == [150, 50]
    assert train_opt['stages'][1]['scheduler'] == {'milestones': [25]}


def test_what_measures_a_step_is_train_pys_run_of_210_iterations_of_each_stage(comparison, tmp_path):
    comparison['methods']['FACD']['train'] = {'stages': [{'iterations': 2}, {'iterations': 4, 'gt_size': 48}]}
    comparison['methods']['TS']['train'] |= {'log_gradient_share': 7, 'net_d_init_iters': 60}
    comparison['common'] |= {'logger': {'print_freq': 7}}
    found = read_comparison(write_yml(comparison, tmp_path / 'compare.yml'))
    short = timed(found)
    assert short.name == 'tiny_step_times' and short.seeds == (0, 1, 2)
    assert [opt['train']['total_iter'] for opt in short.methods.values()] == [210, 420, 210]
    assert [stage['iterations'] for stage in short.methods['FACD']['train']['stages']] == [210, 210]
    for opt in short.methods.values():
        assert check_options(opt, is_train=True)['val'] is None and 'net_d_init_iters' not in opt['train']
    assert found.methods['TS']['train']['log_gradient_share'] == 7


def test_what_measures_a_step_may_be_longer_than_the_run(comparison, tmp_path):
    scheduler = {'type': 'CosineAnnealingRestartLR', 'periods': [6]}
    stages = [{'iterations': 2}, {'iterations': 4, 'scheduler': {'periods': [4]}}]
    comparison['methods']['FACD']['train'] = {'total_iter': None, 'stages': stages}
    comparison['common'] |= {'train': {'scheduler': scheduler}}
    short = timed(read_comparison(write_yml(comparison, tmp_path / 'compare.yml')))
    for opt in short.methods.values():
        check_options(opt, is_train=True)


@pytest.mark.parametrize('net', ['EDSR', 'RCAN', 'SwinIR'])
def test_the_comparisons_of_all_methods_differ_in_the_scale_only(net):
    texts = {s: (REPOSITORY / 'options' / 'compare' / f'{net}_x{s}.yml').read_text(encoding='utf-8') for s in (2, 4)}
    assert texts[2].replace('x2', 'x4') == texts[4]
    methods = yaml.safe_load(texts[2])['methods']
    table_2 = ['Student', 'TS', 'FitNet', 'FAKD', 'LFD', 'LSFD', 'FCD', 'FACD']
    assert [*methods][:14] == [*table_2, 'CSD', 'FACD-B', 'DUKD', 'ECO', 'DCKD', 'MTKD']
    for name, block in methods.items():
        assert block == {'base': f'../train/{name.replace("-", "")}_{net}_x2.yml'}


@pytest.mark.parametrize(
    ('name', 'settings', 'averaged'),
    [
        ('controls_EDSR_x2', {'pixel_weight': 5, 'crops': 2, 'zoom_out': True}, {}),
        ('long_x2', {}, {'DCKD': ['train.ema_decay']}),
    ],
)
def test_controls_are_dukd_without_a_teacher_and_the_student_alone_for_twice_as_long(
    name, settings, averaged, monkeypatch
):
    monkeypatch.setattr('facd_basicsr.comparison.plan.check_paths', lambda opt, is_train: None)  # no sets here
    found = read_comparison(REPOSITORY / 'options' / 'compare' / f'{name}.yml')
    student, longer, alone, dukd = (found.methods[own] for own in ('Student', 'Student_longer', 'Augmentation', 'DUKD'))
    total = student['train']['total_iter']
    steps = {'DUKD_two_steps': ['train.distill_opt.two_steps']}
    assert found.differing() == {'Student_longer': ['train.total_iter', 'train.scheduler'], **steps, **averaged}
    twice = shortened(found, 2 * total).methods['Student']
    assert longer['train'] == twice['train'] and longer['datasets'] == student['datasets']
    loss_opt = {'type': 'DUKDLoss', **settings}
    assert dukd['train']['distill_opt'] == loss_opt and 'taps' not in dukd
    assert alone['train']['distill_opt'] == loss_opt | {'targets': 'gt'} and 'teacher' not in alone
    assert found.methods['DUKD_two_steps']['train']['distill_opt'] == loss_opt | {'two_steps': True}
    equal = of_equal_time(found, 'Student', dict.fromkeys(found.methods, 1.0))
    assert equal.methods['Student_longer']['train'] == student['train'] and equal.differing() == steps | averaged


STUDENTS = [
    pytest.param(
        'students_x2',
        marks=pytest.mark.skipif('SPAN_spandrel' not in ARCH_REGISTRY, reason='spandrel is not installed'),
    ),
    'SwinIR_x2',
    'SwinIR_x4',
]


@pytest.mark.parametrize('name', STUDENTS)
def test_a_comparison_of_other_networks_has_a_baseline_of_every_student_and_equal_settings(name, monkeypatch):
    monkeypatch.setattr('facd_basicsr.comparison.plan.check_paths', lambda opt, is_train: None)  # no sets here
    found = read_comparison(REPOSITORY / 'options' / 'compare' / f'{name}.yml')
    assert found.differing() == {}
    assert len(found.baselines) == len(set(found.students().values()))
    assert None not in map(found.baseline_of, found.methods)


COMPARED = sorted(REPOSITORY.glob('options/compare/*.yml'))
MINI = [path for path in COMPARED if path.stem.startswith(('mini', 'long', 'weak', 'gpu'))]


@pytest.mark.parametrize('path', MINI, ids=lambda path: path.name)
def test_the_miniatures_methods_are_accepted_and_differ_in_the_distillation_only(path):
    content = load_yaml(path.read_text(encoding='utf-8'), str(path))
    opts = {}
    for method, block in content['methods'].items():
        opt = merged(
            read_option_file(str(path.parent / block['base'])), {k: v for k, v in block.items() if k != 'base'}
        )
        opts[method] = merged(opt, content.get('common') or {})
        check_options(opts[method], is_train=True)
        dry_run(opts[method], is_train=True)
    shared = ('datasets', 'network_g', 'scale', 'val', 'logger')
    assert all(opt[key] == opts[content['baseline']][key] for opt in opts.values() for key in shared)
    assert all(opt['train']['optim_g'] == opts[content['baseline']]['train']['optim_g'] for opt in opts.values())


def test_an_empty_common_block_is_none(comparison, tmp_path):
    comparison['common'] = None
    assert list(read_comparison(write_yml(comparison, tmp_path / 'tiny.yml')).methods) == ['Student', 'FACD', 'TS']
