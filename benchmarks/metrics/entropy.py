"""How spread out the student's policy is."""

from typing import ClassVar, Literal

from distillzoo.core.metric import Evaluated, Metric
from distillzoo.core.prefixes import entropy


class Entropy(Metric):
    """Entropy of the student's policy over the whole vocabulary, a token of its own sampled answers:

        H = mean over s ~ pi of - sum_a pi(a|s) log pi(a|s), in nats a token

    A student far below its teacher has collapsed onto few answers, one far above hasn't learnt to choose.
    """

    direction: ClassVar[Literal["higher", "lower"]] = "higher"
    label: ClassVar[str] = "entropy, nats/token"
    digits: ClassVar[int] = 3

    def score(self, evaluated: Evaluated) -> float | None:
        return evaluated.mean_over_tokens(lambda student, teacher: entropy(student), on="samples")
