"""Packs of the tiny model, made by the shipped code, and audits from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from audits import CARD, FAULT, QUIET, load_reference, make_engine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from fakes_engine import FakeEngine, FakeTokenizer
from simulate import make_calibration

from verifier.audit import audit
from verifier.config import RunFile
from verifier.host.budget import Ceiling
from verifier.host.endpoint import Endpoint
from verifier.lab.packs import Mode, make_pack, make_recipe, settings_of
from verifier.lab.testbed import host as testbed
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.server import running
from verifier.lab.trusted import Asking, Host, Wanted, record_pack
from verifier.probes import Pool, load_pool
from verifier.progress import Show
from verifier.records import GenerateRequest, Generation, Report
from verifier.reference.cards import read_card
from verifier.reference.pack_file import Pack, pack_bytes, write_pack
from verifier.reference.renderings.catalogue import catalogue

TOKENS: Final = 12


def write_tiny_pack(
    folder: Path, *, questions: int = 96, builds: tuple[str, ...] = (), key: Any = None,
    name: str = "tiny.pack", engine: Any = None, work: Path | None = None,
    pool: Pool | None = None, tokenizer: FakeTokenizer | None = None, tokens: int = TOKENS,
    mode: Mode | None = None, **card: Any,
) -> Path:  # fmt: skip
    """A pack of the tiny model, whose card says `card` too; goes on where `work` was left."""
    engine = engine or make_engine()
    made = make_pack(
        make_recipe(questions, seed=11, max_tokens=tokens, builds=builds, thinking=mode),
        read_card(CARD | card, where="tiny"), make_calibration(), pool or load_pool(), catalogue(),
        engine=lambda: engine, tokenizer=tokenizer or FakeTokenizer(), versions={"verifier": "0"},
        made_on="2026-11-30", work=work or folder / f"{name}.work", show=QUIET,
    )  # fmt: skip
    path = folder / name
    write_pack(path, pack_bytes(*made, key=key))
    return path


def trust(url: str, *, budget: int = 100_000, **changes: Any) -> Host:
    """A trusted host of the tiny model; `changes` are of its endpoint."""
    endpoint = Endpoint(base_url=url, model="tiny", max_attempts=1, **changes)
    return Host(endpoint=endpoint, ceiling=Ceiling(completion_tokens=budget, usd=None, prices=None))


def record_tiny_pack(
    folder: Path, url: str, *, questions: int = 48, wanted: Wanted | None = None,
    second: str | None = None, same_model: bool = False, name: str = "said.pack",
    tokens: int = TOKENS, tell: Callable[[str], None] = lambda _line: None,
    tokenizer: FakeTokenizer | None = None, mode: Mode | None = None,
    says: Mapping[str, Any] | None = None, **changes: Any,
) -> Path:  # fmt: skip
    """A pack of what hosts of the tiny model said, whose card `says` more; goes on where its work
    was left."""
    card = read_card(CARD | dict(says or {}), where="tiny")
    asking = Asking(
        questions=questions, seed=11, tokens=tokens, wanted=wanted, host=trust(url, **changes),
        second=None if second is None else trust(second), settings=settings_of(mode, card),
    )  # fmt: skip
    made = record_pack(
        asking, card, load_pool(), catalogue(),
        calibration=make_calibration(), same_model=same_model,
        tokenizer=tokenizer or FakeTokenizer(),
        versions={"verifier": "0"}, made_on="2026-11-30", work=folder / f"{name}.work",
        show=Show(tell=tell, step=QUIET.step),
    )  # fmt: skip
    path = folder / name
    write_pack(path, pack_bytes(*made, key=None))
    return path


def write_keys(folder: Path, name: str) -> tuple[Ed25519PrivateKey, Path, Path]:
    """A pair of keys as PEM files: the private one, its file, and the public one's."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return key, private, public


def configure_packed(
    url: str, pack: Path, out: Path, *, card: Path | None = None, **changes: Any
) -> RunFile:
    """A run file of an audit from a pack, beside the weights of a `card` if there is one; `changes`
    go into its audit section."""
    settings = {
        "max_tokens": TOKENS, "seed": 5, "budget_completion_tokens": 1200, "min_replies": 10,
    } | changes  # fmt: skip
    return RunFile.model_validate(
        {
            "endpoint": {"base_url": url, "model": "tiny", "max_attempts": 1},
            "reference": {"pack": str(pack), "card": None if card is None else str(card)},
            "audit": {"policy": {"noise": ["4-bit-class rounding", "another model"]}} | settings,
            "out": out,
        }
    )


def run_packed(config: RunFile) -> Report:
    """Audit from a pack: a reference that is asked for would be a mistake."""

    def none() -> Any:
        raise AssertionError("an audit from a pack loads no weights")

    return audit(config, api_key=None, load_reference=none, show=QUIET)


def run_spot_checked(config: RunFile) -> Report:
    """Audit by a pack's questions and fresh ones, all judged by the weights."""
    return audit(config, api_key=None, load_reference=load_reference, show=QUIET)


class KnowingEngine(FakeEngine):
    """Serves what was published to questions that it knows, and a build to all others."""

    def __init__(self, known: frozenset[tuple[int, ...]]) -> None:
        super().__init__()
        self._known = known
        self._engines = make_engine(), make_engine(FAULT)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        published, other = self._engines
        return [
            (published if one.prompt_ids in self._known else other).generate([one])[0]
            for one in requests
        ]


@contextmanager
def host_that_knows(pack: Pack) -> Iterator[str]:
    """The URL of a host that answers a pack's questions well, and no others."""
    known = frozenset(pack.prompt(number) for number in range(len(pack.probes)))
    app = create_app(
        testbed.Host(
            engine=KnowingEngine(known), tokenizer=FakeTokenizer(), model="tiny", window_s=0.001
        )
    )
    with running(app) as url:
        yield url
