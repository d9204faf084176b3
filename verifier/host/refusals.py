"""What the error of a host says: its own words, whose it is to mend, and which field it refuses.

Hosts give one number to many meanings: a 429 is a full minute here and an empty account there, and
some errors come with HTTP 200. Pure, and total: whatever a host sends, the result is a value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal

from verifier.host.dialects import items, member

#: What an account lacks, for its holder to mend: a valid key, money, a limit that is not used up
#: for hours, a word on who holds it, or to be open.
Account = Literal["key", "balance", "day", "verify", "closed"]

MAX_REASON_CHARS: Final = 200

#: "Too many" and "overloaded".
TOO_MUCH: Final = frozenset({429, 529})
RETRYABLE: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
#: The request is at fault, whatever the host says of trying again.
_NEVER_RETRYABLE: Final = frozenset({400, 401, 402, 403, 404, 422})

_RATE_LIMITED: Final = re.compile(r"rate.?limit|too.?many", re.IGNORECASE)
_RETRYABLE_NAME: Final = re.compile(
    _RATE_LIMITED.pattern + r"|overload|timeout|unavailable|server.?error|capacity", re.IGNORECASE
)
_UNKNOWN_MODEL: Final = re.compile(
    r"model.?not.?(found|exist)|no such model|not a valid model"
    r"|(invalid|unknown) model( name| id)?\s*[:='\"`]"
    r"|model\b.{0,120}\b(does not exist|doesn't exist|not found)",
    re.IGNORECASE,
)

#: MiniMax's own codes, which come with HTTP 200 in `base_resp`.
_MINIMAX_ACCOUNT: Final[Mapping[int, Account]] = {
    1004: "key", 2049: "key", 1008: "balance", 2056: "day",
}  # fmt: skip
_MINIMAX_TOO_MUCH: Final = frozenset({1002, 1039, 1041, 2045})
_MINIMAX_PASSING: Final = frozenset({1000, 1001, 1013, 1024, 1033})


# -- what an error says --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """All that an error says, whatever its shape."""

    words: str = ""  # its texts, on one line
    marks: frozenset[str] = frozenset()  # codes and kinds, without signs and in small letters
    fields: tuple[str, ...] = ()  # of the request, that it names beside its words: a.b
    wait_s: float | None = None  # that it asks to wait; None: it does not say


#: What holds words or more of the same; anything else may repeat what was asked, or answered.
_TEXTS: Final = frozenset({
    "message", "msg", "detail", "details", "error", "errors", "reason", "error_msg", "status_msg",
    "error_message", "err_msg", "error_description", "title", "description",
})  # fmt: skip
_HOLDERS: Final = _TEXTS | {"base_resp", "metadata", "violations", "response"}
_MARKS: Final = frozenset({
    "code", "type", "status", "reason", "error_code", "status_code", "error_type", "quotaid",
})  # fmt: skip
_DEEPEST: Final = 6
_MOST_PARTS: Final = 200
_MOST_WORDS: Final = 4_000  # characters

#: Steps of a place in a request that stand before its fields.
_BEFORE_FIELDS: Final = ("body", "query")

#: A wait in words: "try again in 4m58.9s", "retry after 20 seconds", "replenished in 06:12:34".
_STATED: Final = re.compile(
    r"(?:try again|retry|wait|reset|replenish)[^\d.]{0,40}?(\d[\d.:a-z ]{0,40})", re.IGNORECASE
)
_CLOCK: Final = re.compile(r"(\d{1,3}):(\d\d):(\d\d)")
_SPAN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|millis|s|m|h|d)")
_SPAN_S: Final = {"ms": 0.001, "millis": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


@dataclass(slots=True)
class _Found:
    """What was met so far on the way through an error."""

    words: list[str] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)
    fields: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


def read_error(body: object) -> Told:
    """What an error says: a JSON value, or the text of one that is no JSON."""
    found = _Found()
    if isinstance(body, str):
        found.words.append(body)
    for key, value in islice(_parts(body, 0), _MOST_PARTS):
        _take(found, key, value)
    words = clean("; ".join(found.words), _MOST_WORDS)
    waits = [*found.waits, *_stated_waits(words)]
    return Told(
        words=words,
        marks=frozenset(found.marks),
        fields=tuple(dict.fromkeys(found.fields)),
        wait_s=max(waits, default=None),
    )


def _parts(value: object, depth: int) -> Iterator[tuple[str, Any]]:
    """Everything below a value that an error may say something in, by its key."""
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for one in value:
            if isinstance(one, str):
                yield "message", one
            else:
                yield from _parts(one, depth + 1)
    elif isinstance(value, dict):
        for name, one in value.items():
            key = name.lower()
            yield key, one
            if key in _HOLDERS:
                yield from _parts(one, depth + 1)


def _take(found: _Found, key: str, value: object) -> None:
    """Add one part to what was met."""
    if key in _MARKS and type(value) in (str, int):
        found.marks.add(_bare(str(value)))
    if isinstance(value, str) and (key in _TEXTS or (key == "code" and " " in value)):
        found.words.append(value[:_MOST_WORDS])
    if key == "param" and isinstance(value, str):
        found.fields.append(_place(value.split(".")))
    if key == "loc" and isinstance(value, list):
        found.fields.append(_place([str(step) for step in value if isinstance(step, str)]))
    if key == "retrydelay" and isinstance(value, str):
        found.waits += _span(value)


def _place(steps: list[str]) -> str:
    """A field of the request by its path."""
    while steps and steps[0] in _BEFORE_FIELDS:
        steps = steps[1:]
    return clean(".".join(steps), 100)


def _bare(text: str) -> str:
    return re.sub(r"[\W_]", "", text[:200].lower())


def _stated_waits(words: str) -> Iterator[float]:
    for match in _STATED.finditer(words):
        yield from _span(match[1])


def _span(text: str) -> list[float]:
    """Seconds of a span of time; none when it is none."""
    if (clock := _CLOCK.match(text)) is not None:
        hours, minutes, seconds = map(int, clock.groups())
        return [3_600.0 * hours + 60.0 * minutes + seconds]
    pieces = _SPAN.findall(text.lower())
    return [sum(float(number) * _SPAN_S[unit] for number, unit in pieces)] if pieces else []


def words_of(body: object) -> str:
    """The host's own words in an error body of any of the usual shapes; "" when it has none."""
    if isinstance(body, list):  # Google's errors stand in a list
        body = next(iter(body), None)
    for name in ("error", "message", "detail", "reason", "base_resp", "errors", "error_msg", "msg"):
        said = clean(_said(member(body, name)))
        if said:
            return said
    return ""


