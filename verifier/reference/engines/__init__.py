"""What every engine can do: score replies, generate, and swap a weights variant in and out.

Engines see token ids only. They know nothing of messages, templates or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from verifier.evidence.samplers import Sampler
from verifier.records import (
    GenerateRequest,
    Generation,
    ReplyScore,
    SamplerRequest,
    ScoreRequest,
)

#: How many of the largest log-probabilities a score holds at each position.
TOP_K = 20

#: What an engine says that cannot score samplers.
NO_DISTRIBUTION = (
    "this engine sees the largest log-probabilities only, and samplers need whole distributions; "
    "use --engine transformers"
)
#: And one that cannot serve a sampler fault.
NO_FAULT = "this engine serves no sampler fault; use --engine transformers"


class Engine(Protocol):
    """Local weights, loaded once."""

    @property
    def versions(self) -> dict[str, str]:
        """Names and versions of what computes the numbers, for the signature."""
        ...

    def can_load(self, name: str) -> bool:
        """Whether `load_variant` knows these weights."""
        ...

    def load_variant(self, name: str) -> None:
        """Put the weights called `name` in place (`reference`, or one of `variants`).

        Raises ConfigError for an unknown name. Restored reference weights are bit-identical.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        """Score replies by teacher forcing under the weights in place, in the order given."""
        ...

    @property
    def scores_samplers(self) -> bool:
        """Whether the engine sees whole distributions, which `score_samplers` needs."""
        ...

    def score_samplers(
        self, requests: Sequence[SamplerRequest], samplers: Sequence[Sampler]
    ) -> list[tuple[float, ...]]:
        """log p of each reply under each sampler (`samplers.row_cells`), weights as in place.

        Raises ConfigError where `scores_samplers` is false: nothing is approximated.
        """
        ...

    def score_penalized(
        self, requests: Sequence[ScoreRequest], samplers: Sequence[Sampler]
    ) -> list[tuple[ReplyScore, ...]]:
        """`score`, after the penalties of each sampler; candidates are not scored.

        Raises ConfigError where `scores_samplers` is false.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; it is of no use afterwards."""
        ...

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Generate replies as one batch under the weights in place, in the order given."""
        ...
