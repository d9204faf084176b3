"""Bodies unpacked within their cap."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from verifier.host.response_body import Body, BodyTooLarge, UnreadableBody

TEXT = b"some text, and some more of it"


@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        ("", TEXT),
        ("identity", TEXT),
        ("gzip", gzip.compress(TEXT, mtime=0)),
        ("GZip", gzip.compress(TEXT, mtime=0)),
        ("deflate", zlib.compress(TEXT)),
    ],
)
def test_a_body_is_the_same_in_any_pieces(encoding: str, sent: bytes) -> None:
    """Plain or packed, whole or byte by byte."""
    whole, drip = Body(encoding=encoding, cap=100), Body(encoding=encoding, cap=100)
    whole.add(sent)
    for n in range(len(sent)):
        drip.add(sent[n : n + 1])
    drip.end()

    assert whole.received == drip.received == TEXT


def test_a_bomb_is_unpacked_to_the_cap_and_no_further() -> None:
    """64 MiB of zeros, 64 kB on the wire: memory stays near the cap."""
    packed = gzip.compress(bytes(2**26))
    body = Body(encoding="gzip", cap=50_000)
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        body.add(packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(body.received) == 50_000
    assert peak < 10 * 50_000


def test_a_plain_body_is_kept_to_the_cap() -> None:
    """A body that fits exactly is whole; one byte more is too much."""
    body = Body(encoding="", cap=4)
    body.add(b"1234")
    body.end()

    with pytest.raises(BodyTooLarge):
        body.add(b"5")
    assert body.received == b"1234"


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_a_packing_that_was_not_offered_is_refused(encoding: str) -> None:
    """Two packings, one in the other, multiply what a bomb can do."""
    with pytest.raises(UnreadableBody, match="not asked for"):
        Body(encoding=encoding, cap=100)


@pytest.mark.parametrize("sent", [b"not packed at all", gzip.compress(TEXT, mtime=0)[:-9]])
def test_packed_bytes_that_cannot_be_read_are_no_body(sent: bytes) -> None:
    """Nonsense, and a body that ends in the middle."""

    def read() -> None:
        body = Body(encoding="gzip", cap=100)
        body.add(sent)
        body.end()

    with pytest.raises(UnreadableBody):
        read()
