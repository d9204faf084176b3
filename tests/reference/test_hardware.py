"""Fitting a reference to GPUs: what is refused, with how much is missing and what to change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from verifier.config import Hardware, ReferenceSection, load_run_file
from verifier.errors import ConfigError
from verifier.reference.cards import load_card
from verifier.reference.hardware import Memory, check_fit, plan_memory, uses_gpus
from verifier.reference.memory import missing_facts
from verifier.shipped import shipped

CONFIGS = sorted(
    path for path in shipped("configs").glob("*.yaml")
    if path.name not in ("example.yaml", "targets.yaml", "hosts.yaml", "policies.yaml")
)  # fmt: skip


def section(card: str = "minimax-m2.7", **changes: Any) -> ReferenceSection:
    values = {"card": card, "engine": "vllm", "dtype": "bfloat16"} | changes
    return ReferenceSection.model_validate(values)


def plan(card: str = "minimax-m2.7", **changes: Any) -> Memory:
    return plan_memory(load_card(card), section(card, **changes), max_tokens=48)


def refuse(memory: Memory, **hardware: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        check_fit(memory, Hardware(**hardware))
    message = str(refused.value)
    assert message.startswith("reference.hardware: ")
    assert "\n" not in message
    return message


# -- the run files that ship -------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_run_file_for_gpus_fits_the_hardware_that_it_names(path: Path) -> None:
    """It loads, its card has every fact, and it says that it was not run."""
    config = load_run_file(path)
    card = load_card(config.reference.card)
    hardware = config.reference.hardware

    assert missing_facts(card) == ()
    assert hardware is not None
    memory = plan_memory(card, config.reference, max_tokens=config.audit.max_tokens)
    check_fit(memory, hardware)
    assert "not run on a GPU" in path.read_text().replace("\n# ", " ")


def test_there_are_run_files_from_one_gpu_to_several_machines() -> None:
    """One, four and eight GPUs of a machine, and more machines through Ray."""
    shapes = {}
    for path in CONFIGS:
        reference = load_run_file(path).reference
        assert reference.hardware is not None
        backend = reference.engine_args.get("distributed_executor_backend")
        shapes[reference.hardware.gpus, reference.hardware.nodes] = backend

    assert shapes == {(1, 1): None, (4, 1): None, (8, 1): None, (8, 2): "ray"}


# -- when memory is planned --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"engine": "vllm"}, True),
        ({"engine": "auto"}, False),
        ({"engine": "auto", "engine_args": {"tensor_parallel_size": 2}}, True),
        ({"engine": "auto", "hardware": {"gpus": 1, "memory_gib": 80}}, True),
        ({"engine": "transformers", "engine_args": {"tensor_parallel_size": 2}}, False),
        ({"engine": "remote", "hardware": {"gpus": 1, "memory_gib": 80}}, False),
    ],
    ids=str,
)
def test_memory_is_planned_where_vllm_is_meant(changes: dict[str, Any], expected: bool) -> None:
    """By name, or by what only vLLM takes."""
    assert uses_gpus(section(**changes)) is expected


# -- engine arguments --------------------------------------------------------------------------


def test_a_run_file_overrides_the_arguments_of_the_card() -> None:
    """One by one: the card's others stay."""
    assert plan().layout.tensor == 4
    assert plan(engine_args={"tensor_parallel_size": 2}).layout.tensor == 2
    assert plan(engine_args={"max_model_len": 4096}).layout.tensor == 4


def test_the_cache_is_for_one_long_sequence_or_a_batch() -> None:
    """Whichever is larger; 8 replies of 1,024 + 48 tokens unless max_num_seqs says otherwise."""
    long = plan(engine_args={"max_model_len": 100_000})
    short = plan(engine_args={"max_model_len": 2048})
    many = plan(engine_args={"max_model_len": 2048, "max_num_seqs": 64})

    assert long.kv_cache == 100_000 * long.kv_token
    assert short.kv_cache == 8 * 1072 * short.kv_token
    assert many.kv_cache == 64 * 1072 * many.kv_token


