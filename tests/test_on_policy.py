"""Runs whose trajectories come round by round, from the command line and in one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distillzoo.core.config import resolve
from distillzoo.core.distill import distil
from distillzoo.core.progress import Reporter
from distillzoo.core.registry import Registry
from distillzoo.core.rundir import RunDirectory
from tests.tiny import Tiny

STEPS = 20

SOURCES = {
    "student": ["trajectories.every=3"],
    "mixture": ["trajectories.student={name: student, every: 3}", "trajectories.offline={name: teacher, n: 2}"],
    "teacher-mixed": ["trajectories.every=3"],
    "adaptive-replay": [
        "trajectories.offline.name=dataset", "trajectories.initial=0.6", "trajectories.capacity=6",
        "trajectories.check_every=2", "trajectories.epsilon=0", "trajectories.every=3",
    ],
    "student-prefix": ["trajectories.prefix=3", "trajectories.every=3"],
}  # fmt: skip

Start = Callable[..., "subprocess.Popen[str]"]


def arguments(tiny: Tiny, source: str, *extra: str) -> list[str]:
    sets = [
        *SOURCES[source], "train.save_every=4", "train.log_every=1", "data.max_length=20", "data.max_prompt_length=8",
        "evaluate.limit=4", "evaluate.before=false", *extra,
    ]  # fmt: skip
    return [
        "run", "--algo", "kd", "--trajectories", source, "--teacher", str(tiny.teacher), "--student", str(tiny.student),
        "--data", str(tiny.data), "--batch-size", "8", "--max-steps", str(STEPS), "--lr", "1e-2", "--device", "cpu",
        "-q", *(part for text in sets for part in ("--set", text)),
    ]  # fmt: skip


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def command(*args: str, launcher: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "distillzoo.core.cli.main", *args],
            cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return command


def finish(process: "subprocess.Popen[str]") -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def kept(run: Path) -> Any:
    """What the source remembers at the end of a run."""
    return json.loads((run / "checkpoints" / f"checkpoint-{STEPS}" / "rounds-0.json").read_text())


def result(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


@pytest.mark.parametrize("source", [pytest.param("student", marks=pytest.mark.slow), "adaptive-replay"])
def test_killed_in_the_middle_of_a_round_and_resumed_is_one_straight_run(start, tiny, tmp_path, source):
    finish(start(*arguments(tiny, source), "--output", "straight"))
    process = start(*arguments(tiny, source), "--output", "cut")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut").glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "cut" / "result.json").exists()
    assert "continuing from" in finish(start("run", "--resume", "cut"))
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    assert result(cut)["hashes"] == result(straight)["hashes"], "the same weights to the last bit"
    assert result(cut)["scores"] == result(straight)["scores"]
    assert kept(cut) == kept(straight)
    if source == "adaptive-replay":
        memory = kept(cut)["memory"]
        assert len(memory["buffer"]) == 6
        assert memory["looked"] == 18
        assert memory["phi"] >= 0.6


def test_two_processes_sample_apart(start, tiny, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    finish(start(*arguments(tiny, "student"), "--output", "out", launcher=launcher))
    found = result(tmp_path / "out")
    assert found["training"]["steps"] == STEPS
    assert found["training"]["trajectories"] == STEPS * 8
    states = [tmp_path / "out" / "checkpoints" / "checkpoint-16" / f"rounds-{i}.json" for i in range(2)]
    left = [json.loads(path.read_text())["left"] for path in states]
    assert [len(part) for part in left] == [8, 8], "steps 16 and 17 of the round that began at 15, four sequences each"
    assert left[0] != left[1]


@pytest.fixture
def run_here(registry: Registry, tiny: Tiny, tmp_path: Path):
    def run(source: str, *extra: str) -> Any:
        flags = {
            "teacher": {"model": str(tiny.teacher)}, "student": {"model": str(tiny.student)}, "device": "cpu",
            "data": {"train": str(tiny.data), "max_length": 20, "max_prompt_length": 8},
            "train": {"max_steps": 30, "batch_size": 8, "lr": 1e-2, "log_every": 1, "save_every": 100},
            "evaluate": {"limit": 2}, "trajectories": {"name": source},
        }  # fmt: skip
        config = resolve(registry, algo="kd", flags=flags, sets=(*SOURCES[source], *extra))
        folder = tmp_path / f"{source}{len(extra)}"
        found = distil(config, registry, RunDirectory.create(folder), Reporter())
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        return found, [json.loads(row)["loss"] for row in rows]

    return run


@pytest.mark.parametrize("source", SOURCES)
def test_the_student_learns_from_each_source(run_here, source):
    found, _ = run_here(source)
    assert found["training"]["trajectories"] == 240
    assert 240 <= found["training"]["student_tokens"] <= 240 * 12
    assert found["scores"]["after"]["forward-kl"] < 0.8 * found["scores"]["before"]["forward-kl"]


def test_forward_passes_change_no_trajectory(run_here):
    _, whole = run_here("student")
    _, split = run_here("student", "train.device_batch_size=2")
    assert split[:3] == pytest.approx(whole[:3], rel=1e-4), "after a round, rounding may lead to other samples"


def test_a_mixture_without_its_parts_says_which(here):
    refused = here("run", "--algo", "kd", "--trajectories", "mixture")
    assert refused.returncode == 2
    assert "needs trajectories.student, a part: --set trajectories.student.name=NAME" in refused.stderr


def test_vllm_where_it_is_not_installed(here, tiny, tmp_path):
    refused = here(*arguments(tiny, "student", "sampler=vllm"), "--output", "out")
    assert refused.returncode == 2
    assert "pip install 'distillzoo[vllm]'" in refused.stderr
    assert not (tmp_path / "out").exists()
