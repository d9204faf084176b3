"""The transformers engine on checkpoints that are no plain matrices: experts, fp8, 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import EOS_ID, save_shape
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from verifier.errors import ConfigError
from verifier.lab.restated import restate_in_fp8, restate_in_int4
from verifier.records import REFERENCE, GenerateRequest, ScoreRequest
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.layout import Layout
from verifier.reference.variants import find_variant, is_linear

#: As the small models lie.
LAYOUT = Layout(layers=3, hidden=192)

REQUESTS = [ScoreRequest(prompt_ids=(82, 81, 92), reply_ids=(70, 71, 72, 73))]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_shape(
        tmp_path_factory.mktemp("mixture"), "mixtral", hidden_size=192, intermediate_size=64,
        num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1, head_dim=64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fp8(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    restate_in_fp8(tiny, directory := tmp_path_factory.mktemp("fp8"))
    return directory


@pytest.fixture(scope="module")
def int4(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    restate_in_int4(tiny, directory := tmp_path_factory.mktemp("int4"))
    return directory


def load(directory: Path, **options: Any) -> TransformersEngine:
    return TransformersEngine(directory, eos_ids=(EOS_ID,), **options)


def logprobs(engine: TransformersEngine) -> np.ndarray:
    return np.array(engine.score(REQUESTS)[0].logprobs)


def parameters(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine._model.named_parameters()}


# -- experts -----------------------------------------------------------------------------------


def test_a_variant_rounds_every_expert_by_itself_and_is_taken_back_whole(mixture: Path) -> None:
    """Experts lie one by one in the checkpoint, and fused in the loaded model."""
    engine = load(mixture)
    before, scores = parameters(engine), logprobs(engine)
    assert not any(".experts.0." in name for name in before)  # or there is nothing to test
    engine.load_variant("int4-asym-g64")
    after, moved = parameters(engine), logprobs(engine)
    engine.load_variant("drop-1")
    engine.load_variant(REFERENCE)

    transform = find_variant("int4-asym-g64", layers=3).build(LAYOUT)
    stored = load_file(mixture / "model.safetensors")
    stem = "model.layers.1.block_sparse_moe.experts.2"
    for part, place in (("w1", slice(None, 64)), ("w3", slice(64, None))):
        name = f"{stem}.{part}.weight"
        fused = after["model.layers.1.mlp.experts.gate_up_proj"][2, place]
        assert torch.equal(fused, transform(name, stored[name]).float())
    router = "model.layers.1.mlp.gate.weight"
    assert torch.equal(after[router], before[router])  # stays as published
    assert np.abs(moved - scores).mean() > 0.01
    assert all(torch.equal(before[n], p) for n, p in parameters(engine).items())
    assert np.array_equal(logprobs(engine), scores)


def test_experts_in_half_precision_round_every_product(mixture: Path) -> None:
    """As a GPU does: near what the CPU's own bfloat16 makes, and other than float32."""
    plain = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.bfloat16).eval()
    plain.set_experts_implementation("eager")
    ids = torch.tensor([[*REQUESTS[0].prompt_ids, *REQUESTS[0].reply_ids]])
    with torch.inference_mode():
        logits = plain(ids).logits[0, 2:-1].float().log_softmax(-1)
    expected = logits[range(4), REQUESTS[0].reply_ids].numpy()
    found, exact = logprobs(load(mixture, dtype="bfloat16")), logprobs(load(mixture))

    assert np.abs(found - expected).max() < 0.25  # rounding in another order moves a router, too
    assert 0 < np.abs(found - exact).mean() < 0.25
    made = load(mixture, dtype="bfloat16").generate(
        [GenerateRequest(prompt_ids=(82, 81, 92), max_tokens=4)]
    )
    assert len(made[0].token_ids) == 4


def test_biases_are_added_before_a_product_is_rounded(tmp_path: Path) -> None:
    """Qwen2's attention has some, vectors in half precision beside matrices in float32."""
    directory = save_shape(
        tmp_path, "llama", hidden_size=192, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=1, attention_bias=True,
    )  # fmt: skip
    found, exact = logprobs(load(directory, dtype="bfloat16")), logprobs(load(directory))

    assert any(name.endswith("q_proj.bias") for name in parameters(load(directory)))
    assert 0 < np.abs(found - exact).mean() < 0.25


