"""Calibrations that were measured on other machines, added to a card.

The card lists a copy by its digest, beside the card or in the user's own folder for one of an
installation; audits then read all that it lists as one calibration. Whatever would be refused when
it is read is refused here, with nothing written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.evidence.calibration import Calibration
from verifier.evidence.pooling import why_no_floor, why_not_pooled
from verifier.files.run_folder import make_folder, refuse_link, write_whole
from verifier.files.strict_yaml import parse_yaml, read_bounded
from verifier.reference.calibrations import (
    CONTRIBUTED,
    LARGEST,
    calibration_path,
    pool_calibrations,
    read_calibration,
    read_calibrations,
)
from verifier.reference.card_text import append_values
from verifier.reference.cards import (
    NAME,
    Card,
    find_card,
    load_card,
    place_to_write,
    read_card,
    write_card,
)

#: What to give instead of what is refused.
_GIVE: Final = "give what `verifier calibrate` wrote for this card's weights"

#: Signs of a name at most: it stands in a file's name and behind a stack's.
_LONGEST_NAME: Final = 60

#: Digits of a digest that stand for a name.
_DIGITS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """A calibration that was added to a card, and what it changed."""

    card: Path
    calibration: Path
    sha256: str
    before: Calibration | None  # None: the card was not calibrated
    now: Calibration


def contribute(name: str, given: Path, *, called: str | None = None) -> Contribution:
    """Add the calibration of a file to a card. `called` is its machine; else its digest is.

    Raises ConfigError or ReferenceMismatch, and writes nothing, for what is no calibration of this
    card's weights, counts already, or cannot be read with those that count.
    """
    if called is not None and not re.fullmatch(rf"(?=.{{1,{_LONGEST_NAME}}}$){NAME}", called):
        raise ConfigError(
            f"--name: {called[:_LONGEST_NAME]!r} is no name of a file; take small letters, digits, "
            f"dots and dashes, {_LONGEST_NAME} at most"
        )
    card, path = load_card(name), find_card(name)
    counted = read_calibrations(name, card)
    before = pool_calibrations(counted, card) if counted else None
    raw = read_bounded(given, limit=LARGEST)
    digest = sha256(raw).hexdigest()
    _refuse_known(name, card, given, digest)
    found = read_calibration(raw, card, where=str(given), advice=_GIVE)
    _refuse_unfit(found, list(counted.values()), given)
    file = Path(CONTRIBUTED, card.name, f"{called or digest[:_DIGITS]}.calibration.json")
    listed = {"file": file.as_posix(), "sha256": digest}
    text = append_values(path.read_text(encoding="utf-8"), "calibrations", [listed])
    with_it = read_card(parse_yaml(text.encode(), where=str(path)), where=str(path))
    now = pool_calibrations({**counted, listed["file"]: found}, with_it)
    copy = place_to_write(name).parent / file
    with _copied(raw, copy):
        written = write_card(name, text)
    return Contribution(card=written, calibration=copy, sha256=digest, before=before, now=now)


def _refuse_known(name: str, card: Card, given: Path, digest: str) -> None:
    """A calibration counts once."""
    own = calibration_path(name)
    if own.is_file() and sha256(own.read_bytes()).hexdigest() == digest:
        raise ReferenceMismatch(f"{given}: is the card's own calibration, {own}; {_GIVE} elsewhere")
    for one in card.calibrations:
        if one.sha256 == digest:
            raise ReferenceMismatch(
                f"{given}: is contributed already, as {one.file}; {_GIVE} on another machine"
            )


def _refuse_unfit(found: Calibration, counted: Sequence[Calibration], given: Path) -> None:
    """What cannot be read with those that count; alone it must set a floor all the same."""
    reasons = [why_no_floor(found), *(why_not_pooled(one, found) for one in counted)]
    for why in reasons:
        if why is not None:
            raise ReferenceMismatch(f"{given}: {why}; {_GIVE}, as the others were measured")


@contextmanager
def _copied(raw: bytes, place: Path) -> Iterator[None]:
    """Have a copy lie in its place; taken away again where what is done with it fails."""
    for folder in (place.parent.parent, place.parent):
        refuse_link(folder)
    if place.exists():
        if read_bounded(place, limit=LARGEST) != raw:
            raise ConfigError(f"{place}: is another calibration; give another --name")
        yield  # of a command that was killed before the card listed it
        return
    made = make_folder(place.parent)
    try:
        write_whole(place, raw.decode("utf-8", "surrogatepass"))
        yield
    except BaseException:
        place.unlink(missing_ok=True)
        for folder in reversed(made):
            folder.rmdir()
        raise
