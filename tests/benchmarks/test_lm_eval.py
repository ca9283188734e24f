"""The bridge to the LM Evaluation Harness: with a stand-in for it, and with itself where it is installed."""

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from distillzoo.zoo.micro import examples

TASK = """
task: toy
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


class StandIn:
    """Notes what lm-eval is asked."""

    def __init__(self) -> None:
        self.model: Any = None
        self.asked: dict[str, Any] = {}
        self.included: list[str] | None = None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        outer = self

        class HFLM:
            def __init__(self, **arguments: Any) -> None:
                outer.model = arguments

        class TaskManager:
            def __init__(self, include_path: list[str] | None) -> None:
                outer.included = include_path

            def match_tasks(self, names: list[str]) -> list[str]:
                return [name for name in names if name in {"toy", "arc_easy"}]

        def simple_evaluate(**arguments: Any) -> dict[str, Any]:
            outer.asked = arguments
            return {
                "results": {
                    "toy": {"alias": "toy", "acc,none": 0.25, "acc_stderr,none": 0.125, "exact_match,strict": 0.5},
                    "arc_easy": {"alias": "arc_easy", "acc,none": 0.75, "acc_stderr,none": "N/A"},
                },
                "versions": {"toy": 1.0, "arc_easy": 2.0},
                "n-shot": {"toy": 0},
                "n-samples": {"toy": {"original": 9, "effective": 3}},
                "config": {"model": object()},
            }

        contents: dict[str, dict[str, Any]] = {
            "lm_eval": {"simple_evaluate": simple_evaluate},
            "lm_eval.models": {},
            "lm_eval.models.huggingface": {"HFLM": HFLM},
            "lm_eval.tasks": {"TaskManager": TaskManager},
        }
        for name, inside in contents.items():
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            vars(module).update(inside)
            patch.setitem(sys.modules, name, module)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    found.install(monkeypatch)
    return found


def test_a_runs_trained_model_and_tokenizer_are_scored(standin, here, tiny, tmp_path):
    trained = here(
        "run", "--algo", "bc", "--teacher", tiny.teacher, "--student", tiny.student, "--data", tiny.data,
        "--max-steps", 1, "--batch-size", 2, "--output", "done", "--set", "evaluate.limit=1", "-q",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    scored = here("bench", "lm-eval", "done", "--tasks", "toy, arc_easy", "--limit", 3)
    assert scored.returncode == 0, scored.stderr
    assert Path(standin.model["pretrained"].name_or_path) == tmp_path / "done" / "model"
    assert not standin.model["pretrained"].training
    assert standin.model["tokenizer"].get_vocab()["w3"] >= 0
    assert (standin.asked["tasks"], standin.asked["limit"]) == (["toy", "arc_easy"], 3)
    lines = [line.split() for line in scored.stdout.splitlines()]
    assert ["toy", "acc", "0.2500", "0.1250", "0", "3", "1.0"] in lines
    assert ["toy", "exact_match", "(strict)", "0.5000", "–", "0", "3", "1.0"] in lines
    assert ["arc_easy", "acc", "0.7500", "–", "–", "–", "2.0"] in lines


def test_json_holds_the_scores_and_what_they_rest_on(standin, here):
    found = json.loads(here("bench", "lm-eval", "micro:student", "--tasks", "toy", "--json").stdout)
    assert found["results"]["toy"]["acc,none"] == 0.25
    assert set(found) == {"results", "versions", "n-shot", "n-samples"}


def test_a_file_of_a_task_is_named_and_its_folder_searched(standin, here, tmp_path):
    (tmp_path / "own.yaml").write_text('include: base\ntask: "toy"\nprocess: !function utils.f\n')
    done = here("bench", "lm-eval", "micro:student", "--tasks", "own.yaml")
    assert done.returncode == 0, done.stderr
    assert standin.included == [str(tmp_path)]
    assert standin.asked["tasks"] == ["toy"]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ("tyo", "'tyo' is no task of lm-eval"),
        ("missing.yaml", "Cannot read"),
        ("empty.yaml", "'empty.yaml' is no task"),
    ],
)
def test_a_task_that_is_not_there_is_explained(standin, here, tmp_path, tasks, words):
    (tmp_path / "empty.yaml").write_text("group: x\n")
    done = here("bench", "lm-eval", "micro:student", "--tasks", tasks)
    assert done.returncode == 2
    assert words in done.stderr


def test_without_the_extra_the_command_says_how_to_get_it(here, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    done = here("bench", "lm-eval", "micro:student", "--tasks", "toy")
    assert done.returncode == 2
    assert "pip install 'distillzoo[lm-eval]'" in done.stderr


def test_the_harness_itself_scores_the_micro_student_on_a_task_of_ours(here, tmp_path, monkeypatch):
    """A right answer against the same words backwards, which no student of the micro world prefers."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = []
    for i, row in enumerate(examples("valid")[:20]):
        right = row["output"][0]
        choices = [right, " ".join(reversed(right.split()))]
        rows.append({"question": row["instruction"], "choices": choices[:: 1 if i % 2 == 0 else -1], "label": i % 2})
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "toy.yaml").write_text(TASK.format(data=tmp_path / "toy.jsonl"))
    done = here("bench", "lm-eval", "micro:student", "--tasks", "toy.yaml", "--limit", 12, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["results"]["toy"]["acc,none"] == 1.0
    assert found["n-samples"]["toy"] == {"original": 20, "effective": 12}
