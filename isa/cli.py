"""``isa`` on the command line: one subcommand an errand, each with ``--help``.

A subcommand is a function that adds its parser and sets ``run``, which takes the parsed arguments and returns the exit
status; :data:`COMMANDS` lists them. Bad input ends in one line on stderr and a status that is not zero.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from isa import data
from isa._files import write_atomically
from isa.data import expand

__all__ = ["COMMANDS", "main"]

_SHOWN_DIFFERENCES = 10
_SHEET_STEPS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        Exit status: 0 where all went well, 1 where it did not. Unknown arguments exit with 2.
    """
    parser = argparse.ArgumentParser(
        prog="isa", description="Independent subspace analysis with Lp-nested priors: data, runs, records."
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(subparsers)
    arguments = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("always", data.CacheWarning)
        warnings.showwarning = _show_warning
        try:
            return arguments.run(arguments)
        except (ValueError, KeyError, TypeError, OSError, MemoryError) as error:
            print(f"isa: error: {_one_line(error)}", file=sys.stderr)
        except KeyboardInterrupt:
            print("isa: interrupted", file=sys.stderr)
    return 1


def _one_line(error: BaseException | str) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = " ".join(text.split()) or type(error).__name__
    # What a file or a name brings in must not steer the terminal.
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"isa: warning: {_one_line(message)}", file=sys.stderr)


def _add_data(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "data",
        help="describe, draw and check a data set",
        description=(
            "Print what a data set is: factors, source, licence, checksum. Without --source, dsprites is re-rendered "
            "pixel by pixel, and faces3d is a procedural stand-in, which is drawn once and then kept in the cache "
            "directory; cars3d needs its published files."
        ),
        epilog=(
            "examples: isa data dsprites --contact-sheet dsprites.png; isa data cars3d --source cars/ --verify; "
            "isa data dsprites --compare dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
        ),
    )
    parser.add_argument("name", metavar="NAME", choices=data.NAMES, help=f"one of {', '.join(data.NAMES)}")
    parser.add_argument(
        "--source",
        metavar="PATH",
        help="the published data: the .npz of dsprites, the folder of .mat files of cars3d, the tensor of faces3d",
    )
    parser.add_argument(
        "--contact-sheet", metavar="FILE", type=Path, help="draw images along every factor to a .png, .svg or .pdf"
    )
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="dsprites only: compare a file in the published format with the images drawn here, image by image, and "
        "print how many pixels differ and where",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="make the images again without the cache and compare checksums, then check the numbers that are "
        "published; exits with 1 where something does not hold",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where drawn and reduced images are kept; default is $ISA_CACHE_DIR, then the platform's convention",
    )
    parser.set_defaults(run=_run_data)


def _run_data(arguments: argparse.Namespace) -> int:
    if arguments.compare is not None and (arguments.name != "dsprites" or arguments.source is not None):
        raise ValueError("--compare compares a file with dSprites as drawn here: it takes dsprites and no --source")
    sheet = arguments.contact_sheet
    if sheet is not None:
        if sheet.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--contact-sheet must name a .png, .svg or .pdf file, got {sheet}")
        if not sheet.parent.is_dir():
            raise ValueError(f"--contact-sheet names a file in {sheet.parent}, which is no directory")
    if arguments.compare is not None and not expand(arguments.compare).is_file():
        raise ValueError(f"--compare must name a file, and {arguments.compare} is none")

    progress = sys.stderr.isatty()
    dataset = data.load(arguments.name, arguments.source, cache_dir=arguments.cache_dir, progress=progress)
    print("\n".join(_describe(dataset)))
    if sheet is not None:
        _draw_contact_sheet(dataset, sheet)
        print(f"contact sheet  {sheet}")
    if arguments.compare is not None:
        _compare(dataset, arguments.compare)
    return _verify(dataset, arguments, progress) if arguments.verify else 0


