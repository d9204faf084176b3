"""What to do about a verdict: one step for who buys from the host, one for who runs it.

A table by verdict and named cause; it advises, and judges nothing. Commands stand between
backticks, with FOLDER for the run folder, and hold no word of a host.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from verifier.records import Finding, Report
from verifier.reports import findings
from verifier.wording import one_line

#: Characters of a name that a step repeats.
_LONGEST: Final = 80

#: A card as a command may name it; any other stands as CARD.
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")

#: Policies that exclude more than `screen` does.
_STRICTER: Final = ("standard", "strict", "routing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The next step of each."""

    buyer: str
    host: str


_AGAIN: Final = "`verifier audit --again FOLDER`"
_OWN: Final = (
    "`verifier audit --base-url http://127.0.0.1:8000/v1 --model NAME --reference {card} "
    "--out runs/own`"
)
_ASK: Final = f"Send the host this page and ask what it serves; {_AGAIN} later shows whether it "

_BUILDS: Final = "; `verifier score FOLDER --builds` looks for a name"

#: By what was found: of an inconsistent verdict what it names, else the verdict and what it lacks.
_STEPS: Final[Mapping[str, Steps]] = {
    "build": Steps(
        buyer="Ask the host in which precision it serves the model: the replies are those of "
        "“{name}”{what}. Until it says so in its listing or mends it, audit another host; "
        f"{_AGAIN} shows whether it was mended.",
        host="Serve the published precision, or say in the listing that the weights are “{name}”. "
        f"To check by yourself: {_OWN}.",
    ),
    "layers": Steps(
        buyer=f"{_ASK}loads the whole model: the replies are those of “{{name}}”.",
        host="Load every layer of the published checkpoint, and check its digests with "
        f"`verifier reference show {{card}}`. To check by yourself: {_OWN}.",
    ),
    "other model": Steps(
        buyer="Ask the host which model answers under this name: the replies are those of "
        f"“{{name}}”. Until then audit another host; {_AGAIN} shows whether it was mended.",
        host="Route this name to the published checkpoint, or name in the listing what answers "
        f"it. To check by yourself: {_OWN}.",
    ),
    "template": Steps(
        buyer=f"{_ASK}renders chats as published: what was found is “{{name}}”. Until then send "
        "rendered prompts as text completions, where the host takes them.",
        host="Apply the published chat template{digest} as it is, to every request. To check by "
        f"yourself: {_OWN}.",
    ),
    "part": Steps(
        buyer="Ask the host why some of the replies come from something else; behind a router "
        "pin one host (`--provider`), and audit that.",
        host="Compare what your replicas and routes load: some of them do not serve the "
        f"published weights. Audit each by itself: {_OWN}.",
    ),
    "way of asking": Steps(
        buyer="Ask in another way than “{name}”, which is answered by something else, and ask the "
        "host why.",
        host="Serve “{name}” from the same weights and settings as all else. To check by yourself: "
        f"{_OWN}.",
    ),
    "sampler": Steps(
        buyer="Set the sampling parameters in every request, and ask the host to heed them: what "
        f"was found is “{{name}}”. {_AGAIN} shows whether it does.",
        host="Sample as each request says, with the publisher's defaults alone for what it leaves "
        f"out: what was found is “{{name}}”. To check by yourself: {_OWN}.",
    ),
    "long": Steps(
        buyer="Keep within what the host serves whole (“{name}”), or buy where long ones are; ask "
        "the host to say its limits in the listing.",
        host="Serve the context and output lengths that are listed, or refuse what is longer "
        "instead of cutting it: what was found is “{name}”.",
    ),
    "store": Steps(
        buyer="Ask the host to turn its store of replies off where samples are asked for.",
        host="Take no replies from a store at temperatures above 0, or let the request say so.",
    ),
    "logprobs": Steps(
        buyer=f"Use no log-probabilities of this host, and ask where they come from; {_AGAIN} "
        "shows whether it was mended.",
        host="Report the log-probabilities of the model that writes the replies, at temperature "
        f"1. To check by yourself: {_OWN}.",
    ),
    "other": Steps(
        buyer="Send the host this page and ask in which precision, with which template and on "
        f"which route it serves the model. Until then audit another host; {_AGAIN} shows whether "
        "it was mended.",
        host="Compare weights, precision and chat template with the published ones: the digests "
        f"are in the signature below. To check by yourself: {_OWN}{{builds}}.",
    ),
    "consistent": Steps(
        buyer=f"Nothing to mend. Audit again from time to time, from where your users ask: {_AGAIN}"
        "{stricter}.",
        host="Nothing to mend. This page is yours to show; whoever has the run folder can decide "
        "it again: `verifier decide FOLDER`.",
    ),
    "nothing scored": Steps(
        buyer="Mend what kept the replies from coming first: the key, the model's name or the "
        "limits, as the notes say. Then `verifier audit FOLDER` goes on.",
        host="Answer ordinary chats with text: none of the replies could be judged, and the notes "
        "say why.",
    ),
    "failures": Steps(
        buyer="Audit again when the host answers, or slower (`endpoint.requests_per_minute`): "
        f"most of the probes got no usable reply. {_AGAIN}.",
        host="Answer ordinary chats with text: most of them got no usable reply, and the notes "
        "say why.",
    ),
    "pending": Steps(
        buyer="`verifier audit FOLDER` goes on: the control is not judged yet.",
        host="Nothing yet: nothing is held against this host.",
    ),
    "doubt": Steps(
        buyer="Mend the reference or its calibration first, or take another control: the control "
        "differs from the published weights too.",
        host="Nothing: nothing is held against this host while the reference is in doubt.",
    ),
    "deadline": Steps(
        buyer="`verifier audit FOLDER` goes on; `audit.deadline` allows it more time.",
        host="Nothing yet: nothing is held against this host.",
    ),
    "between": Steps(
        buyer="Ask the host for its engine, its arithmetic and its GPUs: more replies will hardly "
        "settle this, a calibration that measures such a stack will (`verifier calibrate {card}`).",
        host="Say which engine, arithmetic and GPUs serve the model, so that they can be measured; "
        "or serve in the precision that is published.",
    ),
    "fault": Steps(
        buyer="Ask the host about “{name}”, which keeps the verdict from being consistent. "
        f"{_AGAIN} shows whether it was mended.",
        host="Mend “{name}”; the weights are not what is held against this host.",
    ),
    "forecast": Steps(
        buyer="About {tokens} more completion tokens would settle it: "
        "`verifier audit --again FOLDER --budget-completion-tokens {budget}`.",
        host="Nothing yet: nothing is held against this host.",
    ),
    "unfinished": Steps(
        buyer="`verifier audit FOLDER` goes on: the budget is not used up{about}. If it asks "
        "nobody, allow more: `verifier audit --again FOLDER --budget-completion-tokens {budget}`.",
        host="Nothing yet: nothing is held against this host.",
    ),
    "more": Steps(
        buyer="Allow more completion tokens; how many would settle it is not known yet: "
        "`verifier audit --again FOLDER --budget-completion-tokens {budget}`.",
        host="Nothing yet: nothing is held against this host.",
    ),
}  # fmt: skip

