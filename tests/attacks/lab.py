"""What every attack shares: rows of results, commands run in a process of their own, hosts.

A command runs in a fork of this process, so that start-up costs nothing and a hang, a kill or a
leak stays in it. Knows the command line, files and HTTP, and no module that decides anything.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import typer.main
from audits import make_engine
from fakes_engine import EOS, FakeTokenizer
from fakes_host import Answer, Asked, FakeHost, chat

import verifier
from verifier import cli
from verifier.records import GenerateRequest, Message
from verifier.reference.loaded import Reference

KEPT_EXAMPLES = 5
CUT = 400  # characters of an example

# building the tree of commands takes longer than most of them
typer.main.get_command = functools.cache(typer.main.get_command)


# -- results -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Tally:
    """One attack: how often it was tried and held, and what did not hold."""

    attack: str
    tried: int = 0
    held: int = 0
    worst_s: float = 0.0
    examples: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # further numbers worth keeping

    def note(self, label: str, problem: str | None, seconds: float = 0.0) -> None:
        """Count one try; `problem` says what did not hold, None that it held."""
        self.tried += 1
        self.held += problem is None
        self.worst_s = max(self.worst_s, seconds)
        if problem is not None and len(self.examples) < KEPT_EXAMPLES:
            self.examples.append(" ".join(f"{problem} <- {label}".split())[:CUT])

    def try_(self, label: str, attack: Callable[[], str | None]) -> None:
        """Run one attack, which says what did not hold; an exception did not."""
        start = time.monotonic()
        try:
            problem = attack()
        except Exception as error:  # noqa: BLE001 - whatever comes is the finding
            where = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"raised {type(error).__name__}: {error} at {where.name}:{where.lineno}"
        self.note(label, problem, time.monotonic() - start)


@dataclass(frozen=True, kw_only=True)
class Lab:
    """One run of one part."""

    part: str
    seed: int
    quick: bool
    scratch: Path
    seconds: float  # for the parts that run as long as they are told

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.part}/{name}")

    def folder(self, name: str) -> Path:
        """A new, empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch))


# -- commands ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one command ended."""

    status: int | None  # negative: by that signal; None: still running when its time was over
    out: str
    err: str
    seconds: float
    rss_mb: float

    @property
    def last(self) -> str:
        lines = (self.err or self.out).strip().splitlines()
        return lines[-1] if lines else ""


@dataclass(kw_only=True)
class Running:
    """A child under way."""

    pid: int
    said: Path
    started: float
    status: int | None = None
    rss_mb: float = 0.0

    def done(self) -> bool:
        if self.status is not None:
            return True
        pid, raw, used = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self.status = os.waitstatus_to_exitcode(raw)
            self.rss_mb = used.ru_maxrss / 1024
        return bool(pid)

    def send(self, number: int) -> None:
        if not self.done():
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> Ended:
        """Wait so long at most, then kill it."""
        pause, late = 0.001, False
        while not self.done():
            if time.monotonic() - self.started > seconds:
                late = True
                os.kill(self.pid, signal.SIGKILL)
                while not self.done():
                    time.sleep(0.005)
                break
            time.sleep(pause)
            pause = min(pause * 1.3, 0.02)
        texts = []
        for name in ("out", "err"):
            path = self.said / name
            texts.append(path.read_text("utf-8", "replace") if path.exists() else "")
        shutil.rmtree(self.said, ignore_errors=True)
        return Ended(
            status=None if late else self.status, out=texts[0], err=texts[1],
            seconds=time.monotonic() - self.started, rss_mb=self.rss_mb,
        )  # fmt: skip


