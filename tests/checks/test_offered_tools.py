"""Questions with tools: when they are asked, and what shows in them alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from audits import CARD, QUIET, configure, host, make_engine, requests_of, run, write_card
from fakes_engine import FakeTokenizer

from verifier.audit import audit
from verifier.checks import offered_tools
from verifier.config import RunFile
from verifier.errors import ConfigError
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.plan import make_plan
from verifier.probes import load_pool
from verifier.records import Prompt, Report
from verifier.reference.calibrations import load_calibration
from verifier.reference.cards import Card, load_card
from verifier.reference.loaded import Reference
from verifier.reference.renderings.catalogue import catalogue, served


class ToolTokenizer(FakeTokenizer):
    """The fake tokenizer with a template that shows tools."""

    @property
    def template(self) -> str:
        return "{{ tools | tojson }}"

    def render_text(self, prompt: Prompt) -> str:
        text = super().render_text(prompt)
        shown = json.dumps(list(prompt.tools), ensure_ascii=False)
        return f"<turn>tools\n{shown}<eos>{text}" if prompt.tools else text


@contextmanager
def tool_host(template: str = "reference") -> Iterator[str]:
    """A host whose template shows tools, rendered as an entry of the catalogue says."""
    app = create_app(Host(
        engine=make_engine(), tokenizer=ToolTokenizer(), model="tiny", window_s=0.001,
        rendering=served(template, catalogue()),
    ))  # fmt: skip
    with running(app) as url:
        yield url


def audited(url: str, folder: Path, **changes: Any) -> Report:
    config = configure(url, write_card(folder, takes_tools=True), folder / "run", **changes)
    reference = Reference(engine=make_engine(), tokenizer=ToolTokenizer())
    return audit(config, api_key=None, load_reference=lambda: reference, show=QUIET)


# -- level ---------------------------------------------------------------------------------------


def test_an_honest_host_of_tools_is_consistent(tmp_path: Path) -> None:
    """The check has no evidence of its own: its questions are as honest as all others."""
    with tool_host() as url:
        report = audited(url, tmp_path)

    assert report.decision == "consistent"
    asked = [bool(body.get("tools")) for body in requests_of(tmp_path / "run")]
    assert 2 <= sum(asked) <= len(asked) / 4


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["compact", "compact-sorted", "html"])
def test_a_host_that_spells_tools_otherwise_is_told_which_way(name: str, tmp_path: Path) -> None:
    """All else is as published: only questions with tools can show it."""
    with tool_host(f"tool-json-{name}") as url:
        report = audited(url, tmp_path)

    assert report.decision == "inconsistent"
    (found,) = [f for f in report.findings if f.aspect == "template"]
    assert f"tool-json-{name}" in found.name.split(" or ")


def test_without_a_template_that_shows_tools_none_is_offered(card: Path, tmp_path: Path) -> None:
    with host() as url:
        report = run(configure(url, card, tmp_path / "run"))

    assert report.decision == "consistent"
    assert not any("tools" in body for body in requests_of(tmp_path / "run"))


# -- known answer --------------------------------------------------------------------------------


def planned(folder: Path, *, takes: bool | None, **changes: Any) -> bool:
    config = configure("http://127.0.0.1:1/v1", write_card(folder), folder / "run", **changes)
    return bool(plan_of(config, Card.model_validate(CARD | {"takes_tools": takes})))


def plan_of(config: RunFile, card: Card) -> bool:
    found: bool = offered_tools.plan(config, card, None).fields["offers_tools"]
    return found


@pytest.mark.parametrize(
    ("takes", "asked", "offers"),
    [
        (True, None, True), (True, False, False), (None, None, False), (None, True, True),
        (False, None, False), (False, False, False),
    ],
)  # fmt: skip
def test_tools_are_offered_where_the_template_shows_them(
    takes: bool | None, asked: bool | None, offers: bool, tmp_path: Path
) -> None:
    """As the run file says; else as the card does, and not where nobody has looked."""
    assert planned(tmp_path, takes=takes, tools=asked) is offers


def test_tools_that_cannot_be_carried_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.tools: the dialect messages cannot carry them"):
        planned(tmp_path, takes=True, tools=True, endpoint={"dialect": "messages"})
    with pytest.raises(ConfigError, match=r"audit\.tools: the card's template shows no tools"):
        planned(tmp_path, takes=False, tools=True)


def test_one_question_of_five_offers_tools_and_the_words_stay(tmp_path: Path) -> None:
    """Known answer: the same questions as without, and one in each five with tools."""
    path = write_card(tmp_path, takes_tools=True)
    card = load_card(str(path))
    found = {}
    for tools in (True, False):
        config = configure("http://127.0.0.1:1/v1", path, tmp_path / "run", tools=tools)
        _, probes, _ = make_plan(config, card, load_calibration(str(path), card), load_pool())
        found[tools] = probes
    with_tools = [bool(probe.tools) for probe in found[True]]

    assert [p.messages for p in found[True]] == [p.messages for p in found[False]]
    assert not any(probe.tools for probe in found[False])
    assert all(sum(with_tools[n : n + 5]) == 1 for n in range(0, len(with_tools) - 4, 5))


# -- one audit -----------------------------------------------------------------------------------


def test_a_host_that_refuses_tools_alone_is_said_to(tmp_path: Path) -> None:
    """Its other replies are judged; nothing is said where everything fails."""
    app = create_app(Host(
        engine=make_engine(), tokenizer=ToolTokenizer(), model="tiny", window_s=0.001,
    ))  # fmt: skip

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if json.loads(body).get("tools"):
            await send({"type": "http.response.start", "status": 400,
                        "headers": [(b"content-type", b"application/json")]})  # fmt: skip
            told = b'{"error": {"message": "tool choice auto is not enabled"}}'
            await send({"type": "http.response.body", "body": told})
            return

        async def again() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        await app(scope, again, send)

    with running(refusing) as url:
        report = audited(url, tmp_path)

    assert report.decision == "consistent"
    (note,) = [note for note in report.notes if "questions that offer tools failed" in note]
    assert "tool choice auto is not enabled" in note
