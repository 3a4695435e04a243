"""Data of the explorers of records and of trained models: runs with their means, and decoders to load.

::

    trade_off([sweep(Spec.read("runs/dsprites.yaml"), budget=0)], Path("runs/portraits").glob("*.npz"))
    latents(choose(Path("runs/decoders").glob("*.bin"), ["beta-vae", "isa-vae"], beta=1.0))

Everything is what JSON can say, for :func:`edition.explorers.explorer`; files are named from the root, ``runs/...``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edition import stats
from edition.explorers import decoders
from edition.figures import style
from edition.figures.results import METHODS, prior, scale
from isa.latents import Portrait

__all__ = ["PLAIN", "Exhibit", "choose", "curves", "latents", "measured", "method", "standing", "title", "trade_off"]

PLAIN = {"beta-tcvae": "beta-vae", "isa-tcvae": "isa-vae"}
"""Objectives with a total correlation, and what they are at beta = 1, and recorded as."""

_COLOURS = {getattr(style, name.upper()): name for name in ("blue", "orange", "green", "vermilion", "purple", "sky")}


def method(row: Mapping[str, Any]) -> str:
    """Return the key of :data:`edition.figures.results.METHODS` that a run belongs to."""
    return f"{row['objective']}, learned" if row["learn_exponents"] else row["objective"]


def title(row: Mapping[str, Any]) -> str:
    """Return how long a run was trained, and whether it is reduced, in words."""
    return scale(row["total_steps"], row["batch_size"], row["reduced"])


def measured(studies: Iterable[Iterable[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """Return all runs that did not diverge, each once, with a method of :data:`edition.figures.results.METHODS`."""
    rows = {row["hash"]: row for records in studies for row in records if row["status"] == "trained"}
    return [row for row in rows.values() if method(row) in METHODS]


def trade_off(
    studies: Iterable[Iterable[Mapping[str, Any]]], portraits: Iterable[Path] = (), most: int = 40
) -> dict[str, Any]:
    """Return every run of one data set with its record in short, and the means over seeds that Fig. 5b draws.

    Parameters
    ----------
    studies
        Records, as :func:`isa.sweep.sweep` returns them; runs are in the order of how they were trained (the first one
        recorded first), method, beta and seed.
    portraits
        Files of portraits; a name ends with the hash of its run. Those of other runs are ignored.
    most
        Maximum number of portraits, each of which becomes a picture beside the page. Those of the runs that represent
        their way of training, method, prior and beta (A.5) come first.

    Returns
    -------
    dict
        For ``book/_static/explorers/trade-off.js``: ``methods``, ``studies`` (ways of training, with their
        ``title``, and whether they are ``reduced``), ``priors``, ``devices`` and ``commits``, to which the runs refer
        by number; ``runs``, columns and rows; ``means``, each with ``line``, the number of the line that it is on;
        ``portraits`` by hash; ``first``, the run that is chosen at first: the first with a portrait, else the one of
        the highest MIG in the first study.
    """
    rows = measured(studies)
    names = [name for name in METHODS if any(method(row) == name for row in rows)]
    titles = list(dict.fromkeys(map(title, rows)))
    priors = list(dict.fromkeys(map(prior, rows)))
    devices = list(dict.fromkeys(row["device"] for row in rows))
    commits = list(dict.fromkeys(_short(row["commit"]) for row in rows))

    def order(row: Mapping[str, Any]) -> tuple:
        return titles.index(title(row)), names.index(method(row)), priors.index(prior(row)), row["beta"], row["seed"]

    rows.sort(key=order)
    factors = rows[0]["factors"]
    columns: dict[str, list[Any]] = {
        "study": [titles.index(title(row)) for row in rows],
        "method": [names.index(method(row)) for row in rows],
        "prior": [priors.index(prior(row)) for row in rows],
        "beta": [row["beta"] for row in rows],
        "seed": [row["seed"] for row in rows],
        "mig": [round(row["mig"], 5) for row in rows],
        "mig_error": [round(row["mig_standard_error"], 5) for row in rows],
        "gaps": [[round(row[f"mig_{name}"], 4) for name in factors] for row in rows],
        "fit": [round(row["log_likelihood"], 3) for row in rows],
        "elbo": [round(row["elbo"], 3) for row in rows],
        "active": [row["active_units"] for row in rows],
        "exponents": [row["exponents"] and [round(p, 3) for p in row["exponents"]] for row in rows],
        "seconds": [round(row["train_seconds"] / row["pack_size"], 1) for row in rows],
        "device": [devices.index(row["device"]) for row in rows],
        "commit": [commits.index(_short(row["commit"])) for row in rows],
        "hash": [row["hash"] for row in rows],
    }
    pictures = _portraits(_by_standing(rows), portraits, most)
    shown = [number for number, row in enumerate(rows) if row["hash"] in pictures]
    best = max((n for n, study in enumerate(columns["study"]) if study == 0), key=lambda n: columns["mig"][n])
    return {
        "methods": [
            {
                "label": METHODS[name].label,
                "colour": _COLOURS[METHODS[name].colour],
                "marker": METHODS[name].marker,
                "weight": "γ" if name == "factor-vae" else "β",
            }
            for name in names
        ],
        "studies": [
            {"title": one, "reduced": next(row["reduced"] for row in rows if title(row) == one)} for one in titles
        ],
        "priors": priors,
        "devices": devices,
        "commits": commits,
        "factors": factors,
        "runs": {"columns": list(columns), "rows": [list(cells) for cells in zip(*columns.values(), strict=True)]},
        "means": _means(rows, titles, names, priors),
        "portraits": pictures,
        "first": shown[0] if shown else best,
    }


def _short(commit: str | None) -> str:
    """Return the commit's first digits, with the mark of files that differed from it."""
    return "none" if commit is None else commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def curves(trained: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, stats.Curve]:
    """Return the means over seeds at each beta, as Fig. 5b, 5c and 6 show them, by method.

    ``trained`` has the runs of each method. That of an objective with a total correlation begins at beta = 1 with those
    of the plain one (:data:`PLAIN`), unless it has runs of its own there.
    """
    return {name: _curve(runs, trained.get(PLAIN.get(name), ())) for name, runs in trained.items() if len(runs)}


