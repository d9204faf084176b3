"""The collecting step against scripted hosts: what is asked, what is kept, when it stops."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from fakes_host import Answer, Asked, FakeHost, chat, error

from verifier.config import Prices
from verifier.errors import ConfigError, EndpointError
from verifier.files import run_folder as folder_module
from verifier.files.run_folder import EXCHANGES, SENT, append_line
from verifier.host import collect as collect_module
from verifier.host.budget import Ceiling
from verifier.host.collect import (
    collect,
    read_attempts,
    read_outcomes,
    read_unanswered,
)
from verifier.host.endpoint import Endpoint
from verifier.host.exchange import Problem, parse
from verifier.records import Failure, Message, NotJudged, Outcome, Probe, Reply

KEY = "sk-test-0123456789abcdef"
Script = Callable[[Asked], "Answer | dict[str, Any]"]

#: What child processes need of the tests: this module, and what it imports.
IMPORTED = os.pathsep.join(
    str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1] / "support")
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def probes(count: int) -> list[Probe]:
    """Probes p0, p1, ... whose prompts are their names."""
    return [
        Probe(
            id=f"p{n}",
            kind="open",
            messages=(Message(role="user", content=f"p{n}"),),
            max_tokens=8,
        )
        for n in range(count)
    ]


def endpoint(url: str, **changes: Any) -> Endpoint:
    given = {"base_url": url, "model": "m", "api_key": KEY, "api_key_env": "HOST_KEY"}
    return Endpoint(**(given | {"top_logprobs": 0, "concurrency": 1} | changes))


def run(
    folder: Path, host: FakeHost, count: int = 1, **changes: Any
) -> tuple[dict[str, Outcome], list[float]]:
    """Collect `count` probes; returns the outcomes and how long each retry would have waited."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    settings = endpoint(host.url, **changes)
    rng = random.Random(1)  # noqa: S311 - jitter
    collect(folder, settings, probes(count), sleep=sleep, rng=rng)
    return read_outcomes(folder, max_attempts=settings.max_attempts), waits


def then(*answers: Answer | dict[str, Any]) -> Script:
    """A script that gives these answers in turn, and the last one from then on."""
    return lambda asked: answers[min(asked.index, len(answers) - 1)]


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EXCHANGES).read_text().splitlines()]


def test_every_probe_is_asked_once_and_kept(tmp_path: Path) -> None:
    """Each probe has a reply, each exchange a line, and progress counts up to the end."""
    seen: list[tuple[int, int]] = []
    with FakeHost(lambda asked: chat(f"re {asked.prompt}")) as host:
        collect(
            tmp_path,
            endpoint(host.url, concurrency=4),
            probes(10),
            progress=lambda done, total: seen.append((done, total)),
        )

        assert Counter(a.prompt for a in host.asked) == Counter(p.id for p in probes(10))
    outcomes = read_outcomes(tmp_path, max_attempts=4)
    assert {i: o.text for i, o in outcomes.items() if isinstance(o, Reply)} == {
        f"p{n}": f"re p{n}" for n in range(10)
    }
    assert [attempt.number for attempt in read_attempts(tmp_path)] == [1] * 10
    assert seen == [(n, 10) for n in range(11)]


def test_a_second_call_asks_nothing(tmp_path: Path) -> None:
    """What has an outcome is not asked again, and nothing is written."""
    with FakeHost(then(chat())) as host:
        run(tmp_path, host, 3)
        before = everything_in(tmp_path)
        run(tmp_path, host, 3)

        assert len(host.asked) == 3
    assert everything_in(tmp_path) == before


def test_later_probes_join_the_same_folder(tmp_path: Path) -> None:
    """Small batches add up: only the new probes are asked."""
    with FakeHost(then(chat())) as host:
        run(tmp_path, host, 2)
        outcomes, _waits = run(tmp_path, host, 5)

        assert [a.prompt for a in host.asked] == ["p0", "p1", "p2", "p3", "p4"]
    assert list(outcomes) == ["p0", "p1", "p2", "p3", "p4"]


def test_outcomes_come_in_the_order_of_first_attempts(tmp_path: Path) -> None:
    """A probe that needed retries keeps its place."""
    with FakeHost(then(error(503), chat())) as host:
        collect(tmp_path, endpoint(host.url, max_attempts=1), probes(2))
    found = read_outcomes(tmp_path, max_attempts=1)

    assert list(found) == ["p0", "p1"]
    assert isinstance(found["p0"], Failure)


def test_an_empty_folder_has_no_outcomes(tmp_path: Path) -> None:
    """Before anything was asked there is nothing, and no error."""
    assert read_attempts(tmp_path) == []
    assert read_outcomes(tmp_path, max_attempts=4) == {}


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_passing_troubles_are_tried_again(tmp_path: Path, status: int) -> None:
    """The next attempt's answer counts, and both attempts are kept."""
    with FakeHost(then(error(status), chat())) as host:
        outcomes, waits = run(tmp_path, host)

    assert isinstance(outcomes["p0"], Reply)
    assert [(a.number, a.status) for a in read_attempts(tmp_path)] == [(1, status), (2, 200)]
    assert len(waits) == 1


def test_a_broken_line_is_tried_again(tmp_path: Path) -> None:
    """A transport error is an attempt like any other."""
    with FakeHost(then(Answer(raw=b""), chat())) as host:
        outcomes, _waits = run(tmp_path, host)

    assert isinstance(outcomes["p0"], Reply)
    assert read_attempts(tmp_path)[0].status is None


