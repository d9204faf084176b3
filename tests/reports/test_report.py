"""The report for readers: JSON round trip, terminal table, HTML page, and hostile text."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reports import (
    MARKS,
    SIGNATURE,
    consistent,
    evidence,
    finding,
    inconclusive,
    inconsistent,
    place,
)
from rich.console import Console

from verifier import wording
from verifier.errors import ConfigError
from verifier.records import (
    Attempt,
    Candidate,
    Failure,
    Message,
    NotJudged,
    Outcome,
    Probe,
    Reply,
    Report,
    ReportedToken,
    Substitution,
)
from verifier.report_file import report_from_json, report_to_json
from verifier.reports import noise_dial as dial
from verifier.reports.findings import causes, departures
from verifier.reports.html import render_page
from verifier.reports.junit import render_junit
from verifier.reports.markdown import render_markdown
from verifier.reports.terminal import render_terminal

GOLDEN = Path(__file__).with_name("golden")

SAMPLES = {
    "consistent": consistent(),
    "inconsistent": inconsistent(),
    "inconclusive": inconclusive(),
}

TOKEN = ReportedToken(chosen=Candidate(token="Par", bytes=b"Par", logprob=-0.1), top=())


def sample_exchanges() -> dict[str, Any]:
    """One probe of every outcome, one asked without an outcome, one never asked."""
    names = ("factual-0007", "code-0102", "list-0001", "open-0455", "rewrite-0003")
    probes = [
        Probe(
            id=name,
            kind=name.partition("-")[0],
            messages=(
                Message(role="system", content="Answer in one sentence."),
                Message(role="user", content=f"What is the capital of France? ({name})"),
            ),
            max_tokens=32,
        )
        for name in names
    ]
    outcomes: dict[str, Outcome] = {
        "factual-0007": reply("factual-0007", text="The capital of France is Paris.\nمرحبا 👩‍🔬"),
        "code-0102": Failure(
            probe_id="code-0102", status=503, reason="service unavailable", attempts=2
        ),
        "list-0001": NotJudged(
            probe_id="list-0001", reason="empty content", prompt_tokens=None, completion_tokens=0
        ),
    }
    attempts = [
        attempt("factual-0007"),
        attempt("code-0102", status=503, body="upstream\n" * 900),
        attempt("code-0102", number=2, status=None, body="", error="read timed out"),
        attempt("list-0001", body='{"choices": []}'),
        attempt("open-0455", status=None, body="", error="connection reset"),
    ]
    return {"outcomes": outcomes, "probes": probes, "attempts": attempts}


def reply(probe_id: str, **changes: Any) -> Reply:
    """A reply with logprobs at two positions."""
    plain = Reply(
        probe_id=probe_id,
        text="Paris.",
        finish_reason="stop",
        prompt_tokens=31,
        completion_tokens=7,
        logprobs=(TOKEN, TOKEN),
        logprobs_problem=None,
    )
    return dataclasses.replace(plain, **changes)


def attempt(probe_id: str, **changes: Any) -> Attempt:
    """One exchange that went well."""
    plain = Attempt(
        probe_id=probe_id,
        number=1,
        started_at="2026-01-14T09:30:00+00:00",
        elapsed_s=0.4312,
        request='{"model": "smollm2-135m-instruct", "temperature": 0}',
        status=200,
        body='{"choices": [{"message": {"content": "Paris."}}]}',
        error=None,
    )
    return dataclasses.replace(plain, **changes)


def page_of(report: Report, **changes: Any) -> str:
    """The page of a report with the sample exchanges, some of them replaced."""
    return render_page(report, **(sample_exchanges() | changes))


def terminal_of(report: Report, width: int = 80) -> str:
    """What the terminal shows, without colour."""
    file = io.StringIO()
    render_terminal(report, console=Console(file=file, width=width, no_color=True))
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


def without_picture(page: str) -> str:
    """The page without the bytes that matplotlib's version decides."""
    return re.sub(r"<svg .*?</svg>", "<svg></svg>", page, flags=re.DOTALL)


@pytest.mark.parametrize("name", SAMPLES)
def test_report_survives_json(name: str) -> None:
    """What is written to report.json is read back as the same value."""
    text = json.dumps(report_to_json(SAMPLES[name]), allow_nan=False)

    assert report_from_json(json.loads(text)) == SAMPLES[name]


