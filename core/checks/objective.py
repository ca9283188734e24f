"""Checks of objectives."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from distillzoo.core.checks.check import CheckFailed, check, first_example
from distillzoo.core.checks.measure import (
    STEPS,
    Measured,
    compiled_equals,
    descend,
    evaluate,
    fitting,
    gradients,
    measure,
    more_than_the_view,
    same,
    slopes,
    total,
    unchanged,
)
from distillzoo.core.checks.world import (
    END,
    Answer,
    Composition,
    Lay,
    Layout,
    World,
    batch,
    make_tree,
    make_world,
    rows_of,
)
from distillzoo.core.errors import UserError
from distillzoo.core.logits import DenseLogits
from distillzoo.core.objective import Objective


@check("objective")
def terms(objective: Objective) -> None:
    """``terms`` returns one finite value a row for each named term, and the loss has a gradient."""
    world = make_world()
    for composition in fitting(objective):
        found = measure(objective, world, composition)
        for name, value in found.terms.items():
            if not bool(torch.isfinite(value).all()):
                raise CheckFailed(f"The term '{name}' is not finite on ordinary logits: {value.tolist()}.")
        if all(bool((g == 0).all()) for g in found.gradients):
            raise CheckFailed(
                "The loss has no gradient for the student. Most likely a detach(), a no_grad() or an argmax stands "
                "between td.student and the terms."
            )


@check("objective")
def batch_order(objective: Objective) -> None:
    """The order of the answers in a batch changes nothing."""
    unchanged(
        objective,
        Lay(Layout((3, 2, 0, 1))),
        "when the answers of the batch stand in another order",
        "rows are tied to their neighbours instead of their successors: a shift or roll by one row runs from one "
        "answer into the next. Use transitions.successor and transitions.next_value",
    )


@check("objective")
def batch_split(objective: Objective) -> None:
    """Splitting a batch over accumulation steps leaves loss and gradient."""
    world = make_world()
    for composition in fitting(objective):
        whole = measure(objective, world, composition)
        parts = [measure(objective, world, composition, Lay(Layout((i,)))) for i in range(len(world.answers))]
        joined = {name: torch.stack([p.terms[name] for p in parts]).sum(0) for name in whole.terms}
        gradient = tuple(torch.stack(g).sum(0) for g in zip(*(p.gradients for p in parts), strict=True))
        same(
            whole,
            Measured(joined, whole.loss, gradient),
            "when every answer is a batch of its own",
            "a statistic of the whole batch (its mean, its largest value, its number of rows) or a neighbouring row "
            "that is no successor enters the terms; a term belongs to its row, and the trainer divides by the tokens "
            "of the whole optimiser step",
        )


@check("objective")
def padding_side(objective: Objective) -> None:
    """Padding on the left instead of the right changes nothing."""
    unchanged(
        objective,
        Lay(Layout((0, 1, 2, 3), side="left")),
        "when the batch is padded on the left",
        "transitions.position, a column of the batch, is used as a time; count within the answer instead",
    )


@check("objective")
def padding_width(objective: Objective) -> None:
    """More padding changes nothing."""
    unchanged(
        objective,
        Lay(Layout((0, 1, 2, 3), side="left", extra=5)),
        "when the batch is padded to a larger width",
        "the width of the batch, or transitions.position, enters the terms",
    )


@check("objective")
def table_padding(objective: Objective) -> None:
    """Masked columns of the subset's table change nothing."""
    unchanged(
        objective,
        Lay(wide=3),
        "when the subset's table is padded to a larger width",
        "masked entries enter a sum, a mean or a logsumexp; their values and log-probabilities are 0, not -inf, so "
        "apply td.subset.mask first",
    )


@check("objective")
def vocabulary_rows(objective: Objective) -> None:
    """Vocabulary rows without a token change nothing."""
    mistake = (
        "the number of columns of the head, or of the view, enters the terms, or 0 * -inf is not kept from becoming "
        "NaN where neither model has a token"
    )
    unchanged(objective, Lay(spare=4), "when rows without a token are added to the vocabulary", mistake)
    unchanged(objective, Lay(holes=2), "when ids without a token are added to the vocabulary", mistake)


@check("objective")
def masked_positions(objective: Objective) -> None:
    """Prompt and padding positions get no gradient."""
    world = make_world()
    for composition in fitting(objective):
        td, rows = batch(world, composition)
        grid = torch.randn(len(world.answers), 12, world.hidden.shape[1], dtype=torch.float64)
        place = (td.transitions.sequence, td.transitions.position)
        grid = grid.index_put(place, world.hidden.detach()[rows]).requires_grad_()
        td = replace(td, student=DenseLogits(grid[place] @ world.weight.T))
        loss = total(evaluate(objective, td))
        (found,) = slopes(loss, grid)
        found = found.index_put(place, torch.zeros(()).double())
        if bool((found != 0).any()):
            raise CheckFailed("Positions outside the answer get a gradient: keep to the rows of td.")


