"""Every check of trajectory sources catches a source that breaks its rule."""

import random
from collections.abc import Iterator
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
    ("sources-untouched", Appends(), "changes the rows that it was given: make new lists"),
]


@each(BROKEN)
def test_a_broken_source_is_caught(name, part, message):
    assert_caught(name, part, message)
