"""Win-rates, against an endpoint that stands in for a judge."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import distillzoo.benchmarks.judge.endpoint as endpoint_module
from distillzoo.benchmarks.harness.row import Answer, PartUsed, Row, write_lines
from distillzoo.benchmarks.judge.contests import Contest, chosen_rows, contests
from distillzoo.benchmarks.judge.endpoint import TRIES, Endpoint
from distillzoo.benchmarks.judge.ledger import FILE, ledger
from distillzoo.benchmarks.judge.verdict import parse, points, question
from distillzoo.benchmarks.judge.winrate import win_rates
from distillzoo.core.errors import UserError
from distillzoo.core.progress import Reporter

KEY = "sk-very-secret"

Reply = tuple[int, dict[str, str], Any]


def completion(text: str | None) -> Reply:
    return 200, {}, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def prefers_good(text: str) -> str:
    """The verdict of a judge who likes answers with the word good in them."""
    first = "good" in text.partition("<answer A>")[2].partition("</answer A>")[0]
    second = "good" in text.partition("<answer B>")[2].partition("</answer B>")[0]
    return "tie" if first == second else "A" if first else "B"


class StandIn:
    """A server that notes requests and replies as told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None, dict[str, Any]]] = []
        self.reply: Callable[[dict[str, Any]], Reply] = lambda body: completion(
            prefers_good(body["messages"][1]["content"])
        )
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, self.headers.get("Authorization"), body))
                status, headers, answer = outer.reply(body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def replies(self, *replies: Reply) -> None:
        """These, one after the other, the last again and again."""
        left, lock = list(replies), threading.Lock()

        def reply(body: dict[str, Any]) -> Reply:
            with lock:
                return left.pop(0) if len(left) > 1 else left[0]

        self.reply = reply


@pytest.fixture
def judge() -> Iterator[StandIn]:
    found = StandIn()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited for, in no time."""
    found: list[float] = []
    monkeypatch.setattr(endpoint_module.time, "sleep", found.append)
    return found


def row(algo: str, seed: int = 0, **changes: Any) -> Row:
    part = PartUsed(name=algo, distribution="distillzoo", version="0")
    facts: dict[str, Any] = {
        "suite": "micro", "suite_version": 1, "suite_sha256": "0", "suite_distribution": "distillzoo 0",
        "pair": "large-small", "algo": algo, "recipe": part, "recipe_version": 1, "subset": None, "parts": {},
        "metrics": {}, "seed": seed, "steps": 1, "trials": None, "config": {}, "config_sha256": "0", "decodings": {},
        "hashes": {}, "hardware": "cpu", "device": "cpu", "threads": 1, "versions": {}, "git": None, "dirty": None,
        "status": "done", "outputs": f"answers/{algo}-{seed}.jsonl", "command": "",
    }  # fmt: skip
    return Row.model_validate({**facts, **changes})


def results(folder: Path, answers: dict[str, list[str]], seeds: tuple[int, ...] = (0,)) -> Path:
    """A results folder; reference answers are good from the second prompt on."""
    (folder / "answers").mkdir()
    rows = [row(algo, seed) for algo in answers for seed in seeds]
    (folder / "results.jsonl").write_text(write_lines(rows))
    for one in rows:
        lines = [
            Answer(
                task=task, decoding=decoding, index=i, instruction=f"say {i}", input="as you like",
                reference="good" if i else "bad", answer=answer, right=None,
            ).model_dump_json()
            for task in ("test", "other")
            for decoding in ("top-p 1.0", "top-p 0.8")
            for i, answer in enumerate(answers[one.algo])
        ]  # fmt: skip
        (folder / str(one.outputs)).write_text("\n".join(lines) + "\n")
    return folder


def met(folder: Path, against: str, task: str | None = "test", limit: int | None = None) -> list[Contest]:
    return contests(folder, chosen_rows(folder, None), against, task, "top-p 1.0", limit)


ANSWERS = {"kd": ["good", "bad", "good"], "bc": ["bad", "bad", "good"], "gkd": ["good", "good", "good"]}


def test_points_are_a_share_of_a_win():
    assert [points("A", "B"), points("tie", "B"), points("A", "A"), points("tie", "A"), points("B", "A")] == [
        1.0, 0.75, 0.5, 0.25, 0.0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", "A"), (" b.\n", "B"), ("**Tie**", "tie"), ("[[B]]", "B"), ("Verdict: A", "A"), ("answer: tie", "tie"),
        ("A is better", None), ("A B", None), ("AB", None), ("neither", None), ("", None), ("Both. A", None),
    ],
)  # fmt: skip
def test_a_verdict_is_a_word_and_nothing_else(reply, verdict):
    assert parse(reply) == verdict


def test_the_question_holds_the_answers_in_their_order():
    text = question("do", "with this", "one", "two")[1]["content"]
    assert text.index("do") < text.index("with this") < text.index("one") < text.index("two")
    assert "<input>" not in question("do", "", "one", "two")[1]["content"]


def test_win_rates_are_of_both_orders(judge, tmp_path):
    """bc against kd: loses, ties, ties; gkd wins the second prompt. A judge without a liking for a place is steady."""
    found = met(results(tmp_path, ANSWERS), "kd")
    with ledger(tmp_path) as kept:
        kept.fill(found, Endpoint(judge.url, "m", KEY), Reporter())
        bc, gkd = win_rates(found, kept, "m")
    assert (bc.algo, gkd.algo) == ("bc", "gkd")
    assert bc.share.value == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert gkd.share.value == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert 0 <= bc.share.low <= bc.share.value <= bc.share.high <= 0.5
    assert (bc.prompts, bc.steady, bc.unparsed) == (3, 1.0, 0)
    path, header, body = judge.requests[0]
    assert (path, header) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (body["model"], body["temperature"]) == ("m", 0)
    # the third prompt has the same answer from all three: the same question in either order, and so asked once
    assert len(judge.requests) == 2 * 2 + 2 * 2 - 1


def test_a_liking_for_the_first_place_is_half_a_win(judge, tmp_path):
    judge.replies(completion("A"))
    found = met(results(tmp_path, ANSWERS), "references")
    with ledger(tmp_path) as kept:
        kept.fill(found, Endpoint(judge.url, "m"), Reporter())
        rates = win_rates(found, kept, "m")
    assert [rate.algo for rate in rates] == ["bc", "gkd", "kd"]
    assert all((rate.share.value, rate.steady) == (0.5, 0.0) for rate in rates)


def test_a_reply_without_a_verdict_is_counted_and_its_prompt_left_out(judge, tmp_path):
    def reply(body: dict[str, Any]) -> Reply:
        text = body["messages"][1]["content"]
        return completion("I like both" if "say 0" in text else prefers_good(text))

    judge.reply = reply
    found = met(results(tmp_path, {"kd": ANSWERS["kd"], "bc": ANSWERS["bc"]}), "kd")
    with ledger(tmp_path) as kept:
        kept.fill(found, Endpoint(judge.url, "m"), Reporter())
        (bc,) = win_rates(found, kept, "m")
    assert (bc.prompts, bc.unparsed, bc.share.value) == (2, 2, 0.5)


def test_without_a_verdict_there_is_no_win_rate(judge, tmp_path):
    judge.replies(completion(None))  # a refusal
    found = met(results(tmp_path, ANSWERS), "kd")
    with ledger(tmp_path) as kept:
        kept.fill(found, Endpoint(judge.url, "m"), Reporter())
        bc, _ = win_rates(found, kept, "m")
    assert (bc.prompts, bc.share, bc.steady, bc.unparsed) == (0, None, None, 6)


def test_a_judge_that_was_cut_off_goes_on_without_asking_again(judge, tmp_path):
    """Half of a last line, which a kill leaves, is cut off; the rest of the file stays as it is."""
    found = met(results(tmp_path, ANSWERS), "kd")
    referee = Endpoint(judge.url, "m")
    with ledger(tmp_path) as kept:
        kept.fill(found, referee, Reporter())
        before = win_rates(found, kept, "m")
        asked = kept.asked
    lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
    assert len(lines) == asked == 7
    (tmp_path / FILE).write_text("".join(lines[:3]) + lines[3][:40])
    judge.requests.clear()
    with ledger(tmp_path) as kept:
        kept.fill(found, referee, Reporter())
        assert win_rates(found, kept, "m") == before
        assert kept.asked == len(judge.requests) == 4
    assert (tmp_path / FILE).read_text().startswith("".join(lines[:3]))
    assert sorted((tmp_path / FILE).read_text().splitlines(keepends=True)) == sorted(lines)


def test_other_answers_or_another_judge_are_asked_anew(judge, tmp_path):
    folder = results(tmp_path, {"kd": ["good"], "bc": ["bad"]})
    with ledger(folder) as kept:
        kept.fill(met(folder, "kd"), Endpoint(judge.url, "m"), Reporter())
        kept.fill(met(folder, "kd"), Endpoint(judge.url, "other"), Reporter())
        assert kept.asked == 4
    path = folder / "answers" / "bc-0.jsonl"
    path.write_text(path.read_text().replace('"answer":"bad"', '"answer":"better"'))
    with ledger(folder) as kept:
        kept.fill(met(folder, "kd"), Endpoint(judge.url, "m"), Reporter())
        assert kept.asked == 2


def test_a_busy_endpoint_is_asked_again_after_a_while(judge, waits):
    judge.replies((429, {}, {}), (503, {}, {}), (429, {"Retry-After": "7"}, {}), (500, {"Retry-After": "900"}, {}),
                  completion("tie"))  # fmt: skip
    referee = Endpoint(judge.url, "m")
    with referee.client() as client:
        assert referee.ask(client, []) == "tie"
    assert waits == [1.0, 2.0, 7.0, 60.0]


def test_an_endpoint_that_stays_busy_is_an_error_that_says_how_to_go_on(judge, waits):
    judge.replies((429, {}, {"error": "slow down"}))
    referee = Endpoint(judge.url, "m")
    with (
        referee.client() as client,
        pytest.raises(UserError, match=r"at 127\.0\.0\.1 gave no reply in 6 tries.*429.*slow down.*same command"),
    ):
        referee.ask(client, [])
    assert len(judge.requests) == TRIES
    assert len(waits) == TRIES - 1


def test_an_endpoint_that_is_not_there_is_an_error(judge, waits):
    referee = Endpoint("http://127.0.0.1:9/v1", "m")  # the port of a service that nobody runs
    with referee.client() as client, pytest.raises(UserError, match="ConnectError"):
        referee.ask(client, [])


def test_a_reply_that_never_comes_is_asked_for_again(judge, waits, monkeypatch):
    monkeypatch.setattr(endpoint_module, "TIMEOUT", 0.2)
    late = threading.Event()
    done = iter([False, True])

    def reply(body: dict[str, Any]) -> Reply:
        if not next(done):
            late.wait(5)
        return completion("A")

    judge.reply = reply
    referee = Endpoint(judge.url, "m")
    with referee.client() as client:
        assert referee.ask(client, []) == "A"
    late.set()
    assert waits == [1.0]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_repeated_and_never_shows_the_key(judge, waits, status):
    judge.replies((status, {}, {"error": {"message": f"wrong key {KEY}"}}))
    referee = Endpoint(judge.url, "m", KEY)
    with referee.client() as client, pytest.raises(UserError, match=rf"refuses to judge\. HTTP {status}") as caught:
        referee.ask(client, [])
    assert KEY not in str(caught.value) + repr(referee)
    assert len(judge.requests) == 1


@pytest.mark.parametrize("answer", [b"<html>", {"choices": []}, {"object": "list"}, [], {"choices": "x"}])
def test_something_else_than_a_completion_is_an_error(judge, answer):
    judge.replies((200, {}, answer))
    referee = Endpoint(judge.url, "m")
    with referee.client() as client, pytest.raises(UserError, match="sent no chat completion"):
        referee.ask(client, [])


@pytest.mark.parametrize("url", ["api.openai.com/v1", "ftp://x/v1", "http://", "http://x:port"])
def test_an_endpoint_is_a_url(url):
    with pytest.raises(UserError, match="--endpoint"):
        Endpoint(url, "m")


def test_a_key_that_no_header_can_hold_is_refused_without_being_shown():
    with pytest.raises(UserError, match="end of a line") as caught:
        Endpoint("http://x/v1", "m", f"{KEY}\n")
    assert KEY not in str(caught.value)


def test_what_was_judged_before_an_error_is_kept(judge, tmp_path):
    """The first three questions are answered; by then the key has run out."""
    found = met(results(tmp_path, ANSWERS), "kd")
    judge.replies(completion("A"), completion("A"), completion("A"), (401, {}, {}))
    with ledger(tmp_path) as kept, pytest.raises(UserError, match="refuses"):
        kept.fill(found, Endpoint(judge.url, "m"), Reporter())
    judge.replies(completion("B"))
    with ledger(tmp_path) as kept:
        kept.fill(found, Endpoint(judge.url, "m"), Reporter())
        assert 4 <= kept.asked <= 7  # replies that came together with the refusal may be lost
    assert len((tmp_path / FILE).read_text().splitlines()) == 7


def test_two_processes_do_not_judge_one_folder(tmp_path):
    with ledger(tmp_path), pytest.raises(UserError, match="Another process judges"), ledger(tmp_path):
        pass


def test_a_file_of_something_else_is_not_added_to(tmp_path):
    (tmp_path / FILE).write_text('{"key": "x"}\n')
    with pytest.raises(UserError, match=r"judgements\.jsonl, line 1: no judgement"), ledger(tmp_path):
        pass


def test_prompts_are_limited_by_task_and_seeds_by_choice(tmp_path):
    folder = results(tmp_path, ANSWERS, seeds=(1, 3))
    assert {one.seed for one in met(folder, "kd")} == {1}
    assert {row.seed for row in chosen_rows(folder, 3)} == {3}
    assert [(one.task, one.index) for one in met(folder, "kd", task=None, limit=2) if one.algo == "bc"] == [
        ("other", 0), ("other", 1), ("test", 0), ("test", 1),
    ]  # fmt: skip


def test_names_that_are_not_there_are_explained(tmp_path):
    folder = results(tmp_path, ANSWERS)
    rows = chosen_rows(folder, None)
    with pytest.raises(UserError, match=r"--against gdk.*'gkd'"):
        contests(folder, rows, "gdk", None, "top-p 1.0", None)
    with pytest.raises(UserError, match=r"--task tst.*'test'"):
        contests(folder, rows, "kd", "tst", "top-p 1.0", None)
    with pytest.raises(UserError, match=r"--decoding top-p 0\.9"):
        contests(folder, rows, "kd", None, "top-p 0.9", None)
    with pytest.raises(UserError, match="--seed 7"):
        chosen_rows(folder, 7)
    with pytest.raises(UserError, match="Nothing stands against kd"):
        contests(folder, [one for one in rows if one.algo == "kd"], "kd", None, "top-p 1.0", None)


def test_answers_to_other_prompts_do_not_meet(tmp_path):
    folder = results(tmp_path, ANSWERS)
    path = folder / "answers" / "kd-0.jsonl"
    path.write_text(path.read_text().replace("say 1", "sing 1"))
    with pytest.raises(UserError, match="not to the same prompts: other, row 1"):
        met(folder, "kd", task=None)


def test_failed_cells_have_no_answers(tmp_path):
    (tmp_path / "results.jsonl").write_text(write_lines([row("kd", status="failed", outputs=None)]))
    with pytest.raises(UserError, match="no finished cell with answers"):
        chosen_rows(tmp_path, None)


def test_no_file_beside_the_results_is_sent(tmp_path):
    """Rows may come from somebody else."""
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "results.jsonl").write_text(write_lines([row("kd", outputs="../secret"), row("bc", outputs="../secret")]))
    with pytest.raises(UserError, match="should lie below"):
        met(folder, "kd")


def test_the_command_prints_a_table_and_writes_no_key(judge, tmp_path, here, monkeypatch):
    """micro's headline is top-p 1.0."""
    folder = results(tmp_path, ANSWERS)
    monkeypatch.setenv("JUDGE", KEY)
    options = ("--against", "kd", "--endpoint", judge.url, "--model", "m", "--task", "test", "--key-env", "JUDGE")
    done = here("bench", "judge", folder, *options)
    assert done.returncode == 0, done.stderr
    assert "answers of top-p 1.0, seed 0" in done.stdout
    assert "7 questions asked" in done.stdout
    assert "33.3" in done.stdout
    assert "66.7" in done.stdout
    written = "".join(path.read_text() for path in folder.rglob("*.jsonl"))
    assert KEY not in written + done.stdout + done.stderr
    assert judge.requests[0][1] == f"Bearer {KEY}"
    assert "0 questions asked" in here("bench", "judge", folder, *options).stdout
    told = json.loads(here("bench", "judge", folder, *options, "--json").stdout)
    assert (told["judge"], told["seed"]) == ("m", 0)
    assert all(0 <= rate["share"]["value"] <= 1 for rate in told["win_rates"])


def test_a_key_that_is_not_in_the_environment_is_an_error_and_the_usual_one_may_be_missing(
    judge, tmp_path, here, monkeypatch
):
    folder = results(tmp_path, ANSWERS)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    options = ("--against", "references", "--endpoint", judge.url, "--model", "m", "--limit", "1")
    done = here("bench", "judge", folder, *options, "--key-env", "NO_SUCH_KEY")
    assert done.returncode == 2
    assert "--key-env NO_SUCH_KEY" in done.stderr
    assert here("bench", "judge", folder, *options).returncode == 0
    assert judge.requests[0][1] is None


def test_the_usual_key_goes_to_no_other_endpoint(judge, tmp_path, here, monkeypatch):
    folder = results(tmp_path, ANSWERS)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    options = ("--against", "references", "--endpoint", judge.url, "--model", "m", "--limit", "1")
    assert here("bench", "judge", folder, *options).returncode == 0
    assert judge.requests[0][1] is None