@check("objective")
def teacher_constant(objective: Objective) -> None:
    """The teacher gets no gradient."""
    world = make_world()
    for composition in fitting(objective):
        teacher = world.teacher.clone().requires_grad_()
        td, _ = batch(replace(world, teacher=teacher), composition)
        loss = total(evaluate(objective, td))
        (found,) = slopes(loss, teacher)
        if bool((found != 0).any()):
            raise CheckFailed(
                "The teacher's logits get a gradient. Most likely something read from td.teacher is used without "
                "detach(): the teacher is a constant."
            )


@check("objective")
def declared_teacher(objective: Objective) -> None:
    """An objective that reads the teacher's whole distribution says so, and one that doesn't works without it."""
    world = make_world()
    for composition in fitting(objective):
        if not (composition[0].needs_student or objective.needs_teacher_view(composition[0])):
            try:
                measure(objective, world, composition, Lay(blind=True))
            except UserError as error:
                raise CheckFailed(
                    f"terms() reads the whole teacher, and needs_teacher_view() is false for this subset: {error}"
                ) from None


@check("objective")
def declared_target(objective: Objective) -> None:
    """An objective that reads a target network says so."""
    world = make_world()
    for composition in fitting(objective):
        if objective.target_update is None:
            td, _ = batch(world, composition)
            try:
                evaluate(objective, replace(td, target_view=None))
            except UserError as error:
                raise CheckFailed(f"terms() reads td.target, and target_update is none: {error}") from None


@check("objective")
def weights(objective: Objective) -> None:
    """The terms don't depend on the rows' weights."""
    world = make_world()
    for composition in fitting(objective):
        td, _ = batch(world, composition)
        before = total(evaluate(objective, td))
        doubled = replace(td.transitions, weight=td.transitions.weight * 2)
        after = total(evaluate(objective, replace(td, transitions=doubled)))
        if not torch.allclose(before, after, equal_nan=True):
            raise CheckFailed(
                "The terms change with transitions.weight. The trainer multiplies them by it: don't do it in terms()."
            )


@check("objective")
def lazy_logits(objective: Objective) -> None:
    """Dense and lazy logits agree in value and gradient."""
    with more_than_the_view():
        unchanged(
            objective,
            Lay(lazy=True),
            "when the logits are hidden states times a head",
            "block(), which has no gradient, is read where gather(), logsumexp() or rowwise() is meant",
        )


@check("objective", when=lambda objective: not objective.stops_gradient)
def gradcheck(objective: Objective) -> None:
    """The gradient is that of the value, by finite differences in float64."""
    world = make_world(answers=(Answer(1, (4, 0, END), True), Answer(2, (7, 3), False)))
    for composition in fitting(objective):

        def value(hidden: Tensor, weight: Tensor, composition: Composition = composition) -> Tensor:
            td, _ = batch(replace(world, hidden=hidden, weight=weight), composition, Lay(lazy=True))
            return total(evaluate(objective, td))

        if not torch.autograd.gradcheck(value, (world.hidden, world.weight), raise_exception=False, fast_mode=True):
            raise CheckFailed(
                "The gradient is not that of the value. Most likely a part of the loss is detached; where that is "
                "meant (a target that is held fixed), return True from stops_gradient."
            )


@check("objective")
def one_hot_teacher(objective: Objective) -> None:
    """Loss and gradient are finite where the teacher gives all mass to one token, and the student is very sharp."""
    for spike in (1.0, 50.0, 1e4):
        world = make_world().to(torch.float32)
        teacher = torch.full_like(world.teacher, -math.inf)
        teacher[:, 4] = 0.0
        hidden = (world.hidden.detach() * spike).requires_grad_()
        _finite(objective, replace(world, teacher=teacher, hidden=hidden), f"student's logits up to {spike * 10:g}")


def _finite(objective: Objective, world: World, what: str) -> None:
    for composition in fitting(objective):
        td, _ = batch(world, composition)
        loss = total(evaluate(objective, td))
        found = gradients(loss, world)
        if not bool(torch.isfinite(loss).all()) or not all(bool(torch.isfinite(g).all()) for g in found):
            which = "loss" if not bool(torch.isfinite(loss).all()) else "gradient"
            raise CheckFailed(
                f"The {which} is not finite at a one-hot teacher ({what}). Most likely 0 * log 0: use torch.where on "
                f"the masked or impossible actions before multiplying, torch.xlogy, or log-probabilities instead of "
                f"the log of a probability."
            )


