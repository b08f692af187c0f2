"""What each network can do: one function for each column of docs/networks.md, which really does it.

A function returns where it works, and raises :class:`RefusedError` where a command says before it begins that it does
not: ``facd check``, for all that is trained. Any other error is a fault; so is a ``UserError`` in the middle of a run.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import METRICS, picture, write_yml
from processes import run_ranks
from runs import assert_same, metric_lines, result, run
from torch._dynamo.utils import counters

from facd_basicsr.archs.spandrel_arch import registered_name
from facd_basicsr.data.bicubic import bicubic_lr
from facd_basicsr.deploy.export_formats import ONNX, export, measured
from facd_basicsr.deploy.student import Student, read_student
from facd_basicsr.deploy.upscaler import RefusedSizeError, Upscaler
from facd_basicsr.distill.taps import suggested, tappable
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.costs import costs
from facd_basicsr.options import parser
from facd_basicsr.runtime.size_requirements import size_requirements
from facd_basicsr.runtime.tiling import receptive_field_radius
from facd_basicsr.test import test as evaluate
from facd_basicsr.tools.check import check

# train.py, which writes to its working directory instead of to the checkout
TRAIN_PY = """
from pathlib import Path
import facd_basicsr.train as train_py
from facd_basicsr.errors import run_command
with train_py.exit_without_teardown():
    run_command(lambda: train_py.train(train_py.parser().parse_args(), root=Path.cwd()))
"""
ITERATIONS = 4
ODD = (21, 27)  # height and width of LQ that is validated and tested
WIDE = (45, 151)  # of what is upscaled in tiles: farther than the overlap of windows
EVEN = (32, 48)  # of what a graph upscales, whose network may need such sizes
TILE = 16  # LQ pixels
YES = 'yes'


class RefusedError(Exception):
    """A command says in one line, before it begins, that it does not work with this network."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise RefusedError(str(error)) from error


@dataclass(frozen=True)
class Network:
    """A row.

    Attributes:
        block: as ``network_g``, small.
        scale: its upscaling factor.
        lq_size: height and width of LQ in training.
        title: what is different from another row of the same type.
        compiles: whether it is run in the column compile, which takes minutes.
    """

    block: dict[str, Any]
    scale: int = 2
    lq_size: int = 16
    title: str = ''
    compiles: bool = True

    @property
    def name(self) -> str:
        return ' '.join(filter(None, [self.block['type'], self.title]))

    @property
    def columns(self) -> list[str]:
        """Those that are run."""
        return [column for column in COLUMNS if self.compiles or column != 'compile']


RGB = {'num_in_ch': 3, 'num_out_ch': 3}
ECBSR = {'type': 'ECBSR', **RGB, 'num_block': 3, 'num_channel': 6}
RRDBNET = {'type': 'RRDBNet', **RGB, 'num_feat': 6, 'num_block': 1, 'num_grow_ch': 4}
SWINIR = {'type': 'SwinIR', 'img_size': 16, 'window_size': 4, 'embed_dim': 12, 'depths': [2, 2, 2], 'mlp_ratio': 2}
# BasicSR's that upscale or, as RIDNet, keep the size, and this package's two, which are BasicSR's with other defaults.
NETWORKS = [
    Network({'type': 'EDSR', **RGB, 'num_feat': 6, 'num_block': 3, 'upscale': 2}),
    Network({'type': 'EDSRStudent', 'num_feat': 6, 'num_block': 3, 'upscale': 2}),
    Network({'type': 'RCAN', **RGB, 'num_feat': 16, 'num_group': 3, 'num_block': 1, 'upscale': 2}),
    Network({'type': 'RCANStudent', 'num_feat': 16, 'num_group': 3, 'num_block': 1, 'upscale': 2}),
    Network({**RRDBNET, 'scale': 2}, title='x2'),
    Network({**RRDBNET, 'scale': 4}, 4, title='x4'),
    Network({'type': 'MSRResNet', 'num_feat': 6, 'num_block': 3, 'upscale': 2}),
    Network({'type': 'SRVGGNetCompact', 'num_feat': 6, 'num_conv': 3, 'upscale': 2}),
    Network({**ECBSR, 'with_idt': True, 'act_type': 'prelu', 'scale': 2}),
    Network({**SWINIR, 'num_heads': [2, 2, 2], 'upscale': 2, 'upsampler': 'pixelshuffledirect'}),
    Network({'type': 'RIDNet', 'in_channels': 3, 'mid_channels': 16, 'out_channels': 3, 'num_block': 3}, 1),
]


