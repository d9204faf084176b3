"""The transformers engine on a random model of three layers, held against plain forward passes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from models import EOS_ID, save_model, save_shape
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import stats
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from verifier.errors import ConfigError
from verifier.evidence.ledger import FLOOR
from verifier.evidence.samplers import Sampler, probabilities
from verifier.records import (
    REFERENCE,
    GenerateRequest,
    Generation,
    ReplyScore,
    SamplerRequest,
    ScoreRequest,
)
from verifier.reference.engines import TOP_K
from verifier.reference.engines.transformers import TransformersEngine, _heeded, _unheeded
from verifier.reference.layout import Layout, read_layout
from verifier.reference.roundings import round_cached
from verifier.reference.variants import VARIANTS, Settings, find_variant, is_linear

VOCABULARY = 264

#: Variants that round while the model computes.
SET = tuple(name for name, variant in VARIANTS.items() if variant.settings != Settings())

#: How far float32 sums in another order may lie apart, in nats.
CLOSE = 1e-4

#: Bound on the p-value of a frequency test with fixed seeds. A right sampler would miss it for one
#: choice of seeds in a thousand; these seeds were chosen before the first run.
RARE = 1e-3

#: Short, so that many samples cost little; what follows is neither flat nor nearly certain.
SAMPLED_PROMPT = (82, 81, 92)


def make_ids(rng: np.random.Generator, length: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(3, VOCABULARY, length))


@pytest.fixture(scope="module")
def engine(tiny: Path) -> TransformersEngine:
    return TransformersEngine(tiny, eos_ids=(EOS_ID,), decode=decode)


@pytest.fixture(scope="module")
def plain(tiny: Path) -> Any:
    """The same weights as transformers loads them, without the engine."""
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


def decode(ids: Sequence[int]) -> str:
    """A text in which every token is one letter of its own."""
    return "".join(chr(0x4E00 + n) for n in ids)


def plain_logits(plain: Any, ids: Sequence[int]) -> np.ndarray:
    """Logits [len(ids), V] of one sequence alone: no padding, no batch, no cache."""
    with torch.inference_mode():
        return plain(torch.tensor([list(ids)]), use_cache=False).logits[0].double().numpy()


def plain_logprobs(plain: Any, request: ScoreRequest) -> np.ndarray:
    """Log-probabilities [T, V] before each reply token, by a softmax written out."""
    logits = plain_logits(plain, (*request.prompt_ids, *request.reply_ids))
    rows = logits[len(request.prompt_ids) - 1 : -1]
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def mixed_requests(*, candidates: bool = False) -> list[ScoreRequest]:
    """Prompts and replies of many lengths, some of which begin alike, in no order."""
    rng = np.random.default_rng(7)
    system, longer = make_ids(rng, 24), make_ids(rng, 40)
    shapes = [
        ((), 9, 5), (system, 8, 6), ((), 40, 1), (longer, 3, 3), ((), 3, 17), ((), 21, 12),
        (system, 1, 20), (longer, 1, 1), ((), 1, 30), (system, 8, 1), ((), 9, 5), ((), 15, 2),
    ]  # fmt: skip
    made = []
    for beginning, prompt, reply in shapes:
        named = tuple(make_ids(rng, t % 4) for t in range(reply)) if candidates else None
        made.append(
            ScoreRequest(
                prompt_ids=beginning + make_ids(rng, prompt),
                reply_ids=make_ids(rng, reply),
                candidates=named,
            )
        )
    # alike beyond a short prompt, in replies of different lengths: padded, and nothing shared
    ends = [longer[9:20], longer[9:31]]
    return made + [ScoreRequest(prompt_ids=longer[:9], reply_ids=end) for end in ends]


def greedy(engine: TransformersEngine, *prompts: tuple[int, ...], **fields: Any) -> Any:
    settings = {"max_tokens": 12} | fields
    return engine.generate([GenerateRequest(prompt_ids=p, **settings) for p in prompts])


def make_prompts(count: int) -> list[tuple[int, ...]]:
    """Every other one begins alike; one in four is nothing but that beginning."""
    rng = np.random.default_rng(11)
    system = make_ids(rng, 20)
    lengths = rng.integers(2, 30, count)
    return [
        (system if n % 2 else ()) + (() if n % 4 == 3 else make_ids(rng, int(length)))
        for n, length in enumerate(lengths)
    ]


# -- scoring -----------------------------------------------------------------------------------


BATCHES = pytest.mark.parametrize(
    "tokens_per_batch", [1, 100, 4096], ids=["alone", "some", "together"]
)


@BATCHES
def test_scores_are_the_log_softmax_of_each_reply_alone(
    tiny: Path, plain: Any, tokens_per_batch: int
) -> None:
    """Padding, beginnings shared and batches of any size change nothing, nor does the order."""
    engine = TransformersEngine(tiny, eos_ids=(EOS_ID,), tokens_per_batch=tokens_per_batch)
    requests = mixed_requests()
    scores = engine.score(requests)

    assert len(scores) == len(requests)
    for request, score in zip(requests, scores, strict=True):
        rows = plain_logprobs(plain, request)
        chosen = rows[np.arange(len(rows)), list(request.reply_ids)]
        assert score.logprobs == pytest.approx(chosen, abs=CLOSE)


@BATCHES
def test_samplers_are_scored_from_the_whole_distribution(
    tiny: Path, plain: Any, tokens_per_batch: int
) -> None:
    """Against the same sampler written out over plain logits, in batches of any size."""
    engine = TransformersEngine(tiny, eos_ids=(EOS_ID,), tokens_per_batch=tokens_per_batch)
    samplers = (
        Sampler(), Sampler(temperature=0.7), Sampler(repetition_penalty=1.3),
        Sampler(frequency_penalty=0.8), Sampler(drop_best=0.1), Sampler(rare=0.05),
    )  # fmt: skip
    requests = mixed_requests()
    kept = [tuple(range(0, len(request.reply_ids), 2)) for request in requests]
    found = engine.score_samplers(
        [
            SamplerRequest(prompt_ids=request.prompt_ids, reply_ids=request.reply_ids, kept=some)
            for request, some in zip(requests, kept, strict=True)
        ],
        samplers,
    )

    for request, some, cells in zip(requests, kept, found, strict=True):
        prompt, reply = request.prompt_ids, request.reply_ids
        logits = plain_logits(plain, (*prompt, *reply))[len(prompt) - 1 : -1]
        for sampler, cell in zip(samplers, cells, strict=True):
            expected = 0.0
            for t in some:
                p, at_one = (
                    probabilities(logits[t], prompt_ids=prompt, reply_ids=reply[:t], sampler=s)
                    for s in (sampler, Sampler())
                )
                expected += np.log((1 - FLOOR) * p[reply[t]] + FLOOR * at_one[reply[t]])
            assert cell == pytest.approx(expected, abs=20 * CLOSE)


def test_penalized_scores_are_those_of_the_penalized_logits(
    engine: TransformersEngine, plain: Any
) -> None:
    """One for each sampler; without a penalty they are the plain scores."""
    requests = mixed_requests(candidates=True)
    penalty = Sampler(repetition_penalty=1.3, presence_penalty=0.5)
    found = engine.score_penalized(requests, (Sampler(), penalty))
    unpenalized = engine.score([replace(request, candidates=None) for request in requests])

    for request, (same, penalized), score in zip(requests, found, unpenalized, strict=True):
        prompt, reply = request.prompt_ids, request.reply_ids
        logits = plain_logits(plain, (*prompt, *reply))[len(prompt) - 1 : -1]
        expected = [
            np.log(
                probabilities(row, prompt_ids=prompt, reply_ids=reply[:t], sampler=penalty)[
                    reply[t]
                ]
            )
            for t, row in enumerate(logits)
        ]
        assert same.logprobs == pytest.approx(score.logprobs, abs=CLOSE)
        assert penalized.logprobs == pytest.approx(expected, abs=CLOSE)
        assert penalized.candidate_logprobs is None


def test_a_penalty_changes_greedy_replies_and_rare_tokens_come_by_chance(
    engine: TransformersEngine,
) -> None:
    """Faults to serve: what was said is not said again, and what is likeliest is passed over."""
    prompt = make_prompts(1)[0]
    (plainly,) = greedy(engine, prompt, max_tokens=24)
    (penalized,) = greedy(engine, prompt, max_tokens=24, presence_penalty=2.0)
    (second,) = greedy(engine, prompt, max_tokens=1, drop_best=0.999, seed=1)
    (anything,) = greedy(engine, prompt, max_tokens=24, rare=0.999, seed=1)

    assert len(set(penalized.token_ids)) > len(set(plainly.token_ids))
    assert second.token_ids[0] != plainly.token_ids[0]
    assert len(set(anything.token_ids)) > 15 or anything.finish_reason == "stop"


def test_ranks_count_the_likelier_tokens(engine: TransformersEngine, plain: Any) -> None:
    """Rank 1 is the likeliest token, rank V the least likely one."""
    request = mixed_requests()[3]
    rows = plain_logprobs(plain, request)
    extremes = (int(rows[0].argmax()), int(plain_logprobs(plain, request)[0].argmin()))
    (score,) = engine.score([request])

    expected = [
        int((row > row[token]).sum()) + 1
        for row, token in zip(rows, request.reply_ids, strict=True)
    ]
    assert list(score.ranks) == expected
    for token, rank in zip(extremes, (1, VOCABULARY), strict=True):
        (one,) = engine.score([ScoreRequest(prompt_ids=request.prompt_ids, reply_ids=(token,))])
        assert one.ranks == (rank,)


def test_entropies_are_those_of_the_whole_distribution(
    engine: TransformersEngine, plain: Any
) -> None:
    """- sum p log p over the vocabulary, in nats."""
    request = mixed_requests()[2]
    rows = plain_logprobs(plain, request)
    (score,) = engine.score([request])

    assert score.entropies == pytest.approx(-(np.exp(rows) * rows).sum(axis=1), abs=CLOSE)


def test_the_largest_log_probabilities_come_in_descending_order(
    engine: TransformersEngine, plain: Any
) -> None:
    """TOP_K of them at each position, led by that of the likeliest token."""
    request = mixed_requests()[4]
    rows = plain_logprobs(plain, request)
    (score,) = engine.score([request])

    expected = -np.sort(-rows, axis=1)[:, :TOP_K]
    assert np.array(score.top_logprobs) == pytest.approx(expected, abs=CLOSE)
    assert list(score.top_ids) == rows.argmax(axis=1).tolist()


def test_candidates_are_scored_in_the_order_named(engine: TransformersEngine, plain: Any) -> None:
    """Any number of ids per position, none included."""
    requests = [r for r in mixed_requests(candidates=True) if r.candidates is not None]
    for request, score in zip(requests, engine.score(requests), strict=True):
        assert request.candidates is not None
        assert score.candidate_logprobs is not None
        rows = plain_logprobs(plain, request)
        for row, ids, found in zip(rows, request.candidates, score.candidate_logprobs, strict=True):
            assert found == pytest.approx(row[list(ids)], abs=CLOSE)


def test_without_candidates_none_are_scored(engine: TransformersEngine) -> None:
    """None is not an empty list."""
    (score,) = engine.score(mixed_requests()[:1])

    assert score.candidate_logprobs is None


def test_an_empty_reply_has_an_empty_score(engine: TransformersEngine) -> None:
    """Alone or beside others: no position, no number, nothing borrowed from a neighbour."""
    rng = np.random.default_rng(3)
    empty = ScoreRequest(prompt_ids=make_ids(rng, 6), reply_ids=(), candidates=())
    nothing = ReplyScore(
        logprobs=(), ranks=(), entropies=(), top_ids=(), top_logprobs=(), candidate_logprobs=()
    )
    beside = engine.score([mixed_requests()[0], empty, mixed_requests()[1]])

    assert engine.score([empty]) == [nothing]
    assert beside[1] == nothing
    assert [len(score.logprobs) for score in beside] == [5, 0, 6]


def test_nothing_asked_is_nothing_answered(engine: TransformersEngine) -> None:
    """Empty lists of requests give empty lists."""
    assert engine.score([]) == []
    assert engine.generate([]) == []


def test_batches_hold_no_more_tokens_than_allowed(tiny: Path) -> None:
    """Padding included; a reply that is longer than the limit goes alone."""
    engine = TransformersEngine(tiny, eos_ids=(EOS_ID,), tokens_per_batch=100)
    shapes: list[tuple[int, ...]] = []
    engine._model.register_forward_pre_hook(
        lambda _model, _args, inputs: shapes.append(tuple(inputs["input_ids"].shape)),
        with_kwargs=True,
    )
    long = ScoreRequest(prompt_ids=(3,) * 120, reply_ids=(4, 5))
    engine.score([*mixed_requests(), long])

    assert max(rows for rows, _ in shapes) > 1
    assert all(rows * width <= 100 or rows == 1 for rows, width in shapes)


# -- greedy generation -------------------------------------------------------------------------


@BATCHES
def test_greedy_is_the_step_by_step_argmax(tiny: Path, plain: Any, tokens_per_batch: int) -> None:
    """Cache, padding and batches change nothing: each token is the argmax of a plain forward."""
    engine = TransformersEngine(tiny, eos_ids=(EOS_ID,), tokens_per_batch=tokens_per_batch)
    prompts = make_prompts(8)
    found = greedy(engine, *prompts)

    for prompt, made in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token, logprob in zip(made.token_ids, made.logprobs, strict=True):
            logits = plain_logits(plain, ids)[-1]
            assert token == logits.argmax()
            assert logprob == pytest.approx(logits[token] - np.log(np.exp(logits).sum()), abs=CLOSE)
            ids.append(token)
        assert len(made.token_ids) == 12
        assert made.finish_reason == "length"


def test_members_of_a_batch_do_not_influence_each_other(engine: TransformersEngine) -> None:
    """Each reply is the one it would be alone, whoever its neighbours and their limits are."""
    prompts = make_prompts(6)  # among them some that begin alike
    limits = (12, 1, 30, 7, 12, 3)
    together = engine.generate(
        [GenerateRequest(prompt_ids=p, max_tokens=n) for p, n in zip(prompts, limits, strict=True)]
    )

    for prompt, limit, made in zip(prompts, limits, together, strict=True):
        (alone,) = greedy(engine, prompt, max_tokens=limit)
        assert made.token_ids == alone.token_ids
        assert made.logprobs == pytest.approx(alone.logprobs, abs=CLOSE)
        assert len(made.token_ids) == limit


def test_what_has_ended_is_computed_no_further(
    tiny: Path, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows leave the batch once a quarter of it has ended, and those that stay say the same."""
    rng = np.random.default_rng(11)
    requests = [
        GenerateRequest(prompt_ids=make_ids(rng, 9 + n), max_tokens=length, past_end=True)
        for n, length in enumerate((2, 7, 7, 5, 7, 2, 7, 7))
    ]
    alone = [made for request in requests for made in engine.generate([request])]
    rows, forward = [], engine._model.forward

    def counted(*given: Any, **named: Any) -> Any:
        rows.append(len(named["input_ids"]))
        return forward(*given, **named)

    monkeypatch.setattr(engine._model, "forward", counted)
    together = engine.generate(requests)

    assert [made.token_ids for made in together] == [made.token_ids for made in alone]
    assert rows[-6:] == [8, 6, 6, 6, 6, 6]  # one of six is no quarter of them


