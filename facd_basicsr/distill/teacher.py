"""The frozen teacher: find its weights, recognize their layout, build, load strictly, freeze."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from torch import Tensor, nn

from facd_basicsr.archs import network_sizes
from facd_basicsr.archs.spandrel_arch import INSTALLED, SPANDREL_EXTRA, opened_by_spandrel
from facd_basicsr.distill.layouts import (
    LAYOUTS,
    SIGNS,
    image_range,
    network_block,
    recognize,
    to_basicsr,
    trained_color_maps,
)
from facd_basicsr.errors import UserError, advising, reraise
from facd_basicsr.files.download import cached, is_url, local_path, sha256_of
from facd_basicsr.files.state_dicts import load_exactly, load_state_dict, part_by_prefix
from facd_basicsr.runtime.execution import PRECISIONS, Execution, check_upscaled
from facd_basicsr.runtime.size_requirements import SizeRequirements

WEIGHTS_FORMATS = ('auto', *LAYOUTS, 'spandrel')
LARGEST_DRIFT = 0.05  # of a trained mean from the one that training began with, in [0, 1]
SPANDRELS_RANGE = 255.0
WITHOUT_NETWORK = 'or leave teacher.network out: spandrel runs an RCAN as its authors do'
PAGE = 'docs/teachers.md describes the teacher block'


class Teacher(nn.Module):
    """A frozen network: eval whatever ``train()`` is called, no gradient, own precision, input unchanged.

    Input (N, C, H, W) in [0, 1]; output (N, C, H * scale, W * scale), float32, not clamped.

    Raises a UserError in the forward if the network gives anything else than an image of that size.

    Args:
        execution: how it runs, whatever the student does. Compiling it is the caller's.
        sizes: of LQ that the network takes; others are padded for it.

    Attributes:
        place: its block's in the option file, for messages.
    """

    place = 'teacher'

    def __init__(
        self,
        net: nn.Module,
        scale: int,
        execution: Execution = Execution(),  # noqa: B008  frozen
        sizes: SizeRequirements = SizeRequirements(),  # noqa: B008  frozen
    ) -> None:
        super().__init__()
        self.net = execution.lay_out(net.requires_grad_(False))
        self.execution = execution
        self.eval()
        self._scale = scale
        self.sizes = sizes

    def train(self, mode: bool = True) -> 'Teacher':
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, lq: Tensor) -> Tensor:
        height, width = lq.shape[2:]
        # A copy: spandrel's RCAN changes its input in place.
        padded = self.execution.laid_out(self.sizes.pad(lq.clone()))
        with torch.no_grad(), self.execution.autocast(lq.device):
            sr = self.net(padded)
        check_upscaled(self.place, self.net, padded, sr, self._scale, channels=lq.shape[1])
        return sr.float()[..., : height * self._scale, : width * self._scale]


def teacher_blocks(teacher: Any) -> dict[str, dict[str, Any]]:
    """The blocks of the option ``teacher`` by their places: ``teacher``, or of a list ``teacher[0]`` and so on."""
    if isinstance(teacher, list):
        return {f'teacher[{number}]': own for number, own in enumerate(teacher)}
    return {} if teacher is None else {'teacher': teacher}


def is_cached(teacher: Any) -> bool:
    """Whether a block of the option ``teacher`` has ``cache: true``."""
    return any(own.get('cache') for own in teacher_blocks(teacher).values())


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Begins the line of a :class:`UserError` about a ``teacher`` block with that block's place."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r'^teacher\b', place, str(error))) from error


def build_teacher(teacher_opt: dict[str, Any], scale: int, place: str = 'teacher') -> Teacher:
    """Builds the teacher of an option file's ``teacher`` block, on the CPU.

    Args:
        teacher_opt: ``weights`` (a file or URL) and, by default none, ``network`` (as a ``network_g`` block; without
            it spandrel recognizes the network), ``format`` (``auto``), ``sha256``, ``precision`` and ``channels_last``.
        place: of the block, of :func:`teacher_blocks`.

    Raises:
        UserError: the checkpoint cannot be downloaded or read, contains code, is in another layout than ``format``,
            or does not fit the network exactly.
    """
    with naming(place):
        teacher = _built(teacher_opt, scale)
    teacher.place = place
    return teacher


def _built(teacher_opt: dict[str, Any], scale: int) -> Teacher:
    where = f'teacher.weights: {teacher_opt["weights"]}'
    path = local_weights(teacher_opt)
    origin = f'it came from {teacher_opt["weights"]}: delete it to download it again'
    layout_format, network_opt = teacher_opt['format'], teacher_opt.get('network')
    net = None if network_opt is None else build_network(network_opt)
    wanted = [*([] if net is None else [net.state_dict().keys()]), *SIGNS.values()]
    with advising(origin) if is_url(teacher_opt['weights']) else nullcontext():
        state_dict = load_state_dict(path, 'teacher.weights', wanted)
    execution = Execution.of(teacher_opt)
    if net is not None and network_opt is not None:
        _load_registered(net, state_dict, layout_format, where)
        return Teacher(net, scale, execution, network_sizes(net, network_opt, scale))
    found = recognize(state_dict)
    if layout_format == 'auto' and found is not None and found[0] != 'rcan':
        raise UserError(
            f'teacher.network: missing, and {teacher_opt["weights"]} does not determine all of it; accepted: '
            f'{_block(state_dict, found[0], where)}, where res_scale is as it was trained (EDSR '
            f'256 x 32: 0.1, EDSR 64 x 16 and RCAN: 1); {PAGE}'
        )
    if found is not None and found[0] == 'rcan':
        _check_spandrels_range(state_dict, where)
    return _build_by_spandrel(state_dict, scale, execution, where)


def local_weights(teacher_opt: dict[str, Any]) -> Path:
    """The file of ``teacher.weights``, downloaded if it is an address, checked if ``sha256`` is given.

    Raises:
        UserError: it cannot be downloaded, or its digest differs.
    """
    weights, sha256 = teacher_opt['weights'], teacher_opt['sha256']
    if is_url(weights):
        with advising('or bring the file and name its path there (docs/teachers.md)'):
            return cached(weights, 'teacher.weights', sha256)
    path = local_path(weights)
    if sha256 is not None and not (digest := sha256_of(path)).startswith(sha256.lower()):
        raise UserError(f'teacher.sha256: {sha256}, but {path} has {digest}; accepted: the digest of the intended file')
    return path


def _load_registered(net: nn.Module, state_dict: dict[str, Tensor], layout_format: str, where: str) -> None:
    """Loads a state dict in a network's own layout, or in its authors', into a network of BasicSR's registry."""
    layout, _ = recognize(state_dict) or ('basicsr', '')
    if layout_format not in ('auto', layout):
        raise UserError(
            f'teacher.format: {layout_format}, but {where.removeprefix("teacher.weights: ")} has the keys of {layout}; '
            f'accepted: {layout}, or auto'
        )
    if layout != 'basicsr' and net.state_dict().keys() != state_dict.keys():  # spandrel's RCAN has the authors' keys
        trained = trained_color_maps(state_dict)
        with advising(WITHOUT_NETWORK) if layout == 'rcan' else nullcontext():
            state_dict, shift = to_basicsr(state_dict, layout, where)
        if shift is not None and isinstance(net, (EDSR, RCAN)):
            _take_mean(net, shift, trained, where)
    try:
        load_exactly(net, state_dict, where)
    except UserError as error:
        if recognize(state_dict) is None:
            raise
        raise UserError(f'{error}; the checkpoint is of {_block(state_dict, "basicsr", where)}') from error


