"""What of a reply a pack's paths are of: all of it, or the thought that a model that thinks shows.

Paths of thoughts begin inside the thought, and end with the tag that closes it: a host that takes a
reply apart strips white space there alone, which a walk allows for. Where the model writes the
opening tag itself all is conditional on its having done so, and a reply that shows no thought says
nothing. Whether a thought is shown word for word only the host's count tells, and a pack has no
tokenizer: it is held against about how many tokens what is shown has, see `_count`.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Final

from verifier.host.exchange import CALLED, HIDDEN, UNTESTABLE
from verifier.records import Reply
from verifier.reference.pack_file import Pack
from verifier.scoring.reasoning import Shown, take_apart, why_not_whole

#: Of a text the longest known tokens are counted, which may be so many times as many or as few as
#: it has. On the embedded model, where a pack of 100 questions counts the replies to 100 others,
#: 0.92 to 1.48; replies of a 4-bit host that repeat themselves had 0.7.
_TIMES: Final = 1.5

#: Why a reply is not judged.
_UNKNOWN: Final = "a thought was shown, and this model is not known to think"
_UNSHOWN: Final = (
    f"{HIDDEN}: the pack's paths are thoughts, and none is shown; take a pack that was made with "
    "thinking off, or the weights"
)
_UNHEEDED: Final = (
    f"{UNTESTABLE}: thoughts are shown although the prompt turns them off: the switch is not heeded"
)
_CALLS: Final = f"{UNTESTABLE}: a tool is called too, and what the endpoint counts is of both"


def read_as_path(pack: Pack, reply: Reply) -> Reply | str:
    """What of a reply a path is of, as a reply of its own; or why that is not known."""
    thinking, tags = pack.manifest.thinking, pack.card.thinking
    if thinking is None or tags is None:
        return reply if reply.thought is None else _UNKNOWN
    if reply.finish_reason == CALLED:
        return _CALLS
    shown = take_apart(reply, tags, begins=thinking.begins)
    if thinking.mode == "shown" and shown is None:
        return _UNSHOWN
    if thinking.mode == "off" and shown is not None:
        return _UNHEEDED
    doubt = why_not_whole(reply, shown, _count(pack, reply, shown))
    if doubt is not None:
        return f"{HIDDEN} perhaps: {doubt}"
    if shown is None:
        return reply
    thought = min((shown.thought.partition(tag)[0] for tag in (tags.open, tags.close)), key=len)
    ended = (shown.answer is not None or reply.finish_reason == "stop") and thought == shown.thought
    return replace(
        reply, text=thought, thought=None, finish_reason="stop" if ended else "length",
        logprobs=None, logprobs_problem="the thought was put together again from its text",
    )  # fmt: skip


def _count(pack: Pack, reply: Reply, shown: Shown | None) -> list[int]:
    """The fewest and the most tokens that what is shown may have."""
    texts = [reply.text] if shown is None else [shown.thought, shown.answer or ""]
    about = sum(map(pack.count_tokens, texts)) + 2 * (shown is not None)
    return [int(about / _TIMES), ceil(about * _TIMES)]
