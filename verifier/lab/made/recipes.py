"""Every recipe by name, and where what it makes is kept: whole, or not there.

A model lies in the cache under its recipe's name and a digest of all that it depends on: the
recipe's version, seed and steps, and what it is made of. What a recipe needs to go on after a kill
lies beside it until it is done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from verifier.errors import ConfigError
from verifier.files.run_folder import force_names, make_folder, working_in, write_json
from verifier.progress import Show
from verifier.reference.cards import load_card
from verifier.reference.weights import check_weights, fetch_weights

#: The card of the model that all but the fetched ones are made from.
EMBEDDED: Final = "smollm2-135m-instruct"

#: Folder of the cache that holds what was made, and the file in a model that says how.
FOLDER: Final = "made"
ABOUT: Final = "recipe.json"

SEED: Final = 20261130


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a recipe makes a model of."""

    source: Path  # the embedded weights, or the model of the recipe that this one goes on from
    out: Path
    work: Path  # what lies here outlives a kill
    replies: Path  # what the source said before, for all recipes that ask it
    steps: int
    seed: int
    show: Show


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one model is made. A change of what comes out is a new version."""

    name: str
    summary: str
    make: Callable[[Given], None]
    version: int = 1
    of: str | None = EMBEDDED  # a card, or another recipe; None: nothing on this machine
    steps: int = 0  # of training, unless told otherwise


def _experts(given: Given) -> None:
    from verifier.lab.made.experts import make_experts

    make_experts(
        given.source, given.out, work=given.work, replies=given.replies, steps=given.steps,
        seed=given.seed, show=given.show,
    )  # fmt: skip


def _fp8(given: Given) -> None:
    from verifier.lab.restated import restate_in_fp8

    restate_in_fp8(given.source, given.out)


def _int4(given: Given) -> None:
    from verifier.lab.restated import restate_in_int4

    restate_in_int4(given.source, given.out)


def _thinking(given: Given) -> None:
    from verifier.lab.made.thinking import make_thinking

    make_thinking(
        given.source, given.out, work=given.work, replies=given.replies, steps=given.steps,
        seed=given.seed, show=given.show,
    )  # fmt: skip


def _tools(given: Given) -> None:
    from verifier.lab.made.tools import make_tools

    make_tools(
        given.source, given.out, work=given.work, replies=given.replies, steps=given.steps,
        seed=given.seed, show=given.show,
    )  # fmt: skip


def _byte_fallback(given: Given) -> None:
    from verifier.lab.made.byte_fallback import make_byte_fallback

    make_byte_fallback(
        given.source, given.out, work=given.work, replies=given.replies, steps=given.steps,
        seed=given.seed, show=given.show,
    )  # fmt: skip


def _gemma(given: Given) -> None:
    from verifier.lab.made.gemma import make_gemma

    make_gemma(given.out, work=given.work, tell=given.show.tell)


_ALL: Final = (
    Recipe(
        name="experts", make=_experts, steps=40,
        summary="a mixture of 16 experts beside a shared one, top-4, in Qwen2-MoE's shape",
    ),
    Recipe(
        name="experts-fp8", make=_fp8, of="experts",
        summary="the mixture published in fp8, a scale for each block of 128 x 128",
    ),
    Recipe(
        name="experts-int4", make=_int4, of="experts",
        summary="the mixture published in packed 4-bit integers, groups of 32",
    ),
    Recipe(
        name="byte-fallback", make=_byte_fallback, steps=40,
        summary="another kind of tokenizer, a larger vocabulary and a head of its own",
    ),
    Recipe(
        name="thinking", make=_thinking, steps=80,
        summary="thinks in tags before it answers, unless its template's switch says no",
    ),
    Recipe(
        name="tools", make=_tools, steps=80,
        summary="calls tools in the markup of Hermes and Qwen",
    ),
    Recipe(
        name="gemma", make=_gemma, of=None,
        summary="Gemma 3 270M, a base model of another family, from its GGUF package",
    ),
)  # fmt: skip

RECIPES: Final = {recipe.name: recipe for recipe in _ALL}


def find_recipes(name: str) -> list[Recipe]:
    """The recipe of a name, or each for `all`. Raises ConfigError for a name that is none."""
    if name == "all":
        return list(RECIPES.values())
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; there are {', '.join(RECIPES)}, and all")
    return [RECIPES[name]]


def folder_of(recipe: Recipe, *, cache: Path, seed: int = SEED, steps: int | None = None) -> Path:
    """Where the model of a recipe lies, or would lie.

    `steps` are those of the recipe and of what it goes on from.
    """
    return cache / FOLDER / f"{recipe.name}-{_key(recipe, seed=seed, steps=steps)[:12]}"


def _key(recipe: Recipe, *, seed: int, steps: int | None) -> str:
    """Digest of all that a model depends on."""
    if recipe.of in RECIPES:
        source: str | None = _key(RECIPES[recipe.of], seed=seed, steps=steps)
    else:
        source = None if recipe.of is None else load_card(recipe.of).digests.tensors_sha256
    trained = (seed, _steps(recipe, steps)) if recipe.steps else ()
    told = [recipe.name, recipe.version, source, *trained]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _steps(recipe: Recipe, steps: int | None) -> int:
    return steps if steps is not None and recipe.steps else recipe.steps


def make_model(
    recipe: Recipe, *, cache: Path, show: Show, seed: int = SEED, steps: int | None = None
) -> Path:
    """The folder of a recipe's model, made first where it is not there, and what it goes on from.

    One process at a time makes a model; nothing half written is ever under its name.
    """
    folder = folder_of(recipe, cache=cache, seed=seed, steps=steps)
    if folder.is_dir():
        return folder
    source = _source(recipe, cache=cache, show=show, seed=seed, steps=steps)
    work = folder.with_name(folder.name + ".work")
    make_folder(work)
    with working_in(work):
        if folder.is_dir():  # another process was first
            return folder
        show.tell(f"making {recipe.name}: {recipe.summary}")
        out = work / "model"
        shutil.rmtree(out, ignore_errors=True)
        recipe.make(Given(
            source=source, out=out, work=work, replies=folder.with_name(f"{source.name}.jsonl"),
            steps=_steps(recipe, steps), seed=seed, show=show,
        ))  # fmt: skip
        write_json(out / ABOUT, {
            "recipe": recipe.name, "version": recipe.version, "of": recipe.of, "seed": seed,
            "steps": _steps(recipe, steps),
        })  # fmt: skip
        out.rename(folder)
        force_names(folder.parent)
    shutil.rmtree(work)
    return folder


def _source(recipe: Recipe, *, cache: Path, show: Show, seed: int, steps: int | None) -> Path:
    """What a recipe goes on from."""
    if recipe.of in RECIPES:
        return make_model(RECIPES[recipe.of], cache=cache, show=show, seed=seed, steps=steps)
    if recipe.of is None:
        return cache
    card = load_card(recipe.of)
    directory = fetch_weights(card, cache=cache, tell=show.tell)
    check_weights(card, directory)
    return directory