def _said(value: object, depth: int = 0) -> str:
    """The words of a part of an error: a text, or what holds one."""
    if isinstance(value, str):
        return value
    if depth > _DEEPEST:
        return ""
    if isinstance(value, dict):
        names = ("message", "msg", "detail", "status_msg", "error", "code")
        told = next((said for name in names if (said := _said(value.get(name), depth + 1))), "")
        steps = [step for step in items(value.get("loc")) if isinstance(step, str)]
        place = _place(steps)
        return f"{place}: {told}" if place and told else told
    rows = (_said(row, depth + 1) for row in items(value)[:3])
    return "; ".join(row for row in rows if row)


def error_in(body: dict[str, Any]) -> dict[str, Any] | None:
    """What holds an error in an answer that came with a status of success; None: nothing does."""
    for holder in (body, next(iter(items(body.get("choices"))), None)):
        if isinstance(holder, dict) and holder.get("error"):
            return holder
    return body if _minimax_code(body) and not items(body.get("choices")) else None


def _minimax_code(body: object) -> int:
    code = member(member(body, "base_resp"), "status_code")
    return code if type(code) is int else 0


# -- what it means -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What an error asks for."""

    retryable: bool  # whether asking again may help
    rate_limited: bool = False  # the host says that too much was asked of it
    #: What the account lacks; None: it is not about the account. With `retryable` that is in doubt:
    #: the words are said of a full minute as well, so it is waited for first.
    account: Account | None = None


def of_status(status: int, told: Told, headers: Mapping[str, str]) -> Meaning:
    """What a status that is no success means, with what is said beside it."""
    found = _account(status, told, headers)
    if found is not None:
        return found
    return Meaning(retryable=_is_retryable(status, headers), rate_limited=status in TOO_MUCH)


