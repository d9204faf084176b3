"""Measured flips.benchmark.json: the tail of honest arithmetic, of a mixture and of a dense model.

Each model is read on greedy replies of its own, in float32 alone; against it bfloat16 alone, both
in batches of 16, and bfloat16 alone against bfloat16 in batches. Also how far the mixture is from
the dense model it was made of, on the dense model's replies, none of which it learned from. Takes
ten minutes on one core, and the mixture if it was not made yet:

    OMP_NUM_THREADS=1 python reference/recipes/measure_flips.py FOLDER
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from verifier.cli.common import cache_directory
from verifier.lab.bench.flips import PART, flip_margins, shares_of_routing, tail_of
from verifier.lab.bench.results import begin_results, fetch_measured, write_results
from verifier.lab.made.recipes import RECIPES, make_model
from verifier.lab.made.replies import Row, ask
from verifier.lab.made.training import pad
from verifier.probes import draw, load_pool
from verifier.progress import Show
from verifier.prompts import prompt_of
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer

SEED, ASKED, TOKENS, BATCH = 20261202, 64, 48, 16


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


SHOW = Show(tell=_say, step=lambda *_given: None)


def speak(weights: Path, path: Path) -> list[Row]:
    tokenizer = Tokenizer(weights)
    probes = draw(load_pool(), seed=SEED, count=ASKED, max_tokens=TOKENS)
    return ask(
        lambda: load_engine("transformers", weights, tokenizer),
        [tokenizer.encode_prompt(tokenizer.render_text(prompt_of(one))) for one in probes],
        path=path, max_tokens=TOKENS, show=SHOW,
    )  # fmt: skip


def read(model: Any, rows: Sequence[Row], *, size: int) -> tuple[Any, Any]:
    """Log-probabilities before each token of the replies, and the routers' logits there or None."""
    routed: list[torch.Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _m, _given, out: routed.append(out[0].float()))
        for layer in model.model.layers if hasattr(layer.mlp, "gate")
    ]  # fmt: skip
    said, gates = [], []
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            batch = pad(rows[start : start + size])
            wanted = batch.said[:, 1:]
            routed.clear()
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1][wanted]
            said.append(logits.float().log_softmax(-1).numpy())
            if routed:
                layers = [one.view(*batch.ids.shape, -1)[:, :-1][wanted] for one in routed]
                gates.append(torch.stack(layers, dim=1).numpy())
    for hook in hooks:
        hook.remove()
    return np.concatenate(said), np.concatenate(gates) if gates else None


def measure(name: str, weights: Path, folder: Path) -> dict[str, Any]:
    rows = speak(weights, folder / f"{name}.jsonl")
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype).eval()
        for size in (1, BATCH):
            _say(f"{name}: {dtype}, batches of {size}")
            found[dtype, size] = read(model, rows, size=size)
        del model
    exact, gates = found[torch.float32, 1]
    half, half_gates = found[torch.bfloat16, 1]
    pairs = {
        "bf16 against fp32, alone": (exact, half),
        f"bf16 in batches of {BATCH} against fp32 alone": (exact, found[torch.bfloat16, BATCH][0]),
        f"bf16 in batches of {BATCH} against alone": (half, found[torch.bfloat16, BATCH][0]),
        f"fp32 in batches of {BATCH} against alone": (exact, found[torch.float32, BATCH][0]),
    }
    config = AutoModelForCausalLM.from_pretrained(weights).config
    return {
        "name": name,
        "computations": [
            {"computed": told, "positions": len(one), "tail": tail_of(flip_margins(one, other))}
            for told, (one, other) in pairs.items()
        ],
        "routing": None if gates is None else shares_of_routing(
            gates, half_gates, top_k=config.num_experts_per_tok
        ),
    }  # fmt: skip


def fidelity(dense: Path, mixture: Path, folder: Path) -> dict[str, float]:
    """Divergence in nats a token, and the share of tokens that both choose alike."""
    rows = speak(dense, folder / "dense.jsonl")
    one, other = (
        read(AutoModelForCausalLM.from_pretrained(w, dtype=torch.float32).eval(), rows, size=1)[0]
        for w in (dense, mixture)
    )
    return {
        "divergence": round(float((np.exp(one) * (one - other)).sum(1).mean()), 5),
        "agreement": round(float((one.argmax(1) == other.argmax(1)).mean()), 5),
    }


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    dense = fetch_measured(cache=cache_directory(), tell=SHOW.tell)[1]
    mixture = make_model(RECIPES["experts"], cache=cache_directory(), show=SHOW)
    results = begin_results(seed=SEED) | {
        "models": [measure("dense", dense, out), measure("experts", mixture, out)],
        "fidelity": fidelity(dense, mixture, out),
    }
    write_results(out, PART, results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
