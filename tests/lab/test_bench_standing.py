"""The standing bet against our own null: what enters, what it is worth, and that it is kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verifier.files.run_folder import read_json
from verifier.lab.bench import standing
from verifier.lab.bench.results import CARD, results_path, write_results
from verifier.lab.bench.standing import (
    MOST,
    REFUTED,
    STAKE,
    append_audits,
    is_whole,
    keep_standing,
    list_audits,
    tabulate_standing,
    wealth,
)
from verifier.lab.pages import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]


def precision(
    *hosts: tuple[str, list[tuple[int, int, float]]], seed: int = 1, part: str = "honest"
) -> dict[str, Any]:
    """Results of a part: hosts with audits of (first, replies, log e)."""
    figures = [
        {
            "figure": name, "part": part,
            "each": [{"first": f, "replies": n, "log_e": e} for f, n, e in audits],
        }
        for name, audits in hosts
    ]  # fmt: skip
    return {CARD: {"seed": seed, "figures": figures}}


# -- level -------------------------------------------------------------------------------------


def test_a_valid_null_is_refuted_as_seldom_as_said() -> None:
    """Lotteries with a mean of 1, as unlucky as can be: 1 in 50 audits accuses. At 1 in 20."""
    rng, reached = np.random.default_rng(6), 0
    for _ in range(100):
        e_values = np.where(rng.random(300) < 1 / 50, 50.0, 0.0)
        audits = [(n, 1, float(np.log(max(e, 1e-9)))) for n, e in enumerate(e_values)]
        reached += max(wealth(append_audits(None, precision(("a", audits))))) >= 20

    assert reached <= 100 / 20 + 3 * np.sqrt(100 / 20)


# -- power -------------------------------------------------------------------------------------


def test_a_null_that_is_wrong_is_refuted() -> None:
    """A host that accuses one honest audit in fifty, at what alpha allows in a thousand."""
    audits = [(n, 1, 7.0 if n % 50 == 9 else -4.0) for n in range(300)]

    assert max(wealth(append_audits(None, precision(("a", audits))))) >= REFUTED


# -- known answer ------------------------------------------------------------------------------


def test_what_it_is_worth_by_hand() -> None:
    """Two hosts asked the same enter once, by the mean; one e-value is cut."""
    found = precision(("a", [(0, 10, 0.0), (10, 10, 50.0)]), ("b", [(0, 10, np.log(3.0))]))
    worth = wealth(append_audits(None, found))

    first = 1 + STAKE * ((1 + 3) / 2 - 1)
    assert worth == pytest.approx([first, first * (1 + STAKE * (MOST - 1))])


def test_audits_that_share_a_probe_enter_together() -> None:
    """Also where one meets two others; those of another seed do not."""
    made = append_audits(
        None,
        precision(("a", [(0, 10, -1.0), (10, 10, -1.0), (20, 10, -1.0)]), ("b", [(5, 10, 0.0)])),
    )
    again = append_audits(made, precision(("a", [(0, 10, -1.0)]), seed=2))

    assert [len(entry[1]) for entry in made["each"]] == [3, 1]
    assert [len(entry[1]) for entry in again["each"]] == [3, 1, 1]


# -- what is kept ------------------------------------------------------------------------------


def test_what_has_entered_stays_and_enters_once() -> None:
    """The same again changes nothing; measured anew, the first value stands."""
    before = append_audits(None, precision(("a", [(0, 10, -1.0), (10, 10, -2.0)])))
    again = append_audits(before, precision(("a", [(0, 10, 9.0), (10, 10, 9.0), (20, 10, -3.0)])))

    assert append_audits(before, precision(("a", [(0, 10, -1.0)])))["each"] == before["each"]
    assert again["each"][:2] == before["each"]
    assert again["each"][2][1] == [["precision a", 20, 10, -3.0]]


def test_another_audit_of_probes_that_have_entered_comes_late() -> None:
    """It is counted, and said."""
    before = append_audits(None, precision(("a", [(0, 10, -1.0)])))
    after = append_audits(before, precision(("b", [(5, 10, 9.0)])))

    assert after["each"] == before["each"]
    assert after["absent"]["late"]["audits"] == 1
    assert "late" in tabulate_standing(after)


def test_a_line_that_is_changed_shows() -> None:
    """So does one that is taken out."""
    made = append_audits(None, precision(("a", [(n, 1, -1.0) for n in range(4)])))
    changed, shorter = copy.deepcopy(made), copy.deepcopy(made)
    changed["each"][1][1][0][3] = -9.0
    del shorter["each"][2]

    assert is_whole(made)
    assert not is_whole(changed)
    assert not is_whole(shorter)


def test_hosts_with_faults_do_not_enter() -> None:
    """Of these an e-value above 1 is what one hopes for."""
    assert list_audits(CARD, precision(("a", [(0, 10, 50.0)]), part="faults")[CARD]) == []


def test_the_bet_is_kept_beside_the_results(tmp_path: Any) -> None:
    """What lies in a folder enters the bet that lies there too, and only it."""
    write_results(tmp_path, CARD, precision(("a", [(0, 10, -1.0)]))[CARD])
    first = keep_standing(tmp_path, [CARD, "identity"])
    write_results(tmp_path, CARD, precision(("a", [(10, 10, -2.0)]))[CARD])
    second = keep_standing(tmp_path, [CARD, "identity"])

    assert second["each"][0] == first["each"][0]
    assert len(second["each"]) == 2
    assert read_json(tmp_path / "standing.benchmark.json") == second


def test_the_bet_that_is_shown_is_whole() -> None:
    """The committed one: no line was changed after another had been linked to it."""
    shown = read_json(results_path(ROOT / BENCHMARKS, standing.PART))

    assert is_whole(shown)
    assert max(wealth(shown)) < REFUTED