def _is_retryable(status: int, headers: Mapping[str, str]) -> bool:
    """By the status; the header of OpenAI's and Anthropic's clients may say otherwise."""
    wish = headers.get("x-should-retry", "").strip().lower()
    if status in _NEVER_RETRYABLE or wish == "false":
        return False
    return status in RETRYABLE or (wish == "true" and status >= 400)


def of_object(holder: dict[str, Any], told: Told, headers: Mapping[str, str]) -> Meaning:
    """What an error means that came with a status of success."""
    code = _minimax_code(holder)
    if code in _MINIMAX_ACCOUNT:
        return Meaning(retryable=False, account=_MINIMAX_ACCOUNT[code])
    if code in _MINIMAX_TOO_MUCH | _MINIMAX_PASSING:
        return Meaning(retryable=True, rate_limited=code in _MINIMAX_TOO_MUCH)
    words = marks_of(holder)
    codes = {int(word) for word in words.split() if re.fullmatch(r"[1-5][0-9]{2}", word)}
    status = next(iter(sorted(codes)), 200)
    found = _account(status, told, headers)
    if found is not None:
        return found
    limited = bool(_PASSING_RATE.search(told.words)) and not codes
    return Meaning(
        retryable=bool(codes & RETRYABLE) if codes else limited or is_passing(words),
        rate_limited=bool(codes & TOO_MUCH) or limited or _RATE_LIMITED.search(words) is not None,
    )


def of_words(told: Told) -> Meaning:
    """What words mean that came where an answer was due: it is asked for again, unless it is the
    account that lacks something."""
    status = next((int(mark) for mark in ("401", "402", "429") if mark in told.marks), 200)
    found = _account(status, told, {})
    if found is not None:
        return found
    limited = status == 429 or _PASSING_RATE.search(told.words) is not None
    return Meaning(retryable=True, rate_limited=limited)


def is_passing(words: str) -> bool:
    """Whether the name of an error is that of a trouble that passes."""
    return _RETRYABLE_NAME.search(words) is not None


def marks_of(holder: dict[str, Any]) -> str:
    """Code and kind of an error object, as they came."""
    error = holder.get("error")
    if not isinstance(error, dict):
        code = _minimax_code(holder)
        return str(code) if code else ""
    marks = [error.get("code"), error.get("type")]
    return " ".join(clean(str(mark), 60) for mark in marks if isinstance(mark, str | int))


def names_unknown_model(body: object, said: str) -> bool:
    """Whether a refusal says that there is no such model."""
    code = member(member(body, "error"), "code")
    return _UNKNOWN_MODEL.search(f"{code if isinstance(code, str) else ''} {said}") is not None


# -- the account ---------------------------------------------------------------------------------

#: Codes of common hosts, without signs: OpenAI, Moonshot, DashScope, Volcengine, Novita, Together,
#: Anthropic, one-api and new-api, Zhipu, SiliconFlow, Google.
_NO_MONEY: Final = frozenset({
    "insufficientquota", "exceededcurrentquotaerror", "insufficientbalance", "insufficientcredits",
    "insufficientfunds", "notenoughbalance", "insufficientuserquota", "billinghardlimitreached",
    "billingnotactive", "billingerror", "billingdisabled", "arrearage", "accountoverdue",
    "accountoverdueerror", "creditlimit", "creditlimitexceeded", "paymentrequired",
    "paymentrequirederror", "prepaidbilloverdue", "postpaidbilloverdue", "commoditynotpurchased",
    "allocationquotafreetieronly", "resourcepackexhausted", "setlimitexceeded", "budgetexceeded",
    "1113", "30001",
})  # fmt: skip
_NO_KEY: Final = frozenset({
    "invalidapikey", "incorrectapikeyerror", "invalidauthenticationerror", "authenticationerror",
    "apikeyinvalid", "apikeyexpired",
})  # fmt: skip
_NO_DAY: Final = frozenset({"1304", "1308", "1310"})  # Zhipu's

