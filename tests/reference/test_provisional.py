"""The provisional floor: whose noise it is, how wide, what it accuses of, and what it refuses."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import write_card
from simulate import decide, make_calibration, make_plan, replies, simulate_row

from verifier.config import Policy, resolve_policy
from verifier.errors import ConfigError, ReferenceMismatch
from verifier.evidence.calibration import Calibration, Channel, Lender, Provisional
from verifier.evidence.ledger import Ledger
from verifier.evidence.stacks import predict_scale
from verifier.files.run_folder import write_json
from verifier.plan_file import Plan, batch_ends
from verifier.records import Report
from verifier.reference.calibrations import calibration_path, load_calibration
from verifier.reference.cards import Card, load_card
from verifier.reference.provisional import (
    ALONE,
    EACH,
    Known,
    calibration_for,
    differences,
    make_provisional,
    precision_class,
    refuse_finer,
)

DENSE, EXPERTS, EIGHT_BITS = "qwen3-8b", "qwen3-30b-a3b", "minimax-m2.7"
LENDER = "smollm2-135m-instruct"

#: The largest scale that honest stacks of the lender reach, and its builds' own, as measured.
OWN, FP8, INT4 = 0.0708, 0.2, 0.63


#: That a calibration was made of another card's.
LENT = Provisional(lenders=(Lender(card="x", tensors_sha256="0" * 64),), kappa=1.6)


@cache
def lent(name: str = DENSE) -> Calibration:
    return calibration_for(name, load_card(name))


def card_of(name: str, **changes: Any) -> Card:
    """A card of this name, else like a dense one that ships."""
    return load_card(DENSE).model_copy(update={"name": name, **changes})


def known(*floors: float, **changes: Any) -> list[Known]:
    """Calibrated dense cards with these floors, of weights of their own."""
    return [
        (
            card_of(f"model-{n}"),
            make_calibration(
                card=f"model-{n}", tensors_sha256=f"{n:064d}",
                text=Channel(honest_scale=floor, spread=0.1, learning_rate=1.0), **changes,
            ),
        )
        for n, floor in enumerate(floors, 1)
    ]  # fmt: skip


# -- level and power -------------------------------------------------------------------------------


def plan_of(name: str = DENSE) -> Plan:
    return make_plan(calibration=lent(name), policy=resolve_policy("screen")[1], max_tokens=48)


def ended(plan: Plan, scale: float, *, seed: int, most: int = 30) -> Report:
    """The verdict on a host of this noise, looked at after every batch."""
    rng = np.random.default_rng(seed)
    rows = [simulate_row(rng, f"p{n}", scale=scale, tokens=40) for n in range(most)]
    for end in batch_ends(most, stop=plan.min_replies):
        report = decide(plan, Ledger(rows=tuple(rows[:end])), outcomes=replies(rows[:end]))
        if report.decision != "inconclusive":
            break
    return report


@pytest.mark.parametrize("name", [DENSE, EXPERTS])
@pytest.mark.parametrize("times", [1, 1.5, 2, 3])
def test_an_honest_host_of_a_noisier_model_is_accused_by_nobody(name: str, times: float) -> None:
    """Level: up to three times the noise that any stack of the lender reaches."""
    found = [ended(plan_of(name), times * OWN, seed=seed).decision for seed in range(6)]

    assert "inconsistent" not in found
    if (name, times) == (DENSE, 1):
        assert found == ["consistent"] * 6


@pytest.mark.parametrize("scale", [FP8, 0.27])
def test_noise_that_is_finer_than_of_four_bits_is_accused_by_nobody(scale: float) -> None:
    """As of fp8 on the lender's model, and just below the class: nor is it certified."""
    found = [ended(plan_of(), scale, seed=seed) for seed in range(6)]

    assert {report.decision for report in found} == {"inconclusive"}
    if scale == FP8:
        assert all("noise above what is known of honest stacks (0.14)" in r.summary for r in found)
        assert all("a verdict would need a calibration" in " ".join(r.notes) for r in found)


def test_every_first_line_says_whose_noise_it_is() -> None:
    """Whatever the verdict; and the signature and a note have the rest."""
    for scale, decision in ((0.05, "consistent"), (FP8, "inconclusive"), (INT4, "inconsistent")):
        report = ended(plan_of(EXPERTS), scale, seed=1)

        assert report.decision in (decision, "inconclusive")
        assert report.summary.startswith(
            "provisional: nobody has calibrated tiny; the honest noise is taken from "
            f"{LENDER} (dense where this is of experts): "
        )
        assert report.signature["provisional"] is not None
        assert any(note.startswith("nobody has calibrated this card, so") for note in report.notes)
    assert report.noise_scale.equivalent.endswith(f", as on {LENDER}")


