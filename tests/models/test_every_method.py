"""Every loss in the model that trains with it: one step, as train.py takes it."""

from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import train_options
from states import LOSSES, method_opt
from torch.utils._python_dispatch import TorchDispatchMode

from facd_basicsr.errors import UserError
from facd_basicsr.models.micro_batches import Batch
from facd_basicsr.models.nonfinite import NonFiniteGuard
from facd_basicsr.models.safe_model import build_model


def build(opt: dict, tmp_path: Path) -> torch.nn.Module:
    return build_model(train_options(opt, tmp_path))


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_one_step_of_every_method_moves_the_student_by_its_own_term_and_leaves_the_teacher(name, train_opt, tmp_path):
    model = build(method_opt(train_opt, name, tmp_path), tmp_path)
    teacher = [parameter.clone() for parameter in model.teachers[0].parameters()]
    generator = torch.Generator().manual_seed(0)
    lq, gt = torch.rand(3, 3, 12, 12, generator=generator), torch.rand(3, 3, 24, 24, generator=generator)
    terms = model.criterion(model.distill_state(Batch(lq, gt)))
    own = [value for key, value in terms.items() if key.startswith('l_') and key != 'l_sr']
    if own:  # all but teacher supervision, which is an image loss and nothing else
        gradients = torch.autograd.grad(sum(own), list(model.net_g.parameters()), allow_unused=True)
        assert gradients[0] is not None and gradients[0].abs().sum() > 0  # conv_first, the farthest from the loss

    before = [parameter.clone() for parameter in model.net_g.parameters()]
    model.feed_data({'lq': lq, 'gt': gt})
    model.optimize_parameters(1)
    assert all(not torch.equal(now, then) for now, then in zip(model.net_g.parameters(), before))
    assert all(torch.equal(now, then) for now, then in zip(model.teachers[0].parameters(), teacher))
    assert all(torch.isfinite(torch.tensor(value)) for value in model.get_current_log().values())


class Reads(TorchDispatchMode):
    """Operators that on a GPU wait for the device: a value is read back, or a shape depends on values."""

    WAITING = ('_local_scalar_dense', 'is_nonzero', 'nonzero', 'masked_select', 'equal', 'item')

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith('index') and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool
            for argument in args
            if isinstance(argument, (list, tuple))
            for x in argument
        )
        if name in self.WAITING or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_what_waits_for_the_device_is_noticed():
    with Reads() as reads:
        x = torch.rand(3)
        x.sum().item(), bool(x[0] > 2), x[x > 2], x.nonzero(), x.isfinite().all().item()
    assert len(reads.found) == 5


@pytest.mark.parametrize(
    ('name', 'precision'), [*((name, 'fp32') for name in sorted(LOSSES)), ('FACDLoss', 'fp16'), ('FACDLoss', 'bf16')]
)
def test_no_step_of_any_method_reads_a_value_back_until_a_line_is_printed(
    name, precision, train_opt, tmp_path, monkeypatch
):
    opt = method_opt(train_opt, name, tmp_path)
    opt['train'] |= {'ema_decay': 0.9, 'precision': precision, 'optim_g': {'type': 'Adam', 'lr': 1e-3, 'fused': True}}
    monkeypatch.setattr('facd_basicsr.models.safe_model.NonFiniteGuard', partial(NonFiniteGuard, late=True))
    model = build(opt, tmp_path)
    with Reads() as reads:
        for current_iter in range(1, 4):
            data = {'lq': torch.rand(3, 3, 12, 12), 'gt': torch.rand(3, 3, 24, 24)}
            model.update_learning_rate(current_iter)
            model.feed_data(data)
            model.optimize_parameters(current_iter)
            model.guard.after_step(data, current_iter)
        assert reads.found == []
        model.get_current_log()
    assert len(reads.found) >= 1


@pytest.mark.parametrize(
    ('name', 'key'), [('TeacherSupervisionLoss', 'taps'), ('IACDLoss', 'network_r'), ('FAKDLoss', 'network_r')]
)
def test_what_a_method_does_not_take_is_refused_by_its_key(name, key, train_opt, tmp_path):
    opt = method_opt(train_opt, name, tmp_path)
    opt[key] = train_opt[key]
    with pytest.raises(UserError, match=rf'{key}: (given, but {name}|no tap needs it)'):
        build(opt, tmp_path)


def test_a_missing_vgg_is_refused_with_what_to_do(train_opt, tmp_path):
    opt = method_opt(train_opt, 'CSDLoss', tmp_path)
    opt['train']['distill_opt']['vgg_weights'] = str(tmp_path / 'none.pth')
    with pytest.raises(UserError, match=r"^train.distill_opt.vgg_weights: .*none.pth.*; accepted: torchvision's vgg19"):
        build(opt, tmp_path)
