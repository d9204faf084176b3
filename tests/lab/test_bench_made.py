"""The benchmark of made models: what is measured of each; and whole, on a tiny one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from models import EMBEDDED, save_shape

from verifier.files.run_folder import read_json
from verifier.lab.bench import made, precision, templates
from verifier.lab.bench.made import HALF, figures_of, run_made_bench, share_out, tabulate_made
from verifier.lab.calibrate import Sizes
from verifier.lab.made import recipes
from verifier.lab.made.recipes import Given, Recipe
from verifier.progress import Show
from verifier.reference import add
from verifier.reference.cards import load_card
from verifier.reference.renderings.catalogue import catalogue

SIZES = Sizes(calibration=6, held_out=4, variant=2, layer=1, max_tokens=8)


def test_every_kind_of_honest_stack_and_three_schemes_are_measured() -> None:
    figures = figures_of(load_card(EMBEDDED), vllm=True)
    audits = Counter[str]()
    for figure in figures:
        audits[figure.part] += figure.audits
    honest = {figure.stack for figure in figures if figure.part == "honest"}

    assert audits == {"honest": 64, "4-bit": 120, HALF: 20}
    assert {stack.dtype for stack in honest} == {"float32", "bfloat16", "float16"}
    assert {stack.batch for stack in honest} == {1, 32}
    assert {stack.engine for stack in honest} == {"transformers", "vllm"}
    assert len({f.stack.weights for f in figures if f.part == "4-bit"}) == 3


def test_neither_vllm_nor_float16_is_served_where_a_host_could_not() -> None:
    """A card without a float16 stack overflows in it, or is published in fewer bits."""
    card = load_card(EMBEDDED).model_copy(update={"held_out_stacks": ("bfloat16-batch1",)})
    stacks = {figure.stack for figure in figures_of(card, vllm=False)}

    assert {stack.engine for stack in stacks} == {"transformers"}
    assert "float16" not in {stack.dtype for stack in stacks}


@pytest.mark.parametrize("able", [("one",), ("one", "two", "three")])
def test_twenty_audits_are_shared_out_among_the_faults_that_a_template_can_express(
    able: tuple[str, ...],
) -> None:
    """Each asked as often as any other, or once more; fewer of each on request."""
    hosts = share_out(able, audits=None)
    audits = [host.audits for host in hosts]

    assert [host.truth for host in hosts] == [*able]
    assert sum(audits) == 20
    assert max(audits) - min(audits) <= 1
    assert [host.audits for host in share_out(able, audits=2)] == [2] * len(able)
    assert share_out((), audits=None) == []


def make_figure(floor: str, part: str, *audits: tuple[str, int]) -> dict[str, Any]:
    each = [{"decision": decision, "completion_tokens": tokens} for decision, tokens in audits]
    return {"floor": floor, "part": part, "audits": len(each), "each": each}


def test_the_table_sums_up_what_is_asked_of_all_models() -> None:
    """Honest hosts accused, 4 bits found within so many tokens, and faults of templates named."""
    found = [
        make_figure("lent", "honest", ("consistent", 400), ("inconsistent", 800)),
        make_figure("lent", "4-bit", ("inconsistent", 600), ("inconsistent", 601)),
        make_figure("own", "4-bit", ("inconsistent", 48), ("inconclusive", 90)),
    ]
    models = [
        {"model": "a", "honest_scale": 0.1, "figures": found,
         "templates": {"audits": 20, "named": 19, "each": []}},
        {"model": "b", "honest_scale": 0.2, "figures": found[:2]},
    ]  # fmt: skip
    table = tabulate_made({"models": models, "left_out": []})
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]
    (under, accused, within, named) = (
        cells[0].index(head)
        for head in ("floor", "honest accused", "within 600 tokens", "template faults named")
    )
    rows = {(row[0], row[under].split()[0]): row for row in cells[2:]}

    assert rows["a", "lent"][accused] == "1 of 2"
    assert rows["a", "lent"][within] == "1 of 2"
    assert rows["a", "own"][named] == "19 of 20"
    assert rows["all 2", "lent"][accused] == "2 of 4"
    assert rows["all 2", "lent"][within] == "2 of 4"
    assert rows["all 2", "own"][within] == "1 of 2"
    assert rows["all 2", "own"][named] == "19 of 20"
    assert ("b", "own") not in rows


#: Builds of the tiny model's card.
BANK = ("int8-channel", "fp8-channel", "int4-asym-g32", "int4-sym-g32", "drop-1")

#: All renderings that it is audited with: two valid ones, and one that is served.
RENDERINGS = ("reference", "leading-whitespace-stripped", "no-template")


@pytest.fixture
def one_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that makes a tiny random model, in the place of all, and a small bank for it."""

    def make(given: Given) -> None:
        save_shape(given.out, "qwen2")

    recipe = Recipe(name="tiny", summary="a tiny one", make=make, of=None)
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": recipe})
    monkeypatch.setattr(add, "default_bank", lambda _published: BANK)


@pytest.mark.usefixtures("one_recipe")
def test_a_made_model_is_added_calibrated_and_audited_under_both_floors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one call, and what was measured is not measured again."""
    monkeypatch.setattr(made, "HONEST", {"bfloat16-batch32": 2})
    monkeypatch.setattr(made, "SCHEMES", 2)
    monkeypatch.setattr(made, "TEMPLATES", RENDERINGS[2:])
    monkeypatch.setattr(made, "catalogue", lambda: {n: catalogue()[n] for n in RENDERINGS})
    monkeypatch.setattr(precision, "CHUNK", 16)
    monkeypatch.setattr(precision, "MAX_TOKENS", 12)
    monkeypatch.setattr(templates, "PANEL_TOKENS", 12)
    show = Show(tell=lambda _line: None, step=lambda *_given: None)
    given = {"cache": tmp_path / "cache", "audits": 1, "sizes": SIZES, "seed": 5, "show": show}
    path = run_made_bench(tmp_path / "out", **given)  # type: ignore[arg-type]
    found = read_json(path)
    (model,) = found["models"]
    own, lent = (
        [one for one in model["figures"] if one["floor"] == floor] for floor in ("own", "lent")
    )

    assert [one["figure"] for one in own] == [one["figure"] for one in lent]
    assert {one["part"] for one in own} == {"honest", "4-bit", HALF}
    assert {one["card"] for one in found["left_out"]} == {EMBEDDED, "tiny"}
    assert "tiny" in tabulate_made(found)
    assert (model["templates"]["audits"], model["templates"]["named"]) == (1, 1)
    corpora = sorted((tmp_path / "out" / "tiny").rglob("exchanges.jsonl"))
    sizes = [one.stat().st_size for one in corpora]
    again = read_json(run_made_bench(tmp_path / "out", **given))  # type: ignore[arg-type]
    assert [one.stat().st_size for one in corpora] == sizes
    assert again["models"] == found["models"]
