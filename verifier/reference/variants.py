"""Named departures from the published weights, as functions on checkpoint tensors.

Each variant maps (tensor name, tensor) to a tensor of the same shape and dtype, so it is defined
once for every engine. Only the linear layers of the decoder blocks are touched, as AWQ, GPTQ and
FP8 builds do; embeddings, norms and the output head stay as published. Knows no engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from verifier.errors import ConfigError
from verifier.records import REFERENCE

if TYPE_CHECKING:
    import torch

Family = Literal["int8", "fp8", "4-bit", "3-bit", "2-bit", "layers"]
Transform = Callable[[str, "torch.Tensor"], "torch.Tensor"]

_LAYER = re.compile(r"\.layers\.(\d+)\.")
#: Projections of attention and feed-forward layers, as checkpoints name them: Llama's and those
#: after it (q_proj, down_proj, fused qkv_proj), DeepSeek's latent ones (q_a_proj,
#: kv_a_proj_with_mqa), linear attention's (in_proj_qkvz, out_proj), Mixtral's and MiniMax's
#: experts (w1, w2, w3), and experts fused into one tensor without ".weight" (gate_up_proj).
#: Routers (mlp.gate) stay as published, as in the builds that hosts serve.
_LINEAR = re.compile(
    r"\.(?:(?:\w+_)?proj(?:_with_mqa|_qkvz|_ba|_qkv|_[abz])?|w[123])\.weight$"
    r"|\.experts\.(?:gate_up|gate|up|down)_proj$"
)
#: Parts of a model that read pictures and sounds, which hosts leave as published.
_TOWERS = ("vision", "visual", "audio")

#: Those that write into the residual stream, with their biases.
_WRITES = re.compile(r"\.(?:o_proj|out_proj|down_proj|w2)(?:\.weight|\.bias|_bias)?$")
#: Experts' projections that read from it.
_READS = re.compile(r"\.experts\.(?:gate_up|gate|up)_proj$")

#: NF4 levels, QLoRA (Dettmers et al. 2023), appendix E.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One departure from the published weights.

    `build` takes the number of decoder layers and gives the function on tensors.
    `in_bank` variants are columns of the ledger; the others exist to be served by the testbed,
    so that detection of faults that no column describes can be measured.
    """

    name: str
    family: Family
    summary: str
    build: Callable[[int], Transform]
    in_bank: bool = True


def layer_of(name: str) -> int | None:
    """The decoder layer that a checkpoint tensor is of; None: it is of none."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def is_linear(name: str) -> bool:
    """Whether a checkpoint tensor is the weight of a linear layer inside a decoder block."""
    of_text = not any(tower in name for tower in _TOWERS)
    return of_text and bool(_LAYER.search(name) and _LINEAR.search(name))


def reads_hidden(name: str) -> bool:
    """Whether a tensor of fused experts reads from the residual stream, so its inputs are hidden
    channels; the other kind writes to it."""
    return bool(_READS.search(name))


def _groups(weight: torch.Tensor, group: int | None) -> torch.Tensor:
    """View [out, in] as [rows, group]; None is one group per output channel."""
    width = weight.shape[-1] if group is None else group
    if weight.shape[-1] % width:
        raise ValueError(f"group {width} does not divide the input width {weight.shape[-1]}")
    return weight.reshape(-1, width)


def round_symmetric(weight: torch.Tensor, *, bits: int, group: int | None) -> torch.Tensor:
    """Round to nearest on a symmetric integer grid with one scale per group, and back."""
    rows = _groups(weight.float(), group)
    top = 2 ** (bits - 1) - 1
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / top
    rounded: torch.Tensor = (rows / scale).round().clamp(-top - 1, top) * scale
    return rounded.reshape(weight.shape).to(weight.dtype)


def round_asymmetric(weight: torch.Tensor, *, bits: int, group: int | None) -> torch.Tensor:
    """Round to nearest on an integer grid with a zero point per group, and back."""
    rows = _groups(weight.float(), group)
    low = rows.amin(dim=1, keepdim=True).clamp_max(0)
    high = rows.amax(dim=1, keepdim=True).clamp_min(0)
    scale = (high - low).clamp_min(1e-12) / (2**bits - 1)
    zero = (-low / scale).round()
    rounded: torch.Tensor = (((rows / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale
    return rounded.reshape(weight.shape).to(weight.dtype)


def round_fp8(weight: torch.Tensor, *, per_channel: bool) -> torch.Tensor:
    """Round to float8 e4m3 with the largest magnitude scaled to 448, and back."""
    import torch

    full = weight.float()
    largest = full.abs().amax(dim=1, keepdim=True) if per_channel else full.abs().amax()
    scale = largest.clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return ((full / scale).to(torch.float8_e4m3fn).float() * scale).to(weight.dtype)


def round_nf4(weight: torch.Tensor, *, group: int | None) -> torch.Tensor:
    """Round to the nearest NF4 level times the group's largest magnitude, and back."""
    import torch

    rows = _groups(weight.float(), group)
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    edges = (levels[1:] + levels[:-1]) / 2
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    rounded = levels[torch.bucketize(rows / scale, edges)] * scale
    return rounded.reshape(weight.shape).to(weight.dtype)


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


