"""The score step: replies of a run folder -> likelihoods under the weights in place -> ledger.

Reads plan, probes and exchanges; appends to the scores and writes the ledger. Needs an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifier import folder as files
from verifier.align import Aligned, Vocabulary, align, reread
from verifier.engines import Engine
from verifier.errors import ConfigError
from verifier.ledger import Ledger, Row, ledger_to_json, logprob_cells, text_cells
from verifier.records import REFERENCE, Outcome, Probe, Reply, ReplyScore, ScoreRequest
from verifier.tokens import Tokenizer

#: Replies scored between two writes.
CHUNK = 16

#: How often a text may be read anew before what is still doubtful is simply left out.
MAX_READINGS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One line of the scores: a reply, the weights, and what they say of it."""

    probe_id: str
    weights: str
    aligned: Aligned
    score: ReplyScore


def score_replies(
    run: Path,
    probes: Sequence[Probe],
    outcomes: Mapping[str, Outcome],
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    weights: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Score every reply that lacks a score under any of `weights`; append the scores.

    The reference comes first: it decides how a text is read. Nothing is scored twice.
    """
    done = {(s.probe_id, s.weights): s for s in read_scores(run)}
    replies = [(p, o) for p in probes if isinstance(o := outcomes.get(p.id), Reply)]
    missing = {
        name: [(p, r) for p, r in replies if (p.id, name) not in done]
        for name in dict.fromkeys((REFERENCE, *weights))
    }
    total = sum(map(len, missing.values()))
    finished = 0
    for name, todo in missing.items():
        if todo:
            engine.load_variant(name)
        for start in range(0, len(todo), CHUNK):
            for probe, reply in _chunk(todo, start):
                known = done.get((probe.id, REFERENCE))
                if known is None:
                    scored = _score_reference(probe, reply, engine, tokenizer)
                else:
                    scored = None
                if scored is not None:
                    done[probe.id, REFERENCE] = scored
                    files.append_line(run / files.SCORES, scored_to_json(scored))
            if name != REFERENCE:
                _score_variant(run, name, _chunk(todo, start), done, engine, tokenizer)
            finished += len(_chunk(todo, start))
            if progress:
                progress(finished, total)
    if any(missing.values()):
        engine.load_variant(REFERENCE)
