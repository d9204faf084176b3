"""The demo: two local hosts, one honest and one with 4-bit weights, audited as a buyer would."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verifier.audit import audit
from verifier.config import AuditSection, EndpointSection, ReferenceSection, RunFile
from verifier.errors import VerifierError
from verifier.files.run_folder import working_in
from verifier.progress import Show
from verifier.records import Report
from verifier.reference.loaded import LoadReference
from verifier.safety.child import plain_environment, python

CARD = "smollm2-135m-instruct"

#: Name of each host, and the fault it serves.
HOSTS = {"honest": "none", "int4": "int4-asym-g64"}

_WAIT_S = 120


class DemoFailed(VerifierError):
    """A host of the demo did not start."""


def run_demo(
    out: Path, *, load_reference: LoadReference, show: Show
) -> Iterator[tuple[str, str, Report]]:
    """Audit each host; yields its name, its fault and the report. Run folders lie in `out`."""
    reference = load_reference()
    for name, fault in HOSTS.items():
        show.tell(f"starting the host {name!r} (weights fault: {fault})")
        with local_host(fault) as base_url:
            config = RunFile(
                endpoint=EndpointSection(base_url=base_url, model=CARD, concurrency=8),
                reference=ReferenceSection(card=CARD),
                audit=AuditSection(policy="screen"),
                out=out / name,
            )
            with working_in(config.out, make=True):
                report = audit(config, api_key=None, load_reference=lambda: reference, show=show)
            yield name, fault, report


@contextmanager
def local_host(fault: str, *, dtype: str = "float32") -> Iterator[str]:
    """A testbed host in a process of its own; yields its base URL and ends it on leaving."""
    command = python(
        "verifier", "testbed", "serve", "--fault", fault, "--port", "0", "--dtype", dtype
    )
    host = subprocess.Popen(  # noqa: S603 - our own command
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=plain_environment(),
    )  # fmt: skip
    try:
        assert host.stdout is not None
        line = host.stdout.readline()  # one line, once it listens; nothing when it failed
        if not line.startswith("serving"):
            host.terminate()
            _, said = host.communicate(timeout=_WAIT_S)
            reason = said.strip().splitlines()[-1:] or ["it said nothing"]
            raise DemoFailed(f"the local host with fault {fault!r} did not start: {reason[0]}")
        yield line.split()[-1]
    finally:
        host.terminate()
        try:
            host.communicate(timeout=_WAIT_S)
        except subprocess.TimeoutExpired:
            host.kill()
            host.communicate()