# -- weights that stand for others -------------------------------------------------------------


def test_fp8_blocks_are_scored_as_the_numbers_that_they_stand_for(tiny: Path, fp8: Path) -> None:
    """Exactly fp8 times scale in float32, with the smaller blocks at the edges (192 = 128 + 64)."""
    stored = load_file(fp8 / "model.safetensors")
    plain = load_file(tiny / "model.safetensors")
    engine = load(fp8)
    found = parameters(engine)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert stored[name].dtype == torch.float8_e4m3fn
    scale = stored["model.layers.0.self_attn.q_proj.weight_scale_inv"]
    assert scale.shape == (2, 2)
    by_hand = stored[name].float()
    for row in range(2):
        for column in range(2):
            at = slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
            by_hand[at] *= scale[row, column]
    assert torch.equal(found[name], by_hand)
    error = (by_hand - plain[name]).abs().max() / plain[name].abs().max()
    assert 0 < error < 2**-4  # e4m3 keeps three bits behind the leading one
    assert torch.equal(found["model.embed_tokens.weight"], plain["model.embed_tokens.weight"])
    assert np.abs(logprobs(engine) - logprobs(load(tiny))).mean() > 1e-3


def test_packed_integers_are_scored_as_the_numbers_that_they_stand_for(
    tiny: Path, int4: Path
) -> None:
    """Sixteen values a group, none rounded on the way to float32."""
    found = parameters(load(int4))
    scale = load_file(int4 / "model.safetensors")["model.layers.0.mlp.down_proj.weight_scale"]
    steps = found["model.layers.0.mlp.down_proj.weight"].reshape(192, -1, 32)
    steps = steps / scale.float()[:, :, None]
    assert torch.equal(steps, steps.round())
    assert (int(steps.min()), int(steps.max())) == (-8, 7)
    plain = load_file(tiny / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert ((steps - (plain.reshape(192, -1, 32) / scale.float()[:, :, None])).abs() < 0.76).all()


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_variants_of_quantized_weights_start_from_what_they_stand_for(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """And the published weights come back bit for bit."""
    engine = load(request.getfixturevalue(kind))
    before, scores = parameters(engine), logprobs(engine)
    engine.load_variant("int3-g64")
    after, moved = parameters(engine), logprobs(engine)
    engine.load_variant(REFERENCE)

    transform = find_variant("int3-g64", layers=3).build(LAYOUT)
    for name in before:
        expected = transform(name, before[name]) if is_linear(name) else before[name]
        assert torch.equal(after[name], expected), name
    assert np.abs(moved - scores).mean() > 0.01
    assert all(torch.equal(before[n], p) for n, p in parameters(engine).items())
    assert np.array_equal(logprobs(engine), scores)


def test_a_weight_that_lacks_its_scale_is_refused(fp8: Path, tmp_path: Path) -> None:
    """In one line that names it, rather than taken for its bare fp8 numbers."""
    for path in fp8.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(fp8 / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_scale_inv"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj.*is not in the checkpoint"):
        load(tmp_path)


def test_parts_that_say_nothing_of_values_are_passed_over(int4: Path, tmp_path: Path) -> None:
    """Zero points beside symmetric integers, and scales of activations, wherever they stand."""
    for path in int4.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(int4 / "model.safetensors")
    stem = "model.layers.1.mlp.up_proj"
    tensors[f"{stem}.weight_zero_point"] = torch.zeros(1, dtype=torch.int32)
    tensors[f"{stem}.input_scale"] = torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})

    assert np.array_equal(logprobs(load(tmp_path)), logprobs(load(int4)))


def test_a_format_that_is_not_known_is_refused(int4: Path, tmp_path: Path) -> None:
    """By its name, with what to do."""
    for path in int4.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"pack-quantized"', '"marlin-24"'))
    with pytest.raises(ConfigError, match=r"has the formats marlin-24.*use --engine vllm"):
        load(tmp_path)


def test_a_random_mixture_is_one(mixture: Path) -> None:
    """Two of four experts a token, and which depends on the token."""
    model = AutoModelForCausalLM.from_pretrained(mixture).eval()
    with torch.inference_mode():
        routed = model(torch.arange(70, 90)[None], output_router_logits=True).router_logits
    chosen = {tuple(sorted(row.topk(2).indices.tolist())) for row in routed[0]}
    assert len(chosen) > 1
