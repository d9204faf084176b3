"""The order of steps of one audit. Read this file first.

    run file -> plan -> probes -> collect -> score -> ledger -> decide -> report

Each step reads files of the run folder and writes the next, so every step can be redone alone and
an audit that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from verifier.checks.capabilities.probe import Capabilities, probe_capabilities, read_capabilities
from verifier.checks.capabilities.probe import apply as apply_capabilities
from verifier.checks.hidden_reasoning import can_turn_off, hides_thoughts, turn_off
from verifier.checks.length.ask_and_score import ask_about_context, score_context
from verifier.checks.sampling.ask_and_score import score_repeats, score_sampled
from verifier.checks.template.completions import ROUNDS as COMPLETED_ROUNDS
from verifier.checks.template.completions import read_bypass, to_complete
from verifier.checks.template.panel import look_at_template, read_prompts, score_panel
from verifier.checks.tokenizer import counting_probes, plan_counting, read_counting
from verifier.config import RunFile, dump_run_file, load_run_file
from verifier.errors import ConfigError, EndpointError
from verifier.evidence.ledger import read_ledger
from verifier.evidence.samplers import Sampler, penalty_columns
from verifier.files.run_folder import (
    COMPLETIONS,
    CONTEXT,
    DEADLINE,
    LEDGER,
    LOCK,
    PAGE,
    PANEL,
    PLAN,
    PROBES,
    RUN,
    SAMPLED,
    make_folder,
    write_json,
    write_whole,
)
from verifier.host.collect import read_attempts, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.plan import (
    Plan,
    batch_ends,
    make_plan,
    make_sampled,
    read_plan,
    read_probes,
    write_plan,
    write_probes,
)
from verifier.probes import load_pool
from verifier.progress import ALONE, Pace, Show, until
from verifier.prompts import Render
from verifier.records import REFERENCE, Outcome, Probe, Reply, Report
from verifier.reference.calibrations import load_calibration
from verifier.reference.cards import load_card, load_tokenizers
from verifier.reference.loaded import LoadReference, Reference, render_as_ids, render_as_text
from verifier.report_file import read_report
from verifier.reports.html import render_page
from verifier.scoring.loadable import nameable, refuse_unknown_builds
from verifier.scoring.score import is_sampler, score_replies
from verifier.scoring.score_file import forget_scores, scored_columns
from verifier.session import ask_within_budget, goes_on, open_purse
from verifier.verdict.decide import (
    asks_long,
    decide_folder,
    finds_single,
    is_far,
    judge_folder,
    may_be_sampled,
    names_template,
    own_ledger,
    publish,
    seeks_cause,
    suspects_template,
    suspicious,
    waits_for_long,
    wants_completions,
    wants_samples,
    wants_stratum,
)
from verifier.verdict.weigh import planned_samplers
from verifier.wording import describe_replies, describe_seconds

#: Replies on which a cause is named: more tell little, and each is scored under every build.
NAMING_REPLIES = 24


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
    crossed. The reference is loaded before the first request, so that nothing is spent on an
    audit that cannot be scored. Raises a VerifierError with everything kept that had arrived.
    """
    run, pace = config.out, until(pace, config.audit.deadline)
    plan = start(config)
    (run / DEADLINE).unlink(missing_ok=True)
    make_endpoint(config, api_key=api_key)  # what it refuses should not wait for the reference
    probes = read_probes(run)
    reference = load_reference()
    refuse_unknown_builds(plan, reference.engine)
    endpoint = replace(
        make_endpoint(config, api_key=api_key, render=render_as_ids(reference.tokenizer)),
        count_tokens=lambda text: len(reference.tokenizer.encode(text)),
    )
    known = read_capabilities(run)
    if known is None and config.audit.capabilities:
        show.tell("finding out what the endpoint can do")
        known = probe_capabilities(
            run, endpoint, purse=open_purse(run, plan, endpoint), stopped=pace.stopped
        )
    endpoint = endpoint if known is None else apply_capabilities(known, endpoint)
    found, looked = None, False
    if known is not None and known.reasoning == "hidden" and can_turn_off(plan, probes):
        probes = turn_off(run, plan)
    for number, end in enumerate(batch_ends(len(probes)), 1):
        pace.begin(number)
        ask_within_budget(run, plan, endpoint, probes[:end], show, pace)
        score(run, reference, show=show)
        if _hides_thoughts(run, plan, probes[:end]):
            show.tell("the endpoint hides thoughts: going on with thinking off")
            probes = turn_off(run, plan)
        if not looked and endpoint.dialect == "chat" and suspects_template(run):
            looked = True
            look_at_template(run, plan, endpoint, reference, show, pace)
        found = judge_folder(run)
        if pace.late():
            found = end_at_deadline(run, pace, found)
        show.tell(_standing(publish(run, found)))
        quiet = (plan.samplers and may_be_sampled(plan, found)) or waits_for_long(plan, found)
        ends = found.decision != "inconclusive" and not wants_stratum(plan, found, asked=end)
        if ends or quiet or pace.late() or not goes_on(run, plan, probes[:end]):
            break
    assert found is not None  # a plan has at least one probe
    if plan.samplers and may_be_sampled(plan, found):
        found = ask_for_samples(run, plan, endpoint, reference, show, pace)
    if asks_long(plan) and found.decision != "inconsistent":
        found = ask_for_long(run, plan, endpoint, reference, show, pace)
    sought = seeks_cause(found.findings) and not names_template(found)
    if found.decision == "inconsistent" and sought and is_far(found):
        count_tokens(run, plan, endpoint, reference, show, pace)
    if found.decision == "inconsistent" and (sought or finds_single(found, "detected")):
        able = reference.engine.scores_samplers
        score(
            run, reference, weights=nameable(plan, reference, show) if sought else (),
            penalties=penalty_columns() if able else {}, limit=NAMING_REPLIES, show=show,
        )  # fmt: skip
        found = judge_folder(run)
        publish(run, found)
    if endpoint.dialect == "chat" and wants_completions(found):
        ask_for_completions(run, plan, endpoint, reference, show, pace)
        decide_folder(run)
    if pace.late():
        publish(run, end_at_deadline(run, pace, judge_folder(run)))
    return write_page(run)


