"""What a composition asks of student and teacher."""

import pytest

from distillzoo.core.asks import asks
from distillzoo.core.config import build_part, resolve
from distillzoo.core.registry import PART_KINDS

REDUCED = "a sum over the vocabulary, in chunks"
WHOLE = "the whole distribution"
ALL = "all logits, in chunks"
RAW = "objective.gauge=raw"


@pytest.mark.parametrize(
    ("algo", "sets", "student", "teacher"),
    [
        ("bc", (), REDUCED, "nothing"),
        ("kd", (), ALL, WHOLE),
        ("bd-iql", (), ALL, "the subset"),  # its gauge is the maximum over the vocabulary
        ("bd-iql", (RAW,), f"{REDUCED}, and the subset", "the subset"),
        (
            "bd-iql",
            (RAW, "objective.support_fraction=0.125"),
            f"the subset, and {REDUCED[:-11]} in 0.125 of the states",
            "the subset",
        ),
        ("bd-iql", (RAW, "objective.support_weight=0"), "the subset", "the subset"),
        ("bd-plus", (), f"{REDUCED}, and the subset", "the subset"),
        ("iq-learn", (RAW,), REDUCED, "nothing"),
        ("kd", ("subset.name=student-top-k",), f"{REDUCED}, and the subset", WHOLE),
        ("minillm", (), ALL, WHOLE),
        ("bd-iql-released", (), ALL, WHOLE),  # the teacher has a share in the language-modelling term
        (
            "bd-iql",
            (RAW, "objective.support_weight=0", "lm.data=micro", "lm.weight=1", "lm.teacher_share=0"),
            f"{REDUCED}, and the subset",
            "the subset",
        ),
    ],
)
def test_it_is_seen_from_what_the_parts_do(registry, algo, sets, student, teacher):
    config = resolve(registry, algo=algo, sets=sets)
    subset, objective, extraction, _ = (build_part(registry, config, kind) for kind in PART_KINDS)
    found = asks(subset, objective, extraction, config.lm)
    assert (found.student, found.teacher) == (student, teacher)


def test_show_says_it(here):
    shown = here("show", "algo", "bd-iql").stdout
    assert "of the student's head" in shown
    assert "of the teacher         the subset" in shown
