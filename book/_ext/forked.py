"""Kernels that are copies of one process, which imports what notebooks share: that takes seconds, once a build."""

from __future__ import annotations

import multiprocessing
import os
import sys
from importlib.metadata import EntryPoint

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

SHARED = ["__main__", "ipykernel.kernelapp", "edition.page", "edition.prior", "edition.scorecard"]
SHARED += ["edition.figures.background", "torch.fx.experimental.symbolic_shapes"]  # the last, PyTorch imports late
LAUNCHER = "ipykernel_launcher"


def run(arguments: list[str], folder: str, env: dict[str, str]) -> None:
    """Turn a copy of the process into a kernel, which ends with the process."""
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()  # so that an interrupt from the keyboard does not reach it
    os.chdir(folder)
    os.environ |= env
    launch_new_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


class Copy:
    """A process with the interface of ``Popen`` that Jupyter needs."""

    stdin = stdout = stderr = None

    def __init__(self, *arguments):
        self.process = multiprocessing.get_context("forkserver").Process(target=run, args=arguments, daemon=True)
        self.process.start()

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()

    def send_signal(self, number):
        os.kill(self.process.pid, number)


class Forked(LocalProvisioner):
    """Starts kernels of this Python as copies, and others as usual."""

    async def launch_kernel(self, cmd, **options):
        if cmd[0] != sys.executable or LAUNCHER not in cmd:
            return await super().launch_kernel(cmd, **options)
        self.process = Copy(cmd[cmd.index(LAUNCHER) + 1 :], options["cwd"], options["env"])
        return self.connection_info


def use() -> None:
    """Let this process start its kernels as copies, where the system can copy a process that has imported PyTorch."""
    if sys.platform == "linux":
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as kernels have it
        multiprocessing.get_context("forkserver").set_forkserver_preload(SHARED)
        factory = KernelProvisionerFactory.instance()
        factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:Forked", factory.GROUP_NAME)
        factory.default_provisioner_name = "forked"
