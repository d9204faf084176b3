"""What is shown and how commands end: hostile text in every output, exit statuses, surroundings."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from audits import CARD, NOWHERE, write_run_file
from markdown_it import MarkdownIt
from rich.console import Console

from attacks.bases import make_base
from attacks.lab import Answer, Asked, FakeHost, Lab, Model, RawHost, Tally, chat, run, sound
from verifier.files.run_folder import read_lines
from verifier.records import Attempt, Report
from verifier.report_file import report_from_json
from verifier.reports.html import render_page
from verifier.reports.junit import render_junit
from verifier.reports.markdown import render_markdown
from verifier.reports.terminal import render_terminal

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "<script>alert(1)</script>", "</pre></td><img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "' x='",
    "<!--", "-->", "]]>", "<![CDATA[", "&lt;script&gt;", "&#60;script&#62;", "</style><style>*{}", "</svg><svg onload=x>",
    "{{ 7*7 }}{% raw %}", "javascript:alert(1)", "https://evil.example/x", "www.evil.example", "a@evil.example",
    "[x](https://evil.example)", "![x](https://evil.example/a.png)", "<https://evil.example>", "[x]: https://evil.example",
    "# heading", "1. list", "1) list", "- list", "+ list", "* list", "> quote", "| a | b |", "a|b", "```\ncode", "~~~", "    code",
    "---", "===", "***", "**bold** __bold__ *a* _a_ ~~a~~", "`code`", "\\", "\\|", "<br>", "@user #1 :smile:", "$x$", "- [ ] task",
    "::warning::x", "::set-output name=x::y", "%0A::error::x", "\x1b]0;OWNED\x07", "\x1b[2J\x1b[H", "\x1b]8;;http://e\x1b\\x",
    "\x9b31m", "\x07\x08\x7f", "\r\rover", "a\nb\nc", "\u202edlrow\u202c", "\u2066x\u2069", "\u200b\u200d\ufeff", "\ud800\udfff", "\x00",
    "\u2028\u2029\x85", "\U000e0041", "[bold red]x[/]", "[link=http://e]x[/link]", "[/]", "]", "%s %(x)s {0} {x}", "\ufffe\uffff", "A" * 5000, "\u0301" * 500, "日本" * 300,
)  # fmt: skip


# -- reports -----------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Every tag with its attributes' names, every address, and every decision that a parser made."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[f"<{tag} {' '.join(name for name, _ in attrs)}>"] += 1
        for name, value in attrs:
            if name in ("href", "src", "action", "srcset", "style"):
                self.seen[f"{name}={value}"] += 1

    def handle_comment(self, data: str) -> None:  # noqa: ARG002
        self.seen["comment"] += 1

    def handle_pi(self, data: str) -> None:  # noqa: ARG002
        self.seen["instruction"] += 1


def spoilt_report(value: Any, text: str, path: str = "") -> Any:
    """A report's JSON with `text` in the place of every text that a host or a stranger may choose."""
    if isinstance(value, dict):
        fixed = {"decision", "aspect", "schema_version"}
        return {key: inner if key in fixed and path != ".signature" else spoilt_report(inner, text, f"{path}.{key}")
                for key, inner in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [spoilt_report(inner, text, path) for inner in value]
    return text if isinstance(value, str) and not path.startswith(".control.finding") else value


def parts(text: str) -> dict[str, Any]:
    """What a page shows of exchanges, with a text in every field."""
    from verifier.records import Failure, Message, NotJudged, Probe, Reply

    message = (Message(role="user", content=text),)
    probes = [Probe(id=f"{text}{n}", kind=text, messages=message, max_tokens=9) for n in range(3)]
    attempts = [
        Attempt(probe_id=p.id, number=1, started_at=text, elapsed_s=0.1, request=text, status=200, body=text,
                error=text, headers={text: text})
        for p in probes
    ]  # fmt: skip
    outcomes = {
        probes[0].id: Reply(probe_id=probes[0].id, text=text, finish_reason=text, prompt_tokens=1, completion_tokens=1,
                            logprobs=None, logprobs_problem=text, thought=text),
        probes[1].id: Failure(probe_id=probes[1].id, status=500, reason=text, attempts=1),
        probes[2].id: NotJudged(probe_id=probes[2].id, reason=text, prompt_tokens=1, completion_tokens=1),
    }  # fmt: skip
    prompts = {"published": text + "\na", "served": text + "\nb", "probe_id": text, "name": text}
    return {"outcomes": outcomes, "probes": probes, "attempts": attempts, "prompts": prompts}


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def structure(text: str) -> Counter[str]:
    """What Markdown makes of a text, less its words."""
    found: Counter[str] = Counter()
    for block in MARKDOWN.parse(text):
        for token in (block, *(block.children or ())):
            if token.type not in ("text", "softbreak", "inline", "text_special"):
                found[token.type] += 1
    # what GitHub's renderer links by itself
    found["bare link"] = len(
        re.findall(r"(?<![\w&#;])(?:https?://|www\.)\w", re.sub(r"&#\d+;", "\u0001", text))
    )
    return found


def wrong_on_terminal(text: str) -> str | None:
    left = re.sub(r"\x1b\[[0-9;]*m", "", text)
    odd = re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]",
        left,
    )
    return f"the sign {odd[0]!r} reaches the terminal" if odd else None


