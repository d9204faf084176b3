"""The bank: what each variant touches and makes of it, and the names by which it is found."""

from __future__ import annotations

import itertools

import pytest
import torch

from verifier.errors import ConfigError
from verifier.reference.layout import Layout
from verifier.reference.roundings import (
    round_asymmetric,
    round_fp8,
    round_fp8_blocks,
    round_full_range,
    round_searched,
    round_symmetric,
)
from verifier.reference.variants import (
    BANK,
    CLASS_MARGINS,
    VARIANTS,
    Settings,
    bank_for,
    find_variant,
    input_widths,
    is_linear,
)

LAYERS = 30
LAYOUT = Layout(layers=LAYERS, hidden=768, sharing=3)


# -- variants ----------------------------------------------------------------------------------

SHAPES = {
    "q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "o_proj": (576, 576),
    "gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536),
}  # fmt: skip


def checkpoint() -> dict[str, torch.Tensor]:
    """One layer of a checkpoint with the names and shapes of SmolLM2-135M, and what is around."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return 0.05 * torch.randn(*shape, generator=generator)

    found = {
        "model.embed_tokens.weight": draw(64, 576),
        "lm_head.weight": draw(64, 576),
        "model.norm.weight": draw(576),
    }
    at = "model.layers.0"
    found[f"{at}.input_layernorm.weight"] = draw(576)
    found[f"{at}.post_attention_layernorm.weight"] = draw(576)
    for name, shape in SHAPES.items():
        block = "self_attn" if name[0] in "qkvo" else "mlp"
        found[f"{at}.{block}.{name}.weight"] = draw(*shape)
    return found


PUBLISHED = checkpoint()
LINEAR = {name for name in PUBLISHED if "_proj" in name}
ROUNDED = [name for name, variant in VARIANTS.items() if variant.family != "layers"]


def apply(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    transform = find_variant(name, layers=LAYERS).build(LAYERS)
    return {key: transform(key, tensor) for key, tensor in tensors.items()}


def error(name: str) -> float:
    """Root mean square change of one matrix."""
    key = "model.layers.0.self_attn.k_proj.weight"
    change = apply(name, {key: PUBLISHED[key]})[key] - PUBLISHED[key]
    return float(change.square().mean().sqrt())


def changed(found: dict[str, torch.Tensor], published: dict[str, torch.Tensor]) -> set[str]:
    return {key for key in published if not torch.equal(found[key], published[key])}


@pytest.mark.parametrize("name", ROUNDED)
def test_a_rounded_variant_changes_every_linear_layer_of_the_blocks_and_nothing_else(
    name: str,
) -> None:
    """Embeddings, norms and the output head stay as published; so do the tensors given."""
    given = {key: tensor.clone() for key, tensor in PUBLISHED.items()}
    found = apply(name, given)

    assert changed(found, PUBLISHED) == LINEAR
    assert changed(given, PUBLISHED) == set()
    assert all(found[key].shape == PUBLISHED[key].shape for key in PUBLISHED)
    assert all(found[key].dtype == torch.float32 for key in PUBLISHED)
    assert all(tensor.isfinite().all() for tensor in found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["int8-channel", "fp8-tensor", "nf4-g64", "int4-rotated-g64"])
def test_a_variant_keeps_the_precision_of_the_checkpoint(name: str, dtype: torch.dtype) -> None:
    """Whatever it computes in."""
    key = "model.layers.0.self_attn.k_proj.weight"
    given = {key: PUBLISHED[key].to(dtype)}
    found = apply(name, given)[key]

    assert found.dtype == dtype
    assert found.shape == given[key].shape
    assert not torch.equal(found, given[key])


def test_errors_grow_as_bits_go() -> None:
    """int8 < fp8 < 4 bits < 3 bits < 2 bits, whatever the scheme of the 4 bits."""
    errors = {name: error(name) for name in ROUNDED}
    families = [
        [errors[name] for name in ROUNDED if VARIANTS[name].family == family]
        for family in ("int8", "fp8", "4-bit", "3-bit", "2-bit")
    ]

    assert all(len(family) >= 1 for family in families)
    for milder, harsher in itertools.pairwise(families):
        assert max(milder) < min(harsher)


def test_larger_groups_make_larger_errors() -> None:
    """One scale has more weights to serve."""
    for kind in ("sym", "asym"):
        errors = [error(f"int4-{kind}-{where}") for where in ("g64", "g96", "g192", "channel")]
        assert errors == sorted(errors)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("int4-sym-g64", lambda w: round_symmetric(w, bits=4, group=64)),
        ("int4-sym-channel", lambda w: round_symmetric(w, bits=4, group=None)),
        ("int4-asym-g192", lambda w: round_asymmetric(w, bits=4, group=192)),
        ("int4-asym-g48", lambda w: round_asymmetric(w, bits=4, group=48)),
        ("int3-g64", lambda w: round_asymmetric(w, bits=3, group=64)),
        ("int2-g64", lambda w: round_asymmetric(w, bits=2, group=64)),
        ("int8-channel", lambda w: round_symmetric(w, bits=8, group=None)),
        ("fp8-tensor", lambda w: round_fp8(w, per_channel=False)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_variant_is_what_its_name_says(name: str, expected: object) -> None:
    """Bits, grouping and zero point."""
    assert callable(expected)
    key = "model.layers.0.mlp.down_proj.weight"

    assert torch.equal(apply(name, {key: PUBLISHED[key]})[key], expected(PUBLISHED[key]))


def outputs(*layers: int) -> set[str]:
    return {
        f"model.layers.{layer}.{end}"
        for layer in layers
        for end in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    }


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("drop-1", (14,)),
        ("drop-2", (14, 15)),
        ("drop-layer-0", (0,)),
        ("drop-layer-1", (1,)),
        ("drop-layer-29", (29,)),
    ],
)
def test_a_dropped_layer_has_its_output_projections_at_zero_and_nothing_else(
    name: str, dropped: tuple[int, ...]
) -> None:
    """Of 30 layers those in the middle, or the one named: the residual stream passes it by."""
    ends = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    keys = [f"model.layers.{layer}.{end}.weight" for layer in range(LAYERS) for end in ends]
    keys += ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"]
    published = {key: torch.ones(4, 4, dtype=torch.bfloat16) for key in keys}
    found = apply(name, published)

    assert changed(found, published) == outputs(*dropped)
    assert not any(found[key].any() for key in outputs(*dropped))
    assert all(tensor.dtype == torch.bfloat16 for tensor in found.values())


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_middle_layer_is_in_the_model_however_few_there_are(layers: int) -> None:
    """drop-1 always drops one."""
    transform = VARIANTS["drop-1"].build(layers)
    keys = [f"model.layers.{n}.mlp.down_proj.weight" for n in range(layers)]

    assert sum(not transform(key, torch.ones(2)).any() for key in keys) == 1


@pytest.mark.parametrize(
    ("name", "linear"),
    [
        ("model.layers.3.self_attn.q_proj.weight", True),
        ("model.layers.3.self_attn.qkv_proj.weight", True),
        ("model.layers.12.mlp.experts.7.down_proj.weight", True),
        ("language_model.model.layers.3.mlp.gate_up_proj.weight", True),
        ("model.layers.3.self_attn.q_proj.bias", False),
        ("model.layers.3.self_attn.q_norm.weight", False),
        ("model.layers.3.input_layernorm.weight", False),
        ("model.layers.3.mlp.gate.weight", False),
        ("multi_modal.q_proj.weight", False),
        ("model.embed_tokens.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_a_linear_layer_of_a_block_is_known_by_its_name(name: str, linear: bool) -> None:
    """Biases, norms, a router and whatever is outside the blocks are not."""
    assert is_linear(name) == linear


# -- names -------------------------------------------------------------------------------------


def test_variants_are_found_by_their_own_name() -> None:
    """All of them, and each says what it is in words."""
    assert all(find_variant(name, layers=LAYERS) is VARIANTS[name] for name in VARIANTS)
    assert all(variant.name == name and variant.summary for name, variant in VARIANTS.items())


def test_a_given_layer_left_out_is_no_column() -> None:
    """It is measured, so that the class of dropped layers has a mildest member."""
    found = find_variant("drop-layer-7", layers=LAYERS)

    assert (found.name, found.family, found.in_bank) == ("drop-layer-7", "layers", False)
    assert found.summary == "decoder layer 7 left out"


@pytest.mark.parametrize("name", ["drop-layer-30", "drop-layer--1", "drop-layer-", "int5", ""])
def test_an_unknown_variant_is_refused_with_those_there_are(name: str) -> None:
    """Among them the layers that this model has."""
    with pytest.raises(
        ConfigError, match=f"no weights variant '{name}'; there are int8-channel, "
    ) as e:
        find_variant(name, layers=LAYERS)
    assert str(e.value).endswith("drop-layer-N for N from 0 to 29")


def test_the_bank_leaves_out_what_only_the_testbed_serves() -> None:
    """So that faults that no column describes can be measured."""
    assert set(VARIANTS) - set(BANK) == {"int4-asym-g48", "int4-rotated-g64"}


def test_every_class_has_members_and_a_margin_below_them() -> None:
    """A class without builds would be excluded by nothing."""
    known = {variant.family for variant in VARIANTS.values()}

    for families, margin in CLASS_MARGINS.values():
        assert set(families) <= known
        assert 0 < margin < 1
