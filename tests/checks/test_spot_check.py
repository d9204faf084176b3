"""A pack beside the weights: its questions and fresh ones, and hosts that know the pack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audits import CARD, FAULT, NOWHERE, host, load_reference, make_engine, write_card
from fakes_engine import FakeEngine
from packs import (
    configure_packed,
    host_that_knows,
    run_packed,
    run_spot_checked,
    write_tiny_pack,
)
from simulate import make_plan

from verifier.errors import ConfigError
from verifier.evidence.ledger import read_ledger
from verifier.files.run_folder import SAMPLED
from verifier.plan import describe_policy
from verifier.plan_file import read_probes
from verifier.probes import PACKED, load_pool
from verifier.reference.pack_file import read_pack
from verifier.scoring.other_words import refuse_other_words
from verifier.steps import start
from verifier.verdict.decide import decide_folder

FRESH = "requests of fresh questions"


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of the tiny model."""
    return write_tiny_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """The card of the tiny model."""
    return write_card(tmp_path)


# -- level and power ---------------------------------------------------------------------------


def test_an_honest_host_is_consistent_on_both_halves(
    pack: Path, card: Path, tmp_path: Path
) -> None:
    """Null: the published weights, whoever asks; and no half is named."""
    for seed in (1, 2, 3):
        with host() as url:
            config = configure_packed(url, pack, tmp_path / str(seed), card=card, seed=seed)
            report = run_spot_checked(config)
        assert report.decision == "consistent"
        assert not [f for f in report.findings if f.aspect == "strata"]
        assert report.certificate is not None
        ledger = read_ledger(config.out)
        assert report.certificate.replies == len(ledger.ordinary.rows) >= 10
        assert len(ledger.with_known.rows) >= 2 * report.certificate.replies - 1


def test_a_host_that_knows_the_pack_is_caught_on_fresh_questions(
    pack: Path, card: Path, tmp_path: Path
) -> None:
    """From the pack alone nobody sees it; beside the weights the half is named."""
    with host_that_knows(read_pack(pack)) as url:
        alone = run_packed(configure_packed(url, pack, tmp_path / "alone"))
        config = configure_packed(url, pack, tmp_path / "both", card=card)
        report = run_spot_checked(config)

    assert alone.decision == "consistent"
    assert report.decision == "inconsistent"
    (named,) = [f for f in report.findings if f.aspect == "strata"]
    assert (named.name, named.decision) == (FRESH, "detected")
    assert "a host that knows the pack" in named.detail


def test_a_host_that_differs_everywhere_is_said_to_know_no_pack(
    pack: Path, card: Path, tmp_path: Path
) -> None:
    """Both halves differ alike."""
    with host(FAULT) as url:
        report = run_spot_checked(configure_packed(url, pack, tmp_path / "run", card=card))

    assert report.decision == "inconsistent"
    assert not [f for f in report.findings if f.aspect == "strata" and f.decision == "detected"]


def test_another_pool_names_no_half(card: Path, tmp_path: Path) -> None:
    """Its questions may be harder by themselves; that something differs is found all the same."""
    pack = write_tiny_pack(tmp_path, pool=replace(load_pool(), digest="0" * 64))
    with host_that_knows(read_pack(pack)) as url:
        report = run_spot_checked(configure_packed(url, pack, tmp_path / "run", card=card))

    assert report.decision == "inconsistent"
    (said,) = [f for f in report.findings if f.aspect == "strata"]
    assert said.decision == "undecided"
    assert "drawn from another pool" in said.detail


@pytest.mark.parametrize(("noise", "refused"), [(0.02, False), (1.5, True)])
def test_a_pack_is_refused_for_other_weights_and_not_for_another_machine(
    tmp_path: Path, noise: float, refused: bool
) -> None:
    """Null: these weights on a stack whose noise honest serving has, whichever questions the seed
    draws."""
    maker = FakeEngine(margin=3.5, noise={FAULT: noise})
    maker.load_variant(FAULT)
    pack = read_pack(write_tiny_pack(tmp_path, engine=maker, questions=80))
    found = []
    for seed in range(12):
        try:
            refuse_other_words(pack, load_reference(), make_plan(seed=seed))
        except ConfigError:
            found.append(seed)

    assert len(found) == (12 if refused else 0)


