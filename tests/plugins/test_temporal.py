"""Temporal-difference objectives against loops over tokens, and the identities of their formulas."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distillzoo.core.errors import UserError
from distillzoo.core.logits import DenseLogits
from distillzoo.core.objective import Objective, TargetUpdate, TDBatch
from distillzoo.core.returns import accumulated
from distillzoo.core.subset import ActionSubset
from distillzoo.plugins.extractions.projected_softmax import ProjectedSoftmax
from distillzoo.plugins.objectives.forward_kl import ForwardKL
from distillzoo.plugins.objectives.iql import IQL, x_less_phi
from distillzoo.plugins.objectives.iql_released import IQLReleased
from distillzoo.plugins.objectives.ls_iq import LSIQ
from distillzoo.plugins.objectives.nll import NLL
from distillzoo.plugins.objectives.soft_q import SoftQ
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.top_p import TopP
from tests.plugins.worlds import ENDED, LENGTHS, V, World, chain, make_world
from tests.reference.losses import iql_in_all_modes, ls_iq_loss, nucleus, phi, released_loss, soft_q_loss

P = 0.7
EXPERTS = (True, False, True)
SUBSETS: dict[str, ActionSubset] = {"top-p": TopP(p=P), "full": Full()}


def td_of(student: Tensor, base: World, subset: ActionSubset, bar: Tensor | None = None) -> TDBatch:
    world = replace(base, hidden=student, weight=torch.eye(V, dtype=torch.float64))
    target = None if bar is None else DenseLogits(bar)
    return replace(world.td(subset, ProjectedSoftmax()), target_view=target)


def world_of(experts: tuple[bool, ...] = EXPERTS, seed: int = 0) -> World:
    """Actions of the teacher's, so that some are outside its nucleus and most are inside."""
    world = make_world(seed)
    generator = torch.Generator().manual_seed(seed)
    actions = torch.multinomial(world.teacher.softmax(1), 1, generator=generator)[:, 0]
    actions[6] = int(world.teacher[6].argmin())
    return replace(world, transitions=chain(LENGTHS, ENDED, actions, experts))


def loss(objective: Objective, td: TDBatch) -> Tensor:
    return torch.stack(list(objective.terms(td).losses().values())).sum(0)


def by_sequence(world: World, subset: str, reference: Callable[..., list[float]]) -> list[float]:
    """The reference applied to one sequence at a time: rows, sets, actions, ends, expert."""
    found, start = [], 0
    for length, ended in zip(LENGTHS, ENDED, strict=True):
        rows, expert = slice(start, start + length), bool(world.transitions.expert[start])
        sets = [list(range(V)) if subset == "full" else nucleus(t, P) for t in world.teacher[rows].tolist()]
        ends = ["next"] * (length - 1) + ["terminal" if ended else "truncated"]
        found += reference(rows, sets, world.transitions.action[rows].tolist(), ends, expert)
        start += length
    return found


def assert_same_value_and_gradient(
    objective: Objective,
    world: World,
    subset: str,
    reference: Callable[[Tensor], list[float]],
    bar: Tensor | None = None,
) -> None:
    """Values, and the gradient of their sum against central differences of the reference."""
    student = world.student.detach().clone().requires_grad_()
    found = loss(objective, td_of(student, world, SUBSETS[subset], bar))
    torch.testing.assert_close(found.tolist(), reference(student.detach()), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    expected, step = torch.zeros_like(student), 1e-5
    for row in range(len(student)):
        for token in range(V):
            up, down = student.detach().clone(), student.detach().clone()
            up[row, token] += step
            down[row, token] -= step
            expected[row, token] = (sum(reference(up)) - sum(reference(down))) / (2 * step)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=4),
    st.integers(0, 2**20),
    st.floats(0, 1),
    st.integers(1, 12),
)
def test_accumulated_is_the_loop_along_each_sequence(sequences, seed, factor, steps):
    lengths, ended = tuple(n for n, _ in sequences), tuple(e for _, e in sequences)
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    table = chain(lengths, ended, torch.zeros(n, dtype=torch.long))
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    counted = (torch.rand(n, generator=generator) < 0.8) & table.known
    expected = []
    for row in range(n):
        total, at, weight = 0.0, row, 1.0
        for _ in range(steps):
            if at < 0 or not counted[at]:
                break
            total += weight * x[at].item()
            at, weight = int(table.successor[at]), weight * factor
        expected.append(total)
    torch.testing.assert_close(accumulated(table, x, factor, counted, steps).tolist(), expected)


