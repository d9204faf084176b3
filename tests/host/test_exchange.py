"""What exchanges mean, for everything that real hosts have been seen to send."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fakes_host import chat
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.host.exchange import Problem, parse, request_of
from verifier.host.refusals import clean
from verifier.host.shape import asks_logprobs
from verifier.records import Attempt, Candidate, NotJudged, Reply, ReportedToken
from verifier.safety.sieve import REDACTED


def attempt(
    body: Any, *, status: int | None = 200, error: str | None = None, logprobs: bool = True
) -> Attempt:
    """An attempt with this body: text as it is, any other value as JSON."""
    return Attempt(
        probe_id="p1",
        number=1,
        started_at="2026-01-01T00:00:00+00:00",
        elapsed_s=0.1,
        request=json.dumps({"model": "m"} | ({"logprobs": True} if logprobs else {})),
        status=status,
        body=body if isinstance(body, str) else json.dumps(body),
        error=error,
    )


def reply(body: Any, *, logprobs: bool = True) -> Reply:
    result = parse(attempt(body, logprobs=logprobs))
    assert isinstance(result, Reply), result
    return result


def not_judged(body: Any) -> NotJudged:
    result = parse(attempt(body))
    assert isinstance(result, NotJudged), result
    return result


def problem(body: Any, *, status: int | None = 200, error: str | None = None) -> Problem:
    result = parse(attempt(body, status=status, error=error))
    assert isinstance(result, Problem), result
    return result


def changed(body: dict[str, Any], **choice: Any) -> dict[str, Any]:
    """The body with fields of its first choice set."""
    return body | {"choices": [body["choices"][0] | choice]}


def position(token: str, logprob: Any, **fields: Any) -> dict[str, Any]:
    return {"token": token, "logprob": logprob} | fields


def with_logprobs(*rows: Any) -> dict[str, Any]:
    return chat("Hi there", logprobs={"content": list(rows)})


def test_an_ordinary_reply_is_read_whole() -> None:
    """Text, finish reason, counts and log-probabilities come out as they went in."""
    body = with_logprobs(
        position(
            "Hi",
            -0.25,
            bytes=[72, 105],
            top_logprobs=[position("Hi", -0.25, bytes=[72, 105]), position("Yo", -2)],
        ),
        position(" there", 0.0, bytes=None),
    )

    assert reply(body) == Reply(
        probe_id="p1",
        text="Hi there",
        finish_reason="stop",
        prompt_tokens=7,
        completion_tokens=2,
        logprobs=(
            ReportedToken(
                chosen=Candidate(token="Hi", bytes=b"Hi", logprob=-0.25),
                top=(
                    Candidate(token="Hi", bytes=b"Hi", logprob=-0.25),
                    Candidate(token="Yo", bytes=None, logprob=-2.0),
                ),
            ),
            ReportedToken(chosen=Candidate(token=" there", bytes=None, logprob=0.0), top=()),
        ),
        logprobs_problem=None,
    )


@pytest.mark.parametrize("logprob", [-0.25, 7.0])
def test_claims_are_left_unread_when_nobody_wants_them(logprob: float) -> None:
    """All else is read as ever, and a claim that is nonsense is no problem then."""
    asked = attempt(with_logprobs(position("Hi", logprob), position(" there", -0.5)))
    whole = parse(asked)
    assert isinstance(whole, Reply)
    assert whole.logprobs or whole.logprobs_problem
    assert parse(asked, claims=False) == replace(whole, logprobs=None, logprobs_problem=None)


def test_text_is_not_stripped() -> None:
    """Leading and trailing spaces are tokens like any others."""
    assert reply(chat("\n Paris. ")).text == "\n Paris. "


@pytest.mark.parametrize("usage", [None, [], "7", {}, {"prompt_tokens": None}])
def test_missing_usage_is_unknown(usage: Any) -> None:
    """No count is None, never zero."""
    found = reply(chat() | {"usage": usage})

    assert (found.prompt_tokens, found.completion_tokens) == (None, None)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(12.0, 12), (0, 0), (-1, None), (True, None), ("12", None), (1.5, None), (10**30, None)],
)
def test_counts_are_whole_numbers_or_unknown(count: Any, expected: int | None) -> None:
    """What cannot be a count of tokens is unknown."""
    assert reply(chat() | {"usage": {"prompt_tokens": count}}).prompt_tokens == expected


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("eos", "stop"),
        ("EOS", "stop"),
        ("max_tokens", "length"),
        ("odd\x1b[31m", "odd[31m"),
        (None, None),
        (3, None),
    ],
)
def test_finish_reasons_are_brought_to_the_usual_words(sent: Any, read: str | None) -> None:
    """Together's "eos" is a stop; none is None; others stay, as one clean line."""
    assert reply(changed(chat(), finish_reason=sent)).finish_reason == read


