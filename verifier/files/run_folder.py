"""The run folder: names of its files, and reading and writing them so that a kill loses nothing.

Knows nothing of what the lines mean beyond the records they hold. Text only, never pickle.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NoReturn, cast

from verifier.errors import ConfigError
from verifier.safety import sieve

RUN: Final = "run.yaml"  # what was asked: the whole configuration, without secrets
PLAN: Final = "plan.json"  # policy, columns, calibration, seed, versions, ceiling
PROBES: Final = "probes.jsonl"  # every probe in the order it is asked
PANEL: Final = "panel.jsonl"  # probes that tell templates apart, once they are needed
SAMPLED: Final = "sampled.jsonl"  # probes asked at temperature 1, where samples are judged
SAMPLED_SCORES: Final = "sampled_scores.jsonl"  # one line per sampled reply, append-only
REPEATS: Final = "repeats.jsonl"  # sampled replies to what was asked before, append-only
PROMPTS: Final = "prompts.json"  # a prompt as published and as the named rendering makes it
EXCHANGES: Final = "exchanges.jsonl"  # every attempt, raw, append-only
SENT: Final = "sent.jsonl"  # every request, noted before it is sent, append-only
CAPABILITIES: Final = "capabilities.json"  # what the endpoint can do, found by effect
CAPABILITY_EXCHANGES: Final = "capabilities.jsonl"  # the attempts that showed it
SHOWN: Final = "shown.json"  # prompts that the endpoint shows, against the catalogue
SHOWN_EXCHANGES: Final = "shown.jsonl"  # the attempts that asked for them
COMPLETIONS: Final = "completions"  # folder of text completions, where they were asked for
COUNTED: Final = "counted.json"  # strings that tell tokenizers apart, and their counts
SCORES: Final = "scores.jsonl"  # one line per reply and weights, append-only
CONTEXT: Final = "context.jsonl"  # long prompts, and prompts for long replies, as they are asked
CONTEXT_SCORES: Final = "context_scores.jsonl"  # what their replies say, append-only
LEDGER: Final = "ledger.json"  # log-likelihoods, reply by hypothesis
REPORT: Final = "report.json"  # the verdict
PAGE: Final = "report.html"  # the verdict for people
CONTROL_REPORT: Final = "control.json"  # what the control showed, where there is one
DEADLINE: Final = "deadline.json"  # that the last command ended at its deadline
FINISHED: Final = "finished.json"  # that the audit came to its end, and by what evidence
LOCK: Final = ".lock"  # there while a process works in the folder

CONTROL: Final = "control"  # the run folder of the control, in the folder of what it stands beside

# In the folder of several targets, beside the run folder of each.
FLEET: Final = "targets.yaml"  # what was asked for, with the seed that all share
ERRORS: Final = "errors.json"  # why a target was not judged
SUMMARY: Final = "summary.json"  # where all of them stand

#: Names that no target can have, in lower case.
RESERVED: Final = frozenset({CONTROL, FLEET, ERRORS, SUMMARY, RUN})

#: Larger lines or files are refused: a run folder may come from a stranger. None is written either.
MAX_LINE_BYTES: Final = 64 * 2**20
MAX_FILE_BYTES: Final = 4 * 2**30
MAX_JSON_BYTES: Final = 64 * 2**20  # of a file that is one JSON value
MAX_VALUES: Final = 4_000_000  # of one JSON text
MAX_MEMBERS: Final = 250_000  # of all its objects together

#: The same of a ledger, which has some 350 values and 70 members for each reply: enough for the
#: million tokens that a budget may have, in replies of 48.
MAX_LEDGER: Final = (4 * MAX_JSON_BYTES, 10_000_000, 2_000_000)

_TEXTS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line and force it to disk, so that a kill loses nothing that had arrived.

    A torn last line, left by a kill in the middle of a write, is cut off first.
    """
    append_lines(path, [value])


def append_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines as `append_line` does, forced to disk once for all of them.

    Two processes that append to one file wait for each other. Raises ConfigError, with nothing
    written, for a line or a file that would be too large to be read again.
    """
    lines = b"".join(_line(value, path) for value in values)
    with entered(path.parent) as inside, _opened(inside, path.name, "a+b", where=path) as file:
        # else each of two takes the half-written line of the other for one that a kill tore
        _lock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size and not _ends_whole(file):
            size = file.truncate(_whole_length(file))
        if size + len(lines) > MAX_FILE_BYTES:
            raise ConfigError(
                f"{path}: would be larger than {MAX_FILE_BYTES} bytes, and could not be read "
                "again; nothing was written: begin another run with another --out"
            )
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
        if not size:
            os.fsync(inside)  # its name, too


def line_of(value: Mapping[str, Any]) -> bytes:
    """A JSON line as it is written, its end included, without the API keys that are known."""
    line = _compact(value)
    line = _compact(sieve.strike_all(value)) if sieve.holds(line) else line
    return line.encode("utf-8", "surrogatepass") + b"\n"


def _compact(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _line(value: Mapping[str, Any], path: Path) -> bytes:
    line = line_of(value)
    if len(line) > MAX_LINE_BYTES:
        raise ConfigError(
            f"{path}: a line of {len(line)} bytes is longer than the {MAX_LINE_BYTES} that can be "
            "read again; nothing was written: ask for shorter replies or prompts"
        )
    return line


def _ends_whole(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _whole_length(file: BinaryIO) -> int:
    """Bytes up to and including the last newline."""
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSON Lines file; a missing file has none, a torn last line is skipped.

    Raises ConfigError for a line that is not a JSON object or is too large.
    """
    advice = "restore the run folder from a copy"
    for number, raw in enumerate(read_raw_lines(path), 1):
        yield parse_json(raw, where=f"{path}:{number}", advice=advice)


