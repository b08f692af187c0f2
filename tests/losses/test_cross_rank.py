"""Reading 11 of the design: R ranks of N/R samples have the loss and the gradient of one process with N."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from facd_basicsr.losses import DistillState
from facd_basicsr.losses.cross_rank import all_samples, total
from facd_basicsr.losses.facd_loss import facd_loss

N, RANKS = 6, 2


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ('x', 'teacher', 'gt', 'teacher_feat')
    return {name: torch.rand(N, 3, 4, 4, generator=generator, dtype=torch.float64) for name in names}


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.PReLU(), nn.Conv2d(3, 3, 1)).double()


def loss_of(net: nn.Module, part: dict[str, torch.Tensor], negatives: str) -> dict[str, torch.Tensor]:
    output = net(part['x'])
    state = DistillState(output, part['teacher'], part['gt'], part['x'], (output * 3,), (part['teacher_feat'],))
    logs = facd_loss(state, layer_weights=[1.0], negatives=negatives)
    (logs['l_sr'] + logs['l_facd']).backward()
    return logs


def worker(folder: Path) -> None:
    """One rank's share of the work; torchrun starts it from this file."""
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    share = slice(rank * N // RANKS, (rank + 1) * N // RANKS)
    part = {name: tensor[share] for name, tensor in batch().items()}
    results = {}
    for negatives in ('upper', 'all', 'per_anchor'):
        net = DistributedDataParallel(student())
        logs = loss_of(net, part, negatives)
        results[negatives] = {
            'grad': [p.grad for p in net.parameters()],
            **{name: logs[name].detach() for name in ('l_facd', 'r_1')},
        }
    torch.save(results, folder / f'{rank}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    from conftest import run  # not at the top: torchrun's workers import this file without pytest's path

    folder = tmp_path_factory.mktemp('ranks')
    torchrun = ('-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={RANKS}')
    done = run(*torchrun, __file__, folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize('negatives', ['upper', 'all', 'per_anchor'])
def test_two_ranks_have_the_loss_and_gradient_of_one_process_with_the_whole_batch(ranks, negatives):
    net = student()
    logs = loss_of(net, batch(), negatives)
    for rank in ranks:
        result = rank[negatives]
        torch.testing.assert_close(result['l_facd'], logs['l_facd'].detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(result['r_1'], logs['r_1'], rtol=1e-9, atol=0)
        torch.testing.assert_close(result['grad'], [p.grad for p in net.parameters()], rtol=1e-9, atol=1e-12)


def test_in_one_process_both_are_the_identity():
    x = torch.rand(3, 2, requires_grad=True)
    samples, first = all_samples(x)
    assert torch.equal(samples, x) and not samples.requires_grad and first == 0
    assert total(x) is x


if __name__ == '__main__':
    worker(Path(sys.argv[1]))
