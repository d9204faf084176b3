"""A card from the weights themselves: four architectures, and all that no card is made of."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from families import FAMILIES, save_family
from models import EOS_ID, SHAPES, save_shape
from source import ROOT

from verifier import shipped
from verifier.errors import ConfigError, ReferenceMismatch
from verifier.evidence.calibration import Calibration
from verifier.lab.calibrate import Sizes, calibrate, plan_items
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host
from verifier.lab.testbed.server import running
from verifier.records import REFERENCE
from verifier.reference import markup
from verifier.reference.add import Added, add_card, where_it_is
from verifier.reference.calibrations import describe_calibrated, obstacles
from verifier.reference.cards import find_card, list_cards, load_card
from verifier.reference.defaults import default_bank, default_stacks, published_of
from verifier.reference.digests import digests_of
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.markup import find_thinking, hints_at_thinking, suggest_parsers
from verifier.reference.memory import missing_facts
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.weights import check_weights

#: A calibration of less than a minute.
SMALL = Sizes(calibration=32, held_out=12, variant=6, layer=2, max_tokens=16)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shapes")
    # a random head that is the embedding repeats what it reads, whatever the weights between
    apart = {"tie_word_embeddings": False}
    return {shape: save_shape(folder / f"tiny-{shape}", shape, **apart) for shape in SHAPES}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own cards, which is not there yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(shipped, "_OWN", [tmp_path / "data" / "verifier" / "cards"])
    return tmp_path / "data" / "verifier" / "cards"


@pytest.fixture
def weights(shapes: dict[str, Path], tmp_path: Path) -> Path:
    """A directory of a test's own, to spoil."""
    return Path(shutil.copytree(shapes["llama"], tmp_path / "My Model"))


def add(what: object, **options: Any) -> Added:
    return add_card(str(what), tell=lambda _line: None, **options)


