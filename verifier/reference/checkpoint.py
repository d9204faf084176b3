"""A published checkpoint's tensors, streamed through a weights variant.

Variants are functions on one matrix [out, in] at its full precision. This module finds those
matrices in the layouts in which checkpoints are published: one tensor per projection, experts one
by one or fused into one tensor, plain or in fp8 with scales. So a variant is defined once, for
every engine and layout. It also gives quantized weights as the real numbers that they stand for.
Knows no engine and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from verifier.errors import ConfigError
from verifier.reference.layout import Layout
from verifier.reference.roundings import blocks_of
from verifier.reference.variants import Transform, is_linear, reads_hidden

if TYPE_CHECKING:
    import torch

#: How checkpoints name the scales of an fp8 weight, after the weight's own name less ".weight".
#: The first is DeepSeek's and MiniMax's (one per block), the second compressed-tensors' (one per
#: channel or tensor). Both multiply: weight = fp8 * scale.
SCALES = (".weight_scale_inv", ".weight_scale")

#: What an engine says of a variant that moved no tensor.
NOTHING_MOVED = (
    "weights variant {name!r} changes nothing in this checkpoint: its linear layers have other "
    "names, or lie on the grid of the rounding; leave it out of the bank"
)

#: Endings of tensors that hold weights packed into integers.
PACKED = (".weight_packed", "_packed", "_blocks", ".qweight", ".weight_quant")


class Streamed(NamedTuple):
    """One tensor on its way into an engine."""

    name: str
    tensor: torch.Tensor
    moved: bool  # whether its values differ from the published ones


def transformed(
    published: Iterable[tuple[str, torch.Tensor]],
    transform: Transform,
    layout: Layout,
    *,
    device: Any = "cpu",
) -> Iterator[Streamed]:
    """Every tensor of a checkpoint under a variant, computed on `device` one matrix at a time.

    A weight in fp8 is rounded from its de-quantised values and stated in fp8 again, with scales of
    the same shape: that adds rounding of the published kind to the variant's own. What a variant
    leaves alone is passed on untouched. Raises ConfigError for a tensor that cannot be rounded.
    """
    halves: dict[str, dict[str, torch.Tensor]] = {}  # of fp8 weights whose other half is to come
    for name, tensor in published:
        stem, half = _half(name, tensor)
        if half is None:
            yield _plain(name, tensor, transform, layout, device)
            continue
        found = halves.setdefault(stem, {})
        found[half] = tensor
        if len(found) == 2:
            yield from _fp8(stem, halves.pop(stem), transform, layout, device)
    if halves:
        stem = min(halves)
        raise ConfigError(
            f"weights variant: {stem}.weight is in fp8, but its {' or '.join(SCALES)} is not in "
            "the checkpoint; it cannot be rounded in place, leave weights variants out of the bank"
        )


def _half(name: str, tensor: torch.Tensor) -> tuple[str, str | None]:
    """The stem of an fp8 weight in a linear layer, and which half of it this is."""
    for ending in SCALES:
        stem = name.removesuffix(ending)
        if stem != name and is_linear(f"{stem}.weight"):
            return stem, ending
    if str(tensor.dtype).startswith("torch.float8") and is_linear(name):
        return name.removesuffix(".weight"), ".weight"
    return name, None


def _plain(
    name: str, tensor: torch.Tensor, transform: Transform, layout: Layout, device: Any
) -> Streamed:
    packed = next((name.removesuffix(e) for e in PACKED if name.endswith(e)), None)
    if packed is not None and (is_linear(packed) or is_linear(f"{packed}.weight")):
        raise ConfigError(
            f"weights variant: {name} is packed into integers, so it is not rounded in place; "
            "leave weights variants out of the bank, and name real checkpoints in the card"
        )
    changed = _apply(name, tensor, transform, layout, device)
    return Streamed(name, tensor if changed is None else changed, changed is not None)


def _apply(
    name: str, tensor: torch.Tensor, transform: Transform, layout: Layout, device: Any
) -> torch.Tensor | None:
    """The tensor under a variant, or None when that changes nothing."""
    import torch

    turned = tensor.ndim == 3 and is_linear(name) and _inputs_first(name, tensor, layout)
    parts = []
    moved = False
    for matrix in tensor if tensor.ndim == 3 and is_linear(name) else (tensor,):
        before = (matrix.T if turned else matrix).to(device)
        after = transform(name, before)
        if after is before:
            return None  # a variant decides by the name, so for the other experts too
        moved = moved or not torch.equal(after, before)
        parts.append((after.T if turned else after).to(tensor.device))
    if not moved:
        return None
    return torch.stack(parts) if tensor.ndim == 3 else parts[0]


def _inputs_first(name: str, tensor: torch.Tensor, layout: Layout) -> bool:
    """Whether the matrices of fused experts lie as [in, out]; published models do both."""
    wide = layout.hidden
    rows, columns = tensor.shape[1] == wide, tensor.shape[2] == wide
    if rows == columns:
        raise ConfigError(
            f"weights variant: the shape {tuple(tensor.shape)} of {name} does not tell inputs from "
            "outputs; it cannot be rounded in place, leave weights variants out of the bank"
        )
    return rows if reads_hidden(name) else columns


# -- quantized weights as real numbers -----------------------------------------------------------

#: The quantizations that are read here; others are left to transformers.
_READ = ("fp8", "compressed-tensors")

#: What of a compressed-tensors weight the arithmetic needs beside its scale, by its format.
_PACKED_PARTS = {
    "pack-quantized": (".weight_packed", ".weight_shape"),
    "nvfp4-pack-quantized": (".weight_packed", ".weight_global_scale"),
    "mxfp4-pack-quantized": (".weight_packed",),
    "int-quantized": (".weight",),
    "float-quantized": (".weight",),
    "naive-quantized": (".weight",),
}

#: Of arithmetic on activations and caches, which the weights' values do not depend on.
_NO_WEIGHTS = (".input_scale", ".input_global_scale", ".k_scale", ".v_scale", ".activation_scale")


def stands_for_numbers(quantization: Mapping[str, Any]) -> bool:
    """Whether `dequantized` reads a checkpoint's quantization_config."""
    return quantization.get("quant_method") in _READ


