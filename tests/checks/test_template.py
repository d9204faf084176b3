"""The template evidence: level at any noise, power, the trap of fixed noise, known answers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import FAULT, QUIET, configure, host, load_reference, run, write_card
from rendered import CHANNEL, NAMES, make_ledger
from simulate import decide, make_calibration, make_plan, replies

from verifier.checks.check import UNKNOWN_RENDERING
from verifier.checks.template.evidence import (
    BEHIND,
    TemplateEvidence,
    is_settled,
    still_likely,
    weigh_templates,
)
from verifier.checks.template.naming import TEMPLATE_SHARE, named_template, needed_to_name
from verifier.checks.template.panel import (
    IN_STEP,
    LEAST_BESIDE_NOISE,
    leaves_a_fault_open,
    likely_after,
    read_prompts,
)
from verifier.config import Policy
from verifier.evidence.e_values import log_mean_exp
from verifier.evidence.ledger import (
    TEMPLATE,
    Ledger,
    ledger_from_json,
    ledger_to_json,
)
from verifier.files.run_folder import LEDGER, PAGE, PANEL, PROMPTS, SCORES, write_json
from verifier.host.collect import read_outcomes
from verifier.plan_file import read_probes
from verifier.records import REFERENCE, Report
from verifier.reference.renderings.catalogue import catalogue, entries_named
from verifier.steps import score
from verifier.verdict.decide import decide_folder

ENTRIES = catalogue()
CALIBRATION = make_calibration()
NEEDED = math.log(1 / (0.001 * TEMPLATE_SHARE))


def ranked(ledger: Ledger) -> tuple[str, ...]:
    found = weigh_templates(ledger, ENTRIES, CHANNEL)
    assert found is not None
    return found.group


def log_e(ledger: Ledger) -> float:
    found = weigh_templates(ledger, ENTRIES, CHANNEL)
    assert found is not None
    return found.log_e


def standing_in(**ahead: float) -> Ledger:
    """Replies that fit texts which stand for a hidden prompt by so many nats each, noise free."""
    ledger = make_ledger(6, served=REFERENCE, scale=0.05)
    return Ledger(
        rows=tuple(
            replace(
                row,
                text=row.text
                | {
                    TEMPLATE + name: tuple(cell + nats for cell in row.text[REFERENCE])
                    for name, nats in ahead.items()
                },
                rendered=row.rendered | {name: 60 + n for n, name in enumerate(ahead)},
            )
            for row in ledger.rows
        )
    )


def is_open(evidence: TemplateEvidence, *, ordinary: int) -> bool:
    """Whether more replies may yet name a fault, for a verdict at alpha 0.001."""
    return leaves_a_fault_open(evidence, CALIBRATION, ordinary=ordinary, needed=NEEDED)


def verdict(ledger: Ledger, **changes: Any) -> Report:
    rows = list(ledger.rows)
    return decide(make_plan(**changes), ledger, outcomes=replies(rows))


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.02, 0.6], ids=["honest", "4-bit"])
def test_a_right_template_is_not_accused_at_any_noise(scale: float) -> None:
    """Crossing 20 has probability at most 1/20, looking after each of six replies."""
    wrong = 0
    for seed in range(60):
        rows = make_ledger(seed, rows=6, served=REFERENCE, scale=scale, apart=0.3).rows
        looks = [log_e(Ledger(rows=rows[:n])) for n in range(1, len(rows) + 1)]
        wrong += max(looks) >= math.log(20)

    assert wrong <= 60 / 20 + 3


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [False, True], ids=["replies", "and counts"])
@pytest.mark.parametrize("name", NAMES)
def test_a_served_fault_is_named(name: str, counts: bool) -> None:
    """From eight short replies, with and without counts of prompt tokens."""
    named = [
        ranked(make_ledger(seed, served=name, scale=0.05, counts=counts)) for seed in range(10)
    ]

    assert all(group == (name,) for group in named)
    assert log_e(make_ledger(1, served=name, scale=0.05)) > math.log(1000)


def test_a_noisy_host_with_a_fault_has_its_fault_named() -> None:
    """Precision does not hide the template."""
    named = [ranked(make_ledger(s, served="no-template", scale=0.5)) for s in range(10)]

    assert sum(group[0] == "no-template" for group in named) >= 9


# -- known answer --------------------------------------------------------------------------------


def test_one_row_has_the_evidence_written_out() -> None:
    """The mixture over faults and scales, against the best scale of the published rendering."""
    ledger = make_ledger(3, rows=1, served="no-template", scale=0.1, columns=("no-template",))
    ledger = Ledger(
        rows=tuple(replace(r, rendered={REFERENCE: 4, "no-template": 3}) for r in ledger.rows)
    )
    (row,) = ledger.rows
    fault = log_mean_exp(np.array(row.text[TEMPLATE + "no-template"]))

    assert log_e(ledger) == pytest.approx(fault - max(row.text[REFERENCE]))


def test_columns_scored_on_few_rows_keep_their_share_of_the_mixture() -> None:
    """Dropping what fits badly can only lower the evidence."""
    whole = make_ledger(5, served="no-template", scale=0.05)
    pruned = Ledger(
        rows=tuple(
            row if n < 2 else replace(
                row,
                text={k: row.text[k] for k in (REFERENCE, "template:no-template")},
            )
            for n, row in enumerate(whole.rows)
        )
    )  # fmt: skip

    assert log_e(pruned) == pytest.approx(log_e(whole), abs=0.01)
    assert ranked(pruned) == ("no-template",)


# -- one audit -----------------------------------------------------------------------------------


def test_a_template_fault_is_named_with_advice_and_a_diff(card: Path, tmp_path: Path) -> None:
    """Not the weights: they are the published ones, and no build is accused."""
    out = tmp_path / "run"
    with host(template="generation-prompt-missing") as url:
        report = run(configure(url, card, out))

    (named,) = [f for f in report.findings if f.aspect in ("template", "cause")]
    assert report.decision == "inconsistent"
    assert (named.aspect, named.name) == ("template", "generation-prompt-missing")
    assert "pass add_generation_prompt" in named.detail
    assert "odds" in named.detail
    assert (report.noise_scale.estimate or 0) <= report.noise_scale.honest
    assert not any(f.aspect == "noise" and f.decision == "detected" for f in report.findings)
    page = (out / PAGE).read_text()
    assert "The prompt, as published and as served" in page
    assert "−" in page
    assert "&lt;turn&gt;assistant" in page
    asked = [p for p in read_probes(out, name=PANEL) if p.id in read_outcomes(out, max_attempts=1)]
    assert 0 < len(asked) <= 12
    assert decide_folder(out) == report
    for name in (SCORES, LEDGER):
        (out / name).unlink()
    score(out, load_reference(), show=QUIET)
    assert decide_folder(out) == report


def test_words_that_stand_for_unknown_ones_are_not_shown_as_served(
    card: Path, tmp_path: Path
) -> None:
    """The endpoint never wrote them."""
    with host(template="generation-prompt-missing") as url:
        run(configure(url, card, tmp_path / "run"))
    known = read_prompts(tmp_path / "run")
    assert known is not None
    write_json(tmp_path / "run" / PROMPTS, known | {"name": "system-injected"})

    assert read_prompts(tmp_path / "run") is None
    (tmp_path / "run" / PROMPTS).unlink()
    assert read_prompts(tmp_path / "run") is None


def test_a_template_fault_and_a_weights_fault_are_both_reported(card: Path, tmp_path: Path) -> None:
    """The noise is judged under the rendering that is served."""
    with host(FAULT, template="generation-prompt-missing") as url:
        report = run(configure(url, card, tmp_path / "run"))

    aspects = {f.aspect: f for f in report.findings if f.decision == "detected"}
    assert report.decision == "inconsistent"
    assert aspects["template"].name == "generation-prompt-missing"
    assert "noise" in aspects
    assert report.findings[-1].aspect == "cause"
    assert "generation-prompt-missing and noise" in report.summary


def test_bad_weights_after_the_right_template_are_no_template_fault(tmp_path: Path) -> None:
    """Of a build that the bank lacks: template columns are scored, and none is accused."""
    out, card = tmp_path / "run", write_card(tmp_path, bank=["fp8-channel"])
    with host(FAULT) as url:
        report = run(configure(url, card, out))

    assert (out / PANEL).exists()
    assert not any(f.aspect == "template" for f in report.findings)
    assert "as published and as served" not in (out / PAGE).read_text()


# -- groups, rounds, and what is said ------------------------------------------------------------


def test_beside_weights_that_differ_a_name_takes_twice_the_evidence() -> None:
    """Their noise is not quite the model's, and may look like another prompt now and then."""
    found = weigh_templates(make_ledger(3, served="no-template", scale=0.5), ENTRIES, CHANNEL)
    assert found is not None
    quiet = replace(found, scale=0.05)

    def named(evidence: TemplateEvidence, log_e: float) -> str | None:
        found = named_template(replace(evidence, log_e=log_e), CALIBRATION, needed=NEEDED)
        return None if found is None else found.column

    assert found.scale == pytest.approx(0.5, rel=0.5)
    assert named(quiet, NEEDED - 0.1) is None
    assert named(quiet, NEEDED + 0.1) == "template:no-template"
    assert named(found, 2 * NEEDED - 0.1) is None
    assert named(found, 2 * NEEDED + 0.1) == "template:no-template"


