"""The plan of a run and its probes, as they lie in the run folder.

With the plan, the ledger and the exchanges, a verdict can be computed anywhere: policy, error
rates, calibration, digests, seed and versions are all copied into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from verifier.config import Policy, Prices
from verifier.errors import ConfigError, ReferenceMismatch
from verifier.evidence.calibration import Calibration
from verifier.evidence.samplers import made
from verifier.files.run_folder import (
    FLEET,
    PLAN,
    PROBES,
    RUN,
    make_folder,
    write_json,
    write_lines,
    write_whole,
)
from verifier.files.stored import read_record, read_rows
from verifier.host.budget import Ceiling
from verifier.records import After, Nats, Plain, Probe, Version
from verifier.reference.cards import Thinking
from verifier.reference.trusted import Source, Trusted

#: Version of the plan file.
PLAN_SCHEMA: Final = 1

#: Replies asked for between two looks at the evidence; the last size repeats. The first is a
#: scout: it shows whether the endpoint answers at all before more is spent.
BATCHES: Final = (1, 1, 2, 2, 4, 4, 8)

#: Probes drawn for each that the budget would pay at full length: many replies end early.
SPARE_PROBES: Final = 2

Rate = Annotated[float, Field(ge=1e-12, lt=0.999)]
Count = Annotated[int, Field(ge=0, le=10**15)]


class PackFacts(BaseModel):
    """The pack that stands in the place of weights, or lends them questions: what is said of it
    where it is not at hand."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    digest: str
    signed_by: str | None  # the public key; None: nobody signed it
    made_on: str
    source: Source  # where its paths come from
    trusted: Trusted | None = None  # whose word it is; None: that of weights
    questions: Count  # that an audit draws from
    panel: Count  # that tell renderings apart
    tokens: Count  # of a path at most
    beyond: tuple[str, ...] = ()  # what was asked for and no pack can judge
    with_weights: bool = False  # whether weights judge its questions, and fresh ones beside them
    same_pool: bool = True  # whether these are drawn as its own were
    thinking: Literal["shown", "off"] | None = None  # what is judged of a model that thinks


class Plan(BaseModel):
    """The wire form of a plan."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, strict=True, serialize_by_alias=True
    )

    schema_version: Version
    policy_name: str
    policy: Policy
    alpha: Rate
    beta: Rate
    seed: int
    max_tokens: Annotated[int, Field(ge=1, le=10**9)]
    min_replies: Count  # replies before any "consistent"; drawn, so that no host knows it
    budget_completion_tokens: Count
    budget_usd: Annotated[float, Field(ge=0, le=1e12)] | None = None
    budget_sampled_tokens: Count = 0  # kept of the budget for sampled replies
    samplers: dict[str, dict[str, Nats]] = {}  # columns of sampled replies; {}: none are asked for
    honest_samplers: tuple[str, ...] = ()  # those of them that an honest host may use
    #: What a host may decode greedily under where no request says otherwise; {}: nothing.
    greedy_defaults: dict[str, dict[str, Nats]] = {}
    context_tokens: Count = 0  # the longest prompt asked; 0: the context is not asked about
    output_tokens: Count = 0  # the longest reply asked for; 0: none
    offers_tools: bool = False  # whether some questions come with tools
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
    suspected: tuple[str, ...] = ()  # builds of it that are scored on cause
    suspects: dict[str, str] = {}  # other models that may be named, and what each is in words
    pool_sha256: str
    pool_size: Count
    versions: dict[str, str]
    configuration: Annotated[dict[str, Any], Plain()]  # the run file, less where it was written
    #: None: the card had none when an older version planned the run; written as `calibration`.
    calibrated: Annotated[Calibration | None, Field(alias="calibration")]
    after: After | None = None  # earlier audits whose evidence this run goes on from
    pack: PackFacts | None = None  # None: none was named

    @property
    def calibration(self) -> Calibration:
        """What replies are judged by. Raises ReferenceMismatch where the plan has none."""
        if self.calibrated is None:
            raise ReferenceMismatch(
                f"card {self.card} was not calibrated when this run was planned, by an older "
                "version; `verifier score` and `verifier audit` go on with the run"
            )
        return self.calibrated

    @property
    def ceiling(self) -> Ceiling:
        """What all requests of the run may cost together."""
        return Ceiling(
            completion_tokens=self.budget_completion_tokens,
            usd=self.budget_usd,
            prices=self.prices,
        )

    @property
    def trusted(self) -> Trusted | None:
        """The host whose word the reference is; None: weights are."""
        return None if self.pack is None else self.pack.trusted

    @property
    def by_texts(self) -> bool:
        """Whether texts alone are known of a trusted host, and no likelihood."""
        return self.pack is not None and self.pack.source == "texts"

    @model_validator(mode="after")
    def _policy_is_known(self) -> Self:
        known = () if self.calibrated is None else self.calibrated.classes
        unknown = {*self.policy.noise, *self.policy.routed} - {one.name for one in known}
        unknown = set() if self.calibrated is None else unknown
        unknown |= {*self.policy.builds, *self.suspected} - {*self.bank}
        if unknown:
            raise ValueError(f"the policy names {min(unknown)!r}, of which nothing is known")
        return self

    @model_validator(mode="after")
    def _samplers_can_be_read(self) -> Self:
        for name, settings in (*self.samplers.items(), *self.greedy_defaults.items()):
            try:
                made(settings)
            except (TypeError, ConfigError) as error:
                raise ValueError(f"the sampler {name!r} is none: {error}") from error
        return self


def batch_ends(total: int, *, stop: int = 0) -> list[int]:
    """How many of `total` probes have been asked at each look at the evidence.

    One of the looks is at the stopping point, so that nothing is asked beyond it in vain.
    """
    ends = {stop} if 0 < stop <= total else set()
    asked = 0
    for size in chain(BATCHES, repeat(BATCHES[-1])):
        if asked >= total:
            break
        asked = min(asked + size, total)
        ends.add(asked)
    return sorted(ends)


def cost_usd(prices: Prices | None, *, prompt_tokens: int, completion_tokens: int) -> float | None:
    """Dollars for so many tokens; None without prices."""
    if prices is None:
        return None
    micro = prompt_tokens * prices.prompt + completion_tokens * prices.completion
    return round(micro / 1e6, 6)


# -- in the run folder -------------------------------------------------------------------------


def write_plan(
    run: Path,
    run_file: str,
    plan: Plan,
    probes: tuple[Probe, ...],
    further: Mapping[str, tuple[Probe, ...]] | None = None,
) -> None:
    """Write run file, probes, `further` files of them and plan; the plan last, so that with it the
    others are there."""
    make_folder(run)
    write_whole(run / RUN, run_file)
    for name, some in {PROBES: probes, **(further or {})}.items():
        write_probes(run, some, name=name)
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
    path = run / name
    try:
        state = path.lstat()
    except FileNotFoundError:
        return ()
    stamp = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return _read_probes(path, stamp)


@lru_cache(maxsize=32)
def _read_probes(path: Path, _stamp: tuple[int, ...]) -> tuple[Probe, ...]:
    """A file is read once as long as it stays as it is: an audit asks for it dozens of times."""
    found = []
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
