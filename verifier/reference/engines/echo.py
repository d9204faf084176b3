"""The echo engine: a trusted host by URL that repeats a prompt with its log-probabilities.

For hosts that are no vLLM of ours. Text completions with `echo: true` and `logprobs: N`, as OpenAI
began them and Fireworks documents them (docs.fireworks.ai/api-reference/post-completions: token
ids as a prompt, `tokens`, `token_logprobs`, `top_logprobs`, `text_offset`, `token_ids`); also with
the prompt's part beside the choices, as Together has it (docs.together.ai/docs/logprobs; without
alternatives there, which is refused). The host is trusted: which weights it holds is taken on its
word. Only token ids are sent, since a text may be split otherwise there, and every token that comes
back is held against the one that was sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from verifier.errors import ConfigError
from verifier.records import (
    GenerateRequest,
    Generation,
    Nats,
    ReplyScore,
    ScoreRequest,
    TokenId,
)
from verifier.reference.engines.server import ROUNDING, SAMPLE, Elsewhere, Server, Told
from verifier.safety import sieve

#: Alternatives to ask for, the most first: hosts allow 20, 5 or other numbers.
_WIDTHS: Final = (20, 10, 5, 4, 3)

#: Of fewer tokens there is nothing to choose among.
_LEAST: Final = 2

#: How far two askings for the same log-probabilities may lie apart, in nats, root mean square. An
#: honest host's own noise is of this size, and a reference's is added to it.
MOST_APART: Final = 0.1

#: A step that log-probabilities are rounded to and that drowns honest noise.
_COARSE: Final = 0.1

#: The log-probability of a token that takes no part: of an alternative that was not named.
_UNNAMED: Final = -1e4

_KIND: Final = "host that echoes a prompt with its log-probabilities"


class _Spelling(Protocol):
    """What the engine needs of the card's tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]: ...
    def encode(self, text: str) -> tuple[int, ...]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def ids_of_bytes(self, raw: bytes) -> tuple[int, ...]: ...
    def special_id(self, token: str) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Position:
    """What the host says of one token, in nats."""

    logprob: float
    rank: int  # among those that take part; one more than all of these: it is not among them
    entropy: float  # at least
    first: int  # the likeliest of them; the given token where there are none
    top: tuple[float, ...]  # of those that take part, descending


