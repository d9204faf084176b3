"""Another model as a suspect: its own prompt, and a reply's text as its own tokens.

A suspect whose tokenizer is the published one scores the reference's reading of a reply. One with
another tokenizer scores the same text as it would spell it, and nothing of it is left out: the
log-likelihood of one spelling is a lower bound of that of the text, since a text has many. The
published weights' cells leave doubtful positions out, so the comparison leans towards them. Bytes
that a tokenizer cannot spell are charged at LOST nats each, as if drawn evenly: the loss is part of
the score. Knows no engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from verifier.errors import RenderingError
from verifier.prompts import make_prompt, prompt_of
from verifier.records import Message, Probe, ReplyScore
from verifier.reference.reader import Reader, Renderer, Suspected, Vocabulary
from verifier.scoring.alignment import Aligned, reread

#: Nats per byte that a tokenizer cannot spell.
LOST: Final = math.log(256)

#: What stands for a reply where the template is asked what follows one.
_REPLY: Final = "reply"


@dataclass(frozen=True, slots=True, kw_only=True)
class Respelled:
    """A reply as a suspect's tokens."""

    aligned: Aligned
    lost: int  # bytes of the text that its tokens do not spell


def render_for(suspect: Suspected, probe: Probe, published: Renderer) -> tuple[int, ...] | None:
    """Prompt ids by the suspect's own template; by the published one where it has none.

    None: its template refuses the probe.
    """
    own = suspect.tokenizer
    renderer = published if own.template is None else own
    try:
        return own.encode_prompt(renderer.render_text(prompt_of(probe)))
    except RenderingError:
        return None


def respell(aligned: Aligned, vocabulary: Vocabulary, suspect: Suspected) -> Respelled:
    """The text of a reading as the suspect spells it, with its own end of the turn."""
    ended = bool(aligned.reply_ids) and aligned.reply_ids[-1] == vocabulary.eos_id
    raw = b"".join(vocabulary.token_bytes(token_id) for token_id in aligned.reply_ids)
    text, own = raw.decode("utf-8", "ignore"), suspect.tokenizer
    ids = own.encode(text)
    spelled = b"".join(own.token_bytes(token_id) for token_id in ids)
    lost = 0
    if spelled not in (raw, b" " + raw):  # some put a space in front of every text
        same = next(
            (n for n, (a, b) in enumerate(zip(spelled, raw, strict=False)) if a != b),
            min(len(spelled), len(raw)),
        )
        lost = len(raw) - same
        ids = own.encode(raw[:same].decode("utf-8", "ignore"))
    if ended and not lost:
        ids = (*ids, end_of_turn(own))
    return Respelled(
        aligned=Aligned(
            reply_ids=ids, left_out=frozenset(), by="text", candidates=None, reported=None,
            problem=None,
        ),
        lost=lost,
    )  # fmt: skip


def likelier(aligned: Aligned, score: ReplyScore, suspect: Suspected) -> Aligned | None:
    """Another spelling that the suspect may prefer; None when there is none.

    Either is a lower bound, so the likelier may be taken, whole.
    """
    found = reread(aligned, score, suspect.tokenizer)
    if found is None or found.reply_ids == aligned.reply_ids:
        return None
    return replace(found, left_out=frozenset())


def end_of_turn(tokenizer: Reader) -> int:
    """The control token that a model's template puts after a reply; its end token without one."""
    said = (Message(role="user", content="question"), Message(role="assistant", content=_REPLY))
    prompt = replace(make_prompt(said), generation_prompt=False)
    try:
        text = tokenizer.render_text(prompt)
    except RenderingError:
        return tokenizer.eos_id
    after = tokenizer.encode_prompt(text.rpartition(_REPLY)[2])
    return next((n for n in after if n in tokenizer.special_ids), tokenizer.eos_id)
