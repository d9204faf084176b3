"""Leaving calibrated cards out: what others lend is held against what a card's own model shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulate import make_calibration

from verifier.evidence.calibration import Channel, Estimate, Stack
from verifier.files.run_folder import read_json
from verifier.lab.bench.provisional import (
    PART,
    leave_out,
    run_provisional_bench,
    tabulate_provisional,
)
from verifier.lab.bench.results import results_path
from verifier.reference.cards import load_card
from verifier.reference.provisional import Known


def model(n: int, *, honest: float, int4: float) -> Known:
    """A calibrated dense model of which an honest stack and a 4-bit build have these scales."""
    name = f"model-{n}"

    def stack(called: str, scale: float, **of: Any) -> Stack:
        about = Estimate(estimate=scale, lower=scale * 0.9, upper=scale * 1.1)
        return Stack(name=called, replies=32, tokens=900, text=about, logprob=about, **of)

    calibration = make_calibration(
        card=name, tensors_sha256=f"{n:064d}",
        text=Channel(honest_scale=1.1 * honest, spread=0.1, learning_rate=1.0),
        stacks=(
            stack("bfloat16-batch32", honest, role="calibration"),
            stack("fp8-channel", 0.2, role="variant", family="fp8"),
            stack("int4-sym-g64", int4, role="variant", family="4-bit"),
        ),
    )  # fmt: skip
    return load_card("qwen3-8b").model_copy(update={"name": name}), calibration


def test_models_that_are_alike_are_judged_as_they_ought_to_be() -> None:
    """Honest stacks and fp8 held against nobody, 4 bits held against the host."""
    found = leave_out([model(n, honest=0.05 + 0.005 * n, int4=0.6) for n in range(4)])

    assert found[0]["lenders"] == ["model-1", "model-2", "model-3"]
    for one in found:
        assert one["honest_accused"] == one["finer_accused"] == one["coarse_certified"] == []
        assert one["coarse_accused"] == ["int4-sym-g64"]


def test_a_model_unlike_the_others_shows_what_goes_wrong() -> None:
    """One that is so noisy that honest stacks would be accused; one whose 4 bits are certified."""
    others = [model(n, honest=0.05, int4=0.6) for n in range(3)]
    noisy, mild = model(8, honest=0.5, int4=0.9), model(9, honest=0.05, int4=0.1)
    (loud,) = [one for one in leave_out([*others, noisy]) if one["card"] == "model-8"]
    (quiet,) = [one for one in leave_out([*others, mild]) if one["card"] == "model-9"]

    assert loud["honest_accused"] == ["bfloat16-batch32"]
    assert quiet["coarse_certified"] == ["int4-sym-g64"]
    assert quiet["coarse_accused"] == []
    assert "| model-8 | model-0, model-1, model-2 |" in tabulate_provisional({"each": [loud]})


def test_one_card_alone_is_left_out_of_nothing(tmp_path: Path) -> None:
    """And the results say so."""
    run_provisional_bench(tmp_path / "new", seed=1, tell=lambda _line: None)
    results = read_json(results_path(tmp_path / "new", PART))

    assert results["each"] == []
    assert tabulate_provisional(results).startswith("Of the cards 1 is calibrated")
