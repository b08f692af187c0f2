"""Entry point: trains the model of an option file.

    python facd_basicsr/train.py -opt options/train/FACD_RCAN_x4.yml

BasicSR's loop and its parts, with checks before anything is created, a resume that works from any folder and
without CUDA, and exit code 2 with one line for what a user can mend.
"""

import argparse
import datetime
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: its folder holds modules called test and options, which must not be top level
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import torch
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.train import create_train_val_dataloader, init_tb_loggers
from basicsr.utils import AvgTimer, MessageLogger, get_time_str, make_exp_dirs, mkdir_and_rename
from basicsr.utils.options import dict2str
from torch.utils.data import DataLoader

from facd_basicsr.distill.checkpoints import check_pretrained
from facd_basicsr.distill.gate import check_teacher
from facd_basicsr.engine.logs import DeferredLog, versions
from facd_basicsr.engine.nonfinite import NonFiniteGuard
from facd_basicsr.engine.resume import load_resume_state
from facd_basicsr.errors import UserError, data_complaints, run_command
from facd_basicsr.options import parse_options, parser
from facd_basicsr.options.inherit import complete_text


def train(
    args: argparse.Namespace,
    root: Path | None = None,
    console: bool = True,
    on_iteration: Callable[[int], None] = lambda iteration: None,
) -> None:
    """Trains from start, or from a state, to ``train.total_iter``.

    Args:
        args: from :func:`facd_basicsr.options.parser`.
        root: where ``experiments`` and ``tb_logger`` go; the checkout if None.
        console: whether to log to the console as well as to the file.
        on_iteration: called after every iteration with its number.

    Raises:
        UserError: an option, path, checkpoint or its combination is not accepted; then no folder was made.
    """
    opt = parse_options(args, is_train=True, root=root)
    torch.backends.cudnn.benchmark = True
    with DeferredLog(opt['rank'], console) as log:
        log.info(versions())
        log.info(dict2str(opt))
        _train(opt, args.opt, log, on_iteration)


@dataclass
class Training:
    """What :func:`set_up` has built: all that an iteration needs. Nothing is on disk yet."""

    model: BaseModel
    train_loader: DataLoader
    train_sampler: EnlargedSampler
    val_loaders: dict[str, DataLoader]  # by the name of their block in `datasets`
    total_iters: int
    resume_state: dict[str, Any] | None
    teacher: str  # what the sanity gate found; empty without one


def set_up(opt: dict[str, Any], log: DeferredLog) -> Training:
    """Builds data, networks and loss, loads checkpoints, and puts the teacher through the sanity gate.

    Args:
        opt: from :func:`facd_basicsr.options.parse_options`.
        log: for the lines of BasicSR's parts.

    Raises:
        UserError: a checkpoint, the data or their combination is not accepted.
    """
    _check_folders(opt)
    resume_state = load_resume_state(opt)
    for line in check_pretrained(opt):
        log.info(line)
    with data_complaints():
        train_loader, train_sampler, loaders, _, total_iters = create_train_val_dataloader(opt, log.logger)
    if len(train_loader) == 0:
        raise UserError(
            f'datasets.train.batch_size_per_gpu: {train_loader.batch_size} for epochs of {len(train_sampler)} samples; '
            'accepted: no more than these (dataset_enlarge_ratio repeats the images)'
        )
    val_loaders = dict(zip([name for name in opt['datasets'] if name != 'train'], loaders))
    model = build_model(opt)
    teacher = ''
    if 'expect' in opt.get('teacher', {}):
        expect = opt['teacher']['expect']
        log.info(f'Evaluating the teacher on datasets.{expect["dataset"]} (teacher.expect).')
        teacher = check_teacher(model.teacher, expect, val_loaders[expect['dataset']], opt['scale'], model.device)
        log.info(teacher)
    if resume_state is not None:
        model.resume_training(resume_state)
    return Training(model, train_loader, train_sampler, val_loaders, total_iters, resume_state, teacher)


