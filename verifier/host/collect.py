"""The collecting step: ask the probes that have no outcome yet, and keep every attempt.

The run folder is the only memory: what has been asked, and what came of it, is read back from
its exchanges, so a collection that is killed at any moment goes on where it was. That a request is
sent is on disk before it goes out, so that one whose answer is never recorded is paid for as well.
Whatever asks an endpoint asks here.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from verifier.errors import ConfigError, EndpointError
from verifier.files.run_folder import (
    CAPABILITY_EXCHANGES,
    EXCHANGES,
    MAX_LINE_BYTES,
    SENT,
    SHOWN_EXCHANGES,
    append_line,
    append_lines,
    line_of,
)
from verifier.files.stored import Appended, read_rows
from verifier.host.advice import what_to_do
from verifier.host.budget import Ceiling, Purse, most_prompt_tokens
from verifier.host.endpoint import SPELLED, Client, Endpoint, Sent
from verifier.host.exchange import (
    DIALECTS,
    Problem,
    asked_tokens,
    change_for,
    parse,
    request_of,
)
from verifier.host.rate_limits import Gate, Slots
from verifier.host.refusals import clean
from verifier.host.shape import AS_WRITTEN, Change, Shape, heeds
from verifier.progress import seldom
from verifier.records import (
    Attempt,
    CountTokens,
    Failure,
    NotJudged,
    Outcome,
    Probe,
    Reply,
    Request,
)
from verifier.safety import sieve

#: A host that fails this many probes in a row is not asked the rest.
STOP_AFTER_FAILURES: Final = 20
#: Tries after which a host that never answered anything counts as unreachable.
TRIES_TO_REACH: Final = 4
#: Refusals in a row, with no answer ever, after which the request itself must be at fault.
STOP_AFTER_REFUSALS: Final = 3

_FIRST_BACKOFF_S: Final = 1.0
_FIRST_BACKOFF_AT_LIMIT_S: Final = 5.0  # after 429: hosts count requests by the minute
_MAX_BACKOFF_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.1  # whether to stop
_WORTH_TELLING_S: Final = 1.0
_LONGEST_LINE: Final = 320  # characters
#: Files that attempts are kept in.
_ASKED: Final = (EXCHANGES, CAPABILITY_EXCHANGES, SHOWN_EXCHANGES)
#: What an answer holds at most beside its body, as a line of the exchanges.
_BESIDE_THE_BODY: Final = 2**20
#: Bytes of a line for one character of a text, escaped, at most.
_ESCAPED_BYTES: Final = 6
_KEPT_OF_TOO_LARGE: Final = 4096  # characters
_MOST_UNUSABLE: Final = 2**20  # characters
#: Why the body of an answer is not kept.
TOO_LARGE: Final = "response too large to keep"

_Result = Reply | NotJudged | Problem
Sleep = Callable[[float], Awaitable[object]]


class Record:
    """What a run folder holds of one file of exchanges: every line is read once.

    `update` takes in what has been appended since; the file is append-only.
    """

    def __init__(self, folder: Path, *, name: str = EXCHANGES) -> None:
        self.folder, self.name = folder, name
        self.attempts: list[Attempt] = []
        self.results: list[_Result] = []  # what each means, parallel to the attempts
        self._file = Appended(folder / name, Attempt, advice="restore the run folder from a copy")

    def update(self) -> None:
        """Take in new lines. Raises ConfigError for one that is not as it was written."""
        for where, attempt in self._file.new():
            _refuse_unknown_dialect(attempt, where=where)
            self.attempts.append(attempt)
            self.results.append(parse(attempt))

    def outcomes(self, *, max_attempts: int) -> dict[str, Outcome]:
        """Outcome by probe id, in the order of first attempts; unsettled probes are left out."""
        return self.history(max_attempts=max_attempts).outcomes()

    def history(self, *, max_attempts: int) -> _History:
        """What the attempts add up to."""
        history = _History((), max_attempts=max_attempts)
        for attempt, result in zip(self.attempts, self.results, strict=True):
            history.add(attempt, result)
        return history

    def book(
        self, purse: Purse, every: Sequence[Probe], *, count: CountTokens | None = None
    ) -> None:
        """Take into a purse what the requests for `every` probe may have cost, as `book` does."""
        known = {probe.id: probe for probe in every}
        for attempt, result in zip(self.attempts, self.results, strict=True):
            if attempt.probe_id in known:
                probe = replace(known[attempt.probe_id], max_tokens=asked_tokens(attempt))
                purse.book(probe, result, count=count)
        for request in _unanswered(read_requests(self.folder), self.name, self.attempts):
            purse.book_unanswered(request)


def collect(
    folder: Path,
    endpoint: Endpoint,
    probes: Sequence[Probe],
    *,
    record: Record | None = None,
    ceiling: Ceiling | None = None,
    every: Sequence[Probe] = (),
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] = lambda _line: None,
    stopped: Callable[[], bool] | None = None,
    sleep: Sleep = asyncio.sleep,
    rng: random.Random | None = None,
) -> None:
    """Ask those of `probes` that have no outcome in the folder; append every attempt as it comes.

    `progress` is told how many of `probes` have an outcome, and how many there are, and `tell` why
    and how long it waits, in a line now and then. Returns early, with probes left unasked, once
    STOP_AFTER_FAILURES probes in a row have failed, when one more request could cross the `ceiling`
    on what the folder's requests cost, those for `every` other probe included, and when `stopped`
    says so: what is under way is then given up. `sleep` and `rng` time the retries; None draws the
    jitter afresh. A `record` of the folder saves reading it.

    Raises EndpointError when the operator must act: wrong key, no money, unknown model, host
    unreachable, or nothing but refusals; all that had arrived is in the folder by then.
    """
    purse = None if ceiling is None else Purse(ceiling)
    known = {probe.id: probe for probe in (*every, *probes)}
    record = Record(folder) if record is None else record
    record.update()
    history = _History((), max_attempts=endpoint.max_attempts)
    for attempt, read in zip(record.attempts, record.results, strict=True):
        result = history.add(attempt, read).result
        if purse is not None and attempt.probe_id in known:
            purse.book(known[attempt.probe_id], result, count=endpoint.count_tokens)
    for request in _unanswered(read_requests(folder), EXCHANGES, record.attempts):
        history.was_sent(request)
        if purse is not None:
            purse.book_unanswered(request)
    collection = _Collection(
        folder=folder,
        endpoint=endpoint,
        history=history,
        purse=purse,
        stopped=stopped,
        tell=seldom(tell),
        sleep=sleep,
        rng=rng or random.Random(),  # noqa: S311 - jitter, not a secret
    )
    asyncio.run(collection.run(probes, progress))


def book(
    folder: Path,
    purse: Purse,
    every: Sequence[Probe],
    *,
    name: str = EXCHANGES,
    count: CountTokens | None = None,
) -> None:
    """Take into a purse what a folder's requests for `every` probe may have cost.

    Those without an answer on record are paid in full. `count` is a tokenizer's count of a text.
    """
    record = Record(folder, name=name)
    record.update()
    record.book(purse, every, count=count)


def read_unanswered(folder: Path, *known: Record) -> tuple[Request, ...]:
    """Requests of a folder that were sent and have no attempt on record, in any of its files.

    Those files are not read again of which a record is `known`.
    """
    requests = read_requests(folder)
    attempts = {record.name: record.attempts for record in known}
    for name in dict.fromkeys(request.of for request in requests):
        if name not in attempts:
            attempts[name] = read_attempts(folder, name=name)
    return tuple(
        request
        for name in dict.fromkeys(request.of for request in requests)
        for request in _unanswered(requests, name, attempts[name])
    )


def _unanswered(
    requests: Sequence[Request], name: str, attempts: Sequence[Attempt]
) -> list[Request]:
    """Requests that belong to one file of exchanges and have no attempt there."""
    answered = Counter((attempt.probe_id, attempt.number) for attempt in attempts)
    found = []
    for request in requests:
        key = (request.probe_id, request.number)
        if request.of == name and not answered[key]:
            found.append(request)
        elif request.of == name:
            answered[key] -= 1
    return found


def read_requests(folder: Path) -> list[Request]:
    """Every request that was noted before it was sent; none of a folder of an older version.

    Raises ConfigError when a field is not as it was written.
    """
    path, found = folder / SENT, []
    advice = "restore the run folder from a copy"
    for line, request in enumerate(read_rows(path, Request, advice=advice), 1):
        if request.of not in _ASKED:
            raise ConfigError(f"{path}:{line}: of: names no file of exchanges; {advice}")
        found.append(request)
    return found


def _members(record: Request | Attempt) -> dict[str, Any]:
    """Its fields as they are; `asdict` copies them, and was a tenth of the work per request."""
    return {member.name: getattr(record, member.name) for member in fields(record)}


def request_to_json(name: str, probe: Probe, number: int) -> dict[str, Any]:
    """The line that says that a request goes out."""
    request = Request(
        of=name, probe_id=probe.id, number=number,
        sent_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        max_tokens=probe.max_tokens, prompt_tokens=most_prompt_tokens(probe),
    )  # fmt: skip
    return _members(request)


def ask_once(
    folder: Path,
    name: str,
    endpoint: Endpoint,
    probe: Probe,
    *,
    number: int,
    logprobs: bool,
    purse: Purse,
    shape: Shape = AS_WRITTEN,
    stopped: Callable[[], bool] = lambda: False,
    strike: Callable[[Attempt], Attempt] | None = None,
) -> Sent | None:
    """Ask one question once, and keep what came in the file `name` of a run folder.

    It is paid for and noted before it is sent. `strike` takes out what must not be kept. None when
    the purse does not pay for it, or once `stopped` says so: it is then given up, and stays paid.
    """
    if stopped() or not purse.pay(probe):
        return None

    async def note() -> None:
        append_line(folder / SENT, request_to_json(name, probe, number))

    async def ask() -> Sent | None:
        async with Client(endpoint) as client:
            asking = asyncio.create_task(
                client.ask(probe, number=number, logprobs=logprobs, shape=shape, before=note)
            )
            try:
                while not (await asyncio.wait([asking], timeout=_LOOK_EVERY_S))[0]:
                    if stopped():
                        return None
                return await asking
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    sent = asyncio.run(ask())
    if sent is not None:
        attempt, result = without_excess(*without_key(keepable(sent.attempt), claims=True))
        attempt = attempt if strike is None else strike(attempt)
        purse.give_back(probe, result, count=endpoint.count_tokens)
        append_line(folder / name, attempt_to_json(attempt))
        sent = replace(sent, attempt=attempt)
    return sent


def keepable(attempt: Attempt) -> Attempt:
    """The attempt; without most of its body where its line would be too long to be read again."""
    body = attempt.body
    room = MAX_LINE_BYTES - _BESIDE_THE_BODY - _ESCAPED_BYTES * len(attempt.request)
    if _ESCAPED_BYTES * len(body) <= room or len(line_of(_members(attempt))) <= MAX_LINE_BYTES:
        return attempt
    answered = attempt.status is not None and 200 <= attempt.status <= 299
    return replace(
        attempt, body=body[:_KEPT_OF_TOO_LARGE], error=TOO_LARGE if answered else attempt.error
    )


def read_attempts(folder: Path, *, name: str = EXCHANGES) -> list[Attempt]:
    """Every attempt of a run folder, in the order of arrival; none when nothing was asked yet."""
    return list(_each_attempt(folder, name=name))


def _each_attempt(folder: Path, *, name: str = EXCHANGES) -> Iterator[Attempt]:
    path = folder / name
    rows = read_rows(path, Attempt, advice="restore the run folder from a copy")
    for number, attempt in enumerate(rows, 1):
        _refuse_unknown_dialect(attempt, where=f"{path}:{number}")
        yield attempt


def _refuse_unknown_dialect(attempt: Attempt, *, where: str) -> None:
    if attempt.dialect not in DIALECTS:
        raise ConfigError(
            f"{where}: dialect: {attempt.dialect[:40]!r}, but this version reads "
            f"{', '.join(DIALECTS)}; use the version of the verifier that wrote the folder"
        )


def read_outcomes(folder: Path, *, max_attempts: int) -> dict[str, Outcome]:
    """Outcome by probe id, in the order of first attempts; probes not settled yet are left out."""
    return _History(_each_attempt(folder), max_attempts=max_attempts).outcomes()


def attempt_to_json(attempt: Attempt) -> dict[str, Any]:
    """One line of the exchanges file."""
    return _members(attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What came of one attempt."""

    number: int
    result: _Result
    operators: bool  # the operator must act; the host is not to blame
    change: Change | None  # the host may accept the same, written so
    answers: int  # that had come from the host by then


