"""Calibration: the plan, the fits on simulated replies, and a whole one of a random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes_engine import FakeEngine
from models import EOS_ID
from scored import CountingEngine
from simulate import SHA, simulate_row

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.evidence.calibration import Calibration, Channel, Estimate, NoiseClass
from verifier.evidence.calibration import Stack as Measured
from verifier.evidence.ledger import LOGPROB_SCALES, TEXT_SCALES, Ledger
from verifier.evidence.stacks import hidden_classes
from verifier.files.run_folder import EXCHANGES
from verifier.host.collect import read_attempts
from verifier.lab.calibrate import (
    LEARNING_RATES,
    LEVEL,
    SPREADS,
    Array,
    Sizes,
    calibrate,
    dropped_layers,
    estimate,
    fit_channel,
    noise_classes,
    plan_items,
    refuse_card,
)
from verifier.lab.corpus import RememberingEngine, Stack, load_host, read_stack
from verifier.lab.timings import read_timings
from verifier.records import REFERENCE, ScoreRequest
from verifier.reference.cards import Card
from verifier.reference.digests import tensors_sha256
from verifier.reference.engines import Engine
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.variants import CLASS_MARGINS

BUILDS = ("fp8-channel", "int4-sym-g64")
CARD: dict[str, Any] = {
    "name": "tiny",
    "model": "tiny",
    "publisher": "nobody",
    "licence": {"name": "none", "hosting": "allowed"},
    "precision": "float32",
    "layers": 3,
    "source": {"kind": "directory", "path": "weights"},
    "digests": {"tensors_sha256": SHA},
    "bank": list(BUILDS),
    "calibration_stacks": ["float32-batch4", "bfloat16-batch4"],
    "held_out_stacks": ["float16-batch2", "bfloat16-batch1"],
}


def make_card(**changes: Any) -> Card:
    return Card.model_validate(CARD | changes)


def simulate(scale: float, *, replies: int = 24, seed: int = 0) -> Array:
    """Text cells [n, S] of a host with Gumbel noise of this scale."""
    rng = np.random.default_rng([seed, round(scale * 1e4)])
    rows = [simulate_row(rng, f"p{n}", scale=scale) for n in range(replies)]
    return Ledger(rows=tuple(rows)).text()


def simulate_logprobs(scale: float, *, replies: int = 24) -> Array:
    rng = np.random.default_rng(round(scale * 1e4))
    rows = [simulate_row(rng, f"p{n}", scale=scale, logprob_scale=scale) for n in range(replies)]
    return Ledger(rows=tuple(rows)).logprob()


#: Near 0.2, and on the grid.
SCALE = float(TEXT_SCALES[26])

PLAIN = Channel(honest_scale=1.0, spread=0.0, learning_rate=1.0)


# -- stacks and the plan -----------------------------------------------------------------------


def test_the_name_of_a_stack_says_what_it_is() -> None:
    """It reads back to the same stack; a build is named in front."""
    names = (
        "float32-batch1", "bfloat16-batch16", "float16-batch32", "bfloat16-eager-batch16",
        "vllm-bfloat16-triton_attn-batch8", "vllm-bfloat16-kv_fp8-batch8",
        "vllm-float16-flashinfer-kv_fp8_e5m2-batch8",
    )  # fmt: skip
    for name in names:
        assert read_stack(name).name == name
    assert len({read_stack(name).kind for name in names}) == 7  # each is a load of its own
    build = Stack(dtype="bfloat16", batch=32, weights="fp8-channel")
    assert build.name == "fp8-channel-bfloat16-batch32"


@pytest.mark.parametrize(
    "name",
    ["", "float32", "float64-batch1", "float32-batch", "float32-batch0", "float32-batch-1",
     "float32-batch1.5", "float32-batch²", "batch4", "float32_batch4", "fp8-float32-batch4"],
)  # fmt: skip
def test_a_stack_of_another_name_is_refused(name: str) -> None:
    """The message shows the name and the pattern."""
    with pytest.raises(ConfigError, match=r"float32, bfloat16, float16 followed by -batch") as no:
        read_stack(name)
    assert repr(name) in str(no.value)


@pytest.mark.parametrize("name", ["bfloat16-kv_fp8-batch4", "bfloat16-triton_attn-batch4"])
def test_a_stack_that_transformers_does_not_serve_is_refused(name: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match="transformers serves eager, sdpa as kernels"):
        read_stack(name)


def test_a_kernel_of_attention_is_the_one_that_computes(tiny: Path) -> None:
    """It rounds in another order, or the stack would be the one without it."""
    tokenizer = Tokenizer(tiny)
    asked = [ScoreRequest(prompt_ids=(82, 81, 92), reply_ids=(70, 71, 72, 73))]
    found = {}
    for name in ("bfloat16-batch4", "bfloat16-sdpa-batch4", "bfloat16-eager-batch4"):
        engine = load_host(tiny, tokenizer, read_stack(name))
        found[name] = (engine.versions["attention"], engine.score(asked)[0].logprobs)
    own, sdpa, eager = found.values()

    assert own == sdpa
    assert (sdpa[0], eager[0]) == ("sdpa", "eager")
    assert sdpa[1] != eager[1]
    assert np.allclose(sdpa[1], eager[1], atol=0.3)


def test_variants_are_served_by_vllm_where_no_honest_stack_is_of_transformers() -> None:
    """What takes several GPUs for one takes them for the other."""
    alone = ["vllm-bfloat16-batch32"]
    for stacks, engine in ((alone, "vllm"), ([*alone, "float32-batch4"], "transformers")):
        items = plan_items(make_card(calibration_stacks=stacks), seed=3, sizes=SIZES)
        assert {i.stack.engine for i in items if i.role == "variant"} == {engine}


def test_stacks_of_an_engine_that_is_not_here_are_refused_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not once the others are measured."""
    monkeypatch.setattr("verifier.lab.calibrate.find_spec", lambda _name: None)
    refuse_card(make_card())

    with pytest.raises(ConfigError, match="stack vllm-bfloat16-batch32: vLLM is not installed"):
        refuse_card(make_card(held_out_stacks=["vllm-bfloat16-batch32"]))


