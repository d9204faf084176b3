"""The tables in the pages of `reference/`, made of the cards and the results that lie beside them.

`python -m verifier.lab.pages DIR` writes them anew into a checkout, each between its marks
`<!-- begin NAME -->` and `<!-- end NAME -->`; what stands around them is written by hand. The
standing bet is written with them: honest audits of new results enter it. A test holds all to it.
"""

from __future__ import annotations

import math
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from verifier.evidence.calibration import Estimate
from verifier.files.run_folder import read_json, write_whole
from verifier.lab.bench import (
    certificate,
    engine,
    flips,
    gpu,
    hazards,
    identity,
    left_out,
    made,
    packs,
    precision,
    provisional,
    roundings,
    routing,
    samplers,
    stacks,
    standing,
    templates,
    tricks,
    variants,
    wire,
)
from verifier.lab.bench.results import CARD, lay_out, results_path, tabulate_rows
from verifier.reference.calibrations import load_calibration
from verifier.reference.cards import list_shipped, load_card
from verifier.reports.tables import CARD_COLUMNS, card_row

#: Parts of the benchmark, and what makes the tables of each from its results.
TABLES: Final[Mapping[str, Callable[[dict[str, Any]], str]]] = {
    CARD: precision.tabulate,
    engine.PART: engine.tabulate_engine,
    flips.PART: flips.tabulate_flips,
    gpu.PART: gpu.tabulate_gpu,
    hazards.PART: hazards.tabulate_hazards,
    identity.PART: identity.tabulate_identity,
    left_out.PART: left_out.tabulate_left_out,
    made.PART: made.tabulate_made,
    packs.PART: packs.tabulate_packs,
    provisional.PART: provisional.tabulate_provisional,
    routing.PART: routing.tabulate_routing,
    samplers.PART: samplers.tabulate_samplers,
    templates.PART: templates.tabulate_templates,
    tricks.PART: tricks.tabulate_tricks,
    variants.PART: variants.tabulate_variants,
    wire.PART: wire.tabulate,
    certificate.PART: certificate.tabulate_certificate,
    roundings.PART: roundings.tabulate_roundings,
    stacks.PART: stacks.tabulate_stacks,
    left_out.PART: left_out.tabulate_left_out,
    made.PART: made.tabulate_made,
    standing.PART: standing.tabulate_standing,
}

#: What stands in the place of the tables of a part that has no results yet.
_UNMEASURED: Final = "Not run yet."

#: Where the results lie in a checkout.
BENCHMARKS: Final = Path("reference/benchmarks")

#: Share of the requests that the summary speaks of.
_ONE_IN_TWENTY: Final = 0.05


def make_pages(root: Path) -> dict[Path, str]:
    """The pages of a checkout with their tables made anew, by path.

    Among them the standing bet, which honest audits of new results enter.
    """
    paths = {part: results_path(root / BENCHMARKS, part) for part in TABLES}
    found = {part: read_json(path) for part, path in paths.items() if path.exists()}
    found[standing.PART] = standing.append_audits(found.get(standing.PART), found)
    blocks = {
        "README.md": {"measured": summarize(found)},
        "reference/README.md": {
            "cards": tabulate_cards(),
            f"calibration {CARD}": tabulate_calibration(CARD),
        },
        f"{BENCHMARKS}/README.md": {
            part: tabulate(found[part]) if part in found else _UNMEASURED
            for part, tabulate in TABLES.items()
        },
    }
    pages = {
        root / name: fill((root / name).read_text(encoding="utf-8"), within)
        for name, within in blocks.items()
    }
    return pages | {paths[standing.PART]: lay_out(found[standing.PART])}


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """A page with each block between its marks. Raises ValueError unless it has all of them."""
    marked = re.findall(r"<!-- begin (.+?) -->", page)
    if sorted(marked) != sorted(blocks):
        raise ValueError(f"expected the marks of {sorted(blocks)}, found {sorted(marked)}")
    for name, text in blocks.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, _, rest = page.partition(begin)
        within, closed, after = rest.partition(end)
        if not closed or "<!-- begin" in within:
            raise ValueError(f"{name!r}: expected {end} before the next block")
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page


# -- cards -------------------------------------------------------------------------------------


