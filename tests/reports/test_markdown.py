"""The verdict in Markdown: words of a host stay words wherever they stand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from reports import HOSTILE, make_report, plain_finding

from verifier.records import Standing, Summary
from verifier.reports.markdown import render_markdown, render_summary


@pytest.mark.parametrize("text", HOSTILE)
def test_no_words_of_a_host_act_in_markdown(text: str) -> None:
    """The same lines as with plain words, and none of the signs that start anything."""
    plain, hostile = (
        render_markdown(
            replace(
                make_report("inconsistent"),
                summary=words,
                findings=(plain_finding("detected", name=words, detail=words),),
                notes=(words,),
            )
        )
        for words in ("plain words", text)
    )

    assert len(hostile.splitlines()) == len(plain.splitlines())
    for sign in "<>[]`@\x1b\u202e\u2028\x00":
        assert sign not in hostile
    for sign in "|*#":
        assert hostile.replace("&#", "").count(sign) == plain.replace("&#", "").count(sign)
    assert "://" not in hostile
    assert "www." not in hostile
    assert "&lt;" not in hostile


BEGINNINGS = [
    "1. one", "1) one", "123456789. many", "- item", "-\titem", "--- ", "+ item", "* item",
    "# heading", "> quote", "| a | b |", "```", "~~~ py", "    code", "\tcode", "=== ",
    "[a]: b", "<b>", "1986. A great year", "-1 is a number", "$$x$$", "- [ ] task", "_ _ _",
]  # fmt: skip


@pytest.mark.parametrize("text", BEGINNINGS)
def test_no_beginning_of_a_text_begins_a_block(text: str) -> None:
    """No list, heading, quote, code or line comes of it, and what is shown is the text."""
    report = replace(make_report("inconsistent"), summary=text, notes=(text,))
    tokens = MarkdownIt("commonmark").enable("table").parse(render_markdown(report))
    blocks = tokens[tokens.index(next(t for t in tokens if t.type == "heading_close")) + 1 :]

    paragraph = ["paragraph_open", "inline", "paragraph_close"]  # model, verdict, summary, sureness
    assert [t.type for t in blocks[:13]] == [*paragraph * 4, "table_open"]
    shown = "".join(child.content for child in blocks[7].children or ())
    assert shown == " ".join(text.split())
    assert [t.type for t in tokens].count("bullet_list_open") == 1
    assert {t.type for t in tokens}.isdisjoint({"ordered_list_open", "hr", "fence", "code_block"})


def test_names_of_facts_are_inert_too() -> None:
    """A target's name comes from a file."""
    target = Standing(
        name="<b>[x](y)", base_url="", model="m", decision=None, summary="no", best_name=None,
        noise_scale=None, log_e=None, accusation=None, usage=None,
    )  # fmt: skip
    text = render_summary(
        Summary(
            schema_version=1, summary="no", alpha=0.001, log_e_needed=7.0, targets=(target,),
            control=None, cost_usd=None,
        )
    )  # fmt: skip

    assert "<b>" not in text
    assert "[x]" not in text


def test_the_summary_says_verdict_departures_and_spending() -> None:
    """What a reader of a job wants to know, without opening the report."""
    text = render_markdown(make_report("inconclusive"))

    assert text.startswith("## a host that is not on record\n")
    assert "**? INCONCLUSIVE**: " in text
    assert "| departure | about | result | log e |" in text
    assert "- **Cost**:" in text
