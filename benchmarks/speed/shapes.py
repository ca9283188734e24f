"""Pairs of architectures with random weights, and the batch they are timed on."""

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Shape:
    """A teacher and a student of the Llama or Qwen-2 kind, and a batch.

    Attributes:
        name: on the command line.
        model_type: ``llama`` or ``qwen2``.
        vocabulary: V.
        student, teacher: sizes for the architecture's configuration.
        sequences: sequences a step.
        tokens: tokens a sequence, prompt and response.
        prompt: tokens of the prompt.
        mean_set: mean size that the teacher's head is scaled to give the nucleus at p = 0.8, cut at 64.
    """

    name: str
    model_type: str
    vocabulary: int
    student: dict[str, Any]
    teacher: dict[str, Any]
    sequences: int = 4
    tokens: int = 256
    prompt: int = 64
    mean_set: float = 23.0


def _sizes(hidden: int, inner: int, layers: int, heads: int, shared_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared_heads,
        "tie_word_embeddings": True,
    }


SHAPES: Final = {
    shape.name: shape
    for shape in (
        Shape("micro", "llama", 369, _sizes(56, 152, 3, 4, 2), _sizes(128, 344, 6, 4, 2), 64, 80, 28, 4.0),
        Shape("smollm2-10", "llama", 49_152, _sizes(576, 1536, 10, 9, 3), _sizes(576, 1536, 30, 9, 3)),
        Shape("qwen2.5-0.5b", "qwen2", 151_936, _sizes(896, 4864, 24, 14, 2), _sizes(2048, 11_008, 36, 16, 2)),
    )
}
"""The student of smollm2-10 is SmolLM2-135M cut to 10 layers; on its own samples sets have 23 tokens on average."""
