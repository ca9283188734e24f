"""Faults put into copies of built-in parts: the conformance kit catches every one.

Each fault is one edit of a built-in part's source: the text that is replaced, what replaces it, and the checks
that must fail on it. Others may fail too.
"""

import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import config

import distillzoo.zoo
from distillzoo.core.checks import CheckFailed, RecipeFile, checks_of, outcomes
from distillzoo.core.part import Part


@dataclass(frozen=True)
class Fault:
    """One edit of a part's source, and what it is in words."""

    what: str
    module: str
    part: str
    old: str
    new: str
    caught_by: tuple[str, ...]
    parameters: tuple[tuple[str, Any], ...] = ()
    within: str = ""
    """The module that is edited, where it isn't the part's own but one that it uses."""


OBJECTIVES, SUBSETS, EXTRACTIONS, SOURCES = (
    f"distillzoo.plugins.{room}" for room in ("objectives", "subsets", "extractions", "trajectories")
)


DIVERGENCE, PREFIXES, TEMPORAL = (f"distillzoo.core.{module}" for module in ("divergence", "prefixes", "temporal"))


def nll(what: str, old: str, new: str, *caught_by: str) -> Fault:
    return Fault(what, f"{OBJECTIVES}.nll", "NLL", old, new, caught_by)


def iql(what: str, old: str, new: str, *caught_by: str, **parameters: Any) -> Fault:
    return Fault(what, f"{OBJECTIVES}.iql", "IQL", old, new, caught_by, tuple(parameters.items()))


def temporal(what: str, old: str, new: str, *caught_by: str, **parameters: Any) -> Fault:
    """A fault in what the temporal-difference objectives share, seen on inverse soft-Q learning."""
    return Fault(what, f"{OBJECTIVES}.iql", "IQL", old, new, caught_by, tuple(parameters.items()), TEMPORAL)


def kl(what: str, old: str, new: str, *caught_by: str, **parameters: Any) -> Fault:
    """A fault in what all divergences share, seen on the forward KL."""
    module = f"{OBJECTIVES}.forward_kl"
    return Fault(what, module, "ForwardKL", old, new, caught_by, tuple(parameters.items()), DIVERGENCE)


def prefixes(what: str, old: str, new: str, *caught_by: str, **parameters: Any) -> Fault:
    """A fault in what all subsets of first tokens share, seen on top-p."""
    return Fault(what, f"{SUBSETS}.top_p", "TopP", old, new, caught_by, tuple(parameters.items()), PREFIXES)


def top_k(what: str, old: str, new: str, *caught_by: str, **parameters: Any) -> Fault:
    return Fault(what, f"{SUBSETS}.top_k", "TopK", old, new, caught_by, tuple(parameters.items()))


def sampled(what: str, old: str, new: str, *caught_by: str, **parameters: Any) -> Fault:
    return Fault(what, f"{SUBSETS}.sampled", "Sampled", old, new, caught_by, tuple(parameters.items()))


def student_top_k(what: str, old: str, new: str, *caught_by: str) -> Fault:
    return Fault(what, f"{SUBSETS}.student_top_k", "StudentTopK", old, new, caught_by, (("k", 3),))


def extraction(part: str, what: str, old: str, new: str, *caught_by: str, **parameters: Any) -> Fault:
    module = {"Softmax": "softmax", "ProjectedSoftmax": "projected_softmax", "Greedy": "greedy"}[part]
    return Fault(what, f"{EXTRACTIONS}.{module}", part, old, new, caught_by, tuple(parameters.items()))


def teacher(what: str, old: str, new: str, *caught_by: str) -> Fault:
    return Fault(what, f"{SOURCES}.teacher", "FromTeacher", old, new, caught_by)


def metric(part: str, what: str, old: str, new: str, *caught_by: str) -> Fault:
    module = {"ForwardKL": "divergence", "Right": "right"}[part]
    return Fault(what, f"distillzoo.benchmarks.metrics.{module}", part, old, new, caught_by)


