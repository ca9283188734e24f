"""The student begins, the teacher goes on."""

import random
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from distillzoo.core.trajectories import Completion, OnPolicySource, Sources, Trajectory


class StudentPrefix(OnPolicySource):
    """The student writes a beginning and the teacher the rest, which is what there is to learn.

        y_1, ..., y_k ~ pi,    y_{k+1}, y_{k+2}, ... ~ pi_T(. | x, y_1, ..., y_k),    k ~ U{0, ..., prefix}

    The teacher shows how to go on from states that the student reaches: roll-in by the student, roll-out by the expert.
    The student's k tokens are ``given``, so no action there is learnt; those after them are the expert's. A beginning
    that the student ended goes back to the state before its end, the last one it decided in, and the teacher goes on
    there. The length limit holds for the whole response, and the teacher always has room for one token.

    References:
        arXiv:1406.5979 (AggreVaTe) and arXiv:1502.02206 (LOLS) roll in and out so; arXiv:1011.0686 (DAgger) for the
        argument.

    Differs from the papers:
        1. They compare the costs of several actions at the state where the expert takes over; here its actions are
           imitated.
    """

    paper: ClassVar[str] = "arXiv:1406.5979"

    prefix: int = Field(16, ge=1, description="most tokens that the student writes")
    fixed: bool = Field(False, description="k = prefix each time instead of a random length")

    @classmethod
    def examples(cls) -> Sequence["StudentPrefix"]:
        return [cls(), cls(prefix=2, fixed=True)]

    @property
    def expert_rows(self) -> bool:
        return True

    @property
    def student_rows(self) -> bool:
        return False

    def collect(self, sources: Sources) -> list[Trajectory]:
        draw = random.Random(f"student-prefix {sources.seed}")
        prompts = [sources.rows[row].prompt for row in sources.due]
        lengths = [self.prefix if self.fixed else draw.randint(0, self.prefix) for _ in prompts]
        begun = [_open(b) for b in sources.beginnings(prompts, self.decoding, sources.seed, lengths)]
        ends = sources.endings(prompts, [b.tokens for b in begun], self.decoding, draw.getrandbits(31))
        return [
            Trajectory(prompt, _joined(beginning, end), "student-prefix", given=len(beginning.tokens))
            for prompt, beginning, end in zip(prompts, begun, ends, strict=True)
        ]


def _open(beginning: Completion) -> Completion:
    """The beginning without the end-of-sequence action, if the student took it."""
    if not beginning.ended:
        return beginning
    logprobs = None if beginning.logprobs is None else beginning.logprobs[:-1]
    return Completion(beginning.tokens[:-1], False, logprobs)


def _joined(beginning: Completion, end: Completion) -> Completion:
    known = beginning.logprobs is not None and end.logprobs is not None
    logprobs = [*(beginning.logprobs or ()), *(end.logprobs or ())] if known else None
    return Completion([*beginning.tokens, *end.tokens], end.ended, logprobs)
