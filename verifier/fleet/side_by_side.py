"""Several endpoints side by side, or one beside a control: each an audit of its own.

Each is asked by a thread of its own, into a run folder of its own, within its own limits. They
share the probes, and one reference behind its lock. What one suffers, no other feels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from secrets import randbits
from threading import Condition, Thread
from typing import Final

from verifier.audit import audit
from verifier.checks.check import Case
from verifier.config import Fleet, RunFile, dump_run_file, load_fleet
from verifier.errors import ConfigError, VerifierError
from verifier.files.run_folder import (
    CONTROL,
    FLEET,
    LEDGER,
    LOCK,
    make_folder,
    refuse_link,
    working_in,
    write_whole,
)
from verifier.fleet.summary import (
    find_control,
    pending_control,
    place_control,
    summarise,
    write_errors,
)
from verifier.progress import Pace, Show
from verifier.records import Report, Summary
from verifier.reference.loaded import LoadReference, load_once
from verifier.safety import sieve
from verifier.steps import is_finished, start, write_page
from verifier.verdict.control import ENOUGH, read_control, waits_for_replies
from verifier.verdict.decide import decide_folder, judge_folder

#: Seconds that a target waits for the control before a batch, and no longer.
PATIENCE_S: Final = 60.0

#: No lock waits longer (seconds).
_FOR_EVER_S: Final = 86_400.0 * 365

#: Seconds that audits get to end once they are stopped.
GRACE_S: Final = 1.0


def audit_beside_control(
    fleet: Fleet, *, keys: Mapping[str, str | None], load_reference: LoadReference, show: Show
) -> Report:
    """Audit one endpoint and a control together; the report stands beside the control's finding.

    `keys` are the API keys, the endpoint's under "" and the control's under its own name. Raises
    what the endpoint's own audit raises; a control that fails is no reason not to report.
    """
    runs, control = start_beside(fleet)
    raised = _audit_all(runs, control, keys=keys, load_reference=load_reference, show=show)
    if "" in raised:
        raise raised[""]
    failure = _say(raised[CONTROL]) if CONTROL in raised else None
    place_control(find_control(control, failure), runs)
    decide_folder(fleet.out)
    report = write_page(fleet.out)
    _raise_defects(raised)
    return report


def audit_targets(
    fleet: Fleet, *, keys: Mapping[str, str | None], load_reference: LoadReference, show: Show
) -> Summary:
    """Audit every target of a run file, and the control if there is one; their summary.

    A target that raises a VerifierError is on record as not judged. Any other exception is a
    defect: the others finish, the summary is written, and then it is raised.
    """
    runs, control, problems = start_targets(fleet)
    if not runs:
        raise next(iter(problems.values()))
    raised = _audit_all(runs, control, keys=keys, load_reference=load_reference, show=show)
    raised |= problems
    order = (*fleet.run_files, CONTROL)
    write_errors(fleet.out, {name: _say(raised[name]) for name in order if name in raised})
    summary = summarise(fleet.out)
    for name, config in runs.items():
        if name not in raised:
            write_page(config.out)
    _raise_defects(raised)
    return summary


def is_over(fleet: Fleet) -> bool:
    """Whether every audit of a run file came to its end, so that nobody is asked any more.

    One that would be decided otherwise by now, as by another version, goes on.
    """
    judged = fleet.control is None or all(map(_is_vouched, fleet.run_files.values()))
    return judged and all(is_finished(config.out) for config in fleet.every_run_file.values())


def decide_again(fleet: Fleet) -> Report | Summary:
    """Decide what is over once more, from its run folders alone."""
    if fleet.targets is None:
        decide_folder(fleet.out)
        return write_page(fleet.out)
    summary = summarise(fleet.out)
    for config in fleet.run_files.values():
        write_page(config.out)
    return summary


# -- plans -------------------------------------------------------------------------------------


def start_targets(
    fleet: Fleet,
) -> tuple[dict[str, RunFile], RunFile | None, dict[str, VerifierError]]:
    """Write the plans of all targets and of the control, or take up those of their folder.

    All ask the same probes: the seed is drawn once and kept with the run file. The run files of
    those that are planned, the control's, and what stands against planning the others. Raises
    ConfigError when the folder holds other targets, or the control cannot be planned.
    """
    fleet = _with_seed(fleet)
    planned: dict[str, RunFile] = {}
    problems: dict[str, VerifierError] = {}
    for name, config in fleet.run_files.items():
        try:
            refuse_link(config.out)
            start(config)
        except VerifierError as problem:
            problems[name] = problem
        else:
            planned[name] = config
    control = fleet.control_file
    if control is not None and planned:
        start(control)
    return planned, control, problems


def start_beside(fleet: Fleet) -> tuple[dict[str, RunFile], RunFile]:
    """The same of one endpoint and a control: the control asks the endpoint's probes."""
    runs = fleet.run_files
    control = _seeded(fleet, start(runs[""]).seed).control_file
    assert control is not None
    start(control)
    return runs, control