# -- what is asked -----------------------------------------------------------------------------


def test_the_plan_says_what_both_halves_take(pack: Path, card: Path, tmp_path: Path) -> None:
    """Twice the replies on which the verdict rests."""
    policy = {"noise": ["another model"], "routed": {"another model": 0.75}}
    alone = configure_packed(NOWHERE, pack, tmp_path / "alone", policy=policy)
    beside = configure_packed(NOWHERE, pack, tmp_path / "both", card=card, policy=policy)
    for config in (alone, beside):
        start(config)

    assert "at least 10 replies, " in describe_policy(alone.out)[1]
    said = describe_policy(beside.out)[1]
    assert "at least 20 replies, " in said
    assert said.endswith(", half of them to questions of the pack")


def test_one_of_every_two_questions_is_the_packs(pack: Path, card: Path, tmp_path: Path) -> None:
    """In an order that the seed draws; the fresh ones are none of the pack's, and what is sampled
    is none of either."""
    orders = []
    for seed in (1, 2):
        config = configure_packed(
            NOWHERE, pack, tmp_path / str(seed), card=card, seed=seed, sampler=True
        )
        start(config)
        probes = read_probes(config.out)
        known = [probe.id.startswith(PACKED) for probe in probes]
        orders.append(known)
        held = {probe.messages for probe in read_pack(pack).probes}
        assert [probe.messages in held for probe in probes] == known
        pairs = list(zip(known[:160:2], known[1:160:2], strict=True))
        assert all(one != other for one, other in pairs)
        sampled = {probe.id for probe in read_probes(config.out, name=SAMPLED)}
        assert not sampled & {probe.id for probe in probes}
    assert orders[0] != orders[1]


def test_what_weights_alone_can_judge_is_judged(pack: Path, card: Path, tmp_path: Path) -> None:
    """Nothing is set aside as beyond a pack; the folder is scored and decided without it."""
    out = tmp_path / "run"
    with host() as url:
        report = run_spot_checked(configure_packed(url, pack, out, card=card, sampler=True))

    assert not [f for f in report.findings if f.aspect == "pack"]
    assert [f for f in report.findings if f.aspect == "sampler"]
    notes = " ".join(report.notes)
    assert read_pack(pack).digest[:16] in notes
    assert "from a store" not in notes
    before = (out / "report.json").read_bytes()
    decide_folder(out)
    assert (out / "report.json").read_bytes() == before


# -- what is refused ---------------------------------------------------------------------------


def test_a_pack_of_other_weights_is_refused_by_name(card: Path, tmp_path: Path) -> None:
    """Whatever it calls itself: its paths are not what the weights say."""
    other = write_tiny_pack(tmp_path, engine=make_engine(FAULT), questions=40, name="other.pack")
    with (
        host() as url,
        pytest.raises(ConfigError, match="it does not say what the weights of card tiny say"),
    ):
        run_spot_checked(configure_packed(url, other, tmp_path / "run", card=card))


@pytest.mark.parametrize(
    ("digests", "changes", "said"),
    [
        ({"template_sha256": "1" * 64}, {}, "whose template_sha256 is .*, and that of card tiny"),
        ({}, {"after": "earlier"}, "audit.after: questions of a pack may come again"),
        ({}, {"budget_completion_tokens": 200}, "cannot pay for 20 replies of 12 tokens"),
    ],
)
def test_what_would_be_another_audit_is_refused(
    pack: Path, tmp_path: Path, digests: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    """Before anything is written."""
    card = write_card(tmp_path, digests=CARD["digests"] | digests)
    config = configure_packed(NOWHERE, pack, tmp_path / "run", card=card, **changes)

    with pytest.raises(ConfigError, match=said):
        start(config)
    assert not (tmp_path / "run").exists()
