"""What a card names unless somebody says otherwise: its builds, its honest stacks, vLLM's
arguments. The rules, all of them; the cards that ship follow them, and `reference add` does.

Builds: every build of `variants.BANK`

- that is coarser than what is published, or another grid as coarse: hosts make such of what was
  published in 4 bits. A model in fp8 gets none of 8 bits, one in 4 bits none of more, nor integers
  in its own groups: rounding to a grid as fine moves nothing, or what nobody would call a fault;
- whose groups divide the inputs of every linear layer that it would round;
- that the engine can compute: activations are rounded by transformers and in no fused experts,
  caches by transformers and not where attention keeps a latent;
- of GGUF's types only where the weights in float32 take at most GGUF_BYTES: they are searched for,
  in hours beyond that;
- that leaves a layer in place, and whose name no real checkpoint of the card has.

Weights that are published packed into integers get none, but for those of compressed-tensors where
transformers reads them as numbers: no engine rounds the others in place. Where not all widths are
known, only builds with one scale for a channel or a tensor are sure to fit.

Honest stacks: the precisions and batches in which hosts serve what is published, half of them to
set the floor, half to check it. With transformers where it can load the model and the weights in
float32, the finest arithmetic there is to compare with, take at most FLOAT32_BYTES: then nothing
else need be installed. Not so what is published in fp8: hosts round its activations, too, as vLLM
does. Else with vLLM, in bfloat16. In float16, which is finer, too, but not where
a model overflows in it, or is published in 8 bits or fewer.

Arguments: as few GPUs of GPU_BYTES as hold the weights in 80 % of their memory, a power of two that
divides the attention heads; from nine on in stages of eight. Experts stay whole where a shard would
cut a block of scales. No longer context than CONTEXT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from verifier.errors import ConfigError
from verifier.reference.cards import Card
from verifier.reference.describe import Described
from verifier.reference.hardware import layout_of
from verifier.reference.variants import BANK, VARIANTS, Variant

#: Of weights in float32 that the memory of one common machine, or one GPU of 80 GB, holds.
FLOAT32_BYTES: Final = 64e9

#: Up to which weights in float32 are rounded as llama.cpp does: near a second for a million.
GGUF_BYTES: Final = 16e9

GPU_BYTES: Final = 80e9
CONTEXT: Final = 131_072

#: Memory of the GPUs that hosts and laboratories have (GB).
GPU_SIZES: Final = (24, 48, 80, 141, 192, 288)

#: How much more than the weights in float32 scoring takes, logits and caches included.
BESIDE: Final = 1.25

#: Bits of the precisions in which numbers are stored plainly, or as fp8 with scales beside them: by
#: the first word of a card's precision. All else is packed, or not known.
_BITS: Final[Mapping[str, int]] = {
    "float64": 64, "float32": 32, "bfloat16": 16, "float16": 16, "fp8": 8,
}  # fmt: skip

#: Builds of GGUF that are finer than any of 4 bits.
_FINER_THAN_4_BITS: Final = ("gguf-q8-0", "gguf-q6-k", "gguf-q5-k-m")

#: Families that vLLM serves in no float16, for it overflows (config/model.py, 0.32).
_NO_FLOAT16: Final = ("gemma", "glm4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What the rules look at."""

    precision: str  # in a card's words
    layers: int
    widths: frozenset[int]  # inputs of linear layers, or what is sure to divide them
    complete: bool  # whether those are all
    float32_bytes: float | None  # None: not known
    family: str  # its class, or its name where that is not known; in lower case
    by_transformers: bool = True  # whether transformers can load it
    experts: bool = False
    latent: bool = False  # whether attention keeps a latent of keys and values
    named: frozenset[str] = frozenset()  # columns that real checkpoints and other models have

    @property
    def bits(self) -> int | None:
        """Of its coarsest weights; None: they are packed, or not known."""
        return _BITS.get(_first_word(self.precision))

    @property
    def packed_numbers(self) -> bool:
        """Whether it is packed into integers that transformers reads as the numbers they are."""
        packed = _first_word(self.precision) in _PACKED_WORDS
        return packed and "(compressed-tensors)" in self.precision and self.by_transformers


def _first_word(precision: str) -> str:
    return re.split(r"[ ,;]", precision)[0]


