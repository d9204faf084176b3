"""Audits of long prompts and long replies: a host that answers them, and the reference for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from audits import QUIET
from fakes_engine import WORDS, FakeEngine, FakeTokenizer, wordy_script

from verifier.audit import audit
from verifier.config import RunFile
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.faults import read_fault
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.records import Report
from verifier.reference.loaded import Reference
from verifier.reference.renderings.catalogue import catalogue
from verifier.reference.variants import VARIANTS

ENDLESS = tuple(258 + n % len(WORDS) for n in range(0, 7000, 7))


def script(prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Short replies, but for who asks for a long one; to a register, by what is left of it.

    As a model's, they hardly change where a few tokens more of it are cut.
    """
    asked = FakeTokenizer().decode_prompt(prompt_ids)
    if "Write down the numbers" in asked or "Tell a story" in asked:
        return ENDLESS
    parts = ("<turn>user", "Here is a list of rooms", "with their numbers", "<turn>assistant")
    left = tuple(part in asked for part in parts)
    if "Room " in asked:
        return wordy_script((*left, len(prompt_ids) // 40))
    return wordy_script(prompt_ids)


@contextmanager
def long_host(fault: str, *, margin: float = 3.5) -> Iterator[str]:
    """The URL of a host with a trick."""
    served = read_fault(fault, layers=2, catalogue=catalogue())
    engine = FakeEngine(margin=margin, noise=dict.fromkeys(VARIANTS, 1.5), script=script)
    engine.load_variant(served.weights)
    app = create_app(
        Host(
            engine=engine,
            tokenizer=FakeTokenizer(),
            model="tiny",
            window_s=0.001,
            tricks=served.tricks,
        )
    )
    with running(app) as url:
        yield url


def asked_of() -> Reference:
    """The reference of these audits."""
    engine = FakeEngine(margin=3.5, noise=dict.fromkeys(VARIANTS, 1.5), script=script)
    return Reference(engine=engine, tokenizer=FakeTokenizer())


def run_long(config: RunFile) -> Report:
    """Audit with that reference."""
    return audit(config, api_key=None, load_reference=asked_of, show=QUIET)
