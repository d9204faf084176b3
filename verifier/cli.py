"""The command line: arguments in, exit status out. The only place that prints, exits, and reads
the environment.

Exit status: 0 consistent (or done), 1 inconsistent, 2 usage or configuration error, 3
inconclusive, 4 a defect of this program, 130 interrupted, 141 nobody read on.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import verifier
from verifier.errors import ConfigError, VerifierError

if TYPE_CHECKING:
    from collections.abc import Callable

    from verifier.audit import LoadReference, Show
    from verifier.config import Fleet, RunFile
    from verifier.records import Decision, Report, Summary
    from verifier.spending import Priced

    #: The table of a results file.
    Tabulate = Callable[[dict[str, Any]], str]

EXIT: Final[dict[Decision, int]] = {"consistent": 0, "inconsistent": 1, "inconclusive": 3}
_USAGE: Final = 2
_DEFECT: Final = 4
_INTERRUPTED: Final = 130  # as a shell says it: 128 and the number of the signal
_BROKEN_PIPE: Final = 141
_LONGEST_KEY: Final = 16_384  # bytes

#: What a command line that cannot be read raises; typer offers no name for it.
_UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    help="Tells whether a hosting endpoint serves the open weights it claims.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
testbed_app = typer.Typer(
    help="A laboratory instrument: local hosts whose faults are known. Not a server for people.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(testbed_app, name="testbed")
reference_app = typer.Typer(
    help="Cards: the published models that an endpoint can be held to.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(reference_app, name="reference")

Dtype = Literal["float32", "bfloat16", "float16"]
EngineName = Literal["auto", "vllm", "transformers", "remote"]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print report.json instead of tables.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="The run folder is yours: do what its run file says.")
]
Junit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML there.")
]
Markdown = Annotated[
    Path | None,
    typer.Option("--markdown", metavar="FILE", help="Also append a summary in Markdown there."),
]
CardName = Annotated[str, typer.Argument(metavar="CARD", help="A card's name or YAML file.")]


def main() -> None:
    """Run the command line; every error becomes one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a host may send any sign
    # read by vLLM when it is imported: it would report to its makers, and log a page
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        status = _run(sys.argv[1:])
        sys.stdout.flush()
    except VerifierError as error:
        _fail(str(error), _USAGE)
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on where this one was", _INTERRUPTED)
    except BrokenPipeError:
        with suppress(OSError):  # what is left to write goes nowhere, without a word
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _BROKEN_PIPE
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        _fail(f"{where}{error.strerror or error}; mend that and run the same command again", _USAGE)
    except ModuleNotFoundError as error:
        _fail(f"this step needs the package {error.name}; install it with pip", _USAGE)
    except Exception as error:
        if os.environ.get("VERIFIER_TRACEBACK"):
            raise
        what = " ".join(str(error).split())[:300]
        _fail(
            f"defect in the verifier ({type(error).__name__}: {what}); what was collected is "
            "kept; set VERIFIER_TRACEBACK=1 to see where, and report it",
            _DEFECT,
        )
    sys.exit(status)


def _run(arguments: Sequence[str]) -> int:
    """Run one command; its exit status. Errors are left to `main`."""
    try:
        # not app(): that ends an interrupt and a broken pipe with the status of a verdict
        with typer.main.get_command(app).make_context("verifier", list(arguments)) as context:
            context.command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except _UsageError as error:
        at = getattr(getattr(error, "ctx", None), "command_path", "verifier")
        said = getattr(error, "format_message", error.__str__)().rstrip(".")
        raise ConfigError(f"{said} (see `{at} --help`)") from error
    return 0


def _fail(message: str, status: int) -> NoReturn:
    from verifier.wording import visible

    print(f"verifier: {' '.join(visible(message).split())}", file=sys.stderr)  # noqa: T201
    sys.exit(status)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"verifier {verifier.__version__}")
        raise typer.Exit


