"""The prompt pool: its size, its draws, and the data files it refuses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from verifier.errors import ConfigError
from verifier.probes import Family, Pool, Variant, conversations, draw, load_pool, read_pool
from verifier.records import Probe

KINDS = {
    "code", "instruction", "list", "multi-turn", "non-english", "open-question", "rewriting",
    "short-factual",
}  # fmt: skip
#: Conversations of one family that are looked at one by one.
SAMPLE = 400


@pytest.fixture(scope="module")
def pool() -> Pool:
    return load_pool()


@pytest.fixture(scope="module")
def many(pool: Pool) -> tuple[Probe, ...]:
    return draw(pool, seed=3, count=4000, max_tokens=48)


def texts(probe: Probe) -> list[str]:
    return [message.content for message in probe.messages]


# -- what ships --------------------------------------------------------------------------------


def test_the_pool_is_too_large_to_prepare_for(pool: Pool) -> None:
    """At least 100,000 conversations, and the size is the sum of what the families make."""
    assert pool.size >= 100_000
    assert pool.size == sum(v.size for family in pool.families for v in family.variants)
    assert all(family.size == sum(v.size for v in family.variants) for family in pool.families)


def test_there_are_all_kinds_of_ordinary_questions(pool: Pool) -> None:
    """And each kind alone is enough for many audits."""
    assert set(pool.kinds) >= KINDS
    for kind in pool.kinds:
        assert sum(family.size for family in pool.families if family.kind == kind) >= 2000


def thinned(variant: Variant, most: int) -> Variant:
    """The variant with fillers left out evenly, until it makes at most `most` conversations."""
    choices = variant.choices
    while (size := _product(choices)) > most:
        longest = max(range(len(choices)), key=lambda n: len(choices[n]))
        choices = tuple(c[::2] if n == longest else c for n, c in enumerate(choices))
    return replace(variant, choices=choices, size=size)


def _product(choices: tuple[tuple[dict[str, str], ...], ...]) -> int:
    size = 1
    for choice in choices:
        size *= len(choice)
    return size


def sampled(pool: Pool) -> Pool:
    """The pool with every family thinned to about SAMPLE conversations, every wording kept."""

    def shrink(family: Family) -> Family:
        most = max(1, SAMPLE // len(family.variants))
        variants = tuple(thinned(variant, most) for variant in family.variants)
        return replace(family, variants=variants, size=sum(v.size for v in variants))

    families = tuple(map(shrink, pool.families))
    return replace(pool, families=families, size=sum(family.size for family in families))


def test_the_size_counts_different_conversations(pool: Pool) -> None:
    """Over every wording of every family no two conversations of the sample are alike.

    The same fillers go into each wording of a family, so that wordings that agree would show.
    """
    some = sampled(pool)

    repeated = [c for c, n in Counter(conversations(some)).items() if n > 1]

    assert some.size > 20_000
    assert repeated == []


def test_small_families_are_different_to_the_last(pool: Pool) -> None:
    """Families of up to 500 conversations, in full."""
    small = tuple(family for family in pool.families if family.size <= 500)
    size = sum(family.size for family in small)

    found = set(conversations(replace(pool, families=small, size=size)))

    assert len(small) > 20
    assert len(found) == size


def test_single_and_multi_turn_conversations_are_both_there(many: tuple[Probe, ...]) -> None:
    """A conversation ends with the user; a system message only ever begins it."""
    shapes = {tuple(message.role for message in probe.messages) for probe in many}

    assert shapes == {
        ("user",),
        ("user", "assistant", "user"),
        ("system", "user", "assistant", "user"),
    }


def test_non_english_probes_come_in_several_languages(pool: Pool, many: tuple[Probe, ...]) -> None:
    """One data file per language, and scripts other than Latin among them."""
    files = {family.file for family in pool.families if family.kind == "non-english"}
    other = [p for p in many if p.kind == "non-english"]

    assert len(files) >= 3
    assert any(re.search(r"[぀-ヿ一-鿿Ѐ-ӿ؀-ۿ가-힯]", " ".join(texts(p))) for p in other)


def test_prompts_look_like_traffic(pool: Pool, many: tuple[Probe, ...]) -> None:
    """Neither empty nor endless, no doubled spaces, no braces left from a recipe, no controls."""
    odd = re.compile(r"\S {2}|[{}]|[\x00-\x08\x0b-\x1f\x7f]|TODO|\?\?|\.\.(?!\.)")
    seen = {message.content for talk in conversations(sampled(pool)) for message in talk}
    for text in seen.union(*map(texts, many)):
        assert 2 <= len(text) <= 1500, text
        assert text == text.strip(), text
        assert not odd.search(text), text


def test_prompts_do_not_all_begin_alike(many: tuple[Probe, ...]) -> None:
    """No beginning of three words is so common that a host could know a probe by it."""
    starts = Counter(" ".join(texts(probe)[0].split()[:3]) for probe in many)

    assert len(starts) > 300
    assert starts.most_common(1)[0][1] < len(many) * 0.05


# -- draws -------------------------------------------------------------------------------------


def test_a_draw_repeats_nothing(many: tuple[Probe, ...]) -> None:
    """4,000 probes are 4,000 conversations, each with a name of its own."""
    assert len({probe.messages for probe in many}) == len(many) == 4000
    assert len({probe.id for probe in many}) == 4000


def test_a_shorter_draw_is_the_beginning_of_a_longer_one(
    pool: Pool, many: tuple[Probe, ...]
) -> None:
    """So that a run can be continued, and redrawn from its seed whatever its length."""
    for count in (0, 1, 7, 8, 9, 100, 1001):
        assert draw(pool, seed=3, count=count, max_tokens=48) == many[:count]


def test_every_prefix_mixes_the_kinds_evenly(pool: Pool, many: tuple[Probe, ...]) -> None:
    """At any point no kind is more than one ahead of another, and every round is in new order."""
    rounds = len(pool.kinds)
    so_far: Counter[str] = Counter(dict.fromkeys(pool.kinds, 0))
    for probe in many:
        so_far[probe.kind] += 1

        assert max(so_far.values()) - min(so_far.values()) <= 1
    orders = {tuple(p.kind for p in many[n : n + rounds]) for n in range(0, 400, rounds)}
    assert len(orders) > 30


def test_a_seed_gives_the_same_probes_and_another_gives_others(
    pool: Pool, many: tuple[Probe, ...]
) -> None:
    """Reading the pool anew changes nothing; neighbouring seeds share next to nothing."""
    again = draw(load_pool(), seed=3, count=200, max_tokens=48)
    others = [draw(pool, seed=seed, count=200, max_tokens=48) for seed in (0, 2, 4, 2**63)]

    assert again == many[:200]
    for other in others:
        assert len({p.messages for p in other} & {p.messages for p in many}) <= 20


def test_a_draw_depends_on_the_data_files(pool: Pool) -> None:
    """The digest is part of the seed: a pool that grew gives nothing of itself away."""
    grown = replace(pool, digest="0" * 64)

    assert draw(grown, seed=3, count=8, max_tokens=48) != draw(pool, seed=3, count=8, max_tokens=48)


def test_the_reply_length_changes_no_question(pool: Pool) -> None:
    """It is carried along, and nothing else."""
    short, long = (draw(pool, seed=1, count=20, max_tokens=n) for n in (8, 500))

    assert [p.messages for p in short] == [p.messages for p in long]
    assert {p.max_tokens for p in long} == {500}


def test_kinds_can_be_chosen(pool: Pool) -> None:
    """In any order, each once."""
    chosen = draw(pool, seed=1, count=40, max_tokens=8, kinds=["list", "code", "list"])

    assert chosen == draw(pool, seed=1, count=40, max_tokens=8, kinds=["code", "list"])
    assert Counter(probe.kind for probe in chosen) == {"code": 20, "list": 20}


@pytest.mark.parametrize("kinds", [["poem"], [], ["code", ""]])
def test_an_unknown_kind_is_refused_with_the_known_ones(pool: Pool, kinds: list[str]) -> None:
    """And so is asking for no kind at all."""
    with pytest.raises(ConfigError, match="expected kinds out of code, instruction, list"):
        draw(pool, seed=1, count=1, max_tokens=8, kinds=kinds)


# -- small pools -------------------------------------------------------------------------------

LEAST: dict[str, Any] = {
    "source": "written for the test",
    "licence": "Apache-2.0",
    "kind": "code",
    "language": "en",
}


def write(directory: Path, name: str = "a", **content: Any) -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(LEAST | content, allow_unicode=True), encoding="utf-8")
    return path


def group(*lines: str, **more: Any) -> dict[str, Any]:
    return {"texts": list(lines)} | more


def said(pool: Pool) -> list[str]:
    return [" | ".join(m.content for m in messages) for messages in conversations(pool)]


def test_slots_are_filled_in_every_combination(tmp_path: Path) -> None:
    """Forms of one filler belong together, and a slot that comes twice is filled alike."""
    slots = {
        "thing": [{"one": "cat", "more": "cats"}, {"one": "ox", "more": "oxen"}],
        "place": ["town", "wood"],
    }
    text = "a {thing.one} in {place}: {thing.more}, {place}?"
    write(tmp_path, slots=slots, groups=[group(text)])

    assert sorted(said(read_pool(tmp_path))) == [
        "A cat in town: cats, town?",
        "A cat in wood: cats, wood?",
        "A ox in town: oxen, town?",
        "A ox in wood: oxen, wood?",
    ]


def test_frames_go_around_every_text_and_casual_ones_drop_case_and_mark(tmp_path: Path) -> None:
    """One family per text, so that frames do not make a text more likely."""
    frames = {"frames": ["{text}?", "please: {text}."], "casual": ["hey, {text}?"]}
    write(tmp_path, groups=[group("what is Rust", "why Go", **frames)])
    pool = read_pool(tmp_path)

    assert said(pool) == [
        "What is Rust?", "Please: what is Rust.", "hey, what is rust",
        "Why Go?", "Please: why Go.", "hey, why go",
    ]  # fmt: skip
    assert [family.size for family in pool.families] == [3, 3]


def test_conversations_combine_their_turns(tmp_path: Path) -> None:
    """With and without a system message; shared follow-ups join a conversation's own."""
    talk = {"ask": ["hi", "hey"], "answer": ["Hello."], "then": ["why?"]}
    write(
        tmp_path, dialogues=[{"systems": ["Be brief."], "then": ["bye"], "conversations": [talk]}]
    )

    assert sorted(said(read_pool(tmp_path))) == [
        "Be brief. | hey | Hello. | bye",
        "Be brief. | hey | Hello. | why?",
        "Be brief. | hi | Hello. | bye",
        "Be brief. | hi | Hello. | why?",
        "hey | Hello. | bye",
        "hey | Hello. | why?",
        "hi | Hello. | bye",
        "hi | Hello. | why?",
    ]


