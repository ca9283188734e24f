"""The student's own responses."""

from typing import ClassVar

from distillzoo.core.trajectories import OnPolicySource, Sources, Trajectory


class FromStudent(OnPolicySource):
    """One response of the student for each prompt whose turn it is: x ~ D, y ~ pi(. | x), with pi as it is then.

    On-policy: the states are those that the student itself reaches, so what it learns there mends its own mistakes. No
    gradient goes through the sampling. With ``every`` above 1 the responses of a round are as old as that.

    References:
        arXiv:2306.13649 (generalised knowledge distillation, lambda = 1).
    """

    paper: ClassVar[str] = "arXiv:2306.13649"

    def collect(self, sources: Sources) -> list[Trajectory]:
        prompts = [sources.rows[row].prompt for row in sources.due]
        return self.sampled(prompts, sources)
