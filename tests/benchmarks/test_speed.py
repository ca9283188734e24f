"""The speed bench: what its steps compute, and its figures."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from distillzoo.benchmarks.speed import measure
from distillzoo.benchmarks.speed.contenders import _dense, contenders
from distillzoo.benchmarks.speed.measure import Timing, peak_memory, timed
from distillzoo.benchmarks.speed.shapes import SHAPES, Shape
from distillzoo.benchmarks.speed.table import facts, print_table
from distillzoo.benchmarks.speed.workload import Workload, workload
from distillzoo.core.registry import installed
from distillzoo.core.step import Distillation, ask

SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = Shape("small", "llama", 97, SIZES, SIZES, sequences=3, tokens=12, prompt=4, mean_set=5.0)
CPU = torch.device("cpu")


@pytest.fixture
def work(tmp_path) -> Workload:
    return workload(SMALL, CPU, torch.float32, tmp_path / "cache")


def gradients(model, step):
    model.zero_grad()
    step()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def same(found, expected, rtol):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol * float(value.abs().max()))


def test_the_teacher_is_sharp_enough_for_sets_of_the_asked_size(work):
    stored = work.batch(work.cached).stored
    assert float(stored.size.float().mean()) == pytest.approx(5.0, rel=0.2)


def test_every_step_leaves_a_gradient_and_ours_agree(work):
    model = work.student.model
    made = contenders(work)
    found = {
        name: gradients(model, make())
        for name, make in made.items()
        if name not in ("teacher body", "reading the cache")
    }
    for name, parts in found.items():
        assert any(float(value.abs().max()) > 0 for value in parts.values()), name
    same(found["bc"], found["sft (transformers)"], 1e-4)


def test_trl_computes_what_kd_does(work):
    pytest.importorskip("trl")
    model, steps = work.student.model, contenders(work)
    same(gradients(model, steps["gkd (trl)"]()), gradients(model, steps["kd"]()), 1e-4)


def test_the_cache_gives_the_step_of_the_live_teacher(work):
    """The states that the support term is computed on are drawn, so both draw alike."""
    model, found = work.student.model, []
    for name in ("bd-iql 1/8", "bd-iql 1/8, cache"):
        step = contenders(work)[name]()
        torch.manual_seed(1)
        found.append(gradients(model, step))
    same(found[1], found[0], 1e-4)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_dense_loss_and_the_lazy_one_have_the_same_gradient(work, dtype, rtol):
    """The objective of the zoo, on hidden states and sets, against the program's tensors of logits."""
    model = work.student.model.to(dtype)
    work.teacher.model.to(dtype)
    work.subset.__dict__["k_max"] = None  # the dense loss has no cut
    subset, objective = work.subset, installed().get("objective", "iql-released")()
    module = Distillation(work.student, subset, objective, installed().get("extraction", "softmax")())

    def lazy():
        batch = work.batch(work.trajectories)
        result = module(ask(batch, batch.transitions(), work.teacher, subset, needs_view=False))
        (result.loss / result.rows).backward()

    same(gradients(model, lazy), gradients(model, _dense(work)), rtol)


@pytest.mark.parametrize(
    ("step", "alone"),
    [
        ("kd", "loss: kd"),
        ("released, dense", "loss: released, dense"),
        ("bd-iql 1/8, cache", "loss: bd-iql 1/8, cache"),
    ],
)
def test_a_loss_alone_gives_the_heads_gradient_of_the_whole_step(work, step, alone):
    model = work.student.model
    head = torch.nn.Linear(16, 97, bias=False)
    head.weight.data.copy_(model.lm_head.weight.detach())
    model.lm_head = head  # not the embedding's, which has a gradient of the body too
    untied = replace(work, student=replace(work.student, head=head))
    found = []
    for name in (step, alone):
        step = contenders(untied)[name]()
        head.weight.grad = None
        torch.manual_seed(1)
        step()
        found.append(head.weight.grad.clone())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_memory_is_that_of_the_largest_moment():
    def step():
        kept = torch.ones(1 << 20)
        for _ in range(5):
            torch.ones(1 << 18)
        del kept

    assert (5 << 20) <= peak_memory(step, CPU) <= (5 << 20) + (1 << 16)


@pytest.mark.parametrize("given", [{}, {"KINETO_LOG_LEVEL": "1"}])
def test_the_profiler_says_nothing_unless_asked(given):
    """It reads its level once a process."""
    program = (
        "import torch; from distillzoo.benchmarks.speed.measure import peak_memory; "
        "peak_memory(lambda: torch.ones(9), torch.device('cpu'))"
    )
    kept = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    run = subprocess.run([sys.executable, "-c", program], env=kept | given, capture_output=True, text=True, check=True)
    assert bool(run.stderr) == bool(given)


def test_the_table_fits_a_narrow_terminal(work, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    timing = Timing(123.456, 12.34, 12.34, 12.34, 20_000 << 20, 10**15)
    names = list(contenders(work))
    print_table(facts(work, 3, 1e11), dict.fromkeys(names, timing))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" 20,000")]
    assert max(map(len, rows)) <= 80
    for name, row in zip(names, rows, strict=True):
        assert row.startswith(f"{name} ")


def test_timings_are_ratios_to_the_first_in_the_same_round(work, monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def step(name, seconds):
        def run():
            calls.append(name)
            clock[0] += seconds[min(calls.count(name), len(seconds)) - 1]

        return run

    # the first two runs of each warm up; from then on all take longer together, as on a busy machine
    steps = {"one": step("one", [9, 9, 1, 2, 4]), "two": step("two", [9, 9, 3, 6, 12])}
    found = timed(steps, work.student.model, CPU, 3, lambda count: None)
    assert (found["one"].seconds, found["one"].ratio) == (2.0, 1.0)
    assert (found["two"].seconds, found["two"].ratio, found["two"].low, found["two"].high) == (6.0, 3.0, 3.0, 3.0)
    assert calls[4:8] == ["one", "two", "two", "one"], "in another order each round"


def test_the_command(here, tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "small", SMALL)
    result = here("bench", "speed", "--shape", "small", "--rounds", "1", "--device", "cpu", "--out", "out", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "out" / "speed.json").read_text())
    assert found["steps"]["sft (transformers)"]["ratio"] == 1.0
    assert found["steps"]["sft (transformers)"]["operations"] > found["steps"]["student body"]["operations"] > 0
    assert {"bc", "kd", "bd-iql, cache", "student body"} <= set(found["steps"])
    assert (tmp_path / "out" / "speed.svg").read_text().startswith("<svg")
    shown = here("bench", "speed", "--shape", "small", "--rounds", "1", "--device", "cpu", "--only", "bc",
                 "--vocabulary", "70", "--sequences", "2")  # fmt: skip
    assert "sft (transformers)" in shown.stdout
    assert "kd" not in shown.stdout
    assert "2 sequences" in shown.stdout
    refused = here("bench", "speed", "--shape", "smal")
    assert refused.returncode == 2
    assert "Did you mean 'small'" in refused.stderr
