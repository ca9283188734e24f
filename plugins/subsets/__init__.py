"""Abstract action subsets: which tokens of a state an objective works on."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register


@hookimpl
def register_subsets(register: Register) -> None:
    here = __name__
    register("full", f"{here}.full:Full")
    register("top-p", f"{here}.top_p:TopP")
    register("adaptive-top-p", f"{here}.adaptive_top_p:AdaptiveTopP")
    register("min-p", f"{here}.min_p:MinP")
    register("epsilon", f"{here}.epsilon:Epsilon")
    register("top-k", f"{here}.top_k:TopK")
    register("student-top-k", f"{here}.student_top_k:StudentTopK")
    register("sampled", f"{here}.sampled:Sampled")
    register("union", f"{here}.union:Union")
