"""What an audit may spend, what it has spent, and what it would: tokens and dollars.

A request is paid for before it is sent, at the most it can cost, and the change is given back when
its answer says what it did cost. So no ceiling is crossed, however many are under way. What an
answer says is taken within what was asked for and what came: no host can make an audit ask more
than is paid for, or end it, by a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from verifier.config import Prices
from verifier.host.exchange import Problem
from verifier.records import CountTokens, NotJudged, Probe, Reply, Request

#: Tokens that a chat template adds for each message at most, a default system prompt included.
_MOST_PER_MESSAGE: Final = 64
#: And for an offer of tools, beside what they say of themselves.
_MOST_FOR_TOOLS: Final = 1024
#: The usual: characters of a token, and tokens around a message.
_CHARS_PER_TOKEN: Final = 4.0
_PER_MESSAGE: Final = 8
#: Bytes of a token at most, by and large: fewer tokens than a text has of these are not believed.
_MOST_BYTES_PER_TOKEN: Final = 16
#: A host may put a prompt of its own before ours, and count an end that we do not: counts are
#: believed up to so much more than was asked for.
OWN_PROMPT: Final = 4096
OWN_END: Final = 1
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


NOTHING: Final = Amount(requests=0, prompt_tokens=0, completion_tokens=0)


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


def believed_prompt(claimed: int, most: int) -> int:
    """Prompt tokens to report, of which `most` can have been asked for."""
    return claimed if claimed <= most + OWN_PROMPT else most


def believed_completion(claimed: int, allowed: int) -> int:
    """Completion tokens to report, where so many were allowed."""
    return claimed if claimed <= allowed + OWN_END else allowed


def charged_prompt(probe: Probe, claimed: int | None) -> int:
    """Prompt tokens that are charged: as claimed, no fewer than the prompt can be, and as far as
    is believed."""
    most = most_prompt_tokens(probe)
    if claimed is None:
        return most
    size = sum(len(m.content.encode()) for m in probe.messages)
    return max(believed_prompt(claimed, most), size // _MOST_BYTES_PER_TOKEN)


def charged_completion(
    probe: Probe, answer: Reply | NotJudged, *, count: CountTokens | None
) -> int:
    """Completion tokens that are charged: as claimed, but no fewer than came, nor more than asked.

    Without a tokenizer (`count`) a claim below what the text can be pays the full price, and so
    does an answer without a text that is said to have taken nothing.
    """
    most, claimed = probe.max_tokens, answer.completion_tokens
    if claimed is None or (isinstance(answer, NotJudged) and not claimed):
        return most
    fewest = 0
    if isinstance(answer, Reply):
        named = len(answer.token_ids or ())
        texts = [text for text in (answer.thought, answer.text) if text]
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        fewest = max(named, -(-size // _MOST_BYTES_PER_TOKEN))
        if count is not None:
            fewest = max(named, sum(map(count, texts)))  # a host need not count the end
        elif claimed < fewest:
            return most
    return min(max(claimed, fewest), most)


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

    def give_back(
        self,
        probe: Probe,
        result: Reply | NotJudged | Problem,
        *,
        count: CountTokens | None = None,
    ) -> None:
        """Take what a request did not cost, by what came of it.

        An answer costs what it counts, as far as that can be. One that broke off, or that could not
        be read, may have been billed in full; an error status is not. `count` is what a tokenizer
        makes of a text.
        """
        if isinstance(result, Problem):
            if not may_be_billed(result):
                self._prompt -= most_prompt_tokens(probe)
                self._completion -= probe.max_tokens
            return
        self._prompt -= most_prompt_tokens(probe) - charged_prompt(probe, result.prompt_tokens)
        self._completion -= probe.max_tokens - charged_completion(probe, result, count=count)

    def book_unanswered(self, request: Request) -> None:
        """Take in a request of the past whose answer nobody recorded: it may have been billed."""
        self._prompt += request.prompt_tokens
        self._completion += request.max_tokens
        self._requests += 1

    def book(
        self,
        probe: Probe,
        result: Reply | NotJudged | Problem,
        *,
        count: CountTokens | None = None,
    ) -> None:
        """Take in a request of the past, whatever the ceiling."""
        self._prompt += most_prompt_tokens(probe)
        self._completion += probe.max_tokens
        self._requests += 1
        self.give_back(probe, result, count=count)


def may_be_billed(problem: Problem) -> bool:
    """Whether a request without an answer may have cost something all the same."""
    if problem.status is None:
        return not problem.reason.startswith(_NEVER_SENT)
    return 200 <= problem.status <= 299 and not problem.refused_whole


def forecast(
    probes: Sequence[Probe], *, max_tokens: int, ceiling: Ceiling, expected: Amount, most: Amount
) -> tuple[Amount, Amount]:
    """What an audit costs that uses its whole budget, as expected and at most.

    Expected: every reply at full length, none asked for twice. Most audits stop earlier. At most:
    short replies, so that all probes are asked, and answers that broke off billed in full. What is
    asked beside the probes, as `expected` and at `most`, comes on top, out of the same completion
    tokens.
    """
    count = min(len(probes), ceiling.completion_tokens // max_tokens)
    bounds = [most_prompt_tokens(probe) for probe in probes]
    usual = sum(usual_prompt_tokens(probe) for probe in probes[:count])
    return Amount(
        requests=count + expected.requests,
        prompt_tokens=usual + expected.prompt_tokens,
        completion_tokens=count * max_tokens,
    ), Amount(
        requests=len(probes) + count + most.requests,
        prompt_tokens=sum(bounds) + count * max(bounds, default=0) + most.prompt_tokens,
        completion_tokens=ceiling.completion_tokens,
    )
