"""The environment of processes that are started here: what they need, and no key.

An allow-list, so that a key under any name stays behind.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Final

#: What finds programs, files, certificates, proxies, the package index, caches and devices.
_NEEDED: Final = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|TZ|TERM|TMPDIR|TEMP|TMP|SYSTEMROOT|COLUMNS"
    r"|(DY)?LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_PREFIX"
    r"|PYTHON(PATH|HOME|USERBASE|NOUSERSITE|UTF8|IOENCODING|HASHSEED|DONTWRITEBYTECODE|WARNINGS)"
    r"|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE"
    r"|(HTTP|HTTPS|ALL|NO)_PROXY|(http|https|all|no)_proxy"
    r"|PIP_(INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|CERT|CACHE_DIR|CONFIG_FILE|TRUSTED_HOST"
    r"|TIMEOUT|DEFAULT_TIMEOUT|RETRIES|PROXY)"
    r"|XDG_(CACHE_HOME|CONFIG_HOME|CONFIG_DIRS|STATE_HOME|DATA_HOME)"
    r"|VERIFIER_CACHE|VERIFIER_TRACEBACK|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE|TRANSFORMERS_OFFLINE"
    r"|TORCH_HOME|TORCHINDUCTOR_CACHE_DIR|TRITON_CACHE_DIR|TOKENIZERS_PARALLELISM"
    r"|(LC|CUDA|NVIDIA|NCCL|OMP|KMP|MKL|OPENBLAS)_[A-Z0-9_]+"
)
_SECRET: Final = re.compile(r"_(KEY|TOKEN|SECRET|PASS\w*|CREDENTIALS?|AUTH)$")

#: What Python needs to start, and the day's time zone.
_BARE: Final = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "TZDIR")


def plain_environment() -> dict[str, str]:
    """The variables that a process of ours needs. The package index and proxies keep their own
    credentials: they stand in their addresses."""
    return {name: value for name, value in os.environ.items() if _is_needed(name)}


def bare_environment() -> dict[str, str]:
    """The least that Python starts with, for a process that runs foreign code."""
    return {name: os.environ[name] for name in _BARE if name in os.environ}


def _is_needed(name: str) -> bool:
    return bool(_NEEDED.fullmatch(name)) and not _SECRET.search(name)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of Python, and never one that lies in the working directory.

    A stranger's folder may hold a `pip.py`, or a `json.py`, and be where a command is typed.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
