"""The benchmark of made models: what is measured of each; and whole, on a tiny one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from models import EMBEDDED, save_shape

from verifier.files.run_folder import read_json
from verifier.lab.bench import made
from verifier.lab.bench.made import HALF, figures_of, run_made_bench, tabulate_made
from verifier.lab.calibrate import Sizes
from verifier.lab.made import recipes
from verifier.lab.made.recipes import Given, Recipe
from verifier.progress import Show
from verifier.reference import add
from verifier.reference.cards import load_card

SIZES = Sizes(calibration=12, held_out=8, variant=2, layer=2, max_tokens=16)


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


#: Builds of the tiny model's card.
BANK = ("int8-channel", "fp8-channel", "int4-asym-g32", "int4-sym-g32", "drop-1")


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
    corpora = sorted((tmp_path / "out" / "tiny").rglob("exchanges.jsonl"))
    sizes = [one.stat().st_size for one in corpora]
    again = read_json(run_made_bench(tmp_path / "out", **given))  # type: ignore[arg-type]
    assert [one.stat().st_size for one in corpora] == sizes
    assert again["models"] == found["models"]
