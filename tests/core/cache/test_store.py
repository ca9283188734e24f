"""Caches on disk: what comes back, and what is left of a build that was cut off."""

import json

import numpy as np
import pytest
import torch

from distillzoo.core.cache.coding import FINEST, RELATIVE
from distillzoo.core.cache.shard import Sets
from distillzoo.core.cache.store import MANIFEST, TeacherCache
from distillzoo.core.errors import UserError
from distillzoo.core.trajectories import Completion, Trajectory

KEY = {"teacher": "a" * 64, "subset": {"name": "top-p", "p": 0.8}}


def trajectory(generator, size, n):
    tokens = generator.integers(size, size=n).tolist()
    prompt = generator.integers(size, size=3).tolist()
    logprobs = [-float(t) for t in range(n)] if n == 4 else None
    return Trajectory(prompt, Completion(tokens, n % 2 == 0, logprobs), "teacher", expert=n % 3 > 0, given=n // 3)


def sets(generator, size, n, most=9):
    counts = generator.integers(1, most, size=n)
    actions = np.concatenate([generator.choice(size, k, replace=False) for k in counts] or [[]]).astype(np.int64)
    mass = generator.uniform(0.3, 1.0, size=n).astype(np.float32)
    probs = [np.sort(generator.dirichlet(np.full(k, 0.3)))[::-1] * m for k, m in zip(counts, mass, strict=True)]
    logprobs = np.log(np.concatenate(probs or [[]]).clip(min=1e-9)).astype(np.float32)
    return Sets(*map(torch.from_numpy, (counts, actions, logprobs, mass)))


def content(size=300, lengths=(1, 4, 2, 7), seed=0):
    generator = np.random.default_rng(seed)
    rows = [trajectory(generator, size, n) for n in lengths]
    return rows, [sets(generator, size, len(t.response.tokens) - t.given) for t in rows]


def test_a_trajectory_without_actions_and_sets_of_hundreds(tmp_path):
    generator = np.random.default_rng(0)
    empty, wide = (Trajectory([1], Completion([2, 3], True), "dataset", given=g) for g in (2, 0))
    theirs = [sets(generator, 2000, 0), sets(generator, 2000, 2, most=900)]
    assert int(theirs[1].counts.max()) > 255
    found = TeacherCache.begin(tmp_path, KEY, 2000).add([empty, wide], theirs).finish().trajectories()
    assert len(found[0].sets.counts) == 0
    assert found[1].sets.counts.tolist() == theirs[1].counts.tolist()
    assert sorted(found[1].sets.actions.tolist()) == sorted(theirs[1].actions.tolist())


@pytest.mark.parametrize("size", [300, 100_000])
def test_what_is_put_in_comes_back(tmp_path, size):
    rows, theirs = content(size)
    more, theirs_too = content(size, (3, 1), seed=1)
    cache = TeacherCache.begin(tmp_path / "cache", KEY, size).add(rows, theirs).add(more, theirs_too).finish()
    found = TeacherCache.open(tmp_path / "cache")
    assert found == cache
    assert (found.sequences, found.actions) == (6, sum(len(s.counts) for s in [*theirs, *theirs_too]))
    for got, row, expected in zip(found.trajectories(), [*rows, *more], [*theirs, *theirs_too], strict=True):
        for name in vars(row):
            assert getattr(got, name) == getattr(row, name), name
        stored = got.sets
        assert stored.counts.tolist() == expected.counts.tolist()
        assert ((stored.mass - expected.mass) * 65535 > -0.01).all(), "never less than it was"
        assert ((stored.mass - expected.mass) * 65535 < 1.01).all()
        columns = [(s.actions, s.logprobs) for s in (stored, expected)]
        parts = [column.split(expected.counts.tolist()) for pair in columns for column in pair]
        for state, (mine, logprobs, given, exact) in enumerate(zip(*parts, strict=True)):
            assert set(mine.tolist()) == set(given.tolist())
            assert logprobs.exp().sum() == pytest.approx(float(stored.mass[state]), rel=1e-5)
            bound = RELATIVE * (2 * FINEST - exact - exact.min()) + 2e-5 / expected.mass[state]
            assert ((logprobs - exact).abs() <= bound).all(), "both fall within a set"


def test_sets_like_those_of_text_take_few_bytes(tmp_path):
    """Ids and probabilities by Zipf's law, cut at 64; the bound is that of the issue for all that is stored."""
    generator, size, states = np.random.default_rng(0), 49_152, 2000
    zipf = 1 / np.arange(5, size + 5)
    counts = np.minimum(generator.geometric(1 / 36, states), 64)
    actions = [generator.choice(size, k, replace=False, p=zipf / zipf.sum()) for k in counts]
    probs = [1 / np.arange(1, k + 1) for k in counts]
    logprobs = np.concatenate([np.log(0.8 * p / p.sum()) for p in probs]).astype(np.float32)
    mass = np.full(states, 0.8, dtype=np.float32)
    theirs = Sets(*map(torch.from_numpy, (counts, np.concatenate(actions), logprobs, mass)))
    row = Trajectory([1] * 100, Completion(generator.integers(size, size=states).tolist(), True), "teacher")
    cache = TeacherCache.begin(tmp_path, KEY, size).add([row], [theirs]).finish()
    assert cache.entries / states > 25
    assert cache.bytes / cache.entries < 2.75
    assert cache.bytes / states < 70


def test_what_a_killed_build_leaves_is_gone_on_with(tmp_path):
    rows, theirs = content()
    TeacherCache.begin(tmp_path, KEY, 300).add(rows, theirs)
    (tmp_path / ".shard-00001.arrow.part").write_bytes(b"half")
    again = TeacherCache.begin(tmp_path, KEY, 300)
    assert (again.sequences, again.complete) == (4, False)
    with pytest.raises(UserError, match=r"not complete \(4 trajectories so far\)"):
        again.trajectories()
    whole = again.add(rows, theirs).finish()
    assert whole.verify() == []
    assert [len(t.sets.counts) for t in whole.trajectories()] == 2 * [len(s.counts) for s in theirs]


def test_what_is_wrong_with_the_files_is_found(tmp_path):
    rows, theirs = content()
    cache = TeacherCache.begin(tmp_path, KEY, 300).add(rows, theirs).add(rows, theirs).finish()
    first, second = (tmp_path / f"shard-0000{i}.arrow" for i in range(2))
    whole = first.read_bytes()
    first.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert cache.verify() == ["shard-00000.arrow is not what was written: its sha256 differs."]
    second.unlink()
    assert len(cache.verify()) == 2
    first.write_bytes(whole[:50])
    with pytest.raises(UserError, match="is damaged"):
        cache.trajectories()


def test_a_cache_of_something_else_is_refused_with_the_field(tmp_path):
    TeacherCache.begin(tmp_path / "cache", KEY, 300)
    with pytest.raises(UserError, match=r"belongs to another teacher \(aaa.*, and the run has bbb.*\)\."):
        TeacherCache.begin(tmp_path / "cache", {**KEY, "teacher": "b" * 64}, 300)
    found = TeacherCache.open(tmp_path / "cache")
    found.must_belong({**KEY, "subset": {"name": "top-k"}}, but=["subset"])
    both = r"another subset \(.*\); another max length \(null, and the run has 160\)"
    with pytest.raises(UserError, match=both):
        found.must_belong({**KEY, "subset": {}, "max_length": 160})


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(UserError, match="is no teacher cache"):
        TeacherCache.begin(tmp_path, KEY, 300)
    with pytest.raises(UserError, match="There is no teacher cache"):
        TeacherCache.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_another_format_is_refused(tmp_path):
    TeacherCache.begin(tmp_path, KEY, 300)
    facts = json.loads((tmp_path / MANIFEST).read_text())
    for other in (1, 99):
        (tmp_path / MANIFEST).write_text(json.dumps({**facts, "format": other}))
        with pytest.raises(UserError, match=f"has the format {other}, and this distillzoo reads 2. Build it anew"):
            TeacherCache.open(tmp_path)
    for damaged in ({"format": 2}, [], {**facts, "shards": [{"file": "x"}]}):
        (tmp_path / MANIFEST).write_text(json.dumps(damaged))
        with pytest.raises(UserError):
            TeacherCache.open(tmp_path)
    (tmp_path / MANIFEST).write_text("half")
    with pytest.raises(UserError, match="is no JSON file"):
        TeacherCache.open(tmp_path)
