"""The plan of a run: everything that is decided before the first request.

With the plan, the ledger and the exchanges, a verdict can be computed anywhere: policy, error
rates, calibration, digests, seed and versions are all copied into it.
"""

from __future__ import annotations

import json
import math
import platform
import secrets
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

import verifier
from verifier.checks.length.evidence import LONG_REPLIES, REQUESTS
from verifier.checks.request_strata import vary
from verifier.checks.sampling.stored_replies import AGAIN, EVERY, OTHERWISE, SAME
from verifier.config import Policy, Prices, RunFile, resolve_policy
from verifier.errors import ConfigError
from verifier.evidence.calibration import Calibration
from verifier.evidence.mixture import least_replies
from verifier.evidence.samplers import changed, honest_samplers, made, name_of, sampler_columns
from verifier.files.run_folder import (
    FLEET,
    PLAN,
    PROBES,
    RUN,
    SAMPLED,
    make_folder,
    write_json,
    write_lines,
    write_whole,
)
from verifier.files.stored import read_record, read_rows
from verifier.host.budget import Amount, Ceiling, Priced, forecast
from verifier.host.dialects import member
from verifier.host.rate_limits import MAX_WAIT_S
from verifier.probes import Pool, draw
from verifier.records import REFERENCE, Nats, Plain, Probe, Version
from verifier.reference.cards import Card, Thinking, card_notes

#: Version of the plan file.
PLAN_SCHEMA: Final = 1

#: Replies asked for between two looks at the evidence; the last size repeats. The first is a
#: scout: it shows whether the endpoint answers at all before more is spent.
BATCHES = (1, 1, 2, 2, 4, 4, 8)

#: Probes drawn for each that the budget would pay at full length: many replies end early.
SPARE_PROBES = 2

#: Share of the token budget that is kept for sampled replies, where they are asked for. What greedy
#: replies leave over is theirs as well.
SAMPLED_BUDGET = 0.5

#: Kinds of the probes that ask for long prompts and for long replies, and tokens of a reply to the
#: first.
CONTEXT_KIND: Final = "context"
OUTPUT_KIND: Final = "output"
CONTEXT_TOKENS: Final = 48

#: Requests that find out what an endpoint can do, at most.
CAPABILITY_REQUESTS = 16

#: Tries of each at most: a host under load is asked again.
CAPABILITY_TRIES = 3

#: What these take at most, and what comes where something looks wrong: a panel that tells templates
#: apart and prompts that the endpoint shows, then text completions and strings that tell tokenizers
#: apart.
CAUSE_REQUESTS = 18
NAMING_REQUESTS = 24 + 8
_CAPABILITIES = Amount(
    requests=CAPABILITY_REQUESTS, prompt_tokens=256 * CAPABILITY_REQUESTS, completion_tokens=0
)
_WITH_CAUSE = Amount(
    requests=CAUSE_REQUESTS + NAMING_REQUESTS,
    prompt_tokens=4096 * CAUSE_REQUESTS + 1024 * NAMING_REQUESTS,
    completion_tokens=0,
)

_PACKAGES = ("torch", "transformers", "numpy", "scipy", "httpx")


Rate = Annotated[float, Field(ge=1e-12, lt=0.999)]
Count = Annotated[int, Field(ge=0, le=10**15)]


