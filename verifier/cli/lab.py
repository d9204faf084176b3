"""Commands of the laboratory: hosts whose faults are known, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
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
    Terminal,
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
from verifier.errors import ConfigError

if TYPE_CHECKING:
    from verifier.config import ReferenceSection
    from verifier.evidence.calibration import Calibration
    from verifier.lab.calibrate import Sizes
    from verifier.lab.forecast import Forecast
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


CardWeights = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|REPO@REV",
        help="The card's weights, where they lie, or to fetch of the hub; else as it says.",
    ),
]
WorkFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where replies are kept, to go on later.")
]
Scorer = Annotated[
    EngineName | None,
    typer.Option(metavar="NAME", help="What audits will score with: vllm or transformers."),
]
LikeRunFile = Annotated[
    Path | None,
    typer.Option(
        metavar="RUNFILE", help="Take engine, its arguments and hardware from a run file."
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="GPUs to plan for, with --gpu-memory; else these."),
]
GpuMemory = Annotated[
    float | None, typer.Option(metavar="GIB", min=1, help="Memory of each of them, in GiB.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what it would do and take, and all it must refuse.")
]
OverHttp = Annotated[
    bool, typer.Option("--over-http", help="Ask the stacks over HTTP, as an audit asks.")
]


def calibrate(
    card: CardName,
    weights: CardWeights = None,
    out: WorkFolder = None,
    engine: Scorer = None,
    run_file: LikeRunFile = None,
    gpus: Gpus = None,
    gpu_memory: GpuMemory = None,
    dry_run: DryRun = False,
    over_http: OverHttp = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the probes.")] = 20261124,
    as_json: ListJson = False,
) -> None:
    """Measure honest serving and every known variant, and write the card's calibration.

    Says first what it will do: replies, tokens, disk, and an estimate of minutes. What the card or
    the weights show that cannot succeed is refused before anything is fetched.

    \b
    Examples:
      verifier calibrate smollm2-135m-instruct
      verifier calibrate minimax-m2.7 --dry-run --gpus 8 --gpu-memory 80
    """
    from verifier.reference.cards import load_card

    found = load_card(card)  # before all that loads slowly
    section = reference_of(found, run_file, engine=engine, gpus=gpus, gpu_memory=gpu_memory)
    share_cores(1, threads=section.threads)  # hosts and scorer take turns
    from verifier.lab.calibrate import Sizes

    if weights is None and section.weights is not None:
        weights = str(section.weights)
    work, sizes = out or cache_directory() / f"calibrate-{found.name}", Sizes()
    foreseen = _foresee(
        found, section, weights, work=work, seed=seed, sizes=sizes, elsewhere=dry_run
    )
    _say_forecast(foreseen, section, dry=dry_run, as_json=as_json)
    if dry_run:
        return
    made = _calibrate(
        found, section, weights, work=work, seed=seed, sizes=sizes, over_http=over_http
    )
    _say_calibrated(card, made, as_json=as_json)


def _say_calibrated(card: str, made: Calibration, *, as_json: bool) -> None:
    """Write a calibration, and say where it is."""
    from verifier.evidence.stacks import hidden_classes
    from verifier.reference.calibrations import write_calibration

    path = write_calibration(card, made)
    say_own(card)
    hidden, floor = hidden_classes(made), made.text.honest_scale
    if as_json:
        say_json({"calibration": str(path), "honest_scale": floor, "hidden": list(hidden)})
        return
    told = f"; its noise hides {', '.join(hidden)}, so that no audit excludes that"
    say(f"{path}: honest scale {floor:.2g}{told if hidden else ''}")
    say(f"for audits elsewhere, take it there: verifier reference contribute {card} {path.name}")


def _calibrate(
    card: Card, section: ReferenceSection, weights: str | None, *, work: Path, seed: int,
    sizes: Sizes, over_http: bool,
) -> Calibration:  # fmt: skip
    """Fetch and check the weights, and measure."""
    from verifier.lab.calibrate import calibrate as run_calibration
    from verifier.lab.calibrate import refuse_card
    from verifier.lab.corpus import collect_corpus
    from verifier.lab.generated import generate_corpus
    from verifier.plan import versions
    from verifier.reference.describe import refuse_other_model
    from verifier.reference.engines.load import kind_of, load_engine
    from verifier.reference.machine import this_machine
    from verifier.reference.tokenizer import Tokenizer
    from verifier.reference.weights import check_weights

    args = {**card.engine_args, **section.engine_args}
    with showing() as show:
        directory = weights_of(card, weights, show)
        refuse_card(card, seen=refuse_other_model(card, directory))
        check_weights(card, directory)
        stop.goes_on(stop.SAME)
        return run_calibration(
            card, directory, work=work,
            load_reference=lambda: load_engine(
                section.engine, directory, Tokenizer(directory), dtype=section.dtype,
                engine_args=args,
            ),
            seed=seed, versions=versions(), sizes=sizes, tell=show.tell,
            progress=lambda done, of: show.step("replies", done, of),
            scores_like=kind_of(section.engine, directory) if section.dtype == "auto" else None,
            engine_args=args, machine=this_machine(),
            answer=collect_corpus if over_http else generate_corpus,
        )  # fmt: skip


def reference_of(
    card: Card, run_file: Path | None, *, engine: EngineName | None, gpus: int | None,
    gpu_memory: float | None,
) -> ReferenceSection:  # fmt: skip
    """What scores, with what and on which GPUs: as a run file says, and options over it."""
    from verifier.config import ELSEWHERE, Hardware, ReferenceSection, load_fleet

    section = ReferenceSection(card=card.name)
    if run_file is not None:
        section = load_fleet(run_file).reference
        from verifier.reference.cards import load_card

        if not section.has_weights:
            raise ConfigError(
                f"{run_file}: reference: a pack alone, which has no weights; give a run file that "
                f"names the card {card.name}"
            )
        if load_card(section.card).name != card.name:
            raise ConfigError(
                f"{run_file}: reference.card: {section.card}, but {card.name} is to be calibrated; "
                "give a run file of this card"
            )
    if (gpus is None) != (gpu_memory is None):
        raise ConfigError("--gpus and --gpu-memory: one without the other; give both")
    changes: dict[str, Any] = {} if engine is None else {"engine": engine}
    if gpus is not None and gpu_memory is not None:
        changes["hardware"] = Hardware(gpus=gpus, memory_gib=gpu_memory)
    section = section.model_copy(update=changes)
    if section.engine in ELSEWHERE:
        raise ConfigError(
            f"--engine: {section.engine} puts no variants in place; take vllm or transformers"
        )
    return section


def _foresee(
    card: Card, section: ReferenceSection, weights: str | None, *, work: Path, seed: int,
    sizes: Sizes, elsewhere: bool,
) -> Forecast:  # fmt: skip
    """What a calibration will do and take; `elsewhere`: it may be for another machine."""
    from verifier.config import Hardware
    from verifier.lab.calibrate import lacking_here, plan_items, problems_of
    from verifier.lab.forecast import forecast, lacking_room
    from verifier.reference.machine import speed_of, this_machine
    from verifier.reference.weights import is_at_hand

    machine, hardware = this_machine(), section.hardware
    speed = speed_of(hardware, machine)
    if hardware is None and machine.gpu_memory_gib is not None:
        hardware = Hardware(gpus=machine.gpus, memory_gib=machine.gpu_memory_gib)
    against, here = problems_of(card), lacking_here(card)
    cache = cache_directory()
    other = elsewhere and section.hardware is not None
    engine = section.engine
    if engine == "auto":
        engine = "vllm" if speed.gpu and (other or not here) else "transformers"
    there = is_at_hand(card, cache=cache) if weights is None else Path(weights).is_dir()
    found = forecast(
        card, () if against else plan_items(card, seed=seed, sizes=sizes),
        scores_like=(engine, "float32" if engine == "transformers" else "bfloat16"),
        speed=speed, hardware=hardware, engine_args={**card.engine_args, **section.engine_args},
        work=work, fetches=not there,
        refusals=against if other else (*against, *here), needs=here if other else (),
    )  # fmt: skip
    room = () if other else lacking_room(found, work=work, cache=cache)
    return replace(found, refusals=(*found.refusals, *room))


def _say_forecast(found: Forecast, section: ReferenceSection, *, dry: bool, as_json: bool) -> None:
    """Say what will be done, and refuse what cannot be."""
    from verifier.lab.forecast import describe_forecast

    if as_json and dry:
        say_json(asdict(found))
    for line in () if as_json else describe_forecast(found):
        say(line, err=not dry)
    if found.memory is not None and dry and not as_json:
        from verifier.reports.tables import print_memory

        print_memory(found.memory, section.hardware, Terminal())
    if found.refusals:
        raise ConfigError(f"card {found.card}: {'; and '.join(found.refusals)}")


def weights_of(card: Card, given: str | None, show: Show) -> Path:
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
    pack: Annotated[
        bool, typer.Option("--pack", help="Audit from the pack that ships: nothing is scored.")
    ] = False,
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
    from verifier.lab.demo import refuse_others, run_demo, shipped_pack
    from verifier.report_file import report_to_json

    refuse_others(out)
    share_cores(2)  # one for the host
    found_pack, lines, told = shipped_pack() if pack else None, [], []
    with showing() as show:
        stop.goes_on(stop.SAME)
        for host, fault, found in run_demo(
            out, load_reference=_embedded(show), show=show, pack=found_pack
        ):
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
_OF_IDENTITY: Final = "Options of identity"
_OF_CERTIFICATE: Final = "Options of certificate"
_OF_MADE: Final = "Options of made"


Faults = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Only these faults; repeatable.", rich_help_panel=_OF_TEMPLATES
    ),
]
Audits = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="So many audits per host, where audits are counted."),
]
Family = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="A model of another family.", rich_help_panel=_OF_IDENTITY),
]
MostReplies = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="So many replies of each host at most.",
        rich_help_panel=_OF_CERTIFICATE,
    ),
]  # fmt: skip
Models = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Only these made models; repeatable.", rich_help_panel=_OF_MADE
    ),
]


def bench(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where corpora and results go.")],
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these parts of the benchmark; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the probes.")] = 20261125,
    fault: Faults = None,
    audits: Audits = None,
    family: Family = None,
    replies: MostReplies = None,
    model: Models = None,
    as_json: ListJson = False,
) -> None:
    """Measure error rates and tokens to a verdict on hosts whose truth is known. Takes hours.

    Some parts are measured alone: `certificate` (the noise bet; hours), `engine` (what scoring with
    vLLM costs; 20 minutes), `gpu` (the noise and speed of an NVIDIA GPU; ten minutes), `identity`
    (other models served; half an hour), `left-out` (templates that the catalogue lacks; a day),
    `made` (models of other kinds, with cards and calibrations of their own; a day), `packs` (audits
    from the pack that ships; hours), `provisional` (calibrated cards left out in turn), `routing`
    (hosts that answer some requests with another model; 20 minutes), `samplers` (what is said of
    samplers; an hour), `stacks` (honest stacks noisier than any calibrated one; hours), `templates`
    (which template fault is named; hours), `tricks` (hosts that look right; an hour) and `wire`
    (what collecting withstands, and how fast it is; half an hour).

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
            most=replies, models=tuple(model or ()), show=show,
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
    family: Path | None, most: int | None, models: tuple[str, ...], show: Show,
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
        case ["gpu"]:
            from verifier.lab.bench.gpu import run_gpu_bench
            from verifier.lab.bench.gpu import tabulate_gpu as tabulate

            return run_gpu_bench(out, **given), tabulate
        case ["identity"]:
            from verifier.lab.bench.identity import run_identity_bench
            from verifier.lab.bench.identity import tabulate_identity as tabulate

            return run_identity_bench(out, family=family, progress=replies, **given), tabulate
        case ["left-out"]:
            from verifier.lab.bench.left_out import run_left_out_bench
            from verifier.lab.bench.left_out import tabulate_left_out as tabulate

            return run_left_out_bench(out, faults=faults, audits=audits, **given), tabulate
        case ["made"]:
            from verifier.lab.bench.made import run_made_bench
            from verifier.lab.bench.made import tabulate_made as tabulate

            path = run_made_bench(
                out, cache=cache_directory(), models=models, audits=audits, seed=seed, show=show
            )
            return path, tabulate
        case ["packs"]:
            from verifier.lab.bench.packs import run_pack_bench
            from verifier.lab.bench.packs import tabulate_packs as tabulate

            return run_pack_bench(out, progress=replies, **given), tabulate
        case ["provisional"]:
            from verifier.lab.bench.provisional import run_provisional_bench
            from verifier.lab.bench.provisional import tabulate_provisional as tabulate

            return run_provisional_bench(out, seed=seed, tell=show.tell), tabulate
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
