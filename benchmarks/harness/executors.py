"""What runs the cells of a matrix: processes of this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from distillzoo.core.errors import UserError

LOG: Final = "log.txt"
"""What a cell's process wrote, in its folder."""

PARENT: Final = "DISTILLZOO_HARNESS"
"""Environment variable with the process that a cell belongs to."""

TICK: Final = 0.25
"""Seconds between looks at the processes."""


@dataclass(frozen=True)
class Event:
    """A cell began or ended, or time has passed."""

    what: Literal["began", "ended", "waiting"]
    folder: Path | None = None
    status: int = 0


class Executor(Protocol):
    """Runs cells, each in a process of its own, some at a time."""

    jobs: int

    @property
    def threads(self) -> int | None:
        """Of a cell on a CPU, where this process says it."""

    def run(self, folders: Sequence[Path]) -> Iterator[Event]:
        """Run all cells; ends when they have. Leaving the loop ends what is running."""


@dataclass
class Local:
    """Processes of this machine: one GPU each where there are some, else a share of the cores.

    Attributes:
        jobs: cells at a time.
        gpus: the GPUs to share out, as ``CUDA_VISIBLE_DEVICES`` names them; none for a CPU. A cell sees its own alone,
            which is ``cuda`` there.
    """

    jobs: int
    gpus: Sequence[str]

    @property
    def threads(self) -> int | None:
        if self.gpus:
            return None
        return int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // self.jobs)))

    def run(self, folders: Sequence[Path]) -> Iterator[Event]:
        waiting, free = list(folders), list(range(self.jobs))
        running: dict[Path, tuple[subprocess.Popen[bytes], int]] = {}
        try:
            while waiting or running:
                while waiting and free:
                    folder, slot = waiting.pop(0), free.pop(0)
                    running[folder] = (self._start(folder, slot), slot)
                    yield Event("began", folder)
                for folder, (process, slot) in list(running.items()):
                    status = process.poll()
                    if status is not None:
                        del running[folder]
                        free.append(slot)
                        yield Event("ended", folder, status)
                yield Event("waiting")
                time.sleep(TICK)
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.wait()

    def _start(self, folder: Path, slot: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, PARENT: str(os.getpid())}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        else:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with (folder / LOG).open("ab") as log:
            return subprocess.Popen(cell_process(folder), stdout=log, stderr=log, env=environment)


def chosen_executor(name: str, jobs: int | None, device: str) -> Executor:
    """The executor of a name, with as many cells at a time as asked, or as the machine has GPUs or else cores.

    Raises:
        UserError: the executor's extra is not installed, or ``device`` names a GPU that it cannot choose.
    """
    if name == "ray":
        from distillzoo.benchmarks.harness.cluster import Cluster

        if ":" in device:
            raise UserError(f"--device {device}: ray chooses the GPU of a cell. Use cuda.")
        return Cluster.connected(jobs, device)
    gpus = _gpus(device) if device == "auto" or device.startswith("cuda") else []
    return Local(jobs or len(gpus) or os.cpu_count() or 1, gpus)


def _gpus(device: str) -> list[str]:
    """The GPUs that cells may have: all that this process sees, or the one that ``cuda:N`` names."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    count, number = torch.cuda.device_count(), device.partition(":")[2]
    if device != "auto" and count <= int(number or 0):
        raise UserError(f"--device {device}: GPUs are numbered from 0, and torch sees {count or 'none'} here.")
    return [seen[int(number)]] if number else seen[:count]


def cell_process(folder: Path) -> list[str]:
    """The command of a cell's process."""
    return [sys.executable, "-m", "distillzoo.benchmarks.harness.cell", str(folder)]
