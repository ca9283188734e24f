"""Checks of trajectory sources."""

import copy
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from distillzoo.core.checks.check import CheckFailed, check
from distillzoo.core.extraction import Decoding
from distillzoo.core.trajectories import Completion, PromptRow, Sources, Trajectory, TrajectorySource

END: Final = 2


@dataclass
class Script:
    """A sampler whose answers are a function of prompt, decoding, seed and how often the prompt was asked."""

    name: str
    calls: list[Decoding] = field(default_factory=list)
    given: set[str] = field(default_factory=set)
    """Prompt and tokens of all answers so far."""

    def __call__(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
        self.calls.append(decoding)
        asked: Counter[str] = Counter()
        answers = []
        for prompt in prompts:
            asked[str(prompt)] += 1
            draw = random.Random(f"{self.name} {prompt} {asked[str(prompt)]} {seed} {decoding}")
            tokens = [draw.randrange(10, 100) for _ in range(draw.randrange(4))]
            ended = not tokens or draw.random() < 0.7
            answers.append(Completion([*tokens, END] if ended else tokens, ended))
            self.given.add(f"{prompt} {answers[-1].tokens}")
        return answers


PROMPTS: Final = tuple([3 + i, 4, 5 + i] for i in range(6))


@dataclass(frozen=True)
class Collected:
    """What a source gave, what it was given, and which samplers it asked."""

    trajectories: list[Trajectory]
    sources: Sources
    given: list[PromptRow]
    """The rows as they were before."""
    teacher: Script
    student: Script


def collect(part: TrajectorySource, seed: int = 0, order: Sequence[int] = range(len(PROMPTS))) -> Collected:
    """The part's trajectories on six toy prompts with one to two references each."""
    teacher, student = Script("teacher"), Script("student")
    rows = []
    for i in order:
        references = [Completion([50 + i, 51, END], True), Completion([60 + i], False)][: 1 + i % 2]
        rows.append(PromptRow(list(PROMPTS[i]), references))

    def mixed(prompts: Sequence[list[int]], decoding: Decoding, seed: int, share: float) -> list[Completion]:
        return student(prompts, decoding, seed)

    sources = Sources(rows, teacher, student, mixed, seed)
    sources = replace(sources, once=lambda offline: offline.collect(sources))
    given = copy.deepcopy(rows)
    found = part.collect(sources if part.period is None else replace(sources, due=range(len(rows))))
    if not isinstance(found, list) or not all(isinstance(t, Trajectory) for t in found):
        raise CheckFailed(f"collect() returns {type(found).__name__} and should return a list of Trajectory.")
    return Collected(found, sources, given, teacher, student)


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
        if home is None and f"{t.prompt} {t.response.tokens}" not in found.teacher.given | found.student.given:
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
                f"The response {tokens} is marked ended={t.response.ended}, and {END} is the "
                f"end-of-sequence action. A cut "
                f"response must not count as ended: keep the sampler's flag."
            )
        if END in tokens[:-1]:
            raise CheckFailed(f"The response {tokens} goes on after the end-of-sequence action: cut it there.")


@check("trajectories")
def row_order(part: TrajectorySource) -> None:
    """The order of the prompts doesn't change what is collected."""
    one, other = collect(part).trajectories, collect(part, order=(4, 2, 0, 5, 1, 3)).trajectories
    if _counted(one) != _counted(other):
        raise CheckFailed(
            "Other trajectories come out when the prompts stand in another order. Most likely a draw a "
            "prompt takes its "
            "number from the row's place: draw from the seed and the prompt."
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
    sampled = one.teacher.calls + one.student.calls
    if any(d.temperature > 0 for d in sampled) and _counted(one.trajectories) == _counted(other.trajectories):
        raise CheckFailed(
            "Another seed gives the same samples. Most likely a constant is passed instead of sources.seed."
        )


@check("trajectories")
def on_policy(part: TrajectorySource) -> None:
    """The student is sampled where, and only where, the source declares ``on_policy``."""
    asked = bool(collect(part).student.calls)
    if asked != part.on_policy:
        did = "samples" if asked else "doesn't sample"
        raise CheckFailed(f"The source {did} from the student, and on_policy is {part.on_policy}.")


@check("trajectories")
def sources_untouched(part: TrajectorySource) -> None:
    """The prompts and references that it was given stay as they were."""
    found = collect(part)
    if found.sources.rows != found.given:
        raise CheckFailed("collect() changes the rows that it was given: make new lists instead of extending theirs.")
