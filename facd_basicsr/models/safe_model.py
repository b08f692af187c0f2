"""What BasicSR's models lack: atomic saves, validation by all ranks, DDP without GPUs, and for SRModel
the ways to run a network that FACDModel has."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from basicsr.archs import build_network
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import LOSS_REGISTRY, MODEL_REGISTRY
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from facd_basicsr.archs import CONVOLUTIONAL, input_channels, unused_in_training
from facd_basicsr.archs.reparameterization import fused_blocks
from facd_basicsr.archs.spandrel_arch import update_derived
from facd_basicsr.data.seeded_dataset import dataset_of
from facd_basicsr.distill.teacher import teacher_blocks
from facd_basicsr.errors import UserError, one_line, reraise
from facd_basicsr.files.atomic import atomic_torch_save
from facd_basicsr.files.state_dicts import (
    basicsr_param_keys,
    check_fit,
    load_entry,
    load_other_entry,
    part_of,
    partial_fit,
)
from facd_basicsr.losses.base import DistillState, sum_of
from facd_basicsr.losses.loss_sum import LossSum
from facd_basicsr.losses.pairwise import at_least_float32
from facd_basicsr.models.degradation import degradation_of
from facd_basicsr.models.gan import GAN
from facd_basicsr.models.micro_batches import LQ, Batch, gradient_shares, joined, of_student, outputs_on, student_inputs
from facd_basicsr.models.nonfinite import NonFiniteGuard, tie_gradient
from facd_basicsr.models.validation import (
    Interruptible,
    feed_data_non_blocking,
    validate,
    validated_receptive_field,
    validated_sizes,
    validates_itself,
)
from facd_basicsr.runtime.execution import TAKEN, Execution, reraise_refused_input, set_tf32, uncompiled
from facd_basicsr.runtime.fake_quantization import QUANTIZATION, FakeQuantization
from facd_basicsr.runtime.processes import Ranks
from facd_basicsr.runtime.rng import preserve_rng_state, restore_rng_state, rng_state
from facd_basicsr.runtime.size_requirements import SizeRequirements

StudentOutputs = tuple[dict[str, Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]
Parts = Sequence[tuple[DistillState, dict[str, Any]]]  # of a batch (models/micro_batches.py)

PROBES = 2  # samples: in training a batch normalization may refuse one
PROBE_LQ_SIZE = 16  # of LQ, where the training set has no gt_size
# float16's, at the start. Unscaled, the gradient of l_sr at conv_last's output, 6e-7 for 16 patches of 192 x 192, is
# below its normal numbers (6e-5). With torch's 2**16 the gradient of conv_last's weights, up to 24 in the first
# iterations of the paper's students, is above its largest (65504): the first steps would be lost to halving.
LOSS_SCALE = 2.0**10
# What a scheduler has counted. The rest of its state is its options: BasicSR lets a state's overrule the option file's.
SCHEDULER_PROGRESS = ('last_epoch', '_step_count', '_last_lr', 'base_lrs')


class SafeModel(BaseModel):
    """To be inherited before a BasicSR model; :func:`build_model` does it for those that do not.

    Attributes:
        guard: of losses and gradients that are not finite, in training.
        partly_loaded: of each network that was loaded without ``strict_load``, a line that says how much of it.
        reach: receptive field radius beyond the tiles of ``val.tile``; 0 without tiles.
        quantization: of ``net_g`` and its averages (``train.quantize``), or none.
    """

    guard: NonFiniteGuard
    quantization: FakeQuantization | None = None

    def __init__(self, opt: dict[str, Any]) -> None:
        self.best_metric_results: dict[str, dict[str, Any]] = {}
        self.partly_loaded: list[str] = []
        super().__init__(opt)
        self.reach = validated_receptive_field(self, self.sizes)
        if self.is_train:
            folder = Path(self.opt['path']['experiments_root'], 'nonfinite')
            train_opt = self.opt['train']
            self.guard = NonFiniteGuard(
                self._networks(),
                **train_opt['nonfinite'],
                folder=folder,
                clip_grad_norm=train_opt.get('clip_grad_norm'),
            )
            self._attach_guard()

    @cached_property
    def sizes(self) -> SizeRequirements:
        """Those of LQ that ``net_g`` takes: images of validation are padded to them, training patches are not."""
        return validated_sizes(self)

    @property
    def accepted_patches(self) -> str:
        """What training patches ``net_g`` takes, for messages after "accepted"."""
        if self.sizes == SizeRequirements():
            return TAKEN
        multiple, least = (self.opt['scale'] * size for size in (self.sizes.multiple_of, self.sizes.minimum))
        return f'a datasets.train.gt_size that is a multiple of {multiple}, {least} or more'

    def _networks(self) -> dict[str, nn.Module]:
        """Those of the option file's ``network_*`` blocks, without DDP: ``net_g`` is ``network_g``'s."""
        names = [key.replace('network_', 'net_', 1) for key in self.opt if key.startswith('network_')]
        return {name: self.get_bare_model(net) for name in names if (net := vars(self).get(name)) is not None}

    def _attach_guard(self) -> None:
        """To BasicSR's ``optimize_parameters``, which does not call it."""
        registered = {loss for _, loss in LOSS_REGISTRY}
        losses = [module for module in vars(self).values() if type(module) in registered]
        self.guard.attach_hooks(self.optimizers, losses, self.get_current_log)

    @master_only
    def save_network(
        self,
        net: nn.Module | Sequence[nn.Module],
        net_label: str,
        current_iter: int | str,
        param_key: str | Sequence[str] = 'params',
    ) -> None:
        """As BasicSR's, but atomically, where BasicSR gives up after three errors and trains on.

        Raises:
            OSError: the disk is full, or may not be written.
        """
        nets = [net] if isinstance(net, nn.Module) else net
        param_keys = [param_key] if isinstance(param_key, str) else param_key
        for net in nets:
            update_derived(net)
        content: dict[str, Any] = {
            key: {name: value.cpu() for name, value in self.get_bare_model(net).state_dict().items()}
            for net, key in zip(nets, param_keys)
        }
        if net_label == 'net_g' and self.quantization is not None and (entry := self.quantization.entry()):
            content[QUANTIZATION] = entry
        name = f'{net_label}_{"latest" if current_iter == -1 else current_iter}.pth'
        atomic_torch_save(content, Path(self.opt['path']['models'], name))

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        """As BasicSR's, from any file that :func:`facd_basicsr.files.state_dicts.load_state_dict` reads.

        Without ``strict`` what fits is loaded. The rest of the moving average begins as the student's: BasicSR's begins
        with random weights of its own.

        Raises:
            UserError: the checkpoint cannot be read, does not fit under ``strict``, or has nothing that fits.
        """
        where = next((f'path.{key}' for key, value in self.opt['path'].items() if value == load_path), 'path')
        bare = self.get_bare_model(net)
        found, state_dict, line = _read_for(bare, load_path, where, param_key, strict)
        get_root_logger().info(f'Loading {type(bare).__name__} model from {load_path}, with param key: [{found}].')
        if line and line not in self.partly_loaded:
            self.partly_loaded.append(line)
            get_root_logger().info(line)
        if not strict and net is vars(self).get('net_g_ema'):
            bare.load_state_dict(self.get_bare_model(self.net_g).state_dict())
        bare.load_state_dict(state_dict, strict=strict)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Nothing: engine/checkpoint.py writes it, with the loop's part and after all networks."""

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> Optimizer:
        """Any of torch's, where BasicSR knows Adam alone, and on a GPU fused, of those that can be, if the option file
        does not choose: it then skips steps without being told to by the host (models/nonfinite.py), and its step is
        one kernel.

        Raises:
            UserError: there is nothing to train.
        """
        params = list(params)
        if not params:
            network = self.opt['network_g']['type']
            raise UserError(f'network_g: {network} has no weights to train; accepted: a network that has')
        cls = getattr(torch.optim, optim_type)
        can_be_fused = 'fused' in signature(cls).parameters
        can_be_fused &= kwargs.get('foreach') is None
        can_be_fused &= optim_type != 'Adagrad'  # whose kernel older torch has for CPUs only
        if self.device.type == 'cuda' and can_be_fused and kwargs.get('fused') is None:
            kwargs['fused'] = True
        optimizer = cls(params, lr, **kwargs)
        if kwargs.get('fused') and kwargs.get('momentum'):  # or SGD, if the first step is skipped, begins with any bits
            for parameter in params:
                optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)
        return optimizer

    def degraded(self, data: dict[str, Any], pool: bool = True) -> dict[str, Any]:
        """A batch of the training set as ``feed_data`` takes it: as it is, of BasicSR's own models."""
        return data

    def pool_state(self) -> dict[str, Any] | None:
        """What of the training state each rank has for itself, beside its random numbers: the pool of training pairs,
        if there is one."""
        return None

    def training_state(self) -> dict[str, Any]:
        """The training state besides the networks, as ``weights_only`` loading accepts it."""
        return {
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'optimizer_types': [type(optimizer).__name__ for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'best_metric_results': {
                name: {metric: {**found, 'val': float(found['val'])} for metric, found in metrics.items()}
                for name, metrics in self.best_metric_results.items()
            },
            'nonfinite': self.guard.state_dict(),
        }

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Restores :meth:`training_state`.

        Raises:
            UserError: it is of other networks or another optimizer.
        """
        found = resume_state.get('optimizer_types', ['Adam'] * len(self.optimizers))  # the only one of BasicSR's
        types = [type(optimizer).__name__ for optimizer in self.optimizers]
        if found != types:
            raise UserError(
                f'train.optim_g.type: {", ".join(types)}, but {self.opt["path"]["resume_state"]} is of '
                f'{", ".join(found)}; accepted: the same, or a new run from path.pretrain_network_g'
            )
        settings = [_settings(optimizer) for optimizer in self.optimizers]
        try:
            for optimizer, state in zip(self.optimizers, resume_state['optimizers'], strict=True):
                optimizer.load_state_dict(_with_implementation(optimizer, state))
                _lay_out_as_parameters(optimizer)
            for scheduler, state in zip(self.schedulers, resume_state['schedulers'], strict=True):
                scheduler.load_state_dict({key: state[key] for key in SCHEDULER_PROGRESS if key in state})
        except (ValueError, KeyError) as error:
            raise UserError(
                f'path.resume_state: {self.opt["path"]["resume_state"]} does not fit the networks and optimizers of '
                f'the option file ({one_line(error)}); accepted: a state of the same'
            ) from error
        for block, own, optimizer in zip(('optim_g', 'optim_d'), settings, self.optimizers):
            for key, value in _settings(optimizer).items():
                if key in own and own[key] != value:
                    get_root_logger().warning(
                        f'train.{block}.{key}: {own[key]} in the option file, but the resumed optimizer continues with '
                        f'{value}.'
                    )
        self._resume_best(resume_state.get('best_metric_results', {}))
        self.guard.load_state_dict(resume_state.get('nonfinite', {}))

    def _resume_best(self, results: dict[str, dict[str, Any]]) -> None:
        """Restores the best metrics of the sets whose metrics are still those of the option file."""
        metrics = (self.opt['val'] or {}).get('metrics') or {}
        better = {metric: metric_opt.get('better', 'higher') for metric, metric_opt in metrics.items()}
        self.best_metric_results = {
            name: {metric: found[metric] for metric in metrics}
            for name, found in results.items()
            if {metric: best['better'] for metric, best in found.items()} == better
        }

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As BasicSR's, which asks CUDA for a device even in a run without GPUs."""
        if self.opt['dist']:
            return self._in_ddp(net, self.opt['find_unused_parameters'])
        return super().model_to_device(net)

    def _in_ddp(self, net: nn.Module, find_unused_parameters: bool) -> nn.Module:
        return DistributedDataParallel(
            net.to(self.device),
            device_ids=None if self.device.type == 'cpu' else [torch.cuda.current_device()],
            find_unused_parameters=find_unused_parameters,
        )

    @master_only
    def print_network(self, net: nn.Module) -> None:
        """One line. BasicSR's prints every layer: 600 lines for an RCAN."""
        params = sum(p.numel() for p in net.parameters())
        get_root_logger().info(f'Network: {type(self.get_bare_model(net)).__name__}, with parameters: {params:,d}')

    def validation(
        self,
        dataloader: DataLoader,
        current_iter: int | str,
        tb_logger: Any,
        save_img: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """As BasicSR's, in less time, the images shared out to the ranks; BasicSR's makes the others wait for rank 0.
        The metrics do not depend on the number of ranks: they are summed in the order of the images. A model that has a
        validation of its own keeps it. ``stop`` is asked before each image; True ends it.

        Returns:
            The set's metrics, without GT those that need none; none of a model's own validation.

        Raises:
            Stopped: on all ranks, when ``stop`` has ended it on one; a model's own validation in one process only.
        """
        if validates_itself(self):
            # of several ranks one may validate alone, and they stop together in the next iteration
            own = dataloader if self.opt['dist'] else Interruptible(dataloader, stop)
            super().validation(own, current_iter, tb_logger, save_img)
            return {}
        name, metrics = dataset_of(dataloader).opt['name'], self.opt['val']['metrics'] or {}
        by_image = validate(self, dataloader, current_iter, save_img, stop)
        if not metrics:
            return {}
        self._initialize_best_metric_results(name)
        self.metric_results = {
            metric: sum(values[metric] for values in by_image) / len(by_image) for metric in next(iter(by_image), {})
        }
        for metric, value in self.metric_results.items():
            self._update_best_metric_result(name, metric, value, current_iter)
        if self.opt['rank'] == 0:
            self._log_validation_metric_values(current_iter, name, tb_logger)
        return self.metric_results


class SafeSRModel(SafeModel, SRModel):
    """SRModel, run as ``train.precision``, ``train.channels_last`` and ``train.compile`` say, as FACDModel runs its
    student: what a distillation is compared with differs from it by the loss alone. Without these keys it computes what
    SRModel does. Nothing is read back from the device in a step.
    """

    feed_data = feed_data_non_blocking
    gan: GAN | None = None
    _logs: dict[str, Tensor]

    def __init__(self, opt: dict[str, Any]) -> None:
        self._execution_g = Execution.of(opt.get('train', {}))
        self.accum_iter = opt.get('train', {}).get('accum_iter', 1)
        super().__init__(opt)
        self.degradation = degradation_of(self.opt, self.device)
        self.quantization = self._fake_quantization()  # after all probes of the network, which are of float

    def _fake_quantization(self) -> FakeQuantization | None:
        """In training that of ``train.quantize``, which goes on from the checkpoint's; in a test the checkpoint's, so
        that a network is tested as it was validated."""
        options = self.opt['train'].get('quantize') if self.is_train else None
        if self.is_train and options is None:
            return None
        net, path = self.get_bare_model(self.net_g), self.opt['path'].get('pretrain_network_g')
        entry = None if path is None else load_other_entry(path, 'path.pretrain_network_g', QUANTIZATION)
        found = FakeQuantization.of_entry(entry, f'path.pretrain_network_g: {path}') if entry is not None else None
        if options is not None:
            own = self._new_quantization(net, options)
            if found is not None and found.names == own.names and found.bounds is not None:
                own.set_bounds(found.bounds)
            elif found is not None:
                get_root_logger().info(f'train.quantize: the ranges in {path} are of other features: observed anew.')
            found = own
        if found is not None:
            found = found.to(self.device)
            for averaged in (vars(self).get(name) for name in ('net_g_ema', 'net_average')):
                if averaged is not None:
                    found.attach(averaged)
            found.attach(net)
            get_root_logger().info(f'{type(net).__name__} is run as in int8: {len(found.names)} features quantized.')
        return found

    def _new_quantization(self, net: nn.Module, options: dict[str, Any]) -> FakeQuantization:
        if blocks := fused_blocks(net):
            raise UserError(
                f'train.quantize: {type(net).__name__} has blocks that are other operators in inference '
                f'({", ".join(blocks)}); accepted: a network of plain ones, as the SRVGGNetCompact that facd export '
                'makes of an ECBSR'
            )
        size, channels = lq_patch_size(self.opt), input_channels(self.opt['network_g'])
        with preserve_rng_state(), preserve_buffers(net):
            return FakeQuantization.of(net, size, channels, **options)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        # the student's, called from SRModel.__init__; before DDP, whose buckets keep the strides they find
        net = self._execution_g.lay_out(net)
        return self._in_ddp(net, True) if self._has_unused_parameters(net) else super().model_to_device(net)

    def _has_unused_parameters(self, net: nn.Module) -> bool:
        """Whether DDP, which waits for every gradient, must look for those that never come."""
        searched = self.opt['dist'] and self.is_train and not self.opt['find_unused_parameters']
        if not searched or type(net) in CONVOLUTIONAL:
            return False
        lq = torch.full((PROBES, input_channels(self.opt['network_g']), *[lq_patch_size(self.opt)] * 2), 0.5)
        with reraise_refused_input('network_g', net, lq, self.accepted_patches):
            unused = Ranks().from_first(unused_in_training(net, lq))  # random weights differ from rank to rank
        if unused:
            get_root_logger().info(
                f'{type(net).__name__} has {len(unused)} parameters that a step of training does not use '
                f'({unused[0]}): find_unused_parameters is true for it.'
            )
        return bool(unused)

    def model_ema(self, decay: float = 0.999) -> None:
        """As BasicSR's, and what is no parameter, such as a batch normalization's averages, as the student has it:
        BasicSR leaves that as it was built."""
        super().model_ema(decay)
        for average, value in zip(self.net_g_ema.buffers(), self.get_bare_model(self.net_g).buffers()):
            average.copy_(value)

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        self.net_g.train()
        self._init_ema(train_opt['ema_decay'])
        self._init_precision(self._execution_g.precision)
        criterion = LossSum(None, train_opt.get('pixel_opt'), train_opt.get('perceptual_opt'))
        self.criterion = criterion.prepare().to(self.device)
        self.setup_optimizers()
        self.setup_schedulers()
        if self._execution_g.compile is not None:
            self._run_once()
        self._run_student: Callable[..., Any] = self._execution_g.compiled(run_network, 'train.compile')

    def _init_ema(self, decay: float) -> None:
        """The part of SRModel.init_training_settings that keeps an average of the student."""
        self.ema_decay = decay
        if decay > 0:
            self.net_g_ema = build_network(self.opt['network_g']).to(self.device)
            load_path = self.opt['path']['pretrain_network_g']
            if load_path is not None:
                strict = self.opt['path']['strict_load_g']
                self.load_network(self.net_g_ema, load_path, strict, 'params_ema')
            else:
                self.model_ema(0)
            self.net_g_ema.eval()

    @torch.no_grad()
    def _run_once(self) -> None:
        """Tensors that a network moves to the device in its first forward, as EDSR its ``mean``, must not be created in
        a CUDA graph, whose memory the next replay reuses."""
        net = self.get_bare_model(self.net_g).eval()
        net(self._flat(1, lq_patch_size(self.opt)))
        net.train()

    def _flat(self, batch_size: int, size: int) -> Tensor:
        channels = input_channels(self.opt['network_g'])
        return torch.full((batch_size, channels, size, size), 0.5, device=self.device)

    def _init_precision(self, *precisions: str | None) -> None:
        """Of the networks that are trained: not fp32 and tf32 at once, which the option check refuses."""
        precisions = (*precisions, self.opt['train'].get('precision_d'))
        for precision in precisions:
            set_tf32(precision)
        of_teachers = (own.get('precision') for own in teacher_blocks(self.opt.get('teacher')).values())
        if 'tf32' in {*precisions, *of_teachers} and self.device.type == 'cpu':
            get_root_logger().warning('precision: tf32 has no effect on a CPU; using fp32.')
        # only float16 has so small a range that the loss must be scaled
        self.scaler = GradScaler(self.device.type, init_scale=LOSS_SCALE, enabled='fp16' in precisions)

    def _student(self, inputs: Mapping[str, Tensor], bare: bool = False) -> StudentOutputs:
        """The student's outputs, its features on LQ, and these through the regressors; ``bare``: without DDP."""
        net_g = self.get_bare_model(self.net_g) if bare else self.net_g
        with self._execution_g.autocast(self.device), self._execution_g.reraise_layout_errors('train'):
            outputs, _ = outputs_on(lambda lq: (self._run_student(net_g, self._execution_g.laid_out(lq)), ()), inputs)
        return {name: at_least_float32(output) for name, output in outputs.items()}, (), ()

    def distill_state(
        self, batch: Batch, iteration: int = 0, criterion: LossSum | None = None, bare: bool = False
    ) -> DistillState:
        """What the losses see of a batch: outputs, (N, C, h * scale, w * scale), and features, (N, C_j, h_j, w_j), of
        student and teacher; here the student's output alone.

        Images and the teacher's features are at least float32, whatever the networks ran in: distances differ too
        little for less.

        Args:
            iteration: counted from the start of the stage.
            criterion: the losses that ask; None: all.
            bare: whether to run the networks without DDP, which waits for a backward.
        """
        outputs, *_ = self._student({LQ: batch.lq}, bare)
        none, gt = batch.lq.new_empty(0), cast(Tensor, batch.gt)  # FACDModel alone trains without
        state = DistillState(outputs[LQ], none, gt, batch.lq, (), (), iteration=iteration, seeds=batch.seeds)
        return replace(state, percep_gt=batch.percep_gt)

    def optimize_parameters(self, current_iter: int) -> None:
        iteration, every = current_iter - self.opt.get('stage_begin', 0), self.opt['train']['log_gradient_share']
        shares = self._gradient_shares(iteration) if every and current_iter % every == 0 else {}
        logs: dict[str, Tensor] = {}
        steps = self.criterion.steps() if self.gan is None or self.gan.trains_student(iteration) else []
        seen: DistillState | None = None  # by the first step
        for criterion in steps:
            first = seen is None  # a later step begins from the gradients of those before
            parts = [] if self.accum_iter == 1 else self._first_pass(iteration, criterion)
            whole = [part for part, _ in parts]
            state = joined(whole) if whole else self.distill_state(self._batch(), iteration, criterion)
            self._minimize(self._losses(criterion, state, first), first, parts)
            logs |= self._logs
            if seen is None:  # the next step's CUDA graph overwrites what the student gave
                seen = state if len(steps) == 1 else replace(state, student=state.student.detach().clone())
        if self.gan is not None:
            logs |= self._train_discriminator(self.gan, seen, iteration)
        self._logs = {**logs, **shares}
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)
        if self.quantization is not None:
            self.quantization.update()

    def _batch(self) -> Batch:
        return Batch(self.lq, self.gt, self.seeds, self.taught, self.percep_gt)

    def _losses(self, criterion: LossSum, state: DistillState, first: bool = True) -> dict[str, Tensor]:
        """What a step minimizes and monitors; the GAN's term is in the first of an iteration."""
        logs: dict[str, Tensor] = criterion(state)
        if self.gan is not None and first:
            logs['l_g_gan'] = self.gan.student_term(state.student, self._real(state))
        return logs

    def _real(self, state: DistillState) -> Tensor:
        """What the discriminator is to take for real, (N, C, H, W)."""
        return state.gt if self.gan_gt is None else self.gan_gt

    def _train_discriminator(self, gan: GAN, state: DistillState | None, iteration: int) -> dict[str, Tensor]:
        """Its step, on the outputs that the student had before its own, if that has had one."""
        if state is None:
            with torch.no_grad():
                state = self.distill_state(self._batch(), iteration, LossSum(None))
        self.optimizer_d.zero_grad()
        logs = gan.discriminator_terms(
            state.student.detach(),
            self._real(state),
            backward=lambda term: self.scaler.scale(tie_gradient(term)).backward(),
        )
        self.guard.step(self.optimizer_d, self.scaler, logs)
        self.scaler.update()
        return logs

    @torch.no_grad()
    def _first_pass(self, iteration: int, criterion: LossSum) -> Parts:
        """The states of the parts of a batch, in which what the student gives collects gradients, and the random
        numbers' state before each."""
        parts = []
        with preserve_buffers(*self._networks().values()):
            for own in self._batch().parts(self.accum_iter):
                before = rng_state()
                # a copy, for what the student gives may be one tensor twice: its output is its last layer's feature
                part = joined([self.distill_state(own, iteration, criterion, bare=True)])
                for leaf in of_student(part):
                    leaf.requires_grad_()
                parts.append((part, before))
        return parts

    def _second_pass(self, parts: Parts, bare: bool = False) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """What the student gives for each part, with activations and the same random numbers, and its leaves."""
        nets = [net for net in (self.net_g, vars(self).get('net_r')) if isinstance(net, DistributedDataParallel)]
        with preserve_rng_state():
            for number, (part, before) in enumerate(parts, start=1):
                restore_rng_state(before)
                with ExitStack() as stack:
                    for net in nets if number < len(parts) else ():
                        stack.enter_context(net.no_sync())
                    outputs, *feats = self._student(student_inputs(part), bare)
                    yield [*outputs.values(), *tree_leaves(feats)], of_student(part)

    def _gradient_shares(self, iteration: int) -> dict[str, Tensor]:
        """``share_*`` of this batch, found beside the step, which is the same to the last bit."""
        with uncompiled(), preserve_rng_state(), preserve_buffers(*self._networks().values()):
            parts = self._first_pass(iteration, self.criterion)
            logs = self._losses(self.criterion, joined([part for part, _ in parts]))
            terms = {name: self.scaler.scale(value) for name, value in logs.items() if name.startswith('l_')}
            leaves = [leaf for part, _ in parts for leaf in of_student(part)]
            passes = self._second_pass(parts, bare=True)
            return gradient_shares(self.get_bare_model(self.net_g), terms, passes, leaves)

    def _minimize(self, logs: dict[str, Tensor], clear: bool = True, parts: Parts = ()) -> None:
        """The rest of a step: minimizes the sum of the terms ``l_*``, unless it or its gradient is not finite. With
        ``parts`` their backward ends at the outputs of these, and a second pass goes on. Gradients of before are
        cleared, or added to."""
        l_total = tie_gradient(sum_of(value for name, value in logs.items() if name.startswith('l_')))
        self._logs = {name: value.detach() for name, value in logs.items()}
        if clear:
            self.optimizer_g.zero_grad()
        with self._execution_g.reraise_compile_errors('train.compile'):  # a backward is compiled when it is first run
            self.scaler.scale(l_total).backward()
            for outputs, leaves in self._second_pass(parts) if parts else ():
                reached = [own for own, leaf in zip(outputs, leaves) if leaf.grad is not None]
                torch.autograd.backward(reached, [leaf.grad for leaf in leaves if leaf.grad is not None])
        self.guard.step(self.optimizer_g, self.scaler, self._logs)
        self.scaler.update()

    def _attach_guard(self) -> None:
        """Nothing: :meth:`_minimize` calls it."""

    def degraded(self, data: dict[str, Any], pool: bool = True) -> dict[str, Any]:
        """The pairs that LQ are made of on the device (models/degradation.py), where the option file says so."""
        return data if self.degradation is None else self.degradation(data, pool)

    def pool_state(self) -> dict[str, Any] | None:
        return None if self.degradation is None else self.degradation.state()

    def save(self, epoch: int, current_iter: int) -> None:
        if self.gan is not None:
            self.save_network(self.net_d, 'net_d', current_iter)
        super().save(epoch, current_iter)

    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), 'scaler': self.scaler.state_dict()}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        if resume_state.get('scaler') and self.scaler.is_enabled():
            self.scaler.load_state_dict(resume_state['scaler'])
        if self.degradation is not None:
            self.degradation.load_state(resume_state.get('pools', []))

    def get_current_log(self) -> dict[str, float]:
        """The last step's terms. Reduced here, not in every step: each value read back waits for the device."""
        return self.reduce_loss_dict(self._logs)


