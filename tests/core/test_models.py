"""Architectures, pruning, vocabularies and sources of models."""

import logging

import pytest
import torch

from distillzoo.core.config import ModelSource
from distillzoo.core.errors import UserError
from distillzoo.core.logits import DenseLogits, FactoredLogits
from distillzoo.core.models import (
    Vocabulary,
    backbone,
    fingerprint,
    load_model,
    load_student,
    shared_vocabulary,
)
from distillzoo.core.prune import kept_layers, prune
from tests.tiny import VOCABULARY, tiny_model, word_tokenizer

KINDS = ["llama", "qwen2", "gpt2", "opt", "gemma", "phi"]
IDS = torch.tensor([[1, 5, 9, 7, 3, 4], [1, 8, 4, 6, 2, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
ROWS = (torch.tensor([0, 0, 1, 1]), torch.tensor([2, 5, 0, 3]))


def whole(model):
    return backbone(model, Vocabulary(VOCABULARY, None), "student")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_factored_logits_are_the_models_own(kind, tied):
    model = tiny_model(kind, tie_word_embeddings=tied)
    found = whole(model)
    assert found.head is not None, "a plain linear head is recognised"
    view = found.view(found.states(IDS, MASK, *ROWS))
    assert isinstance(view, FactoredLogits)
    expected = model(input_ids=IDS, attention_mask=MASK).logits[ROWS]
    torch.testing.assert_close(view.block(torch.arange(4)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_factored_gradients_are_the_models_own(kind, tied):
    model = tiny_model(kind, tie_word_embeddings=tied).double()
    model.requires_grad_()
    grads = []
    for lazy in (True, False):
        model.zero_grad()
        if lazy:
            found = whole(model)
            value = found.view(found.states(IDS, MASK, *ROWS)).logsumexp().sum()
        else:
            value = model(input_ids=IDS, attention_mask=MASK).logits[ROWS].logsumexp(1).sum()
        value.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-6, atol=1e-6)


def test_soft_capping_falls_back_to_dense_logits_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        found = whole(tiny_model("gemma2"))
    assert found.head is None
    assert "soft-capping" in caplog.text
    view = found.view(found.states(IDS, MASK, *ROWS))
    assert isinstance(view, DenseLogits)
    expected = found.model(input_ids=IDS, attention_mask=MASK).logits[ROWS]
    torch.testing.assert_close(view.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_padding_side_and_width_make_no_difference(kind):
    found = whole(tiny_model(kind))
    right = found.states(IDS, MASK, *ROWS)
    shift = 3
    left_ids, left_mask = torch.full((2, 6 + shift), 2), torch.zeros(2, 6 + shift, dtype=torch.long)
    for i, length in enumerate(MASK.sum(1).tolist()):
        left_ids[i, -length:], left_mask[i, -length:] = IDS[i, :length], 1
    start = 6 + shift - MASK.sum(1)
    left = found.states(left_ids, left_mask, ROWS[0], ROWS[1] + start[ROWS[0]])
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("total", "keep", "expected"),
    [
        (30, 10, [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]),
        (4, 2, [0, 3]),
        (5, 5, [0, 1, 2, 3, 4]),
        (12, 3, [0, 6, 11]),
    ],
)
def test_kept_layers_are_evenly_spaced_with_the_first_and_the_last(total, keep, expected):
    assert kept_layers(total, keep) == expected


@pytest.mark.parametrize("keep", [0, 1, 7])
def test_impossible_prunings_are_refused(keep):
    with pytest.raises(UserError, match="from 2 to 6"):
        kept_layers(6, keep)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_model_is_the_teacher_without_some_layers(kind):
    teacher = tiny_model(kind, layers=4)
    student = prune(teacher, 4)
    torch.testing.assert_close(student.eval()(IDS).logits, teacher(IDS).logits)
    small = prune(teacher, 2).eval()
    assert small.config.num_hidden_layers == 2
    assert small.num_parameters() < teacher.num_parameters()
    stack = "transformer.h" if kind == "gpt2" else "model.decoder.layers" if kind == "opt" else "model.layers"
    for name, value in teacher.get_submodule(f"{stack}.3").state_dict().items():
        torch.testing.assert_close(small.get_submodule(f"{stack}.1").state_dict()[name], value)
    small.generate(IDS[:1], max_new_tokens=3, do_sample=False)  # its cache has the right number of layers


def test_rows_without_a_token_are_outside_the_shared_vocabulary():
    tokenizer = word_tokenizer()
    found = shared_vocabulary(tokenizer, tokenizer)
    assert (found.size, found.holes) == (VOCABULARY, None)


def test_different_tokenizers_are_refused_with_examples():
    other = word_tokenizer(extra=("surplus",))
    with pytest.raises(UserError, match=r"different tokenizers.*'surplus'"):
        shared_vocabulary(word_tokenizer(), other)


def test_an_added_token_that_only_one_has_is_left_out_with_a_warning(caplog):
    other = word_tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    found = shared_vocabulary(word_tokenizer(), other)
    assert found.size == VOCABULARY
    assert "<tool>" in caplog.text


def test_sources_that_do_not_exist_are_named(registry, tmp_path):
    for model, message in (
        ("./nowhere", "no folder './nowhere'"),
        ("model.gguf", "no file 'model.gguf'"),
        (str(tmp_path), "cannot be loaded"),
        ("micro:uncle", "a suite has a teacher and a student"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(ModelSource(model=model), registry, torch.float32, torch.device("cpu"))
    with pytest.raises(UserError, match="prune:layers=N"):
        load_student(ModelSource(model="prune:10"), registry, ModelSource(model="x"), torch.device("cpu"))


def test_pickled_weights_are_not_loaded(registry, tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(ModelSource(model=str(tmp_path)), registry, torch.float32, torch.device("cpu"))


def test_a_model_with_missing_weights_is_not_filled_at_random(registry, tmp_path):
    model = tiny_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "lm_head" not in k})
    with pytest.raises(UserError, match=r"lack 1 tensors.*lm_head"):
        load_model(ModelSource(model=str(tmp_path)), registry, torch.float32, torch.device("cpu"))


def test_truncated_weights_are_explained(registry, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(ModelSource(model=str(tmp_path)), registry, torch.float32, torch.device("cpu"))


def test_a_token_that_the_model_has_no_row_for_is_left_out():
    found = backbone(tiny_model(rows=VOCABULARY), Vocabulary(VOCABULARY + 1, None), "student")
    assert found.vocabulary.size == VOCABULARY
    assert found.narrowed(20).columns_without_token() == list(range(20, VOCABULARY))


def test_a_fingerprint_sees_one_changed_weight():
    model = tiny_model()
    before = fingerprint(model)
    assert fingerprint(model) == before
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(model) != before


def write_gguf(path, tokenizer, model) -> None:
    """A float32 GGUF file of a tiny Llama model, with the key names and the query-key order of that format."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(words) - 3))
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads, (rows, columns) = config.num_attention_heads, tensor.shape
            tensor = tensor.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_the_model_that_was_written(registry, tmp_path):
    model = tiny_model("llama", 2, hidden_size=32, tie_word_embeddings=False)
    write_gguf(tmp_path / "tiny.gguf", word_tokenizer(), model)
    source = ModelSource(model=str(tmp_path / "tiny.gguf"))
    loaded = load_model(source, registry, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-3, atol=1e-3)
