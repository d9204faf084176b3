"""GGUF's block types: their real bytes, how near they come, and which tensor gets which."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES

from verifier.reference import gguf_types
from verifier.reference.gguf_types import MIXES, is_outside, quantize, round_blocks, type_of
from verifier.reference.layout import Layout
from verifier.reference.roundings import round_asymmetric, round_symmetric

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "IQ4_NL", "Q5_1", "Q5_0", "Q4_0")
SEARCHED = ("Q6_K", "Q5_K", "Q4_K", "Q3_K", "IQ4_NL")


def weights(rows: int, width: int, *, seed: int) -> torch.Tensor:
    """Random weights of the usual size, with one input channel of outliers."""
    drawn = 0.05 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    drawn[:, 7] *= 8
    return drawn


def share(found: torch.Tensor, weight: torch.Tensor) -> float:
    """The squared error as a share of the squares."""
    return float((found - weight).square().sum() / weight.square().sum())


def integers(low: int, high: int, *shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).float()


# -- blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_have_the_size_of_their_type_and_are_read_by_gguf(kind: str) -> None:
    """What comes back is what the package makes of the bytes, row by row as it came."""
    weight = weights(6, 512, seed=1)
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    made = quantize(weight.reshape(-1, values), kind).numpy()
    read = quants.dequantize(made, GGMLQuantizationType[kind]).reshape(6, 512)

    assert made.shape == (6 * 512 // values, size)
    np.testing.assert_array_equal(round_blocks(weight, kind).numpy(), read)


@pytest.mark.parametrize(
    ("kind", "most"),
    [("Q8_0", 1e-4), ("Q6_K", 5e-4), ("Q5_K", 2e-3), ("Q4_K", 8e-3), ("Q3_K", 3.5e-2),
     ("IQ4_NL", 8e-3), ("Q5_1", 3e-3), ("Q5_0", 3e-3), ("Q4_0", 1.2e-2)],
)  # fmt: skip
def test_blocks_are_as_near_as_their_bits_allow(kind: str, most: float) -> None:
    """For each bit less about four times the squared error, and none far off."""
    weight = weights(16, 512, seed=2)
    found = round_blocks(weight, kind)

    assert most / 20 < share(found, weight) < most
    assert (found - weight).abs().max() < {"Q3_K": 0.3}.get(kind, 0.2) * weight.abs().max()


def test_searches_do_better_than_rounding_to_nearest() -> None:
    """On grids of as many bits and groups of the same size."""
    weight = weights(16, 512, seed=3)

    assert share(round_blocks(weight, "Q4_K"), weight) < 0.9 * share(
        round_asymmetric(weight, bits=4, group=32), weight
    )
    assert share(round_blocks(weight, "Q3_K"), weight) < 0.7 * share(
        round_symmetric(weight, bits=3, group=16), weight
    )
    assert share(round_blocks(weight, "IQ4_NL"), weight) < 0.9 * share(
        round_blocks(weight, "Q4_0"), weight
    )


def test_q6_k_holds_what_lies_on_its_grid() -> None:
    """By hand: 16 scales, the largest at the end of 8 bits, each group with a level at its end."""
    levels = integers(-31, 31, 3, 16, 16, seed=4)
    levels[:, :, 5] = -32
    scales = integers(20, 127, 3, 16, 1, seed=5)
    scales[:, 9] = -128
    on_grid = (2.0**-12 * scales * levels).reshape(3, 256)

    torch.testing.assert_close(round_blocks(on_grid, "Q6_K"), on_grid, rtol=1e-5, atol=1e-7)


def test_q3_k_holds_what_lies_on_its_grid() -> None:
    """By hand: 16 scales of 6 bits, each group with a level at its end."""
    levels = integers(-3, 3, 3, 16, 16, seed=6)
    levels[:, :, 11] = -4
    scales = integers(5, 31, 3, 16, 1, seed=7)
    scales[:, 2] = -32
    on_grid = (2.0**-8 * scales * levels).reshape(3, 256)

    torch.testing.assert_close(round_blocks(on_grid, "Q3_K"), on_grid, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("kind", "top"), [("Q4_K", 15), ("Q5_K", 31)])
def test_q4_k_and_q5_k_hold_what_lies_on_their_grids(kind: str, top: int) -> None:
    """By hand: 8 scales and 8 least values of 6 bits each, groups from end to end."""
    levels = integers(0, top, 3, 8, 32, seed=8)
    levels[:, :, 0], levels[:, :, 31] = 0, top
    scales, offsets = (integers(9, 62, 3, 8, 1, seed=seed) for seed in (9, 10))
    scales[:, 3] = offsets[:, 6] = 63
    on_grid = (2.0**-10 * scales * levels - 2.0**-7 * offsets).reshape(3, 256)

    torch.testing.assert_close(round_blocks(on_grid, kind), on_grid, rtol=1e-4, atol=1e-5)


def test_iq4_nl_holds_what_lies_on_its_levels() -> None:
    """By hand, and its table is the package's own."""
    assert quants.IQ4_NL.kvalues == gguf_types._IQ4_NL
    codes = integers(0, 15, 4, 32, seed=11).long()
    codes[:, 3] = 0
    on_grid = 2.0**-9 * torch.tensor(quants.IQ4_NL.kvalues)[codes].float()

    torch.testing.assert_close(round_blocks(on_grid, "IQ4_NL"), on_grid, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [*TYPES, "F16"])
