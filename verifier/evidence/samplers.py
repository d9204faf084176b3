"""Samplers: what a host does to a distribution before it draws a token, as exact likelihoods.

A column of the sampled text is `log p(reply | sampler)` under the published weights, from the whole
distribution at each position: what is truncated away lies in the tail, which no 20 largest show.

The order of operations is vLLM's (`vllm/v1/sample/sampler.py`, class Sampler, 0.32): repetition
penalty over prompt and reply, frequency and presence penalties over the reply; temperature; min-p;
top-k; top-p of what is left. transformers (`generation/utils.py`, `_get_logits_processor`) takes
min-p last, which differs only where min-p meets top-k or top-p; no column here joins them.

Pure arithmetic on arrays; knows nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from verifier.errors import ConfigError
from verifier.evidence.ledger import FLOOR
from verifier.records import GenerateRequest

Logits = NDArray[np.floating[Any]]

#: Largest logits that are sorted first: what is kept nearly always lies among them.
_HEAD: Final = 1024

#: Temperatures of the columns: fine around 1, where the interval must be.
TEMPERATURES: Final = (
    0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75,
    *(round(0.8 + 0.02 * n, 2) for n in range(21)),
    1.25, 1.3, 1.35, 1.4, 1.45, 1.5,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """One setting of everything that samples. The defaults are the distribution as it is."""

    temperature: float = 1.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    drop_best: float = 0.0  # how often the likeliest token is passed over
    rare: float = 0.0  # how often any token at all is put in its place

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"sampler: {name}: expected {low:g} to {high:g}, got {value!r}")

    @property
    def penalizes(self) -> bool:
        """Whether the tokens that came before count."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)

    @property
    def truncates(self) -> bool:
        """Whether some tokens are never drawn."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)


RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0.01, 10),
    "top_k": (0, 1e6),
    "top_p": (1e-6, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.1, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "drop_best": (0, 0.999),
    "rare": (0, 0.999),
}

_PLAIN: Final[Mapping[str, float]] = asdict(Sampler())

#: How settings are called in reports; a setting alone names its kind.
LABELS: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "repetition_penalty": "repetition penalty",
    "presence_penalty": "presence penalty",
    "frequency_penalty": "frequency penalty",
    "drop_best": "best token dropped",
    "rare": "rare token put in",
}

#: The kind of a column that changes several settings.
SEVERAL: Final = "several settings"

#: Settings that a request for samples leaves to the host.
_NOT_ASKED: Final = (
    "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"
)  # fmt: skip

#: Those of them that move greedy replies, too: servers such as vLLM take them from the publisher's
#: generation_config where a request says nothing, at temperature 0 as at any other.
PENALTIES: Final = ("repetition_penalty", "presence_penalty", "frequency_penalty")

#: How far from 1 the temperature of an honest host may look. Logit noise of scale s is to samples
#: what temperature sqrt(1 + s^2) is: 1.0025 at the honest scale of the embedded model (0.07).
TOLERANCE: Final = 0.02

#: Settings that publishers recommend together (cards and model cards of Qwen3, Llama 3.1,
#: MiniMax-M2, Mistral, SmolLM2, DeepSeek): what a host forces is most often one of these.
_TOGETHER: Final = (
    Sampler(temperature=0.7, top_p=0.8, top_k=20),
    Sampler(temperature=0.6, top_p=0.95, top_k=20),
    Sampler(temperature=0.6, top_p=0.9),
    Sampler(temperature=0.6, top_p=0.95),
    Sampler(temperature=0.7, top_p=0.95),
    Sampler(temperature=0.2, top_p=0.9),
    Sampler(top_p=0.95, top_k=40),
)


#: Shares of tokens that are passed over, and put in, of the columns.
DROPPED: Final = (0.02, 0.05)
RARE: Final = (0.005, 0.01, 0.02)

#: The samplers of single tokens.
SINGLE_TOKENS: Final = (
    *(Sampler(drop_best=share) for share in DROPPED), *(Sampler(rare=share) for share in RARE),
)  # fmt: skip


def made(settings: Mapping[str, float]) -> Sampler:
    """The sampler of these settings; what `changed` undoes.

    Raises TypeError for a setting that there is not, ConfigError for one out of range.
    """
    return Sampler(**cast(dict[str, Any], settings))


def changed(sampler: Sampler) -> dict[str, float]:
    """The settings that are not the default, in the order of the record."""
    found = ((name, getattr(sampler, name), plain) for name, plain in _PLAIN.items())
    return {name: value for name, value, plain in found if value != plain}


def name_of(sampler: Sampler) -> str:
    """E.g. top-k 40, or temperature 0.7, top-k 20, top-p 0.8."""
    found = changed(sampler) or {"temperature": 1}
    return ", ".join(f"{LABELS[name]} {value:g}" for name, value in found.items())


@lru_cache(maxsize=1024)
def kind_of(sampler: Sampler) -> str:
    """What a column changes: one setting by its label, or several."""
    found = list(changed(sampler)) or ["temperature"]
    return LABELS[found[0]] if len(found) == 1 else SEVERAL


def read_sampler(text: str) -> dict[str, float]:
    """Settings as they are typed, such as top-k=40 or temperature=0.7,top-p=0.8.

    Raises ConfigError for a name or a number that is none.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        label, _, value = part.partition("=")
        name = label.strip().replace("-", "_")
        if name not in RANGES:
            known = ", ".join(known.replace("_", "-") for known in RANGES)
            raise ConfigError(f"sampler {text!r}: no setting {label!r}; there are {known}")
        try:
            found[name] = int(value) if name == "top_k" else float(value)
        except ValueError:
            raise ConfigError(
                f"sampler {text!r}: {label}: expected a number after =, got {value!r}"
            ) from None
    Sampler(**found)  # type: ignore[arg-type]  # refuses what is out of range
    return found


