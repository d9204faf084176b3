"""Thoughts and answers, as parsers of hosts show them, read back to what was generated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tokenizer
from fakes_engine import EOS, TURN
from fakes_thinker import PARSERS, THINKING, ThinkingEngine, ThinkingTokenizer
from simulate import case_of, make_plan

from verifier.evidence.ledger import Ledger
from verifier.prompts import prompt_of
from verifier.records import (
    REFERENCE,
    Candidate,
    GenerateRequest,
    Message,
    Outcome,
    Probe,
    Reply,
    ReportedToken,
)
from verifier.reference.cards import Thinking
from verifier.scoring.reasoning import spelling_of
from verifier.scoring.score import score_replies
from verifier.scoring.score_file import read_scores
from verifier.verdict.combine import combine

THOUGHT = "the host says more of the model weights now and a token is less."
STREAMS = {
    "as the template writes": f"{THOUGHT}\n</think>\n\nYes. the weights say so.",
    "with nothing between": f"{THOUGHT}</think>Yes. the weights say so.",
    "otherwise": f"{THOUGHT}\n\n</think>\nYes. the weights say so.",
}
PROBE = Probe(
    id="p0", kind="test", messages=(Message(role="user", content="why?"),), max_tokens=200
)


def make_tokenizer(*, control: bool = True, inside: bool = True) -> ThinkingTokenizer:
    return ThinkingTokenizer(control=control, inside=inside)


def generate(
    tokenizer: ThinkingTokenizer, stream: str, *, max_tokens: int = 200, weights: str = REFERENCE
) -> tuple[str, int, str]:
    """Text with its tags, how many tokens were generated, and why it ended."""
    whole = stream if tokenizer.inside else f"<think>\n{stream}"
    engine = ThinkingEngine(tokenizer, stream=whole, noise={"int4-sym-g64": 2.6})
    engine.load_variant(weights)
    ids = tokenizer.render(PROBE.messages)
    (made,) = engine.generate([GenerateRequest(prompt_ids=ids, max_tokens=max_tokens)])
    names = {token_id: tag for tag, token_id in tokenizer.tags.items()}
    raw = b"".join(
        names[t].encode() if t in names else tokenizer.token_bytes(t) for t in made.token_ids
    )
    return raw.decode("utf-8", "replace"), len(made.token_ids), made.finish_reason


def parse(text: str, parser: str) -> tuple[str, str]:
    """What a host makes of a text with tags: the thought and the answer; "" for none."""
    thought, closed, answer = text.removeprefix("<think>").partition("</think>")
    return PARSERS[parser](thought, answer if closed else "")


def make_reply(**changes: Any) -> Reply:
    values: dict[str, Any] = {
        "probe_id": "p0", "text": "", "finish_reason": "stop", "prompt_tokens": 9,
        "completion_tokens": None, "logprobs": None, "logprobs_problem": "none were asked for",
    }  # fmt: skip
    return Reply(**values | changes)


def served(
    tokenizer: ThinkingTokenizer, stream: str, parser: str, **settings: Any
) -> tuple[Reply, int]:
    """The reply of a host with this parser, and how many tokens it generated."""
    text, tokens, finish = generate(tokenizer, stream, **settings)
    thought, answer = parse(text, parser)
    return make_reply(
        thought=thought, text=answer, completion_tokens=tokens, finish_reason=finish
    ), tokens


def score(
    run: Path, tokenizer: ThinkingTokenizer, reply: Reply, stream: str, *,
    thinking: Thinking | None = THINKING, probe: Probe = PROBE,
) -> Ledger:  # fmt: skip
    run.mkdir(exist_ok=True)
    whole = stream if tokenizer.inside else f"<think>\n{stream}"
    return score_replies(
        run, [probe], {probe.id: reply}, engine=ThinkingEngine(tokenizer, stream=whole),
        tokenizer=tokenizer, thinking=thinking,
    )  # fmt: skip


def ranks(run: Path) -> list[int]:
    """Ranks of the tokens that were scored."""
    (scored,) = read_scores(run)
    kept = range(len(scored.aligned.reply_ids))
    return [scored.score.ranks[t] for t in kept if t not in scored.aligned.left_out]


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("control", [True, False])
def test_an_honest_thought_is_never_held_against_the_host(
    tmp_path: Path, parser: str, stream: str, inside: bool, control: bool
) -> None:
    """Whatever a parser strips, every token that is scored is the model's own choice."""
    tokenizer = make_tokenizer(control=control, inside=inside)
    reply, tokens = served(tokenizer, STREAMS[stream], parser)
    ledger = score(tmp_path, tokenizer, reply, STREAMS[stream])

    (row,) = ledger.rows
    assert row.unjudged is None
    assert set(ranks(tmp_path)) == {1}
    assert row.tokens + row.left_out <= tokens + 2
    assert row.tokens >= 0.4 * tokens


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("inside", [True, False])
def test_as_the_template_writes_it_few_places_are_left_out(
    tmp_path: Path, parser: str, inside: bool
) -> None:
    """The seam and the tokens beside it; all of it comes back as it was generated."""
    tokenizer = make_tokenizer(inside=inside)
    stream = STREAMS["as the template writes"]
    reply, tokens = served(tokenizer, stream, parser)
    ledger = score(tmp_path, tokenizer, reply, stream)

    (row,), (scored,) = ledger.rows, read_scores(tmp_path)
    whole = stream if inside else f"<think>\n{stream}"
    assert scored.aligned.reply_ids == (*tokenizer.encode_prompt(whole), EOS)
    assert row.tokens + row.left_out == tokens
    assert row.left_out <= 12


