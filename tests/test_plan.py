"""The plan of a run: looks, ceilings, seeds, refusals, and reading it back from a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from simulate import SHA, make_calibration
from simulate import make_plan as make_simulated_plan

import verifier
from verifier.checks import tokenizer
from verifier.checks.capabilities import findings as capabilities
from verifier.checks.capabilities.probe import capability_probes
from verifier.checks.template import findings as template
from verifier.checks.template.completions import ROUNDS
from verifier.checks.template.panel import PANEL_PROBES
from verifier.checks.template.shown_prompts import PROBES as SHOWN_PROBES
from verifier.config import Policy, Prices, RunFile, Suspect, dump_run_file
from verifier.errors import ConfigError
from verifier.files.run_folder import PLAN, PROBES, RUN, write_json
from verifier.host.budget import most_prompt_tokens
from verifier.plan import draw_stop, least_for, make_plan
from verifier.plan_file import (
    SPARE_PROBES,
    Plan,
    batch_ends,
    cost_usd,
    read_plan,
    read_probes,
    write_plan,
)
from verifier.probes import Pool, load_pool, read_pool
from verifier.records import Probe
from verifier.reference.cards import Card, card_notes, load_tokenizers

BANK = ("int4-sym-g64", "fp8-channel")


@pytest.fixture(scope="module")
def pool() -> Pool:
    return load_pool()


def make_card(**changes: Any) -> Card:
    return Card.model_validate(
        {
            "name": "tiny",
            "model": "tiny",
            "publisher": "nobody",
            "licence": {"name": "none", "hosting": "allowed"},
            "precision": "float32",
            "layers": 2,
            "source": {"kind": "directory", "path": "weights"},
            "digests": {
                "rules": 2,
                "tensors_sha256": SHA,
                "config_sha256": "3" * 64,
                "tokenizer_sha256": "1" * 64,
                "template_sha256": "2" * 64,
            },
            "bank": BANK,
            "calibration_stacks": ["float32-batch1"],
            "held_out_stacks": [],
        }
        | changes
    )


def configure(**audit: Any) -> RunFile:
    policy = {"noise": ["4-bit-class rounding"], "builds": []}
    return RunFile.model_validate(
        {
            "endpoint": {"base_url": "http://127.0.0.1/v1", "model": "tiny", "max_attempts": 2},
            "reference": {"card": "tiny"},
            "audit": {"policy": policy, "seed": 5, "budget_completion_tokens": 960} | audit,
            "prices": {"prompt": 1.0, "completion": 2.0},
            "out": "runs/x",
        }
    )


def plan(pool: Pool, **audit: Any) -> tuple[Plan, tuple[Probe, ...]]:
    made, probes, _ = make_plan(configure(**audit), make_card(), make_calibration(), pool)
    return made, probes


@pytest.mark.parametrize(
    ("total", "ends"),
    [
        (0, []),
        (1, [1]),
        (3, [1, 2, 3]),
        (14, [1, 2, 4, 6, 10, 14]),
        (31, [1, 2, 4, 6, 10, 14, 22, 30, 31]),
    ],
)
def test_looks_start_small_and_end_with_the_last_probe(total: int, ends: list[int]) -> None:
    """One probe as a scout, then batches that grow to eight: sums of (1, 1, 2, 2, 4, 4, 8, 8)."""
    assert batch_ends(total) == ends


@pytest.mark.parametrize(
    ("stop", "ends"),
    [(0, [1, 2, 4, 6, 10, 14, 20]), (10, [1, 2, 4, 6, 10, 14, 20]),
     (12, [1, 2, 4, 6, 10, 12, 14, 20]), (21, [1, 2, 4, 6, 10, 14, 20])],
)  # fmt: skip
def test_one_of_the_looks_is_at_the_stopping_point(stop: int, ends: list[int]) -> None:
    """Wherever the seed puts it."""
    assert batch_ends(20, stop=stop) == ends


def test_a_plan_holds_all_that_a_verdict_depends_on(pool: Pool) -> None:
    """Digests, rates, bank, calibration, versions and the run file; not where it was written."""
    made, _ = plan(pool)
    card = make_card()

    assert (made.card, made.card_sha256, made.bank) == ("tiny", card.digest, BANK)
    assert (
        made.tensors_sha256, made.config_sha256, made.tokenizer_sha256, made.template_sha256,
    ) == (SHA, "3" * 64, "1" * 64, "2" * 64)  # fmt: skip
    assert (made.pool_sha256, made.pool_size) == (pool.digest, pool.size)
    assert (made.alpha, made.beta, made.seed, made.max_tokens) == (0.001, 0.001, 5, 48)
    assert (made.max_attempts, made.budget_completion_tokens) == (2, 960)
    assert made.versions["verifier"] == verifier.__version__
    assert made.calibration == make_calibration()
    assert made.configuration == configure().model_dump(mode="json", exclude={"out"})


def test_a_plan_carries_what_nobody_has_checked_of_its_card(pool: Pool) -> None:
    """And says that nothing is pinned, so that the report can be made without the card."""
    digests = {"tensors_sha256": None, "tokenizer_sha256": None, "template_sha256": None}
    card = make_card(digests=digests, unchecked=["sampling"])
    made, *_ = make_plan(configure(), card, make_calibration(), pool)

    assert made.card_notes == card_notes(card)
    assert len(made.card_notes) == 2
    assert made.tensors_sha256 is made.tokenizer_sha256 is made.template_sha256 is None
    assert plan(pool)[0].card_notes == ()


def test_a_seed_gives_the_same_probes_again(pool: Pool) -> None:
    """A report reveals its seed so that its questions can be drawn anew."""
    assert plan(pool) == plan(pool)
    assert plan(pool)[1] != plan(pool, seed=6)[1]


def test_without_a_seed_one_is_drawn_that_cannot_be_guessed(pool: Pool) -> None:
    """Two runs differ, from a space too large to try out."""
    seeds = {plan(pool, seed=None)[0].seed for _ in range(8)}

    assert len(seeds) == 8
    assert max(seeds).bit_length() > 50


def test_there_are_probes_for_the_whole_budget_and_to_spare(pool: Pool) -> None:
    """Replies end early, so that the budget pays for more of them than at full length."""
    _, probes = plan(pool)

    assert len(probes) == SPARE_PROBES * 960 // 48
    assert {probe.max_tokens for probe in probes} == {48}


def test_kinds_are_those_asked_for(pool: Pool) -> None:
    """And no other."""
    _, probes = plan(pool, kinds=["code", "list"])

    assert {probe.kind for probe in probes} == {"code", "list"}


def test_a_budget_for_more_probes_than_there_are_takes_them_all(tmp_path: Path) -> None:
    """Spare probes are no reason to refuse a run."""
    (tmp_path / "few.yaml").write_text(
        "source: test\nlicence: none\nkind: code\nlanguage: en\n"
        f"groups: [{{texts: [{', '.join(f'Say {n} again.' for n in range(25))}]}}]\n"
    )

    _, probes = plan(read_pool(tmp_path))

    assert len({probe.messages for probe in probes}) == 25


def test_all_builds_are_those_of_the_bank(pool: Pool) -> None:
    """The plan spells them out, so that it can be read without the card."""
    made, _ = plan(pool, policy={"noise": [], "builds": ["all"]})

    assert made.policy == Policy(noise=(), builds=BANK)


@pytest.mark.parametrize(
    ("audit", "complaint"),
    [
        ({"policy": "lax"}, "audit.policy: no policy 'lax'; there are screen"),
        (
            {"policy": {"noise": ["5-bit-class rounding"]}},
            "audit.policy: noise: the card's calibration has no class '5-bit-class rounding'; it",
        ),
        (
            {"policy": {"noise": [], "builds": ["int5"]}},
            "audit.policy: builds: the card's bank has no 'int5'; it has int4-sym-g64, fp8-channel",
        ),
        (
            {"policy": {"noise": [], "routed": {"worse": 0.1}}},
            "audit.policy: routed: the card's calibration has no class 'worse'",
        ),
        (
            {"policy": {"noise": []}},
            "audit.policy: names no departure; list some under noise, builds or routed",
        ),
        (
            {"budget_completion_tokens": 479},
            "audit.budget_completion_tokens: 479 cannot pay for 10 replies of 48 tokens, the least",
        ),
        ({"kinds": ["poem"]}, "probes: expected kinds out of"),
        ({"kinds": []}, "probes: expected kinds out of"),
    ],
    ids=["policy", "class", "build", "routed", "nothing named", "budget", "kind", "no kind"],
)
def test_a_run_that_cannot_end_is_refused_before_it_begins(
    pool: Pool, audit: dict[str, Any], complaint: str
) -> None:
    """With the key, what is wrong, and what there is instead."""
    with pytest.raises(ConfigError) as refused:
        plan(pool, **audit)

    assert str(refused.value).startswith(complaint)


def test_a_small_share_of_requests_needs_a_budget_of_its_own(pool: Pool) -> None:
    """The refusal names the class, the replies and a budget that is accepted."""
    policy = {"noise": ["another model"], "routed": {"another model": 0.05}}
    with pytest.raises(ConfigError) as refused:
        plan(pool, policy=policy, budget_completion_tokens=7247)
    made, _ = plan(pool, policy=policy, budget_completion_tokens=7248)

    assert str(refused.value) == (
        "audit.budget_completion_tokens: 7247 cannot exclude that 0.05 of the requests meet "
        "another model: that takes 151 replies of 48 tokens at the very least; allow 7248 or, "
        "better, half as many again"
    )
    assert made.policy.routed == {"another model": 0.05}


def test_the_least_budget_is_enough(pool: Pool) -> None:
    """What the refusal advises is accepted."""
    made, _ = plan(pool, budget_completion_tokens=480)

    assert made.budget_completion_tokens == 480


def test_the_stopping_point_is_drawn_from_the_seed() -> None:
    """Least, most and how often either is passed, by hand."""
    stops = [draw_stop(seed, least=10) for seed in range(4000)]

    assert (min(stops), max(stops)) == (10, 40)
    assert sum(stop == 10 for stop in stops) / 4000 == pytest.approx(0.5 + 0.5 * 0.18, abs=0.04)
    beyond = sum(stop > 20 for stop in stops) / 4000
    assert beyond == pytest.approx((20.5 / 10) ** -4 / 2, abs=0.012)
    assert stops == [draw_stop(seed, least=10) for seed in range(4000)]


@pytest.mark.parametrize(
    ("routed", "least"),
    [({}, 10), ({"4-bit-class rounding": 0.5}, 10), ({"4-bit-class rounding": 0.25}, 25),
     ({"4-bit-class rounding": 0.1, "another model": 0.5}, 66)],
)  # fmt: skip
def test_a_certificate_takes_the_replies_that_its_smallest_share_does(
    routed: dict[str, float], least: int
) -> None:
    """ln beta / ln(1 - share), and never fewer than ten."""
    assert least_for(Policy(noise=("another model",), routed=routed), beta=0.001) == least


def test_a_stopping_point_is_within_what_the_budget_pays_for(pool: Pool) -> None:
    """And one that the run file gives is kept to."""
    stops = {
        plan(pool, seed=seed, min_replies=None, budget_completion_tokens=600)[0].min_replies
        for seed in range(60)
    }
    given = plan(pool, seed=1, min_replies=17)[0].min_replies

    assert (min(stops), max(stops)) == (10, 12)
    assert given == 17


def test_dollars_are_tokens_times_prices_per_million() -> None:
    """By hand: (300,000 * 0.5 + 20,000 * 2) / 1e6 = 0.19."""
    prices = Prices(prompt=0.5, completion=2.0)

    assert cost_usd(prices, prompt_tokens=300_000, completion_tokens=20_000) == 0.19
    assert cost_usd(None, prompt_tokens=1, completion_tokens=1) is None


def written(run: Path, pool: Pool) -> tuple[Plan, tuple[Probe, ...]]:
    made, probes = plan(pool)
    write_plan(run, dump_run_file(configure()), made, probes)
    return made, probes


def test_a_plan_and_its_probes_come_back_from_the_folder(tmp_path: Path, pool: Pool) -> None:
    """Folders above the run folder are made."""
    run = tmp_path / "deep" / "run"
    made, probes = written(run, pool)

    assert read_plan(run) == made
    assert read_probes(run) == probes


def test_a_plan_from_before_cards_had_notes_is_read(tmp_path: Path) -> None:
    """The same schema: it has none to say."""
    raw = make_simulated_plan().model_dump(mode="json")
    del raw["card_notes"]
    write_json(tmp_path / PLAN, raw)

    assert read_plan(tmp_path).card_notes == ()


def test_a_plan_from_before_configurations_were_pinned_is_read(tmp_path: Path) -> None:
    """The same schema: none was."""
    raw = make_simulated_plan().model_dump(mode="json")
    del raw["config_sha256"]
    write_json(tmp_path / PLAN, raw)

    assert read_plan(tmp_path).config_sha256 is None


def test_the_plan_is_written_last(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that holds a plan holds all of it, whenever the writing was killed."""
    order: list[str] = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda at, to, **below: (order.append(to), replace(at, to, **below))[1]
    )
    written(tmp_path, pool)

    assert order == [RUN, PROBES, PLAN]


