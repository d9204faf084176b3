"""The checks: one file or small folder each; here alone they are named together."""

from __future__ import annotations

from typing import Any, Final

from verifier.checks import (
    builds,
    cause,
    claimed_counts,
    greedy_tokens,
    hidden_reasoning,
    leaving,
    named_models,
    noise,
    offered_tools,
    packed,
    reported_logprobs,
    request_strata,
    speed,
    streaming,
    substitution,
    tokenizer,
)
from verifier.checks.capabilities import findings as capabilities
from verifier.checks.check import Aspect, Check
from verifier.checks.length import findings as length
from verifier.checks.sampling import findings as sampling
from verifier.checks.template import findings as template

#: Every check. What they ask is asked in this order within a stage, and their evidence is combined
#: in it: each takes its shares of what all before it left (`verdict.combine`), noise is the first.
CHECKS: Final[tuple[Check[Any, Any], ...]] = (
    capabilities.CHECK,
    hidden_reasoning.CHECK,
    noise.CHECK,
    leaving.CHECK,
    builds.CHECK,
    reported_logprobs.CHECK,
    substitution.CHECK,
    greedy_tokens.CHECK,
    template.CHECK,
    request_strata.CHECK,
    sampling.CHECK,
    length.CHECK,
    tokenizer.CHECK,
    cause.CHECK,
    claimed_counts.CHECK,
    named_models.CHECK,
    streaming.CHECK,
    offered_tools.CHECK,
    speed.CHECK,
    packed.CHECK,
)

#: What findings may be about, by name.
ASPECTS: Final[dict[str, Aspect]] = {
    aspect.name: aspect for check in reversed(CHECKS) for aspect in check.aspects
}

#: Where findings of a check stand in the report.
PLACES: Final[dict[tuple[str, str], int]] = {
    (check.name, aspect.name): aspect.place for check in CHECKS for aspect in check.aspects
}
