"""What a calibration will do and take, told before anything is fetched."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from command_line import _plain_surroundings, call
from fakes_card import write_card

from verifier.cli.common import THREADS, share_cores
from verifier.config import Hardware
from verifier.evidence.calibration import Machine
from verifier.lab.calibrate import Sizes, plan_items
from verifier.lab.forecast import Forecast, describe_forecast, forecast, lacking_room
from verifier.lab.timings import Clock, read_timings
from verifier.reference.cards import Card, load_card
from verifier.reference.machine import Speed, speed_of, this_machine
from verifier.shipped import shipped

__all__ = ["_plain_surroundings"]  # a fixture

SIZES = Sizes()
NOBODY = Machine(processor="none", cores=2, memory_gib=8)

#: A machine slow and small enough that nothing on it takes no time.
CORES = Speed(
    words="two cores", devices=1, gpu=False, bandwidth=1e10, arithmetic=1e11, memory=8 * 2**30
)


def foresee(card: Card, work: Path, **changes: Any) -> Forecast:
    given: dict[str, Any] = {
        "scores_like": ("transformers", "float32"), "speed": CORES, "hardware": None,
        "engine_args": card.engine_args, "work": work, "fetches": True, "refusals": (),
    }  # fmt: skip
    return forecast(card, plan_items(card, seed=1, sizes=SIZES), **(given | changes))


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_given: object, **_named: object) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("_no_network")
def test_a_large_model_on_eight_gpus_is_foreseen_at_once(tmp_path: Path) -> None:
    """Memory, minutes, tokens and what this machine lacks, with nothing fetched or written."""
    start = time.monotonic()
    ended = call(
        "calibrate", "minimax-m2.7", "--dry-run", "--gpus", "8", "--gpu-memory", "80",
        "--out", tmp_path / "work",
    )  # fmt: skip

    assert ended.status == 0, ended.err
    assert time.monotonic() - start < 5
    assert "calibration vllm-bfloat16-batch32: 128 replies, 6,144 tokens at most" in ended.out
    assert "in all: 608 replies, 29,184 tokens at most" in ended.out
    assert "1 load of an engine" in ended.out
    assert "230.0 GB to fetch" in ended.out
    assert "memory: 68.8 GiB of each of 4 GPUs" in ended.out
    assert "vLLM takes 73.6 of 80 GiB and needs 68.8" in ended.out
    assert "time left: " in ended.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_network")
def test_the_forecast_is_json_too(tmp_path: Path) -> None:
    """The same values."""
    ended = call(
        "calibrate", "minimax-m2.7", "--dry-run", "--gpus", "8", "--gpu-memory", "80", "--json",
        "--out", tmp_path / "work",
    )  # fmt: skip
    found = json.loads(ended.out)

    assert (found["card"], found["refusals"], found["loads"]) == ("minimax-m2.7", [], 1)
    assert found["minutes"] > found["once"] > 0
    assert found["memory"]["layout"]["tensor"] == 4
    assert {"stack", "role", "replies", "minutes"} <= found["steps"][0].keys()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--gpus", "2", "--gpu-memory", "80"), "asks for 4 GPUs"),
        (("--gpus", "8", "--gpu-memory", "40"), "more than the 36.8 GiB that vLLM may use"),
        (("--gpus", "8"), "--gpus and --gpu-memory: one without the other"),
        (("--engine", "remote"), "--engine: remote puts no variants in place"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.usefixtures("_no_network")
def test_what_cannot_fit_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    """Before anything is fetched, in one line."""
    for dry in ((), ("--dry-run",)):
        ended = call("calibrate", "minimax-m2.7", "--out", tmp_path / "work", *dry, *arguments)

        assert ended.status == 2
        assert complaint in ended.complaint
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be fetched and what is kept count together where they share a disk."""
    found = foresee(load_card("smollm2-135m-instruct"), tmp_path / "work")
    whole = found.work_bytes + (found.fetched_bytes or 0)
    usage = type(shutil.disk_usage(tmp_path))
    lacking = {}
    for free in (whole, whole - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: usage(0, 0, free))
        lacking[free] = lacking_room(found, work=tmp_path / "work", cache=tmp_path / "a" / "b")
    (line,) = lacking[whole - 1]

    assert found.work_bytes > 0
    assert found.fetched_bytes
    assert lacking[whole] == ()
    assert "of its disk are free" in line
    assert not list(tmp_path.iterdir())