def test_report_json_is_always_valid_utf8() -> None:
    """A lone surrogate from a host becomes U+FFFD, so that any reader can read the file."""
    hostile = dataclasses.replace(
        consistent(), summary="a\ud800b", signature={"k\udfff": ["\udead"]}
    )

    value = report_to_json(hostile)

    assert value["summary"] == "a\ufffdb"
    assert json.dumps(value, ensure_ascii=False).encode("utf-8")
    assert report_from_json(value).signature == {"k\ufffd": ["\ufffd"]}


def edit(path: str, change: Callable[[dict[str, Any], str], None]) -> dict[str, Any]:
    """The JSON of a report with one key changed; `path` is dotted, with numbers for places."""
    whole: Any = json.loads(json.dumps(report_to_json(inconsistent())))
    *steps, last = path.split(".")
    place = whole
    for step in steps:
        place = place[int(step)] if step.isdigit() else place[step]
    change(place, last)
    return whole  # type: ignore[no-any-return]


def put(value: object) -> Callable[[dict[str, Any], str], None]:
    """A change that sets a key."""
    return lambda place, key: place.update({key: value})


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("schema_version", 2, "schema_version: this version reads 1, got 2"),
        ("schema_version", "1", "schema_version: input should be a valid integer, got '1'"),
        ("schema_version", True, "schema_version: input should be a valid integer, got True"),
        ("score", 97, "score: unknown key"),
        ("findings.2.colour", "red", "findings[2].colour: unknown key"),
        ("usage.requests", 1.5, "usage.requests: input should be a valid integer"),
        ("usage.cost_usd", "0.1", "usage.cost_usd: input should be a valid number"),
        ("noise_scale.estimate", float("nan"), "noise_scale.estimate: input should be a finite"),
        ("noise_scale.marks", [["int8", "x"]], "noise_scale.marks[0][1]: input should be a valid"),
        ("decision", "passed", "decision: input should be 'consistent', 'inconsistent' or"),
        ("findings.0.decision", "passed", "findings[0].decision: input should be 'detected'"),
        ("summary", None, "summary: input should be a valid string, got None"),
    ],
)
def test_wrong_report_json_is_refused_by_key(path: str, value: object, key: str) -> None:
    """Another schema version, an unknown key or a wrong type gives one line that names the key."""
    with pytest.raises(ConfigError, match="^" + re.escape(f"report.json: {key}")) as caught:
        report_from_json(edit(path, put(value)))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["schema_version", "findings.0.log_e", "usage.requests", "beta"])
def test_missing_keys_are_refused(path: str) -> None:
    """A key that is not there is an error, never a default."""
    key = re.escape(re.sub(r"\.(\d+)", r"[\1]", path))

    with pytest.raises(ConfigError, match=f"^report.json: {key}: missing"):
        report_from_json(edit(path, lambda place, last: place.pop(last)))


def test_values_that_json_lacks_are_refused() -> None:
    """A value that no JSON file can hold is refused in one line."""
    with pytest.raises(ConfigError, match="holds what JSON cannot"):
        report_from_json(report_to_json(consistent()) | {"notes": {1, 2}})


@pytest.mark.parametrize("name", SAMPLES)
def test_terminal_reads_as_before(name: str) -> None:
    """The terminal table is the golden text: 80 columns, no colour."""
    expected = (GOLDEN / f"terminal_{name}.txt").read_text(encoding="utf-8")

    assert terminal_of(SAMPLES[name]) == expected


@pytest.mark.parametrize("name", SAMPLES)
def test_page_reads_as_before(name: str) -> None:
    """The page, picture aside, is the golden file."""
    expected = (GOLDEN / f"page_{name}.html").read_text(encoding="utf-8")

    assert without_picture(page_of(SAMPLES[name])) == expected