def test_renderings_that_are_the_same_everywhere_are_one_group() -> None:
    """Two names with equal cells hold the posterior between them."""
    ledger = make_ledger(2, served="no-template", scale=0.05)
    twins = Ledger(
        rows=tuple(
            replace(
                row,
                text=row.text | {"template:family-gemma": row.text["template:no-template"]},
                rendered=row.rendered | {"family-gemma": row.rendered["no-template"]},
            )
            for row in ledger.rows
        )
    )

    assert set(ranked(twins)) == {"no-template", "family-gemma"}


def test_texts_that_stand_for_a_hidden_prompt_share_its_name() -> None:
    """What is reported is the entry, whichever text fits best."""
    ledger = make_ledger(2, served="no-template", scale=0.05)
    hidden = Ledger(
        rows=tuple(
            replace(
                row,
                text={
                    REFERENCE: row.text[REFERENCE],
                    "template:system-injected-2": row.text["template:no-template"],
                    "template:system-injected": row.text["template:space-added"],
                },
                rendered={REFERENCE: 40, "system-injected-2": 60, "system-injected": 55},
            )
            for row in ledger.rows
        )
    )
    found = weigh_templates(hidden, ENTRIES, CHANNEL)

    assert found is not None
    assert found.group == ("system-injected",)
    assert found.columns["system-injected"] == "template:system-injected-2"


