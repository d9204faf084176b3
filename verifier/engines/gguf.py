"""From a GGUF file to a directory of safetensors, with transformers' own loader."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


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
