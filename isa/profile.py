"""Where the time of a training step goes: a report on 30 steps, kernel by kernel."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from isa import engine, local, packs
from isa._files import write_atomically
from isa.data import FactorDataset
from isa.run import Run

__all__ = ["profile_steps", "write_profile"]

_WARM, _TIMED, _END = 50, 100, 130  # steps until the first look, the end of the timed and that of the profiled steps
_CLOCKS = "nvidia-smi --query-gpu=name,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu --format=csv"


def profile_steps(runs: Sequence[Run], dataset: FactorDataset) -> str:
    """Train runs of one ``pack_key`` for 130 steps, and report the time of a step, clocks, and a table by kernel.

    Nothing is recorded. The images are on the device of the training.
    """
    cuda = dataset.device.type == "cuda"
    profiler = torch.profiler.profile(acc_events=True)
    looks, clocks = {0: time.perf_counter()}, []

    def look(step: int, terms: object) -> None:
        looks[step] = time.perf_counter()
        if step == _TIMED and cuda:
            clocks.append(f"memory: {torch.cuda.max_memory_allocated(dataset.device) / 2**30:.1f} GiB at most")
            clocks.append(subprocess.run(_CLOCKS.split(), capture_output=True, text=True).stdout)
        if step == _TIMED:
            profiler.start()
        elif step == _END:
            profiler.stop()

    run, short = runs[0], [run.replace(steps=_END) for run in runs]
    compile = run.total_steps >= engine.COMPILE_FROM
    (trained,) = engine.fit(short, dataset, compile=compile, progress=False, callback=look)
    ms = 1e3 * (looks[_TIMED] - looks[_WARM]) / (_TIMED - _WARM)
    lines = [
        f"{run.dataset}, {run.objective}, prior {run.prior}, {run.model}, {run.batch_size:,} images a step",
        f"{len(runs)} runs at once, {'compiled' if trained.compiled else 'not compiled'}: {ms:.2f} ms a step, "
        f"{ms / len(runs):.3f} ms per run and step; first {_WARM} steps {looks[_WARM] - looks[0]:.1f} s",
        *clocks,
        profiler.key_averages().table(sort_by=f"self_{'device' if cuda else 'cpu'}_time_total", row_limit=40),
    ]
    return "\n".join(lines)


def write_profile(path: Path, jobs: Iterable[packs.Job], size: int, device: torch.device, cache: Any) -> None:
    """Write a report on each kind of run, in packs as they would be trained."""
    sections: dict[tuple, str] = {}
    for pack in packs.divide(jobs, size):
        if pack[0].kind not in sections:
            runs = [end.run for end in packs.longest(pack)]
            sections[pack[0].kind] = profile_steps(runs, local.images(runs[0], cache, device))
    write_atomically(path, "\n".join(sections.values()).encode())