# -- from weights on disk to a card that every command takes -----------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_one_command_makes_a_card_that_the_others_take(
    shapes: dict[str, Path], own: Path, tmp_path: Path, shape: str
) -> None:
    """By its name: shown, listed, pinned, planned with; no file is edited by hand."""
    directory = shapes[shape]
    ended = call("reference", "add", directory)
    name = f"tiny-{shape}"

    assert (ended.status, ended.out.splitlines()[0]) == (0, f"card: {own / name}.yaml")
    assert ended.out.splitlines()[-1] == f"next: verifier calibrate {name}"
    card = load_card(name)
    assert card.digests == digests_of(directory)
    check_weights(card, directory)
    assert missing_facts(card) == ()  # so that memory can be planned
    assert card.bank == default_bank(published_of(card))
    assert (card.calibration_stacks, card.held_out_stacks) == default_stacks(published_of(card))
    assert len(plan_items(card, seed=1, sizes=Sizes())) == 4 + len(card.bank) + 3 - (
        shape == "gemma3"  # no float16
    )
    assert obstacles(name) == ()
    assert describe_calibrated(name).endswith(f"run `verifier calibrate {name}`")
    assert call("reference", "show", name).status == 0
    assert name in call("reference", "list").out
    pinned = call("reference", "pin", name, "--weights", directory)
    assert (pinned.status, pinned.out) == (
        0, "nothing to fill: all that this snapshot shows is pinned, and agrees\n"
    )  # fmt: skip
    planned = call(
        "plan", "--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--reference", name,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert planned.status == 0, planned.err


def test_what_a_card_says_was_read_and_the_rest_is_unchecked(
    shapes: dict[str, Path], own: Path
) -> None:
    """Sampling of its defaults, tools of its template; nobody said whose the model is."""
    made = add(shapes["llama"])

    assert made.path == own / "tiny-llama.yaml"
    assert made.card.sampling == {"temperature": 0.6, "top_p": 0.9}
    assert (made.card.takes_tools, made.card.template_source) == (False, "repository")
    assert made.card.architecture.kind == "LlamaForCausalLM"
    assert made.card.source.model_dump()["path"] == shapes["llama"].resolve()
    assert made.card.licence.hosting == "unchecked"
    assert made.card.unchecked == ("licence", "model", "parsers", "publisher")
    assert (made.remarks, made.obstacles) == ((), ())


def test_a_licence_and_a_publisher_are_taken_where_they_are_known(weights: Path, own: Path) -> None:
    """The text that travels with the weights; the name that is given."""
    (weights / "LICENSE").write_text((ROOT / "LICENSE").read_text())
    (weights / "generation_config.json").unlink()
    card = add(weights, model="Somebody/Tiny").card

    assert (card.name, card.model, card.publisher) == ("my-model", "Somebody/Tiny", "Somebody")
    assert (card.licence.name, card.licence.hosting) == ("Apache-2.0", "allowed")
    assert card.unchecked == ("parsers", "sampling")
    assert find_card("somebody/tiny") == own / "my-model.yaml"


def test_digests_can_be_left_to_pin(weights: Path, own: Path) -> None:
    """Then the card pins nothing, and pin fills it."""
    add(weights, name="tiny", digests=False)
    assert set(load_card("tiny").digests.by_name().values()) == {None}
    ended = call("reference", "pin", "tiny", "--weights", weights)

    assert ended.status == 0
    assert load_card("tiny").digests == digests_of(weights)


def test_a_card_may_lie_anywhere(weights: Path, own: Path, tmp_path: Path) -> None:
    """It is named by its path then."""
    made = add(weights, out=tmp_path / "cards" / "mine.yaml")

    assert made.path == tmp_path / "cards" / "mine.yaml"
    assert where_it_is(made) == str(made.path)
    assert load_card(str(made.path)).digests == digests_of(weights)
    assert not own.exists()


def test_without_a_folder_of_ones_own_only_shipped_cards_are_listed(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a library the package looks nowhere else, and writes only where it is told."""
    monkeypatch.setattr(shipped, "_OWN", [])

    assert "smollm2-135m-instruct" in list_cards()
    with pytest.raises(ConfigError, match="give --file FILE"):
        add(weights)


def test_code_beside_the_weights_is_told_and_left(weights: Path, own: Path) -> None:
    """A pickle beside safetensors, and code that a known architecture does not need."""
    (weights / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "m.M"}}))

    assert add(weights).remarks == (
        "pytorch_model.bin is a pickle, which is code; it is never read",
        "config.json names code of the model's own (auto_map), which is never run",
    )


# -- what no card is made of -------------------------------------------------------------------


def _lose(*names: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return spoil


def _instead(name: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        (directory / name).write_bytes(b"\x80\x04.")

    return spoil


def _configure(**changes: Any) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def _shard(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def _words_only(directory: Path) -> None:
    path = directory / "tokenizer.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"decoder": None, "pre_tokenizer": {"type": "Whitespace"}}))


CODE = {"model_type": "strange", "architectures": ["StrangeLM"], "auto_map": {"AutoModel": "x.Y"}}

BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no template": (_lose("chat_template.jinja"), "has no chat template; put the publisher's"),
    "no configuration": (_lose("config.json"), "no config.json, so its architecture is not known"),
    "no tokenizer": (_lose("tokenizer.json", "tokenizer_config.json"), "no tokenizer could be"),
    "no weights": (_lose("model.safetensors"), "no safetensors files"),
    "pickle": (_instead("pytorch_model.bin"), "holds pickles only, which run code"),
    "gguf": (_instead("tiny.Q4_K_M.gguf"), "holds GGUF files only, which are builds"),
    "remote code": (_configure(**CODE), "'StrangeLM' needs code of its own, which comes with it"),
    "unknown": (
        _configure(model_type="strange", architectures=["StrangeLM"]),
        r"the architecture 'StrangeLM' \(model_type 'strange'\) is no language model",
    ),
    "no language model": (
        _configure(model_type="t5", architectures=["T5Model"]), "'T5Model' .* is no language model"
    ),
    "a shard missing": (_shard, "names 'model-00002-of-00002.safetensors', which is not there"),
    "other layers": (_configure(num_hidden_layers=36), "weights are of two models: it says 36 la"),
    "other shapes": (_configure(hidden_size=4096), "it says hidden_size 4096, the embedding 128"),
    "no byte fallback": (_words_only, "has no pieces for single bytes, so it loses text"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_no_card_can_be_made_of_is_one_line(weights: Path, own: Path, case: str) -> None:
    """With the status of a usage error, and nothing written."""
    spoil, complaint = BAD[case]
    spoil(weights)
    ended = call("reference", "add", weights)

    assert ended.status == 2
    assert re.search(complaint, ended.complaint), ended.complaint
    assert not own.exists()


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("nowhere", "'nowhere' is neither a directory nor on the hub; give a directory"),
        ("a b/c", "neither a directory nor on the hub"),
        ("", "neither a directory nor on the hub"),
        ("file.gguf", "'file.gguf' is a file; give a directory of safetensors"),
    ],
)
def test_what_is_no_directory_is_refused(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, complaint: str
) -> None:
    """With the forms that it takes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.gguf").write_bytes(b"GGUF")

    with pytest.raises(ConfigError, match=complaint) as refused:
        add(what)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "My Model"}, "--name: 'My Model' is no name of a card"),
        ({"name": "qwen3-8b"}, "a card 'qwen3-8b' ships with this package: pin that one"),
        ({"name": "there"}, "there.yaml: exists; remove it, or give another"),
        ({"out": Path("card.json")}, "--file: card.json: a card is a file that ends in .yaml"),
    ],
    ids=["name", "shipped", "exists", "no yaml"],
)
def test_no_card_is_written_over_or_hidden(
    weights: Path, own: Path, options: Any, complaint: str
) -> None:
    """The one that is there keeps every byte."""
    own.mkdir(parents=True)
    (own / "there.yaml").write_text("mine")

    with pytest.raises(ConfigError, match=complaint):
        add(weights, **options)
    assert [path.name for path in own.iterdir()] == ["there.yaml"]
    assert (own / "there.yaml").read_text() == "mine"


