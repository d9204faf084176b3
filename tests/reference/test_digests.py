"""Whatever changes what is loaded changes a digest; malformed checkpoints are one line."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes_card import CARD, write_card
from models import TEMPLATE
from safetensors.torch import load_file, save_file

from verifier.errors import ConfigError, ReferenceMismatch, VerifierError
from verifier.lab.derived_models import prune
from verifier.reference.cards import Card
from verifier.reference.digests import digests_of, tensors_sha256, vocabulary_sha256
from verifier.reference.engines.load import load_engine
from verifier.reference.engines.vllm import formats_of
from verifier.reference.layout import read_layout
from verifier.reference.pin import pin_card
from verifier.reference.snapshot import find_shards
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.weights import check_weights

Change = Callable[[Path], object]

STRAY = "{{ 'another prompt' }}"


@pytest.fixture
def weights(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the random model that a test may spoil."""
    directory = tmp_path / "weights"
    shutil.copytree(tiny, directory)
    return directory


def pinned(directory: Path) -> Card:
    return Card.model_validate(CARD | {"digests": digests_of(directory).model_dump()})


def refusal(card: Card, directory: Path, *, tensors: bool = True) -> str:
    """The one line by which a directory is refused."""
    with pytest.raises(ReferenceMismatch) as refused:
        check_weights(card, directory, tensors=tensors)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def edit(name: str, **changes: Any) -> Change:
    """Set keys of a JSON file; None takes one out."""

    def change(directory: Path) -> None:
        path = directory / name
        raw = json.loads(path.read_text()) if path.exists() else {}
        kept = {k: v for k, v in raw.items() if k not in changes}
        path.write_text(json.dumps(kept | {k: v for k, v in changes.items() if v is not None}))

    return change


def put(name: str, text: str | bytes) -> Change:
    """Write a file."""

    def change(directory: Path) -> None:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    return change


# -- what a loader would compute otherwise -----------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit("config.json", rms_norm_eps=0.5), "config_sha256 is"),
        (edit("config.json", num_hidden_layers=1), "config_sha256 is"),
        (edit("config.json", hidden_act="relu"), "config_sha256 is"),
        (
            edit("config.json", rope_scaling={"rope_type": "yarn", "factor": 4.0}),
            "(config.json: rope_scaling is no part of what was pinned)",
        ),
        (
            edit("config.json", quantization_config={"quant_method": "fp8"}),
            "(config.json: quantization_config is no part of what was pinned)",
        ),
        (put("hf_quant_config.json", "{}"), "(hf_quant_config.json is no part of"),
        (put("modeling_tiny.py", "import os"), "(modeling_tiny.py is no part of"),
        (edit("tokenizer_config.json", eos_token="<|endoftext|>"), "tokenizer_sha256 is"),
        (
            edit("tokenizer_config.json", add_prefix_space=True),
            "(tokenizer_config.json: add_prefix_space is no part of",
        ),
        (edit("tokenizer.json", decoder=None), "tokenizer_sha256 is"),
        (
            edit("tokenizer.json", truncation={"max_length": 8, "stride": 0}),
            "(tokenizer.json: truncation is no part of",
        ),
        (edit("special_tokens_map.json", eos_token="the"), "(special_tokens_map.json: eos_token"),
        (edit("added_tokens.json", more=999), "(added_tokens.json: more is no part of"),
        (put("vocab.json", "{}"), "(vocab.json is no part of"),
        (put("tekken.json", "{}"), "(tekken.json is no part of"),
        (
            put("additional_chat_templates/default.jinja", STRAY),
            "(additional_chat_templates/default.jinja is no part of",
        ),
        (put("additional_chat_templates/tool_use.jinja", STRAY), "template_sha256 is"),
        (put("other.jinja", STRAY), "(other.jinja is no part of"),
        (put("encoding/encode.py", "import os"), "(encoding/encode.py is no part of"),
        (put("chat_template.json", '{"chat_template": "x"}'), "(chat_template.json is no part of"),
        (put("chat_template.jinja", STRAY), "template_sha256 is"),
        (edit("tokenizer_config.json", chat_template=STRAY), "template_sha256 is"),
    ],
)
def test_what_changes_the_computation_or_the_prompt_is_refused(
    weights: Path, change: Change, said: str
) -> None:
    """By the digest that it belongs to, and by name where one part is too many."""
    card = pinned(weights)
    change(weights)

    assert said in refusal(card, weights)


