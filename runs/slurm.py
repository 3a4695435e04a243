"""A sweep on a SLURM cluster: its workers are jobs in the queue, and the sweeping process runs where this is started.

    python runs/slurm.py --jobs 8 --sbatch partition=gpu --sbatch gpus=1 -- runs/dsprites.yaml --tier 2

What follows `--` is what `isa sweep` takes. A job holds one worker, which trains one run at a time with all cores of
the job, or on a GPU a pack of runs. A job that has ended, as all do at their time limit, is replaced by another, and
its run goes on from the last checkpoint. `--script` prints what would be submitted. Other queueing systems that
dask-jobqueue knows (PBS, SGE, LSF, HTCondor, OAR) take its class for them in the place of SLURMCluster.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from isa import cli

_REPLACE_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Submit workers and sweep; returns the exit status of `isa sweep`."""
    usage = "python runs/slurm.py [options] -- SPEC [options of isa sweep]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="jobs with a worker each (4)")
    parser.add_argument("--cores", type=int, default=8, metavar="N", help="cores of a job (8)")
    parser.add_argument("--memory", default="16GB", metavar="SIZE", help="memory of a job (16GB)")
    parser.add_argument("--time", default="12:00:00", metavar="H:M:S", help="time limit of a job (12:00:00)")
    parser.add_argument("--interface", metavar="NAME", help="network interface that all nodes share, such as ib0")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="NAME=VALUE", help="an option of sbatch, such as partition=gpu"
    )
    parser.add_argument(
        "--setup", action="append", default=[], metavar="LINE", help="a line of shell before the worker starts"
    )
    parser.add_argument("--script", action="store_true", help="print the job script and end")
    parser.add_argument("sweep", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name in ("jobs", "cores"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        parser.error("dask-jobqueue is missing: it comes with the extra isa[cluster]: pip install '.[cluster]'")
    if not arguments.script and shutil.which("sbatch") is None:
        parser.error("sbatch is not found: this is to be started where jobs are submitted")
    options = {
        "job_name": "isa-worker",
        "processes": 1,
        "cores": arguments.cores,
        "memory": arguments.memory,
        "walltime": arguments.time,
        "interface": arguments.interface,
        "job_extra_directives": [f"--{option}" for option in arguments.sbatch],
        "job_script_prologue": arguments.setup,
        "log_directory": str(Path(__file__).parent.resolve() / "work" / "slurm"),
        "worker_extra_args": ["--dashboard-address", "127.0.0.1:0"],
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
    }
    with SLURMCluster(**options) as cluster:
        if arguments.script:
            print(cluster.job_script())
            return 0
        refused = _refused(cluster.job_script())
        if refused:
            parser.error(f"sbatch takes no such job: {refused}")
        ended = threading.Event()
        submitting = threading.Thread(target=_keep, args=(cluster, arguments.jobs, ended))
        submitting.start()
        try:
            return cli.main(["sweep", "--scheduler", cluster.scheduler_address, *arguments.sweep])
        finally:
            ended.set()
            submitting.join()


def _refused(script: str) -> str:
    """Return what SLURM has against a job, nothing where it would take it."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        tried = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True)
    return " ".join(tried.stderr.split()) if tried.returncode else ""


def _keep(cluster, jobs: int, ended: threading.Event) -> None:
    """Keep so many jobs submitted: called again, `scale` replaces those that were seen to work and have ended."""
    while True:
        cluster.scale(jobs=jobs)
        if ended.wait(_REPLACE_SECONDS):
            return


if __name__ == "__main__":
    sys.exit(main())
