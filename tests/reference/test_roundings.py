"""Roundings of one matrix, each against a slow and obvious form, or another library's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from verifier.reference.roundings import (
    NF4_LEVELS,
    round_activations,
    round_asymmetric,
    round_cached,
    round_e4m3,
    round_fp8,
    round_fp8_blocks,
    round_full_range,
    round_mxfp4,
    round_nf4,
    round_nvfp4,
    round_rotated,
    round_searched,
    round_symmetric,
)

Array = NDArray[np.float64]


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
    "full range": lambda w: round_full_range(w, bits=4, group=64),
    "fp8-blocks": lambda w: round_fp8_blocks(w, rows=1, columns=64),
    "nvfp4": round_nvfp4,
    "mxfp4": round_mxfp4,
    "nf4": lambda w: round_nf4(w, group=64),
}


@pytest.mark.parametrize("name", sorted({*ROUNDINGS} - {"full range"}))
def test_rounding_what_is_rounded_changes_nothing(name: str) -> None:
    """Idempotent on its own grid, but for single precision; the full range has no step where its
    largest lies."""
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

    assert bool(same.all()) == (name not in ("fp8-tensor", "nvfp4"))


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


# -- as hosts' builds have them ----------------------------------------------------------------


def full_range_grid(bits: int) -> object:
    """2^bits steps, of which the group's largest magnitude is half of one beyond the last."""
    half = 2 ** (bits - 1)
    return lambda group: [n * np.abs(group).max() / (half - 0.5) for n in range(-half, half)]


@pytest.mark.parametrize("group", [48, 64, None])
def test_full_range_rounding_is_to_the_nearest_of_all_steps(group: int | None) -> None:
    """Against the grid written out; the largest may lie half way between two."""
    weight = weights(seed=20)
    found = round_full_range(weight, bits=4, group=group)
    expected = rounded_slowly(weight, full_range_grid(4), group)

    close((found - weight).abs(), np.abs(expected - weight.double().numpy()))


def test_a_searched_range_never_has_a_larger_error() -> None:
    """In no group; in most a smaller one, of no more levels."""
    weight = weights(40, 384, seed=21)
    plain = grouped(round_asymmetric(weight, bits=4, group=128) - weight, 128)
    found = round_searched(weight, bits=4, group=128)
    searched = grouped(found - weight, 128)
    pairs = [(np.square(a).sum(), np.square(b).sum()) for a, b in zip(searched, plain, strict=True)]

    assert all(a <= b * (1 + 1e-6) for a, b in pairs)
    assert np.mean([a < 0.99 * b for a, b in pairs]) > 0.5
    assert max(len(np.unique(np.round(g, 6))) for g in grouped(found, 128)) <= 16


def test_a_searched_range_cuts_what_costs_little() -> None:
    """By hand: with 0.95 of the range the 127 weights lie on the seventh of 15 steps."""
    weight = torch.full((1, 128), 0.95 * 7 / 15)
    weight[0, 5] = 1.0
    plain, found = (one(weight, bits=4, group=128) for one in (round_asymmetric, round_searched))

    assert (found - weight).square().sum() < 0.1 * (plain - weight).square().sum()


@pytest.mark.parametrize("shape", [(128, 256), (130, 300), (5, 7)], ids=str)
def test_fp8_blocks_have_each_their_own_scale(shape: tuple[int, int]) -> None:
    """As one rounding of each block by itself; the last ones are smaller where 128 divides not."""
    weight = weights(*shape, seed=22) if shape[1] > 7 else weights(5, 8)[:, :7]
    found = round_fp8_blocks(weight, rows=128, columns=128)
    for r in range(0, shape[0], 128):
        for c in range(0, shape[1], 128):
            block = weight[r : r + 128, c : c + 128]
            assert torch.equal(found[r : r + 128, c : c + 128], round_fp8(block, per_channel=False))


def test_fp8_without_a_scale_is_cut_at_its_ends() -> None:
    """By hand: steps of 1/8 above 1 and of 32 above 256; 448 is the last."""
    given = torch.tensor([1.0, 1.05, 1.07, 300.0, 1000.0, -1e9, 0.0])

    assert round_e4m3(given).tolist() == [1.0, 1.0, 1.125, 288.0, 448.0, -448.0, 0.0]