def test_vllm_gets_the_arguments_of_the_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such as the number of GPUs, for the hosts that are measured."""
    given: list[object] = []

    def load(name: str, *_what: object, engine_args: object, **_how: object) -> None:
        given.append((name, engine_args))

    monkeypatch.setattr("verifier.lab.corpus.load_engine", load)
    for name in ("vllm-bfloat16-batch8", "vllm-bfloat16-triton_attn-kv_fp8-batch8"):
        load_host(tmp_path, None, read_stack(name), engine_args={"a": 1})

    own = {"a": 1, "attention_backend": "TRITON_ATTN", "kv_cache_dtype": "fp8"}
    assert given == [("vllm", {"a": 1}), ("vllm", own)]


def test_a_class_measured_with_its_mildest_grid_needs_less_of_a_margin() -> None:
    """NVFP4 is milder than integers, and only optimising makes 4 bits milder yet."""

    def stack(name: str, scale: float) -> Measured:
        found = Estimate(estimate=scale, lower=scale, upper=scale)
        return Measured(
            name=name, role="variant", family="4-bit", replies=16, tokens=700, text=found,
            logprob=found,
        )  # fmt: skip

    integers = [stack("int4-asym-g64", 0.6), stack("int4-sym-g64", 0.8)]
    scales = [
        next(one.scale for one in noise_classes(some) if one.name == "4-bit-class rounding")
        for some in (integers, [*integers, stack("nvfp4", 0.5)])
    ]

    assert scales == [0.3, 0.35]


SIZES = Sizes(calibration=10, held_out=6, variant=4, layer=2, max_tokens=24)


def test_the_plan_has_every_stack_build_and_layer_once() -> None:
    """Honest stacks as the card names them, builds and layers as hosts serve them."""
    items = plan_items(make_card(), seed=3, sizes=SIZES)

    found = [(item.stack.name, item.role, item.family, len(item.probes)) for item in items]
    assert found == [
        ("float32-batch4", "calibration", None, 10),
        ("bfloat16-batch4", "calibration", None, 10),
        ("float16-batch2", "held out", None, 6),
        ("bfloat16-batch1", "held out", None, 6),
        ("fp8-channel-bfloat16-batch32", "variant", "fp8", 4),
        ("int4-sym-g64-bfloat16-batch32", "variant", "4-bit", 4),
        ("drop-layer-0-bfloat16-batch32", "variant", "layers", 2),
        ("drop-layer-1-bfloat16-batch32", "variant", "layers", 2),
        ("drop-layer-2-bfloat16-batch32", "variant", "layers", 2),
    ]
    assert {probe.max_tokens for item in items for probe in item.probes} == {24}


def test_held_out_stacks_get_probes_that_nobody_else_gets() -> None:
    """Neither the stacks that set the honest scale nor each other's: the check is independent."""
    items = plan_items(make_card(), seed=3, sizes=SIZES)
    questions = {
        item.stack.name: {probe.messages for probe in item.probes} for item in items
    }  # by what is asked, not by its id

    for item in items:
        if item.role != "held out":
            continue
        own = questions[item.stack.name]
        assert len(own) == SIZES.held_out
        for name, others in questions.items():
            assert name == item.stack.name or not own & others


