"""The bank: each rounding against a slow and obvious form, and what each variant touches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from verifier.errors import ConfigError
from verifier.reference.variants import (
    BANK,
    CLASS_MARGINS,
    NF4_LEVELS,
    VARIANTS,
    find_variant,
    is_linear,
    round_asymmetric,
    round_fp8,
    round_nf4,
    round_rotated,
    round_symmetric,
)

Array = NDArray[np.float64]

LAYERS = 30


def weights(rows: int = 6, width: int = 192, *, seed: int = 0) -> torch.Tensor:
    """Random weights of the usual size, with one input channel of outliers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = 0.05 * torch.randn(rows, width, generator=generator)
    drawn[:, 7] *= 8
    return drawn


def grouped(weight: torch.Tensor, group: int | None) -> list[Array]:
    """The groups that share one scale, in order."""
    width = group or weight.shape[-1]
    return [
        row[start : start + width]
        for row in weight.double().numpy()
        for start in range(0, len(row), width)
    ]


def nearest(values: Array, grid: list[float]) -> Array:
    levels = np.array(grid)
    return levels[np.abs(values[:, None] - levels).argmin(axis=1)]


def rounded_slowly(weight: torch.Tensor, grid_of: object, group: int | None) -> Array:
    """Every weight to the nearest point of its own group's grid."""
    assert callable(grid_of)
    found = [nearest(g, grid_of(g)) for g in grouped(weight, group)]
    return np.array(found).reshape(weight.shape)


def symmetric_grid(bits: int) -> object:
    """2^bits - 1 steps around 0; the group's largest magnitude is the last."""
    top = 2 ** (bits - 1) - 1
    return lambda group: [n * np.abs(group).max() / top for n in range(-top, top + 1)]


def asymmetric_grid(bits: int) -> object:
    """2^bits steps from about the group's least to its largest; 0 is one of them."""

    def grid(group: Array) -> list[float]:
        low, high = min(group.min(), 0.0), max(group.max(), 0.0)
        step = (high - low) / (2**bits - 1)
        zero = round(-low / step)
        return [(n - zero) * step for n in range(2**bits)]

    return grid


def nf4_grid(group: Array) -> list[float]:
    return [level * np.abs(group).max() for level in NF4_LEVELS]


def e4m3_values() -> list[float]:
    """All finite values of float8 e4m3fn, from its definition (Micikevicius et al. 2022).

    4 bits of exponent with bias 7, 3 of mantissa; exponent 0 is subnormal; the last code is NaN.
    """
    codes = list(itertools.product(range(16), range(8)))[:-1]
    sizes = [m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e, m in codes]
    return [-s for s in reversed(sizes)] + sizes


def fp8_grid(group: Array) -> list[float]:
    return [value * np.abs(group).max() / 448 for value in e4m3_values()]


def close(found: torch.Tensor, expected: Array) -> None:
    """Equal but for single precision."""
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-8)


# -- rounding ----------------------------------------------------------------------------------

GROUPS = [48, 64, None]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_rounding_is_to_the_nearest_step_of_each_group(
    bits: int, group: int | None
) -> None:
    """Against the grid written out."""
    weight = weights(seed=bits)
    found = round_symmetric(weight, bits=bits, group=group)

    close(found, rounded_slowly(weight, symmetric_grid(bits), group))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shift", [0.0, 0.5, -0.5], ids=["around 0", "above 0", "below 0"])
def test_asymmetric_rounding_is_to_the_nearest_step_of_each_group(
    bits: int, group: int | None, shift: float
) -> None:
    """Against the grid written out, also where a group's weights have one sign."""
    weight = weights(seed=bits) + shift
    found = round_asymmetric(weight, bits=bits, group=group)

    close(found, rounded_slowly(weight, asymmetric_grid(bits), group))


@pytest.mark.parametrize("group", GROUPS)
def test_nf4_rounding_is_to_the_nearest_level_of_each_group(group: int | None) -> None:
    """Against the levels times the group's largest magnitude."""
    weight = weights(seed=4)

    close(round_nf4(weight, group=group), rounded_slowly(weight, nf4_grid, group))


@pytest.mark.parametrize("per_channel", [True, False])
def test_fp8_rounding_is_to_the_nearest_value_of_e4m3(per_channel: bool) -> None:
    """Against all its values written out, the largest of a channel or tensor scaled to 448."""
    weight = weights(seed=5)
    one_group = weight if per_channel else weight.reshape(1, -1)
    expected = rounded_slowly(one_group, fp8_grid, None).reshape(weight.shape)

    close(round_fp8(weight, per_channel=per_channel), expected)


@pytest.mark.parametrize("per_channel", [True, False])
def test_fp8_rounding_is_a_round_trip_through_the_type_itself(per_channel: bool) -> None:
    """Every value, divided by its scale, is one that float8_e4m3fn holds exactly."""
    weight = weights(40, 576, seed=6)
    largest = weight.abs().amax(dim=1, keepdim=True) if per_channel else weight.abs().max()
    scale = largest / 448
    found = round_fp8(weight, per_channel=per_channel)
    held = (found / scale).to(torch.float8_e4m3fn).float() * scale

    torch.testing.assert_close(found, held, rtol=0, atol=0)
    assert found.isfinite().all()


