"""Fixtures of all tests: models, a card, and nothing kept from one test to the next."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from signal import SIG_DFL, SIG_IGN, SIGHUP, SIGINT, default_int_handler, getsignal
from signal import signal as set_signal
from typing import Any

import httpx
import pytest
import typer
from httpx import create_ssl_context

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # A worker and all that it starts get its share of the cores. Read when torch is first imported.
    # Nothing is bound to a core: a worker that waits leaves its own to the others. vLLM, left to
    # itself, binds every model to the same one.
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, share)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from audits import write_card
from longest import LONGEST
from models import EMBEDDED, save_model, save_tokenizer
from recorded import Recorded

from verifier.cli.common import cache_directory
from verifier.lab.made.recipes import RECIPES, folder_of
from verifier.reference.cards import load_card
from verifier.reference.weights import check_weights, fetch_weights
from verifier.safety import sieve


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order of `pytest_collection_modifyitems`, where several workers share the files.

    And heed what tests stop others by: a job in the background ignores Ctrl-C, one under nohup the
    end of its terminal, and all that it starts does so too.
    """
    config.option.loadscopereorder = False
    for number, heeds in ((SIGINT, default_int_handler), (SIGHUP, SIG_DFL)):
        if getsignal(number) is SIG_IGN:
            set_signal(number, heeds)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By files, but for the tests that `LONGEST` names."""
    from xdist.scheduler import LoadFileScheduling

    class ByFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if _named(nodeid) in LONGEST else super()._split_scope(nodeid)

    return ByFiles(config, log) if config.option.dist == "loadfile" else None


def _named(nodeid: str) -> str:
    return nodeid.removeprefix("tests/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first; a file's tests stay together and in their order."""

    def weight(item: pytest.Item) -> int:
        name = _named(item.nodeid)
        return LONGEST.get(name) or LONGEST.get(name.partition("::")[0], 0)

    items.sort(key=weight, reverse=True)


def pytest_collection_finish() -> None:
    """What is imported and collected stays until the end: no collection of garbage looks at it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or nanobind counts all of it as leaked


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the command line notes of its run files, and writes of cards, goes nowhere near the
    user's own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patched.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_twice() -> Iterator[None]:
    """What takes a while and comes out the same each time is done once; a command that is started
    as a process of its own does all of it.

    Nothing waits for the disk, which loses power in no test.
    """
    certificates = cache(lambda *_variables: create_ssl_context())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", _is_open)
        patched.setattr(typer.main, "get_command", cache(typer.main.get_command))
        patched.setattr(
            httpx,
            "create_ssl_context",
            lambda: certificates(*map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR"))),
        )
        yield


def _is_open(file: int) -> None:
    os.fstat(file)  # raises for what cannot be synced either


@pytest.fixture(autouse=True)
def _no_keys_known() -> Iterator[None]:
    """The key of one test is no secret in the next."""
    yield
    sieve.forget()


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A calibrated card of the tiny model."""
    return write_card(tmp_path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a random model with a tokenizer of its own, in float32."""
    directory = tmp_path_factory.mktemp("tiny")
    save_model(directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The directory of the embedded model, fetched once into the cache of the command line."""
    card = load_card(EMBEDDED)
    directory = fetch_weights(card, cache=cache_directory(), tell=lambda _line: None)
    check_weights(card, directory)
    return directory


@pytest.fixture(scope="session")
def recorded() -> Iterator[Recorded]:
    """What hosts that run the embedded model in bfloat16 answered once."""
    replies = Recorded(Path(__file__).parent / "support" / "recorded.npz")
    yield replies
    replies.save()


@pytest.fixture(scope="session")
def made() -> Callable[[str], Path]:
    """The folder of a made model by its recipe's name. Where `verifier testbed make` has not made
    it, the test is skipped: training takes longer than all tests."""

    def find(name: str) -> Path:
        folder = folder_of(RECIPES[name], cache=cache_directory())
        if not folder.is_dir():
            pytest.skip(f"not made: verifier testbed make {name}")
        return folder

    return find
