"""The arrays of the evidence: numbers, and which of them are meant."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Numbers of double precision; their shape stands where they are made.
Array = NDArray[np.float64]

#: Which rows or scales are meant.
Mask = NDArray[np.bool_]


def log_sum_exp(values: Array, *, axis: int) -> Array:
    """log of the sum of exp(values) along an axis; values are finite.

    As `logaddexp.reduce`, with one exponential a value instead of one and a logarithm. The largest
    are counted and not summed, so that what little is left beside them is not rounded away.
    """
    top = values.max(axis=axis, keepdims=True)
    largest = values == top
    many = largest.sum(axis=axis, dtype=float)
    rest = np.where(largest, 0.0, np.exp(values - top)).sum(axis=axis)
    return np.asarray(np.log1p(rest / many) + np.log(many) + top.squeeze(axis))
