"""A laboratory instrument: a host whose weights, and so whose faults, are known.

It exists so that audits can be measured against hosts of which the truth is known. The record here
says all that such a host is; `answers` says what it answers, `app` how it speaks, and `server`
where it listens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from verifier.lab.testbed.behaviours import PLAIN, Tricks
from verifier.reference.cards import Thinking
from verifier.reference.engines import Engine
from verifier.reference.renderings.catalogue import PUBLISHED, Rendering
from verifier.reference.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Thoughts:
    """How a host of a model that thinks reports its thoughts.

    Apart from the answer, in the text with their tags, apart with the white space around thought
    and answer stripped, or not at all: then only their tokens are counted.
    """

    tags: Thinking
    shown: Literal["apart", "inline", "stripped", "hidden"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What is served, under which name, and what is done to it."""

    engine: Engine
    tokenizer: Tokenizer
    model: str  # the name that it is asked for by
    rendering: Rendering = PUBLISHED  # how chats are rendered: as published, or a template fault
    sampler: Mapping[str, float] = field(default_factory=dict)  # stands for what is asked for
    tricks: Tricks = PLAIN  # what else it does
    #: The name of the faulty weights, for tricks that serve two; None: those that are in place.
    weights: str | None = None
    #: How thoughts are reported; None: all that the model writes is the text.
    thoughts: Thoughts | None = None
    shows_prompts: bool = False  # whether who asks is shown what was rendered, as vLLM does
    completes_as_chat: bool = False  # whether a text to complete is silently made into a chat
    most_logprobs: int = 20  # alternatives of a text completion; OpenAI and Fireworks allow 5
    api_key: str | None = field(default=None, repr=False)  # None: it asks for none
    max_batch: int = 16  # replies generated together at most
    window_s: float = 0.02  # for which the first of a batch waits for others
