"""Prompts that a host shows: asked for, compared, told; and never the ground of a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes_engine import FakeTokenizer
from fakes_host import Answer, Asked, FakeHost, chat, error
from simulate import decide, make_plan, replies, simulate_row

from verifier.checks.template.shown_prompts import (
    PROBES,
    Shown,
    ShownPrompt,
    ask_for_prompts,
    read_shown,
)
from verifier.errors import ConfigError
from verifier.evidence.ledger import Ledger
from verifier.files.run_folder import SHOWN, SHOWN_EXCHANGES, read_lines, write_json
from verifier.host.budget import Ceiling, Purse
from verifier.host.endpoint import Endpoint
from verifier.records import REFERENCE, Finding, Message, Outcome, Probe
from verifier.reference.renderings.catalogue import catalogue, render_probe

ENTRIES = catalogue()
TOKENIZER = FakeTokenizer()
SEVERAL = tuple(
    Probe(
        id=f"c{n}", kind="template", max_tokens=16,
        messages=(
            Message(role="system", content="Be brief."),
            Message(role="user", content=f"Question {n}?"),
        ),
    )
    for n in range(6)
)  # fmt: skip


def shows(name: str, *, key: str, ask: str) -> Callable[[Asked], Any]:
    """A host that renders like `name` and shows it under `key` to who sends the field `ask`."""

    def answer(asked: Asked) -> Any:
        found = asked.json
        if ask not in found:
            return chat()
        probe = next(p for p in SEVERAL if p.messages[-1].content == asked.prompt)
        made = render_probe(ENTRIES[name], probe, TOKENIZER)
        assert made is not None
        value: Any = list(made.ids) if key in ("prompt_token_ids", "tokens") else made.text
        return chat() | {key: [{"text": value}] if key == "prompt" else value}

    return answer


def make_purse(tokens: int = 1000) -> Purse:
    return Purse(Ceiling(completion_tokens=tokens, usd=None, prices=None))


def ask(url: str, run: Path, **settings: Any) -> Shown:
    endpoint = Endpoint(base_url=url, model="m", stream=True)
    found = ask_for_prompts(
        run, endpoint, SEVERAL, entries=ENTRIES, renderer=TOKENIZER,
        **{"purse": make_purse()} | settings,
    )  # fmt: skip
    assert found is not None
    return found


def judge(shown: Shown) -> Finding:
    """What is said of prompts that differ, beside replies that say nothing."""
    report = decide(make_plan(), Ledger(rows=()), shown=shown)
    (found,) = [finding for finding in report.findings if finding.aspect == "shown prompt"]
    return found


@pytest.mark.parametrize(
    ("key", "field", "requests"),
    [
        ("prompt_token_ids", "return_token_ids", PROBES),
        ("prompt_text", "return_prompt_text", PROBES),
        ("prompt", "echo", PROBES + 1),
        ("tokens", "add_generation_prompt", PROBES + 2),
    ],
)
def test_a_shown_prompt_names_the_fault(
    tmp_path: Path, key: str, field: str, requests: int
) -> None:
    """In each way that hosts know; the way that works is kept to, and nothing is asked twice."""
    with FakeHost(shows("system-ignored", key=key, ask=field)) as host:
        found = ask(host.url, tmp_path)
        again = ask(host.url, tmp_path)
        paths = [asked.path for asked in host.asked]

    assert found.differs
    assert found.faults == ("system-ignored",)
    assert len(found.prompts) == PROBES
    assert found.requests == len(paths) == requests
    assert found == again == read_shown(tmp_path)
    assert len(list(read_lines(tmp_path / SHOWN_EXCHANGES))) == requests
    assert ("/tokenize" in paths) == (key == "tokens")
    finding = judge(found)
    assert finding.name == "system-ignored"
    assert "Advice: pass the system message on" in finding.detail
    assert "c0 differs from token 1 on" in finding.detail
    assert "shown '<turn>user" in finding.detail


def test_a_prompt_as_published_names_nothing(tmp_path: Path) -> None:
    """It agrees, and that is all."""
    with FakeHost(shows(REFERENCE, key="prompt_token_ids", ask="return_token_ids")) as host:
        found = ask(host.url, tmp_path)

    assert len(found.prompts) == PROBES
    assert not found.differs
    assert found.faults == ()


@pytest.mark.parametrize(
    "answer",
    [
        error(400, "unknown field"),
        chat(),
        chat() | {"prompt_token_ids": []},
        chat() | {"prompt_token_ids": [1, True, -4]},
        chat() | {"prompt_token_ids": "12"},
        chat() | {"prompt": [], "tokens": {}},
        Answer(body=b"[" * 100_000),
        Answer(body=b"nonsense"),
    ],
)
def test_a_host_that_shows_none_was_asked_in_each_way_once(
    tmp_path: Path, answer: Answer | dict[str, Any]
) -> None:
    """Refused, ignored or nonsense: no information."""
    with FakeHost(lambda _asked: answer) as host:
        found = ask(host.url, tmp_path)

    assert found.prompts == ()
    assert found.requests == 3
    assert not found.differs


def test_strange_ids_are_a_prompt_of_no_known_rendering(tmp_path: Path) -> None:
    """Ids beyond the vocabulary too."""
    with FakeHost(lambda _asked: chat() | {"prompt_token_ids": [2**30, 5]}) as host:
        found = ask(host.url, tmp_path)

    assert found.differs
    assert found.faults == ()
    assert judge(found).name == "a prompt of no known rendering"


def test_a_folder_with_another_record_is_refused(tmp_path: Path) -> None:
    """With what to do."""
    write_json(tmp_path / SHOWN, {"prompts": [{"probe_id": 3}]})

    with pytest.raises(ConfigError, match="remove it and audit again"):
        read_shown(tmp_path)


def simulate(scale: float) -> tuple[Ledger, dict[str, Outcome]]:
    """40 replies of a host with noise of this scale."""
    rng = np.random.default_rng(4)
    rows = [simulate_row(rng, f"p{n}", scale=scale) for n in range(40)]
    return Ledger(rows=tuple(rows)), replies(rows)


def shown_as(*names: str) -> Shown:
    prompt = ShownPrompt(
        probe_id="c0", names=names, differs_at=3, published="<turn>system", shown="<turn>user"
    )
    return Shown(prompts=(prompt,), requests=1, prompt_tokens=30, completion_tokens=1)


@pytest.mark.parametrize("scale", [0.02, 0.8])
def test_what_is_shown_decides_no_verdict(scale: float) -> None:
    """Honest replies stay honest; replies that differ get the name that the prompts show."""
    plan, ledger, outcomes = make_plan(), *simulate(scale)
    before = decide(plan, ledger, outcomes=outcomes)
    after = decide(plan, ledger, outcomes=outcomes, shown=shown_as("system-ignored"))

    assert after.decision == before.decision
    assert after.decision == ("consistent" if scale == 0.02 else "inconsistent")
    named = [f.name for f in after.findings if f.aspect == "template"]
    assert named == (["system-ignored"] if after.decision == "inconsistent" else [])
    assert [f.name for f in after.findings if f.aspect == "shown prompt"] == ["system-ignored"]
    assert after.usage.requests == before.usage.requests + 1
    assert after.usage.prompt_tokens == before.usage.prompt_tokens + 30


def test_a_published_prompt_is_a_note_that_acquits_nothing() -> None:
    """Since it can be forged."""
    plan, ledger, outcomes = make_plan(), *simulate(0.8)
    shown = replace(shown_as(REFERENCE), prompts=shown_as(REFERENCE).prompts * 4)
    report = decide(plan, ledger, outcomes=outcomes, shown=shown)

    assert report.decision == "inconsistent"
    assert not any(f.aspect == "shown prompt" for f in report.findings)
    assert any("4 prompts that the endpoint shows are rendered as published" in n
               for n in report.notes)  # fmt: skip
    assert json.loads(json.dumps(asdict(shown)))["requests"] == 1


def test_no_prompt_is_asked_for_that_the_budget_does_not_pay_for(tmp_path: Path) -> None:
    """Each answer here costs two tokens, of three: the second would cross them."""
    with FakeHost(shows("reference", key="prompt_text", ask="return_prompt_text")) as host:
        found = ask(host.url, tmp_path, purse=make_purse(3), max_tokens=2)
        asked = len(host.asked)

    assert (asked, found.requests, len(found.prompts)) == (1, 1, 1)
    assert host.asked[0].json["max_tokens"] == 2


def test_a_stop_ends_it_and_the_rest_is_asked_when_the_audit_goes_on(tmp_path: Path) -> None:
    """Nothing more is sent; what was sent before is counted all the same."""
    once = tmp_path / SHOWN_EXCHANGES
    endpoint = Endpoint(base_url="http://127.0.0.1:1/v1", model="m")
    with FakeHost(shows("reference", key="prompt_text", ask="return_prompt_text")) as host:
        stopped = ask_for_prompts(
            tmp_path, replace(endpoint, base_url=host.url), SEVERAL, entries=ENTRIES,
            renderer=TOKENIZER, purse=make_purse(), stopped=once.exists,
        )  # fmt: skip
        sent = len(host.asked)
        found = ask(host.url, tmp_path)

    assert stopped is None
    assert sent == 1
    assert found.requests == 1 + PROBES