WINDOWS = {'embed_dim': 12, 'depths': [2], 'num_heads': [2], 'window_size': 8}
STRIPES = {'num_heads_window': [2], 'num_heads_stripe': [2]}
WINDOWED = {**WINDOWS, 'mlp_ratio': 2.0, 'upsampler': 'pixelshuffledirect', 'upscale': 2}
# Every class of spandrel's that upscales, but MMRealSR's, which takes a second input or gives a tuple, and AuraSR's,
# which draws noise: small, with the default of what else there is.
UPSCALING = {
    'ATD': {**WINDOWED, 'category_size': 256, 'num_tokens': 8, 'reducted_dim': 4},
    'CRAFT': {'embed_dim': 12, 'depths': [2], 'num_heads': [2], 'upscale': 2},
    'DAT': {'embed_dim': 16, 'split_size': [4, 4], 'depth': [2], 'num_heads': [2], 'upscale': 2},
    'DCTLSA': {'nf': 10, 'upscale': 2},
    'DITN_Real': {'dim': 12, 'ITL_blocks': 1, 'SAL_blocks': 1, 'upscale': 2},
    'DRCT': {**WINDOWS, 'depths': [6], 'gc': 4, 'upscale': 2, 'upsampler': 'pixelshuffle'},
    'FDAT': {'embed_dim': 16, 'num_groups': 1, 'depth_per_group': 2, 'num_heads': 2, 'mid_dim': 16, 'scale': 2},
    'GRL': {'embed_dim': 16, 'depths': [2], **STRIPES, 'upscale': 2, 'upsampler': 'pixelshuffledirect'},
    'Generator': {'num_channels': 8, 'num_blocks': 2, 'upscale_factor': 2},
    'HAT': {**WINDOWS, 'squeeze_factor': 4, 'num_feat': 16, 'upscale': 2},
    'IPT': {'n_feats': 8, 'num_layers': 1, 'patch_size': 12, 'scale': [2]},
    'MoESR': {'dim': 8, 'n_blocks': 1, 'n_block': 1, 'upsample_dim': 8, 'scale': 2},
    'MoSR': {'n_block': 2, 'dim': 8, 'upscale': 2},
    'OmniSR': {'num_feat': 16, 'up_scale': 2},
    'PLKSR': {'dim': 8, 'n_blocks': 2, 'upscaling_factor': 2},
    'RCAN_spandrel': {'n_resgroups': 1, 'n_resblocks': 1, 'n_feats': 16, 'scale': 2},
    'RGT': {'embed_dim': 16, 'depth': [2], 'num_heads': [2], 'upscale': 2},
    'RRDBNet_spandrel': {'num_filters': 8, 'num_blocks': 1, 'scale': 2},
    'RealPLKSR': {'dim': 8, 'n_blocks': 2, 'upscaling_factor': 2},
    'SAFMN': {'dim': 8, 'n_blocks': 2, 'upscaling_factor': 2},
    'SPAN': {'type': 'SPAN', **RGB, 'feature_channels': 8, 'upscale': 2},
    'SRVGGNetCompact_spandrel': {'num_feat': 8, 'num_conv': 2, 'upscale': 2},
    'SeemoRe': {'num_experts': 2, 'num_layers': 2, 'embedding_dim': 8, 'scale': 2},
    'Swin2SR': WINDOWED,
    'SwinIR_spandrel': WINDOWED,
    'UpCunet2x': {},
    'UpCunet2x_fast': {},
    'UpCunet3x': {},
    'UpCunet4x': {},
}
SCALES = {'UpCunet3x': 3, 'UpCunet4x': 4}  # the others are x2
SIZES = {'IPT': 12, **dict.fromkeys(('UpCunet2x', 'UpCunet2x_fast', 'UpCunet3x', 'UpCunet4x'), 48)}  # of LQ
COMPILED = {'MoSR', 'RealPLKSR', 'SAFMN', 'SPAN'}  # small ones, as are deployed
NETWORKS += [
    Network(
        {'type': name, **arguments},
        SCALES.get(name, 2),
        SIZES.get(name, 16),
        compiles=name in COMPILED,
    )
    for name, arguments in UPSCALING.items()
    if name in {registered_name(cls) for _, cls in ARCH_REGISTRY}  # where spandrel is installed
    and name != 'UpCunet4x'  # UpCunet2x's blocks, with another upsampler; a row takes it ten minutes
]