def test_a_missing_finish_reason_is_none() -> None:
    """A host that sends no finish reason still gave an answer."""
    body = chat()
    del body["choices"][0]["finish_reason"]

    assert reply(body).finish_reason is None


def test_content_parts_are_joined() -> None:
    """A list of text parts, as some hosts send, is one text."""
    parts = [{"type": "text", "text": "Pa"}, {"text": "ris"}, "."]

    assert reply(chat(parts)).text == "Paris."


def test_unpaired_surrogates_become_replacement_signs() -> None:
    """JSON can carry half a character, tokenizers cannot; whole pairs stay whole."""
    body = json.dumps(chat("TEXT")).replace("TEXT", "a\\ud800b\\ud83d\\ude00")

    assert reply(body).text == "a\ufffdb😀"


@pytest.mark.parametrize("content", [None, "", " \n\t", [], [{"type": "text", "text": ""}]])
def test_empty_content_is_not_judged(content: Any) -> None:
    """No text says nothing about the weights."""
    found = not_judged(chat(content))

    assert found == NotJudged(
        probe_id="p1", reason="empty content", prompt_tokens=7, completion_tokens=2,
        counts_prompt=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
        {"reasoning": "Hm", "reasoning_details": [{"type": "reasoning.summary", "summary": "Hm"}]},
        {"reasoning": "Hm", "reasoning_content": "Another"},
        {"reasoning": {"text": "Hm"}},
        {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Paris."}]},
    ],
)
def test_a_thought_that_is_not_shown_as_it_was_is_hidden(message: dict[str, Any]) -> None:
    """A summary is no text of the model's, and what is encrypted nobody can read."""
    body = chat()
    body["choices"][0]["message"] |= message

    assert not_judged(body).reason.startswith("not testable by text: reasoning hidden")


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning": "Hm.\n"},
        {"reasoning_content": "Hm.\n"},
        {"thinking": "Hm.\n"},
        {"reasoning": "Hm.\n", "reasoning_content": "Hm.\n"},
        {"reasoning": "Hm.\n", "reasoning_details": [{"type": "reasoning.text", "text": "Hm.\n"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Hm.\n"}]},
                {"type": "text", "text": "Paris."},
            ]
        },
    ],
)
def test_a_thought_is_kept_as_it_is_shown(message: dict[str, Any]) -> None:
    """White space too: it was generated."""
    body = chat()
    body["choices"][0]["message"] |= message
    found = reply(body)

    assert (found.thought, found.text) == ("Hm.\n", "Paris.")


def test_a_thought_that_the_limit_cut_off_is_a_reply() -> None:
    """Its beginning can be judged; an answer never came."""
    found = reply(changed(chat(None, reasoning="Let me"), finish_reason="length"))

    assert (found.thought, found.text, found.finish_reason) == ("Let me", "", "length")


def test_more_tokens_than_a_text_has_bytes_are_hidden_reasoning() -> None:
    """No tokenizer makes more; a few may be control tokens."""
    few = chat("Paris.") | {"usage": {"completion_tokens": 22}}
    many = chat("Paris.") | {"usage": {"completion_tokens": 23}}

    assert reply(few).text == "Paris."
    assert "reasoning hidden: 23 tokens counted for 6 bytes" in not_judged(many).reason


@pytest.mark.parametrize(
    ("finish", "provider", "counts"),
    [("stop", None, True), ("content_filter", None, False), ("stop", "Elsewhere", False)],
)
def test_the_count_of_an_answer_that_is_not_judged_may_speak_of_the_prompt(
    finish: str, provider: str | None, counts: bool
) -> None:
    """Not where a filter may have come first, or another host answered."""
    body = changed(chat(""), finish_reason=finish) | {"provider": provider}
    asked = {"model": "m", "provider": {"only": ["here"]}} if provider else {"model": "m"}

    found = parse(replace(attempt(body), request=json.dumps(asked)))

    assert isinstance(found, NotJudged)
    assert found.counts_prompt is counts


