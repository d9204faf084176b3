"""What an endpoint can do, found out by effect: a handful of requests before an audit.

Hosts accept fields and ignore them, so a field counts only when its effect shows. What did not
show is unknown, not absent.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from verifier.collect import attempt_to_json
from verifier.endpoint import Client, Endpoint
from verifier.errors import ConfigError
from verifier.folder import (
    CAPABILITIES,
    CAPABILITY_EXCHANGES,
    append_line,
    read_json,
    write_json,
)
from verifier.parameters import (
    BIAS,
    Parameter,
    judge_bias,
    judge_flag,
    judge_n,
    judge_stop,
    several_fields,
    stop_string,
)
from verifier.records import (
    Attempt,
    Candidate,
    Finding,
    Message,
    NotJudged,
    Probe,
    Reply,
    ReportedToken,
)
from verifier.wire import Problem, parse

_QUESTION: Final = "Name three rivers in Europe and say in one sentence where each of them ends."
_LONG: Final = 48
_SHORT: Final = 3
_FEW: Final = 12

#: Dialects that have stop strings, several replies and a bias, under these names.
_OPENAI: Final = ("chat", "completions")

#: Temperatures tried in turn where 0 is refused; with each, only the likeliest token is asked for.
_SMALLEST: Final = (0.01, 0.1)

#: How seldom honest numbers are called forged.
_FORGED_ALPHA: Final = 0.001

#: What the tokens beyond the alternatives have together at least.
_LEAST_REST: Final = 1e-6

#: Reported log-probabilities may be rounded by this much (nats).
_ROUNDING: Final = 0.05

#: How much flatter or steeper than claimed the true distribution may be, as temperatures.
_TEMPERATURES: Final = (0.5, 0.7, 1.4, 2.0, 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What was found; None is unknown: it was refused, or no answer told."""

    temperature_zero: bool | None
    greedy_fields: Mapping[str, float]  # what to send for greedy replies; {}: temperature 0
    repeatable: bool | None  # the same question twice, the same text
    usage: bool | None
    max_tokens_honoured: bool | None
    seed: bool | None  # the same text for one seed, at temperature 1, and another for another
    streaming: bool | None
    logprobs: bool | None
    alternatives: int | None  # how many come at most, the chosen one among them
    token_ids: bool | None
    logprobs_follow_temperature: bool | None
    grid: float | None  # the step that reported log-probabilities are rounded to; None: none seen
    greedy_is_likeliest: bool | None  # chosen tokens have the largest reported log-probability
    forged_log_e: float | None  # evidence that samples do not follow the reported distribution
    reasoning: str | None  # shown, hidden, absent
    requests: int
    completion_tokens: int  # those of answers without a count are taken at full length
    problems: tuple[str, ...]
    prompt_tokens: int = 0  # as far as the endpoint counts
    parameters: tuple[Parameter, ...] = ()  # by effect