def attack_outputs(lab: Lab) -> Iterator[Tally]:
    names = {
        "page": "hostile text in every field, HTML: no tag, attribute, address or comment of its own",
        "junit": "hostile text in every field, JUnit: parses, with the same elements",
        "markdown": "hostile text in every field, Markdown: no structure of its own",
        "terminal": "hostile text in every field, terminal: no sign that acts",
    }
    tallies = {name: Tally(attack=attack) for name, attack in names.items()}
    bases = [json.loads((make_base(lab, name) / "run" / "report.json").read_text())
             for name in ("faulty", "template", "sampled")]  # fmt: skip
    rng = lab.rng("texts")
    texts = list(HOSTILE[:: lab.size(1, 4)])
    while len(texts) < lab.size(100, 0):
        texts.append("".join(rng.sample(HOSTILE, 2)))

    def report_with(base: Any, text: str) -> Report:
        return report_from_json(
            json.loads(json.dumps(spoilt_report(base, text)).replace("\\ud", "\\uf"))
        )

    def terminal_of(report: Report) -> str:
        file = io.StringIO()
        render_terminal(report, console=Console(file=file, force_terminal=True, width=100))
        return file.getvalue()

    for base in bases:
        plain = report_with(base, "word")
        tags = Tags(render_page(plain, **parts("word"))).seen
        elements = [e.tag for e in ET.fromstring(render_junit(plain)).iter()]  # noqa: S314 - our own
        marks = structure(render_markdown(plain))

        def page(report: Report, text: str, tags: Any = tags) -> str | None:
            more = Tags(render_page(report, **parts(text))).seen - tags
            more = Counter({k: n for k, n in more.items() if not DIFF.fullmatch(k)})
            return f"adds {dict(more)}" if more else None

        def junit(report: Report, _text: str, elements: Any = elements) -> str | None:
            found = [e.tag for e in ET.fromstring(render_junit(report)).iter()]  # noqa: S314 - our own
            return None if found == elements else f"elements {found} instead of {elements}"

        def markdown(report: Report, _text: str, marks: Any = marks) -> str | None:
            more = structure(render_markdown(report)) - marks
            return f"adds {dict(more)}" if more else None

        def terminal(report: Report, _text: str) -> str | None:
            return wrong_on_terminal(terminal_of(report))

        for text in texts:
            report = report_with(base, text)
            for name, check in (
                ("page", page),
                ("junit", junit),
                ("markdown", markdown),
                ("terminal", terminal),
            ):
                tallies[name].try_(
                    repr(text[:60]), lambda check=check, r=report, t=text: check(r, t)
                )
    yield from tallies.values()
    yield _raw_text(lab)
    yield _hosts_text(lab)


#: What a comparison of two prompts is marked with, and how long bodies are cut: the page's own.
DIFF = re.compile(
    r"<(span|ins|del|mark|div|p|li|tr|td|code|em|pre|b|i|samp|details|summary)( class| )?>"
)