def published_of(
    card: Card, *, widths: frozenset[int] | None = None, by_transformers: bool = True
) -> Published:
    """What a card says of its model; `widths` are those that the weights themselves show."""
    facts = card.architecture
    stored = [facts.bits, facts.experts.bits if facts.experts else None]
    bits = min((one for one in stored if one is not None), default=None)
    size = facts.weight_bytes
    known = widths_of(card)
    return Published(
        precision=card.precision,
        layers=card.layers,
        widths=known or frozenset() if widths is None else widths,
        complete=known is not None or widths is not None,
        float32_bytes=None if size is None or bits is None else size * 32 / bits,
        family=(facts.kind or card.model.rpartition("/")[2]).casefold(),
        by_transformers=by_transformers,
        experts=facts.experts is not None,
        latent=facts.latent_attention is not None,
        named=frozenset(one.name for one in (*card.variants, *card.siblings)),
    )


def widths_of(card: Card) -> frozenset[int] | None:
    """Inputs of a card's linear layers, by its facts; None: some are not known.

    Of latent attention the width of a head's values is not among the facts; what all heads write
    is a multiple of their number.
    """
    facts, latent = card.architecture, card.architecture.latent_attention
    if facts.hidden_size is None or facts.attention_heads is None or facts.head_dim is None:
        return None
    if facts.intermediate_size is None and facts.experts is None:
        return None
    heads = facts.attention_heads * (1 if latent else facts.head_dim)
    experts = facts.experts.width if facts.experts else None
    ranks = (latent.kv_rank, latent.q_rank) if latent else ()
    found = (facts.hidden_size, facts.intermediate_size, heads, experts, *ranks)
    return frozenset(width for width in found if width is not None)


# -- builds ------------------------------------------------------------------------------------


def default_bank(published: Published) -> tuple[str, ...]:
    """The builds of a card, mildest first."""
    if published.bits is None and not _by_transformers(published):
        return ()
    return tuple(
        name for name in BANK
        if _is_as_coarse(VARIANTS[name], published)
        and fits(name, published.widths, complete=published.complete)
        and _is_computed(VARIANTS[name], published)
        and _dropped(name) < published.layers
        and name not in published.named
    )  # fmt: skip


def _is_as_coarse(variant: Variant, published: Published) -> bool:
    """Whether a build is coarser than what is published, or another grid as coarse."""
    if published.bits is not None and published.bits > 8:
        return True
    if variant.family in ("int8", "fp8"):
        return False
    own = re.match(r"int(\d+) in groups of (\d+)", published.precision)
    same = own is not None and re.fullmatch(rf"int{own[1]}-a?sym-g{own[2]}", variant.name)
    return not (published.packed_numbers and (same or variant.name in _FINER_THAN_4_BITS))


def _is_computed(variant: Variant, published: Published) -> bool:
    """Whether the engine that scores the stacks can make this build, in a time to wait for."""
    size = published.float32_bytes
    by_transformers = _by_transformers(published)
    settings = variant.settings
    return not (
        (settings.activations is not None and (published.experts or not by_transformers))
        or (settings.kv_cache is not None and (published.latent or not by_transformers))
        or (variant.family == "gguf" and (size is None or size > GGUF_BYTES))
    )


def fits(build: str, widths: frozenset[int], *, complete: bool = True) -> bool:
    """Whether the groups of a build divide all of these widths."""
    variant = VARIANTS.get(build)  # None: a dropped layer, which rounds nothing
    return variant is None or variant.group == 1 or (complete and variant.takes(widths))


def _dropped(build: str) -> int:
    found = re.fullmatch(r"drop-(\d+)", build)
    return int(found[1]) if found else 0


def misfits(bank: tuple[str, ...], widths: frozenset[int]) -> tuple[str, ...]:
    """What is wrong with the builds of a card, one line each."""
    return tuple(
        f"bank: {name}: its groups of {VARIANTS[name].group} do not divide the input width "
        f"{min(w for w in widths if w % VARIANTS[name].group)} of a linear layer; leave it out"
        for name in bank
        if not fits(name, widths)
    )


# -- honest stacks -----------------------------------------------------------------------------


def default_stacks(published: Published) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The stacks that set the floor, and those that check it."""
    plain = published.bits is not None and published.bits >= 16
    fine = plain and not any(name in published.family for name in _NO_FLOAT16)
    if _by_transformers(published):
        held_out = ("bfloat16-batch1", "float16-batch32") if fine else ("bfloat16-batch1",)
        return ("float32-batch32", "bfloat16-batch32"), held_out
    held_out = ("vllm-bfloat16-batch1", "vllm-float16-batch32")
    return ("vllm-bfloat16-batch32", "vllm-bfloat16-batch8"), held_out[: 2 if fine else 1]


def _by_transformers(published: Published) -> bool:
    """Whether its stacks are transformers', and what scores them."""
    size = published.float32_bytes
    plain = published.bits is not None and published.bits >= 16
    read = published.packed_numbers or (plain and published.by_transformers)
    return read and size is not None and size <= FLOAT32_BYTES