def test_only_what_is_near_the_likeliest_is_scored_on() -> None:
    """And every valid rendering, against which the evidence is measured."""
    found = weigh_templates(make_ledger(2, served="no-template", scale=0.05), ENTRIES, CHANNEL)
    assert found is not None
    names = (REFERENCE, "leading-whitespace-stripped", *NAMES)
    likely = still_likely(found, names, ENTRIES)

    assert "no-template" in likely
    assert {REFERENCE, "leading-whitespace-stripped"} <= set(likely)
    assert not set(likely) & {n for n, gap in found.behind.items() if gap > BEHIND and n in NAMES}


def test_a_fault_that_has_not_shown_yet_is_scored_on() -> None:
    """Its prompts were the published ones so far: it is as likely as they are, and not settled."""
    names = (REFERENCE, *NAMES)
    ledger = make_ledger(2, served=REFERENCE, scale=0.05)
    unseen = Ledger(
        rows=tuple(
            replace(
                row,
                text=row.text | {"template:system-ignored": row.text[REFERENCE]},
                rendered=row.rendered | {"system-ignored": row.rendered[REFERENCE]},
            )
            for row in ledger.rows
        )
    )
    found = weigh_templates(unseen, ENTRIES, CHANNEL)
    seen = weigh_templates(ledger, ENTRIES, CHANNEL)
    assert found is not None
    assert seen is not None

    assert still_likely(found, names, ENTRIES) == (REFERENCE, "system-ignored")
    assert not is_settled(found, names, ENTRIES)
    assert is_settled(seen, names, ENTRIES)