def test_what_fails_at_the_end_leaves_nothing(
    weights: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a disk that cannot be read, in the middle of the digests."""

    def fail(_directory: Path) -> None:
        raise ReferenceMismatch("changes while it is read")

    monkeypatch.setattr("verifier.reference.add.digests_of", fail)
    with pytest.raises(ReferenceMismatch):
        add(weights)
    assert not own.exists()


# -- the hub -----------------------------------------------------------------------------------


class Hub:
    """A repository of the hub, of which files come as they are asked for."""

    def __init__(self, published: Path, cache: Path) -> None:
        self.published = published
        self.snapshot = cache / "models--someone--tiny" / "snapshots" / COMMIT
        self.asked: list[tuple[str, str | None, bool]] = []

    def download(
        self, repo: str, *, revision: str | None, allow_patterns: list[str] | None, **_: object
    ) -> str:
        self.asked.append((repo, revision, allow_patterns is None))
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns or ["*"]:
            for path in self.published.glob(pattern):
                shutil.copy(path, self.snapshot)
        return str(self.snapshot)


@pytest.fixture
def hub(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(weights, tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", found.download)
    return found


def test_a_repository_of_the_hub_is_added_at_its_commit(hub: Hub, own: Path) -> None:
    """Its small files come first, then all of that very commit."""
    made = add("someone/Tiny-1.0@main")

    assert hub.asked == [("someone/Tiny-1.0", "main", False), ("someone/Tiny-1.0", COMMIT, True)]
    assert made.path == own / "tiny-1.0.yaml"
    assert made.card.source.model_dump() == {
        "kind": "hub", "repo": "someone/Tiny-1.0", "revision": COMMIT,
    }  # fmt: skip
    assert (made.card.model, made.card.publisher) == ("someone/Tiny-1.0", "someone")
    assert made.card.digests == digests_of(hub.published)


@pytest.mark.parametrize("case", ["no template", "remote code", "unknown", "no byte fallback"])
def test_what_cannot_be_added_is_refused_before_the_weights_are_fetched(
    hub: Hub, own: Path, case: str
) -> None:
    """The small files show it."""
    BAD[case][0](hub.published)

    with pytest.raises(ReferenceMismatch, match=BAD[case][1]):
        add("someone/tiny")
    assert hub.asked == [("someone/tiny", None, False)]
    assert not own.exists()


def test_a_gated_repository_says_what_to_do(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept its licence and log in."""
    import httpx
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_what: object, **_how: object) -> None:
        response = httpx.Response(403, request=httpx.Request("GET", "https://hub.example"))
        raise GatedRepoError("gated", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ConfigError, match="asks to accept the licence first") as refused:
        add("someone/tiny")
    assert "\n" not in str(refused.value)


# -- thoughts and tools ------------------------------------------------------------------------


def tokenizer_of(
    directory: Path, *, family: str = "chatml", template: str | None = None
) -> Tokenizer:
    save_family(directory, next(f for f in FAMILIES if f.name == family))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return Tokenizer(directory)


