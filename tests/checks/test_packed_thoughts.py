"""Packs of models that think: thoughts as hosts show them, and answers with thinking turned off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import FAULT, QUIET, write_card
from fakes_engine import EOS, TURN
from fakes_thinker import PARSERS, THINKING, ThinkingEngine, ThinkingTokenizer
from packs import configure_packed, record_tiny_pack, run_packed, write_tiny_pack
from simulate import case_of, make_plan

from verifier.audit import audit
from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger
from verifier.host.exchange import HIDDEN
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host, Thoughts
from verifier.lab.testbed.server import running
from verifier.plan_file import read_probes
from verifier.records import REFERENCE, GenerateRequest, Outcome, Prompt, Reply
from verifier.reference.loaded import Reference
from verifier.reference.pack_file import Pack, read_pack
from verifier.scoring.packed import score_from_pack
from verifier.steps import start
from verifier.verdict.combine import combine

HONEST = "fp8-channel"
TOKENS = 24
CARD: dict[str, Any] = {"thinking": THINKING.model_dump()}


class Continuing(ThinkingEngine):
    """Says the same whether the tag that opens a thought is asked of it or begun for it."""

    def logprobs(self, prompt_ids: tuple[int, ...], reply_ids: Sequence[int]) -> np.ndarray:
        tokenizer = self._tokenizer
        opened = tokenizer.special_id(THINKING.open)
        if not tokenizer.inside and prompt_ids[-1] == opened:
            prompt_ids, reply_ids = prompt_ids[:-1], (opened, *reply_ids)
        return super().logprobs(prompt_ids, reply_ids)


def make_engine(weights: str = REFERENCE, *, inside: bool = True) -> Continuing:
    tokenizer = ThinkingTokenizer(control=True, inside=inside)
    engine = Continuing(tokenizer, margin=3.5, noise={HONEST: 0.05, FAULT: 1.5})
    engine.load_variant(weights)
    return engine


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Packs by where prompts leave the reply and how the model is asked, each made once."""
    made: dict[tuple[bool, str], Path] = {}

    def pack(*, inside: bool = True, mode: Any = "shown") -> Path:
        if (inside, mode) not in made:
            made[inside, mode] = write_tiny_pack(
                tmp_path_factory.mktemp("pack"), tokens=TOKENS, mode=mode,
                engine=make_engine(inside=inside), **CARD,
                tokenizer=ThinkingTokenizer(control=True, inside=inside),
            )  # fmt: skip
        return made[inside, mode]

    return pack


def served(
    pack: Pack, parser: str, weights: str, *, inside: bool, count: int = 60, tokens: int = TOKENS
) -> dict[str, Outcome]:
    """What a host shows whose parser takes replies apart; "inline": as they were written."""
    tokenizer, engine = make_engine(inside=inside)._tokenizer, make_engine(weights, inside=inside)
    outcomes: dict[str, Outcome] = {}
    for probe in pack.ordinary[:count]:
        ids = tokenizer.render(probe.messages)
        (made,) = engine.generate([GenerateRequest(prompt_ids=ids, max_tokens=tokens)])
        text = tokenizer.decode_prompt([t for t in made.token_ids if t not in (EOS, TURN)])
        shown: dict[str, Any] = {"text": text}
        if parser != "inline":
            thought, closed, answer = text.removeprefix("<think>").partition("</think>")
            thought, answer = PARSERS[parser](thought, answer if closed else "")
            shown = {"text": answer, "thought": thought}
        outcomes[probe.id] = Reply(
            probe_id=probe.id, finish_reason=made.finish_reason, prompt_tokens=len(ids),
            completion_tokens=len(made.token_ids), logprobs=None,
            logprobs_problem="none were asked for", **shown,
        )  # fmt: skip
    return outcomes


