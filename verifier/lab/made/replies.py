"""What the embedded model says to ordinary questions: the text that recipes learn from.

Greedy replies, kept as they come, so that a kill loses a batch. Knows no recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from verifier.files.run_folder import append_lines, read_lines
from verifier.probes import draw, load_pool
from verifier.progress import Show
from verifier.prompts import prompt_of
from verifier.records import GenerateRequest, Generation
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer

#: Replies generated together, and tokens of each at most.
BATCH: Final = 32
MAX_TOKENS: Final = 64

#: Of the questions: no audit's, which draw their own.
SEED: Final = 4242


class Speaks(Protocol):
    """An engine, as far as it is needed here."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A rendered prompt, and a reply with its end of turn where it came to it."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.reply


def ask(
    load: Callable[[], Speaks],
    prompts: Sequence[tuple[int, ...]],
    *,
    path: Path,
    max_tokens: int,
    show: Show,
) -> list[Row]:
    """The greedy reply to each prompt, from `path` where it was answered before.

    The engine is loaded only if something is left to ask.
    """
    known = {tuple(line["prompt"]): tuple(line["reply"]) for line in read_lines(path)}
    left = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    engine = load() if left else None
    for start in range(0, len(left), BATCH):
        assert engine is not None
        asked = left[start : start + BATCH]
        said = engine.generate(
            [GenerateRequest(prompt_ids=prompt, max_tokens=max_tokens) for prompt in asked]
        )
        replies = {prompt: one.token_ids for prompt, one in zip(asked, said, strict=True)}
        append_lines(path, [{"prompt": p, "reply": r} for p, r in replies.items()])
        known |= replies
        show.step("replies", start + len(asked), len(left))
    return [Row(prompt=prompt, reply=known[prompt]) for prompt in prompts]


def speak(weights: Path, *, count: int, path: Path, show: Show) -> list[Row]:
    """The model's own replies to so many questions of the pool."""
    tokenizer = Tokenizer(weights)
    asked = draw(load_pool(), seed=SEED, count=count, max_tokens=MAX_TOKENS)
    prompts = [tokenizer.encode_prompt(tokenizer.render_text(prompt_of(one))) for one in asked]
    return ask(
        lambda: load_engine("transformers", weights, tokenizer), prompts, path=path,
        max_tokens=MAX_TOKENS, show=show,
    )  # fmt: skip


def questions(count: int) -> list[str]:
    """So many questions of the pool that are asked without anything before them."""
    asked = draw(load_pool(), seed=SEED, count=2 * count, max_tokens=MAX_TOKENS)
    found = [one.messages[0].content for one in asked if len(one.messages) == 1]
    return [text for text in found if text is not None][:count]
