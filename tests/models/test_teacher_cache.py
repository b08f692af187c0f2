"""The teacher's images from a cache (``teacher.cache``): what runs, what is refused, resumed runs, and a full disk."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import changed, tiny_train_opt, train_options
from runs import TOTAL, assert_same, log_text, metric_lines, result, run
from torch import Tensor

from facd_basicsr.data.decoded_cache import CacheNotWrittenError
from facd_basicsr.errors import UserError
from facd_basicsr.models import facd_model
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.tools.check import check

N = 4
TS = {'type': 'TeacherSupervisionLoss'}


def cached(opt: dict, loss: dict = TS) -> dict:
    """The options of a run in memory, whose losses read a cache of the teacher's images."""
    opt = {key: value for key, value in copy.deepcopy(opt).items() if key not in ('taps', 'network_r')}
    opt['datasets']['train']['io_backend'] = {'type': 'memory'}
    opt['teacher']['cache'] = True
    opt['train']['distill_opt'] = loss
    return opt


def without(opt: dict) -> dict:
    return changed(opt, 'teacher.cache', False)


def batch() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    lq, gt = (torch.rand(N, 3, size, size, generator=generator) for size in (8, 16))
    return {'lq': lq, 'gt': gt, 'seed': [str(number) for number in range(N)]}


@pytest.mark.parametrize('loss', [TS, {'type': 'ECOLoss', 'alpha': 0.3}, {'type': 'L1Loss', 'target': 'gated'}])
@pytest.mark.parametrize('accum_iter', [1, 2])
def test_a_step_with_the_teachers_images_is_that_of_the_teacher_which_does_not_run(
    train_opt, tmp_path, loss, accum_iter
):
    opt = cached(train_opt, loss)
    opt['datasets']['train']['batch_size_per_gpu'] = N
    opt['train'] |= {'accum_iter': accum_iter, 'log_gradient_share': 1}
    found, expected = (build_model(train_options(own, tmp_path)) for own in (opt, without(opt)))
    expected.net_g.load_state_dict(found.net_g.state_dict())
    data, forwards = batch(), {'found': [], 'expected': []}
    taught = {**data, 'teacher': found.teachers[0](data['lq'])}
    for name, model, own in (('found', found, taught), ('expected', expected, data)):
        model.teachers[0].net.register_forward_hook(lambda *_, name=name: forwards[name].append(1))
        model.feed_data(own)
        model.optimize_parameters(1)
    assert len(forwards['found']) == 0 < len(forwards['expected'])
    assert found.get_current_log() == pytest.approx(expected.get_current_log())
    for ours, theirs in zip(found.net_g.parameters(), expected.net_g.parameters()):
        torch.testing.assert_close(ours, theirs)


