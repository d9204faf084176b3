"""Models of the laboratory as others publish theirs: in fp8 blocks, and in packed 4-bit integers.

The published numbers are then the quantized ones, and no reference is an up-cast of them. Each is
made in seconds from a checkpoint in plain numbers, and saved as an ordinary checkpoint beside the
tokenizer of its parent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from verifier.files.run_folder import write_json
from verifier.reference.roundings import blocks_of
from verifier.reference.snapshot import CONFIG, WHOLE, find_shards, read_object
from verifier.reference.variants import is_linear

#: Rows and columns that share a scale, as DeepSeek and MiniMax publish.
FP8_BLOCK: Final = 128

#: Columns that share a scale, as Kimi publishes.
INT4_GROUP: Final = 32


def restate_in_fp8(weights: Path, out: Path, *, block: int = FP8_BLOCK) -> None:
    """Linear layers in e4m3 with one float32 scale per block x block, the last ones smaller.

    The layout of DeepSeek-V3: `weight` and `weight_scale_inv`, weight = fp8 * scale; activations
    are left to be scaled as they come.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(weights):
        if not is_linear(name):
            tensors[name] = tensor
            continue
        blocks = blocks_of(tensor.float().abs(), rows=block, columns=block)
        scale = blocks.amax(dim=(1, 3)).clamp_min(1e-12)
        scale = scale / torch.finfo(torch.float8_e4m3fn).max
        spread = scale.repeat_interleave(block, 0)[: tensor.shape[0]]
        spread = spread.repeat_interleave(block, 1)[:, : tensor.shape[1]]
        tensors[name] = (tensor.float() / spread).to(torch.float8_e4m3fn)
        tensors[name.removesuffix(".weight") + ".weight_scale_inv"] = scale
    _save(tensors, weights, out, {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
    })  # fmt: skip


def restate_in_int4(weights: Path, out: Path, *, group: int = INT4_GROUP) -> None:
    """Linear layers in packed symmetric 4-bit integers, one bfloat16 scale per group of columns.

    compressed-tensors' own layout and arithmetic ("pack-quantized").
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme: dict[str, Any] = {
        "targets": ["Linear"],
        "weights": {
            "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
            "group_size": group,
        },
    }  # fmt: skip
    packer = BaseCompressor.get_value_from_registry("pack-quantized")
    read = QuantizationScheme.model_validate(scheme)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(weights):
        if not is_linear(name):
            tensors[name] = tensor
            continue
        rows = tensor.float().reshape(len(tensor), -1, group)
        scale = (rows.abs().amax(dim=2).clamp_min(1e-12) / 7.5).to(torch.bfloat16)
        packed = packer.compress({"weight": tensor.float(), "weight_scale": scale.float()}, read)
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.weight_packed"] = packed["weight_packed"]
        tensors[f"{stem}.weight_shape"] = packed["weight_shape"]
        tensors[f"{stem}.weight_scale"] = scale
    _save(tensors, weights, out, {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "config_groups": {"group_0": scheme},
        "ignore": ["lm_head", "re:.*gate$"],
    })  # fmt: skip


def _tensors(weights: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for shard in find_shards(weights):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                yield name, file.get_tensor(name)


def _save(
    tensors: Mapping[str, torch.Tensor], weights: Path, out: Path, quantization: Mapping[str, Any]
) -> None:
    """One file of tensors, the configuration with its quantization, and all else that lay there."""
    out.mkdir(parents=True, exist_ok=True)
    for path in weights.iterdir():
        tensor_file = path.name.endswith((".safetensors", ".safetensors.index.json"))
        if path.is_file() and not tensor_file:
            shutil.copy(path, out / path.name)
    save_file({n: t.contiguous() for n, t in tensors.items()}, out / WHOLE, {"format": "pt"})
    config = read_object(weights / CONFIG) | {"quantization_config": dict(quantization)}
    write_json(out / CONFIG, json.loads(json.dumps(config)))
