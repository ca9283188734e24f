"""Responses that teacher and student write together, token by token."""

from typing import ClassVar

from pydantic import Field

from distillzoo.core.trajectories import OnPolicySource, Sources, Trajectory


class TeacherMixed(OnPolicySource):
    """One response for each prompt whose turn it is, each token from a mixture of teacher and student.

        y_t ~ pi_mix(. | s_t) = alpha pi_T(. | s_t) + (1 - alpha) pi(. | s_t),    alpha = ``teacher_share``

    The teacher's share keeps the student from degenerate responses that it could exploit. Responses carry
    log pi_mix(y_t | s_t), so that an objective can weigh a token by pi / pi_mix.

    References:
        arXiv:2306.08543, section 2.2 (teacher-mixed sampling, alpha = 0.2).
    """

    paper: ClassVar[str] = "arXiv:2306.08543"

    teacher_share: float = Field(0.2, ge=0, lt=1, description="share of the teacher in each token's distribution")

    def collect(self, sources: Sources) -> list[Trajectory]:
        prompts = [sources.rows[row].prompt for row in sources.due]
        answers = sources.mixed(prompts, self.decoding, sources.seed, self.teacher_share)
        return [Trajectory(p, answer, "mixture", expert=False) for p, answer in zip(prompts, answers, strict=True)]