@contextmanager
def preserve_buffers(*nets: nn.Module) -> Iterator[None]:
    """Leaves the averages of a batch normalization, which a forward in training updates, as they were: a run that is
    resumed would begin with others than those that it was saved with."""
    saved = [(buffer, buffer.clone()) for net in nets for buffer in net.buffers()]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)


def lq_patch_size(opt: dict[str, Any]) -> int:
    """Height and width of LQ in training."""
    patch = opt.get('gt_size', opt['datasets']['train'].get('gt_size'))  # at the top where LQ are made of larger crops
    return PROBE_LQ_SIZE if patch is None else patch // opt['scale']


def run_network(net: nn.Module, x: Any) -> Any:
    """What is compiled: the network is an argument, so that its wrapper for several processes may be in its place."""
    return net(x)


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    """What the option file says of an optimizer, as far as it does not change in training."""
    group = optimizer.param_groups[0]
    # a state may turn betas, a tuple, into a list
    settings = {key: [*value] if isinstance(value, tuple) else value for key, value in group.items() if key != 'params'}
    settings['lr'] = settings.pop('initial_lr', settings['lr'])
    return settings


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Gives a state's moments the memory format of their parameters, which may have changed since it was saved: fused
    kernels expect both in the same layout."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _with_implementation(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with this optimizer's ``foreach`` and ``fused``: it may come from another device."""
    own = {key: value for key, value in optimizer.param_groups[0].items() if key in ('foreach', 'fused')}
    return {**state, 'param_groups': [{**group, **own} for group in state['param_groups']]}


