"""Whether the student is as often right as it is sure."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from distillzoo.core.metric import Direction, Evaluated, Metric


class Calibration(Metric):
    """Expected calibration error of the student's likeliest next token, on the tokens of the first reference answers:

        ECE = 100 sum_m |B_m| / N * | acc(B_m) - conf(B_m) |,
        conf(B_m) = mean over B_m of max_a pi(a|s),  acc(B_m) = share of B_m whose next token is argmax_a pi(a|s),

    in %, where B_m are the N states with ((m - 1) / M < max_a pi(a|s) <= m / M), m = 1..M. It needs no teacher. The
    student's distribution is its softmax at temperature 1. With few tokens it is above 0 for the best student too.

    References:
        Guo et al. 2017, arXiv:1706.04599, eq. 3, which uses M = 15 on classes of images.
    """

    direction: ClassVar[Direction] = "lower"
    label: ClassVar[str] = "calibration error, %"
    digits: ClassVar[int] = 1

    bins: int = Field(15, ge=1, description="M, the number of equally wide bins of confidence")

    def score(self, evaluated: Evaluated) -> float | None:
        sure = evaluated.taken(self._confidence, on="references")
        right = evaluated.taken(self._right, on="references")
        if sure is None or right is None or not len(sure.value):
            return None
        number = (sure.value * self.bins).ceil().long().clamp(1, self.bins) - 1
        gap = torch.bincount(number, right.value - sure.value, minlength=self.bins)
        return 100 * float(gap.abs().sum()) / len(number)

    def _confidence(self, student: Float[Tensor, "n V"], action: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        return student.softmax(1).amax(1)

    def _right(self, student: Float[Tensor, "n V"], action: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        return (student.argmax(1) == action).to(student.dtype)
