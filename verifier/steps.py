"""The steps of an audit, each of which can be run alone.

    run file -> plan -> probes -> collect -> score -> ledger -> decide -> report

Each reads files of the run folder and writes the next.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from verifier.checks import CHECKS
from verifier.checks.capabilities.findings import CHECK as CAPABILITIES
from verifier.checks.capabilities.probe import Capabilities, read_capabilities, why_silent
from verifier.checks.cause import score_for_name
from verifier.checks.check import UNKNOWN_RENDERING, beyond_reach
from verifier.checks.template.panel import read_prompts
from verifier.config import RunFile, dump_run_file, load_run_file
from verifier.errors import ConfigError, EndpointError
from verifier.files.finished import finished_with
from verifier.files.run_folder import (
    DEADLINE,
    EXCHANGES,
    LEDGER,
    LOCK,
    PAGE,
    PLAN,
    PROBES,
    RUN,
    SAMPLED,
    write_json,
    write_whole,
)
from verifier.host.collect import Record
from verifier.host.endpoint import Endpoint, trusted_by
from verifier.plan import make_plan
from verifier.plan_file import Plan, batch_ends, read_plan, read_probes, write_plan
from verifier.probes import load_pool
from verifier.progress import ALONE, Pace, Show, until
from verifier.prompts import Render
from verifier.records import Report
from verifier.reference.calibrations import is_calibrated
from verifier.reference.cards import load_card
from verifier.reference.loaded import (
    LoadReference,
    Reference,
    load_once,
    open_pack,
    render_as_ids,
)
from verifier.reference.provisional import calibration_for
from verifier.report_file import read_report
from verifier.reports.html import render_page
from verifier.scoring.loadable import (
    refuse_engine_of_name,
    refuse_unknown_builds,
    refuse_unscored_defaults,
)
from verifier.scoring.other_words import refuse_other_words
from verifier.scoring.score import is_sampler
from verifier.scoring.score_file import forget_scores, scored_columns
from verifier.session import Session
from verifier.verdict.case import own_ledger
from verifier.verdict.chain import read_chain
from verifier.verdict.decide import judge_folder
from verifier.verdict.usage import when_asked
from verifier.wording import describe_seconds

if TYPE_CHECKING:
    from verifier.reference.pack_file import Pack


def open_session(
    config: RunFile, *, api_key: str | None, load_reference: LoadReference, show: Show, pace: Pace
) -> Session:
    """Everything that an audit needs before its first request.

    The reference is loaded when it is first needed. That is after the first answers, so that a
    wrong address, key or model is told before minutes of loading, and only these are spent on an
    audit that cannot be scored; text completions are rendered by the reference, and wait for it.
    Writes the plan, or takes up the one that is there. Raises a VerifierError.
    """
    run = config.out
    start(config)
    plan = judged_plan(run)
    for hidden in beyond_reach(plan) if plan.calibrated is not None else ():
        show.tell(
            f"{hidden}: within what honest serving shows on {plan.card}, so no audit of policy "
            f"{plan.policy_name} can end consistent"
        )
    (run / DEADLINE).unlink(missing_ok=True)
    make_endpoint(config, api_key=api_key)  # what it refuses should not wait for the reference
    read_probes(run)
    pack = pack_of(config, plan)
    if pack is not None and not config.reference.has_weights:
        refuse_engine_of_name(plan, "pack")
        endpoint = make_endpoint(config, api_key=api_key)
        pace = until(pace, config.audit.deadline)
        return Session(run, plan, show, config=config, endpoint=endpoint, pack=pack, pace=pace)
    refuse_engine_of_name(plan, config.reference.engine)

    def checked() -> Reference:
        reference = load_reference()
        refuse_unknown_builds(plan, reference.engine)
        refuse_unscored_defaults(plan, reference.engine)
        if pack is not None:
            refuse_other_words(pack, reference, plan)
        return reference

    load = load_once(checked)
    rendered = config.endpoint.dialect == "completions"
    endpoint = replace(
        make_endpoint(
            config, api_key=api_key, render=render_as_ids(load().tokenizer) if rendered else None
        ),
        count_tokens=lambda text: len(load().tokenizer.encode(text)),
    )
    return Session(
        run, plan, show, config=config, endpoint=endpoint, load_reference=load,
        pace=until(pace, config.audit.deadline),
    )  # fmt: skip


def start(config: RunFile) -> Plan:
    """Write the plan of a run, or take up the one its folder holds.

    Raises ConfigError when the folder holds another run.
    """
    run = config.out
    if (run / PLAN).exists():
        before = load_run_file(run / RUN, below=run)
        # how long a command may take says nothing of what it does
        now = before.audit.model_copy(update={"deadline": config.audit.deadline})
        same = before.model_copy(update={"out": config.out, "audit": now}) == config
        if not same:
            raise ConfigError(
                f"{run}: holds another run; give another --out, or the run file {run / RUN} to go "
                "on with it"
            )
        return read_plan(run)
    if run.exists() and not (run.is_dir() and all(map(_is_of_a_plan, run.iterdir()))):
        raise ConfigError(f"{run}: exists and is no run folder; give another --out")
    pack = open_pack(config.reference)
    if config.reference.has_weights:
        card = load_card(config.reference.card)
        calibration = calibration_for(config.reference.card, card)
    else:
        assert pack is not None
        card, calibration = pack.card, pack.manifest.calibration
    earlier = config.audit.after
    after = None
    if earlier is not None and pack is None:  # with a pack it is refused
        after = read_chain(earlier, config, card)
    plan, probes, further = make_plan(
        config, card, calibration, load_pool(), after=after, pack=pack
    )
    write_plan(run, dump_run_file(config), plan, probes, further)
    return plan


def pack_of(config: RunFile, plan: Plan) -> Pack | None:
    """The pack that a run is judged from, or that lends it questions; None: it has none.

    Raises ConfigError for another pack than the one that the run was planned on.
    """
    if plan.pack is None:
        return None
    pack = open_pack(config.reference)
    found = "none" if pack is None else pack.digest[:16]
    if pack is None or pack.digest != plan.pack.digest:
        raise ConfigError(
            f"reference.pack: the run was planned on the pack {plan.pack.digest[:16]}, and this is "
            f"{found}; give that one, or plan another --out"
        )
    return pack


def judged_plan(run: Path) -> Plan:
    """The plan of a run that is to be judged; one that was made while its card was not calibrated
    is made again once it is, for the same probes, as long as nothing was judged.

    Raises a VerifierError where the probes would be others.
    """
    plan = read_plan(run)
    lent = plan.calibrated is None or plan.calibrated.provisional is not None
    if plan.pack is not None and not plan.pack.with_weights:  # it has a calibration of its own
        return plan
    if not lent or (plan.calibrated is not None and (run / LEDGER).exists()):
        return plan
    config = load_run_file(run / RUN, below=run)
    if plan.calibrated is not None and not is_calibrated(config.reference.card):
        return plan
    card = load_card(config.reference.card)
    seeded = config.model_copy(
        update={"audit": config.audit.model_copy(update={"seed": plan.seed})}
    )
    made, probes, _ = make_plan(
        seeded, card, calibration_for(config.reference.card, card), load_pool(), after=plan.after,
        pack=pack_of(config, plan),
    )  # fmt: skip
    if probes != read_probes(run):
        raise ConfigError(
            f"{run}: holds other probes than this version would draw; plan another --out"
        )
    made = made.model_copy(update={"configuration": plan.configuration})
    write_json(run / PLAN, made.model_dump(mode="json"))
    return made


def _is_of_a_plan(path: Path) -> bool:
    """Whether a kill while a plan was written may have left this file."""
    return path.name.removesuffix(".partial") in (RUN, PROBES, SAMPLED, PLAN, LOCK)


def make_endpoint(
    config: RunFile, *, api_key: str | None, render: Render | None = None
) -> Endpoint:
    """The endpoint of a run file, with its key; `render` makes prompts for text completions."""
    section = config.endpoint
    _refuse_key_in_run_folder(section.client_key, config.out)
    pinned = {"only": [section.provider], "allow_fallbacks": False, "require_parameters": True}
    made = Endpoint(
        base_url=section.base_url,
        model=section.model,
        api_key=api_key,
        api_key_env=section.api_key_env,
        api_key_header=section.api_key_header,
        ca_file=section.ca_file,
        client_certificate=section.client_certificate,
        client_key=section.client_key,
        max_tokens_field=section.max_tokens_field,
        timeout_s=section.timeout_s,
        connect_timeout_s=section.connect_timeout_s,
        read_timeout_s=section.read_timeout_s,
        stream=section.stream,
        concurrency=section.concurrency,
        max_attempts=section.max_attempts,
        requests_per_minute=section.requests_per_minute,
        top_logprobs=min(config.audit.top_logprobs, section.most_top_logprobs),
        dialect=section.dialect,
        logprobs_form=section.logprobs_form,
        extra_body=section.extra_body | ({"provider": pinned} if section.router else {}),
        headers=section.headers,
        render=render if section.dialect == "completions" else None,
    )
    if section.ca_file or section.client_certificate:
        trusted_by(made)  # files that cannot be used are refused before anything is sent
    return made


def _refuse_key_in_run_folder(path: Path | None, run: Path) -> None:
    """Refuse a client's private key in the folder that is passed on."""
    if path is not None and path.resolve().is_relative_to(run.resolve()):
        raise ConfigError(
            f"endpoint.client_key: {path} lies in the run folder; keep the key outside of it"
        )


