"""What happens when a loss or a gradient is not finite."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info, master_only
from torch import Tensor, nn
from torch.optim import Optimizer

from facd_basicsr.errors import UserError, one_line
from facd_basicsr.files.atomic import atomic_torch_save
from facd_basicsr.models.safe_model import ReportsLossTerms
from facd_basicsr.runtime.processes import Ranks


@dataclass
class Steps:
    """The optimizer steps of one iteration.

    Attributes:
        made: how many; a ``GradScaler`` makes none of an optimizer that cannot skip.
    """

    made: int = 0
    _flags: list[tuple[list[Tensor], Tensor]] = field(default_factory=list)
    _event: torch.cuda.Event | None = None

    def add(self, parameters: list[Tensor], finite: Tensor) -> None:
        """Records which gradients are finite, (P,), without waiting for the device."""
        self._flags.append((parameters, finite.to('cpu', non_blocking=True)))  # into pinned memory
        if finite.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def bad_parameters(self) -> list[Tensor]:
        """Those whose gradients were not finite, and whose optimizer's step was therefore skipped."""
        if self._event is not None:
            self._event.synchronize()
        return [p for parameters, finite in self._flags for p, good in zip(parameters, finite.tolist()) if not good]


class SkipNonFiniteSteps(ABC):
    """Optimizer hooks that skip steps with non-finite gradients."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._steps = Steps()
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._before_step)

    def take(self) -> Steps:
        """The steps since the last call."""
        steps, self._steps = self._steps, Steps()
        return steps

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._steps.made += 1
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        if parameters:
            self._look(optimizer, parameters)

    @abstractmethod
    def _look(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        """Checks the gradients of an optimizer before its step."""


class SkipOnHost(SkipNonFiniteSteps):
    """Removes the gradients of such a step. For any optimizer; reads one value back in each step."""

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


class SkipOnDevice(SkipNonFiniteSteps):
    """Lets a fused optimizer skip such a step on the device, as ``GradScaler`` does: nothing is read back."""

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


def all_fused(optimizers: Sequence[Optimizer]) -> bool:
    """Whether all optimizers are fused: others do not support ``found_inf``."""
    return all(group.get('fused') for optimizer in optimizers for group in optimizer.param_groups)


ACTIONS = ('skip', 'fatal')
SAVED_BATCHES = 20  # by one process: of a run in which every step fails, more would only fill the disk
NAMED_PARAMETERS = 3  # in a line of the log


@dataclass
class Iteration:
    """What the report of an iteration needs; some is still on its way from the device."""

    number: int
    data: dict[str, Any]
    steps: Steps
    terms: Callable[[], dict[str, float]]
    scale: Tensor | None  # float16's, after it


class NonFiniteGuard:
    """Protects weights and optimizer from non-finite losses and gradients, and reports their source.

    A hook on each optimizer lets it skip such a step, so that it changes nothing. A loss that is not finite may have
    a gradient that is: |s - t| has -1 for t = inf, and 0 for t = nan. So a hook on each loss, that is each module
    ``cri_*`` of the model, gives it a gradient that is not. BasicSR's models need no change for this. What the
    forward pass itself changes, such as a batch normalization's averages, is not undone.

    Under DDP gradients are the same on all ranks, so all ranks skip the same steps.

    On a GPU nothing is read back in a step, if the model ``ReportsLossTerms`` (others read their terms back anyway)
    and its optimizers are fused: an iteration is checked when the next has been queued, or at :meth:`settle`. What is
    skipped, counted and reported is the same.

    With an enabled ``scaler``, steps that it skips while every term is finite are how it finds its scale: they
    are not reported, and count only towards ``limit``.

    Args:
        model: any BasicSR model, with its optimizers, which have been resumed if they are to be.
        action: ``skip`` continues without the step; ``fatal`` ends the run.
        limit: so many steps in a row end the run in any case.
        folder: for the batches of such steps; made when there is one.
        late: whether to check an iteration only after the next, where model and optimizers allow it; None: on a GPU.
    """

    def __init__(
        self, model: BaseModel, action: str = 'skip', limit: int = 10, *, folder: Path, late: bool | None = None
    ) -> None:
        self._model = model
        self._action = action
        self._limit = limit
        self._folder = folder
        self._in_a_row = 0
        self._skipped = 0
        self._saved = 0
        late = model.device.type == 'cuda' if late is None else late
        self._late = late and isinstance(model, ReportsLossTerms) and all_fused(model.optimizers)
        self._steps = (SkipOnDevice if self._late else SkipOnHost)(model.optimizers)
        self._pending: Iteration | None = None
        for key, loss in vars(model).items():
            if key.startswith('cri_') and isinstance(loss, nn.Module):
                loss.register_forward_hook(_tie_gradients)

    def after_step(self, data: dict[str, Any], current_iter: int) -> None:
        """Reports the step of ``optimize_parameters`` if it was skipped, or the one before this if that was.

        Args:
            data: the batch, as the data loader gave it.
            current_iter: its iteration.

        Raises:
            UserError: ``action`` is ``fatal``, or this was the ``limit``-th such step in a row.
        """
        self.settle()
        self._pending = Iteration(current_iter, data, self._steps.take(), self._terms(), self._scale())
        if not self._late:
            self.settle()

    def settle(self) -> None:
        """Reports what is pending, before the last iteration is logged, saved or validated.

        Raises:
            UserError: as :meth:`after_step`.
        """
        iteration, self._pending = self._pending, None
        if iteration is not None:
            self._look(iteration)

    def _look(self, iteration: Iteration) -> None:
        bad_parameters = iteration.steps.bad_parameters()
        if not bad_parameters and (iteration.scale is None or iteration.steps.made > 0):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        data, current_iter = iteration.data, iteration.number
        terms = iteration.terms()
        bad_terms = [name for name, value in terms.items() if not math.isfinite(value)]
        images: list[str] = [key for key in ('lq', 'gt') if key in data and not torch.isfinite(data[key]).all()]
        here = bad_terms + images if isinstance(self._model, ReportsLossTerms) else images
        ranks = Ranks().gather({'bad': bad_terms + images, 'here': here, 'files': _files(data)})
        bad = list(dict.fromkeys(name for rank in ranks for name in rank['bad']))
        if bad or iteration.scale is None:
            self._skipped += 1
            what = f'{", ".join(bad) or _some(self._names(bad_parameters))} not finite'
            saved = self._save(data, terms, current_iter)
            _warn(
                f'Iteration {current_iter}: {what}; step skipped, {self._in_a_row} in a row, {self._skipped} in all; '
                f'{_named_files(ranks)}; {saved}'
            )
            if self._action == 'fatal':
                raise UserError(
                    f'train.nonfinite.action: fatal, and in iteration {current_iter} {what} (files and batch: last '
                    'line of the log); accepted: skip, which continues without such steps'
                )
        else:
            what = f'gradient not finite in float16 at loss scales down to {iteration.scale.item():g}'
        if self._in_a_row >= self._limit:
            raise UserError(
                f'train.nonfinite.limit: {self._limit}, and so many steps in a row were skipped, the last in '
                f'iteration {current_iter}: {what}; accepted: finite losses and gradients'
                + (' (train.precision: bf16 or fp32 has a larger range)' if iteration.scale is not None else '')
                + ', or a larger limit'
            )

    def end(self) -> None:
        """Logs how many steps were skipped, if any."""
        if self._skipped:
            _warn(f'Steps skipped, with losses or gradients not finite: {self._skipped}.')

    def state_dict(self) -> dict[str, int]:
        """``in_a_row``, the steps skipped last, and ``skipped``, all that were reported."""
        return {'in_a_row': self._in_a_row, 'skipped': self._skipped}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores :meth:`state_dict`; of a state without it, by BasicSR, the counts begin at 0."""
        self._in_a_row, self._skipped = state.get('in_a_row', 0), state.get('skipped', 0)

    def _terms(self) -> Callable[[], dict[str, float]]:
        if not isinstance(self._model, ReportsLossTerms):
            return lambda: dict(self._model.get_current_log())
        terms = self._model.loss_terms()
        return lambda: {name: value.mean().item() for name, value in terms.items()}

    def _scale(self) -> Tensor | None:
        """The loss scale if there is one, not read back as ``get_scale`` does."""
        if isinstance(self._model, ReportsLossTerms) and self._model.scaler.is_enabled():
            return self._model.scaler.scale(torch.ones((), device=self._model.device))
        return None

    def _names(self, parameters: list[Tensor]) -> list[str]:
        names = {
            id(p): f'{key}.{name}'
            for key, net in vars(self._model).items()
            if key.startswith('net_') and isinstance(net, nn.Module)
            for name, p in self._model.get_bare_model(net).named_parameters()
        }
        return [names.get(id(p), 'a parameter of no net_*') for p in parameters]

    def _save(self, data: dict[str, Any], terms: dict[str, float], current_iter: int) -> str:
        """Saves this rank's batch and says where."""
        if self._saved == SAVED_BATCHES:
            return f'batch not saved: {SAVED_BATCHES} are'
        rank, world_size = get_dist_info()
        path = self._folder / f'iter_{current_iter}_rank{rank}.pth'
        batch = {key: data[key].cpu() for key in ('lq', 'gt') if key in data}
        paths = {key: list(data[key]) for key in ('lq_path', 'gt_path') if key in data}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic_torch_save({'iteration': current_iter, 'terms': terms, **batch, **paths}, path)
        except OSError as error:
            return f'batch not saved: {one_line(error)}'
        self._saved += 1
        return f'batch saved as {path if world_size == 1 else path.with_name(f"iter_{current_iter}_rank*.pth")}'


