"""Commands of the laboratory: hosts whose faults are known, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from verifier.cli import stop
from verifier.cli.common import (
    CardName,
    Dtype,
    EngineName,
    InSections,
    ListJson,
    WithWholeLines,
    cache_directory,
    help_when_bare,
    read_key,
    say,
    say_json,
    say_own,
    share_cores,
    show_report,
    showing,
)

if TYPE_CHECKING:
    from verifier.lab.testbed.host import Host
    from verifier.progress import Show
    from verifier.reference.cards import Card
    from verifier.reference.loaded import LoadReference

Fault = Annotated[
    str,
    typer.Option(metavar="NAME", help="A fault of `testbed list`; kinds are joined by plus signs."),
]
Port = Annotated[
    int, typer.Option(metavar="N", help="Port on the loopback interface; 0: a free one.")
]
Precision = Annotated[
    Dtype,
    typer.Option(metavar="NAME", help="Precision of the arithmetic: float32, bfloat16 or float16."),
]

testbed_app = typer.Typer(
    help="A laboratory instrument: local hosts whose faults are known. Not a server for people.",
    cls=WithWholeLines,
    invoke_without_command=True,
    rich_markup_mode=None,
)


@testbed_app.callback()
def _testbed(context: typer.Context) -> None:
    help_when_bare(context)


# -- calibrate, demo, bench --------------------------------------------------------------------


def calibrate(
    card: CardName,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|REPO@REV",
            help="The card's weights, where they lie, or to fetch of the hub; else as it says.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where replies are kept, to go on later.")
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(metavar="NAME", help="What audits will score with: vllm or transformers."),
    ] = "auto",
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the probes.")] = 20261124,
) -> None:
    """Measure honest serving and every known variant, and write the card's calibration.

    Takes about half an hour for the embedded model on two cores. What the card or the weights show
    that cannot succeed is refused first.

    \b
    Example:
      verifier calibrate smollm2-135m-instruct
    """
    from verifier.reference.cards import load_card

    found = load_card(card)  # before all that loads slowly
    share_cores(2)  # one for the host
    from verifier.lab.calibrate import Sizes, hidden_classes, refuse_card
    from verifier.lab.calibrate import calibrate as run_calibration
    from verifier.plan import versions
    from verifier.reference.calibrations import write_calibration
    from verifier.reference.describe import refuse_other_model
    from verifier.reference.engines.load import load_engine
    from verifier.reference.tokenizer import Tokenizer
    from verifier.reference.weights import check_weights

    refuse_card(found)  # before anything is fetched
    with showing() as show:
        directory = _weights_of(found, weights, show)
        refuse_card(found, seen=refuse_other_model(found, directory))
        check_weights(found, directory)
        stop.goes_on(stop.SAME)
        made = run_calibration(
            found, directory, work=out or cache_directory() / f"calibrate-{found.name}",
            load_reference=lambda: load_engine(
                engine, directory, Tokenizer(directory), engine_args=found.engine_args
            ),
            seed=seed, versions=versions(), sizes=Sizes(), tell=show.tell,
            progress=lambda done, of: show.step("replies", done, of),
        )  # fmt: skip
    path = write_calibration(card, made)
    say_own(card)
    hidden = ", ".join(hidden_classes(made))
    told = f"; its noise hides {hidden}, so that no audit excludes that" if hidden else ""
    say(f"{path}: honest scale {made.text.honest_scale:.2g}{told}")


def _weights_of(card: Card, given: str | None, show: Show) -> Path:
    """The folder of a card's weights: what was given, else as the card says."""
    from verifier.reference.pin import find_weights
    from verifier.reference.weights import fetch_weights

    if given is None:
        return fetch_weights(card, cache=cache_directory(), tell=show.tell)
    return find_weights(given, card.source, tell=show.tell)


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the run folders go.")] = Path(
        "runs/demo"
    ),
    as_json: ListJson = False,
) -> None:
    """Audit two local hosts: an honest one, and one that serves 4-bit weights.

    Fetches the embedded model first (98 MB, once). Run folders with HTML reports are kept. One that
    was stopped goes on with the same command.

    \b
    Example:
      verifier demo
    """
    from verifier.files.run_folder import PAGE
    from verifier.lab.demo import refuse_others, run_demo
    from verifier.report_file import report_to_json

    refuse_others(out)
    share_cores(2)  # one for the host
    lines, told = [], []
    with showing() as show:
        stop.goes_on(stop.SAME)
        for host, fault, found in run_demo(out, load_reference=_embedded(show), show=show):
            told.append({
                "host": host, "fault": fault, "run_folder": str(out / host),
                "report": report_to_json(found),
            })  # fmt: skip
            if as_json:
                continue
            title = "the honest host" if fault == "none" else f"the host that serves {fault}"
            for line in ("", f"== {title} ==", ""):
                say(line)
            show_report(found, out / host, as_json=False)
            lines.append(f"{title}: {found.decision.upper()} - {found.summary}")
            lines.append(f"page: {out / host / PAGE}")
    if as_json:
        say_json(told)
        return
    say("")
    for line in lines:
        say(line)