def start_child(
    work: Callable[[], int],
    *,
    stdin: bytes = b"",
    environment: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
    limits: Mapping[int, int] | None = None,
) -> Running:
    """Run `work` in a fork with its own standard streams; its return value is the exit status."""
    said = Path(tempfile.mkdtemp(prefix="said-"))
    (said / "in").write_bytes(stdin)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Running(pid=pid, said=said, started=time.monotonic())
    status = 70
    try:
        for number, (name, flags) in enumerate(
            [
                ("in", os.O_RDONLY),
                ("out", os.O_WRONLY | os.O_CREAT),
                ("err", os.O_WRONLY | os.O_CREAT),
            ]
        ):
            opened = os.open(said / name, flags, 0o600)
            os.dup2(opened, number)
        os.closerange(3, 4096)  # hosts of the parent: a line must end when they end it
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.BufferedWriter(io.FileIO(n, "w", closefd=False)), "utf-8",
                             write_through=True)
            for n in (1, 2)
        )  # fmt: skip
        for name, value in (environment or {}).items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if cwd is not None:
            os.chdir(cwd)
        for kind, amount in (limits or {}).items():
            resource.setrlimit(kind, (amount, resource.getrlimit(kind)[1]))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - a child must end here, whatever came
        with suppress(Exception):
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status & 0xFF)


def start(*argv: object, fake: bool = True, **how: Any) -> Running:
    """Begin one command of the verifier; `fake`: with a fake engine as the reference."""

    def work() -> int:
        import verifier.reference.loaded

        if fake:
            reference = Reference(engine=make_engine(), tokenizer=FakeTokenizer())
            verifier.reference.loaded.reference_loader = lambda *_a, **_k: lambda: reference
        sys.argv = ["verifier", *map(str, argv)]
        cli.main()
        return 0

    return start_child(work, **how)


def run(*argv: object, seconds: float = 60.0, fake: bool = True, **how: Any) -> Ended:
    """Run one command of the verifier to its end."""
    return start(*argv, fake=fake, **how).wait(seconds)


def warm(folder: Path, command: str = "report") -> None:
    """Run a command on a run folder here, so that no fork need import or build what it takes."""
    for found in pkgutil.walk_packages(verifier.__path__, "verifier."):
        if not found.name.startswith(
            ("verifier.reference.engines", "verifier.__main__")
        ):  # they load torch
            with suppress(ImportError):
                import_module(found.name)
    argv, sys.argv = sys.argv, ["verifier", command, str(folder)]
    with suppress(SystemExit), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        cli.main()
    sys.argv = argv


# -- judging how a command ended ---------------------------------------------------------------


def refused(ended: Ended) -> str | None:
    """Status 2 with one line; else what came instead."""
    if ended.status is None:
        return f"still running after {ended.seconds:.0f} s"
    lines = ended.err.splitlines()
    told = [line for line in lines if line.startswith("verifier: ")]
    if ended.status != 2:
        return f"exit {ended.status}, expected a refusal (2): {ended.last}"
    if len(told) != 1 or told[0] != lines[-1] or not told[0].isprintable():
        return f"exit 2, but not in one line: {ended.err[-300:]}"
    return None


def sound(ended: Ended, *, verdicts: tuple[int, ...] = (0, 1, 3)) -> str | None:
    """A verdict, or a refusal in one line; no defect, no trace, no hang."""
    if ended.status in verdicts and "Traceback" not in ended.err:
        return None
    return refused(ended)


def told(ended: Ended, *words: str) -> str | None:
    """A refusal in one line that holds these words."""
    line = ended.last
    missing = [word for word in words if word not in line]
    return refused(ended) or (f"does not say {missing}: {line}" if missing else None)


# -- a fake model ------------------------------------------------------------------------------