@pytest.mark.parametrize("empty", [None, "", "  ", [], {}])
def test_empty_reasoning_fields_do_not_matter(empty: Any) -> None:
    """Hosts send the field for models that do not reason."""
    assert reply(chat("Paris.", reasoning=empty, reasoning_content=empty)).text == "Paris."


def test_hidden_reasoning_is_not_judged() -> None:
    """Tokens that are billed and not shown cannot be scored."""
    usage = {"completion_tokens": 90, "completion_tokens_details": {"reasoning_tokens": 80}}

    assert (
        "not testable by text: reasoning hidden, 80 tokens"
        in not_judged(chat() | {"usage": usage}).reason
    )


def test_a_refusal_is_not_judged() -> None:
    """A refusal is an answer, in the host's own field, that says nothing about the weights."""
    assert not_judged(chat(None, refusal="I can't\x07.")).reason == "refusal: I can't."


def test_a_filtered_answer_is_not_judged() -> None:
    """A content filter may have cut or replaced the text."""
    assert "content filter" in not_judged(changed(chat(), finish_reason="content_filter")).reason


def test_a_reply_in_which_a_key_was_struck_out_is_not_judged() -> None:
    """The text is not what the host wrote any more."""
    assert "API key" in not_judged(chat(f"Your key is {REDACTED}.")).reason


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "not JSON: it is empty"),
        ("upstream error\x1b[2J", "not JSON: upstream error[2J"),
        ("<!DOCTYPE html><html><title>Wait…</title>", "a web page titled 'Wait…'"),
        ("[" * 100_000, "not JSON"),
        ("9" * 10_000, "not JSON"),
        ("[]", "a list, expected an object"),
        ("null", "null, expected an object"),
        ("NaN", "a number, expected an object"),
        ('"hello"', "the text 'hello', expected an object"),
        ("{}", "no choices"),
        ({"choices": []}, "no choices"),
        ({"choices": None}, "no choices"),
        ({"choices": ["x"]}, "no choices"),
        ({"message": "warming up"}, "no choices in the body. warming up"),
        ({"choices": [{}]}, "message is null"),
        ({"choices": [{"message": "hello"}]}, "message is the text 'hello'"),
        (chat(5), "content is a number"),
        (chat({"text": "x"}), "content is an object"),
        (chat([{"type": "image_url", "image_url": "x"}]), "content is a list"),
    ],
)
def test_a_body_that_is_no_answer_is_a_problem(body: Any, said: str) -> None:
    """A success that brings no answer is a broken transfer: a reason, and another try."""
    found = problem(body)

    assert said in found.reason
    assert (found.status, found.retryable) == (200, True)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_passing_troubles_are_retryable(status: int) -> None:
    """Overload, timeouts and gateways pass; only 429 and 529 say "too much"."""
    found = problem("busy", status=status)

    assert found.retryable
    assert found.rate_limited == (status in (429, 529))
    assert found.reason == f"HTTP {status}: busy"


@pytest.mark.parametrize("status", [301, 400, 401, 402, 403, 404, 413, 422, 501])
def test_refusals_are_not_retryable(status: int) -> None:
    """Asking the same again would bring the same."""
    assert not problem("no", status=status).retryable


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "too long", "code": None}},
        {"error": {"message": "too long", "code": 400, "metadata": {"raw": "x"}}},
        {"error": "too long"},
        {"detail": "too long"},
        {"detail": [{"loc": ["body"], "msg": "too long"}]},
        {"code": 20012, "message": "too long"},
        {"code": "X", "reason": "too long"},
        "too long",
        " too\r\nlong ",
    ],
)
def test_the_hosts_own_words_are_quoted(body: Any) -> None:
    """Every usual shape of an error body gives up its message."""
    assert problem(body, status=400).reason == "HTTP 400: too long"


def test_reasons_are_short_clean_lines() -> None:
    """A host cannot flood a report or steer a terminal through an error text."""
    reason = problem({"error": "\x1b]0;x\x07\u202e" + "long " * 1000}, status=400).reason

    assert len(reason) == 200
    assert reason.isprintable()


def test_no_response_is_retryable() -> None:
    """A transport error has no status, and may pass."""
    found = problem("", status=None, error="ConnectError: Connection refused")

    assert found == Problem(status=None, reason="ConnectError: Connection refused", retryable=True)


