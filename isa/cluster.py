r"""A sweep on the workers of a Dask cluster: ``isa sweep SPEC --scheduler ADDRESS``.

The sweeping process gives each worker one run at a time, or on a GPU one pack, claims what is in training, and alone
writes records and portraits. A worker asks for nothing but this package, in a version that knows the runs by the same
hashes, and Dask's ``distributed``:

- It trains on the device that the sweep names, by default on a GPU where it has one, and with as many threads as Dask
  says that it has (``--nthreads``), one run at a time.
- A run whose worker is lost goes to another. Where workers see the sweep's folder, as on a file system that they share
  with it, it goes on from its last checkpoint there.
- What fails on a worker fails alone: the sweep goes on, and says at its end what could not be trained. A worker on
  which nothing succeeds is left out.
- A sweep that ends early, however it does, frees its workers within a few steps of their runs.

Messages of Dask are pickled. A scheduler is to be reached by those alone who may run code on its workers.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from isa import local, packs, results, sweep
from isa._files import write_atomically
from isa.engine import CheckpointError, default_device
from isa.packs import Job
from isa.run import Run

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["ClusterError", "train"]

_ANSWER_SECONDS = 10.0
_GATHER_SECONDS = 60.0
_POLL_SECONDS = 1.0
_MOST_LOSSES = 3
"""Workers that a run may lose in a row without getting on, before it is taken for what ends them."""
_MOST_FAILURES = 3
"""Runs that may fail in a row on one worker, before it is left out."""
_IDENTITY = "identity"
"""File in a sweep's folder by whose content a worker knows that it sees the same folder."""


class ClusterError(OSError):
    """A cluster does not answer, or could not train what it was given; what is recorded stays."""


# ---------------------------------------------------------------------------------------------------------------------
# On a worker

_alone = threading.Lock()
"""Held while a run trains: however many tasks Dask gives to a process, they take turns."""


class _Introduction(NamedTuple):
    """What a worker says of itself."""

    device: str
    gpu: bool
    shared: bool


class _Done(NamedTuple):
    """What a worker made of runs."""

    records: list[dict[str, Any]]
    portraits: dict[str, bytes]
    size: int
    """How many runs it takes at once, fewer than before where they did not fit."""
    in_time: bool


def _prepare(device: str | None) -> torch.device:
    from distributed import get_worker

    # Dask starts workers with one thread for everything beneath Python, whatever their --nthreads.
    torch.set_num_threads(get_worker().state.nthreads)
    return default_device(device)


def _introduce(device: str | None, folder: Path, identity: str) -> _Introduction:
    with _alone:
        chosen = _prepare(device)
        try:
            shared = (folder / _IDENTITY).read_text(encoding="utf-8") == identity
        except (OSError, UnicodeDecodeError):
            shared = False
        return _Introduction(results.device_name(chosen), chosen.type == "cuda", shared)


def _work(
    described: Mapping[str, dict[str, Any]],
    checkpoints: Path | None,
    options: Mapping[str, Any],
    seconds: float,
) -> _Done:
    """Train runs, which are given by hash and fields, for so many seconds at most."""
    from distributed import get_worker

    deadline = time.monotonic() + seconds  # no clock of the day: those of two machines differ, and they are set
    worker = get_worker()
    key = worker.get_current_task()

    def check() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state != "executing":
            raise packs.OutOfTime

    with _alone, tempfile.TemporaryDirectory() as folder:
        device = _prepare(options["device"])
        runs = [Run.from_dict(values) for values in described.values()]
        for run, name in zip(runs, described, strict=True):
            if run.hash != name:
                raise ValueError(f"the worker's version of isa knows {run.key} by another hash than {name}")
        ends = list({run.course: run for run in sorted(runs, key=lambda run: run.total_steps)}.values())
        records, size, in_time = [], len(ends), True
        try:
            dataset = local.images(ends[0], options["cache_dir"], device)
            watch = packs.Watch(ends[0].total_steps, deadline, check=check)
            for trained in local.fit(runs, dataset, checkpoints, watch, progress=False):
                for result in results.measure(trained, dataset, progress=False):
                    local.keep(result, dataset, options["models"], Path(folder))
                    records.append(result.record)
        except packs.OutOfTime:
            in_time = False
        except (CheckpointError, torch.OutOfMemoryError) as error:
            size = local.recover(error, ends, checkpoints)
        portraits = {run.hash: path.read_bytes() for run in runs if (path := Path(folder, f"{run.key}.npz")).exists()}
    return _Done(records, portraits, size, in_time)