def test_an_error_object_with_status_200_is_tried_again(tmp_path: Path) -> None:
    """A router's 200 with a passing error counts as that error."""
    limited = Answer(body={"error": {"code": 429, "message": "slow"}})
    with FakeHost(then(limited, chat())) as host:
        outcomes, waits = run(tmp_path, host)

    assert isinstance(outcomes["p0"], Reply)
    assert 2.5 <= waits[0] <= 5  # the first wait at a rate limit is 5 s, less jitter


def test_retries_end(tmp_path: Path) -> None:
    """After `max_attempts` the probe is a Failure that says how often it was tried."""
    with FakeHost(then(error(503, "overloaded"))) as host:
        outcomes, waits = run(tmp_path, host, max_attempts=3)

        assert len(host.asked) == 3
    assert outcomes == {
        "p0": Failure(probe_id="p0", status=503, reason="HTTP 503: overloaded", attempts=3)
    }
    assert len(waits) == 2


def test_waits_grow_with_jitter_and_have_a_cap(tmp_path: Path) -> None:
    """Without a word from the host: 1, 2, 4 ... s, at most 60 s, each times 0.5 to 1."""
    with FakeHost(then(error(500))) as host:
        _outcomes, waits = run(tmp_path, host, max_attempts=10)

    longest = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(top / 2 <= wait <= top for wait, top in zip(waits, longest, strict=True))
    assert len({wait / top for wait, top in zip(waits, longest, strict=True)}) > 1


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"Retry-After": "7"}, 7, 7),
        ({"Retry-After": "0.25"}, 0.25, 0.25),
        ({"retry-after-ms": "1250"}, 1.25, 1.25),
        ({"Retry-After": "86400"}, 60, 60),
        ({"Retry-After": formatdate(4_000_000_000, usegmt=True)}, 60, 60),
        ({"Retry-After": formatdate(1_000_000_000, usegmt=True)}, 2.5, 5),
        ({"Retry-After": "a while"}, 2.5, 5),
    ],
)
def test_the_hosts_wish_to_wait_is_honoured(
    tmp_path: Path, headers: dict[str, str], low: float, high: float
) -> None:
    """Every form of Retry-After after 429; nonsense falls back to our own wait."""
    limited = Answer(status=429, body={"error": {"message": "slow"}}, headers=headers)
    with FakeHost(then(limited, chat())) as host:
        _outcomes, waits = run(tmp_path, host)

    assert len(waits) == 1
    assert low <= waits[0] <= high


def test_failures_do_not_stop_the_rest(tmp_path: Path) -> None:
    """A probe that fails is recorded and counted, and the others are asked."""

    def script(asked: Asked) -> Answer | dict[str, Any]:
        return {"p1": error(400, "too odd"), "p2": Answer(body=b"<html>")}.get(asked.prompt, chat())

    with FakeHost(script) as host:
        outcomes, _waits = run(tmp_path, host, 5)

    kinds = {probe_id: type(outcome).__name__ for probe_id, outcome in outcomes.items()}
    assert kinds == {"p0": "Reply", "p1": "Failure", "p2": "Failure", "p3": "Reply", "p4": "Reply"}
    failure = outcomes["p1"]
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.attempts) == ("HTTP 400: too odd", 1)


def test_an_answer_that_cannot_be_judged_is_final(tmp_path: Path) -> None:
    """An empty answer is an answer: asking again would be picking replies."""
    with FakeHost(then(chat(""))) as host:
        outcomes, _waits = run(tmp_path, host)

        assert len(host.asked) == 1
    assert isinstance(outcomes["p0"], NotJudged)


def test_a_redirect_is_a_failure_that_names_the_other_host(tmp_path: Path) -> None:
    """The key does not travel, and the reason says where it would have gone."""
    with FakeHost(then(chat())) as other:
        elsewhere = Answer(
            status=308, headers={"Location": other.url.replace("127.0.0.1", "localhost")}
        )
        with FakeHost(then(elsewhere)) as host:
            outcomes, _waits = run(tmp_path, host)

        assert other.asked == []
    failure = outcomes["p0"]
    assert isinstance(failure, Failure)
    assert failure.reason == "redirect to localhost, not followed"
    assert failure.attempts == 1


def test_an_oversize_body_is_a_failure(tmp_path: Path) -> None:
    """A body past the cap is never kept; it is asked for again as any broken transfer is."""
    with FakeHost(then(Answer(body=b" " * 200_000))) as host:
        outcomes, _waits = run(tmp_path, host, max_response_bytes=10_000, max_attempts=2)

        assert len(host.asked) == 2
    failure = outcomes["p0"]
    assert isinstance(failure, Failure)
    assert failure.reason == "response larger than 10000 bytes"
    assert len(everything_in(tmp_path)) < 10_000


def test_a_dead_host_ends_the_collection_early(tmp_path: Path) -> None:
    """After 20 failed probes in a row the rest is left unasked, with the Failures kept."""
    with FakeHost(then(chat(), error(500))) as host:
        outcomes, _waits = run(tmp_path, host, 40, max_attempts=2)

        assert len({a.prompt for a in host.asked}) == 21
    assert Counter(type(o).__name__ for o in outcomes.values()) == {"Reply": 1, "Failure": 20}


def test_a_dead_host_is_remembered_between_calls(tmp_path: Path) -> None:
    """Batches smaller than 20 stop too: the row of failures is read from the folder."""
    with FakeHost(then(error(500))) as host:
        run(tmp_path, host, 19, max_attempts=1)
        outcomes, _waits = run(tmp_path, host, 40, max_attempts=1)

    assert len(outcomes) == 20


