"""JSON Schemas of what is read and written, made from the records themselves.

`python -m verifier.schemas DIR` writes them anew; a test holds those that ship to the records.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import GenericAlias
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter

from verifier.config import Fleet
from verifier.evidence.ledger import LedgerFile
from verifier.files.run_folder import write_whole
from verifier.plan_file import Plan
from verifier.records import Attempt, Report, Summary
from verifier.scoring.score_file import Scored

#: What each schema is of; of JSON Lines it is that of one line.
KINDS: Final[dict[str, Any]] = {
    "run_file": Fleet,
    "plan": Plan,
    "exchanges": Attempt,
    "scores": Scored,
    "ledger": LedgerFile,
    "report": Report,
    "summary": Summary,
}


def make_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of one of KINDS."""
    kind = KINDS[name]
    within: Any = GenericAlias(list, (kind,))
    made = TypeAdapter(within, config=ConfigDict(extra="forbid")).json_schema()
    parts, whole = made["$defs"], made["items"]
    whole = parts.pop(kind.__name__) if "$ref" in whole else whole
    for part in parts.values():
        if {"host", "base_url"} <= {
            *part.get("properties", ())
        }:  # a host that is known has its base_url
            part["required"].remove("base_url")
            part["anyOf"] = [{"required": ["base_url"]}, {"required": ["host"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "$defs": parts}


def schema_text(name: str) -> str:
    """A schema in the byte form that ships."""
    return json.dumps(make_schema(name), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for each in KINDS:
        write_whole(Path(sys.argv[1]) / f"{each}.schema.json", schema_text(each))