# ---------------------------------------------------------------------------------------------------------------------
# In the sweeping process


def train(
    jobs: Sequence[Job],
    scheduler: str,
    *,
    device: str | torch.device | None,
    size: int | None,
    cache_dir: str | None,
    keep_models: bool,
    deadline: float,
    say: Callable[[str], object],
) -> None:
    """Train and record runs on the workers of a cluster, also on those that come later.

    Returns once nothing is left that it could train: what is not recorded then would not have been done in time.

    Parameters
    ----------
    jobs
        Runs of one specification.
    scheduler
        Address of the Dask scheduler, such as ``"tcp://head:8786"``.
    device, cache_dir, keep_models
        As :func:`isa.sweep.sweep` has them; by default each worker chooses its device.
    size
        Runs that train at once; by default 18 on a worker with a GPU, 1 on another.
    deadline
        Nothing is started that would not be done by then, in seconds of ``time.monotonic``.
    say
        Called with a line on each run that is recorded, and on what comes, goes and fails.

    Raises
    ------
    ClusterError
        If the package ``distributed`` is not installed, or the scheduler does not answer, before anything is claimed.
        Later on, if it answers no longer, or, when all others are recorded, if runs could not be trained.
    OSError
        If a record cannot be written. All earlier records stay.
    """
    spec = jobs[0].spec
    models = spec.work.resolve() / "models" if keep_models else None
    options = {"device": None if device is None else str(device), "cache_dir": cache_dir, "models": models}
    with _connected(scheduler) as client:
        _Sweep(client, jobs, options, size, deadline, say)()


@contextmanager
def _connected(scheduler: str) -> Iterator[Client]:
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError(
            "scheduler needs the package distributed, which comes with the extra isa[cluster]: pip install '.[cluster]'"
        ) from None
    try:
        with ThreadPoolExecutor(1) as aside:  # in a notebook this thread has a loop of its own
            kind = aside.submit(lambda: asyncio.run(asyncio.wait_for(_kind_of(scheduler), _ANSWER_SECONDS))).result()
        if kind != "Scheduler":
            raise ValueError(f"a {kind} of Dask answers")
        client = Client(scheduler, timeout=_ANSWER_SECONDS, set_as_default=False, name="isa")
    except Exception as error:  # of many kinds, where the address is none or something else answers
        why = _one_line(error)
        if isinstance(error, TimeoutError):
            why = f"no answer within {_ANSWER_SECONDS:g} seconds"
        elif isinstance(error, MemoryError):  # text taken for the length of a message
            why = "what answers is not Dask"
        raise ClusterError(
            "scheduler must be the address of a Dask scheduler that answers, as in tcp://head:8786, "
            f"got {scheduler!r}: {why}"
        ) from None
    try:
        yield client
    finally:
        with suppress(OSError):
            client.close()


async def _kind_of(address: str) -> str:
    """Ask what is at an address; without this question, a ``Client`` would wait for a silent one for ever."""
    from distributed.core import rpc
    from distributed.security import Security

    async with rpc(address, connection_args=Security().get_connection_args("client")) as other:
        return (await other.identity())["type"]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass
class _Worker:
    """A process of the cluster, and what it does."""

    address: str
    device: str | None = None
    """Name of its device, once it has introduced itself."""
    size: int = 1
    """How many runs it trains at once."""
    gpu: bool = False
    shared: bool = False
    """Whether it sees the sweep's folder."""
    task: Future | None = None
    runs: list[Run] = field(default_factory=list)
    """Those in training."""
    began: list[int] = field(default_factory=list)
    """Steps that these had behind them."""
    claims: ExitStack = field(default_factory=ExitStack)
    failures: int = 0
    """Runs that failed on it in a row."""
    out: str | None = None
    """Why it is given nothing more."""

    def free(self) -> None:
        """Forget what it did; another may claim the runs."""
        self.task, self.runs = None, []
        self.claims.close()


