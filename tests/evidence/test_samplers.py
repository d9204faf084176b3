"""Samplers: known answers on five tokens, the fast way against the obvious one, and against those
who sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from verifier.errors import ConfigError
from verifier.evidence.ledger import FLOOR
from verifier.evidence.samplers import (
    Sampler,
    changed,
    distribution,
    honest_samplers,
    kind_of,
    name_of,
    probabilities,
    read_sampler,
    row_cells,
    sampler_columns,
)
from verifier.records import GenerateRequest

#: Five tokens whose probabilities are 0.5, 0.25, 0.15, 0.08 and 0.02.
SHARES = (0.5, 0.25, 0.15, 0.08, 0.02)
LOGITS = np.log(np.array(SHARES))


def given(
    sampler: Sampler, *, prompt: tuple[int, ...] = (), said: tuple[int, ...] = ()
) -> list[float]:
    found = probabilities(LOGITS, prompt_ids=prompt, reply_ids=said, sampler=sampler)
    return [round(float(value), 6) for value in found]


def cells(
    logits: np.ndarray,
    reply: tuple[int, ...],
    samplers: list[Sampler],
    prompt: tuple[int, ...] = (),
) -> np.ndarray:
    rows = np.broadcast_to(logits, (len(reply), len(logits)))
    found = row_cells(
        rows, prompt_ids=prompt, reply_ids=reply, kept=range(len(reply)), samplers=samplers
    )
    return np.array(found)


def averaged(logits: np.ndarray, prompt: tuple[int, ...], sampler: Sampler, chosen: int) -> float:
    """The obvious way: the mean over five edges, 15 % further in to 15 % further out."""
    found = []
    for share in (0.85, 0.925, 1.0, 1.075, 1.15):
        settings: dict[str, float] = changed(sampler)
        if "top_k" in settings:
            settings["top_k"] = max(1, round(settings["top_k"] * share))
        if "top_p" in settings:
            settings["top_p"] = 1 - (1 - settings["top_p"]) * share
        if "min_p" in settings:
            settings["min_p"] /= share
        one = Sampler(**settings)  # type: ignore[arg-type]
        found.append(probabilities(logits, prompt_ids=prompt, reply_ids=(), sampler=one)[chosen])
    return float(np.mean(found))


# -- known answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Sampler(), SHARES),
        # squares over their sum
        (Sampler(temperature=0.5), [p / 0.3418 for p in (0.25, 0.0625, 0.0225, 0.0064, 0.0004)]),
        (Sampler(top_k=2), (2 / 3, 1 / 3, 0, 0, 0)),
        # 0.5 and 0.75 lie before the second and third, 0.9 before the fourth
        (Sampler(top_p=0.8), (0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0)),
        (Sampler(top_p=0.75), (2 / 3, 1 / 3, 0, 0, 0)),
        (Sampler(min_p=0.2), (0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0)),
        # of the three kept by top-k the first two hold 0.75 / 0.9 = 0.83 of the mass
        (Sampler(top_k=3, top_p=0.8), (2 / 3, 1 / 3, 0, 0, 0)),
        # temperature first: min-p sees 0.25, 0.09, ... relative to the likeliest
        (Sampler(temperature=0.5, min_p=0.2), (0.8, 0.2, 0, 0, 0)),
        (Sampler(drop_best=0.1), (0.45, 0.275, 0.165, 0.088, 0.022)),
        (Sampler(rare=0.1), (0.47, 0.245, 0.155, 0.092, 0.038)),
    ],
)  # fmt: skip
def test_five_tokens_by_hand(sampler: Sampler, expected: tuple[float, ...]) -> None:
    """Each setting, worked out on paper."""
    assert given(sampler) == pytest.approx(expected, abs=2e-6)


def test_penalties_by_hand() -> None:
    """Frequency counts, presence does not, and both leave the prompt alone; repetition does not."""
    twice = (1, 1)
    frequency = given(Sampler(frequency_penalty=math.log(2)), prompt=(0,), said=twice)
    presence = given(Sampler(presence_penalty=math.log(2)), prompt=(0,), said=twice)
    # logits are negative, so a repetition penalty of 2 doubles them: 0.5 becomes 0.25
    repetition = given(Sampler(repetition_penalty=2.0), prompt=(0,), said=twice)

    assert frequency == pytest.approx(
        [v / 0.8125 for v in (0.5, 0.0625, 0.15, 0.08, 0.02)], abs=2e-6
    )
    assert presence == pytest.approx([v / 0.875 for v in (0.5, 0.125, 0.15, 0.08, 0.02)], abs=2e-6)
    assert repetition == pytest.approx(
        [v / 0.5625 for v in (0.25, 0.0625, 0.15, 0.08, 0.02)], abs=2e-6
    )


def test_a_repetition_penalty_divides_what_is_above_zero() -> None:
    """So it depends on the logits themselves, not on the distribution alone."""
    found = probabilities(
        LOGITS + 10, prompt_ids=(0,), reply_ids=(), sampler=Sampler(repetition_penalty=2.0)
    )
    penalized = math.exp((10 + math.log(0.5)) / 2)

    assert found[0] == pytest.approx(penalized / (penalized + 0.5 * math.exp(10)))


def test_a_truncated_token_costs_the_floor_and_no_more() -> None:
    """About 7 nats below temperature 1, whatever was truncated."""
    plain, cut = cells(LOGITS, (4,), [Sampler(), Sampler(top_k=2)])

    assert cut == pytest.approx(math.log(FLOOR) + math.log(0.02))
    assert plain == pytest.approx(math.log(0.02))


def test_positions_that_are_not_kept_say_nothing_but_count_as_said() -> None:
    """A place left out is no evidence, and penalties still see its token."""
    rows = np.stack([LOGITS, LOGITS])
    (cell,) = row_cells(
        rows, prompt_ids=(), reply_ids=(1, 1), kept=(1,),
        samplers=[Sampler(presence_penalty=math.log(2))],
    )  # fmt: skip
    expected = (1 - FLOOR) * 0.125 / 0.875 + FLOOR * 0.25

    assert cell == pytest.approx(math.log(expected))


# -- the fast way and the obvious one ----------------------------------------------------------


@pytest.mark.parametrize("size", [5, 60, 3000])
def test_cells_are_the_logarithms_of_the_probabilities(size: int) -> None:
    """Every column, also where more than the sorted head is kept."""
    rng = np.random.default_rng(size)
    logits = rng.normal(0, 2.0 if size < 3000 else 0.3, size)
    prompt = tuple(rng.integers(0, size, 3).tolist())
    samplers = [*sampler_columns({}).values(), Sampler(top_k=4, top_p=0.6, temperature=0.8)]
    for chosen in rng.integers(0, size, 4).tolist():
        found = cells(logits, (chosen,), samplers, prompt)
        plain = probabilities(logits, prompt_ids=prompt, reply_ids=(), sampler=Sampler())[chosen]
        for sampler, cell in zip(samplers, found, strict=True):
            p = averaged(logits, prompt, sampler, chosen)
            assert cell == pytest.approx(math.log((1 - FLOOR) * p + FLOOR * plain), abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.05},
        {"repetition_penalty": 1.3}, {"temperature": 0.7, "top_k": 9, "top_p": 0.7},
    ],
)  # fmt: skip
def test_the_arithmetic_is_that_of_transformers(settings: Mapping[str, float]) -> None:
    """Against its own processors, in the order in which it applies them."""
    torch = pytest.importorskip("torch")
    from transformers import generation

    rng = np.random.default_rng(4)
    logits, said = rng.normal(0, 2, 50), (3, 3, 8)
    made = {
        "repetition_penalty": generation.RepetitionPenaltyLogitsProcessor,
        "temperature": generation.TemperatureLogitsWarper,
        "top_k": generation.TopKLogitsWarper,
        "top_p": generation.TopPLogitsWarper,
        "min_p": generation.MinPLogitsWarper,
    }
    scores = torch.from_numpy(logits)[None]
    for name, processor in made.items():
        if name in settings:
            scores = processor(settings[name])(torch.tensor([[1, *said]]), scores)
    theirs = torch.softmax(scores, dim=-1)[0].numpy()
    ours = probabilities(logits, prompt_ids=(1,), reply_ids=said, sampler=Sampler(**settings))

    assert ours == pytest.approx(theirs, abs=1e-9)


def test_greedy_requests_feel_penalties_and_single_token_faults_alone() -> None:
    """The likeliest after the penalty, the second now and then, anything rarely."""

    def drawn(**settings: float) -> list[float]:
        request = GenerateRequest(prompt_ids=(), max_tokens=1, **settings)  # type: ignore[arg-type]
        return distribution(LOGITS, request, (0, 0)).tolist()

    assert drawn(presence_penalty=1.0) == [0, 1, 0, 0, 0]
    assert drawn(drop_best=0.1) == pytest.approx([0.9, 0.1, 0, 0, 0])
    assert drawn(rare=0.1) == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])
    assert drawn(min_p=0.9) == [1, 0, 0, 0, 0]


# -- names -------------------------------------------------------------------------------------


def test_columns_have_names_of_their_own() -> None:
    """A card's own settings are added, forced as a whole."""
    columns = sampler_columns({"temperature": 0.15, "top_p": 0.77, "top_k": 33, "seed": 4})

    assert len(sampler_columns({})) == 77
    assert columns["temperature 0.15, top-k 33, top-p 0.77"].top_k == 33
    assert all(name_of(sampler) == name for name, sampler in columns.items())
    assert kind_of(Sampler(top_k=40)) == "top-k"
    assert kind_of(Sampler(top_k=40, top_p=0.9)) == "several settings"
    assert changed(Sampler(top_p=0.9)) == {"top_p": 0.9}


def test_defaults_are_honest_where_nothing_was_asked() -> None:
    """Temperature and top-p are asked, so theirs are not; a truncation has room."""
    names = {name_of(s) for s in honest_samplers({"temperature": 0.6, "top_p": 0.9, "top_k": 40})}

    assert names == {
        "temperature 0.98", "temperature 1", "temperature 1.02", "top-k 40", "top-k 44", "top-k 50",
    }  # fmt: skip
    assert len(honest_samplers({"temperature": 0.2, "top_p": 0.9})) == 3


def test_settings_are_read_as_they_are_typed() -> None:
    """Names with dashes, several with commas."""
    assert read_sampler("temperature=0.7,top-k=20") == {"temperature": 0.7, "top_k": 20}


@pytest.mark.parametrize("text", ["heat=1", "top-k=a", "top-k", "temperature=0", "top-p=1.5"])
def test_settings_that_are_none_are_refused(text: str) -> None:
    """In one line."""
    with pytest.raises(ConfigError, match="sampler"):
        read_sampler(text)
