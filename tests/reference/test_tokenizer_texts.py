"""Texts to ids and back: small tokenizers made here, and the embedded model's own."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import transformers
from jinja2 import Environment
from models import EOS_ID, SPECIALS, TEMPLATE, save_tokenizer
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from verifier.errors import ReferenceMismatch
from verifier.records import Message
from verifier.reference.tokenizer import Tokenizer

TEXTS = {
    "ASCII": "The capital of France is Paris.\n\n\tIt's 100% so;  two  spaces.",
    "umlauts": "Über die Größe der Äpfel, naïve façade",
    "Chinese": "今天天气很好，我们去公园吧。",
    "emoji": "fine 🙂 👩‍👩‍👧 ok",
    "control": "a\x00b\x7fc\u2028d",
    "end": "trailing space ",
    "nothing": "",
}
TALK = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="Größe?\n日本 🙂"),
    Message(role="assistant", content="Yes: the 3rd."),
    Message(role="user", content="the end"),
]


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer(tiny)


@pytest.fixture(scope="module")
def real(embedded: Path) -> Tokenizer:
    return Tokenizer(embedded)


@pytest.fixture(
    scope="module",
    params=["tokenizer", pytest.param("real", marks=pytest.mark.slow)],
    ids=["small", "embedded"],
)
def either(request: pytest.FixtureRequest) -> Tokenizer:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Tokenizer)
    return found


texts = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


# -- both tokenizers ---------------------------------------------------------------------------


@texts
def test_a_text_comes_back_from_its_ids(either: Tokenizer, text: str) -> None:
    """Nothing is added, dropped or cleaned up."""
    assert either.decode(either.encode(text)) == text


@texts
def test_the_bytes_of_the_tokens_spell_the_text(either: Tokenizer, text: str) -> None:
    """Also where a character is cut into several tokens."""
    ids = either.encode(text)

    assert b"".join(map(either.token_bytes, ids)) == text.encode()


@pytest.mark.parametrize("name", SPECIALS)
def test_control_tokens_in_a_text_are_letters(either: Tokenizer, name: str) -> None:
    """Whoever writes the name of a control token into a text does not get the token."""
    ids = either.encode(f"a{name}b")

    assert not set(ids) & either.special_ids
    assert b"".join(map(either.token_bytes, ids)) == f"a{name}b".encode()
    assert either.decode(ids) == f"a{name}b"


def test_no_token_is_added_to_a_text(either: Tokenizer) -> None:
    """Neither at the beginning nor at the end, so that parts of a text can be joined."""
    assert either.encode("") == ()
    assert len(either.encode("a")) == 1


def test_ids_of_bytes_is_the_inverse_of_token_bytes(either: Tokenizer) -> None:
    """Every token with bytes is found by them, and what is found has these bytes."""
    for token_id in range(either.vocabulary_size):
        raw = either.token_bytes(token_id)
        if raw:
            found = either.ids_of_bytes(raw)
            assert token_id in found
            assert all(either.token_bytes(other) == raw for other in found)


def test_bytes_of_no_token_have_no_ids(either: Tokenizer) -> None:
    """Unknown bytes and no bytes at all."""
    assert either.ids_of_bytes(b"no token is so long as this") == ()
    assert either.ids_of_bytes(b"") == ()


def test_control_tokens_have_names_and_no_bytes(either: Tokenizer) -> None:
    """Each is found by its own name, and shows in no text."""
    ids = [either.special_id(name) for name in SPECIALS]

    assert ids == [0, 1, 2]
    assert set(ids) <= either.special_ids
    for token_id in either.special_ids:
        assert either.token_bytes(token_id) == b""
        assert either.decode([token_id]) == ""
    assert either.eos_id == EOS_ID
    assert either.special_id("the") is None


def test_ids_beyond_the_vocabulary_have_no_bytes(either: Tokenizer) -> None:
    """A model may have more rows than its tokenizer has tokens."""
    assert either.token_bytes(either.vocabulary_size) == b""
    assert either.token_bytes(-1) == b""


def test_part_of_a_character_shows_as_a_replacement(either: Tokenizer) -> None:
    """A reply that is cut in mid-character is still a text."""
    ids = either.encode("🙂")

    assert len(ids) > 1
    assert "\ufffd" in either.decode(ids[:1])


# -- prompts -----------------------------------------------------------------------------------


def test_a_conversation_is_rendered_turn_by_turn(tokenizer: Tokenizer) -> None:
    """Turn marks are single control tokens, contents are plain text, the assistant is next."""
    begin, end = tokenizer.special_id("<|im_start|>"), tokenizer.special_id("<|im_end|>")
    expected: list[int | None] = []
    for message in TALK:
        expected += [begin, *tokenizer.encode(f"{message.role}\n{message.content}")]
        expected += [end, *tokenizer.encode("\n")]
    expected += [begin, *tokenizer.encode("assistant\n")]

    assert list(tokenizer.render(TALK)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("turns", [TALK, TALK[1:], TALK[3:]], ids=["system", "turns", "one"])
def test_prompts_of_the_embedded_model_are_those_of_its_template(
    real: Tokenizer, embedded: Path, turns: list[Message]
) -> None:
    """What transformers' own apply_chat_template gives, and what the template's source spells."""
    conversation = [{"role": m.role, "content": m.content} for m in turns]
    loaded = transformers.AutoTokenizer.from_pretrained(embedded)
    found = real.render(turns)
    source = Environment().from_string((embedded / "chat_template.jinja").read_text())  # noqa: S701
    text = source.render(messages=conversation, add_generation_prompt=True)

    assert list(found) == loaded.apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=False
    )
    assert loaded.decode(found) == text
    assert text.endswith("<|im_start|>assistant\n")
    assert ("named SmolLM" in text) == (turns[0].role != "system")


# -- other kinds of vocabulary -----------------------------------------------------------------


def test_other_control_tokens_than_the_named_ones_are_hidden_too(tmp_path: Path) -> None:
    """A token marked special shows in no text, whether or not it is the end or the beginning."""
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    backend = Backend.from_file(str(path))
    backend.add_special_tokens([AddedToken("<file>", special=True)])
    backend.add_tokens([AddedToken("<｜tool▁call｜>", special=False)])
    backend.save(str(path))
    tokenizer = Tokenizer(tmp_path)
    hidden, shown = tokenizer.vocabulary_size - 2, tokenizer.vocabulary_size - 1

    assert hidden in tokenizer.special_ids
    assert tokenizer.special_id("<file>") == hidden
    assert tokenizer.token_bytes(hidden) == b""
    assert tokenizer.decode([hidden]) == ""
    assert shown not in tokenizer.special_ids
    assert tokenizer.decode([shown]) == "<｜tool▁call｜>"
    assert tokenizer.token_bytes(shown) == "<｜tool▁call｜>".encode()


def test_sentencepiece_vocabularies_spell_their_text(tmp_path: Path) -> None:
    """Their pieces are characters, spaces are marked, and rare characters are bytes by name."""
    letters = ["▁", "t", "h", "e", "é", "ü", "▁t", "▁th", "▁the"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *letters]
    backend = Backend(
        models.BPE(
            vocab={piece: n for n, piece in enumerate(pieces)},
            merges=[("▁", "t"), ("▁t", "h"), ("▁th", "e")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path)
    text = " the é ü 🙂\n"
    ids = tokenizer.encode(text)

    assert pieces[ids[0]] == "▁the"
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizer.ids_of_bytes("é".encode()) == (pieces.index("é"),)
    assert tokenizer.ids_of_bytes(b"\n") == (pieces.index("<0x0A>"),)


# -- refusals ----------------------------------------------------------------------------------


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """In one line that names the directory."""
    with pytest.raises(ReferenceMismatch, match="no tokenizer could be loaded") as refused:
        Tokenizer(tmp_path)

    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Without a word of the hub, where its path would be taken for a repository's name."""
    with pytest.raises(ReferenceMismatch) as refused:
        Tokenizer(tmp_path / "none")

    assert str(refused.value) == f"{tmp_path / 'none'}: no such directory of weights and tokenizer"


