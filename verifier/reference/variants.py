"""Named departures from the published weights: functions on checkpoint tensors, and settings.

Each variant maps (tensor name, tensor) to a tensor of the same shape and dtype, so it is defined
once for every engine. Only the linear layers of the decoder blocks are touched, as AWQ, GPTQ and
FP8 builds do; norms stay as published, and so do embeddings and the output head but in GGUF's
builds. What is rounded while a model computes, activations and the cache of keys and values, is a
setting that the engine heeds. Knows no engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from verifier.errors import ConfigError
from verifier.records import REFERENCE
from verifier.reference.gguf_types import is_outside, round_blocks, type_of
from verifier.reference.layout import Layout
from verifier.reference.roundings import (
    Activations,
    Cached,
    round_asymmetric,
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
from verifier.reference.snapshot import read_tensors

if TYPE_CHECKING:
    import torch

#: What a variant departs by. GGUF's builds are of one family and of no class: how many bits their
#: matrices get depends on the model's widths, up to twice as many as their names say.
Family = Literal["int8", "fp8", "4-bit", "3-bit", "2-bit", "layers", "gguf", "cache"]
Transform = Callable[[str, "torch.Tensor"], "torch.Tensor"]
Rounding = Callable[["torch.Tensor"], "torch.Tensor"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an engine rounds while it computes."""

    activations: Activations | None = None  # what the rounded layers read; None: as it is
    kv_cache: Cached | None = None  # None: as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One departure from the published weights.

    `build` takes the checkpoint's layout and gives the function on tensors; None leaves the weights
    as published. `group` must divide the width of every layer that is rounded. `in_bank` variants
    are columns of the ledger; the others exist to be served by the testbed, so that detection of
    faults that no column describes can be measured.
    """

    name: str
    family: Family
    summary: str
    build: Callable[[Layout], Transform] | None
    group: int = 1
    settings: Settings = Settings()
    in_bank: bool = True

    def takes(self, widths: Iterable[int]) -> bool:
        """Whether this build can be made of layers of these input widths."""
        return all(width % self.group == 0 for width in widths)


def layer_of(name: str) -> int | None:
    """The decoder layer that a checkpoint tensor is of; None: it is of none."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def in_tower(name: str) -> bool:
    """Whether a checkpoint tensor is of a part that reads pictures or sounds."""
    return any(tower in name for tower in _TOWERS)


def is_linear(name: str) -> bool:
    """Whether a checkpoint tensor is the weight of a linear layer inside a decoder block."""
    return not in_tower(name) and bool(_LAYER.search(name) and _LINEAR.search(name))


def reads_hidden(name: str) -> bool:
    """Whether a tensor of fused experts reads from the residual stream, so its inputs are hidden
    channels; the other kind writes to it."""
    return bool(_READS.search(name))


def input_widths(shapes: Mapping[str, Sequence[int]]) -> frozenset[int]:
    """Input widths of the linear layers, from the shapes of a checkpoint's tensors.

    Of fused experts [experts, ...] both widths: published models lay them out in two ways.
    """
    linear = [shape for name, shape in shapes.items() if is_linear(name)]
    return frozenset(width for shape in linear for width in shape[1:])


def widths_of(weights: Path) -> frozenset[int]:
    """The input widths of a checkpoint's linear layers."""
    return input_widths({name: stored.shape for name, stored in read_tensors(weights).items()})


def _rounded(
    name: str,
    family: Family,
    summary: str,
    rounding: Rounding,
    *,
    group: int | None = None,
    settings: Settings = Settings(),
    in_bank: bool = True,
) -> Variant:
    """Every linear layer rounded alike."""

    def build(_layout: Layout) -> Transform:
        def transform(key: str, tensor: torch.Tensor) -> torch.Tensor:
            if not is_linear(key):
                return tensor
            _refuse_width(name, group or 1, key, tensor)
            return rounding(tensor)

        return transform

    return Variant(
        name=name, family=family, summary=summary, build=build, group=group or 1, settings=settings,
        in_bank=in_bank,
    )  # fmt: skip


def _refuse_width(name: str, group: int, key: str, tensor: torch.Tensor) -> None:
    if tensor.shape[-1] % group:
        raise ConfigError(
            f"weights variant {name!r}: groups of {group} do not divide the input width "
            f"{tensor.shape[-1]} of {key}; leave it out of the bank"
        )