@pytest.mark.parametrize("control", [True, False])
def test_a_thought_in_the_text_itself_is_read_whole(tmp_path: Path, control: bool) -> None:
    """Nothing is stripped between, so nothing is left out."""
    tokenizer = make_tokenizer(control=control)
    stream = STREAMS["otherwise"]
    text, tokens, _ = generate(tokenizer, stream)
    (row,) = score(
        tmp_path, tokenizer, make_reply(text=text, completion_tokens=tokens), stream
    ).rows

    assert (row.tokens, row.left_out) == (tokens, 0)
    assert set(ranks(tmp_path)) == {1}


def test_a_tag_that_a_parser_puts_in_front_was_not_generated(tmp_path: Path) -> None:
    """As vLLM's minimax_m2_append_think does where the prompt begins the thought."""
    tokenizer = make_tokenizer()
    stream = STREAMS["as the template writes"]
    text, tokens, _ = generate(tokenizer, stream)
    reply = make_reply(text=f"<think>{text}", completion_tokens=tokens)
    (row,) = score(tmp_path, tokenizer, reply, stream).rows

    assert (row.tokens, row.left_out) == (tokens, 0)
    assert set(ranks(tmp_path)) == {1}


@pytest.mark.parametrize("parser", ["as it is", "around both"])
def test_a_thought_that_the_limit_cut_off_is_judged_on_what_is_shown(
    tmp_path: Path, parser: str
) -> None:
    """A beginning has an exact likelihood; only the last token may be half of one."""
    tokenizer = make_tokenizer()
    stream = STREAMS["as the template writes"]
    reply, tokens = served(tokenizer, stream, parser, max_tokens=12)
    probe = replace(PROBE, max_tokens=12)
    (row,) = score(tmp_path, tokenizer, reply, stream, probe=probe).rows

    assert reply.finish_reason == "length"
    assert reply.text == ""
    assert row.tokens >= tokens - 3
    assert set(ranks(tmp_path)) == {1}


@pytest.mark.parametrize("parser", PARSERS)
def test_another_model_shows_in_its_thoughts(tmp_path: Path, parser: str) -> None:
    """Noise of a 4-bit build: tokens that the published model would not have chosen are scored."""
    tokenizer = make_tokenizer()
    stream = STREAMS["as the template writes"]
    reply, _ = served(tokenizer, stream, parser, weights="int4-sym-g64")
    (row,) = score(tmp_path, tokenizer, reply, stream).rows

    assert row.tokens > 20
    assert sum(rank > 1 for rank in ranks(tmp_path)) >= 3


@pytest.mark.parametrize("where", ["thought", "text"])
@pytest.mark.parametrize("strange", ["\ufffd", "</think>", "<think>"])
def test_what_follows_signs_that_cannot_be_read_back_is_not_scored(
    tmp_path: Path, where: str, strange: str
) -> None:
    """Pieces of characters, and tags that may be tokens or letters."""
    tokenizer = make_tokenizer()
    stream = STREAMS["as the template writes"]
    reply, _ = served(tokenizer, stream, "as it is")
    words = getattr(reply, where)
    at = words.index(" weights")
    spoilt = replace(reply, **{where: words[:at] + strange + words[at:]})
    (row,) = score(tmp_path, tokenizer, spoilt, stream).rows

    assert row.tokens > 1
    assert set(ranks(tmp_path)) == {1}
    assert row.tokens + row.left_out < reply.completion_tokens


