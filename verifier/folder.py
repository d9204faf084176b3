"""The run folder: names of its files, and reading and writing them so that a kill loses nothing.

Knows nothing of what the lines mean beyond the records they hold. Text only, never pickle.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from verifier import sieve
from verifier.errors import ConfigError

RUN: Final = "run.yaml"  # what was asked: the whole configuration, without secrets
PLAN: Final = "plan.json"  # policy, columns, calibration, seed, versions, ceiling
PROBES: Final = "probes.jsonl"  # every probe in the order it is asked
PANEL: Final = "panel.jsonl"  # probes that tell templates apart, once they are needed
SAMPLED: Final = "sampled.jsonl"  # probes asked at temperature 1, where samples are judged
SAMPLED_SCORES: Final = "sampled_scores.jsonl"  # one line per sampled reply, append-only
REPEATS: Final = "repeats.jsonl"  # sampled replies to what was asked before, append-only
PROMPTS: Final = "prompts.json"  # a prompt as published and as the named rendering makes it
EXCHANGES: Final = "exchanges.jsonl"  # every attempt, raw, append-only
CAPABILITIES: Final = "capabilities.json"  # what the endpoint can do, found by effect
CAPABILITY_EXCHANGES: Final = "capabilities.jsonl"  # the attempts that showed it
SHOWN: Final = "shown.json"  # prompts that the endpoint shows, against the catalogue
SHOWN_EXCHANGES: Final = "shown.jsonl"  # the attempts that asked for them
COMPLETIONS: Final = "completions"  # folder of text completions, where they were asked for
COUNTED: Final = "counted.json"  # strings that tell tokenizers apart, and their counts
SCORES: Final = "scores.jsonl"  # one line per reply and weights, append-only
CONTEXT: Final = "context.jsonl"  # long prompts, and prompts for long replies, as they are asked
CONTEXT_SCORES: Final = "context_scores.jsonl"  # what their replies say, append-only
LEDGER: Final = "ledger.json"  # log-likelihoods, reply by hypothesis
REPORT: Final = "report.json"  # the verdict
PAGE: Final = "report.html"  # the verdict for people
CONTROL_REPORT: Final = "control.json"  # what the control showed, where there is one

CONTROL: Final = "control"  # the run folder of the control, in the folder of what it stands beside

# In the folder of several targets, beside the run folder of each.
FLEET: Final = "targets.yaml"  # what was asked for, with the seed that all share
ERRORS: Final = "errors.json"  # why a target was not judged
SUMMARY: Final = "summary.json"  # where all of them stand

#: Names that no target can have, in lower case.
RESERVED: Final = frozenset({CONTROL, FLEET, ERRORS, SUMMARY, RUN})

#: Larger lines or files are refused: a run folder may come from a stranger.
MAX_LINE_BYTES: Final = 64 * 2**20
MAX_FILE_BYTES: Final = 4 * 2**30


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line and force it to disk, so that a kill loses nothing that had arrived.

    A torn last line, left by a kill in the middle of a write, is cut off first.
    """
    append_lines(path, [value])


def append_lines(path: Path, values: Sequence[dict[str, Any]]) -> None:
    """Append JSON lines as `append_line` does, forced to disk once for all of them."""
    lines = b"".join(_line(value) for value in values)
    _is_there(path)
    with path.open("ab") as file:
        if file.tell() and not _ends_whole(path):
            file.truncate(_whole_length(path))
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _line(value: dict[str, Any]) -> bytes:
    line = _compact(value)
    line = _compact(sieve.strike_all(value)) if sieve.holds(line) else line
    return line.encode("utf-8", "surrogatepass") + b"\n"


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _whole_length(path: Path) -> int:
    """Bytes up to and including the last newline."""
    return path.read_bytes().rfind(b"\n") + 1


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSON Lines file; a missing file has none, a torn last line is skipped.

    Raises ConfigError for a line that is not a JSON object or is too large.
    """
    if not _is_there(path):
        return
    with path.open("rb") as file:
        for number, raw in enumerate(_raw_lines(file), 1):
            where = f"{path}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                raise ConfigError(f"{where}: line longer than {MAX_LINE_BYTES} bytes; refused")
            if not raw.endswith(b"\n"):
                return
            yield _parse(raw, where=where, advice="restore the run folder from a copy")


def _raw_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends; a longer one is cut just past the limit."""
    return iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one.

    API keys that this process knows are struck out of it.
    """
    _replace(path, sieve.strike(text))


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # left by a kill; or a link, which must not be written through
    with partial.open("x", encoding="utf-8", errors="surrogatepass") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: object) -> None:
    """Replace a file by indented JSON with a fixed byte form."""
    text = _indented(value)
    _replace(path, _indented(sieve.strike_all(value)) if sieve.holds(text) else text)


def _indented(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder. Raises ConfigError when it is missing or not one."""
    if not _is_there(path):
        raise ConfigError(f"{path}: no such file; run the step that writes it first")
    advice = "restore it from a copy, or run the step that writes it again"
    return _parse(path.read_bytes(), where=str(path), advice=advice)


def _parse(raw: bytes, *, where: str, advice: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8", "surrogatepass"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected an object, got {type(value).__name__}; {advice}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _is_there(path: Path) -> bool:
    """Whether a file is there; one that is no plain file, or too large, is refused."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{path}: is a link; a run folder holds plain files only")
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: is no plain file; a run folder holds plain files only")
    if found.st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes; refused")
    return True
