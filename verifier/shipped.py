"""Where the reviewable inputs (probes, cards, configs) lie.

In a checkout they are the folders of the same names at the top; in a wheel they travel inside
the package.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder of shipped inputs called `name` (probes, reference/cards or configs)."""
    inside = _PACKAGE / "_shipped" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