#: Sections of the help of `bench`, by the part that reads the options.
_OF_TEMPLATES: Final = "Options of left-out and templates"
_OF_AUDITS: Final = "Options of left-out, templates, tricks"
_OF_IDENTITY: Final = "Options of identity"
_OF_CERTIFICATE: Final = "Options of certificate"


def bench(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where corpora and results go.")],
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these parts of the benchmark; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the probes.")] = 20261125,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Only these faults; repeatable.", rich_help_panel=_OF_TEMPLATES
        ),
    ] = None,
    audits: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="So many audits per host.", rich_help_panel=_OF_AUDITS
        ),
    ] = None,
    family: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="A model of another family.", rich_help_panel=_OF_IDENTITY
        ),
    ] = None,
    replies: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="So many replies of each host at most.",
            rich_help_panel=_OF_CERTIFICATE,
        ),
    ] = None,
    as_json: ListJson = False,
) -> None:
    """Measure error rates and tokens to a verdict on hosts whose truth is known. Takes hours.

    Some parts are not measured with the others but alone: `certificate` (what thousands of honest
    replies make of the noise bet; hours), `engine` (what scoring with vLLM costs; 20 minutes),
    `identity` (hosts that serve another model; half an hour), `left-out` (templates that the
    catalogue lacks; a day), `routing` (hosts that answer some requests with another model; 20
    minutes), `samplers` (what is said of samplers; an hour), `stacks` (honest stacks noisier than
    any calibrated one; hours), `templates` (which template fault is named; hours), `tricks` (hosts
    that look right; an hour) and `wire` (what collecting withstands, and how fast it is; half an
    hour).

    \b
    Examples:
      verifier bench runs/bench --part honest
      verifier bench runs/templates --part templates --audits 4
    """
    share_cores(2)  # one for the hosts
    with showing() as show:
        stop.goes_on(stop.SAME)
        path, tabulate = _measure(
            out, part, seed=seed, faults=tuple(fault or ()), audits=audits, family=family,
            most=replies, show=show,
        )  # fmt: skip
    _show_results(path, tabulate, as_json=as_json)


def _show_results(path: Path, tabulate: Callable[[Any], str], *, as_json: bool) -> None:
    """Print what was measured, and what the standing bet is worth with it."""
    from verifier.files.run_folder import read_json
    from verifier.lab.bench.standing import PART, keep_standing, summarize_standing
    from verifier.lab.pages import TABLES

    standing = keep_standing(path.parent, (one for one in TABLES if one != PART))
    results = read_json(path)
    if as_json:
        say_json(results)
    for line in () if as_json else tabulate(results).splitlines():
        say(line)
    for line in (f"results: {path}", summarize_standing(standing)):
        say(line, err=as_json)


