"""The toy worlds that the checks run parts in: a few answers over nine tokens, and a small token tree."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.factored import Head
from distillzoo.core.logits import DenseLogits, FactoredLogits, LogitView
from distillzoo.core.objective import TDBatch
from distillzoo.core.subset import ActionSubset, Subset, SubsetQ, WholeVocabulary
from distillzoo.core.transitions import IGNORED, Transitions, transitions

V: Final = 9
"""Tokens of the toy vocabulary."""

D: Final = 4
"""Hidden size of the toy student."""

END: Final = 2
"""The end-of-sequence action, which is the padding token too."""


class Whole(ActionSubset):
    """All tokens."""

    needs_teacher: ClassVar[bool] = False

    def select(self, teacher: LogitView) -> Subset:
        return WholeVocabulary(teacher, teacher)


class Best(ActionSubset):
    """The teacher's ``k`` most probable tokens."""

    k: int = 3

    def select(self, teacher: LogitView) -> Subset:
        with torch.no_grad():
            values, actions = teacher.top(self.k if teacher.rows else 0, torch.arange(teacher.rows))
            logprobs = values - teacher.logsumexp()[:, None]
            mask = logprobs > float("-inf")
            mask[:, :1] = True
            return Subset(actions.where(mask, 0), mask, logprobs.where(mask, 0.0), logprobs.exp().sum(1))


class SoftOnSubset(PolicyExtraction):
    """The softmax over the subset."""

    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        return q.logsumexp()

    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        return q.view.gather(actions) - q.logsumexp()[:, None]

    def decoding(self) -> Decoding:
        return Decoding()


class SoftOnVocabulary(SoftOnSubset):
    """The softmax over all tokens."""

    on_subset: ClassVar[bool] = False

    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        return q.view.logsumexp()

    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        return q.view.gather(actions) - q.view.logsumexp()[:, None]


Composition = tuple[ActionSubset, PolicyExtraction]

COMPOSITIONS: Final[tuple[Composition, ...]] = (
    (Best(), SoftOnSubset()),
    (Best(), SoftOnVocabulary()),
    (Whole(), SoftOnVocabulary()),
)
"""What an objective is tried with."""


@dataclass(frozen=True)
class Answer:
    """A response in the toy world; its prompt is ``prompt`` tokens long."""

    prompt: int
    actions: tuple[int, ...]
    ended: bool
    expert: bool = True
    """Whether its actions are the expert's, and not the student's."""


ANSWERS: Final = (
    Answer(2, (4, 0, 7, END), True),
    Answer(1, (END,), True),
    Answer(3, (1, 8, 3, 3, 5), False),
    Answer(1, (6, END), True, expert=False),
)
"""Of different lengths, one of them truncated, so that a mean of means is not the mean; one is the student's."""


@dataclass(frozen=True)
class World:
    """Teacher and student on the states of a few answers.

    Attributes:
        answers: the responses; their states are rows 0 to N-1 of the tables, answer by answer.
        teacher: ``[N, V]`` logits.
        hidden: ``[N, D]`` and ``weight`` ``[V, D]``: the student's factors.
    """

    answers: tuple[Answer, ...]
    teacher: Float[Tensor, "N V"]
    hidden: Float[Tensor, "N D"]
    weight: Float[Tensor, "V D"]

    @property
    def student(self) -> Float[Tensor, "N V"]:
        return self.hidden @ self.weight.T

    def to(self, dtype: torch.dtype) -> "World":
        """The same numbers in another data type, as leaves."""
        hidden, weight = (t.detach().to(dtype).requires_grad_() for t in (self.hidden, self.weight))
        return replace(self, teacher=self.teacher.detach().to(dtype), hidden=hidden, weight=weight)

    def tabular(self, logits: Tensor) -> "World":
        """The same states with these student logits, as a leaf."""
        eye = torch.eye(logits.shape[1], dtype=logits.dtype)
        return replace(self, hidden=logits.detach().clone().requires_grad_(), weight=eye.requires_grad_())

    def starts(self) -> list[int]:
        """First row of each answer."""
        ends = torch.tensor([0, *(len(a.actions) for a in self.answers)]).cumsum(0)
        return [int(e) for e in ends[:-1]]


