"""Striking keys out of text: every way to spell one, nothing else, and in linear time."""

from __future__ import annotations

import base64
import json
import logging
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spelled import find_spelled

from verifier.safety import sieve

KEY = "sk-Test-0123456789abcdef"
OTHER = "gsk_Qx7TzP2mWv9LrK4jHc8Y+/bN3d"
UNSEEN = "\u200b\x00\xad\ue000\u202e\u2066\ufeff\u0301\U000e0041\ud800\x08\ufe0f\u2028"[:12]


def between(sign: str) -> str:
    return sign.join(KEY)


SPELLINGS = {
    "plain": KEY,
    "upper case": KEY.upper(),
    "percent": "".join(f"%{ord(s):02X}" for s in KEY),
    "some percent": KEY.replace("-", "%2d"),
    "percent twice": "".join(f"%25{ord(s):02x}" for s in KEY),
    "escaped": "".join(f"\\u{ord(s):04x}" for s in KEY),
    "escaped twice": "".join(f"\\\\u{ord(s):04X}" for s in KEY),
    "escaped hyphens": KEY.replace("-", "\\u002d"),
    "hex escapes": "".join(f"\\x{ord(s):02x}" for s in KEY),
    "octal escapes": "".join(f"\\{ord(s):03o}" for s in KEY),
    "entities": "".join(f"&#{ord(s)};" for s in KEY),
    "hex entities": "".join(f"&#x{ord(s):x};" for s in KEY),
    "entities twice": "".join(f"&amp;#{ord(s)};" for s in KEY),
    "entities in escapes": "".join(f"\\u0026#{ord(s)};" for s in KEY),
    "entities of unseen signs": between("&shy;"),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of the header": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "base64 of a pair": base64.urlsafe_b64encode(f"ab:{KEY}".encode()).decode(),
    "hex": KEY.encode().hex(),
    "fullwidth": "".join(chr(ord(s) + 0xFEE0) for s in KEY),
    "mathematical": "".join(
        chr(0x1D41A + ord(s) - ord("a")) if s.islower() else s for s in KEY
    ),
    "escaped fullwidth": "".join(f"\\u{ord(s) + 0xFEE0:04x}" for s in KEY),
    "backspaces": between("\\b"),
    "backslashes": between("\\"),
    "escaped zero width": between("\\u200b"),
    "percent zero width": between("%e2%80%8b"),
    "utf-16": KEY.encode("utf-16-le").decode("latin-1"),
    **{f"between U+{ord(sign):04X}": between(sign) for sign in UNSEEN},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _known() -> None:
    sieve.know(OTHER)
    sieve.know(KEY)


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_a_key_is_struck_out_however_it_is_spelled(text: str) -> None:
    """And nothing of it is left, whatever a reader does to the text."""
    assert sieve.holds(f"bad key {text}!")

    struck = sieve.strike(f"bad key {text}!")
    assert sieve.REDACTED in struck
    assert find_spelled(KEY, [struck]) == []


@pytest.mark.parametrize("name", ["plain", "upper case", "escaped", "percent", "fullwidth",
                                  "entities", "between U+200B", "between U+0000"])  # fmt: skip
def test_what_stands_around_a_key_stays(name: str) -> None:
    """As far as the key can be taken out of its text."""
    assert sieve.strike(f"bad key {SPELLINGS[name]}!") == "bad key [redacted]!"


def test_what_cannot_be_taken_out_takes_its_text_along() -> None:
    """A half of a key is worse than no message."""
    assert sieve.strike_in_place("no " + SPELLINGS["backspaces"]) is None
    assert sieve.strike("no " + SPELLINGS["backspaces"]) == sieve.REDACTED


@given(st.text())
def test_text_without_a_key_stays_as_it_is(text: str) -> None:
    """To the byte, and as the same object."""
    sieve.know(KEY)
    assert sieve.strike(text) is text
    assert not sieve.is_spelled(json.dumps({"a": text}))


@pytest.mark.parametrize("key", ["", "EMPTY", "7 signs", "xxxxxxxxxxxx", "abababababab", None])
def test_placeholders_are_no_secrets(key: str | None) -> None:
    """Striking those out would change replies."""
    sieve.forget()
    sieve.know(key)
    text = f"aaaa {key} xxxxxxxxxxxxxxxxxxxxxxx abababababababab"
    assert sieve.strike(text) == text


def test_words_are_no_keys() -> None:
    """A key of few letters is struck out only where it stands whole."""
    sieve.know("sk-aaaaaaaa")
    for text in ("a" * 10_000, "sk-aaaaaaa", "sk aaaaaaaa", "sk-\naaaaaaaa", "ask-" + "aab" * 99):
        assert sieve.strike(text) == text
        assert not sieve.is_spelled(json.dumps({"a": text, "b": text}))


def stream(name: str, *pieces: str) -> str:
    chunks = [{"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {name: p}}]} for p in pieces]
    return "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + "data: [DONE]\n\n"


HALVES = KEY[:9], KEY[9:]
PIECES: dict[str, Any] = {
    "a stream": stream("content", *HALVES),
    "a stream of letters": stream("refusal", *KEY),
    "arguments": [{"tool_calls": [{"function": {"name": "f", "arguments": p}}]} for p in KEY],
    "parts": {"content": [{"type": "text", "text": half} for half in HALVES]},
    "text and thought": {"message": {"content": HALVES[1], "role": "x", "reasoning": HALVES[0]}},
    "thought and text": {"message": {"content": HALVES[0], "role": "x", "reasoning": HALVES[1]}},
    "two choices": {"choices": [{"i": 0, "text": HALVES[0]}, {"i": 1, "text": HALVES[1]}]},
    "choices in turn": [
        {"choices": [{"index": n % 2, "text": p}]}
        for n, p in enumerate(w for pair in zip(KEY, "xyz" * 8, strict=True) for w in pair)
    ],
    "tokens": {"content": [{"token": s, "top_logprobs": [{"token": "x"}]} for s in KEY]},
    "bytes": {"content": [{"token": "x", "bytes": [ord(s)]} for s in KEY]},
    "bytes at once": {"bytes": list(KEY.encode())},
    "native tokens": {"tokens": list(KEY), "top_logprobs": [{"x": -1}] * 24},
    "alternatives": {"top_logprobs": [{s: -1.0, "other": -2.0} for s in KEY]},
    "names": {HALVES[0]: 1, HALVES[1]: 2},
    "nested names": {HALVES[0]: {HALVES[1]: 2}},
    "names and values": {HALVES[0]: HALVES[1]},
    "numbers": {"a": KEY[:8], "b": 1234567, "c": KEY[16:]} | {"a": KEY[:9]},
    "lists": [[HALVES[0]], [HALVES[1]]],
    "finish reasons": [{"finish_reason": p} for p in HALVES],
    "names of events": "".join(f"event: {p}\ndata: {{}}\n\n" for p in HALVES),
    "comments": "".join(f": {p}\n\n" for p in HALVES),
    "broken JSON": json.dumps({"a": [*HALVES]})[:-1],
    "escapes": json.dumps({"a": ["\u200b".join(HALVES[0]), "".join(HALVES[1])]}),
    "a stream of CRLF": stream("content", *HALVES).replace("\n", "\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("value", PIECES.values(), ids=PIECES)
def test_pieces_are_put_together(value: Any) -> None:
    """By their order, their field and their path, in one piece nowhere."""
    text = value if isinstance(value, str) else json.dumps(value)

    assert not sieve.holds(text)
    assert sieve.is_spelled(text)


@pytest.mark.parametrize("value", PIECES.values(), ids=PIECES)
def test_pieces_of_less_than_a_key_are_none(value: Any) -> None:
    """An honest answer that looks like it stays: here one letter is another."""
    text = value if isinstance(value, str) else json.dumps(value)
    sieve.forget()
    sieve.know(KEY.replace("6", "q"))

    assert not sieve.is_spelled(text)


@given(st.data())
def test_any_cut_with_anything_unseen_in_it_is_seen(data: st.DataObject) -> None:
    """Wherever the pieces of a stream begin and end."""
    sieve.know(KEY)
    cuts = data.draw(st.sets(st.integers(1, len(KEY) - 1)))
    bounds = [0, *sorted(cuts), len(KEY)]
    noise = st.text(UNSEEN, max_size=3)
    pieces = ["".join(sign + data.draw(noise) for sign in KEY[a:b]) for a, b in pairwise(bounds)]
    assert sieve.is_spelled(stream(data.draw(st.sampled_from(["content", "refusal"])), *pieces))


@dataclass(frozen=True)
class _Record:
    text: str
    rows: tuple[dict[str, Any], ...]


def test_records_are_struck_out_at_any_depth() -> None:
    """Names, too; and what holds no key is equal to what it was."""
    found = sieve.strike_all(_Record(text=KEY, rows=({KEY: [1, None, f"a {KEY}"]},)))

    assert found == _Record(text="[redacted]", rows=({"[redacted]": [1, None, "a [redacted]"]},))
    clean = _Record(text="a", rows=({"b": 1.5},))
    assert sieve.strike_all(clean) == clean


def test_a_cut_text_keeps_no_larger_part_of_a_key() -> None:
    """A connection may break in the middle of one."""
    assert sieve.strike_end(f"x {KEY[:-1]}") == "x [redacted]"
    assert sieve.strike_end(f"x {KEY[:12]}") == "x [redacted]"
    assert sieve.strike_end("x sk-") == "x sk-"


def test_logs_are_struck_out(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever listens to them."""
    sieve.guard_logs(["verifier.test_sieve"])
    with caplog.at_level(logging.DEBUG, "verifier.test_sieve"):
        logging.getLogger("verifier.test_sieve").debug("headers %r", [(b"server", KEY.encode())])

    assert caplog.messages == ["headers [(b'server', b'[redacted]')]"]


HOSTILE = {
    "almost the key": (KEY[:-1]) * 9,
    "letters and unseen signs": "s\u200b\u200b\u200b",
    "backslashes": "\\",
    "backslashes and letters": "\\u0073\\",
    "percents": "%73%6b",
    "percents of percents": "%25",
    "entities": "&amp;",
    "entities of letters": "&#115;&#107;",
    "quotes": '"',
    "escaped quotes": '\\"',
    "letters as texts": '"s","k",',
    "brackets": "[",
    "marks": "e\u0301\u0323",
    "numbers": "[115,107],",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_read_in_linear_time(unit: str) -> None:
    """Were it quadratic, this much would take minutes."""
    text = unit * (2**17 // len(unit.encode("utf-8", "surrogatepass")))
    letters = json.dumps(sorted(set(KEY.lower())))  # so that no short cut is taken
    start = time.process_time()
    assert not sieve.is_spelled(text + letters)
    assert KEY not in sieve.strike(f"{text} {KEY} {text}")

    assert time.process_time() - start < 5
