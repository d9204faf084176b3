"""The bank: what each variant touches and makes of it, and the names by which it is found."""

from __future__ import annotations

import itertools

import pytest
import torch

from verifier.errors import ConfigError
from verifier.reference.gguf_types import round_blocks
from verifier.reference.layout import Layout
from verifier.reference.roundings import (
    round_asymmetric,
    round_fp8,
    round_fp8_blocks,
    round_full_range,
    round_mxfp4,
    round_nvfp4,
    round_searched,
    round_symmetric,
)
from verifier.reference.variants import (
    BANK,
    CLASS_MARGINS,
    VARIANTS,
    Settings,
    find_variant,
    input_widths,
    is_linear,
)

LAYERS = 30
LAYOUT = Layout(layers=LAYERS, hidden=768, sharing=3)


# -- variants ----------------------------------------------------------------------------------

#: Every group of the bank divides their widths; of few rows, which take less time.
SHAPES = {
    "q_proj": (96, 768), "k_proj": (64, 768), "v_proj": (64, 768), "o_proj": (96, 768),
    "gate_proj": (192, 768), "up_proj": (192, 768), "down_proj": (96, 1536),
}  # fmt: skip


def checkpoint() -> dict[str, torch.Tensor]:
    """One layer of a checkpoint with the names of Llama's, and what is around."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return 0.05 * torch.randn(*shape, generator=generator)

    found = {
        "model.embed_tokens.weight": draw(64, 768),
        "lm_head.weight": draw(64, 768),
        "model.norm.weight": draw(768),
    }
    at = "model.layers.0"
    found[f"{at}.input_layernorm.weight"] = draw(768)
    found[f"{at}.post_attention_layernorm.weight"] = draw(768)
    for name, shape in SHAPES.items():
        block = "self_attn" if name[0] in "qkvo" else "mlp"
        found[f"{at}.{block}.{name}.weight"] = draw(*shape)
    return found


PUBLISHED = checkpoint()
LINEAR = {name for name in PUBLISHED if "_proj" in name}
ROUNDED = [name for name, variant in VARIANTS.items() if variant.family not in ("layers", "cache")]
GGUF = {name for name in ROUNDED if name.startswith("gguf-")}
OUTSIDE = {"model.embed_tokens.weight", "lm_head.weight"}


def apply(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    build = find_variant(name, layers=LAYERS).build
    assert build is not None
    transform = build(LAYOUT)
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
    """Norms stay as published, and embeddings and the output head but in GGUF's builds; so do the
    tensors given."""
    given = {key: tensor.clone() for key, tensor in PUBLISHED.items()}
    found = apply(name, given)

    assert changed(found, PUBLISHED) == LINEAR | (OUTSIDE if name in GGUF else set())
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
    gguf = [f"gguf-{name}" for name in ("q8-0", "q6-k", "q5-k-m", "q4-k-m", "q3-k-m")]
    assert [errors[name] for name in gguf] == sorted(errors[name] for name in gguf)


def test_larger_groups_make_larger_errors() -> None:
    """One scale has more weights to serve."""
    for kind, groups in (("sym", (64, 96, 192)), ("asym", (32, 64, 96, 128, 192))):
        names = [f"int4-{kind}-g{group}" for group in groups] + [f"int4-{kind}-channel"]
        assert [error(name) for name in names] == sorted(map(error, names))
    assert error("int4-sym-g32") < error("int4-sym-g128")  # over all steps
    assert error("int4-asym-g128-mse") < error("int4-asym-g128")


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
        ("fp8-block128", lambda w: round_fp8_blocks(w, rows=128, columns=128)),
        ("int4-sym-g128", lambda w: round_full_range(w, bits=4, group=128)),
        ("int4-sym-g32", lambda w: round_full_range(w, bits=4, group=32)),
        ("int4-asym-g128", lambda w: round_asymmetric(w, bits=4, group=128)),
        ("int4-asym-g128-mse", lambda w: round_searched(w, bits=4, group=128)),
        ("nvfp4", round_nvfp4),
        ("mxfp4", round_mxfp4),
        ("int8-w8a8", lambda w: round_symmetric(w, bits=8, group=None)),
        ("fp8-w8a8", lambda w: round_fp8(w, per_channel=True)),
        ("fp8-block128-w8a8", lambda w: round_fp8_blocks(w, rows=128, columns=128)),
        ("gguf-q8-0", lambda w: round_blocks(w, "Q8_0")),
        ("gguf-q6-k", lambda w: round_blocks(w, "Q6_K")),
        ("gguf-q5-k-m", lambda w: round_blocks(w, "Q6_K")),  # the first layer gets more bits
        ("gguf-q4-k-m", lambda w: round_blocks(w, "Q6_K")),
        ("gguf-q3-k-m", lambda w: round_blocks(w, "Q5_K")),
        ("gguf-iq4-nl", lambda w: round_blocks(w, "Q5_K")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_variant_is_what_its_name_says(name: str, expected: object) -> None:
    """Bits, grouping and zero point."""
    assert callable(expected)
    key = "model.layers.0.mlp.down_proj.weight"

    assert torch.equal(apply(name, {key: PUBLISHED[key]})[key], expected(PUBLISHED[key]))


@pytest.mark.parametrize(
    ("mix", "kinds"),
    [
        ("gguf-q4-k-m", {"q_proj": "Q4_K", "v_proj": "Q4_K", "down_proj": "Q4_K"}),
        ("gguf-q3-k-m", {"q_proj": "Q3_K", "v_proj": "Q4_K", "down_proj": "Q4_K"}),
        ("gguf-iq4-nl", {"q_proj": "IQ4_NL", "v_proj": "IQ4_NL", "down_proj": "IQ4_NL"}),
    ],
)
def test_a_gguf_build_rounds_each_matrix_by_its_layer(mix: str, kinds: dict[str, str]) -> None:
    """Here the fourth of thirty; what types there are is held in a test of its own."""
    keys = {part: f"model.layers.4.{part}.weight" for part in kinds}
    given = dict.fromkeys(keys.values(), PUBLISHED["model.layers.0.mlp.down_proj.weight"])
    found = apply(mix, given)

    for part, kind in kinds.items():
        assert torch.equal(found[keys[part]], round_blocks(given[keys[part]], kind))


def test_the_embedding_of_a_gguf_build_is_rounded_as_the_head_where_it_is_one() -> None:
    """Else as its layers."""
    key = "model.embed_tokens.weight"
    build = VARIANTS["gguf-q4-k-m"].build
    assert build is not None
    apart, tied = (
        build(Layout(layers=LAYERS, hidden=768, tied=tied))(key, PUBLISHED[key])
        for tied in (False, True)
    )

    assert torch.equal(apart, round_blocks(PUBLISHED[key], "Q4_K"))
    assert torch.equal(tied, round_blocks(PUBLISHED[key], "Q6_K"))


# -- widths and settings -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.group > 1])
def test_a_width_that_a_build_cannot_take_is_refused_by_name(name: str) -> None:
    """With the group, the width and the tensor; predicted by the shapes alone."""
    group, key = VARIANTS[name].group, "model.layers.3.mlp.up_proj.weight"
    width = group + group // 2
    expected = (
        rf"weights variant '{name}': groups of {group} do not divide the input width {width} of "
        rf"{key}; leave it out of the bank"
    )
    with pytest.raises(ConfigError, match=f"^{expected}$"):
        apply(name, {key: torch.ones(4, width)})
    assert not VARIANTS[name].takes([4 * group, width])
    assert VARIANTS[name].takes([4 * group])


def test_the_bank_for_a_model_leaves_out_what_its_widths_do_not_allow() -> None:
    """In the order of the bank: here 576 and 1536, as of the embedded model."""
    shapes = {
        "model.layers.0.self_attn.q_proj.weight": (576, 576),
        "model.layers.0.mlp.down_proj.weight": (576, 1536),
        "model.layers.0.self_attn.q_proj.bias": (7,),
        "model.embed_tokens.weight": (49152, 31),
    }
    widths = input_widths(shapes)
    left_out = [name for name in BANK if not VARIANTS[name].takes(widths)]

    assert widths == {576, 1536}
    assert input_widths({"model.layers.0.mlp.experts.down_proj": (8, 576, 100)}) == {576, 100}
    assert {"int4-asym-g128-mse", "int4-asym-g128", "int4-sym-g128"} == set(left_out)
    assert all(VARIANTS[n].takes([100]) == (VARIANTS[n].group in (1, 2, 4)) for n in BANK)


def test_what_is_rounded_while_a_model_computes_is_a_setting() -> None:
    """Of W8A8 builds beside the weights; caches leave the weights as they are."""
    set_ = {name: v.settings for name, v in VARIANTS.items() if v.settings != Settings()}

    assert set_ == {
        "int8-w8a8": Settings(activations="int8-token"),
        "fp8-w8a8": Settings(activations="fp8-token"),
        "fp8-block128-w8a8": Settings(activations="fp8-g128"),
        "kv-fp8": Settings(kv_cache="fp8"),
        "kv-int4": Settings(kv_cache="int4"),
    }
    unbuilt = {name for name, v in VARIANTS.items() if v.build is None}
    assert unbuilt == {"kv-fp8", "kv-int4"}


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
    build = VARIANTS["drop-1"].build
    assert build is not None
    transform = build(Layout(layers=layers, hidden=768))
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
        ConfigError, match=f"no weights variant '{name}'; there are {next(iter(VARIANTS))}, "
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
