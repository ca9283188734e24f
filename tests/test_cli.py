"""The command line, end to end: what works, and what people get wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.tiny import Tiny, tiny_model, word_tokenizer

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def distillzoo(tmp_path: Path) -> Command:
    """Run the program as a user does, in an empty folder."""

    def command(
        *args: object, env: dict[str, str] | None = None, **options: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "distillzoo.core.cli.main", *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, **ENVIRONMENT, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
            **options,
        )

    return command


@pytest.fixture
def small(tiny: Tiny) -> list[str]:
    """Arguments of a run on the tiny pair that takes a few seconds."""
    return [
        "--teacher", str(tiny.teacher), "--student", str(tiny.student), "--data", str(tiny.data), "--batch-size", "8",
        "--max-steps", "6", "--set", "train.log_every=2", "--set", "train.save_every=2", "--set", "evaluate.limit=4",
        "--set", "data.max_length=24", "--set", "data.max_prompt_length=8", "--set", "trajectories.n=1",
        "--lr", "1e-2", "--device", "cpu",
    ]  # fmt: skip


def without_n(arguments: list[str]) -> list[str]:
    at = arguments.index("trajectories.n=1")
    return arguments[: at - 1] + arguments[at + 1 :]


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2, one paragraph on standard error, no traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    paragraphs = [p for p in result.stderr.strip().split("\n\n") if p]
    assert len(paragraphs) == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def test_help_names_the_commands_and_loads_no_torch(distillzoo):
    result = distillzoo("--help")
    assert result.returncode == 0
    for command in ("run", "evaluate", "generate", "show", "list"):
        assert f"  {command} " in result.stdout
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "distillzoo.core.cli.main", "run", "--help"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert not any(line.endswith((" torch", " transformers", " datasets")) for line in loaded.splitlines())


def test_a_run_from_the_command_line_writes_its_directory(distillzoo, small, tmp_path):
    result = distillzoo("run", "--algo", "bd-iql", "--subset", "top-k", "--output", "out", *small)
    assert result.returncode == 0, result.stderr
    assert "student after" in result.stdout
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} >= {
        "config.yaml", "metrics.jsonl", "checkpoints", "model", "report.html", "result.json",
    }  # fmt: skip
    found = json.loads((out / "result.json").read_text())
    assert found["algo"] == "bd-iql"
    assert found["parts"]["subset"] == "top-k"
    assert set(found["scores"]) == {"teacher", "before", "after"}
    assert found["scores"]["after"]["forward-kl"] < found["scores"]["before"]["forward-kl"]
    assert found["training"]["student_tokens"] > 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4, 6]
    for name in ("imitation", "penalty", "support", "value", "subset_size", "subset_size_p95", "teacher_mass",
                 "student_mass", "action_inside"):  # fmt: skip
        assert all(name in row for row in rows), name
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert "student after" in page
    assert "http" not in page.replace("http://www.w3.org", ""), "the page is self-contained"
    assert (out / "model" / "model.safetensors").exists()
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
    assert distillzoo("generate", "out", "w1 w2", "-n", "2").returncode == 0
    scores = distillzoo("evaluate", "out", "--json")
    assert json.loads(scores.stdout)["metrics"]["forward-kl"] == pytest.approx(found["scores"]["after"]["forward-kl"])


def test_a_bare_model_can_be_evaluated_and_sampled(here, tiny):
    answer = here("generate", tiny.student, "w1 w2")
    assert answer.returncode == 0, answer.stderr
    scores = here("evaluate", tiny.student, "--data", tiny.data, "--limit", "3", "--json")
    assert scores.returncode == 0, scores.stderr
    assert json.loads(scores.stdout)["metrics"]["forward-kl"] is None
    both = here("evaluate", tiny.student, "--data", tiny.data, "--limit", "3", "--teacher", tiny.teacher, "--json")
    assert json.loads(both.stdout)["metrics"]["forward-kl"] > 0
    refused(here("evaluate", tiny.student), "pass --data")


def test_two_processes_share_a_run(distillzoo, small, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
         "distillzoo.core.cli.main", "run", "--algo", "bd-iql", *small, "--output", "out"],
        cwd=tmp_path, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("student after") == 1
    assert distillzoo("run", "--algo", "bd-iql", *small, "--output", "alone", "-q").returncode == 0
    found, alone = (json.loads((tmp_path / d / "result.json").read_text()) for d in ("out", "alone"))
    assert found["training"]["student_tokens"] > 0
    assert found["scores"]["after"]["forward-kl"] < found["scores"]["before"]["forward-kl"]
    assert found["scores"]["before"] == alone["scores"]["before"]


def test_resuming_after_the_last_step_trains_no_further(here, small, tmp_path):
    assert here("run", "--algo", "kd", *without_n(small), "--output", "out", "-q").returncode == 0
    first = json.loads((tmp_path / "out" / "result.json").read_text())
    (tmp_path / "out" / "result.json").unlink()  # as if killed in the last evaluation
    assert here("run", "--resume", "out", "-q").returncode == 0
    second = json.loads((tmp_path / "out" / "result.json").read_text())
    assert second["hashes"] == first["hashes"]
    assert second["training"]["steps"] == first["training"]["steps"] == 6


def test_a_refused_run_leaves_no_directory(here, small, tmp_path):
    refused(here("run", "--algo", "kd", *without_n(small), "--data", "typo.jsonl", "--output", "out"), "typo.jsonl")
    assert not (tmp_path / "out").exists()


def test_the_resolved_file_repeats_the_run(here, small, tmp_path):
    assert here("run", "--algo", "bc", "--output", "one", "-q", *without_n(small)).returncode == 0
    again = here("run", "--config", "one/config.yaml", "--output", "two", "--json")
    assert again.returncode == 0, again.stderr
    first, second = (json.loads((tmp_path / d / "result.json").read_text()) for d in ("one", "two"))
    assert first["hashes"] == second["hashes"]
    assert first["scores"] == second["scores"]
    assert first["config_sha256"] == second["config_sha256"]
    assert json.loads(again.stdout)["scores"] == second["scores"]


def test_killed_and_resumed_is_the_same_as_one_straight_run(distillzoo, small, tmp_path):
    steps = ["--set", "train.max_steps=40"]
    arguments = ["run", "--algo", "bd-iql", *small, *steps]
    assert distillzoo(*arguments, "--output", "straight", "-q").returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "distillzoo.core.cli.main", *arguments, "--output", "cut", "-q"],
        cwd=tmp_path, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut").glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "result.json").exists()
    half = tmp_path / "cut" / "checkpoints" / "checkpoint-39"
    half.mkdir()  # a checkpoint cut off while it was written has no trainer_state.json
    (half / "model.safetensors").write_bytes(b"half")
    resumed = distillzoo("run", "--resume", "cut")
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing from" in resumed.stderr
    first, second = (json.loads((tmp_path / d / "result.json").read_text()) for d in ("straight", "cut"))
    assert first["hashes"] == second["hashes"], "the same weights to the last bit"
    assert first["scores"] == second["scores"]
    rows = [
        [
            (row["step"], row["loss"])
            for row in map(json.loads, (tmp_path / d / "metrics.jsonl").read_text().splitlines())
        ]
        for d in ("straight", "cut")
    ]
    assert rows[0] == rows[1], "no row of the log is lost or doubled"
    refused(distillzoo("run", "--resume", "cut"), "is finished")


def test_teacher_samples_are_kept_and_reused(here, small):
    first = here("run", "--algo", "seqkd", "--output", "one", *small)
    second = here("run", "--algo", "seqkd", "--output", "two", *small)
    assert "samples read from" not in first.stderr
    assert "samples read from" in second.stderr
    third = here("run", "--algo", "seqkd", "--output", "three", *small, "--set", "trajectories.top_p=0.5")
    assert "samples read from" not in third.stderr


def test_a_pruned_student_and_a_plain_data_file(here, small):
    result = here("run", "--algo", "kd", *without_n(small), "--student", "prune:layers=2")
    assert result.returncode == 0, result.stderr
    assert "rows are held out" in result.stderr.replace("\n", " ")
    assert "runs/kd-full-1" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--algo", "bd-iq"], ["no recipe named 'bd-iq'", "'bd-iql'"]),
        ([], ["Name an algorithm", "bd-iql"]),
        (["--algo", "bd-iql", "--subset", "topp"], ["no subset named 'topp'", "'top-p'"]),
        (["--algo", "bd-iql", "--set", "subset.pp=0.9"], ["'subset.pp' is not a known field", "'p'"]),
        (["--algo", "bd-iql", "--set", "subset.p=1.5"], ["'subset.p' is 1.5", "less than or equal to 1"]),
        (["--algo", "bd-iql", "--set", "trian.lr=1"], ["'trian' is not a known field", "'train'"]),
        (["--algo", "bd-iql", "--set", "train.learning_rate=1"], ["'train.learning_rate' is not a known field"]),
        (["--algo", "bd-iql", "--set", "train.lr"], ["section.field=value"]),
        (["--algo", "bd-iql", "--config", "none.yaml"], ["none.yaml", "No such file"]),
        (["--algo", "bd-iql", "--teacher", "./none"], ["A student is needed"]),
        (["--algo", "bd-iql", "--teacher", "./none", "--student", "prune:layers=2"], ["Training data are needed"]),
        (["--algo", "bd-iql", "--data", "none.jsonl"], ["none.jsonl", "No such file"]),
        (["--algo", "bd-iql", "--data", "micro:trian"], ["no split 'trian'", "'train'"]),
        (["--algo", "bd-iql", "--device", "tpu9"], ["device 'tpu9' cannot be used"]),
        (["--algo", "bc", "--extraction", "greedy"], ["trains through the policy's log-probabilities"]),
        (["--algo", "bd-iql", "--student", "prune:layers"], ["prune:layers=N"]),
        (["--algo", "bd-iql", "--set", "data.max_length=10"], ["should be below max_length"]),
        (["--resume", "nowhere"], ["no run directory"]),
    ],
)  # fmt: skip
def test_bad_arguments_are_explained(here, arguments, parts):
    refused(here("run", *arguments), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["holds no rows"]),
        ('{"instruction": "w1", "output": "w2"}\n{"instruction": "w1"\n', ["line 2", "no valid JSON"]),
        ('{"instruction": "w1"}\n', ["line 1", "'output' should be"]),
        ('{"prompt": "w1", "output": "w2"}\n', ["line 1", "'instruction' should be", "'prompt'"]),
        ('{"instruction": "w1", "output": []}\n', ["line 1", "'output' should be"]),
        ("[1]\n", ["line 1", "should be a JSON object"]),
        ('{"messages": [{"role": "user", "content": "w1"}]}\n', ["line 1", "ends with the assistant's"]),
        ('{"instruction": "w1", "output": "w2"}\n', ["pass evaluation data with --valid"]),
    ],
)
def test_bad_data_are_explained_with_file_and_line(here, small, tmp_path, text, parts):
    (tmp_path / "bad.jsonl").write_text(text)
    refused(here("run", "--algo", "kd", *without_n(small), "--data", "bad.jsonl", "-q"), *parts)


def test_different_tokenizers_are_refused(here, small, tmp_path):
    tiny_model("llama", 2, rows=34).save_pretrained(tmp_path / "other")
    word_tokenizer(extra=("new", "newer")).save_pretrained(tmp_path / "other")
    refused(
        here("run", "--algo", "kd", *without_n(small), "--student", "other", "-q"),
        "different tokenizers",
        "'new'",
    )


def test_an_existing_run_directory_is_left_alone(here, small, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    refused(here("run", "--algo", "kd", *without_n(small), "--output", "mine"), "'mine' exists already", "--resume")
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep"


def test_no_permission_to_write(here, small, tmp_path):
    (tmp_path / "file").write_text("")
    refused(here("run", "--algo", "kd", *without_n(small), "--output", "file/out"), "run directory 'file/out'")


def test_a_full_disk_is_reported_and_the_run_can_go_on(distillzoo, small, tmp_path):
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "from distillzoo.core.cli.main import main; sys.argv = ['distillzoo', *sys.argv[1:]]; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", limited, "run", "--algo", "kd", *without_n(small), "--output", "out", "-q"],
        cwd=tmp_path, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    refused(result, "could not be written", "--resume out")
    assert distillzoo("run", "--resume", "out", "-q").returncode == 0


def test_a_plugin_part_that_raises_is_not_swallowed(distillzoo, small, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('half a plugin')")
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[distillzoo]\nbroken = broken\n")
    path = {"PYTHONPATH": str(tmp_path), "DISTILLZOO_PLUGINS": "broken"}
    result = distillzoo("list", "subsets", env=path)
    assert result.returncode == 0
    assert "Plugin 'broken' of broken was not loaded: RuntimeError: half a plugin" in result.stderr
    assert "top-p" in result.stdout
    assert "broken" not in distillzoo("list", "subsets", env={**path, "DISTILLZOO_PLUGINS": ""}).stderr


def test_list_and_show(here):
    listing = json.loads(here("list", "--json").stdout)
    names = {(row["kind"], row["name"]) for row in listing}
    assert {("subset", "top-p"), ("objective", "iql"), ("extraction", "projected-softmax"), ("trajectories", "teacher"),
            ("recipe", "bd-iql"), ("metric", "right"), ("suite", "micro")} <= names  # fmt: skip
    assert all(row["origin"].startswith("distillzoo ") and row["summary"] for row in listing)
    shown = here("show", "subset", "top-p").stdout
    for part in ("k_max", "0.8", "arXiv:2505.20335", "sum_{i <= m}"):
        assert part in shown
    recipe = here("show", "bd-iql").stdout
    for part in ("support_weight", "arXiv:2505.20335", "differs", "gamma"):
        assert part in recipe
    config = yaml.safe_load(here("show", "config", "bd-iql", "--set", "subset.p=0.9").stdout)
    assert config["subset"]["p"] == 0.9
    assert config["student"]["model"] == "micro:student"
    refused(here("show", "top-q"), "'top-q'", "'top-p'")
    refused(here("list", "subset-s"), "There is no kind")


def test_an_unknown_command_gets_a_suggestion(here):
    result = here("evaluat")
    assert result.returncode == 2
    assert "Did you mean 'evaluate'" in result.stderr


@pytest.mark.parametrize("mode", ["offline"])
def test_wandb_offline(distillzoo, small, tmp_path, mode):
    result = distillzoo("run", "--algo", "kd", *without_n(small), "--output", "out", "-q", "--wandb",
                        env={"WANDB_MODE": mode, "WANDB_SILENT": "true"})  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "out" / "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_compiled_bodies_train_the_same_student(here, small, tmp_path, monkeypatch):
    monkeypatch.setattr("torch._dynamo.config.fail_on_recompile_limit_hit", True)
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        result = here("run", "--algo", "kd", "--trajectories", "teacher", *small, "--output", name, "-q", *flags)
        assert result.returncode == 0, result.stderr
    plain, compiled = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4)


def test_compiling_without_a_compiler_is_refused(here, small, monkeypatch):
    monkeypatch.setattr("distillzoo.core.cli.run.shutil.which", lambda name: None)
    refused(here("run", "--algo", "kd", *without_n(small), "--compile"), "--compile", "C++ compiler", "g++")