def read_raw_lines(path: Path, *, start: int = 0) -> Iterator[bytes]:
    """The whole lines of a file as they are from a byte on, see `read_lines`."""
    try:
        opened = open_below(path.parent, path.name)
    except FileNotFoundError:
        return
    with opened as file:
        file.seek(start)
        # a longer line is cut just past the limit
        lines = iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")
        for number, raw in enumerate(lines, 1):
            if len(raw) > MAX_LINE_BYTES:
                where = f"{path}:{number}"
                raise ConfigError(f"{where}: line longer than {MAX_LINE_BYTES} bytes; refused")
            if not raw.endswith(b"\n"):
                return
            refuse_heavy(raw, path, where=f"{path}:{number}")
            yield raw


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one.

    API keys that this process knows are struck out of it.
    """
    _replace(path, sieve.strike(text))


def _replace(path: Path, text: str) -> None:
    partial = path.name + ".partial"
    with entered(path.parent) as inside:
        with suppress(FileNotFoundError):  # left by a kill; or a link, not to be written through
            os.unlink(partial, dir_fd=inside)
        with _opened(inside, partial, "xb", where=path) as file:
            file.write(text.encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path.name, src_dir_fd=inside, dst_dir_fd=inside)
        os.fsync(inside)


def write_json(
    path: Path, value: object, *, lay_out: Callable[[object], str] | None = None
) -> None:
    """Replace a file by JSON with a fixed byte form: indented, unless laid out in another way.

    Raises ConfigError, and leaves what is there, for one that is too large to be read again.
    """
    spell = lay_out or _indented
    text = spell(value)
    text = spell(sieve.strike_all(value)) if sieve.holds(text) else text
    raw = text.encode("utf-8", "surrogatepass")
    most, *_ = _limits(path)
    if len(raw) > most:
        raise ConfigError(
            f"{path}: would be {len(raw)} bytes, and no more than {most} can be read again; "
            "nothing was written: ask for fewer or shorter replies"
        )
    refuse_heavy(raw, path, where=f"{path}: nothing was written")
    _replace(path, text)


def _indented(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON Lines file in one step; raises as `append_lines` does."""
    lines = b"".join(_line(value, path) for value in values)
    if len(lines) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{path}: would be larger than {MAX_FILE_BYTES} bytes, and could not be read again"
        )
    _replace(path, lines.decode("utf-8", "surrogatepass"))


def make_folder(folder: Path) -> tuple[Path, ...]:
    """Make a folder that is not there yet, and those above it; what was made, outermost first.

    Their names are forced to disk.
    """
    if folder.is_dir():
        return ()
    above = () if folder.parent.exists() else make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    force_names(folder.parent)
    return (*above, folder)


