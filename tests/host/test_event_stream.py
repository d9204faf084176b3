"""Event streams of chat completions, put together as hosts really send them."""

from __future__ import annotations

import json
from itertools import takewhile
from typing import Any

import pytest

from verifier.host.event_stream import Ending, assemble_chat
from verifier.host.exchange import Problem, parse
from verifier.host.pieces import BrokenStream
from verifier.records import Attempt, NotJudged, Reply

WORDS = ("The ", "cat ", "sat ", "down.")


def chunk(delta: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """One chunk; `usage` goes beside the choice, all else into it."""
    usage = fields.pop("usage", None)
    choice = {"index": 0, "delta": delta or {}, "finish_reason": None} | fields
    head = {"id": "x", "model": "m", "object": "chat.completion.chunk", "choices": [choice]}
    return head if usage is None else head | {"usage": usage}


def tokens(count: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": count}


def position(word: str) -> dict[str, Any]:
    own = -0.5 - len(word) / 8 - ord(word[0]) / 64
    return {"token": word, "logprob": own, "bytes": list(word.encode()), "top_logprobs": []}


def chunks(*, running: bool = False, logprobs: bool = False) -> list[dict[str, Any]]:
    """An ordinary stream: role, words, end, usage."""
    found = [chunk({"role": "assistant", "content": ""})]
    for n, word in enumerate(WORDS, 1):
        fields: dict[str, Any] = {"usage": tokens(n)} if running else {}
        if logprobs:
            fields["logprobs"] = {"content": [position(word)]}
        found.append(chunk({"content": word}, **fields))
    found.append(chunk(finish_reason="stop"))
    return [*found, {"id": "x", "choices": [], "usage": tokens(4)}]


def stream(*events: Any, end: str = "data: [DONE]\n\n") -> str:
    """The events as they go over the wire; text goes as it is."""
    lines = (e if isinstance(e, str) else f"data: {json.dumps(e)}\n\n" for e in events)
    return "".join(lines) + end


def attempt(body: str, *, kind: str = "text/event-stream", logprobs: bool = False) -> Attempt:
    request = {"stream": True} | ({"logprobs": True} if logprobs else {})
    return Attempt(
        probe_id="p1", number=1, started_at="2026-01-01T00:00:00+00:00", elapsed_s=0.1,
        request=json.dumps(request), status=200, body=body, error=None,
        headers={"content-type": kind} if kind else {},
    )  # fmt: skip


def reply(body: str, *, kind: str = "text/event-stream", logprobs: bool = False) -> Reply:
    found = parse(attempt(body, kind=kind, logprobs=logprobs))
    assert isinstance(found, Reply), found
    return found


def problem(body: str) -> Problem:
    found = parse(attempt(body))
    assert isinstance(found, Problem), found
    return found


@pytest.mark.parametrize("running", [False, True])
def test_a_stream_reads_like_the_whole_reply(running: bool) -> None:
    """Text, end, counts and log-probabilities, with or without a count on every chunk."""
    found = reply(stream(*chunks(running=running, logprobs=True)), logprobs=True)

    assert found.text == "The cat sat down."
    assert (found.finish_reason, found.prompt_tokens, found.completion_tokens) == ("stop", 7, 4)
    assert found.logprobs is not None
    assert [row.chosen.token for row in found.logprobs] == list(WORDS)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_comments_keep_alives_and_line_ends_of_every_kind_are_borne(newline: str) -> None:
    """OpenRouter's comments, empty data, event names, `data:` without a space."""
    first, *rest = chunks()
    body = stream(
        ": OPENROUTER PROCESSING\n\n", first, ":\n\n", "data:\n\n", "retry: 100\n\n",
        f"event: message\nid: 7\ndata:{json.dumps(rest[0])}\n\n", *rest[1:],
    )  # fmt: skip

    assert reply(body.replace("\n", newline)).text == "The cat sat down."


@pytest.mark.parametrize(
    ("body", "finish", "count"),
    [
        (stream(*chunks(), end=""), "stop", 4),
        (stream(*chunks()[:-1]), "stop", None),
        (stream(*chunks()[:-2]), None, None),
        (stream(*chunks()[:-2], chunk(finish_reason="length"), end=""), "length", None),
    ],
    ids=["no [DONE]", "no usage", "no finish", "finish alone"],
)
def test_a_missing_last_part_is_borne(body: str, finish: str | None, count: int | None) -> None:
    """One sign of the end is enough; what was not said is unknown."""
    found = reply(body)

    assert (found.text, found.finish_reason) == ("The cat sat down.", finish)
    assert found.completion_tokens == count


def test_a_stream_without_any_end_is_cut_and_asked_for_again() -> None:
    """A clean close in the middle is no whole answer."""
    found = problem(stream(*chunks()[:3], end=""))

    assert (found.retryable, found.reason) == (True, "the stream ends without its last event")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda e: [e[0], e[2], e[1], *e[3:]], "goes back"),
        (lambda e: [*e[:4], e[5], e[4], e[6]], "after the end"),
    ],
    ids=["swapped", "after the end"],
)
def test_moved_events_are_found_by_a_running_count(spoil: Any, said: str) -> None:
    """The counts on the chunks number them."""
    found = problem(stream(*spoil(chunks(running=True))))

    assert found.retryable
    assert said in found.reason


