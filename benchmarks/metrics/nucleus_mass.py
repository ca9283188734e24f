"""How much of the student's policy lies where the teacher's does."""

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.logits import DenseLogits
from distillzoo.core.metric import Direction, Evaluated, Metric
from distillzoo.core.prefixes import prefixes, reaching


class NucleusMass(Metric):
    """Student's probability of the teacher's nucleus, a token of the student's own sampled answers:

    M = mean over s ~ pi of sum over a in A_p(s) of pi(a|s),  A_p the smallest set with teacher mass p
    """

    direction: ClassVar[Direction] = "higher"
    label: ClassVar[str] = "mass in the teacher's nucleus"
    digits: ClassVar[int] = 3

    p: float = Field(0.8, gt=0, le=1, description="teacher mass of the nucleus")

    def score(self, evaluated: Evaluated) -> float | None:
        return evaluated.mean_over_tokens(self._inside, on="samples")

    def _inside(self, student: Float[Tensor, "n V"], teacher: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
        nucleus = prefixes(DenseLogits(teacher), lambda logprobs, _: reaching(logprobs, self.p))
        return torch.where(nucleus.mask, student.softmax(1).gather(1, nucleus.actions), 0.0).sum(1)
