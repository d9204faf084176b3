"""What an endpoint can do, as a check: asked before all else, told beside the verdict.

Facts by their effect, no statistics; none of them says anything of the weights. What does not work
is not asked for, by any other check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from verifier.checks.capabilities.parameters import judge_parameters
from verifier.checks.capabilities.probe import (
    FORGED_ALPHA,
    Capabilities,
    apply,
    capability_probes,
    probe_capabilities,
    read_capabilities,
)
from verifier.checks.capabilities.questions import CAPABILITY_REQUESTS, CAPABILITY_TRIES
from verifier.checks.check import (
    Account,
    Asked,
    Aspect,
    Case,
    Check,
    Forecast,
    Remark,
    Session,
    make_finding,
)
from verifier.files.run_folder import CAPABILITY_EXCHANGES
from verifier.host.budget import Amount
from verifier.host.dialects import member
from verifier.host.endpoint import Endpoint
from verifier.plan_file import Plan
from verifier.records import Decision, Finding, Outcome

SAMPLES: Final = Aspect(
    name="samples", label="samples against their probabilities", place=170, role="remark",
    without_reference=True,
)  # fmt: skip
PARAMETERS: Final = Aspect(
    name="parameters", label="request parameters", place=180, role="remark",
    without_reference=True,
)  # fmt: skip


def read(run: Path, _plan: Plan, _outcomes: Mapping[str, Outcome]) -> Capabilities | None:
    """The record of what the endpoint can do."""
    return read_capabilities(run)


def tune(kept: Capabilities | None, endpoint: Endpoint) -> Endpoint:
    """The endpoint, asked for what works alone."""
    return endpoint if kept is None else apply(kept, endpoint)


def ask(session: Session, _case: Case, kept: Capabilities | None) -> bool:
    """Find out what the endpoint can do, unless it is known."""
    known = kept is not None and kept.answered
    if known or not session.config.audit.capabilities:
        return False
    if not session.finish(CHECK.name):
        return False
    session.show.tell("finding out what the endpoint can do")
    found = probe_capabilities(
        session.run, session.endpoint, purse=session.purse(), stopped=session.pace.stopped,
        tell=session.show.tell,
    )  # fmt: skip
    return found is not None


def name_it(
    case: Case, _evidence: None, _account: Account, _found: Sequence[Finding], _decision: Decision
) -> list[Finding]:
    """Samples that do not follow their probabilities, and parameters that are taken and ignored."""
    kept: Capabilities | None = case.kept[CHECK.name]
    if kept is None:
        return []
    found = (judge_samples(kept), judge_parameters(kept.parameters, PARAMETERS))
    return [one for one in found if one is not None]


def judge_samples(record: Capabilities) -> Finding | None:
    """Whether samples follow the probabilities reported with them; None: nothing could be told.

    It is no departure of a policy and decides no verdict: some publishers map the temperature that
    is asked to another one, and their samples do not follow the reported probabilities either.
    """
    if record.forged_log_e is None:
        return None
    name = "samples against the reported probabilities"
    if record.forged_log_e >= math.log(1 / FORGED_ALPHA):
        detail = (
            "tokens sampled at temperature 1 do not follow the log-probabilities reported with "
            "them: these are forged, or the temperature asked for is mapped to another"
        )
        return make_finding(SAMPLES, "detected", name, record.forged_log_e, detail)
    detail = "nothing speaks against the log-probabilities reported with sampled tokens"
    return make_finding(SAMPLES, "undecided", name, record.forged_log_e, detail)


def remarks(
    _case: Case, _evidence: None, _account: Account, found: Sequence[Finding]
) -> list[Remark]:
    """What was found against it, in words."""
    told = []
    for finding in found:
        if finding.aspect == SAMPLES.name and finding.decision == "detected":
            told.append(Remark(text=f"{finding.name}: {finding.detail}"))
        if finding.aspect == PARAMETERS.name:
            told.append(Remark(text=f"parameters are taken and {finding.name}: {finding.detail}"))
    return told


def spent(kept: Capabilities | None) -> Amount | None:
    """What the questions cost."""
    if kept is None:
        return None
    return Amount(
        requests=kept.requests, prompt_tokens=kept.prompt_tokens,
        completion_tokens=kept.completion_tokens,
    )  # fmt: skip


def forecast(plan: Plan) -> Forecast:
    """Each question once, and up to CAPABILITY_TRIES times: a host under load is asked again."""
    if member(plan.configuration.get("audit"), "capabilities") is not True:
        return Forecast()
    once, most = CAPABILITY_REQUESTS, CAPABILITY_REQUESTS * CAPABILITY_TRIES
    return Forecast(
        expected=Amount(requests=once, prompt_tokens=256 * once, completion_tokens=0),
        most=Amount(requests=most, prompt_tokens=256 * most, completion_tokens=0),
    )


CHECK: Final = Check[Capabilities | None, None](
    name="capabilities",
    read=read,
    none=None,
    aspects=(SAMPLES, PARAMETERS),
    forecast=forecast,
    name_it=name_it,
    remarks=remarks,
    tune=tune,
    ask={"before": ask},
    asked=(Asked(probes=lambda _run: capability_probes(), exchanges=CAPABILITY_EXCHANGES),),
    spent=spent,
)
