"""Which model the replies say gave them, held against the name that was asked for.

Gateways that do not know a name have been seen to serve their default, and the field `model` of
the reply alone tells. It proves nothing: hosts have names of their own for what they serve, and
some write the name that was asked for whatever they serve. So it is tallied and told, and decides
no verdict. Another spelling of the name is none; a date or a rounding in it is told as such.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

from verifier.checks.check import Account, Aspect, Case, Check, Remark, make_finding
from verifier.host.dialects import member, word_of
from verifier.records import Decision, Finding, Reply
from verifier.wording import describe_replies

NAMED: Final = Aspect(
    name="named", label="model that replies name", place=185, role="remark", without_reference=True
)

#: How a name differs from the one asked for.
Kind = Literal["none", "date", "rounding", "other"]

#: Names that are told at most.
_SHOWN: Final = 4

#: What routers put behind a name to say how a request is routed, or paid for.
_ROUTED: Final = re.compile(
    r":(free|paid|nitro|floor|online|extended|exacto|standard|beta|latest)$"
)
_FILE: Final = re.compile(r"\.(gguf|safetensors|bin)$")
_DATE: Final = re.compile(
    r"20[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]|20[0-9]{2}(0[1-9]|1[0-2])[0-3][0-9]"
    r"|2[3-9](0[1-9]|1[0-2])|(0[1-9]|1[0-2])[0-3][0-9]"
)
_ROUNDING: Final = re.compile(
    r"(nv|mx)?fp(4|6|8)|bf16|fp16|fp32|int[248]|uint[48]|w[0-9]a[0-9]+|awq|gptq|bnb|exl[23]|gguf|mlx"
    r"|[2-8]-?bit|i?q[2-8](-[0-9k]+)?(-[smlx]+)?|ud|fp8-(dynamic|block|e4m3|e5m2)"
)


def how_named(asked: str, named: str) -> Kind:
    """How the name in a reply differs from the one that was asked for."""
    one, other = _plain(asked), _plain(named)
    if one == other:
        return "none"
    one, other = _without(_DATE, one), _without(_DATE, other)
    if one == other:
        return "date"
    return "rounding" if _without(_ROUNDING, one) == _without(_ROUNDING, other) else "other"


def _plain(name: str) -> str:
    """A name in lower case, without its owner or folder, and with dashes for all signs."""
    last = re.split(r"[/\\]", name.strip().lower())[-1]
    return re.sub(r"[^a-z0-9]+", "-", _FILE.sub("", _ROUTED.sub("", last))).strip("-")


def _without(what: re.Pattern[str], name: str) -> str:
    """A name without its parts of a kind."""
    return re.sub(rf"(?<![a-z0-9])(?:{what.pattern})(?![a-z0-9])-?", "", name).strip("-")


def _tally(case: Case) -> tuple[str, int, dict[str, int]]:
    """The name that was asked for, how many replies there are, and how many name each other."""
    asked = word_of(member(case.plan.configuration.get("endpoint"), "model"))
    replies = [outcome for outcome in case.outcomes.values() if isinstance(outcome, Reply)]
    names = Counter(reply.named for reply in replies if asked and reply.named)
    return asked, len(replies), {n: count for n, count in names.most_common() if n is not None}


def name_it(
    case: Case, _evidence: None, _account: Account, _found: Sequence[Finding], _decision: Decision
) -> list[Finding]:
    """That replies name another model."""
    asked, of, names = _tally(case)
    others = {name: count for name, count in names.items() if how_named(asked, name) == "other"}
    if not others:
        return []
    told = ", ".join(f"{name!r} {count}" for name, count in [*others.items()][:_SHOWN])
    more = f" and {len(others) - _SHOWN} other names" if len(others) > _SHOWN else ""
    detail = (
        f"{sum(others.values())} of {describe_replies(of)} name another model than {asked!r}, "
        f"which was asked for: {told}{more}; an endpoint may have its own name for what it serves, "
        "so this proves nothing"
    )
    return [make_finding(NAMED, "detected", "replies name another model", None, detail)]


def remarks(
    case: Case, _evidence: None, _account: Account, found: Sequence[Finding]
) -> list[Remark]:
    """The same in words, and where the name tells a date or a rounding."""
    told = [f.detail for f in found if f.aspect == NAMED.name]
    asked, of, names = _tally(case)
    for name, count in [*names.items()][:_SHOWN]:
        kind = how_named(asked, name)
        if kind in ("date", "rounding"):
            told.append(
                f"{count} of {describe_replies(of)} name {name!r} where {asked!r} was asked for: "
                f"the same name but for a {kind}, by the endpoint's own words"
            )
    return [Remark(text=text) for text in told]


CHECK: Final = Check[None, None](
    name="named_models",
    aspects=(NAMED,),
    name_it=name_it,
    remarks=remarks,
)