@pytest.mark.parametrize("how", [{"running": True}, {"logprobs": True}], ids=str)
def test_a_repeated_event_is_read_once(how: dict[str, bool]) -> None:
    """A running count numbers it; no two positions have the same numbers, one for each token."""
    events = chunks(**how)
    found = reply(stream(*events[:3], events[2], *events[3:]), logprobs=bool(how.get("logprobs")))

    assert (found.text, found.completion_tokens) == ("The cat sat down.", 4)


def test_the_same_numbers_may_be_those_of_a_text_in_a_circle() -> None:
    """As many positions as tokens, the end's among them or not: it is set aside."""
    events = chunks(logprobs=True)
    events = [*events[:3], events[2], *events[3:-1], events[-1] | {"usage": tokens(5)}]
    found = parse(attempt(stream(*events), logprobs=True))

    assert isinstance(found, NotJudged)
    assert (found.prompt_tokens, found.counts_prompt) == (7, True)
    events[-2]["choices"][0]["finish_reason"] = "length"
    assert reply(stream(*events), logprobs=True).text == "The cat cat sat down."


def test_more_pieces_than_tokens_do_not_add_up() -> None:
    """Half of the stream came twice, and nothing numbers the events."""
    events = chunks()

    with pytest.raises(BrokenStream, match="8 pieces for 4 tokens"):
        assemble_chat(stream(*events[:5], *events[1:5], *events[5:]))


def test_the_same_word_twice_is_no_repetition() -> None:
    """Without a number or a log-probability, equal chunks may be equal tokens."""
    events = [chunk({"content": "ha"})] * 3

    assert reply(stream(*events, chunk(finish_reason="stop"))).text == "hahaha"


def test_the_final_count_on_every_chunk_is_borne() -> None:
    """Some hosts repeat one usage on each chunk: it numbers nothing."""
    events = [chunk({"content": word}, usage=tokens(4)) for word in ("ha", "ha", "ha", "ha")]

    assert reply(stream(*events, chunk(finish_reason="stop"))).completion_tokens == 4


def test_usage_inside_the_choice_counts() -> None:
    """Moonshot puts it there."""
    last = chunk(finish_reason="stop")
    last["choices"][0]["usage"] = tokens(4)

    assert reply(stream(*chunks()[:-2], last)).completion_tokens == 4


@pytest.mark.parametrize(
    ("event", "retryable"),
    [
        ({"error": {"message": "overloaded", "code": 529}}, True),
        ({"error": {"message": "no", "code": 400}}, False),
        ({"choices": [{"error": {"code": 502, "message": "upstream"}}]}, True),
        ('event: error\ndata: {"message": "Rate limit", "type": "rate_limit"}\n\n', True),
    ],
)
def test_an_error_inside_the_stream_is_the_answer(event: Any, retryable: bool) -> None:
    """With HTTP 200 and after some text; it is tried again where its code says so."""
    found = problem(stream(*chunks()[:3], event))

    assert found.retryable == retryable
    assert "error object" in found.reason


@pytest.mark.parametrize("junk", ["data: {not json}\n\n", "data: 17\n\n", 'data: "x"\n\n'])
def test_an_event_that_is_no_object_breaks_the_stream(junk: str) -> None:
    """It may have been text; the answer is asked for again."""
    assert problem(stream(chunks()[0], junk, *chunks()[1:])).retryable


def test_shown_reasoning_is_put_together_too() -> None:
    """Apart from the answer."""
    thought = chunk({"reasoning_content": "Hm"})
    found = parse(attempt(stream(chunks()[0], thought, *chunks()[1:])))

    assert isinstance(found, Reply)
    assert (found.thought, found.text) == ("Hm", "The cat sat down.")


def test_a_stream_asked_for_may_come_as_one_object() -> None:
    """The content type decides; without one, the first sign of the body."""
    body = json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]})

    assert reply(body, kind="application/json").text == "Hi"
    assert reply(body, kind="").text == "Hi"
    assert reply(stream(*chunks()), kind="").text == "The cat sat down."


# -- what other clients take -------------------------------------------------------------------