def _gguf(name: str, mix: str, summary: str) -> Variant:
    """Every matrix in the block type that llama.cpp gives it, embeddings and output head too."""

    def build(layout: Layout) -> Transform:
        def transform(key: str, tensor: torch.Tensor) -> torch.Tensor:
            if not (is_linear(key) or is_outside(key)):
                return tensor
            _refuse_width(name, 32, key, tensor)
            layer = _LAYER.search(key)
            kind = type_of(
                key, mix, layer=int(layer[1]) if layer else None, width=tensor.shape[-1],
                layout=layout,
            )  # fmt: skip
            return round_blocks(tensor, kind)

        return transform

    return Variant(name=name, family="gguf", summary=summary, build=build, group=32)


def _dropping(count: int, *, first: int | None = None) -> Callable[[Layout], Transform]:
    """Make `count` layers do nothing, those in the middle unless `first` says where.

    With their output projections at zero the residual stream passes them by.
    """

    def build(layout: Layout) -> Transform:
        start = (layout.layers - count) // 2 if first is None else first
        dropped = range(start, start + count)

        def transform(name: str, tensor: torch.Tensor) -> torch.Tensor:
            layer = _LAYER.search(name)
            silent = layer is not None and int(layer[1]) in dropped
            return tensor * 0 if silent and _WRITES.search(name) else tensor

        return transform

    return build


def _integers(kind: Literal["sym", "asym"], group: int | None) -> Variant:
    """4-bit integers rounded to nearest."""
    where = "channel" if group is None else f"g{group}"
    words = "one scale per output channel" if group is None else f"groups of {group}"
    rounding, what = {
        "sym": (round_symmetric, "symmetric 4-bit integers"),
        "asym": (round_asymmetric, "4-bit integers with a zero point"),
    }[kind]
    return _rounded(
        f"int4-{kind}-{where}", "4-bit", f"{what}, {words}", partial(rounding, bits=4, group=group),
        group=group,
    )  # fmt: skip


_FP8 = partial(round_fp8, per_channel=True)
_FP8_BLOCKS = partial(round_fp8_blocks, rows=128, columns=128)
_INT8 = partial(round_symmetric, bits=8, group=None)
_NF4 = partial(round_nf4, group=64)
_FULL = "symmetric 4-bit integers over all 16 steps, as GPTQ's are, groups of {}"

_ALL: tuple[Variant, ...] = (
    _gguf("gguf-q8-0", "Q8_0", "GGUF's Q8_0: 8-bit integers, groups of 32"),
    _rounded("int8-channel", "int8", "8-bit integers, one scale per output channel", _INT8),
    _rounded(
        "int8-w8a8", "int8", "8-bit integers, activations too, each token by itself", _INT8,
        settings=Settings(activations="int8-token"),
    ),
    _gguf("gguf-q6-k", "Q6_K", "GGUF's Q6_K"),
    Variant(
        name="kv-fp8", family="cache", build=None, settings=Settings(kv_cache="fp8"),
        summary="keys and values in float8 e4m3, without a scale",
    ),
    _rounded("fp8-channel", "fp8", "float8 e4m3, one scale per output channel", _FP8),
    _rounded(
        "fp8-w8a8", "fp8",
        "float8 e4m3, one scale per output channel, activations too, each token by itself",
        _FP8, settings=Settings(activations="fp8-token"),
    ),
    _rounded("fp8-block128", "fp8", "float8 e4m3, one scale per block of 128x128", _FP8_BLOCKS),
    _rounded(
        "fp8-block128-w8a8", "fp8",
        "float8 e4m3, one scale per block of 128x128, activations too, in groups of 128",
        _FP8_BLOCKS, settings=Settings(activations="fp8-g128"),
    ),
    _rounded(
        "fp8-tensor", "fp8", "float8 e4m3, one scale per tensor",
        partial(round_fp8, per_channel=False),
    ),
    _gguf("gguf-q4-k-m", "Q4_K_M", "GGUF's Q4_K_M: Q4_K, more bits for some layers"),
    _gguf("gguf-q5-k-m", "Q5_K_M", "GGUF's Q5_K_M: Q5_K, more bits for some layers"),
    _gguf("gguf-q3-k-m", "Q3_K_M", "GGUF's Q3_K_M: Q3_K, more bits for some layers"),
    _gguf("gguf-iq4-nl", "IQ4_NL", "GGUF's IQ4_NL: 16 levels of a table"),
    Variant(
        name="kv-int4", family="cache", build=None, settings=Settings(kv_cache="int4"),
        summary="keys and values in 4-bit integers, a zero point per token and head",
    ),
    _integers("asym", 32),
    _rounded("nf4-g64", "4-bit", "4-bit NormalFloat, groups of 64", _NF4, group=64),
    _integers("asym", 64),
    _rounded("nvfp4", "4-bit", "NVFP4: float4 e2m1, groups of 16", round_nvfp4, group=16),
    _rounded(
        "int4-asym-g128-mse", "4-bit",
        "4-bit integers with a zero point, groups of 128, ranges searched for the least error",
        partial(round_searched, bits=4, group=128), group=128,
    ),
    _rounded(
        "int4-sym-g32", "4-bit", _FULL.format(32), partial(round_full_range, bits=4, group=32),
        group=32,
    ),
    _integers("asym", 96),
    _integers("asym", 128),
    _integers("asym", 192),
    _integers("sym", 64),
    _rounded("mxfp4", "4-bit", "MXFP4: float4 e2m1, groups of 32", round_mxfp4, group=32),
    _rounded(
        "int4-sym-g128", "4-bit", _FULL.format(128), partial(round_full_range, bits=4, group=128),
        group=128,
    ),
    _integers("sym", 96),
    _integers("sym", 192),
    _integers("asym", None),
    _integers("sym", None),
    _rounded(
        "int3-g64", "3-bit", "3-bit integers with a zero point, groups of 64",
        partial(round_asymmetric, bits=3, group=64), group=64,
    ),
    _rounded(
        "int2-g64", "2-bit", "2-bit integers with a zero point, groups of 64",
        partial(round_asymmetric, bits=2, group=64), group=64,
    ),
    Variant(
        name="drop-1", family="layers", summary="the middle decoder layer left out",
        build=_dropping(1),
    ),
    Variant(
        name="drop-2", family="layers", summary="the two middle decoder layers left out",
        build=_dropping(2),
    ),
    _rounded(
        "int4-asym-g48", "4-bit", "4-bit integers with a zero point, groups of 48; in no bank",
        partial(round_asymmetric, bits=4, group=48), group=48, in_bank=False,
    ),
    _rounded(
        "int4-rotated-g64", "4-bit",
        "symmetric 4-bit integers after a random rotation, groups of 64; in no bank",
        partial(round_rotated, bits=4, group=64), group=64, in_bank=False,
    ),
)  # fmt: skip