def _describe(dataset: data.FactorDataset) -> list[str]:
    """What a data set is, line by line."""
    provenance = dataset.provenance
    channels, height, width = dataset.image_shape
    lines = [dataset.title]
    if dataset.procedural:
        lines.append("A STAND-IN drawn by this package: no image is one of the published data set's")
    lines.append(f"images         {len(dataset):,} of {channels} x {height} x {width}, {dataset.nbytes / 1e6:.1f} MB")
    for position, factor in enumerate(dataset.factors_info):
        first, last = (
            f"{value:.4g}" if factor.values.dtype.kind == "f" else str(value) for value in factor.values[[0, -1]]
        )
        span = f"{factor.size:3d} values, {first} to {last} {factor.unit}".rstrip()
        lines.append(f"{'factors' if position == 0 else '':14} {factor.name:12} {span}")
    lines.append(f"source         {provenance.source}")
    if provenance.source_checksum:
        lines.append(f"               {provenance.source_checksum}")
    lines += [
        f"rendering      {provenance.rendering}",
        f"licence        {provenance.licence}",
        f"cite           {provenance.citation}",
        f"in memory      sha256:{dataset.checksum}",
    ]
    return lines


def _draw_contact_sheet(dataset: data.FactorDataset, path: Path) -> None:
    from edition.figures import data as figures

    rows = []
    for factor in dataset.factors_info:
        index = dataset.traversal(factor.name, _SHEET_STEPS)
        column = dataset.factor_names.index(factor.name)
        rows.append((factor, dataset.factors(index)[:, column].numpy(), dataset.images(index).numpy()))
    figure = figures.traversals(rows, title=dataset.title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format=path.suffix[1:].lower()))


def _compare(dataset: data.FactorDataset, path: str) -> None:
    dsprites = import_module("isa.data.dsprites")
    result = dsprites.compare(path, dataset.storage.numpy())
    published = "the published file's" if result.md5 == dsprites.PUBLISHED_MD5 else "not the published file's"
    print(f"compared with  {path}")
    print(f"md5            {result.md5}, {published}")
    print(f"images         {result.images:,}")
    print(f"lit pixels     {result.pixels:,} in the file, {result.drawn_pixels:,} in the same images drawn here")
    print(f"differing      {result.differing_pixels:,} pixels in {len(result.differences):,} images")
    for factors, pixels in result.differences[:_SHOWN_DIFFERENCES]:
        named = ", ".join(f"{name} {value}" for name, value in zip(dataset.factor_names, factors, strict=True))
        where = " ".join(f"({row}, {column})" for row, column in pixels[:_SHOWN_DIFFERENCES])
        more = f" and {len(pixels) - _SHOWN_DIFFERENCES} more" if len(pixels) > _SHOWN_DIFFERENCES else ""
        print(f"               {named}: (row, column) {where}{more}")
    if len(result.differences) > _SHOWN_DIFFERENCES:
        print(f"               and {len(result.differences) - _SHOWN_DIFFERENCES:,} more images")


def _verify(dataset: data.FactorDataset, arguments: argparse.Namespace, progress: bool) -> int:
    """Print every check with its outcome; 1 where one fails."""
    with tempfile.TemporaryDirectory() as empty:
        again = data.load(arguments.name, arguments.source, cache_dir=empty, progress=progress).checksum
    checks = [("the images made again without the cache have the same SHA-256", again == dataset.checksum)]
    module = import_module(f"isa.data.{dataset.name}")
    if hasattr(module, "verify"):
        checks += module.verify(dataset)
    for sentence, holds in checks:
        print(f"{'holds' if holds else 'FAILS':14} {sentence}")
    return 0 if all(holds for _, holds in checks) else 1


