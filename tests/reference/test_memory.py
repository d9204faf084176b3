"""The memory of a model on GPUs: by hand for a small one, and against what publishers say."""

from __future__ import annotations

from typing import Any

import pytest
from fakes_card import CARD

from verifier.config import Hardware, ReferenceSection
from verifier.errors import ConfigError
from verifier.reference.cards import Card, load_card
from verifier.reference.hardware import GIB, Memory, check_fit, plan_memory, room_for_tokens
from verifier.reference.memory import (
    Layout,
    activation_bytes,
    cache_bytes,
    missing_facts,
    scoring_bytes,
    weight_bytes,
)

ALONE = Layout(tensor=1, pipeline=1, data=1, expert_parallel=False)

#: Two layers of hidden size 8 with 4 heads and 2 KV heads of 2, in 16 bits.
DENSE: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 16, "attention_heads": 4, "kv_heads": 2, "head_dim": 2,
    "vocabulary": 100, "context_length": 64, "bits": 16,
    # embedding and head 2 x 800, norms 5 x 8, K and V 2 x 64, Q and O 2 x 128, MLP 2 x 384
    "weight_bytes": 2 * (1600 + 40 + 128 + 256 + 768),
}  # fmt: skip
#: What leaves room on a small GPU.
SMALL: dict[str, Any] = {"max_model_len": 8192, "max_num_batched_tokens": 2048}

EXPERTS = {"count": 4, "per_token": 2, "width": 16, "layers": 2, "bits": 8}


def make_card(**architecture: Any) -> Card:
    return Card.model_validate(CARD | {"architecture": DENSE | architecture})


def split(**parts: Any) -> Layout:
    return Layout(
        **{"tensor": 1, "pipeline": 1, "data": 1, "expert_parallel": False} | parts  # type: ignore[arg-type]
    )


# -- weights -----------------------------------------------------------------------------------


def test_one_gpu_holds_all_of_the_weights() -> None:
    """As published; twice as much when 16 bits are cast to 32."""
    card = make_card()

    assert weight_bytes(card, ALONE, element=2) == DENSE["weight_bytes"]
    assert weight_bytes(card, ALONE, element=4) == 2 * DENSE["weight_bytes"]


def test_tensor_parallel_gpus_split_all_but_norms() -> None:
    """Two GPUs: half of tables and layers, whole norms."""
    assert weight_bytes(make_card(), split(tensor=2), element=2) == 2 * (800 + 40 + 64 + 128 + 384)


def test_more_gpus_than_key_value_heads_hold_copies_of_them() -> None:
    """Four GPUs: a quarter of the rest, but half of keys and values."""
    assert weight_bytes(make_card(), split(tensor=4), element=2) == 2 * (400 + 40 + 64 + 64 + 192)


def test_the_fullest_pipeline_stage_counts() -> None:
    """Half of the layers, and one of embedding and head."""
    assert weight_bytes(make_card(), split(pipeline=2), element=2) == 2 * (
        800 + (40 + 128 + 256 + 768) // 2
    )


def test_whole_experts_are_dealt_out_and_cut_ones_split() -> None:
    """Four experts over three GPUs: two on the fullest, or a third of each."""
    routed = 2 * 4 * 3 * 8 * 16
    router = 2 * 4 * 8 * 2
    card = make_card(
        experts=EXPERTS, weight_bytes=DENSE["weight_bytes"] + routed + router,
        intermediate_size=None,
    )  # fmt: skip
    dense = weight_bytes(make_card(), ALONE, element=2) + router

    whole = weight_bytes(card, split(data=3, expert_parallel=True), element=2)
    cut = weight_bytes(card, split(data=3), element=2)
    assert whole == dense + routed // 2
    assert cut == dense + routed // 3


def test_quantized_experts_are_not_cast() -> None:
    """In float32 arithmetic they stay as published."""
    routed = 2 * 4 * 3 * 8 * 16
    card = make_card(experts=EXPERTS, weight_bytes=DENSE["weight_bytes"] + routed + 128)

    assert weight_bytes(card, ALONE, element=4) == 2 * (DENSE["weight_bytes"] + 128) + routed


def test_facts_that_contradict_one_another_are_refused() -> None:
    """A checkpoint cannot be smaller than its parts."""
    with pytest.raises(ConfigError, match="card tiny: architecture: weight_bytes is less than"):
        weight_bytes(make_card(weight_bytes=100), ALONE, element=2)


# -- the cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "pipeline", "expected"),
    [(1, 1, 2 * 2 * 2 * 2 * 2 * 10), (2, 1, 160), (4, 1, 160), (1, 2, 160)],
)
def test_keys_and_values_are_split_by_heads_and_layers(
    tensor: int, pipeline: int, expected: int
) -> None:
    """Two layers x K and V x two heads x two numbers x two bytes x ten tokens; a head at least."""
    layout = split(tensor=tensor, pipeline=pipeline)

    assert cache_bytes(make_card(), layout, length=10, element=2, batched=4) == expected


def test_a_window_keeps_itself_and_one_step() -> None:
    """One of two layers keeps 3 - 1 + 4 of ten tokens."""
    card = make_card(window={"tokens": 3, "layers": 1})

    assert cache_bytes(card, ALONE, length=10, element=2, batched=4) == 16 * (10 + 6)


