"""What an audit may spend, what it has spent, and what it would: tokens and dollars.

A request is paid for before it is sent, at the most it can cost, and the change is given back when
its answer says what it did cost. So no ceiling is crossed, however many are under way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from verifier.config import Prices
from verifier.records import NotJudged, Probe, Reply
from verifier.wire import Problem

#: Tokens that a chat template adds for each message at most, a default system prompt included.
_MOST_PER_MESSAGE: Final = 64
#: And for an offer of tools, beside what they say of themselves.
_MOST_FOR_TOOLS: Final = 1024
#: The usual: characters of a token, and tokens around a message.
_CHARS_PER_TOKEN: Final = 4.0
_PER_MESSAGE: Final = 8
#: Errors before anything was sent: nothing can have been billed.
_NEVER_SENT: Final = ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What must not be crossed."""

    completion_tokens: int
    usd: float | None  # None: no bound in dollars
    prices: Prices | None  # None: nothing is known of dollars

    def less(self, completion_tokens: int, *, prompt_tokens: int = 0) -> Ceiling:
        """What is left of it after so many tokens."""
        cost = Amount(requests=0, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        spent = cost.usd(self.prices)
        left = None if self.usd is None or spent is None else max(0.0, self.usd - spent)
        return Ceiling(
            completion_tokens=max(0, self.completion_tokens - completion_tokens),
            usd=left,
            prices=self.prices,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Tokens of requests."""

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def usd(self, prices: Prices | None) -> float | None:
        """Dollars at these prices; None without any."""
        if prices is None:
            return None
        tokens = self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion
        return tokens / 1e6


_NOTHING: Final = Amount(requests=0, prompt_tokens=0, completion_tokens=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """Tokens of requests, and what they cost."""

    amount: Amount
    usd: float | None  # None: the prices are not known


def add_up(parts: Sequence[Priced]) -> Priced:
    """All of them together; the dollars are known when they are of each."""
    amounts = [part.amount for part in parts]
    usd = [part.usd for part in parts if part.usd is not None]
    return Priced(
        amount=Amount(
            requests=sum(amount.requests for amount in amounts),
            prompt_tokens=sum(amount.prompt_tokens for amount in amounts),
            completion_tokens=sum(amount.completion_tokens for amount in amounts),
        ),
        usd=sum(usd) if len(usd) == len(parts) else None,
    )


def most_prompt_tokens(probe: Probe) -> int:
    """An upper bound on what a prompt counts: no tokenizer makes more tokens than bytes."""
    most = 0
    for m in probe.messages:
        calls = "".join(call.id + call.name + call.arguments for call in m.tool_calls)
        most += len(f"{m.content}{m.reasoning or ''}{calls}".encode()) + _MOST_PER_MESSAGE
    for tool in probe.tools:
        most += len(f"{tool.name}{tool.description}{tool.parameters}".encode())
    return most + (_MOST_FOR_TOOLS if probe.tools else 0)


def usual_prompt_tokens(probe: Probe) -> int:
    """About what a prompt counts."""
    return sum(math.ceil(len(m.content) / _CHARS_PER_TOKEN) + _PER_MESSAGE for m in probe.messages)


class Purse:
    """What is left, with what is under way set aside."""

    def __init__(self, ceiling: Ceiling) -> None:
        self._ceiling = ceiling
        self._prompt = 0
        self._completion = 0
        self._requests = 0

    @property
    def spent(self) -> Amount:
        """What has been paid, at the most that requests under way can cost."""
        return Amount(
            requests=self._requests, prompt_tokens=self._prompt,
            completion_tokens=self._completion,
        )  # fmt: skip

    def pay(self, probe: Probe) -> bool:
        """Set the most aside that one request for `probe` can cost; False when that is too much."""
        prompt = self._prompt + most_prompt_tokens(probe)
        completion = self._completion + probe.max_tokens
        if completion > self._ceiling.completion_tokens:
            return False
        cost = Amount(requests=0, prompt_tokens=prompt, completion_tokens=completion)
        usd = cost.usd(self._ceiling.prices)
        if self._ceiling.usd is not None and usd is not None and usd > self._ceiling.usd:
            return False
        self._prompt, self._completion = prompt, completion
        self._requests += 1
        return True

    def give_back(self, probe: Probe, result: Reply | NotJudged | Problem) -> None:
        """Take what a request did not cost, by what came of it.

        An answer costs what it counts. One that broke off, or that could not be read, may have
        been billed in full; an error status is not.
        """
        if isinstance(result, Problem):
            if not may_be_billed(result):
                self._prompt -= most_prompt_tokens(probe)
                self._completion -= probe.max_tokens
            return
        if result.prompt_tokens is not None:
            self._prompt -= most_prompt_tokens(probe) - result.prompt_tokens
        if result.completion_tokens is not None:
            self._completion -= probe.max_tokens - result.completion_tokens

    def book(self, probe: Probe, result: Reply | NotJudged | Problem) -> None:
        """Take in a request of the past, whatever the ceiling."""
        self._prompt += most_prompt_tokens(probe)
        self._completion += probe.max_tokens
        self._requests += 1
        self.give_back(probe, result)


def may_be_billed(problem: Problem) -> bool:
    """Whether a request without an answer may have cost something all the same."""
    if problem.status is None:
        return not problem.reason.startswith(_NEVER_SENT)
    return 200 <= problem.status <= 299


def forecast(
    probes: Sequence[Probe], *, max_tokens: int, ceiling: Ceiling,
    at_first: Amount | None = None, with_cause: Amount | None = None, tries: int = 1,
) -> tuple[Amount, Amount]:  # fmt: skip
    """What an audit costs that uses its whole budget, as expected and at most.

    Expected: every reply at full length, none asked for twice. Most audits stop earlier. At most:
    short replies, so that all probes are asked, and answers that broke off billed in full. What is
    asked beside the probes comes on top, out of the same completion tokens: `at_first` always
    and up to `tries` times, `with_cause` at most.
    """
    first, more = at_first or _NOTHING, with_cause or _NOTHING
    count = min(len(probes), ceiling.completion_tokens // max_tokens)
    expected = Amount(
        requests=count + first.requests,
        prompt_tokens=sum(usual_prompt_tokens(probe) for probe in probes[:count])
        + first.prompt_tokens,
        completion_tokens=count * max_tokens,
    )
    bounds = [most_prompt_tokens(probe) for probe in probes]
    most = Amount(
        requests=len(probes) + count + tries * first.requests + more.requests,
        prompt_tokens=sum(bounds)
        + count * max(bounds, default=0)
        + tries * first.prompt_tokens
        + more.prompt_tokens,
        completion_tokens=ceiling.completion_tokens,
    )
    return expected, most
