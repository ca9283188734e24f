"""Checks of policy extractions."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from distillzoo.core.checks.check import CheckFailed, check, first_example
from distillzoo.core.checks.measure import close, compiled_equals, more_than_the_view, slopes
from distillzoo.core.checks.world import (
    PLAIN,
    Best,
    Lay,
    Whole,
    World,
    make_world,
    members,
    rows_of,
    student_view,
    teacher_view,
    widened,
)
from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.logits import DenseLogits, LogitView
from distillzoo.core.subset import ActionSubset, SubsetQ

SUBSETS: tuple[ActionSubset, ...] = (Best(), Whole())


def q_of(world: World, subset: ActionSubset, view: LogitView | None = None, lay: Lay = PLAIN) -> SubsetQ:
    """Q of the world's student on a subset of its teacher."""
    found = subset.select(teacher_view(world.teacher, lay.spare, lay.holes))
    if lay.wide and not found.full:
        found = widened(found, lay.wide)
    return SubsetQ(view or student_view(world.hidden, world.weight, lay), found)


def support(part: PolicyExtraction, q: SubsetQ) -> tuple[Tensor, Tensor]:
    """Actions of the policy's support and their mask."""
    if part.on_subset:
        return q.subset.actions, q.subset.mask
    every = torch.arange(q.view.size).expand(q.view.rows, -1)
    return every, torch.ones_like(every, dtype=torch.bool)


def probabilities(part: PolicyExtraction, q: SubsetQ) -> Tensor:
    """The policy on its support, 0 where masked."""
    actions, mask = support(part, q)
    found = part.log_policy(q, actions)
    if found.shape != actions.shape:
        raise CheckFailed(
            f"log_policy has the shape {list(found.shape)} and should be [N, M] = {list(actions.shape)}, an entry for "
            f"each asked action."
        )
    return torch.where(mask, found, -math.inf).exp()


def value_of(part: PolicyExtraction, q: SubsetQ) -> Tensor:
    """The soft value, ``[N]``."""
    found = part.value(q)
    if found.shape != (q.view.rows,):
        raise CheckFailed(
            f"value has the shape {list(found.shape)} and should be [N] = [{q.view.rows}]. Most likely a reduction "
            "over the wrong axis: actions are dim=1."
        )
    return found


def unchanged(part: PolicyExtraction, lay: Lay, change: str, mistake: str) -> None:
    """Value and policy against those of another lay of the same states."""
    world = make_world()
    for subset in SUBSETS:
        plain, other = q_of(world, subset), q_of(world, subset, lay=lay)
        actions = Best().select(DenseLogits(world.teacher)).actions
        for name, one, two in (
            ("value", value_of(part, plain), value_of(part, other)),
            ("policy", part.log_policy(plain, actions).sum(1), part.log_policy(other, actions).sum(1)),
        ):
            if not close(one, two, atol=1e-7):
                seen = rows_of(one.tolist(), two.tolist())
                raise CheckFailed(f"The {name} changes {change}: {seen}. Most likely {mistake}.")


@check("extraction")
def shapes(part: PolicyExtraction) -> None:
    """``value`` is [N] and ``log_policy`` [N, M], both finite on ordinary logits."""
    world = make_world()
    for subset in SUBSETS:
        q = q_of(world, subset)
        for name, found in (("value", value_of(part, q)), ("policy", probabilities(part, q))):
            if found.dtype != q.values.dtype:
                raise CheckFailed(
                    f"The {name} is {found.dtype} and Q {q.values.dtype}: build constants with zeros_like."
                )
            if not bool(torch.isfinite(found).all()):
                raise CheckFailed(f"The {name} is not finite on ordinary logits.")


@check("extraction")
def normalised(part: PolicyExtraction) -> None:
    """The policy sums to 1 over its support."""
    world = make_world()
    for subset in SUBSETS:
        found = probabilities(part, q_of(world, subset)).sum(1)
        if not close(found, torch.ones_like(found), atol=1e-6):
            raise CheckFailed(
                f"The policy sums to {found.tolist()[0]:.6g} over its support and should sum to 1. Most likely it is "
                f"normalised over another set than on_subset says, or at another temperature than it is computed."
            )


