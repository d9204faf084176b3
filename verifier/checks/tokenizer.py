"""Which tokenizer a host counts prompts with: a family of models, told without its weights.

A few strings are asked, one token each, on which known tokenizers differ (`reference`), and
`usage.prompt_tokens` is compared with what each makes of them. Templates and hosts add a constant
to every count, which is free here: only differences between strings speak. Hosts may count with a
tokenizer that they do not serve, so the counts name and never convict: no verdict rests on them,
and their weight is bounded as `prompt_counts` bounds it. Asked once the replies are far from the
published weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from verifier.checks.check import (
    Account,
    Asked,
    Aspect,
    Case,
    Check,
    Forecast,
    Session,
    is_far,
    make_finding,
)
from verifier.errors import ConfigError
from verifier.evidence.prompt_counts import count_log_likelihoods, fit_counts
from verifier.files.run_folder import COUNTED, PROBES, write_json
from verifier.files.stored import read_record
from verifier.host.budget import Amount
from verifier.plan_file import Plan, read_probes
from verifier.records import (
    REFERENCE,
    Count,
    Decision,
    Finding,
    Message,
    NotJudged,
    Outcome,
    Probe,
    Reply,
)
from verifier.reference.cards import TokenizerTable, load_tokenizers
from verifier.reference.reader import Vocabulary

TOKENIZER: Final = Aspect(
    name="tokenizer", label="tokenizer that prompts are counted with", place=130, role="name"
)

#: The kind of its probes.
KIND: Final = "tokenizer"

#: Prior probability that a host counts with the published tokenizer; the rest is shared evenly.
PUBLISHED: Final = 0.5

#: A group of tokenizers is named when its posterior probability reaches this.
NAMED_AT: Final = 0.95

#: How often, at most, the test of its fit withholds a name that is true.
FIT_ERROR: Final = 0.05

#: What is said of counts that are those of no tokenizer of the table.
UNKNOWN_TOKENIZER: Final = "prompts are counted by a tokenizer that is not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """The strings asked, and how many tokens each known tokenizer makes of them."""

    strings: dict[str, str]  # probe -> text
    counts: dict[str, tuple[Count, ...]]  # tokenizer, ours as `reference` -> per string
    models: dict[str, str]  # tokenizer -> whose it is


def plan_counting(
    run: Path, table: TokenizerTable, vocabulary: Vocabulary, *, like: Probe
) -> tuple[Probe, ...]:
    """The probes, with the settings of `like`; what each tokenizer makes of them is written down.

    The published tokenizer counts for itself, whatever the table holds.
    """
    named = {f"k{n:02}": text for n, text in enumerate(table.strings)}
    own = tuple(len(vocabulary.encode(text)) for text in table.strings)
    known = {entry.name: entry.counts for entry in table.tokenizers}
    counting = Counting(
        strings=named,
        counts={REFERENCE: own, **known},
        models={entry.name: entry.models for entry in table.tokenizers},
    )
    write_json(run / COUNTED, asdict(counting))
    return counting_probes(counting, like=like)


def counting_probes(counting: Counting, *, like: Probe) -> tuple[Probe, ...]:
    """The probes of a counting, one token each, with the settings of `like`."""
    return tuple(
        Probe(
            id=name, kind=KIND, messages=(Message(role="user", content=text),), max_tokens=1,
            settings=like.settings,
        )
        for name, text in counting.strings.items()
    )  # fmt: skip


def read_counting(run: Path) -> Counting | None:
    """What a run folder asked of its host's counts; None when it did not. Raises ConfigError."""
    path = run / COUNTED
    if not path.exists():
        return None
    advice = "remove it and audit again"
    found = read_record(path, Counting, advice=advice)
    if {len(counts) for counts in found.counts.values()} != {len(found.strings)}:
        raise ConfigError(f"{path}: counts: expected one per string; {advice}")
    if REFERENCE not in found.counts or found.counts.keys() - {REFERENCE} != found.models.keys():
        raise ConfigError(f"{path}: models: expected one per tokenizer; {advice}")
    return found


