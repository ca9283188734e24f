"""Responses that teacher and student write together, token by token."""

from typing import ClassVar

from pydantic import Field

from distillzoo.core.extraction import Decoding
from distillzoo.core.trajectories import Sources, Trajectory, TrajectorySource


class TeacherMixed(TrajectorySource):
    """One response for each prompt whose turn it is, each token from a mixture of teacher and student.

        y_t ~ pi_mix(. | s_t) = alpha pi_T(. | s_t) + (1 - alpha) pi(. | s_t),    alpha = ``teacher_share``

    The teacher's share keeps the student from degenerate responses that it could exploit. Responses carry
    log pi_mix(y_t | s_t), so that an objective can weigh a token by pi / pi_mix.

    References:
        arXiv:2306.08543, section 2.2 (teacher-mixed sampling, alpha = 0.2).
    """

    paper: ClassVar[str] = "arXiv:2306.08543"

    teacher_share: float = Field(0.2, ge=0, lt=1, description="share of the teacher in each token's distribution")
    every: int = Field(1, ge=1, description="optimiser steps from one round of sampling to the next")
    temperature: float = Field(1.0, ge=0, description="of sampling from the mixture; 0 for its likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of the mixture")

    @property
    def on_policy(self) -> bool:
        return True

    @property
    def period(self) -> int:
        return self.every

    def collect(self, sources: Sources) -> list[Trajectory]:
        prompts = [sources.rows[row].prompt for row in sources.due]
        decoding = Decoding(self.temperature, self.top_p)
        answers = sources.mixed(prompts, decoding, sources.seed, self.teacher_share)
        return [Trajectory(p, answer, "mixture", expert=False) for p, answer in zip(prompts, answers, strict=True)]