FAULTS = [
    nll("a sign flipped", "nll=-td", "nll=td", "never-negative", "learns"),
    nll("a mean over the batch", "[:, 0] * td.counts", ".mean() * td.counts", "batch-split"),
    nll("the row mask shifted by one", "* td.counts", "* td.counts.roll(1)", "batch-order", "batch-split"),
    nll("actions outside the subset counted", " * td.counts", "", "never-negative"),
    nll("rows weighed twice", "* td.counts", "* td.counts * td.transitions.weight", "weights"),
    nll("the student detached", "-td.extraction.log_policy(td.q, action)[:, 0]",
        "-td.extraction.log_policy(td.q, action)[:, 0].detach()", "terms"),
    iql("the sign of chi-squared flipped", "lambda x: x.square() /", "lambda x: -x.square() /", "never-negative"),
    iql("the sign of the imitation term flipped", "(td.value - td.q_action)", "(td.q_action - td.value)",
        "never-negative", "learns", alpha=5.0),
    iql("a mean over the wrong axis", "lambda x: x.square() /", "lambda x: x.square().mean() /", "batch-split"),
    temporal("the next row taken for the successor", "td.transitions.next_value(value)", "value.roll(-1)",
             "batch-order"),
    temporal("a truncated answer taken for an ended one", "td.transitions.known & (td.counts > 0)", "td.counts > 0",
             "truncation"),
    temporal("a gradient stopped in silence", "next_value(value)", "next_value(value.detach())", "gradcheck"),
    temporal("the level subtracted from Q only", "taken - level, value - level", "taken - level, value", "gauge"),
    temporal("a level of the whole batch", "else q.max()", "else q.max() * 0 + q.max().max()", "batch-split",
             gauge="subset-max"),
    temporal("a batch column taken for a time", "q - self.gamma * td", "q - self.gamma ** td.transitions.position * td",
             "padding-side"),
    iql("divided by the head's columns", "x_less_phi(self.divergence, self.alpha)",
        "x_less_phi(self.divergence, self.alpha * td.student.size)", "vocabulary-rows"),
    iql("the teacher read undeclared", "td.q_action) * td.counts", "td.q_action) * td.counts * td.teacher.rows "
        "/ len(td.transitions)", "declared-teacher"),
    iql("another constant each time", "imitation=self", "imitation=__import__('random').random() * self",
        "deterministic"),
    kl("a teacher that gets gradient", "td.student.rowwise(self._whole, td.teacher)",
       "self._whole(td.student.logits, td.teacher.logits)", "teacher-constant"),
    kl("logits that must be dense", "td.student.rowwise(self._whole, td.teacher)",
       "self._whole(td.student.logits, td.teacher.logits.detach())", "lazy-logits"),
    kl("teacher and student exchanged", "td.student.rowwise(self._whole, td.teacher)",
       "td.teacher.rowwise(self._whole, td.student)", "terms"),
    kl("a tail dropped in silence", "torch.log(-torch.expm1(log_mass)), NEVER)", "0.0, NEVER)", "stationary"),
    kl("padding that leaks", "logprobs.masked_fill(~td.subset.mask, NEVER)", "logprobs", "table-padding"),
    kl("a teacher that is not renormalised", "td.subset.logprobs - listed.logsumexp(1, keepdim=True)",
       "td.subset.logprobs", "never-negative", tail="renormalise"),
    kl("the tail's floor left out", "log_mass = log_mass + (log_mass.clamp(max=floor) - log_mass).detach()", "",
       "one-hot-teacher"),
    prefixes("the tokens after the nucleus", "before < p * (1", "before > p * (1", "grows"),
    prefixes("a sum that rounds to 1 before the last token", "if p == 1.0:", "if p > 1.0:", "limit"),
    prefixes("a nucleus that shrinks with p", "before < p * (1", "before < (1.01 - p) * (1", "grows"),
    prefixes("a set that may be empty", "kept[:, 0] = True", "kept[:, 0] &= logprobs[:, 0] > -1", "never-empty",
             p=0.05),
    prefixes("actions shifted by one against their probabilities", "logprobs = logits - total",
             "actions = actions.roll(1, 1)\n        logprobs = logits - total", "logprobs"),
    prefixes("masked entries in the mass", "mass = torch.where(mask, logprobs.exp(), 0.0)", "mass = logprobs.exp()",
             "mass", p=0.3),
    prefixes("probabilities over the tokens looked at", "logits - total[rows, None]",
             "logits - logits.logsumexp(1, keepdim=True)", "logprobs"),
    prefixes("a look that does not grow", "done = ~kept[:, -1] if look < limit else", "done =", "limit"),
    top_k("a threshold of the whole batch", "mask[:, 0] = True", "mask &= logprobs >= logprobs.median()\n            "
          "mask[:, 0] = True", "row-by-row", k=5),
    top_k("a gradient to the teacher", "with torch.no_grad():", "if True:", "tables"),
    top_k("ids without a token taken", "mask = logprobs > float(\"-inf\")", "mask = logprobs == logprobs",
          "vocabulary-rows"),
    top_k("the rarest first", "Subset(actions.where(mask, 0), mask, logprobs.where(mask, 0.0), mass)",
          "Subset(actions.where(mask, 0).flip(1), mask.flip(1), logprobs.where(mask, 0.0).flip(1), mass)", "sorted",
          k=3),
    sampled("a token that is drawn twice counted once", "weights = count /", "weights = 1.0 /", "weights", p=0.3),
    sampled("the number of draws for their probability", "self.m * probs.gather(1, actions)",
            "self.m + 0 * probs.gather(1, actions)", "weights", p=0.3),
    sampled("a nucleus that weighs as much as its mass", "nucleus.mask.to(weights.dtype)",
            "nucleus.mask / nucleus.mass[:, None]", "weights", p=0.3),
    sampled("draws from an empty tail", "weights.where(some, 0.0)", "weights", "vocabulary-rows", p=1.0),
    sampled("draws that are not declared", "def draws(self) -> bool:\n        return True",
            "def draws(self) -> bool:\n        return False", "deterministic", p=0.3),
    sampled("weights that are not declared", "def weighted(self) -> bool:\n        return True",
            "def weighted(self) -> bool:\n        return False", "weights", p=0.3),
    student_top_k("the teacher's likeliest tokens", "student.top(", "teacher.top(", "student"),
    student_top_k("the student's probabilities", "teacher.gather(actions) - teacher", "student.gather(actions) - "
                  "student", "logprobs"),
    student_top_k("a gradient to the teacher", "    @torch.no_grad()\n", "", "tables"),
    extraction("ProjectedSoftmax", "a temperature forgotten", "return self.temperature * q.log", "return q.log",
               "equivariant", temperature=0.5),
    extraction("ProjectedSoftmax", "normalised over the vocabulary", "- q.logsumexp(self.temperature)[:, None]",
               "- q.view.tempered_logsumexp(self.temperature)[:, None]", "normalised"),
    extraction("Softmax", "the support declared wrongly", "on_subset: ClassVar[bool] = False",
               "on_subset: ClassVar[bool] = True", "normalised", "support-declared"),
    extraction("Greedy", "padding that leaks into a maximum", "return q.max()", "return q.values.amax(1)",
               "table-padding"),
    teacher("answers that stand with other prompts", "zip(prompts, answers", "zip(prompts[::-1], answers",
            "answers-belong"),
    teacher("a seed that is not used", "sources.seed)", "0)", "seed-counts"),
    teacher("a cut answer marked as ended", "Trajectory(prompt, answer, ",
            "Trajectory(prompt, type(answer)(answer.tokens, True), ", "end-flag"),
    teacher("the student sampled instead", "sources.teacher(", "sources.student(", "on-policy"),
    metric("ForwardKL", "the wrong direction", "= \"lower\"\n    label: ClassVar[str] = \"forward",
           "= \"higher\"\n    label: ClassVar[str] = \"forward", "value"),
    metric("Right", "no answer to a missing checker", "if evaluated.right is None:", "if False:", "undefined"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _shapes_unchecked() -> Iterator[None]:
    """The kit alone must catch the faults, as in a stranger's environment."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def broken(fault: Fault) -> Part:
    """The part from a copy of its module's source with the fault in it."""
    edited = fault.within or fault.module
    source = inspect.getsource(importlib.import_module(edited))
    assert source.count(fault.old) == 1, f"the built-in part has changed: {fault.old!r}"
    module = copied(f"faulty_{fault.part}_{abs(hash(fault))}", source.replace(fault.old, fault.new))
    if fault.within:
        using = inspect.getsource(importlib.import_module(fault.module))
        module = copied(f"{module.__name__}_used", using.replace(fault.within, module.__name__))
    part: Part = getattr(module, fault.part)(**dict(fault.parameters))
    return part


def copied(name: str, source: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def test_there_are_twenty_and_more():
    assert len(FAULTS) >= 20


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.part}: {f.what}")
def test_the_kit_catches_it(fault):
    part = broken(fault)
    checks = {c.name: c for c in checks_of(part)}
    for name in fault.caught_by:
        with pytest.raises(CheckFailed):
            checks[name](part)


def test_a_recipe_without_its_support_term_is_caught(tmp_path):
    text = (Path(distillzoo.zoo.__file__).parent / "bd-iql.yaml").read_text()
    (tmp_path / "faulty.yaml").write_text(text.replace("support_weight: 1.0", "support_weight: 0.0"))
    failed = {o.check.name for o in outcomes([RecipeFile(tmp_path / "faulty.yaml", "faulty")]) if o.status == "failed"}
    assert failed == {"outside-mass"}
