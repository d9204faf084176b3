"""Audits from a pack: verdicts without weights, and what is said of what they leave open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from audits import FAULT, NOWHERE, QUIET, host, make_engine, write_run_file
from command_line import _plain_surroundings, call  # noqa: F401 - a fixture
from fakes_engine import FakeTokenizer
from packs import TOKENS, configure_packed, run_packed, write_keys, write_tiny_pack
from source import ROOT
from toy_pack import ToyPack, every_text, say

from verifier.config import RunFile, load_run_file
from verifier.errors import ConfigError
from verifier.evidence.ledger import read_ledger
from verifier.files.run_folder import EXCHANGES, LEDGER, REPORT
from verifier.host.collect import read_outcomes
from verifier.plan_file import read_plan, read_probes
from verifier.records import Probe
from verifier.reference.pack_file import read_pack
from verifier.scoring.packed import _renderings, _sum
from verifier.scoring.paths import walk
from verifier.scoring.score import score_replies
from verifier.steps import score_packed, start
from verifier.verdict.decide import decide_folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of the tiny model, with what one build says."""
    return write_tiny_pack(tmp_path_factory.mktemp("pack"), builds=(FAULT,))


# -- level ------------------------------------------------------------------------------------

#: A fault and a valid rendering that say other things, in part.
TOLD = ToyPack(
    [
        [{"a": 0.5, "b": 0.4}, {"b": 0.6, "c": 0.2}, {"a": 0.7, "b": 0.1}],
        [{"c": 0.4, "a": 0.3}, {"a": 0.5, "b": 0.4}],
        [{"b": 0.6, "a": 0.3}, {"c": 0.8, "a": 0.1}, {"a": 0.6, "c": 0.3}],
        [{"a": 0.8, "c": 0.1}, {"b": 0.3, "a": 0.4}],
    ],
    {(0, 0, "b"): 1},
    {"generation-prompt-missing": 2, "leading-whitespace-stripped": 3},
)


ASKED = Probe(id="p", kind="test", messages=(), max_tokens=3)


@pytest.mark.parametrize(("null", "other"), [(10, 10), (15, 40), (30, 10)])
def test_a_fault_leads_no_valid_rendering_by_more_than_it_may(null: int, other: int) -> None:
    """Null: the host renders as published, or validly otherwise, with noise of any one scale. Every
    text is counted: the mean of the ratio of a fault at any scale to it is at most 1."""
    for path, column in ((0, "reference"), (3, "leading-whitespace-stripped")):
        total = 0.0
        for text, p in every_text(TOLD, "abc", 3, null, path=path):
            reply = say(text)
            own = walk(TOLD, 0, reply)  # type: ignore[arg-type]  # as far as it is needed
            cells = _renderings(TOLD, 0, own, ASKED, reply)  # type: ignore[arg-type]
            cells["reference"] = _sum(own.steps)
            ratio = cells["generation-prompt-missing"][other] - cells[column][null]
            total += p * float(np.exp(ratio))
        assert total <= 1 + 1e-6


def test_an_honest_host_stays_honest_however_often_it_is_asked(pack: Path, tmp_path: Path) -> None:
    """Null: the published weights. Its evidence falls with every reply, and accuses nowhere."""
    for seed in (1, 2, 3):
        with host() as url:
            report = run_packed(configure_packed(url, pack, tmp_path / str(seed), seed=seed))
        assert report.decision == "consistent"


# -- power ------------------------------------------------------------------------------------


def test_a_host_with_other_weights_is_inconsistent_from_a_pack(pack: Path, tmp_path: Path) -> None:
    """By the first place where each reply leaves what is known."""
    with host(FAULT) as url:
        report = run_packed(configure_packed(url, pack, tmp_path / "run"))

    assert report.decision == "inconsistent"
    assert report.evidence is not None
    assert report.evidence.worst


# -- known answer -----------------------------------------------------------------------------


def test_a_reply_that_follows_its_path_has_the_cells_that_weights_give_it(
    pack: Path, tmp_path: Path
) -> None:
    """The tiny model's own, by its log-probabilities, to what a pack rounds."""
    with host() as url:
        config = configure_packed(url, pack, tmp_path / "packed")
        run_packed(config)
    probes = read_probes(config.out)
    outcomes = read_outcomes(config.out, max_attempts=1)
    whole = tmp_path / "whole"
    whole.mkdir()
    ledger = score_replies(
        whole, probes, outcomes, engine=make_engine(), tokenizer=FakeTokenizer(),
    )  # fmt: skip

    pairs = list(zip(read_ledger(config.out).rows, ledger.rows, strict=True))
    alike = [(own, other) for own, other in pairs if own.tokens == other.tokens]
    assert all(own.tokens <= other.tokens for own, other in pairs)
    assert len(alike) > len(pairs) / 2
    for own, other in alike:
        assert own.text["reference"] == pytest.approx(other.text["reference"], abs=0.05)