@pytest.mark.parametrize("name", [DENSE, EXPERTS])
def test_noise_as_of_four_bits_is_accused(name: str) -> None:
    """Power: within ten replies each time; a few more, and the class is detected."""
    found = [ended(plan_of(name), INT4, seed=seed, most=10) for seed in range(6)]
    rng = np.random.default_rng(1)
    rows = [simulate_row(rng, f"p{n}", scale=INT4, tokens=40) for n in range(20)]
    more = decide(plan_of(name), Ledger(rows=tuple(rows)), outcomes=replies(rows))

    assert [report.decision for report in found] == ["inconsistent"] * 6
    assert more.findings[0].name == "4-bit-class rounding"
    assert more.findings[0].decision == "detected"


def test_what_a_host_reports_accuses_of_nothing_finer_either() -> None:
    """Log-probabilities as far off as fp8 shifts them, and as 4 bits do."""
    plan = plan_of().model_copy(update={"top_logprobs": 5})

    def judged(scale: float) -> str:
        rng = np.random.default_rng(3)
        rows = [
            simulate_row(rng, f"p{n}", scale=scale, logprob_scale=1.2 * scale, tokens=40)
            for n in range(20)
        ]
        return decide(plan, Ledger(rows=tuple(rows)), outcomes=replies(rows)).decision

    assert (judged(FP8), judged(INT4)) == ("inconclusive", "inconsistent")


# -- known answers ---------------------------------------------------------------------------------


def test_what_one_model_lends_is_twice_as_wide_either_way() -> None:
    """Of the embedded model: by hand from its calibration."""
    own, made = load_calibration(LENDER, load_card(LENDER)), lent()
    classes = {one.name: one for one in made.classes}

    assert made.provisional is not None
    assert made.provisional.lent_by == LENDER
    assert made.provisional.lenders[0].tensors_sha256 == own.tensors_sha256
    assert made.text.honest_scale == pytest.approx(ALONE * own.text.honest_scale)
    assert made.text.tolerated == pytest.approx(10**-0.55)  # the last below 0.3155
    assert made.logprob.tolerated == pytest.approx(10**-0.4)  # below half of nf4-g64's 0.89
    assert list(classes) == ["4-bit-class rounding", "one layer dropped", "another model"]
    assert classes["4-bit-class rounding"].to_exclude == pytest.approx(0.3155 / ALONE)
    assert classes["4-bit-class rounding"].scale > made.text.tolerated
    assert (made.text.spread, made.text.learning_rate) == (0.15, 1.0)


def test_three_models_predict_the_next_one() -> None:
    """Student's t on their scales; never less than one rounding on another."""
    apart, alike = known(0.03, 0.04, 0.05), known(0.05, 0.05, 0.05)
    predicted = predict_scale([0.03, 0.04, 0.05])
    wide, narrow = (make_provisional(card_of("new"), some) for some in (apart, alike))
    assert wide is not None
    assert narrow is not None
    assert predicted is not None

    assert wide.text.honest_scale == pytest.approx(min(predicted, wide.text.tolerated))
    assert narrow.text.honest_scale == pytest.approx(math.sqrt(2) * 0.05)


def test_the_most_cautious_of_the_lenders_holds() -> None:
    """The largest noise and spread, the smallest rate and the shortest replies."""
    (quiet, noisy) = known(0.05, 0.1)
    noisy = (noisy[0], noisy[1].model_copy(update={
        "text": Channel(honest_scale=0.1, spread=0.3, learning_rate=0.5), "max_tokens": 20,
    }))  # fmt: skip
    made = make_provisional(card_of("new"), [quiet, noisy])
    assert made is not None

    assert made.text.honest_scale == pytest.approx(ALONE * 0.1)
    assert (made.text.spread, made.text.learning_rate, made.max_tokens) == (0.3, 0.5, 20)


# -- whose noise it is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        (DENSE, ()),
        (EXPERTS, ("dense where this is of experts",)),
        (EIGHT_BITS, ("dense where this is of experts",
                      "published in 16 bits or more where this is in 8 bits")),
        ("gpt-oss-20b", ("dense where this is of experts",
                         "published in 16 bits or more where this is in 4 bits")),
    ],
)  # fmt: skip
def test_what_differs_is_named_and_widens_both_ends(name: str, differs: tuple[str, ...]) -> None:
    """Each respect by the root of 2."""
    made, plain = lent(name), lent()
    wider = EACH ** len(differs)
    assert made.provisional is not None

    assert differences(load_card(name), load_card(LENDER)) == differs
    assert made.provisional.lenders[0].differs == differs
    assert all(words in made.provisional.lent_by for words in differs)
    assert made.text.honest_scale == pytest.approx(wider * plain.text.honest_scale, rel=1e-6)
    assert made.text.tolerated >= wider * plain.text.tolerated * 10**-0.05
    assert made.classes[0].to_exclude == pytest.approx(plain.classes[0].to_exclude / wider)


