"""Benchmarks that come with the program, one YAML file each."""

from pathlib import Path

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register

HERE = Path(__file__).parent


@hookimpl
def register_benchmarks(register: Register) -> None:
    for path in sorted(HERE.glob("*.yaml")):
        register(path.stem, path)
