"""Every benchmark, one after the other, their figures as one table: ``make bench``, or ``python benchmarks/all.py``.

The table is ``runs/speed.csv``, a figure a row, from which the page *Speed and precision* is made. Benchmarks that only
print are run first (those of the book where it is built) and leave no rows. pythae (``pip install pythae``) is
timed where it is installed. Steps are timed on a GPU if there is one, and everything else on the CPU. Rows of other
devices are kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from isa.results import device_name

FOLDER = Path(__file__).resolve().parent
COLUMNS = ("benchmark", "quantity", "value", "unit", "device", "torch")
PRINTING = ["data.py", "ica.py"] + (
    ["pages.py", "book.py"] if (FOLDER.parent / "_build/html/index.html").is_file() else []
)
RECORDED = {
    "A step of the β-VAE": ("training.py",),
    "A step of the β-TCVAE": ("training.py", "--objective", "beta-tcvae"),
    "The total correlation of a step": ("objectives.py",),
    "The mutual information gap of all images": ("mig.py",),
    "The ISA prior": ("prior.py",),
    "Memory of a training": ("memory.py",),
}
UNITS = {"seconds": "s", "microseconds": "µs", "nats": "nats", "GB": "GB", "ratio": "times ours"}
OTHERS = {"The ISA prior": {"ratio": "times the normal's"}}
"""Units that mean something else in one benchmark."""


def rows(name: str, figures: dict[str, float], device: str) -> list[dict[str, object]]:
    """Return the rows of one benchmark; what follows the last comma of a figure's name is its unit."""
    found = []
    for quantity, value in figures.items():
        what, _, unit = quantity.rpartition(", ")
        if unit not in UNITS:
            what, unit = quantity, ""
        unit = OTHERS.get(name, {}).get(unit, UNITS.get(unit, ""))
        cells = (name, what, f"{value:.4g}", unit, device, torch.__version__)
        found.append(dict(zip(COLUMNS, cells, strict=True)))
    return found


def main() -> None:
    """Run them all; a benchmark that fails ends it, and the table stays as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=FOLDER.parent / "runs" / "speed.csv", metavar="FILE")
    table = parser.parse_args().table
    cpu, gpu = (device_name(torch.device(name)) for name in ("cpu", "cuda" if torch.cuda.is_available() else "cpu"))
    taken: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        for name, command in ({file: (file,) for file in PRINTING} | RECORDED).items():
            print(f"\n== {name}\n", flush=True)
            written = ("--json", str(figures)) if name in RECORDED else ()
            if subprocess.run([sys.executable, FOLDER / command[0], *command[1:], *written]).returncode:
                raise SystemExit(f"benchmarks/{command[0]} failed; {table} is as it was")
            if written:
                device = gpu if command[0] == "training.py" else cpu
                taken += rows(name, json.loads(figures.read_text(encoding="utf-8")), device)
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            taken = [row for row in csv.DictReader(file) if row["device"] not in (cpu, gpu)] + taken
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(taken)
    print(f"\n{table}: {len(taken)} figures")


if __name__ == "__main__":
    main()
