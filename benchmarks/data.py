"""Time of drawing dSprites and of making batches: ``python benchmarks/data.py``.

Each line is the median of several repetitions. The last column compares with the straightforward way within the same
run, so that it means the same on every machine.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from isa.data import FactorDataset, dsprites, load

BATCH = 2048


def median_time(function: Callable[[], object], repetitions: int) -> float:
    """Median time of a call in seconds, after one call that is not counted."""
    function()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def report(what: str, seconds: float, against: float | None = None) -> None:
    """Print one line of the table."""
    ratio = "" if against is None else f"{against / seconds:8.1f} times as fast"
    print(f"{what:62} {1e3 * seconds:10.2f} ms {ratio}")


def draw_on_the_fly(dataset: FactorDataset, index: torch.Tensor) -> np.ndarray:
    """Draw the images of a batch one by one, as packed rows."""
    words = np.empty((len(index), dsprites.SIDE), ">u8")
    for number, (shape, scale, angle, x, y) in enumerate(dataset.factors(index).tolist()):
        vertices = dsprites.sprite_vertices(shape, dsprites.SCALES[scale], dsprites.ORIENTATIONS[angle])
        words[number] = dsprites.sprite_rows(vertices, dsprites.POSITIONS[[x]], dsprites.POSITIONS[[y]])[0, 0]
    return words.view(np.uint8)


def straightforward(dataset: FactorDataset, index: torch.Tensor) -> torch.Tensor:
    """Unpack with shifts, into memory that torch allocates."""
    rows = dataset.storage[index]
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=rows.device)
    return ((rows[:, :, None] >> shifts) & 1).float().view(-1, *dataset.image_shape)


def main() -> None:
    """Print the table."""
    threads = torch.get_num_threads()
    print(f"{os.cpu_count()} cores, torch {torch.__version__} on {threads} threads, numpy {np.__version__}")
    dataset = load("dsprites")
    index = dataset.epoch()[:BATCH]
    assert np.array_equal(draw_on_the_fly(dataset, index), dataset.storage[index].numpy())
    assert torch.equal(straightforward(dataset, index), dataset.images(index))

    report("dSprites, all 737,280 images drawn and packed", median_time(dsprites.draw_packed, 3))
    simple = median_time(lambda: straightforward(dataset, index), 30)
    fast = median_time(lambda: dataset.images(index), 30)
    report(f"{BATCH} random images, float32", fast, simple)
    report(
        f"{BATCH} random images, bfloat16", median_time(lambda: dataset.images(index, dtype=torch.bfloat16), 30), simple
    )
    report(f"{BATCH} random images drawn on the fly, packed", median_time(lambda: draw_on_the_fly(dataset, index), 3))
    report("order of one epoch", median_time(lambda: dataset.epoch(1, seed=3), 10))
    if torch.cuda.is_available():
        there = dataset.to("cuda")
        index = index.to("cuda")
        simple = median_time(lambda: straightforward(there, index), 50)
        report(f"{BATCH} images on the accelerator", median_time(lambda: there.images(index, check=False), 50), simple)
    folder = os.environ.get("ISA_CARS3D")
    if folder:
        load("cars3d", folder)
        report("cars3d from the cache, sources' checksum included", median_time(lambda: load("cars3d", folder), 3))


if __name__ == "__main__":
    main()
