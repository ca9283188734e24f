"""Inverse soft-Q learning on a subset, the objective of Bellman Distill."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.objective import LossTerms, Objective, TDBatch, term, watched


@dataclass(frozen=True)
class IQLTerms(LossTerms):
    """Terms of ``IQL``, ``[N]``. ``imitation`` and ``chi2`` make the loss; the others are watched."""

    imitation: Float[Tensor, "N"] = term()
    """V(s) - Q(s,a), in nats."""
    chi2: Float[Tensor, "N"] = term()
    """r(s,a)^2 / (4 alpha)."""
    implied_reward: Float[Tensor, "N"] = watched()
    """r(s,a) = Q(s,a) - gamma V(s'), in nats."""


class IQL(Objective):
    """Inverse soft-Q learning (IQ-Learn) with both expectations over the same expert data; never implicit Q-learning.

    With Q the student's logits up to a gauge, V the extraction's soft value on the subset and the implied reward
    r(s,a) = Q(s,a) - gamma V(s'), the loss a row is

        L(s, a, s') = [ V(s) - Q(s,a) ]  +  r(s,a)^2 / (4 alpha)

    The first bracket is -log proj(pi)(a|s); gamma V(s') has cancelled from it. V(s') = 0 after the end-of-sequence
    action. The last row of a truncated sequence has no known successor and loses its chi-squared term only. A row whose
    action the subset misses does not count. Gradient flows through V(s').

    Without chi-squared, on ``full`` with a softmax, this is behaviour cloning. chi-squared depends on the gauge, a
    constant a state that the policy does not show: ``raw`` leaves the logits as they are, so the state's level can
    carry the future; ``max`` subtracts the maximum over the vocabulary (one more reduction); ``subset-max`` the maximum
    over the subset. The gradient flows through the maximum.

    Nothing here holds the mass outside the subset: set ``support_weight``. ``[N]`` terms, nats a token.

    Differs from the paper:
        1. Q is clipped at ``q_min`` inside the chi-squared term only. In the first bracket the clip would stop the
           gradient just where the student is most wrong, and is not needed for numerical stability. With ``raw`` there
           is no clip: the logits of some models lie around -100 as a whole.

    References:
        arXiv:2505.20335, the Bellman Distill objective with phi(x) = x - x^2 / (4 alpha); arXiv:2106.12142.
    """

    paper: ClassVar[str] = "arXiv:2505.20335"

    gamma: float = Field(0.99, ge=0, le=1, description="discount of the successor's value")
    alpha: float = Field(0.1, gt=0, description="chi-squared strength is 1 / (4 alpha)")
    divergence: Literal["chi2", "none"] = Field("chi2", description="regulariser of the implied reward")
    gauge: Literal["raw", "max", "subset-max"] = Field("max", description="constant subtracted from Q in each state")
    q_min: float | None = Field(
        -10.0, description="floor of Q in chi-squared, below the gauge's maximum; null for none, and unused with raw"
    )

    @classmethod
    def examples(cls) -> Sequence["IQL"]:
        gauges = [cls(gauge=gauge, alpha=5.0) for gauge in ("raw", "max", "subset-max")]
        return [cls(), *gauges, cls(divergence="none")]

    @property
    def never_negative(self) -> bool:
        return True

    @property
    def gauge_free(self) -> bool:
        return self.divergence == "none" or self.gauge != "raw"

    def terms(self, td: TDBatch) -> IQLTerms:
        imitation = (td.value - td.q_action) * td.counts
        level = self._level(td)
        q, v = td.q_action - level, td.value - level
        if self.q_min is not None and self.gauge != "raw":
            q = q.clamp(min=self.q_min)
        reward = q - self.gamma * td.transitions.next_value(v)
        reward = torch.where(td.transitions.known, reward, 0.0) * td.counts
        chi2 = reward.square() / (4 * self.alpha) if self.divergence == "chi2" else torch.zeros_like(reward)
        return IQLTerms(imitation=imitation, chi2=chi2, implied_reward=reward)

    def _level(self, td: TDBatch) -> Float[Tensor, "N"]:
        if self.gauge == "raw" or self.divergence == "none":
            return torch.zeros_like(td.value)
        return td.student.max() if self.gauge == "max" else td.q.max()
