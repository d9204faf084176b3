"""The order of steps of one audit. Read this file first.

    run file -> plan -> probes -> collect -> score -> ledger -> decide -> report

Each step reads files of the run folder and writes the next, so every step can be redone alone and
an audit that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache as cache_once
from functools import partial
from pathlib import Path
from threading import RLock

from verifier.bypass import ROUNDS as COMPLETED_ROUNDS
from verifier.bypass import read_bypass, to_complete
from verifier.calibration import load_calibration
from verifier.capabilities import (
    Capabilities,
    capability_probes,
    least_tokens,
    probe_capabilities,
    read_capabilities,
)
from verifier.capabilities import apply as apply_capabilities
from verifier.causes import is_rather_a_suspect
from verifier.collect import STOP_AFTER_FAILURES, book, collect, read_attempts, read_outcomes
from verifier.config import RunFile, dump_run_file, load_run_file
from verifier.context import ask_about_context
from verifier.counting import counting_probes, plan_counting, read_counting
from verifier.decide import (
    asks_long,
    decide_folder,
    is_far,
    judge_folder,
    may_be_sampled,
    names_template,
    publish,
    seeks_cause,
    suspects_template,
    suspicious,
    waits_for_long,
    wants_completions,
    wants_samples,
    wants_stratum,
)
from verifier.departures import is_unknown
from verifier.endpoint import Endpoint, Render
from verifier.engines import Engine
from verifier.errors import ConfigError, EndpointError, VerifierError
from verifier.folder import (
    CAPABILITY_EXCHANGES,
    COMPLETIONS,
    CONTEXT,
    LEDGER,
    PAGE,
    PANEL,
    PLAN,
    PROBES,
    PROMPTS,
    REPORT,
    RUN,
    SAMPLED,
    SHOWN_EXCHANGES,
    read_json,
    write_json,
    write_whole,
)
from verifier.ledger import TEMPLATE, ledger_from_json
from verifier.plan import (
    CONTEXT_KIND,
    OUTPUT_KIND,
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
from verifier.prompts import make_prompt
from verifier.quiet import can_turn_off, hides_thoughts, turn_off
from verifier.records import REFERENCE, Failure, Message, Outcome, Probe, Reply, Report
from verifier.reference import Card, load_card, load_templates, load_tokenizers
from verifier.renderings.catalogue import (
    Rendering,
    catalogue,
    entries_named,
    expressible,
    render_probe,
)
from verifier.renderings.panel import Panel, design_panel
from verifier.report import render_page, report_from_json
from verifier.samplers import Sampler, penalty_columns
from verifier.score import score_repeats, score_replies, score_sampled
from verifier.shown import ask_for_prompts, read_shown
from verifier.spending import Ceiling, Purse
from verifier.suspects import Suspected
from verifier.templates import (
    ENOUGH,
    TemplateEvidence,
    is_settled,
    still_likely,
    weigh_templates,
)
from verifier.thoughts import Reader
from verifier.weigh import leaves_noise, named_template, planned_samplers
from verifier.weights import (
    check_weights,
    fetch_checkpoint,
    fetch_variant,
    fetch_weights,
    tokenizer_sha256,
)
from verifier.wording import describe_replies

#: Replies on which a cause is named: more tell little, and each is scored under every build.
NAMING_REPLIES = 24

#: Probes of a panel, and completion tokens of each: renderings that differ, differ early.
PANEL_PROBES = 12
PANEL_TOKENS = 48

#: Kinds of probes that are asked last, out of a part of the budget of their own.
LONG = (CONTEXT_KIND, OUTPUT_KIND)

#: Replies of a panel scored at each look at the renderings.
ROUNDS = (1, 2, 4, 8, 12)

#: Ordinary replies scored at each further look, where a panel's replies leave a fault unnamed.
FURTHER_ROUNDS = (8, 16, 24)


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
    catalogue: Mapping[str, Rendering] = field(default_factory=catalogue)
    #: How each suspect reads prompts and replies; called once the suspect is to be scored.
    suspects: Mapping[str, Callable[[], Suspected]] = field(default_factory=dict)
    #: Held for one whole scoring step, so that audits side by side never meet in the engine, which
    #: changes its weights in place. Never held while an endpoint is asked.
    busy: AbstractContextManager[object] = field(default_factory=RLock)


LoadReference = Callable[[], Reference]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How an audit keeps step with others beside it."""

    begin: Callable[[int], None]  # called with a batch's number before it is asked; may wait
    stopped: Callable[[], bool]  # whether to give up what is being asked


