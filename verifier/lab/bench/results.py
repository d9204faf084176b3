"""Files of results: what each part of the benchmark begins with, writes and tabulates.

Knows nothing of what the parts measure.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from verifier.files.run_folder import write_json
from verifier.lab.corpus import describe_run
from verifier.reference.cards import Card, load_card
from verifier.reference.weights import check_weights, fetch_weights

#: Version of every file of results.
SCHEMA: Final = 1

#: The card that all parts are measured on.
CARD: Final = "smollm2-135m-instruct"

#: The key under which audits are listed, each in a line of its own however long.
EACH: Final = "each"

#: Columns of all other lines.
_WIDTH: Final = 100


def fetch_measured(*, cache: Path, tell: Callable[[str], None]) -> tuple[Card, Path]:
    """The card that is measured on, and its weights: fetched where needed, and checked."""
    card = load_card(CARD)
    weights = fetch_weights(card, cache=cache, tell=tell)
    check_weights(card, weights)
    return card, weights


# -- files -------------------------------------------------------------------------------------


def begin_results(*, seed: int) -> dict[str, Any]:
    """What a file of results says first: of which card, and how it came about."""
    return {
        "schema_version": SCHEMA,
        "card": CARD,
        "tensors_sha256": load_card(CARD).digests.tensors_sha256,
        **describe_run(seed=seed),
    }


def results_path(out: Path, part: str) -> Path:
    """Where the results of a part lie in `out`: under the name by which they are kept."""
    return out / f"{part}.benchmark.json"


def write_results(out: Path, part: str, results: Mapping[str, Any]) -> Path:
    """Write the results of a part, an audit a line; the path of the file."""
    path = results_path(out, part)
    write_json(path, results, lay_out=lay_out)
    return path


def lay_out(value: object) -> str:
    """JSON with a line for each audit and each row of a table; all else fills its lines."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    return f"{_spell(plain, depth=0)}\n"


def _spell(value: Any, *, depth: int, name: str = "", whole: bool = False) -> str:
    """One value, opened where it is too long for the line that `name` begins."""
    line = json.dumps(value, ensure_ascii=False)
    is_listed = name == f'"{EACH}": '
    fits = depth + len(name) + len(line) < _WIDTH and not is_listed
    if whole or fits or not value or not isinstance(value, dict | list):
        return name + line
    if isinstance(value, dict):
        members = [(f"{json.dumps(k, ensure_ascii=False)}: ", v) for k, v in value.items()]
        is_table = all(isinstance(v, dict | list) for v in value.values())
        pieces = [_spell(v, depth=depth + 1, name=k) for k, v in members]
    else:
        is_table = is_listed or isinstance(value[0], dict | list)
        pieces = [_spell(v, depth=depth + 1, whole=is_listed) for v in value]
    pad = "\n" + " " * (depth + 1)
    lines = pieces if is_table else _fill(pieces, _WIDTH - depth - 2)
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{name}{begin}{pad}{f',{pad}'.join(lines)}\n{' ' * depth}{end}"


def _fill(pieces: Iterable[str], width: int) -> list[str]:
    """As many pieces to a line as fit; one that has lines of its own begins a line and ends one."""
    lines: list[str] = []
    for piece in pieces:
        joined = f"{lines[-1]}, {piece}" if lines else ""
        if lines and "\n" not in joined and len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(piece)
    return lines


# -- sums --------------------------------------------------------------------------------------


def count_decisions(decisions: Iterable[str]) -> dict[str, int]:
    """How often each verdict was given, those never given too."""
    found = Counter(decisions)
    return {name: found[name] for name in ("consistent", "inconsistent", "inconclusive")}


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """The middle of some numbers, what nine tenths stay within, and the largest."""
    return {
        "median": float(np.median(values)) if values else None,
        "p90": float(np.percentile(values, 90)) if values else None,
        "max": max(values, default=None),
    }


# -- tables ------------------------------------------------------------------------------------


def tabulate_rows(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, *rows]
    shown = [f"| {' | '.join(map(str, cells))} |" for cells in lines]
    return "\n".join([shown[0], "|" + "---|" * len(head), *shown[1:]])


def show_counts(counts: Mapping[str, int]) -> str:
    """Names with how often each was said, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ranked) or "-"


def middle_and_most(audits: Sequence[Mapping[str, Any]], what: str) -> str:
    """The median of a number of several audits, and the largest."""
    found = [audit[what] for audit in audits]
    return f"{statistics.median(found):.0f} (at most {max(found)})"
