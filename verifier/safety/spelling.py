"""The ways to spell a secret: escapes, signs that nobody sees, base64, pieces put together.

Pure, and linear in the text whatever it is. Knows nothing of which secrets there are.
"""

from __future__ import annotations

import json
import re
import unicodedata
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from html.entities import html5
from typing import Any, Final

#: How often escapes are undone: text may have been escaped more than once.
_LAYERS: Final = 6
#: Signs whose folded form is kept: a text with more different ones is folded more slowly.
_MOST_KEPT: Final = 70_000
#: Pairs of neighbours in a key that are looked for; the rarest are enough.
_MOST_PAIRS: Final = 48
#: Longer keys are not struck out in place: what spells one goes as a whole.
_LONGEST_IN_PLACE: Final = 512
#: Kinds of text whose ends may be put together with the beginnings of others.
_MOST_COLUMNS: Final = 1_000

#: Categories of signs that cleaning removes, or that only change the look of their neighbours.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Mn", "Me"})
#: Others that show as nothing, and what stands for a sign that could not be read.
_BLANK: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffd")

#: Signs that are equal to one or more of ASCII but look different, as a part of a class.
_COMPATIBLE: Final = (
    "\xaa\xb2\xb3\xb9\xba\u0132\u0133\u017f\u01c7-\u01cc\u01f1-\u01f3\u02b0-\u02b8\u02e1-\u02e3"
    "\u1d2c-\u1dbf\u2024\u2070-\u209f\u2100-\u218b\u2460-\u24ff\u2c7c\u2c7d\u3200-\u33ff\ua7f2-\ua7f4"
    "\ufb00-\ufb06\ufe4d-\ufe4f\ufe52\ufe58\ufe62\ufe63\ufe66\uff0b\uff0d-\uff0f\uff10-\uff19\uff1d\uff21-\uff3a\uff3f"
    "\uff41-\uff5a\U0001d400-\U0001d7ff\U0001f100-\U0001f190"
    "\U0001fbf0-\U0001fbf9"
)
_LOOKALIKE: Final = re.compile(f"[{_COMPATIBLE}]")
#: The same as the first digits of a \u escape; and ASCII itself.
_NEAR: Final = (
    "00[0-7]|00[aA][aA]|00[bB][239aA]|013[23]|017[fF]|01[cCfF]|02[bBeE]|1[dD]|2024|20[7-9]|21"
    "|24|2[cC]7|3[23]|[aA]7[fF]|[fF][bBeE]|[dD]8[3-7]"
    "|[fF][fF](?:0[bBdDeEfF]|1[0-9dD]|2[1-9a-fA-F]|3[0-9aAfF]|4[1-9a-fA-F]|5[0-9aA])"
)
_FAR_ESCAPE: Final = re.compile(rb"\\u(?!%b)[0-9a-fA-F]{4}" % _NEAR.encode())
_OTHER_ESCAPE: Final = re.compile(rb"\\[uUxb0-7]")
_PERCENT_HINT: Final = re.compile(rb"%[0-9a-fA-F]{2}")
_ENTITY_HINT: Final = re.compile(rb"&(?:#|[a-zA-Z]{2,31};)")

_BACKSLASHES: Final = re.compile(
    r"(?<!\\)\\++(?:u([dD][89abAB][0-9a-fA-F]{2})\\++u([dD][c-fC-F][0-9a-fA-F]{2})"
    r"|u([0-9a-fA-F]{4})|u\{0*+([0-9a-fA-F]{1,6})\}|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})"
    r"|([0-7]{3})|(b))"
)
_PERCENTS: Final = re.compile(r"(?:%(?:25)*+[0-9a-fA-F]{2})+")
_PERCENT: Final = re.compile(r"%(?:25)*+([0-9a-fA-F]{2})")
_ENTITY: Final = re.compile(
    r"&(?:amp;)*(?:#[xX]0*+([0-9a-fA-F]{0,6});?|#0*+([0-9]{0,7});?|([A-Za-z]{2,31});)"
)

