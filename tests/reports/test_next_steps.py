"""What a buyer and a host are told to do next, by verdict and named cause."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
from reports import consistent, finding, inconclusive, inconsistent, make_report

from verifier.cli import commands
from verifier.config import load_policies
from verifier.records import Control, Report
from verifier.reports import next_steps as steps
from verifier.reports.next_steps import next_steps


def named(*findings: tuple[str, str]) -> Report:
    """An inconsistent report with these detected, aspect and name."""
    found = tuple(finding(aspect, "detected", name, 9.0) for aspect, name in findings)
    return replace(inconsistent(), findings=found)


@pytest.mark.parametrize(
    ("findings", "kind"),
    [
        ([("noise", "4-bit-class rounding"), ("cause", "int4-asym-g64")], "build"),
        ([("noise", "4-bit-class rounding"), ("cause", "drop-1")], "layers"),
        ([("noise", "another model"), ("cause", "sibling")], "other model"),
        ([("tokenizer", "prompts are counted as by llama3"), ("noise", "x")], "other model"),
        ([("template", "no-template")], "template"),
        ([("substitution", "a part of the replies"), ("cause", "int4-asym-g64")], "part"),
        ([("substitution", "a part"), ("strata", "requests that are streamed")], "way of asking"),
        ([("sampler", "temperature about 0.7")], "sampler"),
        ([("context", "prompts cut to about 500 tokens")], "long"),
        ([("ceiling", "replies cut at 91 tokens")], "long"),
        ([("repeats", "replies from a store")], "store"),
        ([("logprobs", "reported log-probabilities")], "logprobs"),
        ([("noise", "4-bit-class rounding")], "other"),
    ],
)
def test_an_accusation_is_answered_by_what_it_names(
    findings: list[tuple[str, str]], kind: str
) -> None:
    """The name that tells most what to mend comes first; without one, all that can differ."""
    expected = steps._STEPS[kind]
    found = next_steps(named(*findings))

    assert found.buyer.startswith(expected.buyer.partition("{")[0])
    assert found.host.startswith(expected.host.partition("{")[0])


def test_a_build_is_explained() -> None:
    """What its name means stands beside it."""
    cause = finding("cause", "detected", "int4-asym-g64", 9.0, detail="4-bit integers; fits best")

    found = next_steps(replace(inconsistent(), findings=(cause,)))

    assert "“int4-asym-g64” (4-bit integers)" in found.buyer
    assert "fits best" not in found.buyer


def test_a_template_is_named_by_its_digest() -> None:
    """The published one, as the plan holds it."""
    report = replace(named(("template", "no-template")), signature={"template_sha256": "ab" * 32})

    assert "chat template (sha256 abababababababab…) as it is" in next_steps(report).host


@pytest.mark.parametrize(
    ("reference", "advised"),
    [({"card": "a"}, True), ({"card": "a", "pack": "a.pack"}, True),
     ({"card": "", "pack": "a.pack"}, False)],
)  # fmt: skip
def test_builds_are_looked_for_where_there_are_weights(
    reference: dict[str, str], advised: bool
) -> None:
    """A pack alone says nothing of builds that it does not hold."""
    found = named(("noise", "4-bit-class rounding"))
    report = replace(found, signature={"configuration": {"reference": reference}})

    assert ("score FOLDER --builds" in next_steps(report).host) == advised


@pytest.mark.parametrize("decision", ["consistent", "inconclusive"])
def test_nothing_is_held_against_a_host_that_is_not_accused(decision: Any) -> None:
    """Its own step says so."""
    assert re.search(r"Nothing|nothing is held", next_steps(make_report(decision)).host)


def opened(tokens: int | None, *, spent: int, allowed: int | None = None) -> Report:
    """An inconclusive report with one departure open."""
    audit = {} if allowed is None else {"budget_completion_tokens": allowed}
    return replace(
        inconclusive(),
        findings=(finding("noise", "undecided", "4-bit", 1.0, tokens_needed=tokens),),
        usage=replace(inconclusive().usage, replies=9, failures=0, completion_tokens=spent),
        noise_scale=consistent().noise_scale,
        signature={"configuration": {"audit": audit}},
    )


@pytest.mark.parametrize(
    ("tokens", "spent", "allowed", "said"),
    [
        (400, 5900, 6000, "About 400 more completion tokens would settle it: `verifier audit --"),
        (400, 5900, 6000, "`verifier audit --again FOLDER --budget-completion-tokens 6300`."),
        (1400, 5901, None, "--budget-completion-tokens 7400`."),
        (None, 5990, 5990, "how many would settle it is not known yet: `verifier audit --again "),
        (None, 5990, 5990, "--budget-completion-tokens 12000`."),
        (190, 624, 6000, "`verifier audit FOLDER` goes on: the budget is not used up, and about"),
        (190, 624, 6000, " 190 more tokens would settle it."),
    ],
)  # fmt: skip
def test_an_open_verdict_says_what_would_settle_it(
    tokens: int | None, spent: int, allowed: int | None, said: str
) -> None:
    """With the figure of the forecast, where there is one, rounded up to a budget."""
    assert said in next_steps(opened(tokens, spent=spent, allowed=allowed)).buyer


def test_what_hinders_a_verdict_is_mended_first() -> None:
    """Before more is spent."""
    settled = opened(100, spent=6000)
    usage, scale = settled.usage, settled.noise_scale
    control = Control(base_url="", model="", finding="pending", summary="", usage=None)
    fault = finding("logprobs", "detected", "reported log-probabilities", 9.0)
    expected = {
        "pending": replace(settled, control=control),
        "doubt": replace(settled, control=replace(control, finding="inconsistent")),
        "nothing scored": replace(settled, usage=replace(usage, replies=0)),
        "deadline": replace(settled, summary="the deadline of 60 s came first; still open: x"),
        "failures": replace(settled, usage=replace(usage, failures=10)),
        "between": replace(settled, noise_scale=replace(scale, lower=scale.honest * 1.1)),
        "fault": replace(settled, findings=(*settled.findings, fault)),
    }
    for kind, report in expected.items():
        assert next_steps(report).buyer.startswith(steps._STEPS[kind].buyer.partition("{")[0]), kind


def test_a_stricter_policy_is_offered_where_there_is_one() -> None:
    """And not to those who took it."""
    assert "--policy standard" in next_steps(consistent()).buyer
    for policy in ("standard", "strict", "routing"):
        assert policy in load_policies()
        assert "--policy" not in next_steps(replace(consistent(), policy=policy)).buyer


def quoted() -> list[str]:
    """Every command that a step names."""
    every = (text for one in steps._STEPS.values() for text in (one.buyer, one.host))
    return sorted({found for text in every for found in re.findall(r"`(verifier [^`]+)`", text)})


@pytest.mark.parametrize("said", quoted())
def test_commands_that_are_named_exist(said: str) -> None:
    """With each of their options, and as many arguments as they take."""
    import typer

    command: Any = typer.main.get_command(commands.app)
    words = shlex.split(said.format(card="CARD", budget=100))[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("verifier", words, resilient_parsing=False)


@pytest.mark.parametrize("hostile", ["x`; rm -rf ~; `y", "$(touch x)", "a b", "-x", "../../x\nrm"])
def test_no_word_from_outside_becomes_part_of_a_command(hostile: str) -> None:
    """A folder may come from a stranger, and commands are copied."""
    configuration = {"reference": {"card": hostile}, "audit": {"budget_completion_tokens": hostile}}
    cause = finding("cause", "detected", hostile, 9.0, detail=f"{hostile};")
    report = replace(inconsistent(), findings=(cause,), signature={"configuration": configuration})
    found = next_steps(report)

    for text in (found.buyer, found.host):
        for command in re.findall(r"`([^`]*)`", text):
            assert command.startswith("verifier ")
            assert hostile not in command
            assert "rm" not in command.split()
    assert "--reference CARD " in found.host
