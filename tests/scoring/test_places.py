"""Where replies leave the weights' own choice: counts, places and words, as scoring keeps them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes_engine import EOS, FakeEngine
from scored import TOKENIZER, make_probes, make_reply, outcomes_of, score
from simulate import make_calibration, make_plan, replies, simulate_row

from verifier.evidence.calibration import Channel
from verifier.evidence.ledger import (
    DEFAULT,
    FLOOR,
    TEXT_SCALES,
    Choices,
    Ledger,
    Row,
    differing_cells,
    ledger_from_json,
    ledger_to_json,
)
from verifier.evidence.noise import expected_differing
from verifier.records import (
    REFERENCE,
    GenerateRequest,
    Message,
    Place,
    Probe,
    ReplyScore,
)
from verifier.safety import sieve
from verifier.scoring.alignment import Aligned
from verifier.scoring.places import describe_choices
from verifier.scoring.score_file import Scored
from verifier.verdict.case import make_case
from verifier.verdict.decide import SHOWN_PLACES, decide

KEY = "sk-live-0123456789abcdefghijklmnopqrstuvwxyz-0123"


def ids(text: str) -> tuple[int, ...]:
    return TOKENIZER.encode(text)


def scored(
    reply: Sequence[int], own: Sequence[int], chances: Sequence[tuple[float, float]],
    *, left_out: Sequence[int] = (),
) -> Scored:  # fmt: skip
    """A reply, the weights' own choices, and of each its chance and that of what came."""
    aligned = Aligned(
        reply_ids=tuple(reply), left_out=frozenset(left_out), by="text", candidates=None,
        reported=None, problem=None,
    )  # fmt: skip
    first, came = ([math.log(p) for p in side] for side in zip(*chances, strict=True))
    return Scored(
        probe_id="p0", weights=REFERENCE, aligned=aligned,
        score=ReplyScore(
            logprobs=tuple(came),
            ranks=tuple(1 if mine == given else 2 for mine, given in zip(own, reply, strict=True)),
            entropies=(0.5,) * len(reply),
            top_ids=tuple(own),
            top_logprobs=tuple((p, math.log(1 - math.exp(p))) for p in first),
            candidate_logprobs=None,
        ),
    )  # fmt: skip


def probe(text: str) -> Probe:
    return Probe(id="p0", kind="test", max_tokens=8, messages=(Message(role="user", content=text),))


def hand_made(**settings: Any) -> Scored:
    """`the model is no`, where the weights would have said yes, and before that `host`."""
    reply = ids("the model is no")
    own = (reply[0], *ids(" host"), reply[2], *ids(" yes"))
    assert len(reply) == 4
    return scored(reply, own, [(0.9, 0.9), (0.6, 0.3), (0.8, 0.8), (0.95, 0.01)], **settings)


def test_a_hand_made_reply_gives_the_known_answer() -> None:
    """Two tokens of four differ; the one of odds 95 to 1 is the place that tells."""
    found = describe_choices(hand_made(), probe("Is it?"), TOKENIZER)

    assert found.differing == 2
    assert found.worst == Place(
        probe_id="p0", asked="Is it?", position=3, after="the model is", published=" yes",
        log_p_published=math.log(0.95), served=" no", log_p_served=math.log(0.01),
    )  # fmt: skip


def test_positions_that_are_left_out_are_not_counted() -> None:
    """What the text does not tell is held against nobody."""
    found = describe_choices(hand_made(left_out=(3,)), probe("Is it?"), TOKENIZER)

    assert found.differing == 1
    assert found.worst is not None
    assert (found.worst.published, found.worst.served) == (" host", " model")


def test_a_reply_that_is_the_weights_own_has_no_place() -> None:
    """And one without tokens neither."""
    reply = ids("the model")
    found = describe_choices(scored(reply, reply, [(0.5, 0.5)] * 2), probe("?"), TOKENIZER)

    assert (found.differing, found.worst) == (0, None)
    nothing = replace(
        hand_made(), aligned=replace(hand_made().aligned, left_out=frozenset(range(4)))
    )
    assert describe_choices(nothing, probe("?"), TOKENIZER) == Choices(
        differing=0, expected=(0.0,) * len(TEXT_SCALES), worst=None
    )


