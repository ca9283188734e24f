"""Where the token sequences come from that a student learns on."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field

from distillzoo.core.extraction import Decoding
from distillzoo.core.part import Part


@dataclass(frozen=True)
class Completion:
    """One sampled or given response.

    Attributes:
        tokens: the response's ids, the end-of-sequence token included where there is one.
        ended: whether the last token is the end-of-sequence action; if not, the length limit cut the response.
        logprobs: log-probability of each token under the policy that sampled it, in nats; none where it isn't known.
    """

    tokens: list[int]
    ended: bool
    logprobs: list[float] | None = None


@dataclass(frozen=True)
class PromptRow:
    """An encoded prompt with its encoded reference answers."""

    prompt: list[int]
    references: list[Completion]


@dataclass(frozen=True)
class Trajectory:
    """A prompt, a response and where the response came from.

    Attributes:
        prompt: the prompt's ids.
        response: the tokens after it.
        source: where the response comes from, for the logs.
        expert: whether the actions are the expert's (the data's or the teacher's) and not the student's.
        given: so many of the response's first tokens only set the scene: they are no actions to learn.
    """

    prompt: list[int]
    response: Completion
    source: str
    expert: bool = True
    given: int = 0


def _absent(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("These Sources were made without that: give them the sampler that the source asks.")


def _only_in_rounds(source: object) -> Any:
    raise RuntimeError("Sources.once is for sources with a period: one without collects everything at once itself.")


class Sampler(Protocol):
    """Samples completions from a model."""

    def __call__(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
        """One completion a prompt, in the order given; the same arguments give the same completions."""


class MixedSampler(Protocol):
    """Samples completions token by token from a mixture of teacher and student."""

    def __call__(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, share: float) -> list[Completion]:
        """One completion a prompt, each token from ``share * pi_T + (1 - share) * pi``, with its log-probability."""


class BeginningSampler(Protocol):
    """Samples the first tokens of responses from the student as it is now."""

    def __call__(
        self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, lengths: Sequence[int]
    ) -> list[Completion]:
        """A beginning of at most ``lengths[i]`` tokens for each prompt, which leaves room for one token more."""


class EndingSampler(Protocol):
    """Samples the rest of responses that have begun, from the teacher."""

    def __call__(
        self, prompts: Sequence[list[int]], beginnings: Sequence[list[int]], decoding: Decoding, seed: int
    ) -> list[Completion]:
        """The tokens after each beginning; the length limit holds for beginning and ending together."""


@dataclass(frozen=True)
class Sources:
    """All that a trajectory source may draw on.

    An offline source is asked once, before training, and returns all its trajectories. A source with a ``period`` is
    asked again every so many optimiser steps, for the steps up to the next time.
    """

    rows: Sequence[PromptRow]
    """The training prompts with their reference answers."""
    teacher: Sampler
    """Samples from the teacher; what it sampled once is kept on disk and read again when nothing changed."""
    student: Sampler
    """Samples from the student as it is now, with log-probabilities."""
    seed: int
    """Another one each time that a source is asked, and in each process."""
    mixed: MixedSampler = _absent
    """Samples from a mixture of the teacher and the student as it is now, with log-probabilities."""
    beginnings: BeginningSampler = _absent
    """Beginnings of the student's responses, with log-probabilities."""
    endings: EndingSampler = _absent
    """The teacher's endings of such beginnings, with log-probabilities. They are not kept on disk: the student's
    beginnings never come again."""
    held_out_loss: Callable[[], float] = _absent
    """Mean -log pi of the student as it is now on reference answers that are kept out of the training, nats a token."""
    due: Sequence[int] = ()
    """Rows of the prompts whose turn it is: a source with a ``period`` returns a trajectory for each, in order."""
    step: int = 0
    """Optimiser steps done."""
    steps: int = 1
    """Optimiser steps of the whole run."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What the source wants to keep between two calls, as JSON values; saved with each checkpoint."""
    once: "Callable[[TrajectorySource], Sequence[Sequence[Trajectory]]]" = _only_in_rounds
    """The trajectories of an offline source for each of ``rows``, at least one; collected when first asked for."""


class TrajectorySource(Part):
    """Base of the trajectory sources. A source implements ``collect``."""

    @property
    def on_policy(self) -> bool:
        """Whether the source samples from the student."""
        return False

    @property
    def expert_rows(self) -> bool:
        """Whether some of the trajectories are the expert's (the data's or the teacher's)."""
        return True

    @property
    def student_rows(self) -> bool:
        """Whether some of the trajectories are the student's."""
        return False

    @property
    def holds_out(self) -> bool:
        """Whether the source reads ``held_out_loss``: a share of the training rows is then kept out of the training."""
        return False

    @property
    def period(self) -> int | None:
        """Optimiser steps from one collection to the next; none if once, before training, is enough."""
        return None

    @abstractmethod
    def collect(self, sources: Sources) -> list[Trajectory]:
        """The trajectories to train on: all of them, or with a ``period`` one for each row that is due, in order."""


class OnPolicySource(TrajectorySource):
    """Base of the sources that sample with the student as it is, round by round."""

    every: int = Field(1, ge=1, description="optimiser steps from one round of sampling to the next")
    temperature: float = Field(1.0, ge=0, description="of the sampling; 0 for the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of the sampling")

    @property
    def on_policy(self) -> bool:
        return True

    @property
    def expert_rows(self) -> bool:
        return False

    @property
    def student_rows(self) -> bool:
        return True

    @property
    def period(self) -> int:
        return self.every

    @property
    def decoding(self) -> Decoding:
        """How the tokens are drawn."""
        return Decoding(self.temperature, self.top_p)

    def sampled(self, prompts: Sequence[list[int]], sources: Sources) -> list[Trajectory]:
        """A response of the student to each prompt."""
        answers = sources.student(prompts, self.decoding, sources.seed)
        return [Trajectory(p, answer, "student", expert=False) for p, answer in zip(prompts, answers, strict=True)]
