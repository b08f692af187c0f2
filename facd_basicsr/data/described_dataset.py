"""What BasicSR's datasets promise beyond torch's ``Dataset``."""

from typing import Any, Protocol, cast

from torch.utils.data import DataLoader


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
