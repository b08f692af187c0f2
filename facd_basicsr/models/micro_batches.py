"""A batch in parts, of which only one has activations at a time, with the gradient of the whole.

As GradCache (Gao et al., RepL4NLP 2021): what the losses see of all parts is computed without activations; from its
gradient, which a loss of the whole batch gives, each part's backward begins in a second pass.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from facd_basicsr.losses import DistillState
from facd_basicsr.runtime.processes import ranks, total

Gradients = Sequence[Tensor | None]


def mapped(function: Callable[..., Tensor], *states: DistillState) -> DistillState:
    """``function`` of each tensor of the states, tensor by tensor."""
    found: dict[str, Any] = {}
    for name in (own.name for own in fields(DistillState)):
        values = [getattr(state, name) for state in states]
        if isinstance(values[0], Tensor):
            found[name] = function(*values)
        elif isinstance(values[0], tuple):
            found[name] = tuple(map(function, *values))
    return replace(states[0], **found)


def joined(parts: Sequence[DistillState]) -> DistillState:
    """The whole batch's state; what the student gives are leaves, which collect gradients."""
    state = mapped(lambda *own: torch.cat(own), *parts)
    for leaf in of_student(state):
        leaf.requires_grad_()
    return state


def of_student(state: DistillState) -> list[Tensor]:
    """What the student and its regressors give: (N, ...) each."""
    return [state.student, *state.student_feats, *state.regressed_feats]


def with_gradients(
    outputs: Sequence[Tensor], gradients: Gradients, part: int, parts: int
) -> list[tuple[Tensor, Tensor]]:
    """A part's outputs that have a gradient, (N / parts, ...), with their part of the whole batch's gradients."""
    pairs = zip(outputs, gradients)
    return [(own, of.chunk(parts)[part]) for own, of in pairs if of is not None and own.requires_grad]


class GradientShares:
    """Each term's share of the gradient on the student's last layer that all terms reach.

    The share is the norm of a term's gradient on that layer's weights over the sum of these norms. Over several ranks
    the gradients are the means, as those that DDP gives the optimizer.

    Args:
        net: the student, not in DDP.
        terms: scalars of the whole batch.
        leaves: what they are computed from, as of :func:`joined`.
    """

    def __init__(self, net: nn.Module, terms: Mapping[str, Tensor], leaves: Sequence[Tensor]) -> None:
        self._net, self._names = net, list(terms)
        self._of_leaves = {
            name: torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True)
            for name, term in terms.items()
            if term.requires_grad
        }
        self._ran: dict[nn.Module, list[nn.Parameter]] = {}  # layers with weights, in the order of the forward
        self._weights: list[nn.Parameter] = []  # of the last that all terms reach
        self._sums: dict[str, list[Tensor]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A context for the first part's forward, in which the layers are seen."""
        hooks = [
            layer.register_forward_hook(lambda layer, *_: self._ran.update({layer: _weights(layer)}))
            for layer in self._net.modules()
            if _weights(layer)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, outputs: Sequence[Tensor], part: int, parts: int) -> None:
        """Adds a part's gradients, from what the student gives for it."""
        weights = self._weights or [weight for own in self._ran.values() for weight in own]
        found: dict[str, dict[Tensor, Tensor | None]] = {}
        for name, gradients in self._of_leaves.items():
            own, of = zip(*with_gradients(outputs, gradients, part, parts))
            found[name] = dict(
                zip(weights, torch.autograd.grad(own, weights, of, retain_graph=True, allow_unused=True))
            )
        if part == 0:
            reached = [
                w for w in self._ran.values() if all(own[each] is not None for own in found.values() for each in w)
            ]
            self._weights = reached[-1] if reached else []
        for name, by_weight in found.items():
            found_here = [cast(Tensor, by_weight[weight]) for weight in self._weights]
            self._sums[name] = [a + b for a, b in zip(self._sums[name], found_here)] if part else found_here

    def values(self) -> dict[str, Tensor]:
        """``share_NAME`` of each term ``l_NAME``, scalars whose sum is 1; none where no layer is reached by all."""
        if not self._weights:
            return {}
        norms = {
            name: torch.stack([(total(own.float()) / ranks()).norm() for own in gradients]).norm()
            for name, gradients in self._sums.items()
        }
        of_all = torch.stack(list(norms.values())).sum()
        zero = torch.zeros_like(of_all)
        return {f'share_{name.removeprefix("l_")}': norms.get(name, zero) / of_all for name in self._names}


def _weights(layer: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in layer.parameters(recurse=False) if weight.requires_grad]
