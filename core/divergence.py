"""Divergences between two softmax distributions, a row."""

import torch
from jaxtyping import Float
from torch import Tensor


def kl(p: Float[Tensor, "n V"], q: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
    """KL(softmax(p) || softmax(q)) of each row, in nats; columns that are -inf in p count 0, also where both are."""
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return (log_p.exp() * torch.where(log_p == float("-inf"), 0.0, log_p - log_q)).sum(1)