def test_what_does_not_count_may_be_infinite():
    table = chain((3,), (True,), torch.zeros(3, dtype=torch.long))
    x = torch.tensor([1.0, math.inf, 2.0])
    counted = torch.tensor([True, False, True])
    assert accumulated(table, x, 0.5, counted, 3).tolist() == [1.0, 0.0, 2.0]


IQL_MODES = [
    {"divergence": "hellinger"},
    {"divergence": "js", "gauge": "raw"},
    {"divergence": "kl", "gauge": "subset-max"},
    {"divergence": "tv", "gauge": "raw", "gamma": 0.5},
    {"divergence": "none", "samples": "initial", "gauge": "raw"},
    {"samples": "initial", "gamma": 0.9, "alpha": 2.0},
    {"samples": "initial", "first_term": "expected", "divergence": "kl", "gamma": 0.7, "gauge": "subset-max"},
    {"samples": "mixed", "gauge": "raw", "alpha": 1.0},
    {"samples": "mixed", "expert_share": 0.8, "divergence": "hellinger", "steps": 2},
    {"samples": "mixed", "first_term": "expected", "gamma": 0.8, "q_min": -1.0},
    {"first_term": "expected", "divergence": "none"},
    {"first_term": "expected", "centre": "teacher", "gauge": "raw", "alpha": 5.0},
    {"first_term": "expected", "centre": "teacher", "gauge": "max", "q_min": -1.0},
    {"centre": "teacher", "divergence": "js", "gauge": "subset-max"},
    {"steps": 3, "gamma": 0.9, "gauge": "raw"},
    {"trace": 0.7, "alpha": 3.0},
    {"trace": 1.0, "samples": "initial", "centre": "teacher", "gamma": 0.8},
]


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("mode", IQL_MODES, ids=str)
def test_iql_in_every_mode_equals_a_loop_over_tokens(mode, subset):
    world = world_of()
    teacher = world.teacher.tolist()

    def reference(student: Tensor) -> list[float]:
        z = student.tolist()
        return by_sequence(world, subset, lambda rows, *rest: iql_in_all_modes(z[rows], teacher[rows], *rest, **mode))

    assert_same_value_and_gradient(IQL(**mode), world, subset, reference)


SOFT_Q_MODES = [
    {},
    {"gauge": "max", "gamma": 0.5},
    {"gauge": "subset-max", "steps": 3},
    {"trace": 0.6, "gamma": 0.9},
    {"trace": 1.0, "reward": "expert", "scale": 3.0},
    {"reward": "expert", "gamma": 0.9, "steps": 2},
]


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("target", ["stop-gradient", "network"])
@pytest.mark.parametrize("mode", SOFT_Q_MODES, ids=str)
def test_soft_q_equals_the_returns_by_their_definitions(mode, target, subset):
    world = world_of()
    teacher = world.teacher.tolist()
    bar = world.student.detach() + (torch.linspace(-2, 2, 10 * V).reshape(10, V) if target == "network" else 0.0)

    def reference(student: Tensor) -> list[float]:
        z, fixed = student.tolist(), bar.tolist()
        return by_sequence(
            world, subset, lambda rows, *rest: soft_q_loss(z[rows], fixed[rows], teacher[rows], *rest, **mode)
        )

    assert_same_value_and_gradient(
        SoftQ(target=target, **mode), world, subset, reference, bar if target == "network" else None
    )


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("target", ["stop-gradient", "network"])
@pytest.mark.parametrize("expert_target", ["fixed", "bootstrap"])
@pytest.mark.parametrize(
    ("gamma", "regulariser", "steps"), [(0.9, 0.5, 1), (0.3, 2.0, 1), (0.9, 0.5, 3)]
)  # of the second the bound binds
def test_ls_iq_equals_a_loop_over_tokens(gamma, regulariser, steps, expert_target, target, subset):
    world = world_of((False, True, True) if gamma == 0.3 else EXPERTS)
    mode = {"gamma": gamma, "regulariser": regulariser, "expert_target": expert_target, "steps": steps}
    bar = world.student.detach() + (torch.linspace(-2, 2, 10 * V).reshape(10, V) if target == "network" else 0.0)

    def reference(student: Tensor) -> list[float]:
        z, fixed = student.tolist(), bar.tolist()
        return by_sequence(world, subset, lambda rows, *rest: ls_iq_loss(z[rows], fixed[rows], *rest, **mode))

    assert_same_value_and_gradient(
        LSIQ(target=target, **mode), world, subset, reference, bar if target == "network" else None
    )


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("mode", [{}, {"gamma": 0.5, "alpha": 2.0, "epsilon": 0.01, "q_min": -3.0}], ids=str)
def test_iql_released_equals_the_program_row_by_row(mode, subset):
    world = world_of()

    def reference(student: Tensor) -> list[float]:
        z = student.tolist()
        return by_sequence(
            world, subset, lambda rows, sets, actions, ends, expert: released_loss(z[rows], sets, ends, **mode)
        )

    assert_same_value_and_gradient(IQLReleased(**mode), world, subset, reference)


