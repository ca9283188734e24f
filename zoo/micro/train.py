"""Train the teacher and the student of the micro world: `python -m distillzoo.zoo.micro.train --out DIR`.

The figures of the shipped models, on the test split after rounding to bf16, one answer sampled for each of the 500
instructions at temperature 1:

- teacher: 838,912 parameters, 99.6% right at top-p 1.0 and 100.0% at 0.8, 0.39 nats a token; 1,263 s on two cores
  that were shared (about 800 s alone)
- student: 118,144 parameters, 62.0% right at top-p 1.0 and 79.0% at 0.8, 0.36 nats a token; 316 s on one core

The student's file comes out the same byte for byte with `--threads 1`.  The teacher was trained with two threads, and
its final norm was enlarged after a first rounding to bf16, so a new one differs in the last bits.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distillzoo.zoo.micro.tokenizer import ANSWER, CONTEXT, build_tokenizer
from distillzoo.zoo.micro.world import TASKS, answer, examples, instruction, is_right, problems

Pair = tuple[str, str]

TEACHER_SIZE = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}
STUDENT_SIZE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class Fit:
    """How long and how fast to train."""

    steps: int
    batch: int
    rate: float
    decay: float


TEACHER_FIT = Fit(steps=2600, batch=48, rate=3e-3, decay=0.01)
STUDENT_FIT = Fit(steps=1800, batch=64, rate=6e-3, decay=0.1)
# Short training leaves a little probability on wrong words. A larger final norm takes it away, and as right wordings
# are equally likely in the world, the choice between them stays as open as before.
TEACHER_NORM = 1.2
WARMUP = 100


def new_model(tokenizer: PreTrainedTokenizerFast, size: dict[str, int], seed: int) -> LlamaForCausalLM:
    """An untrained model of `size`, the same for the same `seed`."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=size["num_attention_heads"],
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **size,
    )
    return LlamaForCausalLM(config)


def fresh_pairs(seed: int) -> Iterator[Pair]:
    """Endless instructions of the train split's combinations, each with a newly worded right answer."""
    for task, facts, rng in problems("train", f"teacher {seed}"):
        yield instruction(task, facts, rng), answer(task, facts, rng)


def repeated_pairs(seed: int) -> Iterator[Pair]:
    """The train split's instructions with their one reference answer, epoch after epoch, each newly shuffled."""
    pairs = [(row["instruction"], row["output"][0]) for row in examples("train")]
    rng = Random(seed)
    while True:
        yield from rng.sample(pairs, len(pairs))


def encode(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    """Token ids of `pairs`, padded on the right, and the targets: the next token of the answer, elsewhere -100."""
    chats = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}] for asked, answered in pairs
    ]
    batch = tokenizer.apply_chat_template(
        chats, padding=True, return_dict=True, return_tensors="pt", tokenizer_kwargs={"padding_side": "right"}
    )
    ids = batch["input_ids"]
    marker = ids == tokenizer.convert_tokens_to_ids(ANSWER)
    answered = (marker.cumsum(1) > 0) & batch["attention_mask"].bool()
    targets = ids.roll(-1, dims=1).masked_fill(~answered | (ids == tokenizer.eos_token_id), -100)
    return ids, targets


def fit(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: Iterator[Pair], how: Fit) -> None:
    """Train `model` in place on the answers of `pairs`, with warm-up and a cosine decay of the rate to zero."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=how.rate, betas=(0.9, 0.98), weight_decay=how.decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / how.steps)) / 2)
    )
    model.train()
    for step in range(how.steps):
        ids, targets = encode(tokenizer, list(itertools.islice(pairs, how.batch)))
        wanted = targets != -100
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        # The head is applied where an answer token is predicted only: half of the positions are instruction or padding.
        loss = cross_entropy(model.lm_head(hidden[wanted]), targets[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{how.steps}: loss {loss.item():.4f}", flush=True)


@torch.inference_mode()
def right_share(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: str, top_p: float, prompts: int | None = None
) -> dict[str, float]:
    """The share of sampled answers (temperature 1, one a prompt) that are right, over all and for each task kind."""
    torch.manual_seed(0)
    model.eval()
    rows = examples(split)[:prompts]
    hits: dict[str, list[bool]] = {name: [] for name in ("all", *(task.name for task in TASKS))}
    for start in range(0, len(rows), 100):
        part = rows[start : start + 100]
        chats = [[{"role": "user", "content": row["instruction"]}] for row in part]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        room = CONTEXT - batch["input_ids"].shape[1]
        out = model.generate(**batch, do_sample=True, temperature=1.0, top_p=top_p, top_k=0, max_new_tokens=room)
        texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(part, texts, strict=True):
            right = is_right(row["instruction"], text)
            hits["all"].append(right)
            hits[row["task"]].append(right)
    return {name: round(sum(found) / len(found), 4) for name, found in hits.items()}


@torch.inference_mode()
def entropy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: str) -> float:
    """The mean entropy of `model`'s next-token distribution over the reference answers of `split`, in nats a token."""
    ids, targets = encode(tokenizer, [(row["instruction"], row["output"][0]) for row in examples(split)])
    model.eval()
    logs = model(input_ids=ids).logits[targets != -100].float().log_softmax(-1)
    return float(-(logs.exp() * logs).sum(-1).mean())


@torch.no_grad()
def sharpen(model: LlamaForCausalLM, factor: float) -> None:
    """Multiply the logits of `model` by `factor`, through its final norm."""
    model.model.norm.weight.mul_(factor)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> LlamaForCausalLM:
    """Write `model` rounded to bf16 with its tokenizer, and return it as read back, in float32."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """The figures of a trained model on the test split."""
    return {
        "parameters": model.num_parameters(),
        "right at top-p 1.0": right_share(model, tokenizer, "test", 1.0),
        "right at top-p 0.8": right_share(model, tokenizer, "test", 0.8),
        "nats a token": round(entropy(model, tokenizer, "test"), 4),
    }


def main() -> None:
    """Train what is asked for, write it under --out, and print its figures."""
    parser = argparse.ArgumentParser(description="Train the models of the micro world.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the folders teacher/ and student/")
    parser.add_argument("--only", choices=("teacher", "student"), help="train just this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = build_tokenizer()
    for name in ("teacher", "student"):
        if options.only not in (None, name):
            continue
        began = time.perf_counter()
        if name == "teacher":
            model = new_model(tokenizer, TEACHER_SIZE, options.seed)
            fit(model, tokenizer, fresh_pairs(options.seed), TEACHER_FIT)
            sharpen(model, TEACHER_NORM)
        else:
            model = new_model(tokenizer, STUDENT_SIZE, options.seed)
            fit(model, tokenizer, repeated_pairs(options.seed), STUDENT_FIT)
        seconds = round(time.perf_counter() - began)
        figures = measure(save(model, tokenizer, options.out / name), tokenizer)
        print(json.dumps({"model": name, "seconds": seconds, **figures}, indent=2), flush=True)


if __name__ == "__main__":
    main()