def _raw_text(lab: Lab) -> Tally:
    """Text of run files, cards and folders on the terminal."""
    tally = Tally(attack="text of run files, cards and paths on the terminal: no sign that acts")
    signs = ("x\x1b]0;OWNED\x07\x1b[2J", "x\u202ey", "x\x9b31m", "x\x07y\rz")
    for sign in signs:
        cases: dict[str, Callable[[Path], tuple[Any, ...]]] = {
            "out": lambda f, s=sign: ("plan", write_run_file(f, NOWHERE, top={"out": str(f / s)})),
            "model": lambda f, s=sign: ("audit", write_run_file(f, NOWHERE, endpoint={"model": s})),
            "base_url": lambda f, s=sign: ("plan", write_run_file(f, f"http://h/{s}")),
            "host": lambda f, s=sign: ("plan", write_run_file(f, NOWHERE, endpoint={"host": s})),
            "policy": lambda f, s=sign: ("plan", write_run_file(f, NOWHERE, policy=s)),
            "a key": lambda f, s=sign: ("plan", write_run_file(f, NOWHERE, endpoint={s: 1})),
            "a run file's name": lambda f, s=sign: ("plan", f / s),
            "a folder's name": lambda f, s=sign: ("report", f / s),
            "an argument": lambda f, s=sign: ("report", f, f"--{s}"),
            "a command": lambda _f, s=sign: (s,),
            "a card's path": lambda f, s=sign: ("panel", f / f"{s}.yaml"),
            "reference.card": lambda f, s=sign: ("plan", write_run_file(f, NOWHERE, reference={"card": s})),
            "weights": lambda f, s=sign: ("audit", write_run_file(f, NOWHERE, reference={"weights": s})),
            "a target": lambda f, s=sign: ("plan", write_run_file(f, "", top={"targets": {s: {"base_url": NOWHERE, "model": "m"}}})),
        }  # fmt: skip
        for name, make in cases.items():

            def attempt(make: Callable[[Path], tuple[Any, ...]] = make) -> str | None:
                folder = lab.folder("raw")
                ended = run(*make(folder), cwd=folder)
                return wrong_on_terminal(ended.out + ended.err) or sound(ended)

            tally.try_(f"{name} {sign!r}", attempt)
        for field, change in {
            "requirement": {"source": {"kind": "wheel", "requirement": sign, "sha256": "0" * 64, "member": "x"}},
            "repo": {"source": {"kind": "directory", "path": sign}}, "model": {"model": sign},
            "licence": {"licence": {"name": sign, "hosting": "allowed"}}, "sources": {"sources": {"layers": sign}},
        }.items():  # fmt: skip
            for command in ("panel", "reference show"):

                def card(change: dict[str, Any] = change, command: str = command) -> str | None:
                    folder = lab.folder("card")
                    path = folder / "card.yaml"
                    path.write_text(yaml.safe_dump(CARD | change))
                    quiet = {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}
                    ended = run(*command.split(), path, cwd=folder, fake=False, environment=quiet)
                    return wrong_on_terminal(ended.out + ended.err) or sound(ended)

                tally.try_(f"card {field} by {command} {sign!r}", card)
    return tally


def _hosts_text(lab: Lab) -> Tally:
    """Whole audits of hosts that answer hostile text."""
    tally = Tally(attack="whole audits of hosts that answer hostile text: every output is inert")
    model = Model()
    texts = HOSTILE[:: lab.size(2, 12)]
    baseline: dict[str, Any] = {}
    for text in ("word", *texts):

        def attempt(text: str = text) -> str | None:
            folder = lab.folder("text")

            def script(asked: Asked) -> Any:
                if asked.index % 4 == 0:
                    return model(asked)
                if asked.index % 4 == 1:
                    return Answer(status=400, body={"error": {"message": text, "code": text}})
                if asked.index % 4 == 2:
                    return chat(None, refusal=text)
                body = chat(text, reasoning=text)
                body["choices"][0]["finish_reason"] = text
                return body | {"id": text, "model": text}

            with FakeHost(script) as host:
                ended = run("audit", write_run_file(folder, host.url), seconds=120)
            out = folder / "run"
            shown = run(
                "report",
                out,
                "--junit",
                out / "x.xml",
                "--markdown",
                out / "x.md",
                environment={"FORCE_COLOR": "1"},
            )
            for one in (ended, shown):
                problem = sound(one, verdicts=(0, 1, 3)) or wrong_on_terminal(one.out + one.err)
                if problem:
                    return problem
            ET.fromstring((out / "x.xml").read_text())  # noqa: S314 - our own
            tags = Tags((out / "report.html").read_text()).seen
            kinds = {k for k in tags if not DIFF.fullmatch(k)}
            marks = set(structure((out / "x.md").read_text()))
            if text == "word":
                baseline.update(tags=kinds, marks=marks)
            more = (kinds - baseline["tags"]) | (marks - baseline["marks"])
            shutil.rmtree(folder)
            return f"adds {sorted(more)[:5]}" if more else None

        tally.try_(repr(text[:60]), attempt)
    return tally


