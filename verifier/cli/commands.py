"""The commands: arguments in, exit status out. `cli` runs them and turns every error into one line.

Exit status: 0 consistent (or done), 1 inconsistent, 2 usage or configuration error, 3
inconclusive; `cli` has the rest.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

import verifier
from verifier import wording
from verifier.cli import stop
from verifier.cli.common import (
    EXIT,
    USAGE,
    AsJson,
    InSections,
    Junit,
    ListJson,
    Markdown,
    RunFolder,
    Terminal,
    Trust,
    WithWholeLines,
    cache_directory,
    cards_directory,
    complete,
    endpoint_key,
    help_when_bare,
    help_width,
    is_asked_by_a_shell,
    need_folder,
    now,
    read_key,
    say,
    say_json,
    say_own,
    sets_up_completion,
    show_report,
    show_summary,
    showing,
    state_directory,
    warn_of_keys_in_clear,
)
from verifier.cli.init import init
from verifier.cli.lab import bench, calibrate, demo, testbed_app
from verifier.cli.options import (
    Described,
    begun_anew,
    configure,
    run_files_of,
    takes_a_run,
)
from verifier.cli.pack import pack_app
from verifier.cli.reference import panel, reference_app
from verifier.errors import ConfigError, VerifierError
from verifier.safety import sieve
from verifier.shipped import with_own_cards

if TYPE_CHECKING:
    from verifier.config import Fleet, RunFile
    from verifier.host.budget import Priced
    from verifier.progress import Show
    from verifier.records import Report, Summary
    from verifier.reference.loaded import LoadReference

#: What a command line that cannot be read raises; typer offers no name for it.
_UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    help=(
        "Tells whether a hosting endpoint serves the open weights it claims.\n\n"
        "Exit status: 0 consistent, or done; 1 inconsistent; 2 usage or configuration error; 3 "
        "inconclusive; 4 a defect of this program or of what is installed; 130 interrupted; 141 "
        "nobody read on. A word on each command stands in its own --help."
    ),
    cls=WithWholeLines,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit status. Errors are left to the caller."""
    command = typer.main.get_command(app)
    if not arguments and is_asked_by_a_shell():
        return complete(command)
    try:
        # not app(): that ends an interrupt and a broken pipe with the status of a verdict
        with (
            with_own_cards(cards_directory()),
            command.make_context(
                "verifier", list(arguments), terminal_width=help_width()
            ) as context,
        ):
            context.command.invoke(context)
    except typer.Exit as done:
        return USAGE if done.exit_code and sets_up_completion(arguments) else done.exit_code
    except SystemExit as done:
        if not sets_up_completion(arguments):
            raise
        return USAGE if done.code else 0
    except _UsageError as error:
        at = getattr(getattr(error, "ctx", None), "command_path", "verifier")
        said = getattr(error, "format_message", error.__str__)().rstrip(".")
        raise ConfigError(f"{said} (see `{at} --help`)") from error
    return 0


def _version(asked: bool) -> None:
    if asked:
        say(f"verifier {verifier.__version__}")
        raise typer.Exit