def judge(
    run: Path, pack: Pack, outcomes: dict[str, Outcome], *, tokens: int = TOKENS
) -> tuple[Ledger, float]:
    """The ledger of replies, and the evidence."""
    run.mkdir(exist_ok=True)
    probes = [replace(probe, max_tokens=tokens) for probe in pack.ordinary]
    ledger = score_from_pack(run, probes, outcomes, pack=pack)
    return ledger, combine(case_of(make_plan(top_logprobs=0), ledger)).log_e


# -- level and power ---------------------------------------------------------------------------


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("tokens", [10, TOKENS])
def test_honest_thoughts_keep_the_level(
    make: Callable[..., Path], tmp_path: Path, parser: str, inside: bool, tokens: int
) -> None:
    """Null: honest noise, and any parser. Thoughts that end and such as the limit cuts off bring no
    evidence of any weight."""
    pack = read_pack(make(inside=inside))
    replies = served(pack, parser, HONEST, inside=inside, tokens=tokens)
    ledger, log_e = judge(tmp_path, pack, replies, tokens=tokens)

    assert sum(row.unjudged is None for row in ledger.rows) >= 50
    assert sum(row.tokens for row in ledger.rows) >= 150
    assert log_e < math.log(20)


@pytest.mark.parametrize("parser", ["as it is", "around both", "inline"])
@pytest.mark.parametrize("inside", [True, False])
def test_rounded_weights_are_found_in_thoughts(
    make: Callable[..., Path], tmp_path: Path, parser: str, inside: bool
) -> None:
    """Where replies leave the paths of thoughts."""
    pack = read_pack(make(inside=inside))
    _, log_e = judge(tmp_path, pack, served(pack, parser, FAULT, inside=inside))

    assert log_e >= math.log(1000)


# -- known answer ------------------------------------------------------------------------------


@pytest.mark.parametrize("parser", ["as it is", "around both", "inline"])
def test_a_thought_that_follows_its_path_is_judged_to_its_end(
    make: Callable[..., Path], tmp_path: Path, parser: str
) -> None:
    """The tag that closes it is the last event; the answer is left alone."""
    pack = read_pack(make())
    close_id = ThinkingTokenizer(control=True, inside=True).special_id(THINKING.close)
    replies = served(pack, parser, REFERENCE, inside=True)
    ledger, _ = judge(tmp_path, pack, replies)

    ended = 0
    for row in ledger.rows:
        path = pack.paths[pack.index[row.probe_id], 0]
        length = pack.length(path)
        last = pack.token_id(pack.place(path, length - 1).tokens[0])
        if last == close_id:
            ended += row.tokens >= length - 1  # a line end before the tag may be one event with it
        assert row.tokens <= TOKENS - 3 or last == close_id
    assert ended >= 50


def test_tokens_of_a_text_are_counted_by_the_longest_that_the_pack_names(
    make: Callable[..., Path],
) -> None:
    """As the tokenizer of the tiny model does, where the pack names them all."""
    pack, tokenizer = read_pack(make()), ThinkingTokenizer(control=True, inside=True)
    for text in (" the weights say more", "yes. no? few", ""):
        assert pack.count_tokens(text) == len(tokenizer.encode(text))


# -- what is set aside -------------------------------------------------------------------------