def test_a_redirect_or_oversize_is_final() -> None:
    """A response that was not read to its end is a failure that asking again cannot mend."""
    found = problem("{", status=302, error="redirect to h, not followed")

    assert (found.reason, found.retryable) == ("redirect to h, not followed", False)


@pytest.mark.parametrize(
    ("error", "retryable", "limited"),
    [
        ({"code": 429, "message": "slow down"}, True, True),
        ({"code": "502", "message": "upstream"}, True, False),
        ({"code": "rate_limit_exceeded"}, True, True),
        ({"type": "overloaded_error", "message": "x"}, True, False),
        ({"code": 400, "type": "server_error", "message": "bad"}, False, False),
        ({"message": "bad"}, False, False),
        ("bad", False, False),
        ([1], False, False),
    ],
)
@pytest.mark.parametrize("inside", ["body", "choice"])
def test_an_error_object_beats_the_status(
    error: Any, retryable: bool, limited: bool, inside: str
) -> None:
    """Routers send errors with status 200, at the top or in the choice."""
    body = chat() | {"error": error} if inside == "body" else changed(chat(), error=error)

    found = problem(body)

    assert (found.status, found.retryable, found.rate_limited) == (200, retryable, limited)


@pytest.mark.parametrize("nothing", [None, {}, "", []])
def test_an_empty_error_is_none(nothing: Any) -> None:
    """Hosts send `error: null` beside good answers."""
    assert reply(chat() | {"error": nothing}).text == "Paris."


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, {"message": "The model `x` does not exist."}),
        (404, {"message": "Nope", "code": "model_not_found"}),
        (400, {"message": "x is not a valid model ID"}),
        (400, {"message": "Model Not Exist"}),
        (400, {"message": "Invalid model: x"}),
        (404, {"message": "Model not found, inaccessible, and/or not deployed"}),
        (200, {"message": "No such model", "code": 404}),
    ],
)
def test_an_unknown_model_is_recognized(status: int, error: dict[str, Any]) -> None:
    """Hosts say it in many words, and not always with 404."""
    assert problem({"error": error}, status=status).unknown_model


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "logprobs is not supported by this model"),
        (400, "This model's maximum context length is 4096 tokens"),
        (503, "The model `x` was not found on any live worker"),
        (422, "invalid model output"),
    ],
)
def test_other_words_about_models_are_not_an_unknown_model(status: int, message: str) -> None:
    """Only a lasting absence is the operator's mistake."""
    assert not problem({"error": {"message": message}}, status=status).unknown_model


@pytest.mark.parametrize(
    ("logprobs", "said"),
    [
        (None, "returned none"),
        ({}, "no positions"),
        ({"content": None}, "no positions"),
        ({"content": []}, "no positions"),
        ([], "a list, expected an object"),
        ({"content": [None, None]}, "position 1 is null"),
        ({"content": [position("a", -1)] * 9}, "9 positions for 2 completion tokens"),
        ({"content": [position("a", -1), {"token": "b"}]}, "position 2: logprob is null"),
        ({"content": [position("a", "-0.5")] * 2}, "logprob is the text '-0.5'"),
        ({"content": [position("a", True)] * 2}, "logprob is a boolean"),
        ({"content": [position("a", float("nan"))] * 2}, "nan is not"),
        ({"content": [position("a", float("-inf"))] * 2}, "-inf is not"),
        ({"content": [position("a", float("inf"))] * 2}, "inf is not"),
        ({"content": [position("a", -3.4e38)] * 2}, "-3.4e+38 is not"),
        ({"content": [position("a", -9999.0)] * 2}, "-9999 is not"),
        ({"content": [position("a", 0.7), position("b", -0.5)]}, "0.7 is not"),
        ({"content": [position("a", 0.7)] * 2}, "the numbers are probabilities"),
        ({"content": [position("a", 7)] * 2}, "7 is not"),
        ({"content": [position("a", -(10**400))] * 2}, "too large"),
        ({"content": [position(None, -1)] * 2}, "token is null"),
        (
            {"content": [position("a", -1, top_logprobs=[position("b", float("nan"))])] * 2},
            "an alternative: nan",
        ),
        ({"tokens": ["a", "b"], "token_logprobs": [-1.0]}, "position 2: logprob is null"),
    ],
)
def test_unusable_logprobs_are_none_with_a_reason(logprobs: Any, said: str) -> None:
    """The text still counts; the log-probabilities do not, and the reason says why."""
    found = reply(chat("Hi there", logprobs=logprobs))

    assert (found.text, found.logprobs) == ("Hi there", None)
    assert found.logprobs_problem is not None
    assert said in found.logprobs_problem