def test_the_seed_decides_the_probes() -> None:
    """The same seed asks the same, another asks something else."""

    def asked(seed: int) -> list[Any]:
        return [item.probes for item in plan_items(make_card(), seed=seed, sizes=SIZES)]

    assert asked(3) == asked(3)
    assert asked(3) != asked(4)


@pytest.mark.parametrize(
    "changes",
    [{"bank": ["int5-g64"]}, {"calibration_stacks": ["fast"]}, {"held_out_stacks": ["fast"]}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_card_that_names_what_is_not_there_is_refused(changes: dict[str, Any]) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigError):
        plan_items(make_card(**changes), seed=1, sizes=SIZES)


# -- the fits ----------------------------------------------------------------------------------


def test_an_estimate_holds_the_scale_it_was_made_with() -> None:
    """At LEVEL for one host each; 5 of 40 misses would have probability 4e-5 at a level of 99%."""
    misses = 0
    for seed in range(40):
        found = estimate(simulate(SCALE, replies=8, seed=seed), TEXT_SCALES, PLAIN)
        assert found is not None
        assert found.upper is not None
        assert found.lower <= found.estimate <= found.upper
        misses += not found.lower <= SCALE <= found.upper

    assert LEVEL == 0.99
    assert misses < 5


def test_more_replies_make_a_narrower_estimate() -> None:
    """The interval closes around the scale."""
    few = estimate(simulate(SCALE, replies=4), TEXT_SCALES, PLAIN)
    many = estimate(simulate(SCALE, replies=64), TEXT_SCALES, PLAIN)

    assert few is not None
    assert many is not None
    assert few.upper is not None
    assert many.upper is not None
    assert few.lower <= many.lower <= SCALE <= many.upper < few.upper


def test_without_rows_there_is_no_estimate() -> None:
    """None, not a number."""
    assert estimate(np.zeros((0, len(TEXT_SCALES))), TEXT_SCALES, PLAIN) is None


def test_the_honest_scale_is_the_next_one_above_every_honest_upper_limit() -> None:
    """On the grid, and never below what an honest stack may have reached."""
    rows = {"a": simulate(0.03), "b": simulate(0.06), "fault": simulate(0.5)}
    channel = fit_channel(
        rows, TEXT_SCALES, honest=["a", "b"], known=["a", "b", "fault"], what="greedy text"
    )
    uppers = [e.upper for n in ("a", "b") if (e := estimate(rows[n], TEXT_SCALES, channel))]

    assert None not in uppers
    largest = max(u for u in uppers if u is not None)
    above = min(scale for scale in TEXT_SCALES if scale > largest * (1 + 1e-9))
    assert channel.honest_scale == pytest.approx(above)
    assert 0.06 < channel.honest_scale < 0.2


def test_faults_do_not_raise_the_honest_scale() -> None:
    """It is set by the honest stacks alone."""
    rows = {"a": simulate(0.05), "fault": simulate(0.2), "worse": simulate(0.7)}
    alone = fit_channel(rows, TEXT_SCALES, honest=["a"], known=["a"], what="greedy text")
    beside = fit_channel(
        rows, TEXT_SCALES, honest=["a"], known=["a", "fault", "worse"], what="greedy text"
    )

    assert beside.honest_scale <= 1.6 * alone.honest_scale


def test_gumbel_noise_needs_neither_spread_nor_a_lower_rate() -> None:
    """The model is right there: intervals are as narrow as the likelihood allows, or nearly so."""
    rows = {f"s{n}": simulate(scale) for n, scale in enumerate((0.04, 0.1, 0.4))}
    channel = fit_channel(rows, TEXT_SCALES, honest=["s0"], known=list(rows), what="greedy text")

    assert channel.spread <= 0.15
    assert channel.learning_rate >= 0.7


def test_replies_of_unequal_scales_need_spread() -> None:
    """One scale for all is too narrow a model when each reply has its own."""
    rng = np.random.default_rng(8)
    mixed = np.concatenate(
        [simulate(0.2 * float(np.exp(rng.normal(0, 0.4))), replies=1, seed=n) for n in range(60)]
    )
    channel = fit_channel(
        {"mixed": mixed}, TEXT_SCALES, honest=["mixed"], known=["mixed"], what="greedy text"
    )

    assert channel.spread >= 0.25
    assert channel.spread in SPREADS
    assert channel.learning_rate in LEARNING_RATES


def test_reported_log_probabilities_are_fitted_the_same_way() -> None:
    """On a grid of their own."""
    rows = {"a": simulate_logprobs(0.02), "fault": simulate_logprobs(0.3)}
    channel = fit_channel(
        rows, LOGPROB_SCALES, honest=["a"], known=["a", "fault"], what="log-probabilities"
    )

    assert 0.01 < channel.honest_scale < 0.06
    assert np.isclose(LOGPROB_SCALES, channel.honest_scale).any()


@pytest.mark.parametrize(
    "honest",
    [{"a": simulate(1.0)}, {"a": simulate(0.05)[:0]}],
    ids=["too noisy", "no replies"],
)
def test_honest_serving_that_is_not_bounded_is_refused(honest: dict[str, Array]) -> None:
    """No card is calibrated on it; the message says what to do."""
    rows = honest | {"b": simulate(0.05)}

    with pytest.raises(ReferenceMismatch, match="greedy text: honest serving is not bounded; ask"):
        fit_channel(rows, TEXT_SCALES, honest=["a", "b"], known=["a", "b"], what="greedy text")


def test_replies_that_no_model_fits_are_refused() -> None:
    """Where no power of the likelihood keeps the level, there is nothing to rest a verdict on."""
    rows = np.full((400, len(TEXT_SCALES)), -60.0)
    rows[:, 0] = 0.1  # the best scale in all
    rows[:300, -1] = -14.0
    rows[300:, -1] = 38.0  # which for every fourth reply is far worse than another

    with pytest.raises(ReferenceMismatch, match="calibration of greedy text: no learning rate"):
        fit_channel({"a": rows}, TEXT_SCALES, honest=["a"], known=["a"], what="greedy text")


# -- classes -----------------------------------------------------------------------------------


def measured(name: str, family: str | None, scale: float | None) -> Measured:
    text = None if scale is None else Estimate(estimate=scale, lower=scale / 2, upper=None)
    return Measured(
        name=name, role="variant" if family else "calibration", family=family, replies=8,
        tokens=300, text=text, logprob=None,
    )  # fmt: skip


def test_a_class_is_excluded_below_a_share_of_its_mildest_member() -> None:
    """Whatever its other members measure; honest stacks belong to none."""
    classes = noise_classes(
        (
            measured("float32-batch4", None, 0.01),
            measured("int4-a", "4-bit", 0.8),
            measured("int4-b", "4-bit", 0.6),
            measured("drop-layer-1", "layers", 0.7),
        )
    )

    found = {c.name: c.scale for c in classes}
    assert found == {
        "4-bit-class rounding": pytest.approx(CLASS_MARGINS["4-bit-class rounding"][1] * 0.6),
        "one layer dropped": pytest.approx(CLASS_MARGINS["one layer dropped"][1] * 0.7),
        "another model": 1.0,
    }
    assert "int4-b, the mildest of 2 builds" in classes[0].basis


def test_classes_within_honest_serving_are_told(made: Calibration) -> None:
    """Whoever calibrates must know what no audit on the card can exclude."""
    floor = made.text.honest_scale
    low, high = (
        NoiseClass(name=name, scale=scale, basis="")
        for name, scale in (("int8", floor), ("4-bit", 2 * floor))
    )

    assert hidden_classes(made.model_copy(update={"classes": (low, high)})) == ("int8",)


def test_builds_without_an_estimate_make_no_class() -> None:
    """A class that was not measured cannot be excluded, so it is not there to be asked for."""
    classes = noise_classes((measured("int4-a", "4-bit", None), measured("int8", "int8", 0.1)))

    assert [c.name for c in classes] == ["int8-class rounding", "another model"]


# -- scoring once ------------------------------------------------------------------------------


def test_a_remembering_engine_scores_no_reply_twice() -> None:
    """What was scored with candidates serves without them; under other weights it is new."""
    engine = CountingEngine()
    remembering = RememberingEngine(engine)
    plain = ScoreRequest(prompt_ids=(65, 66), reply_ids=(67, 68))
    asked = ScoreRequest(prompt_ids=(65, 66), reply_ids=(67, 68), candidates=((1,), (2,)))
    (first,) = remembering.score([asked])
    (second,) = remembering.score([plain])
    remembering.load_variant("fp8-channel")
    (third,) = remembering.score([plain])

    assert [weights for weights, _ in engine.scored] == [REFERENCE, "fp8-channel"]
    assert first.candidate_logprobs is not None
    assert second.candidate_logprobs is None
    assert second.logprobs == first.logprobs != third.logprobs


# -- a whole calibration -----------------------------------------------------------------------


class Whole:
    """A calibration of the random model in a work folder, run as often as a test likes."""

    def __init__(self, weights: Path, work: Path) -> None:
        digests = {"tensors_sha256": tensors_sha256(weights)}
        self.card = make_card(digests=digests, held_out_stacks=["float16-batch2"])
        self.weights = weights
        self.work = work

    def run(self, *, seed: int = 1, stop_at: str | None = None) -> Calibration:
        def tell(line: str) -> None:
            if stop_at is not None and line.startswith(stop_at):
                raise KeyboardInterrupt

        return calibrate(
            self.card,
            self.weights,
            work=self.work,
            load_reference=lambda: TransformersEngine(self.weights, eos_ids=(EOS_ID,)),
            seed=seed,
            versions={"verifier": "test"},
            sizes=Sizes(calibration=6, held_out=4, variant=3, layer=2, max_tokens=24),
            tell=tell,
        )

    def exchanges(self) -> dict[str, bytes]:
        return {p.parent.name: p.read_bytes() for p in self.work.glob(f"*/{EXCHANGES}")}


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tiny, tmp_path_factory.mktemp("calibration"))


