"""Calibrations of several machines as one: level, power and known answers, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes_card import write_card
from measured import REFERENCE, calibration
from scipy import stats

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.evidence.calibration import Calibration, Channel, Machine, NoiseClass
from verifier.evidence.pooling import pool, why_not_pooled
from verifier.evidence.stacks import chance_above_all, predict_scale
from verifier.files.run_folder import write_json
from verifier.reference.calibrations import is_calibrated, load_calibration, write_calibration
from verifier.reference.cards import load_card
from verifier.reports.tables import describe_calibration

# -- known answers -----------------------------------------------------------------------------


def test_the_noisiest_stack_of_all_sets_the_floor() -> None:
    """Stacks of all are there, each named by whose it is; the mildest variant and class stand."""
    own = calibration(0.02, 0.03, held_out=0.03)
    milder = (NoiseClass(name="fp8-class rounding", scale=0.3, basis="theirs"),)
    theirs = calibration(0.05, 0.06, classes=milder)
    wide = Channel(honest_scale=theirs.text.honest_scale, spread=0.3, learning_rate=0.5)
    theirs = theirs.model_copy(update={"text": wide})
    pooled = pool(own, {"a100": theirs})

    assert pooled.text.honest_scale == theirs.text.honest_scale
    assert (pooled.text.spread, pooled.text.learning_rate) == (0.3, 0.5)
    assert [s.name for s in pooled.stacks] == [
        "bfloat16-batch2", "bfloat16-batch3", "bfloat16-batch1",
        "bfloat16-batch2 (a100)", "bfloat16-batch3 (a100)", "fp8-channel",
    ]  # fmt: skip
    assert [(c.scale, c.basis) for c in pooled.classes] == [(0.3, "theirs")]
    assert pooled.zone is not None
    assert (pooled.zone.stacks, pooled.zone.alike) == (5, 5)


def test_the_zone_is_predicted_from_the_stacks_of_all() -> None:
    """By Student's t with one degree of freedom less than they are, as scipy has it."""
    scales = (0.03, 0.034, 0.038, 0.043, 0.05, 0.055)
    pooled = pool(calibration(*scales[:3], classes=()), {"b": calibration(*scales[3:], classes=())})
    logs = np.log(scales)
    width = logs.std(ddof=1) * math.sqrt(1 + 1 / 6)
    expected = math.exp(stats.t.ppf(0.999, 5, logs.mean(), width))

    assert predict_scale(scales) == pytest.approx(expected)
    assert pooled.text.tolerated >= expected * (1 - 1e-9)
    assert pooled.zone is not None
    assert pooled.zone.risk == pytest.approx(
        float(stats.t.sf(math.log(pooled.text.tolerated), 5, logs.mean(), width))
    )


def test_a_calibration_alone_is_itself() -> None:
    """Nothing is read otherwise for a list that is empty."""
    own = calibration(0.02, 0.03)

    assert pool(own, {}) is own


# -- level and power ---------------------------------------------------------------------------


def draws(rng: np.random.Generator, count: int) -> tuple[float, ...]:
    return tuple(float(one) for one in 0.04 * np.exp(rng.normal(0, 0.15, count)))


