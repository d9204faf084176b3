"""The collecting step: ask the probes that have no outcome yet, and keep every attempt.

The run folder is the only memory: what has been asked, and what came of it, is read back from
its exchanges, so a collection that is killed at any moment goes on where it was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from verifier import sieve
from verifier.endpoint import SPELLED, Client, Endpoint
from verifier.errors import ConfigError, EndpointError
from verifier.folder import EXCHANGES, append_lines, read_lines
from verifier.limits import Gate, Slots
from verifier.records import Attempt, Failure, NotJudged, Outcome, Probe, Reply
from verifier.spending import Ceiling, Purse
from verifier.wire import DIALECTS, Problem, asked_logprobs, asked_tokens, clean, parse

#: A host that fails this many probes in a row is not asked the rest.
STOP_AFTER_FAILURES: Final = 20
#: Tries after which a host that never answered anything counts as unreachable.
TRIES_TO_REACH: Final = 4
#: Refusals in a row, with no answer ever, after which the request itself must be at fault.
STOP_AFTER_REFUSALS: Final = 3

_FIRST_BACKOFF_S: Final = 1.0
_FIRST_BACKOFF_AT_LIMIT_S: Final = 5.0  # after 429: hosts count requests by the minute
_MAX_BACKOFF_S: Final = 60.0
_MODELS_SHOWN: Final = 8
_LOOK_EVERY_S: Final = 0.1  # whether to stop
_FIELDS: Final = {  # of a line of the exchanges file
    "probe_id": str,
    "number": int,
    "started_at": str,
    "elapsed_s": float | int,
    "request": str,
    "status": int | None,
    "body": str,
    "error": str | None,
}

_Result = Reply | NotJudged | Problem
Sleep = Callable[[float], Awaitable[object]]


def collect(
    folder: Path,
    endpoint: Endpoint,
    probes: Sequence[Probe],
    *,
    ceiling: Ceiling | None = None,
    every: Sequence[Probe] = (),
    progress: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] | None = None,
    sleep: Sleep = asyncio.sleep,
    rng: random.Random | None = None,
) -> None:
    """Ask those of `probes` that have no outcome in the folder; append every attempt as it comes.

    `progress` is told how many of `probes` have an outcome, and how many there are. Returns early,
    with probes left unasked, once STOP_AFTER_FAILURES probes in a row have failed, when one more
    request could cross the `ceiling` on what the folder's requests cost, those for `every` other
    probe included, and when `stopped` says so: what is under way is then given up. `sleep` and
    `rng` time the retries; None draws the jitter afresh.

    Raises EndpointError when the operator must act: wrong key, unknown model, host unreachable,
    or nothing but refusals; all that had arrived is in the folder by then.
    """
    purse = None if ceiling is None else Purse(ceiling)
    known = {probe.id: probe for probe in (*every, *probes)}
    history = _History((), max_attempts=endpoint.max_attempts)
    for attempt in _each_attempt(folder):
        result = history.add(attempt, parse(attempt, claims=False)).result
        if purse is not None and attempt.probe_id in known:
            purse.book(known[attempt.probe_id], result)
    collection = _Collection(
        folder=folder,
        endpoint=endpoint,
        history=history,
        purse=purse,
        stopped=stopped,
        sleep=sleep,
        rng=rng or random.Random(),  # noqa: S311 - jitter, not a secret
    )
    asyncio.run(collection.run(probes, progress))


def book(folder: Path, purse: Purse, every: Sequence[Probe], *, name: str = EXCHANGES) -> None:
    """Take into a purse what a folder's requests for `every` probe may have cost."""
    known = {probe.id: probe for probe in every}
    for attempt in read_attempts(folder, name=name):
        if attempt.probe_id in known:
            probe = replace(known[attempt.probe_id], max_tokens=asked_tokens(attempt))
            purse.book(probe, parse(attempt, claims=False))


def read_attempts(folder: Path, *, name: str = EXCHANGES) -> list[Attempt]:
    """Every attempt of a run folder, in the order of arrival; none when nothing was asked yet."""
    return list(_each_attempt(folder, name=name))


def _each_attempt(folder: Path, *, name: str = EXCHANGES) -> Iterator[Attempt]:
    path = folder / name
    for number, value in enumerate(read_lines(path), 1):
        yield attempt_from_json(value, where=f"{path}:{number}")


