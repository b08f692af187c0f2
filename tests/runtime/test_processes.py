"""Reading 11 of the design: R ranks of N/R samples have the loss and the gradient of one process with N."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import facd_basicsr  # noqa: F401  must come before basicsr, in torchrun's workers too

# isort: split
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from facd_basicsr.engine.launch import exit_now
from facd_basicsr.losses import DistillLoss, DistillState, build_loss
from facd_basicsr.losses.contrastive import NEGATIVES
from facd_basicsr.losses.vgg import VGGContrastLoss
from facd_basicsr.runtime.processes import Ranks, all_gather_samples, total

N, RANKS = 6, 2


def features(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In the place of a VGG."""
    return x.tanh(), torch.nn.functional.avg_pool2d(x, 2)


# by the name of the loss and what is varied: its options
LOSSES = {
    **{f'FACDLoss {kind}': {'layer_weights': [1.0], 'negatives': kind} for kind in NEGATIVES},
    **{f'IACDLoss {kind}': {'negatives': kind} for kind in NEGATIVES},
    **{
        f'FACDLoss {kind} between students': {'layer_weights': [1.0], 'negatives': kind, 'negatives_from': 'student'}
        for kind in NEGATIVES
    },
    'InfoNCELoss': {'layer_weights': [1.0], 'adaptive': True},
    # as many negatives as one rank has samples, more, and more than there are
    **{f'CSDLoss {k}': {'layer_weights': [0.3, 0.7], 'num_negatives': k} for k in (3, 4, 10)},
    'FAKDLoss': {'layer_weights': [1.0]},
    'FitNetLoss': {'layer_weights': [1.0]},
    'LFDLoss': {'layer_weights': [1.0]},
    'LSFDLoss': {'layer_weights': [1.0]},
    'TeacherSupervisionLoss': {},
    # each sample draws for itself, wherever it is
    'DUKDLoss crops': {'crops': 2, 'probability': 0.5},
    'DUKDLoss zoom_out': {'zoom_out': True, 'probability': 0.5},
    'DUKDLoss gt': {'targets': 'gt', 'probability': 0.5},
    'ECOLoss mixed': {'alpha': 0.4},
    'ECOLoss lq': {'alpha': 0.4, 'keep_lq': True},
    'DCKDLoss': {'layer_weights': [0.3, 0.7]},
}


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {'x': 4, 'teacher': 4, 'gt': 4, 'teacher_feat': 4, 'lq': 2}
    images = {name: torch.rand(N, 3, s, s, generator=generator, dtype=torch.float64) for name, s in sizes.items()}
    return {**images, 'seed': torch.arange(N)}


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.PReLU(), nn.Conv2d(3, 3, 1)).double()


def with_views(loss: DistillLoss, state: DistillState, net: nn.Module) -> DistillState:
    """The state with the student on the inputs of its views, and for teacher and average a curve."""
    views = {}
    for name, view in loss.views.items():
        lq = view.derive(state)
        large = lq.repeat_interleave(2, 2).repeat_interleave(2, 3)
        views[name] = {'input': lq, **{own: net(large) if own == 'student' else large**2 for own in view.networks}}
    return replace(state, views=views)


def loss_of(net: nn.Module, part: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    output = net(part['x'])
    state = DistillState(output, part['teacher'], part['gt'], part['lq'], (output * 3,), (part['teacher_feat'],))
    state = replace(state, seeds=tuple(part['seed'].tolist()))
    loss = build_loss({'type': name.split()[0], **LOSSES[name]})
    if isinstance(loss, VGGContrastLoss):
        loss.features = features
    logs = loss(with_views(loss, state, net))
    sum(value for key, value in logs.items() if key.startswith('l_')).backward()
    return {key: value.detach() for key, value in logs.items()}


def worker(folder: Path) -> None:
    """One rank's share of the work; it is started from this file."""
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    share = slice(rank * N // RANKS, (rank + 1) * N // RANKS)
    part = {name: tensor[share] for name, tensor in batch().items()}
    results = {}
    for name in LOSSES:
        net = DistributedDataParallel(student())
        logs = loss_of(net, part, name)
        results[name] = {'grad': [p.grad for p in net.parameters()], 'logs': logs}
    torch.save(results, folder / f'{rank}.pth')
    exit_now(0)


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    from processes import run_ranks  # not at the top: the workers import this file without pytest's path

    folder = tmp_path_factory.mktemp('ranks')
    done = run_ranks(__file__, folder, cwd=folder, size=RANKS)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize('name', LOSSES)
def test_two_ranks_have_the_loss_and_gradient_of_one_process_with_the_whole_batch(ranks, name):
    net = student()
    logs = loss_of(net, batch(), name)
    for key, value in logs.items():
        found = [rank[name]['logs'][key] for rank in ranks]
        # means over a rank's own samples are the ranks' to average, as DDP does with gradients and BasicSR with logs
        torch.testing.assert_close(sum(found) / RANKS, value, rtol=1e-9, atol=0)
        if key in ('l_facd', 'l_iacd', 'l_csd', 'l_contrast', 'r', 'r_1', 'r_2'):
            torch.testing.assert_close(found, [value] * RANKS, rtol=1e-9, atol=0)
    for rank in ranks:
        torch.testing.assert_close(rank[name]['grad'], [p.grad for p in net.parameters()], rtol=1e-9, atol=1e-12)


def test_every_registered_loss_is_among_them():
    registered = {
        name
        for name, loss in LOSS_REGISTRY
        if issubclass(loss, DistillLoss) and loss.__module__.startswith('facd_basicsr.losses.')
    }
    assert registered == {name.split()[0] for name in LOSSES}


def test_in_one_process_both_are_the_identity():
    x = torch.rand(3, 2, requires_grad=True)
    samples, first = all_gather_samples(x)
    assert torch.equal(samples, x) and not samples.requires_grad and first == 0
    assert total(x) is x


if __name__ == '__main__':
    worker(Path(sys.argv[1]))


def test_alone_ranks_ask_nobody():
    ranks = Ranks()
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.gather('x') == ['x'] and ranks.from_first('x') == 'x'
    flags = iter([True])
    assert ranks.begin_any(lambda: next(flags))() is True
