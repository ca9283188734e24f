"""Extractions against their definitions."""

import math

import pytest
import torch

from distillzoo.core.errors import UserError
from distillzoo.core.logits import DenseLogits
from distillzoo.core.subset import SubsetQ, WholeVocabulary
from distillzoo.plugins.extractions.advantage_weighted import AdvantageWeighted
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


@pytest.mark.parametrize("subset", [TopK(k=3), Full()], ids=str)
@pytest.mark.parametrize(("scale", "beta"), [(0.0, 1.0), (1.0, 1e9)])
def test_advantage_weighting_without_advantage_is_the_teacher_renormalised(logits, subset, scale, beta):
    q = q_on(scale * logits, subset)
    found = AdvantageWeighted(beta=beta).log_policy(q, q.subset.actions)
    torch.testing.assert_close(found, q.subset.logprobs - q.subset.mass.log()[:, None].double())


@pytest.mark.parametrize("subset", [TopK(k=3), Full()], ids=str)
@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_advantage_weighting_equals_a_loop_and_its_value_is_what_it_maximises(logits, subset, beta):
    q, extraction = q_on(logits, subset), AdvantageWeighted(beta=beta)
    found, value = extraction.log_policy(q, q.subset.actions), extraction.value(q)
    for n in range(len(logits)):
        prior, z = q.subset.logprobs[n].tolist(), q.values[n].tolist()
        total = sum(math.exp(p + x / beta) for p, x in zip(prior, z, strict=True))
        pi = [math.exp(p + x / beta) / total for p, x in zip(prior, z, strict=True)]
        gain = sum(w * x for w, x in zip(pi, z, strict=True))
        price = sum(w * (math.log(w) - p) for w, p in zip(pi, prior, strict=True))
        assert found[n].exp().tolist() == pytest.approx(pi)
        assert value[n].item() == pytest.approx(gain - beta * price)
        others = torch.randn(50, len(z)).double().softmax(1)
        worse = (others * q.values[n] - beta * others * (others.log() - q.subset.logprobs[n])).sum(1)
        assert (worse <= value[n] + 1e-12).all()


def test_advantage_weighting_gives_an_action_outside_the_subset_no_probability(logits):
    q = q_on(logits)
    every = torch.arange(8).expand(6, -1)
    found = AdvantageWeighted().log_policy(q, every).exp()
    assert ((found > 0).sum(1) == 3).all()
    torch.testing.assert_close(found.sum(1), torch.ones(6).double())


def test_advantage_weighting_on_the_whole_vocabulary_is_that_on_all_tokens_as_a_subset(logits):
    extraction, full, listed = AdvantageWeighted(beta=0.5), q_on(logits, Full()), q_on(logits, TopK(k=8))
    torch.testing.assert_close(extraction.value(full), extraction.value(listed))
    actions = listed.subset.actions
    torch.testing.assert_close(extraction.log_policy(full, actions), extraction.log_policy(listed, actions))


def test_advantage_weighting_of_a_sure_teacher_is_the_teacher(logits):
    teacher = torch.full_like(logits, -math.inf)
    teacher[:, 5] = 0.0
    q = SubsetQ(DenseLogits(logits), WholeVocabulary(DenseLogits(logits), DenseLogits(teacher)))
    found = AdvantageWeighted().log_policy(q, q.subset.actions).exp()
    torch.testing.assert_close(found, torch.eye(8).double()[5].expand(6, -1))
    torch.testing.assert_close(AdvantageWeighted().value(q), logits[:, 5])


def test_advantage_weighting_without_a_teacher_is_refused(logits):
    q = SubsetQ(DenseLogits(logits), WholeVocabulary(DenseLogits(logits)))
    with pytest.raises(UserError, match="reads the teacher's probabilities, and this run asks no teacher"):
        AdvantageWeighted().value(q)


def test_advantage_weighting_samples_at_its_temperature():
    assert AdvantageWeighted(beta=0.7).decoding().temperature == 0.7