@pytest.fixture(scope="module")
def killed(whole: Whole) -> dict[str, bytes]:
    """What had arrived when a first run was killed, in the middle of asking."""
    with pytest.raises(KeyboardInterrupt):
        whole.run(stop_at="asking int4-sym-g64")
    return whole.exchanges()


@pytest.fixture(scope="module")
def made(whole: Whole, killed: dict[str, bytes]) -> Calibration:
    """The calibration that a second run finished."""
    return whole.run()


def test_a_card_without_honest_stacks_is_refused_at_once(tmp_path: Path) -> None:
    """Before anything is loaded: nothing could be fitted in the end."""
    with pytest.raises(ConfigError, match="card tiny: calibration_stacks: empty") as refused:
        calibrate(
            make_card(calibration_stacks=[]), tmp_path / "none", work=tmp_path, seed=1,
            load_reference=FakeEngine, versions={}, sizes=SIZES, tell=lambda _line: None,
        )  # fmt: skip
    assert "\n" not in str(refused.value)


def test_a_whole_calibration_measures_every_stack(made: Calibration, whole: Whole) -> None:
    """Honest stacks, held-out ones, builds by their own names, each layer."""
    assert [(s.name, s.role, s.replies) for s in made.stacks] == [
        ("float32-batch4", "calibration", 6),
        ("bfloat16-batch4", "calibration", 6),
        ("float16-batch2", "held out", 4),
        ("fp8-channel", "variant", 3),
        ("int4-sym-g64", "variant", 3),
        *((f"drop-layer-{n}", "variant", 2) for n in range(3)),
    ]
    assert made.tensors_sha256 == whole.card.digests.tensors_sha256
    assert (made.card, made.seed, made.max_tokens, made.level) == ("tiny", 1, 24, LEVEL)
    assert made.versions == {"verifier": "test"}
    assert [c.name for c in made.classes] == [
        "fp8-class rounding", "4-bit-class rounding", "one layer dropped", "another model",
    ]  # fmt: skip


