"""A small grammar: one description of a text serves to write it and to recognise it.

A grammar is a tree of nodes.  `sample` draws one text from it, `parse` reads a text back and returns the facts
that its slots bind, so a generator and a checker built on the same tree cannot drift apart.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

Facts = Mapping[str, str]


@dataclass(frozen=True)
class Text:
    """Fixed words, in this order."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Sequence:
    """All parts, in this order."""

    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Choice:
    """Exactly one of the options, each equally likely when written."""

    options: tuple["Node", ...]


@dataclass(frozen=True)
class Shuffle:
    """All parts, once each, in any order, with `between` between two of them."""

    parts: tuple["Node", ...]
    between: Text


@dataclass(frozen=True)
class Slot:
    """The wording of one fact: reading it binds `name` to the value whose wording stood there."""

    name: str
    wordings: tuple[tuple[str, "Node"], ...]


Node = Text | Sequence | Choice | Shuffle | Slot


def node(part: "Node | str") -> Node:
    """Turn a plain string into the fixed words that it holds; leave a node as it is."""
    return Text(tuple(part.split())) if isinstance(part, str) else part


def sequence(*parts: Node | str) -> Node:
    """All `parts` one after the other."""
    return Sequence(tuple(node(part) for part in parts))


def choice(*options: Node | str) -> Node:
    """One of `options`."""
    return Choice(tuple(node(option) for option in options))


def optional(part: Node | str) -> Node:
    """`part` or nothing."""
    return choice(part, "")


def shuffle(*parts: Node | str, between: str = "") -> Node:
    """All `parts` in any order."""
    return Shuffle(tuple(node(part) for part in parts), Text(tuple(between.split())))


def slot(name: str, wordings: Mapping[str, Node | str]) -> Node:
    """The fact `name`, worded as `wordings` says for its value."""
    return Slot(name, tuple((value, node(wording)) for value, wording in wordings.items()))


def sample(grammar: Node, rng: Random, facts: Facts) -> list[str]:
    """Draw the words of one text of `grammar`; `facts` holds the value of every slot in it."""
    match grammar:
        case Text(words):
            return list(words)
        case Sequence(parts):
            return [word for part in parts for word in sample(part, rng, facts)]
        case Choice(options):
            return sample(rng.choice(options), rng, facts)
        case Shuffle(parts, between):
            words_out: list[str] = []
            for index, part in enumerate(rng.sample(parts, len(parts))):
                words_out += (list(between.words) if index else []) + sample(part, rng, facts)
            return words_out
        case Slot(name, wordings):
            return next(sample(wording, rng, facts) for value, wording in wordings if value == facts[name])


def parse(grammar: Node, words: list[str]) -> Facts | None:
    """Read all of `words` as one text of `grammar`: the facts bound on the way, or None if it is no such text."""
    return next((facts for end, facts in _read(grammar, words, 0, {}) if end == len(words)), None)


def vocabulary(grammar: Node) -> set[str]:
    """Every word that a text of `grammar` can hold."""
    match grammar:
        case Text(words):
            return set(words)
        case Sequence(parts) | Choice(parts):
            return set().union(*map(vocabulary, parts))
        case Shuffle(parts, between):
            return set(between.words).union(*map(vocabulary, parts))
        case Slot(_, wordings):
            return set().union(*(vocabulary(wording) for _, wording in wordings))


def _read(grammar: Node, words: list[str], start: int, facts: Facts) -> Iterator[tuple[int, Facts]]:
    """Every way to read `grammar` at `start`: where it ends, and the facts known by then."""
    match grammar:
        case Text(expected):
            end = start + len(expected)
            if tuple(words[start:end]) == expected:
                yield end, facts
        case Sequence(parts):
            yield from _read_all(parts, words, start, facts)
        case Choice(options):
            for option in options:
                yield from _read(option, words, start, facts)
        case Shuffle(parts, between):
            yield from _read_shuffled(parts, between, words, start, facts)
        case Slot(name, wordings):
            for value, wording in wordings:
                if facts.get(name, value) == value:
                    for end, known in _read(wording, words, start, facts):
                        yield end, {**known, name: value}


def _read_all(parts: tuple[Node, ...], words: list[str], start: int, facts: Facts) -> Iterator[tuple[int, Facts]]:
    if not parts:
        yield start, facts
        return
    for end, known in _read(parts[0], words, start, facts):
        yield from _read_all(parts[1:], words, end, known)


def _read_shuffled(
    parts: tuple[Node, ...], between: Text, words: list[str], start: int, facts: Facts
) -> Iterator[tuple[int, Facts]]:
    for index, part in enumerate(parts):
        rest = parts[:index] + parts[index + 1 :]
        for end, known in _read(part, words, start, facts):
            if not rest:
                yield end, known
                continue
            for after, _ in _read(between, words, end, known):
                yield from _read_shuffled(rest, between, words, after, known)
