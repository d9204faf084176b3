"""Pages: no figure of `reference/` is written by hand, and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from verifier.lab.pages import TABLES, fill, make_pages

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "reference/README.md", "reference/benchmarks/README.md")
STANDING = "reference/benchmarks/standing.benchmark.json"
#: Those without tables of results.
OTHERS = (
    "verifier/README.md", "verifier/checks/README.md", "verifier/evidence/README.md",
    "probes/README.md", "reference/packs/README.md",
)  # fmt: skip


def test_the_pages_are_those_that_cards_and_results_make() -> None:
    """To the byte; `python -m verifier.lab.pages .` makes them anew."""
    made = make_pages(ROOT)

    assert list(made) == [ROOT / page for page in (*PAGES, STANDING)]
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, path


def test_every_file_of_results_has_its_tables() -> None:
    """A part that is measured is shown, and of one that is not it is said."""
    kept = {path.name for path in (ROOT / "reference" / "benchmarks").glob("*.json")}
    page = (ROOT / "reference" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    unmeasured = {
        f"{part}.benchmark.json" for part in TABLES
        if f"<!-- begin {part} -->\n\nNot run yet.\n" in page
    }  # fmt: skip

    assert kept.isdisjoint(unmeasured)
    assert kept | unmeasured == {f"{part}.benchmark.json" for part in TABLES}


def headings(page: Path) -> set[str]:
    """What links may name of a page, as GitHub makes it of the headings."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    """From where it lies, and to a heading that is there."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [
        link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text)
        if not link.startswith("https://")
    ]  # fmt: skip
    there = (ROOT / page).parent

    assert [path for path, _, _ in links if not there.joinpath(path).exists()] == []
    for path, _, heading in links:
        if heading:
            assert heading in headings(there / path if path else ROOT / page), (page, heading)


def test_every_page_is_held_to_its_links() -> None:
    """None is forgotten."""
    folders = ("configs", "probes", "reference", "tests", "verifier")
    found = {path for folder in folders for path in (ROOT / folder).rglob("README.md")}

    assert {str(path.relative_to(ROOT)) for path in found} == {*PAGES, *OTHERS} - {"README.md"}


def test_only_what_is_between_marks_is_made() -> None:
    """And what stood there is replaced."""
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n"

    made = fill(page, {"x": "new", "y": "two"})

    assert made == (
        "a\n<!-- begin x -->\n\nnew\n\n<!-- end x -->\n"
        "b\n<!-- begin y -->\n\ntwo\n\n<!-- end y -->\n"
    )
    assert fill(made, {"x": "new", "y": "two"}) == made


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("", "expected the marks of"),
        ("<!-- begin x --><!-- end x --><!-- begin y --><!-- end y -->", "expected the marks of"),
        ("<!-- begin x --><!-- end x --><!-- begin x --><!-- end x -->", "expected the marks of"),
        ("<!-- begin x -->", "'x': expected <!-- end x -->"),
    ],
)
def test_a_page_without_its_marks_is_refused(page: str, complaint: str) -> None:
    """A table that has no place is not left out in silence."""
    with pytest.raises(ValueError, match=complaint):
        fill(page, {"x": "new"})
