"""minillm and llmr against loops over tokens, and against the exact gradient on a tree of all answers."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distillzoo.core.config import resolve
from distillzoo.core.errors import UserError
from distillzoo.core.logits import DenseLogits
from distillzoo.core.objective import Moments, TDBatch
from distillzoo.core.returns import accumulated
from distillzoo.core.subset import WholeVocabulary
from distillzoo.core.world import World as LoadedWorld
from distillzoo.plugins.extractions.softmax import Softmax
from distillzoo.plugins.objectives.llmr import LLMR
from distillzoo.plugins.objectives.minillm import MiniLLM
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.top_p import TopP
from tests.plugins.worlds import ENDED, LENGTHS, V, World, chain, make_world
from tests.reference.policy_gradient import llmr_loss, minillm_loss, minillm_returns

PARTS = [slice(sum(LENGTHS[:i]), sum(LENGTHS[: i + 1])) for i in range(len(LENGTHS))]


@pytest.fixture
def world() -> World:
    """Student logits as leaves, and behaviour that is known of every other row, up to a factor of e either way."""
    made = make_world()
    made.hidden = made.student.detach().clone().requires_grad_()
    made.weight = torch.eye(V, dtype=torch.float64)
    own = made.hidden.detach().log_softmax(1).gather(1, made.transitions.action[:, None])[:, 0]
    known = own + torch.linspace(-1.0, 1.0, len(own)).double()
    known[1::2] = math.nan
    made.transitions = replace(made.transitions, behaviour=known)
    return made


def loss(objective, td) -> Tensor:
    return sum(objective.terms(td).losses().values())


def slope(function: Callable[[list[list[float]]], list[float]], at: Tensor, h: float = 1e-5) -> Tensor:
    """Central difference quotients of the sum, logit by logit."""
    found = torch.zeros_like(at)
    for i in range(at.shape[0]):
        for j in range(at.shape[1]):
            up, down = at.clone(), at.clone()
            up[i, j] += h
            down[i, j] -= h
            found[i, j] = (sum(function(up.tolist())) - sum(function(down.tolist()))) / (2 * h)
    return found


def assert_like(found: Tensor, leaf: Tensor, reference: Callable[[list[list[float]]], list[float]]) -> None:
    """Value a row and gradient of the sum."""
    torch.testing.assert_close(found.tolist(), reference(leaf.detach().tolist()))
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    torch.testing.assert_close(gradient, slope(reference, leaf.detach()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("subset", [Full(), TopP(p=0.6)], ids=str)
@pytest.mark.parametrize(
    ("gamma", "scale", "clip", "ratio_clip", "normalise", "first"),
    [
        (0.95, 0.5, 100.0, 0.2, True, "next"),
        (0.95, 0.5, 100.0, 0.2, True, "current"),
        (1.0, 2.0, 0.4, 0.5, False, "next"),
        (0.5, 1.0, 1.0, 10.0, False, "current"),
    ],
)
def test_minillm_equals_a_loop_over_tokens(world, subset, gamma, scale, clip, ratio_clip, normalise, first):
    moments = Moments(0.3, 1.7)
    objective = MiniLLM(
        gamma=gamma, reward_scale=scale, reward_clip=clip, ratio_clip=ratio_clip, length_normalise=normalise,
        first_reward=first,
    )  # fmt: skip
    teacher, frozen = world.teacher.tolist(), world.hidden.detach().tolist()
    actions, behaviour = world.transitions.action.tolist(), world.transitions.behaviour.tolist()
    returns = [
        minillm_returns(
            frozen[p], teacher[p], actions[p], gamma=gamma, scale=scale, clip=clip, normalise=normalise, first=first
        )
        for p in PARTS
    ]

    def reference(student: list[list[float]]) -> list[float]:
        return [
            value
            for p, r in zip(PARTS, returns, strict=True)
            for value in minillm_loss(
                student[p], frozen[p], teacher[p], actions[p], behaviour[p], r,
                mean=moments.mean, deviation=moments.deviation, ratio_clip=ratio_clip,
            )
        ]  # fmt: skip

    td = replace(world.td(subset, Softmax()), moments=moments)
    torch.testing.assert_close(objective.returns(td).tolist(), [value for r in returns for value in r])
    assert_like(loss(objective, td), world.hidden, reference)


@pytest.mark.parametrize("subset", [Full(), TopP(p=0.6)], ids=str)
@pytest.mark.parametrize("next_value", ["max", "softmax"])
@pytest.mark.parametrize(("scale", "clip"), [(1.0, None), (3.0, 0.7)])
def test_llmr_equals_a_loop_over_tokens(world, subset, next_value, scale, clip):
    teacher, frozen = world.teacher.tolist(), world.hidden.detach().tolist()
    actions, behaviour = world.transitions.action.tolist(), world.transitions.behaviour.tolist()

    def reference(student: list[list[float]]) -> list[float]:
        return [
            value
            for p, ended in zip(PARTS, ENDED, strict=True)
            for value in llmr_loss(
                student[p], frozen[p], teacher[p], actions[p], behaviour[p], ended,
                next_value=next_value, scale=scale, clip=clip,
            )
        ]  # fmt: skip

    objective = LLMR(next_value=next_value, scale=scale, clip=clip)
    assert_like(loss(objective, world.td(subset, Softmax())), world.hidden, reference)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), max_size=5), discount=st.sampled_from([0.0, 0.3, 0.95, 1.0]))
def test_returns_to_go_equal_a_double_loop(lengths, discount):
    table = chain(tuple(lengths), (True, False, True, False, True)[: len(lengths)], torch.zeros(sum(lengths)).long())
    reward = torch.linspace(-1, 2, sum(lengths)).double()
    expected, start = [], 0
    for length in lengths:
        own = reward[start : start + length].tolist()
        expected += [sum(discount ** (u - t) * own[u] for u in range(t, length)) for t in range(length)]
        start += length
    assert accumulated(table, reward, discount).tolist() == pytest.approx(expected)


TOKENS, END, DEPTH = 3, 2, 3


def answers(prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """All answers over three tokens; those of three tokens that have not ended are cut there."""
    if len(prefix) == DEPTH or END in prefix:
        return [prefix]
    return [answer for token in range(TOKENS) for answer in answers((*prefix, token))]


class EveryAnswer:
    """A batch of all answers over a table of logits a prefix, and the probability of each row's answer."""

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        every = answers()
        prefixes = sorted({answer[:t] for answer in every for t in range(len(answer))})
        number = {prefix: i for i, prefix in enumerate(prefixes)}
        state = torch.tensor([number[answer[:t]] for answer in every for t in range(len(answer))])
        action = torch.tensor([token for answer in every for token in answer])
        lengths = tuple(len(answer) for answer in every)
        table = chain(lengths, tuple(END in answer for answer in every), action)
        self.student, self.teacher = student[state], teacher[state]
        view, other = DenseLogits(self.student), DenseLogits(self.teacher)
        self.td = TDBatch(table, view, WholeVocabulary(view, other), Softmax(), other)
        self.log_pi = self._answers(self.student)
        self.log_teacher = self._answers(self.teacher)
        self.row_weight = self.log_pi.detach().exp()[table.sequence]

    def _answers(self, logits: Tensor) -> Tensor:
        rows = logits.log_softmax(1).gather(1, self.td.transitions.action[:, None])[:, 0]
        count = int(self.td.transitions.sequence.max()) + 1
        return torch.zeros(count, dtype=rows.dtype).index_add(0, self.td.transitions.sequence, rows)

    def divergence(self) -> Tensor:
        """KL(pi(y) || pi_T(y)) over whole answers."""
        return (self.log_pi.exp() * (self.log_pi - self.log_teacher)).sum()