def test_a_missing_folder_and_a_missing_plan_are_told_apart(tmp_path: Path) -> None:
    """Each message names the path."""
    with pytest.raises(ConfigError, match="none: no such run folder"):
        read_plan(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"plan\.json: no such file; run the step that writes"):
        read_plan(tmp_path)


def tampered(**changes: Any) -> dict[str, Any]:
    return make_simulated_plan().model_dump(mode="json") | changes


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema_version": 2}, "schema_version: this version reads 1, got 2"),
        ({"schema_version": None}, "schema_version: input should be a valid integer, got None"),
        ({"surprise": 1}, "surprise: unknown key; remove it"),
        ({"alpha": 0}, "alpha: input should be greater than or equal to 0.000000000001, got 0"),
        ({"beta": 1}, "beta: input should be less than 0.999, got 1"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1"),
        ({"max_attempts": 0}, "max_attempts: input should be greater than or equal to 1"),
        ({"seed": "x"}, "seed: input should be a valid integer"),
        ({"prices": {"prompt": 1}}, "prices.completion: missing"),
        ({"policy": {"noise": ["unheard of"]}}, "the policy names 'unheard of', of which nothing"),
        ({"bank": []}, "the policy names 'drop-1', of which nothing is known"),
        ({"calibration": {}}, "calibration.schema_version: missing"),
        ({"samplers": {"hot": {"heat": 2.0}}}, "the sampler 'hot' is none: "),
        ({"samplers": {"hot": {"temperature": 99.0}}}, "the sampler 'hot' is none: sampler: temp"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_plan_that_is_not_ours_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    """A folder from a stranger, or from another version, is no defect of the program."""
    policy = {"noise": ["another model"], "builds": ["drop-1"]}
    write_json(tmp_path / PLAN, tampered(**{"policy": policy} | changes))

    with pytest.raises(ConfigError) as refused:
        read_plan(tmp_path)

    assert complaint in str(refused.value)
    assert str(refused.value).startswith(f"{tmp_path / PLAN}: ")


def test_a_truncated_plan_is_refused(tmp_path: Path, pool: Pool) -> None:
    """By its file's name, at whatever place it was cut."""
    written(tmp_path, pool)
    whole = (tmp_path / PLAN).read_bytes()

    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        (tmp_path / PLAN).write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"plan\.json: not JSON"):
            read_plan(tmp_path)


GOOD = {
    "id": "p1", "kind": "code", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ...},
        {"kind": ...},
        {"messages": ...},
        {"messages": None},
        {"messages": "user"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "root", "content": "Hi."}]},
        {"messages": [{"role": ["user"], "content": "Hi."}]},
        {"max_tokens": "many"},
        {"max_tokens": None},
        {"max_tokens": 1e999},
        {"max_tokens": 8.0},
        {"tools": "all"},
        {"tools": [{"name": "f", "description": "", "parameters": "{"}]},
        {"today": "tomorrow"},
        {"surprise": 1},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_malformed_probe_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """`...` stands for a key that is missing."""
    bad = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    text = json.dumps(bad).replace("Infinity", "1e999")
    (tmp_path / PROBES).write_text(f"{json.dumps(GOOD)}\n{text}\n")

    with pytest.raises(ConfigError, match=r"probes\.jsonl:2: .*restore the run folder"):
        read_probes(tmp_path)