def force_names(folder: Path) -> None:
    """Force the names in a folder to disk: a power cut must not lose a file that was written."""
    with entered(folder) as inside:
        os.fsync(inside)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder. Raises ConfigError when it is missing or not one."""
    advice = "restore it from a copy, or run the step that writes it again"
    return parse_json(read_bytes(path), where=str(path), advice=advice)


def read_bytes(path: Path) -> bytes:
    """A file of JSON as it is. Raises ConfigError when it is missing or too large."""
    most, *_ = _limits(path)
    try:
        with open_below(path.parent, path.name, most=most) as file:
            raw = file.read(most + 1)
    except FileNotFoundError as error:
        message = f"{path}: no such file; run the step that writes it first"
        raise ConfigError(message) from error
    refuse_heavy(raw, path, where=str(path))
    return raw


def _limits(path: Path) -> tuple[int, int, int]:
    """Bytes, values and members of a file that is one JSON value, at most."""
    return MAX_LEDGER if path.name == LEDGER else (MAX_JSON_BYTES, MAX_VALUES, MAX_MEMBERS)


def parse_json(raw: bytes, *, where: str, advice: str) -> dict[str, Any]:
    """The object that a JSON text holds; `where` and `advice` are for the message of the error."""
    try:
        value = json.loads(raw.decode("utf-8", "surrogatepass"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected an object, got {type(value).__name__}; {advice}")
    return value


def refuse_heavy(raw: bytes, path: Path, *, where: str) -> None:
    """Raise ConfigError for a text of more values than any record has: each costs far more memory
    than its two bytes."""
    _, values, members = _limits(path)
    for signs, most in ((b",[{", values), (b":", members)):
        if _count(raw, signs) > most and _count(_TEXTS.sub(b"", raw), signs) > most:
            raise ConfigError(f"{where}: more than {most} values; refused")


def _count(raw: bytes, signs: bytes) -> int:
    return sum(raw.count(sign) for sign in signs)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


# -- one writer --------------------------------------------------------------------------------


@contextmanager
def working_in(*folders: Path, make: bool = False) -> Iterator[None]:
    """Hold run folders for this process alone, until it leaves or ends, however that comes.

    Those that are not there are made where `make` says so, and removed again when they hold nothing
    in the end; else whoever uses them says what is missing. Raises ConfigError where another
    process is at work, and OSError where nobody can write.
    """
    with ExitStack() as held:
        for folder in dict.fromkeys(folders):
            if folder.is_dir() or (make and not folder.exists()):
                held.enter_context(_working_in(folder))
        yield


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    made = make_folder(folder)
    with entered(folder) as inside:
        while True:
            lock = _opened(inside, LOCK, "a+b", where=folder / LOCK)
            try:
                _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                number = lock.read(20).decode("ascii", "replace")
                lock.close()
                who = f" (process {number})" if number.isdecimal() else ""
                raise ConfigError(
                    f"{folder}: another verifier{who} is at work in it; wait for it, or stop it"
                ) from None
            if _is_still(lock, inside):
                break
            lock.close()  # whoever had it has just removed it
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
            lock.flush()
            yield
        finally:
            with suppress(OSError):
                os.unlink(LOCK, dir_fd=inside)
            lock.close()
            with suppress(OSError):  # one holds something
                for empty in reversed(made):
                    empty.rmdir()


def _lock(file: BinaryIO, how: int) -> None:
    """Lock a file; not where its file system has no locks, as some over a network."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
            raise


def _is_still(file: BinaryIO, inside: int) -> bool:
    """Whether the lock that was opened still has its name."""
    try:
        named = os.stat(LOCK, dir_fd=inside, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(file.fileno()))


# -- opening -----------------------------------------------------------------------------------

_FLAGS: Final = {
    "rb": os.O_RDONLY,
    "a+b": os.O_RDWR | os.O_APPEND | os.O_CREAT,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}

#: Run folders that lie within one of these folders, by what such a folder holds.
_WITHIN: Final = {COMPLETIONS: (PLAN,), CONTROL: (PLAN, FLEET)}


def open_below(
    folder: Path,
    name: str,
    mode: Literal["rb", "a+b", "xb"] = "rb",
    *,
    most: int | None = None,
) -> BinaryIO:
    """Open a plain file of a run folder without following a link: the one way to its files.

    Raises ConfigError for a link, for what is no plain file, and for one of more than `most` bytes
    (None: MAX_FILE_BYTES); FileNotFoundError when there is none to read.
    """
    with entered(folder) as inside:
        return _opened(inside, name, mode, where=folder / name, most=most)


@contextmanager
def entered(folder: Path) -> Iterator[int]:
    """A descriptor of a run folder, for what is done below it.

    The folder that a user names may be a link, but none within it that this program makes.
    """
    inside = _descend(folder)
    try:
        yield inside
    finally:
        os.close(inside)


def refuse_link(folder: Path) -> None:
    """Raise ConfigError where a folder that belongs to another, such as a target's, is a link."""
    if folder.is_symlink():
        raise ConfigError(f"{folder}: is a link; a run folder holds plain files only")


def _descend(folder: Path) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if not any((folder.parent / name).exists() for name in _WITHIN.get(folder.name, ())):
        return os.open(folder, flags)
    with entered(folder.parent) as outside:
        try:
            return os.open(folder.name, flags | os.O_NOFOLLOW, dir_fd=outside)
        except OSError as error:
            refuse_link(folder)
            raise OSError(error.errno, error.strerror, str(folder)) from error


def _opened(inside: int, name: str, mode: str, *, where: Path, most: int | None = None) -> BinaryIO:
    # without O_NONBLOCK, opening a pipe would wait for somebody at its other end
    flags = _FLAGS[mode] | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        opened = os.open(name, flags, 0o666, dir_fd=inside)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ConfigError(f"{where}: is a link; a run folder holds plain files only") from error
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise _not_plain(where) from error
        raise OSError(error.errno, error.strerror, str(where)) from error
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise _not_plain(where)
        most = MAX_FILE_BYTES if most is None else most
        if found.st_size > most:
            raise ConfigError(f"{where}: larger than {most} bytes; refused")
    except BaseException:
        os.close(opened)
        raise
    return cast(BinaryIO, os.fdopen(opened, mode))


def _not_plain(where: Path) -> ConfigError:
    return ConfigError(f"{where}: is no plain file; a run folder holds plain files only")