#: Every variant by name, mildest first: by the squared error of the embedded model's weights, those
#: that leave them alone by how far they shift its replies
#: (`reference/benchmarks/variants.benchmark.json`); layers and what is in no bank come last.
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}

#: The ledger's directed weights columns.
BANK: tuple[str, ...] = tuple(name for name, variant in VARIANTS.items() if variant.in_bank)

#: Classes of departures that a bound on the noise scale excludes: the families of builds in each,
#: and the share of the mildest member's own scale below which the class counts as excluded. On the
#: embedded model (`reference/benchmarks/README.md`): at 4 bits, builds that optimise their error
#: have less noise than the plain rounding in the bank, 0.81 (0.75 to 0.86) of int4-asym-g64's for
#: one made as GPTQ does and 0.77 (0.71 to 0.84) as AWQ, and NVFP4 shifts replies 0.74 times as far.
#: 0.5 holds where both come together (0.57). At 8 bits there is less to gain: the mildest of the
#: fp8 builds shifts replies 0.89 times as far as fp8-channel. GGUF's Q8_0 is below what 0.75 allows
#: for (0.68 of int8-channel), and in no class. Where a class was measured with its mildest kind of
#: grid, only the gain of optimising is left to allow for: `margin_of`.
CLASS_MARGINS: dict[str, tuple[tuple[Family, ...], float]] = {
    "int8-class rounding": (("int8",), 0.75),
    "fp8-class rounding": (("fp8",), 0.75),
    "4-bit-class rounding": (("4-bit",), 0.5),
    "one layer dropped": (("layers",), 0.75),
}

#: The mildest grid of 4 bits that is known, and what optimising the error may leave of its scale:
#: 0.77 (0.71 to 0.84) as AWQ does.
_MILDEST_OF_4_BITS: Final = "nvfp4"
_OPTIMISED: Final = 0.7


def margin_of(name: str, members: Collection[str]) -> float:
    """The share of the scale of a class's mildest member, of these, below which it is excluded."""
    families, margin = CLASS_MARGINS[name]
    mildest = "4-bit" in families and _MILDEST_OF_4_BITS in members
    return max(margin, _OPTIMISED) if mildest else margin


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


def can_load(
    name: str,
    checkpoints: Container[str],
    *,
    layers: int,
    widths: Collection[int],
    heeds: Callable[[Settings], bool],
) -> bool:
    """Whether an engine with these checkpoints can load a name: the reference, theirs or a variant.

    A variant has to take the widths of the layers, and the engine to heed its settings.
    """
    if name == REFERENCE or name in checkpoints:
        return True
    if not is_variant(name, layers=layers):
        return False
    variant = find_variant(name, layers=layers)
    return variant.takes(widths) and heeds(variant.settings)


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
