"""One distillation step inside BasicSR's loop."""

from collections.abc import Callable
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from facd_basicsr.archs import CONVOLUTIONAL, input_channels
from facd_basicsr.distill.regressors import build_regressors, start_regressors
from facd_basicsr.distill.taps import Taps
from facd_basicsr.distill.teacher import build_teacher
from facd_basicsr.errors import UserError
from facd_basicsr.losses import DistillState
from facd_basicsr.losses.loss_sum import ImageTerm, LossSum
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.models.safe_model import PROBES, SafeModel, SafeSRModel, lq_patch_size, preserve_buffers, run_network
from facd_basicsr.runtime.execution import Execution, check_upscaled, reraise_refused_input, tf32_of
from facd_basicsr.runtime.rng import preserve_rng_state

SMALL_PROBE_SIZE = 8  # if no part depends on it; CSD's VGG halves an x2 output of it four times


@MODEL_REGISTRY.register()
class FACDModel(SafeSRModel):
    """Trains ``net_g``, the student, against a frozen teacher.

    Option blocks beyond SRModel's: ``teacher`` (docs/teachers.md), ``train.distill_opt`` (the loss), and for a loss
    that reads features ``taps`` (pairs of module paths) and ``network_r`` (the regressors). The teacher is built for
    training only, stays in eval, gets no gradient, is not wrapped in DDP and is never saved. Regressors are optimized
    with the student and saved as ``net_r_*.pth``; ``net_g_*.pth`` holds the student alone. ``train.precision``,
    ``train.channels_last`` and ``train.compile`` say how student and regressors are run in training, with ``_r`` the
    regressors if otherwise, in ``teacher`` the teacher; weights, losses and validation are float32.

    Raises:
        UserError: taps, teacher, regressors or batch size do not fit together.
    """

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        self.net_g.train()
        self._init_ema(train_opt['ema_decay'])
        self._execution_r = Execution.of(train_opt, suffix='_r')
        self._init_precision(self._execution_g.precision, self._execution_r.precision)

        self.criterion = LossSum(train_opt['distill_opt'], train_opt.get('pixel_opt')).prepare().to(self.device)
        self.teacher = build_teacher(self.opt['teacher'], self.opt['scale']).to(self.device)
        student = self.get_bare_model(self.net_g)
        with preserve_buffers(student):
            self._try_networks()
            taps = self.opt['taps']
            self.student_taps = Taps(student, [tap['student'] for tap in taps], 'student')
            self.teacher_taps = Taps(self.teacher.net, [tap['teacher'] for tap in taps], 'teacher')
            self.net_r = self._build_regressors()
            self._run_student, self._run_teacher = self.student_taps.run, self.teacher_taps.run
            self._run_regressors = run_network
            self._init_r: str | None = None  # not by a probe
            self._try_loss()
        self._compile()
        if self.net_r is not None and self.opt['path']['pretrain_network_r'] is None:  # what is resumed has started
            self._init_r = train_opt['init_r']

        self.setup_optimizers()
        self.setup_schedulers()

    def _try_networks(self) -> None:
        """Refuses networks that are none for super-resolution before their taps, which would be blamed."""
        lq = self._flat(PROBES, self._probe_size())
        sr = self._student_probed(run_network, lq)
        check_upscaled('network_g', self.get_bare_model(self.net_g), lq, sr, self.opt['scale'], channels=lq.shape[1])
        self._teacher_probed(run_network, lq)

    def _student_probed(self, run: Callable[[nn.Module, Tensor], Any], lq: Tensor) -> Any:
        net_g = self.get_bare_model(self.net_g)
        refused = reraise_refused_input('network_g', net_g, lq, self.accepted_patches)
        with torch.no_grad(), refused, self._execution_g.reraise_layout_errors('train'):
            return run(net_g, self._execution_g.laid_out(lq))

    def _teacher_probed(self, run: Callable[[nn.Module, Tensor], Any], lq: Tensor) -> Any:
        refused = reraise_refused_input('teacher', self.teacher.net, lq)
        with refused, self.teacher.execution.reraise_layout_errors('teacher'):
            return run(self.teacher, lq)

    def probe_taps(self, size: int | None = None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """:meth:`tapped` of flat patches of ``size``, the training patch's if None: (N, C_j, h, w) each."""
        return self.tapped(self._flat(PROBES, size or lq_patch_size(self.opt)))

    def tapped(self, lq: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The student's and the teacher's features, (N, C_j, h, w) each, without gradient and before the regressors."""
        _, student_feats = self._student_probed(self.student_taps.run, lq)
        _, teacher_feats = self._teacher_probed(self.teacher_taps.run, lq)
        return student_feats, teacher_feats

    def _build_regressors(self) -> nn.Module | None:
        """Reads the taps' shapes off a probe, then builds and loads the regressors, wrapped for the device."""
        student_feats, teacher_feats = self.probe_taps(self._probe_size())
        self.criterion.check_widths(student_feats, teacher_feats)
        network_opt = self.opt.get('network_r')
        net_r = build_regressors(network_opt, self.criterion.regressor, student_feats, teacher_feats)
        if net_r is None:
            return None
        self.print_network(net_r)
        path_opt = self.opt['path']
        if path_opt['pretrain_network_r'] is not None:
            strict, param_key = path_opt['strict_load_r'], path_opt['param_key_r']
            self.load_network(net_r, path_opt['pretrain_network_r'], strict, param_key)
        return SafeModel.model_to_device(self, self._execution_r.lay_out(net_r)).train()  # not in the student's format

    def _probe_size(self) -> int:
        """Height and width of LQ to probe with.

        The training patch's, since what a transformer does depends on it. A smaller one where all parts are known to
        take any size and to give as many channels: the paper's EDSR teacher takes a CPU seconds for each patch.
        """
        nets = self.get_bare_model(self.net_g), self.teacher.net
        of_any_size = all(type(net) in CONVOLUTIONAL for net in nets)
        of_any_size &= all(
            type(loss).__module__.startswith('facd_basicsr.losses.') and not isinstance(loss, ImageTerm)
            for loss in self.criterion
        )
        of_any_size &= self.opt.get('network_r', {'type': 'DeepRegressor'})['type'] == 'DeepRegressor'
        size = lq_patch_size(self.opt)
        return min(SMALL_PROBE_SIZE, size) if of_any_size else size

    def _flat(self, batch_size: int, size: int) -> Tensor:
        channels = input_channels(self.opt['network_g'])
        return torch.full((batch_size, channels, size, size), 0.5, device=self.device)

    def _try_loss(self) -> None:
        """Evaluates the loss on a small flat batch, so that what it refuses is refused before training."""
        batch_size = self.opt['datasets']['train']['batch_size_per_gpu']
        for loss in self.criterion:
            if batch_size * self.opt['world_size'] < loss.min_batch:
                raise UserError(
                    f'datasets.train.batch_size_per_gpu: {batch_size}; accepted: {loss.min_batch} or more over all '
                    f'ranks, since {type(loss).__name__} compares samples of a batch'
                )
        lq = self._flat(min(batch_size, max(2, self.criterion.min_batch)), self._probe_size())
        with torch.no_grad():
            self.criterion(self.distill_state(lq, torch.zeros_like(self.net_g(lq))))

    def _compile(self) -> None:
        """Called after all probes, which have other shapes. Validation runs uncompiled: its images differ in size."""
        self._run_student = self._execution_g.compiled(self._run_student, 'train.compile')
        self._run_regressors = self._execution_r.compiled(self._run_regressors, 'train.compile_r')
        self._run_teacher = self.teacher.execution.compiled(self._run_teacher, 'teacher.compile')

    def setup_optimizers(self) -> None:
        train_opt = self.opt['train']
        nets = [self.net_g] if self.net_r is None else [self.net_g, self.net_r]
        optim_params = [p for net in nets for p in net.parameters() if p.requires_grad]
        optim_opt = {key: value for key, value in train_opt['optim_g'].items() if key != 'type'}
        self.optimizer_g = self.get_optimizer(train_opt['optim_g']['type'], optim_params, **optim_opt)
        self.optimizers.append(self.optimizer_g)

    def _student(self, lq: Tensor, bare: bool = False) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        net_g, net_r = (net and self.get_bare_model(net) if bare else net for net in (self.net_g, self.net_r))
        with self._execution_g.autocast(self.device):
            student, feats = self._run_student(net_g, self._execution_g.laid_out(lq))
        return at_least_float32(student), feats, () if net_r is None else self._regressed(net_r, feats)

    def distill_state(self, lq: Tensor, gt: Tensor, iteration: int = 0, bare: bool = False) -> DistillState:
        self._start_regressors(lq)
        student, feats, regressed_feats = self._student(lq, bare)
        with tf32_of(self.teacher.execution.precision):
            teacher, teacher_feats = self._run_teacher(self.teacher, lq)
        teacher_feats = tuple(map(at_least_float32, teacher_feats))
        return DistillState(student, teacher, gt, lq, feats, teacher_feats, regressed_feats, iteration)

    def _start_regressors(self, lq: Tensor) -> None:
        """Nothing, but on the first batch of a run whose regressors are new (``train.init_r``)."""
        if self.net_r is not None and self._init_r not in (None, 'random'):
            with preserve_rng_state(), preserve_buffers(self.get_bare_model(self.net_g)):
                parts = [self.tapped(part) for part in lq.chunk(self.accum_iter)]
            feats = (tuple(map(torch.cat, zip(*own))) for own in zip(*parts))
            for line in start_regressors(self.get_bare_model(self.net_r), self._init_r, *feats):
                get_root_logger().info(line)
        self._init_r = None

    def _regressed(self, net_r: nn.Module, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._execution_r.dtype is None:
            feats = tuple(map(at_least_float32, feats))  # the student's precision may be another
        with self._execution_r.autocast(self.device):
            return self._run_regressors(net_r, tuple(map(self._execution_r.laid_out, feats)))

    def optimize_parameters(self, current_iter: int) -> None:
        self._start_regressors(self.lq)  # on the whole batch, though it may go on in parts
        with self._execution_r.reraise_compile_errors('train.compile_r'):
            super().optimize_parameters(current_iter)

    def save(self, epoch: int, current_iter: int) -> None:
        if self.net_r is not None:
            self.save_network(self.net_r, 'net_r', current_iter)
        super().save(epoch, current_iter)
