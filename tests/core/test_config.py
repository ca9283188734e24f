"""The configuration: sources, order, validation, round trip."""

from pathlib import Path

import pytest
import yaml

from distillzoo.core.config import assignments, build_part, dump, merge, resolve
from distillzoo.core.errors import UserError


def test_each_source_overrides_those_before_it(registry, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("train: {lr: 0.2, max_steps: 7}\nsubset: {p: 0.5}\n")
    config = resolve(registry, algo="bd-iql", file=file, flags={"train": {"max_steps": 8}}, sets=("subset.p=0.6",))
    assert config.train.lr == 0.2, "the file overrides the recipe"
    assert config.train.max_steps == 8, "a flag overrides the file"
    assert build_part(registry, config, "subset").p == 0.6, "--set overrides all"
    assert build_part(registry, config, "objective").alpha == 50.0, "the recipe overrides the part's default"


def test_a_recipes_settings_follow_the_teachers_family(registry):
    config = resolve(registry, algo="bd-iql")
    assert (config.teacher.model, config.train.lr) == ("micro", 3e-3)
    other = {"teacher": {"model": "./x"}, "student": {"model": "./y"}, "data": {"train": "z.jsonl"}}
    assert resolve(registry, algo="bd-iql", flags=other).train.lr == 5e-6


def test_a_folder_that_is_called_as_a_suite_hides_no_suite(registry, tmp_path, monkeypatch):
    (tmp_path / "micro").mkdir()
    monkeypatch.chdir(tmp_path)
    config = resolve(registry, algo="bd-iql", flags={"teacher": {"model": "micro"}, "student": {"model": "micro"}})
    assert (config.teacher.model, config.student.model) == ("micro", "micro:student")


def test_another_part_drops_the_old_parts_parameters(registry):
    config = resolve(registry, algo="bd-iql", flags={"subset": {"name": "top-k"}})
    assert config.subset.params == {"k": 32, "include_action": False}
    same = resolve(registry, algo="bd-iql", flags={"subset": {"name": "top-p"}})
    assert same.subset.params["k_max"] == 64, "naming the same part again keeps the recipe's"


@pytest.mark.parametrize("algo", ["bc", "kd", "seqkd", "bd-iql"])
def test_the_resolved_tree_resolves_to_itself(registry, tmp_path, algo):
    config = resolve(registry, algo=algo, sets=("subset.include_action=true", "seed=3"))
    (tmp_path / "c.yaml").write_text(dump(config))
    assert resolve(registry, file=tmp_path / "c.yaml") == config


def test_the_resolved_tree_says_every_default(registry):
    tree = yaml.safe_load(dump(resolve(registry, algo="bd-iql")))
    assert tree["objective"]["gamma"] == 0.99
    assert tree["evaluate"]["metrics"] == ["right", "rouge-l", "forward-kl", "reverse-kl"]
    assert "output" not in tree


def test_numbers_that_yaml_takes_for_text():
    assert assignments(("train.lr=1e-3", "train.max_steps=5", "a.b=null", "a.c=[x, y]")) == {
        "train": {"lr": 0.001, "max_steps": 5}, "a": {"b": None, "c": ["x", "y"]},
    }  # fmt: skip


def test_another_model_drops_the_old_ones_revision_and_trust():
    low = {"teacher": {"model": "a", "revision": "v1", "trust_remote_code": True}}
    assert merge(low, {"teacher": {"model": "b"}}) == {"teacher": {"model": "b"}}
    assert merge(low, {"teacher": {"model": "a"}}) == low


def test_local_paths_become_absolute(registry, tmp_path, monkeypatch):
    (tmp_path / "d.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    config = resolve(registry, algo="bd-iql", flags={"data": {"train": "d.jsonl"}})
    assert config.data.train == str(tmp_path / "d.jsonl")


def test_merge_leaves_its_arguments_alone():
    low, high = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(low, high) == {"a": {"b": 1, "c": 2}}
    assert low == {"a": {"b": 1}}


@pytest.mark.parametrize(("text", "message"), [
    ("- a\n", "should hold a mapping"),
    ("a: [1\n", "no valid YAML"),
    ("trian: {}\n", "'trian' is not a known field"),
    ("train: {lr: fast}\n", "'train.lr' is 'fast'"),
    ("subset: {name: top-p, q: 1}\n", "'subset.q' is not a known field"),
    ("evaluate: {metrics: [rouge]}\n", "no metric named 'rouge'"),
    ("algo: bd-ikl\n", "no recipe named 'bd-ikl'"),
])  # fmt: skip
def test_a_wrong_file_is_explained(registry, tmp_path: Path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        resolve(registry, algo=None if "algo" in text else "bd-iql", file=tmp_path / "c.yaml")


def test_a_run_without_objective_says_how_to_name_one(registry):
    with pytest.raises(UserError, match="--algo"):
        resolve(registry, flags={"subset": {"name": "full"}})


def test_a_part_that_is_a_parameter_says_how_it_is_chosen(registry):
    with pytest.raises(
        UserError, match=r"'mixture' needs trajectories.student, a part: --set trajectories.student.name="
    ):
        resolve(registry, algo="kd", sets=("trajectories.name=mixture",))


def test_the_second_corpus_is_found_from_any_folder(registry, tmp_path, monkeypatch):
    (tmp_path / "text.jsonl").write_text('{"text": "a b"}')
    monkeypatch.chdir(tmp_path)
    config = resolve(registry, algo="kd", sets=("lm.data=text.jsonl", "lm.weight=1"))
    assert config.lm.data == str(tmp_path / "text.jsonl")
