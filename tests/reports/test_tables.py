"""Cards and memory plans in the terminal: terms first, nothing left out, nothing read as markup."""

from __future__ import annotations

import io
from typing import Any

import pytest
from fakes_card import CARD
from rich.console import Console

from verifier.config import Hardware, ReferenceSection
from verifier.reference.cards import Card, list_cards, load_card
from verifier.reference.hardware import plan_memory
from verifier.reports.tables import describe_card, print_card, print_cards, print_memory


def shown(show: Any, width: int = 100) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width))
    return out.getvalue()


def described(**changes: Any) -> dict[str, str]:
    card = Card.model_validate(CARD | changes)
    return dict(describe_card(card, calibrated="no"))


def test_the_terms_of_the_licence_come_first() -> None:
    """Before anything else of the model."""
    lines = shown(lambda console: print_card("minimax-m2.7", console)).splitlines()

    assert lines[0].split(maxsplit=1)[0] == "Licence"
    assert "for money only with written authorization" in lines[1]
    assert lines[2].startswith("Terms")
    assert "needs MiniMax's prior written" in lines[2]


@pytest.mark.parametrize("name", list_cards())
def test_every_shipped_card_can_be_shown(name: str) -> None:
    """With its sources, its open fields and its builds, on a narrow terminal too."""
    card = load_card(name)
    text = shown(lambda console: print_card(name, console), width=2000)

    assert shown(lambda console: print_card(name, console), width=40)
    for said in (*card.sources.values(), *card.unchecked, *(v.name for v in card.variants)):
        assert said in text


def test_what_a_card_lacks_is_said() -> None:
    """Not shown as an empty line."""
    rows = described(digests={"tensors_sha256": "a" * 64, "tokenizer_sha256": None})

    assert rows["Tensors"] == "sha256 aaaaaaaaaaaaaaaa…"
    assert rows["Tokenizer"] == "not pinned"
    assert rows["Terms"] == "not written down"
    assert rows["Text"] == "nowhere named (not pinned)"
    assert rows["Sampling"] == "no defaults known"
    assert rows["Shape"] == "layers 2"
    assert rows["Calibrated"] == "no"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"kind": "hub", "repo": "a/b"}, "hub, a/b at no revision"),
        ({"kind": "hub", "repo": "a/b", "revision": "0" * 40}, f"hub, a/b at {'0' * 40}"),
        ({"kind": "directory", "path": "here"}, "directory here"),
        (
            {"kind": "wheel", "requirement": "x==1", "sha256": "0" * 64, "member": "m"},
            "package index, x==1",
        ),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_source_is_one_line(source: dict[str, Any], expected: str) -> None:
    """Wherever the weights come from."""
    assert described(source=source)["Source"] == expected


def test_a_card_from_elsewhere_cannot_style_the_terminal() -> None:
    """Its words are shown as they are, control signs made visible."""
    licence = {"name": "[bold]MIT[/bold]", "hosting": "allowed", "terms": "a\x1b[31mb\nc"}
    card = Card.model_validate(CARD | {"licence": licence})
    rows = dict(describe_card(card, calibrated="yes"))

    assert rows["Licence"] == "[bold]MIT[/bold]"
    text = shown(lambda console: print_card("qwen3-8b", console))
    assert "\x1b" not in text


def test_the_list_names_every_card_with_its_hosting_terms() -> None:
    """One line each; the embedded model alone is pinned and calibrated."""
    lines = shown(print_cards, width=100).partition("\n\n")[0].splitlines()
    rows = {line.split()[0]: line for line in lines[1:]}

    assert set(rows) == set(list_cards())
    assert "written authorization" in rows["minimax-m2.7"]
    assert rows["smollm2-135m-instruct"].split()[-1] == "yes"
    assert rows["qwen3-8b"].split()[-1] == "provisional"
    assert "41 GB RAM" in rows["qwen3-8b"]
    assert "?" in rows["mistral-small-3.2-24b-instruct-2506"]


def test_a_memory_plan_is_a_table_of_each_gpu() -> None:
    """Sizes in GiB, what they rest on, and what the hardware leaves."""
    hardware = Hardware(gpus=4, memory_gib=96)
    section = ReferenceSection(
        card="minimax-m2.7", engine="vllm", dtype="bfloat16", hardware=hardware
    )
    memory = plan_memory(load_card("minimax-m2.7"), section, max_tokens=48)
    text = shown(lambda console: print_memory(memory, hardware, console), width=110)
    alone = shown(lambda console: print_memory(memory, None, console), width=110)

    assert "weights                        53.6  4 GPUs: tensor 4, pipeline 1, data 1" in text
    assert "KV cache                       12.1  1 x 204,800 tokens, or 8 x 1,072" in text
    assert "vLLM takes 88.3 of 96 GiB" in text
    assert "vLLM takes" not in alone
