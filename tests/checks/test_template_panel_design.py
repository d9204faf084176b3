"""The panel: a search that separates renderings, and repeats itself for a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import make_family

from verifier.checks.template.panel_design import (
    Panel,
    design_panel,
    draft_probes,
    search,
    separated,
)
from verifier.errors import RenderingError
from verifier.probes import Pool, load_pool
from verifier.records import REFERENCE, Probe
from verifier.reference.renderings.catalogue import catalogue
from verifier.reference.tokenizer import Tokenizer

ENTRIES = tuple(catalogue().values())


@pytest.fixture(scope="module")
def pool() -> Pool:
    return load_pool()


@pytest.fixture(scope="module")
def minimax(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A family with tools, reasoning and a default system prompt."""
    return make_family(tmp_path_factory.mktemp("panel"), "minimax-m2")


@pytest.fixture(scope="module")
def drafts(pool: Pool, minimax: Tokenizer) -> tuple[Probe, ...]:
    return draft_probes(minimax.template or "", pool, seed=3, count=60, max_tokens=16)


@pytest.fixture(scope="module")
def panel(minimax: Tokenizer, drafts: tuple[Probe, ...]) -> Panel:
    return search(minimax, ENTRIES, drafts, size=10)


def test_candidates_vary_everything_that_faults_touch(drafts: tuple[Probe, ...]) -> None:
    """System none, empty and long; one to five turns; tools 0 to 2; the rest of the list."""
    systems = {p.messages[0].content for p in drafts if p.messages[0].role == "system"}
    users = {sum(m.role == "user" for m in p.messages) for p in drafts}
    texts = [m.content for p in drafts for m in p.messages]

    assert {"" in systems, any(len(s) > 100 for s in systems)} == {True}
    assert any(p.messages[0].role != "system" for p in drafts)
    assert users >= {1, 2, 3, 4, 5}
    assert {len(p.tools) for p in drafts} == {0, 1, 2}
    assert any(m.reasoning for p in drafts for m in p.messages)
    assert any(m.role == "tool" for p in drafts for m in p.messages)
    assert any(m.role == "assistant" and not m.content for p in drafts for m in p.messages)
    assert any(t.endswith((" ", "\n")) for t in texts)
    assert any(t.startswith(" ") for t in texts)
    assert any(not t.isascii() for t in texts)
    assert any(any(s.isdigit() for s in t) for t in texts)


def test_a_template_without_tools_is_offered_none(pool: Pool) -> None:
    """What a template cannot show, no probe asks about; a date is pinned where one is printed."""
    plain = draft_probes("{{ messages }}", pool, seed=3, count=30, max_tokens=4, today="2026-03-01")
    dated = draft_probes("strftime_now('%d')", pool, seed=3, count=3, max_tokens=4,
                         today="2026-03-01")  # fmt: skip

    assert all(not p.tools and not p.settings and p.today is None for p in plain)
    assert all(p.today == "2026-03-01" for p in dated)
    assert not any(m.reasoning for p in plain for m in p.messages)


def test_a_seed_gives_a_panel_and_another_seed_another(
    pool: Pool, minimax: Tokenizer, drafts: tuple[Probe, ...]
) -> None:
    """So that a run can be redone, and a host cannot know what it will be asked."""
    again = draft_probes(minimax.template or "", pool, seed=3, count=60, max_tokens=16)
    other = draft_probes(minimax.template or "", pool, seed=4, count=60, max_tokens=16)

    assert again == drafts
    assert not set(other) & set(drafts)


def test_the_search_separates_more_than_the_first_candidates_do(
    panel: Panel, minimax: Tokenizer, drafts: tuple[Probe, ...]
) -> None:
    """It is run, and it pays."""
    first = search(minimax, ENTRIES, drafts[:10], size=10)

    assert len(panel.confused()) <= len(first.confused())
    assert len(panel.probes) == len({p.id for p in panel.probes}) == 10
    assert panel.names[0] == REFERENCE


def test_counts_separate_what_they_can(panel: Panel) -> None:
    """Lost history, tools and system prompts are counted; a doubled BOS looks like accounting."""
    confused = set(panel.confused())

    assert (REFERENCE, "bos-doubled") in confused
    for name in ("tools-dropped", "system-ignored", "last-turn-only", "reasoning-dropped",
                 "no-template", "content-as-parts", "family-minimax-m1"):  # fmt: skip
        assert (REFERENCE, name) not in confused


def test_every_rendering_shows_in_prompts_more_than_once(panel: Panel) -> None:
    """One reply may say nothing, so one probe is not enough."""
    for name, shown in zip(panel.names[1:], panel.differing[0][1:], strict=True):
        assert shown >= 1, name


def test_a_template_that_refuses_is_no_obstacle(pool: Pool, tmp_path: Path) -> None:
    """Candidates that the published template refuses are passed over."""
    make_family(tmp_path, "chatml")
    source = (tmp_path / "chat_template.jinja").read_text()
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(strict + source)
    found = design_panel(
        Tokenizer(tmp_path), ENTRIES, pool, seed=1, size=4, max_tokens=8, candidates=24
    )

    assert len(found.probes) == 4
    assert all(p.messages[0].role != "system" for p in found.probes)


def test_a_template_that_refuses_everything_is_named(pool: Pool, tmp_path: Path) -> None:
    """There is nothing to search for, and what the template says is the cause."""
    make_family(tmp_path, "chatml")
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('not today') }}")

    with pytest.raises(RenderingError, match="not today"):
        design_panel(Tokenizer(tmp_path), ENTRIES, pool, seed=1, size=4, max_tokens=8, candidates=8)


def test_offsets_within_accounting_do_not_separate() -> None:
    """Up to four tokens, the same on every probe; more, or varying, does; so does a refusal."""
    lengths = np.array([[9, 20], [13, 24], [14, 25], [9, 21], [9, np.nan]], dtype=float)

    assert separated(lengths)[0].tolist() == [False, False, True, True, True]
