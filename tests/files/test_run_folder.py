"""The run folder: what a kill leaves behind, and files that a stranger has prepared."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verifier.errors import ConfigError
from verifier.files import run_folder as folder
from verifier.files.run_folder import (
    append_line,
    make_folder,
    read_json,
    read_lines,
    working_in,
    write_json,
    write_lines,
    write_whole,
)

#: A machine under load is no failure, and `tmp_path` may serve every example.
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

#: A host may send anything, half of a surrogate pair too.
TEXT = st.text(st.sampled_from('a"\\ \n\r\x00\x1b\x85\u2028é日😀\ud800\udc00'), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=50, suppress_health_check=SLOW)
@given(values=st.lists(st.dictionaries(TEXT, JSON, max_size=3), min_size=1, max_size=4))
def test_lines_come_back_as_they_were_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[dict[str, Any]]
) -> None:
    """Any JSON object fits one line, whatever signs its texts hold."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)  # slow, and not the matter here
    path = tmp_path / "lines.jsonl"
    path.unlink(missing_ok=True)
    for value in values:
        append_line(path, value)

    assert list(read_lines(path)) == values
    assert path.read_bytes().count(b"\n") == len(values)


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    """Nothing was asked yet: that is no error."""
    assert list(read_lines(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("torn", [b'{"n": 3', b'{"n": 3}', b"\xf0\x9f", b"x" * 100_000])
def test_a_torn_last_line_is_passed_over(tmp_path: Path, torn: bytes) -> None:
    """A kill in the middle of a write costs that line only, even one that could be read."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n' + torn)

    assert list(read_lines(path)) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("whole", [b"", b'{"n": 1}\n', b'{"n":   1}\n{"text": "\xc3\xa9"}\n'])
def test_appending_cuts_a_torn_line_off_and_leaves_the_rest_as_it_was(
    tmp_path: Path, whole: bytes
) -> None:
    """Earlier lines keep every byte; the new line stands where the torn one began."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(whole + b'{"n": 9, "tex')

    append_line(path, {"n": 3})

    assert path.read_bytes() == whole + b'{"n":3}\n'


def test_a_number_that_json_lacks_is_written_nowhere(tmp_path: Path) -> None:
    """NaN fails before the file is touched."""
    path = tmp_path / "lines.jsonl"
    append_line(path, {"n": 1})
    before = path.read_bytes()

    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(path, {"n": float("nan")})

    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"not json", "not JSON"),
        (b"", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b'{"n": NaN}', "NaN is no number of JSON"),
        (b'{"n": -Infinity}', "-Infinity is no number of JSON"),
        (b"[1]", "expected an object, got list"),
        (b"null", "expected an object, got NoneType"),
    ],
    ids=["words", "empty", "not UTF-8", "deep", "digits", "NaN", "infinite", "list", "null"],
)
def test_a_line_that_is_no_object_is_refused_with_its_number(
    tmp_path: Path, line: bytes, complaint: str
) -> None:
    """A whole line was written whole: if it cannot be read, the folder is not what it was."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n' + line + b'\n{"n": 3}\n')

    with pytest.raises(ConfigError, match=complaint) as refused:
        list(read_lines(path))

    assert str(refused.value).startswith(f"{path}:2: ")
    assert str(refused.value).endswith("restore the run folder from a copy")


def test_a_line_that_is_too_long_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is exact, and stands however long the line goes on."""
    monkeypatch.setattr(folder, "MAX_LINE_BYTES", 10)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 12}\n')
    fits = list(read_lines(path))
    path.write_bytes(b'{"n": 12}\n{"n": 123}\n')

    with pytest.raises(ConfigError, match=r"lines\.jsonl:2: line longer than 10 bytes"):
        list(read_lines(path))

    assert fits == [{"n": 12}]


