"""What is compared: bicubic, the networks of test files, and the teacher of a train file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.models.sr_model import SRModel
from basicsr.utils import tensor2img
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from facd_basicsr.archs import network_sizes
from facd_basicsr.archs.reparameterization import reparameterized
from facd_basicsr.distill.regressors import TapRegressors
from facd_basicsr.distill.taps import Taps
from facd_basicsr.distill.teacher import Teacher, build_teacher, local_weights, teacher_blocks
from facd_basicsr.errors import UserError, locating
from facd_basicsr.evaluation.complexity import parameters
from facd_basicsr.files.download import sha256_of
from facd_basicsr.files.state_dicts import basicsr_param_keys, load_exactly, load_state_dict
from facd_basicsr.options import check_inputs, load_options
from facd_basicsr.options.option_check import stages_of
from facd_basicsr.runs.benchmark_options import benchmark_options, check_sets
from facd_basicsr.runtime.execution import check_upscaled, reraise_refused_input
from facd_basicsr.runtime.metrics import as_input, bicubic
from facd_basicsr.runtime.size_requirements import Padded, SizeRequirements

BICUBIC, TEACHER = 'bicubic', 'teacher'


def teacher_names(opt: Mapping[str, Any]) -> list[str]:
    """What the teachers of an option dict are called in tables: ``teacher``, or of several ``teacher 1`` and so on."""
    count = len(teacher_blocks(opt.get('teacher')))
    return [TEACHER] * count if count == 1 else [f'{TEACHER} {number}' for number in range(1, count + 1)]


def is_teacher(name: str) -> bool:
    """Whether it is of :func:`teacher_names`."""
    return re.fullmatch(rf'{TEACHER}( \d+)?', name) is not None


PROBE_SIZE = 16  # of LQ


@dataclass
class Method:
    """One row of a table, one column of a figure.

    Attributes:
        name: what it is called there.
        scale: upscaling factor.
        net: the network, in eval mode on its device, RGB [0, 1] (N, 3, h, w) -> (N, 3, h * scale, w * scale), not
            clamped; None: bicubic.
        option_file: where it is described; empty for bicubic.
        checkpoint: where its weights are from; empty for bicubic.
        taps: where features are read, shallowest first; None: nowhere.
        regressors: what student features pass through before they are compared, of several teachers one's after the
            other's; None: they are compared as they are.
    """

    name: str
    scale: int
    net: nn.Module | None = None
    option_file: str = ''
    checkpoint: str = ''
    taps: Taps | None = None
    regressors: TapRegressors | None = None

    @property
    def network(self) -> nn.Module:
        """``net``, of a method that has one.

        Raises:
            TypeError: bicubic has none.
        """
        if self.net is None:
            raise TypeError(f'{self.name} has no network')
        return self.net

    @property
    def bare(self) -> nn.Module:
        """The network whose modules taps name."""
        return self.net.net if isinstance(self.net, (Padded, Teacher)) else self.network

    @property
    def padded(self) -> Padded:
        """The network on images of every size, without what a teacher's forward adds."""
        sizes = self.net.sizes if isinstance(self.net, (Padded, Teacher)) else SizeRequirements()
        return Padded(self.bare, self.scale, sizes)

    @property
    def parameters(self) -> int:
        """The network's, as it is deployed: re-parameterized."""
        return parameters(reparameterized(self.bare))

    @property
    def device(self) -> torch.device:
        """Where the network is; the CPU for bicubic."""
        return torch.device('cpu') if self.net is None else next(self.net.parameters()).device

    def output(self, lq: np.ndarray) -> Tensor:
        """BGR uint8 (h, w, 3) -> the network's RGB output, float32 (1, 3, h * scale, w * scale), not clamped."""
        x = self._input(lq)
        with torch.no_grad(), reraise_refused_input(self.name, self.bare, x):
            output = self.network(x)
        check_upscaled(self.name, self.bare, x, output, self.scale, channels=3)
        return output

    def upscale(self, lq: np.ndarray) -> np.ndarray:
        """BGR uint8 (h, w, 3) -> BGR uint8 (h * scale, w * scale, 3)."""
        return bicubic(lq, self.scale) if self.net is None else tensor2img(self.output(lq))

    def upscale_with_features(self, lq: np.ndarray) -> tuple[np.ndarray, tuple[Tensor, ...]]:
        """As :meth:`upscale`, with the features at the taps, (1, C_j, h_j, w_j) each; none without taps.

        Raises:
            UserError: a tap cannot be read, as a transformer's tokens of an image that it pads by itself.
        """
        if self.taps is None:
            return self.upscale(lq), ()
        x = self._input(lq)
        with torch.no_grad(), reraise_refused_input(self.name, self.bare, x):
            output, feats = self.taps.run(self.network, x)
            check_upscaled(self.name, self.bare, x, output, self.scale, channels=3)
            if self.regressors is not None:
                feats = self.regressors(feats * (len(self.regressors) // len(feats)))
            return tensor2img(output), feats

    def summary(self) -> dict[str, Any]:
        """Name, parameters, option file, checkpoint and the checkpoint's SHA-256, where it has them."""
        if self.net is None:
            return {'name': self.name}
        return {
            'name': self.name,
            'parameters': self.parameters,
            'option_file': self.option_file,
            'checkpoint': self.checkpoint,
            'sha256': sha256_of(Path(self.checkpoint)),
        }

    def _input(self, lq: np.ndarray) -> Tensor:
        # A network may work on its input in place (spandrel's RCAN does): each call has its own.
        return as_input(lq).to(self.device)


def load_methods(
    paths: Sequence[str],
    train_file: str | None,
    overrides: Sequence[str],
    runs: Sequence[str] = (),
    sets: Sequence[str] = (),
) -> tuple[list[Method], dict[str, Any], dict[str, Any] | None]:
    """Bicubic, the methods of test files and runs and, with a train file, its teachers, in this order.

    Args:
        paths: test files, one method each.
        train_file: the file that names the teachers; None: no teacher.
        overrides: ``--force_yml`` entries: those that begin with ``teacher`` are for the train file, the others for
            every test file and run.
        runs: folders ``experiments/NAME``, one method each.
        sets: that runs are tested on (:func:`facd_basicsr.runs.benchmark_options.benchmark_options`).

    Returns:
        The methods; the first method's options, whose sets are every method's; the train file's options.

    Raises:
        UserError: a file or checkpoint is not accepted, or a network does not take color images or has another scale.
    """
    for_teacher = [entry for entry in overrides if entry.startswith(('teacher:', 'teacher='))]
    if for_teacher and train_file is None:
        raise UserError(f'--force_yml: {for_teacher[0]}; accepted: with --teacher, the train file that has it')
    opts = read_test_files(paths, [entry for entry in overrides if entry not in for_teacher], runs, sets)
    paths = [*paths, *runs]
    scale = opts[0]['scale']
    train_opt = None if train_file is None else read_train_file(train_file, for_teacher, scale)
    device = device_of(opts)
    methods = [Method(BICUBIC, scale), *(build_student(path, opt, device) for path, opt in zip(paths, opts))]
    if train_file is not None and train_opt is not None:
        methods += build_teacher_methods(train_file, train_opt, device)
    for method in methods:
        method.upscale(np.full((PROBE_SIZE, PROBE_SIZE, 3), 128, np.uint8))
    return methods, opts[0], train_opt


def read_test_files(
    paths: Sequence[str], overrides: Sequence[str], runs: Sequence[str] = (), sets: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Options of test files and runs whose methods can stand side by side, checked.

    Args:
        overrides: ``--force_yml`` entries, applied to every file and run.

    Raises:
        UserError: a file is not accepted, its model does not simply run its network, its name is taken, or its
            scale or sets are not the first file's.
    """
    if not (paths or runs):
        raise UserError('-opt: missing; accepted: a test file, or --run experiments/NAME, for each method')
    check_sets(sets, runs)
    opts = [load_options(path, overrides, is_train=False) for path in paths]
    for run in runs:
        opts.append(benchmark_options(Path(run), sets, overrides))
        check_inputs(opts[-1], run, is_train=False)
    paths = [*paths, *runs]
    names = {BICUBIC: 'the row that is always there'}
    for path, opt in zip(paths, opts):
        taken = "--teacher's" if is_teacher(opt['name']) else names.get(opt['name'])
        if taken:
            raise UserError(f'{path}: name: {opt["name"]!r} is {taken}; accepted: a name for each method')
        names[opt['name']] = f'the name in {path} too'
        if getattr(MODEL_REGISTRY.get(opt['model_type']), 'test', None) is not SRModel.test:
            raise UserError(
                f'{path}: model_type: {opt["model_type"]} has its own test(); accepted here: models that '
                'test as SRModel does; test.py evaluates others'
            )
        if opt['scale'] != opts[0]['scale']:
            raise UserError(
                f'{path}: scale: {opt["scale"]}; accepted: {opts[0]["scale"]}, as in {paths[0]}, to stand in one table'
            )
        ours, first = _roots(opt), _roots(opts[0])
        if ours != first:
            differing = min(set(ours.items()) ^ set(first.items()), key=str)[0]
            raise UserError(
                f'{path}: datasets: {differing!r} is {ours.get(differing, "absent")}; accepted: '
                f'{first.get(differing, "absent")}, as in {paths[0]}, for all files need the same sets'
            )
    return opts


def _roots(opt: dict[str, Any]) -> dict[str, str]:
    """{set's name: its folders, as a message names them}."""
    keys = ('dataroot_gt', 'dataroot_lq', 'meta_info_file', 'meta_info')
    return {
        block['name']: ' and '.join(str(Path(block[key])) for key in keys if block.get(key) is not None)
        for block in opt['datasets'].values()
    }


def read_train_file(path: str, overrides: Sequence[str], scale: int) -> dict[str, Any]:
    """The train file that ``--teacher`` names. Its data need not be there.

    Raises:
        UserError: it is not accepted, has no teacher, or another scale.
    """
    with locating('--teacher'):
        opt = load_options(path, overrides, is_train=True, with_data=False)
    if 'teacher' not in opt:
        raise UserError(f'--teacher: {path} has no teacher block; accepted: a train file such as FACD_EDSR_x2.yml')
    if opt['scale'] != scale:
        raise UserError(f'--teacher: {path}: scale: {opt["scale"]}; accepted: {scale}, as in the test files')
    return list(stages_of(opt).values())[-1]  # of which the student's checkpoint is


def device_of(opts: Sequence[dict[str, Any]]) -> torch.device:
    """The GPU if there is one, unless an option file says ``num_gpu: 0``."""
    wanted = torch.cuda.is_available() and all(opt['num_gpu'] != 0 for opt in opts)
    return torch.device('cuda' if wanted else 'cpu')


def build_student(path: str, opt: dict[str, Any], device: torch.device) -> Method:
    """The method of a test file: ``network_g`` with the weights of ``path.pretrain_network_g``.

    Raises:
        UserError: the checkpoint cannot be read or does not fit exactly, whatever ``strict_load_g`` says.
    """
    checkpoint = opt['path']['pretrain_network_g']
    where = f'{path}: path.pretrain_network_g'
    net = build_network(opt['network_g'])
    param_keys = basicsr_param_keys(opt['path']['param_key_g'])
    state_dict = load_state_dict(checkpoint, where, [net.state_dict().keys()], param_keys)
    load_exactly(net, state_dict, f'{where}: {checkpoint}')
    sizes = network_sizes(net, opt['network_g'], opt['scale'])
    padded = Padded(net, opt['scale'], sizes).eval().requires_grad_(False).to(device)
    return Method(opt['name'], opt['scale'], padded, path, checkpoint)


def build_teacher_methods(path: str, opt: dict[str, Any], device: torch.device) -> list[Method]:
    """The teachers of a train file, as methods of these names.

    Raises:
        UserError: a checkpoint cannot be read or does not fit.
    """
    return [
        Method(name, opt['scale'], build_teacher(own, opt['scale'], place).to(device), path, str(local_weights(own)))
        for name, (place, own) in zip(teacher_names(opt), teacher_blocks(opt.get('teacher')).items())
    ]