def test_a_whole_calibration_tells_honest_serving_from_faults(made: Calibration) -> None:
    """Every honest stack lies below the honest scale, held out or not; 4 bits lie above it."""
    by_name = {stack.name: stack for stack in made.stacks}
    for stack in made.stacks:
        assert stack.text is not None
        assert stack.logprob is not None
        if stack.role != "variant":
            assert stack.text.estimate < made.text.honest_scale
            assert stack.logprob.estimate < made.logprob.honest_scale
    build = by_name["int4-sym-g64"]
    assert build.text is not None
    assert build.logprob is not None
    assert build.text.lower > made.text.honest_scale
    assert build.logprob.lower > made.logprob.honest_scale


def test_the_reference_in_its_own_precision_has_the_least_noise(made: Calibration) -> None:
    """Float32 lies at the bottom of both grids, bfloat16 above it, fp8 above that."""
    scales = {s.name: s.logprob.estimate for s in made.stacks if s.logprob is not None}

    assert scales["float32-batch4"] == pytest.approx(LOGPROB_SCALES[0])
    assert scales["float32-batch4"] < scales["bfloat16-batch4"] < scales["fp8-channel"]


def test_a_calibration_goes_on_where_it_was_killed(
    made: Calibration, killed: dict[str, bytes], whole: Whole
) -> None:
    """What had arrived is kept as it was, and no probe is asked twice."""
    after = whole.exchanges()

    assert set(killed) == {"float32-batch4", "bfloat16-batch4", "fp8-channel-bfloat16-batch32"}
    assert len(after) == len(made.stacks)
    assert {name: after[name] for name in killed} == killed
    for name in after:
        asked = [attempt.probe_id for attempt in read_attempts(whole.work / name)]
        assert len(asked) == len(set(asked))


