"""The whole product on the embedded model: it answers, every fault shows, and audits are right."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from audits import QUIET
from engines import Remembering, card_with_bank, few_renderings, prompts_of, score_replies
from models import EMBEDDED
from recorded import Recorded
from simulate import make_plan

from verifier.audit import audit
from verifier.checks.length import findings as length
from verifier.checks.template.panel import LEAST_BESIDE_NOISE, PANEL_PROBES
from verifier.cli.common import cache_directory
from verifier.config import Fleet, RunFile
from verifier.files.run_folder import CONTEXT, PAGE, REPORT, SUMMARY
from verifier.fleet.side_by_side import audit_targets
from verifier.fleet.summary import summarise
from verifier.host.endpoint import Endpoint
from verifier.lab.demo import HOSTS
from verifier.lab.derived_models import merge, prune
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.faults import read_fault
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.router import create_router, read_routes
from verifier.lab.testbed.server import running
from verifier.plan_file import read_probes
from verifier.records import (
    REFERENCE,
    Finding,
    GenerateRequest,
    Message,
    Report,
    ScoreRequest,
)
from verifier.reference.calibrations import calibration_path, load_calibration
from verifier.reference.cards import find_card, load_card
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.loaded import Reference, reference_loader
from verifier.reference.renderings.catalogue import catalogue
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.variants import BANK, VARIANTS
from verifier.session import Session
from verifier.steps import ask, score
from verifier.verdict.decide import decide, decide_folder

#: A busy machine may take ten times as long as an idle one.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

#: Those that the model's widths take, but for types of GGUF: they are searched for, half a minute
#: each, and measured in variants.benchmark.json.
FAULTS = [
    name for name, variant in VARIANTS.items()
    if variant.takes((576, 1536)) and variant.family != "gguf"
]  # fmt: skip

#: Of all audits, so that hosts can answer ahead.
SEED = 20261124

#: Mean absolute shift of log-probabilities that a fault must exceed (nats). The mildest of all,
#: gguf-q8-0, shifts these replies by 0.05; another order of summation shifts them by 1e-5.
LEAST_SHIFT = 0.03


@pytest.fixture(scope="module")
def tokenizer(embedded: Path) -> Tokenizer:
    return Tokenizer(embedded)


@pytest.fixture(scope="module")
def plain(embedded: Path, tokenizer: Tokenizer) -> TransformersEngine:
    """The reference, in float32."""
    return TransformersEngine(embedded, eos_ids=(tokenizer.eos_id,))


@pytest.fixture(scope="module")
def engine(plain: TransformersEngine) -> Remembering:
    """The reference of audits."""
    return Remembering(plain)


@pytest.fixture(scope="module")
def coming(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """What audits with the seed of all audits here ask, samples last."""
    return prompts_of(tokenizer, seed=SEED, sampler=True)


@pytest.fixture(scope="module")
def serve(
    embedded: Path, tokenizer: Tokenizer, coming: list[tuple[int, ...]], recorded: Recorded
) -> Callable[[str], Remembering]:
    """What one more host runs, in bfloat16, by the name of its weights."""

    def load(weights: str) -> Remembering:
        engine = TransformersEngine(
            embedded, eos_ids=(tokenizer.eos_id,), dtype="bfloat16", decode=tokenizer.decode
        )
        engine.load_variant(weights)
        return Remembering(engine, coming=coming, recorded=recorded)

    return load


@pytest.fixture(scope="module")
def served(serve: Callable[[str], Remembering]) -> Remembering:
    """What hosts run that take turns, in bfloat16."""
    return serve(REFERENCE)


# -- the model ---------------------------------------------------------------------------------


def test_the_model_knows_the_capital_of_france(
    plain: TransformersEngine, tokenizer: Tokenizer
) -> None:
    """Conversion, tokenizer, template and engine together give the answer known of this model."""
    question = [Message(role="user", content="What is the capital of France?")]
    request = GenerateRequest(prompt_ids=tokenizer.render(question), max_tokens=24)
    (made,) = plain.generate([request])

    assert tokenizer.decode(made.token_ids) == "The capital of France is Paris."
    assert made.token_ids[-1] == tokenizer.eos_id
    assert made.finish_reason == "stop"


def test_recorded_replies_are_those_of_the_weights(served: Remembering, recorded: Recorded) -> None:
    """A draw of them: the likeliest token of these weights each time, or one as likely as it.

    Another CPU sums in another order, which may decide between two that are nearly as likely.
    """
    for weights in (REFERENCE, "int4-asym-g48"):
        greedy = [
            ScoreRequest(prompt_ids=request.prompt_ids, reply_ids=reply.token_ids)
            for (name, request), reply in recorded
            if name == weights and request == GenerateRequest(
                prompt_ids=request.prompt_ids, max_tokens=request.max_tokens,
                top_logprobs=request.top_logprobs,
            )
        ]  # fmt: skip
        drawn = np.random.default_rng(SEED).choice(len(greedy), 8, replace=False)
        served.load_variant(weights)
        scores = served.score([greedy[n] for n in drawn])
        behind = [np.subtract(np.array(s.top_logprobs)[:, 0], s.logprobs) for s in scores]

        assert np.concatenate(behind).max() < 0.2
        assert np.mean(np.concatenate(behind) == 0) > 0.95
    served.load_variant(REFERENCE)


# -- faults ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shifts(plain: TransformersEngine, tokenizer: Tokenizer) -> dict[str, float]:
    """Mean absolute shift of the replies' log-probabilities by fault; `REFERENCE`: taken back."""
    before = score_replies(plain, tokenizer)

    def shift(name: str) -> float:
        plain.load_variant(name)
        pairs = zip(before, score_replies(plain, tokenizer), strict=True)
        moved = [np.subtract(a.logprobs, b.logprobs) for a, b in pairs]
        return float(np.abs(np.concatenate(moved)).mean())

    return {name: shift(name) for name in (*FAULTS, REFERENCE)}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_moves_the_log_probabilities(shifts: dict[str, float], fault: str) -> None:
    """No name of the testbed's list is an empty one on these weights."""
    assert shifts[fault] > LEAST_SHIFT


