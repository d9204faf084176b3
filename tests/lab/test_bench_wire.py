"""What collecting withstands: the measurements in small, and the figures that are committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verifier.files.run_folder import read_json
from verifier.lab.bench.wire import KILLS, PROBES, measure_kills, measure_storm, tabulate
from verifier.lab.testbed.script import LONGEST, script

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reference" / "benchmarks" / "wire.benchmark.json"


def body(prompt: str, *, stream: bool) -> bytes:
    asked = {
        "model": "m", "messages": [{"role": "user", "content": prompt}], "stream": stream,
        "logprobs": True, "top_logprobs": 5,
    }  # fmt: skip
    return json.dumps(asked).encode()


def test_the_script_says_the_same_to_the_same_prompt() -> None:
    """So that an answer which came through a storm can be compared with one that did not."""
    assert script(body("a", stream=False)) == script(body("a", stream=False))
    assert script(body("a", stream=False)) != script(body("b", stream=False))


@pytest.mark.slow
def test_a_storm_in_small_loses_nothing(tmp_path: Path) -> None:
    """Twelve streamed probes: none lost, counted twice or changed, and the faults are counted."""
    rates = {"malformed": 0.2, "event twice": 0.2, "events swapped": 0.2}
    found = measure_storm(tmp_path, stream=True, count=12, seed=2, rates=rates)

    assert (found["lost"], found["duplicated"], found["changed"]) == (0, 0, 0)
    assert 12 < found["requests"] <= 12 + found["spoilt"]  # an event that comes twice is read
    assert found["spoilt"] > 0
    assert found["peak_mb"] > 0


@pytest.mark.slow
def test_a_run_killed_twice_equals_one_never_killed(tmp_path: Path) -> None:
    """The kills happen, and change nothing."""
    found = measure_kills(tmp_path, kills=2, seed=1)

    assert found["kills"] == 2
    assert (found["lost"], found["duplicated"], found["equal"]) == (0, 0, True)


def test_the_committed_figures_are_those_that_were_promised() -> None:
    """1,000 probes a storm, 100 kills, nothing lost or counted twice, as fast as a bare loop."""
    results = read_json(RESULTS)

    assert [storm["replies"] for storm in results["storms"]] == ["whole", "streams"]
    for storm in results["storms"]:
        assert storm["probes"] == PROBES == 1000
        assert (storm["lost"], storm["duplicated"], storm["changed"]) == (0, 0, 0)
        assert storm["peak_mb"] < 1.2 * storm["clear_peak_mb"]
        assert sum(storm["faults"].values()) == storm["spoilt"] > 200
    kills = results["kills"]
    assert kills["kills"] == KILLS == 100
    assert (kills["lost"], kills["duplicated"], kills["equal"]) == (0, 0, True)
    assert all(speed["ratio"] >= 0.9 for speed in results["speed"])
    assert {verdict["decision"] for verdict in results["verdicts"]} == {"consistent"}


def test_the_page_shows_the_committed_figures() -> None:
    """Figures are never written by hand."""
    table = tabulate(read_json(RESULTS))

    assert table in RESULTS.with_name("README.md").read_text(encoding="utf-8")
    assert LONGEST == 48
