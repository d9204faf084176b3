"""A provisional floor: what stands for the calibration of a card that has none.

It is taken from the cards at hand that were calibrated: those of the same kind (dense, or with
experts) and the same published precision (16 bits or more, 8, 4), else of those that differ in the
fewest of these respects, which are named. How far one model's noise lies from another's is known
from models alone, so each is a unit:

- the *floor*, above which nothing is certified, is as far as a new model is predicted from the
  largest scale of each lender (`stacks.predict_scale`), and ALONE times the largest where they are
  too few to tell;
- a class is *excluded* below as little as is predicted of a new model from the lenders' classes, by
  the same rule turned round: the mildest 4-bit build of a model that nobody measured may be milder;
- *tolerated* is everything below the lenders' 4-bit class, so noise is held against a host only
  where it is of that class or worse; classes of finer rounding are not known at all;
- both ends lie EACH times further out for every respect in which the lenders differ;
- of all else (spread, learning rate, lengths of replies) the most cautious of the lenders' holds.

What each check rests on, so on this floor, where no calibration is:

- `noise`, `substitution`, `request_strata`, `greedy_tokens`: on the tolerated scale of the text, as
  the null of what they hold against a host;
- `reported_logprobs`: on that of the log-probabilities, and on what the text allows them;
- `builds`: on the tolerated scale for odds against the published weights. A build finer than 4 bits
  is in no policy that this floor serves, and is not scored on cause, since its noise is tolerated;
- `sampling`: on the interval of the noise, whose reading is calibrated, and on no floor;
- `template`, `length`, `cause`: on noise of any scale. The floor says only what is looked at next,
  and whether a name fits;
- `capabilities`, `tokenizer`, `named_models`, `claimed_counts`, `streaming`, `speed`,
  `hidden_reasoning`, `offered_tools`: on no calibration.

Assumes that the models of the lenders are like the card's in what their arithmetic does; nothing
else is known of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import numpy as np

from verifier.config import Policy
from verifier.errors import ConfigError, ReferenceMismatch
from verifier.evidence.arrays import Array
from verifier.evidence.calibration import (
    CALIBRATION_SCHEMA,
    Calibration,
    Channel,
    Estimate,
    Lender,
    NoiseClass,
    Provisional,
    Stack,
)
from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES
from verifier.evidence.noise import ABOVE
from verifier.evidence.stacks import LEAST_KAPPA, predict_scale
from verifier.reference.calibrations import (
    how_to_calibrate,
    is_calibrated,
    load_calibration,
)
from verifier.reference.cards import Card, list_cards, load_card
from verifier.reference.defaults import published_of
from verifier.reference.variants import CLASS_MARGINS, VARIANTS, margin_of
from verifier.wording import describe_percent

#: How many times larger or smaller a scale may be on another model, where fewer models were
#: measured than tell how far they spread.
ALONE: Final = 2.0

#: The same, for every respect in which a card differs from those that lend it their noise.
EACH: Final = math.sqrt(2)

#: The class from which on noise is held against a host.
COARSE: Final = "4-bit-class rounding"

#: Families of builds that are finer than that, for sure or perhaps.
_FINER: Final = ("int8", "fp8", "gguf", "cache")

#: Families whose own noise is measured, and tolerated whatever the class says.
_MILD: Final = ("int8", "fp8")

#: Methods of real checkpoints that are of 4 bits whatever their settings.
_FOUR_BITS: Final = ("nvfp4", "mxfp4")

#: The smallest share of requests of which anything is said. Smaller ones rest on telling single
#: replies of the class apart, whose scale on this model nobody knows.
LEAST_SHARE: Final = 0.5

_Bits = Literal["16 bits or more", "8 bits", "4 bits", "an unknown precision"]

#: A card and its calibration.
Known = tuple[Card, Calibration]


# -- from which cards ------------------------------------------------------------------------------


def calibration_for(name: str, card: Card) -> Calibration:
    """The calibration of a card, or what stands for it, from the other cards at hand.

    Raises ReferenceMismatch where no card can lend its noise, and where a calibration is of other
    weights than its card's.
    """
    if is_calibrated(name):
        return load_calibration(name, card)
    others = [one for one in list_cards() if is_calibrated(one)]
    known = [(found, load_calibration(one, found)) for one in others if (found := load_card(one))]
    made = make_provisional(card, known)
    if made is None:
        raise ReferenceMismatch(
            f"reference: card {card.name!r} is not calibrated, and no card at hand is whose noise "
            f"could stand for it; {how_to_calibrate(name, card)}"
        )
    return made


def make_provisional(card: Card, known: Sequence[Known]) -> Calibration | None:
    """The same from these cards; None where none of them has a class of 4 bits.

    Never from a card of that name, nor from one of the same weights.
    """
    able = [
        (one, found, differences(card, one)) for one, found in known
        if one.name != card.name and found.provisional is None and COARSE in _classes(found)
        and found.tensors_sha256 != card.digests.tensors_sha256
    ]  # fmt: skip
    fewest = min((len(differs) for _, _, differs in able), default=None)
    lenders = [one for one in able if len(one[2]) == fewest]
    if not lenders:
        return None
    return _lend(card, lenders)


def differences(card: Card, other: Card) -> tuple[str, ...]:
    """In which respects another card's model is of another kind, in words."""
    kinds, bits = (_kind(card), _kind(other)), (precision_class(card), precision_class(other))
    return (
        *([] if kinds[0] == kinds[1] else [f"{kinds[1]} where this is {kinds[0]}"]),
        *([] if bits[0] == bits[1] else [f"published in {bits[1]} where this is in {bits[0]}"]),
    )


