"""Whether a reference fits the GPUs that a run file names, before anything is downloaded.

Reads engine arguments as vLLM would, and refuses what vLLM would refuse after minutes of loading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from verifier.config import Hardware, ReferenceSection
from verifier.errors import ConfigError
from verifier.reference.cards import Card
from verifier.reference.memory import (
    Layout,
    activation_bytes,
    cache_bytes,
    fact,
    scoring_bytes,
    weight_bytes,
)

GIB: Final = 2**30

#: vLLM's default share of a GPU's memory (config/cache.py).
UTILIZATION: Final = 0.92

#: CUDA context and CUDA graphs of one GPU, and what NCCL takes beside other GPUs: round figures,
#: not derived.
RESERVE_ALONE: Final = GIB
RESERVE_AMONG: Final = 2 * GIB

#: Replies scored at once, unless max_num_seqs says otherwise: the largest batch of an audit.
SEQUENCES: Final = 8

#: Tokens that a prompt is allowed for, beside the reply; probes are shorter.
PROMPT_TOKENS: Final = 1024

#: Alternatives scored at each position.
TOP_K: Final = 20

_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
_CACHE_ELEMENT = {"bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the fullest GPU needs, in bytes, and what that rests on."""

    layout: Layout
    weights: int
    activations: int
    reserve: int
    kv_cache: int
    scoring: int
    kv_token: int  # cache of one more token, on one GPU
    max_model_len: int
    sequences: int
    tokens: int  # of each sequence: prompt and reply
    utilization: float

    @property
    def inside(self) -> int:
        """What must fit into vLLM's share of the GPU."""
        return self.weights + self.activations + self.reserve + self.kv_cache


def uses_gpus(reference: ReferenceSection) -> bool:
    """Whether a run file speaks of vLLM on GPUs, so that its memory is worth planning."""
    if reference.engine == "auto":
        return bool(reference.engine_args) or reference.hardware is not None
    return reference.engine == "vllm"


def plan_memory(card: Card, reference: ReferenceSection, *, max_tokens: int) -> Memory:
    """What each GPU needs to score replies of `max_tokens` under a card's weights.

    The card must miss no fact (`missing_facts`). Raises ConfigError for engine arguments that
    vLLM would refuse, or that this arithmetic does not know.
    """
    args = dict(card.engine_args) | dict(reference.engine_args)
    layout = layout_of(args)
    _refuse_layout(card, layout)
    longest = _limit(args, "max_model_len", fact(card.architecture.context_length))
    if longest > fact(card.architecture.context_length):
        raise ConfigError(
            f"reference.engine_args: max_model_len {longest:,} is more than the model's context of "
            f"{card.architecture.context_length:,} tokens; lower it"
        )
    element = _element(args, reference)
    batched = _limit(args, "max_num_batched_tokens", _batched_tokens(reference.hardware))
    sequences = _limit(args, "max_num_seqs", SEQUENCES)
    tokens = min(longest, PROMPT_TOKENS + max_tokens)
    cached = _cache_element(args, element)

    def cache(length: int) -> int:
        return cache_bytes(card, layout, length=length, element=cached, batched=batched)

    return Memory(
        layout=layout,
        weights=weight_bytes(card, layout, element=element),
        activations=activation_bytes(card, layout, element=element, batched=batched),
        reserve=RESERVE_ALONE if layout.gpus == 1 else RESERVE_AMONG,
        # vLLM starts only if one sequence of full length fits
        kv_cache=max(cache(longest), math.ceil(sequences / layout.data) * cache(tokens)),
        scoring=scoring_bytes(
            card, layout, element=element, positions=min(batched, tokens), top_k=TOP_K
        ),
        kv_token=cache(2 * longest) - cache(2 * longest - 1),
        max_model_len=longest,
        sequences=sequences,
        tokens=tokens,
        utilization=_share(args),
    )


