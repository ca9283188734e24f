"""The easiest task: describe a creature of which the instruction lists the features in any order."""

from random import Random

from distillzoo.zoo.micro.grammar import Facts, Node, choice, optional, sequence, shuffle, slot
from distillzoo.zoo.micro.task import Task

CLASSES = {
    "fox": "mammal", "wolf": "mammal", "bear": "mammal", "badger": "mammal", "hawk": "bird", "crow": "bird",
    "duck": "bird", "frog": "amphibian", "toad": "amphibian", "snake": "reptile", "lizard": "reptile",
}  # fmt: skip
SIZES = {"tiny": ("tiny", "very small"), "medium": ("medium", "normal"), "huge": ("huge", "very large")}
COLORS = {
    "red": ("red", "ruby"), "grey": ("grey", "silver"), "white": ("white", "snowy"), "black": ("black", "dark"),
    "brown": ("brown", "chestnut"), "green": ("green", "emerald"), "yellow": ("yellow", "golden"),
    "blue": ("blue", "azure"),
}  # fmt: skip
HOMES = {
    "cave": ("in a deep cave", "under cold rocks"),
    "lake": ("beside a lake", "near calm water"),
    "tree": ("in a hollow tree", "up in the branches"),
    "field": ("in a wide field", "among tall grass"),
    "forest": ("in the old forest", "between many pines"),
    "desert": ("in the dry desert", "on hot sand"),
    "swamp": ("in a muddy swamp", "among wet reeds"),
    "farm": ("behind a barn", "close to the farm"),
}
FOODS = {
    "fish": ("fish", "trout and salmon"),
    "berries": ("berries", "sweet fruit"),
    "seeds": ("seeds", "dry grain"),
    "insects": ("insects", "beetles and ants"),
    "mice": ("mice", "little rodents"),
    "roots": ("roots", "wild turnips"),
    "honey": ("honey", "sticky nectar"),
    "leaves": ("leaves", "fresh shoots"),
}
TIMES = {
    "day": ("by day", "in bright daylight"),
    "night": ("at night", "after dark"),
    "dawn": ("at dawn", "before sunrise"),
    "dusk": ("at dusk", "around sunset"),
}
MOODS = {
    "shy": ("shy", "easily scared"),
    "lazy": ("lazy", "slow to move"),
    "playful": ("playful", "full of fun"),
    "clever": ("clever", "quick to learn"),
    "brave": ("brave", "not afraid of us"),
    "angry": ("angry", "in a bad temper"),
}
# How much of a threat a creature is follows from its size and its mood together, so it must be worked out.
ADVICE = (
    ("you can pet it", "it is safe to touch"),
    ("be gentle with it", "please treat it with care"),
    ("watch it from a distance", "do not go near"),
    ("run away at once", "leave as fast as you can"),
)
FEATURES = {"size": SIZES, "color": COLORS, "home": HOMES, "food": FOODS, "time": TIMES, "mood": MOODS}
SUBJECT = choice("it", "this animal", "the creature")


def _draw(rng: Random) -> Facts:
    return {"kind": rng.choice(tuple(CLASSES))} | {
        feature: rng.choice(tuple(values)) for feature, values in FEATURES.items()
    }


def _question() -> Node:
    features = [
        sequence(feature, slot(feature, {value: value for value in values})) for feature, values in FEATURES.items()
    ]
    return sequence(
        choice("describe a", "tell me about a", "what do you know about a"),
        slot("kind", {kind: kind for kind in CLASSES}),
        choice(":", "with"),
        shuffle(*features, between=","),
        ".",
    )


def _advice(facts: Facts) -> Node:
    threat = list(SIZES).index(facts["size"]) + list(MOODS).index(facts["mood"])
    return choice(*ADVICE[threat // 2])


def _answer(facts: Facts) -> Node:
    kind, size, color, home, food, time, mood = (
        facts["kind"],
        *(choice(*values[facts[feature]]) for feature, values in FEATURES.items()),
    )
    opening = sequence(choice("the", "a", "this"), kind, "is a", size, CLASSES[kind], ".")
    looks = sequence(choice(sequence(SUBJECT, choice("looks", "is")), "its body is"), color, ".")
    lives = sequence(SUBJECT, choice("lives", "stays", "sleeps", "rests"), home, ".")
    eats = sequence(SUBJECT, choice("eats", "feeds on", "looks for", "likes"), food, time, ".")
    manner = sequence(choice(sequence(SUBJECT, choice("is", "seems")), "people call it"), mood, ".")
    end = sequence(optional(choice("so", "therefore")), _advice(facts), ".")
    return sequence(opening, shuffle(looks, lives, eats), manner, end)


def _key(facts: Facts) -> str:
    return " ".join(facts[name] for name in ("kind", *FEATURES))


DESCRIBE = Task("describe", _draw, _question(), _answer, _key)