def test_a_single_answer_breaks_the_row(tmp_path: Path) -> None:
    """A host that fails 19 of 20 is asked to the end."""

    def script(asked: Asked) -> Answer | dict[str, Any]:
        return chat() if asked.index % 20 == 19 else error(500)

    with FakeHost(script) as host:
        outcomes, _waits = run(tmp_path, host, 45, max_attempts=1)

    assert len(outcomes) == 45


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_at_once(tmp_path: Path, status: int) -> None:
    """One line with the host, its words and the variable; one request, kept."""
    with FakeHost(then(error(status, "Invalid API key"))) as host:
        with pytest.raises(EndpointError) as caught:
            run(tmp_path, host, 5)
        said = str(caught.value)

        assert len(host.asked) == 1
        assert host.url.split("/")[2] in said
    assert "Invalid API key" in said
    assert "HOST_KEY" in said
    assert "\n" not in said
    assert len(lines(tmp_path)) == 1


def test_a_host_that_wants_a_key_and_got_none_says_so(tmp_path: Path) -> None:
    """Without a key the advice is to give one, not to change one."""
    with (
        FakeHost(then(error(401))) as host,
        pytest.raises(EndpointError, match=r"wants an API key .* HOST_KEY"),
    ):
        run(tmp_path, host, api_key=None)


def test_a_mended_key_goes_on_with_nothing_held_against_the_host(tmp_path: Path) -> None:
    """A refused key is the operator's: the probe is asked again, the attempt is kept."""
    with FakeHost(then(chat(), error(401), chat())) as host:
        with pytest.raises(EndpointError):
            run(tmp_path, host, 3)
        outcomes, _waits = run(tmp_path, host, 3)

    assert [type(o).__name__ for o in outcomes.values()] == ["Reply"] * 3
    assert [(a.probe_id, a.number, a.status) for a in read_attempts(tmp_path)] == [
        ("p0", 1, 200),
        ("p1", 1, 401),
        ("p1", 2, 200),
        ("p2", 1, 200),
    ]


def test_a_forbidden_probe_after_an_answer_is_a_failure(tmp_path: Path) -> None:
    """Once the key has worked, 403 is about the probe: moderation, say."""
    with FakeHost(then(chat(), error(403, "flagged"), chat())) as host:
        outcomes, _waits = run(tmp_path, host, 3)

    assert [type(o).__name__ for o in outcomes.values()] == ["Reply", "Failure", "Reply"]


@pytest.mark.parametrize(
    "answer", [error(404), error(400, "x is not a valid model ID")], ids=["404", "400"]
)
def test_an_unknown_model_names_those_there_are(tmp_path: Path, answer: Answer) -> None:
    """The message holds the model asked for and up to eight that the host lists."""
    listing = Answer(body={"data": [{"id": f"model-{n}\x1b[2J"} for n in range(10)]})
    with FakeHost(then(answer), models=listing) as host:
        with pytest.raises(EndpointError) as caught:
            run(tmp_path, host, 3, model="absent")

        assert len(host.asked) == 1
    said = str(caught.value)
    assert "'absent'" in said
    assert "model-0[2J, " in said
    assert "model-7" in said
    assert "model-8" not in said
    assert "and 2 more" in said
    assert said.isprintable()


def test_an_unknown_model_without_a_list_points_at_the_address(tmp_path: Path) -> None:
    """A wrong path answers 404 too, so the message shows the base URL."""
    with FakeHost(then(error(404))) as host:
        with pytest.raises(EndpointError) as caught:
            run(tmp_path, host)

        assert host.url in str(caught.value)


def test_a_model_that_goes_away_is_the_hosts(tmp_path: Path) -> None:
    """After an answer, 404 is a failure like others, and collecting goes on."""
    with FakeHost(then(chat(), error(404), chat())) as host:
        outcomes, _waits = run(tmp_path, host, 3)

    assert [type(o).__name__ for o in outcomes.values()] == ["Reply", "Failure", "Reply"]


def test_an_unreachable_host_says_so_after_the_retries(tmp_path: Path) -> None:
    """One line with the address and the cause; the attempts are kept but settle nothing."""
    with FakeHost(then(chat())) as host:
        pass  # closed: its port refuses
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with pytest.raises(EndpointError, match="cannot reach 127") as caught:
        collect(tmp_path, endpoint(host.url, max_attempts=3), probes(5), sleep=sleep)

    assert "refused" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [a.number for a in read_attempts(tmp_path)] == [1, 2, 3]
    assert len(waits) == 2
    assert read_outcomes(tmp_path, max_attempts=3) == {}


def test_no_tls_says_so(tmp_path: Path) -> None:
    """https against a plain port is an operator's mistake with its own cause."""
    with FakeHost(then(chat())) as host, pytest.raises(EndpointError, match=r"cannot reach.*SSL"):
        run(tmp_path, host, base_url=host.url.replace("http:", "https:"), max_attempts=1)


def test_a_host_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    """What failed before the host was ever reached counts for nothing afterwards."""
    with FakeHost(then(chat())) as gone:
        pass
    with pytest.raises(EndpointError):
        run(tmp_path, gone, 2, max_attempts=2)
    with FakeHost(then(error(503), chat())) as host:
        outcomes, _waits = run(tmp_path, host, 2, max_attempts=2)

    assert [type(o).__name__ for o in outcomes.values()] == ["Reply"] * 2
    assert [(a.probe_id, a.number) for a in read_attempts(tmp_path)] == [
        ("p0", 1),
        ("p0", 2),
        ("p0", 3),
        ("p0", 4),
        ("p1", 1),
    ]


def test_a_host_that_goes_away_is_a_failure(tmp_path: Path) -> None:
    """A host that answered once has been reached: later silence is its own failure."""
    with FakeHost(then(chat(), Answer(raw=b""))) as host:
        outcomes, _waits = run(tmp_path, host, 3, max_attempts=2)

    failure = outcomes["p1"]
    assert isinstance(failure, Failure)
    assert (failure.status, failure.attempts) == (None, 2)