def test_a_summary_in_place_of_a_thought_is_set_aside(tmp_path: Path) -> None:
    """The host counts what was generated; what it shows is shorter."""
    tokenizer = make_tokenizer()
    stream = STREAMS["as the template writes"]
    reply = make_reply(thought="weights.", text="Yes.", completion_tokens=60)
    (row,) = score(tmp_path, tokenizer, reply, stream).rows

    assert row.text == {}
    assert row.unjudged is not None
    assert "reasoning hidden perhaps: 60 tokens counted" in row.unjudged


@pytest.mark.parametrize("counted", [None, 90])
@pytest.mark.parametrize("inside", [True, False])
def test_an_answer_without_the_thought_that_is_due_is_set_aside(
    tmp_path: Path, counted: int | None, inside: bool
) -> None:
    """It follows tokens that nobody can read: scored without them, an honest host would differ."""
    tokenizer = make_tokenizer(inside=inside)
    reply = make_reply(text="Yes. the weights say so.", completion_tokens=counted)
    (row,) = score(tmp_path, tokenizer, reply, STREAMS["otherwise"]).rows

    assert row.unjudged is not None
    assert "not testable by text: reasoning hidden" in row.unjudged


def test_where_the_model_would_think_an_answer_without_a_thought_is_set_aside(
    tmp_path: Path,
) -> None:
    """Also where the host counts the answer alone."""
    tokenizer = make_tokenizer(inside=False)
    text = "Yes. the weights say so."
    counted = len(tokenizer.encode(text)) + 1
    reply = make_reply(text=text, completion_tokens=counted)
    (row,) = score(tmp_path, tokenizer, reply, STREAMS["otherwise"]).rows

    assert row.unjudged is not None
    assert "would have begun to think" in row.unjudged


def test_with_thinking_off_an_answer_is_judged_where_the_count_agrees(tmp_path: Path) -> None:
    """And set aside where it says that the switch is not heeded."""
    tokenizer = make_tokenizer()
    probe = replace(PROBE, settings=(("enable_thinking", False),))
    (made,) = ThinkingEngine(tokenizer).generate(
        [
            GenerateRequest(
                prompt_ids=tokenizer.encode_prompt(tokenizer.render_text(prompt_of(probe))),
                max_tokens=99,
            )
        ]
    )
    text = tokenizer.decode(made.token_ids)
    honest = make_reply(text=text, completion_tokens=len(made.token_ids))
    thinking = replace(honest, completion_tokens=50)
    (judged,) = score(tmp_path / "a", tokenizer, honest, "", probe=probe).rows
    (aside,) = score(tmp_path / "b", tokenizer, thinking, "", probe=probe).rows

    assert judged.unjudged is None
    assert set(ranks(tmp_path / "a")) == {1}
    assert aside.unjudged is not None


def test_a_thought_that_the_card_knows_nothing_of_is_set_aside(tmp_path: Path) -> None:
    """How it was written is not guessed."""
    tokenizer = make_tokenizer()
    stream = STREAMS["as the template writes"]
    reply, _ = served(tokenizer, stream, "as it is")
    (row,) = score(tmp_path, tokenizer, reply, stream, thinking=None).rows

    assert row.unjudged is not None
    assert "the card does not say how thoughts are written" in row.unjudged


@pytest.mark.parametrize(
    ("inside", "settings", "begins", "opened"),
    [
        (True, (), "inside", ""),
        (False, (), "before", "\n"),
        (True, (("enable_thinking", False),), "behind", "\n"),
    ],
)
def test_how_thoughts_are_written_is_read_off_the_template(
    inside: bool, settings: Any, begins: str, opened: str
) -> None:
    """What the prompt holds already is not written again."""
    tokenizer = make_tokenizer(inside=inside)
    found = spelling_of(THINKING, replace(PROBE, settings=settings), tokenizer)

    assert (found.begins, found.opened, found.closing, found.closed) == (
        begins, opened, "\n", "\n\n",
    )  # fmt: skip


@pytest.mark.parametrize("with_tags", [True, False])
def test_tokens_that_a_host_names_are_taken_where_the_tags_are_among_them(
    tmp_path: Path, with_tags: bool
) -> None:
    """Some leave control tokens out, and then the tokens are not the stream."""
    tokenizer = make_tokenizer()
    stream = STREAMS["as the template writes"]
    reply, _ = served(tokenizer, stream, "as it is")
    ids = [
        t for t in tokenizer.encode_prompt(stream) if with_tags or t not in tokenizer.special_ids
    ]
    rows = tuple(
        ReportedToken(
            chosen=Candidate(token="", bytes=None, logprob=-0.5, token_id=token_id), top=()
        )
        for token_id in ids
    )
    (row,) = score(tmp_path, tokenizer, replace(reply, logprobs=rows), stream).rows
    (scored,) = read_scores(tmp_path)

    assert scored.aligned.by == ("bytes" if with_tags else "text")
    assert (row.left_out == 0) is with_tags
    assert set(ranks(tmp_path)) == {1}


