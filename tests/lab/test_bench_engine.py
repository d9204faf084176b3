"""What the vLLM engine costs: the figures that are committed."""

from __future__ import annotations

from pathlib import Path

from verifier.files.run_folder import read_json
from verifier.lab.bench.engine import VARIANTS, tabulate_engine

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reference" / "benchmarks" / "engine.benchmark.json"


def test_the_committed_figures_are_those_that_were_promised() -> None:
    """Nine tenths of vLLM's own pace, a bank for a fifth more than its passes, memory flat."""
    results = read_json(RESULTS)
    few, *_, many = results["memory"]

    assert results["throughput"]["ratio_to_vllm"] >= 0.9
    assert len(results["bank"]["variants"]) == VARIANTS == 12
    assert results["bank"]["cost_in_plain_passes"] <= 1.2 * VARIANTS
    assert (few["replies"], many["replies"]) == (250, 1000)
    assert many["this_process_mib"] < 1.1 * few["this_process_mib"]
    assert many["vllm_mib"] < 1.1 * few["vllm_mib"]


def test_the_page_shows_the_committed_figures() -> None:
    """Figures are never written by hand."""
    table = tabulate_engine(read_json(RESULTS))

    assert table in RESULTS.with_name("README.md").read_text(encoding="utf-8")