STATES = len({answer[:t] for answer in answers() for t in range(len(answer))})


@pytest.fixture
def tables() -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, STATES, TOKENS, dtype=torch.float64) * 1.5
    return student.requires_grad_(), teacher


PLAINLY = {"gamma": 1.0, "reward_scale": 1.0, "reward_clip": 1e9, "length_normalise": False}


def test_every_answer_is_there_once(tables):
    every = EveryAnswer(*tables)
    assert every.log_pi.exp().sum().item() == pytest.approx(1.0)
    assert every.log_teacher.exp().sum().item() == pytest.approx(1.0)


def test_minillm_has_the_gradient_of_the_divergence_of_answers_in_expectation(tables):
    every = EveryAnswer(*tables)
    expected = (every.row_weight * loss(MiniLLM(**PLAINLY), every.td)).sum()
    (found,) = torch.autograd.grad(expected, tables[0], retain_graph=True)
    (exact,) = torch.autograd.grad(every.divergence(), tables[0])
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-9)


def test_with_its_own_reward_in_the_return_the_policy_gradient_alone_is_exact_in_expectation(tables):
    """So with the single step, which the released program adds too, the first step counts twice."""
    every = EveryAnswer(*tables)
    terms = MiniLLM(first_reward="current", **PLAINLY).terms(every.td)
    gradients = [
        torch.autograd.grad(value.sum(), tables[0], retain_graph=True)[0]
        for value in (every.row_weight * terms.policy_gradient, every.row_weight * terms.single_step)
    ]
    (exact,) = torch.autograd.grad(every.divergence(), tables[0])
    torch.testing.assert_close(gradients[0], exact, rtol=1e-6, atol=1e-9)
    assert gradients[1].abs().max() > 1e-3