def sampler_columns(defaults: Mapping[str, float]) -> dict[str, Sampler]:
    """Every column by name: the catalogue, what is honest, and a card's `defaults`, forced."""
    each = [*_each(), *honest_samplers(defaults), _of(defaults)]
    return {name_of(sampler): sampler for sampler in each}


def penalty_columns() -> dict[str, Sampler]:
    """The penalties of the catalogue, each alone: what greedy replies may be made under, too."""
    return {name: s for name, s in sampler_columns({}).items() if s.penalizes}


def honest_samplers(defaults: Mapping[str, float]) -> tuple[Sampler, ...]:
    """What an honest host may do that is asked for temperature 1 and top_p 1.

    Temperature 1 with room for the host's own arithmetic, and the publisher's defaults for what is
    not asked: each alone and all together. A truncation has room too: on another machine's
    arithmetic the tokens around its edge come in another order.
    """
    near = [Sampler(temperature=round(1 + step, 2)) for step in (-TOLERANCE, 0.0, TOLERANCE)]
    silent = {name: value for name, value in defaults.items() if name in _NOT_ASKED}
    alone = [{name: value} for name, value in silent.items()]
    wider = [
        settings | {
            name: settings[name] * share for name, share in room.items() if name in settings
        }
        for settings in (*alone, silent)
        for room in ({}, {"top_k": 1.1, "min_p": 0.9}, {"top_k": 1.25, "min_p": 0.75})
    ]  # fmt: skip
    found = [*near, *(_of(settings) for settings in wider)]
    return tuple(dict.fromkeys(found))


def greedy_defaults(
    defaults: Mapping[str, float], sent: Collection[str] = ()
) -> dict[str, Sampler]:
    """What an honest host may decode under that is asked for temperature 0 and nothing else, by
    name: the publisher's penalties, each alone and all together.

    Those that are `sent` with every request are not the host's to choose.
    """
    silent = {n: defaults[n] for n in PENALTIES if n in defaults and n not in sent}
    each = [*({name: value} for name, value in silent.items()), silent]
    return {name_of(sampler): sampler for sampler in map(_of, each) if sampler.penalizes}


def _each() -> Iterator[Sampler]:
    yield from (Sampler(temperature=value) for value in TEMPERATURES)
    yield from (Sampler(top_k=value) for value in (10, 20, 30, 40, 50, 64, 100))
    yield from (Sampler(top_p=value) for value in (0.7, 0.8, 0.85, 0.9, 0.95))
    yield from (Sampler(min_p=value) for value in (0.02, 0.05, 0.1))
    yield from (Sampler(repetition_penalty=value) for value in (1.05, 1.1, 1.2, 1.3))
    yield from (Sampler(presence_penalty=value) for value in (0.2, 0.5, 1.0, 1.5))
    yield from (Sampler(frequency_penalty=value) for value in (0.2, 0.5, 1.0, 1.5))
    yield from _TOGETHER
    yield from SINGLE_TOKENS