@pytest.mark.parametrize("end", ["", "<|im_end|>"])
@pytest.mark.parametrize("low", [-9999.0, -3.4e38, float("-inf")])
def test_an_end_without_bytes_or_number_costs_its_position_alone(end: str, low: float) -> None:
    """vLLM has written one so; the tokens of the text keep theirs."""
    bare = position(end, low, bytes=[], top_logprobs=[])
    rows = [position("Hi", -0.25, bytes=[72, 105]), position(" there", -0.5)]

    found = reply(with_logprobs(*rows, bare))
    assert found.logprobs is not None
    assert [row.chosen.token for row in found.logprobs] == ["Hi", " there"]
    inside = reply(with_logprobs(rows[0], bare, rows[1]))
    assert (inside.text, inside.logprobs) == ("Hi there", None)


@pytest.mark.parametrize("usage", [{"prompt_tokens": 7, "completion_tokens": 2}])
def test_counts_in_the_choice_are_read(usage: dict[str, int]) -> None:
    """As in a stream."""
    found = reply(changed(chat() | {"usage": None}, usage=usage))

    assert (found.prompt_tokens, found.completion_tokens) == (7, 2)


@pytest.mark.parametrize("named", ["m", " m\x1b ", "m" * 500, None, "", 7, {"a": 1}])
def test_the_model_that_a_reply_names_is_kept_as_one_short_line(named: Any) -> None:
    """Whatever stands there."""
    found = reply(chat() | {"model": named}).named

    assert found == (("m" * 119 + "…" if len(named) > 9 else "m") if "m" in str(named) else None)


def test_logprobs_that_were_not_asked_for_are_no_problem() -> None:
    """Without the question there is no answer, and nothing is wrong with that."""
    found = reply(with_logprobs(position("a", float("nan"))), logprobs=False)

    assert (found.logprobs, found.logprobs_problem) == (None, None)


@pytest.mark.parametrize("raw", [None, [], [256], [-1], [1.0], [True], "aGk=", [104, 105]])
def test_token_bytes_are_bytes_or_unknown(raw: Any) -> None:
    """Only a list of numbers from 0 to 255 is bytes."""
    found = reply(with_logprobs(position("hi", -1, bytes=raw), position("hi", -1)))

    assert found.logprobs is not None
    assert found.logprobs[0].chosen.bytes == {"[]": b"", "[104, 105]": b"hi"}.get(str(raw))
    assert found.logprobs[1].chosen.bytes is None


def test_a_rounded_up_zero_is_a_logprob() -> None:
    """Rounding on the way may put a certain token a little above zero."""
    found = reply(with_logprobs(position("a", 4e-4), position("b", -0.0)))

    assert found.logprobs is not None
    assert found.logprobs[0].chosen.logprob == 4e-4


@pytest.mark.parametrize("low", [-9999.0, float("-inf"), -3.4e38])
def test_alternatives_at_minus_infinity_are_left_out(low: float) -> None:
    """Hosts fill up the list of alternatives so; it says nothing about the chosen token."""
    top = [position("a", -0.1), position("b", low)]
    found = reply(with_logprobs(position("a", -0.1, top_logprobs=top), position("b", -1)))

    assert found.logprobs is not None
    assert [other.token for other in found.logprobs[0].top] == ["a"]


@pytest.mark.parametrize(
    "top", [{"a": -0.1, "b": -2.5}, [position("a", -0.1), position("b", -2.5)]]
)
def test_alternatives_come_as_a_list_or_an_object(top: Any) -> None:
    """Some hosts key the alternatives by token."""
    found = reply(with_logprobs(position("a", -0.1, top_logprobs=top), position("b", -1)))

    assert found.logprobs is not None
    assert [(o.token, o.logprob) for o in found.logprobs[0].top] == [("a", -0.1), ("b", -2.5)]


def test_the_older_shape_of_logprobs_is_read() -> None:
    """Parallel lists, as Together's own format has them."""
    older = {
        "tokens": ["Hi", " there"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"Hi": -0.5}, None],
    }
    found = reply(chat("Hi there", logprobs=older))

    assert found.logprobs is not None
    assert [token.chosen.logprob for token in found.logprobs] == [-0.5, -0.25]
    assert [len(token.top) for token in found.logprobs] == [1, 0]


