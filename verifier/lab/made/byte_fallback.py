"""The embedded model with another family's kind of tokenizer, more tokens, and a head of its own.

Tokens become pieces of text as SentencePiece has them: "▁" for a space, no cutting into words
beforehand, and single bytes for signs that are no piece. Merges of the embedded tokenizer carry
over, so most text keeps its tokens and the model its speech. Frequent pairs of its replies become
tokens of their own, which a short training teaches it to read and to say; the head, a copy of the
embeddings at first, goes its own way in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch

from verifier.files.run_folder import write_whole
from verifier.lab.derived_models import load_model, save_model
from verifier.lab.made.replies import Row, speak
from verifier.lab.made.training import reply_loss, train
from verifier.progress import Show
from verifier.reference.snapshot import read_object
from verifier.reference.tokenizer import Tokenizer

#: Replies that it learns from; a pair is a token when they hold it so often, and so many are.
REPLIES: Final = 320
SEEN: Final = 4
PAIRS: Final = 512

ROWS: Final = 4
STEP_SIZE: Final = 1e-4

_TOKENIZER: Final = "tokenizer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A token of the new vocabulary, and the old tokens that say the same; () if none can."""

    text: str
    of: tuple[int, ...]


def make_byte_fallback(
    weights: Path, out: Path, *, work: Path, replies: Path, steps: int, seed: int, show: Show
) -> None:
    """Change tokenizer and vocabulary of the model of `weights`, and teach it the new tokens."""
    rows = speak(weights, count=REPLIES, path=replies, show=show)
    before = Tokenizer(weights)
    raw = read_object(weights / _TOKENIZER)
    spelled = [before.token_bytes(n) for n in range(before.vocabulary_size)]
    names = {one["id"]: one["content"] for one in raw["added_tokens"]}
    pieces = _pieces(spelled, names) + find_pairs([row.reply for row in rows], spelled)
    model = widen(load_model(weights), pieces)
    out.mkdir()
    restated = _restated(raw, pieces, _merges(raw["model"], pieces))
    write_whole(out / _TOKENIZER, json.dumps(restated, ensure_ascii=False))
    save_model(model, weights, out)  # for its tokenizer's other files; the weights follow
    after = Tokenizer(out)
    learned = [
        Row(
            prompt=after.encode_prompt(_text(row.prompt, spelled, names)),
            reply=after.encode_prompt(_text(row.reply, spelled, names)),
        )
        for row in rows
    ]
    train(
        model, learned, loss=reply_loss, steps=steps, size=ROWS, step_size=STEP_SIZE, seed=seed,
        kept=work / "training.pt", progress=lambda done, of: show.step("steps", done, of),
    )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(out)


def _text(ids: Sequence[int], spelled: Sequence[bytes], names: Mapping[int, str]) -> str:
    raw = b"".join(names[n].encode() if n in names else spelled[n] for n in ids)
    return raw.decode("utf-8", "ignore")  # a reply may have been cut within a sign


def _pieces(spelled: Sequence[bytes], names: Mapping[int, str]) -> list[Piece]:
    """A piece in the place of each old token, and bytes of which there was none."""
    pieces = []
    for number, raw in enumerate(spelled):
        text = _readable(raw)
        if number in names:
            pieces.append(Piece(text=names[number], of=(number,)))
        elif text is not None:
            pieces.append(Piece(text=_marked(text), of=(number,)))
        elif len(raw) == 1:
            pieces.append(Piece(text=f"<0x{raw[0]:02X}>", of=(number,)))
        else:  # a part of a sign, which no text is cut into any more
            pieces.append(Piece(text=f"<unused{number}>", of=()))
    single = {raw[0]: number for number, raw in enumerate(spelled) if len(raw) == 1}
    there = {piece.text for piece in pieces}
    for byte in range(256):
        if f"<0x{byte:02X}>" not in there:
            of = (single[byte],) if byte in single else ()
            pieces.append(Piece(text=f"<0x{byte:02X}>", of=of))
    return pieces


def find_pairs(
    replies: Sequence[tuple[int, ...]], spelled: Sequence[bytes], *, seen: int = SEEN,
    most: int = PAIRS,
) -> list[Piece]:  # fmt: skip
    """Pairs of tokens within a word that replies hold often, the most frequent first."""
    known = set(spelled)
    counts: Counter[tuple[int, int]] = Counter()
    for reply in replies:
        counts.update(pairwise(reply))
    found: list[Piece] = []
    for (first, second), count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        text, rest = _readable(spelled[first]), _readable(spelled[second])
        if count < seen or len(found) == most:
            break
        within = text is not None and rest is not None and text.strip().isalpha() and rest.isalpha()
        if within and spelled[first] + spelled[second] not in known:
            assert text is not None
            assert rest is not None
            known.add(spelled[first] + spelled[second])
            found.append(Piece(text=_marked(text + rest), of=(first, second)))
    return found


def _merges(model: Mapping[str, Any], pieces: Sequence[Piece]) -> list[list[str]]:
    """Those of the old ones that are of whole signs, then one for each new pair."""
    numbers = model["vocab"]
    kept = []
    for left, right in model["merges"]:
        first, second, both = (pieces[numbers[one]].text for one in (left, right, left + right))
        if first + second == both:
            kept.append([first, second])
    return kept + [[pieces[n].text for n in piece.of] for piece in pieces if len(piece.of) == 2]


def _restated(
    raw: Mapping[str, Any], pieces: Sequence[Piece], merges: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """A tokenizer file with these pieces, in the manner of Llama 2's."""
    space = {"String": " "}
    return dict(raw) | {
        "normalizer": {"type": "Replace", "pattern": space, "content": "▁"},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
            ],
        },
        "model": dict(raw["model"]) | {
            "unk_token": None, "fuse_unk": True, "byte_fallback": True,
            "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "vocab": {piece.text: number for number, piece in enumerate(pieces)},
            "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip


def _readable(raw: bytes) -> str | None:
    """The text of a token; None for a part of a sign, and for the sign that marks a space."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "▁" in text else text


def _marked(text: str) -> str:
    return text.replace(" ", "▁")


def widen(model: Any, pieces: Sequence[Piece]) -> Any:
    """The model with a row for each piece, and a head of its own.

    A new piece is read as the mean of what it stands for, and said where its first part was; one
    that stands for nothing is never said.
    """
    old = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.resize_token_embeddings(len(pieces), mean_resizing=False)
    read, said = (old.new_zeros(len(pieces), old.shape[1]) for _ in range(2))
    for number, piece in enumerate(pieces):
        if piece.of:
            read[number] = old[list(piece.of)].mean(0)
            said[number] = head[piece.of[0]]
    model.get_input_embeddings().weight = torch.nn.Parameter(read)
    model.lm_head.weight = torch.nn.Parameter(said)
    return model
