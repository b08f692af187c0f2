"""The order of training samples, which seed and epoch alone decide, from any position on."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

MAX_SEED = 2**63 - 1


class ResumableSampler(Sampler[tuple[int, int]]):
    """(image, seed) of each of this rank's samples in an epoch; the seed is for the sample's crop and flips.

    Rank r of R takes the r-th n of each n * R successive samples: R ranks of n have the batches of one process with
    n * R, in their order. BasicSR's EnlargedSampler knows neither seed nor position, deals samples out one by one, and
    leaves crops to generators whose state depends on the number of workers.

    Args:
        images: size of the dataset.
        ratio: BasicSR's ``dataset_enlarge_ratio``: how often an epoch has each image.
        batch_size: n, of each rank.
        seed: of the run, the same on all ranks.
        rank, world_size: r and R.
    """

    def __init__(self, images: int, ratio: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._images = images
        self._samples = images * ratio
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0
        self._start = 0
        self.batches = self._samples // (batch_size * world_size)  # of an epoch; a rest is dropped

    def set_position(self, epoch: int, batches: int = 0) -> None:
        """The next iteration gives the samples of ``epoch`` that follow its first ``batches`` batches."""
        self._epoch, self._start = epoch, batches

    def settings(self) -> dict[str, int]:
        """What the order depends on; a run that is resumed with others gets other batches."""
        return {
            'images': self._images,
            'samples': self._samples,
            'batch_size': self._batch_size,
            'world_size': self._world_size,
            'seed': self._seed,
        }

    def __iter__(self) -> Iterator[tuple[int, int]]:
        seed = np.random.SeedSequence([self._seed, self._epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed))
        order = torch.randperm(self._samples, generator=generator).numpy() % self._images
        seeds = torch.randint(MAX_SEED, (self._samples,), generator=generator).numpy()
        for batch in range(self._start, self.batches):
            first = (batch * self._world_size + self._rank) * self._batch_size
            for sample in range(first, first + self._batch_size):
                yield int(order[sample]), int(seeds[sample])

    def __len__(self) -> int:
        """Samples of a whole epoch, for this rank."""
        return self.batches * self._batch_size
