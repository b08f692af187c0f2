import pytest
import torch
from basicsr.archs.ecbsr_arch import ECBSR
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.srresnet_arch import MSRResNet
from torch import Tensor, nn

from facd_basicsr.archs.student_arch import EDSRStudent
from facd_basicsr.evaluation.complexity import (
    architecture,
    as_trained_and_fused,
    flops,
    footprint,
    latencies_ms,
    parameters,
    peak_gpu_memory,
)


def test_parameters_and_flops_of_a_convolution_equal_values_worked_by_hand():
    net = nn.Conv2d(3, 5, 3, padding=1)
    assert parameters(net) == 3 * 5 * 9 + 5
    assert flops(net, scale=1, output_size=(4, 6)) == 2 * 3 * 5 * 9 * 4 * 6


def test_flops_are_of_one_720p_output_and_leave_the_network_where_it_is():
    net = EDSRStudent(num_feat=4, num_block=1, upscale=2)
    # body on 360x640: conv_first 3->4, block 2 * 4->4, conv_after_body 4->4, upsample 4->16; conv_last 4->3 on 720x1280
    lr, hr = 360 * 640, 720 * 1280
    assert flops(net, scale=2) == 2 * 9 * (lr * (3 * 4 + 3 * 4 * 4 + 4 * 16) + hr * 4 * 3)
    assert net.conv_first.weight.device.type == 'cpu'


def test_kernels_that_a_network_fuses_in_its_forward_count_and_are_on_the_meta_device_too():
    net = ECBSR(3, 3, num_block=1, num_channel=4, with_idt=True, act_type='prelu', scale=2).eval()
    small, large = (flops(net, scale=2, output_size=(2 * side, 2 * side)) for side in (10, 20))
    # on each pixel of LQ three fused kernels of 3x3, 3->4, 4->4 and 4->12; the fusion costs the same for any size
    assert large - small == 2 * 9 * (3 * 4 + 4 * 4 + 4 * 12) * (20 * 20 - 10 * 10)


class Choosing(nn.Conv2d):
    """Decides by the values of its input, as SeemoRe by those of its features."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean().item() < 1 else -x)


def test_a_network_that_decides_by_values_is_counted_where_it_is():
    net = Choosing(3, 5, 3, padding=1)
    assert flops(net, scale=1, output_size=(4, 6)) == 2 * 3 * 5 * 9 * 4 * 6
    activations, memory = footprint(net, (4, 6))
    assert activations == 5 * 4 * 6 and 0 <= memory - 4 * (3 * 5 * 9 + 5 + (3 + 5) * 4 * 6) <= 64  # the mean
    assert net.weight.grad is None and net.weight.device.type == 'cpu'


def test_latency_is_positive():
    assert min(latencies_ms({'': (nn.Conv2d(3, 3, 1), torch.rand(1, 3, 8, 8))}, repeats=2)['']) > 0


def test_ntire_s_baseline_costs_what_is_published_and_what_is_worked_by_hand():
    """MSRResNet in NTIRE 2020's table: 1.517 M parameters, 166.36 G FLOPs, 292.55 M activations, 610 MB."""
    net = MSRResNet(3, 3, num_feat=64, num_block=16, upscale=4)
    lr, mid, hr = 256**2, 512**2, 1024**2
    assert parameters(net) == 1_517_571
    multiply_adds = 9 * (lr * (3 * 64 + 32 * 64 * 64 + 64 * 256) + mid * 64 * 256 + hr * (64 * 64 + 64 * 3))
    assert flops(net, 4, (1024, 1024)) == 2 * multiply_adds == 2 * 166_207_684_608
    # The published number has one for each element that a LeakyReLU module gives as well.
    assert (multiply_adds + 64 * (lr + mid + 2 * hr)) / 1e9 == pytest.approx(166.36, abs=0.005)

    activations, memory = footprint(net, (256, 256))
    assert activations == lr * (33 * 64 + 256) + mid * 256 + hr * (64 + 3) == 292_552_704
    # The peak is at the second pixel shuffle: its input and output, what the first gave, conv_first's output.
    features = hr * 64 + hr * 64 + mid * 64 + lr * 64
    assert memory == 4 * (parameters(net) + 3 * lr + features)


