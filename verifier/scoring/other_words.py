"""A pack held against weights: whether it says of its questions what they say.

Null: the pack was made of these weights on a stack whose noise is tolerated. What it recorded along
the published paths of a few questions, drawn by the run's secret seed, is read as reports of an
endpoint are (`evidence.ledger.logprob_cells`), and the pack is refused at the run's alpha. A pack
whose prompts are not the template's is refused outright.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from verifier.errors import ConfigError
from verifier.evidence.ledger import LOGPROB_SCALES, logprob_cells
from verifier.evidence.noise import log_e_noise, read_rows
from verifier.plan_file import Plan
from verifier.probes import shuffled
from verifier.records import ReplyScore, ScoreRequest
from verifier.reference.loaded import Reference
from verifier.scoring.readings import published_ids

if TYPE_CHECKING:
    from verifier.reference.pack_file import Pack

#: Questions of a pack that are held against weights, and tokens at each place: as many as
#: endpoints are asked for, and calibrations measure.
LOOKED_AT: Final = 8
TOKENS: Final = 5


def refuse_other_words(pack: Pack, reference: Reference, plan: Plan) -> None:
    """Raise ConfigError for a pack that does not say what the weights say."""
    every = shuffled(range(len(pack.ordinary)), seed=plan.seed)[:LOOKED_AT]
    for question in every:
        ids = published_ids(pack.probes[question], reference.tokenizer)
        if pack.prompt(question)[: len(ids)] != ids:
            raise ConfigError(
                f"reference.pack: its prompt of question {pack.probes[question].id} is not what "
                f"the template of card {plan.card} makes; give a pack of this card"
            )
    with reference.busy:
        scores = reference.engine.score([_request(pack, question) for question in every])
    rows = []
    for question, score in zip(every, scores, strict=True):
        cells = _cells(pack, question, score)
        if cells is None:  # of an engine that knows few alternatives
            continue
        if isinstance(cells, str):
            raise ConfigError(
                f"reference.pack: question {pack.probes[question].id}: {cells}; give another pack"
            )
        rows.append(cells)
    channel = plan.calibration.logprob
    log_e = log_e_noise(
        read_rows(np.array(rows).reshape(len(rows), len(LOGPROB_SCALES)), LOGPROB_SCALES, channel),
        LOGPROB_SCALES, channel,
    )  # fmt: skip
    if log_e >= math.log(1 / plan.alpha):
        raise ConfigError(
            f"reference.pack: on {len(rows)} of its questions it does not say what the weights of "
            f"card {plan.card} say (log e {log_e:.0f}); it was made of other weights: give another"
        )


def _request(pack: Pack, question: int) -> ScoreRequest:
    path = pack.paths[question, 0]
    named = [pack.place(path, at).tokens for at in range(pack.length(path))]
    return ScoreRequest(
        prompt_ids=pack.prompt(question),
        reply_ids=tuple(pack.token_id(tokens[0]) for tokens in named),
        candidates=tuple(tuple(map(pack.token_id, tokens[:TOKENS])) for tokens in named),
    )


def _cells(pack: Pack, question: int, score: ReplyScore) -> tuple[float, ...] | str | None:
    """Cells of what the pack reports; why they say nothing; None: the weights do not say."""
    if score.candidate_logprobs is None:
        return None
    path = pack.paths[question, 0]
    told = [pack.place(path, at).logprobs[:TOKENS] for at in range(pack.length(path))]
    return logprob_cells(told, score.candidate_logprobs)
