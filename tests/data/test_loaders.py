import pytest
from conftest import changed, train_options

from facd_basicsr.data.loaders import build_loaders


@pytest.mark.parametrize(
    ('num_gpu', 'given', 'pinned'), [(0, ..., False), (1, ..., True), (1, False, False), (0, True, True)]
)
def test_batches_for_a_gpu_are_in_pinned_memory_unless_the_option_file_says_otherwise(
    train_opt, tmp_path, num_gpu, given, pinned
):
    if given is not ...:
        train_opt = changed(train_opt, 'datasets.train.pin_memory', given)
    opt = train_options(train_opt, tmp_path)
    assert build_loaders({**opt, 'num_gpu': num_gpu}).train.pin_memory == pinned