def _measure(
    out: Path, part: list[str] | None, *, seed: int, faults: tuple[str, ...], audits: int | None,
    family: Path | None, most: int | None, show: Show,
) -> tuple[Path, Callable[[Any], str]]:  # fmt: skip
    """Measure parts of the benchmark: the file of results, and what makes a table of it."""
    given: dict[str, Any] = {"seed": seed, "cache": cache_directory(), "tell": show.tell}
    audited: dict[str, Any] = {"seed": seed, "load_reference": _embedded(show), "show": show}
    replies = partial(show.step, "replies")
    match part:
        case ["certificate"]:
            from verifier.lab.bench.certificate import run_certificate_bench
            from verifier.lab.bench.certificate import tabulate_certificate as tabulate

            return run_certificate_bench(out, replies=most, progress=replies, **given), tabulate
        case ["engine"]:
            from verifier.lab.bench.engine import run_engine_bench
            from verifier.lab.bench.engine import tabulate_engine as tabulate

            return run_engine_bench(out, **given), tabulate
        case ["identity"]:
            from verifier.lab.bench.identity import run_identity_bench
            from verifier.lab.bench.identity import tabulate_identity as tabulate

            return run_identity_bench(out, family=family, progress=replies, **given), tabulate
        case ["left-out"]:
            from verifier.lab.bench.left_out import run_left_out_bench
            from verifier.lab.bench.left_out import tabulate_left_out as tabulate

            return run_left_out_bench(out, faults=faults, audits=audits, **given), tabulate
        case ["routing"]:
            from verifier.lab.bench.routing import run_routing_bench
            from verifier.lab.bench.routing import tabulate_routing as tabulate

            return run_routing_bench(out, progress=replies, **given), tabulate
        case ["samplers"]:
            from verifier.lab.bench.samplers import run_sampler_bench
            from verifier.lab.bench.samplers import tabulate_samplers as tabulate

            return run_sampler_bench(out, **given), tabulate
        case ["stacks"]:
            from verifier.lab.bench.stacks import run_stacks_bench
            from verifier.lab.bench.stacks import tabulate_stacks as tabulate

            return run_stacks_bench(out, audits=audits, **given), tabulate
        case ["templates"]:
            from verifier.lab.bench.templates import run_template_bench
            from verifier.lab.bench.templates import tabulate_templates as tabulate

            return run_template_bench(out, faults=faults, audits=audits, **given), tabulate
        case ["tricks"]:
            from verifier.lab.bench.tricks import AUDITS, run_trick_bench
            from verifier.lab.bench.tricks import tabulate_tricks as tabulate

            return run_trick_bench(out, audits=audits or AUDITS, **audited), tabulate
        case ["wire"]:
            from verifier.lab.bench.wire import run_bench_wire, tabulate

            return run_bench_wire(out, **audited), tabulate
        case _:
            from verifier.lab.bench.precision import run_bench, tabulate

            return run_bench(out, parts=tuple(part or ()), progress=replies, **given), tabulate


def _embedded(show: Show) -> LoadReference:
    """Loads the reference of the embedded model."""
    from verifier.config import EndpointSection, ReferenceSection, RunFile
    from verifier.lab.demo import CARD
    from verifier.reference.loaded import reference_loader

    config = RunFile(
        endpoint=EndpointSection(base_url="http://127.0.0.1/v1", model=CARD),
        reference=ReferenceSection(card=CARD),
        out=Path(),
    )
    return reference_loader(config, cache=cache_directory(), show=show)


# -- testbed -----------------------------------------------------------------------------------


@testbed_app.command("list", cls=InSections)
def list_testbed_faults(as_json: ListJson = False) -> None:
    """List the faults that the testbed can serve.

    \b
    Example:
      verifier testbed list
    """
    from verifier.lab.testbed.faults import list_faults

    if as_json:
        say_json(dict(list_faults()))
        return
    for name, summary in list_faults():
        say(f"{name:20} {summary}")


