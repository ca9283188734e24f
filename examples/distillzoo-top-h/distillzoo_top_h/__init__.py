"""The plugin: it names the subset top-h without importing it, so that ``distillzoo --help`` stays fast."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register

DISTILLZOO_API = "1.0"


@hookimpl
def register_subsets(register: Register) -> None:
    register("top-h", "distillzoo_top_h.top_h:TopH")
