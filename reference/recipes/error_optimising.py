"""Measured roundings.benchmark.json: the noise of 4-bit builds that optimise their own error.

Two of them, on the grid of int4-asym-g64 (4-bit integers with a zero point, groups of 64). Both see
what the layers read on calibration conversations, which are like those that they are measured on:
the kindest case for them.

- gptq: column by column, each error made up for by the columns that are still to come, by the
  inverse Hessian of the inputs (Frantar et al. 2023, "GPTQ"). Layers in order, each reading what
  the rounded ones before it write; damped by 1 % of the mean; no reordering of columns.
- awq: input channels are scaled up before rounding by a power of their mean magnitude and down
  after it, the power searched for on a grid by the error of the outputs (Lin et al. 2024, "AWQ").
  Matrices that read the same share the scales; not the output projection of the attention, whose
  input has fewer channels of its own than heads; no clipping.

The published weights of the embedded model are de-quantised 4-bit themselves, in groups of 32: how
far roundings of other grids lie from them says little of a model that was published in 16 bits.
Some minutes on one core; goes on where it was stopped, but for the making of a build:

    OMP_NUM_THREADS=1 python reference/recipes/error_optimising.py FOLDER
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from verifier.cli.common import cache_directory
from verifier.evidence.ledger import TEXT_SCALES
from verifier.evidence.noise import read_rows
from verifier.lab.bench.results import begin_results, fetch_measured, write_results
from verifier.lab.bench.roundings import PART, PLAIN, peak_scales, ratio_of_scales
from verifier.lab.corpus import Stack, collect_corpus, load_host, score_corpus
from verifier.probes import draw, load_pool
from verifier.records import GenerateRequest
from verifier.reference.calibrations import load_calibration
from verifier.reference.engines.load import load_engine
from verifier.reference.roundings import round_asymmetric
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.variants import is_linear
from verifier.scoring.readings import published_ids

BITS, GROUP = 4, 64
DAMP = 0.01
POWERS = [n / 20 for n in range(20)]

#: Conversations that the builds are calibrated on, and those that they are measured on.
SEEN, ASKED = 64, 48
SEEN_SEED, ASKED_SEED = 20261130, 20261131

#: What reads the same input, by the last parts of the names of the matrices.
SHARED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
UNSCALED = "self_attn.o_proj"

Round = Callable[[list[torch.Tensor], torch.Tensor, torch.Tensor, str], list[torch.Tensor]]


# -- the roundings -----------------------------------------------------------------------------


def plain(
    matrices: list[torch.Tensor], _hessian: torch.Tensor, _size: torch.Tensor, _name: str
) -> list[torch.Tensor]:
    """To the nearest point."""
    return [round_asymmetric(one, bits=BITS, group=GROUP) for one in matrices]


def gptq(
    matrices: list[torch.Tensor], hessian: torch.Tensor, _size: torch.Tensor, _name: str
) -> list[torch.Tensor]:
    """Each column's error made up for by those to come."""
    damped = hessian.double() + DAMP * hessian.diag().mean() * torch.eye(len(hessian)).double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    return [_gptq_one(one.clone(), upper) for one in matrices]


