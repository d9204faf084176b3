"""Another model as a suspect: its prompts, its spelling of a text, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes_engine import EOS, TURN, FakeTokenizer
from scored import CountingEngine, make_probes, outcomes_of, score
from simulate import VOCABULARY, make_calibration, make_plan
from simulate import _log_softmax as log_softmax
from simulate import _score as score_of
from suspects import suspected_rows

from verifier.errors import RenderingError
from verifier.evidence.ledger import TEXT_SCALES, Ledger, Row, text_cells
from verifier.evidence.posterior import is_rather_a_suspect
from verifier.records import REFERENCE, Prompt
from verifier.reference.reader import Suspected
from verifier.scoring.alignment import Aligned
from verifier.scoring.other_models import LOST, end_of_turn, render_for, respell
from verifier.scoring.score_file import DECIMALS, read_scores

OTHER = "fp8-channel"  # what the fake engine has in place while the suspect is scored
PUBLISHED = FakeTokenizer()


class Bytes(FakeTokenizer):
    """Spells everything by single bytes, although it has words."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())


class Lossy(Bytes):
    """Has no byte above ASCII: what is not ASCII becomes a question mark."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode("ascii", "replace"))


class Short(FakeTokenizer):
    """Has a template of its own, which ends a reply in another way."""

    def render_text(self, prompt: Prompt) -> str:
        text = "".join(f"{m['content']}<turn>" for m in prompt.messages)
        return text + ("!" if prompt.generation_prompt else "")


class Bare(Short):
    """Has no template."""

    @property
    def template(self) -> None:  # type: ignore[override]
        return None

    def render_text(self, prompt: Prompt) -> str:  # noqa: ARG002
        raise RenderingError("no template")


class Refusing(FakeTokenizer):
    def render_text(self, prompt: Prompt) -> str:  # noqa: ARG002
        raise RenderingError("not this conversation")


def suspect(tokenizer: FakeTokenizer, *, same: bool = False) -> Suspected:
    return Suspected(tokenizer=tokenizer, same=same)


def read(text: str, *, ended: bool = True) -> Aligned:
    ids = (*PUBLISHED.encode(text), EOS) if ended else PUBLISHED.encode(text)
    return Aligned(
        reply_ids=ids, left_out=frozenset(), by="text", candidates=None, reported=None, problem=None
    )


# -- prompts -----------------------------------------------------------------------------------


def test_a_suspect_reads_the_prompt_of_its_own_template() -> None:
    """As a host that serves it would render it."""
    (probe,) = make_probes(1)

    assert render_for(suspect(Short()), probe, PUBLISHED) == PUBLISHED.encode_prompt(
        "question 0<turn>!"
    )


def test_a_suspect_without_a_template_reads_the_published_prompt() -> None:
    """A base model is served with the template of its instruct model."""
    (probe,) = make_probes(1)
    published = PUBLISHED.render(probe.messages)

    assert render_for(suspect(Bare()), probe, PUBLISHED) == published


def test_a_probe_that_the_suspects_template_refuses_has_no_cell(tmp_path: Path) -> None:
    """Missing is no information."""
    probes = make_probes(2)
    ledger = score(
        tmp_path, probes, outcomes_of(probes), weights=(OTHER,),
        suspects={OTHER: suspect(Refusing(), same=True)},
    )  # fmt: skip

    assert [set(row.text) for row in ledger.rows] == [{REFERENCE}, {REFERENCE}]


# -- spelling ----------------------------------------------------------------------------------


def test_a_reply_ends_as_the_suspects_template_ends_one() -> None:
    """Not as the published one does."""
    assert end_of_turn(PUBLISHED) == EOS
    assert end_of_turn(Short()) == TURN
    assert end_of_turn(Bare()) == EOS
    assert respell(read("a"), PUBLISHED, suspect(Short())).aligned.reply_ids[-1] == TURN


def test_another_tokenizer_spells_the_same_text_and_leaves_nothing_out() -> None:
    """One spelling, whole, is a lower bound of the text."""
    found = respell(read(" the model says é"), PUBLISHED, suspect(Bytes()))

    assert found.aligned.reply_ids == (*" the model says é".encode(), EOS)
    assert found.aligned.left_out == frozenset()
    assert found.lost == 0


def test_what_cannot_be_spelled_is_lost_with_all_that_follows() -> None:
    """Its bytes are counted, and the end of the turn is no longer judged."""
    found = respell(read("now é or"), PUBLISHED, suspect(Lossy()))

    assert found.aligned.reply_ids == tuple(b"now ")
    assert found.lost == len("é or".encode())


def test_lost_bytes_are_charged_as_if_drawn_evenly(tmp_path: Path) -> None:
    """log 256 each, under every scale."""
    probes = [p for p in make_probes(40) if "é" in outcomes_of([p])[p.id].text]  # type: ignore[union-attr]
    ledger = score(
        tmp_path, probes, outcomes_of(probes), weights=(OTHER,),
        suspects={OTHER: suspect(Lossy())},
    )  # fmt: skip
    scored = {s.probe_id: s for s in read_scores(tmp_path) if s.weights == OTHER}

    assert any(s.lost for s in scored.values())
    for row in ledger.rows:
        own = scored[row.probe_id]
        whole = text_cells(own.score, range(len(own.aligned.reply_ids)))
        assert row.text[OTHER] == pytest.approx([c - own.lost * LOST for c in whole])


def test_the_likelier_of_two_spellings_is_kept(tmp_path: Path) -> None:
    """The model wrote words: spelling them by bytes costs, and readings win some back."""
    probes = make_probes(6)
    engine = CountingEngine(noise={OTHER: 0.0})
    score(
        tmp_path, probes, outcomes_of(probes), engine=engine, weights=(OTHER,),
        suspects={OTHER: suspect(Bytes())},
    )  # fmt: skip
    tried = [request for weights, request in engine.scored if weights == OTHER]
    kept = {s.probe_id: s for s in read_scores(tmp_path) if s.weights == OTHER}
    engine.load_variant(OTHER)

    for probe in probes:
        own = kept[probe.id]
        plain = next(r for r in tried if r.prompt_ids == PUBLISHED.render(probe.messages))
        (first,) = engine.score([plain])
        assert sum(own.score.logprobs) > sum(first.logprobs)
        assert PUBLISHED.decode(own.aligned.reply_ids) == PUBLISHED.decode(plain.reply_ids)
        assert own.aligned.left_out == frozenset()


def test_a_suspect_with_the_published_tokenizer_reads_as_the_reference_did(tmp_path: Path) -> None:
    """The same ids after its own prompt."""
    probes = make_probes(3)
    engine = CountingEngine(noise={OTHER: 0.0})
    score(
        tmp_path, probes, outcomes_of(probes, logprobs=True), engine=engine, weights=(OTHER,),
        suspects={OTHER: suspect(Short(), same=True)},
    )  # fmt: skip
    found = {(s.probe_id, s.weights): s for s in read_scores(tmp_path)}
    asked = {r.prompt_ids for w, r in engine.scored if w == OTHER}

    for probe in probes:
        one, other = found[probe.id, REFERENCE], found[probe.id, OTHER]
        assert one.aligned.reply_ids == other.aligned.reply_ids
        assert other.aligned.candidates is None
    assert asked == {Short().render(probe.messages) for probe in probes}


def test_scores_of_a_suspect_come_back_with_what_was_lost(tmp_path: Path) -> None:
    """A resumed run computes the same cells, and scores nothing twice."""
    probes = make_probes(12)
    settings: dict[str, Any] = {
        "weights": (OTHER,), "suspects": {OTHER: suspect(Lossy())}
    }  # fmt: skip
    first = score(tmp_path, probes, outcomes_of(probes), **settings)
    engine = CountingEngine()
    again = score(tmp_path, probes, outcomes_of(probes), engine=engine, **settings)

    assert again == first
    assert engine.scored == []
    assert DECIMALS  # scores are kept rounded


# -- what is said ------------------------------------------------------------------------------


def test_a_text_likelihood_is_that_of_its_spelling() -> None:
    """Known answer: at scale 1 a cell is the sum of the tokens' log-probabilities."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (7, VOCABULARY))
    chosen = logits.argmax(axis=1)
    cells = text_cells(score_of(logits, chosen), range(7))

    assert TEXT_SCALES[-1] == pytest.approx(1.0)
    expected = log_softmax(logits)[np.arange(7), chosen].sum()
    assert cells[-1] == pytest.approx(expected, abs=1e-6)