E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_mxfp4_by_hand() -> None:
    """The largest, 6.5, has the scale 1: it is cut to 6, and ties go to the even mantissa."""
    given = torch.zeros(1, 32)
    values = [6.5, -5.0, 2.5, 3.5, 0.25, 0.75, -1.75, 0.3, 5.1]
    given[0, : len(values)] = torch.tensor(values)
    expected = [6.0, -4.0, 2.0, 4.0, 0.0, 1.0, -2.0, 0.5, 6.0]

    assert round_mxfp4(given)[0, : len(values)].tolist() == expected


@pytest.mark.parametrize(("largest", "scale"), [(4.0, 1), (6.9, 1), (7.0, 2), (7.9, 2), (3.4, 0.5)])
def test_the_scale_of_mxfp4_is_the_power_of_two_of_the_rounded_largest(
    largest: float, scale: float
) -> None:
    """Magnitudes from 7/8 of a power upwards round to it in e2m1, so the next scale is theirs."""
    given = torch.zeros(1, 32)
    given[0, :2] = torch.tensor([largest, 0.5 * scale])
    found = round_mxfp4(given)[0]

    assert found[1] == 0.5 * scale
    assert found[0] in [scale * value for value in E2M1]


def test_nvfp4_by_hand() -> None:
    """A tensor's scale puts the largest group's at 448, another's is the nearest in e4m3."""
    given = torch.zeros(1, 32)
    given[0, 0], given[0, 1] = 6.0, 1.3
    given[0, 16], given[0, 17] = 0.6, 0.13
    found = round_nvfp4(given)[0]
    second = 44.0 / 448  # 0.1 of 448 lies between 44 and 48 in e4m3

    assert found[[0, 1]].tolist() == [6.0, 1.5]
    assert found[[16, 17]].tolist() == pytest.approx([6 * second, 1.5 * second])
    assert not found[2:16].any()


FLOATS = {"nvfp4": (round_nvfp4, 16), "mxfp4": (round_mxfp4, 32)}


@pytest.mark.parametrize("name", FLOATS)
def test_float4_has_no_more_than_15_values_in_a_group(name: str) -> None:
    """8 sizes with a sign, of which 0 has none; each is e2m1's times the group's scale."""
    rounding, group = FLOATS[name]
    found = grouped(rounding(weights(40, 192, seed=23)), group)
    sizes = [np.unique(np.abs(np.round(g, 9))) for g in found]

    assert max(len(np.unique(g)) for g in found) <= 15
    for of_group in sizes:
        scale = of_group.max() / np.array([6.0, 4.0])
        assert any(np.allclose(np.min(np.abs(of_group[:, None] / s - E2M1), axis=1), 0, atol=1e-4)
                   for s in scale)  # fmt: skip


@pytest.mark.parametrize("name", FLOATS)
def test_float4_is_as_near_as_its_mantissa_allows(name: str) -> None:
    """No weight that is not cut moves further than half of the step around it: a fourth of it."""
    rounding, group = FLOATS[name]
    weight = weights(40, 192, seed=24)
    found = rounding(weight)
    error, size = (found - weight).abs(), weight.abs()
    largest = size.reshape(-1, group).amax(dim=1, keepdim=True).repeat(1, group).reshape(40, 192)

    assert (error <= 0.25 * size + 0.27 * largest / 4).all()


# -- against compressed-tensors ----------------------------------------------------------------


