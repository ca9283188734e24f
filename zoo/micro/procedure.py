"""The middle task: cook a dish, where the order of the steps must be worked out.

Ingredients are prepared hardest first, whatever the order in which the instruction names them; cooking, seasoning
and serving follow.
"""

from random import Random

from distillzoo.zoo.micro.grammar import Facts, Node, choice, optional, sequence, slot
from distillzoo.zoo.micro.task import Task

# The order of this table is the order of preparation.
INGREDIENTS = {
    "potatoes": ("peel", "skin"), "beets": ("cube", "dice"), "carrots": ("scrape", "brush"),
    "beans": ("soak", "drain"), "rice": ("rinse", "wash"), "corn": ("husk", "strip"), "onions": ("chop", "cut"),
    "leeks": ("slice", "halve"), "mushrooms": ("wipe", "clean"), "tomatoes": ("crush", "mash"),
    "spinach": ("tear", "shred"), "cheese": ("grate", "crumble"),
}  # fmt: skip
DISHES = {
    "soup": ("boil everything in water", "simmer the mix in a pot"),
    "stew": ("cook everything over low heat", "leave the mix on the fire"),
    "pie": ("bake everything in dough", "put the mix under a crust"),
    "salad": ("toss everything in a bowl", "stir the mix cold"),
    "curry": ("fry everything with spices", "heat the mix in oil"),
}
SEASONINGS = ("salt", "pepper", "mint", "lemon", "garlic", "butter")
GUESTS = ("friend", "child", "king", "neighbor", "sailor", "farmer")
PLACES = ("first", "second", "third")


def _same(name: str, values: tuple[str, ...]) -> Node:
    return slot(name, {value: value for value in values})


def _draw(rng: Random) -> Facts:
    ingredients = rng.sample(tuple(INGREDIENTS), len(PLACES))
    return dict(zip(PLACES, ingredients, strict=True)) | {
        "dish": rng.choice(tuple(DISHES)),
        "seasoning": rng.choice(SEASONINGS),
        "guest": rng.choice(GUESTS),
    }


def _question() -> Node:
    ingredients = [_same(place, tuple(INGREDIENTS)) for place in PLACES]
    dish = _same("dish", tuple(DISHES))
    guest = _same("guest", GUESTS)
    seasoning = _same("seasoning", SEASONINGS)
    listed = sequence(ingredients[0], ",", ingredients[1], "and", ingredients[2])
    return choice(
        sequence(choice("how do i make a", "explain how to cook a"), dish, "for a", guest, "from", listed,
                 choice("with", "and use"), seasoning, "?"),
        sequence("i have", listed, ".", choice("a", "my"), guest, "wants a", dish, "with", seasoning, ".",
                 choice("what should i do ?", "how is it done ?")),
    )  # fmt: skip


def _in_order(facts: Facts) -> list[str]:
    return sorted((facts[place] for place in PLACES), key=list(INGREDIENTS).index)


def _answer(facts: Facts) -> Node:
    first, *later = (
        sequence(choice(*INGREDIENTS[ingredient]), choice("the", "all the", "your"), ingredient, ".")
        for ingredient in _in_order(facts)
    )
    link = choice("then", "next", "after that")
    cook = sequence(choice(*DISHES[facts["dish"]]), ".")
    season = sequence(choice("add", "stir in", "season with"), choice("some", "a little"), facts["seasoning"], ".")
    serve = sequence(choice("serve it to", "bring it to", "hand a plate to"), choice("the", "your"), facts["guest"])
    return sequence(
        choice("first", "to begin ,", "at the start"), first,
        *(sequence(link, step) for step in later),
        choice("now", "when this is done ,"), cook,
        optional(choice("then", "next")), season,
        choice("finally", "at last", "in the end"), serve, ".",
    )  # fmt: skip


def _key(facts: Facts) -> str:
    return " ".join((*_in_order(facts), facts["dish"], facts["seasoning"], facts["guest"]))


PROCEDURE = Task("procedure", _draw, _question(), _answer, _key)
