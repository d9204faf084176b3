"""The JSON Schemas that ship: true to the records, and to files as they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from audits import configure, host, run
from fleets import make_folders

from verifier.errors import ConfigError
from verifier.files.run_folder import EXCHANGES, LEDGER, PLAN, REPORT, SCORES, SUMMARY
from verifier.files.stored import check_value
from verifier.fleet.summary import summarise
from verifier.schemas import KINDS, make_schema, schema_text

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "configs" / "schemas"


def complaints(name: str, value: Any) -> list[str]:
    """What the schema that ships says against a value."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(value)]


@pytest.mark.parametrize("name", KINDS)
def test_the_schemas_that_ship_are_those_of_the_records(name: str) -> None:
    """Else: python -m verifier.schemas configs/schemas."""
    shipped = (SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")

    assert json.loads(shipped) == make_schema(name)
    assert shipped == schema_text(name)


def test_no_other_schemas_ship() -> None:
    """One for each kind."""
    found = {path.name for path in SCHEMAS.iterdir()}

    assert found == {f"{name}.schema.json" for name in KINDS}


@pytest.mark.parametrize("name", ["example.yaml", "targets.yaml"])
def test_the_run_files_that_ship_are_as_their_schema_says(name: str) -> None:
    """So an editor that reads it complains of nothing."""
    path = ROOT / "configs" / name
    value = yaml.safe_load(path.read_text(encoding="utf-8"))

    assert complaints("run_file", value) == []
    assert complaints("run_file", value | {"surprise": 1}) != []


def test_the_example_names_its_schema_for_editors() -> None:
    """Beside it, so that it is found without a network."""
    first = (ROOT / "configs" / "example.yaml").read_text(encoding="utf-8").splitlines()[0]
    before, _, name = first.partition("$schema=")

    assert before == "# yaml-language-server: "
    assert (ROOT / "configs" / name).is_file()


def test_what_an_audit_writes_is_as_the_schemas_say(card: Path, tmp_path: Path) -> None:
    """Every file that has a schema."""
    with host() as url:
        run(configure(url, card, tmp_path / "run", budget_completion_tokens=240))
    make_folders(tmp_path / "many", {"a": (0.05, 14), "b": (0.8, 14)})
    summarise(tmp_path / "many")
    for name, file in (("plan", PLAN), ("ledger", LEDGER), ("report", REPORT)):
        assert complaints(name, json.loads((tmp_path / "run" / file).read_text())) == []
    for name, file in (("exchanges", EXCHANGES), ("scores", SCORES)):
        for line in (tmp_path / "run" / file).read_text().splitlines():
            assert complaints(name, json.loads(line)) == []
    summary = json.loads((tmp_path / "many" / SUMMARY).read_text())
    assert complaints("summary", summary) == []
    run_file = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert complaints("run_file", run_file) == []


def test_schema_and_reader_refuse_the_same() -> None:
    """A number that is too large, say."""
    attempt = {
        "probe_id": "p", "number": 10**30, "started_at": "", "elapsed_s": 1.0, "request": "",
        "status": 200, "body": "", "error": None,
    }  # fmt: skip

    assert complaints("exchanges", attempt) != []
    assert complaints("exchanges", attempt | {"number": 1}) == []
    with pytest.raises(ConfigError, match="number: input should be less than"):
        check_value(attempt, KINDS["exchanges"], where="here")
