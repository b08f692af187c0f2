import torch
from torch import nn

from facd_basicsr.archs import EDSRStudent
from facd_basicsr.evaluation.complexity import flops, latency_ms, parameters


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


def test_latency_is_positive():
    assert latency_ms(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 8, 8), repeats=2) > 0