class _History:
    """What the attempts so far add up to. Reading a folder back and going on agree by design."""

    def __init__(self, attempts: Iterable[Attempt], *, max_attempts: int) -> None:
        self.reached = False  # some response has come from the host
        self.answers = 0  # probes that have been answered
        self.shape = AS_WRITTEN  # how requests must be written to be answered
        self.failed_in_row = 0  # probes, in the order in which they were settled
        self.refused_in_row = 0
        self._max_attempts = max_attempts
        self._entries: dict[str, list[_Entry]] = {}
        self._sent: dict[str, int] = {}
        for attempt in attempts:
            self.add(attempt)

    def add(self, attempt: Attempt, result: _Result | None = None) -> _Entry:
        """Take in one attempt, the next in the order of arrival; `result` saves reading it."""
        result = parse(attempt) if result is None else result
        entries = self._entries.setdefault(attempt.probe_id, [])
        settled_before = self.outcome(attempt.probe_id) is not None
        operators = isinstance(result, Problem) and self._is_operators(result, entries)
        change = None if operators else change_for(attempt, result)
        if change in [entry.change for entry in entries]:
            change = None  # it was made, and did not help
        if not isinstance(result, Problem):
            self.answers += 1
            if made := {entry.change for entry in entries if entry.change is not None}:
                request = request_of(attempt)
                self.shape |= {one for one in made if heeds(request, one)}
        self.reached = self.reached or attempt.status is not None
        entry = _Entry(
            number=attempt.number,
            result=result,
            operators=operators,
            change=change,
            answers=self.answers,
        )
        entries.append(entry)
        outcome = self.outcome(attempt.probe_id)
        if outcome is not None and not settled_before:
            failed = isinstance(outcome, Failure)
            refused = isinstance(result, Problem) and _is_refusal(result)
            self.failed_in_row = self.failed_in_row + 1 if failed else 0
            self.refused_in_row = self.refused_in_row + 1 if refused else 0
        return entry

    @property
    def answered(self) -> bool:
        """Whether some probe has been answered."""
        return self.answers > 0

    def _is_operators(self, problem: Problem, before: Sequence[_Entry]) -> bool:
        """Whether the operator must act, so that nothing is held against the host.

        What the account lacks always is; a missing model, a forbidden request or a dead line only
        as long as the host has never shown that it works. Where it is in doubt whether the account
        is meant, a host that answers others between two tries of a probe means something else.
        """
        if problem.status is None:
            return not self.reached
        if problem.account is not None:
            return not (problem.retryable and before and before[-1].answers < self.answers)
        return not self.answered and (problem.status in (403, 404) or problem.unknown_model)

    def was_sent(self, request: Request) -> None:
        """Take in a request of which no answer is on record: its number is used."""
        last = self._sent.get(request.probe_id, 0)
        self._sent[request.probe_id] = max(last, request.number)

    def next_number(self, probe_id: str) -> int:
        """Number of the next attempt: one more than the last, also across a kill."""
        answered = max((e.number for e in self._entries.get(probe_id, ())), default=0)
        return 1 + max(answered, self._sent.get(probe_id, 0))

    def shape_for(self, probe_id: str) -> Shape:
        """How a probe is written: as the host is known to take it, and as it refused this one."""
        entries = self._entries.get(probe_id, ())
        return self.shape | {entry.change for entry in entries if entry.change is not None}

    def tries(self, probe_id: str) -> int:
        """Tries of a probe that count, towards the most of them."""
        return len(self._counted(probe_id))

    def _counted(self, probe_id: str) -> list[_Result]:
        entries = self._entries.get(probe_id, ())
        return [e.result for e in entries if not (e.operators or e.change)]

    def outcome(self, probe_id: str) -> Outcome | None:
        """What finally came of a probe; None: it is to be asked (again)."""
        entries = self._entries.get(probe_id, [])
        for entry in entries:
            if not isinstance(entry.result, Problem):
                return entry.result
        counted = self._counted(probe_id)
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


