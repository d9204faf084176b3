"""What a directory of weights says of its model, from its configuration and the headers of its
files: shapes, published precision, the facts that memory is planned from. Reads no tensor.

Where configuration and headers disagree the headers are believed, since they are what is loaded,
and the fact is unchecked; two that cannot be of one model are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from verifier.errors import ReferenceMismatch
from verifier.reference.cards import Architecture, Card, Experts, LatentAttention, Window
from verifier.reference.snapshot import BITS, CONFIG, Stored, read_object, read_tensors
from verifier.reference.variants import is_linear, layer_of

#: Bytes of a checkpoint may differ so much from a card's: some are rounded, or of a recipe's page.
_SLACK: Final = 0.05

#: Where a checkpoint keeps how it is quantized, where config.json does not say.
_BESIDE: Final = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")

#: Names of what safetensors calls the kinds of plain numbers.
_PLAIN: Final[Mapping[str, str]] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
}  # fmt: skip

#: Endings of what stands for one packed weight beside its stem, the packed numbers first.
_PACKED: Final = (".weight_packed", ".qweight", "_blocks", ".weight")
_TOWERS: Final = ("vision", "visual", "audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One model, as its directory says."""

    model_type: str  # as transformers knows it
    layers: int
    architecture: Architecture
    precision: str  # in the words of a card, the coarsest first
    widths: frozenset[int]  # inputs of the linear layers, where they are no packed ones
    bytes_at_least: int  # of the weights, without drafts, towers and what is stored twice
    bytes_at_most: int  # of all that lies there
    unchecked: tuple[str, ...]  # fields of a card that are not known, or not for certain
    remarks: tuple[str, ...]  # on what was found amiss, one line each


class _Weights(NamedTuple):
    """The tensors of the language model's own layers."""

    all: Mapping[str, Stored]
    own: Mapping[str, Stored]  # of its layers: no draft's, no tower's
    experts: Mapping[str, Stored]  # routed ones, scales among them


def describe(directory: Path) -> Described:
    """Read a directory. Raises ReferenceMismatch where it holds no one model."""
    if not (directory / CONFIG).is_file():
        raise ReferenceMismatch(
            f"{directory}: no {CONFIG}, so its architecture is not known; take the publisher's "
            "repository as transformers loads it"
        )
    config = read_object(directory / CONFIG)
    text = _text(config)
    layers, notes = _layers(directory, text), _Notes()
    weights = _weights(read_tensors(directory), layers)
    _refuse_two_models(directory, text, weights, layers)
    scheme = _scheme(directory, config)
    experts = _experts(text, weights, scheme, notes)
    precision, bits = _precision(config, weights, scheme, notes)
    lean = _bytes(weights.all.values()) - _bytes(_beside(weights, layers, config).values())
    return Described(
        model_type=str(text.get("model_type") or config.get("model_type") or ""),
        layers=layers,
        architecture=_architecture(config, weights, experts, bits, notes),
        precision=precision,
        widths=frozenset(_widths(weights, experts, _count(text, "hidden_size"))),
        bytes_at_least=lean,
        bytes_at_most=_bytes(weights.all.values()),
        unchecked=tuple(dict.fromkeys(notes.unchecked)),
        remarks=tuple(notes.remarks),
    )