#: A text in which only what can spell is left: in lower case, with one sign for all ends of words.
_ENDS: Final = b'\n\r",:[]{}'
_LOWER: Final = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ" + _ENDS, b"abcdefghijklmnopqrstuvwxyz" + b'"' * len(_ENDS)
)
_DROPPED: Final = bytes(
    code for code in range(256) if (code <= 32 or code >= 127 or code == 92) and code not in b"\n\r"
)
#: Signs from the commonest in bodies to the rarest.
_COMMON: Final = "0123456789etaoinsrhldcumpg.fywbvk_-jx/q+=z"

_LITERAL: Final = re.compile(
    r'"([^"\\]*+(?:\\.[^"\\]*+)*+)(?:"(\s*+:)?|\Z)|(-?[0-9][0-9.eE+-]*+)', re.DOTALL
)
_FIELD: Final = re.compile(r"^(data|event|id|retry|): ?+(.*)$", re.MULTILINE)

# Between two signs of a key, as a part of a pattern: what is not seen, plain and escaped.
_GAP: Final = (
    rf"(?:[^\x20-\x7e\s{_COMPATIBLE}]|\\++u(?!{_NEAR})[0-9a-fA-F]{{4}}|\\++u00(?:[01]|7[fF])"
    r"[0-9a-fA-F]?|\\++U[0-9a-fA-F]{8}|\\++x(?:[01][0-9a-fA-F]|7[fF]|[89a-fA-F][0-9a-fA-F])"
    r"|&(?:amp;)*+(?:shy|zwj|zwnj|ZeroWidthSpace|NoBreak|#x0*+(?:200[b-f]|ad|feff|2060|0?[0-8])"
    r"|#0*+(?:173|820[3-7]|8288|65279|[0-8]))(?![0-9a-f]);?"
    r"|%(?:25)*+(?:e2%(?:25)*+80%(?:25)*+8[b-f]|c2%(?:25)*+ad|0[0-8]|ef%(?:25)*+bb%(?:25)*+bf))*+"
)


