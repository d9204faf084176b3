"""A model beside the published one, served or suspected, and audits of either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from audits import QUIET, configure
from fakes_engine import FakeEngine, FakeTokenizer, wordy_script

from verifier.audit import audit
from verifier.config import RunFile
from verifier.progress import Show
from verifier.records import GenerateRequest, Generation, ReplyScore, Report, ScoreRequest
from verifier.reference.loaded import Reference
from verifier.reference.reader import Suspected


class OtherModel(FakeEngine):
    """An engine whose column `other` is a model of another script, loaded by its name."""

    def __init__(self, *, serves: str = "reference") -> None:
        super().__init__(margin=4.5)
        self._other = FakeEngine(margin=4.5, script=lambda ids: wordy_script((*ids, 7)))
        self.column = serves

    def can_load(self, name: str) -> bool:
        return name == "other" or super().can_load(name)

    def load_variant(self, name: str) -> None:
        self.column = name
        if name != "other":
            super().load_variant(name)

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        return (self._other if self.column == "other" else super()).score(requests)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        return (self._other if self.column == "other" else super()).generate(requests)


def audit_other(
    url: str, card: Path, out: Path, *, suspected: bool, show: Show = QUIET,
    read: Callable[[], Suspected] = lambda: Suspected(tokenizer=FakeTokenizer(), same=True),
) -> Report:  # fmt: skip
    """Audit with a reference that knows the other model, among its suspects or not."""
    config = configure(url, card, out)
    if suspected:
        suspects = [{"name": "other", "path": ".", "relation": "another size"}]
        raw = config.model_dump() | {"reference": {"card": str(card), "suspects": suspects}}
        config = RunFile.model_validate(raw)

    def load() -> Reference:
        suspects = {"other": read}
        return Reference(engine=OtherModel(), tokenizer=FakeTokenizer(), suspects=suspects)

    return audit(config, api_key=None, load_reference=load, show=show)
