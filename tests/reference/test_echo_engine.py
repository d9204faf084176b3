"""The echo engine: a host that repeats prompts, against the engine it serves; and odd hosts."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from audits import FAULT, QUIET, configure
from fakes_engine import FakeEngine, FakeTokenizer

from verifier.audit import audit
from verifier.errors import ConfigError
from verifier.evidence.ledger import TEXT_SCALES, text_cells
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.records import REFERENCE, GenerateRequest, ScoreRequest
from verifier.reference.engines.echo import MOST_APART, EchoEngine
from verifier.reference.engines.load import load_engine
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.loaded import Reference
from verifier.reference.tokenizer import Tokenizer

TOKENIZER = FakeTokenizer()
PROMPT = TOKENIZER.encode_prompt("<turn>user\nHello<eos><turn>assistant\n")
REPLY = (*TOKENIZER.encode("the quick brown fox"), TOKENIZER.eos_id)
REQUEST = ScoreRequest(prompt_ids=PROMPT, reply_ids=REPLY)


class Model(FakeEngine):
    """As a real one it sees one text, wherever a prompt ends in it."""

    def logprobs(self, prompt_ids: tuple[int, ...], reply_ids: Sequence[int]) -> np.ndarray:
        rng = np.random.default_rng([*prompt_ids, *reply_ids])
        logits = 2 * rng.normal(size=TOKENIZER.vocabulary_size)
        return logits - np.logaddexp.reduce(logits)


@contextmanager
def served(engine: Any = None, tokenizer: Any = TOKENIZER, **fields: Any) -> Iterator[str]:
    host = Host(engine=engine or Model(), tokenizer=tokenizer, model="m", **fields)
    with running(create_app(host)) as url:
        yield url


@contextmanager
def echoing(url: str, tokenizer: Any = TOKENIZER, **fields: Any) -> Iterator[EchoEngine]:
    engine = EchoEngine(url, tokenizer=tokenizer, **fields)
    try:
        yield engine
    finally:
        engine.close()


def refused(url: str, **fields: Any) -> str:
    with pytest.raises(ConfigError) as found, echoing(url, **fields):
        pass
    assert "\n" not in str(found.value)
    return str(found.value)


# -- scores ------------------------------------------------------------------------------------


def test_scores_by_echo_are_those_of_the_engine_that_is_served() -> None:
    """Log-probabilities, the likeliest tokens, and ranks; candidates are not scored."""
    with served() as url, echoing(url) as engine:
        asked = ScoreRequest(prompt_ids=PROMPT, reply_ids=REPLY, candidates=((1,),) * len(REPLY))
        empty = ScoreRequest(prompt_ids=PROMPT, reply_ids=())
        found, nothing = engine.score([asked, empty])
    (expected,) = Model().score([REQUEST])

    assert nothing.logprobs == ()
    assert found.candidate_logprobs is None
    assert found.logprobs == pytest.approx(expected.logprobs)
    for top, whole in zip(found.top_logprobs, expected.top_logprobs, strict=True):
        assert set(np.round(top, 6)) - {-1e4} <= set(np.round(whole, 6))


def test_a_real_models_scores_by_echo_agree_to_rounding(embedded: Path) -> None:
    """All that takes part: of 20 alternatives 19, of 5 four, in their order; and their cells, to
    what the tokens beyond are worth."""
    tokenizer, oracle = Tokenizer(embedded), TransformersEngine(embedded, eos_ids=())
    prompt, reply = tokenizer.encode("Why is the sky blue?"), tokenizer.encode(" It is the air.")
    request = ScoreRequest(prompt_ids=prompt, reply_ids=reply)
    (expected,) = oracle.score([request])
    for most in (20, 5):
        with (
            served(oracle, tokenizer, most_logprobs=most) as url,
            echoing(url, tokenizer) as engine,
        ):
            (found,) = engine.score([request])
            told = engine.versions

        assert told["alternatives"] == str(most)  # where the given one is beside them
        assert told["apart"] == "0"
        assert found.few
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        named = [rank for rank in expected.ranks if rank < most]
        assert [rank for rank in found.ranks if rank < most] == named
        for top, whole in zip(found.top_logprobs, expected.top_logprobs, strict=True):
            assert list(top[: most - 1]) == pytest.approx(list(whole[: most - 1]), abs=1e-4)
        assert found.top_ids == expected.top_ids
        quiet = TEXT_SCALES <= 0.1
        kept = [t for t, rank in enumerate(expected.ranks) if rank < most]
        few, all_of = (np.array(text_cells(score, kept)) for score in (found, expected))
        assert few[quiet] == pytest.approx(all_of[quiet], abs=0.05)


def test_a_token_beyond_those_named_is_not_judged() -> None:
    """It has no rank among them, and no scale gains by it."""
    odd = ScoreRequest(prompt_ids=PROMPT, reply_ids=TOKENIZER.encode("zzzz"))
    with served(most_logprobs=5) as url, echoing(url) as engine:
        (found,) = engine.score([odd])

    beyond = [t for t, rank in enumerate(found.ranks) if rank > len(found.top_logprobs[t])]
    assert beyond
    assert text_cells(found, beyond) == (0.0,) * len(TEXT_SCALES)


def test_the_engine_says_what_it_cannot() -> None:
    """Nothing is approximated."""
    with served() as url, echoing(url) as engine:
        assert engine.can_load("reference")
        assert not engine.can_load("int4-asym-g64")
        assert not engine.scores_samplers
        engine.load_variant("reference")
        with pytest.raises(ConfigError, match="cannot put weights variant 'nf4-g64' into a host"):
            engine.load_variant("nf4-g64")
        with pytest.raises(ConfigError, match="scores and does not generate"):
            engine.generate([GenerateRequest(prompt_ids=(1,), max_tokens=2)])
        with pytest.raises(ConfigError, match="--engine transformers"):
            engine.score_samplers((), ())


def test_the_echo_engine_is_loaded_by_its_name() -> None:
    """With a model of several, which need not be listed, and a URL."""
    with served(api_key="k" * 12) as url:
        engine = load_engine(
            "echo", Path(), TOKENIZER, url=url, api_key="k" * 12, model="m"
        )  # fmt: skip
        assert isinstance(engine, EchoEngine)
        assert engine.versions["model"] == "m"
        engine.close()
    with pytest.raises(ConfigError, match=r"reference\.url: missing"):
        load_engine("echo", Path(), TOKENIZER)


# -- audits ------------------------------------------------------------------------------------


class Speaker(FakeEngine):
    """A model of one text that prefers one word at each place; a build is far noisier."""

    def logprobs(self, prompt_ids: tuple[int, ...], reply_ids: Sequence[int]) -> np.ndarray:
        ids, size = (*prompt_ids, *reply_ids), TOKENIZER.vocabulary_size
        rng = np.random.default_rng(list(ids[-6:]))
        logits = rng.normal(size=size)
        logits[rng.integers(258, size)] += 4.0
        if self.loaded != REFERENCE:
            logits += 1.5 * np.random.default_rng([9, *ids[-6:]]).normal(size=size)
        return logits - np.logaddexp.reduce(logits)


@pytest.mark.parametrize(
    ("weights", "decision"), [(REFERENCE, "consistent"), (FAULT, "inconsistent")]
)
def test_an_audit_with_five_alternatives_of_a_trusted_host_ends_rightly(
    card: Path, tmp_path: Path, weights: str, decision: str
) -> None:
    """Text alone of the target; whose word the reference is stands in the signature."""
    target = Speaker()
    target.load_variant(weights)
    with (
        served(target, window_s=0.001) as url,
        served(Speaker(), most_logprobs=5, window_s=0.001) as trusted,
        echoing(trusted) as engine,
    ):
        config = configure(
            url, card, tmp_path / "run", top_logprobs=0, endpoint={"model": "m"}
        )  # fmt: skip
        reference = Reference(engine=engine, tokenizer=TOKENIZER)
        report = audit(config, api_key=None, load_reference=lambda: reference, show=QUIET)

    assert report.decision == decision
    assert report.signature["engine"]["engine"] == "echo"
    assert report.signature["engine"]["url"] == trusted


# -- hosts that cannot -------------------------------------------------------------------------

Change = Callable[[dict[str, Any], int], Any]


@contextmanager
def changed(change: Change, **fields: Any) -> Iterator[str]:
    """The honest host with its completions changed, given how many came before."""
    with served(**fields) as inner:
        handler = type("Handler", (_Between,), {"inner": inner, "change": staticmethod(change),
                                                "count": [0]})  # fmt: skip
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Between(BaseHTTPRequestHandler):
    inner: str
    change: Change
    count: list[int]
    client = httpx.Client()

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        response = self.client.post(self.inner + "/completions", json=asked)
        self.count[0] += 1
        if response.status_code != 200:
            self._answer(response.status_code, response.json())
            return
        made = self.change(response.json(), self.count[0])
        if isinstance(made, tuple):
            self._answer(*made)
        else:
            self._answer(200, made)

    def log_message(self, *_: object) -> None:
        """Tests are silent."""


def lists(told: dict[str, Any]) -> dict[str, Any]:
    return told["choices"][0]["logprobs"]


def no_echo(told: dict[str, Any], _count: int) -> Any:
    """As llama.cpp does: the prompt's are ignored."""
    whole = lists(told)
    told["choices"][0]["logprobs"] = {name: values[-1:] for name, values in whole.items()}
    return told


