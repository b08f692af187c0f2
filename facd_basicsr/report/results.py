"""The table and the crops of a page: a run's networks on its validation sets, scored as ``facd benchmark`` scores."""

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from PIL import Image

from facd_basicsr.data.paths import check_paths
from facd_basicsr.distill.teacher import teacher_blocks
from facd_basicsr.errors import UserError
from facd_basicsr.evaluation.figures import as_picture, best_of, crop_psnr, differing_windows, marked
from facd_basicsr.evaluation.methods import BICUBIC, Method, build_student, build_teacher_methods, device_of
from facd_basicsr.evaluation.tables import Means, MetricBlocks, Table, means, other_metrics, quality_table, scored
from facd_basicsr.evaluation.test_sets import ImagePair, Sets, build_sets, pairs
from facd_basicsr.files.download import cached_path, is_url, local_path
from facd_basicsr.options import OPTIONS_FILE
from facd_basicsr.options.build import check_lone_network, dry_run
from facd_basicsr.progress import ProgressBar
from facd_basicsr.runs.run_folder import RunFolder, param_key_of
from facd_basicsr.runtime.perceptual_metrics import prepare

CROPS = 4
SIZE, LEAST_SIZE = 96, 8  # of a crop in pixels of GT; smaller than the first where an image has no room for it
WHOLE = (240, 160)  # width and height that an image's thumbnail fits in


@dataclass(frozen=True)
class ShownCrop:
    """A crop: its image and where in it, a thumbnail of the image with the crop's outline, and all views of it: what
    made each, what is said of it, and the PNG as a data URI."""

    title: str
    size: int
    whole: str
    views: list[tuple[str, str, str]]


def differing_crops(
    student: str, scale: int, pair: ImagePair, outputs: Mapping[str, np.ndarray]
) -> list[tuple[float, ShownCrop]]:
    """(difference, crop) of the windows of an image in which student and bicubic differ most; none if it is too small.

    As :func:`facd_basicsr.evaluation.figures.find_crops` chooses, but neither keeps nor upscales an image again.

    Args:
        scale: upscaling factor, and the border that is left out.
        outputs: by method, the upscaled LQ, BGR uint8 (H, W, 3).
    """
    size = min(SIZE, min(pair.gt.shape[:2]) - 2 * scale)
    if size < LEAST_SIZE:
        return []
    found = []
    for difference, crop in differing_windows([outputs[BICUBIC], outputs[student]], pair, scale, size, CROPS):
        views = [
            (name, f'{crop_psnr(sr, crop):.2f} dB', png_uri(as_picture(crop.of(sr)))) for name, sr in outputs.items()
        ]
        views.append(('HR', 'ground truth', png_uri(as_picture(crop.of(pair.gt)))))
        whole = png_uri(marked(pair.gt, crop.box, WHOLE))
        found.append((difference, ShownCrop(f'{pair.set}/{pair.image}', size, whole, views)))
    return found


def png_uri(picture: Image.Image) -> str:
    """A picture as the ``src`` of an ``img``."""
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG', optimize=True)
    return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


