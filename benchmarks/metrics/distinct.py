"""How varied the student's answers are."""

from typing import ClassVar

from distillzoo.core.metric import Direction, Evaluated, Metric


class Distinct(Metric):
    """Base of distinct-n = 100 |{n-grams}| / (number of n-grams), over the words of all sampled answers together."""

    direction: ClassVar[Direction] = "higher"
    digits: ClassVar[int] = 1
    n: ClassVar[int]

    def score(self, evaluated: Evaluated) -> float | None:
        words = [answer.split() for answer in evaluated.answers]
        grams = [tuple(w[i : i + self.n]) for w in words for i in range(len(w) - self.n + 1)]
        return 100 * len(set(grams)) / len(grams) if grams else None


class Distinct1(Distinct):
    """Share of different words among all words of the sampled answers, in %:

        distinct-1 = 100 |{w}| / (number of w)

    Words are what white space separates. It falls as there are more answers, or longer ones: compare models on the same
    prompts. None where no answer has a word.

    References:
        Li et al. 2016, arXiv:1510.03055, section 5.3.
    """

    label: ClassVar[str] = "distinct words, %"
    n: ClassVar[int] = 1


class Distinct2(Distinct):
    """Share of different pairs of neighbouring words among all such pairs of the sampled answers, in %:

        distinct-2 = 100 |{(w_i, w_{i+1})}| / (number of pairs)

    Words are what white space separates; no pair reaches over the end of an answer. It falls as there are more answers,
    or longer ones: compare models on the same prompts. None where no answer has two words.

    References:
        Li et al. 2016, arXiv:1510.03055, section 5.3.

    Differs from the paper:
        It divides by the number of words, of which an answer has one more than pairs; most that cite it divide by the
        pairs, as arXiv:2306.08543 does, so that 100 % can be reached.
    """

    label: ClassVar[str] = "distinct pairs, %"
    n: ClassVar[int] = 2
