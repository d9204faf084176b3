"""The plan of a run: everything that is decided before the first request.

Every check says what it adds to the plan, what it keeps of the budget, and what it may ask.
"""

from __future__ import annotations

import math
import platform
import random
import secrets
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import verifier
from verifier.checks import CHECKS
from verifier.checks.check import Planned
from verifier.checks.leaving import is_told
from verifier.config import LEAST_REPLIES, Policy, RunFile, resolve_policy
from verifier.errors import ConfigError
from verifier.evidence.calibration import Calibration
from verifier.evidence.hazards import KINDS
from verifier.evidence.mixture import least_replies
from verifier.host.budget import Amount, Priced, forecast
from verifier.host.rate_limits import MAX_WAIT_S
from verifier.plan_file import PLAN_SCHEMA, SPARE_PROBES, PackFacts, Plan, read_plan
from verifier.probes import PACKED, Pool, draw, shuffled, size_of
from verifier.records import REFERENCE, After, Probe
from verifier.reference.cards import Card, card_notes
from verifier.reference.provisional import refuse_finer

if TYPE_CHECKING:
    from verifier.reference.pack_file import Manifest, Pack

#: A stopping point is at most so many times the least.
MOST_TIMES: Final = 4

_PACKAGES: Final = ("torch", "transformers", "numpy", "scipy", "httpx")

_NO_PRICES: Final = (
    "audit.budget_usd: dollars need prices; write out prices in the run file, or give "
    "--input-price and --output-price"
)


def make_plan(
    config: RunFile, card: Card, calibration: Calibration | None, pool: Pool, *,
    after: After | None = None, pack: Pack | None = None,
) -> tuple[Plan, tuple[Probe, ...], dict[str, tuple[Probe, ...]]]:  # fmt: skip
    """Plan and ordinary probes of a run, and further files of probes by their names; a seed is
    drawn where none is given. `after` are earlier audits; a `pack` lends its questions.

    Raises ConfigError for a policy the card cannot serve, or a budget too small for any verdict.
    """
    config, facts = _with_pack(config, pack, card, pool)
    audit = config.audit
    planned = _plan_checks(config, card, calibration)
    fields: dict[str, Any] = {"calibration": calibration}
    for one in planned:
        fields |= one.fields
    policy = fields["policy"] = told_by(facts, fields["policy"])
    if not policy.noise and not policy.builds and not policy.routed:
        raise ConfigError(
            "audit.policy: names no departure; list some under noise, builds or routed"
        )
    suspects = _suspects(config, card)
    _refuse_small_budget(config, planned)
    if audit.budget_usd is not None and config.prices is None:
        raise ConfigError(_NO_PRICES)
    seed = secrets.randbits(63) if audit.seed is None else audit.seed
    plan = Plan(
        schema_version=PLAN_SCHEMA,
        alpha=audit.alpha,
        beta=audit.beta,
        seed=seed,
        max_tokens=audit.max_tokens,
        min_replies=_stop(config, policy, planned, seed=seed),
        budget_completion_tokens=audit.budget_completion_tokens,
        budget_usd=audit.budget_usd,
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
        suspects=suspects,
        pool_sha256=pool.digest,
        pool_size=pool.size,
        versions=versions(),
        configuration=config.model_dump(mode="json", exclude={"out"}),
        after=after,
        pack=facts,
        **fields,
    )
    probes, drawn = _draw(config, plan, pool, pack)
    further = [check.draw(config, plan, pool, drawn) for check in CHECKS]
    for check in CHECKS:
        probes = check.arrange(plan, probes)
    return plan, probes, dict(filter(None, further))


def _plan_checks(config: RunFile, card: Card, calibration: Calibration | None) -> Sequence[Planned]:
    """What every check adds; first of all, a provisional floor refuses what it cannot serve."""
    if calibration is not None:
        name, policy = resolve_policy(config.audit.policy)
        refuse_finer(name, policy, card, calibration, of=config.reference.card)
    return [check.plan(config, card, calibration) for check in CHECKS]


