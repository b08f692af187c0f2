"""BasicSR's images without ground truth, which in training are patches."""

from typing import Any

import numpy as np
from basicsr.data import single_image_dataset
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import bgr2ycbcr, img2tensor
from basicsr.utils.registry import DATASET_REGISTRY


class SingleImageDataset(single_image_dataset.SingleImageDataset):
    """BasicSR's, whose whole images of several sizes make no batch: in ``datasets.train`` a random patch of each, the
    LQ that ``PairedImageDataset`` gives under the same random numbers."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        if self.opt.get('phase') == 'train':
            lq, size = sample['lq'].permute(1, 2, 0).numpy(), self.opt['gt_size'] // self.opt['scale']
            _, lq = paired_random_crop(lq, lq, size, 1, sample['lq_path'])
            lq = augment(np.ascontiguousarray(lq), self.opt['use_hflip'], self.opt['use_rot'])
            sample['lq'] = img2tensor(lq, bgr2rgb=False)  # (C, size, size)
        return sample


single_image_dataset.rgb2ycbcr = bgr2ycbcr  # for color: y BasicSR's takes its BGR images for RGB
DATASET_REGISTRY._obj_map['SingleImageDataset'] = SingleImageDataset  # a second registration asserts
