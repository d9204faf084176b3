"""A mixture of experts made of a dense model: neurons dealt to experts, a router, a distillation.

The shape of Qwen2-MoE: dense layers first, then layers with one shared expert, always active and
with a gate of its own, beside routed ones of which each token gets the `top_k` that its router
likes most, weighted by a softmax over these. Layer by layer the neurons that matter most go to the
shared expert and the rest, by what they are active with, to the routed ones; router and output
projections are fitted in closed form on what the layers before hand on; then all but the
embeddings learn the next-token distributions of the dense model on its own replies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
import transformers
from scipy.optimize import linear_sum_assignment

from verifier.lab.derived_models import load_model, save_model
from verifier.lab.made.replies import Row, speak
from verifier.lab.made.training import Batch, pad, train
from verifier.progress import Show

#: Rows that the closed-form fit reads, tokens that the dealing of neurons looks at, and its rounds.
FITTED_ROWS: Final = 192
LOOKED_AT: Final = 3000
ROUNDS: Final = 3

#: Ridge penalties, as shares of the mean of the Gram matrix' diagonal.
ROUTER_RIDGE: Final = 1e-3
OUTPUT_RIDGE: Final = 3e-3

#: Replies that it learns from, and rows and step size of a step.
REPLIES: Final = 320
ROWS: Final = 8
STEP_SIZE: Final = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How the neurons of a layer are split."""

    dense_layers: int = 10  # at the front, left as they are
    shared: int = 768  # neurons of the shared expert
    experts: int = 16
    width: int = 96  # neurons of each; all together may hold each neuron several times
    top_k: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """Which neurons of a dense layer each expert gets."""

    shared: torch.Tensor  # [S]
    routed: torch.Tensor  # [E, W]
    copies: int  # how often each neuron is among the routed


