"""The benchmark of a GPU: refused where there is none, and whole on a small model elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from verifier.errors import ConfigError
from verifier.evidence.calibration import Machine
from verifier.files.run_folder import read_json
from verifier.lab.bench import gpu
from verifier.lab.bench.gpu import EXPERTS, PART, STACKS, run_gpu_bench, tabulate_gpu
from verifier.lab.bench.results import CARD, results_path
from verifier.lab.demo import CARD as DEMO
from verifier.lab.made.recipes import RECIPES, folder_of
from verifier.reference.cards import load_card


def no_words(_line: str) -> None:
    """Nothing is told."""


def test_nothing_is_measured_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor fetched, nor written."""
    bare = Machine(processor="a processor", cores=2, memory_gib=8.0)
    monkeypatch.setattr(gpu, "this_machine", lambda: bare)
    monkeypatch.setattr(gpu, "fetch_measured", lambda **_given: pytest.fail("fetched"))
    with pytest.raises(ConfigError, match="no NVIDIA GPU is visible here"):
        run_gpu_bench(tmp_path / "out", cache=tmp_path, seed=1, tell=no_words)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("made", [False, True])
def test_every_stack_is_scored_and_timed(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """On the processor, in the place of a GPU: float32 has no noise, and half precisions have.

    The mixture is measured where it was made.
    """
    monkeypatch.setattr(gpu, "fetch_measured", lambda **_given: (load_card(DEMO), tiny))
    for name, value in (("BATCHES", (1, 4)), ("DECODED", 4), ("SCORED", 8), ("MAX_TOKENS", 12)):
        monkeypatch.setattr(gpu, name, value)
    experts = folder_of(RECIPES[EXPERTS], cache=tmp_path)
    experts.parent.mkdir(parents=True)
    if made:
        experts.symlink_to(tiny)
    path = run_gpu_bench(tmp_path, cache=tmp_path, seed=1, tell=no_words, device="cpu", replies=6)
    found = read_json(path)
    model, *others = found["models"]
    by_name = {one["stack"]: one for one in model["stacks"]}
    table = tabulate_gpu(found)

    assert path == results_path(tmp_path, PART)
    assert found["card"] == CARD
    assert [one["model"] for one in others] == [EXPERTS] * made
    assert tuple(by_name) == STACKS
    assert all(one["replies"] == 6 for one in by_name.values())
    plain, half = (by_name[f"{d}-batch32"]["logprob"]["estimate"] for d in ("float32", "bfloat16"))
    assert plain < half
    for speed in model["speeds"].values():
        assert {*speed["decoding"]} == {"1", "4"}
        assert all(one["tokens_per_s"] > 0 for one in speed["decoding"].values())
        assert speed["scoring_tokens_per_s"] > 0
        assert speed["weight_bytes"] > 1_000_000
    names = [DEMO, *([EXPERTS] if made else [])]
    assert all(f"| {name} | {stack} | 6 | " in table for name in names for stack in STACKS)
