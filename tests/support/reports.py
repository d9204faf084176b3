"""Reports to be shown: a plain one, and three that hold a little of everything."""

from __future__ import annotations

import dataclasses
from typing import Any

from verifier.records import Asked, Decision, Evidence, Finding, NoiseScale, Place, Report, Usage
from verifier.report_file import SCHEMA_VERSION


def make_report(decision: Decision) -> Report:
    """A report with one finding."""
    return Report(
        schema_version=1, decision=decision, summary="as it is",
        findings=(plain_finding("excluded"),),
        noise_scale=NoiseScale(
            estimate=0.05, lower=0.01, upper=0.1, level=0.999, equivalent="honest serving",
            honest=0.06, marks=(),
        ),
        usage=Usage(
            requests=12, replies=10, failures=1, not_judged=1, prompt_tokens=300,
            completion_tokens=400, tokens_scored=390, tokens_left_out=10, cost_usd=0.01,
        ),
        notes=("a note",), policy="screen", alpha=0.001, beta=0.001, signature={},
    )  # fmt: skip


def plain_finding(decision: Any, *, name: str = "int4", detail: str = "so it is") -> Finding:
    """A finding on a class of rounding."""
    return Finding(
        aspect="noise", decision=decision, name=name, log_e=1.5, detail=detail, tokens_needed=None
    )


#: What a host may send where a report quotes it.
HOSTILE = (
    "]]></failure></testcase><testcase name='x'/>",
    "<script>alert(1)</script>",
    "a | b\n\n# heading\n| c |",
    "[click](javascript:alert(1)) ![x](http://evil.example/p.png)",
    "@everyone **bold** `code` https://evil.example/x www.evil.example",
    "\x1b[2J\x07\u202egnp.exe\u2028\x00\ud800",
    "=HYPERLINK('http://evil.example')",
    "::error file=a::b",
    "&lt;b&gt; &#60;i&#62;",
)