_MONEY: Final = r"(?:balance|credits?|funds)"
_MONEY_WORDS: Final = re.compile(
    rf"\b(?:insufficient|not enough|zero|exhausted|negative|no(?: more)?)\s+(?:\w+\s+)?{_MONEY}\b"
    rf"|\b{_MONEY}\b(?: \w+)? (?:is|are|was|has|have)\b[^.;]{{0,40}}"
    r"\b(?:too low|insufficient|not enough|exhausted|used up|depleted|negative|overdue|run out)\b"
    rf"|\b(?:used up|used all|exhausted|exceeded|depleted|out of|requires? more)\b[^.;]{{0,50}}"
    rf"\b{_MONEY}\b"
    rf"|\b(?:doesn't|does not|don't|do not) have (?:any|enough|sufficient)\b[^.;]{{0,20}}"
    rf"\b{_MONEY}\b"
    r"|\bbalance (?:is|of)? ?\$?-?0\b|\boverdue (?:balance|payment|bill|invoice)|\bin arrears\b"
    r"|\barrearage\b|\bunpaid (?:bill|invoice)|\bpayment (?:is )?required\b"
    r"|\b(?:add|enter|provide)\b.{0,20}\bpayment method|\bcredit limit exceeded\b"
    r"|\bspending limit\b|\bbilling (?:hard )?limit\b"
    r"|\bbilling (?:is |has )?(?:not|been)? ?(?:active|disabled|been enabled|to be enabled)"
    r"|\brequires billing\b|\brecharge\b|\btop.?up (?:your|the)\b"
    r"|\baccount\b[^.;]{0,60}\b(?:in good standing|overdue)\b"
    r"|\bbudget (?:has been |is |was )?exceeded\b|\bexceed\w* (?:your |the |its )?budget\b"
    r"|\bkey limit exceeded\b|\breached your specified\b[^.;]{0,20}\busage limits?\b"
    r"|\bquota is not enough\b|\bfree tier\b[^.;]{0,40}\bexhausted\b"
    r"|\bexhausted its free (?:trial )?quota\b"
    r"|欠费|余额不足|充值|额度(?:不足|已用[尽完])|资源包.{0,6}用尽",
    re.IGNORECASE,
)
_A_KEY: Final = (
    r"(?:(?:api|subscription|access|auth\w*|secret)[ _-]?(?:secret[ _-]?)?(?:key|token)|令牌)"
)
_KEY_WORDS: Final = re.compile(
    rf"\b(?:invalid|incorrect|missing|expired|wrong|revoked|unknown|no|bad)\b[^.;]{{0,20}}{_A_KEY}"
    rf"|{_A_KEY}\b[^.;]{{0,50}}\b(?:invalid|incorrect|missing|expired|not valid|not found|revoked"
    r"|disabled|wrong|leaked)\b|\blogin fail|\bauthentication failed\b|无效的?令牌|密钥无效",
    re.IGNORECASE,
)
_VERIFY_WORDS: Final = re.compile(
    r"\b(?:organi[sz]ation|account|identity|phone(?: number)?|e-?mail)\b[^.;]{0,30}"
    r"\b(?:must be|needs? to be|has to be|to be|is not|not yet|not been)\b[^.;]{0,12}\bverified\b"
    r"|\bverify your (?:account|organi[sz]ation|identity|phone|e-?mail)|\breal.?name\b"
    r"|\bidentity verification\b|实名",
    re.IGNORECASE,
)
_CLOSED_MARKS: Final = frozenset({"accountdeactivated", "organizationrestricted"})
_CLOSED_WORDS: Final = re.compile(
    r"\b(?:account|organi[sz]ation|project|team)\b[^.;]{0,60}\b(?:suspended|frozen|restricted"
    r"|deactivated|disabled|blocked|banned|terminated|locked|not active)\b|账[户号].{0,8}[冻封停]",
    re.IGNORECASE,
)
#: A limit that is full for seconds or minutes.
_BY_THE_MINUTE: Final = re.compile(
    r"per[ _-]?(?:min|sec|hour)|/ ?(?:min|sec|s)\b|\b[itro]?[rtqi]p[ms]\b|per 60 ?s\b|concurren"
    r"|#token-limit|分钟|每秒|并发|频率",
    re.IGNORECASE,
)
_PASSING_RATE: Final = re.compile(
    _BY_THE_MINUTE.pattern + r"|rate.?limit|too many requests", re.IGNORECASE
)
#: And one that is full for a day or longer.
_BY_THE_DAY: Final = re.compile(
    r"per[ _-]?(?:day|week|month)|/ ?(?:day|week|month)\b|\b(?:daily|weekly|monthly)\b|\b[rt]pd\b"
    r"|by(?:day|month)\b"
    r"|per 86[ ,]?400|per 24 ?h|quota will be replenished|[今当每][日天月周]",
    re.IGNORECASE,
)
_LIMIT_WORDS: Final = re.compile(
    r"\blimits?\b|\bquotas?\b|exceed|exhaust|\bused up\b|too many|限额|上限|次数", re.IGNORECASE
)
_QUOTA_WORDS: Final = re.compile(
    r"\bquotas?\b|\bresource.?(?:has been )?exhausted|额度|配额", re.IGNORECASE
)

