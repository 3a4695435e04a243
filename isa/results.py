"""Results of training: what was trained and measured, and the files it is kept in."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributions import Distribution

from isa import models, objectives
from isa._files import CheckpointError, read_metadata, read_tensors, save_tensors, write_atomically
from isa.data import FactorDataset
from isa.evaluate import Evaluation, evaluate, measurements
from isa.prior import LpNested
from isa.run import Run
from isa.stacked import unstack

if TYPE_CHECKING:
    from isa.engine import Trained

__all__ = ["Result", "commit", "device_name", "load_model", "measure", "read_record"]


@dataclass(frozen=True)
class Result:
    """A run that has been trained, and what was measured of it."""

    run: Run
    model: models.VAE
    """The networks after the last step, in evaluation mode."""
    discriminator: models.Discriminator | None
    prior: Distribution
    """The prior, with its learned exponents, on the CPU."""
    curve: dict[str, np.ndarray]
    """Every term of the objective and every learned exponent at every step, each (steps,)."""
    diverged_at: int | None
    """Step, counted from 0, at which a term was not finite, or from which the loss stayed out of bounds; the number of
    steps if only the parameters after the last one, or their measurement, showed it. The curve ends there."""
    record: dict[str, Any] = field(repr=False)
    """Everything that is reported of the run, as JSON represents it."""
    evaluation: Evaluation | None = field(repr=False, default=None)
    """None if the run diverged or was not measured."""

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
        if self.discriminator is not None:
            tensors |= {f"discriminator.{name}": value for name, value in self.discriminator.state_dict().items()}
        metadata = {"run": self.run.to_dict(), "hash": self.run.hash, "exponents": self.exponents}
        save_tensors(folder / "model.safetensors", tensors, {**metadata, "channels": self.model.channels})
        curve = {name: torch.from_numpy(values) for name, values in self.curve.items()}
        save_tensors(folder / "curve.safetensors", curve, {"hash": self.run.hash})
        text = json.dumps(self.record, indent=2, allow_nan=False) + "\n"
        write_atomically(folder / "record.json", lambda path: Path(path).write_text(text, encoding="utf-8"))
        return folder


def measure(
    trained: Trained,
    dataset: FactorDataset,
    *,
    evaluation: bool = True,
    n_samples: int | None = None,
    progress: bool | None = None,
) -> list[Result]:
    """Measure runs that have been trained, and make their records.

    Parameters
    ----------
    trained, dataset
        Runs that :func:`isa.engine.fit` has yielded, and the images, on their device, where results stay.
    evaluation, n_samples
        Measure the models, with this number of draws for the entropies of the MIG; all images by default.
    progress
        Show a progress bar; by default if stderr is a terminal.
    """
    began, measured, numbers = time.perf_counter(), {}, {}
    wanted = [row for row in trained.rows if evaluation and trained.diverged[row] is None]
    if wanted:
        compile = trained.compiled and dataset.device.type == "cpu" and len(dataset) >= 100_000
        options = {"rows": wanted, "n_samples": n_samples, "compile": compile, "progress": progress}
        found = evaluate(trained.networks, trained.pack, dataset, **options)
        measured = {row: one for row, one in zip(wanted, found, strict=True) if one is not None}
        numbers = {row: measurements(one, dataset) for row, one in measured.items()}
    seconds = (time.perf_counter() - began) / max(len(wanted), 1)
    circumstances = {
        "train_seconds": trained.seconds,
        "pack_size": len(trained.pack),
        "compiled": trained.compiled,
        "device": device_name(dataset.device),
        "versions": _versions(),
        "commit": commit(),
        "images": len(dataset),
        "images_title": dataset.title,
        "images_checksum": dataset.checksum,
        "procedural": dataset.procedural,
    }
    results = []
    for run, row in zip(trained.runs, trained.rows, strict=True):
        at, steps = trained.diverged[row], trained.curves.shape[1]
        if row in wanted and row not in numbers:  # losses are those before each step: the last step shows only here
            at = steps
        curve = trained.curves[row, : steps if at is None else at + 1]
        vae, discriminator = _networks(trained, run, row, dataset.image_shape[0])
        prior = _prior(run, _exponents(trained, row, None if at is None else curve))
        record = {
            "hash": run.hash,
            "key": run.key,
            **run.to_dict(),
            "status": "trained" if at is None else "diverged",
            "diverged_at": at,
            "total_steps": run.total_steps,
            "reduced": run.reduced,
            "exponents": list(prior.tree.exponents) if isinstance(prior, LpNested) else None,
            **circumstances,
        }
        if row in numbers:
            record |= numbers[row] | {"evaluation_seconds": seconds}
        terms = {name: curve[:, column].copy() for column, name in enumerate(trained.names)}
        results.append(Result(run, vae, discriminator, prior, terms, at, record, measured.get(row)))
    return results


def _networks(trained: Trained, run: Run, row: int, channels: int) -> tuple[models.VAE, models.Discriminator | None]:
    with torch.device("meta"):
        vae = models.MODELS[run.model](run.latent_dim, channels).eval()
    discriminator = models.build_discriminator(run.latent_dim) if trained.networks.discriminator else None
    for part, module in (("encoder", vae.encoder), ("decoder", vae.decoder), ("discriminator", discriminator)):
        own = {name.removeprefix(f"{part}."): x for name, x in trained.state.items() if name.startswith(f"{part}.")}
        if own:
            unstack(own, row, module.net)
    return vae, discriminator


def _exponents(trained: Trained, row: int, curve: np.ndarray | None) -> list[float] | None:
    """Return a run's learned exponents; of a run that diverged, the last ones that a prior can have."""
    if not trained.networks.prior.learned:
        return None
    if curve is None:
        return trained.networks.prior.exponents()[row, 1:].tolist()
    learned = curve[:, [name.startswith("exponent_") for name in trained.names]]
    with np.errstate(all="ignore"):
        good = np.flatnonzero(np.isfinite(np.log(learned)).all(1))
    return learned[good[-1]].tolist() if len(good) else None


