"""A few hundred steps of AdamW on a CPU that a kill costs minutes of, and the rows they learn from.

Knows no recipe: what is learned is a function from a batch to its loss.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from verifier.lab.made.replies import Row

#: Steps after which all is kept, and steps until the full step size.
KEPT_EVERY: Final = 10
WARM_UP: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of token ids, padded on the right."""

    ids: torch.Tensor  # [B, L]
    mask: torch.Tensor  # [B, L]: 1 where a token is
    said: torch.Tensor  # [B, L]: whether the token is of the reply


def pad(rows: Sequence[Row]) -> Batch:
    """One batch of these rows."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    said = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        said[i, len(row.prompt) : len(row.ids)] = True
    return Batch(ids=ids, mask=mask, said=said)


def draw_batches(rows: Sequence[Row], *, size: int, steps: int, seed: int) -> Iterator[list[Row]]:
    """So many batches; every row is seen once before any is seen again."""
    rng = random.Random(seed)  # noqa: S311 - not secret
    left: list[Row] = []
    for _ in range(steps):
        if len(left) < size:
            left = rng.sample(list(rows), len(rows))
        yield [left.pop() for _ in range(size)]


def reply_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean negative log-likelihood of the tokens of the replies, in nats."""
    hidden = model.model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
    wanted = batch.said[:, 1:]  # each is foretold one place before
    logits = model.lm_head(hidden[:, :-1][wanted])
    return torch.nn.functional.cross_entropy(logits, batch.ids[:, 1:][wanted])


def train(
    model: Any,
    rows: Sequence[Row],
    *,
    loss: Callable[[Any, Batch], torch.Tensor],
    steps: int,
    size: int,
    step_size: float,
    seed: int,
    kept: Path,
    progress: Callable[[int, int], None],
) -> list[float]:
    """Change the parameters that require gradients; the loss of each step.

    The step size warms up and falls in a line. What was reached lies in `kept` every so often, and
    is gone on from; batches depend on seed and step alone, so the end is the same.
    """
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(learned.values(), lr=step_size, weight_decay=0.0)
    losses: list[float] = []
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        losses = state["losses"]
    model.train()
    batches = draw_batches(rows, size=size, steps=steps, seed=seed)
    for step, batch in enumerate(batches):
        if step < len(losses):
            continue
        for group in optimizer.param_groups:
            group["lr"] = step_size * min((step + 1) / WARM_UP, 1 - step / steps)
        found = loss(model, pad(batch))
        found.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        torch.nn.utils.clip_grad_norm_(learned.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(found.detach()))
        progress(step + 1, steps)
        if len(losses) % KEPT_EVERY == 0 and len(losses) < steps:
            _keep(kept, {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses,
            })  # fmt: skip
    model.eval()
    return losses


def _keep(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)