def test_nothing_but_refusals_quotes_the_host(tmp_path: Path) -> None:
    """Three probes refused in a row with no answer ever: the request must be at fault."""
    with FakeHost(then(error(413, "Too much for us"))) as host:
        with pytest.raises(EndpointError, match="Too much for us"):
            run(tmp_path, host, 10)

        assert len(host.asked) == 3
    assert len(read_outcomes(tmp_path, max_attempts=4)) == 3


def test_refusals_after_an_answer_are_failures(tmp_path: Path) -> None:
    """A host that has answered gets the benefit of the doubt."""
    with FakeHost(then(chat(), *[error(413)] * 4, chat())) as host:
        outcomes, _waits = run(tmp_path, host, 6)

    assert Counter(type(o).__name__ for o in outcomes.values()) == {"Failure": 4, "Reply": 2}


def refusing_logprobs(asked: Asked) -> Answer | dict[str, Any]:
    return error(400, "no logprobs") if "logprobs" in asked.json else chat()


def test_a_host_that_refuses_logprobs_is_asked_without(tmp_path: Path) -> None:
    """The refusal is kept, the probe is answered, and later ones ask without at once."""
    with FakeHost(refusing_logprobs) as host:
        outcomes, waits = run(tmp_path, host, 3, top_logprobs=5, max_attempts=1)

        assert ["logprobs" in a.json for a in host.asked] == [True, False, False, False]
    assert all(isinstance(outcome, Reply) for outcome in outcomes.values())
    assert [a.status for a in read_attempts(tmp_path)] == [400, 200, 200, 200]
    assert waits == []


def test_a_refusal_of_logprobs_is_remembered_between_calls(tmp_path: Path) -> None:
    """A resumed run reads it from the exchanges."""
    with FakeHost(refusing_logprobs) as host:
        run(tmp_path, host, 1, top_logprobs=5)
        run(tmp_path, host, 3, top_logprobs=5)

        assert ["logprobs" in a.json for a in host.asked] == [True, False, False, False]


def test_a_kill_between_refusal_and_second_question_resumes(tmp_path: Path) -> None:
    """The folder holds the refusal alone: the same probe is then asked without."""
    with FakeHost(refusing_logprobs) as host:
        run(tmp_path, host, 1, top_logprobs=5)
        exchanges = tmp_path / EXCHANGES
        exchanges.write_bytes(exchanges.read_bytes().splitlines(keepends=True)[0])
        assert read_outcomes(tmp_path, max_attempts=4) == {}
        outcomes, _waits = run(tmp_path, host, 1, top_logprobs=5)

        assert ["logprobs" in a.json for a in host.asked] == [True, False, False]
    assert isinstance(outcomes["p0"], Reply)


def test_a_probe_refused_both_ways_is_a_failure(tmp_path: Path) -> None:
    """When the request without them is refused too, log-probabilities were not the reason."""

    def script(asked: Asked) -> Answer | dict[str, Any]:
        return error(400, "too long") if asked.prompt == "p1" else chat()

    with FakeHost(script) as host:
        outcomes, _waits = run(tmp_path, host, 3, top_logprobs=5)

        assert ["logprobs" in a.json for a in host.asked] == [True, True, False, True]
    failure = outcomes["p1"]
    assert isinstance(failure, Failure)
    assert failure.attempts == 2


@pytest.mark.parametrize("bound", [1, 3])
def test_concurrency_is_used_and_respected(tmp_path: Path, bound: int) -> None:
    """As many probes as allowed are under way, and never more."""
    together = threading.Barrier(bound)

    def script(_asked: Asked) -> dict[str, Any]:
        together.wait(timeout=20)
        return chat()

    with FakeHost(script) as host:
        run(tmp_path, host, 9, concurrency=bound)

        assert host.busiest == bound


def test_too_many_requests_lowers_the_concurrency_for_a_while(tmp_path: Path) -> None:
    """After a burst of 429 fewer probes are under way; answers bring the old number back."""
    together, lock, never = threading.Barrier(4), threading.Lock(), threading.Event()
    under_way: list[int] = []
    busy = 0

    def script(asked: Asked) -> Answer | dict[str, Any]:
        nonlocal busy
        if asked.index < 4 or asked.index >= 24:
            together.wait(timeout=20)  # passes only with four at a time
            return error(429) if asked.index < 4 else chat()
        with lock:
            busy += 1
            under_way.append(busy)
        never.wait(0.02)  # a short stay, so that overlaps can be seen
        with lock:
            busy -= 1
        return chat()

    with FakeHost(script) as host:
        outcomes, _waits = run(tmp_path, host, 24, concurrency=4)

    assert [type(o).__name__ for o in outcomes.values()] == ["Reply"] * 24
    # the first four are the retries; the limit, 2 by then, is 4 again after six answers
    assert max(under_way[4:7]) < 4


def test_the_rate_holds_across_calls(tmp_path: Path) -> None:
    """Small batches, one call after the other, keep the spacing of 1,200 a minute."""
    moments: list[float] = []

    def script(_asked: Asked) -> dict[str, Any]:
        moments.append(time.monotonic())
        return chat()

    with FakeHost(script) as host:
        for count in (1, 2, 3):
            run(tmp_path, host, count, requests_per_minute=1_200)

    assert moments[2] - moments[0] >= 0.08  # 0.1, less what arrival may wobble


class CutError(Exception):
    """Stands for the end of the process."""


