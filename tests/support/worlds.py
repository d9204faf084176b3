"""Worlds small enough to be enumerated: every reply that there can be, and how likely it is.

Two or three probes are asked; a reply has two tokens of three. The rows are made by the shipped
`evidence.ledger` from what an engine would say, so that a sum over the outcomes proves the code and
not a formula. The worst stopping time is found by backward induction (the Snell envelope).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final

import numpy as np

from verifier.evidence.arrays import Array
from verifier.evidence.ledger import (
    FLOOR,
    Row,
    SampledRow,
    dropped_cells,
    rare_cells,
    text_cells,
)
from verifier.evidence.samplers import SINGLE_TOKENS, Sampler, name_of, row_cells
from verifier.records import REFERENCE, ReplyScore

TOKENS: Final = 3

#: Replies of two tokens, in the order in which all arrays below have them.
REPLIES: Final = tuple(product(range(TOKENS), repeat=2))

#: E-values after none, one, two... replies: [M, K, K, ...], an axis for all that a probe may bring.
Process = list[Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """What weights give for one probe: at the first token, and at the second after each first."""

    first: Array  # [V]
    second: Array  # [V, V]


def draw_logits(rng: np.random.Generator, *, width: float) -> Logits:
    """Logits as far apart as `width` says."""
    return Logits(first=rng.normal(0, width, TOKENS), second=rng.normal(0, width, (TOKENS, TOKENS)))


def near(logits: Logits, rng: np.random.Generator, *, by: float) -> Logits:
    """The logits of a build: those of the published weights, and an error."""
    return Logits(
        first=logits.first + rng.normal(0, by, TOKENS),
        second=logits.second + rng.normal(0, by, (TOKENS, TOKENS)),
    )


def score_of(logits: Logits, reply: tuple[int, int]) -> ReplyScore:
    """What an engine with these logits says of a reply."""
    given = np.array([logits.first, logits.second[reply[0]]])
    logp = given - np.logaddexp.reduce(given, axis=1, keepdims=True)
    chosen = logp[[0, 1], list(reply)]
    return ReplyScore(
        logprobs=tuple(chosen.tolist()),
        ranks=tuple(((logp > chosen[:, None]).sum(axis=1) + 1).tolist()),
        entropies=tuple((-(np.exp(logp) * logp).sum(axis=1)).tolist()),
        top_ids=tuple(given.argmax(axis=1).tolist()),
        top_logprobs=tuple(map(tuple, (-np.sort(-logp, axis=1)).tolist())),
        candidate_logprobs=None,
    )


def row_of(
    number: int, reply: tuple[int, int], columns: Mapping[str, Logits], *, single: bool = False,
    **fields: Any,
) -> Row:  # fmt: skip
    """The row of a reply, with a column for each weights or rendering."""
    scores = {name: score_of(logits, reply) for name, logits in columns.items()}
    return Row(
        probe_id=f"p{number}",
        tokens=2,
        left_out=0,
        text={name: text_cells(score, (0, 1)) for name, score in scores.items()},
        logprob=None,
        logprob_problem="none were returned",
        single={
            name_of(sampler): dropped_cells(scores[REFERENCE], (0, 1), sampler.drop_best)
            if sampler.drop_best
            else rare_cells(scores[REFERENCE], (0, 1), sampler.rare)
            for sampler in (SINGLE_TOKENS if single else ())
        },
        **fields,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that can come of each probe, in the order in which they are asked."""

    rows: tuple[tuple[Any, ...], ...]  # [R][K]: K outcomes of each probe
    columns: tuple[Mapping[str, Logits], ...] = ()  # [R]
    beside: Array = field(default_factory=lambda: np.ones((1, 1)))  # [K / 9, N] of N honest truths

    @property
    def replies(self) -> int:
        return len(self.rows)

    @property
    def outcomes(self) -> int:
        return len(self.rows[0])


def make_world(
    seed: int, *, replies: int, width: float, others: Mapping[str, float] | None = None,
    single: bool = False, strata: Sequence[tuple[str, ...]] = (),
) -> World:  # fmt: skip
    """A world drawn by a seed: other columns are so far from the published one as they say."""
    rng = np.random.default_rng(seed)
    columns = []
    for _ in range(replies):
        published = draw_logits(rng, width=width)
        own = {name: near(published, rng, by=by) for name, by in (others or {}).items()}
        columns.append({REFERENCE: published} | own)
    rows = [
        tuple(
            row_of(n, reply, some, single=single, strata=strata[n] if strata else ())
            for reply in REPLIES
        )
        for n, some in enumerate(columns)
    ]
    return World(rows=tuple(rows), columns=tuple(columns))


