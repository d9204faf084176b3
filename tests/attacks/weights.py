"""Checkpoints that are not what a card pins, that bring code, or that are malformed."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from audits import CARD, UNPINNED, write_run_file
from models import save_model, save_tokenizer

from attacks.lab import FakeHost, Lab, Model, Tally, refused, run, warm


def attack_weights(lab: Lab) -> Iterator[Tally]:
    folder = lab.folder("weights")
    weights = folder / "weights"
    save_model(weights)
    save_tokenizer(weights)
    run_ = _scorable(folder)
    yield _changed(lab, folder, run_)
    yield _code(lab, folder, run_)
    yield from _malformed(lab, folder, run_)


def _scorable(folder: Path) -> Path:
    """A run folder of a host, beside a card that pins the weights beside it."""
    path = write_run_file(folder, "http://127.0.0.1:1/v1", budget_completion_tokens=120)
    card = folder / "tiny.yaml"
    open_card = CARD | {"digests": {}, "layers": 3}
    card.write_text(yaml.safe_dump(open_card | {"digests": UNPINNED}))
    pinned = run("reference", "pin", card, "--weights", folder / "weights", fake=False, seconds=120)
    if pinned.status:
        raise RuntimeError(f"pin: {pinned.last}")
    digests = yaml.safe_load(card.read_text())["digests"]
    beside = folder / "tiny.calibration.json"
    made = json.loads(beside.read_text())
    beside.write_text(json.dumps(made | {"tensors_sha256": digests["tensors_sha256"]}))
    with FakeHost(Model()) as host:
        path.write_text(path.read_text().replace("http://127.0.0.1:1/v1", host.url))
        for step in (("plan", path), ("collect", folder / "run", "--probes", 3, "--trust")):
            ended = run(*step)
            if ended.status:
                raise RuntimeError(f"{step[0]}: {ended.last}")
    import torch
    import transformers  # noqa: F401 - so that no fork need import it

    torch.set_num_threads(1)
    warm(folder / "run")
    ended = run("score", folder / "run", "--trust", fake=False, seconds=120)
    if ended.status:
        raise RuntimeError(f"score of the weights as pinned: {ended.last}")
    return folder / "run"


def _copied(lab: Lab, folder: Path, change: Callable[[Path], None]) -> Path:
    """The whole of it elsewhere, with the weights changed and nothing scored yet."""
    copy = lab.folder("changed")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    for name in ("scores.jsonl", "ledger.json", "report.json", "report.html"):
        (copy / "run" / name).unlink(missing_ok=True)
    path = copy / "run" / "run.yaml"
    path.write_text(path.read_text().replace(str(folder), str(copy)))
    change(copy / "weights")
    return copy


def _json(name: str, **values: Any) -> Callable[[Path], None]:
    def change(weights: Path) -> None:
        path = weights / name
        raw = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(raw | values))

    return change


def _write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(weights: Path) -> None:
        path = weights / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def _tensors(weights: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(weights / "model.safetensors"))


def _second_shard(name: str, *, first: bool) -> Callable[[Path], None]:
    """Other weights where the loader looks, the published ones beside them; or the other way."""

    def change(weights: Path) -> None:
        from safetensors.torch import save_file

        published = _tensors(weights)
        other = {key: value * 1.1 for key, value in published.items()}
        here, beside = (other, published) if first else (published, other)
        save_file(here, weights / "model.safetensors", metadata={"format": "pt"})
        save_file(beside, weights / name, metadata={"format": "pt"})

    return change


def _indexed(weights: Path) -> None:
    """An index that names another shard than the one the digest would see."""
    from safetensors.torch import save_file

    published = _tensors(weights)
    save_file(
        {k: v * 1.1 for k, v in published.items()},
        weights / "a.safetensors",
        metadata={"format": "pt"},
    )
    (weights / "model.safetensors").rename(weights / "zz.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(published, "a.safetensors")}
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))


def _tokenizer(**values: Any) -> Callable[[Path], None]:
    return _json("tokenizer.json", **values)


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }} says, and says again\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHANGES: dict[str, Callable[[Path], None]] = {
    "config.json: rms_norm_eps": _json("config.json", rms_norm_eps=0.5),
    "config.json: rope_theta": _json("config.json", rope_theta=100.0, rope_parameters={"rope_theta": 100.0, "rope_type": "default"}),
    "config.json: rope_scaling": _json("config.json", rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "config.json: one layer of three": _json("config.json", num_hidden_layers=1),
    "config.json: another activation": _json("config.json", hidden_act="relu"),
    "config.json: quantization_config": _json("config.json", quantization_config={"quant_method": "fp8"}),
    "config.json: eos_token_id": _json("config.json", eos_token_id=0),
    "generation_config.json: eos_token_id": _json("generation_config.json", eos_token_id=0),
    "tokenizer_config.json: eos_token": _json("tokenizer_config.json", eos_token="<|endoftext|>"),
    "tokenizer_config.json: add_bos_token": _json("tokenizer_config.json", add_bos_token=True, add_prefix_space=True),
    "tokenizer_config.json: chat_template": _json("tokenizer_config.json", chat_template=TEMPLATE),
    "special_tokens_map.json": _json("special_tokens_map.json", eos_token="<|endoftext|>"),
    "added_tokens.json": _json("added_tokens.json", **{"<|new|>": 270}),
    "tokenizer.json: decoder": _tokenizer(decoder={"type": "Fuse"}),
    "tokenizer.json: post_processor": _tokenizer(post_processor={
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}}),
    "tokenizer.json: normalizer": _tokenizer(normalizer={"type": "Lowercase"}),
    "tokenizer.json: truncation": _tokenizer(truncation={"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}),
    "chat_template.jinja": _write("chat_template.jinja", TEMPLATE),
    "chat_template.json": _write("chat_template.json", json.dumps({"chat_template": TEMPLATE})),
    "additional_chat_templates/default.jinja": _write("additional_chat_templates/default.jinja", TEMPLATE),
    "additional_chat_templates/tool_use.jinja": _write("additional_chat_templates/tool_use.jinja", TEMPLATE),
    "a stray template": _write("other.jinja", TEMPLATE),
    "other weights first, the published last": _second_shard("zz-published.safetensors", first=True),
    "the published first, others last": _second_shard("zz-other.safetensors", first=False),
    "an index to another shard": _indexed,
    "code beside them": _write("modeling_tiny.py", "raise SystemExit"),
    "a pickle beside them": _write("pytorch_model.bin", b"\x80\x04N."),
    "an adapter beside them": _write("adapter_config.json", json.dumps({"base_model_name_or_path": "x", "peft_type": "LORA"})),
}  # fmt: skip

#: What the loader never reads while safetensors are there: it may be refused or left alone.
HARMLESS = {
    "a pickle beside them",
    "a stray template",
    "code beside them",
    "generation_config.json: eos_token_id",
}


def _changed(lab: Lab, folder: Path, run_: Path) -> Tally:
    tally = Tally(attack="a pinned checkpoint changed in one place: refused, or scored as before")
    scored = (run_ / "scores.jsonl").read_text()
    for name in list(CHANGES)[:: lab.size(1, 4)]:

        def attempt(name: str = name) -> str | None:
            copy = _copied(lab, folder, CHANGES[name])
            ended = run("score", copy / "run", "--trust", fake=False, seconds=120)
            if ended.status == 0:
                now = (copy / "run" / "scores.jsonl").read_text()
                same = _numbers(now) == _numbers(scored)
                shutil.rmtree(copy)
                if same and name in HARMLESS:
                    return None
                return f"passes the check, scores {'unchanged' if same else 'changed'}"
            shutil.rmtree(copy)
            return refused(ended)

        tally.try_(name, attempt)
    return tally


def _numbers(text: str) -> list[Any]:
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("at", "elapsed_s")}
        for line in text.splitlines()
    ]


def _code(lab: Lab, folder: Path, run_: Path) -> Tally:
    """Checkpoints whose configuration names classes of their own."""
    tally = Tally(
        attack="checkpoints that bring code: refused in one line, no code runs, nobody is asked"
    )

    def bring(which: str) -> Callable[[Path], None]:
        def change(weights: Path) -> None:
            mark = f"import pathlib; pathlib.Path({str(weights / 'RAN')!r}).write_text('ran')\n"
            (weights / "evil.py").write_text(mark)
            if which in ("tokenizer", "both"):
                _json("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
                      tokenizer_class="Evil")(weights)  # fmt: skip
            if which in ("config", "both"):
                _json("config.json", model_type="evil", architectures=["Evil"],
                      auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})(weights)  # fmt: skip
            if which == "model":
                _json("config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"})(weights)

        return change

    for which in ("tokenizer", "config", "model", "both"):
        for pinned in (True, False):
            for answer in (b"", b"y\n" * 9):

                def attempt(
                    which: str = which, pinned: bool = pinned, answer: bytes = answer
                ) -> str | None:
                    copy = _copied(lab, folder, bring(which))
                    if not pinned:
                        card = copy / "tiny.yaml"
                        content = yaml.safe_load(card.read_text())
                        card.write_text(yaml.safe_dump(content | {"digests": UNPINNED}))
                    ended = run(
                        "score", copy / "run", "--trust", fake=False, seconds=90, stdin=answer
                    )
                    ran = (copy / "weights" / "RAN").exists()
                    shutil.rmtree(copy)
                    if ran:
                        return "its code ran"
                    if "[y/N]" in ended.out + ended.err:
                        return "asked on the terminal whether to run it"
                    if ended.status == 0 and which in ("model", "tokenizer"):
                        return None  # loaded as what transformers itself knows
                    return refused(ended)

                label = f"{which}, card {'pinned' if pinned else 'open'}, {'yes' if answer else 'no answer'}"
                tally.try_(label, attempt)
    return tally


def _header(value: Any, *, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


MALFORMED: dict[str, Callable[[Path], None]] = {
    **{
        f"safetensors: {name}": _write("model.safetensors", raw)
        for name, raw in {
            "empty": b"", "three bytes": b"abc", "a length of 2^63": _header({}, length=2**63 - 1),
            "a header that is a list": _header([1, 2]), "a header that is null": _header(None),
            "a header that is no JSON": _header(b"{"), "not UTF-8": _header(b'{"a":"\xff"}'),
            "an entry that is a number": _header({"a": 5}), "no dtype": _header({"a": {"shape": [1], "data_offsets": [0, 4]}}),
            "no offsets": _header({"a": {"dtype": "F32", "shape": [1]}}),
            "one offset": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}),
            "offsets of text": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}),
            "negative offsets": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
            "offsets turned round": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}),
            "offsets to 2^62": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]}}),
            "offsets that are half": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.5, 4]}}),
            "a shape of text": _header({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}),
            "a deep header": _header(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
            "metadata alone": _header({"__metadata__": {}}), "metadata of numbers": _header({"__metadata__": 5}),
            "a header of 100 MB": _header(b"{" + b" " * 10**8 + b"}"),
        }.items()
    },
    **{
        f"tokenizer.json: {name}": _write("tokenizer.json", raw)
        for name, raw in {
            "empty": "", "a list": "[]", "deep": "[" * 50_000 + "]" * 50_000, "no model": "{}",
            "a model of text": '{"model": "x"}', "a vocabulary of numbers": '{"model": {"vocab": 5, "merges": 5}}',
            "merges of numbers": '{"model": {"vocab": {}, "merges": [1]}}', "no UTF-8": b"\xff\xfe",
            "added tokens of text": '{"model": {"vocab": {}, "merges": []}, "added_tokens": "x"}',
            "a vocabulary of huge ids": '{"model": {"type": "BPE", "vocab": {"a": 1' + "0" * 400 + '}, "merges": []}}',
        }.items()
    },
    **{
        f"{file}: {name}": _write(file, raw)
        for file in ("tokenizer_config.json", "config.json", "special_tokens_map.json", "generation_config.json")
        for name, raw in {
            "empty": "", "a list": "[]", "null": "null", "torn": '{"a": ', "deep": '{"a":' * 3000 + "1" + "}" * 3000,
            "no UTF-8": b"\xff", "numbers for texts": '{"chat_template": 5, "eos_token": 5, "model_type": 5, "architectures": 5}',
        }.items()
    },
    "chat_template.jinja: not UTF-8": _write("chat_template.jinja", b"\xff\xfe{{"),
    "chat_template.jinja: no template": _write("chat_template.jinja", "{% if %}"),
    "the index: a list": _write("model.safetensors.index.json", "[]"),
    "the index: outside": _write("model.safetensors.index.json", json.dumps({"weight_map": {"a": "../../../etc/passwd"}})),
    "the index: no such shard": _write("model.safetensors.index.json", json.dumps({"weight_map": {"a": "none.safetensors"}})),
}  # fmt: skip


def _malformed(lab: Lab, folder: Path, run_: Path) -> Iterator[Tally]:
    for what in ("score", "pin"):
        tally = Tally(attack=f"malformed checkpoints, {what}: refused in one line")
        for name in list(MALFORMED)[:: lab.size(1, 8)]:

            def attempt(name: str = name, what: str = what) -> str | None:
                copy = _copied(lab, folder, MALFORMED[name])
                card = copy / "tiny.yaml"
                content = yaml.safe_load(card.read_text())
                card.write_text(yaml.safe_dump(content | {"digests": UNPINNED}))
                argv: tuple[Any, ...] = ("score", copy / "run", "--trust")
                if what == "pin":
                    argv = ("reference", "pin", card, "--weights", copy / "weights")
                ended = run(*argv, fake=False, seconds=60)
                shutil.rmtree(copy)
                if ended.status == 0 and (
                    "generation_config" in name or "special_tokens" in name or what == "pin"
                ):
                    return None  # not read, or as good as any digest of bytes
                if ended.status == 0:
                    return "taken as it is"
                return refused(ended)

            tally.try_(name, attempt)
        yield tally
