"""Samples that depend on their own seed alone, and unreadable images reported by name."""

import random
from collections.abc import Sequence
from typing import Any, Protocol, cast

import cv2
import lmdb
from torch.utils.data import DataLoader, Dataset

from facd_basicsr.data.damaged_images import describe_damage
from facd_basicsr.errors import UserError
from facd_basicsr.runtime.rng import preserve_rng_state, seed_rng


class DescribedDataset(Protocol):
    """A dataset that has a length and its option block.

    Attributes:
        opt: the block of ``datasets``.
    """

    opt: dict[str, Any]

    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


def dataset_of(loader: DataLoader) -> DescribedDataset:
    """The dataset of a loader that :func:`facd_basicsr.data.loaders.build_loaders` or BasicSR has built."""
    return cast(DescribedDataset, loader.dataset)


# What BasicSR's datasets raise for an image that cannot be decoded (None.astype, frombuffer(None)), is not there, or is
# too small or of another size than its pair.
UNREADABLE = (OSError, ValueError, AttributeError, TypeError, cv2.error, lmdb.Error)
TRIES = 10  # so many damaged images in a row are no accident


class SeededDataset(Dataset):
    """A training set whose sample is chosen and augmented by what the sampler gives: (image, seed).

    The sample has its ``seed``, of which the views of losses draw.

    BasicSR's datasets draw crops and flips from the process's generators, so that a sample depends on all earlier
    ones of the same worker. Here they are seeded for each sample and restored after it.

    An unreadable image is replaced by another, drawn by the same seed. The sample's ``damaged`` says
    which and why, in a line for each; it is empty otherwise. The loop decides what to do: an exception
    in a worker would reach it as a page of text, and in BasicSR's prefetching thread not at all.
    """

    def __init__(self, dataset: DescribedDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Any]:
        with preserve_rng_state():
            return self._sample(*sample)

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """A batch, as torch's loaders ask for it: restoring the generators takes longer than cropping a patch."""
        with preserve_rng_state():
            return [self._sample(index, seed) for index, seed in samples]

    def _sample(self, index: int, seed: int) -> dict[str, Any]:
        complaints: dict[str, None] = {}  # in their order, each once
        seed_rng(seed)
        for _ in range(TRIES):
            try:
                # the seed as text: numbers become a tensor, which a prefetcher moves to the GPU
                return {**self.dataset[index], 'seed': str(seed), 'damaged': '\n'.join(complaints)}
            except UNREADABLE as error:
                complaints[describe_damage(self.dataset, index, error)] = None
                index = random.randrange(len(self.dataset))
        raise UserError(f'datasets.train: {TRIES} images in a row cannot be read: {"; ".join(complaints)}')

    def __len__(self) -> int:
        return len(self.dataset)


class NamingDataset(Dataset):
    """A validation set that names unreadable images."""

    def __init__(self, dataset: DescribedDataset) -> None:
        self.dataset = dataset
        self.opt = dataset.opt  # BasicSR's validation reads the set's name there

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self.dataset[index]
        except UNREADABLE as error:
            raise UserError(f'datasets: {describe_damage(self.dataset, index, error)}') from error

    def __len__(self) -> int:
        return len(self.dataset)
