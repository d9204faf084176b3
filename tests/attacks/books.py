"""Nothing lost and nothing off the books: kills, full disks, two writers, lying counts."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
from audits import FAULT, NOWHERE, write_run_file

from attacks.bases import make_base
from attacks.lab import (
    Answer,
    Asked,
    FakeHost,
    Lab,
    Model,
    RawHost,
    Running,
    Tally,
    chat,
    full_answer,
    lines_of,
    paid_tokens,
    refused,
    run,
    sound,
    spent_tokens,
    start,
    start_child,
)
from verifier.files.run_folder import append_line, read_lines
from verifier.host.collect import collect
from verifier.host.endpoint import Endpoint
from verifier.records import Message, Probe

SLOW_HOST_S = 0.15


# -- kills -------------------------------------------------------------------------------------


def attack_with_kills(lab: Lab) -> Iterator[Tally]:
    kills = lab.size(100, 6)
    within = Tally(attack="killed audits: no request above what is paid for")
    kept = Tally(attack="killed audits: no line lost, no answer asked for again")
    goes_on = Tally(attack="killed audits: go on to the verdict of an audit never killed")
    rng = lab.rng("kills")
    settings: list[tuple[str, dict[str, Any], str]] = [
        ("plain", {}, "reference"),
        ("4-bit", {}, FAULT),
        ("samples and capabilities", {"sampler": True, "capabilities": True, "top_logprobs": 5,
                                      "budget_completion_tokens": 480}, "reference"),
        ("two at a time", {"endpoint": {"concurrency": 2}}, "reference"),
    ]  # fmt: skip
    plain: dict[str, int | None] = {}
    done = number = 0
    while done < kills:
        name, changes, weights = settings[number % len(settings)]
        if name not in plain:
            with FakeHost(Model(weights)) as host:
                folder = lab.folder("plain")
                plain[name] = run(
                    "audit", write_run_file(folder, host.url, **dict(changes)), seconds=120
                ).status
        lives = min(rng.randint(2, 8), kills - done)
        _one_life_after_another(
            lab,
            f"{name} {number}",
            lives,
            dict(changes),
            weights,
            within,
            kept,
            goes_on,
            plain[name],
        )
        done += lives
        number += 1
    within.extra = {"kills": done}
    yield from (within, kept, goes_on)


def _one_life_after_another(
    lab: Lab, label: str, lives: int, changes: dict[str, Any], weights: str,
    within: Tally, kept: Tally, goes_on: Tally, expected: int | None,
) -> None:  # fmt: skip
    rng, folder, model = lab.rng(label), lab.folder("killed"), Model(weights)
    budget = changes.get("budget_completion_tokens", 240)

    def script(asked: Asked) -> Any:
        time.sleep(rng.random() * SLOW_HOST_S)
        return model(asked)

    with FakeHost(script) as host:
        path = write_run_file(folder, host.url, **changes)
        out = folder / "run"
        for life in range(lives):
            asked_before, lines_before = len(host.asked), _raw_lines(out)
            answered = _answered(out)
            child = start("audit", path)
            wanted = asked_before + rng.randint(0, 9)
            until = time.monotonic() + 20
            while len(host.asked) < wanted and not child.done() and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.2)
            child.send(signal.SIGKILL)
            child.wait(10)
            # what it had sent reaches the host's notes
            time.sleep(0.05)
            again = [a for a in host.asked[asked_before:] if a.raw.decode() in answered]
            lost = [line for line in lines_before if line not in set(_raw_lines(out))]
            problem = f"{len(again)} answered requests sent again" if again else None
            problem = f"{len(lost)} lines lost" if lost else problem
            kept.note(f"{label} life {life}", problem)
            spent = spent_tokens(host, model, out)
            within.note(
                f"{label} life {life}",
                f"{spent} tokens asked for of {budget}" if spent > budget else None,
            )
        ended = run("audit", path, seconds=120)
        spent = spent_tokens(host, model, out)
    within.note(
        f"{label} at the end", f"{spent} tokens asked for of {budget}" if spent > budget else None
    )
    problem = sound(ended)
    # what was lost to kills is spent, so less evidence is no fault; another verdict is
    if problem is None and ended.status not in (expected, 3):
        problem = f"exit {ended.status}, an audit that was never killed ends {expected}"
    if problem is None and ended.status == 2:
        problem = f"refuses to go on: {ended.last}"
    goes_on.note(label, problem, ended.seconds)


def _raw_lines(out: Path) -> list[bytes]:
    """Whole lines of every append-only file."""
    found = []
    for path in sorted(out.rglob("*.jsonl")) if out.exists() else ():
        if path.name in ("probes.jsonl", "panel.jsonl", "sampled.jsonl"):  # replaced whole
            continue
        raw = path.read_bytes()
        found += [path.name.encode() + b" " + line for line in raw.split(b"\n")[:-1]]
    return found


def _answered(out: Path) -> set[str]:
    """Requests at temperature 0 whose answer is in the folder."""
    found = set()
    for line in lines_of(out / "exchanges.jsonl"):
        if line["status"] == 200 and json.loads(line["request"]).get("temperature") == 0:
            found.add(line["request"])
    return found


# -- the rest ----------------------------------------------------------------------------------


def attack_books(lab: Lab) -> Iterator[Tally]:
    yield _stopped_by_hand(lab)
    yield _refused_while_under_way(lab)
    yield _lying_counts(lab)
    yield _huge_bodies(lab)
    yield from _two_processes(lab)
    yield _many_lines(lab)
    yield _scores_of_another(lab)
    yield _full_disks(lab)
    yield _few_descriptors(lab)
    yield _no_end(lab)
    yield _synced_names(lab)
    yield _throughput(lab)


def _stopped_by_hand(lab: Lab) -> Tally:
    """SIGINT while requests are under way, again and again."""
    tally = Tally(attack="collecting stopped by hand: no request above what is paid for")
    for number in range(lab.size(6, 2)):
        folder, rng = lab.folder("stopped"), lab.rng(f"stopped {number}")

        def script(asked: Asked) -> Any:
            time.sleep(0.3)
            return full_answer(asked)

        def attempt(folder: Path = folder, rng: Any = rng, script: Any = script) -> str | None:
            with FakeHost(script) as host:
                path = write_run_file(folder, host.url)
                if run("plan", path).status:
                    return "not planned"
                for _ in range(5):
                    before = len(host.asked)
                    child = start("collect", folder / "run", "--trust")
                    until = time.monotonic() + 10
                    while (
                        len(host.asked) == before and not child.done() and time.monotonic() < until
                    ):
                        time.sleep(0.005)
                    time.sleep(rng.random() * 0.2)
                    child.send(signal.SIGINT)
                    ended = child.wait(15)
                    if ended.status not in (130, 0, 2):
                        return f"exit {ended.status}: {ended.last}"
                run("collect", folder / "run", "--trust")
                spent = paid_tokens(host)
            return f"{spent} tokens asked for of 240" if spent > 240 else None

        tally.try_(f"run {number}", attempt)
    return tally


def _refused_while_under_way(lab: Lab) -> Tally:
    """One 401 among eight under way: what the host answered beside it stands in the folder."""
    tally = Tally(attack="a refused key among requests under way: every answer is on record")
    for number in range(lab.size(6, 2)):

        def attempt(number: int = number) -> str | None:
            folder, finished = lab.folder("refused"), Counter[str]()

            def script(asked: Asked) -> Any:
                time.sleep(0.1 if asked.index == 8 + number else 0.4)
                if asked.index == 8 + number:
                    return Answer(status=401, body={"error": {"message": "no"}})
                finished["answered"] += 1
                return chat("the model says more or less now")

            with FakeHost(script) as host:
                path = write_run_file(folder, host.url)
                run("plan", path)
                ended = run("collect", folder / "run", "--trust")
                count = len(host.asked)
            kept = kept_in(folder / "run")
            if refused(ended):
                return refused(ended)
            return f"{kept} on record of {count} that the host answered" if kept < count else None

        tally.try_(f"401 as answer {8 + number}", attempt)
    return tally


def kept_in(run_folder: Path) -> int:
    """Answers on record, whatever they were asked for."""
    names = ("exchanges.jsonl", "shown.jsonl", "capabilities.jsonl", "completions/exchanges.jsonl")
    return sum(len(lines_of(run_folder / name)) for name in names)


def _lying_counts(lab: Lab) -> Tally:
    """Usage that is too low saves nothing, usage that is too high neither stops nor costs."""
    tally = Tally(attack="counts that a host claims neither cross a ceiling nor end an audit")
    model = Model()
    claims: dict[str, dict[str, Any]] = {
        "nothing completed": {"completion_tokens": 0}, "one token": {"completion_tokens": 1},
        "negative": {"completion_tokens": -100}, "10^9": {"completion_tokens": 10**9},
        "5,000": {"completion_tokens": 5000}, "a text": {"completion_tokens": "12"},
        "none": {"completion_tokens": None}, "half": {"completion_tokens": 0.5},
        "10^9 reasoned": {"completion_tokens_details": {"reasoning_tokens": 10**9}},
        "10^30": {"completion_tokens": 10**30},
    }  # fmt: skip
    for name, usage in claims.items():

        def attempt(usage: dict[str, Any] = usage) -> str | None:
            folder = lab.folder("counts")

            def script(asked: Asked) -> Any:
                body = full_answer(asked)
                body["usage"] |= usage
                return body

            with FakeHost(script) as host:
                path = write_run_file(folder, host.url)
                ended = run("audit", path, seconds=120)
                spent, count = paid_tokens(host), len(host.asked)
            if sound(ended):
                return sound(ended)
            if spent > 240:
                return f"{spent} tokens asked for of 240"
            report = json.loads((folder / "run" / "report.json").read_text())
            said = report["usage"]["completion_tokens"]
            if not 0 <= said <= 240:
                return f"the report says {said} completion tokens of 240"
            return f"the audit ended after {count} requests" if count < 5 else None

        tally.try_(name, attempt)
    for claim in (100_000, 10**9, 0, -5):

        def dollars(claim: int = claim) -> str | None:
            folder = lab.folder("dollars")

            def script(asked: Asked) -> Any:
                body = model(asked)
                body["usage"]["prompt_tokens"] = claim
                return body

            with FakeHost(script) as host:
                path = write_run_file(folder, host.url, budget_usd=0.002)
                ended = run("audit", path, seconds=120)
            if sound(ended):
                return sound(ended)
            report = json.loads((folder / "run" / "report.json").read_text())
            cost = report["usage"]["cost_usd"]
            return f"USD {cost} of 0.002" if cost is not None and cost > 0.002 else None

        tally.try_(f"{claim} prompt tokens under a ceiling of dollars", dollars)
    return tally


def _huge_bodies(lab: Lab) -> Tally:
    """What the cap lets in fits what may be read back, whatever escaping makes of it."""
    tally = Tally(attack="one huge body leaves the run folder readable")
    bodies = {
        "NUL": b"\0", "escapes": b"\x01", "quotes": b'"', "no UTF-8": b"\xff", "surrogates": b"\xed\xa0\x80",
        "JSON of NUL": None,
    }  # fmt: skip
    model = Model()
    for name, sign in list(bodies.items())[:: lab.size(1, 5)]:

        def attempt(sign: bytes | None = sign) -> str | None:
            folder = lab.folder("huge")
            body = chat("\0" * 2_000_000) if sign is None else sign * (12_000_000 // len(sign))

            def script(asked: Asked) -> Any:
                return Answer(body=body) if asked.index == 2 else model(asked)

            with FakeHost(script) as host:
                path = write_run_file(folder, host.url, max_tokens=2048, top_logprobs=5,
                                      budget_completion_tokens=60_000)  # fmt: skip
                ended = run("audit", path, seconds=200)
                asked = len(host.asked)
            problem = sound(ended)
            if problem is None and ended.status == 2:
                problem = f"audit: {ended.last}"
            for command in (("decide",), ("report",), ("collect", "--probes", 2, "--trust")):
                if problem is None:
                    after = run(command[0], folder / "run", *command[1:], seconds=120)
                    problem = (
                        f"{command[0]}: {after.last}" if after.status in (2, 4, None) else None
                    )
            if problem is None and asked < 4:
                problem = f"the audit ended after {asked} requests"
            shutil.rmtree(folder)
            return problem

        tally.try_(name, attempt)
    return tally


def _two_processes(lab: Lab) -> Iterator[Tally]:
    pairs = lab.size(20, 2)
    within = Tally(
        attack="two processes in one folder: one is refused in one line, nothing asked twice"
    )
    lost = Tally(attack="two processes in one folder: every answer is on record")
    answered = 0
    for number in range(pairs):
        folder = lab.folder("pair")
        command = "audit" if number % 4 == 3 else "collect"

        def script(asked: Asked) -> Any:
            time.sleep(0.03)
            return full_answer(asked)

        with FakeHost(script) as host:
            path = write_run_file(folder, host.url, budget_completion_tokens=1200)
            run("plan", path)
            argv = ["audit", path] if command == "audit" else ["collect", folder / "run", "--trust"]
            children = [start(*argv), start(*argv)]
            ended = [child.wait(120) for child in children]
            asked = Counter(str(a.json.get("messages", a.json.get("prompt"))) for a in host.asked)
            count, spent = len(host.asked), paid_tokens(host)
        twice = sum(n - 1 for n in asked.values())
        bad = [one for one in ended if sound(one)]
        refusals = [one for one in ended if one.status == 2]
        problem = f"{twice} questions asked twice" if twice and command == "collect" else None
        problem = f"{spent} tokens asked for of 1200" if spent > 1200 else problem
        problem = f"{bad[0].status}: {bad[0].last}" if bad else problem
        problem = "neither was refused" if problem is None and not refusals else problem
        problem = "both were refused" if len(refusals) == 2 else problem
        within.note(f"{command} {number}", problem)
        kept = kept_in(folder / "run")
        answered += count
        lost.note(f"{command} {number}", f"{kept} on record of {count}" if kept < count else None)
    lost.extra = {"answers": answered}
    yield within
    yield lost


def _many_lines(lab: Lab) -> Tally:
    """Writers that append to one file at once, without asking each other."""
    tally = Tally(attack="lines appended by two processes at once: none lost, none unreadable")
    for size, count in (
        (100, lab.size(4_000, 200)),
        (20_000, lab.size(4_000, 100)),
        (500_000, lab.size(2_000, 20)),
    ):
        path = lab.folder("lines") / "lines.jsonl"

        def write(
            who: int, path: Path = path, size: int = size, count: int = count
        ) -> Callable[[], int]:
            def work() -> int:
                os.fsync = lambda _fd: None  # slow, and not the matter here
                for number in range(count // 2):
                    append_line(path, {"who": who, "number": number, "text": "x" * size})
                return 0

            return work

        children: list[Running] = [start_child(write(who)) for who in (0, 1)]
        ended = [child.wait(300) for child in children]
        try:
            kept = Counter((line["who"], line["number"]) for line in read_lines(path))
            problem = (
                ""
                if all(one.status == 0 for one in ended)
                else f"a writer: {ended[0].last or ended[1].last}"
            )
        except Exception as error:  # noqa: BLE001 - whatever comes is the finding
            kept, problem = Counter(), f"unreadable: {error}"
        missing = count // 2 * 2 - len(kept)
        for number in range(count // 2 * 2):
            tally.note(
                f"lines of {size} bytes",
                f"{missing} of {count} lost {problem}" if number < missing else None,
            )
        path.unlink(missing_ok=True)
    return tally


def _scores_of_another(lab: Lab) -> Tally:
    """Scores and ledger of an honest host beside the answers of a faulty one."""
    tally = Tally(attack="scores of other replies are refused, and computed anew on demand")
    honest, faulty = make_base(lab, "honest") / "run", make_base(lab, "faulty") / "run"

    def mixed(*, ledger: bool) -> Path:
        folder = lab.folder("mixed") / "run"
        shutil.copytree(faulty, folder)
        for path in folder.iterdir():
            if path.name.startswith(
                ("panel", "shown", "counted", "prompts", "report", "completions")
            ):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copy(honest / "scores.jsonl", folder)
        if ledger:
            shutil.copy(honest / "ledger.json", folder)
        return folder

    for ledger in (True, False):
        for command in ("score", "decide", "report"):

            def attempt(command: str = command, ledger: bool = ledger) -> str | None:
                folder = mixed(ledger=ledger)
                ended = run(
                    command, folder, *(["--trust"] if command == "score" else []), seconds=90
                )
                if not ledger and command in ("decide", "report"):
                    return sound(ended)
                if ended.status == 0 and command == "score":
                    after = run("decide", folder)
                    return "score took them as they are" if after.status == 0 else None
                return refused(ended)

            tally.try_(f"{command}, {'with' if ledger else 'without'} the other ledger", attempt)

    def anew() -> str | None:
        folder = mixed(ledger=True)
        ended = run("score", folder, "--anew", "--trust", seconds=120)
        if ended.status:
            return f"score --anew: exit {ended.status}: {ended.last}"
        after = run("decide", folder)
        return None if after.status == 1 else f"decide after it: exit {after.status}: {after.last}"

    tally.try_("score --anew", anew)
    return tally


def _full_disks(lab: Lab) -> Tally:
    """Files that cannot grow beyond a size: one line, then on, once there is room."""
    tally = Tally(attack="full disks: one line, and the audit goes on once there is room")
    model = Model()
    for size in (2_000, 3_000, 4_000, 8_000, 16_000, 24_000, 32_000, 60_000, 90_000)[
        :: lab.size(1, 3)
    ]:

        def attempt(size: int = size) -> str | None:
            folder = lab.folder("full")
            with FakeHost(model) as host:
                path = write_run_file(folder, host.url, top_logprobs=0)
                ended = run("audit", path, limits={resource.RLIMIT_FSIZE: size}, seconds=90)
                if ended.status == 2 and refused(ended):
                    return refused(ended)
                if ended.status not in (0, 2):
                    return f"exit {ended.status}: {ended.last}"
                answered = _answered(folder / "run")
                before = len(host.asked)
                after = run("audit", path, seconds=90)
                again = [a for a in host.asked[before:] if a.raw.decode() in answered]
                spent = spent_tokens(host, model, folder / "run")
            if after.status not in (0, 3):
                return f"then: exit {after.status}: {after.last}"
            if spent > 240:
                return f"{spent} tokens asked for of 240"
            return f"{len(again)} answered requests sent again" if again else None

        tally.try_(f"{size} bytes", attempt)
    return tally


def _few_descriptors(lab: Lab) -> Tally:
    tally = Tally(attack="few file descriptors: whole audits, or one line")
    model = Model()
    for count in (6, 10, 16, 24, 32, 48, 64)[:: lab.size(1, 3)]:

        def attempt(count: int = count) -> str | None:
            folder = lab.folder("few")
            with FakeHost(model) as host:
                path = write_run_file(folder, host.url)
                ended = run("audit", path, limits={resource.RLIMIT_NOFILE: count}, seconds=90)
            if count >= 24 and ended.status == 2:
                return f"refused: {ended.last}"
            return sound(ended, verdicts=(0, 3))

        tally.try_(f"{count} descriptors", attempt)
    return tally


def _no_end(lab: Lab) -> Tally:
    """Hosts that make an audit wait for days: `audit.deadline` ends it."""
    tally = Tally(
        attack="hosts that make an audit wait: it ends at its deadline, with what there is"
    )
    model, closing = Model(), threading.Event()
    waits = {"Retry-After": "31536000"}

    def drip(line: Any, _request: bytes) -> None:
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with suppress(OSError):
            while not closing.wait(0.2):
                line.sendall(b" ")

    def now_and_then(asked: Asked) -> Any:
        return model(asked) if asked.index % 4 == 0 else Answer(status=429, body={}, headers=waits)

    hosts: dict[str, FakeHost | RawHost] = {
        "429 for ever": FakeHost(lambda _a: Answer(status=429, body={}, headers=waits)),
        "503 for ever": FakeHost(lambda _a: Answer(status=503, body={}, headers=waits)),
        "an answer now and then": FakeHost(now_and_then),
        "a byte at a time": RawHost(drip),
    }
    with ExitStack() as stack:  # all at once: most of it is waiting
        children = {}
        for name, host in hosts.items():
            stack.enter_context(host)
            endpoint = {"max_attempts": 8, "timeout_s": 600}
            path = write_run_file(
                lab.folder("deadline"), host.url, endpoint=endpoint, deadline="60s"
            )
            children[name] = start("audit", path)
        for name, child in children.items():
            ended = child.wait(110)
            problem = sound(ended, verdicts=(0, 3))
            if ended.status is None:
                problem = "still running after 110 s, the deadline is 60 s"
            if problem is None and ended.status == 2 and "deadline: unknown key" in ended.last:
                problem = ended.last
            tally.note(name, problem, ended.seconds)
        closing.set()

    def printed() -> str | None:
        ended = run("plan", write_run_file(lab.folder("plan"), NOWHERE, deadline="2h"))
        shown = "deadline" in ended.out
        return (
            None
            if ended.status == 0 and shown
            else f"exit {ended.status}: {ended.out} {ended.last}"
        )

    tally.try_("plan prints it", printed)
    return tally


def _synced_names(lab: Lab) -> Tally:
    """A power cut may not lose the name of a file: its folder is forced to disk as well."""
    tally = Tally(attack="names of new files are forced to disk with them")
    note = lab.folder("note") / "synced"

    def work() -> int:
        import sys

        from fakes_engine import FakeTokenizer

        import verifier.reference.loaded
        from attacks.lab import Reference, cli, make_engine

        reference = Reference(engine=make_engine(), tokenizer=FakeTokenizer())
        verifier.reference.loaded.reference_loader = lambda *_a, **_k: lambda: reference
        real = os.fsync
        found = []

        def noting(fd: int) -> None:
            found.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
            real(fd)

        os.fsync = noting
        sys.argv = ["verifier", "audit", str(path)]
        try:
            cli.main()
        finally:
            note.write_text("\n".join(found))
        return 0

    if not Path("/proc/self/fd").exists():
        return tally
    folder = lab.folder("sync")
    with FakeHost(Model()) as host:
        path = write_run_file(folder, host.url)
        start_child(work).wait(90)
    synced = note.read_text().splitlines() if note.exists() else []
    count = sum(Path(name).is_dir() for name in synced)
    for name in ("a first append", "a rename"):
        tally.note(name, None if count >= 2 else f"no folder among {len(synced)} forced to disk")
    return tally


def _throughput(lab: Lab) -> Tally:
    """What the books cost: as many requests a second as httpx alone, of a host that thinks.

    It answers after a quarter of a second, as in `reference/benchmarks/wire.benchmark.json`; what a host costs
    that answers in 40 ms, which none that generates text does, is kept beside it.
    """
    tally = Tally(attack="collecting is not under 0.95 of bare httpx")
    ratios = _ratios(lab, lab.size(320, 64), delay_s=0.25)
    best = sorted(ratios)[1]
    tally.extra = {"ratios": ratios, "delay_s": 0.25, "ratios_after_40_ms": _ratios(
        lab, lab.size(600, 120), delay_s=0.04)}  # fmt: skip
    tally.note("asked 8 at once", f"{best:.2f} of bare httpx" if best < 0.95 else None)
    return tally


def _ratios(lab: Lab, count: int, *, delay_s: float) -> list[float]:
    port = free_port()

    def serve() -> int:
        asyncio.run(_serve(port, delay_s))
        return 0

    host = start_child(serve)
    url = f"http://127.0.0.1:{port}/v1"
    ratios = []
    try:
        _wait_for(port)
        for _ in range(3):
            bare = _seconds(lambda: asyncio.run(_ask_bare(url, count)))
            probes = [
                Probe(id=f"p{n}", kind="open", messages=(Message(role="user", content=f"{n}?"),),
                      max_tokens=24)
                for n in range(count)
            ]  # fmt: skip
            endpoint = Endpoint(base_url=url, model="m", top_logprobs=0)
            folder = lab.folder("speed")
            spent = _seconds(lambda f=folder, e=endpoint, p=probes: collect(f, e, p))
            ratios.append(round(bare / spent, 3))
    finally:
        host.send(signal.SIGKILL)
        host.wait(5)
    return ratios


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(500):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError("the host does not come up")


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


async def _serve(port: int, delay_s: float) -> None:
    """A host that answers each request after a while."""
    body = json.dumps(chat("the model says more")).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                size = next(row for row in asked.lower().split(b"\r\n") if b"content-length" in row)
                await reader.readexactly(int(size.partition(b":")[2]))
                await asyncio.sleep(delay_s)
                writer.write(head.encode() + body)
                await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


async def _ask_bare(url: str, count: int) -> None:
    numbers = iter(range(count))

    async def work(client: httpx.AsyncClient) -> None:
        for number in numbers:
            body = {"model": "m", "messages": [{"role": "user", "content": f"{number}?"}]}
            (await client.post(f"{url}/chat/completions", json=body)).json()

    async with httpx.AsyncClient() as client:
        await asyncio.gather(*(work(client) for _ in range(8)))
