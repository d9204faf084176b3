"""Several endpoints side by side: their run folders, made without an audit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from audits import NOWHERE
from simulate import make_plan, simulate_row, write_scored

from verifier.config import Fleet, Prices, dump_run_file
from verifier.files.run_folder import FLEET
from verifier.plan_file import write_plan


def endpoint(url: str, **changes: Any) -> dict[str, Any]:
    """A section of a run file."""
    return {"base_url": url, "model": "tiny", "max_attempts": 1} | changes


def make_folders(out: Path, hosts: Mapping[str, tuple[float, int]], **sections: Any) -> Fleet:
    """Decided run folders without an audit: replies of hosts of a known noise scale and count."""
    fleet = Fleet.model_validate(
        {
            "targets": {name: endpoint(NOWHERE) for name in hosts},
            "reference": {"card": "tiny"},
            "out": out,
        }
        | sections
    )
    out.mkdir()
    (out / FLEET).write_text(dump_run_file(fleet))
    for name, (scale, count) in hosts.items():
        write_folder(out / name, scale=scale, count=count)
    return fleet


def write_folder(run_: Path, *, scale: float, count: int) -> None:
    """A run folder of simulated replies, not decided yet."""
    rng = np.random.default_rng(7)
    rows = [simulate_row(rng, f"p{n}", scale=scale) for n in range(count)]
    write_plan(run_, "", make_plan(prices=Prices(prompt=1.0, completion=2.0)), ())
    write_scored(run_, rows)
