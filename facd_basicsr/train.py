"""Entry point: trains the model of an option file.

    python facd_basicsr/train.py -opt options/train/FACD_RCAN_x4.yml

BasicSR's parts in a loop that can be stopped, killed and resumed exactly (docs/reliability.md), with checks
before anything is created. Exit codes: 2 with one line for what a user can fix; 75 after a signal, with everything
saved; 1 for any other error.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

if not __package__:  # run as a script: its folder holds modules called test and options, which must not be top level
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import facd_basicsr

# isort: split
import torch
from basicsr.utils import make_exp_dirs, mkdir_and_rename, set_random_seed
from basicsr.utils.misc import check_resume
from basicsr.utils.options import dict2str

from facd_basicsr.data.loaders import Loaders, build_loaders, reraise_killed_worker
from facd_basicsr.data.seeded_dataset import SeededDataset, dataset_of
from facd_basicsr.distill.gate import check_teacher
from facd_basicsr.distill.teacher import is_cached, teacher_blocks
from facd_basicsr.engine.checkpoint import Position, reraise_disk_full
from facd_basicsr.engine.launch import exit_without_teardown, reraise_peer_failure, start_ranks
from facd_basicsr.engine.logs import DeferredLog, RunLog, timestamp
from facd_basicsr.engine.loop import Training, TrainingLoop, end_of
from facd_basicsr.engine.resume import describe_resume, load_resume_state, resume_rng, resumed_position
from facd_basicsr.engine.signals import stop_on_signal, worker_ignore_signals
from facd_basicsr.environment import git_commit, machine, versions
from facd_basicsr.errors import locating, reraise_data_errors, run_command
from facd_basicsr.files.atomic import atomic_write, check_creatable, remove_unfinished
from facd_basicsr.losses.loss_sum import LossSum
from facd_basicsr.models.data_check import check_smallest_image, check_training_sample
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options import PACKAGE_PARENT, check_inputs, complete_options, load_yaml, options_of, parser
from facd_basicsr.options.option_check import stages_of
from facd_basicsr.options.option_files import RUN, option_text
from facd_basicsr.options.parse import OPTIONS_FILE, options_digest
from facd_basicsr.runtime.execution import set_deterministic, tf32_of
from facd_basicsr.runtime.processes import Ranks


def train(
    args: argparse.Namespace,
    root: Path | None = None,
    console: bool = True,
    on_iteration: Callable[[int], object] = lambda iteration: None,
) -> None:
    """Trains from start, or from a state, to ``train.total_iter``, stage by stage.

    Args:
        root: where ``experiments`` and ``tb_logger`` go; the checkout if None.
        on_iteration: called after every iteration with its number.

    Raises:
        UserError: an option, path, checkpoint or its combination is not accepted, then no folder was made; or an
            image, the disk or a loss did not let it continue.
        PeerFailedError: another process of the group has ended.
        Stopped: a signal has ended it, with everything saved.
    """
    with stop_on_signal(), reraise_killed_worker():
        began = timestamp()
        options = options_of(args, is_train=True)
        opt = complete_options(options, args, is_train=True, root=root)
        start_ranks(opt, args.launcher)
        check_inputs(opt, args.opt, is_train=True)
        set_deterministic(opt['deterministic'])
        with RunLog(opt['rank'], console) as log, reraise_peer_failure():
            log.info(versions())
            log.info(f'Machine: {machine(opt["num_gpu"] > 0)}, {torch.get_num_threads()} CPU threads.')
            log.info(dict2str(opt))
            stages, state = stages_left(opt, log)
            for place, stage in reversed(stages[1:]):  # what a later one is refused for is known before the run begins
                log.info(f'Trying out {place}.')
                with tf32_of(None), locating(args.opt), locating(place):
                    set_up(stage, log, gate=False)
                gc.collect()
            for index, (place, stage) in enumerate(stages):
                before = stages[index - 1][1] if index > 0 else stage
                if place:
                    what = f'{place}: iterations {stage["stage_begin"] + 1} to {end_of(stage)}'
                    log.info('; '.join([what, *_differing('', before, stage)]))
                if index > 0:
                    state = _continued(before, stage, log)
                start = partial(_start, args.opt, options, began) if index == 0 else None
                _train_stage(args.opt, stages[index:], state, start, log, on_iteration)
                gc.collect()  # frees the networks before those of the next stage are built


Stages = list[tuple[str, dict[str, Any]]]  # the place in the option file, '' without stages, and the options of each


def _train_stage(
    option_file: str,
    stages: Stages,
    state: dict[str, Any] | None,
    start: Callable[[dict[str, Any], Training, RunLog], None] | None,
    log: RunLog,
    on_iteration: Callable[[int], object],
) -> None:
    """Sets up the first of the stages, from a state if there is one, and trains it. ``start``, of the first stage of a
    process, is called before anything is written."""
    (place, stage), *later = stages
    with tf32_of(None):  # or it would be the stage before's
        with locating(option_file), locating(place):
            training = set_up(stage, log, state, gate=start is not None)
        with reraise_disk_full(Path(stage['path']['training_states'])):
            if start is not None:
                start(stage, training, log)
            if state is not None:
                resume_rng(state, Ranks())
            TrainingLoop(stage, [other for _, other in later], training, log, on_iteration).run()


def stages_left(opt: dict[str, Any], log: DeferredLog) -> tuple[Stages, dict[str, Any] | None]:
    """The stages of a run from the one in which it is, and the state to resume from; None for a fresh start.

    At the end of a stage that is still the one: its validation may be missing. The seed of ``opt`` is filled in, and
    damaged states are skipped.

    Raises:
        UserError: no state is intact.
    """
    ranks = Ranks()
    state = load_resume_state(opt, ranks, log.warning)
    if opt['seed_drawn']:
        drawn = opt['manual_seed'] if state is None else state.get('data', {}).get('seed')
        opt['manual_seed'] = ranks.from_first(drawn or opt['manual_seed'])
    if state is None and opt['auto_resume']:
        log.info(f'--auto_resume: no state in {opt["path"]["training_states"]}: starting from iteration 0.')
    done, total_iter = 0 if state is None else state['iter'], opt['train']['total_iter']
    if done >= total_iter:
        log.info(f'Nothing is left to train: train.total_iter is {total_iter}.')
    stages = list(stages_of(opt).items())
    return [named for named in stages if end_of(named[1]) >= done] or stages[-1:], state


def _continued(before: dict[str, Any], stage: dict[str, Any], log: DeferredLog) -> dict[str, Any] | None:
    """The state that a stage has ended with, for the next to resume from; regressors and discriminator are new if they
    are others."""
    state = Path(stage['path']['training_states'], f'{stage["stage_begin"]}.state')
    new = ['network_r'] if _regressors(before) != _regressors(stage) else []
    new += ['network_d'] if before.get('network_d') != stage.get('network_d') else []
    stage['auto_resume'] = False
    stage['path'] |= {'resume_state': str(state), 'ignore_resume_networks': new or None}
    return load_resume_state(stage, Ranks(), log.warning)


def _regressors(opt: dict[str, Any]) -> list[Any]:
    """What the regressors depend on."""
    if not opt.get('taps'):
        return []
    return [opt['taps'], opt.get('network_r'), LossSum(opt['train']['distill_opt']).regressor]


def _differing(where: str, old: Any, new: Any) -> Iterator[str]:
    """What a stage changes; of a block of another type that alone."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get('type') == new.get('type'):
        for key in sorted((old.keys() | new.keys()) - {'auto_resume', 'path', 'stage_begin', 'teacher', 'total_iter'}):
            yield from _differing(f'{where}.{key}'.removeprefix('.'), old.get(key), new.get(key))
    elif old != new:
        short = (own.get('type', list(own)) if isinstance(own, dict) else own for own in (old, new))
        yield f'{where}: {" -> ".join(map(str, short))}'


