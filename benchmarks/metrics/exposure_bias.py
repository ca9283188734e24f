"""How much more a student errs where its own answers lead than where the teacher's do."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distillzoo.core.divergence import kl
from distillzoo.core.metric import Direction, Evaluated, Metric, PositionBin, TokenValues


class ExcessAccumulatedError(Metric):
    """Excess accumulated error of exposure bias, over the first l tokens of an answer:

        ExAccErr(l) = 100 (R(l) - l eps(l)) / (l eps(l)),
        R(l) = sum_{t=1..l} E_{s_t ~ pi} KL_t,  eps(l) = 1/l sum_{t=1..l} E_{s_t ~ pi_T} KL_t,

    where KL_t = KL(pi_T(. | s_t) || pi(. | s_t)) over the whole vocabulary and s_t is the prompt with the first t - 1
    tokens of an answer: the student's in R, the teacher's in eps, sampled for the same prompts at the evaluation's
    decoding. 0 % means that the student errs no more after its own tokens than after the teacher's, 100 % twice as
    much. An answer that has ended is in no state any more: E_{s_t} is the mean over the answers that have a t-th token.

    The score is ExAccErr at the largest l that at least half of the teacher's answers reach, the same for all students
    of a teacher, so that no sum is over a few answers only. None where no answer of the student is so long. The curve
    is ExAccErr(l) at l = 1, 2, 4, 8 and so on and at the score's l, each with the number of the student's answers that
    reach it.

    References:
        Arora et al. 2022, arXiv:2204.01171, with the teacher as its oracle; arXiv:2306.08543, eq. 30-32.

    Differs from the paper:
        1. eps is on the teacher's samples, as in arXiv:2306.08543, and not on a corpus.
        2. KL_t is summed over the vocabulary and not estimated from the tokens drawn.
        3. The paper's answers are all of one length. Its code averages the sums up to l over the answers that reach l,
           which for answers that end is another number: here every answer counts up to its end.
    """

    direction: ClassVar[Direction] = "lower"
    label: ClassVar[str] = "excess error, %"
    digits: ClassVar[int] = 1

    def score(self, evaluated: Evaluated) -> float | None:
        curve = self.by_position(evaluated)
        return curve[-1]["value"] if curve else None

    def by_position(self, evaluated: Evaluated) -> list[PositionBin] | None:
        student, teacher = (evaluated.tokens(self._error, on) for on in ("samples", "teacher"))
        if student is None or teacher is None:
            return None
        regret, reaching = accumulated(student)
        expected, taught = accumulated(teacher)
        length = int((2 * taught >= taught[:1]).sum())
        if length > len(regret) or length == 0 or not expected[length - 1] > 0:
            return None
        powers = [1 << k for k in range(length.bit_length()) if 1 << k < length]
        return [
            {
                "first": 0,
                "last": steps - 1,
                "value": 100 * float(regret[steps - 1] / expected[steps - 1] - 1),
                "count": int(reaching[steps - 1]),
            }
            for steps in (*powers, length)
            if expected[steps - 1] > 0
        ]

    def _error(self, student: Float[Tensor, "n V"], teacher: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
        return kl(teacher, student)


def accumulated(values: TokenValues) -> tuple[Float[Tensor, "L"], Int[Tensor, "L"]]:
    """Sums up to each step of the means at the steps, and how many responses reach each step."""
    sums, counts = values.at_positions()
    return torch.cumsum(sums / counts, 0), counts