def beside(world: World, kinds: Sequence[Mapping[str, Any]], chances: Array) -> World:
    """The same with something beside each reply: fields of its row, and their chances.

    `chances` are [len(kinds), N], a column for each honest truth; the reply moves none of them.
    """
    rows = tuple(
        tuple(replace(row, **kind) for row in some for kind in kinds) for some in world.rows
    )
    return World(rows=rows, columns=world.columns, beside=chances)


def make_sampled_world(
    seed: int, *, replies: int, width: float, samplers: Mapping[str, Sampler]
) -> World:
    """A world of replies at temperature 1, with a column for each sampler."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(replies):
        logits = draw_logits(rng, width=width)
        cells = [
            row_cells(
                np.array([logits.first, logits.second[reply[0]]]), prompt_ids=(0,),
                reply_ids=reply, kept=(0, 1), samplers=tuple(samplers.values()),
            )
            for reply in REPLIES
        ]  # fmt: skip
        rows.append(
            tuple(
                SampledRow(
                    probe_id=f"s{n}", tokens=2, left_out=0, problem=None,
                    cells=dict(zip(samplers, some, strict=True)),
                )
                for some in cells
            )
        )  # fmt: skip
    return World(rows=tuple(rows))


# -- e-values of all that can come -------------------------------------------------------------


def enumerate_process(world: World, weigh: Callable[[tuple[Any, ...]], Sequence[float]]) -> Process:
    """exp of each of M log e-values after none, one, two... of the replies: [M, K, K, ...]."""
    found = []
    for n in range(world.replies + 1):
        values = [
            weigh(tuple(world.rows[i][k] for i, k in enumerate(chosen)))
            for chosen in product(range(world.outcomes), repeat=n)
        ]
        found.append(np.exp(np.array(values, dtype=float).T).reshape(-1, *(world.outcomes,) * n))
    return found


def worst_stop(process: Process, chances: Array) -> Array:
    """sup over all stopping times of each mean [T, M]: at least one reply is waited for.

    Under truth t, probe n has outcome k at chance [t, n, k].
    """
    truths = chances.shape[0]
    value = np.broadcast_to(process[-1], (truths, *process[-1].shape))
    for n in range(len(process) - 2, -1, -1):
        value = np.einsum("tm...k,tk->tm...", value, chances[:, n])
        value = np.maximum(process[n], value) if n else value
    return np.asarray(value)


def worst_scales(process: Process, world: World, scales: Array, *, floor: float = FLOOR) -> Array:
    """The same [M], for a host that sets the noise scale of every next token by all that came
    before it, from `scales`, and likewise what comes beside the replies."""
    value = process[-1]
    for n in range(world.replies - 1, -1, -1):
        logits = world.columns[n][REFERENCE]
        split = value.reshape(*value.shape[:-1], TOKENS, TOKENS, -1)
        split = (split @ world.beside).max(axis=-1)  # [..., V, V]
        second = np.stack([floored(logits.second, s, floor=floor) for s in scales])  # [A, V, V]
        split = np.einsum("...fv,afv->...fa", split, second).max(axis=-1)  # [..., V]
        first = np.stack([floored(logits.first, s, floor=floor) for s in scales])  # [A, V]
        value = (split @ first.T).max(axis=-1)
        value = np.maximum(process[n], value) if n else value
    return np.asarray(value)


def floored(logits: Array, scale: float, *, floor: float = FLOOR) -> Array:
    """Chances [..., V] of the next token under Gumbel noise of a scale, as the ledger has them."""
    return (1 - floor) * softmax(logits / scale) + floor * softmax(logits)


def softmax(logits: Array) -> Array:
    """Chances [..., V]."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def chances_of(
    world: World, column: str, *, read: Callable[[Array], Array] = lambda rows: rows
) -> Array:
    """The chances [S, N, R, K] of all outcomes under a column at each scale, by the rows.

    `read` is how an audit reads rows [K, S]. What comes beside replies does so under each of the N
    honest truths.
    """
    per = world.outcomes // len(REPLIES)
    cells = [[row.text[column] for row in some[::per]] for some in world.rows]
    text = np.exp([read(np.array(one)) for one in cells])  # [R, 9, S]
    both = np.einsum("rks,jn->snrkj", text, world.beside)
    return both.reshape(*both.shape[:3], -1)