class _Table:
    """The recorded runs, read again only when the table has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: tuple[object, list[dict[str, Any]]] = None, []

    def __call__(self) -> list[dict[str, Any]]:
        try:
            stat = os.stat(self.path)
            state = stat.st_ino, stat.st_mtime_ns, stat.st_size
        except FileNotFoundError:
            state = None
        if state != self._known[0]:
            self._known = state, sweep.read_records(self.path)
        return self._known[1]


class _Sweep:
    """Gives runs to workers until nothing is left to give."""

    def __init__(
        self,
        client: Client,
        jobs: Sequence[Job],
        options: Mapping[str, Any],
        pack: int | None,
        deadline: float,
        say: Callable[[str], object],
    ) -> None:
        self.client = client
        self.spec = spec = jobs[0].spec
        self.all = tuple(job.run for job in jobs)
        self.left = {job.hash: job for job in jobs}
        self.courses = {job.hash: job.course for job in jobs}
        self.pack = pack
        self.deadline = deadline
        self.say = say
        self.work = spec.work.resolve()
        self.portraits = spec.path.parent / "portraits"
        self.options = options
        self.identity = self._identify()
        self.table = _Table(spec.record)
        self.workers: dict[str, _Worker] = {}
        self.losses: dict[str, int] = {}
        self.late: dict[str, set[str]] = {}  # by device, what would not be done on it in time
        self.failed: dict[str, str] = {}
        self.news = threading.Event()
        self.alone = False

    def _identify(self) -> str:
        """Return the content of the folder's file of identity, which is made where there is none."""
        path = self.work / _IDENTITY
        if not path.exists():
            write_atomically(path, lambda temporary: Path(temporary).write_text(uuid.uuid4().hex, "utf-8"))
        return path.read_text(encoding="utf-8")

    def __call__(self) -> None:
        try:
            while True:
                self._collect()
                self._meet()
                if not self._start():
                    break
                self.news.wait(_POLL_SECONDS)
                self.news.clear()
        finally:
            with suppress(Exception):  # the scheduler may be what is gone
                self.client.cancel([worker.task for worker in self.workers.values() if worker.task], force=True)
            for worker in self.workers.values():
                worker.free()
        if self.failed:
            key, why = next(iter(self.failed.items()))
            raise ClusterError(
                f"{len(self.failed)} of {len(self.all)} runs could not be trained, and the same command tries them "
                f"again; the first is {key}: {why}"
            )

    # ---- what workers are there

    def _meet(self) -> None:
        """Greet workers that have come, and take back what those had that are gone."""
        try:
            present = set(self.client.nthreads())
        except OSError as error:
            raise ClusterError(
                f"the scheduler answers no longer ({_one_line(error)}); what is recorded stays, and the same command "
                "goes on from there"
            ) from None
        for address in set(self.workers) - present:
            worker = self.workers.pop(address)
            if worker.runs:
                self._lose(worker)
            worker.free()
        for address in sorted(present - set(self.workers)):
            worker = self.workers[address] = _Worker(address)
            self._submit(worker, "introduction", _introduce, self.options["device"], self.work, self.identity)
        if not present and not self.alone:
            self.say("there is no worker; waiting for one")
        self.alone = not present

    def _submit(self, worker: _Worker, name: str, function: Callable[..., object], *arguments: object) -> None:
        # Bound to one worker: which run is where is decided here, since workers differ in device and in what they take.
        options = {"key": f"{name}-{uuid.uuid4().hex}", "workers": [worker.address], "allow_other_workers": False}
        worker.task = self.client.submit(function, *arguments, **options)
        worker.task.add_done_callback(lambda task: self.news.set())

    def _lose(self, worker: _Worker) -> None:
        """Take back the runs of a worker that is gone, unless they have ended too many."""
        for run, began in zip(worker.runs, worker.began, strict=True):
            got_on = packs.steps_done(self.spec, run) > began
            losses = self.losses[run.hash] = 1 if got_on else self.losses.get(run.hash, 0) + 1
            if losses < _MOST_LOSSES:
                self.say(f"{run.key}  lost with its worker {worker.address}, to be trained on another")
            else:
                self._fail(run, f"{losses} workers in a row were lost with it")

    def _fail(self, run: Run, why: str) -> None:
        self.failed[run.key] = why
        self.left.pop(run.hash, None)
        self.say(f"{run.key}  FAILED: {why}")

    # ---- what they have done

    def _collect(self) -> None:
        """Record what is done."""
        added: list[dict[str, Any]] = []
        done = [worker for worker in self.workers.values() if worker.task is not None and worker.task.done()]
        for worker in done:
            result = None
            if worker.task.status == "error":
                error = worker.task.exception()
                self._refuse(worker, f"{type(error).__name__}: {_one_line(error)}")
                continue
            with suppress(Exception):  # that comes when worker or scheduler went away, or were started anew
                result = worker.task.result(timeout=_GATHER_SECONDS)
            if result is None:
                self._lose(worker)
            elif isinstance(result, _Introduction):
                self._welcome(worker, result)
            else:
                added += self._receive(worker, result)
        sweep.record_results(self.spec, self.all, added, self.say)
        for worker in done:
            worker.free()
            if worker.device is None and worker.out is None:
                del self.workers[worker.address]  # to be greeted again

    def _welcome(self, worker: _Worker, introduction: _Introduction) -> None:
        worker.device, worker.gpu, worker.shared = introduction
        worker.size = self.pack or (local.GPU_PACK if worker.gpu else 1)
        if self.options["models"] is not None and not worker.shared:
            self._leave_out(worker, f"models are to be kept, and it does not see {self.work}")
        else:
            note = "" if worker.shared else "; it does not see the sweep's folder, so that its runs have no checkpoints"
            self.say(f"{worker.address}  trains on {worker.device}{note}")

    def _receive(self, worker: _Worker, done: _Done) -> list[dict[str, Any]]:
        """Save what is beside the records; return these."""
        worker.failures = 0
        if done.in_time and not done.records:  # they did not fit
            worker.size = done.size
        recorded = {record["hash"] for record in done.records}
        for run in worker.runs:
            if not done.in_time and run.hash not in recorded:
                self.late.setdefault(worker.device, set()).add(run.hash)
                self.say(f"not in time, to go on from the last checkpoint another time: {run.key}")
            if run.hash in done.portraits:
                held = done.portraits[run.hash]
                path = self.portraits / f"{run.key}.npz"
                write_atomically(path, lambda temporary, held=held: Path(temporary).write_bytes(held))
        return done.records

    def _refuse(self, worker: _Worker, why: str) -> None:
        """Take note of an error on a worker."""
        for run in worker.runs:
            self._fail(run, f"{why} (on {worker.address})")
        worker.failures += 1
        if worker.device is None:
            self._leave_out(worker, why)
        elif worker.failures == _MOST_FAILURES:
            self._leave_out(worker, f"{worker.failures} runs in a row failed on it, the last with {why}")

    def _leave_out(self, worker: _Worker, why: str) -> None:
        worker.out = why
        self.say(f"{worker.address}  LEFT OUT: {why}")

    # ---- what they do next

    def _start(self) -> bool:
        """Give runs to idle workers; returns whether there is something to wait for."""
        claimed = set()  # devices for which there are runs that other sweeps train
        for worker in self.workers.values():
            idle = worker.task is None and worker.out is None
            if idle and worker.device not in claimed and self._give(worker):
                claimed.add(worker.device)
        if not self.left:
            return False
        if any(worker.runs for worker in self.workers.values()):
            return True
        if time.monotonic() > self.deadline:
            return False
        fit = [worker for worker in self.workers.values() if worker.out is None]
        if self.workers and not fit:
            worker = next(iter(self.workers.values()))
            raise ClusterError(
                f"no worker of the cluster can train what is left; {worker.address} was left out: {worker.out}"
            )
        introducing = any(worker.task is not None for worker in fit)
        return not self.workers or introducing or bool(claimed)

    def _give(self, worker: _Worker) -> bool:
        """Give a worker the next runs that it can do in time; returns whether only others' claims keep it idle."""
        late = self.late.setdefault(worker.device, set())
        while True:
            records = self._recorded()
            # Two runs of one course would train the same steps.
            busy = {self.courses[run.hash] for other in self.workers.values() for run in other.runs}
            free = [job for name, job in self.left.items() if name not in late and self.courses[name] not in busy]
            claims = ExitStack()
            jobs = packs.claim_first(free, worker.size, claims)
            if not jobs:
                return bool(free)
            records = self._recorded()  # by others, up to the claim
            jobs = [job for job in jobs if job.hash in self.left]
            # A card's earlier records do not tell its speed: others may have shared it then.
            known = [record for record in records if record["hash"] in self.courses] if worker.gpu else records
            seconds = packs.Speed(known, worker.device)(jobs)
            now = time.monotonic()
            if now > self.deadline or (seconds is not None and now + seconds > self.deadline):
                late |= {job.hash for job in jobs}
                jobs = []
            if jobs:
                break
            claims.close()
        worker.runs, worker.claims = [job.run for job in jobs], claims
        worker.began = [packs.steps_done(self.spec, run) for run in worker.runs]
        described = {run.hash: run.to_dict() for run in worker.runs}
        checkpoints = self.work / "checkpoints" if worker.shared else None
        left = self.deadline - now
        self._submit(worker, worker.runs[0].key, _work, described, checkpoints, self.options, left)
        return False

    def _recorded(self) -> list[dict[str, Any]]:
        """Return the records, and take what is recorded off what is left."""
        records = self.table()
        for record in records:
            self.left.pop(record["hash"], None)
        return records
