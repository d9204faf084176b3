"""The table of aspects, from the checks themselves; run it to write the page anew.

python tests/support/aspects.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from verifier.checks import ASPECTS, CHECKS
from verifier.checks.check import Aspect, Check
from verifier.lab.bench.results import tabulate_rows

PAGE: Final = Path(__file__).resolve().parents[2] / "verifier" / "checks" / "README.md"
BEGIN: Final = "<!-- aspects: written by tests/support/aspects.py -->"
END: Final = "<!-- end of the aspects -->"


def block() -> str:
    """The table as it stands on the page, in the order of the report."""
    rows = [
        (
            aspect.name,
            aspect.label,
            aspect.role,
            "yes" if aspect.required else "",
            "yes" if aspect.without_reference else "",
            ", ".join(check.name for check in CHECKS if speaks_of(check, aspect)),
        )
        for aspect in sorted(ASPECTS.values(), key=lambda aspect: aspect.place)
    ]
    heads = ("aspect", "in words", "role", "required", "without the reference", "check")
    return "\n".join((BEGIN, "", tabulate_rows(heads, rows), "", END))


def speaks_of(check: Check[Any, Any], aspect: Aspect) -> bool:
    """Whether findings of a check may be about an aspect."""
    return any(own.name == aspect.name for own in check.aspects)


def written(page: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{block()}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
