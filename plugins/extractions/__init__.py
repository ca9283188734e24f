"""Policy extractions: policy, soft value and decoding from Q."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register


@hookimpl
def register_extractions(register: Register) -> None:
    here = __name__
    register("softmax", f"{here}.softmax:Softmax")
    register("projected-softmax", f"{here}.projected_softmax:ProjectedSoftmax")
    register("epsilon-smoothed", f"{here}.epsilon_smoothed:EpsilonSmoothed")
    register("sparsemax", f"{here}.sparsemax:Sparsemax")
    register("tsallis", f"{here}.tsallis:Tsallis")
    register("mellowmax", f"{here}.mellowmax:Mellowmax")
    register("advantage-weighted", f"{here}.advantage_weighted:AdvantageWeighted")
    register("greedy", f"{here}.greedy:Greedy")