def null_scores(told: dict[str, Any], _count: int) -> Any:
    whole = lists(told)
    n = len(whole["tokens"])
    whole["token_logprobs"] = [None] * n
    whole["top_logprobs"] = [None] * n
    return told


def only_text(told: dict[str, Any], _count: int) -> Any:
    return 422, {"error": {"message": "prompt: expected a string"}}


def no_alternatives(told: dict[str, Any], _count: int) -> Any:
    """As Together documents it: the prompt beside the choices, with log-probabilities alone."""
    whole = lists(told)
    part = {name: whole[name][:-1] for name in ("tokens", "token_logprobs")}
    return told | {"prompt": [{"text": "x", "logprobs": part}]}


def one_alternative(told: dict[str, Any], _count: int) -> Any:
    whole = lists(told)
    whole["top_logprobs"] = [
        None if at is None else dict(sorted(at.items(), key=lambda pair: -pair[1])[:1])
        for at in whole["top_logprobs"]
    ]
    return told


def one_decimal(told: dict[str, Any], _count: int) -> Any:
    whole = lists(told)
    whole["token_logprobs"] = [v if v is None else round(v, 1) for v in whole["token_logprobs"]]
    whole["top_logprobs"] = [
        None if at is None else {t: round(v, 1) for t, v in at.items()}
        for at in whole["top_logprobs"]
    ]
    return told


