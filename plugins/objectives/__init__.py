"""Objectives: what a student minimises on a batch of transitions."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register


@hookimpl
def register_objectives(register: Register) -> None:
    here = __name__
    register("nll", f"{here}.nll:NLL")
    register("forward-kl", f"{here}.forward_kl:ForwardKL")
    register("iql", f"{here}.iql:IQL")