def test_a_run_cut_off_in_the_middle_resumes(tmp_path: Path) -> None:
    """With others under way, a cut loses and repeats nothing that had arrived."""

    def cut(done: int, _total: int) -> None:
        if done == 5:
            raise CutError

    with FakeHost(then(chat())) as host:
        with pytest.raises(CutError):
            collect(tmp_path, endpoint(host.url, concurrency=3), probes(12), progress=cut)
        kept = read_attempts(tmp_path)
        assert 5 <= len(kept) < 12
        outcomes, _waits = run(tmp_path, host, 12, concurrency=3)
        asked = Counter(a.prompt for a in host.asked)

    assert len(outcomes) == 12
    assert read_attempts(tmp_path)[: len(kept)] == kept
    assert all(asked[attempt.probe_id] == 1 for attempt in kept)
    assert len(read_attempts(tmp_path)) == 12


def test_attempts_count_on_across_a_cut(tmp_path: Path) -> None:
    """Tries made before the cut count: a resumed probe gets what is left of them."""

    async def cut(_seconds: float) -> None:
        raise CutError

    with FakeHost(then(error(503))) as host:
        with pytest.raises(CutError):
            collect(tmp_path, endpoint(host.url, max_attempts=3), probes(1), sleep=cut)
        outcomes, _waits = run(tmp_path, host, 1, max_attempts=3)

        assert len(host.asked) == 3
    assert [a.number for a in read_attempts(tmp_path)] == [1, 2, 3]
    assert isinstance(outcomes["p0"], Failure)


def test_a_torn_last_line_is_asked_again(tmp_path: Path) -> None:
    """A line that a kill cut short had not arrived; the lines before it stay."""
    with FakeHost(then(chat())) as host:
        run(tmp_path, host, 3)
        exchanges = tmp_path / EXCHANGES
        exchanges.write_bytes(exchanges.read_bytes()[:-40])
        assert list(read_outcomes(tmp_path, max_attempts=4)) == ["p0", "p1"]
        outcomes, _waits = run(tmp_path, host, 3)

        assert [a.prompt for a in host.asked] == ["p0", "p1", "p2", "p2"]
    assert list(outcomes) == ["p0", "p1", "p2"]
    assert len(lines(tmp_path)) == 3


def test_a_killed_process_loses_nothing_that_had_arrived(tmp_path: Path) -> None:
    """SIGKILL while the sixth request is under way leaves five whole lines."""
    reached = threading.Event()

    def script(asked: Asked) -> dict[str, Any]:
        if asked.index == 5:
            reached.set()
            host.closing.wait(30)
        return chat()

    program = (
        "import os, sys; from pathlib import Path; sys.path[:0] = sys.argv[3].split(os.pathsep)\n"
        "from test_collect import collect, endpoint, probes\n"
        "collect(Path(sys.argv[1]), endpoint(sys.argv[2]), probes(8))\n"
    )
    with FakeHost(script) as host:
        child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), host.url, IMPORTED])
        try:
            assert reached.wait(60)
        finally:
            child.kill()
            child.wait()
    assert len(lines(tmp_path)) == 5
    with FakeHost(then(chat())) as host:
        outcomes, _waits = run(tmp_path, host, 8)

        assert [a.prompt for a in host.asked] == ["p5", "p6", "p7"]
    assert len(outcomes) == 8


@pytest.mark.parametrize(
    "answer",
    [
        error(401, f"Incorrect API key provided: {KEY}"),
        error(400, f"bad header Bearer {KEY}"),
        Answer(body=chat(f"Your key is {KEY}.")),
        Answer(body=b"<html>" + KEY.encode()),
        Answer(status=302, headers={"Location": f"http://{KEY}.example/?k={KEY}"}),
        Answer(raw=f"HTTP/1.1 {KEY}\r\n\r\n".encode()),
        Answer(raw=f"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{KEY}".encode()),
    ],
)
def test_the_key_is_in_no_byte_written(tmp_path: Path, answer: Answer) -> None:
    """However a host repeats the key, neither the folder nor a message holds it."""
    said = ""
    with FakeHost(then(answer), models=Answer(body={"data": [{"id": KEY}]})) as host:
        try:
            outcomes, _waits = run(tmp_path, host, 3)
            said = repr(outcomes)
        except EndpointError as problem:
            said = str(problem)

        assert host.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert (tmp_path / EXCHANGES).exists()
    assert KEY.encode() not in everything_in(tmp_path)
    assert KEY not in said


def test_the_key_in_a_list_of_models_is_struck_out(tmp_path: Path) -> None:
    """The list goes into a message, so it is cleaned as well."""
    listing = Answer(body={"data": [{"id": f"model-{KEY}"}]})
    with (
        FakeHost(then(error(404)), models=listing) as host,
        pytest.raises(EndpointError, match=r"model-\[redacted\]"),
    ):
        run(tmp_path, host)