#: The pace of an audit by itself.
ALONE = Pace(begin=lambda _number: None, stopped=lambda: False)


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
    run = config.out
    plan = start(config)
    make_endpoint(config, api_key=api_key)  # what it refuses should not wait for the reference
    probes = read_probes(run)
    reference = load_reference()
    _refuse_unknown_builds(plan, reference.engine)
    endpoint = make_endpoint(config, api_key=api_key, render=_renderer(reference.tokenizer))
    known = read_capabilities(run)
    if known is None and config.audit.capabilities:
        show.tell("finding out what the endpoint can do")
        known = probe_capabilities(run, endpoint, purse=open_purse(run, plan))
    endpoint = endpoint if known is None else apply_capabilities(known, endpoint)
    found, looked = None, False
    if known is not None and known.reasoning == "hidden" and can_turn_off(plan, probes):
        probes = turn_off(run, plan)
    for number, end in enumerate(batch_ends(len(probes)), 1):
        pace.begin(number)
        _collect_within_budget(run, plan, endpoint, probes[:end], show, pace)
        score(run, reference, show=show)
        if _hides_thoughts(run, plan, probes[:end]):
            show.tell("the endpoint hides thoughts: going on with thinking off")
            probes = turn_off(run, plan)
        if not looked and endpoint.dialect == "chat" and suspects_template(run):
            looked = True
            look_at_template(run, plan, endpoint, reference, show, pace)
        found = judge_folder(run)
        show.tell(_standing(publish(run, found)))
        quiet = (plan.samplers and may_be_sampled(plan, found)) or waits_for_long(plan, found)
        ends = found.decision != "inconclusive" and not wants_stratum(found)
        if ends or quiet or not _goes_on(run, plan, probes[:end]):
            break
    assert found is not None  # a plan has at least one probe
    if plan.samplers and may_be_sampled(plan, found):
        found = ask_for_samples(run, plan, endpoint, reference, show, pace)
    if asks_long(plan) and found.decision != "inconsistent":
        found = ask_for_long(run, plan, endpoint, reference, show, pace)
    sought = seeks_cause(found.findings) and not names_template(found)
    if found.decision == "inconsistent" and sought and is_far(found):
        count_tokens(run, plan, endpoint, reference, show, pace)
    if found.decision == "inconsistent" and sought:
        loadable = nameable(plan, reference, show)
        able = reference.engine.scores_samplers
        score(
            run, reference, weights=loadable, limit=NAMING_REPLIES, show=show,
            penalties=penalty_columns() if able else {},
        )  # fmt: skip
        found = judge_folder(run)
        publish(run, found)
    if endpoint.dialect == "chat" and wants_completions(found):
        ask_for_completions(run, plan, endpoint, reference, show, pace)
        decide_folder(run)
    return write_page(run)


def _hides_thoughts(run: Path, plan: Plan, probes: tuple[Probe, ...]) -> bool:
    ledger = ledger_from_json(read_json(run / LEDGER), where=str(run / LEDGER))
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
    _collect_within_budget(run, plan, endpoint, asked, show, pace)


def nameable(plan: Plan, reference: Reference, show: Show) -> tuple[str, ...]:
    """The builds and suspects of a plan that can be loaded, for a cause to be named."""
    builds = (name for name in plan.bank if reference.engine.can_load(name))
    return (*builds, *_read_suspects(plan, reference, show))


