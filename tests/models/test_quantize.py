"""Quantization-aware training: steps, batches in parts, resume, validation, tests, and what is refused."""

import copy
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from conftest import STUDENT, changed, train_options, write_yml
from runs import assert_resumes, assert_same, metric_lines, result, run
from states import method_opt
from steps import N, alone, step

from facd_basicsr.errors import UserError
from facd_basicsr.models.safe_model import SafeSRModel, build_model
from facd_basicsr.options import parse_options, parser
from facd_basicsr.test import test as evaluate


def gradients(model: SafeSRModel) -> list[torch.Tensor]:
    return [p.grad for p in model.net_g.parameters()]


@pytest.fixture
def build(tmp_path: Path):
    """Builds the model of an option dict with a batch of N as train.py does."""

    def _build(opt: dict, **train: object) -> SafeSRModel:
        opt = copy.deepcopy(opt)
        opt['datasets']['train']['batch_size_per_gpu'] = N
        opt['train'] |= {'quantize': {}, **train}
        complete = train_options(opt, tmp_path)
        Path(complete['path']['models']).mkdir(parents=True, exist_ok=True)
        return build_model(complete)

    yield _build
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=['FACDModel', 'SRModel'])
def opt(request: pytest.FixtureRequest, train_opt: dict) -> dict:
    return train_opt if request.param == 'FACDModel' else alone(train_opt)


def saved(model: SafeSRModel, iteration: int = 1) -> dict:
    model.save(0, iteration)
    return torch.load(Path(model.opt['path']['models'], f'net_g_{iteration}.pth'), weights_only=True)


def test_the_first_step_is_that_of_float_and_observes_and_the_second_is_quantized(build, opt):
    plain, model = build(opt, quantize=None), build(opt)
    assert plain.quantization is None and 'quantization' not in saved(plain)
    for one in (plain, model):
        step(one)
    assert_same(gradients(model), gradients(plain))
    for one in (plain, model):
        step(one, 2, 2)
    for ours, theirs in zip(gradients(model), gradients(plain)):
        assert not torch.equal(ours, theirs) and (ours - theirs).norm() < 0.3 * theirs.norm()


def test_a_batch_in_parts_has_gradients_and_ranges_of_the_whole(build, opt):
    torch.set_default_dtype(torch.float64)  # in which rounding takes no value to another step
    whole, parts = build(opt), build(opt, accum_iter=2)
    for model in (whole, parts):
        step(model, 1, 3)
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(parts.quantization.bounds, whole.quantization.bounds, rtol=1e-6, atol=1e-9)


def test_a_checkpoint_has_the_weights_of_basicsr_and_the_ranges_and_goes_on_from_both(build, opt, tmp_path):
    model = build(opt, ema_decay=0.9)
    step(model, 1, 3)
    found = saved(model, 3)
    assert [*found] == ['params', 'params_ema', 'quantization']
    build_network(STUDENT).load_state_dict(found['params'], strict=True)
    ranges = found['quantization']['ranges']
    assert [*ranges][:2] == ['conv2d conv_first', 'conv2d body.0.conv1']
    assert ranges['conv2d body.0.conv2'][0] == 0  # after a ReLU
    opt['path']['pretrain_network_g'] = str(Path(model.opt['path']['models'], 'net_g_3.pth'))
    assert_same(saved(build(opt, ema_decay=0.9), 4), found)
    other = build(opt, quantize={'keep': ['conv_first']})  # of other features: observed anew
    assert other.quantization.bounds is None


def test_the_average_is_quantized_by_the_same_ranges_and_is_what_is_validated(build, opt):
    model = build(opt, ema_decay=0.5)
    step(model, 1, 2)
    lq = torch.rand(1, 3, 8, 8)
    plain = build_network(STUDENT)
    plain.load_state_dict(model.net_g_ema.state_dict())
    with torch.no_grad():
        assert not torch.equal(model.net_g_ema(lq), plain(lq))
        model.quantization.attach(plain.eval())
        assert torch.equal(model.net_g_ema(lq), plain(lq))


@pytest.mark.parametrize('changes', [{'precision': 'bf16'}, {'log_gradient_share': 1}, {'clip_grad_norm': 1.0}])
def test_it_trains_with_other_options(build, train_opt, changes):
    model = build(train_opt, **changes)
    before = copy.deepcopy(model.net_g.state_dict())
    step(model, 1, 3)
    assert not torch.equal(model.net_g.state_dict()['conv_first.weight'], before['conv_first.weight'])
    assert all(gradient.isfinite().all() for gradient in gradients(model))


