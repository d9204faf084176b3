"""A response body, unpacked while it arrives and never larger in memory than its cap.

httpx unpacks each piece whole, so 64 kB on the wire may become 64 MB, and with two packings far
more. Here a piece is unpacked only as far as the cap leaves room.
"""

from __future__ import annotations

import time
import zlib
from typing import Final

#: What a request may offer: packings that the standard library undoes step by step.
ACCEPTED: Final = "gzip, deflate"

_PLAIN: Final = ("", "identity")
_PACKED: Final = ("gzip", "x-gzip", "deflate")
_EITHER: Final = zlib.MAX_WBITS | 32  # zlib sees for itself which of the two it is


class UnreadableBody(Exception):
    """The bytes are not what their headers say."""


class BodyTooLarge(Exception):
    """The body, unpacked, is larger than its cap."""


class Body:
    """Takes in the pieces of one response; `received` is what came so far, unpacked."""

    def __init__(self, *, encoding: str, cap: int) -> None:
        """`encoding` is the Content-Encoding, "" when there is none; `cap` is in bytes."""
        name = encoding.strip().lower()
        if name not in (*_PLAIN, *_PACKED):
            raise UnreadableBody(f"content encoding {encoding[:40]!r} was not asked for")
        self.received = bytearray()
        self.first_at: float | None = None  # when the first piece came, by the monotonic clock
        self._cap = cap
        self._unpack = zlib.decompressobj(_EITHER) if name in _PACKED else None

    def add(self, piece: bytes) -> None:
        """Take in one piece. Raises BodyTooLarge, with the cap filled, or UnreadableBody."""
        if self.first_at is None:
            self.first_at = time.monotonic()
        room = self._cap - len(self.received) + 1
        if self._unpack is None:
            self.received += piece[:room]
        else:
            try:
                self.received += self._unpack.decompress(piece, room)
            except zlib.error as error:
                raise UnreadableBody(str(error)) from None
        if len(self.received) > self._cap:
            del self.received[self._cap :]
            raise BodyTooLarge

    def end(self) -> None:
        """The last piece has come. Raises UnreadableBody when a packed body ends too soon."""
        if self._unpack is not None and self.received and not self._unpack.eof:
            raise UnreadableBody("the packed body ends in the middle")
