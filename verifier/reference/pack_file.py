"""A reference pack: what weights, or a host, say of some questions, recorded once in one file.

`reference/packs/README.md` has the format. A pack comes from a stranger: it is read whole, within
bounds, by one schema, and every number in it is checked before it is used. Knows no weights.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from verifier.errors import ConfigError
from verifier.evidence.calibration import Calibration
from verifier.evidence.hazards import WINDOW
from verifier.files.run_folder import parse_json
from verifier.files.stored import check
from verifier.files.strict_yaml import read_bounded
from verifier.records import REFERENCE, Count, Plain, Probe, TokenId, Version
from verifier.reference.cards import Card, read_card
from verifier.reference.renderings.catalogue import refuse_unknown
from verifier.reference.signing import is_signed, sign
from verifier.reference.trusted import Source, Trusted

#: Version of the format.
PACK_SCHEMA: Final = 1

#: Largest log-probabilities at each place.
TOP: Final = 20

#: A stored log-probability that stands for none, in a pack of a trusted host, which names fewer.
NONE: Final = 2**16 - 1

#: A stored log-probability is so many steps of 1/STEPS nats below 0: an error of 0.00024 nats.
STEPS: Final = 2048

#: Bounds of what is read: a pack of 2,000 questions has 25 MB and a manifest of 50 kB.
MAX_BYTES: Final = 256 * 2**20
MAX_HEADER: Final = 4 * 2**20
MAX_PROBES: Final = 50_000
MAX_TEXTS: Final = 128 * 2**20  # of the questions, unpacked

#: The key of the file's metadata.
_KEY: Final = "reference_pack"

_ADVICE: Final = "take the pack anew from whoever made it"

Numbers = NDArray[Any]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=256)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]

#: Each tensor with the kinds of number that it may have and its dimensions.
_TENSORS: Final[Mapping[str, tuple[tuple[str, ...], int]]] = {
    "questions": (("uint8",), 1),  # JSON Lines of probes, packed by zlib
    "token_ids": (("uint32",), 1),  # every token that is named below, once
    "token_starts": (("uint32",), 1),  # [V + 1] into token_bytes
    "token_bytes": (("uint8",), 1),
    "prompt_starts": (("uint32",), 1),  # [N + 1] into prompt_ids
    "prompt_ids": (("uint32",), 1),  # of the published rendering
    "counts": (("uint32",), 2),  # [N, R] prompt tokens under each rendering; 0: it refuses
    "path_question": (("uint32",), 1),  # [P]
    "path_rendering": (("uint16",), 1),  # [P]
    "path_parent": (("int32",), 1),  # [P] the path that a branch leaves; -1: it is no branch
    "path_at": (("uint16",), 1),  # [P] the place of the parent where it does
    "path_token": (("uint32",), 1),  # [P] with which token; 0 of what is no branch
    "path_starts": (("uint32",), 1),  # [P + 1] into the places
    "place_tokens": (("uint16", "uint32"), 2),  # [T, TOP] the likeliest first
    "place_logprobs": (("uint16",), 2),  # [T, TOP] steps below 0
    "place_rest": (("uint16",), 1),  # [T] the same of all other tokens together
    "build_places": (("uint32",), 1),  # [Q] places whose two likeliest tokens are close
    "build_logprobs": (("uint16",), 3),  # [Q, B, 2] what each build says of these two
}

#: And what a pack of texts has beside them: of each question how the trusted host asked again, and
#: a second trusted host, stand to its first reply, see `hazards.Leaving.told`.
_OF_TEXTS: Final[Mapping[str, tuple[tuple[str, ...], int]]] = {"leaving": (("int16",), 2)}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Thoughts(_Record):
    """How a model that thinks was asked, and what its paths are of."""

    mode: Literal["shown", "off"]  # they are thoughts; or answers, with thinking turned off
    begins: Literal["inside", "before", "behind"]  # of a thought, where prompts leave the reply
    close_id: TokenId | None = None  # that ends a thought; None: paths are answers


class Manifest(_Record):
    """What a pack says of itself: all that is signed."""

    schema_version: Version
    source: Source  # where its paths come from
    trusted: Trusted | None = None  # None: they come from weights
    made_on: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    card: Annotated[dict[str, Any], Plain()]
    calibration: Calibration
    engine: dict[str, str]  # what computed it, by its own words
    versions: dict[str, str]
    pool_sha256: Digest
    seed: Count  # that the questions were drawn by
    questions: Annotated[int, Field(ge=1, le=MAX_PROBES)]
    panel: Count  # the last so many of them tell renderings apart, and are read for nothing else
    max_tokens: Annotated[int, Field(ge=1, le=4096)]  # of a path
    branch_margin: Annotated[float, Field(ge=0, le=10)]  # nats; a second token this near branches
    branch_tokens: Count  # of a branch, the one that leaves included
    eos_id: TokenId
    renderings: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000)]
    builds: Annotated[tuple[Name, ...], Field(max_length=1000)]
    thinking: Thoughts | None = None  # None: the model does not think
    tensors: dict[str, Digest]  # of each: its kind, its shape and its bytes


class _Envelope(_Record):
    """What the file's metadata hold: the manifest as it was signed, and by whom."""

    manifest: str
    signature: Hex = ""
    public_key: Hex = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What is said of one place: tokens of the pack's table, that of the path first."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    rest: float  # log of the mass of all other tokens
    number: int  # of all places
    few: bool = False  # whether these need not be the likeliest, and speak only among themselves


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A pack that was read and checked."""

    manifest: Manifest
    card: Card
    digest: str  # sha256 of the manifest, which has those of all tensors
    signed_by: str | None  # the public key; None: nobody signed it
    probes: tuple[Probe, ...]
    tensors: Mapping[str, Numbers]

    @property
    def ordinary(self) -> tuple[Probe, ...]:
        """The questions that an audit draws from."""
        return self.probes[: len(self.probes) - self.manifest.panel]

    @property
    def panel(self) -> tuple[Probe, ...]:
        """The questions that tell renderings apart, those that tell most first."""
        return self.probes[len(self.probes) - self.manifest.panel :]

    @cached_property
    def ends(self) -> frozenset[int]:
        """The model's own numbers of the tokens that end what a path is of."""
        thinking, eos_id = self.manifest.thinking, self.manifest.eos_id
        close_id = None if thinking is None else thinking.close_id
        return frozenset({eos_id} if close_id is None else {eos_id, close_id})

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each question by its id."""
        return {probe.id: number for number, probe in enumerate(self.probes)}

    @cached_property
    def paths(self) -> dict[tuple[int, int], int]:
        """The path of each question under each rendering that it has one for."""
        return {key: some[0] for key, some in self._roots.items()}

    @cached_property
    def _roots(self) -> dict[tuple[int, int], list[int]]:
        questions, renderings = (self.tensors[f"path_{n}"] for n in ("question", "rendering"))
        found: dict[tuple[int, int], list[int]] = {}
        for at in np.flatnonzero(self.tensors["path_parent"] < 0):
            found.setdefault((int(questions[at]), int(renderings[at])), []).append(int(at))
        return found

    def replies(self, question: int) -> list[list[int]]:
        """What trusted hosts replied to a question, as tokens of the table, the first reply first:
        as many of each as are known, where two are alike once."""
        starts, tokens = self.tensors["path_starts"], self.tensors["place_tokens"]
        return [
            tokens[int(starts[path]) : int(starts[path + 1]), 0].tolist()
            for path in self._roots[question, 0]
        ]

    @cached_property
    def branches(self) -> dict[tuple[int, int, int], int]:
        """The branch that leaves a path at a place with a token."""
        parent, at, token = (self.tensors[f"path_{n}"] for n in ("parent", "at", "token"))
        return {
            (int(parent[one]), int(at[one]), int(token[one])): int(one)
            for one in np.flatnonzero(parent >= 0)
        }

    def length(self, path: int) -> int:
        """Places of a path."""
        starts = self.tensors["path_starts"]
        return int(starts[path + 1]) - int(starts[path])

    def place(self, path: int, at: int) -> Place:
        """What the weights say at one place of a path."""
        number = int(self.tensors["path_starts"][path]) + at
        values, few = self.tensors["place_logprobs"][number], self.manifest.source != "weights"
        known = max(1, int((values < NONE).sum())) if few else TOP
        return Place(
            tokens=tuple(self.tensors["place_tokens"][number, :known].tolist()),
            logprobs=tuple((values[:known] / -STEPS).tolist()),
            rest=float(self.tensors["place_rest"][number] / -STEPS),
            number=number,
            few=few,
        )

    def spell(self, token: int) -> bytes:
        """The bytes of a token; none of one that no text shows."""
        starts = self.tensors["token_starts"]
        return self._spelled[int(starts[token]) : int(starts[token + 1])]

    @cached_property
    def _spelled(self) -> bytes:
        return bytes(self.tensors["token_bytes"])

    def count_tokens(self, text: str) -> int:
        """About how many tokens a text has: those that the pack names, the longest first."""
        raw, at, count = text.encode("utf-8", "replace"), 0, 0
        known, longest = self._spellings
        while at < len(raw):
            sizes = range(min(longest, len(raw) - at), 1, -1)
            at += next((size for size in sizes if raw[at : at + size] in known), 1)
            count += 1
        return count

    @cached_property
    def _spellings(self) -> tuple[frozenset[bytes], int]:
        known = frozenset(map(self.spell, range(len(self.tensors["token_ids"]))))
        return known, max(map(len, known), default=1)

    def token_id(self, token: int) -> int:
        """The model's own number of a token."""
        return int(self.tensors["token_ids"][token])

    def prompt(self, question: int) -> tuple[int, ...]:
        """The published prompt of a question."""
        begin, end = self.tensors["prompt_starts"][question : question + 2]
        return tuple(self.tensors["prompt_ids"][int(begin) : int(end)].tolist())

    def lengths(self, question: int) -> dict[str, int]:
        """Prompt tokens of a question under every rendering that does not refuse it."""
        row = self.tensors["counts"][question].tolist()
        named = zip(self.manifest.renderings, row, strict=True)
        return {name: count for name, count in named if count}

    @cached_property
    def build_rows(self) -> dict[int, int]:
        """Where the builds' words on a place stand."""
        return {int(one): n for n, one in enumerate(self.tensors["build_places"])}