def describe_wait(host: str, why: str, wait_s: float, *, what: str) -> str:
    """Why and how long a host is waited for, in one line that neither acts nor shows a key."""
    span = f"{wait_s:.1f} s" if wait_s < 1 else f"{wait_s:.0f} s"
    return sieve.strike(clean(f"{host}: {why}, asking again in {span}{what}", _LONGEST_LINE))


class _Log:
    """Requests and exchanges, written in groups: what comes during one write shares the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[tuple[str, dict[str, Any], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._problem: OSError | ConfigError | None = None

    async def append(self, name: str, line: dict[str, Any]) -> None:
        """Return once a line is on disk in the file of that name, and all that was added before.

        Raises OSError or ConfigError when it cannot be written, or what was added could not be.
        """
        await self._hand_over(name, line)
        self._raise_problem()

    def add(self, name: str, line: dict[str, Any]) -> None:
        """Hand over a line that is on disk by the end of the next `append` or `finish`.

        So an answer is written together with the note of the next request, not before it.
        """
        self._hand_over(name, line)

    def _hand_over(self, name: str, line: dict[str, Any]) -> asyncio.Future[None]:
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((name, line, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return written

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            files: dict[str, list[dict[str, Any]]] = {}
            for name, line, _ in group:
                files.setdefault(name, []).append(line)
            try:
                await asyncio.to_thread(self._append, files)
            except (OSError, ConfigError) as error:
                self._problem = error
            for _, _, written in group:
                if not written.done():  # else whoever waited was cancelled
                    written.set_result(None)

    def _append(self, files: Mapping[str, Sequence[dict[str, Any]]]) -> None:
        for name, lines in files.items():
            append_lines(self._folder / name, lines)

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    async def finish(self) -> None:
        """Wait until all that was handed over is on disk.

        Raises OSError or ConfigError when any of it could not be written.
        """
        if self._writing is not None:
            await self._writing
        self._raise_problem()


def without_excess(attempt: Attempt, result: _Result) -> tuple[Attempt, _Result]:
    """The same; of a large body that is no answer no more than its beginning, and why it is none.

    It says nothing else, and every look at the folder would read it again.
    """
    answered = attempt.status is not None and 200 <= attempt.status <= 299
    no_answer = isinstance(result, Problem) and result.retryable and not result.rate_limited
    if answered and no_answer and attempt.error is None and len(attempt.body) > _MOST_UNUSABLE:
        assert isinstance(result, Problem)
        attempt = replace(attempt, body=attempt.body[:_KEPT_OF_TOO_LARGE], error=result.reason)
    return attempt, result


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


@dataclass(slots=True, kw_only=True)
class _Round:
    """What the workers of one collection share while they run."""

    client: Client
    log: _Log
    slots: Slots
    gate: Gate = field(default_factory=Gate)
    under_way: set[asyncio.Task[Any] | None] = field(default_factory=set)  # a request is out
    stopped: bool = False  # whether no further probe is begun
    over: bool = False  # whether no further request goes out

    async def note(self, request: dict[str, Any]) -> None:
        """Keep that a request goes out, before it does."""
        self.under_way.add(asyncio.current_task())
        await self.log.append(SENT, request)


@dataclass(frozen=True, kw_only=True)
class _Collection:
    """One call of `collect`, while it runs."""

    folder: Path
    endpoint: Endpoint
    history: _History
    purse: Purse | None
    stopped: Callable[[], bool] | None
    tell: Callable[[str], None]
    sleep: Sleep
    rng: random.Random

    async def run(
        self, probes: Sequence[Probe], progress: Callable[[int, int], None] | None
    ) -> None:
        wanted = {probe.id: probe for probe in probes}
        waiting = [p for p in wanted.values() if self.history.outcome(p.id) is None]
        settled = len(wanted) - len(waiting)
        queue = iter(waiting)

        def tell(more: int) -> None:
            nonlocal settled
            settled += more
            if progress is not None:
                progress(settled, len(wanted))

        tell(0)
        if not waiting:
            return
        async with Client(self.endpoint) as client:
            if self.history.reached:
                await client.pace()
            count = min(self.endpoint.concurrency, len(waiting))
            now = _Round(
                client=client, log=_Log(self.folder), slots=Slots(self.endpoint.concurrency)
            )
            workers = [asyncio.create_task(self._work(now, queue, tell)) for _ in range(count)]
            watch = asyncio.create_task(self._watch(workers))
            try:
                await asyncio.gather(*workers)
            except EndpointError:
                await self._finish(now, workers)
                raise
            except asyncio.CancelledError:
                if self.stopped is None or not self.stopped():
                    raise
            finally:
                for worker in (watch, *workers):
                    worker.cancel()
                await asyncio.gather(watch, *workers, return_exceptions=True)
                await now.log.finish()

    async def _work(self, now: _Round, queue: Iterator[Probe], tell: Callable[[int], None]) -> None:
        """Ask one probe of the queue after another, until there is none or nobody may ask more."""
        while True:
            async with now.slots.slot():
                probe = None if now.stopped or now.over else next(queue, None)
                if probe is None:
                    return
                await self._ask(now, probe)
                unpaid = self.history.outcome(probe.id) is None
                dead = self.history.failed_in_row >= STOP_AFTER_FAILURES
                now.stopped = now.stopped or unpaid or dead
                if unpaid:
                    return
            tell(1)

    async def _finish(self, now: _Round, workers: Sequence[asyncio.Task[None]]) -> None:
        """Let the requests that are out come back, and be recorded; no other goes out."""
        now.over = True
        for worker in workers:
            if worker not in now.under_way:
                worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    async def _watch(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """End the workers once another thread says so: no signal reaches this one."""
        if self.stopped is None:
            return
        while not self.stopped():  # noqa: ASYNC110 - another thread sets it, not this loop
            await asyncio.sleep(_LOOK_EVERY_S)
        for worker in workers:
            worker.cancel()

    async def _ask(self, now: _Round, probe: Probe) -> None:
        """Ask one probe until it is settled, or no more can be paid for, or nobody may ask more.

        Raises EndpointError when the operator must act.
        """
        history, tries, clock = self.history, 0, asyncio.get_running_loop().time
        waited_until = clock()
        while True:
            waited_until = await self._pass_gate(now.gate, waited_until)
            if now.over or (self.purse is not None and not self.purse.pay(probe)):
                return
            asked_at = clock()
            sent, result, entry = await self._send(now, probe)
            if sent.exhausted_for_s is not None:
                now.gate.close(until=clock() + sent.exhausted_for_s)
            if not isinstance(result, Problem):
                now.slots.more()
                return
            tries += 1
            if result.rate_limited:
                now.slots.fewer(asked_at=asked_at, now=clock())
            if self._is_hopeless(probe, result, entry, tries):
                now.over = True
                refused = self.history.refused_in_row
                raise EndpointError(
                    await what_to_do(now.client, self.endpoint, result, refused=refused)
                )
            if history.outcome(probe.id) is not None or now.over:
                return
            if entry.change is None:
                wait_s = sent.retry_after_s
                if wait_s is None:
                    wait_s = self._backoff_s(tries, rate_limited=result.rate_limited)
                waited_until = clock() + wait_s
                if sent.retry_after_s is not None:  # its wish holds for everyone
                    now.gate.close(until=waited_until)
                most = self._most_tries(result)
                made = tries if entry.operators else history.tries(probe.id)
                what = f", try {min(made + 1, most)} of {most}"
                self.tell(describe_wait(self.endpoint.host, result.reason, wait_s, what=what))
                await self.sleep(wait_s)

    async def _pass_gate(self, gate: Gate, waited_until: float) -> float:
        """Wait until the gate is open; until when was waited, by the loop's clock."""
        clock = asyncio.get_running_loop().time
        while (left_s := gate.left_s(since=max(waited_until, clock()))) > 0:
            if left_s >= _WORTH_TELLING_S:
                host = self.endpoint.host
                self.tell(describe_wait(host, "it asks for a pause", left_s, what=""))
            waited_until = max(waited_until, clock()) + left_s
            await self.sleep(left_s)
        return waited_until

    async def _send(self, now: _Round, probe: Probe) -> tuple[Sent, _Result, _Entry]:
        """Send one request that is paid for, and keep what came of it."""
        number = self.history.next_number(probe.id)
        shape = self.history.shape_for(probe.id)
        sent = await now.client.ask(
            probe,
            number=number,
            before=partial(now.note, request_to_json(EXCHANGES, probe, number)),
            shape=shape,
            logprobs=self.endpoint.top_logprobs > 0
            and probe.logprobs
            and "without logprobs" not in shape,
        )
        attempt, result = without_excess(*without_key(keepable(sent.attempt)))
        if self.purse is not None:
            self.purse.give_back(probe, result, count=self.endpoint.count_tokens)
        now.log.add(EXCHANGES, attempt_to_json(attempt))
        entry = self.history.add(attempt, result)
        now.under_way.discard(asyncio.current_task())
        return sent, result, entry

    def _is_hopeless(self, probe: Probe, result: Problem, entry: _Entry, tries: int) -> bool:
        """Whether the operator must act, since no request of this kind will be answered."""
        waits = result.status is None or (result.account is not None and result.retryable)
        if entry.operators and (not waits or tries >= self._most_tries(result)):
            return True
        history = self.history
        return (
            history.outcome(probe.id) is not None
            and not history.answered
            and history.refused_in_row >= STOP_AFTER_REFUSALS
        )

    def _most_tries(self, result: Problem) -> int:
        most = self.endpoint.max_attempts
        unreached = result.status is None and not self.history.reached
        return min(TRIES_TO_REACH, most) if unreached else most

    def _backoff_s(self, tries: int, *, rate_limited: bool) -> float:
        """Exponential, with jitter so that the workers do not come back all at once."""
        first_s = _FIRST_BACKOFF_AT_LIMIT_S if rate_limited else _FIRST_BACKOFF_S
        return min(_MAX_BACKOFF_S, first_s * 2.0 ** (tries - 1)) * self.rng.uniform(0.5, 1.0)
