"""What a training cost so far: seconds and tokens, counted across interruptions."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from distillzoo.core.errors import UserError, cannot
from distillzoo.core.files import write_whole

FILE: Final = "spent.json"
"""Name of the account in a checkpoint."""

CLEAR: Final = Path("/proc/self/clear_refs")
"""Where Linux lets a process forget its peak resident set."""


@dataclass
class Spent:
    """The account of one process. Evaluations and the loading of models are in nothing of it.

    Attributes:
        student_tokens: tokens that the student was trained on: of responses, and of texts of a second corpus.
        sampled_tokens: tokens that the student sampled for its own training.
        teacher_read: response tokens that the teacher read for the training, and tokens that it sampled during it.
        peak_bytes: most memory while the clock ran: allocated on the GPU, or resident on a CPU (where the system cannot
            begin anew, as on macOS, that of the whole process so far).
        offline: tokens and seconds of each block of samples that the teacher drew once and that are kept, by its key.
    """

    student_tokens: int = 0
    sampled_tokens: int = 0
    teacher_read: int = 0
    offline: dict[str, tuple[int, float]] = field(default_factory=dict)
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None
        self._device = torch.device("cpu")

    def note_offline(self, key: str, tokens: int, seconds: float) -> None:
        """Kept samples were drawn, or read again: their price is the same, and is paid once a run."""
        self.offline[key] = (tokens, seconds)

    @property
    def teacher_tokens(self) -> int:
        """Tokens that the teacher sampled, and response tokens that it read."""
        return self.teacher_read + sum(tokens for tokens, _ in self.offline.values())

    @property
    def sampling_seconds(self) -> float:
        """What the kept samples took when they were drawn, in this run or in an earlier one."""
        return sum(seconds for _, seconds in self.offline.values())

    @property
    def seconds(self) -> float:
        """Seconds of training and of collecting trajectories during it."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """The clock runs, and the memory of the device is watched."""
        self._device = device
        self._start()
        try:
            yield
        finally:
            self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still, if it was running; memory that is taken meanwhile is not watched."""
        if self._since is None:
            yield
            return
        self._stop()
        try:
            yield
        finally:
            self._start()

    def _start(self) -> None:
        begin_peak(self._device)
        self._since = time.perf_counter()

    def _stop(self) -> None:
        self._seconds, self._since = self.seconds, None
        self.peak_bytes = max(self.peak_bytes, peak_memory(self._device))

    def over_all_processes(self) -> "Spent":
        """Tokens of all processes together, seconds of this one; every process has to ask."""
        total = replace(self, offline=dict(self.offline))
        total._seconds = self.seconds
        if PartialState().num_processes > 1:
            counted = gather_object([(self.student_tokens, self.sampled_tokens, self.teacher_read)])
            total.student_tokens, total.sampled_tokens, total.teacher_read = map(sum, zip(*counted, strict=True))
            for others in gather_object([self.offline]):
                total.offline.update(others)
        return total

    def to_json(self) -> dict[str, Any]:
        """What is told of a training."""
        return {
            "seconds": self.seconds,
            "sampling_seconds": self.sampling_seconds,
            "student_tokens": self.student_tokens,
            "sampled_tokens": self.sampled_tokens,
            "teacher_tokens": self.teacher_tokens,
        }

    def save(self, folder: Path) -> None:
        """Write the account of all processes, this one's included, into a checkpoint."""
        write_whole(folder / FILE, json.dumps({"seconds": self.seconds, **asdict(self)}))

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint. The first process goes on from the sum over all, the others from nothing.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = folder / FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            seconds = float(values.pop("seconds"))
            values["offline"] = {key: (int(tokens), float(took)) for key, (tokens, took) in values["offline"].items()}
            found = Spent(**values)
        except OSError as error:
            raise cannot("read", path, error) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"'{path}' is damaged: {error}. Remove its checkpoint to go on from the one before."
            ) from None
        mine = found if PartialState().is_main_process else Spent()
        self.student_tokens, self.sampled_tokens = mine.student_tokens, mine.sampled_tokens
        self.teacher_read, self.offline = mine.teacher_read, mine.offline
        self.peak_bytes = max(self.peak_bytes, found.peak_bytes)
        self._seconds = seconds
        self._since = None if self._since is None else time.perf_counter()


def begin_peak(device: torch.device) -> None:
    """Let ``peak_memory`` begin anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak allocation, or the process's peak resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if CLEAR.exists():
        status = CLEAR.with_name("status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