class Plan(BaseModel):
    """The wire form of a plan."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    schema_version: Version
    policy_name: str
    policy: Policy
    alpha: Rate
    beta: Rate
    seed: int
    max_tokens: Annotated[int, Field(ge=1, le=10**9)]
    min_replies: Count
    budget_completion_tokens: Count
    budget_usd: Annotated[float, Field(ge=0, le=1e12)] | None = None
    budget_sampled_tokens: Count = 0  # kept of the budget for sampled replies
    samplers: dict[str, dict[str, Nats]] = {}  # columns of sampled replies; {}: none are asked for
    honest_samplers: tuple[str, ...] = ()  # those of them that an honest host may use
    context_tokens: Count = 0  # the longest prompt asked; 0: the context is not asked about
    output_tokens: Count = 0  # the longest reply asked for; 0: none
    varies: bool = False  # whether probes are asked in ways drawn at random
    top_logprobs: Count
    max_attempts: Annotated[int, Field(ge=1, le=10**6)]
    prices: Prices | None
    card: str
    card_sha256: str
    card_notes: tuple[str, ...] = ()  # what nobody has checked of it, and terms that limit hosting
    tensors_sha256: str | None  # None: the card does not pin it
    config_sha256: str | None = None
    tokenizer_sha256: str | None
    template_sha256: str | None
    thinking: Thinking | None = None  # how thoughts are written; None: nothing is known of them
    bank: tuple[str, ...]
    suspects: dict[str, str] = {}  # other models that may be named, and what each is in words
    pool_sha256: str
    pool_size: Count
    versions: dict[str, str]
    configuration: Annotated[dict[str, Any], Plain()]  # the run file, less where it was written
    calibration: Calibration

    @property
    def ceiling(self) -> Ceiling:
        """What all requests of the run may cost together."""
        return Ceiling(
            completion_tokens=self.budget_completion_tokens,
            usd=self.budget_usd,
            prices=self.prices,
        )

    @property
    def budget_long_tokens(self) -> int:
        """Completion tokens that are kept for long prompts and long replies."""
        prompts = REQUESTS * CONTEXT_TOKENS if self.context_tokens else 0
        return prompts + LONG_REPLIES * self.output_tokens

    @model_validator(mode="after")
    def _policy_is_known(self) -> Self:
        classes = {known.name for known in self.calibration.classes}
        unknown = {*self.policy.noise, *self.policy.routed} - classes
        unknown |= {*self.policy.builds} - {*self.bank}
        if unknown:
            raise ValueError(f"the policy names {min(unknown)!r}, of which nothing is known")
        return self

    @model_validator(mode="after")
    def _samplers_can_be_read(self) -> Self:
        for name, settings in self.samplers.items():
            try:
                made(settings)
            except (TypeError, ConfigError) as error:
                raise ValueError(f"the sampler {name!r} is none: {error}") from error
        return self


def make_plan(
    config: RunFile, card: Card, calibration: Calibration, pool: Pool
) -> tuple[Plan, tuple[Probe, ...]]:
    """Plan and probes of a run; the seed is drawn when the run file names none.

    Raises ConfigError for a policy the card cannot serve, or a budget too small for any verdict.
    """
    audit = config.audit
    name, policy = resolve_policy(audit.policy)
    known = [c.name for c in calibration.classes]
    for wanted in policy.noise:
        if wanted not in known:
            raise ConfigError(
                f"audit.policy: noise: the card's calibration has no class {wanted!r}; it has "
                f"{', '.join(known)}"
            )
    builds = card.columns if policy.builds == ("all",) else policy.builds
    for wanted in builds:
        if wanted not in card.columns:
            raise ConfigError(
                f"audit.policy: builds: the card's bank has no {wanted!r}; it has "
                f"{', '.join(card.columns)}"
            )
    for wanted in policy.routed:
        if wanted not in known:
            raise ConfigError(
                f"audit.policy: routed: the card's calibration has no class {wanted!r}; it has "
                f"{', '.join(known)}"
            )
    if not policy.noise and not builds and not policy.routed:
        raise ConfigError(
            "audit.policy: names no departure; list some under noise, builds or routed"
        )
    suspects = (*card.siblings, *config.reference.suspects)
    taken = [REFERENCE, *card.columns, *(suspect.name for suspect in suspects)]
    repeated = [suspect.name for suspect in suspects if taken.count(suspect.name) > 1]
    if repeated:
        raise ConfigError(
            f"reference.suspects: {repeated[0]!r} is a name in the card or in this list already; "
            "give each another name"
        )
    least = audit.min_replies * audit.max_tokens
    sampled = int(SAMPLED_BUDGET * audit.budget_completion_tokens) if audit.sampler else 0
    if sampled and audit.budget_completion_tokens - sampled < least:
        raise ConfigError(
            f"audit.budget_completion_tokens: {audit.budget_completion_tokens} cannot pay for "
            f"{audit.min_replies} replies of {audit.max_tokens} tokens beside the samples that "
            f"audit.sampler asks for; allow {math.ceil(least / (1 - SAMPLED_BUDGET))} or more"
        )
    long = REQUESTS * CONTEXT_TOKENS if audit.context else 0
    long += LONG_REPLIES * (audit.output or 0)
    if long and audit.budget_completion_tokens - sampled - long < least:
        needed = (least + long) / (1 - (SAMPLED_BUDGET if sampled else 0))
        raise ConfigError(
            f"audit.budget_completion_tokens: {audit.budget_completion_tokens} cannot pay for "
            f"{audit.min_replies} replies of {audit.max_tokens} tokens beside the {long} that "
            f"audit.context and audit.output ask for; allow {math.ceil(needed)} or more"
        )
    if audit.budget_completion_tokens < least:
        raise ConfigError(
            f"audit.budget_completion_tokens: {audit.budget_completion_tokens} cannot pay for "
            f"{audit.min_replies} replies of {audit.max_tokens} tokens, the least for a verdict; "
            f"allow {least} or more"
        )
    for wanted, share in policy.routed.items():
        replies = least_replies(share, error=audit.beta)
        if audit.budget_completion_tokens < replies * audit.max_tokens:
            raise ConfigError(
                f"audit.budget_completion_tokens: {audit.budget_completion_tokens} cannot exclude "
                f"that {share:g} of the requests meet {wanted}: that takes {replies} replies of "
                f"{audit.max_tokens} tokens at the very least; allow "
                f"{replies * audit.max_tokens} or, better, half as many again"
            )
    if audit.budget_usd is not None and config.prices is None:
        raise ConfigError("audit.budget_usd: dollars need prices; write out prices in the run file")
    seed = secrets.randbits(63) if audit.seed is None else audit.seed
    kinds = pool.kinds if audit.kinds is None else audit.kinds
    count = min(
        SPARE_PROBES * (audit.budget_completion_tokens // audit.max_tokens),
        sum(family.size for family in pool.families if family.kind in kinds),
    )
    columns = sampler_columns(card.sampling) if audit.sampler else {}
    probes = draw(pool, seed=seed, count=count, max_tokens=audit.max_tokens, kinds=audit.kinds)
    settings = tuple(audit.template_settings.items())
    if settings and config.endpoint.dialect != "chat":
        raise ConfigError(
            f"audit.template_settings: the dialect {config.endpoint.dialect} cannot carry them; "
            "take endpoint.dialect: chat, or leave them out"
        )
    probes = tuple(replace(probe, settings=settings) for probe in probes)
    if audit.vary:
        probes = vary(probes, seed=seed, logprobs=audit.top_logprobs > 0)
    plan = Plan(
        schema_version=PLAN_SCHEMA,
        policy_name=name,
        policy=policy.model_copy(update={"builds": builds}),
        alpha=audit.alpha,
        beta=audit.beta,
        seed=seed,
        max_tokens=audit.max_tokens,
        min_replies=audit.min_replies,
        budget_completion_tokens=audit.budget_completion_tokens,
        budget_usd=audit.budget_usd,
        budget_sampled_tokens=sampled,
        varies=audit.vary,
        context_tokens=audit.context or 0,
        output_tokens=audit.output or 0,
        samplers={n: changed(s) for n, s in columns.items()},
        honest_samplers=tuple(map(name_of, honest_samplers(card.sampling))) if columns else (),
        top_logprobs=audit.top_logprobs,
        max_attempts=config.endpoint.max_attempts,
        prices=config.prices,
        card=card.name,
        card_sha256=card.digest,
        card_notes=card_notes(card),
        tensors_sha256=card.digests.tensors_sha256,
        config_sha256=card.digests.config_sha256,
        tokenizer_sha256=card.digests.tokenizer_sha256,
        template_sha256=card.digests.template_sha256,
        thinking=card.thinking,
        bank=card.columns,
        suspects={suspect.name: suspect.title for suspect in suspects},
        pool_sha256=pool.digest,
        pool_size=pool.size,
        versions=versions(),
        configuration=config.model_dump(mode="json", exclude={"out"}),
        calibration=calibration,
    )
    return plan, probes


def make_sampled(config: RunFile, plan: Plan, pool: Pool, drawn: int) -> tuple[Probe, ...]:
    """The probes asked at temperature 1, drawn after the `drawn` greedy ones; none unless asked."""
    audit = config.audit
    if not plan.samplers:
        return ()
    kinds = pool.kinds if audit.kinds is None else audit.kinds
    count = min(
        SPARE_PROBES * (plan.budget_completion_tokens // audit.max_tokens),
        sum(family.size for family in pool.families if family.kind in kinds) - drawn,
    )
    probes = draw(
        pool, seed=plan.seed, count=drawn + count, max_tokens=audit.max_tokens, kinds=audit.kinds
    )
    settings = tuple(audit.template_settings.items())
    found: list[Probe] = []
    for n, probe in enumerate(probes[drawn:]):
        once = replace(probe, settings=settings, temperature=1.0)
        found.append(once)
        if n % EVERY == 0:  # asked again at once, and in other words: a store would show
            found.append(replace(once, id=f"{once.id}{AGAIN}{SAME}"))
            found.append(_otherwise(once))
    return tuple(found)


def _otherwise(probe: Probe) -> Probe:
    """The same question in slightly other words, which a store may take for the same."""
    *before, last = probe.messages
    asked = replace(last, content=f"Please help me with this. {last.content}")
    return replace(probe, id=f"{probe.id}{AGAIN}{OTHERWISE}", messages=(*before, asked))


def versions() -> dict[str, str]:
    """Versions of everything that could move a number."""
    found = {"verifier": verifier.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def batch_ends(total: int) -> list[int]:
    """How many of `total` probes have been asked at each look at the evidence."""
    ends: list[int] = []
    asked = 0
    for size in chain(BATCHES, repeat(BATCHES[-1])):
        if asked >= total:
            return ends
        asked = min(asked + size, total)
        ends.append(asked)
    return ends


def cost_usd(prices: Prices | None, *, prompt_tokens: int, completion_tokens: int) -> float | None:
    """Dollars for so many tokens; None without prices."""
    if prices is None:
        return None
    micro = prompt_tokens * prices.prompt + completion_tokens * prices.completion
    return round(micro / 1e6, 6)


def forecast_run(run: Path) -> tuple[Priced, Priced]:
    """What a planned run may cost, as expected and at most."""
    plan = read_plan(run)
    asks_first = member(plan.configuration.get("audit"), "capabilities") is True
    expected, most = forecast(
        (*read_probes(run), *read_probes(run, name=SAMPLED)),
        max_tokens=plan.max_tokens,
        ceiling=plan.ceiling,
        at_first=_CAPABILITIES if asks_first else None,
        with_cause=_WITH_CAUSE,
        tries=CAPABILITY_TRIES,
    )

    def price(amount: Amount) -> Priced:
        usd = amount.usd(plan.prices)
        if usd is not None and plan.budget_usd is not None:
            usd = min(usd, plan.budget_usd)
        return Priced(amount=amount, usd=usd)

    # of the budget's completion tokens, those of long prompts and replies are a part already
    if plan.context_tokens:
        expected = _more(expected, requests=1, prompt_tokens=plan.context_tokens)
        most = _more(most, requests=REQUESTS, prompt_tokens=REQUESTS * plan.context_tokens)
    if plan.output_tokens:
        expected = _more(expected, requests=1, prompt_tokens=0)
        most = _more(most, requests=LONG_REPLIES, prompt_tokens=0)
    return price(expected), price(most)


def longest_waits_s(run: Path) -> float:
    """How long a planned run could wait between tries, were there no deadline: one probe at a time,
    and every wait as long as a host may ask for."""
    plan = read_plan(run)
    probes = len(read_probes(run)) + len(read_probes(run, name=SAMPLED))
    return probes * (plan.max_attempts - 1) * MAX_WAIT_S


def _more(amount: Amount, *, requests: int, prompt_tokens: int) -> Amount:
    return replace(
        amount, requests=amount.requests + requests,
        prompt_tokens=amount.prompt_tokens + prompt_tokens,
    )  # fmt: skip


# -- in the run folder -------------------------------------------------------------------------


def write_plan(
    run: Path,
    run_file: str,
    plan: Plan,
    probes: tuple[Probe, ...],
    sampled: tuple[Probe, ...] = (),
) -> None:
    """Write run file, probes and plan; the plan last, so that with it the others are there."""
    make_folder(run)
    write_whole(run / RUN, run_file)
    write_probes(run, probes)
    if sampled:
        write_probes(run, sampled, name=SAMPLED)
    write_json(run / PLAN, plan.model_dump(mode="json"))


def write_probes(run: Path, probes: tuple[Probe, ...], *, name: str = PROBES) -> None:
    """Write the probes in the order they are asked, one JSON line each."""
    write_lines(run / name, map(asdict, probes))


def read_plan(run: Path) -> Plan:
    """The plan of a run folder. Raises ConfigError when there is none that this version reads."""
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run folder")
    if (run / FLEET).exists():
        raise ConfigError(
            f"{run}: holds several targets; give the run folder of one, or run `verifier summary`"
        )
    advice = "restore it from a copy, or use the version of the verifier that wrote the folder"
    return read_record(run / PLAN, Plan, advice=advice)


def read_probes(run: Path, *, name: str = PROBES) -> tuple[Probe, ...]:
    """The probes of a run folder, in the order they are asked; none of a file that is missing.

    Raises ConfigError for a malformed line.
    """
    path, found = run / name, []
    advice = "restore the run folder from a copy"
    for number, probe in enumerate(read_rows(path, Probe, advice=advice), 1):
        try:
            _refuse_unreadable(probe)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}:{number}: {error}; {advice}") from error
        found.append(probe)
    return tuple(found)


def _refuse_unreadable(probe: Probe) -> None:
    """Raise ValueError for texts of a probe that are not what they stand for."""
    if probe.today is not None:
        date.fromisoformat(probe.today)
    calls = (call.arguments for message in probe.messages for call in message.tool_calls)
    for text in (*calls, *(tool.parameters for tool in probe.tools)):
        if not isinstance(json.loads(text), dict):
            raise ValueError(f"expected a JSON object in a text, got {text[:40]!r}")
