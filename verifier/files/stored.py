"""Records of a run folder, read back and checked whole: types, numbers, lengths, and no key more.

A folder may come from a stranger. Knows the records by their annotations alone.
"""

from __future__ import annotations

import json
import re
import reprlib
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, SchemaValidator

from verifier.errors import ConfigError
from verifier.files.run_folder import parse_json, read_bytes, read_raw_lines

T = TypeVar("T")

#: What to do about a file that is not as it was written, where its reader knows no better.
RESTORE: Final = "restore it from a copy, or run the step that writes it again"

#: A lone surrogate: what a host sent that was no UTF-8 is kept as one, and only Python reads it.
_SURROGATE: Final = re.compile(rb"\xed[\xa0-\xbf]|\\u[dD][89a-fA-F]")

_RULES: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def read_record(path: Path, kind: type[T], *, advice: str = RESTORE) -> T:
    """The record that a JSON file holds.

    Raises ConfigError that names the file, the key and what is wrong, and says what to do:
    `advice`.
    """
    return check(read_bytes(path), kind, where=str(path), advice=advice)


def read_rows(path: Path, kind: type[T], *, advice: str = RESTORE) -> Iterator[T]:
    """The records of the whole lines of a JSON Lines file, in their order; none of a missing file.

    Raises ConfigError as `read_record` does, with the number of the line.
    """
    for number, raw in enumerate(read_raw_lines(path), 1):
        yield check(raw, kind, where=f"{path}:{number}", advice=advice)


class Appended(Generic[T]):
    """The records of a file that only grows: each line is read once."""

    def __init__(self, path: Path, kind: type[T], *, advice: str = RESTORE) -> None:
        self._path, self._kind, self._advice = path, kind, advice
        self._start, self._lines = 0, 0

    def new(self) -> Iterator[tuple[str, T]]:
        """What has been appended since, with the place of each. Raises as `read_rows` does."""
        for raw in read_raw_lines(self._path, start=self._start):
            where = f"{self._path}:{self._lines + 1}"
            found = check(raw, self._kind, where=where, advice=self._advice)
            self._start, self._lines = self._start + len(raw), self._lines + 1
            yield where, found


def check(raw: bytes, kind: type[T], *, where: str, advice: str) -> T:
    """The record that a JSON text holds; `where` and `advice` are for the message."""
    try:
        # within a list, because a bare dataclass takes no rules from outside
        (record,) = _validator(cast(Any, kind)).validate_json(b"[%b]" % raw)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False)
        if wrong[0]["type"] != "json_invalid" and len(wrong[0]["loc"]) > 1:
            raise _refused(wrong, where, advice) from error
        value = parse_json(raw, where=where, advice=advice)  # which says best why it is no object
        if wrong[0]["type"] != "json_invalid":
            raise _refused(wrong, where, advice) from error
        if _SURROGATE.search(raw) is None:
            said = re.sub(r" at line \d+ column \d+", "", wrong[0]["msg"])
            raise ConfigError(f"{where}: {said}; {advice}") from error
        try:
            # in Python's terms records are no objects and tuples no lists, unless it is lenient
            (record,) = _validator(cast(Any, kind)).validate_python((value,), strict=False)
        except ValidationError as problem:
            wrong = problem.errors(include_url=False, include_context=False)
            raise _refused(wrong, where, advice) from problem
    found: T = record
    return found


def check_value(value: object, kind: type[T], *, where: str, advice: str = RESTORE) -> T:
    """The record that a value of JSON holds. Raises ConfigError as `read_record` does."""
    try:
        raw = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: holds what JSON cannot ({error})") from error
    return check(raw, kind, where=where, advice=advice)


@cache
def _validator(kind: Any) -> SchemaValidator:
    schema: Any = TypeAdapter(_only(kind), config=_RULES).core_schema
    _stop_at_the_first(schema)
    return SchemaValidator(schema)


def _only(kind: Any) -> Any:
    return types.GenericAlias(tuple, (kind,))


def _stop_at_the_first(schema: Any) -> None:
    """Have every list end at its first wrong item: a stranger's may hold millions."""
    if isinstance(schema, dict):
        if schema.get("type") in ("tuple", "list", "set", "frozenset"):
            schema["fail_fast"] = True
        for part in schema.values():
            _stop_at_the_first(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _stop_at_the_first(part)


def _refused(wrong: list[ErrorDetails], where: str, advice: str) -> ConfigError:
    """The first complaint; another version of the whole file explains all others."""
    first = next((w for w in wrong if w["loc"][1:] == ("schema_version",)), wrong[0])
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"][1:])
    key = _printable("".join(steps)).removeprefix(".") or "the whole file"
    got = _got(first["input"])
    match first["type"]:
        case "missing":
            said = "missing; every key is needed"
        case "unexpected_keyword_argument" | "extra_forbidden":
            said = "unknown key; remove it, or read the file with the version that wrote it"
        case "greater_than_equal" | "less_than_equal" if key == "schema_version":
            said = f"this version reads {first['msg'].split()[-1]}, got {got}"
        case "value_error":
            said = first["msg"].removeprefix("Value error, ")
        case _:
            said = f"{first['msg'][:1].lower()}{first['msg'][1:]}, got {got}"
            said = said.replace("a valid array", "a list")
    return ConfigError(f"{where}: {key}: {said}; {advice}")


def _got(value: object) -> str:
    try:
        return reprlib.repr(value)[:80]
    except ValueError:  # an integer of too many digits
        return "a number too long to show"


def _printable(key: str) -> str:
    return key[:200] if key.isprintable() else repr(key[:200])[1:-1]
