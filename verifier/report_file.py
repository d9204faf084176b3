"""`report.json`, there and back. Nothing is judged or shown here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from verifier.files.run_folder import REPORT
from verifier.files.stored import check_value, read_record
from verifier.records import Report

#: Version of the report file.
SCHEMA_VERSION: Final = 1

_ADVICE: Final = "run `verifier decide` on the run folder again"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def report_to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values; `report_from_json` gives it back.

    Lone surrogates become U+FFFD, so that the file is valid UTF-8 whatever a host sent.
    """
    found: dict[str, Any] = plain(report)
    if report.evidence is None:  # as in the reports of versions that had none
        del found["evidence"]
    return found


def plain(value: object) -> Any:
    """A record as JSON values; lone surrogates become U+FFFD."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return _SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def read_report(run: Path) -> Report:
    """The report of a run folder, every key and type checked. Raises ConfigError."""
    return read_record(run / REPORT, Report, advice=_ADVICE)


def report_from_json(value: Mapping[str, Any]) -> Report:
    """What `report_to_json` made, back again. Raises ConfigError as `read_report` does."""
    return check_value(value, Report, where=REPORT, advice=_ADVICE)
