"""The evidence of a report in words: whose it is, how sure it is, and the replies that tell.

Form only: nothing is judged here, and no sentence claims more than the report does. Words of a host
are untrusted; whoever shows them disarms them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from verifier.records import Evidence, Place, Report
from verifier.wording import describe_percent, spelled_out

#: The rarest that is said of evidence: what it rests on is a model, and no model is better.
RAREST: Final = 1_000_000

#: Characters of a text that are quoted: a folder from a stranger may hold as many as it likes.
_LONGEST: Final = 200

#: Words above the places where replies leave the published weights, by the verdict.
PLACES: Final = {
    "consistent": "The largest departures, as rounding makes them",
    "inconsistent": "The replies that tell",
    "inconclusive": "The largest departures so far, which decide nothing",
}


# -- who ---------------------------------------------------------------------------------------


def name_host(report: Report) -> str:
    """The host that was asked, by the name that its run file gives it, else by its address."""
    endpoint = _endpoint(report)
    host, provider = endpoint.get("host"), endpoint.get("provider")
    named = host if isinstance(host, str) and host else host_of(report)
    if isinstance(provider, str) and provider:
        return f"{provider} through {named}" if named else provider
    return named or "a host that is not on record"


def name_model(report: Report) -> str:
    """The model that was asked for, and the card that it is held against."""
    model, card = _endpoint(report).get("model"), report.signature.get("card")
    asked = str(model) if model else "a model that is not on record"
    return asked if not card or card == model else f"{asked}, held against {card}"


def host_of(report: Report, *, port: bool = True) -> str:
    """The host of the address that was asked, with its port if it names one; "": unknown."""
    with suppress(ValueError):
        parts = urlsplit(str(_endpoint(report).get("base_url") or ""))
        host = parts.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        return f"{shown}:{parts.port}" if host and port and parts.port else host
    return ""


def _endpoint(report: Report) -> Mapping[str, Any]:
    configuration = report.signature.get("configuration")
    endpoint = configuration.get("endpoint") if isinstance(configuration, Mapping) else None
    return endpoint if isinstance(endpoint, Mapping) else {}


# -- how sure ----------------------------------------------------------------------------------


def describe_sureness(report: Report) -> str:
    """One sentence on how sure the verdict is, and of what."""
    match report.decision:
        case "inconsistent":
            return (
                "If this host served the published weights honestly, on machines no noisier than "
                f"is tolerated, evidence this strong against it would come up in {_seldom(report)}."
            )
        case "consistent":
            return _describe_exclusions(report)
        case "inconclusive":
            return (
                "Nothing is decided about this host: an accusation takes evidence that an honest "
                f"one brings up in {_at_most(report.alpha)}, and a clean verdict every departure "
                f"excluded, each wrongly in {_at_most(report.beta)}."
            )


def once_in(report: Report) -> int:
    """Of how many audits of an honest host at most one brings evidence so strong.

    The probability that an e-value ever reaches e is at most 1/e (Ville 1939), whatever is looked
    at and whenever: 1/e is a p-value at every stopping time. Where no evidence is on record, or a
    control puts the reference in doubt, no more is said than alpha.
    """
    evidence, control = report.evidence, report.control
    doubted = control is not None and control.finding == "inconsistent"
    if evidence is None or doubted:
        return _reciprocal(report.alpha)
    return _rounded_down(math.exp(min(max(evidence.log_e, 0.0), math.log(RAREST) + 1)))


def _seldom(report: Report) -> str:
    return f"at most {_one_of(once_in(report))}"


def _at_most(rate: float) -> str:
    return f"at most {_one_of(_reciprocal(rate))}"


def _one_of(audits: int) -> str:
    if audits >= RAREST:
        return "one of a million audits"
    return "every audit" if audits <= 1 else f"one of {audits:,} audits"


def _reciprocal(rate: float) -> int:
    """One in how many; 1 where no rate is given."""
    return _rounded_down(1 / rate * (1 + 1e-9)) if rate > 0 else 1


def _rounded_down(value: float) -> int:
    """A whole number of two digits that is at most `value`, and at most the rarest."""
    whole = min(int(value), RAREST)
    unit = int(10 ** max(0, len(str(whole)) - 2))
    return max(1, whole // unit * unit)


def _describe_exclusions(report: Report) -> str:
    """What a consistent verdict excludes, how surely, and of how many requests."""
    names = [f.name for f in report.findings if f.decision == "excluded" and f.aspect == "noise"]
    if not names:
        return f"Each exclusion that this rests on is wrong in {_at_most(report.beta)}."
    *others, last = dict.fromkeys(names)
    named = f"{', '.join(others)} or {last}" if others else last
    sentence = (
        f"A host that answered every request with weights as far off as {named} would come out "
        f"so in {_at_most(report.beta)}"
    )
    shares = () if report.certificate is None else report.certificate.shares
    if not shares:
        return f"{sentence}; how many of the requests were answered otherwise was not asked."
    share = max(share for _, share in shares)
    return f"{sentence}; one that did so for fewer than {describe_percent(share)} stays open."


# -- what differs ------------------------------------------------------------------------------


def describe_differing(evidence: Evidence) -> str:
    """How many tokens differ from the weights' own choice, beside what honest hosts show.

    A description, and no test: what honest hosts show is what noise makes of these very places on
    average.
    """
    share = evidence.differing / max(1, evidence.tokens)
    honest = f"{'' if evidence.honest < 1 else 'up to '}{_about(evidence.honest)}"
    return (
        f"{evidence.differing:,} of {evidence.tokens:,} tokens ({100 * share:.2g} %) are not the "
        f"published weights' own choice; honest hosts show {honest} here on average, on the "
        "machines that were measured, and "
        f"{_about(evidence.tolerated)} at the most noise that is held against nobody"
    )


def _about(count: float) -> str:
    return "fewer than 1" if count < 1 else f"about {count:,.0f}"


def describe_place(place: Place) -> str:
    """One line: after which words, what the published weights say and how surely, and what came."""
    after = f"after {_quote(place.after)}"
    if not place.after:
        after = f"at the beginning of the reply to {_quote(place.asked)}"
    return f"{after} the published weights {_say(place)}, the host {_said(place)}"


def _say(place: Place) -> str:
    chance = describe_chance(place.log_p_published)
    if place.published is None:
        return f"end the reply ({chance})"
    return f"say {_quote(place.published)} ({chance})"


def _said(place: Place) -> str:
    chance = describe_chance(place.log_p_served)
    if place.served is None:
        return f"ended it ({chance})"
    return f"said {_quote(place.served)} ({chance})"


def _quote(text: str) -> str:
    return f"“{spelled_out(text[:_LONGEST])}”"


def describe_chance(log_p: float) -> str:
    """A probability in percent, from its natural logarithm: never 0, and never all."""
    percent = 100 * math.exp(min(log_p, 0.0))
    if percent < 0.001:
        return "less than 0.001 %"
    if percent > 99.99:
        return "over 99.99 %"
    return f"{percent:.4g} %" if percent >= 99 else f"{percent:.2g} %"