class EchoEngine(Elsewhere):
    """One model of one host. Not thread-safe: one caller at a time.

    It scores; it neither generates nor rounds, and says nothing of tokens that the host does not
    name, so a target's reported log-probabilities are not judged by it.
    """

    _called, _holder = "echo", "host"

    def __init__(
        self,
        url: str,
        *,
        tokenizer: _Spelling,
        api_key: str | None = None,
        model: str | None = None,
    ) -> None:
        """`url` is what comes before /completions; `model` its name there, None: its only one.

        Raises ConfigError, in one line, for a host that cannot be reached, takes no token ids,
        gives no scores for a prompt or too few alternatives, rounds them coarsely, does not agree
        with itself, or whose tokens are not those of the card.
        """
        self._tokenizer = tokenizer
        self._server = Server(url, kind=_KIND, api_key=api_key)
        try:
            self._model = self._server.find_model(None).id if model is None else model
            self._greet()
        except BaseException:
            self.close()  # nobody else can: the caller gets no engine
            raise

    @property
    def versions(self) -> dict[str, str]:
        return {
            "engine": "echo",
            "url": self._server.url,
            "model": sieve.strike(self._model),
            "weights": "as the host says; not checked",
            "alternatives": str(self._k),
            "apart": f"{self._apart:.2g}",
        }

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Raises ConfigError: hosts do not say which tokens a reply was made of."""
        del requests
        raise ConfigError(
            f"{self._server.url}: the echo engine scores and does not generate; "
            "use --engine vllm or transformers"
        )

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        """Score replies by teacher forcing. Candidates are not scored: most are not named."""
        return [self._score(request) if request.reply_ids else _EMPTY for request in requests]

    def _score(self, request: ScoreRequest) -> ReplyScore:
        ids = request.prompt_ids + request.reply_ids
        told = self._ask(ids)
        with self._server.refusing("echoed logprobs"):
            return self._read(told, ids, start=len(request.prompt_ids))

    # -- what the host can ---------------------------------------------------------------------

    def _greet(self) -> None:
        ids = self._tokenizer.encode(SAMPLE)
        self._width, told = self._find_width(ids)
        with self._server.refusing("echoed logprobs"):
            self._check_tokens(told, ids)
            self._k = _count_alternatives(told, tokens=len(ids))
            self._refuse_coarse(told, tokens=len(ids))
            first = self._read(told, ids, start=1)
        self._server.reconnect()
        again = self._ask(ids)
        with self._server.refusing("echoed logprobs"):
            self._apart = _apart(first, self._read(again, ids, start=1))
        if self._apart > MOST_APART:
            raise ConfigError(
                f"{self._server.url}: does not agree with itself: asked twice, its "
                f"log-probabilities of one text lie {self._apart:.2g} nats apart (at most "
                f"{MOST_APART:g}); pin one deployment of the model, or take another reference"
            )

    def _find_width(self, ids: tuple[int, ...]) -> tuple[int, _Echoed]:
        """The most alternatives that the host allows, and what it says of the sample with them."""
        for width in _WIDTHS:
            answer = self._server.try_post("/completions", self._body(ids, width), _Completion)
            if not isinstance(answer, str):
                found = answer.echoed
                if found is None or not any(v is not None for v in found.prompt(len(ids))):
                    raise self._scores_nothing()
                return width, found
        raise ConfigError(
            f"{self._server.url}: refuses token ids to complete with echo and logprobs, or "
            f"{_WIDTHS[-1]} alternatives: {answer}; {self._server.advice}"
        )

    def _scores_nothing(self) -> ConfigError:
        where, advice = self._server.url, self._server.advice
        return ConfigError(f"{where}: gives no scores for a prompt; {advice}")

    def _refuse_coarse(self, told: _Echoed, *, tokens: int) -> None:
        values = [value for value in told.prompt(tokens) if value is not None]
        if all(abs(value / _COARSE - round(value / _COARSE)) < 1e-6 for value in values):
            raise ConfigError(
                f"{self._server.url}: its log-probabilities are rounded to {_COARSE:g}, more than "
                "honest hosts differ by; take a reference that gives more decimals"
            )

    # -- HTTP ----------------------------------------------------------------------------------

    def _body(self, ids: tuple[int, ...], width: int) -> dict[str, object]:
        # at temperature 1, where values that were divided by it are still the model's own
        body = {"prompt": list(ids), "echo": True, "logprobs": width, "max_tokens": 1}
        return {"model": self._model, **body, "temperature": 1}

    def _ask(self, ids: tuple[int, ...]) -> _Echoed:
        found = self._server.post("/completions", self._body(ids, self._width), _Completion).echoed
        if found is None:
            raise self._scores_nothing()
        return found

    # -- reading -------------------------------------------------------------------------------

    def _check_tokens(self, told: _Echoed, ids: Sequence[int]) -> None:
        """Raise ValueError unless the host repeats the very tokens that were sent.

        One more may come, which it generated. Tokens are compared by ids where it names them, else
        by their texts, wherever these are text.
        """
        told.refuse_uneven()
        if len(told.tokens) - len(ids) not in (0, 1):
            raise ValueError(f"expected the {len(ids)} tokens sent, got {len(told.tokens)}")
        if told.token_ids is not None:
            if tuple(told.token_ids[: len(ids)]) != tuple(ids):
                raise ValueError("names other token ids than were sent")
            return
        for position, (token, token_id) in enumerate(zip(told.tokens, ids, strict=False)):
            # white space before a text is shown by some and not by others
            if position and not self._may_be(token, token_id):
                raise ValueError(
                    f"token {position} is {token!r}, and by the card's tokenizer "
                    f"{self._tokenizer.token_bytes(token_id)!r}: another tokenizer, or "
                    "shown without white space"
                )

    def _may_be(self, token: str | None, token_id: int) -> bool:
        """Whether a token's text is that of an id; of control tokens and parts of characters it
        cannot be known."""
        raw = self._tokenizer.token_bytes(token_id)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return True
        if token is None or token_id in self._tokenizer.special_ids:
            return True
        return text in (token, token.translate(_MARKS))

    def _read(self, told: _Echoed, ids: tuple[int, ...], *, start: int) -> ReplyScore:
        """The positions from `start` on. Raises ValueError for what is no answer.

        Which tokens one is judged among must not hang on which it is. Hosts name it beside the
        likeliest, in the place of the last of them, or not at all, and of tokens that share a text
        only one: so the last that is named, and every text of no one token, take no part.
        """
        self._check_tokens(told, ids)
        if told.top_logprobs is None:
            raise ValueError("names no alternatives")
        rows = [
            self._read_position(
                ids[at], told.token_logprobs[at], told.top_logprobs[at], at
            )
            for at in range(start, len(ids))
        ]  # fmt: skip
        return ReplyScore(
            logprobs=tuple(row.logprob for row in rows),
            ranks=tuple(row.rank for row in rows),
            entropies=tuple(row.entropy for row in rows),
            top_ids=tuple(row.first for row in rows),
            top_logprobs=tuple(row.top for row in rows),
            candidate_logprobs=None,
            few=True,
        )

    def _read_position(
        self, token_id: int, logprob: float | None,
        named: Mapping[str, float] | None, at: int,
    ) -> _Position:  # fmt: skip
        if logprob is None or not named:
            raise ValueError(f"position {at} has no log-probability and alternatives")
        known = [
            (value, i) for text, value in named.items() if (i := self._id_of(text)) is not None
        ]
        ranked = sorted(known, reverse=True)[:-1][: self._k]
        if max(logprob, math.fsum(math.exp(value) for value in named.values()) - 1) > ROUNDING:
            raise ValueError(f"position {at}: expected log-probabilities, got {logprob:g}")
        ids = [i for _, i in ranked]
        values = tuple(value for value, _ in ranked)
        return _Position(
            logprob=min(logprob, 0.0),
            rank=ids.index(token_id) + 1 if token_id in ids else self._k + 1,
            first=ids[0] if ids else token_id,
            entropy=-math.fsum(math.exp(value) * value for value in values),
            top=values + (_UNNAMED,) * (self._k - len(values)),
        )

    def _id_of(self, text: str) -> int | None:
        """The one token of a text; None: none, or several, of which one alone can be named."""
        special = self._tokenizer.special_id(text)
        if special is not None:
            return special
        found = self._tokenizer.ids_of_bytes(text.encode("utf-8", "surrogatepass"))
        if not found and text.translate(_MARKS) != text:
            found = self._tokenizer.ids_of_bytes(text.translate(_MARKS).encode())
        return found[0] if len(found) == 1 else None


# -- what a host says ----------------------------------------------------------------------------


class _Echoed(Told):
    """Parallel lists, the prompt first; the first token has no log-probability."""

    tokens: list[str | None]
    token_logprobs: list[Nats | None]
    top_logprobs: list[dict[str, Nats] | None] | None = None
    token_ids: list[TokenId] | None = None

    def prompt(self, tokens: int) -> list[Nats | None]:
        """The log-probabilities of a prompt of so many tokens; [] where it is not repeated."""
        return self.token_logprobs[:tokens] if len(self.tokens) >= tokens else []

    def refuse_uneven(self) -> None:
        """Raise ValueError unless there are as many of each."""
        lists = (self.token_logprobs, self.top_logprobs, self.token_ids)
        if any(one is not None and len(one) != len(self.tokens) for one in lists):
            raise ValueError("expected as many of each as there are tokens")


class _Choice(Told):
    logprobs: _Echoed | None = None


class _Completion(Told):
    choices: list[_Choice]
    prompt: list[_Choice] | str | None = None  # where the prompt is repeated beside the choices

    @property
    def echoed(self) -> _Echoed | None:
        beside = self.prompt if isinstance(self.prompt, list) else []
        return next((one.logprobs for one in (*beside, *self.choices) if one.logprobs), None)


def _count_alternatives(told: _Echoed, *, tokens: int) -> int:
    """How many alternatives take part at most. Raises ValueError for too few."""
    named = max((len(at) for at in (told.top_logprobs or [])[:tokens] if at), default=0)
    if named <= _LEAST:
        raise ValueError(
            f"too few alternatives: {named} at each position, and it takes {_LEAST + 1}"
        )
    return named - 1


def _apart(one: ReplyScore, other: ReplyScore) -> float:
    """How far two scores of one reply lie apart in their two likeliest tokens: root mean square."""
    pairs = zip(one.top_logprobs, other.top_logprobs, strict=True)
    squares = [(a - b) ** 2 for x, y in pairs for a, b in zip(x[:2], y[:2], strict=True)]
    return math.sqrt(math.fsum(squares) / len(squares))


_EMPTY: Final = ReplyScore(
    logprobs=(), ranks=(), entropies=(), top_ids=(), top_logprobs=(), candidate_logprobs=None
)

#: How vocabularies write white space, which some hosts show as it stands there.
_MARKS: Final = str.maketrans("Ġ▁Ċ", "  \n")
