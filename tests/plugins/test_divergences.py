"""Divergences against their definitions, their identities and bounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillzoo.core.divergence import NEVER, Divergence
from distillzoo.plugins.extractions.softmax import Softmax
from distillzoo.plugins.objectives.alpha_divergence import AlphaDivergence
from distillzoo.plugins.objectives.forward_kl import ForwardKL
from distillzoo.plugins.objectives.jsd import JSD
from distillzoo.plugins.objectives.reverse_kl import ReverseKL
from distillzoo.plugins.objectives.skew_kl import SkewKL
from distillzoo.plugins.objectives.skew_reverse_kl import SkewReverseKL
from distillzoo.plugins.objectives.total_variation import TotalVariation
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.top_p import TopP
from tests.plugins.worlds import World, make_world
from tests.reference.losses import divergence, nucleus, softmax

CASES: list[tuple[str, Divergence, float]] = [
    ("forward-kl", ForwardKL(), 0.0),
    ("reverse-kl", ReverseKL(), 0.0),
    ("jsd", JSD(beta=0.5), 0.5),
    ("jsd", JSD(beta=0.2), 0.2),
    ("skew-kl", SkewKL(alpha=0.1), 0.1),
    ("skew-kl", SkewKL(alpha=0.7), 0.7),
    ("skew-reverse-kl", SkewReverseKL(alpha=0.1), 0.1),
    ("total-variation", TotalVariation(), 0.0),
    ("alpha-divergence", AlphaDivergence(alpha=0.5), 0.5),
    ("alpha-divergence", AlphaDivergence(alpha=0.1), 0.1),
]

probabilities = st.lists(st.floats(0.001, 1.0), min_size=4, max_size=4).map(lambda w: [x / sum(w) for x in w])


def of(part: Divergence, p: list[float], q: list[float]) -> float:
    tables = (torch.tensor([x], dtype=torch.float64).log().clamp(min=NEVER) for x in (p, q))
    return part.contributions(*tables).sum().item()


@pytest.fixture
def world() -> World:
    return make_world(seed=3)


@pytest.mark.parametrize("tail", ["full", "renormalise", "bucket"])
@pytest.mark.parametrize(("name", "part", "weight"), CASES, ids=lambda c: str(c))
def test_a_divergence_equals_a_loop_over_tokens(world, name, part, weight, tail):
    """Value and gradient; the gradient of the loop by central differences."""
    subset = Full() if tail == "full" else TopP(p=0.6)
    part = part if tail == "full" else part.model_copy(update={"tail": tail})

    def by_loop(student: list[float], teacher: list[float]) -> float:
        p, q = softmax(teacher), softmax(student)
        if tail != "full":
            chosen = nucleus(teacher, 0.6)
            p, q = [p[a] for a in chosen], [q[a] for a in chosen]
            if tail == "renormalise":
                p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
            else:
                p, q = [*p, 1 - sum(p)], [*q, 1 - sum(q)]
        return divergence(name, p, q, weight)

    world.hidden = world.student.detach().requires_grad_()
    world.weight = torch.eye(world.hidden.shape[1], dtype=torch.float64)
    found = part.terms(world.td(subset, Softmax())).divergence
    (slope,) = torch.autograd.grad(found.sum(), world.hidden)
    for i, (student, teacher) in enumerate(zip(world.hidden.tolist(), world.teacher.tolist(), strict=True)):
        assert found[i].item() == pytest.approx(by_loop(student, teacher), abs=1e-12)
        for a in range(len(student)):
            up, down = ([*student[:a], student[a] + step, *student[a + 1 :]] for step in (1e-5, -1e-5))
            difference = (by_loop(up, teacher) - by_loop(down, teacher)) / 2e-5
            assert slope[i, a].item() == pytest.approx(difference, abs=1e-8)


@settings(deadline=None, max_examples=60)
@given(probabilities, probabilities)
def test_the_families_meet_at_their_ends(p, q):
    forward, reverse = of(ForwardKL(), p, q), of(ReverseKL(), p, q)
    assert of(JSD(beta=0.0), p, q) == of(SkewKL(alpha=0.0), p, q) == of(AlphaDivergence(alpha=1.0), p, q) == forward
    assert of(JSD(beta=1.0), p, q) == of(AlphaDivergence(alpha=0.0), p, q) == reverse
    assert of(SkewReverseKL(alpha=0.0), p, q) == reverse
    near = 1e-5
    assert of(JSD(beta=near), p, q) / near == pytest.approx(forward, rel=0.01, abs=1e-4)
    assert of(JSD(beta=1 - near), p, q) / near == pytest.approx(reverse, rel=0.01, abs=1e-4)
    assert of(AlphaDivergence(alpha=1 - near), p, q) == pytest.approx(forward, rel=0.01, abs=1e-4)
    assert of(AlphaDivergence(alpha=near), p, q) == pytest.approx(reverse, rel=0.01, abs=1e-4)
    assert of(SkewKL(alpha=1 - near), p, q) == pytest.approx(0.0, abs=1e-6)
    assert of(JSD(beta=0.3), p, q) == pytest.approx(of(JSD(beta=0.7), q, p)), "exchanging both exchanges the weights"
    hellinger = sum((math.sqrt(x) - math.sqrt(y)) ** 2 for x, y in zip(p, q, strict=True)) / 2
    assert of(AlphaDivergence(alpha=0.5), p, q) == pytest.approx(4 * hellinger, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(probabilities, probabilities)
def test_bounds(p, q):
    assert 0 <= of(TotalVariation(), p, q) <= 1
    assert of(JSD(beta=0.5), p, q) <= math.log(2) + 1e-12
    assert of(SkewKL(alpha=0.1), p, q) <= -math.log(0.1) + 1e-12
    assert of(SkewReverseKL(alpha=0.1), p, q) <= -math.log(0.1) + 1e-12
    assert of(TotalVariation(), p, q) <= math.sqrt(of(ForwardKL(), p, q) / 2) + 1e-9, "Pinsker"


@pytest.mark.parametrize(("name", "part", "weight"), CASES, ids=lambda c: str(c))
def test_the_bucket_is_a_lower_bound_of_the_full_divergence(world, name, part, weight):
    """Merging actions can't raise an f-divergence (data processing inequality)."""
    full = part.terms(world.td(Full(), Softmax())).divergence
    bucket = part.terms(world.td(TopP(p=0.6), Softmax())).divergence
    assert (bucket <= full + 1e-12).all()
    assert (bucket >= 0).all()


def test_names_say_their_direction(registry):
    """Teacher (0.9, 0.1), student (0.5, 0.5): KL(teacher || student) = 0.9 ln 1.8 + 0.1 ln 0.2 = 0.368."""
    p, q = [0.9, 0.1], [0.5, 0.5]
    assert of(registry.get("objective", "forward-kl")(), p, q) == pytest.approx(0.368, abs=5e-4)
    assert of(registry.get("objective", "reverse-kl")(), p, q) == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    )