def _of(settings: Mapping[str, float]) -> Sampler:
    """The settings of a card that are samplers, in range; temperature 0 is the lowest of it."""
    known = {name: value for name, value in settings.items() if name in RANGES}
    if "temperature" in known:
        known["temperature"] = max(known["temperature"], min(TEMPERATURES))
    if "top_k" in known:
        known["top_k"] = max(int(known["top_k"]), 0)
    return Sampler(**known)  # type: ignore[arg-type]


# -- likelihoods -------------------------------------------------------------------------------


def row_cells(
    logits: Logits,
    *,
    prompt_ids: Sequence[int],
    reply_ids: Sequence[int],
    kept: Sequence[int],
    samplers: Sequence[Sampler],
) -> tuple[float, ...]:
    """log p of a reply under each sampler, from the positions `kept` of its logits [T, V].

    A share FLOOR of the distribution at temperature 1 is mixed into every column, as in
    `ledger.text_cells`: a token that a sampler truncates away costs about 7 nats, not the row.
    """
    totals = np.zeros(len(samplers))
    plain = Sampler()
    for t in kept:
        before = Counter(reply_ids[:t])
        position = _Position(logits[t], prompt_ids, before)
        chosen = reply_ids[t]
        at_one = position.log_p(chosen, plain)
        log_p = np.array([position.log_p(chosen, sampler) for sampler in samplers])
        totals += np.logaddexp(np.log1p(-FLOOR) + log_p, np.log(FLOOR) + at_one)
    return tuple(float(value) for value in totals)


def probabilities(
    logits: Logits, *, prompt_ids: Sequence[int], reply_ids: Sequence[int], sampler: Sampler
) -> NDArray[np.float64]:
    """The whole distribution [V] of the next token: slow and obvious, what a host draws from."""
    scaled = penalized(logits, prompt_ids, Counter(reply_ids), sampler) / sampler.temperature
    found = np.exp((scaled - scaled.max()).astype(np.float64))
    if sampler.min_p:
        found[found < sampler.min_p * found.max()] = 0
    if sampler.top_k:
        found[found < np.sort(found)[::-1][: sampler.top_k][-1]] = 0
    found /= found.sum()
    if sampler.top_p < 1:
        order = np.argsort(-found, kind="stable")
        before = np.cumsum(found[order]) - found[order]
        found[order[before >= sampler.top_p]] = 0
        found /= found.sum()
    if sampler.drop_best:
        rest = found.copy()
        rest[found == found.max()] = 0
        if rest.sum() > 0:
            found = (1 - sampler.drop_best) * found + sampler.drop_best * rest / rest.sum()
    return np.asarray((1 - sampler.rare) * found + sampler.rare / len(found))


def is_plain(request: GenerateRequest) -> bool:
    """Whether a request asks for no more than temperature, top-k and top-p."""
    unpenalized = request.repetition_penalty == 1 and not request.presence_penalty
    return (
        unpenalized
        and not request.frequency_penalty
        and not (request.min_p or request.drop_best or request.rare)
    )


def distribution(
    logits: Logits, request: GenerateRequest, reply_ids: Sequence[int]
) -> NDArray[np.float64]:
    """What a host draws the next token from [V]; at temperature 0 all of it is one token's."""
    settings = {name: getattr(request, name) for name in RANGES}
    greedy = settings["temperature"] == 0
    if greedy:
        settings |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    sampler = Sampler(**settings)
    if not greedy:
        return probabilities(
            logits, prompt_ids=request.prompt_ids, reply_ids=reply_ids, sampler=sampler
        )
    values = penalized(logits, request.prompt_ids, Counter(reply_ids), sampler)
    second, best = np.argsort(values, kind="stable")[-2:]
    found = np.full(len(values), sampler.rare / len(values))
    found[best] += (1 - sampler.rare) * (1 - sampler.drop_best)
    found[second] += (1 - sampler.rare) * sampler.drop_best
    return found


def penalized(
    logits: Logits, prompt_ids: Sequence[int], before: Mapping[int, int], sampler: Sampler
) -> Logits:
    """Logits [V] with the penalties taken off; `before` counts the tokens of the reply so far."""
    found = np.array(logits)
    said = list(before)
    if sampler.repetition_penalty != 1:
        seen = list({*prompt_ids, *said})
        strength = sampler.repetition_penalty
        found[seen] = np.where(found[seen] > 0, found[seen] / strength, found[seen] * strength)
    if said:
        counts = np.array([before[token] for token in said], dtype=float)
        found[said] -= sampler.frequency_penalty * counts + sampler.presence_penalty
    return found


