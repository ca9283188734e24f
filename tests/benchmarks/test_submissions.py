"""``leaderboard check`` and ``reproduce``: what is wrong with a submission, and whether a row is found again."""

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distillzoo.benchmarks.harness.row import Row
from distillzoo.benchmarks.leaderboard import reproduce as again
from distillzoo.benchmarks.leaderboard.check import Finding, check
from distillzoo.benchmarks.leaderboard.source import read_cells
from distillzoo.core.errors import UserError
from distillzoo.core.registry import Registry
from tests.benchmarks.rows import failed, row, written, zoo

Here = Callable[..., "subprocess.CompletedProcess[str]"]


def texts(findings: Sequence[Finding], level: str) -> list[tuple[int | None, str]]:
    return [(finding.line, finding.text) for finding in findings if finding.level == level]


def test_a_whole_matrix_is_fine(tmp_path: Path, registry: Registry) -> None:
    findings = check(written(tmp_path, zoo()), registry)
    assert [finding.level for finding in findings] == ["note"]
    assert "distillzoo 0.1.0" in findings[0].text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config_sha256": "0" * 64}, "config_sha256 is 000000000000, and config hashes to"),
        ({"config": {"seed": 3, "train": {"max_steps": 200, "batch_size": 64}}}, "seed is 0, and config.seed is 3"),
        ({"steps": 400}, "steps is 400, and the suite's budget is 200"),
        (
            {"config": {"seed": 0, "train": {"max_steps": 200, "batch_size": 8}}},
            "batch_size is 8, and the suite fixes 64",
        ),
        ({"config": {**row("kd", 0).config, "objective": {"name": "jsd"}}}, "and the suite fixes 'forward-kl'"),
        ({"config": {"seed": 0, "train": 7}}, "config.train.max_steps is missing"),
        ({"decodings": {"top-p 1.0": {"temperature": 0.5, "top_p": 1.0}}}, "decodings (temperature, top-p) are"),
        ({"scores": []}, "A score is missing: test, top-p 0.8, distinct-2"),
        ({"suite_version": 9}, "The row is of version 9 of micro, and version 1 is installed"),
        ({"suite_sha256": "0" * 64}, "suite_sha256 is 000000000000, and the installed file's is"),
        ({"changes": ["train.lr=1"]}, "With train.lr=1 over the suite's settings, this is no row of micro"),
        ({"pair": "macro"}, "micro has no pair 'macro'. Did you mean 'micro'?"),
        ({"hashes": {}}, "hashes.teacher is missing"),
        ({"cost": None}, "cost is missing"),
        ({"trials": 3}, "trials is 3, and the suite says 4"),
        ({"scores": [{**s.model_dump(), "n": 499 + i % 2} for i, s in enumerate(row("kd", 0).scores)]}, "is 499, 500,"),
        ({"outputs": "../results.jsonl"}, "leads out of the folder of results.jsonl"),
    ],
)
def test_a_row_that_does_not_fit_is_a_problem(
    tmp_path: Path, registry: Registry, changes: dict[str, Any], said: str
) -> None:
    problems = texts(check(written(tmp_path, [row("kd", 0, **changes)]), registry), "problem")
    assert any(line == 1 and said in text for line, text in problems), problems


def test_the_hashes_that_the_suite_pins_are_held(tmp_path: Path, registry: Registry) -> None:
    hashes = {**row("kd", 0).hashes, "teacher": "ff" * 32}
    rows = [row("kd", 0, hashes=hashes), row("bc", 0), row("bc", 0)]
    problems = texts(check(written(tmp_path, rows), registry), "problem")
    assert any(line == 1 and "the suite pins d1e505ba92aa" in text for line, text in problems)
    assert any(line == 2 and "and on line 1 it is ffffffffffff" in text for line, text in problems)
    assert (3, "bc with seed 0 on micro is on line 2 too.") in problems


def test_seeds_failures_and_dirty_checkouts_are_said(tmp_path: Path, registry: Registry) -> None:
    gone = {"outputs": "answers/none.jsonl"}
    rows = [row("kd", 0, dirty=True, **gone), failed("kd", 1, "out of memory"), row("kd", 7)]
    findings = check(written(tmp_path, rows), registry)
    warnings = texts(findings, "warning")
    assert (1, "The checkout had uncommitted changes: its commit does not say what ran.") in warnings
    assert (2, "The cell failed: out of memory") in warnings
    assert (None, "1 of 3 cells failed.") in warnings
    assert any(text.startswith("The answers of 1 of 3 cells are not beside the file") for _, text in warnings)
    assert texts(findings, "problem") == [
        (None, "kd on micro lacks the seeds 2, 3, 4 of micro's 5."),
        (3, "micro has the seeds 0 to 4, not 7."),
    ]


