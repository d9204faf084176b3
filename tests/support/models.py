"""Checkpoints for tests: a random model of three layers that is made here, and the embedded one.

Libraries of models are imported where they are used: most tests need none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EMBEDDED = "smollm2-135m-instruct"
#: One layout of turns, in the words of the embedded model's template.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_ID = 2
#: Pairs of lower-case letters that are one token; all other tokens are single bytes.
MERGES = (("t", "h"), ("th", "e"), ("o", "u"), ("i", "n"), ("a", "n"))


def save_tokenizer(directory: Path, *, merges: tuple[tuple[str, str], ...] = MERGES) -> None:
    """Write a byte-level BPE tokenizer with a chat template, as checkpoints have it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(
        models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=list(merges))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(TEMPLATE)


def save_model(directory: Path, **changes: Any) -> None:
    """Write a random Llama whose dimensions every rounding of the bank divides.

    Weights are wide enough for next-token distributions that are neither flat nor one-hot. Of the
    head only capital letters get a say, so that greedy text is plain and is tokenized in one way.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(SPECIALS) + 256 + len(MERGES),
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "eos_token_id": EOS_ID,
        "bos_token_id": 1,
        "initializer_range": 0.1,
    }
    torch.manual_seed(20261124)
    model = LlamaForCausalLM(LlamaConfig(**settings | changes))
    if not model.config.tie_word_embeddings:
        _speak_plainly(model)
    model.save_pretrained(directory)


def _speak_plainly(model: Any) -> None:
    """Let only capital letters have a say in the head."""
    import torch
    from tokenizers import pre_tokenizers

    head = model.get_output_embeddings().weight
    capitals = [
        len(SPECIALS) + sorted(pre_tokenizers.ByteLevel.alphabet()).index(sign)
        for sign in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    ]
    silent = torch.ones(model.config.vocab_size, dtype=torch.bool)
    silent[capitals] = False
    with torch.no_grad():
        head[capitals] *= 2
        head[silent] *= 0.25


#: Architectures of which `save_shape` makes small directories.
SHAPES = ("llama", "qwen3", "gemma3", "mixtral")


def save_shape(directory: Path, shape: str, **changes: Any) -> Path:
    """Write a random model of an architecture in bfloat16, as its publisher would: weights,
    tokenizer, template, defaults of sampling; the directory."""
    import torch
    import transformers

    kinds = {
        "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
        "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"sliding_window": 512}),
        "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}),
        "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),  # its products have biases
        "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", {"num_local_experts": 4}),
        "qwen3_next": (
            "Qwen3NextConfig",
            "Qwen3NextForCausalLM",
            {
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 64,
                "shared_expert_intermediate_size": 64,
                "linear_num_value_heads": 4,
                "linear_num_key_heads": 2,
                "linear_key_head_dim": 32,
                "linear_value_head_dim": 32,
            },
        ),
    }
    config, model, own = kinds[shape]
    settings: dict[str, Any] = {
        "vocab_size": len(SPECIALS) + 256 + len(MERGES),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "eos_token_id": EOS_ID,
        "bos_token_id": 1,
        "initializer_range": 0.1,
        "dtype": "bfloat16",
    }
    torch.manual_seed(20261130)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings | own | changes))
    _speak_plainly(made)
    made.to(torch.bfloat16).save_pretrained(directory)
    save_tokenizer(directory)
    said = {"temperature": 0.6, "top_p": 0.9, "do_sample": True}
    (directory / "generation_config.json").write_text(json.dumps(said))
    return directory