# -- one step alone ----------------------------------------------------------------------------


def find_capabilities(config: RunFile, *, api_key: str | None, show: Show) -> Capabilities:
    """Plan the run if it is not planned yet, and find out what its endpoint can do.

    Raises EndpointError when the first question is not answered, or the deadline comes first.
    """
    plan, pace = start(config), until(ALONE, config.audit.deadline)
    endpoint = make_endpoint(config, api_key=api_key)
    config = config.model_copy(
        update={"audit": config.audit.model_copy(update={"capabilities": True})}
    )
    session = Session(config.out, plan, show, config=config, endpoint=endpoint, pace=pace)
    CAPABILITIES.ask["before"](session, session.read(), None)
    found = None if pace.late() else read_capabilities(config.out)
    if found is None:
        raise EndpointError(
            f"{endpoint.host}: the deadline of {describe_seconds(config.audit.deadline)} came "
            "first (audit.deadline); run the same command again"
        )
    if not found.answered:
        raise EndpointError(why_silent(config.out, endpoint))
    return found


def ask(run: Path, *, api_key: str | None, probes: int | None, show: Show) -> int:
    """Ask the first `probes` probes of a run (None: all), within its budget.

    Returns how many have an outcome.
    """
    plan, config = read_plan(run), load_run_file(run / RUN, below=run)
    if config.endpoint.dialect == "completions":
        raise ConfigError(
            f"{run / RUN}: endpoint.dialect: text completions are asked with prompts that the "
            "reference's tokenizer renders; run `verifier audit` instead"
        )
    pace = until(ALONE, config.audit.deadline)
    (run / DEADLINE).unlink(missing_ok=True)
    session = Session(
        run, plan, show, config=config, endpoint=make_endpoint(config, api_key=api_key), pace=pace
    )
    session.read()
    asked, sampled = read_probes(run)[:probes], read_probes(run, name=SAMPLED)
    session.begin("ordinary")
    for end in batch_ends(len(asked), stop=plan.min_replies):
        if not session.ask(asked[:end]) or pace.late():
            break
    session.begin("sampled")
    for end in batch_ends(len(sampled)) if probes is None else ():
        if not session.ask(sampled[:end]) or pace.late():
            break
    if pace.late():
        write_json(run / DEADLINE, {"deadline_s": pace.deadline_s})
        show.tell(f"the deadline of {describe_seconds(pace.deadline_s)} came first")
    return len(session.outcomes())