def _with_seed(fleet: Fleet) -> Fleet:
    """The run file with a seed: its own, the one that its folder keeps, or one drawn now."""
    kept = fleet.out / FLEET
    if kept.exists():
        before = load_fleet(kept, below=fleet.out)
        now = before.audit.model_copy(update={"deadline": fleet.audit.deadline})
        before = before.model_copy(update={"out": fleet.out, "audit": now})
        seed = before.audit.seed if fleet.audit.seed is None else fleet.audit.seed
        if _seeded(fleet, seed) != before:
            raise ConfigError(
                f"{fleet.out}: holds other targets; give another out, or the run file {kept} to "
                "go on with them"
            )
        return before
    if fleet.out.exists() and not (
        fleet.out.is_dir()
        and all(p.name in (f"{FLEET}.partial", LOCK) for p in fleet.out.iterdir())
    ):
        raise ConfigError(f"{fleet.out}: exists and holds no {FLEET}; give another out")
    fleet = _seeded(fleet, randbits(63) if fleet.audit.seed is None else fleet.audit.seed)
    make_folder(fleet.out)
    write_whole(kept, dump_run_file(fleet))
    return fleet


def _seeded(fleet: Fleet, seed: int | None) -> Fleet:
    return fleet.model_copy(update={"audit": fleet.audit.model_copy(update={"seed": seed})})


# -- side by side ------------------------------------------------------------------------------


#: What audits raised, by name.
_Raised = dict[str, BaseException]


def _say(error: BaseException) -> str:
    """One line on why an endpoint was not judged."""
    line = sieve.strike(str(error))
    if not isinstance(error, VerifierError):
        line = f"defect in the verifier ({type(error).__name__}: {line})"[:300]
    return " ".join(line.split())


def _raise_defects(raised: _Raised) -> None:
    for error in raised.values():
        if not isinstance(error, VerifierError):
            raise error


class _Stopped(Exception):
    """Raised where an audit shows progress, once all are to stop."""


