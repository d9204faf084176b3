"""Names of renderings are held to a fit of their own: level, power, known answers, and what is said
where nothing fits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import QUIET, configure
from fakes_templates import SoftEngine, TemplateTokenizer
from rendered import CHANNEL, make_ledger, score_of
from scipy.stats import binom
from simulate import decide, make_calibration, make_plan, replies, simulate_row

from verifier.audit import audit
from verifier.checks.check import UNKNOWN_RENDERING
from verifier.checks.template.evidence import weigh_templates
from verifier.checks.template.naming import FIT_ERROR, TEMPLATE_SHARE, Named, named_template
from verifier.checks.template.shown_prompts import Shown, ShownPrompt
from verifier.evidence.ledger import TEMPLATE, Ledger, Row, text_cells
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.faults import read_fault
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.records import REFERENCE, Finding, Report
from verifier.reference.loaded import Reference
from verifier.reference.renderings.catalogue import catalogue

ENTRIES = catalogue()
CALIBRATION = make_calibration()
NEEDED = math.log(1 / (0.001 * TEMPLATE_SHARE))
HIDDEN = "system-injected"

#: A host whose rendering nobody knows: `no-template` is the nearest, and leaves noise.
STRANGE: dict[str, Any] = {"served": "no-template", "scale": 0.03, "strays": 0.6, "rows": 12}


def told(ledger: Ledger) -> Named | None:
    """What is to be said of a ledger."""
    found = weigh_templates(ledger, ENTRIES, CHANNEL)
    assert found is not None
    return named_template(found, CALIBRATION, needed=NEEDED)


def counted(ledger: Ledger, *counts: int) -> Ledger:
    """The same with other counts of prompt tokens: one for each of the first rows, or added to
    what there is where a single one is given."""
    rows = ledger.rows
    if len(counts) == 1:
        return Ledger(
            rows=tuple(replace(r, prompt_tokens=(r.prompt_tokens or 0) + counts[0]) for r in rows)
        )
    asked = [*counts, *([None] * len(rows))]
    return Ledger(
        rows=tuple(replace(r, prompt_tokens=n) for r, n in zip(rows, asked, strict=False))
    )


def renamed(ledger: Ledger, old: str, new: str) -> Ledger:
    """The same with one rendering under another name."""
    return Ledger(
        rows=tuple(
            replace(
                row,
                text={k.replace(TEMPLATE + old, TEMPLATE + new): v for k, v in row.text.items()},
                rendered={new if k == old else k: v for k, v in row.rendered.items()},
            )
            for row in ledger.rows
        )
    )


def verdict(ledger: Ledger, **at_hand: Any) -> Report:
    return decide(make_plan(), ledger, outcomes=replies(list(ledger.rows)), **at_hand)


def template(report: Report) -> Finding:
    (found,) = [f for f in report.findings if f.aspect == "template"]
    return found


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [False, True], ids=["replies", "and counts"])
def test_a_true_name_is_rarely_withheld(counts: bool) -> None:
    """At the edge of honest noise: each test of the fit by one in twenty at most."""
    ledgers = [make_ledger(s, served="no-template", scale=0.1, counts=counts) for s in range(60)]
    found = [told(ledger) for ledger in ledgers]

    right = sum(one is not None and one.names == ("no-template",) for one in found)
    assert 60 - right <= binom.ppf(0.999, 60, FIT_ERROR)


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [False, True], ids=["replies", "and counts"])
def test_a_rendering_that_nobody_knows_is_not_named_after_the_nearest(counts: bool) -> None:
    """By the noise that it leaves; its counts, where there are some, are not the nearest's."""
    ledgers = [make_ledger(seed, counts=counts, **STRANGE) for seed in range(20)]
    if counts:
        ledgers = [counted(one, *(30 + 7 * n for n in range(12))) for one in ledgers]
    found = [told(ledger) for ledger in ledgers]

    assert all(one is None or one.names == () for one in found)
    assert sum(one is not None and one.nearest == "no-template" for one in found) >= 18


