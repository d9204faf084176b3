"""What audits say of honest stacks that are noisier than any that was calibrated.

Greedy replies of the published weights, each position with the likeliest tokens; a stack of a given
noise scale is those replies with Gumbel noise of that scale on every logit, and reported
log-probabilities with Student noise of the same scale. Audits of policies are replayed on them with
the batches, the stopping points and the budget of real ones. So the zone of indifference is held
against what it promises: nobody accused up to its end, everybody some way above it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from verifier.config import AuditSection
from verifier.evidence.arrays import Array
from verifier.evidence.ledger import Ledger, Row, logprob_cells, text_cells
from verifier.files.run_folder import read_json, write_json
from verifier.lab.bench.precision import Audit, plan_audit, replay, stop_anew
from verifier.lab.bench.results import (
    begin_results,
    count_decisions,
    fetch_measured,
    results_path,
    spread,
    tabulate_rows,
    write_results,
)
from verifier.plan_file import Plan
from verifier.probes import draw, load_pool
from verifier.prompts import prompt_of
from verifier.records import REFERENCE, GenerateRequest, Reply, ReplyScore, ScoreRequest
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer

PART: Final = "stacks"

#: Noise scales of the simulated stacks, and audits of each: calibrated, in the zone, above it.
SCALES: Final = {0.056: 400, 0.08: 400, 0.1: 400, 0.112: 400, 0.12: 40, 0.15: 40, 0.2: 40}

#: Completion tokens at most, by policy.
POLICIES: Final = {"screen": 6000, "standard": 6000, "routing": 14_000}

#: Alternatives reported per token; 0: the text alone is read.
CHANNELS: Final = (0, 5)

#: Replies that all audits draw from, each without repeating one.
REPLIES: Final = 320

_POOL: Final = "pool.json"

#: Replies that are made before an audit looks whether it needs more.
_AT_ONCE: Final = 40


def run_stacks_bench(
    out: Path, *, cache: Path, seed: int, tell: Callable[[str], None],
    audits: int | None = None, policies: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Measure every policy and scale in `out`; the path of the results. Goes on where it was."""
    pool = _read_pool(out, cache=cache, seed=seed, tell=tell)
    path = results_path(out, PART)
    results: dict[str, Any] = begin_results(seed=seed) | {"replies": len(pool), "lines": []}
    if path.exists():
        results["lines"] = read_json(path)["lines"]
    done = {(line["policy"], line["top_logprobs"], line["scale"]) for line in results["lines"]}
    for policy, budget in POLICIES.items():
        for top_logprobs in CHANNELS:
            plan = plan_audit(
                AuditSection(
                    policy=policy, seed=seed, top_logprobs=top_logprobs,
                    budget_completion_tokens=budget,
                )
            )  # fmt: skip
            for number, (scale, most) in enumerate(SCALES.items()):
                skipped = (policy, top_logprobs, scale) in done
                if skipped or (policies and policy not in policies):
                    continue
                tell(f"{policy}, {top_logprobs} alternatives, scale {scale:g}")
                line = _measure(
                    plan, pool, scale, audits=audits or most, seed=(seed, number, top_logprobs)
                )
                results["lines"].append(line)
                write_results(out, PART, results)
    return path


def _measure(
    plan: Plan, pool: Sequence[ReplyScore], scale: float, *, audits: int, seed: tuple[int, ...]
) -> dict[str, Any]:
    """So many audits of a stack of one noise scale."""
    found = []
    for number in range(audits):
        rng = np.random.default_rng((*seed, number))
        making = noisy_rows(pool, scale, rng=rng, top_logprobs=plan.top_logprobs)
        rows: list[Row] = []
        ended: list[Audit] = []
        while not ended and len(rows) < len(pool):
            rows += islice(making, _AT_ONCE)
            outcomes = {row.probe_id: _reply(row) for row in rows}
            ended = replay(stop_anew(plan, number), Ledger(rows=tuple(rows)), outcomes, most=1)
        found += ended
    return {
        "policy": plan.policy_name,
        "top_logprobs": plan.top_logprobs,
        "scale": scale,
        "tolerated": round(plan.calibration.text.tolerated, 4),
        "audits": len(found),
        "decisions": count_decisions(audit.decision for audit in found),
        "completion_tokens": {
            decision: spread([a.completion_tokens for a in found if a.decision == decision])
            for decision in ("consistent", "inconsistent", "inconclusive")
        },
        "most_log_e": max(audit.log_e for audit in found),
    }


def noisy_rows(
    pool: Sequence[ReplyScore], scale: float, *, rng: np.random.Generator, top_logprobs: int
) -> Iterator[Row]:
    """Every reply of the pool once, in an order of chance, as a stack of this scale gives it."""
    for n, at in enumerate(rng.permutation(len(pool))):
        yield _noisy_row(pool[at], f"r{n:04}", scale, rng=rng, top_logprobs=top_logprobs)


