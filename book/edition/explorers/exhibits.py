"""Data of the explorers of records and of trained models.

::

    trade_off([sweep(Spec.read("runs/dsprites.yaml"), budget=0)], Path("runs/portraits").glob("*.npz"))
    latents([Portrait.load(path) for path in paths], Path("runs/decoders").glob("*.safetensors"))

Everything is JSON for :func:`edition.explorers.explorer`; paths of files start from the root, ``runs/...``.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edition import stats
from edition.explorers import decoders
from edition.figures import style
from edition.figures.results import METHODS, prior, scale
from edition.representatives import carriers, encoded, factor_title, interpretation, ordered
from isa.latents import Portrait
from isa.sweep import Records, Spec, sweep

__all__ = ["PLAIN", "curves", "gather", "latents", "measured", "method", "sheet", "title", "trade_off", "write_file"]

PLAIN = {"beta-tcvae": "beta-vae", "isa-tcvae": "isa-vae"}
"""Objectives with a total correlation, and those that they equal at beta = 1, and are recorded as there."""

_COLOURS = {getattr(style, name.upper()): name for name in ("blue", "orange", "green", "vermilion", "purple", "sky")}


def method(row: Mapping[str, Any]) -> str:
    """Return the key of :data:`edition.figures.results.METHODS` that a run belongs to."""
    return f"{row['objective']}, learned" if row["learn_exponents"] else row["objective"]


def title(row: Mapping[str, Any]) -> str:
    """Return the length of a run's training as text, with a word if it is reduced."""
    return scale(row["total_steps"], row["batch_size"], row["reduced"])


def gather(spec: Spec, method: str, betas: Sequence[float], seeds: int, budget: float, device: str) -> Records:
    """Return a method's runs with seeds from 0 and those that a specification names, after training within a budget.

    Only runs that the specification names count as missing: its command trains no others. The runs of an objective with
    a total correlation at beta = 1 are those of the plain one (:data:`PLAIN`), returned if no other beta is asked for.
    """
    objective, _, learned = method.partition(", ")
    others = [one for one in betas if one != 1 or method not in PLAIN]
    grid = {"objective": objective if others else PLAIN[method], "beta": others or betas}
    grid |= {"learn_exponents": True} if learned else {}
    found = sweep(spec.grid(**grid, seeds=seeds, named=True), budget=budget, device=device or None)
    named = {run.hash for run in spec.runs()}
    return Records(found, [run for run in found.missing if run.hash in named], found.command)