@check("extraction")
def equivariant(part: PolicyExtraction) -> None:
    """A constant a state on Q is added to the value and leaves the policy alone."""
    world = make_world()
    shift = torch.linspace(-7, 7, len(world.hidden), dtype=torch.float64)
    for subset in SUBSETS:
        before = q_of(world, subset, DenseLogits(world.student))
        after = q_of(world, subset, DenseLogits(world.student + shift[:, None]))
        if not close(value_of(part, before) + shift, value_of(part, after), atol=1e-6):
            seen = rows_of((value_of(part, before) + shift).tolist(), value_of(part, after).tolist())
            raise CheckFailed(
                f"V(Q + c) is not V(Q) + c: {seen.replace(' was ', ' should be ')}. Most likely a temperature "
                f"multiplies only one of Q and the logsumexp."
            )
        if not close(probabilities(part, before), probabilities(part, after), atol=1e-6):
            raise CheckFailed("The policy changes with a constant a state on Q. Most likely it isn't normalised.")


@check("extraction", when=lambda part: part.value_is_potential)
def potential(part: PolicyExtraction) -> None:
    """The policy is the gradient of the value, as the extraction claims."""
    world = make_world()
    for subset in SUBSETS:
        leaf = world.student.detach().clone().requires_grad_()
        q = q_of(world, subset, DenseLogits(leaf))
        (slope,) = slopes(value_of(part, q), leaf)
        actions, mask = support(part, q)
        found = torch.where(mask, slope.gather(1, actions), 0.0)
        if not close(found, probabilities(part, q).detach(), atol=1e-6):
            raise CheckFailed(
                "dV/dQ is not the policy, and the extraction claims value_is_potential. Most likely value and policy "
                "are at different temperatures, or on different sets."
            )


@check("extraction")
def support_declared(part: PolicyExtraction) -> None:
    """With ``on_subset`` the logits outside the subset play no role; without it the subset plays none."""
    world = make_world()
    inside = Best().select(DenseLogits(world.teacher))
    keep = members(inside, world.teacher.shape[1])
    moved = torch.where(keep, world.student, world.student - 2.0)
    if part.on_subset:
        one = SubsetQ(DenseLogits(world.student), inside)
        two = SubsetQ(DenseLogits(moved), inside)
    else:
        one = q_of(world, Best())
        two = q_of(world, Whole())
    same_value = close(value_of(part, one), value_of(part, two), atol=1e-7)
    first, second = (part.log_policy(q, inside.actions).exp() for q in (one, two))
    if not same_value or not close(first, second, atol=1e-7):
        role = "logits outside the subset change" if part.on_subset else "the subset changes"
        raise CheckFailed(
            f"on_subset is {part.on_subset}, and {role} the value or the policy. Most likely the reduction goes "
            "through q.view where q is meant, or the other way round; or on_subset says the wrong thing."
        )


@check("extraction")
def table_padding(part: PolicyExtraction) -> None:
    """Masked columns of the subset's table change nothing."""
    unchanged(
        part,
        Lay(wide=3),
        "when the subset's table is padded to a larger width",
        "masked entries of q.values, which are 0, enter a reduction: mask them or use q.logsumexp() and q.max()",
    )


@check("extraction")
def vocabulary_rows(part: PolicyExtraction) -> None:
    """Vocabulary rows without a token change nothing."""
    mistake = "a column count enters, or a column at -inf becomes NaN"
    unchanged(part, Lay(spare=4), "when rows without a token are added to the vocabulary", mistake)
    unchanged(part, Lay(holes=2), "when ids without a token are added to the vocabulary", mistake)


@check("extraction")
def lazy_logits(part: PolicyExtraction) -> None:
    """Dense and lazy logits agree in value and gradient."""
    change, mistake = "when the logits are hidden states times a head", "more is read than the view's methods give"
    world = make_world()
    for subset in SUBSETS:
        with more_than_the_view():
            unchanged(part, Lay(lazy=True), change, mistake)
            dense, lazy = (
                slopes(value_of(part, q_of(world, subset, lay=lay)), world.hidden, world.weight)
                for lay in (PLAIN, Lay(lazy=True))
            )
        if not all(close(a, b, atol=1e-7) for a, b in zip(dense, lazy, strict=True)):
            raise CheckFailed(f"The value's gradient changes {change}. Most likely {mistake}.")


@check("extraction")
def row_by_row(part: PolicyExtraction) -> None:
    """Value and policy of a state don't depend on the other states."""
    world = make_world()
    for subset in SUBSETS:
        whole = value_of(part, q_of(world, subset))
        policy = probabilities(part, q_of(world, subset))
        for row in range(len(whole)):
            pick = slice(row, row + 1)
            one = replace(world, teacher=world.teacher[pick], hidden=world.hidden[pick])
            q = q_of(one, subset)
            if not close(whole[pick], value_of(part, q)) or not close(policy[pick], probabilities(part, q)):
                raise CheckFailed(
                    f"Value or policy of row {row} are others alone than in a batch. Most likely a maximum or a sum "
                    "runs over the rows (dim=0)."
                )


