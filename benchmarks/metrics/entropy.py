"""How spread out the student's policy is."""

from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from distillzoo.core.metric import Direction, Evaluated, Metric
from distillzoo.core.prefixes import entropy


class Entropy(Metric):
    """Entropy of the student's policy over the whole vocabulary, a token of its own sampled answers:

        H = mean over s ~ pi of - sum_a pi(a|s) log pi(a|s), in nats a token

    A student far below its teacher has collapsed onto few answers, one far above hasn't learnt to choose; so neither
    direction is the better.
    """

    direction: ClassVar[Direction] = "none"
    label: ClassVar[str] = "entropy, nats/token"
    digits: ClassVar[int] = 3

    def score(self, evaluated: Evaluated) -> float | None:
        found = evaluated.taken(self._of, on="samples")
        return None if found is None else found.mean()

    def _of(self, student: Float[Tensor, "n V"], action: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        return entropy(student)