def _prior(run: Run, learned: list[float] | None) -> Distribution:
    if run.tree is None:
        return objectives.standard_normal(run.latent_dim)
    exponents = list(run.tree.exponents)
    if learned is not None:
        exponents[1:] = learned
    return LpNested(run.tree.with_exponents(exponents), run.scale)


def load_model(path: str | os.PathLike[str]) -> tuple[Run, models.VAE, Distribution]:
    """Read what :meth:`Result.save` wrote: the run, its networks in evaluation mode, and its prior.

    ``path`` is the folder, or the ``.safetensors`` file of the model in it. A file that is not such a model raises a
    CheckpointError, which is a ``ValueError``.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    metadata = read_metadata(path)
    try:
        run, channels, exponents = Run(**metadata["run"]), metadata["channels"], metadata["exponents"]
        prior = _prior(run, None if exponents is None else [float(p) for p in exponents[1:]])
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels!r}")
        with torch.device("meta"):
            vae = models.MODELS[run.model](run.latent_dim, channels).eval()
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a model of this package: {error}") from None
    tensors = read_tensors(path, {f"vae.{name}": value for name, value in vae.state_dict().items()})
    vae.load_state_dict({name.removeprefix("vae."): value for name, value in tensors.items()}, assign=True)
    return run, vae, prior


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the ``record.json`` that :meth:`Result.save` wrote; a ``ValueError`` says if it is not a record."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("it is not a file")
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not isinstance(record.get("hash"), str):
            raise ValueError("it has no hash")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a record: {error}") from None
    return record


def _versions() -> dict[str, str]:
    from isa import __version__

    python = platform.python_version()
    return {"python": python, "torch": torch.__version__, "numpy": np.__version__, "isa": __version__}


def commit() -> str | None:
    """Return the commit of this package, marked if its code (not its records) was changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    outputs = []
    for command in ("rev-parse HEAD", "status --porcelain --untracked-files=no -- :/ :(exclude,top)runs/*.csv"):
        arguments = ["git", "-C", str(root), *command.split()]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        outputs.append(done.stdout.strip())
    return outputs[0] + ("-dirty" if outputs[1] else "")


def device_name(device: torch.device) -> str:
    """Return the name of a device as records have it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
