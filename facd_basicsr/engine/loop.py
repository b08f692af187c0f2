"""The training loop: BasicSR's, in an order that allows exact resume."""

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from basicsr.utils import AvgTimer, MessageLogger

from facd_basicsr.data.damaged_images import DamagedImages
from facd_basicsr.data.loaders import Loaders, batches
from facd_basicsr.data.seeded_dataset import dataset_of
from facd_basicsr.engine.checkpoint import Checkpoints, Position
from facd_basicsr.engine.logs import BEST, FINISHED, RunLog
from facd_basicsr.engine.signals import StopSignals, signals_blocked
from facd_basicsr.errors import Stopped
from facd_basicsr.models.safe_model import SafeModel, lq_patch_size
from facd_basicsr.runtime.processes import Ranks
from facd_basicsr.runtime.rng import preserve_rng_state


@dataclass
class Training:
    """What :func:`facd_basicsr.train.set_up` has built: all that an iteration needs. Nothing is written yet.

    Attributes:
        model, loaders: with everything loaded.
        position: where to begin; the loop advances it.
        gates: what the sanity gate found of each teacher that has one, by its block's place.
    """

    model: SafeModel
    loaders: Loaders
    position: Position
    gates: dict[str, str]


class TrainingLoop:
    """Trains from a position to the end of a stage, unless a signal ends it.

    Args:
        opt: of the stage, from :func:`facd_basicsr.options.option_check.stages_of`.
        later: of the stages that follow.
        training: what has been built.
        log: where progress goes; started.
        on_iteration: called after every iteration with its number.
    """

    def __init__(
        self,
        opt: dict[str, Any],
        later: Sequence[dict[str, Any]],
        training: Training,
        log: RunLog,
        on_iteration: Callable[[int], object],
    ) -> None:
        self._opt, self._later = opt, later
        self._model, self._loaders, self._position = training.model, training.loaders, training.position
        self._log = log
        log.position = self._position
        self._on_iteration = on_iteration
        self._ranks = Ranks()
        self._damaged = DamagedImages(opt['datasets']['train']['skip_damaged'], self._ranks, log.warning)
        self._begin, self._end = opt['stage_begin'], end_of(opt)
        self._val_freq = opt['val']['val_freq'] if opt['val'] else None
        self._checkpoints = Checkpoints(opt, self._ranks, self._loaders.sampler)
        self._saved_at = self._position.iteration
        self._stop = StopSignals()

    def run(self) -> None:
        """Trains, and saves and validates at the end of the stage; after the last one the run has ended.

        Raises:
            Stopped: after a signal, with everything saved.
            UserError: an image, the disk or a loss does not let it continue.
        """
        position, is_last = self._position, not self._later
        with self._stop:
            self._checkpoints.remove_old(position.iteration)  # an earlier process may have been killed before that
            if self._begin < position.iteration < self._end:
                self._validate_if_due()  # the state was saved before it
            self._train()
            self._model.guard.settle()
            if is_last:
                seconds = int(time.time() - self._log.started)
                self._log.info(f'End of training. Time consumed: {datetime.timedelta(seconds=seconds)}')
                self._model.guard.end()
            self._damaged.end()
            self._save()
            if is_last:
                self._log.info('Save the latest model.')
                self._checkpoints.save_networks(self._model, position, -1)
            if self._val_freq is not None:
                self._validate()
            if self._opt['logger']['keep_best'] or not is_last:
                self._saved_at = -1  # with this validation's metrics, or what follows would forget them
                self._save()
            if is_last:
                self._log.event(FINISHED)
                self._close()
            elif self._ranks.begin_any(self._is_stop_requested)():  # which waits for what rank 0 writes
                self._end_by_signal()

    def _train(self) -> None:
        opt, model, position = self._opt, self._model, self._position
        message_logger = MessageLogger(opt, position.iteration + 1, self._log.tb_logger)
        # it counts one iteration less, and ends in "-1 day, 23:59:58"; of later stages it takes their time for as much
        # longer as their batches are larger
        message_logger.max_iters = self._end + 1 + round(sum(map(_pixels, self._later)) / _pixels(opt, 1))
        first = position.iteration + 1
        data_timer, iter_timer = AvgTimer(), AvgTimer()
        for data in self._batches():
            data_timer.record()
            stop_asked = self._ranks.begin_any(self._is_stop_requested)
            position.iteration += 1
            position.batches += 1
            self._damaged.look(data.get('damaged', ()))
            model.update_learning_rate(position.iteration - self._begin, opt['train']['warmup_iter'])
            data = model.degraded(data)
            model.feed_data(data)
            model.optimize_parameters(position.iteration)
            model.guard.after_step(data, position.iteration)
            iter_timer.record()
            if position.iteration == first:
                message_logger.reset_start_time()

            if position.iteration % opt['logger']['print_freq'] == 0:
                model.guard.settle()
                times = {'time': iter_timer.get_avg_time(), 'data_time': data_timer.get_avg_time()}
                lrs, values = model.get_current_learning_rate(), {**times, **model.get_current_log()}
                message_logger({'epoch': position.epoch, 'iter': position.iteration, 'lrs': lrs, **values})
                self._log.iteration(position.epoch, lrs, values)
                self._damaged.report()
            if position.iteration % opt['logger']['save_checkpoint_freq'] == 0:
                self._save()
            if stop_asked():
                self._end_by_signal()
            self._validate_if_due()
            self._on_iteration(position.iteration)
            data_timer.start()
            iter_timer.start()

    def _batches(self) -> Iterator[dict[str, Any]]:
        """Batches until the last iteration, epoch by epoch from the position on."""
        position = self._position
        while position.iteration < self._end:
            missing = self._end - position.iteration
            self._loaders.sampler.set_position(position.epoch, position.batches, missing)
            with signals_blocked():  # or a signal would end the workers before they have learnt to ignore it
                rest = batches(self._loaders.train, self._opt)
            yield from rest
            if position.iteration < self._end:
                position.epoch, position.batches = position.epoch + 1, 0

    def _save(self) -> None:
        """Saves networks and state, once for an iteration."""
        if self._saved_at == self._position.iteration:
            return
        self._model.guard.settle()
        self._log.info('Saving models and training states.')
        if self._log.tb_logger:
            self._log.tb_logger.flush()  # or its buffer is lost when the process is killed
        self._checkpoints.save(self._model, self._position)
        self._saved_at = self._position.iteration

    def _close(self) -> None:
        if self._log.tb_logger:
            self._log.tb_logger.close()
        self._ranks.wait()  # for what rank 0 writes: a launcher may end the others soon after the first has left

    def _is_stop_requested(self) -> bool:
        return self._stop.requested is not None

    def _end_by_signal(self) -> NoReturn:
        self._damaged.end()
        self._save()
        self._close()
        signum = self._stop.requested
        reason = signum.name if signum else 'A signal to another rank'
        raise Stopped(
            f'{reason}: stopped after iteration {self._position.iteration}, which is saved; the same command with '
            '--auto_resume continues.'
        )

    def _validate_if_due(self) -> None:
        iteration = self._position.iteration
        if self._val_freq is not None and iteration < self._end and iteration % self._val_freq == 0:
            self._validate()

    def _validate(self) -> None:
        """Preserves the random state, so that it may be repeated after a resume."""
        self._model.guard.settle()
        try:
            with preserve_rng_state():
                for loader in self._loaders.val.values():
                    metrics = self._model.validation(
                        loader,
                        self._position.iteration,
                        self._log.tb_logger,
                        self._opt['val']['save_img'],
                        self._is_stop_requested,
                    )
                    self._log.validation(dataset_of(loader).opt['name'], metrics)
        except Stopped:
            self._end_by_signal()
        if self._opt['logger']['keep_best']:
            self._keep_best()

    def _keep_best(self) -> None:
        """Saves the networks if the first metric of the first validation set has never been as good."""
        name = dataset_of(next(iter(self._loaders.val.values()))).opt['name']
        found = self._model.best_metric_results.get(name)
        if not found:  # a model's own validation, on another rank
            return
        metric, best = next(iter(found.items()))
        if best['iter'] == self._position.iteration:
            self._log.info(f'Saving the best models: {metric} of {name} is {best["val"]:.4f}.')
            self._checkpoints.save_networks(self._model, self._position, 'best')
            self._log.event(BEST)


def end_of(opt: dict[str, Any]) -> int:
    """The last iteration of a stage."""
    return opt['stage_begin'] + opt['train']['total_iter']


def _pixels(opt: dict[str, Any], iterations: int | None = None) -> int:
    """Those of the patches of a stage, or of so many iterations of it."""
    batch = opt['datasets']['train']['batch_size_per_gpu'] * lq_patch_size(opt) ** 2
    return batch * (iterations or opt['train']['total_iter'])
