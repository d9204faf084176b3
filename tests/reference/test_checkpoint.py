"""Checkpoint layouts: plain, experts one by one and fused, fp8 with scales, and what is refused."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verifier.errors import ConfigError
from verifier.reference.checkpoint import Streamed, transformed
from verifier.reference.layout import Layout, read_layout
from verifier.reference.roundings import round_fp8, round_symmetric
from verifier.reference.variants import VARIANTS

HIDDEN = 192
WIDE = 384
LAYOUT = Layout(layers=2, hidden=HIDDEN, fp8_block=(64, 96))
BLOCK = "model.layers.1"
Q = f"{BLOCK}.self_attn.q_proj"

round_int4 = partial(round_symmetric, bits=4, group=64)


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return 0.05 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stream(*tensors: tuple[str, torch.Tensor], variant: str = "int4-sym-g64") -> list[Streamed]:
    build = VARIANTS[variant].build
    assert build is not None
    return list(transformed(tensors, build(LAYOUT), LAYOUT))


def stated_in_fp8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """fp8 elements that times their block's scale give about the weight."""
    return (weight / spread(scale, weight)).to(torch.float8_e4m3fn)


def spread(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The slow, obvious way: each element asks for its own block's scale."""
    rows, columns = 64, 96
    found = torch.empty(weight.shape)
    for r in range(weight.shape[0]):
        for c in range(weight.shape[1]):
            found[r, c] = scale[r // rows, c // columns]
    return found


def blocked(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [out, in] as fp8 and one scale per block, ragged at the edges."""
    rows, columns = 64, 96
    out, width = weight.shape
    scale = torch.empty(-(-out // rows), -(-width // columns))
    for r in range(scale.shape[0]):
        for c in range(scale.shape[1]):
            block = weight[r * rows : (r + 1) * rows, c * columns : (c + 1) * columns]
            scale[r, c] = block.abs().max() / 448
    return stated_in_fp8(weight, scale), scale


# -- plain tensors -----------------------------------------------------------------------------


def test_a_plain_weight_is_rounded_and_the_rest_passes_untouched() -> None:
    """In the order published, and what is not rounded is the very tensor."""
    norm, weight = draw(HIDDEN), draw(HIDDEN, HIDDEN)
    first, second = stream((f"{BLOCK}.input_layernorm.weight", norm), (f"{Q}.weight", weight))

    assert first.tensor is norm
    assert not first.moved
    assert second.moved
    assert torch.equal(second.tensor, round_int4(weight))


def test_a_weight_on_the_grid_of_the_rounding_did_not_move() -> None:
    """So that a variant that changes nothing can be refused."""
    weight = torch.ones(4, 64)
    (found,) = stream((f"{Q}.weight", weight))

    assert not found.moved
    assert found.tensor is weight


@pytest.mark.parametrize(
    "name",
    [
        "mlp.experts.3.gate_proj.weight",
        "block_sparse_moe.experts.3.w1.weight",
        "self_attn.kv_a_proj_with_mqa.weight",
        "linear_attn.in_proj_qkvz.weight",
    ],
)
def test_projections_of_other_families_are_rounded(name: str) -> None:
    """Experts, latent and linear attention: what hosts quantize."""
    weight = draw(WIDE, HIDDEN)
    (found,) = stream((f"{BLOCK}.{name}", weight))

    assert torch.equal(found.tensor, round_int4(weight))


@pytest.mark.parametrize("name", ["mlp.gate.weight", "block_sparse_moe.gate.weight"])
def test_a_router_stays_as_published(name: str) -> None:
    """As in the builds that hosts serve."""
    weight = draw(8, HIDDEN)
    (found,) = stream((f"{BLOCK}.{name}", weight))

    assert found.tensor is weight


def test_towers_for_pictures_stay_as_published() -> None:
    """Their layers have the same names."""
    weight = draw(HIDDEN, HIDDEN)
    (found,) = stream(("vision_tower.encoder.layers.1.self_attn.q_proj.weight", weight))

    assert found.tensor is weight


@pytest.mark.parametrize(
    "ending", ["o_proj.weight", "o_proj.bias", "down_proj.weight", "w2.weight"]
)
def test_a_dropped_layer_writes_nothing(ending: str) -> None:
    """Neither by its weights nor by a bias, in any family's naming."""
    (found,) = stream((f"model.layers.0.x.{ending}", draw(8, 64)), variant="drop-1")

    assert found.moved
    assert not found.tensor.any()


# -- fused experts -----------------------------------------------------------------------------


@pytest.mark.parametrize("inputs_first", [False, True])
@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_fused_experts_are_rounded_one_by_one_along_their_inputs(
    name: str, inputs_first: bool
) -> None:
    """Published models lay them out both ways; the result lies as it came."""
    shape = (WIDE, HIDDEN) if name == "gate_up_proj" else (HIDDEN, WIDE)
    experts = [draw(*shape, seed=n) for n in range(3)]
    laid = torch.stack([e.T if inputs_first else e for e in experts])
    (found,) = stream((f"{BLOCK}.mlp.experts.{name}", laid))
    expected = torch.stack([round_int4(e).T if inputs_first else round_int4(e) for e in experts])

    assert found.moved
    assert torch.equal(found.tensor, expected)


def test_a_scale_per_tensor_is_one_per_expert() -> None:
    """An expert far larger than the others must not take their precision."""
    experts = torch.stack([draw(HIDDEN, WIDE), 100 * draw(HIDDEN, WIDE, seed=2)])
    (found,) = stream((f"{BLOCK}.mlp.experts.down_proj", experts), variant="fp8-tensor")

    assert torch.equal(found.tensor[0], round_fp8(experts[0], per_channel=False))


def test_a_square_fused_tensor_is_refused() -> None:
    """Its inputs cannot be told from its outputs, and rounding along the wrong axis is another
    build."""
    with pytest.raises(ConfigError, match="does not tell inputs from outputs"):
        stream((f"{BLOCK}.mlp.experts.down_proj", draw(2, HIDDEN, HIDDEN)))


# -- fp8 ---------------------------------------------------------------------------------------


def test_fp8_blocks_are_rounded_from_their_real_values() -> None:
    """The result is the rounding of the de-quantised weight, but for fp8's own error."""
    weight, scale = blocked(draw(130, HIDDEN))
    real = weight.float() * spread(scale, weight)
    given = ((f"{Q}.weight", weight), (f"{Q}.weight_scale_inv", scale))
    found = {s.name: s.tensor for s in stream(*given)}
    new_weight, new_scale = found[f"{Q}.weight"], found[f"{Q}.weight_scale_inv"]
    back = new_weight.float() * spread(new_scale, new_weight)
    wanted = round_int4(real)

    assert new_weight.dtype == weight.dtype
    assert new_scale.shape == scale.shape
    assert (back - wanted).abs().max() <= wanted.abs().max() * 2**-4  # half a step of e4m3
    assert (back - wanted).norm() < 0.3 * (real - wanted).norm()


def test_what_a_variant_leaves_alone_keeps_its_fp8_bits() -> None:
    """Restating it could move it."""
    weight, scale = blocked(draw(128, HIDDEN))
    given = ((f"{Q}.weight", weight), (f"{Q}.weight_scale_inv", scale))
    found = stream(*given, variant="drop-1")

    assert [s.tensor for s in found] == [weight, scale]
    assert not any(s.moved for s in found)


def test_the_halves_of_an_fp8_weight_may_come_in_any_order() -> None:
    """They may lie in different files."""
    weight, scale = blocked(draw(128, HIDDEN))
    other = (f"{BLOCK}.input_layernorm.weight", draw(HIDDEN))
    one = stream((f"{Q}.weight", weight), other, (f"{Q}.weight_scale_inv", scale))
    two = stream((f"{Q}.weight_scale_inv", scale), other, (f"{Q}.weight", weight))

    assert {s.name for s in one} == {s.name for s in two}
    for streamed in one:
        twin = next(s for s in two if s.name == streamed.name)
        assert torch.equal(streamed.tensor.float(), twin.tensor.float())


@pytest.mark.parametrize("shape", [(1,), (128, 1)], ids=["tensor", "channel"])
def test_scales_per_tensor_and_per_channel_are_known(shape: tuple[int, ...]) -> None:
    """As compressed-tensors publishes them."""
    real = draw(128, HIDDEN)
    largest = real.abs().max() if shape == (1,) else real.abs().amax(1, keepdim=True)
    scale = (largest / 448).reshape(shape)
    weight = (real / scale).to(torch.float8_e4m3fn)
    found = stream((f"{Q}.weight", weight), (f"{Q}.weight_scale", scale))
    new_weight, new_scale = found[0].tensor, found[1].tensor
    wanted = round_int4(weight.float() * scale)

    assert new_scale.shape == scale.shape
    assert (new_weight.float() * new_scale - wanted).abs().max() <= wanted.abs().max() * 2**-4


def test_an_fp8_weight_without_scales_is_refused() -> None:
    """Its real values are not known."""
    weight, _ = blocked(draw(128, HIDDEN))

    with pytest.raises(ConfigError, match="is in fp8, but its"):
        stream((f"{Q}.weight", weight))


def test_scales_of_an_unknown_shape_are_refused() -> None:
    """Rather than spread over the wrong elements."""
    weight, _ = blocked(draw(128, HIDDEN))

    with pytest.raises(ConfigError, match="are not known"):
        stream((f"{Q}.weight", weight), (f"{Q}.weight_scale_inv", torch.ones(2, 2, 2)))


@pytest.mark.parametrize(
    "name", [f"{Q}.weight_packed", f"{Q}.qweight", f"{BLOCK}.mlp.experts.gate_up_proj_blocks"]
)
def test_packed_integers_are_refused(name: str) -> None:
    """They are a rounding already; what to do instead is said."""
    with pytest.raises(ConfigError, match="packed into integers"):
        stream((name, torch.ones(8, 8, dtype=torch.int32)))


# -- the layout --------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_the_layout_is_read_from_a_models_configuration(nested: bool) -> None:
    """Of the language model, where that is one part of several."""
    inner: Any = SimpleNamespace(num_hidden_layers=3, hidden_size=64)
    config: Any = inner
    if nested:
        config = SimpleNamespace(get_text_config=lambda: inner)
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 64]}

    assert read_layout(config) == Layout(layers=3, hidden=64, fp8_block=(128, 64))


def test_a_model_that_is_not_quantized_has_no_blocks() -> None:
    """The plain case."""
    config = SimpleNamespace(num_hidden_layers=3, hidden_size=64)

    assert read_layout(config) == Layout(layers=3, hidden=64)
