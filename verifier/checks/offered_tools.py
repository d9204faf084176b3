"""Questions that come with tools: prompts in which a host's rendering of them shows.

Some of the ordinary questions offer tools that they do not need. Their replies and counts are
evidence as those of all others; a host that spells tools otherwise than the published template, or
drops them, differs on these alone, and the template is named as ever. A reply that calls a tool is
not judged. Has no evidence of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from verifier.checks.check import Account, Case, Check, Planned, Remark
from verifier.config import RunFile
from verifier.errors import ConfigError
from verifier.evidence.calibration import Calibration
from verifier.plan_file import Plan
from verifier.probes import TOOLS
from verifier.records import Failure, Finding, Probe
from verifier.reference.cards import Card

#: One question among so many offers tools.
AMONG: Final = 5


def plan(config: RunFile, card: Card, _calibration: Calibration | None) -> Planned:
    """Whether tools are offered: as the run file says, else where the template shows them."""
    wanted, chats = config.audit.tools, config.endpoint.dialect == "chat"
    if wanted and not chats:
        raise ConfigError(
            f"audit.tools: the dialect {config.endpoint.dialect} cannot carry them; take "
            "endpoint.dialect: chat, or leave them out"
        )
    if wanted and card.takes_tools is False:
        raise ConfigError("audit.tools: the card's template shows no tools; leave them out")
    offers = card.takes_tools is True if wanted is None else wanted
    return Planned(fields={"offers_tools": offers and chats})


def arrange(plan: Plan, probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """The probes, of each AMONG one with tools, drawn by the run's secret seed."""
    if not plan.offers_tools:
        return probes
    rng = random.Random(f"{plan.seed}:tools")  # noqa: S311 - a seed is the secret
    found = list(probes)
    for start in range(0, len(found), AMONG):
        at = start + rng.randrange(AMONG)
        tools = TOOLS[: rng.randint(1, len(TOOLS))]
        if at < len(found):
            found[at] = replace(found[at], tools=tools)
    return tuple(found)


def remarks(
    case: Case, _evidence: None, _account: Account, _found: Sequence[Finding]
) -> list[Remark]:
    """That questions with tools alone were refused."""
    asked = {p.id: bool(p.tools) for p in case.probes if p.id in case.outcomes}
    if not any(asked.values()):
        return []
    with_tools = [case.outcomes[name] for name, offers in asked.items() if offers]
    others = [case.outcomes[name] for name, offers in asked.items() if not offers]
    refused = [one for one in with_tools if isinstance(one, Failure)]
    if len(refused) < len(with_tools) or all(isinstance(one, Failure) for one in others):
        return []
    text = (
        f"all {len(refused)} questions that offer tools failed ({refused[0].reason}), and others "
        "did not: how tools are rendered was not seen"
    )
    return [Remark(text=text, at="beside")]


CHECK: Final = Check[None, None](name="offered_tools", plan=plan, arrange=arrange, remarks=remarks)
