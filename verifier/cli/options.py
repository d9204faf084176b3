"""The options that describe a run: the same for every command that takes one, over its run file."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from verifier.cli.common import EngineName, say_own, state_directory
from verifier.errors import ConfigError

if TYPE_CHECKING:
    from verifier.config import Fleet

_OF_ENDPOINT: Final = "Options of the endpoint"
_OF_REFERENCE: Final = "Options of the reference"
_OF_AUDIT: Final = "Options of the audit"
_OF_CONTROL: Final = "Options of a control"

#: How the name of a pack ends, so that it is taken for no card.
PACK_ENDS: Final = ".pack"

Dialect = Literal["chat", "completions", "messages", "responses"]

#: The end of a folder's name that says when it was begun.
_STAMP: Final = "%Y-%m-%dT%H%M%SZ"
_STAMPED: Final = re.compile(r"-\d{4}-\d\d-\d\dT\d{6}Z$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A run as the command line describes it."""

    path: Path | None  # a run file or a run folder; None: the options say all
    options: dict[str, Any]  # as keys of a run file; None and {}: not given


def describe(
    run_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUNFILE", help="A run file, or a run folder to go on with; else use options."
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A common host, e.g. together.", rich_help_panel=_OF_ENDPOINT
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The one host that a router must ask, e.g. novita/fp8.",
            rich_help_panel=_OF_ENDPOINT,
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="What comes before /chat/completions.", rich_help_panel=_OF_ENDPOINT
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model's name at the endpoint.",
            rich_help_panel=_OF_ENDPOINT,
        ),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="VAR", help="Environment variable that holds the key.",
            rich_help_panel=_OF_ENDPOINT,
        ),
    ] = None,
    dialect: Annotated[
        Dialect | None,
        typer.Option(
            metavar="NAME", help="chat, completions, messages or responses (chat).",
            rich_help_panel=_OF_ENDPOINT,
        ),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream", help="Ask for event streams, or whole replies (whole).",
            rich_help_panel=_OF_ENDPOINT,
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A header of every request, never a key; repeatable.",
            rich_help_panel=_OF_ENDPOINT,
        ),
    ] = None,
    input_price: Annotated[
        float | None,
        typer.Option(
            metavar="USD", help="Dollars per million prompt tokens.", rich_help_panel=_OF_ENDPOINT
        ),
    ] = None,
    output_price: Annotated[
        float | None,
        typer.Option(
            metavar="USD", help="Dollars per million completion tokens.",
            rich_help_panel=_OF_ENDPOINT,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="CARD", help="Card of the published weights, or a file that ends in .pack.",
            rich_help_panel=_OF_REFERENCE,
        ),
    ] = None,
    pack_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Public key that must have signed the pack.",
            rich_help_panel=_OF_REFERENCE,
        ),
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            metavar="NAME", help="vllm, transformers, remote or echo (auto).",
            rich_help_panel=_OF_REFERENCE,
        ),
    ] = None,
    reference_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Server that remote or echo asks.", rich_help_panel=_OF_REFERENCE
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The run folder.", rich_help_panel=_OF_AUDIT),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="screen, standard, strict or routing (screen).",
            rich_help_panel=_OF_AUDIT,
        ),
    ] = None,
    budget_completion_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Completion tokens at most (6000).", rich_help_panel=_OF_AUDIT
        ),
    ] = None,
    budget_usd: Annotated[
        float | None,
        typer.Option(
            metavar="USD", help="Dollars at most; needs prices.", rich_help_panel=_OF_AUDIT
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="RATE", help="False-alarm rate of 'inconsistent' (0.001).",
            rich_help_panel=_OF_AUDIT,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Seed of the probes (drawn in secret).",
            rich_help_panel=_OF_AUDIT,
        ),
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Go on from the evidence of an earlier audit of this endpoint.",
            rich_help_panel=_OF_AUDIT,
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="A trusted endpoint, which is asked the same probes.",
            rich_help_panel=_OF_CONTROL,
        ),
    ] = None,
    control_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model's name at the control.",
            rich_help_panel=_OF_CONTROL,
        ),
    ] = None,
    control_api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="VAR", help="Variable that holds the control's key.",
            rich_help_panel=_OF_CONTROL,
        ),
    ] = None,
) -> Described:  # fmt: skip
    """The run that a command line describes."""
    options: dict[str, Any] = {
        "endpoint": {
            "host": host, "provider": provider, "base_url": base_url, "model": model,
            "api_key_env": api_key_env, "dialect": dialect, "stream": stream,
            "headers": dict(map(_read_header, header)) if header else None,
        },
        "prices": _read_prices(input_price, output_price),
        "control": {
            "base_url": control, "model": control_model, "api_key_env": control_api_key_env,
        },
        "reference": {
            **_read_reference(reference), "pack_key": pack_key, "engine": engine,
            "url": reference_url,
        },
        "audit": {
            "policy": policy, "budget_completion_tokens": budget_completion_tokens,
            "budget_usd": budget_usd, "alpha": alpha, "seed": seed, "after": after,
        },
        "out": out,
    }  # fmt: skip
    return Described(path=run_file, options=options)