def _curve(runs: Sequence[Mapping[str, Any]], plain: Iterable[Mapping[str, Any]]) -> stats.Curve:
    own = {row["beta"] for row in runs}
    members = [*runs, *(row for row in plain if row["beta"] == 1 and 1 not in own)]
    return stats.curve(*([row[field] for row in members] for field in ("beta", "log_likelihood", "mig")))


def _means(
    rows: Sequence[Mapping[str, Any]], titles: Sequence[str], names: Sequence[str], priors: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a line of means over seeds for each way of training, method and prior."""
    groups = dict.fromkeys((title(row), method(row), prior(row)) for row in rows)
    means = []
    for line, (trained, name, kind) in enumerate(groups):
        wanted = [(trained, name, kind), (trained, PLAIN.get(name), kind)]
        members, plain = ([row for row in rows if (title(row), method(row), prior(row)) == one] for one in wanted)
        for beta, fit, mig, fit_error, mig_error, n in zip(*_curve(members, plain)[:6], strict=True):
            means.append(
                {
                    "line": line,
                    "study": titles.index(trained),
                    "method": names.index(name),
                    "prior": priors.index(kind),
                    "beta": float(beta),
                    "fit": round(float(fit), 3),
                    "mig": round(float(mig), 5),
                    "fit_error": None if n == 1 else round(float(fit_error), 4),
                    "mig_error": None if n == 1 else round(float(mig_error), 6),
                    "n": int(n),
                }
            )
    return means


def _by_standing(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the runs, those first that represent the ones which differ from them in their seed alone."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((title(row), method(row), prior(row), row["beta"]), []).append(row)
    first = [_representative(group) for group in groups.values()]
    chosen = {row["hash"] for row in first}
    return first + [row for row in rows if row["hash"] not in chosen]


def _representative(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return rows[stats.representative(*([row[name] for row in rows] for name in ("mig", "log_likelihood")))]


def _portraits(rows: Sequence[Mapping[str, Any]], paths: Iterable[Path], most: int) -> dict[str, dict[str, Any]]:
    """Return the data of the portraits of the first of these runs, those with an active latent, by hash."""
    by_hash = {path.stem.rpartition("-")[2]: path for path in paths}
    found: dict[str, dict[str, Any]] = {}
    for own, path in ((row["hash"], by_hash[row["hash"]]) for row in rows if row["hash"] in by_hash):
        if len(found) == most:
            break
        portrait = Portrait.load(path)
        if len(portrait.shown):
            found[own] = {
                "file": f"runs/portraits/{path.name}",
                "bases": list(portrait.bases),
                "latents": [[k, factor, round(nats, 3)] for k, (factor, nats) in portrait.informative.items()],
                "steps": portrait.traversals.shape[2],
                "size": list(portrait.traversals.shape[-2:]),
            }
    return found


class Exhibit(NamedTuple):
    """A compressed decoder and its file."""

    path: Path
    decoder: decoders.CompressedDecoder

    @property
    def run(self) -> dict[str, Any]:
        """Fields of the record of the run that it is of."""
        return self.decoder.about["run"]


def choose(paths: Iterable[Path], objectives: Sequence[str], beta: float) -> dict[str, Exhibit]:
    """Return one of the decoders in these files for each objective at this beta, if there is one.

    One that was trained at the paper's scale goes before one that is reduced, then more images before fewer.
    """
    found: dict[str, Exhibit] = {}
    exhibits = [Exhibit(path, decoders.CompressedDecoder.load(path)) for path in sorted(paths)]
    exhibits.sort(key=lambda one: (one.run["reduced"], -one.run["total_steps"] * one.run["batch_size"]))
    for name in objectives:
        of = [one for one in exhibits if one.run["objective"] == name and one.run["beta"] == beta]
        if of:
            found[name] = of[0]
    return found


def latents(chosen: Mapping[str, Exhibit], start: str = "heart") -> dict[str, Any]:
    """Return the data of the latent explorer for these decoders, as :func:`choose` returns them.

    ``start`` names the image that is started from, or the first image is. The result is for
    ``book/_static/explorers/latents.js``: ``sides``, each with ``label``, ``title``, ``file`` and the ``bytes`` that a
    page loads, and ``start``, the number of an image.
    """
    sides = []
    for name, one in chosen.items():
        label = METHODS[name].label
        sides.append(
            {
                "label": label,
                "title": f"{label}, β = {one.run['beta']:g}, seed {one.run['seed']}, {title(one.run)}",
                "file": f"runs/decoders/{one.path.name}",
                "bytes": len(decoders.to_script(one.path)),
            }
        )
    names = [image["name"] for image in next(iter(chosen.values())).decoder.about["starts"]]
    return {"sides": sides, "start": names.index(start) if start in names else 0}


def standing(run: Mapping[str, Any], studies: Iterable[Iterable[Mapping[str, Any]]]) -> str:
    """Describe a run among the recorded runs that differ from it in their seed alone (A.5)."""
    alike = ("objective", "beta", "total_steps", "batch_size", "prior", "subspaces", "p0", "p1", "scale")
    alike += ("learn_exponents",)
    rows = [row for row in measured(studies) if all(row[name] == run[name] for name in alike)]
    if run["hash"] not in [row["hash"] for row in rows]:
        return "not among the records of this page"
    row = _representative(rows)
    if len(rows) == 1:
        return "the only one recorded"
    if row["hash"] == run["hash"]:
        return f"stands for {len(rows)} recorded runs"
    return f"one of {len(rows)} recorded runs, for which seed {row['seed']} would stand"
