"""One GPU with torch and transformers alone: how noisy it is, and how fast.

Every stack of STACKS answers the same probes on the GPU. The reference scores the replies in
float32 on the processor, as a buyer's laptop would, and so gives each stack's noise scale with its
interval, comparable with the calibration's. Speeds stand beside the limit of the memory's
bandwidth: a step of decoding reads all weights once, however many replies are in the batch.
Without an NVIDIA GPU nothing is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from verifier.errors import ConfigError
from verifier.evidence.calibration import Calibration, Estimate
from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES
from verifier.files.run_folder import make_folder
from verifier.lab.bench.results import (
    begin_results,
    fetch_measured,
    results_path,
    tabulate_rows,
    write_results,
)
from verifier.lab.calibrate import estimate
from verifier.lab.corpus import Stack, read_stack, score_corpus
from verifier.lab.generated import generate_corpus
from verifier.lab.made.recipes import RECIPES, folder_of
from verifier.probes import draw, load_pool
from verifier.records import GenerateRequest, Probe, ScoreRequest
from verifier.reference.calibrations import load_calibration
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.machine import Speed, describe_machine, speed_of, this_machine
from verifier.reference.tokenizer import Tokenizer

PART: Final = "gpu"

#: What answers, as cards name stacks; the first is what the others are held against.
STACKS: Final = (
    "float32-batch32", "bfloat16-batch32", "bfloat16-batch1", "float16-batch32", "float16-batch1",
)  # fmt: skip

#: The recipe of the mixture that is measured beside the embedded model.
EXPERTS: Final = "experts"

REPLIES: Final = 96
#: Of stacks that answer one at a time, which takes as long for each as for a whole batch.
REPLIES_ALONE: Final = 32
MAX_TOKENS: Final = 48

#: Replies decoded at once, and tokens each, when speed is measured.
BATCHES: Final = (1, 8, 32, 128)
DECODED: Final = 64
#: Replies of one pass of scoring, and passes.
SCORED: Final = 256
PASSES: Final = 3

_NO_GPU: Final = (
    "bench: gpu: no NVIDIA GPU is visible here (nvidia-smi and torch's CUDA build are asked); run "
    "it where one is"
)

Tell = Callable[[str], None]


def run_gpu_bench(
    out: Path, *, cache: Path, seed: int, tell: Tell, device: str = "cuda", replies: int = REPLIES
) -> Path:
    """Measure this machine's GPU on the embedded model, and on the mixture of experts where that
    was made; the path of the results in `out`.

    Under ten minutes for both. `device` and `replies` are smaller in tests. Raises ConfigError
    without an NVIDIA GPU.
    """
    machine = this_machine()
    if device == "cuda" and (machine.gpu is None or not TransformersEngine.sees_gpu()):
        raise ConfigError(_NO_GPU)
    card, weights = fetch_measured(cache=cache, tell=tell)
    models = {card.name: weights}
    experts = folder_of(RECIPES[EXPERTS], cache=cache)
    if experts.is_dir():
        models[EXPERTS] = experts
    else:
        tell(f"without {EXPERTS}, which is not made here: verifier testbed make {EXPERTS}")
    make_folder(out)
    found: dict[str, Any] = {
        **begin_results(seed=seed),
        "machine": {**machine.model_dump(), "words": describe_machine(machine)},
        "models": [],
    }
    probes = draw(load_pool(), seed=seed, count=replies, max_tokens=MAX_TOKENS)
    calibration = load_calibration(card.name, card)
    for name, directory in models.items():
        tell(f"measuring {name}")
        measured = _measure(
            out / name, directory, probes, device=device, limit=speed_of(None, machine),
            calibration=calibration, tell=tell,
        )  # fmt: skip
        found["models"].append({"model": name, **measured})
        write_results(out, PART, found)
    return results_path(out, PART)


def _measure(
    out: Path, weights: Path, probes: Sequence[Probe], *, device: str, limit: Speed,
    calibration: Calibration, tell: Tell,
) -> dict[str, Any]:  # fmt: skip
    """The speeds of one model on the GPU, and the noise of its stacks."""
    tokenizer = Tokenizer(weights)
    stacks = [read_stack(name) for name in STACKS]
    speeds = {}
    for dtype in dict.fromkeys(stack.dtype for stack in stacks):
        tell(f"loading the model in {dtype} on the GPU")
        engine = TransformersEngine(
            weights, eos_ids=(tokenizer.eos_id,), dtype=dtype, device=device,
            decode=tokenizer.decode,
        )  # fmt: skip
        for stack in (one for one in stacks if one.dtype == dtype):
            tell(f"asking {stack.name}")
            asked = _probes_of(stack, probes)
            generate_corpus(out / stack.name, stack, asked, engine=engine, tokenizer=tokenizer)
        tell(f"timing {dtype}")
        prompts = [tokenizer.render(probe.messages) for probe in probes]
        speeds[dtype] = measure_speed(engine, prompts, limit)
        engine.close()
    return {
        "speeds": speeds,
        "stacks": _score(out, weights, tokenizer, stacks, calibration=calibration, tell=tell),
    }


def _probes_of(stack: Stack, probes: Sequence[Probe]) -> Sequence[Probe]:
    return probes if stack.batch > 1 else probes[:REPLIES_ALONE]


def _score(
    out: Path, weights: Path, tokenizer: Tokenizer, stacks: Sequence[Stack], *,
    calibration: Calibration, tell: Tell,
) -> list[dict[str, Any]]:  # fmt: skip
    """Each stack's noise scale on both channels, by the reference in float32 on the processor."""
    reference = TransformersEngine(weights, eos_ids=(tokenizer.eos_id,), device="cpu")
    found = []
    for stack in stacks:
        tell(f"scoring {stack.name} on the processor")
        named, plain = (
            score_corpus(
                out / stack.name, engine=reference, tokenizer=tokenizer, with_logprobs=with_logprobs
            )
            for with_logprobs in (True, False)
        )
        found.append({
            "stack": stack.name,
            "replies": len(plain.rows),
            "tokens": sum(row.tokens for row in plain.rows),
            "text": _told(estimate(plain.text(), TEXT_SCALES, calibration.text)),
            "logprob": _told(estimate(named.logprob(), LOGPROB_SCALES, calibration.logprob)),
        })  # fmt: skip
    reference.close()
    return found