def test_blocks_of_zeros_stay_zeros(kind: str) -> None:
    """Beside others, which do not change for it."""
    weight = weights(2, 512, seed=12)
    alone = round_blocks(weight, kind)
    weight[0, :256] = 0
    found = round_blocks(weight, kind)

    assert not found[0, :256].any()
    assert found.isfinite().all()
    assert torch.equal(found[1], alone[1])


@pytest.mark.parametrize("kind", SEARCHED)
def test_searches_take_tiny_and_uneven_weights(kind: str) -> None:
    """Single spikes, one sign only, steps of a thousand between groups: all finite and near."""
    weight = weights(4, 512, seed=13)
    weight[0] = 1e-7
    weight[1] = 0
    weight[1, 40] = 3.0
    weight[2] = weight[2].abs() + 0.1
    weight[3, :64] *= 1e-3
    found = round_blocks(weight, kind)

    assert found.isfinite().all()
    assert float(found[1, 40]) == pytest.approx(3.0, rel=0.01)
    assert share(found[2:], weight[2:]) < 0.03


def test_blocks_are_made_in_parts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many at once."""
    weight = weights(5, 512, seed=14)
    whole = round_blocks(weight, "Q4_K")
    monkeypatch.setattr(gguf_types, "_AT_ONCE", 768)

    assert torch.equal(round_blocks(weight, "Q4_K"), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocks_keep_the_precision_of_the_checkpoint(dtype: torch.dtype) -> None:
    """Whatever the search computes in."""
    assert round_blocks(weights(2, 256, seed=15).to(dtype), "Q6_K").dtype == dtype


# -- which type --------------------------------------------------------------------------------

#: Llama-3.1-8B: 32 layers, four query heads to a key head, an output head of its own.
LLAMA = Layout(layers=32, hidden=4096, sharing=4)

#: In its files of Q4_K_M and Q5_K_M: the first four layers, the last four, every third between.
MORE = {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31}


def types(part: str, mix: str, layout: Layout = LLAMA, width: int = 4096) -> list[str]:
    return [
        type_of(f"model.layers.{n}.{part}.weight", mix, layer=n, width=width, layout=layout)
        for n in range(layout.layers)
    ]


@pytest.mark.parametrize(("mix", "base"), [("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")])
@pytest.mark.parametrize("part", ["self_attn.v_proj", "self_attn.qkv_proj", "mlp.down_proj"])
def test_half_of_the_layers_get_more_bits_for_values_and_down_projections(
    mix: str, base: str, part: str
) -> None:
    """As llama.cpp's `use_more_bits` says."""
    assert types(part, mix) == ["Q6_K" if n in MORE else base for n in range(32)]


@pytest.mark.parametrize("part", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj",
                                  "mlp.gate_proj", "mlp.up_proj"])  # fmt: skip
def test_the_other_matrices_have_the_type_of_the_build(part: str) -> None:
    """But the attention's output in Q3_K_M."""
    for mix, base in MIXES.items():
        raised = mix == "Q3_K_M" and "o_proj" in part
        assert set(types(part, mix)) == {"Q4_K" if raised else base}


