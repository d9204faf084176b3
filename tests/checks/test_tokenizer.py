"""Which tokenizer a host counts with: error rates, what is said, the table and where it is from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fakes_engine import FakeTokenizer
from other_model import OtherModel, audit_other
from scipy.stats import binom
from simulate import decide, make_plan, make_reply, replies, simulate_row

from verifier.checks.cause import ANOTHER_FAMILY, NOTHING_FITS
from verifier.checks.tokenizer import (
    UNKNOWN_TOKENIZER,
    Counting,
    counting_probes,
    judge_counting,
    plan_counting,
    read_counting,
    read_strings,
)
from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger
from verifier.evidence.prompt_counts import BORROWED
from verifier.files.run_folder import COUNTED
from verifier.host.collect import read_attempts, read_outcomes
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.records import REFERENCE, Failure, Message, Outcome, Probe, Reply
from verifier.reference.cards import load_tokenizers

TABLE = load_tokenizers()
#: What the embedded model's tokenizer makes of the table's strings.
OWN = (25, 52, 37, 26, 55, 76, 30, 26)
LIKE = Probe(
    id="p0", kind="x", messages=(Message(role="user", content="q"),), max_tokens=48,
    settings=(("enable_thinking", False),),
)  # fmt: skip


def counting(own: Sequence[int] = OWN) -> Counting:
    return Counting(
        strings={f"k{n:02}": text for n, text in enumerate(TABLE.strings)},
        counts={REFERENCE: tuple(own), **{t.name: t.counts for t in TABLE.tokenizers}},
        models={t.name: t.models for t in TABLE.tokenizers},
    )


def told(counts: Sequence[int | None]) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for n, count in enumerate(counts):
        reply = make_reply(f"k{n:02}", 1)
        values = {f: getattr(reply, f) for f in Reply.__slots__} | {"prompt_tokens": count}
        found[f"k{n:02}"] = Reply(**values)
    return found


# -- level ---------------------------------------------------------------------------------------


def test_a_host_that_counts_with_the_published_tokenizer_is_rarely_said_to_use_another() -> None:
    """Level: any constant, one count in a hundred off, one host in a hundred borrowing."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        counts = np.array(OWN)
        if rng.random() < BORROWED:
            counts = np.array(TABLE.tokenizers[rng.integers(len(TABLE.tokenizers))].counts)
        off = np.where(rng.random(len(counts)) < 0.01, rng.integers(-9, 9, len(counts)), 0)
        made = counts + off + rng.integers(0, 60)
        wrong += judge_counting(counting(), told(made.tolist())) is not None

    assert wrong <= binom.ppf(0.999, 400, BORROWED)


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [0, 3, 41])
@pytest.mark.parametrize("name", [t.name for t in TABLE.tokenizers])
def test_every_tokenizer_of_the_table_is_named(name: str, constant: int) -> None:
    """Power: whatever the template adds, with one count off."""
    (entry,) = [t for t in TABLE.tokenizers if t.name == name]
    counts = [count + constant for count in entry.counts]
    counts[2] += 1
    found = judge_counting(counting(), told(counts))

    assert found is not None
    assert name in found.name.removeprefix("prompts are counted as by ").split(" or ")
    assert entry.models in found.detail
    assert "7 of 8 counts fit" in found.detail


# -- known answer --------------------------------------------------------------------------------


def test_the_odds_are_bounded_by_hosts_that_borrow() -> None:
    """Known answer: one of n others, borrowed by one host in 100, at even prior odds."""
    others = len(TABLE.tokenizers)
    found = judge_counting(counting(), told(TABLE.tokenizers[0].counts))

    assert found is not None
    served = 1 - BORROWED - 0.01 + BORROWED / (others + 1)
    expected = math.log(served / (BORROWED / (others + 1)) / others)
    assert found.log_e == pytest.approx(expected, abs=0.01)
    assert found.log_e < math.log(1000)  # what a verdict needs


