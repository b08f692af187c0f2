"""Which image of a dataset can't be read, and why."""

import io
from typing import Any

from PIL import Image, UnidentifiedImageError

from facd_basicsr.data.described_dataset import DescribedDataset
from facd_basicsr.data.images import DAMAGED
from facd_basicsr.data.integrity import read_whole
from facd_basicsr.errors import UserError


def complaint_about(dataset: DescribedDataset, index: int, error: Exception) -> str:
    """The file of a sample that is damaged and what is wrong with it, found by reading its files once more.

    BasicSR's datasets say ``'NoneType' object has no attribute 'astype'``.

    Args:
        dataset: a dataset in BasicSR's manner, with ``paths`` and ``file_client``; of others only the index is known.
        index: of the sample.
        error: what the dataset raised.

    Raises:
        UserError: not the image, but what holds all of them can't be read.
        AttributeError, TypeError: the error itself, where all files are whole: it is a fault of the dataset's code.
    """
    reason = ' '.join(str(error).split())
    if not (hasattr(dataset, 'paths') and hasattr(dataset, 'file_client')):
        if isinstance(error, (AttributeError, TypeError)):
            raise error
        return f'image {index} of {type(dataset).__name__}: {reason}'
    entry = dataset.paths[index]
    if dataset.file_client is None:
        raise UserError(f'datasets: {reason}; datasets/README.md describes the layout') from error
    paths = entry if isinstance(entry, dict) else {'lq_path': entry}
    for key, path in sorted(paths.items()):
        client = key.removesuffix('_path')
        try:
            content = dataset.file_client.get(path, client)
            if content is None:
                return f'{_name(dataset, client, path)}: missing'
            with Image.open(io.BytesIO(content)) as image:
                read_whole(image)
        except UnidentifiedImageError:  # whose text has an address in memory, another one each time
            return f'{_name(dataset, client, path)}: not a readable image (of no known format)'
        except DAMAGED as damage:
            return f'{_name(dataset, client, path)}: not a readable image ({" ".join(str(damage).split())})'
    if isinstance(error, (AttributeError, TypeError)):
        raise error
    return f'{_name(dataset, "gt", next(iter(sorted(paths.values()))))}: {reason}'


def _name(dataset: Any, client: str, path: str) -> str:
    """A file's path, or that of the LMDB and the key in it."""
    return f'{getattr(dataset, f"{client}_folder")}: {path}' if dataset.file_client.backend == 'lmdb' else str(path)