def _read_suspects(plan: Plan, reference: Reference, show: Show) -> dict[str, Suspected]:
    """Those suspects of a plan that can be had; of the others it is told why not.

    A card's siblings are fetched when they are needed first, and a verdict must not wait for them.
    """
    found = {}
    for name in plan.suspects:
        if name not in reference.suspects or not reference.engine.can_load(name):
            continue
        try:
            found[name] = reference.suspects[name]()
        except VerifierError as problem:
            show.tell(f"going on without the suspect {name}: {problem}")
    return found


def _renderer(tokenizer: Reader) -> Render:
    """Messages to the published prompt, for endpoints that complete texts."""
    return lambda messages: tokenizer.encode_prompt(tokenizer.render_text(make_prompt(messages)))


def render_as_text(tokenizer: Reader) -> Render:
    """The same as text where a server's tokenizer makes the same ids of it, else as ids.

    More hosts take texts. Where control tokens in them are not heeded, prompts are longer than they
    should be, and counts show it.
    """

    def spell(messages: tuple[Message, ...]) -> str | tuple[int, ...]:
        text = tokenizer.render_text(make_prompt(messages))
        ids = tokenizer.encode_prompt(text)
        for spelled in (text, text.removeprefix(tokenizer.bos)):
            if tokenizer.encode_completion(spelled) == ids:
                return spelled
        return ids

    return spell


def _refuse_unknown_builds(plan: Plan, engine: Engine) -> None:
    """Before anything is spent on an audit whose policy cannot be scored."""
    unknown = [name for name in plan.policy.builds if not engine.can_load(name)]
    if unknown:
        raise ConfigError(
            f"audit.policy: builds: {', '.join(unknown)} cannot be loaded by the engine "
            f"{engine.versions['engine']}; take a policy without builds, or another --engine"
        )


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
    sampled = make_sampled(config, plan, load_pool(), len(probes))
    write_plan(run, dump_run_file(config), plan, probes, sampled)
    return plan


def _is_of_a_plan(path: Path) -> bool:
    """Whether a kill while a plan was written may have left this file."""
    return path.name.removesuffix(".partial") in (RUN, PROBES, SAMPLED, PLAN)


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


def reference_loader(
    config: RunFile, *, cache: Path, show: Show, api_key: str | None = None
) -> LoadReference:
    """Loads the card's weights with the engine asked for, once they are fetched and checked.

    `api_key` is the remote engine's. What it scores with is taken on its word: only the tokenizer
    and the template are checked here.
    """
    section = config.reference

    def load() -> Reference:
        card = load_card(section.card)
        weights = section.weights
        if weights is None:
            weights = fetch_weights(card, cache=cache, tell=show.tell)
        elif not weights.is_dir():
            raise ConfigError(f"reference.weights: no directory {weights}")
        check_weights(card, weights, tensors=section.engine != "remote")
        show.tell(f"loading {card.name}")
        from verifier.engines.load import load_engine
        from verifier.tokens import Tokenizer

        tokenizer = Tokenizer(weights)
        builds = {v.name: partial(fetch_variant, card, v, tell=show.tell) for v in card.variants}
        others = {
            s.name: partial(fetch_checkpoint, s, where=where, tell=show.tell)
            for where, some in (
                (f"card {card.name}: siblings", card.siblings),
                ("reference.suspects", section.suspects),
            )
            for s in some
        }
        for suspect in (*card.siblings, *section.suspects):
            asked_for = suspect in section.suspects  # a card's may be large, and never needed
            if suspect.path is not None or asked_for:  # what is missing is said before all else
                others[suspect.name]()
        engine = load_engine(
            section.engine, weights, tokenizer, dtype=section.dtype,
            engine_args={**card.engine_args, **section.engine_args},
            checkpoints={**builds, **others}, url=section.url, api_key=api_key,
        )  # fmt: skip

        def read_as(fetch: Callable[[], Path]) -> Suspected:
            directory = fetch()
            same = tokenizer_sha256(directory) == tokenizer_sha256(weights)
            return Suspected(tokenizer=Tokenizer(directory), same=same)

        earlier, valid = load_templates(section.card, card)
        return Reference(
            engine=engine, tokenizer=tokenizer, catalogue=catalogue(earlier=earlier, valid=valid),
            suspects={name: cache_once(partial(read_as, f)) for name, f in others.items()},
        )  # fmt: skip

    return load


