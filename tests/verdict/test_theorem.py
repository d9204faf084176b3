"""The error rates as a theorem about the shipped code: worlds that can be enumerated whole.

Every reply that there can be goes through `combine` and the checks' own findings, in worlds of two
or three probes. Null, in turn: each honest truth, and each departure that a finding excludes. What
is asserted: the mean of every e-value is at most 1 at the worst stopping time, which backward
induction finds. `verifier/evidence/README.md` says what follows, and what does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np
import pytest
import worlds
from scipy.stats import t as student
from simulate import make_calibration, make_plan
from worlds import (
    REPLIES,
    World,
    beside,
    chances_of,
    enumerate_process,
    floored,
    make_sampled_world,
    make_world,
    worst_scales,
    worst_stop,
)

from verifier.checks import CHECKS
from verifier.checks import builds as builds_check
from verifier.checks import noise as noise_check
from verifier.checks import request_strata as strata_check
from verifier.checks import substitution as substitution_check
from verifier.checks.check import Account, Case, make_weighed
from verifier.checks.greedy_tokens import GLITCHES
from verifier.checks.sampling.evidence import is_marked, weigh_samplers
from verifier.checks.substitution import weigh_shares
from verifier.config import Policy
from verifier.evidence import mixture
from verifier.evidence import noise as noise_evidence
from verifier.evidence.arrays import Array
from verifier.evidence.calibration import Channel
from verifier.evidence.e_values import log_mean_exp
from verifier.evidence.ledger import LOGPROB_DF, LOGPROB_SCALES, TEXT_SCALES, Ledger
from verifier.evidence.mixture import SHARES
from verifier.evidence.noise import honest_scales, read_rows
from verifier.evidence.reporting import Reports, judge_reports
from verifier.evidence.samplers import changed, honest_samplers, name_of, sampler_columns
from verifier.plan_file import PackFacts, Plan
from verifier.probes import OF_PACK
from verifier.records import REFERENCE, Finding
from verifier.verdict import combine as combine_module
from verifier.verdict.case import make_case
from verifier.verdict.combine import combine

#: What rounding of the sums may add.
MOST: Final = 1 + 1e-9

BUILDS: Final = ("fp8-channel", "int4-sym-g64")
NEAR_AND_FAR: Final = {"fp8-channel": 0.2, "int4-sym-g64": 1.0}
TEMPLATE_FAULT: Final = "default-system-dropped"
MARKS: Final = {"4-bit-class rounding": 0.3, "another model": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A world and the plan of its audits."""

    world: World
    plan: Plan

    @property
    def channel(self) -> Channel:
        return self.plan.calibration.text

    @property
    def honest(self) -> Array:
        """Positions of the scales that honest serving may have."""
        return np.flatnonzero(make_case(self.plan, Ledger(rows=())).honest)

    def read(self, rows: Array) -> Array:
        return read_rows(rows, TEXT_SCALES, self.channel)

    def truths(self, column: str = REFERENCE) -> Array:
        """Chances [T, R, K] under a column at each honest scale: one scale for all, and one a
        reply, spread as calibrated."""
        found = [chances_of(self.world, column), chances_of(self.world, column, read=self.read)]
        return np.concatenate([some[self.honest].reshape(-1, *some.shape[2:]) for some in found])


def plan_of(*, spread: float = 0.0, **changes: Any) -> Plan:
    """The plan of an audit with this spread of the replies around their host's scale."""
    channel = make_calibration().text.model_copy(update={"spread": spread})
    return make_plan(calibration=make_calibration(text=channel), **changes)


def with_reports(world: World) -> World:
    """Reported log-probabilities of two sorts, and whether one contradicts the token given.

    A density cannot be enumerated, so what is reported is sorted by how far it is off: below 0.2
    nats, or more. The cells of a sort are its exact chances.
    """
    near = 2 * student.cdf(0.2 / LOGPROB_SCALES, LOGPROB_DF) - 1
    chances = np.array([near, 1 - near])  # [2, S]
    kinds = [
        {"logprob": tuple(np.log(some).tolist()), "logprob_problem": None, "outranked": said}
        for some in chances for said in (0, 1)
    ]  # fmt: skip
    honest = honest_scales(LOGPROB_SCALES, plan_of().calibration.logprob)
    truths = [
        [some[scale] * chance for some in chances for chance in (1 - glitches, glitches)]
        for scale in np.flatnonzero(honest) for glitches in (0.0, GLITCHES)
    ]  # fmt: skip
    return beside(world, kinds, np.array(truths).T)


