"""A student of spandrel's, from its option file to a file that spandrel opens."""

import random
import re
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from click.testing import CliRunner
from conftest import changed, tiny_test_opt, train_options, write_yml
from processes import run_ranks
from runs import assert_same, result, run
from test_killed import killed_and_resumed, with_frequent_checkpoints

from facd_basicsr.archs import unused_in_training
from facd_basicsr.deploy.student import METADATA, describe_network, read_student
from facd_basicsr.files.state_dicts import load_state_dict
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options import load_yaml, parser
from facd_basicsr.test import test as evaluate
from facd_basicsr.tools.export import command

spandrel = pytest.importorskip('spandrel')

SPAN = {'type': 'SPAN', 'num_in_ch': 3, 'num_out_ch': 3, 'feature_channels': 4, 'upscale': 2}
# Of which spandrel supposes 32 channels of growth
RRDBNET = {
    'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4, 'scale': 4,
}  # fmt: skip
TAPS = [
    {'student': 'block_2.c3_r', 'teacher': 'body.1'},  # a block gives a tuple
    {'student': 'upsampler:input', 'teacher': 'upsample:input'},
]


@pytest.fixture
def span_opt(train_opt: dict) -> dict:
    """SPAN learns from the tiny EDSR, at the input of the upsampler and before."""
    train_opt |= {'network_g': SPAN, 'taps': TAPS}
    train_opt['train']['distill_opt']['layer_weights'] = [0.5, 0.5]
    return train_opt


def test_span_is_trained_tested_exported_and_opened_by_spandrel(span_opt, data, tmp_path):
    run(span_opt, tmp_path, 4)
    home = tmp_path / 'experiments/tiny'
    checkpoint = home / 'models/net_g_4.pth'
    network_opt = load_yaml((home / 'options.yml').read_text(), 'options.yml')['network_g']
    assert network_opt == {**SPAN, 'bias': True, 'norm': True, 'img_range': 255.0, 'rgb_mean': [0.4488, 0.4371, 0.404]}

    opt = changed(tiny_test_opt(data), 'network_g', {'type': 'SPAN'})  # the checkpoint tells the rest
    opt['path'] = {'pretrain_network_g': str(checkpoint)}
    path = str(write_yml(opt, tmp_path / 'test.yml'))
    metrics = evaluate(parser(is_train=False).parse_args(['-opt', path]), tmp_path, console=False)
    assert metrics['pictures']['psnr_y'] > 0

    done = CliRunner().invoke(command, [str(checkpoint), '-o', str(tmp_path / 'span'), '--no-onnx'])
    assert done.exit_code == 0, done.output
    assert done.output.count('opens in spandrel as SPAN, largest difference: ') == 2
    assert 'warning' not in done.output
    student = read_student(tmp_path / 'span.safetensors')
    assert student.description.architecture == 'SPAN'
    lq = torch.rand(1, 3, 9, 12)
    for name in ('span.pth', 'span.safetensors'):
        found = spandrel.ModelLoader('cpu').load_from_file(tmp_path / name)
        assert (found.architecture.id, found.scale) == ('SPAN', 2)
        with torch.no_grad():
            torch.testing.assert_close(found.model(lq), student.net(lq))


@pytest.mark.slow
def test_a_resumed_run_of_span_has_the_same_weights(span_opt, tmp_path):
    span_opt['train']['ema_decay'] = 0.9
    run(span_opt, tmp_path / 'whole', 6)
    run(span_opt, tmp_path / 'parts', 2)
    run(span_opt, tmp_path / 'parts', 6, '--auto_resume')
    assert_same(result(tmp_path / 'parts', 6), result(tmp_path / 'whole', 6))


@pytest.mark.slow
def test_a_killed_run_of_span_resumes_to_the_same_weights(span_opt, tmp_path):
    killed_and_resumed(with_frequent_checkpoints(span_opt), tmp_path, 1, random.Random(1))