def test_classes_of_noise_that_are_detected_are_one_line() -> None:
    """Each says how far off the replies are at least: only a name accuses, everywhere alike."""
    classes = (
        finding("noise", "detected", "one layer dropped", 40.0, detail="at least 0.3"),
        finding("noise", "detected", "fp8-class rounding", 60.0, detail="at least 0.13"),
        finding("noise", "detected", "4-bit-class rounding", 39.0, detail="at least 0.32"),
        finding("noise", "undecided", "another model", 1.0, detail="not yet"),
    )
    report = dataclasses.replace(inconsistent(), findings=classes)
    (line, other) = departures(report)

    assert (line.name, line.log_e) == ("at least as far off as 4-bit-class rounding", 39.0)
    assert line.detail == "at least 0.32"
    assert other == classes[-1]
    for text in (page_of(report), terminal_of(report), render_markdown(report)):
        assert "one layer dropped" not in text
        assert "at least as far off" in " ".join(text.split())
    assert "one layer dropped" not in render_junit(report)
    assert report_from_json(report_to_json(report)).findings == classes


def test_noise_as_far_as_a_dropped_layer_alone_is_said_as_such() -> None:
    """Where no rounding is among what is detected."""
    classes = (
        finding("noise", "detected", "one layer dropped", 9.0, detail="at least 0.3"),
        finding("noise", "undecided", "4-bit-class rounding", 5.0),
    )
    (line, _) = departures(dataclasses.replace(inconsistent(), findings=classes))

    assert line.name == "at least as far off as one layer dropped"


@pytest.mark.parametrize("asked", [None, "as it was"])
def test_every_form_says_when_it_was_asked(asked: str | None) -> None:
    """First and last question, in UTC; an older report has none."""
    report = inconsistent()
    report = dataclasses.replace(report, asked=None) if asked is None else report
    span = "2026-01-14 09:30:00 to 2026-01-14 09:41:07 UTC" if asked else "nothing on record"

    for text in (page_of(report), terminal_of(report), render_markdown(report)):
        assert span in " ".join(re.sub(r"&#(\d+);", lambda m: chr(int(m[1])), text).split())
    assert span in render_junit(report)


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("name", SAMPLES)
def test_terminal_keeps_to_its_width(name: str, width: int) -> None:
    """No line is wider than the terminal, and no departure is lost on a narrow one."""
    text = terminal_of(SAMPLES[name], width)

    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for found in SAMPLES[name].findings:
        assert set(found.name.split()) <= set(words)


@pytest.mark.parametrize("name", SAMPLES)
def test_page_has_the_same_bytes_each_time(name: str) -> None:
    """No date, counter or random id gets into the page."""
    assert page_of(SAMPLES[name]) == page_of(SAMPLES[name])


