"""The student's scores during its training, with what they cost up to there: ``curve.jsonl``."""

from typing import Any

from transformers import TrainerCallback

from distillzoo.core.rundir import RunDirectory
from distillzoo.core.world import World


class CurveFile(TrainerCallback):
    """Evaluates the student before the first step, every ``curve.every`` steps and at the end.

    The clock of the account stands still meanwhile, and no random state of the training is touched, so on a CPU a
    run with a curve ends with the same weights as one without.
    """

    def __init__(self, world: World, directory: RunDirectory) -> None:
        self._world, self._directory = world, directory

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._point(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self._world.config.curve.every
        if every is not None and (state.global_step % every == 0 or state.global_step == state.max_steps):
            self._point(state.global_step)

    def _point(self, step: int) -> None:
        world, spent = self._world, self._world.spent
        with spent.paused():
            account = spent.over_all_processes()
            if not self._directory.writes:
                return
            # a run from a teacher cache has no teacher in memory, and its curve leaves out what needs one
            found = world.evaluate(
                world.student,
                f"the student after {step} steps",
                against_teacher=world.config.teacher_cache is None,
                metrics=world.config.curve.metrics,
                limit=world.config.curve.limit,
            )
        self._directory.append(self._directory.curve, {"step": step, **account.to_json(), "scores": found.metrics})
