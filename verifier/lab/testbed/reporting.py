"""How a testbed host reports the log-probabilities of its tokens: habits that servers really have.

The text, the tokens and what is served stay right; only the numbers beside them change. Pure
functions of what is right, and of what was right in the reply before. Each habit names where it was
seen; where it says "made up" none was, and it stands for what an audit must tell all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from verifier.lab.testbed.wire import ShownToken

Tokens = tuple[ShownToken, ...]
Habit = Callable[[Tokens, Tokens], Tokens]

#: Tokens of a chunk, and what is written for a value that is left out.
_CHUNK: Final = 3
_FILLER: Final = -100.0
_LOWEST: Final = -9999.0


def _zeros(tokens: Tokens, _earlier: Tokens) -> Tokens:
    return tokens[:1] + tuple(replace(t, logprob=0.0, top=()) for t in tokens[1:])


def _given_zero(tokens: Tokens, _earlier: Tokens) -> Tokens:
    return tuple(replace(t, logprob=0.0) for t in tokens)


def _given_zero_in_both(tokens: Tokens, _earlier: Tokens) -> Tokens:
    return tuple(
        replace(t, logprob=0.0, top=tuple((raw, 0.0 if raw == t.raw else v) for raw, v in t.top))
        for t in tokens
    )


def _one_hot(tokens: Tokens, _earlier: Tokens) -> Tokens:
    return tuple(
        replace(
            t, logprob=0.0, top=tuple((raw, 0.0 if raw == t.raw else _LOWEST) for raw, _ in t.top)
        )
        for t in tokens
    )


def _shifted(step: int) -> Habit:
    def shift(tokens: Tokens, _earlier: Tokens) -> Tokens:
        last = len(tokens) - 1
        return tuple(
            replace(t, top=tokens[min(max(n + step, 0), last)].top) for n, t in enumerate(tokens)
        )

    return shift


def _shifted_whole(tokens: Tokens, _earlier: Tokens) -> Tokens:
    return tuple(
        replace(t, logprob=tokens[max(n - 1, 0)].logprob, top=tokens[max(n - 1, 0)].top)
        for n, t in enumerate(tokens)
    )


def _chunked(tokens: Tokens, _earlier: Tokens) -> Tokens:
    return tuple(replace(t, top=tokens[n - n % _CHUNK].top) for n, t in enumerate(tokens))


def _of_earlier(tokens: Tokens, earlier: Tokens) -> Tokens:
    return tuple(
        replace(t, logprob=e.logprob, top=e.top) for t, e in zip(tokens, earlier, strict=False)
    ) + tuple(tokens[len(earlier) :])


def _each(change: Callable[[float], float]) -> Habit:
    """A habit that changes every number alike."""

    def changed(tokens: Tokens, _earlier: Tokens) -> Tokens:
        return tuple(
            replace(t, logprob=change(t.logprob), top=tuple((raw, change(v)) for raw, v in t.top))
            for t in tokens
        )

    return changed


def _tempered(temperature: float) -> Habit:
    """Divided by a temperature, and by what they then sum to, as far as they are shown."""

    def tempered(tokens: Tokens, _earlier: Tokens) -> Tokens:
        made = []
        for token in tokens:
            rest = max(1 - sum(math.exp(v) for _, v in token.top), 1e-12) if token.top else 1e-12
            kept = [v / temperature for _, v in token.top] + [math.log(rest) / temperature]
            total = math.log(sum(math.exp(v) for v in kept))
            made.append(
                replace(
                    token, logprob=min(token.logprob / temperature - total, 0.0),
                    top=tuple((raw, min(v / temperature - total, 0.0)) for raw, v in token.top),
                )
            )  # fmt: skip
        return tuple(made)

    return tempered


def _penalized(tokens: Tokens, _earlier: Tokens) -> Tokens:
    """Lowered by one nat where the reply holds the token already."""
    made = []
    for n, token in enumerate(tokens):
        seen = {earlier.raw for earlier in tokens[:n]}
        made.append(
            replace(
                token, logprob=token.logprob - (token.raw in seen),
                top=tuple((raw, v - (raw in seen)) for raw, v in token.top),
            )
        )  # fmt: skip
    return tuple(made)


def _filled(tokens: Tokens, _earlier: Tokens) -> Tokens:
    return tuple(
        replace(t, top=tuple((r, v if n < 2 else _FILLER) for n, (r, v) in enumerate(t.top)))
        for t in tokens
    )


def _bfloat16(value: float) -> float:
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 256), exponent - 8)


def _probability(value: float) -> float:
    return math.exp(value)


#: Habits by name: where each was seen, in a line, and what it makes of a reply's tokens.
HABITS: Final[Mapping[str, tuple[str, Habit]]] = {
    "zeros": (
        ("from the second token on 0.0 without alternatives: llama.cpp when it speculates "
        "(ggml-org/llama.cpp#27972), vLLM 0.7 (vllm-project/vllm#17876)"),
        _zeros,
    ),
    "given-zero": ("0.0 for the token given, right alternatives beside it (made up)", _given_zero),
    "given-zero-in-both": ("the same, in the alternatives too (made up)", _given_zero_in_both),
    "one-hot": (
        ("0.0 for the token given and nothing for others: SGLang after a temperature of 0 "
        "(sgl-project/sglang#5761)"),
        _one_hot,
    ),
    "before": (
        "alternatives of the position before: tokens not shifted (meta-llama/llama#869)",
        _shifted(-1),
    ),
    "after": ("alternatives of the position after (made up)", _shifted(1)),
    "before-whole": ("all numbers of the position before (meta-llama/llama#869)", _shifted_whole),
    "chunks": (
        ("in each chunk of three tokens the alternatives of its first: SGLang's streams "
        "(sgl-project/sglang#39260, #2825)"),
        _chunked,
    ),
    "another-reply": (
        "numbers of the reply before: vLLM's offsets under speculation (vllm-project/vllm#29216)",
        _of_earlier,
    ),
    "temperature": (
        "divided by a temperature of 0.7: vLLM's processed_logprobs (vllm-project/vllm#9453)",
        _tempered(0.7),
    ),
    "warm": ("divided by a temperature of 1.1 (vllm-project/vllm#9453)", _tempered(1.1)),
    "penalized": (
        "after a penalty on tokens of the reply: vLLM's processed_logprobs",
        _penalized,
    ),
    "base10": ("logarithms of base 10 (made up)", _each(lambda v: v / math.log(10))),
    "base2": ("logarithms of base 2 (made up)", _each(lambda v: v / math.log(2))),
    "probabilities": (
        "probabilities: llama.cpp before 2024-12 and after samplers (ggml-org/llama.cpp#10783)",
        _each(_probability),
    ),
    "rounded": ("rounded to one decimal (made up)", _each(lambda v: round(v, 1))),
    "integers": ("rounded to whole numbers (made up)", _each(lambda v: float(round(v)))),
    "bfloat16": ("rounded to bfloat16: log_softmax in half precision", _each(_bfloat16)),
    "fillers": ("-100 from the third alternative on (made up)", _filled),
    "alike": ("one number for all tokens (made up)", _each(lambda _: -1.0)),
}  # fmt: skip