#: A pack that lends weights its questions.
LENDS = PackFacts(
    digest="0" * 64, signed_by=None, made_on="2026-11-30", source="weights", questions=96, panel=0,
    tokens=12, with_weights=True,
)  # fmt: skip


def with_rendered(world: World) -> World:
    """The same where each rendering of a prompt is of some length."""
    lengths = {REFERENCE: 20, TEMPLATE_FAULT: 12}
    rows = tuple(tuple(replace(row, rendered=lengths) for row in some) for some in world.rows)
    return replace(world, rows=rows)


@cache
def settings() -> dict[str, Setting]:
    """Each kind of audit, in a world where it can be enumerated."""
    named = Policy(noise=("another model",), builds=BUILDS)
    labels = (("streamed", "without log-probabilities"), ("short",))
    columns = {f"template:{TEMPLATE_FAULT}": 1.0}
    found: dict[str, tuple[World, Plan]] = {
        "three replies": (make_world(0, replies=3, width=1.0), plan_of()),
        "three replies, spread": (make_world(0, replies=3, width=0.3), plan_of(spread=0.3)),
        "two replies": (make_world(0, replies=2, width=1.0), plan_of()),
        "two replies, near ties": (make_world(1, replies=2, width=0.3), plan_of()),
        "a way of asking": (
            make_world(0, replies=2, width=1.0, strata=labels), plan_of(varies=True),
        ),
        "questions of a pack, and fresh ones": (
            make_world(0, replies=2, width=1.0, strata=(tuple(OF_PACK), ())), plan_of(pack=LENDS),
        ),
        "single tokens": (make_world(1, replies=2, width=1.0, single=True), plan_of(spread=0.15)),
        "what it reports": (
            with_reports(make_world(2, replies=2, width=0.3, single=True)),
            plan_of(top_logprobs=5),
        ),
        "a template fault": (
            with_rendered(make_world(3, replies=2, width=1.0, others=columns)), plan_of(),
        ),
    }  # fmt: skip
    for seed in range(3):
        found[f"two builds {seed}"] = (
            make_world(seed, replies=2, width=(0.3, 1.0)[seed % 2], others=NEAR_AND_FAR),
            plan_of(policy=named, spread=(0.0, 0.0, 0.15)[seed]),
        )
    return {name: Setting(world=world, plan=plan) for name, (world, plan) in found.items()}


def weigh_all(plan: Plan) -> Callable[[tuple[Any, ...]], list[float]]:
    """All evidence together, and the e-value of each share of each check."""

    def weigh(rows: tuple[Any, ...]) -> list[float]:
        combined = combine(make_case(plan, Ledger(rows=rows)))
        parts = (value for check in CHECKS for value in combined.weighed[check.name].log_e)
        return [combined.log_e, *parts]

    return weigh


@cache
def evidence_of(name: str) -> list[Array]:
    """The e-values of a setting after every reply that there can be."""
    found = settings()[name]
    return enumerate_process(found.world, weigh_all(found.plan))


# -- known answer ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["three replies", "three replies, spread", "two builds 1"])
def test_rows_are_the_likelihoods_of_proper_models(name: str) -> None:
    """Gumbel noise of a scale gives softmax(logits / scale), of which FLOOR is at scale 1; and a
    scale for each reply, spread as calibrated, is a mixture of these."""
    found = settings()[name]
    (raw, read) = (
        chances_of(found.world, REFERENCE, read=how)[:, 0]
        for how in (lambda rows: rows, found.read)
    )
    for n, columns in enumerate(found.world.columns):
        logits = columns[REFERENCE]
        stated = [
            [floored(logits.first, s)[a] * floored(logits.second[a], s)[b] for a, b in REPLIES]
            for s in TEXT_SCALES
        ]
        np.testing.assert_allclose(raw[:, n], stated, rtol=1e-9)
        assert read[:, n].min() >= raw[:, n].min() * (1 - 1e-9)
    np.testing.assert_allclose(raw.sum(axis=2), 1.0, rtol=1e-12)
    np.testing.assert_allclose(read.sum(axis=2), 1.0, rtol=1e-12)