def test_a_small_pool_is_dealt_to_the_last_and_no_further(tmp_path: Path) -> None:
    """Kinds that run out leave the rest to the others."""
    write(tmp_path, "a", groups=[group("one", "two", "three")])
    write(tmp_path, "b", kind="list", slots={"n": list("12345")}, groups=[group("say {n}")])
    pool = read_pool(tmp_path)

    everything = draw(pool, seed=1, count=8, max_tokens=8)

    assert sorted(texts(p)[0] for p in everything) == sorted(said(pool))
    assert [p.kind for p in everything[6:]] == ["list", "list"]
    for count in (9, -1):
        with pytest.raises(ConfigError, match="count must be 0 to 8 for code, list; got"):
            draw(pool, seed=1, count=count, max_tokens=8)


def test_two_texts_that_come_out_alike_are_asked_once(tmp_path: Path) -> None:
    """What the data files repeat after all is dealt once, and refused when more was promised."""
    write(tmp_path, groups=[group("same"), group("Same"), group("other")])
    pool = read_pool(tmp_path)

    assert pool.size == 3
    assert len(draw(pool, seed=1, count=2, max_tokens=8)) == 2
    with pytest.raises(ConfigError, match="only 2 of 3 conversations differ"):
        draw(pool, seed=1, count=3, max_tokens=8)