def test_what_is_generated_is_what_is_scored(engine: TransformersEngine) -> None:
    """Log-probabilities of generation and of teacher forcing are the same numbers."""
    prompts = make_prompts(4)
    made = greedy(engine, *prompts, max_tokens=20)
    scores = engine.score(
        [
            ScoreRequest(prompt_ids=p, reply_ids=g.token_ids)
            for p, g in zip(prompts, made, strict=True)
        ]
    )

    for generation, score in zip(made, scores, strict=True):
        assert score.logprobs == pytest.approx(generation.logprobs, abs=CLOSE)
        assert score.top_ids == generation.token_ids
        assert set(score.ranks) == {1}


def test_a_reply_ends_with_its_end_of_turn_token(tiny: Path) -> None:
    """That token is kept, the reason is stop, and longer neighbours go on."""
    prompts = make_prompts(4)
    free = greedy(TransformersEngine(tiny, eos_ids=()), *prompts)
    ends = free[0].token_ids[4]
    engine = TransformersEngine(tiny, eos_ids=(EOS_ID, ends))
    found = greedy(engine, *prompts)

    for made, whole in zip(found, free, strict=True):
        at = whole.token_ids.index(ends) + 1 if ends in whole.token_ids else None
        assert made.token_ids == whole.token_ids[:at]
        assert made.finish_reason == ("length" if at is None else "stop")
        assert len(made.logprobs) == len(made.token_ids)
    assert found[0].finish_reason == "stop"
    assert "length" in {made.finish_reason for made in found}


