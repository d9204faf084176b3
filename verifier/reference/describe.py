"""What a directory of weights says of its model, from its configuration and the headers of its
files: shapes, published precision, the facts that memory is planned from. Reads no tensor.

Where configuration and headers disagree the headers are believed, since they are what is loaded,
and the fact is unchecked; two that cannot be of one model are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from verifier.errors import ReferenceMismatch
from verifier.reference.cards import Architecture, Card, Experts, LatentAttention, Window
from verifier.reference.checkpoint import PACKED, SCALES, stands_for_numbers
from verifier.reference.precision import (
    Scheme,
    bytes_of,
    count_of,
    is_plain,
    kind_of,
    read_precision,
    read_scheme,
    text_of,
)
from verifier.reference.snapshot import CONFIG, Stored, read_object, read_tensors
from verifier.reference.variants import in_tower, is_linear, layer_of

#: Bytes of a checkpoint may differ so much from a card's: some are rounded, or of a recipe's page.
_SLACK: Final = 0.05


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
    cannot_round: tuple[str, ...]  # why no build can be made of these weights, one line each
    vllm_cannot_round: tuple[str, ...] = ()  # the same, where transformers can


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
    text = text_of(config)
    layers, notes = _layers(directory, text), _Notes()
    weights = _weights(read_tensors(directory), layers)
    _refuse_two_models(directory, text, weights, layers)
    scheme = read_scheme(directory, config)
    precision = read_precision(config, weights.own, scheme)
    for doubt in precision.doubts:
        notes.doubt("precision", doubt)
    experts = _experts(text, weights, scheme, notes)
    said = config.get("quantization_config") or text.get("quantization_config")
    numbers = isinstance(said, dict) and stands_for_numbers(said)
    lean = bytes_of(weights.all.values()) - bytes_of(_beside(weights, layers, config).values())
    return Described(
        model_type=str(text.get("model_type") or config.get("model_type") or ""),
        layers=layers,
        architecture=_architecture(config, weights, experts, precision.bits, notes),
        precision=precision.words,
        widths=frozenset(_widths(weights, experts, count_of(text, "hidden_size"))),
        bytes_at_least=lean,
        bytes_at_most=bytes_of(weights.all.values()),
        unchecked=tuple(dict.fromkeys(notes.unchecked)),
        remarks=tuple(notes.remarks),
        cannot_round=tuple(_cannot_round(weights, numbers=numbers)),
        vllm_cannot_round=tuple(_packed(weights)) if numbers else (),
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


def _layers(directory: Path, text: Mapping[str, Any]) -> int:
    found = count_of(text, "num_hidden_layers")
    if found is None:
        raise ReferenceMismatch(
            f"{directory / CONFIG}: says no num_hidden_layers: no language model, or an "
            "architecture that is not known here"
        )
    return found


def _weights(tensors: Mapping[str, Stored], layers: int) -> _Weights:
    own = {
        name: stored for name, stored in tensors.items()
        if (layer := layer_of(name)) is not None and layer < layers and not in_tower(name)
    }  # fmt: skip
    experts = {n: s for n, s in own.items() if ".experts." in n and "bias" not in n}
    return _Weights(tensors, own, experts)


def _beside(weights: _Weights, layers: int, config: Mapping[str, Any]) -> dict[str, Stored]:
    """What scoring does not need: layers of drafts, towers, and a head that is the embedding."""
    tied = config.get("tie_word_embeddings", text_of(config).get("tie_word_embeddings")) is True
    return {
        name: stored for name, stored in weights.all.items()
        if (layer_of(name) or 0) >= layers or in_tower(name)
        or (tied and name.endswith("lm_head.weight"))
    }  # fmt: skip


def _refuse_two_models(
    directory: Path, text: Mapping[str, Any], weights: _Weights, layers: int
) -> None:
    """A configuration beside the weights of another model."""
    there = {layer_of(name) for name in weights.own}
    if not kind_of(weights.own):
        example = next(iter(weights.own or weights.all), "none")
        raise ReferenceMismatch(
            f"{directory}: none of its tensors has the name of a linear layer that is known here "
            f"(one is {example!r}), so no build and no dropped layer could be made of it"
        )
    missing = next((n for n in range(layers) if n not in there), None)
    rows, columns = _embedding(weights) or (None, None)
    wrong = [
        f"{key} {said}, the embedding {n}"
        for key, n in (("vocab_size", rows), ("hidden_size", columns))
        if n is not None and (said := count_of(text, key)) not in (None, n)
    ]
    if missing is not None:
        wrong.append(f"{layers} layers, the tensors have none of layer {missing}")
    if wrong:
        raise ReferenceMismatch(
            f"{directory}: {CONFIG} and weights are of two models: it says {'; '.join(wrong)}; "
            "fetch the directory anew"
        )


def _embedding(weights: _Weights) -> tuple[int, int] | None:
    """Rows and columns of the embedding of tokens."""
    for name, stored in weights.all.items():
        if name.endswith("embed_tokens.weight") and not in_tower(name) and len(stored.shape) == 2:
            return stored.shape[0], stored.shape[1]
    return None


# -- shapes ------------------------------------------------------------------------------------


def _architecture(
    config: Mapping[str, Any], weights: _Weights, experts: Experts | None, bits: float | None,
    notes: _Notes,
) -> Architecture:  # fmt: skip
    text, latent = text_of(config), _latent(text_of(config), notes)
    embedding = _embedding(weights) or (None, None)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    heads = _heads(text, weights, latent is not None, notes)
    layers = count_of(text, "num_hidden_layers") or 1
    beside = _beside(weights, layers, config)
    named = config.get("architectures")
    return Architecture(
        kind=str(named[0]) if isinstance(named, list) and named else None,
        hidden_size=count_of(text, "hidden_size") or embedding[1],
        intermediate_size=_dense_width(text, weights, experts),
        attention_heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        vocabulary=count_of(text, "vocab_size") or embedding[0],
        tied_embeddings=bool(tied) if tied is not None else "lm_head.weight" not in weights.all,
        context_length=count_of(text, "max_position_embeddings"),
        weight_bytes=bytes_of(s for n, s in weights.all.items() if n not in beside or in_tower(n)),
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
    heads = count_of(text, "num_attention_heads")
    if latent:
        nope, rope = count_of(text, "qk_nope_head_dim"), count_of(text, "qk_rope_head_dim")
        return _Heads(heads, None, nope + rope if nope and rope else None)
    queries, keys = (_rows(weights, f"self_attn.{which}_proj.weight") for which in "qk")
    dim = count_of(text, "head_dim") or _norm_width(weights)
    dim = dim or _quotient(queries or count_of(text, "hidden_size"), heads)
    heads = heads or _quotient(queries, dim)
    kv_heads = count_of(text, "num_key_value_heads") or _quotient(keys, dim)
    if queries is not None and heads is not None and dim is not None and queries != heads * dim:
        notes.doubt("architecture.attention_heads")
        notes.doubt(
            "architecture.head_dim",
            f"{CONFIG} says {heads} heads of {dim}, and q_proj has {queries} rows",
        )
    return _Heads(heads, kv_heads, dim)


def _quotient(whole: int | None, part: int | None) -> int | None:
    """What is left where one divides the other; None else."""
    return whole // part if whole and part and whole % part == 0 else None


def _rows(weights: _Weights, ending: str) -> int | None:
    """Rows of the first tensor of that name whose numbers are not packed."""
    for name, stored in weights.own.items():
        plain = is_plain(stored)
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
    return count_of(text, "intermediate_size") if experts is None or dense else None


def _latent(text: Mapping[str, Any], notes: _Notes) -> LatentAttention | None:
    rank, rope = count_of(text, "kv_lora_rank"), count_of(text, "qk_rope_head_dim")
    if rank is None:
        return None
    if rope is None:
        notes.doubt("architecture.latent_attention")
        return None
    return LatentAttention(
        kv_rank=rank, rope_dim=rope, q_rank=count_of(text, "q_lora_rank"),
        index_dim=count_of(text, "index_head_dim"),
    )  # fmt: skip


def _window(text: Mapping[str, Any], layers: int, notes: _Notes) -> Window | None:
    tokens = count_of(text, "sliding_window")
    if tokens is None or text.get("use_sliding_window") is False:
        return None
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        narrow = sum(kind == "sliding_attention" for kind in kinds)
        return Window(tokens=tokens, layers=narrow) if narrow else None
    every = count_of(text, "sliding_window_pattern", "_sliding_window_pattern")
    if every is None and str(text.get("model_type") or "gemma").startswith("gemma"):
        notes.doubt(
            "architecture.window", f"{CONFIG} has a sliding window and does not say of which layers"
        )
        return None
    wide = layers // every if every is not None else text.get("max_window_layers")
    narrow = layers - (wide if isinstance(wide, int) else 0)
    return Window(tokens=tokens, layers=narrow) if narrow > 0 else None


def _experts(
    text: Mapping[str, Any], weights: _Weights, scheme: Scheme | None, notes: _Notes
) -> Experts | None:
    """Routed experts: from the configuration, stored bits from the headers."""
    if not weights.experts:
        return None
    hidden = count_of(text, "hidden_size")
    count = count_of(text, "n_routed_experts", "num_experts", "num_local_experts")
    width = count_of(text, "moe_intermediate_size", "intermediate_size")
    layers = len({layer_of(name) for name in weights.experts})
    logical = layers * (count or 0) * 3 * (hidden or 0) * (width or 0)
    block = scheme.block if scheme is not None and kind_of(weights.experts) == "fp8" else None
    found = {
        "count": count, "per_token": count_of(text, "num_experts_per_tok", "experts_per_token"),
        "width": width, "layers": layers, "block": block,
        "bits": round(8 * bytes_of(weights.experts.values()) / logical, 3) if logical else None,
    }  # fmt: skip
    try:
        return Experts.model_validate(found)
    except ValidationError:
        notes.doubt("architecture.experts", f"{CONFIG} does not say how its experts are shaped")
        return None


def _widths(weights: _Weights, experts: Experts | None, hidden: int | None) -> Iterator[int]:
    """Inputs of every linear layer whose numbers are not packed."""
    for name, stored in weights.own.items():
        if not is_linear(name) or not is_plain(stored):
            continue
        if len(stored.shape) == 2:
            yield stored.shape[1]
        elif experts is not None and hidden is not None:  # fused; published models turn them
            yield from (experts.width, hidden)


def _packed(weights: _Weights) -> Iterator[str]:
    """The first tensor that is packed, of those that transformers reads as numbers."""
    packed = [name for name, stored in weights.own.items() if _is_packed(name, stored)]
    yield from (f"{name} is packed into integers" for name in packed[:1])


def _is_packed(name: str, stored: Stored) -> bool:
    return name.endswith(PACKED) or (is_linear(name) and not is_plain(stored))


def _cannot_round(weights: _Weights, *, numbers: bool) -> Iterator[str]:
    """What the engines refuse to round in place, told by the headers; one tensor of each kind.

    `numbers`: whether transformers reads packed weights as the numbers that they stand for.
    """
    found: dict[str, str] = {}
    for name, stored in weights.own.items():
        if numbers and _is_packed(name, stored):
            continue
        why = _why_not_rounded(name, stored, weights)
        if why is not None:
            found.setdefault(why, name)
    yield from (f"{name} {why}" for why, name in found.items())


def _why_not_rounded(name: str, stored: Stored, weights: _Weights) -> str | None:
    linear, stem = is_linear(name), name.removesuffix(".weight")
    if _is_packed(name, stored):
        return "is packed into integers, and no engine here rounds those in place"
    if not linear:
        return None
    if stored.dtype.startswith("F8") and not any(stem + end in weights.own for end in SCALES):
        return "is in fp8 without a scale of a name that is known here"
    if len(stored.shape) == 3 and stored.shape[1] == stored.shape[2]:
        return "has a shape that does not tell inputs from outputs"
    return None


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