# -- known answer --------------------------------------------------------------------------------


def test_a_count_of_34_where_the_rendering_has_114_forbids_its_name() -> None:
    """Counts that a rendering contradicts, and replies that it alone fits; one count is enough."""
    ledger = renamed(
        make_ledger(4, served="no-template", scale=0.03), "no-template", "family-llama3"
    )
    far = Ledger(
        rows=tuple(
            replace(row, rendered={REFERENCE: 31 + n, "family-llama3": 114 + n})
            for n, row in enumerate(ledger.rows)
        )
    )
    denied = counted(far, 34, 41, 29, 50, 37, 44, 40, 52)
    report = verdict(denied)
    named = template(report)

    assert told(denied) == Named(
        names=(), nearest="family-llama3", column="template:family-llama3", certain=True
    )
    assert told(far) == replace(told(denied) or Named, names=("family-llama3",))
    assert told(counted(far, *(114 + n for n in range(7)), 52)) == told(denied)
    assert (named.name, named.decision) == (UNKNOWN_RENDERING, "detected")
    assert "the nearest is family-llama3 (" in named.detail
    assert "fits 8 replies, and has not 8 of 8 counts of prompt tokens (34 where it has 114" in (
        named.detail
    )
    assert UNKNOWN_RENDERING in report.summary
    assert "llama3" not in report.summary
    assert {f.decision for f in report.findings if f.aspect == "noise"} == {"not run"}


@pytest.mark.parametrize("offset", [-1, 0, 3])
def test_a_constant_that_honest_hosts_add_denies_no_name(offset: int) -> None:
    """And a larger one does."""
    ledger = make_ledger(4, served="no-template", scale=0.03, counts=True)

    assert told(counted(ledger, offset)) == told(ledger)
    assert told(counted(ledger, offset + 40)) != told(ledger)


def test_other_weights_after_a_rendering_take_counts_that_agree() -> None:
    """Noise of 4-bit weights, or of a rendering that nobody knows: replies alone do not tell."""
    noisy = make_ledger(4, rows=12, served="no-template", scale=0.6, counts=True)
    silent = counted(noisy, *([None] * 12))  # type: ignore[arg-type]

    assert told(noisy) == Named(
        names=("no-template",), nearest="no-template", column="template:no-template", certain=True
    )
    assert told(silent) == replace(told(noisy) or Named, names=())
    said = template(verdict(silent)).detail
    assert f"no-template ({ENTRIES['no-template'].summary}), which leaves noise of a scale" in said
    assert "other weights too, or instead" in said
    detail = template(verdict(noisy)).detail
    assert "; fits 12 counts of prompt tokens, and leaves noise of a scale of " in detail


def leaning(seed: int, *, rows: int = 12, build: str = "int4-sym-g64") -> Ledger:
    """Replies of a build that happens to lean the way a fault of the template does."""
    rng = np.random.default_rng(seed)

    def row(number: int) -> Row:
        published = rng.normal(0, 2, (12, 40))
        served = published + rng.normal(0, 0.8, published.shape)
        faulty = (published + served) / 2 + rng.normal(0, 0.2, published.shape)
        chosen = (served + rng.gumbel(0, 0.05, published.shape)).argmax(axis=1)
        columns = {REFERENCE: published, TEMPLATE + "no-template": faulty, build: served}
        return Row(
            probe_id=f"p{number:04}", tokens=12, left_out=0, logprob=None, logprob_problem="none",
            text={k: text_cells(score_of(v, chosen), range(12)) for k, v in columns.items()},
            prompt_tokens=19, rendered={REFERENCE: 40, "no-template": 19},
        )  # fmt: skip

    return Ledger(rows=tuple(row(number) for number in range(rows)))


