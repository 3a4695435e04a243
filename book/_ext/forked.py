"""Kernels that are copies of one process, which imports what notebooks share: that takes seconds, once a build."""

from __future__ import annotations

import multiprocessing
import os
import sys

from jupyter_client.provisioning import LocalProvisioner

SHARED = ["__main__", "ipykernel.kernelapp", "edition.page", "edition.prior", "edition.scorecard"]
SHARED += ["edition.figures.background", "torch.fx.experimental.symbolic_shapes"]  # the last, PyTorch imports late
LAUNCHER = "ipykernel_launcher"
SERVER = multiprocessing.get_context("forkserver")


def run(arguments: list[str], folder: str, env: dict[str, str]) -> None:
    """Turn a copy of the process into a kernel, which ends with the process."""
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()  # so that an interrupt from the keyboard does not reach it
    multiprocessing.current_process().daemon = False  # so that a notebook may start processes
    os.chdir(folder)
    os.environ |= env
    launch_new_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


class Copy(SERVER.Process):
    """A process with the interface of ``Popen`` that Jupyter needs."""

    stdin = stdout = stderr = None
    wait = SERVER.Process.join

    def poll(self):
        return self.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)


async def launch_kernel(self, cmd, usual=LocalProvisioner.launch_kernel, **options):
    """Start a kernel of this Python as a copy, and any other as usual."""
    if cmd[0] != sys.executable or LAUNCHER not in cmd:
        return await usual(self, cmd, **options)
    arguments = cmd[cmd.index(LAUNCHER) + 1 :], options["cwd"], options["env"]
    self.process = Copy(target=run, args=arguments, daemon=True)
    self.process.start()
    return self.connection_info


def use() -> None:
    """Let this process start its kernels as copies."""
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as kernels have it
    SERVER.set_forkserver_preload(SHARED)
    LocalProvisioner.launch_kernel = launch_kernel