def _kind(card: Card) -> str:
    return "dense" if card.architecture.experts is None else "of experts"


def precision_class(card: Card) -> _Bits:
    """Of a card's coarsest weights."""
    bits = published_of(card).bits
    if bits is not None:
        return "16 bits or more" if bits >= 16 else "8 bits"
    first = re.split(r"[ ,;]", card.precision)[0]
    if first == "int8":
        return "8 bits"
    return "4 bits" if re.search(r"fp4|int[234]", first) else "an unknown precision"


# -- what they lend --------------------------------------------------------------------------------


def _lend(card: Card, lenders: Sequence[tuple[Card, Calibration, tuple[str, ...]]]) -> Calibration:
    """A calibration of the most cautious of all that the lenders measured, and wider than that."""
    own = [found for _, found, _ in lenders]
    wider = EACH ** len(lenders[0][2])
    text_end = wider * max(_classes(found)[COARSE].scale for found in own)
    text = _channel(
        [found.text for found in own], [_honest_uppers(found, "text") for found in own],
        _mild_uppers(own, "text"), TEXT_SCALES, end=text_end, wider=wider,
    )  # fmt: skip
    logprob = _channel(
        [found.logprob for found in own], [_honest_uppers(found, "logprob") for found in own],
        _mild_uppers(own, "logprob"), LOGPROB_SCALES,
        end=max((wider * one for one in map(_coarse_logprob, own) if one), default=text_end),
        wider=wider,
    )  # fmt: skip
    first = own[0]
    return Calibration(
        schema_version=CALIBRATION_SCHEMA,
        card=card.name,
        tensors_sha256=first.tensors_sha256,
        seed=first.seed,
        max_tokens=min(found.max_tokens for found in own),
        level=min(found.level for found in own),
        versions=first.versions,
        text=text,
        logprob=logprob,
        measured=first.measured,
        classes=_lent_classes(own, text.tolerated, wider=wider),
        stacks=_lent_stacks(own),
        provisional=Provisional(
            lenders=tuple(
                Lender(card=one.name, tensors_sha256=found.tensors_sha256, differs=differs)
                for one, found, differs in lenders
            ),
            kappa=max(found.text.tolerated / found.text.honest_scale for found in own),
        ),
    )


def above(values: Sequence[float]) -> float:
    """What a new model stays below, by what each known model shows."""
    predicted = predict_scale(values)
    if predicted is None:
        return ALONE * max(values)
    return max(LEAST_KAPPA * max(values), predicted)


def below(values: Sequence[float]) -> float:
    """What a new model stays above, by what each known model shows."""
    return 1 / above([1 / value for value in values])


def _channel(
    own: Sequence[Channel], uppers: Sequence[Sequence[float]], mild: Sequence[float],
    scales: Array, *, end: float, wider: float,
) -> Channel:  # fmt: skip
    """One channel: tolerated is the last scale [of a grid] below `end`, and all that is mild."""
    last = int(np.searchsorted(scales * ABOVE, end)) - 1
    least = int(np.searchsorted(scales * ABOVE, max(mild, default=0.0)))
    tolerated = float(scales[min(max(last, least, 0), len(scales) - 2)])
    honest = wider * above(
        [max([one.honest_scale, *some]) for one, some in zip(own, uppers, strict=True)]
    )
    return Channel(
        honest_scale=min(honest, tolerated),
        tolerated_scale=tolerated,
        spread=max(channel.spread for channel in own),
        learning_rate=min(channel.learning_rate for channel in own),
    )


