"""How many threads are taken: a share of what may be used, unless somebody has said it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from verifier.cli import common as threads


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sixteen cores, and no quota until one is written."""
    monkeypatch.delenv(threads.THREADS, raising=False)
    monkeypatch.setattr(threads, "_OURS", set())
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    first = (tmp_path / "cpu.max", None)
    monkeypatch.setattr(threads, "_QUOTAS", (first, (tmp_path / "quota", tmp_path / "period")))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 16),
        ({"cpu.max": "what is this"}, 16),
        ({"quota": "400000\n", "period": "100000\n"}, 4),
        ({"quota": "-1\n", "period": "100000\n"}, 16),
        ({"quota": "400000\n", "period": "0\n"}, 16),
    ],
)
def test_a_containers_quota_is_heeded(machine: Path, files: dict[str, str], cores: int) -> None:
    """In both of its forms; one that cannot be read is none."""
    for name, text in files.items():
        (machine / name).write_text(text)

    assert threads.usable_cores() == cores


def test_affinity_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 5}, raising=False)

    assert threads.usable_cores() == 2


@pytest.mark.parametrize(("processes", "share", "said"), [(1, 16, None), (2, 8, "8"), (40, 1, "1")])
def test_a_share_is_handed_on(processes: int, share: int, said: str | None) -> None:
    """To torch and to the processes that are started; the whole machine needs no word."""
    assert threads.share_cores(processes) == share
    assert os.environ.get(threads.THREADS) == said


def test_a_command_that_starts_another_process_shares_what_it_took(machine: Path) -> None:
    (machine / "cpu.max").write_text("400000 100000\n")

    assert [threads.share_cores(1), threads.share_cores(2)] == [4, 2]
    assert os.environ[threads.THREADS] == "2"


def test_what_somebody_has_said_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.THREADS, "3,2")

    assert threads.share_cores(2) == 3
    assert os.environ[threads.THREADS] == "3,2"
