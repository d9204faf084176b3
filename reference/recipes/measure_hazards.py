"""Measured hazards.benchmark.json: how soon greedy replies of two stacks leave each other.

The path is each model's own greedy reply in float32; every other stack is read along it. Stacks are
the three precisions, alone and in batches of 16, and on the dense model also roundings. Takes ten
minutes on one core, goes on where it was stopped, and makes the mixture if it was not made yet:

    OMP_NUM_THREADS=1 python reference/recipes/measure_hazards.py FOLDER
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verifier.cli.common import cache_directory
from verifier.files.run_folder import append_lines, read_lines
from verifier.lab.bench.hazards import PART, leaves_of, replay
from verifier.lab.bench.results import begin_results, fetch_measured, write_results
from verifier.lab.made.recipes import RECIPES, make_model
from verifier.lab.made.replies import Row, ask
from verifier.probes import draw, load_pool
from verifier.progress import Show
from verifier.prompts import prompt_of
from verifier.records import REFERENCE, ScoreRequest
from verifier.reference.engines import Engine
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer

SEED, ASKED, TOKENS, BATCH = 20261203, 64, 64, 16

#: Builds and the class that each is of; in bfloat16, as hosts serve them.
BUILDS = {"fp8-channel": "fp8", "int4-asym-g64": "4-bit", "nf4-g64": "4-bit"}


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


SHOW = Show(tell=_say, step=lambda *_given: None)


def speak(weights: Path, path: Path) -> list[Row]:
    tokenizer = Tokenizer(weights)
    probes = draw(load_pool(), seed=SEED, count=ASKED, max_tokens=TOKENS)
    return ask(
        lambda: load_engine("transformers", weights, tokenizer, threads=1),
        [tokenizer.encode_prompt(tokenizer.render_text(prompt_of(one))) for one in probes],
        path=path, max_tokens=TOKENS, show=SHOW,
    )  # fmt: skip


def read(engine: Engine, rows: Sequence[Row], *, size: int) -> list[tuple[int, int] | None]:
    asked = [ScoreRequest(prompt_ids=row.prompt, reply_ids=row.reply) for row in rows]
    scores = [
        score
        for start in range(0, len(asked), size)
        for score in engine.score(asked[start : start + size])
    ]
    return [leaves_of(row.reply, score.top_ids) for row, score in zip(rows, scores, strict=True)]


def measure(name: str, weights: Path, folder: Path, builds: dict[str, str]) -> dict[str, Any]:
    rows = speak(weights, folder / f"{name}.jsonl")
    path = folder / f"{name}-stacks.jsonl"
    known = {line["name"]: line for line in read_lines(path)}
    for dtype in ("float32", "bfloat16", "float16"):
        stacks = [(REFERENCE, size) for size in (1, BATCH)]
        stacks += [(build, BATCH) for build in builds if dtype == "bfloat16"]
        left = [(w, n) for w, n in stacks if _name(w, dtype, n) not in known]
        engine = load_engine(
            "transformers", weights, Tokenizer(weights), dtype=dtype, threads=1
        ) if left else None  # fmt: skip
        for build, size in left:
            assert engine is not None
            stack = _name(build, dtype, size)
            _say(f"{name}: {stack}")
            engine.load_variant(build)
            role = builds.get(build, "honest")
            line = {"name": stack, "role": role, "leaves": read(engine, rows, size=size)}
            append_lines(path, [line])
            known[stack] = line
        if engine is not None:
            engine.close()
    return {
        "name": name, "lengths": [len(row.reply) for row in rows], "stacks": list(known.values()),
    }  # fmt: skip


def _name(build: str, dtype: str, size: int) -> str:
    return f"{dtype}-batch{size}" if build == REFERENCE else f"{build}-{dtype}-batch{size}"


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    dense = fetch_measured(cache=cache_directory(), tell=SHOW.tell)[1]
    mixture = make_model(RECIPES["experts"], cache=cache_directory(), show=SHOW)
    models = [
        measure("dense", dense, out, BUILDS),
        measure("experts", mixture, out, {"int4-asym-g32": "4-bit"}),
    ]
    judged = [model | {"replayed": replay(model, seed=SEED)} for model in models]
    write_results(out, PART, begin_results(seed=SEED) | {"models": judged})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