def check_fit(memory: Memory, hardware: Hardware) -> None:
    """Raises ConfigError that says what does not fit, by how much, and what to change."""
    gpus, layout = hardware.gpus * hardware.nodes, memory.layout
    if layout.gpus > gpus:
        raise ConfigError(
            f"reference.hardware: the engine asks for {layout.gpus} GPUs (tensor_parallel_size "
            f"{layout.tensor} x pipeline_parallel_size {layout.pipeline} x data_parallel_size "
            f"{layout.data}), but there are {gpus}; lower them, or name more GPUs"
        )
    total = hardware.memory_gib * GIB
    share = memory.utilization * total
    fixed = memory.weights + memory.activations + memory.reserve
    if fixed > share:
        raise ConfigError(
            f"reference.hardware: weights, activations and reserve need {_gib(fixed)} of each GPU, "
            f"{_gib(fixed - share)} more than the {_gib(share)} that vLLM may use of "
            f"{hardware.memory_gib:g}; split over more GPUs (tensor_parallel_size, "
            "pipeline_parallel_size), or take GPUs with more memory"
        )
    if memory.inside > share:
        raise ConfigError(
            f"reference.hardware: the KV cache needs {_gib(memory.kv_cache)} of each GPU, "
            f"{_gib(memory.inside - share)} more than the rest leaves of {_gib(share)}; it holds "
            f"{room_for_tokens(memory, hardware):,} tokens; lower max_model_len "
            f"({memory.max_model_len:,}) or max_num_seqs ({memory.sequences})"
        )
    beside = total - share
    if memory.scoring > beside:
        raise ConfigError(
            f"reference.hardware: scoring needs {_gib(memory.scoring)} beside vLLM's share, but "
            f"gpu_memory_utilization {memory.utilization:g} leaves {_gib(beside)}; set it to "
            f"{math.floor((1 - memory.scoring / total) * 100) / 100:g} or lower, or lower "
            "max_num_batched_tokens"
        )


def room_for_tokens(memory: Memory, hardware: Hardware) -> int:
    """Tokens that the KV caches of all GPUs hold together, once everything else is placed."""
    share = memory.utilization * hardware.memory_gib * GIB
    free = share - memory.weights - memory.activations - memory.reserve
    return max(0, int(free // memory.kv_token)) * memory.layout.data


# -- engine arguments --------------------------------------------------------------------------


def layout_of(args: Mapping[str, Any]) -> Layout:
    """How vLLM is asked to split a model. Raises ConfigError for what is no number of GPUs."""
    return Layout(
        tensor=_limit(args, "tensor_parallel_size", 1),
        pipeline=_limit(args, "pipeline_parallel_size", 1),
        data=_limit(args, "data_parallel_size", 1),
        expert_parallel=bool(args.get("enable_expert_parallel")),
    )


def _refuse_layout(card: Card, layout: Layout) -> None:
    """Raises ConfigError for a split that vLLM refuses after minutes of loading."""
    facts, tensor = card.architecture, layout.tensor
    heads, kv_heads = fact(facts.attention_heads), facts.kv_heads or 1
    uneven = heads % tensor or (kv_heads % tensor and tensor % kv_heads)
    if (uneven and facts.latent_attention is None) or heads % tensor:
        raise ConfigError(
            f"reference.engine_args: tensor_parallel_size {tensor} does not divide the model's "
            f"{heads} attention heads and {kv_heads} KV heads evenly; choose one that does"
        )
    experts = facts.experts
    if experts is not None and experts.block is not None and not layout.expert_parallel:
        shards = tensor * layout.data
        if experts.width % (shards * experts.block):
            raise ConfigError(
                f"reference.engine_args: tensor_parallel_size {shards} would cut the experts' "
                f"width of {experts.width} through a quantization block of {experts.block}; set "
                "enable_expert_parallel, or split over fewer GPUs"
            )


def _limit(args: Mapping[str, Any], name: str, default: int) -> int:
    value = args.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"reference.engine_args: {name}: expected a whole number of at least 1, got {value!r}"
        )
    return value


def _share(args: Mapping[str, Any]) -> float:
    value = args.get("gpu_memory_utilization", UTILIZATION)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise ConfigError(
            "reference.engine_args: gpu_memory_utilization: expected a share between 0 and 1, got "
            f"{value!r}"
        )
    return float(value)


def _element(args: Mapping[str, Any], reference: ReferenceSection) -> int:
    """Bytes of one unquantized weight or activation."""
    return _known(_ELEMENT, args, "dtype", reference.dtype)


def _cache_element(args: Mapping[str, Any], element: int) -> int:
    """Bytes of one number in the KV cache."""
    if args.get("kv_cache_dtype", "auto") == "auto":
        return element
    return _known(_CACHE_ELEMENT, args, "kv_cache_dtype", "")


def _known(table: Mapping[str, int], args: Mapping[str, Any], name: str, default: str) -> int:
    value = args.get(name, default)
    if value not in table:
        raise ConfigError(
            f"reference.engine_args: {name}: the memory plan knows {', '.join(table)}, not "
            f"{value!r}; leave reference.hardware out to run without a plan"
        )
    return table[value]


def _batched_tokens(hardware: Hardware | None) -> int:
    """vLLM's default of tokens in one step, offline (engine/arg_utils.py)."""
    return 8192 if hardware is not None and hardware.memory_gib < 70 else 16384


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"