MARKS = (
    ("int8-channel", 0.061),
    ("fp8-channel", 0.12),
    ("fp8-tensor", 0.13),
    ("nf4-g64", 0.27),
    ("int4-asym-g64", 0.29),
    ("int4-asym-g96", 0.31),
    ("drop-1", 0.31),
    ("int4-sym-g64", 0.32),
    ("int4-sym-g96", 0.34),
    ("int4-asym-g192", 0.36),
    ("int4-sym-g192", 0.39),
    ("int4-asym-channel", 0.42),
    ("int4-sym-channel", 0.46),
    ("drop-2", 0.52),
    ("int3-g64", 0.6),
    ("int2-g64", 0.95),
)
SIGNATURE: dict[str, object] = {
    "versions": {"verifier": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.20.1"},
    "card": "smollm2-135m-instruct",
    "card_sha256": "9f2c" * 16,
    "pool_sha256": "01ab" * 16,
    "seed": 20260114,
    "configuration": {
        "endpoint": {"base_url": "https://api.example.net/v1", "model": "smollm2-135m-instruct"},
        "policy": "screen",
        "budget": {"completion_tokens": 2000},
        "temperatures": [0.0],
        "concurrency": None,
    },
}


def finding(aspect: str, decision: Any, name: str, log_e: float | None, **more: Any) -> Finding:
    """A finding with a readable detail."""
    more = {"detail": "", "tokens_needed": None} | more
    return Finding(aspect=aspect, decision=decision, name=name, log_e=log_e, **more)


def place(**changes: Any) -> Place:
    """Where a host with other weights says something else."""
    values: dict[str, Any] = {
        "probe_id": "p0001", "asked": "Write a post about your travels.", "position": 11,
        "after": "…ask in your travels to Mar", "published": "ra", "log_p_published": -0.105,
        "served": "ley", "log_p_served": -9.21,
    }  # fmt: skip
    return Place(**values | changes)


def evidence(log_e: float, differing: int, *worst: Place) -> Evidence:
    """What replies look like beside the published weights."""
    return Evidence(
        log_e=log_e, tokens=480, differing=differing, honest=7.6, tolerated=14.2, worst=worst
    )


def consistent() -> Report:
    """An honest host, every departure excluded."""
    return Report(
        schema_version=SCHEMA_VERSION,
        decision="consistent",
        summary="3 of 3 departures of the policy excluded after 486 completion tokens",
        findings=(
            finding(
                "noise", "excluded", "4-bit rounding and worse", -9.42,
                detail="the noise scale is below 0.27, the mildest known 4-bit build",
            ),
            finding(
                "weights", "excluded", "one layer dropped", -61.8,
                detail="the replies fit the published weights better than this build",
            ),
            finding(
                "weights", "excluded", "another model", -1203.5,
                detail="the replies fit the published weights better than this build",
            ),
        ),
        noise_scale=NoiseScale(
            estimate=0.021, lower=0.0, upper=0.083, level=0.999,
            equivalent="honest serving; at most between int8 and fp8 rounding",
            honest=0.05, marks=MARKS,
        ),
        usage=Usage(
            requests=17, replies=16, failures=0, not_judged=1, prompt_tokens=1204,
            completion_tokens=486, tokens_scored=480, tokens_left_out=6, cost_usd=0.0021,
        ),
        notes=("The endpoint returned no logprobs: the logprob channel was not run.",),
        policy="screen",
        alpha=0.001,
        beta=0.001,
        signature=SIGNATURE,
        asked=Asked(first="2026-01-14T09:30:00+00:00", last="2026-01-14T09:41:07+00:00"),
        evidence=evidence(
            -20.5, 1, place(served="\n", log_p_served=-1.21, log_p_published=-1.19)
        ),
    )  # fmt: skip


def inconsistent() -> Report:
    """A host that serves 4-bit weights, named by a directed column."""
    columns = (("int4-asym-g64", 88.1), ("int4-sym-g64", 3.4), ("nf4-g64", -4.2))
    return dataclasses.replace(
        consistent(),
        decision="inconsistent",
        summary="4-bit rounding and worse detected after 96 completion tokens",
        findings=(
            finding(
                "noise", "detected", "4-bit rounding and worse", 21.37,
                detail="the noise scale is above the honest range",
            ),
            *(
                finding(
                    "weights", "detected" if log_e > 6.9 else "undecided", name, log_e,
                    detail="scored with its own weights",
                    tokens_needed=None if log_e > 6.9 else 40,
                )
                for name, log_e in columns
            ),
            finding("weights", "excluded", "one layer dropped", -17.0),
            finding(
                "weights", "not run", "another model", None,
                detail="the card names no weights of another model",
            ),
            finding(
                "cause", "detected", "int4-asym-g64", 88.1,
                detail="the replies fit this build best, 84.7 nats over the next",
            ),
        ),
        noise_scale=dataclasses.replace(
            consistent().noise_scale,
            estimate=0.31, lower=0.18, upper=0.55, equivalent="4-bit rounding",
        ),
        usage=Usage(
            requests=4, replies=3, failures=1, not_judged=0, prompt_tokens=310,
            completion_tokens=96, tokens_scored=96, tokens_left_out=0, cost_usd=None,
        ),
        notes=(),
        evidence=evidence(
            9.5, 133, place(), place(probe_id="p0002", position=0, after="", published=None),
            place(probe_id="p0003", served=None, log_p_served=-14.0, log_p_published=-0.00001),
        ),
    )  # fmt: skip


def inconclusive() -> Report:
    """A host that failed nearly every request."""
    return dataclasses.replace(
        consistent(),
        decision="inconclusive",
        summary="nothing was scored: 12 of 12 probes got no answer",
        findings=(
            finding(
                "noise", "undecided", "4-bit rounding and worse", 0.0,
                detail="no reply was scored", tokens_needed=220,
            ),
            finding("weights", "undecided", "one layer dropped", 0.0, detail="no reply was scored"),
            finding(
                "logprobs", "not run", "reported logprobs", None,
                detail="the endpoint returned none",
            ),
        ),
        noise_scale=dataclasses.replace(
            consistent().noise_scale,
            estimate=None, lower=None, upper=None, equivalent="nothing scored",
        ),
        usage=Usage(
            requests=36, replies=0, failures=12, not_judged=0, prompt_tokens=0,
            completion_tokens=0, tokens_scored=0, tokens_left_out=0, cost_usd=None,
        ),
        notes=("12 of 12 probes failed: HTTP 503.", "No prices were given, so no cost is shown."),
        evidence=None,
    )  # fmt: skip
