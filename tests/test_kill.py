"""Sweeps killed at any moment lose nothing that was recorded, and two over one specification share its runs."""

import itertools
import multiprocessing
import os
import resource
import signal
import sys
import threading
from pathlib import Path

import torch
from safetensors import safe_open
from tiny_sweep import without_times, write_spec
from tqdm import tqdm

from isa import cli, engine, latents, results
from isa.sweep import Spec, read_records

SPEC = """\
title: Runs with a checkpoint each, of which one continues the first
every: {dataset: cars3d, model: small, latent_dim: 3, batch_size: 16, steps: 8, precision: fp32}
tiers:
  1:
    - {objective: beta-vae, beta: [1, 4], seeds: 2}
    - {objective: isa-vae, subspaces: [2, 1]}
    - {objective: beta-vae, beta: 1, steps: 16}
"""
server = multiprocessing.get_context("forkserver")  # imports torch once
server.set_forkserver_preload(["isa.cli", "isa.cluster", "isa.packs", "torch.fx.experimental.symbolic_shapes"])


def run(spec: Path, log: Path, moment: int, largest_file: int) -> None:
    """Sweep as the command ``isa sweep`` does, with a checkpoint every five steps; kill this process at a moment.

    Moment 2 k is before file k is put into its place, 2 k + 1 after that; a negative one never comes.
    """
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # not one between processes, which a killed process would leave behind
    results.commit = lambda: None  # it may change during the test
    fit, replace, moments = engine.fit, os.replace, itertools.count()
    engine.fit = lambda *args, **options: fit(*args, **options | {"checkpoint_every": 5, "checkpoint_seconds": 0})

    def kill_or_replace(source: str, target: str) -> None:
        for action in (lambda: replace(source, target), lambda: None):
            if next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            action()

    os.replace = kill_or_replace
    sys.exit(cli.main(["sweep", str(spec), "--device", "cpu"]))


class Sweep:
    """A sweep over a specification in a folder, started any number of times."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = Spec.read(write_spec(folder, SPEC))
        self.log = folder.with_suffix(".log")

    def start(self, moment: int = -1, largest_file: int = resource.RLIM_INFINITY) -> multiprocessing.Process:
        process = server.Process(target=run, args=(self.spec.path, self.log, moment, largest_file))
        process.start()
        return process

    def hashes(self) -> list[str]:
        """Return the hash in every line of the table, with repetitions; all files of the sweep must be whole."""
        for path in self.folder.rglob("[!.]*.npz"):
            latents.Portrait.load(path)
        for path in self.folder.rglob("[!.]*.safetensors"):
            safe_open(path, "pt")
        lines = self.spec.record.read_text("utf-8").splitlines() if read_records(self.spec.record) else []
        return [line.partition(",")[0] for line in lines[1:]]

    def left(self) -> tuple[dict[str, dict], dict[str, bytes]]:
        """Return the records without times by hash, and the portraits by name."""
        records = {record["hash"]: without_times(record) for record in read_records(self.spec.record)}
        return records, {path.name: path.read_bytes() for path in (self.folder / "portraits").glob("[!.]*.npz")}


def test_killed_sweeps_record_every_run_once_and_as_an_undisturbed_one(tmp_path):
    sweep, undisturbed = Sweep(tmp_path / "disturbed"), Sweep(tmp_path / "undisturbed")
    reference = undisturbed.start()
    recorded: list[str] = []
    for moments in ((5,), (2, 9), (4, 7)):
        processes = [sweep.start(moment) for moment in moments]
        for process in processes:
            process.join()
            assert process.exitcode == -signal.SIGKILL, sweep.log.read_text()
        assert sweep.hashes()[: len(recorded)] == recorded, "a recorded run was lost"
        recorded = sweep.hashes()
    killed, survivor = sweep.start(1), sweep.start()
    for process in (killed, survivor, reference):
        process.join()
    assert survivor.exitcode == reference.exitcode == 0, sweep.log.read_text()
    assert sorted(sweep.hashes()) == sorted(run.hash for run in sweep.spec.runs())
    assert sweep.left() == undisturbed.left()


def test_full_disk_ends_a_sweep_in_one_line_and_loses_nothing(tmp_path):
    sweep = Sweep(tmp_path / "full")
    sweep.start(largest_file=4_000).join()  # less than a checkpoint, a portrait or all records
    (line,) = sweep.log.read_text().splitlines()
    assert line.startswith("isa: error: ") and str(sweep.folder) in line
    sweep.start().join()
    assert sorted(sweep.hashes()) == sorted(run.hash for run in sweep.spec.runs())
