"""The student's responses and offline ones, side by side."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

from pydantic import Field, model_validator

from distillzoo.core.registry import installed
from distillzoo.core.trajectories import Sources, Trajectory, TrajectorySource


class Mixture(TrajectorySource):
    """Each response comes from the student with probability lambda, else from an offline source.

        y ~ pi(. | x)  if u < lambda,  else  y ~ Y(x),    u ~ U(0, 1),  lambda = ``share``

    Y(x) are the offline source's responses to the prompt x, all equally likely. A prompt comes as often as any other,
    however many responses it has. At lambda = 0 the student is never sampled.

    References:
        arXiv:2306.13649, algorithm 1.

    Differs from the paper:
        1. The draw u is one for each response and not one for each batch: the expected loss is the same, a step's loss
           varies less, and an objective that wants both kinds nearly always has them.
    """

    paper: ClassVar[str] = "arXiv:2306.13649"

    student: TrajectorySource = Field(description="on-policy source; how often it samples is how often this one does")
    offline: TrajectorySource = Field(description="source that is collected once, such as dataset or teacher")
    share: float = Field(0.5, ge=0, le=1, description="lambda, the on-policy source's share of the responses")

    @model_validator(mode="after")
    def _of_both_kinds(self) -> Self:
        if self.student.period is None:
            raise ValueError("student should be a source that samples in rounds, such as student")
        if self.offline.period is not None:
            raise ValueError("offline should be a source that is collected once, such as dataset or teacher")
        return self

    @classmethod
    def examples(cls) -> Sequence["Mixture"]:
        student, dataset, teacher = (
            installed().get("trajectories", name)() for name in ("student", "dataset", "teacher")
        )
        return [
            cls(student=student, offline=dataset),
            cls(student=student, offline=teacher, share=0.8),
            cls(student=student, offline=dataset, share=0.0),
        ]

    @property
    def on_policy(self) -> bool:
        return self.share > 0

    @property
    def expert_rows(self) -> bool:
        return self.share < 1 or self.student.expert_rows

    @property
    def student_rows(self) -> bool:
        return self.share > 0 and self.student.student_rows

    @property
    def holds_out(self) -> bool:
        return self.student.holds_out

    @property
    def period(self) -> int | None:
        return self.student.period

    def collect(self, sources: Sources) -> list[Trajectory]:
        draw = random.Random(f"mixture {sources.seed}")
        offline = sources.once(self.offline)
        found = {
            place: draw.choice(offline[row]) for place, row in enumerate(sources.due) if draw.random() >= self.share
        }
        own = [place for place in range(len(sources.due)) if place not in found]
        if own:
            asked = replace(sources, due=[sources.due[place] for place in own])
            found.update(zip(own, self.student.collect(asked), strict=True))
        return [found[place] for place in range(len(sources.due))]