def deal_neurons(strength: torch.Tensor, shape: Shape, *, rng: torch.Generator) -> Deal:
    """Deal by strength [N, ffn]: how much each neuron wrote at each of N tokens.

    Routed experts are balanced clusters of neurons that are strong at the same tokens, `copies`
    times from different beginnings.
    """
    order = strength.square().mean(0).argsort(descending=True, stable=True)
    shared, rest = order[: shape.shared], order[shape.shared :]
    copies, over = divmod(shape.experts * shape.width, len(rest))
    if over or not copies or len(rest) % shape.width:
        raise ValueError(f"{shape.experts} experts of {shape.width} do not hold {len(rest)} evenly")
    seen = F.normalize(strength[:LOOKED_AT, rest].T, dim=1)
    clusters = [_clusters(seen, shape.experts // copies, rng) for _ in range(copies)]
    return Deal(shared=shared, routed=rest[torch.cat(clusters)], copies=copies)


def _clusters(seen: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    """Rows of unit length in `count` clusters of one size [count, size]: balanced k-means."""
    size = len(seen) // count
    centres = seen[torch.randperm(len(seen), generator=rng)[:count]]
    places = torch.zeros(len(seen), dtype=torch.long)
    for _ in range(ROUNDS):
        cost = -(seen @ centres.T).repeat_interleave(size, 1)
        places = torch.from_numpy(linear_sum_assignment(cost.numpy())[1]) // size
        centres = F.normalize(torch.stack([seen[places == n].mean(0) for n in range(count)]), dim=1)
    return torch.stack([torch.where(places == n)[0] for n in range(count)])


def place_neurons(block: Any, dense: Any, deal: Deal, shape: Shape) -> None:
    """Put neurons where they were dealt to, with a router that prefers none.

    With all experts active this is the function of the dense layer; with some of them, an estimate
    of it. The shared expert's gate is a half, which its output makes up for.
    """
    gate, up, down = (getattr(dense, f"{name}_proj").weight for name in ("gate", "up", "down"))
    with torch.no_grad():
        block.gate.weight.zero_()
        block.shared_expert_gate.weight.zero_()
        block.shared_expert.gate_proj.weight.copy_(gate[deal.shared])
        block.shared_expert.up_proj.weight.copy_(up[deal.shared])
        block.shared_expert.down_proj.weight.copy_(2 * down[:, deal.shared])
        block.experts.gate_up_proj.copy_(torch.cat([gate[deal.routed], up[deal.routed]], dim=1))
        each = shape.experts / deal.copies  # a softmax' weights are 1 together
        block.experts.down_proj.copy_(each * down.T[deal.routed].transpose(1, 2))


def fit_block(block: Any, dense: Any, x: torch.Tensor, shape: Shape, rng: torch.Generator) -> None:
    """Make a sparse block of a dense layer, by what it reads [N, hidden]."""
    with torch.no_grad():
        active = F.silu(dense.gate_proj(x)) * dense.up_proj(x)  # [N, ffn]
        strength = active.abs() * dense.down_proj.weight.norm(dim=0)
        deal = deal_neurons(strength[torch.randperm(len(x), generator=rng)], shape, rng=rng)
        place_neurons(block, dense, deal, shape)
        energy = strength.square()[:, deal.routed.flatten()]
        energy = energy.view(len(x), *deal.routed.shape).sum(2).add(1e-6).log()
        energy = energy - energy.mean(0)  # else some expert is everyone's
        router = _ridge(x, energy - energy.mean(1, keepdim=True), ROUTER_RIDGE)
        block.gate.weight.copy_(router.T)
        _fit_outputs(block, deal, active, x, dense.down_proj(active))


def _fit_outputs(
    block: Any, deal: Deal, active: torch.Tensor, x: torch.Tensor, wanted: torch.Tensor
) -> None:
    """Output projections that come nearest to what is wanted [N, hidden], given the router."""
    _, weights, chosen = block.gate(x)
    share = torch.zeros(len(x), len(deal.routed)).scatter_(1, chosen, weights)
    routed = active[:, deal.routed.flatten()].view(len(x), *deal.routed.shape)
    routed = routed * share[:, :, None]
    features = torch.cat([0.5 * active[:, deal.shared], routed.flatten(1)], dim=1)
    experts = block.experts.down_proj  # [E, hidden, W]
    before = torch.cat([
        block.shared_expert.down_proj.weight.T, experts.transpose(1, 2).flatten(0, 1)
    ])  # fmt: skip
    after = before + _ridge(features, wanted - features @ before, OUTPUT_RIDGE)
    block.shared_expert.down_proj.weight.copy_(after[: len(deal.shared)].T)
    experts.copy_(after[len(deal.shared) :].view(*deal.routed.shape, -1).transpose(1, 2))


def _ridge(x: torch.Tensor, y: torch.Tensor, penalty: float) -> torch.Tensor:
    gram = x.T @ x
    gram.diagonal().add_(penalty * gram.diagonal().mean())
    solved: torch.Tensor = torch.linalg.solve(gram, x.T @ y)
    return solved


def split(dense: Any, rows: Sequence[Row], shape: Shape, *, seed: int) -> Any:
    """The mixture of a dense model of Llama's shape, before any training.

    Each layer is fitted when the first batch comes to it, to what the split layers before hand on.
    """
    model = _empty(dense.config, shape)
    model.load_state_dict(dense.state_dict(), strict=False)  # all but the experts
    batch = pad(rows)
    rng = torch.Generator().manual_seed(seed)
    hooks = []
    for layer, from_dense in list(zip(model.model.layers, dense.model.layers, strict=True)):
        bias = [getattr(layer.self_attn, f"{name}_proj").bias for name in "qkv"]
        for one in bias:
            if one is not None:
                torch.nn.init.zeros_(one)
        if not hasattr(layer.mlp, "experts"):
            continue

        def fit(block: Any, read: tuple[torch.Tensor], mlp: Any = from_dense.mlp) -> None:
            fit_block(block, mlp, read[0][batch.mask.bool()], shape, rng)

        hooks.append(layer.mlp.register_forward_pre_hook(fit))
    with torch.no_grad():
        model.model(input_ids=batch.ids, attention_mask=batch.mask)
    for hook in hooks:
        hook.remove()
    return model


def _empty(config: Any, shape: Shape) -> Any:
    """A model of Qwen2-MoE's shape with the sizes of a dense one."""
    kept = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "hidden_act", "max_position_embeddings",
        "rms_norm_eps", "tie_word_embeddings", "rope_parameters", "bos_token_id", "eos_token_id",
        "pad_token_id",
    )  # fmt: skip
    sparse = transformers.Qwen2MoeConfig(
        **{name: getattr(config, name) for name in kept}, num_experts=shape.experts,
        num_experts_per_tok=shape.top_k, moe_intermediate_size=shape.width,
        shared_expert_intermediate_size=shape.shared, norm_topk_prob=True, qkv_bias=True,
        mlp_only_layers=list(range(shape.dense_layers)), dtype="float32",
    )  # fmt: skip
    return cast(Any, transformers.Qwen2MoeForCausalLM)(sparse).eval()


def divergence(model: Any, dense: Any, batch: Batch) -> torch.Tensor:
    """Mean divergence of the next-token distributions from the dense model's, in nats.

    Over all tokens but those of the beginning that the rows share.
    """
    apart = (batch.ids != batch.ids[0]).any(0).nonzero()
    wanted = batch.mask.bool().clone()
    wanted[:, : int(apart[0]) if len(apart) else 0] = False
    with torch.no_grad():
        inner = dense.model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        goal = dense.lm_head(inner[wanted]).log_softmax(-1)
    inner = model.model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
    found = model.lm_head(inner[wanted]).log_softmax(-1)
    return F.kl_div(found, goal, reduction="batchmean", log_target=True)


def distil(
    model: Any, dense: Any, rows: Sequence[Row], *, steps: int, seed: int, kept: Path,
    progress: Callable[[int, int], None],
) -> list[float]:  # fmt: skip
    """Heal the mixture on the dense model's replies; embeddings and head stay as they were."""
    model.get_input_embeddings().weight.requires_grad_(False)
    return train(
        model, rows, loss=lambda student, batch: divergence(student, dense, batch), steps=steps,
        size=ROWS, step_size=STEP_SIZE, seed=seed, kept=kept, progress=progress,
    )  # fmt: skip


def make_experts(
    weights: Path, out: Path, *, work: Path, replies: Path, steps: int, seed: int, show: Show,
    shape: Shape = Shape(),
) -> None:  # fmt: skip
    """Split and heal the model of `weights`, and save it in bfloat16 as publishers do."""
    rows = speak(weights, count=REPLIES, path=replies, show=show)
    dense = load_model(weights)
    model = split(dense, rows[:FITTED_ROWS], shape, seed=seed)
    show.tell(f"split; {steps} steps of distillation follow")
    distil(
        model, dense, rows, steps=steps, seed=seed, kept=work / "training.pt",
        progress=lambda done, of: show.step("steps", done, of),
    )  # fmt: skip
    save_model(model.to(torch.bfloat16), weights, out)