@testbed_app.command("serve", cls=InSections)
def serve_testbed(
    fault: Fault = "none",
    port: Port = 0,
    reference: Annotated[
        str, typer.Option("--reference", "--card", metavar="CARD", help="The weights to serve.")
    ] = "smollm2-135m-instruct",
    engine: Annotated[
        Literal["transformers", "vllm"],
        typer.Option(metavar="NAME", help="What generates the replies: transformers or vllm."),
    ] = "transformers",
    dtype: Precision = "bfloat16",
    max_batch: Annotated[
        int, typer.Option(metavar="N", min=1, help="Replies generated together at most.")
    ] = 16,
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
      verifier testbed serve --fault jinja:models/another/chat_template.jinja
    """
    from dataclasses import replace

    from verifier.lab.testbed.app import create_app
    from verifier.lab.testbed.server import serve

    key = None if api_key_env is None else read_key(api_key_env, where="--api-key-env")
    host = replace(
        _load_host(reference, fault, engine=engine, dtype=dtype), api_key=key, max_batch=max_batch,
        shows_prompts=shows_prompts, completes_as_chat=completes_as_chat,
    )  # fmt: skip
    stop.is_to_be_stopped()
    serve(
        create_app(host),
        port=port,
        announce=lambda url: say(f"serving {host.model} with fault {fault} at {url}"),
        told_to_stop=stop.heard,
    )


def _load_host(card: str, fault: str, *, engine: EngineName, dtype: Dtype) -> Host:
    """A host of a card's weights with a fault of that name, the weights checked and loaded."""
    from verifier.lab.testbed.faults import read_fault
    from verifier.lab.testbed.host import Host, Thoughts
    from verifier.reference.cards import load_card, load_templates
    from verifier.reference.renderings.catalogue import catalogue
    from verifier.reference.weights import check_weights, fetch_weights

    found = load_card(card)
    say_own(card)
    earlier, valid = load_templates(card, found)
    entries = catalogue(earlier=earlier, valid=valid)
    served = read_fault(fault, layers=found.layers, catalogue=entries)
    directory = served.directory
    if directory is None:
        with showing() as show:
            directory = fetch_weights(found, cache=cache_directory(), tell=show.tell)
            check_weights(found, directory)
    from verifier.reference.engines.load import load_engine
    from verifier.reference.tokenizer import Tokenizer

    tokenizer = Tokenizer(directory)
    loaded = load_engine(engine, directory, tokenizer, dtype=dtype)
    loaded.load_variant(served.weights)
    tags = found.thinking
    return Host(
        engine=loaded, tokenizer=tokenizer, model=found.name, rendering=served.rendering,
        sampler=dict(served.sampler), tricks=served.tricks, weights=served.weights,
        thoughts=None if tags is None else Thoughts(tags=tags, shown="apart"),
    )  # fmt: skip


@testbed_app.command("make", cls=InSections)
def make_models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The recipe of a model; all: each.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Only list the recipes, and what is there.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Steps of training; else what the recipe says."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the recipes.")] = None,
    as_json: ListJson = False,
) -> None:
    """Make small real models of other kinds from the embedded one, and keep them in the cache.

    One that is there is not made again. Training takes minutes to half an hour on two cores; one
    that was stopped goes on with the same command.

    \b
    Examples:
      verifier testbed make --list
      verifier testbed make experts-fp8
    """
    from verifier.lab.made.recipes import RECIPES, SEED, find_recipes, folder_of, make_model

    wanted = find_recipes(name or "all")
    given: dict[str, Any] = {
        "cache": cache_directory(), "steps": steps, "seed": SEED if seed is None else seed,
    }  # fmt: skip
    if not (listed or name):
        raise typer.BadParameter(f"there are {', '.join(RECIPES)}, and all", param_hint="NAME")
    if not listed:
        with showing() as show:
            stop.goes_on(stop.SAME)
            for recipe in wanted:
                make_model(recipe, show=show, **given)
    told = []
    for recipe in wanted:
        folder = folder_of(recipe, **given)
        told.append({
            "name": recipe.name, "summary": recipe.summary,
            "folder": str(folder) if folder.is_dir() else None,
        })  # fmt: skip
        if not as_json:
            say(f"{recipe.name:14} {told[-1]['folder'] or 'not made'}: {recipe.summary}")
    if as_json:
        say_json(told)


@testbed_app.command("route", cls=InSections)
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
        typer.Option(
            metavar="NAME",
            help="random, sticky, bursts or hours: by request, by the user's first words, by runs, "
            "or by the hour.",
        ),
    ] = "random",
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the routing.")] = 0,
    port: Port = 0,
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
    from verifier.lab.testbed.router import create_router, read_routes
    from verifier.lab.testbed.server import serve

    upstreams = read_routes(base_url, route)
    stop.is_to_be_stopped()
    serve(
        create_router(upstreams, routing=routing, seed=seed, log=log),
        port=port,
        announce=lambda url: say(f"routing between {len(upstreams)} hosts at {url}"),
        told_to_stop=stop.heard,
    )
