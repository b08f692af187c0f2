"""Entry point: PSNR and SSIM of a checkpoint on benchmark sets.

python facd_basicsr/test.py --run experiments/FACD_RCAN_x4 --sets Set5 Set14
python facd_basicsr/test.py -opt options/test/FACD_RCAN_x4.yml
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: its folder holds modules called test and options, which must not be top level
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
from basicsr.utils import get_time_str, make_exp_dirs, set_random_seed
from basicsr.utils.options import dict2str

from facd_basicsr.data.loaders import build_set_loader
from facd_basicsr.data.seeded_dataset import dataset_of
from facd_basicsr.engine.launch import exit_without_teardown, reraise_peer_failure, start_ranks
from facd_basicsr.engine.logs import DeferredLog
from facd_basicsr.environment import versions
from facd_basicsr.errors import locating, reraise_data_errors, reraise_disk_errors, run_command
from facd_basicsr.evaluation.tables import NONE, text_table
from facd_basicsr.files.atomic import check_creatable
from facd_basicsr.models.data_check import check_smallest_image
from facd_basicsr.models.safe_model import build_model
from facd_basicsr.options import check_inputs, complete_options, options_of, parser
from facd_basicsr.runs.benchmark_options import benchmark_options, check_sets
from facd_basicsr.runtime.processes import Ranks

TEST_FOLDERS = ('results_root', 'log', 'visualization')


def test(args: argparse.Namespace, root: Path | None = None, console: bool = True) -> dict[str, dict[str, float]]:
    """Evaluates the checkpoint of a run or of an option file on each test set, and prints and logs one table.

    ``results`` goes to ``root``, the checkout if None.

    Returns:
        {set: {metric: value}}, PSNR in dB, metrics named as in the option file; the same on every rank. A set without
        GT has those that need none.

    Raises:
        UserError: an option, path or checkpoint is not accepted, then no folder was made; or the disk is full.
        PeerFailedError: another process of the group has ended.
    """
    source = args.opt or args.run
    sets, run = args.sets or (), args.run
    check_sets(sets, [run] if run else [])
    options = options_of(args, False, benchmark_options(Path(run), sets, args.force_yml) if run else None)
    opt = complete_options(options, args, is_train=False, root=root)
    check_creatable(Path(opt['path']['results_root']))
    start_ranks(opt, args.launcher)
    check_inputs(opt, source, is_train=False)
    set_random_seed(opt['manual_seed'] + opt['rank'])
    with DeferredLog(opt['rank'], console) as log, reraise_peer_failure(), reraise_disk_errors():
        ranks = Ranks()
        log.info(versions())
        log.info(dict2str(opt))
        with locating(source):
            model = build_model(opt)
            with reraise_data_errors():
                loaders = [build_set_loader(dataset_opt) for _, dataset_opt in sorted(opt['datasets'].items())]
            for name, loader in zip(sorted(opt['datasets']), loaders):
                check_smallest_image(model, name, loader)

        make_exp_dirs({**opt, 'path': {key: opt['path'][key] for key in TEST_FOLDERS}})
        ranks.wait()  # or another would write images into a folder that is yet to be moved aside
        log.write_to(Path(opt['path']['log'], f'test_{opt["name"]}_{get_time_str()}.log'))
        metrics = list(opt['val']['metrics'] or {})
        results = {}
        for loader in loaders:
            model.validation(loader, current_iter=opt['name'], tb_logger=None, save_img=opt['val']['save_img'])
            if metrics:
                results[dataset_of(loader).opt['name']] = dict(model.metric_results)
        rows = [
            [name, *(f'{values[metric]:.4f}' if metric in values else NONE for metric in metrics)]
            for name, values in results.items()
        ]
        log.info('Results\n' + text_table(['set', *metrics], rows))
        return results


def main() -> None:
    with exit_without_teardown():
        run_command(lambda: test(parser(is_train=False).parse_args()))


if __name__ == '__main__':
    main()
