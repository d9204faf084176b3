"""Whether an audit came to its end: noted in its run folder, and true until more is asked there."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from verifier.files.run_folder import (
    COMPLETIONS,
    EXCHANGES,
    FINISHED,
    LEDGER,
    SENT,
    open_below,
    write_json,
)
from verifier.files.stored import read_record
from verifier.records import Decision

#: What a verdict is decided from.
_EVIDENCE: Final = (EXCHANGES, LEDGER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """All that `finished.json` holds."""

    evidence_sha256: str  # of the exchanges and the ledger, as they were then
    decision: Decision  # that was made of them, whatever a control showed


def note_finished(run: Path, decision: Decision) -> None:
    """Note that the audit of a run folder has come to its end."""
    write_json(run / FINISHED, {"evidence_sha256": _digest(run), "decision": decision})


def finished_with(run: Path) -> Decision | None:
    """What an audit came to at its end; None where it did not end, or was gone on with since.

    Raises ConfigError for a note that is none.
    """
    if not (run / FINISHED).exists():
        return None
    found = read_record(run / FINISHED, Finished, advice="remove it, and run the audit again")
    return found.decision if found.evidence_sha256 == _digest(run) else None


def _digest(run: Path) -> str:
    found = hashlib.sha256()
    for name in _EVIDENCE:
        with suppress(FileNotFoundError), open_below(run, name) as file:
            for part in iter(lambda: file.read(2**20), b""):
                found.update(part)
        found.update(b"\0")
    return found.hexdigest()


def bytes_sent(run: Path) -> int:
    """The size of what is noted of requests: it grows with every one."""
    noted = (run / SENT, run / COMPLETIONS / SENT)
    return sum(path.stat().st_size for path in noted if path.is_file())
