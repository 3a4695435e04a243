r"""Portraits of trained models: what their latents encode, small enough to keep without the model (A.5, Fig. 8-16).

::

    result = train(run)
    portrait(result, dataset).save("runs/portraits/first.npz")
    Portrait.load("runs/portraits/first.npz").informative

**Against the true factors**, a latent is shown by its posterior mean, averaged over the images that share the values of
one or two factors, as by Chen et al. (*Isolating Sources of Disentanglement in Variational Autoencoders*, 2018). On
dSprites every average is taken for each shape, and the map of a latent over position for all shapes together.

**A traversal** changes one latent and decodes. It starts from the posterior mean of the image at the middle of all
factors and moves the latent from the minimum to the maximum posterior mean of all images.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isa._files import write_atomically
from isa.data import Factor, FactorDataset
from isa.data.base import reading

__all__ = ["VIEWS", "Portrait", "View", "portrait"]

_ARRAYS = ("noise", "mutual_information", "plane", "shown", "values", "originals", "reconstructions", "traversals")
_KEPT = ["key", "hash", "dataset", "objective", "beta", "seed", "prior", "scale", "learn_exponents", "likelihood"]
_KEPT += ["batch_size", "total_steps", "reduced", "mig", "mig_standard_error", "log_likelihood", "active_units"]
_KEPT += ["images", "images_title", "procedural", "precision", "commit"]
"""Fields of a record that a portrait keeps: numbers and text, no paths."""


@dataclass(frozen=True)
class View:
    """Factors that the averages of a portrait distinguish."""

    split: str | None = None  #: a factor of few values, each with its own curves and traversals
    plane: tuple[str, str] | None = None  #: rows and columns of the map of every latent


VIEWS: dict[str, View] = {"dsprites": View("shape", ("y", "x"))}
"""Views by data set; all other data sets have neither split nor plane."""


@dataclass(frozen=True, eq=False)
class Portrait:
    """The content of K latents of a data set with F factors, of which factor f has V_f values.

    S is the number of values of the view's split, 1 without one; A counts active latents, T the steps of a traversal.
    Images are uint8, grey levels 0 to 255.
    """

    about: dict[str, str | float | int | bool | None]  #: the run, as in its record: ``key``, ``mig``, ...
    factors: tuple[Factor, ...]
    view: View
    scored: tuple[str, ...]  #: the F' factors of ``mutual_information``
    noise: np.ndarray  #: (K,) root mean square of the posterior's standard deviation
    mutual_information: np.ndarray  #: (F', K) nats
    #: by factor, (K, S, V_f): posterior mean averaged over all other factors except the split; (K, 1, S) for the split
    curves: dict[str, np.ndarray]
    plane: np.ndarray | None  #: (K, R, C): posterior mean over the view's two factors, averaged over all others
    shown: np.ndarray  #: (A,) active latents, by their most informative factor, then by decreasing information on it
    values: np.ndarray  #: (A, T) values of the active latents in their traversals
    originals: np.ndarray = field(repr=False)  #: (S, C, H, W) images that traversals start from
    reconstructions: np.ndarray = field(repr=False)  #: (S, C, H, W) decoded posterior means of ``originals``
    traversals: np.ndarray = field(repr=False)  #: (A, S, T, C, H, W) mean images along each active latent

    @property
    def bases(self) -> tuple[str, ...]:
        """Names of the images that traversals start from: the split's values, or one empty name."""
        return tuple(map(str, self.factor(self.view.split).values)) if self.view.split else ("",)

    @property
    def informative(self) -> dict[int, tuple[str, float]]:
        """Most informative factor of each active latent, in the order of ``shown``, and the information in nats."""
        best = self.mutual_information.argmax(0)
        return {int(k): (self.scored[best[k]], float(self.mutual_information[best[k], k])) for k in self.shown}

    def factor(self, name: str) -> Factor:
        """Return the factor of this name."""
        return next(factor for factor in self.factors if factor.name == name)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the portrait as ``.npz``, atomically, and return the path. Equal portraits give equal bytes."""
        factors = [{"name": one.name, "values": one.values.tolist(), "unit": one.unit} for one in self.factors]
        header = {"about": self.about, "factors": factors, **vars(self.view), "scored": self.scored}
        text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        arrays |= {f"curve {name}": curve for name, curve in self.curves.items()}
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, header=np.frombuffer(text, np.uint8), **arrays)
        write_atomically(Path(path), content.getbuffer())
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Portrait:
        """Read a portrait; nothing is unpickled. A file that is not a portrait raises a ``ValueError``."""
        with reading(Path(path), "a portrait") as file:
            archive = np.load(file, allow_pickle=False)
            header = json.loads(archive["header"].tobytes())
            factors = tuple(Factor(**factor) for factor in header["factors"])
            view = View(header["split"], header["plane"] and tuple(header["plane"]))
            arrays = {"plane": None} | {name: archive[name] for name in _ARRAYS if name in archive}
            arrays["curves"] = {factor.name: archive[f"curve {factor.name}"] for factor in factors}
            return cls(header["about"], factors, view, tuple(header["scored"]), **arrays)


def portrait(result: Any, dataset: FactorDataset, *, view: View | None = None, steps: int = 8) -> Portrait:
    """Make the portrait of a model that was trained and evaluated on ``dataset``.

    ``result`` is an :class:`isa.results.Result` with an evaluation. ``view`` is by default the data set's in
    :data:`VIEWS`; ``steps`` is the number of images of a traversal.
    """
    view = VIEWS.get(dataset.name, View()) if view is None else view
    names, sizes = dataset.factor_names, dataset.factor_sizes
    mean, log_var = result.evaluation.mean.detach(), result.evaluation.log_var.detach()
    grid = mean.double().reshape(*sizes, -1)

    def average(*kept: str) -> np.ndarray:
        """Return the mean over all other factors, (K, *sizes of the kept factors)."""
        others = [name for name in names if name not in kept]
        return _single(grid.permute(-1, *map(names.index, (*kept, *others))).flatten(1 + len(kept)).mean(-1))

    mig = result.evaluation.mig
    best, most = mig.mutual_information.argmax(0).tolist(), mig.mutual_information.amax(0).tolist()
    shown = sorted(result.evaluation.active.nonzero().flatten().tolist(), key=lambda k: (best[k], -most[k], k))

    middle = {name: size // 2 for name, size in zip(names, sizes, strict=True) if name != view.split}
    base = dataset.index(**middle)
    low, high = (ends[shown].double() for ends in torch.aminmax(mean, dim=0))
    values = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, steps, dtype=torch.float64, device=low.device)
    start = mean[base.to(mean.device)]
    along = start[:, None].repeat(len(shown), 1, steps, 1)  # (A, S, T, K)
    for row, k in enumerate(shown):
        along[row, :, :, k] = values[row].to(along.dtype)
    traversals = _decode(result.model, result.run.likelihood, along.flatten(0, 2))

    return Portrait(
        about={name: result.record[name] for name in _KEPT if name in result.record},
        factors=dataset.factors_info,
        view=view,
        scored=tuple(names[number] for number in mig.factors),
        noise=_single(log_var.double().exp().mean(0).sqrt()),
        mutual_information=_single(mig.mutual_information),
        curves={
            name: average(name)[:, None] if view.split in (None, name) else average(view.split, name) for name in names
        },
        plane=None if view.plane is None else average(*view.plane),
        shown=np.array(shown, np.int64),
        values=_single(values),
        originals=_grey_levels(dataset.images(base)),
        reconstructions=_decode(result.model, result.run.likelihood, start),
        traversals=traversals.reshape(*along.shape[:3], *dataset.image_shape),
    )


def _single(array: Tensor) -> np.ndarray:
    return np.ascontiguousarray(array.cpu().numpy(), np.float32)


def _grey_levels(images: Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


@torch.no_grad()
def _decode(model: Any, likelihood: str, z: Tensor) -> np.ndarray:
    """Return the mean images of latents (B, K), uint8 (B, C, H, W)."""
    weight = next(model.parameters())
    outputs = [model.decode(part).float() for part in z.to(weight.device, weight.dtype).split(256)]
    return np.concatenate([_grey_levels(x.sigmoid() if likelihood == "bernoulli" else x) for x in outputs])
