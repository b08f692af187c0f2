"""One distillation step inside BasicSR's loop."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from facd_basicsr.archs import CONVOLUTIONAL
from facd_basicsr.data.decoded_cache import CacheNotWrittenError
from facd_basicsr.data.memory_pairs import MemoryPairs
from facd_basicsr.distill.regressors import build_regressors, start_regressors
from facd_basicsr.distill.taps import Taps, paths_of_teachers
from facd_basicsr.distill.teacher import Teacher, build_teacher, local_weights, teacher_blocks
from facd_basicsr.errors import UserError
from facd_basicsr.files.download import sha256_of
from facd_basicsr.losses import DistillState
from facd_basicsr.losses.image import chosen, nearest
from facd_basicsr.losses.loss_sum import ImageTerm, LossSum
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.models.gan import GAN
from facd_basicsr.models.micro_batches import LQ, Batch, outputs_on
from facd_basicsr.models.safe_model import (
    PROBES,
    SafeModel,
    SafeSRModel,
    StudentOutputs,
    lq_patch_size,
    preserve_buffers,
    run_network,
)
from facd_basicsr.models.validation import validation_forward
from facd_basicsr.runtime.execution import Execution, check_upscaled, reraise_refused_input, tf32_of
from facd_basicsr.runtime.rng import preserve_rng_state

SMALL_PROBE_SIZE = 8  # if no part depends on it; CSD's VGG halves an x2 output of it four times


@MODEL_REGISTRY.register()
class FACDModel(SafeSRModel):
    """Trains ``net_g``, the student, against a frozen teacher, or several.

    Option blocks beyond SRModel's: ``teacher`` (docs/teachers.md), ``train.distill_opt`` (the loss), and for a loss
    that reads features ``taps`` (pairs of module paths) and ``network_r`` (the regressors). A teacher is built for
    training only, stays in eval, gets no gradient, is not wrapped in DDP and is never saved. Regressors are optimized
    with the student and saved as ``net_r_*.pth``; ``net_g_*.pth`` holds the student alone. ``train.precision``,
    ``train.channels_last`` and ``train.compile`` say how student and regressors are run in training, with ``_r`` the
    regressors if otherwise, in ``teacher`` the teacher; weights, losses and validation are float32.

    A network that no loss reads is not run, and a file whose losses read no teacher needs none. Inputs of one shape, LQ
    and views, are one batch, in which a batch normalization sees all of them. With ``train.ground_truth: false`` the
    teacher's output is ground truth for the losses.

    Attributes:
        teachers: in the option file's order.
        net_average: of the student, where a loss reads it; kept in the training state.

    Raises:
        UserError: taps, teacher, regressors or batch size do not fit together.
    """

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        self.net_g.train()
        self._init_ema(train_opt['ema_decay'])
        self._execution_r = Execution.of(train_opt, suffix='_r')
        self._init_precision(self._execution_g.precision, self._execution_r.precision)

        criterion = LossSum(train_opt['distill_opt'], train_opt.get('pixel_opt'), train_opt.get('perceptual_opt'))
        self.criterion = criterion.prepare().to(self.device)
        if len(self.criterion.steps()) > 1 and self.scaler.is_enabled():
            key = next(key for key in ('precision', 'precision_r', 'precision_d') if train_opt.get(key) == 'fp16')
            raise UserError(
                f'train.{key}: fp16; accepted with several optimizer steps an iteration: fp32, tf32 or bf16, since '
                'the gradients that they share would have two loss scales'
            )
        if not train_opt['ground_truth']:
            get_root_logger().info(
                "train.ground_truth: false: the teacher's output is in its place, so alpha of equation (1) is 1."
            )
        blocks = teacher_blocks(self.opt.get('teacher'))
        self.teachers = [build_teacher(own, self.opt['scale'], place).to(self.device) for place, own in blocks.items()]
        self._chooses_teacher = len(self.teachers) > 1 and train_opt['teacher_target'] == 'nearest'
        self.criterion.teachers = max(1, len(self.teachers))
        student = self.get_bare_model(self.net_g)
        if self.criterion.average is None and any('average' in own.networks for own in self.criterion.views.values()):
            raise UserError(
                'train.distill_opt: a view reads the average of the student, but its loss has none; accepted: a loss '
                'with average = Average(decay, every) (docs/extending.md)'
            )
        if self.criterion.average is not None:
            self.net_average: nn.Module = deepcopy(self._averaged()).requires_grad_(False).eval()
        with preserve_buffers(student):
            self._try_networks()
            taps = self.opt['taps']
            self.student_taps = Taps(student, [tap['student'] for tap in taps], 'student')
            of_teachers = zip(self.teachers, paths_of_teachers(taps, len(self.teachers)))
            self.teacher_taps = [Taps(teacher.net, paths, teacher.place) for teacher, paths in of_teachers]
            self.net_r = self._build_regressors()
            self._run_student = self.student_taps.run
            self._run_teachers = [own.run for own in self.teacher_taps]
            self._run_average = self._run_regressors = run_network
            self._init_r: str | None = None  # not by a probe
            self._init_gan()
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
        for teacher in self.teachers:
            self._teacher_probed(teacher, run_network, lq)

    def _averaged(self) -> nn.Module:
        return self.net_g_ema if self.ema_decay > 0 else self.get_bare_model(self.net_g)

    def _student_probed(self, run: Callable[[nn.Module, Tensor], Any], lq: Tensor) -> Any:
        net_g = self.get_bare_model(self.net_g)
        refused = reraise_refused_input('network_g', net_g, lq, self.accepted_patches)
        with torch.no_grad(), refused, self._execution_g.reraise_layout_errors('train'):
            return run(net_g, self._execution_g.laid_out(lq))

    def _teacher_probed(self, teacher: Teacher, run: Callable[[nn.Module, Tensor], Any], lq: Tensor) -> Any:
        refused = reraise_refused_input(teacher.place, teacher.net, lq)
        with refused, teacher.execution.reraise_layout_errors(teacher.place):
            return run(teacher, lq)

    def probe_taps(self, size: int | None = None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """:meth:`tapped` of flat patches of ``size``, the training patch's if None: (N, C_j, h, w) each."""
        return self.tapped(self._flat(PROBES, size or lq_patch_size(self.opt)))

    def tapped(self, lq: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The student's and the teacher's features, (N, C_j, h, w) each, without gradient and before the regressors; of
        several teachers one's after the other's, each time with the student's."""
        _, student_feats = self._student_probed(self.student_taps.run, lq)
        by_teacher = [self._teacher_probed(own, taps.run, lq)[1] for own, taps in zip(self.teachers, self.teacher_taps)]
        return student_feats * len(by_teacher), sum(by_teacher, ())

    def _build_regressors(self) -> nn.Module | None:
        """Reads the taps' shapes off a probe, then builds and loads the regressors, wrapped for the device."""
        student_feats, teacher_feats = self.probe_taps(self._probe_size())
        self.criterion.check_widths(student_feats, teacher_feats)
        network_opt = self.opt.get('network_r')
        mode, teachers = self.criterion.regressor, len(self.teachers)
        net_r = build_regressors(network_opt, mode, student_feats, teacher_feats, teachers)
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
        nets = [self.get_bare_model(self.net_g), *(teacher.net for teacher in self.teachers)]
        of_any_size = all(type(net) in CONVOLUTIONAL for net in nets)
        of_any_size &= all(
            type(loss).__module__.startswith('facd_basicsr.losses.') and not isinstance(loss, ImageTerm)
            for loss in self.criterion
        )
        of_any_size &= self.opt.get('network_r', {'type': 'DeepRegressor'})['type'] == 'DeepRegressor'
        size = lq_patch_size(self.opt)
        return min(SMALL_PROBE_SIZE, size) if of_any_size else size

    def _init_gan(self) -> None:
        """Builds and loads the discriminator, where there is a ``gan_opt``, and tries it on a patch.

        Raises:
            UserError: it does not take the patches of ground truth.
        """
        train_opt, path_opt = self.opt['train'], self.opt['path']
        if not train_opt.get('gan_opt'):
            return
        execution = Execution.of(train_opt, suffix='_d')
        net_d = build_network(self.opt['network_d']).to(self.device)
        self.print_network(net_d)
        if path_opt['pretrain_network_d'] is not None:
            strict, param_key = path_opt['strict_load_d'], path_opt['param_key_d']
            self.load_network(net_d, path_opt['pretrain_network_d'], strict, param_key)
        flat = self._flat(PROBES, lq_patch_size(self.opt) * self.opt['scale'])
        refused = reraise_refused_input('network_d', net_d, flat, 'a discriminator of patches of gt_size', 'patches')
        with torch.no_grad(), preserve_buffers(net_d), refused:
            net_d(flat)
        self.net_d = SafeModel.model_to_device(self, execution.lay_out(net_d)).train()
        iters, init_iters = train_opt['net_d_iters'], train_opt['net_d_init_iters']
        self.gan = GAN(train_opt['gan_opt'], self.net_d, execution, self.device, iters, init_iters)

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
            self.criterion(self.distill_state(Batch(lq, torch.zeros_like(self.net_g(lq)))))

    def _compile(self) -> None:
        """Called after all probes, which have other shapes. Validation runs uncompiled: its images differ in size."""
        self._run_student = self._execution_g.compiled(self._run_student, 'train.compile')
        self._run_average = self._execution_g.compiled(self._run_average, 'train.compile')
        self._run_regressors = self._execution_r.compiled(self._run_regressors, 'train.compile_r')
        self._run_teachers = [
            own.execution.compiled(run, f'{own.place}.compile') for own, run in zip(self.teachers, self._run_teachers)
        ]

    def setup_optimizers(self) -> None:
        train_opt = self.opt['train']
        nets = [self.net_g] if self.net_r is None else [self.net_g, self.net_r]
        optim_params = [p for net in nets for p in net.parameters() if p.requires_grad]
        self.optimizer_g = self._built_optimizer(train_opt['optim_g'], optim_params)
        if self.gan is not None:
            self.optimizer_d = self._built_optimizer(train_opt['optim_d'], self.net_d.parameters())

    def _built_optimizer(self, optim_opt: Mapping[str, Any], params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        options = {key: value for key, value in optim_opt.items() if key != 'type'}
        optimizer = self.get_optimizer(optim_opt['type'], params, **options)
        self.optimizers.append(optimizer)
        return optimizer

    def _student(self, inputs: Mapping[str, Tensor], bare: bool = False) -> StudentOutputs:
        net_g, net_r = (net and self.get_bare_model(net) if bare else net for net in (self.net_g, self.net_r))
        with self._execution_g.autocast(self.device):
            outputs, feats = outputs_on(lambda lq: self._run_student(net_g, self._execution_g.laid_out(lq)), inputs)
        are_read = feats and self.criterion.weighs_features
        regressed_feats = () if net_r is None or not are_read else self._regressed(net_r, feats)
        return {name: at_least_float32(output) for name, output in outputs.items()}, feats, regressed_feats

    def _batch(self) -> Batch:
        return super()._batch() if self.opt['train']['ground_truth'] else Batch(self.lq, None, self.seeds, self.taught)

    def _real(self, state: DistillState) -> Tensor:
        return super()._real(state) if self.opt['train']['ground_truth'] else state.gt

    def distill_state(
        self, batch: Batch, iteration: int = 0, criterion: LossSum | None = None, bare: bool = False
    ) -> DistillState:
        lq = batch.lq
        self._start_regressors(lq)
        criterion = criterion or self.criterion
        criterion.begin(iteration)
        views, none = criterion.views, lq.new_empty(0)
        reads = {*criterion.reads}
        reads |= {'teacher'} if self._chooses_teacher and 'teacher' in criterion.networks else set()
        reads |= {'student'} if self.gan is not None else set()

        def asked(network: str) -> dict[str, Tensor]:
            of_views = {name: inputs[name] for name, view in views.items() if network in view.networks}
            return ({LQ: lq} if network in reads else {}) | of_views

        with torch.no_grad():
            outputs_t = {} if batch.taught is None else {LQ: batch.taught}
            teacher_feats: tuple[Tensor, ...] = ()
            if batch.gt is None and not outputs_t:
                outputs_t, teacher_feats, _ = self._taught({LQ: lq})
            gt = outputs_t[LQ] if batch.gt is None else batch.gt
            seen = DistillState(none, none, gt, lq, (), (), iteration=iteration, seeds=batch.seeds)
            inputs = {name: view.derive(seen) for name, view in views.items() if view.networks != ('student',)}
            missing = {name: images for name, images in asked('teacher').items() if name not in outputs_t}
            found, feats_t, taught_by = self._taught(missing, gt)
            outputs_t, teacher_feats = outputs_t | found, teacher_feats + feats_t
            averaged, _ = outputs_on(self._average, asked('average'))
            seen = replace(seen, teacher=outputs_t.get(LQ, none), taught_by=taught_by, percep_gt=batch.percep_gt)
            inputs |= {name: view.derive(seen) for name, view in views.items() if name not in inputs}
        outputs, feats, regressed_feats = self._student(asked('student'), bare)
        of_network = {'student': outputs, 'teacher': outputs_t, 'average': averaged}
        return replace(
            seen,
            student=outputs.get(LQ, none),
            student_feats=feats,
            teacher_feats=teacher_feats,
            regressed_feats=regressed_feats,
            views={
                name: {'input': inputs[name], **{network: of_network[network][name] for network in view.networks}}
                for name, view in views.items()
            },
        )

    def _taught(
        self, inputs: Mapping[str, Tensor], gt: Tensor | None = None
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...], Tensor | None]:
        """What the teachers give for each input, their features on LQ, and the index of the one that teaches each
        sample, (N,), if it is one. Outputs are the teachers' mean, or the nearest's."""
        outputs: list[dict[str, Tensor]] = []
        feats: list[Tensor] = []
        for teacher, run in zip(self.teachers, self._run_teachers):
            with tf32_of(teacher.execution.precision):
                own, found = outputs_on(partial(run, teacher), inputs)
            outputs.append(own)
            feats += map(at_least_float32, found)
        if len(outputs) <= 1:
            return outputs[0] if outputs else {}, tuple(feats), None
        stacked = {name: torch.stack([own[name] for own in outputs]) for name in inputs}  # (T, M, C, h, w)
        if not self._chooses_teacher or not inputs or gt is None:
            return {name: own.mean(0) for name, own in stacked.items()}, tuple(feats), None
        taught_by = nearest(stacked[LQ], gt)  # (N,)
        return {name: chosen(own, taught_by) for name, own in stacked.items()}, tuple(feats), taught_by

    def read_taught(self, dataset: Any) -> None:
        """Lets the samples of the training set, without its wrappers, have the teacher's images (``teacher.cache``).
        After a warning the teacher is run in every iteration, where they cannot be kept."""
        (teacher,), (teacher_opt,) = self.teachers, teacher_blocks(self.opt['teacher']).values()

        def teach(lq: Tensor) -> Tensor:
            lq = lq.to(self.device)
            with reraise_refused_input('teacher', teacher.net, lq), tf32_of(teacher.execution.precision):
                return validation_forward(teacher, lq, self.opt['scale'], 0, 0)

        made_by = [sha256_of(local_weights(teacher_opt)), teacher_opt.get('network'), teacher_opt['precision']]
        try:
            reads = 'teacher' in self.criterion.reads or not self.opt['train']['ground_truth']
            if reads and isinstance(dataset, MemoryPairs):  # or there was a warning
                with preserve_rng_state():
                    dataset.read_taught(teach, made_by)
        except CacheNotWrittenError as error:
            get_root_logger().warning(
                f'teacher.cache: {error}; accepted: that space in a writable folder. The teacher is run in every '
                'iteration, which is slower; docs/teachers.md#images-from-a-cache'
            )

    def _average(self, lq: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with self._execution_g.autocast(self.device):
            return at_least_float32(self._run_average(self.net_average, self._execution_g.laid_out(lq))), ()

    def _start_regressors(self, lq: Tensor) -> None:
        """Nothing, but on the first batch of a run whose regressors are new (``train.init_r``)."""
        if self.net_r is not None and self._init_r not in (None, 'random'):
            with preserve_rng_state(), preserve_buffers(self.get_bare_model(self.net_g)):
                parts = [self.tapped(part) for part in lq.chunk(self.accum_iter)]
            net_r = self.get_bare_model(self.net_r)
            student_feats, teacher_feats = (tuple(map(torch.cat, zip(*own))) for own in zip(*parts))
            for line in start_regressors(net_r, self._init_r, student_feats, teacher_feats, len(self.teachers)):
                get_root_logger().info(line)
        self._init_r = None

    def _regressed(self, net_r: nn.Module, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._execution_r.dtype is None:
            feats = tuple(map(at_least_float32, feats))  # the student's precision may be another
        with self._execution_r.autocast(self.device):
            return self._run_regressors(net_r, tuple(map(self._execution_r.laid_out, feats)) * len(self.teachers))

    def optimize_parameters(self, current_iter: int) -> None:
        self._start_regressors(self.lq)  # on the whole batch, though it may go on in parts
        with self._execution_r.reraise_compile_errors('train.compile_r'):
            super().optimize_parameters(current_iter)
        average = self.criterion.average
        if average is not None and current_iter % average.every == 0:
            self._update_average(average.decay)

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        student = self._averaged()
        for average, value in zip(self.net_average.parameters(), student.parameters()):
            average.lerp_(value, 1 - decay)
        for buffer, now in zip(self.net_average.buffers(), student.buffers()):
            buffer.copy_(now)

    def training_state(self) -> dict[str, Any]:
        average = {} if self.criterion.average is None else {'average': self.net_average.state_dict()}
        return {**super().training_state(), **average}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        if self.criterion.average is not None and 'average' in resume_state:
            self.net_average.load_state_dict(resume_state['average'])

    def _losses(self, criterion: LossSum, state: DistillState, first: bool = True) -> dict[str, Tensor]:
        logs = super()._losses(criterion, state, first)
        if state.taught_by is not None:
            for number in range(len(self.teachers)):
                logs[f'teacher_{number + 1}'] = (state.taught_by == number).to(state.gt.dtype).mean()
        return logs

    def save(self, epoch: int, current_iter: int) -> None:
        if self.net_r is not None:
            self.save_network(self.net_r, 'net_r', current_iter)
        super().save(epoch, current_iter)
