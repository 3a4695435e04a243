"""``isa`` on the command line: ``data``, ``train``, ``sweep``, ``status`` and ``mig``, each with ``--help``.

Bad input gives one line on stderr and status 2; a later failure or a diverged run, status 1.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from importlib import import_module
from json import dumps, loads
from pathlib import Path
from typing import Any, NoReturn

import torch

from isa import data, engine, packs, results, score, sweep
from isa.run import Run

__all__ = ["main"]


def _value(text: str) -> Any:
    """Return a number, a tuple of comma-separated numbers, or text."""
    try:
        values = loads(f"[{text}]")
    except ValueError:
        return text
    return values[0] if len(values) == 1 else tuple(values)


_OPTIONS: dict[str, dict[str, Any]] = {
    "specs": {"metavar": "SPEC", "nargs": "+", "help": "a specification, such as runs/dsprites.yaml"},
    "name": {"metavar": "NAME", "choices": data.NAMES, "help": f"one of {', '.join(data.NAMES)}"},
    "source": {"metavar": "PATH", "help": "published .npz of dsprites, folder of cars3d or tensor of faces3d"},
    "verify": {"help": "draw or read the images again; compare checksums and published numbers"},
    "output": {"metavar": "DIR", "type": Path, "help": "folder of the results; by default trained/KEY"},
    "tier": {"metavar": "N", "type": int, "help": "train the tiers up to this one; by default all"},
    "budget": {"metavar": "SECONDS", "type": float, "help": "start only runs that finish in time; 0 trains nothing"},
    "scheduler": {"metavar": "ADDRESS", "help": "Dask scheduler whose workers train, such as tcp://head:8786"},
    "pack": {"metavar": "N", "type": int, "help": "runs to train at once; by default 18 on a GPU, 1 on a CPU"},
    "out": {"metavar": "FOLDER", "help": "copy new records and portraits there after every pack"},
    "profile": {"metavar": "FILE", "help": "first write the times of 30 steps of each kind of missing run, by kernel"},
    "keep_models": {"help": "keep trained models, below work/ next to the specification"},
    "device": {"metavar": "NAME", "help": "cpu, cuda or cuda:N; by default a GPU if there is one"},
    "file": {"metavar": "FILE", "type": Path, "help": ".npz or .csv of posteriors and factor values, a row per image"},
    "factors": {"metavar": "NAMES", "type": lambda text: text.split(","), "help": "factors to score, as in scale,x,y"},
    "deterministic": {"help": "score means alone, with noise of 1/20 of their standard deviation"},
    "binned": {"metavar": "BINS", "type": int, "help": "add the MIG of means in BINS bins (Locatello et al.: 20)"},
    "samples": {"metavar": "N", "type": int, "help": "add the MIG from N draws per mixture (Chen et al.: 10000)"},
    "subspaces": {"metavar": "SIZES", "type": _value, "help": "add the MIG of subspaces, as in 4,4,4,4,4"},
    "json": {"help": "print all numbers as JSON"},
    "cache_dir": {"metavar": "DIR", "help": "of drawn images; by default $ISA_CACHE_DIR, else the user's cache"},
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"isa: error: {message}; see {self.prog} --help\n")


def _complain(kind: str, message: object) -> None:
    print(f"isa: {kind}:", " ".join(str(message).split()) or type(message).__name__, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, by default with the arguments of the process, and return its exit status."""
    parser = _Parser(prog="isa", description="Independent subspace analysis with Lp-nested priors.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (_data, _train, _sweep, _status, _mig):
        _add(commands, command)
    arguments = vars(parser.parse_args(argv))
    run, device = arguments.pop("run"), arguments.get("device")
    if isinstance(size := arguments.get("subspaces"), int):
        arguments["subspaces"] = (size,)
    if device and not arguments.get("scheduler"):
        names = ["cpu", *["cuda"] * torch.cuda.is_available(), *map("cuda:{}".format, range(torch.cuda.device_count()))]
        if device not in names:
            parser.error(f"argument --device: must be one of {', '.join(names)}, got {device!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("always", data.CacheWarning)
        warnings.showwarning = lambda message, *_: _complain("warning", message)
        try:
            return run(**arguments)
        except (ValueError, KeyError, TypeError, OSError, torch.OutOfMemoryError) as error:
            _complain("error", error)
            return 2 if isinstance(error, ValueError | KeyError | TypeError | FileNotFoundError) else 1
        except KeyboardInterrupt:
            print("isa: interrupted", file=sys.stderr)
            return 1


def _add(commands: Any, run: Callable[..., int]) -> None:
    """Add a command. Its options are the parameters of its function, and of the one to which this passes options."""
    summary, description, examples = str(inspect.getdoc(run)).split("\n\n")
    texts = {"help": summary.lower().rstrip("."), "description": description, "epilog": examples}
    parser = commands.add_parser(run.__name__[1:], **texts, usage="isa train [options]" if run is _train else None)
    parser.set_defaults(run=run)
    passed_to: dict[Any, Callable] = {_sweep: sweep.sweep, _mig: score.score}
    for function in dict.fromkeys((run, passed_to.get(run, run))):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in _OPTIONS and parameter.default is parameter.empty:
                parser.add_argument(name, **_OPTIONS[name])
            elif name in _OPTIONS:
                kind = {"action": "store_true"} if parameter.default is False else {"default": parameter.default}
                parser.add_argument(f"--{name.replace('_', '-')}", **_OPTIONS[name], **kind)
    if run is _train:
        _add_fields(parser)


def _add_fields(parser: argparse.ArgumentParser) -> None:
    """Add the fields of a run as options, with their descriptions in its docstring."""
    add: dict[str, Callable] = {}
    for names, text in re.findall(r"^(\w+(?:, \w+)*)\n((?: {4}.+\n)+)", f"{inspect.getdoc(Run)}\n", re.M):
        group = parser.add_argument_group(description=" ".join(text.replace("`", "").split()))
        add |= dict.fromkeys(names.split(", "), group.add_argument)
    for name, field in Run.model_fields.items():
        kind = {"action": "store_true"} if field.default is False else {"type": _value, "metavar": "VALUE"}
        default = None if field.default is None or field.default is False else f"default: {field.default}"
        flag = f"--{name.replace('_', '-')}"
        add.get(name, parser.add_argument)(flag, default=argparse.SUPPRESS, help=default, **kind)


def _data(name: str, source: str | None = None, verify: bool = False, cache_dir: str | None = None) -> int:
    """Describe and check a data set.

    Print factors, source, licence and checksum of a data set. Without --source, dsprites is drawn pixel by pixel, and
    faces3d is a procedural stand-in, drawn once and cached; cars3d needs its published files.

    examples: isa data dsprites; isa data cars3d --source cars/ --verify
    """
    load = partial(data.load, name, source, progress=sys.stderr.isatty())
    dataset = load(cache_dir=cache_dir)
    print(f"{dataset.title}\n{'images':16}{len(dataset):,} of {' x '.join(map(str, dataset.image_shape))}")
    for factor in dataset.factors_info:
        first, last = (f"{x:.4g}" if factor.values.dtype.kind == "f" else str(x) for x in factor.values[[0, -1]])
        print(f"{'factor':16}{factor.name:12} {factor.size:3d} values, {first} to {last} {factor.unit}".rstrip())
    for title, text in (vars(dataset.provenance) | {"in_memory": f"sha256:{dataset.checksum}"}).items():
        print(f"{title.replace('_', ' '):16}{text}")
    checks = []
    if verify:
        with tempfile.TemporaryDirectory() as empty:
            again = load(cache_dir=empty).checksum
        checks = [("the images made again without the cache have the same SHA-256", again == dataset.checksum)]
        checks += getattr(import_module(f"isa.data.{name}"), "verify", lambda dataset: [])(dataset)
    for sentence, passed in checks:
        print(f"{'holds' if passed else 'FAILS':16}{sentence}")
    return 0 if all(passed for _, passed in checks) else 1


def _train(output: Path | None = None, device: str | None = None, cache_dir: str | None = None, **fields: Any) -> int:
    """Train one model and measure it.

    Train one model, measure it over all images (MIG, log-likelihood, ELBO, active latents), and save model.safetensors,
    curve.safetensors and record.json. Options that are left out take the values of the paper's Tables 1 and 2 (7,200
    steps of 2,048 images on dsprites). The same command continues an interrupted training, and prints the result of a
    finished one. Separate the numbers of a list by commas: --subspaces 4,3,3.

    examples: isa train --objective isa-vae --beta 1 --seed 0; the same with --steps 200 for a quick look; isa train
    --dataset faces3d --objective isa-vae --learn-exponents; isa train --objective isa-vae --prior '2.1[5*2.2[4]]'
    """
    run = Run(**fields)
    folder = output or Path("trained") / run.key
    if not (folder / "record.json").exists():
        engine.train(run, device=device, cache_dir=cache_dir, checkpoints=folder).save(folder)
        engine.checkpoint_path(folder, run).unlink(missing_ok=True)
    record = results.read_record(folder / "record.json")
    if record["hash"] != run.hash:
        raise ValueError(f"--output must be another folder: {folder} contains the run {record['key']}")
    print(f"{packs.summary(record)}\nsaved in {folder}: record.json has all measurements")
    return 0 if record["status"] == "trained" else 1


def _sweep(**options: Any) -> int:
    """Train the runs of specifications that have no record yet.

    Train and measure every run that a specification names and that its table of records, the .csv next to it, lacks:
    tier 1 of each specification in turn, then tier 2. The same command continues an interrupted sweep. Several sweeps
    of one specification share its runs.

    examples: isa sweep runs/dsprites.yaml --tier 1; isa sweep runs/dsprites*.yaml --budget 3600; isa sweep
    runs/dsprites.yaml --scheduler tcp://head:8786
    """
    named = [sweep.Spec.read(path) for path in options.pop("specs")]
    for spec, records in zip(named, sweep.sweep(named, **options, report=partial(print, flush=True)), strict=True):
        diverged = len(records.select(status="diverged"))
        note = f", {diverged:,} of them diverged" if diverged else ""
        print(f"{spec.record}: {len(records):,} of {records.wanted:,} runs recorded{note}")
    return 0


def _status(specs: list[str], device: str | None = None) -> int:
    """Show which runs are recorded, which remain, and how long these will take here.

    Print, tier by tier, how many runs are named, recorded, diverged and in training, and how long the rest will take on
    this machine, estimated from its own records of runs of the same kinds.

    example: isa status runs/dsprites.yaml
    """
    for spec in map(sweep.Spec.read, specs):
        print(f"{spec.title} ({spec.path})\n  tier     runs  recorded  diverged  training   time for the rest, here")
        for tier, runs, recorded, diverged, training, seconds in sweep.status(spec, device):
            rest = "unknown: this machine has not recorded this kind of run"
            if seconds is not None:
                rest = "done" if recorded == runs else str(timedelta(seconds=round(seconds)))
            print(f"{tier:6} {runs:8,} {recorded:9,} {diverged:9,} {training:9,}   {rest}")
    return 0


def _mig(
    file: Path, factors: list[str] | None = None, deterministic: bool = False, json: bool = False, **options: Any
) -> int:
    """Score posteriors of any model: the mutual information gap, factor by factor, and other measures.

    FILE.npz contains the arrays mean and log_var (N, K), the posteriors of N images in any order, and the integers
    factors (N, F); names (F,) is optional. FILE.csv has the columns z0, z1, ... and log_var0, log_var1, ...; all others
    are factors. The gap of a factor is the difference between the two largest entries of its row of mutual information,
    divided by its entropy. The information is estimated from one draw of each posterior; sums over the N rows are exact
    up to the printed bound. Intervals of 95 % come from 100 bootstrap resamples of the rows. They show how far the
    score would move with other rows of the same kind, and mean little if the rows are a full grid. They do not correct
    the estimate from few rows, which is too high.

    examples: isa mig codes.npz; isa mig codes.npz --binned 20 --samples 10000 --json; isa mig codes.csv --factors
    scale,x,y --subspaces 4,4,4,4,4
    """
    arrays = score.read(file, factors, deterministic)
    if sys.stderr.isatty():
        print(f"scoring {len(arrays[0]):,} rows ...", file=sys.stderr)
    result = score.score(arrays, **options)
    print(dumps(result, indent=1) if json else score.report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
