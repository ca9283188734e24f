"""The student's own responses."""

from typing import ClassVar

from pydantic import Field

from distillzoo.core.extraction import Decoding
from distillzoo.core.trajectories import Sources, Trajectory, TrajectorySource


class FromStudent(TrajectorySource):
    """One response of the student for each prompt whose turn it is: x ~ D, y ~ pi(. | x), with pi as it is then.

    On-policy: the states are those that the student itself reaches, so what it learns there mends its own mistakes. No
    gradient goes through the sampling. With ``every`` above 1 the responses of a round are as old as that.

    References:
        arXiv:2306.13649 (generalised knowledge distillation, lambda = 1).
    """

    paper: ClassVar[str] = "arXiv:2306.13649"

    every: int = Field(1, ge=1, description="optimiser steps from one round of sampling to the next")
    temperature: float = Field(1.0, ge=0, description="of the student's sampling; 0 for the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of the student's sampling")

    @property
    def on_policy(self) -> bool:
        return True

    @property
    def period(self) -> int:
        return self.every

    def collect(self, sources: Sources) -> list[Trajectory]:
        prompts = [sources.rows[row].prompt for row in sources.due]
        answers = sources.student(prompts, Decoding(self.temperature, self.top_p), sources.seed)
        return [Trajectory(p, answer, "student", expert=False) for p, answer in zip(prompts, answers, strict=True)]
