"""A sweep on a SLURM cluster: its workers are jobs in the queue, and the sweeping process runs where you start this.

    python runs/slurm.py --jobs 8 --sbatch partition=gpu --sbatch gpus=1 -- runs/dsprites.yaml --tier 2

The arguments after `--` are those of `isa sweep`. A job has one worker. Jobs that end, as all do at their time limit,
are replaced, and their runs continue from the last checkpoint.
"""

import argparse
import sys
from collections.abc import Sequence

from dask_jobqueue import SLURMCluster

from isa import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Submit workers and sweep; return the exit status of `isa sweep`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="jobs, each with one worker (4)")
    parser.add_argument("--cores", type=int, default=8, metavar="N", help="cores per job (8)")
    parser.add_argument("--memory", default="16GB", metavar="SIZE", help="memory per job (16GB)")
    parser.add_argument("--time", default="12:00:00", metavar="H:M:S", help="time limit of a job (12:00:00)")
    parser.add_argument("--interface", metavar="NAME", help="network interface that all nodes share, such as ib0")
    parser.add_argument("--sbatch", action="append", default=[], metavar="NAME=VALUE", help="an option of sbatch")
    parser.add_argument("--setup", action="append", default=[], metavar="LINE", help="shell line to run first")
    parser.add_argument("sweep", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    with SLURMCluster(
        job_name="isa-worker",
        processes=1,
        cores=arguments.cores,
        memory=arguments.memory,
        walltime=arguments.time,
        interface=arguments.interface,
        job_extra_directives=[f"--{option}" for option in arguments.sbatch],
        job_script_prologue=arguments.setup,
        log_directory="runs/work/slurm",
        worker_extra_args=["--dashboard-address", "127.0.0.1:0"],
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
    ) as cluster:
        cluster.adapt(minimum_jobs=arguments.jobs, maximum_jobs=arguments.jobs)  # replaces jobs that have ended
        return cli.main(["sweep", "--scheduler", cluster.scheduler_address, *arguments.sweep])


if __name__ == "__main__":
    sys.exit(main())
