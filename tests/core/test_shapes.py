"""The shapes in signatures are checked while the tests run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from distillzoo.core.logits import DenseLogits
from distillzoo.core.transitions import transitions


def test_a_tensor_of_the_wrong_rank_is_refused():
    with pytest.raises(TypeCheckError, match="B T"):
        transitions(torch.zeros(3), torch.zeros(2, 3).long(), torch.ones(2).bool())


def test_axes_of_one_name_must_agree():
    with pytest.raises(TypeCheckError, match="N K"):
        DenseLogits(torch.zeros(2, 5)).gather(torch.zeros(2, 3).long(), torch.ones(2, 4).bool())
