"""Checks of action subsets."""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from distillzoo.core.checks.check import CheckFailed, check, first_example, label
from distillzoo.core.checks.measure import compiled_equals, more_than_the_view
from distillzoo.core.checks.world import Lay, V, make_world, rows_of, student_view, teacher_view
from distillzoo.core.logits import DenseLogits, LogitView
from distillzoo.core.subset import ActionSubset, Subset

WIDE: Final = 300
"""Tokens of a vocabulary that is larger than a first look of a subset at the likeliest ones."""


def teachers() -> list[Tensor]:
    """Teacher logits in float64, ``[N, V]``: ordinary, flat, sharp, tied, with impossible tokens, equal, and wide."""
    world = make_world().teacher
    impossible = world.clone()
    impossible[:, ::3] = -math.inf
    wide = torch.randn(5, WIDE, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2
    return [world, world * 0.05, world * 8, world.round(), impossible, torch.zeros_like(world), wide]


def chosen(part: ActionSubset, view: LogitView, student: LogitView | None = None) -> Subset:
    """The part's subset of these states, by ``choose`` where a student is given.

    Raises:
        CheckFailed: the tables have wrong shapes or types, or carry a gradient.
    """
    method = "select" if student is None else "choose"
    subset = part.select(view) if student is None else part.choose(view, student)
    if not isinstance(subset, Subset):
        raise CheckFailed(f"{method}() returns {type(subset).__name__} and should return a Subset.")
    if subset.full:
        return subset
    n = view.rows
    shape = subset.actions.shape
    if len(shape) != 2 or shape[0] != n:
        raise CheckFailed(f"actions has the shape {list(shape)} and should be [N, K] with N = {n}, a row a state.")
    tables = [("mask", subset.mask, 2), ("logprobs", subset.logprobs, 2), ("mass", subset.mass, 1)]
    if subset.weights is not None:
        tables.append(("weights", subset.weights, 2))
    for name, value, dim in tables:
        if value.shape != shape[:dim]:
            raise CheckFailed(f"{name} has the shape {list(value.shape)} and should be {list(shape[:dim])}.")
        if value.requires_grad:
            model = "teacher" if student is None else "student"
            raise CheckFailed(f"{name} carries a gradient to the {model}: {method} under torch.no_grad().")
    if subset.mask.dtype != torch.bool or subset.actions.dtype != torch.long:
        raise CheckFailed(f"mask is {subset.mask.dtype} and actions {subset.actions.dtype}: use torch.bool and long.")
    return subset


def sets(subset: Subset) -> list[list[int]]:
    """The tokens of each state, in the subset's order."""
    return [row[mask].tolist() for row, mask in zip(subset.actions, subset.mask, strict=True)]


def each(part: ActionSubset, test: Callable[[Tensor, Subset], None]) -> None:
    """Run a test on the part's subset of every kind of teacher, and of a student that disagrees where it counts."""
    for logits in teachers():
        test(logits, chosen(part, DenseLogits(logits)))
        if part.needs_student:
            test(logits, chosen(part, DenseLogits(logits), DenseLogits(logits.roll(2, 1).flip(0))))


def difference(one: Subset, other: Subset, change: str, mistake: str) -> None:
    """Refuse two subsets that are not the same sets with the same probabilities."""
    for row, (before, after) in enumerate(zip(sets(one), sets(other), strict=True)):
        if before != after:
            raise CheckFailed(
                f"The set of row {row} changes {change}: {before} becomes {after}. Most likely {mistake}."
            )
    if not torch.allclose(one.mass.double(), other.mass.double(), atol=1e-6):
        seen = rows_of(one.mass.tolist(), other.mass.tolist())
        raise CheckFailed(f"The mass changes {change}: {seen}. Most likely {mistake}.")


@check("subset")
def tables(part: ActionSubset) -> None:
    """``select`` returns tables [N, K] of the right types, without a gradient."""
    leaf = make_world().teacher.clone().requires_grad_()
    chosen(part, DenseLogits(leaf))


@check("subset")
def never_empty(part: ActionSubset) -> None:
    """Every state has an action."""

    def test(logits: Tensor, subset: Subset) -> None:
        if bool((subset.size == 0).any()):
            raise CheckFailed(
                "A set is empty, so its soft value would be -inf. Most likely a threshold that not even the likeliest "
                "token meets: always keep the first, mask[:, 0] = True."
            )

    each(part, test)


@check("subset")
def no_repeats(part: ActionSubset) -> None:
    """No token stands in a set twice."""

    def test(logits: Tensor, subset: Subset) -> None:
        for row, tokens in enumerate(sets(subset)):
            if len(set(tokens)) < len(tokens):
                raise CheckFailed(
                    f"Row {row} holds a token twice: {tokens}. Its probability would count twice. Most likely two sets "
                    f"were joined without taking out what they share."
                )

    each(part, test)


@check("subset")
def logprobs(part: ActionSubset) -> None:
    """``logprobs`` holds the teacher's log-probabilities over the whole vocabulary, 0 where masked."""

    def test(logits: Tensor, subset: Subset) -> None:
        expected = logits.log_softmax(1).gather(1, subset.actions)
        found = subset.logprobs.double()
        off = subset.mask & ~torch.isclose(found, expected, atol=1e-5) & ~((found == expected) & torch.isinf(found))
        if bool(off.any()):
            raise CheckFailed(
                f"The log-probability of an action is {float(found[off][0]):.4g} and the teacher's is "
                f"{float(expected[off][0]):.4g}. Most likely it is the raw logit, or is normalised over the set: "
                f"subtract teacher.logsumexp()."
            )
        if not subset.full and bool((found[~subset.mask] != 0).any()):
            raise CheckFailed("logprobs should be 0 where the table is masked: use logprobs.where(mask, 0.0).")

    each(part, test)


@check("subset")
def mass(part: ActionSubset) -> None:
    """``mass`` is the teacher's probability of the set."""

    def test(logits: Tensor, subset: Subset) -> None:
        inside = torch.where(subset.mask, logits.softmax(1).gather(1, subset.actions), 0.0).sum(1)
        if not torch.allclose(subset.mass.double(), inside, atol=1e-5):
            seen = rows_of(inside.tolist(), subset.mass.tolist()).replace(" was ", " should be ")
            raise CheckFailed(
                f"The mass is not the teacher's probability of the set: {seen}. Most likely masked entries are summed "
                f"too, or the set was cut after the mass was taken."
            )

    each(part, test)


@check("subset", when=lambda part: part.needs_teacher)
def sorted_(part: ActionSubset) -> None:
    """Actions stand in falling order of teacher probability, the lower id first among equals, padding last."""

    def test(logits: Tensor, subset: Subset) -> None:
        for row, tokens in enumerate(sets(subset)):
            right = sorted(tokens, key=lambda a: (-float(logits[row, a]), a))
            if tokens != right:
                raise CheckFailed(
                    f"Row {row} holds {tokens} and should hold {right}: falling teacher probability, the lower id "
                    "first among equals. Most likely torch.topk or an unstable sort broke a tie: use teacher.top()."
                )
        if bool((subset.mask[:, 1:] & ~subset.mask[:, :-1]).any()):
            raise CheckFailed("A masked entry stands before an action: padding comes last in a row.")

    each(part, test)


@check("subset", when=lambda part: bool(part.growing()))
def grows(part: ActionSubset) -> None:
    """Along ``growing()`` every set lies in the next one's."""
    family = type(part).growing()
    for logits in teachers():
        found = [sets(chosen(p, DenseLogits(logits))) for p in family]
        for small, large, p, q in zip(found, found[1:], family, family[1:], strict=False):
            for row, (inner, outer) in enumerate(zip(small, large, strict=True)):
                if not set(inner) <= set(outer):
                    raise CheckFailed(
                        f"The set of {label(p)} is no part of that of {label(q)}: {inner} and {outer} in row {row}. "
                        f"Most likely a comparison points the wrong way."
                    )


@check("subset", when=lambda part: bool(part.growing()))
def limit(part: ActionSubset) -> None:
    """The last of ``growing()`` holds every token that the teacher gives a probability."""
    last = type(part).growing()[-1]
    for logits in teachers():
        for row, tokens in enumerate(sets(chosen(last, DenseLogits(logits)))):
            support = torch.isfinite(logits[row]).nonzero()[:, 0].tolist()
            if not set(support) <= set(tokens):
                raise CheckFailed(
                    f"At its limit {label(last)} holds {sorted(tokens)} and should hold {support}. Most likely "
                    f"the last "
                    f"token is lost by a strict comparison, or by a sum of probabilities that rounds to 1 before it."
                )


@check("subset", when=lambda part: not part.draws)
def row_by_row(part: ActionSubset) -> None:
    """The set of a state doesn't depend on the other states of the batch, nor on their order."""
    for logits in teachers():
        whole = sets(chosen(part, DenseLogits(logits)))
        order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(2))
        mixed = sets(chosen(part, DenseLogits(logits[order])))
        for place, row in enumerate(order.tolist()):
            alone = sets(chosen(part, DenseLogits(logits[row : row + 1])))[0]
            if not whole[row] == mixed[place] == alone:
                raise CheckFailed(
                    f"The set of a state is {whole[row]} in one batch, {mixed[place]} in another order of the rows and "
                    f"{alone} alone. Most likely a threshold, a width or a sum is taken over the rows of the batch."
                )