def read_as_others_do(body: bytes) -> list[str]:
    """What the `openai` client makes of the bytes: the text of each chunk."""
    from openai._streaming import SSEDecoder

    events = SSEDecoder().iter_bytes(iter([body]))
    until_end = takewhile(lambda event: not event.data.startswith("[DONE]"), events)
    told = [json.loads(event.data) for event in until_end if event.data]
    return [c["delta"].get("content") or "" for e in told for c in e["choices"]]


ODD = {
    "plain": lambda body: body,
    "a byte order mark": lambda body: "\ufeff" + body,
    "CRLF": lambda body: body.replace("\n", "\r\n"),
    "CR": lambda body: body.replace("\n", "\r"),
    "comments between": lambda body: body.replace("\n\n", "\n\n: keep-alive\n\n"),
    "comments inside": lambda body: body.replace("data:", ": hm\ndata:"),
    "no space": lambda body: body.replace("data: ", "data:"),
    "names": lambda body: body.replace("data: ", "event: message\nid: 7\nretry: 10\ndata: "),
    "empty data": lambda body: body.replace("\n\n", "\n\ndata:\n\n"),
    "after the end": lambda body: body + ": keep-alive\n\n" * 3,
    "text after the end": lambda body: body + stream(chunk({"content": "No."})),
    "words after DONE": lambda body: body.replace("[DONE]", "[DONE] bye"),
}


@pytest.mark.parametrize("how", ODD)
def test_odd_streams_are_read_as_other_clients_read_them(how: str) -> None:
    """The client of OpenAI is the measure; only a mark in front costs it the first event."""
    body = ODD[how](stream(chunk({"content": "Là: "}), *chunks()[1:]))

    assert reply(body).text == "Là: The cat sat down."
    if how != "a byte order mark":
        assert "".join(read_as_others_do(body.encode())) == "Là: The cat sat down."


@pytest.mark.parametrize("left_out", ["\n", "\n\n", "\r\n\r\n"])
def test_a_last_line_without_its_end_is_read(left_out: str) -> None:
    """Clients that read line by line do."""
    body = stream(*chunks()[:-2]).replace("\n", "\r\n" if "\r" in left_out else "\n")

    assert body.endswith(left_out)
    assert reply(body.removesuffix(left_out)).text == "The cat sat down."


def test_a_stream_cut_inside_its_last_event_is_asked_for_again() -> None:
    """What is missing of it is not made up."""
    body = stream(*chunks()[:-1], end="")

    assert problem(body[: body.rindex('"finish_reason"') + 20]).retryable


def test_bytes_that_are_no_character_are_not_read_as_one() -> None:
    """What follows them is not judged, as in an answer of one piece."""
    body = stream(*chunks()).replace("cat ", "c\udcff\udcfet ")

    assert reply(body).text == "The c\ufffd\ufffdt sat down."


@pytest.mark.parametrize("kind", ["", "text/plain", "application/json", "text/event-stream"])
def test_the_body_tells_what_it_is(kind: str) -> None:
    """Some hosts name another content type, or none, or send one object as events."""
    whole = json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]})

    assert reply(stream(*chunks()), kind=kind).text == "The cat sat down."
    assert reply(": OK\n\n" + stream(*chunks()), kind=kind).text == "The cat sat down."
    for body in (whole, "\ufeff" + whole, "\n " + whole):
        assert reply(body, kind=kind).text == "Hi"


ENDS = [
    b"data: [DONE]",
    b"data:[DONE]\n\n",
    b"data: [DONE] \r\n\r\n",
    b"event: message_stop\ndata: {}\n\n",
    b"event:response.completed\r\ndata: {}\r\n\r\n",
    b"event: response.incomplete\rdata: {}\r\r",
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("step", [1, 3, 7, 10_000])
@pytest.mark.parametrize("before", [b"", b'data: {"a": "\xc3\xa9"}\n\n', b"\xef\xbb\xbf"])
def test_the_last_event_is_seen_when_it_is_whole(before: bytes, end: bytes, step: int) -> None:
    """However it is cut, and not sooner."""
    whole, ending = before + end, Ending()
    for size in range(step, len(whole) + step, step):
        came = ending.has_come(bytearray(whole[:size]))
        least = len(whole.rstrip()) - (0 if b"{}" in end else 9)
        assert not came or min(size, len(whole)) > least
        if came:
            return
    pytest.fail("the end was not seen")


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"content": "data: [DONE]"}\n\n',
        b'{"content":\n "data: [DONE]"}',
        b": data: [DONE]\n\n",
        b"event: message_stop\n",
        b"event: message_stopped\ndata: {}\n\n",
        b'\n\nevent: response.completed\ndata: {"response": {"output": [',
    ],
)
def test_no_other_event_is_the_last(body: bytes) -> None:
    """Words of a reply least of all."""
    ending = Ending()

    assert not any(ending.has_come(bytearray(body[:size])) for size in range(len(body) + 1))


