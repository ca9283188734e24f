"""Training from a cache: the same as with the teacher, within the stored precision, and refused where it can't be."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from distillzoo.core import taught
from distillzoo.core.cache.store import TeacherCache

PARTS = ("--algo", "bd-iql", "--trajectories", "dataset")

WEIGHTED = ("--set", "objective.name=forward-kl", "--set", "objective.tail=weighted", "--trajectories", "dataset")


@pytest.fixture
def world(tiny):
    """Arguments that name the tiny pair and its data."""
    return [
        "--teacher", tiny.teacher, "--student", tiny.student, "--data", tiny.data, "--batch-size", 8, "--device", "cpu",
        "--set", "data.max_length=24", "--set", "data.max_prompt_length=8",
    ]  # fmt: skip


@pytest.fixture
def run():
    return ["--max-steps", 12, "--lr", "1e-2", "--set", "evaluate.limit=4", "--set", "train.log_every=1"]


def refused(result, *parts):
    assert result.returncode == 2, result.stderr
    for part in parts:
        assert part in " ".join(result.stderr.split())


def losses(folder):
    return [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_from_a_cache_is_the_run_with_the_teacher(here, world, run, tmp_path):
    built = here("cache", "build", "cache", *PARTS, *world)
    assert built.returncode == 0, built.stderr
    assert "a token of a set" in built.stdout
    assert here("run", *PARTS, *world, *run, "--output", "live", "-q").returncode == 0
    cached = here("run", *PARTS, *world, *run, "--output", "cached", "-q", "--teacher-cache", "cache")
    assert cached.returncode == 0, cached.stderr
    # the sets are the same and this objective reads no log-probability of the teacher
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), rel=1e-4)
    after = [json.loads((tmp_path / f / "result.json").read_text())["scores"]["after"] for f in ("live", "cached")]
    assert after[1]["forward-kl"] == pytest.approx(after[0]["forward-kl"], rel=1e-3), "the teacher came back to score"


def test_a_loss_that_reads_log_probabilities_agrees_within_their_precision(here, world, run, tmp_path):
    parts = (*PARTS, "--set", "objective.first_term=expected", "--set", "objective.divergence=none")
    assert here("cache", "build", "cache", *parts, *world, "-q").returncode == 0
    for name, extra in (("live", []), ("cached", ["--teacher-cache", "cache"])):
        assert here("run", *parts, *world, *run, "--output", name, "-q", *extra).returncode == 0
    live, cached = losses(tmp_path / "live"), losses(tmp_path / "cached")
    assert cached == pytest.approx(live, rel=0.02)
    assert cached != live, "log-probabilities are stored in a byte"


def test_a_smaller_subset_is_cut_out_and_a_larger_one_refused(here, world, run, tmp_path):
    assert here("cache", "build", "cache", *PARTS, *world, "--set", "subset.p=0.9", "-q").returncode == 0
    for name, extra in (("live", []), ("cached", ["--teacher-cache", "cache"])):
        smaller = here("run", *PARTS, *world, *run, "--set", "subset.p=0.5", "--output", name, "-q", *extra)
        assert smaller.returncode == 0, smaller.stderr
    # on this flat teacher the last token of a set often hangs on a rounded log-probability
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), rel=0.1)
    larger = here("run", *PARTS, *world, *run, "--set", "subset.p=0.99", "--teacher-cache", "cache")
    refused(larger, "holds too few tokens for the subset TopP", "Build one with a larger subset")


def test_a_cache_that_does_not_belong_is_refused_with_the_field(here, world, run, tmp_path):
    assert here("cache", "build", "cache", *PARTS, *world, "-q").returncode == 0
    cached = ["--teacher-cache", "cache"]
    refused(
        here("run", *PARTS, *world, *run, *cached, "--set", "data.max_length=20"),
        "another max length (24, and the run has 20)",
    )
    refused(here("run", *PARTS, *world, *run, *cached, "--set", "data.template=alpaca"), "belongs to another data")
    refused(here("run", *PARTS, *world, *run, *cached, "--set", "data.limit=5"), "belongs to another data")
    assert not list(tmp_path.glob("runs/*")), "a refused run leaves no directory"
    refused(here("run", "--algo", "bd-iql", *world, *run, *cached), "belongs to another trajectories")
    refused(here("run", *PARTS, *world, *run, "--teacher-cache", "nowhere"), "There is no teacher cache in")
    other = here("run", *PARTS, *world, *run, *cached, "--seed", 3, "-q", "--output", "out")
    assert other.returncode == 0, "another seed trains on the same trajectories"


def test_a_run_does_not_go_on_from_another_cache(here, world, run, tmp_path):
    assert here("cache", "build", "cache", *PARTS, *world, "-q").returncode == 0
    arguments = [*PARTS, *world, *run, "--set", "train.save_every=4", "--teacher-cache", "cache", "--output", "out"]
    assert here("run", *arguments, "-q").returncode == 0
    (tmp_path / "out" / "result.json").unlink()  # as if killed in the last evaluation
    shutil.rmtree(tmp_path / "cache")
    assert here("cache", "build", "cache", *PARTS, *world, "--set", "subset.p=0.9", "-q").returncode == 0
    refused(here("run", "--resume", "out"), "began with another teacher_cache, so it can't go on")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--algo", "kd"], "the subset full is the whole vocabulary"),
        (["--algo", "gkd"], "samples from the student as it learns"),
        ([*PARTS, "--subset", "student-top-k"], "depends on the student"),
        ([*WEIGHTED, "--subset", "sampled"], "is drawn anew in each step"),
        ([*PARTS, "--set", "subset.include_action=true"], "subset.include_action asks"),
        (["--algo", "bd-soft-q", "--trajectories", "dataset"], "reads the teacher's whole distribution"),
    ],
)
def test_what_no_cache_holds_is_refused_before_anything_loads(here, world, arguments, why):
    refused(here("cache", "build", "cache", *arguments, *world), why)


def test_the_teacher_is_not_there_while_the_student_trains(here, world, run, tmp_path, monkeypatch):
    from distillzoo.core import distill

    assert here("cache", "build", "cache", *PARTS, *world, "-q").returncode == 0
    seen, train = [], distill._train

    def watched(loaded, *rest):
        seen.append("teacher" in vars(loaded))
        trained = train(loaded, *rest)
        seen.append("teacher" in vars(loaded))
        return trained

    monkeypatch.setattr(distill, "_train", watched)
    for extra in (["--teacher-cache", "cache"], []):
        assert here("run", *PARTS, *world, *run, *extra, "-q").returncode == 0
    assert seen == [False, False, True, True]


def test_a_shard_that_takes_too_much_memory_is_written_in_pieces(here, world, tmp_path, monkeypatch):
    assert here("cache", "build", "whole", *PARTS, *world, "-q").returncode == 0
    monkeypatch.setattr(taught, "MOST_BYTES", 5000)
    assert here("cache", "build", "pieces", *PARTS, *world, "-q").returncode == 0
    whole, pieces = (TeacherCache.open(tmp_path / name) for name in ("whole", "pieces"))
    assert len(whole.shards) == 1 < len(pieces.shards)
    found, expected = (sorted((t.prompt, t.sets.actions.tolist()) for t in c.trajectories()) for c in (pieces, whole))
    assert found == expected
    monkeypatch.setattr(taught, "MOST_BYTES", 50)
    refused(here("cache", "build", "none", *PARTS, *world), "The sets of one trajectory take more than")


def test_a_damaged_cache_is_refused(here, world, run, tmp_path):
    assert here("cache", "build", "cache", *PARTS, *world, "-q").returncode == 0
    shard = tmp_path / "cache" / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    refused(here("run", *PARTS, *world, *run, "--teacher-cache", "cache"), "is damaged: shard-00000.arrow is not what")


def test_one_build_at_a_time(here, world, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    with FileLock(tmp_path / "cache" / ".lock"):
        refused(here("cache", "build", "cache", *PARTS, *world), "Another build works on")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(here("cache", "build", "cache", *PARTS, *world), "cache build is for one process")


def test_inspect_and_verify(here, world, tmp_path):
    assert here("cache", "build", "cache", *PARTS, *world, "-q").returncode == 0
    facts = json.loads(here("cache", "inspect", "cache", "--json").stdout)
    assert facts["complete"]
    assert facts["key"]["subset"]["p"] == 0.8
    assert facts["states"] > 0
    assert "subset" in here("cache", "inspect", "cache").stdout
    assert "1 shards are as they were written" in here("cache", "verify", "cache").stdout
    shard = tmp_path / "cache" / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    broken = here("cache", "verify", "cache")
    assert broken.returncode == 1
    assert "sha256 differs" in broken.stdout


def test_a_build_that_was_killed_is_gone_on_with(here, world, tmp_path):
    """Shards of two trajectories, so that there is something to kill between."""
    program = "import distillzoo.core.cache.build as b; b.SHARD = 2; from distillzoo.core.cli.main import main; main()"
    arguments = [sys.executable, "-c", program, "cache", "build", "cut", *PARTS, *map(str, world), "-q"]
    process = subprocess.Popen(arguments, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "cut").glob("*.arrow"))) < 3:
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = TeacherCache.open(tmp_path / "cut")
    assert not kept.complete
    assert kept.verify() == []
    assert here("cache", "build", "cut", *PARTS, *world, "-q").returncode == 0
    assert here("cache", "build", "straight", *PARTS, *world, "-q").returncode == 0
    cut, straight = (TeacherCache.open(tmp_path / name) for name in ("cut", "straight"))
    assert cut.shards[: len(kept.shards)] == kept.shards, "what was there is kept"
    assert cut.entries == straight.entries
    for mine, theirs in zip(cut.trajectories(), straight.trajectories(), strict=True):
        assert mine.prompt == theirs.prompt
        assert mine.sets.actions.tolist() == theirs.sets.actions.tolist()