@check("objective")
def infinite_logits(objective: Objective) -> None:
    """Logits of -inf on tokens that neither model gives are harmless; +inf never gives a plausible wrong number."""
    for composition in fitting(objective):
        world = make_world()
        teacher, student = world.teacher.clone(), world.student.detach().clone()
        for row, action in enumerate(a for answer in world.answers for a in answer.actions):
            gone = (action + 4) % teacher.shape[1]
            teacher[row, gone] = student[row, gone] = -math.inf
        loss, found = _on(objective, world, teacher, student, composition)
        if not bool(torch.isfinite(loss).all()) or not bool(torch.isfinite(found).all()):
            raise CheckFailed(
                "A token with the logit -inf in both models makes the loss or its gradient infinite or NaN. Most "
                "likely 0 * -inf: use torch.where before multiplying."
            )
        teacher = world.teacher.clone()
        teacher[:, 0] = math.inf
        loss, _ = _on(objective, world, teacher, world.student.detach(), composition)
        sharp = torch.where(torch.isinf(teacher), 0.0, -math.inf)
        limit, _ = _on(objective, world, sharp, world.student.detach(), composition)
        wrong = torch.isfinite(loss) & ~torch.isclose(loss, limit, rtol=1e-3, atol=1e-3)
        if bool(wrong.any()):
            raise CheckFailed(
                f"At a teacher's logit of +inf the loss is {loss[wrong][0]:.4g}, and in the limit it is "
                f"{limit[wrong][0]:.4g}. Let NaN through: the trainer stops at it and says so."
            )


def _on(
    objective: Objective, world: World, teacher: Tensor, student: Tensor, composition: Composition
) -> tuple[Tensor, Tensor]:
    leaf = student.clone().requires_grad_()
    td, _ = batch(replace(world, teacher=teacher), composition)
    td = replace(td, student=DenseLogits(leaf))
    loss = total(evaluate(objective, td))
    (found,) = slopes(loss, leaf)
    return loss.detach(), found


@check("objective")
def short_answers(objective: Objective) -> None:
    """Answers of one token, and a batch in which every position is masked, are harmless."""
    world = make_world(answers=(Answer(1, (END,), True), Answer(2, (5,), False)))
    for composition in fitting(objective):
        for order in ((0,), (1,), (0, 1), ()):
            try:
                td, _ = batch(world, composition, Lay(Layout(order)))
                loss = total(evaluate(objective, td))
            except CheckFailed:
                raise
            except Exception as error:
                raise CheckFailed(
                    f"A batch of {len(order)} answer(s) of one token raises {type(error).__name__}: {error}. "
                    f"Most likely an index or a maximum over no rows, or a successor taken as a row where it is "
                    f"TERMINAL or UNKNOWN: use transitions.next_value."
                ) from error
            if not bool(torch.isfinite(loss).all()):
                raise CheckFailed(
                    f"The loss of a batch of {len(order)} answer(s) of one token is {loss.tolist()}. Most likely a "
                    "mean over no rows, or a successor that isn't there."
                )


@check("objective")
def truncation(objective: Objective) -> None:
    """The last row of a truncated answer doesn't pretend that the answer ended."""
    cut, another = Answer(1, (4, 0, 7, 1), False), Answer(1, (5, 6), False)
    world = make_world(answers=(cut, another))
    ended = replace(world, answers=(replace(cut, ended=True), another))
    last = len(cut.actions) - 1
    for subset, extraction in fitting(objective):
        composition = subset.model_copy(update={"include_action": True}), extraction  # else a row may not count at all
        plain = measure(objective, world, composition).loss
        depends = {}
        for row in (1, last + 1):
            other = world.hidden.detach().clone()
            other[row] += 1.0
            moved = measure(objective, replace(world, hidden=other.requires_grad_()), composition).loss
            depends[row] = not math.isclose(float(plain[0]), float(moved[0]), rel_tol=1e-9)
        end = measure(objective, ended, composition).loss
        looks_ahead = depends[1] and not depends[last + 1]  # what another answer changes is no successor's value
        if looks_ahead and math.isclose(float(plain[last]), float(end[last]), rel_tol=1e-9):
            raise CheckFailed(
                "The terms look at the successor's value, and the last row of a truncated answer has the same loss as "
                "that of an ended one. Its successor is not terminal but unknown: leave the term out where "
                "transitions.known is false."
            )