def test_of_texts_that_stand_for_one_prompt_those_far_behind_are_left() -> None:
    """Each further reply is scored under every one that is kept."""
    ahead = {"system-injected": 9.0, "system-injected-2": 8.0, "system-injected-3": 2.0}
    found = weigh_templates(standing_in(**ahead), ENTRIES, CHANNEL)
    assert found is not None

    kept = still_likely(found, (REFERENCE, *ahead), ENTRIES)
    assert kept == (REFERENCE, "system-injected", "system-injected-2")


def test_a_hidden_prompt_asks_for_no_ordinary_replies() -> None:
    """More than once: they are not scored under its texts, so they could not name it."""
    hidden = weigh_templates(standing_in(**{"system-injected": 1.0}), ENTRIES, CHANNEL)
    known = weigh_templates(standing_in(**{"system-merged": 1.0}), ENTRIES, CHANNEL)
    assert hidden is not None
    assert known is not None

    assert (hidden.ranked[0], known.ranked[0]) == ("system-injected", "system-merged")
    assert is_open(hidden, ordinary=0)
    assert not is_open(hidden, ordinary=8)
    assert is_open(known, ordinary=8)


def test_ordinary_replies_must_keep_step_with_what_a_name_needs() -> None:
    """Other weights alone look like faults of a template for a while."""
    ahead = weigh_templates(standing_in(**{"system-merged": 1.0}), ENTRIES, CHANNEL)
    assert ahead is not None
    needed = IN_STEP * needed_to_name(ahead, CALIBRATION, needed=NEEDED) / 2
    short, enough = (
        replace(ahead, log_e=0.0, behind=ahead.behind | {REFERENCE: needed + more})
        for more in (-0.1, 0.1)
    )

    assert [is_open(short, ordinary=n) for n in (0, 8, 24)] == [True, True, False]
    assert is_open(enough, ordinary=24)


def test_a_panel_beside_weights_that_differ_settles_nothing() -> None:
    """Though the published rendering leads; behind quiet weights it does."""
    found = weigh_templates(make_ledger(6, served=REFERENCE, scale=0.05), ENTRIES, CHANNEL)
    assert found is not None
    quiet, noisy = (replace(found, scale=scale) for scale in (0.05, 0.6))

    assert found.ranked[0] == REFERENCE
    assert not is_open(quiet, ordinary=0)
    assert is_open(noisy, ordinary=8)
    assert not is_open(noisy, ordinary=LEAST_BESIDE_NOISE)
    assert not is_open(replace(found, scale=1.0), ordinary=0)


def test_beside_weights_that_differ_a_rendering_falls_behind_by_chance() -> None:
    """So more is kept to go on with, as long as there is noise beyond honest serving."""
    found = weigh_templates(make_ledger(2, served="no-template", scale=0.05), ENTRIES, CHANNEL)
    assert found is not None
    far = replace(found, behind=found.behind | {"system-ignored": BEHIND + 5})
    names = (REFERENCE, *NAMES)
    quiet, noisy = (replace(far, scale=scale) for scale in (0.05, 0.6))

    assert "system-ignored" not in likely_after(quiet, names, ENTRIES, CALIBRATION)
    assert "system-ignored" in likely_after(noisy, names, ENTRIES, CALIBRATION)


def test_a_ledger_without_renderings_says_nothing() -> None:
    """As every run folder from before there were any."""
    ledger = make_ledger(2, served=REFERENCE, scale=0.05, columns=())
    bare = Ledger(rows=tuple(replace(row, rendered={}) for row in ledger.rows))

    assert weigh_templates(bare, ENTRIES, CHANNEL) is None


def test_counts_alone_are_evidence_before_any_column_is_scored() -> None:
    """Enough to look closer, too little to accuse: a gateway may count otherwise than is served."""
    host = {"scale": 0.05, "counts": True, "columns": ()}
    suspicious = log_e(make_ledger(2, served="history-cut-front", **host))

    assert math.log(20) / 2 < suspicious < math.log(1000 / 0.01)
    assert log_e(make_ledger(2, served=REFERENCE, **host)) < 0


def test_the_entries_of_a_ledger_are_known_by_name() -> None:
    """A card's own renderings need no source to be weighed."""
    found = entries_named(["reference", "earlier-revision-a", "alternative-b"])

    assert found["earlier-revision-a"].kind == "fault"
    assert found["alternative-b"].kind == "valid"