# -- vLLM's arguments --------------------------------------------------------------------------


def default_engine_args(card: Card) -> dict[str, Any]:
    """How vLLM may be asked to load a model; {}: as it does by itself, on one GPU."""
    facts, found = card.architecture, dict[str, Any]()
    gpus = 1
    while facts.weight_bytes is not None and facts.weight_bytes > 0.8 * GPU_BYTES * gpus:
        gpus *= 2
    tensor = min(gpus, 8)
    while facts.attention_heads is not None and facts.attention_heads % tensor:
        tensor //= 2
    if tensor > 1:
        found["tensor_parallel_size"] = tensor
    if gpus > tensor:
        found["pipeline_parallel_size"] = gpus // tensor
    experts = facts.experts
    if experts is not None and experts.block and (experts.width // tensor) % experts.block:
        found["enable_expert_parallel"] = True
    if facts.context_length is not None and facts.context_length > CONTEXT:
        found["max_model_len"] = CONTEXT
    return found


def describe_needs(card: Card) -> str:
    """The hardware that computes a card's reference, by its memory alone; "?": its size, or how it
    is split, is not known."""
    published = published_of(card)
    if _by_transformers(published) and published.float32_bytes is not None:
        return f"{math.ceil(published.float32_bytes * BESIDE / 1e9)} GB RAM"
    size = card.architecture.weight_bytes
    try:
        gpus = layout_of(card.engine_args).gpus
    except ConfigError:  # `plan` says what is wrong with them
        return "?"
    if size is None:
        return "?"
    each = next((one for one in GPU_SIZES if size <= 0.8 * one * 1e9 * gpus), None)
    return "?" if each is None else f"{gpus} x {each} GB GPU"


# -- what cannot be calibrated -----------------------------------------------------------------


def obstacles_to_calibrating(card: Card, *, seen: Described | None = None) -> tuple[str, ...]:
    """Why a card cannot be calibrated, from what it says and from what its weights show,
    one line each; (): it can."""
    known = widths_of(card) if seen is None else seen.widths
    found = []
    if not card.calibration_stacks:
        found.append(
            "calibration_stacks: empty, so there is no honest serving to measure; name stacks such "
            "as float32-batch32 and bfloat16-batch32 in the card"
        )
    by_vllm = any(
        one.startswith("vllm-") for one in (*card.calibration_stacks, *card.held_out_stacks)
    )
    if seen is not None:
        found += [f"weights: {line}" for line in seen.cannot_round]
        if by_vllm or not _fits_in_float32(card):
            why = _BY_NUMBERS if _fits_in_float32(card) else _BY_NONE
            found += [f"weights: {line}: {why}" for line in seen.vllm_cannot_round]
    elif "(compressed-tensors)" in card.precision and _fits_in_float32(card):
        if by_vllm:
            found.append(f"precision: published in {_first_word(card.precision)}: {_BY_NUMBERS}")
    elif any(word in card.precision for word in _PACKED_WORDS):
        found.append(f"precision: published in {_first_word(card.precision)}: {_BY_NONE}")
    elif _first_word(card.precision) == "unknown":
        found.append("precision: unknown, so it is not known whether a build can be made of it")
    found += obstacles_to_rendering(card)
    return (*found, *(() if known is None else misfits(card.bank, known)))


def obstacles_to_rendering(card: Card) -> tuple[str, ...]:
    """Why a card's prompts cannot be rendered, one line; (): they can."""
    if card.template_source not in _NOT_RENDERED:
        return ()
    return (f"template_source: {card.template_source}: chat templates alone are rendered here",)


def _fits_in_float32(card: Card) -> bool:
    """Whether transformers has memory for a card's weights as the numbers that they stand for."""
    size = published_of(card).float32_bytes
    return size is not None and size <= FLOAT32_BYTES


#: What is said where vLLM is to round what transformers can.
_BY_NUMBERS: Final = (
    "transformers alone rounds these packed weights; name stacks such as float32-batch32 in the "
    "card"
)

#: What is said where no engine can.
_BY_NONE: Final = "no engine here rounds packed weights, nor leaves out one of their layers"

#: First words of precisions whose weights are packed into integers.
_PACKED_WORDS: Final = ("int8", "int4", "int3", "int2", "fp4", "packed")

#: What is no chat template in a repository, and not beside one either.
_NOT_RENDERED: Final = ("encoding script", "mistral-common")
