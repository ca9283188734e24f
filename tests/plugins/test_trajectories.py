"""The trajectory sources, on samplers that say who answered what."""

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from distillzoo.core.config import dump, resolve
from distillzoo.core.errors import UserError
from distillzoo.core.extraction import Decoding
from distillzoo.core.registry import Registry
from distillzoo.core.rounds import Once
from distillzoo.core.trajectories import Completion, PromptRow, Sources, Trajectory
from distillzoo.plugins.trajectories.adaptive_replay import AdaptiveReplay
from distillzoo.plugins.trajectories.dataset import FromDataset
from distillzoo.plugins.trajectories.mixture import Mixture
from distillzoo.plugins.trajectories.student import FromStudent
from distillzoo.plugins.trajectories.student_prefix import StudentPrefix
from distillzoo.plugins.trajectories.teacher import FromTeacher
from distillzoo.plugins.trajectories.teacher_mixed import TeacherMixed

END = 2
STUDENT, TEACHER, MIXED = 70, 80, 90
"""First token of whoever answers; the second is the prompt's own."""


@dataclass
class Samplers:
    """Answers of known tokens, and what was asked."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    student_ends: bool = False

    def student(self, prompts: Any, decoding: Decoding, seed: int) -> list[Completion]:
        self.asked.append(("student", list(prompts), decoding, seed))
        return [Completion([STUDENT, p[0], END], True, [-0.1, -0.2, -0.3]) for p in prompts]

    def teacher(self, prompts: Any, decoding: Decoding, seed: int) -> list[Completion]:
        self.asked.append(("teacher", list(prompts), decoding, seed))
        return [Completion([TEACHER, p[0], END], True) for p in prompts]

    def mixed(self, prompts: Any, decoding: Decoding, seed: int, share: float) -> list[Completion]:
        self.asked.append(("mixed", list(prompts), decoding, seed, share))
        return [Completion([MIXED, p[0]], False, [-0.4, -0.5]) for p in prompts]

    def beginnings(self, prompts: Any, decoding: Decoding, seed: int, lengths: Any) -> list[Completion]:
        self.asked.append(("beginnings", list(prompts), decoding, seed, list(lengths)))
        last = [END] if self.student_ends else []
        made = [([STUDENT] * (n - len(last)) + last if n else []) for n in lengths]
        return [Completion(t, t[-1:] == [END], [-0.1 * (i + 1) for i in range(len(t))]) for t in made]

    def endings(self, prompts: Any, beginnings: Any, decoding: Decoding, seed: int) -> list[Completion]:
        self.asked.append(("endings", list(prompts), [list(b) for b in beginnings], decoding, seed))
        return [Completion([TEACHER, END], True, [-0.7, -0.8]) for _ in prompts]

    def held_out_loss(self) -> float:
        self.asked.append(("loss",))
        return self.losses.pop(0)

    def count(self, name: str) -> int:
        return sum(asked[0] == name for asked in self.asked)


def world(due: Any, rows: int = 5, samplers: Samplers | None = None, **changes: Any) -> tuple[Samplers, Sources]:
    """Prompts ``[10], [11], ...`` with one, two or three references, which begin with 60, 61 or 62."""
    made = samplers or Samplers()
    prompts = [
        PromptRow([10 + i], [Completion([60 + j, 10 + i, END], True) for j in range(1 + i % 3)]) for i in range(rows)
    ]
    sources = Sources(
        prompts, made.teacher, made.student, 3, made.mixed, made.beginnings, made.endings, made.held_out_loss
    )
    return made, replace(sources, due=due, once=Once(sources), **changes)


def who(trajectory: Trajectory) -> int:
    """The answerer's token; the answer must be to the trajectory's own prompt."""
    assert trajectory.response.tokens[1] == trajectory.prompt[0]
    return trajectory.response.tokens[0]


def near(count: int, share: float, of: int) -> bool:
    """Whether a count is within 4.5 standard errors of its expectation."""
    return abs(count - share * of) <= 4.5 * (of * share * (1 - share)) ** 0.5


def test_student_answers_the_prompts_that_are_due():
    samplers, sources = world([4, 0, 4])
    found = FromStudent(temperature=0.7, top_p=0.9).collect(sources)
    assert [t.prompt for t in found] == [[14], [10], [14]]
    assert samplers.asked == [("student", [[14], [10], [14]], Decoding(0.7, 0.9), 3)]
    assert all(who(t) == STUDENT and not t.expert and t.response.logprobs == [-0.1, -0.2, -0.3] for t in found)


def test_teacher_mixed_carries_the_mixtures_logprobs():
    samplers, sources = world([1, 2])
    found = TeacherMixed(teacher_share=0.3).collect(sources)
    assert samplers.asked == [("mixed", [[11], [12]], Decoding(), 3, 0.3)]
    assert all(who(t) == MIXED and not t.expert and t.response.logprobs == [-0.4, -0.5] for t in found)


@pytest.mark.parametrize("part", [FromStudent(every=7), TeacherMixed(every=7), StudentPrefix(every=7)])
def test_the_period_is_every(part):
    assert part.period == 7
    assert Mixture(student=part, offline=FromDataset()).period == 7


def test_a_mixture_without_a_share_is_the_offline_data():
    due = [i % 5 for i in range(6000)]
    samplers, sources = world(due)
    part = Mixture(student=FromStudent(), offline=FromDataset(), share=0.0)
    assert not part.on_policy
    found = part.collect(sources)
    assert samplers.asked == [], "the student is never sampled"
    assert [t.prompt for t in found] == [[10 + i] for i in due]
    assert all(t.expert and t.source == "dataset" for t in found)
    counts = Counter((t.prompt[0] - 10, who(t) - 60) for t in found)
    for row in range(5):
        references = 1 + row % 3
        for j in range(references):
            assert near(counts[row, j], 1 / references, 1200), (row, j)
    assert len(counts) == sum(1 + row % 3 for row in range(5))


def test_a_mixture_draws_each_response_by_itself():
    due = [i % 5 for i in range(4000)]
    samplers, sources = world(due)
    found = Mixture(student=FromStudent(), offline=FromTeacher(n=2), share=0.3).collect(sources)
    assert [t.prompt for t in found] == [[10 + i] for i in due]
    own = [who(t) == STUDENT for t in found]
    assert near(sum(own), 0.3, 4000)
    pairs = sum(a and b for a, b in itertools.pairwise(own))
    assert near(pairs, 0.09, 3999)
    assert all(t.expert != mine for t, mine in zip(found, own, strict=True))
    (asked,) = (a for a in samplers.asked if a[0] == "student")
    assert len(asked[1]) == sum(own), "only its own share is sampled from the student"


def test_a_mixture_of_all_student_is_the_student():
    _, sources = world([2, 0])
    student = FromStudent(temperature=0.5)
    assert Mixture(student=student, offline=FromDataset(), share=1.0).collect(sources) == student.collect(sources)


def test_the_offline_part_is_collected_once():
    samplers, sources = world(range(5))
    part = Mixture(student=FromStudent(), offline=FromTeacher(), share=0.5)
    for seed in range(4):
        part.collect(replace(sources, seed=seed))
    assert samplers.count("teacher") == 1


def test_another_seed_draws_others():
    _, sources = world([2] * 40)
    part = Mixture(student=FromStudent(), offline=FromDataset())
    assert part.collect(sources) == part.collect(sources)
    assert part.collect(sources) != part.collect(replace(sources, seed=4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Mixture.configure("t", {"student": FromDataset(), "offline": FromDataset()}), "samples in rounds"),
        (lambda: Mixture.configure("t", {"student": FromStudent(), "offline": FromStudent()}), "collected once"),
        (lambda: AdaptiveReplay.configure("t", {"offline": FromStudent()}), "collected once"),
        (lambda: Mixture.configure("t", {"student": FromStudent()}), "'t.offline' is required"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_parts_within_parts_from_a_configuration(registry: Registry, tmp_path):
    sets = ("trajectories.student.name=student", "trajectories.student.every=3", "trajectories.offline.name=teacher")
    flags = {"trajectories": {"name": "mixture"}}
    config = resolve(registry, algo="kd", flags=flags, sets=sets)
    assert config.trajectories.params["student"] == {"name": "student", "every": 3, "temperature": 1.0, "top_p": 1.0}
    (tmp_path / "again.yaml").write_text(dump(config))
    assert resolve(registry, file=tmp_path / "again.yaml") == config


def replay(**changes: Any) -> AdaptiveReplay:
    return AdaptiveReplay(offline=FromDataset(), **changes)


def test_replay_begins_offline():
    samplers, sources = world(range(5), samplers=Samplers(losses=[1.0]))
    found = replay().collect(sources)
    assert all(t.source == "dataset" and t.expert for t in found)
    assert samplers.count("student") == 0


def test_the_threshold_rises_where_the_loss_does_and_remembers_only_then():
    losses = [1.0, 1.09, 1.1, 1.15, 0.5, 1.19, 1.21, 9.0]
    _, sources = world([], samplers=Samplers(losses=list(losses)), steps=100)
    part, seen = replay(check_every=10), []
    for look in range(len(losses)):
        part.collect(replace(sources, step=10 * look))
        seen.append((round(sources.memory["phi"], 9), sources.memory["loss"]))
    assert seen == [(0.0, 1.0), (0.0, 1.0), (0.1, 1.1), (0.1, 1.1), (0.1, 1.1), (0.1, 1.1), (0.2, 1.21), (0.3, 9.0)]


def test_the_threshold_is_at_most_one():
    _, sources = world([], samplers=Samplers(losses=[float(i) for i in range(5)]), steps=100)
    for step in range(5):
        replay(initial=0.85, check_every=1).collect(replace(sources, step=step))
    assert sources.memory["phi"] == 1.0


def test_the_loss_is_looked_at_every_so_many_steps():
    samplers, sources = world([], samplers=Samplers(losses=[1.0] * 9), steps=100)
    looked = []
    for step in range(0, 60, 4):
        before = samplers.count("loss")
        replay(check_every=10, every=4).collect(replace(sources, step=step))
        if samplers.count("loss") > before:
            looked.append(step)
    assert looked == [0, 12, 24, 36, 48]


def test_the_buffer_is_filled_first_and_then_replayed():
    _, sources = world([0, 1, 2, 3, 4] * 2, samplers=Samplers(losses=[1.0]), steps=10)
    part = replay(initial=1.0, capacity=4)
    found = part.collect(replace(sources, step=10))  # 1 - t / T = 0: nothing is fresh but what fills the buffer
    assert [t.source for t in found] == ["student"] * 4 + ["replay"] * 6
    assert [t.prompt for t in found[:4]] == [[10], [11], [12], [13]]
    for t in found[4:]:
        assert who(t) == STUDENT
        assert t in [replace(new, source="replay") for new in found[:4]], "with its own prompt and log-probabilities"
        assert not t.expert


def test_the_buffer_keeps_the_newest():
    _, sources = world([0, 1, 2, 3, 4], samplers=Samplers(losses=[1.0]), steps=10)
    part = replay(initial=1.0, capacity=3)
    part.collect(sources)
    assert [kept["prompt"] for kept in sources.memory["buffer"]] == [[12], [13], [14]]
    part.collect(replace(sources, due=[0]))
    assert [kept["prompt"] for kept in sources.memory["buffer"]] == [[13], [14], [10]]


def test_shares_of_new_replayed_and_offline_responses():
    count = 6000
    _, sources = world([i % 5 for i in range(count)], samplers=Samplers(losses=[1.0]), steps=100)
    part = replay(initial=0.8, capacity=2)
    part.collect(replace(sources, due=[0] * 20))
    assert len(sources.memory["buffer"]) == 2
    sources_of = Counter(t.source for t in part.collect(replace(sources, step=50)))
    assert near(sources_of["student"], 0.4, count)
    assert near(sources_of["replay"], 0.4, count)
    assert near(sources_of["dataset"], 0.2, count)


def test_the_student_begins_and_the_teacher_ends():
    samplers, sources = world([3, 1])
    found = StudentPrefix(prefix=3, fixed=True).collect(sources)
    assert [t.prompt for t in found] == [[13], [11]]
    for t in found:
        assert t.response == Completion(
            [STUDENT] * 3 + [TEACHER, END], True, pytest.approx([-0.1, -0.2, -0.3, -0.7, -0.8])
        )
        assert t.given == 3
        assert t.expert
    begun, ended = samplers.asked
    assert begun[0] == "beginnings"
    assert begun[4] == [3, 3]
    assert ended[:3] == ("endings", [[13], [11]], [[STUDENT] * 3] * 2)


def test_a_beginning_that_ended_goes_back_to_before_its_end():
    samplers, sources = world([0], samplers=Samplers(student_ends=True))
    (found,) = StudentPrefix(prefix=3, fixed=True).collect(sources)
    assert found.response.tokens == [STUDENT, STUDENT, TEACHER, END]
    assert found.response.logprobs == pytest.approx([-0.1, -0.2, -0.7, -0.8])
    assert found.given == 2
    assert samplers.asked[1][2] == [[STUDENT, STUDENT]]


def test_beginnings_have_all_lengths_alike():
    _, sources = world([0] * 4000)
    found = StudentPrefix(prefix=3).collect(sources)
    counts = Counter(t.given for t in found)
    assert set(counts) == {0, 1, 2, 3}
    assert all(near(count, 0.25, 4000) for count in counts.values())
