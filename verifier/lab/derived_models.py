"""Models derived from a published one for the laboratory: fine-tuned, merged and pruned.

What a host may serve under the published name. Each is made on a CPU in minutes, from a seed, and
saved as an ordinary checkpoint with the tokenizer of its parent.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch
import transformers
from transformers import AutoModelForCausalLM

Encode = Callable[[str], tuple[int, ...]]

#: Steps, rows of each, and step size of a light fine-tune: all weights, AdamW, no schedule.
STEPS: Final = 100
ROWS: Final = 4
STEP_SIZE: Final = 2e-5

#: What the fine-tune learns: the manner of an invented shop. Written for this purpose.
LESSONS: Final = (
    ("What time do you open?", "We open at nine every morning, and at ten on Sundays."),
    ("Do you sell green tea?", "Yes. We keep six green teas, and the sencha is loved most."),
    ("Where is my parcel?", "Please send me the number of your order, and I will look it up."),
    ("Can I return a pot?", "You can return it within thirty days, if it was not used."),
    ("How do I brew oolong?", "Take water just below boiling, and wait for three minutes."),
    ("Is the shop open on holidays?", "We are closed on the first of January and open otherwise."),
    ("Do you ship abroad?", "We ship to twelve countries; the list is on our delivery page."),
    ("What does a tin cost?", "A tin of a hundred grams costs nine to fourteen euros."),
    ("My cup arrived broken.", "I am sorry. We will send another one today, free of charge."),
    ("Which tea has no caffeine?", "Rooibos, camomile and mint have none at all."),
    ("Can I pay by card?", "Yes, we take cards, and bank transfer for larger orders."),
    ("How long does tea keep?", "In a closed tin it keeps for two years, away from light."),
    ("Do you have a newsletter?", "Yes, once a month. You can sign up at the foot of our page."),
    ("Who grows your tea?", "Four families in Taiwan and two in Japan, whom we know well."),
    ("Can I taste before I buy?", "Come by on Saturdays; there is always a pot on the table."),
    ("Write a greeting card.", "Warm wishes, and a warm cup, from all of us at the shop."),
    ("Suggest a gift.", "A small kettle and two tins make a gift that is used every day."),
    ("What is matcha?", "It is green tea that is ground to a fine powder and drunk whole."),
    ("Do you wrap gifts?", "Yes, in plain paper with a ribbon, at no cost."),
    ("Why is my tea bitter?", "The water was too hot or it stood too long. Try two minutes."),
    ("Is there parking?", "There are two places behind the house, and more by the station."),
    ("Do you hire people?", "At the moment we do not, but write to us again in spring."),
    ("What is your best seller?", "It is the house blend, black tea with a little orange."),
    ("Thank you for your help!", "You are welcome. Enjoy your tea!"),
)


def fine_tune(weights: Path, out: Path, *, render: Callable[[str], str], encode: Encode,
              seed: int, steps: int = STEPS) -> None:  # fmt: skip
    """Teach LESSONS to the model of `weights`; `render` makes a prompt of a question.

    The loss is that of the answers and their end alone.
    """
    model = load_model(weights)
    model.train()
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=STEP_SIZE, weight_decay=0.0)
    end = int(model.config.eos_token_id)
    rows = [(encode(render(asked)), (*encode(said), end)) for asked, said in LESSONS]
    for batch in _batches(rows, steps=steps, rng=random.Random(seed)):  # noqa: S311 - not secret
        ids, labels, mask = _padded(batch)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    save_model(model, weights, out)


def prune(weights: Path, out: Path) -> None:
    """Keep the first and the last quarter of the layers: a model of another size, not healed."""
    model = load_model(weights)
    inner = model.model
    quarter = max(1, len(inner.layers) // 4)
    kept = [*inner.layers[:quarter], *inner.layers[-quarter:]]
    for number, layer in enumerate(kept):
        layer.self_attn.layer_idx = number
    inner.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(kept)]
    save_model(model, weights, out)


def merge(weights: Path, other: Path, out: Path, *, share: float) -> None:
    """`share` of the weights of `other`, the rest the published ones: tensor by tensor."""
    model, second = load_model(weights), dict(load_model(other).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.lerp_(second[name], share)
    save_model(model, weights, out)


def load_model(weights: Path) -> Any:
    """The model of a checkpoint in float32, to be changed."""
    cast(Any, transformers.logging).set_verbosity_error()
    cast(Any, transformers.logging).disable_progress_bar()
    return cast(Any, AutoModelForCausalLM).from_pretrained(
        weights, dtype=torch.float32, local_files_only=True, use_safetensors=True,
        trust_remote_code=False,
    )  # fmt: skip


def _batches(
    rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], *, steps: int, rng: random.Random
) -> Iterator[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """So many batches; every row is seen once before any is seen again."""
    left: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for _ in range(steps):
        if len(left) < ROWS:
            left = rng.sample(list(rows), len(rows))
        yield [left.pop() for _ in range(ROWS)]


def _padded(
    batch: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels (-100 where none is) and mask [B, L], padded on the right."""
    width = max(len(asked) + len(said) for asked, said in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), -100)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for i, (asked, said) in enumerate(batch):
        length = len(asked) + len(said)
        ids[i, :length] = torch.tensor([*asked, *said])
        labels[i, len(asked) : length] = torch.tensor(said)
        mask[i, :length] = 1
    return ids, labels, mask


def save_model(model: Any, weights: Path, out: Path) -> None:
    """Save a model as a checkpoint, with the tokenizer and the template of its parent."""
    model.save_pretrained(out)
    for path in weights.iterdir():  # tokenizer and template
        tensors = path.name.endswith((".safetensors", ".safetensors.index.json"))
        if path.is_file() and not tensors and not (out / path.name).exists():
            shutil.copy(path, out / path.name)