@check("subset")
def vocabulary_rows(part: ActionSubset) -> None:
    """Vocabulary rows without a token are never picked and change nothing."""
    for logits in teachers():
        plain = chosen(part, DenseLogits(logits))
        for spare, holes in ((4, 0), (0, 2)):
            other = chosen(part, teacher_view(logits, spare, holes))
            if other.full:
                continue
            if part.draws:
                last = int(other.actions.where(other.mask, 0).max())
                if last >= logits.shape[1]:
                    raise CheckFailed(f"The id {last} is drawn and has no token. Most likely the draws are uniform.")
                continue
            difference(
                plain,
                other,
                "when ids without a token are added to the vocabulary",
                "a column count enters the choice, or columns at -inf are taken as tokens",
            )


@check("subset")
def lazy_teacher(part: ActionSubset) -> None:
    """Dense and lazy teacher logits give the same sets."""
    world = make_world()
    hidden, weight = world.hidden.detach(), world.weight.detach()
    dense = chosen(part, student_view(hidden, weight))
    with more_than_the_view():
        lazy = chosen(part, student_view(hidden, weight, Lay(lazy=True)))
    if part.draws:
        return
    difference(
        dense,
        lazy,
        "when the teacher's logits are hidden states times a head",
        "select() reads more than the view's methods give (isinstance, .logits)",
    )