def test_threads_of_a_run_file_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the surroundings say; without them those hold."""
    monkeypatch.setenv(THREADS, "3")

    assert share_cores(1) == 3
    assert share_cores(1, threads=7) == 7
    assert os.environ[THREADS] == "7"


def test_arguments_and_hardware_of_a_run_file_hold(tmp_path: Path) -> None:
    """Tensor and expert parallelism over what the card says; one of another card is refused."""
    ours = shipped("configs") / "minimax-m2.7-8-gpus.yaml"
    ended = call(
        "calibrate", "minimax-m2.7", "--dry-run", "--run-file", ours, "--out", tmp_path / "work",
    )  # fmt: skip
    other = call("calibrate", "qwen3-8b", "--dry-run", "--run-file", ours)

    assert "memory: 36.2 GiB of each of 8 GPUs" in ended.out
    assert "reference.card: minimax-m2.7, but qwen3-8b is to be calibrated" in other.complaint


def test_a_run_file_of_a_pack_alone_is_none_to_calibrate_by(tmp_path: Path) -> None:
    """It has no weights: one line, before its pack is looked for."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "endpoint: {base_url: 'http://127.0.0.1:1/v1', model: m}\n"
        "reference: {pack: nowhere.pack}\nout: run\n"
    )
    ended = call("calibrate", "qwen3-8b", "--dry-run", "--run-file", path)

    assert ended.status == 2
    assert "reference: a pack alone, which has no weights; give a run file" in ended.complaint


def test_a_card_that_cannot_be_calibrated_says_all_of_it() -> None:
    """Also without a machine to do it on."""
    ended = call("calibrate", "gpt-oss-20b", "--dry-run", "--gpus", "8", "--gpu-memory", "80")

    assert ended.status == 2
    assert "precision: published in mxfp4" in ended.complaint


def test_a_model_larger_than_the_machine_is_refused(tmp_path: Path) -> None:
    """By what its weights take in float32."""
    found = foresee(load_card("qwen3-8b"), tmp_path)

    (refusal,) = found.refusals
    assert "GiB for weights in float32, but this machine has 8 GiB" in refusal


def test_a_card_without_facts_is_not_estimated(tmp_path: Path) -> None:
    """Question marks instead of numbers."""
    found = foresee(load_card(str(write_card(tmp_path))), tmp_path)

    assert (found.minutes, found.once, found.fetched_bytes) == (None, None, None)
    assert "time left: ? minutes" in "\n".join(describe_forecast(found))


def test_parts_that_were_measured_correct_the_estimate(tmp_path: Path) -> None:
    """Twice as slow so far: twice as long for the rest; what is done takes no more."""
    card = load_card("smollm2-135m-instruct")
    before = foresee(card, tmp_path)
    clock = Clock(tmp_path)
    with clock.times("loading"):
        time.sleep(0.01)
    with clock.times("scoring", "never-measured"):
        time.sleep(0.01)
    after = foresee(card, tmp_path)

    assert [timing.part for timing in read_timings(tmp_path)] == ["loading", "scoring"]
    assert before.measured == ()
    assert after.measured == ("loading",)
    assert after.minutes is not None
    assert before.minutes is not None
    assert after.minutes < before.minutes


def test_a_part_that_breaks_off_is_not_timed(tmp_path: Path) -> None:
    """It would pass for a quick one."""

    def stopped() -> NoReturn:
        with Clock(tmp_path).times("asking", "a"):
            time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert read_timings(tmp_path) == []


def test_more_gpus_take_less_time(tmp_path: Path) -> None:
    """By as many as compute one token together."""
    card = load_card("minimax-m2.7")
    few, many = (
        foresee(
            card, tmp_path, scores_like=("vllm", "bfloat16"),
            speed=speed_of(Hardware(gpus=8, memory_gib=80), NOBODY),
            engine_args={"tensor_parallel_size": n},
        ).once
        for n in (4, 8)
    )  # fmt: skip
    assert few is not None
    assert many is not None
    assert many < few


def test_this_machine_is_known() -> None:
    """Its processor has a name, and computes something."""
    found = this_machine()
    speed = speed_of(None, found.model_copy(update={"gpu": None}))

    assert found.processor
    assert found.cores >= 1
    assert found.memory_gib > 0
    assert speed.arithmetic > 1e8
    assert speed.bandwidth > 1e7
    assert speed_of(Hardware(gpus=2, memory_gib=141), found).words.startswith("2 GPUs of 141 GiB")