class Outline(HTMLParser):
    """What a browser would make of a page: tags in order, references, nesting, visible text."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr", "base"})
    LOADING = frozenset({"src", "href", "xlink:href", "action", "data", "poster", "srcset"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open = self.open[: len(self.open) - (tag not in self.VOID)]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.tags.append("/" + tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", SAMPLES)
def test_page_loads_and_runs_nothing(name: str) -> None:
    """The page stands alone: no script, no reference out of the file, and a policy that says so."""
    page = page_of(SAMPLES[name])
    outline = Outline(page)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

    assert outline.open == []
    assert "<script" not in page.lower()
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(outline.tags)
    assert not [a for a in outline.attributes if a[1].startswith("on")]
    assert all(v.startswith("#") for _, n, v in outline.attributes if n in Outline.LOADING)
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "@import" not in page
    assert ("meta", "content", policy) in outline.attributes
    assert "<details open" not in page


@pytest.mark.parametrize("name", SAMPLES)
def test_page_is_readable_without_seeing_it(name: str) -> None:
    """Headings do not skip, tables have captions, and the picture says in words what it shows."""
    outline = Outline(page_of(SAMPLES[name]))
    labels = [value for _, key, value in outline.attributes if key == "aria-label"]

    assert outline.tags.count("h1") == 1
    assert outline.tags.count("table") == outline.tags.count("caption")
    assert dial.describe_dial(SAMPLES[name].noise_scale) in labels
    ids = [value for _, key, value in outline.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    named = {value for _, key, value in outline.attributes if key == "aria-labelledby"}
    assert named <= set(ids)


HOSTILE = (
    "</pre></details><script>alert(1)</script><img src=x onerror=alert(1)>"
    "\"'><svg onload=alert(1)> {{ 7 * 7 }} {% raw %} [bold red]shout[/] [link=http://evil]x[/link] "
    ":warning: \x1b[2J\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\ \x9b31m \x00 \x07 \x7f \r"
    " \u202e desrever \u2066 \u2069 \u2028 \ud800 \ufeff \U000e0041 $\\frac{1}{2}$ &lt;"
)

#: Everything that must never reach a reader's screen as it is.
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def in_outcome(outcome: Outcome) -> dict[str, Any]:
    """The sample exchanges with one outcome replaced."""
    samples = sample_exchanges()
    return samples | {"outcomes": samples["outcomes"] | {outcome.probe_id: outcome}}


def in_attempt(**changes: Any) -> dict[str, Any]:
    """The sample exchanges with one attempt changed."""
    samples = sample_exchanges()
    return samples | {"attempts": [attempt(**{"probe_id": "factual-0007"} | changes)]}


def in_finding(text: str) -> Report:
    """A report whose findings hold a text wherever one fits, the best name included."""
    found = tuple(
        finding(aspect, decision, text, None, detail=text)
        for aspect, decision in (("noise", "not run"), (text, "undecided"), ("cause", "detected"))
    )
    return dataclasses.replace(inconsistent(), findings=found)


def in_scale(text: str) -> Report:
    """A report whose noise scale holds a text wherever one fits."""
    scale = dataclasses.replace(
        inconsistent().noise_scale, equivalent=text, marks=((text, 0.2), ("drop-1", 0.3))
    )
    return dataclasses.replace(inconsistent(), noise_scale=scale)


def at_place(**changes: Any) -> Report:
    """Text of the host, where its replies leave the published weights."""
    return dataclasses.replace(inconsistent(), evidence=evidence(9.5, 40, place(**changes)))


def at_endpoint(**named: Any) -> Report:
    """Text of a run file, in the headline."""
    signature = {"card": "c", "configuration": {"endpoint": named}}
    return dataclasses.replace(inconsistent(), signature=signature)


REPORT_FIELDS: dict[str, Callable[[str], Report]] = {
    "summary": lambda text: dataclasses.replace(inconsistent(), summary=text),
    "notes": lambda text: dataclasses.replace(inconsistent(), notes=(text,)),
    "policy": lambda text: dataclasses.replace(inconsistent(), policy=text),
    "findings": in_finding,
    "what came before a place": lambda text: at_place(after=text),
    "token of the weights": lambda text: at_place(published=text),
    "token of the host": lambda text: at_place(served=text),
    "question of a place": lambda text: at_place(asked=text, probe_id=text, after=""),
    "host": lambda text: at_endpoint(host=text, model=text, provider=text),
    "noise scale": in_scale,
    "signature": lambda text: dataclasses.replace(
        inconsistent(), signature={text: {"base_url": text, text: [text]}, "model": text}
    ),
}
EXCHANGE_FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "reply text": lambda text: in_outcome(reply("factual-0007", text=text)),
    "finish reason": lambda text: in_outcome(reply("factual-0007", finish_reason=text)),
    "logprobs problem": lambda text: in_outcome(
        reply("factual-0007", logprobs=None, logprobs_problem=text)
    ),
    "failure": lambda text: in_outcome(
        Failure(probe_id="code-0102", status=500, reason=text, attempts=1)
    ),
    "not judged": lambda text: in_outcome(
        NotJudged(probe_id="list-0001", reason=text, prompt_tokens=None, completion_tokens=None)
    ),
    "unknown probe": lambda text: in_attempt(probe_id=text),
    "body": lambda text: in_attempt(body=text),
    "request": lambda text: in_attempt(request=text),
    "error": lambda text: in_attempt(error=text, status=None),
    "time": lambda text: in_attempt(started_at=text),
    "probe": lambda text: {
        "probes": [
            Probe(
                id="factual-0007", kind=text, messages=(Message(role="user", content=text),),
                max_tokens=1,
            )
        ]
    },
}  # fmt: skip


def assert_disarmed(hostile: str, plain: str) -> None:
    """A page with hostile text has the tags and attributes of one with plain text, and shows it."""
    attacked, calm = Outline(hostile), Outline(plain)

    assert not ACTING.search(hostile)
    assert attacked.tags == calm.tags
    assert [a[:2] for a in attacked.attributes] == [a[:2] for a in calm.attributes]
    assert "<script" not in hostile.lower()
    hostile.encode("utf-8")


@pytest.mark.parametrize("field", EXCHANGE_FIELDS)
def test_exchanges_cannot_write_html(field: str) -> None:
    """Text from a host is shown, never obeyed, wherever it appears among the exchanges."""
    build = EXCHANGE_FIELDS[field]
    hostile = page_of(consistent(), **build(HOSTILE))

    assert_disarmed(hostile, page_of(consistent(), **build("plain")))
    assert wording.visible(HOSTILE) in Outline(hostile).text


@pytest.mark.parametrize("field", REPORT_FIELDS)
def test_report_fields_cannot_write_html(field: str) -> None:
    """A report from a stranger's folder is shown, never obeyed."""
    build = REPORT_FIELDS[field]
    hostile = page_of(build(HOSTILE))

    assert_disarmed(hostile, page_of(build("plain")))
    assert wording.visible(HOSTILE) in Outline(hostile).text