class Model:
    """Answers chats as the fake model would, one at a time; `costs` of each, by its number."""

    def __init__(self, weights: str = "reference") -> None:
        self.costs: dict[int, int] = {}
        self._engine, self._tokenizer = make_engine(weights), FakeTokenizer()
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> dict[str, Any]:
        body = asked.json
        messages = [Message(role=m["role"], content=m["content"] or "") for m in body["messages"]]
        with self._lock:
            ids = self._tokenizer.render(messages)
            (made,) = self._engine.generate(
                [GenerateRequest(prompt_ids=ids, max_tokens=body.get("max_tokens", 12),
                                 temperature=body.get("temperature", 0))]
            )  # fmt: skip
            text = self._tokenizer.decode([n for n in made.token_ids if n != EOS])
        self.costs[asked.index] = len(made.token_ids)
        answer = chat(text)
        answer["choices"][0]["finish_reason"] = made.finish_reason
        answer["usage"] = {"prompt_tokens": len(ids), "completion_tokens": len(made.token_ids)}
        return answer


# -- hosts -------------------------------------------------------------------------------------


class RawHost:
    """Takes connections and leaves each, with the request that came, to a script, on a thread."""

    def __init__(self, script: Callable[[socket.socket, bytes], None]) -> None:
        self._script = script
        self.requests: list[bytes] = []
        self.closing = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._threads: list[threading.Thread] = []
        self._main = threading.Thread(target=self._serve, daemon=True)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> RawHost:
        self._main.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._main.join(2)

    def _serve(self) -> None:
        while not self.closing.is_set():
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(line,), daemon=True).start()

    def _answer(self, line: socket.socket) -> None:
        with line, suppress(OSError, ValueError):
            line.settimeout(20)
            while (request := read_request(line)) is not None:
                self.requests.append(request)
                self._script(line, request)


def read_request(line: socket.socket) -> bytes | None:
    """One HTTP request with a Content-Length or none; None when the line was closed."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = line.recv(65536)
        if not piece:
            return None
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    length = 0
    for row in head.split(b"\r\n")[1:]:
        name, _, value = row.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        piece = line.recv(65536)
        if not piece:
            return None
        body += piece
    return head + b"\r\n\r\n" + body


@contextmanager
def canary() -> Iterator[RawHost]:
    """A host that nobody should ask; it says no."""

    def say_no(line: socket.socket, _request: bytes) -> None:
        line.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with RawHost(say_no) as host:
        yield host


def full_answer(asked: Asked) -> dict[str, Any]:
    """An answer that takes all that was allowed, and says so."""
    count = asked.json["max_tokens"]
    answer = chat(" is" * count)
    answer["choices"][0]["finish_reason"] = "length"
    answer["usage"]["completion_tokens"] = count
    return answer


def paid_tokens(host: FakeHost) -> int:
    """The most that the requests of a host may cost in completion tokens."""
    return sum(asked.json.get("max_tokens") or 0 for asked in host.asked)


def spent_tokens(host: FakeHost, model: Model, out: Path) -> int:
    """What a host has been asked for: as answered where that is on record, else in full."""
    recorded = Counter(
        line["request"]
        for path in out.rglob("*.jsonl")
        for line in lines_of(path)
        if "request" in line and line.get("status") == 200
    )
    spent = 0
    for asked in sorted(host.asked, key=lambda one: model.costs.get(one.index, 10**6)):
        text = asked.raw.decode()
        known = recorded[text] > 0
        recorded[text] -= known
        most = asked.json.get("max_tokens") or 0
        spent += min(model.costs.get(asked.index, most), most) if known else most
    return spent


# -- looking at what was written ---------------------------------------------------------------


def every_file(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()
    }  # fmt: skip


def bare(text: str) -> str:
    """Text without signs that nobody sees, in lower case: as somebody reads it off a page."""
    kept = (s for s in text if unicodedata.category(s) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    return "".join(kept).casefold()


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON Lines file; none when it is missing."""
    if not path.exists():
        return []
    raw = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in raw if line]


__all__ = [
    "CUT", "Answer", "Asked", "Ended", "FakeHost", "Lab", "Model", "RawHost", "Running", "Tally",
    "bare", "canary", "chat", "every_file", "full_answer", "lines_of", "paid_tokens", "refused",
    "run", "sound", "spent_tokens", "start", "start_child", "told", "warm",
]  # fmt: skip