@check("objective", when=lambda objective: objective.never_negative)
def never_negative(objective: Objective) -> None:
    """No row's loss is below 0, as the objective claims."""
    for seed in range(4):
        world = make_world(seed=seed)
        sharper = world.tabular(world.teacher * 2)
        for composition in fitting(objective):
            low = min(float(measure(objective, w, composition).loss.min()) for w in (world, sharper))
            if low < -1e-9:
                raise CheckFailed(
                    f"A row's loss is {low:.4g}, and the objective claims never_negative. Most likely a sign is "
                    f"flipped, or mass outside the subset is dropped, which leaves no divergence."
                )


@check("objective", when=lambda objective: objective.stationary_at_teacher)
def stationary(objective: Objective) -> None:
    """Where the student equals the teacher the gradient vanishes, as the objective claims."""
    world = make_world()
    world = world.tabular(world.teacher)
    for composition in fitting(objective):
        subset, extraction = composition
        if subset.needs_teacher and not extraction.on_subset:  # a teacher renormalised on the subset is another policy
            continue
        size = float(measure(objective, world, composition).gradients[0].abs().max())
        if size > 1e-6:
            raise CheckFailed(
                f"The gradient is up to {size:.4g} where the student equals the teacher, and the objective claims "
                f"stationary_at_teacher. Most likely the tail outside the subset is dropped for one of the two, a sign "
                f"is flipped, or a successor is the wrong row."
            )


@check("objective", when=lambda objective: objective.gauge_free)
def gauge(objective: Objective) -> None:
    """A constant a state on the student's logits leaves the loss alone, as the objective claims."""
    world = make_world()
    shift = torch.randn(len(world.hidden), 1, generator=torch.Generator().manual_seed(3)).double() * 3
    for composition in fitting(objective):
        before, after = (measure(objective, world.tabular(world.student + c), composition) for c in (0, shift))
        if not torch.allclose(before.loss, after.loss, atol=1e-6):
            raise CheckFailed(
                f"The loss changes with a constant a state on the student's logits, which the policy does not show: "
                f"{rows_of(before.loss.tolist(), after.loss.tolist())}. The objective claims gauge_free: subtract a "
                f"level from Q and V alike, or return False."
            )


@check("objective")
def learns(objective: Objective) -> None:
    """Minimised on a token tree with the teacher's answers, it brings the student's policy nearer to the teacher's."""
    tree = make_tree()
    for subset, extraction in fitting(objective):
        before, after = descend(tree, subset, objective, extraction)
        if not after < 0.8 * before:
            raise CheckFailed(
                f"After {STEPS} steps on the teacher's answers the student's KL to the teacher on the subset is "
                f"{after:.4g} nats, and was {before:.4g}. Most likely a sign is flipped, or the successor's value is "
                f"taken from the wrong row."
            )


@check("objective")
def deterministic(objective: Objective) -> None:
    """Under one seed the same batch gives the same bits."""
    world = make_world()
    for composition in fitting(objective):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            first = measure(objective, world, composition)
            torch.manual_seed(0)
            second = measure(objective, world, composition)
        if not torch.allclose(first.loss, second.loss, rtol=0, atol=0, equal_nan=True):
            raise CheckFailed(
                "The same batch gives another loss under the same seed. Most likely randomness comes from somewhere "
                "else than torch's generator, or the objective keeps state between calls."
            )


@check("objective")
def low_precision(objective: Objective) -> None:
    """Under bfloat16 autocast the terms are those of float64 on the rounded inputs, to 0.1%."""
    for composition in fitting(objective):
        small = make_world().to(torch.bfloat16).to(torch.float32)
        exact = measure(objective, small.to(torch.float64), composition)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = measure(objective, small, composition, Lay(lazy=True))
        for name, value in exact.terms.items():
            if not torch.allclose(value, rough.terms[name].double(), rtol=1e-3, atol=1e-3, equal_nan=True):
                seen = rows_of(value.tolist(), rough.terms[name].tolist())
                raise CheckFailed(
                    f"The term '{name}' is off under bfloat16 autocast: {seen}. Most likely a matrix product (@, "
                    f"einsum) sums log-probabilities or values in bfloat16: multiply and sum(1) instead."
                )
        if not all(bool(torch.isfinite(g).all()) for g in rough.gradients):
            raise CheckFailed("The gradient is not finite under bfloat16 autocast.")


@check("objective", when=first_example)
def compiles(objective: Objective) -> None:
    """Traced by ``torch.compile``, loss and gradient are the same."""
    world = make_world()
    composition = fitting(objective)[0]
    td, _ = batch(world, composition)
    compiled_equals(
        lambda logits: total(objective.terms(replace(td, student=DenseLogits(logits)))), world.student.detach()
    )