@app.callback()
def _global(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback reads it
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    help_when_bare(context)


app.command(cls=InSections)(init)  # where one begins


# -- audit -------------------------------------------------------------------------------------


@app.command(cls=InSections)
@takes_a_run
def audit(
    described: Described,
    again: Annotated[
        bool,
        typer.Option("--again", help="Audit anew, in a folder beside it, named after the moment."),
    ] = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Audit an endpoint against local reference weights, or several of one run file.

    An audit that was stopped goes on with the same command, or with its run folder in place of the
    run file. One that is finished asks nobody: --again begins a new one.

    Exit status: 0 consistent, 1 inconsistent, 2 usage or configuration error, 3 inconclusive, 4 a
    defect of this program or of what is installed, 130 interrupted, 141 nobody read on. Of several
    targets the worst news counts: 1 when any is inconsistent, else 3 when any is inconclusive or
    not judged.

    A run file is a program, to be read first. One that lies in a run folder which was not made here
    needs --trust.

    \b
    Examples:
      verifier audit audit.yaml
      verifier audit runs/first
      verifier audit --base-url http://127.0.0.1:8000/v1 \\
          --model smollm2-135m-instruct --reference smollm2-135m-instruct \\
          --out runs/first
      verifier audit --host openrouter --provider novita/fp8 \\
          --model qwen/qwen3-8b --reference qwen3-8b --out runs/novita
    """
    fleet = configure(described, command="audit", trust=trust)  # before all that loads slowly
    from verifier.files.finished import bytes_sent
    from verifier.files.run_folder import PLAN, working_in
    from verifier.records import Summary
    from verifier.reference.ready import refuse_unready
    from verifier.steps import make_endpoint

    if again:
        fleet = begun_anew(fleet, described, now=now())
    every = fleet.every_run_file
    new = [one.audit.policy for one in every.values() if not (one.out / PLAN).exists()]
    refuse_unready(fleet.reference, policy=next(iter(new), None))
    keys = {name: endpoint_key(config, out=fleet.out) for name, config in every.items()}
    for name, config in every.items():  # what it refuses should leave no run folder behind
        make_endpoint(config, api_key=keys[name])
    warn_of_keys_in_clear(every.values())
    with working_in(fleet.out, make=True), showing() as show:
        _start(fleet)
        stop.goes_on(_next(fleet, again=again))
        before = {name: bytes_sent(config.out) for name, config in every.items()}
        found = _run_audit(fleet, keys=keys, show=show)
    silent = [n for n, config in every.items() if bytes_sent(config.out) == before[n] > 0]
    _say_who_was_not_asked(found, silent, of=len(every), out=fleet.out, err=as_json)
    if isinstance(found, Summary):
        show_summary(found, fleet.out, as_json=as_json)
        raise typer.Exit(_worst(found))
    show_report(found, fleet.out, as_json=as_json)
    raise typer.Exit(EXIT[found.decision])


def _next(fleet: Fleet, *, again: bool) -> str:
    """What goes on with an audit; with `again` the same command would begin another."""
    return f"`verifier audit {shlex.quote(str(fleet.out))}`" if again else stop.SAME


def _run_audit(fleet: Fleet, *, keys: Mapping[str, str | None], show: Show) -> Report | Summary:
    """Audit what a run file names; what is finished is decided anew, without asking or loading."""
    from verifier.audit import audit as run_audit
    from verifier.fleet.side_by_side import (
        audit_beside_control,
        audit_targets,
        decide_again,
        is_over,
    )

    if is_over(fleet):
        return decide_again(fleet)
    configs = fleet.every_run_file
    load = _reference_loader(next(iter(configs.values())), show)
    if fleet.targets is not None:
        return audit_targets(fleet, keys=keys, load_reference=load, show=show)
    if fleet.control is not None:
        return audit_beside_control(fleet, keys=keys, load_reference=load, show=show)
    return run_audit(configs[""], api_key=keys[""], load_reference=load, show=show)


def _say_who_was_not_asked(
    found: Report | Summary, silent: Sequence[str], *, of: int, out: Path, err: bool
) -> None:
    """Before all else: a verdict of an earlier day is not one of today."""
    if not silent:
        return
    last = wording.describe_last(found)
    who = "nobody was asked" if len(silent) == of else f"not asked anew: {', '.join(silent)}"
    say(
        f"{who}: {out} is finished, its last question asked {last}; add --again to audit anew, in "
        "a folder beside it",
        err=err,
    )


def _reference_loader(config: RunFile, show: Show) -> LoadReference:
    from verifier.reference.loaded import reference_loader

    return reference_loader(
        config, cache=cache_directory(), show=show, api_key=_reference_key(config)
    )


def _worst(found: Summary) -> int:
    """The exit status of several targets: the worst news first."""
    decisions = {target.decision for target in found.targets}
    if "inconsistent" in decisions:
        return EXIT["inconsistent"]
    return EXIT["consistent"] if decisions == {"consistent"} else EXIT["inconclusive"]


def _reference_key(config: RunFile) -> str | None:
    """The key of the remote engine's server."""
    name = config.reference.url_key_env
    return None if name is None else read_key(name, where="reference.url_key_env")


@contextmanager
def _to_write_in(*folders: Path) -> Iterator[bool]:
    """Hold run folders to write into; False, and a word on it, where nobody can write.

    What is only shown needs no place to be kept.
    """
    from verifier.files.run_folder import working_in

    with ExitStack() as held:
        try:
            held.enter_context(working_in(*folders))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            _warn(f"{folders[0]}: cannot be written to ({error.strerror}); nothing is kept there")
            yield False
            return
        yield True


def _warn(message: str) -> None:
    say(f"verifier: {message}", err=True)


def _is_ours(run: Path, *, trust: bool) -> bool:
    """Whether the run file of a run folder is done as it stands."""
    from verifier.cli.trust import is_made_here
    from verifier.files.run_folder import RUN

    return trust or is_made_here(run / RUN, state=state_directory())


def _is_ours_to_plan(run_file: Path) -> bool:
    """Whether what is planned from a run file counts as made here: planning needs no trust."""
    from verifier.cli.trust import need_trust_of

    with suppress(ConfigError):
        need_trust_of(run_file, trust=False, state=state_directory())
        return True
    return False


def _start(fleet: Fleet, *, ours: bool = True) -> dict[str, VerifierError]:
    """Write the plans, or take them up; `ours`: what is written is noted as made here.

    What stands against planning single targets.
    """
    from verifier.cli.trust import remember
    from verifier.files.run_folder import FLEET, PLAN, RUN
    from verifier.fleet.side_by_side import start_beside, start_targets
    from verifier.steps import start

    new = {n: c.out / RUN for n, c in fleet.every_run_file.items() if not (c.out / PLAN).exists()}
    problems: dict[str, VerifierError] = {}
    if fleet.targets is not None:
        kept = fleet.out / FLEET
        new |= {FLEET: kept} if not kept.exists() else {}
        problems = start_targets(fleet)[2]
    elif fleet.control is not None:
        start_beside(fleet)
    else:
        start(fleet.run_files[""])
    if ours:
        written = [path for name, path in new.items() if name not in problems and path.exists()]
        remember(written, state=state_directory())
    return problems


# -- the steps of a run folder -----------------------------------------------------------------


@app.command(cls=InSections)
@takes_a_run
def plan(
    described: Described,
    as_json: ListJson = False,
) -> None:
    """Write the run folder of a run file and print what it may cost. Sends nothing.

    Expected is an audit that uses its whole budget; most stop earlier. The audit stops before it
    would cross what it may cost at most.

    For a reference on vLLM it first prints the memory that each GPU needs, and refuses a run that
    cannot fit the run file's reference.hardware.

    \b
    Examples:
      verifier plan audit.yaml
      verifier plan --host together --model Qwen/Qwen3-8B --reference qwen3-8b \\
          --input-price 0.18 --output-price 0.18 --out runs/together
    """
    fleet = configure(described, command="plan", trust=True)  # before all that loads slowly
    from verifier.files.run_folder import working_in
    from verifier.host.budget import add_up
    from verifier.plan import forecast_run
    from verifier.steps import make_endpoint

    every = fleet.every_run_file
    for config in every.values():  # what it refuses should leave no run folder behind
        make_endpoint(config, api_key=None)
    _check_memory(next(iter(every.values())), quiet=as_json)
    warn_of_keys_in_clear(every.values())
    ours = described.path is None or all(map(_is_ours_to_plan, run_files_of(described.path)))
    with working_in(fleet.out, make=True):
        for problem in _start(fleet, ours=ours).values():
            raise problem
    forecasts = {name: forecast_run(config.out) for name, config in every.items()}
    if as_json:
        say_json([_planned(every[name], *found) for name, found in forecasts.items()])
        return
    for name, config in every.items():
        _print_plan(name, config, forecasts[name])
    if len(forecasts) > 1:
        say("")
        say("== in all ==")
        expected, most = zip(*forecasts.values(), strict=True)
        _print_forecast(add_up(expected), add_up(most))


def _planned(config: RunFile, expected: Priced, most: Priced) -> dict[str, Any]:
    """What is planned of one run, as JSON values."""
    from verifier.plan import describe_policy, longest_waits_s
    from verifier.report_file import plain

    return {
        "run_folder": str(config.out),
        "policy": describe_policy(config.out),
        "expected": plain(expected),
        "most": plain(most),
        "deadline_s": config.audit.deadline,
        "longest_waits_s": longest_waits_s(config.out),
    }


def _print_plan(name: str, config: RunFile, forecast: tuple[Priced, Priced]) -> None:
    """What is planned of one run, in lines; under its name, if it has one."""
    from verifier.plan import describe_policy, longest_waits_s
    from verifier.wording import describe_seconds

    for line in ("", f"== {name} ==") if name else ():
        say(line)
    say(f"run folder: {config.out}")
    for line in describe_policy(config.out):
        say(line)
    _print_forecast(*forecast)
    say(
        f"deadline: {describe_seconds(config.audit.deadline)}; without one, waits for the "
        f"endpoint could take {describe_seconds(longest_waits_s(config.out))}"
    )


def _print_forecast(expected: Priced, most: Priced) -> None:
    for name, priced in (("expected, if the whole budget is used", expected), ("at most", most)):
        amount, usd = priced.amount, priced.usd
        cost = "cost not known: no prices were given" if usd is None else f"USD {usd:,.4f}"
        say(
            f"{name}: {amount.requests:,} requests, {amount.prompt_tokens:,} prompt and "
            f"{amount.completion_tokens:,} completion tokens, {cost}"
        )


def _check_memory(config: RunFile, *, quiet: bool) -> None:
    """Print the memory that a reference on vLLM needs, unless `quiet`; refuse what cannot fit."""
    from verifier.reference.cards import load_card
    from verifier.reference.hardware import check_fit, plan_memory, uses_gpus
    from verifier.reference.memory import missing_facts
    from verifier.reports.tables import print_memory

    section = config.reference
    if not section.has_weights or not uses_gpus(section):
        return
    card = load_card(section.card)
    missing = missing_facts(card)
    if missing:
        if not quiet:
            say(f"memory: not planned, because card {card.name} lacks {', '.join(missing)}")
        return
    memory = plan_memory(card, section, max_tokens=config.audit.max_tokens)
    if not quiet:
        print_memory(memory, section.hardware, Terminal())
    if section.hardware is not None:
        check_fit(memory, section.hardware)


@app.command(cls=InSections)
@takes_a_run
def capabilities(
    described: Described,
    trust: Trust = False,
    as_json: ListJson = False,
) -> None:
    """Find out by effect what an endpoint can do, for a handful of requests.

    The record goes into the run folder, and an audit of the same run file then asks for what works
    alone. What it cost counts against the audit's budget.

    \b
    Examples:
      verifier capabilities audit.yaml
      verifier capabilities --host deepinfra --model Qwen/Qwen3-8B \\
          --reference qwen3-8b --out runs/deepinfra
    """
    fleet = configure(described, command="capabilities", trust=trust)
    from verifier.checks.capabilities.probe import describe
    from verifier.files.run_folder import working_in
    from verifier.steps import find_capabilities, make_endpoint

    config = _only_endpoint(fleet, where=described.path or "capabilities")
    key = endpoint_key(config, out=config.out)
    make_endpoint(config, api_key=key)  # what it refuses should leave no run folder behind
    warn_of_keys_in_clear([config])
    with working_in(config.out, make=True), showing() as show:
        _start(fleet)
        stop.goes_on(stop.SAME)
        record = find_capabilities(config, api_key=key, show=show)
    if as_json:
        say_json(dict(describe(record)))
        return
    for name, found in describe(record):
        say(f"{name}: {found}")


def _only_endpoint(fleet: Fleet, *, where: object) -> RunFile:
    """The run file of the one endpoint. Raises ConfigError where there are more."""
    from verifier.files.run_folder import RUN

    for what, found in (("targets", fleet.targets), ("control", fleet.control)):
        if found is not None:
            raise ConfigError(
                f"{where}: {what}: this command takes one endpoint; run `verifier plan` on this "
                f"run file, and give the {RUN} of one of the run folders that it writes"
            )
    return fleet.run_files[""]


@app.command(cls=InSections)
def collect(
    run: RunFolder,
    probes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Ask the first N probes; all when left out."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Ask the probes of a planned run that have no answer yet, within its budget.

    A run folder says what is sent to which host, and with which key, so one that was not made here
    is asked from only with --trust: it may come from a stranger.

    \b
    Example:
      verifier collect runs/first --probes 20
    """
    need_folder(run)
    from verifier.config import load_run_file
    from verifier.files.run_folder import RUN, working_in
    from verifier.plan_file import read_plan
    from verifier.steps import ask

    read_plan(run)  # says it best when this is no run folder
    config = load_run_file(run / RUN, below=run).model_copy(update={"out": run})
    endpoint = config.endpoint
    if not _is_ours(run, trust=trust):
        what = "your key" if endpoint.api_key_env or endpoint.api_key_file else "its probes"
        raise ConfigError(
            f"{run}: this sends {what} to {endpoint.base_url}, and the run folder was not made "
            f"here; read its {RUN}, and add --trust if it is yours"
        )
    warn_of_keys_in_clear([config])
    with working_in(run), showing() as show:
        stop.goes_on(stop.SAME)
        count = ask(run, api_key=endpoint_key(config, out=run), probes=probes, show=show)
    say(f"{count} probes have an outcome in {run}")


@app.command(cls=InSections)
def score(
    run: RunFolder,
    builds: Annotated[
        bool,
        typer.Option("--builds", help="Also score the card's bank, so that a cause can be named."),
    ] = False,
    anew: Annotated[
        bool,
        typer.Option("--anew", help="Remove the scores that are there and compute all of them."),
    ] = False,
    trust: Trust = False,
) -> None:
    """Score what has arrived under the reference weights, and write the ledger.

    A run folder that was not made here is scored under a card that ships, once its weights are on
    this machine; with --trust also if its run file names anything else, or something is to be
    fetched: it may come from a stranger, and some engine arguments run code.

    Scores that are there are kept, and refused when they are not those of the replies. --anew
    takes nothing on trust but the exchanges, and computes every score that the folder held.

    \b
    Examples:
      verifier score runs/first
      verifier score runs/first --anew
    """
    need_folder(run)
    from verifier.cli.trust import refuse_foreign
    from verifier.config import load_run_file
    from verifier.files.run_folder import RUN, working_in
    from verifier.plan_file import read_plan
    from verifier.reference.ready import refuse_unready
    from verifier.scoring.loadable import refuse_engine_of_name
    from verifier.steps import score_packed

    planned = read_plan(run)  # says it best when this is no run folder
    config = load_run_file(run / RUN, below=run)
    ours = _is_ours(run, trust=trust)
    if not ours:
        refuse_foreign(config.reference, where=str(run))
    lacking = planned.calibrated is None
    refuse_unready(config.reference, policy=config.audit.policy if lacking else None)
    warn_of_keys_in_clear([config])
    if config.reference.has_weights:
        say_own(config.reference.card)
        refuse_engine_of_name(planned, config.reference.engine)
    with working_in(run), showing() as show:
        if config.reference.has_weights:
            _score(config, run, fetch=ours, builds=builds, anew=anew, show=show)
        else:
            score_packed(run, show=show)
    say(f"scored; the ledger is in {run}")


def _score(
    config: RunFile, run: Path, *, fetch: bool, builds: bool, anew: bool, show: Show
) -> None:
    """Score a run under weights, which are loaded; all of it `anew`, or what is new."""
    from verifier.reference.loaded import reference_loader
    from verifier.steps import score, score_anew

    loaded = reference_loader(
        config, cache=cache_directory(), show=show, api_key=_reference_key(config), fetch=fetch
    )()
    if anew:  # the same command would begin again
        score_anew(run, loaded, builds=builds, show=show)
        return
    stop.goes_on(stop.SAME)
    score(run, loaded, builds=builds, show=show)


@app.command(cls=InSections)
def decide(run: RunFolder, as_json: AsJson = False) -> None:
    """Decide a scored run folder anew, and write its page. No model, no network, the same bytes.

    Exit status: 0 consistent, 1 inconsistent, 2 usage or configuration error, 3 inconclusive, 4 a
    defect of this program or of what is installed, 130 interrupted, 141 nobody read on.

    \b
    Example:
      verifier decide runs/first
    """
    need_folder(run)
    from verifier.steps import write_page
    from verifier.verdict.decide import judge_folder

    with _to_write_in(run) as writes:
        report, _ = judge_folder(run, writes=writes)
        if writes:
            write_page(run)
    show_report(report, run, as_json=as_json)
    raise typer.Exit(EXIT[report.decision])


@app.command(cls=InSections)
def report(
    run: RunFolder,
    as_json: AsJson = False,
    junit: Junit = None,
    markdown: Markdown = None,
) -> None:
    """Show the verdict of a run folder and write its HTML page.

    In JUnit XML each departure of the policy is a test case: detected fails, excluded passes, all
    else is skipped.

    Exit status: 0 consistent, 1 inconsistent, 2 usage or configuration error, 3 inconclusive, 4 a
    defect of this program or of what is installed, 130 interrupted, 141 nobody read on.

    \b
    Example:
      verifier report runs/first --junit junit.xml --markdown summary.md
    """
    need_folder(run)
    from verifier.steps import render_folder, write_page

    with _to_write_in(run) as writes:
        found = write_page(run) if writes else render_folder(run)[0]
    if junit is not None or markdown is not None:
        from verifier.reports.junit import render_junit
        from verifier.reports.markdown import render_markdown

        _write_for_machines(
            junit=(junit, render_junit(found)), markdown=(markdown, render_markdown(found))
        )
    show_report(found, run, as_json=as_json)
    raise typer.Exit(EXIT[found.decision])


@app.command(cls=InSections)
def summary(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="That of several targets' run folders.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print summary.json instead of a table.")
    ] = False,
    junit: Junit = None,
    markdown: Markdown = None,
) -> None:
    """Say where several targets stand, and which accusations stand among so many.

    Decides every run folder anew, and writes summary.json and the pages; no model, no network, the
    same bytes.
    JUnit XML has one suite a target.

    Exit status: 0 consistent, 1 inconsistent, 2 usage or configuration error, 3 inconclusive, 4 a
    defect of this program or of what is installed, 130 interrupted, 141 nobody read on.

    \b
    Example:
      verifier summary runs/hosts --junit junit.xml --markdown summary.md
    """
    need_folder(folder)
    from verifier.fleet.summary import folders_of, read_reports, summarise
    from verifier.steps import write_page

    with _to_write_in(folder, *folders_of(folder)) as writes:
        found = summarise(folder, writes=writes)
        for target in found.targets if writes else ():
            if target.decision is not None:
                write_page(folder / target.name)
    if junit is not None or markdown is not None:
        from verifier.reports.junit import render_junits
        from verifier.reports.markdown import render_summary

        reports = read_reports(folder, found)
        _write_for_machines(
            junit=(junit, render_junits(found, reports)), markdown=(markdown, render_summary(found))
        )
    show_summary(found, folder, as_json=as_json)
    raise typer.Exit(_worst(found))


def _write_for_machines(
    *, junit: tuple[Path | None, str], markdown: tuple[Path | None, str]
) -> None:
    from verifier.files.run_folder import write_whole

    if junit[0] is not None:
        write_whole(junit[0], junit[1])
    if markdown[0] is not None:
        with markdown[0].open("a", encoding="utf-8") as file:
            file.write(sieve.strike(markdown[1]))


# -- the commands of other modules -------------------------------------------------------------

for command in (calibrate, demo, bench, panel):
    app.command(cls=InSections)(command)
app.add_typer(testbed_app, name="testbed")
app.add_typer(reference_app, name="reference")
app.add_typer(pack_app, name="pack")
