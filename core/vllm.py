"""Sampling from the teacher with vLLM, an extra (``pip install 'distillzoo[vllm]'``)."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from distillzoo.core.errors import UserError
from distillzoo.core.extraction import Decoding
from distillzoo.core.rounds import derived
from distillzoo.core.trajectories import Completion

NEVER: Final = -100.0
"""What is added to the logit of a column without a token; vLLM clips a bias there."""


@dataclass(frozen=True)
class VllmSampler:
    """Samples from a model that vLLM loads for one call and lets go after it; implements ``Sampler``.

    It is for a teacher that is sampled once, before training. A student that samples while it learns would have to hand
    its weights to the engine before each round, which this does not do. Completions carry no log-probabilities: those
    that vLLM gives by default are the model's before temperature and nucleus, not those of what was drawn.

    Attributes:
        model: hub id or folder.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether to run model code from the repository.
        dtype: of the weights, as in ``bfloat16``.
        memory: share of the GPU's memory that the engine may take.
        stops: ids that end a response.
        suppressed: columns of the model that hold no token.
        max_new_tokens: length limit of a response.
    """

    model: str
    revision: str | None
    trust_remote_code: bool
    dtype: str
    memory: float
    stops: Sequence[int]
    suppressed: Sequence[int]
    max_new_tokens: int

    def __call__(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
        """One completion a prompt, in the order given."""
        from vllm import LLM, SamplingParams

        engine = LLM(
            model=self.model,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            dtype=self.dtype,
            gpu_memory_utilization=self.memory,
            max_model_len=max(map(len, prompts)) + self.max_new_tokens,
            skip_tokenizer_init=True,
        )
        settings = [
            SamplingParams(
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                max_tokens=self.max_new_tokens,
                stop_token_ids=list(self.stops),
                ignore_eos=True,
                logit_bias=dict.fromkeys(self.suppressed, NEVER) or None,
                seed=derived(seed, i),  # one seed for all would give equal prompts equal answers
                detokenize=False,
            )
            for i in range(len(prompts))
        ]
        found = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
        return [self._completion(list(request.outputs[0].token_ids)) for request in found]

    def _completion(self, tokens: list[int]) -> Completion:
        return Completion(tokens, ended=tokens[-1] in self.stops)


def check_vllm() -> None:
    """Refuse a run that wants vLLM where it isn't.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "sampler 'vllm' needs vLLM, which is not installed: pip install 'distillzoo[vllm]', or use transformers."
        )