def test_attempts_survive_the_file(tmp_path: Path) -> None:
    """Written and read back, an attempt is the same value, whatever its text."""
    with FakeHost(then(Answer(body="é\u2028\x00\u0085😀".encode() + b"\xff\r\n"), chat())) as host:
        run(tmp_path, host, 2)

    first = read_attempts(tmp_path)[0]
    assert first.body == "é\u2028\x00\u0085😀\udcff\r\n"
    assert first.error is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "not JSON"),
        ("[]", "expected an object"),
        ('{"probe_id": "p0"}', "number"),
        ('1 -> "1"', "number: input should be a valid integer, got '1'"),
        ("1 -> true", "number: input should be a valid integer, got True"),
        ('1 -> 1,"x":1', "x: unknown key"),
    ],
)
def test_a_malformed_line_names_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    """A damaged folder is a ConfigError that says where, not a guess."""
    with FakeHost(then(chat())) as host:
        run(tmp_path, host, 1)
    exchanges = tmp_path / EXCHANGES
    whole = exchanges.read_text()
    old, arrow, new = line.partition(" -> ")
    spoilt = whole.replace(f'"number":{old}', f'"number":{new}') if arrow else line + "\n"
    exchanges.write_text(whole + spoilt)

    with pytest.raises(ConfigError, match=said) as caught:
        read_outcomes(tmp_path, max_attempts=4)
    assert f"{exchanges}:2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_collection_is_given_up_when_another_thread_says_so(tmp_path: Path) -> None:
    """Also while a host hangs; what is under way is asked again the next time."""
    stop = threading.Event()

    def script(asked: Asked) -> Any:
        if asked.index == 1:
            stop.set()
            host.closing.wait(20)
        return chat()

    with FakeHost(script) as host:
        began = time.monotonic()
        collect(tmp_path, endpoint(host.url), probes(5), stopped=stop.is_set)
        took_s = time.monotonic() - began
        kept = len(read_attempts(tmp_path))
        host.closing.set()
        collect(tmp_path, endpoint(host.url), probes(5))

    assert took_s < 10
    assert kept == 1
    asked = [attempt.probe_id for attempt in read_attempts(tmp_path)]
    assert len(asked) == len(set(asked)) == 5


# -- what is sent is on the books ----------------------------------------------------------------


def sent_lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / SENT
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_request_is_noted_before_it_goes_out(tmp_path: Path) -> None:
    """The host finds it on disk when it is asked."""
    noted: list[list[str]] = []

    def script(_asked: Asked) -> dict[str, Any]:
        noted.append([line["probe_id"] for line in sent_lines(tmp_path)])
        return chat()

    with FakeHost(script) as host:
        run(tmp_path, host, 3)

    assert noted == [["p0"], ["p0", "p1"], ["p0", "p1", "p2"]]
    assert sent_lines(tmp_path)[0] | {"sent_at": ""} == {
        "of": EXCHANGES, "probe_id": "p0", "number": 1, "sent_at": "", "max_tokens": 8,
        "prompt_tokens": 66,
    }  # fmt: skip


def test_a_request_without_an_answer_on_record_is_paid_in_full(tmp_path: Path) -> None:
    """It may have been billed; its number is not given again, and it is no failed try."""
    line = {
        "of": EXCHANGES, "probe_id": "p0", "number": 1, "sent_at": "2026-01-01T00:00:00.000+00:00",
        "max_tokens": 8, "prompt_tokens": 66,
    }  # fmt: skip
    append_line(tmp_path / SENT, line)
    full = chat() | {"usage": {"prompt_tokens": 7, "completion_tokens": 8}}
    with FakeHost(then(full)) as host:
        ceiling = Ceiling(completion_tokens=24, usd=None, prices=None)
        collect(tmp_path, endpoint(host.url, max_attempts=1), probes(5), ceiling=ceiling)

        assert len(host.asked) == 2
    assert [(a.probe_id, a.number) for a in read_attempts(tmp_path)] == [("p0", 2), ("p1", 1)]
    assert [one.number for one in read_unanswered(tmp_path)] == [1]


@pytest.mark.parametrize(
    "change",
    [{"of": "../../secret"}, {"number": -1}, {"max_tokens": -5}, {"prompt_tokens": 10**400},
     {"number": True}, {"probe_id": None}],
    ids=str,
)  # fmt: skip
def test_a_spoilt_note_of_a_request_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """It could hide what was spent, or lead elsewhere."""
    line = {
        "of": EXCHANGES, "probe_id": "p0", "number": 1, "sent_at": "", "max_tokens": 8,
        "prompt_tokens": 66,
    }  # fmt: skip
    append_line(tmp_path / SENT, line | change)

    with pytest.raises(ConfigError, match=r"sent\.jsonl:1: "):
        collect(tmp_path, endpoint("http://127.0.0.1:1/v1"), probes(1))


