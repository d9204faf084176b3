"""Snapshots of repositories on the Hugging Face hub: the home of huggingface_hub.

Files are kept in the hub's own cache (HF_HOME), and HF_HUB_OFFLINE is honoured, as every other tool
does. Knows nothing of cards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from verifier.errors import ConfigError
from verifier.safety import sieve

#: What a reference does not need: other formats of the same weights, and pictures.
_LEFT_OUT = ["original/*", "metal/*", "figures/*", "*.bin", "*.pth", "*.pt", "*.gguf", "*.onnx"]

#: All of a repository but the weights.
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.md", "*.model", "*.py", "LICEN*", "*.tiktoken")

#: How a command line names a repository, and a revision of it.
_NAMED = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")

_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_snapshot(
    repo: str,
    revision: str | None,
    *,
    tell: Callable[[str], None],
    fetch: bool = True,
    only: Sequence[str] | None = None,
) -> Path:
    """The directory of a repository at a revision (None: its newest commit), fetched if needed.

    With `only`, just the files of these patterns. Without `fetch` the hub is not asked, and what
    its cache lacks is a ConfigError. Raises ConfigError, in one line, when the hub cannot be
    reached or has no such thing.
    """
    from huggingface_hub import get_token, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    sieve.know(get_token())
    what = f"{repo}@{revision or 'newest'}"
    if fetch:
        tell(f"fetching {what} from the hub{'' if only is None else ': its small files'}")
    try:
        found = snapshot_download(
            repo, revision=revision, allow_patterns=None if only is None else list(only),
            ignore_patterns=_LEFT_OUT, local_files_only=not fetch,
        )  # fmt: skip
        return Path(found)
    except GatedRepoError as error:
        raise ConfigError(
            f"{what}: the hub asks to accept the licence first; do so on its page, and log in with "
            "`hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"{what}: the hub has no such repository or revision, or hides it; check the name, or "
            "log in with `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        if not fetch:
            raise ConfigError(
                f"{what}: is not on this machine, and would be fetched from the hub; add --trust "
                "to fetch it"
            ) from error
        raise _unreachable(what, error) from error
    except Exception as error:  # the client raises whatever its transport does
        raise _unreachable(what, error) from error


def read_repository(said: str) -> tuple[str, str | None] | None:
    """REPO or REPO@REVISION taken apart; None: it is neither."""
    named = _NAMED.fullmatch(said)
    return None if named is None else (named[1], named[2])


def _unreachable(what: str, error: Exception) -> ConfigError:
    said = " ".join(sieve.strike(str(error)).split())[:100]
    return ConfigError(
        f"{what}: could not be fetched ({type(error).__name__}: {said}); check the network and "
        "HF_HUB_OFFLINE, or give a directory that holds the weights"
    )


def commit_of(snapshot: Path) -> str | None:
    """The commit that a snapshot in the hub's cache is of; None for any other directory."""
    name = snapshot.resolve().name
    in_cache = snapshot.resolve().parent.name == "snapshots"
    return name if in_cache and _COMMIT.fullmatch(name) else None
