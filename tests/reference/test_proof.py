"""Direct proof: prompts that a host shows, compared token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import make_family, talk

from verifier.records import REFERENCE
from verifier.reference.renderings.catalogue import catalogue, render_probe
from verifier.reference.renderings.proof import compare_ids, compare_text
from verifier.reference.tokenizer import Tokenizer

ENTRIES = catalogue()
PROBE = talk(("system", "Be brief."), ("user", " Hi. "))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_family(tmp_path_factory.mktemp("proof"), "llama3")


def test_the_published_prompt_agrees(tokenizer: Tokenizer) -> None:
    """Token by token, and a valid rendering is named first."""
    published = render_probe(ENTRIES[REFERENCE], PROBE, tokenizer)
    assert published is not None
    found = compare_ids(published.ids, PROBE, ENTRIES, tokenizer)

    assert found is not None
    assert found.agrees
    assert found.names[0] == REFERENCE


@pytest.mark.parametrize(("name", "at"), [("bos-doubled", 1), ("bos-missing", 0)])
def test_a_fault_is_named_with_the_first_token_that_differs(
    tokenizer: Tokenizer, name: str, at: int
) -> None:
    """No statistics: the prompt is there."""
    served = render_probe(ENTRIES[name], PROBE, tokenizer)
    assert served is not None
    found = compare_ids(served.ids, PROBE, ENTRIES, tokenizer)

    assert found is not None
    assert (found.names, found.differs_at, found.agrees) == ((name,), at, False)
    assert compare_text(served.text, PROBE, ENTRIES, tokenizer) == found


def test_an_unknown_prompt_has_no_name(tokenizer: Tokenizer) -> None:
    """It differs all the same; one that is cut short differs where it ends."""
    published = render_probe(ENTRIES[REFERENCE], PROBE, tokenizer)
    assert published is not None
    cut = compare_ids(published.ids[:5], PROBE, ENTRIES, tokenizer)

    assert cut is not None
    assert (cut.names, cut.differs_at) == ((), 5)


def test_a_probe_that_the_template_refuses_proves_nothing(tmp_path: Path) -> None:
    """Neither for nor against."""
    tokenizer = make_family(tmp_path, "chatml")
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    tokenizer = Tokenizer(tmp_path)

    assert compare_ids((1, 2), PROBE, ENTRIES, tokenizer) is None
