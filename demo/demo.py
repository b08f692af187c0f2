"""Demo of distillation in a few minutes on two CPU cores, without downloads. ``make demo`` runs it.

    python demo/demo.py

Prepares x2 pairs from the photographs in scikit-image's wheel, trains a small student alone and with FACD, with the
same initial weights and data order, and prints the results.
``--train-teacher`` retrains the shipped teacher (demo/EDSR_f32b8_x2.pth) on the same photographs.
"""

import argparse
import functools
import shlex
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == '__main__':
    sys.path[0] = str(ROOT)  # this checkout's package, not an installed one

import facd_basicsr  # noqa: F401  must come before basicsr

# isort: split
import cv2
import numpy as np
from basicsr.archs import build_network
from basicsr.data.transforms import mod_crop
from torch import nn

from facd_basicsr.data.bicubic import bicubic_lr, with_bicubic_lr
from facd_basicsr.data.lmdb_pairs import write_lmdbs
from facd_basicsr.distill.teacher import build_teacher
from facd_basicsr.errors import Stopped, reraise_disk_errors, run_command
from facd_basicsr.evaluation.complexity import flops, latencies_ms, parameters
from facd_basicsr.evaluation.figures import enlarge, grid, window_sums
from facd_basicsr.evaluation.tables import text_table
from facd_basicsr.files.atomic import atomic_path, atomic_torch_save, atomic_write, partial_of
from facd_basicsr.files.images import photograph, read_bgr
from facd_basicsr.files.state_dicts import load_state_dict
from facd_basicsr.options import parser
from facd_basicsr.options.parse import checked_options
from facd_basicsr.progress import ProgressBar
from facd_basicsr.runtime.metrics import as_input, bicubic, score, upscale
from facd_basicsr.train import train

SCALE = 2
SUB_IMAGE = 96
CROP, ZOOM = 56, 4
OPTIONS = ROOT / 'demo'
OUT = ROOT / 'demo_output'
DATA = OUT / 'data'
TEACHER_WEIGHTS = OPTIONS / 'EDSR_f32b8_x2.pth'

TRAIN_PHOTOGRAPHS = (
    'brick.png',
    'camera.png',
    'clock_motion.png',
    'coins.png',
    'grass.png',
    'gravel.png',
    'hubble_deep_field.jpg',
    'ihc.png',
    'motorcycle_left.png',
    'motorcycle_right.png',
    'retina.jpg',
    'rocket.jpg',
)
VAL_PHOTOGRAPHS = ('astronaut.png', 'chelsea.png', 'coffee.png')


def gt_of(name: str) -> np.ndarray:
    """A photograph from scikit-image's wheel, BGR uint8, of a size that ``SCALE`` divides."""
    return mod_crop(photograph(name), SCALE)


def pair(name: str, scales: list[int]) -> dict[int, np.ndarray]:
    return with_bicubic_lr(gt_of(name), scales, SCALE)


def make_data() -> None:
    """Writes training LMDBs and folders of training LQ and validation to ``DATA``, unless they exist."""
    if (DATA / 'train_LR').is_dir():
        return
    shutil.rmtree(DATA, ignore_errors=True)
    partial = partial_of(DATA)
    shutil.rmtree(partial, ignore_errors=True)
    write_lmdbs(
        {Path(name).stem: functools.partial(pair, name) for name in TRAIN_PHOTOGRAPHS},
        {1: partial / 'train_HR_sub.lmdb', SCALE: partial / f'train_LR_bicubic_X{SCALE}_sub.lmdb'},
        SUB_IMAGE,
        SUB_IMAGE,
    )
    for folder in ('train_LR', 'val_GT', 'val_LR'):
        (partial / folder).mkdir()
    for name in TRAIN_PHOTOGRAPHS:
        cv2.imwrite(str((partial / 'train_LR' / name).with_suffix('.png')), bicubic_lr(gt_of(name), SCALE))
    for name in VAL_PHOTOGRAPHS:
        gt = gt_of(name)
        file_name = Path(name).with_suffix('.png').name
        cv2.imwrite(str(partial / 'val_GT' / file_name), gt)
        cv2.imwrite(str(partial / 'val_LR' / file_name), bicubic_lr(gt, SCALE))
    partial.rename(DATA)