def by_compressed_tensors(weight: torch.Tensor, **said: object) -> torch.Tensor:
    """What the library that vLLM loads such builds with makes of a weight, rounded to nearest."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

    args = QuantizationArgs.model_validate(said)
    group = args.group_size or weight.shape[-1]
    rows = weight.unflatten(-1, (-1, group))
    low, high = rows.amin(dim=-1), rows.amax(dim=-1)
    whole = None
    if args.strategy == "tensor_group":
        whole = generate_gparam(weight.min(), weight.max())
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    with torch.compiler.set_stance("force_eager"):  # its e2m1 is compiled, which needs a compiler
        found: torch.Tensor = fake_quantize(weight, scale, zero, args, global_scale=whole)
    return found


INT4 = {"num_bits": 4, "type": "int", "strategy": "group"}
FP4 = {"num_bits": 4, "type": "float"}


@pytest.mark.parametrize(
    ("rounding", "said"),
    [
        (lambda w: round_full_range(w, bits=4, group=128), INT4 | {"group_size": 128}),
        (lambda w: round_full_range(w, bits=4, group=32), INT4 | {"group_size": 32}),
        (
            lambda w: round_asymmetric(w, bits=4, group=128),
            INT4 | {"group_size": 128, "symmetric": False},
        ),
        (
            lambda w: round_fp8(w, per_channel=True),
            {"num_bits": 8, "type": "float", "strategy": "channel"},
        ),
        (
            round_nvfp4,
            FP4
            | {
                "strategy": "tensor_group",
                "group_size": 16,
                "scale_dtype": "torch.float8_e4m3fn",
                "zp_dtype": "torch.float8_e4m3fn",
            },
        ),
        (
            round_mxfp4,
            FP4 | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8",
                   "zp_dtype": "torch.uint8"},
        ),
    ],
    ids=["int4-g128", "int4-g32", "int4-asym-g128", "fp8-channel", "nvfp4", "mxfp4"],
)  # fmt: skip
def test_roundings_are_those_of_compressed_tensors(
    rounding: object, said: dict[str, object]
) -> None:
    """But for single precision, and a value in ten thousand that lies between two levels."""
    assert callable(rounding)
    weight = weights(64, 384, seed=25)
    found, theirs = rounding(weight), by_compressed_tensors(weight, **said)
    off = ~torch.isclose(found, theirs, rtol=1e-4, atol=1e-7)

    assert float(off.float().mean()) <= 1e-4


# -- what a model computes ---------------------------------------------------------------------

ACTIVATIONS = ("fp8-token", "fp8-g128", "int8-token")


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_each_token_is_rounded_by_itself(kind: str) -> None:
    """Whatever stands beside it in the batch, to the bit."""
    batch = weights(12, 320, seed=26).reshape(3, 4, 320)
    batch[1] *= 1000
    found = round_activations(batch, kind)
    alone = [round_activations(batch[i, t][None, None], kind) for i in range(3) for t in range(4)]

    assert torch.equal(found.reshape(12, 320), torch.cat(alone).reshape(12, 320))
    assert not torch.equal(found, batch)


def test_activations_are_rounded_as_their_names_say() -> None:
    """Per token to e4m3 or 8-bit integers, or in groups of 128; the last may be smaller."""
    tokens = weights(4, 320, seed=27)
    groups = [round_fp8(part, per_channel=True) for part in tokens.split(128, dim=1)]

    assert torch.equal(round_activations(tokens, "fp8-token"), round_fp8(tokens, per_channel=True))
    assert torch.equal(round_activations(tokens, "fp8-g128"), torch.cat(groups, dim=1))
    assert torch.equal(
        round_activations(tokens, "int8-token"), round_symmetric(tokens, bits=8, group=None)
    )


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_cached_keys_and_values_are_rounded_by_token_and_head(kind: str) -> None:
    """[batch, heads, tokens, channels]: none looks at another, and once rounded they stay."""
    held = weights(24, 64, seed=28).reshape(2, 3, 4, 64)
    found = round_cached(held, kind)

    assert torch.equal(found[1, 2, 3], round_cached(held[1:2, 2:3, 3:], kind)[0, 0, 0])
    torch.testing.assert_close(round_cached(found, kind), found, rtol=1e-5, atol=1e-7)
    assert (found - held).norm() < {"fp8": 0.04, "int4": 0.15}[kind] * held.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_model_computes_keeps_its_precision(dtype: torch.dtype) -> None:
    """Whatever the rounding computes in."""
    held = weights(4, 64).to(dtype)

    assert {round_activations(held, kind).dtype for kind in ACTIVATIONS} == {dtype}
    assert {round_cached(held, kind).dtype for kind in ("fp8", "int4")} == {dtype}
