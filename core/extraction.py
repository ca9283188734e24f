"""From Q values to a policy, its soft value and decoding settings."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from distillzoo.core.part import Part
from distillzoo.core.subset import SubsetQ


@dataclass(frozen=True)
class Decoding:
    """How to sample from a trained student.

    Attributes:
        temperature: the logits are divided by it; 0 picks the likeliest token.
        top_p: nucleus of the student's own distribution; 1.0 samples from all tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0


class PolicyExtraction(Part):
    """Base of the extractions: policy, soft value and decoding settings from Q.

    Every extraction is equivariant to a constant a state: V of Q + c is V + c and the policy doesn't change.
    """

    has_logprobs: ClassVar[bool] = True
    """Whether ``log_policy`` is finite and differentiable on the support, so that an objective can train through it."""

    on_subset: ClassVar[bool] = True
    """Whether the policy's support is the subset; if not, it is the whole vocabulary."""

    value_is_potential: ClassVar[bool] = False
    """Whether the policy is the gradient of the value, pi(a|s) = dV(s) / dQ(s,a)."""

    @abstractmethod
    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        """The soft value V(s) of the policy, in nats."""

    @abstractmethod
    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        """log pi(a|s) of the given actions, in nats; the caller keeps to actions in the policy's support."""

    @abstractmethod
    def decoding(self) -> Decoding:
        """The decoding that samples from this policy at use."""
