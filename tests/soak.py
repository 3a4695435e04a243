"""Faults, many times over: sweeps that are killed, robbed of their disk or doubled, and what they record nevertheless.

``make soak`` runs ``python tests/soak.py``, which writes a row for each kind of fault to ``runs/soak.csv``; the tests
run the same at a smaller scale (``tests/test_faults.py``). A fault disturbs sweeps of short runs (``tiny_sweep``) and
starts them again, until each sweep is through. What they left is then held against an undisturbed sweep:

- *recorded once*: runs that stand in the table exactly once, and were not reported twice;
- *equal*: runs whose record, times apart, and whose portrait are those of the undisturbed sweep to the last bit;
- *torn*: records, portraits and checkpoints that could not be read whole at any look, which is taken after each
  disturbance. What a killed process leaves under a temporary name is no such file: nothing reads it.

Sweeps are forked from this process, which has imported torch and trains nothing itself, so that a killed one costs
little more than what it did. Whatever is put in the way of a sweep is put there in the forked process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import csv
import ctypes
import functools
import io
import itertools
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: threads do not survive a fork

import tiny_sweep
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from isa import cli, cluster, engine, latents, local, results, sweep
from isa._files import write_atomically, write_table
from isa.data import FactorDataset
from isa.data.cache import cached_array

ROOT = Path(__file__).resolve().parent.parent

SPEC = """\
title: Runs that take a tenth of a second
every: {{dataset: cars3d, model: small, latent_dim: 3, batch_size: 16, steps: 40, precision: fp32}}
tiers:
  1:
    - {{objective: beta-vae, beta: [1, 4], seeds: {seeds}}}
    - {{objective: isa-vae, subspaces: [2, 1], seeds: {seeds}}}
    - {{objective: beta-vae, beta: 1, steps: 80}} # a longer run of the first run's course
"""

_fork = multiprocessing.get_context("fork")
_libc = ctypes.CDLL(None, use_errno=True)


class Skipped(Exception):
    """The fault cannot be brought about here; why is said."""


@dataclass
class Row:
    """What one kind of fault did, a row of the table."""

    fault: str
    disturbances: int = 0
    sweeps: int = 0
    """Sweeps that came through."""
    runs: int = 0
    recorded_once: int = 0
    equal: int = 0
    torn: int = 0
    seconds: float = 0.0
    skipped: str = ""
    """Why there are no figures."""
    commit: str | None = None
    platform: str = f"{platform.system()} {platform.machine()}"
    torch: str = torch.__version__

    @property
    def is_well(self) -> bool:
        return self.recorded_once == self.equal == self.runs and not self.torn


# ---------------------------------------------------------------------------------------------------------------------
# Sweeps in processes of their own


class Sweep:
    """One sweep in a folder of its own: its processes, and a look at what they left."""

    def __init__(self, folder: Path, logs: Path, text: str) -> None:
        folder.mkdir(parents=True)
        self.spec = sweep.Spec.read(tiny_sweep.write_spec(folder, text))
        self.out, self.err = logs / f"{folder.name}.out", logs / f"{folder.name}.err"

    def start(self, *arguments: str, before: Callable[[], object] = lambda: None) -> multiprocessing.Process:
        """Start the command ``isa sweep`` in a forked process, which first calls ``before``."""

        def command() -> int:
            for stream, path in ((1, self.out), (2, self.err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream)
            quicken()
            before()
            return cli.main(["sweep", str(self.spec.path), "--device", "cpu", *arguments])

        return start(command)

    def finish(self, *arguments: str, before: Callable[[], object] = lambda: None) -> int:
        """Run the command to its end; returns its exit status."""
        process = self.start(*arguments, before=before)
        process.join()
        return process.exitcode

    @property
    def lines(self) -> list[list[str]]:
        """The table's lines after the first, as they stand; each begins with the hash of its run."""
        if not self.spec.record.exists():
            return []
        return list(csv.reader(io.StringIO(self.spec.record.read_text(encoding="utf-8"))))[1:]

    def torn(self) -> list[str]:
        """Name the files that cannot be read whole."""
        found = []

        def read(path: Path, of: Callable[[Path], object]) -> None:
            try:
                of(path)
            except Exception as error:
                if path.exists():  # otherwise a sweep that runs has removed it
                    found.append(f"{path.name}: {error}")

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(self.spec.record, sweep.read_records)
        for path in self.portraits():
            read(path, latents.Portrait.load)
        for path in (self.spec.work / "checkpoints").glob("[!.]*"):
            read(path, load_file)
        return found

    def portraits(self) -> list[Path]:
        """All portraits under their own names."""
        return sorted((self.spec.path.parent / "portraits").glob("[!.]*"))

    def results(self) -> dict[str, Any]:
        """What the sweep is to leave, whatever disturbs it: by a run's hash, its record and its portrait's bytes."""
        portraits = {path.stem: path.read_bytes() for path in self.portraits()}
        records = sweep.read_records(self.spec.record)
        return {one["hash"]: (tiny_sweep.without_times(one), portraits.get(one["key"])) for one in records}

    def said(self) -> list[str]:
        """Lines on stderr that are not the command's own, as those of a traceback."""
        lines = self.err.read_text(encoding="utf-8").splitlines() if self.err.exists() else []
        return [line for line in lines if not line.startswith(("isa: error: ", "isa: warning: "))]


