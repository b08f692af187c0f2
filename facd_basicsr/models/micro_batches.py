"""A batch's inputs run together, and a batch in parts, of which only one has activations at a time, with the gradient
of the whole.

As GradCache (Gao et al., RepL4NLP 2021): what the losses see of all parts is computed without activations; from its
gradient, which a loss of the whole batch gives, each part's backward begins in a second pass.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from facd_basicsr.losses import DistillState
from facd_basicsr.runtime.processes import ranks, total

LQ = 'lq'  # the input that is no view


@dataclass(frozen=True)
class Batch:
    """What a step begins with.

    Attributes:
        lq, gt: (N, C, h, w) and (N, C, h * scale, w * scale), in [0, 1]; gt None: the teacher's output is in its place.
        seeds: of the samples, for views.
        taught: the teacher's output on LQ, as ``gt``, where it is known (``teacher.cache``); None: it is run.
        percep_gt: of a perceptual loss, as ``gt``; None: ``gt``.
    """

    lq: Tensor
    gt: Tensor | None = None
    seeds: tuple[int, ...] = ()
    taught: Tensor | None = None
    percep_gt: Tensor | None = None

    def parts(self, count: int) -> Iterator['Batch']:
        """It in ``count`` parts, or fewer if there are not as many samples."""
        seeds = iter(self.seeds)
        tensors = {name: value.chunk(count) for name, value in vars(self).items() if isinstance(value, Tensor)}
        for own in zip(*tensors.values()):
            part = dict(zip(tensors, own))
            yield Batch(**part, seeds=tuple(islice(seeds, len(part['lq']))))


def joined(parts: Sequence[DistillState]) -> DistillState:
    """A copy of the parts as one state, with gradient to theirs."""

    def cat(*own: Any) -> Any:
        if isinstance(own[0], Tensor):
            return torch.cat(own)
        if isinstance(own[0], Mapping):
            return {key: cat(*(part[key] for part in own)) for key in own[0]}
        return tuple(map(cat, *own)) if isinstance(own[0], tuple) else own[0]

    seeds = tuple(seed for part in parts for seed in part.seeds)
    return replace(DistillState(*map(cat, *(vars(replace(part, seeds=())).values() for part in parts))), seeds=seeds)


def of_student(state: DistillState) -> list[Tensor]:
    """What the student and its regressors give, (N, ...) each."""
    student = [state.student] if len(state.student) else []
    of_views = [own['student'] for own in state.views.values() if 'student' in own]
    return [*student, *of_views, *state.student_feats, *state.regressed_feats]


def student_inputs(state: DistillState) -> dict[str, Tensor]:
    """What the student ran on, by name, in the order of its outputs in :func:`of_student`."""
    lq = {LQ: state.lq} if len(state.student) else {}
    return lq | {name: own['input'] for name, own in state.views.items() if 'student' in own}


def outputs_on(
    run: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]], inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """A network's outputs on several inputs, those of one shape as one batch, and its features on LQ.

    Args:
        run: (M, C, h, w) -> output and features, (M, ...) each.
        inputs: (M, C, h, w) each, by name; LQ, if it is one of them, is the first.
    """
    outputs: dict[str, Tensor] = {}
    feats: tuple[Tensor, ...] = ()
    by_shape: dict[torch.Size, list[str]] = {}
    for name, images in inputs.items():
        by_shape.setdefault(images.shape[1:], []).append(name)
    for names in by_shape.values():
        if len(names) == 1:
            outputs[names[0]], found = run(inputs[names[0]])
        else:
            output, found = run(torch.cat([inputs[name] for name in names]))
            outputs |= zip(names, output.split([len(inputs[name]) for name in names]))
            found = tuple(feat[: len(inputs[names[0]])] for feat in found)
        feats = found if names[0] == LQ else feats
    return {name: outputs[name] for name in inputs}, feats


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