@app.callback()
def _global(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback reads it
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    _help_when_bare(context)


@reference_app.callback()
def _reference(context: typer.Context) -> None:
    _help_when_bare(context)


@testbed_app.callback()
def _testbed(context: typer.Context) -> None:
    _help_when_bare(context)


def _help_when_bare(context: typer.Context) -> None:
    """A command is missing: that is no status for a script to read as a verdict."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(_USAGE)


# -- audit -------------------------------------------------------------------------------------


@app.command()
def audit(
    run_file: Annotated[
        Path | None, typer.Argument(metavar="RUNFILE", help="A run file; else use the flags.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="What comes before /chat/completions.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name at the endpoint.")] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="CARD", help="Card of the published weights.")
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(help="What computes the reference: vllm, transformers or remote."),
    ] = None,
    reference_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The remote engine's vLLM server.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run folder.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VAR", help="Environment variable that holds the key.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="screen (default), standard, strict or routing.")
    ] = None,
    budget_completion_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Completion tokens at most (6000).")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="False-alarm rate of 'inconsistent' (0.001).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the probes; drawn in secret when left out.")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A trusted endpoint, which is asked the same probes."),
    ] = None,
    control_model: Annotated[
        str | None, typer.Option(help="The model's name at the control.")
    ] = None,
    control_api_key_env: Annotated[
        str | None, typer.Option(metavar="VAR", help="Variable that holds the control's key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Audit an endpoint against local reference weights, or several of one run file.

    Exit status: 0 consistent, 1 inconsistent, 2 usage or configuration error, 3 inconclusive. Of
    several targets the worst news counts: 1 when any is inconsistent, else 3 when any is
    inconclusive or not judged. An audit that was stopped goes on with the same command.

    \b
    Examples:
      verifier audit configs/example.yaml
      verifier audit --base-url http://127.0.0.1:8000/v1 \\
          --model smollm2-135m-instruct --reference smollm2-135m-instruct \\
          --out runs/first
    """
    from verifier.audit import audit as run_audit
    from verifier.audit import make_endpoint

    flags = {
        "endpoint": {"base_url": base_url, "model": model, "api_key_env": api_key_env},
        "control": {
            "base_url": control,
            "model": control_model,
            "api_key_env": control_api_key_env,
        },
        "reference": {"card": reference, "engine": engine, "url": reference_url},
        "audit": {
            "policy": policy,
            "budget_completion_tokens": budget_completion_tokens,
            "alpha": alpha,
            "seed": seed,
        },
        "out": out,
    }
    fleet = _configure(run_file, flags)
    every = fleet.every_run_file
    keys = {name: _api_key(config, out=fleet.out) for name, config in every.items()}
    for name, config in every.items():  # what it refuses should leave no run folder behind
        make_endpoint(config, api_key=keys[name])
    with _showing() as show:
        load_reference = _reference_loader(next(iter(every.values())), show)
        if fleet.targets is not None:
            from verifier.fleet import audit_targets

            found = audit_targets(fleet, keys=keys, load_reference=load_reference, show=show)
        elif fleet.control is not None:
            from verifier.fleet import audit_beside_control

            report = audit_beside_control(
                fleet, keys=keys, load_reference=load_reference, show=show
            )
        else:
            report = run_audit(
                every[""], api_key=keys[""], load_reference=load_reference, show=show
            )
    if fleet.targets is not None:
        _print_summary(found, fleet.out, as_json=as_json)
        raise typer.Exit(_worst(found))
    _print_report(report, fleet.out, as_json=as_json)
    raise typer.Exit(EXIT[report.decision])


def _reference_loader(config: RunFile, show: Show) -> LoadReference:
    from verifier.audit import reference_loader

    return reference_loader(config, cache=_cache(), show=show, api_key=_reference_key(config))


def _worst(found: Summary) -> int:
    """The exit status of several targets: the worst news first."""
    decisions = {target.decision for target in found.targets}
    if "inconsistent" in decisions:
        return EXIT["inconsistent"]
    return EXIT["consistent"] if decisions == {"consistent"} else EXIT["inconclusive"]


def _configure(run_file: Path | None, flags: dict[str, Any]) -> Fleet:
    """The run file, or the one that the flags describe; flags override the file."""
    from verifier.config import Fleet, load_fleet, validated

    base = {} if run_file is None else load_fleet(run_file).model_dump()
    merged = _merge(base, flags)
    if base.get("targets") is not None:
        if merged["endpoint"]:
            raise ConfigError("audit: --base-url, --model and --api-key-env are for one endpoint, "
                              f"but {run_file} names several targets")  # fmt: skip
        del merged["endpoint"]
    if not merged["control"]:
        del merged["control"]
    if run_file is None:
        for flag, found in (
            ("--base-url", merged["endpoint"].get("base_url")),
            ("--model", merged["endpoint"].get("model")),
            ("--reference", merged["reference"].get("card")),
            ("--out", merged.get("out")),
            *_of_control(merged.get("control")),
        ):
            if found is None:
                raise ConfigError(f"audit: {flag} is missing; give it, or give a run file")
    return validated(Fleet, merged, where="audit" if run_file is None else str(run_file))


def _of_control(section: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """What a control needs, by its flags; nothing when there is none."""
    if section is None:
        return []
    return [("--control", section.get("base_url")), ("--control-model", section.get("model"))]


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict):
            merged[key] = _merge(base.get(key) or {}, value)
        elif value is not None:
            merged[key] = value
    return merged


def _api_key(config: RunFile, *, out: Path) -> str | None:
    """The key of an endpoint. `out` is what is passed on, with all that lies in it."""
    name, path = config.endpoint.api_key_env, config.endpoint.api_key_file
    if path is not None:
        return _read_key_file(path, run=out)
    if name is None:
        return None
    return _read_key(name, where="endpoint.api_key_env")


def _reference_key(config: RunFile) -> str | None:
    """The key of the remote engine's server."""
    name = config.reference.url_key_env
    return None if name is None else _read_key(name, where="reference.url_key_env")


def _read_key_file(path: Path, *, run: Path) -> str:
    """The key that a file holds alone. It may not lie in the run folder, which is passed on."""
    where = "endpoint.api_key_file"
    if path.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"{where}: {path} lies in the run folder; keep the key outside of it")
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST_KEY + 1)
    except OSError as error:
        raise ConfigError(f"{where}: {path} cannot be read ({error.strerror})") from error
    key = raw.decode("utf-8", "replace").strip()
    if not key or len(raw) > _LONGEST_KEY:
        raise ConfigError(f"{where}: {path} must hold the key and nothing else")
    return key


