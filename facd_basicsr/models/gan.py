"""The discriminator beside the student, in steps as BasicSR's SRGANModel and ESRGANModel take them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facd_basicsr.losses.base import build_loss
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.runtime.execution import Execution
from facd_basicsr.runtime.processes import ranks, total


class GAN:
    """The terms of a GAN loss.

    As SRGANModel has them (basicsr/models/srgan_model.py:65), or with ``relativistic`` ESRGANModel
    (basicsr/models/esrgan_model.py:14), whose means are over the batches of all ranks here.

    Args:
        gan_opt: of ``train``.
        net_d: (N, C, H, W) -> predictions of any shape; may be in DDP.
        execution: how it is run.
        device: where.
        net_d_iters, net_d_init_iters: of ``train``.
    """

    def __init__(
        self,
        gan_opt: Mapping[str, Any],
        net_d: nn.Module,
        execution: Execution,
        device: torch.device,
        net_d_iters: int = 1,
        net_d_init_iters: int = 0,
    ) -> None:
        self.criterion = build_loss({key: value for key, value in gan_opt.items() if key != 'relativistic'}).to(device)
        self._relativistic: bool = gan_opt['relativistic']
        self._iters, self._init_iters = net_d_iters, net_d_init_iters
        self._net_d, self._execution, self._device = net_d, execution, device
        self._bare = net_d.module if isinstance(net_d, DistributedDataParallel) else net_d

    def trains_student(self, iteration: int) -> bool:
        """Whether the student has a step in an iteration, counted from the start of the stage."""
        return iteration % self._iters == 0 and iteration > self._init_iters

    def student_term(self, fake: Tensor, real: Tensor) -> Tensor:
        """What the student minimizes, a scalar; the discriminator's weights get no gradient.

        Args:
            fake: the student's output, (N, C, H, W).
            real: ground truth, likewise.
        """
        with _frozen(self._bare):  # without DDP, which would wait for its gradient
            if not self._relativistic:
                return self.criterion(self._predicted(self._bare, fake), True, is_disc=False)
            real_pred = self._predicted(self._bare, real).detach()
            fake_pred = self._predicted(self._bare, fake)
        l_real = self.criterion(real_pred - _mean(fake_pred), False, is_disc=False)
        l_fake = self.criterion(fake_pred - _mean(real_pred), True, is_disc=False)
        return (l_real + l_fake) / 2

    def discriminator_terms(self, fake: Tensor, real: Tensor, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        """Calls ``backward`` with each of the two scalars that the discriminator minimizes: DDP takes a backward after
        each forward.

        Args:
            fake, real: (N, C, H, W), without gradient.

        Returns:
            Them as ``l_d_real`` and ``l_d_fake``, and the mean predictions ``out_d_real`` and ``out_d_fake``, detached.
        """
        with torch.no_grad():
            of_fake = _mean(self._predicted(self._bare, fake)) if self._relativistic else fake.new_zeros(())
        factor = 0.5 if self._relativistic else 1.0
        real_pred = self._predicted(self._net_d, real)
        l_d_real = factor * self.criterion(real_pred - of_fake, True, is_disc=True)
        backward(l_d_real)
        of_real = _mean(real_pred.detach()) if self._relativistic else fake.new_zeros(())
        fake_pred = self._predicted(self._net_d, fake)
        l_d_fake = factor * self.criterion(fake_pred - of_real, False, is_disc=True)
        backward(l_d_fake)
        logs = {'l_d_real': l_d_real, 'l_d_fake': l_d_fake}
        logs |= {'out_d_real': real_pred.mean(), 'out_d_fake': fake_pred.mean()}
        return {name: value.detach() for name, value in logs.items()}

    def _predicted(self, net_d: nn.Module, images: Tensor) -> Tensor:
        with self._execution.autocast(self._device):
            return at_least_float32(net_d(self._execution.laid_out(images)))


def _mean(predictions: Tensor) -> Tensor:
    return total(predictions.mean()) / ranks()


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    net.requires_grad_(False)
    try:
        yield
    finally:
        net.requires_grad_(True)