def test_a_failed_request_is_no_count() -> None:
    """The others speak."""
    outcomes = told(TABLE.tokenizers[0].counts)
    outcomes["k01"] = Failure(probe_id="k01", status=500, reason="no", attempts=1)
    found = judge_counting(counting(), outcomes)

    assert found is not None
    assert "7 of 8 counts fit" in found.detail


def test_a_tokenizer_that_the_table_lacks_is_not_named_after_the_nearest() -> None:
    """Five of eight counts are its own: more are off than glitches explain."""
    entry = TABLE.tokenizers[0]
    counts = [count + 3 * n for n, count in enumerate(entry.counts[:3], 1)] + list(entry.counts[3:])
    found = judge_counting(counting(), told(counts))

    assert found is not None
    assert (found.decision, found.name) == ("undecided", UNKNOWN_TOKENIZER)
    assert found.detail.startswith(f"nothing in the table fits; the nearest is {entry.name}")
    assert "5 of 8 counts fit" in found.detail


def test_a_tokenizer_is_told_once_in_a_summary() -> None:
    """By the cause, which says more; each has its finding all the same."""
    rng = np.random.default_rng(5)
    rows = [simulate_row(rng, f"p{n}", scale=1.0) for n in range(4)]
    rows = [replace(row, text=row.text | {"int4-sym-g64": row.text[REFERENCE]}) for row in rows]
    report = decide(
        make_plan(), Ledger(rows=tuple(rows)),
        outcomes=replies(rows) | told(TABLE.tokenizers[0].counts), counting=counting(),
    )  # fmt: skip

    assert report.summary.count("prompts are counted as by claude") == 1
    assert ANOTHER_FAMILY in report.summary
    assert len([f for f in report.findings if "counted as by claude" in f.name]) == 2


@pytest.mark.parametrize(
    "counts",
    [
        [None] * 8,
        [7] * 8,
        [100, 7, 300, 12, 9, 55, 1000, 2],
        [OWN[0], *([None] * 7)],
        [4, 50, 12, 15, *([None] * 4)],
    ],
    ids=["none", "constant", "unrelated", "one", "at odds"],
)  # fmt: skip
def test_counts_that_say_nothing_name_nothing(counts: list[int | None]) -> None:
    """Missing, all alike, fitting nothing, too few, two of one tokenizer and two of another."""
    assert judge_counting(counting(), told(counts)) is None


# -- one audit -----------------------------------------------------------------------------------


def test_tokenizers_are_told_apart_by_counts_only_of_a_host_that_is_far_off(
    card: Path, tmp_path: Path
) -> None:
    """A few requests of one token, kept in the folder, asked once; an honest host is not asked."""
    asked = {}
    for name in ("other", "reference"):
        out = tmp_path / name
        app = create_app(
            Host(
                engine=OtherModel(serves=name),
                tokenizer=FakeTokenizer(),
                model="tiny",
                window_s=0.001,
            )
        )
        with running(app) as url:
            report = audit_other(url, card, out, suspected=True)
            audit_other(url, card, out, suspected=True)
        outcomes = read_outcomes(out, max_attempts=1)
        asked[name] = sum(outcome.startswith("k0") for outcome in outcomes)
        counted = [n for n in read_attempts(out) if n.probe_id.startswith("k0")]
        assert len(counted) == asked[name]
        assert report.usage.requests >= len(read_attempts(out))

    assert (tmp_path / "other" / COUNTED).exists()
    assert not (tmp_path / "reference" / COUNTED).exists()
    assert asked == {"other": 8, "reference": 0}


# -- beside a verdict, and in the folder ---------------------------------------------------------