def test_a_finished_calibration_is_made_again_without_asking(
    made: Calibration, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same replies and scores give the same numbers, without the engines that made them."""
    before = whole.exchanges()
    monkeypatch.delattr("verifier.lab.calibrate.load_host")

    assert whole.run() == made
    assert whole.exchanges() == before


def test_every_engine_is_loaded_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds and layers are put into the host in place, and the host that is like the scorer
    scores; how long each part took is kept."""
    loaded: list[str] = []

    def load(weights: Path, tokenizer: Any, stack: Stack, **named: Any) -> Engine:
        loaded.append(stack.dtype)
        return load_host(weights, tokenizer, stack, **named)

    def load_reference() -> Engine:
        raise AssertionError("loaded again")

    monkeypatch.setattr("verifier.lab.calibrate.load_host", load)
    card = make_card(digests={"tensors_sha256": tensors_sha256(tiny)}, held_out_stacks=[])
    sizes = Sizes(calibration=6, held_out=4, variant=3, layer=2, max_tokens=24)
    made = calibrate(
        card, tiny, work=tmp_path / "work", load_reference=load_reference, seed=1, versions={},
        sizes=sizes, tell=lambda _line: None, scores_like=("transformers", "float32"),
    )  # fmt: skip

    assert loaded == ["bfloat16", "float32"]
    assert made.measured is not None
    assert made.measured.dtype == "float32"
    parts = [timing.part for timing in read_timings(tmp_path / "work")]
    assert parts.count("loading") == 2
    assert parts.count("asking") == parts.count("scoring") == 7


@pytest.mark.parametrize(
    ("layers", "dropped"), [(1, (0,)), (2, (0, 1)), (30, (7, 15, 22)), (62, (15, 31, 46))]
)
def test_a_fixed_few_layers_are_left_out(layers: int, dropped: tuple[int, ...]) -> None:
    """However deep a model is."""
    items = plan_items(make_card(layers=layers), seed=3, sizes=SIZES)

    assert dropped_layers(layers) == dropped
    found = [item.stack.weights for item in items if item.family == "layers"]
    assert found == [f"drop-layer-{n}" for n in dropped]


def test_replies_to_the_probes_of_another_seed_are_refused(made: Calibration, whole: Whole) -> None:
    """They would be passed off as those of this seed."""
    with pytest.raises(ConfigError, match=r"holds replies to other probes.*give another --out"):
        whole.run(seed=2)
