"""What must hold whatever comes: each a strategy for the input, and a check of what is made of it.

`test_fuzz` tries a fixed sample of each in CI, `python -m tests.attacks --part fuzz` fresh ones for
as long as it is told.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from attacks import bodies, mutate, shown
from attacks.lab import bare
from audits import configure, run
from audits import write_card as write_audited_card
from fakes_card import CARD
from fakes_host import Answer, FakeHost, chat
from hypothesis import strategies as st
from models import save_tokenizer
from reports import consistent, inconsistent

from verifier.config import load_fleet
from verifier.errors import ConfigError, RenderingError, VerifierError
from verifier.files.run_folder import append_lines, read_json, read_lines, write_json
from verifier.files.stored import check
from verifier.host.collect import attempt_to_json, collect, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.host.exchange import DIALECTS, Problem, parse
from verifier.host.rate_limits import exhausted_for_s, retry_after_s
from verifier.host.response_body import Body, BodyTooLarge, UnreadableBody
from verifier.records import Attempt, Message, NotJudged, Probe, Prompt, Reply, Report
from verifier.reference.cards import Card, load_card
from verifier.report_file import report_from_json, report_to_json
from verifier.reports.html import render_page
from verifier.reports.junit import render_junit
from verifier.reports.markdown import render_markdown
from verifier.verdict.decide import decide_folder

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Property:
    """`check` gets one drawn input and raises AssertionError when something does not hold."""

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    examples: int  # in CI


@cache
def scratch() -> Path:
    """A folder for the whole run."""
    made = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, made, True)
    return made


SEEDS = st.integers(0, 2**32 - 1)
TEXT = st.text(
    st.sampled_from("a\"'<>&;\\ \n\r\t\x00\x1b\x07\x85\u2028\u202e\u200bé日😀\ud800\udc00{}[]()#*_`|-1.:/%@$\ufeff"),
    max_size=12,
) | st.sampled_from(shown.HOSTILE)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


# -- the wire ----------------------------------------------------------------------------------


def attempt_of(body: str, *, dialect: str, stream: bool, status: int | None) -> Attempt:
    return Attempt(
        probe_id="p1", number=1, started_at="2026-01-01T00:00:00.000+00:00", elapsed_s=0.1,
        request=json.dumps({"max_tokens": 12, "stream": stream, "logprobs": True}), status=status,
        body=body, error=None, dialect=dialect,
        headers={"content-type": "text/event-stream" if stream else "application/json"},
    )  # fmt: skip


def check_attempt(attempt: Attempt) -> None:
    """A value of clean strings, and the same once it has been through the exchanges file."""
    result = parse(attempt)
    assert isinstance(result, Reply | NotJudged | Problem)
    assert bodies.wrong_with(result) is None
    line = json.dumps(attempt_to_json(attempt), ensure_ascii=False, allow_nan=False)
    again = check(line.encode("utf-8", "surrogatepass"), Attempt, where="x", advice="none")
    assert again == attempt
    assert repr(parse(again)) == repr(result)


RAW_BODIES = st.tuples(
    st.binary(max_size=80) | st.builds(lambda v: json.dumps(v).encode(), JSON),
    st.sampled_from(sorted(DIALECTS)), st.booleans(), st.sampled_from([200, 201, 302, 400, 401, 404, 429, 503, None]),
)  # fmt: skip


def check_raw_body(drawn: tuple[bytes, str, bool, int | None]) -> None:
    raw, dialect, stream, status = drawn
    raw = b"data: " + raw + b"\n\n" if stream and raw[:1] != b"d" else raw
    body = raw.decode("utf-8", "surrogateescape")
    check_attempt(attempt_of(body, dialect=dialect, stream=stream, status=status))


def check_spoilt_body(seed: int) -> None:
    check_attempt(bodies.make_attempt(random.Random(seed), 1))


# -- streams -----------------------------------------------------------------------------------

STREAMS = st.tuples(
    st.sampled_from(sorted(bodies.EVENTS)),
    SEEDS,
    st.booleans(),
    st.lists(st.integers(0, 4000), max_size=12),
)


def check_stream(drawn: tuple[str, int, bool, list[int]]) -> None:
    """Line ends and the cuts between two pieces of a line change nothing."""
    dialect, seed, spoilt, cuts = drawn
    rng = random.Random(seed)
    events: list[Any] = bodies.EVENTS[dialect]
    if spoilt:
        made = mutate.spoil(rng, events)
        events = made if isinstance(made, list) else events
    lines = []
    for event in events:
        name = event.get("type") if isinstance(event, dict) else None
        if isinstance(name, str) and name.isprintable():
            lines.append(b"event: " + name.encode("utf-8", "replace"))
        lines += [b"data: " + mutate.to_json(event), b""]
    lines += [b": a comment", b"data: [DONE]", b""]
    results = []
    for end in (b"\n", b"\r\n", b"\r"):
        raw = b"".join(line + end for line in lines)
        body = Body(encoding="", cap=2**24)
        places = sorted({0, *(n % (len(raw) + 1) for n in cuts), len(raw)})
        for a, b in itertools.pairwise(places):
            body.add(raw[a:b])
        body.end()
        assert bytes(body.received) == raw
        text = raw.decode("utf-8", "surrogateescape")
        results.append(repr(parse(attempt_of(text, dialect=dialect, stream=True, status=200))))
    assert results[0] == results[1] == results[2]


PACKED = st.tuples(
    st.sampled_from(["", "gzip", "deflate", "x-gzip", "identity"]),
    st.lists(st.binary(max_size=60), max_size=6),
)


def check_packed(drawn: tuple[str, list[bytes]]) -> None:
    """Whatever bytes come as a packed body, never more than the cap is kept."""
    encoding, pieces = drawn
    body = Body(encoding=encoding, cap=64)
    with suppress(UnreadableBody, BodyTooLarge):
        for piece in pieces:
            body.add(piece)
        body.end()
    assert len(body.received) <= 64


# -- limits ------------------------------------------------------------------------------------

_NUMBERS = st.floats().map(str) | st.integers().map(str) | st.sampled_from(
    ["nan", "-inf", "1e400", "2m59s", "9" * 400 + "d", "1ms", "0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59",
     "Mon, 01 Jan 0001 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 99 Xyz 2026 99:99:99 +9999", "", " ", "٣"]
)  # fmt: skip
_DATES = st.datetimes().map(lambda d: d.isoformat()) | st.datetimes().map(
    lambda d: d.strftime("%a, %d %b %Y %H:%M:%S GMT")
)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["retry-after", "retry-after-ms", "date", "x-ratelimit-remaining", "x-ratelimit-reset", "x-ratelimit-remaining-requests",
         "x-ratelimit-reset-requests", "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"]
    ),
    _NUMBERS | _DATES | TEXT, max_size=5,
)  # fmt: skip


def check_limits(headers: dict[str, str]) -> None:
    """A wait of at most a minute, or none."""
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for wait in (retry_after_s(headers, now=now), exhausted_for_s(headers, now=now)):
        assert wait is None or 0 <= wait <= 60


# -- the folder --------------------------------------------------------------------------------

LINES = st.tuples(
    st.lists(st.lists(st.dictionaries(TEXT, JSON, max_size=3), min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")), min_size=3, max_size=3),
)  # fmt: skip


def check_lines(drawn: tuple[list[list[dict[str, Any]]], list[bytes]]) -> None:
    """Lines come back as they were appended, and what a kill tore off is passed over and cut."""
    groups, torn = drawn
    path = scratch() / "lines.jsonl"
    path.unlink(missing_ok=True)
    real, os.fsync = os.fsync, lambda _fd: None  # slow, and not the matter here
    try:
        written: list[dict[str, Any]] = []
        for group, end in zip(groups, torn, strict=False):
            append_lines(path, group)
            written += group
            with path.open("ab") as file:
                file.write(end)
            assert list(read_lines(path)) == written
    finally:
        os.fsync = real


def check_json_file(value: dict[str, Any]) -> None:
    """A JSON file comes back as it was written."""
    path = scratch() / "whole.json"
    real, os.fsync = os.fsync, lambda _fd: None
    try:
        write_json(path, value)
    finally:
        os.fsync = real
    assert read_json(path) == value


def check_bytes_of_a_file(raw: bytes) -> None:
    """Any bytes are a JSON object, or refused."""
    path = scratch() / "bytes.json"
    path.write_bytes(raw)
    with suppress(ConfigError):
        assert isinstance(read_json(path), dict)
    with suppress(ConfigError):
        assert all(isinstance(line, dict) for line in read_lines(path))


@cache
def _base_folder() -> Path:
    """A finished run folder."""
    from attacks.lab import Model

    folder = scratch() / "base"
    folder.mkdir()
    path = write_audited_card(folder)
    with FakeHost(Model()) as host:
        run(configure(host.url, path, folder / "run", budget_completion_tokens=240, top_logprobs=0))
    return folder / "run"


def check_spoilt_folder(seed: int) -> None:
    """A spoilt folder is decided or refused, and nothing else comes out."""
    from attacks.folders import spoil_file

    rng, base = random.Random(seed), _base_folder()
    copy = scratch() / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(base, copy)
    files = sorted(path for path in copy.iterdir() if path.suffix not in (".html",))
    how = spoil_file(rng, rng.choice(files), [])
    with suppress(VerifierError, OSError):
        assert isinstance(decide_folder(copy), Report), how


# -- run files and cards -----------------------------------------------------------------------


@cache
def _run_files() -> list[dict[str, Any]]:
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    one = {"endpoint": endpoint, "reference": {"card": "tiny"}, "out": "run", "audit": {"seed": 1}}
    several = {
        "targets": {"a": endpoint},
        "control": endpoint,
        "reference": {"card": "tiny"},
        "out": "run",
    }
    found = [
        yaml.safe_load(p.read_text("utf-8")) for p in sorted((ROOT / "configs").glob("*.yaml"))
    ]
    return [one, several, *(raw for raw in found if isinstance(raw, dict) and "reference" in raw)]


def check_run_file(seed: int) -> None:
    """Spoilt values, or spoilt bytes, of a run file are a valid record or a ConfigError."""
    rng = random.Random(seed)
    raw = mutate.to_yaml(rng, mutate.spoil(rng, rng.choice(_run_files()), rng.choice([1, 2, 3])))
    path = scratch() / "run-file.yaml"
    path.write_bytes(mutate.spoil_bytes(rng, raw) if rng.random() < 0.3 else raw)
    with suppress(ConfigError):
        fleet = load_fleet(path)
        assert fleet.every_run_file


@cache
def _cards() -> list[dict[str, Any]]:
    cards = (ROOT / "reference" / "cards").glob("*.yaml")
    small = sorted(cards, key=lambda path: path.stat().st_size)[:2]
    return [CARD, *(yaml.safe_load(path.read_text("utf-8")) for path in small)]


def check_card(seed: int) -> None:
    """Spoilt values, or spoilt bytes, of a card are a valid record or a ConfigError."""
    rng = random.Random(seed)
    raw = mutate.to_yaml(rng, mutate.spoil(rng, rng.choice(_cards()), rng.choice([1, 2, 3])))
    path = scratch() / "card.yaml"
    path.write_bytes(mutate.spoil_bytes(rng, raw) if rng.random() < 0.3 else raw)
    with suppress(ConfigError):
        assert isinstance(load_card(str(path)), Card)


# -- reports -----------------------------------------------------------------------------------


@cache
def _plain_report() -> tuple[Report, Any, Any, Any]:
    report = _report_with("word")
    tags = shown.Tags(render_page(report, **shown.parts("word"))).seen
    elements = [e.tag for e in shown.ET.fromstring(render_junit(report)).iter()]
    return report, tags, elements, shown.structure(render_markdown(report))


def _report_with(text: str) -> Report:
    base = replace(inconsistent(), notes=consistent().notes)
    return report_from_json(json.loads(json.dumps(shown.spoilt_report(report_to_json(base), text))))


def check_report(text: str) -> None:
    """Text in every field adds no tag, address, element, structure or acting sign to any output."""
    text = text.encode("utf-8", "replace").decode()  # a file of JSON holds no half of a pair
    report = _report_with(text)
    _, tags, elements, marks = _plain_report()
    more = {k: n for k, n in (shown.Tags(render_page(report, **shown.parts(text))).seen - tags).items()
            if not shown.DIFF.fullmatch(k)}  # fmt: skip
    assert not more
    assert [e.tag for e in shown.ET.fromstring(render_junit(report)).iter()] == elements
    assert not shown.structure(render_markdown(report)) - marks
    file = shown.io.StringIO()
    shown.render_terminal(report, console=shown.Console(file=file, force_terminal=True, width=100))
    assert shown.wrong_on_terminal(file.getvalue()) is None


# -- templates ---------------------------------------------------------------------------------

_ATOMS = st.sampled_from(
    ["messages", "messages[0]", "messages[0].content", "''", "'a'", "1", "[]", "{}", "range(9)", "bos_token", "x", "none", "loop",
     "namespace()", "cycler(1)", "joiner()", "lipsum", "tools", "raise_exception('x')", "strftime_now('%Y')", "self", "dict(a=1)"]
)  # fmt: skip
_FILTERS = st.sampled_from(
    ["", "|tojson", "|trim", "|length", "|first", "|join", "|list", "|map('upper')", "|attr('x')", "|replace('a', 'b')", "|safe",
     ".__class__", "['__class__']", ".format", "|format(1)", "|int", "|string", "|items", "|dictsort", "|batch(2)", "|sum", "|nope"]
)  # fmt: skip
_EXPRESSIONS = st.recursive(
    st.tuples(_ATOMS, _FILTERS).map("".join),
    lambda inner: st.tuples(inner, st.sampled_from([" + ", " ~ ", " in ", " and ", " is ", " * ", " // "]), inner).map("".join),
    max_leaves=4,
)  # fmt: skip
_BLOCKS = st.one_of(
    _EXPRESSIONS.map(lambda e: f"{{{{ {e} }}}}"),
    _EXPRESSIONS.map(lambda e: f"{{% if {e} %}}y{{% else %}}n{{% endif %}}"),
    _EXPRESSIONS.map(lambda e: f"{{% for x in {e} %}}{{{{ x }}}}{{% endfor %}}"),
    _EXPRESSIONS.map(lambda e: f"{{% set x = {e} %}}"),
    _EXPRESSIONS.map(lambda e: f"{{% macro m(x) %}}{{{{ {e} }}}}{{% endmacro %}}{{{{ m(1) }}}}"),
    st.sampled_from(
        [
            "{% generation %}a{% endgeneration %}",
            "{% break %}",
            "{% include 'x' %}",
            "{{",
            "%}",
            "{#",
            "{% raw %}",
            "text",
        ]
    ),
)
TEMPLATES = st.lists(_BLOCKS, min_size=1, max_size=5).map("".join)


@cache
def _tokenizer() -> Any:
    from verifier.reference.tokenizer import Tokenizer

    save_tokenizer(scratch() / "tokenizer")
    return Tokenizer(scratch() / "tokenizer")


def check_template(template: str) -> None:
    """A template of anything is a text or a RenderingError, and tells nothing of the program."""
    try:
        text = _tokenizer().render_text(
            Prompt(messages=({"role": "user", "content": "Hi."},), template=template)
        )
    except RenderingError:
        return
    assert not any(
        leak in text for leak in ("<class 'object'", "__builtins__", "__globals__", "root:")
    )


# -- keys --------------------------------------------------------------------------------------

KEY = "sk-test-0123456789abcdef"
ECHOES = st.tuples(
    st.sampled_from(["", "\u200b", "\x00", "\u00ad", "\ue000", "\u2060", "\ufeff", "\ud800"]),
    st.lists(st.integers(1, len(KEY) - 1), max_size=5),
    st.sampled_from(["message", "refusal", "finish", "content", "reasoning", "text"]),
    st.sampled_from([200, 400, 429, 500]),
    st.booleans(),
)  # fmt: skip


def check_key(drawn: tuple[str, list[int], str, int, bool]) -> None:
    """However a host spells the key, nobody reads it in an outcome, a message or the folder."""
    sign, cuts, place, status, stream = drawn
    at = sorted({0, *cuts, len(KEY)})
    parts = [KEY[a:b] for a, b in itertools.pairwise(at)]
    told = sign.join(parts)
    body: Any = (
        {"error": {"message": told}} if place == "message" else told.encode("utf-8", "replace")
    )
    headers = {}
    if place not in ("message", "text"):
        status = 200
        body = chat("the model") if place != "content" else chat(told)
        message = body["choices"][0]["message"]
        if place in ("refusal", "reasoning"):
            message[place] = told
        if place == "finish":
            body["choices"][0]["finish_reason"] = told
        if stream and place != "finish":
            name = place if place != "content" else "content"
            chunks = [{"choices": [{"delta": {name: sign + part}}]} for part in parts]
            chunks += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
            body = (
                "".join(f"data: {json.dumps(c)}\n\n" for c in chunks).encode() + b"data: [DONE]\n\n"
            )
            headers = {"Content-Type": "text/event-stream"}
    folder = scratch() / "key"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    probe = Probe(
        id="p1", kind="open", messages=(Message(role="user", content="Hi."),), max_tokens=24
    )
    said = ""
    with FakeHost(lambda _asked: Answer(status=status, body=body, headers=headers)) as host:
        endpoint = Endpoint(
            base_url=host.url, model="m", api_key=KEY, top_logprobs=0, max_attempts=1
        )
        try:
            collect(folder, endpoint, [probe])
        except VerifierError as error:
            said = str(error)
    for outcome in read_outcomes(folder, max_attempts=1).values():
        assert KEY not in repr(outcome)
        words = bodies.strings_of(outcome) if isinstance(outcome, Reply) else [outcome.reason]
        said += "\n".join(words)
    assert KEY.casefold() not in bare(said)
    raw = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert KEY.encode() not in raw


PROPERTIES = (
    Property(name="any body", inputs=RAW_BODIES, check=check_raw_body, examples=400),
    Property(name="a spoilt body", inputs=SEEDS, check=check_spoilt_body, examples=600),
    Property(name="a stream in pieces", inputs=STREAMS, check=check_stream, examples=200),
    Property(name="a packed body", inputs=PACKED, check=check_packed, examples=100),
    Property(name="headers of limits", inputs=HEADERS, check=check_limits, examples=400),
    Property(name="torn lines", inputs=LINES, check=check_lines, examples=100),
    Property(name="a JSON file", inputs=st.dictionaries(TEXT, JSON, max_size=3), check=check_json_file, examples=60),
    Property(name="bytes of a file", inputs=st.binary(max_size=60), check=check_bytes_of_a_file, examples=100),
    Property(name="a spoilt run folder", inputs=SEEDS, check=check_spoilt_folder, examples=60),
    Property(name="a spoilt run file", inputs=SEEDS, check=check_run_file, examples=80),
    Property(name="a spoilt card", inputs=SEEDS, check=check_card, examples=80),
    Property(name="text in a report", inputs=TEXT, check=check_report, examples=25),
    Property(name="any template", inputs=TEMPLATES, check=check_template, examples=80),
    Property(name="a key given back", inputs=ECHOES, check=check_key, examples=60),
)  # fmt: skip
