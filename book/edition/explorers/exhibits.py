"""Data of the explorers of records and of trained models.

::

    trade_off([sweep(Spec.read("runs/dsprites.yaml"), budget=0)], Path("runs/portraits").glob("*.npz"))
    latents(choose(Path("runs/decoders").glob("*.safetensors"), ["beta-vae", "isa-vae"], beta=1.0))

Everything is JSON for :func:`edition.explorers.explorer`; paths of files start from the root, ``runs/...``.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from edition import stats
from edition.explorers import decoders
from edition.figures import style
from edition.figures.results import METHODS, prior, scale
from isa.latents import Portrait

__all__ = [
    *("PLAIN", "Exhibit", "choose", "curves", "latents", "measured", "method", "standing", "title", "trade_off"),
    "write_file",
]

PLAIN = {"beta-tcvae": "beta-vae", "isa-tcvae": "isa-vae"}
"""Objectives with a total correlation, and those that they equal at beta = 1, and are recorded as there."""

_COLOURS = {getattr(style, name.upper()): name for name in ("blue", "orange", "green", "vermilion", "purple", "sky")}


def method(row: Mapping[str, Any]) -> str:
    """Return the key of :data:`edition.figures.results.METHODS` that a run belongs to."""
    return f"{row['objective']}, learned" if row["learn_exponents"] else row["objective"]


def title(row: Mapping[str, Any]) -> str:
    """Return the length of a run's training as text, with a word if it is reduced."""
    return scale(row["total_steps"], row["batch_size"], row["reduced"])


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


class Exhibit(NamedTuple):
    """A compressed decoder, its file, and the portrait of its run."""

    path: Path
    decoder: decoders.CompressedDecoder
    portrait: Portrait

    @property
    def run(self) -> dict[str, Any]:
        """Return fields of the run's record."""
        return self.portrait.about


def choose(paths: Iterable[Path], objectives: Sequence[str], beta: float) -> dict[str, Exhibit]:
    """Return one of the decoders in these files for each objective at this beta, if there is one.

    Each has the portrait of the same name in the folder ``portraits`` next to its own. The order of preference is: runs
    at the paper's scale, then those with more images.
    """
    folders = {path: path.parent.parent / "portraits" for path in paths}
    exhibits = [
        Exhibit(path, decoders.CompressedDecoder.load(path), Portrait.load(folder / f"{path.stem}.npz"))
        for path, folder in sorted(folders.items())
    ]
    exhibits.sort(key=lambda one: (one.run["reduced"], -one.run["total_steps"] * one.run["batch_size"]))
    kinds = {(one.run["objective"], one.run["beta"]): one for one in reversed(exhibits)}
    return {name: kinds[name, beta] for name in objectives if (name, beta) in kinds}


def latents(chosen: Mapping[str, Exhibit], start: str = "heart") -> dict[str, Any]:
    """Return the data of the latent explorer for these decoders, as :func:`choose` returns them.

    ``start`` is the name of the first image to show; if there is none of this name, it is the first of all. The result
    is for ``book/_static/explorers/latents.js``: ``sides``, one for each decoder, with ``label``, ``title``, ``file``,
    the ``bytes`` that a page loads, and ``sliders`` of the active latents; ``starts``, with ``name`` and ``image``,
    base64 of its bytes; and ``start``, the number of an image.
    """
    sides = []
    for name, one in chosen.items():
        label, portrait = METHODS[name].label, one.portrait
        informative = portrait.informative.items()
        sides.append(
            {
                "label": label,
                "title": f"{label}, β = {one.run['beta']:g}, seed {one.run['seed']}, {title(one.run)}",
                "file": f"runs/decoders/{one.path.name}",
                "bytes": len(decoders.to_script(one.path)),
                "sliders": [
                    {"latent": k, "factor": factor, "nats": nats, "low": float(values[0]), "high": float(values[-1])}
                    for (k, (factor, nats)), values in zip(informative, portrait.values, strict=True)
                ],
            }
        )
    bases, images = portrait.bases, (base64.b64encode(image.tobytes()).decode() for image in portrait.originals)
    starts = [{"name": name, "image": image} for name, image in zip(bases, images, strict=True)]
    return {"sides": sides, "starts": starts, "start": bases.index(start) if start in bases else 0}


def standing(run: Mapping[str, Any], studies: Iterable[Iterable[Mapping[str, Any]]]) -> str:
    """Describe a run among the recorded runs that differ from it in their seed only (A.5)."""
    rows = measured(studies)
    kinds = {row["hash"]: (title(row), method(row), prior(row), row["beta"]) for row in rows}
    if run["hash"] not in kinds:
        return "not among the records of this page"
    rows = [row for row in rows if kinds[row["hash"]] == kinds[run["hash"]]]
    row = rows[stats.representative(*([row[name] for row in rows] for name in ("mig", "log_likelihood")))]
    if len(rows) == 1:
        return "the only one recorded"
    if row["hash"] == run["hash"]:
        return f"represents {len(rows)} recorded runs"
    return f"one of {len(rows)} recorded runs, represented by seed {row['seed']}"


def write_file(path: Path, folder: Path) -> None:
    """Write what a page may load later: a decoder as a script, a portrait's traversals as one picture.

    The picture has a row for each start and, within it, for each latent, and a column for each step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".npz":
        (folder / f"{path.stem}.js").write_text(decoders.to_script(path), encoding="ascii")
        return
    tiles = Portrait.load(path).traversals  # (latents, starts, steps, channels, height, width)
    latents, starts, steps, channels, height, width = tiles.shape
    pixels = tiles.transpose(1, 0, 4, 2, 5, 3).reshape(starts * latents * height, steps * width, channels)
    picture = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    picture.save(folder / f"{path.stem}.png", optimize=True)
