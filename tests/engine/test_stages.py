"""A run of stages: at a border it resumes from its own checkpoint, whether its process was stopped there or not."""

import os
import re
import shutil
import signal
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import changed, tiny_train_opt
from runs import TOTAL, assert_same, log_text, metric_lines, result, run, with_stages

from facd_basicsr import train
from facd_basicsr.errors import Stopped, UserError
from facd_basicsr.models.facd_model import FACDModel
from facd_basicsr.runtime.execution import set_tf32


@pytest.fixture
def staged(train_opt: dict) -> dict:
    return with_stages(train_opt)


@pytest.fixture(scope='module')
def whole(data: Path, teacher_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ``staged``."""
    root = tmp_path_factory.mktemp('whole')
    run(with_stages(tiny_train_opt(data, teacher_weights)), root)
    return root


def regressors_twice(opt: dict) -> None:
    """FACD in both stages, so that the regressors continue."""
    for key in ('distill_opt', 'taps', 'network_r'):
        del opt['train']['stages'][0][key]


def alone(opt: dict) -> None:
    for key in ('teacher', 'taps', 'network_r'):
        del opt[key]
    opt |= {'model_type': 'SRModel'}
    opt['train'] |= {'pixel_opt': {'type': 'L1Loss'}}
    del opt['train']['distill_opt']
    first, second = opt['train']['stages']
    for key in ('distill_opt', 'taps', 'network_r'):
        del first[key]
    second['pixel_opt'] = {'type': 'MSELoss', 'loss_weight': 10}


def gan(opt: dict) -> None:
    """A model of BasicSR's with two networks and two optimizers."""
    alone(opt)
    opt |= {'model_type': 'SRGANModel', 'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}}
    opt['train'] |= {'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla'}, 'optim_d': {'type': 'Adam', 'lr': 1e-3}}


def as_it_is(opt: dict) -> None:
    """Images alone, then FACD, whose regressors are new."""


def stop_after(iteration: int) -> Callable[[int], None]:
    """A signal that is noticed at the end of the next iteration, or at the border if that comes first."""

    def stop(done: int) -> None:
        if done == iteration:
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


@pytest.mark.parametrize(
    ('change', 'stops'),
    [
        (as_it_is, [1, 3, 5]),  # within the first, at its end, within the second
        pytest.param(regressors_twice, [3], marks=pytest.mark.slow),
        pytest.param(alone, [2], marks=pytest.mark.slow),  # at the end of the first, before its validation
        pytest.param(gan, [2], marks=pytest.mark.slow),
    ],
)
def test_a_run_of_stages_that_was_stopped_and_resumed_ends_as_one_that_never_was(staged, tmp_path, change, stops):
    staged['logger'] |= {'save_checkpoint_freq': 100, 'keep_best': True}
    change(staged)
    run(staged, tmp_path / 'whole')
    for iteration in stops:
        with pytest.raises(Stopped, match=f'stopped after iteration {iteration + (iteration != 3)}, which is saved'):
            run(staged, tmp_path / 'stopped', TOTAL, '--auto_resume', on_iteration=stop_after(iteration))
    run(staged, tmp_path / 'stopped', TOTAL, '--auto_resume')
    assert_same(result(tmp_path / 'stopped'), result(tmp_path / 'whole'))
    assert metric_lines(tmp_path / 'stopped') == metric_lines(tmp_path / 'whole')


def test_a_finished_run_is_extended_by_a_stage_and_ends_as_if_it_had_had_it(staged, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'extended')
    staged['train']['stages'].append({'iterations': 2, 'lr': 1e-4})
    for name in ('extended', 'whole'):
        run(staged, tmp_path / name, TOTAL + 2, '--auto_resume')
    assert_same(result(tmp_path / 'extended', TOTAL + 2), result(tmp_path / 'whole', TOTAL + 2))
    assert metric_lines(tmp_path / 'extended') == metric_lines(tmp_path / 'whole')


def test_everything_in_a_stage_counts_from_its_beginning_and_the_log_goes_on(whole):
    lines = {line['iter']: line for line in metric_lines(whole) if 'lr' in line}
    warm_up = [2.5e-4, 5e-4 * 0.9045085]  # 1 of 2 iterations; the cosine after 1 of 5
    assert [lines[iteration]['lr'] for iteration in (3, 4, 5)] == pytest.approx([1e-3, *warm_up], rel=1e-6)
    assert [lines[iteration]['epoch'] for iteration in (3, 4, 6, 7)] == [1, 2, 2, 3]  # of 2 and of 3 batches
    assert 'l_facd' not in lines[3] and 'l_facd' in lines[4]
    assert sorted({line['iter'] for line in metric_lines(whole) if 'set' in line}) == [3, 4, 8]
    state = result(whole)
    assert state['iter'] == TOTAL and state['schedulers'][0]['last_epoch'] == 4
    assert {float(own['step']) for own in state['optimizers'][0]['state'].values()} == {5.0}
    kept = whole / 'experiments/tiny/training_states'
    assert {path.name for path in kept.iterdir()} == {'6.state', '8.state', 'latest'}


def test_a_schedule_of_a_weight_counts_from_the_start_of_its_stage(staged, tmp_path):
    weight = {'start': 0, 'end': 1, 'over': 3, 'shape': 'step'}
    staged['train']['stages'][1]['distill_opt'] = {'loss_weight': weight}
    run(staged, tmp_path)
    terms = {line['iter']: line['l_sr'] for line in metric_lines(tmp_path) if 'lr' in line}
    assert [iteration for iteration, value in terms.items() if value == 0] == [4, 5]


def test_the_log_says_which_stage_begins_and_what_differs(whole):
    log = log_text(whole)
    assert 'train.stages[0]: iterations 1 to 3\n' in log
    (line,) = re.findall(r'train.stages\[1\]: iterations 4 to 8; (.*)', log)
    assert 'datasets.train.batch_size_per_gpu: 3 -> 2; datasets.train.gt_size: 24 -> 32; network_r: None -> Dee' in line
    assert line.endswith(
        'train.distill_opt: TeacherSupervisionLoss -> FACDLoss; train.optim_g.lr: 0.001 -> 0.0005; '
        'train.scheduler: MultiStepLR -> CosineAnnealingRestartLR; train.warmup_iter: -1 -> 2'
    )
    assert 'Resume is not exact' not in log and log.count('End of training') == 1


def test_a_run_of_one_stage_ends_as_one_without_stages(train_opt, tmp_path):
    run(train_opt, tmp_path / 'plain')
    train_opt['train']['stages'] = [{'iterations': TOTAL}]
    run(train_opt, tmp_path / 'staged')
    assert_same(result(tmp_path / 'staged'), result(tmp_path / 'plain'))
    assert metric_lines(tmp_path / 'staged') == metric_lines(tmp_path / 'plain')


@pytest.mark.parametrize(
    ('location', 'value', 'message'),
    [
        ('batch_size_per_gpu', 7, r'train.stages\[1\]: datasets.train.batch_size_per_gpu: 7 for epochs of 6 samples'),
        ('batch_size_per_gpu', 1, r'train.stages\[1\]: datasets.train.batch_size_per_gpu: 1; accepted: 2 or more'),
        (
            'taps',
            [{'student': 'nobody', 'teacher': 'body.0'}],
            r"train.stages\[1\]: taps\[0\].student: 'nobody' is not in EDSRStudent",
        ),
    ],
)
def test_what_a_later_stage_would_be_refused_for_ends_the_run_before_it_begins(
    staged, tmp_path, location, value, message
):
    staged['train']['stages'][1]['distill_opt'] = {'type': 'FACDLoss', 'layer_weights': [1]}
    staged['taps'] = staged['taps'][:1]
    with pytest.raises(UserError, match=f'^{tmp_path}/opt.yml: {message}'):
        run(changed(staged, f'train.stages.1.{location}', value), tmp_path)
    assert not (tmp_path / 'experiments').exists()


def test_the_teacher_passes_the_gate_once_and_one_stage_is_in_memory_at_a_time(staged, tmp_path, monkeypatch):
    gates, alive = [], []
    monkeypatch.setattr(train, 'check_teacher', lambda *_: gates.append(1) or 'Teacher: fine.')
    built = FACDModel.init_training_settings
    models: list[weakref.ref] = []

    def build(model: FACDModel) -> None:
        models.append(weakref.ref(model))
        alive.append(sum(own() is not None for own in models))
        built(model)

    monkeypatch.setattr(FACDModel, 'init_training_settings', build)
    staged['teacher']['expect'] = {'dataset': 'val', 'psnr_y': 30, 'tolerance': 1}
    run(staged, tmp_path)
    assert len(gates) == 1 and alive == [1, 1, 1]  # tried out, the first, the second


def test_a_stages_precision_is_not_that_of_the_stage_before(staged, tmp_path, monkeypatch):
    staged['train']['stages'][0]['precision'] = 'tf32'
    of_steps = []

    def note(iteration: int) -> None:
        from torch.backends import cuda

        of_steps.append(cuda.matmul.allow_tf32)

    set_tf32('fp32')
    run(staged, tmp_path, on_iteration=note)
    assert of_steps == [True] * 3 + [False] * 5


def test_the_time_that_is_left_counts_later_stages_by_the_pixels_of_their_batches(staged, tmp_path):
    seconds: list[int] = []

    class Logger:
        def __init__(self, *_: object) -> None:
            self.max_iters = 0

        def reset_start_time(self) -> None:
            seconds.append(self.max_iters)

        def __call__(self, _: dict) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('facd_basicsr.engine.loop.MessageLogger', Logger)
        run(staged, tmp_path)
    assert seconds == [3 + 1 + round(5 * 2 * 32**2 / (3 * 24**2)), 8 + 1]


def test_the_options_of_a_run_are_a_file_of_the_same_stages(staged, whole, tmp_path):
    folder = whole / 'experiments/tiny'
    again = train.load_yaml((folder / 'options.yml').read_text(), '')
    assert again['train']['stages'] == staged['train']['stages']
    again.pop('run')
    run(again, tmp_path / 'again')
    assert_same(result(tmp_path / 'again'), result(whole))
