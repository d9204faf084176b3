"""Purses for tests."""

from __future__ import annotations

from verifier.config import Prices
from verifier.host.budget import Ceiling, Purse


def plenty(tokens: int = 10_000, usd: float | None = None) -> Purse:
    """A purse that pays for everything, unless told otherwise."""
    prices = Prices(prompt=1.0, completion=1.0)
    return Purse(Ceiling(completion_tokens=tokens, usd=usd, prices=prices))
