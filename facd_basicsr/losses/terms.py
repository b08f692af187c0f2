"""Sums of a loss's terms."""

from collections.abc import Iterable
from typing import cast

from torch import Tensor


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one term or more, which is a tensor: the built-in's type is ``Tensor | int``, as it begins with 0."""
    return cast(Tensor, sum(terms))
