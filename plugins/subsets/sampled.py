"""The nucleus of the teacher and a few tokens drawn from its tail."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from distillzoo.core.logits import LogitView
from distillzoo.core.prefixes import prefixes, reaching
from distillzoo.core.subset import ActionSubset, Subset, listed


class Sampled(ActionSubset):
    """The teacher's nucleus A_p(s), and m tokens drawn with replacement from its tail, with importance weights w:

        t(a|s) = pi_T(a|s) / (1 - pi_T(A_p|s)) outside A_p(s),  b_1, ..., b_m ~ t(.|s)
        A(s) = { a : a in A_p(s), or a = b_i for some i }
        w(a) = 1 in A_p(s),  w(a) = |{ i : b_i = a }| / (m t(a|s)) outside

    so that sum_{a in A(s)} w(a) f(a) is unbiased for the sum of f over the vocabulary, for every f that is 0 where the
    teacher gives no probability. A divergence takes it with ``tail: weighted`` and is then, value and gradient, an
    unbiased estimate of the one over the vocabulary, at one reduction over it. The noise of the forward KL is mild; a
    divergence that grows with pi / pi_T, such as the reverse KL, is noisy where the student likes what the teacher's
    tail hardly gives. Each step draws anew. At p = 1 the tail is empty and nothing is drawn. Returns tables ``[N, K]``
    with K the largest set, in falling order of teacher probability.

    References:
        arXiv:2503.16870 draws all of its tokens; the nucleus that is always listed is distillzoo's.
    """

    paper: ClassVar[str] = "arXiv:2503.16870"

    p: float = Field(0.8, gt=0, le=1, description="teacher mass that the nucleus must reach")
    m: int = Field(16, ge=1, description="draws from the tail a state, with replacement")
    k_max: int | None = Field(None, ge=1, description="largest nucleus; null for no limit")

    @classmethod
    def examples(cls) -> Sequence["Sampled"]:
        return [cls(), cls(p=0.3, m=1), cls(p=0.5, m=3, include_action=True), cls(p=0.9, k_max=2), cls(p=1.0)]

    @property
    def draws(self) -> bool:
        return True

    @property
    def weighted(self) -> bool:
        return True

    @torch.no_grad()
    def select(self, teacher: LogitView) -> Subset:
        nucleus = prefixes(teacher, lambda logprobs, rows: reaching(logprobs, self.p), self.k_max)
        inside = nucleus.actions.where(nucleus.mask, nucleus.actions[:, :1])
        logprobs = nucleus.logprobs.new_zeros(teacher.rows, self.m)
        weights, actions = torch.zeros_like(logprobs), inside.new_zeros(teacher.rows, self.m)
        total = teacher.logsumexp()
        for rows in teacher.chunks():
            logits, weights[rows], actions[rows] = self._drawn(teacher.block(rows).scatter(1, inside[rows], -torch.inf))
            logprobs[rows] = logits - total[rows, None]
        return listed(
            torch.cat([nucleus.actions, actions], 1),
            torch.cat([nucleus.mask, weights > 0], 1),
            torch.cat([nucleus.logprobs, logprobs], 1),
            torch.cat([nucleus.mask.to(weights.dtype), weights], 1),
        )

    def _drawn(self, tail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, weights and ids, ``[n, m]``, of tokens drawn from logits ``[n, V]``; the weight 0 where there is no
        tail."""
        total = tail.logsumexp(1, keepdim=True)
        some = total.isfinite()
        probs = (tail - total).exp().where(some, 1.0)  # something to draw from where nothing is listed
        actions = probs.multinomial(self.m, replacement=True)
        count = (actions[:, :, None] == actions[:, None]).sum(2)
        weights = count / (self.m * probs.gather(1, actions))
        return tail.gather(1, actions), weights.where(some, 0.0), actions