def _read_header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:  # not shown: it may be a key
        raise ConfigError("--header: expected NAME=VALUE, such as X-Title=audit")
    return name, value


def _read_reference(text: str | None) -> dict[str, Any]:
    """What `--reference` names: a card, or a pack by how its name ends."""
    if text is not None and text.endswith(PACK_ENDS):
        return {"card": None, "pack": text}
    return {"card": text, "pack": None}


def _read_prices(prompt: float | None, completion: float | None) -> dict[str, float | None]:
    for flag, found in (("--input-price", prompt), ("--output-price", completion)):
        if found is None and (prompt, completion) != (None, None):
            raise ConfigError(f"{flag} is missing; what a run costs needs both prices")
    return {"prompt": prompt, "completion": completion}


def takes_a_run(command: Callable[..., None]) -> Callable[..., None]:
    """The command with all options of `describe`; it is given what they describe, first."""
    shared = list(inspect.signature(describe, eval_str=True).parameters.values())
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    def called(**given: Any) -> None:
        described = describe(**{one.name: given.pop(one.name) for one in shared})
        command(described, **given)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    every = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*shared, *own)]
    called.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]  # read by typer
    called.__annotations__ = {one.name: one.annotation for one in every}
    return called


# -- to a run file -----------------------------------------------------------------------------


def configure(described: Described, *, command: str, trust: bool) -> Fleet:
    """The run file, or the one that the options describe; options override the file.

    Raises ConfigError where something is missing, or an option contradicts the file.
    """
    from verifier.config import Fleet, load_hosts, validated
    from verifier.reference.cards import find_card

    base, path = _read_base(described.path, trust=trust)
    merged = _merge(_less_reference(base, described.options), described.options)
    for name in ("endpoint", "control", "prices"):
        if name not in base and not any(v is not None for v in merged[name].values()):
            del merged[name]
    headers = described.options["endpoint"]["headers"]
    if headers and "headers" not in base.get("endpoint", {}):  # beside those of the preset
        known = load_hosts().get(str(merged["endpoint"].get("host")))
        merged["endpoint"]["headers"] = (known.headers if known else {}) | headers
    _refuse_contradictions(base, described.options, where=str(path))
    if path is None:
        for flag, found in _needed(merged):
            if found is None:
                raise ConfigError(f"{command}: {flag} is missing; give it, or give a run file")
    fleet = validated(Fleet, merged, where=command if path is None else str(path))
    if fleet.reference.has_weights:
        find_card(fleet.reference.card)  # known at once, and what comes next loads slowly
        say_own(fleet.reference.card)
    return fleet


