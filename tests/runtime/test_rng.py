import random

import numpy as np
import torch

from facd_basicsr.runtime.rng import preserve_rng_state, restore_rng_state, rng_state


def draw() -> tuple[float, float, float, float]:
    return random.gauss(0, 1), np.random.normal(), torch.rand(1).item(), random.random()


def test_all_three_generators_go_on_from_a_state_that_was_saved(tmp_path):
    draw()  # leaves half of a pair of normal numbers in Python's and NumPy's
    torch.save(rng_state(), tmp_path / 'state')
    expected = [draw() for _ in range(3)]
    draw()
    restore_rng_state(torch.load(tmp_path / 'state', weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_what_is_drawn_inside_leaves_the_generators_alone():
    state = rng_state()
    with preserve_rng_state():
        inside = draw()
    assert rng_state() == state and draw() == inside