def test_counts_name_beside_a_verdict_and_never_make_one() -> None:
    """An honest host that borrows a counter stays consistent; a far one gets the name too."""
    rng = np.random.default_rng(3)
    far = [simulate_row(rng, f"p{n}", scale=1.0) for n in range(4)]
    near = [simulate_row(rng, f"p{n}", scale=0.05) for n in range(20)]
    borrowed = told(TABLE.tokenizers[0].counts)
    verdicts = {
        name: decide(
            make_plan(), Ledger(rows=tuple(rows)),
            outcomes=replies(rows) | borrowed, counting=counting(),
        )
        for name, rows in (("far", far), ("near", near))
    }  # fmt: skip

    assert verdicts["near"].decision == "consistent"
    assert not [f for f in verdicts["near"].findings if f.aspect == "tokenizer"]
    assert verdicts["far"].decision == "inconsistent"
    (named,) = [f for f in verdicts["far"].findings if f.aspect == "tokenizer"]
    assert named.name in verdicts["far"].summary
    assert ANOTHER_FAMILY not in verdicts["far"].findings[-1].name  # no build was scored


def test_another_family_is_told_from_a_rounding_that_nobody_knows() -> None:
    """Nothing fits either; only the counts differ."""
    rng = np.random.default_rng(5)
    rows = [simulate_row(rng, f"p{n}", scale=1.0) for n in range(4)]
    rows = [replace(row, text=row.text | {"int4-sym-g64": row.text[REFERENCE]}) for row in rows]
    names = {
        whose: decide(
            make_plan(), Ledger(rows=tuple(rows)),
            outcomes=replies(rows) | told(counts), counting=counting(),
        ).findings[-1].name
        for whose, counts in (("own", OWN), ("another", TABLE.tokenizers[0].counts))
    }  # fmt: skip

    assert names["own"] == NOTHING_FITS
    assert names["another"].startswith(f"{ANOTHER_FAMILY}: prompts are counted as by claude")


def test_the_strings_are_asked_one_token_each_with_the_runs_settings(tmp_path: Path) -> None:
    """What each tokenizer makes of them is in the folder, so that anyone can decide it again."""
    probes = plan_counting(tmp_path, TABLE, FakeTokenizer(), like=LIKE)
    known = read_counting(tmp_path)

    assert known is not None
    assert counting_probes(known, like=LIKE) == probes
    assert {(p.max_tokens, p.settings) for p in probes} == {(1, LIKE.settings)}
    assert [p.messages[0].content for p in probes] == list(TABLE.strings)
    assert known.counts[REFERENCE] == tuple(len(FakeTokenizer().encode(s)) for s in TABLE.strings)


def test_a_folder_without_counts_has_none_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    """In one line that says what to do."""
    assert read_counting(tmp_path) is None
    plan_counting(tmp_path, TABLE, FakeTokenizer(), like=LIKE)
    whole = (tmp_path / COUNTED).read_text()
    for broken in (whole.replace('"k07"', '"k06"'), "{}", whole.replace("[", "[-1.5, ")):
        (tmp_path / COUNTED).write_text(broken)
        with pytest.raises(ConfigError, match="remove it and audit again"):
            read_counting(tmp_path)


def test_a_folder_without_the_probes_that_strings_were_asked_as_is_refused(tmp_path: Path) -> None:
    """A spoilt one, in one line; without strings there is nothing to miss."""
    assert read_strings(tmp_path) == ()
    plan_counting(tmp_path, TABLE, FakeTokenizer(), like=LIKE)
    with pytest.raises(ConfigError, match=r"probes\.jsonl: missing; restore the run folder"):
        read_strings(tmp_path)


def test_the_table_tells_families_apart() -> None:
    """Two tokenizers differ on two strings or more, unless they share a vocabulary."""
    alike = set()
    for one, other in combinations(TABLE.tokenizers, 2):
        gaps = [a - b for a, b in zip(one.counts, other.counts, strict=True)]
        if len(gaps) - max(map(gaps.count, gaps)) < 2:
            alike.add((one.name, other.name))

    assert alike == {("gpt4o", "gptoss"), ("llama3", "llama3-1"), ("qwen2-5", "qwen3")}
    assert all(t.source.startswith("npm ") and t.terms and len(t.sha256) == 64
               for t in TABLE.tokenizers)  # fmt: skip
