"""Sampling: the stated decoding and nothing else, what it records, and samples that are kept."""

import math

import pytest
import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from distillzoo.core import generation
from distillzoo.core.extraction import Decoding
from distillzoo.core.generation import Generator, KeptSamples
from distillzoo.core.mixture import Mixture, Nucleus
from distillzoo.core.models import Backbone, Vocabulary, backbone
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


HOLES = (7, 19)
"""Ids without a token in the teacher of the mixtures."""

WIDER = VOCABULARY + 8

DECODINGS = [Decoding(), Decoding(0.6, 1.0), Decoding(1.0, 0.7), Decoding(1.5, 0.9)]


def mixture(share: float, kind: str = "llama") -> Mixture:
    """A teacher with rows and ids that no token has, which it likes best of all."""
    model = tiny_model(kind, 3, rows=WIDER)
    with torch.no_grad():
        model.get_output_embeddings().weight[[*HOLES, *range(VOCABULARY, WIDER)]] *= 5
    vocabulary = Vocabulary(VOCABULARY, torch.tensor(HOLES))
    found = backbone(model, vocabulary, "teacher")
    return Mixture(Backbone(model, found.head, vocabulary), share)


def distribution(student, mixed: Mixture | None, decoding: Decoding, prefix: list[int], suppressed=()) -> Tensor:
    """What the next token is drawn from, ``[V]`` in float64, from whole forward passes on the one prefix."""
    logits = student(torch.tensor([prefix])).logits[0, -1].double()
    logits[list(suppressed)] = -math.inf
    p = logits.softmax(0)
    if mixed is not None:
        theirs = mixed.teacher.model(torch.tensor([prefix])).logits[0, -1].double()[:VOCABULARY]
        theirs[list(HOLES)] = -math.inf
        p = mixed.share * theirs.softmax(0) + (1 - mixed.share) * p
    p = p ** (1 / decoding.temperature)
    p = p / p.sum()
    kept, mass = torch.zeros_like(p), 0.0
    for token in p.argsort(descending=True).tolist():
        kept[token] = p[token]
        mass += float(p[token])
        if mass >= decoding.top_p:
            break
    return kept / kept.sum()


@torch.no_grad()
def assert_recorded(student, mixed: Mixture | None, decoding: Decoding, found: list[Completion], suppressed=()) -> None:
    for prompt, completion in zip(PROMPTS, found, strict=True):
        assert completion.logprobs is not None
        assert len(completion.logprobs) == len(completion.tokens)
        for i, (token, recorded) in enumerate(zip(completion.tokens, completion.logprobs, strict=True)):
            p = distribution(student, mixed, decoding, [*prompt, *completion.tokens[:i]], suppressed)
            assert recorded == pytest.approx(float(p[token].log()), abs=2e-4)


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma2"])
def test_recorded_logprobs_are_those_of_plain_forward_passes(kind, decoding):
    student = tiny_model(kind)
    sampled = generator(student, with_logprobs=True, stops=[2, 3, 4, 5, 6, 7, 8])
    tries = (sampled(PROMPTS, decoding, seed=seed) for seed in range(4, 24))  # numbers drawn differ between releases
    found = next((one for one in tries if len({len(c.tokens) for c in one}) > 1), None)
    assert found is not None, "some rows should end before others"
    assert_recorded(student, None, decoding, found)


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("kinds", [("llama", "llama"), ("llama", "gpt2"), ("gpt2", "llama"), ("opt", "gemma2")])
def test_recorded_logprobs_of_a_mixture_are_those_of_plain_forward_passes(kinds, share, decoding):
    student, mixed = tiny_model(kinds[0]), mixture(share, kinds[1])
    sample = generator(student, with_logprobs=True, mixture=mixed, suppressed=HOLES, stops=[2, 3, 4, 5, 6])
    assert_recorded(student, mixed, decoding, sample(PROMPTS, decoding, seed=5), HOLES)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_first_tokens_of_a_mixture_follow_its_distribution(share):
    count, decoding = 6000, Decoding(0.9, 0.95)
    student, mixed = tiny_model("llama"), mixture(share, "gpt2")
    sample = generator(student, mixture=mixed, suppressed=HOLES, max_new_tokens=1, batch_size=2000)
    found = sample([[1, 5]] * count, decoding, seed=0)
    counts = torch.bincount(torch.tensor([c.tokens[0] for c in found]), minlength=VOCABULARY).double()
    with torch.no_grad():
        expected = count * distribution(student, mixed, decoding, [1, 5], HOLES)
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    bins = (
        torch.cat([expected[~rare], expected[rare].sum()[None]]),
        torch.cat([counts[~rare], counts[rare].sum()[None]]),
    )
    chi2 = float(((bins[1] - bins[0]) ** 2 / bins[0].clamp(min=1e-9)).sum())
    freedom = len(bins[0]) - 1
    assert chi2 < freedom + 3.5 * math.sqrt(2 * freedom)


def test_a_mixture_without_a_share_samples_what_the_student_samples():
    student = tiny_model()
    plain = generator(student, with_logprobs=True)(PROMPTS, Decoding(), seed=2)
    mixed = generator(student, with_logprobs=True, mixture=mixture(0.0))(PROMPTS, Decoding(), seed=2)
    assert [c.tokens for c in mixed] == [c.tokens for c in plain]


def test_greedy_tokens_have_probability_one():
    for mixed in (None, mixture(0.5)):
        found = generator(with_logprobs=True, mixture=mixed)(PROMPTS, Decoding(temperature=0.0), seed=0)
        assert all(c.logprobs == [0.0] * len(c.tokens) for c in found)