@check("subset", when=lambda part: not part.draws)
def level(part: ActionSubset) -> None:
    """A constant a state on the teacher's logits changes nothing."""
    for logits in teachers():
        shifted = logits + torch.linspace(-40, 40, len(logits), dtype=logits.dtype)[:, None]
        difference(
            chosen(part, DenseLogits(logits)),
            chosen(part, DenseLogits(shifted)),
            "with a constant a state on the teacher's logits",
            "raw logits are compared with a threshold: use log-probabilities",
        )


@check("subset")
def one_hot_teacher(part: ActionSubset) -> None:
    """A teacher that gives all mass to one token gets a set that holds it, with finite tables."""
    logits = torch.full((3, V), -math.inf)
    logits[:, 4] = torch.tensor([0.0, 80.0, -80.0])
    subset = chosen(part, DenseLogits(logits))
    for tokens in sets(subset):
        if 4 not in tokens:
            raise CheckFailed(f"The teacher's only token is 4 and the set is {tokens}. Most likely a NaN: -inf - -inf.")
    if not bool(torch.isfinite(subset.mass).all()):
        raise CheckFailed(f"The mass is {subset.mass.tolist()} at a one-hot teacher and should be 1.")


@check("subset")
def infinite_logits(part: ActionSubset) -> None:
    """A teacher's logit of +inf gives the set of the one-hot limit or NaN, never a plausible wrong set."""
    logits = make_world().teacher.clone()
    logits[:, 3] = math.inf
    subset = chosen(part, DenseLogits(logits))
    if subset.full:
        return
    known = torch.isfinite(subset.mass)
    if any(3 not in tokens for tokens, ok in zip(sets(subset), known.tolist(), strict=True) if ok):
        raise CheckFailed(
            "At a teacher's logit of +inf the set misses that token, and its mass is finite. Let NaN through to mass: "
            "the trainer stops at it and says so."
        )


@check("subset")
def no_rows(part: ActionSubset) -> None:
    """A batch without states is harmless."""
    try:
        subset = chosen(part, DenseLogits(torch.zeros(0, V)))
        size = len(subset.size)
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(
            f"A batch without states raises {type(error).__name__}: {error}. Most likely a maximum over no rows."
        ) from error
    if size != 0:
        raise CheckFailed(f"A batch without states has {size} sets.")


@check("subset")
def taken_action(part: ActionSubset) -> None:
    """``with_action`` adds the taken action where it is missing, if ``include_action`` asks for it."""
    view = DenseLogits(make_world().teacher)
    least = view.logits.argmin(1)
    for asked in (False, True):
        one = part.model_copy(update={"include_action": asked})
        before = chosen(one, view)
        after = one.with_action(before, view, least)
        expected = asked or before.full
        held = after.contains(least)
        if expected and not bool(held.all()):
            raise CheckFailed(
                "include_action is set and the taken action is missing: does the part replace with_action?"
            )
        if not asked and sets(before) != sets(after):
            raise CheckFailed("include_action is not set and with_action changes the sets.")


@check("subset")
def deterministic(part: ActionSubset) -> None:
    """Under one seed the same states get the same sets."""
    view = DenseLogits(make_world().teacher)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = chosen(part, view)
        torch.manual_seed(0)
        second = chosen(part, view)
    difference(first, second, "from one call to the next", "randomness comes from elsewhere than torch's generator")
    if not part.draws:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            third = chosen(part, view)
        mistake = "the part draws tokens without saying so: return True from draws"
        difference(first, third, "under another seed", mistake)