def _rounding(round_weight: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[int], Transform]:
    def build(_layers: int) -> Transform:
        return lambda name, tensor: round_weight(tensor) if is_linear(name) else tensor

    return build


def _dropping(count: int, *, first: int | None = None) -> Callable[[int], Transform]:
    """Make `count` layers do nothing, those in the middle unless `first` says where.

    With their output projections at zero the residual stream passes them by.
    """

    def build(layers: int) -> Transform:
        start = (layers - count) // 2 if first is None else first
        dropped = range(start, start + count)

        def transform(name: str, tensor: torch.Tensor) -> torch.Tensor:
            layer = _LAYER.search(name)
            silent = layer is not None and int(layer[1]) in dropped
            return tensor * 0 if silent and _WRITES.search(name) else tensor

        return transform

    return build


def _bank() -> dict[str, Variant]:
    found: list[Variant] = [
        Variant(
            name="int8-channel",
            family="int8",
            summary="8-bit integers, one scale per output channel",
            build=_rounding(partial(round_symmetric, bits=8, group=None)),
        ),
        Variant(
            name="fp8-channel",
            family="fp8",
            summary="float8 e4m3, one scale per output channel",
            build=_rounding(partial(round_fp8, per_channel=True)),
        ),
        Variant(
            name="fp8-tensor",
            family="fp8",
            summary="float8 e4m3, one scale per tensor",
            build=_rounding(partial(round_fp8, per_channel=False)),
        ),
    ]
    for group in (64, 96, 192, None):
        where = "channel" if group is None else f"g{group}"
        words = "one scale per output channel" if group is None else f"groups of {group}"
        found += [
            Variant(
                name=f"int4-sym-{where}",
                family="4-bit",
                summary=f"symmetric 4-bit integers, {words}",
                build=_rounding(partial(round_symmetric, bits=4, group=group)),
            ),
            Variant(
                name=f"int4-asym-{where}",
                family="4-bit",
                summary=f"4-bit integers with a zero point, {words}",
                build=_rounding(partial(round_asymmetric, bits=4, group=group)),
            ),
        ]
    found += [
        Variant(
            name="nf4-g64",
            family="4-bit",
            summary="4-bit NormalFloat, groups of 64",
            build=_rounding(partial(round_nf4, group=64)),
        ),
        Variant(
            name="int3-g64",
            family="3-bit",
            summary="3-bit integers with a zero point, groups of 64",
            build=_rounding(partial(round_asymmetric, bits=3, group=64)),
        ),
        Variant(
            name="int2-g64",
            family="2-bit",
            summary="2-bit integers with a zero point, groups of 64",
            build=_rounding(partial(round_asymmetric, bits=2, group=64)),
        ),
        Variant(
            name="drop-1",
            family="layers",
            summary="the middle decoder layer left out",
            build=_dropping(1),
        ),
        Variant(
            name="drop-2",
            family="layers",
            summary="the two middle decoder layers left out",
            build=_dropping(2),
        ),
        Variant(
            name="int4-asym-g48",
            family="4-bit",
            summary="4-bit integers with a zero point, groups of 48; in no bank",
            build=_rounding(partial(round_asymmetric, bits=4, group=48)),
            in_bank=False,
        ),
        Variant(
            name="int4-rotated-g64",
            family="4-bit",
            summary="symmetric 4-bit integers after a random rotation, groups of 64; in no bank",
            build=_rounding(partial(round_rotated, bits=4, group=64)),
            in_bank=False,
        ),
    ]
    return {variant.name: variant for variant in found}


