"""Asking within the budget: what is spent, what is kept for later, and whether to go on."""

from __future__ import annotations

from pathlib import Path

from verifier.checks.capabilities.probe import capability_probes
from verifier.checks.tokenizer import counting_probes, read_counting
from verifier.files.run_folder import (
    CAPABILITY_EXCHANGES,
    COMPLETIONS,
    CONTEXT,
    PANEL,
    PROBES,
    SAMPLED,
    SHOWN_EXCHANGES,
)
from verifier.host.budget import Ceiling, Purse
from verifier.host.collect import STOP_AFTER_FAILURES, book, collect, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.plan import CONTEXT_KIND, OUTPUT_KIND, Plan, read_probes
from verifier.progress import ALONE, Pace, Show
from verifier.records import Failure, Probe

#: Kinds of probes that are asked last, out of a part of the budget of their own.
LONG = (CONTEXT_KIND, OUTPUT_KIND)


def ask_within_budget(
    run: Path,
    plan: Plan,
    endpoint: Endpoint,
    probes: tuple[Probe, ...],
    show: Show,
    pace: Pace = ALONE,
    *,
    folder: Path | None = None,
) -> None:
    """Ask as many of `probes` as the budget pays for; short replies leave room for more.

    The exchanges go into the run folder, or into `folder` within it.
    """
    folder, before = folder or run, -1
    every, ceiling = _probes_of(folder), _ceiling_beside(run, plan, folder, endpoint)
    if not any(probe.temperature or probe.kind in LONG for probe in probes):
        ceiling = ceiling.less(plan.budget_sampled_tokens)  # a share is kept for samples
    if not any(probe.kind in LONG for probe in probes):
        ceiling = ceiling.less(plan.budget_long_tokens, prompt_tokens=plan.context_tokens)
    while (settled := len(read_outcomes(folder, max_attempts=plan.max_attempts))) != before:
        collect(
            folder, endpoint, probes, ceiling=ceiling, every=every,
            progress=lambda done, of: show.step("asking", done, of), stopped=pace.stopped,
        )  # fmt: skip
        before = settled


def _ceiling_beside(run: Path, plan: Plan, folder: Path, endpoint: Endpoint) -> Ceiling:
    """What is left for the probes of `folder` after everything that was asked beside them."""
    purse, count = Purse(plan.ceiling), endpoint.count_tokens
    book(run, purse, capability_probes(), name=CAPABILITY_EXCHANGES, count=count)
    book(run, purse, read_probes(run, name=PANEL), name=SHOWN_EXCHANGES, count=count)
    for other in (run, run / COMPLETIONS):
        if other != folder:
            book(other, purse, _probes_of(other), count=count)
    spent = purse.spent
    return plan.ceiling.less(spent.completion_tokens, prompt_tokens=spent.prompt_tokens)


def _probes_of(folder: Path) -> tuple[Probe, ...]:
    """Every probe of a folder."""
    names, counted = (PROBES, PANEL, SAMPLED, CONTEXT), read_counting(folder)
    planned = tuple(probe for name in names for probe in read_probes(folder, name=name))
    return planned if counted is None else (*planned, *counting_probes(counted, like=planned[0]))


def open_purse(run: Path, plan: Plan, endpoint: Endpoint) -> Purse:
    """What is left after every request so far, less what is kept for samples and long prompts."""
    kept = plan.budget_sampled_tokens + plan.budget_long_tokens
    ceiling = _ceiling_beside(run, plan, run, endpoint)
    purse = Purse(ceiling.less(kept, prompt_tokens=plan.context_tokens))
    book(run, purse, _probes_of(run), count=endpoint.count_tokens)
    return purse


def goes_on(run: Path, plan: Plan, probes: tuple[Probe, ...]) -> bool:
    """Whether to ask the next batch: not when probes were left unasked, or all fail of late."""
    outcomes = read_outcomes(run, max_attempts=plan.max_attempts)
    latest = list(outcomes.values())[-STOP_AFTER_FAILURES:]
    dead = len(latest) == STOP_AFTER_FAILURES and all(isinstance(o, Failure) for o in latest)
    return not dead and all(probe.id in outcomes for probe in probes)
