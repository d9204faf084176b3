"""The order of steps of one audit. Read this file first.

    run file -> plan -> probes -> collect -> score -> ledger -> decide -> report

Each step reads files of the run folder and writes the next, so every step can be redone alone and
an audit that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from verifier.capabilities import Capabilities, probe_capabilities, read_capabilities
from verifier.capabilities import apply as apply_capabilities
from verifier.collect import STOP_AFTER_FAILURES, collect, read_attempts, read_outcomes
from verifier.config import RunFile, dump_run_file, load_run_file
from verifier.decide import decide_folder
from verifier.endpoint import Endpoint, Render
from verifier.engines import Engine
from verifier.errors import ConfigError
from verifier.folder import PAGE, PLAN, PROBES, REPORT, RUN, read_json, write_whole
from verifier.plan import Plan, batch_ends, make_plan, read_plan, read_probes, write_plan
from verifier.probes import load_pool
from verifier.records import Failure, Probe, Reply, Report
from verifier.reference import (
    check_weights,
    fetch_weights,
    load_calibration,
    load_card,
)
from verifier.report import render_page, report_from_json
from verifier.score import Reader, score_replies
from verifier.wording import describe_replies

#: Replies on which a cause is named: more tell little, and each is scored under every build.
NAMING_REPLIES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """Where progress goes. `tell` gets a line, `step` a name, how much is done, and of how much."""

    tell: Callable[[str], None]
    step: Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The local weights, loaded: what scores, and what reads texts."""

    engine: Engine
    tokenizer: Reader


LoadReference = Callable[[], Reference]


def audit(
    config: RunFile, *, api_key: str | None, load_reference: LoadReference, show: Show
) -> Report:
    """Audit the endpoint of a run file; the run folder is its `out`.

    Asks in small batches and stops as soon as the policy is decided or the budget would be
    crossed. The reference is loaded before the first request, so that nothing is spent on an
    audit that cannot be scored. Raises a VerifierError with everything kept that had arrived.
    """
    run = config.out
    plan = start(config)
    make_endpoint(config, api_key=api_key)  # what it refuses should not wait for the reference
    probes = read_probes(run)
    reference = load_reference()
    endpoint = make_endpoint(config, api_key=api_key, render=reference.tokenizer.render)
    known = read_capabilities(run)
    endpoint = endpoint if known is None else apply_capabilities(known, endpoint)
    report = None
    for end in batch_ends(len(probes)):
        _collect_within_budget(run, plan, endpoint, probes[:end], show)
        score(run, reference, show=show)
        report = decide_folder(run)
        show.tell(_standing(report))
        if report.decision != "inconclusive" or not _goes_on(run, plan, probes[:end]):
            break
    assert report is not None  # a plan has at least one probe
    if report.decision == "inconsistent":
        score(run, reference, weights=plan.bank, limit=NAMING_REPLIES, show=show)
        report = decide_folder(run)
    write_page(run)
    return report


def start(config: RunFile) -> Plan:
    """Write the plan of a run, or take up the one its folder holds.

    Raises ConfigError when the folder holds another run.
    """
    run = config.out
    if (run / PLAN).exists():
        before = load_run_file(run / RUN)
        same = before.model_copy(update={"out": config.out}) == config
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
    write_plan(run, dump_run_file(config), plan, probes)
    return plan


def _is_of_a_plan(path: Path) -> bool:
    """Whether a kill while a plan was written may have left this file."""
    return path.name.removesuffix(".partial") in (RUN, PROBES, PLAN)


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


def reference_loader(config: RunFile, *, cache: Path, show: Show) -> LoadReference:
    """Loads the card's weights with transformers, once they are fetched and checked."""

    def load() -> Reference:
        card = load_card(config.reference.card)
        weights = config.reference.weights
        if weights is None:
            weights = fetch_weights(card, cache=cache, tell=show.tell)
        elif not weights.is_dir():
            raise ConfigError(f"reference.weights: no directory {weights}")
        check_weights(card, weights)
        show.tell(f"loading {card.name}")
        from verifier.engines.transformers import TransformersEngine
        from verifier.tokens import Tokenizer

        tokenizer = Tokenizer(weights)
        engine = TransformersEngine(
            weights, eos_ids=(tokenizer.eos_id,), dtype=config.reference.dtype
        )
        return Reference(engine=engine, tokenizer=tokenizer)

    return load