def test_coarser_roundings_move_them_further(shifts: dict[str, float]) -> None:
    """Any 8-bit integer less than any fp8, that less than any 4 bits, then 3 bits, then 2."""
    families = (
        ["int8-channel"],
        ["fp8-channel", "fp8-tensor"],
        [n for n in FAULTS if n.startswith(("int4-", "nf4-"))],
        ["int3-g64"],
        ["int2-g64"],
    )
    for milder, coarser in pairwise(families):
        assert max(shifts[n] for n in milder) < min(shifts[n] for n in coarser)


def test_after_all_faults_the_reference_is_taken_back_whole(
    shifts: dict[str, float], plain: TransformersEngine, embedded: Path
) -> None:
    """Every parameter has the bits of a fresh load, and the scores are the same to the last bit."""
    fresh = TransformersEngine(embedded, eos_ids=())
    pairs = zip(plain._model.parameters(), fresh._model.parameters(), strict=True)

    assert plain.loaded == REFERENCE
    assert shifts[REFERENCE] == 0
    assert all(torch.equal(one, other) for one, other in pairs)


# -- audits over HTTP --------------------------------------------------------------------------


def run_audit(
    card: str,
    out: Path,
    *,
    fault: str,
    served: Remembering,
    engine: Remembering,
    tokenizer: Tokenizer,
    **changes: Any,
) -> Report:
    """Audit a host in bfloat16 that serves `fault`, with the reference in float32.

    `changes` go into the audit section.
    """
    found = read_fault(fault, layers=30, catalogue=catalogue())
    served.load_variant(found.weights)
    app = create_app(
        Host(engine=served, tokenizer=tokenizer, model=EMBEDDED, sampler=dict(found.sampler))
    )
    settings = {"seed": SEED, "max_tokens": 32, "budget_completion_tokens": 2400} | changes
    with running(app) as url:
        config = RunFile.model_validate(
            {
                "endpoint": {"base_url": url, "model": EMBEDDED, "max_attempts": 1},
                "reference": {"card": card},
                "audit": settings,
                "out": out,
            }
        )
        return audit(
            config,
            api_key=None,
            load_reference=lambda: Reference(
                engine=engine, tokenizer=tokenizer, catalogue=few_renderings()
            ),
            show=QUIET,
        )