def test_a_build_that_explains_the_replies_is_named_before_a_rendering_that_leaves_noise() -> None:
    """Its noise is a function of the text, and may look like another prompt by more than chance."""
    ledger = leaning(1)
    unscored = Ledger(
        rows=tuple(
            replace(r, text={k: v for k, v in r.text.items() if k != "int4-sym-g64"})
            for r in ledger.rows
        )
    )

    assert told(ledger) is not None
    assert template(verdict(unscored)).name == "no-template"
    assert {f.name for f in verdict(unscored).findings if f.aspect == "cause"} != {"int4-sym-g64"}
    said = verdict(ledger)
    assert said.decision == "inconsistent"
    assert [f.name for f in said.findings if f.aspect in ("template", "cause")] == ["int4-sym-g64"]


def test_names_are_those_of_a_group_that_fit() -> None:
    """Of two that the replies do not part, counts deny one."""
    ledger = make_ledger(2, served="no-template", scale=0.03, counts=True)
    twins = Ledger(
        rows=tuple(
            replace(
                row,
                text=row.text | {"template:family-gemma": row.text["template:no-template"]},
                rendered=row.rendered | {"family-gemma": row.rendered["no-template"] + 9 * (n % 3)},
            )
            for n, row in enumerate(ledger.rows)
        )
    )
    found = told(twins)

    assert found is not None
    assert found.names == ("no-template",)


def test_a_few_replies_name_nothing_for_sure() -> None:
    """A template that is nearly the same fits four of them as well."""
    ledger = make_ledger(4, rows=4, served="no-template", scale=0.03, counts=True)
    named = template(verdict(ledger))

    assert named.name == f"no-template or {UNKNOWN_RENDERING}"
    assert named.detail.startswith("on so few replies another template may look the same: ")
    assert template(verdict(make_ledger(4, served="no-template", scale=0.03))).name == "no-template"


def test_another_model_after_a_rendering_is_named_by_its_counts_alone() -> None:
    """Where they are its own and not those of the published one; noise of that size fits all."""
    far = make_ledger(4, rows=30, served="no-template", scale=1.0, apart=2.0, counts=True)
    silent = counted(far, *([None] * 30))  # type: ignore[arg-type]
    found = weigh_templates(far, ENTRIES, CHANNEL)
    assert found is not None

    assert found.scale >= 0.8
    assert (told(far) or Named).names == ("no-template",)
    assert told(silent) is None


# -- words that nobody knows ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        (True, HIDDEN),
        (False, f"{HIDDEN} or {UNKNOWN_RENDERING}"),
        ("another's", UNKNOWN_RENDERING),
    ],
)
def test_a_template_of_another_family_is_no_hidden_prompt(counts: bool | str, name: str) -> None:
    """Counts within one constant of any size tell; without any nothing does, and that is said."""
    ledger = make_ledger(4, rows=12, served="no-template", scale=0.3, counts=bool(counts))
    hidden = renamed(ledger, "no-template", HIDDEN)
    if counts is True:
        hidden = counted(hidden, 57)  # its words are longer than those that stand for them
    elif counts:
        hidden = counted(hidden, *(30 + 7 * n for n in range(12)))
    report = verdict(hidden)
    named = template(report)

    assert (named.name, named.decision) == (name, "detected")
    assert ("12 counts of prompt tokens but for one constant" in named.detail) is (counts is True)
    assert {f.decision for f in report.findings if f.aspect == "noise"} == {"not run"}
    assert not [f for f in report.findings if f.aspect == "cause"]