def _less_reference(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """What a run file says, without the card or the pack that an option takes the place of; where
    it names both, an option is for its own kind alone."""
    own, given = base.get("reference") or {}, over["reference"]
    if own.get("card") and own.get("pack"):
        return base
    gone = {"card"} if given["pack"] else {"pack", "pack_key"} if given["card"] else set()
    return base | {"reference": {key: value for key, value in own.items() if key not in gone}}


def _read_base(path: Path | None, *, trust: bool) -> tuple[dict[str, Any], Path | None]:
    """What a run file says, or that of a run folder, and the file."""
    from verifier.cli.trust import is_run_folder
    from verifier.config import load_fleet, read_run_file

    if path is None:
        return {}, None
    folder = path if path.is_dir() and is_run_folder(path) else None
    path, *of_control = run_files_of(path)
    within = its_run_folder(path, trust=trust)
    load_fleet(path, below=within)  # says it best when the file itself is wrong
    base = read_run_file(path, below=within)  # as it stands: an option may change its host
    if folder is not None:
        base["out"] = folder  # wherever it lies now
    for beside in of_control:
        its_run_folder(beside, trust=trust)
        control = read_run_file(beside, below=beside.parent)
        base["control"] = control["endpoint"] | {"prices": control.get("prices")}
    return {name: value for name, value in base.items() if value is not None}, path


def run_files_of(path: Path) -> tuple[Path, ...]:
    """The run file that is meant by a path; of a run folder its own, and that of its control, which
    is kept in the control's folder."""
    from verifier.cli.trust import is_run_folder
    from verifier.files.run_folder import CONTROL, FLEET, RUN

    if not (path.is_dir() and is_run_folder(path)):
        return (path,)
    if (path / FLEET).exists():
        return (path / FLEET,)
    beside = path / CONTROL
    return (path / RUN, *((beside / RUN,) if is_run_folder(beside) else ()))


def its_run_folder(run_file: Path, *, trust: bool) -> Path | None:
    """The run folder that a run file lies in, if it lies in one; refused if not made here."""
    from verifier.cli.trust import is_run_folder, need_trust_of

    need_trust_of(run_file, trust=trust, state=state_directory())
    return run_file.parent if is_run_folder(run_file.parent) else None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict):
            merged[key] = _merge(base.get(key) or {}, value)
        elif value is not None:
            merged[key] = value
    return merged


def _refuse_contradictions(base: dict[str, Any], options: dict[str, Any], *, where: str) -> None:
    """Raise ConfigError for an option that the run file leaves no place for."""
    given = {key: value for key, value in options["endpoint"].items() if value is not None}
    flags = ", ".join(f"--{key.removesuffix('s').replace('_', '-')}" for key in given)
    if base.get("targets") is not None and given:
        raise ConfigError(f"{flags}: for one endpoint, but {where} names several targets; change "
                          "its targets")  # fmt: skip
    before = base.get("endpoint") or {}
    named = before.get("host") or before.get("base_url")
    if "host" in given and named is not None and given["host"] != before.get("host"):
        raise ConfigError(
            f"--host {given['host']}: {where} names another endpoint, with settings of its own; "
            "change its endpoint, or leave the run file out"
        )


def _needed(merged: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a run needs that no run file describes: option and what was given."""
    endpoint, control = merged.get("endpoint", {}), merged.get("control")
    needed = [
        ("--base-url", endpoint.get("base_url") or endpoint.get("host")),
        ("--model", endpoint.get("model")),
        ("--reference", merged["reference"].get("pack") or merged["reference"].get("card")),
        ("--out", merged.get("out")),
    ]
    if control is not None:
        needed += [
            ("--control", control.get("base_url")),
            ("--control-model", control.get("model")),
        ]
    return needed


def begun_anew(fleet: Fleet, described: Described, *, now: datetime) -> Fleet:
    """The same run in a folder of its own, named after this moment, with probes of its own.

    The seed that a folder of several targets keeps was drawn, or named once: hosts know its probes.
    """
    from verifier.cli.trust import is_run_folder
    from verifier.files.run_folder import FLEET

    if fleet.out.name in ("", ".."):
        raise ConfigError(f"{fleet.out}: --again makes a folder beside it; give an --out by name")
    out = fleet.out.with_name(f"{_STAMPED.sub('', fleet.out.name)}-{now.strftime(_STAMP)}")
    if out.exists():
        raise ConfigError(f"{out}: exists; run the same command again")
    path, seed = described.path, described.options["audit"]["seed"]
    folder = path if path is None or path.is_dir() else path.parent
    kept = folder is not None and is_run_folder(folder) and (folder / FLEET).exists()
    audit = fleet.audit.model_copy(update={"seed": seed}) if kept else fleet.audit
    return fleet.model_copy(update={"out": out, "audit": audit})
