"""Objectives against slow references, identities, and what the formulas promise."""

import math

import pytest
import torch

from distillzoo.core.errors import UserError
from distillzoo.core.objective import LossTerms, support_term
from distillzoo.core.subset import SubsetQ
from distillzoo.plugins.extractions.greedy import Greedy
from distillzoo.plugins.extractions.projected_softmax import ProjectedSoftmax
from distillzoo.plugins.extractions.softmax import Softmax
from distillzoo.plugins.objectives.forward_kl import ForwardKL
from distillzoo.plugins.objectives.iql import IQL
from distillzoo.plugins.objectives.nll import NLL
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.top_k import TopK
from distillzoo.plugins.subsets.top_p import TopP
from tests.plugins.worlds import ENDED, LENGTHS, V, World, chain, make_world
from tests.reference.losses import iql_loss, kl, nucleus, softmax

SUBSETS = [Full(), TopP(p=0.6), TopP(p=0.6, include_action=True), TopK(k=3)]
OBJECTIVES = [
    NLL(),
    NLL(tail="bucket"),
    ForwardKL(tail="renormalise"),
    ForwardKL(tail="bucket"),
    *(IQL(gauge=gauge, alpha=0.5) for gauge in ("raw", "max", "subset-max")),
    IQL(divergence="none"),
]


@pytest.fixture
def world() -> World:
    return make_world()


def loss(objective, td) -> torch.Tensor:
    return sum(objective.terms(td).losses().values())


def by_sequence(world: World, p: float, whole: bool, **params) -> list[float]:
    student, teacher = world.student.detach().tolist(), world.teacher.tolist()
    expected, start = [], 0
    for length, ended in zip(LENGTHS, ENDED, strict=True):
        part = slice(start, start + length)
        ends = ["next"] * (length - 1) + ["terminal" if ended else "truncated"]
        sets = [nucleus(row, p) for row in teacher[part]]
        expected += iql_loss(student[part], sets, world.transitions.action[part].tolist(), ends, whole=whole, **params)
        start += length
    return expected


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("gauge", ["raw", "max", "subset-max"])
@pytest.mark.parametrize(("gamma", "alpha", "q_min"), [(0.99, 0.1, -10.0), (0.5, 5.0, -1.0)])
def test_iql_equals_an_independent_loop_over_tokens(world, whole, gauge, gamma, alpha, q_min):
    params = {"gamma": gamma, "alpha": alpha, "gauge": gauge, "q_min": q_min}
    td = world.td(Full() if whole else TopP(p=0.6), ProjectedSoftmax())
    found = loss(IQL(divergence="chi2", **params), td)
    torch.testing.assert_close(found.tolist(), by_sequence(world, 0.6, whole, **params))


@pytest.mark.parametrize("extraction", [Softmax(), ProjectedSoftmax()])
@pytest.mark.parametrize("gauge", ["raw", "max", "subset-max"])
def test_iql_without_chi_squared_on_full_is_behaviour_cloning(world, extraction, gauge):
    td = world.td(Full(), extraction)
    cloning = loss(NLL(), world.td(Full(), Softmax()))
    torch.testing.assert_close(loss(IQL(divergence="none", gauge=gauge, gamma=0.3), td), cloning)
    torch.testing.assert_close(
        cloning, torch.nn.functional.cross_entropy(world.student, world.transitions.action, reduction="none")
    )


def test_iql_without_chi_squared_on_a_subset_is_cloning_inside_the_subset(world):
    td = world.td(TopP(p=0.6), ProjectedSoftmax())
    torch.testing.assert_close(loss(IQL(divergence="none"), td), loss(NLL(), td))


def test_iql_chi_squared_by_hand():
    """One state, two tokens, the end token taken: Q = (ln 3, 0), V = ln 4, r = ln 3, V(s') = 0.

    raw:  L = ln 4 - ln 3 + (ln 3)^2 / (4 alpha);  max: Q = (0, -ln 3), r = 0, so L = ln 4 - ln 3.
    """
    world = make_world()
    world.hidden = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    world.weight = torch.eye(2, dtype=torch.float64)
    world.teacher = torch.zeros(1, 2, dtype=torch.float64)
    world.transitions = chain((1,), (True,), torch.tensor([0]))
    td = world.td(Full(), Softmax())
    clone = math.log(4 / 3)
    assert loss(IQL(gauge="raw", alpha=0.1), td).item() == pytest.approx(clone + math.log(3) ** 2 / 0.4)
    assert loss(IQL(gauge="max", alpha=0.1), td).item() == pytest.approx(clone)


