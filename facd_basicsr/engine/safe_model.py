"""What BasicSR's models lack: saves that are whole, validation by all ranks, and processes without GPUs."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from facd_basicsr.data.described_dataset import dataset_of
from facd_basicsr.engine.validation import reach_in_tiles, validate
from facd_basicsr.engine.whole_files import save_whole
from facd_basicsr.errors import UserError

# What a scheduler has counted. The rest of its state is its options: BasicSR lets a state's overrule the option file's.
SCHEDULER_PROGRESS = ('last_epoch', '_step_count', '_last_lr', 'base_lrs')


class SafeModel(BaseModel):
    """To be inherited before a BasicSR model; :func:`build_model` does it for those that do not.

    Attributes:
        saved: {file name: SHA-256} of the networks that were saved since it was emptied.
        reach: how far the network sees beyond the tiles of ``val.tile``; 0 without tiles.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.saved: dict[str, str] = {}
        super().__init__(opt)
        self.reach = reach_in_tiles(self, type(self).nondist_validation is not SafeModel.nondist_validation)

    @master_only
    def save_network(
        self,
        net: nn.Module | Sequence[nn.Module],
        net_label: str,
        current_iter: int | str,
        param_key: str | Sequence[str] = 'params',
    ) -> None:
        """As BasicSR's, but whole or not at all, where BasicSR gives up after three errors and trains on.

        Raises:
            OSError: the disk is full, or may not be written.
        """
        nets = [net] if isinstance(net, nn.Module) else net
        param_keys = [param_key] if isinstance(param_key, str) else param_key
        content = {
            key: {name: value.cpu() for name, value in self.get_bare_model(net).state_dict().items()}
            for net, key in zip(nets, param_keys)
        }
        name = f'{net_label}_{"latest" if current_iter == -1 else current_iter}.pth'
        self.saved[name] = save_whole(content, Path(self.opt['path']['models'], name))

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Nothing: engine/checkpoint.py writes it, with the loop's part and after all networks."""

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> Optimizer:
        """As BasicSR's, and fused on a GPU if the option file does not choose: it then skips steps without being told
        to by the host (engine/skipped_steps.py), and its step is one kernel."""
        if self.device.type == 'cuda' and kwargs.get('fused') is None and kwargs.get('foreach') is None:
            kwargs['fused'] = True
        return super().get_optimizer(optim_type, params, lr, **kwargs)

    def training_state(self) -> dict[str, Any]:
        """What goes on in training beside the networks, as ``weights_only`` loading accepts it."""
        best = getattr(self, 'best_metric_results', {})  # BasicSR's, from its first validation on
        return {
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'best_metric_results': {
                name: {metric: {**found, 'val': float(found['val'])} for metric, found in metrics.items()}
                for name, metrics in best.items()
            },
        }

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Restores :meth:`training_state`.

        Raises:
            UserError: it is of other networks or another optimizer.
        """
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
                f'the option file ({" ".join(str(error).split())}); accepted: a state of the same'
            ) from error
        for own, optimizer in zip(settings, self.optimizers):
            for key, value in _settings(optimizer).items():
                if key in own and own[key] != value:
                    get_root_logger().warning(
                        f'train.optim_g.{key}: {own[key]} in the option file, but the resumed optimizer goes on with '
                        f'{value}.'
                    )
        self._resume_best(resume_state.get('best_metric_results', {}))

    def _resume_best(self, results: dict[str, dict[str, Any]]) -> None:
        """Restores the best figures of the sets whose metrics are still those of the option file."""
        metrics = (self.opt.get('val') or {}).get('metrics') or {}
        better = {metric: metric_opt.get('better', 'higher') for metric, metric_opt in metrics.items()}
        kept = {
            name: {metric: found[metric] for metric in metrics}
            for name, found in results.items()
            if {metric: best['better'] for metric, best in found.items()} == better
        }
        if kept:
            self.best_metric_results = kept

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As BasicSR's, which asks CUDA for a device even in a run without GPUs."""
        if self.opt['dist'] and self.device.type == 'cpu':
            return DistributedDataParallel(net, find_unused_parameters=self.opt.get('find_unused_parameters', False))
        return super().model_to_device(net)

    @master_only
    def print_network(self, net: nn.Module) -> None:
        """One line. BasicSR's prints every layer: 600 lines for an RCAN."""
        params = sum(p.numel() for p in net.parameters())
        get_root_logger().info(f'Network: {type(self.get_bare_model(net)).__name__}, with parameters: {params:,d}')

    def dist_validation(self, dataloader: DataLoader, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        """As ``nondist_validation``, the images shared out to the ranks; BasicSR's makes the others wait for rank 0."""
        self.nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def nondist_validation(self, dataloader: DataLoader, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        """As BasicSR's, in less time. The figures do not depend on the number of ranks: they are summed in the order of
        the images.

        Raises:
            Stopped: on all ranks, when the loader's ``stop`` has ended it on one.
        """
        name, metrics = dataset_of(dataloader).opt['name'], self.opt['val'].get('metrics') or {}
        by_image = validate(self, self.reach, dataloader, current_iter, save_img)
        if not metrics:
            return
        self._initialize_best_metric_results(name)
        self.metric_results = {metric: sum(values) / len(by_image) for metric, values in zip(metrics, zip(*by_image))}
        for metric, value in self.metric_results.items():
            self._update_best_metric_result(name, metric, value, current_iter)
        if self.opt['rank'] == 0:
            self._log_validation_metric_values(current_iter, name, tb_logger)


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    """What the option file says of an optimizer, as far as it does not change in training."""
    group = optimizer.param_groups[0]
    settings = {key: value for key, value in group.items() if key not in ('params', 'lr', 'initial_lr')}
    return {'lr': group.get('initial_lr', group['lr']), **{key: _plain(value) for key, value in settings.items()}}


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Gives a state's moments the memory format of their parameters, which may be another than when it was saved: fused
    kernels take both as they lie in memory."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _with_implementation(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state, to be worked on by the kernels of this one: it may be of another device."""
    own = {key: value for key, value in optimizer.param_groups[0].items() if key in ('foreach', 'fused')}
    return {**state, 'param_groups': [{**group, **own} for group in state['param_groups']]}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # of betas a state may make the other


def build_model(opt: dict[str, Any]) -> SafeModel:
    """As BasicSR's: the model of ``model_type``, as a :class:`SafeModel`."""
    cls = MODEL_REGISTRY.get(opt['model_type'])
    if not issubclass(cls, SafeModel):
        # a model that has a validation of its own keeps it
        validations = {name: getattr(cls, name) for name in ('dist_validation', 'nondist_validation')}
        is_basicsrs = all(method is getattr(SRModel, name) for name, method in validations.items())
        cls = type(cls.__name__, (SafeModel, cls), {} if is_basicsrs else validations)
    model = cls(copy.deepcopy(opt))  # they take keys out of it
    get_root_logger().info(f'Model [{cls.__name__}] is created.')
    return model
