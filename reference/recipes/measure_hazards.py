"""Measured hazards.benchmark.json: how soon greedy replies of two stacks leave each other.

Stacks are three precisions, alone and in batches of 16 (the mixture, which takes longer, alone in
bfloat16 only), and builds in bfloat16. Each generates its own replies, a little longer than the
window. Takes a quarter of an hour on one core, goes on where it was stopped, and makes the mixture
if it was not made yet:

    OMP_NUM_THREADS=1 python reference/recipes/measure_hazards.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

from verifier.cli.common import cache_directory
from verifier.evidence.hazards import WINDOW
from verifier.files.run_folder import append_lines, read_lines
from verifier.lab.bench.hazards import PART, Spoken, pair_stacks, replay
from verifier.lab.bench.results import begin_results, fetch_measured, write_results
from verifier.lab.made.recipes import RECIPES, make_model
from verifier.probes import draw, load_pool
from verifier.progress import Show
from verifier.prompts import prompt_of
from verifier.records import REFERENCE, GenerateRequest
from verifier.reference.engines import Engine
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer

SEED, ASKED, BATCH = 20261203, 64, 16

#: Builds and the class that each is of; in bfloat16, as hosts serve them.
BUILDS = {"fp8-channel": "fp8", "int4-asym-g64": "4-bit", "nf4-g64": "4-bit"}


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


SHOW = Show(tell=_say, step=lambda *_given: None)


def speak(engine: Engine, prompts: list[tuple[int, ...]], *, size: int) -> list[tuple[int, ...]]:
    asked = [GenerateRequest(prompt_ids=ids, max_tokens=WINDOW + 1) for ids in prompts]
    return [
        made.token_ids
        for start in range(0, len(asked), size)
        for made in engine.generate(asked[start : start + size])
    ]


def measure(
    name: str, weights: Path, folder: Path, builds: dict[str, str], *, alone: tuple[str, ...]
) -> dict[str, Any]:
    tokenizer, path = Tokenizer(weights), folder / f"{name}.jsonl"
    probes = draw(load_pool(), seed=SEED, count=ASKED, max_tokens=WINDOW + 1)
    prompts = [tokenizer.encode_prompt(tokenizer.render_text(prompt_of(one))) for one in probes]
    known = {line["name"]: line for line in read_lines(path)}
    for dtype in ("float32", "bfloat16", "float16"):
        stacks = [(REFERENCE, size) for size in ((BATCH, 1) if dtype in alone else (BATCH,))]
        stacks += [(build, BATCH) for build in builds if dtype == "bfloat16"]
        left = [(build, size) for build, size in stacks if _name(build, dtype, size) not in known]
        if not left:
            continue
        engine = load_engine("transformers", weights, tokenizer, dtype=dtype, threads=1)
        for build, size in left:
            stack = _name(build, dtype, size)
            _say(f"{name}: {stack}")
            engine.load_variant(build)
            line = {
                "name": stack, "role": builds.get(build, "honest"),
                "replies": speak(engine, prompts, size=size),
            }  # fmt: skip
            append_lines(path, [line])
            known[stack] = line
        engine.close()
    spoken = [
        Spoken(name=one["name"], role=one["role"], replies=tuple(map(tuple, one["replies"])))
        for one in known.values()
    ]
    model = {"name": name, "stacks": list(known), "pairs": pair_stacks(spoken)}
    return model | {"replayed": replay(model, seed=SEED)}


def _name(build: str, dtype: str, size: int) -> str:
    return f"{dtype}-batch{size}" if build == REFERENCE else f"{build}-{dtype}-batch{size}"


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    dense = fetch_measured(cache=cache_directory(), tell=SHOW.tell)[1]
    mixture = make_model(RECIPES["experts"], cache=cache_directory(), show=SHOW)
    models = [
        measure("dense", dense, out, BUILDS, alone=("float32", "bfloat16", "float16")),
        measure("experts", mixture, out, {"int4-asym-g32": "4-bit"}, alone=("bfloat16",)),
    ]
    write_results(out, PART, begin_results(seed=SEED) | {"models": models})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