#: Every variant by name, mildest first.
VARIANTS: dict[str, Variant] = _bank()

#: The ledger's directed weights columns.
BANK: tuple[str, ...] = tuple(name for name, variant in VARIANTS.items() if variant.in_bank)

#: Classes of departures that a bound on the noise scale excludes: the families of builds in each,
#: and the share of the mildest member's own scale below which the class counts as excluded. Builds
#: that optimise their error have less noise than the plain rounding in the bank: on the embedded
#: model 0.81 (0.75 to 0.86) of it for one made as GPTQ does, and 0.77 (0.71 to 0.84) as AWQ
#: (`reference/recipes/error_optimising.py`). 0.5 leaves room for better ones, and for models on
#: which more can be gained; at 8 bits there is less to gain.
CLASS_MARGINS: dict[str, tuple[tuple[Family, ...], float]] = {
    "int8-class rounding": (("int8",), 0.75),
    "fp8-class rounding": (("fp8",), 0.75),
    "4-bit-class rounding": (("4-bit",), 0.5),
    "one layer dropped": (("layers",), 0.75),
}

#: One given layer left out, e.g. drop-layer-7: not a column, but what "one layer dropped" ranges
#: over.
_ONE_LAYER = re.compile(r"drop-layer-(\d+)")


def is_variant(name: str, *, layers: int) -> bool:
    """Whether `find_variant` knows a name."""
    found = _ONE_LAYER.fullmatch(name)
    return name in VARIANTS or (found is not None and int(found[1]) < layers)


def find_variant(name: str, *, layers: int) -> Variant:
    """A variant of `VARIANTS`, or `drop-layer-N` for N below `layers`.

    Raises ConfigError for any other name.
    """
    found = _ONE_LAYER.fullmatch(name)
    if found and is_variant(name, layers=layers):
        return Variant(
            name=name,
            family="layers",
            summary=f"decoder layer {int(found[1])} left out",
            build=_dropping(1, first=int(found[1])),
            in_bank=False,
        )
    if name not in VARIANTS:
        raise ConfigError(
            f"no weights variant {name!r}; there are {', '.join(VARIANTS)}, and drop-layer-N "
            f"for N from 0 to {layers - 1}"
        )
    return VARIANTS[name]


def can_load(name: str, checkpoints: Container[str], *, layers: int) -> bool:
    """Whether an engine with these checkpoints knows a name: the reference, theirs or a variant."""
    return name == REFERENCE or name in checkpoints or is_variant(name, layers=layers)


def checkpoint_of(
    name: str, checkpoints: Mapping[str, Callable[[], Path]], *, layers: int
) -> Callable[[], Path] | None:
    """What fetches the weights of a name; None: they are made of the published ones.

    Raises ConfigError for a name that no engine knows.
    """
    found = checkpoints.get(name)
    if name != REFERENCE and found is None:
        find_variant(name, layers=layers)
    return found
