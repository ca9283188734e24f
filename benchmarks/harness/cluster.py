"""Cells on a ray cluster, whose machines share the matrix's folder."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from distillzoo.benchmarks.harness.executors import LOG, PARENT, Event, cell_process
from distillzoo.core.errors import UserError

PASSED: Final = ("DISTILLZOO_", "HF_", "OMP_NUM_THREADS", "PYTHONPATH")
"""Beginnings of the names of environment variables that cells see as this process does."""


@dataclass
class Cluster:
    """A ray cluster: the one that ``RAY_ADDRESS`` names, else a new one on this machine.

    A cell is a ray task that starts the same process as on one machine, so the folder of the matrix has to be on a file
    system that all machines see under one path.

    Attributes:
        jobs: cells at a time.
        gpus: GPUs a cell.
    """

    jobs: int
    gpus: int

    @classmethod
    def connected(cls, jobs: int | None, device: str) -> "Cluster":
        """Join the cluster.

        Raises:
            UserError: ray isn't installed, or no cluster answers.
        """
        try:
            import ray
        except ImportError:
            raise UserError("--executor ray needs the package ray: pip install 'distillzoo[ray]'.") from None
        try:
            passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
            ray.init(log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": passed})
        except (ConnectionError, RuntimeError) as error:
            raise UserError(f"No ray cluster at {os.environ.get('RAY_ADDRESS', 'this machine')}: {error}.") from None
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0)) if device == "auto" or device.startswith("cuda") else 0
        return cls(jobs or gpus or int(found.get("CPU", 1)), min(1, gpus))

    @property
    def threads(self) -> int | None:
        return int(os.environ["OMP_NUM_THREADS"]) if "OMP_NUM_THREADS" in os.environ and not self.gpus else None

    def run(self, folders: Sequence[Path]) -> Iterator[Event]:
        import ray

        remote = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=0)(in_process)
        waiting, running = list(folders), dict[Any, Path]()
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    folder = waiting.pop(0)
                    running[remote.remote(str(folder))] = folder
                    yield Event("began", folder)
                ended, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
                for task in ended:
                    yield Event("ended", running.pop(task), _status(task))
                yield Event("waiting")
        finally:
            for task in running:
                ray.cancel(task, force=True)
            ray.shutdown()


def in_process(folder: str) -> int:
    """Run a cell in a process of its own on the machine that took the task; returns its status."""
    with (Path(folder) / LOG).open("ab") as log:
        environment = {**os.environ, PARENT: str(os.getpid())}
        return subprocess.run(cell_process(Path(folder)), stdout=log, stderr=log, env=environment).returncode


def _status(task: Any) -> int:
    import ray

    try:
        return int(ray.get(task))
    except ray.exceptions.RayError:  # the machine went away
        return -1