def moody(told: dict[str, Any], count: int) -> Any:
    whole, off = lists(told), 0.5 * (count % 2)
    whole["token_logprobs"] = [v if v is None else v - off for v in whole["token_logprobs"]]
    whole["top_logprobs"] = [
        None if at is None else {t: v - off for t, v in at.items()} for at in whole["top_logprobs"]
    ]
    return told


def other_tokens(told: dict[str, Any], _count: int) -> Any:
    whole = lists(told)
    whole["tokens"] = [token.upper() for token in whole["tokens"]]
    return told


def other_ids(told: dict[str, Any], _count: int) -> Any:
    lists(told)["token_ids"] = [7] * len(lists(told)["tokens"])
    return told


def one_more(told: dict[str, Any], _count: int) -> Any:
    """A token that begins a text, put before what was sent."""
    for name, values in lists(told).items():
        values.insert(0, "<s>" if name == "tokens" else None if "log" in name else 0)
    return told


def uneven(told: dict[str, Any], _count: int) -> Any:
    lists(told)["token_logprobs"].pop()
    return told


def positive(told: dict[str, Any], _count: int) -> Any:
    whole = lists(told)
    whole["token_logprobs"] = [v if v is None else -v for v in whole["token_logprobs"]]
    return told


def broken(_told: dict[str, Any], _count: int) -> Any:
    return 401, {"error": {"message": "no such key"}}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (no_echo, "gives no scores for a prompt"),
        (null_scores, "gives no scores for a prompt"),
        (only_text, "refuses token ids to complete with echo and logprobs"),
        (no_alternatives, "too few alternatives: 0 at each position"),
        (one_alternative, "too few alternatives: 1 at each position"),
        (one_decimal, "rounded to 0.1, more than honest hosts differ by"),
        (moody, f"log-probabilities of one text lie 0.5 nats apart (at most {MOST_APART:g})"),
        (other_tokens, "another tokenizer, or shown without white space"),
        (other_ids, "names other token ids than were sent"),
        (one_more, "tokens sent, got"),
        (uneven, "expected as many of each as there are tokens"),
        (positive, "expected log-probabilities"),
        (broken, "HTTP 401"),
    ],
)  # fmt: skip
def test_a_host_that_cannot_be_a_reference_is_told_so_in_one_line(
    change: Change, complaint: str
) -> None:
    """Before anything is asked of a target."""
    with changed(change) as url:
        line = refused(url)

    assert complaint in line
    assert "127.0.0.1" in line