def probe_capabilities(run: Path, endpoint: Endpoint) -> Capabilities:
    """Ask a handful of questions; attempts and record go into the run folder.

    What fails is a problem on record, not an exception.
    """
    asked: list[tuple[Attempt, int]] = []
    problems: list[str] = []

    def send(
        fields: Mapping[str, Any], *, max_tokens: int = _LONG, stream: bool = False
    ) -> Reply | NotJudged | Problem:
        changed = replace(endpoint, stream=stream, extra_body={**endpoint.extra_body, **fields})
        probe = Probe(
            id=f"capability-{len(asked) + 1}",
            kind="capability",
            messages=(Message(role="user", content=_QUESTION),),
            max_tokens=max_tokens,
        )
        attempt = asyncio.run(_ask_once(changed, probe))
        append_line(run / CAPABILITY_EXCHANGES, attempt_to_json(attempt))
        asked.append((attempt, max_tokens))
        return parse(attempt)

    def ask(
        fields: Mapping[str, Any], *, max_tokens: int = _LONG, stream: bool = False
    ) -> Reply | NotJudged | None:
        found = send(fields, max_tokens=max_tokens, stream=stream)
        if isinstance(found, Problem):
            problems.append(f"request {len(asked)}: {found.reason}")
            return None
        return found

    greedy: dict[str, float] = {}
    first = ask({})
    if first is None:
        for temperature in _SMALLEST:
            greedy = {"temperature": temperature, "top_k": 1}
            first = ask(greedy)
            if first is not None:
                break
    zero = None if first is None else not greedy
    second, short = ask(greedy), ask(greedy, max_tokens=_SHORT)
    streamed = ask(greedy, stream=True)
    one, same, other = (ask({"temperature": 1.0, "seed": seed}) for seed in (1, 1, 2))
    limited, seeded = _honours(short), _follows_seed(one, same, other)
    parameters = [
        judge_flag(
            "max_tokens", limited, honoured="the reply is as short as asked",
            ignored="the reply is longer than asked",
        ),
        judge_flag(
            "seed", seeded, honoured="one seed, one text; another seed, another text",
            ignored="one seed gives two texts",
        ),
    ]  # fmt: skip
    if isinstance(first, Reply) and _same_text(first, second) and endpoint.dialect in _OPENAI:
        stop = stop_string(first.text)
        if stop is not None:
            parameters.append(judge_stop(first.text, stop, send({**greedy, "stop": [stop]})))
        several = send(several_fields(), max_tokens=_FEW)
        parameters.append(judge_n(asked[-1][0], several))
        biased = send({**greedy, "logit_bias": BIAS}, max_tokens=_FEW)
        parameters.append(judge_bias(first.text, biased))
    rows = _rows(first)
    sampled = [row for reply in (one, other) for row in _rows(reply)]
    record = Capabilities(
        temperature_zero=zero,
        greedy_fields=greedy if first is not None else {},
        repeatable=_same_text(first, second),
        usage=None if first is None else first.completion_tokens is not None,
        max_tokens_honoured=limited,
        seed=seeded,
        streaming=None if first is None else streamed is not None,
        logprobs=bool(rows) if isinstance(first, Reply) else None,
        alternatives=max((len(row.top) for row in rows), default=None),
        token_ids=all(row.chosen.token_id is not None for row in rows) if rows else None,
        logprobs_follow_temperature=_follow_temperature(rows, _rows(one)),
        grid=find_grid([row.chosen.logprob for row in (*rows, *sampled)]),
        greedy_is_likeliest=_greedy_is_likeliest(rows) if zero else None,
        forged_log_e=(
            log_e_forged(sampled, alternatives=endpoint.top_logprobs) if sampled else None
        ),
        reasoning=_reasoning(first),
        requests=len(asked),
        completion_tokens=sum(_tokens(attempt, most) for attempt, most in asked),
        problems=tuple(problems),
        prompt_tokens=sum(_prompt_tokens(attempt) for attempt, _ in asked),
        parameters=tuple(parameters),
    )
    write_json(run / CAPABILITIES, asdict(record))
    return record


async def _ask_once(endpoint: Endpoint, probe: Probe) -> Attempt:
    async with Client(endpoint) as client:
        sent = await client.ask(probe, number=1, logprobs=endpoint.top_logprobs > 0)
        return sent.attempt


def _tokens(attempt: Attempt, most: int) -> int:
    found = parse(attempt)
    if isinstance(found, Problem):
        return 0
    return most if found.completion_tokens is None else found.completion_tokens


def _prompt_tokens(attempt: Attempt) -> int:
    found = parse(attempt)
    return 0 if isinstance(found, Problem) else found.prompt_tokens or 0


def _rows(reply: Reply | NotJudged | None) -> tuple[ReportedToken, ...]:
    return (reply.logprobs or ()) if isinstance(reply, Reply) else ()


def _same_text(one: object, other: object) -> bool | None:
    if not (isinstance(one, Reply) and isinstance(other, Reply)):
        return None
    return one.text == other.text