def test_the_cache_may_be_kept_in_eight_bits() -> None:
    """Half of 16."""
    assert 2 * plan(engine_args={"kv_cache_dtype": "fp8"}).kv_token == plan().kv_token


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size: expected a whole number of at least"),
        ({"tensor_parallel_size": "4"}, "expected a whole number of at least 1, got '4'"),
        ({"max_num_seqs": True}, "max_num_seqs: expected a whole number"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization: expected a share"),
        (
            {"kv_cache_dtype": "int4"},
            "kv_cache_dtype: the memory plan knows bfloat16, float16",
        ),
        ({"dtype": "int8"}, "dtype: the memory plan knows float32"),
        ({"max_model_len": 300_000}, "max_model_len 300,000 is more than the model's context of"),
        ({"tensor_parallel_size": 5}, "tensor_parallel_size 5 does not divide the model's 48"),
        ({"tensor_parallel_size": 8}, "through a quantization block of 128; set enable_expert_par"),
    ],
    ids=str,
)
def test_arguments_that_vllm_would_refuse_are_refused_at_once(
    args: dict[str, Any], complaint: str
) -> None:
    """Not after minutes of loading."""
    with pytest.raises(ConfigError, match=complaint) as refused:
        plan(engine_args=args)

    assert str(refused.value).startswith("reference.engine_args: ")
    assert "\n" not in str(refused.value)


# -- what does not fit -------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_refused_with_what_is_missing() -> None:
    """230 GB on two GPUs of 80 GiB."""
    message = refuse(plan(engine_args={"tensor_parallel_size": 2}), gpus=2, memory_gib=80)

    assert "weights, activations and reserve need 110" in message
    assert "more than the 73.6 GiB that vLLM may use of 80" in message
    assert "tensor_parallel_size" in message


def test_a_cache_that_does_not_fit_is_refused_with_what_would() -> None:
    """Qwen3-32B leaves too little of 80 GiB for its whole context."""
    message = refuse(plan("qwen3-32b"), gpus=1, memory_gib=80)

    assert "the KV cache needs 10.0 GiB" in message
    assert "lower max_model_len (40,960)" in message
    room = int(message.partition("it holds ")[2].partition(" tokens")[0].replace(",", ""))
    shorter = plan("qwen3-32b", engine_args={"max_model_len": room})
    check_fit(shorter, Hardware(gpus=1, memory_gib=80))


def test_scoring_must_fit_beside_the_share_of_vllm() -> None:
    """The advised share is accepted."""
    args = {"max_model_len": 8192, "gpu_memory_utilization": 0.99}
    message = refuse(plan("qwen3-8b", engine_args=args), gpus=1, memory_gib=80)
    advised = float(message.partition("set it to ")[2].split()[0])

    assert "gpu_memory_utilization 0.99 leaves 0.8 GiB" in message
    args["gpu_memory_utilization"] = advised
    check_fit(plan("qwen3-8b", engine_args=args), Hardware(gpus=1, memory_gib=80))


def test_more_gpus_than_there_are_is_refused() -> None:
    """Nodes count."""
    memory = plan(engine_args={"tensor_parallel_size": 4, "pipeline_parallel_size": 4})
    message = refuse(memory, gpus=8, memory_gib=80)

    assert (
        "the engine asks for 16 GPUs (tensor_parallel_size 4 x pipeline_parallel_size 4" in message
    )
    assert "there are 8" in message
    check_fit(memory, Hardware(gpus=8, memory_gib=80, nodes=2))


def test_float32_arithmetic_doubles_what_is_not_quantized() -> None:
    """The default of a run file, which no 16-bit model of this size fits on one GPU."""
    half, full = plan("qwen3-32b"), plan("qwen3-32b", dtype="float32")

    assert full.weights == 2 * half.weights
    assert "weights" in refuse(full, gpus=1, memory_gib=80)


# -- without anything heavy --------------------------------------------------------------------

DRY_RUN = """
import json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "vllm", "transformers", "huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

sys.meta_path.insert(0, Missing())
from verifier.cli import main
sys.argv = ["verifier", "plan", sys.argv[1]]
main()
"""


def test_a_dry_run_imports_neither_vllm_nor_torch(tmp_path: Path) -> None:
    """The table is printed and the refusal comes on a machine that has none of them."""
    run_file = tmp_path / "run.yaml"
    content = {
        "endpoint": {"base_url": "http://127.0.0.1:9/v1", "model": "m"},
        "reference": section(
            engine_args={"tensor_parallel_size": 2}, hardware={"gpus": 2, "memory_gib": 80}
        ).model_dump(mode="json"),
        "out": str(tmp_path / "run"),
    }
    run_file.write_text(json.dumps(content))
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, str(run_file)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "Memory of each GPU (estimate)" in done.stdout
    assert done.stderr.startswith("verifier: reference.hardware: weights, activations and reserve")
    assert not (tmp_path / "run").exists()
