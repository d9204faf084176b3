"""A published checkpoint's tensors, streamed through a weights variant.

Variants are functions on one matrix [out, in] at its full precision. This module finds those
matrices in the layouts in which checkpoints are published: one tensor per projection, experts one
by one or fused into one tensor, plain or in fp8 with scales. So a variant is defined once, for
every engine and layout. Knows no engine and no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from verifier.errors import ConfigError
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
_PACKED = ("_packed", "_blocks", ".qweight", ".weight_quant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the tensors of a checkpoint do not say of themselves."""

    layers: int
    hidden: int  # the width of the residual stream
    fp8_block: tuple[int, int] | None = None  # rows and columns that share an fp8 scale


class Streamed(NamedTuple):
    """One tensor on its way into an engine."""

    name: str
    tensor: torch.Tensor
    moved: bool  # whether its values differ from the published ones


def read_layout(config: Any) -> Layout:
    """The layout from a model's configuration, transformers' object or vLLM's.

    Raises ConfigError for one that does not say it.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    quantization: Any = getattr(config, "quantization_config", None) or {}
    try:
        if not isinstance(quantization, Mapping):
            quantization = quantization.to_dict()
        block = quantization.get("weight_block_size")
        rows, columns = (None, None) if block is None else map(int, block)
        layers, hidden = int(text.num_hidden_layers), int(text.hidden_size)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"config.json: num_hidden_layers, hidden_size or weight_block_size is missing or no "
            f"size ({error}); fetch the weights anew"
        ) from error
    return Layout(
        layers=layers,
        hidden=hidden,
        fp8_block=None if rows is None or columns is None else (rows, columns),
    )


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
    packed = next((name.removesuffix(e) for e in _PACKED if name.endswith(e)), None)
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
    out, width = full.shape
    padded = torch.nn.functional.pad(full.abs(), (0, -width % columns, 0, -out % rows))
    blocks = padded.reshape(-(-out // rows), rows, -(-width // columns), columns)
    largest = blocks.amax(dim=(1, 3)).clamp_min(1e-12)
    return (largest / torch.finfo(weight.dtype).max).reshape(old.shape)
