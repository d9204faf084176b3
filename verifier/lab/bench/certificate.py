"""What honest replies make of the noise bet: a bound on its mean, for each stack, without a model.

Each stack answers probes of its own, which no calibration asked, over HTTP. Kept are the tallies of
the ratios (`evidence.certificate`), and how audits of disjoint slices of the replies ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from verifier.config import AuditSection
from verifier.errors import ConfigError
from verifier.evidence.calibration import BetCertificate, Calibration
from verifier.evidence.certificate import CAP, bound_mean, capped_ratios, tally_ratios
from verifier.evidence.ledger import TEXT_SCALES, Ledger
from verifier.evidence.noise import honest_scales
from verifier.files.run_folder import write_json
from verifier.host.collect import read_outcomes
from verifier.lab.bench.precision import plan_audit, replay
from verifier.lab.bench.results import (
    CARD,
    EACH,
    begin_results,
    count_decisions,
    fetch_measured,
    results_path,
    tabulate_rows,
    write_results,
)
from verifier.lab.corpus import (
    MAX_ATTEMPTS,
    Progress,
    collect_corpus,
    is_collected,
    load_host,
    read_stack,
    score_corpus,
)
from verifier.plan_file import Plan, read_probes
from verifier.probes import draw, load_pool
from verifier.reference.calibrations import load_calibration
from verifier.reference.engines.load import load_engine
from verifier.reference.tokenizer import Tokenizer
from verifier.verdict.case import make_case

PART: Final = "certificate"

#: Replies of each stack; one that answers one request at a time takes longest.
REPLIES: Final[Mapping[str, int]] = {
    "bfloat16-batch32": 1800, "float32-batch32": 1400, "float16-batch32": 1400,
    "bfloat16-batch1": 600,
}  # fmt: skip

MAX_TOKENS: Final = 48

#: Coverage of the bound of each stack.
LEVEL: Final = 0.99

#: Replies asked for between two writes of the results.
_CHUNK: Final = 100

Tell = Callable[[str], None]


def run_certificate_bench(
    out: Path, *, cache: Path, seed: int, tell: Tell, replies: int | None = None,
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Measure every stack in `out`; the path of the results. Goes on where it was stopped.

    `replies` bounds those of each stack. Raises ConfigError for the seed of the calibration.
    """
    card, weights = fetch_measured(cache=cache, tell=tell)
    calibration = load_calibration(CARD, card)
    if seed == calibration.seed:
        raise ConfigError(
            f"bench: --seed {seed} is that of the calibration, whose replies set the bet that they "
            "would be held against; give another"
        )
    counts = {name: min(count, replies or count) for name, count in REPLIES.items()}
    _collect(out, weights, counts, seed=seed, tell=tell, progress=progress)
    tokenizer = Tokenizer(weights)
    reference = load_engine("transformers", weights, tokenizer)
    plan = plan_audit(AuditSection(policy="screen", seed=seed, top_logprobs=0))
    results = begin_results(seed=seed) | describe_bet(calibration)
    results |= {"policy": "screen", "max_tokens": MAX_TOKENS, "stacks": []}
    for name, first in _firsts(counts).items():
        tell(f"scoring {name}")
        ledger = score_corpus(
            out / name, engine=reference, tokenizer=tokenizer, with_logprobs=False,
            progress=progress,
        )  # fmt: skip
        audits = [
            [first + audit.first, audit.replies, audit.decision, audit.log_e]
            for audit in replay(
                plan, ledger, read_outcomes(out / name, max_attempts=MAX_ATTEMPTS), most=10**6
            )
        ]
        results["stacks"].append(sum_up_stack(name, plan, ledger) | {EACH: audits})
        write_results(out, PART, results)
    reference.close()
    made = calibration.model_copy(update={"certificate": certify(results)})
    write_json(out / f"{CARD}.calibration.json", made.model_dump(mode="json"))
    return results_path(out, PART)


