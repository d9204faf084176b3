"""A pack whose places are written by hand, and every text that its weights may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Final

import numpy as np

from verifier.evidence.ledger import event_cells
from verifier.records import Probe, Reply
from verifier.reference.pack_file import TOP, Place

EOS: Final = 999

_NEVER: Final = 1e-15

#: Tokens that fill a place up to TOP; none is spelt by any text here.
FILLERS: Final = [f"<{n}>" for n in range(TOP)]


class _Facts:
    eos_id = EOS
    builds: tuple[str, ...] = ()
    thinking = None

    def __init__(self, renderings: Sequence[str]) -> None:
        self.renderings = tuple(renderings)


class ToyPack:
    """What `walk` asks of a pack, made of places written by hand.

    A path is a list of places, each of which has its tokens with their probabilities, the one that
    the path goes on with first; what is left is that of all other tokens.
    """

    def __init__(
        self,
        paths: Sequence[Sequence[Mapping[str, float]]],
        branches: Mapping[tuple[int, int, str], int] | None = None,
        renderings: Mapping[str, int] | None = None,
        few: bool = False,
    ) -> None:
        """`renderings` have paths of their own, by number; the published one has the first. Of
        `few` no other tokens are told than those that are written, as by a trusted host."""
        self._few = few
        told = {"reference": 0, **(renderings or {})}
        self._paths = paths
        self.manifest = _Facts(list(told))
        self.ends = frozenset({EOS})
        self.paths = {(0, n): path for n, path in enumerate(told.values())}
        self.tensors = {"counts": np.ones((1, len(told)), dtype=np.uint32)}
        self.ordinary: tuple[Probe, ...] = ()
        named = {token for path in paths for place in path for token in place}
        self.names = [*sorted(named | set(FILLERS)), "eos"]
        self.branches = {
            (path, at, self.names.index(token)): to
            for (path, at, token), to in (branches or {}).items()
        }

    def length(self, path: int) -> int:
        return len(self._paths[path])

    def place(self, path: int, at: int) -> Any:
        told = dict(self._paths[path][at])
        if self._few:
            return Place(
                tokens=tuple(self.names.index(token) for token in told),
                logprobs=tuple(np.log(list(told.values())).tolist()),
                rest=float(np.log(max(1 - sum(told.values()), 1e-9))),
                number=1000 * path + at,
                few=True,
            )
        fillers = [name for name in FILLERS if name not in told][: TOP - len(told)]
        left = 1 - sum(told.values())
        every = {**told, **dict.fromkeys(fillers, _NEVER)}
        return Place(
            tokens=tuple(self.names.index(token) for token in every),
            logprobs=tuple(np.log(list(every.values())).tolist()),
            rest=float(np.log(left)),
            number=1000 * path + at,
        )

    def spell(self, token: int) -> bytes:
        name = self.names[token]
        return b"" if name == "eos" else name.encode("latin-1")

    def token_id(self, token: int) -> int:
        return EOS if self.names[token] == "eos" else token


def say(text: str, finish: str = "length") -> Reply:
    """A reply of this text."""
    return Reply(
        probe_id="p", text=text, finish_reason=finish, prompt_tokens=None, completion_tokens=None,
        logprobs=None, logprobs_problem=None,
    )  # fmt: skip


def every_text(
    pack: Any, spelled: Sequence[str], depth: int, scale: int, *, path: int = 0
) -> list[tuple[str, float]]:
    """Every text that a host says whose tokens follow the pack's places, with its probability at a
    scale; the mass of unnamed tokens is that of one that no place names."""
    found = []
    for tokens in product([*spelled, "?"], repeat=depth):
        log_p, node = 0.0, (path, 0)
        for token in tokens:
            if node is None or node[1] >= pack.length(node[0]):
                log_p -= np.log(len(spelled) + 1)  # whatever comes after, evenly
                continue
            place = pack.place(*node)
            known = [pack.names[t] for t in place.tokens]
            members = (known.index(token),) if token in known else ()
            if token != "?" and not members:
                log_p = -np.inf
                break
            log_p += event_cells(place.logprobs, place.rest, members)[scale]
            if members == (0,):
                node = (node[0], node[1] + 1)
            elif members:
                to = pack.branches.get((*node, place.tokens[members[0]]))
                node = None if to is None else (to, 0)
            else:
                node = None
        if log_p > -np.inf:
            found.append(("".join(tokens), float(np.exp(log_p))))
    return found
