"""Commands about the published models: their cards, and the panel that tells renderings apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verifier.cli.common import (
    CardName,
    InSections,
    ListJson,
    Terminal,
    WithWholeLines,
    cache_directory,
    help_when_bare,
    say,
    say_json,
    say_own,
    showing,
)

if TYPE_CHECKING:
    from verifier.checks.template.panel_design import Panel
    from verifier.evidence.calibration import Calibration

reference_app = typer.Typer(
    help="Cards: the published models that an endpoint can be held to.",
    cls=WithWholeLines,
    invoke_without_command=True,
    rich_markup_mode=None,
)


@reference_app.callback()
def _reference(context: typer.Context) -> None:
    help_when_bare(context)


@reference_app.command("list", cls=InSections)
def list_reference(as_json: ListJson = False) -> None:
    """List the cards: which work today, what the others lack, and their terms.

    Those that were pinned or calibrated here lie in the user's data folder, and come first.

    \b
    Example:
      verifier reference list
    """
    from verifier.reference.calibrations import obstacles
    from verifier.reference.cards import list_cards, own_files
    from verifier.reports.tables import CARD_COLUMNS, card_row, print_cards

    if as_json:
        keys = [label.lower() for label in CARD_COLUMNS]
        say_json([
            dict(zip(keys, card_row(name), strict=True))
            | {"obstacles": list(obstacles(name)), "own": [str(path) for path in own_files(name)]}
            for name in list_cards()
        ])  # fmt: skip
        return
    print_cards(Terminal())


@reference_app.command("show", cls=InSections)
def show_reference(card: CardName, as_json: ListJson = False) -> None:
    """Print everything that a card says, the terms of its licence first.

    \b
    Example:
      verifier reference show minimax-m2.7
    """
    from verifier.reference.cards import load_card

    found = load_card(card)
    say_own(card)
    if as_json:
        say_json(found.model_dump(mode="json"))
        return
    from verifier.reports.tables import print_card

    print_card(card, Terminal())


@reference_app.command("add", cls=InSections)
def add_reference(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|REPO[@REV]", help="A folder of weights, or a repository of the hub."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the card is called; else as DIR or REPO."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The publisher's name of the model, OWNER/NAME; else REPO."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the card goes; else among your own cards."),
    ] = None,
    digests: Annotated[
        bool,
        typer.Option(
            " /--no-digests",
            help="Leave the digests, which read every tensor, to pin.",
            show_default=False,
        ),
    ] = True,
    as_json: ListJson = False,
) -> None:
    """Make a card from weights: what they say of themselves, and rules for the rest.

    Takes a directory of safetensors with config.json, tokenizer and chat template, or fetches one
    of the hub. Nothing is guessed: what could not be read is listed under unchecked. Your own cards
    lie in XDG_DATA_HOME/verifier/cards, and commands take them by their names.

    \b
    Example:
      verifier reference add ./my-weights --name my-model
    """
    from verifier.reference.add import add_card, where_it_is

    with showing() as show:
        made = add_card(what, name=name, model=model, out=file, digests=digests, tell=show.tell)
    if as_json:
        say_json(made.card.model_dump(mode="json"))
        return
    say(f"card: {made.path}")
    called = where_it_is(made)
    for remark in made.remarks:
        say(f"amiss: {remark}")
    say(f"unchecked: {', '.join(made.card.unchecked) or 'nothing'}")
    for obstacle in made.obstacles:
        say(f"it cannot be calibrated: {obstacle}")
    if not made.obstacles:
        say(f"next: verifier calibrate {called}")


@reference_app.command("pin", cls=InSections)
def pin_reference(
    card: CardName,
    weights: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|REPO@REV", help="A local snapshot, or one to fetch of the hub."
        ),
    ],
    again: Annotated[
        bool,
        typer.Option("--again", help="Overwrite digests that differ, unless the tensors do."),
    ] = False,
    as_json: ListJson = False,
) -> None:
    """Fill the digests that a card leaves open, from a snapshot, and write them into its file.

    Refuses a snapshot that differs from what is pinned already. A card that was pinned by older
    rules is pinned again with --again, which refuses other tensors all the same.

    \b
    Example:
      verifier reference pin qwen3-8b --weights Qwen/Qwen3-8B@main
    """
    from verifier.reference.pin import pin_card

    with showing() as show:
        written = pin_card(card, weights, again=again, tell=show.tell)
    say_own(card)
    if as_json:
        say_json({key: {"before": before, "now": now} for key, (before, now) in written.items()})
        return
    for key, (before, value) in written.items():
        say(f"{key}: {value}" + ("" if before is None else f" (was {before})"))
    if not written:
        say("nothing to fill: all that this snapshot shows is pinned, and agrees")


@reference_app.command("contribute", cls=InSections)
def contribute_reference(
    card: CardName,
    calibration: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What `calibrate` wrote on another machine."),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What its machine is called in reports; else by its digest."
        ),
    ] = None,
    as_json: ListJson = False,
) -> None:
    """Add a calibration of another machine to a card: the stacks of all count from then on.

    A copy goes into the card's folder, or among your own cards for one that an installation has,
    and the card lists it by its digest. Refused are those of other weights or of another reference,
    one that counts already, and one whose own floor its held-out stacks exceed.

    \b
    Example:
      verifier reference contribute my-model a100.calibration.json --name a100
    """
    from verifier.reference.cards import load_card

    load_card(card)  # before all that loads slowly
    from verifier.reference.contribute import contribute

    done = contribute(card, calibration, called=name)
    say_own(card)
    before = None if done.before is None else _floor_to_json(done.before)
    now = _floor_to_json(done.now)
    if as_json:
        say_json({
            "card": str(done.card), "calibration": str(done.calibration), "sha256": done.sha256,
            "before": before, "now": now,
        })  # fmt: skip
        return
    say(f"contributed: {done.calibration}")
    say(f"card: {done.card}")
    was = {} if before is None else _describe_floor(before)
    for label, value in _describe_floor(now).items():
        say(f"{label}: {value}" + (f" (was {was[label]})" if was else ""))
    if not was:
        say("the card was not calibrated: its audits are provisional no more")
    if now["hidden"]:
        say(f"its noise hides {', '.join(now['hidden'])}, so that no audit excludes that")


def _floor_to_json(found: Calibration) -> dict[str, Any]:
    """What a calibration says of honest serving, as JSON values."""
    from verifier.evidence.stacks import hidden_classes

    assert found.zone is not None  # whatever is read of a card has one
    return {
        "stacks": found.zone.stacks,
        "honest_scale": {"text": found.text.honest_scale, "logprob": found.logprob.honest_scale},
        "tolerated": {"text": found.text.tolerated, "logprob": found.logprob.tolerated},
        "hidden": list(hidden_classes(found)),
    }


def _describe_floor(told: dict[str, Any]) -> dict[str, str]:
    """The same in words, by label."""
    rows = {"honest stacks": str(told["stacks"])}
    for channel, called in (("text", "text"), ("logprob", "log-probabilities")):
        floor, end = told["honest_scale"][channel], told["tolerated"][channel]
        rows[f"honest scale from {called}"] = f"{floor:.2g}"
        rows[f"tolerated from {called}"] = f"up to {end:.2g}, kappa {end / floor:.2g}"
    return rows


def panel(
    card: CardName,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the probes.")],
    size: Annotated[int, typer.Option(metavar="N", min=1, help="How many probes.")] = 12,
    as_json: ListJson = False,
) -> None:
    """Search for the probes that tell a template's renderings apart, and print what they separate.

    \b
    Example:
      verifier panel smollm2-135m-instruct --seed 7
    """
    from verifier.reference.cards import load_card

    said = load_card(card)  # before all that loads slowly
    from verifier.checks.template.panel import design_card_panel

    say_own(card)
    with showing() as show:
        found = design_card_panel(said, seed=seed, size=size, cache=cache_directory(), show=show)
    told = _panel_to_json(found)
    if as_json:
        say_json(told)
        return
    for probe in told["probes"]:
        say(f"{probe['id']}: {probe['prompt_tokens']} tokens as published, "
            f"{len(probe['counts'])} different counts; {' '.join(probe['roles'])}")  # fmt: skip
    confused, pairs = told["confused"], math.comb(len(found.names), 2)
    say(f"counts tell {pairs - len(confused)} of {pairs} pairs of renderings apart; not:")
    for one in confused:
        say(f"  {', '.join(one['pair'])}" + (" (the same prompts)" if one["same_prompts"] else ""))


def _panel_to_json(found: Panel) -> dict[str, Any]:
    """A panel as JSON values: its probes, and the pairs of renderings that counts leave alike."""
    same = set(found.inseparable())
    return {
        "renderings": list(found.names),
        "probes": [
            {
                "id": probe.id,
                "roles": [message.role for message in probe.messages],
                "prompt_tokens": int(lengths[0]),
                "counts": sorted({int(n) for n in lengths if n == n}),  # NaN: refused
            }
            for probe, lengths in zip(found.probes, found.lengths.T, strict=True)
        ],
        "confused": [
            {"pair": list(pair), "same_prompts": pair in same} for pair in found.confused()
        ],
    }
