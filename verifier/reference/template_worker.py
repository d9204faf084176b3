"""The process in which chat templates run: a script of its own, with limits that it cannot lift.

Reads a frame with its limits, then conversations, from stdin, and answers each on stdout until
stdin ends. Knows transformers and nothing of this package: it is started by path, isolated.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import time
from datetime import date
from types import SimpleNamespace
from typing import Any, BinaryIO

#: Before a frame to the process: bytes of the template, bytes of what it is asked with.
ASKED = struct.Struct("!QQ")

#: Before a frame from it: how it went, processor seconds it took, bytes of the text.
ANSWERED = struct.Struct("!cdQ")
FINE, REFUSED, TOO_LONG, NO_MEMORY = b"+", b"-", b"l", b"m"

#: Longest text of an exception, in characters.
_SAID = 200


def main() -> None:
    """Answer until stdin ends."""
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints is no answer
    first = _read(asked)
    if first is None:
        return
    limits = json.loads(first[1])
    sys.path[:] = limits["path"]
    try:
        import transformers
        from transformers import PreTrainedTokenizerBase
    except Exception as error:  # noqa: BLE001 - whatever stands in the way is told, not printed
        _write(answers, REFUSED, 0.0, _line(error))
        return
    transformers.logging.set_verbosity_error()
    _limit(limits["memory"])
    _write(answers, FINE, 0.0, "")
    while (frame := _read(asked)) is not None:
        template, request = frame
        began = time.process_time()
        # what ends by this signal is in a loop, or an orphan: no handler runs within either
        signal.setitimer(signal.ITIMER_PROF, limits["seconds"])
        try:
            text = _render(PreTrainedTokenizerBase, template.decode(_UTF8, _LONE), request)
            most = limits["output"] + limits["growth"] * len(request)
            how, text = (FINE, text) if len(text) <= most else (TOO_LONG, "")
        except MemoryError:
            how, text = NO_MEMORY, ""
        except Exception as error:  # noqa: BLE001 - a template raises what it likes
            how, text = REFUSED, _line(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(answers, how, time.process_time() - began, text)
        if how == NO_MEMORY:  # what is left of it may be held by a cache
            return


_UTF8, _LONE = "utf-8", "surrogatepass"


def _render(tokenizers: Any, template: str, request: bytes) -> str:
    """What a tokenizer's own `apply_chat_template` makes of a conversation."""
    asked = json.loads(request)
    extra = asked["settings"]
    if asked["today"] is not None:
        extra["strftime_now"] = date.fromisoformat(asked["today"]).strftime
    tokenizer = SimpleNamespace(  # all that it reads of a tokenizer where nothing is tokenized
        get_chat_template=lambda _template, _tools: template, special_tokens_map=asked["names"]
    )
    return str(
        tokenizers.apply_chat_template(
            tokenizer,
            asked["messages"],
            tools=asked["tools"] or None,
            chat_template=template,
            add_generation_prompt=asked["generation_prompt"],
            tokenize=False,
            **extra,
        )
    )


def _limit(memory: int) -> None:
    """No more than `memory` bytes beside what is mapped now; no files, no core dumps.

    Memory is bounded on Linux alone: elsewhere nothing says how much is mapped.
    """
    limits = [(resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)]
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - as little as can be
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        limits.append((resource.RLIMIT_AS, mapped + memory))
    for kind, most in limits:
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _line(error: Exception) -> str:
    """An exception in one line; its text may be as long as memory, and its making may fail."""
    try:
        said = " ".join(str(error).split())[:_SAID]
    except Exception:  # noqa: BLE001
        said = ""
    return f"{type(error).__name__}: {said}"


def _read(asked: BinaryIO) -> tuple[bytes, bytes] | None:
    """The next frame; None where there is none, since nobody asks any more."""
    head = asked.read(ASKED.size)
    if len(head) < ASKED.size:
        return None
    first, second = ASKED.unpack(head)
    parts = asked.read(first), asked.read(second)
    return parts if len(parts[1]) == second else None


def _write(answers: BinaryIO, how: bytes, seconds: float, text: str) -> None:
    raw = text.encode(_UTF8, _LONE)
    answers.write(ANSWERED.pack(how, seconds, len(raw)) + raw)
    answers.flush()


if __name__ == "__main__":
    main()