def read_outcomes(folder: Path, *, max_attempts: int) -> dict[str, Outcome]:
    """Outcome by probe id, in the order of first attempts; probes not settled yet are left out."""
    return _History(_each_attempt(folder), max_attempts=max_attempts).outcomes()


def attempt_to_json(attempt: Attempt) -> dict[str, Any]:
    """One line of the exchanges file."""
    return asdict(attempt)


def attempt_from_json(value: dict[str, Any], *, where: str) -> Attempt:
    """One line of the exchanges file, read back. Raises ConfigError when a field is not as it was.

    `where` names the file and line for the message.
    """
    for name, kind in _FIELDS.items():
        if name not in value:
            raise ConfigError(
                f"{where}: no field {name!r} of an attempt; restore the run folder from a copy"
            )
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise ConfigError(
                f"{where}: {name} is of type {type(value[name]).__name__}, expected "
                f"{getattr(kind, '__name__', kind)}; restore the run folder from a copy"
            )
    headers = value.get("headers", {})
    if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
        raise ConfigError(
            f"{where}: headers: expected names and texts; restore the run folder from a copy"
        )
    dialect = value.get("dialect", "chat")
    if dialect not in DIALECTS:
        raise ConfigError(
            f"{where}: dialect {str(dialect)[:40]!r}, but this version reads "
            f"{', '.join(DIALECTS)}; use the version of the verifier that wrote the folder"
        )
    return Attempt(**{name: value[name] for name in _FIELDS}, headers=headers, dialect=dialect)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What came of one attempt."""

    number: int
    result: _Result
    operators: bool  # the operator must act; the host is not to blame
    refused_logprobs: bool  # the host may accept the same without them


class _History:
    """What the attempts so far add up to. Reading a folder back and going on agree by design."""

    def __init__(self, attempts: Iterable[Attempt], *, max_attempts: int) -> None:
        self.reached = False  # some response has come from the host
        self.answered = False  # some probe has been answered
        self.refuses_logprobs = False
        self.failed_in_row = 0  # probes, in the order in which they were settled
        self.refused_in_row = 0
        self._max_attempts = max_attempts
        self._entries: dict[str, list[_Entry]] = {}
        for attempt in attempts:
            self.add(attempt)

    def add(self, attempt: Attempt, result: _Result | None = None) -> _Entry:
        """Take in one attempt, the next in the order of arrival; `result` saves reading it."""
        result = parse(attempt) if result is None else result
        entries = self._entries.setdefault(attempt.probe_id, [])
        settled_before = self.outcome(attempt.probe_id) is not None
        operators = isinstance(result, Problem) and self._is_operators(result)
        refused_logprobs = (
            isinstance(result, Problem)
            and not operators
            and result.status in (400, 422)
            and asked_logprobs(attempt)
        )
        if not isinstance(result, Problem):
            self.answered = True
            if not asked_logprobs(attempt) and any(e.refused_logprobs for e in entries):
                self.refuses_logprobs = True
        self.reached = self.reached or attempt.status is not None
        entry = _Entry(
            number=attempt.number,
            result=result,
            operators=operators,
            refused_logprobs=refused_logprobs,
        )
        entries.append(entry)
        outcome = self.outcome(attempt.probe_id)
        if outcome is not None and not settled_before:
            failed = isinstance(outcome, Failure)
            refused = isinstance(result, Problem) and _is_refusal(result)
            self.failed_in_row = self.failed_in_row + 1 if failed else 0
            self.refused_in_row = self.refused_in_row + 1 if refused else 0
        return entry

    def _is_operators(self, problem: Problem) -> bool:
        """Whether the operator must act, so that nothing is held against the host.

        A rejected key always is; a missing model, a forbidden request or a dead line only as long
        as the host has never shown that it works.
        """
        if problem.status is None:
            return not self.reached
        if problem.status == 401:
            return True
        return not self.answered and (problem.status in (403, 404) or problem.unknown_model)

    def next_number(self, probe_id: str) -> int:
        """Number of the next attempt: one more than the last, also across a kill."""
        return 1 + max((e.number for e in self._entries.get(probe_id, ())), default=0)

    def asks_logprobs(self, probe_id: str) -> bool:
        """False once the host refuses log-probabilities, in general or for this probe."""
        entries = self._entries.get(probe_id, ())
        return not self.refuses_logprobs and not any(e.refused_logprobs for e in entries)

    def outcome(self, probe_id: str) -> Outcome | None:
        """What finally came of a probe; None: it is to be asked (again)."""
        entries = self._entries.get(probe_id, [])
        for entry in entries:
            if not isinstance(entry.result, Problem):
                return entry.result
        counted = [e.result for e in entries if not (e.operators or e.refused_logprobs)]
        last = counted[-1] if counted else None
        if not isinstance(last, Problem):
            return None
        if last.retryable and len(counted) < self._max_attempts:
            return None
        return Failure(
            probe_id=probe_id, status=last.status, reason=last.reason, attempts=len(entries)
        )

    def outcomes(self) -> dict[str, Outcome]:
        """Every settled probe, in the order of first attempts."""
        found = ((probe_id, self.outcome(probe_id)) for probe_id in self._entries)
        return {probe_id: outcome for probe_id, outcome in found if outcome is not None}


def _is_refusal(problem: Problem) -> bool:
    return problem.status is not None and 300 <= problem.status <= 499 and not problem.retryable


class _Log:
    """The exchanges file, written in groups: what arrives during one write shares the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def append(self, attempt: Attempt) -> None:
        """Return once the attempt is on disk. Raises OSError when it cannot be written."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((attempt_to_json(attempt), written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await written

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            problem = None
            try:
                await asyncio.to_thread(append_lines, self._path, [line for line, _ in group])
            except (OSError, ConfigError) as error:
                problem = error
            for _, written in group:
                if written.done():  # whoever waited was cancelled
                    continue
                if problem is None:
                    written.set_result(None)
                else:
                    written.set_exception(problem)

    async def finish(self) -> None:
        """Wait until all that was handed over is on disk."""
        if self._writing is not None:
            await self._writing


def without_key(attempt: Attempt, *, claims: bool = False) -> tuple[Attempt, _Result]:
    """The attempt and what it means; without its body where any of that spells an API key.

    So what is read back from the folder, where no key is known, cannot spell it either.
    """
    result = parse(attempt, claims=claims)
    if _spells(result):
        answered = attempt.status is not None and 200 <= attempt.status <= 299
        attempt = replace(
            attempt, body="" if answered else sieve.REDACTED, error=SPELLED if answered else None,
            headers={},
        )  # fmt: skip
        result = parse(attempt, claims=claims)
    return attempt, result


def _spells(result: _Result) -> bool:
    """Whether any text of a result spells a key, or several of them together."""
    texts = sieve.texts_in(result)
    if isinstance(result, Reply):
        texts += [result.thought or "", result.text, result.thought or ""]
    return sieve.holds("\n".join([*texts, "".join(texts)]))


@dataclass(frozen=True, kw_only=True)
class _Collection:
    """One call of `collect`, while it runs."""

    folder: Path
    endpoint: Endpoint
    history: _History
    purse: Purse | None
    stopped: Callable[[], bool] | None
    sleep: Sleep
    rng: random.Random

    async def run(
        self, probes: Sequence[Probe], progress: Callable[[int, int], None] | None
    ) -> None:
        wanted = {probe.id: probe for probe in probes}
        waiting = [p for p in wanted.values() if self.history.outcome(p.id) is None]
        settled = len(wanted) - len(waiting)
        queue = iter(waiting)
        slots, gate = Slots(self.endpoint.concurrency), Gate()
        log = _Log(self.folder / EXCHANGES)
        stopped = False

        def tell() -> None:
            if progress is not None:
                progress(settled, len(wanted))

        async def work(client: Client) -> None:
            nonlocal settled, stopped
            while True:
                async with slots.slot():
                    probe = None if stopped else next(queue, None)
                    if probe is None:
                        return
                    await self._ask(client, log, slots, gate, probe)
                    unpaid = self.history.outcome(probe.id) is None
                    dead = self.history.failed_in_row >= STOP_AFTER_FAILURES
                    stopped = stopped or unpaid or dead
                    if unpaid:
                        return
                settled += 1
                tell()

        tell()
        if not waiting:
            return
        async with Client(self.endpoint) as client:
            if self.history.reached:
                await client.pace()
            count = min(self.endpoint.concurrency, len(waiting))
            workers = [asyncio.create_task(work(client)) for _ in range(count)]
            watch = asyncio.create_task(self._watch(workers))
            try:
                await asyncio.gather(*workers)
            except asyncio.CancelledError:
                if self.stopped is None or not self.stopped():
                    raise
            finally:
                for worker in (watch, *workers):
                    worker.cancel()
                await asyncio.gather(watch, *workers, return_exceptions=True)
                await log.finish()

    async def _watch(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """End the workers once another thread says so: no signal reaches this one."""
        if self.stopped is None:
            return
        while not self.stopped():  # noqa: ASYNC110 - another thread sets it, not this loop
            await asyncio.sleep(_LOOK_EVERY_S)
        for worker in workers:
            worker.cancel()

    async def _ask(self, client: Client, log: _Log, slots: Slots, gate: Gate, probe: Probe) -> None:
        """Ask one probe until it is settled, or no more can be paid for.

        Raises EndpointError when the operator must act.
        """
        history, tries, clock = self.history, 0, asyncio.get_running_loop().time
        waited_until = clock()
        while True:
            while (left_s := gate.left_s(since=max(waited_until, clock()))) > 0:
                waited_until = max(waited_until, clock()) + left_s
                await self.sleep(left_s)
            if self.purse is not None and not self.purse.pay(probe):
                return
            asked_at = clock()
            sent = await client.ask(
                probe,
                number=history.next_number(probe.id),
                logprobs=self.endpoint.top_logprobs > 0
                and probe.logprobs
                and history.asks_logprobs(probe.id),
            )
            attempt, result = without_key(sent.attempt)
            if self.purse is not None:
                self.purse.give_back(probe, result)
            await log.append(attempt)
            entry = history.add(attempt, result)
            if sent.exhausted_for_s is not None:
                gate.close(until=clock() + sent.exhausted_for_s)
            if not isinstance(result, Problem):
                slots.more()
                return
            tries += 1
            if result.rate_limited:
                slots.fewer(asked_at=asked_at, now=clock())
            if entry.operators and (result.status is not None or tries >= self._tries_to_reach):
                raise EndpointError(await self._what_to_do(client, result))
            if history.outcome(probe.id) is not None:
                if not history.answered and history.refused_in_row >= STOP_AFTER_REFUSALS:
                    raise EndpointError(await self._what_to_do(client, result))
                return
            if not entry.refused_logprobs:
                wait_s = sent.retry_after_s
                if wait_s is None:
                    wait_s = self._backoff_s(tries, rate_limited=result.rate_limited)
                waited_until = clock() + wait_s
                if sent.retry_after_s is not None:  # its wish holds for everyone
                    gate.close(until=waited_until)
                await self.sleep(wait_s)

    @property
    def _tries_to_reach(self) -> int:
        return min(TRIES_TO_REACH, self.endpoint.max_attempts)

    def _backoff_s(self, tries: int, *, rate_limited: bool) -> float:
        """Exponential, with jitter so that the workers do not come back all at once."""
        first_s = _FIRST_BACKOFF_AT_LIMIT_S if rate_limited else _FIRST_BACKOFF_S
        return min(_MAX_BACKOFF_S, first_s * 2.0 ** (tries - 1)) * self.rng.uniform(0.5, 1.0)

    async def _what_to_do(self, client: Client, problem: Problem) -> str:
        """One line for the operator: host, what came, what to do."""
        endpoint, came = self.endpoint, problem.reason
        if problem.status is None:
            return (
                f"cannot reach {endpoint.host}: {came}; check the base URL "
                f"{endpoint.base_url!r} and the network, then run the same command again"
            )
        if problem.status in (401, 403):
            if endpoint.api_key is None:
                name = endpoint.api_key_env or "a variable, named by api_key_env,"
                return f"{endpoint.host} wants an API key ({came}); put one into {name}"
            name = endpoint.api_key_env or "the variable named by api_key_env"
            return f"{endpoint.host} refused the API key ({came}); put a valid one into {name}"
        if problem.status == 404 or problem.unknown_model:
            models = await client.list_models()
            shown = ", ".join(clean(name, 80) for name in models[:_MODELS_SHOWN])
            rest = len(models) - _MODELS_SHOWN
            advice = (
                f"it lists {shown}{f' and {rest} more' if rest > 0 else ''}; name one of these"
                if models
                else f"check the name, and the base URL {endpoint.base_url!r} (most end in /v1)"
            )
            return f"{endpoint.host} does not serve the model {endpoint.model!r} ({came}); {advice}"
        return (
            f"{endpoint.host} refused {self.history.refused_in_row} probes in a row and has "
            f"answered none ({came}); mend the request, the account or the base URL"
        )
