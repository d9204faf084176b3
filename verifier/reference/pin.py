"""Pinning a card: the digests of what was published, written into the card's own file, the
sampling defaults that its generation_config has for what no request says, and whether its template
shows tools. For a card of an installation a copy among the user's own is written.

Takes a local snapshot or one from the hub. What is pinned already is overwritten only when that is
asked for, and never for other tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.evidence.samplers import PENALTIES, RANGES, Sampler
from verifier.reference.card_text import set_values
from verifier.reference.cards import Card, HubSource, find_card, load_card, write_card
from verifier.reference.describe import refuse_other_model
from verifier.reference.digests import digests_of, shows_tools
from verifier.reference.hub import commit_of, fetch_snapshot, read_repository
from verifier.reference.licences import licence_sha256
from verifier.reference.snapshot import read_object
from verifier.reference.weights import Tell, refuse_older_rules

#: Where a repository keeps what servers apply where a request says nothing.
GENERATION_CONFIG = "generation_config.json"


def pin_card(
    name: str, weights: str, *, again: bool = False, tell: Tell
) -> dict[str, tuple[str | float | None, str | float]]:
    """Fill what a card leaves open from `weights`, a directory or REPO@REVISION: digests, sampling
    defaults, and whether the template shows tools.

    With `again` digests that are pinned and differ are overwritten, but for that of the tensors.
    Returns what was written, by dotted key: the old value and the new one; empty when all of it
    was pinned before. Raises ReferenceMismatch, and writes nothing, when a digest differs from one
    that is pinned or was made by older rules, or a penalty from the card's.
    """
    card, path = load_card(name), find_card(name)
    if not again:
        refuse_older_rules(card)
    directory = find_weights(weights, card.source, tell=tell)
    refuse_other_model(card, directory)
    tell("computing digests; this reads every tensor")
    found = _found_in(directory, card)
    pinned: dict[str, str | float | None] = {
        **{f"sampling.{key}": card.sampling.get(key) for key in RANGES},
        **{f"digests.{key}": value for key, value in card.digests},
        "licence.sha256": card.licence.sha256,
        "takes_tools": card.takes_tools,
        "source.revision": getattr(card.source, "revision", None),
    }
    for key, value in found.items():
        before = pinned[key]
        kept = not again or not key.startswith("digests.") or key == "digests.tensors_sha256"
        if before is not None and before != value and kept:
            raise ReferenceMismatch(
                f"{weights}: {key} is {_short(value)}, but {path} pins {_short(before)}; nothing "
                "was written: give the snapshot that the card is of, or make a card of its own"
            )
    written = {key: value for key, value in found.items() if pinned[key] != value}
    if written:
        write_card(name, set_values(path.read_text(encoding="utf-8"), written))
    return {key: (pinned[key], value) for key, value in written.items()}


def _found_in(directory: Path, card: Card) -> dict[str, str | float]:
    """What a directory says of all that can be pinned, by dotted key."""
    found: dict[str, str | float] = {
        f"digests.{key}": value for key, value in digests_of(directory) if value is not None
    }
    licence = licence_sha256(directory)
    if licence is not None:
        found["licence.sha256"] = licence
    if card.takes_tools is None:
        found["takes_tools"] = shows_tools(directory)
    commit = commit_of(directory)
    if isinstance(card.source, HubSource) and commit is not None:
        found["source.revision"] = commit
    return found | {
        f"sampling.{key}": value for key, value in generation_defaults(directory).items()
        if key in PENALTIES or key not in card.sampling  # others are often a page's, not the file's
    }  # fmt: skip


def _short(value: str | float) -> str:
    return f"{value[:12]}…" if isinstance(value, str) else f"{value:g}"


def generation_defaults(directory: Path) -> dict[str, float]:
    """What a repository's generation_config says of sampling and is not neutral; {} without one.

    Raises ReferenceMismatch for a file that is no JSON object.
    """
    if not (directory / GENERATION_CONFIG).is_file():
        return {}
    said = read_object(directory / GENERATION_CONFIG)
    known = {key: said.get(key) for key in RANGES if key not in ("drop_best", "rare")}
    found = {
        key: value for key, value in known.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        and RANGES[key][0] <= value <= RANGES[key][1]
    }  # fmt: skip
    return {key: value for key, value in found.items() if value != getattr(Sampler(), key)}


def find_weights(weights: str, source: object, *, tell: Callable[[str], None]) -> Path:
    """A folder of weights, or a snapshot of REPO@REVISION, fetched; `source` is the card's.

    Raises ConfigError for what is neither, and for another repository than the card's.
    """
    directory = Path(weights)
    if directory.is_dir():
        return directory
    repo, revision = read_repository(weights) or (None, None)
    if repo is None or revision is None:
        raise ConfigError(
            f"--weights: {weights!r} is neither a directory nor REPO@REVISION of the hub, such as "
            "owner/name@main"
        )
    if isinstance(source, HubSource) and repo != source.repo:
        raise ConfigError(f"--weights: {repo} is not the card's repository {source.repo}")
    return fetch_snapshot(repo, revision, tell=tell)
