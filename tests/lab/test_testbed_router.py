"""The router: shares, how requests are routed, and that nothing tells who answered."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from fakes_host import Answer, FakeHost, chat, error
from scipy.stats import binom

from verifier.errors import ConfigError
from verifier.lab.testbed.router import (
    BURST,
    Chooser,
    Routing,
    Upstream,
    create_router,
    read_routes,
)
from verifier.lab.testbed.server import running

TWO = read_routes("http://a/v1", ["0.3:http://b/v1"])


def body(words: str, *, later: str = "", stream: bool = False) -> bytes:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": words}]
    messages += [{"role": "user", "content": later}] if later else []
    return json.dumps({"messages": messages, "stream": stream}).encode()


def chosen(routing: Routing, count: int, *, seed: int) -> list[str]:
    seconds = iter(range(0, 9 * count, 9))
    chooser = Chooser(TWO, routing=routing, seed=seed, clock=lambda: next(seconds))
    return [chooser.choose(body(f"question {n}")).base_url for n in range(count)]


def test_the_first_host_gets_what_the_routes_leave() -> None:
    """By hand: 1 - 0.3 - 0.05; and nothing where they take all."""
    routes = read_routes("http://a/v1/", ["0.3:http://b:1/v1", "0.05:https://c/v1"])

    assert [(u.base_url, round(u.share, 6)) for u in routes] == [
        ("http://a/v1", 0.65), ("http://b:1/v1", 0.3), ("https://c/v1", 0.05),
    ]  # fmt: skip
    assert read_routes("http://a", ["1:http://b"])[0].share == 0


@pytest.mark.parametrize(
    "route",
    ["0.3", "http://b/v1", "some:http://b/v1", "1.2:http://b", "-0.1:http://b", "nan:http://b"],
)
def test_what_is_no_route_is_refused(route: str) -> None:
    """With an example of one."""
    with pytest.raises(ConfigError, match=r"expected SHARE:URL, such as 0\.3:http"):
        read_routes("http://a/v1", [route])


def test_shares_above_one_together_are_refused() -> None:
    """Some host would get less than was asked for."""
    with pytest.raises(ConfigError, match=r"shares of 1\.1 together"):
        read_routes("http://a/v1", ["0.6:http://b", "0.5:http://c"])


@pytest.mark.parametrize("routing", get_args(Routing))
def test_each_host_gets_its_share_and_a_seed_gives_it_again(routing: Routing) -> None:
    """Within the 99.9 % of a binomial; bursts are worth a tenth as many draws."""
    made = chosen(routing, 4000, seed=1)
    draws = 4000 // (2 * BURST) if routing == "bursts" else 4000
    low, high = binom.ppf([0.0005, 0.9995], draws, 0.3) / draws

    assert low <= made.count("http://b/v1") / 4000 <= high
    assert made == chosen(routing, 4000, seed=1)
    assert made != chosen(routing, 4000, seed=2)


def test_sticky_goes_by_the_first_words_of_the_user_else_by_the_key() -> None:
    """A conversation that goes on stays where it began."""
    chooser = Chooser(TWO, routing="sticky", seed=3)
    for n in range(40):
        first = chooser.choose(body(f"question {n}"), client="one")
        assert chooser.choose(body(f"question {n}", later="And then?"), client="two") == first
    by_key = {chooser.choose(b"not json", client=f"key {n}").base_url for n in range(40)}
    one_key = {chooser.choose(b"[1]", client="key").base_url for _ in range(40)}

    assert len(by_key) == 2
    assert len(one_key) == 1


def test_bursts_are_runs_of_requests() -> None:
    """Hosts change about once in BURST / (2 * 0.3 * 0.7) requests, where random does in 2.4."""

    def changes(routing: Routing) -> int:
        made = chosen(routing, 4000, seed=5)
        return sum(a != b for a, b in pairwise(made))

    assert changes("bursts") < 4000 * 2 * 0.3 * 0.7 / BURST * 1.4
    assert changes("random") > 4000 * 2 * 0.3 * 0.7 * 0.9


def test_an_hour_is_parted_once() -> None:
    """400 requests in each of ten hours: in every hour one stretch of 0.3 of it goes elsewhere."""
    made = chosen("hours", 4000, seed=5)
    stretches = sum(a != b for a, b in pairwise(made))

    assert made[:400] * 10 == made
    assert made[:400].count("http://b/v1") == 120
    assert stretches in (19, 20, 21)


def test_answers_pass_through_and_only_the_log_tells_whose_they_are(tmp_path: Path) -> None:
    """Two hosts that say who they are: request, key and answer arrive as they were sent."""
    log = tmp_path / "log.jsonl"

    def named(name: str) -> FakeHost:
        return FakeHost(lambda _asked: Answer(body=chat(name), headers={"X-Served-By": name}))

    with named("a") as a, named("b") as b:
        upstreams = [Upstream(base_url=a.url, share=0.5), Upstream(base_url=b.url, share=0.5)]
        with running(create_router(upstreams, routing="random", seed=1, log=log)) as url:
            asked = [body(f"question {n}") for n in range(12)]
            key = {"Authorization": "Bearer k"}
            got = [httpx.post(f"{url}/chat/completions", content=c, headers=key) for c in asked]
        seen = {a.url: a.asked, b.url: b.asked}
        said = {a.url: "a", b.url: "b"}

    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["number"] for line in logged] == list(range(12))
    assert [said[line["upstream"]] for line in logged] == [
        r.json()["choices"][0]["message"]["content"] for r in got
    ]
    assert min(map(len, seen.values())) > 0
    assert {r.raw for one in seen.values() for r in one} == set(asked)
    assert {r.headers["authorization"] for one in seen.values() for r in one} == {"Bearer k"}
    assert {name for r in got for name in r.headers} <= {"date", "server", "transfer-encoding"}


def test_streams_errors_and_models_pass_through() -> None:
    """Status, kind and body, and how long to wait."""
    stream = b'data: {"choices":[]}\n\ndata: [DONE]\n\n'

    def script(asked: Any) -> Answer:
        if asked.json["stream"]:
            return Answer(body=stream, headers={"Content-Type": "text/event-stream"})
        return error(429, "slower", Retry_After="3")

    models = Answer(body={"data": [{"id": "m"}]})
    with FakeHost(script, models=models) as host:
        upstreams = [Upstream(base_url=host.url, share=1.0)]
        with running(create_router(upstreams, routing="sticky", seed=1)) as url:
            events = httpx.post(f"{url}/chat/completions", content=body("Hi.", stream=True))
            refused = httpx.post(f"{url}/chat/completions", content=body("Hi."))
            known = httpx.get(f"{url}/models")

    assert (events.content, events.headers["content-type"]) == (stream, "text/event-stream")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")
    assert known.json()["data"] == [{"id": "m"}]


def test_a_host_that_is_down_is_an_error_of_the_router() -> None:
    """And does not say which one."""
    with FakeHost(lambda _asked: chat()) as host:
        url_of_the_dead = host.url
    upstreams = [Upstream(base_url=url_of_the_dead, share=1.0)]
    with running(create_router(upstreams, routing="random", seed=1)) as url:
        got = httpx.post(f"{url}/chat/completions", content=body("Hi."))

    assert got.status_code == 502
    assert url_of_the_dead not in got.text