# -- writing -----------------------------------------------------------------------------------


def pack_bytes(
    manifest: Mapping[str, Any],
    probes: Sequence[Probe],
    tensors: Mapping[str, Numbers],
    *,
    key: Ed25519PrivateKey | None,
) -> bytes:
    """The file of a pack: the same bytes each time. `manifest` lacks the digests of the tensors."""
    lines = "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in probes)
    packed = zlib.compress(lines.encode("utf-8", "surrogatepass"), 9)
    every = {"questions": np.frombuffer(packed, dtype=np.uint8), **tensors}
    whole = {**manifest, "tensors": {name: _digest(every[name]) for name in sorted(every)}}
    text = json.dumps(whole, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    signature, public_key = ("", "") if key is None else sign(text.encode(), key)
    envelope = {"manifest": text, "signature": signature, "public_key": public_key}
    contiguous = {name: np.ascontiguousarray(one) for name, one in every.items()}
    return save(contiguous, metadata={_KEY: json.dumps(envelope, ensure_ascii=False)})


def _digest(tensor: Numbers) -> str:
    head = f"{tensor.dtype.name} {list(tensor.shape)} ".encode()
    return sha256(head + np.ascontiguousarray(tensor).tobytes()).hexdigest()


def write_pack(path: Path, raw: bytes) -> None:
    """Write a pack in one step: a kill leaves nothing half written."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


# -- reading -----------------------------------------------------------------------------------


def read_pack(path: Path, *, key: str | None = None) -> Pack:
    """A pack, checked; with `key`, the public key in hexadecimal, signed by its holder.

    Raises ConfigError for a pack that is cut, edited, too large, of another version, or not signed
    as it must be.
    """
    raw = read_bounded(path, limit=MAX_BYTES)
    where = str(path)
    envelope, tensors = _open(raw, where)
    text = envelope.manifest.encode("utf-8", "surrogatepass")
    manifest = check(text, Manifest, where=f"{where}: manifest", advice=_ADVICE)
    signed_by = _signer(envelope, text, key=key, where=where)
    refuse_unknown(manifest.renderings, where=f"{where}: renderings")
    _refuse_edited(manifest, tensors, where)
    probes = _unpack(tensors["questions"], manifest, where)
    _refuse_uneven(manifest, tensors, where)
    card = read_card(manifest.card, where=f"{where}: card")
    if (card.thinking is None) != (manifest.thinking is None):
        raise ConfigError(
            f"{where}: thinking: its card and its manifest do not agree on whether the model "
            f"thinks; {_ADVICE}"
        )
    return Pack(
        manifest=manifest,
        card=card,
        digest=sha256(text).hexdigest(),
        signed_by=signed_by,
        probes=probes,
        tensors=tensors,
    )


def _open(raw: bytes, where: str) -> tuple[_Envelope, dict[str, Numbers]]:
    """Metadata and tensors of the file."""
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > MAX_HEADER:
        told = f"a header of {length:,} bytes" if len(raw) >= 8 else f"{len(raw)} bytes"
        raise ConfigError(f"{where}: is no reference pack ({told}); {_ADVICE}")
    if len(raw) < 8 + length:
        raise ConfigError(f"{where}: is cut within its header; {_ADVICE}")
    header = parse_json(raw[8 : 8 + length], where=where, advice=_ADVICE)
    metadata = header.get("__metadata__")
    said = metadata.get(_KEY) if isinstance(metadata, dict) else None
    if not isinstance(said, str):
        raise ConfigError(f"{where}: is no reference pack: its metadata have no {_KEY}; {_ADVICE}")
    envelope = check(said.encode("utf-8", "surrogatepass"), _Envelope, where=where, advice=_ADVICE)
    try:
        tensors = load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:100]
        raise ConfigError(f"{where}: is cut, or no safetensors file ({why}); {_ADVICE}") from error
    return envelope, tensors


def _signer(envelope: _Envelope, text: bytes, *, key: str | None, where: str) -> str | None:
    """Who signed; None: nobody did, and nobody had to."""
    if not envelope.signature:
        if key is not None:
            raise ConfigError(
                f"{where}: is not signed, and a key was given that must have; {_ADVICE}"
            )
        return None
    if not is_signed(text, signature=envelope.signature, public_key=envelope.public_key):
        raise ConfigError(f"{where}: its signature is not that of its manifest; {_ADVICE}")
    if key is not None and envelope.public_key != key:
        raise ConfigError(
            f"{where}: signed by the key {envelope.public_key[:16]}, not by {key[:16]}, which must "
            f"have; {_ADVICE}"
        )
    return envelope.public_key


def _refuse_edited(manifest: Manifest, tensors: Mapping[str, Numbers], where: str) -> None:
    """Raise ConfigError for tensors that are not those of the manifest, or of no known form."""
    wanted = {**_TENSORS, **(_OF_TEXTS if manifest.source == "texts" else {})}
    for name, (kinds, dimensions) in wanted.items():
        found = tensors.get(name)
        if found is None:
            raise ConfigError(f"{where}: lacks the tensor {name}; {_ADVICE}")
        if found.dtype.name not in kinds or found.ndim != dimensions:
            raise ConfigError(
                f"{where}: {name}: expected {' or '.join(kinds)} of {dimensions} dimensions, got "
                f"{found.dtype.name} of {found.ndim}; {_ADVICE}"
            )
        if _digest(found) != manifest.tensors.get(name):
            raise ConfigError(f"{where}: {name}: is not what the manifest says; {_ADVICE}")
    strange = sorted({*tensors, *manifest.tensors} - wanted.keys())
    if strange:
        raise ConfigError(f"{where}: has an unknown tensor {strange[0][:80]!r}; {_ADVICE}")


def _unpack(packed: Numbers, manifest: Manifest, where: str) -> tuple[Probe, ...]:
    """The questions. Raises ConfigError for others than the manifest says."""
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(bytes(packed), MAX_TEXTS)
    except zlib.error as error:
        raise ConfigError(f"{where}: questions: cannot be unpacked; {_ADVICE}") from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ConfigError(f"{where}: questions: more than {MAX_TEXTS} bytes, or cut; {_ADVICE}")
    lines = raw.splitlines() if len(raw) else []
    if len(lines) != manifest.questions or manifest.panel >= len(lines):
        raise ConfigError(
            f"{where}: questions: {len(lines)}, and the manifest says {manifest.questions} with a "
            f"panel of {manifest.panel}; {_ADVICE}"
        )
    probes = tuple(
        check(line, Probe, where=f"{where}: question {number}", advice=_ADVICE)
        for number, line in enumerate(lines, 1)
    )
    if len({probe.id for probe in probes}) < len(probes):
        raise ConfigError(f"{where}: questions: two have one id; {_ADVICE}")
    return probes


def _is_leaving(found: Numbers, manifest: Manifest) -> bool:
    """Whether a row is there for each question, of as many hosts as there are."""
    second = manifest.trusted is not None and manifest.trusted.second_host is not None
    whole = found.shape == (manifest.questions, 2 if second else 1)
    return bool(whole and (np.abs(found.astype(np.int64)) <= WINDOW).all())


def _refuse_uneven(manifest: Manifest, tensors: Mapping[str, Numbers], where: str) -> None:
    """Raise ConfigError where one tensor does not fit another, or a number leads nowhere."""
    sizes = {name: len(tensor) for name, tensor in tensors.items()}
    count, paths, places = manifest.questions, sizes["path_question"], sizes["place_tokens"]
    tokens, renderings = sizes["token_ids"], len(manifest.renderings)
    starts = tensors["path_starts"].astype(np.int64)

    def fit(name: str, *shape: int) -> bool:
        return tensors[name].shape == shape

    def ascends(name: str, of: int, to: int) -> bool:
        found = tensors[name].astype(np.int64)
        whole = fit(name, of + 1) and found[0] == 0 and found[-1] == to
        return bool(whole and (np.diff(found) >= 0).all())

    def below(name: str, most: int) -> bool:
        found = tensors[name]
        return not found.size or int(found.max()) < most

    fits = [
        ("token_starts", ascends("token_starts", tokens, sizes["token_bytes"])),
        ("prompt_starts", ascends("prompt_starts", count, sizes["prompt_ids"])),
        ("counts", fit("counts", count, renderings)),
        ("path_starts", ascends("path_starts", paths, places)),
        *((f"path_{n}", fit(f"path_{n}", paths)) for n in ("rendering", "parent", "at", "token")),
        ("path_question", below("path_question", count)),
        ("path_rendering", below("path_rendering", renderings)),
        ("path_token", below("path_token", max(tokens, 1))),
        ("place_tokens", fit("place_tokens", places, TOP) and below("place_tokens", tokens)),
        ("place_logprobs", fit("place_logprobs", places, TOP)),
        ("place_rest", fit("place_rest", places)),
        ("build_places", below("build_places", places)),
        ("build_logprobs", fit("build_logprobs", sizes["build_places"], len(manifest.builds), 2)),
        ("renderings", len(set(manifest.renderings)) == renderings),
        ("renderings", manifest.renderings[0] == REFERENCE),
        ("trusted", (manifest.trusted is None) == (manifest.source == "weights")),
        ("leaving", manifest.source != "texts" or _is_leaving(tensors["leaving"], manifest)),
    ]
    wrong = next((name for name, whole in fits if not whole), None)
    if wrong is None:
        parent, at = tensors["path_parent"].astype(np.int64), tensors["path_at"].astype(np.int64)
        own = np.flatnonzero(parent >= 0)
        lengths = np.diff(starts)
        if (parent < -1).any() or (parent[own] >= own).any():
            wrong = "path_parent"
        elif (at[own] >= lengths[parent[own]]).any():
            wrong = "path_at"
        elif (lengths < 1).any() or (lengths > manifest.max_tokens).any():
            wrong = "path_starts"
        else:
            published = (parent < 0) & (tensors["path_rendering"] == 0)
            having = np.unique(tensors["path_question"][published])
            wrong = None if len(having) == count else "path_question"
    if wrong is not None:
        raise ConfigError(f"{where}: {wrong}: does not fit the rest of the pack; {_ADVICE}")
