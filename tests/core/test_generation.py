"""Sampling: the stated decoding and nothing else, and samples that are kept."""

import pytest
import torch

from distillzoo.core.extraction import Decoding
from distillzoo.core.generation import Generator, KeptSamples
from distillzoo.core.trajectories import Completion
from tests.tiny import VOCABULARY, tiny_model

PROMPTS = [[1, 5], [1, 6, 7, 8], [1, 9, 9], [1, 4]]


def generator(model=None, **changes) -> Generator:
    settings = {"stops": [2], "pad": 2, "suppressed": [], "max_new_tokens": 6, "batch_size": 4}
    return Generator(model=model or tiny_model(), **{**settings, **changes})


def test_greedy_decoding_equals_a_loop_without_padding_or_cache():
    model = tiny_model()
    found = generator(model)(PROMPTS, Decoding(temperature=0.0), seed=0)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids, expected = list(prompt), []
        while len(expected) < 6 and (not expected or expected[-1] != 2):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            expected.append(ids[-1])
        assert completion.tokens == expected
        assert completion.ended == (expected[-1] == 2)


def test_the_models_own_generation_settings_do_not_apply():
    model = tiny_model()
    plain = generator(model)(PROMPTS, Decoding(), seed=3)
    model.generation_config.update(repetition_penalty=50.0, top_k=1, no_repeat_ngram_size=1, temperature=0.01)
    kept = model.generation_config.to_dict()
    assert generator(model)(PROMPTS, Decoding(), seed=3) == plain
    assert model.generation_config.to_dict() == kept, "and they are left as they were"


def test_the_same_seed_gives_the_same_and_leaves_the_global_state_alone():
    sample = generator()
    before = torch.random.get_rng_state()
    first = sample(PROMPTS, Decoding(), seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert generator()(PROMPTS, Decoding(), seed=1) == first
    assert generator()(PROMPTS, Decoding(), seed=2) != first


def test_columns_without_a_token_are_never_sampled():
    model = tiny_model(rows=VOCABULARY + 8)
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY:] *= 20
    found = generator(model, suppressed=range(VOCABULARY, VOCABULARY + 8))(
        [[1, 5]] * 40, Decoding(temperature=2.0), seed=0
    )
    assert max(token for c in found for token in c.tokens) < VOCABULARY


def test_samples_follow_the_models_distribution():
    model = tiny_model()
    expected = model(torch.tensor([[1, 5]])).logits[0, -1].softmax(0)
    found = generator(model, max_new_tokens=1, batch_size=500)([[1, 5]] * 4000, Decoding(), seed=0)
    share = torch.bincount(torch.tensor([c.tokens[0] for c in found]), minlength=VOCABULARY) / 4000
    standard_error = (expected * (1 - expected) / 4000).sqrt()
    assert ((share - expected).abs() < 4.5 * standard_error + 1e-3).all()


@pytest.fixture
def keeper(tmp_path):
    calls = []

    def sample(*arguments):
        calls.append(1)
        return generator()(*arguments)

    return calls, lambda **identity: KeptSamples(sample, {"teacher": "a", **identity}, tmp_path)


def test_samples_are_made_once(keeper):
    calls, make = keeper
    first = make()(PROMPTS, Decoding(), 0)
    assert make()(PROMPTS, Decoding(), 0) == first
    assert len(calls) == 1
    assert all(isinstance(c, Completion) for c in first)


def test_a_damaged_file_is_made_anew(keeper, tmp_path):
    calls, make = keeper
    first = make()(PROMPTS, Decoding(), 0)
    (file,) = tmp_path.glob("*.parquet")
    file.write_bytes(file.read_bytes()[:50])
    assert make()(PROMPTS, Decoding(), 0) == first
    assert len(calls) == 2


def test_anything_that_changes_the_samples_makes_new_ones(keeper):
    calls, make = keeper
    make()(PROMPTS, Decoding(), 0)
    make()(PROMPTS, Decoding(top_p=0.9), 0)
    make()(PROMPTS, Decoding(), 1)
    make()(PROMPTS[:2], Decoding(), 0)
    make(teacher="b")(PROMPTS, Decoding(), 0)
    assert len(calls) == 5
