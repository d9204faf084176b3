"""What audits say of models of other kinds: each made one added, calibrated, and audited.

Each model of the laboratory's recipes gets a card from its folder and a calibration on this
machine, as anybody's would. The replies of hosts of it are collected once, and audits are replayed
from them as in `precision`: under the model's own calibration, and under the provisional floor that
the other models lend it when its own is left out. No reply serves two audits of one figure. Hosts
that render the model's prompts wrongly are asked panels, as in `templates`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from verifier.checks.template.panel import PANEL_PROBES
from verifier.config import AuditSection
from verifier.evidence.calibration import Calibration
from verifier.files.run_folder import make_folder, read_lines
from verifier.lab.bench import templates
from verifier.lab.bench.precision import Bench, Figure, plan_audit
from verifier.lab.bench.provisional import leave_out, tabulate_provisional
from verifier.lab.bench.results import (
    CARD,
    begin_results,
    results_path,
    tabulate_rows,
    write_results,
)
from verifier.lab.bench.templates import READINGS, Host, Panels, design, is_said
from verifier.lab.calibrate import SERVED_BATCH, SERVED_IN, Sizes, calibrate
from verifier.lab.corpus import Stack, load_host, read_stack
from verifier.lab.derived_models import prune
from verifier.lab.generated import generate_corpus
from verifier.lab.made.recipes import Recipe, find_recipes, make_model
from verifier.plan import versions
from verifier.plan_file import Plan
from verifier.progress import Show
from verifier.reference.add import add_card
from verifier.reference.calibrations import is_calibrated, load_calibration, write_calibration
from verifier.reference.cards import Card, load_card
from verifier.reference.engines.load import kind_of, load_engine
from verifier.reference.machine import this_machine
from verifier.reference.provisional import Known, make_provisional
from verifier.reference.renderings.catalogue import catalogue
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.variants import VARIANTS

PART: Final = "made"

POLICY: Final = "screen"

#: Honest stacks, and audits of each: so many as take a while, one reply at a time.
HONEST: Final = {
    "float32-batch32": 20, "bfloat16-batch32": 20, "float16-batch32": 10, "bfloat16-batch1": 4,
    "vllm-bfloat16-batch32": 10,
}  # fmt: skip

#: What is served that is no build: the first and the last quarter of the layers.
HALF: Final = "half-the-layers"

#: Schemes of 4 bits, from the mildest of a card's bank to the coarsest, and audits of each host.
SCHEMES: Final = 3
AUDITS: Final = {"4-bit": 40, HALF: 20}

#: Template faults that hosts are known for, and audits of each model: shared out among those faults
#: that its template can express.
TEMPLATES: Final = (
    "generation-prompt-missing", "no-template", "default-system-dropped", "system-ignored",
    "end-of-turn-missing", "bos-doubled", "bos-missing", "thinking-forced-off", "tools-dropped",
    "family-llama3",
)  # fmt: skip
TEMPLATE_AUDITS: Final = 20

#: Tokens within which an audit under a floor that others lend ought to find 4 bits.
WITHIN: Final = 600

#: Tokens of an audit under a floor that others lend: noise between that floor and what it tolerates
#: gets no verdict, however many replies there are.
LENT_TOKENS: Final = 2000

#: Models that vLLM's build for processors refuses, and what stands for the stacks of their cards.
NOT_BY_VLLM: Final = ("experts-fp8", "experts-int4")
STACKS: Final = {
    "calibration_stacks": ("float32-batch32", "bfloat16-batch32"),
    "held_out_stacks": ("bfloat16-batch1",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A made model with its card, which lies in a file of its own, and its calibration."""

    recipe: Recipe
    weights: Path
    path: Path
    card: Card
    calibration: Calibration