def test_a_reply_may_be_asked_to_run_past_its_end(tiny: Path) -> None:
    """The fault of a host that does not know the end-of-turn token."""
    (prompt,) = make_prompts(1)
    (free,) = greedy(TransformersEngine(tiny, eos_ids=()), prompt, max_tokens=8)
    engine = TransformersEngine(tiny, eos_ids=(free.token_ids[3],))
    (on,) = engine.generate([GenerateRequest(prompt_ids=prompt, max_tokens=8, past_end=True)])

    assert on.token_ids == free.token_ids
    assert on.finish_reason == "length"


def test_an_end_of_turn_token_at_the_limit_is_a_stop(tiny: Path) -> None:
    """The model ended; the limit only happened to be there too."""
    (prompt,) = make_prompts(1)
    (free,) = greedy(TransformersEngine(tiny, eos_ids=()), prompt, max_tokens=1)
    engine = TransformersEngine(tiny, eos_ids=free.token_ids)
    (made,) = greedy(engine, prompt, max_tokens=1)

    assert (made.token_ids, made.finish_reason) == (free.token_ids, "stop")


def test_a_stop_string_ends_a_reply_once_its_text_holds_it(engine: TransformersEngine) -> None:
    """The token that completes it is the last, also when it takes several tokens to spell."""
    prompts = make_prompts(2)
    free = greedy(engine, *prompts)
    stop = decode(free[0].token_ids[3:5])
    found = greedy(engine, *prompts, stop=("never", stop))

    assert found[0].token_ids == free[0].token_ids[:5]
    assert found[0].finish_reason == "stop"
    assert found[1].token_ids == free[1].token_ids
    assert found[1].logprobs == pytest.approx(free[1].logprobs, abs=CLOSE)