def end_at_deadline(run: Path, pace: Pace, found: Report) -> Report:
    """Keep that the deadline came before a verdict; the report that says so."""
    if found.decision != "inconclusive":
        return found
    write_json(run / DEADLINE, {"deadline_s": pace.deadline_s})
    return judge_folder(run)


def _hides_thoughts(run: Path, plan: Plan, probes: tuple[Probe, ...]) -> bool:
    ledger = read_ledger(run)
    outcomes = read_outcomes(run, max_attempts=plan.max_attempts)
    return hides_thoughts(plan, probes, ledger, outcomes)


def count_tokens(
    run: Path, plan: Plan, endpoint: Endpoint, reference: Reference, show: Show, pace: Pace
) -> None:
    """Ask the strings that tell tokenizers apart, one token each, within the budget."""
    like = read_probes(run)[0]
    known = read_counting(run)
    asked = (
        plan_counting(run, load_tokenizers(), reference.tokenizer, like=like)
        if known is None
        else counting_probes(known, like=like)
    )
    ask_within_budget(run, plan, endpoint, asked, show, pace)


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
    card = load_card(config.reference.card)
    calibration = load_calibration(config.reference.card, card)
    plan, probes = make_plan(config, card, calibration, load_pool())
    sampled = make_sampled(config, plan, load_pool(), len(probes))
    write_plan(run, dump_run_file(config), plan, probes, sampled)
    return plan


def _is_of_a_plan(path: Path) -> bool:
    """Whether a kill while a plan was written may have left this file."""
    return path.name.removesuffix(".partial") in (RUN, PROBES, SAMPLED, PLAN, LOCK)