def run_training(option_file: Path, iterations: int | None, title: str) -> float:
    """Trains an option file below ``OUT`` with a progress bar. Returns the seconds it took."""
    opt = options(option_file)
    total = iterations or opt['train']['total_iter']
    overrides = [*path_overrides(opt), f'train:total_iter={total}']
    args = parser().parse_args(['-opt', str(option_file), '--force_yml', *overrides])
    start = time.perf_counter()
    with ProgressBar(total=total, desc=title, unit='it', mininterval=0.5, dynamic_ncols=True) as bar:
        try:
            train(args, root=OUT, console=False, on_iteration=lambda iteration: bar.update(iteration - bar.n))
        except Stopped:  # its message is about resuming with train.py; the demo starts over
            raise KeyboardInterrupt from None
    return time.perf_counter() - start


def path_overrides(opt: dict) -> list[str]:
    """``--force_yml`` entries that make an option file's paths independent of the working directory."""
    teacher = [f'teacher:weights={TEACHER_WEIGHTS}'] if 'teacher' in opt else []
    return [
        *teacher,
        f'datasets:train:dataroot_gt={DATA / "train_HR_sub.lmdb"}',
        f'datasets:train:dataroot_lq={DATA / f"train_LR_bicubic_X{SCALE}_sub.lmdb"}',
        f'datasets:val:dataroot_gt={DATA / "val_GT"}',
        f'datasets:val:dataroot_lq={DATA / "val_LR"}',
    ]


def options(option_file: Path) -> dict:
    return checked_options(str(option_file), [], is_train=True)


def trained_student(option_file: Path) -> nn.Module:
    """The student of a finished run below ``OUT``, in eval mode."""
    opt = options(option_file)
    net = build_network(opt['network_g'])
    checkpoint = OUT / 'experiments' / opt['name'] / 'models' / 'net_g_latest.pth'
    net.load_state_dict(load_state_dict(checkpoint, str(option_file), param_keys=['params']))
    return net.eval()


