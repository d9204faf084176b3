"""Chat templates rendered in a process of their own, bounded in time, memory and output.

Templates are foreign code, and the sandbox that runs them bounds none of these. Knows nothing of
tokenizers; what a template makes of a conversation is up to transformers (`template_worker`).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import IO, Final

from verifier.errors import RenderingError
from verifier.records import Prompt
from verifier.reference import template_worker as worker
from verifier.safety.child import bare_environment

#: Processor seconds of one rendering. Honest ones take 0.1 ms; 200,000 tokens take 20 ms.
SECONDS: Final = 5.0

#: Bytes that rendering may take beside what the process takes at rest.
MEMORY: Final = 512 << 20

#: Characters that a template may write of its own, and for each byte of the conversation.
OUTPUT: Final = 256 << 10
GROWTH: Final = 4

#: Longest template, in characters, and longest conversation, in bytes of JSON.
LONGEST_TEMPLATE: Final = 1 << 20
LONGEST_CONVERSATION: Final = 16 << 20

#: Seconds that a template may take of every rendering without being in debt: of itself, and for
#: each byte of the conversation. Debt of as much as one rendering may take ends it for good, or a
#: template just below the limit would hold an audit for as many hours as it has prompts.
_FREE: Final = 0.01
_FREE_PER_BYTE: Final = 0.5e-6

#: What a character of its text costs whoever reads the text into tokens.
_PER_CHARACTER: Final = 0.3e-6

#: Wall time is bounded too, by this multiple: a process may be stopped, or wait for memory.
_PATIENCE: Final = 6

#: Wall seconds within which the process must be ready: it imports transformers.
_START: Final = 120.0

#: Wall seconds within which a process that closed its end has gone.
_LEAVE: Final = 5.0

#: Texts that are kept, since faults leave most prompts as they are, and the longest of them.
_KEPT: Final = 1024
_LONGEST_KEPT: Final = 16 << 10

#: What the process is told beside.
_GIVEN: Final = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class TemplateProcess:
    """Renders in one process, one conversation after another; any thread may ask.

    `seconds` of a processor, `memory` bytes and `output` characters bound one rendering. The
    process is started when it is first needed, and again where it was ended.
    """

    def __init__(
        self, *, seconds: float = SECONDS, memory: int = MEMORY, output: int = OUTPUT
    ) -> None:
        self._seconds, self._memory, self._output = seconds, memory, output
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._ready = False
        self._debts: dict[str, float] = {}  # seconds by template, of those that owe any
        self._ended: dict[str, str] = {}  # which bound a template overstepped
        self._kept: OrderedDict[tuple[str, bytes], str] = OrderedDict()

    def start(self) -> None:
        """Start the process, and do not wait for it."""
        with self._lock:
            self._start()

    def render(self, template: str, names: Mapping[str, str], prompt: Prompt) -> str:
        """The text that a template makes of a conversation; `names` are control tokens by role.

        Raises RenderingError when the template raises, or oversteps a bound; one that does the
        second is not rendered again.
        """
        if len(template) > LONGEST_TEMPLATE:
            why = f"it has {len(template):,} characters, and may have {LONGEST_TEMPLATE:,}"
            raise _overstepped(prompt, why)
        try:
            request = _request(names, prompt)
        except (RecursionError, TypeError, ValueError) as error:  # no JSON: too deep, or too long
            said = " ".join(str(error).split())[:200]
            raise refused(prompt, f"{type(error).__name__}: {said}") from None
        if len(request) > LONGEST_CONVERSATION:
            why = f"ValueError: it has {len(request):,} bytes of at most {LONGEST_CONVERSATION:,}"
            raise refused(prompt, why)
        key = template, request
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            text = self._render(template, request, prompt)
            by_the_clock = prompt.today is None and "strftime_now" in template
            if not by_the_clock and len(request) + len(text) <= _LONGEST_KEPT:
                self._kept[key] = text
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return text

    def close(self) -> None:
        """End the process, if there is one; another is started when it is needed."""
        with self._lock:
            self._end()

    def _render(self, template: str, request: bytes, prompt: Prompt) -> str:
        if template in self._ended:
            raise _overstepped(prompt, self._ended[template])
        how, seconds, text = self._ask(template, request, prompt)
        debt = self._debts.pop(template, 0.0) + seconds + _PER_CHARACTER * len(text)
        debt -= _FREE + _FREE_PER_BYTE * len(request)
        if debt > 0:
            self._debts[template] = debt
        if debt > self._seconds:
            why = f"all it rendered took {self._seconds:g} s of a processor more than it may"
            raise self._out_of_bounds(template, prompt, why)
        if how == worker.TOO_LONG:
            most = self._output + GROWTH * len(request)
            why = f"its text has more than {most:,} characters"
            raise self._out_of_bounds(template, prompt, why)
        if how == worker.REFUSED:
            raise refused(prompt, text)
        return text

    def _out_of_bounds(self, template: str, prompt: Prompt, why: str) -> RenderingError:
        self._ended[template] = why
        return _overstepped(prompt, why)

    def _ask(self, template: str, request: bytes, prompt: Prompt) -> tuple[bytes, float, str]:
        """One rendering, tried again in a new process where this one ended of itself.

        What an earlier template left in it, or somebody else, may have ended it.
        """
        for _ in range(2):
            new = self._start()
            try:
                self._await_start()
                how, seconds, text = self._exchange(
                    template.encode("utf-8", "surrogatepass"), request,
                    within=_PATIENCE * self._seconds,
                )  # fmt: skip
            except TimeoutError:
                self._end()
                why = f"it took over {_PATIENCE * self._seconds:g} s"
                break
            except (EOFError, OSError):
                status = self._end(by_itself=True)
                if status == -signal.SIGPROF:
                    why = f"it took over {self._seconds:g} s of a processor"
                    break
                why = f"it ended its process with status {status}"
            except BaseException:  # an answer may be under way, and would be taken for the next
                self._end()
                raise
            else:
                if how != worker.NO_MEMORY:
                    return how, seconds, text
                self._end()
                why = f"it took over {self._memory / 2**20:.0f} MiB of memory"
            if new:
                break
        raise self._out_of_bounds(template, prompt, why)

    def _start(self) -> bool:
        """Start the process where there is none; whether there was none."""
        if self._process is not None and self._owner == os.getpid():
            return False
        script = str(Path(worker.__file__).resolve())
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, "-I", "-B", "-X", "utf8", script],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                bufsize=0, env=bare_environment() | _GIVEN,
                start_new_session=True,  # Ctrl-C is for who asks
            )  # fmt: skip
        except OSError as error:
            raise _not_started(f"{type(error).__name__}: {error.strerror}") from error
        self._owner, self._ready = os.getpid(), False
        os.set_blocking(_pipes(self._process)[0].fileno(), False)
        return True

    def _await_start(self) -> None:
        """Wait until the process is ready. Raises RenderingError where it cannot be."""
        if self._ready:
            return
        settings = {
            "path": [str(Path(entry).resolve()) for entry in sys.path if entry],
            "seconds": self._seconds,
            "memory": self._memory,
            "output": self._output,
            "growth": GROWTH,
        }
        try:
            how, _, said = self._exchange(b"", json.dumps(settings).encode(), within=_START)
        except (EOFError, OSError) as error:
            status = self._end(by_itself=not isinstance(error, TimeoutError))
            how, said = worker.REFUSED, f"{type(error).__name__}, status {status}"
        if how != worker.FINE:
            raise _not_started(said)
        self._ready = True

    def _exchange(self, first: bytes, second: bytes, *, within: float) -> tuple[bytes, float, str]:
        """Ask, and wait for the answer.

        Raises TimeoutError, EOFError or OSError where the process is too slow, or no more.
        """
        assert self._process is not None
        asked, answers = (pipe.fileno() for pipe in _pipes(self._process))
        deadline = time.monotonic() + within
        _send(asked, worker.ASKED.pack(len(first), len(second)) + first + second, deadline)
        head = _receive(answers, worker.ANSWERED.size, deadline)
        how, seconds, size = worker.ANSWERED.unpack(head)
        raw = _receive(answers, size, deadline)
        return how, seconds, raw.decode("utf-8", "surrogatepass")

    def _end(self, *, by_itself: bool = False) -> int | None:
        """End the process, unless it is about to end by itself; its status."""
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in _pipes(process):
            pipe.close()
        if self._owner != os.getpid():  # the process of whoever forked this one
            return None
        if by_itself:
            try:
                return process.wait(_LEAVE)
            except subprocess.TimeoutExpired:
                pass
        process.kill()
        return process.wait()


#: The process of this one: every tokenizer uses it, so that there is one.
TEMPLATES: Final = TemplateProcess()
atexit.register(TEMPLATES.close)


def refused(prompt: Prompt, why: str) -> RenderingError:
    """The error that a template's own exception becomes."""
    return RenderingError(
        f"the chat template refused a conversation of {len(prompt.messages)} messages ({why}); "
        "send it others, or mend the template"
    )


