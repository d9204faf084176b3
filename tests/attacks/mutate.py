"""Spoiling files: any one place of a JSON or YAML value, or any bytes, replaced by something odd."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import yaml

#: Stand for what JSON text may hold and no value of Python is written as.
RAW = {
    "@raw0@": "1e999", "@raw1@": "-1e999", "@raw2@": "[" * 900 + "]" * 900, "@raw3@": "NaN",
    "@raw4@": "1" + "0" * 400, "@raw5@": '{"a":' * 900 + "1" + "}" * 900, "@raw6@": "-0",
    "@raw7@": '{"a":1,"a":2}', "@raw8@": "1e308", "@raw9@": "5e-324", "@rawa@": "Infinity",
    "@rawb@": "[" * 5000 + "]" * 5000,
}  # fmt: skip

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 5.0, 0.5, -0.5, 2**31, 2**63, -(2**63), 1e308, 5e-324, 10**18,
    "", " ", "x", "a" * 3000, "\x1b]0;x\x07", "\u202e\u200b", "\ud800", "\x00", "<script>alert(1)</script>",
    "../../x", "/dev/zero", "nan", "1e999", "null", "[x](javascript:x)", "日本" * 50,
    [], {}, [[]], [{}], {"": None}, {"a": {"b": []}}, [0] * 50, ["x", 1, None], [[1, 2], [3]],
    *RAW,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a value, from its root; of a long list a few."""
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:4]):
            found += places(inner, (*path, number))
    return found


def spoil(rng: random.Random, value: Any, times: int = 1) -> Any:
    """A copy with so many places spoilt."""
    value = copy.deepcopy(value)
    for _ in range(times):
        path = rng.choice(places(value))
        if not path:
            if rng.random() < 0.1:
                return copy.deepcopy(rng.choice(ODD))
            continue
        holder = value
        for step in path[:-1]:
            holder = holder[step]
        last = path[-1]
        match rng.randrange(8):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(["x", "", "__class__", "\x1b[2J", "constructor"])] = holder[last]
            case 1:
                holder.append(copy.deepcopy(holder[last]))
            case 2:
                holder[last] = [holder[last]]
            case 3 if isinstance(holder[last], int | float) and not isinstance(holder[last], bool):
                holder[last] = rng.choice([-holder[last], holder[last] * 10**6, holder[last] + 0.5])
            case 3 if isinstance(holder[last], str):
                at = rng.randrange(len(holder[last]) + 1)
                odd = rng.choice(
                    ["\x00", "\u202e", "\ud800", "'", '"', "\n", "{{", "%", "\x1b[31m"]
                )
                holder[last] = holder[last][:at] + odd + holder[last][at:]
            case _:
                holder[last] = copy.deepcopy(rng.choice(ODD))
    return value


def to_json(value: Any) -> bytes:
    """JSON text, with what stands for raw pieces put in."""
    text = json.dumps(value, ensure_ascii=False)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode("utf-8", "surrogatepass")


def to_yaml(rng: random.Random, value: Any) -> bytes:
    """YAML of the value; JSON, which is YAML too, where the value asks for raw pieces."""
    if rng.random() < 0.3:
        return to_json(value)
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode(
        "utf-8", "surrogatepass"
    )


def spoil_bytes(rng: random.Random, raw: bytes) -> bytes:
    """Bytes cut, doubled, flipped, or with odd ones put in."""
    at = rng.randrange(len(raw) + 1)
    match rng.randrange(7):
        case 0:
            return raw[:at]
        case 1:
            return (
                raw[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + raw[at:]
            )
        case 2:
            return raw[:at] + raw[at + rng.randrange(1, 40) :]
        case 3:
            return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
        case 4:
            return raw + raw[at:]
        case 5:
            odd = [
                b"\x00" * 50,
                b"\xff\xfe",
                b"\xef\xbb\xbf",
                b"\r\n",
                b"{",
                b"]",
                b'"',
                b"\x1b[2J",
                b"\xed\xa0\x80",
            ]
            return raw[:at] + rng.choice(odd) + raw[at:]
        case _:
            return b"" if rng.random() < 0.2 else raw.replace(b"\n", b"\r\n")
