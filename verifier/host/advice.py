"""What the operator of an endpoint can do about what it says: host, what came, and what now.

Asks a host for its models, and nothing else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Final

from verifier.host.endpoint import Client, Endpoint
from verifier.host.exchange import Problem
from verifier.host.refusals import Account, clean

_MODELS_SHOWN: Final = 8

#: What to do about an account.
_OF_ACCOUNT: Final[Mapping[Account, str]] = {
    "balance": "the account has no balance, credit or quota left: top it up or raise its limit",
    "day": "the account has used up a limit that opens again in hours or days: wait or raise it",
    "verify": "the account must be verified there first: do so",
    "closed": "the account is suspended or restricted: settle that there",
}
_OTHER_HEADER: Final = "or name the header that it wants the key in (endpoint.api_key_header)"


def explain(endpoint: Endpoint, problem: Problem) -> str:
    """What to do about an endpoint that has answered nothing."""

    async def ask() -> str:
        async with Client(endpoint) as client:
            return await what_to_do(client, endpoint, problem)

    return asyncio.run(ask())


async def what_to_do(
    client: Client, endpoint: Endpoint, problem: Problem, *, refused: int = 1
) -> str:
    """What to do once no request of this kind will be answered; `refused` are probes in a row."""
    host, came = endpoint.host, problem.reason
    if problem.status is None:
        other = "; it may speak http, not https" if "WRONG_VERSION_NUMBER" in came else ""
        return (
            f"cannot reach {host}: {came}{other}; check the base URL "
            f"{endpoint.base_url!r} and the network, then run the same command again"
        )
    if problem.account is not None and problem.account != "key":
        advice = _OF_ACCOUNT[problem.account]
        return f"{host}: {advice} ({came}); then run the same command again"
    if problem.account == "key" or problem.status == 403:
        return _about_key(endpoint, came)
    if problem.status == 404 or problem.unknown_model:
        advice = _about_models(endpoint, await client.list_models())
        return f"{host} does not serve the model {endpoint.model!r} ({came}); {advice}"
    if problem.retryable:
        return _about_a_fault(endpoint, problem)
    what = "what it was asked" if refused == 1 else f"{refused} probes in a row"
    advice = "mend the request, the account or the base URL"
    if re.search(r"\btemperature\b", came):
        advice = (
            "its temperature cannot be left out: `verifier capabilities` finds out which one is "
            "taken, and an audit then asks so"
        )
    return f"{host} refused {what} and has answered none ({came}); {advice}"


def _about_key(endpoint: Endpoint, came: str) -> str:
    """What to do about a key that is missing or refused."""
    host, other = endpoint.host, f", {_OTHER_HEADER}" if endpoint.api_key_header is None else ""
    if endpoint.api_key is None:
        name = endpoint.api_key_env or "a variable, named by api_key_env,"
        return f"{host} wants an API key ({came}); put one into {name}{other}"
    name = endpoint.api_key_env or "the variable named by api_key_env"
    return f"{host} refused the API key ({came}); put a valid one into {name}{other}"


def _about_models(endpoint: Endpoint, models: tuple[str, ...]) -> str:
    """What to do about a model that is not served."""
    if not models:
        return f"check the name, and the base URL {endpoint.base_url!r} (most end in /v1)"
    shown = ", ".join(clean(name, 80) for name in models[:_MODELS_SHOWN])
    rest = len(models) - _MODELS_SHOWN
    return f"it lists {shown}{f' and {rest} more' if rest > 0 else ''}; name one of these"


def _about_a_fault(endpoint: Endpoint, problem: Problem) -> str:
    """What to do about a host that fails, or is none."""
    if problem.status is None or not 200 <= problem.status <= 299 or problem.rate_limited:
        return f"{endpoint.host} fails ({problem.reason}); run the same command again later"
    return (
        f"{endpoint.host} gives no answer of the dialect {endpoint.dialect} ({problem.reason}); "
        f"check the base URL {endpoint.base_url!r} (most end in /v1) and endpoint.dialect"
    )
