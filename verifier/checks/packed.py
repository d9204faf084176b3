"""What an audit from a pack rests on, and what it leaves open: said beside the verdict.

No evidence of its own. A pack holds greedy paths of questions that anybody may know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from verifier.checks.check import Account, Aspect, Case, Check, Remark, make_finding
from verifier.host.exchange import UNSHOWN, UNTESTABLE
from verifier.plan_file import PackFacts
from verifier.records import Decision, Finding
from verifier.reference.trusted import SOURCES, Trusted, counts_otherwise, describe_prompts

BEYOND: Final = Aspect(name="pack", label="beyond a pack", place=150, role="remark")

#: What the paths are of, and what is not judged with them.
_WHAT: Final = {
    None: "", "shown": " within thoughts, without the answers",
    "off": " of answers with thinking off, without thoughts",
}  # fmt: skip

#: Characters shown of a digest or a key.
_SHOWN: Final = 16

#: What is judged of a reply.
_UP_TO: Final = (
    "each reply is judged up to the first place where it leaves its paths of {tokens} tokens{of}, "
    "and other models, samples and long prompts are not judged"
)

#: Questions below which a host can hold all replies ready without anybody noticing the cost.
_FEW: Final = 1000


def name_it(
    case: Case, _evidence: None, _account: Account, _found: Sequence[Finding], _decision: Decision
) -> list[Finding]:
    """What was asked for and needs the weights, and thoughts that nobody shows."""
    facts = case.plan.pack
    if facts is None:
        return []
    detail = "a pack holds greedy paths alone; audit with the weights"
    if case.plan.by_texts:
        detail = "of the pack's host texts alone are known; audit with the weights"
    found = [make_finding(BEYOND, "not run", what, None, detail) for what in facts.beyond]
    why = (row.unjudged or "" for row in case.ledger.rows)
    hidden = [one for one in why if one.startswith((UNTESTABLE, UNSHOWN))]
    if facts.thinking is not None and hidden and not case.scored and not facts.with_weights:
        reason = Counter(hidden).most_common(1)[0][0]
        found.append(make_finding(BEYOND, "not run", "the pack's questions", None, reason))
    return found


def remarks(
    case: Case, _evidence: None, _account: Account, _found: Sequence[Finding]
) -> list[Remark]:
    """Whose word the reference is, and the blind spot of every pack."""
    facts = case.plan.pack
    if facts is None:
        return []
    if facts.with_weights:
        return [Remark(text=_on_both(facts), at="first")]
    found = [
        Remark(text=_on_whose_word(facts), at="first"),
        Remark(text=_on_the_blind_spot(facts), at="beside"),
    ]
    if facts.trusted is not None and counts_otherwise(facts.trusted):
        found.append(Remark(text=describe_prompts(facts.trusted), at="evidence"))
    return found


def _on_both(facts: PackFacts) -> str:
    return (
        f"half of the questions are those of a pack ({facts.digest[:_SHOWN]}, made on "
        f"{facts.made_on}), which a host may know, and half are fresh ones that nobody can: the "
        "weights judge them all, the verdict rests on the fresh ones, and where one half alone "
        "differs it is named as a way of asking"
    )


def _on_whose_word(facts: PackFacts) -> str:
    if facts.trusted is not None:
        return _on_the_host(facts, facts.trusted)
    return (
        f"the reference is a pack ({facts.digest[:_SHOWN]}, made on {facts.made_on} from weights, "
        f"{_signed(facts)}): {_up_to(facts)}"
    )


def _on_the_host(facts: PackFacts, trusted: Trusted) -> str:
    """Whose word a pack is that was recorded from a host, and what that can hide."""
    named = f"{trusted.host} as {trusted.model}"
    if trusted.second_host is not None:
        named += f", and {trusted.second_host} as {trusted.second_model},"
    return (
        f"the reference is what {named} said from {trusted.first_asked} to {trusted.last_asked} "
        f"(pack {facts.digest[:_SHOWN]}, {SOURCES[facts.source]}, {_signed(facts)}), taken on "
        "trust: if it serves other weights than the published ones itself, this audit cannot see "
        f"it, and holds honest hosts to those; {_up_to(facts)}"
    )


def _up_to(facts: PackFacts) -> str:
    return _UP_TO.format(tokens=facts.tokens, of=_WHAT[facts.thinking])


def _signed(facts: PackFacts) -> str:
    if facts.signed_by is None:
        return "signed by nobody, so it is whoever's who gave it to you"
    return f"signed by the key {facts.signed_by[:_SHOWN]}"


def _on_the_blind_spot(facts: PackFacts) -> str:
    few = ", and these are few" if facts.questions < _FEW else ""
    return (
        f"who knows the pack can answer its {facts.questions:,} questions from a store{few}, and "
        "serve everybody else something else: take one of thousands of questions that was "
        "published after its digest, and now and then name the weights beside it"
    )


CHECK: Final = Check[None, None](name="packed", aspects=(BEYOND,), name_it=name_it, remarks=remarks)
