"""Options of Real-ESRGAN's files, and photographs for them."""

import copy
from pathlib import Path
from typing import Any

import cv2
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.utils.registry import DATASET_REGISTRY
from conftest import picture

KERNELS = {
    'blur_kernel_size': 21,
    'kernel_list': ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso'],
    'kernel_prob': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    'sinc_prob': 0.1,
    'blur_sigma': [0.2, 3.0],
    'betag_range': [0.5, 4.0],
    'betap_range': [1.0, 2.0],
    'blur_kernel_size2': 21,
    'kernel_list2': ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso'],
    'kernel_prob2': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    'sinc_prob2': 0.1,
    'blur_sigma2': [0.2, 1.5],
    'betag_range2': [0.5, 4.0],
    'betap_range2': [1.0, 2.0],
    'final_sinc_prob': 0.8,
}
DEGRADATION = {
    'resize_prob': [0.2, 0.7, 0.1],
    'resize_range': [0.15, 1.5],
    'gaussian_noise_prob': 0.5,
    'noise_range': [1.0, 30.0],
    'poisson_scale_range': [0.05, 3.0],
    'gray_noise_prob': 0.4,
    'jpeg_range': [30.0, 95.0],
    'second_blur_prob': 0.8,
    'resize_prob2': [0.3, 0.4, 0.3],
    'resize_range2': [0.3, 1.2],
    'gaussian_noise_prob2': 0.5,
    'noise_range2': [1.0, 25.0],
    'poisson_scale_range2': [0.05, 2.5],
    'gray_noise_prob2': 0.4,
    'jpeg_range2': [30.0, 95.0],
}
USM = {'l1_gt_usm': True, 'percep_gt_usm': True, 'gan_gt_usm': False}  # as RealESRGAN_x4plus was trained


@DATASET_REGISTRY.register()
class SmallCrops(RealESRGANDataset):
    """Crops of 64 x 64, where BasicSR's 400 x 400 take forty times as long."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return {**sample, 'gt': sample['gt'][:, :64, :64].contiguous()}


def prepare() -> None:
    """Registers the dataset in another process, by the import of this module."""


def write_photographs(folder: Path, count: int = 6) -> None:
    """PNGs smaller than the dataset's crop of 400, which it mirrors, and ``list.txt``, their names."""
    folder.mkdir()
    for number in range(count):
        cv2.imwrite(str(folder / f'{number}.png'), picture(number, 96, 120))
    (folder / 'list.txt').write_text(''.join(f'{number}.png\n' for number in range(count)))


def degraded_opt(opt: dict, folder: Path, gt_usm: bool | None = False) -> dict:
    """The option dict with LQ that are made of photographs in ``folder``, in batches of 2 and a pool of 8: full after
    four. Without sharpening, the slowest part on a CPU; ``gt_usm`` None: as RealESRGANModel's."""
    if not folder.exists():
        write_photographs(folder)
    opt = copy.deepcopy(opt)
    loading = {key: opt['datasets']['train'][key] for key in ('num_worker_per_gpu', 'dataset_enlarge_ratio')}
    opt['datasets']['train'] = {
        'name': 'photographs',
        'type': 'SmallCrops',
        'dataroot_gt': str(folder),
        'meta_info': str(folder / 'list.txt'),
        'io_backend': {'type': 'disk'},
        **copy.deepcopy(KERNELS),
        'use_hflip': True,
        'use_rot': False,
        'batch_size_per_gpu': 2,
        **loading,
    }
    recipe = USM if gt_usm is None else {'gt_usm': gt_usm}
    crops = {'resize_range': [0.5, 1.5], 'gt_size': 32, 'queue_size': 8}  # what is left is larger than a kernel
    return {**opt, **copy.deepcopy(DEGRADATION), **recipe, **crops}
