"""What is asked of a tokenizer: to spell tokens, to render conversations, or both.

`verifier.reference.tokenizer.Tokenizer` has it all; each user names the least that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from verifier.records import Prompt


class Vocabulary(Protocol):
    """Tokens to the bytes that they spell, and back."""

    @property
    def eos_id(self) -> int: ...
    @property
    def vocabulary_size(self) -> int: ...
    def encode(self, text: str) -> tuple[int, ...]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def ids_of_bytes(self, raw: bytes) -> tuple[int, ...]: ...
    def special_id(self, token: str) -> int | None: ...


class Renderer(Protocol):
    """Conversations to prompts, and prompts to token ids."""

    @property
    def bos(self) -> str: ...
    @property
    def eos(self) -> str: ...
    @property
    def template(self) -> str | None: ...
    def render_text(self, prompt: Prompt) -> str: ...
    def encode_prompt(self, text: str) -> tuple[int, ...]: ...
    def decode_prompt(self, ids: Sequence[int]) -> str: ...


class Reader(Vocabulary, Renderer, Protocol):
    """Prompts and replies both."""

    def __hash__(self) -> int: ...  # what it renders is remembered
    @property
    def special_ids(self) -> frozenset[int]: ...
    def encode_completion(self, text: str) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspected:
    """How one suspect reads prompts and replies."""

    tokenizer: Reader
    same: bool  # whether its ids mean the same text as the reference's