# -- what some hosts write besides -----------------------------------------------------------------


@pytest.mark.parametrize("word", ["null", "None", "NONE", "", " ", "undefined"])
def test_an_end_that_is_none_is_none(word: str) -> None:
    """A text on every chunk until the last one; and where no other comes, [DONE] is the end."""
    *events, last, tail = chunks()
    for event in events:
        event["choices"][0]["finish_reason"] = word
    last["choices"][0]["finish_reason"] = word

    assert reply(stream(*events, chunk(finish_reason="stop"), tail)).finish_reason == "stop"
    assert reply(stream(*events, last, tail)).finish_reason is None
    assert not isinstance(parse(attempt(stream(*events, last, tail, end=""))), Reply)


def test_an_end_on_every_chunk_ends_nothing_before_the_last() -> None:
    """Nor does one behind a thought."""
    thought = chunk({"reasoning_content": "Hm"}, finish_reason="stop")
    events = [chunk({"content": word}, finish_reason="stop") for word in WORDS]

    assert reply(stream(*events)).text == "The cat sat down."
    found = reply(stream(thought, *chunks()))
    assert (found.thought, found.text) == ("Hm", "The cat sat down.")


@pytest.mark.parametrize("odd", [[], "none", 0, {"content": None}, {"content": "x"}])
def test_claims_of_another_form_cost_the_claims_alone(odd: Any) -> None:
    """On one chunk or on all."""
    events = chunks(logprobs=True)
    events[0]["choices"][0]["logprobs"] = odd

    found = reply(stream(*events), logprobs=True)
    assert found.logprobs is not None
    for event in events[:-1]:
        event["choices"][0]["logprobs"] = odd
    found = reply(stream(*events), logprobs=True)
    assert (found.text, found.logprobs) == ("The cat sat down.", None)


@pytest.mark.parametrize("where", ["first", "last", "both"])
def test_counts_come_in_one_event_or_in_two(where: str) -> None:
    """Of the prompt first and of the reply last, or zeros in either; what is told stays."""
    zero = {"prompt_tokens": 0, "completion_tokens": 0}
    first = {"first": tokens(4), "last": zero, "both": {"prompt_tokens": 7}}[where]
    last = {"first": zero, "last": tokens(4), "both": {"completion_tokens": 4}}[where]
    events = [*chunks()[:-1], {"choices": [], "usage": last}]
    events[0]["usage"] = first

    found = reply(stream(*events))
    assert (found.prompt_tokens, found.completion_tokens) == (7, 4)


def test_what_is_not_known_for_certain_is_set_aside_and_says_why() -> None:
    """Its count of the prompt speaks all the same."""
    said = [chunk({"content": "1"}), chunk({"content": "12"}), chunk(finish_reason="stop")]
    found = parse(attempt(stream(*said, {"choices": [], "usage": tokens(3)})))

    assert isinstance(found, NotJudged)
    assert found.reason.startswith("its pieces can be read as more than one text")
    assert (found.prompt_tokens, found.completion_tokens, found.named) == (7, 3, "m")
    assert found.counts_prompt


def test_a_call_is_no_text_that_may_come_twice() -> None:
    """Its arguments come in pieces, alike or not."""
    piece = {"tool_calls": [{"index": 0, "function": {"name": "", "arguments": "1"}}]}
    named = {"tool_calls": [{"index": 0, "function": {"name": "add", "arguments": ""}}]}
    events = [chunk(named), chunk(piece), chunk(piece), chunk(finish_reason="tool_calls")]
    found = parse(attempt(stream(*events)))

    assert isinstance(found, NotJudged)
    assert found.reason.startswith("calls the tool 'add'")


def test_the_model_is_the_last_that_is_named() -> None:
    """Some events leave it out, or empty."""
    first = {"id": "", "model": "", "choices": []}
    last = {"id": "x", "model": "", "choices": [], "usage": tokens(4)}

    assert reply(stream(first, *chunks()[:-1], last)).named == "m"
    assert reply(stream(*chunks(), {"model": "other", "choices": []})).named == "other"


def test_a_whole_answer_as_one_event_is_read_with_its_calls() -> None:
    """As a gateway makes one of a reply that it kept."""
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    message = {"role": "assistant", "content": "Hi.", "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    found = reply(stream({"id": "x", "model": "m", "choices": [choice], "usage": tokens(9)}))

    assert (found.text, found.finish_reason, found.completion_tokens) == ("Hi.", "tool_calls", 9)