def _tie_gradients(_: nn.Module, __: Any, output: Any) -> None:
    """Makes the gradient of each of a loss's terms nan where the term is not finite."""
    terms = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
    for term in terms:
        if isinstance(term, Tensor) and term.requires_grad:
            finite = term.detach() * 0 + 1  # 1 or nan; asking which would wait for the device in every step
            term.register_hook(lambda gradient, finite=finite: gradient * finite)


@master_only
def _warn(line: str) -> None:
    """BasicSR's logger is silent on other ranks only where it was first asked for after the process group."""
    get_root_logger().warning(line)


def _some(names: list[str]) -> str:
    more = f' and {len(names) - NAMED_PARAMETERS} more' if len(names) > NAMED_PARAMETERS else ''
    return f'gradient of {", ".join(names[:NAMED_PARAMETERS])}{more}'


def _files(data: dict[str, Any]) -> list[str]:
    return list(data.get('gt_path', data.get('lq_path', [])))


def _named_files(ranks: list[dict[str, list[str]]]) -> str:
    if len(ranks) == 1:
        return f'files: {", ".join(ranks[0]["files"])}'
    return '; '.join(
        f'files of rank {rank}'
        + (f' ({", ".join(own["here"])})' if own['here'] else '')
        + f': {", ".join(own["files"])}'
        for rank, own in enumerate(ranks)
    )
