"""The files of a checkpoint on disk: read within bounds, and which of them the loaders take.

Follows what transformers and vLLM resolve in a directory. Knows no card and no engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TypeGuard

from verifier.errors import ReferenceMismatch

CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
WHOLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

#: Mistral's own format, which its repositories hold beside the one that transformers loads.
NATIVE: Final = "consolidated*.safetensors"
NATIVE_INDEX: Final = "consolidated.safetensors.index.json"

#: Bytes of a file that is read whole. The longest published index is some 30 MB, the longest
#: vocabulary 40 MB.
MAX_BYTES: Final = 16 * 2**20
MAX_LARGE_BYTES: Final = 256 * 2**20

#: Of a safetensors header; 200,000 tensors take some 25 MB.
MAX_HEADER_BYTES: Final = 64 * 2**20

#: As many dimensions as torch's tensors may have.
MAX_DIMENSIONS: Final = 64

#: Bits of one number, by the names that safetensors has for its kinds.
BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip

_ANEW = "remove the directory to fetch it anew"


class Stored(NamedTuple):
    """Where one tensor lies."""

    shard: Path
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    begin: int  # of its bytes in the file
    end: int


# -- reading -----------------------------------------------------------------------------------


def read_raw(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a plain file. Raises ReferenceMismatch when it is none, or larger than limit."""
    if not path.is_file():
        raise ReferenceMismatch(f"{path}: no such file; {_ANEW}")
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise ReferenceMismatch(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > limit:
        raise ReferenceMismatch(f"{path}: larger than {limit} bytes; refused")
    return raw


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """The text of a file in UTF-8. Raises ReferenceMismatch."""
    try:
        return read_raw(path, limit=limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReferenceMismatch(f"{path}: not UTF-8 ({error.reason}); {_ANEW}") from error


def read_object(path: Path, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """A JSON object. Raises ReferenceMismatch when the file is missing, large or no object."""
    return _object(read_text(path, limit=limit), where=str(path))


def _object(text: str, *, where: str, **hooks: Any) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_constant, **hooks)
    except RecursionError as error:
        raise ReferenceMismatch(f"{where}: nested too deep; {_ANEW}") from error
    except ValueError as error:
        raise ReferenceMismatch(f"{where}: not JSON ({error}); {_ANEW}") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ReferenceMismatch(f"{where}: expected an object, got {kind}; {_ANEW}")
    return value


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no setting")
    return float(name)  # infinite limits stand in published configurations


# -- which files hold the tensors --------------------------------------------------------------


def find_shards(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint, as transformers and vLLM take them.

    `model.safetensors`, else what its index names, else Mistral's own format alone. Raises
    ReferenceMismatch where loaders would differ, or would take more than these: files beside them,
    an adapter. Other formats beside (GGUF, pickles, Mistral's) are left alone: none is loaded.
    """
    _refuse_detours(directory)
    found: tuple[Path, ...] = ()
    if (directory / WHOLE).is_file():
        found = (directory / WHOLE,)
        if (directory / INDEX).is_file() and _named(directory / INDEX) != found:
            raise ReferenceMismatch(
                f"{directory / INDEX}: names other files than {WHOLE}, which lies beside it, and "
                "loaders differ in which they take; keep the published one of the two"
            )
    elif (directory / INDEX).is_file():
        found = _named(directory / INDEX)
    beside = sorted({*directory.glob("*.safetensors")} - {*found, *directory.glob(NATIVE)})
    if beside:
        raise ReferenceMismatch(
            f"{beside[0]}: is no part of the checkpoint ("
            + (f"{WHOLE} or its index names none such" if found else f"no {WHOLE}, no {INDEX}")
            + "); move it away, or fetch the directory anew"
        )
    found = found or _native(directory)
    if not found:
        raise ReferenceMismatch(f"{directory}: no safetensors files: no {WHOLE}, no {INDEX}")
    return found


def is_native(directory: Path) -> bool:
    """Whether a checkpoint is published in Mistral's own format alone."""
    return not any((directory / name).is_file() for name in (WHOLE, INDEX))


def _native(directory: Path) -> tuple[Path, ...]:
    found = tuple(sorted(directory.glob(NATIVE)))
    index = directory / NATIVE_INDEX
    if found and index.is_file() and _named(index) != found:
        raise ReferenceMismatch(
            f"{index}: does not name the {NATIVE} beside it; fetch the directory anew"
        )
    return found


def _named(index: Path) -> tuple[Path, ...]:
    """The files that an index names, each once; all are there, beside it."""
    entries = read_object(index, limit=MAX_LARGE_BYTES).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise ReferenceMismatch(f"{index}: has no weight_map; {_ANEW}")
    paths = []
    for name in sorted({str(value) for value in entries.values()}):
        plain = Path(name).name == name and name.endswith(".safetensors") and "\\" not in name
        if not plain or not all(isinstance(value, str) for value in entries.values()):
            raise ReferenceMismatch(
                f"{index}: names {name!r}, which is no safetensors file beside it; {_ANEW}"
            )
        if not (index.parent / name).is_file():
            raise ReferenceMismatch(f"{index}: names {name!r}, which is not there; {_ANEW}")
        paths.append(index.parent / name)
    return tuple(paths)


def _refuse_detours(directory: Path) -> None:
    """Refuse what would have a loader take other weights than those that lie under their names."""
    for pattern in ("adapter_config.json", "adapter_model*"):
        for path in directory.glob(pattern):
            raise ReferenceMismatch(
                f"{path}: an adapter would be loaded over the weights; move it away"
            )
    config = directory / CONFIG
    if config.is_file() and read_object(config).get("transformers_weights") is not None:
        raise ReferenceMismatch(
            f"{config}: transformers_weights names other weights than {WHOLE}; take it out"
        )


# -- what a shard holds ------------------------------------------------------------------------


def read_tensors(directory: Path) -> dict[str, Stored]:
    """Where every tensor of a checkpoint lies. Raises ReferenceMismatch for malformed files, and
    for a tensor that stands in two."""
    found: dict[str, Stored] = {}
    for shard in find_shards(directory):
        for name, stored in _read_header(shard):
            if name in found:
                raise ReferenceMismatch(
                    f"{shard}: tensor {name!r} stands in {found[name].shard.name} too; {_ANEW}"
                )
            found[name] = stored
    return found


def _read_header(shard: Path) -> Iterator[tuple[str, Stored]]:
    """The tensors of a safetensors file; their bytes fill it without gaps, as its format asks."""
    try:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
                _broken(shard, f"its header is said to have {length} bytes")
            raw = file.read(length)
    except OSError as error:
        raise ReferenceMismatch(f"{shard}: cannot be read ({error.strerror})") from error
    try:
        text = raw.decode("utf-8")
        header = _object(text, where=shard.name, object_pairs_hook=_once)
    except (UnicodeDecodeError, ReferenceMismatch) as error:
        _broken(shard, "its header is no JSON object of tensors", error)
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _stored(shard, name, entry, start) for name, entry in header.items()}
    reached = start
    for name, stored in sorted(tensors.items(), key=lambda item: item[1][-2:]):
        if stored.begin != reached:
            _broken(shard, f"the bytes of tensor {name!r} do not follow on those before")
        reached = stored.end
    if reached != size:
        _broken(shard, f"its tensors end at byte {reached} of {size}")
    yield from tensors.items()


def _stored(shard: Path, name: str, entry: object, start: int) -> Stored:
    if not isinstance(entry, dict) or any("\ud800" <= sign <= "\udfff" for sign in name):
        _broken(shard, f"the entry of tensor {name!r} is no object of a plain name")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        _broken(shard, f"tensor {name!r} is of no known dtype")
    if not _counts(shape):
        _broken(shard, f"the shape of tensor {name!r} is no list of sizes")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _broken(shard, f"the data_offsets of tensor {name!r} are no beginning and end")
    begin, end = offsets
    if BITS[dtype] * prod(shape) != 8 * (end - begin):
        _broken(shard, f"the bytes of tensor {name!r} are not those of its shape")
    return Stored(shard, dtype, tuple(shape), start + begin, start + end)


def _counts(value: object) -> TypeGuard[list[int]]:
    """Whether a value is a short list of sizes that a file can have."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return False
    return all(type(n) is int and 0 <= n < 2**63 for n in value)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _broken(shard: Path, why: str, error: Exception | None = None) -> NoReturn:
    raise ReferenceMismatch(f"{shard}: not a whole safetensors file ({why}); {_ANEW}") from error
