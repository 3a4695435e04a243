"""How long a build of the book takes: ``python benchmarks/book.py [--fresh]``.

The book is built in a clone of the last commit: unchanged, and after a change in one notebook; with ``--fresh`` from
nothing first, which takes minutes, else from the executions of the book that is built here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "book/prior/sampling.ipynb"


def build(clone: Path, label: str) -> int:
    """Build the book, print how long it took, and return how many notebooks were executed."""
    make = ["make", "READY=", f"BIN={Path(sys.executable).parent}", "book"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(clone), str(clone / "book")])}
    start = time.perf_counter()
    built = subprocess.run(make, cwd=clone, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - start
    if built.returncode:
        raise SystemExit(built.stdout)
    executed = sum(line.startswith("page ") for line in built.stdout.splitlines())
    print(f"{label:30} {seconds:7.1f} s, {executed:3} notebooks executed", flush=True)
    return executed


def main() -> None:
    """Print the table; fail where more is executed than has changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="start from nothing")
    fresh = parser.parse_args().fresh
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        if not fresh and (ROOT / "_build" / ".jupyter_cache").is_dir():
            shutil.copytree(ROOT / "_build" / ".jupyter_cache", clone / "_build" / ".jupyter_cache")
        build(clone, "fresh" if fresh else "from recorded executions")
        again = build(clone, "unchanged")
        notebook = clone / NOTEBOOK
        notebook.write_text(
            notebook.read_text(encoding="utf-8").replace('"import ', '"import math, ', 1), encoding="utf-8"
        )
        one = build(clone, f"{NOTEBOOK} changed")
        if (again, one) != (0, 1):
            raise SystemExit("a build has executed notebooks that had not changed")


if __name__ == "__main__":
    main()
