"""Which engine computes the reference's likelihoods, and with what.

Imports an engine's own library only once that engine is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from verifier.config import Dtype, EngineName
from verifier.errors import ConfigError, VerifierError
from verifier.reference.engines import Engine
from verifier.reference.snapshot import CONFIG, read_object


class _Tokenizer(Protocol):
    """What engines need of a tokenizer."""

    @property
    def eos_id(self) -> int: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def ids_of_bytes(self, raw: bytes) -> tuple[int, ...]: ...
    def special_id(self, token: str) -> int | None: ...
    def encode(self, text: str) -> tuple[int, ...]: ...
    def decode(self, ids: Any) -> str: ...


def load_engine(
    name: EngineName,
    weights: Path,
    tokenizer: _Tokenizer,
    *,
    dtype: Dtype = "auto",
    threads: int | None = None,
    attention: str | None = None,
    engine_args: Mapping[str, Any] | None = None,
    checkpoints: Mapping[str, Callable[[], Path]] | None = None,
    url: str | None = None,
    api_key: str | None = None,
    model: str | None = None,
) -> Engine:
    """The weights of a directory, or the server at `url`, ready to score and to generate.

    `threads` and `attention` (a kernel) are for transformers, `engine_args` for vLLM, `checkpoints`
    (other weights, loaded in the place of these) for both; `url`, `api_key` and `model`, its name
    there, for remote and echo. dtype auto is float32 for transformers, the oracle, and the
    checkpoint's own for vLLM. Raises ConfigError when the engine cannot be had.
    """
    eos_ids = (tokenizer.eos_id,)
    match choose(name):
        case "remote" | "echo":
            return _ask_server(choose(name), tokenizer, url=url, api_key=api_key, model=model)
        case "vllm":
            from verifier.reference.engines.vllm import VllmEngine

            return VllmEngine(
                weights, eos_ids=eos_ids, dtype=dtype, engine_args=engine_args,
                checkpoints=checkpoints,
            )  # fmt: skip
        case _:
            from verifier.reference.engines.transformers import TransformersEngine

            try:
                return TransformersEngine(
                    weights,
                    eos_ids=eos_ids,
                    dtype="float32" if dtype == "auto" else dtype,
                    decode=tokenizer.decode,
                    checkpoints=checkpoints,
                    threads=threads,
                    attention=attention,
                )
            except VerifierError:
                raise
            except Exception as error:  # transformers raises whatever it met
                said = " ".join(str(error).split())[:200]
                raise ConfigError(
                    f"{weights}: transformers cannot load it ({type(error).__name__}: {said}); "
                    "fetch it anew, or use another --engine"
                ) from error


def _ask_server(
    name: EngineName, tokenizer: _Tokenizer, *, url: str | None, api_key: str | None,
    model: str | None,
) -> Engine:  # fmt: skip
    """An engine that asks a server of someone else's."""
    if url is None:
        raise ConfigError("reference.url: missing; give the server's URL, up to /v1")
    if name == "echo":
        from verifier.reference.engines.echo import EchoEngine

        return EchoEngine(url, tokenizer=tokenizer, api_key=api_key, model=model)
    from verifier.reference.engines.remote import RemoteEngine

    return RemoteEngine(
        url, eos_ids=(tokenizer.eos_id,), api_key=api_key, encode=tokenizer.encode, model=model
    )


def choose(name: EngineName) -> EngineName:
    """The engine that a name stands for here: auto is vLLM where it and a GPU are, else
    transformers."""
    if name != "auto":
        return name
    import torch

    if not torch.cuda.is_available():
        return "transformers"
    from verifier.reference.engines.vllm import find_distribution

    try:
        find_distribution()
    except ConfigError:
        return "transformers"
    return "vllm"


def kind_of(name: EngineName, weights: Path) -> tuple[EngineName, str]:
    """Engine and precision that `load_engine` takes for these weights where none is asked for."""
    engine = choose(name)
    if engine != "vllm":
        return engine, "float32"
    raw = read_object(weights / CONFIG)
    return engine, str(raw.get("dtype") or raw.get("torch_dtype"))
