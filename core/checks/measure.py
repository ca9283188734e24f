"""What the checks measure: terms and gradients of a batch, training on a token tree, the same under torch.compile."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import config
from torch import Tensor

from distillzoo.core.checks.check import CheckFailed
from distillzoo.core.checks.world import (
    COMPOSITIONS,
    PLAIN,
    Composition,
    Lay,
    Tree,
    World,
    batch,
    make_world,
    rows_of,
    with_student,
)
from distillzoo.core.divergence import kl
from distillzoo.core.errors import UserError
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.logits import DenseLogits
from distillzoo.core.objective import LossTerms, Objective, TDBatch, support_term
from distillzoo.core.subset import ActionSubset

TOLERANCE: Final = 1e-7
"""Relative and absolute, in float64."""


@dataclass(frozen=True)
class Measured:
    """The terms of each row of the world, in the world's order, and the gradient of the summed loss."""

    terms: dict[str, Tensor]
    loss: Tensor
    gradients: tuple[Tensor, ...]


def fitting(objective: Objective) -> list[Composition]:
    """The compositions of the kit that the objective accepts.

    Raises:
        CheckFailed: it accepts none.
    """
    fits = []
    for subset, extraction in COMPOSITIONS:
        try:
            objective.check(subset, extraction)
        except UserError:
            continue
        fits.append((subset, extraction))
    if not fits:
        raise CheckFailed("check() refuses every extraction, also plain softmax: nothing can train with the objective.")
    return fits


def evaluate(objective: Objective, td: TDBatch) -> LossTerms:
    """The objective's terms.

    Raises:
        CheckFailed: they are no ``LossTerms`` of a value a row.
    """
    terms = objective.terms(td)
    if not isinstance(terms, LossTerms):
        raise CheckFailed(f"terms() returns {type(terms).__name__}: return a frozen dataclass derived from LossTerms.")
    if not terms.losses():
        raise CheckFailed("No field of the terms is part of the loss: make at least one with term().")
    n = len(td.transitions)
    for name, value in {**terms.losses(), **terms.diagnostics()}.items():
        if not isinstance(value, Tensor) or value.shape != (n,):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CheckFailed(
                f"The term '{name}' has the shape {shape} and should be [N] = [{n}], one value a row. Most likely a "
                f"sum or mean runs over the rows, or over no axis: reduce over the actions (dim=1) only; the trainer "
                f"weighs the rows and divides by their number."
            )
        if not value.is_floating_point():
            raise CheckFailed(f"The term '{name}' is {value.dtype} and should be a floating point tensor.")
    return terms


def total(terms: LossTerms) -> Tensor:
    """The loss a row, ``[N]``."""
    return torch.stack(list(terms.losses().values())).sum(0)


def measure(objective: Objective, world: World, composition: Composition, lay: Lay = PLAIN) -> Measured:
    """Terms, loss and gradient on a batch of the world, back in the world's order."""
    td, rows = batch(world, composition, lay)
    terms = evaluate(objective, td)
    back = {}
    for name, value in {**terms.losses(), **terms.diagnostics()}.items():
        back[name] = torch.zeros(len(world.hidden), dtype=value.dtype).index_put((rows,), value.detach())
    loss = total(terms)
    return Measured(back, loss.detach(), gradients(loss, world))


def gradients(loss: Tensor, world: World) -> tuple[Tensor, ...]:
    """Gradient of the summed loss for the student's factors."""
    return slopes(loss, world.hidden, world.weight)


def slopes(value: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Gradient of the sum for each leaf; zeros where there is none."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))


def same(before: Measured, after: Measured, change: str, mistake: str, tolerance: float = TOLERANCE) -> None:
    """Refuse a difference in a term or in the gradient, and say what was changed and what is likely wrong."""
    for name, value in before.terms.items():
        if not torch.allclose(value, after.terms[name], rtol=tolerance, atol=tolerance, equal_nan=True):
            seen = rows_of(value.tolist(), after.terms[name].tolist())
            raise CheckFailed(f"The term '{name}' changes {change}: {seen}. Most likely {mistake}.")
    for one, other in zip(before.gradients, after.gradients, strict=True):
        if not torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True):
            off = float((one - other).abs().max())
            raise CheckFailed(f"The gradient changes {change}, by up to {off:.3g}. Most likely {mistake}.")


def unchanged(objective: Objective, lay: Lay, change: str, mistake: str) -> None:
    """Terms and gradient of the plain batch against those of another lay of the same answers."""
    world = make_world()
    for composition in fitting(objective):
        same(measure(objective, world, composition), measure(objective, world, composition, lay), change, mistake)