class Secret:
    """One key, and all that is looked for on its account."""

    def __init__(self, key: str) -> None:
        self._key = key
        raw = key.encode("utf-8", "surrogatepass")
        plain = _plain(key.translate(_FOLD))
        coded = {part for shift in range(3) for part in _base64_parts(raw, shift)}
        self.plain = plain
        self._forms = (plain, *sorted(coded), raw.hex())
        self.needles = tuple((form, _skeleton(form)) for form in self._forms)
        pairs = sorted(
            {plain[at : at + 2] for at in range(len(plain) - 1)}, key=_rarity, reverse=True
        )
        self._pairs = [
            (_skeleton(pair), _skeleton(pair[0] + '"'), _skeleton('"' + pair[1]))
            for pair in pairs[:_MOST_PAIRS]
            if pair.isascii()
        ]
        self._numbers = [  # of bytes, where a list spells it by those
            tuple(b'"%d"' % ord(one) for one in {sign, sign.upper()} if len(one) == 1)
            for sign in sorted(set(plain), key=_rarity, reverse=True)
        ]

    def may_join(self, skeleton: bytes) -> bool:
        """Whether pieces in a text could spell the key: every two neighbours have a place."""
        for pair, end, start in self._pairs:
            if pair not in skeleton and not (end in skeleton and start in skeleton):
                break
        else:
            return True
        return all(any(code in skeleton for code in codes) for codes in self._numbers)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the key where it can be taken out and the rest left as it is."""
        forms = [re.escape(form) for form in self._forms[1:]]
        if len(self._key) <= _LONGEST_IN_PLACE:
            forms.append(_GAP.join(_unit(sign, first=at == 0) for at, sign in enumerate(self._key)))
        else:
            forms.append(re.escape(self._key))
        return re.compile("|".join(forms), re.IGNORECASE)


def holds(text: str, secrets: Iterable[Secret]) -> bool:
    """Whether a text spells one of the secrets in one piece."""
    return _is_in(text, _hints(text), secrets)


def is_spelled(text: str, secrets: Iterable[Secret]) -> bool:
    """The same of a JSON text or an event stream, or whether its pieces do so together.

    Pieces are put together in the order in which they stand, by their field and by their path.
    """
    forms = _hints(text)
    if _is_in(text, forms, secrets):
        return True
    suspected = [one for one in secrets if any(one.may_join(form) for form in forms)]
    if not suspected:
        return False
    columns = {name: "".join(parts) for name, parts in _columns(text).items()}
    if any(holds(joined, suspected) for joined in columns.values()):
        return True
    told = [joined for (kind, *_), joined in columns.items() if kind == "at"]
    ends = [last for joined in told[:_MOST_COLUMNS] for *_, last in [tuple(_forms(joined))]]
    return any(_meet(ends, one.plain) for one in suspected)


def _is_in(text: str, forms: Sequence[bytes], secrets: Iterable[Secret]) -> bool:
    hinted = [
        needle for form in forms for one in secrets for needle, hint in one.needles if hint in form
    ]
    return bool(hinted) and any(needle in form for form in _forms(text) for needle in hinted)


def _meet(texts: list[str], plain: str) -> bool:
    """Whether one text ends with the beginning of a key, and another begins with its rest."""
    heads: dict[int, int] = {}
    for number, text in enumerate(texts):
        for size in range(1, len(plain)):
            if text.endswith(plain[:size]):
                heads[size] = -1 if size in heads else number
    return any(
        number != heads[size] and text.startswith(plain[size:])
        for number, text in enumerate(texts)
        for size in heads
    )


# -- one text ----------------------------------------------------------------------------------


class _Fold(dict[int, str | None]):
    """A table for `str.translate`: signs as they read, None for what is not seen."""

    def __missing__(self, code: int) -> str | None:
        folded = _fold_sign(chr(code))
        if len(self) < _MOST_KEPT:
            self[code] = folded
        return folded


def _fold_sign(sign: str) -> str | None:
    if sign.isspace():
        return sign
    if not _is_seen(sign):
        return None
    return "".join(filter(_is_seen, unicodedata.normalize("NFKC", sign)))


def _is_seen(sign: str) -> bool:
    return unicodedata.category(sign) not in _UNSEEN and sign not in _BLANK


_FOLD: Final = _Fold()


def _plain(folded: str) -> str:
    return folded.replace("\\", "").lower()


def _forms(text: str) -> Iterator[str]:
    """A text in lower case without what is not seen: as it is, and with escapes undone in turn."""
    for _ in range(_LAYERS):
        folded = text.translate(_FOLD)
        yield _plain(folded)
        text = _undo(folded)
        if text == folded:
            return


def _undo(text: str) -> str:
    if "\\" in text:
        text = _BACKSLASHES.sub(_unescaped, text)
    if "%" in text:
        text = _PERCENTS.sub(_unquoted, text)
    return _ENTITY.sub(_named, text) if "&" in text else text


def _unescaped(found: re.Match[str]) -> str:
    high, low, *others, octal, backspace = found.groups()
    if backspace:
        return ""
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
    return _sign(int(octal, 8) if octal else int(next(filter(None, others)), 16))


def _unquoted(found: re.Match[str]) -> str:
    return bytes.fromhex("".join(_PERCENT.findall(found[0]))).decode("utf-8", "replace")


def _named(found: re.Match[str]) -> str:
    if found[3]:
        return html5.get(f"{found[3]};", found[0])
    return _sign(int(found[1] or "0", 16) if found[2] is None else int(found[2] or "0"))


def _sign(code: int) -> str:
    return chr(code) if code <= 0x10FFFF else ""


def _hints(text: str) -> list[bytes]:
    """What is left of a text that can spell; several where escapes may hide some of it."""
    raw = text.encode("utf-8", "surrogatepass")
    if b"\\" in raw:
        raw = _FAR_ESCAPE.sub(b"", raw) if b"\\u" in raw else raw
        hidden = _OTHER_ESCAPE.search(raw) is not None
    else:
        hidden = False
    hidden = (
        hidden
        or (b"%" in raw and _PERCENT_HINT.search(raw) is not None)
        or (b"&" in raw and _ENTITY_HINT.search(raw) is not None)
        or (not text.isascii() and _LOOKALIKE.search(text) is not None)
    )
    forms = [raw.translate(_LOWER, _DROPPED)]
    return forms + [_skeleton(form) for form in _forms(text)] if hidden else forms


def _skeleton(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").translate(_LOWER, _DROPPED)


def _base64_parts(raw: bytes, shift: int) -> set[str]:
    """What base64 makes of a key after `shift` bytes of anything, in both alphabets."""
    size = (shift + len(raw)) * 8 // 6
    part = b64encode(b"\0" * shift + raw).decode()[(0, 2, 3)[shift] : size].lower()
    return {part, part.replace("+", "-").replace("/", "_")}


def _rarity(signs: str) -> int:
    ranks = [_COMMON.find(sign) % len(_COMMON) for sign in signs]
    return sum(ranks) + (10 if signs[0].isdigit() != signs[-1].isdigit() else 0)


def _unit(sign: str, *, first: bool) -> str:
    """One sign of a key as a part of a pattern, however it may be escaped."""
    codes = sorted({ord(one) for one in (sign.lower(), sign.upper()) if len(one) == 1})
    slash = r"(?<!\\)" if first else ""  # else each of many would be tried as the first
    plain = re.escape(sign) if first and sign.isalnum() else rf"{slash}\\*+{re.escape(sign)}"
    forms = [plain, *(f for code in codes for f in (
        rf"{slash}\\++(?:u00{code:02x}|u\{{0*{code:x}\}}|x{code:02x}|u{code + 0xFEE0:04x})",
        rf"%(?:25)*{code:02x}", rf"&(?:amp;)*#0*{code};?", rf"&(?:amp;)*#x0*{code:x};?",
        re.escape(chr(code + 0xFEE0)),
    ))]  # fmt: skip
    return f"(?:{'|'.join(forms)})"


# -- pieces ------------------------------------------------------------------------------------


def _columns(text: str) -> dict[tuple[object, ...], list[str]]:
    """Pieces of a text that somebody may put together, in their order, by what they are."""
    found: dict[tuple[object, ...], list[str]] = defaultdict(list)
    name = ""
    for literal in _LITERAL.finditer(text):
        word, is_name, number = literal.groups()
        found["all",].append(word or number or "")
        if word is None:
            found["with numbers",].append(number)
        elif is_name:
            name = word
            found["names",].append(word)
        else:
            found["with numbers",].append(word)
            found["values",].append(word)
            found["of", name].append(word)
    for field in _FIELD.finditer(text):
        found["field", field[1]].append(field[2])
    _walk(_documents(text), found)
    return found


def _documents(text: str) -> list[Any]:
    """The JSON values of a text: itself, or of its lines, or of the data of its events."""
    whole = _load(text)
    if whole is not None:
        return [whole]
    lines = [line.removeprefix("data:") for line in text.splitlines()]
    return [value for line in lines if (value := _load(line)) is not None]


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _walk(documents: list[Any], found: dict[tuple[object, ...], list[str]]) -> None:
    """Sort texts, names and numbers by their paths, with and without places in lists."""
    steps: dict[tuple[int, object], int] = {}
    stack: list[tuple[Any, int, int]] = [(value, 0, 0) for value in reversed(documents)]

    def step(at: int, key: object) -> int:
        return steps.setdefault((at, key), len(steps) + 1)

    while stack:
        value, path, place = stack.pop()
        if isinstance(value, dict):
            for number, name in enumerate(value):
                found["names at", path].append(name)
                found["names at", path, number].append(name)
            stack += [(v, step(path, k), step(place, k)) for k, v in reversed(value.items())]
        elif isinstance(value, list):
            below = step(path, None)
            for item in reversed(value):
                index = item.get("index") if isinstance(item, dict) else None
                label = index if type(index) is int else None
                stack.append((item, below, step(place, label)))
        elif isinstance(value, str):
            found["at", path].append(value)
            found["in place", place].append(value)
        elif type(value) is int and 0 < value < 0x110000:
            found["signs at", path].append(chr(value))