# -- suspects ----------------------------------------------------------------------------------


def test_suspects_of_card_and_run_file_are_planned_with_what_they_are(pool: Pool) -> None:
    """They may be named; the bank, which policies draw on, stays as it is."""
    card = make_card(siblings=[{"name": "base", "repo": "a/base", "relation": "base"}])
    config = configure()
    suspects = ({"name": "small", "path": "here/small"},)
    reference = config.reference.model_copy(
        update={"suspects": tuple(map(Suspect.model_validate, suspects))}
    )
    plan, *_ = make_plan(
        config.model_copy(update={"reference": reference}), card, make_calibration(), pool
    )

    assert plan.suspects == {"base": "base, a/base@newest", "small": "another model"}
    assert plan.bank == BANK


@pytest.mark.parametrize("name", ["fp8-channel", "base", "reference"])
def test_a_suspect_with_a_name_that_is_taken_is_refused(pool: Pool, name: str) -> None:
    """Its column would be another one's."""
    card = make_card(siblings=[{"name": "base", "repo": "a/base"}])
    config = configure()
    suspects = (Suspect.model_validate({"name": name, "path": "x"}),)
    reference = config.reference.model_copy(update={"suspects": suspects})

    with pytest.raises(ConfigError, match=f"reference.suspects: '{name}' is a name"):
        make_plan(
            config.model_copy(update={"reference": reference}), card, make_calibration(), pool
        )


def test_a_forecast_knows_what_may_be_asked_beside_the_probes() -> None:
    """As many requests as the steps that send them make."""
    plan = make_simulated_plan(configuration={"audit": {"capabilities": True}})
    looked = PANEL_PROBES + SHOWN_PROBES + 2  # ways to show that fail first

    assert template.CHECK.forecast(plan).most.requests == looked + ROUNDS[-1]
    assert tokenizer.CHECK.forecast(plan).most.requests == len(load_tokenizers().strings)
    assert capabilities.CHECK.forecast(plan).expected.requests == len(capability_probes())
    assert max(map(most_prompt_tokens, capability_probes())) <= 256