@pytest.mark.parametrize(
    "change",
    [
        edit("config.json", transformers_version="4.99"),
        edit("tokenizer_config.json", transformers_version="4.99", name_or_path="x", is_local=True),
        edit("generation_config.json", temperature=0.1),
        put("README.md", "words"),
        put("model.Q4_K_M.gguf", "GGUF"),
        put("pytorch_model.bin", "pickle"),
        put("original/consolidated.00.pth", "pickle"),
    ],
)
def test_what_no_loader_heeds_changes_nothing(weights: Path, change: Change) -> None:
    """Who wrote a file, how texts are drawn from it, other formats of the same weights."""
    card = pinned(weights)
    change(weights)

    check_weights(card, weights)


def test_the_order_and_spacing_of_keys_change_nothing(weights: Path) -> None:
    """A file may be written anew."""
    card = pinned(weights)
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        raw = json.loads((weights / name).read_text())
        (weights / name).write_text(json.dumps(dict(reversed(raw.items())), indent=7))

    check_weights(card, weights)


def test_a_checkpoint_that_ships_code_and_templates_can_be_pinned(weights: Path) -> None:
    """With all of it; one script that changes is a mismatch."""
    put("modeling_tiny.py", "a = 1")(weights)
    put("encoding/encode.py", "b = 1")(weights)
    put("additional_chat_templates/tool_use.jinja", STRAY)(weights)
    edit("config.json", auto_map={"AutoModelForCausalLM": "modeling_tiny.Tiny"})(weights)
    card = pinned(weights)
    check_weights(card, weights)
    put("modeling_tiny.py", "a = 2")(weights)

    assert "config_sha256 is" in refusal(card, weights)
    assert "made of config.json, modeling_tiny.py)" in refusal(card, weights)


def test_a_remote_engine_needs_no_model_here(weights: Path) -> None:
    """Tokenizer and template are compared, a configuration where it is there."""
    card = pinned(weights)
    (weights / "model.safetensors").unlink()
    check_weights(card, weights, tensors=False)
    edit("config.json", model_type="mamba")(weights)
    other = refusal(card, weights, tensors=False)
    (weights / "config.json").unlink()
    check_weights(card, weights, tensors=False)

    assert "config_sha256 is" in other
    assert "config.json: no such file" in refusal(card, weights)


def test_models_share_a_tokenizer_when_texts_have_the_same_ids(weights: Path, tiny: Path) -> None:
    """A fine-tune may have another template, another end of turn, or more that is never read."""
    edit("tokenizer_config.json", eos_token="<|endoftext|>", chat_template=STRAY)(weights)
    put("vocab.json", "{}")(weights)
    edit("tokenizer.json", decoder=None, truncation={"max_length": 8})(weights)
    same = vocabulary_sha256(weights)
    raw = json.loads((weights / "tokenizer.json").read_text())
    raw["model"]["ignore_merges"] = True
    (weights / "tokenizer.json").write_text(json.dumps(raw))

    assert same == vocabulary_sha256(tiny)
    assert vocabulary_sha256(weights) != same


# -- which files hold the tensors --------------------------------------------------------------


def index(directory: Path, **files: str) -> None:
    put("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": files}))(
        directory
    )


def shard(directory: Path) -> list[str]:
    """The random model in two shards and an index; the names of its tensors."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    first, second = names[:5], names[5:]
    save_file({n: tensors[n] for n in first}, directory / "a.safetensors")
    save_file({n: tensors[n] for n in second}, directory / "b.safetensors")
    files = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    index(directory, **files)
    return names


def test_shards_have_the_digest_of_the_whole(weights: Path, tiny: Path) -> None:
    """And the transformers engine reads the same ones."""
    shard(weights)

    assert tensors_sha256(weights) == tensors_sha256(tiny)
    assert [path.name for path in find_shards(weights)] == ["a.safetensors", "b.safetensors"]


def copy(name: str, to: str) -> Change:
    return lambda directory: shutil.copy(directory / name, directory / to)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (copy("model.safetensors", "zz-published.safetensors"), "is no part of the checkpoint"),
        (copy("model.safetensors", "a.safetensors"), "is no part of the checkpoint"),
        (lambda d: (copy("model.safetensors", "b.safetensors")(d), index(d, x="b.safetensors")),
         "loaders differ in which they take"),
        (put("adapter_config.json", "{}"), "an adapter would be loaded"),
        (put("adapter_model.safetensors", ""), "an adapter would be loaded"),
        (edit("config.json", transformers_weights="b.safetensors"), "names other weights"),
        (lambda d: (d / "model.safetensors").rename(d / "weights.safetensors"),
         "no model.safetensors, no model.safetensors.index.json"),
    ],
)  # fmt: skip
def test_files_of_which_loaders_take_others_are_refused(
    weights: Path, change: Change, said: str
) -> None:
    """Pinned or not: two loaders would score with two models."""
    card = pinned(weights)
    change(weights)
    unpinned = Card.model_validate(CARD | {"digests": {}})

    for one in (pinned_but_config(card), unpinned):
        assert said in refusal(one, weights)


def pinned_but_config(card: Card) -> Card:
    return card.model_copy(update={"digests": card.digests.model_copy(
        update={"config_sha256": None}
    )})  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: (d / "b.safetensors").unlink(), "names 'b.safetensors', which is not there"),
        (copy("b.safetensors", "c.safetensors"), "c.safetensors: is no part of the checkpoint"),
        (
            lambda d: shutil.copy(d / "a.safetensors", d / "b.safetensors"),
            "stands in a.safetensors",
        ),
    ],
)
def test_shards_that_are_missing_beside_or_twice_are_refused(
    weights: Path, change: Change, said: str
) -> None:
    """Each names the file."""
    card = pinned(weights)
    shard(weights)
    change(weights)

    assert said in refusal(card, weights)


def test_a_repository_may_hold_the_publishers_own_format_beside(weights: Path) -> None:
    """Mistral's do: the same weights under other names, which no engine here is told to take."""
    card = pinned(weights)
    put("consolidated.safetensors", "")(weights)
    check_weights(card, weights)
    shard(weights)
    put("consolidated-00001-of-00001.safetensors", "")(weights)

    check_weights(card, weights)