COLLECTS_WITHIN = """
import os
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3].split(os.pathsep)
from test_collect import collect, endpoint, probes
from verifier.host.budget import Ceiling
ceiling = Ceiling(completion_tokens=160, usd=None, prices=None)
collect(Path(sys.argv[1]), endpoint(sys.argv[2], concurrency=4), probes(40), ceiling=ceiling)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "Ctrl-C"])
def test_a_host_gets_no_more_requests_than_are_paid_for(
    tmp_path: Path, how: signal.Signals
) -> None:
    """160 tokens pay for 20 requests of 8, however often the collection is stopped on its way."""
    full = chat() | {"usage": {"prompt_tokens": 7, "completion_tokens": 8}}

    def script(_asked: Asked) -> dict[str, Any]:
        time.sleep(0.3)
        return full

    with FakeHost(script) as host:

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-c", COLLECTS_WITHIN, str(tmp_path), host.url,
                 IMPORTED],
                stderr=subprocess.DEVNULL,
            )  # fmt: skip

        for _ in range(5):
            before, child = len(host.asked), start()
            try:
                while len(host.asked) == before and child.poll() is None:
                    time.sleep(0.01)
                time.sleep(0.05)
            finally:
                child.send_signal(how)
                child.wait()
        last = start()
        last.wait()

        assert last.returncode == 0
        assert 8 < len(host.asked) <= 20
    unanswered = read_unanswered(tmp_path)
    assert len(unanswered) >= 5
    assert len(read_attempts(tmp_path)) + len(unanswered) == 20


def test_what_is_under_way_is_recorded_before_the_operator_is_told(tmp_path: Path) -> None:
    """A refused key among eight requests: the other seven were answered, and are on record."""
    together = threading.Barrier(8)

    def script(asked: Asked) -> Answer | dict[str, Any]:
        together.wait(10)
        if asked.index == 0:
            return error(401)
        time.sleep(0.3)
        return chat()

    with FakeHost(script) as host:
        with pytest.raises(EndpointError, match="refused the API key"):
            collect(tmp_path, endpoint(host.url, concurrency=8), probes(30))

        assert len(host.asked) == len(read_attempts(tmp_path)) == 8
    assert read_unanswered(tmp_path) == ()
    answered = read_outcomes(tmp_path, max_attempts=8).values()
    assert [type(one) for one in answered] == [Reply] * 7


def test_nobody_waits_for_a_further_try_once_the_operator_must_act(tmp_path: Path) -> None:
    """Only what is out comes back; a worker that waits to ask again does not."""
    seen = threading.Event()

    def script(asked: Asked) -> Answer:
        if asked.index == 0:
            seen.wait(10)
            return error(401)
        if asked.index == 1:
            threading.Timer(0.3, seen.set).start()
        return error(503)

    with FakeHost(script) as host:
        begun = time.monotonic()
        with pytest.raises(EndpointError):
            collect(tmp_path, endpoint(host.url, concurrency=2), probes(2))

        assert time.monotonic() - begun < 5
        assert len(host.asked) == len(read_attempts(tmp_path))


# -- what is written can be read -----------------------------------------------------------------


def test_a_body_too_large_to_be_read_again_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JSON it is six times as long; the probe is asked again, and the folder stays readable."""
    for module in (folder_module, collect_module):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 40_000)
    with FakeHost(then(Answer(body=b"\0" * 10_000), chat())) as host:
        outcomes, _waits = run(tmp_path, host)

    assert isinstance(outcomes["p0"], Reply)
    first, second = read_attempts(tmp_path)
    assert (first.status, first.error, len(first.body)) == (200, "response too large to keep", 4096)
    assert second.error is None


@pytest.mark.parametrize(
    "body", [b"\xff" * 20_000, b"<html>" + b"x" * 20_000], ids=["bytes", "page"]
)
def test_of_a_large_body_that_is_no_answer_the_beginning_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    """Why it is none is said as before, and it is asked again."""
    monkeypatch.setattr(collect_module, "_MOST_UNUSABLE", 10_000)
    with FakeHost(then(Answer(body=body), chat())) as host:
        outcomes, _waits = run(tmp_path, host)

    assert isinstance(outcomes["p0"], Reply)
    first, _second = read_attempts(tmp_path)
    problem = parse(first)
    assert len(first.body) == 4096
    assert isinstance(problem, Problem)
    assert (problem.status, problem.retryable) == (200, True)
    assert "body is not JSON" in problem.reason