def dequantized(
    published: Iterable[tuple[str, torch.Tensor]], quantization: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a quantized checkpoint in float32, those that are plain as they are.

    `quantization` is the checkpoint's quantization_config; of none, or one that is not read here,
    everything is passed on. No rounding is added: a value is its integer or fp8 number times its
    scale, exactly so far as float32 holds it. Raises ConfigError for a weight that lacks a part and
    for a scheme that is not known.
    """
    if not stands_for_numbers(quantization):
        yield from published
        return
    read, needed = _reader(quantization)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in published:
        stem, part = _part(name, tensor)
        if part is None:
            yield name, tensor
        elif any(part in alternatives for alternatives in needed):  # others say nothing of values
            found = halves.setdefault(stem, {})
            found[part] = tensor
            if all(any(p in found for p in alternatives) for alternatives in needed):
                yield f"{stem}.weight", read(halves.pop(stem))
    if halves:
        stem = min(halves)
        lacks = next(a for a in needed if not any(p in halves[stem] for p in a))
        raise ConfigError(
            f"{stem}{lacks[0]}: is not in the checkpoint, so what {stem} weighs is unknown; fetch "
            "the weights anew"
        )


def _part(name: str, tensor: torch.Tensor) -> tuple[str, str | None]:
    """The stem of a quantized weight and which part of it a tensor is; None: of none."""
    for ending in (*_NO_WEIGHTS, *SCALES, ".weight_packed", ".weight_shape",
                   ".weight_zero_point", ".weight_g_idx", ".weight_global_scale"):  # fmt: skip
        if name.endswith(ending):
            return name.removesuffix(ending), ending
    narrow = str(tensor.dtype).startswith("torch.float8") or str(tensor.dtype) == "torch.int8"
    if narrow and name.endswith(".weight"):
        return name.removesuffix(".weight"), ".weight"
    return name, None


def _reader(
    quantization: Mapping[str, Any],
) -> tuple[Callable[[Mapping[str, torch.Tensor]], torch.Tensor], list[tuple[str, ...]]]:
    """What makes a weight of its parts, and the parts that it takes (of each tuple one)."""
    if quantization["quant_method"] == "fp8":
        block = quantization.get("weight_block_size")
        layout = Layout(layers=0, hidden=0, fp8_block=tuple(block) if block else None)

        def times_scale(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
            scale = next(part for ending, part in parts.items() if ending in SCALES)
            return parts[".weight"].float() * _spread(scale, parts[".weight"], layout)

        return times_scale, [(".weight",), SCALES]
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    groups = list((quantization.get("config_groups") or {}).values())
    kinds = {group.get("format") or quantization.get("format") for group in groups}
    schemes = [QuantizationScheme.model_validate(group) for group in groups]
    weights = [scheme.weights for scheme in schemes]
    kind = next(iter(kinds)) if len(kinds) == 1 else None
    if kind not in _PACKED_PARTS or any(one != weights[0] for one in weights) or not weights[0]:
        formats = ", ".join(sorted(map(str, kinds)))
        raise ConfigError(
            f"config.json: quantization_config has the formats {formats} in {len(groups)} groups; "
            f"read are checkpoints of one of {', '.join(_PACKED_PARTS)}, all weights alike: "
            "give an unquantized checkpoint, or use --engine vllm"
        )
    arithmetic = BaseCompressor.get_value_from_registry(kind)
    needed: list[tuple[str, ...]] = [(part,) for part in (*_PACKED_PARTS[kind], ".weight_scale")]
    if not weights[0].symmetric:
        needed.append((".weight_zero_point",))
    if str(getattr(weights[0].actorder, "value", weights[0].actorder)) == "group":
        needed.append((".weight_g_idx",))

    def decompress(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        plain = {name.removeprefix("."): part for name, part in parts.items()}
        if plain["weight_scale"].is_floating_point() and plain["weight_scale"].element_size() > 1:
            plain["weight_scale"] = plain["weight_scale"].float()  # the product is not rounded
        made: torch.Tensor = arithmetic.decompress(plain, schemes[0])["weight"]
        return made.float()

    return decompress, needed


# -- fp8 ---------------------------------------------------------------------------------------


def _fp8(
    stem: str,
    halves: Mapping[str, torch.Tensor],
    transform: Transform,
    layout: Layout,
    device: Any,
) -> Iterator[Streamed]:
    weight = halves[".weight"]
    ending = next(half for half in halves if half != ".weight")
    scale = halves[ending]
    spread = _spread(scale.to(device), weight, layout)
    full = weight.to(device).float() * spread
    rounded = _apply(f"{stem}.weight", full, transform, layout, device)
    if rounded is None:
        yield Streamed(f"{stem}.weight", weight, False)
        yield Streamed(stem + ending, scale, False)
        return
    new_scale = _scales(rounded, scale, weight, layout)
    again = (rounded / _spread(new_scale, weight, layout)).to(weight.dtype)
    yield Streamed(f"{stem}.weight", again.to(weight.device), True)
    yield Streamed(stem + ending, new_scale.to(scale.dtype).to(scale.device), True)


def _block(scale: torch.Tensor, weight: torch.Tensor, layout: Layout) -> tuple[int, int]:
    """Rows and columns of the weight [out, in] that share one scale."""
    out, width = weight.shape
    if scale.numel() == 1:
        return out, width
    if scale.shape == (out, 1) or scale.shape == (out,):
        return 1, width
    if scale.ndim == 2 and layout.fp8_block is not None:
        return layout.fp8_block
    raise ConfigError(
        f"weights variant: fp8 scales of shape {tuple(scale.shape)} for a weight of shape "
        f"{tuple(weight.shape)} are not known; leave weights variants out of the bank"
    )


def _spread(scale: torch.Tensor, weight: torch.Tensor, layout: Layout) -> torch.Tensor:
    """One scale for every element [out, in]."""
    rows, columns = _block(scale, weight, layout)
    out, width = weight.shape
    above, across = -(-out // rows), -(-width // columns)
    if scale.numel() != above * across:
        raise ConfigError(
            f"weights variant: fp8 scales of shape {tuple(scale.shape)} do not fit blocks of "
            f"{rows} x {columns} in a weight of shape {tuple(weight.shape)}; fetch it anew"
        )
    grid = scale.float().reshape(above, across)
    return grid.repeat_interleave(rows, 0)[:out].repeat_interleave(columns, 1)[:, :width]


def _scales(
    full: torch.Tensor, old: torch.Tensor, weight: torch.Tensor, layout: Layout
) -> torch.Tensor:
    """Scales of the old shape that put the largest magnitude of each block at fp8's largest."""
    import torch

    rows, columns = _block(old, weight, layout)
    blocks = blocks_of(full.abs(), rows=rows, columns=columns)
    largest = blocks.amax(dim=(1, 3)).clamp_min(1e-12)
    return (largest / torch.finfo(weight.dtype).max).reshape(old.shape)