@dataclass(frozen=True)
class Cell:
    """One network in one column.

    Attributes:
        network: the row.
        folder: an empty one.
    """

    network: Network
    folder: Path

    def opt(self, **distill: Any) -> dict[str, Any]:
        """Options for train.py: the network is taught by a small EDSR, by its images alone."""
        scale, data = self.network.scale, _pairs(self.folder, self.network)
        teacher = {'type': 'EDSR', **RGB, 'num_feat': 6, 'num_block': 3, 'upscale': scale}
        return {
            'name': 'tiny',
            'model_type': 'FACDModel',
            'scale': scale,
            'num_gpu': 0,
            'manual_seed': 7,
            'datasets': {
                'train': {
                    **_dataset(data, 'train'),
                    'gt_size': self.network.lq_size * scale,
                    'use_hflip': True,
                    'use_rot': True,
                    'num_worker_per_gpu': 0,
                    'batch_size_per_gpu': 2,
                },
                'val': _dataset(data, 'val'),
            },
            'network_g': self.network.block,
            'teacher': {'network': teacher, 'weights': self.weights(teacher)},
            'path': {'resume_state': None},
            'train': {
                'total_iter': ITERATIONS,
                'optim_g': {'type': 'Adam', 'lr': 1e-4},
                'scheduler': {'type': 'MultiStepLR', 'milestones': [3], 'gamma': 0.5},
                'distill_opt': {'type': 'TeacherSupervisionLoss'},
            },
            'val': {'val_freq': ITERATIONS, 'save_img': False, 'metrics': METRICS},
            'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
        }

    def weights(self, block: dict[str, Any]) -> str:
        """A checkpoint in BasicSR's layout."""
        torch.manual_seed(1)
        path = self.folder / f'{block["type"]}.pth'
        torch.save({'params': build_network(block).state_dict()}, path)
        return str(path)

    def checked(self, opt: dict[str, Any]) -> dict[str, Any]:
        """The options, which ``facd check`` accepts."""
        with refusing():
            list(check(str(write_yml(opt, self.folder / 'check.yml')), []))
        return opt

    def trained(self) -> Student:
        """A student of two iterations, without validation."""
        run({**self.opt(), 'val': None}, self.folder, 2)
        return read_student(self.folder / 'experiments' / 'tiny' / 'models' / 'net_g_latest.pth')

    def upscaled(self, upscaler: Upscaler, height: int, width: int) -> np.ndarray:
        """A picture, upscaled."""
        try:
            image = upscaler.upscale(picture(0, 64, 160)[:height, :width], lambda number, count: None)
        except RefusedSizeError as error:  # facd upscale leaves the image out, and says why
            name = self.network.block['type']
            raise RefusedError(f'{name} does not take images of {height} x {width} ({error})') from error
        assert image.shape == (height * self.network.scale, width * self.network.scale, 3)
        return image.astype(int)


