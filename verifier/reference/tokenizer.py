"""Messages to token ids and back: the home of tokenizers and chat templates.

Templates are untrusted code and are rendered by transformers' sandbox only, never by hand, in a
process of its own (`template_process`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast

from verifier.errors import ReferenceMismatch, RenderingError
from verifier.prompts import make_prompt
from verifier.records import Message, Prompt
from verifier.reference.template_process import TEMPLATES, TemplateProcess, refused

#: Prompts whose ids are kept, since renderings differ on few, and the longest of them, in signs.
_KEPT: Final = 1024
_LONGEST_KEPT: Final = 16 << 10


class Tokenizer:
    """A tokenizer and its chat template, loaded from a local directory."""

    def __init__(self, directory: Path, *, templates: TemplateProcess = TEMPLATES) -> None:
        templates.start()  # it gets ready while this process loads the tokenizer
        import transformers

        cast(Any, transformers.logging).set_verbosity_error()
        if not directory.is_dir():
            raise ReferenceMismatch(f"{directory}: no such directory of weights and tokenizer")
        try:
            loaded = transformers.AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # tokenizers raises nothing more specific
            if "trust_remote_code" in str(error):
                raise ReferenceMismatch(
                    f"{directory}: the tokenizer needs code of its own, which came with it and is "
                    "not run; give a checkpoint whose tokenizer transformers knows"
                ) from error
            said = str(error).strip().partition("\n")[0]
            raise ReferenceMismatch(
                f"{directory}: no tokenizer could be loaded ({type(error).__name__}: {said})"
            ) from error
        self._tokenizer = cast(Any, loaded)
        self._templates = templates
        self._kept_ids = lru_cache(maxsize=_KEPT)(self._prompt_ids)
        backend = getattr(loaded, "backend_tokenizer", None)
        self._splitting = Lock()  # whether to split control tokens is a state of the tokenizer
        self._by_mistral_common = (directory / "tekken.json").exists()
        self._byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))

    @property
    def vocabulary_size(self) -> int:
        return len(self._tokenizer)

    @property
    def eos_id(self) -> int:
        """The end-of-turn token."""
        return int(self._tokenizer.eos_token_id)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which never appear in a reply's text."""
        added = self._tokenizer.added_tokens_decoder.items()
        marked = (int(token_id) for token_id, token in added if token.special)
        return frozenset({*self._tokenizer.all_special_ids, *marked})

    @property
    def bos(self) -> str:
        """The name of the token that begins a text; "" when there is none."""
        return str(self._tokenizer.bos_token or "")

    @property
    def eos(self) -> str:
        """The name of the end-of-turn token."""
        return str(self._tokenizer.eos_token)

    @cached_property
    def _names(self) -> dict[str, str]:
        """The control tokens that templates may write, by their roles."""
        return dict(self._tokenizer.special_tokens_map)

    @property
    def template(self) -> str | None:
        """The source of the model's own chat template; None when it has none."""
        found = self._tokenizer.chat_template
        if isinstance(found, dict):  # several under names: tools have their own
            found = found.get("default")
        return None if found is None else str(found)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt ids of a conversation, up to where the assistant's reply begins.

        Raises RenderingError when the template is missing or refuses the conversation.
        """
        return self.encode_prompt(self.render_text(make_prompt(messages)))

    def render_text(self, prompt: Prompt) -> str:
        """The text that a template makes of a conversation, control tokens by their names.

        Raises RenderingError when there is no template, or it raises or oversteps its bounds.
        """
        if prompt.template is None and self._tokenizer.chat_template is None:
            raise RenderingError(self._why_no_template())
        try:
            template = self._tokenizer.get_chat_template(prompt.template, prompt.tools or None)
        except Exception as error:  # several templates and no default; other kinds have none
            said = " ".join(str(error).split())[:200]
            raise refused(prompt, f"{type(error).__name__}: {said}") from error
        return self._templates.render(str(template), self._names, prompt)

    def _why_no_template(self) -> str:
        if self._by_mistral_common:
            return "mistral-common renders this model, not transformers; audit it by completions"
        if self.special_id("<|channel|>") is not None:
            return "openai-harmony renders this model, not transformers; audit it by completions"
        return (
            "the tokenizer has no chat template; put the publisher's chat_template.jinja beside it"
        )

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Ids of a rendered prompt: control tokens are recognised, none is added."""
        return self._kept_ids(text) if len(text) <= _LONGEST_KEPT else self._prompt_ids(text)

    def _prompt_ids(self, text: str) -> tuple[int, ...]:
        with self._splitting:
            return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """Ids that a server makes of a text to complete: control tokens are recognised in it, and
        those that begin every text are added."""
        with self._splitting:
            return tuple(self._tokenizer(text)["input_ids"])

    def decode_prompt(self, ids: Sequence[int]) -> str:
        """Text of a prompt's ids, control tokens by their names; unknown ids are left out."""
        known = [token_id for token_id in ids if 0 <= token_id < self.vocabulary_size]
        return str(self._tokenizer.decode(known, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of plain text: no special tokens are added or recognised."""
        with self._splitting:
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
        """The bytes that one token stands for; empty for control tokens and unknown ids."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def ids_of_bytes(self, raw: bytes) -> tuple[int, ...]:
        """The ids whose bytes are exactly `raw`; usually one, none when no token is."""
        return self._by_bytes.get(raw, ())

    def special_id(self, token: str) -> int | None:
        """The id of a control token by its own name, such as the end-of-turn token."""
        return self._by_name.get(token)

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {str(self._tokenizer.convert_ids_to_tokens(n)): n for n in self.special_ids}

    @cached_property
    def _bytes(self) -> tuple[bytes, ...]:
        return tuple(self._spell(token_id) for token_id in range(self.vocabulary_size))

    @cached_property
    def _by_bytes(self) -> dict[bytes, tuple[int, ...]]:
        table: dict[bytes, tuple[int, ...]] = {}
        for token_id, raw in enumerate(self._bytes):
            if raw:
                table[raw] = (*table.get(raw, ()), token_id)
        return table

    def _spell(self, token_id: int) -> bytes:
        if token_id in self.special_ids:
            return b""
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            table = _byte_of_sign()
            signs = all(sign in table for sign in piece)  # else added to the vocabulary as it is
            return bytes(table[sign] for sign in piece) if signs else str(piece).encode()
        single = _BYTE_PIECE.fullmatch(piece)
        if single:
            return bytes([int(single[1], 16)])
        return str(piece).replace("▁", " ").encode()  # SentencePiece marks a space so


#: How SentencePiece names a token that is one byte.
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


@lru_cache(maxsize=1)
def _byte_of_sign() -> dict[str, int]:
    """Inverse of GPT-2's byte-to-unicode table (Radford et al. 2019), which byte-level BPE uses."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}
