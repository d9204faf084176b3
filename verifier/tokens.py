"""Messages to token ids and back: the home of tokenizers and chat templates.

Templates are untrusted code and are rendered by transformers' sandbox only, never by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from verifier.errors import ReferenceMismatch
from verifier.records import Message


class Tokenizer:
    """A tokenizer and its chat template, loaded from a local directory."""

    def __init__(self, directory: Path) -> None:
        import transformers

        cast(Any, transformers.logging).set_verbosity_error()
        try:
            loaded = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ReferenceMismatch(
                f"{directory}: no tokenizer could be loaded ({str(error).splitlines()[0]})"
            ) from error
        self._tokenizer = cast(Any, loaded)

    @property
    def vocabulary_size(self) -> int:
        return len(self._tokenizer)

    @property
    def eos_id(self) -> int:
        """The end-of-turn token."""
        return int(self._tokenizer.eos_token_id)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which never appear in a reply's text."""
        return frozenset(self._tokenizer.all_special_ids)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt ids of a conversation, up to where the assistant's reply begins."""
        conversation = [{"role": m.role, "content": m.content} for m in messages]
        ids = self._tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return tuple(ids)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of plain text: no special tokens are added or recognised."""
        return tuple(
            self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens left out; incomplete characters show as U+FFFD."""
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; empty for control tokens."""
        return _token_bytes(self._tokenizer, token_id)

    def ids_of_bytes(self, raw: bytes) -> tuple[int, ...]:
        """The ids whose bytes are exactly `raw`; usually one, none when no token is."""
        return self._by_bytes().get(raw, ())

    def special_id(self, token: str) -> int | None:
        """The id of a control token by its own name, such as the end-of-turn token."""
        ids = {name: n for n, name in zip(self.special_ids, self._names(), strict=True)}
        return ids.get(token)

    def _names(self) -> list[str]:
        return [str(self._tokenizer.convert_ids_to_tokens(n)) for n in self.special_ids]

    @lru_cache(maxsize=1)  # noqa: B019 - one tokenizer lives as long as the process
    def _by_bytes(self) -> dict[bytes, tuple[int, ...]]:
        table: dict[bytes, tuple[int, ...]] = {}
        for token_id in range(self.vocabulary_size):
            raw = self.token_bytes(token_id)
            if raw:
                table[raw] = (*table.get(raw, ()), token_id)
        return table


@lru_cache(maxsize=1)
def _byte_of_sign() -> dict[str, int]:
    """Inverse of GPT-2's byte-to-unicode table (Radford et al. 2019), which byte-level BPE uses."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


@lru_cache(maxsize=400_000)
def _token_bytes(tokenizer: Any, token_id: int) -> bytes:
    if token_id in tokenizer.all_special_ids:
        return b""
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if piece is None:
        return b""
    table = _byte_of_sign()
    if all(sign in table for sign in piece):
        return bytes(table[sign] for sign in piece)
    return str(piece).replace("▁", " ").encode()  # SentencePiece marks a space so
