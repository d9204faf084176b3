"""What an endpoint can do, found out by effect: a handful of requests before an audit.

Hosts accept fields and ignore them, so a field counts only when its effect shows. What did not
show is unknown, not absent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from verifier.checks.capabilities.parameters import (
    Parameter,
    judge_bias,
    judge_flag,
    judge_n,
    judge_stop,
)
from verifier.checks.capabilities.questions import (
    CAPABILITY_REQUESTS,
    LONG,
    QUESTION,
    UNPAID,
    Asker,
    Known,
    same_text,
)
from verifier.files.run_folder import CAPABILITIES, CAPABILITY_EXCHANGES, write_json
from verifier.files.stored import read_record
from verifier.host.advice import explain
from verifier.host.budget import (
    Amount,
    Purse,
    believed_completion,
    believed_prompt,
    most_prompt_tokens,
)
from verifier.host.collect import read_attempts
from verifier.host.dialects import items, member
from verifier.host.endpoint import Endpoint
from verifier.host.exchange import (
    HIDDEN,
    UNSHOWN,
    Problem,
    asked_tokens,
    holds_thought,
    parse,
)
from verifier.records import (
    Candidate,
    Count,
    Message,
    Nats,
    NotJudged,
    Probe,
    Reply,
    ReportedToken,
    Share,
)

#: How seldom honest numbers are called forged.
FORGED_ALPHA: Final = 0.001

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
    greedy_fields: Mapping[str, Nats]  # what to send for greedy replies; {}: temperature 0
    repeatable: bool | None  # the same question twice, the same text
    usage: bool | None
    max_tokens_honoured: bool | None
    seed: bool | None  # the same text for one seed, at temperature 1, and another for another
    streaming: bool | None
    logprobs: bool | None
    alternatives: Count | None  # how many come at most, the chosen one among them
    token_ids: bool | None
    logprobs_follow_temperature: bool | None
    grid: Nats | None  # the step that reported log-probabilities are rounded to; None: none seen
    greedy_is_likeliest: bool | None  # chosen tokens have the largest reported log-probability
    forged_log_e: Nats | None  # evidence that samples do not follow the reported distribution
    reasoning: str | None  # shown, inline (in the text), hidden, absent
    requests: Count
    completion_tokens: Count  # those of answers without a count are taken at full length
    problems: tuple[str, ...]
    prompt_tokens: Count = 0  # as far as the endpoint counts
    least_max_tokens: Count | None = None  # the least it takes, and then heeds
    reply_ids: bool | None = None  # whether the ids of a reply come where they are asked for
    prompt_logprobs: bool | None = None
    text_completions: bool | None = None
    alike: Share | None = None  # share of the first of two such texts that the second begins with
    echo: bool | None = None  # whether a text completion repeats its prompt when asked to
    parameters: tuple[Parameter, ...] = ()  # by effect

    @property
    def answered(self) -> bool:
        """Whether the first question was; else nothing was found out."""
        return self.usage is not None


def capability_probes() -> tuple[Probe, ...]:
    """Everything that may be asked, in order; each request says how many tokens it allows.

    Three temperatures, two limits, echo twice, and six others.
    """
    question = (Message(role="user", content=QUESTION),)
    return tuple(
        Probe(id=f"capability-{n}", kind="capability", messages=question, max_tokens=LONG)
        for n in range(1, CAPABILITY_REQUESTS + 1)
    )


def probe_capabilities(
    run: Path,
    endpoint: Endpoint,
    *,
    purse: Purse,
    sleep: Callable[[float], object] = time.sleep,
    stopped: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda _line: None,
) -> Capabilities | None:
    """Ask a handful of questions; attempts and record go into the run folder.

    Each is paid for from `purse` before it is sent. What fails or cannot be paid is a problem on
    record, not an exception. Where the first question is not answered, no other is asked. What an
    interrupted call has asked is counted and asked again. None, and no record, once `stopped` says
    so.
    """
    before = _spent_before(run)
    asker = Asker(run=run, endpoint=endpoint, purse=purse, sleep=sleep, stopped=stopped, tell=tell)
    known = asker.ask_all(capability_probes())
    if known is None:
        return None
    record = _record(known, before, alternatives=endpoint.top_logprobs)
    write_json(run / CAPABILITIES, asdict(record))
    return record


def _record(known: Known, before: Amount, *, alternatives: int) -> Capabilities:
    """What the answers show; `before` was spent by earlier calls."""
    first, second, one = known.first, known.answer("the same again"), known.answer("seed 1")
    echoed = known.answer("echo")
    completed = echoed or known.answer("text")
    told = known.body("telling")
    rows = _rows(first)
    sampled = [row for reply in (one, known.answer("seed 2")) for row in _rows(reply)]
    spent = [(came, each.request.max_tokens) for each in known.asked.values() for came in each.came]
    zero = None if first is None else not known.greedy
    return Capabilities(
        temperature_zero=zero,
        greedy_fields=known.greedy,
        repeatable=same_text(first, second),
        usage=None if first is None else first.completion_tokens is not None,
        max_tokens_honoured=known.honoured,
        seed=_follows_seed(known),
        streaming=None if first is None else known.answer("streamed") is not None,
        logprobs=bool(rows) if isinstance(first, Reply) else None,
        alternatives=max((len(row.top) for row in rows), default=None),
        token_ids=all(row.chosen.token_id is not None for row in rows) if rows else None,
        logprobs_follow_temperature=_follow_temperature(rows, _rows(one)),
        grid=find_grid([row.chosen.logprob for row in (*rows, *sampled)]),
        greedy_is_likeliest=_greedy_is_likeliest(rows) if zero else None,
        forged_log_e=log_e_forged(sampled, alternatives=alternatives) if sampled else None,
        reasoning=_reasoning(first),
        requests=before.requests + len(spent),
        completion_tokens=before.completion_tokens + sum(_tokens(*each) for each in spent),
        problems=known.problems,
        prompt_tokens=before.prompt_tokens + sum(_prompt_tokens(came) for came, _ in spent),
        least_max_tokens=known.least,
        reply_ids=_shows(told, "token_ids", first),
        prompt_logprobs=_shows(told, "prompt_logprobs", first),
        text_completions=None if first is None else completed is not None,
        echo=_echoes(echoed, completed),
        parameters=_judge_each(known),
        alike=_alike(first, second),
    )


def _judge_each(known: Known) -> tuple[Parameter, ...]:
    """Each parameter by its effect, as far as it was asked for."""
    first, stop = known.first, known.stop
    plain = first.text if isinstance(first, Reply) else ""
    found = [
        judge_flag(
            "max_tokens", known.honoured, honoured="the reply is as short as asked",
            ignored="the reply is longer than asked",
        ),
        judge_flag(
            "seed", _follows_seed(known), honoured="one seed, one text; another seed, another text",
            ignored="one seed gives two texts",
        ),
    ]  # fmt: skip
    if (asked := known.asked.get("stop")) is not None and stop is not None:
        found.append(judge_stop(plain, stop, asked.answer))
    if (asked := known.asked.get("n")) is not None:
        found.append(judge_n(asked.attempt, asked.answer))
    if (asked := known.asked.get("logit_bias")) is not None:
        found.append(judge_bias(plain, asked.answer))
    return tuple(found)


def _spent_before(run: Path) -> Amount:
    """What earlier calls spent on the same questions, as `Capabilities` counts."""
    attempts = read_attempts(run, name=CAPABILITY_EXCHANGES)
    found = [(parse(attempt), asked_tokens(attempt)) for attempt in attempts]
    return Amount(
        requests=len(found),
        prompt_tokens=sum(_prompt_tokens(one) for one, _ in found),
        completion_tokens=sum(_tokens(*one) for one in found),
    )


def _tokens(found: Reply | NotJudged | Problem, most: int) -> int:
    if isinstance(found, Problem):
        return 0
    claimed = found.completion_tokens
    return most if claimed is None else believed_completion(claimed, most)


def _prompt_tokens(found: Reply | NotJudged | Problem) -> int:
    if isinstance(found, Problem):
        return 0
    return believed_prompt(found.prompt_tokens or 0, most_prompt_tokens(capability_probes()[0]))


def _shows(body: object, name: str, first: Reply | NotJudged | None) -> bool | None:
    """Whether an answer holds a list of this name, in itself or in its choice."""
    if first is None:
        return None
    choice = next(iter(items(member(body, "choices"))), None)
    return any(bool(items(member(holder, name))) for holder in (body, choice))


def _echoes(echoed: Reply | NotJudged | None, completed: Reply | NotJudged | None) -> bool | None:
    if completed is None:
        return None
    return isinstance(echoed, Reply) and echoed.text.lstrip().startswith(QUESTION)


def _rows(reply: Reply | NotJudged | None) -> tuple[ReportedToken, ...]:
    return (reply.logprobs or ()) if isinstance(reply, Reply) else ()


def _alike(first: object, second: object) -> float | None:
    """How far two texts agree from their beginning, as a share of the longer."""
    if not (isinstance(first, Reply) and isinstance(second, Reply)):
        return None
    texts = [f"{reply.thought or ''}{reply.text}" for reply in (first, second)]
    longest = max(map(len, texts))
    pairs = enumerate(zip(*texts, strict=False))
    same = next((n for n, (one, two) in pairs if one != two), min(map(len, texts)))
    return round(same / longest, 4) if longest else 1.0


def _follows_seed(known: Known) -> bool | None:
    """A seed shows when it repeats a text that another seed changes."""
    one = known.answer("seed 1")
    repeats = same_text(one, known.answer("seed 1 again"))
    changes = same_text(one, known.answer("seed 2"))
    if repeats is None or changes is None or changes:
        return None if repeats else repeats
    return repeats


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


def why_silent(run: Path, endpoint: Endpoint) -> str:
    """Why the first question was not answered, and what the operator can do: one line."""
    record, attempts = read_capabilities(run), read_attempts(run, name=CAPABILITY_EXCHANGES)
    last = record.problems[-1] if record is not None and record.problems else UNPAID
    problem = parse(attempts[-1]) if attempts else None
    if last.endswith(UNPAID) or not isinstance(problem, Problem):
        return f"{endpoint.host}: no question was answered ({last}); raise the budget of the audit"
    return explain(endpoint, problem)


def apply(capabilities: Capabilities, endpoint: Endpoint) -> Endpoint:
    """The endpoint, asked for what works alone."""
    return replace(
        endpoint,
        extra_body={
            **endpoint.extra_body,
            **capabilities.greedy_fields,
            **({"return_token_ids": True} if capabilities.reply_ids else {}),
        },
        top_logprobs=0 if capabilities.logprobs is False else endpoint.top_logprobs,
        least_max_tokens=capabilities.least_max_tokens or 1,
    )


def read_capabilities(run: Path) -> Capabilities | None:
    """The record of a run folder; None when there is none.

    Raises ConfigError when it is not as it was written.
    """
    if not (run / CAPABILITIES).exists():
        return None
    advice = "run `verifier capabilities` again"
    return read_record(run / CAPABILITIES, Capabilities, advice=advice)


def describe(record: Capabilities) -> list[tuple[str, str]]:
    """What was found: label and one line each."""
    spent = f"{record.requests} requests, {record.completion_tokens} completion tokens"
    if not record.answered:
        return [("nothing found out", problem) for problem in record.problems] + [("cost", spent)]

    def say(value: bool | None) -> str:
        return "unknown" if value is None else "yes" if value else "no"

    greedy = "as temperature 0" if record.temperature_zero else dict(record.greedy_fields)
    found = [
        ("temperature 0 taken", say(record.temperature_zero)),
        ("greedy replies asked", str(greedy)),
        (
            "the same twice",
            say(record.repeatable)
            if record.repeatable is not False or record.alike is None
            else f"no: the first {record.alike:.0%} alike",
        ),
        ("counts tokens", say(record.usage)),
        (
            "least max_tokens",
            "unknown" if record.least_max_tokens is None else str(record.least_max_tokens),
        ),
        ("streams", say(record.streaming)),
        ("log-probabilities", say(record.logprobs)),
        ("alternatives", "unknown" if record.alternatives is None else str(record.alternatives)),
        ("token ids", say(record.token_ids)),
        ("token ids of a reply, when asked", say(record.reply_ids)),
        ("log-probabilities of the prompt", say(record.prompt_logprobs)),
        ("text completions", say(record.text_completions)),
        ("echo", say(record.echo)),
        ("log-probabilities follow temperature", say(record.logprobs_follow_temperature)),
        ("rounded to", "no step seen" if record.grid is None else f"{record.grid:g}"),
        ("greedy token is the likeliest", say(record.greedy_is_likeliest)),
        ("reasoning", record.reasoning or "unknown"),
        ("cost", spent),
    ]
    if record.forged_log_e is not None:
        needed = math.log(1 / FORGED_ALPHA)
        said = (
            f"log e against it {record.forged_log_e:+.1f}; from {needed:.1f} on they do not "
            f"(false-alarm rate {FORGED_ALPHA:g}): forged, or temperature 1 is ignored"
        )
        found.append(("samples follow the reported probabilities", said))
    shown = [(f"parameter {p.name}", f"{p.effect}: {p.detail}") for p in record.parameters]
    return [*found, *shown, *(("problem", problem) for problem in record.problems)]


def _reasoning(first: Reply | NotJudged | None) -> str | None:
    """How thoughts show: apart, in the text, not at all, or there are none."""
    if isinstance(first, Reply):
        if first.thought is not None:
            return "shown"
        return "inline" if holds_thought(first.text) else "absent"
    hidden = first is not None and first.reason.startswith((HIDDEN, UNSHOWN))
    return "hidden" if hidden else None
