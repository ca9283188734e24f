"""Judgements on disk, so that none is paid for twice."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillzoo.benchmarks.judge.contests import Contest
from distillzoo.benchmarks.judge.endpoint import Endpoint
from distillzoo.benchmarks.judge.verdict import Verdict, parse
from distillzoo.core.errors import UserError
from distillzoo.core.files import write_whole
from distillzoo.core.progress import Reporter

FILE: Final = "judgements.jsonl"
"""In the folder of the results."""

AT_A_TIME: Final = 8
"""Questions that wait for a reply."""


class Judgement(BaseModel):
    """A line of the file: one reply to one question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(description="hash of the judge's name and the question")
    judge: str = Field(description="the model, as the endpoint names it")
    pair: str
    algo: str
    against: str
    seed: int
    task: str
    decoding: str
    index: int
    swapped: bool = Field(description="whether the algorithm's answer stood second")
    verdict: Verdict | None = Field(description="null for a reply that says something else")
    reply: str


@contextmanager
def ledger(folder: Path) -> Iterator["Ledger"]:
    """The judgements of a results folder, which one process at a time may add to.

    Raises:
        UserError: another process does, or the file holds something else.
    """
    try:
        with FileLock(folder / ".judgements.lock", timeout=0):
            yield Ledger(folder / FILE)
    except Timeout:
        raise UserError(f"Another process judges the answers in '{folder}'.") from None


class Ledger:
    """Judgements by key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found = {one.key: one for one in _read(path)}
        self.asked = 0

    def fill(self, contests: list[Contest], endpoint: Endpoint, reporter: Reporter) -> None:
        """Ask for every judgement that is missing. Each is written when its reply comes.

        Raises:
            UserError: the endpoint fails; the replies until then are kept.
        """
        questions = {one.key(endpoint.model, swapped): (one, swapped) for one in contests for swapped in (False, True)}
        missing = {key: question for key, question in questions.items() if key not in self._found}
        if not missing:
            return
        stage, out = reporter.stage("judging", total=len(missing)), self._path.open("a", encoding="utf-8")
        with stage, out as file, endpoint.client() as client:
            pool = ThreadPoolExecutor(AT_A_TIME)
            try:
                replies = {
                    pool.submit(endpoint.ask, client, contest.asked(swapped)): (key, contest, swapped)
                    for key, (contest, swapped) in missing.items()
                }
                for reply in as_completed(replies):
                    found = _judgement(reply.result(), endpoint.model, *replies[reply])
                    file.write(found.model_dump_json(ensure_ascii=True) + "\n")
                    file.flush()
                    self._found[found.key] = found
                    self.asked += 1
                    reporter.advance(1)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def verdicts(self, contest: Contest, model: str) -> tuple[Verdict | None, Verdict | None]:
        """The verdicts with the algorithm's answer first and second."""
        given, swapped = (self._found[contest.key(model, order)].verdict for order in (False, True))
        return given, swapped


def _judgement(reply: str, judge: str, key: str, contest: Contest, swapped: bool) -> Judgement:
    names = ("pair", "algo", "against", "seed", "task", "decoding", "index")
    facts = {name: getattr(contest, name) for name in names}
    return Judgement(key=key, judge=judge, swapped=swapped, verdict=parse(reply), reply=reply, **facts)


def _read(path: Path) -> Iterator[Judgement]:
    """What the file holds. A last line that a kill left without its end is cut off."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:
        write_whole(path, f"{whole}\n" if whole else "")
    for number, line in enumerate(whole.split("\n") if whole else [], 1):
        try:
            yield Judgement.model_validate_json(line)
        except ValidationError:
            raise UserError(f"{path}, line {number}: no judgement, so nothing is added to this file.") from None
