"""One audit: a loop over what the checks ask. Read this file first.

    run file -> plan -> ask -> score -> decide -> report

A check asks a round through the session and scores it; then the run folder is read, decided and
published anew, and the next check sees where the audit stands. An audit that was killed goes on
where it was.
"""

from __future__ import annotations

from verifier.checks import CHECKS
from verifier.checks.check import STAGES, Case, Stage
from verifier.config import RunFile
from verifier.files.finished import bytes_sent, note_finished
from verifier.progress import ALONE, Pace, Show
from verifier.records import Report
from verifier.reference.loaded import LoadReference
from verifier.session import Session
from verifier.steps import open_session, write_page


def audit(
    config: RunFile,
    *,
    api_key: str | None,
    load_reference: LoadReference,
    show: Show,
    pace: Pace = ALONE,
) -> Report:
    """Audit the endpoint of a run file; the run folder is its `out`.

    Asks in small batches and stops as soon as the policy is decided or the budget would be
    crossed. The reference is loaded once the first answer is there, so that a wrong address, key or
    model is told before that. Raises a VerifierError with everything kept that had arrived.
    """
    session = open_session(
        config, api_key=api_key, load_reference=load_reference, show=show, pace=pace
    )
    sent = bytes_sent(config.out)
    case = session.read()
    if case.outcomes:  # of an audit that was stopped
        session.score()
        case = session.read()
    for stage in STAGES:  # never back: greedy, then samples, then long, then names
        session.begin(stage)
        asking = True
        while asking:
            case, asking = _ask_round(session, case, stage)
    settled = case.decision != "inconclusive" or bytes_sent(config.out) == sent
    if settled and not session.pace.late():
        note_finished(config.out, case.decision)
    return write_page(config.out)


def _ask_round(session: Session, case: Case, stage: Stage) -> tuple[Case, bool]:
    """Let each check of a stage ask once; the case as it is then, and whether any did."""
    asking = False
    for check in CHECKS:
        ask = check.ask.get(stage)
        if ask is not None and ask(session, case, case.kept[check.name]):
            case, asking = session.read(), True
    return case, asking