def test_stop_strings_need_a_way_to_read_ids(tiny: Path) -> None:
    """An engine without `decode` goes on to the limit; the host cuts the text."""
    (prompt,) = make_prompts(1)
    engine = TransformersEngine(tiny, eos_ids=(EOS_ID,))
    (free,) = greedy(engine, prompt)
    (made,) = greedy(engine, prompt, stop=(decode(free.token_ids[3:4]),))

    assert made == free


def test_alternatives_come_with_every_position(engine: TransformersEngine, plain: Any) -> None:
    """As many as asked, likeliest first, at temperature 1; none when none are asked for."""
    (prompt,) = make_prompts(1)
    (made,) = greedy(engine, prompt, top_logprobs=4, temperature=0.7, seed=5)
    (bare,) = greedy(engine, prompt)

    rows = plain_logprobs(plain, ScoreRequest(prompt_ids=prompt, reply_ids=made.token_ids))
    assert len(made.top) == len(made.token_ids)
    for row, named in zip(rows, made.top, strict=True):
        best = np.argsort(-row)[:4]
        assert [token for token, _ in named] == best.tolist()
        assert [logprob for _, logprob in named] == pytest.approx(row[best], abs=CLOSE)
    assert bare.top == ()


# -- sampling ----------------------------------------------------------------------------------


def sample_once(engine: TransformersEngine, *, count: int, **fields: Any) -> np.ndarray:
    """Counts [V] of the first token over `count` seeds."""
    requests = [
        GenerateRequest(prompt_ids=SAMPLED_PROMPT, max_tokens=1, seed=seed, **fields)
        for seed in range(1000, 1000 + count)
    ]
    tokens = [made.token_ids[0] for made in engine.generate(requests)]
    return np.bincount(tokens, minlength=VOCABULARY)


