"""Where the reviewable inputs (probes, cards, configs) lie, and a user's own cards.

In a checkout they are the folders of the same names at the top; in a wheel they travel inside
the package, where nothing is written: an upgrade would take it away. A user's own cards lie in the
folder that the command line names; used as a library, in none until somebody names one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PACKAGE = Path(__file__).resolve().parent

#: The folder of a user's own cards, once somebody has said where it is.
_OWN: Final[list[Path]] = []


def shipped(name: str) -> Path:
    """The folder of shipped inputs called `name`, such as probes or reference/packs."""
    inside = _PACKAGE / "_shipped" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def is_installed() -> bool:
    """Whether what ships lies in an installation, which is not written into."""
    return (_PACKAGE / "_shipped").is_dir()


@contextmanager
def with_own_cards(folder: Path) -> Iterator[None]:
    """Heed the cards of a folder before those that ship."""
    _OWN.append(folder)
    try:
        yield
    finally:
        _OWN.pop()


def own_cards() -> Path | None:
    """The folder of a user's own cards, which need not be there; None: none was named."""
    return _OWN[-1] if _OWN else None
