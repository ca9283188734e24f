"""The whole vocabulary."""

from typing import ClassVar

from distillzoo.core.logits import LogitView
from distillzoo.core.subset import ActionSubset, Subset, WholeVocabulary


class Full(ActionSubset):
    """All tokens are actions: A(s) = V for every state.

    Reductions over the set are reductions over the vocabulary, in chunks; no table of shape ``[N, V]`` is built. The
    subset needs no teacher, so an objective that needs none either (behaviour cloning) trains without one.
    ``actions`` and ``mask``, ``[N, V]``, are views of one row.

    References:
        The action space of the token MDP, as in arXiv:2306.08543.
    """

    needs_teacher: ClassVar[bool] = False

    def select(self, teacher: LogitView) -> Subset:
        return WholeVocabulary(teacher, teacher)