def make_world(answers: tuple[Answer, ...] = ANSWERS, seed: int = 0, tokens: int = V) -> World:
    """Random logits of some sharpness in float64, over so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(len(a.actions) for a in answers)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return World(answers, draw(n, tokens) * 2, draw(n, D).requires_grad_(), (draw(tokens, D) * 1.5).requires_grad_())


@dataclass(frozen=True)
class Layout:
    """How the answers are laid out in a batch."""

    order: tuple[int, ...]
    side: Literal["left", "right"] = "right"
    extra: int = 0
    """Columns beyond the longest sequence."""


def laid_out(world: World, layout: Layout) -> tuple[Transitions, Int[Tensor, "N"]]:
    """The transitions of a padded batch, and the row of ``world`` that each of its rows is."""
    answers = [world.answers[i] for i in layout.order]
    width = max((a.prompt + len(a.actions) for a in answers), default=1) + layout.extra
    ids = torch.full((len(answers), width), END)
    labels = torch.full_like(ids, IGNORED)
    firsts = []
    for row, a in enumerate(answers):
        begin = width - a.prompt - len(a.actions) if layout.side == "left" else 0
        ids[row, begin : begin + a.prompt] = 0
        place = slice(begin + a.prompt, begin + a.prompt + len(a.actions))
        ids[row, place] = labels[row, place] = torch.tensor(a.actions, dtype=torch.long)
        firsts.append(begin + a.prompt - 1)
    flags = torch.tensor([(a.ended, a.expert) for a in answers], dtype=torch.bool).reshape(-1, 2)
    table = transitions(labels, ids, flags[:, 0], flags[:, 1])
    starts = torch.tensor([world.starts()[i] for i in layout.order], dtype=torch.long)
    time = table.position - torch.tensor(firsts, dtype=torch.long)[table.sequence]
    return table, starts[table.sequence] + time


@dataclass(frozen=True)
class Lay:
    """How a batch of the world is built; the defaults are the plain one.

    Attributes:
        layout: order and padding; the answers as they come, padded on the right, if not given.
        lazy: the student's logits as hidden states and head.
        spare: vocabulary rows without a token, cut off by the view's size.
        holes: columns without a token below the view's size.
        wide: masked columns added to the subset's table.
        blind: without the teacher's view.
    """

    layout: Layout | None = None
    lazy: bool = False
    spare: int = 0
    holes: int = 0
    wide: int = 0
    blind: bool = False


PLAIN: Final = Lay()


def batch(world: World, composition: Composition, lay: Lay = PLAIN) -> tuple[TDBatch, Int[Tensor, "N"]]:
    """A batch of the world, and the world's row of each of its rows. The target network is the student as it is."""
    subset, extraction = composition
    table, rows = laid_out(world, lay.layout or Layout(tuple(range(len(world.answers)))))
    teacher = teacher_view(world.teacher[rows], lay.spare, lay.holes)
    student = student_view(world.hidden[rows], world.weight, lay)
    chosen = subset.with_action(subset.select(teacher), teacher, table.action)
    if lay.wide and not chosen.full:
        chosen = widened(chosen, lay.wide)
    if lay.blind and chosen.full:
        chosen = WholeVocabulary(student)
    target = student_view(world.hidden.detach()[rows], world.weight.detach(), lay)
    return TDBatch(table, student, chosen, extraction, None if lay.blind else teacher, target), rows


def teacher_view(logits: Tensor, spare: int = 0, holes: int = 0) -> DenseLogits:
    """A view on teacher logits, with columns that hold no token where asked."""
    return DenseLogits(*_with_columns(logits, spare, holes))


def student_view(hidden: Tensor, weight: Tensor, lay: Lay = PLAIN) -> LogitView:
    """Hidden states and head as a view, dense or factored."""
    count = weight.shape[0]
    if not lay.lazy:
        return DenseLogits(*_with_columns(hidden @ weight.T, lay.spare, lay.holes))
    rows = torch.cat([weight, weight.new_full((lay.spare + lay.holes, weight.shape[1]), 5.0)])
    holes = torch.arange(count, count + lay.holes) if lay.holes else None
    return FactoredLogits(hidden, Head(rows, None, count + lay.holes, holes))


def _with_columns(logits: Tensor, spare: int, holes: int) -> tuple[Tensor, int, Tensor | None]:
    count = logits.shape[1]
    wide = torch.cat([logits, logits.new_full((len(logits), spare + holes), 5.0)], 1)
    return wide, count + holes, torch.arange(count, count + holes) if holes else None


