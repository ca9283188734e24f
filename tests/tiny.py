"""Tiny random models of several architectures, with a word-level tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(29)]
VOCABULARY = 32

TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' w1 ' + m['content'] + ' <eos>' }}"
    "{% else %}{{ ' w0 ' + m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' w1' }}{% endif %}"
)


def word_tokenizer(extra: tuple[str, ...] = (), chat: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of 29 words and three special tokens; pad and end are the same id, as in GPT-2 and OPT."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<bos>", "<eos>", *WORDS, *extra])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(kind: str = "llama", layers: int = 2, rows: int = VOCABULARY, **changes: Any) -> PreTrainedModel:
    """A random model of an architecture, with ``rows`` rows in its embedding and head, in eval mode."""
    common: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    own: dict[str, dict[str, Any]] = {
        "llama": {"intermediate_size": 24},
        "qwen2": {"intermediate_size": 24, "num_key_value_heads": 1},
        "gpt2": {},
        "opt": {"ffn_dim": 24, "word_embed_proj_dim": 8},
        "gemma": {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8},
        "gemma2": {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 2.0},
        "phi": {"intermediate_size": 24},
    }
    names = {"llama": "Llama", "qwen2": "Qwen2", "gpt2": "GPT2", "opt": "OPT", "gemma": "Gemma", "gemma2": "Gemma2"}
    config_class = getattr(transformers, f"{names.get(kind, kind.capitalize())}Config")
    config = config_class(**{**common, **own[kind], **changes})
    torch.manual_seed(layers + rows)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # fresh weights are so small that every distribution is flat
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.35)
    return model.eval()


@dataclass(frozen=True)
class Tiny:
    """Folders of a saved pair, and data for it."""

    teacher: Path
    student: Path
    data: Path


def make_tiny(folder: Path) -> Tiny:
    """Save a pair of Llama models with their tokenizer and forty rows of data."""
    import json

    tokenizer = word_tokenizer()
    for name, layers in (("teacher", 3), ("student", 2)):
        tiny_model("llama", layers).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [
        {"instruction": f"w{i % 20} w{(i * 3) % 20}", "input": "", "output": [f"w{(i * 7) % 20} w{i % 13} w3"]}
        for i in range(40)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Tiny(folder / "teacher", folder / "student", data)