def tabulate_cards() -> str:
    """The cards that ship, one row each."""
    rows = []
    for name in list_shipped():
        first, *others = card_row(name)
        card = load_card(name)
        rows.append((first, card.model, card.licence.name, *others))
    first, *others = CARD_COLUMNS
    return tabulate_rows([c.lower() for c in (first, "Model", "Licence", *others)], rows)


def tabulate_calibration(name: str) -> str:
    """What honest stacks and the bank's builds measure on a card, its floor, and its classes."""
    card = load_card(name)
    calibration = load_calibration(name, card)
    shown = [s for s in calibration.stacks if s.role != "variant" or s.name in card.bank]
    measured = tabulate_rows(
        ("measured", "as", "replies", "scale from text", "scale from log-probabilities"),
        [(s.name, s.role, s.replies, _show(s.text), _show(s.logprob)) for s in shown],
    )
    classes = tabulate_rows(
        ("class", "excluded once the scale is below", "basis"),
        [(c.name, f"{c.scale:.2g}", c.basis) for c in calibration.classes],
    )
    text, logprob = calibration.text.honest_scale, calibration.logprob.honest_scale
    floor = f"Honest floor: {text:.2g} from text, {logprob:.2g} from log-probabilities."
    zone = calibration.zone
    if zone is not None:
        floor += (
            f" Tolerated: up to {calibration.text.tolerated:.2g} and "
            f"{calibration.logprob.tolerated:.2g}, kappa {zone.kappa:.2g} ({zone.basis})."
        )
        if zone.risk is not None:
            floor += (
                f" Of {zone.stacks} stacks {zone.alike} are of the noisiest arithmetic; if logs of "
                f"scales are normal, a new one lies above with probability {zone.risk:.2g}."
            )
    return f"{measured}\n\n{floor}\n\n{classes}"


def _show(found: Estimate | None) -> str:
    if found is None:
        return "-"
    upper = "or more" if found.upper is None else f"to {found.upper:.2g}"
    return f"{found.estimate:.2g} ({found.lower:.2g} {upper})"


# -- the summary -------------------------------------------------------------------------------


def summarize(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Three sentences on what was measured, in lines as the page has them."""
    honest = _sum_up(found[CARD], "honest")
    faults, fp8 = _sum_up(found[CARD], "faults"), _sum_up(found[CARD], "fp8")
    routed = [line for line in found[routing.PART]["lines"] if line["share"] == _ONE_IN_TWENTY]
    caught = sum(line["decisions"]["inconsistent"] for line in routed)
    named = [
        audit for audit in found[templates.PART]["each"]
        if audit["truth"] != templates.NONE
    ]  # fmt: skip
    rightly = sum(templates.is_said(a, templates.READINGS[0]) for a in named)
    text = (
        f"{honest['consistent']:,} of {honest['audits']:,} audits of honest hosts ended consistent "
        f"and {honest['inconsistent']} inconsistent; of hosts with 4-bit or coarser weights, or "
        f"one layer fewer, {faults['inconsistent']:,} of {faults['audits']:,} audits ended "
        f"inconsistent, half of them within {faults['tokens']} tokens, and of hosts with fp8 "
        f"weights {fp8['inconsistent']:,} of {fp8['audits']:,}, half within {fp8['tokens']}. "
        f"Another model behind one request in twenty was found in {caught:,} of "
        f"{sum(line['audits'] for line in routed):,} audits, and the true template fault named, "
        f"alone or in a group, in {rightly:,} of {len(named):,}. "
        f"{standing.summarize_standing(found[standing.PART])}"
    )
    return textwrap.fill(text, width=100, break_on_hyphens=False)


def _sum_up(results: Mapping[str, Any], part: str) -> dict[str, int]:
    """Audits and verdicts of a part, and the largest of its figures' median tokens."""
    figures = [figure for figure in results["figures"] if figure["part"] == part]
    verdicts = ("consistent", "inconsistent")
    return {
        "audits": sum(figure["audits"] for figure in figures),
        **{name: sum(figure["decisions"][name] for figure in figures) for name in verdicts},
        "tokens": math.ceil(max(figure["completion_tokens"]["median"] for figure in figures)),
    }


if __name__ == "__main__":
    for page, text in make_pages(Path(sys.argv[1])).items():
        write_whole(page, text)
