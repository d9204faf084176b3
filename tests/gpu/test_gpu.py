"""What only a GPU can show: parity, variants in bfloat16 and fp8, throughput.

One command, under ten minutes on one H100:  pytest tests/gpu -m gpu -s
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import furthest, save_transformed, score_replies
from models import EOS_ID, save_model, save_tokenizer
from safetensors.torch import load_file, save_file

from verifier.records import REFERENCE, ScoreRequest
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.engines.vllm import VllmEngine
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.variants import is_linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

#: Mean absolute difference of log-probabilities (nats) between two engines in bfloat16; bfloat16
#: against float32 measured 0.05 on a model of this size.
CLOSE_IN_BF16 = 0.15

FEW = {"max_model_len": 2048, "gpu_memory_utilization": 0.3}
RANDOM_REPLIES = [
    ScoreRequest(
        prompt_ids=tuple(range(5 + n, 13 + n)),
        reply_ids=tuple(range(60 + n, 72 + n)),
        candidates=tuple((3, 100 + t, 255) for t in range(12)),
    )
    for n in range(4)
]


@pytest.fixture(scope="module")
def tokenizer(embedded: Path) -> Tokenizer:
    return Tokenizer(embedded)


@pytest.fixture(scope="module")
def engine(embedded: Path, tokenizer: Tokenizer) -> Iterator[VllmEngine]:
    made = VllmEngine(embedded, eos_ids=(tokenizer.eos_id,), dtype="bfloat16", engine_args=FEW)
    yield made
    made.close()


def mean_apart(one: Any, other: Any, field: str = "logprobs") -> float:
    pairs = zip(one, other, strict=True)
    apart = [np.abs(np.subtract(getattr(a, field), getattr(b, field))).ravel() for a, b in pairs]
    return float(np.concatenate(apart).mean())


def test_scores_agree_with_the_oracle(
    engine: VllmEngine, embedded: Path, tokenizer: Tokenizer
) -> None:
    """Candidates too, which vLLM's second model runner gives by itself."""
    oracle = TransformersEngine(embedded, eos_ids=(), dtype="bfloat16")
    one, other = score_replies(engine, tokenizer), score_replies(oracle, tokenizer)

    assert mean_apart(one, other) < CLOSE_IN_BF16
    one, other = engine.score(RANDOM_REPLIES), oracle.score(RANDOM_REPLIES)
    assert mean_apart(one, other, "candidate_logprobs") < CLOSE_IN_BF16


@pytest.mark.parametrize("name", ["int4-asym-g64", "fp8-channel", "drop-1"])
def test_variants_in_bfloat16_are_those_of_a_rounded_checkpoint(
    engine: VllmEngine, embedded: Path, tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    """And the published weights come back."""
    save_transformed(embedded, name, tmp_path / "rounded")
    before = score_replies(engine, tokenizer)
    engine.load_variant(name)
    found = score_replies(engine, tokenizer)
    engine.load_variant(REFERENCE)
    oracle = TransformersEngine(tmp_path / "rounded", eos_ids=(), dtype="bfloat16")
    expected = score_replies(oracle, tokenizer)

    assert mean_apart(found, expected) < mean_apart(found, before) / 2
    assert furthest(score_replies(engine, tokenizer), before) < 0.03


@pytest.fixture(scope="module")
def published_in_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose linear layers are published in fp8, a scale for each 128 x 128."""
    directory = tmp_path_factory.mktemp("fp8") / "weights"
    save_model(
        directory, hidden_size=512, intermediate_size=1024, num_attention_heads=8,
        num_key_value_heads=2,
    )  # fmt: skip
    save_tokenizer(directory)
    (shard,) = directory.glob("*.safetensors")
    saved: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(shard).items():
        if not is_linear(name):
            saved[name] = tensor.to(torch.bfloat16)
            continue
        out, width = tensor.shape
        blocks = tensor.reshape(out // 128, 128, width // 128, 128)
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        elements = (blocks / scale[:, None, :, None]).reshape(out, width)
        saved[name] = elements.to(torch.float8_e4m3fn)
        saved[f"{name}_scale_inv"] = scale
    save_file(saved, shard, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_variants_of_a_checkpoint_published_in_fp8(published_in_fp8: Path, tmp_path: Path) -> None:
    """Rounded from its real values: as a checkpoint that was rounded on disk; and back."""
    save_transformed(published_in_fp8, "int4-asym-g64", tmp_path / "rounded")
    engine = VllmEngine(published_in_fp8, eos_ids=(EOS_ID,), engine_args=FEW)
    before = engine.score(RANDOM_REPLIES)
    engine.load_variant("int4-asym-g64")
    found = engine.score(RANDOM_REPLIES)
    engine.load_variant(REFERENCE)
    back = engine.score(RANDOM_REPLIES)
    engine.close()
    other = VllmEngine(tmp_path / "rounded", eos_ids=(EOS_ID,), engine_args=FEW)
    expected = other.score(RANDOM_REPLIES)
    other.close()

    assert furthest(back, before) < 0.03
    assert furthest(found, expected) < 0.03
    assert mean_apart(found, before) > 0.1


def test_throughput_is_vllms_own(engine: VllmEngine, tokenizer: Tokenizer) -> None:
    """Printed, not judged here: `verifier bench-engine` measures it."""
    many = [
        ScoreRequest(prompt_ids=tuple(range(10, 138)), reply_ids=tuple(range(200 + n, 264 + n)))
        for n in range(256)
    ]
    engine.score(many[:8])
    started = time.perf_counter()
    found = engine.score(many)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    engine.score_by_itself(many, k=20)
    alone = time.perf_counter() - started
    print(f"\n{256 * 192 / ours:,.0f} tokens/s, {alone / ours:.2f} of vLLM's own")  # noqa: T201

    assert [len(score.logprobs) for score in found] == [64] * 256
