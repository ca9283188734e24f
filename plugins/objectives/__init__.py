"""Objectives: what a student minimises on a batch of transitions."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register


@hookimpl
def register_objectives(register: Register) -> None:
    here = __name__
    register("nll", f"{here}.nll:NLL")
    register("forward-kl", f"{here}.forward_kl:ForwardKL")
    register("reverse-kl", f"{here}.reverse_kl:ReverseKL")
    register("jsd", f"{here}.jsd:JSD")
    register("skew-kl", f"{here}.skew_kl:SkewKL")
    register("skew-reverse-kl", f"{here}.skew_reverse_kl:SkewReverseKL")
    register("total-variation", f"{here}.total_variation:TotalVariation")
    register("alpha-divergence", f"{here}.alpha_divergence:AlphaDivergence")
    register("iql", f"{here}.iql:IQL")
    register("iql-released", f"{here}.iql_released:IQLReleased")
    register("soft-q", f"{here}.soft_q:SoftQ")
    register("ls-iq", f"{here}.ls_iq:LSIQ")
    register("minillm", f"{here}.minillm:MiniLLM")
    register("llmr", f"{here}.llmr:LLMR")