#: A limit that opens again sooner is waited for.
_SOON_S: Final = 600.0
#: Statuses that are said of limits.
_OF_LIMITS: Final = frozenset({200, 403, 429})


def _account(status: int, told: Told, headers: Mapping[str, str]) -> Meaning | None:
    """What an error says of the account; None: nothing.

    A router's own account upstream, of which errors of a server may speak, is not meant.
    """
    if status == 402:
        return Meaning(retryable=False, account="balance")
    if not (status == 200 or 400 <= status <= 499):
        return None
    of_limits = status in _OF_LIMITS
    passing = of_limits and (_is_of_a_minute(told) or _is_soon(told.wait_s))
    lacking = None if passing else _lacking(told)
    if lacking is None and status == 401:
        lacking = "key"
    if lacking is not None:
        return Meaning(retryable=False, account=lacking)
    return _limit(status, told, headers) if of_limits else None


def _limit(status: int, told: Told, headers: Mapping[str, str]) -> Meaning | None:
    """What an error says of a limit of the account that no short wait opens; None: nothing.

    Where the words are said of full minutes as well, it is waited for before anybody is told.
    """
    if _is_of_a_day(status, told):
        wait_s = told.wait_s if told.wait_s is not None else _retry_after(headers)
        soon = _is_of_a_minute(told) or _is_soon(wait_s)
        return Meaning(retryable=soon, rate_limited=soon, account="day")
    if status != 429 or _is_of_a_minute(told) or _is_soon(told.wait_s):
        return None
    in_doubt = Meaning(retryable=True, rate_limited=True, account="balance")
    return in_doubt if _QUOTA_WORDS.search(told.words) else None


def _is_of_a_minute(told: Told) -> bool:
    return _BY_THE_MINUTE.search(told.words) is not None


def _lacking(told: Told) -> Account | None:
    """What an account lacks beyond doubt."""
    if told.marks & _NO_MONEY or _MONEY_WORDS.search(told.words):
        return "balance"
    if told.marks & _NO_KEY or _KEY_WORDS.search(told.words):
        return "key"
    if _VERIFY_WORDS.search(told.words):
        return "verify"
    closed = told.marks & _CLOSED_MARKS or _CLOSED_WORDS.search(told.words)
    return "closed" if closed else None


def _is_of_a_day(status: int, told: Told) -> bool:
    if told.marks & _NO_DAY or any("perday" in mark for mark in told.marks):  # Google's quotas
        return True
    limited = status == 429 or _LIMIT_WORDS.search(told.words) is not None
    return limited and _BY_THE_DAY.search(told.words) is not None


def _is_soon(wait_s: float | None) -> bool:
    return wait_s is not None and wait_s <= _SOON_S


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return float(headers.get("retry-after", ""))
    except ValueError:
        return None


# -- words ---------------------------------------------------------------------------------------


def clean(text: str, limit: int = MAX_REASON_CHARS) -> str:
    """One line of at most `limit` characters, without control, format or unpaired signs."""
    shown = "".join(
        " " if sign.isspace() else sign
        for sign in text[: 8 * limit]
        if sign.isspace() or unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )
    line = " ".join(shown.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def plain(body: str) -> str:
    """The start of a body that is no JSON; of a web page, its title."""
    if body.lstrip()[:1] == "<":
        title = re.search(r"<title>([^<]{1,200})", body[:20_000], re.IGNORECASE)
        return f"a web page{f' titled {clean(title[1])!r}' if title else ''}"
    return clean(body)
