"""The transformers engine: slow, obvious, and the oracle for every other engine.

The home of transformers' models. Works on CPU or one GPU.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from verifier.errors import ConfigError
from verifier.evidence.samplers import Sampler, distribution, is_plain, penalized, row_cells
from verifier.records import (
    REFERENCE,
    GenerateRequest,
    Generation,
    ReplyScore,
    SamplerRequest,
    ScoreRequest,
)
from verifier.reference.checkpoint import (
    NOTHING_MOVED,
    Streamed,
    dequantized,
    stands_for_numbers,
    transformed,
)
from verifier.reference.engines import TOP_K
from verifier.reference.layout import Layout, read_layout
from verifier.reference.roundings import Activations, Cached, round_activations, round_cached
from verifier.reference.snapshot import CONFIG, find_shards, read_object, read_tensors
from verifier.reference.variants import (
    Settings,
    Transform,
    can_load,
    checkpoint_of,
    find_variant,
    is_linear,
    widths_of,
)

Dtype = Literal["float32", "bfloat16", "float16"]

#: A beginning of at least so many tokens that rows share, such as a default system prompt, is
#: computed once.
_WORTH_SHARING = 16

#: Rows that share nothing are computed together when the longest is at most so much longer.
_SIMILAR = 1.25

#: Once no more than this share of a batch goes on, what has ended is computed no further. A host
#: that fills its batches anew as replies end has batches of changing size, too, so what the size of
#: one rounds is within what a stack of that name shows.
_STILL_GOING = 0.75


class TransformersEngine:
    """A causal language model from a directory of safetensors, held in memory once.

    Not thread-safe: one caller at a time.
    """

    def __init__(
        self,
        weights: Path,
        *,
        eos_ids: Sequence[int],
        dtype: Dtype = "float32",
        tokens_per_batch: int = 2048,
        decode: Callable[[Sequence[int]], str] | None = None,
        checkpoints: Mapping[str, Callable[[], Path]] | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        """`decode` is only needed to honour stop strings when generating. `checkpoints` fetch
        other weights by the name of their column; each is loaded in the place of these in turn.
        `threads` of the CPU are this process's from then on; None: as torch was told. `device` as
        torch names it; None: the GPU where torch sees one.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        cast(Any, transformers.logging).set_verbosity_error()
        cast(Any, transformers.logging).disable_progress_bar()
        self._weights = weights
        self._dtype = dtype
        self._eos = frozenset(eos_ids)
        self._tokens_per_batch = tokens_per_batch
        self._decode = decode
        self._checkpoints = dict(checkpoints or {})
        self._device = device or ("cuda" if self.sees_gpu() else "cpu")
        self._model = self._load(weights)
        self._layers = read_layout(self._model.config).layers
        self._widths = widths_of(weights)
        self._heeds = _heeded(self._model)
        self._set = Settings()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._loaded: str | None = REFERENCE

    def _load(self, weights: Path) -> Any:
        """The model of a directory, its weights as the real values that they stand for."""
        half = getattr(torch, self._dtype)
        try:
            quantization = _quantization(weights)
            if stands_for_numbers(quantization):
                config = AutoConfig.from_pretrained(
                    weights, local_files_only=True, trust_remote_code=False
                )
                model = self._build(config, dict(dequantized(_published(weights), quantization)))
            else:
                model = cast(Any, AutoModelForCausalLM).from_pretrained(
                    weights, dtype=half, local_files_only=True, use_safetensors=True,
                    trust_remote_code=False,
                )  # fmt: skip
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise ConfigError(
                f"{weights}: the model needs code of its own, which came with it and is not run; "
                "give a checkpoint that transformers knows, or another --engine"
            ) from error
        return self._placed(model)

    def _build(self, config: Any, tensors: dict[str, torch.Tensor]) -> Any:
        """A model of tensors under their names in a checkpoint; transformers fuses what it fuses.

        `config` loses what it says of quantization: these are plain tensors.
        """
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            kind: Any = type(cast(Any, AutoModelForCausalLM).from_config(config))
        return kind.from_pretrained(
            None, config=config, state_dict=tensors, dtype=getattr(torch, self._dtype),
            trust_remote_code=False,
        )  # fmt: skip

    def _placed(self, model: Any) -> Any:
        """The model where and how it computes."""
        model.to(self._device).eval()
        if self._device == "cpu" and self._dtype != "float32":
            _accumulate_in_float32(model, half=getattr(torch, self._dtype))
        return model

    @staticmethod
    def sees_gpu() -> bool:
        """Whether torch can compute on a GPU here."""
        return torch.cuda.is_available()

    @property
    def weight_bytes(self) -> int:
        """Bytes that a step of decoding reads: each weight once, shared ones once."""
        return sum(p.numel() * p.element_size() for p in self._model.parameters())

    @property
    def versions(self) -> dict[str, str]:
        return {
            "engine": "transformers",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "device": self._device,
            "dtype": self._dtype,
            "threads": str(torch.get_num_threads()),
            "attention": str(getattr(self._model.config, "_attn_implementation", "eager")),
        }

    @property
    def loaded(self) -> str | None:
        """The name of the weights in place; None after a variant that failed half-way."""
        return self._loaded

    def can_load(self, name: str) -> bool:
        return can_load(
            name, self._checkpoints, layers=self._layers, widths=self._widths,
            heeds=lambda settings: not _unheeded(settings, self._heeds),
        )  # fmt: skip

    def load_variant(self, name: str) -> None:
        """Stream the checkpoint's tensors through the variant into the loaded model.

        A name in `checkpoints` is loaded in this model's place instead. Raises ConfigError for a
        variant that changes nothing, and for a checkpoint that is no model of this kind.
        """
        if name == self._loaded:
            return
        other = checkpoint_of(name, self._checkpoints, layers=self._layers)
        before, self._loaded = self._loaded, None
        self._heed(Settings())
        if other is not None:
            self._load_other(name, other())
            self._loaded = name
            return
        if before is None or before in self._checkpoints:
            self.close()  # freed before the next is loaded
            self._model = self._load(self._weights)
        layout = read_layout(self._model.config)
        transform, settings = None, Settings()
        if name != REFERENCE:
            variant = find_variant(name, layers=layout.layers)
            settings = variant.settings
            self._refuse(name, settings)
            transform = None if variant.build is None else variant.build(layout)
        put = self._put_fused if self._is_fused() else self._put_in_place
        moved = put(self._stream(transform, layout))
        if name != REFERENCE and not moved and settings == Settings():
            raise ConfigError(NOTHING_MOVED.format(name=name))
        self._heed(settings)
        self._loaded = name

    def _is_fused(self) -> bool:
        """Whether the model holds linear layers of the checkpoint under other names, as one."""
        own = dict(self._model.named_parameters())
        return any(is_linear(n) and n not in own for n in read_tensors(self._weights))

    @torch.inference_mode()
    def _put_in_place(self, stream: Iterable[Streamed]) -> bool:
        """Write tensors into the loaded model; whether any is not as published."""
        parameters = dict(self._model.named_parameters())
        moved = False
        for streamed in stream:
            if streamed.name not in parameters:
                continue  # tied weights may be stored under one name only
            moved = moved or streamed.moved
            # through the precision served in, which a parameter may be wider than
            served = streamed.tensor.to(getattr(torch, self._dtype))
            parameters[streamed.name].copy_(served)
        return moved

    def _put_fused(self, stream: Iterable[Streamed]) -> bool:
        """Load the model anew of tensors; whether any is not as published.

        Experts that a checkpoint holds one by one are one parameter once they are loaded, so they
        go the way that they came. Holds both for a while.
        """
        config = self._model.config
        tensors, moved = {}, False
        for streamed in stream:
            tensors[streamed.name] = streamed.tensor
            moved = moved or streamed.moved
        self.close()
        self._model = self._placed(self._build(config, tensors))
        return moved

    def _refuse(self, name: str, settings: Settings) -> None:
        if why := _unheeded(settings, self._heeds):
            raise ConfigError(f"weights variant {name!r}: {why}; leave it out of the bank")

    def _heed(self, settings: Settings) -> None:
        """Round from now on what these settings say, and nothing else."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._set = [], settings
        if settings.activations is not None:
            rounding = _rounding_inputs(settings.activations)
            for name, module in self._model.named_modules():
                if is_linear(f"{name}.weight"):
                    self._hooks.append(module.register_forward_pre_hook(rounding))

    def _cache(self) -> DynamicCache:
        """An empty cache, which rounds what enters it where the settings say so."""
        return self._rounded(DynamicCache(config=self._model.config))

    def _rounded(self, cache: DynamicCache) -> DynamicCache:
        if self._set.kv_cache is not None:
            for layer in cache.layers:
                if isinstance(layer, DynamicLayer):  # the others hold no keys and values
                    cast(Any, layer).update = _rounding_first(layer.update, self._set.kv_cache)
        return cache

    def _load_other(self, name: str, directory: Path) -> None:
        self.close()  # freed before the next is loaded
        try:
            self._model = self._load(directory)
        except Exception as error:  # transformers raises whatever it met
            said = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{directory}: the checkpoint {name!r} cannot be loaded ({type(error).__name__}: "
                f"{said}); leave it out of the card and the run file"
            ) from error

    def _stream(self, transform: Transform | None, layout: Layout) -> Iterator[Streamed]:
        """The checkpoint's tensors, as published or under a variant."""
        published = dequantized(_published(self._weights), _quantization(self._weights))
        if transform is not None:
            yield from transformed(published, transform, layout)
            return
        yield from (Streamed(key, tensor, False) for key, tensor in published)

    def close(self) -> None:
        """Let go of the model."""
        self._hooks = []
        self._model = self._loaded = None
        gc.collect()

    # -- scoring ---------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[ReplyScore]:
        scores: dict[int, ReplyScore] = {}
        for batch in self._batches([r.prompt_ids + r.reply_ids for r in requests]):
            for index, found in zip(batch, self._score([requests[i] for i in batch]), strict=True):
                scores[index] = found
        return [scores[i] for i in range(len(requests))]

    @property
    def scores_samplers(self) -> bool:
        return True

    @torch.inference_mode()
    def score_samplers(
        self, requests: Sequence[SamplerRequest], samplers: Sequence[Sampler]
    ) -> list[tuple[float, ...]]:
        cells: dict[int, tuple[float, ...]] = {}
        for batch in self._batches([r.prompt_ids + r.reply_ids for r in requests]):
            some = [requests[i] for i in batch]
            for index, logits in zip(batch, self._reply_logits(some), strict=True):
                cells[index] = row_cells(
                    logits.cpu().numpy(), prompt_ids=requests[index].prompt_ids,
                    reply_ids=requests[index].reply_ids, kept=requests[index].kept,
                    samplers=samplers,
                )  # fmt: skip
        return [cells[i] for i in range(len(requests))]

    @torch.inference_mode()
    def score_penalized(
        self, requests: Sequence[ScoreRequest], samplers: Sequence[Sampler]
    ) -> list[tuple[ReplyScore, ...]]:
        scores: dict[int, tuple[ReplyScore, ...]] = {}
        for batch in self._batches([r.prompt_ids + r.reply_ids for r in requests]):
            some = [requests[i] for i in batch]
            for index, logits in zip(batch, self._reply_logits(some), strict=True):
                request = replace(requests[index], candidates=None)
                each = (_penalized(logits.cpu(), request, sampler) for sampler in samplers)
                scores[index] = tuple(
                    _reply_score(torch.log_softmax(changed, dim=-1), request) for changed in each
                )
        return [scores[i] for i in range(len(requests))]

    def _batches(self, rows: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Group indices of rows that begin alike and are of similar length, within the limit."""
        batches: list[list[int]] = []
        for index in sorted(
            range(len(rows)), key=lambda i: (rows[i][:_WORTH_SHARING], len(rows[i]))
        ):
            size = (len(batches[-1]) + 1) * len(rows[index]) if batches else 0
            alike = (
                batches and rows[batches[-1][0]][:_WORTH_SHARING] == rows[index][:_WORTH_SHARING]
            )
            if alike and size <= self._tokens_per_batch:
                batches[-1].append(index)
            else:
                batches.append([index])
        return self._joined(batches, rows)

    def _joined(self, batches: list[list[int]], rows: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Rows that are alone in their batch, such as one reply after many prompts, put together.

        They share no beginning, but are of similar length.
        """
        joined = [batch for batch in batches if len(batch) > 1]
        alone = sorted(
            (batch[0] for batch in batches if len(batch) == 1), key=lambda i: len(rows[i])
        )
        several: list[list[int]] = []
        for index in alone:
            first = several[-1] if several else []
            fits = (len(first) + 1) * len(rows[index]) <= self._tokens_per_batch
            if first and fits and len(rows[index]) <= _SIMILAR * len(rows[first[0]]):
                first.append(index)
            else:
                several.append([index])
        return [*joined, *several]

    def _score(self, batch: Sequence[ScoreRequest]) -> list[ReplyScore]:
        return [
            _reply_score(torch.log_softmax(logits, dim=-1), request)
            for logits, request in zip(self._reply_logits(batch), batch, strict=True)
        ]

    def _reply_logits(
        self, batch: Sequence[ScoreRequest] | Sequence[SamplerRequest]
    ) -> Iterator[torch.Tensor]:
        """Logits [T, V] in float32 before each token of each reply."""
        rows = [r.prompt_ids + r.reply_ids for r in batch]
        keep = max(len(r.reply_ids) for r in batch) + 1
        logits, _, _ = self._run(rows, keep=keep, apart=min(len(r.prompt_ids) for r in batch) - 1)
        for row, length in zip(logits, [len(r.reply_ids) for r in batch], strict=True):
            yield row[len(row) - length - 1 : -1].float()

    def _run(
        self, rows: Sequence[tuple[int, ...]], *, keep: int, apart: int
    ) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
        """Logits [B, keep, V] of the last positions, the cache, and the mask [B, L] over it.

        A beginning that all rows share, of at most `apart` tokens, is computed once. The rest is
        padded on the left, so that every row ends at the right edge.
        """
        cache = self._cache()
        shared = min(apart, _common(rows))
        if shared < _WORTH_SHARING or len(rows) == 1:
            shared = 0
        else:
            beginning = torch.tensor([rows[0][:shared]], device=self._device)
            self._model(input_ids=beginning, past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(len(rows))
        width = max(map(len, rows)) - shared
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.ones(len(rows), shared + width, dtype=torch.long)
        for i, row in enumerate(rows):
            rest = row[shared:]
            ids[i, width - len(rest) :] = torch.tensor(rest)
            mask[i, shared : shared + width - len(rest)] = 0
        ids, mask = ids.to(self._device), mask.to(self._device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, shared:]
        logits = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
            logits_to_keep=keep,
        ).logits  # fmt: skip
        return logits, cache, mask

    # -- generating ------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        if not requests:
            return []
        logits, cache, mask = self._read([r.prompt_ids for r in requests])
        replies = [_Going(request, self._eos, self._decode) for request in requests]
        going = replies  # those that are computed, as rows of the cache
        while True:
            for row, reply in zip(logits[:, -1].float().cpu(), going, strict=True):
                if reply.finish_reason is None:
                    reply.extend(row)
            left = [n for n, reply in enumerate(going) if reply.finish_reason is None]
            if not left:
                return [reply.generation() for reply in replies]
            if len(left) <= _STILL_GOING * len(going):
                kept = torch.tensor(left, device=self._device)
                cache.batch_select_indices(kept)
                mask, going = mask[kept], [going[n] for n in left]
            ids = torch.tensor([[reply.token_ids[-1]] for reply in going], device=self._device)
            mask = torch.cat([mask, mask.new_ones(len(going), 1)], dim=1)
            logits = self._model(
                input_ids=ids, attention_mask=mask, position_ids=mask.sum(dim=1, keepdim=True) - 1,
                past_key_values=cache, logits_to_keep=1,
            ).logits  # fmt: skip

    def _read(
        self, prompts: Sequence[tuple[int, ...]]
    ) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
        """Logits [B, 1, V] after each prompt, one cache of all, and its mask [B, L].

        Prompts are read in batches of similar length, which wastes less on padding than one would.
        """
        batches = self._batches(prompts)
        parts = [
            self._run(rows, keep=1, apart=min(map(len, rows)) - 1)
            for rows in ([prompts[i] for i in batch] for batch in batches)
        ]
        if len(parts) == 1:
            logits, cache, mask = parts[0]
        else:
            longest = max(mask.shape[1] for _, _, mask in parts)
            logits = torch.cat([logits for logits, _, _ in parts])
            mask = torch.cat([_padded(mask, longest, dim=1) for _, _, mask in parts])
            cache = DynamicCache(config=self._model.config)
            for n in range(self._model.config.num_hidden_layers):
                keys, values = (
                    torch.cat(
                        [_padded(getattr(c.layers[n], kind), longest, dim=2) for _, c, _ in parts]
                    )
                    for kind in ("keys", "values")
                )
                cache.update(keys, values, n)
            self._rounded(cache)  # what lies in it is rounded already
        order = torch.tensor([i for batch in batches for i in batch], device=self._device).argsort()
        cache.batch_select_indices(order)
        return logits[order], cache, mask[order]


def _common(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all rows begin with."""
    first, last = min(rows), max(rows)  # the two that differ earliest
    same = zip(first, last, strict=False)
    return next((n for n, (a, b) in enumerate(same) if a != b), min(len(first), len(last)))


def _padded(tensor: torch.Tensor, length: int, *, dim: int) -> torch.Tensor:
    """Zeros in front of a dimension, up to a length."""
    shape = list(tensor.shape)
    shape[dim] = length - shape[dim]
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


def _published(weights: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint as they are stored."""
    for shard in find_shards(weights):
        with safe_open(shard, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                yield key, tensors.get_tensor(key)


def _quantization(weights: Path) -> Mapping[str, Any]:
    """What a checkpoint's configuration says of how its weights are stored; {}: as they are."""
    found = read_object(weights / CONFIG).get("quantization_config")
    return found if isinstance(found, Mapping) else {}


def _heeded(model: torch.nn.Module) -> dict[str, str]:
    """Why this model cannot be computed under a setting, by the setting's name; none: it can."""
    found = {}
    for name, _ in model.named_parameters():
        if is_linear(name):
            owner = model.get_submodule(name.rpartition(".")[0])
            if not isinstance(owner, torch.nn.Linear):
                found["activations"] = f"transformers reads {name} in no linear layer"
    text = cast(Any, model.config).get_text_config()
    if getattr(text, "kv_lora_rank", None):
        found["kv_cache"] = "hosts keep a latent of keys and values in the cache, transformers both"
    return found


def _unheeded(settings: Settings, problems: Mapping[str, str]) -> str | None:
    """Why settings cannot be heeded; None: they can."""
    asked = {"activations": settings.activations, "kv_cache": settings.kv_cache}
    return next((problems[name] for name, kind in asked.items() if kind and name in problems), None)


def _rounding_inputs(
    kind: Activations,
) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    def rounded(_module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        (values,) = given
        return (round_activations(values, kind),)

    return rounded


def _rounding_first(update: Callable[..., Any], kind: Cached) -> Callable[..., Any]:
    def rounded(keys: torch.Tensor, values: torch.Tensor, *args: Any, **more: Any) -> Any:
        return update(round_cached(keys, kind), round_cached(values, kind), *args, **more)

    return rounded


def _accumulate_in_float32(model: torch.nn.Module, *, half: torch.dtype) -> None:
    """Multiply matrices in float32 and round the products, logits too, to half precision.

    That is what GPUs do. CPUs without half-precision instructions emulate them up to ten times
    slower, and in ways that differ from one CPU to the next. Matrices are kept in float32, those of
    routers and of fused experts too; what is no matrix product is computed in half precision.
    """
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.float()
    if hasattr(model, "set_experts_implementation"):
        cast(Any, model).set_experts_implementation("eager")  # by linear(), one after another
    forward = model.forward

    def rounded(*args: Any, **kwargs: Any) -> Any:
        with _Rounded(half):
            return forward(*args, **kwargs)

    cast(Any, model).forward = rounded


class _Rounded(TorchFunctionMode):
    """Products with float32 matrices and their rows, rounded to half precision."""

    def __init__(self, half: torch.dtype) -> None:
        super().__init__()
        self._half = half

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear and args[1].dtype is torch.float32:
            bias = (
                args[2] if len(args) > 2 else kwargs.get("bias")
            )  # a vector, kept in half precision
            added = None if bias is None else bias.float()
            return func(args[0].float(), args[1], added).to(self._half)
        if func is torch.nn.functional.embedding:
            return func(*args, **kwargs).to(self._half)
        return func(*args, **kwargs)


def _penalized(logits: torch.Tensor, request: ScoreRequest, sampler: Sampler) -> torch.Tensor:
    """Logits [T, V] of a reply after the penalties of a sampler."""
    rows = [
        penalized(row, request.prompt_ids, Counter(request.reply_ids[:t]), sampler)
        for t, row in enumerate(logits.numpy())
    ]
    return torch.from_numpy(np.stack(rows))


def _reply_score(logp: torch.Tensor, request: ScoreRequest) -> ReplyScore:
    """Reduce log-probabilities [T, V] to what a score holds."""
    chosen = torch.tensor(request.reply_ids, device=logp.device)
    of_chosen = logp.gather(1, chosen[:, None])  # [T, 1]
    top, top_ids = logp.topk(min(TOP_K, logp.shape[1]), dim=1)
    entropies = -(logp.exp() * logp).nan_to_num(0).sum(dim=1)
    candidates = None
    if request.candidates is not None:
        candidates = tuple(
            tuple(logp[t, list(ids)].tolist()) for t, ids in enumerate(request.candidates)
        )
    return ReplyScore(
        logprobs=tuple(of_chosen[:, 0].tolist()),
        ranks=tuple(((logp > of_chosen).sum(dim=1) + 1).tolist()),
        entropies=tuple(entropies.tolist()),
        top_ids=tuple(top_ids[:, 0].tolist()),
        top_logprobs=tuple(tuple(row) for row in top.tolist()),
        candidate_logprobs=candidates,
    )


class _Going:
    """One reply while it is being generated."""

    def __init__(
        self,
        request: GenerateRequest,
        eos: frozenset[int],
        decode: Callable[[Sequence[int]], str] | None,
    ) -> None:
        self._request = request
        self._eos = eos
        self._decode = decode
        self._rng = torch.Generator()
        if request.seed is None:
            self._rng.seed()
        else:
            self._rng.manual_seed(request.seed)
        self.token_ids: list[int] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self._logprobs: list[float] = []
        self._top: list[tuple[tuple[int, float], ...]] = []

    def extend(self, logits: torch.Tensor) -> None:
        """Choose the next token from logits [V]."""
        request = self._request
        if request.logit_bias:
            logits = logits.clone()
            for token_id, bias in request.logit_bias:
                logits[token_id] += bias
        token = _sample(logits, request, self._rng, self.token_ids)
        logp = torch.log_softmax(logits, dim=-1)
        self.token_ids.append(token)
        self._logprobs.append(float(logp[token]))
        if request.top_logprobs:
            values, ids = logp.topk(request.top_logprobs)
            self._top.append(tuple(zip(ids.tolist(), values.tolist(), strict=True)))
        ended = token in self._eos and not request.past_end
        if ended or self._stopped():
            self.finish_reason = "stop"
        elif len(self.token_ids) >= request.max_tokens:
            self.finish_reason = "length"

    def _stopped(self) -> bool:
        if not self._request.stop or self._decode is None:
            return False
        text = self._decode(self.token_ids)
        return any(stop in text for stop in self._request.stop)

    def generation(self) -> Generation:
        assert self.finish_reason is not None
        return Generation(
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            logprobs=tuple(self._logprobs),
            top=tuple(self._top),
        )


def _sample(
    logits: torch.Tensor, request: GenerateRequest, rng: torch.Generator, said: Sequence[int]
) -> int:
    """Greedy at temperature 0, else temperature, then top-k, then top-p; faults as `samplers` has
    them."""
    if not is_plain(request):
        found = torch.from_numpy(distribution(logits.numpy(), request, said))
        return int(torch.multinomial(found, 1, generator=rng))
    if request.temperature == 0:
        return int(logits.argmax())
    values = torch.softmax(logits / request.temperature, dim=-1)
    ids = None
    if request.top_k or request.top_p < 1:  # else there is nothing to sort them for
        values, ids = values.sort(descending=True)
        if request.top_k:
            values[request.top_k :] = 0
        if request.top_p < 1:
            before = values.cumsum(0) - values
            values[before >= request.top_p * values.sum()] = 0
    upto = values.double().cumsum(0)  # inverted, which is faster than torch.multinomial
    drawn = torch.rand((), generator=rng, dtype=torch.float64) * upto[-1]
    chosen = int(torch.searchsorted(upto, drawn, right=True).clamp(max=len(upto) - 1))
    return chosen if ids is None else int(ids[chosen])