def _pairs(folder: Path, network: Network) -> Path:
    """Folders ``train`` and ``val`` of LQ and GT."""
    scale, data = network.scale, folder / 'data'
    side = max(24, 2 * network.lq_size)
    sizes = {'train': [(side, side)] * 4, 'val': [ODD, (22, 29)]}
    for phase, shapes in sizes.items():
        for index, (height, width) in enumerate(shapes):
            gt = cv2.resize(picture(index, 32, 48), (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
            lq = gt if scale == 1 else bicubic_lr(gt, scale)
            for kind, image in (('GT', gt), ('LQ', lq)):
                (data / phase / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(data / phase / kind / f'{index}.png'), image)
    return data


def _dataset(data: Path, phase: str) -> dict[str, Any]:
    return {
        'name': phase,
        'type': 'PairedImageDataset',
        'dataroot_gt': str(data / phase / 'GT'),
        'dataroot_lq': str(data / phase / 'LQ'),
        'io_backend': {'type': 'disk'},
    }


def student(cell: Cell) -> None:
    """Trains, validates, resumes, tests and is profiled."""
    opt = cell.checked(cell.opt())
    whole, stopped = cell.folder / 'whole', cell.folder / 'stopped'
    run(opt, whole, ITERATIONS)
    run(opt, stopped, 2)
    run(opt, stopped, ITERATIONS, '--auto_resume')
    assert_same(result(stopped, ITERATIONS), result(whole, ITERATIONS))
    test_opt = {key: opt[key] for key in ('scale', 'num_gpu', 'manual_seed', 'network_g')}
    test_opt |= {'name': 'test', 'model_type': 'SRModel', 'datasets': {'test_1': opt['datasets']['val']}}
    checkpoint = whole / 'experiments' / 'tiny' / 'models' / f'net_g_{ITERATIONS}.pth'
    test_opt |= {
        'path': {'pretrain_network_g': str(checkpoint)},
        'val': {'save_img': False, 'suffix': None, 'metrics': METRICS},
    }
    path = str(write_yml(test_opt, cell.folder / 'test.yml'))
    metrics = evaluate(parser(is_train=False).parse_args(['-opt', path]), cell.folder, console=False)
    validated = {line['metric']: line['value'] for line in metric_lines(whole) if line.get('set') == 'val'}
    assert metrics == {'val': validated}
    costs(path, [], repeats=0)


def as_teacher(cell: Cell) -> None:
    """Teaches a small EDSR by its checkpoint, and is profiled beside it."""
    opt = cell.opt()
    opt['network_g'] = opt['teacher']['network']
    opt['teacher'] = {'network': cell.network.block, 'weights': cell.weights(cell.network.block)}
    opt['teacher']['expect'] = {'dataset': 'val', 'psnr_y': 10, 'tolerance': 100}
    run(cell.checked(opt), cell.folder, 2)
    costs(str(cell.folder / 'check.yml'), [], repeats=0)


def _taught_by_itself(cell: Cell, **execution: Any) -> dict[str, Any]:
    """FACD, if there are taps, with a teacher of the same class."""
    opt = cell.opt()
    net = build_network(cell.network.block).eval()
    flat = torch.full((1, 3, cell.network.lq_size, cell.network.lq_size), 0.5)
    paths = suggested(tappable(net, flat, net))
    opt['teacher'] = {'network': cell.network.block, 'weights': cell.weights(cell.network.block), **execution}
    opt['train'] |= execution
    if paths:
        opt['taps'] = [{'student': path, 'teacher': path} for path in paths]
        opt['network_r'] = {'type': 'DeepRegressor'}
        opt['train']['distill_opt'] = {'type': 'FACDLoss', 'lambda': 4, 'layer_weights': [1.0] * len(paths)}
    return opt


def taps(cell: Cell) -> None:
    """Learns from and teaches features at the paths that ``facd check --modules`` suggests."""
    opt = _taught_by_itself(cell)
    if 'taps' not in opt:
        raise RefusedError(f'taps: no module of {cell.network.block["type"]} gives features of the size of LQ')
    run(cell.checked(opt), cell.folder, 2)


def bf16(cell: Cell) -> None:
    """Student and teacher run in bfloat16."""
    run(cell.checked(_taught_by_itself(cell, precision='bf16')), cell.folder, 2)


def channels_last(cell: Cell) -> None:
    """Weights and features of student and teacher lie in memory as (N, H, W, C)."""
    run(cell.checked(_taught_by_itself(cell, channels_last=True)), cell.folder, 2)


def compiled(cell: Cell) -> None:
    """The student is compiled and trained; ``facd check`` does two iterations."""
    opt = _taught_by_itself(cell)
    opt['train'] |= {'compile': {}, 'compile_r': None}
    torch._dynamo.reset()  # after eight other networks it would not compile
    counters.clear()
    cell.checked(opt)
    assert counters['stats']['unique_graphs']


def torchrun(cell: Cell) -> None:
    """Trains on two processes."""
    opt = cell.checked(_taught_by_itself(cell))
    path = write_yml(opt, cell.folder / 'two.yml')
    done = run_ranks('-c', TRAIN_PY, '-opt', path, '--launcher', 'pytorch', cwd=cell.folder)
    assert done.returncode == 0, done.stderr


def onnx(cell: Cell) -> None:
    """Is written as ONNX, equal on photographs, and upscales by it."""
    student, stem = measured(cell.trained(), {}), cell.folder / 'student'
    with refusing():
        ((path, found),) = export(student, stem, [ONNX]).items()
    if isinstance(found, UserError):
        raise RefusedError(str(found))
    images = [cell.upscaled(Upscaler(net), *EVEN) for net in (read_student(path), student)]
    assert abs(images[0] - images[1]).max() <= 1


def upscale(cell: Cell) -> None:
    """Upscales an image of odd height and width in tiles, like as a whole."""
    found = cell.trained()
    whole, in_tiles = Upscaler(found, 0), Upscaler(found, TILE)
    assert abs(cell.upscaled(in_tiles, *WIDE) - cell.upscaled(whole, *WIDE)).max() <= 1
    if not in_tiles.tile:
        sizes = size_requirements(found.net, 3, cell.network.scale)
        with refusing():  # says why val.tile is refused
            receptive_field_radius(found.net, 3, cell.network.scale, sizes.aligned(TILE), sizes)
        raise RefusedError(f'{cell.network.block["type"]} shows seams in tiles')


COLUMNS: dict[str, Callable[[Cell], None]] = {
    'student': student,
    'teacher': as_teacher,
    'taps': taps,
    'bf16': bf16,
    'channels_last': channels_last,
    'compile': compiled,
    'torchrun': torchrun,
    'ONNX': onnx,
    'upscale in tiles': upscale,
}


def outcome(network: Network, column: str) -> str:
    """What the table says of a network in a column: :data:`YES`, or the reason.

    Raises:
        Exception: anything but a refusal.
    """
    with (
        TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            COLUMNS[column](Cell(network, Path(folder)))
        except RefusedError as refused:
            return str(refused).replace(f'{folder}/', '').removeprefix('check.yml: ')
    return YES