def test_a_ledger_keeps_counts_and_renderings() -> None:
    """Written and read back; a ledger from before has none."""
    ledger = make_ledger(2, rows=2, served="no-template", scale=0.05, counts=True)
    raw = ledger_to_json(ledger)
    assert ledger_from_json(raw, "here") == ledger

    for row in raw["rows"]:
        for key in ("prompt_tokens", "rendered", "panel"):
            del row[key]
    assert all(row.rendered == {} for row in ledger_from_json(raw, "here").rows)


def test_a_fault_is_reported_with_odds_and_advice_and_no_noise_is_accused() -> None:
    """The noise is judged under the rendering that was served."""
    report = verdict(make_ledger(4, rows=12, served="no-template", scale=0.05))
    (named,) = [f for f in report.findings if f.aspect in ("template", "cause")]

    assert report.decision == "inconsistent"
    assert named.name == "no-template"
    assert "to 1 against" in named.detail
    assert ENTRIES["no-template"].advice in named.detail
    assert (report.noise_scale.upper or 9) < 0.3
    assert not any(f.aspect == "noise" and f.decision == "detected" for f in report.findings)


def test_both_faults_of_a_host_are_reported() -> None:
    """The template by name, which its counts confirm, and the noise that is left under it."""
    report = verdict(make_ledger(4, rows=12, served="no-template", scale=0.6, counts=True))
    detected = {f.aspect for f in report.findings if f.decision == "detected"}

    assert {"template", "noise"} <= detected
    assert report.findings[-1].aspect == "cause"
    assert (report.noise_scale.lower or 0) > 0.3


def test_under_a_hidden_prompt_of_unknown_words_no_noise_is_accused() -> None:
    """What the words that stand for it leave unexplained looks like noise of the weights."""
    rows = []
    for row in make_ledger(4, rows=12, served="no-template", scale=0.3).rows:
        text, rendered = dict(row.text), dict(row.rendered)
        text["template:system-injected"] = text.pop("template:no-template")
        rendered["system-injected"] = rendered.pop("no-template")
        rows.append(replace(row, text=text, rendered=rendered))
    report = verdict(Ledger(rows=tuple(rows)))

    (named,) = [f for f in report.findings if f.aspect in ("template", "cause")]
    assert report.decision == "inconsistent"
    assert (named.aspect, named.name) == (
        "template", f"system-injected or {UNKNOWN_RENDERING}"
    )  # fmt: skip
    assert {f.decision for f in report.findings if f.aspect == "noise"} == {"not run"}
    assert report.noise_scale.equivalent.startswith("unknown")


def test_builds_are_not_judged_under_another_rendering() -> None:
    """They were scored after the published one."""
    report = verdict(
        make_ledger(4, rows=12, served="no-template", scale=0.05),
        policy=Policy(noise=("another model",), builds=("fp8-channel",)),
    )
    (build,) = [f for f in report.findings if f.aspect == "weights"]

    assert build.decision == "not run"
    assert "mend the template first" in build.detail


def test_a_panel_says_nothing_of_the_noise_of_a_right_template() -> None:
    """Calibration speaks of ordinary probes, so only those are judged."""
    report = verdict(make_ledger(4, rows=12, served=REFERENCE, scale=0.6))

    assert not any(f.aspect == "template" for f in report.findings)
    assert all(f.decision != "detected" for f in report.findings)
    assert report.noise_scale.estimate is None


@pytest.mark.parametrize(("offset", "noted"), [(2, True), (-1, True), (0, False), (-11, False)])
def test_a_small_constant_offset_of_counts_is_a_note(offset: int, noted: bool) -> None:
    """An accounting difference, in words; a large one is no accounting."""
    ledger = make_ledger(4, served=REFERENCE, scale=0.05, counts=True)
    counted = Ledger(
        rows=tuple(replace(r, prompt_tokens=(r.prompt_tokens or 0) + offset) for r in ledger.rows)
    )
    told = any(f"counts {offset:+d} prompt tokens on every" in n for n in verdict(counted).notes)

    assert told == noted
