"""The hub: its cache is used, its offline mode honoured, and each failure is one line."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from verifier.errors import ConfigError
from verifier.reference.hub import commit_of, fetch_snapshot

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one snapshot in it, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "snapshots" / COMMIT / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_snapshot_in_the_cache_needs_no_network(cache: Path, revision: str | None) -> None:
    """By name, by commit, or the newest."""
    said: list[str] = []
    found = fetch_snapshot("someone/tiny", revision, tell=said.append)

    assert found == cache / "models--someone--tiny" / "snapshots" / COMMIT
    assert commit_of(found) == COMMIT
    assert said == [f"fetching someone/tiny@{revision or 'newest'} from the hub"]


def test_without_network_the_message_says_what_to_do(cache: Path) -> None:
    """One line, with the repository and a way out."""
    with pytest.raises(ConfigError) as refused:
        fetch_snapshot("someone/else", None, tell=lambda _line: None)
    message = str(refused.value)

    assert message.startswith("someone/else@newest: could not be fetched (LocalEntryNotFoundError")
    assert "check the network and HF_HUB_OFFLINE, or give a directory" in message
    assert "\n" not in message


def test_without_leave_to_fetch_the_hub_is_not_asked(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the cache is taken, and what is not is said, with where it would come from."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    said: list[str] = []
    found = fetch_snapshot("someone/tiny", COMMIT, tell=said.append, fetch=False)
    with pytest.raises(ConfigError) as refused:
        fetch_snapshot("stranger/private-beacon", None, tell=said.append, fetch=False)

    assert found.name == COMMIT
    assert str(refused.value) == (
        "stranger/private-beacon@newest: is not on this machine, and would be fetched from the "
        "hub; add --trust to fetch it"
    )
    assert said == []


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "http://127.0.0.1"))


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (GatedRepoError("gated", response=answer(403)), "asks to accept the licence first"),
        (RepositoryNotFoundError("none", response=answer(404)), "no such repository or revision"),
        (RevisionNotFoundError("none", response=answer(404)), "no such repository or revision"),
        (HFValidationError("bad name"), "no such repository or revision"),
        (LocalEntryNotFoundError("cold cache"), "check the network"),
        (TimeoutError("slow"), "check the network"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_refusal_of_the_hub_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    """With the repository, the revision and what to do."""

    def refuse(*_what: object, **_how: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ConfigError, match=advice) as refused:
        fetch_snapshot("someone/tiny", "main", tell=lambda _line: None)

    assert str(refused.value).startswith("someone/tiny@main: ")
    assert "\n" not in str(refused.value)


def test_a_directory_of_ones_own_is_of_no_commit(tmp_path: Path) -> None:
    """Even when it is called like one."""
    assert commit_of(tmp_path) is None
    assert commit_of(tmp_path / COMMIT) is None
    assert commit_of(tmp_path / "snapshots" / "main") is None
