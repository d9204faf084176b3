"""The machine that this runs on: its processors, its memory and its GPUs, and how fast they are.

Asks the system and `nvidia-smi` only: no library of a GPU is loaded.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from verifier.config import Hardware
from verifier.evidence.calibration import Machine
from verifier.reference.hardware import GIB
from verifier.safety.child import plain_environment

_SMI: Final = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_SMI_SECONDS: Final = 5

#: Memory bandwidth (bytes/s) and dense bf16 arithmetic (operations/s) of GPUs, by what their names
#: hold: the makers' data sheets.
_GPUS: Final = {
    "B200": (8.0e12, 2.2e15), "H200": (4.8e12, 9.9e14), "H100": (3.35e12, 9.9e14),
    "A100": (2.0e12, 3.12e14), "L40S": (8.6e11, 3.6e14), "A10": (6e11, 1.2e14),
    "L4": (3e11, 1.2e14),
}  # fmt: skip

#: What a GPU is taken for that has at least so much memory (GiB) and no known name: the slowest
#: that is common with it.
_BY_MEMORY: Final = ((120, "H200"), (60, "A100"), (30, "L40S"), (0, "L4"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a machine is, before anything is lost to software."""

    words: str  # what was taken for what
    devices: int
    gpu: bool
    bandwidth: float  # bytes/s of one device's memory
    arithmetic: float  # operations/s of one device
    memory: float  # bytes of one device; of a machine without GPUs all of it


def this_machine() -> Machine:
    """What this machine is."""
    gpus = _find_gpus()
    return Machine(
        processor=_processor(),
        cores=_cores(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        gpu=gpus[0][0] if gpus else None,
        gpus=len(gpus),
        gpu_memory_gib=gpus[0][1] if gpus else None,
    )


def describe_machine(machine: Machine) -> str:
    """A machine in words."""
    own = f"{machine.processor}, {machine.cores} cores, {machine.memory_gib:g} GiB"
    if machine.gpu is None or machine.gpu_memory_gib is None:
        return own
    return f"{machine.gpus} x {machine.gpu} of {machine.gpu_memory_gib:g} GiB; {own}"


def speed_of(hardware: Hardware | None, machine: Machine) -> Speed:
    """How fast the GPUs are that somebody names, else those of this machine, else its cores.

    The cores are measured, in a quarter of a second.
    """
    if hardware is not None:
        return _speed_of_gpus(None, hardware.gpus * hardware.nodes, hardware.memory_gib)
    if machine.gpu is not None and machine.gpu_memory_gib is not None:
        return _speed_of_gpus(machine.gpu, machine.gpus, machine.gpu_memory_gib)
    arithmetic, bandwidth = _measure_cores()
    return Speed(
        words="this machine's processor, measured just now with the threads it may use: "
        f"{arithmetic / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s",
        devices=1, gpu=False, bandwidth=bandwidth, arithmetic=arithmetic,
        memory=machine.memory_gib * GIB,
    )  # fmt: skip


def _speed_of_gpus(name: str | None, count: int, memory_gib: float) -> Speed:
    known = next((one for one in _GPUS if name is not None and one in name), None)
    like = known or next(one for least, one in _BY_MEMORY if memory_gib >= least)
    bandwidth, arithmetic = _GPUS[like]
    found = f"{count} GPUs of {memory_gib:g} GiB" if name is None else f"{count} x {name}"
    return Speed(
        words=f"{found}, {'each' if known else 'each taken for'} an {like}: "
        f"{arithmetic / 1e12:.0f} TFLOP/s, {bandwidth / 1e12:.2g} TB/s",
        devices=count, gpu=True, bandwidth=bandwidth, arithmetic=arithmetic,
        memory=memory_gib * GIB,
    )  # fmt: skip


def _measure_cores() -> tuple[float, float]:
    """Operations and bytes per second of this process's cores: the best of a few tries."""
    size = 1024
    matrix = np.full((size, size), 0.5, np.float32)
    wide = np.ones((4 * size, 4 * size), np.float32)
    row = np.ones(4 * size, np.float32)

    arithmetic = 2 * size**3 / _least_s(lambda: matrix @ matrix)
    return arithmetic, wide.nbytes / _least_s(lambda: wide @ row)


def _least_s(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _find_gpus() -> list[tuple[str, float]]:
    """Names and memory (GiB) of the GPUs that NVIDIA's own tool sees; [] where it is not there."""
    if shutil.which(_SMI[0]) is None:
        return []
    found = []
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        said = subprocess.run(  # noqa: S603 - a fixed command
            _SMI,
            capture_output=True,
            text=True,
            timeout=_SMI_SECONDS,
            check=True,
            env=plain_environment(),
        )
        for line in said.stdout.splitlines():
            name, _, mib = line.rpartition(",")
            found.append((name.strip(), round(float(mib) / 1024, 1)))
    return found


def _processor() -> str:
    """The name of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            label, _, name = line.partition(":")
            if label.strip() == "model name" and name.strip():
                return name.strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