def expected_shares(
    plain: Any, *, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
    """Probabilities [V] of the next token, by the definitions of the settings."""
    scaled = plain_logits(plain, SAMPLED_PROMPT)[-1] / temperature
    shares = np.exp(scaled - scaled.max())
    order = np.argsort(-shares)
    if top_k:
        shares[order[top_k:]] = 0
    shares /= shares.sum()
    # the smallest set of likeliest tokens that holds at least top_p
    inside = int(np.searchsorted(np.cumsum(shares[order]), top_p)) + 1
    shares[order[inside:]] = 0
    return shares / shares.sum()


def fit_p_value(counts: np.ndarray, shares: np.ndarray) -> float:
    """Pearson's chi-square test; tokens expected fewer than five times are taken together."""
    total = counts.sum()
    common = shares * total >= 5
    observed = [*counts[common], counts[~common].sum()]
    expected = [*(shares[common] * total), shares[~common].sum() * total]
    if expected[-1] < 1e-9:  # nothing is rare: an empty cell is no evidence
        observed, expected = observed[:-1], expected[:-1]
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.4, "top_k": 12, "top_p": 0.8},
    ],
    ids=lambda settings: ", ".join(f"{k} {v}" for k, v in settings.items()),
)
def test_samples_have_the_frequencies_asked_for(
    engine: TransformersEngine, plain: Any, settings: dict[str, Any]
) -> None:
    """First tokens over 1,500 seeds fit temperature, then top-k, then top-p; nothing outside."""
    counts = sample_once(engine, count=1500, **settings)
    shares = expected_shares(plain, **settings)

    assert counts[shares == 0].sum() == 0
    assert fit_p_value(counts, shares) > RARE


def test_the_frequency_test_tells_settings_apart(engine: TransformersEngine, plain: Any) -> None:
    """Samples at temperature 1 fit none of a neighbour's settings: the test has power."""
    counts = sample_once(engine, count=1500, temperature=1.0)

    for other in (0.85, 1.2):
        shares = expected_shares(plain, temperature=other)
        assert fit_p_value(counts, shares) < RARE


def test_a_seed_repeats_its_sample(engine: TransformersEngine) -> None:
    """Whatever the place in the batch, and differs from other seeds."""
    prompt = make_prompts(3)[1]
    fields = {"temperature": 1.0, "max_tokens": 20}

    def draw(*seeds: int) -> list[Generation]:
        return engine.generate(
            [GenerateRequest(prompt_ids=prompt, seed=seed, **fields) for seed in seeds]
        )

    one, two, again = draw(1, 2, 1)
    (alone,) = draw(1)
    assert one.token_ids == again.token_ids == alone.token_ids
    assert one.token_ids != two.token_ids


def test_without_a_seed_samples_differ(engine: TransformersEngine) -> None:
    """The engine draws a seed for each."""
    prompt = make_prompts(3)[1]
    made = greedy(engine, prompt, prompt, prompt, temperature=1.0, max_tokens=20)

    assert len({generation.token_ids for generation in made}) == 3


@pytest.mark.parametrize(
    "settings", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}], ids=str
)
def test_the_narrowest_sampling_is_greedy(
    engine: TransformersEngine, settings: dict[str, Any]
) -> None:
    """One token is left of the distribution, the likeliest."""
    prompts = make_prompts(3)
    sampled = greedy(engine, *prompts, **({"temperature": 1.0, "seed": 3} | settings))

    assert [m.token_ids for m in sampled] == [m.token_ids for m in greedy(engine, *prompts)]


# -- weights variants --------------------------------------------------------------------------