class Together:
    """Where the control and the targets wait for each other, and hear that they are to stop.

    Batch by batch the control is asked when the first target is, never before; a target waits for
    the control and for no other target, and only so long: a slow control holds nobody up.
    """

    def __init__(self, names: Iterable[str], *, ends_at: float = math.inf) -> None:
        """`ends_at` is the deadline of all, by the monotonic clock: nobody waits any longer."""
        self._turn = Condition()
        self._reached = dict.fromkeys(names, 0)  # the batch that each has come to
        self._over = False
        self._ends_at = ends_at

    def stopped(self) -> bool:
        """Whether all are to stop."""
        return self._over

    def stop(self) -> None:
        """Tell all to stop; nobody waits any more."""
        with self._turn:
            self._over = True
            self._turn.notify_all()

    def begin(self, name: str, number: int) -> None:
        """Come to a batch; wait until it is time to ask it."""
        with self._turn:
            self._reached[name] = number
            self._turn.notify_all()
            left_s = min(_FOR_EVER_S, max(0.0, self._ends_at - time.monotonic()))
            if name == CONTROL:
                self._turn.wait_for(lambda: self._over or self._a_target_is_at(number), left_s)
            else:
                self._turn.wait_for(
                    lambda: self._over or self._reached.get(CONTROL, number) >= number,
                    min(PATIENCE_S, left_s),
                )

    def _a_target_is_at(self, number: int) -> bool:
        targets = [reached for name, reached in self._reached.items() if name != CONTROL]
        return not targets or max(targets) >= number

    def end(self, name: str) -> None:
        """Leave: nobody waits for this one any more."""
        with self._turn:
            del self._reached[name]
            self._turn.notify_all()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until all have left.

        Not by joining their threads: up to Python 3.12 a join that is interrupted takes a thread
        that runs on for one that ended, and the next join does not wait (python/cpython#90882).
        """
        with self._turn:
            self._turn.wait_for(lambda: not self._reached, timeout_s)


def _audit_all(
    runs: Mapping[str, RunFile],
    control: RunFile | None,
    *,
    keys: Mapping[str, str | None],
    load_reference: LoadReference,
    show: Show,
) -> _Raised:
    """Audit all of them at once; what was raised, by name.

    The reference is loaded once, by the first audit that scores. Until the control is judged, every
    run folder says so, and nothing is held against its endpoint.
    """
    began = time.monotonic()
    load = load_once(load_reference)
    every = dict(runs)
    if control is not None:
        every[CONTROL] = control
    # the one of a sole endpoint, which has no name, is held by whoever calls
    with working_in(*(config.out for name, config in every.items() if name)):
        if control is not None:
            place_control(
                pending_control(control),
                {name: config for name, config in runs.items() if not _is_vouched(config)},
            )
        run = partial(_run_all, keys=keys, load_reference=load, began=began, show=show)
        raised = run(every)
        if control is not None and CONTROL not in raised:
            judged = {name: config for name, config in runs.items() if name not in raised}
            raised |= _tell_apart(judged, control, run)
        return raised


def _tell_apart(
    runs: Mapping[str, RunFile], control: RunFile, run: Callable[..., _Raised]
) -> _Raised:
    """Ask targets and the control on, a batch at a time, while an accusation waits for both.

    It ends with a round that brings nothing new: the budgets are spent, or the deadline has come.
    """
    before = -1
    while True:
        found = find_control(control, None, writes=False)
        cases = {name: _case_of(config) for name, config in runs.items()}
        waiting = {n: c for n, c in cases.items() if c is not None and waits_for_replies(found, c)}
        replies = found.replies + sum(len(case.text) for case in waiting.values())
        if not waiting or replies == before:
            return {}
        before = replies
        every = {n: runs[n] for n, case in waiting.items() if len(case.text) < ENOUGH}
        if found.replies < ENOUGH:
            every[CONTROL] = control
        raised = run(every, further=True)
        if raised:
            return raised


def _case_of(config: RunFile) -> Case | None:
    """What a run folder holds; None before anything is scored."""
    return judge_folder(config.out, writes=False)[1] if (config.out / LEDGER).exists() else None


def _once() -> Callable[[], bool]:
    """True the first time, and never again."""
    left = [True]
    return lambda: bool(left and left.pop())


def _run_all(
    every: Mapping[str, RunFile],
    *,
    keys: Mapping[str, str | None],
    load_reference: LoadReference,
    began: float,
    show: Show,
    further: bool = False,
) -> _Raised:
    """Audit all of them at once; `further`: one more batch of each, whatever its verdict."""
    raised: _Raised = {}
    longest_s = max(config.audit.deadline for config in every.values())
    together = Together(every, ends_at=began + longest_s)

    def run(name: str, config: RunFile) -> None:
        try:
            audit(
                config,
                api_key=keys[name],
                load_reference=load_reference,
                show=_named(show, name, together.stopped),
                pace=Pace(
                    begin=partial(together.begin, name),
                    stopped=together.stopped,
                    began=began,
                    wanted=_once() if further else lambda: False,
                ),
            )
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again once the others are done
            raised[name] = error
        finally:
            together.end(name)

    # daemons: a host that hangs on must not keep the process alive once it was told to stop
    threads = [Thread(target=run, args=item, name=item[0], daemon=True) for item in every.items()]
    for thread in threads:
        thread.start()
    try:
        together.wait()
    except BaseException:
        together.stop()
        together.wait(GRACE_S)
        raise
    return raised


def _is_vouched(config: RunFile) -> bool:
    """Whether a finding of the control is kept already; one that failed is tried again."""
    known = read_control(config.out)
    return known is not None and known.finding not in ("failed", "pending")


def _named(show: Show, name: str, stopped: Callable[[], bool]) -> Show:
    """Progress that says whose it is, and ends an audit that is to stop."""
    prefix = f"{name}: " if name else ""

    def tell(line: str) -> None:
        if stopped():
            raise _Stopped
        show.tell(prefix + line)

    def step(what: str, done: int, of: int) -> None:
        if stopped():
            raise _Stopped
        show.step(prefix + what, done, of)

    return Show(tell=tell, step=step)
