"""Optimizer steps that change nothing, since a gradient is not finite."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass
class Steps:
    """An iteration's, of all optimizers.

    Attributes:
        made: how many; a ``GradScaler`` makes none of an optimizer that can not skip.
    """

    made: int = 0
    _flags: list[tuple[list[Tensor], Tensor]] = field(default_factory=list)
    _event: torch.cuda.Event | None = None

    def add(self, parameters: list[Tensor], finite: Tensor) -> None:
        """Takes in which parameters' gradients are finite, (P,), without waiting for the device."""
        self._flags.append((parameters, finite.to('cpu', non_blocking=True)))  # into pinned memory
        if finite.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def bad_parameters(self) -> list[Tensor]:
        """Those whose gradients were not finite, and whose optimizer's step was therefore skipped."""
        if self._event is not None:
            self._event.synchronize()
        return [p for parameters, finite in self._flags for p, good in zip(parameters, finite.tolist()) if not good]


class SkippedSteps(ABC):
    """Hooks on optimizers which let them skip such steps."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._steps = Steps()
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._before_step)

    def take(self) -> Steps:
        """Those since it was last called."""
        steps, self._steps = self._steps, Steps()
        return steps

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._steps.made += 1
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        if parameters:
            self._look(optimizer, parameters)

    @abstractmethod
    def _look(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        """At the gradients of an optimizer that is about to make its step."""


class SkippedByHost(SkippedSteps):
    """Takes the gradients away from such a step. For any optimizer; reads one value back in each step."""

    def _look(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(_gradients(parameters))))
        if math.isfinite(total.item()):
            return
        finite = torch.stack([torch.isfinite(gradient).all() for gradient in _gradients(parameters)])
        if finite.all():  # the norm alone has overflown
            return
        self._steps.add(parameters, finite)
        for p in parameters:
            p.grad = None  # to an optimizer, a parameter that had no part in the loss


class SkippedByDevice(SkippedSteps):
    """Has a fused optimizer skip such a step by itself, as ``GradScaler`` does, so that nothing is read back."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        super().__init__(optimizers)
        for optimizer in optimizers:
            optimizer.register_step_post_hook(self._after_step)
        self._told: list[Optimizer] = []

    def _look(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        largest = torch._foreach_norm(_gradients(parameters), float('inf'))  # (P,): these do not overflow
        finite = torch.isfinite(torch.stack(largest))
        self._steps.add(parameters, finite)
        if getattr(optimizer, 'found_inf', None) is None:  # otherwise an enabled GradScaler's, which has seen the same
            optimizer.found_inf = (~finite.all()).float()  # type: ignore[attr-defined]  # a fused step looks for it
            self._told.append(optimizer)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if optimizer in self._told:
            self._told.remove(optimizer)
            del optimizer.found_inf  # type: ignore[attr-defined]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def skip_by_themselves(optimizers: Sequence[Optimizer]) -> bool:
    """Whether all are fused: the others know no ``found_inf``."""
    return all(group.get('fused') for optimizer in optimizers for group in optimizer.param_groups)
