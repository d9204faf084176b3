"""What a directory of weights says of its model, and which other weights a card is not of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from models import SHAPES, save_shape

from verifier.errors import ReferenceMismatch
from verifier.reference.cards import Card, load_card
from verifier.reference.defaults import obstacles_to_calibrating
from verifier.reference.describe import describe, refuse_other_model

Tensor = tuple[str, Sequence[int]]  # dtype as safetensors has it, shape

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I32": 4, "U8": 1}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shapes")
    return {shape: save_shape(folder / shape, shape) for shape in SHAPES}


def write(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """A directory of zeros: a configuration and the tensors of one file."""
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for one in shape:
            size *= one
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    directory.mkdir(exist_ok=True)
    whole = len(raw).to_bytes(8, "little") + raw + bytes(at)
    (directory / "model.safetensors").write_bytes(whole)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def linear(dtype: str = "BF16", *, layers: int = 2) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {"model.embed_tokens.weight": ("BF16", (100, 64))}
    for n in range(layers):
        at = f"model.layers.{n}"
        found[f"{at}.self_attn.q_proj.weight"] = (dtype, (64, 64))
        found[f"{at}.self_attn.k_proj.weight"] = (dtype, (32, 64))
        found[f"{at}.mlp.down_proj.weight"] = (dtype, (64, 128))
    return found


# -- shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shapes_of_a_model_are_those_of_its_configuration(
    shapes: dict[str, Path], shape: str
) -> None:
    """As transformers wrote it; bytes are those of its tensors, to the byte."""
    found = describe(shapes[shape])
    facts = found.architecture

    assert (found.layers, found.precision, facts.bits) == (4, "bfloat16", 16)
    assert (facts.hidden_size, facts.vocabulary, facts.context_length) == (128, 264, 4096)
    assert (facts.attention_heads, facts.kv_heads, facts.head_dim) == (4, 2, 32)
    assert facts.tied_embeddings is (shape == "gemma3")
    assert (facts.experts is not None) is (shape == "mixtral")
    assert facts.intermediate_size == (None if shape == "mixtral" else 256)
    assert found.widths == {128, 256}
    header = int.from_bytes((shapes[shape] / "model.safetensors").read_bytes()[:8], "little")
    size = (shapes[shape] / "model.safetensors").stat().st_size - 8 - header
    assert facts.weight_bytes == found.bytes_at_least == found.bytes_at_most == size
    assert (found.unchecked, found.remarks) == ((), ())


def test_the_experts_of_a_mixture_and_the_window_of_gemma_are_read(
    shapes: dict[str, Path],
) -> None:
    """Their number, how many take part, their width and how they are stored."""
    experts = describe(shapes["mixtral"]).architecture.experts
    window = describe(shapes["gemma3"]).architecture.window

    assert experts is not None
    assert experts.model_dump() == {
        "count": 4, "per_token": 2, "width": 256, "layers": 4, "bits": 16.0, "block": None,
    }  # fmt: skip
    assert window is not None
    assert (window.tokens, window.layers) == (512, 4)


def test_what_a_configuration_leaves_to_defaults_is_read_off_the_tensors(tmp_path: Path) -> None:
    """As the first Gemma 3 has it: no heads and no vocabulary, in a part of its own for text."""
    text = {k: v for k, v in CONFIG.items() if k in ("hidden_size", "num_hidden_layers")}
    tensors = linear() | {"model.layers.0.self_attn.q_norm.weight": ("BF16", (16,))}
    config = {"model_type": "gemma3", "text_config": text | {"sliding_window": 8}}
    found = describe(write(tmp_path, config, tensors))
    facts = found.architecture

    assert (facts.attention_heads, facts.kv_heads, facts.head_dim) == (4, 2, 16)
    assert (facts.vocabulary, facts.tied_embeddings) == (100, True)
    assert found.unchecked == ("architecture.window",)
    assert "sliding window" in found.remarks[0]


def test_drafts_towers_and_a_head_that_is_the_embedding_are_no_part_of_what_scores(
    tmp_path: Path,
) -> None:
    """A card may count them or not."""
    beside: dict[str, Tensor] = {
        "model.layers.2.mlp.down_proj.weight": ("BF16", (64, 128)),  # a draft's
        "model.visual.layers.0.mlp.down_proj.weight": ("BF16", (64, 640)),
        "lm_head.weight": ("BF16", (100, 64)),
    }
    config = CONFIG | {"tie_word_embeddings": True}
    (tmp_path / "a").mkdir()
    plain = describe(write(tmp_path / "a", config, linear()))
    found = describe(write(tmp_path / "b", config, linear() | beside))

    assert found.bytes_at_least == plain.bytes_at_least
    assert found.bytes_at_most == plain.bytes_at_most + 2 * 64 * (128 + 640 + 100)
    assert found.widths == {64, 128}
    assert found.architecture.tied_embeddings


@pytest.mark.parametrize(
    ("said", "layers"),
    [
        ({"sliding_window": None}, None),
        ({"sliding_window": 8}, 2),
        ({"sliding_window": 8, "use_sliding_window": False}, None),
        ({"sliding_window": 8, "max_window_layers": 1}, 1),
        ({"sliding_window": 8, "max_window_layers": 28}, None),
        ({"sliding_window": 8, "sliding_window_pattern": 2}, 1),
        ({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, 1),
        ({"sliding_window": 8, "layer_types": ["full_attention"] * 2}, None),
    ],
)
def test_a_window_is_of_the_layers_that_are_said(
    tmp_path: Path, said: dict[str, Any], layers: int | None
) -> None:
    """As Mistral, Qwen, Gemma and gpt-oss say it."""
    window = describe(write(tmp_path, CONFIG | said, linear())).architecture.window

    assert (window.layers if window else None) == layers


def test_latent_attention_is_read(tmp_path: Path) -> None:
    """The compressed vector, and a head of both its parts."""
    latent = {"kv_lora_rank": 16, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 24}
    facts = describe(write(tmp_path, CONFIG | latent, linear())).architecture

    assert facts.latent_attention is not None
    assert (facts.latent_attention.kv_rank, facts.latent_attention.rope_dim) == (16, 8)
    assert (facts.head_dim, facts.kv_heads) == (32, None)


# -- precision ---------------------------------------------------------------------------------

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
PACKED_TO_8 = {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}


@pytest.mark.parametrize(
    ("quantization", "dtype", "precision", "bits", "unchecked"),
    [
        (None, "BF16", "bfloat16", 16, ()),
        (None, "F32", "float32", 32, ("precision",)),
        (FP8, "F8_E4M3", "fp8 e4m3 in blocks of 128 x 128", 8, ()),
        ({"quant_method": "fp8"}, "F8_E4M3", "fp8 e4m3", 8, ()),
        (None, "F8_E4M3", "fp8 e4m3", 8, ("precision",)),
        (FP8, "BF16", "bfloat16", 16, ("precision",)),
    ],
    ids=["plain", "other than said", "blocks", "tensor", "not said", "said and not so"],
)
def test_the_published_precision_is_what_is_stored(
    tmp_path: Path, quantization: Any, dtype: str, precision: str, bits: int, unchecked: Any
) -> None:
    """Where the configuration says otherwise, the headers are believed and it is not checked."""
    config = CONFIG if quantization is None else CONFIG | {"quantization_config": quantization}
    found = describe(write(tmp_path, config, linear(dtype)))

    assert (found.precision, found.architecture.bits) == (precision, bits)
    assert found.unchecked == unchecked
    assert len(found.remarks) == len(unchecked)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4 in groups of 128 (awq)"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1},
         "int8, one scale per output channel (gptq)"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": PACKED_TO_8}},
         "int4 in groups of 32 (compressed-tensors)"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4 (modelopt)"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "strange"}, "unknown (strange)"),
    ],
    ids=["awq", "gptq", "compressed-tensors", "modelopt", "mxfp4", "unknown"],
)  # fmt: skip
def test_packed_weights_are_called_by_their_scheme(
    tmp_path: Path, quantization: Any, words: str
) -> None:
    """With its groups; one that is not known here is said to be unknown, and no width is."""
    tensors = {
        name.removesuffix(".weight") + ".qweight" if "layers" in name else name: (
            ("I32", (shape[0], shape[1] // 8)) if "layers" in name else (dtype, shape)
        )
        for name, (dtype, shape) in linear().items()
    }  # fmt: skip
    found = describe(write(tmp_path, CONFIG | {"quantization_config": quantization}, tensors))

    assert found.precision == words
    assert found.widths == frozenset()
    assert ("precision" in found.unchecked) is words.startswith("unknown")


def test_packed_experts_stand_before_all_else(tmp_path: Path) -> None:
    """As gpt-oss and Kimi are published; bits are counted with their scales."""
    tensors = linear()
    for n in range(2):
        for part in ("gate_up_proj", "down_proj"):
            rows = 64 if part == "gate_up_proj" else 32
            tensors[f"model.layers.{n}.mlp.experts.{part}_blocks"] = ("U8", (4, rows, 2, 16))
            tensors[f"model.layers.{n}.mlp.experts.{part}_scales"] = ("U8", (4, rows, 2))
    config = CONFIG | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    found = describe(write(tmp_path, config, tensors))

    assert found.precision == "mxfp4 experts; all else in bfloat16"
    assert found.architecture.experts is not None
    assert found.architecture.experts.bits == 4.25
    assert found.architecture.bits == 16


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        (linear(), ()),
        (linear("F8_E4M3") | {
            f"{name.removesuffix('weight')}weight_scale_inv": ("F32", (1, 1)) for name in linear()
        }, ()),
        (linear("F8_E4M3"), ("model.layers.0.self_attn.q_proj.weight is in fp8 without a scale",)),
        (linear("U8"), ("model.layers.0.self_attn.q_proj.weight is packed into integers",)),
        (linear() | {"model.layers.1.mlp.experts.down_proj": ("BF16", (2, 64, 64))},
         ("model.layers.1.mlp.experts.down_proj has a shape that does not tell inputs",)),
    ],
    ids=["plain", "fp8", "fp8 without scales", "packed", "square experts"],
)  # fmt: skip
def test_what_no_engine_rounds_is_told_by_the_headers(
    tmp_path: Path, tensors: Any, why: tuple[str, ...]
) -> None:
    """So that a calibration is refused before it begins."""
    card = load_card("qwen3-8b").model_copy(update={"bank": ()})
    found = describe(write(tmp_path, CONFIG, tensors))

    assert len(found.cannot_round) == len(why)
    for line, expected in zip(found.cannot_round, why, strict=True):
        assert line.startswith(expected)
    told = obstacles_to_calibrating(card, seen=found)
    assert told == tuple(f"weights: {line}" for line in found.cannot_round)


def test_packed_weights_that_transformers_reads_are_rounded_by_it_alone(tmp_path: Path) -> None:
    """Those of compressed-tensors: a card of stacks of transformers can be calibrated."""
    tensors = {n: t for n, t in linear().items() if not n.endswith("q_proj.weight")}
    for n in range(2):
        stem = f"model.layers.{n}.self_attn.q_proj"
        tensors |= {
            f"{stem}.weight_packed": ("I32", (64, 8)),
            f"{stem}.weight_scale": ("BF16", (64, 2)),
        }
    said = {"quant_method": "compressed-tensors", "config_groups": {"group_0": PACKED_TO_8}}
    found = describe(write(tmp_path, CONFIG | {"quantization_config": said}, tensors))
    words = {"bank": (), "precision": found.precision}
    card = load_card("qwen3-8b").model_copy(update=words)
    large = load_card("qwen3-235b-a22b").model_copy(update=words)
    by_vllm = card.model_copy(update={"calibration_stacks": ("vllm-bfloat16-batch32",)})

    assert found.cannot_round == ()
    assert obstacles_to_calibrating(card, seen=found) == ()
    (line,) = obstacles_to_calibrating(by_vllm, seen=found)
    assert line.startswith("weights: model.layers.0.self_attn.q_proj.weight_packed is packed")
    assert "transformers alone rounds these" in line
    assert "no engine here rounds packed weights" in obstacles_to_calibrating(large, seen=found)[0]


def test_a_card_of_packed_weights_is_past_calibrating_where_nothing_reads_them() -> None:
    """By its words: small ones of compressed-tensors are not, of another method they are."""
    words = "int4 in groups of 32 (compressed-tensors)"
    small = load_card("qwen3-8b").model_copy(update={"bank": (), "precision": words})

    assert obstacles_to_calibrating(small) == ()
    for card in (small.model_copy(update={"precision": "int4 in groups of 32 (awq)"}),
                 load_card("kimi-k2.6")):  # fmt: skip
        assert any("no engine here rounds packed" in o for o in obstacles_to_calibrating(card))


# -- what is no one model ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "tensors", "complaint"),
    [
        (CONFIG | {"num_hidden_layers": 36}, linear(), "36 layers, the tensors have none"),
        (CONFIG | {"num_hidden_layers": 10**15}, linear(), "the tensors have none of layer 2"),
        (CONFIG | {"hidden_size": 4096}, linear(), "hidden_size 4096, the embedding 64"),
        (CONFIG | {"vocab_size": 7}, linear(), "vocab_size 7, the embedding 100"),
        ({"model_type": "llama"}, linear(), "says no num_hidden_layers"),
        (CONFIG, {"transformer.h.0.dense.weight": ("BF16", (4, 4))}, "none of its tensors has the"),
        (CONFIG, {"m.layers.0.dense.weight": ("BF16", (4, 4))}, "'m.layers.0.dense.weight'"),
    ],
    ids=["layers", "endless", "width", "vocabulary", "no layers", "other layers", "other names"],
)  # fmt: skip
def test_a_configuration_beside_other_weights_is_refused(
    tmp_path: Path, config: Any, tensors: Any, complaint: str
) -> None:
    """In one line."""
    with pytest.raises(ReferenceMismatch, match=complaint) as refused:
        describe(write(tmp_path, config, tensors))
    assert "\n" not in str(refused.value)


def card_of(directory: Path, **changes: Any) -> Card:
    """A card of what lies in a directory, but for changes."""
    found = describe(directory)
    raw: dict[str, Any] = {
        "name": "mine", "model": "someone/mine", "publisher": "someone",
        "licence": {"name": "none", "hosting": "allowed"}, "precision": found.precision,
        "layers": found.layers, "source": {"kind": "directory", "path": str(directory)},
        "digests": {}, "bank": [], "calibration_stacks": [], "held_out_stacks": [],
        "architecture": found.architecture.model_dump(),
    }  # fmt: skip
    raw["architecture"] |= changes.pop("architecture", {})
    return Card.model_validate(raw | changes)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_card_is_of_its_own_weights_and_of_no_other_shape(
    shapes: dict[str, Path], shape: str
) -> None:
    """Each passes its own; no two architectures are taken for each other."""
    card = card_of(shapes[shape])

    assert refuse_other_model(card, shapes[shape]).layers == 4
    for other in set(SHAPES) - {shape}:
        with pytest.raises(ReferenceMismatch, match="these are weights of a 4-layer"):
            refuse_other_model(card, shapes[other])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layers": 6}, "layers 4, not 6"),
        ({"architecture": {"hidden_size": 256}}, "hidden_size 128, not 256"),
        ({"architecture": {"vocabulary": 265}}, "vocabulary 264, not 265"),
        ({"architecture": {"kv_heads": 4}}, "kv_heads 2, not 4"),
        ({"architecture": {"kind": "MistralForCausalLM"}}, "architecture LlamaForCausalLM, not Mi"),
        ({"architecture": {"weight_bytes": 10**10}}, r"1\.3 MB of weights, not 10\.0 GB"),
        ({"architecture": {"experts": {"count": 8, "per_token": 2, "width": 256, "layers": 4,
                                       "bits": 16}}}, "experts' count none, not 8"),
    ],
    ids=["layers", "width", "vocabulary", "heads", "kind", "bytes", "experts"],
)  # fmt: skip
def test_another_model_is_refused_by_what_differs(
    shapes: dict[str, Path], changes: Any, complaint: str
) -> None:
    """In one line that names both, before a tensor is read."""
    with pytest.raises(ReferenceMismatch, match=complaint) as refused:
        refuse_other_model(card_of(shapes["llama"], **changes), shapes["llama"])
    assert "\n" not in str(refused.value)


def test_what_a_card_does_not_know_is_not_compared(shapes: dict[str, Path]) -> None:
    """One without facts takes any weights of as many layers."""
    card = card_of(shapes["qwen3"]).model_copy(
        update={"architecture": load_card("mistral-small-3.2-24b-instruct-2506").architecture}
    )

    refuse_other_model(card, shapes["llama"])
