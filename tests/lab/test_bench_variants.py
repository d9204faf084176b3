"""How far each known variant moves the embedded model: the figures that are committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from verifier.files.run_folder import read_json
from verifier.lab.bench.variants import shift_of, tabulate_variants
from verifier.records import ReplyScore
from verifier.reference.variants import CLASS_MARGINS, VARIANTS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reference" / "benchmarks" / "variants.benchmark.json"


def measured() -> dict[str, dict[str, float | None]]:
    return {one["name"]: one for one in read_json(RESULTS)["variants"]}


def score(*logprobs: float) -> ReplyScore:
    n = len(logprobs)
    return ReplyScore(
        logprobs=logprobs, ranks=(1,) * n, entropies=(0.0,) * n, top_ids=(7,) * n,
        top_logprobs=((-0.5,),) * n, candidate_logprobs=None,
    )  # fmt: skip


def test_a_shift_is_a_root_mean_square_over_all_tokens() -> None:
    """By hand: changes of 3, 0, 0 and -4 nats over two replies."""
    before = [score(-1.0, -2.0, -3.0), score(-1.0)]
    after = [score(-4.0, -2.0, -3.0), score(3.0)]

    assert shift_of(before, after) == pytest.approx((25 / 4) ** 0.5)


def test_every_variant_was_measured_and_the_bank_is_mildest_first() -> None:
    """By the error of the weights, of down_proj where the model's other widths are not taken."""
    found = measured()
    errors = [
        found[name]["error"] or found[name]["error_down"]
        for name, variant in VARIANTS.items()
        if variant.in_bank
    ]
    known = [error for error in errors if error is not None]

    assert found.keys() == VARIANTS.keys()
    assert known == sorted(known)


def test_the_margins_of_the_classes_hold_on_what_was_measured() -> None:
    """No build of a class lies below its margin beside the plain rounding that cards name; with 4
    bits also where it optimises its error, as one made like AWQ's does (0.77)."""
    found = measured()

    def share(name: str, plain: str) -> float:
        one, other = found[name]["shift"], found[plain]["shift"]
        return one / other if one and other else 1.0

    for label, plain, gain in (
        ("int8-class rounding", "int8-channel", 1.0),
        ("fp8-class rounding", "fp8-channel", 1.0),
        ("4-bit-class rounding", "int4-asym-g64", 0.77),
    ):
        families, margin = CLASS_MARGINS[label]
        members = [name for name, v in VARIANTS.items() if v.family in families]
        assert members
        assert min(gain * share(name, plain) for name in members) > margin, label


def test_gguf_builds_are_in_no_class() -> None:
    """Q8_0 lies below the margin of 8 bits, and mixes have more bits than their names say here."""
    found = measured()
    q8, int8 = found["gguf-q8-0"]["shift"], found["int8-channel"]["shift"]
    q4, int4 = found["gguf-q4-k-m"]["shift"], found["int4-asym-g64"]["shift"]
    assert q8
    assert int8
    assert q4
    assert int4

    assert q8 / int8 < CLASS_MARGINS["int8-class rounding"][1]
    assert q4 / int4 < CLASS_MARGINS["4-bit-class rounding"][1]
    assert not {"gguf", "cache"} & {f for families, _ in CLASS_MARGINS.values() for f in families}


def test_the_page_shows_the_committed_figures() -> None:
    """Figures are never written by hand."""
    table = tabulate_variants(read_json(RESULTS))

    assert table in RESULTS.with_name("README.md").read_text(encoding="utf-8")