def test_the_average_that_a_loss_reads_is_quantized_too(build, train_opt, tmp_path):
    model = build(method_opt(train_opt, 'DCKDLoss', tmp_path))
    step(model, 1, 2)
    lq, plain = torch.rand(1, 3, 8, 8), build_network(STUDENT)
    plain.load_state_dict(model.net_average.state_dict())
    with torch.no_grad():
        assert not torch.equal(model.net_average(lq), plain(lq))
    assert not model.net_average.training


@pytest.mark.parametrize('opt', ['SRModel', pytest.param('FACDModel', marks=pytest.mark.slow)], indirect=True)
def test_a_stopped_and_resumed_run_equals_one_that_never_was(opt, tmp_path):
    opt['train'] |= {'quantize': {}, 'ema_decay': 0.9}
    assert_resumes(opt, tmp_path, stops=(3, 5))
    files = [tmp_path / name / 'experiments/tiny/models/net_g_latest.pth' for name in ('whole', 'stopped')]
    found, expected = (torch.load(file, weights_only=True) for file in files)
    assert_same(found, expected)
    assert expected['quantization']['ranges']


def test_a_stage_may_be_float_and_the_next_quantized(train_opt, tmp_path):
    train_opt['train'] |= {'total_iter': 8, 'stages': [{'iterations': 4}, {'iterations': 4, 'quantize': {}}]}
    run(train_opt, tmp_path)
    folder = tmp_path / 'experiments/tiny/models'
    found = [torch.load(folder / f'net_g_{iteration}.pth', weights_only=True) for iteration in (4, 6)]
    assert ['quantization' in own for own in found] == [False, True]
    assert result(tmp_path)


def test_a_test_measures_what_validation_did_and_tiles_are_of_the_quantized_student(opt, test_opt, tmp_path):
    opt['train']['quantize'] = {'keep': ['conv_last']}
    opt['val']['tile'] = 16
    run(opt, tmp_path)
    validated = {line['metric']: line['value'] for line in metric_lines(tmp_path) if 'metric' in line}  # the last
    checkpoint, plain = tmp_path / 'experiments/tiny/models/net_g_latest.pth', tmp_path / 'plain.pth'
    torch.save({'params': torch.load(checkpoint, weights_only=True)['params']}, plain)
    found = []
    for path in (checkpoint, plain):
        test_opt['path']['pretrain_network_g'] = str(path)
        args = parser(is_train=False).parse_args(['-opt', str(write_yml(test_opt, tmp_path / 'test.yml'))])
        found.append(evaluate(args, root=tmp_path, console=False)['pictures']['psnr_y'])
    assert found[0] == pytest.approx(validated['psnr_y'], abs=1e-3)
    assert abs(found[1] - found[0]) > 1e-3


def test_ecbsr_is_refused_since_it_is_re_parameterized(build, train_opt):
    opt = alone(train_opt)
    opt['network_g'] = {'type': 'ECBSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1, 'num_channel': 4}
    opt['network_g'] |= {'with_idt': False, 'act_type': 'prelu', 'scale': 2}
    with pytest.raises(UserError, match=r'train.quantize: ECBSR has blocks .* \(ECB\); accepted: '):
        build(opt)


@pytest.mark.parametrize(
    'where, value, line',
    [
        ('train.quantize', {'keep': 'conv_first'}, "train.quantize.keep: 'conv_first'; accepted: a list"),
        ('train.quantize', {'decay': 1}, 'train.quantize.decay: 1; accepted: 0 or more, less than 1'),
        ('train.quantize', {'bits': 8}, 'train.quantize.bits: unknown key'),
        ('train.quantize', True, 'train.quantize: True; accepted: a block of keys'),
        ('train.compile', {}, 'train.compile: accepted without train.quantize'),
    ],
)
def test_what_is_not_accepted_is_refused_in_one_line(train_opt, tmp_path, where, value, line):
    train_opt['train']['quantize'] = {}
    path = str(write_yml(changed(train_opt, where, value), tmp_path / 'opt.yml'))
    with pytest.raises(UserError, match=line):
        parse_options(parser().parse_args(['-opt', path]), is_train=True, root=tmp_path)