def test_a_repository_may_hold_the_publishers_own_format_alone(weights: Path) -> None:
    """Then those are its tensors."""
    before = tensors_sha256(weights)
    (weights / "model.safetensors").rename(weights / "consolidated.safetensors")

    assert tensors_sha256(weights) == before


def test_vllm_is_told_to_take_the_weights_of_the_digest(weights: Path) -> None:
    """Left to itself it would prefer the publisher's own format; alone, that is left to it."""
    taken = {"load_format": "safetensors", "config_format": "hf"}
    plain = formats_of(weights)
    put("consolidated.safetensors", "")(weights)
    with pytest.raises(ConfigError, match=r"consolidated\.safetensors: vLLM would read it beside"):
        formats_of(weights)
    shard(weights)

    assert plain == formats_of(weights) == taken
    for path in (*find_shards(weights), weights / "model.safetensors.index.json"):
        path.unlink()
    assert formats_of(weights) == {}


def test_a_model_made_of_shards_is_one_file(weights: Path, tmp_path: Path) -> None:
    """The index of its parent would name files that it has not."""
    shard(weights)
    (tmp_path / "made").mkdir()
    prune(weights, tmp_path / "made")

    assert [path.name for path in find_shards(tmp_path / "made")] == ["model.safetensors"]


# -- malformed files ---------------------------------------------------------------------------


def header(change: Callable[[dict[str, Any]], object]) -> Change:
    """Edit the header of a whole file; the bytes behind it stay."""

    def spoil(directory: Path) -> None:
        path = directory / "model.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8 : 8 + length])
        found = change(entries)
        text = json.dumps(entries if found is None else found).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return spoil


def entry(**changes: Any) -> Change:
    """Edit the entry of one tensor; None takes a key out."""

    def change(entries: dict[str, Any]) -> None:
        one = entries["model.norm.weight"] | changes
        entries["model.norm.weight"] = {k: v for k, v in one.items() if v is not None}

    return header(change)


def swap(entries: dict[str, Any]) -> None:
    one = entries["model.norm.weight"]
    one["data_offsets"] = one["data_offsets"][::-1]


def overlap(entries: dict[str, Any]) -> None:
    one, other = entries["model.norm.weight"], entries["lm_head.weight"]
    size = one["data_offsets"][1] - one["data_offsets"][0]
    one["data_offsets"] = [other["data_offsets"][0], other["data_offsets"][0] + size]


def length(value: int) -> Change:
    def change(directory: Path) -> None:
        path = directory / "model.safetensors"
        path.write_bytes(struct.pack("<Q", value) + path.read_bytes()[8:])

    return change


TWICE = b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, '
TWICE += b'"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'