def test_e4m3_has_253_values_up_to_448() -> None:
    """2 x 127 finite codes, of which two are 0; the oracle above and torch's agree."""
    values = e4m3_values()

    assert len(set(values)) == 253
    assert max(values) == torch.finfo(torch.float8_e4m3fn).max == 448
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert set(codes[codes.isfinite()].tolist()) == set(values)


def test_nf4_levels_are_sixteen_sorted_values_from_minus_one_to_one() -> None:
    """QLoRA, appendix E: 0 is exact, and there is one more level above 0 than below."""
    assert len(NF4_LEVELS) == 16
    assert list(NF4_LEVELS) == sorted(set(NF4_LEVELS))
    assert (NF4_LEVELS[0], NF4_LEVELS[7], NF4_LEVELS[-1]) == (-1.0, 0.0, 1.0)
    assert {-x for x in NF4_LEVELS[:7]} & set(NF4_LEVELS[8:]) == {1.0}


def test_nf4_levels_are_quantiles_of_a_normal() -> None:
    """The construction of bitsandbytes: 8 and 9 even quantiles up to 0.9677083, scaled to 1."""
    from scipy.stats import norm

    top = 0.9677083
    above = norm.ppf(np.linspace(top, 0.5, 9))[:-1]
    below = -norm.ppf(np.linspace(top, 0.5, 8))[:-1]
    levels = np.sort([*above, 0.0, *below]) / norm.ppf(top)

    np.testing.assert_allclose(NF4_LEVELS, levels, atol=1e-5)


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        (15, round_symmetric(weights(40, 576), bits=4, group=192)),
        (7, round_symmetric(weights(40, 576), bits=3, group=192)),
        (16, round_asymmetric(weights(40, 576), bits=4, group=192)),
        (4, round_asymmetric(weights(40, 576), bits=2, group=192)),
        (16, round_nf4(weights(40, 576), group=192)),
    ],
    ids=["int4", "int3", "int4 with zero", "int2 with zero", "nf4"],
)
def test_a_group_has_no_more_levels_than_its_bits_allow(levels: int, found: torch.Tensor) -> None:
    """And some group uses all of them; 0 is one."""
    groups = [np.round(g, 6) for g in grouped(found, 192)]

    assert max(len(np.unique(g)) for g in groups) == levels
    assert any(0.0 in g for g in groups)


ROUNDINGS = {
    "symmetric": lambda w: round_symmetric(w, bits=4, group=64),
    "asymmetric": lambda w: round_asymmetric(w, bits=4, group=64),
    "fp8-channel": lambda w: round_fp8(w, per_channel=True),
    "fp8-tensor": lambda w: round_fp8(w, per_channel=False),
    "nf4": lambda w: round_nf4(w, group=64),
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_rounding_what_is_rounded_changes_nothing(name: str) -> None:
    """Idempotent on its own grid, but for single precision."""
    once = ROUNDINGS[name](weights(seed=9))

    torch.testing.assert_close(ROUNDINGS[name](once), once, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ROUNDINGS)
def test_weights_of_zero_stay_zero(name: str) -> None:
    """A scale of zero divides nothing."""
    assert torch.equal(ROUNDINGS[name](torch.zeros(2, 128)), torch.zeros(2, 128))


@pytest.mark.parametrize("name", ROUNDINGS)
def test_a_group_never_looks_at_another(name: str) -> None:
    """Scaling one channel scales its rounding alone; a scale per tensor is shared on purpose."""
    weight = weights(seed=10)
    louder = weight.clone()
    louder[2] *= 37
    same = ROUNDINGS[name](louder)[0] == ROUNDINGS[name](weight)[0]

    assert bool(same.all()) == (name != "fp8-tensor")


@pytest.mark.parametrize("rounding", [round_symmetric, round_asymmetric, round_rotated])
def test_a_group_that_does_not_divide_the_width_is_an_error(rounding: object) -> None:
    """Not a group across two channels."""
    assert callable(rounding)
    with pytest.raises(ValueError, match="group 64 does not divide the input width 96"):
        rounding(weights(4, 96), bits=4, group=64)
    with pytest.raises(ValueError, match="group 64 does not divide the input width 96"):
        round_nf4(weights(4, 96), group=64)


def test_rotated_rounding_turns_the_inputs_back() -> None:
    """With enough bits nothing is left of the rotation."""
    weight = weights(seed=11)

    torch.testing.assert_close(
        round_rotated(weight, bits=20, group=64), weight, rtol=1e-4, atol=1e-5
    )


def test_rotated_rounding_is_always_the_same() -> None:
    """The rotation is fixed, and leaves torch's global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = torch.random.get_rng_state()
        first = round_rotated(weights(seed=12), bits=4, group=64)
        second = round_rotated(weights(seed=12), bits=4, group=64)

        assert torch.equal(first, second)
        assert torch.equal(torch.random.get_rng_state(), state)


def test_rotated_rounding_suffers_less_from_outliers() -> None:
    """What rotations are for (QuaRot, Ashkboos et al. 2024)."""
    weight = weights(40, 192, seed=13)
    plain = (round_symmetric(weight, bits=4, group=None) - weight).norm()
    rotated = (round_rotated(weight, bits=4, group=None) - weight).norm()

    assert rotated < 0.7 * plain


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
