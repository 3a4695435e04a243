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

    def poll(self):
        return self.exitcode

    def wait(self):
        self.join()

    def send_signal(self, number):
        os.kill(self.pid, number)


class Forked(LocalProvisioner):
    """Starts kernels of this Python as copies, and others as usual."""

    async def launch_kernel(self, cmd, **options):
        if cmd[0] != sys.executable or LAUNCHER not in cmd:
            return await super().launch_kernel(cmd, **options)
        arguments = cmd[cmd.index(LAUNCHER) + 1 :], options["cwd"], options["env"]
        self.process = Copy(target=run, args=arguments, daemon=True)
        self.process.start()
        return self.connection_info


def use() -> None:
    """Let this process start its kernels as copies."""
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as kernels have it
    SERVER.set_forkserver_preload(SHARED)
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:Forked", factory.GROUP_NAME)
    factory.default_provisioner_name = "forked"