def _take_mean(net: EDSR | RCAN, shift: Tensor, trained: bool, where: str) -> None:
    """Gives a network the ``rgb_mean`` of an official checkpoint, after comparing the arguments that this determines.

    The product of ``img_range`` and ``rgb_mean`` is in the checkpoint. The networks are the same only if both factors
    are: ``img_range`` scales what conv_first is given.
    """
    img_range = image_range(shift) or net.img_range
    mean = shift / img_range
    tolerance = LARGEST_DRIFT if trained else 1e-3 * mean.abs()
    own = net.mean.flatten()
    if img_range != net.img_range or ((own - mean).abs() > tolerance).any():
        raise UserError(
            f'{where}: was trained with img_range: {img_range} and rgb_mean: {_rounded(mean)}, but teacher.network has '
            f"{float(net.img_range)} and {_rounded(own)}; accepted: the checkpoint's"
        )
    net.mean = mean.view(1, 3, 1, 1)


def _build_by_spandrel(state_dict: dict[str, Tensor], scale: int, execution: Execution, where: str) -> Teacher:
    """Any of spandrel's architectures, recognized by its keys and shapes."""
    if not INSTALLED:
        raise UserError(
            f'{where}: no teacher.network is given, and spandrel, which recognizes networks, is not installed; '
            f'accepted: a teacher.network block, or {SPANDREL_EXTRA}'
        )
    from spandrel import ImageModelDescriptor

    with reraise(ValueError, lambda error: UserError(f'{where}: spandrel {error}; accepted: a teacher.network block')):
        whole = opened_by_spandrel(state_dict)
        # or below a prefix, as of Lightning, which saves the loss's networks beside it
        parts = part_by_prefix(state_dict) if whole is None else {}
        opened = {'': whole, **{prefix: opened_by_spandrel(part) for prefix, part in parts.items()}}
    found = {prefix: descriptor for prefix, descriptor in opened.items() if descriptor is not None}
    if len(found) != 1:
        what = f'recognizes one below each of {", ".join(found)}' if found else 'does not recognize it'
        raise UserError(
            f'{where}: spandrel {what} (first key: {next(iter(state_dict))}); accepted: one of '
            f'its architectures, or a teacher.network block; {PAGE}'
        )
    (descriptor,) = found.values()
    name = descriptor.architecture.name
    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.purpose != 'SR' or descriptor.scale != scale:
        raise UserError(
            f'{where}: is a {name} for {descriptor.purpose} x{descriptor.scale}; accepted: SR x{scale}, the scale of '
            'this file'
        )
    if descriptor.input_channels != 3 or descriptor.output_channels != 3:
        raise UserError(f'{where}: is a {name} of {descriptor.input_channels} channels; accepted: 3 (RGB)')
    refused: dict[str | None, bool] = {'bf16': not descriptor.supports_bfloat16, 'fp16': not descriptor.supports_half}
    if refused.get(execution.precision, False):
        accepted = ', '.join(name for name in PRECISIONS if not refused.get(name, False))
        raise UserError(
            f'teacher.precision: {execution.precision}, which {name} does not support; accepted: {accepted}'
        )
    # The network itself: called through its descriptor it would be clamped and in inference mode.
    size = descriptor.size_requirements
    sizes = SizeRequirements(size.multiple_of, max(size.minimum, size.multiple_of))
    return Teacher(descriptor.model, scale, execution, sizes)


def _check_spandrels_range(state_dict: dict[str, Tensor], where: str) -> None:
    """Refuses an RCAN of another range than spandrel, which cannot tell it, takes each to be of."""
    shift = state_dict.get('add_mean.bias')
    img_range = None if shift is None else image_range(shift)
    if img_range not in (None, SPANDRELS_RANGE):
        raise UserError(
            f'{where}: was trained with an rgb_range of {img_range}, but spandrel takes {SPANDRELS_RANGE}; '
            f'accepted: teacher.network: {_block(state_dict, "rcan", where)}, where res_scale is 1 for RCAN'
        )


def _block(state_dict: dict[str, Tensor], layout: str, where: str) -> str:
    """The ``network`` block that a checkpoint of an EDSR or RCAN determines, in YAML."""
    shift = None
    if layout != 'basicsr':
        state_dict, shift = to_basicsr(state_dict, layout, where)
    block = network_block(state_dict)
    if shift is not None and (img_range := image_range(shift)) is not None:
        block |= {'img_range': img_range, 'rgb_mean': _rounded(shift / img_range)}
    listed = ', '.join(f'{key}: {value}' for key, value in block.items())
    return f'{{{listed}, res_scale: ?}}'


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
