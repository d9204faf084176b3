"""The command line, called in this process, and fixtures of audits by it."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from audits import FAULT, make_engine, write_run_file
from fakes_engine import FakeTokenizer

from verifier import cli
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.reference.loaded import Reference


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one call of the command line ended."""

    status: object
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that an error gives, less its beginning."""
        assert "Traceback" not in self.out + self.err
        lines = self.err.splitlines()
        assert [line.startswith("verifier: ") for line in lines].count(True) == 1, self.err
        assert lines[-1].startswith("verifier: "), self.err
        assert lines[-1].isprintable()
        return lines[-1].removeprefix("verifier: ")


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def call(
    *arguments: object, terminal: bool = False, encoding: str = "utf-8", **environment: str
) -> Ended:
    """Run the command line in this process."""
    kind = Terminal if terminal else io.TextIOWrapper
    raw = [io.BytesIO(), io.BytesIO()]
    out, err = (kind(stream, encoding=encoding, write_through=True) for stream in raw)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        patched.setattr(sys, "argv", ["verifier", *map(str, arguments)])
        patched.setattr(sys, "stdout", out)
        patched.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as end:
            cli.main()
    read = "utf-8" if encoding == "ascii" else encoding  # JSON is UTF-8 whatever the terminal
    said = [stream.getvalue().decode(read) for stream in raw]
    return Ended(status=end.value.code, out=said[0], err=said[1])


def with_fake_reference(patched: pytest.MonkeyPatch) -> None:
    """Let commands take the tiny model for the reference."""
    reference = Reference(engine=make_engine(), tokenizer=FakeTokenizer())
    patched.setattr(
        "verifier.reference.loaded.reference_loader", lambda _config, **_where: lambda: reference
    )


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no colours, no keys, and an empty folder to be in."""
    proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    colours = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "COLUMNS")
    for name in (*proxies, *map(str.upper, proxies), *colours, "SOME_KEY", "VERIFIER_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.chdir(tmp_path)
    with_fake_reference(monkeypatch)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished audit and how its command ended."""

    folder: Path
    run_file: Path
    ended: Ended

    def copied(self, to: Path) -> Path:
        """The run folder, free to be damaged."""
        return Path(shutil.copytree(self.folder, to / "copy"))


def finish(tmp_path_factory: pytest.TempPathFactory, weights: str) -> Finished:
    """An audit of a host with these weights, by the command line."""
    folder = tmp_path_factory.mktemp("audit")
    app = create_app(
        Host(engine=make_engine(weights), tokenizer=FakeTokenizer(), model="tiny", window_s=0.001)
    )
    with pytest.MonkeyPatch.context() as patched, running(app) as url:
        with_fake_reference(patched)
        run_file = write_run_file(folder, url, top_logprobs=5)
        ended = call("audit", run_file)
    return Finished(folder=folder / "run", run_file=run_file, ended=ended)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Of the published weights."""
    return finish(tmp_path_factory, "reference")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Of a build of the bank."""
    return finish(tmp_path_factory, FAULT)


def write_nowhere(patched: pytest.MonkeyPatch) -> None:
    """Make every folder one that this process may only read, for the superuser too."""
    real = os.open

    def only_read(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *more, **named)

    patched.setattr(os, "open", only_read)
