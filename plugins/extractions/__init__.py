"""Policy extractions: policy, soft value and decoding from Q."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register


@hookimpl
def register_extractions(register: Register) -> None:
    here = __name__
    register("softmax", f"{here}.softmax:Softmax")
    register("projected-softmax", f"{here}.projected_softmax:ProjectedSoftmax")
    register("greedy", f"{here}.greedy:Greedy")