def design_card_panel(card: Card, *, seed: int, size: int, cache: Path, show: Show) -> Panel:
    """The panel of a card for a seed; needs its tokenizer, no engine."""
    from verifier.tokens import Tokenizer

    weights = fetch_weights(card, cache=cache, tell=show.tell)
    check_weights(card, weights)
    return design_panel(
        Tokenizer(weights), tuple(catalogue().values()), load_pool(), seed=seed, size=size,
        max_tokens=PANEL_TOKENS,
    )  # fmt: skip


# -- the template ------------------------------------------------------------------------------


def look_at_template(
    run: Path,
    plan: Plan,
    endpoint: Endpoint,
    reference: Reference,
    show: Show,
    pace: Pace = ALONE,
) -> None:
    """Ask the panel, a few probes at a time, until the rendering is known or all are asked.

    The panel is searched for once and kept in the run folder.
    """
    if not (run / PANEL).exists():
        found = design_panel(
            reference.tokenizer, tuple(reference.catalogue.values()), load_pool(), seed=plan.seed,
            size=PANEL_PROBES, max_tokens=min(PANEL_TOKENS, plan.max_tokens),
        )  # fmt: skip
        write_probes(run, found.probes, name=PANEL)
    panel = read_probes(run, name=PANEL)
    ask_for_prompts(
        run, endpoint, panel, entries=reference.catalogue, renderer=reference.tokenizer,
        purse=open_purse(run, plan), max_tokens=least_tokens(read_capabilities(run)),
        stopped=pace.stopped,
    )  # fmt: skip

    def ask_some(some: tuple[Probe, ...]) -> None:
        _collect_within_budget(run, plan, endpoint, some, show, pace)

    score_panel(run, reference, panel=panel, before=ask_some, show=show)


def score_panel(
    run: Path,
    reference: Reference,
    *,
    panel: tuple[Probe, ...],
    before: Callable[[tuple[Probe, ...]], None] | None = None,
    show: Show,
) -> None:
    """Score a panel's replies under the renderings that are still likely, in a few rounds.

    Where they leave a fault the likeliest and yet unnamed, as noise of other weights does, ordinary
    replies are scored under the renderings that the panel left, and never under fewer: which those
    are was chosen without a look at ordinary replies, so the evidence against every valid rendering
    keeps its level with the panel's replies in front. Hidden prompts of unknown words are left to
    the panel: noise of other weights looks like words that nobody knows. Where a suspect, served
    honestly, made the replies, there is no fault of the template to look for.

    `before` is called with the probes that a round needs before they are scored.
    """
    plan, probes = read_plan(run), read_probes(run)
    entries = reference.catalogue
    able = expressible(entries.values(), panel, reference.tokenizer)
    names = (REFERENCE, *(entry.name for entry in able))

    def look(some: tuple[Probe, ...], names: tuple[str, ...]) -> TemplateEvidence | None:
        with reference.busy:
            ledger = score_replies(
                run, some, read_outcomes(run, max_attempts=plan.max_attempts),
                every=(*probes, *panel), engine=reference.engine, tokenizer=reference.tokenizer,
                templates=names, catalogue=entries, thinking=plan.thinking,
                progress=lambda done, of: show.step("scoring", done, of),
            )  # fmt: skip
        return weigh_templates(ledger, entries, plan.calibration.text)

    evidence = None
    for size in ROUNDS:
        if before is not None:
            before(panel[: max(size, ENOUGH)])
        evidence = look(panel[:size], names)
        if evidence is None:  # nothing could be judged yet
            continue
        if ends_panel(plan, evidence, names, entries):
            break
        names = still_likely(evidence, names, entries)
    if evidence is not None and is_of_a_suspect(run, plan, reference, evidence, show):
        return
    names = tuple(name for name in names if not entries[name].stands_for)
    for size in FURTHER_ROUNDS:
        if evidence is None or not (evidence.scored and leaves_a_fault_open(plan, evidence)):
            break
        if before is not None:
            before(probes[:size])
        evidence = look(probes[:size], names)
    _write_prompts(run, panel, reference)


