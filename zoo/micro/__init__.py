"""The micro world: an embedded instruction world with a checker, a teacher and a student, for runs without a network.

Importing this package needs the standard library only.
"""

from pathlib import Path

from distillzoo.zoo.micro.world import SPLITS, examples, is_right

TEACHER = Path(__file__).parent / "teacher"
STUDENT = Path(__file__).parent / "student"

__all__ = ["SPLITS", "STUDENT", "TEACHER", "examples", "is_right"]