def test_what_noise_makes_of_the_places_is_known() -> None:
    """At scale 1 a token is drawn as the weights say, at 1/2 as their squares say."""
    cells = differing_cells(hand_made().score, range(4))
    first = np.array([0.9, 0.6, 0.8, 0.95])
    at_half = int(np.abs(TEXT_SCALES - 10**-0.3).argmin())
    power = 1 / TEXT_SCALES[at_half]
    kept = first**power / (first**power + (1 - first) ** power)

    assert cells[-1] == pytest.approx((1 - first).sum())
    assert cells[at_half] == pytest.approx((1 - (1 - FLOOR) * kept - FLOOR * first).sum(), abs=1e-6)
    assert list(cells) == sorted(cells)


def test_the_expectation_is_that_of_replies_with_noise() -> None:
    """Simulated: as many tokens differ as the weights alone foretell, at every scale."""
    rng = np.random.default_rng(3)
    for at in (20, 30, 40):
        scale = float(TEXT_SCALES[at])
        logits = rng.normal(0, 2, (2000, 40))
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        chosen = (logits + rng.gumbel(0, scale, logits.shape)).argmax(axis=1)
        top = -np.sort(-logp, axis=1)[:, :20]
        score = ReplyScore(
            logprobs=(0.0,) * 2000, ranks=(1,) * 2000, entropies=(), top_ids=(),
            top_logprobs=tuple(map(tuple, top.tolist())), candidate_logprobs=None,
        )  # fmt: skip
        expected = differing_cells(score, range(2000))[at]
        differing = int((chosen != logits.argmax(axis=1)).sum())

        assert abs(differing - expected) < 4 * math.sqrt(expected)


def test_a_scale_between_two_of_the_grid_is_the_larger_one() -> None:
    """And replies that spread around it are averaged over."""
    cells = np.array([TEXT_SCALES, TEXT_SCALES])
    one = Channel(honest_scale=0.1, spread=0.0, learning_rate=1.0)
    spread = Channel(honest_scale=0.1, spread=0.15, learning_rate=1.0)

    assert expected_differing(cells, 0.1, one) == pytest.approx(0.2)
    assert expected_differing(cells, 0.101, one) == pytest.approx(2 * 10**-0.95)
    assert expected_differing(cells, 5.0, one) == pytest.approx(2.0)
    # the mean of a log-normal, about its median, on a grid of this width
    assert expected_differing(cells, 0.1, spread) == pytest.approx(
        0.2 * math.exp(0.15**2 / 2), rel=0.02
    )


# -- words -------------------------------------------------------------------------------------


def place_after(
    text: str, *, own: Sequence[int] | None = None, last: Sequence[int] | None = None,
    asked: str = "?",
) -> Place:  # fmt: skip
    """The place after a text: `last` came where the weights say `own`."""
    before, end = ids(text), tuple(last or ids(" no"))
    choice = tuple(own or ids(" yes"))
    chances = [(0.9, 0.9)] * len(before) + [(0.9, 0.01)]
    found = describe_choices(
        scored((*before, *end), (*before, *choice), chances), probe(asked), TOKENIZER
    )
    assert found.worst is not None
    return found.worst


def test_only_the_end_of_what_came_before_is_kept() -> None:
    """Forty signs of the reply and a hundred of the question, however long they are."""
    long = "".join(chr(97 + n % 26) for n in range(500))
    place = place_after(long, asked=long)

    assert place.after == f"…{long[-39:]}"
    assert place.asked == f"…{long[-99:]}"
    assert place_after("").after == ""


def test_ends_control_tokens_and_torn_characters_have_words() -> None:
    """The end of a reply is None; what is no character is shown by its bytes."""
    assert place_after("so", own=(EOS,)).published is None
    assert place_after("so", last=(EOS,)).served is None
    assert place_after("so", last=(257,)).served == "<turn>"
    assert place_after("so", last=(0xE6,)).served == r"\xe6"
    assert place_after("日本", last=ids("日本")).after == "日本"


def test_a_key_is_struck_out_before_a_text_is_cut() -> None:
    """A part of one would not be known for a key any more."""
    sieve.know(KEY)
    place = place_after(f"{KEY} is", asked=f"{KEY} {'x' * 60}")

    shown = f"{place.after} {place.asked}"
    assert not [n for n in range(len(KEY) - 8) if KEY[n : n + 8] in shown]
    assert sieve.REDACTED in place.after


# -- in an audit -------------------------------------------------------------------------------


