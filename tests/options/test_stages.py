"""``train.stages`` of an option file: each stage is checked as a file of its own."""

import pytest
from conftest import changed, write_yml

from facd_basicsr.errors import UserError
from facd_basicsr.options import load_options, load_yaml
from facd_basicsr.options.option_check import check_options, stages_of
from facd_basicsr.tools.show import show


@pytest.fixture
def staged(train_opt: dict) -> dict:
    """A file of two stages: images alone, then FACD with larger crops."""
    del train_opt['train']['total_iter']
    train_opt['train']['stages'] = [
        {'iterations': 3, 'distill_opt': {'type': 'TeacherSupervisionLoss'}, 'taps': None, 'network_r': None},
        {
            **{'iterations': 5, 'gt_size': 32, 'batch_size_per_gpu': 2, 'lr': 5e-4, 'warmup_iter': 2},
            'scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [5]},
        },
    ]
    return train_opt


def test_a_stage_is_the_file_with_what_it_changes(staged):
    first, second = stages_of(check_options(staged, is_train=True)).values()
    assert [stage['stage_begin'] for stage in (first, second)] == [0, 3]
    assert [stage['train']['total_iter'] for stage in (first, second)] == [3, 5]
    sizes = [
        [stage['datasets']['train'][key] for key in ('gt_size', 'batch_size_per_gpu')] for stage in (first, second)
    ]
    assert sizes == [[24, 3], [32, 2]]
    assert [stage['train']['optim_g']['lr'] for stage in (first, second)] == [1e-3, 5e-4]
    assert [stage['train']['warmup_iter'] for stage in (first, second)] == [-1, 2]
    assert first['train']['scheduler']['milestones'] == [3] and 'milestones' not in second['train']['scheduler']
    assert first['taps'] == [] and 'network_r' not in first and 'pretrain_network_r' not in first['path']
    assert second['taps'] == staged['taps'] and second['network_r']['type'] == 'DeepRegressor'
    assert second['train']['distill_opt']['layer_weights'] == [0.5, 0.3, 0.2]  # a default of its own
    assert 'stages' not in first['train']


def test_how_regressors_are_run_is_not_of_a_stage_without_any(staged):
    staged['train'] |= {'precision': 'bf16', 'precision_r': 'bf16', 'channels_last_r': True}
    first, second = stages_of(check_options(staged, is_train=True)).values()
    assert 'precision_r' not in first['train'] and second['train']['precision_r'] == 'bf16'


def test_a_stage_may_have_an_empty_optimizer_beside_its_rate(staged):
    staged['train']['stages'][0] |= {'optim_g': None, 'lr': 1e-4}
    first, _ = stages_of(check_options(staged, is_train=True)).values()
    assert first['train']['optim_g']['lr'] == 1e-4 and first['train']['optim_g']['type'] == 'Adam'


def test_the_file_is_complete_with_the_sum_and_the_stages_as_they_are_and_is_accepted_again(staged):
    complete = check_options(staged, is_train=True)
    assert complete['train']['total_iter'] == 8
    assert complete['train']['stages'] == staged['train']['stages']
    assert complete['train']['warmup_iter'] == -1 and complete['path']['strict_load_r'] is True
    assert check_options(complete, is_train=True) == complete


def test_what_each_stage_gives_may_be_left_out_of_the_file(train_opt):
    own = {'iterations': 4, 'gt_size': 24, 'batch_size_per_gpu': 3, 'lr': 1e-3}
    own |= {key: train_opt['train'].pop(key) for key in ('scheduler', 'distill_opt')}
    for key in ('gt_size', 'batch_size_per_gpu'):
        del train_opt['datasets']['train'][key]
    del train_opt['train']['optim_g']['lr'], train_opt['train']['total_iter']
    train_opt['train']['stages'] = [own, own]
    assert check_options(train_opt, is_train=True)['train']['total_iter'] == 8
    assert 'train.optim_g.lr: missing' in refusal(changed(train_opt, 'train.stages.1.lr', ...))