#: Which findings, once detected, say what an inconsistent verdict is about; the first one counts.
_ABOUT: Final[tuple[tuple[str, str], ...]] = (
    ("strata", "way of asking"),
    ("substitution", "part"),
    ("template", "template"),
    ("tokenizer", "other model"),
    ("sampler", "sampler"),
    ("context", "long"),
    ("ceiling", "long"),
    ("repeats", "store"),
    ("cause", "cause"),
    ("routing", "part"),
    ("logprobs", "logprobs"),
)


def next_steps(report: Report) -> Steps:
    """What a buyer and the host do next."""
    kind, found = _kind(report)
    what, semicolon, _ = ("", "", "") if found is None else found.detail.partition(";")
    detail = _said(what) if semicolon else ""
    words = {
        "name": "" if found is None else _said(found.name),
        "what": f" ({detail})" if detail else "",
        "card": _card(report),
        "digest": _digest(report),
        **_tokens(report),
        "stricter": "" if report.policy in _STRICTER else _stricter(report),
        "builds": "" if _has_no_weights(report) else _BUILDS,
    }
    steps = _STEPS[kind]
    return Steps(buyer=steps.buyer.format(**words), host=steps.host.format(**words))


def _stricter(report: Report) -> str:
    """How an audit excludes more."""
    more = "with `--policy standard` it excludes finer rounding and smaller shares"
    if report.signature.get("provisional"):
        return f"; once the card is calibrated (`verifier calibrate {_card(report)}`), {more}"
    return f"; {more}"