@pytest.mark.parametrize("gauge", ["max", "subset-max"])
def test_a_fixed_gauge_makes_the_loss_blind_to_a_constant_a_state(world, gauge):
    td = world.td(TopP(p=0.6), ProjectedSoftmax())
    before = loss(IQL(gauge=gauge), td)
    world.hidden = torch.cat([world.hidden, torch.randn(len(world.hidden), 1).double()], 1)
    world.weight = torch.cat([world.weight, torch.ones(V, 1).double()], 1)
    after = loss(IQL(gauge=gauge), world.td(TopP(p=0.6), ProjectedSoftmax()))
    torch.testing.assert_close(after, before)


def test_the_raw_gauge_is_not_blind(world):
    before = loss(IQL(gauge="raw"), world.td(Full(), Softmax()))
    world.hidden = torch.cat([world.hidden, torch.ones(len(world.hidden), 1).double()], 1)
    world.weight = torch.cat([world.weight, torch.ones(V, 1).double()], 1)
    assert not torch.allclose(before, loss(IQL(gauge="raw"), world.td(Full(), Softmax())))


def test_a_truncated_last_row_loses_its_chi_squared_term_only(world):
    terms = IQL(gauge="raw").terms(world.td(Full(), Softmax()))
    assert terms.penalty[-1].item() == 0.0, "the third sequence is truncated"
    assert terms.imitation[-1].item() > 0.0
    assert (terms.penalty[:-1] > 0).all()


def test_a_row_whose_action_the_subset_misses_does_not_count(world):
    td = world.td(TopP(p=0.3), ProjectedSoftmax())
    outside = td.inside == 0
    assert outside.any()
    for objective in (NLL(), IQL()):
        assert (loss(objective, td)[outside] == 0).all()


def test_cloning_with_a_bucket_equals_a_loop(world):
    found = loss(NLL(tail="bucket"), world.td(TopP(p=0.3), ProjectedSoftmax()))
    actions, missed = world.transitions.action.tolist(), 0
    for value, student, teacher, action in zip(
        found.tolist(), world.student.tolist(), world.teacher.tolist(), actions, strict=True
    ):
        policy, inside = softmax(student), nucleus(teacher, 0.3)
        chance = policy[action] if action in inside else 1 - sum(policy[b] for b in inside)
        missed += action not in inside
        assert value == pytest.approx(-math.log(chance))
    assert 0 < missed < len(actions)


@pytest.mark.parametrize("tail", ["renormalise", "bucket"])
def test_forward_kl_equals_a_loop(world, tail):
    td = world.td(TopP(p=0.6), Softmax())
    found = ForwardKL(tail=tail).terms(td).divergence.tolist()
    for value, student, teacher in zip(found, world.student.tolist(), world.teacher.tolist(), strict=True):
        chosen = nucleus(teacher, 0.6)
        p = [softmax(teacher)[a] for a in chosen]
        q = [softmax(student)[a] for a in chosen]
        if tail == "renormalise":
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        else:
            p, q = [*p, 1 - sum(p)], [*q, 1 - sum(q)]
        assert value == pytest.approx(kl(p, q), abs=1e-12)