# -- level and power ---------------------------------------------------------------------------

HONEST, ROUNDED = "fp8-channel", "int4-sym-g64"


def audit_of(
    run: Path, parser: str, weights: str, *, inside: bool, count: int,
    parsed: Callable[[str], tuple[str, str]] | None = None,
) -> tuple[int, float]:  # fmt: skip
    """How many replies are judged, and the evidence, where a parser shows what a host thinks."""
    tokenizer = make_tokenizer(inside=inside)
    noise = {HONEST: 0.05, ROUNDED: 1.5}
    served, reference = (ThinkingEngine(tokenizer, margin=3.5, noise=noise) for _ in range(2))
    served.load_variant(weights)
    probes = [
        replace(PROBE, id=f"p{n}", messages=(Message(role="user", content=f"{parser} {n}"),))
        for n in range(count)
    ]
    ids = [tokenizer.render(probe.messages) for probe in probes]
    made = served.generate([GenerateRequest(prompt_ids=one, max_tokens=40) for one in ids])
    outcomes: dict[str, Outcome] = {}
    for probe, one in zip(probes, made, strict=True):
        text = tokenizer.decode_prompt([t for t in one.token_ids if t not in (EOS, TURN)])
        thought, answer = parsed(text) if parsed else parse(text, parser)
        outcomes[probe.id] = make_reply(
            probe_id=probe.id,
            thought=thought or None,
            text=answer,
            finish_reason=one.finish_reason,
            completion_tokens=len(one.token_ids),
        )
    run.mkdir(exist_ok=True)
    ledger = score_replies(
        run, probes, outcomes, engine=reference, tokenizer=tokenizer, thinking=THINKING
    )
    case = case_of(make_plan(top_logprobs=0), ledger)
    return len(case.text), combine(case).log_e


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("inside", [True, False])
def test_honest_thoughts_keep_the_level(tmp_path: Path, parser: str, inside: bool) -> None:
    """Under the null, honest noise and any parser, 60 replies bring no evidence of any weight.

    The e-value exceeds 20 in at most one of twenty such audits; here all end far below.
    """
    judged, log_e = audit_of(tmp_path, parser, HONEST, inside=inside, count=60)

    assert judged >= 50
    assert log_e < math.log(20)


@pytest.mark.parametrize("parser", PARSERS)
def test_rounded_weights_are_found_through_every_parser(tmp_path: Path, parser: str) -> None:
    """A dozen replies suffice, though answers behind doubtful seams are left out."""
    _, log_e = audit_of(tmp_path, parser, ROUNDED, inside=True, count=12)

    assert log_e >= math.log(1000)


# -- the parsers that vLLM ships ---------------------------------------------------------------


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """vLLM's own, by name, with a tokenizer that knows what they look for."""
    manager = pytest.importorskip("vllm.reasoning").ReasoningParserManager
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("tags")
    save_tokenizer(directory)
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    known = (
        "<think>", "</think>", "<tool_call>", "</tool_call>", "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
        "<|tool_call_argument_begin|>", "<minimax:tool_call>", "</minimax:tool_call>",
        "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<response>", "</response>",
        "<0x0A>",
    )  # fmt: skip
    backend.add_tokens([AddedToken(name, special=False) for name in known])
    backend.save(str(directory / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return lambda name: manager.get_reasoning_parser(name)(tokenizer)


class _Request:
    """What the parsers ask of a request."""

    include_reasoning = True
    tools = None
    tool_choice = None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "qwen3", "deepseek_r1", "minimax_m2", "minimax_m2_append_think", "glm45", "kimi_k2",
        "ernie45", "nemotron_v3", "step3", "mimo",
    ],
)  # fmt: skip
def test_parsers_that_vllm_ships_harm_no_honest_host(
    tmp_path: Path, parsers: Callable[[str], Any], name: str
) -> None:
    """Each takes replies apart in its own way; honest ones keep the level, rounded ones do not."""

    def parsed(text: str) -> tuple[str, str]:
        thought, answer = parsers(name).extract_reasoning(text, _Request())
        return thought or "", answer or ""

    judged, honest = audit_of(tmp_path / "a", name, HONEST, inside=True, count=60, parsed=parsed)
    _, rounded = audit_of(tmp_path / "b", name, ROUNDED, inside=True, count=20, parsed=parsed)

    assert judged >= 50
    assert honest < math.log(20)
    assert rounded >= math.log(1000)
