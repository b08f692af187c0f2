import itertools

from hypothesis import given
from hypothesis import strategies as st

from facd_basicsr.data.loaders import ResumableSampler

Samples = list[tuple[int, int]]


def samples(
    images: int, ratio: int, batch: int, seed: int, epoch: int, done: int = 0, rank: int = 0, ranks: int = 1
) -> Samples:
    sampler = ResumableSampler(images, ratio, batch, seed, rank, ranks)
    sampler.set_position(epoch, done)
    return list(sampler)


sizes = {'images': st.integers(1, 20), 'ratio': st.integers(1, 4), 'batch': st.integers(1, 5)}
when = {'seed': st.integers(0, 2**32), 'epoch': st.integers(0, 1000)}


@given(**sizes, **when, done=st.integers(0, 30))
def test_from_any_batch_on_the_samples_are_those_of_the_whole_epoch(images, ratio, batch, seed, epoch, done):
    whole = samples(images, ratio, batch, seed, epoch)
    assert samples(images, ratio, batch, seed, epoch, done) == whole[done * batch :]


@given(**sizes, **when, ranks=st.integers(1, 4))
def test_ranks_share_the_batches_of_one_process_in_their_order(images, ratio, batch, seed, epoch, ranks):
    of_rank = [samples(images, ratio, batch, seed, epoch, 0, rank, ranks) for rank in range(ranks)]
    shares = [[own[i : i + batch] for i in range(0, len(own), batch)] for own in of_rank]
    together = list(itertools.chain.from_iterable(itertools.chain.from_iterable(zip(*shares))))
    assert together == samples(images, ratio, batch * ranks, seed, epoch)


@given(**sizes, **when)
def test_an_epoch_has_every_image_as_often_as_the_ratio_but_for_the_rest_of_a_batch(images, ratio, batch, seed, epoch):
    drawn = samples(images, ratio, batch, seed, epoch)
    assert len(drawn) == images * ratio // batch * batch
    counts = [[index for index, _ in drawn].count(image) for image in range(images)]
    assert max(counts) <= ratio and sum(ratio - count for count in counts) < batch
    assert len({seed for _, seed in drawn}) == len(drawn)


def test_epochs_and_seeds_differ_in_order_and_crops():
    first, other_epoch, other_seed = samples(50, 1, 1, 0, 0), samples(50, 1, 1, 0, 1), samples(50, 1, 1, 1, 0)
    for other in (other_epoch, other_seed):
        assert [index for index, _ in other] != [index for index, _ in first]
        assert not {seed for _, seed in other} & {seed for _, seed in first}


def test_its_length_is_that_of_a_whole_epoch_wherever_it_stands():
    sampler = ResumableSampler(10, 1, 3, 0)
    sampler.set_position(0, 2)
    assert len(sampler) == 9 and sampler.batches == 3 and len(list(sampler)) == 3