@pytest.mark.parametrize("field", [f for f in REPORT_FIELDS if f != "signature"])
def test_report_fields_cannot_drive_a_terminal(field: str) -> None:
    """No escape sequence, link, markup or emoji code from outside reaches the terminal."""
    file = io.StringIO()
    console = Console(file=file, width=4000, force_terminal=True, color_system="truecolor")

    render_terminal(REPORT_FIELDS[field](HOSTILE), console=console)

    text = file.getvalue()
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text)  # the colours that rich writes itself
    assert not ACTING.search(bare)
    assert "]8;" not in text.replace(r"\x1b]8;", "")
    assert "[bold red]shout[/] [link=http://evil]x[/link] :warning:" in bare
    assert r"\x1b[2J" in bare


def test_visible_keeps_what_people_write() -> None:
    """Other scripts, emoji with joiners, tabs and newlines stay as they are."""
    text = "naïve 中文 مرحبا שלום\t👩‍🔬 ❤️\nfin"

    assert wording.visible(text) == text
    assert wording.visible("a\r\nb\rc") == "a\nb\\rc"


def test_unrun_checks_never_look_passed() -> None:
    """A check that did not run says so, in a class of its own, with its reason and no number."""
    report = dataclasses.replace(
        consistent(),
        findings=(finding("logprobs", "not run", "logprobs", None, detail="none returned"),),
    )
    page, terminal = page_of(report), terminal_of(report)
    (row,) = re.findall(r"<tbody role=\"rowgroup\">(.*?)</tbody>", page, flags=re.DOTALL)[:1]

    assert 'class="chip not-run"' in row
    assert "none returned" in row
    assert not re.search(r"excluded|passed|0\.0", row)
    assert "1 not run" in page
    assert re.search(r"logprobs .* not run +- +-\n", terminal)
    assert "none returned" in terminal
    assert "excluded," not in terminal


@pytest.mark.parametrize("name", SAMPLES)
def test_words_are_those_the_evidence_carries(name: str) -> None:
    """No report claims more than it measured, accuses, or scores out of 100."""
    for text in (page_of(SAMPLES[name]), terminal_of(SAMPLES[name])):
        assert not re.search(r"authentic|verified|cheat|passed|genuine|/\s?100|trust", text, re.I)
    assert SAMPLES[name].decision in page_of(SAMPLES[name])


def test_long_bodies_are_cut_with_a_note() -> None:
    """Each raw body shows its first 4,096 characters and says how many there were."""
    page = page_of(consistent(), **in_attempt(body="é" * 5000))

    assert "é" * 4096 in page
    assert "é" * 4097 not in page
    assert "cut: the first 4,096 of 5,000 characters" in page


def test_endless_replies_are_cut_with_a_note() -> None:
    """A host cannot swell the page: any value stops at 16,384 characters and says so."""
    page = page_of(consistent(), **in_outcome(reply("factual-0007", text="é" * 10**6)))

    assert page.count("é") == 16_384
    assert "[cut: 16,384 of 1,000,000 characters]" in page


