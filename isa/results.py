"""Results of training: models, curves, measurements and records, and their files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributions import Distribution

import isa
from isa import models, objectives
from isa._files import CheckpointError, read_tensors, save_tensors, write_atomically
from isa.data import FactorDataset
from isa.evaluate import Evaluation, evaluate, measurements
from isa.prior import LpNested
from isa.run import Run

__all__ = ["Result", "Trained", "commit", "device_name", "load_model", "measure", "read_record", "trained_prior"]


@dataclass(frozen=True)
class Result:
    """A trained run and its measurements."""

    run: Run
    model: models.VAE  #: The networks after the last step, in evaluation mode.
    prior: Distribution  #: The prior, with its learned exponents, on the CPU.
    curve: dict[str, np.ndarray]  #: Terms of the objective and learned exponents at every step, each (steps,).
    #: Step, counted from 0, at which a term was not finite, or from which the loss stayed out of bounds; the number of
    #: steps if only the parameters after the last one, or their measurement, showed it. The curve ends there.
    diverged_at: int | None
    #: Settings and measurements of the run, as JSON represents them.
    record: dict[str, Any] = field(repr=False, default_factory=dict)
    evaluation: Evaluation | None = field(repr=False, default=None)  #: None if it diverged or was not measured.

    @property
    def exponents(self) -> tuple[float, ...] | None:
        """The prior's exponents in the order of :meth:`isa.Node.nodes`, the root's first; None for the normal prior."""
        return tuple(self.prior.tree.exponents) if isinstance(self.prior, LpNested) else None

    def cpu(self) -> Result:
        """Return the result with everything on the CPU."""
        self.model.cpu()
        return replace(self, evaluation=self.evaluation and self.evaluation.cpu())

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``model.safetensors``, ``curve.safetensors`` and ``record.json``, the record last."""
        folder = Path(folder)
        tensors = {f"vae.{name}": value for name, value in self.model.state_dict().items()}
        metadata = {"run": self.run.to_dict(), "hash": self.run.hash, "exponents": self.exponents}
        save_tensors(folder / "model.safetensors", tensors, {**metadata, "channels": self.model.channels})
        curve = {name: torch.from_numpy(values) for name, values in self.curve.items()}
        save_tensors(folder / "curve.safetensors", curve, {"hash": self.run.hash})
        text = json.dumps(self.record, indent=2, allow_nan=False) + "\n"
        write_atomically(folder / "record.json", text.encode())
        return folder


class Trained(NamedTuple):
    """Results of a pack's runs after their last step, without records and measurements."""

    results: list[Result]
    pack_size: int
    seconds: float  #: of the pack's training
    compiled: bool


def measure(
    trained: Trained, dataset: FactorDataset, *, evaluation: bool = True, progress: bool | None = None
) -> list[Result]:
    """Measure runs that :func:`isa.engine.fit` yielded, and make their records. Results stay on the device."""
    began = time.perf_counter()
    healthy = [result for result in trained.results if evaluation and result.diverged_at is None]
    trios = [(result.run, result.model, result.prior) for result in healthy]
    evaluations = dict(zip([run for run, *_ in trios], evaluate(trios, dataset, progress), strict=True))
    numbers = {run: measurements(evaluated, run, dataset) for run, evaluated in evaluations.items() if evaluated}
    seconds = (time.perf_counter() - began) / max(len(trios), 1)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    circumstances = {
        "train_seconds": trained.seconds,
        "pack_size": trained.pack_size,
        "compiled": trained.compiled,
        "device": device_name(dataset.device),
        "versions": versions | {"isa": isa.__version__},
        "commit": commit(),
        "images": len(dataset),
        "images_title": dataset.title,
        "images_checksum": dataset.checksum,
        "procedural": dataset.procedural,
    }
    measured = []
    for result in trained.results:
        run, at = result.run, result.diverged_at
        if run in evaluations and run not in numbers:  # the loss after the last step is not in the curve
            at = run.total_steps
        record = {
            "hash": run.hash,
            "key": run.key,
            **run.to_dict(),
            "status": "trained" if at is None else "diverged",
            "diverged_at": at,
            "total_steps": run.total_steps,
            "reduced": run.reduced,
            "exponents": None if result.exponents is None else list(result.exponents),
            **circumstances,
        }
        if run in numbers:
            record |= numbers[run] | {"evaluation_seconds": seconds}
        measured.append(replace(result, diverged_at=at, record=record, evaluation=evaluations.get(run)))
    return measured


def trained_prior(run: Run, learned: Sequence[float] | None) -> Distribution:
    """Return the prior of a run with learned exponents, all except the root's; None stands for the initial ones."""
    if run.tree is None:
        return objectives.standard_normal(run.latent_dim)
    exponents = run.tree.exponents if learned is None else [run.tree.exponents[0], *learned]
    return LpNested(run.tree.with_exponents(exponents), run.scale or 1.0)


def load_model(path: str | os.PathLike[str]) -> tuple[Run, models.VAE, Distribution]:
    """Read what :meth:`Result.save` wrote: the run, its networks in evaluation mode, and its prior.

    ``path`` is the folder, or the ``.safetensors`` file of the model in it. A file that is not such a model raises a
    CheckpointError, which is a ``ValueError``.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    _, metadata = read_tensors(path, {})
    try:
        run, exponents = Run(**metadata["run"]), metadata["exponents"]
        prior = trained_prior(run, exponents and exponents[1:])
        with torch.device("meta"):
            vae = models.MODELS[run.model](run.latent_dim, metadata["channels"]).eval()
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a model of this package: {error}") from None
    tensors, _ = read_tensors(path, {f"vae.{name}": value for name, value in vae.state_dict().items()})
    vae.load_state_dict({name.removeprefix("vae."): value for name, value in tensors.items()}, assign=True)
    return run, vae, prior


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the ``record.json`` that :meth:`Result.save` wrote; a ``ValueError`` says if it is not a record."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "hash" not in record:
            raise ValueError("it has no hash")
    except ValueError as error:
        raise ValueError(f"{path} is not a record: {error}") from None
    return record


def commit() -> str | None:
    """Return this package's commit, with "-dirty" if files other than records have changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    command = "git status --porcelain=v2 --branch --untracked-files=no -- :/ :(exclude,top)runs/*.csv"
    try:
        done = subprocess.run(command.split(), cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    head, *changes = done.stdout.splitlines()
    dirty = any(not line.startswith("#") for line in changes)
    return head.removeprefix("# branch.oid ") + "-dirty" * dirty if (root / ".git").exists() else None


def device_name(device: torch.device) -> str:
    """Return the name of a device, as in records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
