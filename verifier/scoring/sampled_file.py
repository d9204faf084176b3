"""What was scored of sampled replies, as it lies in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from verifier.evidence.ledger import Repeat, SampledRow
from verifier.files.run_folder import REPEATS, SAMPLED_SCORES
from verifier.files.stored import read_rows

_ADVICE: Final = "remove the file and run `verifier score` again"


def read_sampled(run: Path) -> tuple[SampledRow, ...]:
    """The sampled rows of a run folder, as they were scored. Raises ConfigError for a bad line."""
    return tuple(read_rows(run / SAMPLED_SCORES, SampledRow, advice=_ADVICE))


def read_repeats(run: Path) -> tuple[Repeat, ...]:
    """The repeats of a run folder. Raises ConfigError for a bad line."""
    return tuple(read_rows(run / REPEATS, Repeat, advice=_ADVICE))
