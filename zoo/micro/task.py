"""What the world needs to know of one kind of task."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from distillzoo.zoo.micro.grammar import Facts, Node


@dataclass(frozen=True)
class Task:
    """One kind of task: how its facts are drawn, asked about and answered.

    `question` holds a slot for every fact, so that parsing an instruction gives the facts back.  `answer` is the
    grammar of all right answers for given facts and of nothing else.  `key` is equal for two sets of facts exactly
    when they have the same right answers; the splits are made by it.
    """

    name: str
    draw: Callable[[Random], Facts]
    question: Node
    answer: Callable[[Facts], Node]
    key: Callable[[Facts], str]