def parameters(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine._model.named_parameters()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    """An engine whose model has widths that every group of the bank divides."""
    directory = tmp_path_factory.mktemp("wide")
    save_model(
        directory, hidden_size=768, intermediate_size=768, num_hidden_layers=2,
        num_attention_heads=12, num_key_value_heads=3, initializer_range=0.05,
    )  # fmt: skip
    return TransformersEngine(directory, eos_ids=(EOS_ID,))


@pytest.mark.parametrize("name", [*VARIANTS, "drop-layer-0", "drop-layer-1"])
def test_every_variant_moves_the_scores_and_is_taken_back_whole(
    engine: TransformersEngine, wide: TransformersEngine, name: str
) -> None:
    """No fault is an empty one, and the reference afterwards is bit-identical."""
    engine = engine if engine.can_load(name) else wide
    requests = mixed_requests()
    weights, before = parameters(engine), engine.score(requests)
    engine.load_variant(name)
    moved = engine.score(requests)
    loaded = engine.loaded
    engine.load_variant(REFERENCE)

    assert loaded == name
    shifts = np.concatenate(
        [np.subtract(a.logprobs, b.logprobs) for a, b in zip(before, moved, strict=True)]
    )
    assert np.abs(shifts).mean() > 0.01
    assert same_bits(parameters(engine), weights)
    assert engine.score(requests) == before


def test_a_variant_that_the_widths_do_not_take_cannot_be_loaded(
    engine: TransformersEngine, wide: TransformersEngine
) -> None:
    """So that a bank may name it for any model; loading it anyway says why."""
    left_out = {name for name in VARIANTS if not engine.can_load(name)}

    assert left_out == {"int4-asym-g128", "int4-asym-g128-mse", "int4-sym-g128"}
    assert all(wide.can_load(name) for name in VARIANTS)
    with pytest.raises(ConfigError, match="'int4-sym-g128': groups of 128 do not divide the input"):
        engine.load_variant("int4-sym-g128")
    engine.load_variant(REFERENCE)


def test_coarser_rounding_moves_the_scores_further(engine: TransformersEngine) -> None:
    """8 bits less than fp8, fp8 less than 4, 3 and 2 bits."""
    requests = mixed_requests()
    before = engine.score(requests)

    def shift(name: str) -> float:
        engine.load_variant(name)
        pairs = zip(before, engine.score(requests), strict=True)
        return float(
            np.abs(np.concatenate([np.subtract(a.logprobs, b.logprobs) for a, b in pairs])).mean()
        )

    shifts = [
        shift(n) for n in ("int8-channel", "fp8-channel", "int4-asym-g64", "int3-g64", "int2-g64")
    ]
    engine.load_variant(REFERENCE)
    assert shifts == sorted(shifts)


def test_variants_replace_each_other(engine: TransformersEngine) -> None:
    """A variant after another starts from the checkpoint, not from what was in place."""
    engine.load_variant("int8-channel")
    direct = parameters(engine)
    engine.load_variant("int2-g64")
    engine.load_variant("int8-channel")
    over = parameters(engine)
    engine.load_variant(REFERENCE)

    assert same_bits(over, direct)


def test_only_linear_layers_of_the_blocks_are_rounded(engine: TransformersEngine) -> None:
    """Embeddings, norms and the head stay as published."""
    before = parameters(engine)
    engine.load_variant("int4-asym-g64")
    after = parameters(engine)
    engine.load_variant(REFERENCE)

    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    assert len(changed) == 3 * 7  # layers times q, k, v, o, gate, up, down


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture whose experts are stored one by one, and fused on loading."""
    return save_shape(tmp_path_factory.mktemp("mixture"), "mixtral")


@pytest.mark.parametrize("name", ["int4-sym-g64", "drop-layer-1"])
def test_variants_of_experts_that_are_fused_on_loading_are_those_of_the_checkpoint(
    mixture: Path, tmp_path: Path, name: str
) -> None:
    """As if the rounded tensors had been published; the reference comes back bit by bit."""
    engine = TransformersEngine(mixture, eos_ids=(EOS_ID,))
    before = parameters(engine)
    engine.load_variant(name)
    moved = parameters(engine)
    engine.load_variant(REFERENCE)
    again = parameters(engine)
    shutil.copytree(mixture, tmp_path, dirs_exist_ok=True)
    build = find_variant(name, layers=4).build
    assert build is not None
    transform = build(Layout(layers=4, hidden=128))
    rounded = {n: transform(n, t) for n, t in load_file(mixture / "model.safetensors").items()}
    save_file(rounded, tmp_path / "model.safetensors", metadata={"format": "pt"})

    assert not same_bits(moved, before)
    assert same_bits(moved, parameters(TransformersEngine(tmp_path, eos_ids=(EOS_ID,))))
    assert same_bits(again, before)


def test_an_unknown_variant_is_refused_and_changes_nothing(engine: TransformersEngine) -> None:
    """The message names what there is."""
    before = parameters(engine)
    for name in ("int5-g64", "drop-layer-3"):
        with pytest.raises(ConfigError, match=rf"no weights variant '{name}'.*int4-sym-g64"):
            engine.load_variant(name)

    assert engine.loaded == REFERENCE
    assert same_bits(parameters(engine), before)


def test_a_variant_that_changes_nothing_is_refused(tiny: Path, tmp_path: Path) -> None:
    """A fault that moves no number is none: here the layer to drop is silent already."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    model.save_pretrained(tmp_path)
    engine = TransformersEngine(tmp_path, eos_ids=(EOS_ID,))
    with pytest.raises(ConfigError, match="'drop-1' changes nothing"):
        engine.load_variant("drop-1")
    engine.load_variant(REFERENCE)

    assert engine.loaded == REFERENCE


def test_a_variant_that_fails_half_way_does_not_pass_for_the_weights_before(
    tmp_path: Path,
) -> None:
    """Groups that do not divide a later layer leave mixed weights: the reference loads anew."""
    save_model(tmp_path, hidden_size=64, intermediate_size=192, num_attention_heads=1)
    engine = TransformersEngine(tmp_path, eos_ids=(EOS_ID,))
    before = parameters(engine)
    with pytest.raises(ConfigError, match="groups of 96 do not divide the input width 64 of "):
        engine.load_variant("int4-sym-g96")
    mixed, loaded = parameters(engine), engine.loaded
    engine.load_variant(REFERENCE)

    assert loaded is None
    assert not same_bits(mixed, before)  # down_proj comes first, and its width is divided
    assert same_bits(parameters(engine), before)


# -- what is rounded while a model computes ------------------------------------------------------


def by_hand(model: Any, request: ScoreRequest) -> NDArray[np.float64]:
    """Log-probabilities of a reply by one plain pass without a cache."""
    ids = torch.tensor([request.prompt_ids + request.reply_ids])
    with torch.inference_mode():
        logp = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0], dim=-1)
    places = range(len(request.prompt_ids) - 1, ids.shape[1] - 1)
    chosen = [logp[t, i] for t, i in zip(places, request.reply_ids, strict=True)]
    return np.array(chosen, dtype=np.float64)


