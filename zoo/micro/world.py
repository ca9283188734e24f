"""The micro world: instructions, their reference answers, and an exact check of any answer.

Which split a combination of facts belongs to is decided by a stable hash of it, so no test combination is ever
seen in training, in whatever wording.
"""

import functools
import hashlib
from collections.abc import Iterator
from random import Random
from typing import Any

from distillzoo.zoo.micro.calculation import CALCULATION
from distillzoo.zoo.micro.describe import DESCRIBE
from distillzoo.zoo.micro.grammar import Facts, parse, sample
from distillzoo.zoo.micro.grammar import vocabulary as words_of
from distillzoo.zoo.micro.procedure import PROCEDURE
from distillzoo.zoo.micro.task import Task

SPLITS = ("train", "valid", "test")
TASKS = (DESCRIBE, PROCEDURE, CALCULATION)
PROMPTS = {"train": 3000, "valid": 300, "test": 500}
REFERENCES = {"train": 1, "valid": 4, "test": 4}


def problems(split: str, seed: str) -> Iterator[tuple[Task, Facts, Random]]:
    """Endlessly draw combinations of `split`, the tasks in turn, each with the generator to word it with.

    The same `seed` always gives the same problems.
    """
    rng = Random(seed)
    while True:
        for task in TASKS:
            facts = task.draw(rng)
            while _split_of(task, facts) != split:
                facts = task.draw(rng)
            yield task, facts, rng


def instruction(task: Task, facts: Facts, rng: Random) -> str:
    """One wording of the instruction for `facts`."""
    return " ".join(sample(task.question, rng, facts))


def answer(task: Task, facts: Facts, rng: Random) -> str:
    """One wording of a right answer for `facts`."""
    return " ".join(sample(task.answer(facts), rng, facts))


@functools.cache
def examples(split: str) -> list[dict[str, Any]]:
    """The rows of `split`, always the same ones: an instruction, its reference answers, and the kind of task."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: the splits are {', '.join(SPLITS)}")
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for task, facts, rng in problems(split, f"micro {split}"):
        if task.key(facts) in seen:
            continue
        seen.add(task.key(facts))
        references: set[str] = set()
        asked = instruction(task, facts, rng)
        while len(references) < REFERENCES[split]:
            references.add(answer(task, facts, rng))
        rows.append({"instruction": asked, "input": "", "output": sorted(references), "task": task.name})
        if len(rows) == PROMPTS[split]:
            break
    return rows


def understand(text: str) -> tuple[Task, Facts]:
    """The task and the facts that the instruction `text` states; ValueError if it is no instruction of this world."""
    for task in TASKS:
        facts = parse(task.question, text.split())
        if facts is not None:
            return task, facts
    raise ValueError(f"not an instruction of the micro world: {text!r}")


def is_right(instruction: str, answer: str) -> bool:
    """Whether `answer` is one of the right answers to `instruction`: every fact, none other, in a known wording."""
    task, facts = understand(instruction)
    return parse(task.answer(facts), answer.split()) is not None


def vocabulary() -> list[str]:
    """Every word of the world, sorted."""
    found: set[str] = set()
    for task in TASKS:
        found |= words_of(task.question)
    for split in SPLITS:
        for row in examples(split):
            task, facts = understand(row["instruction"])
            found |= words_of(task.answer(facts))
    return sorted(found)


def _split_of(task: Task, facts: Facts) -> str:
    digest = hashlib.sha256(f"{task.name}: {task.key(facts)}".encode()).digest()
    if digest[0] % 10 == 0:
        return "valid"
    return "test" if digest[0] % 10 == 1 else "train"
