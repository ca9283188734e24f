"""Trajectory sources: where the sequences come from that a student learns on."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register


@hookimpl
def register_trajectories(register: Register) -> None:
    here = __name__
    register("dataset", f"{here}.dataset:FromDataset")
    register("teacher", f"{here}.teacher:FromTeacher")