def _stop(config: RunFile, policy: Policy, planned: Sequence[Planned], *, seed: int) -> int:
    """The replies before which nothing is called consistent, within what the budget pays for."""
    audit = config.audit
    if audit.min_replies is not None:
        return audit.min_replies
    kept = sum(one.tokens + int(one.share * audit.budget_completion_tokens) for one in planned)
    paid = int((audit.budget_completion_tokens - kept) // (audit.max_tokens * _each(config)))
    return min(draw_stop(seed, least=least_for(policy, beta=audit.beta)), max(paid, LEAST_REPLIES))


def least_for(policy: Policy, *, beta: float) -> int:
    """Replies that a certificate takes at least: those by which the smallest share that the policy
    names would have shown at 1 - beta, ln beta / ln(1 - share)."""
    shares = policy.routed.values()
    least = [math.ceil(math.log(beta) / math.log1p(-share)) for share in shares]
    return max([LEAST_REPLIES, *least])


def draw_stop(seed: int, *, least: int) -> int:
    """The stopping point: `least` replies or more, drawn from the seed.

    A host that serves the first replies well must not know when it may stop to. Half of all stop at
    `least`, so that certificates stay cheap; x times `least` is exceeded with probability
    x ** -4 / 2, up to MOST_TIMES.
    """
    drawn = int.from_bytes(sha256(f"stopping point {seed}".encode()).digest()[:8], "big")
    uniform = min(1.0, (drawn + 1) / 2**63)  # above 0
    return min(round(least / math.sqrt(math.sqrt(uniform))), MOST_TIMES * least)


def _suspects(config: RunFile, card: Card) -> dict[str, str]:
    """Other models that may be named, and what each is in words."""
    suspects = (*card.siblings, *config.reference.suspects)
    taken = [REFERENCE, *card.columns, *(suspect.name for suspect in suspects)]
    repeated = [suspect.name for suspect in suspects if taken.count(suspect.name) > 1]
    if repeated:
        raise ConfigError(
            f"reference.suspects: {repeated[0]!r} is a name in the card or in this list already; "
            "give each another name"
        )
    return {suspect.name: suspect.title for suspect in suspects}


def _each(config: RunFile) -> int:
    """Replies that are asked for each on which a verdict rests: of two one is to a question of the
    pack, where one stands beside the weights."""
    return 2 if config.reference.pack is not None and config.reference.has_weights else 1


def _refuse_small_budget(config: RunFile, planned: Sequence[Planned]) -> None:
    """Raise ConfigError for a budget that pays for no verdict beside what checks keep of it."""
    audit, replies = config.audit, config.audit.least_replies * _each(config)
    budget, least = audit.budget_completion_tokens, replies * audit.max_tokens
    kept, share = 0, 0.0
    for one in planned:
        if not one.tokens and not one.share:
            continue
        kept, share = kept + one.tokens + int(one.share * budget), share + one.share
        if budget - kept < least:
            needed = (least + sum(p.tokens for p in planned if p.tokens)) / (1 - share)
            if not one.tokens:
                needed = least / (1 - share)
            raise ConfigError(
                f"audit.budget_completion_tokens: {budget} cannot pay for {replies} "
                f"replies of {audit.max_tokens} tokens beside {one.beside}; allow "
                f"{math.ceil(needed)} or more"
            )
    if budget < least:
        raise ConfigError(
            f"audit.budget_completion_tokens: {budget} cannot pay for {replies} "
            f"replies of {audit.max_tokens} tokens, the least for a verdict; allow {least} or more"
        )
    problem = next((one.problem for one in planned if one.problem), "")
    if problem:
        raise ConfigError(problem)


def _draw(
    config: RunFile, plan: Plan, pool: Pool, pack: Pack | None
) -> tuple[tuple[Probe, ...], int]:
    """The ordinary probes, and how many were drawn from the pool for them.

    Raises ConfigError for settings that the dialect cannot carry.
    """
    if pack is not None and not config.reference.has_weights:
        return _draw_from(pack, config, plan), 0
    audit = config.audit
    count = min(
        SPARE_PROBES * (audit.budget_completion_tokens // audit.max_tokens),
        size_of(pool, audit.kinds),
    )
    probes = draw(pool, seed=plan.seed, count=count, max_tokens=audit.max_tokens, kinds=audit.kinds)
    if pack is not None:
        probes = _in_pairs(_draw_from(pack, config, plan), probes, pack, seed=plan.seed)
    settings = tuple(audit.template_settings.items())
    if settings and config.endpoint.dialect != "chat":
        raise ConfigError(
            f"audit.template_settings: the dialect {config.endpoint.dialect} cannot carry them; "
            "take endpoint.dialect: chat, or leave them out"
        )
    return tuple(replace(probe, settings=settings or probe.settings) for probe in probes), count


# -- from a pack -------------------------------------------------------------------------------

#: What may be asked for, and can be judged only with weights: a key of the audit and its words.
_BEYOND: Final = {
    "sampler": "how replies are sampled",
    "context": "long prompts",
    "output": "long replies",
    "speed": "how fast it answers and what it bills",
    "tools": "how tools are rendered in ordinary questions",
}


_COMES_AGAIN: Final = (
    "audit.after: questions of a pack may come again, and would count twice; leave it out, or go "
    "on with the weights alone"
)


def _with_pack(
    config: RunFile, pack: Pack | None, card: Card, pool: Pool
) -> tuple[RunFile, PackFacts | None]:
    """The run file as it is asked with a pack, and what that is. Raises ConfigError."""
    if pack is None:
        return config, None
    if config.reference.has_weights:
        return config, _beside_weights(config, pack, card, pool)
    return _within_pack(config, pack)


def _within_pack(config: RunFile, pack: Pack) -> tuple[RunFile, PackFacts]:
    """The run file without what no pack can judge, and that in words with what the pack is.

    Raises ConfigError where what is left would be another audit than the one that was asked for.
    """
    audit, facts = config.audit, pack.manifest
    _, policy = resolve_policy(audit.policy)
    if policy.builds:
        raise ConfigError(
            "audit.policy: builds: a pack tells exact builds apart for a name alone; take a policy "
            "without builds, such as standard, or audit with the weights"
        )
    if config.endpoint.dialect == "completions":
        raise ConfigError(
            "endpoint.dialect: text completions are asked with prompts that a tokenizer renders, "
            "and a pack has none; take another dialect, or audit with the weights"
        )
    _refuse_unable(config, pack)
    if audit.after is not None:
        raise ConfigError(_COMES_AGAIN)
    if audit.max_tokens > facts.max_tokens and "max_tokens" in audit.model_fields_set:
        raise ConfigError(
            f"audit.max_tokens: {audit.max_tokens}, and the pack's paths have {facts.max_tokens} "
            "tokens; ask for no more, or audit with the weights"
        )
    if audit.template_settings:
        raise ConfigError(
            "audit.template_settings: the pack's questions are asked with its own; leave them out, "
            "or audit with the weights"
        )
    if facts.source == "texts":
        _refuse_milder(policy, facts)
    asked = {name: words for name, words in _BEYOND.items() if getattr(audit, name)}
    fields = type(audit).model_fields
    within = {name: fields[name].default for name in asked} | {"tools": False}
    within["max_tokens"] = min(audit.max_tokens, facts.max_tokens)
    told = facts_of(pack, beyond=(*asked.values(), *_beyond_texts(pack.manifest.source, policy)))
    return config.model_copy(update={"audit": audit.model_copy(update=within)}), told


def _refuse_unable(config: RunFile, pack: Pack) -> None:
    """Raise ConfigError for a dialect that cannot carry the settings of a pack's questions."""
    if pack.probes[0].settings and config.endpoint.dialect != "chat":
        raise ConfigError(
            f"reference.pack: its questions turn thinking off, and the dialect "
            f"{config.endpoint.dialect} cannot carry that; take endpoint.dialect: chat"
        )


def facts_of(pack: Pack, **more: Any) -> PackFacts:
    """What a plan holds of a pack, and `more` of how it is asked."""
    facts, thinking = pack.manifest, pack.manifest.thinking
    return PackFacts(
        digest=pack.digest, signed_by=pack.signed_by, made_on=facts.made_on, source=facts.source,
        questions=len(pack.ordinary), panel=facts.panel, tokens=facts.max_tokens,
        trusted=facts.trusted, thinking=None if thinking is None else thinking.mode, **more,
    )  # fmt: skip


def _beside_weights(config: RunFile, pack: Pack, card: Card, pool: Pool) -> PackFacts:
    """What the pack is that lends weights its questions.

    Raises ConfigError for one of another model, and where an earlier audit is gone on from.
    """
    if config.audit.after is not None:
        raise ConfigError(_COMES_AGAIN)
    if pack.manifest.source != "weights":
        raise ConfigError(
            "reference.pack: was recorded from a host, and beside weights stands one that weights "
            "made; give such a one, or leave the card out"
        )
    _refuse_unable(config, pack)
    own = pack.card
    for name in ("tensors_sha256", "tokenizer_sha256", "template_sha256"):
        theirs, ours = getattr(own.digests, name), getattr(card.digests, name)
        if None not in (theirs, ours) and theirs != ours:
            raise ConfigError(
                f"reference.pack: is of {own.name}, whose {name} is {theirs[:16]}, and that of "
                f"card {card.name} is {ours[:16]}; give the pack of this card"
            )
    same = pack.manifest.pool_sha256 == pool.digest
    return facts_of(pack, with_weights=True, same_pool=same)


def _in_pairs(
    known: tuple[Probe, ...], fresh: tuple[Probe, ...], pack: Pack, *, seed: int
) -> tuple[Probe, ...]:
    """A pack's questions and fresh ones that it lacks, one of each in every two; which of the two
    comes first is drawn, and all are asked in one way."""
    held = {probe.messages for probe in pack.probes}
    fresh = tuple(probe for probe in fresh if probe.messages not in held)
    rng = random.Random(f"{seed}:pack")  # noqa: S311 - a seed is the secret
    found: list[Probe] = []
    for one, other in zip(known, fresh, strict=False):
        of_pack = replace(one, id=f"{PACKED}{one.id}", max_tokens=other.max_tokens)
        pair = [of_pack, replace(other, settings=one.settings)]
        rng.shuffle(pair)
        found += pair
    return tuple([*found, *fresh[len(known) :]][: len(fresh)])


def _refuse_milder(policy: Policy, facts: Manifest) -> None:
    """Raise ConfigError for a class of noise that where replies leave a text does not tell."""
    kind = None if facts.trusted is None else KINDS[facts.trusted.kind]
    milder = next(
        (n for n in policy.noise if kind and not is_told(n, facts.calibration, kind)), None
    )
    if milder is not None:
        raise ConfigError(
            f"audit.policy: {milder}: of the pack's host texts alone are known, which tell nothing "
            "milder than 4-bit weights from honest serving; take screen (--policy screen), or a "
            "pack with log-probabilities"
        )


def told_by(facts: PackFacts | None, policy: Policy) -> Policy:
    """The policy without what its reference does not tell, see `_beyond_texts`."""
    if facts is None or facts.source != "texts":
        return policy
    return policy.model_copy(update={"routed": {}})


def _beyond_texts(source: str, policy: Policy) -> tuple[str, ...]:
    """What the policy names and texts alone do not tell."""
    if source != "texts":
        return ()
    return tuple(f"a share of requests to {of}" for of in policy.routed)


def _draw_from(pack: Pack, config: RunFile, plan: Plan) -> tuple[Probe, ...]:
    """The ordinary probes of a pack, drawn by the run's secret seed.

    Raises ConfigError where it has none of the kinds asked for.
    """
    audit = config.audit
    kinds = None if audit.kinds is None else frozenset(audit.kinds)
    able = [probe for probe in pack.ordinary if kinds is None or probe.kind in kinds]
    if not able:
        held = ", ".join(sorted({probe.kind for probe in pack.ordinary}))
        raise ConfigError(f"audit.kinds: the pack has questions of kind {held} alone")
    count = SPARE_PROBES * (audit.budget_completion_tokens // audit.max_tokens)
    order = shuffled(range(len(able)), seed=plan.seed)[:count]
    return tuple(
        replace(able[n], max_tokens=min(able[n].max_tokens, audit.max_tokens)) for n in order
    )


def versions() -> dict[str, str]:
    """Versions of everything that could move a number."""
    found = {"verifier": verifier.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


# -- what it may cost --------------------------------------------------------------------------


def forecast_run(run: Path) -> tuple[Priced, Priced]:
    """What a planned run may cost, as expected and at most."""
    plan = read_plan(run)
    each = [check.forecast(plan) for check in CHECKS]
    expected, most = forecast(
        _planned_probes(run),
        max_tokens=plan.max_tokens,
        ceiling=plan.ceiling,
        expected=_total([one.expected for one in each]),
        most=_total([one.most for one in each]),
    )

    def price(amount: Amount) -> Priced:
        usd = amount.usd(plan.prices)
        if usd is not None and plan.budget_usd is not None:
            usd = min(usd, plan.budget_usd)
        return Priced(amount=amount, usd=usd)

    return price(expected), price(most)


def _total(amounts: Sequence[Amount]) -> Amount:
    return Amount(
        requests=sum(one.requests for one in amounts),
        prompt_tokens=sum(one.prompt_tokens for one in amounts),
        completion_tokens=sum(one.completion_tokens for one in amounts),
    )


def _planned_probes(run: Path) -> tuple[Probe, ...]:
    """The probes that are there once a run is planned: ordinary and sampled ones."""
    return tuple(
        probe for check in CHECKS for asked in check.asked if asked.planned
        for probe in asked.probes(run)
    )  # fmt: skip


def describe_policy(run: Path) -> list[str]:
    """What a consistent verdict of a planned run excludes, and the least that takes, in lines."""
    plan = read_plan(run)
    excludes = [*plan.policy.noise, *plan.policy.builds]
    lines = [f"policy {plan.policy_name}: a consistent verdict excludes {', '.join(excludes)}"]
    halved = plan.pack is not None and plan.pack.with_weights
    for of, share in plan.policy.routed.items():
        replies = max(least_replies(share, error=plan.beta), LEAST_REPLIES) * (2 if halved else 1)
        lines.append(
            f"and that {share:.0%} of the requests or more went to {of} or worse, which takes at "
            f"least {replies} replies, {replies * plan.max_tokens:,} completion tokens"
            f"{', half of them to questions of the pack' if halved else ''}"
        )
    lent = None if plan.calibrated is None else plan.calibrated.provisional
    if lent is not None:
        lines.append(
            f"provisional: nobody has calibrated {plan.card}; the honest noise is taken from "
            f"{lent.lent_by}, and nothing milder than 4-bit-class noise is held against a host"
        )
    return lines


def longest_waits_s(run: Path) -> float:
    """How long a planned run could wait between tries, were there no deadline: one probe at a time,
    and every wait as long as a host may ask for."""
    return len(_planned_probes(run)) * (read_plan(run).max_attempts - 1) * MAX_WAIT_S