def ends_panel(
    plan: Plan,
    evidence: TemplateEvidence,
    names: Sequence[str],
    entries: Mapping[str, Rendering],
) -> bool:
    """Whether no more of a panel is needed: one name leads by far, and a fault can be said."""
    may_be_said = evidence.ranked[0] in evidence.valid or named_template(plan, evidence) is not None
    return may_be_said and is_settled(evidence, names, entries)


def is_of_a_suspect(
    run: Path, plan: Plan, reference: Reference, evidence: TemplateEvidence, show: Show
) -> bool:
    """Whether a suspect, served honestly, made the ordinary replies, and not a template fault.

    Asked only where a fault is the likeliest rendering and leaves noise beyond honest serving: the
    ordinary replies are then scored under each suspect, under that rendering, which the panel
    chose, and under every valid one, which the evidence against valid renderings needs.
    """
    column = evidence.columns[evidence.ranked[0]]
    if evidence.ranked[0] in evidence.valid or not leaves_noise(plan, evidence):
        return False
    suspects = _read_suspects(plan, reference, show)
    if not suspects:
        return False
    probes, panel = read_probes(run), read_probes(run, name=PANEL)
    with reference.busy:
        ledger = score_replies(
            run, probes[: FURTHER_ROUNDS[0]], read_outcomes(run, max_attempts=plan.max_attempts),
            every=(*probes, *panel), engine=reference.engine, tokenizer=reference.tokenizer,
            weights=tuple(suspects),
            templates=(column.removeprefix(TEMPLATE), *sorted(evidence.valid)),
            catalogue=reference.catalogue, suspects=suspects,
            progress=lambda done, of: show.step("scoring", done, of),
        )  # fmt: skip
    return is_rather_a_suspect(plan, ledger, column)


def leaves_a_fault_open(plan: Plan, evidence: TemplateEvidence) -> bool:
    """Whether a fault is the likeliest of the known renderings, and more replies may yet name it.

    Hidden prompts of unknown words are left aside: ordinary replies are not scored under them.
    """
    entries = entries_named(evidence.ranked)
    known = [name for name in evidence.ranked if entries[name].stands_for is None]
    is_open = known[0] not in evidence.valid  # the published one is always there
    return is_open and named_template(plan, evidence) is None


def _write_prompts(run: Path, panel: tuple[Probe, ...], reference: Reference) -> None:
    """Keep a prompt as published and as the likeliest rendering makes it: the shortest that shows.

    The likeliest is what the endpoint shows, where it shows a known fault. Nothing is kept when the
    published rendering is the likeliest.
    """
    plan, entries = read_plan(run), reference.catalogue
    ledger = ledger_from_json(read_json(run / LEDGER), where=str(run / LEDGER))
    evidence, shown = weigh_templates(ledger, entries, plan.calibration.text), read_shown(run)
    if shown is not None and shown.faults:
        name = column = shown.faults[0]
    elif evidence is not None and evidence.ranked[0] != REFERENCE:
        name = evidence.ranked[0]
        column = evidence.columns[name].removeprefix(TEMPLATE)
    else:
        return
    pairs = []
    for probe in panel:
        published = render_probe(entries[REFERENCE], probe, reference.tokenizer)
        served = render_probe(entries[column], probe, reference.tokenizer)
        if published is not None and served is not None and published.text != served.text:
            pairs.append((len(published.text), probe.id, published.text, served.text))
    if pairs:
        _, probe_id, published_text, served_text = min(pairs)
        prompts = {
            "probe_id": probe_id, "name": name,
            "published": published_text, "served": served_text,
        }  # fmt: skip
        write_json(run / PROMPTS, prompts)


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
        _collect_within_budget(run, plan, endpoint, sampled[:end], show, pace)
        score(run, reference, show=show)
        found = judge_folder(run)
        show.tell(_standing(publish(run, found)))
        if (able and not wants_samples(found)) or not _goes_on(run, plan, sampled[:end]):
            break
    return found