# -- exit statuses -----------------------------------------------------------------------------


def verifier_command(*argv: object) -> list[str]:
    """The command line in a fresh interpreter, with a fake engine."""
    code = (
        "import sys; sys.path[:0] = sys.argv.pop(1).split('|'); import verifier.reference.loaded; "
        "from attacks.lab import make_engine, FakeTokenizer, Reference; "
        "verifier.reference.loaded.reference_loader = lambda *a, **k: lambda: Reference(engine=make_engine(), tokenizer=FakeTokenizer()); "
        "sys.argv[0] = 'verifier'; from verifier.cli import main; main()"
    )
    return [
        sys.executable,
        "-c",
        code,
        f"{ROOT}|{ROOT / 'tests'}|{ROOT / 'tests' / 'support'}",
        *map(str, argv),
    ]


def plain_command(*argv: object) -> list[str]:
    return [sys.executable, "-m", "verifier", *map(str, argv)]


def fresh(
    command: list[str], *, seconds: float = 90, **how: Any
) -> subprocess.CompletedProcess[bytes]:
    environment = dict(os.environ) | {
        k: v for k, v in how.pop("environment", {}).items() if v is not None
    }
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT} | how
    return subprocess.run(command, check=False, timeout=seconds, env=environment, **how)


def attack_exits(lab: Lab) -> Iterator[Tally]:
    yield _broken_surroundings(lab)
    yield _action(lab)
    yield _odd_but_honest(lab)
    yield _read_only(lab)
    yield _shipped_promises(lab)


def _broken_surroundings(lab: Lab) -> Tally:
    tally = Tally(attack="broken installs and streams: never the status of a verdict")
    base = make_base(lab, "honest") / "run"
    folder = lab.folder("broken")
    shutil.copytree(base, folder / "run")
    command = plain_command("report", folder / "run")
    wrong = plain_command("report", folder / "none")
    for module in (
        "rich",
        "typer",
        "yaml",
        "pydantic",
        "numpy",
        "jinja2",
        "httpx",
        "matplotlib",
        "mpmath",
    ):
        for kind, text in {"fails": "raise RuntimeError('broken')\n", "no syntax": "def (\n", "is empty": "",
                           "exits": "raise SystemExit(1)\n", "is missing": "raise ModuleNotFoundError('x', name='x')\n"}.items():  # fmt: skip

            def broken(module: str = module, text: str = text) -> str | None:
                place = lab.folder("path")
                (place / f"{module}.py").write_text(text)
                done = fresh(command, cwd=folder, environment={"PYTHONPATH": f"{place}:{ROOT}"})
                if done.returncode == 0 and b"CONSISTENT" in done.stdout:
                    return None
                if done.returncode in (0, 1, 3):
                    return f"exit {done.returncode}: {done.stderr[-200:]!r}"
                return None

            if lab.quick and module not in ("rich", "yaml"):
                continue
            tally.try_(f"a {module}.py that {kind}", broken)

    def piped(label: str, argv: list[str], accepted: tuple[int, ...], **how: Any) -> None:
        def attempt() -> str | None:
            done = fresh(argv, **how)
            return (
                None
                if done.returncode in accepted
                else f"exit {done.returncode}: {(done.stderr or b'')[-200:]!r}"
            )

        tally.try_(label, attempt)

    def closed(*numbers: int) -> Callable[[], None]:
        def close() -> None:
            for number in numbers:
                os.close(number)

        return close

    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        piped("an error, stderr full", wrong, (2,), stderr=full)
        piped("a verdict, stdout full", command, (2, 4, 141), stdout=full)
        piped("a verdict, both full", command, (2, 4, 141), stdout=full, stderr=full)
        piped("--help, stdout full", plain_command("--help"), (0, 2, 4, 141), stdout=full)
    piped("an error, stderr closed", wrong, (2,), preexec_fn=closed(2), stderr=None)
    piped("a verdict, stdout closed", command, (0, 2), preexec_fn=closed(1), stdout=None)
    piped(
        "a verdict, all closed",
        command,
        (0, 2),
        preexec_fn=closed(0, 1, 2),
        stdout=None,
        stderr=None,
    )
    piped("an error, all closed", wrong, (2,), preexec_fn=closed(0, 1, 2), stdout=None, stderr=None)
    piped(
        "no home",
        command,
        (0,),
        environment={"HOME": "/nonexistent", "XDG_STATE_HOME": "", "XDG_CACHE_HOME": ""},
    )
    piped(
        "a home that is a file",
        command,
        (0,),
        environment={
            "HOME": "/dev/null",
            "XDG_STATE_HOME": "/dev/null/x",
            "MPLCONFIGDIR": "/dev/null/y",
        },
    )
    piped(
        "no recursion to speak of",
        [
            sys.executable,
            "-c",
            "import sys; sys.setrecursionlimit(80); sys.argv=['verifier','report','x']; from verifier.cli import main; main()",
        ],
        (2, 4),
    )
    piped(
        "little memory",
        ["bash", "-c", 'ulimit -v 300000; exec "$@"', "x", *command],
        (2, 4, 134, 137, 139, -6, -9, -11),
    )
    return tally


