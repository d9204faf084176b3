"""Searches what was written for a secret, in every form that a reader may turn into it.

Shares nothing with the product, so that neither can hide what the other forgets.
"""

from __future__ import annotations

import base64
import html
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

#: A run of signs as base64 has them, long enough to hold a secret.
_CODED = re.compile(r"[A-Za-z0-9+/_-]{12,}")


def find_spelled(secret: str, texts: Iterable[bytes | str]) -> list[str]:
    """The forms in which texts spell a secret; none: they do not. Each form with its surroundings.

    Plain, in any case, without invisible signs, with JSON, HTML and percent escapes undone as often
    as they were made, in base64, in pieces of a JSON text or an event stream, and as bytes.
    """
    found = []
    for text in texts:
        whole = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
        for name, form in _forms(whole):
            low = form.lower()
            if secret.lower() in low:
                at = low.index(secret.lower())
                found.append(f"{name}: {low[max(0, at - 60) : at + len(secret) + 60]!r}")
    return found


def read_all(folder: Path) -> list[bytes]:
    """Every byte of every file of a folder, and the names of all files in one."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return ["\n".join(map(str, paths)).encode(), *(path.read_bytes() for path in paths)]


def _forms(text: str) -> Iterator[tuple[str, str]]:
    yield "as it is", text
    for name, layer in _layers(text):
        yield name, layer
        yield f"{name}, base64", _decoded(layer)
    for name, pieces in _joined(text).items():
        yield f"pieces of {name}", _bare("".join(pieces))
        for kind, layer in _layers("".join(pieces)):
            yield f"pieces of {name}, {kind}", layer


def _layers(text: str) -> Iterator[tuple[str, str]]:
    """A text with its escapes undone, one layer after the other."""
    for depth in range(5):
        bare = _bare(text)
        yield f"undone {depth} times", bare
        yield f"undone {depth} times, without backslashes", bare.replace("\\", "")
        undone = _undo(bare)
        if undone == bare:
            return
        text = undone


def _bare(text: str) -> str:
    """A text as it reads: one form of each letter, nothing that is not seen."""
    if text.isascii() and text.isprintable():
        return text
    return unicodedata.normalize("NFKC", text).translate(_SEEN)


class _Seen(dict[int, int | None]):
    """What `str.translate` takes for each sign: the sign itself, or nothing."""

    def __missing__(self, number: int) -> int | None:
        unseen = unicodedata.category(chr(number)) in ("Cc", "Cf", "Cs", "Co", "Cn", "Mn")
        self[number] = None if unseen and chr(number) not in "\n\t " else number
        return self[number]


_SEEN = _Seen()


def _undo(text: str) -> str:
    text = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text)
    text = re.sub(r"\\+x([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), text)
    text = re.sub(r"\\+b", "", text)
    return html.unescape(unquote(text, errors="ignore"))


def _decoded(text: str) -> str:
    """What runs of base64 hold, from any of four beginnings."""
    found = []
    for run in _CODED.findall(text):
        plain = run.replace("-", "+").replace("_", "/")
        for start in range(4):
            part = plain[start:]
            part = part[: len(part) // 4 * 4]
            found.append(base64.b64decode(part).decode("latin-1"))
    return "\n".join(found)


def _joined(text: str, depth: int = 0) -> dict[str, list[str]]:
    """Texts of JSON, by their names and paths; and those that lie in its texts as JSON again."""
    found: dict[str, list[str]] = {}
    for line in [text, *text.splitlines()]:
        value = _load(line.removeprefix("data:"))
        if isinstance(value, dict | list):
            for path, piece in _leaves(value, ""):
                for name in (path, re.sub(r"\[\d+\]", "[]", path), path.rpartition(".")[2], "all"):
                    found.setdefault(name, []).append(piece)
                if depth < 2 and ("data:" in piece or piece[:1] in ("{", "[")):
                    for name, pieces in _joined(piece, depth + 1).items():
                        found.setdefault(f"{path} > {name}", []).extend(pieces)
            if line is text:
                break
    for kind in ("event", "id", ""):
        rows = re.findall(rf"^{kind}: ?(.*)$", text, re.MULTILINE)
        if rows:
            found[f"lines of {kind or 'comments'}"] = rows
    return found


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield f"{path}.names", name
            yield from _leaves(item, f"{path}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")
    elif isinstance(value, str):
        yield path, value
    elif type(value) is int and 0 < value < 256:
        yield f"{path}.bytes", chr(value)