def beside(told: dict[str, Any]) -> None:
    """The given token beside the likeliest five, as OpenAI has it."""


def in_place(told: dict[str, Any]) -> None:
    for token, at in zip(lists(told)["tokens"], lists(told)["top_logprobs"], strict=True):
        if at is not None and len(at) > 5:
            del at[min((t for t in at if t != token), key=at.__getitem__)]


def left_out(told: dict[str, Any]) -> None:
    for at in lists(told)["top_logprobs"]:
        if at is not None and len(at) > 5:
            del at[min(at, key=at.__getitem__)]


@pytest.mark.parametrize("names", [beside, in_place, left_out])
def test_what_a_token_is_judged_among_does_not_hang_on_which_it_is(
    names: Callable[[dict[str, Any]], None],
) -> None:
    """However hosts name the given token: whatever follows one prompt, those that take part are the
    same, so that no scale gains on the true one over all tokens there are."""

    def change(told: dict[str, Any], _count: int) -> Any:
        names(told)
        return told

    few, words = PROMPT[:2], range(TOKENIZER.vocabulary_size)
    with changed(change, most_logprobs=5, window_s=0.0) as url, echoing(url) as engine:
        asked = [ScoreRequest(prompt_ids=few, reply_ids=(i,)) for i in words]
        scores = engine.score(asked)
    inside = [s for s in scores if s.ranks[0] <= len(s.top_logprobs[0])]
    cells = np.array([text_cells(s, [0]) for s in scores])
    truth = np.exp(Model().logprobs(few, ())[:, None] / TEXT_SCALES)
    means = np.einsum(
        "vs,vas->as", truth / truth.sum(axis=0), np.exp(cells[:, :, None] - cells[:, None, :])
    )

    assert len({tuple(v for v in s.top_logprobs[0] if v > -1e4) for s in inside}) == 1
    assert len(inside) >= 2
    assert means.max() <= 1 + 2e-3  # hosts of pure noise, and cells with a share of scale 1


def test_the_prompt_beside_the_choices_is_read_too() -> None:
    """Together's place for it, where alternatives come with it."""

    def apart(told: dict[str, Any], _count: int) -> Any:
        whole = copy.deepcopy(lists(told))
        told["choices"][0]["logprobs"] = {name: values[-1:] for name, values in whole.items()}
        part = {name: values[:-1] for name, values in whole.items()}
        return told | {"prompt": [{"text": "x", "logprobs": part}]}

    with changed(apart) as url, echoing(url) as engine:
        (found,) = engine.score([REQUEST])
    (expected,) = Model().score([REQUEST])

    assert found.logprobs == pytest.approx(expected.logprobs)


def test_a_host_without_time_is_asked_again() -> None:
    """As it says, or after a while."""

    def busy(told: dict[str, Any], count: int) -> Any:
        return (429, {"error": "slow down"}, {"retry-after": "0"}) if count % 2 else told

    with changed(busy) as url, echoing(url) as engine:
        (found,) = engine.score([REQUEST])

    assert len(found.logprobs) == len(REPLY)


def test_several_models_need_a_name() -> None:
    """With the key of the run file that takes it."""
    several = {"data": [{"id": "m"}, {"id": "n"}]}
    with pytest.MonkeyPatch.context() as patched, changed(lambda told, _count: told) as url:
        patched.setattr(_Between, "do_GET", lambda self: self._answer(200, several))

        assert "expected one model, got m, n; name the one to ask in reference.url_model" in (
            refused(url)
        )
        with echoing(url, model="m") as engine:
            assert engine.versions["model"] == "m"
        assert "HTTP 404" in refused(url, model="n")
