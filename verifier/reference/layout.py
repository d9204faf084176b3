"""What the tensors of a checkpoint do not say of themselves, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verifier.errors import ConfigError

#: How configurations name the number of experts.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the tensors of a checkpoint do not say of themselves."""

    layers: int
    hidden: int  # the width of the residual stream
    fp8_block: tuple[int, int] | None = None  # rows and columns that share an fp8 scale
    sharing: int = 1  # query heads that share a key and a value
    experts: int = 0
    tied: bool = False  # whether the output head is the embedding


def read_layout(config: Any) -> Layout:
    """The layout from a model's configuration, transformers' object or vLLM's.

    Raises ConfigError for one that does not say it.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    quantization: Any = getattr(config, "quantization_config", None) or {}
    try:
        if not isinstance(quantization, Mapping):
            quantization = quantization.to_dict()
        block = quantization.get("weight_block_size")
        rows, columns = (None, None) if block is None else map(int, block)
        layers, hidden = int(text.num_hidden_layers), int(text.hidden_size)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"config.json: num_hidden_layers, hidden_size or weight_block_size is missing or no "
            f"size ({error}); fetch the weights anew"
        ) from error
    heads = _number(text, "num_attention_heads")
    return Layout(
        layers=layers,
        hidden=hidden,
        fp8_block=None if rows is None or columns is None else (rows, columns),
        sharing=max(1, heads // (_number(text, "num_key_value_heads") or heads or 1)),
        experts=max(_number(text, name) for name in _EXPERTS),
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )


def _number(config: Any, name: str) -> int:
    """A whole number of a configuration; 0 where it has none, or one for each layer."""
    found = getattr(config, name, None)
    return found if isinstance(found, int) else 0