@pytest.mark.parametrize(
    ("family", "switch_off"),
    [("chatml", {"enable_thinking": False}), ("minimax-m2", {}), ("deepseek", {})],
)
def test_the_tags_of_thoughts_and_what_turns_them_off_are_the_templates(
    tmp_path: Path, family: str, switch_off: dict[str, bool]
) -> None:
    """Qwen's setting leaves an empty thought; MiniMax always thinks; DeepSeek thinks when asked."""
    found = find_thinking(tokenizer_of(tmp_path, family=family))

    assert found is not None
    assert (found.open, found.close) == ("<think>", "</think>")
    assert found.switch_off == switch_off


THINKS = "{{ messages[0].content }}{% if thinking is not defined or thinking %}<think>{% endif %}"
NAMES_IT = "{# <think> </think> #}{{ messages[0].content }}{{ enable_thinking }}"


@pytest.mark.parametrize(
    ("template", "switch_off"),
    [
        (THINKS + "{# </think> #}", {"thinking": False}),
        (NAMES_IT, {}),
        ("{# <think> </think> #}{{ raise_exception('no') }}", {}),
    ],
    ids=["opens no more", "reads it for something else", "refuses"],
)
def test_a_setting_is_taken_only_where_rendering_shows_it(
    tmp_path: Path, template: str, switch_off: dict[str, bool]
) -> None:
    """A name alone proves nothing."""
    found = find_thinking(tokenizer_of(tmp_path, template=template))

    assert found is not None
    assert found.switch_off == switch_off


def test_tokens_alone_make_no_thinking_model(weights: Path, own: Path, tmp_path: Path) -> None:
    """Models that do not think share their tokenizer with some that do: it is left unchecked."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(weights / "tokenizer.json"))
    backend.add_tokens(["<think>", "</think>"])
    backend.save(str(weights / "tokenizer.json"))
    made = add(weights)

    assert hints_at_thinking(Tokenizer(weights)) == "<think> and </think>"
    assert made.card.thinking is None
    assert "thinking" in made.card.unchecked
    assert made.remarks == (
        "the tokenizer has <think> and </think>, and the template does not write both",
    )


@pytest.mark.parametrize(
    ("template", "reasoning", "tool"),
    [
        ("<|im_start|> <think> </think> <tool_call>", "qwen3", "hermes"),
        ("<|im_start|> <tool_call> <function=", None, "qwen3_coder"),
        ("<think> </think> <minimax:tool_call>", "minimax_m2", "minimax_m2"),
        ("[TOOL_CALLS] [THINK] [/THINK]", "mistral", "mistral"),
        ("{{ messages }}", None, None),
    ],
    ids=["qwen3", "coder", "minimax", "mistral", "none"],
)
def test_parsers_are_suggested_by_marks_in_the_template(
    monkeypatch: pytest.MonkeyPatch, template: str, reasoning: str | None, tool: str | None
) -> None:
    """Of those that are installed only; without vLLM none is."""
    names = frozenset({"qwen3", "hermes", "qwen3_coder", "minimax_m2", "mistral"})
    monkeypatch.setattr(markup, "parsers", lambda _what: names)
    found = suggest_parsers(template)
    monkeypatch.setattr(markup, "parsers", lambda _what: None)
    without = suggest_parsers(template)

    assert (found.reasoning, found.tool) == (reasoning, tool)
    assert (without.reasoning, without.tool) == (None, None)


# -- calibrating -------------------------------------------------------------------------------


def test_other_weights_are_refused_by_name_before_they_are_read(
    shapes: dict[str, Path], own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By pin and by calibrate."""
    add(shapes["llama"])
    before = (own / "tiny-llama.yaml").read_bytes()
    for path in ("verifier.reference.digests.tensors_sha256", "verifier.reference.pin.digests_of"):
        monkeypatch.delattr(path)
    for command in (("reference", "pin"), ("calibrate",)):
        ended = call(*command, "tiny-llama", "--weights", shapes["mixtral"])
        assert ended.status == 2
        assert "these are weights of a 4-layer MixtralForCausalLM" in ended.complaint
        assert "the card 'tiny-llama' is of tiny-llama with 4 layers" in ended.complaint
    assert (own / "tiny-llama.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("drop-2\n", "drop-2\n- int4-sym-g96\n"), "int4-sym-g96: its groups of 96 do not divide"),
        (("layers: 4", "layers: 6"), "layers 4, not 6"),
        (
            ("precision: bfloat16", "precision: int4 in groups of 32"),
            "published in int4: no engine",
        ),
    ],
    ids=["group", "layers", "packed"],
)
def test_what_calibrate_cannot_do_is_refused_before_anything_is_loaded(
    shapes: dict[str, Path], own: Path, monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, str], complaint: str,
) -> None:  # fmt: skip
    """Not after minutes, with a defect."""
    path = add(shapes["qwen3"]).path
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    monkeypatch.delattr("verifier.lab.calibrate.load_host")
    ended = call("calibrate", "tiny-qwen3", "--weights", shapes["qwen3"])

    assert ended.status == 2
    assert complaint in ended.complaint