def _add_train(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train one model and measure it",
        usage="isa train [options]",
        description=(
            "Train one model, measure it over all images of its data set (MIG, log-likelihood, ELBO, active units), "
            "and save model.safetensors, curve.safetensors and record.json. What is left out is taken from the "
            "paper's Tables 1 and 2, so that the scale is the paper's: 7,200 steps of 2,048 images on dsprites. "
            "Called again with the same arguments, a training that was interrupted goes on from its last checkpoint, "
            "and one that is done is printed again."
        ),
        epilog=(
            "examples: isa train --dataset dsprites --objective isa-vae --beta 1 --seed 0; the same with --steps 200 "
            "for a quick look; isa train --dataset faces3d --objective isa-vae --learn-exponents; "
            "isa train --objective isa-vae --prior '2.1[5*2.2[4]]'"
        ),
    )
    run = parser.add_argument_group(
        "what is trained", "each is part of what the run is known by, except the source's path"
    )

    def numbers(of: Callable[[str], float]) -> Callable[[str], object]:
        def read(text: str) -> object:
            values = tuple(of(part) for part in text.split(","))
            return values[0] if len(values) == 1 and of is float else values

        read.__name__ = "number, or numbers with commas between them"
        return read

    def scale(text: str) -> float | str:
        return text if text == "unit" else float(text)

    run.add_argument("--dataset", metavar="NAME", default="dsprites", help=f"{', '.join(data.NAMES)} (dsprites)")
    run.add_argument("--source", metavar="PATH", help="the published data; without it, images drawn by this package")
    run.add_argument(
        "--objective",
        metavar="NAME",
        default="beta-vae",
        help="beta-vae (default), isa-vae, beta-tcvae, isa-tcvae or factor-vae",
    )
    run.add_argument(
        "--beta", type=float, default=1.0, help="weight of the divergence, or of the total correlation (1)"
    )
    run.add_argument("--seed", type=int, default=0, help="of parameters, order of the images and noise (0)")
    run.add_argument("--prior", metavar="PRIOR", help="normal, isa, or a tree as in 2.1[5*2.2[4]]; by the objective")
    run.add_argument("--subspaces", type=numbers(int), metavar="N,N,...", help="sizes of the ISA prior's subspaces")
    run.add_argument("--p0", type=float, help="exponent over the subspaces (2.1)")
    run.add_argument(
        "--p1", type=numbers(float), metavar="P[,P...]", help="exponent within the subspaces, or one for each"
    )
    run.add_argument("--scale", type=scale, help="scale s of Eq. 11, or unit for latents of variance 1 (1)")
    run.add_argument("--learn-exponents", action="store_true", help="learn the exponents within the subspaces, from 2")
    run.add_argument("--model", metavar="NAME", help="mlp or conv; by the data set")
    run.add_argument("--latent-dim", type=int, metavar="N", help="number of latents; by the data set or the prior")
    run.add_argument("--epochs", type=float, metavar="N", help="passes over the data; by the data set")
    run.add_argument("--steps", type=int, metavar="N", help="number of steps instead of epochs")
    run.add_argument("--batch-size", type=int, default=2048, metavar="N", help="images a step (2048)")
    run.add_argument("--learning-rate", type=float, default=1e-3, metavar="RATE", help="of the networks (0.001)")
    run.add_argument(
        "--exponent-learning-rate", type=float, default=5e-4, metavar="RATE", help="of learned exponents (0.0005)"
    )
    run.add_argument("--likelihood", metavar="NAME", default="bernoulli", help="bernoulli (default) or gaussian")
    run.add_argument("--kl", metavar="NAME", default="monte_carlo", help="monte_carlo (default) or closed_form")
    run.add_argument("--sampling", metavar="NAME", default="weighted", help="weighted (default) or stratified")
    run.add_argument("--precision", metavar="NAME", default="bf16", help="bf16 (default) or fp32")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="where results go; default is trained/ and the run's key"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda; a GPU where there is one, by default")
    parser.add_argument("--no-compile", action="store_true", help="do not compile the step")
    parser.add_argument(
        "--checkpoint-every", type=int, default=500, metavar="N", help="steps between checkpoints (500)"
    )
    parser.add_argument(
        "--mig-samples", type=int, metavar="N", help="samples of the MIG's entropies; all images by default"
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="where drawn and reduced images are kept; as for isa data")
    parser.set_defaults(run=_run_train)


