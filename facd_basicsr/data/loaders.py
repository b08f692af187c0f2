"""Training and validation loaders of an option dict, by BasicSR's datasets and loader."""

import multiprocessing
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.prefetch_dataloader import CUDAPrefetcher, PrefetchDataLoader, PrefetchGenerator
from torch.utils.data import DataLoader, Sampler

from facd_basicsr.data.dataset_rules import Rules, image_paths, rules_of, with_plain_list
from facd_basicsr.data.memory_pairs import file_backend, from_memory, is_in_memory
from facd_basicsr.data.seeded_dataset import DescribedDataset, NamingDataset, SeededDataset
from facd_basicsr.errors import UserError, one_line, reraise

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
        self._end = self.batches

    def set_position(self, epoch: int, batches: int = 0, most: int | None = None) -> None:
        """The next iteration gives the samples of ``epoch`` that follow its first ``batches`` batches, of all that are
        left or of ``most`` batches."""
        self._epoch, self._start = epoch, batches
        self._end = self.batches if most is None else min(self.batches, batches + most)

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
        for batch in range(self._start, self._end):
            first = (batch * self._world_size + self._rank) * self._batch_size
            for sample in range(first, first + self._batch_size):
                yield int(order[sample]), int(seeds[sample])

    def __len__(self) -> int:
        """Samples of a whole epoch, for this rank."""
        return self.batches * self._batch_size


@dataclass
class Loaders:
    """What a run reads."""

    train: DataLoader
    sampler: ResumableSampler  # the training loader's
    val: dict[str, DataLoader]  # by the name of their block in `datasets`


def build_loaders(opt: dict[str, Any]) -> Loaders:
    """Builds all loaders of a run.

    As BasicSR's ``create_train_val_dataloader``, whose sampler and datasets cannot be resumed.

    Args:
        opt: from :func:`facd_basicsr.options.parse_options`.

    Raises:
        UserError: an epoch has not a single batch.
    """
    # a copy from pageable memory waits for all earlier GPU work
    train_opt = dict(opt['datasets']['train'])
    if train_opt['pin_memory'] is None:
        train_opt['pin_memory'] = opt['num_gpu'] > 0
    train_set = build_ordered_dataset(train_opt)
    sampler = ResumableSampler(
        len(train_set),
        train_opt['dataset_enlarge_ratio'],
        train_opt['batch_size_per_gpu'],
        opt['manual_seed'],
        opt['rank'],
        opt['world_size'],
    )
    if sampler.batches == 0:
        raise UserError(
            f'datasets.train.batch_size_per_gpu: {train_opt["batch_size_per_gpu"]} for epochs of '
            f'{len(train_set) * train_opt["dataset_enlarge_ratio"] // opt["world_size"]} samples; accepted: no '
            'more than these (dataset_enlarge_ratio repeats the images)'
        )
    train = build_dataloader(
        SeededDataset(train_set),
        train_opt,
        num_gpu=opt['num_gpu'],
        dist=opt['dist'],
        sampler=sampler,
        seed=opt['manual_seed'],
    )
    # of its own: each new iterator draws a number, and the model's random numbers must not depend on their count
    train.generator = torch.Generator()
    val = {name: build_set_loader(dataset_opt) for name, dataset_opt in opt['datasets'].items() if name != 'train'}
    return Loaders(train, sampler, val)


def build_set_loader(dataset_opt: dict[str, Any]) -> DataLoader:
    """Of a set of validation or test, image by image."""
    # without BasicSR's prefetching thread, which ends silently at an error
    return build_dataloader(NamingDataset(build_ordered_dataset(dataset_opt)), {**dataset_opt, 'prefetch_mode': None})


def build_ordered_dataset(dataset_opt: dict[str, Any]) -> DescribedDataset:
    """As BasicSR's ``build_dataset``, with the images that :func:`facd_basicsr.data.dataset_rules.image_paths` finds,
    by name: their order on the disk is not that of a copy, and a run resumed with the copy would see others.

    A dataset with rules of its own is built as it is.

    Raises:
        UserError: its images are not found, or it reads an option that its block lacks.
    """
    where = f'datasets.{dataset_opt["phase"]}'
    in_memory = is_in_memory(dataset_opt)
    if in_memory:
        dataset_opt = {**dataset_opt, 'io_backend': {'type': file_backend(dataset_opt)}}
    rules = rules_of(dataset_opt)
    with reraise_missing_option(dataset_opt):
        if rules is None:
            return build_dataset(dataset_opt)
        if rules.clips:
            with with_plain_list(where, dataset_opt, rules) as plain:
                return build_dataset(plain)
        dataset = _with_images(where, dataset_opt, rules)
    return from_memory(dataset) if in_memory else dataset