@pytest.mark.parametrize("content", ["", "{", "{}", '{"added_tokens": [], "model": 3}'], ids=repr)
def test_a_broken_tokenizer_file_is_refused(tmp_path: Path, content: str) -> None:
    """Whatever the library makes of it."""
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(ReferenceMismatch, match="no tokenizer could be loaded"):
        Tokenizer(tmp_path)


def test_the_template_of_the_small_tokenizer_is_the_one_on_disk(tiny: Path) -> None:
    """The fixture is what the tests above take it for."""
    assert (tiny / "chat_template.jinja").read_text() == TEMPLATE


def test_prompts_and_replies_are_never_read_at_once(tmp_path: Path) -> None:
    """Whether control tokens are split is a state of the tokenizer, and threads share it."""
    save_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    within, met = threading.Event(), threading.Event()

    class Slow:
        def encode(self, *_args: object, **_settings: object) -> list[int]:
            within.set()
            return [int(met.wait(0.2))]

        def __call__(self, *_args: object, **_settings: object) -> dict[str, list[int]]:
            met.set()
            return {"input_ids": []}

    tokenizer._tokenizer = Slow()
    found: list[tuple[int, ...]] = []
    thread = threading.Thread(target=lambda: found.append(tokenizer.encode("a")))
    thread.start()
    assert within.wait(10)
    tokenizer.encode_prompt("a")
    thread.join()

    assert found == [(False,)]