def test_the_first_eight_show_every_kind(pool: Pool) -> None:
    """Whatever the seed, and in an order of its own."""
    orders = set()
    for seed in range(25):
        probes = draw(pool, seed=seed, count=len(pool.kinds), max_tokens=8)
        orders.add(tuple(probe.kind for probe in probes))

    assert {tuple(sorted(order)) for order in orders} == {pool.kinds}
    assert len(orders) > 20


def test_large_families_do_not_crowd_out_small_ones(tmp_path: Path) -> None:
    """Of two families, one with 400 conversations and one with 100, each is drawn half the time.

    100 draws of a fair coin lie within 50 plus or minus 20 but for one in 10,000 (4 sigma).
    """
    slots = {"n": [str(n) for n in range(400)], "k": [str(k) for k in range(100)]}
    write(tmp_path, slots=slots, groups=[group("say {n}", "think of {k}")])
    probes = draw(read_pool(tmp_path), seed=1, count=100, max_tokens=8)

    assert 30 <= sum(texts(p)[0].startswith("Say") for p in probes) <= 70


# -- data files that are refused ---------------------------------------------------------------


def bad_files() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, what is wrong in an otherwise good file, and the complaint."""
    good = {"groups": [group("hi")]}
    yield "unknown key", good | {"extra": 1}, "extra: Extra inputs are not permitted"
    yield "no source", good | {"source": ""}, "source: expected text without outer or double"
    yield "bad kind", good | {"kind": "Open Question"}, "kind: String should match pattern"
    yield "no text", {"groups": [group()]}, "groups.0.texts: Value should have at least 1 item"
    yield "outer space", {"groups": [group(" hi")]}, "groups.0.texts.0: expected text without outer"
    yield "double space", {"groups": [group("a  b")]}, "groups.0.texts.0: expected text without"
    yield "repeated", {"groups": [group("hi", "hi")]}, "groups.0.texts: entry 1 repeats"
    yield "no slot", {"groups": [group("a {thing}")]}, "no slot is called 'thing'"
    yield "no form", _with_slot("{a.many}", ["x"]), "slot 'a' has no form 'many'"
    yield "unused", _with_slot("hi", ["x"]), "slot 'a' is used by no text"
    yield "brace", {"groups": [group("f() {}")]}, "a brace that is not part of a {slot}"
    yield "empty slot", _with_slot("{a}", []), "slots.a: Tuple should have at least 1 item"
    yield "twice", _with_slot("{a}", ["x", "x"]), "slots.a: entry 1 repeats an earlier one"
    yield "other forms", _with_slot("{a.s}", [{"s": "x"}, {"t": "y"}]), "has other forms than"
    talk = {"ask": ["hi"], "answer": []}
    dialogue = {"then": ["bye"], "conversations": [talk]}
    yield "no answer", {"dialogues": [dialogue]}, "dialogues.0.conversations.0.answer: Value should"
    silent = dialogue | {"then": []}
    yield "no follow-up", {"dialogues": [silent]}, "dialogues.0.then: Value should have at least 1"


def _with_slot(text: str, fillers: list[Any]) -> dict[str, Any]:
    return {"slots": {"a": fillers}, "groups": [group(text)]}


@pytest.mark.parametrize(
    ("content", "complaint"), [pytest.param(c, m, id=name) for name, c, m in bad_files()]
)
def test_a_bad_data_file_is_refused_with_file_and_entry(
    tmp_path: Path, content: dict[str, Any], complaint: str
) -> None:
    """Whoever extends the pool reads one line that says where and what."""
    write(tmp_path, "mine", **content)

    with pytest.raises(ConfigError) as refused:
        read_pool(tmp_path)

    assert str(refused.value).startswith("mine.yaml: ")
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"kind: [", "mine.yaml: not YAML ("),
        (b"kind: \xff", "not YAML in UTF-8"),
        (b"kind: code\nkind: list\n", "'kind' is there twice"),
        (b"slots:\n  a: [x]\n  a: [y]\n", "'a' is there twice"),
        (b"", "mine.yaml: file:"),
        (b"- a\n", "mine.yaml: file:"),
    ],
    ids=["broken", "not UTF-8", "key twice", "slot twice", "empty", "list"],
)
def test_what_is_no_data_file_is_refused(tmp_path: Path, raw: bytes, complaint: str) -> None:
    """A slot given twice would silently lose the first."""
    (tmp_path / "mine.yaml").write_bytes(raw)

    with pytest.raises(ConfigError, match=re.escape(complaint)):
        read_pool(tmp_path)


def test_a_folder_without_data_files_is_refused(tmp_path: Path) -> None:
    """Rather than a pool of nothing."""
    with pytest.raises(ConfigError, match="expected data files"):
        read_pool(tmp_path)


def test_the_digest_is_of_the_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Any change to any file shows, and the order of creation does not."""
    for name in ("b", "a"):
        write(tmp_path, name, groups=[group(f"say {name}")])
    before = read_pool(tmp_path).digest
    write(tmp_path, "a", groups=[group("say c")])
    changed = read_pool(tmp_path).digest
    (tmp_path / "a.yaml").unlink()
    write(tmp_path, "a", groups=[group("say a")])

    assert read_pool(tmp_path).digest == before != changed
