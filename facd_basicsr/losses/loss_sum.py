"""What is minimized: the sum of the terms of one loss or several."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from inspect import signature
from typing import Any, cast

from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from facd_basicsr.errors import UserError
from facd_basicsr.losses.base import (
    NETWORKS,
    REGRESSOR,
    Average,
    DistillLoss,
    DistillState,
    View,
    argument_of,
    build_loss,
    loss_blocks,
    needs_regressor,
    sum_of,
    tap_place,
)
from facd_basicsr.losses.image import image_loss, indicator
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.losses.schedule import is_scheduled, value_at
from facd_basicsr.losses.vgg import PERCEPTUAL, check_images, least_size, load_perceptual_loss
from facd_basicsr.runtime.processes import ranks

TARGETS = ('gt', 'teacher', 'gated')
OF_ENTRY = ('type', 'loss_weight', 'image_term', 'target')  # keys that are not the loss's own


def is_pixel_loss(loss: type[Any]) -> bool:
    """Whether it is one as BasicSR has them, ``loss(pred, target)``, weighted and reduced."""
    return {'loss_weight', 'reduction'} <= {*signature(loss).parameters} and 'target' in signature(
        loss.forward
    ).parameters


class ImageTerm(DistillLoss):
    """A pixel loss between the student's output and a target.

    Args:
        pixel_loss: as BasicSR has them; with ``gated`` its ``reduction`` is ``mean``.
        target: ``gt``, ``teacher``, or ``gated``: both, weighted by equation (1) in equation (2), where the pixel loss
            is in the place of L1.
    """

    reads_features = False

    def __init__(self, pixel_loss: nn.Module, target: str = 'gt') -> None:
        nn.Module.__init__(self)
        self.pixel_loss, self.target = pixel_loss, target
        if target == 'gated':
            vars(pixel_loss)['reduction'] = 'none'

    @property
    def reads(self) -> tuple[str, ...]:
        return ('student',) if self.target == 'gt' else ('student', 'teacher')

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """``l_sr``."""
        student, gt = at_least_float32(state.student), at_least_float32(state.gt)
        # DDP takes the mean of the ranks' gradients
        factor = ranks() if getattr(self.pixel_loss, 'reduction', '') == 'sum' else 1
        if self.target == 'gt':
            return {'l_sr': factor * self.pixel_loss(student, gt)}
        teacher = at_least_float32(state.teacher.detach())
        if self.target == 'teacher':
            return {'l_sr': factor * self.pixel_loss(student, teacher)}
        alpha = indicator(student, teacher, gt)  # (N,)
        return {'l_sr': image_loss(student, teacher, gt, alpha, distance=self._of_samples)}

    def _of_samples(self, student: Tensor, target: Tensor) -> Tensor:
        return self.pixel_loss(student, target).flatten(1).mean(1)  # (N, ...) -> (N,)


class PerceptualTerm(DistillLoss):
    """BasicSR's perceptual and style loss of the student's output to ground truth.

    Args:
        perceptual_opt: ``train.perceptual_opt``.
    """

    reads_features = False

    def __init__(self, perceptual_opt: Mapping[str, Any]) -> None:
        nn.Module.__init__(self)
        self.perceptual_opt = perceptual_opt
        vgg_type = perceptual_opt.get('vgg_type', 'vgg19')
        self.least_size = least_size(vgg_type, list(perceptual_opt['layer_weights']))
        self.perceptual_loss: nn.Module | None = None  # from prepare()

    @property
    def reads(self) -> tuple[str, ...]:
        return ('student',)

    def prepare(self) -> 'PerceptualTerm':
        self.perceptual_loss = load_perceptual_loss(self.perceptual_opt)
        return self

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """``l_percep`` and ``l_style``, as far as they have a weight.

        Raises:
            UserError: the images are none for the VGG.
        """
        if self.perceptual_loss is None:
            raise RuntimeError('PerceptualTerm: prepare() loads its VGG, and comes before the first forward')
        student = at_least_float32(state.student)
        check_images(student, self.least_size, PERCEPTUAL)
        gt = state.gt if state.percep_gt is None else state.percep_gt
        l_percep, l_style = self.perceptual_loss(student, at_least_float32(gt))
        return {name: term for name, term in (('l_percep', l_percep), ('l_style', l_style)) if term is not None}


class LossSum(nn.Module):
    """The weighted terms of all losses of an option file, by unique names.

    One loss in ``distill_opt`` keeps the names of its values. Of several by name, the only term ``l_*`` of the loss
    NAME is ``l_NAME``, one of many ``l_NAME_*``, and a monitored value ``NAME_*``; ``pixel_opt`` is ``pix``.

    Args:
        distill_opt, pixel_opt: of ``train``, one loss or several by name; each with its ``loss_weight``.
        perceptual_opt: of ``train``, one loss, with the weights that are its own.

    Attributes:
        min_batch, reads_features, compares_channels: what all losses together need (losses/base.py).
        regressor: the most that one of them asks for.
        average: of the student, which all of them share; None: none.
        split: of each loss whether these are the terms of one of its several :meth:`steps`.
        teachers: whose features are in a state. A loss of features is evaluated for each and its values are averaged.

    Raises:
        UserError: two losses have one name, or ask for other averages of the student.
    """

    def __init__(
        self,
        distill_opt: dict[str, Any] | None,
        pixel_opt: dict[str, Any] | None = None,
        perceptual_opt: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        blocks = dict(loss_blocks(distill_opt))
        of_pixels = {f'pix_{name}' if name else 'pix': block for name, block in loss_blocks(pixel_opt).items()}
        for name in blocks.keys() & of_pixels.keys():
            raise UserError(f'train.distill_opt.{name}: the name of a loss of train.pixel_opt; accepted: another')
        blocks |= of_pixels
        named = [*blocks.items(), *(('', block) for block in loss_blocks(perceptual_opt).values())]
        self.names, self.blocks = [name for name, _ in named], [block for _, block in named]
        self.losses = nn.ModuleList([_built(block) for block in self.blocks])
        self.scheduled = [
            {argument_of(key): value for key, value in block.items() if key not in OF_ENTRY and is_scheduled(value)}
            if not isinstance(loss, PerceptualTerm)  # whose layer_weights are a block
            else {}
            for block, loss in zip(self.blocks, self)
        ]
        losses = list(self)
        of_features = [loss for loss in losses if loss.reads_features]
        self.min_batch = max((loss.min_batch for loss in losses), default=1)
        self.reads_features = bool(of_features)
        self.compares_channels = any(loss.compares_channels for loss in of_features)
        self.regressor = min((loss.regressor for loss in of_features), key=REGRESSOR.index, default='never')
        averages = {loss.average for loss in losses} - {None}
        if len(averages) > 1:
            listed = ', '.join(f'every {own.every} with decay {own.decay}' for own in averages if own)
            raise UserError(f'train.distill_opt: averages of the student: {listed}; accepted: one for all losses')
        self.average: Average | None = next(iter(averages), None)
        self.teachers = 1
        self.split = [False] * len(losses)

    def __iter__(self) -> Iterator[DistillLoss]:
        return (cast(DistillLoss, loss) for loss in self.losses)

    @property
    def reads(self) -> tuple[str, ...]:
        """The networks whose output on LQ a loss reads."""
        return tuple(network for network in NETWORKS if any(network in loss.reads for loss in self))

    @property
    def networks(self) -> tuple[str, ...]:
        """All that a loss reads, on LQ or on a view."""
        asked = {*self.reads, *(network for view in self.views.values() for network in view.networks)}
        return tuple(network for network in NETWORKS if network in asked)

    @property
    def views(self) -> dict[str, View]:
        """Those of all losses, each loss's by names of its own, as :meth:`begin` has left its options."""
        return {_of_entry(name, key): view for name, loss in zip(self.names, self) for key, view in loss.views.items()}

    @property
    def weighs_features(self) -> bool:
        """Whether a loss does, as :meth:`begin` has left its options."""
        return any(loss.weighs_features for loss in self)

    def steps(self) -> list['LossSum']:
        """Itself, or the losses of each optimizer's step where a loss asks for several; the others are in the first."""
        parts = [loss.steps() for loss in self]
        count = max(map(len, parts), default=1)
        if count == 1:
            return [self]
        steps = []
        for number in range(count):
            kept = [index for index, own in enumerate(parts) if number < len(own)]
            step = copy(self)
            step.names, step.blocks = [self.names[index] for index in kept], [self.blocks[index] for index in kept]
            step.scheduled = [self.scheduled[index] for index in kept]
            step.split = [len(parts[index]) > 1 for index in kept]
            step._modules = {'losses': nn.ModuleList([parts[index][number] for index in kept])}
            steps.append(step)
        return steps

    def begin(self, iteration: int) -> None:
        """Sets the scheduled options of the losses to their values in an iteration."""
        for scheduled, loss in zip(self.scheduled, self):
            for argument, value in scheduled.items():
                setattr(loss, argument, value_at(value, iteration))

    def prepare(self) -> 'LossSum':
        """Loads what the losses need beyond their options."""
        for loss in self:
            loss.prepare()
        return self

    def forward(self, state: DistillState) -> dict[str, Tensor]:
        """Named scalars: ``l_*`` are weighted and to be minimized, others are monitored.

        Raises:
            UserError: two values have one name, a loss gives no term or no scalar, or as a loss does.
        """
        self.begin(state.iteration)
        logs: dict[str, Tensor] = {}
        for name, block, loss, is_split in zip(self.names, self.blocks, self, self.split):
            weight = value_at(block.get('loss_weight', 1), state.iteration)
            found = _mean([_checked(loss, loss(seen)) for seen in self._seen_by(name, loss, state)])
            if not block.get('image_term', True):
                found = _without_image_term(found, _place(name), is_split)
            for key, value in _renamed(name, found, is_split).items():
                if key in logs:
                    raise UserError(f'train.distill_opt: two values are called {key}; accepted: other names of losses')
                logs[key] = weight * value if key.startswith('l_') and weight != 1 else value
        return logs

    def _seen_by(self, name: str, loss: DistillLoss, state: DistillState) -> Iterator[DistillState]:
        """The state with a loss's own views; for a loss of features once for each teacher, with the student's through
        the regressors where it asks for them."""
        views = {key: state.views[_of_entry(name, key)] for key in loss.views}
        state = replace(state, views=views) if state.views else state
        if not loss.reads_features:
            yield state
            return
        taps = len(state.student_feats)
        regressed_feats = state.regressed_feats or state.student_feats * self.teachers
        for start in range(0, self.teachers * taps, max(1, taps)):
            regressed, taught = (feats[start : start + taps] for feats in (regressed_feats, state.teacher_feats))
            feats = zip(state.student_feats, regressed, taught)
            seen = tuple(at_least_float32(r if needs_regressor(loss.regressor, s, t) else s) for s, r, t in feats)
            yield replace(state, student_feats=seen, teacher_feats=taught)

    def check_widths(self, student_feats: Sequence[Tensor], teacher_feats: Sequence[Tensor]) -> None:
        """Refuses taps of other widths where a loss compares features without a regressor.

        Args:
            student_feats, teacher_feats: (N, C_j, H_j, W_j) each, the student's before the regressors.

        Raises:
            UserError: there is one.
        """
        for name, loss in zip(self.names, self):
            for index, (s, t) in enumerate(zip(student_feats, teacher_feats)):
                compared = loss.reads_features and loss.compares_channels and not needs_regressor(loss.regressor, s, t)
                if compared and s.shape[1] != t.shape[1]:
                    tap = tap_place(index, len(student_feats), self.teachers)
                    raise UserError(
                        f'{_place(name)}.regressor: never, but {tap} has {s.shape[1]} channels in the student '
                        f'and {t.shape[1]} in the teacher; accepted: always or auto'
                    )