def run_made_bench(
    out: Path,
    *,
    cache: Path,
    models: Sequence[str] = (),
    audits: int | None = None,
    sizes: Sizes | None = None,
    seed: int,
    show: Show,
) -> Path:
    """Measure these made models, or all; the path of the results.

    At most so many `audits` of a host. Goes on where an earlier run was stopped; models that are
    not in the cache are made.
    """
    make_folder(out)
    recipes = [one for name in models or ("all",) for one in find_recipes(name)]
    results = begin_results(seed=seed) | {"policy": POLICY, "models": [], "left_out": []}
    ready: list[Made] = []
    for recipe in recipes:
        ready.append(
            prepare(recipe, out, cache=cache, sizes=sizes or Sizes(), seed=seed, show=show)
        )
        results["models"].append(_describe(ready[-1]))
        _measure(ready[-1], out, results["models"][-1], "own", ready[-1].calibration,
                 audits=audits, seed=seed, show=show)  # fmt: skip
        write_results(out, PART, results)
    known = _known(ready)
    results["left_out"] = leave_out(known)
    for made, told in zip(ready, results["models"], strict=True):
        lent = make_provisional(made.card, [one for one in known if one[0] != made.card])
        if lent is not None:
            _measure(made, out, told, "lent", lent, audits=audits, seed=seed, show=show)
        write_results(out, PART, results)
    for made, told in zip(ready, results["models"], strict=True):
        told["templates"] = _serve_templates(made, out, audits=audits, seed=seed, show=show)
        write_results(out, PART, results)
    return results_path(out, PART)


def prepare(
    recipe: Recipe, out: Path, *, cache: Path, sizes: Sizes, seed: int, show: Show
) -> Made:  # fmt: skip
    """Make the model of a recipe, add a card of it, and calibrate that: as far as it lacks these.

    Those that vLLM cannot serve on processors are calibrated with the stacks of transformers.
    """
    weights = make_model(recipe, cache=cache, show=show)
    path = out / "cards" / f"{recipe.name}.yaml"
    if not path.is_file():
        add_card(str(weights), name=recipe.name, out=path, tell=show.tell)
    card = load_card(str(path))
    if not is_calibrated(str(path)):
        show.tell(f"calibrating {recipe.name}")
        here = card.model_copy(update=STACKS) if recipe.name in NOT_BY_VLLM else card
        found = calibrate(
            here, weights, work=out / recipe.name / "calibration",
            load_reference=lambda: load_engine("transformers", weights, Tokenizer(weights)),
            seed=seed - 1,  # other probes than the audits'
            versions=versions(), sizes=sizes, tell=show.tell,
            progress=partial(show.step, "replies"),
            scores_like=kind_of("transformers", weights), machine=this_machine(),
        )  # fmt: skip
        write_calibration(str(path), found)
    return Made(
        recipe=recipe, weights=weights, path=path, card=card,
        calibration=load_calibration(str(path), card),
    )  # fmt: skip


def _known(ready: Sequence[Made]) -> list[Known]:
    """The cards that lend to each other: of the embedded model and of those that are ready."""
    card = load_card(CARD)
    return [(card, load_calibration(CARD, card)), *((one.card, one.calibration) for one in ready)]