def test_a_file_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines and objects alike."""
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", 8)
    monkeypatch.setattr(folder, "MAX_JSON_BYTES", 8)
    path = tmp_path / "file"
    path.write_bytes(b'{"n": 1}\n')

    for read in (read_json, lambda at: list(read_lines(at))):
        with pytest.raises(ConfigError, match="larger than 8 bytes"):
            read(path)


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_links_are_neither_read_nor_written_through(tmp_path: Path, there: bool) -> None:
    """A folder from a stranger cannot reach a file outside it."""
    outside = tmp_path / "outside"
    if there:
        outside.write_bytes(b'{"secret": 1}\n')
    link = tmp_path / "run" / "lines.jsonl"
    link.parent.mkdir()
    link.symlink_to(outside)
    before = outside.read_bytes() if there else None

    for touch in (read_json, lambda at: list(read_lines(at)), lambda at: append_line(at, {})):
        with pytest.raises(ConfigError, match="is a link"):
            touch(link)

    assert (outside.read_bytes() if outside.exists() else None) == before


@pytest.mark.parametrize("name", [folder.COMPLETIONS, folder.CONTROL])
def test_a_folder_within_a_run_folder_is_no_link(tmp_path: Path, name: str) -> None:
    """Nothing is read, written or made through one."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.mkdir()
    run.mkdir()
    (mine / "ledger.json").write_text('{"mine": 1}\n')
    (run / folder.PLAN).write_text("{}\n")
    (run / name).symlink_to(mine)
    at = run / name / "ledger.json"

    for touch in (
        read_json, lambda at: list(read_lines(at)), lambda at: append_line(at, {}),
        lambda at: write_json(at, {}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{name}: is a link"):
            touch(at)

    assert [(p.name, p.read_text()) for p in mine.iterdir()] == [("ledger.json", '{"mine": 1}\n')]


def test_the_folder_that_a_user_names_may_be_a_link(tmp_path: Path) -> None:
    """It is their own choice where it leads."""
    (tmp_path / "large" / folder.COMPLETIONS).mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "large")
    for run in (tmp_path / "run", tmp_path / "run" / folder.COMPLETIONS):
        write_json(run / folder.PLAN, {"n": 1})

        assert read_json(run / folder.PLAN) == {"n": 1}


def test_a_prepared_partial_file_is_not_written_through(tmp_path: Path) -> None:
    """The name of the half-written file is known, so a link may wait there."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "report.json.partial").symlink_to(outside)

    write_json(tmp_path / "report.json", {"n": 1})

    assert outside.read_text() == "mine"
    assert read_json(tmp_path / "report.json") == {"n": 1}


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    """Opening one would hang for ever."""
    os.mkfifo(tmp_path / "lines.jsonl")

    for read in (read_json, lambda at: list(read_lines(at)), lambda at: append_line(at, {})):
        with pytest.raises(ConfigError, match="is no plain file"):
            read(tmp_path / "lines.jsonl")


def test_a_folder_where_a_file_should_be_is_refused(tmp_path: Path) -> None:
    """In one line, as everything is."""
    (tmp_path / "plan.json").mkdir()

    with pytest.raises(ConfigError, match=r"plan\.json: is no plain file"):
        read_json(tmp_path / "plan.json")


class Killed(BaseException):
    """Stands for a signal: nothing in the program may catch it."""


def test_a_kill_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it left half-written does not stand in the way of the next write."""
    path = tmp_path / "report.json"
    write_whole(path, "old")

    def kill(*_args: object, **_named: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", kill)
        with pytest.raises(Killed):
            write_whole(path, "new")
    after_kill = path.read_text()
    write_whole(path, "newer")

    assert after_kill == "old"
    assert path.read_text() == "newer"
    assert [found.name for found in tmp_path.iterdir()] == ["report.json"]


def test_a_file_is_complete_on_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the machine finds the old file or the whole new one, and finds it by its name.

    The folder is forced to disk once for each new name, and not for each line.
    """
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def note(fd: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        sync(fd)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(
        os, "replace", lambda *at, **to: (steps.append("rename"), replace(*at, **to))[1]
    )

    write_whole(tmp_path / "file", "text")
    append_line(tmp_path / "lines", {})
    append_line(tmp_path / "lines", {})
    make_folder(tmp_path / "outer" / "inner")

    assert steps == ["file", "rename", "folder", "file", "folder", "file", "folder", "folder"]


def test_json_files_have_one_byte_form(tmp_path: Path) -> None:
    """The same value gives the same bytes: indented, UTF-8, keys in the order given."""
    write_json(tmp_path / "file", {"b": [1, 0.5], "a": "é\ud800"})

    raw = (tmp_path / "file").read_bytes()
    assert raw == '{\n  "b": [\n    1,\n    0.5\n  ],\n  "a": "é'.encode() + b'\xed\xa0\x80"\n}\n'
    assert read_json(tmp_path / "file") == {"b": [1, 0.5], "a": "é\ud800"}


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": Infinity}', "Infinity is no number of JSON"),
        (b"[]", "expected an object, got list"),
        (b'"plan"', "expected an object, got str"),
    ],
    ids=["empty", "torn", "not UTF-8", "deep", "infinite", "list", "text"],
)
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, raw: bytes, complaint: str) -> None:
    """The message says where, what, and what to do."""
    path = tmp_path / "plan.json"
    path.write_bytes(raw)

    with pytest.raises(ConfigError, match=complaint) as refused:
        read_json(path)

    assert str(refused.value).startswith(f"{path}: ")
    assert "restore it from a copy" in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Together with what to do."""
    with pytest.raises(ConfigError, match=r"plan\.json: no such file; run the step"):
        read_json(tmp_path / "plan.json")


def test_lines_are_plain_json_for_other_programs(tmp_path: Path) -> None:
    """Each line parses alone, and texts are not escaped beyond need."""
    append_line(tmp_path / "lines", {"text": "日本 \n"})

    raw = (tmp_path / "lines").read_bytes()
    assert raw == '{"text":"日本 \\n"}\n'.encode()
    assert json.loads(raw) == {"text": "日本 \n"}


# -- what is written obeys the limits of what is read ---------------------------------------------


def test_a_line_that_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any writer; the limit is exact, and counts what a text becomes when it is escaped."""
    monkeypatch.setattr(folder, "MAX_LINE_BYTES", 21)
    path = tmp_path / "lines.jsonl"
    append_line(path, {"n": "\0\0"})
    before = path.read_bytes()

    for write in (append_line, lambda at, value: write_lines(at, [value])):
        with pytest.raises(ConfigError, match=r"lines\.jsonl: a line of 27 bytes is longer than"):
            write(path, {"n": "\0\0\0"})

    assert path.read_bytes() == before
    assert list(read_lines(path)) == [{"n": "\0\0"}]


def test_a_file_does_not_grow_beyond_what_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before it grows, with what to do."""
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", 20)
    path = tmp_path / "lines.jsonl"
    append_line(path, {"n": 1})
    append_line(path, {"n": 2})

    with pytest.raises(ConfigError, match=r"would be larger than 20 bytes.*another --out"):
        append_line(path, {"n": 3})

    assert list(read_lines(path)) == [{"n": 1}, {"n": 2}]


def test_a_json_file_that_could_not_be_read_again_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report, a ledger, a plan."""
    monkeypatch.setattr(folder, "MAX_JSON_BYTES", 20)
    path = tmp_path / "report.json"
    write_json(path, {"n": 1})

    with pytest.raises(ConfigError, match=r"would be 3[0-9] bytes, and no more than 20"):
        write_json(path, {"n": "x" * 20})

    assert read_json(path) == {"n": 1}


# -- one writer -----------------------------------------------------------------------------------

APPENDS = """
import sys
from pathlib import Path
from verifier.files.run_folder import append_line
for n in range(int(sys.argv[3])):
    append_line(Path(sys.argv[1]), {"by": sys.argv[2], "n": n, "text": "x" * 20_000})
"""


def test_two_processes_that_append_lose_nothing(tmp_path: Path) -> None:
    """Neither takes the other's half-written line for one that a kill tore."""
    path = tmp_path / "lines.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", APPENDS, str(path), by, "150"]) for by in "ab"
    ]
    assert [writer.wait() for writer in writers] == [0, 0]

    found = [(line["by"], line["n"]) for line in read_lines(path)]
    assert sorted(found) == [(by, n) for by in "ab" for n in range(150)]


