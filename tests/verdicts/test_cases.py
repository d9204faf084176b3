"""Simulated cases whose reports are kept as digests: what refactoring must not change by a byte.

The digests are those of Python 3.11 with numpy 2.3.5 and scipy 1.17.1 (configs/constraints.txt).
Cells are written with two decimals and reports round what they say, so other versions should give
the same bytes; where they do not, the order of a sum is why. `make.py cases` writes the digests.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from simulated import CASES, random_case, write

from verifier.verdict.decide import decide_folder

DIGESTS: dict[str, str] = json.loads((Path(__file__).parent / "cases.json").read_text())


@pytest.mark.parametrize("number", range(CASES))
def test_a_case_is_reported_with_the_same_bytes(number: int, tmp_path: Path) -> None:
    """A random mix of hosts, policies, channels and what stands beside them."""
    run = tmp_path / "run"
    write(run, random_case(number))
    decide_folder(run)

    assert sha256((run / "report.json").read_bytes()).hexdigest() == DIGESTS[f"{number:03}"]


def test_every_case_has_a_digest() -> None:
    """And none is like another."""
    assert len(DIGESTS) == len(set(DIGESTS.values())) == CASES
