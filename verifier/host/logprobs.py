"""What a host claims of its own tokens: log-probabilities and alternatives, in any usual form.

Total: whatever JSON came, the result is a value. Whether a claim is true is not known here.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any, Final

from verifier.evidence.reported import PROBABILITIES
from verifier.host.dialects import kind_of
from verifier.records import Candidate, ReportedToken

#: Rounding may lift a log-probability a little above zero; more is nonsense.
_LOGPROB_SLACK: Final = 1e-3
#: Hosts write minus infinity as -9999 or -3.4e38; no token that was chosen is this unlikely.
_LOGPROB_FLOOR: Final = -1000.0
_NAMED_ID: Final = re.compile(r"token_id:([0-9]{1,9})")
_MOST_IDS: Final = 10**9


def read_claims(value: object, completion_tokens: int | None) -> tuple[ReportedToken, ...] | str:
    """What the host claims at each position, or why that cannot be used.

    Takes OpenAI's form for chats, the older parallel lists of text completions (Together's chats
    too, where ids may stand beside), and alternatives as a list or as {token: log-probability}.
    """
    if value is None:
        return "the host returned none"
    if not isinstance(value, dict):
        return f"logprobs is {kind_of(value)}, expected an object"
    rows = value.get("content")
    if rows is None and isinstance(value.get("tokens"), list):
        rows = _native_rows(value)
    if not isinstance(rows, list) or not rows:
        return "the host returned no positions"
    if len(rows) > 1 and _is_bare_end(rows[-1]):
        rows = rows[:-1]
    # some hosts count the end-of-turn token and give no position for it, or the reverse
    if completion_tokens is not None and abs(len(rows) - completion_tokens) > 1:
        return f"{len(rows)} positions for {completion_tokens} completion tokens"
    if _are_probabilities(rows):
        return f"the numbers are {PROBABILITIES}"
    found: list[ReportedToken] = []
    for position, row in enumerate(rows, 1):
        token = _read_row(row)
        if isinstance(token, str):
            return f"position {position}{token}"
        found.append(token)
    return tuple(found)


def _is_bare_end(row: object) -> bool:
    """Whether a last row says nothing: the end of the turn without bytes, as vLLM has been seen to
    write it with minus infinity beside it (vllm-project/vllm#17637)."""
    logprob = row.get("logprob") if isinstance(row, dict) and not row.get("bytes") else None
    return isinstance(logprob, int | float) and logprob <= _LOGPROB_FLOOR


def _read_row(row: object) -> ReportedToken | str:
    """What is claimed at one position, or why that cannot be used, as a sentence goes on."""
    if not isinstance(row, dict):
        return f" is {kind_of(row)}, expected an object"
    chosen = _candidate(row)
    if isinstance(chosen, str) or chosen.logprob <= _LOGPROB_FLOOR:
        problem = chosen if isinstance(chosen, str) else _nonsense(chosen.logprob)
        return f": {problem}"
    top: list[Candidate] = []
    for other in _alternatives(row.get("top_logprobs")):
        candidate = _candidate(other)
        if isinstance(candidate, str):
            return f", an alternative: {candidate}"
        if candidate.logprob > _LOGPROB_FLOOR:
            top.append(candidate)
    return ReportedToken(chosen=chosen, top=tuple(top))


def _are_probabilities(rows: list[Any]) -> bool:
    """Whether all positions claim what only a probability can be."""
    claimed = [row.get("logprob") if isinstance(row, dict) else None for row in rows]
    return all(
        isinstance(value, float | int) and value is not True and _LOGPROB_SLACK < value <= 1
        for value in claimed
    )


def _native_rows(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the older shape: parallel lists of tokens, log-probabilities and alternatives."""
    columns = [
        column if isinstance(column, list) else []
        for column in (
            value["tokens"],
            value.get("token_logprobs"),
            value.get("top_logprobs"),
            value.get("token_ids"),
        )
    ]
    return [
        {"token": token, "logprob": logprob, "top_logprobs": top, "token_id": token_id}
        for token, logprob, top, token_id in zip_longest(*columns)
    ]


def _alternatives(top: object) -> list[dict[str, Any]]:
    """Alternatives at one position, given as a list of objects or as {token: logprob}."""
    if isinstance(top, dict):
        return [{"token": token, "logprob": logprob} for token, logprob in top.items()]
    return [row for row in top if isinstance(row, dict)] if isinstance(top, list) else []


def _candidate(row: dict[str, Any]) -> Candidate | str:
    """A token with its claimed log-probability, or why it has none."""
    token, logprob, raw = row.get("token"), row.get("logprob"), row.get("bytes")
    if not isinstance(token, str):
        return f"token is {kind_of(token)}, expected text"
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        return f"logprob is {kind_of(logprob)}, expected a number"
    try:
        number = float(logprob)
    except OverflowError:
        return "logprob is an integer too large for a number"
    if not number <= _LOGPROB_SLACK:  # NaN fails it too
        return _nonsense(number)
    return Candidate(
        token=paired(token),
        bytes=_read_bytes(raw),
        logprob=number,
        token_id=_read_id(token, row.get("token_id")),
    )


def _read_id(token: str, given: object) -> int | None:
    """The id of a token: beside it (Fireworks, Together) or in its place (vLLM, when asked)."""
    if type(given) is not int:
        named = _NAMED_ID.fullmatch(token)
        given = None if named is None else int(named[1])
    return given if given is not None and 0 <= given < _MOST_IDS else None


def _read_bytes(raw: object) -> bytes | None:
    """The bytes of a token; None unless they are a list of them."""
    if not isinstance(raw, list) or bool in map(type, raw):
        return None
    try:
        return bytes(raw)
    except (TypeError, ValueError):
        return None


def _nonsense(number: float) -> str:
    return f"{number:g} is not the log-probability of a chosen token"


def paired(text: str) -> str:
    """Text with unpaired surrogates replaced: JSON can carry them, tokenizers cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
