"""Peak memory of a training at the paper's scale: ``isa train`` in a process of its own, evaluation included.

    python benchmarks/memory.py [--steps N] [--json FILE] [-- OPTIONS OF isa train]

A step takes what every other step takes, and the evaluation is over all images however many steps there were, so that a
few steps tell the peak of all 7,200; ``--steps 7200`` takes them all. The peak is the greatest resident set size that
the system counted for the process; its compiler's processes are counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path


def peak_gigabytes(arguments: list[str]) -> float:
    """Return the peak resident memory of ``isa train`` with these arguments, in 10^9 bytes."""
    process = subprocess.Popen([sys.executable, "-m", "isa.cli", "train", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"isa train {' '.join(arguments)} failed")
    return usage.ru_maxrss * (1 if platform.system() == "Darwin" else 1024) / 1e9


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="steps, of which the first compiles (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figure to this file, too")
    parser.add_argument("options", nargs="*", help="of isa train, such as --objective beta-tcvae")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shown = ["--device", "cpu", "--steps", str(arguments.steps), *arguments.options]
        peak = peak_gigabytes([*shown, "--output", folder])
    print(f"\npeak memory of isa train {' '.join(shown)}: {peak:.2f} GB (the target is below 4 GB)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"peak memory, GB": peak}, indent=2) + "\n")


if __name__ == "__main__":
    main()
