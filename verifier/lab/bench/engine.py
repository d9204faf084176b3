"""What the vLLM engine costs: its scoring against vLLM's own, memory, and a bank of variants.

Throughputs are compared as ratios of passes that alternate in one process on one machine, so that
a machine that is busy slows both.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from verifier.lab.bench.results import begin_results, fetch_measured, tabulate_rows, write_results
from verifier.plan import versions
from verifier.probes import draw, load_pool
from verifier.records import REFERENCE, GenerateRequest, ScoreRequest
from verifier.reference.engines import TOP_K
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.engines.vllm import VllmEngine
from verifier.reference.tokenizer import Tokenizer

PART = "engine"

#: Replies of one pass, passes of each kind, and how many replies the memory test scores.
PASS = 48
ROUNDS = 3
MANY = (250, 500, 1000)
VARIANTS = 12

Tell = Callable[[str], None]


def run_engine_bench(out: Path, *, cache: Path, seed: int, tell: Tell) -> Path:
    """Measure the vLLM engine on the embedded model; the path of the results in `out`."""
    card, weights = fetch_measured(cache=cache, tell=tell)
    tokenizer = Tokenizer(weights)
    eos_ids = (tokenizer.eos_id,)
    tell("starting vLLM")
    engine = VllmEngine(weights, eos_ids=eos_ids, dtype="float32")
    try:
        requests = _replies(engine, tokenizer, seed=seed, tell=tell)
        found: dict[str, Any] = {
            **begin_results(seed=seed),
            "versions": versions() | {k: v for k, v in engine.versions.items() if k != "engine"},
            "machine": machine(),
        }
        oracle = TransformersEngine(weights, eos_ids=eos_ids)
        tell("scoring: this engine, vLLM by itself, transformers, in turn")
        found["throughput"] = _throughput(engine, oracle, requests)
        oracle.close()
        tell("scoring a bank of variants")
        found["bank"] = _bank(engine, requests, card.bank[:VARIANTS])
        tell(f"memory while {MANY[-1]} replies are scored")
        found["memory"] = _memory(engine, requests)
    finally:
        engine.close()
    out.mkdir(parents=True, exist_ok=True)
    return write_results(out, PART, found)


def tabulate_engine(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    speed, bank, memory = results["throughput"], results["bank"], results["memory"]
    per_s = speed["tokens_per_s"]
    few, many = memory[0], memory[-1]
    rows = [
        ("scoring, this engine", f"{per_s['this engine']:,.0f} tokens/s"),
        ("scoring, vLLM by itself", f"{per_s['vllm']:,.0f} tokens/s"),
        ("scoring, transformers", f"{per_s['transformers']:,.0f} tokens/s"),
        ("this engine to vLLM by itself", f"{speed['ratio_to_vllm']:.2f}"),
        ("this engine to transformers", f"{speed['ratio_to_transformers']:.2f}"),
        (
            f"a bank of {len(bank['variants'])} variants, loading included",
            f"{bank['cost_in_plain_passes']:.1f} plain passes over {speed['replies']} replies",
        ),
        *(
            (
                f"memory, {name}, {few['replies']} to {many['replies']:,} replies in one call",
                f"{few[key]:,} to {many[key]:,} MiB",
            )
            for name, key in (("this process", "this_process_mib"), ("vLLM", "vllm_mib"))
        ),
    ]
    return tabulate_rows(("what", "measured"), rows)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _replies(
    engine: VllmEngine, tokenizer: Tokenizer, *, seed: int, tell: Tell
) -> list[ScoreRequest]:
    """Greedy replies to probes of the pool, as audits score them."""
    tell(f"generating {PASS} replies")
    probes = draw(load_pool(), seed=seed, count=PASS, max_tokens=32)
    prompts = [tokenizer.render(probe.messages) for probe in probes]
    made = engine.generate([GenerateRequest(prompt_ids=p, max_tokens=32) for p in prompts])
    return [
        ScoreRequest(prompt_ids=prompt, reply_ids=reply.token_ids)
        for prompt, reply in zip(prompts, made, strict=True)
    ]


def _tokens(requests: Sequence[ScoreRequest]) -> int:
    return sum(len(r.prompt_ids) + len(r.reply_ids) for r in requests)


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _throughput(
    engine: VllmEngine, oracle: TransformersEngine, requests: Sequence[ScoreRequest]
) -> dict[str, Any]:
    """Seconds of alternating passes over the same replies."""
    passes: dict[str, list[float]] = {"this engine": [], "vllm": [], "transformers": []}
    engine.score(requests[:2])  # warm
    for _ in range(ROUNDS):
        passes["this engine"].append(_timed(lambda: engine.score(requests)))
        passes["vllm"].append(_timed(lambda: engine.score_by_itself(requests, k=TOP_K)))
        passes["transformers"].append(_timed(lambda: oracle.score(requests)))
    seconds = {name: statistics.median(times) for name, times in passes.items()}
    tokens = _tokens(requests)
    return {
        "replies": len(requests),
        "tokens": tokens,
        "seconds": {name: [round(t, 3) for t in times] for name, times in passes.items()},
        "tokens_per_s": {name: round(tokens / s, 1) for name, s in seconds.items()},
        "ratio_to_vllm": round(seconds["vllm"] / seconds["this engine"], 3),
        "ratio_to_transformers": round(seconds["transformers"] / seconds["this engine"], 3),
    }


def _bank(
    engine: VllmEngine, requests: Sequence[ScoreRequest], names: Sequence[str]
) -> dict[str, Any]:
    """A pass under each of some variants, loading included, against as many plain passes."""
    plain = [_timed(lambda: engine.score(requests)) for _ in range(ROUNDS)]
    loads, passes = [], []
    for name in names:
        loads.append(_timed(lambda name=name: engine.load_variant(name)))  # type: ignore[misc]
        passes.append(_timed(lambda: engine.score(requests)))
    loads.append(_timed(lambda: engine.load_variant(REFERENCE)))
    one = statistics.median(plain)
    return {
        "variants": list(names),
        "seconds_of_a_plain_pass": [round(t, 3) for t in plain],
        "seconds_of_loading": [round(t, 3) for t in loads],
        "seconds_of_scoring": [round(t, 3) for t in passes],
        "cost_in_plain_passes": round((sum(loads) + sum(passes)) / one, 2),
        "loading_in_plain_passes": round(sum(loads) / statistics.median(passes), 2),
    }


def _memory(engine: VllmEngine, requests: Sequence[ScoreRequest]) -> list[dict[str, Any]]:
    """Resident memory of this process and of vLLM's, after ever more replies in one call."""
    short = [
        ScoreRequest(prompt_ids=r.prompt_ids[-16:], reply_ids=r.reply_ids[:16]) for r in requests
    ]
    found = []
    for count in MANY:
        many = [short[n % len(short)] for n in range(count)]
        peak = _Peak()
        engine.score(many)
        found.append({"replies": count, **peak.stop()})
    return found


class _Peak:
    """The largest resident memory, looked at ten times a second."""

    def __init__(self) -> None:
        import threading

        self._going = True
        self._process = psutil.Process()
        self.ours = self.vllms = 0
        self._look()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._going:
            self._look()
            time.sleep(0.1)

    def _look(self) -> None:
        children = self._process.children(recursive=True)
        self.ours = max(self.ours, self._process.memory_info().rss)
        self.vllms = max(self.vllms, sum(child.memory_info().rss for child in children))

    def stop(self) -> dict[str, int]:
        self._going = False
        self._thread.join()
        return {"this_process_mib": self.ours >> 20, "vllm_mib": self.vllms >> 20}
