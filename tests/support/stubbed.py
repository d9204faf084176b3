"""The command line with stubs in place of what is slow, as a process of its own.

`python stubbed.py STUBS ARGUMENTS`, with the stubs' names joined by commas, if any. What is busy
touches a file `mark`, and is then in one call of C that hears no signal, as a large product is.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

ROOT: Final = Path(__file__).resolve().parents[2]
SUPPORT: Final = Path(__file__).resolve().parent


# -- in the process ----------------------------------------------------------------------------


def be_busy(*_given: object, **_named: object) -> NoReturn:
    Path("mark").touch()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    raise AssertionError


def stub_reference(*, busy: bool) -> None:
    from audits import load_reference

    import verifier.reference.loaded

    def load() -> Any:
        found = load_reference()
        if busy:
            found.engine.score = be_busy  # type: ignore[method-assign]
        return found

    verifier.reference.loaded.reference_loader = lambda *_given, **_named: load


def stub_host(*, busy: bool) -> None:
    """The testbed serves the tiny model, whatever it is asked to."""
    from audits import make_engine
    from fakes_engine import FakeTokenizer

    import verifier.cli.lab
    from verifier.lab.testbed.host import Host

    engine = make_engine()
    if busy:
        engine.generate = be_busy  # type: ignore[method-assign]
    verifier.cli.lab._load_host = lambda card, *_given, **_named: Host(
        engine=engine, tokenizer=FakeTokenizer(), model=card, window_s=0.001
    )


def stub_children(stubs: str) -> None:
    """Hosts that are started are stubbed, too."""
    import verifier.lab.demo

    command = [sys.executable, str(Path(__file__)), stubs]
    verifier.lab.demo.python = lambda _module, *arguments: [*command, *arguments]


def stub_calibration() -> None:
    """A calibration that asks a busy host of this process."""
    import httpx
    from audits import make_engine
    from fakes_engine import FakeTokenizer

    import verifier.lab.calibrate
    import verifier.reference.calibrations
    import verifier.reference.describe
    import verifier.reference.engines.load
    import verifier.reference.weights
    from verifier.lab.testbed.app import create_app
    from verifier.lab.testbed.host import Host
    from verifier.lab.testbed.server import running

    def calibrate(*_given: object, **_named: object) -> None:
        engine = make_engine()
        engine.generate = be_busy  # type: ignore[method-assign]
        with running(create_app(Host(engine=engine, tokenizer=FakeTokenizer(), model="m"))) as url:
            messages = [{"role": "user", "content": "hi"}]
            body = {"model": "m", "messages": messages, "max_tokens": 4}
            httpx.post(f"{url}/chat/completions", json=body, timeout=60)

    verifier.reference.weights.fetch_weights = lambda *_given, **_named: Path()
    verifier.reference.weights.check_weights = lambda *_given, **_named: None
    verifier.reference.describe.refuse_other_model = lambda *_given: None
    verifier.lab.calibrate.calibrate = calibrate


def stub_panel() -> None:
    """A search that is busy, with the process of templates beside it."""
    from verifier.checks.template import panel

    def search(*_given: object, **_named: object) -> NoReturn:
        from verifier.reference.template_process import TEMPLATES

        TEMPLATES.start()
        be_busy()

    panel.design_card_panel = search


STUBS: Final[dict[str, Callable[[], None]]] = {
    "reference": lambda: stub_reference(busy=False),
    "busy-reference": lambda: stub_reference(busy=True),
    "host": lambda: stub_host(busy=False),
    "busy-host": lambda: stub_host(busy=True),
    "children": lambda: stub_children("host"),
    "busy-children": lambda: stub_children("busy-host"),
    "calibration": stub_calibration,
    "panel": stub_panel,
}


# -- beside it ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """How a process ended once it was told to stop."""

    status: int
    out: str
    err: str
    seconds: float  # from the signal to the end
    left: list[str]  # commands of processes that it started and that were still there


@contextmanager
def started(
    stubs: str, *arguments: object, cwd: Path, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A command under way, in a session of its own; ended on leaving, with all below it."""
    path = os.pathsep.join(map(str, (ROOT, SUPPORT)))
    surroundings = (
        {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        | {"PYTHONPATH": path, "XDG_STATE_HOME": str(cwd)}
        | environment
    )
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), stubs, *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=surroundings, cwd=cwd, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        for number in (process.pid, *below(process.pid)):
            if process.poll() is None or number != process.pid:
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        process.communicate()


def wait_for(
    what: Callable[[], object], process: subprocess.Popen[str], *, within_s: float = 60
) -> None:
    """Until something is so; fails with what the process said where it ends before."""
    until = time.monotonic() + within_s
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def stop(process: subprocess.Popen[str], number: signal.Signals) -> Stopped:
    """Send a signal to the process alone, and wait until it has ended."""
    started_here = below(process.pid)
    began = time.monotonic()
    process.send_signal(number)
    status = process.wait(30)
    seconds = time.monotonic() - began
    until = time.monotonic() + 0.5  # the kernel takes its time
    while (left := [one for pid in started_here if (one := command(pid))]) and (
        time.monotonic() < until
    ):
        time.sleep(0.02)
    out, err = process.communicate(timeout=10) if not left else ("", "")
    return Stopped(status=status, out=out, err=err, seconds=seconds, left=left)


def below(pid: int) -> list[int]:
    """The processes that descend from one, by what Linux says of each."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            said = (entry / "stat").read_text() if entry.name.isdecimal() else ""
        except OSError:
            continue
        if said:
            parents.setdefault(int(said.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = list(parents.get(pid, []))
    for one in found:
        found += parents.get(one, [])
    return found


def command(pid: int) -> str:
    """What a process runs; "" where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    for stub in filter(None, sys.argv[1].split(",")):
        STUBS[stub]()
    sys.argv = ["verifier", *sys.argv[2:]]
    from verifier.cli import main

    main()
