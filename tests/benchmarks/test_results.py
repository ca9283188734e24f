"""The results in the repository: the rows are whole, and the texts beside them say what the rows say."""

import re
from pathlib import Path

import pytest

from distillzoo.benchmarks.harness.row import read_rows
from distillzoo.benchmarks.leaderboard.build import build
from distillzoo.benchmarks.leaderboard.check import check
from distillzoo.core.registry import Registry

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MICRO, SMOL = (BENCHMARKS / "results" / suite for suite in ("micro", "smol"))


def test_every_recipe_has_every_seed_and_nothing_is_wrong_with_its_rows(registry: Registry) -> None:
    rows = read_rows(MICRO / "results.jsonl")
    assert {(row.algo, row.seed) for row in rows} == {(a, s) for a in registry.names("recipe") for s in range(5)}
    findings = check(MICRO / "results.jsonl", registry)
    assert [finding.text for finding in findings if finding.level == "problem"] == []


def test_smol_has_both_seeds_of_all_its_recipes_from_a_clean_commit() -> None:
    rows = read_rows(SMOL / "results.jsonl")
    algos = ("seqkd", "kd", "rkl", "bd-iql", "bd-iql-released", "bd-plus")
    assert {(row.algo, row.seed) for row in rows} == {(algo, seed) for algo in algos for seed in range(2)}
    assert {(row.status, row.dirty) for row in rows} == {("done", False)}
    assert len({row.git for row in rows}) == 1


def built(folder: Path, site: Path, registry: Registry) -> str:
    """The folder's Markdown, which is what its rows give."""
    build([folder / "results.jsonl"], site, None, (), registry)
    for name in ("leaderboard.md", "leaderboard.csv"):
        assert (folder / name).read_text() == (site / name).read_text(), f"build {folder.name}'s {name} anew"
    return (folder / "leaderboard.md").read_text()


@pytest.fixture(scope="module")
def table(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    return built(MICRO, tmp_path_factory.mktemp("micro"), registry)


def assert_same_table(text: str, table: str, lines_expected: int) -> None:
    heads, _, *lines = cells_of(text)
    wide, _, *wider = cells_of(table)
    places = [wide.index(head) for head in heads]
    assert lines == [[line[place] for place in places] for line in wider[: len(lines)]]
    assert len(lines) == lines_expected


def test_the_table_in_the_document_is_that_of_the_rows(table: str) -> None:
    text = (BENCHMARKS / "RESULTS.md").read_text()
    part = text[text.index("### The table") : text.index("### The paper's claims about efficiency")]
    assert_same_table(part, table, 17)


def test_the_table_of_smol_in_the_document_is_that_of_the_rows(registry: Registry, tmp_path: Path) -> None:
    text = (BENCHMARKS / "RESULTS.md").read_text()
    part = text[text.index("### The `smol` suite at a reduced budget") :]
    assert_same_table(part, built(SMOL, tmp_path, registry), 6)


def test_the_figures_in_the_readme_are_those_of_the_rows(table: str) -> None:
    text = (BENCHMARKS.parent / "README.md").read_text()
    told = re.findall(r"`([a-z-]+)`(?: answers)?\s([\d.]+ \([\d.]+ to [\d.]+\))", text)
    assert len(told) == 8
    heads, _, *lines = cells_of(table.partition("###")[0])
    known = {line[0]: line[heads.index("right, % ↑ (test, top-p 1.0)")] for line in lines}
    assert dict(told) == {name: known[name] for name, _ in told}


def test_the_verdicts_in_the_document_are_those_of_the_rows(table: str) -> None:
    text = (BENCHMARKS / "RESULTS.md").read_text()
    part = text[text.index("### The paper's claims about efficiency") : text.index("### The search for bd-plus")]
    verdicts = re.findall(r"^- \*\*.*$", part, re.MULTILINE)
    assert len(verdicts) == 5
    assert set(verdicts) <= set(table.splitlines())


def cells_of(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in re.findall(r"^\|.*\|$", markdown, re.M)]