def composed(objective: Objective, td: TDBatch) -> Tensor:
    """The loss a row with the support term, ``[N]``."""
    loss = total(evaluate(objective, td))
    if objective.support_weight > 0 and not td.subset.full:
        loss = loss + objective.support_weight * support_term(td.q)
    return loss


STEPS: Final = 60
"""Steps of Adam at learning rate 0.1 in ``descend``."""

ROUND: Final = 15
"""Steps of ``descend`` between two samples of the student."""


def descend(
    tree: Tree, subset: ActionSubset, objective: Objective, extraction: PolicyExtraction
) -> tuple[float, float]:
    """KL(teacher || student) on the subset before and after training a table of logits, in nats a row.

    An objective that needs the student's rows gets as many answers of the student as there are of the teacher, sampled
    anew every ``ROUND`` steps. The target network, if it reads one, is the student as it was before the step.

    Args:
        tree: the world.
        subset: of the composition.
        objective: the loss; its support term counts.
        extraction: of the composition.
    """
    table = torch.randn(tree.teacher.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    table = table.requires_grad_()

    def batch_of(tree: Tree) -> tuple[TDBatch, Tensor]:
        world = replace(tree.world, hidden=table[tree.state], weight=torch.eye(table.shape[1]).double())
        td, rows = batch(world, (subset, extraction))
        return td, tree.state[rows]

    td, state = visited, at = batch_of(tree)

    def distance() -> float:
        with torch.no_grad():
            teacher, student = tree.teacher[at], table[at]
            if not visited.subset.full:
                actions, mask = visited.subset.actions, visited.subset.mask
                teacher, student = (z.gather(1, actions).masked_fill(~mask, -math.inf) for z in (teacher, student))
            return float(kl(teacher, student).mean())

    optimiser = torch.optim.Adam([table], lr=0.1)
    before = distance()
    for step in range(STEPS):
        if objective.needs_student_rows and step % ROUND == 0:
            td, state = batch_of(with_student(tree, table, seed=step))
        now = replace(td, student=DenseLogits(table[state]), target_view=DenseLogits(table.detach()[state].clone()))
        loss = composed(objective, now)
        (table.grad,) = slopes(loss.mean(), table)
        optimiser.step()
    return before, distance()


def compiled_equals(function: Callable[[Tensor], Tensor], argument: Tensor, differentiable: bool = True) -> None:
    """Refuse a function that torch.compile's tracer can't follow, or whose value or gradient differs when traced."""
    torch.compiler.reset()
    found = []
    for traced in (False, True):
        leaf = argument.clone().requires_grad_(differentiable)
        try:
            with _tracing():
                value = torch.compile(function, backend="eager", dynamic=False)(leaf) if traced else function(leaf)
        except CheckFailed:
            raise
        except Exception as error:
            first = str(error).strip().splitlines()[:1]
            raise CheckFailed(f"torch.compile cannot trace it: {type(error).__name__}: {''.join(first)}") from error
        found.append((value, *slopes(value, leaf)))
    for what, one, other in zip(("values", "gradients"), *found, strict=True):
        if not close(one, other, atol=1e-6):
            raise CheckFailed(
                f"Under torch.compile the {what} differ. Most likely a number was taken out of a tensor by tolist() or "
                f"numpy() and is a constant when traced, or the part keeps state between calls."
            )


@contextmanager
def more_than_the_view() -> Iterator[None]:
    """Name the mistake where a part reads something of the logits that lazy ones don't have."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        raise CheckFailed(
            f"With lazy logits it raises {error!r}. Most likely more is read than the view's methods give (.logits)."
        ) from error


def close(one: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-7) -> bool:
    """Whether two tensors agree, whatever their data types; NaN agrees with NaN, other checks find it."""
    return torch.allclose(one.double(), other.double(), rtol=rtol, atol=atol, equal_nan=True)


@contextmanager
def _tracing() -> Iterator[None]:
    """Dynamo's remarks off the screen, for a break of its graph is no fault; shape checks off, it can't trace them."""
    logs = [logging.getLogger(name) for name in ("torch._dynamo", "torch.__trace")]
    levels, checked = [log.level for log in logs], config.jaxtyping_disable
    try:
        config.update("jaxtyping_disable", True)
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer looks at .grad of what is no leaf
            yield
    finally:
        config.update("jaxtyping_disable", checked)
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