# -- against a template fault ------------------------------------------------------------------

COLUMN = "template:family-llama3"


def is_rather(ledger: Ledger) -> bool:
    """As at the simulated plan's beta."""
    return is_rather_a_suspect(
        ledger, COLUMN, make_calibration().text, bank=make_plan().bank, suspects=("sibling",),
        error=0.001,
    )  # fmt: skip


def judged(*, served: str, seed: int, left: float = 0.5) -> bool:
    """Whether a suspect is taken for the cause, of a host that serves it or has the template fault.

    Under the fault's column noise of scale `left` remains, as that of coarse weights does.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(4):
        true = rng.normal(0, 2, (30, VOCABULARY))
        host = true + rng.gumbel(0, left, true.shape) if served == COLUMN else true
        after = true if served in (COLUMN, "either") else true + rng.gumbel(0, left, true.shape)
        chosen = host.argmax(axis=1)
        logits = {
            REFERENCE: rng.normal(0, 2, true.shape),
            COLUMN: after,
            "sibling": rng.normal(0, 2, true.shape) if served == COLUMN else true,
        }
        text = {name: text_cells(score_of(own, chosen), range(30)) for name, own in logits.items()}
        rows.append(
            Row(
                probe_id=f"p{n}", tokens=30, left_out=0, text=text, logprob=None,
                logprob_problem=None, rendered={REFERENCE: 20, "family-llama3": 24},
            )
        )  # fmt: skip
    return is_rather(Ledger(rows=tuple(rows)))


def test_a_suspect_comes_before_a_template_that_leaves_noise() -> None:
    """Other weights look like another prompt now and then; the suspect fits and leads by far."""
    assert sum(judged(served="sibling", seed=seed) for seed in range(30)) >= 28


def test_a_template_fault_stays_one_whatever_the_suspects() -> None:
    """Beside honest weights and beside coarse ones."""
    assert not any(judged(served=COLUMN, seed=seed, left=0.05) for seed in range(50))
    assert not any(judged(served=COLUMN, seed=seed, left=0.6) for seed in range(50))


def test_a_template_comes_first_where_a_suspect_explains_the_replies_no_better() -> None:
    """Weights are never accused while another prompt explains the replies as well."""
    assert not any(judged(served="either", seed=seed) for seed in range(30))


def test_without_a_suspect_scored_on_the_same_replies_the_template_stays() -> None:
    """Missing is no information."""
    row = suspected_rows(1, noise=2.0, near=0.0)[0]

    assert not is_rather(Ledger(rows=(row,)))
    assert not is_rather(Ledger(rows=()))
