"""Models for tests: a random one of three layers that is made here, and the embedded one.

Libraries of models are imported where they are used: most tests need none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from httpx import create_ssl_context

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # A worker and all that it starts get its share of the cores. Read when torch is first imported.
    # Nothing is bound to a core: a worker that waits leaves its own to the others. vLLM, left to
    # itself, binds every model to the same one.
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, share)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from verifier.cli.common import cache_directory
from verifier.reference.cards import load_card
from verifier.reference.weights import check_weights, fetch_weights
from verifier.safety import sieve

EMBEDDED = "smollm2-135m-instruct"

#: One layout of turns, in the words of the embedded model's template.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_ID = 2

#: Pairs of lower-case letters that are one token; all other tokens are single bytes.
MERGES = (("t", "h"), ("th", "e"), ("o", "u"), ("i", "n"), ("a", "n"))


#: Files of tests that take longest, in seconds on one idle core: with `--dist loadfile` the workers
#: begin with these, and the short ones at the end even them out.
LONGEST = {
    "reference/test_vllm_engine.py": 300,
    "test_embedded.py": 250,
    "scoring/test_thinking_embedded.py": 80,
    "test_audit.py": 60,
    "checks/test_length.py": 40,
    "checks/test_sampling.py": 40,
    "checks/test_template_completions.py": 30,
    "checks/test_request_strata.py": 30,
    "checks/test_stored_replies.py": 30,
    "safety/test_keys.py": 30,
    "files/test_malformed.py": 30,
    "fleet/test_side_by_side.py": 20,
    "scoring/test_reasoning.py": 20,
    "scoring/test_thinking.py": 20,
    "cli/test_commands.py": 20,
}


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order of `pytest_collection_modifyitems`, where several workers share the files."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first; a file's tests stay together and in their order."""
    here = Path(__file__).parent
    items.sort(key=lambda item: -LONGEST.get(item.path.relative_to(here).as_posix(), 0))


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the command line notes of its run files goes nowhere near the user's own notes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_twice() -> Iterator[None]:
    """What takes a while and comes out the same each time is done once; a command that is started
    as a process of its own does all of it.

    Nothing waits for the disk, which loses power in no test.
    """
    certificates = cache(lambda *_variables: create_ssl_context())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", _is_open)
        patched.setattr(typer.main, "get_command", cache(typer.main.get_command))
        patched.setattr(
            httpx,
            "create_ssl_context",
            lambda: certificates(*map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR"))),
        )
        yield


def _is_open(file: int) -> None:
    os.fstat(file)  # raises for what cannot be synced either


def save_tokenizer(directory: Path, *, merges: tuple[tuple[str, str], ...] = MERGES) -> None:
    """Write a byte-level BPE tokenizer with a chat template, as checkpoints have it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(
        models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=list(merges))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(TEMPLATE)


def save_model(directory: Path, **changes: Any) -> None:
    """Write a random Llama whose dimensions every rounding of the bank divides.

    Weights are wide enough for next-token distributions that are neither flat nor one-hot. Of the
    head only capital letters get a say, so that greedy text is plain and is tokenized in one way.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(SPECIALS) + 256 + len(MERGES),
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "eos_token_id": EOS_ID,
        "bos_token_id": 1,
        "initializer_range": 0.1,
    }
    torch.manual_seed(20261124)
    model = LlamaForCausalLM(LlamaConfig(**settings | changes))
    if not model.config.tie_word_embeddings:
        capitals = [
            len(SPECIALS) + sorted(pre_tokenizers.ByteLevel.alphabet()).index(sign)
            for sign in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        ]
        silent = torch.ones(model.config.vocab_size, dtype=torch.bool)
        silent[capitals] = False
        with torch.no_grad():
            model.lm_head.weight[capitals] *= 2
            model.lm_head.weight[silent] *= 0.25
    model.save_pretrained(directory)


@pytest.fixture(autouse=True)
def _no_keys_known() -> Iterator[None]:
    """The key of one test is no secret in the next."""
    yield
    sieve.forget()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a random model with a tokenizer of its own, in float32."""
    directory = tmp_path_factory.mktemp("tiny")
    save_model(directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The directory of the embedded model, fetched once into the cache of the command line."""
    card = load_card(EMBEDDED)
    directory = fetch_weights(card, cache=cache_directory(), tell=lambda _line: None)
    check_weights(card, directory)
    return directory
