"""Rouge-L."""

from typing import ClassVar

from distillzoo.core.metric import Direction, Evaluated, Metric


class RougeL(Metric):
    """Rouge-L, F-measure of the longest common subsequence of stemmed words, best over the references, times 100:

        F = 2 P R / (P + R),  P = LCS / |answer|,  R = LCS / |reference|

    averaged over the answers.

    References:
        Lin 2004, ROUGE; the protocol of arXiv:2306.08543 and arXiv:2505.20335.
    """

    direction: ClassVar[Direction] = "higher"
    label: ClassVar[str] = "Rouge-L"
    digits: ClassVar[int] = 1

    def score(self, evaluated: Evaluated) -> float | None:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        best: list[float] = [
            max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in row["output"])
            for row, answer in zip(evaluated.rows, evaluated.answers, strict=True)
        ]
        return 100 * sum(best) / len(best)