HOLDS = """
import sys, time
from pathlib import Path
from verifier.files.run_folder import working_in
with working_in(Path(sys.argv[1]), make=True):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    """A second process is told who is at work; a kill, of any kind, lets the next one in."""
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(ConfigError) as refused, working_in(run):
            raise AssertionError("two at work")
        holder.send_signal(signal.SIGKILL)

    assert str(refused.value) == (
        f"{run}: another verifier (process {holder.pid}) is at work in it; wait for it, or stop it"
    )
    with working_in(run):
        pass
    assert list(run.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    """What is refused leaves no folder behind; what was written stays."""
    with working_in(tmp_path / "a" / "b", make=True):
        assert (tmp_path / "a" / "b").is_dir()
    left = list(tmp_path.iterdir())
    with working_in(tmp_path / "a" / "b", make=True):
        write_json(tmp_path / "a" / "b" / "report.json", {})

    assert left == []
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["report.json"]


def test_a_folder_that_is_not_there_is_not_made_to_be_read(tmp_path: Path) -> None:
    """Whoever reads it says what is missing."""
    with working_in(tmp_path / "none"):
        pass

    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    """A stranger's folder may hold one under that name."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(outside)

    with pytest.raises(ConfigError, match="is a link"), working_in(run):
        pass

    assert outside.read_text() == "mine"


def test_a_ledger_may_hold_more_than_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long audit has been paid for: what it wrote can be read again, and what cannot is not."""
    monkeypatch.setattr(folder, "MAX_VALUES", 20)
    monkeypatch.setattr(folder, "MAX_LEDGER", (4_000, 200, 10))
    write_json(tmp_path / folder.LEDGER, {"rows": [0.5] * 100})

    assert read_json(tmp_path / folder.LEDGER) == {"rows": [0.5] * 100}
    for name, values in (("report.json", 100), (folder.LEDGER, 300)):
        with pytest.raises(ConfigError, match="nothing was written: more than"):
            write_json(tmp_path / name, {"rows": [0.5] * values})
    assert not (tmp_path / "report.json").exists()
