"""Where a run file comes from: one with a word on every key, to be filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verifier.cli.common import say
from verifier.errors import ConfigError


def init(
    run_file: Annotated[
        Path, typer.Argument(metavar="RUNFILE", help="The run file to write.")
    ] = Path("audit.yaml"),
    targets: Annotated[
        bool, typer.Option("--targets", help="One of several endpoints, beside a control.")
    ] = False,
) -> None:
    """Write a run file with every key, its default and a word on it.

    What is there already is left alone. Fill in the endpoint and the card, then see what it may
    cost with `verifier plan`, and audit.

    \b
    Examples:
      verifier init
      verifier init hosts.yaml --targets
    """
    from verifier.config import example_run_file

    try:
        with run_file.open("x", encoding="utf-8") as file:
            file.write(example_run_file(targets=targets))
    except FileExistsError as error:
        raise ConfigError(f"{run_file}: exists; give the name of a new file") from error
    part = "targets" if targets else "endpoint"
    say(f"{run_file}: fill in {part} and reference.card, then run `verifier plan {run_file}`")
