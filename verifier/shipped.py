"""Where the reviewable inputs (probes, cards, configs) lie, and a user's own cards.

In a checkout they are the folders of the same names at the top; in a wheel they travel inside
the package. A user's own cards lie in the folder that the command line names; used as a library,
in none until somebody names one.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder of shipped inputs called `name` (probes, reference/cards or configs)."""
    inside = _PACKAGE / "_shipped" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


class _Own:
    cards: Path | None = None


def keep_cards_in(folder: Path | None) -> None:
    """Name the folder of a user's own cards, for this process; it need not be there yet."""
    _Own.cards = folder


def own_cards() -> Path | None:
    """The folder of a user's own cards; None: nobody has named one."""
    return _Own.cards