def ask_for_long(
    run: Path, plan: Plan, endpoint: Endpoint, reference: Reference, show: Show, pace: Pace
) -> Report:
    """Ask for long prompts and long replies; the verdict with what they say."""

    def ask_some(some: tuple[Probe, ...]) -> Mapping[str, Outcome]:
        if some:
            _collect_within_budget(run, plan, endpoint, some, show, pace)
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
        folder.mkdir(exist_ok=True)
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
            _collect_within_budget(run, plan, direct, probes[:size], show, pace, folder=folder)
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
    """Plan the run if it is not planned yet, and find out what its endpoint can do."""
    plan = start(config)
    endpoint = make_endpoint(config, api_key=api_key)
    return probe_capabilities(config.out, endpoint, purse=open_purse(config.out, plan))


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
    sampled = read_probes(run, name=SAMPLED) if probes is None else ()
    for some in (asked, sampled):
        for end in batch_ends(len(some)):
            _collect_within_budget(run, plan, endpoint, some[:end], show)
            if not _goes_on(run, plan, some[:end]):
                break
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


def write_page(run: Path) -> Report:
    """Write the HTML page of a decided run folder; the report it shows."""
    plan = read_plan(run)
    report = report_from_json(read_json(run / REPORT))
    page = render_page(
        report,
        outcomes=read_outcomes(run, max_attempts=plan.max_attempts),
        probes=tuple(
            p for name in (PROBES, PANEL, SAMPLED, CONTEXT) for p in read_probes(run, name=name)
        ),
        attempts=read_attempts(run),
        prompts=read_prompts(run, report),
    )
    write_whole(run / PAGE, page)
    return report


def read_prompts(run: Path, report: Report) -> dict[str, str] | None:
    """A prompt as published and as the named rendering makes it, to be shown.

    None where none is named, or where its words only stand for some that are not known.
    """
    if not names_template(report) or not (run / PROMPTS).exists():
        return None
    found: dict[str, str] = read_json(run / PROMPTS)
    return None if is_unknown(TEMPLATE + str(found.get("name", ""))) else found


# -- the budget --------------------------------------------------------------------------------


def _collect_within_budget(
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
    every, ceiling = _probes_of(folder), _ceiling_beside(run, plan, folder)
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


def _ceiling_beside(run: Path, plan: Plan, folder: Path) -> Ceiling:
    """What is left for the probes of `folder` after everything that was asked beside them."""
    purse = Purse(plan.ceiling)
    book(run, purse, capability_probes(), name=CAPABILITY_EXCHANGES)
    book(run, purse, read_probes(run, name=PANEL), name=SHOWN_EXCHANGES)
    for other in (run, run / COMPLETIONS):
        if other != folder:
            book(other, purse, _probes_of(other))
    spent = purse.spent
    return plan.ceiling.less(spent.completion_tokens, prompt_tokens=spent.prompt_tokens)


def _probes_of(folder: Path) -> tuple[Probe, ...]:
    """Every probe of a folder."""
    names, counted = (PROBES, PANEL, SAMPLED, CONTEXT), read_counting(folder)
    planned = tuple(probe for name in names for probe in read_probes(folder, name=name))
    return planned if counted is None else (*planned, *counting_probes(counted, like=planned[0]))


def open_purse(run: Path, plan: Plan) -> Purse:
    """What is left after every request so far, less what is kept for samples and long prompts."""
    kept = plan.budget_sampled_tokens + plan.budget_long_tokens
    ceiling = _ceiling_beside(run, plan, run)
    purse = Purse(ceiling.less(kept, prompt_tokens=plan.context_tokens))
    book(run, purse, _probes_of(run))
    return purse


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
