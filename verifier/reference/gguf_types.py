"""GGUF's block types as llama.cpp quantizes to them, and which tensor of a build gets which.

A matrix is put into the real blocks of its type and read back by the package gguf, so its values
lie on the grid that servers of such files compute with. The package quantizes to the plain types,
too; for the others the searches here do what llama.cpp does without an importance matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from verifier.reference.layout import Layout

if TYPE_CHECKING:
    import torch

#: Types by llama.cpp's own names.
BlockType = Literal[
    "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "IQ4_NL", "Q5_1", "Q5_0", "Q4_0", "F16"
]  # fmt: skip

#: Builds by llama.cpp's own names, and the type that most of their tensors have.
MIXES: Final[dict[str, BlockType]] = {
    "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K", "IQ4_NL": "IQ4_NL",
    "Q3_K_M": "Q3_K",
}  # fmt: skip

#: Values of one block where it is not of 32.
_BLOCK: Final[dict[BlockType, int]] = {"Q6_K": 256, "Q5_K": 256, "Q4_K": 256, "Q3_K": 256, "F16": 1}

#: What a tensor gets instead whose width the block does not divide.
_INSTEAD: Final[dict[BlockType, BlockType]] = {
    "Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "Q3_K": "Q4_0",
}  # fmt: skip

#: Parts of a decoder layer that some builds give other types, by the ends of their names.
_VALUES = re.compile(r"\.(?:v_proj|qkv_proj|kv_b_proj)\.weight$")
_KEYS = re.compile(r"\.k_proj\.weight$")
_ATTENDED = re.compile(r"\.o_proj\.weight$")
_DOWN = re.compile(r"(?:^|\.)(?:down_proj|w2)(?:\.weight)?$")

#: Matrices outside of the layers, which these builds quantize, too.
_EMBEDDING = re.compile(r"(?:^|\.)embed_tokens\.weight$")
_OUTPUT = re.compile(r"(?:^|\.)lm_head\.weight$")

#: Llama's model of so many layers has one value head for eight, which llama.cpp makes up for.
_LAYERS_OF_70B = 80
#: Mixtral's experts, whose few shared matrices get more bits.
_EXPERTS_OF_MIXTRAL = 8

#: Values that are quantized at once, which bounds the memory.
_AT_ONCE = 2**22

#: Magnitudes below it count as zero.
_LEAST = 1e-30

#: The levels of IQ4_NL.
_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


# -- which type --------------------------------------------------------------------------------


def is_outside(name: str) -> bool:
    """Whether a tensor is the embedding or the output head."""
    return bool(_EMBEDDING.search(name) or _OUTPUT.search(name))


def type_of(name: str, mix: str, *, layer: int | None, width: int, layout: Layout) -> BlockType:
    """The type of a tensor in a build without an importance matrix, by llama.cpp's rules."""
    base = MIXES[mix]
    if layer is None:
        last = bool(_OUTPUT.search(name)) or layout.tied
        wanted = _of_output(base, width) if last else base
    else:
        wanted = _of_layer(name, mix, base, layer, layout)
    if width % _BLOCK.get(wanted, 32) == 0:
        return wanted
    instead = _INSTEAD.get(wanted, "F16")
    return instead if width % 32 == 0 else "F16"


def _of_output(base: BlockType, width: int) -> BlockType:
    whole = width % _BLOCK.get(base, 32) == 0
    return "Q6_K" if whole and base != "Q8_0" else "Q8_0"


def _of_layer(name: str, mix: str, base: BlockType, layer: int, layout: Layout) -> BlockType:
    mixtral = layout.experts == _EXPERTS_OF_MIXTRAL
    if _VALUES.search(name):
        return "Q8_0" if mixtral else _of_values(mix, base, layer, layout)
    if _KEYS.search(name):
        return "Q8_0" if mixtral else base
    if _ATTENDED.search(name):
        if mixtral:
            return "Q5_K" if mix in ("Q4_K_M", "IQ4_NL", "Q3_K_M") else base
        return "Q4_K" if mix == "Q3_K_M" else base
    if _DOWN.search(name):
        if mix == "Q3_K_M":
            return "Q5_K" if layer < layout.layers // 16 else "Q4_K"
        if mix == "IQ4_NL":
            return "Q5_K" if layer < layout.layers // 8 else base
        return _with_more(mix, base, layer, layout)
    return base