def build_model(opt: dict[str, Any]) -> SafeModel:
    """As BasicSR's: the model of ``model_type``, as a :class:`SafeModel`.

    Raises:
        UserError: it needs a GPU, and there is none; or as the model says.
    """
    cls = MODEL_REGISTRY.get(opt['model_type'])
    if cls is SRModel:
        cls = type(cls.__name__, (SafeSRModel,), {})
    elif not issubclass(cls, SafeModel):
        cls = type(cls.__name__, (SafeModel, cls), {})
    with _reraise_no_gpu(opt['model_type']):
        model = cls(copy.deepcopy(opt))  # models pop keys
    get_root_logger().info(f'Model [{cls.__name__}] is created.')
    return model


def _reraise_no_gpu(model_type: str) -> AbstractContextManager[None]:
    """Turns what torch says of the ``.cuda()`` of a model, as RealESRNetModel's, into a UserError."""

    def translated(error: Exception) -> UserError | None:
        if torch.cuda.is_available() or not re.search('CUDA|NVIDIA', str(error)):
            return None
        return UserError(
            f'model_type: {model_type} needs a GPU ({one_line(error).partition(". ")[0]}); accepted: a machine with '
            'one, or another model'
        )

    return reraise((RuntimeError, AssertionError), translated)


def _read_for(
    net: nn.Module, path: str, where: str, param_key: str | None, strict: bool
) -> tuple[str | None, dict[str, Tensor], str]:
    """Which entry of a checkpoint a network is loaded from, what it takes of it, and without ``strict`` a line on that.

    Raises:
        UserError: the checkpoint cannot be read, does not fit the network under ``strict``, or without it has nothing
            for the network, which would continue with random weights.
    """
    found, state_dict = load_entry(path, where, basicsr_param_keys(param_key))
    if not strict:
        strict_key = where.removeprefix('path.').replace('pretrain_network', 'strict_load')
        return found, *partial_fit(net, state_dict, f'{where}: {path}', strict_key)
    state_dict = part_of(state_dict, [net.state_dict().keys()], f'{where}: {path}')
    check_fit(net, state_dict, f'{where}: {path}')
    return found, state_dict, ''
