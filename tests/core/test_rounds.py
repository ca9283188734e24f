"""Trajectories round by round: who gets which, when they are collected, and what a resumed run finds."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillzoo.core.config import resolve
from distillzoo.core.errors import UserError
from distillzoo.core.extraction import Decoding
from distillzoo.core.registry import Registry
from distillzoo.core.rounds import Once, Rounds, Share, Shuffled, derived, packed, unpacked
from distillzoo.core.trajectories import Completion, PromptRow, Sources, Trajectory, TrajectorySource
from distillzoo.core.world import World, cache_folder
from tests.tiny import Tiny

counts = st.integers(1, 4)


@given(processes=counts, passes=counts, sequences=counts, step=st.integers(0, 5))
def test_processes_share_a_step_without_overlap(processes, passes, sequences, step):
    parts = [Share(p, processes, passes, sequences, 9).places(step) for p in range(processes)]
    each = processes * passes * sequences
    assert sorted(place for part in parts for place in part) == list(range(step * each, (step + 1) * each))
    assert {len(part) for part in parts} == {passes * sequences}


@given(passes=st.sampled_from([1, 2, 3, 4, 6, 12]), step=st.integers(0, 5))
def test_one_process_takes_the_places_in_order(passes, step):
    assert Share(0, 1, passes, 12 // passes, 9).places(step) == list(range(12 * step, 12 * step + 12))


@given(count=st.integers(1, 9), seed=st.integers(0, 3))
def test_every_row_comes_once_before_any_comes_again(count, seed):
    order = Shuffled(count, seed, "order")
    drawn = [order[place] for place in range(3 * count)]
    for i in range(3):
        assert sorted(drawn[i * count : (i + 1) * count]) == list(range(count))
    backwards = Shuffled(count, seed, "order")
    assert [backwards[place] for place in reversed(range(3 * count))] == drawn[::-1], "whatever was asked before"


def test_passes_over_the_rows_differ_and_so_do_purposes():
    order, other = Shuffled(50, 0, "order"), Shuffled(50, 0, "corpus")
    passes = [[order[i * 50 + j] for j in range(50)] for i in range(2)]
    assert passes[0] != passes[1]
    assert passes[0] != [other[j] for j in range(50)]


def test_a_derived_seed_is_the_same_everywhere():
    assert derived(0, "round", 3, 1) == 333272869
    assert len({derived(0, "round", step, process) for step in range(30) for process in range(4)}) == 120
    assert all(0 <= derived(seed) < 2**31 for seed in range(99))


class Told(TrajectorySource):
    """Answers that say at which step and under which seed they were made."""

    every: int = 1

    @property
    def period(self) -> int:
        return self.every

    def collect(self, sources: Sources) -> list[Trajectory]:
        sources.memory["asked"] = [*sources.memory.get("asked", []), [sources.step, len(sources.due)]]
        prompts = [sources.rows[row].prompt for row in sources.due]
        return [Trajectory(p, Completion([sources.step, i], False, [-0.1, -0.7]), "t") for i, p in enumerate(prompts)]


def never(*_: Any) -> Any:
    raise AssertionError("nothing should be sampled here")


def some(rows: int = 5) -> Sources:
    prompts = [PromptRow([10 + i], [Completion([20 + i, 2], True)]) for i in range(rows)]
    return Sources(prompts, never, never, 0)


def rounds(
    every: int = 3, passes: int = 1, sequences: int = 4, steps: int = 7, sources: Sources | None = None
) -> Rounds:
    return Rounds(Told(every=every), sources or some(), Share(0, 1, passes, sequences, steps), seed=1)


def test_a_round_is_collected_when_its_first_step_begins():
    sources = some()
    under_test = rounds(sources=sources)
    for step, known in enumerate([1, 1, 1, 2, 2, 2, 3]):
        (part,) = under_test.take(step)
        assert {t.response.tokens[0] for t in part} == {step - step % 3}
        assert len(sources.memory["asked"]) == known
    assert sources.memory["asked"] == [[0, 12], [3, 12], [6, 4]], "the last round is cut to the steps that are left"


def test_prompts_come_in_a_new_random_order_each_time():
    taken = rounds(every=1, sequences=5)
    passes = [[t.prompt[0] for t in taken.take(step)[0]] for step in range(4)]
    assert all(sorted(p) == [10, 11, 12, 13, 14] for p in passes)
    assert len({tuple(p) for p in passes}) > 1


@pytest.mark.parametrize(("passes", "sequences"), [(2, 6), (3, 4), (12, 1)])
def test_the_number_of_forward_passes_changes_no_trajectory(passes, sequences):
    whole, split = rounds(passes=1, sequences=12), rounds(passes=passes, sequences=sequences)
    for step in range(7):
        (expected,) = whole.take(step)
        found = split.take(step)
        assert [len(part) for part in found] == [sequences] * passes
        assert [t for part in found for t in part] == expected


def test_two_processes_get_other_prompts_and_seeds():
    seeds, prompts = [], []

    class Notes(Told):
        def collect(self, sources: Sources) -> list[Trajectory]:
            seeds.append(sources.seed)
            return super().collect(sources)

    for process in range(2):
        taken = Rounds(Notes(), some(40), Share(process, 2, 2, 5, 2), seed=1)
        prompts += [t.prompt[0] for step in range(2) for part in taken.take(step) for t in part]
    assert sorted(prompts) == [10 + i for i in range(40)]
    assert len(set(seeds)) == 4


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_saved_round_goes_on(at, tmp_path):
    straight, cut = rounds(), rounds()
    expected = [straight.take(step) for step in range(7)]
    for step in range(at):
        cut.take(step)
    cut.save(tmp_path)
    sources = some()
    resumed = rounds(sources=sources)
    resumed.load(tmp_path)
    assert [resumed.take(step) for step in range(at, 7)] == expected[at:]
    assert sources.memory["asked"] == [[0, 12], [3, 12], [6, 4]], "the memory came back too"


def test_a_checkpoint_of_fewer_processes_is_refused(tmp_path):
    Rounds(Told(), some(), Share(0, 1, 1, 4, 2), 0).save(tmp_path)
    with pytest.raises(UserError, match=r"no trajectories for process 1: go on with as many processes .* \(1\)"):
        Rounds(Told(), some(), Share(1, 2, 1, 2, 2), 0).load(tmp_path)


def test_a_source_that_gives_too_few_is_named():
    class Short(Told):
        def collect(self, sources: Sources) -> list[Trajectory]:
            return super().collect(sources)[1:]

    with pytest.raises(ValueError, match="Short gave 3 trajectories where 4 were due"):
        Rounds(Short(), some(), Share(0, 1, 1, 4, 2), 0).take(0)


tokens = st.lists(st.integers(0, 99), max_size=4)


@given(prompt=tokens, response=tokens, ended=st.booleans(), known=st.booleans(), given_tokens=st.integers(0, 3))
def test_a_trajectory_survives_json(prompt, response, ended, known, given_tokens):
    logprobs = [-0.1 * token / 3 for token in response] if known else None
    trajectory = Trajectory(prompt, Completion(response, ended, logprobs), "here", not ended, given_tokens)
    assert unpacked(json.loads(json.dumps(packed(trajectory)))) == trajectory


class Offline(TrajectorySource):
    """Two answers a prompt, in another order than the rows, and an empty one."""

    without: int | None = None

    def collect(self, sources: Sources) -> list[Trajectory]:
        sources.memory["collected"] = sources.memory.get("collected", 0) + 1
        return [
            Trajectory(row.prompt, Completion([i] if i else [], False), "offline")
            for i in (2, 0, 1)
            for row in reversed(sources.rows)
            if row.prompt[0] != self.without
        ]


def test_offline_trajectories_are_found_by_prompt_and_collected_once():
    sources = some()
    once = Once(sources)
    found = once(Offline())
    assert [[(t.prompt, t.response.tokens) for t in row] for row in found] == [
        [([10 + i], [2]), ([10 + i], [1])] for i in range(5)
    ]
    assert once(Offline()) is found
    assert sources.memory["collected"] == 1
    with pytest.raises(UserError, match="Offline has no response to 1 of 5 prompts"):
        once(Offline(without=12))


def test_a_source_without_a_period_has_no_once():
    with pytest.raises(RuntimeError, match="sources with a period"):
        some().once(Offline())


@pytest.fixture
def world(registry: Registry, tiny: Tiny) -> World:
    """A run whose responses have at most five tokens."""
    flags = {
        "teacher": {"model": str(tiny.teacher)},
        "student": {"model": str(tiny.student)},
        "data": {"train": str(tiny.data), "max_length": 15, "max_prompt_length": 10},
        "device": "cpu",
    }
    world = World(resolve(registry, algo="kd", flags=flags), registry)
    world.load()
    return world


@pytest.fixture
def live(world: World) -> Sources:
    """Its samplers."""
    return world.sources()


def test_beginning_and_ending_keep_the_length_limit_together(live):
    prompts = [row.prompt for row in live.rows]
    lengths = [i % 9 for i in range(len(prompts))]
    begun = live.beginnings(prompts, Decoding(), 1, lengths)
    assert all(len(b.tokens) <= min(n, 4) for b, n in zip(begun, lengths, strict=True))
    assert max(len(b.tokens) for b in begun) == 4
    opened = [b.tokens[: len(b.tokens) - b.ended] for b in begun]
    ends = live.endings(prompts, opened, Decoding(), 2)
    whole = [len(b) + len(e.tokens) for b, e in zip(opened, ends, strict=True)]
    assert max(whole) == 5
    assert all(e.tokens and (e.ended or length == 5) for e, length in zip(ends, whole, strict=True))
    assert all(len(c.logprobs) == len(c.tokens) for c in [*begun, *ends])


def test_endings_are_the_teachers_own(live):
    prompts = [row.prompt for row in live.rows[:6]]
    greedy = Decoding(temperature=0.0)
    whole = live.teacher(prompts, greedy, 0)
    ends = live.endings(prompts, [answer.tokens[:2] for answer in whole], greedy, 0)
    for answer, end in zip(whole, ends, strict=True):
        if len(answer.tokens) > 2:
            assert end.tokens == answer.tokens[2:]


def test_endings_leave_no_files(live):
    prompts = [row.prompt for row in live.rows[:3]]
    live.endings(prompts, [[5], [], [6, 7]], Decoding(), 0)
    assert not list(cache_folder().rglob("*"))
    live.teacher(prompts, Decoding(), 0)
    assert len(list(cache_folder().rglob("*.parquet"))) == 1


def test_the_students_samples_have_logprobs_and_follow_its_weights(world, live):
    prompts = [row.prompt for row in live.rows[:3]]
    before = live.student(prompts, Decoding(), 0)
    assert before == live.student(prompts, Decoding(), 0)
    assert [c.tokens for c in live.mixed(prompts, Decoding(), 0, 0.0)] == [c.tokens for c in before]
    assert all(c.logprobs is not None for c in before)
    world.student.model.get_output_embeddings().weight.data.neg_()
    assert live.student(prompts, Decoding(), 0) != before