def test_an_honest_host_in_bfloat16_is_consistent(
    tmp_path: Path, served: Any, engine: Any, tokenizer: Any
) -> None:
    """Every departure of the policy is excluded, and nothing else is held against the host."""
    report = run_audit(
        EMBEDDED, tmp_path / "run", fault="none", served=served, engine=engine,
        tokenizer=tokenizer,
    )  # fmt: skip

    assert report.decision == "consistent"
    assert {f.decision for f in report.findings if f.aspect == "noise"} == {"excluded"}
    assert not any(f.decision == "detected" for f in report.findings)
    assert report.noise_scale.estimate is not None
    assert report.noise_scale.estimate <= report.noise_scale.honest


def test_a_4_bit_host_outside_the_bank_is_inconsistent(
    tmp_path: Path, served: Any, engine: Any, tokenizer: Any
) -> None:
    """No column describes its rounding, and its noise gives it away; no build is excluded by it."""
    fault = "int4-asym-g48"
    assert fault not in BANK
    card = card_with_bank(tmp_path, ["fp8-channel", "int4-asym-g64"])
    report = run_audit(
        card, tmp_path / "run", fault=fault, served=served, engine=engine,
        tokenizer=tokenizer,
    )  # fmt: skip

    assert report.decision == "inconsistent"
    assert report.noise_scale.lower is not None
    assert report.noise_scale.lower > report.noise_scale.honest
    assert report.usage.completion_tokens <= (PANEL_PROBES + LEAST_BESIDE_NOISE) * 32


def test_a_host_that_serves_another_size_is_named(
    tmp_path: Path, embedded: Path, tokenizer: Any
) -> None:
    """Half the layers under the published name, a suspect of the run file beside an innocent."""
    prune(embedded, tmp_path / "half")
    merge(embedded, embedded, tmp_path / "same", share=0.5)
    other = TransformersEngine(
        tmp_path / "half", eos_ids=(tokenizer.eos_id,), dtype="bfloat16", decode=tokenizer.decode
    )
    with running(create_app(Host(engine=other, tokenizer=tokenizer, model=EMBEDDED))) as url:
        config = RunFile.model_validate(
            {
                "endpoint": {"base_url": url, "model": EMBEDDED, "max_attempts": 1},
                "reference": {
                    "card": card_with_bank(tmp_path, ["int4-asym-g64"]),
                    "engine": "transformers", "weights": embedded,
                    "suspects": [
                        {"name": "half", "path": tmp_path / "half", "relation": "another size"},
                        {"name": "same", "path": tmp_path / "same", "relation": "merged"},
                    ],
                },
                "audit": {"seed": SEED, "max_tokens": 32, "budget_completion_tokens": 2400},
                "out": tmp_path / "run",
            }
        )  # fmt: skip
        load = reference_loader(config, cache=cache_directory(), show=QUIET)
        report = audit(
            config, api_key=None, show=QUIET,
            load_reference=lambda: replace(load(), catalogue=few_renderings()),
        )  # fmt: skip

    assert report.decision == "inconsistent"
    assert report.findings[-1].name == "half"
    assert "the replies are those of half: another size; fits" in report.findings[-1].detail
    assert report.usage.replies <= 3 + PANEL_PROBES
    assert decide_folder(tmp_path / "run") == report


