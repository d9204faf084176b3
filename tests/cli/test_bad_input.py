"""What people mistype, and folders that cannot be used: one line, status 2, nothing overwritten."""

from __future__ import annotations

import errno
import http.server
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from audits import NOWHERE, write_run_file
from command_line import Finished, _plain_surroundings, call, honest, write_nowhere

import verifier
from verifier.files.run_folder import PLAN, read_json, write_json

__all__ = ["_plain_surroundings", "honest"]  # fixtures

KEY = "sk-invented-5f2b9c1d"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def changed(path: Path, **endpoint: Any) -> Path:
    """A run file with other keys in its endpoint; None takes one out."""
    content = yaml.safe_load(path.read_text())
    merged = content["endpoint"] | endpoint
    content["endpoint"] = {key: value for key, value in merged.items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("keys", "options", "said"),
    [
        ({"modle": "tiny", "model": None}, (), "endpoint.modle: unknown key; known are "),
        ({"api_key": KEY}, (), "did you mean api_key_env?"),
        ({"api_key_file": "key"}, ("--api-key-env", "SOME_KEY"), "its file, not both"),
        ({"api_key_file": "key", "api_key_env": "SOME_KEY"}, (), "its file, not both"),
        ({}, ("--host", "together"), "names another endpoint, with settings of its own"),
        ({}, ("--provider", "novita"), "only a router takes one; leave it out, or name the router"),
        ({}, ("--input-price", "1"), "--output-price is missing"),
        ({"base_url": "localhost:8000/v1"}, (), "expected http(s)://host/path"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40],
)
@pytest.mark.parametrize("command", ["audit", "plan", "capabilities"])
def test_what_contradicts_is_said_and_writes_nothing(
    tmp_path: Path, command: str, keys: dict[str, Any], options: tuple[str, ...], said: str
) -> None:
    """By every command that takes a run, and no key is repeated."""
    run_file = changed(write_run_file(tmp_path, NOWHERE), **keys)
    before = contents(tmp_path)
    ended = call(command, run_file, *options, SOME_KEY=KEY)

    assert (ended.status, ended.out) == (2, "")
    assert said in ended.complaint
    assert KEY not in ended.err
    assert contents(tmp_path) == before


def test_a_file_of_the_key_stands_for_the_variable_of_a_preset(tmp_path: Path) -> None:
    """Who names a file means it."""
    (tmp_path / "key").write_text(KEY)
    run_file = changed(
        write_run_file(tmp_path, NOWHERE), host="together", base_url=None, api_key_file="key"
    )
    ended = call("plan", run_file)

    assert ended.status == 0, ended.err


def test_dollars_without_prices_say_both_ways_to_give_them(tmp_path: Path) -> None:
    """In the run file, or as options."""
    run_file = write_run_file(tmp_path, NOWHERE, top={"prices": None})
    ended = call("plan", run_file, "--budget-usd", "1")

    assert ended.status == 2
    assert ended.complaint.endswith("in the run file, or give --input-price and --output-price")


def test_a_host_of_http_that_is_asked_by_https_is_guessed(tmp_path: Path) -> None:
    """The words of the library say nothing of it."""
    plain = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=plain.serve_forever, args=(0.01,), daemon=True).start()
    try:
        url = f"https://127.0.0.1:{plain.server_address[1]}/v1"
        ended = call("capabilities", write_run_file(tmp_path, url))
    finally:
        plain.shutdown()
        plain.server_close()

    assert ended.status == 2
    assert "; it may speak http, not https; check the base URL" in ended.complaint


@pytest.mark.parametrize("command", ["audit", "plan", "capabilities", "report", "decide", "score"])
def test_a_finished_folder_of_another_version_is_left_alone(
    honest: Finished, tmp_path: Path, command: str
) -> None:
    """It says which version reads it, or shows it."""
    run = honest.copied(tmp_path)
    write_json(run / PLAN, read_json(run / PLAN) | {"schema_version": 2})
    before = contents(run)
    config = yaml.safe_load(honest.run_file.read_text()) | {"out": str(run)}
    run_file = tmp_path / "file.yaml"
    run_file.write_text(yaml.safe_dump(config))
    takes_a_run = command in ("audit", "plan", "capabilities")
    ended = call(command, run_file if takes_a_run else run)

    assert (ended.status, ended.out) == (2, "")
    assert "schema_version: this version reads 1, got 2" in ended.complaint
    assert contents(run) == before


def test_a_disk_that_can_only_be_read_is_said_at_once(
    honest: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every command that writes, new folder or not; no weights are loaded for it."""
    run = honest.copied(tmp_path)
    run_file = write_run_file(tmp_path, NOWHERE)
    before = contents(tmp_path)

    def refuse(path: Any, *_given: object, **_named: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patched:
        write_nowhere(patched)
        patched.setattr(Path, "mkdir", refuse)
        patched.setattr(
            "verifier.reference.loaded.reference_loader", lambda *_given, **_named: pytest.fail
        )
        for arguments in (
            ("audit", run_file), ("plan", run_file), ("capabilities", run_file),
            ("collect", run), ("score", run), ("demo", "--out", tmp_path / "demo"),
        ):  # fmt: skip
            ended = call(*arguments)
            assert ended.status == 2, arguments
            assert ended.complaint.endswith(
                "Read-only file system; mend that and run the same command again"
            ), (arguments, ended)
    assert contents(tmp_path) == before


def test_a_log_that_cannot_be_written_is_said_before_anything_is_served(tmp_path: Path) -> None:
    """Not with the first request."""
    ended = call(
        "testbed", "route", "--base-url", NOWHERE, "--route", f"0.1:{NOWHERE}",
        "--log", tmp_path / "none" / "log",
    )  # fmt: skip

    assert ended.status == 2
    assert "No such file or directory" in ended.complaint


def test_the_version_has_a_short_name() -> None:
    """As elsewhere."""
    assert call("-V").out == f"verifier {verifier.__version__}\n"


def test_weights_without_their_extra_are_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bare package audits from packs; one line says what else to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    ended = call("audit", write_run_file(tmp_path, NOWHERE))

    assert ended.status == 2
    assert "torch not installed; install this package with the extra weights" in ended.complaint
    assert not (tmp_path / "run").exists()