def test_answers_are_not_missed_where_they_may_not_be_published(tmp_path: Path, registry: Registry) -> None:
    one = row("kd", 0, suite="paper-gpt2", outputs="answers/none.jsonl")
    assert not any("answers" in text for _, text in texts(check(written(tmp_path, [one]), registry), "warning"))


def test_bad_lines_are_named_and_the_others_checked(here: Here, tmp_path: Path) -> None:
    good = row("kd", 0)
    tree = json.loads(good.line())
    lines = ["not json", json.dumps({**tree, "schema_version": 9}), json.dumps({**tree, "colour": 1}), "", good.line()]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    found = here("leaderboard", "check", "results.jsonl")
    assert found.returncode == 1
    assert "problem line 1: row: no valid JSON" in found.stdout
    assert "problem line 2: row: schema_version is 9" in found.stdout
    assert "problem line 3: 'row.colour' is not a known field" in found.stdout
    assert "4 problems." in found.stdout, "the seeds that are missing too"
    found = here("leaderboard", "check", "results.jsonl", "--json")
    parsed = json.loads(found.stdout)
    assert (parsed["fine"], found.returncode) == (False, 1)
    assert {finding["line"] for finding in parsed["findings"] if finding["level"] == "problem"} == {1, 2, 3, None}


def test_exit_codes_of_check(here: Here, tmp_path: Path) -> None:
    written(tmp_path, zoo())
    assert here("leaderboard", "check", "results.jsonl").returncode == 0
    missing = here("leaderboard", "check", "nothing.jsonl")
    assert missing.returncode == 2
    assert "Cannot read 'nothing.jsonl'" in missing.stderr
    (tmp_path / "empty.jsonl").write_text("\n")
    assert here("leaderboard", "check", "empty.jsonl").returncode == 1


def test_the_row_to_reproduce_is_found(tmp_path: Path) -> None:
    cells = read_cells([written(tmp_path, [row("kd", 0), row("kd", 1), failed("bc", 0, "no memory")])])
    assert again.chosen(cells, "2", 0).seed == 1
    assert again.chosen(cells, "kd", 1).seed == 1
    for which, seed, said in (
        ("9", 0, "no row on line 9"),
        ("kdd", 0, "no row of kdd. Did you mean 'kd'?"),
        ("kd", 5, "no row of kd with seed 5"),
        ("bc", 0, "no score to compare: no memory"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            again.chosen(cells, which, seed)


def test_what_counts_as_reproduced(tmp_path: Path, registry: Registry) -> None:
    from distillzoo.benchmarks.harness.benchmark import benchmark_of

    suite, _ = benchmark_of(registry, "micro")
    before = row("kd", 0)

    def outcome(now: Row, spread: float | None) -> str:
        return again.comparison(again.Again(before, now, suite, spread, ran=True)).splitlines()[-1]

    assert outcome(before, None) == "Reproduced exactly."
    same = row("kd", 0, level=80.5)
    assert outcome(same, 1.0).startswith("Not reproduced: commit, libraries and machine are the same")
    assert outcome(row("kd", 0, hashes={**before.hashes, "data": "00" * 32}), 1.0).startswith("Not reproduced: this is")
    assert outcome(row("kd", 0, config_sha256="0" * 64), 1.0).startswith("Not reproduced: this is another run")
    near = row("kd", 0, level=80.5, hardware="another machine")
    assert outcome(near, 1.0).startswith("Reproduced: the headline differs by less")
    assert outcome(near, 0.1).startswith("Not reproduced: the headline differs by over")
    assert outcome(near, None).startswith("Not reproduced exactly, and one seed has no spread")


@pytest.mark.parametrize(
    "change",
    [
        "teacher.trust_remote_code=true",
        'teacher={"model": "stranger/x", "trust\\x5fremote_code": true}',
        'suite.student_start={"algo": "bc", "run": {"student": {"trust_remote_code": true}}}',
        "wandb=true",
    ],
)
def test_a_row_that_would_run_a_strangers_code_is_not_run_again(
    tmp_path: Path, registry: Registry, change: str
) -> None:
    cells = read_cells([written(tmp_path, [row("kd", 0, changes=[change])])])
    with pytest.raises(UserError, match="is not taken from a stranger's row"):
        again.reproduce(cells[0].row, cells, {}, tmp_path / "again", registry)


def test_a_row_of_another_suite_or_recipe_is_not_run_again(tmp_path: Path, registry: Registry) -> None:
    for changes, said in (
        ({"suite_sha256": "0" * 64}, "another file of micro than the installed one"),
        ({"recipe_version": 99}, "of version 99 of the recipe kd, and version"),
    ):
        cells = read_cells([written(tmp_path, [row("kd", 0, **changes)])])
        with pytest.raises(UserError, match=said):
            again.reproduce(cells[0].row, cells, {}, tmp_path / "again", registry)
        assert not (tmp_path / "again").exists()
