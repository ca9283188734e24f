"""Checks of trajectory sources."""

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from distillzoo.core.checks.check import CheckFailed, check
from distillzoo.core.extraction import Decoding
from distillzoo.core.rounds import Once
from distillzoo.core.trajectories import Completion, PromptRow, Sources, Trajectory, TrajectorySource

END: Final = 2

PROMPTS: Final = tuple([3 + i, 4, 5 + i] for i in range(6))

DUE: Final = ((0, 1, 2, 3, 4, 5), (3, 0, 3, 5), (4, 2, 1, 0, 5, 3), (1, 1, 1), (5, 4, 0, 2, 3, 1), (2, 5, 3, 4))
"""The rows of the rounds in which a source with a ``period`` is asked; in a small data set a row comes twice."""

APART: Final = 250
"""Periods between two rounds: what a source does only now and then should show."""


def _likelihood(tokens: Sequence[int]) -> list[float]:
    return [-token / 100 for token in tokens]


@dataclass
class Script:
    """A sampler whose answers are a function of prompt, decoding, seed and how often the prompt was asked."""

    name: str
    has_logprobs: bool
    calls: list[Decoding] = field(default_factory=list)
    given: set[str] = field(default_factory=set)
    """Prompt and tokens of all whole responses so far."""

    def __call__(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
        answers = self.draw(prompts, decoding, seed)
        self.given.update(f"{prompt} {answer.tokens}" for prompt, answer in zip(prompts, answers, strict=True))
        return answers

    def draw(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
        """The answers, which aren't entered as given."""
        self.calls.append(decoding)
        asked: Counter[str] = Counter()
        answers = []
        for prompt in prompts:
            asked[str(prompt)] += 1
            draw = random.Random(f"{self.name} {prompt} {asked[str(prompt)]} {seed} {decoding}")
            tokens = [draw.randrange(10, 100) for _ in range(draw.randrange(4))]
            ended = not tokens or draw.random() < 0.7
            answers.append(self.completion([*tokens, END] if ended else tokens))
        return answers

    def completion(self, tokens: list[int]) -> Completion:
        """The tokens as this sampler gives them."""
        return Completion(tokens, tokens[-1:] == [END], _likelihood(tokens) if self.has_logprobs else None)


class World:
    """Six toy prompts with one to two references each, and samplers that follow a script."""

    def __init__(self, order: Sequence[int]) -> None:
        self.teacher, self.student = Script("teacher", False), Script("student", True)
        self.looks = 0
        """How often the held-out loss was read."""
        self.rows = []
        for i in order:
            references = [Completion([50 + i, 51, END], True), Completion([60 + i], False)][: 1 + i % 2]
            self.rows.append(PromptRow(list(PROMPTS[i]), references))

    def sources(self, seed: int) -> Sources:
        return Sources(
            self.rows, self.teacher, self.student, seed, self._mixed, self._beginnings, self._endings, self._held_out
        )

    def _mixed(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, share: float) -> list[Completion]:
        return self.student(prompts, decoding, seed)

    def _beginnings(
        self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, lengths: Sequence[int]
    ) -> list[Completion]:
        answers = self.student.draw(prompts, decoding, seed)
        return [self.student.completion(a.tokens[:n]) for a, n in zip(answers, lengths, strict=True)]

    def _endings(
        self, prompts: Sequence[list[int]], beginnings: Sequence[list[int]], decoding: Decoding, seed: int
    ) -> list[Completion]:
        begun = [[*prompt, *tokens] for prompt, tokens in zip(prompts, beginnings, strict=True)]
        answers = self.teacher.draw(begun, decoding, seed)
        for prompt, tokens, answer in zip(prompts, beginnings, answers, strict=True):
            self.teacher.given.add(f"{prompt} {[*tokens, *answer.tokens]}")
        return [replace(answer, logprobs=_likelihood(answer.tokens)) for answer in answers]

    def _held_out(self) -> float:
        self.looks += 1
        return 0.5 * self.looks


@dataclass(frozen=True)
class Collected:
    """What a source gave, call by call, and what it was given."""

    calls: list[list[Trajectory]]
    due: list[list[int]]
    """Numbers of the prompts that were due in each call."""
    given: list[PromptRow]
    """The rows as they were before."""
    world: World
    memory: dict[str, Any]
    """As the last call left it."""

    @property
    def trajectories(self) -> list[Trajectory]:
        return [t for call in self.calls for t in call]


def collect(
    part: TrajectorySource,
    seed: int = 0,
    order: Sequence[int] = range(len(PROMPTS)),
    between: Callable[[TrajectorySource, Sources], tuple[TrajectorySource, Sources]] | None = None,
) -> Collected:
    """The part's trajectories on six toy prompts; with a ``period`` those of several rounds.

    ``between`` is applied to part and sources before each round but the first.
    """
    world = World(order)
    given = copy.deepcopy(world.rows)
    sources = world.sources(seed)
    if part.period is None:
        return Collected([_answer(part, sources)], [list(order)], given, world, sources.memory)
    where = {number: place for place, number in enumerate(order)}
    apart = APART * part.period
    sources = replace(sources, once=Once(sources), steps=apart * len(DUE))
    calls: list[list[Trajectory]] = []
    for number, numbers in enumerate(DUE):
        if number and between is not None:
            part, sources = between(part, sources)
        now = replace(sources, due=[where[i] for i in numbers], step=number * apart, seed=7919 * number + seed)
        calls.append(_answer(part, now))
    return Collected(calls, [list(numbers) for numbers in DUE], given, world, sources.memory)


def _answer(part: TrajectorySource, sources: Sources) -> list[Trajectory]:
    found = part.collect(sources)
    if not isinstance(found, list) or not all(isinstance(t, Trajectory) for t in found):
        raise CheckFailed(f"collect() returns {type(found).__name__} and should return a list of Trajectory.")
    return found


def _in_rounds(part: TrajectorySource) -> bool:
    return part.period is not None


def _counted(trajectories: Sequence[Trajectory]) -> Counter[str]:
    return Counter(f"{t.prompt} {t.response}" for t in trajectories)


@check("trajectories")
def something(part: TrajectorySource) -> None:
    """There is at least one trajectory, and each says where it comes from."""
    found = collect(part).trajectories
    if not found:
        raise CheckFailed("collect() gives nothing for six prompts with references.")
    if any(not t.source for t in found):
        raise CheckFailed("A trajectory has no source: name where its response comes from, as in 'teacher'.")


@check("trajectories")
def prompts(part: TrajectorySource) -> None:
    """Every trajectory belongs to one of the prompts, unchanged, and every prompt has one."""
    found = collect(part).trajectories
    given = {str(p) for p in PROMPTS}
    strange = [t.prompt for t in found if str(t.prompt) not in given]
    if strange:
        raise CheckFailed(
            f"A trajectory's prompt is none of those given: {strange[0]}. Most likely it was cut or joined."
        )
    missing = given - {str(t.prompt) for t in found}
    if missing:
        raise CheckFailed(f"A prompt has no trajectory: {min(missing)}. Most likely zip() stopped at the shorter list.")


@check("trajectories")
def answers_belong(part: TrajectorySource) -> None:
    """A reference stands with its own prompt, and so does a sample."""
    found = collect(part)
    references = {str(r.tokens): str(row.prompt) for row in found.given for r in row.references}
    for t in found.trajectories:
        home = references.get(str(t.response.tokens))
        if home is not None and home != str(t.prompt):
            raise CheckFailed(
                f"The reference {t.response.tokens} of the prompt {home} stands with {t.prompt}. Most likely prompts "
                f"and answers are repeated in different orders."
            )
        if (
            home is None
            and f"{t.prompt} {t.response.tokens}" not in found.world.teacher.given | found.world.student.given
        ):
            raise CheckFailed(
                f"No sampler gave {t.response.tokens} for the prompt {t.prompt}. Most likely prompts and answers are "
                f"repeated in different orders, or tokens are lost or added."
            )


@check("trajectories")
def end_flag(part: TrajectorySource) -> None:
    """``ended`` is true where, and only where, the last token is the end-of-sequence action."""
    for t in collect(part).trajectories:
        tokens = t.response.tokens
        if tokens and t.response.ended != (tokens[-1] == END):
            raise CheckFailed(
                f"The response {tokens} is marked ended={t.response.ended}, and {END} is the end-of-sequence action. "
                "A cut response must not count as ended: keep the sampler's flag."
            )
        if END in tokens[:-1]:
            raise CheckFailed(f"The response {tokens} goes on after the end-of-sequence action: cut it there.")


@check("trajectories")
def row_order(part: TrajectorySource) -> None:
    """The order of the prompts doesn't change what is collected."""
    one, other = collect(part).trajectories, collect(part, order=(4, 2, 0, 5, 1, 3)).trajectories
    if _in_rounds(part) and one != other:
        raise CheckFailed(
            "With the rows in another order, and the same prompts due, other trajectories come out. Most likely rows "
            "are taken by their place in due: take sources.rows[row] for each row in sources.due."
        )
    if _counted(one) != _counted(other):
        raise CheckFailed(
            "Other trajectories come out when the prompts stand in another order. Most likely a draw a prompt takes "
            "its number from the row's place: draw from the seed and the prompt."
        )


@check("trajectories")
def seeded(part: TrajectorySource) -> None:
    """Under one seed the same trajectories come out, in the same order."""
    if collect(part).trajectories != collect(part).trajectories:
        raise CheckFailed(
            "Two calls with the same seed differ. Most likely a random source isn't seeded by sources.seed."
        )


@check("trajectories")
def seed_counts(part: TrajectorySource) -> None:
    """Another seed gives other samples, where the source samples at all."""
    one, other = collect(part), collect(part, seed=1000)
    sampled = one.world.teacher.calls + one.world.student.calls
    if any(d.temperature > 0 for d in sampled) and _counted(one.trajectories) == _counted(other.trajectories):
        raise CheckFailed(
            "Another seed gives the same samples. Most likely a constant is passed instead of sources.seed."
        )


@check("trajectories")
def on_policy(part: TrajectorySource) -> None:
    """The student is sampled where, and only where, the source declares ``on_policy``."""
    asked = bool(collect(part).world.student.calls)
    if asked != part.on_policy:
        did = "samples" if asked else "doesn't sample"
        raise CheckFailed(f"The source {did} from the student, and on_policy is {part.on_policy}.")


@check("trajectories")
def sources_untouched(part: TrajectorySource) -> None:
    """The prompts and references that it was given stay as they were."""
    found = collect(part)
    if found.world.rows != found.given:
        raise CheckFailed("collect() changes the rows that it was given: make new lists instead of extending theirs.")


@check("trajectories")
def expert(part: TrajectorySource) -> None:
    """A reference or a response of the teacher is the expert's, and one of the student is not."""
    found = collect(part)
    teacher, student = found.world.teacher.given, found.world.student.given
    for t in found.trajectories:
        key = f"{t.prompt} {t.response.tokens}"
        whose = "student" if key in student else "expert"
        if not (key in student and key in teacher) and t.expert != (whose == "expert"):
            raise CheckFailed(
                f"The response {t.response.tokens} is the {whose}'s and is marked expert={t.expert}. Objectives tell "
                f"the expert's actions from the student's by that mark."
            )
        if not (part.expert_rows if t.expert else part.student_rows):
            kind = "expert" if t.expert else "student"
            raise CheckFailed(
                f"A trajectory is marked expert={t.expert}, and {kind}_rows is False: by that a run refuses objectives "
                f"that need such trajectories."
            )


@check("trajectories")
def given_tokens(part: TrajectorySource) -> None:
    """The tokens that only set the scene lie within the response and leave an action to learn."""
    for t in collect(part).trajectories:
        if not 0 <= t.given < max(1, len(t.response.tokens)):
            raise CheckFailed(
                f"given is {t.given} in a response of {len(t.response.tokens)} tokens: at least one must be left to "
                f"learn. Most likely it counts the prompt too."
            )


@check("trajectories")
def logprobs(part: TrajectorySource) -> None:
    """Log-probabilities, where there are any, are one for each token and at most 0; the student's are kept."""
    found = collect(part)
    for t in found.trajectories:
        known = t.response.logprobs
        if known is None:
            if f"{t.prompt} {t.response.tokens}" in found.world.student.given - found.world.teacher.given:
                raise CheckFailed(
                    "A response of the student has lost its log-probabilities: pass on the sampler's Completion."
                )
        elif len(known) != len(t.response.tokens):
            raise CheckFailed(
                f"A response of {len(t.response.tokens)} tokens has {len(known)} log-probabilities. Most likely tokens "
                f"were cut or joined and their log-probabilities were not."
            )
        elif any(math.isnan(value) or value > 0 for value in known):
            raise CheckFailed(
                f"A log-probability is above 0 or not a number: {known}. Most likely it is a probability."
            )


@check("trajectories", when=_in_rounds)
def due(part: TrajectorySource) -> None:
    """Each round gives one trajectory for each row that is due, in their order; a replayed one has its own prompt."""
    found = collect(part)
    seen: set[str] = set()
    for call, numbers in zip(found.calls, found.due, strict=True):
        if len(call) != len(numbers):
            raise CheckFailed(
                f"collect() gives {len(call)} trajectories where {len(numbers)} rows are due. Most likely it goes "
                f"through sources.rows instead of sources.due."
            )
        for t, number in zip(call, numbers, strict=True):
            key = f"{t.prompt} {t.response.tokens}"
            if t.prompt != PROMPTS[number] and key not in seen:
                raise CheckFailed(
                    f"The trajectory of the prompt {t.prompt} stands where {PROMPTS[number]} is due. Most likely two "
                    f"kinds of trajectories are joined one after the other: put each in the place of its row."
                )
            seen.add(key)


@check("trajectories", when=_in_rounds)
def memory(part: TrajectorySource) -> None:
    """What it keeps between rounds is in ``memory`` as JSON values, so that a resumed run goes on as it would have."""
    straight = collect(part)
    try:
        same = json.loads(json.dumps(straight.memory)) == straight.memory
    except (TypeError, ValueError) as error:
        raise CheckFailed(f"What is in sources.memory can't be written as JSON: {error}.") from None
    if not same:
        raise CheckFailed(
            f"sources.memory changes on its way through JSON: {straight.memory}. Most likely it holds a tuple, or keys "
            f"that are no texts."
        )

    def resumed(part: TrajectorySource, sources: Sources) -> tuple[TrajectorySource, Sources]:
        again = type(part)(**{name: getattr(part, name) for name in type(part).model_fields})
        return again, replace(sources, memory=json.loads(json.dumps(sources.memory)))

    if collect(part, between=resumed).calls != straight.calls:
        raise CheckFailed(
            "A run that was saved and resumed between two rounds gives other trajectories. Most likely the source "
            "keeps something outside sources.memory."
        )


@check("trajectories")
def held_out(part: TrajectorySource) -> None:
    """The held-out loss is read where, and only where, the source declares ``holds_out``."""
    read = collect(part).world.looks > 0
    if read != part.holds_out:
        did = "reads" if read else "doesn't read"
        raise CheckFailed(f"The source {did} the held-out loss, and holds_out is {part.holds_out}.")
