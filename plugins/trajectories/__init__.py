"""Trajectory sources: where the sequences come from that a student learns on."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register


@hookimpl
def register_trajectories(register: Register) -> None:
    here = __name__
    register("adaptive-replay", f"{here}.adaptive_replay:AdaptiveReplay")
    register("dataset", f"{here}.dataset:FromDataset")
    register("mixture", f"{here}.mixture:Mixture")
    register("student", f"{here}.student:FromStudent")
    register("student-prefix", f"{here}.student_prefix:StudentPrefix")
    register("teacher", f"{here}.teacher:FromTeacher")
    register("teacher-mixed", f"{here}.teacher_mixed:TeacherMixed")
