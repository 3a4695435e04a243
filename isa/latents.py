r"""A portrait of a trained model: what its latents do, small enough to keep where the model is not (A.5, Fig. 8-16).

::

    result = train(run)
    portrait(result, dataset).save("runs/portraits/first.npz")
    Portrait.load("runs/portraits/first.npz").informative

**Against the true factors** a latent is shown by its posterior mean, averaged over the images that share a factor's
value, or the values of two factors, as Chen et al. do (*Isolating Sources of Disentanglement in Variational
Autoencoders*, 2018). :class:`View` says what is kept apart in these averages: on dSprites the shape, in all of them,
and x and y together, in the map of a latent over position.

**A traversal** changes one latent and decodes. It starts from the posterior mean of the image at the middle of all
factors and takes the latent from the least to the greatest posterior mean that any image has.

A portrait is a zip archive of arrays (``.npz``). Loading one unpickles nothing, and takes nothing on trust.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isa._files import write_atomically
from isa.data import Factor, FactorDataset
from isa.data._npz import open_archive, read_array, read_shape

__all__ = ["VIEWS", "Portrait", "Representative", "View", "find_representative", "portrait"]

_FORMAT = 1
_MOST_BYTES = 16 * 2**20
_MOST_HEADER = 64 * 2**10
_MOST_SIZE = 4096
_MOST_VALUES = 2**25
_MOST_WORD = 200
_DECODED = 256

_KEPT = ("key", "hash", "dataset", "objective", "beta", "seed", "prior", "scale", "learn_exponents", "likelihood")
_KEPT += ("batch_size", "total_steps", "reduced", "mig", "mig_standard_error", "log_likelihood", "active_units")
_KEPT += ("images", "images_title", "procedural", "precision", "commit")
"""What a portrait keeps of a record: numbers and words, no path."""


@dataclass(frozen=True)
class View:
    """Which factors are kept apart in the averages of a portrait.

    Parameters
    ----------
    split : str, optional
        A factor of few values that every curve is drawn for, one value after the other; each also gives a traversal
        of its own.
    plane : tuple of str, optional
        Two factors, rows and columns of the map of every latent.
    """

    split: str | None = None
    plane: tuple[str, str] | None = None


VIEWS: dict[str, View] = {"dsprites": View("shape", ("y", "x"))}
"""The views of data sets, by name; any other has neither split nor plane."""


@dataclass(frozen=True, eq=False)
class Portrait:
    """What K latents do over a data set of F factors, of which V_f is the number of values.

    S is the number of values of the view's split, 1 without one; A counts active latents, T the steps of a traversal.

    Attributes
    ----------
    about : dict
        The run in numbers and words, as its record has them: ``key``, ``objective``, ``beta``, ``mig``, ...
    factors : tuple of Factor
        Names, values and units.
    view : View
        What was kept apart.
    scored : tuple of str
        The factors of ``mutual_information``.
    mean, deviation, noise : ndarray
        (K,) mean and standard deviation of the posterior mean over all images, and root mean square of the posterior's
        standard deviation.
    mutual_information : ndarray
        (F', K) nats, of every scored factor with every latent.
    curves : dict of str to ndarray
        By factor, (K, S, V_f): posterior mean, averaged over all other factors but the split. Of the split itself
        (K, 1, S).
    plane : ndarray or None
        (K, R, C): posterior mean over the view's two factors, averaged over all others.
    shown : ndarray
        (A,) the active latents, by the scored factor that each knows most of, then by how much it knows.
    values : ndarray
        (A, T) values that each of them takes in its traversal.
    originals, reconstructions : ndarray
        uint8 (S, C, H, W): the images that traversals start from, and what the model makes of their posterior means.
    traversals : ndarray
        uint8 (A, S, T, C, H, W): mean images along each active latent, grey levels 0 to 255.

    Raises
    ------
    ValueError
        If an array has another shape or type than these, or holds numbers that are not finite.
    """

    about: dict[str, str | float | int | bool | None]
    factors: tuple[Factor, ...]
    view: View
    scored: tuple[str, ...]
    mean: np.ndarray
    deviation: np.ndarray
    noise: np.ndarray
    mutual_information: np.ndarray
    curves: dict[str, np.ndarray]
    plane: np.ndarray | None
    shown: np.ndarray
    values: np.ndarray
    originals: np.ndarray = field(repr=False)
    reconstructions: np.ndarray = field(repr=False)
    traversals: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        names = [factor.name for factor in self.factors]
        if len(set(names)) < len(names):
            raise ValueError(f"factors must have different names, got {', '.join(names)}")
        if not self.scored or len(set(self.scored)) < len(self.scored) or not set(self.scored) <= set(names):
            raise ValueError(f"scored must be some of the factors {', '.join(names)}, each once, got {self.scored!r}")
        _check_view(self.view, names)
        arrays = self._arrays()
        expected = _layout(self._header())
        if set(arrays) != set(expected):
            raise ValueError(f"arrays must be {', '.join(expected)}, got {', '.join(arrays)}")
        for name, (shape, dtype) in expected.items():
            found = arrays[name]
            if found.shape != shape or found.dtype != dtype:
                raise ValueError(f"{name} must be {dtype} of shape {shape}, got {found.dtype} of shape {found.shape}")
            if dtype.kind == "f" and not np.isfinite(found).all():
                raise ValueError(f"{name} must hold finite numbers")
        shown = self.shown.tolist()
        if len(set(shown)) < len(shown) or not set(shown) <= set(range(self.latents)):
            raise ValueError(f"shown must be latents from 0 to {self.latents - 1}, each once, got {shown}")

    @property
    def latents(self) -> int:
        """Number of latents K."""
        return len(self.mean)

    @property
    def bases(self) -> tuple[str, ...]:
        """Names of the images that traversals start from: the split's values, or one empty name."""
        return tuple(str(value) for value in self.factor(self.view.split).values) if self.view.split else ("",)

    @property
    def informative(self) -> dict[int, tuple[str, float]]:
        """For each active latent, in the order of ``shown``: the scored factor that it knows most of, and the nats."""
        best = self.mutual_information.argmax(0)
        return {int(k): (self.scored[best[k]], float(self.mutual_information[best[k], k])) for k in self.shown}

    def factor(self, name: str) -> Factor:
        """The factor of this name.

        Raises
        ------
        KeyError
            If there is none.
        """
        for factor in self.factors:
            if factor.name == name:
                return factor
        raise KeyError(f"{name!r} is no factor: they are {', '.join(factor.name for factor in self.factors)}")

    def _arrays(self) -> dict[str, np.ndarray]:
        names = [one.name for one in fields(self) if one.name not in ("about", "factors", "view", "scored", "curves")]
        arrays = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return arrays | {f"curve {name}": curve for name, curve in self.curves.items()}

    def _header(self) -> dict[str, Any]:
        described = [{"name": one.name, "values": one.values.tolist(), "unit": one.unit} for one in self.factors]
        return {
            "format": _FORMAT,
            "about": self.about,
            "factors": described,
            "split": self.view.split,
            "plane": None if self.view.plane is None else list(self.view.plane),
            "scored": list(self.scored),
            "latents": len(self.mean),
            "shown": len(self.shown),
            "steps": self.values.shape[-1],
            "image": list(self.originals.shape[1:]),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the portrait, whole or not at all; the same portrait gives the same bytes.

        Returns
        -------
        Path
            Where it is.
        """
        path = Path(path)
        text = json.dumps(self._header(), allow_nan=False, separators=(",", ":")).encode()
        held = io.BytesIO()  # in memory first, since a zip archive on a full disk fails more than once
        np.savez_compressed(held, allow_pickle=False, header=np.frombuffer(text, np.uint8), **self._arrays())
        write_atomically(path, lambda temporary: Path(temporary).write_bytes(held.getbuffer()))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Portrait:
        """Read a portrait back.

        Nothing is unpickled, and no array is read before its size is known to be that of a portrait.

        Raises
        ------
        ValueError
            If the file is no portrait; where there is none it is a ``FileNotFoundError`` as well.
        """
        path = Path(path)
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path} is no portrait: it has more than {_MOST_BYTES:,} bytes")
        with open_archive(path) as archive:
            shape = read_shape(archive, "header.npy")
            if len(shape) != 1 or shape[0] > _MOST_HEADER:
                raise ValueError(f"{path} is no portrait: its header has the shape {shape}")
            text = read_array(archive, "header.npy", shape, np.uint8).tobytes()
            try:
                header = _checked_header(json.loads(text, parse_constant=_no_constant))
                layout = _layout(header)
                expected = {f"{name}.npy" for name in (*layout, "header")}
                if sorted(archive.namelist()) != sorted(expected):
                    raise ValueError(f"it must hold {', '.join(sorted(expected))}")
                arrays = {name: read_array(archive, f"{name}.npy", *layout[name]) for name in layout}
                factors = tuple(Factor(one["name"], one["values"], one["unit"]) for one in header["factors"])
                curves = {factor.name: arrays.pop(f"curve {factor.name}") for factor in factors}
                plane = None if header["plane"] is None else tuple(header["plane"])
                view = View(header["split"], plane)
                arrays.setdefault("plane", None)
                return cls(header["about"], factors, view, tuple(header["scored"]), curves=curves, **arrays)
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                raise ValueError(f"{path} is no portrait: {' '.join(str(error).split())[:300]}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and -(2**63) <= value < 2**63


def _no_constant(name: str) -> None:
    raise ValueError(f"its header has the number {name}")


def _check_view(view: View, names: Sequence[str]) -> None:
    used = [*([] if view.split is None else [view.split]), *(view.plane or ())]
    for name in used:
        if name not in names:
            raise ValueError(f"a view must name factors out of {', '.join(names)}, got {name!r}")
    if len(set(used)) < len(used) or (view.plane is not None and len(view.plane) != 2):
        raise ValueError(f"a view must have two factors in its plane, and none of them twice, got {view}")


def _checked_header(header: object) -> dict[str, Any]:
    """Return the header of a file if it has everything that it must have, of the right kind and of a size in bounds."""
    kinds = {"format": int, "about": dict, "factors": list, "split": (str, type(None)), "plane": (list, type(None))}
    kinds |= {"scored": list, "latents": int, "shown": int, "steps": int, "image": list}
    if not isinstance(header, dict) or set(header) != set(kinds):
        raise ValueError(f"its header must have {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(header[name], kind) or isinstance(header[name], bool):
            raise ValueError(f"{name} in its header is {str(header[name])[:60]!r}")
    if header["format"] != _FORMAT:
        raise ValueError(f"its format is {header['format']}, and {_FORMAT} is read here")
    for name, value in header["about"].items():
        if not (value is None or isinstance(value, str) or _is_number(value)):
            raise ValueError(f"{name} of its run is {str(value)[:60]!r}, no number or word")
    for one in header["factors"]:
        if not isinstance(one, dict) or set(one) != {"name", "values", "unit"}:
            raise ValueError("a factor must have name, values and unit")
        values = one["values"]
        if not isinstance(values, list) or not isinstance(one["unit"], str):
            raise ValueError("the values of a factor must be a list, and its unit a word")
        if any(isinstance(word, str) and len(word) > _MOST_WORD for word in (one["name"], one["unit"], *values)):
            raise ValueError(f"a factor's words must have at most {_MOST_WORD} characters each")
        if not all(isinstance(value, str) for value in values) and not all(map(_is_number, values)):
            raise ValueError(f"the values of the factor {str(one['name'])[:60]!r} must be all numbers, or all words")
    named = [one["name"] for one in header["factors"]]
    if not all(isinstance(name, str) for name in (*named, *header["scored"], *(header["plane"] or ()))):
        raise ValueError("factors must be named by words")
    sizes = [header["latents"], header["steps"], *header["image"], *(len(one["values"]) for one in header["factors"])]
    if len(header["image"]) != 3 or not all(type(size) is int and 1 <= size <= _MOST_SIZE for size in sizes):
        raise ValueError(f"its sizes must be from 1 to {_MOST_SIZE}, and three of an image")
    if not 0 <= header["shown"] <= header["latents"]:
        raise ValueError(f"it shows {header['shown']} of {header['latents']} latents")
    _check_view(View(header["split"], None if header["plane"] is None else tuple(header["plane"])), named)
    return header


def _layout(header: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of every array of a portrait with this header."""
    sizes = {one["name"]: len(one["values"]) for one in header["factors"]}
    k, shown, steps, image = header["latents"], header["shown"], header["steps"], tuple(header["image"])
    split = header["split"]
    s = 1 if split is None else sizes[split]
    shapes = {name: (k,) for name in ("mean", "deviation", "noise")}
    shapes["mutual_information"] = (len(header["scored"]), k)
    if header["plane"] is not None:
        shapes["plane"] = (k, *(sizes[name] for name in header["plane"]))
    shapes["values"] = (shown, steps)
    shapes |= {f"curve {name}": (k, 1 if name == split else s, size) for name, size in sizes.items()}
    layout = {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    layout["shown"] = ((shown,), np.dtype(np.int64))
    layout |= {name: ((s, *image), np.dtype(np.uint8)) for name in ("originals", "reconstructions")}
    layout["traversals"] = ((shown, s, steps, *image), np.dtype(np.uint8))
    held = sum(math.prod(shape) for shape, _ in layout.values())
    if held > _MOST_VALUES:
        raise ValueError(f"a portrait must hold at most {_MOST_VALUES:,} numbers, this one would hold {held:,}")
    return layout


# ---------------------------------------------------------------------------------------------------------------------
# Making one


def portrait(result: Any, dataset: FactorDataset, *, view: View | None = None, steps: int = 8) -> Portrait:
    """Make the portrait of a model that has just been trained and measured.

    Parameters
    ----------
    result
        What :func:`isa.engine.train` returns: of it ``model``, ``evaluation`` (``mean``, ``log_var``, ``active``
        and ``mig``), ``run.likelihood`` and ``record`` are used. The model is left as it was.
    dataset
        The images that it was measured on.
    view
        What to keep apart; by default the data set's, see :data:`VIEWS`.
    steps
        Images of a traversal.

    Returns
    -------
    Portrait

    Raises
    ------
    ValueError
        If the run was not measured, as one that diverged, if its posterior means are not those of the data set's
        images, if the view names no factors of it, or if ``steps`` is less than 2.
    """
    if result.evaluation is None:
        raise ValueError("result must have an evaluation: this run diverged, or was not measured")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= _MOST_SIZE:
        raise ValueError(f"steps must be an integer from 2 to {_MOST_SIZE}, got {steps!r}")
    view = VIEWS.get(dataset.name, View()) if view is None else view
    names, sizes = dataset.factor_names, dataset.factor_sizes
    _check_view(view, names)
    mean, log_var = (getattr(result.evaluation, name).detach() for name in ("mean", "log_var"))
    if mean.ndim != 2 or mean.shape[0] != len(dataset) or mean.shape != log_var.shape:
        raise ValueError(
            f"mean and log_var must have shape (N, K) with N = {len(dataset)} images, got {tuple(mean.shape)} and "
            f"{tuple(log_var.shape)}"
        )

    split = () if view.split is None else (names.index(view.split),)
    kept = [tuple(sorted({*split, number})) for number in range(len(names))]
    if view.plane is not None:
        kept.append(tuple(sorted(names.index(name) for name in view.plane)))
    centre, deviation, noise, averages = _averages(mean, log_var, sizes, kept)
    curves = {}
    for number, (name, average) in enumerate(zip(names, averages, strict=False)):
        curve = np.moveaxis(average, -1, 0)
        after = split and number < split[0]  # the split's axis is the last, where it is to be the one before
        curves[name] = curve[:, None] if curve.ndim == 2 else np.swapaxes(curve, 1, 2) if after else curve
    plane = None
    if view.plane is not None:
        plane = np.moveaxis(averages[-1], -1, 0)
        plane = plane if names.index(view.plane[0]) < names.index(view.plane[1]) else np.swapaxes(plane, 1, 2)

    mig = result.evaluation.mig
    information = mig.mutual_information.cpu().numpy()
    best, most = information.argmax(0), information.max(0)
    active = result.evaluation.active.nonzero().flatten().tolist()
    shown = sorted(active, key=lambda k: (best[k], -most[k], k))

    middle = {name: size // 2 for name, size in zip(names, sizes, strict=True) if name != view.split}
    base = dataset.index(**middle)
    low, high = (ends[shown].double() for ends in torch.aminmax(mean, dim=0))
    values = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, steps, dtype=torch.float64, device=low.device)
    start = mean[base.to(mean.device)]
    along = start.expand(len(shown), steps, *start.shape).transpose(1, 2).clone()  # (A, S, T, K)
    for row, k in enumerate(shown):
        along[row, :, :, k] = values[row].to(along.dtype)
    decode = _decoder(result.model, result.run.likelihood)
    traversals = decode(along.reshape(-1, mean.shape[1])).reshape(*along.shape[:3], *dataset.image_shape)

    def single(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array, dtype=np.float32)

    return Portrait(
        about={name: result.record[name] for name in _KEPT if name in result.record},
        factors=dataset.factors_info,
        view=view,
        scored=tuple(names[number] for number in mig.factors),
        mean=single(centre),
        deviation=single(deviation),
        noise=single(noise),
        mutual_information=single(information),
        curves={name: single(curve) for name, curve in curves.items()},
        plane=None if plane is None else single(plane),
        shown=np.array(shown, np.int64),
        values=single(values.cpu().numpy()),
        originals=_grey_levels(dataset.images(base.to(dataset.device))),
        reconstructions=decode(start),
        traversals=traversals,
    )


def _averages(
    mean: Tensor, log_var: Tensor, sizes: Sequence[int], kept: Sequence[tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Average over a grid of factors, in float64, a value of the first factor at a time.

    Returns the mean (K,), the standard deviation (K,) and the posterior's root mean square deviation (K,), and for each
    set of factors kept, in increasing order, the mean over all others, (*sizes of those kept, K).
    """
    k = mean.shape[1]
    grid, spread = mean.reshape(sizes[0], -1, k), log_var.reshape(sizes[0], -1, k)
    zeros = partial(torch.zeros, dtype=torch.float64, device=mean.device)
    tables = [zeros((*(sizes[f] for f in axes), k)) for axes in kept]
    centres, scatter, variance = zeros((sizes[0], k)), zeros(k), zeros(k)
    for first in range(sizes[0]):
        block = grid[first].double().reshape(*sizes[1:], k)
        for table, axes in zip(tables, kept, strict=True):
            others = [f - 1 for f in range(1, len(sizes)) if f not in axes]
            part = block.mean(others) if others else block
            if 0 in axes:
                table[first] = part
            else:
                table += part / sizes[0]
        block = block.reshape(-1, k)
        centres[first] = block.mean(0)
        scatter += block.var(0, correction=0) / sizes[0]
        variance += spread[first].exp().mean(0, dtype=torch.float64) / sizes[0]
    found = (centres.mean(0), (scatter + centres.var(0, correction=0)).sqrt(), variance.sqrt())
    return *(one.cpu().numpy() for one in found), [table.cpu().numpy() for table in tables]


def _grey_levels(images: Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _decoder(model: Any, likelihood: str) -> Callable[[Tensor], np.ndarray]:
    """Return a function from latents (B, K) to mean images, uint8 (B, C, H, W)."""

    def decode(z: Tensor) -> np.ndarray:
        training = model.training
        model.eval()
        weight = next(model.parameters())
        images = []
        try:
            with torch.no_grad():
                for part in z.to(weight.device, weight.dtype).split(_DECODED):
                    outputs = model.decode(part).float()
                    images.append(_grey_levels(outputs.sigmoid() if likelihood == "bernoulli" else outputs))
        finally:
            model.train(training)
        return np.concatenate(images)

    return decode


# ---------------------------------------------------------------------------------------------------------------------
# The one that stands for its kind


@dataclass(frozen=True)
class Representative:
    """The run that A.5 would show of all runs of one kind, or what is missing of it.

    Attributes
    ----------
    study : int
        Which of the studies it is from.
    recorded, wanted : int
        Runs of this kind in that study that are recorded and went well, and runs that it names.
    record : dict or None
        The record of the run that was chosen; None where no run is recorded.
    portrait : Portrait or None
        Its portrait; None where there is none.
    """

    study: int
    recorded: int
    wanted: int
    record: Mapping[str, Any] | None
    portrait: Portrait | None


def find_representative(
    studies: Sequence[Any], choose: Callable[[np.ndarray, np.ndarray], int], portraits: Iterable[Path]
) -> Representative:
    """Choose one of several runs, and find its portrait.

    Parameters
    ----------
    studies
        One or more, in order of preference: :class:`isa.sweep.Records` of runs of one kind, as ``select`` gives them.
        The first is taken whose representative has a portrait; if none has, the first with a run; else the first.
    choose
        :func:`edition.stats.representative`: from MIG and log-likelihood of every run to the index of one.
    portraits
        Files of portraits; a name ends with the hash of its run.

    Raises
    ------
    ValueError
        If there is no study, or the file of the run chosen is no portrait or that of another run.
    """
    paths = {path.stem.rpartition("-")[2]: path for path in portraits}
    found = []
    for number, records in enumerate(studies):
        rows = [row for row in records if row["status"] == "trained"]
        record = picture = None
        if rows:
            record = rows[choose(*(np.array([row[name] for row in rows]) for name in ("mig", "log_likelihood")))]
            path = paths.get(record["hash"])
            picture = None if path is None else Portrait.load(path)
            if picture is not None and picture.about.get("hash") != record["hash"]:
                raise ValueError(f"{path} is the portrait of run {picture.about.get('hash')}, not of {record['hash']}")
        found.append(Representative(number, len(rows), records.wanted, record, picture))
    if not found:
        raise ValueError("studies must have at least one study, got none")
    return max(found, key=lambda one: (one.portrait is not None, one.record is not None, -one.study))
