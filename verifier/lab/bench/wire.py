"""What collecting withstands, measured: storms, kills and speed on hosts that answer from a script.

No model takes part but in the last figure, which audits the honest testbed host through a storm.
Servers and collectors run in processes of their own, on the loopback.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import platform
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import httpx

from verifier.audit import audit
from verifier.config import AuditSection, EndpointSection, ReferenceSection, RunFile
from verifier.evidence.ledger import read_ledger
from verifier.files.run_folder import EXCHANGES, read_json
from verifier.host.collect import collect, read_attempts, read_outcomes
from verifier.host.endpoint import Endpoint
from verifier.host.exchange import parse
from verifier.lab.bench.results import CARD, SCHEMA, results_path, tabulate_rows, write_results
from verifier.lab.demo import local_host
from verifier.lab.testbed.proxy import STORM, forward_to, running_proxy
from verifier.lab.testbed.script import LONGEST, count_faults, scripted_host
from verifier.plan import versions
from verifier.progress import Show
from verifier.records import Message, NotJudged, Outcome, Probe, Reply
from verifier.reference.loaded import LoadReference

PART: Final = "wire"

PROBES: Final = 1000
KILLS: Final = 100
CONCURRENCY: Final = 64
_TOP: Final = 5


def make_probes(count: int) -> list[Probe]:
    """Probes whose prompts are their names."""
    return [
        Probe(
            id=f"p{n:04}", kind="open", messages=(Message(role="user", content=f"p{n:04}"),),
            max_tokens=LONGEST,
        )
        for n in range(count)
    ]  # fmt: skip


# -- storms ------------------------------------------------------------------------------------


def make_endpoint(
    url: str, *, stream: bool = False, timeout_s: float = 10.0, concurrency: int = CONCURRENCY
) -> Endpoint:
    """An endpoint with the defaults of a run file, but for time and concurrency."""
    return Endpoint(
        base_url=url, model="scripted", concurrency=concurrency, timeout_s=timeout_s,
        top_logprobs=_TOP, stream=stream,
    )  # fmt: skip


def _collect(folder: Path, url: str, count: int, stream: bool, send: Any) -> None:
    """Collect in this process, and send back the seconds it took and its peak memory."""
    folder.mkdir(parents=True, exist_ok=True)
    probes = make_probes(count)
    start = time.monotonic()
    collect(folder, make_endpoint(url, stream=stream), probes)
    send.send((time.monotonic() - start, _peak_mb()))


def _peak_mb() -> float:
    """The most memory this process has had resident; `getrusage` would count its parent's too."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None, "memory is measured on Linux alone"
    return int(found[1]) / 1024


