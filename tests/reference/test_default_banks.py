"""The rules: which builds and honest stacks a card gets, and what cannot be calibrated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from verifier.errors import ConfigError
from verifier.lab.calibrate import refuse_card
from verifier.lab.corpus import read_stack
from verifier.reference.calibrations import describe_calibrated, is_calibrated
from verifier.reference.cards import Card, list_shipped, load_card
from verifier.reference.defaults import (
    FLOAT32_BYTES,
    GGUF_BYTES,
    Published,
    default_bank,
    default_engine_args,
    default_stacks,
    describe_needs,
    fits,
    misfits,
    obstacles_to_calibrating,
    published_of,
    widths_of,
)
from verifier.reference.layout import Layout
from verifier.reference.variants import BANK, VARIANTS

PLAIN = Published(
    precision="bfloat16", layers=32, widths=frozenset({4096, 14336}), complete=True,
    float32_bytes=32e9, family="llamaforcausallm",
)  # fmt: skip


# -- builds ------------------------------------------------------------------------------------


def test_a_build_has_groups_that_divide_every_width() -> None:
    """Of 4,096 and 14,336 the groups of 64 do, those of 96 and 192 do not."""
    bank = default_bank(PLAIN)

    groups = {name: VARIANTS[name].group for name in BANK if VARIANTS[name].family != "gguf"}
    assert {96, 192} < set(groups.values())
    assert set(groups) - set(bank) == {name for name in groups if groups[name] in (96, 192)}
    assert list(bank) == [name for name in BANK if name in bank]
    assert default_bank(replace(PLAIN, widths=frozenset({1001}))) == tuple(
        name for name in groups if groups[name] == 1
    )


def test_types_of_gguf_are_for_models_that_are_rounded_in_a_while() -> None:
    """They are searched for, block by block."""
    small = replace(PLAIN, float32_bytes=GGUF_BYTES)

    assert "gguf-q4-k-m" in default_bank(small)
    assert "gguf-q4-k-m" not in default_bank(replace(small, float32_bytes=GGUF_BYTES + 1))
    assert "gguf-q4-k-m" not in default_bank(replace(small, widths=frozenset({1000})))


def test_what_no_engine_computes_is_in_no_bank() -> None:
    """Activations of fused experts, a cache of latents, and either with vLLM."""
    kinds = {"int8-w8a8": "activations", "kv-int4": "kv_cache"}
    assert kinds.keys() <= set(default_bank(PLAIN))
    experts = default_bank(replace(PLAIN, experts=True))
    latent = default_bank(replace(PLAIN, latent=True))
    large = default_bank(replace(PLAIN, float32_bytes=FLOAT32_BYTES + 1))

    assert ("int8-w8a8" in experts, "kv-int4" in experts) == (False, True)
    assert ("int8-w8a8" in latent, "kv-int4" in latent) == (True, False)
    assert not kinds.keys() & set(large)


def test_the_groups_of_builds_are_those_of_their_functions() -> None:
    """Each refuses a width that its group does not divide, and takes one that it does."""
    import torch

    for name in BANK:
        group, build = VARIANTS[name].group, VARIANTS[name].build
        if group == 1 or build is None:
            continue
        build = build(Layout(layers=4, hidden=4096))
        where = "model.layers.0.mlp.down_proj.weight"
        assert build(where, torch.ones(2, 2 * group)).shape == (2, 2 * group)
        with pytest.raises((ValueError, ConfigError), match=str(group)):
            build(where, torch.ones(2, 2 * group + 1))


@pytest.mark.parametrize("precision", ["fp8 e4m3 in blocks of 128 x 128", "fp8 e4m3; head in bf16"])
def test_a_model_in_8_bits_gets_no_build_of_8_bits(precision: str) -> None:
    """They are no step down; all that is coarser is one."""
    families = {VARIANTS[name].family for name in default_bank(replace(PLAIN, precision=precision))}

    assert families == {"4-bit", "3-bit", "2-bit", "layers"}  # nor what vLLM does not compute


def test_packed_numbers_that_transformers_reads_get_other_grids_of_4_bits_and_its_stacks() -> None:
    """Hosts serve models that are published in 4 bits in grids of their own; in the published one
    nothing moves. Its weights in float32 must find room."""
    packed = replace(
        PLAIN, precision="int4 in groups of 32 (compressed-tensors)", float32_bytes=GGUF_BYTES
    )
    bank = set(default_bank(packed))

    assert {"gguf-q4-k-m", "int4-sym-g128", "mxfp4", "int3-g64", "kv-int4", "drop-1"} <= bank
    assert not {VARIANTS[name].family for name in bank} & {"int8", "fp8"}
    assert not {"gguf-q8-0", "gguf-q6-k", "gguf-q5-k-m", "int4-sym-g32", "int4-asym-g32"} & bank
    assert default_stacks(packed)[0] == ("float32-batch32", "bfloat16-batch32")
    assert default_stacks(packed)[1] == ("bfloat16-batch1",)
    large = replace(packed, float32_bytes=FLOAT32_BYTES + 1)
    assert default_bank(large) == ()
    assert default_bank(replace(packed, by_transformers=False)) == ()


@pytest.mark.parametrize(
    "precision", ["mxfp4 experts; all else in bfloat16", "int4 in groups of 128 (awq)", "unknown"]
)
def test_packed_weights_get_no_build(precision: str) -> None:
    """No engine rounds them in place."""
    assert default_bank(replace(PLAIN, precision=precision)) == ()


def test_where_widths_are_not_known_only_whole_channels_are_sure() -> None:
    """A group might not divide what nobody has read."""
    bank = default_bank(replace(PLAIN, widths=frozenset(), complete=False))

    assert {VARIANTS[name].group for name in bank} == {1}
    assert {"int8-channel", "int4-sym-channel", "drop-2"} <= set(bank)


@pytest.mark.parametrize(
    ("layers", "dropped"), [(1, set()), (2, {"drop-1"}), (3, {"drop-1", "drop-2"})]
)
def test_no_build_drops_the_last_layer(layers: int, dropped: set[str]) -> None:
    """What is left must be a model."""
    bank = default_bank(replace(PLAIN, layers=layers))

    assert {name for name in bank if name.startswith("drop")} == dropped


def test_a_build_that_does_not_fit_is_named_with_its_width() -> None:
    """One line each, before anything is loaded."""
    (line,) = misfits(("fp8-channel", "int4-sym-g64", "int4-sym-g96"), frozenset({256, 192}))

    assert line.startswith("bank: int4-sym-g96: its groups of 96 do not divide the input width 256")
    assert fits("int4-sym-g64", frozenset({256, 192}))


# -- honest stacks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "calibration", "held_out"),
    [
        ({}, ("float32-batch32", "bfloat16-batch32"), ("bfloat16-batch1", "float16-batch32")),
        ({"family": "gemma3forcausallm"}, ("float32-batch32", "bfloat16-batch32"),
         ("bfloat16-batch1",)),
        ({"float32_bytes": FLOAT32_BYTES * 1.01}, ("vllm-bfloat16-batch32", "vllm-bfloat16-batch8"),
         ("vllm-bfloat16-batch1", "vllm-float16-batch32")),
        ({"float32_bytes": None}, ("vllm-bfloat16-batch32", "vllm-bfloat16-batch8"),
         ("vllm-bfloat16-batch1", "vllm-float16-batch32")),
        ({"by_transformers": False}, ("vllm-bfloat16-batch32", "vllm-bfloat16-batch8"),
         ("vllm-bfloat16-batch1", "vllm-float16-batch32")),
        ({"precision": "fp8 e4m3"}, ("vllm-bfloat16-batch32", "vllm-bfloat16-batch8"),
         ("vllm-bfloat16-batch1",)),
    ],
    ids=["small", "overflows", "large", "unknown size", "vllm alone", "fp8"],
)  # fmt: skip
def test_honest_stacks_are_those_that_can_be_measured(
    changes: Any, calibration: tuple[str, ...], held_out: tuple[str, ...]
) -> None:
    """Transformers where float32 fits; float16 where it neither overflows nor refines 8 bits."""
    assert default_stacks(replace(PLAIN, **changes)) == (calibration, held_out)
    for name in (*calibration, *held_out):
        assert read_stack(name).name == name


# -- the cards that ship -----------------------------------------------------------------------


@pytest.mark.parametrize("name", list_shipped())
def test_every_card_has_builds_and_stacks_by_the_rules(name: str) -> None:
    """From its own facts; one that is calibrated has at least these stacks, and no build that does
    not fit. Else: python reference/recipes/default_banks.py"""
    card = load_card(name)
    published = published_of(card)
    calibration, held_out = default_stacks(published)

    if is_calibrated(name):
        assert set(calibration) <= set(card.calibration_stacks)
        assert set(held_out) <= set(card.held_out_stacks)
        assert set(card.bank) <= set(default_bank(published))
        return
    assert card.bank == default_bank(published)
    assert (card.calibration_stacks, card.held_out_stacks) == (calibration, held_out)


def test_nothing_is_recommended_for_a_shipped_card_that_cannot_succeed() -> None:
    """Where calibrate would refuse a card it is not named; where it is named it does not."""
    refused, named = set(), set()
    for name in list_shipped():
        card = load_card(name)
        if is_calibrated(name):
            continue
        said = describe_calibrated(name)
        try:
            refuse_card(card.model_copy(update={"calibration_stacks": ("float32-batch32",),
                                                "held_out_stacks": ()}))  # fmt: skip
            named.add("verifier calibrate" in said)
        except ConfigError:
            refused.add("verifier calibrate" in said)

    assert (refused, named) == ({False}, {True})


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt-oss-20b", "published in mxfp4: no engine here rounds packed weights"),
        ("kimi-k2.6", "published in int4: no engine here rounds packed weights"),
        ("deepseek-v3.2", "template_source: encoding script"),
        ("mistral-small-3.2-24b-instruct-2506", "template_source: mistral-common"),
    ],
)
def test_what_cannot_be_calibrated_says_why(name: str, why: str) -> None:
    """From the card alone."""
    assert any(why in line for line in obstacles_to_calibrating(load_card(name)))


def test_widths_come_from_the_facts_of_a_card_or_are_not_known() -> None:
    """Hidden, feed-forward and attention; of latent attention what is sure to divide its width."""
    assert widths_of(load_card("qwen3-4b")) == {2560, 9728, 4096}
    assert widths_of(load_card("glm-5.2")) == {6144, 12288, 2048, 512, 64}
    assert widths_of(load_card("mistral-small-3.2-24b-instruct-2506")) is None


# -- vLLM's arguments --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3-8b", {}),
        ("llama-3.1-70b-instruct", {"tensor_parallel_size": 4}),
        ("minimax-m2.7", {"tensor_parallel_size": 4, "max_model_len": 131072}),
        ("kimi-k2.6", {"tensor_parallel_size": 8, "pipeline_parallel_size": 2,
                       "max_model_len": 131072}),
    ],
)  # fmt: skip
def test_arguments_are_as_few_gpus_as_hold_the_weights(name: str, expected: Any) -> None:
    """MiniMax's own guide names 4 GPUs for it, Llama's card as many."""
    assert default_engine_args(load_card(name)) == expected


def test_experts_stay_whole_where_a_shard_would_cut_a_block() -> None:
    """MiniMax's over 8 GPUs, which vLLM refuses to split."""
    card = load_card("minimax-m2.7")
    facts = card.architecture.model_copy(update={"weight_bytes": 400 * 10**9})
    args = default_engine_args(card.model_copy(update={"architecture": facts}))

    assert args["tensor_parallel_size"] == 8
    assert args["enable_expert_parallel"] is True


def test_what_the_weights_show_goes_before_what_a_card_says() -> None:
    """Their widths decide what fits."""
    card: Card = load_card("qwen3-8b")

    assert default_bank(published_of(card, widths=frozenset({100}))) == default_bank(
        replace(PLAIN, widths=frozenset({100}), layers=card.layers)
    )
    assert obstacles_to_calibrating(card) == ()


@pytest.mark.parametrize(
    ("args", "needs"),
    [
        ({"tensor_parallel_size": 4}, "4 x 80 GB GPU"),
        ({"tensor_parallel_size": 2}, "2 x 192 GB GPU"),
        ({"tensor_parallel_size": "two"}, "?"),
        ({"tensor_parallel_size": 0}, "?"),
    ],
)
def test_what_a_model_needs_is_said_of_any_arguments(args: dict[str, object], needs: str) -> None:
    """A card that somebody wrote is listed, whatever it asks of vLLM."""
    card = load_card("minimax-m2.7").model_copy(update={"engine_args": args})

    assert describe_needs(card) == needs
