"""Divergences against their definitions, their identities and bounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillzoo.core.divergence import NEVER, Divergence
from distillzoo.core.errors import UserError
from distillzoo.core.logits import DenseLogits
from distillzoo.core.objective import TDBatch
from distillzoo.core.subset import ActionSubset
from distillzoo.plugins.extractions.softmax import Softmax
from distillzoo.plugins.objectives.alpha_divergence import AlphaDivergence
from distillzoo.plugins.objectives.forward_kl import ForwardKL
from distillzoo.plugins.objectives.jsd import JSD
from distillzoo.plugins.objectives.reverse_kl import ReverseKL
from distillzoo.plugins.objectives.skew_kl import SkewKL
from distillzoo.plugins.objectives.skew_reverse_kl import SkewReverseKL
from distillzoo.plugins.objectives.total_variation import TotalVariation
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.sampled import Sampled
from distillzoo.plugins.subsets.student_top_k import StudentTopK
from distillzoo.plugins.subsets.top_p import TopP
from distillzoo.plugins.subsets.union import Union
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
    assert of(SkewReverseKL(alpha=1 - near), p, q) == pytest.approx(0.0, abs=1e-6)
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


def weighted(part: Divergence) -> Divergence:
    return part.model_copy(update={"tail": "weighted"})


DRAWS = 3000


@pytest.mark.parametrize(
    "subset", [Sampled(p=0.6, m=3), Union(first=Sampled(p=0.4, m=2), second=StudentTopK(k=2))], ids=str
)
@pytest.mark.parametrize(("name", "part", "weight"), CASES, ids=lambda c: str(c))
def test_on_draws_with_weights_a_divergence_is_unbiased(world, name, part, weight, subset: ActionSubset):
    """Value and gradient over many draws of each state, in standard errors from those over the vocabulary."""
    logits = world.student.detach()
    exact = logits.clone().requires_grad_()
    world.hidden, world.weight = exact, torch.eye(logits.shape[1], dtype=torch.float64)
    full = part.terms(world.td(Full(), Softmax())).divergence
    (slope,) = torch.autograd.grad(full.sum(), exact)
    many = logits.repeat(DRAWS, 1).requires_grad_()
    teacher, student = DenseLogits(world.teacher.repeat(DRAWS, 1)), DenseLogits(many)
    td = TDBatch(world.transitions, student, subset.choose(teacher, student), Softmax())
    found = weighted(part).terms(td).divergence
    (slopes,) = torch.autograd.grad(found.sum(), many)
    for estimate, right in ((found.detach(), full.detach()), (slopes, slope)):
        each = estimate.reshape(DRAWS, *right.shape)
        error = each.std(0) / math.sqrt(DRAWS)
        assert (error > 1e-6).any(), "there is something to draw"
        assert ((each.mean(0) - right).abs() <= 5 * error + 1e-9).all()


@pytest.mark.parametrize(("name", "part", "weight"), CASES, ids=lambda c: str(c))
def test_with_nothing_left_to_draw_the_weighted_divergence_is_the_full_one(world, name, part, weight):
    full = part.terms(world.td(Full(), Softmax())).divergence
    torch.testing.assert_close(weighted(part).terms(world.td(Sampled(p=1.0), Softmax())).divergence, full)


@pytest.mark.parametrize(("name", "part", "weight"), CASES, ids=lambda c: str(c))
def test_the_weighted_gradient_is_that_of_the_value_lazy_or_dense(world, name, part, weight):
    def value(hidden, weights, lazy=True):
        torch.manual_seed(5)
        world.hidden, world.weight = hidden, weights
        return weighted(part).terms(world.td(Sampled(p=0.6, m=3), Softmax(), lazy=lazy)).divergence

    leaves = (world.hidden, world.weight)
    torch.testing.assert_close(value(*leaves), value(*leaves, lazy=False))
    assert torch.autograd.gradcheck(value, leaves)


def test_more_draws_make_the_estimate_better(world):
    full = ForwardKL().terms(world.td(Full(), Softmax())).divergence
    errors = []
    for m in (1, 10, 100):
        part = weighted(ForwardKL())
        found = torch.stack([part.terms(world.td(Sampled(p=0.5, m=m), Softmax())).divergence for _ in range(100)])
        errors.append((found - full).square().mean().item())
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.4)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.4)


def test_weights_are_neither_dropped_nor_made_up(world):
    for tail in ("bucket", "renormalise"):
        with pytest.raises(UserError, match=r"Sampled draws .* which the objective ForwardKL would not count"):
            ForwardKL(tail=tail).check(Sampled(), Softmax())
    with pytest.raises(UserError, match="TopP has none"):
        ForwardKL(tail="weighted").check(TopP(), Softmax())
    ForwardKL(tail="weighted").check(Sampled(), Softmax())
    assert not ForwardKL(tail="weighted").never_negative, "an estimate may fall below 0 in a state"


@settings(deadline=None, max_examples=60)
@given(probabilities, probabilities)
def test_no_token_makes_the_alpha_divergence_negative(p, q):
    tables = (torch.tensor([x], dtype=torch.float64).log() for x in (p, q))
    assert (AlphaDivergence(alpha=0.3).contributions(*tables) >= -1e-12).all()
