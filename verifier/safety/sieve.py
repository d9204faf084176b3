"""Strikes the API keys that this process knows out of all that it writes, shows and logs.

The last line of defence, so one set of keys holds for the whole process. Pieces that only come
together over several replies are not seen. Knows nothing of hosts or files.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar, cast

from verifier.safety import spelling

#: Stands where a text repeated an API key.
REDACTED: Final = "[redacted]"

#: Shorter keys, and those of fewer different signs, are placeholders such as EMPTY or xxxxxxxx:
#: striking those out would change replies.
_SHORTEST: Final = 8
_FEWEST_SIGNS: Final = 3

#: What logs the headers of responses, which may repeat a key.
HTTP_LOGGERS: Final = (
    "asyncio", "httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy",
)  # fmt: skip

_Value = TypeVar("_Value")

_known: dict[str, spelling.Secret] = {}


def know(key: str | None) -> None:
    """Strike this key out from now on, wherever it is spelled. None and placeholders do nothing."""
    global _known  # noqa: PLW0603 - replaced whole, so that no thread sees half of it
    key = "" if key is None else key.strip()
    if len(key) >= _SHORTEST and len(set(key)) >= _FEWEST_SIGNS and key not in _known:
        _known = {**_known, key: spelling.Secret(key)}


def forget() -> None:
    """Know no key any more; for tests."""
    global _known  # noqa: PLW0603
    _known = {}


def holds(text: str) -> bool:
    """Whether a text spells a key: plain, in any case, escaped, coded, with unseen signs in it."""
    return bool(_known) and spelling.holds(text, _known.values())


def is_spelled(text: str) -> bool:
    """The same of a JSON text or an event stream, or whether its pieces do so together."""
    return bool(_known) and spelling.is_spelled(text, _known.values())


def strike(text: str) -> str:
    """A text without keys; all of it is struck out where one cannot be taken out of it."""
    struck = strike_in_place(text)
    return REDACTED if struck is None else struck


def strike_in_place(text: str) -> str | None:
    """A text with each key replaced by REDACTED; None where that leaves one spelled."""
    if not holds(text):
        return text
    for secret in _known.values():
        text = secret.pattern.sub(REDACTED, text)
    return None if holds(text) else text


def strike_end(text: str) -> str:
    """A text that was cut off, without the larger part of a key that its end may hold."""
    low = text[-4096:].lower()
    for key in _known:
        for size in range(len(key) - 1, max(_SHORTEST, len(key) // 2) - 1, -1):
            if low.endswith(key[:size].lower()):
                return text[:-size] + REDACTED
    return text


def strike_all(value: _Value) -> _Value:
    """Records, mappings, lists and texts without keys at any depth; the same value if none had."""
    if not _known:
        return value
    return cast(_Value, _strike_all(value))


def _strike_all(value: Any) -> Any:
    if isinstance(value, str):
        return strike(value)
    if isinstance(value, Mapping):
        return {_strike_all(name): _strike_all(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_strike_all, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{f.name: _strike_all(getattr(value, f.name)) for f in dataclasses.fields(value)},
        )
    return value


def texts_in(value: object) -> list[str]:
    """Every text in a record, in order, the bytes of tokens among them."""
    found: list[str] = []
    _add_texts(value, found)
    return found


def _add_texts(value: Any, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif value is None or isinstance(value, int | float):
        return
    elif isinstance(value, bytes):
        found.append(value.decode("latin-1"))
    elif isinstance(value, Mapping):
        _add_texts([*value, *value.values()], found)
    elif isinstance(value, list | tuple):
        for item in value:
            _add_texts(item, found)
    else:
        for name in getattr(value, "__dataclass_fields__", ()):
            _add_texts(getattr(value, name), found)


class _Strike(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if holds(said):
            record.msg, record.args = strike(said), ()
        return True


_STRIKE: Final = _Strike()


def guard_logs(names: Iterable[str] = HTTP_LOGGERS) -> None:
    """Strike keys out of what these loggers say, whoever listens."""
    for name in names:
        logging.getLogger(name).addFilter(_STRIKE)