SAFETENSORS: dict[str, Change] = {
    "empty": put("model.safetensors", b""),
    "length 0": length(0),
    "length 2^62": length(2**62),
    "length 2^64-1": length(2**64 - 1),
    "no UTF-8": put("model.safetensors", struct.pack("<Q", 2) + b"\xff\xff"),
    "header is a list": header(lambda _entries: []),
    "header is a text": header(lambda _entries: "x"),
    "header is deep": put("model.safetensors", struct.pack("<Q", 10_000) + b"[" * 10_000),
    "a name twice": put("model.safetensors", struct.pack("<Q", len(TWICE)) + TWICE),
    "entry is a list": header(lambda entries: entries | {"model.norm.weight": []}),
    "entry is null": header(lambda entries: entries | {"model.norm.weight": None}),
    "name is no text": header(lambda entries: entries | {"\ud800": entries.pop("lm_head.weight")}),
    "no offsets": entry(data_offsets=None),
    "one offset": entry(data_offsets=[0]),
    "offsets are a text": entry(data_offsets="ab"),
    "offsets are texts": entry(data_offsets=["0", "768"]),
    "offsets are negative": entry(data_offsets=[-768, 0]),
    "offsets are swapped": header(swap),
    "offsets overlap": header(overlap),
    "offsets are past the end": entry(data_offsets=[2**40, 2**40 + 768]),
    "offsets end at 2^62": entry(data_offsets=[0, 2**62]),
    "offsets are bools": entry(data_offsets=[False, True]),
    "offsets are fractions": entry(data_offsets=[0.0, 768.0]),
    "dtype unknown": entry(dtype="F31"),
    "dtype is a list": entry(dtype=["F32"]),
    "no dtype": entry(dtype=None),
    "shape negative": entry(shape=[-192]),
    "shape is a text": entry(shape="192"),
    "shape is another": entry(shape=[191]),
    "shape has many dimensions": entry(shape=[2**62] * 100_000),
    "no shape": entry(shape=None),
    "index no JSON": put("model.safetensors.index.json", "{"),
    "index no object": put("model.safetensors.index.json", "[]"),
    "index deep": put("model.safetensors.index.json", '{"weight_map":' * 5_000),
    "no weight_map": put("model.safetensors.index.json", "{}"),
    "weight_map is empty": put("model.safetensors.index.json", '{"weight_map": {}}'),
    "weight_map is a list": put("model.safetensors.index.json", '{"weight_map": ["x"]}'),
    "weight_map to a number": put("model.safetensors.index.json", '{"weight_map": {"x": 1}}'),
    "weight_map to nowhere": lambda d: index(d, x="nowhere.safetensors"),
    "weight_map to outside": lambda d: index(d, x="../outside/model.safetensors"),
    "weight_map to a folder": lambda d: index(d, x="inside/model.safetensors"),
    "weight_map to an absolute path": lambda d: index(d, x="/dev/zero"),
    "weight_map to a pickle": lambda d: index(d, x="pytorch_model.bin"),
    "a directory": lambda d: ((d / "model.safetensors").unlink(),
                              (d / "model.safetensors").mkdir()),
}  # fmt: skip

DEEP = '{"a":' * 5_000 + "1" + "}" * 5_000

CONFIG: dict[str, Change] = {
    "config missing": lambda d: (d / "config.json").unlink(),
    "config empty": put("config.json", ""),
    "config torn": put("config.json", '{"model_type": "lla'),
    "config no object": put("config.json", "[1]"),
    "config null": put("config.json", "null"),
    "config deep": put("config.json", DEEP),
    "config NaN": put("config.json", '{"rms_norm_eps": NaN}'),
    "config no UTF-8": put("config.json", b'{"model_type": "\xff"}'),
    "config lone surrogate": put("config.json", '{"model_type": "\\ud800"}'),
    "config of digits": put("config.json", '{"a": ' + "9" * 5_000 + "}"),
    "config elsewhere": edit("config.json", configuration_files=["config.4.0.0.json"]),
}

TOKENIZER: dict[str, Change] = {
    "tokenizer missing": lambda d: (d / "tokenizer.json").unlink(),
    "tokenizer empty": put("tokenizer.json", ""),
    "tokenizer deep": put("tokenizer.json", DEEP),
    "tokenizer torn": put("tokenizer.json", '{"version": "1.0", "model": {"vocab": {"a"'),
    "tokenizer no object": put("tokenizer.json", "[]"),
    "tokenizer without a model": put("tokenizer.json", "{}"),
    "tokenizer with a model of 3": put("tokenizer.json", '{"model": 3}'),
    "tokenizer no UTF-8": put("tokenizer.json", b"\xff"),
    "tokenizer config no object": put("tokenizer_config.json", "[]"),
    "tokenizer config a number": put("tokenizer_config.json", "3"),
    "tokenizer config torn": put("tokenizer_config.json", '{"eos_token": '),
    "tokenizer config deep": put("tokenizer_config.json", DEEP),
    "tokenizer config no UTF-8": put("tokenizer_config.json", b"\xff"),
}

