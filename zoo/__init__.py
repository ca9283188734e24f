"""The zoo: recipes, one YAML file an algorithm, and the embedded micro world."""

from pathlib import Path

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register

HERE = Path(__file__).parent


@hookimpl
def register_recipes(register: Register) -> None:
    for path in sorted(HERE.glob("*.yaml")):
        register(path.stem, path)


@hookimpl
def register_suites(register: Register) -> None:
    register("micro", f"{__name__}.micro.suite:Micro")