def _follows_seed(one: object, same: object, other: object) -> bool | None:
    """A seed shows when it repeats a text that another seed changes."""
    repeats, changes = _same_text(one, same), _same_text(one, other)
    if repeats is None or changes is None or changes:
        return None if repeats else repeats
    return repeats


def _honours(short: Reply | NotJudged | None) -> bool | None:
    if short is None or short.completion_tokens is None:
        return None
    return short.completion_tokens <= _SHORT


def _follow_temperature(
    greedy: Sequence[ReportedToken], sampled: Sequence[ReportedToken]
) -> bool | None:
    """Whether the first position's numbers differ between temperature 0 and 1, for one prompt."""
    if not (greedy and sampled):
        return None
    zero = {_key(c): c.logprob for c in (greedy[0].chosen, *greedy[0].top)}
    one = {_key(c): c.logprob for c in (sampled[0].chosen, *sampled[0].top)}
    shared = [abs(zero[key] - one[key]) for key in (zero.keys() & one.keys()) - {None}]
    return max(shared) > 0.5 if shared else None


def find_grid(values: Sequence[float]) -> float | None:
    """The decimal or binary step that all values are multiples of; None: none of those tried."""
    told = [v for v in values if v < -1e-3]
    if len(told) < 8:
        return None
    for step in (0.5, 0.25, 0.125, 0.1, 0.0625, 0.01, 0.001, 0.0001):
        if all(abs(v / step - round(v / step)) < 1e-6 / step + 1e-6 for v in told):
            return step
    return None


def _greedy_is_likeliest(rows: Sequence[ReportedToken]) -> bool | None:
    """Whether every chosen token is the likeliest by its own numbers, up to rounding."""
    told = [row for row in rows if row.top]
    if not told:
        return None
    return all(row.chosen.logprob >= max(c.logprob for c in row.top) - _ROUNDING for row in told)


def log_e_forged(rows: Sequence[ReportedToken], *, alternatives: int) -> float:
    """Log e-value that samples at temperature 1 do not follow the reported probabilities.

    Null: given what precedes it, each token was drawn from a distribution in which the reported
    alternatives (the `alternatives` likeliest) have the reported probabilities, and all others
    together the rest. Each factor q(x)/p(x), with q the same categories at another temperature,
    then has mean 1, and so has their mixture: at 1/alpha the false-alarm rate is at most alpha
    (Ville 1939). Positions whose alternatives cannot be told apart are passed over. Rounded values
    bias each factor by as much as they round.
    """
    totals = np.zeros(len(_TEMPERATURES))
    for row in rows:
        top = sorted(row.top, key=lambda c: -c.logprob)[:alternatives]
        keys = [_key(c) for c in top]
        # told from what came before the draw, so that passing over a position favours no token
        if not top or None in keys or len(set(keys)) < len(keys):
            continue
        named = [c.logprob for c in top]
        rest = max(1.0 - float(np.exp(named).sum()), _LEAST_REST)
        log_p = np.array([*named, math.log(rest)])
        log_p -= np.logaddexp.reduce(log_p)
        # a token beyond the alternatives is one of the rest: its own number came with the draw
        chosen = _key(row.chosen)
        at = keys.index(chosen) if chosen in keys else len(top)
        for n, temperature in enumerate(_TEMPERATURES):
            log_q = log_p / temperature
            totals[n] += log_q[at] - np.logaddexp.reduce(log_q) - log_p[at]
    return float(np.logaddexp.reduce(totals) - math.log(len(_TEMPERATURES)))


def _key(candidate: Candidate) -> object:
    """What tells a token from others: its id, its bytes, or its text; None: nothing does.

    Texts of broken characters are alike, whatever the tokens are.
    """
    if candidate.token_id is not None:
        return candidate.token_id
    if candidate.bytes is not None:
        return candidate.bytes
    return None if "\ufffd" in candidate.token else candidate.token


