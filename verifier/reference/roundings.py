"""Roundings of one matrix [out, in], or of what it reads, and back to the precision it came in.

Each is a pure function of its values, as the formats define them. Scales stay within rows: a group,
block or token never looks at another. Knows no checkpoint and no engine.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

#: What a linear layer reads, rounded as it comes, each token by its own largest magnitude: to
#: float8 e4m3 (as vLLM does for W8A8 builds), the same in groups of 128 channels (DeepSeek's and
#: MiniMax's own way), or to 8-bit integers.
Activations = Literal["fp8-token", "fp8-g128", "int8-token"]

#: Keys (after the rotary embedding) and values, rounded as they enter the cache, so that attention
#: never reads others: to float8 e4m3 without a scale (vLLM's kv_cache_dtype fp8 where the
#: checkpoint gives none), or to 4-bit integers with a zero point per token and head (LMDeploy's
#: quant_policy 4). Queries and what attention makes of them stay as they are.
Cached = Literal["fp8", "int4"]

#: NF4 levels, QLoRA (Dettmers et al. 2023), appendix E.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

#: The largest value of float4 e2m1; the others are 0, 0.5, 1, 1.5, 2, 3, 4, and their negatives.
E2M1_MAX = 6.0

#: Shares of a group's range among which a search looks for the one with the least squared error.
SHARES = tuple(1 - n / 40 for n in range(21))

#: No scale is smaller: a group of zeros has one, too.
_LEAST = 1e-12


def _groups(weight: torch.Tensor, group: int | None) -> torch.Tensor:
    """View [out, in] as [rows, group]; None is one group per row."""
    width = weight.shape[-1] if group is None else group
    if weight.shape[-1] % width:
        raise ValueError(f"group {width} does not divide the input width {weight.shape[-1]}")
    return weight.reshape(-1, width)


# -- integers ----------------------------------------------------------------------------------


def round_symmetric(weight: torch.Tensor, *, bits: int, group: int | None) -> torch.Tensor:
    """Round to nearest on a symmetric integer grid with one scale per group, and back.

    The largest magnitude is the last of 2^(bits-1) - 1 steps.
    """
    rows = _groups(weight.float(), group)
    top = 2 ** (bits - 1) - 1
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(_LEAST) / top
    rounded: torch.Tensor = (rows / scale).round().clamp(-top - 1, top) * scale
    return rounded.reshape(weight.shape).to(weight.dtype)


def round_full_range(weight: torch.Tensor, *, bits: int, group: int | None) -> torch.Tensor:
    """The same as GPTQ and compressed-tensors do it: over all 2^bits steps.

    The largest magnitude lies half a step past the last one above zero.
    """
    rows = _groups(weight.float(), group)
    half = 2 ** (bits - 1)
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(_LEAST) / (half - 0.5)
    rounded: torch.Tensor = (rows / scale).round().clamp(-half, half - 1) * scale
    return rounded.reshape(weight.shape).to(weight.dtype)


def round_asymmetric(weight: torch.Tensor, *, bits: int, group: int | None) -> torch.Tensor:
    """Round to nearest on an integer grid with a zero point per group, and back."""
    rows = _groups(weight.float(), group)
    return _between(rows, bits, share=1.0).reshape(weight.shape).to(weight.dtype)


def round_searched(weight: torch.Tensor, *, bits: int, group: int | None) -> torch.Tensor:
    """The same over the share of each group's range that has the least squared error.

    What is outside of it is cut off. The search sees the weights alone: it is what error-optimising
    builds can do without calibration data.
    """
    import torch

    rows = _groups(weight.float(), group)
    best = _between(rows, bits, share=1.0)
    least = (best - rows).square().sum(dim=1, keepdim=True)
    for share in SHARES[1:]:
        tried = _between(rows, bits, share=share)
        error = (tried - rows).square().sum(dim=1, keepdim=True)
        best = torch.where(error < least, tried, best)
        least = torch.minimum(error, least)
    return best.reshape(weight.shape).to(weight.dtype)


def _between(rows: torch.Tensor, bits: int, *, share: float) -> torch.Tensor:
    """Each row on 2^bits steps between a share of its least and of its largest value."""
    low = rows.amin(dim=1, keepdim=True).clamp_max(0) * share
    high = rows.amax(dim=1, keepdim=True).clamp_min(0) * share
    scale = (high - low).clamp_min(_LEAST) / (2**bits - 1)
    zero = (-low / scale).round()
    found: torch.Tensor = (((rows / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale
    return found


# -- floats ------------------------------------------------------------------------------------


def round_fp8(weight: torch.Tensor, *, per_channel: bool) -> torch.Tensor:
    """Round to float8 e4m3 with the largest magnitude of a row, or of all, scaled to 448."""
    full = weight.float()
    largest = full.abs().amax(dim=-1, keepdim=True) if per_channel else full.abs().amax()
    return _scaled_e4m3(full, largest).to(weight.dtype)


def round_fp8_blocks(weight: torch.Tensor, *, rows: int, columns: int) -> torch.Tensor:
    """Round to float8 e4m3 with one scale per block; the last blocks may be smaller."""
    out, width = weight.shape
    blocks = blocks_of(weight.float(), rows=rows, columns=columns)
    rounded = _scaled_e4m3(blocks, blocks.abs().amax(dim=(1, 3), keepdim=True))
    whole = rounded.reshape(blocks.shape[0] * rows, blocks.shape[2] * columns)
    return whole[:out, :width].to(weight.dtype)


def blocks_of(matrix: torch.Tensor, *, rows: int, columns: int) -> torch.Tensor:
    """The blocks [out / rows, rows, in / columns, columns] of a matrix, the last filled with 0."""
    import torch

    out, width = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, -width % columns, 0, -out % rows))
    return padded.reshape(-(-out // rows), rows, -(-width // columns), columns)


def _scaled_e4m3(full: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    import torch

    scale = largest.clamp_min(_LEAST) / torch.finfo(torch.float8_e4m3fn).max
    return (full / scale).to(torch.float8_e4m3fn).float() * scale


def round_e4m3(values: torch.Tensor) -> torch.Tensor:
    """Round to float8 e4m3 as it is, without a scale; what is beyond its largest value is cut."""
    import torch

    top = torch.finfo(torch.float8_e4m3fn).max
    return values.float().clamp(-top, top).to(torch.float8_e4m3fn).to(values.dtype)


def round_nvfp4(weight: torch.Tensor) -> torch.Tensor:
    """Round to float4 e2m1, groups of 16 with a scale in e4m3, and one scale of these per tensor.

    The tensor's puts the scale of the group with the largest magnitude at 448.
    """
    import torch

    rows = _groups(weight.float(), 16)
    e4m3 = torch.finfo(torch.float8_e4m3fn)
    whole = e4m3.max * E2M1_MAX / rows.abs().amax().clamp_min(_LEAST)
    local = (whole * (rows.abs().amax(dim=1, keepdim=True) / E2M1_MAX)).clamp_max(e4m3.max)
    local = local.to(torch.float8_e4m3fn).float()
    # where no scale of e4m3 is small enough; the value is compressed-tensors' choice
    scale = torch.where(local == 0, 0.125, local) / whole
    return (_to_e2m1(rows / scale) * scale).reshape(weight.shape).to(weight.dtype)


def round_mxfp4(weight: torch.Tensor) -> torch.Tensor:
    """Round to float4 e2m1, groups of 32 with a power of two for a scale (OCP Microscaling).

    The scale is that of the largest magnitude after it is rounded to e2m1's own mantissa, as
    compressed-tensors and Quark do it: magnitudes up to a sixth beyond 6 are cut.
    """
    import torch

    rows = _groups(weight.float(), 32)
    mantissa, exponent = torch.frexp(rows.abs().amax(dim=1, keepdim=True))  # mantissa from 1/2 to 1
    power = exponent - 1 + (mantissa >= 0.875).int() - 2
    scale = torch.ldexp(torch.ones_like(mantissa), power.clamp(-127, 127))
    return (_to_e2m1(rows / scale) * scale).reshape(weight.shape).to(weight.dtype)


def _to_e2m1(values: torch.Tensor) -> torch.Tensor:
    """The nearest value of e2m1, ties to the even mantissa."""
    import torch

    size = values.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return ((values / step).round() * step).clamp(-E2M1_MAX, E2M1_MAX)


def round_nf4(weight: torch.Tensor, *, group: int | None) -> torch.Tensor:
    """Round to the nearest NF4 level times the group's largest magnitude, and back."""
    import torch

    rows = _groups(weight.float(), group)
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    edges = (levels[1:] + levels[:-1]) / 2
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(_LEAST)
    rounded = levels[torch.bucketize(rows / scale, edges)] * scale
    return rounded.reshape(weight.shape).to(weight.dtype)