def test_a_large_answer_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is no answer is cut."""
    monkeypatch.setattr(collect_module, "_MOST_UNUSABLE", 10)
    with FakeHost(lambda _asked: chat("long " * 50)) as host:
        run(tmp_path, host)

    (only,) = read_attempts(tmp_path)
    assert "long " * 50 in only.body
    assert only.error is None


# -- what a host counts --------------------------------------------------------------------------


def within(folder: Path, host: FakeHost, **ceiling: Any) -> int:
    """Collect under a ceiling of 20 requests of 8 tokens; how many the host got."""
    given: dict[str, Any] = {"completion_tokens": 160, "usd": None, "prices": None}
    collect(
        folder, endpoint(host.url, concurrency=4), probes(60), ceiling=Ceiling(**given | ceiling)
    )
    return len(host.asked)


LONG_TEXT = "One two three four five six seven eight."


@pytest.mark.parametrize("completion", [0, 1])
def test_a_count_below_the_text_buys_no_further_request(tmp_path: Path, completion: int) -> None:
    """A host that says its answers took nothing is paid for what it may have made."""
    usage = {"prompt_tokens": 7, "completion_tokens": completion}
    with FakeHost(then(chat(LONG_TEXT) | {"usage": usage})) as host:
        assert within(tmp_path, host) == 20


@pytest.mark.parametrize("completion", [9, 5_000, 10**9])
def test_no_number_ends_a_collection(tmp_path: Path, completion: int) -> None:
    """A count beyond what was allowed costs what was allowed."""
    usage = {"prompt_tokens": 7, "completion_tokens": completion}
    with FakeHost(then(chat(LONG_TEXT * 3) | {"usage": usage})) as host:
        assert within(tmp_path, host) == 20


def test_a_prompt_costs_no_more_than_it_can_count(tmp_path: Path) -> None:
    """Two thousandths of a dollar pay for 30 prompts of at most 66 tokens at a dollar a million."""
    usage = {"prompt_tokens": 100_000, "completion_tokens": 8}
    prices = Prices(prompt=1.0, completion=0.0)
    with FakeHost(then(chat(LONG_TEXT) | {"usage": usage})) as host:
        asked = within(tmp_path, host, completion_tokens=10_000, usd=0.002, prices=prices)

    assert 28 <= asked <= 30  # p10 and later have a byte more


def test_a_tokenizer_at_hand_counts_for_itself(tmp_path: Path) -> None:
    """Four tokens, whatever the host says below that."""
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    with FakeHost(then(chat("a b c d") | {"usage": usage})) as host:
        settings = endpoint(host.url, count_tokens=lambda text: len(text.split()))
        ceiling = Ceiling(completion_tokens=48, usd=None, prices=None)
        collect(tmp_path, settings, probes(20), ceiling=ceiling)

        assert len(host.asked) == 11  # 10 that cost four, and one more that fits


# -- the account ---------------------------------------------------------------------------------

EMPTY = Answer(
    status=429,
    body={"error": {"message": "Your balance is used up", "type": "exceeded_current_quota_error"}},
)
NO_MONEY_200 = Answer(
    body={"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}
)
DAY = Answer(status=429, body={"error": {"message": "Rate limit exceeded: free-models-per-day"}})
QUOTA = Answer(status=429, body={"error": {"message": "You exceeded your current quota"}})


@pytest.mark.parametrize(
    ("answer", "words", "advice"),
    [
        (EMPTY, "Your balance is used up", "top it up"),
        (NO_MONEY_200, "insufficient balance", "top it up"),
        (error(402, "Pay first"), "Pay first", "top it up"),
        (DAY, "free-models-per-day", "opens again in hours"),
        (error(403, "Your organization must be verified"), "must be verified", "verified"),
        (error(403, "Invalid API key"), "Invalid API key", "HOST_KEY"),
    ],
)
@pytest.mark.parametrize("before", [0, 2])
def test_what_the_account_lacks_stops_at_once_and_is_nobodys_failure(
    tmp_path: Path, answer: Answer, words: str, advice: str, before: int
) -> None:
    """Also after answers; once it is mended, only what has no outcome is asked."""
    lacking = True

    def script(asked: Asked) -> Answer | dict[str, Any]:
        return answer if lacking and asked.index >= before else chat()

    with FakeHost(script) as host:
        with pytest.raises(EndpointError) as caught:
            run(tmp_path, host, 6)
        refused = len(host.asked) - before
        kept = read_outcomes(tmp_path, max_attempts=8)
        lacking = False
        outcomes, waits = run(tmp_path, host, 6)

        assert len(host.asked) == 6 + refused
    said = str(caught.value)
    assert words in said
    assert advice in said
    assert "\n" not in said
    assert refused == 1
    assert len(kept) == before
    assert [type(one) for one in outcomes.values()] == [Reply] * 6
    assert waits == []


def test_a_full_minute_said_in_200_is_waited_for(tmp_path: Path) -> None:
    """As a 429 is."""
    busy = Answer(
        body={"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}
    )
    with FakeHost(then(busy, chat())) as host:
        outcomes, waits = run(tmp_path, host)

    assert isinstance(outcomes["p0"], Reply)
    assert 2.5 <= waits[0] <= 5


def test_words_of_doubt_are_waited_for_and_then_the_operators(tmp_path: Path) -> None:
    """They are said of a minute and of an empty account: nothing is held against the host."""
    with FakeHost(then(QUOTA)) as host:
        with pytest.raises(EndpointError, match="exceeded your current quota"):
            run(tmp_path, host, 2, max_attempts=3)

        assert len(host.asked) == 3
    assert read_outcomes(tmp_path, max_attempts=3) == {}
    with FakeHost(then(QUOTA, chat())) as host:
        outcomes, _waits = run(tmp_path, host, 2, max_attempts=3)

    assert [type(one) for one in outcomes.values()] == [Reply] * 2


def test_a_host_that_answers_others_meanwhile_means_no_empty_account(tmp_path: Path) -> None:
    """Then it refuses this probe, and that counts as any limit does."""
    turn = threading.Barrier(2)

    def script(asked: Asked) -> Answer | dict[str, Any]:
        if asked.prompt == "p0":
            turn.wait(20)
            time.sleep(0.1)  # the other's answer comes first
            return QUOTA
        turn.wait(20)
        return chat()

    with FakeHost(script) as host:
        outcomes, _waits = run(tmp_path, host, 5, concurrency=2, max_attempts=3)

        assert Counter(a.prompt for a in host.asked)["p0"] == 4
    assert isinstance(outcomes["p0"], Failure)
    assert sum(isinstance(one, Reply) for one in outcomes.values()) == 4


# -- waits are told ------------------------------------------------------------------------------


def told(folder: Path, host: FakeHost, count: int = 1, **changes: Any) -> list[str]:
    """What is told while probes are collected; no wait is waited."""
    said: list[str] = []

    async def sleep(_seconds: float) -> None:
        return

    collect(folder, endpoint(host.url, **changes), probes(count), sleep=sleep, tell=said.append)
    return said


def test_a_wait_says_why_and_how_long(tmp_path: Path) -> None:
    """In the host's words, with the try that comes next."""
    busy = error(429, "slow down", retry_after="20")
    with FakeHost(then(busy, chat())) as host:
        said = told(tmp_path, host)
        name = host.url.split("/")[2]

    assert said == [f"{name}: HTTP 429: slow down, asking again in 20 s, try 2 of 8"]


def test_a_silent_host_is_told_of(tmp_path: Path) -> None:
    """A timeout is a reason like any other."""

    def script(asked: Asked) -> Answer | dict[str, Any]:
        if asked.index == 0:
            host.closing.wait(1)
        return chat()

    with FakeHost(script) as host:
        (said,) = told(tmp_path, host, timeout_s=0.3, max_attempts=3)

    assert "no whole answer within 0.3 s, asking again in " in said
    assert said.endswith("try 2 of 3")


def test_many_waits_are_one_line(tmp_path: Path) -> None:
    """Not one for each of eight workers."""
    with FakeHost(lambda asked: error(503) if asked.index < 16 else chat()) as host:
        said = told(tmp_path, host, 8, concurrency=8)

    assert len(said) == 1


def test_a_line_of_a_wait_neither_acts_nor_shows_the_key(tmp_path: Path) -> None:
    """Whatever the host says."""
    spoilt = error(503, f"\x1b[2J{KEY[:10]}\u200b{KEY[10:]} of\nyours {KEY}")
    with FakeHost(then(spoilt, chat())) as host:
        (said,) = told(tmp_path, host)

    assert said.isprintable()
    assert KEY not in said
    assert "\n" not in said