@dataclass
class Results:
    """Results of the networks of a run.

    Attributes:
        methods: bicubic, the student, and the teachers if their weights are there.
        others: the table's metrics beside PSNR and SSIM.
        mean: the values of the table.
        table: None where there is none; then ``notes`` say why.
        crops: those in which student and bicubic differ most.
        notes: what is missing and why, and what must be known about them; a sentence each.
    """

    methods: list[Method] = field(default_factory=list)
    others: MetricBlocks = field(default_factory=dict)
    mean: Means = field(default_factory=dict)
    table: Table | None = None
    crops: list[ShownCrop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def results_of(run: RunFolder) -> Results:
    """Scores a run's student, bicubic and its teachers, and finds crops, under a progress bar.

    Data or weights that are missing or damaged are named in the notes.
    """
    result = Results()
    try:
        sets = _validation_sets(run.opt)
        student = _student(run)
        result.methods = [Method(BICUBIC, run.opt['scale']), student]
        if 'teacher' in run.opt:
            try:
                result.methods += _teachers(run)
            except UserError as error:
                result.notes.append(f'No teacher in table and crops: {error}.')
        images = ProgressBar(
            pairs(sets), 'table and crops', sum(map(len, sets.values())), unit='image', dynamic_ncols=True
        )
        result.others = _available(run.opt, result.notes)
        _score(result, student.name, images)
    except UserError as error:
        result.notes.append(f'No table and no crops: {error}.')
    return result


def _available(opt: dict[str, Any], notes: list[str]) -> MetricBlocks:
    """The run's metrics beside PSNR and SSIM. Of those that lack a library or weights the notes say so."""
    found = {}
    for name, block in other_metrics(opt).items():
        try:
            prepare(f'val.metrics.{name}', block)
            found[name] = block
        except UserError as error:
            notes.append(f'No {name} in the table: {error}.')
    return found


def _score(result: Results, student: str, images: Iterable[ImagePair]) -> None:
    """Fills in table and crops. Every method upscales every image once.

    Raises:
        UserError: an image cannot be read; then there is neither.
    """
    scale = result.methods[0].scale
    records: list[dict[str, Any]] = []
    crops: list[list[tuple[float, ShownCrop]]] = []
    for pair in images:
        outputs = {method.name: method.upscale(pair.lq) for method in result.methods}
        records += [scored(name, pair, sr, scale, others=result.others) for name, sr in outputs.items()]
        crops.append(differing_crops(student, scale, pair, outputs))
    result.mean = means(records)
    result.table = quality_table(result.methods, result.mean, result.others)
    result.crops = best_of(crops, CROPS)
    if not result.crops:
        result.notes.append('No crops: the images are too small.')


def _validation_sets(opt: dict[str, Any]) -> Sets:
    found = {phase: block for phase, block in opt['datasets'].items() if phase.split('_')[0] == 'val'}
    blocks = {phase: block for phase, block in found.items() if block['type'] != 'SingleImageDataset'}
    if not blocks:
        lacks = 'has no ground truth' if found else 'missing'
        raise UserError(f'datasets.val: {lacks}; accepted: a run with a validation set of pairs')
    try:
        check_paths({'datasets': blocks, 'scale': opt['scale'], 'path': {}}, is_train=False)
    except UserError as error:
        relative = [block for block in blocks.values() if not Path(str(block.get('dataroot_gt'))).is_absolute()]
        hint = ' (paths are relative to the folder that facd report is run in)' if relative else ''
        raise UserError(f'{error}{hint}') from error
    return build_sets({'datasets': blocks, 'scale': opt['scale']})


def _student(run: RunFolder) -> Method:
    opt = run.opt
    model = MODEL_REGISTRY.get(opt['model_type']) if opt['model_type'] in MODEL_REGISTRY else None
    if getattr(model, 'test', None) is not SRModel.test:
        raise UserError(
            f'model_type: {opt["model_type"]} has its own test(), or is not installed; accepted here: '
            'models that test as SRModel does'
        )
    if run.checkpoint is None:
        raise UserError(f'{run.path / "models"} has no net_g_*.pth; accepted: a run with a checkpoint of its student')
    check_lone_network('network_g', opt['network_g'], opt['scale'])
    dry_run({'network_g': opt['network_g']}, is_train=False)
    param_key = param_key_of(opt)
    path = {'pretrain_network_g': str(run.checkpoint), 'param_key_g': param_key}
    name = 'student (EMA)' if param_key == 'params_ema' else 'student'
    return build_student(str(run.path / OPTIONS_FILE), {**opt, 'name': name, 'path': path}, device_of([opt]))


def _teachers(run: RunFolder) -> list[Method]:
    for place, own in teacher_blocks(run.opt.get('teacher')).items():
        if 'network' in own:
            check_lone_network(f'{place}.network', own['network'], run.opt['scale'])
        weights = own['weights']
        path = cached_path(weights, f'{place}.weights') if is_url(weights) else local_path(weights)
        if not path.is_file():
            raise UserError(f'{place}.weights: {weights} is not available: no such file: {path}')
    return build_teacher_methods(str(run.path / OPTIONS_FILE), run.opt, device_of([run.opt]))