def measured(studies: Iterable[Iterable[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """Return all runs that did not diverge, each once, with a method of :data:`edition.figures.results.METHODS`."""
    rows = {row["hash"]: row for records in studies for row in records if row["status"] == "trained"}
    return [row for row in rows.values() if method(row) in METHODS]


def trade_off(studies: Iterable[Iterable[Mapping[str, Any]]], portraits: Iterable[Path] = ()) -> dict[str, Any]:
    """Return every run of one data set with a short record, and the means over seeds that Fig. 5b draws.

    ``studies``: records, as :func:`isa.sweep.sweep` returns them; ``portraits``: files of portraits, whose names end
    with the hash of their run; those of other runs are ignored.

    The result is for ``book/_static/explorers/trade-off.js``: ``methods`` and ``studies`` (kinds of training), to which
    the runs refer by number; ``factors``; ``runs``, ordered by training (the first recorded first), method, prior, beta
    and seed; ``means``, each with ``line``, the number of its line; ``portraits`` by hash; ``first``, the run that is
    chosen at first: the one with the highest MIG, of those with a portrait or, if there are none, of the first study.
    """
    rows = measured(studies)
    names = [name for name in METHODS if name in map(method, rows)]
    reduced = {title(row): row["reduced"] for row in rows}
    titles, priors = list(reduced), list(dict.fromkeys(map(prior, rows)))

    def place(row: Mapping[str, Any]) -> tuple:
        return titles.index(title(row)), names.index(method(row)), priors.index(prior(row)), row["beta"], row["seed"]

    rows.sort(key=place)
    factors = rows[0]["factors"]
    runs = [
        {
            "study": titles.index(title(row)),
            "method": names.index(method(row)),
            "prior": prior(row),
            "beta": row["beta"],
            "seed": row["seed"],
            "mig": round(row["mig"], 5),
            "mig_error": round(row["mig_standard_error"], 5),
            "gaps": [round(row[f"mig_{name}"], 4) for name in factors],
            "fit": round(row["log_likelihood"], 3),
            "elbo": round(row["elbo"], 3),
            "active": row["active_units"],
            "exponents": row["exponents"] and [round(p, 3) for p in row["exponents"]],
            "hash": row["hash"],
        }
        for row in rows
    ]
    pictures = _portraits([row["hash"] for row in rows], portraits)
    pictured = [number for number, run in enumerate(runs) if run["hash"] in pictures]
    first_study = [number for number, run in enumerate(runs) if run["study"] == 0]
    return {
        "methods": [
            METHODS[name]._asdict()
            | {"colour": _COLOURS[METHODS[name].colour], "weight": "γ" if name == "factor-vae" else "β"}
            for name in names
        ],
        "studies": [{"title": one, "reduced": reduced[one]} for one in titles],
        "factors": factors,
        "runs": runs,
        "means": _means(rows, titles, names),
        "portraits": pictures,
        "first": max(pictured or first_study, key=lambda number: runs[number]["mig"]),
    }


def curves(trained: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, stats.Curve]:
    """Return the means over seeds at each beta, as Fig. 5b, 5c and 6 show them, by method.

    ``trained`` has the runs of each method. The curve of an objective with a total correlation begins at beta = 1 with
    the runs of the plain one (:data:`PLAIN`), unless it has runs of its own there.
    """
    return {name: _curve(runs, trained.get(PLAIN.get(name), ())) for name, runs in trained.items() if len(runs)}


def _curve(runs: Sequence[Mapping[str, Any]], plain: Iterable[Mapping[str, Any]]) -> stats.Curve:
    own = {row["beta"] for row in runs}
    members = [*runs, *(row for row in plain if row["beta"] == 1 and 1 not in own)]
    return stats.curve(*([row[field] for row in members] for field in ("beta", "log_likelihood", "mig", "seed")))


def _means(rows: Sequence[Mapping[str, Any]], titles: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a line of means over seeds for each kind of training, method and prior."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((title(row), method(row), prior(row)), []).append(row)
    fields, means = ("beta", "fit", "mig", "fit_error", "mig_error", "n"), []
    for line, ((trained, name, kind), members) in enumerate(groups.items()):
        curve = _curve(members, groups.get((trained, PLAIN.get(name), kind), ()))
        place = {"line": line, "study": titles.index(trained), "method": names.index(name)}
        for values in zip(*curve[: len(fields)], strict=True):
            numbers = [None if math.isnan(value) else round(value.item(), 6) for value in values]
            means.append(place | dict(zip(fields, numbers, strict=True)))
    return means


def _portraits(hashes: Iterable[str], paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return the data of the portraits of these runs, those with an active latent, by hash."""
    by_hash = {path.stem.rpartition("-")[2]: path for path in paths}
    portraits = {name: Portrait.load(by_hash[name]) for name in hashes if name in by_hash}
    return {
        name: {
            "file": f"runs/portraits/{by_hash[name].name}",
            "bases": portrait.bases,
            "latents": [[k, factor, round(nats, 3)] for k, (factor, nats) in portrait.informative.items()],
            "steps": portrait.traversals.shape[2],
            "size": portrait.traversals.shape[-2:],
        }
        for name, portrait in portraits.items()
        if len(portrait.shown)
    }


def latents(models: Sequence[Portrait], files: Iterable[Path] = (), start: str = "heart") -> dict[str, Any]:
    """Return the data of the latent explorer for portraits of one data set, each with an active latent.

    ``files``: those of compressed decoders, with the runs' keys as names; ``start``: name of the first image. The two
    models to begin with are the first two.

    The result is for ``book/_static/explorers/latents.js``: ``models``, each with ``images``, the address of a sheet as
    :func:`sheet` makes it, ``sliders`` of the active latents in its order, ``best``, by factor the number of the slider
    that is most informative about it and whether the two grow together, and ``file``, if it has a decoder; ``starts``,
    names of the images.
    """
    by_key, bases, size = {path.stem: path for path in files}, models[0].bases, models[0].traversals.shape
    return {
        "models": [_model(model, by_key.get(model.about["key"])) for model in models],
        "factors": [[name, factor_title(models[0], name)] for name in ordered(models[0])],
        "size": size[-2:],
        "steps": size[2],
        "starts": bases,
        "start": bases.index(start) if start in bases else 0,
    }


def _model(model: Portrait, path: Path | None) -> dict[str, Any]:
    """Return a model's part of the data."""
    about, rows, shown = model.about, _rows(model), list(encoded(model))
    label = METHODS[about["objective"]].label
    # a slider starts at the step whose image is nearest to the reconstruction
    change = model.traversals[rows].astype(float) - model.reconstructions[:, None]
    nearest = np.square(change).sum((3, 4, 5)).argmin(-1).tolist()
    sliders, best = [], {}
    for k, values, at in zip(shown, model.values[rows].tolist(), nearest, strict=True):
        names = {"latent": k, "label": f"latent {k + 1}", "hint": interpretation(model, k, short=True)}
        sliders.append(names | {"low": values[0], "high": values[-1], "at": at})
    for name in ordered(model):
        if (k := next(iter(carriers(model, name)), None)) in shown:
            first, *_, last = model.curves[name][k].mean(0)
            best[name] = shown.index(k), bool(last >= first)
    data = {
        "label": label,
        "beta": about["beta"],
        "title": f"{label}, β = {about['beta']:g}: MIG {about['mig']:.2f}",
        "note": f"A slider has {len(values)} images, drawn by the trained decoder with all other latents at the start",
        "images": "data:image/png;base64," + base64.b64encode(sheet(model)).decode(),
        "sliders": sliders,
        "best": best,
    }
    if path is not None:
        size = path.stat().st_size / 1e6
        data["file"] = f"runs/decoders/{path.name}"
        data["note"] = f"The decoder, compressed to {size:.1f} MB, runs in this page: all sliders act together"
    return data


def _rows(model: Portrait) -> list[int]:
    """Return the rows of a portrait's traversals in the order of :func:`edition.representatives.encoded`."""
    return [model.shown.tolist().index(k) for k in encoded(model)]


def sheet(model: Portrait) -> bytes:
    """Return a PNG of a portrait's images: for each start a row with image and reconstruction, then one a latent."""
    tiles = model.traversals[_rows(model)].swapaxes(0, 1)  # (starts, latents, steps, channels, height, width)
    pair = np.zeros_like(tiles, shape=(len(tiles), 1, *tiles.shape[2:]))
    pair[:, 0, :2] = np.stack([model.originals, model.reconstructions], 1)
    tiles, file = np.concatenate([pair, tiles], 1), io.BytesIO()
    _picture(tiles & 0xF8 | tiles >> 5).save(file, "png", optimize=True)  # 32 grey levels take half of the bytes
    return file.getvalue()


def _picture(tiles: np.ndarray) -> Image.Image:
    """Return images ``(starts, rows, columns, channels, height, width)`` as one, with the starts below each other."""
    starts, rows, columns, channels, height, width = tiles.shape
    pixels = tiles.transpose(0, 1, 4, 2, 5, 3).reshape(starts * rows * height, columns * width, channels)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def write_file(path: Path, folder: Path) -> None:
    """Write what a page may load later: a decoder as a script, a portrait's traversals as one picture.

    The picture has a row for each start and, within it, for each latent, and a column for each step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".npz":
        (folder / f"{path.stem}.js").write_text(decoders.to_script(path), encoding="ascii")
        return
    picture = _picture(Portrait.load(path).traversals.swapaxes(0, 1))
    picture.save(folder / f"{path.stem}.png", optimize=True)