def _told(found: Estimate | None) -> dict[str, float | None] | None:
    return None if found is None else found.model_dump()


def measure_speed(
    engine: TransformersEngine, prompts: Sequence[tuple[int, ...]], limit: Speed
) -> dict[str, Any]:
    """Tokens a second of decoding by batch and of scoring, and the share of the bandwidth's limit.

    The limit of decoding: a step reads the weights once, so no more steps a second than
    bandwidth / bytes of weights. `limit` is what the maker's data sheet says of the memory.
    """
    held = engine.weight_bytes
    decoding = {}
    for batch in BATCHES:
        asked = [
            GenerateRequest(prompt_ids=prompts[n % len(prompts)], max_tokens=DECODED, past_end=True)
            for n in range(batch)
        ]
        engine.generate(asked[:1])  # warm
        started = time.perf_counter()
        engine.generate(asked)
        seconds = time.perf_counter() - started
        decoding[str(batch)] = {
            "tokens_per_s": round(batch * DECODED / seconds, 1),
            "of_bandwidth": round(DECODED / seconds * held / limit.bandwidth, 5),
        }
    requests = [
        ScoreRequest(prompt_ids=prompts[n % len(prompts)], reply_ids=tuple(range(200, 264)))
        for n in range(SCORED)
    ]
    engine.score(requests[:8])
    taken = []
    for _ in range(PASSES):
        started = time.perf_counter()
        engine.score(requests)
        taken.append(time.perf_counter() - started)
    tokens = sum(len(r.prompt_ids) + len(r.reply_ids) for r in requests)
    return {
        "weight_bytes": held,
        "decoding": decoding,
        "scoring_tokens_per_s": round(tokens / min(taken), 1),
        "limit": limit.words,
    }


def tabulate_gpu(results: Mapping[str, Any]) -> str:
    """Markdown tables: the noise of each model's stacks, and the speed of each precision."""
    noise = [
        (
            model["model"], one["stack"], str(one["replies"]), _spelled(one["text"]),
            _spelled(one["logprob"]),
        )
        for model in results["models"] for one in model["stacks"]
    ]  # fmt: skip
    speeds = [
        (
            model["model"],
            dtype,
            *(
                f"{one['decoding'][str(batch)]['tokens_per_s']:,.0f} "
                f"({100 * one['decoding'][str(batch)]['of_bandwidth']:.2g} %)"
                for batch in BATCHES
            ),
            f"{one['scoring_tokens_per_s']:,.0f}",
        )
        for model in results["models"]
        for dtype, one in model["speeds"].items()
    ]
    headings = ("model", "decoding, tokens/s (share of the memory's limit)")
    columns = [f"batch {batch}" for batch in BATCHES]
    return "\n\n".join([
        f"On {results['machine']['words']}.",
        tabulate_rows(("model", "stack on the GPU", "replies", "noise by text", "by logprobs"),
                      noise),
        tabulate_rows((*headings, *columns, "scoring, tokens/s"), speeds),
    ])  # fmt: skip


def _spelled(found: Mapping[str, float | None] | None) -> str:
    if found is None:
        return "none"
    low, high = ("?" if found[end] is None else f"{found[end]:.3g}" for end in ("lower", "upper"))
    return f"{found['estimate']:.3g} ({low} to {high})"