def test_span_costs_fused_what_ntire_published():
    """SPAN of 28 features in NTIRE 2024's table of efficient super-resolution, x4: 0.151 M parameters, 9.83 G FLOPs."""
    pytest.importorskip('spandrel')
    from spandrel.architectures.SPAN import SPAN

    net = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=28, upscale=4).eval()
    forms = as_trained_and_fused('span', net)
    f, lr = 28, 256**2
    weights = 9 * (3 * f + 19 * f * f + f * 48) + 4 * f * f  # conv_1, blocks and conv_2, upsampler; conv_cat
    assert parameters(forms['span, fused']) == weights + 21 * f + 48 == 150_688
    assert flops(forms['span, fused'], 4, (1024, 1024)) == 2 * lr * weights
    assert lr * weights / 1e9 == pytest.approx(9.83, abs=0.005)
    # the branches: sk, and 1x1, 3x3 and 1x1 of twice the width, of which the first runs on a border of 1 as well
    branches = sum(
        lr * (i * o + 9 * 2 * i * 2 * o + 2 * o * o) + (256 + 2) ** 2 * i * 2 * i for i, o in [(3, f), *[(f, f)] * 19]
    )
    assert flops(forms['span'], 4, (1024, 1024)) == 2 * (branches + lr * (4 * f * f + 9 * f * 48))
    assert parameters(forms['span']) == parameters(net)
    assert as_trained_and_fused('net', nn.Conv2d(3, 3, 1)).keys() == {'net'}


class Steps(nn.Module):
    """On (1, 3, 4, 6): five features beside the input, then three, then four."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        self.register_buffer('mean', torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.relu_()  # in place: nothing new
        y = y[:, :3].view(1, 3, 24)  # a view keeps all five
        y = y + 1
        return torch.cat([y, y[:, :1]], 1)


def test_memory_is_that_of_live_tensors_worked_by_hand():
    # 20 parameters, 10 of a buffer, 72 of the input; then 120 + 72 before the conv's output goes, 72 + 96 after
    assert footprint(Steps(), (4, 6)) == (5 * 24, 4 * (20 + 10 + 72 + 120 + 72))


def test_a_network_that_is_counted_keeps_its_weights():
    net = EDSRStudent(num_feat=4, num_block=1, upscale=2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    flops(net, 2), footprint(net, (8, 8))
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


class Counting(nn.Module):
    def __init__(self, runs: list[str], name: str) -> None:
        super().__init__()
        self.runs, self.name = runs, name

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(self.name)
        return x.add_(1)

    def extra_repr(self) -> str:
        return self.name


def test_networks_of_one_architecture_are_measured_once_and_share_the_result():
    runs, lq = [], torch.zeros(1)
    nets = {
        name: (Counting(runs, kind), lq) for name, kind in (('FACD', 'small'), ('teacher', 'large'), ('CSD', 'small'))
    }
    times = latencies_ms(nets, repeats=1)
    assert runs == ['small', 'large'] * 2
    assert list(times) == ['FACD', 'teacher', 'CSD'] and times['FACD'] == times['CSD'] != times['teacher']


def test_an_architecture_is_known_by_its_modules_and_not_by_its_weights():
    small = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 2, 'upscale': 2}
    first, same, student = EDSR(**small), EDSR(**small), EDSRStudent(**small)
    assert architecture(first) == architecture(same) == architecture(student)  # defaults are all that differs
    for other in (EDSR(**{**small, 'num_block': 3}), EDSR(**{**small, 'num_feat': 8}), nn.Identity()):
        assert architecture(first) != architecture(other)


def test_networks_run_in_turn_and_their_first_run_does_not_count():
    runs, turns, lq = [], [], torch.zeros(1)
    nets = {name: (Counting(runs, name), lq) for name in ('teacher', 'student')}
    times = latencies_ms(nets, repeats=2, on_turn=turns.append)
    assert runs == turns == ['teacher', 'student'] * 3
    assert [len(found) for found in times.values()] == [2, 2]
    assert lq.item() == 0  # a network that works in place does not see what it left


def test_a_network_that_has_used_up_its_time_is_not_run_again():
    runs = []
    times = latencies_ms({'slow': (Counting(runs, 'slow'), torch.zeros(1))}, repeats=9, limit=1e-9)
    assert len(runs) == len(times['slow']) == 1  # its first run counts, for there is no other


@pytest.mark.gpu
def test_a_gpu_holds_at_least_what_is_counted():
    net, other = MSRResNet(num_block=1).cuda(), MSRResNet().cuda()
    found = peak_gpu_memory(net, torch.rand(1, 3, 64, 64, device='cuda'))
    _, counted = footprint(net, (64, 64))
    assert counted <= found < counted + 2**30  # workspaces
    assert parameters(other) > 0  # was there, and did not count