def set_up(
    opt: dict[str, Any], log: DeferredLog, resume_state: dict[str, Any] | None = None, gate: bool = True
) -> Training:
    """Builds data, networks and loss, loads checkpoints, and puts the teacher through the sanity gate.

    Args:
        opt: of a stage, from :func:`stages_left`.
        resume_state: to resume from; where the stage begins with it, with a new optimizer and scheduler.
        gate: whether the teacher must pass the gate.

    Raises:
        UserError: a checkpoint, the data or their combination is not accepted.
    """
    for folder in (Path(opt['path']['experiments_root']), Path(opt['root_path'], 'tb_logger', opt['name'])):
        check_creatable(folder)  # by _make_folders, once all is known to fit
    ranks = Ranks()
    begins = resume_state is not None and resume_state['iter'] == opt['stage_begin']
    if resume_state is not None:
        check_resume(opt, resume_state['iter'])
    set_random_seed(opt['manual_seed'] + ranks.rank)
    model = build_model(opt)
    with reraise_data_errors():
        loaders = build_loaders(opt)
    loaders.train.worker_init_fn = worker_ignore_signals
    log.info(
        f'{len(dataset_of(loaders.train))} training images, {loaders.sampler.batches} iterations an epoch, '
        f'{opt["train"]["total_iter"]} iterations; {ranks.size} processes with batches of {loaders.train.batch_size}.'
    )
    check_training_sample(model, loaders)
    for name, loader in loaders.val.items():
        check_smallest_image(model, name, loader)
    gates = {}
    for number, (place, own) in enumerate(teacher_blocks(opt.get('teacher')).items() if gate else ()):
        if 'expect' in own:
            expect = own['expect']
            log.info(f'Evaluating the teacher on datasets.{expect["dataset"]} ({place}.expect).')
            loader = loaders.val[expect['dataset']]
            gates[place] = check_teacher(model.teachers[number], expect, loader, opt['scale'], model.device)
            log.info(gates[place])
    if is_cached(opt.get('teacher')):
        model.read_taught(cast(SeededDataset, loaders.train.dataset).dataset)
    if resume_state is not None:
        new = {key: value for key, value in model.training_state().items() if begins and key not in CONTINUED}
        model.resume_training({**resume_state, **new})
    position = Position() if resume_state is None else _position(opt, resume_state, begins, loaders, log)
    return Training(model, loaders, position, gates)


