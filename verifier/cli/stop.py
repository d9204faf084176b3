"""How a command is stopped from outside: by Ctrl-C, SIGTERM, or a terminal that is closed.

All three interrupt it alike; what is under way is given up, and one line says how to go on. Where
that takes too long, as in one long product of an engine, a thread ends the process: a run folder
bears a kill at any moment. Whatever processes the command has started end with it.

Needs the standard library only, until something is to be ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Final

INTERRUPTED: Final = 130  # as a shell says it: 128 and the number of the signal

#: Seconds that a command has to end by itself.
GRACE_S: Final = 1.5

#: Seconds that processes of ours have to end by themselves, before they are killed.
_LEAVE_S: Final = 0.3

#: What interrupts as Ctrl-C does, unless whoever starts us has it ignored, as nohup does.
_ALIKE: Final = (signal.SIGTERM, signal.SIGHUP)

_STOPPING: Final = (signal.SIGINT, *_ALIKE)

#: What is written in place of a signal's number once the command has ended, and where somebody else
#: has heard of a signal.
_OVER: Final = b"\0"
_HEARD: Final = b"\xff"

#: Where it is written, while a command is under way.
_PIPE: Final[list[int]] = []

#: Seconds in which the watch hears of a signal that this thread has heard of.
_SOON_S: Final = 0.05

#: What a terminal shows again: a clean line, and the cursor that a bar had hidden.
_AS_BEFORE: Final = "\r\x1b[2K\x1b[?25h"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a command ends once it is stopped."""

    status: int
    words: str | None  # None: there is nothing to say


#: What is true of every command until it says more.
_UNKEPT: Final = End(status=INTERRUPTED, words="stopped; run the same command again")

#: The end of the command under way, and whether it was told to stop.
_END: Final = [_UNKEPT]
_STOPPED: Final = threading.Event()

#: What goes on with most of what is kept.
SAME: Final = "the same command"


def end() -> End:
    """How the command under way would end now."""
    return _END[0]


def goes_on(command: str) -> None:
    """From here on what is done is kept, and a command goes on with it."""
    _END[0] = End(status=INTERRUPTED, words=f"stopped; {command} goes on where this one was")


def is_to_be_stopped() -> None:
    """From here on the command ends well by being stopped, as a server does."""
    _END[0] = End(status=0, words=None)


def heard() -> None:
    """Tell that a signal was heard: an event loop may have put itself in the place of the watch."""
    for writes in _PIPE:
        with suppress(BlockingIOError):
            os.write(writes, _HEARD)


@contextmanager
def stoppable(say: Callable[[str], object]) -> Iterator[None]:
    """Heed what stops a command, for as long as it runs.

    `say` shows the last words where the command does not come to it; it must not wait for others.
    """
    _END[0] = _UNKEPT
    _STOPPED.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    _PIPE[:] = [writes]
    # the number of a signal is written by C, also while this thread is in a product of an engine
    wakeup = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    before = {number: signal.getsignal(number) for number in _ALIKE}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    watch = threading.Thread(target=_watch, args=(reads, writes, say), name="stop", daemon=True)
    watch.start()
    try:
        yield
    except KeyboardInterrupt:
        _STOPPED.wait(_SOON_S)
        raise
    finally:
        if not _STOPPED.is_set():  # else the watch goes on until the process has ended
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            _PIPE.clear()
            os.write(writes, _OVER)


def leave_if_stopped(status: int) -> None:
    """End the process and all that it started, if it was told to stop.

    At once: threads that are in an engine, or wait for a host, would be waited for, or crash.
    """
    if _STOPPED.is_set():
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        _end_all(status)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """As Ctrl-C is taken at this moment: asyncio has ways of its own."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


def _watch(reads: int, writes: int, say: Callable[[str], object]) -> None:
    """Wait for a signal that stops; then for a second one, or the end of the grace."""
    while (told := os.read(reads, 1)) != _HEARD and told[0] not in _STOPPING:
        if told == _OVER:
            os.close(reads)
            os.close(writes)
            return
    _STOPPED.set()
    until = time.monotonic() + GRACE_S
    while (left_s := until - time.monotonic()) > 0:
        ready, _, _ = select.select([reads], [], [], left_s)
        if ready and os.read(reads, 1)[0] in _STOPPING:
            break
    found = end()
    with suppress(BaseException):
        if sys.stderr.isatty():
            os.write(2, _AS_BEFORE.encode())
        if found.words is not None:
            say(found.words)
    _end_all(found.status)


def _end_all(status: int) -> None:
    """End every process below this one, and then this one."""
    with suppress(BaseException):
        import psutil

        # one of Python's own cleans up after all others, and ends by itself
        below = [
            child for child in psutil.Process().children(recursive=True)
            if not any("resource_tracker" in word for word in _command(child))
        ]  # fmt: skip
        for child in below:
            with suppress(psutil.Error):
                child.terminate()
        for child in psutil.wait_procs(below, timeout=_LEAVE_S)[1]:
            with suppress(psutil.Error):
                child.kill()
    os._exit(status)


def _forget() -> None:
    """In a fork of this process, whose signals are its own."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
        for number in _ALIKE:
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, signal.SIG_DFL)
    _STOPPED.clear()
    _PIPE.clear()


os.register_at_fork(after_in_child=_forget)


def _command(process: object) -> list[str]:
    with suppress(Exception):  # it may have ended
        return list(process.cmdline())  # type: ignore[attr-defined]  # psutil is imported late
    return []