# -- one audit ----------------------------------------------------------------------------------


def test_an_honest_host_is_consistent_from_a_pack_alone(pack: Path, tmp_path: Path) -> None:
    """No weights are loaded, and every reply follows its path."""
    with host() as url:
        report = run_packed(configure_packed(url, pack, tmp_path / "run"))

    assert report.decision == "consistent"
    assert all(row.text for row in read_ledger(tmp_path / "run").rows)
    assert report.evidence is not None
    assert report.evidence.differing == 0


def test_a_fault_of_the_template_is_named_from_the_panel_of_a_pack(
    pack: Path, tmp_path: Path
) -> None:
    """Counts of prompts, and paths under every rendering."""
    name = "generation-prompt-missing"
    with host(template=name) as url:
        report = run_packed(configure_packed(url, pack, tmp_path / "run"))

    assert report.decision == "inconsistent"
    assert [f.name for f in report.findings if f.aspect == "template"] == [name]


def test_a_report_says_whose_word_its_reference_is(pack: Path, tmp_path: Path) -> None:
    """The digest, who signed, and the blind spot of every pack."""
    with host() as url:
        report = run_packed(configure_packed(url, pack, tmp_path / "run"))

    notes = " ".join(report.notes)
    assert read_pack(pack).digest[:16] in notes
    assert "signed by nobody" in notes
    assert "from a store" in notes
    assert report.signature["engine"] == {"engine": "fake", "pack": read_pack(pack).digest}


def test_what_a_pack_cannot_judge_is_not_run(pack: Path, tmp_path: Path) -> None:
    """It is asked for, left out, and said."""
    with host() as url:
        report = run_packed(
            configure_packed(url, pack, tmp_path / "run", sampler=True, context=4096)
        )

    said = {f.name: f.decision for f in report.findings if f.aspect == "pack"}
    assert said == {"how replies are sampled": "not run", "long prompts": "not run"}
    assert report.decision == "consistent"


def test_probes_are_drawn_from_the_pack_by_the_secret_seed(pack: Path, tmp_path: Path) -> None:
    """Another seed asks others, and none that is there for templates."""
    drawn = []
    for seed in (1, 2):
        config = configure_packed(NOWHERE, pack, tmp_path / str(seed), seed=seed)
        start(config)
        drawn.append([probe.id for probe in read_probes(config.out)])

    own = {probe.id for probe in read_pack(pack).ordinary}
    assert drawn[0] != drawn[1]
    assert set(drawn[0]) | set(drawn[1]) <= own
    assert len(set(drawn[0])) == len(drawn[0])


def test_a_decision_needs_no_pack_and_a_score_the_same_one(pack: Path, tmp_path: Path) -> None:
    """The folder alone is decided to the same bytes; another pack is refused."""
    run = tmp_path / "run"
    with host() as url:
        config = configure_packed(url, pack, run)
        run_packed(config)
    report, ledger = (run / REPORT).read_bytes(), (run / LEDGER).read_bytes()

    decide_folder(run)
    assert (run / REPORT).read_bytes() == report
    (run / LEDGER).unlink()
    score_packed(run, show=QUIET)
    assert (run / LEDGER).read_bytes() == ledger

    other = write_tiny_pack(tmp_path, questions=16, name="other.pack")
    moved = pack.read_bytes()
    try:
        pack.write_bytes(other.read_bytes())
        with pytest.raises(ConfigError, match="the run was planned on the pack"):
            score_packed(run, show=QUIET)
    finally:
        pack.write_bytes(moved)


