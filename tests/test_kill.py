"""Sweeps killed at any moment lose nothing that was recorded, and two over one specification share its runs."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import resource
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_sweep import without_times, write_spec
from tqdm import tqdm

from isa import cli, engine, latents, results
from isa.sweep import Spec, read_records

SPEC = """\
title: Runs that take a tenth of a second
every: {dataset: cars3d, model: small, latent_dim: 3, batch_size: 16, steps: 40, precision: fp32}
tiers:
  1:
    - {objective: beta-vae, beta: [1, 4], seeds: 2}
    - {objective: isa-vae, subspaces: [2, 1], seeds: 2}
    - {objective: beta-vae, beta: 1, steps: 80} # a longer run of the first run's course
"""
server = multiprocessing.get_context("forkserver")  # imports torch once
server.set_forkserver_preload(["isa.cli", "isa.cluster", "isa.local"])


def run(spec: Path, log: Path, largest_file: int) -> None:
    """Sweep as the command ``isa sweep`` does, with a checkpoint every five steps and a limit on the size of files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # not one between processes, which a killed process would leave behind
    results.commit = lambda: None  # it may change during the test
    fit = engine.fit
    engine.fit = lambda *args, **options: fit(*args, **options | {"checkpoint_every": 5, "checkpoint_seconds": 0})
    sys.exit(cli.main(["sweep", str(spec), "--device", "cpu"]))


class Sweep:
    """A sweep over a specification in a folder, started as often as one likes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.spec = Spec.read(write_spec(folder, SPEC))
        self.log = folder.with_suffix(".log")
        self.processes: list = []

    def start(self, largest_file: int = resource.RLIM_INFINITY) -> multiprocessing.process.BaseProcess:
        process = server.Process(target=run, args=(self.spec.path, self.log, largest_file))
        process.start()
        self.processes.append(process)
        return process

    def wait_for_changes(self, count: int) -> None:
        """Return when the files of the sweep have changed this number of times, or a process has ended."""
        before = self.state()
        while count and all(process.is_alive() for process in self.processes):
            time.sleep(0.002)
            after = self.state()
            count -= after != before
            before = after

    def state(self) -> dict[Path, tuple[int, int]]:
        """Return the size and the time of modification of every file."""
        found = {}
        for path in self.folder.rglob("*"):
            try:
                found[path] = (path.stat().st_size, path.stat().st_mtime_ns)
            except FileNotFoundError:
                continue
        return found

    def kill(self) -> None:
        """Kill all processes."""
        while self.processes:
            process = self.processes.pop()
            process.kill()
            process.join()

    def hashes(self) -> list[str]:
        """Return the hash in every line of the table, with repetitions; all of its files must be whole."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a line that is cut off
            read_records(self.spec.record)
        for path in self.folder.rglob("*"):
            if not path.name.startswith(".") and path.suffix == ".npz":
                latents.Portrait.load(path)
            if not path.name.startswith(".") and path.suffix == ".safetensors":
                safe_open(path, "pt")
        if not self.spec.record.exists():
            return []
        with open(self.spec.record, newline="", encoding="utf-8") as file:
            return [row["hash"] for row in csv.DictReader(file)]

    def left(self) -> tuple[dict[str, dict], dict[str, bytes]]:
        """Return the records without times by hash, and the portraits by name."""
        records = {record["hash"]: without_times(record) for record in read_records(self.spec.record)}
        return records, {path.name: path.read_bytes() for path in (self.folder / "portraits").glob("[!.]*.npz")}


@pytest.fixture
def sweep(tmp_path):
    sweep = Sweep(tmp_path / "disturbed")
    yield sweep
    sweep.kill()


def test_killed_sweeps_record_every_run_once_and_as_an_undisturbed_one(sweep, tmp_path):
    draw = random.Random(0)
    recorded: list[str] = []
    for number in range(5):
        for _ in range(1 + number % 2):
            sweep.start()
        sweep.wait_for_changes(draw.randint(1, 20))
        sweep.kill()
        assert sweep.hashes()[: len(recorded)] == recorded, "a recorded run was lost"
        recorded = sweep.hashes()
    killed, survivor = sweep.start(), sweep.start()
    sweep.wait_for_changes(draw.randint(1, 10))
    killed.kill()
    survivor.join()
    assert survivor.exitcode == 0, sweep.log.read_text()
    assert sorted(sweep.hashes()) == sorted(run.hash for run in sweep.spec.runs())
    undisturbed = Sweep(tmp_path / "undisturbed")
    undisturbed.start().join()
    (records, portraits), (other_records, other_portraits) = sweep.left(), undisturbed.left()
    assert records == other_records
    assert portraits == other_portraits


def test_full_disk_ends_a_sweep_in_one_line_and_loses_nothing(sweep):
    sweep.start(largest_file=4_000).join()  # less than a checkpoint, a portrait or all records
    (line,) = sweep.log.read_text().splitlines()
    assert line.startswith("isa: error: ") and str(sweep.folder) in line
    sweep.start().join()
    assert sorted(sweep.hashes()) == sorted(run.hash for run in sweep.spec.runs())
