"""Commands about reference packs: made where the weights are, shown and checked anywhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verifier.cli import stop
from verifier.cli.common import (
    CardName,
    EngineName,
    InSections,
    ListJson,
    WithWholeLines,
    endpoint_key,
    help_when_bare,
    now,
    say,
    say_json,
    say_own,
    share_cores,
    showing,
    warn_of_keys_in_clear,
)
from verifier.cli.lab import CardWeights, DryRun, LikeRunFile, reference_of, weights_of
from verifier.errors import ConfigError

if TYPE_CHECKING:
    from verifier.config import ReferenceSection, RunFile
    from verifier.lab.packs import Recipe
    from verifier.lab.trusted import Asking, Host
    from verifier.reference.cards import Card
    from verifier.reference.pack_file import Pack
    from verifier.reference.trusted import Trusted

pack_app = typer.Typer(
    help="Packs: what weights, or a trusted host, say of some questions: audits need no weights.",
    cls=WithWholeLines,
    invoke_without_command=True,
    rich_markup_mode=None,
)

PackFile = Annotated[Path, typer.Argument(metavar="FILE", help="A reference pack.")]


@pack_app.callback()
def _pack(context: typer.Context) -> None:
    help_when_bare(context)


Questions = Annotated[int, typer.Option(metavar="N", min=2, help="So many questions.")]
Out = Annotated[Path, typer.Option(metavar="FILE", help="The pack; its name ends in .pack.")]
Tokens = Annotated[int, typer.Option(metavar="T", min=8, max=512, help="Tokens of a path at most.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the questions.")]
SigningKey = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Private key that signs it, Ed25519 in PEM.")
]
Builds = Annotated[
    bool, typer.Option("--builds/--no-builds", help="What the card's builds say, for a name.")
]
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think", help="Of a model that thinks: its thoughts, or answers without any."
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where paths are kept, to go on; else FILE.work."),
]
Computes = Annotated[
    EngineName | None, typer.Option(metavar="NAME", help="What computes it: vllm or transformers.")
]
Trusts = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="RUNFILE",
        help="Record what this run file's endpoint says, a host you trust, asked twice.",
    ),
]
Second = Annotated[
    Path | None,
    typer.Option(metavar="RUNFILE", help="Another trusted host, whose texts stand beside it."),
]
Scores = Annotated[
    bool | None,
    typer.Option(
        "--scores/--texts",
        help="Want the host's log-probabilities, or its texts alone; else what it gives.",
    ),
]


@pack_app.command("make", cls=InSections)
def make(
    card: CardName,
    probes: Questions,
    out: Out,
    weights: CardWeights = None,
    tokens: Tokens = 48,
    seed: Seed = 20261130,
    key: SigningKey = None,
    builds: Builds = True,
    think: Think = None,
    work: Work = None,
    engine: Computes = None,
    run_file: LikeRunFile = None,
    trusts: Trusts = None,
    second: Second = None,
    scores: Scores = None,
    dry_run: DryRun = False,
    as_json: ListJson = False,
) -> None:
    """Record what a card's weights, or a host you trust, say of N questions, for audits without.

    Says first what that takes. Stopped, the same command goes on.

    \b
    Examples:
      verifier pack make smollm2-135m-instruct --probes 200 --out small.pack
      verifier pack make minimax-m2.7 --probes 2000 --out m2.7.pack --key key.pem
      verifier pack make card.yaml --probes 200 --out its.pack --from host.yaml
    """
    from verifier.reference.cards import load_card
    from verifier.reference.signing import read_private_key

    _refuse_wrong(probes, out)
    found = load_card(card)
    say_own(card)
    share_cores(1)
    signer = None if key is None else read_private_key(key)
    from verifier.lab.packs import make_recipe, mode_of

    kept = work or out.with_name(f"{out.name}.work")
    make_it: Callable[[], Any]
    if trusts is not None:
        _refuse_computing(engine, run_file)
        sizes = probes, seed, tokens
        asking = _asking(*sizes, trusts, second, scores, think, found, out=kept, asks=not dry_run)
        foreseen = _foreseen_of_hosts(asking)
        make_it = partial(_record, asking, card, found, weights, work=kept)
    else:
        _refuse_asking(second, scores)
        section = reference_of(found, run_file, engine=engine, gpus=None, gpu_memory=None)
        recipe = make_recipe(
            probes, seed=seed, max_tokens=tokens, builds=found.bank if builds else (),
            thinking=mode_of(found, think=think),
        )  # fmt: skip
        foreseen = _foreseen(recipe, found, section)
        make_it = partial(_make, recipe, card, found, section, weights, work=kept)
    _say_foreseen(foreseen, dry=dry_run, as_json=as_json)
    if not dry_run:
        _write(out, make_it(), signer, as_json=as_json)


def _say_foreseen(foreseen: list[str], *, dry: bool, as_json: bool) -> None:
    for line in foreseen:
        say(line, err=as_json or not dry)
    if dry and as_json:
        say_json({"foreseen": foreseen})


def _write(out: Path, made: Any, signer: Any, *, as_json: bool) -> None:
    """Write a pack, and say where it is."""
    from verifier.reference.pack_file import pack_bytes, write_pack

    raw, questions = pack_bytes(*made, key=signer), len(made[1])
    write_pack(out, raw)
    if as_json:
        say_json({"pack": str(out), "bytes": len(raw), "questions": questions})
        return
    say(
        f"{out}: {questions:,} questions, {len(raw) / 1e6:.1f} MB, "
        f"{len(raw) / questions / 1e3:.1f} kB a question"
    )


def _refuse_asking(second: Path | None, scores: bool | None) -> None:
    if second is not None or scores is not None:
        raise ConfigError("--second, --scores, --texts: say how to ask --from; give that too")


def _refuse_computing(engine: str | None, run_file: Path | None) -> None:
    options = {"engine": engine, "run-file": run_file}
    given = next((name for name, value in options.items() if value is not None), "")
    if given:
        raise ConfigError(f"--{given}: beside --from, which computes nothing; leave one out")


def _refuse_wrong(probes: int, out: Path) -> None:
    from verifier.cli.options import PACK_ENDS
    from verifier.reference.pack_file import MAX_PROBES

    if out.suffix != PACK_ENDS:
        raise ConfigError(f"--out: {out}: expected a file whose name ends in {PACK_ENDS}")
    if probes > MAX_PROBES:
        raise ConfigError(f"--probes: {probes:,}, and a pack holds {MAX_PROBES:,} at most")


def _foreseen(recipe: Recipe, card: Card, section: ReferenceSection) -> list[str]:
    from verifier.lab.packs import foresee
    from verifier.reference.machine import speed_of, this_machine
    from verifier.reference.renderings.catalogue import catalogue

    machine = this_machine()
    speed = speed_of(section.hardware, machine)
    engine = section.engine
    if engine == "auto":
        engine = "vllm" if speed.gpu else "transformers"
    found = foresee(
        recipe, card, speed=speed, engine=engine, renderings=len(catalogue()),
        engine_args={**card.engine_args, **section.engine_args},
    )  # fmt: skip
    what = (
        f"pack of {card.name}: {recipe.questions:,} questions, {recipe.panel} of them to tell "
        f"templates apart; {found.tokens:,} tokens to generate, {found.scored:,} to score under "
        f"{len(recipe.builds)} builds"
    )
    minutes = "? minutes" if found.minutes is None else f"about {found.minutes:,.0f} minutes"
    return [what, f"{minutes} on {speed.words}, and {found.megabytes:.1f} MB"]


def _make(
    recipe: Recipe, name: str, card: Card, section: ReferenceSection, weights: str | None, *,
    work: Path,
) -> Any:  # fmt: skip
    """Fetch and check the weights, and record what they say."""
    from functools import cache

    from verifier.lab.packs import make_pack
    from verifier.plan import versions
    from verifier.probes import load_pool
    from verifier.reference.cards import load_templates
    from verifier.reference.engines import Engine
    from verifier.reference.engines.load import load_engine
    from verifier.reference.provisional import calibration_for
    from verifier.reference.renderings.catalogue import catalogue
    from verifier.reference.tokenizer import Tokenizer
    from verifier.reference.weights import check_weights

    calibration = calibration_for(name, card)
    with showing() as show:
        directory = weights_of(card, weights, show)
        check_weights(card, directory)
        tokenizer = Tokenizer(directory)
        stop.goes_on(stop.SAME)

        @cache
        def engine() -> Engine:
            show.tell(f"loading {card.name}")
            return load_engine(
                section.engine, directory, tokenizer, dtype=section.dtype, threads=section.threads,
                engine_args={**card.engine_args, **section.engine_args}, url=section.url,
            )  # fmt: skip

        earlier, valid = load_templates(name, card)
        return make_pack(
            recipe, card, calibration, load_pool(), catalogue(earlier=earlier, valid=valid),
            engine=engine, tokenizer=tokenizer, versions=versions(),
            made_on=now().date().isoformat(), work=work, show=show,
        )  # fmt: skip


# -- from a trusted host -----------------------------------------------------------------------


def _asking(
    probes: int, seed: int, tokens: int, trusts: Path, second: Path | None, scores: bool | None,
    think: bool | None, card: Card, *, out: Path, asks: bool,
) -> Asking:  # fmt: skip
    """What is asked, and of whom. Raises ConfigError for run files that do not serve."""
    from verifier.lab.packs import mode_of, settings_of
    from verifier.lab.trusted import Asking

    mode = mode_of(card, think=think)
    if mode == "shown" and card.thinking is not None:
        how = "add --no-think, or make the pack of the weights"
        if not card.thinking.switch_off:
            how = "it knows no setting that turns that off, so make the pack of the weights"
        raise ConfigError(
            f"--from: card {card.name}: the model thinks before it answers, and of hosts answers "
            f"without a thought are recorded; {how}"
        )
    wanted: Any = None if scores is None else "scores" if scores else "texts"
    host = _host_of(trusts, card=card, out=out, asks=asks)
    beside = None if second is None else _host_of(second, card=card, out=out, asks=asks)
    if beside is not None and _address(beside) == _address(host):
        raise ConfigError(f"--second: {second}: the very host of --from; name another")
    return Asking(
        questions=probes, seed=seed, tokens=tokens, wanted=wanted, host=host, second=beside,
        settings=settings_of(mode, card),
    )  # fmt: skip


def _address(host: Host) -> tuple[str, str]:
    return host.endpoint.base_url, host.endpoint.model


def _host_of(path: Path, *, card: Card, out: Path, asks: bool) -> Host:
    """The endpoint of a run file, with its key where it `asks`, and its budget."""
    from verifier.config import load_run_file
    from verifier.host.budget import Ceiling
    from verifier.lab.trusted import Host
    from verifier.steps import make_endpoint

    left_out = {"reference": {"card": card.name}, "out": str(out)}
    config: RunFile = load_run_file(path, defaults=left_out).model_copy(update={"out": out})
    _refuse_other_card(config, path, card)
    if config.endpoint.dialect == "completions":
        raise ConfigError(
            f"{path}: endpoint.dialect: text completions are rendered by whoever asks; take chat"
        )
    if card.thinking is not None and config.endpoint.dialect != "chat":
        raise ConfigError(
            f"{path}: endpoint.dialect: {config.endpoint.dialect} cannot carry that thinking is "
            "turned off; take chat"
        )
    if asks:
        warn_of_keys_in_clear([config])
    return Host(
        endpoint=make_endpoint(config, api_key=endpoint_key(config, out=out) if asks else None),
        ceiling=Ceiling(
            completion_tokens=config.audit.budget_completion_tokens,
            usd=config.audit.budget_usd,
            prices=config.prices,
        ),
    )


def _refuse_other_card(config: RunFile, path: Path, card: Card) -> None:
    from verifier.reference.cards import load_card

    named = config.reference.card
    if named not in ("", card.name) and load_card(named).name != card.name:
        raise ConfigError(
            f"{path}: reference.card: {named}, but {card.name} is to be recorded; give a run file "
            "of this card"
        )


def _foreseen_of_hosts(asking: Asking) -> list[str]:
    from verifier.lab.trusted import describe, draw_asked, foresee
    from verifier.probes import load_pool

    found = foresee(asking, draw_asked(load_pool(), asking))
    return describe(found, questions=asking.questions)


def _record(asking: Asking, name: str, card: Card, weights: str | None, *, work: Path) -> Any:
    """Ask the trusted hosts; of the weights the tokenizer alone is needed."""
    from verifier.files.run_folder import working_in
    from verifier.lab.trusted import counting, is_measured, record_pack
    from verifier.plan import versions
    from verifier.probes import load_pool
    from verifier.reference.cards import load_templates
    from verifier.reference.provisional import calibration_for
    from verifier.reference.renderings.catalogue import catalogue
    from verifier.reference.tokenizer import Tokenizer
    from verifier.reference.weights import check_weights

    calibration = calibration_for(name, card)
    with showing() as show:
        directory = weights_of(card, weights, show)
        check_weights(card, directory, tensors=False)
        tokenizer = Tokenizer(directory)
        earlier, valid = load_templates(name, card)
        with working_in(work, make=True):
            stop.goes_on(stop.SAME)
            return record_pack(
                counting(asking, tokenizer), card, load_pool(),
                catalogue(earlier=earlier, valid=valid), calibration=calibration,
                same_model=is_measured(card), tokenizer=tokenizer, versions=versions(),
                made_on=now().date().isoformat(), work=work, show=show,
            )  # fmt: skip


@pack_app.command("show", cls=InSections)
def show(
    pack: PackFile,
    digest: Annotated[
        bool,
        typer.Option("--only-digest", help="The digest alone, to be made known before the pack."),
    ] = False,
    as_json: ListJson = False,
) -> None:
    """Print what a pack holds and whose word it is, the licence of its weights first.

    \b
    Examples:
      verifier pack show small.pack
      verifier pack show small.pack --only-digest
    """
    from verifier.reference.pack_file import read_pack

    found = read_pack(pack)
    if digest:
        say(found.digest)
        return
    told = _describe(found)
    if as_json:
        say_json(told)
        return
    for name, value in told.items():
        say(f"{name}: {value}")


def _describe(found: Pack) -> dict[str, Any]:
    """What a pack is, by the words that it is shown with."""
    from verifier.reference.trusted import SOURCES

    facts, licence = found.manifest, found.card.licence
    engine = " ".join(facts.engine.get(name, "") for name in ("engine", "dtype"))
    source = SOURCES[facts.source]
    return {
        "licence": licence.name,
        "terms": licence.terms,
        "model": found.card.model,
        "card": found.card.name,
        "digest": found.digest,
        "signed by": found.signed_by or "nobody",
        "made on": facts.made_on,
        "from": source if facts.trusted is not None else f"{source}, by {engine}",
        **({} if facts.trusted is None else _describe_host(facts.trusted)),
        "calibrated": "provisionally" if facts.calibration.provisional else "yes",
        "questions": len(found.ordinary),
        "to tell templates apart": facts.panel,
        "tokens of a path": facts.max_tokens,
        "thinking": "none" if facts.thinking is None else facts.thinking.mode,
        "paths": len(found.tensors["path_question"]),
        "renderings": len(facts.renderings),
        "builds": len(facts.builds),
    }


def _describe_host(trusted: Trusted) -> dict[str, Any]:
    """Whose word a pack is."""
    told: dict[str, Any] = {
        "host": f"{trusted.host} as {trusted.model}, on its word",
        "asked": f"{trusted.first_asked} to {trusted.last_asked}",
        "asked twice": f"{trusted.repeated} of {trusted.questions} replies came again, "
        f"{trusted.hazard:.1%} a token did not",
    }
    if trusted.alternatives:
        told["alternatives"] = trusted.alternatives
    if trusted.second_host is not None:
        told["second host"] = f"{trusted.second_host} as {trusted.second_model}"
    return told


@pack_app.command("check", cls=InSections)
def check(
    pack: PackFile,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public key that must have signed it.")
    ] = None,
    digest: Annotated[
        str | None, typer.Option(metavar="SHA256", help="Digest that was made known before.")
    ] = None,
) -> None:
    """Check that a pack is whole and as it was made, and signed where a key is given.

    \b
    Example:
      verifier pack check small.pack --key maker.pub.pem
    """
    from verifier.reference.pack_file import read_pack
    from verifier.reference.signing import read_public_key

    found = read_pack(pack, key=None if key is None else read_public_key(key))
    if digest is not None and found.digest != digest:
        raise ConfigError(f"{pack}: its digest is {found.digest}, not {digest}")
    signed = "signed by nobody" if found.signed_by is None else f"signed by {found.signed_by}"
    say(f"{pack}: whole; digest {found.digest}, {signed}")