def apply(capabilities: Capabilities, endpoint: Endpoint) -> Endpoint:
    """The endpoint, asked for what works alone."""
    return replace(
        endpoint,
        extra_body={**endpoint.extra_body, **capabilities.greedy_fields},
        top_logprobs=0 if capabilities.logprobs is False else endpoint.top_logprobs,
    )


def judge(record: Capabilities) -> Finding | None:
    """Whether samples follow the probabilities reported with them; None: nothing could be told.

    It is no departure of a policy and decides no verdict: some publishers map the temperature that
    is asked to another one, and their samples do not follow the reported probabilities either.
    """
    if record.forged_log_e is None:
        return None
    forged = record.forged_log_e >= math.log(1 / _FORGED_ALPHA)
    return Finding(
        aspect="samples",
        decision="detected" if forged else "undecided",
        name="samples against the reported probabilities",
        log_e=round(record.forged_log_e, 4),
        detail=(
            "tokens sampled at temperature 1 do not follow the log-probabilities reported with "
            "them: these are forged, or the temperature asked for is mapped to another"
            if forged
            else "nothing speaks against the log-probabilities reported with sampled tokens"
        ),
        tokens_needed=None,
    )


def read_capabilities(run: Path) -> Capabilities | None:
    """The record of a run folder; None when there is none.

    Raises ConfigError when it is not as it was written.
    """
    if not (run / CAPABILITIES).exists():
        return None
    raw = read_json(run / CAPABILITIES)
    try:
        return TypeAdapter(Capabilities).validate_python(
            raw
            | {
                "problems": tuple(raw.get("problems", ())),
                "parameters": tuple(raw.get("parameters", ())),
            }
        )
    except (ValidationError, TypeError) as error:
        raise ConfigError(
            f"{run / CAPABILITIES}: not as it was written ({type(error).__name__}); run "
            "`verifier capabilities` again"
        ) from error


def describe(record: Capabilities) -> list[tuple[str, str]]:
    """What was found: label and one line each."""

    def say(value: bool | None) -> str:
        return "unknown" if value is None else "yes" if value else "no"

    greedy = "as temperature 0" if record.temperature_zero else dict(record.greedy_fields)
    found = [
        ("temperature 0 taken", say(record.temperature_zero)),
        ("greedy replies asked", str(greedy)),
        ("the same twice", say(record.repeatable)),
        ("counts tokens", say(record.usage)),
        ("streams", say(record.streaming)),
        ("log-probabilities", say(record.logprobs)),
        ("alternatives", "unknown" if record.alternatives is None else str(record.alternatives)),
        ("token ids", say(record.token_ids)),
        ("log-probabilities follow temperature", say(record.logprobs_follow_temperature)),
        ("rounded to", "no step seen" if record.grid is None else f"{record.grid:g}"),
        ("greedy token is the likeliest", say(record.greedy_is_likeliest)),
        ("reasoning", record.reasoning or "unknown"),
        ("cost", f"{record.requests} requests, {record.completion_tokens} completion tokens"),
    ]
    if record.forged_log_e is not None:
        needed = math.log(1 / _FORGED_ALPHA)
        said = (
            f"log e against it {record.forged_log_e:+.1f}; from {needed:.1f} on they do not "
            f"(false-alarm rate {_FORGED_ALPHA:g}): forged, or temperature 1 is ignored"
        )
        found.append(("samples follow the reported probabilities", said))
    shown = [(f"parameter {p.name}", f"{p.effect}: {p.detail}") for p in record.parameters]
    return [*found, *shown, *(("problem", problem) for problem in record.problems)]


def _reasoning(first: Reply | NotJudged | None) -> str | None:
    if isinstance(first, Reply):
        return "absent"
    if first is not None and "hidden reasoning" in first.reason:
        return "hidden"
    return "shown" if first is not None and "reasoning shown" in first.reason else None