def _run_train(arguments: argparse.Namespace) -> int:
    from isa import engine, results
    from isa.run import Run

    try:
        run = Run(**{name: getattr(arguments, name) for name in Run.model_fields})
        device = _train_options(arguments)
    except (ValueError, TypeError) as error:
        print(f"isa: error: {_one_line(error)}", file=sys.stderr)
        return 2
    folder = arguments.output or Path("trained") / run.key
    record = folder / "record.json"
    if record.is_file():
        found = results.read_record(record)
        if found["hash"] != run.hash:
            raise ValueError(f"--output must be another folder: {folder} holds the run {found.get('key')}")
        try:
            if found["status"] not in ("trained", "diverged"):
                raise ValueError(f"its status is {str(found['status'])[:60]!r}")
            lines = _describe_training({**found, **run.to_dict(), "key": run.key}, folder)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{record} is not the record of a training: {_one_line(error)}") from None
        print("\n".join(lines))
        return 0 if found["status"] == "trained" else 1
    if run.reduced:
        print(f"REDUCED SCALE: {run.total_steps:,} steps of {run.batch_size:,} images, fewer than the paper's")
    result = engine.train(
        run,
        device=device,
        cache_dir=arguments.cache_dir,
        compile=False if arguments.no_compile else None,
        checkpoints=folder,
        checkpoint_every=arguments.checkpoint_every,
        n_samples=arguments.mig_samples,
    )
    result.save(folder)
    engine.checkpoint_path(folder, run).unlink(missing_ok=True)
    print("\n".join(_describe_training(result.record, folder)))
    return 0 if result.diverged_at is None else 1


def _train_options(arguments: argparse.Namespace) -> str | None:
    """Check what is no part of the run; returns the device's name."""
    for name, least in (("checkpoint_every", 1), ("mig_samples", 2)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if arguments.output is not None and arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"--output must be a folder, got the file {arguments.output}")
    if arguments.source is not None and not expand(arguments.source).exists():
        raise ValueError(f"--source must exist, got {arguments.source}")
    _check_device(arguments.device)
    return arguments.device


def _check_device(name: str | None, here: bool = True) -> None:
    if name is not None and name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if here and name is not None and name != "cpu":
        import torch

        number = int(name.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise ValueError(
                f"--device must be one of this machine's, got {name!r} with {torch.cuda.device_count()} GPUs"
            )


def _describe_training(record: dict, folder: Path) -> list[str]:
    """A record, line by line."""
    lines = [f"run             {record['key']}", f"images          {_one_line(record['images_title'])}"]
    scale = f"{record['total_steps']:,} steps of {record['batch_size']:,} images"
    lines.append(f"scale           {scale}{', REDUCED: the paper takes more' if record['reduced'] else ''}")
    if record["status"] == "diverged":
        lines.append(f"DIVERGED        at step {record['diverged_at']:,}; nothing is measured")
    else:
        each = ", ".join(f"{name} {record[f'mig_{name}']:.3f}" for name in record["factors"])
        first = record["log_likelihood_first_10000"]
        lines += [
            f"MIG             {record['mig']:.4f} ({each})",
            f"log-likelihood  {record['log_likelihood']:.2f} nats an image; first 10,000 images {first:.2f}",
            f"ELBO            {record['elbo']:.2f} nats an image; divergence {record['divergence']:.2f}",
            f"active latents  {record['active_units']} of {record['latent_dim']}",
        ]
        if record["learn_exponents"]:
            lines.append(f"exponents       {', '.join(f'{p:.3f}' for p in record['exponents'])}")
    lines.append(f"time            {record['train_seconds']:.0f} s of training on {_one_line(record['device'])}")
    lines.append(f"saved in        {folder}")
    return lines


def _add_sweep(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "sweep",
        help="train all runs of specifications that are not recorded yet",
        description=(
            "Train and measure every run that the specifications name and their tables of records, the .csv beside "
            "each, do not have: tier 1 of each specification in turn, then tier 2. A recorded run is not trained "
            "again, so the same command continues an interrupted sweep. Several sweeps over one specification share "
            "its runs."
        ),
        epilog=(
            "examples: isa sweep runs/dsprites.yaml --tier 1; isa sweep runs/dsprites*.yaml --budget 3600 to start "
            "nothing that would not be done within an hour; isa sweep runs/dsprites.yaml --scheduler tcp://head:8786 "
            "on a Dask cluster"
        ),
    )
    _add_specs(parser)
    parser.add_argument("--tier", type=int, metavar="N", help="up to this tier of the specifications; all by default")
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="start nothing that would not be done within this time, at the speed measured so far; 0 trains nothing",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="copy new records and portraits there after every pack, in files of at most 15 MB",
    )
    parser.add_argument(
        "--profile",
        metavar="FILE",
        type=Path,
        help="first report on 30 steps of each kind of missing run: clocks, ms per run and step, time by kernel",
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, as in tcp://head:8786")
    parser.add_argument("--pack", type=int, metavar="N", help="runs that train at once; 18 on a GPU, 1 on a CPU")
    parser.add_argument("--keep-models", action="store_true", help="keep the trained models, below runs/work/")
    parser.add_argument("--cache-dir", metavar="DIR", help="where drawn and reduced images are kept; as for isa data")
    parser.set_defaults(run=_run_sweep)


def _add_specs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "specs", metavar="SPEC", type=Path, nargs="+", help="a specification, such as runs/dsprites.yaml"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda; a GPU where there is one, by default")


def _run_sweep(arguments: argparse.Namespace) -> int:
    from isa import sweep

    try:
        specs = [sweep.Spec.read(path) for path in arguments.specs]
        if not any(arguments.tier in spec.tiers for spec in specs):
            specs[0].runs(arguments.tier)
        _check_device(arguments.device, here=arguments.scheduler is None)
        for name, least in (("budget", 0), ("pack", 1)):
            value = getattr(arguments, name)
            if value is not None and not value >= least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"isa: error: {_one_line(error)}", file=sys.stderr)
        return 2
    warnings.simplefilter("always", sweep.RecordsWarning)
    names = ("tier", "budget", "device", "pack", "scheduler", "keep_models", "cache_dir", "out", "profile")
    options = {name: getattr(arguments, name) for name in names}
    found = sweep.sweep(specs, **options, report=lambda line: print(line, flush=True))
    for spec, records in zip(specs, found, strict=True):
        diverged = sum(record["status"] == "diverged" for record in records)
        print(
            f"{spec.record}: {len(records):,} of {records.wanted:,} runs recorded"
            + (f", {diverged:,} of them diverged" if diverged else "")
        )
    return 0