def test_q3_k_m_raises_values_and_down_projections() -> None:
    """The first two layers most."""
    assert types("self_attn.v_proj", "Q3_K_M") == ["Q5_K"] * 2 + ["Q4_K"] * 30
    assert types("mlp.down_proj", "Q3_K_M") == ["Q5_K"] * 2 + ["Q4_K"] * 30


def test_iq4_nl_raises_values_that_four_heads_share_and_the_first_down_projections() -> None:
    """With fewer heads to a value they stay."""
    alone = Layout(layers=32, hidden=4096, sharing=3)

    assert set(types("self_attn.v_proj", "IQ4_NL")) == {"Q5_K"}
    assert set(types("self_attn.v_proj", "IQ4_NL", alone)) == {"IQ4_NL"}
    assert types("mlp.down_proj", "IQ4_NL") == ["Q5_K"] * 4 + ["IQ4_NL"] * 28


def test_one_type_for_all_is_one_type_for_all() -> None:
    """Q8_0 and Q6_K have no mix."""
    for mix in ("Q8_0", "Q6_K"):
        assert set(types("self_attn.v_proj", mix) + types("mlp.down_proj", mix)) == {mix}


def test_a_model_of_80_layers_gets_more_bits_for_its_values() -> None:
    """Llama's 70B."""
    found = types("self_attn.v_proj", "Q4_K_M", Layout(layers=80, hidden=8192, sharing=8))

    assert set(found) == {"Q5_K", "Q6_K"}


def test_a_model_of_eight_experts_gets_more_bits_for_its_attention() -> None:
    """Mixtral; its experts' down projections as others'."""
    mixtral = Layout(layers=32, hidden=4096, sharing=4, experts=8)

    assert set(types("self_attn.v_proj", "Q3_K_M", mixtral)) == {"Q8_0"}
    assert set(types("self_attn.k_proj", "Q4_K_M", mixtral)) == {"Q8_0"}
    assert set(types("self_attn.o_proj", "Q4_K_M", mixtral)) == {"Q5_K"}
    found = types("block_sparse_moe.experts.3.w2", "Q4_K_M", mixtral)
    assert found == types("mlp.down_proj", "Q4_K_M")


@pytest.mark.parametrize(
    ("mix", "instead"),
    [("Q6_K", "Q8_0"), ("Q5_K_M", "Q5_1"), ("Q4_K_M", "Q5_0"), ("Q3_K_M", "Q4_0"),
     ("Q8_0", "Q8_0"), ("IQ4_NL", "IQ4_NL")],
)  # fmt: skip
def test_a_width_that_256_does_not_divide_gets_a_plain_type(mix: str, instead: str) -> None:
    """By llama.cpp's table of fallbacks; one that 32 does not divide gets half precision."""
    assert set(types("self_attn.q_proj", mix, width=576)) == {instead}
    if instead != mix:
        assert set(types("self_attn.q_proj", mix, width=100)) == {"F16"}


@pytest.mark.parametrize(
    ("mix", "embedding", "head", "tied"),
    [("Q4_K_M", "Q4_K", "Q6_K", "Q6_K"), ("Q3_K_M", "Q3_K", "Q6_K", "Q6_K"),
     ("IQ4_NL", "IQ4_NL", "Q6_K", "Q6_K"), ("Q8_0", "Q8_0", "Q8_0", "Q8_0")],
)  # fmt: skip
def test_the_output_head_has_more_bits_and_the_embedding_where_it_is_the_head(
    mix: str, embedding: str, head: str, tied: str
) -> None:
    """And Q8_0 in place of Q6_K where 256 does not divide the width."""

    def found(name: str, *, tied: bool, width: int = 4096) -> str:
        layout = Layout(layers=32, hidden=width, tied=tied)
        return type_of(name, mix, layer=None, width=width, layout=layout)

    assert found("model.embed_tokens.weight", tied=False) == embedding
    assert found("lm_head.weight", tied=False) == head
    assert found("model.embed_tokens.weight", tied=True) == tied
    assert found("lm_head.weight", tied=False, width=576) == "Q8_0"


def test_what_lies_outside_of_the_layers_is_known_by_name() -> None:
    """Norms are not."""
    assert is_outside("model.embed_tokens.weight")
    assert is_outside("lm_head.weight")
    assert not is_outside("model.norm.weight")
    assert not is_outside("model.layers.0.mlp.down_proj.weight")
