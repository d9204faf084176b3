"""Fixtures of all tests: models, a card, and nothing kept from one test to the next."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # read when torch is first imported
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

from audits import write_card
from models import EMBEDDED, save_model, save_tokenizer

from verifier.cli.common import cache_directory
from verifier.reference.cards import load_card
from verifier.reference.weights import check_weights, fetch_weights
from verifier.safety import sieve


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the command line notes of its run files goes nowhere near the user's own notes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


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