def _train(opt: dict[str, Any], option_file: str, log: DeferredLog, on_iteration: Callable[[int], None]) -> None:
    training = set_up(opt, log)
    model, resume_state, total_iters = training.model, training.resume_state, training.total_iters
    start_epoch = start_iter = 0
    if resume_state is not None:
        start_epoch, start_iter = resume_state['epoch'], resume_state['iter']
        log.info(f'Resuming from {opt["path"]["resume_state"]}: epoch {start_epoch}, iter {start_iter}.')
        if start_iter >= total_iters:
            log.info(f'All {total_iters} iterations of train.total_iter are done.')
    elif opt['auto_resume']:
        log.info(f'No state in {opt["path"]["training_states"]}: starting from iteration 0.')

    if opt['rank'] == 0:
        _make_folders(opt, Path(option_file), resume=resume_state is not None)
    log.write_to(Path(opt['path']['log'], f'train_{opt["name"]}_{get_time_str()}.log'))
    tb_logger = init_tb_loggers(opt)
    msg_logger = MessageLogger(opt, start_iter + 1, tb_logger)
    msg_logger.max_iters = total_iters + 1  # it counts one iteration less, and ends in "-1 day, 23:59:58"
    prefetcher = _prefetcher(opt, training.train_loader)
    folder = Path(opt['path']['experiments_root'], 'nonfinite')
    guard = NonFiniteGuard(model, **opt['train'].get('nonfinite', {}), folder=folder)

    current_iter, start_time = start_iter, time.time()
    data_timer, iter_timer = AvgTimer(), AvgTimer()
    for epoch in itertools.count(start_epoch):  # BasicSR's number of epochs forgets that the loader drops rests
        if current_iter >= total_iters:
            break
        training.train_sampler.set_epoch(epoch)
        prefetcher.reset()
        train_data = prefetcher.next()
        while train_data is not None and current_iter < total_iters:
            data_timer.record()
            current_iter += 1
            model.update_learning_rate(current_iter, warmup_iter=opt['train'].get('warmup_iter', -1))
            model.feed_data(train_data)
            model.optimize_parameters(current_iter)
            guard.after_step(train_data, current_iter)
            iter_timer.record()
            if current_iter == start_iter + 1:
                msg_logger.reset_start_time()

            if current_iter % opt['logger']['print_freq'] == 0:
                msg_logger(
                    {
                        'epoch': epoch,
                        'iter': current_iter,
                        'lrs': model.get_current_learning_rate(),
                        'time': iter_timer.get_avg_time(),
                        'data_time': data_timer.get_avg_time(),
                        **model.get_current_log(),
                    }
                )
            if current_iter % opt['logger']['save_checkpoint_freq'] == 0:
                log.info('Saving models and training states.')
                model.save(epoch, current_iter)
            if current_iter < total_iters and opt.get('val') and current_iter % opt['val']['val_freq'] == 0:
                _validate(model, training.val_loaders.values(), current_iter, tb_logger, opt)

            on_iteration(current_iter)
            data_timer.start()
            iter_timer.start()
            train_data = prefetcher.next()

    log.info(f'End of training. Time consumed: {datetime.timedelta(seconds=int(time.time() - start_time))}')
    guard.end()
    log.info('Save the latest model.')
    model.save(epoch=-1, current_iter=-1)  # -1: net_g_latest.pth, without a training state
    if opt.get('val'):
        _validate(model, training.val_loaders.values(), current_iter, tb_logger, opt)
    if tb_logger:
        tb_logger.close()


# make_exp_dirs makes a folder of every path that it does not know, the value of param_key_g for one.
FOLDERS = ('experiments_root', 'models', 'training_states', 'log', 'visualization')


def _check_folders(opt: dict[str, Any]) -> None:
    """Refuses, before anything is loaded, what :func:`_make_folders` could not make."""
    for folder in (Path(opt['path']['experiments_root']), Path(opt['root_path'], 'tb_logger', opt['name'])):
        parent = next(parent for parent in folder.parents if parent.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise UserError(f'{folder} can not be made: {parent} is no folder that may be written')


def _make_folders(opt: dict[str, Any], option_file: Path, resume: bool) -> None:
    """Makes the folders of an experiment, moving an older one aside unless it is resumed, and keeps its option file."""
    text = complete_text(str(option_file))  # first: it may lie in the folder that is moved aside
    if not resume:
        make_exp_dirs({**opt, 'path': {key: opt['path'][key] for key in FOLDERS}})
        if opt['logger']['use_tb_logger'] and 'debug' not in opt['name']:
            mkdir_and_rename(str(Path(opt['root_path'], 'tb_logger', opt['name'])))
    command = f'# {time.asctime()}\n# {" ".join(sys.argv)}\n\n'
    Path(opt['path']['experiments_root'], option_file.name).write_text(command + text, encoding='utf-8')


def _prefetcher(opt: dict[str, Any], train_loader: Any) -> CPUPrefetcher | CUDAPrefetcher:
    on_gpu = opt['datasets']['train'].get('prefetch_mode') == 'cuda'
    return CUDAPrefetcher(train_loader, opt) if on_gpu else CPUPrefetcher(train_loader)


def _validate(
    model: Any, val_loaders: Iterable[DataLoader], current_iter: int, tb_logger: Any, opt: dict[str, Any]
) -> None:
    for val_loader in val_loaders:
        model.validation(val_loader, current_iter, tb_logger, opt['val']['save_img'])


def main() -> None:
    run_command(lambda: train(parser().parse_args()))


if __name__ == '__main__':
    main()