@pytest.mark.parametrize("count", [1, 3])
def test_one_position_more_or_less_is_accepted(count: int) -> None:
    """The end-of-turn token is counted by some hosts and listed by others."""
    assert reply(with_logprobs(*[position("a", -1)] * count)).logprobs is not None


@pytest.mark.parametrize(
    ("request_body", "expected"),
    [
        ('{"logprobs":true}', True),
        ('{"logprobs":5}', True),
        ('{"include":["message.output_text.logprobs"]}', True),
        ('{"logprobs":false}', False),
        ('{"logprobs":"yes"}', False),
        ("{}", False),
        ("x", False),
    ],
)
def test_whether_logprobs_were_asked_is_read_off_the_request(
    request_body: str, expected: bool
) -> None:
    """What a resumed run knows of a request is its body."""
    kept = attempt("{}")
    changed_request = Attempt(
        **{name: getattr(kept, name) for name in kept.__slots__} | {"request": request_body}
    )

    assert asks_logprobs(request_of(changed_request)) is expected


def test_clean_keeps_letters_of_every_script() -> None:
    """Only signs that steer a terminal or a page go; accents, emoji and CJK stay."""
    assert clean("né\x00 \x9b31m 東京\u200b 😀\n\ttail") == "né 31m 東京 😀 tail"


def _values() -> st.SearchStrategy[Any]:
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(), max_size=8)
        | st.sampled_from([10**400, -3.4e38, "stop", "text", "content_filter", 429, "429"])
    )
    names = st.sampled_from(
        ["error", "choices", "message", "content", "code", "text", "type", "msg", "token"]
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    )


_STATUSES = st.sampled_from([200, 204, 302, 400, 401, 404, 429, 503, None])


@settings(max_examples=300, deadline=None)
@given(_values(), _STATUSES)
def test_no_json_value_makes_parsing_raise(value: Any, status: int | None) -> None:
    """Whatever value a body holds, the result is a value."""
    assert isinstance(parse(attempt(value, status=status)), Reply | NotJudged | Problem)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), _STATUSES)
def test_no_bytes_make_parsing_raise(raw: bytes, status: int | None) -> None:
    """Whatever bytes a body holds, the result is a value."""
    body = raw.decode("utf-8", "replace")

    assert isinstance(parse(attempt(body, status=status)), Reply | NotJudged | Problem)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, from its root."""
    steps = value.items() if isinstance(value, dict) else ()
    steps = enumerate(value) if isinstance(value, list) else steps
    return [path, *(place for key, inner in steps for place in _paths(inner, (*path, key)))]


_WHOLE = with_logprobs(
    position("Hi", -0.25, bytes=[72, 105], top_logprobs=[position("Hi", -0.25, bytes=[72])]),
    position(" there", -1.5, bytes=None, top_logprobs=[]),
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(_paths(_WHOLE)), _values())
def test_no_spoilt_place_makes_parsing_raise(path: tuple[Any, ...], value: Any) -> None:
    """A good answer with any one place replaced by anything gives a sound result."""
    body = json.loads(json.dumps(_WHOLE))
    if path:
        holder = body
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value
    else:
        body = value

    result = parse(attempt(body))

    assert isinstance(result, Reply | NotJudged | Problem)
    if isinstance(result, Reply):
        assert result.text.strip()
        result.text.encode()
        assert (result.logprobs is None) == (result.logprobs_problem is not None)
        for token in result.logprobs or ():
            for candidate in (token.chosen, *token.top):
                assert -1000 < candidate.logprob <= 1e-3
                candidate.token.encode()
    else:
        assert result.reason.isprintable()
        assert len(result.reason) <= 200


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([5, 6], (5, 6)),
        ([5, 6, 7], (5, 6, 7)),  # the end counted, or not
        ([5, 6, 7, 8], None),
        ([5, -1], None),
        ([5, "6"], None),
        ([5, True], None),
        ([5, 2**40], None),
        ("56", None),
        ([], None),
    ],
)
def test_ids_of_a_reply_are_read_where_they_are_ids(
    ids: Any, expected: tuple[int, ...] | None
) -> None:
    """And as many as the host counts."""
    assert reply(changed(chat(), token_ids=ids)).token_ids == expected
