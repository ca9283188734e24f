"""``distillzoo bench``: what is measured of the zoo itself."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register


@hookimpl
def register_commands(register: Register) -> None:
    register("bench", "distillzoo.benchmarks.command:bench")
    register("leaderboard", "distillzoo.benchmarks.leaderboard.command:leaderboard")