def test_a_new_stack_is_above_the_floor_as_seldom_as_is_said() -> None:
    """One in ten above all of nine stacks of three machines, one in four above three of one; above
    what is tolerated hardly ever, and a fault of ten times the noise always."""
    rng = np.random.default_rng(20)
    tries, above_all, above_own, above_zone, faults = 400, 0, 0, 0, 0
    for _ in range(tries):
        parts = [draws(rng, 3) for _ in range(3)]
        own, *others = (calibration(*part, classes=()) for part in parts)
        pooled = pool(own, {str(n): one for n, one in enumerate(others)})
        (new,) = draws(rng, 1)
        above_all += new > max(map(max, parts))
        above_own += new > max(parts[0])
        above_zone += new > pooled.text.tolerated
        faults += 10 * new > pooled.text.tolerated

    for found, chance in ((above_all, chance_above_all(9)), (above_own, chance_above_all(3))):
        assert abs(found - tries * chance) < 4 * math.sqrt(tries * chance * (1 - chance))
    assert above_zone <= 4
    assert faults == tries


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"measured": REFERENCE.model_copy(update={"dtype": "bfloat16"})}, "another reference"),
        ({"measured": None}, "another reference (not on record, not in float32)"),
        ({"measured": REFERENCE.model_copy(update={"top_logprobs": 20})}, "another reference"),
        ({"tensors_sha256": "2" * 64}, "another weights"),
        ({"card": "other"}, "another card (other, not tiny)"),
        ({"max_tokens": 64}, "another longest reply (64, not 30)"),
        ({"held_out": 0.2}, "its stack bfloat16-batch1 was held out and is noisier"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_pooled_says_why(changes: dict[str, Any], why: str) -> None:
    """In a few words."""
    said = why_not_pooled(calibration(0.02), calibration(0.03, **changes))

    assert said is not None
    assert why in said
    assert "\n" not in said


def test_the_kernels_of_an_exact_reference_do_not_count() -> None:
    """In float32 no choice of theirs moves a score by what a host rounds."""
    other = REFERENCE.model_copy(update={"engine": "vllm", "versions": {"torch": "9"}})

    assert why_not_pooled(calibration(0.02), calibration(0.03, measured=other)) is None


def contribute(folder: Path, *others: Calibration, own: Calibration | None = None) -> str:
    """A card in a folder that lists these calibrations."""
    listed = []
    for n, one in enumerate(others):
        path = folder / f"other{n}.calibration.json"
        write_json(path, one.model_dump(mode="json"))
        listed.append({"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    name = str(write_card(folder, calibrations=listed))
    if own is not None:
        write_calibration(name, own)
    return name


def test_contributed_calibrations_count_with_the_cards_own(tmp_path: Path) -> None:
    """Checked by their digests and taken as one."""
    own, other = calibration(0.02, 0.03), calibration(0.05)
    name = contribute(tmp_path, other, own=own)
    found = load_calibration(name, load_card(name))

    assert found.text.honest_scale == other.text.honest_scale
    assert "bfloat16-batch2 (other0)" in [s.name for s in found.stacks]


def test_a_contributed_calibration_alone_is_one(tmp_path: Path) -> None:
    """Nobody need measure what somebody has."""
    name = contribute(tmp_path, calibration(0.05))

    assert is_calibrated(name)
    assert load_calibration(name, load_card(name)).text == calibration(0.05).text.model_copy(
        update={"tolerated_scale": load_calibration(name, load_card(name)).text.tolerated_scale}
    )


def test_an_edited_calibration_is_refused(tmp_path: Path) -> None:
    """By one bit."""
    name = contribute(tmp_path, calibration(0.05), own=calibration(0.02))
    path = tmp_path / "other0.calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 2}))

    with pytest.raises(ReferenceMismatch, match=r"other0\.calibration\.json: is not what the card"):
        load_calibration(name, load_card(name))


def test_a_missing_calibration_is_refused(tmp_path: Path) -> None:
    """It is named."""
    name = contribute(tmp_path, calibration(0.05))
    (tmp_path / "other0.calibration.json").unlink()

    with pytest.raises(ConfigError, match=r"other0\.calibration\.json"):
        load_calibration(name, load_card(name))


def test_a_calibration_is_contributed_once(tmp_path: Path) -> None:
    """Neither twice, nor beside itself, nor under another seed with the same numbers."""
    twice = contribute(tmp_path, calibration(0.05), calibration(0.05))
    with pytest.raises(ConfigError, match=r"other1\.calibration\.json is contributed twice"):
        load_card(twice)
    again = contribute(tmp_path, calibration(0.05), own=calibration(0.05))
    with pytest.raises(ReferenceMismatch, match="is the card's own calibration"):
        load_calibration(again, load_card(again))
    restated = contribute(tmp_path, calibration(0.05), calibration(0.05, seed=9))
    (tmp_path / "tiny.calibration.json").unlink()
    with pytest.raises(ReferenceMismatch, match="the same measurement again"):
        load_calibration(restated, load_card(restated))


def test_a_calibration_of_another_reference_is_refused(tmp_path: Path) -> None:
    """With both, in one line."""
    bf16 = REFERENCE.model_copy(update={"dtype": "bfloat16"})
    name = contribute(tmp_path, calibration(0.05, measured=bf16), own=calibration(0.02))

    with pytest.raises(
        ReferenceMismatch, match=r"in bfloat16 \(transformers\), not in float32"
    ) as no:
        load_calibration(name, load_card(name))
    assert "\n" not in str(no.value)


def test_a_card_that_lists_none_is_the_card_it_was(tmp_path: Path) -> None:
    """Its digest does not change by what could be listed."""
    bare = load_card(str(write_card(tmp_path)))
    listed = load_card(contribute(tmp_path, calibration(0.05)))

    assert bare.calibrations == ()
    assert bare.digest != listed.digest


def test_what_a_calibration_rests_on_is_shown() -> None:
    """Its machine, its reference, and how sure its floor is."""
    machine = Machine(processor="A processor", cores=2, memory_gib=8)
    rows = dict(describe_calibration(calibration(0.02, 0.03, held_out=0.02, machine=machine)))

    assert rows["Floor"].startswith("0.035, set by 2 honest stacks and checked by 1; a new one")
    assert "probability 0.33" in rows["Floor"]
    assert rows["Machine"] == "A processor, 2 cores, 8 GiB"
    assert rows["Scored by"] == "in float32"