@pytest.mark.parametrize(
    ("name", "bits"), [("fp8-w8a8", "fp8"), ("fp8-block128-w8a8", "fp8"), ("int8-w8a8", "int8")]
)
def test_w8a8_rounds_what_the_rounded_layers_read(
    tiny: Path, engine: TransformersEngine, name: str, bits: str
) -> None:
    """Against a plain model whose layers round their own inputs, in the slow and obvious way."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    build = VARIANTS[name].build
    assert build is not None
    transform = build(read_layout(model.config))
    width = 128 if "block" in name else None

    def rounded(vector: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in vector.split(width or len(vector)):
            if bits == "fp8":
                scale = part.abs().max() / 448
                parts.append((part / scale).to(torch.float8_e4m3fn).float() * scale)
            else:
                scale = part.abs().max() / 127
                parts.append((part / scale).round() * scale)
        return torch.cat(parts)

    for key, module in model.named_modules():
        if is_linear(f"{key}.weight"):
            module.weight.data = transform(f"{key}.weight", module.weight.data)
            module.forward = lambda given, module=module: torch.nn.functional.linear(
                torch.stack([rounded(vector) for vector in given[0]])[None], module.weight
            )
    requests = mixed_requests()[:3]
    engine.load_variant(name)
    found = engine.score(requests)
    engine.load_variant(REFERENCE)

    for request, score in zip(requests, found, strict=True):
        off = np.abs(np.array(score.logprobs) - by_hand(model, request))
        assert np.quantile(off, 0.9) < CLOSE  # a sum in another order may round another way
        assert off.max() < 0.2


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_a_rounded_cache_rounds_keys_after_rotation_and_values(
    tiny: Path, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Against a plain model without a cache, whose attention is given rounded ones."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    rotate = modeling_llama.apply_rotary_pos_emb

    def rounded(queries: Any, keys: Any, *args: Any, **more: Any) -> Any:
        turned, keys = rotate(queries, keys, *args, **more)
        return turned, round_cached(keys, kind)

    requests = mixed_requests()[:3]
    engine.load_variant(f"kv-{kind}")
    found = engine.score(requests)
    engine.load_variant(REFERENCE)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rounded)
    for layer in model.model.layers:  # one head, so a token's values are one vector
        layer.self_attn.v_proj.register_forward_hook(lambda _m, _i, out: round_cached(out, kind))

    for request, score in zip(requests, found, strict=True):
        off = np.abs(np.array(score.logprobs) - by_hand(model, request))
        assert np.quantile(off, 0.9) < CLOSE
        assert off.max() < 0.2


@pytest.mark.parametrize("name", SET)
def test_replies_under_settings_are_those_that_scores_call_likeliest(
    engine: TransformersEngine, name: str
) -> None:
    """Of prompts alone and together: the cache holds the same however it was filled."""
    prompts = make_prompts(4)
    engine.load_variant(name)
    made = greedy(engine, *prompts, max_tokens=12)
    asked = [
        ScoreRequest(prompt_ids=p, reply_ids=m.token_ids)
        for p, m in zip(prompts, made, strict=True)
    ]
    scores = engine.score(asked)
    alone = [engine.score([request])[0] for request in asked]
    engine.load_variant(REFERENCE)

    for score, one, generation in zip(scores, alone, made, strict=True):
        best = np.array(score.top_logprobs)[:, 0]
        assert (np.array(score.logprobs) > best - 0.1).all()
        assert np.median(np.abs(np.subtract(score.logprobs, generation.logprobs))) < CLOSE
        assert np.median(np.abs(np.subtract(score.logprobs, one.logprobs))) < CLOSE


def test_settings_are_taken_back_when_anything_else_is_loaded(engine: TransformersEngine) -> None:
    """Another setting, other weights, the reference: none computes under two."""
    requests = mixed_requests()
    names = ("int4-asym-g64", *SET, REFERENCE)
    alone = {}
    for name in names:
        engine.load_variant(name)
        alone[name] = engine.score(requests)
        engine.load_variant(REFERENCE)
    for name in (*SET, "int4-asym-g64", *reversed(SET), REFERENCE):
        engine.load_variant(name)
        assert engine.score(requests) == alone[name], name

    assert engine._hooks == []


def test_settings_are_taken_back_for_another_model_and_after_a_failure(
    tiny: Path, tmp_path: Path
) -> None:
    """Whose layers are others."""
    save_model(tmp_path / "other", num_hidden_layers=2)
    checkpoints = {"other": lambda: tmp_path / "other", "none": lambda: tmp_path}
    engine = TransformersEngine(tiny, eos_ids=(EOS_ID,), checkpoints=checkpoints)
    alone = TransformersEngine(tmp_path / "other", eos_ids=(EOS_ID,))
    requests, before = mixed_requests(), engine.score(mixed_requests())
    for name in ("fp8-w8a8", "kv-int4"):
        engine.load_variant(name)
        engine.load_variant("other")
        assert engine.score(requests) == alone.score(requests)
        engine.load_variant(name)
        with pytest.raises(ConfigError, match="'none' cannot be loaded"):
            engine.load_variant("none")
        engine.load_variant(REFERENCE)
        assert engine.score(requests) == before


def test_a_model_that_settings_cannot_be_heeded_for_says_so(tmp_path: Path) -> None:
    """Experts that transformers holds in one tensor read their inputs in no layer of their own."""
    transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    engine = TransformersEngine(tmp_path, eos_ids=(EOS_ID,))

    assert (engine.can_load("kv-fp8"), engine.can_load("fp8-w8a8")) == (True, False)
    with pytest.raises(
        ConfigError, match=r"'fp8-w8a8': transformers reads .*experts.* in no linear"
    ):
        engine.load_variant("fp8-w8a8")


def test_a_model_with_a_latent_cache_has_none_of_ours() -> None:
    """Hosts round the latent, which transformers does not keep."""
    text = SimpleNamespace(kv_lora_rank=512)
    model = SimpleNamespace(
        named_parameters=list, config=SimpleNamespace(get_text_config=lambda: text)
    )
    problems = _heeded(cast(Any, model))

    assert _unheeded(Settings(kv_cache="fp8"), problems) is not None
    assert _unheeded(Settings(activations="fp8-token"), problems) is None


# -- other models ------------------------------------------------------------------------------


def test_another_model_is_loaded_in_the_place_of_the_reference(tiny: Path, tmp_path: Path) -> None:
    """By its column's name; a variant and the reference after it are those of the reference."""
    save_model(tmp_path / "other", num_hidden_layers=2, hidden_size=128, num_attention_heads=2)
    fetched: list[str] = []

    def fetch() -> Path:
        fetched.append("other")
        return tmp_path / "other"

    engine = TransformersEngine(tiny, eos_ids=(EOS_ID,), checkpoints={"other": fetch})
    plain = TransformersEngine(tiny, eos_ids=(EOS_ID,))
    alone = TransformersEngine(tmp_path / "other", eos_ids=(EOS_ID,))
    requests = mixed_requests()
    assert (engine.can_load("other"), plain.can_load("other")) == (True, False)
    assert fetched == []  # nothing is fetched before it is needed

    engine.load_variant("other")
    assert engine.score(requests) == alone.score(requests)
    engine.load_variant("int4-sym-g64")
    plain.load_variant("int4-sym-g64")
    assert engine.score(requests) == plain.score(requests)
    engine.load_variant("other")
    engine.load_variant(REFERENCE)
    plain.load_variant(REFERENCE)
    assert same_bits(parameters(engine), parameters(plain))


