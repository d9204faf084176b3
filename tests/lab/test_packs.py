"""Making a pack: what is asked of the engine, and how it goes on after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from audits import make_engine, write_card
from command_line import _plain_surroundings, call
from fakes_engine import FakeTokenizer
from packs import write_tiny_pack

from verifier.errors import ConfigError
from verifier.lab.packs import BRANCH_MARGIN, BRANCH_TOKENS, foresee, make_recipe
from verifier.records import GenerateRequest, Prompt
from verifier.reference.cards import load_card
from verifier.reference.machine import Speed
from verifier.reference.pack_file import STEPS, read_pack

__all__ = ["_plain_surroundings"]  # a fixture

SPEED = Speed(words="one", devices=1, gpu=False, bandwidth=1e10, arithmetic=1e11, memory=1e10)


class Killed(Exception):
    """What stands for a kill."""


def test_a_pack_that_was_stopped_goes_on_and_is_the_same(tmp_path: Path) -> None:
    """Whatever was generated is not generated again."""
    whole = write_tiny_pack(tmp_path, questions=40, name="whole.pack")
    engine, asked = make_engine(), []
    generate = engine.generate

    def breaking(requests: list[GenerateRequest]) -> Any:
        if len(asked) == 2:
            raise Killed
        asked.append(requests)
        return generate(requests)

    engine.generate = breaking  # type: ignore[method-assign, assignment]
    with pytest.raises(Killed):
        write_tiny_pack(tmp_path, questions=40, engine=engine)
    assert not (tmp_path / "tiny.pack").exists()
    second = make_engine()
    made = write_tiny_pack(tmp_path, questions=40, engine=second)

    said = {request for batch in asked for request in batch}
    assert made.read_bytes() == whole.read_bytes()
    assert not said & {request for batch in second.batches for request in batch}


def test_every_near_tie_of_a_published_path_has_its_branch(tmp_path: Path) -> None:
    """And nothing else has one."""
    found = read_pack(write_tiny_pack(tmp_path, questions=24))

    ties = set()
    for (_, rendering), path in found.paths.items():
        for at in range(found.length(path)):
            place = found.place(path, at)
            near = place.logprobs[0] - place.logprobs[1] <= BRANCH_MARGIN - 1 / STEPS
            goes_on = at + 1 < found.manifest.max_tokens
            ends = found.token_id(place.tokens[1]) == found.manifest.eos_id
            if rendering == 0 and near and goes_on and not ends:
                ties.add((path, at, place.tokens[1]))
    assert ties
    assert ties <= found.branches.keys()
    assert len(found.branches) <= len(ties) + 2
    assert all(found.length(path) < BRANCH_TOKENS for path in found.branches.values())


def test_the_work_of_another_pack_is_left_alone(tmp_path: Path) -> None:
    """It would be mixed with this one's."""
    write_tiny_pack(tmp_path, questions=16)

    with pytest.raises(ConfigError, match="holds what was made for another pack"):
        write_tiny_pack(tmp_path, questions=17)


def test_a_template_that_prints_the_day_makes_no_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts print the day of the audit, and nobody would follow the paths of another one."""
    render = FakeTokenizer.render_text

    def dated(self: FakeTokenizer, prompt: Prompt) -> str:
        return f"{prompt.today} {render(self, prompt)}"

    monkeypatch.setattr(FakeTokenizer, "render_text", dated)

    with pytest.raises(ConfigError, match="the template prints the day"):
        write_tiny_pack(tmp_path, questions=16)


@pytest.mark.parametrize(
    ("card", "option", "said"),
    [
        ("minimax-m2.7", "--no-think", "knows no setting that turns thinking off"),
        ("smollm2-135m-instruct", "--think", "says nothing of thoughts"),
    ],
)
def test_a_way_to_think_that_the_card_lacks_is_refused(
    tmp_path: Path, card: str, option: str, said: str
) -> None:
    """Before anything is fetched; thoughts are what a pack of a model that thinks is of."""
    asked = ("pack", "make", card, "--probes", 20, "--out", tmp_path / "a.pack", "--dry-run")

    assert said in call(*asked, option).complaint
    assert call(*asked).status == 0


def test_what_it_takes_is_told_first(tmp_path: Path) -> None:
    """Tokens grow with questions and builds; a card without facts has no minutes."""
    embedded, tiny = load_card("smollm2-135m-instruct"), load_card(str(write_card(tmp_path)))
    small, large = (
        foresee(
            make_recipe(count, seed=1, max_tokens=48, builds=("nf4-g64",)), embedded, speed=SPEED,
            engine="transformers", renderings=100,
        )
        for count in (200, 2000)
    )  # fmt: skip

    assert large.tokens > 5 * small.tokens
    assert large.scored == 10 * small.scored
    assert small.minutes is not None
    gpus = Speed(words="8", devices=8, gpu=True, bandwidth=2e12, arithmetic=3e14, memory=8e10)
    alone, together = (
        foresee(
            make_recipe(200, seed=1, max_tokens=48, builds=()), load_card("minimax-m2.7"),
            speed=gpus, engine="vllm", renderings=100, engine_args={"tensor_parallel_size": count},
        ).minutes
        for count in (1, 8)
    )  # fmt: skip
    assert alone is not None
    assert together is not None
    assert together < alone / 2
    recipe = make_recipe(20, seed=1, max_tokens=48, builds=())
    unknown = foresee(recipe, tiny, speed=SPEED, engine="transformers", renderings=100)
    assert unknown.minutes is None


def test_a_dry_run_writes_nothing_and_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    """Names, numbers and keys are refused before weights are fetched."""
    card, out = "smollm2-135m-instruct", tmp_path / "a.pack"
    dry = call("pack", "make", card, "--probes", "200", "--out", out, "--dry-run")

    assert dry.status == 0
    assert "200 questions" in dry.out
    assert list(tmp_path.iterdir()) == []
    for options, said in (
        (("--probes", 1_000_000, "--out", out), "a pack holds 50,000 at most"),
        (("--probes", 20, "--out", tmp_path / "a.bin"), "ends in .pack"),
        (("--probes", 20, "--out", out, "--key", tmp_path / "no.pem"), "cannot be read"),
    ):
        assert said in call("pack", "make", card, *options).complaint
    assert list(tmp_path.iterdir()) == []


def test_a_demo_without_a_pack_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is fetched or started."""
    monkeypatch.setattr("verifier.lab.demo.shipped", lambda _name: tmp_path)

    assert "verifier pack make" in call("demo", "--pack").complaint