class _Notes:
    """What is not certain, as it is found."""

    def __init__(self) -> None:
        self.unchecked: list[str] = []
        self.remarks: list[str] = []

    def doubt(self, field: str, remark: str | None = None) -> None:
        self.unchecked.append(field)
        if remark is not None:
            self.remarks.append(remark)


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is of the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _count(values: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is a size."""
    found = (values.get(name) for name in names)
    return next((n for n in found if type(n) is int and n > 0), None)


def _layers(directory: Path, text: Mapping[str, Any]) -> int:
    found = _count(text, "num_hidden_layers")
    if found is None:
        raise ReferenceMismatch(
            f"{directory / CONFIG}: says no num_hidden_layers, so it is no configuration of a "
            "language model; take the publisher's"
        )
    return found


def _weights(tensors: Mapping[str, Stored], layers: int) -> _Weights:
    own = {
        name: stored for name, stored in tensors.items()
        if (layer := layer_of(name)) is not None and layer < layers and not _in_tower(name)
    }  # fmt: skip
    experts = {n: s for n, s in own.items() if ".experts." in n and "bias" not in n}
    return _Weights(tensors, own, experts)


def _in_tower(name: str) -> bool:
    return any(tower in name for tower in _TOWERS)


def _beside(weights: _Weights, layers: int, config: Mapping[str, Any]) -> dict[str, Stored]:
    """What scoring does not need: layers of drafts, towers, and a head that is the embedding."""
    tied = config.get("tie_word_embeddings", _text(config).get("tie_word_embeddings")) is True
    return {
        name: stored for name, stored in weights.all.items()
        if (layer_of(name) or 0) >= layers or _in_tower(name)
        or (tied and name.endswith("lm_head.weight"))
    }  # fmt: skip


def _bytes(tensors: Any) -> int:
    return sum(stored.end - stored.begin for stored in tensors)


def _refuse_two_models(
    directory: Path, text: Mapping[str, Any], weights: _Weights, layers: int
) -> None:
    """A configuration beside the weights of another model."""
    there = {layer_of(name) for name in weights.own}
    missing = [n for n in range(layers) if n not in there]
    rows, columns = _embedding(weights) or (None, None)
    wrong = [
        f"{key} {said}, the embedding {n}"
        for key, n in (("vocab_size", rows), ("hidden_size", columns))
        if n is not None and (said := _count(text, key)) not in (None, n)
    ]
    if missing:
        wrong.append(f"{layers} layers, the tensors have none of layer {missing[0]}")
    if wrong:
        raise ReferenceMismatch(
            f"{directory}: {CONFIG} and weights are of two models: it says {'; '.join(wrong)}; "
            "fetch the directory anew"
        )


def _embedding(weights: _Weights) -> tuple[int, int] | None:
    """Rows and columns of the embedding of tokens."""
    for name, stored in weights.all.items():
        if name.endswith("embed_tokens.weight") and not _in_tower(name) and len(stored.shape) == 2:
            return stored.shape[0], stored.shape[1]
    return None


# -- shapes ------------------------------------------------------------------------------------


def _architecture(
    config: Mapping[str, Any], weights: _Weights, experts: Experts | None, bits: float | None,
    notes: _Notes,
) -> Architecture:  # fmt: skip
    text, latent = _text(config), _latent(_text(config), notes)
    embedding = _embedding(weights) or (None, None)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    heads = _heads(text, weights, latent is not None, notes)
    layers = _count(text, "num_hidden_layers") or 1
    beside = _beside(weights, layers, config)
    named = config.get("architectures")
    return Architecture(
        kind=str(named[0]) if isinstance(named, list) and named else None,
        hidden_size=_count(text, "hidden_size") or embedding[1],
        intermediate_size=_dense_width(text, weights, experts),
        attention_heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        vocabulary=_count(text, "vocab_size") or embedding[0],
        tied_embeddings=bool(tied) if tied is not None else "lm_head.weight" not in weights.all,
        context_length=_count(text, "max_position_embeddings"),
        weight_bytes=_bytes(s for n, s in weights.all.items() if n not in beside or _in_tower(n)),
        bits=bits,
        experts=experts,
        latent_attention=latent,
        window=_window(text, layers, notes),
    )


class _Heads(NamedTuple):
    heads: int | None
    kv_heads: int | None
    head_dim: int | None


def _heads(text: Mapping[str, Any], weights: _Weights, latent: bool, notes: _Notes) -> _Heads:
    """From the configuration; what it leaves to defaults, from the shapes of the projections."""
    heads = _count(text, "num_attention_heads")
    if latent:
        nope, rope = _count(text, "qk_nope_head_dim"), _count(text, "qk_rope_head_dim")
        return _Heads(heads, None, nope + rope if nope and rope else None)
    queries, keys = (_rows(weights, f"self_attn.{which}_proj.weight") for which in "qk")
    dim = _count(text, "head_dim") or _norm_width(weights)
    if dim is None and heads is not None:
        wide = queries or _count(text, "hidden_size") or 0
        dim = wide // heads if wide % heads == 0 and wide else None
    if heads is None and dim is not None and queries is not None and queries % dim == 0:
        heads = queries // dim
    kv_heads = _count(text, "num_key_value_heads")
    if kv_heads is None and dim is not None and keys is not None and keys % dim == 0:
        kv_heads = keys // dim
    shaped = heads is None or dim is None or queries in (None, heads * dim)
    if not shaped:
        for field in ("attention_heads", "head_dim"):
            notes.doubt(f"architecture.{field}")
        notes.remarks.append(
            f"{CONFIG} says {heads} heads of {dim}, and q_proj has {queries} rows: not checked"
        )
    return _Heads(heads, kv_heads, dim)


def _rows(weights: _Weights, ending: str) -> int | None:
    """Rows of the first tensor of that name whose numbers are not packed."""
    for name, stored in weights.own.items():
        plain = stored.dtype in _PLAIN or stored.dtype.startswith("F8")
        if name.endswith(ending) and plain and len(stored.shape) == 2:
            return stored.shape[0]
    return None


def _norm_width(weights: _Weights) -> int | None:
    """Of a norm of each head's query; one over all heads together says nothing of one."""
    for name, stored in weights.own.items():
        if name.endswith("self_attn.q_norm.weight") and len(stored.shape) == 1:
            queries = _rows(weights, "self_attn.q_proj.weight")
            return stored.shape[0] if queries != stored.shape[0] else None
    return None


def _dense_width(text: Mapping[str, Any], weights: _Weights, experts: Experts | None) -> int | None:
    """Of feed-forward layers that are no experts; None where every layer has experts."""
    with_experts = {layer_of(name) for name in weights.experts}
    dense = {layer_of(name) for name in weights.own} - with_experts
    return _count(text, "intermediate_size") if experts is None or dense else None


def _latent(text: Mapping[str, Any], notes: _Notes) -> LatentAttention | None:
    rank, rope = _count(text, "kv_lora_rank"), _count(text, "qk_rope_head_dim")
    if rank is None:
        return None
    if rope is None:
        notes.doubt("architecture.latent_attention")
        return None
    return LatentAttention(
        kv_rank=rank, rope_dim=rope, q_rank=_count(text, "q_lora_rank"),
        index_dim=_count(text, "index_head_dim"),
    )  # fmt: skip


def _window(text: Mapping[str, Any], layers: int, notes: _Notes) -> Window | None:
    tokens = _count(text, "sliding_window")
    if tokens is None or text.get("use_sliding_window") is False:
        return None
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        narrow = sum(kind == "sliding_attention" for kind in kinds)
        return Window(tokens=tokens, layers=narrow) if narrow else None
    every = _count(text, "sliding_window_pattern", "_sliding_window_pattern")
    if every is not None:
        return Window(tokens=tokens, layers=layers - layers // every)
    notes.doubt(
        "architecture.window", f"{CONFIG} has a sliding window and does not say of which layers"
    )
    return None


def _experts(
    text: Mapping[str, Any], weights: _Weights, scheme: _Scheme | None, notes: _Notes
) -> Experts | None:
    """Routed experts: from the configuration, stored bits from the headers."""
    if not weights.experts:
        return None
    hidden = _count(text, "hidden_size")
    count = _count(text, "n_routed_experts", "num_experts", "num_local_experts")
    width = _count(text, "moe_intermediate_size", "intermediate_size")
    layers = len({layer_of(name) for name in weights.experts})
    logical = layers * (count or 0) * 3 * (hidden or 0) * (width or 0)
    block = scheme.block if scheme is not None and _kind(weights.experts) == "fp8" else None
    found = {
        "count": count, "per_token": _count(text, "num_experts_per_tok", "experts_per_token"),
        "width": width, "layers": layers, "block": block,
        "bits": round(8 * _bytes(weights.experts.values()) / logical, 3) if logical else None,
    }  # fmt: skip
    try:
        return Experts.model_validate(found)
    except ValidationError:
        notes.doubt("architecture.experts", f"{CONFIG} does not say how its experts are shaped")
        return None


def _widths(weights: _Weights, experts: Experts | None, hidden: int | None) -> Iterator[int]:
    """Inputs of every linear layer whose numbers are not packed."""
    for name, stored in weights.own.items():
        if not is_linear(name) or not (stored.dtype in _PLAIN or stored.dtype.startswith("F8")):
            continue
        if len(stored.shape) == 2:
            yield stored.shape[1]
        elif experts is not None and hidden is not None:  # fused; published models turn them
            yield from (experts.width, hidden)


# -- precision ---------------------------------------------------------------------------------


class _Scheme(NamedTuple):
    """How the configuration says that weights are quantized."""

    kind: str  # the first word of a card's precision
    words: str  # all of it
    bits: int
    block: int | None = None  # rows and columns that share a scale


def _scheme(directory: Path, config: Mapping[str, Any]) -> _Scheme | None:
    """The quantization that is said, None for none; its kind is "unknown" for one not known."""
    said = config.get("quantization_config") or _text(config).get("quantization_config")
    for name in _BESIDE:
        if not said and (directory / name).is_file():
            beside = read_object(directory / name)
            said = beside.get("quantization", beside)
    if not isinstance(said, dict) or not said:
        return None
    method = str(said.get("quant_method") or said.get("quant_algo") or "").casefold()
    group = _count(said, "group_size", "q_group_size")
    bits = _count(said, "bits", "w_bit") or 4
    algorithm = str(said.get("quant_algo") or "").casefold()
    match method:
        case "fp8" | "fbgemm_fp8":
            return _fp8(said.get("weight_block_size"))
        case "compressed-tensors":
            return _compressed(said)
        case "awq" | "gptq":
            where = f" in groups of {group}" if group else ", one scale per output channel"
            return _Scheme(f"int{bits}", f"int{bits}{where} ({method})", bits)
        case "mxfp4":
            return _Scheme("mxfp4", "mxfp4", 4)
        case _ if "nvfp4" in (method + algorithm):
            return _Scheme("nvfp4", "nvfp4 (modelopt)", 4)
        case _ if "fp8" in algorithm:
            return _fp8(None)
    return _Scheme("unknown", f"unknown ({method or 'a quantization without a name'})", 4)


def _fp8(block: object) -> _Scheme:
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block):
        return _Scheme("fp8", f"fp8 e4m3 in blocks of {block[0]} x {block[1]}", 8, max(block))
    return _Scheme("fp8", "fp8 e4m3", 8)


def _compressed(said: Mapping[str, Any]) -> _Scheme:
    """Of several groups of layers, the coarsest."""
    groups = said.get("config_groups")
    found = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        bits = _count(weights, "num_bits") if isinstance(weights, dict) else None
        if bits is not None and isinstance(weights, dict):
            found.append(_compressed_group(weights, bits))
    if not found:
        return _Scheme("unknown", "unknown (compressed-tensors)", 4)
    return min(found, key=lambda scheme: scheme.bits)


def _compressed_group(weights: Mapping[str, Any], bits: int) -> _Scheme:
    group = _count(weights, "group_size")
    strategy = str(weights.get("strategy") or "")
    if weights.get("type") == "float" and bits == 8:
        return _fp8(weights.get("block_structure"))
    kind = f"int{bits}"
    if weights.get("type") == "float":
        kind = "nvfp4" if group == 16 else "mxfp4"
    where = f" in groups of {group}" if group else f", one scale per {strategy or 'channel'}"
    return _Scheme(kind, f"{kind}{where} (compressed-tensors)", bits)


def _kind(tensors: Mapping[str, Stored]) -> str:
    """What most bytes of these weights are: a plain precision, fp8 or packed; "" without any."""
    found: Counter[str] = Counter()
    for name, stored in tensors.items():
        if not (is_linear(name) or name.endswith(_PACKED)):
            continue
        size = stored.end - stored.begin
        kind = "fp8" if stored.dtype.startswith("F8") else _PLAIN.get(stored.dtype, "packed")
        found[kind] += size
    return found.most_common(1)[0][0] if found else ""


def _precision(
    config: Mapping[str, Any], weights: _Weights, scheme: _Scheme | None, notes: _Notes
) -> tuple[str, float | None]:
    """The published precision in words, the coarsest first, and the bits of all but the experts."""
    rest = {n: s for n, s in weights.own.items() if ".experts." not in n}
    kinds = {"experts": _kind(weights.experts), "others": _kind(rest)}
    words = {part: _words(kind, scheme, notes) for part, kind in kinds.items() if kind}
    stored = set(kinds.values()) - {""}
    if scheme is None and "packed" not in stored and "fp8" not in stored:
        said = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
        said = said or str(_text(config).get("dtype") or _text(config).get("torch_dtype") or "")
        if said and stored and said not in stored:
            there = ", ".join(sorted(stored))
            notes.doubt("precision", f"{CONFIG} says {said}, and the weights are {there}")
    elif scheme is not None and not stored & {"packed", "fp8", "int8"}:
        notes.doubt(
            "precision", f"{CONFIG} says {scheme.words}, and the weights are stored plainly"
        )
    bits = _stored_bits(kinds["others"], rest, scheme)
    if "experts" not in words or words["experts"] == words.get("others"):
        return words.get("others") or words.get("experts") or "unknown", bits
    if kinds["others"] in _PLAIN.values() or not kinds["others"]:
        return f"{words['experts']} experts; all else in {words.get('others', 'unknown')}", bits
    return f"{words['others']}; experts in {words['experts']}", bits


def _words(kind: str, scheme: _Scheme | None, notes: _Notes) -> str:
    if kind in _PLAIN.values():
        return kind
    if scheme is None:
        notes.doubt("precision", f"the weights are {kind}, of which {CONFIG} says nothing")
        return "fp8 e4m3" if kind == "fp8" else "unknown (packed)"
    if kind == "fp8" and scheme.kind != "fp8":
        return "fp8 e4m3"
    if scheme.kind == "unknown":
        notes.doubt("precision", f"the quantization {scheme.words} is not known here")
    return scheme.words


def _stored_bits(kind: str, tensors: Mapping[str, Stored], scheme: _Scheme | None) -> float | None:
    """Per weight of the linear layers, scales included where they are packed."""
    if kind in _PLAIN.values():
        return next(float(BITS[name]) for name, word in _PLAIN.items() if word == kind)
    if kind == "fp8":
        return 8.0
    if kind != "packed" or scheme is None:
        return None
    stems = {
        name.removesuffix(ending) for name in tensors for ending in _PACKED[:3]
        if name.endswith(ending)
    }  # fmt: skip
    packed = {n: s for n, s in tensors.items() if n.endswith(_PACKED[:3])}
    logical = sum(BITS[s.dtype] * prod(s.shape) // scheme.bits for s in packed.values())
    whole = _bytes(s for n, s in tensors.items() if n.rpartition(".")[0] in stems)
    return round(8 * whole / logical, 3) if logical else None


# -- a card and other weights ------------------------------------------------------------------


def refuse_other_model(card: Card, directory: Path) -> Described:
    """What a directory says. Raises ReferenceMismatch, before any tensor is read, where a card is
    plainly of another model: other layers, shapes or bytes."""
    found = describe(directory)
    ours, theirs = card.architecture, found.architecture
    pairs: list[tuple[str, object, object]] = [("layers", card.layers, found.layers)]
    if ours.kind is not None and theirs.kind is not None:
        pairs.append(("architecture", ours.kind, theirs.kind))
    pairs += [
        (name, getattr(ours, name), getattr(theirs, name))
        for name in ("hidden_size", "vocabulary", "attention_heads", "kv_heads")
        if f"architecture.{name}" not in found.unchecked
    ]
    if ours.experts is not None and "architecture.experts" not in found.unchecked:
        pairs += [
            (f"experts' {key}", getattr(ours.experts, key), getattr(theirs.experts, key, "none"))
            for key in ("count", "width")
        ]
    differing = [
        f"{name} {there}, not {here}" for name, here, there in pairs
        if here is not None and there is not None and here != there
    ]  # fmt: skip
    size = ours.weight_bytes
    low, high = found.bytes_at_least * (1 - _SLACK), found.bytes_at_most * (1 + _SLACK)
    if size is not None and not low <= size <= high:
        differing.append(f"{_size(found.bytes_at_most)} of weights, not {_size(size)}")
    if differing:
        raise ReferenceMismatch(
            f"{directory}: these are weights of a {found.layers}-layer "
            f"{theirs.kind or found.model_type or 'model'}, and the card {card.name!r} is of "
            f"{card.model} with {card.layers} layers ({'; '.join(differing)}); nothing was "
            "written: give the card's own weights, or `verifier reference add` these"
        )
    return found


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