@pytest.mark.parametrize("divergence", ["chi2", "hellinger", "js", "kl", "tv", "none"])
@settings(max_examples=60, deadline=None)
@given(x=st.floats(-50, 50), alpha=st.floats(0.05, 10))
def test_psi_is_convex_and_never_negative_and_touches_0(divergence, x, alpha):
    psi = x_less_phi(divergence, alpha)
    points = torch.tensor([x, x + 0.5, x + 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    values = psi(points)
    (slope,) = torch.autograd.grad(values.sum(), points, allow_unused=True) if values.requires_grad else (None,)
    assert (values >= -1e-12).all()
    assert values[1] <= (values[0] + values[2]) / 2 + 1e-9
    assert values[3] == 0.0
    assert values[0].item() == pytest.approx(x - phi(divergence, x, alpha), rel=1e-9, abs=1e-9)
    if slope is not None:
        assert slope[3] == 0.0
        assert divergence == "chi2" or (slope >= -3 - 1e-9).all()


def test_a_very_negative_reward_keeps_every_penalty_finite():
    x = torch.tensor([-1e8, -800.0, 1e8], requires_grad=True)
    for name in ("hellinger", "js", "kl", "tv"):
        values = x_less_phi(name, 0.1)(x)
        (slope,) = torch.autograd.grad(values.sum(), x)
        assert torch.isfinite(values).all(), name
        assert torch.isfinite(slope).all(), name


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("gauge", ["raw", "max"])
def test_initial_without_a_penalty_telescopes_to_discounted_cloning(subset, gauge):
    world = world_of()
    td = td_of(world.student.detach(), world, SUBSETS[subset])
    found = loss(IQL(divergence="none", samples="initial", gamma=0.9, gauge=gauge), td)
    clone = loss(NLL(), td) * 0.9**td.transitions.time
    for sequence in range(len(LENGTHS)):
        rows = td.transitions.sequence == sequence
        assert found[rows].sum().item() == pytest.approx(clone[rows].sum().item())
    assert not torch.allclose(found, clone)


def test_mixed_without_student_rows_or_a_penalty_is_cloning():
    world = replace(world_of(), transitions=chain(LENGTHS, (True,) * 3, world_of().transitions.action))
    td = td_of(world.student.detach(), world, Full())
    found = loss(IQL(divergence="none", samples="mixed", expert_share=1.0), td)
    torch.testing.assert_close(found, loss(NLL(), td))


def test_a_students_row_under_mixed_has_no_reward():
    world = world_of((False, False, False))
    td = td_of(world.student.detach(), world, TopP(p=P))
    terms = IQL(samples="mixed", gauge="raw", gamma=0.9).terms(td)
    flow = td.value - 0.9 * td.transitions.next_value(td.value)
    assert (terms.penalty == 0).all()
    torch.testing.assert_close(terms.imitation, torch.where(td.transitions.known, flow, 0.0))


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_expected_first_term_is_the_forward_kl_up_to_the_teachers_entropy(subset):
    world = world_of()
    td = td_of(world.student.detach(), world, SUBSETS[subset])
    entropies = []
    for row in world.teacher:
        kept = torch.tensor(range(V) if subset == "full" else nucleus(row.tolist(), P))
        entropies.append(torch.distributions.Categorical(logits=row[kept]).entropy())
    kl = loss(ForwardKL(tail="renormalise"), td)
    torch.testing.assert_close(loss(IQL(divergence="none", first_term="expected"), td), kl + torch.stack(entropies))


def test_a_row_that_the_subset_misses_keeps_its_expected_first_term():
    world = world_of()
    td = td_of(world.student.detach(), world, TopP(p=P))
    terms = IQL(first_term="expected").terms(td)
    assert not td.inside[6]
    assert terms.imitation[6] > 0
    assert terms.penalty[6] == 0


def whole_episode() -> tuple[World, Tensor]:
    """One answer of six tokens that ends, and the discounts 0.9^t."""
    world = make_world()
    world = replace(
        world, transitions=chain((6,), (True,), torch.tensor([3, 1, 4, 1, 5, 2])), teacher=world.teacher[:6]
    )
    return replace(world, hidden=world.hidden.detach()[:6]), 0.9 ** torch.arange(6).double()


@pytest.mark.parametrize("long", [{"trace": 1.0}, {"steps": 6}, {"steps": 50}], ids=str)
def test_the_longest_target_is_the_monte_carlo_return(long):
    """sum of gamma^k r_k, and for each later action its entropy term -log pi(a|s)."""
    world, discount = whole_episode()
    td = td_of(world.student, world, Full())
    reward = torch.ones(6).double()
    entropy = td.value - td.q_action
    y = SoftQ(reward="expert", gamma=0.9, **long).terms(td).bellman_target
    for t in range(6):
        later = discount[: 6 - t]
        expected = (later * (reward + entropy)[t:]).sum() - entropy[t]
        assert y[t].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("long", [{"trace": 1.0}, {"steps": 6}, {"steps": 50}], ids=str)
def test_iql_looks_at_the_return_of_the_implied_rewards(long):
    world, discount = whole_episode()
    td = td_of(world.student, world, Full())
    objective = IQL(gamma=0.9, gauge="raw", **long)
    terms = objective.terms(td)
    sums = torch.stack([(discount[: 6 - t] * terms.implied_reward[t:]).sum() for t in range(6)])
    torch.testing.assert_close(terms.penalty, sums.square() / 0.4)


def test_a_target_that_looks_at_the_students_own_reward_is_its_q():
    """With the reward that Q implies every residual is 0, so any length of path gives Q back."""
    world = world_of()
    for length in ({}, {"steps": 3}, {"trace": 0.8}):
        same = replace(world, teacher=world.student.detach())
        terms = SoftQ(**length).terms(td_of(world.student.detach(), same, TopP(p=P)))
        assert terms.bellman.abs().max() < 1e-20, length


def test_an_action_that_the_teacher_never_takes_has_no_reward():
    world, _ = whole_episode()
    teacher = world.teacher.clone()
    teacher[3, int(world.transitions.action[3])] = -math.inf
    td = td_of(world.student, replace(world, teacher=teacher), Full())
    for objective in (SoftQ(trace=0.9), IQL(centre="teacher", gauge="raw", trace=0.9)):
        found = loss(objective, td)
        assert torch.isfinite(found).all()
    terms = SoftQ(trace=0.9).terms(td)
    assert terms.bellman[3] == 0
    assert terms.bellman[2] > 0


def test_both_lengths_of_a_path_at_once_are_refused():
    with pytest.raises(UserError, match=r"steps=3 and trace=0\.5 both say how far a target looks; set only one"):
        IQL.configure("objective", {"steps": 3, "trace": 0.5})


def test_what_needs_the_teachers_view_or_the_students_rows_says_so():
    assert not IQL().needs_teacher_view(Full())
    assert IQL(centre="teacher").needs_teacher_view(TopP())
    assert IQL(first_term="expected").needs_teacher_view(Full())
    assert not IQL(first_term="expected").needs_teacher_view(TopP())
    assert SoftQ().needs_teacher_view(TopP())
    assert not SoftQ(reward="expert").needs_teacher_view(TopP())
    assert [o.needs_student_rows for o in (IQL(), IQL(samples="mixed"), SoftQ(), SoftQ(reward="expert"), LSIQ())] == [
        False, True, False, True, True,
    ]  # fmt: skip
    assert SoftQ().target_update is None
    assert LSIQ(target="network", target_every=4, target_rate=0.1).target_update == TargetUpdate(4, 0.1)


def test_the_released_program_learns_nothing_of_the_end():
    world = world_of()
    student = world.student.detach().requires_grad_()
    found = loss(IQLReleased(), td_of(student, world, TopP(p=P)))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found[[3, 4]].tolist() == [0.0, 0.0], "the rows of the end tokens"
    assert (gradient[[3, 4]] == 0).all()
    assert found[-1] == 0.0, "truncated"
    assert gradient[-1].abs().max() > 0, "its value enters the row before"