def test_a_question_that_was_changed_is_not_judged(pack: Path, tmp_path: Path) -> None:
    """The paths are those of the very words."""
    run = tmp_path / "run"
    with host() as url:
        run_packed(configure_packed(url, pack, run))
    probes = run / "probes.jsonl"
    first = read_probes(run)[0].messages[-1].content
    text = probes.read_text()
    probes.write_text(text.replace(first[:12], "Tell me now,", 1))
    score_packed(run, show=QUIET)

    assert read_ledger(run).rows[0].unjudged == "the pack has no such question"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": "strict"}, "audit.policy: builds"),
        ({"max_tokens": 64, "budget_completion_tokens": 6000}, "the pack's paths have 12 tokens"),
        ({"template_settings": {"enable_thinking": False}}, "audit.template_settings"),
        ({"after": "earlier"}, "audit.after: questions of a pack may come again"),
        ({"kinds": ("none",)}, "audit.kinds: the pack has questions of kind"),
    ],
)
def test_what_would_be_another_audit_is_refused(
    pack: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """Before anything is written."""
    config = configure_packed(NOWHERE, pack, tmp_path / "run", **changes)

    with pytest.raises(ConfigError, match=said):
        start(config)
    assert not (tmp_path / "run").exists()


def test_a_run_file_names_weights_or_a_pack(pack: Path, tmp_path: Path) -> None:
    """Or both, not neither; and comes back as it was written."""
    config = configure_packed(NOWHERE, pack, tmp_path / "run")
    start(config)
    assert load_run_file(tmp_path / "run" / "run.yaml") == config

    asked = config.model_dump(mode="json")
    for reference, said in (
        ({"pack": "x.pack", "weights": "folder"}, "weights: beside a pack alone"),
        ({"pack": "x.pack", "suspects": [{"name": "a", "path": "b"}]}, "suspects: beside a pack"),
        ({"card": "tiny", "pack_key": "k.pem"}, "pack_key: without a pack"),
        ({"engine": "auto"}, "Field required"),
    ):
        with pytest.raises(ValueError, match=said):
            RunFile.model_validate(asked | {"reference": reference})


def test_the_command_line_takes_a_pack_in_the_place_of_a_card(pack: Path, tmp_path: Path) -> None:
    """`--reference FILE.pack`, over a run file that names a card too."""
    file = write_run_file(tmp_path, NOWHERE)
    ended = call("plan", file, "--reference", pack, "--out", tmp_path / "run")

    assert ended.status == 0, ended.err
    assert read_plan(tmp_path / "run").pack is not None


def test_an_option_takes_the_place_of_its_own_kind_where_a_run_file_names_both(
    pack: Path, tmp_path: Path
) -> None:
    """A spot check stays one."""
    file = write_run_file(tmp_path, NOWHERE, reference={"pack": "gone.pack"})
    ended = call("plan", file, "--reference", pack, "--out", tmp_path / "run")

    assert ended.status == 0, ended.err
    facts = read_plan(tmp_path / "run").pack
    assert facts is not None
    assert facts.with_weights


def test_a_key_that_must_have_signed_is_heeded(tmp_path: Path) -> None:
    """One line each, and nothing is written."""
    key, _, public = write_keys(tmp_path, "maker")
    unsigned = write_tiny_pack(tmp_path, questions=16)
    signed = write_tiny_pack(tmp_path, questions=16, key=key, name="signed.pack")
    options = ["--base-url", NOWHERE, "--model", "tiny", "--pack-key", public]

    refused = call("plan", *options, "--reference", unsigned, "--out", tmp_path / "run")
    assert refused.status == 2
    assert "is not signed" in refused.complaint
    assert not (tmp_path / "run").exists()
    checked = call("pack", "check", signed, "--key", public)
    assert checked.status == 0
    assert key.public_key().public_bytes_raw().hex() in checked.out
    assert call("pack", "show", signed).out.startswith("licence: none")
    digest = read_pack(signed).digest
    assert call("pack", "show", signed, "--only-digest").out == f"{digest}\n"
    assert call("pack", "check", signed, "--digest", digest).status == 0
    assert call("pack", "check", signed, "--digest", "0" * 64).status == 2


def test_an_audit_from_a_pack_imports_neither_torch_nor_transformers(
    pack: Path, tmp_path: Path
) -> None:
    """In a process in which they cannot be imported."""
    with host() as url:
        file = tmp_path / "run.yaml"
        config = configure_packed(url, pack, tmp_path / "run").model_dump(mode="json")
        del config["audit"]["max_tokens"]
        file.write_text(yaml.safe_dump(config))
        script = (
            "import sys\n"
            "for name in ('torch', 'transformers', 'accelerate', 'compressed_tensors', 'gguf'):\n"
            "    sys.modules[name] = None\n"
            "from verifier.cli import main\n"
            f"sys.argv = ['verifier', 'audit', {str(file)!r}]\n"
            "main()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
        )

    assert done.returncode in (0, 3), done.stderr
    assert (tmp_path / "run" / EXCHANGES).exists()
    assert TOKENS < 48  # fewer tokens are asked for than usual, since the paths are short
    assert read_plan(tmp_path / "run").max_tokens == TOKENS