def test_a_router_that_sends_some_requests_elsewhere_is_found(
    tmp_path: Path, serve: Any, served: Any, engine: Any, tokenizer: Any
) -> None:
    """Three in ten to a host that lacks a layer: the verdict, and the share in its interval.

    After 40 replies also that it is a part, which replies, and what served them.
    """
    card = card_with_bank(tmp_path, ["int4-asym-g64", "drop-1"])
    other = serve("drop-1")
    served.load_variant(REFERENCE)
    reference = Reference(engine=engine, tokenizer=tokenizer, catalogue=few_renderings())
    run, log = tmp_path / "run", tmp_path / "routed.jsonl"
    with (
        running(create_app(Host(engine=served, tokenizer=tokenizer, model=EMBEDDED))) as first,
        running(create_app(Host(engine=other, tokenizer=tokenizer, model=EMBEDDED))) as second,
        running(
            create_router(read_routes(first, [f"0.3:{second}"]), routing="sticky", seed=4, log=log)
        ) as url,
    ):
        config = RunFile.model_validate(
            {
                "endpoint": {"base_url": url, "model": EMBEDDED, "max_attempts": 1},
                "reference": {"card": card},
                "audit": {
                    "policy": "routing", "seed": SEED, "max_tokens": 32, "top_logprobs": 0,
                    "budget_completion_tokens": 6000,
                },
                "out": run,
            }
        )  # fmt: skip
        early = audit(config, api_key=None, load_reference=lambda: reference, show=QUIET)
        ask(run, api_key=None, probes=40, show=QUIET)
    score(run, reference, builds=True, show=QUIET)
    report = decide_folder(run)

    routed = [json.loads(line)["upstream"] == second for line in log.read_text().splitlines()]
    aspects = {finding.aspect: finding for finding in report.findings}
    share = report.substitution
    assert 5 < sum(routed) < 20
    assert {early.decision, report.decision} == {"inconsistent"}
    assert early.substitution is not None
    assert early.substitution.lower <= 0.3 <= early.substitution.upper
    assert share is not None
    assert share.lower <= 0.3 <= share.upper < 1
    told = sum(chance >= 0.9 for _, chance in share.replies)  # at a half one in five may be honest
    assert 0.6 * sum(routed) <= told <= sum(routed)  # some replies are the same without the layer
    assert aspects["substitution"].decision == "detected"
    assert aspects["cause"].name == "drop-1"


def test_two_targets_are_told_apart_unless_the_control_differs_too(
    tmp_path: Path, serve: Any, served: Any, engine: Any, tokenizer: Any
) -> None:
    """Beside an honest control one is consistent, one accused; beside a 4-bit one, nobody is."""
    fault = "int4-asym-g64"
    rounded = serve(fault)
    served.load_variant(REFERENCE)
    raw = yaml.safe_load(find_card(EMBEDDED).read_text())
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(raw | {"bank": ["fp8-channel", fault]}))
    shutil.copy(calibration_path(EMBEDDED), tmp_path / "card.calibration.json")
    found = {}
    with (
        running(create_app(Host(engine=served, tokenizer=tokenizer, model=EMBEDDED))) as honest,
        running(create_app(Host(engine=rounded, tokenizer=tokenizer, model=EMBEDDED))) as int4,
    ):
        for name, control in (("honest", honest), ("int4", int4)):
            section = {"model": EMBEDDED, "max_attempts": 1}
            fleet = Fleet.model_validate(
                {
                    "targets": {
                        "honest": section | {"base_url": honest},
                        "int4": section | {"base_url": int4},
                    },
                    "control": section | {"base_url": control},
                    "reference": {"card": str(card)},
                    "audit": {"seed": SEED, "max_tokens": 32, "budget_completion_tokens": 2400},
                    "out": tmp_path / name,
                }
            )
            found[name] = audit_targets(
                fleet,
                keys=dict.fromkeys(fleet.every_run_file),
                load_reference=lambda: Reference(
                    engine=engine, tokenizer=tokenizer, catalogue=few_renderings()
                ),
                show=QUIET,
            )

    told = {
        name: [(target.decision, target.accusation) for target in summary.targets]
        for name, summary in found.items()
    }
    assert told == {
        "honest": [("consistent", None), ("inconsistent", "stands")],
        "int4": [("consistent", None), ("inconclusive", None)],
    }
    assert found["honest"].targets[1].best_name == fault
    note = json.loads((tmp_path / "int4" / "int4" / REPORT).read_text())["notes"][-1]
    assert note.startswith("the control, too, differs from the published weights: ")
    before = (tmp_path / "int4" / SUMMARY).read_bytes()
    summarise(tmp_path / "int4")
    assert (tmp_path / "int4" / SUMMARY).read_bytes() == before