def figures_of(card: Card, *, vllm: bool) -> list[Figure]:
    """What is measured of a card's model: honest stacks, 4 bits in schemes, and half of it."""
    coarse = [name for name in card.bank if name in VARIANTS and VARIANTS[name].family == "4-bit"]
    steps = range(SCHEMES) if coarse else ()
    schemes = dict.fromkeys(coarse[n * (len(coarse) - 1) // (SCHEMES - 1)] for n in steps)
    fine = any("float16-" in name and "bfloat16-" not in name for name in card.held_out_stacks)
    found = [
        ("honest", read_stack(name), count)
        for name, count in HONEST.items()
        if (vllm or not name.startswith("vllm-")) and (fine or not name.startswith("float16-"))
    ]
    for part, names in (("4-bit", schemes), (HALF, (HALF,))):
        found += [
            (part, Stack(dtype=SERVED_IN, batch=SERVED_BATCH, weights=name), AUDITS[part])
            for name in names
        ]
    return [
        Figure(part=part, stack=stack, policy=POLICY, with_logprobs=False, audits=count)
        for part, stack, count in found
    ]


def _measure(
    made: Made, out: Path, told: dict[str, Any], floor: str, calibration: Calibration, *,
    audits: int | None, seed: int, show: Show,
) -> None:  # fmt: skip
    """Replay the audits of a model under a calibration, into what is told of it."""
    folder = out / made.recipe.name
    half = folder / HALF
    if not half.is_dir():
        show.tell(f"leaving out half of the layers of {made.recipe.name}")
        prune(made.weights, half.with_suffix(".partial"))
        half.with_suffix(".partial").rename(half)
    bench = Bench(
        out=folder, weights=made.weights, seed=seed, thinking=made.card.thinking,
        answer=generate_corpus, checkpoints={HALF: lambda: half}, tell=show.tell,
        progress=partial(show.step, "replies"),
    )  # fmt: skip
    plan = _plan(made, calibration, seed=seed)
    vllm = find_spec("vllm") is not None and made.recipe.name not in NOT_BY_VLLM
    for figure in figures_of(made.card, vllm=vllm):
        show.tell(f"measuring {made.recipe.name} {figure.name}, its floor {floor}")
        some = figure if audits is None else figure.at_most(audits)
        told["figures"].append({"floor": floor, **bench.measure(some, plan)})
    bench.close()


def share_out(able: Sequence[str], *, audits: int | None) -> list[Host]:
    """Hosts of the faults that a template can express, the first ones asked once more."""
    each, more = divmod(TEMPLATE_AUDITS, max(1, len(able)))
    return [
        Host(fault=f"template:{name}", audits=min(each + (n < more), audits or TEMPLATE_AUDITS))
        for n, name in enumerate(able)
    ]


def _serve_templates(
    made: Made, out: Path, *, audits: int | None, seed: int, show: Show
) -> dict[str, Any]:
    """Have hosts render prompts wrongly, and sum up which faults were named.

    What an earlier run has is not asked again.
    """
    folder = out / made.recipe.name / "templates"
    tokenizer, entries = Tokenizer(made.weights), catalogue()
    make_folder(folder)
    panel = design(tokenizer, entries, seed)
    hosts = share_out([name for name in TEMPLATES if name in panel.names], audits=audits)
    have = {(one["fault"], one["number"]) for one in read_lines(folder / templates.AUDITS)}
    lacking = {
        number: wanted for number in range(TEMPLATE_AUDITS)
        if (wanted := [h for h in hosts if number < h.audits and (h.fault, number) not in have])
    }  # fmt: skip
    if lacking:
        panels = _open_panels(made, folder, tokenizer, seed=seed)
        for number, wanted in lacking.items():
            show.tell(f"asking {len(wanted)} hosts of {made.recipe.name} with a wrong template")
            asked = panel if number == 0 else design(tokenizer, entries, seed + number)
            panels.measure(number, wanted, asked)
        panels.close()
    return _sum_up_templates(list(read_lines(folder / templates.AUDITS)), hosts)


def _open_panels(made: Made, folder: Path, tokenizer: Tokenizer, *, seed: int) -> Panels:
    stack = Stack(dtype=SERVED_IN, batch=PANEL_PROBES)
    return Panels(
        out=folder, plan=_plan(made, made.calibration, seed=seed), tokenizer=tokenizer,
        entries=catalogue(), reference=load_engine("transformers", made.weights, tokenizer),
        host=load_host(made.weights, tokenizer, stack), layers=made.card.layers,
        thinking=made.card.thinking, further=True,
    )  # fmt: skip


def _sum_up_templates(done: Sequence[Mapping[str, Any]], hosts: Sequence[Host]) -> dict[str, Any]:
    """What was named of these hosts: the true fault, alone or in a group, or otherwise."""
    most = {host.fault: host.audits for host in hosts}
    each = [
        {
            "fault": one["fault"], "number": one["number"], "named": is_said(one, READINGS[0]),
            "said": one[READINGS[0]]["said"], "requests": one["requests"],
            "completion_tokens": one["completion_tokens"],
        }
        for one in done if one["number"] < most.get(one["fault"], 0)
    ]  # fmt: skip
    return {"audits": len(each), "named": sum(one["named"] for one in each), "each": each}


def _plan(made: Made, calibration: Calibration, *, seed: int) -> Plan:
    section = AuditSection(policy=POLICY, seed=seed, top_logprobs=0)
    if calibration.provisional is not None:
        section = section.model_copy(update={"budget_completion_tokens": LENT_TOKENS})
    return plan_audit(section, card=str(made.path), calibration=calibration)


def _describe(made: Made) -> dict[str, Any]:
    text = made.calibration.text
    return {
        "model": made.recipe.name,
        "summary": made.recipe.summary,
        "tensors_sha256": made.card.digests.tensors_sha256,
        "precision": made.card.precision,
        "honest_scale": round(text.honest_scale, 5),
        "tolerated": round(text.tolerated, 5),
        "classes": {one.name: one.scale for one in made.calibration.classes},
        "stacks": {
            one.name: round(one.text.estimate, 5)
            for one in made.calibration.stacks if one.text is not None and one.role != "variant"
        },
        "figures": [],
    }  # fmt: skip


def tabulate_made(results: Mapping[str, Any]) -> str:
    """Markdown tables: a row for each model and floor, and one for all; what each is lent."""
    head = (
        "model", "floor", "honest accused", "honest consistent", "tokens (90 % within)",
        "4 bits found", f"within {WITHIN} tokens", "tokens (90 % within)", "half the layers found",
        "template faults named",
    )  # fmt: skip
    models = results["models"]
    rows = [
        _row(model["model"], f"{floor} {model['honest_scale']:.2g}" if floor == "own" else floor,
             floor, [model])
        for model in models for floor in dict.fromkeys(one["floor"] for one in model["figures"])
    ]  # fmt: skip
    if len(models) > 1:
        rows += [_row(f"all {len(models)}", floor, floor, models) for floor in ("own", "lent")]
    tables = [tabulate_rows(head, rows)]
    if results["left_out"]:
        tables.append(tabulate_provisional({"each": results["left_out"]}))
    return "\n\n".join(tables)


def _row(
    called: str, under: str, floor: str, models: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """What was measured of models under one floor."""
    honest, coarse, half = (
        [
            one for model in models for one in model["figures"]
            if (one["floor"], one["part"]) == (floor, part)
        ]
        for part in ("honest", "4-bit", HALF)
    )  # fmt: skip
    return (
        called, under, _share(honest, "inconsistent"), _share(honest, "consistent"),
        _tokens(honest), _share(coarse, "inconsistent"),
        _share(coarse, "inconsistent", within=WITHIN), _tokens(coarse),
        _share(half, "inconsistent"), _named(models) if floor == "own" else "-",
    )  # fmt: skip


def _share(figures: Sequence[Mapping[str, Any]], decision: str, *, within: float = math.inf) -> str:
    """How many of all audits ended so, within so many tokens."""
    ended = sum(
        audit["decision"] == decision and audit["completion_tokens"] <= within
        for one in figures for audit in one["each"]
    )  # fmt: skip
    return f"{ended} of {sum(one['audits'] for one in figures)}"


def _named(models: Sequence[Mapping[str, Any]]) -> str:
    """Of how many audits of a wrong template the fault was named; "-": none were made."""
    found = [model["templates"] for model in models if "templates" in model]
    if not found:
        return "-"
    return f"{sum(one['named'] for one in found)} of {sum(one['audits'] for one in found)}"


def _tokens(figures: Iterable[Mapping[str, Any]]) -> str:
    """Of all audits together: the median, and what nine tenths stay within."""
    spent = sorted(audit["completion_tokens"] for one in figures for audit in one["each"])
    if not spent:
        return "-"
    return f"{spent[(len(spent) - 1) // 2]} ({spent[(9 * len(spent) - 1) // 10]})"