@check("extraction")
def gradcheck(part: PolicyExtraction) -> None:
    """The gradients of value and log-policy are those of the values, by finite differences in float64."""
    world = make_world()
    world = replace(world, teacher=world.teacher[:3], hidden=world.hidden.detach()[:3].requires_grad_())
    for subset in SUBSETS:
        functions: list[tuple[str, Callable[[SubsetQ], Tensor]]] = [("value", part.value)]
        if part.has_logprobs:
            functions.append(("log_policy", lambda q: part.log_policy(q, support(part, q)[0][:, :2])))
        for name, function in functions:

            def run(
                hidden: Tensor,
                function: Callable[[SubsetQ], Tensor] = function,
                subset: ActionSubset = subset,
            ) -> Tensor:
                return function(q_of(replace(world, hidden=hidden), subset, lay=Lay(lazy=True)))

            if not torch.autograd.gradcheck(run, (world.hidden,), raise_exception=False):
                raise CheckFailed(
                    f"The gradient of {name} is not that of its value. Most likely a part of it is detached; where "
                    f"log_policy can't carry a gradient, declare has_logprobs = False."
                )


@check("extraction")
def infinite_logits(part: PolicyExtraction) -> None:
    """Very sharp Q, and -inf outside the subset, give finite values and gradients."""
    world = make_world()
    inside = Best().select(DenseLogits(world.teacher))
    keep = members(inside, world.teacher.shape[1])
    for scale in (50.0, 1e4):
        sharp = world.student.detach().float() * scale
        leaf = torch.where(keep, sharp, -math.inf).requires_grad_()
        q = SubsetQ(DenseLogits(leaf), inside)
        found = value_of(part, q)
        (slope,) = slopes(found, leaf)
        if not bool(torch.isfinite(found).all()) or not bool(torch.isfinite(slope).all()):
            raise CheckFailed(
                f"Value or gradient are not finite at logits around {scale * 5:g} or at -inf outside the subset. Most "
                f"likely exp() without subtracting the maximum: use q.logsumexp()."
            )


@check("extraction")
def no_rows(part: PolicyExtraction) -> None:
    """A batch without states is harmless."""
    world = make_world()
    world = replace(world, teacher=world.teacher[:0], hidden=world.hidden[:0])
    for subset in SUBSETS:
        try:
            value_of(part, q_of(world, subset))
            probabilities(part, q_of(world, subset))
        except CheckFailed:
            raise
        except Exception as error:
            raise CheckFailed(f"A batch without states raises {type(error).__name__}: {error}.") from error


@check("extraction")
def decoding(part: PolicyExtraction) -> None:
    """The decoding settings are ones that a sampler takes."""
    found = part.decoding()
    if not isinstance(found, Decoding) or found.temperature < 0 or not 0 < found.top_p <= 1:
        raise CheckFailed(f"decoding() gives {found}: a Decoding with temperature >= 0 and 0 < top_p <= 1 is needed.")


@check("extraction")
def deterministic(part: PolicyExtraction) -> None:
    """The same Q gives the same bits."""
    world = make_world()
    for subset in SUBSETS:
        found = []
        for _ in range(2):
            q = q_of(world, subset)
            found.append(torch.cat([value_of(part, q), probabilities(part, q).sum(1)]))
        if not close(found[0], found[1], rtol=0.0, atol=0.0):
            raise CheckFailed("The same Q gives another value or policy. Most likely the extraction keeps state.")


@check("extraction")
def low_precision(part: PolicyExtraction) -> None:
    """Under bfloat16 autocast the value is that of float64 on the rounded inputs, to 0.1%."""
    world = make_world().to(torch.bfloat16).to(torch.float32)
    for subset in SUBSETS:
        exact = value_of(part, q_of(world.to(torch.float64), subset))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = value_of(part, q_of(world, subset, lay=Lay(lazy=True)))
        if not close(exact, rough, rtol=1e-3, atol=1e-3):
            seen = rows_of(exact.tolist(), rough.tolist())
            raise CheckFailed(f"The value is off under bfloat16 autocast: {seen}. Most likely a sum in bfloat16.")


@check("extraction", when=first_example)
def compiles(part: PolicyExtraction) -> None:
    """Traced by ``torch.compile``, value, policy and gradient are the same."""
    world = make_world()
    subset = Best().select(DenseLogits(world.teacher))

    def run(logits: Tensor) -> Tensor:
        q = SubsetQ(DenseLogits(logits), subset)
        return torch.cat([part.value(q), part.log_policy(q, subset.actions[:, :1])[:, 0].exp()])

    compiled_equals(run, world.student.detach())
