"""What happens when a loss or a gradient is not finite."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info, master_only
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from facd_basicsr.errors import UserError, one_line
from facd_basicsr.files.atomic import atomic_torch_save
from facd_basicsr.runtime.processes import Ranks

ACTIONS = ('skip', 'fatal')
SAVED_BATCHES = 20  # by one process: of a run in which every step fails, more would only fill the disk
NAMED_PARAMETERS = 3  # in a line of the log


def tie_gradient(loss: Tensor) -> Tensor:
    """The loss, whose gradient is nan where the loss is not finite, and otherwise unchanged to the last bit.

    Such a loss may have a gradient that is finite: |s - t| has -1 for t = inf, and 0 for t = nan. Asking whether it is
    finite would wait for the device in every step.
    """
    return loss * (loss.detach() * 0 + 1)  # 0 * inf is nan


@dataclass
class Step:
    """What the report of an iteration's step needs; some is still on its way from the device.

    Attributes:
        gradients: parameters and which of their gradients are finite, (P,), for each optimizer.
        terms: the loss's on this rank; None for BasicSR's own models, whose log has the means over the ranks.
        scaler: float16's, if it is enabled.
        late: whether to look at it only once the next has been queued.
    """

    gradients: list[tuple[list[Tensor], Tensor]] = field(default_factory=list)
    terms: Mapping[str, Tensor] | None = None
    scaler: GradScaler | None = None
    late: bool = False
    _event: torch.cuda.Event | None = None

    def are_finite(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer's gradients are all finite: one value is read back."""
        if self.look(optimizer, norm=2).item():  # on a CPU the fastest norm, but it may overflow
            return True
        self.gradients.pop()
        return bool(self.look(optimizer).item())

    def look(self, optimizer: Optimizer, norm: float = math.inf) -> Tensor:
        """The same on the gradients' device, (); nothing waits for it."""
        parameters = [p for p in _parameters(optimizer) if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        finite = torch.isfinite(torch.stack(torch._foreach_norm(gradients, norm)))  # (P,)
        self.gradients.append((parameters, finite.to('cpu', non_blocking=True)))  # into pinned memory
        if finite.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()
        return finite.all()

    def bad_parameters(self) -> list[Tensor]:
        """Those whose gradients were not finite, and whose optimizer's step was therefore skipped."""
        if self._event is not None:
            self._event.synchronize()
        return [p for parameters, finite in self.gradients for p, good in zip(parameters, finite.tolist()) if not good]

    def scale(self) -> Tensor | None:
        """The loss scale if there is one, (), not read back as ``get_scale`` does."""
        if self.scaler is None:
            return None
        (parameter, *_), _ = self.gradients[0]
        return self.scaler.scale(parameter.new_ones(()))


class NonFiniteGuard:
    """Protects weights and optimizer from non-finite losses and gradients, and reports their source.

    A step with such a gradient is skipped, so that it changes nothing; :func:`tie_gradient` gives such a gradient to
    every loss that is not finite. :meth:`step` is called in the place of the optimizer's. BasicSR's own models know no
    guard: :meth:`attach_hooks` does the same for them. What the forward pass itself changes, such as a batch
    normalization's averages, is not undone.

    Under DDP gradients are the same on all ranks, so all ranks skip the same steps.

    On a GPU nothing is read back in a :meth:`step` of a fused optimizer: an iteration is checked when the next has been
    queued, or at :meth:`settle`. What is skipped, counted and reported is the same.

    With an enabled ``GradScaler``, steps that it skips while every term is finite are how it finds its scale: they
    are not reported, and count only towards ``limit``.

    Args:
        networks: those that are trained, by the names that the report has for them.
        action: ``skip`` continues without the step; ``fatal`` ends the run.
        limit: so many steps in a row end the run in any case.
        folder: for the batches of such steps; made when there is one.
        clip_grad_norm: the largest 2-norm of each network's gradient in a :meth:`step`; None: any.
        late: whether to check a fused optimizer's step only after the next; None: on a GPU.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        action: str = 'skip',
        limit: int = 10,
        *,
        folder: Path,
        clip_grad_norm: float | None = None,
        late: bool | None = None,
    ) -> None:
        self._networks = networks
        self._action = action
        self._limit = limit
        self._folder = folder
        self._max_norm = clip_grad_norm
        self._late = late
        self._in_a_row = 0
        self._skipped = 0
        self._saved = 0
        self._step = Step()
        self._pending: Callable[[], None] | None = None
        self._log: Callable[[], dict[str, float]] = dict

    def step(self, optimizer: Optimizer, scaler: GradScaler, terms: Mapping[str, Tensor]) -> None:
        """Clips the gradients and takes the optimizer's step, unless a gradient is not finite. ``scaler.update()`` is
        left to the caller.

        Args:
            optimizer: with the gradients of a loss that went through :func:`tie_gradient` and ``scaler``.
            scaler: float16's, or one that is not enabled.
            terms: the loss's on this rank, detached.
        """
        fused = all(group.get('fused') for group in optimizer.param_groups)
        late = optimizer.param_groups[0]['params'][0].is_cuda if self._late is None else self._late
        step = self._step  # what an iteration's steps before this have found stays in it
        step.late = fused and late and (step.terms is None or step.late)
        step.terms = {**(step.terms or {}), **terms}
        step.scaler = scaler if scaler.is_enabled() else None
        if scaler.is_enabled():
            self._step.look(optimizer)
            if self._max_norm is not None:
                scaler.unscale_(optimizer)
            self._clip(optimizer)
            scaler.step(optimizer)  # looks for itself, and skips alike
        elif fused:
            optimizer.found_inf = (~self._step.look(optimizer)).float()  # type: ignore[attr-defined]  # skips on the device, as for a scaler
            self._clip(optimizer)
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        elif self._step.are_finite(optimizer):  # others do not support found_inf
            self._clip(optimizer)
            optimizer.step()

    def _clip(self, optimizer: Optimizer) -> None:
        """Each of the optimizer's networks by its own norm; nothing is read back."""
        if self._max_norm is not None:
            trained = set(map(id, _parameters(optimizer)))
            for net in self._networks.values():
                own = [p for p in net.parameters() if id(p) in trained]
                if own:
                    clip_grad_norm_(own, self._max_norm)

    def attach_hooks(
        self, optimizers: Iterable[Optimizer], losses: Iterable[nn.Module], log: Callable[[], dict[str, float]]
    ) -> None:
        """Does what :meth:`step` does for BasicSR's own models, whose ``optimize_parameters`` does not call it.

        Args:
            optimizers: whose steps are skipped; one value is read back in each.
            losses: whose terms get a gradient that is not finite where they are not.
            log: the model's ``get_current_log``: the last step's terms, their means over the ranks on rank 0.
        """
        self._log = log
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._before_step)
        for loss in losses:
            loss.register_forward_hook(_tie_gradients)

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if all(p.grad is None for p in _parameters(optimizer)) or self._step.are_finite(optimizer):
            return
        for p in _parameters(optimizer):
            p.grad = None  # to an optimizer, a parameter that had no part in the loss

    def after_step(self, data: dict[str, Any], current_iter: int) -> None:
        """Reports the step of ``optimize_parameters`` if it was skipped, or the one before this if that was.

        Args:
            data: the batch, as the data loader gave it.
            current_iter: its iteration.

        Raises:
            UserError: ``action`` is ``fatal``, or this was the ``limit``-th such step in a row.
        """
        self.settle()
        step, self._step = self._step, Step()
        self._pending = partial(self._report, step, step.scale(), data, current_iter)
        if not step.late:
            self.settle()

    def settle(self) -> None:
        """Reports what is pending, before the last iteration is logged, saved or validated.

        Raises:
            UserError: as :meth:`after_step`.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    def _report(self, step: Step, scale: Tensor | None, data: dict[str, Any], current_iter: int) -> None:
        bad_parameters = step.bad_parameters()
        if not bad_parameters:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        own = step.terms
        terms = dict(self._log()) if own is None else {name: value.mean().item() for name, value in own.items()}
        bad_terms = [name for name, value in terms.items() if not math.isfinite(value)]
        images: list[str] = [key for key in ('lq', 'gt') if key in data and not torch.isfinite(data[key]).all()]
        here = images if own is None else bad_terms + images
        files = list(data.get('gt_path', data.get('lq_path', [])))
        ranks = Ranks().gather({'bad': bad_terms + images, 'here': here, 'files': files})
        bad = list(dict.fromkeys(name for rank in ranks for name in rank['bad']))
        if bad or scale is None:
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
            what = f'gradient not finite in float16 at loss scales down to {scale.item():g}'
        if self._in_a_row >= self._limit:
            raise UserError(
                f'train.nonfinite.limit: {self._limit}, and so many steps in a row were skipped, the last in '
                f'iteration {current_iter}: {what}; accepted: finite losses and gradients'
                + (' (train.precision: bf16 or fp32 has a larger range)' if scale is not None else '')
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

    def _names(self, parameters: list[Tensor]) -> list[str]:
        names = {id(p): f'{key}.{name}' for key, net in self._networks.items() for name, p in net.named_parameters()}
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


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group['params']]


def _tie_gradients(_: nn.Module, __: Any, output: Any) -> None:
    """As :func:`tie_gradient`, for each term of a loss, which stays the tensor that it is."""
    terms = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
    for term in terms:
        if isinstance(term, Tensor) and term.requires_grad:
            finite = term.detach() * 0 + 1  # 1 or nan
            term.register_hook(lambda gradient, finite=finite: gradient * finite)


@master_only
def _warn(line: str) -> None:
    """BasicSR's logger is silent on other ranks only where it was first asked for after the process group."""
    get_root_logger().warning(line)


def _some(names: list[str]) -> str:
    more = f' and {len(names) - NAMED_PARAMETERS} more' if len(names) > NAMED_PARAMETERS else ''
    return f'gradient of {", ".join(names[:NAMED_PARAMETERS])}{more}'


def _named_files(ranks: list[dict[str, list[str]]]) -> str:
    if len(ranks) == 1:
        return f'files: {", ".join(ranks[0]["files"])}'
    return '; '.join(
        f'files of rank {rank}'
        + (f' ({", ".join(own["here"])})' if own['here'] else '')
        + f': {", ".join(own["files"])}'
        for rank, own in enumerate(ranks)
    )
