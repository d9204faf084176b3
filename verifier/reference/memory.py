"""Memory of a model on GPUs: weights, KV cache, activations, scoring buffers; pure arithmetic.

Bytes on the fullest GPU, from the facts of a card and the way vLLM splits a model. Estimates, upper
ones where vLLM's own use depends on its kernels. File names in the docstrings are those of vLLM
0.32. Imports neither vllm nor torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from verifier.errors import ConfigError
from verifier.reference.cards import Card


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model is split over GPUs."""

    tensor: int
    pipeline: int
    data: int
    expert_parallel: bool

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline * self.data


def missing_facts(card: Card) -> tuple[str, ...]:
    """The facts without which a card's memory cannot be planned, by dotted name."""
    facts = card.architecture
    needed = ["hidden_size", "attention_heads", "head_dim", "vocabulary", "weight_bytes", "bits"]
    needed += ["context_length"]
    needed += ["kv_heads"] if facts.latent_attention is None else []
    needed += ["intermediate_size"] if facts.experts is None else []
    return tuple(f"architecture.{name}" for name in needed if getattr(facts, name) is None)


def weight_bytes(card: Card, layout: Layout, *, element: int) -> int:
    """Bytes of weights on the fullest GPU.

    Linear layers are split over the tensor-parallel group, and so are embedding and head
    (layers/vocab_parallel_embedding.py); norms, routers and the down-projections of latent
    attention are replicated, key and value heads where there are fewer than GPUs
    (layers/linear.py). Experts are split over tensor x data parallel GPUs, whole ones under expert
    parallelism (layers/fused_moe/config.py). Unquantized weights are cast to the engine's dtype,
    `element` bytes wide; quantized ones stay as published.

    Raises ConfigError when the card's facts contradict one another.
    """
    facts, layers = card.architecture, card.layers
    hidden, bits = fact(facts.hidden_size), facts.bits or 16
    plain = max(bits, 16) / 8  # of what is never quantized
    tables = 1 if facts.tied_embeddings else 2
    table = fact(facts.vocabulary) * hidden
    experts = facts.experts
    routed = router = 0.0
    if experts is not None:
        weights = experts.layers * experts.count * 3 * hidden * experts.width
        routed = weights * experts.bits / 8
        router = experts.layers * experts.count * hidden * plain
    replicated = (2 * layers + 1) * hidden * plain + router
    kv, copies = 0.0, 1
    if facts.latent_attention is None:
        kv = layers * hidden * 2 * fact(facts.kv_heads) * fact(facts.head_dim) * bits / 8
        copies = min(layout.tensor, fact(facts.kv_heads))
    else:
        latent = facts.latent_attention
        ranks = latent.kv_rank + latent.rope_dim + (latent.q_rank or 0)
        replicated += layers * hidden * ranks * bits / 8
    split = fact(facts.weight_bytes) - routed - tables * table * plain - replicated - kv
    if split <= 0:
        raise ConfigError(
            f"card {card.name}: architecture: weight_bytes is less than its parts add up to; mend "
            "the card"
        )
    own = _cast(bits, element) * (split / layout.tensor + kv / copies + replicated)
    if experts is not None:
        own += _cast(experts.bits, element) * routed * _share_of_experts(experts.count, layout)
    stage = math.ceil(layers / layout.pipeline) / layers
    here = tables if layout.pipeline == 1 else 1  # embedding and head lie on the outer stages
    return math.ceil(own * stage + here * table * element / layout.tensor)


def cache_bytes(card: Card, layout: Layout, *, length: int, element: int, batched: int) -> int:
    """Bytes of KV cache that a sequence of `length` tokens takes on one GPU.

    Keys and values of each KV head, at least one head per GPU (config/model.py,
    `get_num_kv_heads`). Latent attention keeps one vector per token on every GPU alike, and with
    sparse attention a row of 8-bit keys of its indexer; in 8 bits that vector takes 656 bytes
    (v1/attention/backends/mla/flashmla_sparse.py). A layer with a window keeps the window and what
    one step adds (v1/kv_cache_interface.py, `SlidingWindowSpec`).
    """
    facts = card.architecture
    if facts.latent_attention is None:
        heads = max(1, fact(facts.kv_heads) // layout.tensor)
        row = 2 * heads * fact(facts.head_dim) * element
    else:
        latent = facts.latent_attention
        row = (latent.kv_rank + latent.rope_dim) * element
        if latent.index_dim is not None:
            row = 656 if element == 1 else row
            row += latent.index_dim + latent.index_dim // 32  # a 4-byte scale per 128
    narrow = facts.window.layers if facts.window else 0
    kept = min(length, facts.window.tokens - 1 + batched) if facts.window else 0
    stage = math.ceil(card.layers / layout.pipeline) / card.layers
    return math.ceil(row * ((card.layers - narrow) * length + narrow * kept) * stage)


def activation_bytes(card: Card, layout: Layout, *, element: int, batched: int) -> int:
    """Bytes of activations at the peak of one step of `batched` tokens.

    Residual and hidden states, and the widest of attention, feed-forward layer and the two work
    spaces of the experts (layers/fused_moe, `workspace_shapes`).
    """
    facts, tensor = card.architecture, layout.tensor
    hidden = fact(facts.hidden_size)
    widest = 3 * fact(facts.attention_heads) * fact(facts.head_dim) / tensor
    if facts.intermediate_size is not None:
        widest = max(widest, 3 * facts.intermediate_size / tensor)
    if facts.experts is not None:
        width = facts.experts.width / (1 if layout.expert_parallel else tensor * layout.data)
        widest = max(widest, facts.experts.per_token * (max(2 * width, hidden) + width))
    return math.ceil(batched * element * (2 * hidden + widest))


def scoring_bytes(card: Card, layout: Layout, *, element: int, positions: int, top_k: int) -> int:
    """Bytes that the log-probabilities of `positions` prompt positions take at their peak.

    Logits over the whole vocabulary, gathered on every GPU from shards, their log-softmax in
    float32, one comparison for the rank, and `top_k` ids and values (v1/worker/gpu_model_runner.py
    `_get_prompt_logprobs_dict`, v1/sample/sampler.py). vLLM's profiling at start does not see them,
    so they must fit beside its share of the memory.
    """
    gathered = element * (1 + 1 / layout.tensor if layout.tensor > 1 else 1)
    each = fact(card.architecture.vocabulary) * (gathered + 4 + 1) + (top_k + 1) * (8 + 4)
    return math.ceil(positions * each)


def _share_of_experts(count: int, layout: Layout) -> float:
    shards = layout.tensor * layout.data
    return math.ceil(count / shards) / count if layout.expert_parallel else 1 / shards


def _cast(bits: float, element: int) -> float:
    return element * 8 / bits if bits >= 16 else 1


def fact(value: int | None) -> int:
    assert value is not None  # see missingfacts
    return value