def _apart(run: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """Run it in a process of its own; the two numbers it sends back."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(*arguments, send))
    process.start()
    send.close()  # so that a process which dies is noticed
    try:
        found: tuple[float, float] = receive.recv()
    finally:
        process.join()
    return found


def measure_storm(
    out: Path, *, stream: bool, count: int, seed: int, rates: Mapping[str, float] = STORM
) -> dict[str, Any]:
    """One collection in clear weather and one in a storm: what was lost, changed, counted twice.

    Lost: a probe without an answer. Duplicated: one with more than one usable answer on record.
    """
    name = "streams" if stream else "whole"
    clear, storm = out / f"clear-{name}", out / f"storm-{name}"
    with scripted_host(rates={}) as url:
        clear_s, clear_mb = _apart(_collect, clear, url, count, stream)
    with scripted_host(rates=rates, seed=seed) as url:
        storm_s, storm_mb = _apart(_collect, storm, url, count, stream)
        faults = count_faults(url)
    truth, found = _outcomes(clear), _outcomes(storm)
    answers = Counter(
        attempt.probe_id
        for attempt in read_attempts(storm)
        if isinstance(parse(attempt), Reply | NotJudged)
    )
    return {
        "replies": name,
        "probes": count,
        "requests": sum(faults.values()),
        "spoilt": sum(n for fault, n in faults.items() if fault),
        "faults": dict(sorted((k, n) for k, n in faults.items() if k)),
        "lost": sum(not isinstance(found.get(p.id), Reply) for p in make_probes(count)),
        "duplicated": sum(n > 1 for n in answers.values()),
        "changed": sum(found.get(name) != reply for name, reply in truth.items()),
        "seconds": round(storm_s, 1),
        "peak_mb": round(storm_mb, 1),
        "clear_seconds": round(clear_s, 1),
        "clear_peak_mb": round(clear_mb, 1),
    }


def _outcomes(folder: Path) -> dict[str, Outcome]:
    return read_outcomes(folder, max_attempts=make_endpoint("http://127.0.0.1/v1").max_attempts)


# -- kills -------------------------------------------------------------------------------------


#: Slow enough that 20 probes a kill outlast every kill: 4 at once, each answered after 0.2 s, are
#: at most 12 in the 0.3 s that a process has after its first write.
_KILLED_CONCURRENCY = 4
_ANSWER_S = 0.2


def _collect_until_killed(folder: Path, url: str, count: int) -> None:
    collect(folder, make_endpoint(url, concurrency=_KILLED_CONCURRENCY), make_probes(count))


def measure_kills(out: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """One collection, killed by SIGKILL again and again at random moments, then let to its end.

    Four kills in five come within 0.3 s after something was written, the others at any moment
    from the start on. `torn` counts those that left half a line.
    """
    folder, count = out / "killed", 20 * kills
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["verifier.lab.bench.wire"])
    rng = random.Random(seed)  # noqa: S311 - moments, not a secret
    exchanges, torn, killed, hit = folder / EXCHANGES, 0, 0, 0
    with scripted_host(rates={}, delay_s=_ANSWER_S) as url:
        while killed < kills:
            before = _size(exchanges)
            process = context.Process(target=_collect_until_killed, args=(folder, url, count))
            process.start()
            if rng.random() < 0.8:
                while _size(exchanges) == before and process.is_alive():
                    time.sleep(0.002)
            process.join(rng.uniform(0, 0.3))
            if not process.is_alive():
                break
            process.kill()
            process.join()
            killed += 1
            hit += _size(exchanges) > before
            torn += bool(_size(exchanges)) and not exchanges.read_bytes().endswith(b"\n")
        settled = len(_outcomes(folder))
        collect(folder, make_endpoint(url), make_probes(count))
        whole = out / "never-killed"
        whole.mkdir(parents=True, exist_ok=True)
        collect(whole, make_endpoint(url), make_probes(count))
    answers = Counter(attempt.probe_id for attempt in read_attempts(folder))
    return {
        "probes": count,
        "kills": killed,
        "kills_after_a_write": hit,
        "torn": torn,
        "settled_at_the_last": settled,
        "lost": count - len(answers),
        "duplicated": sum(n > 1 for n in answers.values()),
        "equal": dict(sorted(_outcomes(folder).items())) == dict(sorted(_outcomes(whole).items())),
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# -- speed -------------------------------------------------------------------------------------


async def _bare_loop(url: str, bodies: Sequence[bytes]) -> None:
    """What anyone would write: one client, a semaphore, post and read."""
    limits = httpx.Limits(max_connections=CONCURRENCY)
    places = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def post(body: bytes) -> None:
            async with places:
                answer = await client.post(
                    url + "/chat/completions", content=body,
                    headers={"Content-Type": "application/json"},
                )  # fmt: skip
                answer.raise_for_status().json()

        async with asyncio.TaskGroup() as group:
            for body in bodies:
                group.create_task(post(body))


def _time_bare(url: str, bodies: list[bytes], send: Any) -> None:
    start, cpu = time.monotonic(), time.process_time()
    asyncio.run(_bare_loop(url, bodies))
    send.send((time.monotonic() - start, time.process_time() - cpu))


def _time_ours(folder: Path, url: str, count: int, send: Any) -> None:
    folder.mkdir(parents=True)
    start, cpu = time.monotonic(), time.process_time()
    collect(folder, make_endpoint(url), make_probes(count))
    send.send((time.monotonic() - start, time.process_time() - cpu))


def measure_speed(out: Path, *, delay_s: float, count: int, rounds: int) -> dict[str, Any]:
    """Probes per second of the collector and of a bare httpx loop, in turns on one server.

    Ours are also parsed, and on disk. Seconds of processor time are given beside: they do not
    depend on what else the machine does.
    """
    ours: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    with scripted_host(rates={}, delay_s=delay_s) as url:
        warm = out / f"speed-{delay_s:g}-warm"  # the server remembers the script from here on
        _apart(_time_ours, warm, url, count)
        bodies = [attempt.request.encode() for attempt in read_attempts(warm)]
        for n in range(rounds):
            ours.append(_apart(_time_ours, out / f"speed-{delay_s:g}-{n}", url, count))
            bare.append(_apart(_time_bare, url, bodies))
    return {
        "answer_after_s": delay_s,
        "concurrency": CONCURRENCY,
        "probes": count,
        "rounds": rounds,
        "ours_per_s": round(count / fmean(wall for wall, _ in ours), 1),
        "bare_per_s": round(count / fmean(wall for wall, _ in bare), 1),
        "ratio": round(fmean(w for w, _ in bare) / fmean(w for w, _ in ours), 3),
        "ours_cpu_ms": round(1000 * fmean(cpu for _, cpu in ours) / count, 2),
        "bare_cpu_ms": round(1000 * fmean(cpu for _, cpu in bare) / count, 2),
    }


# -- verdicts ----------------------------------------------------------------------------------


def measure_verdicts(
    out: Path, *, load_reference: LoadReference, show: Show, seed: int
) -> list[dict[str, Any]]:
    """Audits of the honest testbed host, asked directly and through a storm.

    `cells_equal`: the ledger of the first audit, cell by cell.
    """
    reference = load_reference()
    found: list[dict[str, Any]] = []
    with local_host("none") as direct, running_proxy(
        forward_to(direct), rates=STORM, seed=seed
    ) as (stormy, proxy):  # fmt: skip
        for name, url, stream in (
            ("direct", direct, False), ("storm", stormy, False), ("storm, streams", stormy, True),
        ):  # fmt: skip
            spoilt = sum(n for fault, n in proxy.done.items() if fault)
            config = RunFile(
                endpoint=EndpointSection(base_url=url, model=CARD, stream=stream, timeout_s=300),
                reference=ReferenceSection(card=CARD),
                audit=AuditSection(policy="screen", seed=seed),
                out=out / f"audit-{len(found)}",
            )
            report = audit(config, api_key=None, load_reference=lambda: reference, show=show)
            found.append(
                {
                    "host": name,
                    "decision": report.decision,
                    "replies": report.usage.replies,
                    "failures": report.usage.failures,
                    "requests": report.usage.requests,
                    "spoilt": sum(n for fault, n in proxy.done.items() if fault) - spoilt,
                    "noise_scale": report.noise_scale.estimate,
                    "cells_equal": _cells(out / "audit-0") == _cells(config.out),
                }
            )
    return found


def _cells(run: Path) -> list[Any]:
    rows = read_ledger(run).rows
    return sorted((row.probe_id, row.text) for row in rows)


# -- all of it ---------------------------------------------------------------------------------


def run_bench_wire(out: Path, *, load_reference: LoadReference, show: Show, seed: int) -> Path:
    """Measure everything into `out`; the path of the results.

    Goes on after the last part that an earlier run with the same `out` and seed had finished.
    """
    path = results_path(out, PART)
    results: dict[str, Any] = read_json(path) if path.exists() else {}
    results |= {
        "schema_version": SCHEMA,
        "seed": seed,
        "versions": versions(),
        "machine": {"machine": platform.machine(), "cores": multiprocessing.cpu_count()},
        "storm": dict(STORM),
    }
    measures: dict[str, Callable[[Path], Any]] = {
        "speed": lambda work: [
            measure_speed(work, delay_s=delay_s, count=PROBES, rounds=3) for delay_s in (0.25, 0.0)
        ],
        "kills": lambda work: measure_kills(work, kills=KILLS, seed=seed),
        "storms": lambda work: [
            measure_storm(work, stream=stream, count=PROBES, seed=seed) for stream in (False, True)
        ],
        "verdicts": lambda work: measure_verdicts(
            work, load_reference=load_reference, show=show, seed=seed
        ),
    }
    for name, measure in measures.items():
        if name not in results:
            show.tell(f"measuring {name}")
            work = out / name
            shutil.rmtree(work, ignore_errors=True)  # half of a part is of no use
            work.mkdir(parents=True)
            results[name] = measure(work)
            write_results(out, PART, results)
    return path


def tabulate(results: Mapping[str, Any]) -> str:
    """The results as Markdown tables: storms, kills, speed, verdicts."""
    kills = results["kills"]
    tables = (
        tabulate_rows(
            ("replies", "probes", "requests", "spoilt", "lost", "counted twice", "changed",
             "peak memory", "in clear weather"),
            (
                (
                    s["replies"], s["probes"], s["requests"], s["spoilt"], s["lost"],
                    s["duplicated"], s["changed"], f"{s['peak_mb']:.0f} MB",
                    f"{s['clear_peak_mb']:.0f} MB",
                )
                for s in results["storms"]
            ),
        ),
        tabulate_rows(
            ("probes", "kills", "lost", "counted twice", "equal to a run never killed"),
            [(kills["probes"], kills["kills"], kills["lost"], kills["duplicated"],
              _yes_or_no(kills["equal"]))],
        ),
        tabulate_rows(
            ("the server answers after", "ours, replies/s", "bare httpx loop", "ratio",
             "processor time of a reply", "bare"),
            (
                (
                    f"{s['answer_after_s']:g} s", f"{s['ours_per_s']:.0f}",
                    f"{s['bare_per_s']:.0f}", f"{s['ratio']:.2f}", f"{s['ours_cpu_ms']:.1f} ms",
                    f"{s['bare_cpu_ms']:.1f} ms",
                )
                for s in results["speed"]
            ),
        ),
        tabulate_rows(
            ("the honest host, asked", "verdict", "replies", "requests", "spoilt",
             "same ledger as asked directly"),
            (
                (
                    v["host"], v["decision"], v["replies"], v["requests"], v["spoilt"],
                    _yes_or_no(v["cells_equal"]),
                )
                for v in results["verdicts"]
            ),
        ),
    )  # fmt: skip
    return "\n\n".join(tables)


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"
