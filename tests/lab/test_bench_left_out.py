"""The benchmark of templates that the catalogue lacks: what is counted; and on a fake host, each
family left out once."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from fakes_engine import EOS
from fakes_templates import SoftEngine, TemplateTokenizer
from simulate import make_calibration

from verifier.checks.check import UNKNOWN_RENDERING
from verifier.checks.template.evidence import weigh_templates
from verifier.checks.template.naming import TEMPLATE_SHARE, Named, named_template
from verifier.checks.template.panel import likely_after
from verifier.checks.template.panel_design import Panel, draft_probes, search
from verifier.evidence.ledger import TEMPLATE, Ledger, Row, text_cells
from verifier.lab.bench.left_out import call, list_left_out, sum_up, tabulate_left_out
from verifier.lab.bench.templates import NONE, READINGS, Host, said_of
from verifier.probes import load_pool
from verifier.records import REFERENCE, ScoreRequest
from verifier.reference.renderings.catalogue import (
    Rendered,
    catalogue,
    expressible,
    render_probe,
)

ENTRIES = catalogue()
TOKENIZER, ENGINE = TemplateTokenizer(), SoftEngine()
CALIBRATION = make_calibration()
NEEDED = math.log(1 / (0.001 * TEMPLATE_SHARE))

#: So many renderings are looked at further after each reply.
_LIKELIEST = 8


@cache
def panel() -> Panel:
    """Six probes that tell the entries of the fake host's template apart."""
    drafts = draft_probes(TOKENIZER.template, load_pool(), seed=4, count=16, max_tokens=12)
    return search(TOKENIZER, [e for e in ENTRIES.values() if e.searched], drafts, size=6)


@cache
def made(name: str, number: int) -> Rendered | None:
    return render_probe(ENTRIES[name], panel().probes[number], TOKENIZER)


@cache
def able() -> tuple[str, ...]:
    """The entries that show on the panel."""
    return tuple(e.name for e in expressible(ENTRIES.values(), panel().probes, TOKENIZER))


def reply_to(prompt: Rendered, rng: np.random.Generator) -> tuple[int, ...]:
    """A greedy reply of an honest machine: noise of a scale of 0.03."""
    reply: tuple[int, ...] = ()
    while not reply or reply[-1] != EOS:
        row = ENGINE.logprobs(prompt.ids, reply)
        reply = (*reply, int((row + rng.gumbel(0, 0.03, len(row))).argmax()))
    return reply


def audit(host: Host, *, seed: int = 3) -> Named | None:
    """What is said of a host after its panel, with a catalogue that lacks what it serves."""
    known = {name: entry for name, entry in ENTRIES.items() if name not in host.missing}
    names: tuple[str, ...] = (REFERENCE, *(name for name in able() if name in known))
    rng, rows, found = np.random.default_rng(seed), [], None
    for number, probe in enumerate(panel().probes):
        prompt = made(host.truth, number)
        if prompt is None:
            continue
        reply = reply_to(prompt, rng)
        renderings = {name: one for name in known if (one := made(name, number)) is not None}
        scores = {
            name: ENGINE.score([ScoreRequest(prompt_ids=renderings[name].ids, reply_ids=reply)])[0]
            for name in names
            if name in renderings
        }
        text = {
            name if name == REFERENCE else TEMPLATE + name: text_cells(score, range(len(reply)))
            for name, score in scores.items()
        }
        rows.append(Row(
            probe_id=probe.id, tokens=len(reply), left_out=0, text=text, logprob=None,
            logprob_problem="none", prompt_tokens=len(prompt.ids), panel=True,
            rendered={name: len(one.ids) for name, one in renderings.items()},
        ))  # fmt: skip
        found = weigh_templates(Ledger(rows=tuple(rows)), known, CALIBRATION.text)
        if found is not None:  # of those that are still likely, the first: each costs time
            likely = likely_after(found, names, known, CALIBRATION)
            first = found.ranked[:_LIKELIEST]
            names = tuple(n for n in likely if n in found.valid or n in first)
    assert found is not None
    return named_template(found, CALIBRATION, needed=NEEDED)


# -- each family left out once --------------------------------------------------------------------


def test_each_family_left_out_is_called_unknown_and_no_other_is_named() -> None:
    """In nineteen of twenty at least; the nearest is told as the nearest alone.

    But for a twin that lacks the first token: that is a constant of the counts, and moves this
    host's replies hardly at all.
    """
    hosts = list_left_out(panel(), ENTRIES, TOKENIZER)
    families = [host for host in hosts if host.truth.startswith("family-")]
    said = {host.truth: call({"said": said_of(audit(host))}) for host in families}
    others = {name: what for name, what in said.items() if what != "not known"}

    assert len(families) > 75
    assert len(others) <= 0.05 * len(said), others
    assert {name for name, what in others.items() if what == "another"} <= {"family-gemma"}


def test_a_family_that_is_known_is_named() -> None:
    """The same hosts, with the catalogue whole: every tenth of them."""
    hosts = list_left_out(panel(), ENTRIES, TOKENIZER)[::10]
    found = {host.truth: audit(Host(fault=host.fault, audits=1)) for host in hosts}
    families = {name: one for name, one in found.items() if name.startswith("family-")}

    assert len(families) > 5
    assert all(one is not None and name in one.names for name, one in families.items())


# -- what is counted ------------------------------------------------------------------------------


def test_what_is_left_out_is_all_that_is_the_same_text() -> None:
    """Twins, and every text that stands for a hidden prompt; each is served once."""
    hosts = list_left_out(panel(), ENTRIES, TOKENIZER, audits=7)
    missing = {host.truth: host.missing for host in hosts}
    stand_ins = {e.name for e in ENTRIES.values() if e.stands_for}

    assert missing["system-injected"] == stand_ins
    assert missing["family-zephyr"] == {"family-zephyr"}
    assert all(host.truth in host.missing for host in hosts)
    assert sum(len(some) for some in missing.values()) == len(frozenset().union(*missing.values()))
    assert {host.audits for host in hosts} == {7}


def make_audit(truth: str, said: list[str], *, uncounted: list[str]) -> dict[str, Any]:
    def read(said: list[str]) -> dict[str, Any]:
        return {"said": said, "scale_left": 0.2}

    told = (said, uncounted, said)
    return {"fault": f"template:{truth}", "truth": truth, "number": 0} | {
        key: read(names) for key, names in zip(READINGS, told, strict=True)
    }


def test_what_was_said_is_counted_and_a_wrong_name_is_shown() -> None:
    """A name beside "not known" is no wrong name; silence is neither."""
    audits = [
        make_audit("family-zephyr", [UNKNOWN_RENDERING], uncounted=["family-phi3"]),
        make_audit("no-template", [UNKNOWN_RENDERING], uncounted=[]),
        make_audit("space-added", ["system-injected", UNKNOWN_RENDERING], uncounted=[]),
    ]
    results = sum_up(audits, seed=3)
    table = tabulate_left_out(results).splitlines()

    assert results["said"]["with counts"] == {"not known": 2, "another, or not known": 1}
    assert results["said"]["without counts"] == {"another": 1, NONE: 2}
    assert "| with counts | 3 | 2 | 1 | 0 | 0 |" in table
    assert "| family-zephyr | without counts | family-phi3 | 0.2 |" in table
    assert f"| no-template | without counts | {NONE} | 0.2 |" in table
    assert not any("| no-template | with counts |" in line for line in table)
