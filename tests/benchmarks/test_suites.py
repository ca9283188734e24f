"""The benchmarks that come with the program, and their miniatures for --dry-run."""

import json
import re
from pathlib import Path

import pytest

from distillzoo.benchmarks.harness.benchmark import Benchmark, Input, Pair, benchmark_of
from distillzoo.benchmarks.harness.cell import configuration
from distillzoo.benchmarks.harness.dry_run import miniature, write
from distillzoo.benchmarks.harness.plan import Cell
from distillzoo.core.data import Encoder, Truncation, end_token, load_rows
from distillzoo.core.errors import UserError
from distillzoo.core.models import load_tokenizer
from distillzoo.core.world import World

SUITES = ("micro", "paper-gpt2", "paper-opt", "paper-qwen", "smol")

DOCS = (Path(__file__).parent.parent.parent / "docs" / "benchmarks.md").read_text()


def suite(registry, name):
    return benchmark_of(registry, name)[0]


def cell_config(registry, benchmark, inputs, algo, pair):
    """What a cell trains with; the starts, which take a training of their own, are passed over."""
    chosen = Pair.model_validate(
        {**benchmark.pairs[pair].model_dump(), "teacher": resolved(benchmark.pairs[pair].teacher, inputs)}
    )
    cell = Cell("suite", "file", pair, algo, None, 0, inputs, (), "cpu")
    models = {"teacher": chosen.teacher, "student": chosen.student}
    return configuration(cell, benchmark, registry, chosen, models)


def resolved(text, inputs):
    return inputs.get(text.removeprefix("input:"), text)


def offline(benchmark, folder):
    """A benchmark as it is but for its models, so that no hub is asked for their architecture."""
    small, inputs = miniature(benchmark, folder, {})
    pairs = {
        name: pair.model_copy(update={"teacher": small.pairs[name].teacher, "student": small.pairs[name].student})
        for name, pair in benchmark.pairs.items()
    }
    return benchmark.model_copy(update={"pairs": pairs}), inputs


def test_all_are_registered_and_in_the_documents(registry):
    assert set(SUITES) <= set(registry.names("benchmark"))
    for name in SUITES:
        assert f"| `{name}` |" in DOCS


@pytest.mark.parametrize("name", SUITES)
def test_all_that_a_suite_names_exists(registry, name):
    benchmark = suite(registry, name)
    for decoding in benchmark.decodings.values():
        assert set(decoding.metrics) <= set(registry.names("metric"))
    assert set(benchmark.algorithms) <= set(registry.names("recipe"))


@pytest.mark.parametrize("name", SUITES)
def test_every_algorithm_has_the_same_budget_data_and_lengths(registry, name, tmp_path):
    benchmark, inputs = offline(suite(registry, name), tmp_path)
    for pair in benchmark.pairs:
        found = [cell_config(registry, benchmark, inputs, algo, pair) for algo in registry.names("recipe")]
        assert {(c.train.max_steps, c.train.batch_size) for c in found} == {
            (benchmark.run["train"]["max_steps"], benchmark.run["train"]["batch_size"])
        }
        assert len({c.data.model_dump_json() for c in found}) == 1
        assert all(c.lm.data == inputs["corpus"] for c in found if c.lm.weight > 0 and "corpus" in inputs)


def test_smol_sets_a_learning_rate_for_every_recipe(registry):
    """No recipe has settings of that name, and the recipes' own rates are for long runs."""
    benchmark = suite(registry, "smol")
    assert set(benchmark.algorithms) == set(registry.names("recipe"))
    assert all(tree["train"]["lr"] >= 5e-5 for tree in benchmark.algorithms.values())


def test_the_papers_suites_take_the_settings_of_their_family(registry, tmp_path):
    """The recipe's weight decay for OPT and GPT-2 is 0.01, without such settings it is 0."""
    for name, lr in (("paper-gpt2", 5e-4), ("paper-opt", 5e-5), ("paper-qwen", 5e-4)):
        benchmark, inputs = offline(suite(registry, name), tmp_path / name)
        for pair in benchmark.pairs:
            train = cell_config(registry, benchmark, inputs, "kd", pair).train
            assert (train.lr, train.weight_decay) == (lr, 1e-2)


BILLIONS = {"paper-gpt2": ((1.558, 48), ((0.124, 12), (0.355, 24), (0.774, 36))),
            "paper-opt": ((6.658, 32), ((0.125, 12), (0.331, 24), (1.316, 24))),
            "paper-qwen": ((3.086, 36), ((0.494, 24),))}  # fmt: skip
"""Parameters and layers of the teacher and of the students."""


@pytest.mark.parametrize("name", BILLIONS)
def test_gpu_hours_are_those_of_the_formula_in_the_documents(registry, name):
    (teacher, teacher_layers), students = BILLIONS[name]
    for pair, (student, layers) in zip(suite(registry, name).pairs.values(), students, strict=True):
        training = 5000 * 64 * 512 * (6 * student + 2 * teacher) * 1e9 / (0.35 * 989e12)
        batches = (46 * 2 + 51 * 2) * layers + 46 * teacher_layers
        hours = (training + batches * 256 * 0.0008) / 3600
        assert pair.gpu_hours == round(hours, 1)
        assert f"{student:.3f} | {teacher_layers}, {layers} |" in DOCS


