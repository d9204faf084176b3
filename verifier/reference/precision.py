"""The precision in which weights are published: what a configuration says of it, and what the
headers of the files show. Reads no tensor.

Headers are believed, since they are what is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

from verifier.reference.checkpoint import PACKED
from verifier.reference.snapshot import BITS, CONFIG, Stored, read_object
from verifier.reference.variants import is_linear

#: Where a checkpoint keeps how it is quantized, where config.json does not say.
_BESIDE: Final = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")

#: Names of what safetensors calls the kinds of plain numbers.
_PLAIN: Final[Mapping[str, str]] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
}  # fmt: skip


class Scheme(NamedTuple):
    """How a configuration says that weights are quantized."""

    kind: str  # the first word of a card's precision; "unknown": none that is known here
    words: str  # all of it
    bits: int
    block: int | None = None  # rows and columns that share a scale


class Precision(NamedTuple):
    """The published precision."""

    words: str  # those of a card, the coarsest first
    bits: float | None  # of all but the experts, per weight
    doubts: tuple[str, ...]  # why it is not certain, one line each


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is of the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def count_of(values: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is a size."""
    found = (values.get(name) for name in names)
    return next((n for n in found if type(n) is int and n > 0), None)


def bytes_of(tensors: Iterable[Stored]) -> int:
    return sum(stored.end - stored.begin for stored in tensors)


# -- what the configuration says ---------------------------------------------------------------


def read_scheme(directory: Path, config: Mapping[str, Any]) -> Scheme | None:
    """The quantization that is said; None: none is."""
    said = config.get("quantization_config") or text_of(config).get("quantization_config")
    for name in _BESIDE:
        if not said and (directory / name).is_file():
            beside = read_object(directory / name)
            said = beside.get("quantization", beside)
    return _scheme(said) if isinstance(said, dict) and said else None


def _scheme(said: Mapping[str, Any]) -> Scheme:
    algorithm = str(said.get("quant_algo") or "").casefold()
    method = str(said.get("quant_method") or algorithm).casefold()
    match method:
        case "fp8" | "fbgemm_fp8":
            return _fp8(said.get("weight_block_size"))
        case "compressed-tensors":
            return _compressed(said)
        case "awq" | "gptq":
            bits = count_of(said, "bits", "w_bit") or 4
            group = count_of(said, "group_size", "q_group_size")
            where = f" in groups of {group}" if group else ", one scale per output channel"
            return Scheme(f"int{bits}", f"int{bits}{where} ({method})", bits)
        case "mxfp4":
            return Scheme("mxfp4", "mxfp4", 4)
    if "nvfp4" in algorithm:
        return Scheme("nvfp4", "nvfp4 (modelopt)", 4)
    if "fp8" in algorithm:
        return _fp8(None)
    return Scheme("unknown", f"unknown ({method or 'a quantization without a name'})", 4)


def _fp8(block: object) -> Scheme:
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block):
        return Scheme("fp8", f"fp8 e4m3 in blocks of {block[0]} x {block[1]}", 8, max(block))
    return Scheme("fp8", "fp8 e4m3", 8)


def _compressed(said: Mapping[str, Any]) -> Scheme:
    """Of several groups of layers, the coarsest."""
    groups = said.get("config_groups")
    found = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        bits = count_of(weights, "num_bits") if isinstance(weights, dict) else None
        if bits is not None and isinstance(weights, dict):
            found.append(_compressed_group(weights, bits))
    if not found:
        return Scheme("unknown", "unknown (compressed-tensors)", 4)
    return min(found, key=lambda scheme: scheme.bits)


def _compressed_group(weights: Mapping[str, Any], bits: int) -> Scheme:
    group = count_of(weights, "group_size")
    strategy = str(weights.get("strategy") or "")
    if weights.get("type") == "float" and bits == 8:
        return _fp8(weights.get("block_structure"))
    kind = f"int{bits}"
    if weights.get("type") == "float":
        kind = "nvfp4" if group == 16 else "mxfp4"
    where = f" in groups of {group}" if group else f", one scale per {strategy or 'channel'}"
    return Scheme(kind, f"{kind}{where} (compressed-tensors)", bits)