def test_every_probe_asked_is_shown_and_no_other() -> None:
    """Failures, answers not judged and unfinished probes appear; probes never asked do not."""
    page = page_of(consistent())
    labels = re.findall(r'class="chip [a-z-]+">([a-z ]+)</span> ([a-z0-9-]+)', page)

    assert labels == [
        ("reply", "factual-0007"),
        ("failed", "code-0102"),
        ("not judged", "list-0001"),
        ("no outcome", "open-0455"),
    ]
    assert "rewrite-0003" not in page
    assert "4 of 5 probes asked" in page
    assert "HTTP 503" in page
    assert "Transport error: read timed out" in page


def test_page_says_what_was_audited_and_when() -> None:
    """Endpoint, model and card come from the signature's first such keys."""
    signature: dict[str, object] = SIGNATURE | {"engine": {"model": "another"}}
    report = dataclasses.replace(consistent(), signature=signature)
    page = page_of(report)
    (about,) = re.findall(r'<dl class="about">(.*?)</dl>', page, flags=re.DOTALL)

    assert dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", about)) == {
        "Endpoint": "https://api.example.net/v1",
        "Model asked for": "smollm2-135m-instruct",
        "Reference card": "smollm2-135m-instruct",
        "Asked": "2026-01-14 09:30:00 to 2026-01-14 09:41:07 UTC",
    }


def test_page_of_an_audit_without_exchanges() -> None:
    """A report can be shown alone, without probes, outcomes or a signature."""
    report = dataclasses.replace(inconclusive(), signature={}, findings=())

    page = page_of(report, outcomes={}, probes=[], attempts=[])

    assert "Nothing was asked." in page
    assert "The policy named no departure." in page
    assert Outline(page).open == []


def test_dial_groups_builds_by_class() -> None:
    """Each build stands in its class, mildest first; what the bank lacks stands apart."""
    marks = (("drop-1", 0.3), ("int4-sym-g64", 0.32), ("nf4-g64", 0.27), ("awq-public", 0.4))

    assert dial.group_marks((*marks, ("fp8", 0.1), ("int8-channel", 0.0))) == [
        ("8-bit floats", [("fp8", 0.1)]),
        ("4-bit rounding", [("nf4-g64", 0.27), ("int4-sym-g64", 0.32)]),
        ("layers dropped", [("drop-1", 0.3)]),
        ("other builds", [("awq-public", 0.4)]),
    ]


def texts_of(svg: str) -> list[tuple[float, float, str]]:
    """Every text of the picture with its place: x, y and words."""
    found = re.findall(r'<text [^>]*x="([\d.-]+)" y="([\d.-]+)"[^>]*>([^<]*)</text>', svg)
    return [(float(x), float(y), words) for x, y, words in found]


@pytest.mark.parametrize(
    "marks", [MARKS, (), tuple((f"other-{n}", 0.001 * 3**n) for n in range(9))]
)
@pytest.mark.parametrize(
    ("estimate", "lower", "upper"),
    [(0.31, 0.18, 0.55), (0.021, 0.0, None), (7.0, 1e-9, 1e9), (None, None, None)],
)
def test_labels_of_the_dial_never_overlap(
    marks: tuple[tuple[str, float], ...],
    estimate: float | None,
    lower: float | None,
    upper: float | None,
) -> None:
    """Labels left of the axis have a line each; ticks along it keep their distance."""
    scale = dataclasses.replace(
        consistent().noise_scale, estimate=estimate, lower=lower, upper=upper, marks=marks
    )
    texts = texts_of(dial.draw_dial(scale))
    rows = sorted(y for x, y, _ in texts if x < 100)
    ticks = sorted((x, words) for x, _, words in texts if re.fullmatch(r"[\d.e-]+", words))

    assert len(rows) == 2 * (1 + len(dial.group_marks(marks)))
    assert all(below - above > 11 for above, below in itertools.pairwise(rows))
    assert len(ticks) >= 2
    for (x, words), (next_x, _) in itertools.pairwise(ticks):
        assert next_x - x > 7 * len(words)  # 11 pixels high, at most 7 wide


def test_dial_says_what_is_not_known() -> None:
    """Nothing scored shows no estimate; an interval without an end is an arrow."""
    scale = consistent().noise_scale
    nothing = dataclasses.replace(scale, estimate=None, lower=None, upper=None)
    unbounded = dataclasses.replace(scale, estimate=0.1, lower=0.01, upper=None)

    assert "nothing scored" in [words for *_, words in texts_of(dial.draw_dial(nothing))]
    assert 'id="estimate"' not in dial.draw_dial(nothing)
    assert 'id="unbounded"' in dial.draw_dial(unbounded)
    assert 'id="unbounded"' not in dial.draw_dial(scale)
    assert "0.1 (0.01 to unbounded)" in [words for *_, words in texts_of(dial.draw_dial(unbounded))]