def score(
    run: Path, reference: Reference, *, show: Show, builds: bool = False, penalties: bool = False
) -> None:
    """Score what has arrived, and write the ledger.

    With `builds` the first replies under the bank and the suspects too, and with `penalties` under
    these, so that a cause can be named.
    """
    plan = judged_plan(run)
    refuse_unscored_defaults(plan, reference.engine)
    session = Session(run, plan, show, load_reference=lambda: reference)
    session.score()
    if builds or penalties:
        score_for_name(session, session.read(), sought=builds, penalties=penalties)


def score_packed(run: Path, *, show: Show) -> None:
    """Judge what has arrived from the pack of a run, and write the ledger."""
    plan, config = read_plan(run), load_run_file(run / RUN, below=run)
    refuse_engine_of_name(plan, "pack")
    Session(run, plan, show, pack=pack_of(config, plan)).score()


def score_anew(run: Path, reference: Reference, *, builds: bool, show: Show) -> None:
    """Remove every score of a run folder and compute them from its replies.

    The weights that had been scored to name a cause are scored again, and with `builds` all.
    """
    plan = judged_plan(run)
    had = scored_columns(run)
    again = builds or bool(had & {*plan.bank, *plan.suspects} - {*plan.policy.builds})
    able = reference.engine.scores_samplers and any(map(is_sampler, had))
    forget_scores(run)
    score(run, reference, builds=again, penalties=able, show=show)


def is_finished(run: Path) -> bool:
    """Whether the audit of a run folder came to its end, and would be decided alike by now."""
    noted = finished_with(run)
    if noted is None or not (run / LEDGER).exists():
        return False
    return judge_folder(run, writes=False)[1].decision == noted


def write_page(run: Path) -> Report:
    """Write the HTML page of a decided run folder; the report it shows."""
    report, page = render_folder(run)
    write_whole(run / PAGE, page)
    return report


def render_folder(run: Path) -> tuple[Report, str]:
    """The report of a decided run folder, and its HTML page."""
    plan, report, record = read_plan(run), read_report(run), Record(run)
    record.update()
    outcomes = record.outcomes(max_attempts=plan.max_attempts)
    if (run / LEDGER).exists():
        own_ledger(run, outcomes)  # a verdict on other replies is not shown
    if report.asked is None:  # by a version that did not say so
        report = replace(report, asked=when_asked(record.attempts))
    known = any(f.aspect == "template" and f.name != UNKNOWN_RENDERING for f in report.findings)
    page = render_page(
        report,
        outcomes=outcomes,
        probes=tuple(
            probe for check in CHECKS for asked in check.asked
            if (asked.folder, asked.exchanges) == ("", EXCHANGES) for probe in asked.probes(run)
        ),
        attempts=record.attempts,
        prompts=read_prompts(run) if known else None,
    )  # fmt: skip
    return report, page