def test_the_ledger_keeps_the_choices_of_every_reply(tmp_path: Path) -> None:
    """Of an honest host none differs; of another the words are those of its replies."""
    probes = make_probes(6)
    honest = score(tmp_path / "honest", probes, outcomes_of(probes))
    engine = FakeEngine(margin=3.5, noise={"int4-sym-g64": 3.0})
    engine.load_variant("int4-sym-g64")
    made = engine.generate([
        GenerateRequest(prompt_ids=TOKENIZER.render(p.messages), max_tokens=8) for p in probes
    ])  # fmt: skip
    texts = [TOKENIZER.decode(one.token_ids) for one in made]
    outcomes = {
        p.id: make_reply(p, text, finish_reason=one.finish_reason)
        for p, text, one in zip(probes, texts, made, strict=True)
    }
    other = score(tmp_path / "other", probes, dict(outcomes), engine=FakeEngine(margin=3.5))

    assert [row.choices[REFERENCE].differing for row in honest.rows] == [0] * 6
    assert sum(row.choices[REFERENCE].differing for row in other.rows) > 3
    for text, row in zip(texts, other.rows, strict=True):
        found = row.choices[REFERENCE].worst
        assert (found is None) == (row.choices[REFERENCE].differing == 0)
        if found is not None and found.served is not None and "\\x" not in found.served:
            assert found.served in text
            assert found.log_p_served < found.log_p_published
    assert ledger_from_json(ledger_to_json(other) | {"engine": {}}, "ledger") == other


def rows_with(*places: Place | None, differing: int = 2) -> list[Row]:
    """Simulated rows, each with a place."""
    rng = np.random.default_rng(1)
    return [
        replace(
            simulate_row(rng, f"p{n:02}", scale=0.0),
            choices={REFERENCE: Choices(
                differing=differing, expected=tuple(TEXT_SCALES.tolist()), worst=one
            )},
        )
        for n, one in enumerate(places)
    ]  # fmt: skip


def at(log_odds: float, name: str = "p") -> Place:
    return Place(
        probe_id=name, asked="?", position=1, after="a", published="b", log_p_published=-0.1,
        served="c", log_p_served=-0.1 - log_odds,
    )  # fmt: skip


def report_of(rows: list[Row], **plan: Any) -> Any:
    case = make_case(make_plan(**plan), Ledger(rows=tuple(rows)), outcomes=replies(rows))
    return decide(case)


def test_a_report_adds_up_what_rows_say() -> None:
    """Known answer: counts, expectations at both ends of the zone, the five worst places."""
    rows = rows_with(*(at(odds, f"p{odds:g}") for odds in (1.0, 7.0, 3.0, 9.0, 5.0, 2.0)), None)
    channel = Channel(honest_scale=0.1, tolerated_scale=0.2, spread=0.0, learning_rate=1.0)
    found = report_of(rows, calibration=make_calibration(text=channel)).evidence

    assert (found.tokens, found.differing) == (7 * 30, 14)
    assert found.honest == pytest.approx(0.7)
    assert found.tolerated == pytest.approx(7 * 10**-0.65, abs=0.01)
    assert [one.probe_id for one in found.worst] == ["p9", "p7", "p5", "p3", "p2"]
    assert len(found.worst) == SHOWN_PLACES


def test_the_panel_and_older_rows_are_no_evidence() -> None:
    """Probes that are made to differ are left out; without all choices nothing is said."""
    rows = rows_with(at(1.0), at(2.0), None)
    panel = replace(rows[0], panel=True)

    assert report_of([panel, *rows[1:]]).evidence.tokens == 60
    assert report_of([replace(rows[0], choices={}), *rows[1:]]).evidence is None
    assert report_of([]).evidence is None


def test_a_host_is_read_by_the_default_that_it_serves() -> None:
    """A default of the publisher's is no departure, and its tokens are held against it."""
    (row,) = rows_with(at(1.0), differing=9)
    column = f"{DEFAULT}repetition penalty 1.1"
    cells = {REFERENCE: tuple(v - 50.0 for v in row.text[REFERENCE]), column: row.text[REFERENCE]}
    quiet = Choices(differing=0, expected=tuple(TEXT_SCALES.tolist()), worst=None)
    served = replace(row, text=cells, choices={**row.choices, column: quiet})

    plain = report_of([replace(row, text=cells)])
    named = report_of([served], greedy_defaults={"repetition penalty 1.1": {}})

    assert plain.evidence.differing == 9
    assert named.evidence.differing == 0