def _action(lab: Lab) -> Tally:
    """The script of the action, with the real command line and inputs that are not run files."""
    tally = Tally(attack="the action's script: no decision but the report's")
    action = yaml.safe_load((ROOT / ".github/actions/audit/action.yml").read_text())
    steps = [step for step in action["runs"]["steps"] if step.get("id") == "audit"]
    script = steps[0]["run"]

    def act(
        run_file: str, out: Path, folder: Path, *, path: str = "", body: str | None = None
    ) -> str:
        """What the outputs say after the script."""
        bin_ = folder / "bin"
        bin_.mkdir(exist_ok=True)
        shim = bin_ / "verifier"
        command = body or f'exec {shlex.join(verifier_command())} "$@"\n'
        shim.write_text(f"#!/bin/sh\nexport PYTHONPATH={path}:$PYTHONPATH\n{command}")
        shim.chmod(0o755)
        python = bin_ / "python"  # which the action sets up
        if not python.exists():
            python.symlink_to(sys.executable)
        outputs = folder / "outputs"
        outputs.write_text("")
        environment = {
            "PATH": f"{bin_}:{os.environ['PATH']}", "RUN_FILE": run_file, "OUT": str(out), "INCONCLUSIVE": "fail",
            "GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(folder / "summary"),
            "GITHUB_ACTION_PATH": str(ROOT / ".github/actions/audit"),
        }  # fmt: skip
        done = fresh(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            environment=environment,
            cwd=folder,
            seconds=120,
        )
        found = re.findall(r"^decision=(\w*)$", outputs.read_text(), re.MULTILINE)
        return f"{found[-1] if found else 'none'} {done.returncode}"

    def given(run_file: str, accepted: tuple[str, ...], **how: Any) -> Callable[[], str | None]:
        def attempt() -> str | None:
            folder = lab.folder("action")
            said = act(run_file, folder / "run", folder, **how)
            decision = said.split()[0]
            return (
                None
                if decision in accepted
                else f"decision={decision} (the step ends with {said.split()[1]})"
            )

        return attempt

    neither = ("error", "none")
    for name in (
        "--help",
        "-h",
        "--version",
        "--json",
        "--seed=5",
        "none.yaml",
        "",
        "--",
        "-",
        "--base-url=http://127.0.0.1:1/v1",
    ):
        tally.try_(f"the run file {name!r}", given(name, neither))
    for status in (0, 1, 3):
        tally.try_(
            f"a command that only exits {status}", given("a.yaml", neither, body=f"exit {status}\n")
        )
    for module in ("rich", "typer"):

        def broken(module: str = module) -> str | None:
            place = lab.folder("path")
            (place / f"{module}.py").write_text("raise RuntimeError\n")
            return given("none.yaml", neither, path=str(place))()

        tally.try_(f"a broken {module}", broken)

    def real(weights: str, decision: str) -> str | None:
        folder = lab.folder("action")
        with FakeHost(Model(weights)) as host:
            path = write_run_file(folder, host.url)
            said = act(str(path), folder / "run", folder).split()[0]
        return None if said == decision else f"decision={said}"

    tally.try_("an honest host", lambda: real("reference", "consistent"))
    tally.try_("a faulty host", lambda: real("int4-sym-g64", "inconsistent"))

    def stale() -> str | None:
        """A report of an earlier audit is none of one that failed."""
        folder = lab.folder("action")
        with FakeHost(Model()) as host:
            path = write_run_file(folder, host.url)
            run("audit", path, seconds=90)
        path.write_text("nonsense: true\n")
        said = act(str(path), folder / "run", folder).split()[0]
        return None if said in neither else f"decision={said}"

    tally.try_("an old report beside a run file that is refused", stale)
    return tally


