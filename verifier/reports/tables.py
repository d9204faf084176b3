"""Cards, memory plans and several targets as terminal tables. A home of rich."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from verifier import wording
from verifier.evidence.calibration import Calibration
from verifier.evidence.stacks import chance_above_all, describe_reference
from verifier.reference.calibrations import (
    describe_calibrated,
    how_to_calibrate,
    is_calibrated,
    load_calibration,
    obstacles,
)
from verifier.reference.cards import (
    Card,
    HubSource,
    Thinking,
    WheelSource,
    list_cards,
    load_card,
    own_files,
)
from verifier.reference.defaults import describe_needs
from verifier.reference.hardware import GIB, Memory, room_for_tokens
from verifier.reference.machine import describe_machine
from verifier.reports.terminal import STYLES
from verifier.wording import one_line

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from verifier.config import Hardware
    from verifier.records import Summary

_HOSTING = {
    "allowed": "allowed",
    "conditional": "allowed on conditions",
    "written authorization": "for money only with written authorization",
    "unchecked": "not checked",
}


#: What a line on a card says.
CARD_COLUMNS: Final = ("Card", "Hosting", "Weights", "Needs", "Pinned", "Calibrated")


def print_cards(console: Console) -> None:
    """Print the cards, one line each."""
    shown = [column for column in CARD_COLUMNS if column != "Pinned"]  # `show` says it: room
    table = _table(*shown)
    table.columns[0].no_wrap = True  # a name is there to be copied
    for name in list_cards():
        row = dict(zip(CARD_COLUMNS, card_row(name), strict=True))
        table.add_row(*(_line(row[column]) for column in shown))
    console.print(table)
    own = [path for name in list_cards() for path in own_files(name)]
    if own:
        console.print(f"\nYours: {', '.join(map(one_line, map(str, own)))}", soft_wrap=True)
    ready = [name for name in list_cards() if not obstacles(name)]
    console.print(
        f"\nCalibrated: {_joined(filter(is_calibrated, ready)) or 'none'}", soft_wrap=True
    )
    ways = [how_to_calibrate("CARD", load_card(name)) for name in ready]
    for how in dict.fromkeys(ways):
        lent = [name for name, way in zip(ready, ways, strict=True)
                if way == how and not is_calibrated(name)]  # fmt: skip
        if lent:
            console.print(
                f"Provisional, as every verdict says (--policy screen): {_joined(lent)}: {how}",
                soft_wrap=True,
            )  # fmt: skip
    reasons = {name: "; ".join(obstacles(name)) for name in list_cards() if name not in ready}
    for why in dict.fromkeys(reasons.values()):
        lacking = [name for name, own in reasons.items() if own == why]
        console.print(f"Not yet: {_joined(lacking)}: {why}", soft_wrap=True)
    console.print("Any other: `verifier reference add REPO-OR-DIRECTORY` writes a card of it")


def _joined(names: Iterable[str]) -> str:
    return ", ".join(map(one_line, names))


def card_row(name: str) -> tuple[str, ...]:
    """What CARD_COLUMNS are of one card."""
    card = load_card(name)
    size = card.architecture.weight_bytes
    return (
        name,
        card.licence.hosting,
        "?" if size is None else f"{size / 1e9:,.1f} GB",
        describe_needs(card),
        _pinned(card),
        "yes" if is_calibrated(name) else "not yet" if obstacles(name) else "provisional",
    )


def print_card(name: str, console: Console) -> None:
    """Print everything that a card says, the terms of its licence first."""
    card = load_card(name)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    rows = describe_card(card, calibrated=describe_calibrated(name))
    if is_calibrated(name):
        rows += describe_calibration(load_calibration(name, card))
    for label, text in rows:
        table.add_row(label, _line(text))
    console.print(table)


def describe_calibration(found: Calibration) -> list[tuple[str, str]]:
    """What a calibration rests on: labels and one line each."""
    setting = sum(stack.role == "calibration" for stack in found.stacks)
    checking = sum(stack.role == "held out" for stack in found.stacks)
    above = (
        f"{found.text.honest_scale:.2g}, set by {setting} honest stacks and checked by {checking}; "
        f"a new one lies above those that set it with probability {chance_above_all(setting):.2g} "
        "if it is like them"
    )
    rows = [("Floor", above)]
    zone = found.zone
    if zone is not None:
        risk = "not known: too few stacks" if zone.risk is None else f"{zone.risk:.2g}"
        rows.append(
            ("Tolerated", f"up to {found.text.tolerated:.2g}; chance of a new one above it: {risk}")
        )
    if found.measured is not None:
        known = _pairs(found.measured.versions)
        rows.append(("Scored by", known or describe_reference(found.measured)))
    if found.machine is not None:
        rows.append(("Machine", describe_machine(found.machine)))
    return rows


def _thoughts(thinking: Thinking | None) -> str:
    if thinking is None:
        return "none known"
    off = _pairs(thinking.switch_off)
    return f"{thinking.open} {thinking.close}; off by {off or 'nothing known'}"


def describe_card(card: Card, *, calibrated: str) -> list[tuple[str, str]]:
    """What a card says: labels and one line each."""
    licence, digests = card.licence, card.digests
    rows = [
        ("Licence", licence.name),
        ("Hosting", _HOSTING[licence.hosting]),
        ("Terms", licence.terms or "not written down"),
        ("Text", f"{licence.url or 'nowhere named'} ({_digest(licence.sha256)})"),
        ("Model", f"{card.model} by {card.publisher}"),
        ("Precision", card.precision),
        ("Source", _source(card)),
        ("Tensors", _digest(digests.tensors_sha256)),
        ("Config", _digest(digests.config_sha256)),
        ("Tokenizer", _digest(digests.tokenizer_sha256)),
        ("Template", f"{_digest(digests.template_sha256)}; from: {card.template_source}"),
        ("Sampling", _pairs(card.sampling) or "no defaults known"),
        ("Parsers", _pairs(card.parsers.model_dump())),
        ("Thoughts", _thoughts(card.thinking)),
        ("vLLM", _pairs(card.engine_args) or "no arguments"),
        ("Shape", ", ".join([f"layers {card.layers}", *_facts(card.architecture)])),
        ("Bank", f"{len(card.bank)} builds"),
        ("Calibrated", calibrated),
    ]
    rows += [
        ("Variant", f"{v.name} ({v.method}): {v.repo or v.path} at {v.revision or 'no revision'}")
        for v in card.variants
    ]
    rows += [("Sibling", f"{s.name}: {s.title}") for s in card.siblings]
    if card.unchecked:
        rows.append(("Unchecked", ", ".join(card.unchecked)))
    read: dict[str, list[str]] = {}
    for field, where in card.sources.items():
        read.setdefault(where, []).append(field)
    return rows + [("Read", f"{', '.join(fields)}: {where}") for where, fields in read.items()]


def print_memory(memory: Memory, hardware: Hardware | None, console: Console) -> None:
    """Print what each GPU needs."""
    layout = memory.layout
    gpus = "1 GPU" if layout.gpus == 1 else f"{layout.gpus} GPUs"
    split = (
        f"{gpus}: tensor {layout.tensor}, pipeline {layout.pipeline}, data {layout.data}"
        f"{', experts whole' if layout.expert_parallel else ''}"
    )
    table = _table("Memory of each GPU (estimate)", "GiB", "Rests on")
    table.columns[1].justify = "right"
    for label, size, basis in (
        ("weights", memory.weights, split),
        ("activations", memory.activations, "one step of vLLM"),
        ("context and buffers", memory.reserve, "a round figure"),
        ("KV cache", memory.kv_cache, _cache_basis(memory)),
        ("scoring, beside vLLM", memory.scoring, f"{memory.tokens:,} positions, whole vocabulary"),
    ):
        table.add_row(label, f"{size / GIB:.1f}", _line(basis))
    console.print(table)
    if hardware is not None:
        share = memory.utilization * hardware.memory_gib
        console.print(
            f"vLLM takes {share:.1f} of {hardware.memory_gib:g} GiB and needs "
            f"{memory.inside / GIB:.1f}; the caches hold about "
            f"{room_for_tokens(memory, hardware):,} tokens in all",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _cache_basis(memory: Memory) -> str:
    return (
        f"1 x {memory.max_model_len:,} tokens, or {memory.sequences} x {memory.tokens:,}, the "
        "larger"
    )


def _source(card: Card) -> str:
    source = card.source
    if isinstance(source, HubSource):
        return f"hub, {source.repo} at {source.revision or 'no revision'}"
    if isinstance(source, WheelSource):
        return f"package index, {source.requirement}"
    return f"directory {source.path}"


def _digest(value: str | None) -> str:
    return "not pinned" if value is None else f"sha256 {value[:16]}…"


def _pinned(card: Card) -> str:
    if card.digests.older():
        return "by older rules"
    values = card.digests.by_name().values()
    if all(values):
        return "yes"
    return "partly" if any(values) else "no"


def _pairs(values: Mapping[str, object]) -> str:
    known = {name: value for name, value in values.items() if value is not None}
    return ", ".join(f"{name} {_short(value)}" for name, value in known.items())


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _facts(record: BaseModel) -> Iterator[str]:
    """Every known fact of a record and of the records in it, as words."""
    for name, value in record:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{name} {value:,}"
        elif isinstance(value, str):
            yield value
        elif value:
            inner = "" if isinstance(value, bool) else f" ({', '.join(_facts(value))})"
            yield f"{name}{inner}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _line(text: str) -> Text:
    """Text of a card on one line, never read as console markup."""
    return Text(one_line(text))


# -- several targets ---------------------------------------------------------------------------


def print_summary(summary: Summary, console: Console) -> None:
    """Print where several targets stand."""
    styles = {str(word): style for word, style in STYLES.items()}
    console.print(Text(one_line(summary.summary), style="bold"), end="\n\n")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for label in wording.STANDING_COLUMNS:
        table.add_column(label.capitalize() if label.islower() else label, overflow="fold")
    for cells in wording.list_standings(summary):
        table.add_row(*(Text(one_line(cell), style=styles.get(cell, "")) for cell in cells))
    console.print(table, end="\n\n")
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(overflow="fold", style="bold")
    facts.add_column(overflow="fold")
    for name, text in wording.list_facts(summary):
        facts.add_row(_line(name), _line(text))
    console.print(facts)
