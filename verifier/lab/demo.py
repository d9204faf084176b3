"""The demo: two local hosts, one honest and one with 4-bit weights, audited as a buyer would."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from verifier.audit import audit
from verifier.config import AuditSection, EndpointSection, ReferenceSection, RunFile, load_run_file
from verifier.errors import ConfigError, VerifierError
from verifier.files.run_folder import RUN, working_in
from verifier.progress import Show
from verifier.records import Report
from verifier.reference.loaded import LoadReference, load_once
from verifier.safety.child import plain_environment, python
from verifier.shipped import shipped
from verifier.steps import is_finished, write_page
from verifier.verdict.decide import decide_folder
from verifier.wording import describe_last

CARD = "smollm2-135m-instruct"

#: Name of each host, and the fault it serves.
HOSTS = {"honest": "none", "int4": "int4-asym-g64"}

#: Seconds that a host has to end once it is told to.
_LEAVE_S: Final = 1.0


class DemoFailed(VerifierError):
    """A host of the demo did not start."""


def shipped_pack() -> Path:
    """The pack of the embedded model. Raises ConfigError where none ships."""
    path = shipped("reference/packs") / f"{CARD}.pack"
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such pack; `verifier pack make {CARD} --probes 200 --out {path}` makes it"
        )
    return path


def run_demo(
    out: Path, *, load_reference: LoadReference, show: Show, pack: Path | None = None
) -> Iterator[tuple[str, str, Report]]:
    """Audit each host; yields its name, its fault and the report. From a `pack`, no reference is
    loaded, and nothing is scored.

    Run folders lie in `out`. An audit that was stopped goes on, and one that is finished asks
    nobody, and loads nothing.
    """
    load = load_once(load_reference)
    for name, fault in HOSTS.items():
        yield name, fault, _audit_host(fault, out / name, load_reference=load, show=show, pack=pack)


def _audit_host(
    fault: str, run: Path, *, load_reference: LoadReference, show: Show, pack: Path | None
) -> Report:
    if is_finished(run):
        with working_in(run):
            found = decide_folder(run)
            write_page(run)
        show.tell(
            f"nobody was asked: {run} is finished, its last question asked {describe_last(found)}; "
            "remove it, or give another --out, to audit anew"
        )
        return found
    with working_in(run, make=True), ExitStack() as held:  # at once: what follows takes a while
        if pack is None:
            load_reference()  # before the host is started: what it lacks is said first
        show.tell(f"starting the host {run.name!r} (weights fault: {fault})")
        base_url = held.enter_context(_host_of(fault, run))
        config = RunFile(
            endpoint=EndpointSection(base_url=base_url, model=CARD, concurrency=8),
            reference=ReferenceSection(card=CARD if pack is None else "", pack=pack),
            audit=AuditSection(policy="screen"),
            out=run,
        )
        return audit(config, api_key=None, load_reference=load_reference, show=show)


@contextmanager
def _host_of(fault: str, run: Path) -> Iterator[str]:
    """The host of a run folder, where it was asked before if it was."""
    with ExitStack() as held:
        try:
            url = held.enter_context(local_host(fault, port=kept_port(run)))
        except DemoFailed as error:
            if not (run / RUN).exists():
                raise
            raise DemoFailed(f"{error}; mend that, or remove {run} and begin anew") from error
        yield url


def refuse_others(out: Path) -> None:
    """Raise ConfigError for a folder that holds more than a demo."""
    if out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= HOSTS.keys()):
        raise ConfigError(f"{out}: exists and is no folder of a demo; give another --out")


def kept_port(run: Path) -> int:
    """The port of the local host that a run folder asked, so that it is asked on; 0: any."""
    if not (run / RUN).exists():
        return 0
    url = urlsplit(load_run_file(run / RUN, below=run).endpoint.base_url)
    return url.port or 0


@contextmanager
def local_host(fault: str, *, dtype: str = "float32", port: int = 0) -> Iterator[str]:
    """A testbed host in a process of its own; yields its base URL and ends it on leaving.

    Port 0 picks a free one.
    """
    command = python(
        "verifier", "testbed", "serve", "--fault", fault, "--port", str(port), "--dtype", dtype
    )
    host = subprocess.Popen(  # noqa: S603 - our own command
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=plain_environment(),
    )  # fmt: skip
    try:
        assert host.stdout is not None
        line = host.stdout.readline()  # one line, once it listens; nothing when it failed
        if not line.startswith("serving"):
            _, said = host.communicate()  # it has closed its stdout, so it ends
            reason = said.strip().splitlines()[-1:] or ["it said nothing"]
            raise DemoFailed(f"the local host with fault {fault!r} did not start: {reason[0]}")
        yield line.split()[-1]
    finally:
        host.terminate()
        try:
            host.communicate(timeout=_LEAVE_S)
        except subprocess.TimeoutExpired:
            host.kill()
            host.communicate()