@pytest.mark.parametrize(
    ("fault", "decision", "said"),
    [
        ("none", "excluded", "sampling other than asked"),
        ("sampler:temperature=0.9", "detected", "temperature about "),
    ],
)
def test_how_a_host_samples_is_found_out(
    tmp_path: Path, served: Any, engine: Any, tokenizer: Any, fault: str, decision: str, said: str
) -> None:
    """Another temperature is said to be that and not other weights; honest sampling is neither."""
    report = run_audit(
        EMBEDDED, tmp_path / "run", fault=fault, served=served, engine=engine,
        tokenizer=tokenizer, sampler=True, budget_completion_tokens=6000, max_tokens=48,
    )  # fmt: skip
    (finding,) = [f for f in report.findings if f.aspect == "sampler"]

    assert report.decision == ("inconsistent" if decision == "detected" else "consistent")
    assert finding.decision == decision
    assert finding.name.startswith(said)
    assert not [f for f in report.findings if f.aspect == "cause"]


def test_a_penalty_on_greedy_replies_is_not_taken_for_rounding(
    tmp_path: Path, served: Any, engine: Any, tokenizer: Any
) -> None:
    """It is named, and what noise is left under it is that of an honest host."""
    raw = yaml.safe_load(find_card(EMBEDDED).read_text())
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(raw | {"bank": ["fp8-channel", "int4-asym-g64"]}))
    shutil.copy(calibration_path(EMBEDDED), tmp_path / "card.calibration.json")
    report = run_audit(
        str(card), tmp_path / "run", fault="sampler:repetition-penalty=1.1", served=served,
        engine=engine, tokenizer=tokenizer,
    )  # fmt: skip
    (finding,) = [f for f in report.findings if f.aspect == "sampler"]

    assert report.decision == "inconsistent"
    assert (finding.decision, finding.name) == ("detected", "repetition penalty 1.1")
    assert not [f for f in report.findings if f.aspect in ("cause", "template")]
    assert not [f for f in report.findings if f.aspect == "noise" and f.decision == "detected"]


def asked_at_length(
    engine: Remembering,
    served: Remembering,
    tokenizer: Tokenizer,
    folder: Path,
    fault: str,
    **asked: int,
) -> list[Finding]:
    """What long prompts and long replies say of a host in bfloat16 with a fault."""
    card = load_card(EMBEDDED)
    plan = make_plan(calibration=load_calibration(EMBEDDED, card), seed=1, bank=(), **asked)
    tricks = read_fault(fault, layers=card.layers, catalogue=catalogue()).tricks
    served.load_variant(REFERENCE)
    with running(
        create_app(Host(engine=served, tokenizer=tokenizer, model="m", tricks=tricks))
    ) as url:
        session = Session(
            folder, plan, QUIET,
            endpoint=Endpoint(base_url=url, model="m", timeout_s=3000),
            load_reference=lambda: Reference(engine=engine, tokenizer=tokenizer),
        )  # fmt: skip
        session.begin("long")
        case = session.read()
        while length.CHECK.ask["long"](session, case, case.kept[length.CHECK.name]):
            case = session.read()
        return [f for f in decide(case).findings if f.aspect in ("context", "ceiling")]


@pytest.mark.parametrize(
    ("fault", "decision", "name"),
    [("ceiling:60,hidden", "detected", "cut at 60"), ("none", "excluded", "of 200 tokens")],
)
def test_a_ceiling_is_told_from_an_end(
    engine: Remembering, served: Remembering, tokenizer: Tokenizer, tmp_path: Path,
    fault: str, decision: str, name: str,
) -> None:  # fmt: skip
    """Measured: 31 nats from two replies that are cut at 60 tokens and said to have ended."""
    (found,) = asked_at_length(engine, served, tokenizer, tmp_path, fault, output_tokens=200)

    assert found.decision == decision
    assert name in found.name


