"""The hardest task: a calculation of three steps, each of which the answer must show."""

from random import Random

from distillzoo.zoo.micro.grammar import Facts, Node, choice, optional, sequence, slot
from distillzoo.zoo.micro.task import Task

NAMES = ("anna", "ben", "clara", "david", "emma", "felix", "greta", "hugo")
ITEMS = ("apples", "pears", "coins", "books", "cards", "stones", "shells", "cups")
VERBS = {"plus": ("buys", "finds", "gets", "wins"), "minus": ("loses", "sells", "gives away", "drops")}
STEPS = (1, 2, 3)
STARTS = range(5, 16)
CHANGES = range(2, 10)
TOTALS = range(1, 26)


def _draw(rng: Random) -> Facts:
    facts = {"name": rng.choice(NAMES), "item": rng.choice(ITEMS), "start": str(rng.choice(STARTS))}
    total = int(facts["start"])
    for step in STEPS:
        changes = [(sign, by) for sign in VERBS for by in CHANGES if _after(total, sign, by) in TOTALS]
        sign, by = rng.choice(changes)
        facts |= {f"sign{step}": sign, f"by{step}": str(by)}
        total = _after(total, sign, by)
    return facts


def _after(total: int, sign: str, by: int) -> int:
    return total + by if sign == "plus" else total - by


def _question() -> Node:
    def change(step: int) -> Node:
        verbs = slot(f"sign{step}", {sign: choice(*verbs) for sign, verbs in VERBS.items()})
        return sequence(verbs, slot(f"by{step}", {str(by): str(by) for by in CHANGES}))

    name = slot("name", {name: name for name in NAMES})
    item = slot("item", {item: item for item in ITEMS})
    start = slot("start", {str(number): str(number) for number in STARTS})
    changes = (change(1), choice(",", ", then"), change(2), choice("and", "and then"), change(3), ".")
    return choice(
        sequence(name, choice("has", "owns"), start, item, ".", name, *changes, "how many", item, "are left ?"),
        sequence("how many", item, "does", name, "have if", name, "starts with", start, "and", *changes),
    )


def _step(total: int, sign: str, by: int) -> Node:
    result = str(_after(total, sign, by))
    short = sequence(str(total), sign, str(by), choice("is", "makes", "gives"))
    longer = f"adding {by} to {total}" if sign == "plus" else f"taking {by} from {total}"
    long = sequence(longer, choice("makes", "gives", "leaves us with"))
    return sequence(optional(choice("then", "next", "now")), choice(short, long), result, ".")


def _answer(facts: Facts) -> Node:
    name, item, total = facts["name"], facts["item"], int(facts["start"])
    opening = choice(
        sequence(name, choice("starts with", "has", "begins with"), facts["start"], item, "."),
        sequence("at first", choice("there are", "we count"), facts["start"], item, "."),
    )
    steps = []
    for step in STEPS:
        sign, by = facts[f"sign{step}"], int(facts[f"by{step}"])
        steps.append(_step(total, sign, by))
        total = _after(total, sign, by)
    end = sequence(
        choice("so", "in the end", "therefore"), name, choice("has", "keeps", "owns"), str(total), item,
        optional(choice("now", "left")), ".",
    )  # fmt: skip
    return sequence(opening, *steps, end)


def _key(facts: Facts) -> str:
    changes = (facts[f"{field}{step}"] for step in STEPS for field in ("sign", "by"))
    return " ".join((facts["name"], facts["item"], facts["start"], *changes))


CALCULATION = Task("calculation", _draw, _question(), _answer, _key)
