"""Earlier audits of an endpoint, whose evidence the next one goes on from.

An audit that is repeated until it comes out as wished proves nothing, unless all of them count. The
probes of each are drawn anew, so that under honest serving the product of their e-values is again
one, at whatever point anyone stops (Ramdas et al. 2023, "Game-theoretic statistics and safe
anytime-valid inference", on optional continuation).
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from verifier.config import RunFile
from verifier.errors import ConfigError
from verifier.files.run_folder import LEDGER
from verifier.records import After
from verifier.reference.cards import Card
from verifier.report_file import report_to_json
from verifier.verdict.case import read_case
from verifier.verdict.decide import decided, judge_folder


def read_chain(run: Path, config: RunFile, card: Card) -> After:
    """What the audits up to that of a run folder say, decided anew from what the folder holds.

    Raises ConfigError where it is an audit of something else, of the same probes, or one that came
    to nothing which could be gone on from.
    """
    if not (run / LEDGER).is_file():
        raise ConfigError(f"{run}: audit.after: nothing is scored there; give an audit that ended")
    case = read_case(run)
    plan = case.plan
    _refuse_another(run, plan.configuration, config)
    if (plan.card, plan.tensors_sha256) != (card.name, card.digests.tensors_sha256):
        raise ConfigError(
            f"{run}: audit.after: held to card {plan.card}, this one to {card.name} or to other "
            "weights of that name"
        )
    if config.audit.seed == plan.seed:
        raise ConfigError(
            f"{run}: audit.after: asked the probes of seed {plan.seed}; leave audit.seed out, so "
            "that new ones are drawn"
        )
    report, _ = decided(case)
    stands, case = judge_folder(run, writes=False)
    if stands.decision != report.decision:
        raise ConfigError(
            f"{run}: audit.after: what it found was withdrawn beside its control, so there is "
            "nothing to go on from"
        )
    told = json.dumps(report_to_json(stands), sort_keys=True).encode()
    earlier = () if plan.after is None else plan.after.decisions
    return After(
        report_sha256=sha256(told).hexdigest(),
        decisions=(*earlier, report.decision),
        log_e=round(case.log_e, 6),
    )


def _refuse_another(run: Path, before: dict[str, object], config: RunFile) -> None:
    """Raise ConfigError where the earlier audit asked another endpoint."""
    asked = before.get("endpoint")
    for key in ("base_url", "model"):
        then = asked.get(key) if isinstance(asked, dict) else None
        if then != getattr(config.endpoint, key):
            raise ConfigError(
                f"{run}: audit.after: endpoint.{key} was {then}; an audit goes on from one of the "
                "same endpoint and model"
            )