def largest_error(error: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left of the ``size`` x ``size`` window with the largest sum of ``error``, (H, W)."""
    sums = window_sums(error, size)
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)


def report(nets: dict[str, nn.Module], seconds: dict[str, float], iterations: int) -> None:
    """Prints and writes the table, and draws crops of every method.

    Args:
        nets: networks by name, in the order of the table.
        seconds: training time by name, if trained.
        iterations: training iterations of the students.
    """
    gts = {path.stem: read_bgr(path) for path in sorted((DATA / 'val_GT').iterdir())}
    lqs = {name: read_bgr(DATA / 'val_LR' / f'{name}.png') for name in gts}
    images = {'bicubic': {name: bicubic(lq, SCALE) for name, lq in lqs.items()}}
    images |= {method: {name: upscale(net, lq) for name, lq in lqs.items()} for method, net in nets.items()}
    scores = {method: {name: score(sr, gts[name], SCALE) for name, sr in srs.items()} for method, srs in images.items()}

    latencies = [
        latencies_ms({name: (net, as_input(lq)) for name, net in nets.items()}, repeats=5) for lq in lqs.values()
    ]
    rows = []
    for method, by_image in scores.items():
        quality = [float(np.mean([s[key] for s in by_image.values()])) for key in ('psnr_y', 'psnr_rgb', 'ssim_y')]
        cells = [method, f'{quality[0]:.3f}', f'{quality[1]:.3f}', f'{quality[2]:.4f}']
        if method in nets:
            net = nets[method]
            ms = float(np.mean([np.median(times[method]) for times in latencies]))
            cells += [f'{parameters(net):,}', f'{flops(net, SCALE) / 1e9:.1f} G', f'{ms:.1f}']
        else:
            cells += ['-'] * 3
        cells.append(f'{seconds[method]:.0f} s' if method in seconds else '-')
        rows.append(cells)
    table = text_table(
        [f'x2, {iterations} iterations', 'PSNR-Y', 'PSNR-RGB', 'SSIM-Y', 'parameters', 'FLOPs', 'ms/image', 'training'],
        rows,
    )
    atomic_write(OUT / 'table.txt', table + '\n')

    pictures = []
    for name, gt in gts.items():
        top, left = largest_error(np.abs(gt.astype(float) - images['bicubic'][name]).sum(2), CROP)
        window = np.s_[top : top + CROP, left : left + CROP]
        row = [(f'{name}\nground truth', enlarge(gt[window], ZOOM))]
        for method, srs in images.items():
            row.append((f'{method}\n{scores[method][name]["psnr_y"]:.2f} dB', enlarge(srs[name][window], ZOOM)))
        pictures.append(row)
    with atomic_path(OUT / 'comparison.png') as path:
        grid(pictures).save(path)

    print(f'\nMean over {len(gts)} held-out photographs ({", ".join(gts)}):\n\n{table}\n')
    print('FLOPs: for a 1280x720 output, two per multiply-add. ms/image: on this CPU, mean over the photographs.')
    print(f'Crops where bicubic errs most, with the PSNR-Y of the full photograph: {OUT / "comparison.png"}')
    print(f'Option files: {OPTIONS}. Logs and checkpoints: {OUT / "experiments"}. TensorBoard: {OUT / "tb_logger"}.')


def demo(iterations: int | None) -> None:
    """Runs the demo; ``iterations`` replaces the students' ``train.total_iter``."""
    start = time.perf_counter()
    for stale in ('experiments', 'tb_logger'):
        shutil.rmtree(OUT / stale, ignore_errors=True)
    for stale in ('table.txt', 'comparison.png'):
        (OUT / stale).unlink(missing_ok=True)
    print('1/4 data: pairs from the photographs in scikit-image', flush=True)
    make_data()
    student, facd = OPTIONS / 'Student.yml', OPTIONS / 'FACD.yml'
    seconds = {
        'student alone': run_training(student, iterations, '2/4 student alone'),
        'student, FACD': run_training(facd, iterations, '3/4 student, FACD'),
    }
    print('4/4 evaluation', flush=True)
    nets = {
        'student alone': trained_student(student),
        'student, FACD': trained_student(facd),
        'teacher': build_teacher({**options(facd)['teacher'], 'weights': str(TEACHER_WEIGHTS)}, SCALE).net,
    }
    report(nets, seconds, iterations or options(student)['train']['total_iter'])
    print(f'Took {time.perf_counter() - start:.0f} s.')
    print('Upscale photographs of your own, files or folders, in the place of the first path:')
    checkpoint = OUT / 'experiments' / options(facd)['name'] / 'models' / 'net_g_latest.pth'
    photo = (DATA / 'val_GT' / VAL_PHOTOGRAPHS[0]).with_suffix('.png')
    print(command_line('upscale', photo, '-o', OUT / 'upscaled', '--student', checkpoint))
    print('Export the student, also in int8 (needs onnx and onnxruntime):')
    print(command_line('export', checkpoint, '-o', OUT / 'student', '--int8', '--calibrate', DATA / 'train_LR'))


def command_line(*words: str | Path) -> str:
    """A ``facd`` command for the shell, wherever the demo is started."""
    return shlex.join(
        _from_here(word) if isinstance(word, Path) else word for word in (sys.executable, ROOT / 'facd_cli.py', *words)
    )


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def train_teacher() -> None:
    """Trains demo/Teacher.yml on the demo's photographs and replaces the shipped weights."""
    make_data()
    option_file = OPTIONS / 'Teacher.yml'
    run_training(option_file, None, 'teacher')
    atomic_torch_save({'params': trained_student(option_file).state_dict()}, TEACHER_WEIGHTS)
    print(f'Wrote {TEACHER_WEIGHTS}.')


def main() -> None:
    arguments = argparse.ArgumentParser(prog='python demo/demo.py', description=__doc__.splitlines()[0])
    arguments.add_argument('--train-teacher', action='store_true', help='retrain the shipped teacher')
    arguments.add_argument('--iterations', type=int, help='training iterations of the students instead of total_iter')
    args = arguments.parse_args()
    if args.iterations is not None and args.iterations < 1:
        arguments.error(f'--iterations: {args.iterations}; accepted: 1 or more')

    def run() -> None:
        with reraise_disk_errors():
            train_teacher() if args.train_teacher else demo(args.iterations)

    run_command(run)


if __name__ == '__main__':
    main()
