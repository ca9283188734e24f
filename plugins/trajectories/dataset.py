"""The reference answers."""

from distillzoo.core.trajectories import Sources, Trajectory, TrajectorySource


class FromDataset(TrajectorySource):
    """Reference answers as expert trajectories, every reference of a prompt as one: (x, y) ~ D. Offline, no sampling.

    References:
        The data's own answers, as in supervised fine-tuning.
    """

    def collect(self, sources: Sources) -> list[Trajectory]:
        return [Trajectory(row.prompt, answer, "dataset") for row in sources.rows for answer in row.references]