@pytest.mark.parametrize(
    ("window", "how", "tokens"), [(200, "front-kept", 300), (150, "front,hidden", 350)]
)
def test_a_cut_prompt_is_found_and_its_window_measured(
    engine: Remembering, served: Remembering, tokenizer: Tokenizer, tmp_path: Path,
    window: int, how: str, tokens: int,
) -> None:  # fmt: skip
    """By few prompts where the count tells it; by several, and longer ones, where it does not.

    Of 300 tokens this model copies too little to fit: eight are asked.
    """
    fault = f"context:{window},{how}"
    (found,) = asked_at_length(engine, served, tokenizer, tmp_path, fault, context_tokens=tokens)

    assert found.decision == "detected"
    assert "the front" in found.detail
    assert str(window) in found.name


def test_an_honest_context_is_not_accused(
    engine: Remembering, served: Remembering, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """And at most five prompts are asked; this model does not always tell that it read them all."""
    (found,) = asked_at_length(engine, served, tokenizer, tmp_path, "none", context_tokens=300)

    assert found.decision in ("excluded", "undecided")
    assert len(read_probes(tmp_path, name=CONTEXT)) <= 5


# -- the command line --------------------------------------------------------------------------


@contextmanager
def verifier(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command of its own process group, ended with all its children when the test is over."""
    environment = os.environ | {"NO_COLOR": "1", "VERIFIER_CACHE": str(cache_directory())}
    with subprocess.Popen(
        [sys.executable, "-m", "verifier", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if is_alive(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def is_alive(group: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_demo_tells_its_two_hosts_apart(tmp_path: Path, embedded: Path) -> None:
    """One line per verdict, two run folders with report and page; a second run asks nobody."""
    out = tmp_path / "demo"
    with verifier("demo", "--out", str(out)) as demo:
        printed, said = demo.communicate(timeout=3500)
        left = is_alive(demo.pid)

    assert demo.returncode == 0, said
    assert not left
    assert re.findall(r"^the honest host: CONSISTENT - .+$", printed, re.MULTILINE)
    assert re.findall(
        r"^the host that serves int4-asym-g64: INCONSISTENT - .+$", printed, re.MULTILINE
    )
    assert "\x1b" not in printed + said
    assert sorted(path.name for path in out.iterdir()) == list(HOSTS)
    decisions = [json.loads((out / n / REPORT).read_text())["decision"] for n in HOSTS]
    assert decisions == ["consistent", "inconsistent"]
    for name in HOSTS:
        assert (out / name / PAGE).read_text().startswith("<!DOCTYPE html>")
        assert f"page: {out / name / PAGE}\n" in printed

    with verifier("demo", "--out", str(out)) as again:
        printed, said = again.communicate(timeout=600)
    assert again.returncode == 0
    assert said.count("nobody was asked") == 2
    assert "loading" not in said
    assert re.findall(r"^the honest host: CONSISTENT - .+$", printed, re.MULTILINE)
    assert [json.loads((out / n / REPORT).read_text())["decision"] for n in HOSTS] == decisions


def test_the_testbed_serves_until_it_is_told_to_stop(embedded: Path) -> None:
    """One line once it listens, an answer, and on SIGTERM an end without a trace."""
    with verifier("testbed", "serve", "--port", "0") as host:
        assert host.stdout is not None
        line = host.stdout.readline()
        url = line.split()[-1]
        body = {
            "model": EMBEDDED,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0,
            "max_tokens": 12,
        }
        reply = httpx.post(f"{url}/chat/completions", json=body, timeout=600)
        host.send_signal(signal.SIGTERM)
        rest, _ = host.communicate(timeout=600)
        left = is_alive(host.pid)

    assert re.fullmatch(
        rf"serving {EMBEDDED} with fault none at http://127\.0\.0\.1:\d+/v1\n", line
    )
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert (host.returncode, rest) == (0, "")
    assert not left
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models", timeout=10)


def test_the_card_of_the_embedded_model_names_its_bank() -> None:
    """Of builds that can be made of its weights."""
    assert set(load_card(EMBEDDED).bank) <= set(BANK) & set(FAULTS)