def widened(subset: Subset, columns: int) -> Subset:
    """The same sets in wider tables."""
    n = len(subset.mass)
    return Subset(
        torch.cat([subset.actions, subset.actions.new_zeros(n, columns)], 1),
        torch.cat([subset.mask, subset.mask.new_zeros(n, columns)], 1),
        torch.cat([subset.logprobs, subset.logprobs.new_zeros(n, columns)], 1),
        subset.mass,
        subset.added,
        None if subset.weights is None else torch.cat([subset.weights, subset.weights.new_zeros(n, columns)], 1),
    )


def members(subset: Subset, size: int) -> Bool[Tensor, "N V"]:
    """Which tokens are in each set, out of ``size``."""
    count = torch.zeros(len(subset.mass), size, dtype=torch.long)
    return count.scatter_add(1, subset.actions, subset.mask.long()) > 0


@dataclass(frozen=True)
class Tree:
    """A token tree of depth 3 with a teacher, and answers sampled from it: an objective can be minimised on it.

    Attributes:
        teacher: ``[S, W]`` logits of every prefix.
        world: sampled answers; their student logits are not used.
        state: ``[N]`` prefix of each row of the world.
        prefixes: the number of each prefix, a row of ``teacher``.
    """

    teacher: Float[Tensor, "S W"]
    world: World
    state: Int[Tensor, "N"]
    prefixes: dict[tuple[int, ...], int]


TREE_WIDTH: Final = 6
TREE_DEPTH: Final = 3


def make_tree(samples: int = 96, seed: int = 1) -> Tree:
    """Token ``END`` ends an answer, the five others go on; at depth 3 every answer ends."""
    generator = torch.Generator().manual_seed(seed)
    prefixes: dict[tuple[int, ...], int] = {(): 0}
    for _ in range(TREE_DEPTH - 1):
        for shorter in list(prefixes):
            for token in (t for t in range(TREE_WIDTH) if t != END):
                prefixes.setdefault((*shorter, token), len(prefixes))
    teacher = torch.randn(len(prefixes), TREE_WIDTH, generator=generator, dtype=torch.float64) * 1.5
    answers, states = _walks(prefixes, teacher, samples, generator)
    return _on_tree(teacher, prefixes, tuple(answers), states)


def with_student(tree: Tree, student: Float[Tensor, "S W"], seed: int = 2) -> Tree:
    """The tree with as many answers sampled from this table of student logits as it has of the expert's."""
    generator = torch.Generator().manual_seed(seed)
    expert = tuple(answer for answer in tree.world.answers if answer.expert)
    states = tree.state[: sum(len(answer.actions) for answer in expert)].tolist()
    own, more = _walks(tree.prefixes, student.detach(), len(expert), generator)
    answers = (*expert, *(replace(answer, expert=False) for answer in own))
    return _on_tree(tree.teacher, tree.prefixes, answers, states + more)


def _walks(
    prefixes: dict[tuple[int, ...], int], logits: Tensor, samples: int, generator: torch.Generator
) -> tuple[list[Answer], list[int]]:
    """Answers sampled from a table of logits, and the prefix of each of their rows."""
    probs, answers, states = logits.softmax(1), [], []
    for _ in range(samples):
        prefix: tuple[int, ...] = ()
        while len(prefix) < TREE_DEPTH and END not in prefix:
            states.append(prefixes[prefix])
            prefix = (*prefix, int(torch.multinomial(probs[prefixes[prefix]], 1, generator=generator)))
        answers.append(Answer(1, prefix, True))
    return answers, states


def _on_tree(
    teacher: Tensor, prefixes: dict[tuple[int, ...], int], answers: tuple[Answer, ...], states: list[int]
) -> Tree:
    state, blank = torch.tensor(states), torch.zeros(1)
    return Tree(teacher, World(answers, teacher[state], blank, blank), state, prefixes)


def rows_of(values: Sequence[float], other: Sequence[float]) -> str:
    """The first place where two lists differ most, in words."""
    worst = max(range(len(values)), key=lambda i: abs(values[i] - other[i]) if values[i] == values[i] else 1e300)
    return f"row {worst} is {other[worst]:.6g} and was {values[worst]:.6g}"
