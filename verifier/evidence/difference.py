"""Whether one endpoint is noisier than another: both scales unknown, and no floor needed.

Null: the noise scale of the target is at most `ratio` times its control's, whatever both are, or at
most `floor`. The
e-value is the even mixture over all pairs of scales beyond that, against the best pair within it:
universal inference (Wasserman, Ramdas and Balakrishnan 2020, "Universal inference"), so that under
every pair of the null its mean is at most 1, at every stopping time of either endpoint.

Assumptions: the calibrated model of a row holds for both (`e_values`), and given the questions the
replies of one endpoint are independent of each other and of the other's. What both have in common
makes the test safer where it makes them alike: were all texts the same, the mirror image of every
pair beyond would lie within, and the e-value at most 1. So an error of the reference, which both
show, is not held against the target. Pure arithmetic.
"""

from __future__ import annotations

import numpy as np

from verifier.evidence.arrays import Array, Mask
from verifier.evidence.e_values import log_mean_exp
from verifier.evidence.noise import ABOVE


def log_e_noisier(
    target: Array, control: Array, scales: Array, *, ratio: float, floor: float = 0.0
) -> float:
    """Log e-value against "the target's scale is at most `ratio` times its control's, or `floor`".

    `target` and `control` [S] are total log-likelihoods at each of `scales`, read as calibrated.
    """
    pairs = target[:, None] + control[None, :]  # [S of the target, S of the control]
    null = within(scales, ratio, floor)
    return 0.0 if null.all() else log_mean_exp(pairs[~null]) - float(pairs[null].max())


def within(scales: Array, ratio: float, floor: float = 0.0) -> Mask:
    """Which pairs [S, S] of a target's and a control's scale are of the null."""
    return np.asarray(scales[:, None] <= np.maximum(ratio * scales[None, :], floor) * ABOVE)
