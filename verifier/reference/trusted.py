"""A trusted host: whose word a pack is that was not made from weights, and how it was found.

What it serves is not checked: if that is something else than the published weights, whatever is
held against it is too.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from verifier.records import Count

#: Where the paths of a pack come from: local weights, or a trusted host's log-probabilities, or its
#: texts alone.
Source = Literal["weights", "scores", "texts"]

#: Of model, by which pairs of stacks were measured.
ModelKind = Literal["dense", "experts"]

#: Sources in words.
SOURCES: Final = {
    "weights": "weights",
    "scores": "the log-probabilities of a trusted host",
    "texts": "the texts of a trusted host",
}

_Name = Annotated[str, Field(min_length=1, max_length=300)]
_Day = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]


class Trusted(BaseModel):
    """One or two trusted hosts, and how the first agrees with itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    host: _Name  # by name, and port where it has one of its own
    model: _Name  # as it is called there
    first_asked: _Day
    last_asked: _Day
    questions: Count  # that were asked twice, on connections of their own
    repeated: Count  # of these the replies that came again, as far as they were seen
    hazard: Annotated[float, Field(ge=0, le=1)]  # at which it left itself, a token
    kind: ModelKind
    same_model: bool = False  # whether it is the very model of that kind that was measured
    alternatives: Count = 0  # named at a place at most
    other_prompts: Count = 0  # that it counts otherwise than the card's template makes them
    second_host: _Name | None = None  # None: there is no second
    second_model: _Name | None = None


def counts_otherwise(trusted: Trusted) -> bool:
    """Whether a host counts most prompts otherwise than they are published."""
    return 2 * trusted.other_prompts > trusted.questions


def describe_prompts(trusted: Trusted) -> str:
    """That a host counts prompts otherwise than they are published, in words."""
    return (
        f"{trusted.host} counts {trusted.other_prompts} of {trusted.questions} prompts otherwise "
        "than the published template makes them: it may render chats otherwise, or put words of "
        "its own before them, and honest hosts would be held to that"
    )
