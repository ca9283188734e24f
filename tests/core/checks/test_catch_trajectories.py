"""Every check of trajectory sources catches a source that breaks its rule."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from distillzoo.core.checks import parametrize_with_checks
from distillzoo.core.extraction import Decoding
from distillzoo.core.trajectories import Completion, Sampler, Sources, Trajectory, TrajectorySource
from tests.core.checks.catching import Broken, assert_caught, each


class Samples(TrajectorySource):
    """The teacher's samples, which the broken sources vary: y ~ pi_T(. | x), n a prompt.

    References:
        These tests.
    """

    n: int = Field(2, description="samples a prompt")

    def collect(self, sources: Sources) -> list[Trajectory]:
        prompts = [row.prompt for row in sources.rows for _ in range(self.n)]
        return self.answered(sources.teacher, prompts, sources.seed)

    def answered(self, sampler: Sampler, prompts: list[list[int]], seed: int) -> list[Trajectory]:
        answers = sampler(prompts, Decoding(), seed)
        return [Trajectory(prompt, answer, "model") for prompt, answer in zip(prompts, answers, strict=True)]


@parametrize_with_checks([Samples()])
def test_the_healthy_source_passes(check):
    check()


class LongReferencesOnly(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        return [Trajectory(r.prompt, a, "data") for r in sources.rows for a in r.references if len(a.tokens) > 3]


class Nameless(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        return [Trajectory(row.prompt, answer, "") for row in sources.rows for answer in row.references]


class Lazy(Samples):
    def collect(self, sources: Sources) -> Iterator[Trajectory]:
        return iter(super().collect(sources))


class CutPrompts(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        prompts = [row.prompt[-2:] for row in sources.rows for _ in range(self.n)]
        return self.answered(sources.teacher, prompts, sources.seed)


class ShorterList(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        prompts = [row.prompt for row in sources.rows]
        answers = sources.teacher(prompts, Decoding(), sources.seed)
        repeated = [prompt for prompt in prompts for _ in range(self.n)]
        return [Trajectory(prompt, answer, "teacher") for prompt, answer in zip(repeated, answers, strict=False)]


class RepeatedInTwoOrders(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        prompts = [row.prompt for row in sources.rows]
        answers = sources.teacher([p for p in prompts for _ in range(self.n)], Decoding(), sources.seed)
        return [Trajectory(prompt, answer, "teacher") for prompt, answer in zip(prompts * self.n, answers, strict=True)]


class ReferencesInAnotherOrder(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        first = [row.references[0] for row in sources.rows]
        return [Trajectory(row.prompt, a, "data") for row, a in zip(sources.rows, reversed(first), strict=True)]


class AllEnded(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        found = super().collect(sources)
        return [Trajectory(t.prompt, Completion(t.response.tokens, True), t.source) for t in found]


class Joined(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        found = []
        for row in sources.rows:
            tokens = [token for reference in row.references for token in reference.tokens]
            found.append(Trajectory(row.prompt, Completion(tokens, row.references[-1].ended), "data"))
        return found


class SeedFromPlace(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        rows = enumerate(sources.rows)
        return [t for i, row in rows for t in self.answered(sources.teacher, [row.prompt], sources.seed + i)]


class Unseeded(Samples):
    def answered(self, sampler: Sampler, prompts: list[list[int]], seed: int) -> list[Trajectory]:
        return super().answered(sampler, prompts, random.randrange(1 << 30))


class ConstantSeed(Samples):
    def answered(self, sampler: Sampler, prompts: list[list[int]], seed: int) -> list[Trajectory]:
        return super().answered(sampler, prompts, 0)


class StudentUndeclared(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        return self.answered(sources.student, [row.prompt for row in sources.rows], sources.seed)


class StudentUnused(Samples):
    on_policy: ClassVar[bool] = True


class Appends(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        found = super().collect(sources)
        for row, t in zip(sources.rows, found[:: self.n], strict=True):
            row.references.append(t.response)
        return found


class InRounds(Samples):
    """The student's samples, which the broken sources with rounds vary: y ~ pi(. | x), x due.

    References:
        These tests.
    """

    @property
    def on_policy(self) -> bool:
        return True

    @property
    def expert_rows(self) -> bool:
        return False

    @property
    def student_rows(self) -> bool:
        return True

    @property
    def period(self) -> int:
        return 2

    def collect(self, sources: Sources) -> list[Trajectory]:
        return self.marked(sources, [sources.rows[row].prompt for row in sources.due])

    def marked(self, sources: Sources, prompts: list[list[int]]) -> list[Trajectory]:
        return [replace(t, expert=False) for t in self.answered(sources.student, prompts, sources.seed)]


@parametrize_with_checks([InRounds()])
def test_the_healthy_source_with_rounds_passes(check):
    check()


class AllRows(InRounds):
    def collect(self, sources: Sources) -> list[Trajectory]:
        return self.marked(sources, [row.prompt for row in sources.rows])


class FirstRows(InRounds):
    def collect(self, sources: Sources) -> list[Trajectory]:
        return self.marked(sources, [row.prompt for row in sources.rows[: len(sources.due)]])


class KindByKind(InRounds):
    def collect(self, sources: Sources) -> list[Trajectory]:
        even, odd = [r for r in sources.due if r % 2 == 0], [r for r in sources.due if r % 2]
        return self.marked(sources, [sources.rows[row].prompt for row in even + odd])


class StudentAsExpert(InRounds):
    def marked(self, sources: Sources, prompts: list[list[int]]) -> list[Trajectory]:
        return self.answered(sources.student, prompts, sources.seed)


class TeacherAsStudent(Samples):
    def collect(self, sources: Sources) -> list[Trajectory]:
        return [replace(t, expert=False) for t in super().collect(sources)]


class StudentRowsUndeclared(InRounds):
    @property
    def student_rows(self) -> bool:
        return False


class AllGiven(InRounds):
    def collect(self, sources: Sources) -> list[Trajectory]:
        return [replace(t, given=len(t.prompt)) for t in super().collect(sources)]


class WithoutLogprobs(InRounds):
    def collect(self, sources: Sources) -> list[Trajectory]:
        found = super().collect(sources)
        return [replace(t, response=Completion(t.response.tokens, t.response.ended)) for t in found]


class LogprobsOfTheRest(InRounds):
    def collect(self, sources: Sources) -> list[Trajectory]:
        found = super().collect(sources)
        return [replace(t, response=replace(t.response, logprobs=t.response.logprobs[1:])) for t in found]


class Probabilities(InRounds):
    def collect(self, sources: Sources) -> list[Trajectory]:
        found = super().collect(sources)
        return [replace(t, response=replace(t.response, logprobs=[0.5] * len(t.response.tokens))) for t in found]


class KeepsTrajectories(InRounds):
    def collect(self, sources: Sources) -> list[Trajectory]:
        found = super().collect(sources)
        sources.memory["last"] = found[-1]
        return found


class KeepsTuples(InRounds):
    def collect(self, sources: Sources) -> list[Trajectory]:
        found = super().collect(sources)
        sources.memory["last"] = (found[-1].prompt, found[-1].response.tokens)
        return found


class KeepsBesides(InRounds):
    _before: Any = PrivateAttr(default_factory=dict)

    def collect(self, sources: Sources) -> list[Trajectory]:
        if sources.step == 0:
            self._before.clear()
        found = super().collect(sources)
        found[0] = self._before.get("first", found[0])
        self._before["first"] = found[0]
        return found


class LooksUndeclared(InRounds):
    def collect(self, sources: Sources) -> list[Trajectory]:
        sources.held_out_loss()
        return super().collect(sources)


class DoesNotLook(Samples):
    holds_out: ClassVar[bool] = True


class UntypedParameter(Samples):
    shares: Any = Field((0.5, 0.5), description="of teacher and data")  # YAML gives a list back


class KeepsAnIterator(Samples):
    _draws: Any = PrivateAttr(default_factory=lambda: (i for i in range(10)))


class Undocumented(Samples):
    pass


class NoFormula(Samples):
    """Samples of the teacher."""


class NoSource(Samples):
    """Samples of the teacher: y ~ pi_T(. | x)."""


BROKEN: list[Broken] = [
    ("round-trip", UntypedParameter(), "type has no YAML form"),
    ("picklable", KeepsAnIterator(), "can't be pickled: cannot pickle 'generator'"),
    ("documented", Undocumented(), "Undocumented has no docstring"),
    ("documented", NoFormula(), "NoFormula holds no formula"),
    ("source-documented", NoSource(), "no 'References:'"),
    ("something", LongReferencesOnly(), "gives nothing for six prompts"),
    ("something", Nameless(), "A trajectory has no source"),
    ("something", Lazy(), "returns list_iterator and should return a list"),
    ("prompts", CutPrompts(), r"prompt is none of those given: \[4, 5\]\. Most likely it was cut"),
    ("prompts", ShorterList(), r"A prompt has no trajectory: .* zip\(\) stopped at the shorter list"),
    ("answers-belong", RepeatedInTwoOrders(), "No sampler gave .* repeated in different orders"),
    ("answers-belong", ReferencesInAnotherOrder(), r"The reference .* of the prompt .* stands with"),
    ("end-flag", AllEnded(), "marked ended=True.* keep the sampler's flag"),
    ("end-flag", Joined(), "goes on after the end-of-sequence action"),
    ("row-order", SeedFromPlace(), "takes its number from the row's place"),
    ("seeded", Unseeded(), r"isn't seeded by sources\.seed"),
    ("seed-counts", ConstantSeed(), r"a constant is passed instead of sources\.seed"),
    ("on-policy", StudentUndeclared(), "samples from the student, and on_policy is False"),
    ("on-policy", StudentUnused(), "doesn't sample from the student, and on_policy is True"),
    ("row-order", FirstRows(), r"take sources\.rows\[row\] for each row in sources\.due"),
    ("due", AllRows(), "gives 6 trajectories where 4 rows are due"),
    ("due", KindByKind(), r"of the prompt \[5, 4, 7\] stands where \[4, 4, 6\] is due.*joined one after the other"),
    ("expert", StudentAsExpert(), "is the student's and is marked expert=True"),
    ("expert", StudentRowsUndeclared(), "is marked expert=False, and student_rows is False"),
    ("expert", TeacherAsStudent(), "is the expert's and is marked expert=False"),
    ("given-tokens", AllGiven(), r"given is 3 in a response of \d tokens.*counts the prompt too"),
    ("logprobs", WithoutLogprobs(), "has lost its log-probabilities: pass on the sampler's Completion"),
    ("logprobs", LogprobsOfTheRest(), r"of (\d) tokens has \d log-probabilities.*cut or joined"),
    ("logprobs", Probabilities(), "above 0 or not a number"),
    ("memory", KeepsTrajectories(), "can't be written as JSON: .*Trajectory is not JSON serializable"),
    ("memory", KeepsTuples(), "changes on its way through JSON.*holds a tuple"),
    ("memory", KeepsBesides(), r"gives other trajectories.*keeps something outside sources\.memory"),
    ("held-out", LooksUndeclared(), "reads the held-out loss, and holds_out is False"),
    ("held-out", DoesNotLook(), "doesn't read the held-out loss, and holds_out is True"),
    ("sources-untouched", Appends(), "changes the rows that it was given: make new lists"),
]


@each(BROKEN)
def test_a_broken_source_is_caught(name, part, message):
    assert_caught(name, part, message)
