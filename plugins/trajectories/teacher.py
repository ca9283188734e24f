"""Offline samples of the teacher."""

from typing import ClassVar

from pydantic import Field

from distillzoo.core.extraction import Decoding
from distillzoo.core.trajectories import Sources, Trajectory, TrajectorySource


class FromTeacher(TrajectorySource):
    """n responses of the teacher a prompt, sampled once before training: x ~ D, y ~ pi_T(. | x).

    The samples are kept on disk and read again in a later run with the same teacher, tokenizer, prompts, decoding,
    lengths and seed.

    References:
        arXiv:1606.07947 (sequence-level knowledge distillation); arXiv:2505.20335 takes 8 a query.
    """

    paper: ClassVar[str] = "arXiv:1606.07947"

    n: int = Field(8, ge=1, description="responses a prompt")
    temperature: float = Field(1.0, ge=0, description="of the teacher's sampling; 0 for the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of the teacher's sampling")

    def collect(self, sources: Sources) -> list[Trajectory]:
        prompts = [row.prompt for row in sources.rows for _ in range(self.n)]
        decoding = Decoding(self.temperature, self.top_p)
        answers = sources.teacher(prompts, decoding, sources.seed)
        return [Trajectory(prompt, answer, "teacher") for prompt, answer in zip(prompts, answers, strict=True)]
