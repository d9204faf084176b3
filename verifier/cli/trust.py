"""Whether a run folder was made here, and what one from elsewhere may ask for.

A run file is a program: it says what is loaded, what is fetched, and which key goes where. One that
came from somebody else is done only as far as what it says cannot harm. Sends and loads nothing.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import BaseModel

from verifier.config import ReferenceSection, RunFile
from verifier.errors import ConfigError
from verifier.files.run_folder import EXCHANGES, FLEET, PLAN, PROBES, RUN
from verifier.files.strict_yaml import MAX_BYTES, read_bounded
from verifier.reference.cards import list_shipped

#: The file of digests, one a line, in the directory where programs keep their state.
MADE_HERE: Final = "made-here"
_MOST_BYTES: Final = 2**20  # 16,000 run files; then the older half is forgotten


# -- made here ---------------------------------------------------------------------------------


def remember(run_files: Iterable[Path], *, state: Path) -> None:
    """Note that these run files were written here. What cannot be noted is left: an audit goes on.

    `state` is a directory outside of all run folders.
    """
    with suppress(OSError, ConfigError):
        lines = "".join(f"{_digest(path)}\n" for path in run_files)
        if not lines:
            return
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = state / MADE_HERE
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(path, flags | os.O_NONBLOCK, 0o600)
        try:
            os.write(handle, lines.encode())
            size = os.fstat(handle).st_size
        finally:
            os.close(handle)
        if size > _MOST_BYTES:
            _forget_older_half(path)


def _forget_older_half(path: Path) -> None:
    kept = path.read_bytes()[-_MOST_BYTES // 2 :].partition(b"\n")[2]
    shorter = path.with_name(f"{path.name}.{os.getpid()}")
    shorter.write_bytes(kept)
    shorter.chmod(0o600)
    shorter.replace(path)


def is_made_here(run_file: Path, *, state: Path) -> bool:
    """Whether a run file has the very bytes of one that was written here.

    Raises ConfigError when the run file cannot be read, or is a link.
    """
    digest = _digest(run_file)
    try:
        known = state / MADE_HERE
        found = known.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return False  # somebody else's word
        return digest in read_bounded(known, limit=2 * _MOST_BYTES).decode("ascii").split("\n")
    except (OSError, ValueError, ConfigError):
        return False


def _digest(run_file: Path) -> str:
    raw = read_bounded(run_file, limit=MAX_BYTES, below=run_file.parent)
    return hashlib.sha256(raw).hexdigest()


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a run or several, and not just run files beside other things.

    Other programs write a plan.json too; none writes it beside a run.yaml.
    """
    if any(os.path.lexists(folder / name) for name in (PROBES, EXCHANGES)):
        return True
    if all(os.path.lexists(folder / name) for name in (RUN, PLAN)):
        return True
    if not os.path.lexists(folder / FLEET):
        return False
    try:
        return any(os.path.lexists(inner / PLAN) for inner in folder.iterdir())
    except OSError:
        return True


def need_trust_of(run_file: Path, *, trust: bool, state: Path) -> None:
    """Refuse a run file in a run folder that was not made here, also by a link from elsewhere.

    Raises ConfigError.
    """
    if not run_file.is_file():
        return  # whoever reads it says so
    found = run_file if is_run_folder(run_file.parent) else run_file.resolve()
    if trust or not is_run_folder(found.parent) or is_made_here(found, state=state):
        return
    raise ConfigError(
        f"{run_file}: lies in a run folder that was not made here, and a run file says what is "
        "loaded and which key goes where; read it, and add --trust if you would have written it"
    )


# -- what a run file from elsewhere may ask for ------------------------------------------------


def refuse_foreign(reference: ReferenceSection, *, where: str) -> None:
    """Refuse a reference that is more than a card that ships, an engine and a precision.

    By what is allowed: a key that is not named here may be at its default alone. Raises
    ConfigError that names the key.
    """
    for name, field in type(reference).model_fields.items():
        value = getattr(reference, name)
        match name:
            case "card":
                harmless = value in list_shipped()
            case "engine" | "dtype":
                harmless = True  # one of a few words
            case "hardware":
                harmless = value is None or _is_of_numbers(value)
            case _:
                harmless = value == field.get_default(call_default_factory=True)
        if not harmless:
            raise ConfigError(
                f"{where}: reference.{name}: this loads what its run file names, and the run "
                f"folder was not made here; read its {RUN}, and add --trust if it is yours"
            )


def _is_of_numbers(section: BaseModel) -> bool:
    return all(isinstance(value, int | float) for _, value in section)


# -- keys in clear -----------------------------------------------------------------------------


def sent_in_clear(config: RunFile) -> list[str]:
    """One line for each key that would travel without encryption to a host that is not this one."""
    endpoint, reference = config.endpoint, config.reference
    lines = []
    for where, url, has_key in (
        ("endpoint.base_url", endpoint.base_url, endpoint.api_key_env or endpoint.api_key_file),
        ("reference.url", reference.url or "", reference.url_key_env),
    ):
        parts = urlsplit(url)
        if has_key and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            lines.append(
                f"{where}: http sends the key to {parts.netloc} for all on the way to read; use "
                "https"
            )
    return lines


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
