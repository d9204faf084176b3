"""Whole audits of the tiny model: its card, its run files, its hosts, and the reference for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from fakes_engine import FakeEngine, FakeTokenizer
from simulate import SHA, make_calibration

from verifier.audit import audit
from verifier.config import RunFile
from verifier.files.run_folder import write_json
from verifier.host.collect import read_attempts
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.faults import read_fault
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.progress import Show
from verifier.records import Report
from verifier.reference.loaded import Reference
from verifier.reference.renderings.catalogue import catalogue, served

KEY: Final = "sk-invented-5f2b9c1d"
FAULT: Final = "int4-sym-g64"
NOWHERE: Final = "http://127.0.0.1:1/v1"  # port 1 of the loopback refuses connections
QUIET: Final = Show(tell=lambda _line: None, step=lambda _name, _done, _of: None)
CARD: Final[dict[str, Any]] = {
    "name": "tiny",
    "model": "tiny",
    "publisher": "nobody",
    "licence": {"name": "none", "hosting": "allowed"},
    "precision": "float32",
    "layers": 2,
    "source": {"kind": "directory", "path": "weights"},
    "digests": {
        "rules": 2,
        "tensors_sha256": SHA,
        "config_sha256": SHA,
        "tokenizer_sha256": SHA,
        "template_sha256": SHA,
    },
    "bank": [FAULT, "fp8-channel"],
    "calibration_stacks": ["float32-batch1"],
    "held_out_stacks": [],
}

#: Digests of a card that pins nothing.
UNPINNED: Final = dict.fromkeys(("tensors_sha256", "tokenizer_sha256", "template_sha256"))


def make_engine(weights: str = "reference") -> FakeEngine:
    """An engine in which two builds are told from the published weights."""
    engine = FakeEngine(margin=3.5, noise={FAULT: 1.5, "fp8-channel": 1.5})
    engine.load_variant(weights)
    return engine


def load_reference() -> Reference:
    """The reference of these audits."""
    return Reference(engine=make_engine(), tokenizer=FakeTokenizer())


def write_card(folder: Path, **changes: Any) -> Path:
    """A calibrated card of the tiny model."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(CARD | changes))
    write_json(folder / "tiny.calibration.json", make_calibration().model_dump(mode="json"))
    return path


def write_run_file(folder: Path, url: str, *, name: str = "file.yaml", **changes: Any) -> Path:
    """A run file beside its card; `changes` go into its audit section.

    Those of `endpoint` and `reference` go into these sections, `top` beside them; `targets` there
    stand for the one endpoint.
    """
    endpoint = {"base_url": url, "model": "tiny", "max_attempts": 1}
    settings = {
        "max_tokens": 12, "seed": 5, "budget_completion_tokens": 240, "top_logprobs": 0,
        "min_replies": 10,
    }  # fmt: skip
    policy = {"noise": ["4-bit-class rounding", "another model"]}
    content = {
        "endpoint": endpoint | changes.pop("endpoint", {}),
        "reference": {"card": str(write_card(folder))} | changes.pop("reference", {}),
        "prices": {"prompt": 1.0, "completion": 2.0},
        "out": str(folder / "run"),
    } | changes.pop("top", {})
    content["audit"] = {"policy": policy} | settings | changes
    if "targets" in content:
        del content["endpoint"]
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return path


@contextmanager
def host(
    weights: str = "reference",
    *,
    template: str = "reference",
    api_key: str | None = None,
    shows_prompts: bool = False,
) -> Iterator[str]:
    """The URL of a host that serves the tiny model."""
    app = create_app(Host(
        engine=make_engine(weights), tokenizer=FakeTokenizer(), model="tiny", api_key=api_key,
        window_s=0.001, rendering=served(template, catalogue()), shows_prompts=shows_prompts,
    ))  # fmt: skip
    with running(app) as url:
        yield url


@contextmanager
def host_with(fault: str, engine: FakeEngine | None = None) -> Iterator[str]:
    """The URL of a host with a fault, as the testbed names it."""
    found = read_fault(fault, layers=2, catalogue=catalogue())
    app = create_app(Host(
        engine=engine or make_engine(found.weights), tokenizer=FakeTokenizer(), model="tiny",
        window_s=0.001, rendering=found.rendering, sampler=dict(found.sampler),
        tricks=found.tricks, weights=found.weights,
    ))  # fmt: skip
    with running(app) as url:
        yield url


def configure(url: str, card: Path, out: Path, **changes: Any) -> RunFile:
    """A run file; `changes` go into its audit section, `endpoint` into that one."""
    endpoint = {"base_url": url, "model": "tiny", "max_attempts": 1} | changes.pop("endpoint", {})
    settings = {
        "max_tokens": 12, "seed": 5, "budget_completion_tokens": 1200, "min_replies": 10,
    } | changes  # fmt: skip
    policy = {"noise": ["4-bit-class rounding", "another model"]}
    return RunFile.model_validate(
        {
            "endpoint": endpoint,
            "reference": {"card": str(card)},
            "audit": {"policy": policy} | settings,
            "out": out,
        }
    )


def run(config: RunFile, *, key: str | None = None, show: Show = QUIET) -> Report:
    """Audit with the reference of these audits."""
    return audit(config, api_key=key, load_reference=load_reference, show=show)


def requests_of(out: Path) -> list[dict[str, Any]]:
    """What was asked of the endpoint of a run folder."""
    return [yaml.safe_load(attempt.request) for attempt in read_attempts(out)]