def judge_counting(counting: Counting, outcomes: Mapping[str, Outcome]) -> Finding | None:
    """The tokenizer that the host's counts are those of, where it is not the published one.

    Null: the host counts with the published tokenizer, and adds one constant; a single count is
    off with probability 1 in 100, and one host in 100 counts with a tokenizer of the table although
    it serves the published weights (`prompt_counts`). None: the counts are the published
    tokenizer's, or say nothing. The likeliest is named where its counts fit by themselves, that is
    where no more of them are off than 1 in 100 explains, at FIT_ERROR; else it is the nearest.
    """
    told = [_count(outcomes.get(name)) for name in counting.strings]
    odds = _posterior(told, counting.counts)
    group = _group(odds)
    if REFERENCE in group or sum(odds[name] for name in group) < NAMED_AT:
        return None
    names = " or ".join(group)
    whose = "; ".join(f"{name}: {counting.models[name]}" for name in group)
    matched = _matched(told, counting.counts[group[0]])
    own = _matched(told, counting.counts[REFERENCE])
    log_odds = math.log(sum(odds[name] for name in group)) - math.log(odds[REFERENCE])
    detail = (
        f"{whose}. {matched} of {len(told)} counts fit, one constant aside, of those of the "
        f"published tokenizer {own}; hosts may count with a tokenizer that they do not serve"
    )
    if fit_counts(told, counting.counts[group[0]], free=True).fails(FIT_ERROR):
        detail = f"nothing in the table fits; the nearest is {names}. {detail}"
        return make_finding(TOKENIZER, "undecided", UNKNOWN_TOKENIZER, log_odds, detail)
    said = f"prompts are counted as by {names}"
    return make_finding(TOKENIZER, "detected", said, log_odds, detail)


def _count(outcome: Outcome | None) -> int | None:
    """What the host counted, whatever else its answer says."""
    return outcome.prompt_tokens if isinstance(outcome, Reply | NotJudged) else None


def _posterior(told: Sequence[int | None], counts: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Probability of each tokenizer; PUBLISHED where the counts say nothing."""
    rendered: dict[str, list[int | None]] = {name: list(some) for name, some in counts.items()}
    fits = count_log_likelihoods(told, rendered, unknown=frozenset(rendered))
    others = max(1, len(fits) - 1)
    logs = {
        name: fit + math.log(PUBLISHED if name == REFERENCE else (1 - PUBLISHED) / others)
        for name, fit in fits.items()
    }
    top = max(logs.values())
    total = sum(math.exp(value - top) for value in logs.values())
    return {name: math.exp(value - top) / total for name, value in logs.items()}


def _group(posterior: Mapping[str, float]) -> tuple[str, ...]:
    """The likeliest tokenizers that the strings do not tell apart."""
    best = max(posterior.values())
    return tuple(name for name, value in posterior.items() if math.isclose(value, best))


def _matched(told: Sequence[int | None], counts: Sequence[int]) -> int:
    """How many counts agree on one constant."""
    gaps = [count - own for count, own in zip(told, counts, strict=True) if count is not None]
    return max(map(gaps.count, gaps), default=0)


# -- the check ---------------------------------------------------------------------------------


def read(run: Path, _plan: Plan, _outcomes: Mapping[str, Outcome]) -> Counting | None:
    """What was asked of the host's counts."""
    return read_counting(run)


def read_strings(run: Path) -> tuple[Probe, ...]:
    """The strings that tell tokenizers apart, once they are asked.

    Raises ConfigError where the ordinary probes are gone, as which they were asked.
    """
    counting = read_counting(run)
    if counting is None:
        return ()
    ordinary = read_probes(run)
    if not ordinary:
        raise ConfigError(f"{run / PROBES}: missing; restore the run folder from a copy")
    return counting_probes(counting, like=ordinary[0])


def ask(session: Session, case: Case, kept: Counting | None) -> bool:
    """Ask the strings, one token each, once the replies are far from the published weights."""
    if session.pack is not None:  # which strings tell vocabularies apart, only a tokenizer knows
        return False
    sought = case.decision == "inconsistent" and case.seeks_cause and not case.names_template
    if not sought or not is_far(case) or not session.finish(CHECK.name):
        return False
    like = case.probes[0]
    if kept is None:
        own = session.reference.tokenizer
        asked = plan_counting(session.run, load_tokenizers(), own, like=like)
    else:
        asked = counting_probes(kept, like=like)
    session.ask(asked)
    return True


def name_it(
    case: Case, _evidence: None, account: Account, _found: Sequence[Finding], decision: Decision
) -> list[Finding]:
    """The tokenizer by its counts, where a name for other weights is sought."""
    counting = case.kept[CHECK.name]
    if decision != "inconsistent" or account.names != "weights" or counting is None:
        return []
    found = judge_counting(counting, case.outcomes)
    return [] if found is None else [found]


CHECK: Final = Check[Counting | None, None](
    name="tokenizer",
    read=read,
    none=None,
    aspects=(TOKENIZER,),
    forecast=lambda _plan: Forecast(
        most=Amount(requests=8, prompt_tokens=8 * 1024, completion_tokens=0)
    ),
    name_it=name_it,
    ask={"naming": ask},
    asked=(Asked(probes=read_strings),),
)