def _add_status(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "status",
        help="what of specifications is done, what remains, and how long it will take here",
        description=(
            "Print, tier by tier, how many runs each specification names, how many are recorded, how many diverged, "
            "how many some sweep is training, and how long the rest will take on this machine, going by the runs of "
            "the same kind that it has recorded."
        ),
        epilog="example: isa status runs/dsprites.yaml",
    )
    _add_specs(parser)
    parser.set_defaults(run=_run_status)


def _run_status(arguments: argparse.Namespace) -> int:
    from isa import sweep

    try:
        _check_device(arguments.device)
        specs = [sweep.Spec.read(path) for path in arguments.specs]
    except (ValueError, FileNotFoundError) as error:
        print(f"isa: error: {_one_line(error)}", file=sys.stderr)
        return 2
    warnings.simplefilter("always", sweep.RecordsWarning)
    for spec in specs:
        print(f"{spec.title} ({spec.path})")
        print(
            f"{'tier':>6} {'runs':>8} {'recorded':>9} {'diverged':>9} {'training':>9}   "
            "time for the rest, on this machine"
        )
        for tier in sweep.status(spec, arguments.device):
            if tier.recorded == tier.runs:
                rest = "done"
            elif tier.seconds is None:
                rest = "not known: a kind of run that it has not recorded"
            else:
                rest = _duration(tier.seconds)
            counts = f"{tier.runs:8,} {tier.recorded:9,} {tier.diverged:9,} {tier.in_progress:9,}"
            print(f"{tier.tier:6} {counts}   {rest}")
    return 0


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


#: What adds each subcommand, in the order in which ``--help`` lists them.
COMMANDS: tuple[Callable[[argparse._SubParsersAction], None], ...] = (_add_data, _add_train, _add_sweep, _add_status)

if __name__ == "__main__":
    sys.exit(main())
