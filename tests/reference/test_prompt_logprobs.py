"""Scores from prompt log-probabilities: against whole distributions that the test holds itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from verifier.records import ReplyScore, ScoreRequest
from verifier.reference.engines import TOP_K
from verifier.reference.engines.prompt_logprobs import (
    WIDE_K,
    Answer,
    Question,
    chunks,
    least_entropy,
    score,
)

VOCABULARY = 3 * WIDE_K


def distribution(before: tuple[int, ...]) -> np.ndarray:
    """Log-probabilities [V] of the token after these."""
    logits = 2 * np.random.default_rng(list(before)).normal(size=VOCABULARY)
    return logits - np.logaddexp.reduce(logits)


class Server:
    """Answers as a vLLM does, and keeps what it was asked."""

    def __init__(self, *, gathers: bool = False) -> None:
        self.asked: list[Question] = []
        self._gathers = gathers

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        self.asked += questions
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        ids = question.prompt_ids + question.reply_ids
        start = len(question.prompt_ids)
        rows = np.array([distribution(ids[:t]) for t in range(start, len(ids))])
        order = np.argsort(-rows, axis=1)[:, : question.k]
        chosen = rows[np.arange(len(rows)), question.reply_ids]
        candidates = None
        if self._gathers and question.candidates is not None:
            candidates = tuple(
                tuple(float(row[i]) for i in named)
                for row, named in zip(rows, question.candidates, strict=True)
            )
        return Answer(
            logprobs=chosen,
            ranks=(rows > chosen[:, None]).sum(axis=1) + 1,
            top_ids=order,
            top_logprobs=np.take_along_axis(rows, order, axis=1),
            candidates=candidates,
        )


def rows_of(request: ScoreRequest) -> list[np.ndarray]:
    return [
        distribution(request.prompt_ids + request.reply_ids[:t])
        for t in range(len(request.reply_ids))
    ]


def named(request: ScoreRequest, *ranks: int) -> tuple[tuple[int, ...], ...]:
    """Ids of these ranks (1 is the likeliest) at each position of a reply."""
    orders = [np.argsort(-row) for row in rows_of(request)]
    return tuple(tuple(int(order[rank - 1]) for rank in ranks) for order in orders)


def request(*, ranks: Sequence[int] = (), seed: int = 1) -> ScoreRequest:
    rng = np.random.default_rng(seed)
    ids = tuple(map(int, rng.integers(VOCABULARY, size=9)))
    plain = ScoreRequest(prompt_ids=ids[:4], reply_ids=ids[4:])
    if not ranks:
        return plain
    return ScoreRequest(
        prompt_ids=plain.prompt_ids, reply_ids=plain.reply_ids, candidates=named(plain, *ranks)
    )


def assert_candidates_are_exact(found: ReplyScore, asked: ScoreRequest) -> None:
    assert asked.candidates is not None
    assert found.candidate_logprobs is not None
    for row, ids, values in zip(
        rows_of(asked), asked.candidates, found.candidate_logprobs, strict=True
    ):
        assert values == pytest.approx([row[i] for i in ids])


def test_a_score_holds_what_the_distribution_says() -> None:
    """Log-probabilities, ranks and the k largest, position by position."""
    asked = request()
    (found,) = score([asked], ask=Server().ask, widest=WIDE_K)
    rows = rows_of(asked)

    assert found.logprobs == pytest.approx(
        [row[i] for row, i in zip(rows, asked.reply_ids, strict=True)]
    )
    assert found.ranks == tuple(
        int((row > row[i]).sum()) + 1 for row, i in zip(rows, asked.reply_ids, strict=True)
    )
    assert found.top_ids == tuple(int(row.argmax()) for row in rows)
    for row, top in zip(rows, found.top_logprobs, strict=True):
        assert top == pytest.approx(np.sort(row)[::-1][:TOP_K])
    assert found.candidate_logprobs is None


def test_replies_come_back_in_the_order_asked() -> None:
    """Empty ones among them, which cost no question."""
    empty = ScoreRequest(prompt_ids=(1,), reply_ids=())
    asked = [request(seed=1), empty, request(seed=2), request(seed=1)]
    server = Server()
    found = score(asked, ask=server.ask, widest=WIDE_K)

    assert found[1].logprobs == ()
    assert found[0] == found[3] != found[2]
    assert len(server.asked) == 3


def test_candidates_among_the_k_largest_cost_nothing_more() -> None:
    """The usual case: an honest host names what the reference names."""
    asked = request(ranks=(1, 2, 5))
    server = Server()
    (found,) = score([asked], ask=server.ask, widest=WIDE_K)

    assert_candidates_are_exact(found, asked)
    assert len(server.asked) == 1


def test_candidates_further_down_cost_one_wider_question() -> None:
    """Only for the reply that names them."""
    far, near = request(ranks=(1, TOP_K + 1, WIDE_K), seed=1), request(ranks=(1, 2), seed=2)
    server = Server()
    found = score([near, far], ask=server.ask, widest=WIDE_K)

    assert_candidates_are_exact(found[0], near)
    assert_candidates_are_exact(found[1], far)
    assert [question.k for question in server.asked] == [TOP_K, TOP_K, WIDE_K]


@pytest.mark.parametrize("widest", [TOP_K, WIDE_K])
def test_candidates_beyond_what_may_be_asked_are_exact_too(widest: int) -> None:
    """Each is asked for as the true token after the beginning of the reply, once."""
    asked = request(ranks=(1, WIDE_K + 1, WIDE_K + 1, VOCABULARY))
    server = Server()
    (found,) = score([asked], ask=server.ask, widest=widest)
    single = [question for question in server.asked if question.k == 0]

    assert_candidates_are_exact(found, asked)
    assert len(single) == 2 * len(asked.reply_ids)
    assert max(question.k for question in server.asked) == widest


def test_an_engine_that_gives_candidates_itself_is_asked_once() -> None:
    """And told which."""
    asked = request(ranks=(1, VOCABULARY))
    server = Server(gathers=True)
    (found,) = score([asked], ask=server.ask, widest=WIDE_K)

    assert_candidates_are_exact(found, asked)
    assert [question.candidates for question in server.asked] == [asked.candidates]


def test_the_least_entropy_is_a_bound_that_is_reached() -> None:
    """Exact when nothing is left over, or when what is left is as likely as the last."""
    flat = np.full((1, 4), np.log(1 / 8))
    whole = np.log(np.array([[0.5, 0.25, 0.25]]))

    assert least_entropy(flat) == pytest.approx([np.log(8)])
    assert least_entropy(whole) == pytest.approx([1.5 * np.log(2)])
    for seed in range(20):
        row = distribution((seed,))
        top = np.sort(row)[::-1][None, :TOP_K]
        assert least_entropy(top)[0] <= -(np.exp(row) * row).sum()


def sized(k: int, tokens: int = 9) -> Question:
    return Question(prompt_ids=(1,), reply_ids=(2,) * (tokens - 1), k=k)


def test_calls_are_bounded_and_lose_nothing() -> None:
    """By values, by number, and one k a call; a question larger than a call goes alone."""
    questions = [sized(9), sized(9), sized(9), sized(0), sized(0, 500), *(sized(0),) * 5]
    found = list(chunks(questions, values=200, most=4))

    assert [question for chunk in found for question in chunk] == questions
    assert [len(chunk) for chunk in found] == [2, 1, 1, 1, 4, 1]