def _need_trust(trust: bool, run: Path, key: str, does: str) -> None:
    if not trust:
        raise ConfigError(
            f"{run}: {key}: this {does}, and a run folder may come from a stranger; read its "
            "run.yaml, and add --trust if it is yours"
        )


def _read_key(name: str, *, where: str) -> str:
    """The key that a variable holds. What looks like a key, given by mistake, is not shown."""
    key = os.environ.get(name)
    if not key:
        shown = name if re.fullmatch(r"[A-Z][A-Z0-9_]*", name) else "that it names"
        raise ConfigError(f"{where}: the variable {shown} is not set; export the key in it")
    return key


def _cache() -> Path:
    """Where fetched weights are kept."""
    if os.environ.get("VERIFIER_CACHE"):
        return Path(os.environ["VERIFIER_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "verifier"


# -- the steps of a run folder -----------------------------------------------------------------


@app.command()
def plan(
    run_file: Annotated[Path, typer.Argument(metavar="RUNFILE", help="A run file.")],
) -> None:
    """Write the run folder of a run file and print what it may cost. Sends nothing.

    Expected is an audit that uses its whole budget; most stop earlier. The audit stops before it
    would cross what it may cost at most.

    For a reference on vLLM it first prints the memory that each GPU needs, and refuses a run that
    cannot fit the run file's reference.hardware.

    \b
    Example:
      verifier plan configs/example.yaml
    """
    from verifier.audit import make_endpoint, start
    from verifier.config import load_fleet
    from verifier.plan import forecast_run
    from verifier.spending import add_up

    fleet = load_fleet(run_file)
    every = fleet.every_run_file
    for config in every.values():  # what it refuses should leave no run folder behind
        make_endpoint(config, api_key=None)
    _check_memory(next(iter(every.values())))
    if fleet.targets is not None:
        from verifier.fleet import start_targets

        for problem in start_targets(fleet)[2].values():
            raise problem
    elif fleet.control is not None:
        from verifier.fleet import start_beside

        start_beside(fleet)
    else:
        start(every[""])
    forecasts = {name: forecast_run(config.out) for name, config in every.items()}
    for name, config in every.items():
        if name:
            typer.echo(f"\n== {name} ==")
        typer.echo(f"run folder: {config.out}")
        _print_forecast(*forecasts[name])
    if len(forecasts) > 1:
        typer.echo("\n== in all ==")
        expected, most = zip(*forecasts.values(), strict=True)
        _print_forecast(add_up(expected), add_up(most))


def _print_forecast(expected: Priced, most: Priced) -> None:
    for name, priced in (("expected, if the whole budget is used", expected), ("at most", most)):
        amount, usd = priced.amount, priced.usd
        cost = "cost not known: no prices were given" if usd is None else f"USD {usd:,.4f}"
        typer.echo(
            f"{name}: {amount.requests:,} requests, {amount.prompt_tokens:,} prompt and "
            f"{amount.completion_tokens:,} completion tokens, {cost}"
        )


def _check_memory(config: RunFile) -> None:
    """Print the memory that a reference on vLLM needs; refuse what cannot fit."""
    from verifier.fit import check_fit, plan_memory, uses_gpus
    from verifier.memory import missing_facts
    from verifier.reference import load_card
    from verifier.sheets import print_memory

    section = config.reference
    if not uses_gpus(section):
        return
    card = load_card(section.card)
    missing = missing_facts(card)
    if missing:
        typer.echo(f"memory: not planned, because card {card.name} lacks {', '.join(missing)}")
        return
    memory = plan_memory(card, section, max_tokens=config.audit.max_tokens)
    print_memory(memory, section.hardware, _Console())
    if section.hardware is not None:
        check_fit(memory, section.hardware)


@app.command()
def capabilities(
    run_file: Annotated[Path, typer.Argument(metavar="RUNFILE", help="A run file.")],
) -> None:
    """Find out by effect what an endpoint can do, for a handful of requests.

    The record goes into the run folder, and an audit of the same run file then asks for what works
    alone. What it cost counts against the audit's budget.

    \b
    Example:
      verifier capabilities configs/example.yaml
    """
    from verifier.audit import find_capabilities
    from verifier.capabilities import describe
    from verifier.config import load_run_file
    from verifier.wording import visible

    config = load_run_file(run_file)
    for name, found in describe(
        find_capabilities(config, api_key=_api_key(config, out=config.out))
    ):
        typer.echo(f"{name}: {visible(found)}")


@app.command()
def collect(
    run: RunFolder,
    probes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Ask the first N probes; all when left out."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Ask the probes of a planned run that have no answer yet, within its budget.

    A run folder says which key goes to which host, so one that names a key is asked from only
    with --trust: it may come from a stranger.

    \b
    Example:
      verifier collect runs/first --probes 20 --trust
    """
    from verifier.audit import ask
    from verifier.config import load_run_file
    from verifier.folder import RUN
    from verifier.plan import read_plan

    read_plan(run)  # says it best when this is no run folder
    config = load_run_file(run / RUN).model_copy(update={"out": run})
    if config.endpoint.api_key_env or config.endpoint.api_key_file:
        _need_trust(
            trust, run, "endpoint.api_key_env", f"sends your key to {config.endpoint.base_url}"
        )
    with _showing() as show:
        count = ask(run, api_key=_api_key(config, out=run), probes=probes, show=show)
    typer.echo(f"{count} probes have an outcome in {run}")


@app.command()
def score(
    run: RunFolder,
    builds: Annotated[
        bool,
        typer.Option("--builds", help="Also score the card's bank, so that a cause can be named."),
    ] = False,
    trust: Trust = False,
) -> None:
    """Score what has arrived under the reference weights, and write the ledger.

    A run folder whose run file names files, servers or engine arguments of its own is scored only
    with --trust: it may come from a stranger, and some engine arguments run code.

    \b
    Example:
      verifier score runs/first
    """
    from verifier.audit import NAMING_REPLIES, nameable, reference_loader
    from verifier.audit import score as score_run
    from verifier.config import load_run_file
    from verifier.folder import RUN
    from verifier.plan import read_plan

    made = read_plan(run)
    config = load_run_file(run / RUN)
    reference = config.reference
    for key, own in (
        ("weights", reference.weights is not None),
        ("engine_args", bool(reference.engine_args)),
        ("url", reference.url is not None),
        ("suspects", bool(reference.suspects)),
    ):
        if own:
            _need_trust(trust, run, f"reference.{key}", "loads what its run file names")
    with _showing() as show:
        api_key = _reference_key(config)
        loaded = reference_loader(config, cache=_cache(), show=show, api_key=api_key)()
        weights = nameable(made, loaded, show) if builds else ()
        score_run(run, loaded, weights=weights, limit=NAMING_REPLIES, show=show)
    typer.echo(f"scored; the ledger is in {run}")


@app.command()
def decide(run: RunFolder, as_json: AsJson = False) -> None:
    """Decide a scored run folder anew. Needs no model and no network; the bytes do not change.

    \b
    Example:
      verifier decide runs/first
    """
    from verifier.decide import decide_folder

    report = decide_folder(run)
    _print_report(report, run, as_json=as_json)
    raise typer.Exit(EXIT[report.decision])


@app.command()
def report(
    run: RunFolder,
    as_json: AsJson = False,
    junit: Junit = None,
    markdown: Markdown = None,
) -> None:
    """Show the verdict of a run folder and write its HTML page.

    In JUnit XML each departure of the policy is a test case: detected fails, excluded passes, all
    else is skipped.

    \b
    Example:
      verifier report runs/first --junit junit.xml --markdown summary.md
    """
    from verifier.audit import write_page

    found = write_page(run)
    if junit is not None or markdown is not None:
        from verifier.machine import render_junit, render_markdown

        _write_for_machines(
            junit=(junit, render_junit(found)), markdown=(markdown, render_markdown(found))
        )
    _print_report(found, run, as_json=as_json)
    raise typer.Exit(EXIT[found.decision])


@app.command()
def summary(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of several targets' run folders.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print summary.json instead of a table.")
    ] = False,
    junit: Junit = None,
    markdown: Markdown = None,
) -> None:
    """Say where several targets stand, and which accusations stand among so many.

    Decides every run folder anew and writes summary.json; no model, no network, the same bytes.
    JUnit XML has one suite a target. The exit status is that of the audit.

    \b
    Example:
      verifier summary runs/hosts --junit junit.xml --markdown summary.md
    """
    from verifier.summary import read_reports, summarise

    found = summarise(folder)
    if junit is not None or markdown is not None:
        from verifier.machine import render_junits, render_summary

        reports = read_reports(folder, found)
        _write_for_machines(
            junit=(junit, render_junits(found, reports)), markdown=(markdown, render_summary(found))
        )
    _print_summary(found, folder, as_json=as_json)
    raise typer.Exit(_worst(found))


def _write_for_machines(
    *, junit: tuple[Path | None, str], markdown: tuple[Path | None, str]
) -> None:
    from verifier.folder import write_whole

    if junit[0] is not None:
        write_whole(junit[0], junit[1])
    if markdown[0] is not None:
        with markdown[0].open("a", encoding="utf-8") as file:
            file.write(markdown[1])


# -- calibrate, demo, bench --------------------------------------------------------------------


@app.command()
def calibrate(
    card: CardName,
    work: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where replies are kept, to go on later.")
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="What audits will score with: vllm or transformers.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the probes.")] = 20261124,
) -> None:
    """Measure honest serving and every known variant, and write the card's calibration.

    Takes about half an hour for the embedded model on two cores.

    \b
    Example:
      verifier calibrate smollm2-135m-instruct
    """
    from verifier.calibration import write_calibration
    from verifier.plan import versions
    from verifier.reference import load_card
    from verifier.weights import check_weights, fetch_weights

    found = load_card(card)
    from verifier.calibrate import Sizes
    from verifier.calibrate import calibrate as run_calibration
    from verifier.engines.load import load_engine
    from verifier.tokens import Tokenizer

    with _showing() as show:
        weights = fetch_weights(found, cache=_cache(), tell=show.tell)
        check_weights(found, weights)
        made = run_calibration(
            found,
            weights,
            work=work or _cache() / f"calibrate-{found.name}",
            load_reference=lambda: load_engine(engine, weights, Tokenizer(weights)),
            seed=seed,
            versions=versions(),
            sizes=Sizes(),
            tell=show.tell,
            progress=lambda done, of: show.step("replies", done, of),
        )
    path = write_calibration(card, made)
    typer.echo(f"{path}: honest scale {made.text.honest_scale:.2g}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the run folders go.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Audit two local hosts: an honest one, and one that serves 4-bit weights.

    Fetches the embedded model first (98 MB, once). Run folders with HTML reports are kept.

    \b
    Example:
      verifier demo
    """
    from verifier.demo import run_demo

    if out.exists():
        raise ConfigError(f"{out}: exists; remove it or give another --out")
    lines = []
    with _showing() as show:
        for fault, found in run_demo(out, load_reference=_embedded(show), show=show):
            name = "the honest host" if fault == "none" else f"the host that serves {fault}"
            typer.echo(f"\n== {name} ==\n")
            _print_report(found, None, as_json=False)
            lines.append(f"{name}: {found.decision.upper()} - {found.summary}")
    typer.echo("")
    for line in lines:
        typer.echo(line)
    typer.echo(f"run folders and HTML reports: {out}/*/report.html")


@app.command()
def bench(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Where corpora and results go.")],
    part: Annotated[
        list[str] | None, typer.Option(help="Only these parts of the benchmark; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the probes.")] = 20261125,
    fault: Annotated[
        list[str] | None, typer.Option(help="Of the part templates, only these faults; repeatable.")
    ] = None,
    audits: Annotated[
        int | None, typer.Option(min=1, help="Of templates and tricks, so many audits per host.")
    ] = None,
    family: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of the part identity, a model of another family."),
    ] = None,
) -> None:
    """Measure error rates and tokens to a verdict on hosts whose truth is known. Takes hours.

    Some parts are not measured with the others but alone: `engine` (what scoring with vLLM costs;
    20 minutes), `identity` (hosts that serve another model; half an hour), `routing` (hosts that
    answer some requests with another model; 20 minutes), `samplers` (what is said of samplers; an
    hour), `templates` (which template fault is named; hours), `tricks` (hosts that look right; an
    hour) and `wire` (what collecting withstands, and how fast it is; half an hour).

    \b
    Examples:
      verifier bench runs/bench --part honest
      verifier bench runs/templates --part templates --audits 4
    """
    from verifier.folder import read_json

    match part:
        case ["engine"]:
            path, tabulate = _bench_engine(out, seed=seed)
        case ["identity"]:
            path, tabulate = _bench_identity(out, seed=seed, family=family)
        case ["routing"]:
            path, tabulate = _bench_routing(out, seed=seed)
        case ["templates"]:
            path, tabulate = _bench_templates(out, seed=seed, faults=fault or (), audits=audits)
        case ["samplers"]:
            path, tabulate = _bench_samplers(out, seed=seed)
        case ["tricks"]:
            path, tabulate = _bench_tricks(out, seed=seed, audits=audits)
        case ["wire"]:
            path, tabulate = _bench_wire(out, seed=seed)
        case _:
            path, tabulate = _bench_audits(out, seed=seed, parts=part or ())
    typer.echo(tabulate(read_json(path)))
    typer.echo(f"results: {path}")


def _bench_audits(out: Path, *, seed: int, parts: Sequence[str]) -> tuple[Path, Tabulate]:
    from verifier.bench import run_bench, tabulate

    with _showing() as show:
        path = run_bench(
            out,
            cache=_cache(),
            parts=tuple(parts),
            seed=seed,
            tell=show.tell,
            progress=lambda done, of: show.step("replies", done, of),
        )
    return path, tabulate


def _bench_engine(out: Path, *, seed: int) -> tuple[Path, Tabulate]:
    from verifier.bench_engine import run_engine_bench, tabulate_engine

    with _showing() as show:
        path = run_engine_bench(out, cache=_cache(), seed=seed, tell=show.tell)
    return path, tabulate_engine


def _bench_identity(out: Path, *, seed: int, family: Path | None) -> tuple[Path, Tabulate]:
    from verifier.bench_identity import run_identity_bench, tabulate_identity

    with _showing() as show:
        path = run_identity_bench(
            out,
            cache=_cache(),
            family=family,
            seed=seed,
            tell=show.tell,
            progress=lambda done, of: show.step("replies", done, of),
        )
    return path, tabulate_identity


def _bench_routing(out: Path, *, seed: int) -> tuple[Path, Tabulate]:
    from verifier.bench_routing import run_routing_bench, tabulate_routing

    with _showing() as show:
        path = run_routing_bench(
            out,
            cache=_cache(),
            seed=seed,
            tell=show.tell,
            progress=lambda done, of: show.step("replies", done, of),
        )
    return path, tabulate_routing


def _bench_templates(
    out: Path, *, seed: int, faults: Sequence[str], audits: int | None
) -> tuple[Path, Tabulate]:
    from verifier.bench_templates import run_template_bench, tabulate_templates

    with _showing() as show:
        path = run_template_bench(
            out, cache=_cache(), seed=seed, faults=tuple(faults), audits=audits, tell=show.tell
        )
    return path, tabulate_templates


def _bench_samplers(out: Path, *, seed: int) -> tuple[Path, Tabulate]:
    from verifier.bench_samplers import run_sampler_bench, tabulate_samplers

    with _showing() as show:
        path = run_sampler_bench(out, cache=_cache(), seed=seed, tell=show.tell)
    return path, tabulate_samplers


def _bench_tricks(out: Path, *, seed: int, audits: int | None) -> tuple[Path, Tabulate]:
    from verifier.bench_tricks import AUDITS, run_trick_bench, tabulate_tricks

    with _showing() as show:
        path = run_trick_bench(
            out, load_reference=_embedded(show), show=show, seed=seed, audits=audits or AUDITS
        )
    return path, tabulate_tricks


def _bench_wire(out: Path, *, seed: int) -> tuple[Path, Tabulate]:
    from verifier import bench_wire

    with _showing() as show:
        reference = _embedded(show)
        path = bench_wire.run_bench_wire(out, load_reference=reference, show=show, seed=seed)
    return path, bench_wire.tabulate


# -- reference ---------------------------------------------------------------------------------


@reference_app.command("list")
def list_reference() -> None:
    """List the cards that ship, and whether their licences let the model be hosted for money.

    \b
    Example:
      verifier reference list
    """
    from verifier.sheets import print_cards

    print_cards(_Console())


@reference_app.command("show")
def show_reference(card: CardName) -> None:
    """Print everything that a card says, the terms of its licence first.

    \b
    Example:
      verifier reference show minimax-m2.7
    """
    from verifier.sheets import print_card

    print_card(card, _Console())


@reference_app.command("pin")
def pin_reference(
    card: CardName,
    weights: Annotated[
        str,
        typer.Option(metavar="DIR|REPO@REV", help="A local snapshot, or one to fetch of the hub."),
    ],
) -> None:
    """Fill the digests that a card leaves open, from a snapshot, and write them into its file.

    Refuses a snapshot that differs from what is pinned already.

    \b
    Example:
      verifier reference pin qwen3-8b --weights Qwen/Qwen3-8B@main
    """
    from verifier.pin import pin_card

    with _showing() as show:
        written = pin_card(card, weights, tell=show.tell)
    for key, value in written.items():
        typer.echo(f"{key}: {value}")
    if not written:
        typer.echo("nothing to fill: all that this snapshot shows is pinned, and agrees")


@app.command()
def panel(
    card: CardName,
    seed: Annotated[int, typer.Option(help="Seed of the probes.")],
    size: Annotated[int, typer.Option(min=1, help="How many probes.")] = 12,
) -> None:
    """Search for the probes that tell a template's renderings apart, and print what they separate.

    \b
    Example:
      verifier panel smollm2-135m-instruct --seed 7
    """
    from verifier.audit import design_card_panel
    from verifier.reference import load_card

    with _showing() as show:
        found = design_card_panel(load_card(card), seed=seed, size=size, cache=_cache(), show=show)
    names = found.names
    for number, probe in enumerate(found.probes):
        counts = sorted({int(n) for n in found.lengths[:, number] if n == n})
        roles = " ".join(message.role for message in probe.messages)
        typer.echo(f"{probe.id}: {int(found.lengths[0, number])} tokens as published, "
                   f"{len(counts)} different counts; {roles}")  # fmt: skip
    confused, pairs = found.confused(), len(names) * (len(names) - 1) // 2
    typer.echo(f"counts tell {pairs - len(confused)} of {pairs} pairs of renderings apart; not:")
    for one, other in confused:
        same = " (the same prompts)" if (one, other) in found.inseparable() else ""
        typer.echo(f"  {one}, {other}{same}")


# -- testbed -----------------------------------------------------------------------------------


@testbed_app.command("list")
def list_testbed_faults() -> None:
    """List the faults that the testbed can serve.

    \b
    Example:
      verifier testbed list
    """
    from verifier.testbed import list_faults

    for name, summary in list_faults():
        typer.echo(f"{name:20} {summary}")


@testbed_app.command("serve")
def serve_testbed(
    fault: Annotated[
        str, typer.Option(help="A fault of `testbed list`; kinds are joined by plus signs.")
    ] = "none",
    port: Annotated[int, typer.Option(help="Port on the loopback interface; 0: a free one.")] = 0,
    card: Annotated[
        str, typer.Option(metavar="CARD", help="Card of the weights to serve.")
    ] = "smollm2-135m-instruct",
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="What generates the replies.")
    ] = "transformers",
    dtype: Annotated[Dtype, typer.Option(help="Precision of the arithmetic.")] = "bfloat16",
    max_batch: Annotated[int, typer.Option(min=1, help="Replies generated together at most.")] = 16,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VAR", help="Ask for the key that this variable holds.")
    ] = None,
    shows_prompts: Annotated[
        bool, typer.Option("--shows-prompts", help="Show rendered prompts to who asks, as vLLM.")
    ] = False,
    completes_as_chat: Annotated[
        bool, typer.Option("--completes-as-chat", help="Make texts to complete into chats.")
    ] = False,
) -> None:
    """Serve a card's weights, with a fault of your choice, until stopped.

    A laboratory instrument to measure audits with: it listens on the loopback interface only and
    is no server for people.

    \b
    Example:
      verifier testbed serve --fault int4-asym-g64 --port 8000
      verifier testbed serve --fault int4-sym-g64+template:default-system-dropped
      verifier testbed serve --fault weights:models/another
    """
    from verifier.reference import load_card, load_templates
    from verifier.renderings.catalogue import catalogue
    from verifier.testbed import create_app, read_fault, serve
    from verifier.weights import check_weights, fetch_weights

    found = load_card(card)
    earlier, valid = load_templates(card, found)
    entries = catalogue(earlier=earlier, valid=valid)
    served = read_fault(fault, layers=found.layers, catalogue=entries)
    key = None if api_key_env is None else _read_key(api_key_env, where="--api-key-env")
    with _showing() as show:
        directory = served.directory or fetch_weights(found, cache=_cache(), tell=show.tell)
        if served.directory is None:
            check_weights(found, directory)
    from verifier.engines.load import load_engine
    from verifier.tokens import Tokenizer

    tokenizer = Tokenizer(directory)
    loaded = load_engine(engine, directory, tokenizer, dtype=dtype)
    loaded.load_variant(served.weights)
    host = create_app(
        loaded, tokenizer, model=found.name, rendering=served.rendering,
        sampler=dict(served.sampler), tricks=served.tricks, weights=served.weights, api_key=key,
        max_batch=max_batch, shows_prompts=shows_prompts, completes_as_chat=completes_as_chat,
    )  # fmt: skip
    serve(
        host,
        port=port,
        announce=lambda url: print(  # noqa: T201
            f"serving {found.name} with fault {fault} at {url}", flush=True
        ),
    )