def test_a_greedy_mixture_picks_its_likeliest_token():
    student, mixed = tiny_model("gpt2"), mixture(0.5)
    found = generator(student, mixture=mixed, suppressed=HOLES)(PROMPTS, Decoding(temperature=0.0), seed=0)
    with torch.no_grad():
        for prompt, completion in zip(PROMPTS, found, strict=True):
            for i, token in enumerate(completion.tokens):
                prefix = [*prompt, *completion.tokens[:i]]
                assert token == int(distribution(student, mixed, Decoding(), prefix, HOLES).argmax())


def test_greedy_answers_do_not_depend_on_the_batch():
    for mixed in (None, mixture(0.5, "gpt2")):
        together = generator(mixture=mixed)(PROMPTS, Decoding(temperature=0.0), seed=0)
        assert generator(mixture=mixed, batch_size=1)(PROMPTS, Decoding(temperature=0.0), seed=1) == together


def test_recording_changes_no_sample():
    plain = generator()(PROMPTS, Decoding(1.1, 0.9), seed=6)
    recorded = generator(with_logprobs=True)(PROMPTS, Decoding(1.1, 0.9), seed=6)
    assert [c.tokens for c in recorded] == [c.tokens for c in plain]
    assert all(c.logprobs is None for c in plain)


def test_limits_cut_each_response_at_its_own_length():
    sample = generator(with_logprobs=True)
    whole = sample(PROMPTS, Decoding(), seed=3)
    limits = [6, 0, 2, 1]
    for long, short, limit in zip(whole, sample(PROMPTS, Decoding(), 3, limits), limits, strict=True):
        assert short.logprobs is not None
        assert len(short.tokens) == len(short.logprobs) <= limit
        assert short.ended == (long.ended and len(long.tokens) <= limit)
    assert sample(PROMPTS, Decoding(), 3, [6, 6, 2, 1])[2].tokens == whole[2].tokens[:2]
    assert sample([], Decoding(), 3) == []
    assert [c.tokens for c in sample(PROMPTS, Decoding(), 3, [0] * 4)] == [[]] * 4


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_even_if_sampling_fails(training):
    model = tiny_model().train(training)
    generator(model)(PROMPTS, Decoding(), seed=0)
    assert model.training == training
    settings = model.generation_config
    with pytest.raises((RuntimeError, IndexError)):
        generator(model)([[1, VOCABULARY + 5]], Decoding(), seed=0)
    assert model.training == training
    assert model.generation_config is settings


def test_dropout_is_off_while_sampling():
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5).train()
    found = generator(model)(PROMPTS, Decoding(temperature=0.0), seed=0)
    assert found == generator(tiny_model("gpt2"))(PROMPTS, Decoding(temperature=0.0), seed=0)


@pytest.fixture
def keeper(tmp_path):
    calls = []

    def sample(prompts, decoding, seed):
        calls.append((prompts, seed))
        return generator()(prompts, decoding, seed)

    return calls, lambda **identity: KeptSamples(sample, {"teacher": "a", **identity}, tmp_path)


def test_samples_are_made_once(keeper):
    calls, make = keeper
    first = make()(PROMPTS, Decoding(), 0)
    assert make()(PROMPTS, Decoding(), 0) == first
    assert len(calls) == 1
    assert all(isinstance(c, Completion) for c in first)


def test_samples_are_kept_in_blocks_each_with_a_seed_of_its_own(keeper, monkeypatch):
    calls, make = keeper
    monkeypatch.setattr(generation, "BLOCK", 2)
    prompts = [[1, 2], [3], [1, 2], [3], [4]]
    found = make()(prompts, Decoding(), 7)
    assert len(found) == 5
    assert [len(asked) for asked, _ in calls] == [2, 2, 1]
    assert calls[0][1] == 7
    assert len({seed for _, seed in calls}) == 3, "or the same prompts would get the same answers"
    make()(prompts[:4], Decoding(), 7)
    assert len(calls) == 3, "a block that is there is read"


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


@pytest.mark.parametrize("p", [0.05, 0.5, 0.8, 0.999])
def test_the_nucleus_is_that_of_transformers(p):
    scores = (
        torch.randn(50, 3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * torch.linspace(0.01, 5, 50)[:, None]
    )
    scores[:, 7] = -math.inf
    found = Nucleus(p)(torch.zeros(50, 1), scores)
    assert torch.equal(found, TopPLogitsWarper(p)(None, scores))


def test_a_shorter_data_type_is_that_of_the_products_and_not_of_the_weights():
    model, seen = tiny_model(), []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    found = generator(model, dtype=torch.bfloat16, with_logprobs=True)(PROMPTS, Decoding(), seed=0)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    exact = generator(model, with_logprobs=True)(PROMPTS, Decoding(), seed=0)
    pairs = [(a, b) for x, y in zip(found, exact, strict=True) if x.tokens == y.tokens
             for a, b in zip(x.logprobs, y.logprobs, strict=True)]  # fmt: skip
    assert pairs
    assert all(a == pytest.approx(b, abs=0.05) for a, b in pairs)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_weights_that_have_the_data_type_are_not_under_anothers_autocast(dtype):
    model, seen = tiny_model().bfloat16() if dtype == torch.bfloat16 else tiny_model(), []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.float16):
        generator(model, dtype=dtype)(PROMPTS, Decoding(), seed=0)
    assert set(seen) == {model.dtype}
