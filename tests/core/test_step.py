"""What a step reports beside its loss."""

from dataclasses import replace

import pytest
import torch

from distillzoo.core.batch import Collator
from distillzoo.core.models import Vocabulary, backbone
from distillzoo.core.registry import installed
from distillzoo.core.step import MASS_ROWS, Distillation, ask
from tests.core.one_step import EOS, trajectories
from tests.tiny import VOCABULARY, tiny_model


def composition(**parameters):
    """bd-iql's step, its teacher and its subset."""
    vocabulary, registry = Vocabulary(VOCABULARY, None), installed()
    teacher = backbone(tiny_model("llama", 3), vocabulary, "teacher")
    student = backbone(tiny_model("llama", 2), vocabulary, "student")
    subset = registry.get("subset", "top-p")()
    objective = registry.get("objective", "iql")(gauge="subset-max", **parameters)
    return Distillation(student, subset, objective, registry.get("extraction", "projected-softmax")()), teacher, subset


@pytest.mark.parametrize("parameters", [{}, {"support_weight": 0.5}, {"support_weight": 0.5, "support_fraction": 0.5}])
def test_the_students_mass_on_the_sets(parameters):
    module, teacher, subset = composition(**parameters)
    batch = Collator(EOS).batch(trajectories(), torch.device("cpu"))
    table = batch.transitions()
    asked = ask(batch, table, teacher, subset, needs_view=False)
    with torch.no_grad():
        torch.manual_seed(4)
        result = module(asked)
        policy = module.backbone.view_of(batch, asked.table).block(torch.arange(len(asked.table))).softmax(1)
    masses = (policy.gather(1, asked.subset.actions) * asked.subset.mask).sum(1)
    found = float(result.sums["student_mass"] / table.weight.sum())
    torch.manual_seed(4)
    drawn = torch.randperm(len(table))
    if "support_fraction" in parameters:
        masses = masses[drawn[: len(table) // 2]]
    elif not parameters:
        masses = masses[drawn[:MASS_ROWS]]
    assert found == pytest.approx(float(masses.mean()), rel=1e-5)


@pytest.mark.parametrize("parameters", [{"support_weight": 0.5, "support_fraction": 0.5}, {"support_weight": 0.5}, {}])
def test_a_pass_without_rows_is_zero(parameters):
    module, teacher, subset = composition(**parameters)
    batch = Collator(EOS).batch([replace(t, given=len(t.response.tokens)) for t in trajectories()], torch.device("cpu"))
    result = module(ask(batch, batch.transitions(), teacher, subset, needs_view=False))
    assert result.rows == 0
    assert float(result.loss.detach()) == 0.0


@pytest.mark.parametrize("tied", [True, False])
def test_the_heads_gradient_is_sparse_on_its_way_and_dense_when_it_arrives(tied, monkeypatch):
    """Two passes of gradient accumulation, against those with dense gradients."""
    found = []
    for sparse in (True, False):
        model = tiny_model("llama", 2, tie_word_embeddings=tied).requires_grad_()
        objective = installed().get("objective", "iql")(gauge="subset-max")
        subset, extraction = installed().get("subset", "top-k")(), installed().get("extraction", "projected-softmax")()
        module = Distillation(backbone(model, Vocabulary(VOCABULARY, None), "student"), subset, objective, extraction)
        if not sparse:
            monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        teacher = backbone(tiny_model("llama", 3), Vocabulary(VOCABULARY, None), "teacher")
        arriving: list[bool] = []
        model.lm_head.weight.register_hook(lambda grad, arriving=arriving: arriving.append(grad.is_sparse))
        for part in (trajectories()[:4], trajectories()[4:]):
            torch.manual_seed(0)
            batch = Collator(EOS).batch(part, torch.device("cpu"))
            module(ask(batch, batch.transitions(), teacher, subset, needs_view=False)).loss.backward()
        assert arriving == [sparse and not tied] * 2, "a tied head's meets the embedding's, which is dense"
        assert not model.lm_head.weight.grad.is_sparse
        found.append({name: value.grad.clone() for name, value in model.named_parameters()})
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-5, atol=1e-6)