# -- what is stored ----------------------------------------------------------------------------


def is_plain(stored: Stored) -> bool:
    """Whether a tensor holds its numbers one by one, in fp8 at least."""
    return stored.dtype in _PLAIN or stored.dtype.startswith("F8")


def kind_of(tensors: Mapping[str, Stored]) -> str:
    """What most bytes of these weights are: a plain precision, fp8 or packed; "" without any."""
    found: Counter[str] = Counter()
    for name, stored in tensors.items():
        if is_linear(name) or name.endswith(PACKED):
            kind = "fp8" if stored.dtype.startswith("F8") else _PLAIN.get(stored.dtype, "packed")
            found[kind] += stored.end - stored.begin
    return found.most_common(1)[0][0] if found else ""


def read_precision(
    config: Mapping[str, Any], own: Mapping[str, Stored], scheme: Scheme | None
) -> Precision:
    """The precision of the tensors `own` of a model's layers, as they are stored."""
    experts = kind_of({n: s for n, s in own.items() if ".experts." in n})
    rest = {n: s for n, s in own.items() if ".experts." not in n}
    others = kind_of(rest)
    stored = [kind for kind in dict.fromkeys((experts, others)) if kind]
    bits = _stored_bits(others, rest, scheme)
    doubts = tuple(_doubts(config, stored, scheme))
    words = {kind: _words(kind, scheme) for kind in stored}
    if len(words) < 2:
        return Precision(words.get(experts or others, "unknown"), bits, doubts)
    if others in _PLAIN.values():
        return Precision(f"{words[experts]} experts; all else in {words[others]}", bits, doubts)
    return Precision(f"{words[others]}; experts in {words[experts]}", bits, doubts)


def _words(kind: str, scheme: Scheme | None) -> str:
    if kind in _PLAIN.values():
        return kind
    if kind == "fp8" and (scheme is None or scheme.kind != "fp8"):
        return "fp8 e4m3"
    return "unknown (packed)" if scheme is None else scheme.words


def _doubts(
    config: Mapping[str, Any], stored: Sequence[str], scheme: Scheme | None
) -> Iterator[str]:
    """Where what is said and what is stored differ, or is not known."""
    quantized, there = {"packed", "fp8"} & {*stored}, ", ".join(sorted(stored))
    if scheme is not None and not quantized:
        yield f"{CONFIG} says {scheme.words}, and the weights are {there}"
    if scheme is None and quantized:
        yield f"the weights are {there}, and {CONFIG} does not say how they are quantized"
    if scheme is not None and scheme.kind == "unknown":
        yield f"the quantization {scheme.words} is not known here"
    said = next(filter(None, map(_dtype, (config, text_of(config)))), None)
    if scheme is None and not quantized and said is not None and stored and said not in stored:
        yield f"{CONFIG} says {said}, and the weights are {there}"


def _dtype(config: Mapping[str, Any]) -> str | None:
    found = config.get("dtype") or config.get("torch_dtype")
    return str(found).removeprefix("torch.") if found else None


def _stored_bits(kind: str, tensors: Mapping[str, Stored], scheme: Scheme | None) -> float | None:
    """Per weight of the linear layers, scales included where they are packed."""
    if kind in _PLAIN.values():
        return next(float(BITS[name]) for name, word in _PLAIN.items() if word == kind)
    if kind == "fp8":
        return 8.0
    if kind != "packed" or scheme is None:
        return None
    stems = {
        name.removesuffix(ending) for name in tensors for ending in PACKED
        if name.endswith(ending)
    }  # fmt: skip
    packed = {n: s for n, s in tensors.items() if n.endswith(PACKED)}
    logical = sum(BITS[s.dtype] * prod(s.shape) // scheme.bits for s in packed.values())
    whole = bytes_of(s for n, s in tensors.items() if n.rpartition(".")[0] in stems)
    return round(8 * whole / logical, 3) if logical else None