def count_teacher(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that any teacher is given from now on."""
    shapes: list[tuple[int, ...]] = []
    forward = facd_model.Teacher.forward

    def counted(self: facd_model.Teacher, lq: Tensor) -> Tensor:
        shapes.append(tuple(lq.shape))
        return forward(self, lq)

    monkeypatch.setattr(facd_model.Teacher, 'forward', counted)
    return shapes


@pytest.fixture
def own_opt(data: Path, teacher_weights: Path, tmp_path: Path) -> dict:
    """With LMDBs of its own, beside which caches are made."""
    for name in ('HR.lmdb', 'LR.lmdb'):
        (tmp_path / name).symlink_to(data / name)
    opt = tiny_train_opt(data, teacher_weights)
    opt['datasets']['train'] |= {'dataroot_gt': str(tmp_path / 'HR.lmdb'), 'dataroot_lq': str(tmp_path / 'LR.lmdb')}
    return opt


def test_a_run_reads_the_teachers_images_and_resumes_exactly(own_opt, tmp_path, monkeypatch):
    opt = cached(own_opt)
    shapes = count_teacher(monkeypatch)
    run(opt, tmp_path / 'whole')
    whole_images, in_training = 6, 3
    assert len([shape for shape in shapes if shape == (1, 3, 24, 24)]) == whole_images
    assert not [shape for shape in shapes if shape[0] == in_training]
    run(opt, tmp_path / 'stopped', TOTAL // 2)
    run(opt, tmp_path / 'stopped', TOTAL, '--auto_resume')
    assert len([shape for shape in shapes if shape == (1, 3, 24, 24)]) == whole_images  # made once
    assert_same(result(tmp_path / 'stopped'), result(tmp_path / 'whole'))
    assert 'What the teacher gives of pictures is read from ' in log_text(tmp_path / 'whole')


def test_without_ground_truth_it_is_in_the_place_of_the_teacher_in_every_step(own_opt, tmp_path, monkeypatch):
    opt = cached(own_opt, {'type': 'L1Loss'})  # which reads no teacher
    opt['train']['ground_truth'] = False
    shapes = count_teacher(monkeypatch)
    run(opt, tmp_path, 2)
    assert [shape for shape in shapes if shape == (1, 3, 24, 24)] and not [shape for shape in shapes if shape[0] == 3]


def test_the_crops_are_those_of_a_run_without(own_opt, tmp_path):
    """What does not read the teacher trains to the same bits."""
    opt = cached(own_opt, {'sr': {'type': 'L1Loss'}, 'none': {**TS, 'loss_weight': 0.0}})
    opt['train']['ema_decay'] = 0.5
    run(opt, tmp_path / 'cached')
    run(without(opt), tmp_path / 'plain')
    found, expected = (
        [line['l_sr'] for line in metric_lines(tmp_path / name) if 'l_sr' in line] for name in ('cached', 'plain')
    )
    assert found == expected and len(found) == TOTAL


def full_disk(self: object, *_: object) -> None:
    raise CacheNotWrittenError('/data: No space left on device, 9.9 GB needed')


def test_where_the_cache_cannot_be_written_a_warning_says_so_and_the_teacher_runs(own_opt, tmp_path, monkeypatch):
    opt = cached(own_opt)
    run(without(opt), tmp_path / 'plain')
    monkeypatch.setattr('facd_basicsr.data.memory_pairs.taught_images', full_disk)
    run(opt, tmp_path / 'full')
    assert_same(result(tmp_path / 'full'), result(tmp_path / 'plain'))
    assert 'teacher.cache: /data: No space left on device, 9.9 GB needed; accepted: that space' in log_text(
        tmp_path / 'full'
    )


def test_check_reads_the_cache_and_training_would_start(own_opt, tmp_path, monkeypatch):
    opt = cached(own_opt)
    train_options(opt, tmp_path)
    shapes = count_teacher(monkeypatch)
    report = '\n'.join(check(str(tmp_path / 'opt.yml'), []))
    assert 'iteration ' in report
    assert not [shape for shape in shapes if shape[0] == 3]


@pytest.mark.parametrize(
    ('location', 'value', 'said'),
    [
        (
            'train.distill_opt',
            {'type': 'DUKDLoss'},
            "reads the teacher's output on its view zoom_in; accepted: false",
        ),
        ('datasets.train.io_backend', {'type': 'lmdb'}, 'accepted with datasets.train: {type: PairedImageDataset, io'),
        ('datasets.train.color', 'y', 'true, but datasets.train has color; accepted: images in RGB'),
        ('teacher.cache', 'yes', "'yes'; accepted: true or false"),
    ],
)
def test_what_a_cache_does_not_hold_is_refused_in_a_line(train_opt, tmp_path, location, value, said):
    with pytest.raises(UserError, match=r'teacher\.cache: ') as refused:
        train_options(changed(cached(train_opt), location, value), tmp_path)
    assert said in str(refused.value) and '\n' not in str(refused.value)


def test_no_cache_is_made_where_no_loss_reads_the_teacher(own_opt, tmp_path, monkeypatch):
    monkeypatch.setattr('facd_basicsr.data.memory_pairs.taught_images', full_disk)
    run(cached(own_opt, {'type': 'L1Loss'}), tmp_path / 'run', 2)
    assert 'teacher.cache: ' not in log_text(tmp_path / 'run')


def test_normalized_images_are_refused(train_opt, tmp_path):
    opt = cached(train_opt)
    opt['datasets']['train'] |= {'mean': [0.5, 0.5, 0.5], 'std': [1, 1, 1]}
    with pytest.raises(UserError, match=r'teacher\.cache: true, but datasets.train has mean; accepted: images in RGB'):
        train_options(opt, tmp_path)


def test_several_teachers_are_refused(train_opt, tmp_path):
    opt = cached(train_opt)
    with pytest.raises(
        UserError, match=r'teacher: several, but one has cache: true; accepted: no cache, or one teacher'
    ):
        train_options(changed(opt, 'teacher', [opt['teacher'], without(opt)['teacher']]), tmp_path)


def test_features_are_refused(train_opt, tmp_path):
    opt = changed(train_opt, 'teacher.cache', True)
    opt['datasets']['train']['io_backend'] = {'type': 'memory'}
    said = r"teacher\.cache: true, but train\.distill_opt\.type: FACDLoss reads the teacher's features; accepted: false"
    with pytest.raises(UserError, match=said):
        train_options(opt, tmp_path)