def _of_values(mix: str, base: BlockType, layer: int, layout: Layout) -> BlockType:
    found = _with_more(mix, base, layer, layout)
    if mix == "Q3_K_M":
        found = "Q5_K" if layer < 2 else "Q4_K"
    elif mix == "IQ4_NL" and layout.sharing >= 4:
        found = "Q5_K"
    if layout.layers == _LAYERS_OF_70B and found in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return found


def _with_more(mix: str, base: BlockType, layer: int, layout: Layout) -> BlockType:
    """Two of the mixes give the first eighth of the layers, the last, and every third between them
    more bits."""
    eighth = layout.layers // 8
    more = layer < eighth or layer >= 7 * layout.layers // 8 or (layer - eighth) % 3 == 2
    return "Q6_K" if more and mix in ("Q5_K_M", "Q4_K_M") else base


# -- into blocks and back ----------------------------------------------------------------------


def round_blocks(weight: torch.Tensor, kind: BlockType) -> torch.Tensor:
    """Quantize to blocks of a type, and back."""
    import torch

    if kind == "F16":
        return weight.half().to(weight.dtype)
    block = _BLOCK.get(kind, 32)
    blocks = weight.float().reshape(-1, block)
    some = _AT_ONCE // block
    parts = [
        read_blocks(quantize(blocks[n : n + some], kind), kind) for n in range(0, len(blocks), some)
    ]
    return torch.cat(parts).reshape(weight.shape).to(weight)


def quantize(blocks: torch.Tensor, kind: BlockType) -> torch.Tensor:
    """Blocks [n, values] as the bytes [n, size] of their type."""
    import torch
    from gguf import GGMLQuantizationType, quants

    if kind in _SEARCHES:
        return _SEARCHES[kind](blocks)
    made = quants.quantize(blocks.cpu().numpy(), GGMLQuantizationType[kind])
    return torch.from_numpy(made)


def read_blocks(made: torch.Tensor, kind: BlockType) -> torch.Tensor:
    """What the bytes of blocks mean, by gguf's own reader."""
    import torch
    from gguf import GGMLQuantizationType, quants

    return torch.from_numpy(quants.dequantize(made.cpu().numpy(), GGMLQuantizationType[kind]))


# -- scales by search --------------------------------------------------------------------------


def _largest(x: torch.Tensor) -> torch.Tensor:
    """The value of the largest magnitude [n, 1], with its sign."""
    return x.gather(-1, x.abs().argmax(dim=-1, keepdim=True))


def _inverse(x: torch.Tensor) -> torch.Tensor:
    """1/x, and 0 for what counts as 0."""
    import torch

    return torch.where(x.abs() < _LEAST, 0.0, 1 / x)


def _best_scale(x: torch.Tensor, guesses: Iterable[torch.Tensor]) -> torch.Tensor:
    """The scale [n, 1] of the levels that fit best among guesses, all [n, values].

    Errors are weighted by the squares of the values; each guess has its own best scale.
    """
    import torch

    weight = x.square()
    scale = torch.zeros_like(x[:, :1])
    best = torch.full_like(scale, -1.0)
    for levels in guesses:
        product = (weight * x * levels).sum(dim=-1, keepdim=True)
        square = (weight * levels.square()).sum(dim=-1, keepdim=True)
        own = product * _inverse(square)
        better = own * product > best
        scale, best = torch.where(better, own, scale), torch.where(better, own * product, best)
    return scale


def _guess_integers(x: torch.Tensor, top: int) -> Iterator[torch.Tensor]:
    """Integers from -top to top - 1, over scales near the one that puts the largest at -top."""
    for step in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(top + 0.1 * step) * _inverse(_largest(x))
        yield (x * inverse).round().clamp(-top, top - 1)


