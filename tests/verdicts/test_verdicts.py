"""Run folders and the bytes of their reports: what is said of an endpoint stays what it was.

The folders are committed with what was decided of each: a report that comes out otherwise is a
change of a verdict. Where a rule of the verdict is meant to change, all are decided again, and the
difference is read; `make.py` does that, and says what each is of.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from verifier.fleet.summary import summarise
from verifier.verdict.decide import decide_folder

HERE = Path(__file__).parent
FOLDERS = sorted(path for path in (HERE / "folders").iterdir() if path.is_dir())

#: What the folders say between them: every aspect in every status that can be given.
#: Beside a control in doubt what was detected is undecided, which a few aspects never are else.
SAID = {
    "noise": {"excluded", "detected", "undecided", "not run"},
    "weights": {"excluded", "detected", "undecided", "not run"},
    "routing": {"excluded", "detected", "undecided", "not run"},
    "logprobs": {"detected", "undecided"},
    "sampler": {"excluded", "detected", "undecided", "not run"},
    "repeats": {"detected", "undecided", "not run"},
    "context": {"excluded", "detected", "undecided", "not run"},
    "ceiling": {"excluded", "detected", "undecided", "not run"},
    "shown prompt": {"detected", "undecided"},
    "template": {"detected"},
    "substitution": {"detected"},
    "tokenizer": {"detected"},
    "cause": {"detected", "undecided"},
    "strata": {"detected", "undecided"},
    "forged": {"detected"},
    "reports": {"detected"},
    "samples": {"detected", "undecided"},
    "parameters": {"detected"},
    "usage": {"detected"},
}

#: Words that the reports hold between them, each of a note or a name that nothing else stands for.
WORDS = (
    "was not judged:",
    "log-probabilities were not asked for",
    "reported log-probabilities were not used",
    "agree with the published weights",
    "an accounting difference",
    "probes failed, most often",
    "answers say nothing about the weights",
    "still speak of the template",
    "tokens were left out",
    "the budget of 320 completion tokens ended first",
    "most probes got no usable reply",
    "came first (audit.deadline)",
    "asked with thinking off",
    "are rendered as published",
    "speak neither for nor against the weights yet",
    "fit the published weights: the fault is in how chats are served",
    "differ from the published weights too",
    "as if they had been made into chats",
    "text completions were not judged: HTTP 404",
    "parameters are taken and ignored",
    "requests have no answer on record",
    "nobody has checked the card",
    "a rendering that is not known",
    "a prompt of no known rendering",
    "no-template or family-gemma",
    "the replies are those of sibling",
    "a model near sibling",
    "not this model as published, and nothing else that we know",
    "a model of another family",
    "single tokens other than the likeliest",
    "best token dropped 0.05",
    "presence penalty 1.02 (1 or 1.02)",
    "temperature about 0.7",
    "requests that are streamed",
    "prompts cut to about 500 tokens",
    "replies cut at 91 tokens",
    "the control vouches for nothing",
    "the control is not judged yet",
    "the control, too, differs",
    "the control differs from the published weights",
    "too few probes were answered for a verdict",
    "no reply could be scored",
)


def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy without what was said of it."""
    left_out = shutil.ignore_patterns("expected-*")
    return Path(shutil.copytree(folder, tmp_path / folder.name, ignore=left_out))


def said(path: Path) -> str:
    """All of a file; its line ends, too."""
    return path.read_bytes().decode()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_is_reported_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Verdict, findings in their order and number, notes, words and numbers."""
    run = copied(folder, tmp_path)
    decide_folder(run)

    assert said(run / "report.json") == said(folder / "expected-report.json")


def test_the_folders_say_all_that_can_be_said() -> None:
    """So that none is dropped with what it alone holds."""
    reports = [json.loads((folder / "expected-report.json").read_text()) for folder in FOLDERS]
    found: dict[str, set[str]] = {}
    for finding in (finding for report in reports for finding in report["findings"]):
        found.setdefault(finding["aspect"], set()).add(finding["decision"])

    assert found == SAID
    assert {report["decision"] for report in reports} == {
        "consistent", "inconsistent", "inconclusive",
    }  # fmt: skip
    assert {report["control"]["finding"] for report in reports if report["control"]} == {
        "consistent", "inconsistent", "inconclusive", "failed", "pending",
    }  # fmt: skip
    told = json.dumps(reports)
    assert [words for words in WORDS if words not in told] == []


def test_several_targets_are_summarised_with_the_same_bytes(tmp_path: Path) -> None:
    """Where they stand beside a control, and what is kept of it in the folder of each."""
    fleet = HERE / "fleet"
    out = copied(fleet, tmp_path)
    summarise(out)

    expected = sorted(fleet.rglob("expected-*"))
    assert len(expected) == 1 + 5 + 6  # summary; reports; controls
    for path in expected:
        made = out / path.parent.relative_to(fleet) / path.name.removeprefix("expected-")
        assert said(made) == said(path), path.name
