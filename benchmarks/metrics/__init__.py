"""Metrics: what is measured on a model."""

from distillzoo.core import hookimpl
from distillzoo.core.hookspecs import Register


@hookimpl
def register_metrics(register: Register) -> None:
    here = __name__
    register("right", f"{here}.right:Right")
    register("rouge-l", f"{here}.rouge_l:RougeL")
    register("forward-kl", f"{here}.divergence:ForwardKL")
    register("reverse-kl", f"{here}.divergence:ReverseKL")
    register("entropy", f"{here}.entropy:Entropy")
    register("nucleus-mass", f"{here}.nucleus_mass:NucleusMass")
    register("ex-acc-err", f"{here}.exposure_bias:ExcessAccumulatedError")
    register("calibration", f"{here}.calibration:Calibration")
    register("distinct-1", f"{here}.distinct:Distinct1")
    register("distinct-2", f"{here}.distinct:Distinct2")
    register("length-ratio", f"{here}.length_ratio:LengthRatio")