def _gptq_one(weight: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    found = torch.zeros_like(weight)
    for start in range(0, weight.shape[1], GROUP):
        end = start + GROUP
        low = weight[:, start:end].amin(dim=1).clamp_max(0)
        high = weight[:, start:end].amax(dim=1).clamp_min(0)
        scale = (high - low).clamp_min(1e-12) / (2**BITS - 1)
        zero = (-low / scale).round()
        errors = torch.zeros(len(weight), GROUP)
        for i in range(start, end):
            column = weight[:, i]
            level = ((column / scale).round() + zero).clamp(0, 2**BITS - 1)
            found[:, i] = (level - zero) * scale
            error = (column - found[:, i]) / upper[i, i]
            weight[:, i + 1 : end] -= error[:, None] * upper[i, i + 1 : end]
            errors[:, i - start] = error
        weight[:, end:] -= errors @ upper[start:end, end:]
    return found


def awq(
    matrices: list[torch.Tensor], hessian: torch.Tensor, size: torch.Tensor, name: str
) -> list[torch.Tensor]:
    """Rounded after channels that matter were scaled up."""
    if name == UNSCALED:
        return plain(matrices, hessian, size, name)
    best, least = matrices, torch.inf
    for power in POWERS:
        scales = size.clamp_min(1e-4) ** power
        scales = scales / (scales.max() * scales.min()).sqrt()
        made = [round_asymmetric(one * scales, bits=BITS, group=GROUP) / scales for one in matrices]
        error = sum(
            _output_error(new, one, hessian) for new, one in zip(made, matrices, strict=True)
        )
        if error < least:
            best, least = made, error
    return best


def _output_error(made: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor) -> float:
    """The sum of squares by which a layer's outputs change."""
    change = made - weight
    return float(((change @ hessian) * change).sum())


ROUNDINGS: dict[str, Round] = {PLAIN: plain, "gptq-asym-g64": gptq, "awq-asym-g64": awq}


# -- making a build ----------------------------------------------------------------------------


@torch.no_grad()
def build(weights: Path, out: Path, seen: list[tuple[int, ...]], rounding: Round) -> float:
    """Round the model of a directory layer by layer into `out`.

    Returns the error of the layers' outputs as a share of the outputs, in squares.
    """
    model = AutoModelForCausalLM.from_pretrained(
        weights, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    inputs = list(_first_inputs(model, seen))
    changed = whole = 0.0
    for number, layer in enumerate(model.model.layers):
        hessians, sizes = _watch(layer, inputs)
        for names in SHARED:
            modules = [layer.get_submodule(name) for name in names]
            assert all(is_linear(f"model.layers.{number}.{name}.weight") for name in names)
            hessian, before = hessians[names[0]], [one.weight.data for one in modules]
            for module, old, new in zip(
                modules, before, rounding(before, hessian, sizes[names[0]], names[0]), strict=True
            ):
                changed += _output_error(new, old, hessian)
                whole += float(((old @ hessian) * old).sum())
                module.weight.data = new
        inputs = [(_run(layer, hidden, given), given) for hidden, given in inputs]
    model.save_pretrained(out)
    for path in weights.iterdir():  # tokenizer and template
        if path.is_file() and "safetensors" not in path.name and not (out / path.name).exists():
            shutil.copy(path, out / path.name)
    return changed / whole


class _Enough(Exception):
    """The first layer has been reached."""


def _first_inputs(
    model: Any, seen: list[tuple[int, ...]]
) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """What the first layer is given, for each conversation."""
    kept: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def stop(_layer: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        kept.append((args[0] if args else given.pop("hidden_states"), given))
        raise _Enough

    hook = model.model.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    for ids in seen:
        try:
            model(input_ids=torch.tensor([ids]), use_cache=False)
        except _Enough:
            yield kept.pop()
    hook.remove()


def _run(layer: Any, hidden: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    found = layer(hidden, **given)
    return found[0] if isinstance(found, tuple) else found


def _watch(
    layer: Any, inputs: list[tuple[torch.Tensor, dict[str, Any]]]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of what each matrix reads: the sum of outer products, and each channel's mean magnitude."""
    hessians: dict[str, torch.Tensor] = {}
    sizes: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
            read = args[0].flatten(0, -2)
            hessians[name] = hessians.get(name, 0) + read.T @ read
            sizes[name] = sizes.get(name, 0) + read.abs().sum(dim=0)

        return keep

    hooks = [
        layer.get_submodule(names[0]).register_forward_pre_hook(watch(names[0])) for names in SHARED
    ]
    tokens = 0
    for hidden, given in inputs:
        _run(layer, hidden, given)
        tokens += hidden.shape[-2]
    for hook in hooks:
        hook.remove()
    return hessians, {name: size / tokens for name, size in sizes.items()}


# -- measuring ---------------------------------------------------------------------------------


def main(out: Path) -> None:
    """Make the builds, serve each, and write the results beside them."""
    card, weights = fetch_measured(cache=cache_directory(), tell=lambda _line: None)
    tokenizer, reference = (
        Tokenizer(weights),
        load_engine("transformers", weights, Tokenizer(weights)),
    )
    channel = load_calibration(card.name, card).text
    seen = [
        (*request.prompt_ids, *made.token_ids)
        for request, made in _conversations(tokenizer, reference)
    ]
    probes = draw(load_pool(), seed=ASKED_SEED, count=ASKED, max_tokens=48)
    stack = Stack(dtype="bfloat16", batch=32)
    rows, builds = {}, []
    for name, rounding in ROUNDINGS.items():
        folder = out / name
        note = folder / "output_error.txt"
        if not note.exists():
            folder.mkdir(parents=True, exist_ok=True)
            note.write_text(f"{build(weights, folder / 'model', seen, rounding):.6g}\n")
        host = load_host(folder / "model", tokenizer, stack)
        collect_corpus(folder / "replies", stack, probes, engine=host, tokenizer=tokenizer)
        host.close()
        ledger = score_corpus(
            folder / "replies", engine=reference, tokenizer=tokenizer, with_logprobs=False
        )
        rows[name] = read_rows(ledger.text(), TEXT_SCALES, channel)
        ratio, lower, upper = ratio_of_scales(rows[name], rows[PLAIN], TEXT_SCALES, seed=ASKED_SEED)
        builds.append(
            {
                "build": name,
                "replies": len(ledger.rows),
                "tokens": sum(row.tokens for row in ledger.rows),
                "scale": round(float(peak_scales(rows[name].sum(axis=0)[None], TEXT_SCALES)[0]), 4),
                "ratio": round(ratio, 4),
                "lower": round(lower, 4),
                "upper": round(upper, 4),
                "output_error": float(note.read_text()),
            }
        )
        seeds = {"seen": SEEN, "seen_seed": SEEN_SEED}
        write_results(out, PART, {**begin_results(seed=ASKED_SEED), **seeds, "builds": builds})


def _conversations(tokenizer: Tokenizer, engine: Any) -> Iterator[tuple[GenerateRequest, Any]]:
    """Questions of the pool, with what the published weights reply."""
    probes = draw(load_pool(), seed=SEEN_SEED, count=SEEN, max_tokens=48)
    asked = [
        GenerateRequest(prompt_ids=published_ids(probe, tokenizer), max_tokens=probe.max_tokens)
        for probe in probes
    ]
    for start in range(0, len(asked), 32):
        chunk = asked[start : start + 32]
        yield from zip(chunk, engine.generate(chunk), strict=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