def make_endpoint(
    config: RunFile, *, api_key: str | None, render: Render | None = None
) -> Endpoint:
    """The endpoint of a run file, with its key; `render` makes prompts for text completions."""
    section = config.endpoint
    pinned = {"only": [section.provider], "allow_fallbacks": False, "require_parameters": True}
    return Endpoint(
        base_url=section.base_url,
        model=section.model,
        api_key=api_key,
        api_key_env=section.api_key_env,
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


# -- the sampler -------------------------------------------------------------------------------


def ask_for_samples(
    run: Path, plan: Plan, endpoint: Endpoint, reference: Reference, show: Show, pace: Pace
) -> Report:
    """Ask at temperature 1 until it is decided how replies are sampled, or the budget ends."""
    sampled = read_probes(run, name=SAMPLED)
    found = judge_folder(run)
    able = reference.engine.scores_samplers and endpoint.top_logprobs > 0
    if not able:
        sampled = sampled[:3]  # one reply says why none can be judged; it is asked again, too
    for end in batch_ends(len(sampled)):
        ask_within_budget(run, plan, endpoint, sampled[:end], show, pace)
        score(run, reference, show=show)
        found = judge_folder(run)
        show.tell(_standing(publish(run, found)))
        if (able and not wants_samples(found)) or not goes_on(run, plan, sampled[:end]):
            break
    return found


def ask_for_long(
    run: Path, plan: Plan, endpoint: Endpoint, reference: Reference, show: Show, pace: Pace
) -> Report:
    """Ask for long prompts and long replies; the verdict with what they say."""

    def ask_some(some: tuple[Probe, ...]) -> Mapping[str, Outcome]:
        if some:
            ask_within_budget(run, plan, endpoint, some, show, pace)
        return read_outcomes(run, max_attempts=plan.max_attempts)

    ask_about_context(
        run, plan, engine=reference.engine, tokenizer=reference.tokenizer, busy=reference.busy,
        ask=ask_some,
    )  # fmt: skip
    return publish(run, judge_folder(run))


# -- without the template ----------------------------------------------------------------------


def ask_for_completions(
    run: Path, plan: Plan, endpoint: Endpoint, reference: Reference, show: Show, pace: Pace
) -> None:
    """Ask for text completions of rendered prompts, until they tell the weights from the template.

    They lie in a folder of their own: what they say decides no verdict. An endpoint that has none
    is told so by its first refusals.
    """
    folder = run / COMPLETIONS
    if not (folder / PROBES).exists():
        make_folder(folder)
        made = to_complete(read_probes(run), max_tokens=plan.max_tokens)
        write_probes(folder, made, name=PROBES)
    direct = replace(
        endpoint, dialect="completions", top_logprobs=0, render=render_as_text(reference.tokenizer)
    )
    probes = read_probes(folder)
    for size in COMPLETED_ROUNDS:
        found = read_bypass(run, plan)
        if found is not None and found.settled:
            break
        try:
            ask_within_budget(run, plan, direct, probes[:size], show, pace, folder=folder)
        except EndpointError as error:
            show.tell(f"text completions: {error}")
        score_completions(run, reference, show=show)
        outcomes = read_outcomes(folder, max_attempts=plan.max_attempts)
        if not all(probe.id in outcomes for probe in probes[:size]):
            break  # the budget's end, or the endpoint's refusal


def score_completions(run: Path, reference: Reference, *, show: Show) -> None:
    """Score the text completions that have arrived, where any were asked for."""
    plan, folder = read_plan(run), run / COMPLETIONS
    probes = read_probes(folder)
    if probes:
        with reference.busy:
            score_replies(
                folder, probes, read_outcomes(folder, max_attempts=plan.max_attempts),
                engine=reference.engine, tokenizer=reference.tokenizer,
                catalogue={REFERENCE: reference.catalogue[REFERENCE]}, thinking=plan.thinking,
                progress=lambda done, of: show.step("scoring", done, of),
            )  # fmt: skip


# -- the steps, each of which can be run alone -------------------------------------------------


def find_capabilities(config: RunFile, *, api_key: str | None) -> Capabilities:
    """Plan the run if it is not planned yet, and find out what its endpoint can do.

    Raises EndpointError when the deadline comes first.
    """
    pace = until(ALONE, config.audit.deadline)
    plan = start(config)
    endpoint = make_endpoint(config, api_key=api_key)
    purse = open_purse(config.out, plan, endpoint)
    found = probe_capabilities(config.out, endpoint, purse=purse, stopped=pace.stopped)
    if found is None:
        raise EndpointError(
            f"{endpoint.host}: the deadline of {describe_seconds(config.audit.deadline)} came "
            "first (audit.deadline); run the same command again"
        )
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
    asked = read_probes(run)[:probes]
    endpoint = make_endpoint(config, api_key=api_key)
    known = read_capabilities(run)
    endpoint = endpoint if known is None else apply_capabilities(known, endpoint)
    sampled = read_probes(run, name=SAMPLED) if probes is None else ()
    for some in (asked, sampled):
        for end in batch_ends(len(some)):
            ask_within_budget(run, plan, endpoint, some[:end], show, pace)
            if pace.late() or not goes_on(run, plan, some[:end]):
                break
    if pace.late():
        write_json(run / DEADLINE, {"deadline_s": pace.deadline_s})
        show.tell(f"the deadline of {describe_seconds(pace.deadline_s)} came first")
    return len(read_outcomes(run, max_attempts=plan.max_attempts))


def score(
    run: Path,
    reference: Reference,
    *,
    weights: tuple[str, ...] = (),
    limit: int | None = None,
    penalties: Mapping[str, Sampler] | None = None,
    show: Show,
) -> None:
    """Score what has arrived under the reference and the policy's builds, and write the ledger.

    A panel's replies are scored under template columns too. `weights` are further builds and
    `penalties` samplers, scored on the first `limit` replies only.
    """
    plan, probes = read_plan(run), read_probes(run)
    panel = read_probes(run, name=PANEL)
    outcomes = read_outcomes(run, max_attempts=plan.max_attempts)

    def score_some(
        some: tuple[Probe, ...], columns: tuple[str, ...],
        penalties: Mapping[str, Sampler] | None = None,
    ) -> None:  # fmt: skip
        score_replies(
            run, some, outcomes, every=(*probes, *panel), engine=reference.engine,
            tokenizer=reference.tokenizer, weights=columns, catalogue=reference.catalogue,
            suspects={n: read() for n, read in reference.suspects.items() if n in columns},
            penalties=penalties, thinking=plan.thinking,
            progress=lambda done, of: show.step("scoring", done, of),
        )  # fmt: skip

    with reference.busy:
        score_sampled(
            run, read_probes(run, name=SAMPLED), outcomes, engine=reference.engine,
            tokenizer=reference.tokenizer, samplers=planned_samplers(plan), thinking=plan.thinking,
            progress=lambda done, of: show.step("scoring", done, of),
        )  # fmt: skip
        score_repeats(
            run, read_probes(run, name=SAMPLED), outcomes, engine=reference.engine,
            tokenizer=reference.tokenizer,
        )  # fmt: skip
        score_some(probes, plan.policy.builds)
        if weights or penalties:
            replied = tuple(p for p in probes if isinstance(outcomes.get(p.id), Reply))
            first = suspicious(run)  # where only some replies are wrong, they tell what served them
            ranked = sorted(replied, key=lambda probe: probe.id not in first)
            score_some(tuple(ranked[:limit]), weights, penalties)
        if panel:
            score_panel(run, reference, panel=panel, show=show)
    score_completions(run, reference, show=show)


def score_anew(run: Path, reference: Reference, *, builds: bool, show: Show) -> None:
    """Remove every score of a run folder and compute them from its replies.

    The weights that had been scored to name a cause are scored again, and with `builds` all.
    """
    plan = read_plan(run)
    had = scored_columns(run)
    again = builds or bool(had & {*plan.bank, *plan.suspects} - {*plan.policy.builds})
    named = nameable(plan, reference, show) if again else ()
    able = reference.engine.scores_samplers and any(map(is_sampler, had))
    forget_scores(run)
    score(
        run, reference, weights=named, limit=NAMING_REPLIES,
        penalties=penalty_columns() if able else {}, show=show,
    )  # fmt: skip
    score_long(run, reference)


def score_long(run: Path, reference: Reference) -> None:
    """Score what long prompts and long replies brought, where any were asked for."""
    plan = read_plan(run)
    if asks_long(plan):
        score_context(
            run, plan, read_outcomes(run, max_attempts=plan.max_attempts),
            engine=reference.engine, tokenizer=reference.tokenizer, busy=reference.busy,
        )  # fmt: skip


def write_page(run: Path) -> Report:
    """Write the HTML page of a decided run folder; the report it shows."""
    report, page = render_folder(run)
    write_whole(run / PAGE, page)
    return report


def render_folder(run: Path) -> tuple[Report, str]:
    """The report of a decided run folder, and its HTML page."""
    plan = read_plan(run)
    report = read_report(run)
    outcomes = read_outcomes(run, max_attempts=plan.max_attempts)
    if (run / LEDGER).exists():
        own_ledger(run, outcomes)  # a verdict on other replies is not shown
    page = render_page(
        report,
        outcomes=outcomes,
        probes=tuple(
            p for name in (PROBES, PANEL, SAMPLED, CONTEXT) for p in read_probes(run, name=name)
        ),
        attempts=read_attempts(run),
        prompts=read_prompts(run, report),
    )
    return report, page


def _standing(report: Report) -> str:
    """Where an audit stands, in one line."""
    counts = [
        f"{sum(f.decision == status for f in report.findings)} {status}"
        for status in ("detected", "excluded", "undecided")
    ]
    usage = report.usage
    return (
        f"{describe_replies(usage.replies)}, {usage.completion_tokens} tokens: {', '.join(counts)}"
    )