def test_the_commands_in_the_documents_give_just_the_inputs_without_a_default(registry):
    commands = DOCS.replace("\\\n", " ")
    for name in SUITES:
        (line,) = re.findall(rf"^distillzoo bench run {name} --algos.*$", commands, re.MULTILINE)
        needed = {key for key, one in suite(registry, name).inputs.items() if one.default is None}
        assert set(re.findall(r"--input (\w+)=", line)) == needed


def test_the_example_in_the_documents_is_a_benchmark(tmp_path):
    (tmp_path / "x.yaml").write_text(re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)[1])
    assert Benchmark.read(tmp_path / "x.yaml").seeds == 5


@pytest.mark.parametrize("name", SUITES)
def test_a_miniature_loads_without_a_hub(registry, name, tmp_path):
    """Its models are of the suite's architecture with a larger teacher; the prompts fit, its data have the columns."""
    benchmark = suite(registry, name)
    small, inputs = miniature(benchmark, tmp_path, {})
    assert Benchmark.read(write(small, tmp_path / "x.yaml")) == small
    assert small.given(inputs).keys() == benchmark.inputs.keys()
    for pair in small.pairs:
        config = cell_config(registry, small, inputs, "bd-iql", pair)
        world = World(config, registry)
        world.load()
        assert world.teacher_parameters > world.student.model.num_parameters()
        architecture = benchmark.pairs[pair].architecture
        kinds = {model.model.config.model_type for model in (world.teacher, world.student)}
        assert kinds == {architecture or "llama"}
        assert world.train_prompts
        assert world.truncation.prompts == 0
        tokenizer = load_tokenizer(config.teacher, registry)
        for task in small.tasks.values():
            data = config.data.model_copy(update={"columns": task.columns})
            rows, _ = load_rows(resolved(task.data, inputs), data, registry, "test")
            truncation = Truncation()
            Encoder(tokenizer, end_token(tokenizer), data).encode(rows[: task.limit], truncation)
            assert truncation.prompts == 0


def test_a_miniature_keeps_algorithms_decodings_and_metrics(registry, tmp_path):
    benchmark = suite(registry, "smol")
    small, _ = miniature(benchmark, tmp_path, {})
    for field in ("algorithms", "decodings", "headline", "settings", "seeds", "version"):
        assert getattr(small, field) == getattr(benchmark, field)
    assert small.run["train"]["max_steps"] == small.student_start.run["train"]["max_steps"] == 2
    assert small.curve.every == 1
    assert small.pairs["135m-10-layers"].student == "prune:layers=2"


def altered(benchmark, **pair):
    (name,) = benchmark.pairs
    return benchmark.model_copy(update={"pairs": {name: benchmark.pairs[name].model_copy(update=pair)}})


def test_a_folder_says_its_architecture_itself(registry, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    _, inputs = miniature(suite(registry, "smol"), tmp_path / "small", {"teacher": str(given)})
    assert json.loads((Path(inputs["teacher"]) / "config.json").read_text())["model_type"] == "gpt2"


@pytest.mark.parametrize(
    ("architecture", "words"),
    [(None, "is not known"), ("mamba", "'mamba' has no tiny model")],
)
def test_a_pair_whose_architecture_cannot_be_found_is_explained(registry, tmp_path, architecture, words):
    benchmark = altered(suite(registry, "paper-qwen"), teacher="nobody/nothing", architecture=architecture)
    with pytest.raises(UserError, match=rf"teacher of pair '3b-0\.5b' {words}.*gpt2, opt, llama, qwen2"):
        miniature(benchmark, tmp_path, {})


def test_a_file_that_a_suite_pins_is_not_asked_for_in_miniature(registry, tmp_path):
    benchmark = suite(registry, "smol")
    pinned = benchmark.model_copy(update={"inputs": {**benchmark.inputs, "train": Input(about="x", sha256="0" * 64)}})
    small, inputs = miniature(pinned, tmp_path, {})
    assert small.given(inputs)["train"] == inputs["train"]


def test_further_columns_serve_too(registry, tmp_path):
    benchmark = suite(registry, "paper-qwen")
    task = benchmark.tasks["dolly"].model_copy(update={"columns": {"messages": "turns"}})
    _, inputs = miniature(benchmark.model_copy(update={"tasks": {"dolly": task}}), tmp_path, {})
    row = json.loads(Path(inputs["dolly"]).read_text().splitlines()[0])
    assert [turn["role"] for turn in row["turns"]] == ["user", "assistant"]
    assert row["response"] == row["output"]
    assert row["text"].startswith(row["instruction"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_a_dry_run_of_a_suite(here, name):
    done = here("bench", "run", name, "--dry-run", "--algos", "kd,gkd,bd-iql-released", "--jobs", "1", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