def _has_no_weights(report: Report) -> bool:
    """Whether a pack alone judged: nothing is scored beyond what it holds."""
    reference = _configured(report, "reference")
    return bool(reference.get("pack")) and not reference.get("card")


def _said(text: str) -> str:
    """Words of a finding as a step repeats them: on one line, short, and no command."""
    said = one_line(text).replace("`", "'")
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 1]}…"


def _kind(report: Report) -> tuple[str, Finding | None]:
    """What was found, as a key of the table, and the finding that says so, if one does."""
    match report.decision:
        case "consistent":
            return "consistent", None
        case "inconsistent":
            return _accused_of(report)
        case "inconclusive":
            faults = [f for f in _weighty(report) if f.decision == "detected"]
            kind = _lacking(report, faults)
            return kind, faults[0] if kind == "fault" else None


def _accused_of(report: Report) -> tuple[str, Finding | None]:
    detected = {f.aspect: f for f in reversed(report.findings) if f.decision == "detected"}
    for aspect, kind in _ABOUT:
        if aspect in detected:
            found = detected[aspect]
            return (_kind_of_cause(found.name, report) if kind == "cause" else kind), found
    return "other", None


def _kind_of_cause(name: str, report: Report) -> str:
    if name.startswith("drop-"):
        return "layers"
    return "build" if name in dict(report.noise_scale.marks) else "other model"


def _lacking(report: Report, faults: Sequence[Finding]) -> str:
    """What an inconclusive verdict lacks; `faults` are those that are shown all the same."""
    usage, control, scale = report.usage, report.control, report.noise_scale
    unusable = usage.failures + usage.not_judged
    if control is not None and control.finding == "pending":
        return "pending"
    if control is not None and control.finding == "inconsistent":
        return "doubt"
    if usage.replies == 0:
        return "nothing scored"
    if report.summary.startswith("the deadline of "):
        return "deadline"
    if unusable > usage.replies:
        return "failures"
    if scale.lower is not None and scale.lower > scale.honest:
        return "between"
    if faults:
        return "fault"
    needs, budget = _forecast(report), _budget(report)
    if budget is not None and usage.completion_tokens + max(needs, 1) < budget:
        return "unfinished"
    return "forecast" if needs else "more"


def _weighty(report: Report) -> tuple[Finding, ...]:
    return (*findings.departures(report), *findings.causes(report))


def _forecast(report: Report) -> int:
    """Completion tokens that would decide every departure that is open; 0: not known."""
    opened = [f.tokens_needed for f in findings.departures(report) if f.decision == "undecided"]
    known = [tokens for tokens in opened if tokens is not None]
    return max(known) if known and len(known) == len(opened) else 0


def _tokens(report: Report) -> dict[str, str]:
    needs = _forecast(report)
    spent, allowed = report.usage.completion_tokens + needs, _budget(report) or 0
    budget = spent if needs and spent > allowed else 2 * max(spent, allowed)
    return {
        "tokens": f"{needs:,}",
        "budget": f"{math.ceil(max(budget, 1) / 100) * 100}",
        "about": f", and about {needs:,} more tokens would settle it" if needs else "",
    }


def _budget(report: Report) -> int | None:
    """Completion tokens that were allowed; None: not on record."""
    found = _configured(report, "audit").get("budget_completion_tokens")
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _card(report: Report) -> str:
    """The card as a command names it."""
    named = _configured(report, "reference").get("card", report.signature.get("card"))
    return named if isinstance(named, str) and _PLAIN.fullmatch(named) else "CARD"


def _digest(report: Report) -> str:
    found = report.signature.get("template_sha256")
    known = isinstance(found, str) and re.fullmatch(r"[0-9a-f]{64}", found)
    return f" (sha256 {str(found)[:16]}…)" if known else ""


def _configured(report: Report, section: str) -> Mapping[str, Any]:
    configuration = report.signature.get("configuration")
    found = configuration.get(section) if isinstance(configuration, Mapping) else None
    return found if isinstance(found, Mapping) else {}
