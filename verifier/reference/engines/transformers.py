"""The transformers engine: slow, obvious, and the oracle for every other engine.

The home of transformers' models. Works on CPU or one GPU.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DynamicCache

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
from verifier.reference.checkpoint import NOTHING_MOVED, Layout, Streamed, read_layout, transformed
from verifier.reference.engines import TOP_K
from verifier.reference.snapshot import find_shards, read_tensors
from verifier.reference.variants import Transform, can_load, checkpoint_of, find_variant, is_linear

Dtype = Literal["float32", "bfloat16", "float16"]

#: A beginning of at least so many tokens that rows share, such as a default system prompt, is
#: computed once.
_WORTH_SHARING = 16

#: Rows that share nothing are computed together when the longest is at most so much longer.
_SIMILAR = 1.25


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
    ) -> None:
        """`decode` is only needed to honour stop strings when generating. `checkpoints` fetch
        other weights by the name of their column; each is loaded in the place of these in turn.
        `threads` of the CPU are this process's from then on; None: as torch was told.
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
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = self._load(weights)
        self._layers = read_layout(self._model.config).layers
        self._loaded: str | None = REFERENCE

    def _load(self, weights: Path) -> Any:
        """The model of a directory."""
        half = getattr(torch, self._dtype)
        try:
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
        return self._ready(model)

    def _ready(self, model: Any) -> Any:
        model.to(self._device).eval()
        if self._device == "cpu" and self._dtype != "float32":
            _accumulate_in_float32(model, half=getattr(torch, self._dtype))
        return model

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
        return can_load(name, self._checkpoints, layers=self._layers)

    def load_variant(self, name: str) -> None:
        """Stream the checkpoint's tensors through the variant into the loaded model.

        A name in `checkpoints` is loaded in this model's place instead. Raises ConfigError for a
        variant that changes nothing, and for a checkpoint that is no model of this kind.
        """
        if name == self._loaded:
            return
        other = checkpoint_of(name, self._checkpoints, layers=self._layers)
        before, self._loaded = self._loaded, None
        if other is not None:
            self._load_other(name, other())
            self._loaded = name
            return
        if before is None or before in self._checkpoints:
            self.close()  # freed before the next is loaded
            self._model = self._load(self._weights)
        layout = read_layout(self._model.config)
        transform = None
        if name != REFERENCE:
            transform = find_variant(name, layers=layout.layers).build(layout.layers)
        fused = self._fuses()
        moved = self._load_fused(transform, layout) if fused else self._copy(transform, layout)
        if transform is not None and not moved:
            raise ConfigError(NOTHING_MOVED.format(name=name))
        self._loaded = name

    def _copy(self, transform: Transform | None, layout: Layout) -> bool:
        """Put the checkpoint's tensors into the parameters of their names; whether any moved."""
        parameters = dict(self._model.named_parameters())
        moved = False
        with torch.inference_mode():
            for streamed in self._stream(transform, layout):
                if streamed.name not in parameters:
                    continue  # tied weights may be stored under one name only
                moved = moved or streamed.moved
                # through the precision served in, which a parameter may be wider than
                served = streamed.tensor.to(getattr(torch, self._dtype))
                parameters[streamed.name].copy_(served)
        return moved

    def _fuses(self) -> bool:
        """Whether transformers makes other parameters of the checkpoint's linear layers on loading,
        as of experts that are stored one by one."""
        names = {name for name, _ in self._model.named_parameters()}
        return any(is_linear(key) and key not in names for key in read_tensors(self._weights))

    def _load_fused(self, transform: Transform | None, layout: Layout) -> bool:
        """Load the checkpoint's tensors anew, by transformers' own way; whether any moved.

        Held twice meanwhile: as they are stored and as they are fused.
        """
        kind, config = type(self._model), self._model.config
        self.close()
        tensors, moved = {}, False
        for streamed in self._stream(transform, layout):
            moved = moved or streamed.moved
            tensors[streamed.name] = streamed.tensor
        model = kind.from_pretrained(
            None, config=config, state_dict=tensors, dtype=getattr(torch, self._dtype),
            trust_remote_code=False,
        )  # fmt: skip
        self._model = self._ready(model)
        return moved

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
        published = self._published()
        if transform is not None:
            yield from transformed(published, transform, layout)
            return
        yield from (Streamed(key, tensor, False) for key, tensor in published)

    def _published(self) -> Iterator[tuple[str, torch.Tensor]]:
        for shard in find_shards(self._weights):
            with safe_open(shard, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                    yield key, tensors.get_tensor(key)

    def close(self) -> None:
        """Let go of the model."""
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
        cache = DynamicCache(config=self._model.config)
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
        going = [_Going(request, self._eos, self._decode) for request in requests]
        while True:
            for row, reply in zip(logits[:, -1].float().cpu(), going, strict=True):
                if reply.finish_reason is None:
                    reply.extend(row)
            if all(reply.finish_reason is not None for reply in going):
                return [reply.generation() for reply in going]
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


def _accumulate_in_float32(model: torch.nn.Module, *, half: torch.dtype) -> None:
    """Multiply matrices in float32 and round the products, logits too, to half precision.

    That is what GPUs do. CPUs without half-precision instructions emulate them up to ten times
    slower, and in ways that differ from one CPU to the next.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight.data = module.weight.data.float()
            cast(Any, module).forward = _rounded_to(half, module.forward)


def _rounded_to(
    half: torch.dtype, forward: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    def rounded(inputs: torch.Tensor) -> torch.Tensor:
        wide = inputs.float() if inputs.is_floating_point() else inputs  # ids stay ids
        return forward(wide).to(half)

    return rounded


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
    probabilities = torch.softmax(logits / request.temperature, dim=-1)
    values, ids = probabilities.sort(descending=True)
    if request.top_k:
        values[request.top_k :] = 0
    if request.top_p < 1:
        before = values.cumsum(0) - values
        values[before >= request.top_p * values.sum()] = 0
    return int(ids[torch.multinomial(values, 1, generator=rng)])