@testbed_app.command("route")
def route_testbed(
    base_url: Annotated[
        str, typer.Option(metavar="URL", help="The host that gets what no --route takes.")
    ],
    route: Annotated[
        list[str],
        typer.Option(metavar="SHARE:URL", help="A host and its share of requests; repeatable."),
    ],
    routing: Annotated[
        Literal["random", "sticky", "bursts", "hours"],
        typer.Option(help="By request, by the user's first words, by runs, or by the hour."),
    ] = "random",
    seed: Annotated[int, typer.Option(help="Seed of the routing.")] = 0,
    port: Annotated[int, typer.Option(help="Port on the loopback interface; 0: a free one.")] = 0,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Note there which host got each request.")
    ] = None,
) -> None:
    """Answer some requests from other hosts than the rest, as a router may, until stopped.

    A laboratory instrument. Answers do not tell which host gave them.

    \b
    Example:
      verifier testbed route --base-url http://127.0.0.1:8000/v1 \\
          --route 0.3:http://127.0.0.1:8001/v1 --routing sticky --log routed.jsonl
    """
    from verifier.testbed import serve
    from verifier.testbed_router import create_router, read_routes

    upstreams = read_routes(base_url, route)
    serve(
        create_router(upstreams, routing=routing, seed=seed, log=log),
        port=port,
        announce=lambda url: print(  # noqa: T201
            f"routing between {len(upstreams)} hosts at {url}", flush=True
        ),
    )