@lru_cache(maxsize=1024)
def _edges(sampler: Sampler) -> tuple[Sampler, ...]:
    """A truncation with its edge a little further in and out, evenly.

    On another machine's arithmetic the tokens around the edge come in another order: with logits
    in bfloat16 a host's 40th token is our 36th to 44th. A hard edge would call that top-k 50.
    """
    found = []
    for share in (0.85, 0.925, 1.0, 1.075, 1.15):
        found.append(
            replace(
                sampler,
                top_k=max(1, round(sampler.top_k * share)) if sampler.top_k else 0,
                top_p=1 - (1 - sampler.top_p) * share,
                min_p=sampler.min_p / share if sampler.min_p < 0.8 else sampler.min_p,
            )
        )
    return tuple(found)


class _Position:
    """One position under many samplers: what they share is computed once."""

    def __init__(
        self, logits: Logits, prompt_ids: Sequence[int], before: Mapping[int, int]
    ) -> None:
        self._logits = logits
        self._prompt = prompt_ids
        self._before = before
        self._plain = _Relative(logits)

    def log_p(self, chosen: int, sampler: Sampler) -> float:
        view = self._plain
        if sampler.penalizes:
            view = _Relative(penalized(self._logits, self._prompt, self._before, sampler))
        return view.log_p(chosen, sampler)


class _Relative:
    """Logits [V] relative to the largest, which is 0."""

    def __init__(self, logits: Logits) -> None:
        self._values = logits - logits.max()
        self._head: NDArray[np.float64] | None = None
        self._totals: dict[float, float] = {}

    def log_p(self, chosen: int, sampler: Sampler) -> float:
        value, temperature = float(self._values[chosen]), sampler.temperature
        total = self._total(temperature)
        log_p = value / temperature - total
        if sampler.truncates:
            totals = [
                np.logaddexp.reduce(kept / temperature) if value >= kept[-1] else np.inf
                for kept in map(self._kept, _edges(sampler))
            ]
            spread = value / temperature - np.array(totals)
            log_p = float(np.logaddexp.reduce(spread) - np.log(len(spread)))
            total = float(min(totals))
        if sampler.drop_best:
            rest = max(-np.expm1(-total), 1e-12)  # what the likeliest leaves over
            others = sampler.drop_best / rest if value < 0 else 0.0
            log_p += float(np.log(1 - sampler.drop_best + others))
        if sampler.rare:
            anything = np.log(sampler.rare / len(self._values))
            log_p = float(np.logaddexp(np.log1p(-sampler.rare) + log_p, anything))
        return float(log_p)

    def _total(self, temperature: float) -> float:
        if temperature not in self._totals:
            scaled = np.exp(self._values / temperature)
            self._totals[temperature] = float(np.log(scaled.sum()))
        return self._totals[temperature]

    def _kept(self, sampler: Sampler) -> NDArray[np.float64]:
        """The logits that may be drawn, largest first."""
        if self._head is None:
            size = min(_HEAD, len(self._values))
            head = -np.partition(-self._values, size - 1)[:size]
            self._head = np.sort(head)[::-1].astype(np.float64)
        kept = self._among(self._head, sampler)
        if len(kept) == len(self._head) < len(self._values):
            kept = self._among(np.sort(self._values)[::-1].astype(np.float64), sampler)
        return kept

    def _among(self, descending: NDArray[np.float64], sampler: Sampler) -> NDArray[np.float64]:
        """What a sampler keeps of the largest logits; all of them: perhaps more."""
        temperature, kept = sampler.temperature, descending
        log_total = self._total(temperature)
        if sampler.min_p:
            kept = kept[kept >= temperature * np.log(sampler.min_p)]
        if sampler.top_k and sampler.top_k < len(kept):
            kept = kept[kept >= kept[sampler.top_k - 1]]
        if sampler.top_p < 1:
            if len(kept) < len(descending):
                log_total = float(np.logaddexp.reduce(kept / temperature))
            shares = np.exp(kept / temperature - log_total)
            kept = kept[np.cumsum(shares) - shares < sampler.top_p]
        return kept
