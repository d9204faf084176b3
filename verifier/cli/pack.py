"""Commands about reference packs: made where the weights are, shown and checked anywhere."""

from __future__ import annotations

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
    help_when_bare,
    now,
    say,
    say_json,
    say_own,
    share_cores,
    showing,
)
from verifier.cli.lab import CardWeights, DryRun, LikeRunFile, reference_of, weights_of
from verifier.errors import ConfigError

if TYPE_CHECKING:
    from verifier.config import ReferenceSection
    from verifier.lab.packs import Recipe
    from verifier.reference.cards import Card
    from verifier.reference.pack_file import Pack

pack_app = typer.Typer(
    help="Packs: what published weights say of some questions, so that an audit needs no weights.",
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
    dry_run: DryRun = False,
    as_json: ListJson = False,
) -> None:
    """Record what a card's weights say of N questions, for audits without them.

    Says first what that takes. Stopped, the same command goes on.

    \b
    Examples:
      verifier pack make smollm2-135m-instruct --probes 200 --out small.pack
      verifier pack make minimax-m2.7 --probes 2000 --out m2.7.pack --key key.pem
    """
    from verifier.reference.cards import load_card
    from verifier.reference.signing import read_private_key

    _refuse_wrong(probes, out)
    found = load_card(card)
    say_own(card)
    share_cores(1)
    signer = None if key is None else read_private_key(key)
    from verifier.lab.packs import make_recipe, mode_of

    mode = mode_of(found, think=think)
    section = reference_of(found, run_file, engine=engine, gpus=None, gpu_memory=None)
    recipe = make_recipe(
        probes, seed=seed, max_tokens=tokens, builds=found.bank if builds else (), thinking=mode
    )
    foreseen = _foreseen(recipe, found, section)
    for line in foreseen:
        say(line, err=as_json or not dry_run)
    if dry_run:
        if as_json:
            say_json({"foreseen": foreseen})
        return
    from verifier.reference.pack_file import pack_bytes, write_pack

    kept = work or out.with_name(f"{out.name}.work")
    raw = pack_bytes(*_make(recipe, card, found, section, weights, work=kept), key=signer)
    write_pack(out, raw)
    if as_json:
        say_json({"pack": str(out), "bytes": len(raw), "questions": probes})
        return
    say(f"{out}: {len(raw) / 1e6:.1f} MB, {len(raw) / probes / 1e3:.1f} kB a question")


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
    facts, licence = found.manifest, found.card.licence
    engine = " ".join(facts.engine.get(name, "") for name in ("engine", "dtype"))
    return {
        "licence": licence.name,
        "terms": licence.terms,
        "model": found.card.model,
        "card": found.card.name,
        "digest": found.digest,
        "signed by": found.signed_by or "nobody",
        "made on": facts.made_on,
        "from": f"{facts.source}, by {engine}",
        "calibrated": "provisionally" if facts.calibration.provisional else "yes",
        "questions": len(found.ordinary),
        "to tell templates apart": facts.panel,
        "tokens of a path": facts.max_tokens,
        "thinking": "none" if facts.thinking is None else facts.thinking.mode,
        "paths": len(found.tensors["path_question"]),
        "renderings": len(facts.renderings),
        "builds": len(facts.builds),
    }


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
