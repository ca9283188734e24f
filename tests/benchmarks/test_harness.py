"""``distillzoo bench run``: the matrix, its cells and what is left of it after a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distillzoo.benchmarks.harness.benchmark import Benchmark, renamed, with_inputs
from distillzoo.benchmarks.harness.cell import CELL, ROW, configuration
from distillzoo.benchmarks.harness.executors import Local, chosen_executor
from distillzoo.benchmarks.harness.matrix import run_matrix
from distillzoo.benchmarks.harness.plan import Cell, plan, suite_hash
from distillzoo.benchmarks.harness.row import Row, parse_row, read_rows
from distillzoo.benchmarks.harness.scores import must_be_pinned
from distillzoo.core.errors import UserError
from distillzoo.core.recipe import read_yaml
from distillzoo.core.registry import Registry, installed
from tests.benchmarks.rows import row

Here = Callable[..., "subprocess.CompletedProcess[str]"]

TOY = """
title: A few steps on the micro world
version: 3
about: for tests
pairs:
  micro: {teacher: micro, student: micro}
run:
  data: {train: micro, valid: micro, limit: 12, max_length: 160, max_prompt_length: 64}
  train: {max_steps: 6, batch_size: 4, save_every: 2}
  evaluate: {batch_size: 8, limit: 4}
settings: micro
tasks:
  test: {data: "micro:test", limit: 4}
decodings:
  top-p 1.0: {temperature: 1.0, top_p: 1.0, metrics: [right, reverse-kl]}
  top-p 0.8: {temperature: 1.0, top_p: 0.8, metrics: [right]}
headline: {metric: right, decoding: top-p 1.0}
curve: {every: 3, metrics: [right], decoding: top-p 1.0, limit: 4}
seeds: 2
answers_may_be_published: true
"""

RECIPE = """
title: Behaviour cloning by a stranger
version: 7
paper: ours
formula: -log pi(a|s)
run: {subset: {name: full}, objective: {name: nll}, train: {lr: 1.0e-3}}
"""

BROKEN = RECIPE.replace("train: {lr: 1.0e-3}", "train: {lr: 1.0e+30, max_grad_norm: 1.0e+30}")

HOOKS = """
from pathlib import Path
from distillzoo.core import hookimpl

@hookimpl
def register_benchmarks(register):
    register("toy", Path(__file__).parent / "toy.yaml")
    register("toy-cached", Path(__file__).parent / "toy-cached.yaml")

