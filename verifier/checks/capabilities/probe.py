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
from typing import Any, Final

import numpy as np

from verifier.checks.capabilities.parameters import (
    BIAS,
    Parameter,
    judge_bias,
    judge_flag,
    judge_n,
    judge_stop,
    several_fields,
    stop_string,
)
from verifier.files.run_folder import (
    CAPABILITIES,
    CAPABILITY_EXCHANGES,
    write_json,
)
from verifier.files.stored import read_record
from verifier.host.budget import (
    Amount,
    Purse,
    believed_completion,
    believed_prompt,
    most_prompt_tokens,
)
from verifier.host.collect import ask_once, read_attempts
from verifier.host.dialects import items, member
from verifier.host.endpoint import Endpoint
from verifier.host.exchange import (
    HIDDEN,
    UNSHOWN,
    Problem,
    asked_tokens,
    body_of,
    holds_thought,
    parse,
)
from verifier.records import (
    Attempt,
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

_QUESTION: Final = "Name three rivers in Europe and say in one sentence where each of them ends."
_LONG: Final = 48

#: The fewest tokens that hosts may be asked for: some refuse 1, as OpenAI's Responses do below 16.
_FEWEST: Final = (1, 16)

#: Further fields that show whether a host gives the prompt's log-probabilities and the reply's ids.
_TELLING: Final = {"prompt_logprobs": 1, "return_token_ids": True}

#: Tokens of a reply that shows a parameter.
_FEW: Final = 12

#: Why a request was not sent.
_UNPAID: Final = "not sent, the budget does not pay for it"
_UNSENT: Final = "not sent, the endpoint does not answer"

#: Dialects that have stop strings, several replies and a bias, under these names.
_OPENAI: Final = ("chat", "completions")

#: Temperatures tried in turn where 0 is refused; with each, only the likeliest token is asked for.
_SMALLEST: Final = (0.01, 0.1)

#: Seconds between two tries at most.
_LONGEST_WAIT_S: Final = 20.0

#: Requests that find out what an endpoint can do, at most.
CAPABILITY_REQUESTS: Final = 16

#: Tries of each at most: a host under load is asked again.
CAPABILITY_TRIES: Final = 3

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


def capability_probes() -> tuple[Probe, ...]:
    """Everything that may be asked, in order; each request says how many tokens it allows.

    Three temperatures, two limits, echo twice, and six others.
    """
    question = (Message(role="user", content=_QUESTION),)
    return tuple(
        Probe(id=f"capability-{n}", kind="capability", messages=question, max_tokens=_LONG)
        for n in range(1, CAPABILITY_REQUESTS + 1)
    )


def probe_capabilities(
    run: Path,
    endpoint: Endpoint,
    *,
    purse: Purse,
    sleep: Callable[[float], object] = time.sleep,
    stopped: Callable[[], bool] = lambda: False,
) -> Capabilities | None:
    """Ask a handful of questions; attempts and record go into the run folder.

    Each is paid for from `purse` before it is sent. What fails or cannot be paid is a problem on
    record, not an exception. Where the first question is not answered, no other is asked. What an
    interrupted call has asked is counted and asked again. None, and no record, once `stopped` says
    so.
    """
    spent_before, asked = _spent_before(run), 0
    problems: list[str] = []
    sent: list[Attempt] = []
    probes = iter(capability_probes())
    unanswered = False

    def send(
        fields: Mapping[str, Any], *, max_tokens: int = _LONG, stream: bool = False,
        as_text: bool = False,
    ) -> Reply | NotJudged | Problem:  # fmt: skip
        nonlocal asked
        if unanswered or stopped():
            return Problem(status=None, reason=_UNSENT, retryable=False)
        asked += 1
        probe = replace(next(probes), max_tokens=max_tokens)
        changed = replace(endpoint, stream=stream, extra_body={**endpoint.extra_body, **fields})
        if as_text:
            changed = replace(changed, dialect="completions", render=_as_text)
        for number in range(1, CAPABILITY_TRIES + 1):
            made = ask_once(
                run, CAPABILITY_EXCHANGES, changed, probe, number=number, purse=purse,
                logprobs=changed.top_logprobs > 0, stopped=stopped,
            )  # fmt: skip
            if made is None:
                return Problem(status=None, reason=_UNPAID, retryable=False)
            found = parse(made.attempt)
            spent.append((found, max_tokens))
            sent.append(made.attempt)
            # a host under load must not look like one that refuses what it was asked
            again = isinstance(found, Problem) and found.retryable and found.status is not None
            if stopped() or not again or number == CAPABILITY_TRIES:
                break
            sleep(min(_LONGEST_WAIT_S, made.retry_after_s or 2.0**number))
        return found

    def ask(
        fields: Mapping[str, Any], *, max_tokens: int = _LONG, stream: bool = False,
        as_text: bool = False,
    ) -> Reply | NotJudged | None:  # fmt: skip
        found = send(fields, max_tokens=max_tokens, stream=stream, as_text=as_text)
        if isinstance(found, Problem):
            if not unanswered:
                problems.append(f"request {asked}: {found.reason}")
            return None
        return found

    spent: list[tuple[Reply | NotJudged | Problem, int]] = []
    greedy: dict[str, float] = {}
    first = ask({})
    if first is None:
        for temperature in _SMALLEST:
            greedy = {"temperature": temperature, "top_k": 1}
            first = ask(greedy)
            if first is not None:
                break
    zero = None if first is None else not greedy
    unanswered = first is None
    second = ask(greedy)
    honoured, least = None, None
    for fewest in _FEWEST:
        answer = ask(greedy, max_tokens=fewest)
        if honoured is None:
            honoured = _honours(answer, fewest)
        if _honours(answer, fewest):
            least = fewest
        if answer is not None and _honours(answer, fewest) is not False:
            break
    streamed = ask(greedy, stream=True)
    one, same, other = (ask({"temperature": 1.0, "seed": seed}) for seed in (1, 1, 2))
    telling = ask({**greedy, **_TELLING}, max_tokens=least or _FEWEST[-1])
    told = None if telling is None else body_of(sent[-1])
    echoed = ask({"echo": True}, max_tokens=least or _FEWEST[-1], as_text=True)
    completed = echoed or ask({}, max_tokens=least or _FEWEST[-1], as_text=True)
    seeded = _follows_seed(one, same, other)
    parameters = [
        judge_flag(
            "max_tokens", honoured, honoured="the reply is as short as asked",
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
        parameters.append(judge_n(sent[-1], several))
        biased = send({**greedy, "logit_bias": BIAS}, max_tokens=_FEW)
        parameters.append(judge_bias(first.text, biased))
    if stopped():
        return None
    rows = _rows(first)
    sampled = [row for reply in (one, other) for row in _rows(reply)]
    record = Capabilities(
        temperature_zero=zero,
        greedy_fields=greedy if first is not None else {},
        repeatable=_same_text(first, second),
        usage=None if first is None else first.completion_tokens is not None,
        max_tokens_honoured=honoured,
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
        requests=spent_before.requests + len(spent),
        completion_tokens=spent_before.completion_tokens + sum(_tokens(*one) for one in spent),
        problems=tuple(problems),
        prompt_tokens=spent_before.prompt_tokens + sum(_prompt_tokens(one) for one, _ in spent),
        least_max_tokens=least,
        reply_ids=_shows(told, "token_ids", first),
        prompt_logprobs=_shows(told, "prompt_logprobs", first),
        text_completions=None if first is None else completed is not None,
        echo=_echoes(echoed, completed),
        parameters=tuple(parameters),
        alike=_alike(first, second),
    )
    write_json(run / CAPABILITIES, asdict(record))
    return record


def _as_text(messages: tuple[Message, ...]) -> str:
    """A prompt for a text completion: no template is known here, and none is needed."""
    return messages[-1].content


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
    return isinstance(echoed, Reply) and echoed.text.lstrip().startswith(_QUESTION)


def _rows(reply: Reply | NotJudged | None) -> tuple[ReportedToken, ...]:
    return (reply.logprobs or ()) if isinstance(reply, Reply) else ()


def _same_text(one: object, other: object) -> bool | None:
    if not (isinstance(one, Reply) and isinstance(other, Reply)):
        return None
    return (one.thought, one.text) == (other.thought, other.text)


def _alike(first: object, second: object) -> float | None:
    """How far two texts agree from their beginning, as a share of the longer."""
    if not (isinstance(first, Reply) and isinstance(second, Reply)):
        return None
    texts = [f"{reply.thought or ''}{reply.text}" for reply in (first, second)]
    longest = max(map(len, texts))
    pairs = enumerate(zip(*texts, strict=False))
    same = next((n for n, (one, two) in pairs if one != two), min(map(len, texts)))
    return round(same / longest, 4) if longest else 1.0


def _follows_seed(one: object, same: object, other: object) -> bool | None:
    """A seed shows when it repeats a text that another seed changes."""
    repeats, changes = _same_text(one, same), _same_text(one, other)
    if repeats is None or changes is None or changes:
        return None if repeats else repeats
    return repeats


def _honours(short: Reply | NotJudged | None, most: int) -> bool | None:
    if short is None or short.completion_tokens is None:
        return None
    return short.completion_tokens <= most


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
        ("cost", f"{record.requests} requests, {record.completion_tokens} completion tokens"),
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
