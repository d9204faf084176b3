"""Run folders with a known truth, written as an audit leaves them: what the net decides.

Everything comes from seeded arithmetic and is written as files. Of the verifier only records and
their wire forms are used, so that whatever decides a folder may be built anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simulate import VOCABULARY, _score, make_plan

from verifier.checks.sampling.stored_replies import Repeat
from verifier.evidence.ledger import (
    TEXT_SCALES,
    Ledger,
    Row,
    SampledRow,
    dropped_cells,
    ledger_to_json,
    logprob_cells,
    rare_cells,
    text_cells,
)
from verifier.host.collect import attempt_to_json
from verifier.host.exchange import parse
from verifier.records import Attempt, NotJudged, Reply
from verifier.scoring.score_file import digest_of

Array = NDArray[np.float64]

PUBLISHED = "reference"

#: Decimals kept of a cell: what the arithmetic of another machine changes is far below.
DIGITS = 2

#: A share of temperature 1 in every column of a sampler.
FLOOR = 1e-3

#: Columns of sampled replies, and those of them that are honest.
SAMPLERS: dict[str, dict[str, float]] = {
    **{f"temperature {t:g}": {"temperature": t} for t in (0.5, 0.6, 0.7, 0.8, 0.9, 0.98)},
    "temperature 1": {},
    **{f"temperature {t:g}": {"temperature": t} for t in (1.02, 1.1, 1.2, 1.4)},
    **{f"top-k {k}": {"top_k": k} for k in (4, 10, 20)},
    **{f"top-p {p:g}": {"top_p": p} for p in (0.7, 0.9)},
    "min-p 0.1": {"min_p": 0.1},
    "presence penalty 1": {"presence_penalty": 1.0},
    "temperature 0.7, top-p 0.8": {"temperature": 0.7, "top_p": 0.8},
    "best token dropped 0.05": {"drop_best": 0.05},
}
HONEST = ("temperature 0.98", "temperature 1", "temperature 1.02")

DROPPED = (0.02, 0.05)
RARE = (0.005, 0.01, 0.02)

#: Prompt tokens that renderings make of the shortest prompt.
LENGTHS = {
    PUBLISHED: 40, "bos-doubled": 41, "system-ignored": 28, "no-template": 19, "space-added": 43,
    "history-cut-front": 25, "family-gemma": 19, "system-injected": 60, "system-injected-2": 72,
    "leading-whitespace-stripped": 39,
}  # fmt: skip

#: What a host is asked in `counted.json`: two strings, and what tokenizers make of them.
STRINGS = 8


# -- rows --------------------------------------------------------------------------------------


def greedy(
    rng: np.random.Generator,
    name: str,
    *,
    scale: float,
    tokens: int = 24,
    served: Sequence[str] = (),
    near: Sequence[str] = (),
    other: Sequence[str] = (),
    same: Sequence[str] = (),
    logprob_scale: float | None = None,
    **more: Any,
) -> Row:
    """A greedy reply of a host whose logits are the published ones with Gumbel noise of `scale`.

    Columns that are `served` have the host's own logits, those `near` them some between the two,
    `other` ones noise of their own, and those that are the `same` the published ones.
    """
    logits = rng.normal(0, 2, (tokens, VOCABULARY))
    host = logits + rng.gumbel(0, scale, logits.shape) if scale else logits
    chosen = host.argmax(axis=1)
    columns = {PUBLISHED: logits} | dict.fromkeys(served, host) | dict.fromkeys(same, logits)
    columns |= {column: host + rng.gumbel(0, 0.3, logits.shape) for column in near}
    columns |= {column: logits + rng.gumbel(0, 0.7, logits.shape) for column in other}
    logprob = None
    if logprob_scale is not None:
        top = np.argsort(-logits, axis=1)[:, :5]
        normal = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        known = np.take_along_axis(normal, top, axis=1)
        cells = logprob_cells(
            (known + rng.normal(0, logprob_scale, known.shape)).tolist(), known.tolist()
        )
        assert not isinstance(cells, str)
        logprob = rounded(cells)
    row = Row(
        probe_id=name, tokens=tokens, left_out=0,
        text={column: _cells(found, chosen) for column, found in columns.items()},
        logprob=logprob, logprob_problem=None if logprob else "none were returned",
    )  # fmt: skip
    return replace(row, **more)


def templated(
    rng: np.random.Generator,
    number: int,
    *,
    served: str,
    scale: float,
    columns: Sequence[str],
    tokens: int = 10,
    apart: float = 1.0,
    counts: bool = False,
    offset: int = 0,
    panel: bool = True,
    twins: Mapping[str, str] | None = None,
) -> Row:
    """A reply of a host that renders as `served`, scored under renderings; twins are the same."""
    base = rng.normal(0, 2, (tokens, VOCABULARY))
    names = list(dict.fromkeys([served, *columns]))
    logits = {name: base + apart * rng.normal(0, 1, base.shape) for name in names}
    logits[PUBLISHED] = base
    for twin, name in (twins or {}).items():
        logits[twin] = logits[name]
    chosen = (logits[served] + rng.gumbel(0, scale, base.shape)).argmax(axis=1)
    extra = number % 4  # prompts are of different lengths, and faults touch them differently
    lengths = {name: n + extra * (n % 7) for name, n in LENGTHS.items()
               if name in {PUBLISHED, served, *columns, *(twins or {})}}  # fmt: skip
    text = {PUBLISHED: _cells(base, chosen)}
    text |= {f"template:{n}": _cells(logits[n], chosen) for n in (*columns, *(twins or {}))}
    return Row(
        probe_id=f"{'t' if panel else 'p'}{number:02}", tokens=tokens, left_out=0, text=text,
        logprob=None, logprob_problem="none were returned", rendered=lengths, panel=panel,
        prompt_tokens=lengths[served] + offset if counts else None,
    )  # fmt: skip


def penalized(
    rng: np.random.Generator,
    name: str,
    *,
    penalty: float,
    scale: float = 0.05,
    tokens: int = 24,
    columns: Sequence[float] = (0.5, 1.0),
) -> Row:
    """A greedy reply under a presence penalty, scored under `columns` of it."""
    logits = rng.normal(0, 1.5, (tokens, VOCABULARY))
    logits += 3 * (np.arange(VOCABULARY) < 4)  # few words that come again
    noise = rng.gumbel(0, scale, logits.shape)
    said, before, chosen = np.zeros(VOCABULARY), [], []
    for at in range(tokens):
        before.append(said.copy())
        chosen.append(int((logits[at] + noise[at] - penalty * said).argmax()))
        said[chosen[-1]] = 1
    picked, seen = np.array(chosen), np.array(before)
    text = {PUBLISHED: _cells(logits, picked)}
    text |= {f"sampler:presence penalty {p:g}": _cells(logits - p * seen, picked) for p in columns}
    return Row(
        probe_id=name, tokens=tokens, left_out=0, text=text, logprob=None,
        logprob_problem="none were returned",
    )  # fmt: skip


def single(
    rng: np.random.Generator,
    name: str,
    *,
    share: float,
    kind: str = "drop",
    scale: float = 0.05,
    tokens: int = 40,
    named: bool = False,
    **more: Any,
) -> Row:
    """A greedy reply some of whose tokens are the second likeliest, or any; with its columns."""
    logits = rng.normal(0, 6 if kind == "rare" else 2, (tokens, VOCABULARY))
    order = np.argsort(-(logits + rng.gumbel(0, scale, logits.shape)), axis=1)
    other = order[:, 1] if kind == "drop" else rng.integers(0, VOCABULARY, tokens)
    score = _score(logits, np.where(rng.random(tokens) < share, other, order[:, 0]))
    kept = range(tokens)
    found = {f"best token dropped {s:g}": dropped_cells(score, kept, s) for s in DROPPED}
    found |= {f"rare token put in {s:g}": rare_cells(score, kept, s) for s in RARE}
    found = {column: rounded(cells) for column, cells in found.items()}
    text = {PUBLISHED: rounded(text_cells(score, kept))}
    if named:
        text |= {f"sampler:{column}": cells for column, cells in found.items()}
    row = Row(
        probe_id=name, tokens=tokens, left_out=0, text=text, logprob=None,
        logprob_problem="none were returned", single=found,
    )  # fmt: skip
    return replace(row, **more)


def drawn(
    rng: np.random.Generator,
    name: str,
    *,
    sampler: Mapping[str, float],
    tokens: int = 30,
    scale: float = 0.0,
    columns: Sequence[str] = tuple(SAMPLERS),
) -> SampledRow:
    """A reply that `sampler` drew from the published logits with noise of `scale`."""
    logits = rng.normal(0, 2, (tokens, VOCABULARY))
    host = logits + rng.gumbel(0, scale, logits.shape) if scale else logits
    said: set[int] = set()
    totals = dict.fromkeys(columns, 0.0)
    for at in range(tokens):
        token = int(rng.choice(VOCABULARY, p=_given(host[at], sampler, said)))
        plain = _given(logits[at], {}, said)[token]
        for column in columns:
            chance = _given(logits[at], SAMPLERS[column], said)[token]
            totals[column] += float(np.log((1 - FLOOR) * chance + FLOOR * plain))
        said.add(token)
    return SampledRow(
        probe_id=name, tokens=tokens, left_out=0, problem=None,
        cells={column: round(total, DIGITS) for column, total in totals.items()},
    )  # fmt: skip


def unread(name: str, problem: str) -> SampledRow:
    """A sampled reply that is set aside."""
    return SampledRow(probe_id=name, tokens=0, left_out=8, cells={}, problem=problem)


def again(name: str, log_p: float, *, came: bool = True, otherwise: bool = False) -> Repeat:
    """A reply to what was asked before."""
    end = "otherwise" if otherwise else "same"
    return Repeat(probe_id=f"{name}~{end}", otherwise=otherwise, came_again=came, log_p=log_p)


def _given(logits: Array, sampler: Mapping[str, float], said: set[int]) -> Array:
    """The distribution of the next token."""
    values = logits.copy()
    values[sorted(said)] -= sampler.get("presence_penalty", 0.0)
    found = np.exp((values - values.max()) / sampler.get("temperature", 1.0))
    found[found < sampler.get("min_p", 0.0)] = 0
    if "top_k" in sampler:
        found[found < np.sort(found)[-int(sampler["top_k"])]] = 0
    found /= found.sum()
    if "top_p" in sampler:
        order = np.argsort(-found, kind="stable")
        before = np.cumsum(found[order]) - found[order]
        found[order[before >= sampler["top_p"]]] = 0
        found /= found.sum()
    if "drop_best" in sampler:
        rest = np.where(found == found.max(), 0, found)
        found = (1 - sampler["drop_best"]) * found + sampler["drop_best"] * rest / rest.sum()
    return np.asarray(found)


def _cells(logits: Array, chosen: NDArray[np.intp]) -> tuple[float, ...]:
    return rounded(text_cells(_score(logits, chosen), range(len(chosen))))


def rounded(cells: Iterable[float]) -> tuple[float, ...]:
    """Cells as they are written."""
    return tuple(round(float(cell), DIGITS) for cell in cells)


# -- what lies beside them ---------------------------------------------------------------------


def capabilities(**changes: Any) -> dict[str, Any]:
    """The record of an endpoint that can do all."""
    found = {
        "temperature_zero": True, "greedy_fields": {}, "repeatable": True, "usage": True,
        "max_tokens_honoured": True, "seed": True, "streaming": True, "logprobs": True,
        "alternatives": 5, "token_ids": False, "logprobs_follow_temperature": False,
        "grid": None, "greedy_is_likeliest": True, "forged_log_e": -1.25, "reasoning": "absent",
        "requests": 11, "completion_tokens": 300, "problems": [], "prompt_tokens": 220,
        "least_max_tokens": 1, "reply_ids": False, "prompt_logprobs": False,
        "text_completions": True, "alike": 1.0, "echo": False,
        "parameters": [_parameter("max_tokens", "honoured", "the reply is as short as asked")],
    }  # fmt: skip
    return found | changes


def ignored(*names: str) -> list[dict[str, str]]:
    """Parameters that are taken and ignored."""
    return [_parameter(name, "ignored", "nothing changed") for name in names]


def _parameter(name: str, effect: str, detail: str) -> dict[str, str]:
    return {"name": name, "effect": effect, "detail": detail}


def shown(*prompts: Sequence[str]) -> dict[str, Any]:
    """Prompts that an endpoint shows, each by the renderings that give it."""
    rows = [
        {
            "probe_id": f"t{n:02}", "names": list(names),
            "differs_at": None if PUBLISHED in names else 3 + n,
            "published": "" if PUBLISHED in names else "<turn>system",
            "shown": "" if PUBLISHED in names else "<turn>user",
        }
        for n, names in enumerate(prompts)
    ]  # fmt: skip
    return {"prompts": rows, "requests": 1 + len(rows), "prompt_tokens": 90, "completion_tokens": 4}


def control(finding: str) -> dict[str, Any]:
    """What the control beside a run showed."""
    usage = {
        "requests": 16, "replies": 16, "failures": 0, "not_judged": 0, "prompt_tokens": 320,
        "completion_tokens": 384, "tokens_scored": 384, "tokens_left_out": 0, "cost_usd": None,
    }  # fmt: skip
    return {
        "base_url": "http://127.0.0.2/v1", "model": "tiny", "finding": finding,
        "summary": f"simulated as {finding}",
        "usage": None if finding in ("failed", "pending") else usage,
    }  # fmt: skip


#: What tokenizers make of the strings of `counted.json`.
COUNTS = {
    PUBLISHED: [25, 52, 37, 26, 55, 76, 30, 26],
    "claude": [20, 41, 33, 29, 61, 60, 24, 31],
    "llama3": [22, 47, 30, 21, 50, 66, 35, 24],
    "llama3-1": [22, 47, 30, 21, 50, 66, 35, 24],
    "gemma": [23, 40, 39, 24, 58, 71, 28, 20],
}


def counted() -> dict[str, Any]:
    """Strings that tell tokenizers apart."""
    return {
        "strings": {f"k{n:02}": f"string {n}" for n in range(STRINGS)},
        "counts": COUNTS,
        "models": {name: f"models of {name}" for name in COUNTS if name != PUBLISHED},
    }


def count_answers(name: str, *, constant: int = 7) -> dict[str, dict[str, Any]]:
    """Answers of a host that counts with a tokenizer."""
    return {
        f"k{n:02}": {"prompt_tokens": count + constant, "tokens": 1, "allowed": 1}
        for n, count in enumerate(COUNTS[name])
    }


def unanswered(*names: str, of: str = "exchanges.jsonl") -> list[dict[str, Any]]:
    """Requests that were noted before they were sent."""
    return [
        {"of": of, "probe_id": name, "number": 1, "sent_at": "2026-01-01T00:00:00.000+00:00",
         "max_tokens": 30, "prompt_tokens": 70 + n}
        for n, name in enumerate(names)
    ]  # fmt: skip


# -- what is long ------------------------------------------------------------------------------

PLACES = ("front", "front-kept", "middle", "end", "end-kept")


def curve(low: float, high: float) -> list[float]:
    """Cells that rise or fall evenly over the scales."""
    return list(rounded(np.linspace(low, high, len(TEXT_SCALES))))


#: Cells of a reply to a prompt that was read, and to another prompt.
READ, UNREAD = curve(-1, -20), curve(-90, -40)


def long_prompt(
    number: int,
    length: int,
    *,
    reads: bool,
    cuts: Mapping[str, list[float]],
    whole: list[float] | None = None,
) -> list[dict[str, Any]]:
    """Lines of the scores of one long prompt."""
    name = f"context-{number}"
    uncut = {
        "probe_id": name, "length": length, "reply_ids": [1, 2, 3], "kept": [0, 1, 2],
        "whole": whole or (READ if reads else UNREAD),
    }  # fmt: skip
    return [uncut, *({"probe_id": name, "cut": how, "cells": cuts[how]} for how in cuts)]


def marks(length: int, cells: list[float]) -> dict[str, list[float]]:
    """The cuts that are scored of a prompt that fits, all alike."""
    return {f"{place}@{int(m * length)}": cells for m in (0.9, 0.5) for place in PLACES}


def long_reply(number: int, tokens: int, asked: int, end: list[float] | None) -> dict[str, Any]:
    """The line of the scores of one reply that was to be long."""
    return {"probe_id": f"output-{number}", "tokens": tokens, "asked": asked, "end": end}


# -- files -------------------------------------------------------------------------------------

#: A reply: an answer with many more tokens than bytes is taken for one with a hidden thought.
TEXT = "a reply of many words, and then some more of them"

RUN_FILE = """\
endpoint: {base_url: "http://127.0.0.1/v1", model: tiny}
reference: {card: tiny}
out: run
"""


@dataclass(kw_only=True)
class Made:
    """A run folder to be."""

    plan: dict[str, Any] = field(default_factory=dict)  # unlike `simulate.make_plan`
    rows: list[Row] = field(default_factory=list)
    sampled: list[SampledRow] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)  # unlike others, or unscored
    files: dict[str, Any] = field(default_factory=dict)  # JSON by name
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # JSON lines by name
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # of probes, by their names
    completions: Made | None = None


def attempt(
    probe_id: str,
    *,
    text: str = TEXT,
    tokens: int | None = None,
    prompt_tokens: int | None = None,
    allowed: int = 30,
    finish: str = "length",
    status: int | None = 200,
    said: str = "",
    dialect: str = "chat",
    tries: int = 1,
) -> list[Attempt]:
    """The exchanges of one probe."""
    asked: dict[str, Any]
    asked = {"messages": [{"role": "user", "content": f"What of {probe_id}?"}]}
    message: dict[str, Any] = {"message": {"content": text}}
    if dialect == "completions":
        asked, message = {"prompt": f"What of {probe_id}?"}, {"text": text}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
    counts = {name: count for name, count in usage.items() if count is not None}
    body: dict[str, Any] = {"choices": [{**message, "finish_reason": finish}]}
    body |= {"usage": counts} if counts else {}
    if status != 200:
        body = {"error": {"message": said}}
    return [
        Attempt(
            probe_id=probe_id, number=number, started_at="2026-01-01T00:00:00.000+00:00",
            elapsed_s=0.1, request=json.dumps(asked | {"max_tokens": allowed}), status=status,
            body="" if status is None else json.dumps(body), dialect=dialect,
            error=said if status is None else None,
        )
        for number in range(1, tries + 1)
    ]  # fmt: skip


def write(run: Path, made: Made) -> None:
    """Write a run folder."""
    run.mkdir(parents=True)
    plan = make_plan().model_dump(mode="json") | made.plan
    (run / "plan.json").write_text(json.dumps(plan) + "\n")
    (run / "run.yaml").write_text(RUN_FILE)
    exchanges = _write_scored(run, made)
    asked = [name for name in exchanges if not name.startswith(("context-", "output-"))]
    panel = {row.probe_id for row in made.rows if row.panel}
    drawn_ones = _sampled(made)
    for file, names in (
        ("probes.jsonl", [name for name in asked if name not in panel | drawn_ones]),
        ("panel.jsonl", [name for name in asked if name in panel]),
        ("sampled.jsonl", [name for name in asked if name in drawn_ones]),
        ("context.jsonl", [name for name in exchanges if name not in asked]),
    ):
        if names or file == "probes.jsonl":
            (run / file).write_text(_lines(_probe(name, made) for name in names))
    for file, value in made.files.items():
        (run / file).write_text(json.dumps(value) + "\n")
    _write_lines(run, made, exchanges)
    if made.completions is not None:
        (run / "completions").mkdir()
        found = _write_scored(run / "completions", made.completions, dialect="completions")
        _write_lines(run / "completions", made.completions, found)


def _write_lines(run: Path, made: Made, exchanges: Mapping[str, list[Attempt]]) -> None:
    for file, lines in made.lines.items():
        scores = "scores" in file
        carried = [
            line | {"reply_sha256": _digest(line["probe_id"], exchanges)} if scores else line
            for line in lines
        ]
        (run / file).write_text(_lines(carried))


def _write_scored(run: Path, made: Made, **settings: Any) -> dict[str, list[Attempt]]:
    """Exchanges and ledger; every attempt by its probe."""
    every: list[Any] = [*made.rows, *made.sampled]
    usual: dict[str, dict[str, Any]] = {
        row.probe_id: {"prompt_tokens": getattr(row, "prompt_tokens", None), "tokens": size,
                       "allowed": max(30, size), "text": TEXT * (1 + size // 40)}
        for row in every for size in [row.tokens + row.left_out]
    }  # fmt: skip
    usual |= {one.probe_id: {"tokens": 30} for one in made.repeats}
    for lines in made.lines.values():
        usual |= {line["probe_id"]: {} for line in lines if {"whole", "asked"} & line.keys()}
    found = {
        name: attempt(name, **settings | usual.get(name, {}) | made.answers.get(name, {}))
        for name in dict.fromkeys([*usual, *made.answers])
    }
    (run / "exchanges.jsonl").write_text(
        _lines(attempt_to_json(one) for tries in found.values() for one in tries)
    )

    def with_digest(row: Any) -> Any:
        return replace(row, reply_sha256=_digest(row.probe_id, found))

    scored = Ledger(
        rows=tuple(with_digest(row) for row in made.rows),
        sampled=tuple(with_digest(row) for row in made.sampled),
        repeats=tuple(with_digest(one) for one in made.repeats),
    )
    wire = ledger_to_json(scored) | {"engine": {"engine": "simulated"}}
    (run / "ledger.json").write_text(json.dumps(wire, separators=(",", ":")) + "\n")
    return found


def _digest(name: str, exchanges: Mapping[str, list[Attempt]]) -> str:
    answer = parse(exchanges[name][-1])
    assert isinstance(answer, Reply | NotJudged), name
    return digest_of(answer)


def _probe(name: str, made: Made) -> dict[str, Any]:
    kind = name.partition("-")[0] if "-" in name else "template" if name[0] == "t" else "code"
    probe: dict[str, Any] = {
        "id": name, "kind": kind, "messages": [{"role": "user", "content": f"What of {name}?"}],
        "max_tokens": 30,
    }  # fmt: skip
    if name in _sampled(made):
        probe["temperature"] = 1.0
    if name in made.settings:
        probe["settings"] = [[key, value] for key, value in made.settings[name].items()]
    return probe


def _sampled(made: Made) -> set[str]:
    """The probes asked at temperature 1."""
    return {row.probe_id for row in made.sampled} | {one.probe_id for one in made.repeats}


def _lines(values: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(value, separators=(",", ":")) + "\n" for value in values)


# -- cases drawn at random ---------------------------------------------------------------------

CASES = 200

_INT4, _FP8, _SIBLING = "int4-sym-g64", "fp8-channel", "sibling"
_CLASSES = ("int8-class rounding", "4-bit-class rounding", "another model")
_LABELS = ("without log-probabilities", "streamed", "short")
_SAMPLED = (
    "temperature 0.7", "temperature 0.98", "temperature 1", "temperature 1.02", "temperature 1.2",
    "top-k 4", "top-k 10", "top-p 0.7", "temperature 0.7, top-p 0.8",
)  # fmt: skip


def random_case(number: int) -> Made:
    """One of CASES mixes of everything; rows are few and short, so that much stays close."""
    draw = _Draw(number)
    made, tame = Made(plan=_random_plan(draw)), draw.chance(0.35)
    if tame:  # honest replies, so that what stands beside them is seen, too
        made.rows = [
            greedy(
                draw.rng, f"p{n:02}", scale=draw.of(0.02, 0.05), tokens=24, other=[_INT4, _FP8],
                logprob_scale=0.05 if made.plan["top_logprobs"] else None,
                strata=tuple(draw.some(0.5, *_LABELS)), outranked=int(draw.chance(0.1)),
            )
            for n in range(draw.count(3, 13))
        ]  # fmt: skip
    else:
        _random_rows(draw, made)
    if made.plan.get("samplers"):
        _random_samples(draw, made, tame=tame and draw.chance(0.5))
    _random_long(draw, made)
    _random_neighbours(draw, made)
    return made


class _Draw:
    """Choices by the number of a case."""

    def __init__(self, number: int) -> None:
        self.rng = np.random.default_rng([20261130, number])

    def of(self, *options: Any) -> Any:
        """One of these."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        """Whether it happens."""
        return bool(self.rng.random() < share)

    def some(self, share: float, *options: str) -> list[str]:
        """Some of these, in their order."""
        return [option for option in options if self.chance(share)]

    def count(self, least: int, most: int) -> int:
        """A number from the least to the most."""
        return int(self.rng.integers(least, most + 1))


def _random_plan(draw: _Draw) -> dict[str, Any]:
    usual = make_plan().model_dump(mode="json")
    channel = {
        "honest_scale": draw.of(0.1, 0.1, 0.05, 0.2), "spread": draw.of(0.0, 0.0, 0.15),
        "learning_rate": draw.of(1.0, 1.0, 0.7),
    }  # fmt: skip
    noise = [*draw.some(0.15, _CLASSES[0]), *draw.some(0.8, *_CLASSES[1:])]
    shared = [*draw.some(0.1, _CLASSES[0]), *draw.some(0.2, *_CLASSES[1:])]
    routed = {name: draw.of(0.05, 0.2, 0.5, 0.9) for name in shared}
    plan: dict[str, Any] = {
        "policy": {"noise": noise, "builds": draw.some(0.35, _INT4, _FP8), "routed": routed},
        "calibration": usual["calibration"] | {"text": channel},
        "alpha": draw.of(0.001, 0.001, 0.01, 0.05), "beta": draw.of(0.001, 0.01, 0.1),
        "min_replies": draw.of(2, 4, 6), "top_logprobs": draw.of(0, 0, 5),
        "seed": draw.count(1, 1000), "varies": draw.chance(0.25),
        "budget_completion_tokens": draw.of(60, 200, 3000, 3000),
    }  # fmt: skip
    if draw.chance(0.35):
        plan |= {"samplers": {name: SAMPLERS[name] for name in _SAMPLED},
                 "honest_samplers": list(HONEST)}  # fmt: skip
    if draw.chance(0.2):
        plan["context_tokens"] = 900
    if draw.chance(0.2):
        plan["output_tokens"] = 200
    if draw.chance(0.3):
        plan["suspects"] = {_SIBLING: "a sibling of it"}
        if draw.chance(0.3):
            plan["suspects"] |= {"unread": "one that was not scored"}
    if draw.chance(0.2):
        plan["prices"] = {"prompt": 1.0, "completion": 2.0}
    if draw.chance(0.1):
        plan["card_notes"] = ["nobody has checked the card"]
    if draw.chance(0.15):
        plan["bank"] = [_INT4, _FP8]
    return plan


def _random_rows(draw: _Draw, made: Made) -> None:
    """Replies of one kind of host."""
    rng, kind = draw.rng, draw.of(*["greedy"] * 6, "part", "part", *["panel"] * 2, "hidden",
                                  "penalty", "single", "single", "rather", "none")  # fmt: skip
    count, tokens = draw.count(1, 12), draw.of(4, 10, 18, 30)
    scale = draw.of(0.02, 0.02, 0.02, 0.05, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.9)
    if made.plan["varies"]:
        count = draw.of(count, 14, 18)
    names = [f"p{n:02}" for n in range(count)]
    columns: dict[str, Any] = {how: [] for how in ("served", "near", "other", "same")}
    for column in (*draw.some(0.6, _INT4, _FP8, "drop-1"),
                   *([_SIBLING] if made.plan.get("suspects") else [])):  # fmt: skip
        columns[draw.of("served", "near", "other", "other", "same")].append(column)
    if made.plan["top_logprobs"]:
        columns["logprob_scale"] = draw.of(None, 0.05, 0.2, 0.8)
    if kind in ("greedy", "part"):
        share, odd = draw.of(0.2, 0.5), draw.of(0.4, 0.9)
        scales = [odd if kind == "part" and draw.chance(share) else scale for _ in names]
        made.rows = [
            greedy(rng, name, scale=at, tokens=tokens, **columns)
            for name, at in zip(names, scales, strict=True)
        ]
        if draw.chance(0.2):
            made.rows = [replace(row, prompt_tokens=21, rendered={PUBLISHED: 20})
                         for row in made.rows]  # fmt: skip
    elif kind in ("panel", "hidden"):
        among = ("system-injected", "system-injected-2") if kind == "hidden" else (
            "system-ignored", "no-template", "space-added", "leading-whitespace-stripped",
        )  # fmt: skip
        scored = draw.some(0.7, *among) or [among[0]]
        served = draw.of(PUBLISHED, *scored, *scored)
        twins = {"family-gemma": scored[0]} if draw.chance(0.2) else None
        settings: dict[str, Any] = {
            "served": served, "scale": min(scale, 0.3), "columns": scored, "twins": twins,
            "counts": draw.chance(0.4), "offset": draw.of(0, 0, 1, 7), "apart": draw.of(0.3, 1.0),
            "tokens": min(tokens, 10),
        }  # fmt: skip
        ordinary = draw.chance(0.4)
        made.rows = [greedy(rng, f"q{n:02}", scale=scale, tokens=8)
                     for n in range(draw.count(0, 3))]  # fmt: skip
        made.rows += [templated(rng, n, panel=True, **settings) for n in range(draw.count(1, 6))]
        if ordinary:
            made.rows += [templated(rng, n, panel=False, **settings) for n in range(count // 2)]
    elif kind == "penalty":
        made.rows = [
            penalized(rng, name, penalty=draw.of(0.0, 1.0), tokens=tokens, scale=min(scale, 0.3))
            for name in names
        ]
    elif kind == "single":
        named, share = draw.chance(0.4), draw.of(0.0, 0.02, 0.06)
        made.rows = [
            single(rng, name, share=share, kind=draw.of("drop", "rare"), named=named,
                   scale=min(scale, 0.1), outranked=int(draw.chance(0.2)))
            for name in names
        ]  # fmt: skip
    elif kind == "rather":
        for name in names:
            row = greedy(rng, name, scale=0.9, tokens=tokens, **columns)
            leads = rounded(cell + 3.0 for cell in row.text[PUBLISHED])
            text = row.text | {"template:family-llama3": leads}
            lengths = {PUBLISHED: 20, "family-llama3": 30}
            made.rows.append(replace(row, text=text, rendered=lengths))
    if made.plan["varies"]:
        odd_one = draw.of("", *_LABELS)
        for n, row in enumerate(made.rows):
            labels = (*draw.some(0.5, *_LABELS), *(("late",) if n >= 8 else ()))
            if kind == "greedy" and odd_one in labels:
                row = greedy(rng, row.probe_id, scale=0.8, tokens=tokens, **columns)
            made.rows[n] = replace(row, strata=labels)
    if draw.chance(0.3):
        made.rows = [replace(row, outranked=draw.of(0, 0, 1, 2)) for row in made.rows]
    if draw.chance(0.2):
        made.rows = [replace(row, left_out=draw.of(0, 1, 2)) for row in made.rows]
    if draw.chance(0.15):
        made.rows = [replace(row, text={}, unjudged="a thought out of its place", tokens=0)
                     if draw.chance(0.3) else row for row in made.rows]  # fmt: skip


def _random_samples(draw: _Draw, made: Made, *, tame: bool) -> None:
    """Sampled replies, those that are set aside, and what was asked again."""
    truth = draw.of({}, {}, {"top_k": 4}, {"temperature": 0.7}, {"temperature": 1.2},
                    {"temperature": 0.7, "top_p": 0.8})  # fmt: skip
    scale, count = draw.of(0.0, 0.0, 0.0, 0.3), draw.of(0, 2, 4, 6, 6)
    if tame:
        truth, scale, count = {}, 0.0, 12
    made.sampled = [
        drawn(draw.rng, f"s{n:02}", sampler=truth, tokens=draw.of(8, 30), columns=_SAMPLED,
              scale=scale)
        for n in range(count)
    ]  # fmt: skip
    if draw.chance(0.3):
        problem = draw.of("two spellings", "the endpoint does not name the tokens of its replies")
        made.sampled += [unread(f"u{n:02}", problem) for n in range(draw.of(2, 7, 8))]
    made.repeats = [
        again(f"s{n:02}", draw.of(-0.5, -4.0, -9.0, -30.0), came=draw.chance(0.5),
              otherwise=draw.chance(0.5))
        for n in range(draw.of(0, 0, 1, 3))
    ]  # fmt: skip


def _random_long(draw: _Draw, made: Made) -> None:
    """Scores of long prompts and long replies."""
    lines: list[dict[str, Any]] = []
    if made.plan.get("context_tokens"):
        for n in range(1, 1 + draw.of(0, 1, 1, 2)):
            length, reads = draw.of(890, 890, 450), draw.chance(0.5)
            cuts = marks(890, draw.of(UNREAD, UNREAD, READ, curve(-1.1, -20)))
            cuts |= marks(450, draw.of(UNREAD, UNREAD, READ))
            lines += long_prompt(n, length, reads=reads, cuts=cuts)
            made.answers[f"context-{n}"] = {"prompt_tokens": draw.of(None, 400, length)}
        if draw.chance(0.3):
            said = draw.of("maximum context length is 700 tokens", "too long")
            made.answers["context-8"] = {"status": 422, "said": said}
        if draw.chance(0.2):
            made.answers["context-7"] = {"text": "", "finish": "stop"}
    if made.plan.get("output_tokens"):
        for n in range(1, 1 + draw.of(0, 1, 2)):
            end = draw.of(None, curve(-30, -9), curve(-30, -14), curve(-2, -1))
            lines.append(long_reply(n, 200 if end is None else 88 + draw.of(0, 1, 9), 200, end))
            made.answers[f"output-{n}"] = {"finish": draw.of("length", "stop")}
        if draw.chance(0.2):
            made.answers["output-8"] = {"text": "", "finish": "stop"}
    if lines:
        made.lines["context_scores.jsonl"] = lines


def _random_neighbours(draw: _Draw, made: Made) -> None:
    """All that stands beside the rows, and answers that are no replies."""
    asked = len(made.rows)
    if draw.chance(0.3):  # as many as replies at times: that is half
        for n in range(draw.of(1, 2, asked, asked + 1)):
            made.answers[f"x{n:02}"] = draw.of(
                {"status": 422, "said": "not this"}, {"status": None, "said": "reset", "tries": 4},
                {"text": "", "finish": "stop", "prompt_tokens": draw.of(None, 41)},
            )  # fmt: skip
    if made.rows and draw.chance(0.15):
        claimed = draw.of({"tokens": 40}, {"prompt_tokens": 90_000}, {"tokens": 31})
        made.answers[made.rows[0].probe_id] = {"allowed": 30, **claimed}
    if draw.chance(0.3):
        made.files["capabilities.json"] = capabilities(
            forged_log_e=draw.of(None, -1.0, 6.9, 9.0),
            parameters=ignored(*draw.some(0.3, "stop", "seed", "n", "max_tokens")),
        )
    if draw.chance(0.3):
        ways: tuple[list[str], ...] = (
            [], ["system-ignored"], ["system-ignored", "bos-missing"], [PUBLISHED], [PUBLISHED],
            ["no-template"],
        )  # fmt: skip
        made.files["shown.json"] = shown(*(draw.of(*ways) for _ in range(draw.of(1, 1, 2, 3))))
    if draw.chance(0.35):
        host, arrives = draw.of(0.02, 0.02, 0.3, 0.6), draw.of((21,), (21,), (21, None), (21, 34))
        rows = [
            greedy(draw.rng, f"p{n:02}", scale=host, prompt_tokens=draw.of(*arrives),
                   rendered={PUBLISHED: 20})
            for n in range(draw.of(0, 1, 5, 8))
        ]  # fmt: skip
        made.completions = Made(rows=rows)
        if not rows:
            made.completions.answers = {"p00": {"status": 404, "said": "no such path"}}
    if draw.chance(0.35):
        made.files["counted.json"] = counted()
        made.answers |= count_answers(draw.of(*COUNTS, "claude"), constant=draw.of(0, 7))
    if draw.chance(0.2):
        made.files["control.json"] = control(
            draw.of("consistent", "inconsistent", "inconclusive", "failed", "pending")
        )
    if draw.chance(0.2):
        made.files["deadline.json"] = {"deadline_s": draw.of(45.0, 5400.0)}
    if draw.chance(0.15):
        made.lines["sent.jsonl"] = unanswered("p00", "z00", "z01")
    if draw.chance(0.1):
        made.plan |= {
            "thinking": {
                "open": "<think>", "close": "</think>", "switch_off": {"enable_thinking": False},
            },
            "configuration": {"endpoint": {"dialect": "chat"}, "audit": {}},
        }  # fmt: skip
        if made.rows:
            made.settings[made.rows[-1].probe_id] = {"enable_thinking": False}