TEMPLATES: dict[str, Change] = {
    "template no UTF-8": put("chat_template.jinja", b"\xff\xfe"),
    "template beside no UTF-8": put("additional_chat_templates/x.jinja", b"\xff\xfe"),
    "template a number": edit("tokenizer_config.json", chat_template=3),
    "template a list of numbers": edit("tokenizer_config.json", chat_template=[3]),
    "template without a text": edit("tokenizer_config.json", chat_template=[{"name": "default"}]),
    "template json no object": put("chat_template.json", "[]"),
    "special tokens no object": put("special_tokens_map.json", "[]"),
    "added tokens torn": put("added_tokens.json", "{"),
}


@pytest.mark.parametrize("name", [*SAFETENSORS, *CONFIG, *TOKENIZER, *TEMPLATES])
def test_a_malformed_checkpoint_is_one_line(weights: Path, tmp_path: Path, name: str) -> None:
    """Where it is checked, and where it is pinned; it names the directory."""
    card = pinned(weights)
    (SAFETENSORS | CONFIG | TOKENIZER | TEMPLATES)[name](weights)

    assert str(weights) in refusal(card, weights)
    with pytest.raises(VerifierError) as refused:
        pin_card(str(write_card(tmp_path, digests={})), str(weights), tell=lambda _line: None)
    assert str(weights) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", SAFETENSORS)
def test_malformed_tensors_have_no_digest(weights: Path, name: str) -> None:
    """Nor are they checked where a card pins none."""
    SAFETENSORS[name](weights)

    with pytest.raises(ReferenceMismatch):
        tensors_sha256(weights)
    refusal(Card.model_validate(CARD | {"digests": {}}), weights)


def complaint(action: Callable[[], object]) -> str:
    """What it is refused with; nothing if it is not, and whatever else goes wrong is raised."""
    try:
        action()
    except VerifierError as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("name", [*CONFIG, *TOKENIZER, *TEMPLATES])
def test_a_malformed_tokenizer_is_one_line_when_it_is_loaded(weights: Path, name: str) -> None:
    """Unless the loader has another file to make up for it."""
    (CONFIG | TOKENIZER | TEMPLATES)[name](weights)

    assert "\n" not in complaint(lambda: Tokenizer(weights))


@pytest.mark.parametrize("name", [*SAFETENSORS, *CONFIG])
def test_a_malformed_model_is_one_line_when_it_is_loaded(
    weights: Path, tiny: Path, name: str
) -> None:
    """Unless the loader reads less than it could."""
    (SAFETENSORS | CONFIG)[name](weights)

    def load() -> None:
        engine = load_engine("transformers", weights, Tokenizer(tiny))
        engine.load_variant("int8-channel")

    assert "\n" not in complaint(load)


class Configured:
    """A configuration as transformers hands it out."""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)


@pytest.mark.parametrize(
    "config",
    [
        Configured(),
        Configured(num_hidden_layers=None, hidden_size=8),
        Configured(num_hidden_layers=2, hidden_size="wide"),
        Configured(num_hidden_layers=2, hidden_size=8, quantization_config="fp8"),
        Configured(
            num_hidden_layers=2, hidden_size=8, quantization_config={"weight_block_size": [1]}
        ),
        Configured(
            num_hidden_layers=2, hidden_size=8, quantization_config={"weight_block_size": 128}
        ),
    ],
)
def test_a_configuration_without_a_layout_is_one_line(config: Configured) -> None:
    """An operator's mistake, not a defect."""
    with pytest.raises(ConfigError, match=r"config\.json: num_hidden_layers") as refused:
        read_layout(config)
    assert "\n" not in str(refused.value)


def test_files_are_read_within_bounds(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration of gigabytes is refused before it is held."""
    card = pinned(weights)
    with (weights / "config.json").open("r+b") as file:
        file.truncate(2**40)  # takes no room on the disk

    assert "config.json: larger than 16777216 bytes; refused" in refusal(card, weights)


def test_infinite_limits_are_settings(weights: Path) -> None:
    """Published configurations of state-space models have them."""
    edit("config.json", time_step_limit=[0.0, float("inf")])(weights)

    check_weights(pinned(weights), weights)


def test_templates_by_name_are_told_apart(weights: Path) -> None:
    """A list of named ones in the tokenizer's configuration."""
    (weights / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": STRAY}]
    edit("tokenizer_config.json", chat_template=named)(weights)
    card = pinned(weights)
    check_weights(card, weights)
    edit("tokenizer_config.json", chat_template=[*named, {"name": "rag", "template": STRAY}])(
        weights
    )

    assert "(chat_template rag is no part of what was pinned)" in refusal(card, weights)
