import copy
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, changed, tiny_test_opt, write_yml

from facd_basicsr.comparison.plan import read_comparison
from facd_basicsr.engine.logs import DeferredLog
from facd_basicsr.errors import UserError
from facd_basicsr.options import parse_options, parser
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
        'test': 'test.yml',
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


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('name', 'a/b', r"name: 'a/b'; accepted: a name of letters"),
        ('seeds', [], r'seeds: \[\]; accepted: one or more, each once'),
        ('seeds', [1, 1], r'seeds: \[1, 1\]'),
        ('baseline', 'Teacher', r"baseline: 'Teacher'; accepted: one of the methods, Student, FACD, TS"),
        ('sedes', [1], r"'?sedes'?.*seeds"),
        ('test', 'none.yml', r'test: .*none.yml'),
        ('methods', ..., r'methods: missing'),
        ('common', {'scale': 3}, r'methods.Student.scale: 3; accepted: 2'),
    ],
)
def test_what_can_not_be_compared_is_refused(comparison, tmp_path, key, value, message):
    path = write_yml(changed(comparison, key, value), tmp_path / 'compare.yml')
    with pytest.raises(UserError, match=message):
        read_comparison(path)


def first_batch_and_weights(opt: dict, path: Path) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    args = parser().parse_args(['-opt', str(write_yml(opt, path))])
    with DeferredLog(0, console=False) as log:
        training = set_up(parse_options(args, is_train=True, root=path.parent), log)
    weights = {key: value.clone() for key, value in training.model.net_g.state_dict().items()}
    training.train_sampler.set_epoch(0)
    return [batch['lq'] for batch in training.train_loader], weights


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
