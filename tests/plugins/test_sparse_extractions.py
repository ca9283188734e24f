"""Sparsemax, Tsallis, mellowmax and the smoothed policy against their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.logits import DenseLogits
from distillzoo.core.subset import SubsetQ
from distillzoo.plugins.extractions.epsilon_smoothed import EpsilonSmoothed
from distillzoo.plugins.extractions.mellowmax import Mellowmax
from distillzoo.plugins.extractions.projected_softmax import ProjectedSoftmax
from distillzoo.plugins.extractions.sparsemax import Sparsemax
from distillzoo.plugins.extractions.tsallis import Tsallis
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.top_k import TopK

rows = st.lists(st.floats(-5, 5), min_size=2, max_size=8).map(lambda r: torch.tensor([r], dtype=torch.float64))


def q_of(logits: Tensor, k: int | None = None) -> SubsetQ:
    view = DenseLogits(logits)
    return SubsetQ(view, Full().select(view) if k is None else TopK(k=k).select(view))


def policy(part: PolicyExtraction, q: SubsetQ) -> Tensor:
    return part.log_policy(q, q.subset.actions).exp().where(q.subset.mask, 0.0)


def test_sparsemax_by_hand():
    """Q = (1, 1/2, -1): two tokens are in, tau = (1.5 - 1) / 2 = 1/4, so pi = (3/4, 1/4, 0).

    V = 3/4 + 1/8 + 1/2 (1 - 9/16 - 1/16) = 17/16.
    """
    q = q_of(torch.tensor([[1.0, 0.5, -1.0]], dtype=torch.float64))
    assert policy(Sparsemax(), q).tolist() == [[0.75, 0.25, 0.0]]
    assert Sparsemax().value(q).item() == pytest.approx(17 / 16)


@settings(deadline=None, max_examples=60)
@given(rows, st.sampled_from([0.3, 1.0, 4.0]))
def test_tsallis_at_two_is_the_sparsemax(row, temperature):
    q = q_of(row)
    one, other = Sparsemax(temperature=temperature), Tsallis(q=2.0, temperature=temperature)
    torch.testing.assert_close(policy(one, q), policy(other, q), atol=1e-9, rtol=0)
    torch.testing.assert_close(one.value(q), other.value(q))


def test_tsallis_near_one_is_the_softmax():
    q = q_of(torch.randn(5, 6, dtype=torch.float64))
    torch.testing.assert_close(policy(Tsallis(q=1.0001), q), policy(ProjectedSoftmax(), q), atol=1e-3, rtol=0)
    torch.testing.assert_close(Tsallis(q=1.0001).value(q), ProjectedSoftmax().value(q), atol=1e-3, rtol=0)


@settings(deadline=None, max_examples=40)
@given(rows, st.sampled_from([1.2, 1.5, 2.0]), st.sampled_from([0.5, 1.0]), st.integers(0, 10**6))
def test_no_policy_is_worth_more_than_the_value(row, index, temperature, seed):
    part, q = Tsallis(q=index, temperature=temperature), q_of(row)

    def worth(pi: Tensor) -> Tensor:
        return (pi * row).sum(1) + temperature * (1 - pi.pow(index).sum(1)) / (index * (index - 1))

    generator = torch.Generator().manual_seed(seed)
    others = torch.rand(50, row.shape[1], generator=generator, dtype=torch.float64).pow(3)
    others = others / others.sum(1, keepdim=True)
    assert (worth(others) <= part.value(q) + 1e-9).all()
    torch.testing.assert_close(worth(policy(part, q)), part.value(q))


@settings(deadline=None, max_examples=60)
@given(rows, st.sampled_from([0.2, 1.0, 8.0]))
def test_mellowmax_is_the_expectation_of_its_policy(row, omega):
    part, q = Mellowmax(omega=omega), q_of(row)
    pi = policy(part, q)
    assert pi.sum().item() == pytest.approx(1.0)
    assert (pi * row).sum().item() == pytest.approx(part.value(q).item(), abs=1e-8)
    assert row.mean() - 1e-9 <= part.value(q) <= row.max() + 1e-9


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=8))
def test_mellowmax_is_a_non_expansion(pairs):
    one, other = (torch.tensor([r], dtype=torch.float64) for r in zip(*pairs, strict=True))
    part = Mellowmax(omega=3.0)
    assert (part.value(q_of(one)) - part.value(q_of(other))).abs() <= (one - other).abs().max() + 1e-9


def test_mellowmax_lies_between_the_mean_and_the_maximum():
    logits = torch.randn(5, 6, dtype=torch.float64)
    for k in (None, 3):
        q = q_of(logits, k)
        inside = q.values
        torch.testing.assert_close(Mellowmax(omega=1e-6).value(q), inside.mean(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(Mellowmax(omega=1e4).value(q), inside.amax(1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("k", [None, 3])
def test_the_smoothed_policy_equals_a_loop(k):
    q, epsilon = q_of(torch.randn(4, 6, dtype=torch.float64), k), 0.05
    found = EpsilonSmoothed(epsilon=epsilon)
    for i, values in enumerate(q.values.tolist()):
        weights = [math.exp(v) for v in values]
        pi = [(w / sum(weights) + epsilon) / (1 + epsilon * len(values)) for w in weights]
        expected = sum(p * (v - math.log(p)) for p, v in zip(pi, values, strict=True))
        assert policy(found, q)[i].tolist() == pytest.approx(pi)
        assert found.value(q)[i].item() == pytest.approx(expected)
    assert (found.value(q) <= ProjectedSoftmax().value(q)).all(), "the soft value is the largest of all policies"
    torch.testing.assert_close(EpsilonSmoothed(epsilon=0.0).value(q), ProjectedSoftmax().value(q))
