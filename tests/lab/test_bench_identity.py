"""The benchmark of hosts that serve another model: how audits are summed up, committed figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import EOS_ID
from simulate import make_plan, replies, simulate_row

from verifier.evidence.ledger import Ledger
from verifier.files.run_folder import read_json
from verifier.lab.bench.identity import (
    AUDITS,
    FAMILY,
    HONEST,
    NAMED,
    SUSPECTS,
    make_identity_plan,
    sum_up_host,
    tabulate_identity,
)
from verifier.lab.bench.precision import Audit

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reference" / "benchmarks" / "identity.benchmark.json"


def test_each_accused_audit_is_named_with_its_host_among_the_suspects_and_without() -> None:
    """What is said where the truth is no suspect shows how often a wrong name is given."""
    rng = np.random.default_rng(1)
    rows = [simulate_row(rng, f"p{n}", scale=0.9, builds=("served",)) for n in range(6)]
    other = [simulate_row(rng, f"q{n}", scale=0.9).text["reference"] for n in range(6)]
    rows = [replace(r, text=r.text | {"else": o}) for r, o in zip(rows, other, strict=True)]
    plan = make_plan(suspects={"served": "another size", "else": "a fine-tune"})
    audits = [
        Audit(first=n, replies=2, completion_tokens=60, decision="inconsistent", log_e=9.0,
              lower=0.1, upper=None)
        for n in (0, 2, 4)
    ]  # fmt: skip
    honest = replace(audits[0], decision="consistent", completion_tokens=90)
    found = sum_up_host("served", plan, [*audits, honest], Ledger(rows=tuple(rows)), replies(rows))

    assert found["named"] == {"served": 3}
    assert sum(found["named_without_it"].values()) == 3
    assert "served" not in found["named_without_it"]
    assert found["decisions"] == {"inconsistent": 3, "consistent": 1}
    assert found["tokens"] == {"median": 60, "max": 90}


def test_the_plan_is_that_of_an_audit_with_these_suspects() -> None:
    """With what each is, and text alone."""
    plan = make_identity_plan(tuple(SUSPECTS), seed=1)

    assert plan.suspects == dict(SUSPECTS)
    assert plan.top_logprobs == 0


def test_derived_models_are_other_models_of_the_same_tokenizer(tiny: Path, tmp_path: Path) -> None:
    """Fine-tuned, merged and pruned: each loads, moves the weights, and comes from its seed."""
    torch = pytest.importorskip("torch")
    from verifier.lab.derived_models import fine_tune, merge, prune
    from verifier.reference.engines.transformers import TransformersEngine
    from verifier.reference.tokenizer import Tokenizer

    tokenizer = Tokenizer(tiny)
    for name, seed in (("one", 1), ("same", 1), ("two", 2)):
        fine_tune(
            tiny, tmp_path / name, render=lambda q: f"<|im_start|>{q}<|im_end|>",
            encode=tokenizer.encode_prompt, seed=seed, steps=3,
        )  # fmt: skip
    merge(tiny, tmp_path / "one", tmp_path / "merged", share=0.5)
    prune(tiny, tmp_path / "pruned")
    weights = {
        name: dict(TransformersEngine(path, eos_ids=(EOS_ID,))._model.named_parameters())
        for name, path in (
            ("published", tiny),
            *((name, tmp_path / name) for name in ("one", "same", "two", "merged", "pruned")),
        )
    }
    key = "model.layers.0.mlp.up_proj.weight"
    published, tuned = weights["published"][key], weights["one"][key]

    assert torch.equal(tuned, weights["same"][key])
    assert not torch.equal(tuned, published)
    assert not torch.equal(tuned, weights["two"][key])
    assert torch.allclose(weights["merged"][key], (tuned + published) / 2, atol=1e-7)
    assert len(weights["pruned"]) < len(weights["published"])
    assert (tmp_path / "pruned" / "chat_template.jinja").exists()


# -- the committed figures ---------------------------------------------------------------------


def host(name: str) -> dict[str, Any]:
    (found,) = [h for h in read_json(RESULTS)["hosts"] if h["host"] == name]
    return found


def test_the_page_shows_the_committed_figures() -> None:
    """Every number in the table comes from the file."""
    page = RESULTS.with_name("README.md").read_text(encoding="utf-8")

    assert tabulate_identity(read_json(RESULTS)) in page


def test_no_honest_audit_is_accused() -> None:
    """Whatever models are among the suspects."""
    assert host(HONEST)["audits"] == AUDITS
    assert host(HONEST)["decisions"] == {"consistent": AUDITS}


@pytest.mark.parametrize(
    ("name", "replies_at_most", "tokens_at_most"),
    [("half-the-layers", 3, 144), (FAMILY, 3, 144), ("fine-tune", 48, 2000)],
)
def test_another_model_is_found_as_soon_as_was_promised(
    name: str, replies_at_most: int, tokens_at_most: int
) -> None:
    """Medians: another size or family in three requests, a light fine-tune in 2,000 tokens."""
    found = host(name)

    assert found["audits"] == AUDITS
    assert found["decisions"] == {"inconsistent": AUDITS}
    assert found["replies"]["median"] <= replies_at_most
    assert found["tokens"]["median"] <= tokens_at_most


@pytest.mark.parametrize("name", list(SUSPECTS))
def test_no_audit_names_a_model_that_is_not_served(name: str) -> None:
    """Neither beside the right one nor without it; a name in brackets is not said for sure."""
    found = host(name)

    assert set(found["named"]) & {*SUSPECTS} <= {name}
    assert not set(found["named_without_it"]) & {*SUSPECTS}
    assert sum(found["named"].values()) == min(NAMED, found["decisions"].get("inconsistent", 0))
