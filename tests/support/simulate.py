"""Rows and plans with a known truth: replies made by the very model that the ledger assumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from verifier.checks.capabilities.probe import Capabilities
from verifier.checks.check import Case
from verifier.checks.length.ask_and_score import Context
from verifier.checks.template.completions import Bypass
from verifier.checks.template.findings import Kept
from verifier.checks.template.shown_prompts import Shown
from verifier.checks.tokenizer import Counting
from verifier.config import Policy
from verifier.evidence.calibration import Calibration, Channel, Estimate, NoiseClass, Stack
from verifier.evidence.ledger import (
    Ledger,
    Row,
    count_outranked,
    ledger_to_json,
    logprob_cells,
    text_cells,
)
from verifier.evidence.reported import PROBABILITIES, describe_reports
from verifier.files.run_folder import EXCHANGES, LEDGER, append_lines, write_json
from verifier.host.collect import attempt_to_json
from verifier.host.exchange import parse
from verifier.lab.testbed.reporting import HABITS
from verifier.lab.testbed.wire import ShownToken
from verifier.plan_file import Plan
from verifier.records import REFERENCE, Attempt, Outcome, Reply, ReplyScore, Report
from verifier.scoring.score_file import digest_of
from verifier.verdict import decide as verdict
from verifier.verdict.case import make_case

VOCABULARY = 40
SHA = "0" * 64


def simulate_row(
    rng: np.random.Generator,
    name: str,
    *,
    scale: float,
    tokens: int = 30,
    builds: tuple[str, ...] = (),
    logprob_scale: float | None = None,
    habit: str | None = None,
) -> Row:
    """One greedy reply of a host whose logits are the reference's plus Gumbel noise of `scale`.

    `builds` are columns that the host truly serves: their logits are the host's own. What it
    reports of its tokens is off by `logprob_scale`; or what it serves, told after a `habit` of the
    testbed ("right": none).
    """
    logits = rng.normal(0, 2, (tokens, VOCABULARY))
    served = logits + rng.gumbel(0, scale, logits.shape) if scale else logits
    chosen = served.argmax(axis=1)
    logprob = None
    if logprob_scale is not None:
        top = np.argsort(-logits, axis=1)[:, :5]
        known = np.take_along_axis(_log_softmax(logits), top, axis=1)
        told = known + rng.normal(0, logprob_scale, known.shape)
        cells = logprob_cells(told.tolist(), known.tolist())
        assert not isinstance(cells, str)
        logprob = cells
    if habit is not None:
        reports = simulate_reports(rng, logits, served, chosen, habit)
    elif logprob is None:
        reports = {"logprob_problem": "none were returned"}
    else:
        reports = {"logprob": logprob, "logprob_problem": None}
    text = {REFERENCE: text_cells(_score(logits, chosen), range(tokens))}
    text |= {build: text_cells(_score(served, chosen), range(tokens)) for build in builds}
    return Row(
        probe_id=name,
        tokens=tokens,
        left_out=0,
        text=text,
        **{"logprob": None} | reports,
    )


def simulate_reports(
    rng: np.random.Generator, logits: Any, served: Any, chosen: Any, habit: str, *, named: int = 5
) -> dict[str, Any]:
    """The fields of a row that come from what a host reports of the logits that it serves."""
    told = _shown(served, chosen, named)
    if habit != "right":
        other = rng.normal(0, 2, served.shape)
        told = HABITS[habit][1](told, _shown(other, other.argmax(axis=1), named))
    if all(0 < token.logprob <= 1 for token in told):
        return {"logprob_problem": PROBABILITIES}
    known, candidates, reported, own = _log_softmax(logits), [], [], []
    for token in told:
        top = {int(raw): v for raw, v in token.top if v > -1000}
        claims = {int(token.raw): token.logprob}
        claims |= {n: v for n, v in top.items() if n not in claims}
        candidates.append(tuple(claims))
        reported.append(tuple(claims.values()))
        own.append(top.get(int(token.raw)))
    weights = tuple(tuple(float(known[t, n]) for n in ids) for t, ids in enumerate(candidates))
    cells = logprob_cells(reported, weights)
    score = replace(_score(logits, chosen), candidate_logprobs=weights)
    return {
        "logprob": None if isinstance(cells, str) else cells,
        "logprob_problem": cells if isinstance(cells, str) else None,
        "outranked": count_outranked(reported),
        "reported": describe_reports(
            score, reply_ids=chosen.tolist(), candidates=candidates, reported=reported, own=own
        ),
    }


def _shown(served: Any, chosen: Any, named: int) -> tuple[ShownToken, ...]:
    """What a host with these logits says of its tokens, in the shape of the testbed."""
    logp = _log_softmax(served)
    top = np.argsort(-logp, axis=1)[:, :named]
    return tuple(
        ShownToken(
            raw=b"%d" % token, start=t, logprob=float(logp[t, token]),
            top=tuple((b"%d" % n, float(logp[t, n])) for n in top[t]),
        )
        for t, token in enumerate(chosen)
    )  # fmt: skip


def _log_softmax(logits: Any) -> Any:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def _score(logits: Any, chosen: Any) -> ReplyScore:
    """What an engine with these logits would say of these tokens."""
    logp = _log_softmax(logits)
    top = -np.sort(-logp, axis=1)[:, :20]
    picked = np.take_along_axis(logp, chosen[:, None], axis=1)[:, 0]
    return ReplyScore(
        logprobs=tuple(picked.tolist()),
        ranks=tuple(((logp > picked[:, None]).sum(axis=1) + 1).tolist()),
        entropies=tuple((-(np.exp(logp) * logp).sum(axis=1)).tolist()),
        top_ids=tuple(logits.argmax(axis=1).tolist()),
        top_logprobs=tuple(map(tuple, top.tolist())),
        candidate_logprobs=None,
    )


def make_reply(probe_id: str, tokens: int = 30) -> Reply:
    """A reply that fits a simulated row."""
    return Reply(
        probe_id=probe_id, text="words", finish_reason="length", prompt_tokens=20,
        completion_tokens=tokens, logprobs=None, logprobs_problem=None,
    )  # fmt: skip


def replies(rows: list[Row]) -> dict[str, Outcome]:
    """Outcomes that fit simulated rows."""
    return {row.probe_id: make_reply(row.probe_id, row.tokens) for row in rows}


def case_of(
    plan: Plan,
    ledger: Ledger,
    *,
    capabilities: Capabilities | None = None,
    shown: Shown | None = None,
    completions: Bypass | None = None,
    counting: Counting | None = None,
    length: Context | None = None,
    **at_hand: Any,
) -> Case:
    """A case of simulated evidence: what checks keep by name, all else as `make_case` has it."""
    kept: dict[str, Any] = {
        "capabilities": capabilities,
        "template": Kept(shown=shown, completions=completions),
        "tokenizer": counting,
    }
    kept |= {} if length is None else {"length": length}
    return make_case(plan, ledger, kept=kept, **at_hand)


def decide(plan: Plan, ledger: Ledger, **at_hand: Any) -> Report:
    """The verdict on simulated evidence."""
    return verdict.decide(case_of(plan, ledger, **at_hand))


def write_scored(run: Path, rows: Sequence[Row]) -> None:
    """The exchanges and the ledger of simulated rows, as an audit leaves them in its folder."""
    kept, exchanges = [], []
    for row in rows:
        choice = {"message": {"content": "words"}, "finish_reason": "length"}
        attempt = Attempt(
            probe_id=row.probe_id, number=1, started_at="2026-01-01T00:00:00.000+00:00",
            elapsed_s=0.1, request=json.dumps({"max_tokens": 30}), status=200,
            body=json.dumps({"choices": [choice]}), error=None,
        )  # fmt: skip
        reply = parse(attempt)
        assert isinstance(reply, Reply)
        exchanges.append(attempt_to_json(attempt))
        kept.append(replace(row, reply_sha256=digest_of(reply)))
    append_lines(run / EXCHANGES, exchanges)
    write_json(run / LEDGER, ledger_to_json(Ledger(rows=tuple(kept))) | {"engine": {}})


def make_calibration(**changes: Any) -> Calibration:
    """A calibration with an honest scale of 0.1 and three classes."""
    channel = Channel(honest_scale=0.1, spread=0.0, learning_rate=1.0)

    def stack(name: str, family: str, scale: float) -> Stack:
        about = Estimate(estimate=scale, lower=scale * 0.8, upper=scale * 1.2)
        return Stack(
            name=name, role="variant", family=family, replies=8, tokens=240, text=about,
            logprob=about,
        )  # fmt: skip

    values: dict[str, Any] = {
        "schema_version": 1,
        "card": "tiny",
        "tensors_sha256": SHA,
        "seed": 1,
        "max_tokens": 30,
        "level": 0.99,
        "versions": {},
        "text": channel,
        "logprob": channel,
        "classes": (
            NoiseClass(name="int8-class rounding", scale=0.09, basis="test"),
            NoiseClass(name="4-bit-class rounding", scale=0.3, basis="test"),
            NoiseClass(name="another model", scale=1.0, basis="test"),
        ),
        "stacks": (
            stack("fp8-channel", "fp8", 0.2),
            stack("int4-sym-g64", "4-bit", 0.6),
            stack("drop-1", "layers", 0.7),
        ),
    }
    return Calibration(**values | changes)


def make_plan(**changes: Any) -> Plan:
    """A plan of policy "screen" on the simulated model."""
    values: dict[str, Any] = {
        "schema_version": 1,
        "policy_name": "screen",
        "policy": Policy(noise=("4-bit-class rounding", "another model")),
        "alpha": 0.001,
        "beta": 0.001,
        "seed": 1,
        "max_tokens": 30,
        "min_replies": 10,
        "budget_completion_tokens": 3000,
        "top_logprobs": 0,
        "max_attempts": 4,
        "prices": None,
        "card": "tiny",
        "card_sha256": SHA,
        "tensors_sha256": SHA,
        "tokenizer_sha256": SHA,
        "template_sha256": SHA,
        "bank": ("fp8-channel", "int4-sym-g64", "drop-1"),
        "pool_sha256": SHA,
        "pool_size": 100,
        "versions": {"verifier": "0"},
        "configuration": {"endpoint": {"base_url": "http://127.0.0.1/v1", "model": "tiny"}},
        "calibration": make_calibration(),
    }
    return Plan(**values | changes)