def _firsts(counts: Mapping[str, int]) -> dict[str, int]:
    """Where the probes of each stack begin: no two stacks are asked the same."""
    ends = np.cumsum([0, *(REPLIES[name] for name in counts)])
    return dict(zip(counts, ends.tolist(), strict=False))


def _collect(
    out: Path, weights: Path, counts: Mapping[str, int], *, seed: int, tell: Tell,
    progress: Progress | None,
) -> None:  # fmt: skip
    """Ask every stack what it has not answered yet, one engine after another."""
    probes = draw(load_pool(), seed=seed, count=sum(REPLIES.values()), max_tokens=MAX_TOKENS)
    tokenizer = Tokenizer(weights)
    for name, first in _firsts(counts).items():
        own, stack = probes[first : first + REPLIES[name]], read_stack(name)
        begun = read_probes(out / name) if (out / name).is_dir() else ()
        if begun and begun != own:
            raise ConfigError(f"{out / name}: holds replies to other probes; give another DIR")
        if begun and is_collected(out / name, own[: counts[name]]):
            continue
        host = load_host(weights, tokenizer, stack)
        for limit in (*range(_CHUNK, counts[name], _CHUNK), counts[name]):
            tell(f"asking {name}: {limit} of {counts[name]}")
            collect_corpus(
                out / name, stack, own, limit=limit, engine=host, tokenizer=tokenizer,
                progress=progress,
            )  # fmt: skip
        host.close()  # freed before the next is loaded


def describe_bet(calibration: Calibration) -> dict[str, Any]:
    """What the ratios are taken against, and how they are bounded."""
    honest = honest_scales(TEXT_SCALES, calibration.text)
    return {
        "cap": CAP,
        "level": LEVEL,
        "largest_honest_scale": float(TEXT_SCALES[honest][-1]),
        "spread": calibration.text.spread,
        "learning_rate": calibration.text.learning_rate,
    }


def sum_up_stack(name: str, plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """One stack: the tally of its ratios, and what bounds their mean."""
    case = make_case(plan, ledger)
    ratios = capped_ratios(case.text, case.honest)
    tally = tally_ratios(ratios)
    return {
        "stack": name,
        "replies": len(ratios),
        "tokens": sum(row.tokens for row in ledger.rows),
        "mean": round(float(np.exp(ratios).mean()), 4),
        "deviation": round(float(np.exp(ratios).std(ddof=1)), 4),
        "largest": round(float(np.exp(ratios).max()), 3),
        "bound": round(bound_mean(tally, level=LEVEL), 4),
        "tally": [[value, count] for value, count in tally.items()],
    }


def certify(results: Mapping[str, Any]) -> BetCertificate:
    """The certificate of a results file: the largest bound of its stacks."""
    stacks = results["stacks"]
    return BetCertificate(
        replies=sum(stack["replies"] for stack in stacks),
        stacks=tuple(stack["stack"] for stack in stacks),
        level=results["level"],
        excess=max(0.0, *(stack["bound"] - 1 for stack in stacks)),
        largest_honest_scale=results["largest_honest_scale"],
        spread=results["spread"],
        learning_rate=results["learning_rate"],
    )


def tabulate_certificate(results: dict[str, Any]) -> str:
    """Each stack: its replies, what their ratios are, and what bounds the mean; and its audits."""
    head = ("host", "replies", "mean ratio", "largest", f"mean at most ({results['level']:.0%})",
            "audits", "inconsistent")  # fmt: skip
    rows = []
    for stack in results["stacks"]:
        audits = count_decisions(audit[2] for audit in stack[EACH])
        rows.append(
            (
                stack["stack"], stack["replies"], f"{stack['mean']:.3f}", f"{stack['largest']:.3g}",
                f"{stack['bound']:.3f}", len(stack[EACH]), audits["inconsistent"],
            )
        )  # fmt: skip
    return tabulate_rows(head, rows)