def reraise_missing_option(dataset_opt: dict[str, Any]) -> AbstractContextManager[None]:
    """Turns the KeyError of a dataset that reads an option of its block that is not there into a UserError."""

    def translated(error: KeyError) -> UserError:
        where = f'datasets.{dataset_opt["phase"]}'
        return UserError(f'{where}.{error.args[0]}: missing; accepted: what {dataset_opt["type"]} reads')

    return reraise(KeyError, translated)


def _with_images(where: str, dataset_opt: dict[str, Any], rules: Rules) -> Any:
    """BasicSR's dataset, built with an empty list and then given what was found."""
    found = sorted(image_paths(where, dataset_opt, rules), key=lambda paths: sorted(paths.items()))
    dataset = build_dataset({**dataset_opt, rules.list_key: os.devnull, 'io_backend': {'type': 'disk'}})
    dataset.opt, dataset.io_backend_opt = dataset_opt, dict(dataset_opt['io_backend'])
    if file_backend(dataset_opt) == 'lmdb':
        dataset.io_backend_opt['db_paths'] = [dataset_opt[f'dataroot_{side}'] for side in rules.sides]
        dataset.io_backend_opt['client_keys'] = list(rules.sides)
    dataset.paths = found if len(rules.sides) == 2 else [path for paths in found for path in paths.values()]
    return dataset


def batches(loader: DataLoader, opt: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What is left of an epoch, prefetched as ``datasets.train.prefetch_mode`` says. Its workers start immediately."""
    try:  # the locks of the workers' queues, which are in /dev/shm; torch's own would complain to the end
        del [multiprocessing.Lock() for _ in range(4 * loader.num_workers)][:]
        return _without_errors(_prefetched(loader, opt))
    except OSError as error:
        raise _killed_worker(f'no worker process can be started ({one_line(error)})') from error


# How torch names the memory that workers share, whatever it says of it: "unable to write to file </torch_1_2>",
# "unable to allocate shared memory(shm) for file </torch_1_2_0>: ...", "received 0 items of ancdata"
SHARED_MEMORY = re.compile(r'/torch_\d|\(shm\)|/dev/shm|torch_shm_manager|Shared memory manager|ancdata')


def reraise_killed_worker() -> AbstractContextManager[None]:
    """Turns what torch says when a worker process was killed, wherever in the main thread, or has no shared memory for
    its batch, into a UserError."""

    def translated(error: RuntimeError) -> UserError | None:
        # not all of "Caught ... in DataLoader worker", which has a traceback and ends in what has happened
        *_, reason = str(error).strip().splitlines() or ['']
        known = 'DataLoader worker (pid' in str(error) or SHARED_MEMORY.search(reason)
        return _killed_worker(one_line(RuntimeError(reason))) if known else None

    return reraise(RuntimeError, translated)


def _killed_worker(reason: str) -> UserError:
    return UserError(
        f'datasets.train: {reason}; perhaps memory or /dev/shm is full (fewer num_worker_per_gpu need less), or an '
        'LMDB was cut short (facd check reads all of it)'
    )


def _prefetched(loader: DataLoader, opt: dict[str, Any]) -> Iterator[dict[str, Any] | Exception]:
    if opt['datasets']['train']['prefetch_mode'] == 'cuda':
        return _copied_ahead(CUDAPrefetcher(loader, opt))
    if isinstance(loader, PrefetchDataLoader):
        return PrefetchGenerator(_ending_with_error(DataLoader.__iter__(loader)), loader.num_prefetch_queue)
    return iter(loader)


def _copied_ahead(prefetcher: CUDAPrefetcher) -> Iterator[dict[str, Any]]:
    """Batches that were copied on the prefetcher's stream. Their memory must not be reused for another copy before the
    step's stream, unknown to the allocator, has finished with them."""
    for batch in iter(prefetcher.next, None):
        for value in batch.values():
            if isinstance(value, torch.Tensor) and value.is_cuda:
                value.record_stream(torch.cuda.current_stream())
        yield batch


def _without_errors(items: Iterator[dict[str, Any] | Exception]) -> Iterator[dict[str, Any]]:
    """Raises what a thread has caught, a worker's UserError without the worker's traceback, and one for a worker that
    was killed while a batch was on its way, which breaks the connection."""
    try:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item
    except UserError as error:
        raise UserError(str(error).rpartition('UserError: ')[2]) from error
    except (ConnectionError, EOFError) as error:
        if 'Caught' in str(error):  # in a worker, whose traceback it has
            raise
        raise _killed_worker(f'DataLoader worker exited ({type(error).__name__})') from error


def _ending_with_error(items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any] | Exception]:
    """Yields an error as the last item: BasicSR's prefetching thread would end silently, and training hang."""
    try:
        yield from items
    except Exception as error:
        yield error