def test_without_stages_a_run_is_its_only_stage(train_opt):
    complete = check_options(train_opt, is_train=True)
    (stage,) = stages_of(complete).values()
    assert stage is complete and 'stages' not in complete['train']


def refusal(opt: dict) -> str:
    with pytest.raises(UserError) as error:
        check_options(opt, is_train=True)
    return str(error.value)


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        ('train.stages', [], 'train.stages: []; accepted: one block or more, or no stages'),
        ('train.stages', {'iterations': 3}, "train.stages: {'iterations': 3}; accepted: a list"),
        ('train.stages.1', 5, 'train.stages[1]: 5; accepted: a block of keys'),
        ('train.stages.1.iterations', ..., 'train.stages[1].iterations: missing; accepted: a whole number'),
        ('train.stages.1.iterations', 0, 'train.stages[1].iterations: 0; accepted: 1 or more'),
        ('train.stages.0.gt_sise', 1, "train.stages[0].gt_sise: unknown key; did you mean 'gt_size'?"),
        ('train.stages.0.total_iter', 1, 'train.stages[0].total_iter: unknown key; did you mean'),
        ('train.stages.0.stages', [], "train.stages[0].stages: unknown key; did you mean 'taps'?"),
        ('train.total_iter', 9, 'train.total_iter: 9; accepted with stages: 8, the sum of their iterations, or null'),
        (
            'train.stages.1.gt_size',
            25,
            'train.stages[1]: datasets.train.gt_size: 25; accepted: a multiple of scale, 2',
        ),
        (
            'train.stages.1.scheduler.periods',
            [4],
            'train.stages[1]: train.scheduler.periods: [4]; accepted: a sum of total_iter or more',
        ),
        (
            'train.stages.0.taps',
            ...,
            'train.stages[0]: taps: given, but TeacherSupervisionLoss compares images only; accepted: no taps',
        ),
        (
            'train.stages.1.distill_opt',
            {'type': 'FACDLoss', 'lamda': 1},
            "train.stages[1]: train.distill_opt.lamda: unknown key; did you mean 'lambda'?",
        ),
        ('train.optim_g.type', 'Adamm', "train.optim_g.type: 'Adamm'; accepted: "),
    ],
)
def test_what_is_refused_in_a_stage_is_refused_with_its_place(staged, location, value, message):
    assert refusal(changed(staged, location, value)).startswith(message)


def test_what_a_class_refuses_in_a_stage_and_a_crop_larger_than_the_images_have_its_place_too(staged, tmp_path):
    def loaded(location: str, value: object) -> str:
        path = write_yml(changed(staged, location, value), tmp_path / 'opt.yml')
        with pytest.raises(UserError) as error:
            load_options(str(path), [], is_train=True)
        return str(error.value).removeprefix(f'{path}: ')

    assert loaded('train.stages.1.scheduler.restart_weights', [1, 1]).startswith('train.stages[1]: train.scheduler')
    assert loaded('train.stages.1.gt_size', 64).startswith('train.stages[1]: datasets.train')


def test_stages_are_inherited_shown_overridden_and_taken_out(staged, tmp_path):
    write_yml(staged, tmp_path / 'base.yml')
    child = str(write_yml({'base': 'base.yml', 'name': 'child'}, tmp_path / 'child.yml'))
    assert load_yaml(show(child, []), '')['train']['stages'] == staged['train']['stages']
    assert load_yaml(show(child, [], defaults=True), '')['train']['total_iter'] == 8
    opt = load_options(child, ['train:stages=[{iterations: 2}, {iterations: 7, lr: 0.1}]'], is_train=True)
    assert opt['train']['total_iter'] == 9
    opt = load_options(child, ['train:stages=~', 'train:total_iter=2'], is_train=True)
    assert list(stages_of(opt)) == ['']