# -- the steps, each of which can be run alone -------------------------------------------------


def find_capabilities(config: RunFile, *, api_key: str | None) -> Capabilities:
    """Plan the run if it is not planned yet, and find out what its endpoint can do."""
    start(config)
    return probe_capabilities(config.out, make_endpoint(config, api_key=api_key))


def ask(run: Path, *, api_key: str | None, probes: int | None, show: Show) -> int:
    """Ask the first `probes` probes of a run (None: all), within its budget.

    Returns how many have an outcome.
    """
    plan, config = read_plan(run), load_run_file(run / RUN)
    if config.endpoint.dialect == "completions":
        raise ConfigError(
            f"{run / RUN}: endpoint.dialect: text completions are asked with prompts that the "
            "reference's tokenizer renders; run `verifier audit` instead"
        )
    asked = read_probes(run)[:probes]
    endpoint = make_endpoint(config, api_key=api_key)
    known = read_capabilities(run)
    endpoint = endpoint if known is None else apply_capabilities(known, endpoint)
    for end in batch_ends(len(asked)):
        _collect_within_budget(run, plan, endpoint, asked[:end], show)
        if not _goes_on(run, plan, asked[:end]):
            break
    return len(read_outcomes(run, max_attempts=plan.max_attempts))


def score(
    run: Path,
    reference: Reference,
    *,
    weights: tuple[str, ...] = (),
    limit: int | None = None,
    show: Show,
) -> None:
    """Score what has arrived under the reference and the policy's builds, and write the ledger.

    `weights` are further builds, scored on the first `limit` replies only.
    """
    plan, probes = read_plan(run), read_probes(run)
    outcomes = read_outcomes(run, max_attempts=plan.max_attempts)

    def score_some(some: tuple[Probe, ...], columns: tuple[str, ...]) -> None:
        score_replies(
            run, some, outcomes, every=probes, engine=reference.engine,
            tokenizer=reference.tokenizer, weights=columns,
            progress=lambda done, of: show.step("scoring", done, of),
        )  # fmt: skip

    score_some(probes, plan.policy.builds)
    if weights:
        replied = tuple(p for p in probes if isinstance(outcomes.get(p.id), Reply))
        score_some(replied[:limit], weights)


def write_page(run: Path) -> Report:
    """Write the HTML page of a decided run folder; the report it shows."""
    plan = read_plan(run)
    report = report_from_json(read_json(run / REPORT))
    page = render_page(
        report,
        outcomes=read_outcomes(run, max_attempts=plan.max_attempts),
        probes=read_probes(run),
        attempts=read_attempts(run),
    )
    write_whole(run / PAGE, page)
    return report


# -- the budget --------------------------------------------------------------------------------


def _collect_within_budget(
    run: Path, plan: Plan, endpoint: Endpoint, probes: tuple[Probe, ...], show: Show
) -> None:
    """Ask as many of `probes` as the budget pays for; short replies leave room for more."""
    every, before = read_probes(run), -1
    known = read_capabilities(run)
    ceiling = plan.ceiling if known is None else plan.ceiling.less(known.completion_tokens)
    while (settled := len(read_outcomes(run, max_attempts=plan.max_attempts))) != before:
        collect(
            run, endpoint, probes, ceiling=ceiling, every=every,
            progress=lambda done, of: show.step("asking", done, of),
        )  # fmt: skip
        before = settled


def _goes_on(run: Path, plan: Plan, probes: tuple[Probe, ...]) -> bool:
    """Whether to ask the next batch: not when probes were left unasked, or all fail of late."""
    outcomes = read_outcomes(run, max_attempts=plan.max_attempts)
    latest = list(outcomes.values())[-STOP_AFTER_FAILURES:]
    dead = len(latest) == STOP_AFTER_FAILURES and all(isinstance(o, Failure) for o in latest)
    return not dead and all(probe.id in outcomes for probe in probes)


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