def test_the_log_ratio_is_minus_the_divergence_in_expectation(tables):
    every = EveryAnswer(*tables)
    found = (every.row_weight * MiniLLM().terms(every.td).log_ratio).sum()
    torch.testing.assert_close(found, -every.divergence())


@pytest.mark.parametrize("objective", MiniLLM.examples(), ids=str)
def test_minillm_stands_still_in_every_row_where_the_student_is_the_teacher(world, objective):
    world.hidden = world.teacher.clone().requires_grad_()
    td = world.td(Full(), Softmax())
    returns = objective.returns(td)
    td = replace(td, moments=Moments(returns.mean().item(), returns.std(correction=0).item()))
    (found,) = torch.autograd.grad(loss(objective, td).sum(), world.hidden)
    assert found.abs().max() < 1e-10


def test_the_whitened_advantage_has_mean_0_and_deviation_1(world):
    world.transitions = replace(world.transitions, behaviour=torch.full_like(world.transitions.behaviour, math.nan))
    td = world.td(Full(), Softmax())
    returns = MiniLLM().returns(td)
    assert not returns.requires_grad
    moments = Moments(returns.mean().item(), returns.std(correction=0).item())
    advantage = -MiniLLM().terms(replace(td, moments=moments)).policy_gradient
    assert advantage.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert advantage.std(correction=0).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(("mean", "moves"), [(-5.0, False), (5.0, True)])
def test_a_ratio_that_went_far_enough_gets_no_further_push_but_is_pulled_back(world, mean, moves):
    """rho = e > 1.2: an advantage above 0 is clipped, one below 0 is not."""
    own = world.hidden.detach().log_softmax(1).gather(1, world.transitions.action[:, None])[:, 0]
    world.transitions = replace(world.transitions, behaviour=own - 1.0)
    td = replace(world.td(Full(), Softmax()), moments=Moments(mean, 1.0))
    assert ((MiniLLM(reward_clip=1.0).returns(td) - mean).sign() == -math.copysign(1, mean)).all()
    value = MiniLLM(reward_clip=1.0).terms(td).policy_gradient.sum()
    (found,) = torch.autograd.grad(value, world.hidden)
    assert bool((found.abs().amax(1) > 1e-3).all()) is moves
    assert bool((found == 0).all()) is not moves


def test_the_single_step_passes_gradcheck(world):
    def value(hidden: Tensor) -> Tensor:
        world.hidden = hidden
        return MiniLLM().terms(world.td(Full(), Softmax())).single_step

    assert torch.autograd.gradcheck(value, (world.hidden,))


@pytest.mark.parametrize("next_value", ["max", "softmax"])
def test_llmr_telescopes_to_the_value_and_the_advantages_to_come(world, next_value):
    f = world.teacher - world.teacher.mean(1, keepdim=True)
    value = f.amax(1) if next_value == "max" else (f.softmax(1) * f).sum(1)
    reward = LLMR(next_value=next_value).terms(world.td(Full(), Softmax())).reward
    taken = f.gather(1, world.transitions.action[:, None])[:, 0]
    found, expected = accumulated(world.transitions, reward), value + accumulated(world.transitions, taken - value)
    ended = torch.tensor(ENDED)[world.transitions.sequence]
    torch.testing.assert_close(found[ended], expected[ended])


def test_along_the_teachers_likeliest_answer_llmrs_return_is_the_value(world):
    world.transitions = replace(world.transitions, action=world.teacher.argmax(1))
    reward = LLMR().terms(world.td(Full(), Softmax())).reward
    f = world.teacher - world.teacher.mean(1, keepdim=True)
    ended = torch.tensor(ENDED)[world.transitions.sequence]
    torch.testing.assert_close(accumulated(world.transitions, reward)[ended], f.amax(1)[ended])


def test_a_truncated_answer_does_not_count_in_llmr(world):
    terms = LLMR().terms(world.td(Full(), Softmax()))
    cut = ~torch.tensor(ENDED)[world.transitions.sequence]
    assert (terms.reinforce[cut] == 0).all()
    assert (terms.reinforce[~cut] != 0).all()


@pytest.mark.parametrize("name", ["minillm", "llmr"])
def test_a_source_that_never_samples_from_the_student_is_refused(registry, name):
    sets = (f"objective.name={name}", "subset.name=full", "trajectories.name=dataset")
    with pytest.raises(UserError, match=f"The objective {name} needs the student's own"):
        LoadedWorld(resolve(registry, sets=sets), registry)