# -- showing -----------------------------------------------------------------------------------


def _embedded(show: Show) -> LoadReference:
    """Loads the reference of the embedded model."""
    from verifier.audit import reference_loader
    from verifier.config import EndpointSection, ReferenceSection, RunFile
    from verifier.demo import CARD

    config = RunFile(
        endpoint=EndpointSection(base_url="http://127.0.0.1/v1", model=CARD),
        reference=ReferenceSection(card=CARD),
        out=Path(),
    )
    return reference_loader(config, cache=_cache(), show=show)


@contextmanager
def _showing() -> Iterator[Show]:
    """Progress on stderr: a bar on a terminal, and one line per step."""
    from verifier.audit import Show

    console = _Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        bar = progress.add_task("starting", total=None)

        def step(name: str, done: int, of: int) -> None:
            progress.update(bar, description=name, completed=done, total=of)

        def tell(line: str) -> None:
            progress.update(bar, description=line, completed=0, total=None)
            console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

        yield Show(tell=tell, step=step)


def _print_report(found: Report, run: Path | None, *, as_json: bool) -> None:
    from verifier.report import render_terminal, report_to_json

    if as_json:
        text = json.dumps(report_to_json(found), indent=2, ensure_ascii=False)
        typer.echo(f"{text}\n".encode(), nl=False)  # UTF-8 whatever the terminal: as in the file
        return
    console = _Console()
    render_terminal(found, console=console)
    if run is not None:
        console.print(f"\nrun folder: {run}", markup=False, highlight=False, soft_wrap=True)


def _print_summary(found: Summary, folder: Path, *, as_json: bool) -> None:
    from verifier.report import plain
    from verifier.sheets import print_summary

    if as_json:
        text = json.dumps(plain(found), indent=2, ensure_ascii=False)
        typer.echo(f"{text}\n".encode(), nl=False)  # as in the file
        return
    console = _Console()
    print_summary(found, console)
    console.print(f"\nrun folders: {folder}", markup=False, highlight=False, soft_wrap=True)


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Rich would end with status 1, which is a verdict."""
        raise BrokenPipeError