def test_the_worst_stop_is_that_of_trying_every_rule() -> None:
    """Backward induction, against all 8 rules for two tosses of a coin."""
    rng = np.random.default_rng(5)
    process = [np.array([1.0]), rng.uniform(0, 2, (1, 2)), rng.uniform(0, 4, (1, 2, 2))]
    chances = np.array([[[0.3, 0.7], [0.6, 0.4]]])
    one, two = process[1][0], process[2][0]
    tried = [
        sum(
            chances[0, 0, k] * (one[k] if stop >> k & 1 else two[k] @ chances[0, 1])
            for k in range(2)
        )
        for stop in range(4)
    ]

    assert worst_stop(process, chances)[0, 0] == pytest.approx(max(tried))


# -- level: honest serving ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(settings()))
def test_no_evidence_against_honest_serving_has_a_mean_above_one(name: str) -> None:
    """All of it and each part, at the worst stop, under every scale up to the tolerated one."""
    means = worst_stop(evidence_of(name), settings()[name].truths())

    assert means.max() <= MOST
    # the bound is near: worlds in which nothing tells prove nothing; so short a text bears no
    # reports out, and their half is lost
    assert means[:, 0].max() > (0.45 if name == "what it reports" else 0.85)


def test_nor_where_reports_are_believed_whatever_they_look_like(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To leave them out can only lower the evidence, so the bound is that of reports which join."""

    def believed(*given: Any, **more: Any) -> Reports:
        return replace(judge_reports(*given, **more), joins=True)

    monkeypatch.setattr("verifier.checks.check.judge_reports", believed)
    found = settings()["what it reports"]
    means = worst_stop(enumerate_process(found.world, weigh_all(found.plan)), found.truths())

    assert 0.85 < means[:, 0].max() <= means.max() <= MOST


@pytest.mark.parametrize("floor", [worlds.FLOOR, 0.0], ids=["as the ledger", "without its floor"])
@pytest.mark.parametrize(
    "name", sorted(n for n in settings() if "builds" not in n and "fault" not in n)
)
def test_a_host_may_change_its_noise_from_token_to_token(name: str, floor: float) -> None:
    """By all that came before, up to the tolerated scale, as load or a fixed error may set it."""
    found = settings()[name]
    means = worst_scales(evidence_of(name), found.world, TEXT_SCALES[found.honest], floor=floor)

    assert means.max() <= MOST


def test_that_is_not_so_for_the_column_of_a_build() -> None:
    """Why the page claims it of noise alone: a host that knows the build could set its noise so
    that it looks a little more like it. Should this fail, the theorem may claim more."""
    found = settings()["two builds 0"]
    means = worst_scales(evidence_of("two builds 0"), found.world, TEXT_SCALES[found.honest])

    assert means.max() > 1.2


def test_no_evidence_against_honest_samples_has_a_mean_above_one() -> None:
    """Of replies at temperature 1, under every sampler that an honest host may use; and honest
    samplers against each that is excluded."""
    defaults = {"top_k": 2.0}
    samplers = sampler_columns(defaults)
    honest = tuple(map(name_of, honest_samplers(defaults)))
    marked = [n for n, sampler in samplers.items() if n not in honest and is_marked(sampler)]
    plan = plan_of(
        samplers={name: changed(one) for name, one in samplers.items()}, honest_samplers=honest
    )
    for seed, width in ((0, 1.0), (1, 2.0)):
        world = make_sampled_world(seed, replies=2, width=width, samplers=samplers)

        def weigh(rows: tuple[Any, ...]) -> list[float]:
            combined = combine(make_case(plan, Ledger(rows=(), sampled=rows)))
            of_samples = weigh_samplers(rows, samplers, honest, noise=None, level=0.999)
            return [combined.log_e, *combined.weighed["sampling"].log_e, of_samples.log_e_honest]

        process = enumerate_process(world, weigh)
        chances = {
            name: np.exp([[row.cells[name] for row in some] for some in world.rows])
            for name in samplers
        }
        means = worst_stop(process, np.array([chances[name] for name in honest]))
        excluded = worst_stop(process, np.array([chances[name] for name in marked]))

        assert means[:, :-1].max() <= MOST
        assert excluded[:, -1].max() <= MOST
        assert excluded[:, -1].max() > 0.5


# -- level: what is excluded -------------------------------------------------------------------


@dataclass(slots=True)
class Recorder:
    """Stands where a check makes a finding, and keeps the two e-values that it is made of."""

    found: dict[str, tuple[float, float]]

    def __call__(
        self, case: Case, aspect: Any, name: str, *, towards: float, against: float, **said: str
    ) -> Finding:
        self.found[name] = (against, towards)
        return make_weighed(case, aspect, name, towards=towards, against=against, **said)  # type: ignore[call-arg]


def account_of(case: Case) -> Account:
    """Replies that are judged as published."""
    return Account(
        by="published", column=None, text=case.text, interval=case.interval, unknown_words=False,
        differs=False, greedy_differs=False, penalty=None, template=None, faults=(), names=None,
        members=None,
    )  # fmt: skip


def findings_process(found: Setting, names: Sequence[str]) -> list[Array]:
    """E-values against and towards each departure, as the checks' own findings take them."""
    recorder = Recorder(found={})

    def weigh(rows: tuple[Any, ...]) -> list[float]:
        case = make_case(found.plan, Ledger(rows=rows))
        recorder.found = {}
        for module in (noise_check, builds_check, substitution_check):
            module.find(case, module.weigh(case, None).evidence, account_of(case), [])  # type: ignore[attr-defined]
        said = [recorder.found.get(name, (0.0, 0.0)) for name in names]
        return [one[way] for way in (0, 1) for one in said]

    with pytest.MonkeyPatch.context() as patched:
        for module in (noise_check, builds_check, substitution_check):
            patched.setattr(module, "make_weighed", recorder)
        return enumerate_process(found.world, weigh)


def excluding(seed: int, *, width: float, spread: float, share: float) -> tuple[Setting, str]:
    """A setting that names departures of every kind, and the name of that of a share."""
    policy = Policy(noise=tuple(MARKS), builds=BUILDS, routed={"4-bit-class rounding": share})
    world = make_world(seed, replies=2, width=width, others=NEAR_AND_FAR)
    name = f"{share:.0%} of requests to 4-bit-class rounding or worse".replace("%", " %")
    return Setting(world=world, plan=plan_of(policy=policy, spread=spread)), name


def routed_truths(found: Setting, shares: Array, suspects: Array) -> Array:
    """Chances [T, R, K] of hosts that answer a share of the requests by each suspect [P, R, K]."""
    honest = chances_of(found.world, REFERENCE, read=found.read)[found.honest, 0]
    mixed = [(1 - s) * honest[:, None] + s * suspects[None] for s in shares]
    return np.array(mixed).reshape(-1, *honest.shape[1:])


@pytest.mark.parametrize("cap", [mixture.CAP, 2.0], ids=["cap", "cap that bites"])
@pytest.mark.parametrize(
    ("seed", "width", "spread", "share"),
    [(0, 1.0, 0.0, 0.3), (1, 0.3, 0.15, 0.05), (2, 2.0, 0.0, 0.1)],
)
def test_nothing_is_excluded_or_detected_more_often_than_said(
    seed: int, width: float, spread: float, share: float, cap: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each class, build and share: the e-value against it under each departure that it names, and
    the one towards it under all others, have means of at most 1 at the worst stop."""
    monkeypatch.setattr(mixture, "CAP", cap)
    found, routed = excluding(seed, width=width, spread=spread, share=share)
    names = [*MARKS, *BUILDS, routed]
    process = findings_process(found, names)
    text = chances_of(found.world, REFERENCE, read=found.read)[:, 0]  # [S, R, K]

    def means(truths: Array, name: str, *, towards: bool) -> float:
        return float(worst_stop(process, truths)[:, names.index(name) + towards * len(names)].max())

    for name, mark in MARKS.items():
        members = mark * (1 - 1e-9) <= TEXT_SCALES
        assert 0.9 < means(text[members], name, towards=False) <= MOST
        assert means(text[~members], name, towards=True) <= MOST
    for name in BUILDS:
        own = chances_of(found.world, name, read=found.read)[found.honest, 0]
        assert 0.8 < means(own, name, towards=False) <= MOST
        assert means(text, name, towards=True) <= MOST
    at_least = share - 1e-9 <= SHARES
    suspects = text[MARKS["4-bit-class rounding"] * (1 - 1e-9) <= TEXT_SCALES]
    assert (
        0.5 < means(routed_truths(found, SHARES[at_least], suspects), routed, towards=False) <= MOST
    )
    others = np.setdiff1d(np.arange(len(TEXT_SCALES)), found.honest)
    unknown = text[others].mean(axis=0)[None]
    assert means(routed_truths(found, SHARES[~at_least], unknown), routed, towards=True) <= MOST


# -- power: what would be caught ---------------------------------------------------------------


def take_the_best(parts: list[tuple[float, float]]) -> float:
    """A share that is chosen after the data."""
    return max(log_e for _, log_e in parts)


def against_the_mean(alternative: Array, null: Array) -> float:
    """A null that is averaged over."""
    return log_mean_exp(alternative) - log_mean_exp(null)


def against_fewer(alternative: Array, null: Array) -> float:
    """A null that is narrower than what may be honest."""
    return log_mean_exp(alternative) - float(null[:-8].max())


def best_alternative(alternative: Array, null: Array) -> float:
    """A scale that is chosen after the data."""
    return float(alternative.max() - null.max())


def read_what_looks_bad(text: Array, scales: Array, honest: Array, builds: Any) -> Any:
    """Rows that are left out after a look at them."""
    worse = text[:, ~honest].max(axis=1) > text[:, honest].max(axis=1)
    return weigh_shares(text[worse], scales, honest, builds)


@pytest.mark.parametrize(
    ("where", "what", "wrong", "name"),
    [
        (combine_module, "mix_log_e", take_the_best, "two replies"),
        (noise_evidence, "log_e_value", against_the_mean, "two replies"),
        (noise_evidence, "log_e_value", against_fewer, "two replies"),
        (noise_evidence, "log_e_value", best_alternative, "two replies"),
        (substitution_check, "weigh_shares", read_what_looks_bad, "two replies"),
        (strata_check, "log_mean_exp", np.max, "a way of asking"),
        (builds_check, "log_e_value", against_the_mean, "two builds 1"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_weight_that_is_changed_after_looking_is_caught(
    where: Any, what: str, wrong: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same enumeration, of code with a mistake in it."""
    found = settings()[name]
    monkeypatch.setattr(where, what, wrong)
    means = worst_stop(enumerate_process(found.world, weigh_all(found.plan)), found.truths())

    assert means.max() > 1.01


def against_coarser(rows: Array, members: Array) -> float:
    """A class of its coarsest member alone."""
    totals = rows.sum(axis=0)
    return log_mean_exp(totals) - float(totals[members][-1])


def against_the_easiest(mixtures: list[mixture.Mixture], share: float) -> float:
    """A share that is excluded once any larger one is."""
    members = share - 1e-9 <= SHARES
    return max(float(mixture.log_e_against_shares(one)[members].max()) for one in mixtures)


@pytest.mark.parametrize(
    ("where", "what", "wrong"),
    [
        (noise_check, "log_e_against_scales", against_coarser),
        (substitution_check, "log_e_against_at_least", against_the_easiest),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_exclusion_that_is_had_too_cheap_is_caught(
    where: Any, what: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a class of noise, and of a share."""
    found, routed = excluding(0, width=1.0, spread=0.0, share=0.3)
    monkeypatch.setattr(where, what, wrong)
    process = findings_process(found, ["4-bit-class rounding", routed])
    text = chances_of(found.world, REFERENCE, read=found.read)[:, 0]
    suspects = text[MARKS["4-bit-class rounding"] * (1 - 1e-9) <= TEXT_SCALES]
    hosts = routed_truths(found, SHARES[SHARES >= 0.3 - 1e-9], suspects)
    of_noise, of_shares = worst_stop(process, suspects), worst_stop(process, hosts)

    assert max(of_noise[:, 0].max(), of_shares[:, 1].max()) > 1.01
