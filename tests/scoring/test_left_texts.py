"""Where a text leaves the texts of a trusted host, by hand."""

from __future__ import annotations

import pytest
from toy_pack import ToyPack, say

from verifier.evidence.hazards import WINDOW, Leaving
from verifier.scoring.left_texts import leave_texts


def left(paths: list[list[str]], text: str, finish: str = "length") -> tuple[Leaving, Leaving]:
    """How a reply stands to paths of these tokens: to all of them, and to the first alone."""
    pack = ToyPack([[{token: 1.0} for token in path] for path in paths])
    ids = [[pack.names.index(token) for token in path] for path in paths]
    found = leave_texts(pack, ids, say(text, finish))  # type: ignore[arg-type]
    assert found is not None
    return found.target, found.alone


def stayed(exposure: int) -> Leaving:
    return Leaving(exposure=exposure, left=False)


def gone(exposure: int) -> Leaving:
    return Leaving(exposure=exposure, left=True)


PATH = ["the", " cat", " sat", "."]


@pytest.mark.parametrize(
    ("path", "text", "finish", "expected"),
    [
        (PATH, "the cat sat.", "length", stayed(4)),
        (PATH, "the cat sat. And", "length", stayed(4)),  # nothing is known beyond a cut path
        (PATH, "the cat", "length", stayed(2)),  # the reply was cut: it has not left
        (PATH, "the ca", "length", stayed(1)),  # within a token
        (PATH, "the dog", "length", gone(2)),
        (PATH, "the cat", "stop", gone(3)),  # it ended, and the path goes on
        ([*PATH, "eos"], "the cat sat.", "stop", stayed(5)),
        ([*PATH, "eos"], "the cat sat.", "length", stayed(4)),
        ([*PATH, "eos"], "the cat sat. And", "length", gone(5)),
        ([*PATH, "eos"], "the cat sat.\n", "stop", stayed(5)),  # white space tells nothing
        ([" the", " cat"], "the cat", "length", stayed(2)),
        (["the", " cat"], "\n the cat", "length", stayed(2)),
        (["a", "\n\n", "eos"], "a", "stop", stayed(3)),
        (["a", "\n\n", "b"], "a", "stop", gone(3)),  # the line ends may have come
        (["a", "\n\n", "b"], "a.", "length", gone(2)),
        (["a", " cat"], "a\ufffd\ufffd", "length", gone(2)),  # no character of one byte
        (["a", " é"], "a \ufffd", "length", stayed(1)),  # it may be a part of the same
        (["a"] * 40, "a" * 20 + "b", "length", stayed(WINDOW)),
    ],
)
def test_a_text_leaves_at_the_token_of_the_first_byte_that_differs(
    path: list[str], text: str, finish: str, expected: Leaving
) -> None:
    """Exposure is counted in tokens of the path."""
    assert left([path], text, finish)[0] == expected


def test_a_longer_token_may_have_left_one_place_before() -> None:
    """As a token " cats" leaves where " cat" stands, as a text behind it: each question takes the
    end that spares."""
    assert left([PATH], "the cats") == (gone(3), gone(2))
    assert left([PATH], "the dog") == (gone(2), gone(2))


def test_more_paths_spare_a_target_and_call_nothing_alike() -> None:
    """It is on the second; beside the first it left."""
    assert left([PATH, ["the", " dog", " ran"]], "the dog ran") == (stayed(3), gone(2))
    assert left([PATH, ["the", " dog", " ran"]], "the dog sat") == (gone(3), gone(2))


def test_a_text_that_tells_no_token_is_set_aside() -> None:
    """A character that nobody can read, where one of many bytes was to come."""
    pack = ToyPack([[{"é": 1.0}]])

    assert leave_texts(pack, [[pack.names.index("é")]], say("\ufffd")) is None  # type: ignore[arg-type]