def test_a_checkpoint_has_spans_convolution_for_inference_of_its_own_weights(span_opt, tmp_path):
    span_opt['train']['ema_decay'] = 0.9
    span_opt['val'] = None
    run(span_opt, tmp_path, 4)
    for content in torch.load(tmp_path / 'experiments/tiny/models/net_g_4.pth', weights_only=True).values():
        net = build_network(SPAN)
        net.load_state_dict(content)
        net.eval()(torch.rand(1, 3, 8, 8))  # by which SPAN computes it
        assert all(torch.equal(value, content[key]) for key, value in net.state_dict().items())


def test_two_processes_train_a_network_with_parameters_that_training_does_not_use(span_opt, checkout):
    assert len(unused_in_training(build_network(SPAN), torch.rand(2, 3, 8, 8))) == 2 * 20
    span_opt['datasets']['train']['batch_size_per_gpu'] = 2
    path = write_yml({**span_opt, 'name': 'span_two'}, checkout / 'span.yml')
    done = run_ranks('facd_basicsr/train.py', '-opt', path, '--launcher', 'pytorch', cwd=checkout)
    assert done.returncode == 0, done.stderr
    line = (
        'SPAN has 40 parameters that a step of training does not use (conv_1.eval_conv.weight): find_unused_parameters'
    )
    assert done.stderr.count(line) == 1
    assert (checkout / 'experiments/span_two/models/net_g_4.pth').is_file()


def test_an_average_has_the_students_batch_normalization(train_opt, tmp_path):
    train_opt['network_g'] = {'type': 'Generator', 'num_channels': 8, 'num_blocks': 2, 'upscale_factor': 2}
    train_opt['taps'] = [{'student': 'upsampler:input', 'teacher': 'upsample:input'}]
    train_opt['train']['distill_opt']['layer_weights'] = [1.0]
    train_opt['train']['ema_decay'] = 0.9
    opt = train_options(train_opt, tmp_path)
    for key in ('models', 'training_states'):
        Path(opt['path'][key]).mkdir(parents=True, exist_ok=True)
    model = build_model(opt)
    generator = torch.Generator().manual_seed(0)
    for iteration in range(2):
        images = (torch.rand(3, 3, size, size, generator=generator) for size in (8, 16))
        model.feed_data(dict(zip(('lq', 'gt'), images)))
        model.optimize_parameters(iteration + 1)
    own, average = (dict(net.named_buffers()) for net in (model.net_g, model.net_g_ema))
    assert any(key.endswith('running_mean') and value.abs().sum() > 0 for key, value in own.items())
    assert all(torch.equal(value, average[key]) for key, value in own.items())


@pytest.mark.parametrize(
    ('network_opt', 'expected'),
    [
        ({**SPAN, 'img_range': 1.0}, r'takes img_range: 255\.0 for 1\.0: its images differ by [\d.e+]+ of an 8-bit'),
        ({'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 1, 'upscale': 2}, None),
        (RRDBNET, 'spandrel cannot build it'),
    ],
)
def test_export_says_how_spandrel_opens_a_file(network_opt, expected, tmp_path):
    torch.manual_seed(0)
    scale = network_opt.get('upscale') or network_opt['scale']
    metadata = describe_network(network_opt, scale).as_metadata()
    torch.save({'params': build_network(network_opt).state_dict(), METADATA: metadata}, tmp_path / 'net.pth')
    done = CliRunner().invoke(command, [str(tmp_path / 'net.pth'), '-o', str(tmp_path / 'out'), '--no-onnx'])
    assert done.exit_code == 0, done.output
    assert load_state_dict(tmp_path / 'out.pth', '')
    warnings = [line for line in done.output.splitlines() if line.startswith('warning: ')]
    if expected is None:
        assert not warnings and done.output.count('opens in spandrel as RealESRGAN Compact, largest diff') == 2
    else:
        assert len(warnings) == 2 and all(re.search(expected, line) for line in warnings)
