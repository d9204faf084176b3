"""Whole run folders to begin from, made by audits of local hosts under a fake engine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fakes_engine import FakeTokenizer

from attacks.lab import FAULT, Ended, Lab, make_engine, run, warm, write_run_file
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.reference.renderings.catalogue import catalogue, served


def make_base(lab: Lab, name: str) -> Path:
    """The folder of a finished audit: `run` in it is the run folder, `file.yaml` its run file."""
    folder = lab.folder(name)
    with ExitStack() as stack:

        def host(weights: str = "reference", template: str = "reference", **more: Any) -> str:
            app = create_app(Host(
                engine=make_engine(weights), tokenizer=FakeTokenizer(), model="tiny", window_s=0.001,
                rendering=served(template, catalogue()), **more,
            ))  # fmt: skip
            return stack.enter_context(running(app))

        match name:
            case "honest":
                path = write_run_file(folder, host(), top_logprobs=5)
            case "faulty":
                path = write_run_file(folder, host(FAULT), top_logprobs=5)
            case "template":
                path = write_run_file(
                    folder, host(template="generation-prompt-missing", shows_prompts=True),
                    budget_completion_tokens=1200,
                )  # fmt: skip
            case "sampled":
                path = write_run_file(
                    folder, host(), top_logprobs=5, capabilities=True, sampler=True,
                    budget_completion_tokens=600,
                )  # fmt: skip
            case _:
                endpoint = {"model": "tiny", "max_attempts": 1}
                targets = {
                    "good": endpoint | {"base_url": host()},
                    "bad": endpoint | {"base_url": host(FAULT)},
                    "dead": endpoint | {"base_url": "http://127.0.0.1:1/v1"},
                }
                control = endpoint | {"base_url": host()}
                path = write_run_file(folder, "", top={"targets": targets, "control": control})
        ended = run("audit", path, seconds=240)
    expected = {"honest": (0,), "faulty": (1,), "template": (1,), "sampled": (0, 3)}
    if ended.status not in expected.get(name, (1,)):
        raise RuntimeError(f"base folder {name}: {why(ended)}")
    if name == "fleet":
        warm(folder / "run", "summary")
        warm(folder / "run" / "good")
    else:
        warm(folder / "run")
    return folder


def why(ended: Ended) -> str:
    return f"exit {ended.status}: {ended.err[-400:]}"
