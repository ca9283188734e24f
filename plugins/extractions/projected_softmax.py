"""The policy projected onto the subset."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.subset import SubsetQ


class ProjectedSoftmax(PolicyExtraction):
    """The soft-optimal policy renormalised on the subset, and the value of that policy:

        proj(pi)(a|s) = exp(Q(s,a) / t) / sum_{b in A(s)} exp(Q(s,b) / t)
        V(s) = t log sum_{b in A(s)} exp(Q(s,b) / t)

    with t the temperature; at t = 1 the paper's E_{a ~ proj(pi)}[Q(s,a) - log proj(pi)(a|s)]. ``[N]`` values and
    ``[N, M]`` log-probabilities, in nats. Only the subset's logits are computed. At use there is no teacher to give a
    subset, so decoding samples from all tokens: an objective must hold the mass outside, as the support term does.

    References:
        arXiv:2505.20335, the top-p projection and the soft value of the projected policy.
    """

    paper: ClassVar[str] = "arXiv:2505.20335"
    value_is_potential: ClassVar[bool] = True

    temperature: float = Field(1.0, gt=0, description="t; the policy is sharper below 1")

    @classmethod
    def examples(cls) -> Sequence["ProjectedSoftmax"]:
        return [cls(), cls(temperature=0.5)]

    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        return self.temperature * q.logsumexp(self.temperature)

    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        return q.view.gather(actions) / self.temperature - q.logsumexp(self.temperature)[:, None]

    def decoding(self) -> Decoding:
        return Decoding(temperature=self.temperature)