def _noisy_row(
    score: ReplyScore, name: str, scale: float, *, rng: np.random.Generator, top_logprobs: int
) -> Row:
    top = np.array(score.top_logprobs)  # [T, k]
    at = np.arange(len(top))
    chosen = (top + scale * rng.gumbel(size=top.shape)).argmax(axis=1)
    noisy = replace(
        score,
        logprobs=tuple(float(v) for v in top[at, chosen]),
        ranks=tuple(int(v) + 1 for v in chosen),
    )
    cells = None
    if top_logprobs:
        known = np.concatenate([top[at, chosen][:, None], top[:, :top_logprobs]], axis=1)
        told = known + scale * _student(rng, known.shape)
        listed = np.minimum(chosen + 1, top_logprobs)
        told[:, 0] = np.where(chosen < top_logprobs, told[at, listed], told[:, 0])
        found = logprob_cells(_named(told, chosen), _named(known, chosen))
        cells = None if isinstance(found, str) else found
    return Row(
        probe_id=name, tokens=len(top), left_out=0,
        text={REFERENCE: text_cells(noisy, range(len(top)))}, logprob=cells,
        logprob_problem=None if cells is not None or not top_logprobs else "of no use",
        outranked=0 if top_logprobs else None,
    )  # fmt: skip


def _student(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Student-t noise of 4 degrees of freedom [T, n], one common factor a position."""
    factor = np.sqrt(4 / rng.chisquare(4, size=(shape[0], 1)))
    return np.asarray(rng.normal(size=shape) * factor)


def _named(values: Array, chosen: Array) -> list[list[float]]:
    """The token given and the others of the likeliest, each once."""
    return [
        [row[0], *(v for n, v in enumerate(row[1:]) if n != first)]
        for row, first in zip(values.tolist(), chosen.tolist(), strict=True)
    ]


def _reply(row: Row) -> Reply:
    return Reply(
        probe_id=row.probe_id, text="", finish_reason="length", prompt_tokens=None,
        completion_tokens=row.tokens, logprobs=None, logprobs_problem=None,
    )  # fmt: skip


def _read_pool(
    out: Path, *, cache: Path, seed: int, tell: Callable[[str], None]
) -> list[ReplyScore]:
    """Scores of greedy replies of the published weights, made once."""
    path = out / _POOL
    if not path.exists():
        _, weights = fetch_measured(cache=cache, tell=tell)
        tokenizer = Tokenizer(weights)
        engine = load_engine("transformers", weights, tokenizer)
        probes = draw(load_pool(), seed=seed, count=REPLIES, max_tokens=48)
        texts = [tokenizer.render_text(prompt_of(probe)) for probe in probes]
        prompts = [tokenizer.encode_prompt(text) for text in texts]
        tell(f"making {len(prompts)} replies")
        made = engine.generate([GenerateRequest(prompt_ids=p, max_tokens=48) for p in prompts])
        scores = engine.score(
            [
                ScoreRequest(prompt_ids=prompt, reply_ids=one.token_ids)
                for prompt, one in zip(prompts, made, strict=True)
            ]
        )
        engine.close()
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, [[[round(v, 5) for v in at] for at in s.top_logprobs] for s in scores])
    kept: list[list[list[float]]] = json.loads(path.read_text("utf-8"))
    return [_as_score(top) for top in kept]


def _as_score(top: Sequence[Sequence[float]]) -> ReplyScore:
    """The score of a reply of which each token is the likeliest."""
    return ReplyScore(
        logprobs=tuple(at[0] for at in top), ranks=(1,) * len(top), entropies=(0.0,) * len(top),
        top_ids=(0,) * len(top), top_logprobs=tuple(tuple(at) for at in top),
        candidate_logprobs=None,
    )  # fmt: skip


def tabulate_stacks(results: Mapping[str, Any]) -> str:
    """The lines of a results file as a Markdown table."""
    head = ("policy", "read", "noise scale", "audits", "consistent", "inconsistent",
            "inconclusive", "median tokens to consistent", "to inconsistent")  # fmt: skip

    def median(line: Mapping[str, Any], decision: str) -> str:
        found = line["completion_tokens"][decision]["median"]
        return "-" if found is None else f"{found:,.0f}"

    rows = [
        (
            line["policy"],
            "text, logprobs" if line["top_logprobs"] else "text",
            f"{line['scale']:g}",
            line["audits"],
            *(line["decisions"][d] for d in ("consistent", "inconsistent", "inconclusive")),
            median(line, "consistent"),
            median(line, "inconsistent"),
        )
        for line in results["lines"]
    ]
    return tabulate_rows(head, rows)