CONTINUED = ('best_metric_results', 'nonfinite', 'average')  # of the training state, from stage to stage


def _position(
    opt: dict[str, Any], resume_state: dict[str, Any], begins: bool, loaders: Loaders, log: DeferredLog
) -> Position:
    """Where to begin; logged."""
    position, differences = resumed_position(resume_state, loaders.sampler, begins)
    log.info(describe_resume(resume_state, opt['path']['resume_state'], position))
    for difference in differences:
        log.warning(f'Resume is not exact: {difference}.')
    return position


def _start(
    option_file: str, options: dict[str, Any], began: str, opt: dict[str, Any], training: Training, log: RunLog
) -> None:
    """Makes the folders, now that all is known to fit, and writes what the run is."""
    if opt['rank'] == 0:
        facts = _facts(option_file, opt, began, training.position)
        _make_folders(opt, in_place=opt['auto_resume'] or opt['path']['resume_state'] is not None)
        of_repeat = {'manual_seed': opt['manual_seed'], 'path': {**options['path'], 'resume_state': None}}
        _write_options({**options, **of_repeat}, facts, opt)
    log.start(opt, training.position)


# make_exp_dirs makes a folder of every path that it does not know, the value of param_key_g for one.
RUN_FOLDERS = ('experiments_root', 'models', 'training_states', 'log', 'visualization')


def _make_folders(opt: dict[str, Any], in_place: bool) -> None:
    """Makes the folders of an experiment. Existing ones are moved aside, unless it continues ``in_place``."""
    folders = [Path(opt['path'][key]) for key in RUN_FOLDERS]
    if in_place:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)
        return
    make_exp_dirs({**opt, 'path': {key: opt['path'][key] for key in RUN_FOLDERS}})
    if opt['logger']['use_tb_logger'] and 'debug' not in opt['name']:
        mkdir_and_rename(str(Path(opt['root_path'], 'tb_logger', opt['name'])))


def _facts(option_file: str, opt: dict[str, Any], began: str, position: Position) -> dict[str, Any]:
    """What ``options.yml`` says of this start beside the options."""
    facts = {
        'start': began,
        'iter': position.iteration,
        'command': ' '.join(sys.argv),
        'option_file': option_file,
        'option_sha256': options_digest(option_file),
        'versions': f'facd_basicsr {facd_basicsr.__version__}, {versions()}',
        'machine': machine(opt['num_gpu'] > 0),
        'threads': torch.get_num_threads(),
        'ranks': opt['world_size'],
    }
    commit = git_commit(PACKAGE_PARENT)
    return facts if commit is None else {**facts, 'commit': commit}


OPTIONS_HEADER = """\
# The options of this run, with base, --force_yml and defaults filled in: an option file for train.py. `run` is not an
# option: it has an entry for each start.

"""


def _write_options(options: dict[str, Any], facts: dict[str, Any], opt: dict[str, Any]) -> None:
    path = Path(opt['path']['experiments_root'], OPTIONS_FILE)
    earlier = load_yaml(path.read_text(encoding='utf-8'), str(path)).get(RUN, []) if path.is_file() else []
    atomic_write(path, OPTIONS_HEADER + option_text({**options, RUN: [*earlier, facts]}))


def main() -> None:
    with exit_without_teardown():
        run_command(lambda: train(parser().parse_args()))


if __name__ == '__main__':
    main()