# -- rotations ---------------------------------------------------------------------------------


@cache
def _rotation(width: int) -> torch.Tensor:
    """An orthogonal matrix [width, width], random but always the same."""
    import torch

    generator = torch.Generator().manual_seed(width)
    rotation: torch.Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    return rotation


def round_rotated(weight: torch.Tensor, *, bits: int, group: int | None) -> torch.Tensor:
    """Round after a fixed random rotation of the inputs, and rotate back (as QuaRot does)."""
    rotation = _rotation(weight.shape[-1]).to(weight.device)
    turned = weight.float() @ rotation
    back: torch.Tensor = round_symmetric(turned, bits=bits, group=group) @ rotation.T
    return back.to(weight.dtype)


# -- what a model computes ---------------------------------------------------------------------


def round_activations(values: torch.Tensor, kind: Activations) -> torch.Tensor:
    """Round what a linear layer reads [..., channels], each token by itself."""
    tokens = values.reshape(-1, values.shape[-1])
    if kind == "int8-token":
        return round_symmetric(values, bits=8, group=None)
    if kind == "fp8-token":
        return round_fp8(values, per_channel=True)
    return round_fp8_blocks(tokens, rows=1, columns=128).reshape(values.shape)


def round_cached(values: torch.Tensor, kind: Cached) -> torch.Tensor:
    """Round keys or values [..., tokens, channels of a head], each token and head by itself."""
    if kind == "fp8":
        return round_e4m3(values)
    return round_asymmetric(values, bits=4, group=None)
