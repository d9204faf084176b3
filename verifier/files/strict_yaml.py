"""YAML, read strictly: bounded files of plain values, and below a run folder no links.

The home of PyYAML. Knows nothing of what the values mean.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from verifier.errors import ConfigError

#: Larger files are refused before they are read whole; the largest that ships has 25 kB.
MAX_BYTES: Final = 2**20

#: Sections in sections; more than a JSON schema in a request needs.
MAX_DEPTH: Final = 64

#: Longer numbers are none, and turning them into one takes time.
_LONGEST_NUMBER: Final = 100

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is rarely missing


def read_yaml(path: Path, *, below: Path | None = None) -> Any:
    """The plain values of a YAML file. With `below`, no link is followed under that folder.

    Raises ConfigError, in one line that shows nothing of the file but a line number, for a file
    that is missing, no plain file, too large, or no YAML of plain values.
    """
    return parse_yaml(read_bounded(path, below=below, limit=MAX_BYTES), where=str(path))


def dump_yaml(value: object) -> str:
    """A value of plain values as YAML in the order of its keys; reading it gives it back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(raw: bytes, *, where: str, aliases: bool = False) -> Any:
    """The plain values that a YAML text in UTF-8 stands for. Raises ConfigError in one line.

    `aliases` are for what ships, never for what anybody else wrote.
    """
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
        _refuse_more_than_values(text, aliases=aliases)
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        # without the text around it, where a key may stand
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigError(f"{where}: not YAML ({error.problem}{line})") from error
    except (ValueError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"{where}: not YAML in UTF-8 ({said})") from error


def _refuse_more_than_values(text: str, *, aliases: bool) -> None:
    """Aliases make a small file endless, tags make objects, and deep nesting exhausts the stack."""
    depth = 0
    for event in yaml.parse(text, _Base):
        named = isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None
        if named and not aliases:
            _refuse("anchors and aliases (& and *) are not taken; write the value out", event)
        if getattr(event, "tag", None) is not None:
            _refuse("tags (!) are not taken; write the plain value", event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(f"nested deeper than {MAX_DEPTH}", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _refuse(problem: str, at: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


class _Loader(_Base):  # type: ignore[misc]  # chosen above
    """Refuses what YAML would take without a word: a key that is there twice, merges, dates."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                _refuse("merging (<<) is not taken; write the keys out", key)
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    _refuse(f"the key {key.value[:40]!r} is there twice", key)
                seen.add(key.value)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            _refuse("a key is there twice", node)
        return found

    def number(self, node: yaml.ScalarNode) -> Any:
        """A number of a length that a number may have."""
        if len(node.value) > _LONGEST_NUMBER:
            _refuse("a number too long to be one", node)
        if node.tag.endswith(":int"):
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)

    def date(self, node: yaml.ScalarNode) -> NoReturn:
        """Nothing here is a date, and JSON has none."""
        _refuse("a date; put it in quotes", node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.date)


class _Dumper(yaml.SafeDumper):
    """Writes a value that stands in two places out twice: reading takes no aliases."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's
        return True


# -- files -------------------------------------------------------------------------------------


def read_bounded(path: Path, *, limit: int, below: Path | None = None) -> bytes:
    """The bytes of a plain file of at most `limit` bytes.

    With `below`, a folder that `path` lies in, no part of the path under it may be a link. Raises
    ConfigError for anything else, and for a file that cannot be read.
    """
    try:
        handle = _open(path, below)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ConfigError(f"{path}: is no plain file")
            with open(handle, "rb", closefd=False) as file:
                raw = file.read(limit + 1)
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:  # a path may hold what no path can
        said = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({said})") from error
    if len(raw) > limit:
        raise ConfigError(f"{path}: larger than {limit} bytes; refused")
    return raw


#: Without waiting for somebody to write into a pipe.
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def _open(path: Path, below: Path | None) -> int:
    if below is None:
        return os.open(path, _READ)
    *folders, name = path.relative_to(below).parts
    here = os.open(below, _READ | os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = _open_plain(folder, path, within=here, flags=_READ | os.O_DIRECTORY)
            os.close(here)
            here = inner
        return _open_plain(name, path, within=here, flags=_READ)
    finally:
        os.close(here)


def _open_plain(name: str, path: Path, *, within: int, flags: int) -> int:
    if name == "..":
        raise ConfigError(f"{path}: leads out of its folder")
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=within)
    except OSError as error:
        if stat.S_ISLNK(os.stat(name, dir_fd=within, follow_symlinks=False).st_mode):
            raise ConfigError(
                f"{path}: is a link, or behind one; a run folder holds plain files only"
            ) from error
        raise