def test_dial_puts_estimate_and_honest_range_where_they_belong() -> None:
    """Twice as far along the axis is ten times the scale, and the honest range ends at its own."""
    scale = dataclasses.replace(consistent().noise_scale, estimate=0.1, honest=0.05)
    svg = dial.draw_dial(scale)
    at = {words: x for x, _, words in texts_of(svg)}
    (estimate,) = re.findall(r'id="estimate">.*?<use [^>]*x="([\d.]+)"', svg, flags=re.DOTALL)
    (outline,) = re.findall(r'<path d="([^"]*)"[^>]*var\(--honest', svg)
    honest = max(float(x) for x in re.findall(r"[ML] ([\d.]+)", outline))

    assert float(estimate) == pytest.approx(at["0.1"], abs=0.01)
    assert honest == pytest.approx(at["0.05"], abs=0.01)
    assert at["1"] - at["0.1"] == pytest.approx(at["0.1"] - at["0.01"], abs=0.01)


def test_dial_leaves_matplotlib_as_it_was() -> None:
    """Drawing changes no global setting, and obeys none."""
    import matplotlib as mpl

    plain = dial.draw_dial(consistent().noise_scale)
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True}):
        before = dict(mpl.rcParams)
        assert dial.draw_dial(consistent().noise_scale) == plain
        assert dict(mpl.rcParams) == before


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("palette", [0, 1], ids=["light", "dark"])
def test_page_has_readable_contrast(palette: int) -> None:
    """Every text colour stands out from its ground by 4.5 to 1 (WCAG AA)."""
    blocks = re.findall(r":root \{(.*?)\}", page_of(consistent()), flags=re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", blocks[palette]))
    grounds = {"page", "card", "code", "good-tint", "bad-tint", "open-tint"}
    pairs = [(ink, ground) for ink in ("ink", "muted") for ground in grounds]
    pairs += [(tone, f"{tone}-tint") for tone in ("good", "bad", "open")]

    for ink, ground in pairs:
        low, high = sorted((luminance(colours[ink]), luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def test_reports_need_no_model_library() -> None:
    """Reading, printing and drawing a report imports neither torch nor transformers."""
    code = f"""
import sys
for name in ("torch", "transformers", "vllm"):
    sys.modules[name] = None  # importing it now raises ImportError
sys.path[:0] = {[str(GOLDEN.parent), str(GOLDEN.parents[1] / "support")]!r}
import test_report as t
assert "matplotlib" not in sys.modules and "jinja2" not in sys.modules
assert t.report_from_json(t.report_to_json(t.consistent())) == t.consistent()
assert t.terminal_of(t.consistent()) and t.page_of(t.consistent())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def write_golden() -> None:
    """Write the golden files anew, after a change that is meant; look at the difference."""
    GOLDEN.mkdir(exist_ok=True)
    for name, report in SAMPLES.items():
        page = without_picture(page_of(report))
        (GOLDEN / f"page_{name}.html").write_text(page, encoding="utf-8")
        (GOLDEN / f"terminal_{name}.txt").write_text(terminal_of(report), encoding="utf-8")


if __name__ == "__main__":
    write_golden()


# -- a prompt under two renderings -------------------------------------------------------------

PROMPTS = {
    "probe_id": "t01",
    "name": "no-template",
    "published": "<|im_start|>user\n<b>Hi</b>\u202e<|im_end|>\n",
    "served": "<b>Hi</b>\u202e",
}


def test_the_page_shows_a_prompt_as_published_and_as_served() -> None:
    """Control tokens by name, line ends visible, nothing of it markup."""
    page = page_of(SAMPLES["inconsistent"], prompts=PROMPTS)

    assert "− &lt;|im_start|&gt;user⏎" in page
    assert "+ &lt;b&gt;Hi&lt;/b&gt;\\u202e" in page
    assert "as published and as served" not in page_of(SAMPLES["inconsistent"])


def test_prompts_are_compared_line_by_line() -> None:
    """What both have is marked by neither sign."""
    assert wording.diff_prompts("a\nb\n", "a\nc\n") == [(" ", "a⏎"), ("-", "b⏎"), ("+", "c⏎")]
    assert wording.diff_prompts("a", "a") == [(" ", "a")]


def test_a_template_fault_is_a_best_name_and_no_departure() -> None:
    """It stands beside the cause, above the table."""
    found = finding("template", "detected", "bos-doubled", 30.0)
    report = dataclasses.replace(SAMPLES["inconsistent"], findings=(found,))

    assert causes(report) == (found,)
    assert departures(report) == ()
    assert "bos-doubled" in terminal_of(report)


# -- a part of the replies ---------------------------------------------------------------------


def routed() -> Report:
    """The inconsistent sample, with four of ten replies from something else."""
    chances = (0.01, 0.99, 0.02, 1.0, 0.0, 0.6, 0.03, 0.51, 0.49, 0.0)
    share = Substitution(
        suspect="unknown", share=0.4, lower=0.1, upper=0.75, level=0.95,
        replies=tuple((f"p{n:04}", chance) for n, chance in enumerate(chances)),
    )  # fmt: skip
    part = finding("substitution", "detected", "a part of the replies", 12.5, detail="about 40 %")
    before = SAMPLES["inconsistent"]
    return dataclasses.replace(before, findings=(*before.findings, part), substitution=share)


def test_a_share_survives_json() -> None:
    """Every value, the replies among them."""
    assert report_from_json(report_to_json(routed())) == routed()


def test_the_terminal_says_the_share_and_which_replies() -> None:
    """With its interval; a handful of names at most."""
    lines = " ".join(terminal_of(routed()).split())
    many = tuple((f"p{n:04}", 0.9) for n in range(20))
    assert routed().substitution is not None
    crowd = dataclasses.replace(
        routed(), substitution=dataclasses.replace(routed().substitution, replies=many)
    )

    assert "Share about 40 % (95 % interval 10 % to 75 %) of the replies from something" in lines
    assert "Which p0001, p0003, p0005, p0007" in lines
    assert "p0007 and 12 more" in " ".join(terminal_of(crowd).split())


def test_the_page_shows_which_replies_belong_to_what() -> None:
    """A strip with a mark for each reply, and a table; the strip is told in words too."""
    page = page_of(routed())
    outline = Outline(page)
    labels = [value for _, key, value in outline.attributes if key == "aria-label"]

    assert outline.open == []
    assert "About 40 % (95 % interval 10 % to 75 %)" in outline.text
    assert "4 of 10 replies fit something else better." in labels
    assert page.count('<span class="other"') == 4
    assert page.count('<span class="own"') == 6
    assert outline.tags.count("table") == outline.tags.count("caption")


def test_a_share_is_not_shown_where_one_cause_explains_everything() -> None:
    """It is kept in the file alone, also where the policy bounds a share."""
    before = SAMPLES["inconsistent"]
    bounded = finding("routing", "detected", "5 % of requests to another model", 9.0)
    for findings in (before.findings, (*before.findings, bounded)):
        bare = dataclasses.replace(before, findings=findings)
        whole = dataclasses.replace(bare, substitution=routed().substitution)

        assert terminal_of(whole) == terminal_of(bare)
        assert page_of(whole) == page_of(bare)


def test_a_share_that_the_policy_bounds_is_shown_with_the_verdict() -> None:
    """An honest host under such a policy: its upper bound, and no reply that fits otherwise."""
    before = SAMPLES["consistent"]
    share = Substitution(
        suspect="unknown", share=0.0, lower=0.0, upper=0.03, level=0.95,
        replies=tuple((f"p{n:04}", 0.0) for n in range(3)),
    )  # fmt: skip
    bounded = finding("routing", "excluded", "5 % of requests to another model", -9.0)
    report = dataclasses.replace(before, findings=(*before.findings, bounded), substitution=share)

    assert "about 0 % (95 % interval 0 % to 3 %)" in " ".join(terminal_of(report).split())
    assert "Which" not in terminal_of(report)
    assert "0 of 3 replies fit something else better." in page_of(report)
