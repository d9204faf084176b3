"""A model that thinks, small enough to follow, and what parsers of hosts make of its replies."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fakes_engine import TURN, FakeEngine, FakeTokenizer, wordy_script

from verifier.records import Prompt
from verifier.reference.cards import Thinking

THINKING = Thinking(open="<think>", close="</think>", switch_off={"enable_thinking": False})

#: Parsers: thought and answer as they were generated, to what the host shows of them.
Parser = Callable[[str, str], tuple[str, str]]
PARSERS: dict[str, Parser] = {
    "as it is": lambda thought, answer: (thought, answer),  # vLLM's qwen3, deepseek_r1
    "end of the thought": lambda thought, answer: (thought.rstrip(), answer),  # vLLM's default
    "line ends before the answer": lambda t, a: (t, a.lstrip("\n")),  # vLLM's ernie45
    "around the answer": lambda thought, answer: (thought.rstrip(), answer.strip()),
    "around both": lambda thought, answer: (thought.strip(), answer.strip()),  # SGLang
}


class ThinkingTokenizer(FakeTokenizer):
    """The fake tokenizer with a template that knows thoughts, and with tags for them.

    `control` makes the tags tokens that no text shows; `inside` has the prompt begin the thought.
    """

    def __init__(self, *, control: bool, inside: bool) -> None:
        super().__init__()
        self.control, self.inside = control, inside
        self.tags: dict[str, int] = {}
        if control:
            self.tags = {THINKING.open: len(self._bytes), THINKING.close: len(self._bytes) + 1}
            self._bytes += [b"", b""]

    def render_text(self, prompt: Prompt) -> str:
        text = ""
        for message in prompt.messages:
            said: Any = message
            thought = said.get("reasoning")
            before = f"<think>\n{thought}\n</think>\n\n" if thought else ""
            text += f"<turn>{said['role']}\n{before}{said['content']}<eos>"
        if not prompt.generation_prompt:
            return text
        if prompt.settings.get("enable_thinking") is False:
            return f"{text}<turn>assistant\n<think>\n\n</think>\n\n"
        return f"{text}<turn>assistant\n" + ("<think>\n" if self.inside else "")

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in re.split("(<turn>|<eos>|<think>|</think>)", text):
            named = self.special_id(piece)
            ids += self.encode(piece) if named is None else [named]
        return tuple(ids)

    def decode_prompt(self, ids: Sequence[int]) -> str:
        names = {token_id: tag for tag, token_id in self.tags.items()}
        return "".join(
            names.get(n) or super(ThinkingTokenizer, self).decode_prompt([n]) for n in ids
        )

    @property
    def special_ids(self) -> frozenset[int]:
        return super().special_ids | set(self.tags.values())

    def special_id(self, token: str) -> int | None:
        return self.tags.get(token, super().special_id(token))


class ThinkingEngine(FakeEngine):
    """Writes `stream`, whatever is asked, or else a thought and an answer of the prompt's own.

    Where thinking was turned off it answers without a thought.
    """

    def __init__(self, tokenizer: ThinkingTokenizer, *, stream: str | None = None, **more: Any):
        off = tokenizer.encode_prompt("</think>\n\n")
        opened = () if tokenizer.inside else tokenizer.encode_prompt("<think>\n")
        between = tokenizer.encode_prompt("\n</think>\n\n")

        def script(prompt: tuple[int, ...]) -> tuple[int, ...]:
            if prompt[-len(off) :] == off:
                return wordy_script(prompt)
            if stream is not None:
                return tokenizer.encode_prompt(stream)
            return (*opened, *wordy_script(prompt), *between, *wordy_script((*prompt, 0)))

        super().__init__(script=script, **more)
        self._tokenizer = tokenizer

    def logprobs(self, prompt_ids: tuple[int, ...], reply_ids: Sequence[int]) -> np.ndarray:
        """No pieces of characters: a text that holds them cannot be read back."""
        row = super().logprobs(prompt_ids, reply_ids)
        row[128:256] -= 50
        row[TURN] -= 50  # nor a control token that no text shows
        return row - np.logaddexp.reduce(row)