def test_what_may_not_be_the_thought_is_set_aside(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    """No thought; a summary in its place, which the count tells; no count at all."""
    pack = read_pack(make())
    honest = served(pack, "as it is", REFERENCE, inside=True, count=4)
    one, two, three, four = honest.values()
    spoilt: dict[str, Outcome] = {
        one.probe_id: replace(one, thought=None),  # type: ignore[type-var]
        two.probe_id: replace(two, completion_tokens=60),  # type: ignore[type-var]
        three.probe_id: replace(three, completion_tokens=None),  # type: ignore[type-var]
        four.probe_id: four,
    }
    ledger, _ = judge(tmp_path, pack, spoilt)

    why = [row.unjudged for row in ledger.rows if row.probe_id in spoilt]
    assert [one is None for one in why] == [False, False, False, True]
    assert all(one is None or one.startswith(HIDDEN) for one in why)


# -- whole audits ------------------------------------------------------------------------------


@contextmanager
def host(shown: Any, weights: str = REFERENCE) -> Iterator[str]:
    """The URL of a host of the model that thinks."""
    app = create_app(Host(
        engine=make_engine(weights), tokenizer=ThinkingTokenizer(control=True, inside=True),
        model="tiny", window_s=0.001, thoughts=Thoughts(tags=THINKING, shown=shown),
    ))  # fmt: skip
    with running(app) as url:
        yield url


SETTINGS: dict[str, Any] = {"max_tokens": TOKENS, "budget_completion_tokens": 1200}


@pytest.mark.parametrize("shown", ["apart", "stripped"])
def test_an_honest_host_that_shows_thoughts_is_consistent(
    make: Callable[..., Path], tmp_path: Path, shown: str
) -> None:
    """And the report says that paths are of thoughts."""
    with host(shown) as url:
        report = run_packed(configure_packed(url, make(), tmp_path / "run", **SETTINGS))

    assert report.decision == "consistent"
    assert "within thoughts, without the answers" in " ".join(report.notes)


def test_another_host_that_shows_thoughts_is_inconsistent(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    """4-bit weights, by their thoughts."""
    with host("apart", FAULT) as url:
        report = run_packed(configure_packed(url, make(), tmp_path / "run", **SETTINGS))

    assert report.decision == "inconsistent"


@pytest.mark.parametrize("weights", [REFERENCE, FAULT])
def test_where_thoughts_are_hidden_the_questions_are_not_run(
    make: Callable[..., Path], tmp_path: Path, weights: str
) -> None:
    """Nobody is accused, and nobody certified; the reason is said."""
    with host("hidden", weights) as url:
        report = run_packed(configure_packed(url, make(), tmp_path / "run", **SETTINGS))

    assert report.decision == "inconclusive"
    (said,) = [f for f in report.findings if f.aspect == "pack"]
    assert (said.name, said.decision) == ("the pack's questions", "not run")
    assert "hidden" in said.detail


@pytest.mark.parametrize(
    ("weights", "decision"), [(REFERENCE, "consistent"), (FAULT, "inconsistent")]
)
def test_a_pack_of_answers_is_asked_with_thinking_off(
    make: Callable[..., Path], tmp_path: Path, weights: str, decision: str
) -> None:
    """Its questions carry the setting, and no report says that they were changed."""
    pack = make(mode="off")
    with host("hidden", weights) as url:
        report = run_packed(configure_packed(url, pack, tmp_path / "run", **SETTINGS))

    assert read_pack(pack).probes[0].settings == (("enable_thinking", False),)
    assert report.decision == decision
    notes = " ".join(report.notes)
    assert "of answers with thinking off" in notes
    assert "further probes were asked" not in notes


@pytest.mark.parametrize(
    ("weights", "decision"), [(REFERENCE, "consistent"), (FAULT, "inconsistent")]
)
@pytest.mark.parametrize("wanted", ["scores", "texts"])
def test_a_pack_of_answers_may_be_a_trusted_hosts(
    tmp_path: Path, wanted: Any, weights: str, decision: str
) -> None:
    """Asked with thinking turned off, as whoever is audited from it is."""
    with host("hidden") as url:
        pack = record(tmp_path, url, wanted=wanted, questions=48, same_model=True)
    settings = {"max_tokens": 17, "budget_completion_tokens": 1200}  # texts are read no further
    with host("hidden", weights) as url:
        report = run_packed(configure_packed(url, pack, tmp_path / "run", **settings))

    assert read_pack(pack).probes[0].settings == (("enable_thinking", False),)
    assert report.decision == decision
    assert "of answers with thinking off" in " ".join(report.notes)


def record(folder: Path, url: str, **how: Any) -> Path:
    """A pack of what a host of the model that thinks says with that turned off."""
    return record_tiny_pack(
        folder, url, tokens=TOKENS, mode="off", says=CARD,
        tokenizer=ThinkingTokenizer(control=True, inside=True), **how,
    )  # fmt: skip


def test_a_recording_with_thinking_off_goes_on(tmp_path: Path) -> None:
    """The same command reads what was asked already, and asks nobody."""
    with host("hidden") as url:
        first = record(tmp_path, url, wanted="texts", questions=8).read_bytes()
    (tmp_path / "said.pack").unlink()

    assert record(tmp_path, url, wanted="texts", questions=8).read_bytes() == first


@pytest.mark.parametrize("shown", ["apart", "inline"])
def test_a_trusted_host_that_thinks_all_the_same_is_refused(tmp_path: Path, shown: Any) -> None:
    """What it says after a thought, or as one, is no answer without it."""
    app = create_app(Host(
        engine=make_engine(), tokenizer=Deaf(control=True, inside=True), model="tiny",
        window_s=0.001, thoughts=Thoughts(tags=THINKING, shown=shown),
    ))  # fmt: skip
    with running(app) as url, pytest.raises(ConfigError, match="as text, without a thought"):
        record(tmp_path, url, wanted="texts", questions=24)
    assert not (tmp_path / "said.pack").exists()


class Deaf(ThinkingTokenizer):
    """Heeds no setting of its template."""

    def render_text(self, prompt: Prompt) -> str:
        return super().render_text(replace(prompt, settings={}))


@pytest.mark.parametrize("mode", ["shown", "off"])
@pytest.mark.parametrize(
    ("weights", "decision"), [(REFERENCE, "consistent"), (FAULT, "inconsistent")]
)
def test_a_pack_of_a_model_that_thinks_lends_its_questions_to_weights(
    make: Callable[..., Path], tmp_path: Path, mode: str, weights: str, decision: str
) -> None:
    """Fresh ones are asked as they are, thoughts or none, and its word is held against theirs."""
    card = write_card(tmp_path, **CARD)
    reference = Reference(
        engine=make_engine(), tokenizer=ThinkingTokenizer(control=True, inside=True)
    )
    with host("apart", weights) as url:
        config = configure_packed(url, make(mode=mode), tmp_path / "run", card=card, **SETTINGS)
        report = audit(config, api_key=None, load_reference=lambda: reference, show=QUIET)

    assert report.decision == decision
    off = (("enable_thinking", False),) if mode == "off" else ()
    assert {probe.settings for probe in read_probes(config.out)} == {off}
    assert "further probes were asked" not in " ".join(report.notes)


# -- what is refused ---------------------------------------------------------------------------


def test_what_makes_no_pack_of_thoughts_is_refused(tmp_path: Path) -> None:
    """A closing tag of several tokens; one that thinking turned off leaves open."""
    letters = ThinkingTokenizer(control=False, inside=True)
    with pytest.raises(ConfigError, match="</think> is 8 tokens"):
        write_tiny_pack(tmp_path, questions=16, tokenizer=letters, mode="shown", **CARD)
    other = {"thinking": THINKING.model_dump() | {"switch_off": {"budget": "none"}}}
    with pytest.raises(ConfigError, match="with thinking off its template closes no thought"):
        write_tiny_pack(
            tmp_path, questions=16, tokenizer=ThinkingTokenizer(control=True, inside=True),
            mode="off", name="off.pack", **other,
        )  # fmt: skip


def test_a_dialect_that_cannot_turn_thinking_off_is_refused(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    """Before anything is written."""
    config = configure_packed("http://127.0.0.1:1/v1", make(mode="off"), tmp_path / "run")
    endpoint = config.endpoint.model_copy(update={"dialect": "messages"})

    with pytest.raises(ConfigError, match="its questions turn thinking off"):
        start(config.model_copy(update={"endpoint": endpoint}))
