"""Where a reply leaves the weights' own choice, in words: what a reader of the report is shown.

Texts are made here, where the tokenizer is at hand; nobody who shows them needs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from verifier.evidence.ledger import Choices, differing_cells
from verifier.records import Place, Probe
from verifier.reference.reader import Reader
from verifier.safety import sieve
from verifier.scoring.score_file import DECIMALS, Scored

#: Characters kept of what came before a place, of a question, and of one token.
_AFTER: Final = 40
_ASKED: Final = 100
_TOKEN: Final = 40


def describe_choices(scored: Scored, probe: Probe, tokenizer: Reader) -> Choices:
    """How the tokens of a reply stand to the choices of the column that scored it."""
    score, kept = scored.score, scored.aligned.kept
    differing = [t for t in kept if score.ranks[t] > 1]
    return Choices(
        differing=len(differing),
        expected=tuple(round(v, DECIMALS) for v in differing_cells(score, kept)),
        worst=_worst(scored, differing, probe, tokenizer),
    )


def _worst(
    scored: Scored, differing: Sequence[int], probe: Probe, tokenizer: Reader
) -> Place | None:
    """The place at which the reply is the least likely beside the choice of the weights."""
    score, ids = scored.score, scored.aligned.reply_ids
    if not differing:
        return None
    at = max(differing, key=lambda t: score.top_logprobs[t][0] - score.logprobs[t])
    return Place(
        probe_id=scored.probe_id,
        asked=question_of(probe),
        position=at,
        after=text_before(b"".join(map(tokenizer.token_bytes, ids[:at]))),
        published=_token(score.top_ids[at], tokenizer),
        log_p_published=score.top_logprobs[at][0],
        served=_token(ids[at], tokenizer),
        log_p_served=score.logprobs[at],
    )


def question_of(probe: Probe) -> str:
    """What the user said last, as far as it is shown."""
    said = [message.content for message in probe.messages if message.role == "user"]
    return _end_of(said[-1] if said else "", _ASKED)


def text_before(raw: bytes) -> str:
    """What came before a place, as far as it is shown."""
    return _end_of(raw.decode("utf-8", "replace"), _AFTER)


def _token(token_id: int, tokenizer: Reader) -> str | None:
    """What a token spells; None: it ends the reply."""
    if token_id == tokenizer.eos_id:
        return None
    raw = tokenizer.token_bytes(token_id)
    return shown_bytes(raw or tokenizer.decode_prompt([token_id]).encode())


def shown_bytes(raw: bytes) -> str:
    r"""The text of a token, bytes of no character as `\xe6`."""
    text = sieve.strike(raw.decode("utf-8", "backslashreplace"))
    return text if len(text) <= _TOKEN else f"{text[: _TOKEN - 1]}…"


def _end_of(text: str, most: int) -> str:
    """The end of a text; keys are struck out first, while they are still whole."""
    text = sieve.strike(text)
    return text if len(text) <= most else f"…{text[1 - most :]}"