@hookimpl
def register_recipes(register):
    register("strangers-bc", Path(__file__).parent / "strangers-bc.yaml")
    register("diverging", Path(__file__).parent / "diverging.yaml")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A plugin with a benchmark and two recipes, one of which diverges, as pip would put it on a path."""
    site = tmp_path / "site"
    facts = site / "strange_zoo-0.3.dist-info"
    facts.mkdir(parents=True)
    (site / "toy.yaml").write_text(TOY)
    (site / "toy-cached.yaml").write_text(
        TOY.replace("{teacher: micro, student: micro}", "{teacher: micro, student: 'prune:layers=2'}")
        + "teacher_cache: true\nstudent_start: {algo: bc, run: {train: {max_steps: 2}}}\n"
    )
    (site / "strangers-bc.yaml").write_text(RECIPE)
    (site / "diverging.yaml").write_text(BROKEN)
    (site / "strange_zoo.py").write_text(HOOKS)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-zoo\nVersion: 0.3\n")
    (facts / "entry_points.txt").write_text("[distillzoo]\nstrange = strange_zoo\n")
    return site


@pytest.fixture
def start(tmp_path: Path, site: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*args: object) -> "subprocess.Popen[str]":
        environment = {**os.environ, "DISTILLZOO_PLUGINS": "strange-zoo", "PYTHONPATH": str(site), "COLUMNS": "120"}
        process = subprocess.Popen(
            [sys.executable, "-m", "distillzoo.core.cli.main", "bench", "run", *map(str, args)],
            cwd=tmp_path,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def measured(row: Row) -> dict[str, Any]:
    """A row without what another run of the same cell may change: seconds and memory."""
    tree = row.model_dump(mode="json")
    for name in [name for name in tree["cost"] if "second" in name or name == "peak_memory_bytes"]:
        tree["cost"].pop(name)
    for point in tree["curve"]:
        point.pop("seconds")
    return tree


def test_a_matrix_runs_a_strangers_recipe_notes_failures_and_resumes(start: Any, tmp_path: Path) -> None:
    process = start("toy", "--algos", "strangers-bc,diverging", "--seed", 0, "--out", "out", "--jobs", 2)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert "1 of 2 cells done, 1 failed" in out
    assert "diverging" in errors
    assert "not finite" in errors
    assert "Traceback" not in errors
    rows = {row.algo: row for row in read_rows(tmp_path / "out" / "results.jsonl")}
    good, bad = rows["strangers-bc"], rows["diverging"]
    assert (bad.status, good.status) == ("failed", "done")
    assert "not finite" in str(bad.error)
    assert (good.recipe.distribution, good.recipe.version, good.recipe_version) == ("strange-zoo", "0.3", 7)
    assert good.suite_distribution == "strange-zoo 0.3"
    assert good.parts["objective"].distribution == "distillzoo"
    assert {(s.decoding, s.metric) for s in good.scores} == {
        *(("top-p 1.0", name) for name in ("right", "reverse-kl")),
        ("top-p 0.8", "right"),
    }
    assert [point.step for point in good.curve] == [0, 3, 6]
    assert good.cost is not None
    assert good.cost.student_tokens == good.curve[-1].student_tokens > 0
    assert good.cost.sampled_tokens == good.cost.teacher_tokens == 0, "cloning references asks no teacher"
    assert set(good.references) == {"teacher", "student before"}
    assert {"teacher", "student_before", "student_after", "tokenizer", "data", "task test"} <= set(good.hashes)
    assert str(tmp_path) not in good.line(), "a row names no path of the machine"
    answers = (tmp_path / "out" / str(good.outputs)).read_text().splitlines()
    assert len(answers) == 2 * 4
    assert {"instruction", "answer", "reference", "right"} <= set(json.loads(answers[0]))

    fewer = ("--set", "suite.tasks.test.limit=2", "--set", "train.max_steps=3")
    assert start("toy", "--algos", "strangers-bc", "--seed", 0, "--out", "fewer", "-q", *fewer).wait(300) == 0
    [less] = read_rows(tmp_path / "fewer" / "results.jsonl")
    assert {score.n for score in less.scores} == {2}
    assert (less.steps, less.changes) == (3, list(fewer[1::2]))
    assert less.suite_sha256 != good.suite_sha256, "another suite"

    again = start("toy", "--algos", "strangers-bc", "--seed", 0, "--out", "again", "-q")
    assert again.wait(300) == 0
    assert measured(read_rows(tmp_path / "again" / "results.jsonl")[0]) == measured(good), "one seed, one result"

    before = (tmp_path / "out" / "results.jsonl").read_text()
    resumed = start("toy", "--algos", "strangers-bc", "--seed", 0, "--out", "out", "--resume")
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0
    assert "1 of 1 cells are done already" in errors
    assert (tmp_path / "out" / "results.jsonl").read_text() == before


def killed_and_resumed(start: Any, tmp_path: Path, kills: int, algos: str, seeds: int) -> None:
    straight = start("toy", "--algos", algos, "--seeds", seeds, "--out", "straight", "--jobs", 2)
    begun = time.perf_counter()
    assert straight.wait(600) == 0, straight.communicate()
    took = time.perf_counter() - begun
    generator = random.Random(0)
    for kill in range(kills):
        process = start("toy", "--algos", algos, "--seeds", seeds, "--out", "killed", "--jobs", 2, "--resume")
        time.sleep(generator.uniform(0.2, 0.8) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        results = tmp_path / "killed" / "results.jsonl"
        if results.exists():
            assert all(row.status == "done" for row in read_rows(results)), f"kill {kill}"
    last = start("toy", "--algos", algos, "--seeds", seeds, "--out", "killed", "--jobs", 2, "--resume")
    assert last.wait(600) == 0, last.communicate()
    rows = [read_rows(tmp_path / name / "results.jsonl") for name in ("straight", "killed")]
    assert [measured(row) for row in rows[1]] == [measured(row) for row in rows[0]]


def test_a_killed_matrix_goes_on_to_the_same_rows(start: Any, tmp_path: Path) -> None:
    killed_and_resumed(start, tmp_path, kills=1, algos="imitkd", seeds=1)


def test_a_kill_before_the_first_checkpoint_leaves_one_point_a_step(start: Any, tmp_path: Path) -> None:
    arguments = ("toy", "--algos", "strangers-bc", "--seed", 0, "--out", "out", "--resume")
    process = start(*arguments)
    curve = tmp_path / "out/cells/micro--strangers-bc--seed0/run/curve.jsonl"
    while not curve.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(*arguments).wait(300) == 0
    [row] = read_rows(tmp_path / "out" / "results.jsonl")
    assert [point.step for point in row.curve] == [0, 3, 6]


@pytest.mark.slow
def test_ten_kills_change_no_row(start: Any, tmp_path: Path) -> None:
    killed_and_resumed(start, tmp_path, kills=10, algos="strangers-bc,bd-iql,imitkd", seeds=2)


def test_shared_work_is_done_once(start: Any, tmp_path: Path) -> None:
    process = start("toy-cached", "--algos", "bd-iql,kd", "--seed", 0, "--out", "out", "--jobs", 2)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    made = sorted(path.name.split("-")[0] for path in (tmp_path / "out" / "shared").iterdir() if path.is_dir())
    assert made == ["cache", "start"], "one start for both, and a cache for the one that needs no more than sets"
    rows = {row.algo: row for row in read_rows(tmp_path / "out" / "results.jsonl")}
    assert rows["bd-iql"].config["teacher_cache"] == "shared:teacher-cache"
    assert rows["kd"].config["teacher_cache"] is None
    assert rows["kd"].config["student"]["model"] == "start:student"
    assert rows["kd"].hashes["student_before"] == rows["bd-iql"].hashes["student_before"]
    assert rows["bd-iql"].cost is not None
    assert rows["bd-iql"].cost.teacher_tokens > 0, "what built the cache is paid for"
    assert not any(str(tmp_path) in row.line() for row in rows.values())


def test_an_executor_whose_process_dies_leaves_a_failed_row(tmp_path: Path, registry: Registry) -> None:
    class Dying:
        jobs = 1
        threads = None

        def run(self, folders: Any) -> Any:
            from distillzoo.benchmarks.harness.executors import LOG, Event

            for folder in folders:
                yield Event("began", folder)
                (folder / LOG).write_text("loading\nKilled\n")
                yield Event("ended", folder, -9)

    standing = run_matrix([cell_of(registry)], tmp_path / "out", Dying(), False, lambda standing: None)
    [(_, row)] = standing.failed
    assert "status -9" in str(row.error)
    assert "Killed" in str(row.error)
    assert read_rows(tmp_path / "out" / "results.jsonl") == [row]
    with pytest.raises(UserError, match="holds a matrix already"):
        run_matrix([cell_of(registry)], tmp_path / "out", Dying(), False, lambda standing: None)


def test_a_matrix_does_not_go_on_with_another_number_of_threads(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, done = cell_of(registry), row("kd", 3)
    folder = tmp_path / "cells" / cell.folder
    folder.mkdir(parents=True)
    (folder / CELL).write_text(cell.to_json())
    (folder / ROW).write_text(done.model_dump_json())
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(UserError, match=r"ran with 1 thread.* would have 2 now.*Set OMP_NUM_THREADS=1"):
        run_matrix([cell], tmp_path, Local(1, gpus=[]), True, lambda standing: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run_matrix([cell], tmp_path, Local(1, gpus=[]), True, lambda standing: None).skipped == 1


@pytest.mark.parametrize(
    ("device", "visible", "shared_out"),
    [
        ("auto", None, ["0", "1"]),
        ("cuda", "3,5", ["3", "5"]),
        ("cuda:1", None, ["1"]),
        ("cuda:1", "3,5", ["5"]),
        ("cpu", None, []),
    ],
)
def test_a_cell_sees_its_own_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, shared_out: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    seen: list[str | None] = []

    class Process:
        def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
            seen.append(env.get("CUDA_VISIBLE_DEVICES"))

        def poll(self) -> int:
            return 0

    monkeypatch.setattr("subprocess.Popen", Process)
    monkeypatch.setattr("distillzoo.benchmarks.harness.executors.TICK", 0)
    executor = chosen_executor("local", None, device)
    assert executor.jobs == (len(shared_out) or os.cpu_count())
    assert {event.what for event in executor.run([tmp_path] * executor.jobs)} == {"began", "ended", "waiting"}
    assert seen == (shared_out or [visible] * executor.jobs)


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for device, wrong in (("cuda", "torch sees none"), ("cuda:1", "numbered from 0")):
        refused = here("bench", "run", "micro", "--algos", "bc", "--device", device)
        assert refused.returncode == 2
        assert wrong in refused.stderr
    refused = here("bench", "run", "micro", "--algos", "bc", "--device", "cuda:1", "--executor", "ray")
    assert refused.returncode == 2
    assert "ray chooses the GPU" in refused.stderr


def test_what_a_curve_measures_is_among_the_scores(registry: Registry) -> None:
    tree = read_yaml(Path(registry.get("benchmark", "micro")))
    tree["curve"]["metrics"] = ["righ"]
    with pytest.raises(ValidationError, match=r"'righ', which no decoding measures\. Did you mean 'right'"):
        Benchmark.model_validate(tree)


def cell_of(registry: Registry, **changed: Any) -> Cell:
    file = Path(registry.get("benchmark", "micro"))
    values = {"suite": "micro", "file": str(file), "pair": "micro", "algo": "kd", "subset": None, "seed": 3}
    return Cell(**{**values, "inputs": {}, "changes": (), "device": "cpu", **changed})


def test_the_suite_holds_over_a_recipe_and_the_cell_over_the_suite(registry: Registry) -> None:
    benchmark = Benchmark.read(Path(registry.get("benchmark", "micro")))
    models = {"teacher": "micro", "student": "micro"}
    config = configuration(cell_of(registry), benchmark, registry, benchmark.pairs["micro"], models)
    recipe = read_yaml(Path(registry.get("recipe", "kd")))
    assert config.train.lr == recipe["settings"]["micro"]["train"]["lr"], "tuned settings are the recipe's"
    assert (config.train.max_steps, config.train.batch_size, config.seed) == (200, 64, 3)
    assert (config.curve.every, config.evaluate.before) == (25, False)
    replaced = configuration(
        cell_of(registry, subset="top-k", changes=("train.max_steps=5",)),
        benchmark, registry, benchmark.pairs["micro"], models,
    )  # fmt: skip
    assert (replaced.subset.name, replaced.train.max_steps) == ("top-k", 5)


def test_settings_over_a_suite_make_another_suite_of_it(registry: Registry) -> None:
    file = Path(registry.get("benchmark", "micro"))
    plain = suite_hash(file, ())
    assert plain != suite_hash(file, ("a=1",)) == suite_hash(file, ("a=1",)) != suite_hash(file, ("a=2",))


def test_the_plan_goes_seed_by_seed(registry: Registry) -> None:
    file = Path(registry.get("benchmark", "micro"))
    cells = plan(
        registry, "micro", Benchmark.read(file), algos=["kd", "bc"], subsets=["top-p", "top-k"], pairs=[],
        seeds=range(2), inputs={}, changes=(), device="cpu", file=file,
    )  # fmt: skip
    assert [(cell.seed, cell.algo, cell.subset) for cell in cells] == [
        (seed, algo, subset) for seed in (0, 1) for algo in ("kd", "bc") for subset in ("top-p", "top-k")
    ]
    assert len({cell.folder for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nope",), "no benchmark named 'nope'"),
        (("micro", "--algos", "kdd"), "Did you mean 'kd'"),
        (("micro", "--subsets", "top-q"), "Did you mean"),
        (("micro", "--pairs", "big"), "no pair 'big'"),
        (("micro", "--input", "train=x"), "no such input"),
        (("micro", "--input", "train"), "NAME=VALUE"),
        (("micro", "--seeds", "2", "--seed", "1"), "exclude"),
        (("micro", "--set", "train.lrr=1"), "'train.lrr' is not a known field"),
        (("micro", "--set", "seed=5"), "the cell's own"),
        (
            ("micro", "--set", "suite.tasks.test.limt=5"),
            "tasks.test.limt' is not a known field. Did you mean 'limit'",
        ),
        (("micro", "--set", "suite.headline.decoding=top-p 0.9"), "no decoding here"),
        (("smol", "--algos", "kd"), "--input vicuna=PATH: Vicuna"),
        (
            ("smol", "--input", "train=nofile.jsonl", *(f"--input={n}=x" for n in ("valid", "selfinst", "vicuna"))),
            "no such",
        ),
        (("micro", "--algos", ""), "names nothing"),
        (("micro", "--device", "gpu"), "should be auto, cpu, cuda, cuda:N or mps"),
        (("micro.yaml",), "a plugin registers it under a name"),
    ],
)
def test_wrong_arguments_are_told(here: Here, words: tuple[str, ...], said: str) -> None:
    result = here("bench", "run", *words)
    assert result.returncode == 2, result.stderr
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def benchmark_with(**changed: Any) -> dict[str, Any]:
    import yaml

    tree: dict[str, Any] = yaml.safe_load(TOY)
    return {**tree, **changed}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"headline": {"metric": "right", "decoding": "greedy"}}, "no decoding here"),
        ({"headline": {"metric": "rouge-l", "decoding": "top-p 1.0"}}, "not measured"),
        ({"tasks": {"own": {"data": "input:mine"}}}, "inputs has no 'mine'"),
        ({"seeds": 0}, "greater than or equal to 1"),
        ({"extra": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_benchmark_that_does_not_fit_together_is_refused(changed: dict[str, Any], said: str) -> None:
    Benchmark.model_validate(benchmark_with())
    with pytest.raises(ValidationError, match=said):
        Benchmark.model_validate(benchmark_with(**changed))


def test_inputs_are_replaced_and_named_again(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("{}\n")
    tree = benchmark_with(
        inputs={"train": {"about": "rows", "sha256": "0" * 64}}, tasks={"own": {"data": "input:train"}}
    )
    benchmark = Benchmark.model_validate(tree)
    with pytest.raises(UserError, match="sha256"):
        benchmark.given({"train": str(file)})
    given = {"train": str(file)}
    filled = with_inputs(tree["tasks"], given)
    assert filled == {"own": {"data": str(file)}}
    assert renamed(filled, {str(file): "input:train"}) == tree["tasks"]


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    for line, said in (("{", "no valid JSON"), ("[]", "JSON object"), ('{"schema_version": 2}', "reads 1")):
        with pytest.raises(UserError, match=said):
            parse_row(line, "results.jsonl, line 4")


@pytest.mark.parametrize(("name", "said"), [("cell.json", "is no cell's file"), ("row.json", "no valid JSON")])
def test_a_damaged_file_is_named_with_the_way_out(here: Here, tmp_path: Path, name: str, said: str) -> None:
    cell = cell_of(installed())
    folder = tmp_path / "out" / "cells" / cell.folder
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(cell.to_json())
    (folder / name).write_text('{"suite": ')
    result = here("bench", "run", "micro", "--algos", cell.algo, "--seed", cell.seed, "--out", "out", "--resume")
    assert result.returncode == 2
    told = " ".join(result.stderr.split())
    assert said in told
    assert f"Remove '{folder}'" in told


def test_ray_runs_the_same_matrix(start: Any, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        os.environ["RAY_ADDRESS"] = cluster.address
        process = start("toy", "--algos", "strangers-bc,bc", "--seed", 0, "--out", "ray", "--executor", "ray")
        out, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
        assert "2 of 2 cells done" in out
    finally:
        del os.environ["RAY_ADDRESS"]
        cluster.shutdown()
    local = start("toy", "--algos", "strangers-bc,bc", "--seed", 0, "--out", "local", "--jobs", 1)
    assert local.wait(400) == 0
    rows = [read_rows(tmp_path / name / "results.jsonl") for name in ("local", "ray")]
    assert [measured(row) for row in rows[1]] == [measured(row) for row in rows[0]]
    assert ray.__version__


def test_other_models_than_the_pinned_ones_are_refused(registry: Registry) -> None:
    benchmark = Benchmark.read(Path(registry.get("benchmark", "micro")))
    models = {"teacher": "micro", "student": "micro"}
    config = configuration(cell_of(registry), benchmark, registry, benchmark.pairs["micro"], models)
    rows = {"data", "task test"}
    published = next(iter(read_rows(Path(__file__).parents[2] / "benchmarks/results/micro/results.jsonl"))).hashes
    right = {**benchmark.hashes, **{name: published[name] for name in rows}}
    must_be_pinned(cell_of(registry), benchmark.model_copy(update={"hashes": right}), registry, config)
    for name in ("tokenizer", "task test", "task tset"):
        other = benchmark.model_copy(update={"hashes": {**right, name: "0" * 64}})
        with pytest.raises(UserError, match=rf"hashes\.{name} of the benchmark is 0000"):
            must_be_pinned(cell_of(registry), other, registry, config)
