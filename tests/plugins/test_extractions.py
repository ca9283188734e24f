"""Extractions against their definitions."""

import pytest
import torch

from distillzoo.core.logits import DenseLogits
from distillzoo.core.subset import SubsetQ
from distillzoo.plugins.extractions.greedy import Greedy
from distillzoo.plugins.extractions.projected_softmax import ProjectedSoftmax
from distillzoo.plugins.extractions.softmax import Softmax
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.top_k import TopK

ALL = [Softmax(), Softmax(temperature=0.5), ProjectedSoftmax(), ProjectedSoftmax(temperature=2.0), Greedy()]


def q_on(logits, subset=None):
    teacher = DenseLogits(
        torch.randn(len(logits), logits.shape[1], generator=torch.Generator().manual_seed(1)).double()
    )
    return SubsetQ(DenseLogits(logits), (subset or TopK(k=3)).select(teacher))


@pytest.fixture
def logits():
    return torch.randn(6, 8).double()


@pytest.mark.parametrize("extraction", ALL, ids=str)
@pytest.mark.parametrize("subset", [TopK(k=3), Full()], ids=str)
def test_equivariant_to_a_constant_a_state(logits, extraction, subset):
    shift = torch.randn(6, 1).double()
    before, after = q_on(logits, subset), q_on(logits + shift, subset)
    torch.testing.assert_close(extraction.value(after), extraction.value(before) + shift[:, 0])
    actions = before.subset.actions[:, :2]
    torch.testing.assert_close(extraction.log_policy(after, actions), extraction.log_policy(before, actions))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("subset", [TopK(k=3), Full()], ids=str)
def test_the_projected_value_is_the_expectation_of_q_plus_entropy(logits, temperature, subset):
    q, extraction = q_on(logits, subset), ProjectedSoftmax(temperature=temperature)
    log_pi = extraction.log_policy(q, q.subset.actions)
    torch.testing.assert_close(log_pi.exp().sum(1), torch.ones(6).double())
    expected = (log_pi.exp() * (q.values - temperature * log_pi)).sum(1)
    torch.testing.assert_close(extraction.value(q), expected)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_softmax_ignores_the_subset(logits, temperature):
    extraction = Softmax(temperature=temperature)
    narrow, wide = q_on(logits), q_on(logits, Full())
    torch.testing.assert_close(extraction.value(narrow), extraction.value(wide))
    torch.testing.assert_close(
        extraction.log_policy(narrow, narrow.subset.actions),
        (logits / temperature).log_softmax(1).gather(1, narrow.subset.actions),
    )


def test_greedy_is_the_limit_of_zero_temperature(logits):
    q = q_on(logits)
    torch.testing.assert_close(Greedy().value(q), ProjectedSoftmax(temperature=1e-4).value(q), atol=1e-3, rtol=0)
    assert Greedy().log_policy(q, q.subset.actions).exp().sum(1).tolist() == [1.0] * 6
    assert Greedy().decoding().temperature == 0.0


def test_decoding_follows_the_temperature():
    assert ProjectedSoftmax(temperature=0.7).decoding().temperature == 0.7
    assert Softmax(temperature=0.7).decoding().top_p == 1.0