@check("subset")
def student(part: ActionSubset) -> None:
    """A part that ``needs_student`` looks at the student, and not at its gradient; another one ignores it."""
    teacher = teachers()[-1]
    view, moved = DenseLogits(teacher), []
    for columns in (0, 2):
        leaf = teacher.roll(columns, 1).requires_grad_()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            moved.append(sets(chosen(part, view, DenseLogits(leaf))))
    if moved[0] == moved[1] and part.needs_student:
        raise CheckFailed(
            "choose() gives a student that disagrees with the teacher the same sets, and the part says needs_student. "
            "Most likely it selects from the teacher's logits: use those of the student, or return False."
        )
    if moved[0] != moved[1] and not part.needs_student:
        raise CheckFailed(
            "choose() looks at the student, and the part doesn't say so: training asks select() then. Return True from "
            "needs_student."
        )


REPEATS: Final = 1000
"""Draws of each state's set over which weights are averaged."""

SLACK: Final = 0.01
"""Deviation of such an average, beside five standard errors, that tokens may add which were too rare to be drawn."""


@check("subset")
def weights(part: ActionSubset) -> None:
    """Weights are positive, 1 for a token that is always listed, and make sums over the set unbiased."""
    for logits in teachers()[:3]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            subset = chosen(part, DenseLogits(logits.repeat(REPEATS, 1)))
        if part.weighted != (subset.weights is not None):
            has = "has none" if part.weighted else "has them"
            raise CheckFailed(
                f"weighted is {part.weighted} and the subset {has}: by what the part declares a run refuses objectives "
                f"that don't count weights."
            )
        if subset.weights is None:
            continue
        if not part.draws:
            raise CheckFailed(
                "The subset has weights and the part doesn't draw. Most likely it forgets to say so: return True from "
                "draws; a set that is always the same has none."
            )
        right = torch.where(subset.mask, (subset.weights > 0) & torch.isfinite(subset.weights), subset.weights == 0)
        if not bool(right.all()):
            raise CheckFailed(
                f"Weights should be positive and finite, and 0 where the table is masked; one is "
                f"{float(subset.weights[~right][0]):.4g}. Most likely a probability that rounds to 0 is divided by."
            )
        _unbiased(logits, _weight_of_each(subset, logits.shape[1]))


def _weight_of_each(subset: Subset, size: int) -> Tensor:
    """``[R, N, V]`` weights, 0 where a token is not listed, of R draws."""
    assert subset.weights is not None
    table = torch.zeros(len(subset.mass), size, dtype=torch.float64)
    table = table.scatter_add(1, subset.actions, subset.weights.double())
    return table.reshape(REPEATS, -1, size)


def _unbiased(logits: Tensor, found: Tensor) -> None:
    always = (found > 0).all(0) & (found == found[0]).all(0)
    off = always & ((found[0] - 1).abs() > SLACK)
    if bool(off.any()):
        raise CheckFailed(
            f"A token that is listed in every draw has the weight {float(found[0][off][0]):.4g} and should have 1."
        )
    probs = logits.softmax(1)
    generator = torch.Generator().manual_seed(5)
    for shares in (torch.ones_like(probs), *(torch.rand(probs.shape, generator=generator).double() for _ in range(2))):
        sums, right = (found * probs * shares).sum(2), (probs * shares).sum(1)
        error = 5 * sums.std(0) / math.sqrt(REPEATS) + SLACK
        wrong = (sums.mean(0) - right).abs() > error
        if bool(wrong.any()):
            raise CheckFailed(
                f"Over {REPEATS} draws a weighted sum over the set is {float(sums.mean(0)[wrong][0]):.4g} on average, "
                f"and over the vocabulary it is {float(right[wrong][0]):.4g}. Most likely a weight is not count / "
                f"(draws * probability), or that probability is not the one which the tokens were drawn with."
            )


@check("subset", when=lambda part: not part.draws)
def low_precision(part: ActionSubset) -> None:
    """Logits in bfloat16, under autocast, give the sets of the same numbers in float64."""
    logits = make_world().teacher.bfloat16()
    exact = chosen(part, DenseLogits(logits.double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = chosen(part, DenseLogits(logits))
    difference(
        exact,
        rough,
        "in bfloat16",
        "probabilities are summed in bfloat16: the view's logits are float32, keep them so",
    )


@check("subset", when=lambda part: first_example(part) and not part.draws)
def compiles(part: ActionSubset) -> None:
    """Traced by ``torch.compile``, the sets are the same."""

    def run(logits: Tensor) -> Tensor:
        subset = chosen(part, DenseLogits(logits))
        return (subset.mass[:, None] + subset.actions * subset.mask).sum(1)

    compiled_equals(run, make_world().teacher, differentiable=False)