def _classes(found: Calibration) -> dict[str, NoiseClass]:
    return {one.name: one for one in found.classes}


def _lent_classes(
    own: Sequence[Calibration], tolerated: float, *, wider: float
) -> tuple[NoiseClass, ...]:
    """All classes that are no finer rounding: each told above what is tolerated, and excluded as
    far below as another model's may lie."""
    finer = {name for name, (families, _) in CLASS_MARGINS.items() if {*families} <= {*_MILD}}
    least = float(TEXT_SCALES[np.searchsorted(TEXT_SCALES, tolerated * ABOVE)])
    made = []
    for name in dict.fromkeys(name for found in own for name in _classes(found)):
        if name in finer:
            continue
        told = [_classes(found)[name].scale for found in own if name in _classes(found)]
        scale = min(1.0, max(wider * max(told), least / ABOVE))
        excluded = max(below(told) / wider, float(TEXT_SCALES[1]))
        made.append(
            NoiseClass(
                name=name, scale=scale, excluded_below=min(excluded, scale),
                basis=f"as on {len(told)} other {'model' if len(told) == 1 else 'models'}, the "
                "mildest and the coarsest that may be",
            )
        )  # fmt: skip
    return tuple(made)


def _lent_stacks(own: Sequence[Calibration]) -> tuple[Stack, ...]:
    """Every honest stack, and each variant as it is mildest."""
    honest = [one for found in own for one in found.stacks if one.role != "variant"]
    variants: dict[str, Stack] = {}
    for one in (one for found in own for one in found.stacks if one.role == "variant"):
        before = variants.get(one.name)
        if before is None or _scale(one.text) < _scale(before.text):
            variants[one.name] = one
    return (*honest, *variants.values())


def _scale(found: Estimate | None) -> float:
    return math.inf if found is None else found.estimate


def _estimates(stacks: Iterable[Stack], channel: Literal["text", "logprob"]) -> list[Estimate]:
    found = (one.text if channel == "text" else one.logprob for one in stacks)
    return [one for one in found if one is not None]


def _honest_uppers(found: Calibration, channel: Literal["text", "logprob"]) -> list[float]:
    """Upper ends of every honest stack, held out or not."""
    honest = [one for one in found.stacks if one.role != "variant"]
    return [one.upper for one in _estimates(honest, channel) if one.upper is not None]


def _mild_uppers(own: Sequence[Calibration], channel: Literal["text", "logprob"]) -> list[float]:
    """Upper ends of the builds of 8 bits."""
    mild = [one for found in own for one in found.stacks if one.family in _MILD]
    return [one.upper for one in _estimates(mild, channel) if one.upper is not None]


def _coarse_logprob(found: Calibration) -> float | None:
    """Where the 4-bit class lies among log-probabilities: the same part of its mildest build."""
    families, _ = CLASS_MARGINS[COARSE]
    builds = [one for one in found.stacks if one.family in families]
    margin = margin_of(COARSE, [one.name for one in builds])
    scales = [one.estimate for one in _estimates(builds, "logprob")]
    return margin * min(scales) if scales else None


# -- what it does not serve ------------------------------------------------------------------------


def refuse_finer(
    name: str, policy: Policy, card: Card, calibration: Calibration, *, of: str
) -> None:
    """Raise ConfigError for a policy that asks for more than a provisional floor tells apart.

    `name` is the policy's, `of` the card as it was called.
    """
    if calibration.provisional is None:
        return
    lacking = _finer(policy, card, calibration)
    if lacking is None:
        return
    how = how_to_calibrate(of, card)
    raise ConfigError(
        f"audit.policy: {name} names {lacking}, which nobody can tell from honest noise on card "
        f"{card.name} while it is not calibrated: take screen (--policy screen); to calibrate, "
        f"{how}"
    )


def _finer(policy: Policy, card: Card, calibration: Calibration) -> str | None:
    """The first departure of a policy that is too fine; None: there is none."""
    coarse = {one.name for one in calibration.classes}
    for name in (*policy.noise, *policy.routed):
        if name in CLASS_MARGINS and name not in coarse:
            return name
    for of, share in policy.routed.items():
        if share < LEAST_SHARE:
            return f"{describe_percent(share)} of the requests to {of}"
    builds = card.columns if policy.builds == ("all",) else policy.builds
    methods = {one.name: one.method for one in card.variants}
    for name in builds:
        variant = VARIANTS.get(name)
        four = methods.get(name) in _FOUR_BITS
        if (name in methods and not four) or (variant and variant.family in _FINER):
            return f"the build {name}"
    return None
