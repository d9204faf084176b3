"""What audits from a pack say of hosts whose truth is known, and what they cost beside weights.

Each host of the main table answers every question of a pack once; audits draw from these replies,
each in an order of its own, and read them twice: from the pack, and under the weights. So what a
pack loses is told on the very same replies. Questions are shared by audits of one host, so these
are not independent: rates are of this pack's questions.

The same replies are read a third and a fourth time, from packs that are recorded here of an honest
host, asked the same questions over HTTP: by its log-probabilities, and by its texts alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from verifier.config import AuditSection
from verifier.evidence.ledger import Ledger
from verifier.evidence.stacks import read_beside
from verifier.host.budget import Ceiling
from verifier.host.collect import read_outcomes
from verifier.lab.bench.precision import Audit, plan_audit, replay
from verifier.lab.bench.results import (
    CARD,
    begin_results,
    count_decisions,
    fetch_measured,
    results_path,
    spread,
    tabulate_rows,
    write_results,
)
from verifier.lab.corpus import (
    MAX_ATTEMPTS,
    RememberingEngine,
    Stack,
    load_host,
    make_endpoint,
    make_host,
    score_corpus,
)
from verifier.lab.demo import shipped_pack
from verifier.lab.generated import generate_corpus
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.server import running
from verifier.lab.trusted import Asking, Wanted, is_measured, record_pack
from verifier.lab.trusted import Host as Trustee
from verifier.plan import facts_of, told_by, versions
from verifier.plan_file import Plan
from verifier.probes import load_pool
from verifier.progress import Show
from verifier.records import REFERENCE, Outcome, Reply
from verifier.reference.calibrations import load_calibration
from verifier.reference.cards import load_card
from verifier.reference.engines import Engine
from verifier.reference.engines.load import load_engine
from verifier.reference.pack_file import Pack, pack_bytes, read_pack, write_pack
from verifier.reference.renderings.catalogue import PUBLISHED
from verifier.reference.tokenizer import Tokenizer
from verifier.scoring.packed import score_from_pack

PART: Final = "packs"

#: Audits of each host, the policy that they are held to, and the replies they are served in.
HOSTS: Final[Mapping[str, tuple[str, int]]] = {
    "reference": ("screen", 100),
    "int4-asym-g64": ("screen", 40),
    "nf4-g64": ("screen", 40),
    "int3-g64": ("screen", 40),
    "drop-1": ("screen", 40),
    "fp8-channel": ("standard", 40),
}

#: How the trusted host computes, and the policies that its packs serve.
TRUSTED: Final = Stack(dtype="bfloat16", batch=8)
_SERVED: Final[Mapping[Wanted, tuple[str, ...]]] = {
    "scores": ("screen", "standard"), "texts": ("screen",),
}  # fmt: skip

#: How the hosts compute.
_DTYPE: Final = "bfloat16"
_BATCH: Final = 32


def run_pack_bench(
    out: Path,
    *,
    pack: Path | None = None,
    seed: int,
    cache: Path,
    tell: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Measure every host in `out`; the path of the results. Goes on where it was stopped."""
    found = read_pack(pack or shipped_pack())
    _, weights = fetch_measured(cache=cache, tell=tell)
    tokenizer = Tokenizer(weights)
    results: dict[str, Any] = begin_results(seed=seed) | {
        "pack": {"digest": found.digest, "questions": len(found.ordinary)}, "figures": [],
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    said = record_packs(out, found, weights, tokenizer, tell=tell, progress=progress)
    reference = RememberingEngine(load_engine("transformers", weights, tokenizer))
    host: Engine | None = None
    for name, (policy, audits) in HOSTS.items():
        tell(f"measuring {name}")
        stack = Stack(dtype=_DTYPE, batch=_BATCH, weights=name)
        host = host or load_host(weights, tokenizer, stack)
        folder = out / stack.name
        generate_corpus(
            folder, stack, found.ordinary, engine=host, tokenizer=tokenizer, progress=progress
        )
        outcomes = _texts(read_outcomes(folder, max_attempts=MAX_ATTEMPTS))
        whole = score_corpus(
            folder, engine=reference, tokenizer=tokenizer, with_logprobs=False, progress=progress
        )
        packed = score_from_pack(folder, found.ordinary, outcomes, pack=found)
        plan = plan_audit(AuditSection(policy=policy, seed=seed, top_logprobs=0))
        figure = {"host": name, "policy": policy, "questions": len(found.ordinary)}
        for what, ledger in (("pack", packed), ("weights", whole)):
            figure[what] = sum_up(repeated(plan, ledger, outcomes, audits=audits, seed=seed))
        for wanted, own in said.items():
            if policy in _SERVED[wanted]:
                ledger = score_from_pack(folder, found.ordinary, outcomes, pack=own)
                rows = replace(ledger, rows=tuple(r for r in ledger.rows if r.unjudged is None))
                told = planned_on(plan, own, rows)
                figure[wanted] = sum_up(repeated(told, rows, outcomes, audits=audits, seed=seed))
        results["figures"].append(figure)
        write_results(out, PART, results)
    return results_path(out, PART)


def record_packs(
    out: Path, like: Pack, weights: Path, tokenizer: Tokenizer, *,
    tell: Callable[[str], None], progress: Callable[[int, int], None] | None = None,
) -> dict[Wanted, Pack]:  # fmt: skip
    """What an honest host says of the questions of a pack, by its log-probabilities and by its
    texts; recorded once in `out`."""
    card, pool = load_card(CARD), load_pool()
    show = Show(tell=tell, step=lambda _name, done, of: progress and progress(done, of))
    found: dict[Wanted, Pack] = {}
    for wanted in _SERVED:
        path = out / f"{wanted}.pack"
        if not path.exists():
            tell(f"recording {wanted} of an honest host")
            engine = load_host(weights, tokenizer, TRUSTED)
            host = make_host(TRUSTED, engine=engine, tokenizer=tokenizer)
            with running(create_app(host)) as url:
                endpoint = replace(make_endpoint(url, TRUSTED), concurrency=TRUSTED.batch)
                ceiling = Ceiling(completion_tokens=10**6, usd=None, prices=None)
                asking = Asking(
                    questions=len(like.ordinary), seed=like.manifest.seed,
                    tokens=like.manifest.max_tokens, wanted=wanted,
                    host=Trustee(endpoint=endpoint, ceiling=ceiling),
                )  # fmt: skip
                made = record_pack(
                    asking, card, pool, {REFERENCE: PUBLISHED},
                    calibration=load_calibration(CARD, card), same_model=is_measured(card),
                    tokenizer=tokenizer, versions=versions(), made_on=like.manifest.made_on,
                    work=out / f"{wanted}.work", show=show,
                )  # fmt: skip
            write_pack(path, pack_bytes(*made, key=None))
        found[wanted] = read_pack(path)
    return found


def planned_on(plan: Plan, pack: Pack, ledger: Ledger) -> Plan:
    """The plan of an audit from a pack of a trusted host, with the floor that holds for it."""
    facts = facts_of(pack)
    return plan.model_copy(
        update={
            "pack": facts,
            "policy": told_by(facts, plan.policy),
            "calibrated": read_beside(plan.calibration, ledger.engine).calibration,
        }
    )


def _texts(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """The same without log-probabilities: the text alone is read."""
    return {
        name: replace(one, logprobs=None, logprobs_problem=None) if isinstance(one, Reply) else one
        for name, one in outcomes.items()
    }


def repeated(
    plan: Plan, ledger: Ledger, outcomes: Mapping[str, Outcome], *, audits: int, seed: int
) -> list[Audit]:
    """So many audits, each of the same replies in an order of its own; those that run out of
    replies are left out."""
    found = []
    for number in range(audits):
        rows = list(ledger.rows)
        random.Random(f"{seed}:{number}").shuffle(rows)  # noqa: S311 - a seed gives the audit
        own = plan.model_copy(update={"seed": plan.seed + number})
        found += replay(own, Ledger(rows=tuple(rows)), outcomes, most=1)
    return found


def sum_up(audits: Sequence[Audit]) -> dict[str, Any]:
    """What audits of one host came to."""
    return {
        "audits": len(audits),
        "decisions": count_decisions(audit.decision for audit in audits),
        "replies": spread([audit.replies for audit in audits]),
        "completion_tokens": spread([audit.completion_tokens for audit in audits]),
        "each": [asdict(audit) for audit in audits],
    }


#: What the same replies were read from, beside the weights: words of the table.
_FROM: Final = {"pack": "pack of weights", "scores": "a host's scores", "texts": "a host's texts"}


def tabulate_packs(results: Mapping[str, Any]) -> str:
    """A row a host and kind of pack: verdicts from it, and what they cost beside weights."""
    head = ("host", "from", "policy", "audits", "consistent", "inconsistent", "inconclusive",
            "replies (90 % within)", "tokens", "tokens with weights")  # fmt: skip
    rows = []
    for what, figure in ((w, f) for w in _FROM for f in results["figures"] if w in f):
        own, beside = figure[what], figure["weights"]
        replies, tokens = own["replies"], own["completion_tokens"]
        known = own["audits"] and beside["audits"]
        rows.append(
            (
                "honest" if figure["host"] == "reference" else figure["host"],
                _FROM[what],
                figure["policy"],
                own["audits"],
                *(own["decisions"][n] for n in ("consistent", "inconsistent", "inconclusive")),
                f"{replies['median']:.0f} ({replies['p90']:.0f})" if known else "-",
                f"{tokens['median']:.0f}" if known else "-",
                f"{beside['completion_tokens']['median']:.0f}" if known else "-",
            )
        )
    return tabulate_rows(head, rows)
