"""Where the token sequences come from that a student learns on."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from distillzoo.core.extraction import Decoding
from distillzoo.core.part import Part


@dataclass(frozen=True)
class Completion:
    """One sampled or given response.

    Attributes:
        tokens: the response's ids, the end-of-sequence token included where there is one.
        ended: whether the last token is the end-of-sequence action; if not, the length limit cut the response.
    """

    tokens: list[int]
    ended: bool


@dataclass(frozen=True)
class PromptRow:
    """An encoded prompt with its encoded reference answers."""

    prompt: list[int]
    references: list[Completion]


@dataclass(frozen=True)
class Trajectory:
    """A prompt, a response and where the response came from."""

    prompt: list[int]
    response: Completion
    source: str


class Sampler(Protocol):
    """Samples completions from a model."""

    def __call__(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
        """One completion a prompt, in the order given; the same arguments give the same completions."""


@dataclass(frozen=True)
class Sources:
    """All that a trajectory source may draw on."""

    rows: Sequence[PromptRow]
    teacher: Sampler
    """Samples from the teacher; what it sampled once is kept on disk and read again when nothing changed."""
    student: Sampler
    """Samples from the student as it is now."""
    seed: int


class TrajectorySource(Part):
    """Base of the trajectory sources. A source implements ``collect``."""

    on_policy: ClassVar[bool] = False
    """Whether the source samples from the student."""

    @abstractmethod
    def collect(self, sources: Sources) -> list[Trajectory]:
        """The trajectories to train on."""