@pytest.mark.parametrize(
    ("element", "index", "row"),
    [(2, None, 2 * (512 + 64)), (1, None, 576), (2, 128, 1152 + 132), (1, 128, 656 + 132)],
)
def test_latent_attention_keeps_one_vector_on_every_gpu(
    element: int, index: int | None, row: int
) -> None:
    """DeepSeek-V3.2's layout: 576 numbers, 656 bytes when they are fp8, and 132 of the indexer."""
    latent = {"kv_rank": 512, "rope_dim": 64, "q_rank": 4, "index_dim": index}
    card = make_card(latent_attention=latent, kv_heads=None)

    for tensor in (1, 4):
        layout = split(tensor=tensor)
        found = cache_bytes(card, layout, length=10, element=element, batched=4)
        assert found == 2 * 10 * row


# -- buffers -----------------------------------------------------------------------------------


def test_scoring_holds_the_whole_vocabulary_at_each_position() -> None:
    """Logits of 2 bytes, log-softmax of 4, a comparison of 1; a shard more when gathered."""
    card = make_card()

    alone = scoring_bytes(card, ALONE, element=2, positions=10, top_k=20)
    gathered = scoring_bytes(card, split(tensor=4), element=2, positions=10, top_k=20)
    assert alone == 10 * (100 * 7 + 21 * 12)
    assert gathered == alone + 10 * 100 * 2 // 4


def test_activations_grow_with_the_step_and_shrink_with_the_split() -> None:
    """Residual and hidden states, and three times the widest layer: 2 x 8 + 3 x 16 numbers."""
    card = make_card()

    assert activation_bytes(card, ALONE, element=2, batched=10) == 10 * 2 * (16 + 48)
    assert activation_bytes(card, split(tensor=2), element=2, batched=10) == 10 * 2 * (16 + 24)


def test_routed_tokens_need_the_work_spaces_of_their_experts() -> None:
    """Two experts per token, each of max(2 x 16, 8) + 16 numbers; cut ones need less."""
    card = make_card(experts=EXPERTS, intermediate_size=None)

    whole = activation_bytes(card, split(tensor=2, expert_parallel=True), element=2, batched=10)
    cut = activation_bytes(card, split(tensor=2), element=2, batched=10)
    assert whole == 10 * 2 * (16 + 2 * (32 + 16))
    assert cut == 10 * 2 * (16 + 2 * (16 + 8))


# -- what is known -----------------------------------------------------------------------------


def test_a_fact_that_is_missing_is_named() -> None:
    """Never guessed; what another kind of attention or layer does not need is not missed."""
    latent = {"kv_rank": 512, "rope_dim": 64}

    assert missing_facts(make_card()) == ()
    assert missing_facts(make_card(head_dim=None)) == ("architecture.head_dim",)
    assert missing_facts(make_card(kv_heads=None)) == ("architecture.kv_heads",)
    assert missing_facts(make_card(kv_heads=None, latent_attention=latent)) == ()
    assert missing_facts(make_card(intermediate_size=None)) == ("architecture.intermediate_size",)
    assert missing_facts(make_card(intermediate_size=None, experts=EXPERTS)) == ()


# -- against what publishers say ---------------------------------------------------------------


def plan(name: str, hardware: Hardware, **args: Any) -> Memory:
    section = ReferenceSection(
        card=name, engine="vllm", dtype="bfloat16", engine_args=args, hardware=hardware
    )
    memory = plan_memory(load_card(name), section, max_tokens=48)
    check_fit(memory, hardware)
    return memory


@pytest.mark.parametrize(
    ("gpus", "gigabytes", "args", "tokens"),
    [
        (4, 96, {"tensor_parallel_size": 4}, 400_000),
        (8, 144, {"tensor_parallel_size": 8, "enable_expert_parallel": True}, 3_000_000),
    ],
    ids=["4 x 96 GB", "8 x 144 GB"],
)
def test_minimax_needs_what_its_deploy_guide_says(
    gpus: int, gigabytes: int, args: dict[str, Any], tokens: int
) -> None:
    """220 GB of weights, 240 GB per million tokens, and the tokens that two machines hold.

    docs/vllm_deploy_guide.md of MiniMax-AI/MiniMax-M2.7; all within a tenth.
    """
    hardware = Hardware(gpus=gpus, memory_gib=gigabytes * 1e9 / GIB)
    memory = plan("minimax-m2.7", hardware, **args)

    assert memory.weights * gpus == pytest.approx(220e9, rel=0.1)
    assert memory.kv_token * gpus * 1e6 == pytest.approx(240e9, rel=0.1)
    assert room_for_tokens(memory, hardware) == pytest.approx(tokens, rel=0.1)


@pytest.mark.parametrize(
    ("name", "gpus", "memory_gib", "args"),
    [
        ("gpt-oss-120b", 1, 80, {}),
        ("gpt-oss-20b", 1, 16, SMALL | {"gpu_memory_utilization": 0.91}),
        ("glm-5.2-fp8", 8, 141, {}),
        ("kimi-k2.6", 8, 141, {}),
        ("mistral-small-4-119b-2603", 2, 141, {}),
        ("qwen3-235b-a22b", 4, 141, {"tensor_parallel_size": 4}),
        ("llama-3.1-8b-instruct", 1, 24, SMALL),
    ],
)
def test_models_fit_the_machines_that_they_are_known_to_run_on(
    name: str, gpus: int, memory_gib: float, args: dict[str, Any]
) -> None:
    """By their READMEs and vLLM's recipes."""
    assert plan(name, Hardware(gpus=gpus, memory_gib=memory_gib), **args).weights > 0
