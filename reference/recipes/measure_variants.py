"""Measured variants.benchmark.json: how far each known variant moves the embedded model.

Of each variant the squared error of the weights as a share of their squares, over all linear layers
of the blocks, and over down_proj alone, whose width 1536 more builds can take; and by how much it
shifts the log-probabilities of greedy replies of the published weights, in float32. The order of
the bank is by these. Ten minutes on one core; goes on where it was stopped:

    OMP_NUM_THREADS=1 python reference/recipes/measure_variants.py FOLDER
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from verifier.cli.common import cache_directory
from verifier.files.run_folder import read_json
from verifier.lab.bench.results import begin_results, fetch_measured, results_path, write_results
from verifier.lab.bench.variants import PART, shift_of
from verifier.probes import draw, load_pool
from verifier.records import GenerateRequest, ScoreRequest
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.layout import Layout, read_layout
from verifier.reference.snapshot import find_shards
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.variants import VARIANTS, Variant, is_linear
from verifier.scoring.readings import published_ids

SEED, ASKED, TOKENS = 20261201, 16, 24
DOWN = "down_proj.weight"


def linear(weights: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that variants round."""
    for shard in find_shards(weights):
        with safe_open(shard, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                if is_linear(key):
                    yield key, tensors.get_tensor(key)


def errors(
    variant: Variant, weights: Path, layout: Layout, made: dict[str, torch.Tensor]
) -> dict[str, float | None]:
    """Squared errors as shares of the squares; None where a width is not taken.

    `made` are the tensors of the variant, if it could be loaded.
    """
    if variant.build is None or variant.family == "layers":
        return {"error": None, "error_down": None}
    transform = variant.build(layout)
    wrong, whole = {"all": 0.0, DOWN: 0.0}, {"all": 0.0, DOWN: 0.0}
    complete = True
    for key, tensor in linear(weights):
        if not variant.takes(tensor.shape[-1:]):
            complete = False
            continue
        rounded = made[key] if made else transform(key, tensor)
        change = float((rounded - tensor).square().sum())
        for part in ("all", DOWN) if key.endswith(DOWN) else ("all",):
            wrong[part] += change
            whole[part] += float(tensor.square().sum())
    down = wrong[DOWN] / whole[DOWN] if whole[DOWN] else None
    return {"error": wrong["all"] / whole["all"] if complete else None, "error_down": down}


def main(out: Path) -> None:
    _, weights = fetch_measured(cache=cache_directory(), tell=print)
    tokenizer = Tokenizer(weights)
    engine = TransformersEngine(weights, eos_ids=(tokenizer.eos_id,))
    layout = read_layout(engine._model.config)
    prompts = [
        published_ids(probe, tokenizer)
        for probe in draw(load_pool(), seed=SEED, count=ASKED, max_tokens=TOKENS)
    ]
    made = engine.generate([GenerateRequest(prompt_ids=p, max_tokens=TOKENS) for p in prompts])
    asked = [
        ScoreRequest(prompt_ids=p, reply_ids=m.token_ids)
        for p, m in zip(prompts, made, strict=True)
    ]
    before = engine.score(asked)
    path = results_path(out, PART)
    found: list[dict[str, Any]] = read_json(path)["variants"] if path.exists() else []
    for name, variant in VARIANTS.items():
        if any(one["name"] == name for one in found):
            continue
        shift, tensors = None, {}
        if engine.can_load(name):
            engine.load_variant(name)
            shift = round(shift_of(before, engine.score(asked)), 4)
            tensors = dict(engine._model.named_parameters())
        with torch.inference_mode():
            each = errors(variant, weights, layout, tensors)
        rounded = {key: value and float(f"{value:.3g}") for key, value in each.items()}
        found.append({"name": name, **rounded, "shift": shift})
        sys.stderr.write(f"{found[-1]}\n")
        tokens = sum(len(one.reply_ids) for one in asked)
        counts = {"replies": ASKED, "tokens": tokens}
        write_results(out, PART, {**begin_results(seed=SEED), **counts, "variants": found})
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
