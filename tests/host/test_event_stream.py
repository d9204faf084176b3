"""Event streams of chat completions, put together as hosts really send them."""

from __future__ import annotations

import json
from itertools import takewhile
from typing import Any

import pytest

from verifier.host.event_stream import BrokenStream, Ending, assemble_chat
from verifier.host.exchange import Problem, parse
from verifier.records import Attempt, Reply

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
    return {"token": word, "logprob": -0.5, "bytes": list(word.encode()), "top_logprobs": []}


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


def reply(body: str, **how: Any) -> Reply:
    found = parse(attempt(body, **how))
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
        (lambda e: [*e[:3], e[2], *e[3:]], "came twice"),
        (lambda e: [e[0], e[2], e[1], *e[3:]], "goes back"),
        (lambda e: [*e[:4], e[5], e[4], e[6]], "after the end"),
    ],
    ids=["repeated", "swapped", "after the end"],
)
def test_moved_and_repeated_events_are_found_by_a_running_count(spoil: Any, said: str) -> None:
    """The counts on the chunks number them."""
    found = problem(stream(*spoil(chunks(running=True))))

    assert found.retryable
    assert said in found.reason


def test_a_repeated_event_is_found_by_its_log_probabilities() -> None:
    """No two positions have the same ones."""
    events = chunks(logprobs=True)

    with pytest.raises(BrokenStream, match="came twice"):
        assemble_chat(stream(*events[:3], events[2], *events[3:]))


def test_more_pieces_than_tokens_do_not_add_up() -> None:
    """Half of the stream came twice, and nothing numbers the events."""
    events = chunks()

    with pytest.raises(BrokenStream, match="8 pieces for 4 tokens"):
        assemble_chat(stream(*events[:5], *events[1:5], *events[5:]))


def test_the_same_word_twice_is_no_repetition() -> None:
    """Without a number or a log-probability, equal chunks may be equal tokens."""
    events = [chunk({"content": "ha"}), chunk({"content": "ha"}), chunk(finish_reason="stop")]

    assert reply(stream(*events)).text == "haha"


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