def _not_started(why: str) -> RenderingError:
    return RenderingError(
        f"the process that renders chat templates did not start ({why}); see that {sys.executable} "
        "can be run and imports transformers"
    )


def _overstepped(prompt: Prompt, why: str) -> RenderingError:
    return RenderingError(
        f"the chat template was ended at a conversation of {len(prompt.messages)} messages: {why}; "
        "mend the template, or render it nowhere"
    )


def _request(names: Mapping[str, str], prompt: Prompt) -> bytes:
    """A conversation as JSON, in ASCII, so that lone surrogates come through."""
    asked = {
        "messages": [dict(message) for message in prompt.messages],
        "tools": [dict(tool) for tool in prompt.tools],
        "generation_prompt": prompt.generation_prompt,
        "settings": dict(prompt.settings),
        "today": prompt.today,
        "names": dict(names),
    }
    return json.dumps(asked).encode("ascii")


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Where it is asked, and where it answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _send(pipe: int, data: bytes, deadline: float) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(pipe, rest) :]
            continue
        except BlockingIOError:
            pass
        _wait(pipe, select.POLLOUT, deadline)


def _receive(pipe: int, size: int, deadline: float) -> bytes:
    found = bytearray()
    while len(found) < size:
        _wait(pipe, select.POLLIN, deadline)
        part = os.read(pipe, size - len(found))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


def _wait(pipe: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
