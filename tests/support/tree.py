"""The tree of the package, from the first line of each docstring; run it to write the page anew.

python tests/support/tree.py
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "verifier"
PAGE: Final = PACKAGE / "README.md"
BEGIN: Final = "<!-- tree: written by tests/support/tree.py -->"
END: Final = "<!-- end of the tree -->"

#: Columns of a line at most, and where what is said of a file begins.
WIDTH: Final = 110
COLUMN: Final = 30


def first_line(path: Path) -> str:
    """The first sentence of a module's docstring, on one line and without its stop."""
    said = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    return re.split(r"\.(?:\s|$)", " ".join(said.split()))[0]


def lines(folder: Path, depth: int = 0) -> Iterator[str]:
    """A line for each file and folder below, files first."""
    files = [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("__")]
    for path in files:
        yield _line(path.name, first_line(path), depth)
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield _line(f"{inner.name}/", first_line(inner / "__init__.py"), depth)
        yield from lines(inner, depth + 1)


def _line(name: str, said: str, depth: int) -> str:
    head = f"{'  ' * depth}{name}".ljust(COLUMN)
    return head + shorten(said, WIDTH - len(head), placeholder=" …")


def block() -> str:
    """The tree as it stands on the page."""
    return "\n".join((BEGIN, "", "```", *lines(PACKAGE), "```", "", END))


def written(page: str) -> str:
    """The page with the tree as it is now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{block()}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