def test_weights_that_are_nowhere_are_refused(shapes: dict[str, Path], own: Path) -> None:
    """With the option that names them."""
    add(shapes["qwen3"])
    ended = call("calibrate", "tiny-qwen3", "--weights", "nowhere")

    assert ended.status == 2
    assert ended.complaint.startswith("--weights: 'nowhere' is neither a directory nor")


def test_a_mixture_that_was_just_added_is_calibrated(
    shapes: dict[str, Path], own: Path, tmp_path: Path
) -> None:
    """Experts that are fused on loading included: honest serving below a build of 4 bits."""
    card = add(shapes["mixtral"]).card.model_copy(
        update={"bank": ("int4-sym-g64", "drop-1"), "held_out_stacks": ("bfloat16-batch1",)}
    )
    made: Calibration = calibrate(
        card, shapes["mixtral"], work=tmp_path / "work", seed=1, versions={},
        load_reference=lambda: TransformersEngine(shapes["mixtral"], eos_ids=(EOS_ID,)),
        sizes=Sizes(calibration=6, held_out=4, variant=4, layer=2, max_tokens=12),
        tell=lambda _line: None,
    )  # fmt: skip

    scales = {s.name: s.logprob.estimate for s in made.stacks if s.logprob is not None}
    assert made.tensors_sha256 == card.digests.tensors_sha256
    assert scales["int4-sym-g64"] > 2 * scales["bfloat16-batch32"]


OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}{# </think> #}"
)


def test_a_model_whose_prompt_opens_a_thought_is_calibrated(
    weights: Path, own: Path, tmp_path: Path
) -> None:
    """Its hosts show the thought apart, however far it came, and it is read as what was written."""
    (weights / "chat_template.jinja").write_text(OPENS)
    card = add(weights).card
    made = calibrate(
        card.model_copy(update={"bank": ("int4-sym-g64",), "held_out_stacks": ()}), weights,
        work=tmp_path / "work", seed=1, versions={},
        load_reference=lambda: TransformersEngine(weights, eos_ids=(EOS_ID,)),
        sizes=Sizes(calibration=6, held_out=4, variant=4, layer=2, max_tokens=12),
        tell=lambda _line: None,
    )  # fmt: skip

    assert card.thinking is not None
    assert [(s.name, s.replies) for s in made.stacks[:3]] == [
        ("float32-batch32", 6), ("bfloat16-batch32", 6), ("int4-sym-g64", 4),
    ]  # fmt: skip


# -- from weights on disk to a verdict ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_three_commands_lead_from_weights_to_a_verdict(
    shapes: dict[str, Path], own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    """Added, calibrated, audited: an honest host is consistent, and one in 4 bits is named."""
    monkeypatch.setattr("verifier.lab.calibrate.Sizes", lambda: SMALL)
    directory = shapes[shape]
    added = call("reference", "add", directory)
    calibrated = call(
        "calibrate", f"tiny-{shape}", "--engine", "transformers", "--out", tmp_path / "work"
    )
    assert (added.status, calibrated.status) == (0, 0), calibrated.err
    tokenizer = Tokenizer(directory)
    engine = TransformersEngine(directory, eos_ids=(EOS_ID,), decode=tokenizer.decode)
    ended = {}
    for served in (REFERENCE, "int4-sym-g64"):
        engine.load_variant(served)
        with running(create_app(Host(engine=engine, tokenizer=tokenizer, model="m"))) as url:
            ended[served] = call(
                "audit", "--base-url", url, "--model", "m", "--reference", f"tiny-{shape}",
                "--engine", "transformers", "--out", tmp_path / f"run-{served}", "--json",
            )  # fmt: skip
    honest, rounded = (json.loads(ended[name].out) for name in ended)

    assert (ended[REFERENCE].status, honest["decision"]) == (0, "consistent")
    assert (ended["int4-sym-g64"].status, rounded["decision"]) == (1, "inconsistent")
    named = [f["name"] for f in rounded["findings"] if f["decision"] == "detected"]
    assert "int4-sym-g64" in named