def test_a_checkpoint_that_is_no_model_is_refused_and_the_reference_comes_back(
    tiny: Path, tmp_path: Path
) -> None:
    """In one line; nothing that failed passes for weights."""
    engine = TransformersEngine(tiny, eos_ids=(EOS_ID,), checkpoints={"other": lambda: tmp_path})
    before = engine.score(mixed_requests())
    with pytest.raises(ConfigError, match="the checkpoint 'other' cannot be loaded") as refused:
        engine.load_variant("other")
    loaded = engine.loaded
    engine.load_variant(REFERENCE)

    assert "\n" not in str(refused.value)
    assert loaded is None
    assert engine.score(mixed_requests()) == before


# -- half precision ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(tiny: Path) -> TransformersEngine:
    return TransformersEngine(tiny, eos_ids=(EOS_ID,), dtype="bfloat16")


@pytest.mark.parametrize("name", ["int8-channel", "int4-asym-g64", "drop-1"])
def test_variants_go_through_the_serving_precision(
    half: TransformersEngine, engine: TransformersEngine, name: str
) -> None:
    """Weights are rounded by the variant in float32, then once to bfloat16, as hosts store them."""
    for each in (half, engine):
        each.load_variant(name)
    served, exact = parameters(half), parameters(engine)
    for each in (half, engine):
        each.load_variant(REFERENCE)

    assert served.keys() == exact.keys()
    for key in exact:
        expected = exact[key].to(torch.bfloat16).float()
        assert torch.equal(served[key].float(), expected), key


def test_the_reference_in_half_precision_is_taken_back_whole(half: TransformersEngine) -> None:
    """As loaded, and as restored: the same bits, the same scores."""
    weights, before = parameters(half), half.score(mixed_requests())
    half.load_variant("int3-g64")
    half.load_variant(REFERENCE)

    assert same_bits(parameters(half), weights)
    assert half.score(mixed_requests()) == before


def test_half_precision_moves_the_scores_less_than_8_bits(
    half: TransformersEngine, engine: TransformersEngine
) -> None:
    """It is honest serving, close to the reference but not equal to it."""
    pairs = zip(engine.score(mixed_requests()), half.score(mixed_requests()), strict=True)
    shift = np.abs(np.concatenate([np.subtract(a.logprobs, b.logprobs) for a, b in pairs])).mean()

    assert 0 < shift < 0.06


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU rounds by itself")
def test_logits_are_rounded_to_the_serving_precision(tmp_path: Path, tied: bool) -> None:
    """The head multiplies in half precision as every other layer does."""
    save_model(tmp_path, tie_word_embeddings=tied)
    engine = TransformersEngine(tmp_path, eos_ids=(EOS_ID,), dtype="bfloat16")
    with torch.inference_mode():
        logits = engine._model(torch.tensor([[5, 6, 7]])).logits

    assert torch.equal(logits.float(), logits.to(torch.bfloat16).float())


def test_versions_name_what_computes_the_numbers(half: TransformersEngine) -> None:
    """Libraries, device and precision, for the signature."""
    found = half.versions

    assert found["engine"] == "transformers"
    assert found["torch"] == torch.__version__
    assert found["dtype"] == "bfloat16"
    assert found["device"] in ("cpu", "cuda")