def test_no_noise_is_named_under_a_hidden_prompt_that_is_shown() -> None:
    """Nobody knows how much of it the words would explain."""
    rng = np.random.default_rng(4)
    rows = [
        replace(row, text=row.text | {TEMPLATE + HIDDEN: row.text[REFERENCE]},
                rendered={REFERENCE: 20, HIDDEN: 50})
        for row in (simulate_row(rng, f"p{n}", scale=0.6) for n in range(8))
    ]  # fmt: skip
    prompt = ShownPrompt(
        probe_id="t00", names=(HIDDEN,), differs_at=1, published="user", shown="system"
    )
    shown = Shown(prompts=(prompt,), requests=1, prompt_tokens=30, completion_tokens=1)
    report = verdict(Ledger(rows=tuple(rows)), shown=shown)

    assert report.decision == "inconsistent"
    assert template(report).name == HIDDEN
    assert template(report).detail.endswith("a system prompt is added on the way")
    assert not [f for f in report.findings if f.aspect == "cause"]


def test_a_shown_prompt_that_the_counts_deny_names_nothing() -> None:
    """What is shown may be forged; the counts come with the replies."""
    ledger = counted(make_ledger(4, counts=True, **STRANGE), *(30 + 7 * n for n in range(12)))
    prompt = ShownPrompt(
        probe_id="t00", names=("no-template",), differs_at=1, published="user", shown="Hi"
    )
    shown = Shown(prompts=(prompt,), requests=1, prompt_tokens=30, completion_tokens=1)

    assert template(verdict(ledger)).name == UNKNOWN_RENDERING
    assert template(verdict(ledger, shown=shown)).name == UNKNOWN_RENDERING


# -- the verdict ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strays", [0.0, 0.6])
@pytest.mark.parametrize("counts", [False, True])
def test_a_name_withheld_changes_no_verdict(strays: float, counts: bool) -> None:
    """Nor the evidence: both come before any name."""
    ledger = make_ledger(4, rows=12, served="no-template", scale=0.03, strays=strays, counts=counts)
    before = verdict(ledger)
    after = verdict(counted(ledger, 34, 41, 29, *([None] * 9)))  # type: ignore[arg-type]

    assert template(after).name == UNKNOWN_RENDERING
    assert before.decision == after.decision == "inconsistent"


# -- one audit -----------------------------------------------------------------------------------

#: A template that no catalogue has.
ODD = """{% for m in messages %}=== {{ m.role }} says ===
{{ m.content }}
{% endfor %}{% if add_generation_prompt %}=== assistant says ===
{% endif %}"""


#: What is looked for in these audits: every valid rendering, and a few families.
FEW = ("no-template", "family-zephyr", "family-phi3", "family-vicuna", "family-alpaca", HIDDEN)


def soft_reference() -> Reference:
    few = {n: entry for n, entry in ENTRIES.items() if entry.kind == "valid" or n in FEW}
    return Reference(engine=SoftEngine(), tokenizer=TemplateTokenizer(), catalogue=few)


@pytest.mark.parametrize("family", [None, "zephyr"])
def test_a_host_with_a_template_that_nobody_knows_gets_nobodys_name(
    card: Path, tmp_path: Path, family: str | None
) -> None:
    """Given to the testbed as a file; beside it a family of the catalogue, which is named."""
    (tmp_path / "odd.jinja").write_text(ODD)
    fault = f"jinja:{tmp_path / 'odd.jinja'}" if family is None else f"template:family-{family}"
    found = read_fault(fault, layers=2, catalogue=ENTRIES)
    app = create_app(Host(
        engine=SoftEngine(), tokenizer=TemplateTokenizer(), model="tiny", window_s=0.001,
        rendering=found.rendering,
    ))  # fmt: skip
    app.router.routes[:] = [r for r in app.routes if getattr(r, "path", "") != "/v1/completions"]
    with running(app) as url:
        report = audit(
            configure(url, card, tmp_path / "run"), api_key=None, load_reference=soft_reference,
            show=QUIET,
        )  # fmt: skip
    named = template(report)

    assert report.decision == "inconsistent"
    assert named.name == (UNKNOWN_RENDERING if family is None else f"family-{family}")
    assert ("nothing in the catalogue fits; the nearest is " in named.detail) is (family is None)
    assert not any(f.aspect == "noise" and f.decision == "detected" for f in report.findings)