def _odd_but_honest(lab: Lab) -> Tally:
    """Answers that other clients accept are answers."""
    tally = Tally(attack="odd answers that other clients take are taken")
    model = Model()

    def events(body: dict[str, Any], end: str) -> str:
        text = body["choices"][0]["message"]["content"]
        chunks = [{"choices": [{"delta": {"content": text}}]},
                  {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": body["usage"]}]  # fmt: skip
        return "".join(f"data: {json.dumps(c)}{end}{end}" for c in chunks)

    def answer(line: socket.socket, body: bytes, kind: str, *, whole: bool = True) -> None:
        length = f"Content-Length: {len(body)}" if whole else "Connection: close"
        line.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode() + body)

    def bom(line: socket.socket, body: dict[str, Any]) -> None:
        answer(line, b"\xef\xbb\xbf" + json.dumps(body).encode(), "application/json")

    def bom_events(line: socket.socket, body: dict[str, Any]) -> None:
        answer(
            line,
            b"\xef\xbb\xbf" + (events(body, "\n") + "data: [DONE]\n\n").encode(),
            "text/event-stream",
        )

    def crlf(line: socket.socket, body: dict[str, Any]) -> None:
        answer(line, (events(body, "\r\n") + "data: [DONE]\r\n\r\n").encode(), "text/event-stream")

    def lone_cr(line: socket.socket, body: dict[str, Any]) -> None:
        answer(line, (events(body, "\r") + "data: [DONE]\r\r").encode(), "text/event-stream")

    def comments(line: socket.socket, body: dict[str, Any]) -> None:
        answer(
            line,
            (": hi\n\n" + events(body, "\n") + ": bye\n\ndata: [DONE]\n\n").encode(),
            "text/event-stream",
        )

    def after_done(line: socket.socket, body: dict[str, Any]) -> None:
        answer(
            line,
            (events(body, "\n") + "data: [DONE]\n\n").encode(),
            "text/event-stream",
            whole=False,
        )
        with contextlib.suppress(OSError):
            for _ in range(60):
                time.sleep(0.25)
                line.sendall(b": keep-alive\n\n")

    def never_closed(line: socket.socket, body: dict[str, Any]) -> None:
        answer(
            line,
            (events(body, "\n") + "data: [DONE]\n\n").encode(),
            "text/event-stream",
            whole=False,
        )
        time.sleep(8)

    def plain_text(line: socket.socket, body: dict[str, Any]) -> None:
        answer(line, b"\r\n \n" + json.dumps(body).encode() + b"\n\n", "text/plain; charset=utf-8")

    def line_end_before(line: socket.socket, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        line.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(raw)
            + raw
        )

    for name, send in {
        "a byte order mark": bom, "a byte order mark before events": bom_events, "CRLF": crlf, "CR alone": lone_cr,
        "comments": comments, "comments after [DONE], no end": after_done, "[DONE], no end": never_closed,
        "white space around, text/plain": plain_text, "as usual": line_end_before,
    }.items():  # fmt: skip

        def attempt(
            send: Callable[[socket.socket, dict[str, Any]], None] = send, name: str = name
        ) -> str | None:
            folder = lab.folder("odd")

            def script(line: socket.socket, request: bytes) -> None:
                raw = request.partition(b"\r\n\r\n")[2]
                send(line, model(Asked(index=0, path="", headers={}, raw=raw)))
                if "no end" in name:
                    raise ValueError

            streamed = name not in (
                "a byte order mark",
                "white space around, text/plain",
                "as usual",
            )
            with RawHost(script) as host:
                path = write_run_file(
                    folder, host.url, endpoint={"stream": streamed, "timeout_s": 5}
                )
                planned = run("plan", path)
                ended = run("collect", folder / "run", "--probes", 4, "--trust", seconds=90)
                asked = len(host.requests)
            if planned.status or ended.status:
                return planned.last if planned.status else f"exit {ended.status}: {ended.last}"
            lines = list(read_lines(folder / "run" / "exchanges.jsonl"))
            failed = [line["error"] for line in lines if line["error"] or line["status"] != 200]
            if failed or asked != 4:
                return f"{len(failed)} of {asked} requests failed: {failed[:1]}"
            from verifier.host.collect import read_outcomes
            from verifier.records import Reply

            kinds = [
                type(o).__name__ for o in read_outcomes(folder / "run", max_attempts=1).values()
            ]
            return None if kinds == [Reply.__name__] * 4 else f"outcomes {kinds}"

        tally.try_(name, attempt)

    def tool_call() -> str | None:
        from verifier.host.collect import read_outcomes

        folder = lab.folder("tool")
        call = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        with FakeHost(lambda _a: chat(None, tool_calls=call)) as host:
            run("plan", write_run_file(folder, host.url))
            run("collect", folder / "run", "--probes", 1, "--trust")
        (found,) = read_outcomes(folder / "run", max_attempts=1).values()
        reason = getattr(found, "reason", "")
        return None if "tool" in reason or "call" in reason else f"it is said to be: {reason}"

    tally.try_("an answer that only calls a tool is said to", tool_call)
    return tally


def _read_only(lab: Lab) -> Tally:
    """A folder that cannot be written is shown all the same."""
    tally = Tally(attack="folders that cannot be written: shown all the same")
    base = make_base(lab, "honest") / "run"
    for command in ("decide", "report"):
        for kind in ("read-only", "full"):

            def attempt(command: str = command, kind: str = kind) -> str | None:
                copy = lab.folder("read-only") / "run"
                shutil.copytree(base, copy)
                if kind == "full":
                    import resource

                    ended = run(command, copy, limits={resource.RLIMIT_FSIZE: 0})
                else:
                    if os.getuid() == 0:  # who may write everything
                        ended = _as_nobody(command, copy)
                    else:
                        copy.chmod(0o555)
                        ended = run(command, copy)
                        copy.chmod(0o755)
                if kind == "full":
                    return None if ended.status in (0, 2) else f"exit {ended.status}: {ended.last}"
                if ended.status == 0 and "CONSISTENT" in ended.out:
                    return None
                return f"exit {ended.status}: {ended.last}"

            tally.try_(f"{command}, {kind}", attempt)
    return tally


def _as_nobody(command: str, copy: Path) -> Any:
    """The command as a user who may not write the folder."""
    from attacks import lab as lab_

    for path in (copy, *copy.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in copy.parents:
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)

    def work() -> int:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        sys.argv = ["verifier", command, str(copy)]
        lab_.cli.main()
        return 0

    return lab_.start_child(
        work, environment={"HOME": "/nonexistent", "XDG_STATE_HOME": "/nonexistent/s"}
    ).wait(60)


def _shipped_promises(lab: Lab) -> Tally:
    """What can be read off the repository and off a plan."""
    tally = Tally(attack="what ships: pinned by digest, and warnings where a key is at risk")
    folder = ROOT / ".github/actions/audit"
    text = "".join(path.read_text() for path in folder.iterdir())
    used = re.findall(r"uses:\s*(\S+)", text)
    tagged = [
        name
        for name in used
        if "/" in name and not re.search(r"@[0-9a-f]{40}$|@<[^>]+>$|@COMMIT$|^\./", name)
    ]
    tally.note("actions by digest", f"by tag or branch: {tagged}" if tagged else None)
    build = re.search(r"requires = (\[.*?\])", (ROOT / "pyproject.toml").read_text())
    tally.note(
        "the build back end is pinned",
        None if build and "==" in build[1] else f"requires {build and build[1]}",
    )
    hashed = [p.name for p in (ROOT / "configs").glob("*.txt") if "--hash=sha256:" in p.read_text()]
    tally.note("constraints with hashes", None if hashed else "no file of configs/ holds hashes")
    schemas = [p.name for p in (ROOT / "configs").rglob("*.json") if "schema" in str(p)]
    tally.note("JSON Schemas ship", None if len(schemas) >= 7 else f"there are {schemas}")

    def warned(url: str, expected: bool) -> str | None:
        path = write_run_file(lab.folder("http"), url, endpoint={"api_key_env": "SOME_KEY"})
        ended = run("plan", path, environment={"SOME_KEY": "sk-0123456789"})
        if ended.status:
            return f"exit {ended.status}: {ended.last}"
        said = "http" in ended.err and (
            "encrypt" in ended.err or "clear" in ended.err or "https" in ended.err
        )
        return None if said is expected else f"stderr says: {ended.err!r}"

    tally.try_(
        "http with a key to a far host is warned of", lambda: warned("http://203.0.113.9/v1", True)
    )
    tally.try_(
        "http with a key to this machine is not", lambda: warned("http://127.0.0.1:8000/v1", False)
    )
    return tally


# -- surroundings ------------------------------------------------------------------------------


def attack_surroundings(lab: Lab) -> Iterator[Tally]:
    tally = Tally(attack="decide and report give the same bytes in every surroundings")
    bases = {name: make_base(lab, name) / "run" for name in ("honest", "faulty", "template")}
    sets: list[dict[str, str]] = [
        {}, {"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "4242"}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX", "LANG": "C"},
        {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}, {"TZ": "Pacific/Kiritimati"}, {"TZ": "America/St_Johns"}, {"TZ": "nonsense"},
        {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}, {"OPENBLAS_NUM_THREADS": "1"},
        {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F"}, {"OPENBLAS_CORETYPE": "Prescott"}, {"OPENBLAS_CORETYPE": "Haswell"},
        {"COLUMNS": "20"}, {"COLUMNS": "400", "LINES": "5"}, {"HOME": "/nonexistent"}, {"TERM": "xterm-256color", "FORCE_COLOR": "1"},
        {"NO_COLOR": "1"}, {"PYTHONOPTIMIZE": "2"}, {"PYTHONDEVMODE": "1"}, {"MPLBACKEND": "svg"}, {"MPLCONFIGDIR": "/nonexistent"},
        {"PYTHONIOENCODING": "latin-1"}, {"SOURCE_DATE_EPOCH": "0"}, {"USER": "x", "LOGNAME": "y"}, {"PYTHONMALLOC": "debug"},
        {"LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8"}, {"PYTHONINTMAXSTRDIGITS": "640"}, {"MPLRC": "rc"},
    ]  # fmt: skip
    first: dict[str, tuple[bytes, bytes]] = {}
    for number, more in enumerate(sets[:: lab.size(1, 6)]):
        for name, base in bases.items():
            if number % 3 != list(bases).index(name) and first.get(name):
                continue

            def attempt(
                more: dict[str, str] = more, name: str = name, base: Path = base
            ) -> str | None:
                copy = lab.folder("moved" * (1 + len(more))) / "run"
                shutil.copytree(base, copy)
                if "MPLRC" in more:
                    (copy.parent / "matplotlibrc").write_text(
                        "font.size: 31\nsvg.fonttype: path\naxes.facecolor: red\n"
                    )
                for command in ("decide", "report"):
                    done = fresh(
                        plain_command(command, copy),
                        environment=more | {"PYTHONPATH": str(ROOT)},
                        cwd=copy.parent,
                    )
                    if done.returncode not in (0, 1):
                        return f"{command}: exit {done.returncode}: {done.stderr[-200:]!r}"
                made = ((copy / "report.json").read_bytes(), (copy / "report.html").read_bytes())
                before = first.setdefault(name, made)
                differ = [
                    n
                    for n, a, b in zip(("report.json", "report.html"), before, made, strict=True)
                    if a != b
                ]
                return f"{differ} differ" if differ else None

            tally.try_(f"{name} under {more}", attempt)
    yield tally