def test_a_card_of_the_same_kind_lends_before_any_other() -> None:
    """One that differs in nothing leaves the others out."""
    (dense,) = known(0.05)
    own = load_card(EXPERTS).model_copy(update={"name": "mixture"})
    mixture = (own, make_calibration(card="mixture", tensors_sha256="9" * 64))
    made = make_provisional(load_card(EXPERTS), [dense, mixture])
    assert made is not None
    assert made.provisional is not None

    assert made.provisional.lent_by == "mixture"


def test_nobody_lends_to_itself() -> None:
    """Neither a card of that name, nor another card of the same weights; nor what was lent."""
    (other,) = known(0.05)
    pinned = card_of("new", digests=other[0].digests.model_copy(
        update={"tensors_sha256": other[1].tensors_sha256}
    ))  # fmt: skip

    assert make_provisional(other[0], [other]) is None
    assert make_provisional(pinned, [other]) is None
    assert make_provisional(card_of("new"), [(other[0], lent())]) is None
    assert make_provisional(card_of("new"), []) is None


@pytest.mark.parametrize(
    ("precision", "bits"),
    [
        ("bfloat16", "16 bits or more"), ("fp8 e4m3", "8 bits"), ("int8 (gptq)", "8 bits"),
        ("int4 in groups of 32 (compressed-tensors)", "4 bits"), ("mxfp4 experts", "4 bits"),
        ("nvfp4 (modelopt)", "4 bits"), ("unknown (packed)", "an unknown precision"),
    ],
)  # fmt: skip
def test_a_published_precision_is_of_few_classes(precision: str, bits: str) -> None:
    """That of the coarsest weights."""
    assert precision_class(card_of("new", precision=precision)) == bits


# -- what it does not serve ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("standard", "names fp8-class rounding, which nobody"),
        ("strict", "names int8-class rounding, which nobody"),
        ("routing", "names 5 % of the requests to 4-bit-class rounding, which nobody"),
        (Policy(noise=(), builds=("fp8-channel",)), "custom names the build fp8-channel, which"),
        (Policy(noise=(), builds=("all",)), "custom names the build"),
        (Policy(noise=(), builds=("gguf-q4-k-m",)), "custom names the build gguf-q4-k-m"),
    ],
)  # fmt: skip
def test_a_policy_that_asks_for_finer_is_refused_in_one_line(policy: Any, why: str) -> None:
    """With the policy that works, and the command that calibrates."""
    name, wanted = resolve_policy(policy)
    with pytest.raises(ConfigError, match=why) as refused:
        refuse_finer(name, wanted, load_card(DENSE), lent(), of=DENSE)

    assert "\n" not in str(refused.value)
    assert "take screen (--policy screen)" in str(refused.value)
    assert f"run `verifier calibrate {DENSE}`" in str(refused.value)


def test_what_is_told_from_noise_is_not_refused() -> None:
    """Screen, builds of 4 bits, and everything where the card is calibrated."""
    card, own = load_card(DENSE), load_calibration(LENDER, load_card(LENDER))
    refuse_finer(*resolve_policy("screen"), card, lent(), of=DENSE)
    refuse_finer("custom", Policy(noise=(), builds=("nf4-g64",)), card, lent(), of=DENSE)
    refuse_finer(*resolve_policy("strict"), card, own, of=DENSE)


# -- calibrations that are not a card's own --------------------------------------------------------


@pytest.mark.parametrize(
    ("digests", "changes", "why"),
    [
        ({}, {"tensors_sha256": "1" * 64}, "made for weights 111111111111, but the card pins 0000"),
        ({"tensors_sha256": None}, {"card": "other"}, "made for card 'other', and card 'tiny'"),
        ({}, {"provisional": LENT}, "of other cards"),
    ],
    ids=["other weights", "another card", "lent"],
)  # fmt: skip
def test_a_calibration_of_another_reference_is_refused_in_one_line(
    tmp_path: Path, digests: Any, changes: Any, why: str
) -> None:
    """Whose it is, and what to do."""
    pins = load_card(LENDER).digests.model_copy(update={"tensors_sha256": "0" * 64, **digests})
    path = str(write_card(tmp_path, digests=pins.model_dump()))
    write_json(calibration_path(path), make_calibration(**changes).model_dump(mode="json"))
    with pytest.raises(ReferenceMismatch, match=why) as refused:
        calibration_for(path, load_card(path))

    assert "\n" not in str(refused.value)
    assert "run `verifier calibrate" in str(refused.value)
