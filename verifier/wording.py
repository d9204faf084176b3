"""How a report reads: the words, numbers and signs that the terminal and the page share.

Knows nothing of layout. Text from a host is untrusted: `visible` disarms it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Final

from verifier.records import (
    After,
    Asked,
    Decision,
    Finding,
    NoiseScale,
    Report,
    Standing,
    Substitution,
    Summary,
    Usage,
)

#: What each decision says, in one line. Kept to what the evidence can carry.
HEADLINES: Final[dict[Decision, str]] = {
    "consistent": "every departure the policy names was excluded",
    "inconsistent": "the replies differ from honest serving of the published weights",
    "inconclusive": "the evidence does not decide either way",
}
#: A sign beside each decision, so that colour is never the only signal.
SIGNS: Final[dict[Decision, str]] = {"consistent": "=", "inconsistent": "≠", "inconclusive": "?"}

#: A reply is told to come from something else from this probability on.
BELONGS_AT: Final = 0.5

#: Lines of two prompts that are compared one by one, and of each part of them that are shown.
_COMPARED: Final = 200

#: Replies named in one line.
SHOWN: Final = 8

# Signs that act on a screen or a parser instead of showing: C0 except \n and \t, DEL, C1, line
# separators, direction marks, isolates and overrides, interlinear and tag characters, byte order
# marks, lone surrogates. Joiners and variation selectors stay: scripts and emoji need them; so do
# the tags behind a black flag, which make it the flag of a region.
_ACTING: Final = re.compile(
    "(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f)|"
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]+"
)
_LAYOUT: Final = str.maketrans({"\n": r"\n", "\t": r"\t"})


def visible(text: str) -> str:
    r"""Text with control and direction characters as escapes such as `\x1b`; \n and \t stay."""
    return _ACTING.sub(
        lambda found: found[1] or found[0].encode("unicode_escape").decode("ascii"),
        text.replace("\r\n", "\n"),
    )


def one_line(text: str) -> str:
    """Words on one line, with signs that act made visible; white space becomes one space."""
    return " ".join(visible(text).split())


def spelled_out(text: str) -> str:
    r"""A name or a path on one line: as `visible`, with \n and \t as escapes, and every space."""
    return visible(text).translate(_LAYOUT)


def inert_json(text: str) -> str:
    r"""JSON text of the same value, with signs that act as escapes such as `\u202e`."""

    def escape(found: re.Match[str]) -> str:
        units = found[0].encode("utf-16-be", "surrogatepass").hex()
        return found[1] or "".join(rf"\u{units[n : n + 4]}" for n in range(0, len(units), 4))

    return _ACTING.sub(escape, text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What to add to a refusal of a word that is much like one that is known; else nothing."""
    names = {name.casefold(): name for name in known}
    begun = word.casefold()[:200]
    near = [name for name in names if len(begun) > 3 and name.startswith(begun)]
    near = near or difflib.get_close_matches(begun, names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""


def describe_cause(finding: Finding) -> str:
    """The best name, how far it stands and why."""
    evidence = "" if finding.log_e is None else f", log e {describe_evidence(finding)}"
    detail = f": {finding.detail}" if finding.detail else ""
    return f"{finding.name} ({finding.decision}{evidence}){detail}"


def diff_prompts(published: str, served: str) -> list[tuple[str, str]]:
    """Two rendered prompts line by line: a sign ("-" published, "+" served, " " both) and a line.

    Line ends are shown, so that white space is seen. Of what both begin and end with, and of long
    prompts, only a part: time and size are bounded whatever the texts are.
    """

    def lines(text: str) -> list[str]:
        return [line.replace("\n", "⏎") for line in text.splitlines(keepends=True)]

    one, other = lines(published), lines(served)
    most = min(len(one), len(other))
    head = next((n for n in range(most) if one[n] != other[n]), most)
    tail = next((n for n in range(most - head) if one[-1 - n] != other[-1 - n]), most - head)
    ends = len(one) - tail, len(other) - tail
    return [
        *_shown_ends([(" ", line) for line in one[:head]], from_end=True),
        *_compare(one[head : ends[0]], other[head : ends[1]]),
        *_shown_ends([(" ", line) for line in one[ends[0] :]], from_end=False),
    ]


def _compare(one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
    rows = []
    steps: Sequence[tuple[str, int, int, int, int]] = [("replace", 0, len(one), 0, len(other))]
    if max(len(one), len(other)) <= _COMPARED:  # else too slow: it takes the cube of their number
        steps = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    for step, a, b, c, d in steps:
        if step == "equal":
            rows += [(" ", line) for line in one[a:b]]
        else:
            removed = _shown_ends([("-", line) for line in one[a:b]], from_end=False)
            rows += [*removed, *_shown_ends([("+", line) for line in other[c:d]], from_end=False)]
    return rows


def _shown_ends(rows: list[tuple[str, str]], *, from_end: bool) -> list[tuple[str, str]]:
    """At most _COMPARED rows, and how many more there are."""
    more = len(rows) - _COMPARED
    if more <= 0:
        return rows
    cut = (rows[0][0], f"[{more:,} more lines]")
    return [cut, *rows[more:]] if from_end else [*rows[:_COMPARED], cut]


def describe_evidence(finding: Finding) -> str:
    """The log e-value in nats with its sign; a dash when the check did not run."""
    return "-" if finding.log_e is None else f"{finding.log_e:+,.1f}"


def describe_need(finding: Finding) -> str:
    """Further completion tokens to decide a departure; only an undecided one needs any."""
    if finding.decision != "undecided":
        return "-"
    return "unknown" if finding.tokens_needed is None else f"{finding.tokens_needed:,} more"


def describe_scale(scale: NoiseScale) -> str:
    """The noise scale with its interval and coverage, in one line."""
    if scale.estimate is None:
        return "nothing scored"
    coverage = f"{describe_percent(scale.level)} interval"
    return f"{describe_number(scale.estimate)} logits ({coverage} {describe_interval(scale)})"


def name_noise(scale: NoiseScale) -> str:
    """Noise by what it is like on this model."""
    of_an_interval = scale.equivalent.startswith(("between ", "above "))
    return f"noise {'' if of_an_interval else 'like '}{scale.equivalent}"


def list_spending(usage: Usage) -> list[tuple[str, str]]:
    """What was asked and spent: label and one line each."""
    requests = (
        f"{usage.requests:,} sent; replies scored {usage.replies:,}, "
        f"probes without an answer {usage.failures:,}, answers not judged {usage.not_judged:,}"
    )
    tokens = (
        f"{usage.prompt_tokens:,} prompt, {usage.completion_tokens:,} completion; "
        f"{usage.tokens_scored:,} scored, {usage.tokens_left_out:,} left out as ambiguous"
    )
    cost = usage.cost_usd
    price = "not known: no prices were given" if cost is None else f"USD {cost:,.4f}"
    return [("Requests", requests), ("Tokens", tokens), ("Cost", price)]


def list_control(report: Report) -> list[tuple[str, str]]:
    """The control, what was found of it and what it cost: label and one line; none without it."""
    control = report.control
    if control is None:
        return []
    line = f"{control.finding}: {control.summary} ({control.model} at {control.base_url})"
    if control.usage is None:
        return [("Control", line)]
    spent = "; ".join(text for label, text in list_spending(control.usage) if label != "Requests")
    return [("Control", line), ("Control spent", spent)]


def describe_seconds(seconds: float) -> str:
    """A span of time in the largest unit that says it in few digits."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and (seconds % size == 0 or seconds >= 10 * size):
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def describe_about(seconds: float) -> str:
    """A span of time that is only guessed, in minutes or hours, rounded up."""
    minutes = max(1, math.ceil(seconds / 60))
    return f"about {minutes} min" if minutes <= 90 else f"about {math.ceil(minutes / 60):,} h"


def describe_asked(asked: Asked | None) -> str:
    """When the probes were asked, first and last, in UTC."""
    if asked is None:
        return "nothing on record"
    first, last = _moment(asked.first), _moment(asked.last)
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"


def describe_last(found: Report | Summary) -> str:
    """When the last probe of a report, or of all targets, was asked, in UTC."""
    every = (found,) if isinstance(found, Report) else found.targets
    last = max((one.asked.last for one in every if one.asked is not None), default=None)
    return "at no time on record" if last is None else f"on {_moment(last)} UTC"


def _moment(stamp: str) -> str:
    """A time of ISO 8601 as people read it, to the second."""
    return one_line(stamp[:19].replace("T", " "))


def describe_replies(count: int) -> str:
    """How many replies, in words."""
    return "1 reply" if count == 1 else f"{count} replies"


def describe_audits(after: After) -> str:
    """How many audits came before, in words."""
    return "1 earlier audit" if after.audits == 1 else f"{after.audits} earlier audits"


def describe_share(found: Substitution) -> str:
    """A share of replies with its interval and coverage."""
    return (
        f"about {describe_percent(found.share)} ({describe_percent(found.level)} interval "
        f"{describe_percent(found.lower)} to {describe_percent(found.upper)})"
    )


def shown_share(report: Report) -> Substitution | None:
    """The share of replies from something else, where the report speaks of one.

    Not where everything is explained at once: then a share says nothing.
    """
    spoken = any(finding.aspect in ("substitution", "routing") for finding in report.findings)
    whole = report.decision == "inconsistent" and not any(
        finding.aspect == "substitution" for finding in report.findings
    )
    return report.substitution if spoken and not whole else None


def list_belongings(report: Report) -> list[tuple[str, str]]:
    """Which replies come from what, in at most two lines: label and words."""
    found = shown_share(report)
    if found is None:
        return []
    others = [name for name, chance in found.replies if chance >= BELONGS_AT]
    lines = [("Share", f"{describe_share(found)} of the replies from something else")]
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        lines.append(("Which", ", ".join(others[:SHOWN]) + more))
    return lines


def describe_odds(log_odds: float) -> str:
    """Odds to one, from their natural logarithm."""
    return f"{math.exp(log_odds):,.0f}" if log_odds < math.log(1e6) else "over a million"


def describe_number(scale: float) -> str:
    """A noise scale to two digits."""
    return f"{scale:.2g}"


def describe_percent(rate: float) -> str:
    """A rate in percent."""
    return f"{100 * rate:.6g} %"


def describe_interval(scale: NoiseScale) -> str:
    """The interval in words and two digits, without its coverage."""
    lower = "0" if scale.lower is None else describe_number(scale.lower)
    return f"{lower} to {'unbounded' if scale.upper is None else describe_number(scale.upper)}"


# -- several targets ---------------------------------------------------------------------------

STANDING_COLUMNS: Final = (
    "target",
    "verdict",
    "among all",
    "log e",
    "noise scale",
    "tokens",
    "USD",
)


def list_standings(summary: Summary) -> list[tuple[str, ...]]:
    """A row for each target, and one for the control: cells under `STANDING_COLUMNS`."""
    rows = [_row_of(target) for target in summary.targets]
    if summary.control is not None:
        rows.append(_row_of(summary.control))
    return rows


def _row_of(one: Standing) -> tuple[str, ...]:
    scale, usage = one.noise_scale, one.usage
    estimate = None if scale is None else scale.estimate
    return (
        one.name,
        one.decision or "not judged",
        one.accusation or "-",
        "-" if one.log_e is None else f"{one.log_e:+,.1f}",
        "-" if estimate is None else describe_number(estimate),
        "-" if usage is None else f"{usage.completion_tokens:,}",
        "-" if usage is None or usage.cost_usd is None else f"{usage.cost_usd:,.4f}",
    )


def list_facts(summary: Summary) -> list[tuple[str, str]]:
    """What is said of each target, of all of them and of the control: label and one line each."""
    facts = [
        (target.name, f"{target.summary}{describe_accusation(target, summary)}{_when(target)}")
        for target in summary.targets
    ]
    if summary.control is not None:
        facts.append((summary.control.name, f"{summary.control.summary}{_when(summary.control)}"))
    cost = summary.cost_usd
    price = "not known: not every price was given" if cost is None else f"USD {cost:,.4f} in all"
    rule = (
        f"accusations that stand keep a false-discovery rate of {summary.alpha:g} over all "
        f"{len(summary.targets)} targets (e-BH); one more needs log e {summary.log_e_needed:.1f}"
    )
    return [*facts, ("Cost", price), ("Among all", rule)]


def _when(one: Standing) -> str:
    return "" if one.asked is None else f"; asked {describe_asked(one.asked)}"


def describe_accusation(one: Standing, summary: Summary) -> str:
    """What to add on an accusation that does not stand among so many; nothing on others."""
    if one.accusation != "does not stand":
        return ""
    return (
        f"; this holds for the endpoint alone, but does not stand among {len(summary.targets)} "
        f"targets, where log e {summary.log_e_needed:.1f} is needed"
    )