def _guess_iq4_nl(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Levels of IQ4_NL, over scales near the one that puts the largest at the first."""
    import torch

    # the borders between levels are multiples of 1/2, so the half that a value lies in tells its
    # level: twice as fast as a search among them
    halves = torch.arange(-255.5, 256) / 2
    table = torch.tensor(_IQ4_NL, dtype=torch.float32)[_codes(halves)].to(x.device)
    for step in (0, *range(-7, 0), *range(1, 8)):
        scaled = x * ((_IQ4_NL[0] + step) * _inverse(_largest(x)))
        half = (2 * scaled).floor().clamp(-256, 255).int() + 256
        yield table.index_select(0, half.flatten()).reshape(x.shape)


def _codes(scaled: torch.Tensor) -> torch.Tensor:
    """The number of the nearest level of IQ4_NL."""
    import torch

    levels = torch.tensor(_IQ4_NL, dtype=torch.float32, device=scaled.device)
    return torch.bucketize(scaled.contiguous(), (levels[1:] + levels[:-1]) / 2)


def _descended(x: torch.Tensor, top: int) -> torch.Tensor:
    """The scale [n, 1] of integers from -top to top - 1, each moved while that helps."""
    import torch

    weight = x.square()
    levels = (x * -top * _inverse(_largest(x))).round().clamp(-top, top - 1)
    product = (weight * x * levels).sum(dim=-1)
    square = (weight * levels.square()).sum(dim=-1)
    for _ in range(5):
        for n in range(x.shape[-1]):
            w, one, level = weight[:, n], x[:, n], levels[:, n]
            without = product - w * one * level, square - w * level.square()
            moved = (one * without[1] * _inverse(without[0])).round().clamp(-top, top - 1)
            with_it = without[0] + w * one * moved, without[1] + w * moved.square()
            better = (without[0] > 0) & (moved != level) & (with_it[1] > 0)
            better &= with_it[0].square() * square > product.square() * with_it[1]
            levels[:, n] = torch.where(better, moved, level)
            product = torch.where(better, with_it[0], product)
            square = torch.where(better, with_it[1], square)
    return (product * _inverse(square))[:, None]


def _best_line(
    x: torch.Tensor, *, top: int, first: float, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and the least value, each [n, 1], of integers from 0 to top that fit best.

    The least value is 0 or below. Errors are weighted by the values' magnitudes beside the mean.
    """
    import torch

    weight = x.square().mean(dim=-1, keepdim=True).sqrt() + x.abs()
    low = x.amin(dim=-1, keepdim=True).clamp_max(0)
    inverse = _inverse(x.amax(dim=-1, keepdim=True) - low)
    scale, least = _inverse(top * inverse), low
    levels = ((x - low) * top * inverse).round().clamp(0, top)
    error = (weight * (scale * levels + low - x).square()).sum(dim=-1, keepdim=True)
    total, first_moment = weight.sum(dim=-1, keepdim=True), (weight * x).sum(dim=-1, keepdim=True)
    for step in range(steps + 1):
        levels = ((x - low) * (top + first + 0.1 * step) * inverse).round().clamp(0, top)
        one = (weight * levels).sum(dim=-1, keepdim=True)
        two = (weight * levels.square()).sum(dim=-1, keepdim=True)
        both = (weight * levels * x).sum(dim=-1, keepdim=True)
        spread = total * two - one.square()
        slope = (total * both - first_moment * one) * _inverse(spread)
        at_zero = (two * first_moment - one * both) * _inverse(spread)
        slope = torch.where(at_zero > 0, both * _inverse(two), slope)
        at_zero = at_zero.clamp_max(0)
        own = (weight * (slope * levels + at_zero - x).square()).sum(dim=-1, keepdim=True)
        better = (spread > 0) & (own < error)
        scale, least = torch.where(better, slope, scale), torch.where(better, at_zero, least)
        error = torch.where(better, own, error)
    return scale, least


# -- the bytes of each type --------------------------------------------------------------------


def _half(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A number [n, 1] in half precision: its two bytes, and its value."""
    import torch

    half = x.half()
    return half.view(torch.uint8), half.float()


def _bytes(*parts: torch.Tensor) -> torch.Tensor:
    """Whole numbers below 256, side by side."""
    import torch

    return torch.cat([part.to(torch.uint8).flatten(1) for part in parts], dim=-1)


def _packed(numbers: torch.Tensor, *, axis: int, bits: int) -> torch.Tensor:
    """Numbers of so many bits along an axis in one, the first lowest."""
    import torch

    shifts = bits * torch.arange(numbers.shape[axis], device=numbers.device)
    packed: torch.Tensor = (numbers.movedim(axis, -1) << shifts).sum(dim=-1)
    return packed


def _signed_scales(scale: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales [n, groups] as integers from -top to top - 1, and the block's scale of them [n, 1]."""
    inverse = -top * _inverse(_largest(scale))
    return (inverse * scale).round().clamp(-top, top - 1).int(), _inverse(inverse)


def _levels_of(blocks: torch.Tensor, scale: torch.Tensor, top: int) -> torch.Tensor:
    """Integers from -top to top - 1, stored as from 0, of blocks [n, 256] with 16 scales each."""
    levels = (blocks.reshape(-1, 16, 16) * _inverse(scale)[..., None]).round()
    return (levels.clamp(-top, top - 1) + top).int()


def _make_q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 groups of 16: 6 bits a value, 8 bits a scale."""
    groups = blocks.reshape(-1, 16)
    scale = _best_scale(groups, _guess_integers(groups, 32)).reshape(-1, 16)
    scales, whole = _signed_scales(scale, 128)
    stored, whole = _half(whole)
    q = _levels_of(blocks, whole * scales, 32)
    low = _packed(q.reshape(-1, 2, 2, 64) & 15, axis=2, bits=4)
    high = _packed(q.reshape(-1, 2, 4, 32) >> 4, axis=2, bits=2)
    return _bytes(low, high, scales & 255, stored)


def _make_line(blocks: torch.Tensor, *, bits: int) -> torch.Tensor:
    """8 groups of 32: 4 or 5 bits a value, 6 bits a scale and 6 a least value."""
    top = 2**bits - 1
    first, steps = {4: (-1.0, 20), 5: (-0.5, 15)}[bits]
    scale, least = _best_line(blocks.reshape(-1, 32), top=top, first=first, steps=steps)
    scales, stored, whole = _unsigned_scales(scale.reshape(-1, 8))
    offsets, stored_offset, whole_offset = _unsigned_scales(-least.reshape(-1, 8))
    shifted = blocks.reshape(-1, 8, 32) + (whole_offset * offsets)[..., None]
    q = (shifted * _inverse(whole * scales)[..., None]).round().clamp(0, top).int()
    packed = (
        scales[:, :4] | (scales[:, 4:] >> 4 << 6),
        offsets[:, :4] | (offsets[:, 4:] >> 4 << 6),
        (scales[:, 4:] & 15) | ((offsets[:, 4:] & 15) << 4),
    )
    low = _packed(q.reshape(-1, 4, 2, 32) & 15, axis=2, bits=4)
    high = () if bits == 4 else (_packed(q >> 4, axis=1, bits=1),)
    return _bytes(stored, stored_offset, *packed, *high, low)


def _unsigned_scales(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales [n, groups] as integers below 64, and the block's scale of them: bytes and value."""
    large = scale.amax(dim=-1, keepdim=True)
    stored, whole = _half(large / 63)
    return (63 * _inverse(large) * scale).round().clamp(0, 63).int(), stored, whole


def _make_q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 groups of 16: 3 bits a value, 6 bits a scale."""
    scale = _descended(blocks.reshape(-1, 16), 4).reshape(-1, 16)
    scales, whole = _signed_scales(scale, 32)
    stored, whole = _half(whole)
    q = _levels_of(blocks, whole * scales, 4)
    high = _packed(q.reshape(-1, 8, 32) >> 2, axis=1, bits=1)
    low = _packed(q.reshape(-1, 2, 4, 32) & 3, axis=2, bits=2)
    scales = scales + 32
    ends = _packed(scales.reshape(-1, 2, 8) & 15, axis=1, bits=4)
    tops = _packed(scales.reshape(-1, 4, 4) >> 4, axis=1, bits=2)
    return _bytes(high, low, ends, tops, stored)


def _make_iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    """32 values of 4 bits, each a level of one table, and a scale."""
    scale = _best_scale(blocks, _guess_iq4_nl(blocks))
    stored, _ = _half(scale)
    q = _codes(blocks * _inverse(scale))
    return _bytes(stored, _packed(q.reshape(-1, 2, 16), axis=1, bits=4))


_SEARCHES: Final[dict[BlockType, Callable[[torch.Tensor], torch.Tensor]]] = {
    "Q6_K": _make_q6_k,
    "Q5_K": partial(_make_line, bits=5),
    "Q4_K": partial(_make_line, bits=4),
    "Q3_K": _make_q3_k,
    "IQ4_NL": _make_iq4_nl,
}
