"""A batch in parts, of which only one has activations at a time, with the gradient of the whole.

As GradCache (Gao et al., RepL4NLP 2021): what the losses see of all parts is computed without activations; from its
gradient, which a loss of the whole batch gives, each part's backward begins in a second pass.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facd_basicsr.losses import DistillState
from facd_basicsr.runtime.processes import ranks, total


def joined(parts: Sequence[DistillState]) -> DistillState:
    """A copy of the parts as one state, with gradient to theirs."""

    def cat(*own: Any) -> Any:
        if isinstance(own[0], Tensor):
            return torch.cat(own)
        return tuple(map(cat, *own)) if isinstance(own[0], tuple) else own[0]

    return DistillState(*map(cat, *(vars(part).values() for part in parts)))


def of_student(state: DistillState) -> list[Tensor]:
    """What the student and its regressors give, (N, ...) each."""
    return [state.student, *state.student_feats, *state.regressed_feats]


def gradient_shares(
    net: nn.Module,
    terms: Mapping[str, Tensor],
    passes: Iterable[tuple[list[Tensor], list[Tensor]]],
    leaves: list[Tensor],
) -> dict[str, Tensor]:
    """Each term's share of the gradient on the last layer, as the network lists them, that all terms reach.

    That is the norm of its gradient on the layer's weights over the sum of these norms. Over several ranks gradients
    are the means, as those that DDP gives the optimizer.

    Args:
        net: the student, not in DDP.
        terms: scalars of the whole batch.
        passes: of each part what the student gives, with activations, and the leaves in its place.
        leaves: all that the terms are computed from.

    Returns:
        ``share_NAME`` of each term ``l_NAME``, scalars whose sum is 1; none if no layer is reached by all.
    """

    def gradients(to: list[Any], of: Sequence[Tensor], start: Sequence[Tensor] | None = None) -> dict[Tensor, Any]:
        return dict(zip(to, torch.autograd.grad(of, to, start, retain_graph=True, allow_unused=True)))

    layers = [[own for own in module.parameters(recurse=False) if own.requires_grad] for module in net.modules()]
    weights = [weight for layer in layers for weight in layer]
    of_leaves = {name: gradients(leaves, [term]) for name, term in terms.items() if term.requires_grad}
    sums: dict[str, dict[Tensor, Any]] = {name: {} for name in of_leaves}
    for outputs, in_place in passes:
        for name, of_leaf in of_leaves.items():
            reached = [(own, of_leaf[leaf]) for own, leaf in zip(outputs, in_place) if of_leaf[leaf] is not None]
            for weight, gradient in gradients(weights, *zip(*reached)).items():
                if gradient is not None:
                    sums[name][weight] = sums[name].get(weight, 0) + gradient
        del outputs, reached  # with the activations, before the next part's forward
    common = [layer for layer in layers if layer and all(own.keys() >= {*layer} for own in sums.values())]
    norms = {
        name: torch.cat([(total(own[weight].float()) / ranks()).flatten() for weight in layer]).norm()
        for layer in common[-1:]
        for name, own in sums.items()
    }
    of_all = sum(norms.values())
    return {f'share_{name.removeprefix("l_")}': norms.get(name, 0 * of_all) / of_all for name in terms if norms}
