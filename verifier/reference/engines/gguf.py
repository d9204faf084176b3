"""From a GGUF file to a directory of safetensors, with transformers' own loader.

Versions of transformers differ in what they make of a GGUF file's tokenizer, also in its end of
turn. What is written here is the same by all of them.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Final, cast

import torch
import transformers
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer

#: Named tokens, by the keys under which a GGUF file has their ids.
_NAMED: Final = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}

_BYTE_LEVEL: Final = {
    "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
}  # fmt: skip


def convert(gguf: Path, out: Path) -> None:
    """De-quantise `gguf` to float32 and save model, tokenizer and chat template under `out`."""
    cast(Any, transformers.logging).set_verbosity_error()
    cast(Any, transformers.logging).disable_progress_bar()
    with redirect_stderr(io.StringIO()):  # its progress bar knows no terminal
        model = cast(Any, AutoModelForCausalLM).from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    # what is saved is no longer quantised, and must not say that it is
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(out)
    tokenizer = cast(Any, AutoTokenizer).from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    tokenizer.save_pretrained(out)
    fields = GGUFReader(gguf).fields
    _settle_config(out / "tokenizer_config.json", fields)
    if "tokenizer.ggml.model" in fields and fields["tokenizer.ggml.model"].contents() == "gpt2":
        _settle_byte_level(out / "tokenizer.json")


def _settle_config(path: Path, fields: Any) -> None:
    """Only what a loader heeds, with the named tokens of the file."""
    tokens = fields["tokenizer.ggml.tokens"]
    named = {
        name: tokens.contents(int(fields[key].contents()))
        for name, key in _NAMED.items()
        if key in fields
    }
    before = json.loads(path.read_text(encoding="utf-8"))
    kept = {k: before[k] for k in ("backend", "model_max_length", "tokenizer_class") if k in before}
    path.write_text(json.dumps(kept | named, indent=2), encoding="utf-8")


def _settle_byte_level(path: Path) -> None:
    """GPT-2's vocabulary has a token for every byte: nothing is unknown, and nothing replaced."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw["normalizer"] == {"type": "Sequence", "normalizers": []}:
        raw["normalizer"] = None
    if raw["pre_tokenizer"]["type"] == "ByteLevel":
        raw["pre_tokenizer"]["trim_offsets"] = True
    raw["decoder"] = _BYTE_LEVEL
    raw["model"] |= {
        "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False,
    }  # fmt: skip
    path.write_text(json.dumps(raw, indent=2, ensure_ascii=False), encoding="utf-8")
