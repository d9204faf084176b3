"""A mixture of experts made of a dense model, on a random one of three layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import EOS_ID
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from verifier.lab.derived_models import load_model
from verifier.lab.made import experts
from verifier.lab.made.experts import Deal, Shape, deal_neurons, distil, place_neurons, split
from verifier.lab.made.replies import Row
from verifier.lab.made.training import pad
from verifier.lab.restated import restate_in_fp8, restate_in_int4
from verifier.progress import Show
from verifier.records import REFERENCE, ScoreRequest
from verifier.reference.engines.transformers import TransformersEngine

#: Of 384 neurons: half of them shared, the others twice among eight experts.
SHAPE = Shape(dense_layers=1, shared=192, experts=8, width=48, top_k=2)

REQUESTS = [ScoreRequest(prompt_ids=(82, 81, 92), reply_ids=(70, 71, 72, 73))]


def rows_of(count: int, *, seed: int) -> list[Row]:
    """Rows of random bytes after one beginning."""
    rng = np.random.default_rng(seed)
    return [
        Row(prompt=(1, 9, *map(int, rng.integers(3, 250, 9))),
            reply=tuple(map(int, rng.integers(3, 250, 12))))
        for _ in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def dense(tiny: Path) -> Any:
    return load_model(tiny)


@pytest.fixture(scope="module")
def mixture(dense: Any) -> Any:
    return split(dense, rows_of(16, seed=1), SHAPE, seed=0)


@pytest.fixture(scope="module")
def published(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture as the recipe saves it, hardly healed."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experts, "speak", lambda *_given, **_named: rows_of(16, seed=1))
        show = Show(tell=lambda _line: None, step=lambda *_given: None)
        experts.make_experts(
            tiny,
            folder / "model",
            work=folder,
            replies=folder / "said.jsonl",
            steps=2,
            seed=0,
            show=show,
            shape=SHAPE,
        )
    return folder / "model"


def test_every_neuron_is_shared_or_dealt_equally_often() -> None:
    """The strongest are shared; the rest lie in experts of one size, none twice in one."""
    strength = torch.rand(50, 384, generator=torch.Generator().manual_seed(0))
    strength[:, 7] += 9
    deal = deal_neurons(strength, SHAPE, rng=torch.Generator().manual_seed(0))
    counts = torch.bincount(deal.routed.flatten(), minlength=384)

    assert 7 in deal.shared
    assert (deal.copies, deal.routed.shape) == (2, (8, 48))
    assert set(counts[deal.shared].tolist()) == {0}
    assert int((counts == 2).sum()) == 192
    assert all(len(set(expert.tolist())) == 48 for expert in deal.routed)


def test_experts_that_do_not_hold_the_neurons_evenly_are_refused() -> None:
    """Else some neuron would count more often than another."""
    strength = torch.rand(50, 384)

    with pytest.raises(ValueError, match="8 experts of 40 do not hold 192 evenly"):
        deal_neurons(
            strength, Shape(shared=192, experts=8, width=40), rng=torch.Generator().manual_seed(0)
        )


def test_with_all_experts_active_the_function_is_the_dense_one(dense: Any) -> None:
    """Placing neurons loses nothing; only leaving some out does."""
    every = Shape(dense_layers=1, shared=192, experts=8, width=48, top_k=8)
    layer = dense.model.layers[1].mlp
    rest = torch.arange(192, 384)
    deal = Deal(shared=torch.arange(192), routed=rest.view(4, 48).repeat(2, 1), copies=2)
    x = torch.randn(20, 192, generator=torch.Generator().manual_seed(0))
    outputs = {}
    for shape in (every, SHAPE):
        block = experts._empty(dense.config, shape).model.layers[1].mlp
        place_neurons(block, layer, deal, shape)
        with torch.no_grad():
            outputs[shape] = block(x[None])[0]
    with torch.no_grad():
        wanted = layer(x)

    assert torch.allclose(outputs[every], wanted, atol=1e-5 * float(wanted.abs().max()))
    assert not torch.allclose(outputs[SHAPE], wanted, atol=0.05 * float(wanted.abs().max()))


def test_the_router_is_fitted_to_where_experts_are_active(dense: Any, mixture: Any) -> None:
    """Experts that it chooses hold more of what the dense layer does than others of their size."""
    found = []
    layer = dense.model.layers[1].mlp
    block = mixture.model.layers[1].mlp

    def look(_module: Any, read: tuple[torch.Tensor]) -> None:
        x = read[0].flatten(0, 1)
        gate, up = (block.experts.gate_up_proj[:, :48], block.experts.gate_up_proj[:, 48:])
        active = torch.nn.functional.silu(torch.einsum("nh,ewh->new", x, gate))
        active = active * torch.einsum("nh,ewh->new", x, up)
        strength = active.square().sum(2)  # [N, E]
        _, _, chosen = block.gate(x)
        found.append((strength.gather(1, chosen).mean() / strength.mean(), chosen))

    hook = block.register_forward_pre_hook(look)
    batch = pad(rows_of(8, seed=2))  # other rows than it was fitted on
    with torch.no_grad():
        mixture.model(input_ids=batch.ids)
    hook.remove()
    ratio, chosen = found[0]

    assert layer is not block
    assert ratio > 1.05
    assert len(chosen.unique()) > 2  # not the same for all


def test_the_fit_comes_nearer_than_placing_alone(dense: Any) -> None:
    """On the very rows that it read, in the first layer that is split."""
    x = torch.randn(400, 192, generator=torch.Generator().manual_seed(3))
    layer = dense.model.layers[1].mlp
    block = experts._empty(dense.config, SHAPE).model.layers[1].mlp
    errors = []
    for fit_outputs in (lambda *_given: None, experts._fit_outputs):
        with pytest.MonkeyPatch.context() as patched, torch.no_grad():
            patched.setattr(experts, "_fit_outputs", fit_outputs)
            experts.fit_block(block, layer, x, SHAPE, torch.Generator().manual_seed(0))
            errors.append(float((block(x[None])[0] - layer(x)).square().mean()))

    assert errors[1] < 0.7 * errors[0]


def test_distillation_comes_nearer_and_goes_on_after_a_kill(dense: Any, tmp_path: Path) -> None:
    """To the same weights as without one."""
    rows = rows_of(16, seed=1)

    def heal(folder: Path, *, stop: int | None) -> Any:
        folder.mkdir(exist_ok=True)

        def progress(done: int, _of: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("verifier.lab.made.training.KEPT_EVERY", 2)
            patched.setattr(experts, "_fit_outputs", lambda *_given: None)  # or nothing is to heal
            student = split(dense, rows, SHAPE, seed=0)
            losses = distil(
                student, dense, rows, steps=8, seed=0, kept=folder / "kept.pt", progress=progress
            )
        return student, losses

    whole, losses = heal(tmp_path / "whole", stop=None)
    with pytest.raises(KeyboardInterrupt):
        heal(tmp_path / "killed", stop=5)
    again, same = heal(tmp_path / "killed", stop=None)

    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    assert same == losses
    for name, one in whole.state_dict().items():
        assert torch.equal(one, again.state_dict()[name])


def test_the_mixture_loads_everywhere_and_variants_reach_its_experts(published: Path) -> None:
    """By transformers and by the engine; the router stays as published."""
    config = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32).config
    engine = TransformersEngine(published, eos_ids=(EOS_ID,))
    before = {n: p.detach().clone() for n, p in engine._model.named_parameters()}
    plain = np.array(engine.score(REQUESTS)[0].logprobs)
    engine.load_variant("int4-asym-g48")
    after = {n: p.detach().clone() for n, p in engine._model.named_parameters()}
    rounded = np.array(engine.score(REQUESTS)[0].logprobs)
    engine.load_variant(REFERENCE)

    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert (config.model_type, config.num_experts, config.num_experts_per_tok) == (
        "qwen2_moe", 8, 2,
    )  # fmt: skip
    assert "model.layers.1.mlp.experts.gate_up_proj" in moved
    assert "model.layers.1.mlp.shared_expert.down_proj.weight" in moved
    assert not any("gate.weight" in name for name in moved)
    assert np.abs(rounded - plain).mean() > 1e-3
    assert np.array_equal(np.array(engine.score(REQUESTS)[0].logprobs), plain)


def test_the_mixture_is_published_in_half_precision(published: Path) -> None:
    """As others do: no reference is an up-cast of more than was published."""
    assert {tensor.dtype for tensor in load_file(published / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_the_mixture_is_restated_in_fp8_blocks_and_4_bits(published: Path, tmp_path: Path) -> None:
    """Both load, and score otherwise than what they were made of."""
    before = TransformersEngine(published, eos_ids=(EOS_ID,)).score(REQUESTS)[0].logprobs
    found = {}
    for name, restate in (("fp8", restate_in_fp8), ("int4", restate_in_int4)):
        restate(published, tmp_path / name, **({"group": 16} if name == "int4" else {}))
        engine = TransformersEngine(tmp_path / name, eos_ids=(EOS_ID,))
        found[name] = engine.score(REQUESTS)[0].logprobs

    off = {name: np.abs(np.subtract(one, before)).mean() for name, one in found.items()}
    assert 0 < off["fp8"] < off["int4"] < 3
