"""The arrays of the evidence: numbers, and which of them are meant."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Numbers of double precision; their shape stands where they are made.
Array = NDArray[np.float64]

#: Which rows or scales are meant.
Mask = NDArray[np.bool_]