def _place(name: str) -> str:
    return f'train.distill_opt.{name}'.removesuffix('.')


def _built(block: Mapping[str, Any]) -> DistillLoss:
    if LOSS_REGISTRY.get(block['type']) is PerceptualLoss:  # which loads its VGG when it is built
        return PerceptualTerm(block)
    loss = build_loss({key: value for key, value in block.items() if key == 'type' or key not in OF_ENTRY})
    return loss if isinstance(loss, DistillLoss) else ImageTerm(loss, block.get('target', 'gt'))


def _of_entry(name: str, key: str) -> str:
    return f'{name}.{key}' if name else key


def _checked(loss: DistillLoss, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a loss gives, which may be a user's.

    Raises:
        UserError: it has no term, or one that is no scalar tensor.
    """
    own = type(loss).__name__
    if not any(key.startswith('l_') for key in found):
        raise UserError(f'{own}: forward gives {", ".join(found) or "nothing"}; accepted: a term l_* or more')
    for key, value in found.items():
        if not isinstance(value, Tensor) or value.dim():
            kind = f'of shape {tuple(value.shape)}' if isinstance(value, Tensor) else repr(value)
            raise UserError(f'{own}: {key} is {kind}; accepted: a scalar tensor')
    return found


def _mean(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        key: sum_of(own[key] for own in found) / len(found) if len(found) > 1 else found[0][key] for key in found[0]
    }


def _without_image_term(found: Mapping[str, Tensor], where: str, is_split: bool) -> dict[str, Tensor]:
    rest = {key: value for key, value in found.items() if key != 'l_sr'}
    if is_split:  # l_sr may be another step's
        return rest
    if len(rest) == len(found) or not any(key.startswith('l_') for key in rest):
        raise UserError(
            f'{where}.image_term: false; accepted of a loss with l_sr and another term, here {", ".join(found)}'
        )
    return rest


def _renamed(name: str, found: Mapping[str, Tensor], is_split: bool) -> dict[str, Tensor]:
    if not name:
        return dict(found)
    terms = [key for key in found if key.startswith('l_')]
    is_only = len(terms) == 1 and not is_split
    of_term = {key: f'l_{name}' if is_only else f'l_{name}_{key.removeprefix("l_")}' for key in terms}
    return {of_term.get(key, f'{name}_{key}'): value for key, value in found.items()}
