"""Files of results: their layout, in which an audit has a line, and the tables made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.lab.bench.results import (
    begin_results,
    count_decisions,
    lay_out,
    show_counts,
    spread,
    tabulate_rows,
    write_results,
)

RESULTS = Path(__file__).resolve().parents[2] / "reference" / "benchmarks"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.text(max_size=6) | st.just("each"), inner, max_size=5),
)  # fmt: skip


@given(VALUES)
def test_a_layout_loses_nothing(value: Any) -> None:
    """The order of keys neither."""
    assert json.dumps(json.loads(lay_out(value))) == json.dumps(value)


def test_an_audit_has_a_line_and_the_rest_fills_its_lines() -> None:
    """However long the one and however short the other; rows of a table do not share lines."""
    audits = [{"fault": "none", "said": ["a" * 60, "b" * 60]}, {"fault": "x"}, [1, 2.5]]
    results = {
        "schema_version": 1,
        "seed": 7,
        "rows": {"a": {"b": 1}, "c" * 90: {}},
        "each": audits,
    }
    lines = lay_out(results).splitlines()

    assert lines == [
        "{",
        ' "schema_version": 1, "seed": 7,',
        ' "rows": {',
        '  "a": {"b": 1},',
        f'  "{"c" * 90}": {{}}',
        " },",
        ' "each": [',
        *(
            f"  {json.dumps(audit)}{comma}"
            for audit, comma in zip(audits, (",", ",", ""), strict=True)
        ),
        " ]",
        "}",
    ]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_laid_out_as_they_are_written(path: Path) -> None:
    """So that measuring anew changes the lines of what is measured alone."""
    text = path.read_text(encoding="utf-8")

    assert text == lay_out(json.loads(text))


def test_results_are_written_under_the_name_they_are_kept_by(tmp_path: Path) -> None:
    """With the card, the seed and the versions first."""
    path = write_results(tmp_path, "tricks", begin_results(seed=3) | {"each": []})

    assert path == tmp_path / "tricks.benchmark.json"
    assert list(json.loads(path.read_text(encoding="utf-8"))) == [
        "schema_version", "card", "tensors_sha256", "pool_sha256", "seed", "versions", "machine",
        "each",
    ]  # fmt: skip


def test_numbers_are_summed_up_also_where_there_are_none() -> None:
    """No number is made of nothing."""
    assert spread([1, 2, 3, 4]) == {"median": 2.5, "p90": pytest.approx(3.7), "max": 4}
    assert spread([]) == {"median": None, "p90": None, "max": None}
    assert count_decisions(["consistent"]) == {
        "consistent": 1, "inconsistent": 0, "inconclusive": 0,
    }  # fmt: skip


def test_tables_are_markdown() -> None:
    """A head, a rule and a line a row; names are ranked by how often they were said."""
    assert tabulate_rows(("a", "b"), [(1, "x")]) == "| a | b |\n|---|---|\n| 1 | x |"
    assert show_counts({"b": 1, "c": 2, "a": 1}) == "c 2, a 1, b 1"
    assert show_counts({}) == "-"
