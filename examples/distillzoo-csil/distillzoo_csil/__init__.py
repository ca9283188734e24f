"""The plugin: it names the objective csil without importing it, so that ``distillzoo --help`` stays fast."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register

DISTILLZOO_API = "1.0"


@hookimpl
def register_objectives(register: Register) -> None:
    register("csil", "distillzoo_csil.csil:CSIL")