def test_forward_kl_on_full_equals_a_loop(world):
    found = ForwardKL().terms(world.td(Full(), Softmax())).divergence.tolist()
    expected = [kl(softmax(t), softmax(s)) for s, t in zip(world.student.tolist(), world.teacher.tolist(), strict=True)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("tail", ["renormalise", "bucket"])
def test_forward_kl_on_the_whole_support_is_the_full_divergence(world, tail):
    everything = ForwardKL(tail=tail).terms(world.td(TopP(p=1.0), Softmax())).divergence
    torch.testing.assert_close(everything, ForwardKL().terms(world.td(Full(), Softmax())).divergence)


def test_the_bucket_is_a_lower_bound_and_never_negative(world):
    full = ForwardKL().terms(world.td(Full(), Softmax())).divergence
    bucket = ForwardKL(tail="bucket").terms(world.td(TopP(p=0.6), Softmax())).divergence
    assert (bucket <= full + 1e-12).all()
    assert (bucket >= 0).all()


@pytest.mark.parametrize("subset", [Full(), TopP(p=0.6), TopK(k=3)])
@pytest.mark.parametrize("tail", ["renormalise", "bucket"])
def test_a_student_like_its_teacher_is_a_stationary_point_of_forward_kl(world, subset, tail):
    world.weight = torch.eye(V, dtype=torch.float64)
    world.hidden = world.teacher.clone().requires_grad_()
    value = ForwardKL(tail=tail).terms(world.td(subset, Softmax())).divergence.sum()
    assert value.item() == pytest.approx(0.0, abs=1e-10)
    value.backward()
    assert world.hidden.grad is not None
    assert world.hidden.grad.abs().max() < 1e-9


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_gradcheck_and_lazy_against_dense(world, objective, subset):
    extraction = ProjectedSoftmax()

    def value(hidden, weight, lazy=True):
        world.hidden, world.weight = hidden, weight
        return loss(objective, world.td(subset, extraction, lazy=lazy))

    leaves = (world.hidden, world.weight)
    torch.testing.assert_close(value(*leaves), value(*leaves, lazy=False))
    assert torch.autograd.gradcheck(value, leaves)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("spike", [60.0, 1e4])
def test_finite_at_one_hot_teachers_and_students(world, objective, subset, spike):
    world.teacher = torch.full_like(world.teacher, -float("inf"))
    world.teacher[:, 2] = 0.0
    world.hidden = (world.hidden.detach() * spike).requires_grad_()
    value = loss(objective, world.td(subset, ProjectedSoftmax())).sum()
    value.backward()
    assert torch.isfinite(value)
    assert world.hidden.grad is not None
    assert torch.isfinite(world.hidden.grad).all()


def test_the_bucket_pulls_mass_back_outside_also_below_its_floor():
    """Teacher (0.9, 0.1), student all on the first token: the gradient must raise the second logit."""
    world = make_world()
    world.teacher = torch.tensor([[0.9, 0.1]]).log()
    world.hidden = torch.tensor([[30.0, 0.0]], requires_grad=True)
    world.weight = torch.eye(2)
    world.transitions = chain((1,), (True,), torch.tensor([0]))
    value = ForwardKL(tail="bucket").terms(world.td(TopK(k=1), Softmax())).divergence
    value.sum().backward()
    assert world.hidden.grad is not None
    assert value.item() > 0.5
    assert world.hidden.grad[0, 1] < 0


def test_the_support_term_is_the_log_of_the_students_mass(world):
    td = world.td(TopP(p=0.6), ProjectedSoftmax())
    probs = world.student.detach().softmax(1)
    expected = [-math.log(sum(probs[i, a] for a in nucleus(t, 0.6))) for i, t in enumerate(world.teacher.tolist())]
    assert support_term(td.q).tolist() == pytest.approx(expected)


def test_the_support_term_on_a_share_of_the_states_is_unbiased(world):
    q = SubsetQ(
        world.td(TopP(p=0.6), ProjectedSoftmax()).student, TopP(p=0.6).select(world.td(Full(), Softmax()).teacher)
    )
    every = support_term(q).sum()
    n = len(world.transitions)
    singles = torch.stack([support_term(q, torch.tensor([i])).sum() for i in range(n)])
    torch.testing.assert_close(singles.mean(), every)


def test_the_support_term_is_nothing_on_the_whole_vocabulary(world):
    assert support_term(world.td(Full(), Softmax()).q).tolist() == [0.0] * len(world.transitions)


def test_an_objective_without_log_probabilities_is_refused():
    with pytest.raises(UserError, match="Use an extraction such as softmax"):
        NLL().check(TopP(), Greedy())
    IQL().check(TopP(), Greedy())


def test_an_objective_that_reads_the_teacher_undeclared_is_told_so(world):
    from dataclasses import replace

    td = replace(world.td(Full(), Softmax()), teacher_view=None)
    with pytest.raises(UserError, match="needs_teacher_view"):
        ForwardKL().terms(td)


def test_a_term_with_a_name_that_the_trainer_logs_is_refused():
    with pytest.raises(TypeError, match="names a term 'support', which the trainer logs itself"):

        class Terms(LossTerms):
            support: torch.Tensor


def test_no_rows_and_no_columns():
    """A subset of first tokens has no column where there is no row."""
    world = make_world()
    world.transitions, world.teacher = chain((), (), torch.zeros(0, dtype=torch.long)), world.teacher[:0]
    world.hidden = world.hidden.detach()[:0].requires_grad_()
    for objective in OBJECTIVES:
        assert loss(objective, world.td(TopP(p=0.6), ProjectedSoftmax())).shape == (0,)
