from pathlib import Path

import pytest
import torch
from states import random_state, with_views
from torch.nn import functional as F  # noqa: N812

from facd_basicsr.errors import UserError
from facd_basicsr.losses.dckd_loss import DCKDLoss
from facd_basicsr.losses.vqgan import VQGANEncoder, load_vqgan

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope='module')
def weights() -> Weights:
    """The part of a random VQGAN's state dict that three features need, and a key of its decoder."""
    torch.manual_seed(0)
    encoder = VQGANEncoder(3)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    own = {f'encoder.{key}': value for key, value in encoder.state_dict().items()}
    return {**own, 'decoder.conv_in.weight': torch.zeros(1)}


@pytest.fixture(scope='module')
def last_ckpt(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the layout of taming-transformers' ``last.ckpt``."""
    path = tmp_path_factory.mktemp('vqgan') / 'last.ckpt'
    torch.save({'epoch': 12, 'state_dict': weights}, path)
    return path


def block(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """taming-transformers' ResnetBlock, by the names of its checkpoint."""

    def own(key: str) -> tuple[torch.Tensor, torch.Tensor]:
        return weights[f'encoder.{name}.{key}.weight'], weights[f'encoder.{name}.{key}.bias']

    h = F.group_norm(x, 32, *own('norm1'), eps=1e-6)
    h = F.conv2d(h * torch.sigmoid(h), *own('conv1'), padding=1)
    h = F.group_norm(h, 32, *own('norm2'), eps=1e-6)
    h = F.conv2d(h * torch.sigmoid(h), *own('conv2'), padding=1)
    return (F.conv2d(x, *own('nin_shortcut')) if x.shape[1] != h.shape[1] else x) + h


def halved(weights: Weights, level: int, x: torch.Tensor) -> torch.Tensor:
    name = f'encoder.down.{level}.downsample.conv'
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weights[f'{name}.weight'], weights[f'{name}.bias'], stride=2)


def test_features_are_those_after_the_first_block_of_each_level(weights, last_ckpt):
    images = torch.rand(2, 3, 8, 8)
    x = F.conv2d(images, weights['encoder.conv_in.weight'], weights['encoder.conv_in.bias'], padding=1)
    expected = [block(weights, 'down.0.block.0', x)]
    for level in (1, 2):
        x = halved(weights, level - 1, block(weights, f'down.{level - 1}.block.1', expected[-1]))
        expected.append(block(weights, f'down.{level}.block.0', x))
    found = load_vqgan(str(last_ckpt), 3)(images)
    assert [feat.shape[1:] for feat in found] == [(128, 8, 8), (128, 4, 4), (256, 2, 2)]
    torch.testing.assert_close(found, tuple(expected))


def test_the_keys_are_those_of_the_released_checkpoint():
    keys = VQGANEncoder(5).state_dict()
    assert keys['down.4.block.0.nin_shortcut.weight'].shape == (512, 256, 1, 1)
    assert keys['down.3.downsample.conv.weight'].shape == (256, 256, 3, 3)
    assert [key for key in keys if key.startswith('down.4.block.1') or 'attn' in key] == []


def test_dckd_contrasts_in_its_frozen_features(last_ckpt):
    loss = DCKDLoss(layer_weights=[1, 1], vqgan_weights=str(last_ckpt)).prepare().train()
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    state = with_views(loss, random_state(n=2, dtype=torch.float32))
    logs = loss(state)
    assert torch.autograd.grad(logs['l_contrast'], state.student)[0].abs().sum() > 0
    features = loss.features
    pos, neg = 0.0, 0.0
    for i in range(2):
        anchor, positive = features(state.student[i : i + 1])[0], features(state.teacher[i : i + 1])[0]
        pos += (anchor - positive).abs().mean() / 2
        for k in range(5):
            own = features(state.views['noised']['average'][5 * i + k][None])[0]
            neg += (anchor - own).abs().mean() / (2 * 5)
    torch.testing.assert_close(logs['r_1'], (pos / (neg + 1e-7)).detach())


def test_another_file_is_refused_in_one_line(tmp_path):
    torch.save({'conv.weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(UserError) as caught:
        DCKDLoss(layer_weights=[1], vqgan_weights=str(tmp_path / 'other.pth')).prepare()
    message = str(caught.value)
    assert message.startswith(f'train.distill_opt.vqgan_weights: {tmp_path / "other.pth"} does not fit')
    assert message.endswith('; accepted: vqgan_imagenet_f16_1024 or vqgan_imagenet_f16_16384 of taming-transformers')


def test_a_vgg_beside_it_is_refused():
    with pytest.raises(UserError, match=r'train\.distill_opt\.vgg_weights: own\.pth; accepted: nothing beside'):
        DCKDLoss(vgg_weights='own.pth', vqgan_weights='last.ckpt')
