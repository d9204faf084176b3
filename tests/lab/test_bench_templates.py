"""The benchmark of template names: what is counted, and how it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes_engine import FakeTokenizer

from verifier.checks.template.panel_design import draft_probes, search
from verifier.files.run_folder import read_json
from verifier.lab.bench.templates import NONE, Host, list_hosts, sum_up, tabulate_templates
from verifier.probes import load_pool
from verifier.reference.renderings.catalogue import catalogue

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reference" / "benchmarks" / "templates.benchmark.json"


def make_audit(fault: str, number: int, said: list[str], *, uncounted: list[str]) -> dict[str, Any]:
    def read(said: list[str]) -> dict[str, Any]:
        return {"said": said, "ranked": [*said, "reference"], "log_odds": 0.0}

    return {
        "fault": fault, "truth": Host(fault=fault, audits=1).truth, "number": number,
        "requests": 4 + number, "completion_tokens": 64, "with counts": read(said),
        "without counts": read(uncounted), "with counts one too high": read(said),
    }  # fmt: skip


def test_the_truth_of_a_host_is_its_template_alone() -> None:
    """Bad weights and honest differences are no template fault."""
    truths = {
        name: Host(fault=name, audits=1).truth
        for name in (
            "none", "int4-sym-g64", "template:leading-whitespace-stripped", "template:bos-doubled",
            "int4-sym-g64+template:default-system-dropped",
        )
    }  # fmt: skip

    assert list(truths.values()) == [NONE, NONE, NONE, "bos-doubled", "default-system-dropped"]


def test_every_fault_that_can_be_expressed_has_a_host() -> None:
    """And those that are right in all come first, asked more often than any other."""
    tokenizer, entries = FakeTokenizer(), catalogue()
    drafts = draft_probes(tokenizer.template, load_pool(), seed=1, count=12, max_tokens=4)
    hosts = list_hosts(search(tokenizer, tuple(entries.values()), drafts, size=6), entries)
    names = [host.fault for host in hosts]

    assert [host.audits for host in hosts[:2]] == [50, 50]
    assert names[:2] == ["none", "template:leading-whitespace-stripped"]
    assert all(host.audits == 20 for host in hosts[2:])
    assert {"template:no-template", "template:system-injected"} <= set(names)
    assert not {"template:system-injected-2", "template:tools-dropped"} & set(names)
    assert "int4-sym-g64+template:default-system-dropped" in names


def test_names_true_are_counted_by_names_said_with_and_without_counts() -> None:
    """A group counts as right when the true name is in it; silence is right of an honest host."""
    audits = [
        make_audit("none", 0, [], uncounted=["bos-doubled"]),
        make_audit("template:no-template", 0, ["no-template"], uncounted=[]),
        make_audit("template:no-template", 1, ["family-gemma", "no-template"], uncounted=[]),
    ]
    results = sum_up(audits, seed=3)
    table = tabulate_templates(results)

    assert results["confusion"]["with counts"] == {
        "none": {NONE: 1},
        "template:no-template": {"no-template": 1, "family-gemma or no-template": 1},
    }
    cells = {row.split(" | ")[0]: row.split(" | ")[1:] for row in table.splitlines()}
    assert cells["| none"] == [
        "1", "1", "1", "0", "1", "1", "1", "4 (at most 4)", "64 (at most 64)",
        "bos-doubled, without counts 1 |",
    ]  # fmt: skip
    assert cells["| template:no-template"] == [
        "2", "2", "2", "0", "0", "2", "2", "4 (at most 5)", "64 (at most 64)",
        "nothing, without counts 2 |",
    ]  # fmt: skip


def test_the_page_shows_the_committed_results() -> None:
    """Figures are never written by hand; and each confusion matrix adds up to its audits."""
    results = read_json(RESULTS)
    again = sum_up(results["each"], seed=results["seed"])

    assert tabulate_templates(results) in RESULTS.with_name("README.md").read_text(encoding="utf-8")
    assert again["confusion"] == results["confusion"]
    assert all(
        sum(said.values()) == sum(audit["fault"] == fault for audit in results["each"])
        for matrix in results["confusion"].values()
        for fault, said in matrix.items()
    )