def start(work: Callable[[], int | None]) -> multiprocessing.Process:
    """Start a function in a forked process, which ends with this one; its value is the exit status."""

    def child() -> None:
        if hasattr(_libc, "prctl"):
            _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also where this process is killed itself
        sys.exit(work())

    process = _fork.Process(target=child)
    process.start()
    return process


def killed_after(process: multiprocessing.Process, seconds: float) -> bool:
    """Kill a process after a time with SIGKILL; returns whether it still ran."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def quicken() -> None:
    """Let a sweep in this process write a checkpoint every five steps, and look after other sweeps all the time."""
    engine.fit = functools.partial(engine.fit, checkpoint_every=5)
    local._CHECKPOINT_SECONDS = 0.0
    local._POLL_SECONDS = 0.02
    cluster._POLL_SECONDS = 0.1
    results.commit = lambda: None  # asks git each time, and others may commit meanwhile


# ---------------------------------------------------------------------------------------------------------------------
# The bench


class Bench:
    """Where faults are brought about: an undisturbed sweep, and the disturbed ones that are held against it."""

    def __init__(self, folder: Path, *, times: int, seeds: int, seed: int, seconds: float, progress: bool) -> None:
        self.folder = folder
        self.logs = folder / "logs"  # what a sweep says, on no disk that fills up
        self.logs.mkdir()
        self.times = times
        self.text = SPEC.format(seeds=seeds)
        self.random = random.Random(seed)
        self.most = seconds
        self.progress = progress
        self.numbers = itertools.count()
        self.problems: list[str] = []
        """What went otherwise than it must, in words."""
        undisturbed = self.sweep()
        began = time.monotonic()
        if undisturbed.finish() or undisturbed.torn() or undisturbed.said():
            raise RuntimeError(f"the undisturbed sweep failed: {undisturbed.err.read_text()}")
        self.seconds = time.monotonic() - began
        self.reference = undisturbed.results()
        if set(self.reference) != {run.hash for run in undisturbed.spec.runs()}:
            raise RuntimeError("the undisturbed sweep did not record all its runs")

    def sweep(self) -> Sweep:
        """A sweep of which nothing is done yet."""
        return Sweep(self.folder / f"sweep{os.getpid()}-{next(self.numbers)}", self.logs, self.text)

    def moment(self) -> float:
        """A moment within the time of an undisturbed sweep, in seconds, all as probable."""
        return self.random.uniform(0, self.seconds)

    def disturbances(self, row: Row, times: int) -> Iterator[None]:
        """Count the disturbances of a fault, up to a number and a time; it is for the loop to add them to the row."""
        end = time.monotonic() + self.most
        with tqdm(total=times, desc=row.fault, disable=not self.progress) as bar:
            while row.disturbances < times and (time.monotonic() < end or not row.disturbances):
                yield
                bar.update(row.disturbances - bar.n)

    def look(self, row: Row, sweep_: Sweep) -> None:
        """Count what is torn."""
        torn = sweep_.torn()
        row.torn += len(torn)
        self.problems += [f"{row.fault}: torn: {one}" for one in torn]

    def expect(self, row: Row, holds: object, what: str) -> None:
        """Take note of what does not hold."""
        if not holds:
            self.problems.append(f"{row.fault}: {what}")

    def judge(self, row: Row, through: Sweep) -> None:
        """Hold what a sweep has left against the undisturbed one."""
        self.look(row, through)
        found = through.results()
        lines = collections.Counter(line[0] for line in through.lines)
        keys = {run.key: run.hash for run in through.spec.runs()}
        told = collections.Counter(line.split()[0] for line in through.out.read_text().splitlines() if " MIG " in line)
        twice = {keys[key] for key, count in told.items() if key in keys and count > 1}
        row.sweeps += 1
        row.runs += len(self.reference)
        row.recorded_once += sum(lines[name] == 1 and name not in twice for name in self.reference)
        row.equal += sum(found.get(name) == result for name, result in self.reference.items())
        self.expect(row, not set(lines) - set(self.reference), "a run is recorded that nothing names")
        said = through.said()
        self.expect(row, not said, f"on stderr there are {len(said)} lines that end with: {''.join(said[-1:])}")
        shutil.rmtree(through.spec.path.parent)


# ---------------------------------------------------------------------------------------------------------------------
# Kills


def killed_at_random(bench: Bench, row: Row) -> None:
    """SIGKILL at moments drawn evenly over the time that an undisturbed sweep takes."""
    disturbed = bench.sweep()
    for _ in bench.disturbances(row, bench.times):
        process = disturbed.start()
        if killed_after(process, bench.moment()):
            row.disturbances += 1
            bench.look(row, disturbed)
        else:
            bench.expect(row, process.exitcode == 0, f"a sweep ended with {process.exitcode}")
            bench.judge(row, disturbed)
            disturbed = bench.sweep()
    bench.expect(row, disturbed.finish() == 0, "a sweep that was killed does not go on")
    bench.judge(row, disturbed)


def _named(path: str | os.PathLike[str]) -> str | None:
    """What a path is to a sweep; None where it is nothing that is kept."""
    name = os.path.basename(os.fspath(path))
    kinds = {"checkpoint": ".checkpoint.safetensors", "portrait": ".npz", "record": "tiny.csv"}
    folders = {"portraits": "folder of portraits", "checkpoints": "folder of checkpoints"}
    if os.path.isdir(path):
        return folders.get(name, "folder of records")
    return next((kind for kind, part in kinds.items() if part in name), None)


def watch(happens: Callable[[str, int | None], object]) -> None:
    """Call a function before this process syncs, renames or removes what it keeps, with what it is about to do."""
    fsync, replace, unlink = os.fsync, os.replace, os.unlink

    def on_fsync(file: int) -> None:
        happens(f"sync of a {_named(os.readlink(f'/proc/self/fd/{file}'))}", file)
        fsync(file)

    def on_replace(source: Any, target: Any) -> None:
        happens(f"rename of a {_named(target)}", None)
        replace(source, target)

    def on_unlink(path: Any, **options: Any) -> None:
        if not os.path.basename(os.fspath(path)).startswith(".") and _named(path):
            happens(f"removal of a {_named(path)}", None)
        unlink(path, **options)

    os.fsync, os.replace, os.unlink = on_fsync, on_replace, on_unlink


def instants(bench: Bench) -> list[str]:
    """What a sweep does to files that it keeps, in the order in which it does each first."""
    watched = bench.sweep()
    trace = watched.spec.path.parent / "trace"

    def before() -> None:
        file = open(trace, "a", buffering=1)
        watch(lambda what, descriptor: file.write(f"{what}\n"))

    if watched.finish(before=before):
        raise RuntimeError(f"a watched sweep failed: {watched.err.read_text()}")
    return list(dict.fromkeys(trace.read_text().splitlines()))


def killed_at_instants(bench: Bench, row: Row) -> None:
    """SIGKILL just before each kind of sync, rename and removal, and in the midst of each kind of write."""
    kinds = instants(bench)
    writes = [kind.replace("sync", "write") for kind in kinds if kind.startswith("sync") and "folder" not in kind]
    turns = itertools.cycle(kinds + writes)
    disturbed = bench.sweep()
    for _ in bench.disturbances(row, max(bench.times // 2, len(kinds + writes))):
        chosen, left = next(turns), bench.random.randint(1, 3)

        def before(chosen: str = chosen, left: int = left) -> None:
            def happens(what: str, file: int | None) -> None:
                nonlocal left
                if what != chosen.replace("write", "sync"):
                    return
                left -= 1
                if not left:
                    if "write" in chosen:  # leave the half of it
                        os.truncate(f"/proc/self/fd/{file}", os.fstat(file).st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)

            watch(happens)

        status = disturbed.finish(before=before)
        if status == -signal.SIGKILL:
            row.disturbances += 1
            bench.look(row, disturbed)
        else:
            bench.expect(row, status == 0, f"a sweep ended with {status}")
            bench.judge(row, disturbed)
            disturbed = bench.sweep()
    bench.expect(row, disturbed.finish() == 0, "a sweep that was killed does not go on")
    bench.judge(row, disturbed)


def at_once(bench: Bench, row: Row, count: int) -> None:
    """Several sweeps over one specification start together, and one of them is killed at a random moment."""
    for _ in bench.disturbances(row, max(1, bench.times // 5)):
        disturbed = bench.sweep()
        processes = [disturbed.start() for _ in range(count)]
        row.disturbances += killed_after(processes.pop(), bench.moment() / 2)
        bench.look(row, disturbed)
        for process in processes:
            process.join()
            bench.expect(row, process.exitcode == 0, f"a sweep ended with {process.exitcode}")
        bench.judge(row, disturbed)


def two_at_once(bench: Bench, row: Row) -> None:
    """Two sweeps over one specification."""
    at_once(bench, row, 2)


def four_at_once(bench: Bench, row: Row) -> None:
    """Four sweeps over one specification."""
    at_once(bench, row, 4)


def clock_set_back(bench: Bench, row: Row) -> None:
    """The clock goes back by an hour every few steps, and by a day between a kill and the next start."""

    def before() -> None:
        began, now, now_ns = time.monotonic(), time.time, time.time_ns

        def hours() -> int:
            return int((time.monotonic() - began) * 20)

        time.time = lambda: now() - 3600 * hours()
        time.time_ns = lambda: now_ns() - 3600 * 10**9 * hours()

    disturbed = bench.sweep()
    for _ in bench.disturbances(row, max(1, bench.times // 5)):
        process = disturbed.start(before=before)
        if not killed_after(process, bench.moment()):
            bench.judge(row, disturbed)
            disturbed = bench.sweep()
            continue
        bench.look(row, disturbed)
        for path in disturbed.spec.path.parent.rglob("*"):
            tomorrow = path.stat().st_mtime + 86_400
            os.utime(path, (tomorrow, tomorrow))
        row.disturbances += 1
    bench.expect(row, disturbed.finish(before=before) == 0, "a sweep does not go on when the clock was set back")
    bench.judge(row, disturbed)


# ---------------------------------------------------------------------------------------------------------------------
# Disks


def _mounted(folder: Path, size: str) -> None:
    """Put a small file system of this process alone over a folder; it goes with the process and its children.

    Raises
    ------
    Skipped
        Where this process may not.
    """
    if not hasattr(_libc, "unshare") or _libc.unshare(0x00020000):  # CLONE_NEWNS
        raise Skipped(f"mounts of its own are not allowed here: {os.strerror(ctypes.get_errno())}")
    folder.mkdir(parents=True, exist_ok=True)
    for command in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]):
        _mount(*command)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"mount is not allowed here: {' '.join(done.stderr.split())}")


def apart(bench: Bench, row: Row, work: Callable[[Bench, Row], None]) -> None:
    """Do what mounts in a process of its own, and take over what it found."""
    receiver, sender = _fork.Pipe(duplex=False)

    def inside() -> None:
        bench.problems.clear()
        try:
            work(bench, row)
            sender.send((asdict(row), bench.problems))
        except Skipped as why:
            sender.send((asdict(row) | {"skipped": str(why)}, []))

    process = start(inside)
    sender.close()
    try:
        found, problems = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{row.fault}: its process ended with {process.exitcode}") from None
    process.join()
    for name, value in found.items():
        setattr(row, name, value)
    bench.problems += problems


_WRITES = (("checkpoint", engine, "save_tensors"), ("portrait", latents, "portrait"), ("record", sweep, "_append"))
"""What a sweep writes: before it does, a function of a module is called."""
_SIZES = {"checkpoint": 1_000_000, "portrait": 80_000, "record": 4_097}
"""Bytes below what each takes."""


def before_write(kind: str, left: int, then: Callable[[], object]) -> None:
    """Call a function before this process writes a kind of file for the ``left``-th time."""
    ((module, name),) = ((module, name) for one, module, name in _WRITES if one == kind)
    original = getattr(module, name)

    def on_write(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if kind == "portrait":  # is first made, then written
            made = original(*arguments, **options)
            if not left:
                then()
            return made
        if not left:
            then()
        return original(*arguments, **options)

    setattr(module, name, on_write)


def no_space(bench: Bench, row: Row, fill: Callable[[Path, int], Callable[[], object]], clear: Callable) -> None:
    """Let checkpoints, portraits and records in turn find less space than they need, then give it back."""
    turns = itertools.cycle(_SIZES)
    disturbed = bench.sweep()
    for _ in bench.disturbances(row, max(len(_SIZES), bench.times // 5)):
        kind = next(turns)
        space = bench.random.randrange(0, _SIZES[kind], 4096)
        held = [line[0] for line in disturbed.lines]
        told = disturbed.err.read_text().count("isa: error: ") if disturbed.err.exists() else 0
        then = fill(disturbed.spec.path.parent, space)
        turn = bench.random.randint(1, 2)
        status = disturbed.finish(before=lambda kind=kind, turn=turn, then=then: before_write(kind, turn, then))
        clear(disturbed.spec.path.parent)
        if status == 0:
            bench.judge(row, disturbed)
            disturbed = bench.sweep()
            continue
        row.disturbances += 1
        told = disturbed.err.read_text().count("isa: error: ") - told
        bench.expect(row, (status, told) == (1, 1), f"without space for a {kind}: status {status}, {told} errors")
        bench.expect(row, [line[0] for line in disturbed.lines][: len(held)] == held, "earlier records are gone")
        bench.look(row, disturbed)
    bench.expect(row, disturbed.finish() == 0, "a sweep does not go on when there is space again")
    bench.judge(row, disturbed)


def disk_full(bench: Bench, row: Row) -> None:
    """A file system fills up before a checkpoint, a portrait or a record is written."""

    def work(bench: Bench, row: Row) -> None:
        _mounted(bench.folder / "small", "32m")
        bench.folder /= "small"
        no_space(bench, row, fill, lambda folder: (folder / "ballast").unlink(missing_ok=True))

    def fill(folder: Path, space: int) -> Callable[[], None]:
        def then() -> None:
            with open(folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            os.truncate(folder / "ballast", max(0, os.stat(folder / "ballast").st_size - space))

        return then

    apart(bench, row, work)


def files_limited(bench: Bench, row: Row) -> None:
    """The largest file that a process may write is smaller than a checkpoint, a portrait or a record."""

    def fill(folder: Path, space: int) -> Callable[[], None]:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (max(space, 4096), most))

    no_space(bench, row, fill, lambda folder: None)


def cache_read_only(bench: Bench, row: Row) -> None:
    """The cache of drawn images cannot be written: empty, with its file in it, and with the half of its file."""

    def work(bench: Bench, row: Row) -> None:
        cache = bench.folder / "cache"
        _mounted(cache, "32m")
        drawn = tiny_sweep.DATASET

        def dataset(name: str, source: str | None, cache_dir: str | None) -> FactorDataset:
            rows = drawn.storage.numpy()
            held = cached_array("tiny", "0" * 16, rows.copy, shape=rows.shape, cache_dir=cache_dir)
            options = {"image_shape": drawn.image_shape, "packed": drawn.packed}
            storage = torch.from_numpy(held)
            return FactorDataset(drawn.name, drawn.title, drawn.factors_info, storage, drawn.provenance, **options)

        def before() -> None:
            local._dataset = dataset

        for state in ("empty", "whole", "half"):
            if state == "whole":
                dataset("tiny", None, str(cache))
            elif state == "half":
                (file,) = cache.glob("*.zip")
                os.truncate(file, file.stat().st_size // 2)
            _mount("-o", "remount,ro", str(cache))
            row.disturbances += 1
            disturbed = bench.sweep()
            bench.expect(
                row, disturbed.finish("--cache-dir", str(cache), before=before) == 0, "a sweep did not end well"
            )
            warned = disturbed.err.read_text().count("isa: warning: ")
            bench.expect(row, bool(warned) == (state != "whole"), f"with a cache that is {state}, {warned} warnings")
            bench.judge(row, disturbed)
            _mount("-o", "remount,rw", str(cache))

    apart(bench, row, work)


# ---------------------------------------------------------------------------------------------------------------------
# Workers


def worker_killed(bench: Bench, row: Row) -> None:
    """A worker of a Dask cluster is killed at random moments, and another takes its place."""
    try:
        import distributed
    except ImportError:
        raise Skipped("the package distributed is not installed") from None
    address = bench.folder / "scheduler"
    quiet = {"dashboard": False, "host": "127.0.0.1"}

    def into_log() -> None:
        log = os.open(bench.folder / "cluster.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)

    def scheduler() -> None:
        async def serve() -> None:
            async with distributed.Scheduler(port=0, dashboard_address="127.0.0.1:0", **quiet) as served:
                write_atomically(address, lambda temporary: Path(temporary).write_text(served.address))
                await served.finished()

        into_log()
        asyncio.run(serve())

    def worker() -> None:
        async def serve() -> None:
            options = {"nthreads": 1, "memory_limit": 0, "local_directory": str(bench.folder / "worker"), **quiet}
            async with distributed.Worker(address.read_text(), dashboard_address="127.0.0.1:0", **options) as served:
                await served.finished()

        into_log()
        quicken()
        asyncio.run(serve())

    processes = [start(scheduler)]
    try:
        while not address.exists():
            processes[0].join(0.05)
            if processes[0].exitcode is not None:
                raise RuntimeError(f"no scheduler: {(bench.folder / 'cluster.log').read_text()}")
        disturbed = bench.sweep()
        sweeping = disturbed.start("--scheduler", address.read_text())
        for _ in bench.disturbances(row, max(1, bench.times // 5)):
            processes.append(start(worker))
            processes[-1].join(1 + bench.moment())  # a second until it has introduced itself
            processes[-1].kill()
            processes[-1].join()
            row.disturbances += 1
            bench.look(row, disturbed)
            if not sweeping.is_alive():
                # A run that lost three workers in a row is given up until the command is given again.
                if sweeping.exitcode == 0:
                    bench.judge(row, disturbed)
                    disturbed = bench.sweep()
                sweeping = disturbed.start("--scheduler", address.read_text())
        processes.append(start(worker))
        sweeping.join()
        if sweeping.exitcode:
            sweeping = disturbed.start("--scheduler", address.read_text())
            sweeping.join()
        bench.expect(row, sweeping.exitcode == 0, "a sweep does not go on with a new worker")
        bench.judge(row, disturbed)
    finally:
        for process in processes:
            process.kill()
            process.join()


# ---------------------------------------------------------------------------------------------------------------------
# The table

FAULTS: dict[str, Callable[[Bench, Row], None]] = {
    "killed at a random moment": killed_at_random,
    "killed at a dangerous instant": killed_at_instants,
    "disk full": disk_full,
    "size of files limited": files_limited,
    "cache read-only": cache_read_only,
    "Dask worker killed": worker_killed,
    "two sweeps at once, one killed": two_at_once,
    "four sweeps at once, one killed": four_at_once,
    "clock set back": clock_set_back,
}


def soak(bench: Bench, faults: Sequence[str]) -> list[Row]:
    """Bring about each kind of fault, and say on stdout what came of it."""
    rows, commit = [], results.commit()
    for fault in faults:
        row = Row(fault, commit=commit)
        began = time.monotonic()
        try:
            FAULTS[fault](bench, row)
        except Skipped as why:
            row.skipped = str(why)
        row.seconds = round(time.monotonic() - began, 1)
        rows.append(row)
        what = row.skipped or (
            f"{row.disturbances} times in {row.sweeps} sweeps of {row.runs} runs: {row.recorded_once} recorded once, "
            f"{row.equal} equal, {row.torn} torn, {row.seconds:.0f} s"
        )
        print(f"{fault}: {'skipped, ' if row.skipped else ''}{what}", flush=True)
    return rows


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the table, whole or not at all."""
    write_table(path, [one.name for one in fields(Row)], map(asdict, rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 where nothing was lost."""
    parser = argparse.ArgumentParser(prog="soak.py", description="Disturb sweeps, and see whether anything is lost.")
    parser.add_argument(
        "--kills", type=int, default=50, metavar="N", help="kills at random moments; fewer of the rest [50]"
    )
    parser.add_argument("--runs", type=int, default=2, metavar="N", help="seeds: a sweep has 3 N + 1 runs [2]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn at random [0]")
    parser.add_argument("--seconds", type=float, default=300.0, metavar="S", help="none of a kind after that [300]")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="one kind alone; may be given several times")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "soak.csv", help="the table [runs/soak.csv]")
    arguments = parser.parse_args(argv)
    if arguments.kills < 1 or arguments.runs < 1:
        parser.error("--kills and --runs must be at least 1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="isa-soak-") as folder:
        options = {"times": arguments.kills, "seeds": arguments.runs, "seed": arguments.seed}
        options |= {"seconds": arguments.seconds, "progress": sys.stderr.isatty()}
        bench = Bench(Path(folder), **options)
        rows = soak(bench, arguments.fault or list(FAULTS))
    write(rows, arguments.output)
    for problem in bench.problems:
        print(f"PROBLEM: {problem}", file=sys.stderr)
    return int(bool(bench.problems) or not all(row.is_well for row in rows))


if __name__ == "__main__":
    sys.exit(main())
